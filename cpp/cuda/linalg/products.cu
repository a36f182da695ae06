// Sums of Gram matrices. Floor: n d^2 flops at 58 TFLOP/s in float64 (tensor cores), at 50 in float32; n = 1e6, d = 256
// in float64: 1.1 ms if the blocks on the diagonal were free, 1.7 ms with two blocks of columns. To be reached: 75 %,
// because of what cuBLAS loses on few tiles and because the products of chunks go through memory: 0.07 GB and back for
// each 0.27 GB of rows.
#include "linalg/products.hpp"

#include <algorithm>

#include "quadric/cuda/arrays.hpp"

namespace quadric::cuda::linalg {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kTile = 128, kTiles = 264;             // tiles of cuBLAS, two for each multiprocessor
constexpr std::int64_t kPartBytes = std::int64_t{128} << 20;  // of products of chunks
// Sums within a chunk are those of cuBLAS, in T.
template <class T>
constexpr std::int64_t kLeastRows = sizeof(T) == 4 ? 512 : 256;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const T* __restrict__ parts, std::int64_t count, std::int64_t size, std::int64_t d,
                     std::int64_t block, double* sum) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < size; i += step) {
    if (d > 0 && i % d < i / d / block * block) continue;  // left of the blocks of the upper triangle
    double total = 0;
#pragma unroll 8
    for (std::int64_t part = 0; part < count; ++part) total += static_cast<double>(parts[part * size + i]);
    sum[i] += total;
  }
}

template <class T>
void add(const Execution& exec, const T* parts, std::int64_t count, std::int64_t size, std::int64_t d,
         std::int64_t block, double* sum) {
  if (count == 0 || size == 0) return;
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(ceil_div(size, kThreads), 1 << 16));
  add_parts_kernel<T><<<grid, kThreads, 0, stream(exec)>>>(parts, count, size, d, block, sum);
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace

template <class T>
void add_parts(const Execution& exec, const T* parts, std::int64_t count, std::int64_t size, double* sum) {
  add(exec, parts, count, size, 0, 1, sum);
}

template <class T>
GramSum<T>::GramSum(const Execution& exec, Scratch& scratch, cublasHandle_t handle, std::int64_t d, double* G)
    : exec_(exec), scratch_(scratch), handle_(handle), d_(d), G_(G) {
  if (d == 0) return;
  clear();
  most_ = std::max<std::int64_t>(1, kPartBytes / (d * d * static_cast<std::int64_t>(sizeof(T))));
  if (sizeof(T) == 8) {  // no more than fill the device
    const std::int64_t tiles = ceil_div(d, kTile) * ceil_div(std::min(d, block_columns(d)), kTile);
    most_ = std::min(most_, std::max<std::int64_t>(1, kTiles / tiles));
  }
}

template <class T>
void GramSum<T>::clear() {
  QUADRIC_CUDA(cudaMemsetAsync(G_, 0, static_cast<std::size_t>(d_ * d_) * sizeof(double), stream(exec_)));
}

template <class T>
void GramSum<T>::add(const T* X, const T* Y, std::int64_t ld, std::int64_t rows) {
  if (d_ == 0) return;
  std::int64_t chunk = kLeastRows<T>;
  if (sizeof(T) == 8) chunk = std::max(chunk, ceil_div(rows, most_));
  const std::int64_t together = chunk * most_;
  for (std::int64_t first = 0; first < rows; first += together) {
    const std::int64_t count = std::min(together, rows - first);
    add_chunks(X + first * ld, Y + first * ld, ld, chunk, count / chunk, count % chunk);
  }
}

template <class T>
void GramSum<T>::add_chunks(const T* X, const T* Y, std::int64_t ld, std::int64_t chunk, std::int64_t count,
                            std::int64_t rest) {
  const std::int64_t size = d_ * d_, all = count + (rest > 0 ? 1 : 0), width = block_columns(d_);
  if (all > room_) {
    parts_ = scratch_.get<T>(all * size);
    room_ = all;
  }
  for (std::int64_t i = 0; i < d_; i += width) {  // rows i of the upper triangle, from the diagonal on
    const std::int64_t m = d_ - i, n = std::min(width, m), at = i * d_ + i;
    const auto products = [&](std::int64_t first, std::int64_t rows, std::int64_t batch, T* to) {
      multiply<T>(handle_, m, n, rows, T(1), {CUBLAS_OP_N, Y + first * ld + i, ld, rows * ld},
                  {CUBLAS_OP_T, X + first * ld + i, ld, rows * ld}, T(0), to + at, d_, size, batch);
    };
    if (count > 0) products(0, chunk, count, parts_);
    if (rest > 0) products(count * chunk, rest, 1, parts_ + count * size);
  }
  linalg::add(exec_, parts_, all, size, d_, width, G_);
}

template <class T>
void GramSum<T>::finish() {
  symmetrize<double>(exec_, MatrixView<const double>(G_, d_, d_), 1.0, MatrixView<double>(G_, d_, d_));
}

template class GramSum<float>;
template class GramSum<double>;
template void add_parts(const Execution&, const float*, std::int64_t, std::int64_t, double*);
template void add_parts(const Execution&, const double*, std::int64_t, std::int64_t, double*);

}  // namespace quadric::cuda::linalg
