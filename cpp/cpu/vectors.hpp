// SIMD vectors of any width, for files that are compiled once per instruction set (quadric_simd_sources in
// cpp/CMakeLists.txt). QUADRIC_VECTOR_BYTES is the register width. Everything here has internal linkage: a copy that
// the linker could share with the rest of the library might be the one with instructions that this processor lacks.
#pragma once

#include <cstdint>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace quadric::QUADRIC_LEVEL {
namespace {

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = float __attribute__((vector_size(QUADRIC_VECTOR_BYTES), may_alias));
  using Loose = float __attribute__((vector_size(QUADRIC_VECTOR_BYTES), aligned(sizeof(float)), may_alias));
  using Singles = Loose;  // as many float32 as there are lanes, at any address
  using I = std::int32_t __attribute__((vector_size(QUADRIC_VECTOR_BYTES), may_alias));
  using Int = std::int32_t;
  using Wrapping = std::uint32_t __attribute__((vector_size(QUADRIC_VECTOR_BYTES), may_alias));
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, half to even
  static constexpr int kFraction = 23;          // bits of the significand after the point
  static constexpr Int kSqrtHalf = 0x3f3504f3;  // bits of sqrt(1/2)
  static constexpr float kMinExponent = -126.0f;
  static constexpr float kSubnormal = 1.40129846e-45f;
  static constexpr float kTiny = 1.17549435e-38f;
  static constexpr float kMax = 3.4028235e38f;
};
template <>
struct Simd<double> {
  using V = double __attribute__((vector_size(QUADRIC_VECTOR_BYTES), may_alias));
  using Loose = double __attribute__((vector_size(QUADRIC_VECTOR_BYTES), aligned(sizeof(double)), may_alias));
  using Singles = float __attribute__((vector_size(QUADRIC_VECTOR_BYTES / 2), aligned(sizeof(float)), may_alias));
  using I = std::int64_t __attribute__((vector_size(QUADRIC_VECTOR_BYTES), may_alias));
  using Int = std::int64_t;
  using Wrapping = std::uint64_t __attribute__((vector_size(QUADRIC_VECTOR_BYTES), may_alias));
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kFraction = 52;
  static constexpr Int kSqrtHalf = 0x3fe6a09e667f3bcd;
  static constexpr double kMinExponent = -1022.0;
  static constexpr double kSubnormal = 4.9406564584124654e-324;
  static constexpr double kTiny = 2.2250738585072014e-308;
  static constexpr double kMax = 1.7976931348623157e308;
};

template <class T>
using V = typename Simd<T>::V;
template <class T>
using I = typename Simd<T>::I;

template <class T>
constexpr int kLanes = QUADRIC_VECTOR_BYTES / sizeof(T);
// Memory as vectors; p is aligned to the width of a vector.
template <class T>
inline V<T>& vec(T* p) {
  return *reinterpret_cast<V<T>*>(p);
}
template <class T>
inline const V<T>& vec(const T* p) {
  return *reinterpret_cast<const V<T>*>(p);
}
// The same at any address.
template <class T>
inline typename Simd<T>::Loose& loose(T* p) {
  return *reinterpret_cast<typename Simd<T>::Loose*>(p);
}
template <class T>
inline const typename Simd<T>::Loose& loose(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Loose*>(p);
}
template <class T>
inline V<T> splat(T x) {
  return x - V<T>{};  // + would turn -0 into 0 and so cost an instruction
}
// x as it is after rounding: keeps the compiler from fusing the product that made it with a later addition, where two
// places must round alike.
template <class T>
inline V<T> rounded(V<T> x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  asm("" : "+m"(x));
#endif
  return x;
}
template <class T>
inline V<T> lower(V<T> a, V<T> b) {
  return a < b ? a : b;
}
template <class T>
inline V<T> higher(V<T> a, V<T> b) {
  return a > b ? a : b;
}
template <class T>
inline V<T> square_root(V<T> x) {
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    if constexpr (sizeof(T) == 4)
      x[lane] = __builtin_sqrtf(x[lane]);
    else
      x[lane] = __builtin_sqrt(x[lane]);
  }
  return x;
}
// The sum of the lanes.
template <class T>
inline double total(V<T> x) {
  double sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += static_cast<double>(x[lane]);
  return sum;
}
// Nearest integer, half to even, for |x| < 2^22 (float) or 2^51 (double).
template <class T>
inline V<T> nearest(V<T> x) {
  return (x + Simd<T>::kRound) - Simd<T>::kRound;
}
template <class T>
inline I<T> bits(V<T> x) {
  return reinterpret_cast<I<T>&>(x);
}
template <class T>
inline V<T> from_bits(I<T> x) {
  return reinterpret_cast<V<T>&>(x);
}
template <class T>
inline V<T> magnitude(V<T> x) {
  constexpr typename Simd<T>::Int kSign = typename Simd<T>::Int(1) << (sizeof(T) * 8 - 1);
  return from_bits<T>(bits<T>(x) & ~kSign);
}
// Float32 as T. GCC 12 would make a conversion to AVX-512 out of halves, and warns of the form without a mask.
inline V<float> from_singles(Simd<float>::Singles x, float) { return x; }
inline V<double> from_singles(Simd<double>::Singles x, double) {
#ifdef __AVX512F__
  return _mm512_maskz_cvtps_pd(0xff, reinterpret_cast<__m256&>(x));
#else
  return __builtin_convertvector(x, V<double>);
#endif
}
inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

template <class T>
inline void copy(T* to, const T* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// log2 x for x > 0 (a normal number); absolute error about 3e-7 (float), 3e-16 + 1 ulp (double); 0 gives about the
// exponent below the smallest one.
template <class T>
inline V<T> logarithm(V<T> x) {
  using S = Simd<T>;
  const I<T> offset = bits<T>(x) - S::kSqrtHalf;
  const I<T> exponent = offset >> S::kFraction;  // x = m 2^exponent with m in [sqrt(1/2), sqrt(2))
  const V<T> m = from_bits<T>(bits<T>(x) - (exponent << S::kFraction));
  V<T> log2_m;
  if constexpr (sizeof(T) == 4) {  // minimax polynomial of log2(1 + z) / z, relative error 1.7e-7
    const V<T> z = m - T(1);
    V<T> s = splat<T>(-0.14620353f);
    s = s * z + 0.23420985f;
    s = s * z - 0.24882181f;
    s = s * z + 0.2870756f;
    s = s * z - 0.36024198f;
    s = s * z + 0.48092404f;
    s = s * z - 0.72135276f;
    s = s * z + 1.4426949f;
    log2_m = s * z;
  } else {  // 2 atanh(u) / ln 2 with u = (m - 1) / (m + 1), |u| < 0.1716
    const V<T> u = (m - T(1)) / (m + T(1));
    const V<T> u2 = u * u;
    V<T> s = splat<T>(T(1) / T(25));
    for (int k = 23; k >= 1; k -= 2) s = s * u2 + T(1) / T(k);
    log2_m = u * s * T(2.8853900817779268147);
  }
  return __builtin_convertvector(exponent, V<T>) + log2_m;
}

// The number whose bits are those of x plus those of k, moved to the left; what overflows is gone.
template <class T>
inline V<T> add_bits(V<T> x, V<T> k, int places) {
  using W = typename Simd<T>::Wrapping;
  const W sum = reinterpret_cast<W&>(x) + (reinterpret_cast<W&>(k) << places);
  return reinterpret_cast<const V<T>&>(sum);
}

#ifdef __AVX512F__
// The bits of 2^(k / 32) and 2^(k / 16).
alignas(64) constexpr std::int32_t kRootsFloat[32] = {
    0x3f800000, 0x3f82cd87, 0x3f85aac3, 0x3f88980f, 0x3f8b95c2, 0x3f8ea43a, 0x3f91c3d3, 0x3f94f4f0,
    0x3f9837f0, 0x3f9b8d3a, 0x3f9ef532, 0x3fa27043, 0x3fa5fed7, 0x3fa9a15b, 0x3fad583f, 0x3fb123f6,
    0x3fb504f3, 0x3fb8fbaf, 0x3fbd08a4, 0x3fc12c4d, 0x3fc5672a, 0x3fc9b9be, 0x3fce248c, 0x3fd2a81e,
    0x3fd744fd, 0x3fdbfbb8, 0x3fe0ccdf, 0x3fe5b907, 0x3feac0c7, 0x3fefe4ba, 0x3ff5257d, 0x3ffa83b3};
alignas(64) constexpr std::int64_t kRootsDouble[16] = {
    0x3ff0000000000000, 0x3ff0b5586cf9890f, 0x3ff172b83c7d517b, 0x3ff2387a6e756238,
    0x3ff306fe0a31b715, 0x3ff3dea64c123422, 0x3ff4bfdad5362a27, 0x3ff5ab07dd485429,
    0x3ff6a09e667f3bcd, 0x3ff7a11473eb0187, 0x3ff8ace5422aa0db, 0x3ff9c49182a3f090,
    0x3ffae89f995ad3ad, 0x3ffc199bdd85529c, 0x3ffd5818dcfba487, 0x3ffea4afa2a490da};
#endif

// 2^(x + shift), shift a whole number; below the smallest normal number it is 0. Error at most 1.2 ulp (double) and
// 2 ulp (float) where the result is finite; anything where it is not. x = -infinity or NaN gives 0.
template <class T>
inline V<T> power_of_two(V<T> x, T shift = 0) {
  using S = Simd<T>;
#ifdef __AVX512F__
  // x = whole + k / kRoots + f with f in [0, 1 / kRoots): a table for k and a short polynomial. Rounded down, x + shift
  // keeps its whole part. With masks: GCC 12 warns of the forms without.
  constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  if constexpr (sizeof(T) == 4) {  // (2^f - 1) / f; relative error of 2^f 6.5e-8
    using R = __m512;
    const R z = reinterpret_cast<const R&>(x);
    const R sum = _mm512_maskz_add_round_ps(0xffff, z, _mm512_set1_ps(shift), kDown);
    const R k = _mm512_mask_fmadd_round_ps(z, 0xffff, _mm512_set1_ps(32), _mm512_set1_ps(S::kRound), kDown);
    const R rest = _mm512_maskz_reduce_ps(0xffff, z, 0x59);
    const auto root = _mm512_maskz_permutex2var_epi32(0xffff, reinterpret_cast<const __m512i&>(kRootsFloat[0]),
                                                      reinterpret_cast<const __m512i&>(k),
                                                      reinterpret_cast<const __m512i&>(kRootsFloat[16]));
    const V<T>& f = reinterpret_cast<const V<T>&>(rest);
    const V<T>& r = reinterpret_cast<const V<T>&>(root);
    const V<T> e = r + r * (f * (T(0.242652692) * f + T(0.693123732)));
    const R power = _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(sum, _mm512_set1_ps(S::kMinExponent), _CMP_GE_OQ),
                                           reinterpret_cast<const R&>(e), sum);
    return reinterpret_cast<const V<T>&>(power);
  } else {  // 7.6e-18
    using R = __m512d;
    const R z = reinterpret_cast<const R&>(x);
    const R sum = _mm512_maskz_add_round_pd(0xff, z, _mm512_set1_pd(shift), kDown);
    const R k = _mm512_mask_fmadd_round_pd(z, 0xff, _mm512_set1_pd(16), _mm512_set1_pd(S::kRound), kDown);
    const R rest = _mm512_maskz_reduce_pd(0xff, z, 0x49);
    const auto root = _mm512_maskz_permutex2var_epi64(0xff, reinterpret_cast<const __m512i&>(kRootsDouble[0]),
                                                      reinterpret_cast<const __m512i&>(k),
                                                      reinterpret_cast<const __m512i&>(kRootsDouble[8]));
    const V<T>& f = reinterpret_cast<const V<T>&>(rest);
    const V<T>& r = reinterpret_cast<const V<T>&>(root);
    V<T> q = splat<T>(1.5736282854558428516e-4);
    q = q * f + 1.3330742245224846564e-3;
    q = q * f + 9.6181408030860942327e-3;
    q = q * f + 5.5504108419541985971e-2;
    q = q * f + 2.4022650696146325866e-1;
    q = q * f + 6.9314718055993774105e-1;
    const V<T> e = r + r * (f * q);
    const R power = _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(sum, _mm512_set1_pd(S::kMinExponent), _CMP_GE_OQ),
                                           reinterpret_cast<const R&>(e), sum);
    return reinterpret_cast<const V<T>&>(power);
  }
#else
  const T round = S::kRound + shift;
  const V<T> shifted = x + round;  // the last bits of it are the nearest integer, plus shift
  const V<T> f = x - (shifted - round);
  V<T> e;
  if constexpr (sizeof(T) == 4) {  // minimax polynomials of 2^f, |f| <= 1/2; relative error 1.9e-9
    e = splat<T>(1.53458121623e-4f);
    e = e * f + 1.3399931177e-3f;
    e = e * f + 9.6184889564e-3f;
    e = e * f + 5.55032877711e-2f;
    e = e * f + 2.402264689065e-1f;
    e = e * f + 6.931472057372e-1f;
    e = e * f + 1.0f;
  } else {  // 3.1e-18
    e = splat<T>(4.4352827069572771511e-10);
    e = e * f + 7.0741056135081427963e-9;
    e = e * f + 1.0178198021671930844e-7;
    e = e * f + 1.321543308967639918e-6;
    e = e * f + 1.5252733489988525649e-5;
    e = e * f + 1.5403530462514432062e-4;
    e = e * f + 1.3333558146789921722e-3;
    e = e * f + 9.6181291075883352443e-3;
    e = e * f + 5.5504108664819921605e-2;
    e = e * f + 2.4022650695910156204e-1;
    e = e * f + 6.9314718055994533046e-1;
    e = e * f + 1.0;
  }
  const V<T> y = add_bits<T>(e, shifted, S::kFraction);
  return shifted >= S::kRound + S::kMinExponent ? y : V<T>{};
#endif
}

// x^p for x >= 0 and p >= 0 as 2^(p log2 x); relative error about 4e-7 (float), 1e-14 (double); 0 gives a tiny number.
template <class T>
inline V<T> power(V<T> x, T p) {
  using S = Simd<T>;
  V<T> y = logarithm<T>(x) * p;
  y = higher<T>(y, splat<T>(S::kMinExponent));
  const V<T> whole = nearest<T>(y);
  V<T> e;
  if constexpr (sizeof(T) == 4) {  // minimax polynomial of 2^f, |f| <= 1/2
    const V<T> f = y - whole;
    e = splat<T>(0.00015469732f);
    e = e * f + 0.0013400433f;
    e = e * f + 0.009618025f;
    e = e * f + 0.055503272f;
    e = e * f + 0.2402265f;
    e = e * f + 0.6931472f;
    e = e * f + 1.0f;
  } else {  // exp(f), |f| < 0.3466
    const V<T> f = (y - whole) * T(0.69314718055994530942);
    e = splat<T>(T(1));
    for (int k = 14; k >= 1; --k) e = e * f * (T(1) / T(k)) + T(1);
  }
  return from_bits<T>(bits<T>(e) + (__builtin_convertvector(whole, I<T>) << S::kFraction));
}

}  // namespace
}  // namespace quadric::QUADRIC_LEVEL
