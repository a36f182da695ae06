// Grids of groups of columns, from weights as they are or as they would become.
//
// Floor: one read of W, 4096 x 4096 in 16 us; with the MSE search 80 candidates of 6 operations an entry, 0.15 ms, or
// 30 with powers, 0.7 ms. The kernel reads W twice where a group is wider than a tile, and should need about twice the
// floor.
#include <algorithm>
#include <cstdint>

#include "quadric/cuda/sweep.hpp"
#include "sweep/arguments.hpp"
#include "sweep/kernels.hpp"
#include "sweep/launch.cuh"
#include "sweep/tile.cuh"

namespace quadric::cuda::sweep {
namespace {

constexpr int kRows = 32;
constexpr int kColumns = 64;          // of a tile
constexpr std::int64_t kSlab = 1024;  // columns whose errors are summed together in a search over all of W
constexpr int kMostSteps = 100;

// Adds the shift to a tile of columns [begin, begin + columns), which the threads have loaded. Synchronizes.
template <class T>
__device__ void add_shift(const Shift<T>& shift, std::int64_t batch, std::int64_t row_begin, std::int64_t m,
                          std::int64_t begin, int columns, T* tile) {
  __syncthreads();
  if (shift.data == nullptr) return;
  const int row = threadIdx.x % kRows;
  if (row_begin + row < m) {
    for (int j = threadIdx.x / kRows; j < columns; j += kThreads / kRows)
      tile[j * kStride<kRows> + row] +=
          shift.data[batch * shift.matrix + (shift.end - 1 - begin - j) * shift.rows + row_begin + row];
  }
  __syncthreads();
}

// A block of threads finds the grids of `share` groups of kRows rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    group_grids_kernel(Weights<T> weights, Shift<T> shift, Rule<T> rule, std::int64_t group_size, std::int64_t first,
                       std::int64_t last, std::int64_t share, T* scales, std::uint8_t* zeros, std::int64_t groups) {
  __shared__ SearchMemory<T> search;
  __shared__ T tile[kColumns * kStride<kRows>];
  const std::int64_t slices = (last - first + share - 1) / share, tiles = (weights.m + kRows - 1) / kRows;
  const std::int64_t slice = blockIdx.x % slices, row_begin = blockIdx.x / slices % tiles * kRows;
  const std::int64_t batch = blockIdx.x / slices / tiles;
  const std::int64_t from = first + slice * share, to = from + share < last ? from + share : last;
  const int row = threadIdx.x % kRows;

  std::int64_t stands = -1, stands_end = -1;  // the columns that stand in the tile
  for (std::int64_t group = from; group < to; ++group) {
    const std::int64_t begin = group * group_size;
    const std::int64_t end = group_size < weights.n - begin ? begin + group_size : weights.n;
    T scale, zero;
    find_grid<T, kRows>(
        rule, static_cast<int>((end - begin + kColumns - 1) / kColumns),
        [&](int t, const T*& at, int& columns) {
          const std::int64_t a = begin + std::int64_t{t} * kColumns;
          const std::int64_t b = kColumns < end - a ? a + kColumns : end;
          if (a < stands || b > stands_end || stands < 0) {  // take the groups to come along, as far as there is room
            const std::int64_t reach = to * group_size < weights.n ? to * group_size : weights.n;
            stands = a;
            stands_end = kColumns < reach - a ? a + kColumns : reach;
            __syncthreads();  // nobody reads the tile any more
            load_weights<T, kRows>(weights, batch, row_begin, stands, static_cast<int>(stands_end - stands), tile);
            add_shift(shift, batch, row_begin, weights.m, stands, static_cast<int>(stands_end - stands), tile);
          }
          at = tile + (a - stands) * kStride<kRows>;
          columns = static_cast<int>(b - a);
        },
        search, scale, zero);
    if (threadIdx.x >= kRows || row_begin + row >= weights.m) continue;
    const std::int64_t to_row = (batch * weights.m + row_begin + row) * groups + group;
    scales[to_row] = scale;
    zeros[to_row] = static_cast<std::uint8_t>(zero);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    range_scores_kernel(Weights<T> weights, Shift<T> shift, const T* a, std::int64_t begin, std::int64_t end,
                        std::int64_t rows, T* scores) {
  __shared__ T tile[kColumns * kStride<kRows>];
  const std::int64_t slices = (end - begin + kColumns - 1) / kColumns, tiles = (weights.m + kRows - 1) / kRows;
  const std::int64_t from = begin + blockIdx.x % slices * kColumns;
  const std::int64_t row_begin = blockIdx.x / slices % tiles * kRows, batch = blockIdx.x / slices / tiles;
  const int columns = static_cast<int>(kColumns < end - from ? kColumns : end - from);
  load_weights<T, kRows>(weights, batch, row_begin, from, columns, tile);
  add_shift(shift, batch, row_begin, weights.m, from, columns, tile);
  const int row = threadIdx.x % kRows;
  if (row_begin + row >= weights.m) return;
  for (int j = threadIdx.x / kRows; j < columns; j += kThreads / kRows) {
    const std::int64_t place = weights.n - 1 - from - j;  // R_jj
    const T r = a == nullptr ? T(1) : a[(batch * weights.n + place) * weights.n + place];
    scores[(batch * (end - begin) + from - begin + j) * rows + row_begin + row] =
        magnitude<T>(tile[j * kStride<kRows> + row] * r);
  }
}

// ---- one grid for all of W -----------------------------------------------------------------------------------------

// Lowest and highest entry of all and 0 of a tile of kRows rows and kSlab columns: ranges[2 * block].
template <class T>
__global__ void __launch_bounds__(kThreads) tensor_ranges(Weights<T> weights, T* ranges) {
  __shared__ T tile[kColumns * kStride<kRows>];
  __shared__ T lows[kThreads], highs[kThreads];
  const std::int64_t slabs = (weights.n + kSlab - 1) / kSlab, begin = blockIdx.x % slabs * kSlab;
  const std::int64_t row_begin = blockIdx.x / slabs * kRows;
  const std::int64_t end = begin + kSlab < weights.n ? begin + kSlab : weights.n;
  T low = T(0), high = T(0);
  for (std::int64_t a = begin; a < end; a += kColumns) {
    const int columns = static_cast<int>(kColumns < end - a ? kColumns : end - a);
    __syncthreads();
    load_weights<T, kRows>(weights, 0, row_begin, a, columns, tile);
    __syncthreads();
    for (int j = threadIdx.x / kRows; j < columns; j += kThreads / kRows) {
      const T x = tile[j * kStride<kRows> + threadIdx.x % kRows];
      low = lower(low, x);
      high = higher(high, x);
    }
  }
  lows[threadIdx.x] = low;
  highs[threadIdx.x] = high;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int t = 0; t < kThreads; ++t) {
    low = lower(low, lows[t]);
    high = higher(high, highs[t]);
  }
  ranges[2 * std::int64_t{blockIdx.x}] = low;
  ranges[2 * std::int64_t{blockIdx.x} + 1] = high;
}

// The range of all tiles; as the search wants it in range[0..1].
template <class T>
__global__ void __launch_bounds__(kThreads) tensor_range(const T* ranges, std::int64_t tiles, Rule<T> rule, T* range) {
  __shared__ T lows[kThreads], highs[kThreads];
  T low = T(0), high = T(0);
  for (std::int64_t t = threadIdx.x; t < tiles; t += kThreads) {
    low = lower(low, ranges[2 * t]);
    high = higher(high, ranges[2 * t + 1]);
  }
  lows[threadIdx.x] = low;
  highs[threadIdx.x] = high;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int t = 0; t < kThreads; ++t) {
    low = lower(low, lows[t]);
    high = higher(high, highs[t]);
  }
  widen_range(rule, low, high);
  range[0] = low;
  range[1] = high;
}

// errors[block * kMostSteps + step]: the summed error of each candidate on a tile of kRows rows and kSlab columns.
template <class T>
__global__ void __launch_bounds__(kThreads)
    tensor_errors(Weights<T> weights, Rule<T> rule, const T* range, double* errors) {
  constexpr int kParts = kThreads / kRows;
  constexpr int kShare = (kMostSteps + kParts - 1) / kParts;
  __shared__ T tile[kColumns * kStride<kRows>];
  __shared__ double of_rows[kMostSteps][kRows];
  const std::int64_t slabs = (weights.n + kSlab - 1) / kSlab, begin = blockIdx.x % slabs * kSlab;
  const std::int64_t row_begin = blockIdx.x / slabs * kRows;
  const std::int64_t end = begin + kSlab < weights.n ? begin + kSlab : weights.n;
  const int row = threadIdx.x % kRows, part = threadIdx.x / kRows;
  const T low = range[0], high = range[1];
  T sums[kShare] = {};
  for (std::int64_t a = begin; a < end; a += kColumns) {
    const int columns = static_cast<int>(kColumns < end - a ? kColumns : end - a);
    __syncthreads();
    load_weights<T, kRows>(weights, 0, row_begin, a, columns, tile);
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kShare; ++c) {
      const int step = part + c * kParts;
      if (step >= rule.steps) break;
      T s, z;
      shrink_to_grid(rule, low, high, step, s, z);
      const Candidate<T> candidate(rule, s, z);
      T sum = sums[c];
      for (int j = 0; j < columns; ++j) sum += candidate.error(rule, tile[j * kStride<kRows> + row]);
      sums[c] = sum;
    }
  }
#pragma unroll
  for (int c = 0; c < kShare; ++c) {
    const int step = part + c * kParts;
    if (step < rule.steps) of_rows[step][row] = row_begin + row < weights.m ? static_cast<double>(sums[c]) : 0.0;
  }
  __syncthreads();
  for (int step = threadIdx.x; step < rule.steps; step += kThreads) {
    double sum = 0.0;
    for (int i = 0; i < kRows; ++i) sum += of_rows[step][i];
    errors[std::int64_t{blockIdx.x} * kMostSteps + step] = sum;
  }
}

// Takes the candidate with the least error, of equals the widest, and makes it the grid of each row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    tensor_grid(const double* errors, std::int64_t tiles, Rule<T> rule, const T* range, std::int64_t m, T* scales,
                std::uint8_t* zeros) {
  __shared__ double sums[kMostSteps];
  __shared__ T grid[2];
  if (rule.steps > 1) {
    for (int step = threadIdx.x; step < rule.steps; step += kThreads) {
      double sum = 0.0;
      for (std::int64_t t = 0; t < tiles; ++t) sum += errors[t * kMostSteps + step];
      sums[step] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int best = 0;
    for (int step = 1; step < rule.steps; ++step)
      if (sums[step] < sums[best]) best = step;
    shrink_to_grid(rule, range[0], range[1], best, grid[0], grid[1]);
  }
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < m; i += kThreads) {
    scales[i] = grid[0];
    zeros[i] = static_cast<std::uint8_t>(grid[1]);
  }
}

template <class T>
void grid_of_tensor(const Execution& exec, const Weights<T>& weights, const GridOptions& options, T* scales,
                    std::uint8_t* zeros) {
  Scratch scratch(exec);
  const std::int64_t tiles = (weights.m + kRows - 1) / kRows * ((weights.n + kSlab - 1) / kSlab);
  const Rule<T> rule(options);
  T* ranges = scratch.get<T>(2 * tiles);
  T* range = scratch.get<T>(2);
  double* errors = scratch.get<double>(rule.steps > 1 ? tiles * kMostSteps : 0);
  launch(exec, tensor_ranges<T>, tiles, kThreads, 0, weights, ranges);
  launch(exec, tensor_range<T>, 1, kThreads, 0, ranges, tiles, rule, range);
  if (rule.steps > 1) launch(exec, tensor_errors<T>, tiles, kThreads, 0, weights, rule, range, errors);
  launch(exec, tensor_grid<T>, 1, kThreads, 0, errors, tiles, rule, range, weights.m, scales, zeros);
}

}  // namespace

template <class T>
void group_grids(const Execution& exec, const Weights<T>& weights, const Shift<T>& shift,
                 const quadric::sweep::GridOptions& options, std::int64_t group_size, std::int64_t first,
                 std::int64_t last, T* scales, std::uint8_t* zeros, std::int64_t groups) {
  const std::int64_t share = std::max<std::int64_t>(kColumns / group_size, 1);
  const std::int64_t slices = (last - first + share - 1) / share, tiles = (weights.m + kRows - 1) / kRows;
  launch(exec, group_grids_kernel<T>, slices * tiles * weights.count, kThreads, 0, weights, shift, Rule<T>(options),
         group_size, first, last, share, scales, zeros, groups);
}

template <class T>
void range_scores(const Execution& exec, const Weights<T>& weights, const Shift<T>& shift, const T* a,
                  std::int64_t begin, std::int64_t end, std::int64_t rows, T* scores) {
  const std::int64_t slices = (end - begin + kColumns - 1) / kColumns, tiles = (weights.m + kRows - 1) / kRows;
  launch(exec, range_scores_kernel<T>, slices * tiles * weights.count, kThreads, 0, weights, shift, a, begin, end, rows,
         scores);
}

template <class T>
void grid(const Execution& exec, MatrixView<const T> W, std::int64_t group_size, bool per_tensor,
          const GridOptions& options, MatrixView<T> scales, MatrixView<std::uint8_t> zeros) {
  quadric::sweep::check_grid(W, group_size, per_tensor, options, scales, zeros);
  if (W.empty()) return;
  const std::int64_t groups = (W.cols + group_size - 1) / group_size;
  Weights<T> weights;
  weights.data = W.data;
  weights.row_stride = W.row_stride;
  weights.col_stride = W.col_stride;
  weights.m = W.rows;
  weights.n = W.cols;
  if (per_tensor) return grid_of_tensor(exec, weights, options, scales.data, zeros.data);
  group_grids<T>(exec, weights, {}, options, std::min(group_size, W.cols), 0, groups, scales.data, zeros.data, groups);
}

#define QUADRIC_INSTANTIATE(T)                                                                                        \
  template void group_grids(const Execution&, const Weights<T>&, const Shift<T>&, const quadric::sweep::GridOptions&, \
                            std::int64_t, std::int64_t, std::int64_t, T*, std::uint8_t*, std::int64_t);               \
  template void range_scores(const Execution&, const Weights<T>&, const Shift<T>&, const T*, std::int64_t,            \
                             std::int64_t, std::int64_t, T*);                                                         \
  template QUADRIC_API void grid(const Execution&, MatrixView<const T>, std::int64_t, bool, const GridOptions&,       \
                                 MatrixView<T>, MatrixView<std::uint8_t>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::sweep
