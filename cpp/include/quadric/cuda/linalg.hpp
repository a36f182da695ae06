// Dense linear algebra on an Nvidia GPU, of moderate size. Pointers are memory of the current device; calls are
// launched on `exec.stream`, take temporary memory from `exec` and wait for nothing. The same call gives the same bits
// on every run.
#pragma once

#include <cstdint>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"
#include "quadric/linalg.hpp"
#include "quadric/view.hpp"

namespace quadric::cuda::linalg {

using quadric::linalg::BatchView;
using quadric::linalg::Spd;

// As quadric::linalg::spd: the Cholesky factor, the inverse, the solution or the log-determinant alone of every
// symmetric positive definite matrix of a batch. A warp for one to four matrices of up to 32 rows, a block of threads
// for a larger one. Backward stable: |L L^T - A| <= (n + 1) eps |L| |L^T|.
template <class T>
QUADRIC_API void spd(const Execution& exec,
                     BatchView<const T> A,   // count x n x n, n <= 256, any strides; only the lower triangles are read
                     BatchView<const T> b,   // count x n x k, any strides (solve alone)
                     Spd what,               //
                     T* out,                 // count x n x n, or count x n x k for solve; contiguous
                     double* logdet,         // count, or null
                     std::int32_t* status);  // count: -1, or the first pivot that is not positive and finite

// A + shift I = L L^T in place, for one matrix of any size: m^3/3 flops by cuSOLVER. *info = -1 and L has zeros above
// its diagonal, or *info is the first pivot that is not positive and finite and A holds nothing of use.
QUADRIC_API void cholesky(const Execution& exec,
                          double* A,                     // m x m, contiguous rows; only the lower triangle is read
                          std::int64_t m, double shift,  //
                          std::int32_t* info);           // 1

// B <- (L L^T)^-1 B: 2 m^2 k flops by cuBLAS.
QUADRIC_API void cho_solve(const Execution& exec,
                           const double* L,  // m x m lower, contiguous rows
                           std::int64_t m,   //
                           double* B,        // m x k, contiguous rows
                           std::int64_t k);

// ---- matrices of any strides ---------------------------------------------------------------------------------------
// Those that are contiguous neither along rows nor along columns are copied first.

// C = alpha A B + beta C: 2 n m k flops by cuBLAS. With beta = 0 C need not hold numbers.
template <class T>
QUADRIC_API void product(const Execution& exec, MatrixView<const T> A, MatrixView<const T> B, MatrixView<T> C,
                         double alpha, double beta);

// B <- R^-1 B for `left`, else B R^-1; R^T takes the place of R if `transposed`. d^2 k flops by cuBLAS.
template <class T>
QUADRIC_API void triangular_solve(const Execution& exec,
                                  MatrixView<const T> R,  // d x d; only the upper triangle is read
                                  MatrixView<T> B,        // d x k, or k x d
                                  bool left, bool transposed);

// out = R^-1, upper triangular, zeros below. It may not be R.
template <class T>
QUADRIC_API void triangular_inverse(const Execution& exec,
                                    MatrixView<const T> R,  // d x d; only the upper triangle is read
                                    MatrixView<T> out);     // d x d

// A = Q R by three rounds of Cholesky QR in float64, the first with a shift: 9 m d^2 flops. A becomes Q. Q R is A, and
// Q^T Q is I, to some multiples of the unit roundoff for conditions up to about 1e15 of A with columns of norm 1.
// *status = -1, or the first column whose pivot is not positive and finite; R is NaN then. Squares of entries must not
// overflow. `rough` leaves the third round out: Q R is A as before, and the condition of Q is below 2 for conditions up
// to about 1e13, which is what a preconditioner needs.
template <class T>
QUADRIC_API void qr(const Execution& exec,
                    MatrixView<T> A,       // m x d, m >= d
                    MatrixView<T> R,       // d x d, upper, positive on the diagonal, zeros below
                    std::int32_t* status,  // 1
                    bool rough = false);

// G = R^T R: d^3/3 flops by cuSOLVER. *status = -1, or the first pivot that is not positive and finite.
template <class T>
QUADRIC_API void symmetric_cholesky(const Execution& exec,
                                    MatrixView<const T> G,  // d x d; only the upper triangle is read
                                    MatrixView<T> R,        // d x d, upper, zeros below
                                    std::int32_t* status);  // 1

// out_j = ||A_j||, whatever the size of the entries. One read of A.
template <class T>
QUADRIC_API void column_norms(const Execution& exec, MatrixView<const T> A,
                              double* out);  // the columns of A

}  // namespace quadric::cuda::linalg
