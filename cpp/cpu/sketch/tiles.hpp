// A matrix cut into tiles of a few columns, so that the rows that are added to stay in the second-level cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "buffer.hpp"
#include "quadric/view.hpp"
#include "sketch/sketch_kernels.hpp"
#include "threads.hpp"

namespace quadric::sketch::detail {

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Columns in tiles of whole lines, about the same number of lines in each, and as many tiles for each thread.
template <class T>
struct Tiles {
  Tiles(std::int64_t d_, std::int64_t most, int n_threads) : d(d_), all(ceil_div(d, kLineEntries<T>)) {
    count = std::min(all, ceil_div(ceil_div(all, most), n_threads) * n_threads);
    width = (all + count - 1) / count * kLineEntries<T>;
  }
  std::int64_t first(std::int64_t t) const { return all * t / count * kLineEntries<T>; }
  std::int64_t lines(std::int64_t t) const { return all * (t + 1) / count - all * t / count; }
  std::int64_t columns(std::int64_t t) const { return std::min(d, first(t + 1)) - first(t); }
  std::int64_t packed(std::int64_t t) const { return lines(t) * kLineEntries<T>; }  // columns and padding
  // Whether the rows of tile t of A lie as whole lines.
  bool ready(const MatrixView<const T>& A, std::int64_t t) const {
    return A.col_stride == 1 && columns(t) == packed(t);
  }
  // body(tile) for the tiles of one thread.
  template <class Body>
  void for_share(std::int64_t share, int n_threads, const Body& body) const {
    for (std::int64_t t = count * share / n_threads; t < count * (share + 1) / n_threads; ++t) body(t);
  }

  std::int64_t d, all, count = 0;
  std::int64_t width = 0;  // of the widest
};

// Lines of a tile with this many rows in so many bytes of cache.
inline std::int64_t most_lines(std::int64_t rows, std::int64_t cache) {
  return std::clamp<std::int64_t>(cache / (rows * kLine), 1, kMostLines);
}

// Columns [begin, begin + columns) of `rows` rows of A, packed; zeros up to `width`.
template <class T>
void copy_rows(const MatrixView<const T>& A, std::int64_t first, std::int64_t rows, std::int64_t begin,
               std::int64_t columns, std::int64_t width, T* to) {
  const T* const from = A.data + first * A.row_stride + begin * A.col_stride;
  if (std::abs(A.row_stride) < std::abs(A.col_stride)) {
    for (std::int64_t j = 0; j < columns; ++j)
      for (std::int64_t i = 0; i < rows; ++i) to[i * width + j] = from[i * A.row_stride + j * A.col_stride];
  } else {
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j) to[i * width + j] = from[i * A.row_stride + j * A.col_stride];
  }
  for (std::int64_t i = 0; i < rows; ++i) std::fill(to + i * width + columns, to + (i + 1) * width, T(0));
}

// How many threads a pass over so many entries is worth.
inline int pass_threads(const Execution& exec, std::int64_t entries) { return thread_count(exec, entries >> 15); }

// The same where threads share the columns.
template <class T>
int column_threads(const Execution& exec, std::int64_t d, std::int64_t entries) {
  return std::min(pass_threads(exec, entries), thread_count(exec, ceil_div(d, kLineEntries<T>)));
}

}  // namespace quadric::sketch::detail
