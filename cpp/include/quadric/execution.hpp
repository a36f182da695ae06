// Where and how a call runs: the first argument of every kernel.
#pragma once

#include <cstddef>

namespace quadric {

struct Execution {
  int n_threads = 0;  // OpenMP threads; 0 follows the environment. BLAS keeps its own pool.

  // Of GPU kernels alone. They are launched on `stream`, a cudaStream_t of the current device, and take temporary
  // memory from `allocate(context, bytes)`: memory of that device, 256-byte aligned, which stays until what was
  // launched before the call returned has run. Without it they use the memory pool of the device, in stream order.
  void* stream = nullptr;
  void* (*allocate)(void* context, std::size_t bytes) = nullptr;
  void* context = nullptr;
};

}  // namespace quadric
