#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "quadric/blas.hpp"
#include "quadric/sweep.hpp"
#include "require.hpp"
#include "threads.hpp"

namespace quadric::sweep {
namespace {

constexpr std::int64_t kTile = 64;  // a tile and its mirror image fit into L1 together

std::int64_t tiles(std::int64_t n) { return (n + kTile - 1) / kTile; }

// body(rows begin, rows end, columns begin, columns end) for every tile on and below the diagonal.
template <class Body>
void for_lower_tiles(const Execution& exec, std::int64_t n, const Body& body) {
  parallel_for(copy_thread_count(exec, n * n), tiles(n), [&](std::int64_t t, int) {
    const std::int64_t row = (tiles(n) - 1 - t) * kTile;  // the long rows first, for balance
    for (std::int64_t column = 0; column <= row; column += kTile)
      body(t, row, std::min(row + kTile, n), column, std::min(column + kTile, n));
  });
}

template <class T>
void check_square(const MatrixView<T>& A, const char* message) {
  QUADRIC_REQUIRE(A.rows == A.cols && (A.rows == 0 || (A.col_stride == 1 && A.row_stride == A.cols)), message);
}

// The in-place form: columns of every row first, then the rows along the cycles of the permutation.
template <class T>
void permute_in_place(int n_threads, const std::vector<std::int64_t>& source, MatrixView<T> A) {
  const std::int64_t n = A.rows;
  std::vector<T> rows(static_cast<std::size_t>(n_threads * n));
  parallel_for(n_threads, n, [&](std::int64_t j, int worker) {
    T* copy = rows.data() + worker * n;
    T* row = A.data + j * n;
    std::copy_n(row, n, copy);
    for (std::int64_t i = 0; i < n; ++i) row[i] = copy[source[i]];
  });
  std::vector<bool> done(static_cast<std::size_t>(n), false);
  for (std::int64_t first = 0; first < n; ++first) {
    if (done[first]) continue;
    std::copy_n(A.data + first * n, n, rows.data());
    std::int64_t j = first;
    for (; source[j] != first; j = source[j]) {
      std::copy_n(A.data + source[j] * n, n, A.data + j * n);
      done[j] = true;
    }
    std::copy_n(rows.data(), n, A.data + j * n);
    done[j] = true;
  }
}

// Cholesky by blocks of columns: factor the diagonal block, solve for the block column, update what is right of it. The
// pieces are BLAS calls on one thread each, so the result does not depend on their number, and no second pool of
// threads competes with this one for the cores.
constexpr std::int64_t kBlock = 192;  // no power of two, so that the rows of a block do not share cache sets

// To BLAS our upper triangle is the lower one of the column-major matrix M(i, j) = a[j * n + i]. Returns the index of
// the pivot that is not positive, or -1.
template <class T>
std::int64_t factor_blocks(int n_threads, T* a, std::int64_t n) {
  const auto& lapack = blas_routines<T>();
  const auto at = [=](std::int64_t i, std::int64_t j) { return a + j * n + i; };
  int ld = static_cast<int>(n);
  char lower = 'L', right = 'R', trans = 'T', no = 'N';
  T one = 1, minus_one = -1;
  for (std::int64_t k = 0; k < n; k += kBlock) {
    int width = static_cast<int>(std::min(kBlock, n - k)), info = 0;
    lapack.potrf(&lower, &width, at(k, k), &ld, &info);
    for (std::int64_t j = k; j < k + (info > 0 ? info - 1 : width); ++j)
      if (!std::isfinite(*at(j, j))) return j;  // LAPACK lets NaN pass
    if (info != 0) return k + info - 1;

    const std::int64_t next = k + width;
    const std::int64_t blocks = (n - next + kBlock - 1) / kBlock;
    parallel_for(std::min<std::int64_t>(n_threads, blocks), blocks, [&](std::int64_t b, int) {
      const std::int64_t i = next + b * kBlock;
      int rows = static_cast<int>(std::min(kBlock, n - i)), columns = width;
      lapack.trsm(&right, &lower, &trans, &no, &rows, &columns, &one, at(k, k), &ld, at(i, k), &ld);
    });
    parallel_for(std::min<std::int64_t>(n_threads, blocks), blocks, [&](std::int64_t b, int) {
      const std::int64_t j = next + b * kBlock;
      int columns = static_cast<int>(std::min(kBlock, n - j)), depth = width;
      int rows = static_cast<int>(n - j) - columns;
      lapack.syrk(&lower, &no, &columns, &depth, &minus_one, at(j, k), &ld, &one, at(j, j), &ld);
      if (rows > 0)
        lapack.gemm(&no, &trans, &rows, &columns, &depth, &minus_one, at(j + columns, k), &ld, at(j, k), &ld, &one,
                    at(j + columns, j), &ld);
    });
  }
  return -1;
}

}  // namespace

template <class T>
double symmetry_defect(const Execution& exec, MatrixView<const T> H) {
  QUADRIC_REQUIRE(H.rows == H.cols, "H must be square");
  const std::int64_t n = H.rows;
  struct Extent {  // one for each column of a tile, so that the inner loop vectorizes
    T defect[kTile] = {}, largest[kTile] = {}, sum[kTile] = {};
  };
  std::vector<Extent> found(static_cast<std::size_t>(tiles(n)));
  for_lower_tiles(exec, n, [&](std::int64_t t, std::int64_t r0, std::int64_t r1, std::int64_t c0, std::int64_t c1) {
    T tile[kTile][kTile], mirror[kTile][kTile];
    for (std::int64_t i = r0; i < r1; ++i)
      for (std::int64_t j = c0; j < c1; ++j) tile[i - r0][j - c0] = H(i, j);
    for (std::int64_t j = c0; j < c1; ++j)
      for (std::int64_t i = r0; i < r1; ++i) mirror[i - r0][j - c0] = H(j, i);
    Extent& extent = found[t];
    for (std::int64_t i = 0; i < r1 - r0; ++i) {
      for (std::int64_t j = 0; j < c1 - c0; ++j) {
        const T x = tile[i][j], y = mirror[i][j];
        const T defect = std::abs(x - y), larger = std::abs(x) > std::abs(y) ? std::abs(x) : std::abs(y);
        extent.defect[j] = defect > extent.defect[j] ? defect : extent.defect[j];
        extent.largest[j] = larger > extent.largest[j] ? larger : extent.largest[j];
        extent.sum[j] += (x - x) + (y - y);  // NaN as soon as an entry is NaN or infinite
      }
    }
  });
  T defect = 0, largest = 0, sum = 0;
  for (const Extent& extent : found) {
    for (std::int64_t j = 0; j < kTile; ++j) {
      defect = std::max(defect, extent.defect[j]);
      largest = std::max(largest, extent.largest[j]);
      sum += extent.sum[j];
    }
  }
  if (std::isnan(sum)) return std::numeric_limits<double>::quiet_NaN();
  return largest > 0 ? static_cast<double>(defect) / static_cast<double>(largest) : 0.0;
}

template <class T>
void gather(const Execution& exec, MatrixView<const T> H, const std::int64_t* order, MatrixView<T> A) {
  const std::int64_t n = H.rows;
  QUADRIC_REQUIRE(H.rows == H.cols, "H must be square");
  QUADRIC_REQUIRE(A.rows == n, "A must have the shape of H");
  check_square(A, "A must be square with contiguous rows");
  std::vector<std::int64_t> source(order, order + n);
  std::reverse(source.begin(), source.end());
  std::vector<bool> seen(static_cast<std::size_t>(n), false);
  for (std::int64_t j : source) {
    QUADRIC_REQUIRE(j >= 0 && j < n && !seen[j], "order must be a permutation of 0..n-1");
    seen[j] = true;
  }
  const int n_threads = copy_thread_count(exec, n * n);
  if (A.data == H.data) {
    QUADRIC_REQUIRE(H.col_stride == 1 && H.row_stride == n, "H must have contiguous rows in place");
    permute_in_place(n_threads, source, A);
    return;
  }
  parallel_for(n_threads, n, [&](std::int64_t j, int) {
    const T* from = &H(source[j], 0);
    T* to = A.data + j * n;
    for (std::int64_t i = 0; i < n; ++i) to[i] = from[source[i] * H.col_stride];
  });
}

template <class T>
Status cholesky(const Execution& exec, MatrixView<T> A, const double* diagonal) {
  check_square(A, "A must be square with contiguous rows");
  const std::int64_t n = A.rows;
  QUADRIC_REQUIRE(n <= std::numeric_limits<int>::max(), "A has too many columns");
  if (n == 0) return {};
  for (std::int64_t j = 0; j < n; ++j) A(j, j) = static_cast<T>(diagonal[n - 1 - j]);
  const std::int64_t failed = factor_blocks(thread_count(exec, n / kBlock), A.data, n);
  if (failed >= 0) {  // put back what was overwritten, for another attempt
    for_lower_tiles(exec, n, [&](std::int64_t, std::int64_t r0, std::int64_t r1, std::int64_t c0, std::int64_t c1) {
      for (std::int64_t i = r0; i < r1; ++i)
        for (std::int64_t j = c0; j < std::min(c1, i); ++j) A(j, i) = A(i, j);
    });
    return {Status::Code::not_positive_definite, n - 1 - failed};
  }
  parallel_for(copy_thread_count(exec, n * n), n, [&](std::int64_t i, int) { std::fill_n(A.data + i * n, i, T(0)); });
  return {};
}

#define QUADRIC_INSTANTIATE(T)                                                                                 \
  template QUADRIC_API double symmetry_defect(const Execution&, MatrixView<const T>);                          \
  template QUADRIC_API void gather(const Execution&, MatrixView<const T>, const std::int64_t*, MatrixView<T>); \
  template QUADRIC_API Status cholesky(const Execution&, MatrixView<T>, const double*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::sweep
