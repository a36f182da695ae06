// Tall matrices are summed slab by slab, each into sums of its own that are added in order: the same result for any
// number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "quadric/view.hpp"
#include "sketch/tiles.hpp"

namespace quadric::sketch::detail {

struct Slabs {
  // At most kMost slabs of `unit` rows or whole multiples; fewer where their sums of `entries` numbers would be many.
  Slabs(std::int64_t n_, std::int64_t unit, std::int64_t entries) : n(n_) {
    constexpr std::int64_t kMost = 64, kSums = 1 << 22;
    const std::int64_t most = std::clamp<std::int64_t>(kSums / std::max<std::int64_t>(entries, 1), 4, kMost);
    const std::int64_t units = (n + unit - 1) / unit;
    rows = std::max<std::int64_t>(1, (units + most - 1) / most) * unit;
    count = (n + rows - 1) / rows;
  }
  std::int64_t begin(std::int64_t slab) const { return slab * rows; }
  std::int64_t end(std::int64_t slab) const { return std::min(n, (slab + 1) * rows); }

  std::int64_t n, rows = 0, count = 0;
};

// What BLAS, which counts in int, can take as it lies.
template <class T>
bool by_rows(const MatrixView<const T>& A) {
  return A.col_stride == 1 && A.row_stride >= A.cols && A.row_stride <= std::numeric_limits<int>::max();
}
template <class T>
bool by_columns(const MatrixView<const T>& A) {
  return A.row_stride == 1 && A.col_stride >= A.rows && A.col_stride <= std::numeric_limits<int>::max();
}

template <class T>
MatrixView<T> row_range(const MatrixView<T>& A, std::int64_t begin, std::int64_t count) {
  return {A.data + begin * A.row_stride, count, A.cols, A.row_stride, A.col_stride};
}

// A with contiguous rows: itself where it has them, else a copy in `memory`.
template <class T>
const T* with_rows(const MatrixView<const T>& A, T* memory, std::int64_t& stride) {
  if (by_rows(A)) {
    stride = A.row_stride;
    return A.data;
  }
  stride = A.cols;
  copy_rows(A, 0, A.rows, 0, A.cols, A.cols, memory);
  return memory;
}

}  // namespace quadric::sketch::detail
