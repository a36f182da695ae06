// Grids of a panel: the part of panel.cpp that finds scales and zero points, compiled with it.
#pragma once

#include "sweep/panel.hpp"
#include "vectors.hpp"

namespace quadric::sweep::detail::QUADRIC_LEVEL {
namespace {

using namespace quadric::QUADRIC_LEVEL;

template <class T>
constexpr int kRows = static_cast<int>(kPanelRows<T>);
template <class T>
constexpr int kVectors = kRows<T> / kLanes<T>;  // vectors per panel column

// To the nearest float16 (type 1) or bfloat16 (type 2) number, half to even, kept positive and finite.
template <class T>
inline V<T> round_scale(V<T> x, int type) {
  if (type == 0) return higher<T>(x, splat<T>(Simd<T>::kSubnormal));
  using Int = typename Simd<T>::Int;
  const int drop = Simd<T>::kFraction - (type == 1 ? 10 : 7);
  const I<T> b = bits<T>(x);
  const I<T> odd = (b >> drop) & Int(1);
  V<T> rounded = from_bits<T>((b + odd + ((Int(1) << (drop - 1)) - 1)) & ~((Int(1) << drop) - 1));
  if (type == 2) {
    constexpr T tiny = T(9.18354961579912115600575419705e-41);  // 2^-133
    return lower<T>(higher<T>(rounded, splat<T>(tiny)), splat<T>(T(3.3895313892515354759e38)));
  }
  // below 2^-14 float16 numbers are multiples of 2^-24, the unit of `step`'s last place
  constexpr T step = sizeof(T) == 4 ? T(0.75) : T(402653184.0);
  rounded = x < T(6.103515625e-05) ? (x + step) - step : rounded;
  return lower<T>(higher<T>(rounded, splat<T>(T(5.9604644775390625e-08))), splat<T>(T(65504)));
}

template <class T>
inline void widen_range(const Job<T>& job, V<T>& low, V<T>& high) {
  const V<T> nil{};
  if (job.symmetric) {
    high = higher<T>(-low, high);
    low = -high;
  }
  const auto empty = (low == nil) & (high == nil);
  low = empty ? splat<T>(T(-1)) : low;
  high = empty ? splat<T>(T(1)) : high;
}

template <class T>
inline void shrink_to_grid(const Job<T>& job, V<T> low, V<T> high, int step, V<T>& scale, V<T>& zero) {
  const T part = T(1) - T(step) / T(100);
  const T max_code = T(job.max_code);
  low = low * part;
  high = high * part;
  scale = round_scale<T>((high - low) / max_code, job.scale_type);
  if (job.symmetric) {
    zero = splat<T>(T(job.zero));
  } else {
    const V<T> z = lower<T>(higher<T>(-low / scale, V<T>{}), splat<T>(max_code));
    zero = nearest<T>(z);
  }
}

// Calls use(|Q(w_j) - w_j|) for columns [from, to). The reciprocal may move a tie, where both sides have the same
// error.
template <class T, class Use>
inline void for_errors(const Job<T>& job, const T* w, std::int64_t from, std::int64_t to, V<T> scale, V<T> zero,
                       const Use& use) {
  const V<T> inverse = T(1) / scale;
  const V<T> low = -zero;
  const V<T> high = T(job.max_code) - zero;
  for (std::int64_t j = from; j < to; ++j) {
    const V<T> x = vec(w + j * kRows<T>);
    const V<T> d = nearest<T>(lower<T>(higher<T>(x * inverse, low), high)) * scale - x;
    use(magnitude<T>(d));
  }
}

// sum_j |Q(w_j) - w_j|^norm
template <class T>
inline void add_error(const Job<T>& job, const T* w, std::int64_t from, std::int64_t to, V<T> scale, V<T> zero,
                      V<T>& sum) {
  V<T> s = sum;
  if (job.norm == 2) {
    for_errors<T>(job, w, from, to, scale, zero, [&](V<T> d) { s += d * d; });
  } else {
    for_errors<T>(job, w, from, to, scale, zero, [&](V<T> d) { s += power<T>(d, T(job.norm)); });
  }
  sum = s;
}

template <class T>
inline bool any_reaches(V<T> sum, V<T> bound) {
  const auto reaches = sum <= bound;
  typename Simd<T>::Int found = 0;
  for (int i = 0; i < kLanes<T>; ++i) found |= reaches[i];
  return found != 0;
}

// The MSE search of one vector of rows: sets scale and zero to the candidate with the least error, of equals the
// widest. Powers are dear, so a candidate is given up as soon as it cannot win in any row: when its partial sum is too
// large, or, for p = norm > 2, when a lower bound from cheaper sums S1 = sum |d| and S2 = sum d^2 is: sum |d|^p >= n
// (S2 / n)^(p/2), looked at on the way, and >= S2^(p-1) / S1^(p-2), tighter, at the end (both Hoelder).
template <class T>
void search_range(const Job<T>& job, const T* w, std::int64_t columns, V<T> low, V<T> high, V<T>& scale, V<T>& zero) {
  constexpr std::int64_t kCheck = 32;  // columns between looks at whether a candidate can still win
  constexpr int kCoarse = 8;           // every eighth candidate goes first, to have a good bound early
  const T p = T(job.norm);
  const bool bounded = p > T(2);
  const V<T> huge = splat<T>(Simd<T>::kMax);
  V<T> best = huge;
  V<T> best_step{};
  V<T> bound = huge;  // candidates with a larger sum cannot win; below 0 where the error is 0 already
  V<T> limit = huge;  // nor those with a larger S2
  const auto try_step = [&](int step) {
    V<T> s, z;
    shrink_to_grid<T>(job, low, high, step, s, z);
    V<T> sum{};
    if (bounded) {
      V<T> s1{}, s2{};
      for (std::int64_t j = 0; j < columns; j += kCheck) {
        for_errors<T>(job, w, j, smaller(j + kCheck, columns), s, z, [&](V<T> d) {
          s1 += d;
          s2 += d * d;
        });
        if (!any_reaches<T>(s2, limit)) return;
      }
      const V<T> ratio = s2 / higher<T>(s1, splat<T>(Simd<T>::kTiny));
      const V<T> least = power<T>(ratio, p - T(2)) * s2 * T(0.9999);  // room for rounding
      sum = least <= bound ? sum : huge;
    }
    for (std::int64_t j = 0; j < columns; j += kCheck) {
      if (!any_reaches<T>(sum, bound)) return;
      add_error<T>(job, w, j, smaller(j + kCheck, columns), s, z, sum);
    }
    const V<T> at = splat<T>(T(step));
    const auto wins = (sum < best) | ((sum == best) & (at < best_step));
    best = wins ? sum : best;
    best_step = wins ? at : best_step;
    scale = wins ? s : scale;
    zero = wins ? z : zero;
    bound = best > V<T>{} ? best : splat<T>(T(-1));
    if (!bounded) return;
    limit = power<T>(best / T(columns), T(2) / p) * T(columns) * T(1.0001);
    limit = best > V<T>{} ? limit : splat<T>(T(-1));
  };
  for (int step = 0; step < job.steps; step += kCoarse) try_step(step);
  for (int step = 0; step < job.steps; ++step)
    if (step % kCoarse != 0) try_step(step);
}

// The grid of each row from `columns` columns of weights: minmax, or the shrunk range with the least error.
template <class T>
void find_grid(const Job<T>& job, const T* w, std::int64_t columns, T* scale, T* zero) {
  for (int row = 0; row < kRows<T>; row += kLanes<T>) {
    const T* wr = w + row;
    V<T> low{}, high{};
    for (std::int64_t j = 0; j < columns; ++j) {
      low = lower<T>(low, vec(wr + j * kRows<T>));
      high = higher<T>(high, vec(wr + j * kRows<T>));
    }
    widen_range<T>(job, low, high);
    V<T> s, z;
    shrink_to_grid<T>(job, low, high, 0, s, z);
    if (job.mse) search_range<T>(job, wr, columns, low, high, s, z);
    vec(scale + row) = s;
    vec(zero + row) = z;
  }
}

}  // namespace
}  // namespace quadric::sweep::detail::QUADRIC_LEVEL
