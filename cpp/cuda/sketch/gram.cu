// Gram matrices of tall matrices, and norms of their rows.
//
// Floors at n = 1e6 in float64: (A M)^T (A M) for a triangle M has n d^2 multiply-adds in all: 2.3 ms at 58 TFLOP/s for
// d = 256, 36 ms for 1024. Blocks of columns, those of `linalg::block_columns`, leave 3/4 and 5/8 of what full products
// would need: 3.4 and 45 ms. To be reached: 4.5 and 60 ms. Traffic of slabs, 3 n d numbers, takes a third of that and
// runs beside it. Norms of rows of A M: 2 n d^2 flops, 2.3 ms for d = 256, of a triangle 3/4 and 5/8 of that; for
// contiguous rows of float64 half of it (triangle.cu). Without M: one read of A, 0.48 ms; to be reached 90 %.
#include <cmath>
#include <cstdint>

#include "linalg/products.hpp"
#include "quadric/cuda/sketch.hpp"
#include "sketch/slabs.cuh"
#include "sketch/triangle.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kGramBytes = std::int64_t{256} << 20;  // of a slab; the larger, the fewer sums of products
constexpr std::int64_t kNormBytes = std::int64_t{64} << 20;

unsigned grid_over(std::int64_t size) {
  return static_cast<unsigned>(std::min<std::int64_t>(ceil_div(size, kThreads), 1 << 16));
}

// to = from, d x k; kUpper: zeros below the diagonal.
template <class T, bool kUpper>
__global__ void __launch_bounds__(kThreads)
    round_kernel(const double* from, std::int64_t row_stride, std::int64_t col_stride, std::int64_t k,
                 std::int64_t size, T* to) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t t = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; t < size; t += step) {
    const std::int64_t i = t / k, j = t % k;
    to[t] = kUpper && j < i ? T(0) : static_cast<T>(from[i * row_stride + j * col_stride]);
  }
}

template <class T, bool kUpper>
const T* rounded(const Execution& exec, Scratch& scratch, const MatrixView<const double>& M) {
  const std::int64_t size = M.rows * M.cols;
  T* const to = scratch.get<T>(size);
  if (size == 0) return to;
  round_kernel<T, kUpper>
      <<<grid_over(size), kThreads, 0, stream(exec)>>>(M.data, M.row_stride, M.col_stride, M.cols, size, to);
  QUADRIC_CUDA_LAUNCHED();
  return to;
}

// X = |w|^(1/2) A, Y = sign(w) X, so that X^T Y = A^T diag(w) A and no entry is further from 1 than in the result.
template <class T>
__global__ void __launch_bounds__(kThreads)
    weigh_kernel(Rows<T> A, const double* w, std::int64_t d, std::int64_t size, T* X, T* Y) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t t = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; t < size; t += step) {
    const std::int64_t i = t / d, j = t % d;
    const double weight = w[i], x = sqrt(fabs(weight)) * static_cast<double>(A.data[i * A.stride + j]);
    X[t] = static_cast<T>(x);
    Y[t] = static_cast<T>(weight < 0 ? -x : x);
  }
}

// out_i = ||row i||^2 by 2^log_team lanes for each row.
template <class S>
__global__ void __launch_bounds__(kThreads)
    norms_kernel(const S* A, std::int64_t rows, std::int64_t cols, std::int64_t row_stride, std::int64_t col_stride,
                 int log_team, double* out) {
  constexpr int kWays = 4;
  const int team = 1 << log_team, lane = static_cast<int>(threadIdx.x) & (team - 1);
  const std::int64_t row = (blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x) >> log_team;
  double sum[kWays] = {};
  if (row < rows) {
    const S* const a = A + row * row_stride;
    std::int64_t j = lane;
    for (; j + (kWays - 1) * team < cols; j += kWays * team) {
#pragma unroll
      for (int u = 0; u < kWays; ++u) {
        const double x = widened(a[(j + u * team) * col_stride]);
        sum[u] += x * x;
      }
    }
    for (; j < cols; j += team) {
      const double x = widened(a[j * col_stride]);
      sum[0] += x * x;
    }
  }
  double total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  for (int distance = team / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(0xffffffffu, total, distance);
  if (lane == 0 && row < rows) out[row] = total;
}

template <class S>
void norms_of_rows(const Execution& exec, const S* A, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
                   std::int64_t col_stride, double* out) {
  int log_team = 0;  // neighbours read what is near: entries of a row, else rows
  while ((row_stride < 0 ? -row_stride : row_stride) >= (col_stride < 0 ? -col_stride : col_stride) && log_team < 5 &&
         std::int64_t{4} << log_team < cols)
    ++log_team;
  norms_kernel<S><<<grid_of(ceil_div(rows << log_team, kThreads)), kThreads, 0, stream(exec)>>>(
      A, rows, cols, row_stride, col_stride, log_team, out);
  QUADRIC_CUDA_LAUNCHED();
}

// body(Source<S>, T()) for the types of A and of its sums.
template <class Body>
void with_sums(const StoredMatrix& A, const Body& body) {
  if (A.storage == Storage::float64)
    with_source<double>(A, [&](const auto& source) { body(source, double()); });
  else
    with_source<float>(A, [&](const auto& source) { body(source, float()); });
}

// The product with a triangle: column by column, Y^T = M^T A^T, and the first j + width columns of Y need as many of A.
// multiply(first column, columns, terms).
template <class Multiply>
void by_blocks(std::int64_t d, const Multiply& multiply) {
  const std::int64_t width = linalg::block_columns(d);
  for (std::int64_t j = 0; j < d; j += width) {
    const std::int64_t columns = std::min(width, d - j);
    multiply(j, columns, j + columns);
  }
}

// Whether the kernel for the tensor cores takes the rows as they are.
template <class S>
bool on_tensor_cores(const Source<S>& A) {
  return std::is_same_v<S, double> && A.layout == Layout::packed && A.row_stride >= A.cols && triangle_fits();
}

template <class S, class T>
void preconditioned(const Execution& exec, const Source<S>& A, const double* M, double* G, T) {
  const std::int64_t d = A.cols;
  Scratch scratch(exec);
  const cublasHandle_t handle = blas(exec, scratch);
  linalg::GramSum<T> sum(exec, scratch, handle, d, G);
  if (d == 0) return;
  const T* const factor = rounded<T, true>(exec, scratch, {M, d, d});
  const Slabs<T, S> slabs(exec, scratch, A, kGramBytes);
  T* const Y = scratch.get<T>(slabs.rows() * d);
  slabs.visit([&](std::int64_t, std::int64_t count, const Rows<T>& rows) {
    by_blocks(d, [&](std::int64_t j, std::int64_t columns, std::int64_t terms) {
      linalg::multiply<T>(handle, columns, count, terms, T(1), {CUBLAS_OP_N, factor + j, d},
                          {CUBLAS_OP_N, rows.data, rows.stride}, T(0), Y + j, d);
    });
    sum.add(Y, Y, d, count);
  });
  sum.finish();
}

template <class S, class T>
void weighted(const Execution& exec, const Source<S>& A, const double* w, double* G, T) {
  const std::int64_t d = A.cols;
  Scratch scratch(exec);
  linalg::GramSum<T> sum(exec, scratch, blas(exec, scratch), d, G);
  if (d == 0) return;
  const Slabs<T, S> slabs(exec, scratch, A, w != nullptr ? kGramBytes / 2 : kGramBytes);
  T* const X = w != nullptr ? scratch.get<T>(slabs.rows() * d) : nullptr;
  T* const Y = w != nullptr ? scratch.get<T>(slabs.rows() * d) : nullptr;
  slabs.visit([&](std::int64_t first, std::int64_t count, const Rows<T>& rows) {
    if (w == nullptr) {
      sum.add(rows.data, rows.data, rows.stride, count);
      return;
    }
    weigh_kernel<T><<<grid_over(count * d), kThreads, 0, stream(exec)>>>(rows, w + first, d, count * d, X, Y);
    QUADRIC_CUDA_LAUNCHED();
    sum.add(X, Y, d, count);
  });
  sum.finish();
}

template <class S, class T>
void norms_of_products(const Execution& exec, const Source<S>& A, const MatrixView<const double>& M, bool upper,
                       double* out, T) {
  const std::int64_t d = A.cols, k = M.cols;
  Scratch scratch(exec);
  if constexpr (std::is_same_v<S, double>) {
    if (upper && on_tensor_cores(A)) {
      norms_by_triangle(exec, A.data, A.row_stride, A.rows, laid_out(exec, scratch, M), out);
      return;
    }
  }
  const cublasHandle_t handle = blas(exec, scratch);
  const T* const factor = upper ? rounded<T, true>(exec, scratch, M) : rounded<T, false>(exec, scratch, M);
  const std::int64_t widest = std::max(d, k);
  const Slabs<T, S> slabs(exec, scratch, A, std::max<std::int64_t>(1, kNormBytes / widest * d));
  T* const Y = scratch.get<T>(slabs.rows() * k);
  slabs.visit([&](std::int64_t first, std::int64_t count, const Rows<T>& rows) {
    const auto multiply = [&](std::int64_t first_column, std::int64_t columns, std::int64_t terms) {
      linalg::multiply<T>(handle, columns, count, terms, T(1), {CUBLAS_OP_N, factor + first_column, k},
                          {CUBLAS_OP_N, rows.data, rows.stride}, T(0), Y + first_column, k);
    };
    if (upper)
      by_blocks(d, multiply);
    else
      multiply(0, k, d);
    norms_of_rows(exec, static_cast<const T*>(Y), count, k, k, 1, out + first);
  });
}

}  // namespace

void preconditioned_gram(const Execution& exec, const StoredMatrix& A, const double* M, double* G) {
  with_sums(A, [&](const auto& source, auto zero) { preconditioned(exec, source, M, G, zero); });
}

void weighted_gram(const Execution& exec, const StoredMatrix& A, const double* w, double* G) {
  with_sums(A, [&](const auto& source, auto zero) { weighted(exec, source, w, G, zero); });
}

void row_norms(const Execution& exec, const StoredMatrix& A, MatrixView<const double> M, double* out, bool upper) {
  QUADRIC_REQUIRE(M.data == nullptr || M.rows == A.cols, "M must have a row for each column of A");
  QUADRIC_REQUIRE(!upper || M.rows == M.cols, "a triangle must be square");
  if (A.rows == 0) return;
  if (A.cols == 0 || (M.data != nullptr && M.cols == 0)) {
    QUADRIC_CUDA(cudaMemsetAsync(out, 0, static_cast<std::size_t>(A.rows) * sizeof(double), stream(exec)));
    return;
  }
  with_sums(A, [&](const auto& source, auto zero) {
    if (M.data != nullptr)
      norms_of_products(exec, source, M, upper, out, zero);
    else
      norms_of_rows(exec, source.data, source.rows, source.cols, source.row_stride, source.col_stride, out);
  });
}

}  // namespace quadric::cuda::sketch
