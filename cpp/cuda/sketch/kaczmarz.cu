// Projections onto rows, one after the other: what counts is the time of a step, not bytes or flops. A dense step has a
// product, a sum over a block of threads and an update, about 0.5 us up to d = 2048, whose next row is read meanwhile;
// a sparse one three reads that wait for each other, 2 us. Right-hand sides run beside each other.
#include <cstdint>
#include <limits>

#include "sketch/tiles.cuh"
#include "sketch/warp_rows.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kAhead = 4;                    // entries of the next row that a thread reads
constexpr std::int64_t kMostShared = 24576;  // columns of x in shared memory
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// Whether all of `order` are numbers of rows; by all threads of the block.
__device__ __forceinline__ bool valid(const Projections& p, std::int64_t rows) {
  bool wrong = false;
  for (std::int64_t s = threadIdx.x; s < p.steps; s += blockDim.x) wrong |= p.order[s] < 0 || p.order[s] >= rows;
  return __syncthreads_or(wrong) == 0;
}

// A row's first entries of this thread, and what its step needs.
template <class T>
struct Step {
  const T* a;
  double entry[kAhead], y, factor;

  __device__ void read(const MatrixView<const T>& A, const Projections& p, std::int64_t s, std::int64_t c,
                       std::int64_t k) {
    const std::int64_t i = p.order[s];
    a = A.data + i * A.row_stride;
    y = p.Y[i * k + c];
    factor = p.relaxation / p.norms[i];
#pragma unroll
    for (int q = 0; q < kAhead; ++q) {
      const std::int64_t j = threadIdx.x + static_cast<std::int64_t>(q) * kThreads;
      entry[q] = j < A.cols ? static_cast<double>(a[j * A.col_stride]) : 0.0;
    }
  }
};

// A thread has the columns threadIdx.x + q kThreads of x, in shared memory or in X.
template <class T>
__global__ void __launch_bounds__(kThreads) kaczmarz_kernel(const MatrixView<const T> A, const Projections p,
                                                            const MatrixView<double> X, const bool in_shared) {
  extern __shared__ double memory[];
  __shared__ double sums[2][kWarps];
  const std::int64_t c = blockIdx.x, d = A.cols;
  const int thread = static_cast<int>(threadIdx.x);
  double* const result = X.data + c * d;
  if (!valid(p, A.rows)) {
    for (std::int64_t j = thread; j < d; j += kThreads) result[j] = std::numeric_limits<double>::quiet_NaN();
    return;
  }
  double* const x = in_shared ? memory : result;
  if (in_shared)
    for (std::int64_t j = thread; j < d; j += kThreads) x[j] = result[j];
  Step<T> now, next;
  now.read(A, p, 0, c, X.rows);
  for (std::int64_t s = 0; s < p.steps; ++s) {
    if (s + 1 < p.steps) next.read(A, p, s + 1, c, X.rows);
    double product = 0;
#pragma unroll
    for (int q = 0; q < kAhead; ++q) {
      const std::int64_t j = thread + static_cast<std::int64_t>(q) * kThreads;
      if (j < d) product += now.entry[q] * x[j];
    }
    for (std::int64_t j = thread + std::int64_t{kAhead} * kThreads; j < d; j += kThreads)
      product += static_cast<double>(now.a[j * A.col_stride]) * x[j];
    product = warp_sum(product);
    double* const own = sums[s % 2];  // the other half may still be read
    if (thread % 32 == 0) own[thread / 32] = product;
    __syncthreads();
    product = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) product += own[warp];
    const double step = now.factor * (now.y - product);
#pragma unroll
    for (int q = 0; q < kAhead; ++q) {
      const std::int64_t j = thread + static_cast<std::int64_t>(q) * kThreads;
      if (j < d) x[j] += step * now.entry[q];
    }
    for (std::int64_t j = thread + std::int64_t{kAhead} * kThreads; j < d; j += kThreads)
      x[j] += step * static_cast<double>(now.a[j * A.col_stride]);
    now = next;
  }
  if (in_shared)
    for (std::int64_t j = thread; j < d; j += kThreads) result[j] = x[j];
}

// One warp.
template <class T, class Index>
__global__ void __launch_bounds__(32) kaczmarz_csr_kernel(const SparseRows<T, Index> A, const Projections p,
                                                          const MatrixView<double> X, const bool in_shared) {
  extern __shared__ double memory[];
  const std::int64_t c = blockIdx.x, d = X.cols;
  const int lane = static_cast<int>(threadIdx.x);
  double* const result = X.data + c * d;
  if (!valid(p, A.rows)) {
    for (std::int64_t j = lane; j < d; j += 32) result[j] = std::numeric_limits<double>::quiet_NaN();
    return;
  }
  double* const x = in_shared ? memory : result;
  if (in_shared)
    for (std::int64_t j = lane; j < d; j += 32) x[j] = result[j];
  __syncwarp();
  for (std::int64_t s = 0; s < p.steps; ++s) {
    const std::int64_t i = p.order[s];
    const auto begin = static_cast<std::int64_t>(A.starts[i]), end = static_cast<std::int64_t>(A.starts[i + 1]);
    double product = 0;
    for (std::int64_t e = begin + lane; e < end; e += 32) {
      const auto column = static_cast<std::int64_t>(A.columns[e]);
      if (column >= 0 && column < d) product += static_cast<double>(A.values[e]) * x[column];
    }
    product = warp_sum(product);
    const double step = p.relaxation * (p.Y[i * X.rows + c] - product) / p.norms[i];
    for (std::int64_t e = begin; e < end; e += 32) {
      std::int64_t column = -1;
      double change = 0;
      if (e + lane < end) {
        column = static_cast<std::int64_t>(A.columns[e + lane]);
        if (column < 0 || column >= d) column = -1;
        change = step * static_cast<double>(A.values[e + lane]);
      }
      add_entries(x, column, change);
    }
  }
  if (in_shared)
    for (std::int64_t j = lane; j < d; j += 32) result[j] = x[j];
}

std::int64_t shared_bytes(std::int64_t d) {
  return d <= kMostShared ? d * static_cast<std::int64_t>(sizeof(double)) : 0;
}

}  // namespace

template <class T>
void kaczmarz(const Execution& exec, MatrixView<const T> A, const Projections& projections, MatrixView<double> X) {
  QUADRIC_REQUIRE(X.cols == A.cols, "X must have the columns of A");
  if (X.empty() || projections.steps == 0) return;
  const std::int64_t bytes = shared_bytes(X.cols);
  const auto kernel = kaczmarz_kernel<T>;
  allow_shared(kernel, bytes);
  kernel<<<grid_of(X.rows), kThreads, static_cast<std::size_t>(bytes), stream(exec)>>>(A, projections, X, bytes > 0);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T, class Index>
void kaczmarz_csr(const Execution& exec, const SparseRows<T, Index>& A, const Projections& projections,
                  MatrixView<double> X) {
  if (X.empty() || projections.steps == 0) return;
  const std::int64_t bytes = shared_bytes(X.cols);
  const auto kernel = kaczmarz_csr_kernel<T, Index>;
  allow_shared(kernel, bytes);
  kernel<<<grid_of(X.rows), 32, static_cast<std::size_t>(bytes), stream(exec)>>>(A, projections, X, bytes > 0);
  QUADRIC_CUDA_LAUNCHED();
}

#define QUADRIC_INSTANTIATE(T)                                                                                       \
  template QUADRIC_API void kaczmarz(const Execution&, MatrixView<const T>, const Projections&, MatrixView<double>); \
  template QUADRIC_API void kaczmarz_csr(const Execution&, const SparseRows<T, std::int32_t>&, const Projections&,   \
                                         MatrixView<double>);                                                        \
  template QUADRIC_API void kaczmarz_csr(const Execution&, const SparseRows<T, std::int64_t>&, const Projections&,   \
                                         MatrixView<double>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::sketch
