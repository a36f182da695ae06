// Whole solutions of small problems, a block of threads for each.
//
// The entries E_ij = 2^(F_i + G_j - kappa C_ij) are computed once and kept in shared memory; an iteration scales them,
// E_ij u_i w_j, and they are computed anew only where a scaling has gone too far. So an iteration costs two sweeps over
// E, and a logarithm and an exponential for each row and column. Those of stored costs in float32, up to 64 x 64, stay
// in registers from one iteration to the next (tile.cuh), and shared memory is read for the scalings only.
//
// Floor: 8192 products an iteration of a problem of 64 x 64; of 1024 of them in float32, 8 for each multiprocessor, at
// 128 products a cycle: 512 cycles = 0.3 us an iteration of all. The steps of one problem's iteration follow one
// another, sums over threads and functions in float64 with some 30 products each between the sweeps: 2000 cycles, in
// which the others work; to be reached: 1.5 us.
#include <cstdint>

#include "require.hpp"
#include "transport/batch.hpp"
#include "transport/factor.cuh"
#include "transport/options.hpp"
#include "transport/pass.cuh"
#include "transport/tile.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kLevel = 10;        // iterations at most at a larger reg on the way down
constexpr double kCoarse = 3e-2;  // share of the mass that the error may have there

template <class T>
struct Task {
  Batch<T> cost;
  double kappa = 0, theta_a = 1, theta_b = 1, tol = 0;
  double power_a = 0, power_b = 0;  // (theta - 1) / theta: the sums of such a side are to be a 2^(power F)
  std::int64_t count = 0;
  const double *a = nullptr, *b = nullptr, *omega = nullptr;
  double *f = nullptr, *g = nullptr, *errors = nullptr;
  std::int64_t* iterations = nullptr;
  double* kept = nullptr;  // problems x 2 x (n + m): potentials before a run, and the best so far
  double* seen = nullptr;  // problems x kSeen
  bool anneal = false;
  double* measures = nullptr;  // kMeasures x problems
  bool* converged = nullptr;   // problems
  double wanted = 0;
};

// Where the arrays of a problem lie in shared memory, in bytes.
struct Layout {
  std::int64_t stride;  // of E: odd, so that threads side by side may read rows; kSide for a tile
  std::int64_t F, G, base_F, base_G, log_a, log_b, next, sums, u, weight, next_weight, E, bytes;
};
__host__ __device__ inline Layout layout(std::int64_t n, std::int64_t m, int threads, int itemsize, bool tile) {
  Layout l{};
  if (tile) n = m = Tile::kSide;
  const auto take = [&](std::int64_t size) {
    const std::int64_t at = l.bytes;
    l.bytes += (size + 15) / 16 * 16;
    return at;
  };
  l.stride = tile ? m : m | 1;
  l.F = take(n * 8);
  l.base_F = take(n * 8);
  l.log_a = take(n * 8);
  l.G = take(m * 8);
  l.base_G = take(m * 8);
  l.log_b = take(m * 8);
  l.next = take(m * 8);
  const std::int64_t most = n > m ? n : m;
  l.sums = take((most > threads ? most : threads) * 8);
  l.u = take(n * itemsize);
  l.weight = take(m * itemsize);
  l.next_weight = take(m * itemsize);
  l.E = take(n * l.stride * itemsize);
  return l;
}

int threads_for(std::int64_t n, std::int64_t m) {
  return n * m <= 1024 ? 64 : n * m <= 8192 ? 128 : n * m <= 16384 ? 256 : 512;
}

// Where a Tile holds E. Problems much smaller than one waste less without.
template <class T>
bool has_tile(const Batch<T>& cost) {
  return sizeof(T) == 4 && cost.kind == CostKind::stored && cost.n <= Tile::kSide && cost.m <= Tile::kSide &&
         cost.n * cost.m > 1024;
}

constexpr std::int64_t kSharedLimit = 224 * 1024;  // what a block of threads may have, less some variables

// What an iteration finds out.
struct Found {
  double error = 0, other = 0;  // sums; not finite if something is not
  double widest = 0, anew = 0;  // largest
};

__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// log2(x) of a normal number above 0: a first value in float32, and what it is off by. NaN stays.
__device__ __forceinline__ double logarithm(double x) {
  const int high = __double2hiint(x);
  const double mantissa = __hiloint2double((high & 0xfffff) | 0x3ff00000, __double2loint(x));
  const double first = __log2f(static_cast<float>(mantissa));
  const double off = fma(mantissa, power(-first, 0.0), -1.0);  // some 2^-22
  constexpr double kScale = 1.4426950408889634;
  return fma(x, 0.0, (high >> 20) - 1023 + first + off * fma(off, -kScale / 2, kScale));
}
__device__ __forceinline__ double power_of_two(double x) { return power(x < 1000 ? x : 1000, 0.0); }

template <class T, int kThreads, bool kTile>
class Solver {
  static_assert(!kTile || (kThreads == Tile::kThreads && sizeof(T) == 4));
  static constexpr int kWarps = kThreads / 32;

 public:
  struct Shared {
    Found found[kWarps];
    double errors[2 * kRun];
    Factor factor;
    bool failed;
  };

  __device__ Solver(const Task<T>& task, Shared& shared)
      : task_(task),
        shared_(shared),
        p_(blockIdx.x),
        n_(static_cast<int>(task.cost.n)),
        m_(static_cast<int>(task.cost.m)),
        thread_(static_cast<int>(threadIdx.x)),
        warp_(thread_ / 32),
        lane_(thread_ % 32) {
    const Layout l = layout(n_, m_, kThreads, sizeof(T), kTile);
    char* const memory = dynamic_shared();
    const auto at = [&](std::int64_t offset) { return reinterpret_cast<double*>(memory + offset); };
    F_ = at(l.F), base_F_ = at(l.base_F), log_a_ = at(l.log_a);
    G_ = at(l.G), base_G_ = at(l.base_G), log_b_ = at(l.log_b);
    next_ = at(l.next), sums_ = at(l.sums);
    const auto part = [&](std::int64_t offset) { return reinterpret_cast<T*>(memory + offset); };
    u_ = part(l.u), weight_ = part(l.weight), next_weight_ = part(l.next_weight), E_ = part(l.E);
    stride_ = static_cast<int>(l.stride);
    a_ = task.a != nullptr ? task.a + p_ * n_ : nullptr;
    b_ = task.b != nullptr ? task.b + p_ * m_ : nullptr;
    share_a_ = 1.0 / n_, share_b_ = 1.0 / m_;
    if constexpr (kTile) {
      const Batch<T>& cost = task.cost;
      fours_ = (m_ | cost.M_row | cost.M_problem) % 4 == 0 && reinterpret_cast<std::uintptr_t>(cost.M) % 16 == 0;
    }
    kappa_ = task.kappa;
    before_ = task.kept + p_ * 2 * (n_ + m_);
    best_ = before_ + n_ + m_;
  }

  __device__ void run() {
    double mass_a = 0, mass_b = 0;
    for (int i = thread_; i < n_; i += kThreads) {
      F_[i] = task_.anneal ? 0.0 : task_.f[p_ * n_ + i] * kappa_;
      log_a_[i] = log2(row_mass(i));
      mass_a += row_mass(i);
    }
    for (int j = thread_; j < m_; j += kThreads) {
      G_[j] = task_.anneal ? 0.0 : task_.g[p_ * m_ + j] * kappa_;
      log_b_[j] = log2(column_mass(j));
      mass_b += column_mass(j);
    }
    if constexpr (kTile) {
      u_[thread_] = weight_[thread_] = next_weight_[thread_] = 0;  // of what is beyond n and m it remains
      own_a_ = thread_ < n_ ? row_mass(thread_) : 0;
      own_b_ = thread_ < m_ ? column_mass(thread_) : 0;
    }
    const Found masses = reduce({mass_a, mass_b, 0, 0});
    mass_a_ = masses.error;
    if (thread_ == 0)
      shared_.factor.begin(task_.omega != nullptr ? task_.omega[p_] : NAN, fmax(masses.error, masses.other), task_.tol);
    __syncthreads();
    const double error = converge();
    __syncthreads();
    if (task_.measures != nullptr) measure(isfinite(error));
    for (int i = thread_; i < n_; i += kThreads) task_.f[p_ * n_ + i] = F_[i] / kappa_;
    for (int j = thread_; j < m_; j += kThreads) task_.g[p_ * m_ + j] = G_[j] / kappa_;
    if (thread_ == 0) {
      task_.errors[p_] = error;
      task_.iterations[p_] = made_;
    }
  }

 private:
  __device__ __forceinline__ double cost_at(int i, int j) const {
    if constexpr (kTile)
      return task_.cost.M[p_ * task_.cost.M_problem + i * task_.cost.M_row + j];
    else
      return entry(task_.cost, p_, i, j);
  }
  __device__ double row_mass(int i) const { return a_ != nullptr ? a_[i] : share_a_; }
  __device__ double column_mass(int j) const { return b_ != nullptr ? b_[j] : share_b_; }

  // How many values of reg to go through before the last one, each 4 times the next: from an 8th of what costs are
  // above the least one, or less.
  __device__ int levels() {
    Found costs;
    costs.widest = -static_cast<double>(INFINITY);
    const auto look = [&](double cost) {
      if (!isfinite(cost)) return;
      costs.error += cost;
      costs.other += 1;
      costs.widest = fmax(costs.widest, -cost);
    };
    if constexpr (kTile) {
#pragma unroll
      for (int k = 0; k < Tile::kEach; ++k) {
        double row[Tile::kEach];
        read_costs(k, row);
        for (const double cost : row) look(cost);
      }
    } else {
      for (int i = warp_; i < n_; i += kWarps)
        for (int j = lane_; j < m_; j += 32) look(cost_at(i, j));
    }
    costs = reduce(costs);
    if (!(costs.other > 0)) return 0;
    const double ratio = (costs.error / costs.other + costs.widest) / 8 * (kappa_ * 0.6931471805599453);
    return ratio > 4 ? static_cast<int>(fmin(ceil(log2(ratio) / 2 - 1e-9) - 1, 400.0)) : 0;
  }

  // The same potentials for a reg of another size; with the factor 0 zeros, whatever they were.
  __device__ void scale(double factor) {
    kappa_ *= factor;
    for (int i = thread_; i < n_; i += kThreads) F_[i] = factor > 0 ? F_[i] * factor : 0;
    for (int j = thread_; j < m_; j += kThreads) G_[j] = factor > 0 ? G_[j] * factor : 0;
    anew_ = true;
    __syncthreads();
  }

  // What the potentials of a balanced problem are worth; they are centred first. E is overwritten.
  __device__ void measure(bool sound) {
    Found found;
    for (int i = thread_; i < n_; i += kThreads) found.error += F_[i] * row_mass(i);
    for (int j = thread_; j < m_; j += kThreads) found.other += G_[j] * column_mass(j);
    found = reduce(found);
    const double c = (found.error - found.other) / (2 * mass_a_);
    for (int i = thread_; i < n_; i += kThreads) F_[i] -= c;
    for (int j = thread_; j < m_; j += kThreads) G_[j] += c;
    __syncthreads();
    double cost = 0, total = 0, error = 0, primal = 0, dual = 0;
    const auto take = [&](double mass, double potential, double sum) {
      primal += potential * sum;
      dual += potential * mass;
      error += fabs(sum - mass);
    };
    if constexpr (kTile) {
      double G[Tile::kEach], columns[Tile::kEach] = {};
      read_G(G);
      for (int k = 0; k < Tile::kEach; ++k) {
        const int i = Tile::row(k);
        const double F = i < n_ ? F_[i] : 0;
        double row[Tile::kEach], sum = 0;
        read_costs(k, row);
#pragma unroll
        for (int l = 0; l < Tile::kEach; ++l) {
          const double P = power(F + G[l] - kappa_ * row[l], 0.0);
          sum += P;
          columns[l] += P;
          if (P != 0) cost += P * row[l];  // the cost of a forbidden pair is infinite
        }
        sum = Tile::sum_of_row(sum);
        if (i >= n_ || thread_ % Tile::kEach != 0) continue;
        total += sum;
        take(row_mass(i), F, sum);
      }
      double* const sums = reinterpret_cast<double*>(E_);
      Tile::fold_columns(columns, sums);
      __syncthreads();
      if (thread_ < m_) take(own_b_, G_[thread_], sums[thread_] + sums[Tile::kSide + thread_]);
    } else {
      for (int i = warp_; i < n_; i += kWarps) {
        const double F = F_[i];
        double sum = 0;
        for (int j = lane_; j < m_; j += 32) {
          const double c_ij = cost_at(i, j), P = power(F + G_[j] - kappa_ * c_ij, 0.0);
          sum += P;
          if (P != 0) cost += P * c_ij;
          E_[i * stride_ + j] = static_cast<T>(P);
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (lane_ != 0) continue;
        total += sum;
        take(row_mass(i), F, sum);
      }
      __syncthreads();
      for (int j = thread_; j < m_; j += kThreads) {
        double sum = 0;
#pragma unroll 4
        for (int i = 0; i < n_; ++i) sum += static_cast<double>(E_[i * stride_ + j]);
        take(column_mass(j), G_[j], sum);
      }
    }
    const Found costs = reduce({cost, total, 0, 0}), linear = reduce({primal, dual, 0, 0}),
                off = reduce({error, 0, 0, 0});
    if (thread_ != 0) return;
    const double entropy = costs.other * (1.4426950408889634074 / kappa_);
    const double values[kMeasures] = {costs.error, linear.error / kappa_ - entropy, linear.other / kappa_ - entropy,
                                      sound ? off.error : static_cast<double>(INFINITY)};
    for (int k = 0; k < kMeasures; ++k) task_.measures[k * task_.cost.problems + p_] = values[k];
    if (task_.converged != nullptr) task_.converged[p_] = values[kMeasures - 1] <= task_.wanted;
  }

  // The error in the end. All decisions are the same in all threads. There is one call of `iterate`, because all of it
  // is compiled in place.
  __device__ double converge() {
    enum { kGuarded, kPlain, kLast } phase = kGuarded;
    double error = INFINITY, least = INFINITY;
    bool active = true;
    int level = task_.anneal ? levels() : 0;
    if (level > 0) kappa_ *= exp2(-2.0 * level);  // the potentials are zeros
    save(best_);
    for (;;) {
      const bool coarse = level > 0 && left() > kLevel;
      if (level > 0 && !coarse) {
        scale(exp2(2.0 * level));
        level = 0;
        save(best_);
      }
      if (phase == kGuarded && !(active && left() > 0)) {
        if (error <= task_.tol) return error;
        if (!(error <= least)) {
          restore(best_);
          error = least;
        }
        phase = left() > 0 ? kPlain : kLast;
      }
      if (phase == kLast && (error <= task_.tol || made_ >= task_.count)) return error;
      if (phase == kGuarded) save(before_);
      const double omega = phase == kGuarded && !coarse ? shared_.factor.omega : 1.0;
      const int wanted = omega == 1.0 ? kRun : 2 * kRun;
      const int most = left() < wanted ? static_cast<int>(left()) : wanted;
      // The last iteration moves the rows alone, and finds the error.
      const bool only = phase == kLast;
      const double aim = coarse ? fmax(task_.tol, kCoarse * mass_a_) : task_.tol;
      const int count = iterate(omega, only ? INFINITY : aim, only ? 1 : most);
      const double last = shared_.errors[count - 1];
      if (coarse) {
        if (!isfinite(last)) scale(0.0);  // from the beginning
        level = isfinite(last) ? level - 1 : 0;
        if (isfinite(last))
          scale(4.0);
        else
          kappa_ = task_.kappa;
        if (level == 0) save(best_);
        continue;
      }
      if (phase == kLast) return last;
      if (phase == kPlain) {
        error = last;
        phase = kLast;
        continue;
      }
      if (thread_ == 0) shared_.failed = shared_.factor.failed(shared_.errors, count, task_.seen + p_ * kSeen);
      __syncthreads();
      if (shared_.failed) {
        restore(before_);
        active = omega != 1.0;  // plain iterations fail only if nothing helps
        continue;
      }
      error = last;
      active = !(error <= task_.tol) && !(shared_.factor.stalled() && error < rounding());
      if (error < least) {
        least = error;
        save(best_);
      }
      translate();
    }
  }

  // But for the last one, which finds the error.
  __device__ std::int64_t left() const { return task_.count - 1 - made_; }

  // Up to `count` iterations, at least one; returns how many. Errors in shared_.errors.
  __device__ int iterate(double omega, double tol, int count) {
    [[maybe_unused]] Tile tile;
    if constexpr (kTile) {
      if (!anew_) tile.load(E_);
    }
    int it = 0;
    for (bool on = true; on && it < count; ++it) {
      double error;
      if constexpr (kTile)
        error = step(tile, omega, tol);
      else
        error = step(omega, tol);
      on = isfinite(error) && !(error <= tol);
      if (thread_ == 0) shared_.errors[it] = error;
    }
    made_ += it;
    __syncthreads();
    return it;
  }

  // One iteration; where the error is at most `tol`, G stays.
  __device__ double step(double omega, double tol) {
    Found found;
    if (!anew_) {
      sweep_rows();
      bool lost = false;
      for (int i = thread_; i < n_; i += kThreads) {
        const double sum = add_parts(n_, i);
        sums_[i] = sum;
        lost = lost || outside<T>(sum);
      }
      anew_ = __syncthreads_or(lost) != 0;
    }
    if (anew_) {
      make_rows(omega, found);
    } else {
      for (int i = thread_; i < n_; i += kThreads) u_[i] = relax_row(i, sums_[i], row_mass(i), omega, found);
    }
    anew_ = false;
    __syncthreads();
    sweep_columns();
    bool dead = false;
    for (int j = thread_; j < m_; j += kThreads) {
      const double sum = add_parts(m_, j);
      const bool lost = sum <= kTiny<T>;
      next_[j] = relax_column(j, lost ? kNothing : sum, column_mass(j), omega, found);
      sums_[j] = lost ? -1.0 : sum;
      dead = dead || lost;
    }
    if (__syncthreads_or(dead) != 0) revive(omega, found);
    found = reduce(found);
    if (!isfinite(found.error)) {
      anew_ = true;
      return INFINITY;
    }
    if (found.error <= tol) return found.error;
    for (int j = thread_; j < m_; j += kThreads) {
      G_[j] = next_[j];
      weight_[j] = next_weight_[j];
    }
    anew_ = found.anew > 0;
    __syncthreads();
    return found.error;
  }

  // The same with E in registers. A thread has row and column number thread_.
  __device__ double step(Tile& tile, double omega, double tol) {
    Found found;
    if (!anew_) {
      const float sum = tile.row_sum(weight_);
      const bool there = thread_ < n_;
      anew_ = __syncthreads_or(there && outside<T>(sum)) != 0;
      if (!anew_ && there) u_[thread_] = relax_row(thread_, sum, own_a_, omega, found);
    }
    if (anew_) {
      make_tile(omega, found);
      __syncthreads();
      tile.load(E_);
    } else {
      __syncwarp();  // a column's sum over these rows is for this warp
    }
    float* const parts = reinterpret_cast<float*>(sums_);
    tile.column_sums(u_, parts);
    __syncthreads();
    bool lost = false;
    double new_G = 0;
    if (thread_ < m_) {
      const double sum = static_cast<double>(parts[thread_]) + static_cast<double>(parts[Tile::kSide + thread_]);
      lost = sum <= kTiny<T>;
      new_G = relax_column(thread_, lost ? kNothing : sum, own_b_, omega, found);
    }
    const bool anew = __any_sync(0xffffffffu, found.anew > 0), dead = __any_sync(0xffffffffu, lost);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) found.error += __shfl_xor_sync(0xffffffffu, found.error, step);
    if (lane_ == 0) shared_.found[warp_] = {found.error, 0, dead ? 1.0 : 0.0, anew ? 1.0 : 0.0};
    __syncthreads();
    const Found &one = shared_.found[0], &two = shared_.found[1];
    double error = one.error + two.error;
    anew_ = one.anew + two.anew > 0;
    if (one.widest + two.widest > 0) {  // columns are dead
      if (thread_ < m_) {
        next_[thread_] = new_G;
        sums_[thread_] = lost ? -1.0 : 1.0;
      }
      __syncthreads();
      Found revived;
      revive(omega, revived);
      error += reduce(revived).error;
      if (thread_ < m_) new_G = next_[thread_];
      anew_ = true;
      tile.load(E_);  // rather than to be kept meanwhile
    }
    if (!isfinite(error)) {
      anew_ = true;
      return INFINITY;
    }
    if (error <= tol) {
      anew_ = false;
      return error;
    }
    if (thread_ < m_) G_[thread_] = new_G;
    T* const before = weight_;
    weight_ = next_weight_;
    next_weight_ = before;
    if (anew_) __syncthreads();
    return error;
  }

  // As good as nothing, and it has a logarithm.
  static constexpr double kNothing = 2.2250738585072014e-308;

  // Moves the potential of row i, whose scaled entries have this sum, and returns its scaling.
  __device__ T relax_row(int i, double sum, double mass, double omega, Found& found) {
    const double F = F_[i], base = base_F_[i], marginal = logarithm(sum) + (F - base);
    const double new_F = F + omega * (task_.theta_a * (F + (log_a_[i] - marginal)) - F);
    const double rest = new_F - base, u = power_of_two(rest);
    found.error += fabs(sum * u - target(mass, new_F, task_.power_a)) + new_F * 0.0;
    if (fabs(rest) > kScalingLimit<T>) found.anew = 1;
    F_[i] = new_F;
    return static_cast<T>(u);
  }

  // The potential that column j is to have, with the scaling in next_weight_[j].
  __device__ double relax_column(int j, double sum, double mass, double omega, Found& found) {
    const double G = G_[j], base = base_G_[j], marginal = logarithm(sum) + (G - base);
    const double new_G = G + omega * (task_.theta_b * (G + (log_b_[j] - marginal)) - G), rest = new_G - base;
    found.error += fabs(sum * static_cast<double>(weight_[j]) - target(mass, G, task_.power_b)) + new_G * 0.0;
    if (fabs(rest) > kScalingLimit<T>) found.anew = 1;
    next_weight_[j] = static_cast<T>(power_of_two(rest));
    return new_G;
  }

  static __device__ double target(double mass, double potential, double power) {
    return power == 0 ? mass : mass * power_of_two(potential * power);
  }

  // sums_[part * count + i], the parts of sums for blocks of 32; all by threads side by side.
  __device__ int parts(int count) const {
    const int blocks = (count + 31) / 32;
    return kWarps / blocks > 1 ? kWarps / blocks : 1;
  }
  __device__ double add_parts(int count, int i) const {
    const int end = parts(count);
    double sum = sums_[i];
    for (int part = 1; part < end; ++part) sum += sums_[part * count + i];
    return sum;
  }
  __device__ void sweep_rows() {
    const int blocks = (n_ + 31) / 32, end = parts(n_);
    for (int task = warp_; task < blocks * end; task += kWarps) {
      const int i = task % blocks * 32 + lane_, part = task / blocks;
      if (i >= n_) continue;
      sums_[part * n_ + i] = dot(E_ + i * stride_, 1, weight_, m_ * part / end, m_ * (part + 1) / end);
    }
    __syncthreads();
  }
  __device__ void sweep_columns() {
    const int blocks = (m_ + 31) / 32, end = parts(m_);
    for (int task = warp_; task < blocks * end; task += kWarps) {
      const int j = task % blocks * 32 + lane_, part = task / blocks;
      if (j >= m_) continue;
      sums_[part * m_ + j] = dot(E_ + j, stride_, u_, n_ * part / end, n_ * (part + 1) / end);
    }
    __syncthreads();
  }
  // The sum of x[k stride] y[k], in T over stretches.
  static __device__ __forceinline__ double dot(const T* x, int stride, const T* y, int begin, int end) {
    constexpr int kSums = 4, kStretch = 256;
    double total = 0;
    for (int k = begin; k < end;) {
      const int stop = k + kStretch < end ? k + kStretch : end;
      T sum[kSums] = {};
      for (; k + kSums <= stop; k += kSums) {
#pragma unroll
        for (int q = 0; q < kSums; ++q) sum[q] = fma(x[(k + q) * stride], y[k + q], sum[q]);
      }
      for (; k < stop; ++k) sum[0] = fma(x[k * stride], y[k], sum[0]);
      total += static_cast<double>((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
    return total;
  }

  // E from the potentials, a warp for each row, whose potential moves first. All scalings are 1 then.
  __device__ void make_rows(double omega, Found& found) {
    for (int i = warp_; i < n_; i += kWarps) {
      T* const row = E_ + i * stride_;
      double largest = -static_cast<double>(INFINITY), sum = 0;
      for (int j = lane_; j < m_; j += 32) largest = fmax(largest, exponent(i, j));
#pragma unroll
      for (int step = 16; step > 0; step /= 2) largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, step));
      for (int j = lane_; j < m_; j += 32) sum += power(exponent(i, j) - largest, 0.0);
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      const double F = F_[i], marginal = F + largest + logarithm(sum);
      const double new_F = F + omega * (task_.theta_a * (F + (log_a_[i] - marginal)) - F);
      const double scale = power_of_two(new_F + largest);
      for (int j = lane_; j < m_; j += 32) row[j] = static_cast<T>(power(exponent(i, j) - largest, 0.0) * scale);
      __syncwarp();
      if (lane_ == 0) {
        // Not finite if no entry is.
        found.error += fabs(sum * scale - target(row_mass(i), new_F, task_.power_a)) + new_F * 0.0;
        F_[i] = new_F;
        base_F_[i] = new_F;
        u_[i] = 1;
      }
    }
    __syncthreads();  // G has been read, and is not written here
    for (int j = thread_; j < m_; j += kThreads) {
      base_G_[j] = G_[j];
      weight_[j] = 1;
    }
  }

  // The same by rows of a tile, 8 of them at a time.
  __device__ void make_tile(double omega, Found& found) {
    double G[Tile::kEach];
    read_G(G);
    for (int k = 0; k < Tile::kEach; ++k) {
      const int i = Tile::row(k);
      const bool there = i < n_;
      const double F = there ? F_[i] : 0, log_a = there ? log_a_[i] : 0;
      double row[Tile::kEach], largest = -static_cast<double>(INFINITY), sum = 0;
      read_costs(k, row);
#pragma unroll
      for (int l = 0; l < Tile::kEach; ++l) {
        row[l] = G[l] - kappa_ * row[l];
        largest = fmax(largest, row[l]);
      }
      largest = Tile::largest_of_row(largest);
#pragma unroll
      for (int l = 0; l < Tile::kEach; ++l) {
        row[l] = power(row[l] - largest, 0.0);
        sum += row[l];
      }
      sum = Tile::sum_of_row(sum);
      const double new_F = F + omega * (task_.theta_a * (F + (log_a - (F + largest + logarithm(sum)))) - F);
      const double scale = power_of_two(new_F + largest);
      float entries[Tile::kEach];
#pragma unroll
      for (int l = 0; l < Tile::kEach; ++l) entries[l] = there ? static_cast<float>(row[l] * scale) : 0.0f;
      Tile::write(E_ + i * Tile::kSide, entries);
      __syncwarp();
      if (there && thread_ % Tile::kEach == 0) {
        found.error += fabs(sum * scale - target(row_mass(i), new_F, task_.power_a)) + new_F * 0.0;
        F_[i] = new_F;
        base_F_[i] = new_F;
        u_[i] = 1;
      }
    }
    __syncthreads();  // G has been read, and is not written here
    if (thread_ < m_) {
      base_G_[thread_] = G_[thread_];
      weight_[thread_] = 1;
    }
  }
  __device__ void read_G(double (&to)[Tile::kEach]) const {
#pragma unroll
    for (int l = 0; l < Tile::kEach; ++l) to[l] = Tile::column(l) < m_ ? G_[Tile::column(l)] : 0;
  }
  // The costs of row k of the thread's part of a tile; what is not there is forbidden.
  __device__ __forceinline__ void read_costs(int k, double (&to)[Tile::kEach]) const {
    const int i = Tile::row(k);
    const T* const row = task_.cost.M + p_ * task_.cost.M_problem + i * task_.cost.M_row;
#pragma unroll
    for (int l = 0; l < Tile::kEach; ++l) to[l] = static_cast<double>(INFINITY);
    if (fours_) {
#pragma unroll
      for (int l = 0; l < Tile::kEach; l += 4) {
        if (i >= n_ || Tile::column(l) >= m_) continue;
        const float4 four = *reinterpret_cast<const float4*>(row + Tile::column(l));
        to[l] = four.x, to[l + 1] = four.y, to[l + 2] = four.z, to[l + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int l = 0; l < Tile::kEach; ++l)
        if (i < n_ && Tile::column(l) < m_) to[l] = row[Tile::column(l)];
    }
  }
  __device__ __forceinline__ double exponent(int i, int j) const { return G_[j] - kappa_ * cost_at(i, j); }

  // Columns whose entries are about the smallest numbers or less, sums_[j] = -1: a warp for each finds the sum of
  // logarithms.
  __device__ void revive(double omega, Found& found) {
    for (int j = warp_; j < m_; j += kWarps) {
      if (sums_[j] != -1.0) continue;
      double largest = -static_cast<double>(INFINITY), sum = 0;
      for (int i = lane_; i < n_; i += 32) largest = fmax(largest, F_[i] - kappa_ * cost_at(i, j));
#pragma unroll
      for (int step = 16; step > 0; step /= 2) largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, step));
      for (int i = lane_; i < n_; i += 32) sum += power(F_[i] - kappa_ * cost_at(i, j) - largest, 0.0);
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (lane_ == 0) {
        const double G = G_[j], aim = task_.theta_b * (log_b_[j] - largest - logarithm(sum));
        const double new_G = G + omega * (aim - G);
        next_[j] = new_G;
        found.error += new_G * 0.0;
        found.anew = 1;
      }
    }
    __syncthreads();
  }

  __device__ Found reduce(Found x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      x.error += __shfl_xor_sync(0xffffffffu, x.error, step);
      x.other += __shfl_xor_sync(0xffffffffu, x.other, step);
      x.widest = fmax(x.widest, __shfl_xor_sync(0xffffffffu, x.widest, step));
      x.anew = fmax(x.anew, __shfl_xor_sync(0xffffffffu, x.anew, step));
    }
    if (lane_ == 0) shared_.found[warp_] = x;
    __syncthreads();
    x = shared_.found[0];
    for (int warp = 1; warp < kWarps; ++warp) {
      const Found& other = shared_.found[warp];
      x.error += other.error;
      x.other += other.other;
      x.widest = fmax(x.widest, other.widest);
      x.anew = fmax(x.anew, other.anew);
    }
    __syncthreads();
    return x;
  }

  __device__ void save(double* to) const {
    for (int i = thread_; i < n_; i += kThreads) to[i] = F_[i];
    for (int j = thread_; j < m_; j += kThreads) to[n_ + j] = G_[j];
    __syncthreads();  // other threads move the rows next
  }
  // By the threads that saved it.
  __device__ void restore(const double* from) {
    __syncthreads();
    for (int i = thread_; i < n_; i += kThreads) F_[i] = from[i];
    for (int j = thread_; j < m_; j += kThreads) G_[j] = from[n_ + j];
    anew_ = true;
    __syncthreads();
  }

  // An error that the rounding of exponents may leave.
  __device__ double rounding() {
    Found largest;
    for (int i = thread_; i < n_; i += kThreads) largest.widest = fmax(largest.widest, fabs(F_[i]));
    for (int j = thread_; j < m_; j += kThreads) largest.anew = fmax(largest.anew, fabs(G_[j]));
    largest = reduce(largest);
    constexpr double kEpsilon = sizeof(T) == 4 ? 1.1920929e-7 : 2.220446049250313e-16, kLog = 0.6931471805599453;
    return 16 * kEpsilon * ((largest.widest + largest.anew) * kLog + 1) * mass_a_;
  }

  // F + c and G - c with the best c, which unbalanced iterations find slowly where the weights of the marginals are
  // large. E does not change.
  __device__ void translate() {
    if (task_.power_a == 0 && task_.power_b == 0) return;
    const double pull_a = -task_.power_a, pull_b = -task_.power_b;
    Found largest;
    largest.widest = largest.anew = -static_cast<double>(INFINITY);
    for (int i = thread_; i < n_; i += kThreads) largest.widest = fmax(largest.widest, log_a_[i] - F_[i] * pull_a);
    for (int j = thread_; j < m_; j += kThreads) largest.anew = fmax(largest.anew, log_b_[j] - G_[j] * pull_b);
    largest = reduce(largest);
    Found sum;
    for (int i = thread_; i < n_; i += kThreads) sum.error += exp2(log_a_[i] - F_[i] * pull_a - largest.widest);
    for (int j = thread_; j < m_; j += kThreads) sum.other += exp2(log_b_[j] - G_[j] * pull_b - largest.anew);
    sum = reduce(sum);
    const double c = (largest.widest + log2(sum.error) - largest.anew - log2(sum.other)) / (pull_a + pull_b);
    for (int i = thread_; i < n_; i += kThreads) F_[i] += c, base_F_[i] += c;
    for (int j = thread_; j < m_; j += kThreads) G_[j] -= c, base_G_[j] -= c;
    __syncthreads();
  }

  const Task<T>& task_;
  Shared& shared_;
  const std::int64_t p_;
  const int n_, m_, thread_, warp_, lane_;
  int stride_;
  double *F_, *base_F_, *log_a_, *G_, *base_G_, *log_b_, *next_, *sums_;
  T *u_, *weight_, *next_weight_, *E_;
  const double *a_, *b_;
  double *before_, *best_;
  double kappa_ = 1, mass_a_ = 0, share_a_ = 0, share_b_ = 0;
  double own_a_ = 0, own_b_ = 0;  // with a tile: masses of row and column number thread_
  bool fours_ = false;            // with a tile: costs can be read as float4
  bool anew_ = true;              // E is to be made from the potentials
  std::int64_t made_ = 0;
};

// Blocks that are to share a multiprocessor, for which the wait of one is the work of another.
template <int kThreads, bool kTile>
inline constexpr int kShare = kTile             ? 8
                              : kThreads == 64  ? 12
                              : kThreads == 128 ? 8
                              : kThreads == 256 ? 3
                                                : 1;

template <class T, int kThreads, bool kTile>
__global__ void __launch_bounds__(kThreads, kShare<kThreads, kTile>)
    converge_kernel(const __grid_constant__ Task<T> task) {
  __shared__ typename Solver<T, kThreads, kTile>::Shared shared;
  Solver<T, kThreads, kTile>(task, shared).run();
}

template <class T, int kThreads, bool kTile = false>
void launch(const Execution& exec, const Task<T>& task) {
  const std::int64_t bytes = layout(task.cost.n, task.cost.m, kThreads, sizeof(T), kTile).bytes;
  if (bytes > 40 * 1024)  // with what is static, more than 48 KB
    QUADRIC_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(&converge_kernel<T, kThreads, kTile>),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  converge_kernel<T, kThreads, kTile>
      <<<static_cast<unsigned>(task.cost.problems), kThreads, static_cast<std::size_t>(bytes), stream(exec)>>>(task);
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace

bool converges(CostKind, std::int64_t n, std::int64_t m, std::int64_t d, int itemsize) {
  if (n < 1 || m < 1 || n > kSharedLimit / 8 || m > kSharedLimit / 8 || d > 4096) return false;
  return n * (m | 1) * itemsize <= 160 * 1024 && layout(n, m, threads_for(n, m), itemsize, false).bytes <= kSharedLimit;
}

template <class T>
void converge(const Execution& exec, std::int64_t problems, const Costs<T>& cost, const double* a, const double* b,
              const double* omega, double* f, double* g, double* errors, std::int64_t* iterations,
              const ConvergeOptions& options) {
  quadric::transport::detail::check_options(options);
  QUADRIC_REQUIRE(options.measures == nullptr || (options.theta_a == 1 && options.theta_b == 1),
                  "measures are those of balanced problems");
  QUADRIC_REQUIRE(options.converged == nullptr || options.measures != nullptr, "converged needs measures");
  if (problems == 0) return;
  QUADRIC_REQUIRE(problems < std::int64_t{1} << 31, "cost has too many problems for one call");
  Scratch scratch(exec);
  Task<T> task;
  task.cost = batch(exec, scratch, problems, cost);
  const std::int64_t n = task.cost.n, m = task.cost.m;
  QUADRIC_REQUIRE(converges(task.cost.kind, n, m, task.cost.d, sizeof(T)), "cost must be small and not empty");
  task.kappa = 1.4426950408889634074 / options.reg;
  task.theta_a = options.theta_a;
  task.theta_b = options.theta_b;
  task.power_a = (task.theta_a - 1) / task.theta_a;
  task.power_b = (task.theta_b - 1) / task.theta_b;
  task.tol = options.tol;
  task.count = options.count;
  task.a = a;
  task.b = b;
  task.omega = omega;
  task.f = f;
  task.g = g;
  task.errors = errors;
  task.iterations = iterations;
  task.anneal = options.anneal;
  task.measures = options.measures;
  task.converged = options.converged;
  task.wanted = options.wanted;
  task.kept = scratch.get<double>(problems * (2 * (n + m) + kSeen));
  task.seen = task.kept + problems * 2 * (n + m);
  if constexpr (sizeof(T) == 4) {
    if (has_tile(task.cost)) return launch<T, Tile::kThreads, true>(exec, task);
  }
  switch (threads_for(n, m)) {
    case 64:
      return launch<T, 64>(exec, task);
    case 128:
      return launch<T, 128>(exec, task);
    case 256:
      return launch<T, 256>(exec, task);
    default:
      return launch<T, 512>(exec, task);
  }
}

#define QUADRIC_INSTANTIATE(T)                                                                                      \
  template QUADRIC_API void converge(const Execution&, std::int64_t, const Costs<T>&, const double*, const double*, \
                                     const double*, double*, double*, double*, std::int64_t*, const ConvergeOptions&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::transport
