// Sinkhorn's iteration on the device: a pass over the rows, by kernels of the cost, and what comes between two passes:
// sums of columns, their new potentials, errors, and whether and how to go on.
//
// Floor beside the passes: the partial sums of the slots are written and read once, for float32 and n = m = 10 000
// 5 MB each, in the second-level cache: 2 us. To be reached, with the launch: 6 us, so a thread asks for all that it
// reads at once, and no sum over warps is left to one thread. Nothing waits for the host: a problem that has stopped
// has its flag down, and later launches leave it alone.
#include <algorithm>
#include <cstdint>

#include "early.cuh"
#include "require.hpp"
#include "transport/async.cuh"
#include "transport/batch.hpp"
#include "transport/options.hpp"
#include "transport/pass.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kThreads = 256;
constexpr int kGroups = kThreads / 32;    // of slots, which are summed side by side
constexpr std::int64_t kNarrow = 12'672;  // columns up to which a lane has one of them: 3 blocks on each of 132
                                          // multiprocessors; where there are more, it has four
constexpr int columns_of_lane(std::int64_t m) { return m <= kNarrow ? 1 : 4; }

// Partial sums that a thread reads at once: of float32 all of one group of 132 slots.
template <class T, int kEach>
inline constexpr int kAtOnce = kEach == 1 ? (sizeof(T) == 4 ? 17 : 9) : (sizeof(T) == 4 ? 6 : 4);

// The largest log2 of what a pass may meet, before the potentials are taken apart anew.
template <class T>
inline constexpr double kPassLimit = sizeof(T) == 4 ? 60 : 500;

// What blocks find out, to be added, or the largest of all.
struct Report {
  double error = 0, finite = 0, lowest = 0, highest = 0, row_lowest = 0, row_highest = 0, bound = 0, dead = 0;
  static constexpr int kCount = 8;  // `finite` is not finite if something is not
};

__device__ __forceinline__ double combine(int field, double a, double b) {
  switch (field) {
    case 0:
    case 1:
      return a + b;
    case 2:
    case 4:
      return fmin(a, b);
    default:
      return fmax(a, b);
  }
}

__device__ __forceinline__ double& field(Report& report, int which) { return (&report.error)[which]; }

// The reports of all threads, in thread 0. `shared`: kThreads / 32 reports; read only after the next barrier.
__device__ __forceinline__ void reduce(Report& report, Report* shared) {
  static_assert(kThreads / 32 == Report::kCount, "a warp for each field, a lane for each warp");
#pragma unroll
  for (int which = 0; which < Report::kCount; ++which) {
    double& x = field(report, which);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = combine(which, x, __shfl_xor_sync(0xffffffffu, x, step));
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  __syncthreads();
  if (lane == 0) shared[warp] = report;
  __syncthreads();
  double x = field(shared[lane % (kThreads / 32)], warp);
#pragma unroll
  for (int step = kThreads / 64; step > 0; step /= 2) x = combine(warp, x, __shfl_xor_sync(0xffffffffu, x, step));
  __syncthreads();
  if (lane == 0) field(shared[0], warp) = x;
  __syncthreads();
  if (threadIdx.x == 0) report = shared[0];
}

// The columns' side. Two copies of all that changes, by turns, because only the last block to finish knows whether the
// change is to be kept; and two forms of G and weight, with the old G and with a new one.
template <class T>
struct Columns {
  double theta = 1, tol = 0;
  const double *mass = nullptr, *log_mass = nullptr;  // problems x m
  double* potential = nullptr;                        // problems x 2 x width, G^total
  T *G = nullptr, *weight = nullptr;                  // problems x 4 x width: 2 * turn + (1 for a new G)
  Flags* flags = nullptr;                             // problems
  std::int32_t* done = nullptr;                       // problems: blocks that have finished
  Report* reports = nullptr;                          // problems x blocks
  std::int64_t blocks = 0;                            // of a problem
  double* errors = nullptr;                           // problems x count
  std::int64_t count = 0;
};

template <class T>
__device__ __forceinline__ void take_apart(double potential, double offset, T& G, T& weight) {
  G = static_cast<T>(potential - offset);
  const double rest = potential - (static_cast<double>(G) + offset);
  weight = potential > -static_cast<double>(INFINITY) ? static_cast<T>(exp2(rest)) : T(0);
}

template <class T>
__device__ __forceinline__ double offset_of(const Pass<T>& pass, std::int64_t p, std::int64_t j) {
  return pass.column_offset != nullptr ? pass.column_offset[p * pass.cost.m + j] : 0.0;
}

// log2 of the sum of column j of 2^(F_i - kappa C_ij), for all threads: for columns whose entries are about the
// smallest numbers or less. Rare.
template <class T>
__device__ double log_sum(const Pass<T>& pass, std::int64_t p, std::int64_t j, double* shared) {
  double largest = -static_cast<double>(INFINITY), total = 0;
  const auto merge = [&](double other, double its_total) {
    if (other > largest) {
      total = total * exp2(largest - other) + its_total;
      largest = other;
    } else if (other > -static_cast<double>(INFINITY)) {
      total += its_total * exp2(other - largest);
    }
  };
  const double* const F = pass.F + p * pass.cost.n;
  for (std::int64_t i = threadIdx.x; i < pass.cost.n; i += kThreads)
    merge(F[i] - pass.kappa * entry(pass.cost, p, i, j), 1);
  __syncthreads();
  shared[2 * threadIdx.x] = largest;
  shared[2 * threadIdx.x + 1] = total;
  __syncthreads();
  largest = -static_cast<double>(INFINITY);
  total = 0;
  for (int thread = 0; thread < kThreads; ++thread) merge(shared[2 * thread], shared[2 * thread + 1]);
  __syncthreads();
  return largest + log2(total);  // not finite if no entry is
}

// kEach entries side by side.
template <class T, int kEach>
struct alignas(kEach * sizeof(T)) Piece {
  T x[kEach];
};

// The sum of the partial sums of kEach columns, over slots `group`, `group` + kGroups and so on, in that order.
template <class T, int kEach>
__device__ __forceinline__ void add_slots(const T* partial, std::int64_t width, int slots, int group,
                                          double (&sum)[kEach]) {
  constexpr int kBatch = kAtOnce<T, kEach>;
  for (int first = group; first < slots; first += kGroups * kBatch) {
    Piece<T, kEach> found[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int slot = first + k * kGroups;
      found[k] = Piece<T, kEach>{};
      if (slot < slots) found[k] = *reinterpret_cast<const Piece<T, kEach>*>(partial + slot * width);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
#pragma unroll
      for (int q = 0; q < kEach; ++q) sum[q] += static_cast<double>(found[k].x[q]);
    }
  }
}

// A block for 32 kEach columns and a share of the rows; the last one of a problem decides.
template <class T, int kEach>
__global__ void __launch_bounds__(kThreads, 3)
    columns_kernel(const __grid_constant__ Pass<T> pass, const __grid_constant__ Columns<T> columns,
                   const std::int64_t iteration) {
  constexpr int kColumns = 32 * kEach;
  __shared__ double sums[kGroups][kColumns];
  __shared__ double work[2 * kThreads];
  __shared__ Report reports[kThreads / 32];
  __shared__ unsigned dead[kEach];
  __shared__ bool last;
  const std::int64_t p = blockIdx.x / columns.blocks, block = blockIdx.x % columns.blocks;
  wait_for_earlier_kernels();
  let_next_kernel_begin();
  const Flags flags = columns.flags[p];
  if (flags.active == 0) return;
  const std::int64_t n = pass.cost.n, m = pass.cost.m, width = pass.width;
  const int lane = static_cast<int>(threadIdx.x) % 32, group = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t first = block * kColumns + lane * kEach;  // of those that this thread adds up
  const std::int64_t j = block * kColumns + threadIdx.x;       // which it moves, if it does
  const int turn = flags.slot / 2;
  const bool mine = threadIdx.x < kColumns && j < m;
  const double omega = pass.omega[p];
  const double heaviest = exp2(fmax(kScalingLimit<T>, static_cast<double>(pass.heaviest[p])));
  Report report;

  // What is needed of a column later.
  const std::int64_t now = (p * 4 + flags.slot) * width + j, next = (p * 4 + 2 * (1 - turn)) * width + j;
  double offset = 0, mass = 1, log_mass = 0, G = 0;
  T part = 0;
  if (mine) {
    offset = offset_of(pass, p, j);
    mass = columns.mass[p * m + j];
    log_mass = columns.log_mass[p * m + j];
    G = columns.potential[(p * 2 + turn) * width + j];
    part = columns.G[now];
  }

  // The first of this thread's rows, most often the only one.
  std::int64_t i = n * block / columns.blocks + threadIdx.x;
  const std::int64_t end = n * (block + 1) / columns.blocks;
  double row_error = 0, row_rest = 0;
  if (i < end) {
    row_error = pass.row_error[p * n + i];
    row_rest = pass.row_rest[p * n + i];
  }

  // The sums of the columns, slot by slot.
  double parts[kEach] = {};
  if (first < width)
    add_slots<T, kEach>(pass.partial + p * pass.slots * width + first, width, static_cast<int>(pass.slots), group,
                        parts);
#pragma unroll
  for (int q = 0; q < kEach; ++q) sums[group][lane * kEach + q] = parts[q];
  __syncthreads();

  while (i < end) {
    report.error += row_error;
    report.row_lowest = fmin(report.row_lowest, row_rest);
    report.row_highest = fmax(report.row_highest, row_rest);
    i += kThreads;
    if (i >= end) break;
    row_error = pass.row_error[p * n + i];
    row_rest = pass.row_rest[p * n + i];
  }

  double new_G = 0;
  bool is_dead = false;
  if (mine) {
    double sum = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) sum += sums[g][threadIdx.x];
    is_dead = sum <= kTiny<T> * heaviest;
    if (is_dead) sum = 2.2250738585072014e-308;  // as good as nothing, and it has a logarithm
    const double theta = columns.theta, pull = (theta - 1) / theta;
    const double base = part == -static_cast<T>(INFINITY) ? 0.0 : static_cast<double>(part) + offset;
    const double marginal = log2(sum) + (G - base);
    const auto target = [&](double potential) {
      return theta == 1 ? mass : mass * exp2(potential * pull < 1000 ? potential * pull : 1000);
    };
    const auto scaling = [](double rest) { return exp2(rest < 1000 ? rest : 1000); };
    new_G = G + omega * (theta * (G + (log_mass - marginal)) - G);
    const double rest = new_G - base, after = scaling(rest);
    report.error += fabs(sum * scaling(G - base) - target(G));
    report.finite = fabs(sum * after - target(new_G)) + new_G * 0.0;
    report.lowest = fmin(0.0, rest);
    report.highest = fmax(0.0, rest);
    report.bound = fmax(0.0, marginal + (new_G - G));
    columns.G[next] = part;
    columns.weight[next] = static_cast<T>(after);
  }
  if (threadIdx.x < kColumns) {
    const unsigned which = __ballot_sync(0xffffffffu, is_dead);
    if (lane == 0) dead[group] = which;
  }
  __syncthreads();
#pragma unroll 1
  for (int word = 0; word < kEach; ++word) {
    for (unsigned left = dead[word]; left != 0; left &= left - 1) {
      const int which = 32 * word + __ffs(static_cast<int>(left)) - 1;
      const double sum_of_entries = log_sum(pass, p, block * kColumns + which, work);
      if (static_cast<int>(threadIdx.x) == which) {
        const double aim = columns.theta * (log_mass - sum_of_entries);
        new_G = G + omega * (aim - G);
        report.finite += new_G * 0.0;
        report.dead = 1;
      }
    }
  }
  if (mine) {
    T new_part, weight;
    take_apart(new_G, offset, new_part, weight);
    columns.potential[(p * 2 + 1 - turn) * width + j] = new_G;
    columns.G[next + width] = new_part;
    columns.weight[next + width] = weight;
  }

  reduce(report, reports);
  if (threadIdx.x == 0) {
    columns.reports[p * columns.blocks + block] = report;
    __threadfence();
    last = atomicAdd(&columns.done[p], 1) == columns.blocks - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  report = Report();
  for (std::int64_t b = threadIdx.x; b < columns.blocks; b += kThreads) {
    const double* const from = &columns.reports[p * columns.blocks + b].error;
#pragma unroll
    for (int which = 0; which < Report::kCount; ++which)
      field(report, which) = combine(which, field(report, which), __ldcg(from + which));
  }
  reduce(report, reports);
  if (threadIdx.x != 0) return;
  columns.done[p] = pass.heaviest[p] = 0;
  double& error = columns.errors[p * columns.count + iteration];
  Flags result = flags;
  if (!isfinite(report.error) || !isfinite(report.finite)) {
    error = INFINITY;
    result.active = 0;
  } else {
    error = report.error;
    if (report.error <= columns.tol) {
      result.active = 0;
    } else {
      const double widest = fmax(report.highest, -report.lowest);
      const bool rebase = report.dead > 0 ||
                          fmax(widest, fmax(report.row_highest, -report.row_lowest)) > kScalingLimit<T> ||
                          report.bound + widest - report.row_lowest > kPassLimit<T>;
      result.rebase = rebase ? 1 : 0;
      result.slot = 2 * (1 - turn) + (rebase ? 1 : 0);
      result.moved = 1;
    }
  }
  columns.flags[p] = result;
}

// All that a call begins with: potentials in bits, logarithms of masses, flags, errors.
template <class T>
__global__ void __launch_bounds__(kThreads)
    begin_kernel(const __grid_constant__ Pass<T> pass, const __grid_constant__ Columns<T> columns, const double* f,
                 const double* g, double* row_log_mass, double* column_log_mass, const std::int64_t span) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t p = at / span, i = at % span, n = pass.cost.n, m = pass.cost.m;
  if (p >= pass.cost.problems) return;
  if (i == 0) {
    columns.flags[p] = {pass.omega[p] > 0 ? 1 : 0, 1, 1, 0};
    columns.done[p] = pass.heaviest[p] = 0;
  }
  if (i < n) {
    pass.F[p * n + i] = f[p * n + i] * pass.kappa;
    row_log_mass[p * n + i] = log2(pass.mass[p * n + i]);
    pass.shift[p * n + i] = 0;
  }
  if (i < m) {
    const double potential = g[p * m + i] * pass.kappa;
    columns.potential[p * 2 * pass.width + i] = potential;
    column_log_mass[p * m + i] = log2(columns.mass[p * m + i]);
    take_apart(potential, offset_of(pass, p, i), columns.G[(p * 4 + 1) * pass.width + i],
               columns.weight[(p * 4 + 1) * pass.width + i]);
  }
  if (i >= m && i < pass.width) {  // the padding of all four
    for (int slot = 0; slot < 4; ++slot) {
      columns.G[(p * 4 + slot) * pass.width + i] = -static_cast<T>(INFINITY);
      columns.weight[(p * 4 + slot) * pass.width + i] = 0;
    }
  }
  for (std::int64_t it = i; it < columns.count; it += span) columns.errors[p * columns.count + it] = NAN;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    end_kernel(const __grid_constant__ Pass<T> pass, const __grid_constant__ Columns<T> columns, double* f, double* g,
               const std::int64_t span) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t p = at / span, i = at % span, n = pass.cost.n, m = pass.cost.m;
  if (p >= pass.cost.problems || !(pass.omega[p] > 0)) return;
  const Flags flags = columns.flags[p];
  if (i < n) f[p * n + i] = pass.F[p * n + i] / pass.kappa;
  if (i < m && flags.moved != 0)
    g[p * m + i] = columns.potential[(p * 2 + flags.slot / 2) * pass.width + i] / pass.kappa;
}

}  // namespace

template <class T>
void sinkhorn(const Execution& exec, std::int64_t problems, const Costs<T>& cost, const double* a, const double* b,
              const double* omega, double* f, double* g, double* errors, const SinkhornOptions& options) {
  quadric::transport::detail::check_options(options);
  if (problems == 0) return;
  Scratch scratch(exec);
  Pass<T> pass;
  pass.cost = batch(exec, scratch, problems, cost);
  const std::int64_t n = pass.cost.n, m = pass.cost.m;
  if (n == 0 || m == 0 || options.count == 0) return;
  const bool stored = pass.cost.kind == CostKind::stored;
  pass.kappa = 1.4426950408889634074 / options.reg;
  pass.theta = options.theta_a;
  pass.width = padded(m);
  PointPlan points;
  if (stored)
    pass.slots = stored_slots<T>(n, m);
  else {
    points = plan_points<T>(exec, scratch, pass.cost, pass.kappa);
    pass.slots = points.slots;
    pass.row_offset = points.row_offset;
    pass.column_offset = points.column_offset;
  }
  pass.omega = omega;
  pass.mass = a;
  double* const row_log_mass = scratch.get<double>(problems * n);
  double* const column_log_mass = scratch.get<double>(problems * m);
  pass.log_mass = row_log_mass;
  pass.F = scratch.get<double>(problems * n);
  pass.shift = scratch.get<T>(problems * n);
  pass.row_error = scratch.get<double>(problems * n);
  pass.row_rest = scratch.get<double>(problems * n);
  pass.heaviest = scratch.get<std::int32_t>(problems);
  pass.partial = scratch.get<T>(problems * pass.slots * pass.width);

  Columns<T> columns;
  columns.theta = options.theta_b;
  columns.tol = options.tol;
  columns.mass = b;
  columns.log_mass = column_log_mass;
  columns.potential = scratch.get<double>(problems * 2 * pass.width);
  columns.G = scratch.get<T>(problems * 4 * pass.width);
  columns.weight = scratch.get<T>(problems * 4 * pass.width);
  columns.flags = scratch.get<Flags>(problems);
  columns.done = scratch.get<std::int32_t>(problems);
  const int each = columns_of_lane(m);
  columns.blocks = (m + 32 * each - 1) / (32 * each);
  columns.reports = scratch.get<Report>(problems * columns.blocks);
  columns.errors = errors;
  columns.count = options.count;
  pass.flags = columns.flags;
  pass.G = columns.G;
  pass.weight = columns.weight;

  const std::int64_t span = std::max(n, pass.width), all = (problems * span + kThreads - 1) / kThreads;
  QUADRIC_REQUIRE(std::max(all, problems * columns.blocks) < std::int64_t{1} << 31,
                  "cost has too many problems for one call");
  const auto grid = static_cast<unsigned>(all);
  begin_kernel<T><<<grid, kThreads, 0, stream(exec)>>>(pass, columns, f, g, row_log_mass, column_log_mass, span);
  QUADRIC_CUDA_LAUNCHED();
  for (std::int64_t iteration = 0; iteration < options.count; ++iteration) {
    pass.backwards = iteration % 2 != 0;
    if (stored)
      stored_pass(exec, pass);
    else
      points_pass(exec, points, pass);
    const auto blocks = static_cast<unsigned>(problems * columns.blocks);
    if (each == 1)
      launch_early(exec, &columns_kernel<T, 1>, blocks, kThreads, 0, 1, pass, columns, iteration);
    else
      launch_early(exec, &columns_kernel<T, 4>, blocks, kThreads, 0, 1, pass, columns, iteration);
  }
  end_kernel<T><<<grid, kThreads, 0, stream(exec)>>>(pass, columns, f, g, span);
  QUADRIC_CUDA_LAUNCHED();
}

#define QUADRIC_INSTANTIATE(T)                                                                                      \
  template QUADRIC_API void sinkhorn(const Execution&, std::int64_t, const Costs<T>&, const double*, const double*, \
                                     const double*, double*, double*, double*, const SinkhornOptions&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::transport
