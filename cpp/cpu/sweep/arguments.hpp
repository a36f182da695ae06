// The checks of arguments that the sweep makes on the CPU and on a GPU alike.
#pragma once

#include <cstdint>

#include "quadric/sweep.hpp"
#include "require.hpp"

namespace quadric::sweep {

template <class T>
void check_grid(const MatrixView<const T>& W, std::int64_t group_size, bool per_tensor, const GridOptions& options,
                const MatrixView<T>& scales, const MatrixView<std::uint8_t>& zeros) {
  QUADRIC_REQUIRE(group_size >= 1, "group_size must be at least 1");
  QUADRIC_REQUIRE(!per_tensor || group_size == W.cols, "group_size must be n for one grid per tensor");
  QUADRIC_REQUIRE(options.max_code >= 1 && options.max_code <= 255, "max_code must be in 1..255");
  QUADRIC_REQUIRE(options.steps >= 1 && options.steps <= 100, "steps must be in 1..100");
  const std::int64_t groups = (W.cols + group_size - 1) / group_size;
  QUADRIC_REQUIRE(scales.rows == W.rows && scales.cols == groups, "scales must be m x groups");
  QUADRIC_REQUIRE(zeros.rows == W.rows && zeros.cols == groups, "zeros must be m x groups");
}

// `identity`: there is no factor.
template <class T>
void check_sweep(const MatrixView<const T>& W, bool identity, const std::int64_t* order, const SweepOptions& options,
                 const SweepOutput<T>& output) {
  const std::int64_t n = W.cols;
  const GridOptions& grid = options.grid;
  QUADRIC_REQUIRE(order != nullptr || n == 0, "factor.order must be given");
  QUADRIC_REQUIRE(!identity || n == 0 || (!options.feedback && output.loss == nullptr),
                  "factor.R must be given where the error is fed back or the loss is asked for");
  QUADRIC_REQUIRE(grid.max_code >= 0 && grid.max_code <= 255, "grid.max_code must be in 0..255");
  QUADRIC_REQUIRE(grid.steps >= 1 && grid.steps <= 100, "grid.steps must be in 1..100");
  QUADRIC_REQUIRE(options.keep >= 0 && options.keep <= options.out_of, "keep must be in 0..out_of");
  QUADRIC_REQUIRE(options.out_of == 0 || n % options.out_of == 0, "out_of must divide the columns of W");
  QUADRIC_REQUIRE(options.sparsity >= 0 && options.sparsity <= 1, "sparsity must be in 0..1");
  QUADRIC_REQUIRE(options.sparsity == 0 || options.out_of == 0, "sparsity and out_of exclude each other");
  QUADRIC_REQUIRE(options.mask_block >= 1, "mask_block must be at least 1");
  QUADRIC_REQUIRE(options.group_size >= 0, "group_size must not be negative");
  QUADRIC_REQUIRE(options.stale_block >= 0, "stale_block must not be negative");
  if (grid.max_code > 0) {
    const std::int64_t groups =
        options.group_size > 0 ? (n + options.group_size - 1) / options.group_size : output.scales.cols;
    QUADRIC_REQUIRE(output.scales.rows == W.rows && output.scales.cols == groups, "output.scales must be m x groups");
    QUADRIC_REQUIRE(output.zeros.rows == W.rows && output.zeros.cols == groups, "output.zeros must be m x groups");
    QUADRIC_REQUIRE(options.group_size > 0 || options.group != nullptr || n == 0,
                    "group must be given where group_size is 0");
    QUADRIC_REQUIRE(options.group_size == 0 || options.out_of == 0 || options.group_size % options.out_of == 0 ||
                        options.group_size >= n,
                    "group_size must be a multiple of out_of");
  }
}

}  // namespace quadric::sweep
