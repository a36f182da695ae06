#include <algorithm>
#include <vector>

#include "quadric/sweep.hpp"
#include "sweep/arguments.hpp"
#include "sweep/panel.hpp"
#include "sweep/workspace.hpp"
#include "threads.hpp"

namespace quadric::sweep {
namespace {

using detail::kPanelRows;

// One grid for all of W: the range of all entries, shrunk to the least error over all entries.
template <class T>
void grid_of_tensor(int n_threads, const detail::Job<T>& job, detail::Workspace<T>& workspace, std::int64_t n_panels) {
  const auto& kernels = detail::panel_kernels<T>();
  T low = 0;
  T high = 0;
  for (std::int64_t i = 0; i < job.m; ++i) {
    for (std::int64_t j = 0; j < job.n; ++j) {
      const T w = job.w[i * job.w_row + j * job.w_col];
      low = std::min(low, w);
      high = std::max(high, w);
    }
  }
  if (job.symmetric) {
    high = std::max(-low, high);
    low = -high;
  }
  int best = 0;
  if (job.mse && high > low) {
    const std::int64_t steps = job.steps;
    std::vector<double> errors(static_cast<std::size_t>(n_panels * steps));
    parallel_for(n_threads, n_panels, [&](std::int64_t panel, int worker) {
      kernels.grid_errors(job, workspace.panels()[worker], panel, low, high, errors.data() + panel * steps);
    });
    std::vector<double> sums(static_cast<std::size_t>(steps), 0.0);
    for (std::int64_t panel = 0; panel < n_panels; ++panel)
      for (std::int64_t step = 0; step < steps; ++step) sums[step] += errors[panel * steps + step];
    best = static_cast<int>(std::min_element(sums.begin(), sums.end()) - sums.begin());
  }
  T scale = 0;
  T zero = 0;
  kernels.range_to_grid(job, low, high, best, &scale, &zero);
  std::fill_n(job.scales, job.m, scale);
  std::fill_n(job.zeros, job.m, static_cast<std::uint8_t>(zero));
}

}  // namespace

template <class T>
void grid(const Execution& exec, MatrixView<const T> W, std::int64_t group_size, bool per_tensor,
          const GridOptions& options, MatrixView<T> scales, MatrixView<std::uint8_t> zeros) {
  check_grid(W, group_size, per_tensor, options, scales, zeros);
  if (W.empty()) return;

  detail::Job<T> job = detail::make_job(W, options, scales, zeros);
  job.group_size = group_size;
  const std::int64_t n_panels = (W.rows + kPanelRows<T> - 1) / kPanelRows<T>;
  const int n_threads = thread_count(exec, n_panels);
  detail::Workspace<T> workspace(n_threads, 0, {std::min(group_size, W.cols), 1, 1});
  if (per_tensor) {
    grid_of_tensor(n_threads, job, workspace, n_panels);
    return;
  }
  const auto& kernels = detail::panel_kernels<T>();
  parallel_for(n_threads, n_panels,
               [&](std::int64_t panel, int worker) { kernels.grid(job, workspace.panels()[worker], panel); });
}

template QUADRIC_API void grid(const Execution&, MatrixView<const float>, std::int64_t, bool, const GridOptions&,
                               MatrixView<float>, MatrixView<std::uint8_t>);
template QUADRIC_API void grid(const Execution&, MatrixView<const double>, std::int64_t, bool, const GridOptions&,
                               MatrixView<double>, MatrixView<std::uint8_t>);

}  // namespace quadric::sweep
