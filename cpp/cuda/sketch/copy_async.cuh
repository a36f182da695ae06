// Copies from global to shared memory that pass by the registers, while the threads do something else.
#pragma once

#include <cstdint>

namespace quadric::cuda::sketch {

// 16 bytes to a multiple of 16 bytes.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  const auto shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared), "l"(from) : "memory");
}

// 4 bytes to a multiple of 4 bytes.
__device__ __forceinline__ void copy_word_async(void* to, const void* from) {
  const auto shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(shared), "l"(from) : "memory");
}

// The first `bytes` of 16, a multiple of 4. Nothing behind them is touched, so they may end where the memory ends.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  if (bytes >= 16) return copy_async(to, from);
#pragma unroll 1
  for (int at = 0; at < bytes; at += 4)
    copy_word_async(static_cast<char*>(to) + at, static_cast<const char*>(from) + at);
}

// Ends a group of copies; this waits until all groups but the last kLeft are there.
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
}
__device__ __forceinline__ void wait_but_one() { wait_for_groups<1>(); }

// Until all copies that this thread has begun are there; a barrier makes them known to the others.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }

}  // namespace quadric::cuda::sketch
