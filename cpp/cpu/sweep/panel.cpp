// The panel kernels, compiled once per instruction set: QUADRIC_LEVEL names the namespace, QUADRIC_VECTOR_BYTES the
// register width, QUADRIC_TILE_COLUMNS how many columns of R fit beside it. See panel.hpp for the rules of this file:
// no header here may bring inline functions that the rest of the library uses too.
#include "sweep/panel.hpp"

namespace quadric::sweep::detail::QUADRIC_LEVEL {
namespace {

// ---- vectors -------------------------------------------------------------------------------------------------------

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = float __attribute__((vector_size(QUADRIC_VECTOR_BYTES), may_alias));
  using I = std::int32_t __attribute__((vector_size(QUADRIC_VECTOR_BYTES), may_alias));
  using Int = std::int32_t;
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
  using I = std::int64_t __attribute__((vector_size(QUADRIC_VECTOR_BYTES), may_alias));
  using Int = std::int64_t;
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
template <class T>
constexpr int kRows = static_cast<int>(kPanelRows<T>);
template <class T>
constexpr int kVectors = kRows<T> / kLanes<T>;  // vectors per panel column

constexpr std::int64_t kChunk = 8;    // columns that are finished together
constexpr std::int64_t kDepth = 512;  // rows of D per pass of a block product: 96 KiB, half an L2 cache of 256 KiB

template <class T>
inline V<T>& vec(T* p) {  // panel memory is aligned to 64 bytes and a column is 192 bytes long
  return *reinterpret_cast<V<T>*>(p);
}
template <class T>
inline const V<T>& vec(const T* p) {
  return *reinterpret_cast<const V<T>*>(p);
}
template <class T>
inline V<T> splat(T x) {
  return x - V<T>{};  // + would turn -0 into 0 and so cost an instruction
}
template <class T>
inline V<T> magnitude(V<T> x) {
  constexpr typename Simd<T>::Int kSign = typename Simd<T>::Int(1) << (sizeof(T) * 8 - 1);
  const I<T> b = reinterpret_cast<I<T>&>(x) & ~kSign;
  return reinterpret_cast<const V<T>&>(b);
}
template <class T>
inline V<T> lower(V<T> a, V<T> b) {
  return a < b ? a : b;
}
template <class T>
inline V<T> higher(V<T> a, V<T> b) {
  return a > b ? a : b;
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
inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

template <class T>
inline void copy(T* to, const T* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// x^p for x >= 0 and p >= 0 as 2^(p log2 x); relative error about 4e-7 (float), 1e-14 (double); 0 gives a tiny number.
template <class T>
inline V<T> power(V<T> x, T p) {
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
  V<T> y = (__builtin_convertvector(exponent, V<T>) + log2_m) * p;
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

// ---- products ------------------------------------------------------------------------------------------------------

// C (columns x rows) += sum_k D_k R_kc for one tile of NC columns.
// Registers: NC x MV accumulators, MV of D, one broadcast entry of R.
template <class T, int NC, int MV>
inline void multiply_tile(std::int64_t depth, const T* d, const T* r, std::int64_t r_row, std::int64_t r_col, T* c) {
  for (int row = 0; row < kRows<T>; row += MV * kLanes<T>) {
    V<T> sum[NC][MV];
    for (int j = 0; j < NC; ++j)
      for (int v = 0; v < MV; ++v) sum[j][v] = vec(c + j * kRows<T> + row + v * kLanes<T>);
    const T* dk = d + row;
    const T* rk = r;
    for (std::int64_t k = 0; k < depth; ++k) {
      V<T> dv[MV];
      for (int v = 0; v < MV; ++v) dv[v] = vec(dk + v * kLanes<T>);
#pragma GCC unroll 8
      for (int j = 0; j < NC; ++j) {
        const T rkj = rk[j * r_col];
        for (int v = 0; v < MV; ++v) sum[j][v] += dv[v] * rkj;
      }
      dk += kRows<T>;
      rk += r_row;
    }
    for (int j = 0; j < NC; ++j)
      for (int v = 0; v < MV; ++v) vec(c + j * kRows<T> + row + v * kLanes<T>) = sum[j][v];
  }
}

// C_j += sum_{from <= i < to} D_i R_ij for columns [begin, end); `c` is C_begin.
template <class T>
void multiply(const Job<T>& job, const T* error, std::int64_t from, std::int64_t to, std::int64_t begin,
              std::int64_t end, T* c) {
  constexpr int MV = kVectors<T> < 3 ? kVectors<T> : 3;
  for (std::int64_t k = from; k < to; k += kDepth) {
    const std::int64_t depth = smaller(kDepth, to - k);
    const T* d = error + k * kRows<T>;
    std::int64_t j = begin;
    const auto tile = [&](auto kernel, std::int64_t columns) {
      for (; end - j >= columns; j += columns)
        kernel(depth, d, job.r + k * job.r_row + j * job.r_col, job.r_row, job.r_col, c + (j - begin) * kRows<T>);
    };
    tile(multiply_tile<T, QUADRIC_TILE_COLUMNS, MV>, QUADRIC_TILE_COLUMNS);
    tile(multiply_tile<T, 2, MV>, 2);
    tile(multiply_tile<T, 1, MV>, 1);
  }
}

// ---- grids ---------------------------------------------------------------------------------------------------------

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

// ---- panels --------------------------------------------------------------------------------------------------------

template <class T>
inline std::int64_t rows_of(const Job<T>& job, std::int64_t panel) {
  return smaller(kRows<T>, job.m - panel * kRows<T>);
}

// W of columns [begin, end), transposed; rows past the end and dead inputs are 0.
template <class T>
void load_weights(const Job<T>& job, std::int64_t panel, std::int64_t begin, std::int64_t end, T* to) {
  const std::int64_t rows = rows_of(job, panel);
  for (std::int64_t i = 0; i < kRows<T>; ++i) {
    const T* w = job.w + (panel * kRows<T> + i) * job.w_row;
    for (std::int64_t j = begin; j < end; ++j) {
      const std::int64_t column = job.order ? job.order[j] : j;
      const bool live = i < rows && !(job.dead && job.dead[column]);
      to[(j - begin) * kRows<T> + i] = live ? w[column * job.w_col] : T(0);
    }
  }
}

template <class T, class From, class To>
void store(const Job<T>& job, std::int64_t panel, std::int64_t begin, std::int64_t end, const From* from, To* to) {
  const std::int64_t rows = rows_of(job, panel);
  for (std::int64_t i = 0; i < rows; ++i) {
    To* row = to + (panel * kRows<T> + i) * job.n;
    for (std::int64_t j = begin; j < end; ++j) row[job.order[j]] = static_cast<To>(from[(j - begin) * kRows<T> + i]);
  }
}

template <class T>
void store_grid(const Job<T>& job, std::int64_t panel, std::int64_t group, const T* scale, const T* zero) {
  for (std::int64_t i = 0; i < rows_of(job, panel); ++i) {
    const std::int64_t at = (panel * kRows<T> + i) * job.groups + group;
    job.scales[at] = scale[i];
    job.zeros[at] = static_cast<std::uint8_t>(zero[i]);
  }
}

template <class T>
void load_grid(const Job<T>& job, std::int64_t panel, std::int64_t group, T* scale, T* zero) {
  const std::int64_t rows = rows_of(job, panel);
  for (std::int64_t i = 0; i < kRows<T>; ++i) {
    const std::int64_t at = (panel * kRows<T> + i) * job.groups + group;
    scale[i] = i < rows ? job.scales[at] : T(1);
    zero[i] = i < rows ? T(job.zeros[at]) : T(0);
  }
}

template <class T>
void begin_block(const Job<T>& job, Panel<T>& p, std::int64_t panel, std::int64_t begin, std::int64_t end) {
  if (begin == 0) {
    for (int i = 0; i < kRows<T>; ++i) p.loss[i] = 0.0;
    p.loaded_group = -1;
  }
  load_weights(job, panel, begin, end, p.weight);
  for (std::int64_t i = 0; i < (end - begin) * kRows<T>; ++i) p.base[i] = T(0);
  for (std::int64_t i = 0; i < (end - begin) * kRows<T>; ++i) p.kept[i] = T(1);
  if (job.r) multiply(job, p.error, 0, begin, begin, end, p.base);
}

// C_j for columns [from, to) of the block that starts at `begin`, complete up to column `from`.
template <class T>
inline void load_chunk(const Job<T>& job, Panel<T>& p, std::int64_t begin, std::int64_t from, std::int64_t to) {
  copy(p.chunk, p.base + (from - begin) * kRows<T>, (to - from) * kRows<T>);
  if (job.r) multiply(job, p.error, begin, from, from, to, p.chunk);
}

// The current weights of columns [from, to): the sweep with nothing rounded, so that D_j = -C_j / R_jj.
template <class T>
void look_ahead(const Job<T>& job, Panel<T>& p, std::int64_t begin, std::int64_t from, std::int64_t to) {
  if (!job.feedback) {
    copy(p.current + (from - begin) * kRows<T>, p.weight + (from - begin) * kRows<T>, (to - from) * kRows<T>);
    return;
  }
  for (std::int64_t a = from; a < to; a += kChunk) {
    const std::int64_t b = smaller(a + kChunk, to);
    load_chunk(job, p, begin, a, b);
    for (std::int64_t j = a; j < b; ++j) {
      const T* r = job.r + j * job.r_row;
      const T inverse = T(1) / r[j * job.r_col];
      T* d = p.error + j * kRows<T>;
      for (int i = 0; i < kRows<T>; i += kLanes<T>) {
        const V<T> x = vec(p.chunk + (j - a) * kRows<T> + i) * inverse;
        vec(d + i) = -x;
        vec(p.current + (j - begin) * kRows<T> + i) = vec(p.weight + (j - begin) * kRows<T> + i) + x;
      }
      for (std::int64_t l = j + 1; l < b; ++l)
        for (int i = 0; i < kRows<T>; i += kLanes<T>)
          vec(p.chunk + (l - a) * kRows<T> + i) += vec(d + i) * r[l * job.r_col];
    }
  }
}

// Scores of columns [from, to): |current weight * R_jj|, which orders like its square and does not underflow.
template <class T>
void scores(const Job<T>& job, Panel<T>& p, std::int64_t begin, std::int64_t from, std::int64_t to) {
  look_ahead(job, p, begin, from, to);
  for (std::int64_t j = from; j < to; ++j) {
    const T r = job.feedback ? job.r[j * (job.r_row + job.r_col)] : T(1);
    for (int i = 0; i < kRows<T>; i += kLanes<T>) {
      vec(p.score + (j - begin) * kRows<T> + i) = magnitude<T>(vec(p.current + (j - begin) * kRows<T> + i) * r);
    }
  }
}

// Keeps all but the `pruned` lowest scores of each row. Scores are not negative, so their bits order like the numbers
// and the threshold is found bit by bit, all rows at once.
template <class T>
void mask_rows(const T* score, std::int64_t columns, std::int64_t pruned, T* kept) {
  using Int = typename Simd<T>::Int;
  for (int row = 0; row < kRows<T>; row += kLanes<T>) {
    I<T> threshold{};  // becomes the largest number with at most `pruned` scores below it
    for (int bit = static_cast<int>(sizeof(T)) * 8 - 2; bit >= 0; --bit) {
      const I<T> candidate = threshold | (Int(1) << bit);
      I<T> below{};
      for (std::int64_t j = 0; j < columns; ++j) below -= bits<T>(vec(score + j * kRows<T> + row)) < candidate;
      threshold = below <= Int(pruned) ? candidate : threshold;
    }
    I<T> left = I<T>{} + Int(pruned);
    for (std::int64_t j = 0; j < columns; ++j)
      left += bits<T>(vec(score + j * kRows<T> + row)) < threshold;  // -1 for each
    for (std::int64_t j = 0; j < columns; ++j) {
      const I<T> s = bits<T>(vec(score + j * kRows<T> + row));
      const I<T> tie = (s == threshold) & (left > Int(0));
      left += tie;
      vec(kept + j * kRows<T> + row) = (s < threshold) | tie ? V<T>{} : splat<T>(T(1));
    }
  }
}

// The n:m mask of columns [from, from + out_of), whose C_j stand in `c`.
template <class T>
void mask_pattern(const Job<T>& job, Panel<T>& p, std::int64_t begin, std::int64_t from, const T* c) {
  const std::int64_t width = job.out_of;
  T* score = p.score + (from - begin) * kRows<T>;
  T* ahead = p.current + (from - begin) * kRows<T>;  // C_j while nothing is rounded
  copy(ahead, c, width * kRows<T>);
  for (std::int64_t j = 0; j < width; ++j) {
    const T* r = job.r + (from + j) * job.r_row + from * job.r_col;
    const T diagonal = job.feedback ? r[j * job.r_col] : T(1);
    const T inverse = T(1) / diagonal;
    for (int i = 0; i < kRows<T>; i += kLanes<T>) {
      V<T> w = vec(p.weight + (from + j - begin) * kRows<T> + i);
      if (job.feedback) {
        const V<T> x = vec(ahead + j * kRows<T> + i) * inverse;
        w += x;
        for (std::int64_t l = j + 1; l < width; ++l) vec(ahead + l * kRows<T> + i) -= x * r[l * job.r_col];
      }
      vec(score + j * kRows<T> + i) = magnitude<T>(w * diagonal);
    }
  }
  const T pruned = T(width - job.keep);
  T* kept = p.kept + (from - begin) * kRows<T>;
  for (std::int64_t j = 0; j < width; ++j) {
    for (int i = 0; i < kRows<T>; i += kLanes<T>) {
      const V<T> s = vec(score + j * kRows<T> + i);
      V<T> rank{};  // how many of the others go before this one
      for (std::int64_t l = 0; l < width; ++l) {
        const V<T> other = vec(score + l * kRows<T> + i);
        rank += (l < j ? other <= s : other < s) ? splat<T>(T(1)) : V<T>{};
      }
      vec(kept + j * kRows<T> + i) = rank < pruned ? V<T>{} : splat<T>(T(1));
    }
  }
}

// Grids of the groups that start in columns [from, to), from the weights that are current now.
template <class T>
void find_group_grids(const Job<T>& job, Panel<T>& p, std::int64_t panel, std::int64_t begin, std::int64_t from,
                      std::int64_t to) {
  const std::int64_t g = job.group_size;
  const std::int64_t first = (from + g - 1) / g * g;
  if (first >= to) return;
  const std::int64_t last = (to - 1) / g * g;
  look_ahead(job, p, begin, from, smaller(last + g, job.n));
  for (std::int64_t a = first; a <= last; a += g) {
    T* scale = p.scale + (a / g - begin / g) * kRows<T>;
    T* zero = p.zero + (a / g - begin / g) * kRows<T>;
    find_grid(job, p.current + (a - begin) * kRows<T>, smaller(g, job.n - a), scale, zero);
    store_grid(job, panel, a / g, scale, zero);
  }
}

// Rounds column j, whose C_j is complete, and passes its error on to the columns of the chunk that follow.
template <class T>
inline void finish_column(const Job<T>& job, Panel<T>& p, std::int64_t begin, std::int64_t from, std::int64_t to,
                          std::int64_t j, const T* scale, const T* zero, V<T> (&loss)[kVectors<T>]) {
  const T* r = job.r + j * job.r_row;
  const T diagonal = job.r ? r[j * job.r_col] : T(0);
  const T inverse = job.feedback ? T(1) / diagonal : T(0);
  const std::int64_t at = (j - begin) * kRows<T>;
  const bool masked = job.out_of > 0 || job.sparsity > 0;
  T* d = p.error + j * kRows<T>;
  for (int v = 0; v < kVectors<T>; ++v) {
    const int i = v * kLanes<T>;
    const V<T> w = vec(p.weight + at + i);
    const V<T> c = vec(p.chunk + (j - from) * kRows<T> + i);
    V<T> q = w + c * inverse;
    V<T> code{};
    if (job.max_code > 0) {
      const V<T> s = vec(scale + i);
      const V<T> z = vec(zero + i);
      const V<T> level = nearest<T>(lower<T>(higher<T>(q / s, -z), T(job.max_code) - z));
      q = level * s;
      code = level + z;
    }
    if (masked) {
      const auto pruned = vec(p.kept + at + i) == V<T>{};
      q = pruned ? V<T>{} : q;
      if (job.max_code > 0) code = pruned ? vec(zero + i) : code;
    }
    if (job.codes)
      for (int lane = 0; lane < kLanes<T>; ++lane)
        p.code[at + i + lane] = static_cast<std::uint8_t>(static_cast<int>(code[lane]));
    vec(p.value + at + i) = q;
    const V<T> error = w - q;
    vec(d + i) = error;
    const V<T> e = c + error * diagonal;
    loss[v] += e * e;
  }
  if (!job.r) return;
  for (std::int64_t l = j + 1; l < to; ++l)
    for (int i = 0; i < kRows<T>; i += kLanes<T>)
      vec(p.chunk + (l - from) * kRows<T> + i) += vec(d + i) * r[l * job.r_col];
}

// How many of the first `columns` columns of a row a sparsity leaves at 0.
inline std::int64_t pruned_before(double sparsity, std::int64_t columns) {
  return static_cast<std::int64_t>(sparsity * static_cast<double>(columns) + 0.5);
}

inline std::int64_t next_multiple(std::int64_t x, std::int64_t unit) { return (x / unit + 1) * unit; }

// Sweeps columns [from, to) of the block that starts at `begin`.
template <class T>
void sweep_columns(const Job<T>& job, Panel<T>& p, std::int64_t panel, std::int64_t begin, std::int64_t from,
                   std::int64_t to) {
  const bool dynamic = job.max_code > 0 && job.group_size > 0;
  const bool stale = job.stale_block > 0;
  const bool mask_here = job.sparsity > 0 && job.per_row;
  const std::int64_t width =
      job.out_of == 0 ? kChunk : (job.out_of < kChunk ? kChunk / job.out_of * job.out_of : job.out_of);
  for (std::int64_t a = from; a < to;) {
    std::int64_t b = smaller(a + width, to);
    if (dynamic) {
      const std::int64_t unit = stale ? job.stale_block : job.group_size;
      if (a % unit == 0) find_group_grids(job, p, panel, begin, a, stale ? smaller(a + unit, job.n) : a + 1);
      b = smaller(b, next_multiple(a, unit));
    }
    if (mask_here) {
      const std::int64_t end = smaller(next_multiple(a, job.mask_block), job.n);
      if (a % job.mask_block == 0) {
        scores(job, p, begin, a, end);
        mask_rows(p.score + (a - begin) * kRows<T>, end - a,
                  pruned_before(job.sparsity, end) - pruned_before(job.sparsity, a), p.kept + (a - begin) * kRows<T>);
      }
      b = smaller(b, end);
    }
    load_chunk(job, p, begin, a, b);
    V<T> loss[kVectors<T>] = {};
    for (std::int64_t j = a; j < b; ++j) {
      if (job.out_of > 0 && j % job.out_of == 0) mask_pattern(job, p, begin, j, p.chunk + (j - a) * kRows<T>);
      std::int64_t slot = 0;
      if (dynamic) {
        slot = j / job.group_size - begin / job.group_size;
      } else if (job.max_code > 0 && job.group[j] != p.loaded_group) {
        p.loaded_group = job.group[j];
        load_grid(job, panel, p.loaded_group, p.scale, p.zero);
      }
      finish_column(job, p, begin, a, b, j, p.scale + slot * kRows<T>, p.zero + slot * kRows<T>, loss);
    }
    for (int v = 0; v < kVectors<T>; ++v)
      for (int lane = 0; lane < kLanes<T>; ++lane) p.loss[v * kLanes<T> + lane] += static_cast<double>(loss[v][lane]);
    a = b;
  }
}

// Writes what was found in the block [begin, end).
template <class T>
void end_block(const Job<T>& job, Panel<T>& p, std::int64_t panel, std::int64_t begin, std::int64_t end) {
  if (job.codes) store(job, panel, begin, end, p.code, job.codes);
  if (job.weights) store(job, panel, begin, end, p.value, job.weights);
  if (job.mask) store(job, panel, begin, end, p.kept, job.mask);
  if (end < job.n || !job.loss) return;
  for (std::int64_t i = 0; i < rows_of(job, panel); ++i) job.loss[panel * kRows<T> + i] = p.loss[i];
}

template <class T>
void run(const Job<T>& job, Panel<T>& p, std::int64_t panel, const std::int64_t* blocks, std::int64_t n_blocks) {
  for (std::int64_t k = 0; k < n_blocks; ++k) {
    begin_block(job, p, panel, blocks[k], blocks[k + 1]);
    sweep_columns(job, p, panel, blocks[k], blocks[k], blocks[k + 1]);
    end_block(job, p, panel, blocks[k], blocks[k + 1]);
  }
}

template <class T>
void fixed_grids(const Job<T>& job, Panel<T>& p, std::int64_t panel) {
  for (std::int64_t group = 0; group < job.groups; ++group) {
    const std::int64_t begin = group * job.group_size;
    const std::int64_t end = smaller(begin + job.group_size, job.n);
    load_weights(job, panel, begin, end, p.weight);
    find_grid(job, p.weight, end - begin, p.scale, p.zero);
    store_grid(job, panel, group, p.scale, p.zero);
  }
}

template <class T>
void grid_errors(const Job<T>& job, Panel<T>& p, std::int64_t panel, T low, T high, double* errors) {
  load_weights(job, panel, 0, job.n, p.weight);
  for (int step = 0; step < job.steps; ++step) {
    V<T> scale, zero;
    shrink_to_grid<T>(job, splat<T>(low), splat<T>(high), step, scale, zero);
    errors[step] = 0.0;
    for (int row = 0; row < kRows<T>; row += kLanes<T>) {
      V<T> sum{};
      add_error<T>(job, p.weight + row, 0, job.n, scale, zero, sum);
      for (int lane = 0; lane < kLanes<T> && row + lane < rows_of(job, panel); ++lane)
        errors[step] += static_cast<double>(sum[lane]);
    }
  }
}

template <class T>
void range_to_grid(const Job<T>& job, T low, T high, int step, T* scale, T* zero) {
  V<T> l = splat<T>(low), h = splat<T>(high), s, z;
  widen_range<T>(job, l, h);
  shrink_to_grid<T>(job, l, h, step, s, z);
  *scale = s[0];
  *zero = z[0];
}

}  // namespace

template <class T>
const PanelKernels<T>& panel_kernels() {
  static constexpr PanelKernels<T> kernels = {
      run<T>,       begin_block<T>, scores<T>,      sweep_columns<T>,
      end_block<T>, fixed_grids<T>, grid_errors<T>, range_to_grid<T>,
  };
  return kernels;
}
template const PanelKernels<float>& panel_kernels<float>();
template const PanelKernels<double>& panel_kernels<double>();

}  // namespace quadric::sweep::detail::QUADRIC_LEVEL
