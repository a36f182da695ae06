// A pass of Sinkhorn's iteration, as its kernels for stored costs and for points share it with what comes between two
// passes (sinkhorn.cu).
//
// All is in bits: kappa = log2(e) / reg, F = kappa f. Potentials are taken apart as on the CPU (cpp/cpu/transport):
//
//   columns: G^total_j = base_j + log2(weight_j), base_j = G_j + column_offset_j, and G_j is a T exactly. G stays from
//            one pass to the next, so that the rounding errors of t_ij do, and what the potential gains is in weight.
//   rows:    F_i = base_i + log2(u_i), base_i = shift_i + row_offset_i, and shift_i is a whole number
//
//   t_ij = G_j + row_offset_i + column_offset_j - kappa C_ij,  e_ij = 2^(t_ij + shift_i)
//
// The offsets are 0 but for products of points: -kappa |x - y|^2 = 2 kappa x.y - kappa |x|^2 - kappa |y|^2, so that
// t_ij = G_j + 2 kappa x.y there. A pass does for each problem p that is active
//
//   s_i = sum_j e_ij weight_j; u_i from relax_row (pass.cuh), which writes all that is to be kept of a row
//   partial[slot][j] = sum of u_i e_ij over the rows of a slot, summed in a fixed order: not weighted
//
// When flags[p].rebase is set, or where a sum has left [kTiny, kHuge] or is NaN, shift_i = -rint(max_j t_ij) first.
#pragma once

#include <cstdint>

#include "device.hpp"
#include "quadric/cuda/transport.hpp"

namespace quadric::cuda::transport {

// Columns are padded to whole multiples of this, G with -infinity and weight with 0; rows of a stored cost are not.
inline constexpr std::int64_t kPad = 64;
inline constexpr std::int64_t padded(std::int64_t m) { return (m + kPad - 1) / kPad * kPad; }

// Costs of one kind and shape.
template <class T>
struct Batch {
  CostKind kind = CostKind::stored;
  std::int64_t problems = 0, n = 0, m = 0, d = 0;
  const T* M = nullptr;  // entry (p, i, j) at M + p M_problem + i M_row + j M_column
  std::int64_t M_problem = 0, M_row = 0, M_column = 1;
  const T* x = nullptr;  // coordinate k of point i at x + p x_problem + i x_row + k
  std::int64_t x_problem = 0, x_row = 0;
  const T* y = nullptr;
  std::int64_t y_problem = 0, y_row = 0;
};

struct Flags {
  std::int32_t active = 0;  // else every kernel leaves this problem alone
  std::int32_t rebase = 0;  // shifts are to be found anew
  std::int32_t slot = 0;    // 0 to 3: which G and weight hold
  std::int32_t moved = 0;   // g has changed
};

// What one launch of a pass kernel works on.
template <class T>
struct Pass {
  Batch<T> cost;
  double kappa = 0;
  double theta = 1;  // of the rows
  std::int64_t width = 0, slots = 0;
  bool backwards = false;                 // the order of the rows of a slot; of stored costs
  const Flags* flags = nullptr;           // problems
  const double* omega = nullptr;          // problems
  const double* mass = nullptr;           // problems x n
  const double* log_mass = nullptr;       // problems x n, base 2
  const double* row_offset = nullptr;     // problems x n, or null for zeros
  const double* column_offset = nullptr;  // problems x m, or null for zeros
  const T* G = nullptr;                   // problems x 4 x width, which flags[p].slot selects from
  const T* weight = nullptr;              // problems x 4 x width
  double* F = nullptr;                    // problems x n
  T* shift = nullptr;                     // problems x n
  double* row_error = nullptr;            // problems x n: |new sum - mass|
  double* row_rest = nullptr;             // problems x n: log2(u_i), 0 with rebase
  std::int32_t* heaviest = nullptr;       // problems: the largest log2(u_i), rounded up, of those above kScalingLimit
  T* partial = nullptr;                   // problems x slots x width, of which m columns are read
};

// ---- stored costs (stored.cu): contiguous rows (M_column = 1) ------------------------------------------------------

// By the shape alone, so that results do not depend on the device.
template <class T>
std::int64_t stored_slots(std::int64_t n, std::int64_t m);
template <class T>
void stored_pass(const Execution& exec, const Pass<T>& pass);

// ---- points (points.cu) --------------------------------------------------------------------------------------------

// What is made of the points once for all passes; what it points to lives as long as the Scratch.
struct PointPlan {
  std::int64_t slots = 1;                 // by the shape alone
  const double* row_offset = nullptr;     // problems x n, or null
  const double* column_offset = nullptr;  // problems x m, or null
  void* work = nullptr;                   // as points.cu likes; host or device memory
};
template <class T>
PointPlan plan_points(const Execution& exec, Scratch& scratch, const Batch<T>& cost, double kappa);
template <class T>
void points_pass(const Execution& exec, const PointPlan& plan, const Pass<T>& pass);

}  // namespace quadric::cuda::transport
