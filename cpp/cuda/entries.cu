// Some entries of an array, and what is summed or compared over all of them. Bound by memory, as arrays.cu: largest and
// column_sums read each entry once, the others read and write those asked for. The partition into parts follows from
// the shape, so results are the same on every device.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "device.hpp"
#include "quadric/cuda/arrays.hpp"
#include "require.hpp"

namespace quadric::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kParts = 1024;  // of a sum, at most
constexpr int kColumns = 32;           // of a block of threads

unsigned blocks(std::int64_t items) {
  return static_cast<unsigned>(std::min<std::int64_t>((items + kThreads - 1) / kThreads, 1 << 16));
}

template <class F>
__device__ void for_each(std::int64_t size, F f) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step) f(k);
}

template <class T>
__global__ void take_kernel(const T* a, const std::int64_t* index, std::int64_t count, T* out) {
  for_each(count, [&](std::int64_t k) { out[k] = a[index[k]]; });
}

template <class T>
__global__ void select_kernel(MatrixView<const T> a, const std::int64_t* rows, const std::int64_t* columns,
                              MatrixView<T> out) {
  for_each(out.rows * out.cols, [&](std::int64_t k) {
    const std::int64_t i = k / out.cols, j = k % out.cols;
    out.data[i * out.row_stride + j * out.col_stride] = a.data[rows[i] * a.row_stride + columns[j] * a.col_stride];
  });
}

template <class T>
__global__ void subtract_kernel(MatrixView<const T> a, const double* row, MatrixView<T> out) {
  for_each(out.rows * out.cols, [&](std::int64_t k) {
    const std::int64_t i = k / out.cols, j = k % out.cols;
    const double x = static_cast<double>(a.data[i * a.row_stride + j * a.col_stride]);
    out.data[i * out.row_stride + j * out.col_stride] = static_cast<T>(x - row[j]);
  });
}

// NaN is larger than all numbers.
__device__ double larger(double x, double y) { return isnan(x) || x >= y ? x : y; }

template <class T>
__global__ void __launch_bounds__(kThreads) largest_kernel(const T* a, std::int64_t size, double* out) {
  __shared__ double found[kThreads];
  double mine = 0;
  for_each(size, [&](std::int64_t k) { mine = larger(fabs(static_cast<double>(a[k])), mine); });
  found[threadIdx.x] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) found[threadIdx.x] = larger(found[threadIdx.x + half], found[threadIdx.x]);
  }
  if (threadIdx.x == 0) out[blockIdx.x] = found[0];
}

// Part p of the sums of kColumns columns: its rows in turn, eight at a time.
template <class T>
__global__ void __launch_bounds__(kThreads) sums_kernel(MatrixView<const T> a, std::int64_t rows_each, double* out) {
  constexpr int kLines = kThreads / kColumns;
  __shared__ double sums[kLines][kColumns];
  const int x = static_cast<int>(threadIdx.x) % kColumns, y = static_cast<int>(threadIdx.x) / kColumns;
  const std::int64_t begin = blockIdx.x * rows_each, end = min(a.rows, begin + rows_each);
  for (std::int64_t first = blockIdx.y * static_cast<std::int64_t>(kColumns); first < a.cols;
       first += gridDim.y * static_cast<std::int64_t>(kColumns)) {
    const std::int64_t j = first + x;
    double sum = 0;
    if (j < a.cols)
      for (std::int64_t i = begin + y; i < end; i += kLines)
        sum += static_cast<double>(a.data[i * a.row_stride + j * a.col_stride]);
    sums[y][x] = sum;
    __syncthreads();
    if (y == 0 && j < a.cols) {
      for (int line = 1; line < kLines; ++line) sum += sums[line][x];
      out[blockIdx.x * a.cols + j] = sum;
    }
    __syncthreads();
  }
}

}  // namespace

template <class T>
void take_entries(const Execution& exec, const T* a, const std::int64_t* index, std::int64_t count, T* out) {
  if (count == 0) return;
  take_kernel<<<blocks(count), kThreads, 0, stream(exec)>>>(a, index, count, out);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void select(const Execution& exec, MatrixView<const T> a, const std::int64_t* rows, const std::int64_t* columns,
            MatrixView<T> out) {
  if (out.empty()) return;
  select_kernel<<<blocks(out.rows * out.cols), kThreads, 0, stream(exec)>>>(a, rows, columns, out);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void subtract_row(const Execution& exec, MatrixView<const T> a, const double* row, MatrixView<T> out) {
  QUADRIC_REQUIRE(a.rows == out.rows && a.cols == out.cols, "a and out must have one shape");
  if (out.empty()) return;
  subtract_kernel<<<blocks(out.rows * out.cols), kThreads, 0, stream(exec)>>>(a, row, out);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void largest(const Execution& exec, const T* a, std::int64_t size, double* out) {
  Scratch scratch(exec);
  const auto parts = static_cast<unsigned>(std::clamp<std::int64_t>((size + kThreads - 1) / kThreads, 1, kParts));
  double* const found = scratch.get<double>(parts);
  largest_kernel<T><<<parts, kThreads, 0, stream(exec)>>>(a, size, found);
  QUADRIC_CUDA_LAUNCHED();
  largest_kernel<double><<<1, kThreads, 0, stream(exec)>>>(found, parts, out);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void column_sums(const Execution& exec, MatrixView<const T> a, double* out) {
  if (a.cols == 0) return;
  Scratch scratch(exec);
  const std::int64_t parts = std::clamp<std::int64_t>((a.rows + 63) / 64, 1, kParts);
  const auto across = static_cast<unsigned>(std::min<std::int64_t>((a.cols + kColumns - 1) / kColumns, 65535));
  double* const found = scratch.get<double>(parts * a.cols);
  sums_kernel<T><<<dim3(static_cast<unsigned>(parts), across), kThreads, 0, stream(exec)>>>(
      a, (a.rows + parts - 1) / parts, found);
  QUADRIC_CUDA_LAUNCHED();
  const MatrixView<const double> all(found, parts, a.cols);
  sums_kernel<double><<<dim3(1, across), kThreads, 0, stream(exec)>>>(all, parts, out);
  QUADRIC_CUDA_LAUNCHED();
}

#define QUADRIC_INSTANTIATE(T)                                                                                      \
  template QUADRIC_API void take_entries(const Execution&, const T*, const std::int64_t*, std::int64_t, T*);        \
  template QUADRIC_API void select(const Execution&, MatrixView<const T>, const std::int64_t*, const std::int64_t*, \
                                   MatrixView<T>);                                                                  \
  template QUADRIC_API void subtract_row(const Execution&, MatrixView<const T>, const double*, MatrixView<T>);      \
  template QUADRIC_API void largest(const Execution&, const T*, std::int64_t, double*);                             \
  template QUADRIC_API void column_sums(const Execution&, MatrixView<const T>, double*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda
