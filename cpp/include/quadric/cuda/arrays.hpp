// What an array library does, on the device, for callers that have none: copies between types and strides, constants,
// a look for NaN, and products of matrices. Everything is deterministic and runs on the stream of `Execution`.
#pragma once

#include <cstdint>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"
#include "quadric/view.hpp"

namespace quadric::cuda {

enum class Type { boolean, uint8, int32, int64, float16, bfloat16, float32, float64 };

// Entries of any type; two axes, any strides, counted in entries.
struct Entries {
  void* data = nullptr;
  Type type = Type::float32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 0;
};

// to = from, converted: between floating-point types, from integers to wider or narrower ones and to floating-point.
QUADRIC_API void copy(const Execution& exec, const Entries& from, const Entries& to);

QUADRIC_API void fill(const Execution& exec, const Entries& to, double value);

// *index = i * cols + j of the first entry, row by row, that is NaN or infinite; -1 if there is none. One read.
QUADRIC_API void first_not_finite(const Execution& exec, const Entries& x, std::int64_t* index);

// *index as above, of the first entry that is NaN or below `bound`.
template <class T>
QUADRIC_API void first_below(const Execution& exec, MatrixView<const T> x, double bound, std::int64_t* index);

// *index as above, of the first entry that is not equal to the one of `b`, which has the shape and type of `a`.
QUADRIC_API void first_difference(const Execution& exec, const Entries& a, const Entries& b, std::int64_t* index);

// x_ij /= by_ij.
template <class T>
QUADRIC_API void divide(const Execution& exec, MatrixView<const T> by, MatrixView<T> x);

// x_k = 0 where mask_k == value.
template <class T>
QUADRIC_API void clear_where(const Execution& exec, const bool* mask, bool value, T* x, std::int64_t size);

// X becomes NaN if *status is not -1: what a factorization has left of a matrix that has no factor.
QUADRIC_API void spoil(const Execution& exec, const std::int32_t* status, MatrixView<double> X);

// Contiguous bytes from the host, which may use its memory again at once. Up to 16 KB go as arguments of kernels, so
// that they may be captured in a graph.
QUADRIC_API void upload(const Execution& exec, const void* host, std::int64_t bytes, void* device);

// out = scale * the symmetric matrix whose upper triangle is that of A. One read of a triangle, one write.
template <class T>
QUADRIC_API void symmetrize(const Execution& exec,
                            MatrixView<const T> A,  // n x n, contiguous rows
                            double scale,           //
                            MatrixView<T> out);     // n x n, contiguous rows; may be A

// to_ij = from[i, index[j]].
template <class T>
QUADRIC_API void take_columns(const Execution& exec, MatrixView<const T> from, const std::int64_t* index,
                              MatrixView<T> to);

// to[i, index[j]] += scale * from_ij; `index` holds no number twice, and null counts the columns.
template <class T>
QUADRIC_API void add_to_columns(const Execution& exec, MatrixView<const T> from, const std::int64_t* index,
                                double scale, MatrixView<T> to);

// out_k = a[index_k].
template <class T>
QUADRIC_API void take_entries(const Execution& exec, const T* a, const std::int64_t* index, std::int64_t count, T* out);

// out_ij = a[rows_i, columns_j].
template <class T>
QUADRIC_API void select(const Execution& exec, MatrixView<const T> a, const std::int64_t* rows,
                        const std::int64_t* columns, MatrixView<T> out);

// out_ij = a_ij - row_j, in double and then rounded. out may be a.
template <class T>
QUADRIC_API void subtract_row(const Execution& exec, MatrixView<const T> a, const double* row, MatrixView<T> out);

// *out = max |a_k|, NaN if there is one, 0 of nothing.
template <class T>
QUADRIC_API void largest(const Execution& exec, const T* a, std::int64_t size, double* out);

// out_j = sum_i a_ij in double.
template <class T>
QUADRIC_API void column_sums(const Execution& exec, MatrixView<const T> a, double* out);

// X_ij *= weights[i].
template <class T>
QUADRIC_API void scale_rows(const Execution& exec, const T* weights, MatrixView<T> X);

// X_ij = 0 for all j in `index`, and with `rows` for all i in it too.
template <class T>
QUADRIC_API void clear(const Execution& exec, const std::int64_t* index, std::int64_t count, bool rows,
                       MatrixView<T> X);

// out_ij = scales[i, group[j]] * (codes_ij - zeros[i, group[j]]).
template <class T>
QUADRIC_API void dequantize(const Execution& exec,
                            MatrixView<const std::uint8_t> codes,  // m x n, contiguous rows, as all that follow
                            MatrixView<const T> scales,            // m x groups
                            MatrixView<const std::uint8_t> zeros,  // m x groups
                            const std::int32_t* group,             // n
                            MatrixView<T> out);                    // m x n

// C = alpha A B + beta C: cuBLAS, in the type of the entries throughout (no TF32). The entries of A and B are
// contiguous along a row or along a column, those of C along rows.
template <class T>
QUADRIC_API void gemm(const Execution& exec, double alpha, MatrixView<const T> A, MatrixView<const T> B, double beta,
                      MatrixView<T> C);

// X <- (L L^T)^-1 X for the columns of X: X is n x m and L is n x n lower triangular, both contiguous along columns.
template <class T>
QUADRIC_API void cho_solve_columns(const Execution& exec, MatrixView<const T> L, MatrixView<T> X);

}  // namespace quadric::cuda
