#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "quadric/blas.hpp"
#include "quadric/sweep.hpp"
#include "require.hpp"
#include "threads.hpp"

namespace quadric::sweep {

template <class T>
void gram(const Execution& exec, MatrixView<const T> X, const T* weights, MatrixView<T> H) {
  const std::int64_t n = X.cols;
  QUADRIC_REQUIRE(H.rows == n && H.cols == n, "H must be n x n, n the columns of X");
  QUADRIC_REQUIRE(n == 0 || (H.col_stride == 1 && H.row_stride == n), "H must have contiguous rows");
  QUADRIC_REQUIRE(n <= std::numeric_limits<int>::max(), "X has too many columns");
  if (X.empty()) return;

  // Contiguous rows are a column-major n x tokens matrix to BLAS, and our upper triangle is its lower one.
  const auto add = [&](const T* x, std::int64_t tokens, std::int64_t stride) {
    char uplo = 'L', trans = 'N';
    int n_ = static_cast<int>(n), k = static_cast<int>(tokens), lda = static_cast<int>(stride);
    T one = 1;
    blas_routines<T>().syrk(&uplo, &trans, &n_, &k, &one, const_cast<T*>(x), &lda, &one, H.data, &n_);
  };
  const bool as_is =
      weights == nullptr && X.col_stride == 1 && X.row_stride >= n && X.row_stride <= std::numeric_limits<int>::max();
  const std::int64_t slice = as_is ? std::int64_t{1} << 30 : std::int64_t{1024};
  std::vector<T> copy(as_is ? 0 : static_cast<std::size_t>(std::min(slice, X.rows) * n));
  for (std::int64_t begin = 0; begin < X.rows; begin += slice) {
    const std::int64_t tokens = std::min(slice, X.rows - begin);
    if (as_is) {
      add(&X(begin, 0), tokens, X.row_stride);
      continue;
    }
    parallel_for(copy_thread_count(exec, tokens * n), tokens, [&](std::int64_t t, int) {
      const T root = weights == nullptr ? T(1) : std::sqrt(weights[begin + t]);
      for (std::int64_t j = 0; j < n; ++j) copy[t * n + j] = root * X(begin + t, j);
    });
    add(copy.data(), tokens, n);
  }
}

template QUADRIC_API void gram(const Execution&, MatrixView<const float>, const float*, MatrixView<float>);
template QUADRIC_API void gram(const Execution&, MatrixView<const double>, const double*, MatrixView<double>);

}  // namespace quadric::sweep
