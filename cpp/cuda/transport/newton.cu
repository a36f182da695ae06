// The direction of a Newton step on a list of entries.
//
// Floor: CG reads S, 12 bytes an entry, twice in an iteration, by rows and by columns: 24 MB for 1e6 entries, 4.4 us
// from the second-level cache; for 1e5 entries nothing but latency is left. All of CG is one launch whose blocks meet
// at barriers in device memory, three in an iteration, 1.3 us each. Measured: 23 us for 1e6 entries of a band, n =
// 10 000; 291 us for 3e7, n = 100 000, and 227 us with entries in float32. Before it the choice of entries, four reads
// of the list, and a sort by columns (transpose.cu).
//
// From kMixedFrom entries on, where bytes count, S is kept in float32 and all else in float64, 8 bytes an entry, where
// no residual below kMixedTol is asked for. The masses a and c then get what rounding adds to their rows and columns:
// the matrix is the Schur complement of a graph's Laplacian whose edges are the entries, and remains one, so a relative
// change of the edges by 6e-8 changes each quadratic form x^T H x by 6e-8 of itself at most, however small it is.
// Rounding the entries alone would disturb all eigenvalues below 6e-8 c.
//
// Sums are made over rows, columns and fixed ranges of columns, in a fixed order, so neither the order of the blocks
// nor their number enters. The masses of small entries are added as integers.
#include <algorithm>
#include <cmath>

#include "quadric/cuda/transport.hpp"
#include "require.hpp"
#include "transport/sparse.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kThreads = 256;
constexpr int kBins = 1 << 14;
constexpr int kCutThreads = 1024, kEach = kBins / kCutThreads;
constexpr int kSolverThreads = 1024, kSolverWarps = kSolverThreads / 32;
constexpr std::int64_t kMixedFrom = std::int64_t{1} << 21;
constexpr double kMixedTol = 1e-6;

using Count = unsigned long long;

// ---- the choice of entries -----------------------------------------------------------------------------------------

// Values are binned by their leading bits: exponent and three bits of the mantissa. Of the rest of the mantissa, 49
// bits, the upper 32 are added up.
struct Bins {
  Count* counts;
  Count* rests;
};
__host__ __device__ inline int bin_of(std::int64_t bits) { return static_cast<int>(bits >> 49 & (kBins - 1)); }
__host__ __device__ inline Count rest_of(std::int64_t bits) { return static_cast<Count>(bits >> 17 & 0xffffffff); }

__global__ void __launch_bounds__(kThreads) bin_kernel(const double* values, std::int64_t size, Bins bins) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  // The lanes of a warp stay together.
  for (std::int64_t first = blockIdx.x * static_cast<std::int64_t>(kThreads); first < size; first += step) {
    const std::int64_t k = first + threadIdx.x;
    const std::int64_t bits = k < size ? __double_as_longlong(values[k]) : 0;
    const bool counts = static_cast<Count>(bits) << 1 != 0;  // zeros have no mass
    const int bin = bin_of(bits), common = __shfl_sync(kAllLanes, bin, 0);
    // Integers: the same whatever the order.
    if (__all_sync(kAllLanes, counts && bin == common)) {
      // So that a list of equal values is not added up one by one.
      const std::int64_t rests = team_sum(static_cast<std::int64_t>(rest_of(bits)), 32);
      if (threadIdx.x % 32 == 0) {
        atomicAdd(bins.counts + bin, Count{32});
        atomicAdd(bins.rests + bin, static_cast<Count>(rests));
      }
    } else if (counts) {
      atomicAdd(bins.counts + bin, Count{1});
      atomicAdd(bins.rests + bin, rest_of(bits));
    }
  }
}

// The largest value that may be dropped with all that are smaller, to within an eighth of an octave.
struct Cut {
  double below;  // values less than this go
  double dropped;
};

__device__ double mass_of(const Bins& bins, int bin) {
  const Count count = bins.counts[bin];
  if (count == 0) return 0;
  const std::int64_t bits = static_cast<std::int64_t>(bin) << 49;
  const double base = __longlong_as_double(bits);
  const double unit = __longlong_as_double(bits + (std::int64_t{1} << 17)) - base;
  return static_cast<double>(count) * base + static_cast<double>(bins.rests[bin]) * unit;
}

__global__ void __launch_bounds__(kCutThreads) cut_kernel(Bins bins, double drop, Cut* cut) {
  __shared__ double of_warp[kCutThreads / 32];
  __shared__ int least;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  if (thread == 0) least = kBins;
  double mass[kEach], mine = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) mine += mass[e] = mass_of(bins, thread * kEach + e);
  double up_to = mine;
  for (int step = 1; step < 32; step *= 2) {
    const double other = __shfl_up_sync(kAllLanes, up_to, step);
    if (lane >= step) up_to += other;
  }
  if (lane == 31) of_warp[warp] = up_to;
  // What is below this thread's bins, without a difference: that of infinite sums would be NaN.
  double before = __shfl_up_sync(kAllLanes, up_to, 1);
  if (lane == 0) before = 0;
  __syncthreads();
  double below_warp = 0;
  for (int w = 0; w < warp; ++w) below_warp += of_warp[w];
  double sum = below_warp + before;
  int bin = kBins;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    if (bin != kBins) continue;
    if (sum + mass[e] <= drop)
      sum += mass[e];
    else
      bin = thread * kEach + e;
  }
  if (bin != kBins) atomicMin(&least, bin);
  __syncthreads();
  if (least == kBins ? thread == kCutThreads - 1 : bin == least)
    *cut = {__longlong_as_double(static_cast<std::int64_t>(least) << 49), sum};
}

struct List {
  std::int64_t n, m, size;
  int lanes;
  const std::int64_t* starts;
  const std::int32_t* columns;
  const double* values;
};
__device__ inline bool kept(double value, double below) { return value >= below && value > 0; }

// Stores the value, and returns what its rounding adds to it.
template <class Value>
__device__ __forceinline__ double rounded(double value, Value* to) {
  *to = static_cast<Value>(value);
  return static_cast<double>(*to) - value;
}

// A team for each row: how many of its entries are kept; where they stand, column m for the others.
__global__ void __launch_bounds__(kThreads)
    keep_kernel(List list, const Cut* cut, std::int64_t* counts, std::int32_t* keys, std::int32_t* row_of) {
  const std::int64_t thread = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  const std::int64_t i = thread / list.lanes;
  const int lane = static_cast<int>(thread % list.lanes);
  const double below = cut->below;
  std::int64_t count = 0;
  if (i < list.n) {
    const std::int64_t end = list.starts[i + 1];
#pragma unroll 4
    for (std::int64_t k = list.starts[i] + lane; k < end; k += list.lanes) {
      const bool stays = kept(list.values[k], below);
      keys[k] = stays ? list.columns[k] : static_cast<std::int32_t>(list.m);
      row_of[k] = static_cast<std::int32_t>(i);
      count += stays ? 1 : 0;
    }
  }
  count = team_sum(count, list.lanes);
  if (i < list.n && lane == 0) counts[i] = count;
}

// The kept entries row by row, in their order, and 1 / a.
template <class Value>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(List list, const Cut* cut, const double* a, const std::int64_t* starts, std::int32_t* columns,
                Value* values, double* inverse_a) {
  const std::int64_t thread = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  const std::int64_t i = thread / list.lanes;
  const int lane = static_cast<int>(thread % list.lanes), first_lane = threadIdx.x % 32 - lane;
  const unsigned team = (list.lanes < 32 ? (1u << list.lanes) - 1 : kAllLanes) << first_lane;
  const unsigned before = team & ((1u << threadIdx.x % 32) - 1);
  const double below = cut->below;
  const bool mine = i < list.n;
  const std::int64_t end = mine ? list.starts[i + 1] : 0;
  std::int64_t k = (mine ? list.starts[i] : 0) + lane, to = mine ? starts[i] : 0;
  double added = 0;
  for (; __any_sync(kAllLanes, k - lane < end); k += list.lanes) {
    const double value = k < end ? list.values[k] : 0.0;
    const bool stays = kept(value, below);
    const unsigned all = __ballot_sync(kAllLanes, stays);
    if (stays) {
      const std::int64_t at = to + __popc(all & before);
      columns[at] = list.columns[k];
      added += rounded(value, values + at);
    }
    to += __popc(all & team);
  }
  added = team_sum(added, list.lanes);
  if (mine && lane == 0) inverse_a[i] = 1 / (a[i] + added);
}

// The same by columns, with c in place of 1 / a; a team has `lanes` lanes.
template <class Value>
__global__ void __launch_bounds__(kThreads)
    pack_columns_kernel(List list, Transposed transposed, int lanes, const double* c, const std::int32_t* row_of,
                        std::int32_t* rows, Value* values, double* c_of_packed) {
  const std::int64_t thread = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  const std::int64_t j = thread / lanes;
  const int lane = static_cast<int>(thread % lanes);
  const bool mine = j < list.m;
  const std::int64_t end = mine ? transposed.starts[j + 1] : 0;
  double added = 0;
#pragma unroll 4
  for (std::int64_t at = (mine ? transposed.starts[j] : 0) + lane; at < end; at += lanes) {
    const std::int64_t k = transposed.order[at];
    rows[at] = row_of[k];
    added += rounded(list.values[k], values + at);
  }
  added = team_sum(added, lanes);
  if (mine && lane == 0) c_of_packed[j] = c[j] + added;
}

// ---- conjugate gradients -------------------------------------------------------------------------------------------

template <class Value>
struct System {
  std::int64_t n, m;
  // S by rows and by columns.
  const std::int64_t* row_starts;
  const std::int32_t* columns;
  const Value* row_values;
  const std::int64_t* column_starts;
  const std::int32_t* rows;
  const Value* column_values;
  const double *inverse_a, *c, *gradient;
  double2* zp;  // m: z, and the p before it
  double* t;    // n: diag(1 / a) S p
  double *r, *product, *inverse;
  double* x;                                // m: the direction
  double *curvatures, *products, *squares;  // of ranges of columns
  unsigned* arrived;
  const Cut* cut;
  NewtonReport* report;
  NewtonOptions options;
};

// All blocks of the launch meet; what they wrote before is seen by all after.
__device__ void meet(unsigned* arrived, unsigned& goal) {
  goal += gridDim.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrived, 1u);
    // The count may run over.
    while (static_cast<int>(*static_cast<volatile unsigned*>(arrived) - goal) < 0) __nanosleep(20);
    __threadfence();
  }
  __syncthreads();
}

// The sum of what the ranges have, the same in every thread of every block.
__device__ double total(const double* parts, std::int64_t count, double* room) {
  double sum = 0;
  for (std::int64_t k = threadIdx.x; k < count; k += kSolverThreads) sum += parts[k];
  sum = block_sum<kSolverWarps>(sum, room);
  __syncthreads();
  return sum;
}

// sum over [begin, end) of values_k of(indices_k), by the lanes of a team.
template <class Value, class Of>
__device__ __forceinline__ double gather(const Value* values, const std::int32_t* indices, std::int64_t begin,
                                         std::int64_t end, int lane, int lanes, const Of& of) {
  double sum = 0;
#pragma unroll 4
  for (std::int64_t k = begin + lane; k < end; k += lanes) sum += values[k] * of(indices[k]);
  return team_sum(sum, lanes);
}

// t = diag(1 / a) S p, p_j = of(j).
template <class Value, class Of>
__device__ void multiply_rows(const System<Value>& s, int lanes, const Of& of) {
  const int lane = threadIdx.x % lanes, teams = kSolverThreads / lanes;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * teams;
  for (std::int64_t first = blockIdx.x * static_cast<std::int64_t>(teams); first < s.n; first += step) {
    const std::int64_t i = first + threadIdx.x / lanes;
    const bool mine = i < s.n;
    const std::int64_t begin = mine ? s.row_starts[i] : 0, end = mine ? s.row_starts[i + 1] : 0;
    const double sum = gather(s.row_values, s.columns, begin, end, lane, lanes, of);
    if (mine && lane == 0) s.t[i] = sum * s.inverse_a[i];
  }
}

// Ranges of as many columns as a block has teams, one after another: parts[range] and others[range] are the sums of
// what of(j, sum) returns for their columns, sum being that of `squared ? S_ij^2 / a_i : S_ij t_i`.
struct Two {
  double first, second;
};
template <bool kSquared, class Value, class Of>
__device__ void multiply_columns(const System<Value>& s, int lanes, double* parts, double* others,
                                 double (*room)[2 * kSolverWarps], const Of& of) {
  const int lane = threadIdx.x % lanes, teams = kSolverThreads / lanes;
  const std::int64_t ranges = (s.m + teams - 1) / teams;
  int turn = 0;
  for (std::int64_t range = blockIdx.x; range < ranges; range += gridDim.x, turn ^= 1) {
    const std::int64_t j = range * teams + threadIdx.x / lanes;
    const bool mine = j < s.m;
    const std::int64_t begin = mine ? s.column_starts[j] : 0, end = mine ? s.column_starts[j + 1] : 0;
    double sum;
    if constexpr (kSquared) {
      sum = 0;
      for (std::int64_t k = begin + lane; k < end; k += lanes) {
        const double value = s.column_values[k];
        sum += value * value * s.inverse_a[s.rows[k]];
      }
      sum = team_sum(sum, lanes);
    } else {
      sum = gather(s.column_values, s.rows, begin, end, lane, lanes, [&](std::int32_t i) { return s.t[i]; });
    }
    Two two = {0, 0};
    if (mine && lane == 0) two = of(j, sum);
    two.first = team_sum(two.first, 32);
    two.second = team_sum(two.second, 32);
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
      room[turn][warp] = two.first;
      room[turn][kSolverWarps + warp] = two.second;
    }
    __syncthreads();  // one in a range is enough: the next one writes to the other half
    if (threadIdx.x < 32) {
      const double one = team_sum(room[turn][threadIdx.x], 32);
      const double other = team_sum(room[turn][kSolverWarps + threadIdx.x], 32);
      if (threadIdx.x == 0) {
        parts[range] = one;
        if (others != nullptr) others[range] = other;
      }
    }
  }
}

template <class Value>
__global__ void __launch_bounds__(kSolverThreads, 1) solve_kernel(System<Value> s) {
  static_assert(kSolverWarps == 32);
  __shared__ double room[kSolverWarps];
  __shared__ double halves[2][2 * kSolverWarps];
  const std::int64_t kept = s.row_starts[s.n];
  const int row_lanes = lanes_for(kept, s.n), column_lanes = lanes_for(kept, s.m);
  const std::int64_t teams = kSolverThreads / column_lanes, ranges = (s.m + teams - 1) / teams;
  const std::int64_t blocks = (s.m + kSolverThreads - 1) / kSolverThreads;  // ranges of a thread for each column
  const double shift = s.options.shift;
  unsigned goal = 0;

  // Shared memory is used by one of these at a time: between two of them all blocks meet, or `total` does.
  multiply_columns<true>(s, column_lanes, s.products, s.squares, halves, [&](std::int64_t j, double sum) -> Two {
    // A column of one entry that is all of its row has no curvature of its own; the preconditioner needs some.
    const double c = s.c[j], r = s.gradient[j], inverse = 1 / fmax(c - sum + shift * c, 1e-3 * c), z = inverse * r;
    s.inverse[j] = inverse;
    s.r[j] = r;
    s.x[j] = 0;
    s.zp[j] = {z, 0.0};
    return {r * z, r * r};
  });
  meet(s.arrived, goal);
  double rz = total(s.products, ranges, room);
  const double scale = sqrt(total(s.squares, ranges, room));
  double residual = scale > 0 ? 1 : 0, beta = 0;
  std::int64_t iterations = 0;
  // All threads see the same numbers and go the same way.
  while (residual > s.options.tol && iterations < s.options.max_iter && rz > 0) {
    multiply_rows(s, row_lanes, [&](std::int32_t j) {
      const double2 zp = s.zp[j];
      return fma(beta, zp.y, zp.x);
    });
    meet(s.arrived, goal);
    multiply_columns<false>(s, column_lanes, s.curvatures, nullptr, halves, [&](std::int64_t j, double sum) -> Two {
      const double2 zp = s.zp[j];
      const double p = fma(beta, zp.y, zp.x), product = s.c[j] * (1 + shift) * p - sum;
      s.zp[j].y = p;
      s.product[j] = product;
      return {p * product, 0};
    });
    meet(s.arrived, goal);
    const double curvature = total(s.curvatures, ranges, room);
    if (!(curvature > 0)) break;  // rounding has used up what the shift and the gauge leave
    const double step = rz / curvature;
    for (std::int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
      const std::int64_t j = block * kSolverThreads + threadIdx.x;
      double product = 0, square = 0;
      if (j < s.m) {
        const double r = s.r[j] - step * s.product[j], z = s.inverse[j] * r;
        s.x[j] += step * s.zp[j].y;
        s.r[j] = r;
        s.zp[j].x = z;
        product = r * z;
        square = r * r;
      }
      product = block_sum<kSolverWarps>(product, room);
      __syncthreads();
      square = block_sum<kSolverWarps>(square, room);
      __syncthreads();
      if (threadIdx.x == 0) {
        s.products[block] = product;
        s.squares[block] = square;
      }
    }
    meet(s.arrived, goal);
    const double next = total(s.products, blocks, room);
    residual = sqrt(total(s.squares, blocks, room)) / scale;
    ++iterations;
    beta = next / rz;
    rz = next;
  }

  multiply_rows(s, row_lanes, [&](std::int32_t j) { return s.x[j]; });
  meet(s.arrived, goal);
  multiply_columns<false>(s, column_lanes, s.curvatures, nullptr, halves, [&](std::int64_t j, double sum) -> Two {
    const double x = s.x[j];
    return {x * (s.gradient[j] - (s.c[j] * x - sum) / 2), 0};
  });
  meet(s.arrived, goal);
  if (blockIdx.x != 0) return;
  const double predicted = total(s.curvatures, ranges, room);
  if (threadIdx.x != 0) return;
  s.report->iterations = iterations;
  s.report->kept = kept;
  s.report->dropped = s.cut->dropped;
  s.report->residual = residual;
  s.report->predicted = predicted;
}

// The direction; values of S are kept as Value from here on.
template <class Value>
NewtonReport direction_of(const Execution& exec, const SparseView& pattern, std::int64_t entries, const double* values,
                          const double* a, const double* c, const double* gradient, double* direction,
                          const NewtonOptions& options) {
  const cudaStream_t on = stream(exec);
  const std::int64_t n = pattern.rows, m = pattern.cols;
  Scratch scratch(exec);

  auto* const bins = scratch.get<Count>(2 * kBins);
  auto* const cut = scratch.get<Cut>(1);
  QUADRIC_CUDA(cudaMemsetAsync(bins, 0, 2 * kBins * sizeof(Count), on));
  if (entries > 0) {
    const unsigned blocks = std::min(blocks_for(entries, kThreads), 1u << 14);
    bin_kernel<<<blocks, kThreads, 0, on>>>(values, entries, Bins{bins, bins + kBins});
    QUADRIC_CUDA_LAUNCHED();
  }
  cut_kernel<<<1, kCutThreads, 0, on>>>(Bins{bins, bins + kBins}, options.drop, cut);
  QUADRIC_CUDA_LAUNCHED();

  const List list{n, m, entries, lanes_for(entries, n), pattern.starts, pattern.columns, values};
  const unsigned row_blocks = blocks_for(n * list.lanes, kThreads);
  auto* const row_starts = scratch.get<std::int64_t>(n + 1);
  auto* const keys = scratch.get<std::int32_t>(entries);
  auto* const row_of = scratch.get<std::int32_t>(entries);
  auto* const columns = scratch.get<std::int32_t>(entries);
  auto* const row_values = scratch.get<Value>(entries);
  auto* const rows = scratch.get<std::int32_t>(entries);
  auto* const column_values = scratch.get<Value>(entries);
  auto* const inverse_a = scratch.get<double>(n);
  auto* const c_of_packed = scratch.get<double>(m);
  keep_kernel<<<row_blocks, kThreads, 0, on>>>(list, cut, row_starts, keys, row_of);
  QUADRIC_CUDA_LAUNCHED();
  scan(exec, row_starts, n, row_starts);
  pack_kernel<<<row_blocks, kThreads, 0, on>>>(list, cut, a, row_starts, columns, row_values, inverse_a);
  QUADRIC_CUDA_LAUNCHED();
  const Transposed transposed = transpose(exec, scratch, keys, entries, m);
  const int column_lanes = lanes_for(entries, m);
  pack_columns_kernel<<<blocks_for(m * column_lanes, kThreads), kThreads, 0, on>>>(
      list, transposed, column_lanes, c, row_of, rows, column_values, c_of_packed);
  QUADRIC_CUDA_LAUNCHED();

  System<Value> s{};
  s.n = n;
  s.m = m;
  s.row_starts = row_starts;
  s.columns = columns;
  s.row_values = row_values;
  s.column_starts = transposed.starts;
  s.rows = rows;
  s.column_values = column_values;
  s.inverse_a = inverse_a;
  s.c = c_of_packed;
  s.gradient = gradient;
  s.zp = scratch.get<double2>(m);
  s.t = scratch.get<double>(n);
  s.r = scratch.get<double>(m);
  s.product = scratch.get<double>(m);
  s.inverse = scratch.get<double>(m);
  s.x = direction;
  // A range has 32 columns at least.
  const std::int64_t ranges = (m + 31) / 32;
  s.curvatures = scratch.get<double>(ranges);
  s.products = scratch.get<double>(ranges);
  s.squares = scratch.get<double>(ranges);
  s.arrived = scratch.get<unsigned>(1);
  s.cut = cut;
  s.report = scratch.get<NewtonReport>(1);
  s.options = options;
  QUADRIC_CUDA(cudaMemsetAsync(s.arrived, 0, sizeof(unsigned), on));
  // As many blocks as have work: barriers of fewer are faster.
  const std::int64_t work = std::max({n * 8, m * 8, entries / 4});
  const auto blocks = static_cast<unsigned>(
      std::clamp<std::int64_t>((work + kSolverThreads - 1) / kSolverThreads, 1, multiprocessors()));
  void* arguments[] = {&s};
  QUADRIC_CUDA(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(&solve_kernel<Value>), dim3(blocks),
                                           dim3(kSolverThreads), arguments, 0, on));
  NewtonReport report;
  QUADRIC_CUDA(cudaMemcpyAsync(&report, s.report, sizeof report, cudaMemcpyDeviceToHost, on));
  QUADRIC_CUDA(cudaStreamSynchronize(on));
  return report;
}

}  // namespace

NewtonReport newton_direction(const Execution& exec, const SparseView& pattern, std::int64_t entries,
                              const double* values, const double* a, const double* c, const double* gradient,
                              double* direction, const NewtonOptions& options) {
  QUADRIC_REQUIRE(options.shift >= 0, "shift must not be negative");
  QUADRIC_REQUIRE(options.drop >= 0, "drop must not be negative");
  if (pattern.rows == 0 || pattern.cols == 0) {
    const auto bytes = static_cast<std::size_t>(pattern.cols) * sizeof(double);
    if (bytes > 0) QUADRIC_CUDA(cudaMemsetAsync(direction, 0, bytes, stream(exec)));
    return {};
  }
  const bool mixed = entries >= kMixedFrom && options.tol >= kMixedTol;
  return (mixed ? direction_of<float> : direction_of<double>)(exec, pattern, entries, values, a, c, gradient, direction,
                                                              options);
}

}  // namespace quadric::cuda::transport
