#include "quadric/sweep.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "require.hpp"
#include "sweep/arguments.hpp"
#include "sweep/panel.hpp"
#include "sweep/workspace.hpp"
#include "threads.hpp"

namespace quadric::sweep {
namespace {

using detail::Job;
using detail::kPanelRows;
using detail::Panel;
using detail::Widths;

// Columns of a block product when nothing else asks for a width: wide enough to reuse D from L2, narrow enough that
// the products inside the block stay few.
constexpr std::int64_t kBlock = 64;

template <class T>
void check(const MatrixView<const T>& W, const Factor<T>& factor, const SweepOptions& options,
           const SweepOutput<T>& output) {
  QUADRIC_REQUIRE(factor.R.empty() || (factor.R.rows == W.cols && factor.R.cols == W.cols),
                  "factor.R must be n x n, n the columns of W");
  check_sweep(W, factor.R.empty(), factor.order, options, output);
}

// Where the sweep may be cut into blocks: no group, mask block, pattern or stale block is cut in two.
std::vector<std::int64_t> plan_blocks(std::int64_t n, const SweepOptions& options) {
  std::vector<std::int64_t> blocks = {0};
  std::int64_t reach = 0;  // the furthest column that something begun so far still needs
  const std::int64_t group = options.grid.max_code > 0 ? options.group_size : 0;
  for (std::int64_t j = 0; j < n; ++j) {
    if (j >= reach && j - blocks.back() >= kBlock) blocks.push_back(j);
    if (group > 0 && options.stale_block == 0 && j % group == 0) reach = std::max(reach, j + group);
    if (group > 0 && options.stale_block > 0 && j % options.stale_block == 0) {
      const std::int64_t last = (std::min(j + options.stale_block, n) - 1) / group * group;
      if (last >= j) reach = std::max(reach, last + group);
    }
    if (options.sparsity > 0 && j % options.mask_block == 0) reach = std::max(reach, j + options.mask_block);
    if (options.out_of > 0 && j % options.out_of == 0) reach = std::max(reach, j + options.out_of);
  }
  if (n > 0) blocks.push_back(n);
  return blocks;
}

// Sets `kept` of columns [from, to) in all panels: 0 for the `pruned` lowest scores, ties by row, then by column.
// Scores are not negative, so their bits order like the numbers: two or four passes of 16 bits each find the threshold.
template <class T>
void threshold_all_rows(int n_threads, std::vector<Panel<T>>& panels, std::int64_t m, std::int64_t offset,
                        std::int64_t columns, std::int64_t pruned) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  constexpr std::int64_t P = kPanelRows<T>;
  constexpr int kDigit = 16;
  const auto n_panels = static_cast<std::int64_t>(panels.size());
  const auto rows_of = [&](std::int64_t panel) { return std::min(P, m - panel * P); };
  const auto bits_at = [&](const Panel<T>& panel, std::int64_t j, std::int64_t i) {
    Bits bits;
    std::memcpy(&bits, panel.score + (offset + j) * P + i, sizeof bits);
    return bits;
  };

  Bits threshold = 0;  // the largest number with at most `pruned` scores below it
  std::int64_t left = pruned;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(n_threads) << kDigit);
  for (int shift = static_cast<int>(sizeof(T)) * 8 - kDigit; shift >= 0; shift -= kDigit) {
    std::fill(counts.begin(), counts.end(), 0);
    const Bits prefix = shift + kDigit < static_cast<int>(sizeof(T)) * 8 ? ~Bits(0) << (shift + kDigit) : 0;
    parallel_for(n_threads, n_panels, [&](std::int64_t panel, int worker) {
      std::int64_t* count = counts.data() + (static_cast<std::size_t>(worker) << kDigit);
      for (std::int64_t j = 0; j < columns; ++j) {
        for (std::int64_t i = 0; i < rows_of(panel); ++i) {
          const Bits bits = bits_at(panels[panel], j, i);
          if ((bits & prefix) == threshold) ++count[(bits >> shift) & ((Bits(1) << kDigit) - 1)];
        }
      }
    });
    Bits digit = 0;
    for (;; ++digit) {
      std::int64_t here = 0;
      for (int worker = 0; worker < n_threads; ++worker)
        here += counts[(static_cast<std::size_t>(worker) << kDigit) + digit];
      if (here > left || digit == (Bits(1) << kDigit) - 1) break;
      left -= here;
    }
    threshold |= digit << shift;
  }

  // `left` of the scores equal to the threshold go too: whole panels, then one by one.
  std::vector<std::int64_t> ties(static_cast<std::size_t>(n_panels));
  parallel_for(n_threads, n_panels, [&](std::int64_t panel, int) {
    for (std::int64_t j = 0; j < columns; ++j) {
      for (std::int64_t i = 0; i < P; ++i) {
        const Bits bits = bits_at(panels[panel], j, i);
        panels[panel].kept[(offset + j) * P + i] = bits < threshold ? T(0) : T(1);
        if (i < rows_of(panel) && bits == threshold) ++ties[panel];
      }
    }
  });
  for (std::int64_t panel = 0; panel < n_panels && left > 0; ++panel) {
    for (std::int64_t i = 0; i < rows_of(panel) && left > 0 && ties[panel] > 0; ++i) {
      for (std::int64_t j = 0; j < columns && left > 0; ++j) {
        if (bits_at(panels[panel], j, i) != threshold) continue;
        panels[panel].kept[(offset + j) * P + i] = T(0);
        --left;
      }
    }
  }
}

// Unstructured masks over all rows: every panel goes through the mask blocks in step with the others.
template <class T>
void sweep_in_step(int n_threads, const Job<T>& job, const std::vector<std::int64_t>& blocks,
                   std::vector<Panel<T>>& panels) {
  const auto& kernels = detail::panel_kernels<T>();
  const auto n_panels = static_cast<std::int64_t>(panels.size());
  const auto pruned_before = [&](std::int64_t columns) {
    return static_cast<std::int64_t>(job.sparsity * static_cast<double>(job.m * columns) + 0.5);
  };
  for (std::size_t k = 0; k + 1 < blocks.size(); ++k) {
    const std::int64_t begin = blocks[k];
    const std::int64_t end = blocks[k + 1];
    for (std::int64_t a = begin; a < end;) {
      const std::int64_t b = std::min((a / job.mask_block + 1) * job.mask_block, end);
      parallel_for(n_threads, n_panels, [&](std::int64_t panel, int) {
        if (a == begin) kernels.begin_block(job, panels[panel], panel, begin, end);
        kernels.scores(job, panels[panel], begin, a, b);
      });
      threshold_all_rows(n_threads, panels, job.m, a - begin, b - a, pruned_before(b) - pruned_before(a));
      parallel_for(n_threads, n_panels, [&](std::int64_t panel, int) {
        kernels.sweep_columns(job, panels[panel], panel, begin, a, b);
        if (b == end) kernels.end_block(job, panels[panel], panel, begin, end);
      });
      a = b;
    }
  }
}

}  // namespace

template <class T>
void sweep(const Execution& exec, MatrixView<const T> W, const Factor<T>& factor, const SweepOptions& options,
           const SweepOutput<T>& output) {
  check(W, factor, options, output);
  if (W.rows == 0) return;
  if (W.cols == 0) {
    if (output.loss != nullptr) std::fill_n(output.loss, W.rows, 0.0);
    return;
  }
  Job<T> job = detail::make_job(W, options.grid, output.scales, output.zeros);
  job.codes = output.codes.data;
  job.weights = output.weights.data;
  job.mask = output.mask.data;
  job.loss = output.loss;
  if (options.feedback || output.loss != nullptr) {
    job.r = factor.R.data;
    job.r_row = factor.R.row_stride;
    job.r_col = factor.R.col_stride;
  }
  job.order = factor.order;
  job.dead = factor.dead;
  job.group = options.group;
  job.group_size = options.group_size;
  job.stale_block = options.stale_block;
  job.keep = options.keep;
  job.out_of = options.out_of;
  job.sparsity = options.sparsity;
  job.mask_block = options.mask_block;
  job.per_row = options.per_row;
  job.feedback = options.feedback;

  const std::vector<std::int64_t> blocks = plan_blocks(W.cols, options);
  Widths widths = {1, std::max<std::int64_t>(options.out_of, 8), 1};
  for (std::size_t k = 0; k + 1 < blocks.size(); ++k) widths.block = std::max(widths.block, blocks[k + 1] - blocks[k]);
  if (options.group_size > 0) widths.groups = widths.block / options.group_size + 1;

  const std::int64_t n_panels = (W.rows + kPanelRows<T> - 1) / kPanelRows<T>;
  const int n_threads = thread_count(exec, n_panels);
  if (options.sparsity > 0 && !options.per_row) {
    detail::Workspace<T> workspace(n_panels, W.cols, widths);
    sweep_in_step(n_threads, job, blocks, workspace.panels());
    return;
  }
  const auto& kernels = detail::panel_kernels<T>();
  detail::Workspace<T> workspace(n_threads, W.cols, widths);
  parallel_for(n_threads, n_panels, [&](std::int64_t panel, int worker) {
    kernels.run(job, workspace.panels()[worker], panel, blocks.data(), static_cast<std::int64_t>(blocks.size()) - 1);
  });
}

template QUADRIC_API void sweep(const Execution&, MatrixView<const float>, const Factor<float>&, const SweepOptions&,
                                const SweepOutput<float>&);
template QUADRIC_API void sweep(const Execution&, MatrixView<const double>, const Factor<double>&, const SweepOptions&,
                                const SweepOutput<double>&);

}  // namespace quadric::sweep
