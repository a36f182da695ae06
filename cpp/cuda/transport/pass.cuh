// What the kernels of a pass do with a row; see pass.hpp.
#pragma once

#include "transport/pass.hpp"

namespace quadric::cuda::transport {

// Sums outside these bounds may have lost entries or be wrong: the row is done again relative to its largest entry, a
// column gets a log-sum-exp of its own.
template <class T>
inline constexpr double kTiny = sizeof(T) == 4 ? 1e-30 : 1e-290;
template <class T>
inline constexpr double kHuge = sizeof(T) == 4 ? 1e30 : 1e290;

// The largest log2 of a scaling, before the potentials are taken apart anew.
template <class T>
inline constexpr double kScalingLimit = sizeof(T) == 4 ? 16 : 200;

// Negated, so that NaN is outside.
template <class T>
__device__ __forceinline__ bool outside(double sum) {
  return !(sum > kTiny<T> && sum < kHuge<T>);
}

// C_ij of problem p in float64.
template <class T>
__device__ inline double entry(const Batch<T>& cost, std::int64_t p, std::int64_t i, std::int64_t j) {
  if (cost.kind == CostKind::stored)
    return static_cast<double>(cost.M[p * cost.M_problem + i * cost.M_row + j * cost.M_column]);
  const T* const x = cost.x + p * cost.x_problem + i * cost.x_row;
  const T* const y = cost.y + p * cost.y_problem + j * cost.y_row;
  double sum = 0;
  for (std::int64_t k = 0; k < cost.d; ++k) {
    const double u = static_cast<double>(x[k]), v = static_cast<double>(y[k]), difference = u - v;
    sum += cost.kind == CostKind::cosine      ? u * v
           : cost.kind == CostKind::cityblock ? fabs(difference)
                                              : difference * difference;
  }
  return cost.kind == CostKind::cosine ? 1 - sum : cost.kind == CostKind::euclidean ? sqrt(sum) : sum;
}

// What relax_row reads of a row; to be loaded early.
struct RowInputs {
  double mass = 1, log_mass = 0, F = 0, offset = 0;
};
template <class T>
__device__ __forceinline__ RowInputs load_row(const Pass<T>& pass, std::int64_t at) {
  return {pass.mass[at], pass.log_mass[at], pass.F[at], pass.row_offset != nullptr ? pass.row_offset[at] : 0.0};
}

// Remembers how heavy the rows of this pass are, if any is above the limit: columns whose sums are about the smallest
// number times that have lost entries.
template <class T>
__device__ __forceinline__ void note_weight(const Pass<T>& pass, std::int64_t p, double rest) {
  if (rest > kScalingLimit<T>) atomicMax(pass.heaviest + p, static_cast<int>(ceil(rest < 1000 ? rest : 1000)));
}

// Row i relaxed: its potential, what that has beyond the shift, and u_i = 2^rest.
struct RelaxedRow {
  double new_F = 0, rest = 0, u = 0;
};
template <class T>
__device__ __forceinline__ RelaxedRow relaxed_row(const Pass<T>& pass, const RowInputs& row, double omega, double sum,
                                                  T shift) {
  const double base = static_cast<double>(shift) + row.offset;
  const double marginal = log2(sum) + (row.F - base);
  RelaxedRow relaxed;
  relaxed.new_F = row.F + omega * (pass.theta * (row.F + (row.log_mass - marginal)) - row.F);
  relaxed.rest = relaxed.new_F - base;
  relaxed.u = exp2(relaxed.rest < 1000 ? relaxed.rest : 1000);
  return relaxed;
}
// Keeps F, shift, row_error and row_rest of a row of problem p, row `at` of all. A shift that is not finite is a row
// without entries.
template <class T>
__device__ __forceinline__ void keep_row(const Pass<T>& pass, std::int64_t p, std::int64_t at, const RowInputs& row,
                                         const RelaxedRow& relaxed, double sum, T shift, bool rebase) {
  double target = row.mass;
  if (pass.theta != 1) {
    const double exponent = relaxed.new_F * ((pass.theta - 1) / pass.theta);
    target *= exp2(exponent < 1000 ? exponent : 1000);
  }
  pass.F[at] = relaxed.new_F;
  const double error = fabs(sum * relaxed.u - target) + relaxed.new_F * 0.0;  // not finite if new_F is not
  pass.row_error[at] = isfinite(shift) ? error : static_cast<double>(INFINITY);
  pass.row_rest[at] = rebase ? 0 : relaxed.rest;
  note_weight(pass, p, relaxed.rest);
  pass.shift[at] = rebase ? shift + static_cast<T>(rint(relaxed.rest)) : shift;
}

// Both, for row i, which has the sum `sum` for this shift; u_i. By one thread.
template <class T>
__device__ __forceinline__ T relax_row(const Pass<T>& pass, std::int64_t p, std::int64_t i, double sum, T shift,
                                       bool rebase) {
  const std::int64_t at = p * pass.cost.n + i;
  const RowInputs row = load_row(pass, at);
  const RelaxedRow relaxed = relaxed_row(pass, row, pass.omega[p], sum, shift);
  keep_row(pass, p, at, row, relaxed, sum, shift, rebase);
  return static_cast<T>(relaxed.u);
}

// 2^(t + shift), shift a whole number; numbers below the smallest normal one are 0, NaN stays.
__device__ __forceinline__ float power(float t, float shift) {
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(t + shift));
  return e;
}
// The nearest whole number goes into the exponent; for the rest, within 1/2, a minimax polynomial with a relative error
// of 2.1e-16. 16 operations on float64.
__device__ __forceinline__ double power(double t, double shift) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 2^52: the sum's lowest bits are the nearest whole number
  const double moved = t + kMagic;
  const double r = t - (moved - kMagic);
  double q = 7.0372795305828038e-09;
  q = fma(q, r, 1.0208537904552164e-07);
  q = fma(q, r, 1.3215662831846104e-06);
  q = fma(q, r, 1.5252658116561384e-05);
  q = fma(q, r, 0.00015403529961135955);
  q = fma(q, r, 0.0013333558228561476);
  q = fma(q, r, 0.0096181291080345895);
  q = fma(q, r, 0.055504108664458832);
  q = fma(q, r, 0.24022650695908768);
  q = fma(q, r, 0.69314718055994973);
  q = fma(q, r, 1.0);
  const int exponent = __double2loint(moved) + __double2int_rn(shift);
  const double scale = __hiloint2double((exponent < 1024 ? exponent + 1023 : 2047) << 20, 0);
  return t < -1021.5 - shift ? 0.0 : q * scale;
}

}  // namespace quadric::cuda::transport
