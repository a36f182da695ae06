// Inverse-Hessian sweeps: quantize and prune a weight matrix column by column while the later columns absorb the error
// (GPTQ, SparseGPT and kin).
//
// Notation: W is m x n (out x in), H is n x n, `order` is the sweep order. In sweep coordinates H = R R^T with R upper
// triangular, D = W - Q is the error so far, and the columns follow
//
//   C_j = sum_{i<j} D_i R_ij,   t_j = W_j + C_j / R_jj,   Q_j = round(t_j),   D_j = W_j - Q_j,   e_j = C_j + D_j R_jj,
//
// which gives the same Q as GPTQ (arXiv:2210.17323) from one Cholesky factorization instead of three, and
// sum_j e_j^2 = tr(D H D^T) for every row.
#pragma once

#include <cstdint>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"
#include "quadric/status.hpp"
#include "quadric/view.hpp"

namespace quadric::sweep {

// H += X^T diag(weights) X on the upper triangle of H (i <= j); the lower triangle is not touched.
// Cost: tokens n^2 flops (BLAS SYRK), one read of X. Non-contiguous or weighted X is copied in slices.
template <class T>
QUADRIC_API void gram(const Execution& exec,
                      MatrixView<const T> X,  // tokens x n, any strides
                      const T* weights,       // tokens, each >= 0, or null for ones
                      MatrixView<T> H);       // n x n, contiguous rows

// max |H_ij - H_ji| / max |H_ij|: 0 for a symmetric matrix, NaN if an entry is NaN or infinite. One read of H.
template <class T>
QUADRIC_API double symmetry_defect(const Execution& exec, MatrixView<const T> H);  // n x n

// A_ji = H[order[n-1-j], order[n-1-i]]: H in reversed sweep order, where an ordinary lower Cholesky factor L (stored
// column by column) is the reversed R. A may be H itself when H has contiguous rows.
template <class T>
QUADRIC_API void gather(const Execution& exec,
                        MatrixView<const T> H,      // n x n, symmetric
                        const std::int64_t* order,  // n, a permutation
                        MatrixView<T> A);           // n x n, contiguous rows

// Factors what `gather` left in A, in place, with the diagonal replaced: n^3/3 flops in blocks of BLAS calls.
// On success the strict lower triangle becomes zero and `upper_factor(A)` is R. On failure A is as it was but for its
// diagonal, so that the call may be repeated with another one; Status.pivot is the sweep position of the first pivot
// that was not positive. The result does not depend on the number of threads.
template <class T>
QUADRIC_API Status cholesky(const Execution& exec,
                            MatrixView<T> A,          // n x n, contiguous rows
                            const double* diagonal);  // n, in sweep order, damping included

// R of H = R R^T as a view of what `cholesky` left in A: no copy.
template <class T>
MatrixView<const T> upper_factor(MatrixView<T> A) {
  T* last = A.data + (A.rows * A.cols > 0 ? A.rows * A.cols - 1 : 0);
  return {last, A.rows, A.cols, -1, -A.cols};
}

// What the sweep needs to know of H. One factor serves every matrix with the same inputs.
template <class T>
struct Factor {
  MatrixView<const T> R;                // n x n upper triangular, in sweep order; empty = identity, no loss
  const std::int64_t* order = nullptr;  // n: the original column at each sweep position
  const bool* dead = nullptr;           // n, original columns whose weights count as 0; may be null
};

enum class ScaleType { working, float16, bfloat16 };  // what the scales are rounded to before they are used

// codes 0..max_code stand for scale * (code - zero).
struct GridOptions {
  int max_code = 0;        // 2^bits - 1, 2 for ternary; 0 = no quantization
  bool symmetric = false;  // zero = (max_code + 1) / 2
  bool mse = false;        // shrink the range to the smallest sum |error|^norm, else minmax
  double norm = 2.0;       // the exponent of that search; the original GPTQ code has 2.4
  int steps = 80;          // candidates of that search: ranges of 1, 0.99, 0.98, ... of minmax
  ScaleType scale_type = ScaleType::working;
};

// The grids of fixed groups of `group_size` consecutive columns of W, from W as it is.
// Cost: one read of W; with `mse` up to `steps` powers per entry.
template <class T>
QUADRIC_API void grid(const Execution& exec,
                      MatrixView<const T> W,            // m x n, any strides
                      std::int64_t group_size,          // >= 1
                      bool per_tensor,                  // one grid for the whole matrix; group_size must be n
                      const GridOptions& options,       //
                      MatrixView<T> scales,             // m x ceil(n / group_size), contiguous rows
                      MatrixView<std::uint8_t> zeros);  // the same shape

struct SweepOptions {
  GridOptions grid;
  // Dynamic groups: group_size consecutive sweep positions share a grid, found from the weights that are current when
  // the sweep reaches the group. 0 = `scales` and `zeros` are given and `group` says which column of them to use.
  std::int64_t group_size = 0;
  const std::int32_t* group = nullptr;  // n, by sweep position; needed where group_size == 0 and max_code > 0
  // > 0: the original GPTQ's rule: groups that start in a block of this many columns take their grids from the weights
  // that are current at the start of the block.
  std::int64_t stale_block = 0;
  // Pruning: keep `keep` of every `out_of` columns (0, 0 = none), or zero the fraction `sparsity` in every
  // `mask_block` columns, over all rows at once or in each row. Scores are |current weight * R_jj|.
  std::int64_t keep = 0;
  std::int64_t out_of = 0;
  double sparsity = 0.0;
  std::int64_t mask_block = 128;
  bool per_row = false;
  bool feedback = true;  // false: t_j = W_j (round to nearest, magnitude pruning)
};

// Every array has the original column order; null = not wanted.
template <class T>
struct SweepOutput {
  MatrixView<std::uint8_t> codes;  // m x n, contiguous rows
  MatrixView<T> scales;            // m x groups, contiguous rows; input where group_size == 0
  MatrixView<std::uint8_t> zeros;  // m x groups, contiguous rows; input where group_size == 0
  MatrixView<T> weights;           // m x n, contiguous rows: Q
  MatrixView<bool> mask;           // m x n, contiguous rows: true = kept
  double* loss = nullptr;          // m: sum_j e_j^2
};

// The sweep itself. Cost: m n^2 flops, R read once for every 192 / sizeof(T) rows; in memory one tile of D per thread
// (for a threshold over all rows: D of all rows). A row's result depends on neither the other rows (but for that
// threshold), the number of threads nor the layout of W.
template <class T>
QUADRIC_API void sweep(const Execution& exec,
                       MatrixView<const T> W,    // m x n, any strides
                       const Factor<T>& factor,  //
                       const SweepOptions& options, const SweepOutput<T>& output);

}  // namespace quadric::sweep
