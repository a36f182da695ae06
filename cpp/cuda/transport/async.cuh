// Instructions that the passes use directly: barriers of some warps, messages between the blocks of a cluster, products
// of matrices.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "copies.cuh"

namespace quadric::cuda::transport {

// Barrier `id`, 1 to 15, of `threads` threads.
__device__ __forceinline__ void sync_some(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Counts the threads of this warp there, which go on.
__device__ __forceinline__ void arrive_some(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- clusters ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ void publish_mail() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Writes `value` to block `rank` of the cluster, where that block has `to`, and tells its `barrier`.
__device__ __forceinline__ void send(float* to, float value, std::uint64_t* barrier, unsigned rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there, told;\n"
      "mapa.shared::cluster.u32 there, %0, %3;\n"
      "mapa.shared::cluster.u32 told, %2, %3;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %1, [told];\n"
      "}" ::"r"(shared_address(to)),
      "r"(__float_as_uint(value)), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}
__device__ __forceinline__ void send(double* to, double value, std::uint64_t* barrier, unsigned rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there, told;\n"
      "mapa.shared::cluster.u32 there, %0, %3;\n"
      "mapa.shared::cluster.u32 told, %2, %3;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [there], %1, [told];\n"
      "}" ::"r"(shared_address(to)),
      "l"(__double_as_longlong(value)), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}

// Writes `value` to block `rank` of the cluster, where that block has `to`; it is there after sync_cluster.
__device__ __forceinline__ void put(float* to, float value, unsigned rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %2;\n"
      "st.shared::cluster.f32 [there], %1;\n"
      "}" ::"r"(shared_address(to)),
      "f"(value), "r"(rank)
      : "memory");
}

// ---- products ------------------------------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16-bit numbers: lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// c += a b: 16 x 16 by 16 x 8 in float16, sums in float32.
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define QUADRIC_WIDE_PRODUCTS  // of four warps together, with one factor in shared memory: only in code for sm_90a
// Changes how many registers the threads of four warps have, all of them here; other warps of the block take what is
// free then.
template <int kCount>
__device__ __forceinline__ void drop_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
// Where rows of `kWidth` float16 (16, 32 or 64) begin in shared memory that are in the order of half_place() of
// points.cuh; the first of 8 rows is aligned to their bytes. 16 coordinates on is two more.
template <int kWidth>
__device__ __forceinline__ std::uint64_t swizzled_rows(const void* p) {
  constexpr std::uint64_t kPattern = kWidth == 64 ? 1 : kWidth == 32 ? 2 : 3;
  // The shuffle tells the compiler that all lanes have the same: it computes with it in uniform registers then.
  const unsigned place = __shfl_sync(~0U, shared_address(p) >> 4 & 0x3fff, 0);
  return kPattern << 62 | std::uint64_t{kWidth} << 32 | std::uint64_t{1} << 16 | place;
}
// Before the first product after registers that it reads or writes were used otherwise.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `kPending` groups of products are under way.
template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps what reads x behind what comes before this.
__device__ __forceinline__ void hold(float& x) { asm volatile("" : "+f"(x)::"memory"); }
// c = a b^T over 16 coordinates, or c += with `add`: 64 rows of a, in the registers of four warps as multiply() has
// them, and 64 of b; warp w has rows 16 w + lane / 4 + 8 h and columns 8 k + 2 (lane % 4) + l in c[k][2 h + l].
__device__ __forceinline__ void multiply_wide(float (&c)[8][4], const unsigned (&a)[4], std::uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, add, 1, 1, 0;\n"
      "}"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add))
      : "memory");
}
#endif

}  // namespace quadric::cuda::transport
