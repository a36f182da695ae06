// Rows of compressed storage, 32 entries at a time by a warp.
#pragma once

#include <cstdint>

namespace quadric::cuda::sketch {

// x[column] += value for the lanes that have a column >= 0. Columns may be equal, as in storage whose duplicates have
// not been added up: then the lanes take turns, in order. Called by whole warps; a barrier of the warp ends it.
template <class T>
__device__ __forceinline__ void add_entries(T* x, std::int64_t column, T value) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto key = static_cast<unsigned long long>(column >= 0 ? column : -1 - lane);
  const bool alone = __popc(__match_any_sync(kAll, key)) == 1;
  if (__all_sync(kAll, alone)) {
    if (column >= 0) x[column] += value;
  } else {
    for (int turn = 0; turn < 32; ++turn) {
      if (turn == lane && column >= 0) x[column] += value;
      __syncwarp();
    }
  }
  __syncwarp();
}

}  // namespace quadric::cuda::sketch
