// The entries of a plan that count.
//
// Floor: one read of a stored cost, n m itemsize bytes at 4.2 TB/s (n = 10 000: 95 us in float32, 190 us in float64),
// or d subtractions and multiplications for each entry of points (n = 50 000, d = 64, float32: 3.2e11, 6 ms at 55
// TFLOP/s), and 12 bytes for each entry found. The first pass leaves a bit for each entry, 1/32 or 1/64 of the cost, by
// which the second one finds them without looking again; where the bits would take more than kMostBits bytes it looks
// again. A stored cost should take 1.3 floors, points 2.
#include <algorithm>
#include <cmath>

#include "quadric/cuda/transport.hpp"
#include "require.hpp"
#include "transport/sparse.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRows = 8;    // rows that a block looks at together
constexpr int kNear = 256;  // coordinates of theirs that shared memory has room for
constexpr std::int64_t kSample = 16;
constexpr std::int64_t kMostBits = std::int64_t{1} << 31;

// What is selected: t_ij + shift_i >= min(row_floor_i, floor_j) with t_ij = G_j - kappa C_ij, in bits and in T.
template <class T>
struct Selection {
  std::int64_t n, m, d, words;  // words: of 32 bits to a row
  T kappa;
  const T* M;
  std::int64_t M_row, M_column;
  const T* x;  // n x d
  std::int64_t x_row;
  const T* others;     // d x m: the other points, transposed
  const T* G;          // m
  const T* floor;      // m
  const T* shift;      // n
  const T* row_floor;  // n
};

// log2(masses) - bits, and potentials in bits.
template <class T>
__global__ void prepare_kernel(const double* potential, const double* mass, std::int64_t n, double kappa, double bits,
                               T* scaled, T* floor) {
  const std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  if (k >= n) return;
  scaled[k] = static_cast<T>(potential[k] * kappa);
  floor[k] = static_cast<T>(log2(mass[k]) - bits);
}

template <class T>
__global__ void transpose_kernel(const T* y, std::int64_t row, std::int64_t m, std::int64_t d, T* to) {
  const std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  if (k < m * d) to[k] = y[k % m * row + k / m];
}

template <class T>
__device__ T distance_term(CostKind kind, T sum, T u, T v) {
  if (kind == CostKind::cosine) return sum + u * v;
  const T difference = u - v;
  return kind == CostKind::cityblock ? sum + (difference < 0 ? -difference : difference)
                                     : sum + difference * difference;
}
template <class T>
__device__ T distance_of(CostKind kind, T sum) {
  return kind == CostKind::cosine ? 1 - sum : kind == CostKind::euclidean ? sqrt(sum) : sum;
}

// C_ij in double.
template <class T, CostKind kKind>
__device__ double entry(const Selection<T>& s, std::int64_t i, std::int64_t j) {
  if constexpr (kKind == CostKind::stored) return static_cast<double>(s.M[i * s.M_row + j * s.M_column]);
  double sum = 0;
  for (std::int64_t k = 0; k < s.d; ++k)
    sum = distance_term(kKind, sum, static_cast<double>(s.x[i * s.x_row + k]),
                        static_cast<double>(s.others[k * s.m + j]));
  return distance_of(kKind, sum);
}

// The first `count` of kCount rows from `first` on, and what of them is kept at hand.
template <class T, int kCount>
struct Rows {
  std::int64_t first;
  int count;
  T shift[kCount], floor[kCount];
  const T* points;  // in shared memory, coordinate k of row r at k kCount + r; or null

  __device__ Rows(const Selection<T>& s, std::int64_t first_)
      : first(first_), count(s.n - first < kCount ? static_cast<int>(s.n - first) : kCount), points(nullptr) {
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      shift[r] = r < count ? s.shift[first + r] : T(0);
      floor[r] = r < count ? s.row_floor[first + r] : T(0);
    }
  }
};

// Which of the rows select column j: bit r for row r.
template <class T, CostKind kKind, bool kShared, int kCount>
__device__ unsigned select(const Selection<T>& s, const Rows<T, kCount>& rows, std::int64_t j) {
  T cost[kCount];
  if constexpr (kKind == CostKind::stored) {
    const T* const M = s.M + rows.first * s.M_row + j * s.M_column;
#pragma unroll
    for (int r = 0; r < kCount; ++r) cost[r] = r < rows.count ? M[r * s.M_row] : T(0);
  } else {
#pragma unroll
    for (int r = 0; r < kCount; ++r) cost[r] = 0;
#pragma unroll 4
    for (std::int64_t k = 0; k < s.d; ++k) {
      const T other = s.others[k * s.m + j];
#pragma unroll
      for (int r = 0; r < kCount; ++r) {
        // Rows beyond the last repeat it.
        const std::int64_t i = rows.first + (r < rows.count ? r : rows.count - 1);
        cost[r] = distance_term(kKind, cost[r], kShared ? rows.points[k * kCount + r] : s.x[i * s.x_row + k], other);
      }
    }
#pragma unroll
    for (int r = 0; r < kCount; ++r) cost[r] = distance_of(kKind, cost[r]);
  }
  const T G = s.G[j], floor = s.floor[j];
  unsigned selected = 0;
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    const T least = rows.floor[r] < floor ? rows.floor[r] : floor;
    if (r < rows.count && fma(-s.kappa, cost[r], G) + rows.shift[r] >= least) selected |= 1u << r;
  }
  return selected;
}

// A block looks at kCount rows, a warp at 32 columns of them at a time: how many are selected, and which. kCount = 1
// is for the sample. With `excess`, nothing is done if that is not zero.
template <class T, CostKind kKind, bool kShared, int kCount>
__global__ void __launch_bounds__(kThreads)
    count_kernel(Selection<T> s, std::int64_t* counts, unsigned* bits, const std::int32_t* excess) {
  constexpr int kRoom = kShared ? kNear * kCount : 1;
  __shared__ __align__(16) T near[kRoom];
  __shared__ int sums[kWarps][kCount];
  if (excess != nullptr && *excess != 0) return;
  const std::int64_t block = blockIdx.x;
  Rows<T, kCount> rows(s, kCount == 1 ? (2 * block + 1) * s.n / (2 * kSample) : block * kCount);
  if constexpr (kShared) {
    for (int at = threadIdx.x; at < s.d * kCount; at += kThreads) {
      const int r = at % kCount;
      near[at] = s.x[(rows.first + (r < rows.count ? r : rows.count - 1)) * s.x_row + at / kCount];
    }
    rows.points = near;
    __syncthreads();
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int count[kCount] = {};
  for (std::int64_t word = warp; word < s.words; word += kWarps) {
    const std::int64_t j = word * 32 + lane;
    const unsigned selected = j < s.m ? select<T, kKind, kShared>(s, rows, j) : 0u;
    unsigned mine = 0;  // lane r keeps the word of row r
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const unsigned of_row = __ballot_sync(kAllLanes, (selected >> r & 1u) != 0);
      count[r] += __popc(of_row);
      if (lane == r) mine = of_row;
    }
    if (bits != nullptr && lane < rows.count) bits[(rows.first + lane) * s.words + word] = mine;
  }
  if (lane == 0) {
#pragma unroll
    for (int r = 0; r < kCount; ++r) sums[warp][r] = count[r];
  }
  __syncthreads();
  const int r = threadIdx.x;
  if (r >= rows.count) return;
  std::int64_t total = 0;
  for (int w = 0; w < kWarps; ++w) total += sums[w][r];
  counts[block * kCount + r] = total;
}

// Whether a sample of rows promises more than twice the limit.
__global__ void excess_kernel(const std::int64_t* counts, std::int64_t n, std::int64_t limit, std::int32_t* excess) {
  std::int64_t count = 0;
  for (int s = 0; s < kSample; ++s) count += counts[s];
  // In double: the products of large problems are beyond 2^63.
  *excess = static_cast<double>(count) * static_cast<double>(n) > 2.0 * kSample * static_cast<double>(limit) ? 1 : 0;
}

__global__ void total_kernel(const std::int64_t* starts, std::int64_t n, const std::int32_t* excess,
                             std::int64_t* total) {
  *total = excess != nullptr && *excess != 0 ? -1 : starts[n];
}

// A warp for each row: 32 words of bits at a time, each lane one of them.
template <class T, CostKind kKind>
__global__ void __launch_bounds__(kThreads)
    fill_kernel(Selection<T> s, const unsigned* bits, const std::int64_t* starts, std::int32_t* columns,
                double* costs) {
  const std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kWarps) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (i >= s.n) return;
  std::int64_t to = starts[i];
  if (starts[i + 1] == to) return;
  const Rows<T, 1> row(s, i);
  for (std::int64_t first = 0; first < s.words; first += 32) {
    unsigned word = 0;
    if (bits != nullptr) {
      if (first + lane < s.words) word = bits[i * s.words + first + lane];
    } else {
      for (int w = 0; w < 32 && first + w < s.words; ++w) {
        const std::int64_t j = (first + w) * 32 + lane;
        const bool selected = j < s.m && select<T, kKind, false>(s, row, j) != 0;
        const unsigned all = __ballot_sync(kAllLanes, selected);
        if (lane == w) word = all;
      }
    }
    const int mine = __popc(word);
    int up_to = mine;  // selected columns of the lanes up to this one
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kAllLanes, up_to, step);
      if (lane >= step) up_to += other;
    }
    for (std::int64_t k = to + up_to - mine; word != 0; word &= word - 1, ++k) {
      const std::int64_t j = (first + lane) * 32 + __ffs(static_cast<int>(word)) - 1;
      columns[k] = static_cast<std::int32_t>(j);
      costs[k] = entry<T, kKind>(s, i, j);
    }
    to += __shfl_sync(kAllLanes, up_to, 31);
  }
}

template <class T, CostKind kKind, bool kShared>
bool run(const Execution& exec, Scratch& scratch, const Selection<T>& s, std::int64_t limit,
         const std::function<PatternMemory(std::int64_t)>& make) {
  const cudaStream_t on = stream(exec);
  std::int32_t* excess = nullptr;
  auto* const counts = scratch.get<std::int64_t>(s.n + 1);  // of the rows, then where they start
  auto* const device_total = scratch.get<std::int64_t>(1);
  if (s.n >= 16 * kSample) {
    // A few rows tell a hopeless case at little cost.
    excess = scratch.get<std::int32_t>(1);
    auto* const sample = scratch.get<std::int64_t>(kSample);
    count_kernel<T, kKind, kShared, 1><<<kSample, kThreads, 0, on>>>(s, sample, nullptr, nullptr);
    QUADRIC_CUDA_LAUNCHED();
    excess_kernel<<<1, 1, 0, on>>>(sample, s.n, limit, excess);
    QUADRIC_CUDA_LAUNCHED();
  }
  unsigned* const bits = s.words <= kMostBits / 4 / s.n ? scratch.get<unsigned>(s.n * s.words) : nullptr;
  count_kernel<T, kKind, kShared, kRows><<<blocks_for(s.n, kRows), kThreads, 0, on>>>(s, counts, bits, excess);
  QUADRIC_CUDA_LAUNCHED();
  scan(exec, counts, s.n, counts);
  total_kernel<<<1, 1, 0, on>>>(counts, s.n, excess, device_total);
  QUADRIC_CUDA_LAUNCHED();
  std::int64_t total = 0;
  QUADRIC_CUDA(cudaMemcpyAsync(&total, device_total, sizeof total, cudaMemcpyDeviceToHost, on));
  QUADRIC_CUDA(cudaStreamSynchronize(on));
  if (total < 0 || total > limit) return false;
  const PatternMemory to = make(total);
  QUADRIC_CUDA(cudaMemcpyAsync(to.starts, counts, static_cast<std::size_t>(s.n + 1) * sizeof(std::int64_t),
                               cudaMemcpyDeviceToDevice, on));
  if (total == 0) return true;
  fill_kernel<T, kKind><<<blocks_for(s.n, kWarps), kThreads, 0, on>>>(s, bits, counts, to.columns, to.costs);
  QUADRIC_CUDA_LAUNCHED();
  return true;
}

template <class T, CostKind kKind, class... Rest>
bool run_points(const Execution& exec, Scratch& scratch, const Selection<T>& s, const Rest&... rest) {
  return s.d <= kNear ? run<T, kKind, true>(exec, scratch, s, rest...)
                      : run<T, kKind, false>(exec, scratch, s, rest...);
}

}  // namespace

template <class T>
bool candidates(const Execution& exec, const Cost<T>& cost, const double* a, const double* b, const double* f,
                const double* g, const CandidateOptions& options,
                const std::function<PatternMemory(std::int64_t entries)>& make) {
  const bool stored = cost.kind == CostKind::stored;
  if (!stored) {
    QUADRIC_REQUIRE(cost.x.cols == cost.y.cols, "y must have points of as many coordinates as x");
    QUADRIC_REQUIRE((cost.x.cols <= 1 || cost.x.col_stride == 1) && (cost.y.cols <= 1 || cost.y.col_stride == 1),
                    "x and y must have contiguous rows");
  }
  QUADRIC_REQUIRE(options.reg > 0, "reg must be positive");
  const double kappa = 1.4426950408889634074 / options.reg;
  Scratch scratch(exec);
  Selection<T> s{};
  s.n = cost.rows();
  s.m = cost.cols();
  s.words = (s.m + 31) / 32;
  s.kappa = static_cast<T>(kappa);
  if (s.n == 0 || s.m == 0) {
    const PatternMemory to = make(0);
    QUADRIC_CUDA(cudaMemsetAsync(to.starts, 0, static_cast<std::size_t>(s.n + 1) * sizeof(std::int64_t), stream(exec)));
    return true;
  }
  auto* const G = scratch.get<T>(s.m);
  auto* const floor = scratch.get<T>(s.m);
  auto* const shift = scratch.get<T>(s.n);
  auto* const row_floor = scratch.get<T>(s.n);
  prepare_kernel<<<blocks_for(s.m, kThreads), kThreads, 0, stream(exec)>>>(g, b, s.m, kappa, options.bits, G, floor);
  QUADRIC_CUDA_LAUNCHED();
  prepare_kernel<<<blocks_for(s.n, kThreads), kThreads, 0, stream(exec)>>>(f, a, s.n, kappa, options.bits, shift,
                                                                           row_floor);
  QUADRIC_CUDA_LAUNCHED();
  s.G = G;
  s.floor = floor;
  s.shift = shift;
  s.row_floor = row_floor;
  if (stored) {
    s.M = cost.M.data;
    s.M_row = cost.M.row_stride;
    s.M_column = cost.M.col_stride;
  } else {
    s.d = cost.x.cols;
    s.x = cost.x.data;
    s.x_row = cost.x.row_stride;
    auto* const others = scratch.get<T>(s.m * s.d);
    s.others = others;
    if (s.d > 0) {
      transpose_kernel<<<blocks_for(s.m * s.d, kThreads), kThreads, 0, stream(exec)>>>(cost.y.data, cost.y.row_stride,
                                                                                       s.m, s.d, others);
      QUADRIC_CUDA_LAUNCHED();
    }
  }
  switch (cost.kind) {
    case CostKind::stored:
      return run<T, CostKind::stored, false>(exec, scratch, s, options.limit, make);
    case CostKind::sqeuclidean:
      return run_points<T, CostKind::sqeuclidean>(exec, scratch, s, options.limit, make);
    case CostKind::euclidean:
      return run_points<T, CostKind::euclidean>(exec, scratch, s, options.limit, make);
    case CostKind::cityblock:
      return run_points<T, CostKind::cityblock>(exec, scratch, s, options.limit, make);
    default:
      return run_points<T, CostKind::cosine>(exec, scratch, s, options.limit, make);
  }
}

#define QUADRIC_INSTANTIATE(T)                                                                                        \
  template QUADRIC_API bool candidates(const Execution&, const Cost<T>&, const double*, const double*, const double*, \
                                       const double*, const CandidateOptions&,                                        \
                                       const std::function<PatternMemory(std::int64_t)>&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::transport
