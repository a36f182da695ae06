// Products of large matrices by cuBLAS, in the type of their entries throughout, with pointers of either type; and sums
// of many Gram matrices. Matrices are column-major here, as cuBLAS has them: contiguous rows are columns.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device.hpp"

namespace quadric::cuda::linalg {

// C = alpha op(A) op(B) + beta C, m x n, with k terms; `count` of them, each at its stride after the one before.
template <class T>
struct Factor {
  cublasOperation_t op;
  const T* data;
  std::int64_t ld, stride = 0;
};

template <class T>
void multiply(cublasHandle_t handle, std::int64_t m, std::int64_t n, std::int64_t k, T alpha, const Factor<T>& A,
              const Factor<T>& B, T beta, T* C, std::int64_t ldc, std::int64_t stride = 0, std::int64_t count = 1) {
  if constexpr (std::is_same_v<T, float>) {
    if (count == 1)
      QUADRIC_CUDA(cublasSgemm_64(handle, A.op, B.op, m, n, k, &alpha, A.data, A.ld, B.data, B.ld, &beta, C, ldc));
    else
      QUADRIC_CUDA(cublasSgemmStridedBatched_64(handle, A.op, B.op, m, n, k, &alpha, A.data, A.ld, A.stride, B.data,
                                                B.ld, B.stride, &beta, C, ldc, stride, count));
  } else {
    if (count == 1)
      QUADRIC_CUDA(cublasDgemm_64(handle, A.op, B.op, m, n, k, &alpha, A.data, A.ld, B.data, B.ld, &beta, C, ldc));
    else
      QUADRIC_CUDA(cublasDgemmStridedBatched_64(handle, A.op, B.op, m, n, k, &alpha, A.data, A.ld, A.stride, B.data,
                                                B.ld, B.stride, &beta, C, ldc, stride, count));
  }
}

// Columns of a triangle that are multiplied together: of (b + 1) / 2 b of the products a full matrix would need.
inline std::int64_t block_columns(std::int64_t d) { return d <= 512 ? 128 : 256; }

// G += X^T Y, d x d, of which the upper triangle is asked for: the rows of X and Y come in any number of pieces. Rows
// are cut into chunks whose products are made in T, side by side; they are added up one after the other, in double. How
// they are cut follows from the numbers of rows and columns alone.
template <class T>
class GramSum {
 public:
  GramSum(const Execution& exec, Scratch& scratch, cublasHandle_t handle, std::int64_t d, double* G);  // G = 0

  void clear();  // G = 0

  // Rows that are contiguous, `ld` apart.
  void add(const T* X, const T* Y, std::int64_t ld, std::int64_t rows);

  // Writes both triangles.
  void finish();

 private:
  void add_chunks(const T* X, const T* Y, std::int64_t ld, std::int64_t chunk, std::int64_t count, std::int64_t rest);

  const Execution& exec_;
  Scratch& scratch_;
  cublasHandle_t handle_;
  std::int64_t d_;
  double* G_;
  std::int64_t most_ = 1;  // chunks at a time
  T* parts_ = nullptr;     // `room_` x d x d
  std::int64_t room_ = 0;
};

// sum[i] += parts[0][i] + parts[1][i] + ..., `size` numbers each.
template <class T>
void add_parts(const Execution& exec, const T* parts, std::int64_t count, std::int64_t size, double* sum);

}  // namespace quadric::cuda::linalg
