// The derivative of the router's gates: the gradient less its least-squares fit u_i + v_j on the gates that are not 0.
//
// With the token's part u eliminated, v solves with the Laplacian of the experts (transport/route.cuh). Floor: the
// gates and the gradient read twice, the result written; 10 000 tokens, 64 experts in float32: 13 MB, 3 us; four
// launches and the solution with a 64 x 64 matrix by one block are more: 40 us.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "device.hpp"
#include "quadric/cuda/transport.hpp"
#include "require.hpp"
#include "transport/route.cuh"

namespace quadric::cuda::transport {
namespace {

using router::Whole;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr std::int64_t kChunk = 256;  // rows whose sums are one part

template <class T>
struct Gates {
  const T *gradient, *gates;
  std::int64_t gradient_row, gradient_col, gates_row, gates_col;
  const bool* free;
  std::int64_t n;
  int experts, width, bits;

  __device__ bool inside(std::int64_t i, int j) const { return i < n && gates[i * gates_row + j * gates_col] > T(0); }
  __device__ double at(std::int64_t i, int j) const {
    return static_cast<double>(gradient[i * gradient_row + j * gradient_col]);
  }
};

struct RowSum {
  double sum = 0;
  int count = 0;
};

// The sum of term(j) over the gates of row i, for all lanes of its group.
template <class T, class Term>
__device__ RowSum sum_row(const Gates<T>& p, std::int64_t i, int own, Term term) {
  RowSum row;
  for (int j = own; j < p.experts; j += p.width) {
    if (!p.inside(i, j)) continue;
    row.sum += term(j);
    ++row.count;
  }
  return {router::group_sum(row.sum, p.width), router::group_sum(row.count, p.width)};
}

// L, and the mean of the gradient over each free row.
template <class T>
__global__ void __launch_bounds__(kThreads) means_kernel(const Gates<T> p, Whole* laplacian, double* means) {
  __shared__ Whole part[router::kSharedExperts * router::kSharedExperts];
  const int lane = static_cast<int>(threadIdx.x) % 32, own = lane % p.width, per_warp = 32 / p.width, E = p.experts;
  const bool local = E <= router::kSharedExperts;
  for (int t = static_cast<int>(threadIdx.x); local && t < E * E; t += kThreads) part[t] = 0;
  __syncthreads();
  const std::int64_t warp = (blockIdx.x * std::int64_t{kThreads} + threadIdx.x) / 32;
  for (std::int64_t start = warp * per_warp; start < p.n; start += gridDim.x * std::int64_t{kWarps} * per_warp) {
    const std::int64_t i = start + lane / p.width;
    const auto [sum, count] = sum_row(p, i, own, [&](int j) { return p.at(i, j); });
    const bool free = i < p.n && p.free[i];
    router::add_row(local ? part : laplacian, E, p.width, count, free, p.bits, [&](int j) { return p.inside(i, j); });
    if (own == 0 && i < p.n) means[i] = free && count > 0 ? sum / count : 0;
  }
  __syncthreads();
  for (int t = static_cast<int>(threadIdx.x); local && t < E * E; t += kThreads)
    if (part[t] != 0) atomicAdd(&laplacian[t], part[t]);
}

// parts[chunk, j] = sum of the gradient less its row's mean over the gates of column j.
template <class T>
__global__ void __launch_bounds__(kThreads) columns_kernel(const Gates<T> p, const double* means, double* parts) {
  __shared__ double part[kThreads];
  const std::int64_t first = blockIdx.x * kChunk, last = first + kChunk < p.n ? first + kChunk : p.n;
  const int thread = static_cast<int>(threadIdx.x), E = p.experts;
  int width = 1;
  while (width < E && width < kThreads) width *= 2;
  for (int start = 0; start < E; start += width) {
    const int j = start + thread % width;
    double sum = 0;
    for (std::int64_t i = first + thread / width; i < last; i += kThreads / width)
      if (j < E && p.inside(i, j)) sum += p.at(i, j) - means[i];
    part[thread] = sum;
    __syncthreads();
    if (thread < width && j < E) {
      for (int t = thread + width; t < kThreads; t += width) sum += part[t];
      parts[blockIdx.x * std::int64_t{E} + j] = sum;
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    solve_kernel(const double* parts, std::int64_t chunks, int E, int bits, const Whole* laplacian, double* matrix,
                 double* room, bool inside, double* v) {
  extern __shared__ __align__(16) char shared[];
  double* const A = inside ? reinterpret_cast<double*>(shared) : matrix;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  for (int j = warp; j < E; j += kWarps) {
    double sum = 0;
    for (std::int64_t c = lane; c < chunks; c += 32) sum += parts[c * E + j];
    sum = router::group_sum(sum, 32);
    if (lane == 0) v[j] = sum;
  }
  const double unit = 1 / static_cast<double>(1ll << bits);
  const int stride = router::solve_stride(E);
  for (int t = thread; t < E * E; t += kThreads) {
    const int i = t / E, j = t % E;
    if (j <= i) A[i * stride + j] = static_cast<double>(static_cast<long long>(laplacian[t])) * unit;
  }
  __syncthreads();
  router::solve<kThreads>(A, E, stride, v, room, 1e-10);
}

template <class T>
__global__ void __launch_bounds__(kThreads) result_kernel(const Gates<T> p, const double* v, double reg, T* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32, own = lane % p.width, per_warp = 32 / p.width, E = p.experts;
  const std::int64_t warp = (blockIdx.x * std::int64_t{kThreads} + threadIdx.x) / 32;
  for (std::int64_t start = warp * per_warp; start < p.n; start += gridDim.x * std::int64_t{kWarps} * per_warp) {
    const std::int64_t i = start + lane / p.width;
    const auto [sum, count] = sum_row(p, i, own, [&](int j) { return p.at(i, j) - v[j]; });
    if (i >= p.n) continue;
    const double u = p.free[i] && count > 0 ? sum / count : 0;
    for (int j = own; j < E; j += p.width)
      out[i * E + j] = p.inside(i, j) ? static_cast<T>((p.at(i, j) - u - v[j]) / reg) : T(0);
  }
}

}  // namespace

template <class T>
void route_backward(const Execution& exec, MatrixView<const T> gradient, MatrixView<const T> gates, const bool* free,
                    double reg, T* out) {
  QUADRIC_REQUIRE(gradient.rows == gates.rows && gradient.cols == gates.cols, "gradient must have the shape of gates");
  QUADRIC_REQUIRE(gates.cols <= router::kExperts, "gates must have at most 1024 experts on a GPU");
  QUADRIC_REQUIRE(reg > 0, "reg must be above 0");
  if (gates.rows == 0 || gates.cols == 0) return;
  const int E = static_cast<int>(gates.cols), width = router::group_width(E);
  const std::int64_t n = gates.rows, chunks = (n + kChunk - 1) / kChunk;
  QUADRIC_REQUIRE(n < std::int64_t{1} << 31, "gates must have fewer than 2^31 tokens");
  const Gates<T> p{gradient.data,
                   gates.data,
                   gradient.row_stride,
                   gradient.col_stride,
                   gates.row_stride,
                   gates.col_stride,
                   free,
                   n,
                   E,
                   width,
                   router::fraction_bits(n)};
  Scratch scratch(exec);
  const std::int64_t square = std::int64_t{E} * E, padded = std::int64_t{E} * router::solve_stride(E);
  Whole* const laplacian = scratch.get<Whole>(square);
  double* const means = scratch.get<double>(n);
  double* const parts = scratch.get<double>(chunks * E);
  double* const v = scratch.get<double>(2 * E);
  const bool inside =
      static_cast<std::size_t>(padded) * sizeof(double) <= static_cast<std::size_t>(shared_limit()) - 1024;
  double* const matrix = inside ? nullptr : scratch.get<double>(padded);
  const auto bytes = inside ? static_cast<std::size_t>(padded) * sizeof(double) : 0;
  QUADRIC_CUDA(cudaMemsetAsync(laplacian, 0, static_cast<std::size_t>(square) * sizeof(Whole), stream(exec)));
  const std::int64_t per_block = std::int64_t{kWarps} * (32 / width) * 4;
  const auto blocks = static_cast<unsigned>(std::clamp<std::int64_t>((n + per_block - 1) / per_block, 1, 4096));
  means_kernel<<<blocks, kThreads, 0, stream(exec)>>>(p, laplacian, means);
  QUADRIC_CUDA_LAUNCHED();
  columns_kernel<<<static_cast<unsigned>(chunks), kThreads, 0, stream(exec)>>>(p, means, parts);
  QUADRIC_CUDA_LAUNCHED();
  QUADRIC_CUDA(
      cudaFuncSetAttribute(solve_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  solve_kernel<<<1, kThreads, bytes, stream(exec)>>>(parts, chunks, E, p.bits, laplacian, matrix, v + E, inside, v);
  QUADRIC_CUDA_LAUNCHED();
  result_kernel<<<blocks, kThreads, 0, stream(exec)>>>(p, v, reg, out);
  QUADRIC_CUDA_LAUNCHED();
}

#define QUADRIC_INSTANTIATE(T)                                                                                      \
  template QUADRIC_API void route_backward(const Execution&, MatrixView<const T>, MatrixView<const T>, const bool*, \
                                           double, T*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::transport
