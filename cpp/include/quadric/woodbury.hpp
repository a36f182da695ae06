// Inverse curvature that stays current: F = lambda I + G^T G / m for m gradients, the rows of G (m x d), and its
// inverse by the Woodbury identity, whole, in blocks, or as Kronecker factors.
//
// Two forms. With blocks of few weights (B <= 256) the blocks of F are factored themselves, eight at a time, one in
// each SIMD lane, always in float64. With long rows (m << d) everything happens in m x m matrices and in passes over G:
//
//   A = m lambda I + G G^T,   F^-1 x = (x - G^T A^-1 G x) / lambda,   F^-1 G^T w = m G^T A^-1 w,
//   diag F^-1 = (1 - colsumsq(C^-1 G)) / lambda with A = C C^T.
//
// The passes are here; the m x m algebra is any LAPACK's. Results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"
#include "quadric/storage.hpp"
#include "quadric/view.hpp"

namespace quadric::woodbury {

// ---- blocks of B consecutive weights -------------------------------------------------------------------------------

// Sums of X_b^T X_b, X_b the columns of block b: entry (i, j), j <= i, of block b at
// sums[((b / kLanes) * B (B + 1) / 2 + i (i + 1) / 2 + j) * kLanes + b % kLanes].
inline constexpr std::int64_t kLanes = 8;

// F of all blocks, from the sums or, as long as count <= B, from the gradients themselves, where the m x m dual is the
// smaller matrix (one of the two is given). Nothing is kept of a factorization: to repeat it in cache costs about as
// much as to read it back.
struct BlockSource {
  const double* sums = nullptr;  // ceil(n_blocks / kLanes) x B (B + 1) / 2 x kLanes
  StoredRows rows;               // count x d
  std::int64_t block_size = 0;   // B, 1 to 256; the last block may be short
  std::int64_t d = 0;
  std::int64_t count = 0;  // m
  double damping = 0;      // lambda > 0
};

// sums += X_b^T X_b for all blocks: rows d (B + 1) flops, one read of G. Float64 sums of exact products.
QUADRIC_API void block_gram(const Execution& exec,
                            const StoredRows& G,      // rows x d
                            std::int64_t block_size,  // B
                            double* sums);            // as in BlockSource

// out_q = (F^-1)_qq for every group q of consecutive weights; group = 1 is the diagonal, group = B the whole inverse.
// status[b] = -1, or the first pivot of block b's factor that is not positive and finite; its results are then NaN.
template <class T>
QUADRIC_API void block_inverse(const Execution& exec, const BlockSource& F,
                               std::int64_t group,     // divides B
                               T* out,                 // ceil(d / group) x group x group, zero beyond d
                               std::int32_t* status);  // n_blocks

// out_q = w_q^T ((F^-1)_qq)^-1 w_q / 2: what it costs to set group q to zero (oBERT, arXiv:2203.07259, equation 6).
template <class T>
QUADRIC_API void block_scores(const Execution& exec, const BlockSource& F,
                              const T* w,             // d
                              std::int64_t group,     // divides B
                              T* out,                 // ceil(d / group)
                              std::int32_t* status);  // n_blocks

// out = F^-1 v for every row v of V.
template <class T>
QUADRIC_API void block_solve(const Execution& exec, const BlockSource& F,
                             MatrixView<const T> V,  // k x d, contiguous rows
                             MatrixView<T> out,      // k x d, contiguous rows; may be V
                             std::int32_t* status);  // n_blocks

// Sets the weights outside the mask to zero and moves the others of the block to where the loss of the quadratic model
// is smallest: dw_S = F_SS^-1 F_SP w_P, the joint step of optimal brain surgeon. Only F_SS is factored, no inverse.
template <class T>
QUADRIC_API void block_prune(const Execution& exec, const BlockSource& F,
                             const T* w,             // d
                             const bool* mask,       // d, true = kept
                             T* out,                 // d, may be w
                             double* loss,           // n_blocks: dw^T F dw / 2
                             std::int32_t* status);  // n_blocks

// ---- long rows -----------------------------------------------------------------------------------------------------
// Blocks of consecutive columns here too, of any size; block_size = d makes one. T is double if and only if G is stored
// as float64.

// K_b = G_b G_b^T, both triangles: m^2 d flops. Products in T, or in double where `exact`; slabs of columns are summed
// in float64.
QUADRIC_API void gram(const Execution& exec,
                      const StoredRows& G,  // m x d
                      std::int64_t block_size, bool exact,
                      double* K);  // n_blocks x m x m

// out_b = G_b X_b^T: one read of G. Slabs of columns are summed in float64.
template <class T>
QUADRIC_API void dots(const Execution& exec,
                      const StoredRows& G,    // m x d
                      MatrixView<const T> X,  // k x d, contiguous rows
                      std::int64_t block_size,
                      double* out);  // n_blocks x m x k

// out_b = scale X_b + C_b G_b: one read of G.
template <class T>
QUADRIC_API void combine(const Execution& exec,
                         const StoredRows& G,  // m x d
                         const double* C,      // n_blocks x k x m
                         const T* X,           // k x d or null for zero
                         double scale, std::int64_t block_size,
                         MatrixView<T> out);  // k x d, contiguous; may be X

// out = column sums of squares of L_b^-1 [G; E]_b: (m + e)^2 d flops in double, one read of G; L^-1 G is never stored.
QUADRIC_API void column_norms(const Execution& exec,
                              const StoredRows& G,  // m x d
                              const StoredRows& E,  // e x d, e may be 0
                              std::int64_t block_size,
                              const double* L,  // n_blocks x (m + e) x (m + e), lower triangles
                              double* out);     // d

// Rounds g into a row of any storage type. Returns -1, or the index of the first entry that is not finite (there);
// nothing is written then.
template <class T>
QUADRIC_API std::int64_t store(const Execution& exec,
                               const T* g,  // d
                               Storage storage,
                               void* row,   // d of `storage`
                               T* rounded,  // d or null: the row as T
                               std::int64_t d);

// ---- Kronecker factors ---------------------------------------------------------------------------------------------

// Y_i = V_i J_i for `count` symmetric factors of any sizes: one read of each.
template <class T>
QUADRIC_API void symmetric_product(const Execution& exec, std::int64_t count,
                                   const MatrixView<const T>* J,  // n_i x n_i, contiguous
                                   const MatrixView<const T>* V,  // k_i x n_i, contiguous rows
                                   const MatrixView<T>* Y);       // k_i x n_i, contiguous rows

// out_i = alpha_i J_i + delta_i I + sign_i Y_i^T Y_i, exactly symmetric if J_i is; norms[i] = max_r sum_c |out_i(r,
// c)|. One read and one write of each factor.
template <class T>
QUADRIC_API void symmetric_update(const Execution& exec, std::int64_t count,
                                  const MatrixView<const T>* J,  // n_i x n_i, contiguous
                                  const double* alpha, const double* delta, const double* sign,
                                  const MatrixView<const T>* Y,  // k_i x n_i, contiguous rows
                                  const MatrixView<T>* out,      // n_i x n_i, contiguous; may be J_i
                                  double* norms);

}  // namespace quadric::woodbury
