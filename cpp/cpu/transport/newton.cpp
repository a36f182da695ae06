#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "buffer.hpp"
#include "quadric/transport.hpp"
#include "require.hpp"
#include "threads.hpp"
#include "transport/sparse_parts.hpp"

namespace quadric::transport {
namespace {

// The largest value that may be dropped with all that are smaller, to within an eighth of an octave: masses are summed
// by the leading bits of the values.
struct Cut {
  double below = 0;  // values less than this go
  double dropped = 0;
};
std::size_t leading_bits(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits >> 49;
}
Cut cut(const double* values, std::int64_t count, double drop) {
  std::vector<double> mass(std::size_t{1} << 14, 0.0);
  for (std::int64_t k = 0; k < count; ++k) mass[leading_bits(values[k]) & 0x3fff] += values[k];
  Cut result;
  std::size_t bin = 0;
  while (bin < mass.size() && result.dropped + mass[bin] <= drop) result.dropped += mass[bin++];
  const std::uint64_t bits = static_cast<std::uint64_t>(bin) << 49;
  std::memcpy(&result.below, &bits, sizeof bits);
  return result;
}

// S, and out = (D - S^T diag(1 / a) S) p.
class Complement {
 public:
  Complement(const Execution& exec, const SparseView& pattern, const double* values, const double* a, double below)
      : n_(pattern.rows),
        m_(pattern.cols),
        inverse_(static_cast<std::size_t>(n_)),
        starts_(static_cast<std::size_t>(n_) + 1),
        values_(pattern.starts[n_] + 1),
        columns_(pattern.starts[n_] + 1) {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < n_; ++i) {
      inverse_[i] = 1 / a[i];
      for (std::int64_t k = pattern.starts[i]; k < pattern.starts[i + 1]; ++k) {
        // Written in any case: a branch could not be foretold.
        columns_.data()[count] = pattern.columns[k];
        values_.data()[count] = values[k];
        count += static_cast<std::int64_t>(values[k] >= below) & static_cast<std::int64_t>(values[k] > 0);
      }
      starts_[i + 1] = count;
    }
    bounds_ = detail::sparse_parts({n_, m_, starts_.data(), columns_.data()});
    parts_ = static_cast<std::int64_t>(bounds_.size()) - 1;
    threads_ = thread_count(exec, parts_);
    sums_.resize(static_cast<std::size_t>(parts_ * m_));
  }
  std::int64_t kept() const { return starts_.back(); }

  // out -= diagonal of S^T diag(1 / a) S.
  void subtract_diagonal(double* out) const {
    for (std::int64_t i = 0; i < n_; ++i)
      for (std::int64_t k = starts_[i]; k < starts_[i + 1]; ++k)
        out[columns_.data()[k]] -= values_.data()[k] * values_.data()[k] * inverse_[i];
  }

  void multiply(const double* diagonal, const double* p, double* out) {
    parallel_for(threads_, parts_, [&](std::int64_t part, int) {
      double* const sums = sums_.data() + part * m_;
      std::fill_n(sums, m_, 0.0);
      const std::int32_t* const columns = columns_.data();
      const double* const values = values_.data();
      for (std::int64_t i = bounds_[part]; i < bounds_[part + 1]; ++i) {
        const std::int64_t k = starts_[i], count = starts_[i + 1] - k;
        const double t = detail::row_dot(values + k, columns + k, count, p);
        detail::add_row(values + k, columns + k, count, t * inverse_[i], sums);
      }
    });
    for (std::int64_t j = 0; j < m_; ++j) out[j] = diagonal[j] * p[j] - sums_[j];
    for (std::int64_t part = 1; part < parts_; ++part)
      for (std::int64_t j = 0; j < m_; ++j) out[j] -= sums_[part * m_ + j];
  }

 private:
  std::int64_t n_, m_, parts_ = 1;
  int threads_ = 1;
  std::vector<double> inverse_, sums_;
  std::vector<std::int64_t> starts_, bounds_;
  Buffer<double> values_;  // of the kept entries
  Buffer<std::int32_t> columns_;
};

double dot(const std::vector<double>& x, const double* y) {
  constexpr std::size_t kWays = 8;  // sums, against the latency of an addition
  double sum[kWays] = {};
  std::size_t j = 0;
  for (; j + kWays <= x.size(); j += kWays)
    for (std::size_t w = 0; w < kWays; ++w) sum[w] += x[j + w] * y[j + w];
  for (; j < x.size(); ++j) sum[0] += x[j] * y[j];
  for (std::size_t w = 1; w < kWays; ++w) sum[0] += sum[w];
  return sum[0];
}

}  // namespace

NewtonReport newton_direction(const Execution& exec, const SparseView& pattern, const double* values, const double* a,
                              const double* c, const double* gradient, double* direction,
                              const NewtonOptions& options) {
  QUADRIC_REQUIRE(options.shift >= 0, "shift must not be negative");
  QUADRIC_REQUIRE(options.drop >= 0, "drop must not be negative");
  const std::size_t m = static_cast<std::size_t>(pattern.cols);
  NewtonReport report;
  std::fill_n(direction, m, 0.0);
  if (pattern.rows == 0 || m == 0) return report;
  const Cut smallest = cut(values, pattern.starts[pattern.rows], options.drop);
  Complement complement(exec, pattern, values, a, smallest.below);
  report.kept = complement.kept();
  report.dropped = smallest.dropped;

  std::vector<double> diagonal(c, c + m), inverse(c, c + m), r(gradient, gradient + m), z(m), p(m), product(m);
  for (double& x : diagonal) x *= 1 + options.shift;
  complement.subtract_diagonal(inverse.data());
  // A column of one entry that is all of its row has no curvature of its own; the preconditioner needs some.
  for (std::size_t j = 0; j < m; ++j) inverse[j] = 1 / std::max(inverse[j] + options.shift * c[j], 1e-3 * c[j]);
  for (std::size_t j = 0; j < m; ++j) p[j] = z[j] = inverse[j] * r[j];
  const double scale = std::sqrt(dot(r, r.data()));
  double rz = dot(r, z.data());
  report.residual = scale > 0 ? 1 : 0;
  while (report.residual > options.tol && report.iterations < options.max_iter && rz > 0) {
    complement.multiply(diagonal.data(), p.data(), product.data());
    const double curvature = dot(p, product.data());
    if (!(curvature > 0)) break;  // rounding has used up what the shift and the gauge leave
    const double step = rz / curvature;
    for (std::size_t j = 0; j < m; ++j) {
      direction[j] += step * p[j];
      r[j] -= step * product[j];
      z[j] = inverse[j] * r[j];
    }
    ++report.iterations;
    const double next = dot(r, z.data());
    for (std::size_t j = 0; j < m; ++j) p[j] = z[j] + next / rz * p[j];
    rz = next;
    report.residual = std::sqrt(dot(r, r.data())) / scale;
  }
  for (std::size_t j = 0; j < m; ++j) diagonal[j] = c[j];
  complement.multiply(diagonal.data(), direction, product.data());
  for (std::size_t j = 0; j < m; ++j) report.predicted += direction[j] * (gradient[j] - product[j] / 2);
  return report;
}

}  // namespace quadric::transport
