// Kronecker factors: Y = V J and alpha J + delta I + sign Y^T Y for many factors in a launch.
//
// Floor: a read of each factor and then a read and a write, 3 n^2 entries at 4.2 TB/s. Long factors with one vector go
// another way, in symmetric.cu; here are the short ones and those with several vectors. Of many the product goes
// through the rows from first to last and the update from last to first, so that the update finds in L2 what the
// product read at the end. A warp takes a row, in updates with several vectors four rows, which share the reads of Y;
// eight warps make a block of threads.
//
// The table of a launch's factors is an argument of the kernel, so nothing is copied.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "device.hpp"
#include "quadric/cuda/woodbury.hpp"
#include "require.hpp"
#include "woodbury/factors.cuh"
#include "woodbury/symmetric.hpp"

namespace quadric::cuda::factors {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr std::int64_t kGemmFrom = 17;  // vectors from which on cuBLAS is faster

template <class T>
struct Factor {
  const T* J;
  const T* A;  // V or Y: k x n
  T* out;
  std::int64_t n, k, stride, out_stride;  // of rows of A and out
  std::int64_t first;                     // block of threads of the launch
  int number;                             // among all factors of the call
  bool whole;                             // 16 bytes may be read and written at every multiple of kPack columns
};

template <class T>
struct Table {
  Factor<T> at[kFactors];
  int count = 0;
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

template <class T>
bool whole(const Factor<T>& f, bool rows_of_out) {
  return f.n % kPack<T> == 0 && aligned16(f.J) && aligned16(f.A) && (f.k <= 1 || f.stride % kPack<T> == 0) &&
         (!rows_of_out || aligned16(f.out));
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
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
  const std::int64_t row = (blockIdx.x - f.first) * kWarps + threadIdx.x / 32;
  if (row >= f.n) return;
  for (std::int64_t k0 = 0; k0 < f.k; k0 += kK) {  // a row is read again from L1 or L2
    if (f.whole)
      dot_row<T, kK, kPack<T>>(f, row, k0);
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
  const Factor<T>& f = table.at[table.find(block)];
  const std::int64_t row = ((block - f.first) * kWarps + threadIdx.x / 32) * kR;
  const int i = f.number;
  const T a = static_cast<T>(alpha[i]), d = static_cast<T>(delta[i]), s = static_cast<T>(sign[i]);
  unsigned long long largest = 0;
  if (row < f.n) {
    if (f.whole)
      largest = update_rows<T, kR, kPack<T>>(f, row, a, d, s);
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

// Whether symmetric.cu does it, for V or Y.
template <class T>
bool by_tiles(const T* J, const MatrixView<const T>& rows, const T* out) {
  return rows.rows == 1 && rows.cols >= kLong && rows.cols % kPack<T> == 0 && aligned16(J) && aligned16(rows.data) &&
         aligned16(out);
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
  std::vector<Single<T>> singles;
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
    if (by_tiles(J[i].data, V[i], Y[i].data)) {
      singles.push_back({J[i].data, V[i].data, Y[i].data, n, static_cast<int>(i)});
      continue;
    }
    if (k >= kGemmFrom && V[i].row_stride >= n && Y[i].row_stride >= n) {
      // Rows to BLAS are columns: Y (n x k) = J^T (n x n) V (n x k).
      if (handle == nullptr) handle = blas(exec, scratch);
      QUADRIC_CUDA(gemm(handle, static_cast<int>(n), static_cast<int>(k), J[i].data, static_cast<int>(n), V[i].data,
                        static_cast<int>(V[i].row_stride), Y[i].data, static_cast<int>(Y[i].row_stride)));
      continue;
    }
    Factor<T> f{J[i].data, V[i].data, Y[i].data, n, k, V[i].row_stride, Y[i].row_stride, 0, static_cast<int>(i), false};
    f.whole = whole(f, false);
    table.add(f, kWarps);
    one = one && k == 1;
    if (table.count == kFactors) launch();
  }
  launch();
  product_by_tiles(exec, singles);
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
  std::vector<Single<T>> singles;
  std::vector<int> rest;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto number = static_cast<int>(i);
    if (by_tiles(J[i].data, Y[i], out[i].data))
      singles.push_back({J[i].data, Y[i].data, out[i].data, J[i].rows, number});
    else
      rest.push_back(number);
  }
  update_by_tiles(exec, singles, alpha, delta, sign, norms, cleared);
  for (std::size_t first = 0; first < rest.size(); first += kFactors) {
    const std::size_t end = std::min(rest.size(), first + kFactors);
    const bool one = std::all_of(rest.begin() + first, rest.begin() + end, [&](int i) { return Y[i].rows <= 1; });
    Table<T> table;
    for (std::size_t at = first; at < end; ++at) {
      const int i = rest[at];
      Factor<T> f{J[i].data, Y[i].data, out[i].data, J[i].rows, Y[i].rows, Y[i].row_stride, J[i].rows, 0, i, false};
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
