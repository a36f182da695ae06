// Whole solutions of small problems, a block of threads for each.
//
// The entries E_ij = 2^(F_i + G_j - kappa C_ij) are computed once and kept in shared memory; an iteration scales them,
// E_ij u_i w_j, and they are computed anew only where a scaling has gone too far. So an iteration costs two sweeps over
// E, and a logarithm and an exponential for each row and column.
//
// Floor: 2 reads of E from shared memory at 128 bytes a cycle and multiprocessor; 1024 problems of 64 x 64 in float32,
// 8 for each multiprocessor: 2048 cycles = 1.2 us an iteration of all. The steps of one problem's iteration follow one
// another, some 2500 cycles; with 8 of them side by side to be reached: 2 us.
#include <cstdint>

#include "require.hpp"
#include "transport/batch.hpp"
#include "transport/pass.cuh"

namespace quadric::cuda::transport {
namespace {

// The policy for the factor of over-relaxation: quadric.transport.relaxation has the reasons.
constexpr int kRun = 10;  // plain iterations between two looks at the rate, twice as many relaxed ones
constexpr double kLargest = 1.998;
constexpr double kSettled = 0.3;
constexpr double kWorthwhile = 25;
constexpr double kWindow = 2;
constexpr double kWorse = 10;
constexpr int kFloor = 60;
constexpr int kLevel = 10;        // iterations at most at a larger reg on the way down
constexpr double kCoarse = 3e-2;  // share of the mass that the error may have there
constexpr int kSeen = 1024;       // errors at one factor: a window of kLargest, and one more run

template <class T>
inline constexpr double kScalingLimit = sizeof(T) == 4 ? 16 : 200;

template <class T>
struct Task {
  Batch<T> cost;
  double kappa = 0, theta_a = 1, theta_b = 1, tol = 0;
  std::int64_t count = 0;
  const double *a = nullptr, *b = nullptr, *omega = nullptr;
  double *f = nullptr, *g = nullptr, *errors = nullptr;
  std::int64_t* iterations = nullptr;
  double* kept = nullptr;  // problems x 2 x (n + m): potentials before a run, and the best so far
  double* seen = nullptr;  // problems x kSeen
  bool anneal = false;
  double* measures = nullptr;  // kMeasures x problems
};

// Where the arrays of a problem lie in shared memory, in bytes.
struct Layout {
  std::int64_t stride;  // of E: odd, so that threads side by side may read rows
  std::int64_t F, G, base_F, base_G, log_a, log_b, next, sums, u, weight, next_weight, E, bytes;
};
__host__ __device__ inline Layout layout(std::int64_t n, std::int64_t m, int threads, int itemsize) {
  Layout l{};
  const auto take = [&](std::int64_t size) {
    const std::int64_t at = l.bytes;
    l.bytes += (size + 15) / 16 * 16;
    return at;
  };
  l.stride = m | 1;
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

constexpr std::int64_t kSharedLimit = 224 * 1024;  // what a block of threads may have, less some variables

// The factor of one problem. By one thread.
struct Factor {
  double omega, least, mass, tol;
  int idle, seen, wait;
  bool fixed;

  __device__ void begin(double given, double its_mass, double its_tol) {
    fixed = !isnan(given);
    omega = fixed ? given : 1.0;
    least = INFINITY;
    mass = its_mass;
    tol = its_tol;
    idle = seen = wait = 0;
  }

  __device__ void set(double value) {
    omega = value > 1.01 ? fmin(value, kLargest) : 1.0;
    seen = idle = 0;
  }

  // Whether the run with these errors, at least one, is to be taken back; learns from it if not.
  __device__ __noinline__ bool failed(const double* errors, int count, double* history) {
    const double last = errors[count - 1];
    if (!isfinite(last) || last > kWorse * fmin(least, 2 * mass)) {
      set(omega > 1.05 ? 1 + 0.6 * (omega - 1) : 1.0);
      wait = 4 * kRun;
      if (omega == 1.0) least = INFINITY;
      return true;
    }
    double lowest = errors[0];
    for (int k = 1; k < count; ++k) lowest = fmin(lowest, errors[k]);
    idle = lowest < (1 - 1e-6) * least ? 0 : idle + 1;
    least = fmin(least, lowest);
    if (fixed || !(last > tol)) return false;
    if (omega == 1.0) {
      seen = seen < 1 << 20 ? seen + count : seen;
      start(errors, count);
      return false;
    }
    for (int k = 0; k < count && seen < kSeen; ++k) history[seen++] = errors[k];
    if (seen >= fmax(20.0, kWindow / (2 - omega))) judge(history);
    return false;
  }

  __device__ bool stalled() const { return omega <= 1 && idle >= kFloor; }

  static __device__ double best(double mu2) { return 2 / (1 + sqrt(1 - mu2)); }

  static __device__ double slope(const double* errors, int count) {
    return log(fmax(errors[count - 1], 1e-300) / fmax(errors[0], 1e-300)) / (count - 1);
  }

  __device__ void start(const double* errors, int count) {
    if (count < kRun || seen < wait) return;
    const double early = slope(errors, kRun / 2 + 1), late = slope(errors + kRun / 2, kRun - kRun / 2);
    if (late >= 0) return;
    const double last = errors[count - 1];
    const double ahead = tol > 0 ? log(tol / last) / late : static_cast<double>(INFINITY);
    if (fabs(late - early) <= -kSettled * late && last < 0.3 * mass && ahead > kWorthwhile) set(best(exp(late)));
  }

  __device__ void judge(const double* history) {
    const int third = seen / 3;
    double first = 0, last = 0;
    for (int k = 0; k < third; ++k) {
      first = fmax(first, history[k]);
      last = fmax(last, history[seen - third + k]);
    }
    const double rate = pow(last / first, 1.0 / (2 * third));
    if (rate <= omega - 1 + 0.1 * (2 - omega))
      set(2 - 1.25 * (2 - omega));
    else if (rate < 1) {
      const double sum = rate + omega - 1;
      set((omega + best(fmin(sum * sum / (rate * omega * omega), 1.0))) / 2);
    } else {
      set(2 - 1.6 * (2 - omega));
    }
  }
};

// What an iteration finds out.
struct Found {
  double error = 0, finite = 0;  // sums; `finite` is not finite if something is not
  double widest = 0, dead = 0;   // largest
};

__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

__device__ __forceinline__ double power_of_two(double x) { return exp2(x < 1000 ? x : 1000); }

template <class T, int kThreads>
class Solver {
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
    const Layout l = layout(n_, m_, kThreads, sizeof(T));
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
    const Found masses = reduce({mass_a, mass_b, 0, 0});
    mass_a_ = masses.error;
    if (thread_ == 0)
      shared_.factor.begin(task_.omega != nullptr ? task_.omega[p_] : NAN, fmax(masses.error, masses.finite),
                           task_.tol);
    __syncthreads();
    const double error = converge();
    __syncthreads();
    if (task_.measures != nullptr) measure();
    for (int i = thread_; i < n_; i += kThreads) task_.f[p_ * n_ + i] = F_[i] / kappa_;
    for (int j = thread_; j < m_; j += kThreads) task_.g[p_ * m_ + j] = G_[j] / kappa_;
    if (thread_ == 0) {
      task_.errors[p_] = error;
      task_.iterations[p_] = made_;
    }
  }

 private:
  __device__ double row_mass(int i) const { return a_ != nullptr ? a_[i] : 1.0 / n_; }
  __device__ double column_mass(int j) const { return b_ != nullptr ? b_[j] : 1.0 / m_; }

  // How many values of reg to go through before the last one, each 4 times the next: from an 8th of what costs are
  // above the least one, or less.
  __device__ int levels() {
    Found costs;
    costs.widest = -static_cast<double>(INFINITY);
    for (int i = warp_; i < n_; i += kWarps) {
      for (int j = lane_; j < m_; j += 32) {
        const double cost = entry(task_.cost, p_, i, j);
        if (!isfinite(cost)) continue;
        costs.error += cost;
        costs.finite += 1;
        costs.widest = fmax(costs.widest, -cost);
      }
    }
    costs = reduce(costs);
    if (!(costs.finite > 0)) return 0;
    const double ratio = (costs.error / costs.finite + costs.widest) / 8 * (kappa_ * 0.6931471805599453);
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

  // What the potentials are worth; those of a balanced problem are centred first. E is overwritten.
  __device__ void measure() {
    Found found;
    if (task_.theta_a == 1 && task_.theta_b == 1) {
      for (int i = thread_; i < n_; i += kThreads) found.error += F_[i] * row_mass(i);
      for (int j = thread_; j < m_; j += kThreads) found.finite += G_[j] * column_mass(j);
      found = reduce(found);
      const double c = (found.error - found.finite) / (2 * mass_a_);
      for (int i = thread_; i < n_; i += kThreads) F_[i] -= c;
      for (int j = thread_; j < m_; j += kThreads) G_[j] += c;
      __syncthreads();
    }
    double cost = 0, total = 0, error = 0, primal = 0, dual = 0;
    for (int i = warp_; i < n_; i += kWarps) {
      const double F = F_[i];
      double sum = 0;
      for (int j = lane_; j < m_; j += 32) {
        const double c = entry(task_.cost, p_, i, j), P = power(F + G_[j] - kappa_ * c, 0.0);
        sum += P;
        if (P != 0) cost += P * c;  // the cost of a forbidden pair is infinite
        E_[i * stride_ + j] = static_cast<T>(P);
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (lane_ == 0) {
        total += sum;
        primal += F * sum;
        dual += F * row_mass(i);
        error += fabs(sum - target(row_mass(i), F, task_.theta_a));
      }
    }
    __syncthreads();
    for (int j = thread_; j < m_; j += kThreads) {
      double sum = 0;
#pragma unroll 4
      for (int i = 0; i < n_; ++i) sum += static_cast<double>(E_[i * stride_ + j]);
      primal += G_[j] * sum;
      dual += G_[j] * column_mass(j);
      error += fabs(sum - target(column_mass(j), G_[j], task_.theta_b));
    }
    const Found costs = reduce({cost, total, 0, 0}), linear = reduce({primal, dual, 0, 0}),
                off = reduce({error, 0, 0, 0});
    if (thread_ != 0) return;
    const double values[kMeasures] = {costs.error, costs.finite, linear.error / kappa_, linear.finite / kappa_,
                                      off.error};
    for (int k = 0; k < kMeasures; ++k) task_.measures[k * task_.cost.problems + p_] = values[k];
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
    int it = 0;
    for (bool on = true; on && it < count; ++it) {
      const double error = step(omega, tol);
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
      for (int i = thread_; i < n_; i += kThreads) {
        const double sum = sums_[i], F = F_[i], rest_before = F - base_F_[i];
        const double marginal = log2(sum) + rest_before;
        const double new_F = F + omega * (task_.theta_a * (F + (log_a_[i] - marginal)) - F);
        const double rest = new_F - base_F_[i], u = power_of_two(rest);
        found.error += fabs(sum * u - target(row_mass(i), new_F, task_.theta_a)) + new_F * 0.0;
        found.widest = fmax(found.widest, fabs(rest));
        F_[i] = new_F;
        u_[i] = static_cast<T>(u);
      }
    }
    anew_ = false;
    __syncthreads();
    sweep_columns();
    bool dead = false;
    for (int j = thread_; j < m_; j += kThreads) {
      double sum = add_parts(m_, j);
      const bool lost = sum <= kTiny<T>;
      if (lost) sum = 2.2250738585072014e-308;  // as good as nothing, and it has a logarithm
      const double G = G_[j], marginal = log2(sum) + (G - base_G_[j]);
      const double new_G = G + omega * (task_.theta_b * (G + (log_b_[j] - marginal)) - G);
      const double rest = new_G - base_G_[j], weight = power_of_two(rest);
      found.error += fabs(sum * power_of_two(G - base_G_[j]) - target(column_mass(j), G, task_.theta_b));
      found.finite += new_G * 0.0;
      found.widest = fmax(found.widest, fabs(rest));
      next_[j] = new_G;
      next_weight_[j] = static_cast<T>(weight);
      sums_[j] = lost ? -1.0 : sum;
      dead = dead || lost;
    }
    if (__syncthreads_or(dead) != 0) revive(omega, found);
    found = reduce(found);
    if (!isfinite(found.error) || !isfinite(found.finite)) {
      anew_ = true;
      return INFINITY;
    }
    if (found.error <= tol) return found.error;
    for (int j = thread_; j < m_; j += kThreads) {
      G_[j] = next_[j];
      weight_[j] = next_weight_[j];
    }
    anew_ = found.dead > 0 || found.widest > kScalingLimit<T>;
    __syncthreads();
    return found.error;
  }

  static __device__ double target(double mass, double potential, double theta) {
    return theta == 1 ? mass : mass * power_of_two(potential * ((theta - 1) / theta));
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
      const double F = F_[i], marginal = F + largest + log2(sum);
      const double new_F = F + omega * (task_.theta_a * (F + (log_a_[i] - marginal)) - F);
      const double scale = power_of_two(new_F + largest);
      for (int j = lane_; j < m_; j += 32) row[j] = static_cast<T>(power(exponent(i, j) - largest, 0.0) * scale);
      __syncwarp();
      if (lane_ == 0) {
        // Not finite if no entry is.
        found.error += fabs(sum * scale - target(row_mass(i), new_F, task_.theta_a)) + new_F * 0.0;
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
  __device__ __forceinline__ double exponent(int i, int j) const {
    return G_[j] - kappa_ * entry(task_.cost, p_, i, j);
  }

  // Columns whose entries are about the smallest numbers or less, sums_[j] = -1: a warp for each finds the sum of
  // logarithms.
  __device__ void revive(double omega, Found& found) {
    for (int j = warp_; j < m_; j += kWarps) {
      if (sums_[j] != -1.0) continue;
      double largest = -static_cast<double>(INFINITY), sum = 0;
      for (int i = lane_; i < n_; i += 32) largest = fmax(largest, F_[i] - kappa_ * entry(task_.cost, p_, i, j));
#pragma unroll
      for (int step = 16; step > 0; step /= 2) largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, step));
      for (int i = lane_; i < n_; i += 32) sum += power(F_[i] - kappa_ * entry(task_.cost, p_, i, j) - largest, 0.0);
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (lane_ == 0) {
        const double G = G_[j], aim = task_.theta_b * (log_b_[j] - largest - log2(sum));
        const double new_G = G + omega * (aim - G);
        next_[j] = new_G;
        found.finite += new_G * 0.0;
        found.dead = 1;
      }
    }
    __syncthreads();
  }

  __device__ Found reduce(Found x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      x.error += __shfl_xor_sync(0xffffffffu, x.error, step);
      x.finite += __shfl_xor_sync(0xffffffffu, x.finite, step);
      x.widest = fmax(x.widest, __shfl_xor_sync(0xffffffffu, x.widest, step));
      x.dead = fmax(x.dead, __shfl_xor_sync(0xffffffffu, x.dead, step));
    }
    if (lane_ == 0) shared_.found[warp_] = x;
    __syncthreads();
    x = shared_.found[0];
    for (int warp = 1; warp < kWarps; ++warp) {
      const Found& other = shared_.found[warp];
      x.error += other.error;
      x.finite += other.finite;
      x.widest = fmax(x.widest, other.widest);
      x.dead = fmax(x.dead, other.dead);
    }
    __syncthreads();
    return x;
  }

  __device__ void save(double* to) const {
    for (int i = thread_; i < n_; i += kThreads) to[i] = F_[i];
    for (int j = thread_; j < m_; j += kThreads) to[n_ + j] = G_[j];
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
    for (int j = thread_; j < m_; j += kThreads) largest.dead = fmax(largest.dead, fabs(G_[j]));
    largest = reduce(largest);
    constexpr double kEpsilon = sizeof(T) == 4 ? 1.1920929e-7 : 2.220446049250313e-16, kLog = 0.6931471805599453;
    return 16 * kEpsilon * ((largest.widest + largest.dead) * kLog + 1) * mass_a_;
  }

  // F + c and G - c with the best c, which unbalanced iterations find slowly where the weights of the marginals are
  // large. E does not change.
  __device__ void translate() {
    if (task_.theta_a == 1 && task_.theta_b == 1) return;
    const double pull_a = (1 - task_.theta_a) / task_.theta_a, pull_b = (1 - task_.theta_b) / task_.theta_b;
    Found largest;
    largest.widest = largest.dead = -static_cast<double>(INFINITY);
    for (int i = thread_; i < n_; i += kThreads) largest.widest = fmax(largest.widest, log_a_[i] - F_[i] * pull_a);
    for (int j = thread_; j < m_; j += kThreads) largest.dead = fmax(largest.dead, log_b_[j] - G_[j] * pull_b);
    largest = reduce(largest);
    Found sum;
    for (int i = thread_; i < n_; i += kThreads) sum.error += exp2(log_a_[i] - F_[i] * pull_a - largest.widest);
    for (int j = thread_; j < m_; j += kThreads) sum.finite += exp2(log_b_[j] - G_[j] * pull_b - largest.dead);
    sum = reduce(sum);
    const double c = (largest.widest + log2(sum.error) - largest.dead - log2(sum.finite)) / (pull_a + pull_b);
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
  double kappa_ = 1, mass_a_ = 0;
  bool anew_ = true;  // E is to be made from the potentials
  std::int64_t made_ = 0;
};

// Blocks that are to share a multiprocessor, for which the wait of one is the work of another.
template <int kThreads>
inline constexpr int kShare = kThreads == 64    ? 12
                              : kThreads == 128 ? 8
                              : kThreads == 256 ? 3
                                                : 1;

template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, kShare<kThreads>) converge_kernel(const __grid_constant__ Task<T> task) {
  __shared__ typename Solver<T, kThreads>::Shared shared;
  Solver<T, kThreads>(task, shared).run();
}

template <class T, int kThreads>
void launch(const Execution& exec, const Task<T>& task) {
  const std::int64_t bytes = layout(task.cost.n, task.cost.m, kThreads, sizeof(T)).bytes;
  if (bytes > 40 * 1024)  // with what is static, more than 48 KB
    QUADRIC_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(&converge_kernel<T, kThreads>),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  converge_kernel<T, kThreads>
      <<<static_cast<unsigned>(task.cost.problems), kThreads, static_cast<std::size_t>(bytes), stream(exec)>>>(task);
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace

bool converges(CostKind, std::int64_t n, std::int64_t m, std::int64_t d, int itemsize) {
  if (n < 1 || m < 1 || n > kSharedLimit / 8 || m > kSharedLimit / 8 || d > 4096) return false;
  return n * (m | 1) * itemsize <= 160 * 1024 && layout(n, m, threads_for(n, m), itemsize).bytes <= kSharedLimit;
}

template <class T>
void converge(const Execution& exec, std::int64_t problems, const Cost<T>* cost, const double* a, const double* b,
              const double* omega, double* f, double* g, double* errors, std::int64_t* iterations,
              const ConvergeOptions& options) {
  QUADRIC_REQUIRE(options.reg > 0, "reg must be positive");
  QUADRIC_REQUIRE(options.theta_a > 0 && options.theta_a <= 1, "theta_a must be above 0 and at most 1");
  QUADRIC_REQUIRE(options.theta_b > 0 && options.theta_b <= 1, "theta_b must be above 0 and at most 1");
  QUADRIC_REQUIRE(options.count >= 0, "count must not be negative");
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
  task.kept = scratch.get<double>(problems * 2 * (n + m));
  task.seen = scratch.get<double>(problems * kSeen);
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

#define QUADRIC_INSTANTIATE(T)                                                                                     \
  template QUADRIC_API void converge(const Execution&, std::int64_t, const Cost<T>*, const double*, const double*, \
                                     const double*, double*, double*, double*, std::int64_t*, const ConvergeOptions&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::transport
