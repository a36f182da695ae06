// The options of the sweep as Python hands them over, to the kernels of the CPU and of a GPU alike.
#pragma once

#include <cstdint>

#include "quadric/sweep.hpp"

namespace quadric::python {

inline sweep::GridOptions grid_options(int max_code, bool symmetric, bool mse, double norm, int steps, int scale_bits) {
  sweep::GridOptions options;
  options.max_code = max_code;
  options.symmetric = symmetric;
  options.mse = mse;
  options.norm = norm;
  options.steps = steps;
  options.scale_type = scale_bits == 0    ? sweep::ScaleType::working
                       : scale_bits == 16 ? sweep::ScaleType::float16
                                          : sweep::ScaleType::bfloat16;
  return options;
}

// All but `group`, which is an array.
inline sweep::SweepOptions sweep_options(std::int64_t group_size, std::int64_t stale_block,
                                         const sweep::GridOptions& grid, std::int64_t keep, std::int64_t out_of,
                                         double sparsity, std::int64_t mask_block, bool per_row, bool feedback) {
  sweep::SweepOptions options;
  options.grid = grid;
  options.group_size = group_size;
  options.stale_block = stale_block;
  options.keep = keep;
  options.out_of = out_of;
  options.sparsity = sparsity;
  options.mask_block = mask_block;
  options.per_row = per_row;
  options.feedback = feedback;
  return options;
}

}  // namespace quadric::python
