// Sketches S A of a tall matrix A (n x d) by a random m x n matrix S that is never stored, and the passes over A that
// sketched regression needs. S is unscaled throughout: its entries are whole numbers or standard normals.
//
// The random numbers of column i of S follow from (seed, i) alone (quadric/random.hpp), so that A may come in pieces:
// `first` is the number of its first row. What is added up is added in the order of the rows; results do not depend on
// the number of threads, and pieces one after the other give the bits of one call.
//
// A read of A is its n d entries from memory, once; rows that are not contiguous are copied, a few at a time.
#pragma once

#include <cstdint>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"
#include "quadric/view.hpp"

namespace quadric::sketch {

// Streams of random words.
enum class Draw : std::uint32_t { sparse_sign = 0, sign = 1, dense = 4 };

// Where A stands within the whole, and which S meets it.
struct Place {
  std::uint64_t seed = 0;
  std::int64_t first = 0;
};

// ---- sparse signs --------------------------------------------------------------------------------------------------
// Column i of S has one +-1 in each of nnz blocks of m / nnz rows: word w, number i nnz + k of its stream, puts it into
// row k m / nnz + (w div 2) (m / nnz) div 2^31, with the sign (-1)^w. nnz = 1 is CountSketch (Clarkson and Woodruff,
// STOC 2013), more are the stacked sketches of Nelson and Nguyen (FOCS 2013) and Kane and Nelson (J. ACM 2014).

// out += S A: n d nnz additions, n nnz words, one read of A.
template <class T>
QUADRIC_API void sparse_sign(const Execution& exec, MatrixView<const T> A, Place place, std::int64_t nnz,
                             MatrixView<T> out);  // m x d, contiguous

// out = S^T B, B m x d: n d nnz additions, n nnz words, one write of out; B stays in cache if it fits.
template <class T>
QUADRIC_API void sparse_sign_rows(const Execution& exec, MatrixView<const T> B, Place place, std::int64_t nnz,
                                  MatrixView<T> out);  // n x d, contiguous

// Rows of compressed storage.
template <class T, class Index>
struct SparseRows {
  std::int64_t rows = 0;
  const Index* starts = nullptr;   // rows + 1
  const Index* columns = nullptr;  // each below d
  const T* values = nullptr;
};

// out += S A for sparse A: nnz additions for each of its entries, n nnz words, one read of A.
template <class T, class Index>
QUADRIC_API void sparse_sign_csr(const Execution& exec, const SparseRows<T, Index>& A, Place place, std::int64_t nnz,
                                 MatrixView<T> out);  // m x d, contiguous

// ---- dense matrices ------------------------------------------------------------------------------------------------

enum class Entries {
  gaussian = 0,    // by Box and Muller; four words make rows 4 q to 4 q + 3 of a column
  rademacher = 1,  // a bit each; 128 rows of a column share a block of words
};
inline constexpr std::int64_t kDenseBlock = 256;  // rows of A that are multiplied at a time

// out += S A: 2 m n d flops, m n entries of S, one read of A if 16 kDenseBlock rows of it fit the caches. S is drawn
// there and never stored (Martinsson and Tropp, Acta Numerica 2020, section 8; for signs Achlioptas, JCSS 2003).
// place.first is a multiple of kDenseBlock, and so is n unless the rows are the last ones.
template <class T>
QUADRIC_API void dense(const Execution& exec, MatrixView<const T> A, Place place, Entries entries,
                       MatrixView<T> out);  // m x d, contiguous

// out = S[row : row + r, first : first + c] for an S of m rows: r c entries, one write.
template <class T>
QUADRIC_API void dense_entries(const Execution& exec, std::int64_t row, Place place, std::int64_t m, Entries entries,
                               MatrixView<T> out);  // r x c, contiguous

// ---- Hadamard transforms -------------------------------------------------------------------------------------------

// out_s += ((H_N D) A)_samples[s] with D = diag(+-1), in one read of A: with rows of A in blocks of k,
// (H_N x)[i k + j] = sum_b (-1)^popcount(i & b) (H_k x_b)[j]. n d (log2 k + m / k) additions. place.first is a multiple
// of k; a last block that is not full is completed with zeros. Ailon and Chazelle, SICOMP 2009; Tropp, Adv. Adapt.
// Data Anal. 2011.
template <class T>
QUADRIC_API void srht(const Execution& exec, MatrixView<const T> A, Place place,
                      std::int64_t k,               // a power of two
                      const std::int64_t* samples,  // m rows of H_N
                      MatrixView<T> out);           // m x d, contiguous

// X <- (I x H_N x I) X in natural order, unscaled, N = rows a power of two: log2 N additions an entry, and X is read
// and written once for each 11 of them.
template <class T>
struct Cube {  // outer x N x inner
  T* data = nullptr;
  std::int64_t outer = 0, rows = 0, inner = 0;
  std::int64_t outer_stride = 0, row_stride = 0, inner_stride = 1;
};
template <class T>
QUADRIC_API void fwht(const Execution& exec, const Cube<T>& X);

// ---- passes over A -------------------------------------------------------------------------------------------------

// R = B - A X and G = A^T R in one read of A and 4 n d k flops, 2 n d k without G; without B, R = A X.
// norms_c = ||R_c||^2. Sums over rows in double. What the solvers of Epperly, Meier and Nakatsukasa (arXiv:2406.03468)
// repeat.
template <class T>
QUADRIC_API void residual_gradient(const Execution& exec, MatrixView<const T> A,
                                   MatrixView<const T> X,         // d x k
                                   const MatrixView<const T>* B,  // n x k, or null
                                   const MatrixView<T>* R,        // n x k, or null
                                   double* G,                     // d x k contiguous, or null
                                   double* norms);                // k

// G = (A M)^T (A M) for an upper triangular M: 2 n d^2 flops, one read of A. Here and below products are made in T for
// a few hundred rows at a time, and their sums in double.
template <class T>
QUADRIC_API void preconditioned_gram(const Execution& exec, MatrixView<const T> A,
                                     const double* M,  // d x d, contiguous
                                     double* G);       // d x d, contiguous, both triangles

// G = A^T diag(w) A, w of any sign, null for ones: n d^2 flops, one read of A. Lewis weights come from such matrices
// (Cohen and Peng, STOC 2015).
template <class T>
QUADRIC_API void weighted_gram(const Execution& exec, MatrixView<const T> A,
                               const double* w,  // n, or null
                               double* G);       // d x d, contiguous, both triangles

// out_i = ||(A M)_i||^2, M d x k; M empty for the identity: 2 n d k flops, one read of A. For M = R^-1 of a QR
// factorization the leverage scores; approximate ones for a random M of few columns (Drineas, Magdon-Ismail, Mahoney
// and Woodruff, JMLR 2012).
template <class T>
QUADRIC_API void row_norms(const Execution& exec, MatrixView<const T> A, MatrixView<const double> M,
                           double* out);  // n

// ---- projections onto rows -----------------------------------------------------------------------------------------
// Kaczmarz's method: X_c += relaxation (Y_ic - a_i X_c) / norms_i a_i for the rows i of `order`, one after the other,
// and each right-hand side c: 4 d k flops and one read of a row a step, of a sparse row its entries in place of d. In
// one thread, because each step needs the one before. Kaczmarz 1937; in random order Strohmer and Vershynin (J. Fourier
// Anal. Appl. 2009).

struct Projections {
  const double* Y = nullptr;      // n x k
  const double* norms = nullptr;  // n: ||a_i||^2 > 0
  const std::int64_t* order = nullptr;
  std::int64_t steps = 0;
  double relaxation = 1;
};
template <class T>
QUADRIC_API void kaczmarz(MatrixView<const T> A, const Projections& projections,
                          MatrixView<double> X);  // k x d, contiguous
template <class T, class Index>
QUADRIC_API void kaczmarz_csr(const SparseRows<T, Index>& A, const Projections& projections, MatrixView<double> X);

}  // namespace quadric::sketch
