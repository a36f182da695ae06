// Sinkhorn's iteration on a list of entries.
//
// Floor, for one iteration on E entries, n rows and m columns: columns, costs and values, 20 E bytes, and the values
// once more by columns, 12 E: 32 MB for 1e6 entries, which stay in the second-level cache, 6 us; an exponential in
// float64 each, 16 E operations, 1 us. The list by columns is made once in a call (transpose.cu), 30 us: a call of
// one iteration should take 60 us, each further one 15 us.
//
// In bits: kappa = log2(e) / reg, F = kappa f, G = kappa g. Every iteration looks for the largest exponent of its rows
// anew, so no scaling can overflow: reading a row twice from the first-level cache costs less than the decision.
#include <cmath>
#include <limits>

#include "quadric/cuda/transport.hpp"
#include "require.hpp"
#include "transport/pass.cuh"
#include "transport/sparse.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kHeld = 8;              // entries of a row that a lane holds in registers
constexpr double kNothing = 1e-290;   // of a column's sum
constexpr double kLeast = 0x1p-1022;  // smaller values count as zero
constexpr int kFinishThreads = 1024;

struct Progress {
  std::int32_t done;   // what is launched from here on leaves everything alone
  std::int32_t moves;  // of g
};

struct Problem {
  std::int64_t n, m;
  int row_lanes, column_lanes;
  const std::int64_t* starts;
  const std::int32_t* columns;
  const double* costs;
  Transposed transposed;
  const double *a, *b;
  double kappa, omega;
  double* F;
  double* G[2];  // before and after the columns' turn, alternating
  double* values;
  double* sums;                        // of columns
  double *row_errors, *column_errors;  // of blocks
  Progress* progress;
};

// Which row of this warp's, or column's, the lane works on.
struct Team {
  std::int64_t row;
  int lane;
};
__device__ Team team(int lanes) {
  const std::int64_t thread = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  return {thread / lanes, static_cast<int>(thread % lanes)};
}

__global__ void __launch_bounds__(kThreads) prepare_kernel(Problem p, const double* f, const double* g) {
  const std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  if (k < p.n) p.F[k] = f[k] * p.kappa;
  if (k < p.m) p.G[0][k] = g[k] * p.kappa;
  if (k == 0) *p.progress = {0, 0};
}

// One team for each row: F, and the values with it.
__global__ void __launch_bounds__(kThreads) rows_kernel(Problem p, int turn) {
  __shared__ double room[kWarps];
  if (p.progress->done != 0) return;
  const auto [i, lane] = team(p.row_lanes);
  const int lanes = p.row_lanes;
  const double* const G = p.G[turn];
  const bool mine = i < p.n;
  const std::int64_t begin = mine ? p.starts[i] : 0, end = mine ? p.starts[i + 1] : 0;
  const bool held = end - begin <= kHeld * lanes;
  const double F = mine ? p.F[i] : 0.0;  // by all lanes, before the first of them writes it
  const auto exponent = [&](std::int64_t k) { return fma(-p.kappa, p.costs[k], G[p.columns[k]]); };

  double z[kHeld], top = -INFINITY;
  if (held) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const std::int64_t k = begin + lane + h * lanes;
      z[h] = k < end ? exponent(k) : -INFINITY;
      top = fmax(top, z[h]);
    }
  } else {
#pragma unroll 4
    for (std::int64_t k = begin + lane; k < end; k += lanes) top = fmax(top, exponent(k));
  }
  top = team_max(top, lanes);

  double sum = 0;
  if (held) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      z[h] = begin + lane + h * lanes < end ? power(z[h] - top, 0.0) : 0.0;
      sum += z[h];
    }
  } else {
#pragma unroll 4
    for (std::int64_t k = begin + lane; k < end; k += lanes) {
      const double e = power(exponent(k) - top, 0.0);
      p.values[k] = e;
      sum += e;
    }
  }
  sum = team_sum(sum, lanes);

  double error = 0, scale = 0;
  if (mine) {
    const double a = p.a[i], marginal = log2(sum) + (F + top);
    const double next = F + p.omega * (log2(a) - marginal);  // not finite where the row has no entry, nor what follows
    scale = exp2(next + top);
    if (lane == 0) {
      error = fabs(sum * scale - a) + next * 0.0;
      p.F[i] = next;
    }
  }
  const auto store = [&](std::int64_t k, double e) {
    const double value = e * scale;
    p.values[k] = value < kLeast ? 0.0 : value;
  };
  if (held) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const std::int64_t k = begin + lane + h * lanes;
      if (k < end) store(k, z[h]);
    }
  } else {
#pragma unroll 4
    for (std::int64_t k = begin + lane; k < end; k += lanes) store(k, p.values[k]);
  }
  error = block_sum<kWarps>(error, room);
  if (threadIdx.x == 0) p.row_errors[blockIdx.x] = error;
}

// log2 of the sum of 2^z over each column of a warp, for columns whose values are about the smallest numbers or less.
__device__ double column_marginal(const Problem& p, std::int64_t begin, std::int64_t end, int lane, double G) {
  const auto exponent = [&](std::int64_t at) {
    const std::int64_t k = p.transposed.order[at];
    std::int64_t low = 0, high = p.n;  // the row: starts[low] <= k < starts[high]
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (p.starts[middle] <= k ? low : high) = middle;
    }
    return p.F[low] + (G - p.kappa * p.costs[k]);
  };
  double top = -INFINITY, sum = 0;
  for (std::int64_t at = begin + lane; at < end; at += p.column_lanes) top = fmax(top, exponent(at));
  top = team_max(top, p.column_lanes);
  for (std::int64_t at = begin + lane; at < end; at += p.column_lanes) sum += power(exponent(at) - top, 0.0);
  return top + log2(team_sum(sum, p.column_lanes));
}

// One team for each column: its sum, and the G that follows from it.
__global__ void __launch_bounds__(kThreads) columns_kernel(Problem p, int turn) {
  __shared__ double room[kWarps];
  if (p.progress->done != 0) return;
  const auto [j, lane] = team(p.column_lanes);
  const int lanes = p.column_lanes;
  const bool mine = j < p.m;
  const std::int64_t begin = mine ? p.transposed.starts[j] : 0, end = mine ? p.transposed.starts[j + 1] : 0;
  const double G = mine ? p.G[turn][j] : 0.0;
  double sum = 0;
#pragma unroll 4
  for (std::int64_t at = begin + lane; at < end; at += lanes) sum += p.values[p.transposed.order[at]];
  sum = team_sum(sum, lanes);
  double marginal = log2(sum);
  if (__any_sync(kAllLanes, mine && sum <= kNothing)) {
    const double exact = column_marginal(p, begin, end, lane, G);  // not finite where the column has no entry
    if (sum <= kNothing) {
      marginal = exact;
      sum = kLeast;  // nothing, but it has a logarithm
    }
  }
  double error = 0;
  if (mine && lane == 0) {
    const double b = p.b[j], next = G + p.omega * (log2(b) - marginal);
    p.G[1 - turn][j] = next;
    p.sums[j] = sum;
    error = fabs(sum - b) + next * 0.0;
  }
  error = block_sum<kWarps>(error, room);
  if (threadIdx.x == 0) p.column_errors[blockIdx.x] = error;
}

// One block: the error, and whether it is the last.
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(Problem p, std::int64_t row_blocks, std::int64_t column_blocks, double* error, double tol) {
  __shared__ double room[kFinishThreads / 32];
  if (p.progress->done != 0) {
    if (threadIdx.x == 0) *error = NAN;
    return;
  }
  double sum = 0;
  for (std::int64_t k = threadIdx.x; k < row_blocks; k += kFinishThreads) sum += p.row_errors[k];
  for (std::int64_t k = threadIdx.x; k < column_blocks; k += kFinishThreads) sum += p.column_errors[k];
  sum = block_sum<kFinishThreads / 32>(sum, room);
  if (threadIdx.x != 0) return;
  const bool failed = !isfinite(sum);
  *error = failed ? INFINITY : sum;
  if (failed || sum <= tol)
    p.progress->done = 1;
  else
    ++p.progress->moves;
}

__global__ void __launch_bounds__(kThreads) conclude_kernel(Problem p, double* f, double* g) {
  const std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  const std::int32_t moves = p.progress->moves;
  if (k < p.n) f[k] = p.F[k] / p.kappa;
  if (k < p.m && moves > 0) g[k] = p.G[moves % 2][k] / p.kappa;
}

}  // namespace

void sparse_sinkhorn(const Execution& exec, const SparseView& pattern, std::int64_t entries, const double* costs,
                     const double* a, const double* b, double* f, double* g, double* errors, double* values,
                     double* columns_sums, const SparseSinkhornOptions& options) {
  QUADRIC_REQUIRE(options.reg > 0, "reg must be positive");
  QUADRIC_REQUIRE(options.count >= 0, "count must not be negative");
  if (pattern.rows == 0 || pattern.cols == 0 || options.count == 0) return;
  Scratch scratch(exec);
  Problem p{};
  p.n = pattern.rows;
  p.m = pattern.cols;
  p.row_lanes = lanes_for(entries, p.n);
  p.column_lanes = lanes_for(entries, p.m);
  p.starts = pattern.starts;
  p.columns = pattern.columns;
  p.costs = costs;
  p.transposed = transpose(exec, scratch, pattern.columns, entries, p.m);
  p.a = a;
  p.b = b;
  p.kappa = 1.4426950408889634074 / options.reg;
  p.omega = options.omega;
  p.F = scratch.get<double>(p.n);
  for (double*& G : p.G) G = scratch.get<double>(p.m);
  p.values = values != nullptr ? values : scratch.get<double>(entries);
  p.sums = columns_sums;
  const unsigned row_blocks = blocks_for(p.n * p.row_lanes, kThreads);
  const unsigned column_blocks = blocks_for(p.m * p.column_lanes, kThreads);
  p.row_errors = scratch.get<double>(row_blocks);
  p.column_errors = scratch.get<double>(column_blocks);
  p.progress = scratch.get<Progress>(1);

  const unsigned either = blocks_for(p.n > p.m ? p.n : p.m, kThreads);
  prepare_kernel<<<either, kThreads, 0, stream(exec)>>>(p, f, g);
  QUADRIC_CUDA_LAUNCHED();
  for (std::int64_t it = 0; it < options.count; ++it) {
    const int turn = static_cast<int>(it % 2);
    rows_kernel<<<row_blocks, kThreads, 0, stream(exec)>>>(p, turn);
    QUADRIC_CUDA_LAUNCHED();
    columns_kernel<<<column_blocks, kThreads, 0, stream(exec)>>>(p, turn);
    QUADRIC_CUDA_LAUNCHED();
    finish_kernel<<<1, kFinishThreads, 0, stream(exec)>>>(p, row_blocks, column_blocks, errors + it, options.tol);
    QUADRIC_CUDA_LAUNCHED();
  }
  conclude_kernel<<<either, kThreads, 0, stream(exec)>>>(p, f, g);
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace quadric::cuda::transport
