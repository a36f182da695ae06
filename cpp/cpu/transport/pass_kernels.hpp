// The inner loops of a pass over all pairs: rows of t_j = G_j - kappa C_ij, base-2 exponentials, sums over rows and
// columns. pass_kernels.cpp is compiled once per instruction set; only plain pointers and structs cross this border.
//
// Arrays over columns are padded to whole multiples of kPad entries (`width`), G with -infinity, whose power is zero;
// only the rows of a stored cost, which are the caller's, end after m entries.
#pragma once

#include <cstdint>

#include "quadric/simd.hpp"

namespace quadric::transport::detail {

inline constexpr std::int64_t kPad = 16;

// Internal linkage: files of different instruction sets must not share a copy.
static constexpr std::int64_t padded(std::int64_t m) { return (m + kPad - 1) / kPad * kPad; }

// What t is made of.
enum class Form {
  stored,     // G_j + factor * cost_j
  product,    // G_j + point . others_j
  taxicab,    // G_j + factor * sum |point - others_j|
  euclidean,  // G_j + factor * sqrt(sum (point - others_j)^2)
};

// One row of the cost.
template <class T>
struct Row {
  const T* cost = nullptr;    // m entries, for Form::stored
  const T* point = nullptr;   // d coordinates of this row's point
  const T* others = nullptr;  // d x width: coordinate k of the other points at others + k * stride
  std::int64_t stride = 0;
  std::int64_t d = 0;
};

// The potentials of one side, and what they are to become. All in bits: F = log2(e) f / reg.
struct Side {
  const double* log_mass;  // log2 of the masses
  const double* mass;
  const double* sums;  // sums of E weighted with the other side's scalings
  const double* base;  // E is for the potential base; the rest of F is in the scaling
  const double* F;
  double* new_F;
  double* scaling;  // 2^(F - base); becomes that of new_F
  std::int64_t n;   // padded, with sums = mass = scaling = 1 and zeros
};

struct Moved {
  double before = 0, after = 0;    // sum |marginal - target| with F and with new_F
  double lowest = 0, highest = 0;  // of the new log2 scaling
  double bound = 0;                // largest log2 marginal after the move, if nothing but this side's potential moves
};

template <class T>
struct PassKernels {
  // e(r, j) = 2^(t_j + shift_r) for `rows` rows that are `stride` apart in e, shift_r whole numbers; sums_r = sum_j
  // e(r, j) weight_j.
  void (*exponentials)(Form form, const Row<T>* row, std::int64_t rows, T factor, const T* shift, const T* G,
                       const T* weight, std::int64_t m, T* e, std::int64_t stride, double* sums);
  // t_j; returns the largest.
  T (*exponents)(Form form, const Row<T>& row, T factor, const T* G, std::int64_t m, T* t);
  // e_j = 2^(t_j + shift); returns sum_j e_j weight_j. e may be t.
  double (*powers)(const T* t, T shift, const T* weight, std::int64_t width, T* e);
  // The same, and entropy = sum_j e_j weight_j t_j over the nonzero e_j.
  double (*powers_and_entropy)(const T* t, T shift, const T* weight, std::int64_t width, T* e, double* entropy);
  // out(r, c) = sum_j e(r, j) values(c, j) for `rows` rows that are `stride` apart and k rows that are `width` apart.
  void (*products)(const T* e, std::int64_t stride, std::int64_t rows, const T* values, std::int64_t k,
                   std::int64_t width, double* out);
  // out_k = sum_j e_j weight_j d(distance)/d(point_k) for Form::taxicab and Form::euclidean.
  void (*directions)(Form form, const Row<T>& row, const T* e, const T* weight, std::int64_t width, double* out);
  // sums_j += sum_r weight_r e(r, j) for `rows` rows that are `stride` apart.
  void (*add_rows)(const T* e, std::int64_t stride, std::int64_t rows, const T* weight, std::int64_t width, T* sums);
  // The columns j with t_j + shift >= min(row_floor, floor_j), ascending; returns their number. Room for width + 1.
  std::int64_t (*select)(const T* t, T shift, T row_floor, const T* floor, std::int64_t width, std::int32_t* columns);
  // F <- F + omega (theta (F + log2(mass / marginal)) - F).
  void (*relax)(const Side& side, double omega, double theta, Moved& moved);
  // y_i = 2^x_i.
  void (*exp2)(const double* x, std::int64_t n, double* y);
};

// The kernels of the level in force.
template <class T>
const PassKernels<T>& pass_kernels();

#define QUADRIC_DECLARE_LEVEL(level)    \
  namespace level {                     \
  template <class T>                    \
  const PassKernels<T>& pass_kernels(); \
  }
QUADRIC_DECLARE_LEVEL(baseline)
QUADRIC_DECLARE_LEVEL(v3)
QUADRIC_DECLARE_LEVEL(v4)
#undef QUADRIC_DECLARE_LEVEL

}  // namespace quadric::transport::detail
