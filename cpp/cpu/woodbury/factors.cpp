#include <algorithm>
#include <cmath>
#include <vector>

#include "quadric/blas.hpp"
#include "quadric/woodbury.hpp"
#include "require.hpp"
#include "threads.hpp"
#include "woodbury/row_kernels.hpp"
#include "woodbury/slabs.hpp"

namespace quadric::woodbury {
namespace {

// Rows of a factor that make a task: about 256 KiB of it.
template <class T>
std::int64_t rows_per_task(std::int64_t n) {
  const std::int64_t rows =
      (std::int64_t{1} << 18) / static_cast<std::int64_t>(sizeof(T)) / std::max<std::int64_t>(n, 1);
  return ceil_div(std::max<std::int64_t>(rows, 1), detail::kUpdateRows) * detail::kUpdateRows;
}

struct Task {
  std::int64_t factor, begin, end;
};

template <class T, class View>
std::vector<Task> cut(std::int64_t count, const View* J, std::int64_t& entries) {
  std::vector<Task> tasks;
  entries = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t n = J[i].rows;
    QUADRIC_REQUIRE(J[i].cols == n && (n <= 1 || (J[i].col_stride == 1 && J[i].row_stride == n)),
                    "J must hold square matrices with contiguous rows");
    entries += n * n;
    for (std::int64_t begin = 0; begin < n; begin += rows_per_task<T>(n))
      tasks.push_back({i, begin, std::min(n, begin + rows_per_task<T>(n))});
  }
  return tasks;
}

template <class View>
bool has_rows(const View& v, std::int64_t n) {
  return v.cols == n && (n <= 1 || v.col_stride == 1);
}

double larger_or_nan(double a, double b) { return b > a || b != b ? b : a; }

}  // namespace

template <class T>
void symmetric_product(const Execution& exec, std::int64_t count, const MatrixView<const T>* J,
                       const MatrixView<const T>* V, const MatrixView<T>* Y) {
  std::int64_t entries = 0;
  const std::vector<Task> tasks = cut<T>(count, J, entries);
  for (std::int64_t i = 0; i < count; ++i) {
    QUADRIC_REQUIRE(has_rows(V[i], J[i].rows), "V must have contiguous rows as long as those of J");
    QUADRIC_REQUIRE(has_rows(Y[i], J[i].rows) && Y[i].rows == V[i].rows, "Y must have the shape of V");
  }
  const auto& kernels = detail::row_kernels<T>();
  parallel_for(std::min(thread_count(exec, tasks.size()), thread_count(exec, entries >> 17)),
               static_cast<std::int64_t>(tasks.size()), [&](std::int64_t t, int) {
                 const auto [i, begin, end] = tasks[t];
                 const std::int64_t n = J[i].rows, k = V[i].rows;
                 if (k == 1) {
                   std::vector<double> sums(static_cast<std::size_t>(end - begin));
                   kernels.dots(J[i].data + begin * n, end - begin, n, V[i].data, sums.data());
                   for (std::int64_t r = begin; r < end; ++r) Y[i].data[r] = static_cast<T>(sums[r - begin]);
                   return;
                 }
                 // Rows to BLAS are columns: Y (rows x k) = J^T (rows x n) V (n x k).
                 char trans = 'T', no = 'N';
                 int rows = static_cast<int>(end - begin), k_ = static_cast<int>(k), n_ = static_cast<int>(n);
                 int ldv = static_cast<int>(std::max(V[i].row_stride, n)),
                     ldy = static_cast<int>(std::max(Y[i].row_stride, n));
                 T one = 1, zero = 0;
                 blas_routines<T>().gemm(&trans, &no, &rows, &k_, &n_, &one, const_cast<T*>(J[i].data + begin * n), &n_,
                                         const_cast<T*>(V[i].data), &ldv, &zero, Y[i].data + begin, &ldy);
               });
}

template <class T>
void symmetric_update(const Execution& exec, std::int64_t count, const MatrixView<const T>* J, const double* alpha,
                      const double* delta, const double* sign, const MatrixView<const T>* Y, const MatrixView<T>* out,
                      double* norms) {
  std::int64_t entries = 0;
  const std::vector<Task> tasks = cut<T>(count, J, entries);
  for (std::int64_t i = 0; i < count; ++i) {
    QUADRIC_REQUIRE(has_rows(Y[i], J[i].rows), "Y must have contiguous rows as long as those of J");
    QUADRIC_REQUIRE(
        out[i].rows == J[i].rows && has_rows(out[i], J[i].rows) && (J[i].rows <= 1 || out[i].row_stride == J[i].rows),
        "out must have the shape of J and contiguous rows");
  }
  const auto& kernels = detail::row_kernels<T>();
  std::vector<double> largest(tasks.size(), 0.0);
  parallel_for(std::min(thread_count(exec, tasks.size()), thread_count(exec, entries >> 17)),
               static_cast<std::int64_t>(tasks.size()), [&](std::int64_t t, int) {
                 const auto [i, begin, end] = tasks[t];
                 const std::int64_t n = J[i].rows, k = Y[i].rows;
                 std::vector<T> coefficient(static_cast<std::size_t>(k * detail::kUpdateRows));
                 for (std::int64_t r0 = begin; r0 < end;) {
                   const std::int64_t rows = end - r0 >= detail::kUpdateRows ? detail::kUpdateRows : 1;
                   for (std::int64_t c = 0; c < k; ++c)
                     for (std::int64_t r = 0; r < rows; ++r)
                       coefficient[c * detail::kUpdateRows + r] = static_cast<T>(sign[i]) * Y[i](c, r0 + r);
                   double norm[detail::kUpdateRows];
                   T* const to = out[i].data + r0 * n;
                   kernels.update(J[i].data + r0 * n, static_cast<T>(alpha[i]), rows, n, Y[i].data, k, Y[i].row_stride,
                                  coefficient.data(), to, norm);
                   for (std::int64_t r = 0; r < rows; ++r) {
                     T& diagonal = to[r * n + r0 + r];
                     const double before = std::abs(static_cast<double>(diagonal));
                     diagonal += static_cast<T>(delta[i]);
                     norm[r] += std::abs(static_cast<double>(diagonal)) - before;
                     largest[t] = larger_or_nan(largest[t], norm[r]);
                   }
                   r0 += rows;
                 }
               });
  std::fill_n(norms, count, 0.0);
  for (std::size_t t = 0; t < tasks.size(); ++t)
    norms[tasks[t].factor] = larger_or_nan(norms[tasks[t].factor], largest[t]);
}

#define QUADRIC_INSTANTIATE(T)                                                                                        \
  template QUADRIC_API void symmetric_product(const Execution&, std::int64_t, const MatrixView<const T>*,             \
                                              const MatrixView<const T>*, const MatrixView<T>*);                      \
  template QUADRIC_API void symmetric_update(const Execution&, std::int64_t, const MatrixView<const T>*,              \
                                             const double*, const double*, const double*, const MatrixView<const T>*, \
                                             const MatrixView<T>*, double*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::woodbury
