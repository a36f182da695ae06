#include "quadric/cuda/arrays.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "device.hpp"
#include "require.hpp"

// All of it is bound by memory: each entry is read once and written once, 4.2 TB/s together.
namespace quadric::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;

// Blocks of a grid-stride loop: enough to fill any device, few enough to be launched quickly.
unsigned blocks(std::int64_t items) {
  return static_cast<unsigned>(std::min<std::int64_t>((items + kThreads - 1) / kThreads, 1 << 16));
}

template <class T>
struct Strided {
  T* data;
  std::int64_t cols;  // 0: all in one row
  std::int64_t row_stride;
  std::int64_t col_stride;

  __device__ T& operator[](std::int64_t k) const {
    if (cols == 0) return data[k * col_stride];
    return data[k / cols * row_stride + k % cols * col_stride];
  }
};

template <class T>
Strided<T> strided(const Entries& x) {
  // Where the entries are equally far apart, no division is needed to find one: 64 bits of it would cost more than the
  // memory.
  if (x.rows <= 1 || x.row_stride == x.cols * x.col_stride) return {static_cast<T*>(x.data), 0, 0, x.col_stride};
  return {static_cast<T*>(x.data), x.cols, x.row_stride, x.col_stride};
}

// Conversions go through the wider of float and the types at hand, and round to nearest even.
template <class To, class From>
__device__ To converted(From x) {
  return static_cast<To>(x);
}
template <>
__device__ __half converted(double x) {
  return __double2half(x);
}
template <>
__device__ __nv_bfloat16 converted(double x) {
  return __double2bfloat16(x);
}
template <>
__device__ __nv_bfloat16 converted(__half x) {
  return __float2bfloat16(__half2float(x));
}
template <>
__device__ __half converted(__nv_bfloat16 x) {
  return __float2half(__bfloat162float(x));
}
template <>
__device__ double converted(__half x) {
  return __half2float(x);
}
template <>
__device__ double converted(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <class From, class To>
__global__ void copy_kernel(Strided<const From> from, Strided<To> to, std::int64_t size) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step)
    to[k] = converted<To>(from[k]);
}

template <class T>
__global__ void fill_kernel(Strided<T> to, std::int64_t size, double value) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step)
    to[k] = converted<T>(value);
}

template <class T>
__global__ void not_finite_kernel(Strided<const T> x, std::int64_t size, unsigned long long* index) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step) {
    if (!isfinite(converted<double>(x[k]))) {
      atomicMin(index, static_cast<unsigned long long>(k));  // of integers: the same whatever the order
      return;                                                // what follows has larger indices
    }
  }
}

__device__ bool finite(__half x) { return (__half_as_ushort(x) & 0x7c00) != 0x7c00; }
__device__ bool finite(__nv_bfloat16 x) { return isfinite(__bfloat162float(x)); }
__device__ bool finite(float x) { return isfinite(x); }
__device__ bool finite(double x) { return isfinite(x); }

// The same for entries that follow one another from a multiple of 16 bytes on: 64 bytes of each thread on the way.
template <class T>
__global__ void not_finite_packs_kernel(const T* x, std::int64_t packs, unsigned long long* index) {
  constexpr int kPack = 16 / sizeof(T), kWays = 4;
  struct alignas(16) Pack {
    T at[kPack];
  };
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads * kWays;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads * kWays) + threadIdx.x; k < packs; k += step) {
    Pack pack[kWays];
#pragma unroll
    for (int u = 0; u < kWays; ++u)
      if (k + u * kThreads < packs) pack[u] = reinterpret_cast<const Pack*>(x)[k + u * kThreads];
#pragma unroll
    for (int u = 0; u < kWays; ++u) {
      if (k + u * kThreads >= packs) break;
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        if (finite(pack[u].at[e])) continue;
        atomicMin(index, static_cast<unsigned long long>((k + u * kThreads) * kPack + e));
        return;
      }
    }
  }
}

template <class T>
__global__ void first_below_kernel(Strided<const T> x, std::int64_t size, T bound, unsigned long long* index) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step) {
    if (!(x[k] >= bound)) {
      atomicMin(index, static_cast<unsigned long long>(k));
      return;
    }
  }
}

template <class T>
__global__ void first_difference_kernel(Strided<const T> a, Strided<const T> b, std::int64_t size,
                                        unsigned long long* index) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step) {
    bool equal = false;
    if constexpr (std::is_integral_v<T>)
      equal = a[k] == b[k];
    else
      equal = converted<double>(a[k]) == converted<double>(b[k]);
    if (!equal) {
      atomicMin(index, static_cast<unsigned long long>(k));
      return;
    }
  }
}

template <class T>
__global__ void divide_kernel(Strided<const T> by, Strided<T> x, std::int64_t size) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step)
    x[k] /= by[k];
}

template <class T>
__global__ void clear_where_kernel(const bool* mask, bool value, T* x, std::int64_t size) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step)
    if (mask[k] == value) x[k] = T(0);
}

__global__ void spoil_kernel(const std::int32_t* status, Strided<double> X, std::int64_t size) {
  if (*status == -1) return;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step)
    X[k] = std::numeric_limits<double>::quiet_NaN();
}

// Kernels take up to 4 KB of arguments.
struct Bytes {
  static constexpr int kMost = 3968;
  char data[kMost];
};

// One block.
__global__ void upload_kernel(const __grid_constant__ Bytes bytes, int count, char* to) {
  for (int i = threadIdx.x; i < count; i += kThreads) to[i] = bytes.data[i];
}

template <class T>
__global__ void symmetrize_kernel(const T* A, std::int64_t n, T scale, T* out) {
  __shared__ T tile[kTile][kTile + 1];
  const std::int64_t i0 = blockIdx.y * static_cast<std::int64_t>(kTile);
  const std::int64_t j0 = blockIdx.x * static_cast<std::int64_t>(kTile);
  if (j0 < i0) return;
  for (int r = threadIdx.y; r < kTile; r += blockDim.y) {
    const std::int64_t i = i0 + r, j = j0 + threadIdx.x;
    if (i < n && j < n && i <= j) tile[r][threadIdx.x] = A[i * n + j] * scale;
  }
  __syncthreads();
  for (int r = threadIdx.y; r < kTile; r += blockDim.y) {
    const std::int64_t i = i0 + r, j = j0 + threadIdx.x;
    if (i < n && j < n && i <= j) out[i * n + j] = tile[r][threadIdx.x];
    const std::int64_t row = j0 + r, column = i0 + threadIdx.x;  // below the diagonal
    if (row < n && column < n && column < row) out[row * n + column] = tile[threadIdx.x][r];
  }
}

template <class T>
__global__ void take_columns_kernel(Strided<const T> from, const std::int64_t* index, Strided<T> to, std::int64_t cols,
                                    std::int64_t size) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step) {
    const std::int64_t i = k / cols, j = k % cols;
    to.data[i * to.row_stride + j * to.col_stride] = from.data[i * from.row_stride + index[j] * from.col_stride];
  }
}

template <class T>
__global__ void add_to_columns_kernel(Strided<const T> from, const std::int64_t* index, T scale, Strided<T> to,
                                      std::int64_t cols, std::int64_t size) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step) {
    const std::int64_t i = k / cols, j = k % cols;
    const std::int64_t column = index == nullptr ? j : index[j];
    to.data[i * to.row_stride + column * to.col_stride] += scale * from.data[i * from.row_stride + j * from.col_stride];
  }
}

template <class T>
__global__ void scale_rows_kernel(const T* weights, Strided<T> X, std::int64_t size) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step)
    X[k] *= weights[k / X.cols];
}

// One of the indices in each block row, all entries of its line along the other axis.
template <class T>
__global__ void clear_kernel(const std::int64_t* index, std::int64_t count, T* data, std::int64_t length,
                             std::int64_t along, std::int64_t across) {
  for (std::int64_t c = blockIdx.y; c < count; c += gridDim.y) {
    T* line = data + index[c] * across;
    for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < length;
         k += static_cast<std::int64_t>(gridDim.x) * kThreads)
      line[k * along] = T(0);
  }
}

template <class T>
__global__ void dequantize_kernel(const std::uint8_t* codes, const T* scales, const std::uint8_t* zeros,
                                  const std::int32_t* group, std::int64_t n, std::int64_t groups, T* out,
                                  std::int64_t size) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; k < size; k += step) {
    const std::int64_t g = k / n * groups + group[k % n];
    out[k] = (static_cast<T>(codes[k]) - static_cast<T>(zeros[g])) * scales[g];
  }
}

// f(entry of the C++ type).
template <class F>
void by_type(Type type, F&& f) {
  switch (type) {
    case Type::boolean:
      return f(false);
    case Type::uint8:
      return f(std::uint8_t());
    case Type::int32:
      return f(std::int32_t());
    case Type::int64:
      return f(std::int64_t());
    case Type::float16:
      return f(__half());
    case Type::bfloat16:
      return f(__nv_bfloat16());
    case Type::float32:
      return f(float());
    case Type::float64:
      return f(double());
  }
}

bool is_float(Type type) { return type >= Type::float16; }

template <class T>
Strided<T> strided(const MatrixView<T>& x) {
  return {x.data, x.cols, x.row_stride, x.col_stride};
}

template <class T>
cublasStatus_t gemm_(cublasHandle_t handle, cublasOperation_t a, cublasOperation_t b, std::int64_t m, std::int64_t n,
                     std::int64_t k, T alpha, const T* A, std::int64_t lda, const T* B, std::int64_t ldb, T beta, T* C,
                     std::int64_t ldc) {
  if constexpr (sizeof(T) == 4)
    return cublasSgemm_64(handle, a, b, m, n, k, &alpha, A, lda, B, ldb, &beta, C, ldc);
  else
    return cublasDgemm_64(handle, a, b, m, n, k, &alpha, A, lda, B, ldb, &beta, C, ldc);
}

template <class T>
cublasStatus_t trsm_(cublasHandle_t handle, cublasOperation_t op, std::int64_t n, std::int64_t m, const T* L,
                     std::int64_t ldl, T* X, std::int64_t ldx) {
  const T one = 1;
  if constexpr (sizeof(T) == 4)
    return cublasStrsm_64(handle, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, op, CUBLAS_DIAG_NON_UNIT, n, m, &one, L,
                          ldl, X, ldx);
  else
    return cublasDtrsm_64(handle, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, op, CUBLAS_DIAG_NON_UNIT, n, m, &one, L,
                          ldl, X, ldx);
}

// How BLAS sees a row-major product: C^T = B^T A^T, so an operand with contiguous rows is not transposed.
template <class T>
std::pair<cublasOperation_t, std::int64_t> operand(const MatrixView<const T>& A, const char* message) {
  const bool rows = A.col_stride == 1 || A.cols == 1, columns = A.row_stride == 1 || A.rows == 1;
  if (rows && (A.rows == 1 || A.row_stride >= A.cols)) return {CUBLAS_OP_N, std::max(A.row_stride, A.cols)};
  QUADRIC_REQUIRE(columns && (A.cols == 1 || A.col_stride >= A.rows), message);
  return {CUBLAS_OP_T, std::max(A.col_stride, A.rows)};
}

}  // namespace

void copy(const Execution& exec, const Entries& from, const Entries& to) {
  QUADRIC_REQUIRE(from.rows == to.rows && from.cols == to.cols, "from and to must have one shape");
  QUADRIC_REQUIRE(from.type == to.type || is_float(to.type) ||
                      (!is_float(from.type) && (to.type == Type::int32 || to.type == Type::int64)),
                  "entries cannot be converted to the type of `to`");
  const std::int64_t size = from.rows * from.cols;
  if (size == 0) return;
  by_type(from.type, [&](auto source) {
    using From = decltype(source);
    by_type(to.type, [&](auto target) {
      using To = decltype(target);
      // What is refused above need not be compiled: half of the pairs of types.
      constexpr bool floats = std::is_same_v<To, __half> || std::is_same_v<To, __nv_bfloat16> ||
                              std::is_same_v<To, float> || std::is_same_v<To, double>;
      constexpr bool integers = std::is_integral_v<From> && (sizeof(To) == 4 || sizeof(To) == 8);
      if constexpr (floats || integers || std::is_same_v<From, To>) {
        copy_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(strided<const From>(from), strided<To>(to), size);
        QUADRIC_CUDA_LAUNCHED();
      }
    });
  });
}

void fill(const Execution& exec, const Entries& to, double value) {
  const std::int64_t size = to.rows * to.cols;
  if (size == 0) return;
  by_type(to.type, [&](auto target) {
    using T = decltype(target);
    fill_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(strided<T>(to), size, value);
    QUADRIC_CUDA_LAUNCHED();
  });
}

void first_not_finite(const Execution& exec, const Entries& x, std::int64_t* index) {
  QUADRIC_CUDA(cudaMemsetAsync(index, 0xff, sizeof *index, stream(exec)));  // -1, and as unsigned the largest
  const std::int64_t size = x.rows * x.cols;
  if (size == 0 || !is_float(x.type)) return;
  by_type(x.type, [&](auto source) {
    using T = decltype(source);
    if constexpr (!std::is_integral_v<T>) {
      const auto entries = strided<const T>(x);
      auto* const first = reinterpret_cast<unsigned long long*>(index);
      constexpr std::int64_t kPack = 16 / sizeof(T);
      if (entries.cols == 0 && entries.col_stride == 1 && size % kPack == 0 &&
          reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0)
        not_finite_packs_kernel<<<blocks((size / kPack + 3) / 4), kThreads, 0, stream(exec)>>>(entries.data,
                                                                                               size / kPack, first);
      else
        not_finite_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(entries, size, first);
      QUADRIC_CUDA_LAUNCHED();
    }
  });
}

template <class T>
void first_below(const Execution& exec, MatrixView<const T> x, double bound, std::int64_t* index) {
  QUADRIC_CUDA(cudaMemsetAsync(index, 0xff, sizeof *index, stream(exec)));
  const std::int64_t size = x.rows * x.cols;
  if (size == 0) return;
  first_below_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(strided(x), size, static_cast<T>(bound),
                                                                  reinterpret_cast<unsigned long long*>(index));
  QUADRIC_CUDA_LAUNCHED();
}

void first_difference(const Execution& exec, const Entries& a, const Entries& b, std::int64_t* index) {
  QUADRIC_REQUIRE(a.rows == b.rows && a.cols == b.cols && a.type == b.type, "a and b must have one shape and type");
  QUADRIC_CUDA(cudaMemsetAsync(index, 0xff, sizeof *index, stream(exec)));
  const std::int64_t size = a.rows * a.cols;
  if (size == 0) return;
  by_type(a.type, [&](auto source) {
    using T = decltype(source);
    first_difference_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(strided<const T>(a), strided<const T>(b), size,
                                                                         reinterpret_cast<unsigned long long*>(index));
    QUADRIC_CUDA_LAUNCHED();
  });
}

template <class T>
void divide(const Execution& exec, MatrixView<const T> by, MatrixView<T> x) {
  QUADRIC_REQUIRE(by.rows == x.rows && by.cols == x.cols, "by and x must have one shape");
  const std::int64_t size = x.rows * x.cols;
  if (size == 0) return;
  divide_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(strided(by), strided(x), size);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void clear_where(const Execution& exec, const bool* mask, bool value, T* x, std::int64_t size) {
  if (size == 0) return;
  clear_where_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(mask, value, x, size);
  QUADRIC_CUDA_LAUNCHED();
}

void spoil(const Execution& exec, const std::int32_t* status, MatrixView<double> X) {
  const std::int64_t size = X.rows * X.cols;
  if (size == 0) return;
  spoil_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(status, strided(X), size);
  QUADRIC_CUDA_LAUNCHED();
}

void upload(const Execution& exec, const void* host, std::int64_t bytes, void* device) {
  constexpr std::int64_t kMost = 16 * 1024;  // a few launches cost less than a copy that stages its source
  if (bytes > kMost) {
    QUADRIC_CUDA(cudaMemcpyAsync(device, host, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream(exec)));
    return;
  }
  Bytes part;
  for (std::int64_t start = 0; start < bytes; start += Bytes::kMost) {
    const auto count = static_cast<int>(std::min<std::int64_t>(Bytes::kMost, bytes - start));
    std::memcpy(part.data, static_cast<const char*>(host) + start, static_cast<std::size_t>(count));
    upload_kernel<<<1, kThreads, 0, stream(exec)>>>(part, count, static_cast<char*>(device) + start);
    QUADRIC_CUDA_LAUNCHED();
  }
}

template <class T>
void symmetrize(const Execution& exec, MatrixView<const T> A, double scale, MatrixView<T> out) {
  const std::int64_t n = A.rows;
  QUADRIC_REQUIRE(A.cols == n && out.rows == n && out.cols == n, "A and out must be n x n");
  if (n == 0) return;
  QUADRIC_REQUIRE(A.col_stride == 1 && A.row_stride == n && out.col_stride == 1 && out.row_stride == n,
                  "A and out must have contiguous rows");
  const auto tiles = static_cast<unsigned>((n + kTile - 1) / kTile);
  symmetrize_kernel<<<dim3(tiles, tiles), dim3(kTile, 8), 0, stream(exec)>>>(A.data, n, static_cast<T>(scale),
                                                                             out.data);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void take_columns(const Execution& exec, MatrixView<const T> from, const std::int64_t* index, MatrixView<T> to) {
  QUADRIC_REQUIRE(from.rows == to.rows, "from and to must have the same rows");
  const std::int64_t size = to.rows * to.cols;
  if (size == 0) return;
  take_columns_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(strided(from), index, strided(to), to.cols, size);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void add_to_columns(const Execution& exec, MatrixView<const T> from, const std::int64_t* index, double scale,
                    MatrixView<T> to) {
  QUADRIC_REQUIRE(from.rows == to.rows, "from and to must have the same rows");
  const std::int64_t size = from.rows * from.cols;
  if (size == 0) return;
  add_to_columns_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(strided(from), index, static_cast<T>(scale),
                                                                     strided(to), from.cols, size);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void scale_rows(const Execution& exec, const T* weights, MatrixView<T> X) {
  const std::int64_t size = X.rows * X.cols;
  if (size == 0) return;
  scale_rows_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(weights, strided(X), size);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void clear(const Execution& exec, const std::int64_t* index, std::int64_t count, bool rows, MatrixView<T> X) {
  if (count == 0 || X.empty()) return;
  const auto grid = [&](std::int64_t length) {
    return dim3(std::min(blocks(length), 64u), static_cast<unsigned>(std::min<std::int64_t>(count, 65535)));
  };
  clear_kernel<<<grid(X.rows), kThreads, 0, stream(exec)>>>(index, count, X.data, X.rows, X.row_stride, X.col_stride);
  QUADRIC_CUDA_LAUNCHED();
  if (!rows) return;
  clear_kernel<<<grid(X.cols), kThreads, 0, stream(exec)>>>(index, count, X.data, X.cols, X.col_stride, X.row_stride);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void dequantize(const Execution& exec, MatrixView<const std::uint8_t> codes, MatrixView<const T> scales,
                MatrixView<const std::uint8_t> zeros, const std::int32_t* group, MatrixView<T> out) {
  QUADRIC_REQUIRE(scales.rows == codes.rows && zeros.rows == codes.rows && zeros.cols == scales.cols,
                  "scales and zeros must be m x groups");
  QUADRIC_REQUIRE(out.rows == codes.rows && out.cols == codes.cols, "out must be m x n");
  const std::int64_t size = codes.rows * codes.cols;
  if (size == 0) return;
  dequantize_kernel<<<blocks(size), kThreads, 0, stream(exec)>>>(codes.data, scales.data, zeros.data, group, codes.cols,
                                                                 scales.cols, out.data, size);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void gemm(const Execution& exec, double alpha, MatrixView<const T> A, MatrixView<const T> B, double beta,
          MatrixView<T> C) {
  QUADRIC_REQUIRE(A.rows == C.rows && B.cols == C.cols && A.cols == B.rows, "A B must have the shape of C");
  QUADRIC_REQUIRE(C.empty() || (C.col_stride == 1 && C.row_stride >= C.cols), "C must have contiguous rows");
  if (C.empty()) return;
  const auto [op_a, lda] = operand(A, "A must be contiguous along rows or columns");
  const auto [op_b, ldb] = operand(B, "B must be contiguous along rows or columns");
  Scratch scratch(exec);
  QUADRIC_CUDA(gemm_<T>(blas(exec, scratch), op_b, op_a, C.cols, C.rows, A.cols, static_cast<T>(alpha), B.data, ldb,
                        A.data, lda, static_cast<T>(beta), C.data, C.row_stride));
}

template <class T>
void cho_solve_columns(const Execution& exec, MatrixView<const T> L, MatrixView<T> X) {
  QUADRIC_REQUIRE(L.rows == L.cols && L.rows == X.rows, "L must be n x n, n the rows of X");
  if (X.empty()) return;
  QUADRIC_REQUIRE(L.row_stride == 1 && X.row_stride == 1, "L and X must be contiguous along columns");
  Scratch scratch(exec);
  const cublasHandle_t handle = blas(exec, scratch);
  const std::int64_t ldl = std::max(L.col_stride, L.rows), ldx = std::max(X.col_stride, X.rows);
  QUADRIC_CUDA(trsm_<T>(handle, CUBLAS_OP_N, X.rows, X.cols, L.data, ldl, X.data, ldx));
  QUADRIC_CUDA(trsm_<T>(handle, CUBLAS_OP_T, X.rows, X.cols, L.data, ldl, X.data, ldx));
}

#define QUADRIC_INSTANTIATE(T)                                                                                       \
  template QUADRIC_API void first_below(const Execution&, MatrixView<const T>, double, std::int64_t*);               \
  template QUADRIC_API void divide(const Execution&, MatrixView<const T>, MatrixView<T>);                            \
  template QUADRIC_API void clear_where(const Execution&, const bool*, bool, T*, std::int64_t);                      \
  template QUADRIC_API void symmetrize(const Execution&, MatrixView<const T>, double, MatrixView<T>);                \
  template QUADRIC_API void take_columns(const Execution&, MatrixView<const T>, const std::int64_t*, MatrixView<T>); \
  template QUADRIC_API void add_to_columns(const Execution&, MatrixView<const T>, const std::int64_t*, double,       \
                                           MatrixView<T>);                                                           \
  template QUADRIC_API void scale_rows(const Execution&, const T*, MatrixView<T>);                                   \
  template QUADRIC_API void clear(const Execution&, const std::int64_t*, std::int64_t, bool, MatrixView<T>);         \
  template QUADRIC_API void dequantize(const Execution&, MatrixView<const std::uint8_t>, MatrixView<const T>,        \
                                       MatrixView<const std::uint8_t>, const std::int32_t*, MatrixView<T>);          \
  template QUADRIC_API void gemm(const Execution&, double, MatrixView<const T>, MatrixView<const T>, double,         \
                                 MatrixView<T>);                                                                     \
  template QUADRIC_API void cho_solve_columns(const Execution&, MatrixView<const T>, MatrixView<T>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda
