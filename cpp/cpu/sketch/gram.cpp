#include <algorithm>
#include <cmath>
#include <vector>

#include "quadric/blas.hpp"
#include "quadric/sketch.hpp"
#include "require.hpp"
#include "sketch/slabs.hpp"
#include "sketch/tiles.hpp"

namespace quadric::sketch {
namespace {

using namespace detail;

constexpr std::int64_t kBlock = 512;  // rows of A that are multiplied at a time

// Y = X M for rows of X that are `stride` apart, M d x k with contiguous rows. Contiguous rows are columns to BLAS.
void multiply(const double* X, std::int64_t stride, std::int64_t rows, const double* M, std::int64_t d, std::int64_t k,
              double* Y) {
  char plain = 'N';
  double one = 1, zero = 0;
  int columns = static_cast<int>(k), count = static_cast<int>(rows), depth = static_cast<int>(d);
  int ldx = static_cast<int>(stride);
  blas_routines<double>().gemm(&plain, &plain, &columns, &count, &depth, &one, const_cast<double*>(M), &columns,
                               const_cast<double*>(X), &ldx, &zero, Y, &columns);
}

// Y = X M for an upper triangular M, half the work.
void multiply_upper(const double* X, std::int64_t stride, std::int64_t rows, const double* M, std::int64_t d,
                    double* Y) {
  if (X != Y)
    for (std::int64_t i = 0; i < rows; ++i) std::copy_n(X + i * stride, d, Y + i * d);
  char left = 'L', lower = 'L', plain = 'N';
  double one = 1;
  int columns = static_cast<int>(d), count = static_cast<int>(rows);
  blas_routines<double>().trmm(&left, &lower, &plain, &plain, &columns, &count, &one, const_cast<double*>(M), &columns,
                               Y, &columns);
}

// The upper triangle of sum (contiguous rows) += sign Y^T Y.
void add_gram(const double* Y, std::int64_t stride, std::int64_t rows, std::int64_t d, double sign, double* sum) {
  char uplo = 'L', trans = 'N';  // contiguous rows are columns to BLAS
  int n = static_cast<int>(d), k = static_cast<int>(rows), ld = static_cast<int>(stride);
  double one = 1;
  blas_routines<double>().syrk(&uplo, &trans, &n, &k, &sign, const_cast<double*>(Y), &ld, &one, sum, &n);
}

// G = sum over slabs of what `block(rows of A, a copy of them, their stride, sum, workspace)` adds.
template <class T, class Block>
void sum_blocks(const Execution& exec, const MatrixView<const T>& A, double* G, const Block& block) {
  const std::int64_t n = A.rows, d = A.cols;
  const Slabs slabs(n, kBlock, d * d);
  const int n_threads = std::min(thread_count(exec, slabs.count), pass_threads(exec, n * d * d));
  const std::int64_t own = kBlock * d;
  const Buffer<double> spaces(2 * n_threads * own);
  std::vector<double> sums(static_cast<std::size_t>(slabs.count * d * d), 0.0);
  parallel_for(n_threads, slabs.count, [&](std::int64_t slab, int worker) {
    double* const memory = spaces.data() + 2 * worker * own;
    for (std::int64_t i = slabs.begin(slab); i < slabs.end(slab); i += kBlock) {
      const std::int64_t count = std::min(kBlock, slabs.end(slab) - i);
      std::int64_t stride = 0;
      const double* const rows = as_doubles(row_range(A, i, count), memory, stride);
      block(i, rows, stride, count, memory + own, sums.data() + slab * d * d);
    }
  });
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = i; j < d; ++j) {
      double total = 0;
      for (std::int64_t slab = 0; slab < slabs.count; ++slab) total += sums[(slab * d + i) * d + j];
      G[i * d + j] = G[j * d + i] = total;
    }
}

}  // namespace

template <class T>
void preconditioned_gram(const Execution& exec, MatrixView<const T> A, const double* M, double* G) {
  const std::int64_t d = A.cols;
  sum_blocks(exec, A, G,
             [&](std::int64_t, const double* rows, std::int64_t stride, std::int64_t count, double* Y, double* sum) {
               multiply_upper(rows, stride, count, M, d, Y);
               add_gram(Y, d, count, d, 1, sum);
             });
}

template <class T>
void weighted_gram(const Execution& exec, MatrixView<const T> A, const double* w, double* G) {
  const std::int64_t d = A.cols;
  sum_blocks(
      exec, A, G,
      [&](std::int64_t first, const double* rows, std::int64_t stride, std::int64_t count, double* Y, double* sum) {
        if (w == nullptr) {
          add_gram(rows, stride, count, d, 1, sum);
          return;
        }
        // Rows times the roots of their weights, those of negative weights last.
        std::int64_t plus = 0, minus = count;
        for (std::int64_t i = 0; i < count; ++i) {
          const double weight = w[first + i], root = std::sqrt(std::abs(weight));
          double* const to = Y + (weight < 0 ? --minus : plus++) * d;
          for (std::int64_t j = 0; j < d; ++j) to[j] = root * rows[i * stride + j];
        }
        if (plus > 0) add_gram(Y, d, plus, d, 1, sum);
        if (minus < count) add_gram(Y + minus * d, d, count - minus, d, -1, sum);
      });
}

template <class T>
void row_norms(const Execution& exec, MatrixView<const T> A, MatrixView<const double> M, double* out) {
  constexpr std::int64_t kRows = 128;
  const std::int64_t n = A.rows, d = A.cols, k = M.data != nullptr ? M.cols : d;
  QUADRIC_REQUIRE(M.data == nullptr || M.rows == d, "M must have a row for each column of A");
  bool triangular = M.data != nullptr && k == d;
  for (std::int64_t i = 0; triangular && i < d; ++i)
    for (std::int64_t j = 0; triangular && j < i; ++j) triangular = M(i, j) == 0;
  const std::int64_t pieces = ceil_div(n, kRows), own = kRows * (d + k);
  const int n_threads = std::min(thread_count(exec, pieces), pass_threads(exec, n * d));
  const Buffer<double> spaces(n_threads * own);
  parallel_for(n_threads, pieces, [&](std::int64_t piece, int worker) {
    double* const memory = spaces.data() + worker * own;
    const std::int64_t begin = piece * kRows, count = std::min(kRows, n - begin);
    std::int64_t stride = 0;
    const double* rows = as_doubles(row_range(A, begin, count), memory, stride);
    if (M.data != nullptr && k > 0) {
      if (triangular)
        multiply_upper(rows, stride, count, M.data, d, memory + kRows * d);
      else
        multiply(rows, stride, count, M.data, d, k, memory + kRows * d);
      rows = memory + kRows * d;
      stride = k;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      double sum[8] = {};  // independent sums, so that the loop may use vectors
      std::int64_t j = 0;
      for (; j + 8 <= k; j += 8)
        for (int lane = 0; lane < 8; ++lane) sum[lane] += rows[i * stride + j + lane] * rows[i * stride + j + lane];
      double total = ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
      for (; j < k; ++j) total += rows[i * stride + j] * rows[i * stride + j];
      out[begin + i] = total;
    }
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                                  \
  template QUADRIC_API void preconditioned_gram(const Execution&, MatrixView<const T>, const double*, double*); \
  template QUADRIC_API void weighted_gram(const Execution&, MatrixView<const T>, const double*, double*);       \
  template QUADRIC_API void row_norms(const Execution&, MatrixView<const T>, MatrixView<const double>, double*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::sketch
