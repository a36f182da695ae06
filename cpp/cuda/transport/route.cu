// Tokens to experts of limited capacity, in one launch (quadric/cuda/transport.hpp says what is solved and how).
//
// All blocks of threads stay for the whole solution. In turn they go through the rows, each a group of lanes, which
// project a row onto its simplex and gather column sums, counts and the Laplacian of the experts; then the first block
// decides: it takes the step back by half or so, accepts it and solves for the next one, goes on to another reg, or has
// the blocks choose the places. What the blocks gather are whole numbers, so the number of blocks does not matter.
//
// Floor: a pass reads the scores, from L2 after the first time: 10 000 tokens, 64 experts in float32, 2.6 MB: 1 us. Two
// barriers of all blocks, 3 us, and the solution with a 64 x 64 matrix by one block, 10 us, are more. 15 to 90 passes:
// 0.3 to 2 ms.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "device.hpp"
#include "quadric/cuda/transport.hpp"
#include "require.hpp"
#include "transport/columns.cuh"
#include "transport/route.cuh"

namespace quadric::cuda::transport {
namespace {

using router::Whole;

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr int kHalvings = 12;        // of one step
constexpr int kLevelPasses = 60;     // with one reg
constexpr int kLevels = 40;          // values of reg
constexpr int kGentle = 6;           // of them by halves, the others by quarters
constexpr int kTied = 8;             // after so many of them there must be ties
constexpr double kNoise = 1e-4;      // that are broken by a noise of this part of the range of the scores
constexpr double kLeast = 1e-11;     // reg below which sums are rounding, relative to the scores
constexpr double kLevelTol = 1e-7;   // error per token on the way
constexpr double kClose = 1e-5;      // and what it may be where a plan fits
constexpr double kRounding = 1e-14;  // what there is no use in asking for less than
constexpr double kOvershoot = 0.1;   // share of the slope that may be left with the other sign

enum class Phase : int { evaluate, places, finish };

// One number of each, in device memory; the first block writes it between barriers.
struct Control {
  Phase phase;
  int fixed;      // the places are chosen
  int fits;       // no expert has more tokens than it may
  int searching;  // trial is on a line from g
  int halvings, levels, level_passes, passes, budget;
  int partial, broken, capacity;
  double reg;  // of this level
  double step, slope, shift, radius, total;
  double noise;  // added to the scores where places are looked for
};

struct Memory {
  Control* control;
  unsigned* arrived;  // at barriers
  Whole *tokens, *broken, *lowest, *highest, *error;
  Whole *sums, *counts, *laplacian;             // experts, experts, experts^2
  double *g, *trial, *direction, *loads, *gap;  // experts
  double *matrix, *room;                        // of the solver
  double* f;                                    // tokens
  unsigned char* places;                        // tokens x experts
  int* count;                                   // tokens: their experts
};

template <class T>
struct Problem {
  const T* scores;
  std::int64_t row_stride, col_stride, n;
  int experts, width, bits;
  RouteMask mask;
  const double* loads;
  RouteOptions options;
  T* gates;
  bool* tight;
  double* f;
  double* error;
  std::int64_t* iterations;

  __device__ double score(std::int64_t i, int j) const {
    return static_cast<double>(scores[i * row_stride + j * col_stride]);
  }
  __device__ bool allowed(std::int64_t i, int j) const {
    return mask.data == nullptr || mask.data[i * mask.row_stride + j * mask.col_stride];
  }
};

// A number between 0 and 1 that tells equal tokens apart (the mixing steps of splitmix64).
__device__ inline double token_noise(std::int64_t i, int j) {
  std::uint64_t x = (static_cast<std::uint64_t>(i) << 10 | static_cast<std::uint64_t>(j)) + 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return static_cast<double>((x ^ x >> 31) >> 11) * 0x1p-53;
}

// All blocks have come here, and see what the others wrote.
__device__ void barrier(unsigned* arrived, unsigned& awaited) {
  __syncthreads();
  if (threadIdx.x == 0) {
    awaited += gridDim.x;
    __threadfence();
    atomicAdd(arrived, 1u);
    while (static_cast<int>(*static_cast<volatile unsigned*>(arrived) - awaited) < 0) {
    }
    __threadfence();
  }
  __syncthreads();
}

// ---- all blocks: rows ----------------------------------------------------------------------------------------------

template <class T>
__device__ std::int64_t first_row(const Problem<T>& p) {
  return (blockIdx.x * std::int64_t{kThreads} + threadIdx.x) / 32 * (32 / p.width);
}
template <class T>
__device__ std::int64_t rows_at_once(const Problem<T>& p) {
  return gridDim.x * std::int64_t{kWarps} * (32 / p.width);
}

// Tokens that take part, the range of their scores, and whether all are finite.
template <class T>
__device__ void look(const Problem<T>& p, const Memory& m) {
  const int lane = static_cast<int>(threadIdx.x) % 32, own = lane % p.width;
  Whole tokens = 0, broken = 0;
  double low = kInfinity, high = -kInfinity;
  for (std::int64_t start = first_row(p); start < p.n; start += rows_at_once(p)) {
    const std::int64_t i = start + lane / p.width;
    int allowed = 0;
    if (i < p.n) {
      for (int j = own; j < p.experts; j += p.width) {
        const double s = p.score(i, j);
        if (!(fabs(s) < kInfinity)) broken = 1;
        if (!p.allowed(i, j)) continue;
        allowed = 1;
        low = fmin(low, s);
        high = fmax(high, s);
      }
    }
    allowed = router::group_sum(allowed, p.width);
    tokens += own == 0 && allowed > 0;
  }
  tokens = column::block_sum<kThreads>(tokens);
  broken = column::block_sum<kThreads>(broken);
  high = column::block_max<kThreads>(high);
  low = -column::block_max<kThreads>(-low);
  if (threadIdx.x == 0) {
    atomicAdd(m.tokens, tokens);
    atomicAdd(m.broken, broken);
    atomicMin(m.lowest, static_cast<Whole>(column::ordered(low)));
    atomicMax(m.highest, static_cast<Whole>(column::ordered(high)));
  }
}

// A row for prices g: the potential f with which the entries [f + g_j + s_ij]_+ sum to reg, at most 0 if partial.
struct Row {
  double f;
  int count;
  bool free;
};
template <class Value>
__device__ Row project(const Value& value, int experts, int width, int own, double reg, bool partial) {
  Row row{kInfinity, 0, false};
  for (int round = 0; round <= experts + 1; ++round) {
    double sum = 0;
    int count = 0;
    for (int j = own; j < experts; j += width) {
      const double v = value(j);
      if (v > -kInfinity && v + row.f > 0) {
        sum += v;
        ++count;
      }
    }
    count = router::group_sum(count, width);
    sum = router::group_sum(sum, width);
    const bool moved = count > 0 && count != row.count;
    if (moved) {
      row.f = (reg - sum) / count;
      row.count = count;
    }
    if (!__any_sync(router::kAll, moved)) break;
  }
  row.free = row.count > 0;
  if (row.count == 0) row.f = 0;
  if (partial && row.f >= 0) {
    row.f = 0;
    row.free = false;
  }
  return row;
}

// Column sums, counts and L for the prices `trial`. shared: room of the block.
template <class T>
__device__ void evaluate(const Problem<T>& p, const Memory& m, char* shared) {
  const Control& c = *m.control;
  const int lane = static_cast<int>(threadIdx.x) % 32, own = lane % p.width, E = p.experts;
  const int groups = kThreads / p.width, group = static_cast<int>(threadIdx.x) / p.width;
  // A lane has the columns own, own + width, ... of its group to itself: nothing is added by two.
  auto* const sums = reinterpret_cast<Whole*>(shared);
  auto* const counts = reinterpret_cast<unsigned*>(sums + static_cast<std::int64_t>(groups) * E);
  const bool local = E <= router::kSharedExperts;
  auto* const block_laplacian =
      reinterpret_cast<Whole*>(shared + (static_cast<std::int64_t>(groups) * E * 12 + 15) / 16 * 16);
  Whole* const L = local ? block_laplacian : m.laplacian;
  for (int t = static_cast<int>(threadIdx.x); t < groups * E; t += kThreads) {
    sums[t] = 0;
    counts[t] = 0;
  }
  for (int t = static_cast<int>(threadIdx.x); local && t < E * E; t += kThreads) block_laplacian[t] = 0;
  __syncthreads();
  const double reg = c.reg, unit = static_cast<double>(1ll << p.bits) / reg, noise = c.noise;
  const bool fixed = c.fixed != 0, partial = c.partial != 0;
  const unsigned char* const places = m.places;
  for (std::int64_t start = first_row(p); start < p.n; start += rows_at_once(p)) {
    const std::int64_t i = start + lane / p.width;
    const auto value = [&](int j) {
      if (i >= p.n || (fixed ? places[i * E + j] == 0 : !p.allowed(i, j))) return -kInfinity;
      const double v = m.trial[j] + p.score(i, j);
      return noise > 0 ? v + noise * token_noise(i, j) : v;
    };
    const Row row = project(value, E, p.width, own, reg, partial);
    int count = 0;
    for (int j = own; j < E; j += p.width) {
      const double z = value(j) + row.f;
      if (!(z > 0)) continue;
      sums[group * E + j] += static_cast<Whole>(__double2ll_rn(z * unit));
      ++counts[group * E + j];
      ++count;
    }
    count = router::group_sum(count, p.width);
    router::add_row(L, E, p.width, count, row.free, p.bits, [&](int j) { return value(j) + row.f > 0; });
    if (own == 0 && i < p.n) {
      m.f[i] = row.f;
      m.count[i] = count;
    }
  }
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < E; j += kThreads) {
    Whole sum = 0, count = 0;
    for (int q = 0; q < groups; ++q) {
      sum += sums[q * E + j];
      count += counts[q * E + j];
    }
    if (count != 0) {
      atomicAdd(&m.sums[j], sum);
      atomicAdd(&m.counts[j], count);
    }
  }
  for (int t = static_cast<int>(threadIdx.x); local && t < E * E; t += kThreads)
    if (block_laplacian[t] != 0) atomicAdd(&m.laplacian[t], block_laplacian[t]);
}

// ---- the first block: what comes next ------------------------------------------------------------------------------

// Equal loads; in whole tokens, more for the first experts, where the places are too few for tokens that are shared.
template <class T>
__device__ void begin(const Problem<T>& p, const Memory& m) {
  Control& c = *m.control;
  const int E = p.experts;
  const double total = static_cast<double>(*m.tokens);
  std::int64_t capacity = p.options.capacity;
  if (capacity <= 0) {
    const double places = ceil(p.options.capacity_factor * total / E - 1e-9);
    capacity = places < static_cast<double>(p.n) ? static_cast<std::int64_t>(places) : p.n;
  }
  capacity = capacity < 1 ? 1 : capacity > p.n ? p.n : capacity;
  const double room = static_cast<double>(capacity);
  const bool whole = total <= room * E && room * E < total + E - 1;
  const double even = fmin(total / E, room), floored = floor(even);
  const int more = whole ? static_cast<int>(total - floored * E) : 0;
  double given = 0;
  for (int j = static_cast<int>(threadIdx.x); j < E; j += kThreads) {
    const double load = p.loads != nullptr ? p.loads[j] : whole ? floored + (j < more ? 1 : 0) : even;
    m.loads[j] = load;
    m.g[j] = m.trial[j] = load > 0 ? 0.0 : -kInfinity;
    m.direction[j] = 0;
    given += load;
  }
  given = column::block_sum<kThreads>(given);
  if (threadIdx.x == 0) {
    const auto number = [](Whole key) {
      const std::uint64_t bits = key >> 63 ? key & ~(std::uint64_t{1} << 63) : ~key;
      double x;
      memcpy(&x, &bits, sizeof x);
      return x;
    };
    const double spread = total > 0 ? fmax(number(*m.highest) - number(*m.lowest), 0.0) : 0.0;
    c = Control{};
    c.broken = *m.broken != 0;
    c.phase = c.broken != 0 || total == 0 ? Phase::finish : Phase::evaluate;
    c.partial = given < total * (1 - 1e-12);
    c.capacity = static_cast<int>(capacity);
    c.budget = static_cast<int>(p.options.max_iter < 100000 ? p.options.max_iter : 100000) * 8;
    c.reg = fmax(p.options.reg, spread / 4);  // not too far from the flat plan that g = 0 has
    c.radius = 2 * spread + p.options.reg;
    c.shift = 1e-12;
    c.total = total;
  }
  __syncthreads();
}

template <class T>
__device__ void clear(const Problem<T>& p, const Memory& m) {
  const int E = p.experts;
  for (int j = static_cast<int>(threadIdx.x); j < E; j += kThreads) m.sums[j] = m.counts[j] = 0;
  for (int t = static_cast<int>(threadIdx.x); t < E * E; t += kThreads) m.laplacian[t] = 0;
}

// After a pass: writes the next prices to try, or what is to be done. `matrix`: room for E rows of solve_stride(E).
template <class T>
__device__ void decide(const Problem<T>& p, const Memory& m, double* matrix) {
  Control& c = *m.control;
  const int thread = static_cast<int>(threadIdx.x), E = p.experts;
  const double unit = 1 / static_cast<double>(1ll << p.bits);
  double off = 0, along = 0;
  int full = 0;
  for (int j = thread; j < E; j += kThreads) {
    const double gap = m.loads[j] - static_cast<double>(static_cast<long long>(m.sums[j])) * unit;
    m.gap[j] = gap;
    off += fabs(gap);
    along += gap * m.direction[j];
    full += m.counts[j] > static_cast<Whole>(c.capacity);
  }
  const double error = column::block_sum<kThreads>(off), slope = column::block_sum<kThreads>(along);
  full = column::block_sum<kThreads>(full);
  // All threads take the same way through what follows: they have the same numbers, and read before one writes.
  const Control now = c;
  __syncthreads();
  const int passes = now.passes + 1, level_passes = now.level_passes + 1;
  // The last quarter of the passes is kept for the problem on the places.
  const int budget = now.fixed != 0 ? now.budget : now.budget - now.budget / 4;
  const bool spent = passes >= budget;
  if (now.searching != 0 && slope < -kOvershoot * now.slope && now.halvings < kHalvings && !spent) {
    const double shorter = now.step * fmin(fmax(now.slope / (now.slope - slope), 0.1), 0.8);
    for (int j = thread; j < E; j += kThreads) m.trial[j] = m.g[j] + shorter * m.direction[j];
    if (thread == 0) {
      c.passes = passes;
      c.level_passes = level_passes;
      ++c.halvings;
      c.step = shorter;
    }
    clear(p, m);
    __syncthreads();
    return;
  }
  for (int j = thread; j < E; j += kThreads) m.g[j] = m.trial[j];
  double shift = now.shift;
  if (now.searching != 0) shift = now.step < 0.3 ? fmin(fmax(10 * shift, 1e-6), 1.0) : fmax(shift / 10, 1e-12);
  const double tol = now.fixed != 0 ? fmax(p.options.tol, kRounding) : kLevelTol;
  const bool done = error <= tol * now.total || spent || level_passes >= kLevelPasses;
  if (done) {
    const double reg = p.options.reg;
    const bool fits = full == 0 && error <= kClose * now.total;
    double next = now.reg;
    Phase phase = Phase::evaluate;
    if (now.fixed != 0) {
      phase = Phase::finish;
    } else if (now.reg > reg && !spent) {
      next = fmax(now.reg / 4, reg);
    } else if (fits || spent || now.levels >= kLevels || now.reg < kLeast * now.radius) {
      phase = Phase::places;
      next = reg;
    } else {
      next = now.reg / (now.levels < kGentle ? 2 : 4);
    }
    for (int j = thread; j < E; j += kThreads) m.direction[j] = 0;
    if (thread == 0) {
      c.phase = phase;
      c.fixed = now.fixed != 0 || phase == Phase::places;
      c.searching = 0;
      c.halvings = 0;
      c.passes = passes;
      c.level_passes = 0;
      c.levels += now.reg <= reg;
      c.fits = fits;
      c.reg = next;
      c.shift = 1e-12;
      if (now.fixed == 0 && phase == Phase::evaluate && now.levels == kTied)
        c.noise = kNoise * ((now.radius - reg) / 2 + reg / 64);
    }
    clear(p, m);
    __syncthreads();
    return;
  }
  const int stride = router::solve_stride(E);
  double most = 0;
  for (int j = thread; j < E; j += kThreads) {
    most = fmax(most, static_cast<double>(static_cast<long long>(m.laplacian[j * E + j])) * unit);
    m.direction[j] = m.gap[j];
  }
  most = fmax(column::block_max<kThreads>(most), 1.0);
  for (int t = thread; t < E * E; t += kThreads) {
    const int i = t / E, j = t % E;
    if (j > i) continue;
    const double entry = static_cast<double>(static_cast<long long>(m.laplacian[t])) * unit;
    matrix[i * stride + j] = i == j ? entry + shift * most : entry;
  }
  __syncthreads();
  router::solve<kThreads>(matrix, E, stride, m.direction, m.room, 1e-15);
  double longest = 0;
  for (int j = thread; j < E; j += kThreads) longest = fmax(longest, fabs(m.direction[j]) * now.reg);
  longest = column::block_max<kThreads>(longest);
  const double scale = now.reg * (longest > now.radius ? now.radius / longest : 1.0);
  double uphill = 0;
  for (int j = thread; j < E; j += kThreads) {
    const double d = m.direction[j] * scale;
    m.direction[j] = d;
    m.trial[j] += d;  // g is where the trial was
    uphill += d * m.gap[j];
  }
  uphill = column::block_sum<kThreads>(uphill);
  if (thread == 0) {
    c.searching = 1;
    c.halvings = 0;
    c.passes = passes;
    c.level_passes = level_passes;
    c.step = 1;
    c.slope = uphill;
    c.shift = shift;
  }
  clear(p, m);
  __syncthreads();
}

// ---- all blocks: columns -------------------------------------------------------------------------------------------

// The places of each expert: its entries of the plan, and then tokens that have few experts, the largest f_i + g_j +
// s_ij first; the first tokens among equals. Where its entries are too many, the largest.
template <class T>
__device__ void choose_places(const Problem<T>& p, const Memory& m) {
  const std::int64_t capacity = m.control->capacity;
  const double noise = m.control->noise;
  const bool fits = m.control->fits != 0;
  unsigned char* const places = m.places;
  for (int j = static_cast<int>(blockIdx.x); j < p.experts; j += static_cast<int>(gridDim.x)) {
    const bool open = m.loads[j] > 0;
    const auto key = [&](std::int64_t i) {
      if (!open || !p.allowed(i, j)) return std::uint64_t{0};
      double z = m.trial[j] + p.score(i, j);  // as it was evaluated
      if (noise > 0) z += noise * token_noise(i, j);
      z += m.f[i];
      const std::uint64_t u = column::ordered(z);
      if (!fits) return u;
      if (z > 0) return ~std::uint64_t{0};
      const std::uint64_t few = m.count[i] < 63 ? 63 - m.count[i] : 0;
      return few << 58 | u >> 6;
    };
    std::int64_t own = 0;
    for (std::int64_t i = threadIdx.x; i < p.n; i += kThreads) own += key(i) != 0;
    const bool choose = column::block_sum<kThreads>(own) > capacity;
    column::Limit limit;
    if (choose) limit = column::kth_largest<kThreads>(p.n, capacity, key);
    std::int64_t ties = 0;
    for (std::int64_t start = 0; start < p.n; start += kThreads) {
      const std::int64_t i = start + threadIdx.x;
      const std::uint64_t u = i < p.n ? key(i) : 0;
      bool taken = u > limit.key;
      if (choose) {
        const column::Ranks ranks = column::block_ranks<kThreads>(u == limit.key, false);
        taken = taken || (u == limit.key && ties + ranks.first < limit.ties);
        ties += ranks.firsts;
      }
      if (i < p.n) places[i * p.experts + j] = taken;
    }
    __syncthreads();
  }
}

// Gates: each column [f_i + g_j + s_ij]_+ / reg on its places, with the price for which it has its load. What is
// missing from a load that no place can carry counts as error.
template <class T>
__device__ void write_gates(const Problem<T>& p, const Memory& m) {
  const Control& c = *m.control;
  const double reg = p.options.reg;
  const unsigned char* const places = m.places;
  for (int j = static_cast<int>(blockIdx.x); j < p.experts; j += static_cast<int>(gridDim.x)) {
    const double mass = reg * m.loads[j];
    const auto z = [&](std::int64_t i) { return m.f[i] + p.score(i, j); };
    const bool open = mass > 0 && c.broken == 0 && c.total > 0;
    double g = kInfinity;
    std::int64_t count = 0, before = -1;
    for (int round = 0; open && round < 256 && count != before; ++round) {
      double sum = 0;
      std::int64_t own = 0;
      for (std::int64_t i = threadIdx.x; i < p.n; i += kThreads) {
        if (places[i * p.experts + j] == 0 || !(round == 0 || z(i) + g > 0)) continue;
        sum += z(i);
        ++own;
      }
      before = count;
      count = column::block_sum<kThreads>(own);
      sum = column::block_sum<kThreads>(sum);
      if (count > 0) g = (mass - sum) / static_cast<double>(count);
    }
    for (std::int64_t i = threadIdx.x; i < p.n; i += kThreads) {
      double gate = c.broken != 0 ? std::numeric_limits<double>::quiet_NaN() : 0.0;
      if (count > 0 && places[i * p.experts + j] != 0) gate = fmax(z(i) + g, 0.0) / reg;
      p.gates[i * p.experts + j] = static_cast<T>(gate);
    }
    if (threadIdx.x == 0) {
      m.g[j] = count > 0 ? g : -kInfinity;
      if (open && count == 0)
        atomicAdd(m.error, static_cast<Whole>(__double2ll_rn(m.loads[j] * static_cast<double>(1ll << (p.bits - 2)))));
    }
  }
}

// What rows miss, and which of them are tight.
template <class T>
__device__ void judge(const Problem<T>& p, const Memory& m) {
  const Control& c = *m.control;
  const int lane = static_cast<int>(threadIdx.x) % 32, own = lane % p.width;
  const double reg = p.options.reg, unit = static_cast<double>(1ll << (p.bits - 2));
  const unsigned char* const places = m.places;
  Whole error = 0;
  for (std::int64_t start = first_row(p); start < p.n; start += rows_at_once(p)) {
    const std::int64_t i = start + lane / p.width;
    double sum = 0;
    int allowed = 0;
    if (i < p.n && c.broken == 0 && c.total > 0) {
      for (int j = own; j < p.experts; j += p.width) {
        allowed |= p.allowed(i, j);
        if (places[i * p.experts + j] != 0 && m.g[j] > -kInfinity) sum += fmax((m.f[i] + p.score(i, j)) + m.g[j], 0.0);
      }
    }
    sum = router::group_sum(sum, p.width) / reg;
    allowed = router::group_sum(allowed, p.width);
    if (own != 0 || i >= p.n) continue;
    const bool tight = allowed > 0 && (c.partial == 0 || m.f[i] < 0);
    if (allowed > 0 && (tight || sum > 1))
      error += static_cast<Whole>(__double2ll_rn(fmin(fabs(1 - sum), static_cast<double>(p.n)) * unit));
    p.tight[i] = tight;
    if (p.f != nullptr) p.f[i] = allowed > 0 ? m.f[i] : -kInfinity;
  }
  error = column::block_sum<kThreads>(error);
  if (threadIdx.x == 0) atomicAdd(m.error, error);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) route_kernel(const Problem<T> p, const Memory m, bool inside) {
  extern __shared__ __align__(16) char shared[];
  double* const matrix = inside ? reinterpret_cast<double*>(shared) : m.matrix;
  unsigned awaited = 0;
  look(p, m);
  barrier(m.arrived, awaited);
  if (blockIdx.x == 0) begin(p, m);
  barrier(m.arrived, awaited);
  for (;;) {
    const Phase phase = m.control->phase;  // written by the first block, before the last barrier
    if (phase == Phase::finish) break;
    if (phase == Phase::places) {
      choose_places(p, m);
      barrier(m.arrived, awaited);
      if (blockIdx.x == 0 && threadIdx.x == 0) {
        m.control->phase = Phase::evaluate;
        m.control->noise = 0;
      }
    } else {
      evaluate(p, m, shared);
      barrier(m.arrived, awaited);
      if (blockIdx.x == 0) decide(p, m, matrix);
    }
    barrier(m.arrived, awaited);
  }
  write_gates(p, m);
  barrier(m.arrived, awaited);
  judge(p, m);
  barrier(m.arrived, awaited);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    const Control& c = *m.control;
    const double unit = 1 / static_cast<double>(1ll << (p.bits - 2));
    *p.error = c.broken != 0 ? std::numeric_limits<double>::quiet_NaN()
                             : static_cast<double>(static_cast<long long>(*m.error)) * unit / fmax(c.total, 1.0);
    *p.iterations = c.passes;
  }
}

std::size_t evaluate_bytes(int experts) {
  const std::size_t groups = static_cast<std::size_t>(kThreads / router::group_width(experts)),
                    E = static_cast<std::size_t>(experts);
  const std::size_t lists = (groups * E * 12 + 15) / 16 * 16;
  return lists + (experts <= router::kSharedExperts ? E * E * sizeof(Whole) : 0);
}

}  // namespace

template <class T>
void route(const Execution& exec, MatrixView<const T> scores, const RouteMask& mask, const double* loads, T* gates,
           bool* tight, double* f, double* error, std::int64_t* iterations, const RouteOptions& options) {
  QUADRIC_REQUIRE(scores.rows > 0 && scores.cols > 0, "scores must have at least one entry");
  QUADRIC_REQUIRE(scores.cols <= router::kExperts, "scores must have at most 1024 experts on a GPU");
  QUADRIC_REQUIRE(scores.rows < std::int64_t{1} << 31, "scores must have fewer than 2^31 tokens");
  QUADRIC_REQUIRE(options.reg > 0, "reg must be above 0");
  QUADRIC_REQUIRE(options.max_iter >= 1, "max_iter must be at least 1");
  const int E = static_cast<int>(scores.cols);
  const std::int64_t n = scores.rows;
  Problem<T> p{scores.data,
               scores.row_stride,
               scores.col_stride,
               n,
               E,
               router::group_width(E),
               router::fraction_bits(n),
               mask,
               loads,
               options,
               gates,
               tight,
               f,
               error,
               iterations};
  Scratch scratch(exec);
  Memory m;
  constexpr int kNumbers = 8;
  const std::int64_t wholes = kNumbers + 2 * E + std::int64_t{E} * E;
  Whole* const whole = scratch.get<Whole>(wholes);
  QUADRIC_CUDA(cudaMemsetAsync(whole, 0, static_cast<std::size_t>(wholes) * sizeof(Whole), stream(exec)));
  QUADRIC_CUDA(cudaMemsetAsync(whole + 2, 0xff, sizeof(Whole), stream(exec)));  // the least comes after it
  m.tokens = whole;
  m.broken = whole + 1;
  m.lowest = whole + 2;
  m.highest = whole + 3;
  m.error = whole + 4;
  m.arrived = reinterpret_cast<unsigned*>(whole + 5);
  m.sums = whole + kNumbers;
  m.counts = m.sums + E;
  m.laplacian = m.counts + E;
  m.control = scratch.get<Control>(1);
  double* const numbers = scratch.get<double>(6 * E);
  m.g = numbers;
  m.trial = m.g + E;
  m.direction = m.trial + E;
  m.loads = m.direction + E;
  m.gap = m.loads + E;
  m.room = m.gap + E;
  m.f = scratch.get<double>(n);
  m.places = scratch.get<unsigned char>(n * E);
  m.count = scratch.get<int>(n);
  const std::size_t limit = static_cast<std::size_t>(shared_limit()) - 8192;  // static shared memory needs some
  const std::size_t square =
      static_cast<std::size_t>(E) * static_cast<std::size_t>(router::solve_stride(E)) * sizeof(double);
  bool inside = square <= limit;
  m.matrix = inside ? nullptr : scratch.get<double>(std::int64_t{E} * router::solve_stride(E));
  const std::size_t bytes = std::max(evaluate_bytes(E), inside ? square : 0);
  const auto kernel = route_kernel<T>;
  QUADRIC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  // Enough rows for each warp, and never more blocks than can be there at once.
  const std::int64_t wanted = std::max<std::int64_t>((n + 4 * kWarps - 1) / (4 * kWarps), (E + 3) / 4);
  const auto blocks = static_cast<unsigned>(std::clamp<std::int64_t>(wanted, 1, multiprocessors()));
  void* arguments[] = {&p, &m, &inside};
  QUADRIC_CUDA(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(kThreads),
                                           arguments, bytes, stream(exec)));
}

#define QUADRIC_INSTANTIATE(T)                                                                                       \
  template QUADRIC_API void route(const Execution&, MatrixView<const T>, const RouteMask&, const double*, T*, bool*, \
                                  double*, double*, std::int64_t*, const RouteOptions&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::transport
