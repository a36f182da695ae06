// Passes over long rows: G x, scale x + c G, the rounding of a gradient; and column norms of L^-1 G.
//
// Floor: one read of G at 4.2 TB/s; m = 512, d = 25 M: 51 GB in float32 = 12.2 ms, 6.1 ms in 16 bits. To be reached:
// 90 %. Products and sums are float64, for which every entry is converted: at 16 a cycle and multiprocessor the
// conversions take 0.28 of that time in float32 and 0.57 in 16 bits. Each thread has 128 bytes of G on the way, 64 KB a
// multiprocessor; 40 KB would do.
//
// Column norms: (m + e)^2 d flops at 60 TFLOP/s; m = 512, d = 4 M: 17 ms. Slabs of G become float64, 26 GB of traffic =
// 6 ms; triangles of 64 rows are solved by a kernel of ours, 32 GB = 8 ms and half a read of shared memory for every
// multiply-add, to be reached: 12 ms; what lies between them are products by cuBLAS, 28 ms. With all of it 50 ms.
#include <cstdint>

#include "quadric/cuda/woodbury.hpp"
#include "woodbury/rows.cuh"

namespace quadric::cuda::rows {
namespace {

constexpr int kThreads = 256;

// ---- dots ----------------------------------------------------------------------------------------------------------

// x as double, kPack<S> entries from p on.
template <class S, class T>
__device__ __forceinline__ void read_vector(const T* p, double (&x)[kPack<S>]) {
  double part[kPack<T>];
#pragma unroll
  for (int i = 0; i < kPack<S>; i += kPack<T>) {
    widen<T>(__ldg(reinterpret_cast<const uint4*>(p + i)), part);
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) x[i + e] = part[e];
  }
}

// Sums of a team of threads, in the team's first; `shared` has room for one number of each warp.
template <int kTeam>
__device__ __forceinline__ double team_sum(double x, double* shared) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  if constexpr (kTeam == 32) return x;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int warp = 0; warp < kTeam / 32; ++warp) x += shared[warp];
  return x;
}

// sum[r] += G(r, j) x_j for the columns of packs 0 to `packs` that are this thread's; kFull: all kRows rows are there.
template <class S, class T, int kRows, int kVectors, int kTeam, bool kFull>
__device__ __forceinline__ void add_packs(const S* g, std::int64_t stride, int rows, const T* x, std::int64_t packs,
                                          int lane, double (&sum)[kRows]) {
  for (std::int64_t p = lane; p < packs; p += kTeam * kVectors) {
    uint4 chunk[kVectors][kRows];
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        chunk[u][r] = uint4{0, 0, 0, 0};
        if ((kFull || r < rows) && (u == 0 || p + u * kTeam < packs))
          chunk[u][r] = __ldcs(reinterpret_cast<const uint4*>(g + r * stride + (p + u * kTeam) * kPack<S>));
      }
    }
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      if (u > 0 && p + u * kTeam >= packs) break;
      double xs[kPack<S>], gs[kPack<S>];
      read_vector<S>(x + (p + u * kTeam) * kPack<S>, xs);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        widen<S>(chunk[u][r], gs);
#pragma unroll
        for (int e = 0; e < kPack<S>; ++e) sum[r] += gs[e] * xs[e];
      }
    }
  }
}

// out[block][part][row] = sum over the part's columns of G(row, j) x_j. A team of kTeam threads takes kRows rows and
// one part; teams of the same part are neighbours, so that x comes from L2 or L1. Each step a thread reads 16 bytes of
// kRows rows, or kVectors times 16 bytes of one row; `whole`: those 16 bytes are aligned, in x too.
template <class S, class T, int kRows, int kVectors, int kTeam>
__global__ void __launch_bounds__(kThreads)
    dots_kernel(const Rows<S> G, const T* __restrict__ x, const Cut cut, const bool whole, double* __restrict__ out) {
  constexpr int kTeams = kThreads / kTeam;
  __shared__ double shared[kThreads / 32];
  const std::int64_t groups = (G.count + kRows - 1) / kRows;
  const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * kTeams + threadIdx.x / kTeam;
  if (unit >= groups * cut.parts * cut.blocks) return;  // only where a team is a warp
  const std::int64_t first = unit % groups * kRows, rest = unit / groups;
  const std::int64_t part = rest % cut.parts, block = rest / cut.parts;
  const std::int64_t begin = cut.begin(block, part), count = cut.end(block, part) - begin;
  const int rows = G.count - first < kRows ? static_cast<int>(G.count - first) : kRows;
  const int lane = static_cast<int>(threadIdx.x) % kTeam;
  const S* const g = G.at(first, begin);
  const T* const v = x + begin;

  double sum[kRows] = {};
  const std::int64_t packs = whole ? count / kPack<S> : 0;
  if (rows == kRows)
    add_packs<S, T, kRows, kVectors, kTeam, true>(g, G.stride, rows, v, packs, lane, sum);
  else
    add_packs<S, T, kRows, kVectors, kTeam, false>(g, G.stride, rows, v, packs, lane, sum);
  // Entry by entry: the last few, or all of them. Columns side by side, so that no byte is read twice.
  constexpr int kSteps = kRows == 1 ? 8 : 2;
  for (std::int64_t j = packs * kPack<S> + lane; j < count; j += kTeam * kSteps) {
    S entry[kSteps][kRows] = {};
    T xs[kSteps] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (j + s * kTeam >= count) break;
      xs[s] = v[j + s * kTeam];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (r < rows) entry[s][r] = g[r * G.stride + j + s * kTeam];
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (j + s * kTeam >= count) break;
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] += wide(entry[s][r]) * wide(xs[s]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const double total = team_sum<kTeam>(sum[r], shared);
    if (lane == 0 && r < rows) out[(block * cut.parts + part) * G.count + first + r] = total;
  }
}

template <class S, class T, int kRows, int kVectors, int kTeam>
void launch_dots(const Execution& exec, const Rows<S>& G, const T* x, const Cut& cut, double* out) {
  const bool whole = aligned(G) && aligned16(x) && cut.in_step(std::max(kPack<S>, kPack<T>));
  const std::int64_t units = ceil_div(G.count, kRows) * cut.parts * cut.blocks;
  dots_kernel<S, T, kRows, kVectors, kTeam>
      <<<grid_of(ceil_div(units, kThreads / kTeam)), kThreads, 0, stream(exec)>>>(G, x, cut, whole, out);
  QUADRIC_CUDA_LAUNCHED();
}

// out[block][row] for one vector.
template <class S, class T>
void vector_dots(const Execution& exec, const Rows<S>& G, std::int64_t d, const T* x, std::int64_t block_size,
                 double* out) {
  // Parts of 8192 columns at least, of whose sums there are few then, and 2048 of them at most.
  const Cut cut(d, block_size, 8192, 2048, 2048);
  Scratch scratch(exec);
  double* const sums = cut.parts == 1 ? out : scratch.get<double>(cut.blocks * cut.parts * G.count);
  const bool small = cut.block_size <= 2048;  // too short for a whole block of threads
  if (G.count <= 2 && small)
    launch_dots<S, T, 1, 4, 32>(exec, G, x, cut, sums);
  else if (G.count <= 2)
    launch_dots<S, T, 1, 4, kThreads>(exec, G, x, cut, sums);
  else if (small)
    launch_dots<S, T, 8, 1, 32>(exec, G, x, cut, sums);
  else
    launch_dots<S, T, 8, 1, kThreads>(exec, G, x, cut, sums);
  if (cut.parts > 1) sum_parts(exec, cut, sums, G.count, false, 0, out);
}

// ---- combine -------------------------------------------------------------------------------------------------------

template <class T>
struct Combination {
  const double* C;  // blocks x k x m
  const T* X;       // k x d or null
  double scale;
  std::int64_t k;
  T* out;  // k x d

  __device__ double start(std::int64_t at) const { return X == nullptr ? 0.0 : scale * wide(X[at]); }
};

constexpr int kCoefficients = 256;  // rows whose coefficients are in shared memory at a time

// sum[q][u] += sum_r c[q][r] G(r, column_u ...) for kStep rows from g on; `left` columns are there.
template <class S, int kK, int kVectors, int kStep, bool kWhole>
__device__ __forceinline__ void add_rows(const S* g, std::int64_t stride, std::int64_t left, int row,
                                         const double (&c)[kK][kCoefficients], double (&sum)[kK][kVectors][kPack<S>]) {
  constexpr int kApart = kThreads * kPack<S>;
  uint4 chunk[kStep][kVectors];
#pragma unroll
  for (int r = 0; r < kStep; ++r) {
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      const S* const from = g + r * stride + u * kApart;
      if (kWhole)
        chunk[r][u] = __ldcs(reinterpret_cast<const uint4*>(from));
      else
        chunk[r][u] = read_some(from, left - u * kApart, true);
    }
  }
#pragma unroll
  for (int r = 0; r < kStep; ++r) {
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      double value[kPack<S>];
      widen<S>(chunk[r][u], value);
#pragma unroll
      for (int q = 0; q < kK; ++q) {
#pragma unroll
        for (int e = 0; e < kPack<S>; ++e) sum[q][u][e] += c[q][row + r] * value[e];
      }
    }
  }
}

template <class S, int kK, int kVectors, bool kWhole>
__device__ __forceinline__ void add_all_rows(const S* g, std::int64_t stride, std::int64_t left, int rows,
                                             const double (&c)[kK][kCoefficients],
                                             double (&sum)[kK][kVectors][kPack<S>]) {
  constexpr int kStep = 8 / kVectors;  // 128 bytes on the way
  int row = 0;
  for (; row + kStep <= rows; row += kStep)
    add_rows<S, kK, kVectors, kStep, kWhole>(g + row * stride, stride, left, row, c, sum);
  for (; row < rows; ++row) add_rows<S, kK, kVectors, 1, kWhole>(g + row * stride, stride, left, row, c, sum);
}

// A block of threads takes kVectors x kThreads x 16 bytes of every row, and kK rows of the result; those for the same
// columns are neighbours in the grid and move together, so that all but one find G in L2. Rows, x and out are aligned.
template <class S, class T, int kK, int kVectors>
__global__ void __launch_bounds__(kThreads) combine_kernel(const Rows<S> G, const Combination<T> f, const Cut cut) {
  __shared__ double c[kK][kCoefficients];
  constexpr int kApart = kThreads * kPack<S>;
  const std::int64_t groups = (f.k + kK - 1) / kK;
  const std::int64_t k0 = blockIdx.x % groups * kK, rest = blockIdx.x / groups;
  const std::int64_t part = rest % cut.parts, block = rest / cut.parts;
  const std::int64_t column = cut.begin(block, part) + threadIdx.x * kPack<S>;
  const std::int64_t left = cut.end(block, part) - column;
  const bool whole = left >= (kVectors - 1) * kApart + kPack<S>;

  double sum[kK][kVectors][kPack<S>];
#pragma unroll
  for (int q = 0; q < kK; ++q) {
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
#pragma unroll
      for (int e = 0; e < kPack<S>; ++e) {
        const bool there = k0 + q < f.k && u * kApart + e < left;
        sum[q][u][e] = there ? f.start((k0 + q) * cut.d + column + u * kApart + e) : 0.0;
      }
    }
  }
  for (std::int64_t row = 0; row < G.count; row += kCoefficients) {
    const int rows = G.count - row < kCoefficients ? static_cast<int>(G.count - row) : kCoefficients;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kK * kCoefficients; i += kThreads) {
      const int q = i / kCoefficients, r = i % kCoefficients;
      const bool there = k0 + q < f.k && r < rows;
      c[q][r] = there ? f.C[(block * f.k + k0 + q) * G.count + row + r] : 0.0;
    }
    __syncthreads();
    if (whole)
      add_all_rows<S, kK, kVectors, true>(G.at(row, column), G.stride, left, rows, c, sum);
    else
      add_all_rows<S, kK, kVectors, false>(G.at(row, column), G.stride, left, rows, c, sum);
  }
#pragma unroll
  for (int q = 0; q < kK; ++q) {
    if (k0 + q >= f.k) break;
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      T* const to = f.out + (k0 + q) * cut.d + column + u * kApart;
      if (whole) {
#pragma unroll
        for (int e = 0; e < kPack<S>; e += kPack<T>) {
          T value[kPack<T>];
#pragma unroll
          for (int i = 0; i < kPack<T>; ++i) value[i] = static_cast<T>(sum[q][u][e + i]);
          uint4 bytes;
          memcpy(&bytes, value, sizeof bytes);
          *reinterpret_cast<uint4*>(to + e) = bytes;
        }
        continue;
      }
#pragma unroll
      for (int e = 0; e < kPack<S>; ++e)
        if (u * kApart + e < left) to[e] = static_cast<T>(sum[q][u][e]);
    }
  }
}

// A column a thread, with coefficients from L1: for rows that are not aligned, and for short blocks.
template <class S, class T, int kK>
__global__ void __launch_bounds__(kThreads)
    combine_columns_kernel(const Rows<S> G, const Combination<T> f, const std::int64_t d,
                           const std::int64_t block_size) {
  constexpr int kStep = 8;
  const std::int64_t groups = (f.k + kK - 1) / kK;
  const std::int64_t k0 = blockIdx.x % groups * kK;
  const std::int64_t j = blockIdx.x / groups * kThreads + threadIdx.x;
  if (j >= d) return;
  const double* const c = f.C + (j / block_size * f.k + k0) * G.count;
  double sum[kK];
#pragma unroll
  for (int q = 0; q < kK; ++q) sum[q] = k0 + q < f.k ? f.start((k0 + q) * d + j) : 0.0;
  for (std::int64_t row = 0; row < G.count; row += kStep) {
    S entry[kStep] = {};
#pragma unroll
    for (int r = 0; r < kStep; ++r)
      if (row + r < G.count) entry[r] = *G.at(row + r, j);
#pragma unroll
    for (int r = 0; r < kStep; ++r) {
      if (row + r >= G.count) break;
      const double value = wide(entry[r]);
#pragma unroll
      for (int q = 0; q < kK; ++q)
        if (k0 + q < f.k) sum[q] += __ldg(c + q * G.count + row + r) * value;
    }
  }
#pragma unroll
  for (int q = 0; q < kK; ++q)
    if (k0 + q < f.k) f.out[(k0 + q) * d + j] = static_cast<T>(sum[q]);
}

template <class S, class T, int kK>
void combine_rows(const Execution& exec, const Rows<S>& G, const Combination<T>& f, std::int64_t d,
                  std::int64_t block_size) {
  const std::int64_t groups = ceil_div(f.k, kK), size = std::min(block_size, d);
  const auto launch = [&](auto kernel, int vectors) {
    const std::int64_t width = std::int64_t{kThreads} * kPack<S> * vectors;
    const Cut cut(d, size, width, width, size);
    kernel<<<grid_of(groups * cut.parts * cut.blocks), kThreads, 0, stream(exec)>>>(G, f, cut);
    QUADRIC_CUDA_LAUNCHED();
  };
  constexpr std::int64_t kPackT = kPack<T>;
  const bool whole = aligned(G) && aligned16(f.out) && (f.X == nullptr || aligned16(f.X)) &&
                     (f.k == 1 || d % kPackT == 0) &&
                     (size == d || size % std::max<std::int64_t>(kPack<S>, kPackT) == 0);
  if (!whole || size < kThreads) {
    combine_columns_kernel<S, T, kK>
        <<<grid_of(groups * ceil_div(d, kThreads)), kThreads, 0, stream(exec)>>>(G, f, d, size);
    QUADRIC_CUDA_LAUNCHED();
  } else if (kK == 1 && size >= std::int64_t{1} << 21) {
    launch(combine_kernel < S, T, kK, kK == 1 ? 2 : 1 >, kK == 1 ? 2 : 1);  // longer stretches of a row at a time
  } else {
    launch(combine_kernel<S, T, kK, 1>, 1);
  }
}

// ---- column norms --------------------------------------------------------------------------------------------------

// X[b][first_row + r][j] = G(r, column + b width + j) for a group of blocks; X is blocks x m x width.
template <class S>
__global__ void __launch_bounds__(kThreads)
    widen_kernel(const Rows<S> G, const std::int64_t column, const std::int64_t blocks, const std::int64_t width,
                 const std::int64_t m, const std::int64_t first_row, double* __restrict__ X) {
  const std::int64_t n = blocks * width, j = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= n) return;
  double* const to = X + (j / width * m + first_row) * width + j % width;
  for (std::int64_t r = blockIdx.y; r < G.count; r += gridDim.y) to[r * width] = wide(*G.at(r, column + j));
}

// The same for one block whose columns come 16 bytes at a time.
template <class S>
__global__ void __launch_bounds__(kThreads)
    widen_packs_kernel(const Rows<S> G, const std::int64_t column, const std::int64_t width,
                       const std::int64_t first_row, double* __restrict__ X) {
  const std::int64_t j = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack<S>;
  if (j >= width) return;
#pragma unroll 2
  for (std::int64_t r = blockIdx.y; r < G.count; r += gridDim.y) {
    double entry[kPack<S>];
    widen<S>(__ldcs(reinterpret_cast<const uint4*>(G.at(r, column + j))), entry);
    auto* const to = reinterpret_cast<double2*>(X + (r + first_row) * width + j);
#pragma unroll
    for (int i = 0; i < kPack<S>; i += 2) to[i / 2] = double2{entry[i], entry[i + 1]};
  }
}

// Rows [0, n) of X become L^-1 X by substitution; their squares are added to `out`, which begins here if `first`. What
// nobody needs any more, because `last`, need not be in X. A thread for each column: X at X + r width, L(i, j) at
// L + i m + j, n <= kSolved.
constexpr int kSolved = 64, kHeld = 32;  // rows of a launch, and those of them that a thread holds
constexpr int kSolvers = 128;            // threads
constexpr int kApart = kSolved + 2;      // of columns of L in shared memory, against bank conflicts

__global__ void __launch_bounds__(kSolvers, 4)
    solve_kernel(const double* __restrict__ L, const std::int64_t m, const int n, double* X, const std::int64_t width,
                 const bool first, const bool last, double* __restrict__ out) {
  __shared__ double2 columns[kSolved * kApart / 2];  // L(i, j) is number j kApart + i; zero outside the triangle
  __shared__ double reciprocal[kSolved];
  double* const l = reinterpret_cast<double*>(columns);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t j = static_cast<std::int64_t>(blockIdx.x) * kSolvers + thread;
  for (int at = thread; at < kSolved * kSolved; at += kSolvers) {
    const int i = at / kSolved, c = at % kSolved;
    l[c * kApart + i] = i < n && c < i ? L[i * m + c] : 0.0;
  }
  if (thread < kSolved) reciprocal[thread] = thread < n ? 1 / L[thread * (m + 1)] : 1.0;
  __syncthreads();
  if (j >= width) return;
  double sum = first ? 0.0 : out[j];
  double* const column = X + j;
  for (int c = 0; c < n; c += kHeld) {
    double x[kHeld];
    const double* from = column + c * width;
#pragma unroll
    for (int u = 0; u < kHeld; ++u, from += width) x[u] = c + u < n ? *from : 0.0;
#pragma unroll 2
    for (int q = 0; q < c; ++q) {  // what the thread has found before
      const double y = column[q * width];
      const double2* const pairs = columns + (q * kApart + c) / 2;
#pragma unroll
      for (int u = 0; u < kHeld / 2; ++u) {
        const double2 pair = pairs[u];
        x[2 * u] -= y * pair.x;
        x[2 * u + 1] -= y * pair.y;
      }
    }
    const bool write = !last || c + kHeld < n;
    double* to = column + c * width;
#pragma unroll
    for (int u = 0; u < kHeld; ++u, to += width) {
      if (c + u >= n) break;
      x[u] *= reciprocal[c + u];
      if (write) *to = x[u];
      sum += x[u] * x[u];
      const double2* const pairs = columns + ((c + u) * kApart + c) / 2;
#pragma unroll
      for (int v = u / 2; v < kHeld / 2; ++v) {
        const double2 pair = pairs[v];
        if (2 * v > u) x[2 * v] -= x[u] * pair.x;
        if (2 * v + 1 > u) x[2 * v + 1] -= x[u] * pair.y;
      }
    }
  }
  out[j] = sum;
}

// L^-1 X for m rows of X of `width` columns each, and the sums of their squares: halves, each solved for in turn, with
// a matrix product between them.
struct Substitution {
  cublasHandle_t handle;
  cudaStream_t stream;
  const double* L;
  std::int64_t m;
  double* X;
  std::int64_t width;
  double* out;

  void rows(std::int64_t k, std::int64_t n) const {
    if (n <= kSolved) {
      solve_kernel<<<grid_of(ceil_div(width, kSolvers)), kSolvers, 0, stream>>>(
          L + k * (m + 1), m, static_cast<int>(n), X + k * width, width, k == 0, k + n == m, out);
      QUADRIC_CUDA_LAUNCHED();
      return;
    }
    const std::int64_t half = ceil_div(ceil_div(n, kSolved), 2) * kSolved, rest = n - half, next = k + half;
    rows(k, half);
    // To BLAS X is width x m by columns, and rows of L are columns.
    const double minus = -1, one = 1;
    QUADRIC_CUDA(cublasDgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, static_cast<int>(width), static_cast<int>(rest),
                             static_cast<int>(half), &minus, X + k * width, static_cast<int>(width), L + next * m + k,
                             static_cast<int>(m), &one, X + next * width, static_cast<int>(width)));
    rows(next, rest);
  }
};

// out[j] = sum_r X[b][r][j]^2, j counting through the blocks.
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const double* __restrict__ X, const std::int64_t blocks, const std::int64_t width,
                   const std::int64_t m, double* __restrict__ out) {
  const std::int64_t n = blocks * width, j = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= n) return;
  const double* const from = X + j / width * m * width + j % width;
  double sum = 0;
#pragma unroll 8
  for (std::int64_t r = 0; r < m; ++r) sum += from[r * width] * from[r * width];
  out[j] = sum;
}

__global__ void __launch_bounds__(kThreads)
    pointers_kernel(const double* L, double* X, const int count, const std::int64_t l_size, const std::int64_t x_size,
                    const double** l, double** x) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= count) return;
  l[i] = L + i * l_size;
  x[i] = X + i * x_size;
}

template <class S>
void widen_rows(const Execution& exec, const Rows<S>& G, std::int64_t column, std::int64_t blocks, std::int64_t width,
                std::int64_t m, std::int64_t first_row, double* X) {
  if (G.count == 0) return;
  if (blocks == 1 && width % kPack<S> == 0 && aligned(Rows<S>{G.data + column, G.count, G.stride})) {
    const dim3 grid(grid_of(ceil_div(width, kThreads * kPack<S>)),
                    static_cast<unsigned>(std::min<std::int64_t>(ceil_div(G.count, 8), 65535)));
    widen_packs_kernel<S><<<grid, kThreads, 0, stream(exec)>>>(G, column, width, first_row, X);
    QUADRIC_CUDA_LAUNCHED();
    return;
  }
  const dim3 grid(grid_of(ceil_div(blocks * width, kThreads)),
                  static_cast<unsigned>(std::min<std::int64_t>(G.count, 65535)));
  widen_kernel<S><<<grid, kThreads, 0, stream(exec)>>>(G, column, blocks, width, m, first_row, X);
  QUADRIC_CUDA_LAUNCHED();
}

// ---- store ---------------------------------------------------------------------------------------------------------

template <class T, int kN>
struct alignas(kN * sizeof(T)) Several {
  T at[kN];
};

__device__ __forceinline__ void round_to(float x, float& out) { out = x; }
__device__ __forceinline__ void round_to(double x, double& out) { out = x; }
__device__ __forceinline__ void round_to(float x, Float16& out) { out.bits = __half_as_ushort(__float2half_rn(x)); }
__device__ __forceinline__ void round_to(float x, Bfloat16& out) {  // to even; x is finite
  const unsigned bits = __float_as_uint(x);
  out.bits = static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr std::int64_t kMostBlocks = 2112;  // of threads, where each takes many entries

// first = the smallest i with |g_i| > limit or g_i NaN, if that is below what is there; -1 is the largest number there.
template <class T, int kN>
__global__ void __launch_bounds__(kThreads)
    first_beyond_kernel(const T* __restrict__ g, const std::int64_t d, const T limit, unsigned long long* first) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads * kN;
  for (std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kN; i < d; i += step) {
    const Several<T, kN> x = *reinterpret_cast<const Several<T, kN>*>(g + i);
#pragma unroll
    for (int e = 0; e < kN; ++e) {
      if (x.at[e] <= limit && x.at[e] >= -limit) continue;
      atomicMin(first, static_cast<unsigned long long>(i + e));
      return;
    }
  }
}

template <class S, class T, int kN>
__global__ void __launch_bounds__(kThreads)
    store_kernel(const T* g, const std::int64_t d, S* row, T* rounded, const std::int64_t* first) {
  if (*first >= 0) return;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads * kN;
  for (std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kN; i < d; i += step) {
    const Several<T, kN> x = *reinterpret_cast<const Several<T, kN>*>(g + i);
    Several<S, kN> to;
    Several<T, kN> back;
#pragma unroll
    for (int e = 0; e < kN; ++e) {
      round_to(x.at[e], to.at[e]);
      back.at[e] = static_cast<T>(wide(to.at[e]));
    }
    *reinterpret_cast<Several<S, kN>*>(row + i) = to;
    if (rounded != nullptr) *reinterpret_cast<Several<T, kN>*>(rounded + i) = back;
  }
}

template <class S, class T, int kN>
void store_row(const Execution& exec, const T* g, T limit, S* row, T* rounded, std::int64_t d, std::int64_t* first) {
  const unsigned grid = grid_of(std::min(kMostBlocks, ceil_div(d, kThreads * kN)));
  first_beyond_kernel<T, kN>
      <<<grid, kThreads, 0, stream(exec)>>>(g, d, limit, reinterpret_cast<unsigned long long*>(first));
  QUADRIC_CUDA_LAUNCHED();
  store_kernel<S, T, kN><<<grid, kThreads, 0, stream(exec)>>>(g, d, row, rounded, first);
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace
}  // namespace quadric::cuda::rows

namespace quadric::cuda::woodbury {

template <class T>
void dots(const Execution& exec, const StoredRows& G, MatrixView<const T> X, std::int64_t block_size, double* out) {
  rows::check_rows(G, block_size);
  QUADRIC_REQUIRE(rows::stores<T>(G.storage), "X must be float64 if and only if G is");
  QUADRIC_REQUIRE(X.cols == G.cols && (X.col_stride == 1 || X.rows == 0 || X.cols <= 1),
                  "X must have d contiguous columns");
  if (G.rows == 0 || X.rows == 0 || G.cols == 0) return;
  if (X.rows > 1) return rows::cross(exec, G, rows::Rows<T>{X.data, X.rows, X.row_stride}, block_size, out);
  rows::with_type(G, [&](auto g) {
    using S = typename decltype(g)::Entry;
    if constexpr ((sizeof(S) == 8) == (sizeof(T) == 8)) rows::vector_dots(exec, g, G.cols, X.data, block_size, out);
  });
}

template <class T>
void combine(const Execution& exec, const StoredRows& G, const double* C, const T* X, double scale,
             std::int64_t block_size, MatrixView<T> out) {
  rows::check_rows(G, block_size);
  QUADRIC_REQUIRE(rows::stores<T>(G.storage), "out must be float64 if and only if G is");
  QUADRIC_REQUIRE(out.cols == G.cols && (out.row_stride == out.cols || out.rows == 0),
                  "out must be contiguous with d columns");
  if (out.rows == 0 || G.cols == 0) return;
  const rows::Combination<T> f{C, X, scale, out.rows, out.data};
  rows::with_type(G, [&](auto g) {
    using S = typename decltype(g)::Entry;
    if constexpr ((sizeof(S) == 8) == (sizeof(T) == 8)) {
      if (f.k == 1)
        rows::combine_rows<S, T, 1>(exec, g, f, G.cols, block_size);
      else
        rows::combine_rows<S, T, 4>(exec, g, f, G.cols, block_size);
    }
  });
}

void column_norms(const Execution& exec, const StoredRows& G, const StoredRows& E, std::int64_t block_size,
                  const double* L, double* out) {
  rows::check_rows(G, block_size);
  QUADRIC_REQUIRE(E.rows == 0 || E.cols == G.cols, "E must have the columns of G");
  constexpr std::int64_t kEntries = std::int64_t{1} << 25;  // of L^-1 G at a time, 256 MB
  constexpr std::int64_t kShort = 1024;                     // blocks of up to so many columns are solved together
  constexpr std::int64_t kMost = 32768;                     // blocks at a time
  const std::int64_t m = G.rows + E.rows, d = G.cols;
  if (d == 0) return;
  if (m == 0) {
    QUADRIC_CUDA(cudaMemsetAsync(out, 0, static_cast<std::size_t>(d) * sizeof(double), stream(exec)));
    return;
  }
  const std::int64_t size = std::min(block_size, d), blocks = rows::ceil_div(d, size);
  const bool together = size <= kShort && blocks > 1;
  const std::int64_t slab = together ? size : std::min(size, std::max(std::int64_t{4096}, kEntries / m / 128 * 128));
  const std::int64_t group = together ? std::clamp<std::int64_t>(kEntries / (m * size), 1, kMost) : 1;

  Scratch scratch(exec);
  const auto handle = blas(exec, scratch);
  double* const X = scratch.get<double>(std::min(group, blocks) * m * slab);
  const double** const l = scratch.get<const double*>(group);
  double** const x = scratch.get<double*>(group);
  const double one = 1;
  const auto solve = [&](std::int64_t block, std::int64_t column, std::int64_t count, std::int64_t width) {
    for (const auto& [source, first_row] : {std::pair{&G, std::int64_t{0}}, std::pair{&E, G.rows}}) {
      const std::int64_t at = first_row;
      rows::with_type(*source, [&](auto g) { rows::widen_rows(exec, g, column, count, width, m, at, X); });
    }
    const double* const factor = L + block * m * m;
    if (count == 1) {
      rows::Substitution{handle, stream(exec), factor, m, X, width, out + column}.rows(0, m);
      return;
    }
    // X = L^-1 X; to BLAS X is width x m and L an upper triangle, so it is X = X L^-1.
    const int n_rows = static_cast<int>(width), n = static_cast<int>(m), blocks_now = static_cast<int>(count);
    rows::pointers_kernel<<<rows::grid_of(rows::ceil_div(count, rows::kThreads)), rows::kThreads, 0, stream(exec)>>>(
        factor, X, blocks_now, m * m, m * width, l, x);
    QUADRIC_CUDA_LAUNCHED();
    QUADRIC_CUDA(cublasDtrsmBatched(handle, CUBLAS_SIDE_RIGHT, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N,
                                    CUBLAS_DIAG_NON_UNIT, n_rows, n, &one, l, n, x, n_rows, blocks_now));
    rows::squares_kernel<<<rows::grid_of(rows::ceil_div(count * width, rows::kThreads)), rows::kThreads, 0,
                           stream(exec)>>>(X, count, width, m, out + column);
    QUADRIC_CUDA_LAUNCHED();
  };
  const std::int64_t whole = together ? d / size : 0;  // blocks that are not short
  for (std::int64_t b = 0; b < whole; b += group) solve(b, b * size, std::min(group, whole - b), size);
  for (std::int64_t b = whole; b < blocks; ++b) {
    const std::int64_t end = std::min(d, (b + 1) * size);
    for (std::int64_t j = b * size; j < end; j += slab) solve(b, j, 1, std::min(slab, end - j));
  }
}

template <class T>
void store(const Execution& exec, const T* g, Storage storage, void* row, T* rounded, std::int64_t d,
           std::int64_t* first) {
  QUADRIC_REQUIRE(rows::stores<T>(storage), "g must be float64 if and only if the row is");
  QUADRIC_CUDA(cudaMemsetAsync(first, 0xff, sizeof(std::int64_t), stream(exec)));
  if (d == 0) return;
  // The largest number that does not round to infinity: for 16 bits, just below the largest finite one plus half a
  // unit.
  const double limit = storage == Storage::float16    ? 65519.996
                       : storage == Storage::bfloat16 ? 3.3961773e38
                                                      : static_cast<double>(std::numeric_limits<T>::max());
  StoredRows to;
  to.data = row;
  to.storage = storage;
  rows::with_type(to, [&](auto r) {
    using S = typename decltype(r)::Entry;
    if constexpr ((sizeof(S) == 8) == (sizeof(T) == 8)) {
      constexpr int kN = rows::kPack<T>;
      S* const entries = static_cast<S*>(row);
      const bool whole = d % kN == 0 && rows::aligned16(g) && rows::aligned16(row) && rows::aligned16(rounded);
      if (whole)
        rows::store_row<S, T, kN>(exec, g, static_cast<T>(limit), entries, rounded, d, first);
      else
        rows::store_row<S, T, 1>(exec, g, static_cast<T>(limit), entries, rounded, d, first);
    }
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                                     \
  template QUADRIC_API void dots(const Execution&, const StoredRows&, MatrixView<const T>, std::int64_t, double*); \
  template QUADRIC_API void combine(const Execution&, const StoredRows&, const double*, const T*, double,          \
                                    std::int64_t, MatrixView<T>);                                                  \
  template QUADRIC_API void store(const Execution&, const T*, Storage, void*, T*, std::int64_t, std::int64_t*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::woodbury
