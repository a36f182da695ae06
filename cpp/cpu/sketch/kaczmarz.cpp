#include "quadric/sketch.hpp"
#include "require.hpp"
#include "sketch/tiles.hpp"

namespace quadric::sketch {
namespace {

void check(std::int64_t n, const Projections& projections) {
  for (std::int64_t s = 0; s < projections.steps; ++s)
    QUADRIC_REQUIRE(projections.order[s] >= 0 && projections.order[s] < n, "order must hold numbers of rows");
}

}  // namespace

template <class T>
void kaczmarz(MatrixView<const T> A, const Projections& projections, MatrixView<double> X) {
  check(A.rows, projections);
  QUADRIC_REQUIRE(X.cols == A.cols, "X must have the columns of A");
  const bool ready = A.col_stride == 1 || A.cols == 1;
  const Buffer<T> copy(A.cols);
  for (std::int64_t s = 0; s < projections.steps; ++s) {
    const std::int64_t i = projections.order[s];
    const T* a = A.data + i * A.row_stride;
    if (!ready) {
      detail::copy_rows(A, i, 1, 0, A.cols, A.cols, copy.data());
      a = copy.data();
    }
    for (std::int64_t c = 0; c < X.rows; ++c)
      detail::sketch_kernels<T>().project(a, A.cols, projections.Y[i * X.rows + c],
                                          projections.relaxation / projections.norms[i], &X(c, 0));
  }
}

template <class T, class Index>
void kaczmarz_csr(const SparseRows<T, Index>& A, const Projections& projections, MatrixView<double> X) {
  check(A.rows, projections);
  for (std::int64_t s = 0; s < projections.steps; ++s) {
    const std::int64_t i = projections.order[s];
    for (std::int64_t c = 0; c < X.rows; ++c) {
      double* const x = &X(c, 0);
      double product = 0;
      for (Index e = A.starts[i]; e < A.starts[i + 1]; ++e)
        product += static_cast<double>(A.values[e]) * x[A.columns[e]];
      const double step = projections.relaxation * (projections.Y[i * X.rows + c] - product) / projections.norms[i];
      for (Index e = A.starts[i]; e < A.starts[i + 1]; ++e) x[A.columns[e]] += step * static_cast<double>(A.values[e]);
    }
  }
}

#define QUADRIC_INSTANTIATE(T)                                                                                        \
  template QUADRIC_API void kaczmarz(MatrixView<const T>, const Projections&, MatrixView<double>);                    \
  template QUADRIC_API void kaczmarz_csr(const SparseRows<T, std::int32_t>&, const Projections&, MatrixView<double>); \
  template QUADRIC_API void kaczmarz_csr(const SparseRows<T, std::int64_t>&, const Projections&, MatrixView<double>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::sketch
