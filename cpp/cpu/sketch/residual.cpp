#include <algorithm>
#include <vector>

#include "quadric/blas.hpp"
#include "quadric/sketch.hpp"
#include "require.hpp"
#include "sketch/slabs.hpp"
#include "sketch/tiles.hpp"

namespace quadric::sketch {
namespace {

using namespace detail;

constexpr std::int64_t kBlock = 256;  // rows that stay in cache between the two products
constexpr std::int64_t kCopied = 64;  // rows that are copied at a time, where they must be

template <class T>
struct Pass {
  MatrixView<const T> A, X;
  const MatrixView<const T>* B;
  const MatrixView<T>* R;
  std::int64_t k;
  bool gradient;
  const double* x;  // the only column of X

  // Entries of a workspace.
  std::int64_t space() const {
    if (k > 1) return kBlock * (A.cols + k) + A.cols * k;
    return by_columns(A) ? 2 * kBlock : kCopied * A.cols;  // room for kBlock doubles, or for rows
  }

  // One right-hand side, rows [begin, end).
  double vector(std::int64_t begin, std::int64_t end, T* memory, double* g) const {
    const auto& kernels = sketch_kernels<T>();
    double norm = 0;
    const bool rows_ready = A.col_stride == 1 || A.cols == 1, columns_ready = by_columns(A);
    const std::int64_t step = columns_ready && !rows_ready ? kBlock : rows_ready ? end - begin : kCopied;
    for (std::int64_t i = begin; i < end; i += step) {
      const std::int64_t count = std::min(step, end - i);
      const T* const b = B != nullptr ? &(*B)(i, 0) : nullptr;
      T* const r = R != nullptr ? &(*R)(i, 0) : nullptr;
      const std::int64_t b_stride = B != nullptr ? B->row_stride : 0, r_stride = R != nullptr ? R->row_stride : 0;
      if (columns_ready && !rows_ready) {
        norm += kernels.column_residuals(A.data + i, A.col_stride, count, A.cols, x, b, b_stride, r, r_stride, g,
                                         reinterpret_cast<double*>(memory));
        continue;
      }
      const T* rows = A.data + i * A.row_stride;
      std::int64_t stride = A.row_stride;
      if (!rows_ready) {
        copy_rows(A, i, count, 0, A.cols, A.cols, memory);
        rows = memory;
        stride = A.cols;
      }
      norm += kernels.row_residuals(rows, stride, count, A.cols, x, b, b_stride, r, r_stride, g);
    }
    return norm;
  }

  // Several: BLAS on blocks of rows. All are read as the transposed of column-major matrices.
  void matrix(std::int64_t begin, std::int64_t end, const T* wide, T* memory, double* g, double* norms) const {
    const std::int64_t d = A.cols;
    T *const copies = memory, *const r = copies + kBlock * d, *const product = r + kBlock * k;
    char plain = 'N', turned = 'T';
    int columns = static_cast<int>(k), depth = static_cast<int>(d);
    T one = 1, zero = 0;
    const bool upright = by_columns(A) && !by_rows(A);
    for (std::int64_t i = begin; i < end; i += kBlock) {
      int count = static_cast<int>(std::min(kBlock, end - i));
      const T* a = A.data + i * A.row_stride;
      int lda = static_cast<int>(upright ? A.col_stride : A.row_stride);
      if (!upright && !by_rows(A)) {
        copy_rows(A, i, count, 0, d, d, copies);
        a = copies;
        lda = depth;
      }
      blas_routines<T>().gemm(&plain, upright ? &turned : &plain, &columns, &count, &depth, &one, const_cast<T*>(wide),
                              &columns, const_cast<T*>(a), &lda, &zero, r, &columns);
      for (std::int64_t row = 0; row < count; ++row)
        for (std::int64_t c = 0; c < k; ++c) {
          T& value = r[row * k + c];
          if (B != nullptr) value = (*B)(i + row, c) - value;
          if (R != nullptr) (*R)(i + row, c) = value;
          norms[c] += static_cast<double>(value) * static_cast<double>(value);
        }
      if (!gradient) continue;
      blas_routines<T>().gemm(&plain, upright ? &plain : &turned, &columns, &depth, &count, &one, r, &columns,
                              const_cast<T*>(a), &lda, &zero, product, &columns);
      for (std::int64_t j = 0; j < d * k; ++j) g[j] += static_cast<double>(product[j]);
    }
  }
};

}  // namespace

template <class T>
void residual_gradient(const Execution& exec, MatrixView<const T> A, MatrixView<const T> X,
                       const MatrixView<const T>* B, const MatrixView<T>* R, double* G, double* norms) {
  const std::int64_t n = A.rows, d = A.cols, k = X.cols;
  QUADRIC_REQUIRE(X.rows == d, "x must have a row for each column of A");
  QUADRIC_REQUIRE(B == nullptr || (B->rows == n && B->cols == k), "b must have the rows of A and the columns of x");
  QUADRIC_REQUIRE(R == nullptr || (R->rows == n && R->cols == k), "r must have the rows of A and the columns of x");
  std::fill_n(norms, k, 0.0);
  if (G != nullptr) std::fill_n(G, d * k, 0.0);
  if (n == 0 || k == 0) return;
  const Buffer<double> x(d);
  const Pass<T> pass{A, X, B, R, k, G != nullptr, x.data()};
  std::vector<T> wide;
  if (k == 1) {
    for (std::int64_t j = 0; j < d; ++j) x.data()[j] = static_cast<double>(X(j, 0));
  } else {
    for (std::int64_t j = 0; j < d; ++j)
      for (std::int64_t c = 0; c < k; ++c) wide.push_back(X(j, c));
  }
  const Slabs slabs(n, kBlock, d * k);
  const int n_threads = std::min(thread_count(exec, slabs.count), pass_threads(exec, n * d * k));
  // On cache-line boundaries, as x: split, they would cost more than the conversion of float32.
  const std::int64_t own = (d * k + k + 7) / 8 * 8, space = (pass.space() + 15) / 16 * 16;
  const Buffer<double> sums(slabs.count * own);
  std::fill_n(sums.data(), slabs.count * own, 0.0);
  const Buffer<T> spaces(n_threads * space);
  parallel_for(n_threads, slabs.count, [&](std::int64_t slab, int worker) {
    double* const g = sums.data() + slab * own;
    T* const memory = spaces.data() + worker * space;
    if (k == 1)
      g[d] = pass.vector(slabs.begin(slab), slabs.end(slab), memory, G != nullptr ? g : nullptr);
    else
      pass.matrix(slabs.begin(slab), slabs.end(slab), wide.data(), memory, g, g + d * k);
  });
  for (std::int64_t slab = 0; slab < slabs.count; ++slab) {
    const double* const g = sums.data() + slab * own;
    for (std::int64_t j = 0; G != nullptr && j < d * k; ++j) G[j] += g[j];
    for (std::int64_t c = 0; c < k; ++c) norms[c] += g[d * k + c];
  }
}

#define QUADRIC_INSTANTIATE(T)                                                                            \
  template QUADRIC_API void residual_gradient(const Execution&, MatrixView<const T>, MatrixView<const T>, \
                                              const MatrixView<const T>*, const MatrixView<T>*, double*, double*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::sketch
