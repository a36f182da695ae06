// Kernels that may begin before those ahead of them in the stream have ended.
#pragma once

#include <cstddef>

#include "device.hpp"

namespace quadric::cuda::transport {

// The kernel calls wait_for_earlier_kernels (async.cuh) before it touches anything that they write. `cluster` blocks
// are a cluster.
template <class... P, class... A>
void launch_early(const Execution& exec, void (*kernel)(P...), unsigned blocks, unsigned threads, std::size_t shared,
                  unsigned cluster, const A&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream(exec);
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  QUADRIC_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace quadric::cuda::transport
