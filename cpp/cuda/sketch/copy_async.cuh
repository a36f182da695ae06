// Copies from global to shared memory that pass by the registers, while the threads do something else.
#pragma once

#include <cstdint>

namespace quadric::cuda::sketch {

// 16 bytes to a multiple of 16 bytes, of which the first `bytes` are read and the others become zero.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  const auto shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
}

// Ends a group of copies; this waits until all groups but the last one are there.
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
__device__ __forceinline__ void wait_but_one() { asm volatile("cp.async.wait_group 1;\n" ::: "memory"); }

// Until all copies that this thread has begun are there; a barrier makes them known to the others.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }

}  // namespace quadric::cuda::sketch
