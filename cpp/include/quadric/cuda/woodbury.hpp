// The functions of quadric/woodbury.hpp on a GPU: the same names, arguments and results, everything on exec.stream.
// Pointers, those inside BlockSource and StoredRows too, are device pointers unless a comment says host; tables of
// views are host arrays of views with device pointers. No call waits for the device or allocates outside
// exec.allocate, so all may be captured in a graph; results are the same bits from run to run.
#pragma once

#include <cstdint>

#include "quadric/woodbury.hpp"

namespace quadric::cuda::woodbury {

using quadric::woodbury::BlockSource;
using quadric::woodbury::kLanes;

// ---- blocks of B consecutive weights -------------------------------------------------------------------------------

// sums += X_b^T X_b for all blocks, in the layout of BlockSource: one read of G, one read and one write of the sums.
// Float64 sums of exact products.
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

// out = column sums of squares of L_b^-1 [G; E]_b: (m + e)^2 d flops in double; L^-1 G is never stored.
QUADRIC_API void column_norms(const Execution& exec,
                              const StoredRows& G,  // m x d
                              const StoredRows& E,  // e x d, e may be 0
                              std::int64_t block_size,
                              const double* L,  // n_blocks x (m + e) x (m + e), lower triangles
                              double* out);     // d

// Rounds g into a row of any storage type. *first = -1, or the index of the first entry that is not finite (there);
// nothing is written to the row then.
template <class T>
QUADRIC_API void store(const Execution& exec,
                       const T* g,  // d
                       Storage storage,
                       void* row,   // d of `storage`
                       T* rounded,  // d or null: the row as T
                       std::int64_t d,
                       std::int64_t* first);  // one entry

// ---- Kronecker factors ---------------------------------------------------------------------------------------------

// Y_i = V_i J_i for `count` symmetric factors of any sizes: one read of each, or, of long ones with one vector, of the
// half on and below the diagonal; the other one is taken to be its mirror image.
template <class T>
QUADRIC_API void symmetric_product(const Execution& exec, std::int64_t count,
                                   const MatrixView<const T>* J,  // host; n_i x n_i, contiguous
                                   const MatrixView<const T>* V,  // host; k_i x n_i, contiguous rows
                                   const MatrixView<T>* Y);       // host; k_i x n_i, contiguous rows

// out_i = alpha_i J_i + delta_i I + sign_i Y_i^T Y_i, exactly symmetric if J_i is; norms[i] = max_r sum_c |out_i(r,
// c)|. One read, or half of one as above, and one write of each factor. The coefficients are read on the device, so
// they may come from kernels. `cleared`: norms holds zeros already, as inverse_steps leaves them, which saves a launch,
// and the last kernel in the stream before this call has not written J.
template <class T>
QUADRIC_API void symmetric_update(const Execution& exec, std::int64_t count,
                                  const MatrixView<const T>* J,  // host; n_i x n_i, contiguous
                                  const double* alpha,           // count
                                  const double* delta,           // count
                                  const double* sign,            // count
                                  const MatrixView<const T>* Y,  // host; k_i x n_i, contiguous rows
                                  const MatrixView<T>* out,      // host; n_i x n_i, contiguous; may be J_i
                                  double* norms,                 // count
                                  bool cleared = false);

// What follows has no function on the CPU: there Python does it between the kernels.

// A step J <- a J + b I + sign y y^T with y = z sqrt(weight / (base + slope v.z)), where z = J v, or (a J + b I) v if
// `blended`.
struct StepRule {
  double a = 1;  // not 1
  double b = 0;
  double sign = 1;
  bool blended = false;
  double weight = 1;
  double base = 1;
  double slope = 0;
};

// Y_i, alpha_i, delta_i and sign_i for which the k_i steps with the rows of V_i are J <- alpha J + delta I + sign Y^T
// Y, given U_i = V_i J_i: what symmetric_update takes. In float64. status[i] = 0, or what is wrong with J_i, and then
// Y_i = 0, alpha_i = 1 and delta_i = 0:
//   1  V J V^T is not finite
//   2  report_i = v^T J v and the pivot base + slope v.z of a step: one of them is not positive
//   3  report_i = r and entry (r, r) of the new J: it is not positive
//   4  the new diagonal has an entry beyond T
template <class T>
QUADRIC_API void inverse_steps(const Execution& exec, std::int64_t count,
                               const MatrixView<const T>* J,  // host; n_i x n_i, contiguous
                               const MatrixView<const T>* V,  // host; k_i x n_i, contiguous rows, 1 <= k_i <= 256
                               const MatrixView<const T>* U,  // host; k_i x n_i, contiguous rows
                               const MatrixView<T>* Y,        // host; k_i x n_i, contiguous rows
                               const StepRule& rule,
                               double* alpha,         // count
                               double* delta,         // count
                               double* sign,          // count
                               std::int32_t* status,  // count
                               double* report,        // count x 2
                               double* norms);        // count, becomes 0

// J_i <- share J_i + (1 - share) I where norms[i] > bound.
template <class T>
QUADRIC_API void blend(const Execution& exec, std::int64_t count,
                       const MatrixView<T>* J,  // host; n_i x n_i, contiguous
                       const double* norms,     // count
                       double bound, double share);

// out = s product^T, where s makes out as long as grad (Frobenius norm), or is 1: without `rescale`, or if the product
// is zero. norms = those of grad and of the product.
template <class T>
QUADRIC_API void scale_to_norm(const Execution& exec,
                               MatrixView<const T> product,  // n x m, contiguous
                               MatrixView<const T> grad,     // m x n, contiguous
                               bool rescale,
                               MatrixView<T> out,  // m x n, contiguous
                               double* norms);     // 2

// *block = -1, or the first block of weights that are not all zero and of which the mask keeps none.
template <class T>
QUADRIC_API void lost_block(const Execution& exec,
                            const T* w,        // d
                            const bool* mask,  // d, true = kept
                            std::int64_t d, std::int64_t block_size,
                            std::int64_t* block);  // 1

}  // namespace quadric::cuda::woodbury
