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

// A group of rows of P: P_ij = scale_i e_ij weight_j, with the sum scale_i * sum_i.
template <class T>
struct Group {
  std::int64_t first, count;
  const T* e;
  std::int64_t stride;
  const double* scale;
  const double* sum;
  const double* entropy;  // sum_j e_ij weight_j t_ij, where e_ij = 2^(t_ij + a whole number)
};

// Passes with potentials that stay. Rows are worked on in fixed parts.
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

  // body(group) for the groups of a part, in order.
  template <class Body>
  void for_groups(std::int64_t part, int worker, const Body& body) const {
    const Tile<T>& tile = *tiles[worker];
    const auto [begin, end] = part_range(source.n(), parts, part);
    double scale[kMaxRows], sum[kMaxRows], entropy[kMaxRows];
    for (std::int64_t first = begin; first < end; first += tile.rows) {
      const std::int64_t count = std::min(tile.rows, end - first);
      source.begin(first, count, tile.row(0), tile.stride);
      for (std::int64_t r = 0; r < count; ++r) {
        const double F = f_[first + r] * source.kappa() - source.row_offset(first + r);
        source.exponents(first + r, columns.G.data(), tile.row(r), tile.t.data());
        if (F == -std::numeric_limits<double>::infinity()) {  // a row without mass
          std::fill_n(tile.row(r), source.width(), T(0));
          scale[r] = sum[r] = entropy[r] = 0;
          continue;
        }
        const double shift = std::nearbyint(F);
        scale[r] = std::exp2(F - shift);
        sum[r] = kernels.powers_and_entropy(tile.t.data(), static_cast<T>(shift), columns.weight.data(), source.width(),
                                            tile.row(r), &entropy[r]);
      }
      body(Group<T>{first, count, tile.row(0), tile.stride, scale, sum, entropy});
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

// out = E V for a group; V: k rows of `width`, and E has the weights of the columns in V.
template <class T>
void multiply(const Rows<T>& rows, const Group<T>& group, const T* V, std::int64_t k, T* work, double* out) {
  const std::int64_t width = rows.source.width();
  if (k <= 16) {
    rows.kernels.products(group.e, group.stride, group.count, V, k, width, out);
  } else {
    char yes = 'T', no = 'N';
    int count = static_cast<int>(group.count), k_ = static_cast<int>(k), width_ = static_cast<int>(width),
        stride = static_cast<int>(group.stride);
    T one = 1, zero = 0;
    blas_routines<T>().gemm(&yes, &no, &k_, &count, &width_, &one, const_cast<T*>(V), &width_, const_cast<T*>(group.e),
                            &stride, &zero, work, &k_);
    for (std::int64_t i = 0; i < group.count * k; ++i) out[i] = static_cast<double>(work[i]);
  }
  for (std::int64_t r = 0; r < group.count; ++r)
    for (std::int64_t c = 0; c < k; ++c) out[r * k + c] *= group.scale[r];
}

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
    rows.for_groups(part, worker, [&](const detail::Group<T>& group) {
      for (std::int64_t r = 0; r < group.count; ++r) {
        const T* const e = group.e + r * group.stride;
        T* const to = out.data + (group.first + r) * out.row_stride;
        const T u = static_cast<T>(group.scale[r]);
        for (std::int64_t j = 0; j < out.cols; ++j) {
          const T p = e[j] * weight[j] * u;
          to[j] = p >= std::numeric_limits<T>::min() ? p : T(0);
        }
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
  // V^T with the weights of the columns in it, so that it meets E itself.
  Buffer<T> weighted(std::max<std::int64_t>(width * k, 1));
  for (std::int64_t c = 0; c < k; ++c) {
    for (std::int64_t j = 0; j < m; ++j) weighted.data()[c * width + j] = static_cast<T>(V(j, c)) * weight[j];
    std::fill(weighted.data() + c * width + m, weighted.data() + (c + 1) * width, T(0));
  }
  Buffer<double> part_columns(rows.parts * width);
  std::vector<std::unique_ptr<Buffer<T>>> work, sums;
  for (int t = 0; t < rows.threads; ++t) {
    work.emplace_back(new Buffer<T>(std::max<std::int64_t>(k * detail::kMaxRows, 1)));
    sums.emplace_back(new Buffer<T>(width));
  }
  std::vector<double> total(static_cast<std::size_t>(rows.parts));
  rows.for_parts([&](std::int64_t part, int worker) {
    double* const columns = part_columns.data() + part * width;
    std::fill_n(columns, width, 0.0);
    T* const sum = sums[worker]->data();
    double cost_sum = 0;
    std::fill_n(sum, width, T(0));
    std::int64_t added = 0;
    const auto flush = [&] {
      for (std::int64_t j = 0; j < width; ++j) columns[j] += static_cast<double>(sum[j]);
      std::fill_n(sum, width, T(0));
      added = 0;
    };
    rows.for_groups(part, worker, [&](const detail::Group<T>& group) {
      T u[detail::kMaxRows];
      for (std::int64_t r = 0; r < group.count; ++r) {
        const std::int64_t i = group.first + r;
        u[r] = static_cast<T>(group.scale[r]);
        row_sums[i] = group.scale[r] * group.sum[r];
        // C = (G - t + offsets) / kappa, summed over the row; what does not depend on j comes out.
        cost_sum += group.scale[r] * (rows.source.row_offset(i) * group.sum[r] - group.entropy[r]);
      }
      rows.kernels.add_rows(group.e, group.stride, group.count, u, width, sum);
      if ((added += group.count) >= detail::kFlush) flush();
      if (k > 0) multiply(rows, group, weighted.data(), k, work[worker]->data(), out + group.first * k);
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
    rows.for_groups(part, worker, [&](const detail::Group<T>& group) {
      for (std::int64_t r = 0; r < group.count; ++r) {
        double* const to = out + (group.first + r) * d;
        rows.source.directions(group.first + r, group.e + r * group.stride, rows.columns.weight.data(), to);
        for (std::int64_t k = 0; k < d; ++k) to[k] *= group.scale[r];
      }
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
