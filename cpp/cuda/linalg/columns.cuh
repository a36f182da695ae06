// Sums over the columns of a matrix with any strides, in double, in an order that follows from the shape alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device.hpp"
#include "quadric/view.hpp"

namespace quadric::cuda::linalg {

// What is summed is a type like the one below: kCount numbers for each column, to which `add` adds an entry; `result`
// of all of them is the answer.

// The root of the sum of squares: large, moderate and small numbers apart, so that no square overflows or vanishes
// (Blue, ACM TOMS 1978).
struct Norm {
  static constexpr int kCount = 3;
  static constexpr double kLarge = 0x1p500, kSmall = 0x1p-500, kScale = 0x1p600;
  __device__ static void add(double (&sum)[3], double x) {
    const double size = fabs(x);
    if (size > kLarge) {
      const double y = x / kScale;
      sum[0] += y * y;
    } else if (size < kSmall) {
      const double y = x * kScale;
      sum[2] += y * y;
    } else {  // NaN too
      sum[1] += x * x;
    }
  }
  __device__ static double result(const double (&sum)[3]) {
    if (sum[0] > 0) return sqrt(sum[0] + sum[1] / kScale / kScale) * kScale;
    if (sum[1] == 0) return sqrt(sum[2]) / kScale;
    return sqrt(sum[1] + sum[2] / kScale / kScale);
  }
};

template <class T>
__device__ __forceinline__ T& entry(const MatrixView<T>& A, std::int64_t i, std::int64_t j) {
  return A.data[i * A.row_stride + j * A.col_stride];
}

inline constexpr int kColumnsWide = 32, kColumnsHigh = 8;

// parts[part][i][column]; kAlong: a warp reads entries of a row, else of a column.
template <class Op, class T, bool kAlong>
__global__ void __launch_bounds__(kColumnsWide* kColumnsHigh)
    column_parts_kernel(MatrixView<const T> A, std::int64_t part, double* parts) {
  __shared__ double shared[kColumnsHigh][Op::kCount][kColumnsWide];
  const int x = static_cast<int>(threadIdx.x) % kColumnsWide, y = static_cast<int>(threadIdx.x) / kColumnsWide;
  const std::int64_t begin = blockIdx.x * part, end = begin + part < A.rows ? begin + part : A.rows;
  double* const out = parts + blockIdx.x * Op::kCount * A.cols;
  for (std::int64_t j0 = blockIdx.y * static_cast<std::int64_t>(kColumnsWide); j0 < A.cols;
       j0 += gridDim.y * static_cast<std::int64_t>(kColumnsWide)) {
    if constexpr (kAlong) {
      double sum[Op::kCount] = {};
      if (j0 + x < A.cols)
#pragma unroll 4
        for (std::int64_t i = begin + y; i < end; i += kColumnsHigh)
          Op::add(sum, static_cast<double>(entry(A, i, j0 + x)));
#pragma unroll
      for (int c = 0; c < Op::kCount; ++c) shared[y][c][x] = sum[c];
      __syncthreads();
      if (y == 0 && j0 + x < A.cols) {
#pragma unroll
        for (int c = 0; c < Op::kCount; ++c) {
          for (int h = 1; h < kColumnsHigh; ++h) sum[c] += shared[h][c][x];
          out[c * A.cols + j0 + x] = sum[c];
        }
      }
      __syncthreads();
    } else {
      for (std::int64_t j = j0 + y; j < j0 + kColumnsWide && j < A.cols; j += kColumnsHigh) {
        double sum[Op::kCount] = {};
#pragma unroll 4
        for (std::int64_t i = begin + x; i < end; i += kColumnsWide) Op::add(sum, static_cast<double>(entry(A, i, j)));
#pragma unroll
        for (int c = 0; c < Op::kCount; ++c) {
          for (int distance = 16; distance > 0; distance /= 2) sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], distance);
          if (x == 0) out[c * A.cols + j] = sum[c];
        }
      }
    }
  }
}

template <class Op>
__global__ void __launch_bounds__(256)
    column_result_kernel(const double* parts, std::int64_t count, std::int64_t cols, double* out) {
  const std::int64_t j = blockIdx.x * std::int64_t{256} + threadIdx.x;
  if (j >= cols) return;
  double sum[Op::kCount] = {};
#pragma unroll 8
  for (std::int64_t part = 0; part < count; ++part)
#pragma unroll
    for (int c = 0; c < Op::kCount; ++c) sum[c] += parts[(part * Op::kCount + c) * cols + j];
  out[j] = Op::result(sum);
}

// out[j] = Op over column j of A. One read of A.
template <class Op, class T>
void reduce_columns(const Execution& exec, const MatrixView<const T>& A, double* out) {
  if (A.cols == 0) return;
  constexpr std::int64_t kLeast = 256, kParts = 256;
  const std::int64_t part = std::max(kLeast, (A.rows + kParts - 1) / kParts);
  const std::int64_t count = (A.rows + part - 1) / part;
  Scratch scratch(exec);
  double* const parts = scratch.get<double>(count * Op::kCount * A.cols);
  if (count > 0) {
    const dim3 grid(static_cast<unsigned>(count),
                    static_cast<unsigned>(std::min<std::int64_t>((A.cols + kColumnsWide - 1) / kColumnsWide, 65535)));
    const auto size = [](std::int64_t x) { return x < 0 ? -x : x; };
    if (size(A.row_stride) < size(A.col_stride) && A.rows > 1 && A.cols > 1)
      column_parts_kernel<Op, T, false><<<grid, kColumnsWide * kColumnsHigh, 0, stream(exec)>>>(A, part, parts);
    else
      column_parts_kernel<Op, T, true><<<grid, kColumnsWide * kColumnsHigh, 0, stream(exec)>>>(A, part, parts);
    QUADRIC_CUDA_LAUNCHED();
  }
  column_result_kernel<Op>
      <<<static_cast<unsigned>((A.cols + 255) / 256), 256, 0, stream(exec)>>>(parts, count, A.cols, out);
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace quadric::cuda::linalg
