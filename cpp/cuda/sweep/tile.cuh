// What the kernels of the sweep do together with tiles of weights in shared memory: kRows rows of W, stored column by
// column. Thread t of a block works on row t % kRows; `part` = t / kRows tells the threads of one row apart.
#pragma once

#include "sweep/kernels.hpp"
#include "sweep/rule.cuh"

namespace quadric::cuda::sweep {

constexpr int kThreads = 256;

// The stride of a column: odd, so that neither a warp that walks along a row nor one that walks along a column meets
// the same bank twice.
template <int kRows>
constexpr int kStride = kRows + 1;

// Rows [row, row + kRows) of matrix `batch`, sweep columns [begin, begin + columns): 0 beyond m and where inputs are
// dead. The caller synchronizes.
template <class T, int kRows>
__device__ inline void load_weights(const Weights<T>& w, std::int64_t batch, std::int64_t row, std::int64_t begin,
                                    int columns, T* tile) {
  const std::int64_t* order = w.order == nullptr ? nullptr : w.order + batch * w.n + begin;
  const bool* dead = w.dead == nullptr ? nullptr : w.dead + batch * w.n;
  const T* data = w.data + (batch * w.m + row) * w.row_stride;
  // Loads depend on each other as little as can be: of the weight and whether it counts, both are fetched.
  const auto column_at = [&](int j) { return order == nullptr ? begin + j : order[j]; };
  if (w.row_stride == 1 && w.col_stride != 1) {  // neighbours in memory are neighbours in a column
    const int i = threadIdx.x % kRows;
#pragma unroll 4
    for (int j = threadIdx.x / kRows; j < columns; j += kThreads / kRows) {
      const std::int64_t column = column_at(j);
      const bool gone = dead != nullptr && dead[column];
      const T x = row + i < w.m ? data[i + column * w.col_stride] : T(0);
      tile[j * kStride<kRows> + i] = gone ? T(0) : x;
    }
  } else {
    constexpr int kShare = kRows * 32 / kThreads;  // rows of a warp
    const int warp = threadIdx.x / 32;
#pragma unroll 4
    for (int j = threadIdx.x % 32; j < columns; j += 32) {
      const std::int64_t column = column_at(j);
      const bool gone = dead != nullptr && dead[column];
#pragma unroll
      for (int k = 0; k < kShare; ++k) {
        const int i = warp * kShare + k;
        const T x = row + i < w.m ? data[i * w.row_stride + column * w.col_stride] : T(0);
        tile[j * kStride<kRows> + i] = gone ? T(0) : x;
      }
    }
  }
}

// Shared memory of a search.
template <class T>
struct SearchMemory {
  T low[kThreads], high[kThreads];
  int step[kThreads];
};

// The grid of each row from weights that come in `tiles` tiles of columns: minmax, or the shrunk range with the least
// error, of equals the widest. `load(t, from, columns)` makes tile t stand in shared memory and returns where, and how
// many columns it has; it synchronizes. The results are valid in the threads of part 0. Sums run over the columns one
// by one, as on the CPU. Every thread of a row tries its share of the candidates.
template <class T, int kRows, class Load>
__device__ inline void find_grid(const Rule<T>& rule, int tiles, const Load& load, SearchMemory<T>& memory, T& scale,
                                 T& zero) {
  constexpr int kParts = kThreads / kRows;
  constexpr int kShare = (100 + kParts - 1) / kParts;  // candidates of a thread, of at most 100
  const int row = threadIdx.x % kRows, part = threadIdx.x / kRows;
  T low = T(0), high = T(0);
  for (int t = 0; t < tiles; ++t) {
    const T* from = nullptr;
    int columns = 0;
    load(t, from, columns);
    for (int j = part; j < columns; j += kParts) {
      const T x = from[j * kStride<kRows> + row];
      low = lower(low, x);
      high = higher(high, x);
    }
  }
  memory.low[threadIdx.x] = low;
  memory.high[threadIdx.x] = high;
  __syncthreads();
  low = high = T(0);
  for (int p = 0; p < kParts; ++p) {
    low = lower(low, memory.low[p * kRows + row]);
    high = higher(high, memory.high[p * kRows + row]);
  }
  widen_range(rule, low, high);
  int best_step = 0;
  if (rule.steps > 1) {
    T sums[kShare] = {};
    for (int t = 0; t < tiles; ++t) {
      const T* from = nullptr;
      int columns = 0;
      load(t, from, columns);
#pragma unroll
      for (int c = 0; c < kShare; ++c) {
        const int step = part + c * kParts;
        if (step >= rule.steps) break;
        T s, z;
        shrink_to_grid(rule, low, high, step, s, z);
        const Candidate<T> candidate(rule, s, z);
        T sum = sums[c];
        for (int j = 0; j < columns; ++j) sum += candidate.error(rule, from[j * kStride<kRows> + row]);
        sums[c] = sum;
      }
    }
    T best = Number<T>::kMax;
#pragma unroll
    for (int c = 0; c < kShare; ++c) {
      const int step = part + c * kParts;
      if (step < rule.steps && sums[c] < best) {
        best = sums[c];
        best_step = step;
      }
    }
    __syncthreads();  // everybody has read the ranges
    memory.low[threadIdx.x] = best;
    memory.step[threadIdx.x] = best_step;
    __syncthreads();
    best = Number<T>::kMax;
    best_step = 0;
    for (int p = 0; p < kParts; ++p) {
      const T sum = memory.low[p * kRows + row];
      const int step = memory.step[p * kRows + row];
      if (sum < best || (sum == best && step < best_step)) {
        best = sum;
        best_step = step;
      }
    }
  }
  shrink_to_grid(rule, low, high, best_step, scale, zero);
  __syncthreads();  // the memory may be used again
}

}  // namespace quadric::cuda::sweep
