// The inner kernels of the sweep, on one panel: a tile of `kPanelRows` rows of W, transposed so that SIMD lanes run
// across rows. panel.cpp is compiled once per instruction set; everything that crosses this border is a plain pointer
// or a plain struct, because an inline function shared with the rest could be linked from the wrong copy.
#pragma once

#include <cstdint>

#include "quadric/simd.hpp"

namespace quadric::sweep::detail {

// 192 bytes: three AVX-512 registers. With eight columns of R that makes 24 accumulators out of 32 registers.
template <class T>
inline constexpr std::int64_t kPanelRows = 192 / sizeof(T);

// Everything that is the same for all panels of one call.
template <class T>
struct Job {
  // W, m x n, and where a panel's results go (original column order, contiguous rows, null = not wanted)
  const T* w;
  std::int64_t w_row, w_col;
  std::int64_t m, n, groups;
  std::uint8_t* codes;
  T* scales;
  std::uint8_t* zeros;
  T* weights;
  bool* mask;
  double* loss;
  // the factor: R_ij = r[i * r_row + j * r_col]; null = identity, nothing to feed back
  const T* r;
  std::int64_t r_row, r_col;
  const std::int64_t* order;  // n
  const bool* dead;           // n or null
  // the grid
  const std::int32_t* group;  // n, by sweep position; null where group_size > 0
  std::int64_t group_size, stale_block;
  int max_code, zero;  // zero: that of a symmetric grid
  bool symmetric, mse;
  double norm;
  int steps, scale_type;
  // the mask
  std::int64_t keep, out_of, mask_block;
  double sparsity;
  bool per_row, feedback;
};

// A panel's memory. All arrays are columns x kPanelRows.
template <class T>
struct Panel {
  T* error;                   // n: D of the finished columns; ahead of the sweep, scratch of the look-ahead
  T* base;                    // block: C_j without the terms of the block itself
  T* weight;                  // block: W
  T* current;                 // block: the current weights that the last look-ahead found
  T* chunk;                   // chunk: C_j of the columns in work
  T* value;                   // block: Q
  T* kept;                    // block: 1 where the entry is kept, 0 where it is pruned
  T* score;                   // block: what a mask is chosen by
  T* scale;                   // groups of the block (at least 1)
  T* zero;                    // groups of the block (at least 1)
  std::uint8_t* code;         // block
  double* loss;               // 1
  std::int64_t loaded_group;  // the fixed group whose grid stands in scale and zero
};

// The widest pieces that a panel must hold.
struct Widths {
  std::int64_t block, chunk, groups;
};

template <class T>
struct PanelKernels {
  // The whole sweep of rows [panel * kPanelRows, ...): blocks[k] to blocks[k + 1] for every k < n_blocks.
  void (*run)(const Job<T>& job, Panel<T>& memory, std::int64_t panel, const std::int64_t* blocks,
              std::int64_t n_blocks);
  // The same in steps, for masks that need all rows: begin_block, then for each mask block `scores` (fills
  // memory.score), the caller's threshold (fills memory.kept) and `sweep_columns`; end_block writes the results.
  void (*begin_block)(const Job<T>& job, Panel<T>& memory, std::int64_t panel, std::int64_t begin, std::int64_t end);
  void (*scores)(const Job<T>& job, Panel<T>& memory, std::int64_t begin, std::int64_t from, std::int64_t to);
  void (*sweep_columns)(const Job<T>& job, Panel<T>& memory, std::int64_t panel, std::int64_t begin, std::int64_t from,
                        std::int64_t to);
  void (*end_block)(const Job<T>& job, Panel<T>& memory, std::int64_t panel, std::int64_t begin, std::int64_t end);
  // The grids of fixed groups of the panel's rows (job.w, scales, zeros, grid; memory.weight and memory.scale).
  void (*grid)(const Job<T>& job, Panel<T>& memory, std::int64_t panel);
  // The summed error of every candidate of the MSE search on one range for all rows of the panel: errors[steps].
  void (*grid_errors)(const Job<T>& job, Panel<T>& memory, std::int64_t panel, T low, T high, double* errors);
  // One grid from one range shrunk by 1 - step / 100.
  void (*range_to_grid)(const Job<T>& job, T low, T high, int step, T* scale, T* zero);
};

// The kernels of the level in force.
template <class T>
const PanelKernels<T>& panel_kernels();

#define QUADRIC_DECLARE_LEVEL(level)      \
  namespace level {                       \
  template <class T>                      \
  const PanelKernels<T>& panel_kernels(); \
  }
QUADRIC_DECLARE_LEVEL(baseline)
QUADRIC_DECLARE_LEVEL(v3)
QUADRIC_DECLARE_LEVEL(v4)
#undef QUADRIC_DECLARE_LEVEL

}  // namespace quadric::sweep::detail
