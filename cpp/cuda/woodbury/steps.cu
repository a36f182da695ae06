// What the updates of Kronecker factors need beside the passes over the factors, so that the host need not look.
//
// inverse_steps: one block of threads for each factor. Floor for k = 1: U, V and the diagonal of J are read and Y is
// written, 5 n numbers, less than a launch takes: 5 us, of which the reads, all on the way at once, and two sums over
// the block are 3. With k = 27 and n = 4096, 2 k^2 n products in float64 on one multiprocessor, 0.1 ms. blend and
// scale_to_norm: one read and one write at 4.2 TB/s.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "device.hpp"
#include "early.cuh"
#include "quadric/cuda/woodbury.hpp"
#include "require.hpp"

namespace quadric::cuda::woodbury {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kFactors = 32;   // to a launch: their pointers are arguments of the kernel
constexpr int kLargest = 256;  // steps
constexpr int kTile = 4;       // rows of U and V that a warp multiplies with each other

enum Trouble : std::int32_t { kFine, kNotFinite, kBadPivot, kBadDiagonal, kTooLarge };

template <class T>
struct Factors {
  const T* J[kFactors];
  const T* V[kFactors];
  const T* U[kFactors];
  T* Y[kFactors];
  double* work[kFactors];  // 4 k^2 numbers, or null: they are in shared memory
  std::int64_t n[kFactors];
  int k[kFactors];
};

// What a launch writes of its factors.
struct Results {
  double *alpha, *delta, *sign;
  std::int32_t* status;
  double *report, *norms;

  __device__ void write(int f, Trouble trouble, const StepRule& rule, double a, double b, double first,
                        double second) const {
    alpha[f] = trouble == kFine ? a : 1;
    delta[f] = trouble == kFine ? b : 0;
    sign[f] = rule.sign;
    status[f] = trouble;
    report[2 * f] = first;
    report[2 * f + 1] = second;
    norms[f] = 0;
  }
};

__device__ double warp_sum(double x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// The sum of x[l] over the lanes for lane l: half of the numbers go to the other half of the lanes, five times.
template <int kHalf = 16>
__device__ __forceinline__ double sum_for_lane(double (&x)[32]) {
  const bool upper = (threadIdx.x & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i)
    x[i] = (upper ? x[i + kHalf] : x[i]) + __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + kHalf], kHalf);
  if constexpr (kHalf > 1) return sum_for_lane<kHalf / 2>(x);
  return x[0];
}

// The smallest of some numbers, the first of them where there are several; NaN is smaller than all others.
struct Least {
  double value = INFINITY;
  std::int64_t at = std::numeric_limits<std::int64_t>::max();

  __device__ void take(double other, std::int64_t where) {
    const double mine = isnan(value) ? -INFINITY : value, theirs = isnan(other) ? -INFINITY : other;
    if (theirs < mine || (theirs == mine && where < at)) value = other, at = where;
  }
};

__device__ void warp_extremes(Least& least, double& most) {
  for (int step = 16; step > 0; step /= 2) {
    const double value = __shfl_xor_sync(0xffffffffu, least.value, step);
    const std::int64_t at = __shfl_xor_sync(0xffffffffu, least.at, step);
    least.take(value, at);
    most = fmax(most, __shfl_xor_sync(0xffffffffu, most, step));
  }
}

// St(t, i) = S(i, t) for S = U V^T, and Nt likewise for N = V V^T, where i <= t or both are in one tile. Each warp
// makes a tile, or, where there are fewer tiles than warps, the share of some columns, which are then added up in
// order.
template <class T>
__device__ void products(const T* U, const T* V, int k, std::int64_t n, double* St, double* Nt,
                         double (*shares)[2 * kTile * kTile]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int side = (k + kTile - 1) / kTile, tiles = side * side;
  const int parts = tiles >= kWarps ? 1 : kWarps / tiles;
  const std::int64_t width = ((n + parts - 1) / parts + 31) / 32 * 32;
  for (int item = warp; item < tiles * parts; item += kWarps) {
    const int tile = item / parts, part = item % parts;
    const int i0 = tile % side * kTile, t0 = tile / side * kTile;
    if (i0 > t0) continue;
    double sums[2 * kTile * kTile] = {};  // of S and of N
    const std::int64_t end = n < (part + 1) * width ? n : (part + 1) * width;
    for (std::int64_t c = part * width + lane; c < end; c += 32) {
      double u[kTile], v[kTile], w[kTile];
#pragma unroll
      for (int x = 0; x < kTile; ++x) {
        u[x] = i0 + x < k ? static_cast<double>(U[(i0 + x) * n + c]) : 0.0;
        v[x] = i0 + x < k ? static_cast<double>(V[(i0 + x) * n + c]) : 0.0;
        w[x] = t0 + x < k ? static_cast<double>(V[(t0 + x) * n + c]) : 0.0;
      }
#pragma unroll
      for (int x = 0; x < kTile; ++x)
#pragma unroll
        for (int y = 0; y < kTile; ++y) {
          double &s = sums[x * kTile + y], &m = sums[kTile * kTile + x * kTile + y];
          s = fma(u[x], w[y], s);
          m = fma(v[x], w[y], m);
        }
    }
    const double total = sum_for_lane(sums);
    const int inside = lane % (kTile * kTile), i = i0 + inside / kTile, t = t0 + inside % kTile;
    if (parts > 1)  // then every warp has one item at most, its own
      shares[warp][lane] = total;
    else if (i < k && t < k)
      (lane < kTile * kTile ? St : Nt)[t * k + i] = total;
  }
  __syncthreads();
  if (parts == 1) return;
  for (int entry = threadIdx.x; entry < tiles * kTile * kTile; entry += kThreads) {
    const int tile = entry / (kTile * kTile), inside = entry % (kTile * kTile);
    const int i0 = tile % side * kTile, t0 = tile / side * kTile;
    const int i = i0 + inside / kTile, t = t0 + inside % kTile;
    if (i0 > t0 || i >= k || t >= k) continue;
    double a = 0, b = 0;
    for (int part = 0; part < parts; ++part) {
      a += shares[tile * parts + part][inside];
      b += shares[tile * parts + part][kTile * kTile + inside];
    }
    St[t * k + i] = a;
    Nt[t * k + i] = b;
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    steps_kernel(const __grid_constant__ Factors<T> factors, StepRule rule, Results results) {
  extern __shared__ double matrices[];
  __shared__ double power[kLargest + 1], past[kLargest];
  __shared__ double shares[kWarps][2 * kTile * kTile];
  __shared__ double sums[kWarps], largest[kWarps];
  __shared__ double least[kWarps];
  __shared__ std::int64_t least_at[kWarps];

  const int f = blockIdx.x, k = factors.k[f], thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const std::int64_t n = factors.n[f];
  const T *J = factors.J[f], *V = factors.V[f], *U = factors.U[f];
  T* const Y = factors.Y[f];
  double* const St = factors.work[f] != nullptr ? factors.work[f] : matrices;
  double *const Nt = St + k * k, *const R = Nt + k * k, *const Q = R + k * k;

  for (int i = thread; i < k * k; i += kThreads) R[i] = Q[i] = 0;
  for (int i = thread; i <= k; i += kThreads) power[i] = pow(rule.a, i);
  products(U, V, k, n, St, Nt, shares);

  int bad = 0;
  for (int entry = thread; entry < k * k; entry += kThreads)
    if (entry % k <= entry / k && !isfinite(St[entry])) bad = 1;
  Trouble trouble = __syncthreads_or(bad) != 0 ? kNotFinite : kFine;
  double first = 0, second = 0;
  const auto identity = [&](int t) { return rule.b * (1 - power[t]) / (1 - rule.a); };

  // Y = R U + Q V, row by row: J_t v_t for J_t = a^t J + b_t I + sign sum_s a^(t-1-s) y_s y_s^T. All threads see the
  // same pivots and leave together.
  for (int t = 0; t < k && trouble == kFine; ++t) {
    const double *const s_t = St + t * k, *const n_t = Nt + t * k;
    for (int s = warp; s < t; s += kWarps) {
      double c = 0;
      for (int i = lane; i <= s; i += 32) c += R[s * k + i] * s_t[i] + Q[s * k + i] * n_t[i];
      c = warp_sum(c);
      if (lane == 0) past[s] = rule.sign * power[t - 1 - s] * c;
    }
    __syncthreads();
    double r = 0, q = 0, product = 0;
    if (thread <= t) {  // t < kLargest <= kThreads
      for (int s = thread; s < t; ++s) {
        r += past[s] * R[s * k + thread];
        q += past[s] * Q[s * k + thread];
      }
      if (thread == t) {
        r += power[t];
        q += identity(t);
      }
      if (rule.blended) {
        r *= rule.a;
        q *= rule.a;
        if (thread == t) q += rule.b;
      }
      product = r * s_t[thread] + q * n_t[thread];
    }
    product = warp_sum(product);
    if (lane == 0) sums[warp] = product;
    __syncthreads();
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += sums[w];
    const double pivot = rule.base + rule.slope * total;
    if (!(s_t[t] >= 0 && pivot > 0 && pivot < INFINITY)) {
      trouble = kBadPivot;
      first = s_t[t];
      second = pivot;
    } else if (thread <= t) {
      const double factor = sqrt(rule.weight / pivot);
      R[t * k + thread] = factor * r;
      Q[t * k + thread] = factor * q;
    }
    __syncthreads();
  }

  if (trouble == kFine) {
    Least mine;
    double most = -INFINITY;
    for (std::int64_t c = thread; c < n; c += kThreads) {
      double squares = 0;
      for (int t0 = 0; t0 < k; t0 += kTile) {
        double y[kTile] = {};
        const int end = min(t0 + kTile, k);
        for (int i = 0; i < end; ++i) {
          const auto u = static_cast<double>(U[i * n + c]), v = static_cast<double>(V[i * n + c]);
#pragma unroll
          for (int x = 0; x < kTile; ++x)
            if (t0 + x < end) y[x] += R[(t0 + x) * k + i] * u + Q[(t0 + x) * k + i] * v;
        }
#pragma unroll
        for (int x = 0; x < kTile; ++x) {
          if (t0 + x >= end) break;
          y[x] *= sqrt(power[k - 1 - t0 - x]);
          squares += y[x] * y[x];
          Y[(t0 + x) * n + c] = static_cast<T>(y[x]);
        }
      }
      const double entry = power[k] * static_cast<double>(J[c * n + c]) + identity(k) + rule.sign * squares;
      mine.take(entry, c);
      most = fmax(most, entry);
    }
    warp_extremes(mine, most);
    if (lane == 0) {
      least[warp] = mine.value;
      least_at[warp] = mine.at;
      largest[warp] = most;
    }
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      mine.take(least[w], least_at[w]);
      most = fmax(most, largest[w]);
    }
    if (!(mine.value > 0)) {
      trouble = kBadDiagonal;
      first = static_cast<double>(mine.at);
      second = mine.value;
    } else if (!(most < static_cast<double>(std::numeric_limits<T>::max()))) {
      trouble = kTooLarge;
    }
  }

  if (trouble != kFine)
    for (std::int64_t i = thread; i < k * n; i += kThreads) Y[i] = T(0);
  if (thread == 0) results.write(f, trouble, rule, power[k], identity(k), first, second);
}

// One vector for each factor. A thread keeps its entries of U, V and the diagonal, as far as there is room.
constexpr int kOneThreads = 1024, kOneWarps = kOneThreads / 32;

// Sums and extremes over the block, the same in all threads.
__device__ void block_sums(double& a, double& b) {
  __shared__ double of_warp[2][kOneWarps];
  a = warp_sum(a);
  b = warp_sum(b);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) of_warp[0][warp] = a, of_warp[1][warp] = b;
  __syncthreads();
  a = warp_sum(of_warp[0][lane]);
  b = warp_sum(of_warp[1][lane]);
}

__device__ void block_extremes(Least& least, double& most) {
  __shared__ double values[kOneWarps], largest[kOneWarps];
  __shared__ std::int64_t places[kOneWarps];
  warp_extremes(least, most);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) values[warp] = least.value, places[warp] = least.at, largest[warp] = most;
  __syncthreads();
  least.value = values[lane];
  least.at = places[lane];
  most = largest[lane];
  warp_extremes(least, most);
}

template <class T>
__global__ void __launch_bounds__(kOneThreads)
    one_step_kernel(const __grid_constant__ Factors<T> factors, StepRule rule, Results results) {
  constexpr int kKept = 32 / sizeof(T);
  constexpr std::int64_t kAtOnce = kKept * kOneThreads;
  const int f = blockIdx.x, thread = threadIdx.x;
  const std::int64_t n = factors.n[f];
  const T *J = factors.J[f], *V = factors.V[f], *U = factors.U[f];
  T* const Y = factors.Y[f];

  wait_for_earlier_kernels();
  let_next_kernel_begin();  // only now, when all before has ended: the update at once reads what is not written here
  T u[kKept] = {}, v[kKept] = {}, diagonal[kKept] = {};
  const auto read = [&](std::int64_t start, bool with_diagonal) {
#pragma unroll
    for (int x = 0; x < kKept; ++x) {
      const std::int64_t c = start + x * kOneThreads + thread;
      if (c >= n) break;
      u[x] = U[c];
      v[x] = V[c];
      if (with_diagonal) diagonal[x] = J[c * (n + 1)];
    }
  };
  double s = 0, m = 0;  // U V^T and V V^T
  for (std::int64_t start = (n - 1) / kAtOnce * kAtOnce; start >= 0; start -= kAtOnce) {
    read(start, start == 0);
#pragma unroll
    for (int x = 0; x < kKept; ++x) {
      if (start + x * kOneThreads + thread >= n) break;
      s = fma(static_cast<double>(u[x]), static_cast<double>(v[x]), s);
      m = fma(static_cast<double>(v[x]), static_cast<double>(v[x]), m);
    }
  }
  block_sums(s, m);

  Trouble trouble = isfinite(s) ? kFine : kNotFinite;
  double first = 0, second = 0, r = 1, q = 0;
  const double identity = rule.b * (1 - rule.a) / (1 - rule.a);
  if (rule.blended) {
    r = rule.a;
    q = rule.b;
  }
  const double pivot = rule.base + rule.slope * (r * s + q * m);
  if (trouble == kFine && !(s >= 0 && pivot > 0 && pivot < INFINITY)) {
    trouble = kBadPivot;
    first = s;
    second = pivot;
  }
  if (trouble == kFine) {
    const double factor = sqrt(rule.weight / pivot);
    r *= factor;
    q *= factor;
    Least least;
    double most = -INFINITY;
    for (std::int64_t start = 0; start < n; start += kAtOnce) {
      if (start > 0) read(start, true);
#pragma unroll
      for (int x = 0; x < kKept; ++x) {
        const std::int64_t c = start + x * kOneThreads + thread;
        if (c >= n) break;
        const double y = r * static_cast<double>(u[x]) + q * static_cast<double>(v[x]);
        Y[c] = static_cast<T>(y);
        const double entry = rule.a * static_cast<double>(diagonal[x]) + identity + rule.sign * (y * y);
        least.take(entry, c);
        most = fmax(most, entry);
      }
    }
    block_extremes(least, most);
    if (!(least.value > 0)) {
      trouble = kBadDiagonal;
      first = static_cast<double>(least.at);
      second = least.value;
    } else if (!(most < static_cast<double>(std::numeric_limits<T>::max()))) {
      trouble = kTooLarge;
    }
  }
  if (trouble != kFine)
    for (std::int64_t c = thread; c < n; c += kOneThreads) Y[c] = T(0);
  if (thread == 0) results.write(f, trouble, rule, rule.a, identity, first, second);
}

template <class T>
struct Squares {
  T* J[kFactors];
  std::int64_t n[kFactors];
};

// Mostly there is nothing to do. So the blocks are few, and each thread has several reads on the way where there is.
constexpr unsigned kBlendBlocks = 264;
constexpr int kBlendReads = 8;

template <class T>
__global__ void __launch_bounds__(kThreads)
    blend_kernel(const __grid_constant__ Squares<T> factors, const double* norms, double bound, T share, T rest) {
  const int f = blockIdx.y;
  wait_for_earlier_kernels();
  if (!(norms[f] > bound)) return;
  const std::int64_t n = factors.n[f], size = n * n, step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  T* const J = factors.J[f];
  for (std::int64_t start = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; start < size;
       start += kBlendReads * step) {
    T entries[kBlendReads];
#pragma unroll
    for (int x = 0; x < kBlendReads; ++x)
      if (start + x * step < size) entries[x] = J[start + x * step];
#pragma unroll
    for (int x = 0; x < kBlendReads; ++x) {
      const std::int64_t at = start + x * step;
      if (at >= size) break;
      const T blended = entries[x] * share;
      J[at] = at % (n + 1) == 0 ? blended + rest : blended;
    }
  }
}

// Sum of squares that neither overflows nor underflows: what is far from 1 is scaled, in a sum of its own.
struct SumOfSquares {
  double large = 0;  // of numbers above 2^500, divided by 2^600
  double usual = 0;
  double small = 0;  // of numbers below 2^-500, multiplied by 2^600

  __device__ void add(float x) { usual += static_cast<double>(x) * x; }
  __device__ void add(double x) {
    const double size = fabs(x);
    if (size > 0x1p500) {
      const double y = x * 0x1p-600;
      large += y * y;
    } else if (size < 0x1p-500) {
      const double y = x * 0x1p600;
      small += y * y;
    } else {  // NaN too
      usual += x * x;
    }
  }
  __device__ void add(const SumOfSquares& other) {
    large += other.large;
    usual += other.usual;
    small += other.small;
  }
  __device__ double root() const {
    if (large > 0) return sqrt(large + usual * 0x1p-600 * 0x1p-600) * 0x1p600;
    if (usual == 0) return sqrt(small) * 0x1p-600;
    return sqrt(usual + small * 0x1p-600 * 0x1p-600);
  }
};

constexpr int kNormThreads = 256;
constexpr int kMostParts = 1024;

// The sum over a block of threads.
__device__ SumOfSquares block_sum(SumOfSquares sum) {
  __shared__ double all[kNormThreads / 32][3];
  sum.large = warp_sum(sum.large);
  sum.usual = warp_sum(sum.usual);
  sum.small = warp_sum(sum.small);
  if (threadIdx.x % 32 == 0) {
    all[threadIdx.x / 32][0] = sum.large;
    all[threadIdx.x / 32][1] = sum.usual;
    all[threadIdx.x / 32][2] = sum.small;
  }
  __syncthreads();
  SumOfSquares total;
  for (const auto& part : all) {
    total.large += part[0];
    total.usual += part[1];
    total.small += part[2];
  }
  return total;
}

// Of grad (y = 0) and of the product (y = 1).
template <class T>
__global__ void __launch_bounds__(kNormThreads)
    squares_kernel(const T* grad, const T* product, std::int64_t size, SumOfSquares* parts) {
  const T* const x = blockIdx.y == 0 ? grad : product;
  SumOfSquares sum;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kNormThreads;
  for (std::int64_t at = blockIdx.x * static_cast<std::int64_t>(kNormThreads) + threadIdx.x; at < size; at += step)
    sum.add(x[at]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kNormThreads) norms_kernel(const SumOfSquares* parts, int count, double* norms) {
  SumOfSquares sum;
  for (int i = threadIdx.x; i < count; i += kNormThreads) sum.add(parts[blockIdx.x * count + i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) norms[blockIdx.x] = sum.root();
}

constexpr int kSide = 32, kLines = 8;

template <class T>
__global__ void __launch_bounds__(kSide* kLines)
    scale_kernel(const T* product, std::int64_t n, std::int64_t m, bool rescale, const double* norms, T* out) {
  __shared__ T tile[kSide][kSide + 1];
  const T scale = static_cast<T>(rescale && norms[1] > 0 ? norms[0] / norms[1] : 1.0);
  const std::int64_t tiles = (m + kSide - 1) / kSide;  // along a row of the product
  const std::int64_t r0 = blockIdx.x / tiles * kSide, c0 = blockIdx.x % tiles * kSide;
  const int x = threadIdx.x % kSide, line = threadIdx.x / kSide;
  for (int y = line; y < kSide; y += kLines)
    if (r0 + y < n && c0 + x < m) tile[y][x] = product[(r0 + y) * m + c0 + x];
  __syncthreads();
  for (int y = line; y < kSide; y += kLines)
    if (c0 + y < m && r0 + x < n) out[(c0 + y) * n + r0 + x] = tile[x][y] * scale;
}

// A warp for each block of weights.
template <class T>
__global__ void __launch_bounds__(kNormThreads) lost_block_kernel(const T* w, const bool* mask, std::int64_t d,
                                                                  std::int64_t block_size, unsigned long long* first) {
  const std::int64_t blocks = (d + block_size - 1) / block_size, lane = threadIdx.x % 32;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * (kNormThreads / 32);
  for (std::int64_t b = blockIdx.x * static_cast<std::int64_t>(kNormThreads / 32) + threadIdx.x / 32; b < blocks;
       b += step) {
    const std::int64_t end = d < (b + 1) * block_size ? d : (b + 1) * block_size;
    bool kept = false, there = false;
    for (std::int64_t i = b * block_size + lane; i < end; i += 32) {
      kept = kept || mask[i];
      there = there || w[i] != T(0);
    }
    kept = __any_sync(0xffffffffu, kept);
    there = __any_sync(0xffffffffu, there);
    if (!kept && there && lane == 0) atomicMin(first, static_cast<unsigned long long>(b));  // integers: any order
  }
}

template <class T>
void require_contiguous(const MatrixView<T>& a, std::int64_t rows, std::int64_t cols, const char* message) {
  QUADRIC_REQUIRE(
      a.rows == rows && a.cols == cols && (cols <= 1 || a.col_stride == 1) && (rows <= 1 || a.row_stride == cols),
      message);
}

}  // namespace

template <class T>
void inverse_steps(const Execution& exec, std::int64_t count, const MatrixView<const T>* J,
                   const MatrixView<const T>* V, const MatrixView<const T>* U, const MatrixView<T>* Y,
                   const StepRule& rule, double* alpha, double* delta, double* sign, std::int32_t* status,
                   double* report, double* norms) {
  QUADRIC_REQUIRE(rule.a > 0 && rule.a != 1, "a must be above 0 and not 1");
  Scratch scratch(exec);
  const std::int64_t room = shared_limit() - 16 * 1024;  // the rest is what the kernel has of fixed size
  for (std::int64_t start = 0; start < count; start += kFactors) {
    const auto here = static_cast<int>(std::min<std::int64_t>(kFactors, count - start));
    Factors<T> factors = {};
    std::int64_t shared = 0;
    bool one = true;  // vector for each factor
    for (int f = 0; f < here; ++f) {
      const std::int64_t i = start + f, n = J[i].rows, k = V[i].rows;
      QUADRIC_REQUIRE(k >= 1 && k <= kLargest && n >= 1, "V must have 1 to 256 rows");
      require_contiguous(J[i], n, n, "J must be square and contiguous");
      require_contiguous(V[i], k, n, "V must be k x n and contiguous");
      require_contiguous(U[i], k, n, "U must be k x n and contiguous");
      require_contiguous(Y[i], k, n, "Y must be k x n and contiguous");
      const std::int64_t bytes = 4 * k * k * static_cast<std::int64_t>(sizeof(double));
      factors.J[f] = J[i].data;
      factors.V[f] = V[i].data;
      factors.U[f] = U[i].data;
      factors.Y[f] = Y[i].data;
      factors.n[f] = n;
      factors.k[f] = static_cast<int>(k);
      one = one && k == 1;
      if (bytes <= room)
        shared = std::max(shared, bytes);
      else
        factors.work[f] = scratch.get<double>(4 * k * k);
    }
    const Results results{alpha + start,  delta + start,      sign + start,
                          status + start, report + 2 * start, norms + start};
    if (one) {
      launch_early(exec, one_step_kernel<T>, static_cast<unsigned>(here), kOneThreads, 0, 1, factors, rule, results);
      continue;
    }
    if (shared > 32 * 1024)
      QUADRIC_CUDA(
          cudaFuncSetAttribute(steps_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    steps_kernel<T><<<static_cast<unsigned>(here), kThreads, static_cast<std::size_t>(shared), stream(exec)>>>(
        factors, rule, results);
    QUADRIC_CUDA_LAUNCHED();
  }
}

template <class T>
void blend(const Execution& exec, std::int64_t count, const MatrixView<T>* J, const double* norms, double bound,
           double share) {
  for (std::int64_t start = 0; start < count; start += kFactors) {
    const auto here = static_cast<int>(std::min<std::int64_t>(kFactors, count - start));
    Squares<T> factors = {};
    std::int64_t largest = 1;
    for (int f = 0; f < here; ++f) {
      const MatrixView<T>& j = J[start + f];
      require_contiguous(j, j.rows, j.rows, "J must be square and contiguous");
      factors.J[f] = j.data;
      factors.n[f] = j.rows;
      largest = std::max(largest, j.rows * j.rows);
    }
    const auto blocks =
        static_cast<unsigned>(std::min<std::int64_t>((largest + kThreads - 1) / kThreads, kBlendBlocks));
    launch_early(exec, blend_kernel<T>, dim3(blocks, static_cast<unsigned>(here)), kThreads, 0, 1, factors,
                 norms + start, bound, static_cast<T>(share), static_cast<T>(1 - share));
  }
}

template <class T>
void scale_to_norm(const Execution& exec, MatrixView<const T> product, MatrixView<const T> grad, bool rescale,
                   MatrixView<T> out, double* norms) {
  const std::int64_t n = product.rows, m = product.cols, size = n * m;
  require_contiguous(product, n, m, "the product must be contiguous");
  require_contiguous(grad, m, n, "grad must be the transpose of the product in shape, and contiguous");
  require_contiguous(out, m, n, "out must have the shape of grad, and be contiguous");
  Scratch scratch(exec);
  const auto parts = static_cast<unsigned>(std::clamp<std::int64_t>(size / (kNormThreads * 8), 1, kMostParts));
  auto* const sums = scratch.get<SumOfSquares>(2 * static_cast<std::int64_t>(parts));
  squares_kernel<T><<<dim3(parts, 2), kNormThreads, 0, stream(exec)>>>(grad.data, product.data, size, sums);
  QUADRIC_CUDA_LAUNCHED();
  norms_kernel<<<2, kNormThreads, 0, stream(exec)>>>(sums, static_cast<int>(parts), norms);
  QUADRIC_CUDA_LAUNCHED();
  if (size == 0) return;
  const std::int64_t tiles = ((n + kSide - 1) / kSide) * ((m + kSide - 1) / kSide);
  QUADRIC_REQUIRE(tiles <= std::numeric_limits<int>::max(), "the product is too large");
  scale_kernel<T>
      <<<static_cast<unsigned>(tiles), kSide * kLines, 0, stream(exec)>>>(product.data, n, m, rescale, norms, out.data);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void lost_block(const Execution& exec, const T* w, const bool* mask, std::int64_t d, std::int64_t block_size,
                std::int64_t* block) {
  QUADRIC_REQUIRE(block_size >= 1, "block_size must be at least 1");
  QUADRIC_CUDA(cudaMemsetAsync(block, 0xff, sizeof *block, stream(exec)));  // -1, and as unsigned the largest
  if (d == 0) return;
  const std::int64_t warps = (d + block_size - 1) / block_size, per_block = kNormThreads / 32;
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>((warps + per_block - 1) / per_block, 1 << 16));
  lost_block_kernel<T>
      <<<blocks, kNormThreads, 0, stream(exec)>>>(w, mask, d, block_size, reinterpret_cast<unsigned long long*>(block));
  QUADRIC_CUDA_LAUNCHED();
}

#define QUADRIC_INSTANTIATE(T)                                                                                 \
  template QUADRIC_API void inverse_steps(const Execution&, std::int64_t, const MatrixView<const T>*,          \
                                          const MatrixView<const T>*, const MatrixView<const T>*,              \
                                          const MatrixView<T>*, const StepRule&, double*, double*, double*,    \
                                          std::int32_t*, double*, double*);                                    \
  template QUADRIC_API void blend(const Execution&, std::int64_t, const MatrixView<T>*, const double*, double, \
                                  double);                                                                     \
  template QUADRIC_API void scale_to_norm(const Execution&, MatrixView<const T>, MatrixView<const T>, bool,    \
                                          MatrixView<T>, double*);                                             \
  template QUADRIC_API void lost_block(const Execution&, const T*, const bool*, std::int64_t, std::int64_t,    \
                                       std::int64_t*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::woodbury
