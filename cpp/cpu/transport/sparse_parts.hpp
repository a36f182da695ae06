// How the rows of a sparse matrix are shared out.
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

}  // namespace quadric::transport::detail
