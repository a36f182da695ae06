#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "buffer.hpp"
#include "quadric/transport.hpp"
#include "require.hpp"
#include "threads.hpp"
#include "transport/pass_kernels.hpp"
#include "transport/sparse_parts.hpp"

namespace quadric::transport {
namespace detail {
namespace {

constexpr double kScalingLimit = 200;  // log2, of a scaling before the potentials join the kernel

// In bits. K_k = 2^(row base + column base - kappa C_k); what the potentials gain is in scalings.
class SparseSinkhorn {
 public:
  SparseSinkhorn(const Execution& exec, const SparseView& pattern, const double* costs, const double* a,
                 const double* b, const SparseSinkhornOptions& options)
      : pattern_(pattern),
        costs_(costs),
        options_(options),
        kappa_(1.4426950408889634074 / options.reg),
        bounds_(sparse_parts(pattern)),
        parts_(static_cast<std::int64_t>(bounds_.size()) - 1),
        threads_(thread_count(exec, parts_)),
        kernel_(std::max<std::int64_t>(pattern.starts[pattern.rows], 1)),
        rows_(pattern.rows, a),
        columns_(pattern.cols, b),
        part_sums_(parts_ * padded(pattern.cols)),
        part_moved_(static_cast<std::size_t>(parts_)) {}

  void run(double* f, double* g, double* errors, double* values, double* column_sums) {
    for (std::int64_t i = 0; i < pattern_.rows; ++i) rows_.F.data()[i] = f[i] * kappa_;
    for (std::int64_t j = 0; j < pattern_.cols; ++j) columns_.F.data()[j] = g[j] * kappa_;
    bool rebase = true, moved = false;
    std::int64_t it = 0;
    for (; it < options_.count; ++it) {
      if (rebase) {
        std::copy_n(columns_.F.data(), pattern_.cols, columns_.base.data());
        std::fill_n(columns_.scaling.data(), pattern_.cols, 1.0);
      }
      parallel_for(threads_, parts_, [&](std::int64_t part, int) { pass(part, rebase); });
      Moved rows;
      for (const Moved& moved : part_moved_) {
        rows.after += moved.after;
        rows.lowest = std::min(rows.lowest, moved.lowest);
        rows.highest = std::max(rows.highest, moved.highest);
      }
      add_parts();
      revive();
      const bool last = it + 1 == options_.count;
      std::copy_n(columns_.scaling.data(), pattern_.cols, old_scaling());
      Moved columns;
      kernels_.relax(columns_.side(), options_.omega, 1, columns);
      errors[it] = rows.after + columns.before;
      bool finite = std::isfinite(errors[it]) && std::isfinite(columns.after);
      for (const Revived& column : revived_) finite = finite && std::isfinite(column.marginal);
      if (!finite) {
        errors[it] = std::numeric_limits<double>::infinity();
        break;
      }
      if (last || errors[it] <= options_.tol) {
        for (std::int64_t j = 0; j < pattern_.cols; ++j) column_sums[j] = columns_.sums.data()[j] * old_scaling()[j];
        if (values != nullptr) parallel_for(threads_, parts_, [&](std::int64_t part, int) { write(part, values); });
      }
      if (errors[it] <= options_.tol) break;
      for (const auto& [j, marginal] : revived_) {
        double& F = columns_.F.data()[j];
        columns_.new_F.data()[j] = F + options_.omega * (columns_.log_mass.data()[j] - marginal);
      }
      std::copy_n(columns_.new_F.data(), pattern_.cols, columns_.F.data());
      moved = true;
      rebase =
          !revived_.empty() || std::max({columns.highest, -columns.lowest, rows.highest, -rows.lowest}) > kScalingLimit;
    }
    std::fill(errors + std::min(it + 1, options_.count), errors + options_.count,
              std::numeric_limits<double>::quiet_NaN());
    for (std::int64_t i = 0; i < pattern_.rows; ++i) f[i] = rows_.F.data()[i] / kappa_;
    for (std::int64_t j = 0; moved && j < pattern_.cols; ++j) g[j] = columns_.F.data()[j] / kappa_;
  }

 private:
  struct Revived {
    std::int64_t j;
    double marginal;  // log2
  };
  struct Potentials {
    Potentials(std::int64_t n_, const double* masses)
        : n(n_),
          mass(padded(n)),
          log_mass(padded(n)),
          sums(padded(n)),
          base(padded(n)),
          F(padded(n)),
          new_F(padded(n)),
          scaling(padded(n)),
          old_scaling(padded(n)) {
      for (std::int64_t i = 0; i < padded(n); ++i) {
        mass.data()[i] = i < n ? masses[i] : 1;
        log_mass.data()[i] = i < n ? std::log2(masses[i]) : 0;
        sums.data()[i] = scaling.data()[i] = 1;
        base.data()[i] = F.data()[i] = 0;
      }
    }
    Side side(std::int64_t begin, std::int64_t end) const {
      return {log_mass.data() + begin, mass.data() + begin,  sums.data() + begin,    base.data() + begin,
              F.data() + begin,        new_F.data() + begin, scaling.data() + begin, padded(end - begin)};
    }
    Side side() const { return side(0, n); }
    std::int64_t n;
    Buffer<double> mass, log_mass, sums, base, F, new_F, scaling, old_scaling;
  };

  double* old_scaling() const { return columns_.old_scaling.data(); }

  void pass(std::int64_t part, bool rebase) {
    const std::int64_t begin = bounds_[part], end = bounds_[part + 1];
    double* const kernel = kernel_.data();
    const double* const scaling = columns_.scaling.data();
    if (rebase) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t k0 = pattern_.starts[i], k1 = pattern_.starts[i + 1];
        double largest = -std::numeric_limits<double>::infinity();
        for (std::int64_t k = k0; k < k1; ++k) {
          kernel[k] = columns_.base.data()[pattern_.columns[k]] - kappa_ * costs_[k];
          largest = std::max(largest, kernel[k]);
        }
        for (std::int64_t k = k0; k < k1; ++k) kernel[k] -= largest;
        rows_.base.data()[i] = -largest;  // not finite if the row has no entry, and neither is what follows
      }
      const std::int64_t k0 = pattern_.starts[begin], k1 = pattern_.starts[end];
      kernels_.exp2(kernel + k0, k1 - k0, kernel + k0);
    }
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t k = pattern_.starts[i];
      rows_.sums.data()[i] = row_dot(kernel + k, pattern_.columns + k, pattern_.starts[i + 1] - k, scaling);
    }
    Moved& moved = part_moved_[part] = {};
    kernels_.relax(rows_.side(begin, end), options_.omega, 1, moved);
    if (rebase) moved.lowest = moved.highest = 0;
    std::copy_n(rows_.new_F.data() + begin, end - begin, rows_.F.data() + begin);
    double* const sums = part_sums_.data() + part * padded(pattern_.cols);
    std::fill_n(sums, pattern_.cols, 0.0);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t k = pattern_.starts[i];
      add_row(kernel + k, pattern_.columns + k, pattern_.starts[i + 1] - k, rows_.scaling.data()[i], sums);
    }
  }

  void add_parts() {
    double* const sums = columns_.sums.data();
    std::copy_n(part_sums_.data(), pattern_.cols, sums);
    for (std::int64_t part = 1; part < parts_; ++part) {
      const double* const from = part_sums_.data() + part * padded(pattern_.cols);
      for (std::int64_t j = 0; j < pattern_.cols; ++j) sums[j] += from[j];
    }
  }

  // Columns whose entries are about the smallest numbers or less get a log-sum-exp of their own.
  void revive() {
    revived_.clear();
    constexpr double kTiny = 1e-290;
    for (std::int64_t j = 0; j < pattern_.cols; ++j)
      if (columns_.sums.data()[j] <= kTiny) revived_.push_back({j, -std::numeric_limits<double>::infinity()});
    if (revived_.empty()) return;
    std::vector<double> marginal(static_cast<std::size_t>(pattern_.cols), revived_.front().marginal);
    for (std::int64_t i = 0; i < pattern_.rows; ++i)
      for (std::int64_t k = pattern_.starts[i]; k < pattern_.starts[i + 1]; ++k) {
        const std::int64_t j = pattern_.columns[k];
        if (columns_.sums.data()[j] > kTiny) continue;
        const double z = rows_.F.data()[i] + columns_.F.data()[j] - kappa_ * costs_[k];
        const double high = std::max(z, marginal[j]), low = std::min(z, marginal[j]);
        if (high > -std::numeric_limits<double>::infinity()) marginal[j] = high + std::log2(1 + std::exp2(low - high));
      }
    for (Revived& column : revived_) {
      column.marginal = marginal[column.j];                                 // not finite if the column has no entry
      columns_.sums.data()[column.j] = std::numeric_limits<double>::min();  // nothing, but it has a logarithm
    }
  }

  void write(std::int64_t part, double* values) const {
    for (std::int64_t i = bounds_[part]; i < bounds_[part + 1]; ++i) {
      const double u = rows_.scaling.data()[i];
      for (std::int64_t k = pattern_.starts[i]; k < pattern_.starts[i + 1]; ++k)
        values[k] = kernel_.data()[k] * (u * old_scaling()[pattern_.columns[k]]);
    }
  }

  const SparseView& pattern_;
  const double* costs_;
  const SparseSinkhornOptions& options_;
  const PassKernels<double>& kernels_ = pass_kernels<double>();
  double kappa_;
  std::vector<std::int64_t> bounds_;
  std::int64_t parts_;
  int threads_;
  Buffer<double> kernel_;
  Potentials rows_, columns_;
  Buffer<double> part_sums_;
  std::vector<Moved> part_moved_;
  std::vector<Revived> revived_;
};

}  // namespace
}  // namespace detail

void sparse_sinkhorn(const Execution& exec, const SparseView& pattern, const double* costs, const double* a,
                     const double* b, double* f, double* g, double* errors, double* values, double* column_sums,
                     const SparseSinkhornOptions& options) {
  QUADRIC_REQUIRE(options.reg > 0, "reg must be positive");
  QUADRIC_REQUIRE(options.count >= 0, "count must not be negative");
  if (pattern.rows == 0 || pattern.cols == 0) return;
  detail::SparseSinkhorn(exec, pattern, costs, a, b, options).run(f, g, errors, values, column_sums);
}

}  // namespace quadric::transport
