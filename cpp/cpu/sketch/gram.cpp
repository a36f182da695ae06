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
template <class T>
void multiply(const T* X, std::int64_t stride, std::int64_t rows, const T* M, std::int64_t d, std::int64_t k, T* Y) {
  char plain = 'N';
  T one = 1, zero = 0;
  int columns = static_cast<int>(k), count = static_cast<int>(rows), depth = static_cast<int>(d);
  int ldx = static_cast<int>(stride);
  blas_routines<T>().gemm(&plain, &plain, &columns, &count, &depth, &one, const_cast<T*>(M), &columns,
                          const_cast<T*>(X), &ldx, &zero, Y, &columns);
}

// Y = X M for an upper triangular M, half the work.
template <class T>
void multiply_upper(const T* X, std::int64_t stride, std::int64_t rows, const T* M, std::int64_t d, T* Y) {
  for (std::int64_t i = 0; i < rows; ++i) std::copy_n(X + i * stride, d, Y + i * d);
  char left = 'L', lower = 'L', plain = 'N';
  T one = 1;
  int columns = static_cast<int>(d), count = static_cast<int>(rows);
  blas_routines<T>().trmm(&left, &lower, &plain, &plain, &columns, &count, &one, const_cast<T*>(M), &columns, Y,
                          &columns);
}

// The upper triangle of product (contiguous rows) = beta product + sign Y^T Y.
template <class T>
void add_gram(const T* Y, std::int64_t stride, std::int64_t rows, std::int64_t d, T sign, T beta, T* product) {
  char uplo = 'L', trans = 'N';  // contiguous rows are columns to BLAS
  int n = static_cast<int>(d), k = static_cast<int>(rows), ld = static_cast<int>(stride);
  blas_routines<T>().syrk(&uplo, &trans, &n, &k, &sign, const_cast<T*>(Y), &ld, &beta, product, &n);
}

template <class T>
std::vector<T> rounded(const double* M, std::int64_t size) {
  return std::vector<T>(M, M + size);
}

// G = the sum of what `block(first row, rows of A, their stride, their number, workspace, product)` writes into the
// upper triangle of product. Sums of blocks in double.
template <class T, class Block>
void sum_blocks(const Execution& exec, const MatrixView<const T>& A, double* G, const Block& block) {
  const std::int64_t n = A.rows, d = A.cols;
  const Slabs slabs(n, kBlock, d * d);
  const int n_threads = std::min(thread_count(exec, slabs.count), pass_threads(exec, n * d * d));
  const std::int64_t own = 2 * kBlock * d + d * d;
  const Buffer<T> spaces(n_threads * own);
  std::vector<double> sums(static_cast<std::size_t>(slabs.count * d * d), 0.0);
  parallel_for(n_threads, slabs.count, [&](std::int64_t slab, int worker) {
    T* const memory = spaces.data() + worker * own;
    T* const product = memory + 2 * kBlock * d;
    double* const sum = sums.data() + slab * d * d;
    for (std::int64_t i = slabs.begin(slab); i < slabs.end(slab); i += kBlock) {
      const std::int64_t count = std::min(kBlock, slabs.end(slab) - i);
      std::int64_t stride = 0;
      const T* const rows = with_rows(row_range(A, i, count), memory, stride);
      block(i, rows, stride, count, memory + kBlock * d, product);
      for (std::int64_t r = 0; r < d; ++r)
        for (std::int64_t j = r; j < d; ++j) sum[r * d + j] += static_cast<double>(product[r * d + j]);
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
  const std::vector<T> factor = rounded<T>(M, d * d);
  sum_blocks(exec, A, G, [&](std::int64_t, const T* rows, std::int64_t stride, std::int64_t count, T* Y, T* product) {
    multiply_upper(rows, stride, count, factor.data(), d, Y);
    add_gram<T>(Y, d, count, d, 1, 0, product);
  });
}

template <class T>
void weighted_gram(const Execution& exec, MatrixView<const T> A, const double* w, double* G) {
  const std::int64_t d = A.cols;
  sum_blocks(exec, A, G,
             [&](std::int64_t first, const T* rows, std::int64_t stride, std::int64_t count, T* Y, T* product) {
               if (w == nullptr) {
                 add_gram<T>(rows, stride, count, d, 1, 0, product);
                 return;
               }
               // Rows times the roots of their weights, those of negative weights last.
               std::int64_t plus = 0, minus = count;
               for (std::int64_t i = 0; i < count; ++i) {
                 const double weight = w[first + i], root = std::sqrt(std::abs(weight));
                 T* const to = Y + (weight < 0 ? --minus : plus++) * d;
                 for (std::int64_t j = 0; j < d; ++j)
                   to[j] = static_cast<T>(root * static_cast<double>(rows[i * stride + j]));
               }
               add_gram<T>(Y, d, plus, d, 1, 0, product);
               if (minus < count) add_gram<T>(Y + minus * d, d, count - minus, d, -1, 1, product);
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
  const std::vector<T> factor = rounded<T>(M.data, M.data != nullptr ? d * k : 0);
  const std::int64_t pieces = ceil_div(n, kRows), own = kRows * (d + k);
  const int n_threads = std::min(thread_count(exec, pieces), pass_threads(exec, n * d));
  const Buffer<T> spaces(n_threads * own);
  parallel_for(n_threads, pieces, [&](std::int64_t piece, int worker) {
    T* const memory = spaces.data() + worker * own;
    T* const products = memory + kRows * d;
    const std::int64_t begin = piece * kRows, count = std::min(kRows, n - begin);
    std::int64_t stride = 0;
    const T* rows = with_rows(row_range(A, begin, count), memory, stride);
    if (M.data != nullptr && k > 0) {
      if (triangular)
        multiply_upper(rows, stride, count, factor.data(), d, products);
      else
        multiply(rows, stride, count, factor.data(), d, k, products);
      rows = products;
      stride = k;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const auto square = [&](std::int64_t j) {
        const double x = static_cast<double>(rows[i * stride + j]);
        return x * x;
      };
      double sum[8] = {};  // independent sums, so that the loop may use vectors
      std::int64_t j = 0;
      for (; j + 8 <= k; j += 8)
        for (int lane = 0; lane < 8; ++lane) sum[lane] += square(j + lane);
      double total = ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
      for (; j < k; ++j) total += square(j);
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
