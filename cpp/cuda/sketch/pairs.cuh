// Two blocks of threads that run at the same time: a cluster.
#pragma once

#include "device.hpp"

namespace quadric::cuda::sketch {

// Which of the two this block is.
__device__ __forceinline__ unsigned rank_in_pair() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of both blocks come here, once what they read before has been read; this waits until all have.
__device__ __forceinline__ void arrive_in_pair() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void wait_for_pair() {
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

// kernel<<<2 pairs, threads, shared, stream>>>(arguments...) in clusters of two.
template <class... Parameters, class... Arguments>
void launch_pairs(cudaStream_t stream, void (*kernel)(Parameters...), std::int64_t pairs, int threads,
                  std::size_t shared, const Arguments&... arguments) {
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = 2;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(2 * pairs));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  QUADRIC_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace quadric::cuda::sketch
