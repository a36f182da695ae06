// Copies of tiles of a matrix into shared memory by the engine for it.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "copies.cuh"

namespace quadric::cuda::sketch {

// How the engine finds the tiles of a matrix: `box_rows` by `box_cols` entries of `bytes` bytes (4 or 8), 128 bytes a
// row and without gaps where they go to. Rows begin at multiples of 16 bytes. What is outside of the matrix is 0.
CUtensorMap tile_map(const void* data, int bytes, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
                     int box_rows, int box_cols);

// By the thread that opened barriers, before a barrier of the block: the engine knows them then.
__device__ __forceinline__ void publish_barriers() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The tile whose first entry is (row, column), to a multiple of 128 bytes; and its way into the second-level cache.
__device__ __forceinline__ void copy_tile(void* to, const CUtensorMap& map, int row, int column,
                                          std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
__device__ __forceinline__ void prefetch_tile(const CUtensorMap& map, int row, int column) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map), "r"(column), "r"(row)
               : "memory");
}

}  // namespace quadric::cuda::sketch
