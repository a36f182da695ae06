// The factor of over-relaxation of small problems, found on the device: quadric.transport.relaxation has the reasons.
#pragma once

#include <cmath>
#include <limits>

namespace quadric::cuda::transport {

constexpr int kRun = 10;  // plain iterations between two looks at the rate, twice as many relaxed ones
constexpr double kLargest = 1.998;
constexpr double kSettled = 0.3;
constexpr double kWorthwhile = 25;
constexpr double kWindow = 2;
constexpr double kWorse = 10;
constexpr int kFloor = 60;
constexpr int kSeen = 1024;  // errors at one factor: a window of kLargest, and one more run

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

}  // namespace quadric::cuda::transport
