// Copies of whole blocks of bytes into shared memory by the engine for it, and the barriers that tell of their end.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace quadric::cuda::sketch {

// How the engine finds the tiles of a matrix: `box_rows` by `box_cols` entries of `bytes` bytes (4 or 8), 128 bytes a
// row and without gaps where they go to. Rows begin at multiples of 16 bytes. What is outside of the matrix is 0.
CUtensorMap tile_map(const void* data, int bytes, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
                     int box_rows, int box_cols);

using Barrier = std::uint64_t;

__device__ __forceinline__ std::uint32_t address_in_shared(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void open(Barrier* barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(address_in_shared(barrier)) : "memory");
}
// By the thread that opened barriers, before a barrier of the block: the engine knows them then.
__device__ __forceinline__ void publish_barriers() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A round of a barrier ends when as many bytes have come as one thread has announced.
__device__ __forceinline__ void expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(address_in_shared(barrier)), "r"(bytes)
               : "memory");
}
// Until a round of that parity, 0 for the first one, has ended.
__device__ __forceinline__ void wait(Barrier* barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(address_in_shared(barrier)),
      "r"(parity)
      : "memory");
}

// A multiple of 16 bytes, from and to such multiples.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, int bytes, Barrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   address_in_shared(to)),
               "l"(from), "r"(bytes), "r"(address_in_shared(barrier))
               : "memory");
}

// The tile whose first entry is (row, column), to a multiple of 128 bytes; and its way into the second-level cache.
__device__ __forceinline__ void copy_tile(void* to, const CUtensorMap& map, int row, int column, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(address_in_shared(to)),
      "l"(&map), "r"(column), "r"(row), "r"(address_in_shared(barrier))
      : "memory");
}
__device__ __forceinline__ void prefetch_tile(const CUtensorMap& map, int row, int column) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map), "r"(column), "r"(row)
               : "memory");
}

}  // namespace quadric::cuda::sketch
