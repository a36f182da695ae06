// Small dense linear algebra in batches.
#pragma once

#include <cstdint>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"
#include "quadric/view.hpp"

namespace quadric::linalg {

// `count` matrices of one shape.
template <class T>
struct BatchView {
  T* data = nullptr;
  std::int64_t count = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;  // elements from one matrix to the next
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 0;

  MatrixView<T> operator[](std::int64_t k) const { return {data + k * stride, rows, cols, row_stride, col_stride}; }
};

enum class Spd { cholesky, inverse, solve, logdet };

// For every symmetric positive definite A_k, with A_k = L_k L_k^T:
//   cholesky: out_k = L_k (zero above the diagonal)     inverse: out_k = A_k^-1
//   solve:    out_k = A_k^-1 b_k                        logdet:  nothing but
//   logdet[k] = log det A_k, in every case where logdet is not null.
//
//   A      count x n x n, n <= 256, any strides; only the lower triangles are read
//   b      count x n x k, any strides (solve alone)
//   out    count x n x n, or count x n x k for solve; contiguous
//   status count: -1, or the first pivot that is not positive and finite; out and logdet of that matrix are NaN
//
// 64 bytes' worth of matrices are handled side by side, one per SIMD lane, whatever their size: n^3/3 flops each for
// the factor, n^3 for the inverse, without a call or a branch that depends on the data. Backward stable:
// |L L^T - A| <= (n + 1) eps |L| |L^T| (Higham, Accuracy and Stability of Numerical Algorithms, theorem 10.3).
template <class T>
QUADRIC_API void spd(const Execution& exec, BatchView<const T> A, BatchView<const T> b, Spd what, T* out,
                     double* logdet, std::int32_t* status);

}  // namespace quadric::linalg
