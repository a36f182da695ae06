// Kronecker factors: Y = V J and alpha J + delta I + sign Y^T Y for many factors in a launch.
//
// Floor: a read of each factor and then a read and a write, 3 n^2 entries at 4.2 TB/s; n = 4096 in float32: 201 MB =
// 48 us. To be reached: 65 us with two launches. Factors and their order: the product goes through the rows from first
// to last and the update from last to first, so that the update finds in L2 what the product read at the end.
//
// A warp takes a row (in updates with several vectors four rows, which share the reads of Y), eight warps make a block
// of threads. For one vector and long rows the block takes its eight rows together: then a part of the vector stays in
// registers for all of them, and a thread has eight reads of 16 bytes on the way, 128 KB for a multiprocessor. All of
// n = 4096 runs at once then, every block through its own rows, so the update goes back through those too. What it
// writes is marked to leave L2 first, or it would drive out what the product read.
//
// The table of a launch's factors is an argument of the kernel, so nothing is copied.
#include <cstdint>
#include <cstring>

#include "device.hpp"
#include "quadric/cuda/woodbury.hpp"
#include "require.hpp"

namespace quadric::cuda::factors {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kFactors = 32;            // of a launch: 2.3 KB of arguments, of 4
constexpr std::int64_t kGemmFrom = 17;  // vectors from which on cuBLAS is faster
constexpr std::int64_t kLong = 1024;    // columns from which on a block of threads takes its rows together

template <class T, int kN>
struct alignas(kN * sizeof(T)) Several {
  T at[kN];
};

template <class T>
struct Factor {
  const T* J;
  const T* A;  // V or Y: k x n
  T* out;
  std::int64_t n, k, stride, out_stride;  // of rows of A and out
  std::int64_t first;                     // block of threads of the launch
  bool whole;  // 16 bytes may be read and written at every multiple of 16 / sizeof(T) columns
};

template <class T>
struct Table {
  Factor<T> at[kFactors];
  int count = 0;
  int first = 0;  // number of the first factor among all
  std::int64_t blocks = 0;

  void add(Factor<T> factor, std::int64_t rows_per_block) {
    factor.first = blocks;
    blocks += (factor.n + rows_per_block - 1) / rows_per_block;
    at[count++] = factor;
  }
  __device__ int find(std::int64_t block) const {
    int i = 0;
    while (i + 1 < count && block >= at[i + 1].first) ++i;
    return i;
  }
};

bool aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

template <class T>
bool whole(const Factor<T>& f, bool rows_of_out) {
  const std::int64_t pack = 16 / static_cast<std::int64_t>(sizeof(T));
  return f.n % pack == 0 && aligned16(f.J) && aligned16(f.A) && (f.k <= 1 || f.stride % pack == 0) &&
         (!rows_of_out || aligned16(f.out));
}

unsigned grid_of(std::int64_t blocks) {
  QUADRIC_REQUIRE(blocks <= 0x7fffffff, "J has too many rows for one launch");
  return static_cast<unsigned>(blocks);
}

__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float sum(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double sum(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return fabs(x); }

// 16 bytes that nobody needs in L2 any more.
template <class Pack>
__device__ __forceinline__ Pack read_last(const void* from) {
  static_assert(sizeof(Pack) == sizeof(int4));
  const int4 bits = __ldcs(static_cast<const int4*>(from));
  Pack x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
template <class Pack>
__device__ __forceinline__ void write_once(void* to, const Pack& x) {
  static_assert(sizeof(Pack) == sizeof(int4));
  int4 bits;
  memcpy(&bits, &x, sizeof x);
  __stcs(static_cast<int4*>(to), bits);
}

// Of a number >= 0 or NaN: the order of the bits is that of the numbers, NaN last.
__device__ __forceinline__ unsigned long long as_bits(double x) {
  return static_cast<unsigned long long>(__double_as_longlong(x)) & 0x7fffffffffffffffULL;
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// ---- one vector, long rows -----------------------------------------------------------------------------------------

// A block of threads takes kDown rows at a time, and of each a thread has kAcross packs at a time.
constexpr int kAcross = 2, kDown = 4;

template <class T>
using Pack16 = Several<T, 16 / sizeof(T)>;

template <class T>
__device__ __forceinline__ bool together(const Factor<T>& f) {
  return f.whole && f.n >= kLong && f.n % kDown == 0 && f.k == 1;
}

// The sum of x[r] over the lanes, in lanes 8 r and following: twice half of the numbers go to the other half of them.
template <class T>
__device__ __forceinline__ double sums_of_four(const T (&x)[kDown]) {
  static_assert(kDown == 4);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool far = (lane & 16) != 0, near = (lane & 8) != 0;
  double y[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto mine = static_cast<double>(far ? x[i + 2] : x[i]), other = static_cast<double>(far ? x[i] : x[i + 2]);
    y[i] = mine + __shfl_xor_sync(0xffffffffu, other, 16);
  }
  double total = (near ? y[1] : y[0]) + __shfl_xor_sync(0xffffffffu, near ? y[0] : y[1], 8);
#pragma unroll
  for (int step = 4; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
  return total;
}

// What the warps have for row w of the block, parts[w], summed in order; in warp w.
__device__ __forceinline__ double sum_of_row(const double (*parts)[kWarps]) {
  __syncthreads();
  double total = parts[threadIdx.x / 32][threadIdx.x % kWarps];
#pragma unroll
  for (int step = kWarps / 2; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
  return total;
}

// Rows row to row + kWarps of J times the vector.
template <class T>
__device__ __forceinline__ void dot_rows(const Factor<T>& f, std::int64_t row) {
  using Pack = Pack16<T>;
  __shared__ double parts[kWarps][kWarps];
  const int packs = static_cast<int>(f.n / static_cast<int>(sizeof(Pack) / sizeof(T))), thread = threadIdx.x;
  for (int r0 = 0; r0 < kWarps; r0 += kDown) {
    if (row + r0 >= f.n) break;
    const auto* const j = reinterpret_cast<const Pack*>(f.J + (row + r0) * f.n);
    const auto* const v = reinterpret_cast<const Pack*>(f.A);
    T total[kDown] = {};
    for (int p = thread; p < packs; p += kThreads * kAcross) {
      Pack x[kAcross], entries[kAcross][kDown];
#pragma unroll
      for (int u = 0; u < kAcross; ++u) {
        const int at = p + kThreads * u;
        if (at >= packs) break;
        const Pack* from = j + at;
#pragma unroll
        for (int r = 0; r < kDown; ++r, from += packs) entries[u][r] = *from;
        x[u] = v[at];
      }
#pragma unroll
      for (int u = 0; u < kAcross; ++u) {
        if (p + kThreads * u >= packs) break;
#pragma unroll
        for (int r = 0; r < kDown; ++r)
#pragma unroll
          for (int e = 0; e < static_cast<int>(sizeof(Pack) / sizeof(T)); ++e)
            total[r] = fused(entries[u][r].at[e], x[u].at[e], total[r]);
      }
    }
    const double mine = sums_of_four(total);
    if (thread % 8 == 0) parts[r0 + thread % 32 / 8][thread / 32] = mine;
  }
  const double y = sum_of_row(parts);
  const std::int64_t at = row + thread / 32;
  if (thread % 32 == 0 && at < f.n) f.out[at] = static_cast<T>(y);
}

// Rows row to row + kWarps of out, from the last columns and rows to the first, in the roundings of update_rows below.
// Warp w returns the bits of the sum of magnitudes in row w.
template <class T>
__device__ __forceinline__ unsigned long long update_together(const Factor<T>& f, std::int64_t row, T alpha, T delta,
                                                              T sign) {
  using Pack = Pack16<T>;
  constexpr int kN = 16 / sizeof(T), kChunk = kThreads * kAcross;
  __shared__ double parts[kWarps][kWarps];
  const int packs = static_cast<int>(f.n / kN), thread = threadIdx.x;
  for (int r0 = kWarps - kDown; r0 >= 0; r0 -= kDown) {
    const std::int64_t top = row + r0;
    if (top >= f.n) continue;
    const auto* const j = reinterpret_cast<const Pack*>(f.J + top * f.n);
    auto* const out = reinterpret_cast<Pack*>(f.out + top * f.n);
    T total[kDown] = {}, c[kDown];
#pragma unroll
    for (int r = 0; r < kDown; ++r) c[r] = product(sign, f.A[top + r]);
    for (int p = (packs - 1) / kChunk * kChunk + thread; p >= 0; p -= kChunk) {
      Pack y[kAcross], entries[kAcross][kDown];
#pragma unroll
      for (int u = 0; u < kAcross; ++u) {
        const int at = p + kThreads * u;
        if (at >= packs) break;
        const Pack* from = j + at;
#pragma unroll
        for (int r = 0; r < kDown; ++r, from += packs) entries[u][r] = read_last<Pack>(from);
        y[u] = reinterpret_cast<const Pack*>(f.A)[at];
      }
#pragma unroll
      for (int u = 0; u < kAcross; ++u) {
        const int at = p + kThreads * u;
        if (at >= packs) break;
        const int diagonal = static_cast<int>(top - static_cast<std::int64_t>(at) * kN);  // entry `diagonal` of row top
        Pack* to = out + at;
#pragma unroll
        for (int r = 0; r < kDown; ++r, to += packs) {
#pragma unroll
          for (int e = 0; e < kN; ++e) {
            T& entry = entries[u][r].at[e];
            entry = sum(product(entry, alpha), product(y[u].at[e], c[r]));
            if (diagonal + r == e) entry = sum(entry, delta);
            total[r] += magnitude(entry);
          }
          write_once(to, entries[u][r]);
        }
      }
    }
    const double mine = sums_of_four(total);
    if (thread % 8 == 0) parts[r0 + thread % 32 / 8][thread / 32] = mine;
  }
  const double norm = sum_of_row(parts);
  return row + thread / 32 < f.n ? as_bits(norm) : 0;
}

// ---- product -------------------------------------------------------------------------------------------------------

// Row `row` of J times rows k0 to k0 + kK of V, kN entries at a time; a lane's sums are of type T.
template <class T, int kK, int kN>
__device__ __forceinline__ void dot_row(const Factor<T>& f, std::int64_t row, std::int64_t k0) {
  constexpr int kWays = 4;  // reads of J on the way
  using Pack = Several<T, kN>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T* const j = f.J + row * f.n;
  const T* const v = f.A + k0 * f.stride;
  const std::int64_t packs = f.n / kN;
  T total[kK] = {};
  for (std::int64_t p = lane; p < packs; p += 32 * kWays) {
    Pack entries[kWays];
#pragma unroll
    for (int u = 0; u < kWays; ++u)
      if (p + 32 * u < packs) entries[u] = *reinterpret_cast<const Pack*>(j + (p + 32 * u) * kN);
#pragma unroll
    for (int u = 0; u < kWays; ++u) {
      if (p + 32 * u >= packs) break;
#pragma unroll
      for (int q = 0; q < kK; ++q) {
        if (k0 + q >= f.k) break;
        const Pack x = *reinterpret_cast<const Pack*>(v + q * f.stride + (p + 32 * u) * kN);
#pragma unroll
        for (int e = 0; e < kN; ++e) total[q] = fused(entries[u].at[e], x.at[e], total[q]);
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kK; ++q) {
    const double y = warp_sum(static_cast<double>(total[q]));
    if (lane == 0 && k0 + q < f.k) f.out[(k0 + q) * f.out_stride + row] = static_cast<T>(y);
  }
}

template <class T, int kK>
__global__ void __launch_bounds__(kThreads, 4) product_kernel(const __grid_constant__ Table<T> table) {
  const Factor<T>& f = table.at[table.find(blockIdx.x)];
  const std::int64_t first = (blockIdx.x - f.first) * kWarps, row = first + threadIdx.x / 32;
  if constexpr (kK == 1) {
    if (together(f)) return dot_rows(f, first);
  }
  if (row >= f.n) return;
  for (std::int64_t k0 = 0; k0 < f.k; k0 += kK) {  // a row is read again from L1 or L2
    if (f.whole)
      dot_row<T, kK, 16 / sizeof(T)>(f, row, k0);
    else
      dot_row<T, kK, 1>(f, row, k0);
  }
}

cublasStatus_t gemm(cublasHandle_t handle, int rows, int k, const float* J, int n, const float* V, int ldv, float* Y,
                    int ldy) {
  const float one = 1, zero = 0;
  return cublasSgemm(handle, CUBLAS_OP_T, CUBLAS_OP_N, rows, k, n, &one, J, n, V, ldv, &zero, Y, ldy);
}
cublasStatus_t gemm(cublasHandle_t handle, int rows, int k, const double* J, int n, const double* V, int ldv, double* Y,
                    int ldy) {
  const double one = 1, zero = 0;
  return cublasDgemm(handle, CUBLAS_OP_T, CUBLAS_OP_N, rows, k, n, &one, J, n, V, ldv, &zero, Y, ldy);
}

// ---- update --------------------------------------------------------------------------------------------------------

// Rows row to row + kR of out, kN entries at a time; returns the largest sum of magnitudes in them, as the bits of a
// double, whose order is that of the numbers, NaN last. Each entry is the result of the same roundings wherever it is,
// in the order of the CPU, so that out is as symmetric as J.
template <class T, int kR, int kN>
__device__ __forceinline__ unsigned long long update_rows(const Factor<T>& f, std::int64_t row, T alpha, T delta,
                                                          T sign) {
  constexpr int kWays = 4 / kR;
  using Pack = Several<T, kN>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t packs = f.n / kN;
  const int rows = f.n - row < kR ? static_cast<int>(f.n - row) : kR;
  const T* const j = f.J + row * f.n;
  T* const out = f.out + row * f.n;
  T first[kR] = {}, total[kR] = {};
#pragma unroll
  for (int r = 0; r < kR; ++r)
    if (r < rows && f.k > 0) first[r] = product(sign, f.A[row + r]);
  for (std::int64_t p = lane; p < packs; p += 32 * kWays) {
    Pack entry[kWays][kR];
#pragma unroll
    for (int u = 0; u < kWays; ++u) {
#pragma unroll
      for (int r = 0; r < kR; ++r)
        if (r < rows && p + 32 * u < packs)
          entry[u][r] = *reinterpret_cast<const Pack*>(j + r * f.n + (p + 32 * u) * kN);
    }
#pragma unroll
    for (int u = 0; u < kWays; ++u) {
      const std::int64_t column = (p + 32 * u) * kN;
      if (p + 32 * u >= packs) break;
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int e = 0; e < kN; ++e) entry[u][r].at[e] = product(entry[u][r].at[e], alpha);
      }
      for (std::int64_t k = 0; k < f.k; ++k) {
        const Pack y = *reinterpret_cast<const Pack*>(f.A + k * f.stride + column);
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          if (r >= rows) break;
          const T c = k == 0 ? first[r] : product(sign, f.A[k * f.stride + row + r]);
#pragma unroll
          for (int e = 0; e < kN; ++e) entry[u][r].at[e] = sum(entry[u][r].at[e], product(y.at[e], c));
        }
      }
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        if (r >= rows) break;
#pragma unroll
        for (int e = 0; e < kN; ++e) {
          if (column + e == row + r) entry[u][r].at[e] = sum(entry[u][r].at[e], delta);
          total[r] += magnitude(entry[u][r].at[e]);
        }
        *reinterpret_cast<Pack*>(out + r * f.n + column) = entry[u][r];
      }
    }
  }
  unsigned long long largest = 0;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    const double norm = warp_sum(static_cast<double>(total[r]));
    const unsigned long long bits = as_bits(norm);
    if (r < rows && bits > largest) largest = bits;
  }
  return largest;
}

template <class T, int kR>
__global__ void __launch_bounds__(kThreads, kR > 1           ? 1
                                            : sizeof(T) == 4 ? 4
                                                             : 3)
    update_kernel(const __grid_constant__ Table<T> table, const double* __restrict__ alpha,
                  const double* __restrict__ delta, const double* __restrict__ sign, double* norms) {
  __shared__ unsigned long long shared[kWarps];
  const std::int64_t block = table.blocks - 1 - blockIdx.x;
  const int number = table.find(block), i = table.first + number;
  const Factor<T>& f = table.at[number];
  const std::int64_t first = (block - f.first) * kWarps * kR, row = first + threadIdx.x / 32 * kR;
  const T a = static_cast<T>(alpha[i]), d = static_cast<T>(delta[i]), s = static_cast<T>(sign[i]);
  unsigned long long largest = 0;
  if (kR == 1 && together(f)) {
    largest = update_together(f, first, a, d, s);
  } else if (row < f.n) {
    if (f.whole)
      largest = update_rows<T, kR, 16 / sizeof(T)>(f, row, a, d, s);
    else
      largest = update_rows<T, kR, 1>(f, row, a, d, s);
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) largest = shared[warp] > largest ? shared[warp] : largest;
  // A maximum does not depend on the order.
  atomicMax(reinterpret_cast<unsigned long long*>(norms + i), largest);
}

// ---- checks --------------------------------------------------------------------------------------------------------

template <class View>
void check(std::int64_t count, const View* J) {
  for (std::int64_t i = 0; i < count; ++i)
    QUADRIC_REQUIRE(
        J[i].cols == J[i].rows && (J[i].rows <= 1 || (J[i].col_stride == 1 && J[i].row_stride == J[i].rows)),
        "J must hold square matrices with contiguous rows");
}

template <class View>
bool has_rows(const View& v, std::int64_t n) {
  return v.cols == n && (n <= 1 || v.col_stride == 1);
}

}  // namespace
}  // namespace quadric::cuda::factors

namespace quadric::cuda::woodbury {

template <class T>
void symmetric_product(const Execution& exec, std::int64_t count, const MatrixView<const T>* J,
                       const MatrixView<const T>* V, const MatrixView<T>* Y) {
  using namespace factors;
  check(count, J);
  for (std::int64_t i = 0; i < count; ++i) {
    QUADRIC_REQUIRE(has_rows(V[i], J[i].rows), "V must have contiguous rows as long as those of J");
    QUADRIC_REQUIRE(has_rows(Y[i], J[i].rows) && Y[i].rows == V[i].rows, "Y must have the shape of V");
  }
  Table<T> table;
  bool one = true;  // vector for each factor of the table
  const auto launch = [&] {
    if (table.blocks > 0) {
      const auto kernel = one ? product_kernel<T, 1> : product_kernel<T, 4>;
      kernel<<<grid_of(table.blocks), kThreads, 0, stream(exec)>>>(table);
      QUADRIC_CUDA_LAUNCHED();
    }
    table = Table<T>();
    one = true;
  };
  Scratch scratch(exec);
  cublasHandle_t handle = nullptr;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t n = J[i].rows, k = V[i].rows;
    if (n * k == 0) continue;
    if (k >= kGemmFrom && V[i].row_stride >= n && Y[i].row_stride >= n) {
      // Rows to BLAS are columns: Y (n x k) = J^T (n x n) V (n x k).
      if (handle == nullptr) handle = blas(exec, scratch);
      QUADRIC_CUDA(gemm(handle, static_cast<int>(n), static_cast<int>(k), J[i].data, static_cast<int>(n), V[i].data,
                        static_cast<int>(V[i].row_stride), Y[i].data, static_cast<int>(Y[i].row_stride)));
      continue;
    }
    Factor<T> f{J[i].data, V[i].data, Y[i].data, n, k, V[i].row_stride, Y[i].row_stride, 0, false};
    f.whole = whole(f, false);
    table.add(f, kWarps);
    one = one && k == 1;
    if (table.count == kFactors) launch();
  }
  launch();
}

template <class T>
void symmetric_update(const Execution& exec, std::int64_t count, const MatrixView<const T>* J, const double* alpha,
                      const double* delta, const double* sign, const MatrixView<const T>* Y, const MatrixView<T>* out,
                      double* norms, bool cleared) {
  using namespace factors;
  check(count, J);
  for (std::int64_t i = 0; i < count; ++i) {
    QUADRIC_REQUIRE(has_rows(Y[i], J[i].rows), "Y must have contiguous rows as long as those of J");
    QUADRIC_REQUIRE(
        out[i].rows == J[i].rows && has_rows(out[i], J[i].rows) && (J[i].rows <= 1 || out[i].row_stride == J[i].rows),
        "out must have the shape of J and contiguous rows");
  }
  if (count == 0) return;
  if (!cleared) QUADRIC_CUDA(cudaMemsetAsync(norms, 0, static_cast<std::size_t>(count) * sizeof(double), stream(exec)));
  for (std::int64_t first = 0; first < count; first += kFactors) {
    const std::int64_t end = first + kFactors < count ? first + kFactors : count;
    bool one = true;
    for (std::int64_t i = first; i < end; ++i) one = one && Y[i].rows <= 1;
    Table<T> table;
    table.first = static_cast<int>(first);
    for (std::int64_t i = first; i < end; ++i) {
      Factor<T> f{J[i].data, Y[i].data, out[i].data, J[i].rows, Y[i].rows, Y[i].row_stride, J[i].rows, 0, false};
      f.whole = whole(f, true);
      table.add(f, one ? kWarps : 4 * kWarps);
    }
    if (table.blocks == 0) continue;
    const auto kernel = one ? update_kernel<T, 1> : update_kernel<T, 4>;
    kernel<<<grid_of(table.blocks), kThreads, 0, stream(exec)>>>(table, alpha, delta, sign, norms);
    QUADRIC_CUDA_LAUNCHED();
  }
}

#define QUADRIC_INSTANTIATE(T)                                                                                        \
  template QUADRIC_API void symmetric_product(const Execution&, std::int64_t, const MatrixView<const T>*,             \
                                              const MatrixView<const T>*, const MatrixView<T>*);                      \
  template QUADRIC_API void symmetric_update(const Execution&, std::int64_t, const MatrixView<const T>*,              \
                                             const double*, const double*, const double*, const MatrixView<const T>*, \
                                             const MatrixView<T>*, double*, bool);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::woodbury
