// Both are bound by memory: each number is read once at 4.2 TB/s, and those of `out` are written once.
#include "sketch/tiles.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 256;

unsigned grid_over(std::int64_t size) {
  return static_cast<unsigned>(std::min<std::int64_t>(ceil_div(size, kThreads), 1 << 16));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const T* __restrict__ parts, const std::int64_t count, const std::int64_t size, T* out) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < size; i += step) {
    T sum = parts[i];
    for (std::int64_t part = 1; part < count; ++part) sum += parts[part * size + i];
    out[i] += sum;
  }
}

template <class S, class T>
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(const Source<S> A, const std::int64_t first, const std::int64_t size, T* __restrict__ out) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < size; i += step)
    out[i] = widened(A.data[(first + i / A.cols) * A.row_stride + i % A.cols * A.col_stride]);
}

}  // namespace

template <class T>
void add_parts(const Execution& exec, const T* parts, std::int64_t count, std::int64_t size, T* out) {
  add_parts_kernel<T><<<grid_over(size), kThreads, 0, stream(exec)>>>(parts, count, size, out);
  QUADRIC_CUDA_LAUNCHED();
}
template void add_parts(const Execution&, const float*, std::int64_t, std::int64_t, float*);
template void add_parts(const Execution&, const double*, std::int64_t, std::int64_t, double*);

template <class S, class T>
void copy_rows(const Execution& exec, const Source<S>& A, std::int64_t first, std::int64_t count, T* out) {
  const std::int64_t size = count * A.cols;
  if (size == 0) return;
  copy_rows_kernel<S, T><<<grid_over(size), kThreads, 0, stream(exec)>>>(A, first, size, out);
  QUADRIC_CUDA_LAUNCHED();
}
template void copy_rows(const Execution&, const Source<Float16>&, std::int64_t, std::int64_t, float*);
template void copy_rows(const Execution&, const Source<Bfloat16>&, std::int64_t, std::int64_t, float*);
template void copy_rows(const Execution&, const Source<float>&, std::int64_t, std::int64_t, float*);
template void copy_rows(const Execution&, const Source<double>&, std::int64_t, std::int64_t, double*);

}  // namespace quadric::cuda::sketch
