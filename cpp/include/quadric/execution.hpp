// Where and how a call runs: the first argument of every kernel.
#pragma once

namespace quadric {

struct Execution {
  int n_threads = 0;       // OpenMP threads; 0 follows the environment. BLAS keeps its own pool.
  void* stream = nullptr;  // the CUDA stream of GPU kernels; unused on the CPU
};

}  // namespace quadric
