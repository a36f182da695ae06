// Kernels that may begin before those ahead of them in the stream have ended.
#pragma once

#include <cstddef>

#include "device.hpp"

namespace quadric::cuda {

// The kernel calls wait_for_earlier_kernels before it touches anything that they write. `cluster` blocks are a cluster.
template <class... P, class... A>
void launch_early(const Execution& exec, void (*kernel)(P...), dim3 blocks, unsigned threads, std::size_t shared,
                  unsigned cluster, const A&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream(exec);
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  QUADRIC_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Until all kernels before this one in the stream have ended.
__device__ __forceinline__ void wait_for_earlier_kernels() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next kernel may begin once all blocks of this one have come here or ended.
__device__ __forceinline__ void let_next_kernel_begin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace quadric::cuda
