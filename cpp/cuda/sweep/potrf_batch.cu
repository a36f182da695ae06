// Many Cholesky factorizations side by side, by blocks of 128 columns. For each block, what the columns before it
// contribute is one matrix product for all matrices (n^3/3 flops in all, in products as deep as the columns before);
// the block on the diagonal is factored by one block of threads for each matrix, the rows below it are solved for by
// substitution, two by each thread, which is as stable as LAPACK (n^2 128 / 2 multiply-adds in all).
//
// Large matrices of float32 take their products from the tensor cores, by parts of float16 (parts.cuh). Row i of the
// factor has the norm sqrt(A_ii), so that a power of two brings each row into the range of float16 before there is
// anything of it. Products are those of scaled rows: they stand beside A, and who subtracts them undoes the scales. The
// substitution writes the parts of what it has found, once for the left factor of products and once for the right one:
// of a block of columns the high, low and high parts, and the low, high and high ones; low with low is left out.
// Sums of the tensor cores are cut off, which matters where terms have one sign, as on the diagonal: after 256 columns
// they are rounded into the sums of before. In a model of them the largest entry of A - L L^T, next to the diagonal of
// A, is then no larger than with products of float32 one after the other. What is left leans to one side: where the
// condition is 3e6, the norm of L^-1 (A - L L^T) L^-T is about five times theirs. Blocks on the diagonal leave half of
// the device empty, so they and what waits for them run on a stream of their own, and most products beside them.
//
// Floor for 64 matrices of 2048 in float32: 1.8e11 flops at 50 TFLOP/s, 3.7 ms; by parts 5.5e11 at 700, 0.8 ms;
// the parts of the columns before, read for each two blocks, are 2.2 GB, their writing 1.6 GB, that and the reading of
// the products 2.8 GB, 1.6 ms. The substitution reads four numbers from shared memory for every eight
// multiply-adds, which takes as long as the memory that it reads and writes, 0.6 ms; it should add 1 ms, the blocks on
// the diagonal 1 ms.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "linalg/small.cuh"
#include "sweep/parts.cuh"
#include "sweep/potrf_batch.hpp"

namespace quadric::cuda::sweep {
namespace {

constexpr int kBlock = 128;
constexpr int kThreads = 256;              // for a block on the diagonal
constexpr int kChunk = 32;                 // columns of which a thread holds its rows in registers
constexpr int kSolvers = kBlock / 2;       // threads that solve for kBlock rows
constexpr std::int64_t kMatrices = 32768;  // of one launch

constexpr std::int64_t kPartsFrom = 1024, kPartsUpTo = 8192;  // rows with which products are those of parts
constexpr std::int64_t kPartsBytes = std::int64_t{4} << 30;   // of parts, at most
constexpr int kPanel = 2 * kBlock;                            // columns that such products are for
constexpr int kProducts = 2 * kPanel;                         // columns of products: those of two panels
constexpr int kDepth = 256;                                   // columns that they are of, at most
constexpr std::int64_t kSegments = 3;                         // columns of parts for a column
constexpr float kPartsScale = 16384;                          // which rows of the factor get at most

// Products by parts of all matrices. Entry (i, c) of the product: product[c % kProducts * ld + i]; columns of parts
// have the same stride, and block k its three segments in columns 3 k to 3 (k + kBlock). Row i is multiplied by up[i].
struct ByParts {
  float* product = nullptr;  // null: none
  __half *left = nullptr, *right = nullptr;
  float* up = nullptr;
  std::int64_t ld = 0, n = 0;

  __host__ __device__ std::int64_t product_stride() const { return ld * kProducts; }
  __host__ __device__ std::int64_t parts_stride() const { return ld * kSegments * n; }
};

// up_i sqrt(A_ii) is between kPartsScale / 4 and kPartsScale; whatever, where A_ii is not positive and finite.
__global__ void __launch_bounds__(kThreads) scale_rows(std::int64_t n, const float* A, float* up) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const float a = A[blockIdx.y * n * n + i * (n + 1)];
  int exponent = 0;  // a < 2^exponent
  if (small::good_pivot(a)) frexpf(a, &exponent);
  up[blockIdx.y * n + i] = ldexpf(kPartsScale, -((exponent + 1) >> 1));
}

// The block on the diagonal of matrix blockIdx.x: M(k + i, k + j) at a[(k + j) n + k + i].
template <class T>
__global__ void __launch_bounds__(kThreads)
    factor_diagonal(std::int64_t n, std::int64_t k, int width, T* A, int* info, ByParts parts) {
  extern __shared__ double shared[];
  __shared__ int failed;
  T* const l = reinterpret_cast<T*>(shared);
  T* const reciprocal = l + packed(kBlock);
  T* const a = A + blockIdx.x * n * n + k * (n + 1);
  const int i = static_cast<int>(threadIdx.x) % kBlock, j0 = static_cast<int>(threadIdx.x) / kBlock;
  const bool less = parts.product != nullptr;
  const float* product = nullptr;
  if (less) {  // powers of two, which `reciprocal` has room for until it is needed
    product = parts.product + blockIdx.x * parts.product_stride() + k % kProducts * parts.ld + k + i;
    if (j0 == 0 && i < width) reciprocal[i] = T(1) / T(parts.up[blockIdx.x * n + k + i]);
  }
  __syncthreads();
  constexpr int kBeside = kThreads / kBlock, kTogether = 16;  // columns beside each other, and on their way together
  for (int begin = j0; i < width && begin <= i; begin += kBeside * kTogether) {
    T x[kTogether], y[kTogether];
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      const int j = begin + u * kBeside;
      x[u] = j <= i ? a[j * n + i] : T(0);
      y[u] = less && j <= i ? T(product[j * parts.ld]) : T(0);
    }
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      const int j = begin + u * kBeside;
      if (j <= i) l[packed(i) + j] = less ? x[u] - y[u] * reciprocal[i] * reciprocal[j] : x[u];
    }
  }
  if (threadIdx.x == 0) failed = -1;
  __syncthreads();
  small::cholesky_block(l, width, reciprocal, &failed);
  if (i < width)
    for (int j = j0; j <= i; j += kThreads / kBlock) a[j * n + i] = l[packed(i) + j];
  // The first failure counts. Behind it numbers mean nothing.
  if (threadIdx.x == 0) {
    const int seen = k == 0 ? 0 : info[blockIdx.x];
    info[blockIdx.x] = seen == 0 && failed >= 0 ? static_cast<int>(k) + failed + 1 : seen;
  }
}

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T x[2];
};

// A block on the diagonal in shared memory, without what is above its chunks of columns: entry (i, j) of chunk q at
// chunk_start(q) + (j - q kChunk) (kBlock - q kChunk) + i - q kChunk.
__host__ __device__ constexpr int chunk_start(int q) { return kChunk * (q * kBlock - kChunk * q * (q - 1) / 2); }

// a: the first entry of the block. Loads take long, so many are on their way together.
template <class T>
__device__ void load_chunks(const T* a, std::int64_t n, T* l) {
  const int quad = static_cast<int>(threadIdx.x) % (kBlock / 4), first = static_cast<int>(threadIdx.x) / (kBlock / 4);
  constexpr int kBeside = kSolvers / (kBlock / 4);
  const bool aligned = n % 4 == 0 && reinterpret_cast<std::uintptr_t>(a) % sizeof(Four<T>) == 0;
  a += 4 * quad;
#pragma unroll
  for (int q = 0; q < kBlock / kChunk; ++q) {
    const int i = 4 * quad - q * kChunk;
    if (i < 0) return;
    T* const to = l + chunk_start(q) + i;
#pragma unroll 16
    for (int j = first; j < kChunk; j += kBeside) {
      const T* const from = a + (q * kChunk + j) * n;
      Four<T> four;
      if (aligned) {
        four = *reinterpret_cast<const Four<T>*>(from);
      } else {
#pragma unroll
        for (int s = 0; s < 4; ++s) four.x[s] = from[s];
      }
      *reinterpret_cast<Four<T>*>(to + j * (kBlock - q * kChunk)) = four;
    }
  }
}

// Rows below a block on the diagonal of width kBlock: X L^T = B in place, a thread for each two rows, so that what it
// reads of L counts twice. Matrix blockIdx.y. kParts: B less the product, and the parts of X are written too. kEven:
// pairs of rows are aligned.
template <class T, bool kParts, bool kEven>
__global__ void __launch_bounds__(kSolvers) solve_below(std::int64_t n, std::int64_t k, T* A, ByParts parts) {
  extern __shared__ double shared[];
  T* const l = reinterpret_cast<T*>(shared);
  T* const reciprocal = l + chunk_start(kBlock / kChunk);
  T* const down = reciprocal + kBlock;  // kParts alone
  T* const a = A + blockIdx.y * n * n;
  const int tid = static_cast<int>(threadIdx.x);
  for (int i = tid; i < kBlock; i += kSolvers) {
    reciprocal[i] = T(1) / a[(k + i) * (n + 1)];
    if constexpr (kParts) down[i] = 1 / parts.up[blockIdx.y * n + k + i];
  }
  load_chunks(a + k * (n + 1), n, l);
  __syncthreads();
  const std::int64_t row = k + kBlock + static_cast<std::int64_t>(blockIdx.x) * kBlock + 2 * tid;
  if (row >= n) return;
  const bool both = kEven || row + 1 < n;  // rows that there are; of the other one numbers mean nothing
  T* const b = a + k * n + row;            // entry j of the row at b[j n]
  const auto load = [&](int j) {
    const T* const at = b + j * n;
    Pair<T> pair;
    if constexpr (kEven) {
      pair = *reinterpret_cast<const Pair<T>*>(at);
    } else {
      pair.x[0] = at[0];
      pair.x[1] = both ? at[1] : T(0);
    }
    return pair;
  };
  const float* product = nullptr;
  __half *left = nullptr, *right = nullptr;
  T up[2] = {T(1), T(1)}, mine[2] = {T(1), T(1)};
  if constexpr (kParts) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      up[r] = r == 0 || both ? parts.up[blockIdx.y * n + row + r] : T(1);
      mine[r] = 1 / up[r];
    }
    if (k > 0) product = parts.product + blockIdx.y * parts.product_stride() + k % kProducts * parts.ld + row;
    const std::int64_t at = blockIdx.y * parts.parts_stride() + kSegments * k * parts.ld + row;
    left = parts.left + at;
    right = parts.right + at;
  }

  for (int q = 0; q < kBlock / kChunk; ++q) {
    const int c = q * kChunk;
    T x[kChunk][2];
#pragma unroll
    for (int u = 0; u < kChunk; ++u) {
      const Pair<T> pair = load(c + u);
#pragma unroll
      for (int r = 0; r < 2; ++r) x[u][r] = pair.x[r];
    }
    if constexpr (kParts) {
      if (product != nullptr) {
#pragma unroll
        for (int u = 0; u < kChunk; ++u) {
          const auto pair = *reinterpret_cast<const Pair<float>*>(product + (c + u) * parts.ld);
#pragma unroll
          for (int r = 0; r < 2; ++r) x[u][r] -= pair.x[r] * mine[r] * down[c + u];
        }
      }
    }
    for (int p = 0; p < q; ++p) {  // what the thread has found before
      const int ld = kBlock - p * kChunk;
      const T* const chunk = l + chunk_start(p) + c - p * kChunk;
#pragma unroll 4
      for (int j = 0; j < kChunk; ++j) {
        const Pair<T> y = load(p * kChunk + j);
        const auto* const column = reinterpret_cast<const Four<T>*>(chunk + j * ld);
#pragma unroll
        for (int u = 0; u < kChunk / 4; ++u) {
          const Four<T> four = column[u];
#pragma unroll
          for (int s = 0; s < 4; ++s)
#pragma unroll
            for (int r = 0; r < 2; ++r) x[4 * u + s][r] -= y.x[r] * four.x[s];
        }
      }
    }
    const T* const chunk = l + chunk_start(q);
#pragma unroll
    for (int u = 0; u < kChunk; ++u) {
#pragma unroll
      for (int r = 0; r < 2; ++r) x[u][r] *= reciprocal[c + u];
      const auto* const column = reinterpret_cast<const Four<T>*>(chunk + u * (kBlock - c));
#pragma unroll
      for (int v = u / 4; v < kChunk / 4; ++v) {
        const Four<T> four = column[v];
#pragma unroll
        for (int s = 0; s < 4; ++s)
#pragma unroll
          for (int r = 0; r < 2; ++r)
            if (4 * v + s > u) x[4 * v + s][r] -= x[u][r] * four.x[s];
      }
    }
#pragma unroll
    for (int u = 0; u < kChunk; ++u) {
      T* const at = b + (c + u) * n;
      if constexpr (kEven) {
        *reinterpret_cast<Pair<T>*>(at) = Pair<T>{{x[u][0], x[u][1]}};
      } else {
        at[0] = x[u][0];
        if (both) at[1] = x[u][1];
      }
    }
    if constexpr (kParts) {
#pragma unroll
      for (int u = 0; u < kChunk; ++u) {
        const Parts of[2] = {Parts(x[u][0] * up[0]), Parts(x[u][1] * up[1])};
        const Pair<__half> high = {{of[0].high, of[1].high}}, low = {{of[0].low, of[1].low}};
        const auto put = [&](__half* to, const Pair<__half>& first, const Pair<__half>& second) {
          to += (c + u) * parts.ld;
          *reinterpret_cast<Pair<__half>*>(to) = first;
          *reinterpret_cast<Pair<__half>*>(to + kBlock * parts.ld) = second;
          *reinterpret_cast<Pair<__half>*>(to + 2 * kBlock * parts.ld) = high;
        };
        put(left, high, low);
        put(right, low, high);
      }
    }
  }
}

// C -= A B^T
cublasStatus_t gemm(cublasHandle_t handle, int m, int n, int k, const float* A, const float* B, int ld,
                    std::int64_t stride, float* C, int count) {
  const float minus = -1, one = 1;
  return cublasSgemmStridedBatched(handle, CUBLAS_OP_N, CUBLAS_OP_T, m, n, k, &minus, A, ld, stride, B, ld, stride,
                                   &one, C, ld, stride, count);
}

cublasStatus_t gemm(cublasHandle_t handle, int m, int n, int k, const double* A, const double* B, int ld,
                    std::int64_t stride, double* C, int count) {
  const double minus = -1, one = 1;
  return cublasDgemmStridedBatched(handle, CUBLAS_OP_N, CUBLAS_OP_T, m, n, k, &minus, A, ld, stride, B, ld, stride,
                                   &one, C, ld, stride, count);
}

void multiply_parts(cublasHandle_t handle, std::int64_t m, std::int64_t n, std::int64_t k, const __half* A,
                    const __half* B, const ByParts& parts, float beta, float* C, std::int64_t count) {
  const float one = 1;
  const auto number = [](std::int64_t x) { return static_cast<int>(x); };
  const int ld = number(parts.ld);
  QUADRIC_CUDA(cublasGemmStridedBatchedEx(handle, CUBLAS_OP_N, CUBLAS_OP_T, number(m), number(n), number(kSegments * k),
                                          &one, A, CUDA_R_16F, ld, parts.parts_stride(), B, CUDA_R_16F, ld,
                                          parts.parts_stride(), &beta, C, CUDA_R_32F, ld, parts.product_stride(),
                                          number(count), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

// What columns [from, to) contribute to block k, or, where a panel begins, to the panel.
void multiply_columns(cublasHandle_t handle, std::int64_t count, std::int64_t n, std::int64_t k, std::int64_t from,
                      std::int64_t to, const ByParts& parts) {
  const std::int64_t columns = std::min<std::int64_t>(k % kPanel == 0 ? kPanel : kBlock, n - k);
  for (std::int64_t d = from; d < to; d += kDepth) {
    const std::int64_t at = kSegments * d * parts.ld + k;
    multiply_parts(handle, n - k, columns, std::min<std::int64_t>(kDepth, to - d), parts.left + at, parts.right + at,
                   parts, d > 0 ? 1.0F : 0.0F, parts.product + k % kProducts * parts.ld + k, count);
  }
}

// The products that block k needs, on the stream beside. A panel begins with what the panel before contributes: all
// others have done so on the caller's stream, while that one was being factored. There the next panel is next.
void multiply_before(cublasHandle_t handle, cublasHandle_t handle_beside, Beside& beside, std::int64_t count,
                     std::int64_t n, std::int64_t k, const ByParts& parts) {
  const std::int64_t panel = k - k % kPanel;
  if (k > panel) return multiply_columns(handle_beside, count, n, k, panel, k, parts);
  if (k == 0) return;
  beside.wait();
  if (k + kPanel < n) {
    beside.mark();
    beside.let_caller_wait_for_mark();
    multiply_columns(handle, count, n, k + kPanel, 0, k, parts);
  }
  multiply_columns(handle_beside, count, n, k, k - kPanel, k, parts);
}

// multiply(k): what block k of columns needs of those before it.
template <class T, class Multiply>
void factor(const Execution& exec, std::int64_t count, std::int64_t n, T* A, int* info, const ByParts& parts,
            const Multiply& multiply) {
  constexpr int diagonal_bytes = (packed(kBlock) + kBlock) * static_cast<int>(sizeof(T));
  constexpr int below_bytes = (chunk_start(kBlock / kChunk) + 2 * kBlock) * static_cast<int>(sizeof(T));
  constexpr bool single = std::is_same_v<T, float>;
  const bool even = n % 2 == 0 && reinterpret_cast<std::uintptr_t>(A) % sizeof(Pair<T>) == 0;
  const auto below_kernel = parts.product != nullptr
                                ? even ? solve_below<T, single, true> : solve_below<T, single, false>
                            : even ? solve_below<T, false, true>
                                   : solve_below<T, false, false>;
  QUADRIC_CUDA(cudaFuncSetAttribute(factor_diagonal<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, diagonal_bytes));
  QUADRIC_CUDA(cudaFuncSetAttribute(below_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, below_bytes));
  for (std::int64_t k = 0; k < n; k += kBlock) {
    const int width = static_cast<int>(std::min<std::int64_t>(kBlock, n - k));
    const int below = static_cast<int>(n - k) - width;
    multiply(k);
    factor_diagonal<T><<<static_cast<unsigned>(count), kThreads, diagonal_bytes, stream(exec)>>>(
        n, k, width, A, info, k > 0 ? parts : ByParts{});
    QUADRIC_CUDA_LAUNCHED();
    if (below == 0) continue;
    const dim3 grid(static_cast<unsigned>((below + kBlock - 1) / kBlock), static_cast<unsigned>(count));
    below_kernel<<<grid, kSolvers, below_bytes, stream(exec)>>>(n, k, A, parts);
    QUADRIC_CUDA_LAUNCHED();
  }
}

void factor_by_parts(const Execution& exec, Scratch& scratch, cublasHandle_t handle, std::int64_t count, std::int64_t n,
                     float* A, int* info) {
  ByParts parts;
  parts.n = n;
  parts.ld = (n + 7) / 8 * 8;
  const std::int64_t each = 2 * parts.parts_stride() * static_cast<std::int64_t>(sizeof(__half));
  const std::int64_t most = std::min({kMatrices, count, std::max<std::int64_t>(kPartsBytes / each, 1)});
  parts.left = scratch.get<__half>(most * parts.parts_stride());
  parts.right = scratch.get<__half>(most * parts.parts_stride());
  parts.product = scratch.get<float>(most * parts.product_stride());
  parts.up = scratch.get<float>(most * n);
  Beside beside(exec);
  cublasHandle_t handle_beside = blas(beside, scratch);
  beside.wait();  // for memory that comes in the order of the caller's stream
  for (std::int64_t first = 0; first < count; first += most) {
    const std::int64_t some = std::min(most, count - first);
    float* const a = A + first * n * n;
    const dim3 grid(static_cast<unsigned>((n + kThreads - 1) / kThreads), static_cast<unsigned>(some));
    scale_rows<<<grid, kThreads, 0, stream(beside.exec())>>>(n, a, parts.up);
    QUADRIC_CUDA_LAUNCHED();
    factor(beside.exec(), some, n, a, info + first, parts,
           [&](std::int64_t k) { multiply_before(handle, handle_beside, beside, some, n, k, parts); });
  }
}

}  // namespace

template <class T>
void potrf_batch(const Execution& exec, Scratch& scratch, std::int64_t count, std::int64_t n, T* A, int* info) {
  cublasHandle_t handle = blas(exec, scratch);
  if constexpr (std::is_same_v<T, float>) {
    if (n >= kPartsFrom && n <= kPartsUpTo) return factor_by_parts(exec, scratch, handle, count, n, A, info);
  }
  const int ld = static_cast<int>(n);
  for (std::int64_t first = 0; first < count; first += kMatrices) {
    const std::int64_t some = std::min(kMatrices, count - first);
    T* const a = A + first * n * n;
    factor(exec, some, n, a, info + first, ByParts{}, [&](std::int64_t k) {
      const int columns = static_cast<int>(std::min<std::int64_t>(kBlock, n - k));
      if (k > 0)
        QUADRIC_CUDA(gemm(handle, static_cast<int>(n - k), columns, static_cast<int>(k), a + k, a + k, ld, n * n,
                          a + k * (n + 1), static_cast<int>(some)));
    });
  }
}

template void potrf_batch(const Execution&, Scratch&, std::int64_t, std::int64_t, float*, int*);
template void potrf_batch(const Execution&, Scratch&, std::int64_t, std::int64_t, double*, int*);

}  // namespace quadric::cuda::sweep
