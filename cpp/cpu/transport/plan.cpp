#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "quadric/transport.hpp"
#include "require.hpp"
#include "threads.hpp"
#include "transport/source.hpp"

namespace quadric::transport {
namespace detail {
namespace {

// Passes with potentials that stay: body(i, e, t, scale, sum) for every row of P, which is
// P_ij = scale e_j weight_j with the sum scale * sum; e_j = 2^(t_j + a whole number). Rows are worked on in fixed
// parts.
template <class T>
class Rows {
 public:
  Rows(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg)
      : source(cost, reg), columns(source), parts(part_count(source.n(), source.m())), f_(f) {
    for (std::int64_t j = 0; j < source.m(); ++j) columns.potential.data()[j] = g[j] * source.kappa();
    columns.rebase(source);
    threads = std::min(thread_count(exec, parts), thread_count(exec, source.n() * source.m() >> 14));
    for (int t = 0; t < threads; ++t) tiles.emplace_back(new Tile<T>(source.rows_at_once(), source.width()));
  }

  template <class Body>
  void for_parts(const Body& body) const {
    parallel_for(threads, parts, body);
  }

  template <class Body>
  void for_rows(std::int64_t part, const Tile<T>& tile, const Body& body) const {
    const auto [begin, end] = part_range(source.n(), parts, part);
    for (std::int64_t first = begin; first < end; first += tile.rows) {
      const std::int64_t count = std::min(tile.rows, end - first);
      source.begin(first, count, tile.row(0), tile.stride);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t i = first + r;
        const double F = f_[i] * source.kappa() - source.row_offset(i);
        source.exponents(i, columns.G.data(), tile.row(r), tile.t.data());
        if (F == -std::numeric_limits<double>::infinity()) {  // a row without mass
          std::fill_n(tile.row(r), source.width(), T(0));
          body(i, tile.row(r), tile.t.data(), 0.0, 0.0);
          continue;
        }
        const double shift = std::nearbyint(F);
        const double sum =
            kernels.powers(tile.t.data(), static_cast<T>(shift), columns.weight.data(), source.width(), tile.row(r));
        body(i, tile.row(r), tile.t.data(), std::exp2(F - shift), sum);
      }
    }
  }

  Source<T> source;
  Columns<T> columns;
  std::int64_t parts;
  int threads = 1;
  std::vector<std::unique_ptr<Tile<T>>> tiles;
  const PassKernels<T>& kernels = pass_kernels<T>();

 private:
  const double* f_;
};

}  // namespace
}  // namespace detail

template <class T>
void plan(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg, MatrixView<T> out) {
  detail::check(cost);
  QUADRIC_REQUIRE(reg > 0, "reg must be positive");
  QUADRIC_REQUIRE(out.rows == cost.rows() && out.cols == cost.cols() && (out.cols <= 1 || out.col_stride == 1),
                  "out must have the shape of the cost and contiguous rows");
  if (out.empty()) return;
  const detail::Rows<T> rows(exec, cost, f, g, reg);
  const T* const weight = rows.columns.weight.data();
  rows.for_parts([&](std::int64_t part, int worker) {
    rows.for_rows(part, *rows.tiles[worker], [&](std::int64_t i, const T* e, const T*, double scale, double) {
      T* const to = out.data + i * out.row_stride;
      const T u = static_cast<T>(scale);
      for (std::int64_t j = 0; j < out.cols; ++j) {
        const T p = e[j] * weight[j] * u;
        to[j] = p >= std::numeric_limits<T>::min() ? p : T(0);
      }
    });
  });
}

template <class T>
double apply_plan(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg,
                  MatrixView<const double> V, double* out, double* row_sums, double* column_sums) {
  detail::check(cost);
  QUADRIC_REQUIRE(reg > 0, "reg must be positive");
  const std::int64_t n = cost.rows(), m = cost.cols(), k = V.cols;
  QUADRIC_REQUIRE(k == 0 || V.rows == m, "V must have a row for each column of the cost");
  std::fill_n(row_sums, n, 0.0);
  std::fill_n(column_sums, m, 0.0);
  std::fill_n(out, n * k, 0.0);
  if (n == 0 || m == 0) return 0;
  const detail::Rows<T> rows(exec, cost, f, g, reg);
  const std::int64_t width = rows.source.width();
  const T* const weight = rows.columns.weight.data();
  // V with the weights of the columns in it, so that it meets E itself.
  Buffer<T> weighted(std::max<std::int64_t>(width * k, 1));
  for (std::int64_t j = 0; j < m; ++j)
    for (std::int64_t c = 0; c < k; ++c) weighted.data()[j * k + c] = static_cast<T>(V(j, c)) * weight[j];
  Buffer<double> part_columns(rows.parts * width);
  std::vector<std::unique_ptr<Buffer<T>>> products, sums;
  for (int t = 0; t < rows.threads; ++t) {
    products.emplace_back(new Buffer<T>(std::max<std::int64_t>(k, 1)));
    sums.emplace_back(new Buffer<T>(width));
  }
  std::vector<double> total(static_cast<std::size_t>(rows.parts));
  rows.for_parts([&](std::int64_t part, int worker) {
    double* const columns = part_columns.data() + part * width;
    std::fill_n(columns, width, 0.0);
    T* const sum = sums[worker]->data();
    std::int64_t waiting = 0;
    std::fill_n(sum, width, T(0));
    const auto flush = [&] {
      for (std::int64_t j = 0; j < width; ++j) columns[j] += static_cast<double>(sum[j]);
      std::fill_n(sum, width, T(0));
      waiting = 0;
    };
    double cost_sum = 0;
    rows.for_rows(part, *rows.tiles[worker], [&](std::int64_t i, const T* e, const T* t, double scale, double row_sum) {
      row_sums[i] = scale * row_sum;
      const T u = static_cast<T>(scale);
      rows.kernels.add_rows(e, width, 1, &u, width, sum);
      if (++waiting == 512) flush();
      // C = (G - t + offsets) / kappa, summed over the row; what does not depend on j comes out.
      const double entropy = rows.kernels.entropy(t, e, weight, width);
      cost_sum += scale * (rows.source.row_offset(i) * row_sum - entropy);
      if (k > 0) {
        char no = 'N';
        int k_ = static_cast<int>(k), one_column = 1, m_ = static_cast<int>(m);
        T one = 1, zero = 0;
        T* const product = products[worker]->data();
        blas_routines<T>().gemm(&no, &no, &k_, &one_column, &m_, &one, weighted.data(), &k_, const_cast<T*>(e), &m_,
                                &zero, product, &k_);
        for (std::int64_t c = 0; c < k; ++c) out[i * k + c] = scale * static_cast<double>(product[c]);
      }
    });
    flush();
    total[part] = cost_sum;
  });
  double result = 0;
  for (std::int64_t part = 0; part < rows.parts; ++part) {
    result += total[part];
    const double* const columns = part_columns.data() + part * width;
    for (std::int64_t j = 0; j < m; ++j) column_sums[j] += columns[j];
  }
  for (std::int64_t j = 0; j < m; ++j) {
    column_sums[j] *= static_cast<double>(weight[j]);
    result += column_sums[j] * rows.columns.base.data()[j];
  }
  return result / rows.source.kappa();
}

template <class T>
void point_gradient(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg,
                    double* out) {
  detail::check(cost);
  QUADRIC_REQUIRE(reg > 0, "reg must be positive");
  QUADRIC_REQUIRE(cost.kind == CostKind::euclidean || cost.kind == CostKind::cityblock,
                  "cost must be euclidean or cityblock");
  const std::int64_t n = cost.rows(), d = cost.x.cols;
  std::fill_n(out, n * d, 0.0);
  if (n == 0 || cost.cols() == 0) return;
  const detail::Rows<T> rows(exec, cost, f, g, reg);
  rows.for_parts([&](std::int64_t part, int worker) {
    rows.for_rows(part, *rows.tiles[worker], [&](std::int64_t i, const T* e, const T*, double scale, double) {
      rows.source.directions(i, e, rows.columns.weight.data(), out + i * d);
      for (std::int64_t k = 0; k < d; ++k) out[i * d + k] *= scale;
    });
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                                     \
  template QUADRIC_API void plan(const Execution&, const Cost<T>&, const double*, const double*, double,           \
                                 MatrixView<T>);                                                                   \
  template QUADRIC_API double apply_plan(const Execution&, const Cost<T>&, const double*, const double*, double,   \
                                         MatrixView<const double>, double*, double*, double*);                     \
  template QUADRIC_API void point_gradient(const Execution&, const Cost<T>&, const double*, const double*, double, \
                                           double*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::transport
