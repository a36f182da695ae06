// How a sweep is cut into blocks of columns, and into panels of blocks. Nothing here runs on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "quadric/sweep.hpp"

namespace quadric::cuda::sweep {

constexpr std::int64_t kBlock = 128;  // columns that one kernel sweeps at most

// Depth of the matrix products that update all later columns, at least. Deeper ones touch the sums less often, which
// counts where there are many columns; less deep ones leave less to products within panels and round better.
constexpr std::int64_t kPanel = 256, kDeepPanel = 512, kDeepFrom = 4096;
constexpr std::int64_t kMostPanel = 1024;  // and at most, but for ranges that begin with the panel

// Columns [begin, end) whose current weights are looked at when the sweep reaches `begin`.
struct Range {
  std::int64_t begin, end;
};

struct Plan {
  std::vector<std::int64_t> blocks;  // boundaries, 0 and n included
  std::vector<std::int64_t> panels;  // boundaries, a subset of these
  std::vector<Range> grids, masks;   // where new grids and new masks are due
  // Whether these ranges lie within blocks, whose kernel sees to them. If not, other kernels do before the block in
  // which a range begins; every range begins a block then.
  bool grids_inside = false, masks_inside = false;
};

// The group [first * group_size, last * group_size) of grids that `range.begin` asks for.
inline std::int64_t first_group(const quadric::sweep::SweepOptions& options, std::int64_t begin) {
  return (begin + options.group_size - 1) / options.group_size;
}
inline std::int64_t last_group(const quadric::sweep::SweepOptions& options, std::int64_t begin, std::int64_t n) {
  const std::int64_t unit = options.stale_block > 0 ? options.stale_block : 1;
  return (std::min(begin + unit, n) - 1) / options.group_size + 1;
}

inline std::vector<Range> grid_ranges(std::int64_t n, const quadric::sweep::SweepOptions& options) {
  std::vector<Range> ranges;
  if (options.grid.max_code == 0 || options.group_size == 0) return ranges;
  const std::int64_t unit = options.stale_block > 0 ? options.stale_block : options.group_size;
  for (std::int64_t a = 0; a < n; a += unit) {
    const std::int64_t last = last_group(options, a, n);
    if (first_group(options, a) < last) ranges.push_back({a, std::min(last * options.group_size, n)});
  }
  return ranges;
}

inline std::vector<Range> mask_ranges(std::int64_t n, const quadric::sweep::SweepOptions& options) {
  std::vector<Range> ranges;
  const std::int64_t unit = options.out_of > 0 ? options.out_of : options.sparsity > 0 ? options.mask_block : 0;
  for (std::int64_t a = 0; unit > 0 && a < n; a += unit) ranges.push_back({a, std::min(a + unit, n)});
  return ranges;
}

// How many entries go in the mask range, of `rows` rows together.
inline std::int64_t pruned_in(const quadric::sweep::SweepOptions& options, const Range& range, std::int64_t rows) {
  if (options.out_of > 0) return options.out_of - options.keep;
  const auto before = [&](std::int64_t columns) {
    return static_cast<std::int64_t>(options.sparsity * static_cast<double>(rows * columns) + 0.5);
  };
  return before(range.end) - before(range.begin);
}

inline bool all_rows(const quadric::sweep::SweepOptions& options) { return options.sparsity > 0 && !options.per_row; }

inline bool any_wide(const std::vector<Range>& ranges) {
  return std::any_of(ranges.begin(), ranges.end(), [](const Range& r) { return r.end - r.begin > kBlock; });
}

// Block boundaries, or none where a kind of ranges must first be taken out of the blocks.
inline bool cut_blocks(std::int64_t n, Plan& plan) {
  std::vector<bool> cut(static_cast<std::size_t>(n + 1), false);
  std::vector<int> grids(static_cast<std::size_t>(n + 1), 0), masks = grids;  // how many ranges a cut here would part
  const auto mark = [&](const std::vector<Range>& ranges, bool inside, std::vector<int>& parted) {
    for (const Range& r : ranges) {
      if (!inside) {
        cut[r.begin] = true;
      } else if (r.end - r.begin > 1) {
        ++parted[r.begin + 1];
        --parted[r.end];
      }
    }
    for (std::int64_t j = 1; j <= n; ++j) parted[j] += parted[j - 1];
  };
  mark(plan.grids, plan.grids_inside, grids);
  mark(plan.masks, plan.masks_inside, masks);

  plan.blocks = {0};
  while (plan.blocks.back() < n) {
    const std::int64_t begin = plan.blocks.back();
    std::int64_t end = begin + 1;
    while (end < n && end < begin + kBlock && !cut[end]) ++end;
    const std::int64_t wanted = end;
    if (!cut[end])
      while (end > begin && (grids[end] > 0 || masks[end] > 0)) --end;
    if (end == begin || grids[end] > 0 || masks[end] > 0) {
      if (grids[wanted] > 0) plan.grids_inside = false;
      if (masks[wanted] > 0) plan.masks_inside = false;
      return false;
    }
    plan.blocks.push_back(end);
  }
  return true;
}

inline void cut_panels(std::int64_t n, Plan& plan) {
  std::vector<std::int64_t> reach(static_cast<std::size_t>(n + 1), 0);  // what kernels before the block look at
  if (!plan.grids_inside)
    for (const Range& r : plan.grids) reach[r.begin] = std::max(reach[r.begin], r.end);
  if (!plan.masks_inside)
    for (const Range& r : plan.masks) reach[r.begin] = std::max(reach[r.begin], r.end);
  plan.panels = {0};
  const std::int64_t deep = n >= kDeepFrom ? kDeepPanel : kPanel;
  std::int64_t needed = 0;  // the panel must go on to here, because sums up to here are asked for in it
  for (std::int64_t a : plan.blocks) {
    const std::int64_t begin = plan.panels.back();
    if (a == begin) continue;
    if (a == n || (a >= needed && (a - begin >= deep || reach[a] > begin + kMostPanel))) {
      plan.panels.push_back(a);
      needed = 0;
    } else {
      needed = std::max(needed, reach[a]);
    }
  }
}

inline Plan make_plan(std::int64_t n, const quadric::sweep::SweepOptions& options) {
  Plan plan;
  plan.grids = grid_ranges(n, options);
  plan.masks = mask_ranges(n, options);
  plan.grids_inside = !any_wide(plan.grids);
  plan.masks_inside = !any_wide(plan.masks) && !all_rows(options);
  while (!cut_blocks(n, plan)) {
  }
  cut_panels(n, plan);
  return plan;
}

}  // namespace quadric::cuda::sweep
