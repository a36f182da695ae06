#pragma once

#include <cstddef>
#include <cstdint>

#include "device.hpp"
#include "require.hpp"

namespace quadric::cuda::sweep {

// One dimension of blocks; more shared memory than 48 KB must be asked for first.
template <class... Parameters, class... Arguments>
void launch(const Execution& exec, void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared,
            const Arguments&... arguments) {
  if (blocks == 0) return;
  QUADRIC_REQUIRE(blocks < (std::int64_t{1} << 31), "W has too many rows");
  if (shared > 48 * 1024)
    QUADRIC_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  kernel<<<static_cast<unsigned>(blocks), threads, shared, stream(exec)>>>(arguments...);
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace quadric::cuda::sweep
