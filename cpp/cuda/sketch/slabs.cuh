// Slabs of rows of a tall matrix for cuBLAS: contiguous rows of T. Rows that are so already are used where they are;
// others, and those of 16 bits, are copied, a slab at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "sketch/tiles.cuh"

namespace quadric::cuda::sketch {

template <class T>
struct Rows {
  const T* data;
  std::int64_t stride;
};

inline constexpr int kTurned = 32;

// out = rows `first` to `first` + count of A, contiguous, where entries of a column are the nearer ones.
template <class S, class T>
__global__ void __launch_bounds__(kTurned * 8)
    turn_rows_kernel(const Source<S> A, std::int64_t first, std::int64_t count, T* __restrict__ out) {
  __shared__ T tile[kTurned][kTurned + 1];
  const int x = static_cast<int>(threadIdx.x) % kTurned, y = static_cast<int>(threadIdx.x) / kTurned;
  const std::int64_t i0 = blockIdx.x * static_cast<std::int64_t>(kTurned);
  for (std::int64_t j0 = blockIdx.y * static_cast<std::int64_t>(kTurned); j0 < A.cols;
       j0 += gridDim.y * static_cast<std::int64_t>(kTurned)) {
    for (int c = y; c < kTurned; c += 8)
      if (i0 + x < count && j0 + c < A.cols)
        tile[c][x] = widened(A.data[(first + i0 + x) * A.row_stride + (j0 + c) * A.col_stride]);
    __syncthreads();
    for (int r = y; r < kTurned; r += 8)
      if (i0 + r < count && j0 + x < A.cols) out[(i0 + r) * A.cols + j0 + x] = tile[x][r];
    __syncthreads();
  }
}

template <class T, class S>
class Slabs {
 public:
  // Slabs of about `bytes`, all of one size but the last.
  Slabs(const Execution& exec, Scratch& scratch, const Source<S>& A, std::int64_t bytes)
      : exec_(exec), A_(A), direct_(std::is_same_v<S, T> && A.col_stride == 1 && A.row_stride >= A.cols) {
    constexpr std::int64_t kStep = 1024;
    const std::int64_t row = std::max<std::int64_t>(1, A.cols) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t most = std::max(kStep, bytes / row / kStep * kStep);
    const std::int64_t count = std::max<std::int64_t>(1, ceil_div(A.rows, most));
    rows_ = std::min(std::max<std::int64_t>(1, A.rows), ceil_div(ceil_div(A.rows, count), kStep) * kStep);
    if (!direct_) copy_ = scratch.get<T>(rows_ * A.cols);
  }

  std::int64_t rows() const { return rows_; }  // of a slab

  // body(first row, number of rows, Rows<T>) for all slabs.
  template <class Body>
  void visit(const Body& body) const {
    for (std::int64_t first = 0; first < A_.rows; first += rows_) {
      const std::int64_t count = std::min(rows_, A_.rows - first);
      body(first, count, rows_of(first, count));
    }
  }

 private:
  Rows<T> rows_of(std::int64_t first, std::int64_t count) const {
    if constexpr (std::is_same_v<S, T>) {
      if (direct_) return {A_.data + first * A_.row_stride, A_.row_stride};
    }
    if (A_.cols == 0) return {copy_, 1};
    if (A_.layout == Layout::columns) {
      const dim3 grid(grid_of(ceil_div(count, kTurned)),
                      static_cast<unsigned>(std::min<std::int64_t>(ceil_div(A_.cols, kTurned), 65535)));
      turn_rows_kernel<S, T><<<grid, kTurned * 8, 0, stream(exec_)>>>(A_, first, count, copy_);
      QUADRIC_CUDA_LAUNCHED();
    } else {
      copy_rows(exec_, A_, first, count, copy_);
    }
    return {copy_, A_.cols};
  }

  const Execution& exec_;
  Source<S> A_;
  bool direct_;
  std::int64_t rows_ = 1;
  T* copy_ = nullptr;
};

}  // namespace quadric::cuda::sketch
