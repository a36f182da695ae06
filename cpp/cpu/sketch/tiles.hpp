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

inline constexpr std::int64_t kCopied = 64;  // rows of A that are copied at a time, where they must be

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class T>
struct Tiles {
  // Tiles of `rows` rows in `cache` bytes, as many for each thread where that can be.
  Tiles(std::int64_t rows, std::int64_t d_, int n_threads, std::int64_t cache = 1 << 20) : d(d_) {
    const std::int64_t all = ceil_div(d, kLineEntries<T>);
    const std::int64_t most = std::clamp<std::int64_t>(cache / (rows * kLine), 1, kMostLines);
    lines = ceil_div(all, std::min(all, ceil_div(ceil_div(all, most), n_threads) * n_threads));
    width = lines * kLineEntries<T>;
    count = ceil_div(d, width);
  }
  std::int64_t columns(std::int64_t t) const { return std::min(width, d - t * width); }

  std::int64_t d, lines, width, count;
};

// body(tile) for the tiles of a thread, so that they stay in its cache from one call to the next.
template <class T, class Body>
void for_share(const Tiles<T>& tiles, std::int64_t share, int n_threads, const Body& body) {
  for (std::int64_t t = tiles.count * share / n_threads; t < tiles.count * (share + 1) / n_threads; ++t) body(t);
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

// body(rows as T*, their stride, first, count) for rows [begin, end) of a tile of A; copies pass through `memory`,
// kCopied x width, where they do not lie ready.
template <class T, class Body>
void for_rows(const MatrixView<const T>& A, const Tiles<T>& tiles, std::int64_t t, std::int64_t begin,
              std::int64_t end, T* memory, const Body& body) {
  if (A.col_stride == 1 && tiles.columns(t) == tiles.width) {
    body(A.data + begin * A.row_stride + t * tiles.width, A.row_stride, begin, end - begin);
    return;
  }
  for (std::int64_t i = begin; i < end; i += kCopied) {
    const std::int64_t count = std::min(kCopied, end - i);
    copy_rows(A, i, count, t * tiles.width, tiles.columns(t), tiles.width, memory);
    body(static_cast<const T*>(memory), tiles.width, i, count);
  }
}

// How many threads a pass over n x d entries is worth.
inline int pass_threads(const Execution& exec, std::int64_t entries) { return thread_count(exec, entries >> 15); }

}  // namespace quadric::sketch::detail
