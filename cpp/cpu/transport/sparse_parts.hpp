// How the rows of a sparse matrix are shared out, and what is done with one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "quadric/transport.hpp"

namespace quadric::transport::detail {

// Bounds of parts of about equally many entries, each a multiple of 16 rows; few entries make one part, because waking
// a second thread costs more than they do.
inline std::vector<std::int64_t> sparse_parts(const SparseView& matrix) {
  const std::int64_t entries = matrix.starts[matrix.rows];
  const std::int64_t parts = std::clamp<std::int64_t>(entries >> 14, 1, 16);
  std::vector<std::int64_t> bounds{0};
  for (std::int64_t part = 1; part < parts; ++part) {
    const std::int64_t* const found =
        std::lower_bound(matrix.starts, matrix.starts + matrix.rows, entries * part / parts);
    const std::int64_t row = (found - matrix.starts) / 16 * 16;
    if (row > bounds.back()) bounds.push_back(row);
  }
  bounds.push_back(matrix.rows);
  return bounds;
}

// Four sums, against the latency of an addition.
inline double row_dot(const double* values, const std::int32_t* columns, std::int64_t count, const double* x) {
  double sum[4] = {};
  std::int64_t k = 0;
  for (; k + 4 <= count; k += 4)
    for (int w = 0; w < 4; ++w) sum[w] += values[k + w] * x[columns[k + w]];
  for (; k < count; ++k) sum[0] += values[k] * x[columns[k]];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// y += scale * row.
inline void add_row(const double* values, const std::int32_t* columns, std::int64_t count, double scale, double* y) {
  for (std::int64_t k = 0; k < count; ++k) y[columns[k]] += values[k] * scale;
}

}  // namespace quadric::transport::detail
