// The arithmetic of grids, one number at a time: how a range becomes a scale and a zero point and what it costs. It
// follows cpp/cpu/sweep/panel_grid.hpp operation by operation; products that are rounded there, because the result is
// stored, are kept from fusing here.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "quadric/sweep.hpp"

namespace quadric::cuda::sweep {

template <class T>
struct Number;
template <>
struct Number<float> {
  using Int = std::int32_t;
  using Bits = std::uint32_t;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, half to even
  static constexpr int kFraction = 23;          // bits of the significand after the point
  static constexpr Int kSqrtHalf = 0x3f3504f3;  // bits of sqrt(1/2)
  static constexpr float kMinExponent = -126.0f;
  static constexpr float kSubnormal = 1.40129846e-45f;
  static constexpr float kMax = 3.4028235e38f;
  static __device__ Int bits(float x) { return __float_as_int(x); }
  static __device__ float from_bits(Int x) { return __int_as_float(x); }
  static __device__ float product(float a, float b) { return __fmul_rn(a, b); }
  static __device__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
  // x cut to [low, high], which are numbers; `low` where x is NaN. One instruction for each end.
  static __device__ float clamp(float x, float low, float high) { return fminf(fmaxf(x, low), high); }
  // 1 / x for x of ordinary size, within an ulp, without a branch
  static __device__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return fused(fused(-x, y, 1.0f), y, y);
#else
    return 1.0f / x;
#endif
  }
};
template <>
struct Number<double> {
  using Int = std::int64_t;
  using Bits = std::uint64_t;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kFraction = 52;
  static constexpr Int kSqrtHalf = 0x3fe6a09e667f3bcd;
  static constexpr double kMinExponent = -1022.0;
  static constexpr double kSubnormal = 4.9406564584124654e-324;
  static constexpr double kMax = 1.7976931348623157e308;
  static __device__ Int bits(double x) { return __double_as_longlong(x); }
  static __device__ double from_bits(Int x) { return __longlong_as_double(x); }
  static __device__ double product(double a, double b) { return __dmul_rn(a, b); }
  static __device__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
  static __device__ double clamp(double x, double low, double high) {
    x = x > low ? x : low;
    return x < high ? x : high;
  }
  static __device__ double reciprocal(double x) { return 1.0 / x; }
};

// Where a is NaN these give b, as on the CPU.
template <class T>
__device__ inline T lower(T a, T b) {
  return a < b ? a : b;
}
template <class T>
__device__ inline T higher(T a, T b) {
  return a > b ? a : b;
}
template <class T>
__device__ inline T magnitude(T x) {
  using Int = typename Number<T>::Int;
  return Number<T>::from_bits(Number<T>::bits(x) & ~(Int(1) << (sizeof(T) * 8 - 1)));
}
// Nearest integer, half to even, for |x| < 2^22 (float) or 2^51 (double).
template <class T>
__device__ inline T nearest(T x) {
  return (x + Number<T>::kRound) - Number<T>::kRound;
}

// x^p for x >= 0 and p >= 0 as 2^(p log2 x); relative error about 4e-7 (float), 1e-14 (double); 0 gives a tiny number.
template <class T>
__device__ inline T power(T x, T p) {
  using N = Number<T>;
  using Int = typename N::Int;
  const Int offset = N::bits(x) - N::kSqrtHalf;
  const Int exponent = offset >> N::kFraction;  // x = m 2^exponent with m in [sqrt(1/2), sqrt(2))
  const T m = N::from_bits(N::bits(x) - exponent * (Int(1) << N::kFraction));
  T log2_m;
  if constexpr (sizeof(T) == 4) {  // minimax polynomial of log2(1 + z) / z, relative error 1.7e-7
    const T z = m - T(1);
    T s = -0.14620353f;
    s = s * z + 0.23420985f;
    s = s * z - 0.24882181f;
    s = s * z + 0.2870756f;
    s = s * z - 0.36024198f;
    s = s * z + 0.48092404f;
    s = s * z - 0.72135276f;
    s = s * z + 1.4426949f;
    log2_m = s * z;
  } else {  // 2 atanh(u) / ln 2 with u = (m - 1) / (m + 1), |u| < 0.1716
    const T u = (m - T(1)) / (m + T(1));
    const T u2 = u * u;
    T s = T(1) / T(25);
#pragma unroll
    for (int k = 23; k >= 1; k -= 2) s = s * u2 + T(1) / T(k);
    log2_m = u * s * T(2.8853900817779268147);
  }
  const T y = higher<T>((T(exponent) + log2_m) * p, N::kMinExponent);
  const T whole = nearest<T>(y);
  T e;
  if constexpr (sizeof(T) == 4) {  // minimax polynomial of 2^f, |f| <= 1/2
    const T f = y - whole;
    e = 0.00015469732f;
    e = e * f + 0.0013400433f;
    e = e * f + 0.009618025f;
    e = e * f + 0.055503272f;
    e = e * f + 0.2402265f;
    e = e * f + 0.6931472f;
    e = e * f + 1.0f;
  } else {  // exp(f), |f| < 0.3466
    const T f = (y - whole) * T(0.69314718055994530942);
    e = T(1);
#pragma unroll
    for (int k = 14; k >= 1; --k) e = e * f * (T(1) / T(k)) + T(1);
  }
  return N::from_bits(N::bits(e) + Int(whole) * (Int(1) << N::kFraction));
}

// t / scale where that is small, from reciprocal = 1 / scale, which need not be waited for: the correctly rounded
// quotient, but for one in about 2^20 that is a unit in the last place off; never where the quotient is a number
// exactly, as it is in a tie. Large quotients, which are cut to the grid anyway, are not corrected. For scales of
// ordinary size.
template <class T>
__device__ inline T quotient(T t, T scale, T reciprocal) {
  const T q = Number<T>::product(t, reciprocal);
  const T corrected = Number<T>::fused(Number<T>::fused(-q, scale, t), reciprocal, q);
  return magnitude<T>(q) < T(1024) ? corrected : q;
}
template <class T>
__device__ inline bool is_ordinary(T scale) {
  return scale > T(8.673617379884035e-19) && scale < T(1.152921504606847e18);  // 2^-60, 2^60
}

// How groups get their grids; GridOptions as a kernel wants them.
template <class T>
struct Rule {
  int max_code = 0, zero = 0;  // zero: that of a symmetric grid
  int steps = 1, scale_type = 0;
  bool symmetric = false, squares = true;
  T norm = T(2);

  Rule() = default;
  explicit Rule(const quadric::sweep::GridOptions& options)
      : max_code(options.max_code),
        zero((options.max_code + 1) / 2),
        steps(options.mse ? options.steps : 1),
        scale_type(static_cast<int>(options.scale_type)),
        symmetric(options.symmetric),
        squares(options.norm == 2),
        norm(static_cast<T>(options.norm)) {}
};

// To the nearest float16 (type 1) or bfloat16 (type 2) number, half to even, kept positive and finite.
template <class T>
__device__ inline T round_scale(T x, int type) {
  using N = Number<T>;
  using Int = typename N::Int;
  if (type == 0) return higher<T>(x, N::kSubnormal);
  const int drop = N::kFraction - (type == 1 ? 10 : 7);
  const Int b = N::bits(x);
  const Int odd = (b >> drop) & Int(1);
  T rounded = N::from_bits((b + odd + ((Int(1) << (drop - 1)) - 1)) & ~((Int(1) << drop) - 1));
  if (type == 2) {
    constexpr T tiny = T(9.18354961579912115600575419705e-41);  // 2^-133
    return lower<T>(higher<T>(rounded, tiny), T(3.3895313892515354759e38));
  }
  // below 2^-14 float16 numbers are multiples of 2^-24, the unit of `step`'s last place
  constexpr T step = sizeof(T) == 4 ? T(0.75) : T(402653184.0);
  rounded = x < T(6.103515625e-05) ? (x + step) - step : rounded;
  return lower<T>(higher<T>(rounded, T(5.9604644775390625e-08)), T(65504));
}

template <class T>
__device__ inline void widen_range(const Rule<T>& rule, T& low, T& high) {
  if (rule.symmetric) {
    high = higher<T>(-low, high);
    low = -high;
  }
  if (low == T(0) && high == T(0)) {
    low = T(-1);
    high = T(1);
  }
}

// The grid of the range shrunk by 1 - step / 100.
template <class T>
__device__ inline void shrink_to_grid(const Rule<T>& rule, T low, T high, int step, T& scale, T& zero) {
  const T part = T(1) - T(step) / T(100);
  const T max_code = T(rule.max_code);
  low = Number<T>::product(low, part);
  high = Number<T>::product(high, part);
  scale = round_scale<T>((high - low) / max_code, rule.scale_type);
  zero = rule.symmetric ? T(rule.zero) : nearest<T>(lower<T>(higher<T>(-low / scale, T(0)), max_code));
}

// One candidate of the MSE search: the error of an entry. The reciprocal may move a tie, where both sides have the same
// error.
template <class T>
struct Candidate {
  T scale, inverse, low, high;

  Candidate() = default;
  __device__ Candidate(const Rule<T>& rule, T scale_, T zero)
      : scale(scale_),
        inverse(T(1) / scale_),
        low(Number<T>::kRound - zero),
        high(Number<T>::kRound + (T(rule.max_code) - zero)) {}
  __device__ T error(const Rule<T>& rule, T x) const {
    const T level = Number<T>::clamp(Number<T>::fused(x, inverse, Number<T>::kRound), low, high) - Number<T>::kRound;
    const T d = level * scale - x;
    return rule.squares ? d * d : power<T>(magnitude<T>(d), rule.norm);
  }
};

}  // namespace quadric::cuda::sweep
