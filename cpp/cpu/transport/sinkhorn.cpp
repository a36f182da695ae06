#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "quadric/transport.hpp"
#include "require.hpp"
#include "threads.hpp"
#include "transport/options.hpp"
#include "transport/source.hpp"

namespace quadric::transport {
namespace detail {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// The largest log2 of a scaling, and of what a pass may meet, before the potentials are taken apart anew.
template <class T>
constexpr double kScalingLimit = sizeof(T) == 4 ? 16 : 200;
template <class T>
constexpr double kPassLimit = sizeof(T) == 4 ? 60 : 500;

// One problem, in bits.
template <class T>
class Sinkhorn {
 public:
  Sinkhorn(const Execution& exec, const Cost<T>& cost, const double* a, const double* b, double omega,
           const SinkhornOptions& options)
      : source_(cost, options.reg),
        options_(options),
        omega_(omega),
        parts_(part_count(source_.n(), source_.m())),
        threads_(std::min(thread_count(exec, parts_), thread_count(exec, source_.n() * source_.m() >> 14))),
        columns_(source_),
        mass_(padded(source_.n())),
        log_mass_(padded(source_.n())),
        F_(padded(source_.n())),
        shift_(padded(source_.n())),
        column_mass_(source_.width()),
        column_log_mass_(source_.width()),
        column_sums_(source_.width()),
        next_(source_.width()),
        part_sums_(parts_ * source_.width()),
        part_error_(static_cast<std::size_t>(parts_)),
        part_lowest_(static_cast<std::size_t>(parts_)),
        part_highest_(static_cast<std::size_t>(parts_)) {
    const auto masses = [](const double* from, std::int64_t count, const Buffer<double>& mass,
                           const Buffer<double>& log_mass) {
      for (std::int64_t i = 0; i < padded(count); ++i) {
        mass.data()[i] = i < count ? from[i] : 1;
        log_mass.data()[i] = i < count ? std::log2(from[i]) : 0;
      }
    };
    masses(a, source_.n(), mass_, log_mass_);
    masses(b, source_.m(), column_mass_, column_log_mass_);
    if (options.count > 1) source_.keep(threads_, parts_);
    for (int t = 0; t < threads_; ++t) workers_.emplace_back(new Worker(source_.rows_at_once(), source_.width()));
  }

  void run(double* f, double* g, double* errors) {
    const std::int64_t n = source_.n(), m = source_.m();
    for (std::int64_t i = 0; i < n; ++i) F_.data()[i] = f[i] * source_.kappa();
    for (std::int64_t j = 0; j < m; ++j) columns_.potential.data()[j] = g[j] * source_.kappa();
    bool rebase = true, moved = false;
    std::int64_t it = 0;
    for (; it < options_.count; ++it) {
      if (rebase) columns_.rebase(source_);
      const double row_error = pass(rebase);
      add_parts();
      const bool dead = revive();
      Moved columns;
      kernels_.relax({column_log_mass_.data(), column_mass_.data(), column_sums_.data(), columns_.base.data(),
                      columns_.potential.data(), next_.data(), columns_.scaling.data(), source_.width()},
                     omega_, options_.theta_b, columns);
      errors[it] = row_error + columns.before;
      bool finite = std::isfinite(errors[it]) && std::isfinite(columns.after);
      for (const auto& [j, potential] : revived_) finite = finite && std::isfinite(potential);
      if (!finite) {
        errors[it] = kInfinity;
        break;
      }
      if (errors[it] <= options_.tol) break;
      std::copy_n(next_.data(), m, columns_.potential.data());
      for (const auto& [j, potential] : revived_) columns_.potential.data()[j] = potential;
      moved = true;
      columns_.weigh();
      const double widest = std::max(columns.highest, -columns.lowest);
      rebase = dead || std::max(widest, std::max(highest_, -lowest_)) > kScalingLimit<T> ||
               columns.bound + widest - lowest_ > kPassLimit<T>;
    }
    for (std::int64_t i = 0; i < n; ++i) f[i] = F_.data()[i] / source_.kappa();
    for (std::int64_t j = 0; moved && j < m; ++j) g[j] = columns_.potential.data()[j] / source_.kappa();
  }

 private:
  struct Worker {
    Worker(std::int64_t rows, std::int64_t width) : tile(rows, width), sums(width) {}
    Tile<T> tile;
    Buffer<T> sums;
  };

  // E, the new F and the sums of columns by parts; returns the error of the rows.
  double pass(bool rebase) {
    parallel_for(threads_, parts_, [&](std::int64_t part, int worker) { pass_part(part, *workers_[worker], rebase); });
    double error = 0;
    lowest_ = highest_ = 0;
    for (std::int64_t part = 0; part < parts_; ++part) {
      error += part_error_[part];
      lowest_ = std::min(lowest_, part_lowest_[part]);
      highest_ = std::max(highest_, part_highest_[part]);
    }
    heaviest_ = std::exp2(highest_);
    if (rebase) lowest_ = highest_ = 0;  // the shifts have taken the scalings over
    return error;
  }

  void pass_part(std::int64_t part, const Worker& worker, bool rebase) {
    const Tile<T>& tile = worker.tile;
    const std::int64_t width = source_.width();
    double* const part_sums = part_sums_.data() + part * width;
    std::fill_n(part_sums, width, 0.0);
    T* const sums = sizeof(T) == 8 ? reinterpret_cast<T*>(part_sums) : worker.sums.data();
    if (sizeof(T) == 4) std::fill_n(sums, width, T(0));
    const auto [begin, end] = part_range(source_.n(), parts_, part);
    // One tile's rows, padded for the vector units.
    alignas(64) double row_sums[kMaxRows], base[kMaxRows], F[kMaxRows], new_F[kMaxRows], scaling[kMaxRows],
        mass[kMaxRows], log_mass[kMaxRows];
    T weight[kMaxRows];
    Moved moved;
    std::int64_t added = 0;
    bool infeasible = false;  // a row without an entry
    for (std::int64_t first = begin; first < end; first += tile.rows) {
      const std::int64_t count = std::min(tile.rows, end - first);
      source_.begin(first, count, tile.row(0), tile.stride);
      for (std::int64_t r = 0; r < padded(count); ++r) {
        const bool real = r < count;
        mass[r] = real ? mass_.data()[first + r] : 1;
        log_mass[r] = real ? log_mass_.data()[first + r] : 0;
        F[r] = real ? F_.data()[first + r] : 0;
        row_sums[r] = scaling[r] = 1;
        base[r] = 0;
      }
      if (!rebase)
        source_.exponentials(first, count, shift_.data() + first, columns_.G.data(), columns_.weight.data(),
                             tile.row(0), tile.stride, row_sums);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t i = first + r;
        T& shift = shift_.data()[i];
        if (rebase || !(row_sums[r] > kTiny && row_sums[r] < kHuge)) {
          if (!rebase) source_.begin(i, 1, tile.row(r), tile.stride);
          shift = -std::nearbyint(source_.exponents(i, columns_.G.data(), tile.row(r), tile.t.data()));
          if (!std::isfinite(shift)) infeasible = true;
          row_sums[r] = kernels_.powers(tile.t.data(), shift, columns_.weight.data(), width, tile.row(r));
        }
        base[r] = static_cast<double>(shift) + source_.row_offset(i);
      }
      kernels_.relax({log_mass, mass, row_sums, base, F, new_F, scaling, padded(count)}, omega_, options_.theta_a,
                     moved);
      for (std::int64_t r = 0; r < count; ++r) {
        F_.data()[first + r] = new_F[r];
        weight[r] = static_cast<T>(scaling[r]);
        if (rebase) shift_.data()[first + r] += static_cast<T>(std::nearbyint(new_F[r] - base[r]));
      }
      kernels_.add_rows(tile.row(0), tile.stride, count, weight, width, sums);
      if (sizeof(T) == 4 && ((added += count) >= kFlush || first + count == end)) {
        for (std::int64_t j = 0; j < width; ++j) part_sums[j] += static_cast<double>(sums[j]);
        std::fill_n(sums, width, T(0));
        added = 0;
      }
    }
    part_error_[part] = infeasible ? kInfinity : moved.after;
    part_lowest_[part] = moved.lowest;
    part_highest_[part] = moved.highest;
  }

  void add_parts() {
    const std::int64_t width = source_.width(), piece = 4096, pieces = (width + piece - 1) / piece;
    parallel_for(std::min<int>(threads_, static_cast<int>(std::min<std::int64_t>(pieces, 1 << 10))), pieces,
                 [&](std::int64_t p, int) {
                   const std::int64_t begin = p * piece, count = std::min(piece, width - begin);
                   double* const sums = column_sums_.data() + begin;
                   std::copy_n(part_sums_.data() + begin, count, sums);
                   for (std::int64_t part = 1; part < parts_; ++part) {
                     const double* const from = part_sums_.data() + part * width + begin;
                     for (std::int64_t j = 0; j < count; ++j) sums[j] += from[j];
                   }
                 });
    std::fill(column_sums_.data() + source_.m(), column_sums_.data() + width, 1.0);
  }

  // Columns whose entries are about the smallest numbers or less, before rows were weighted, get a log-sum-exp of their
  // own; true if there are any.
  bool revive() {
    revived_.clear();
    for (std::int64_t j = 0; j < source_.m(); ++j) {
      double& sum = column_sums_.data()[j];
      if (sum > kTiny * heaviest_ || std::isnan(sum)) continue;
      double largest = -kInfinity, total = 0;
      for (std::int64_t i = 0; i < source_.n(); ++i) {
        const double z = F_.data()[i] - source_.kappa() * source_.entry(i, j);
        if (z > largest) {
          total = total * std::exp2(largest - z) + 1;
          largest = z;
        } else if (z > -kInfinity) {
          total += std::exp2(z - largest);
        }
      }
      const double G = columns_.potential.data()[j];
      const double marginal = G + largest + std::log2(total);  // not finite if no entry is
      const double aim = options_.theta_b * (G + column_log_mass_.data()[j] - marginal);
      revived_.emplace_back(j, G + omega_ * (aim - G));
      sum = std::numeric_limits<double>::min();  // as good as nothing, and it has a logarithm
    }
    return !revived_.empty();
  }

  // Sums outside these bounds may have lost entries or be wrong: the row is done again relative to its largest entry.
  static constexpr double kTiny = sizeof(T) == 4 ? 1e-30 : 1e-290;
  static constexpr double kHuge = sizeof(T) == 4 ? 1e30 : 1e290;

  Source<T> source_;
  const SinkhornOptions& options_;
  const PassKernels<T>& kernels_ = pass_kernels<T>();
  double omega_;
  std::int64_t parts_;
  int threads_;
  Columns<T> columns_;
  Buffer<double> mass_, log_mass_, F_;
  Buffer<T> shift_;
  Buffer<double> column_mass_, column_log_mass_, column_sums_, next_, part_sums_;
  std::vector<double> part_error_, part_lowest_, part_highest_;
  double lowest_ = 0, highest_ = 0, heaviest_ = 1;
  std::vector<std::pair<std::int64_t, double>> revived_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace
}  // namespace detail

template <class T>
void sinkhorn(const Execution& exec, std::int64_t problems, const Cost<T>* cost, const double* a, const double* b,
              const double* omega, double* f, double* g, double* errors, const SinkhornOptions& options) {
  detail::check_options(options);
  for (std::int64_t p = 0; p < problems; ++p) {
    detail::check(cost[p]);
    QUADRIC_REQUIRE(cost[p].rows() == cost[0].rows() && cost[p].cols() == cost[0].cols(),
                    "cost must have the same shape in all problems");
  }
  if (problems == 0 || cost[0].rows() == 0 || cost[0].cols() == 0) return;
  const std::int64_t n = cost[0].rows(), m = cost[0].cols();
  const bool outer = problems > 1 && (problems >= thread_count(exec, problems) || n * m < 1 << 16);
  Execution inner = exec;
  if (outer) inner.n_threads = 1;
  parallel_try(outer ? thread_count(exec, problems) : 1, problems, [&](std::int64_t p, int) {
    std::fill_n(errors + p * options.count, options.count, std::numeric_limits<double>::quiet_NaN());
    if (!(omega[p] > 0)) return;
    detail::Sinkhorn<T> solver(inner, cost[p], a + p * n, b + p * m, omega[p], options);
    solver.run(f + p * n, g + p * m, errors + p * options.count);
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                                     \
  template QUADRIC_API void sinkhorn(const Execution&, std::int64_t, const Cost<T>*, const double*, const double*, \
                                     const double*, double*, double*, double*, const SinkhornOptions&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::transport
