// Plans of potentials: their entries, products, sums and derivatives.
//
// An entry is exp2(F_i + G_j - kappa C_ij) with the exponent in float64, whatever the type of the cost, so that nothing
// is lost where terms of 1000 bits leave one of a few; of the power, a float32 plan has the fraction in float32. Sums
// are float64.
//
// Floors: a stored plan reads C and writes P: n = m = 10 000 in float32 190 us; to be reached: 250 us. Sums read C, 95
// us; 12 float64 operations for each entry take as long, and three conversions, 16 for each multiprocessor and clock,
// 80 us: to be reached: 250 us. From points, d more operations: n = m = 50 000, d = 3: 3 ms, against the 1 ms of a pass
// of Sinkhorn's iteration in float32; these functions are called once or twice for a problem. Batches of 64 x 64: a
// block of threads each, 1024 problems in 60 us.
//
// A block of 16 x 16 threads works on tiles of 64 x 64 entries, 4 x 4 for each thread, 16 apart: rows ty + 16 a and
// columns tx + 16 b. Parts of sums are cut by n and m alone and are added in order.
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "device.hpp"
#include "quadric/cuda/transport.hpp"
#include "require.hpp"
#include "transport/columns.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTile = 64, kEach = 4, kApart = 16;
constexpr int kDims = 8;                   // coordinates that are in shared memory together
constexpr int kRow = kTile + 1;            // of a tile there
constexpr int kWidth = 256;                // columns whose sums a block keeps
constexpr std::int64_t kSlots = 32;        // parts of the rows, at most
constexpr std::int64_t kChunks = 64;       // parts of the columns, at most
constexpr int kOut = 16;                   // coordinates of a gradient that a block sums up together
constexpr std::int64_t kSlab = 1 << 25;    // entries of P that are stored at a time
constexpr std::int64_t kBlocks = 1 << 30;  // of a launch

// One problem's cost.
template <class T>
struct Source {
  const T* M;
  std::int64_t row_stride, col_stride;
  const T *x, *y;
  std::int64_t x_row, x_col, y_row, y_col, d;
  std::int64_t n, m;
};

template <class T>
Source<T> source_of(const Cost<T>& c) {
  return {c.M.data,       c.M.row_stride, c.M.col_stride, c.x.data, c.y.data, c.x.row_stride,
          c.x.col_stride, c.y.row_stride, c.y.col_stride, c.x.cols, c.rows(), c.cols()};
}

template <class T>
Source<T> transposed(const Source<T>& s) {
  return {s.M, s.col_stride, s.row_stride, s.y, s.x, s.y_row, s.y_col, s.x_row, s.x_col, s.d, s.m, s.n};
}

// 2^t; 0 below the smallest normal number of T.
__device__ inline double power(double t, float) {
  if (!(t >= -126)) return t != t ? t : 0.0;
  if (t > 1000) return std::numeric_limits<double>::infinity();
  constexpr double kMagic = 6755399441055744.0;  // 3 * 2^51: the sum's last bit is 1
  const double shifted = t + kMagic;
  const int whole = __double2loint(shifted);
  const double fraction = exp2f(static_cast<float>(t - (shifted - kMagic)));
  return fraction * __hiloint2double((1023 + whole) << 20, 0);
}
__device__ inline double power(double t, double) {
  if (!(t >= -1022)) return t != t ? t : 0.0;
  return exp2(t);
}

struct Staging {
  double x[kDims][kRow], y[kDims][kRow];
};

template <CostKind kKind, class T>
__device__ void distances(const Source<T>& s, std::int64_t i0, std::int64_t j0, Staging& staging,
                          double (&c)[kEach][kEach]) {
  const int tx = static_cast<int>(threadIdx.x) % kApart, ty = static_cast<int>(threadIdx.x) / kApart;
#pragma unroll
  for (int a = 0; a < kEach; ++a) {
#pragma unroll
    for (int b = 0; b < kEach; ++b) c[a][b] = 0;
  }
  for (std::int64_t first = 0; first < s.d; first += kDims) {
    __syncthreads();  // what was there has been read
    for (int t = static_cast<int>(threadIdx.x); t < kDims * kTile; t += kThreads) {
      const int k = t % kDims, r = t / kDims;
      const std::int64_t i = i0 + r, j = j0 + r, at = first + k;
      staging.x[k][r] = i < s.n && at < s.d ? static_cast<double>(s.x[i * s.x_row + at * s.x_col]) : 0.0;
      staging.y[k][r] = j < s.m && at < s.d ? static_cast<double>(s.y[j * s.y_row + at * s.y_col]) : 0.0;
    }
    __syncthreads();
    const int depth = s.d - first < kDims ? static_cast<int>(s.d - first) : kDims;
    for (int k = 0; k < depth; ++k) {
      double u[kEach], v[kEach];
#pragma unroll
      for (int a = 0; a < kEach; ++a) u[a] = staging.x[k][ty + kApart * a];
#pragma unroll
      for (int b = 0; b < kEach; ++b) v[b] = staging.y[k][tx + kApart * b];
#pragma unroll
      for (int a = 0; a < kEach; ++a) {
#pragma unroll
        for (int b = 0; b < kEach; ++b) {
          if constexpr (kKind == CostKind::cosine) {
            c[a][b] += u[a] * v[b];
          } else if constexpr (kKind == CostKind::cityblock) {
            c[a][b] += fabs(u[a] - v[b]);
          } else {
            c[a][b] += (u[a] - v[b]) * (u[a] - v[b]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int a = 0; a < kEach; ++a) {
#pragma unroll
    for (int b = 0; b < kEach; ++b) {
      if constexpr (kKind == CostKind::cosine) c[a][b] = 1 - c[a][b];
      if constexpr (kKind == CostKind::euclidean) c[a][b] = sqrt(c[a][b]);
    }
  }
}

// The costs of a thread's entries of the tile at (i0, j0). All threads of the block call.
template <CostKind kKind, class T>
__device__ void costs(const Source<T>& s, std::int64_t i0, std::int64_t j0, Staging& staging,
                      double (&c)[kEach][kEach]) {
  const int tx = static_cast<int>(threadIdx.x) % kApart, ty = static_cast<int>(threadIdx.x) / kApart;
  if constexpr (kKind == CostKind::stored) {
#pragma unroll
    for (int a = 0; a < kEach; ++a) {
      const std::int64_t i = i0 + ty + kApart * a;
#pragma unroll
      for (int b = 0; b < kEach; ++b) {
        const std::int64_t j = j0 + tx + kApart * b;
        c[a][b] = i < s.n && j < s.m ? static_cast<double>(s.M[i * s.row_stride + j * s.col_stride]) : 0.0;
      }
    }
  } else {
    distances<kKind>(s, i0, j0, staging, c);
  }
}

// The potentials of a thread's rows or columns, in bits; what lies beyond the last has no mass.
__device__ inline void potentials(const double* f, std::int64_t first, std::int64_t n, double kappa,
                                  double (&F)[kEach]) {
#pragma unroll
  for (int a = 0; a < kEach; ++a) {
    const std::int64_t i = first + kApart * a;
    F[a] = i < n ? f[i] * kappa : -std::numeric_limits<double>::infinity();
  }
}

// ---- entries -------------------------------------------------------------------------------------------------------

template <CostKind kKind, class T, class Out>
__global__ void __launch_bounds__(kThreads) plan_kernel(const Source<T> s, const double* f, const double* g,
                                                        double kappa, std::int64_t tiles_across, MatrixView<Out> out) {
  __shared__ Staging staging;
  const int tx = static_cast<int>(threadIdx.x) % kApart, ty = static_cast<int>(threadIdx.x) / kApart;
  const std::int64_t i0 = blockIdx.x / tiles_across * kTile, j0 = blockIdx.x % tiles_across * kTile;
  double c[kEach][kEach], F[kEach], G[kEach];
  costs<kKind>(s, i0, j0, staging, c);
  potentials(f, i0 + ty, s.n, kappa, F);
  potentials(g, j0 + tx, s.m, kappa, G);
#pragma unroll
  for (int a = 0; a < kEach; ++a) {
    const std::int64_t i = i0 + ty + kApart * a;
#pragma unroll
    for (int b = 0; b < kEach; ++b) {
      const std::int64_t j = j0 + tx + kApart * b;
      if (i < s.n && j < s.m)
        out.data[i * out.row_stride + j * out.col_stride] =
            static_cast<Out>(power((F[a] + G[b]) - kappa * c[a][b], T(0)));
    }
  }
}

// The same for a stored cost whose columns are contiguous: tiles of 32 x 32 change their layout in shared memory.
template <class T, class Out>
__global__ void __launch_bounds__(kThreads)
    plan_of_columns_kernel(const Source<T> s, const double* f, const double* g, double kappa, std::int64_t tiles_across,
                           MatrixView<Out> out) {
  __shared__ T tile[32][33];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t i0 = blockIdx.x / tiles_across * 32, j0 = blockIdx.x % tiles_across * 32;
  for (int r = warp; r < 32; r += kWarps) {
    const std::int64_t i = i0 + lane, j = j0 + r;
    if (i < s.n && j < s.m) tile[r][lane] = s.M[i * s.row_stride + j * s.col_stride];
  }
  __syncthreads();
  const std::int64_t j = j0 + lane;
  for (int r = warp; r < 32; r += kWarps) {
    const std::int64_t i = i0 + r;
    if (i >= s.n || j >= s.m) continue;
    const double t = (f[i] * kappa + g[j] * kappa) - kappa * static_cast<double>(tile[lane][r]);
    out.data[i * out.row_stride + j * out.col_stride] = static_cast<Out>(power(t, T(0)));
  }
}

// ---- sums ----------------------------------------------------------------------------------------------------------

// Where the parts of a problem's sums go.
struct Parts {
  std::int64_t slots, chunks;  // of rows and columns
  double* rows;                // problems x chunks x n
  double* columns;             // problems x slots x m
  double* totals;              // problems x slots x chunks
};

// `stride`: from one problem's cost to the next, of M, x and y in entries.
struct Strides {
  std::int64_t M, x, y;
};

template <CostKind kKind, class T>
__global__ void __launch_bounds__(kThreads) sums_kernel(Source<T> s, Strides strides, std::int64_t first_problem,
                                                        const double* f, const double* g, double kappa, Parts parts) {
  __shared__ Staging staging;
  __shared__ double own[kWarps][kWidth];  // column sums of the warps
  const int tx = static_cast<int>(threadIdx.x) % kApart, ty = static_cast<int>(threadIdx.x) / kApart;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t chunk = blockIdx.x % parts.chunks, slot = blockIdx.x / parts.chunks % parts.slots;
  const std::int64_t problem = first_problem + blockIdx.x / (parts.chunks * parts.slots);
  s.M += problem * strides.M;
  s.x += problem * strides.x;
  s.y += problem * strides.y;
  f += problem * s.n;
  g += problem * s.m;
  double* const rows = parts.rows + (problem * parts.chunks + chunk) * s.n;
  double* const columns = parts.columns + (problem * parts.slots + slot) * s.m;
  const std::int64_t tiles = (s.n + kTile - 1) / kTile, widths = (s.m + kWidth - 1) / kWidth;
  const std::int64_t first_tile = tiles * slot / parts.slots, last_tile = tiles * (slot + 1) / parts.slots;
  const std::int64_t first_width = widths * chunk / parts.chunks, last_width = widths * (chunk + 1) / parts.chunks;
  double total = 0;
  for (std::int64_t w = first_width; w < last_width; ++w) {
    const std::int64_t begin = w * kWidth, end = begin + kWidth < s.m ? begin + kWidth : s.m;
    for (int t = static_cast<int>(threadIdx.x); t < kWarps * kWidth; t += kThreads) own[t / kWidth][t % kWidth] = 0;
    __syncthreads();
    for (std::int64_t tile = first_tile; tile < last_tile; ++tile) {
      const std::int64_t i0 = tile * kTile;
      double F[kEach], sum[kEach] = {};
      potentials(f, i0 + ty, s.n, kappa, F);
      for (std::int64_t j0 = begin; j0 < end; j0 += kTile) {
        double c[kEach][kEach], G[kEach];
        costs<kKind>(s, i0, j0, staging, c);
        potentials(g, j0 + tx, s.m, kappa, G);
#pragma unroll
        for (int b = 0; b < kEach; ++b) {
          double down = 0;
#pragma unroll
          for (int a = 0; a < kEach; ++a) {
            const double p = power((F[a] + G[b]) - kappa * c[a][b], T(0));
            sum[a] += p;
            down += p;
            if (p != 0) total += p * c[a][b];  // or it may be infinite
          }
          down += __shfl_xor_sync(column::kAll, down, kApart);  // the other row of the warp
          if (lane < kApart) own[warp][j0 - begin + tx + kApart * b] += down;
        }
      }
#pragma unroll
      for (int a = 0; a < kEach; ++a) {
#pragma unroll
        for (int step = kApart / 2; step > 0; step /= 2) sum[a] += __shfl_xor_sync(column::kAll, sum[a], step);
        const std::int64_t i = i0 + ty + kApart * a;
        if (tx == 0 && i < s.n) rows[i] = w == first_width ? sum[a] : rows[i] + sum[a];  // always this thread's
      }
    }
    __syncthreads();
    for (std::int64_t j = begin + threadIdx.x; j < end; j += kThreads) {
      double sum = 0;
      for (int t = 0; t < kWarps; ++t) sum += own[t][j - begin];
      columns[j] = sum;
    }
    __syncthreads();
  }
  total = column::block_sum<kThreads>(total);
  if (threadIdx.x == 0) parts.totals[(problem * parts.slots + slot) * parts.chunks + chunk] = total;
}

// Adds the parts: entries [0, n) of a problem are rows, the next m columns, the last one the total.
__global__ void __launch_bounds__(kThreads)
    finish_kernel(Parts parts, std::int64_t problems, std::int64_t n, std::int64_t m, double* rows, double* columns,
                  double* totals) {
  const std::int64_t each = n + m + 1;
  for (std::int64_t t = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; t < problems * each;
       t += gridDim.x * std::int64_t{kThreads}) {
    const std::int64_t problem = t / each, k = t % each;
    double sum = 0;
    if (k < n) {
      for (std::int64_t c = 0; c < parts.chunks; ++c) sum += parts.rows[(problem * parts.chunks + c) * n + k];
      rows[problem * n + k] = sum;
    } else if (k < n + m) {
      for (std::int64_t s = 0; s < parts.slots; ++s) sum += parts.columns[(problem * parts.slots + s) * m + k - n];
      columns[problem * m + k - n] = sum;
    } else {
      const std::int64_t count = parts.slots * parts.chunks;
      for (std::int64_t p = 0; p < count; ++p) sum += parts.totals[problem * count + p];
      totals[problem] = sum;
    }
  }
}

// ---- derivatives ---------------------------------------------------------------------------------------------------

// out_i = sum_j P_ij dC_ij / dx_i for 64 rows and 16 coordinates.
template <CostKind kKind, class T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const Source<T> s, const double* f, const double* g,
                                                            double kappa, std::int64_t tiles, double* out) {
  __shared__ Staging staging;
  __shared__ double weight[kTile][kTile];
  static_assert(sizeof(Staging) >= sizeof(double) * kOut * kRow);
  auto* const others = reinterpret_cast<double (*)[kRow]>(&staging);  // costs() lets it be read before it writes
  const int tx = static_cast<int>(threadIdx.x) % kApart, ty = static_cast<int>(threadIdx.x) / kApart;
  const std::int64_t i0 = blockIdx.x % tiles * kTile, first = blockIdx.x / tiles * kOut;
  const std::int64_t at = first + tx;  // this thread's coordinate; its rows are ty + 16 q
  double F[kEach], x[kEach], sum[kEach] = {};
  potentials(f, i0 + ty, s.n, kappa, F);
#pragma unroll
  for (int q = 0; q < kEach; ++q) {
    const std::int64_t i = i0 + ty + kApart * q;
    x[q] = i < s.n && at < s.d ? static_cast<double>(s.x[i * s.x_row + at * s.x_col]) : 0.0;
  }
  for (std::int64_t j0 = 0; j0 < s.m; j0 += kTile) {
    double c[kEach][kEach], G[kEach];
    costs<kKind>(s, i0, j0, staging, c);
    potentials(g, j0 + tx, s.m, kappa, G);
    __syncthreads();  // the last tile has been read
#pragma unroll
    for (int a = 0; a < kEach; ++a) {
#pragma unroll
      for (int b = 0; b < kEach; ++b) {
        double p = power((F[a] + G[b]) - kappa * c[a][b], T(0));
        if constexpr (kKind == CostKind::euclidean) p = c[a][b] > 0 ? p / c[a][b] : 0.0;
        weight[ty + kApart * a][tx + kApart * b] = p;
      }
    }
    for (int t = static_cast<int>(threadIdx.x); t < kOut * kTile; t += kThreads) {
      const int k = t % kOut, r = t / kOut;
      const std::int64_t j = j0 + r;
      others[k][r] = j < s.m && first + k < s.d ? static_cast<double>(s.y[j * s.y_row + (first + k) * s.y_col]) : 0.0;
    }
    __syncthreads();
    const int width = s.m - j0 < kTile ? static_cast<int>(s.m - j0) : kTile;
    for (int j = 0; j < width; ++j) {
      const double y = others[tx][j];
#pragma unroll
      for (int q = 0; q < kEach; ++q) {
        const double off = x[q] - y;
        const double slope = kKind == CostKind::euclidean ? off : off > 0 ? 1.0 : off < 0 ? -1.0 : 0.0;
        sum[q] += weight[ty + kApart * q][j] * slope;
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kEach; ++q) {
    const std::int64_t i = i0 + ty + kApart * q;
    if (i < s.n && at < s.d) out[i * s.d + at] = sum[q];
  }
}

// ---- launches ------------------------------------------------------------------------------------------------------

constexpr double kBits = 1.4426950408889634074;  // log2(e)

template <class T>
void check(const Cost<T>& cost) {
  if (cost.kind == CostKind::stored) return;
  QUADRIC_REQUIRE(cost.x.cols == cost.y.cols, "y must have points of as many coordinates as x");
}

// f(kind) with the kind of a cost as a constant.
template <CostKind kKind>
struct Kind {
  static constexpr CostKind value = kKind;
};
template <class F>
void by_kind(CostKind kind, const F& f) {
  switch (kind) {
    case CostKind::stored:
      return f(Kind<CostKind::stored>());
    case CostKind::sqeuclidean:
      return f(Kind<CostKind::sqeuclidean>());
    case CostKind::euclidean:
      return f(Kind<CostKind::euclidean>());
    case CostKind::cityblock:
      return f(Kind<CostKind::cityblock>());
    case CostKind::cosine:
      return f(Kind<CostKind::cosine>());
  }
}

std::int64_t distance(std::int64_t stride) { return stride < 0 ? -stride : stride; }
template <class T>
bool by_columns(const Source<T>& s, CostKind kind) {
  return kind == CostKind::stored && s.n > 1 && s.m > 1 && distance(s.row_stride) < distance(s.col_stride);
}

// Rows [first, first + count) of P.
template <class T, class Out>
void write_rows(const Execution& exec, CostKind kind, Source<T> s, const double* f, const double* g, double kappa,
                std::int64_t first, std::int64_t count, MatrixView<Out> out) {
  const bool turn = by_columns(s, kind);
  const std::int64_t tile = turn ? 32 : kTile, across = (s.m + tile - 1) / tile;
  QUADRIC_REQUIRE(across <= kBlocks, "the cost must have fewer than 2^35 columns");
  const std::int64_t most = kBlocks / across * tile;  // rows of a launch
  if (kind == CostKind::stored) {
    s.M += first * s.row_stride;
  } else {
    s.x += first * s.x_row;
  }
  f += first;
  while (count > 0) {
    s.n = std::min(count, most);
    const auto blocks = static_cast<unsigned>((s.n + tile - 1) / tile * across);
    if (turn) {
      plan_of_columns_kernel<<<blocks, kThreads, 0, stream(exec)>>>(s, f, g, kappa, across, out);
    } else {
      by_kind(kind, [&](auto k) {
        constexpr CostKind kKind = decltype(k)::value;
        plan_kernel<kKind><<<blocks, kThreads, 0, stream(exec)>>>(s, f, g, kappa, across, out);
      });
    }
    QUADRIC_CUDA_LAUNCHED();
    if (kind == CostKind::stored) {
      s.M += s.n * s.row_stride;
    } else {
      s.x += s.n * s.x_row;
    }
    f += s.n;
    out.data += s.n * out.row_stride;
    count -= s.n;
  }
}

template <class T>
void sums(const Execution& exec, Scratch& scratch, std::int64_t problems, CostKind kind, const Source<T>& s,
          const Strides& strides, const double* f, const double* g, double kappa, double* rows, double* columns,
          double* totals) {
  const std::int64_t tiles = (s.n + kTile - 1) / kTile, widths = (s.m + kWidth - 1) / kWidth;
  Parts parts;
  parts.slots = std::min(tiles, kSlots);
  parts.chunks = std::min(widths, kChunks);
  parts.rows = scratch.get<double>(problems * parts.chunks * s.n);
  parts.columns = scratch.get<double>(problems * parts.slots * s.m);
  parts.totals = scratch.get<double>(problems * parts.slots * parts.chunks);
  const std::int64_t each = parts.slots * parts.chunks, together = kBlocks / each;
  for (std::int64_t first = 0; first < problems; first += together) {
    const auto blocks = static_cast<unsigned>(std::min(together, problems - first) * each);
    by_kind(kind, [&](auto k) {
      constexpr CostKind kKind = decltype(k)::value;
      sums_kernel<kKind><<<blocks, kThreads, 0, stream(exec)>>>(s, strides, first, f, g, kappa, parts);
    });
    QUADRIC_CUDA_LAUNCHED();
  }
  const std::int64_t entries = problems * (s.n + s.m + 1);
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>((entries + kThreads - 1) / kThreads, 1 << 20));
  finish_kernel<<<blocks, kThreads, 0, stream(exec)>>>(parts, problems, s.n, s.m, rows, columns, totals);
  QUADRIC_CUDA_LAUNCHED();
}

void zero(const Execution& exec, double* x, std::int64_t count) {
  if (count > 0) QUADRIC_CUDA(cudaMemsetAsync(x, 0, static_cast<std::size_t>(count) * sizeof(double), stream(exec)));
}

}  // namespace

template <class T>
void plan(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg, MatrixView<T> out) {
  check(cost);
  QUADRIC_REQUIRE(reg > 0, "reg must be positive");
  QUADRIC_REQUIRE(out.rows == cost.rows() && out.cols == cost.cols(), "out must have the shape of the cost");
  if (out.empty()) return;
  write_rows(exec, cost.kind, source_of(cost), f, g, kBits / reg, 0, out.rows, out);
}

template <class T>
void apply_plans(const Execution& exec, std::int64_t problems, const Costs<T>& cost, const double* f, const double* g,
                 double reg, double* rows, double* columns, double* transported) {
  QUADRIC_REQUIRE(reg > 0, "reg must be positive");
  if (problems == 0) return;
  check(cost.first);
  const CostKind kind = cost.first.kind;
  const Source<T> s = source_of(cost.first);
  if (s.n == 0 || s.m == 0) {
    zero(exec, rows, problems * s.n);
    zero(exec, columns, problems * s.m);
    return zero(exec, transported, problems);
  }
  Scratch scratch(exec);
  const double kappa = kBits / reg;
  const Strides strides{cost.M_stride, cost.x_stride, cost.y_stride};
  if (by_columns(s, kind)) {  // P^T, so that reads go along memory
    sums(exec, scratch, problems, kind, transposed(s), Strides{strides.M, strides.y, strides.x}, g, f, kappa, columns,
         rows, transported);
  } else {
    sums(exec, scratch, problems, kind, s, strides, f, g, kappa, rows, columns, transported);
  }
}

template <class T>
void apply_plan(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg,
                MatrixView<const double> V, double* out, double* rows, double* columns, double* transported) {
  check(cost);
  QUADRIC_REQUIRE(reg > 0, "reg must be positive");
  const std::int64_t n = cost.rows(), m = cost.cols(), k = V.cols;
  QUADRIC_REQUIRE(k == 0 || V.rows == m, "V must have a row for each column of the cost");
  apply_plans(exec, 1, Costs<T>{cost}, f, g, reg, rows, columns, transported);
  if (k == 0 || n == 0) return;
  if (m == 0) return zero(exec, out, n * k);
  QUADRIC_REQUIRE(std::max(m, k) < std::numeric_limits<int>::max(), "V must have fewer than 2^31 - 1 rows and columns");
  // P by parts of its rows, stored in float64, times V.
  Scratch scratch(exec);
  const std::int64_t step = std::min(n, std::max<std::int64_t>(kSlab / m, 1));
  double* const slab = scratch.get<double>(step * m);
  const cublasHandle_t handle = blas(exec, scratch);
  const double one = 1, none = 0;
  for (std::int64_t first = 0; first < n; first += step) {
    const std::int64_t count = std::min(step, n - first);
    write_rows(exec, cost.kind, source_of(cost), f, g, kBits / reg, first, count, MatrixView<double>(slab, count, m));
    QUADRIC_CUDA(cublasDgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, static_cast<int>(k), static_cast<int>(count),
                             static_cast<int>(m), &one, V.data, static_cast<int>(k), slab, static_cast<int>(m), &none,
                             out + first * k, static_cast<int>(k)));
  }
}

template <class T>
void point_gradient(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg,
                    double* out) {
  check(cost);
  QUADRIC_REQUIRE(reg > 0, "reg must be positive");
  QUADRIC_REQUIRE(cost.kind == CostKind::euclidean || cost.kind == CostKind::cityblock,
                  "cost must be euclidean or cityblock");
  const Source<T> s = source_of(cost);
  if (s.n == 0 || s.d == 0) return;
  if (s.m == 0) return zero(exec, out, s.n * s.d);
  const std::int64_t tiles = (s.n + kTile - 1) / kTile, blocks = tiles * ((s.d + kOut - 1) / kOut);
  QUADRIC_REQUIRE(blocks <= kBlocks, "x must have fewer than 2^30 parts of 64 points and 16 coordinates");
  const double kappa = kBits / reg;
  if (cost.kind == CostKind::euclidean) {
    gradient_kernel<CostKind::euclidean>
        <<<static_cast<unsigned>(blocks), kThreads, 0, stream(exec)>>>(s, f, g, kappa, tiles, out);
  } else {
    gradient_kernel<CostKind::cityblock>
        <<<static_cast<unsigned>(blocks), kThreads, 0, stream(exec)>>>(s, f, g, kappa, tiles, out);
  }
  QUADRIC_CUDA_LAUNCHED();
}

#define QUADRIC_INSTANTIATE(T)                                                                                         \
  template QUADRIC_API void plan(const Execution&, const Cost<T>&, const double*, const double*, double,               \
                                 MatrixView<T>);                                                                       \
  template QUADRIC_API void apply_plans(const Execution&, std::int64_t, const Costs<T>&, const double*, const double*, \
                                        double, double*, double*, double*);                                            \
  template QUADRIC_API void apply_plan(const Execution&, const Cost<T>&, const double*, const double*, double,         \
                                       MatrixView<const double>, double*, double*, double*, double*);                  \
  template QUADRIC_API void point_gradient(const Execution&, const Cost<T>&, const double*, const double*, double,     \
                                           double*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::transport
