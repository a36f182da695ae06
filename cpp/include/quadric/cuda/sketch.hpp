// The functions of quadric/sketch.hpp on a GPU: the same names and meaning, the same signs and indices for the same
// seed, everything on exec.stream. Pointers, those inside SparseRows and Projections too, are device pointers. No call
// waits for the device or allocates outside exec.allocate, so all may be captured in a graph.
//
// Results are the same bits from run to run and on every device. Rows are cut into parts that are added up one after
// the other, so pieces of A in several calls give the result of one call up to rounding.
//
// A may be float16 or bfloat16 where it is a StoredMatrix; products and sums are float32 then, and so is the result.
#pragma once

#include <cstdint>
#include <type_traits>

#include "quadric/sketch.hpp"
#include "quadric/storage.hpp"

namespace quadric::cuda::sketch {

using quadric::sketch::Cube;
using quadric::sketch::Draw;
using quadric::sketch::Entries;
using quadric::sketch::kDenseBlock;
using quadric::sketch::Place;
using quadric::sketch::Projections;
using quadric::sketch::SparseRows;

// A matrix of any storage type that somebody else owns, any strides. Its views of float and double pass for it.
struct StoredMatrix {
  const void* data = nullptr;
  Storage storage = Storage::float32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  // in elements
  std::int64_t col_stride = 0;

  StoredMatrix() = default;
  StoredMatrix(const void* data_, Storage storage_, std::int64_t rows_, std::int64_t cols_, std::int64_t row_stride_,
               std::int64_t col_stride_)
      : data(data_), storage(storage_), rows(rows_), cols(cols_), row_stride(row_stride_), col_stride(col_stride_) {}
  template <class T>
  StoredMatrix(const MatrixView<T>& A)  // NOLINT(google-explicit-constructor)
      : StoredMatrix(A.data, sizeof(T) == 8 ? Storage::float64 : Storage::float32, A.rows, A.cols, A.row_stride,
                     A.col_stride) {
    static_assert(std::is_floating_point_v<std::remove_const_t<T>>);
  }
  bool empty() const { return rows == 0 || cols == 0; }
};

// outer x N x inner of any storage type.
struct StoredCube {
  void* data = nullptr;
  Storage storage = Storage::float32;
  std::int64_t outer = 0, rows = 0, inner = 0;
  std::int64_t outer_stride = 0, row_stride = 0, inner_stride = 1;  // in elements

  StoredCube() = default;
  StoredCube(void* data_, Storage storage_, std::int64_t outer_, std::int64_t rows_, std::int64_t inner_,
             std::int64_t outer_stride_, std::int64_t row_stride_, std::int64_t inner_stride_)
      : data(data_),
        storage(storage_),
        outer(outer_),
        rows(rows_),
        inner(inner_),
        outer_stride(outer_stride_),
        row_stride(row_stride_),
        inner_stride(inner_stride_) {}
  template <class T>
  StoredCube(const Cube<T>& X)  // NOLINT(google-explicit-constructor)
      : StoredCube(X.data, sizeof(T) == 8 ? Storage::float64 : Storage::float32, X.outer, X.rows, X.inner,
                   X.outer_stride, X.row_stride, X.inner_stride) {}
};

// Below, T is double if and only if A is stored as float64.

// ---- sparse signs --------------------------------------------------------------------------------------------------

// out += S A: n d nnz additions and as many reads of shared memory; one read of A, of each 128 bytes of a row
// ceil(m / 1024) times from the second-level cache.
template <class T>
QUADRIC_API void sparse_sign(const Execution& exec, const StoredMatrix& A, Place place, std::int64_t nnz,
                             MatrixView<T> out);  // m x d, contiguous

// out = S^T B, B m x d: n d nnz additions, one write of out.
template <class T>
QUADRIC_API void sparse_sign_rows(const Execution& exec, MatrixView<const T> B, Place place, std::int64_t nnz,
                                  MatrixView<T> out);  // n x d, contiguous

// out += S A for sparse A: nnz additions and as many reads of each of its entries. Columns of d and more are left out.
template <class T, class Index>
QUADRIC_API void sparse_sign_csr(const Execution& exec, const SparseRows<T, Index>& A, Place place, std::int64_t nnz,
                                 MatrixView<T> out);  // m x d, contiguous

// ---- dense matrices ------------------------------------------------------------------------------------------------

// out += S A: 2 m n d flops by cuBLAS, m n entries of S, a slab of bounded size at a time.
template <class T>
QUADRIC_API void dense(const Execution& exec, const StoredMatrix& A, Place place, Entries entries,
                       MatrixView<T> out);  // m x d, contiguous

// out = S[row : row + r, first : first + c] for an S of m rows.
template <class T>
QUADRIC_API void dense_entries(const Execution& exec, std::int64_t row, Place place, std::int64_t m, Entries entries,
                               MatrixView<T> out);  // r x c, contiguous

// ---- Hadamard transforms -------------------------------------------------------------------------------------------

// out_s += ((H_N D) A)_samples[s] in one read of A for m <= 2048. Only that k divides place.first matters: the length
// of the short transforms is chosen here. Samples must not be negative; it is not checked.
template <class T>
QUADRIC_API void srht(const Execution& exec, const StoredMatrix& A, Place place,
                      std::int64_t k,               // a power of two
                      const std::int64_t* samples,  // m rows of H_N
                      MatrixView<T> out);           // m x d, contiguous

// X <- (I x H_N x I) X in natural order, unscaled, N = rows a power of two. Sums of 16-bit types are float32.
QUADRIC_API void fwht(const Execution& exec, const StoredCube& X);

// ---- passes over A -------------------------------------------------------------------------------------------------

// R = B - A X and G = A^T R in one read of A; without B, R = A X. norms_c = ||R_c||^2. Sums over rows in double.
template <class T>
QUADRIC_API void residual_gradient(const Execution& exec, const StoredMatrix& A,
                                   MatrixView<const T> X,         // d x k
                                   const MatrixView<const T>* B,  // n x k, or null
                                   const MatrixView<T>* R,        // n x k, or null
                                   double* G,                     // d x k contiguous, or null
                                   double* norms);                // k

// G = (A M)^T (A M) for an upper triangular M: 2 n d^2 flops.
QUADRIC_API void preconditioned_gram(const Execution& exec, const StoredMatrix& A,
                                     const double* M,  // d x d, contiguous
                                     double* G);       // d x d, contiguous, both triangles

// G = A^T diag(w) A, w of any sign, null for ones: n d^2 flops.
QUADRIC_API void weighted_gram(const Execution& exec, const StoredMatrix& A,
                               const double* w,  // n, or null
                               double* G);       // d x d, contiguous, both triangles

// out_i = ||(A M)_i||^2, M d x k; M empty for the identity: 2 n d k flops.
QUADRIC_API void row_norms(const Execution& exec, const StoredMatrix& A, MatrixView<const double> M,
                           double* out,          // n
                           bool upper = false);  // whether M is an upper triangle: the rest of it counts as 0

// ---- projections onto rows -----------------------------------------------------------------------------------------

// X_c += relaxation (Y_ic - a_i X_c) / norms_i a_i for the rows i of `order`, one after the other: a block of threads
// for each right-hand side c. X becomes NaN if `order` holds what is not the number of a row.
template <class T>
QUADRIC_API void kaczmarz(const Execution& exec, MatrixView<const T> A, const Projections& projections,
                          MatrixView<double> X);  // k x d, contiguous
template <class T, class Index>
QUADRIC_API void kaczmarz_csr(const Execution& exec, const SparseRows<T, Index>& A, const Projections& projections,
                              MatrixView<double> X);

}  // namespace quadric::cuda::sketch
