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

// sum[i] += sign[i] x[i] with the 16 bytes at shared + at[i] for x[i], if at[i] < end; else that memory has no work. In
// one piece, so that a comparison serves the load and the additions.
__device__ __forceinline__ void add_two(float (&sum)[2][4], float (&x)[2][4], const char* shared,
                                        const std::uint32_t (&at)[2], std::uint32_t end, const float (&sign)[2]) {
  const SharedAddress base = shared_address(shared);
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.lt.u32 p, %16, %22;\n"
      "setp.lt.u32 q, %17, %22;\n"
      "@p ld.shared.v4.f32 {%8, %9, %10, %11}, [%18];\n"
      "@q ld.shared.v4.f32 {%12, %13, %14, %15}, [%19];\n"
      "@p fma.rn.f32 %0, %8, %20, %0;\n"
      "@p fma.rn.f32 %1, %9, %20, %1;\n"
      "@p fma.rn.f32 %2, %10, %20, %2;\n"
      "@p fma.rn.f32 %3, %11, %20, %3;\n"
      "@q fma.rn.f32 %4, %12, %21, %4;\n"
      "@q fma.rn.f32 %5, %13, %21, %5;\n"
      "@q fma.rn.f32 %6, %14, %21, %6;\n"
      "@q fma.rn.f32 %7, %15, %21, %7;\n"
      "}"
      : "+f"(sum[0][0]), "+f"(sum[0][1]), "+f"(sum[0][2]), "+f"(sum[0][3]), "+f"(sum[1][0]), "+f"(sum[1][1]),
        "+f"(sum[1][2]), "+f"(sum[1][3]), "+f"(x[0][0]), "+f"(x[0][1]), "+f"(x[0][2]), "+f"(x[0][3]), "+f"(x[1][0]),
        "+f"(x[1][1]), "+f"(x[1][2]), "+f"(x[1][3])
      : "r"(at[0]), "r"(at[1]), "r"(base + at[0]), "r"(base + at[1]), "f"(sign[0]), "f"(sign[1]), "r"(end));
}
__device__ __forceinline__ void add_two(double (&sum)[2][2], double (&x)[2][2], const char* shared,
                                        const std::uint32_t (&at)[2], std::uint32_t end, const double (&sign)[2]) {
  const SharedAddress base = shared_address(shared);
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.lt.u32 p, %8, %14;\n"
      "setp.lt.u32 q, %9, %14;\n"
      "@p ld.shared.v2.f64 {%4, %5}, [%10];\n"
      "@q ld.shared.v2.f64 {%6, %7}, [%11];\n"
      "@p fma.rn.f64 %0, %4, %12, %0;\n"
      "@p fma.rn.f64 %1, %5, %12, %1;\n"
      "@q fma.rn.f64 %2, %6, %13, %2;\n"
      "@q fma.rn.f64 %3, %7, %13, %3;\n"
      "}"
      : "+d"(sum[0][0]), "+d"(sum[0][1]), "+d"(sum[1][0]), "+d"(sum[1][1]), "+d"(x[0][0]), "+d"(x[0][1]), "+d"(x[1][0]),
        "+d"(x[1][1])
      : "r"(at[0]), "r"(at[1]), "r"(base + at[0]), "r"(base + at[1]), "d"(sign[0]), "d"(sign[1]), "r"(end));
}

}  // namespace quadric::cuda::sketch
