// What every CUDA file needs of the device: checked calls, temporary memory, cuBLAS and cuSOLVER handles.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cusolverDn.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quadric/execution.hpp"

namespace quadric::cuda {

// Throw std::runtime_error that names the call; std::bad_alloc where memory ran out.
void check(cudaError_t error, const char* call);
void check(cublasStatus_t status, const char* call);
void check(cusolverStatus_t status, const char* call);
#define QUADRIC_CUDA(call) ::quadric::cuda::check((call), #call)
#define QUADRIC_CUDA_LAUNCHED() ::quadric::cuda::check(cudaGetLastError(), __func__)

inline cudaStream_t stream(const Execution& exec) { return static_cast<cudaStream_t>(exec.stream); }

// Multiprocessors, and bytes of shared memory that a block may ask for, of the current device.
int multiprocessors();
int shared_limit();

// Temporary device memory for one call. It is given back in the order of the stream, so nothing waits.
class Scratch {
 public:
  explicit Scratch(const Execution& exec) : exec_(exec) {}
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* get(std::int64_t count) {
    return static_cast<T*>(bytes(static_cast<std::size_t>(count > 0 ? count : 1) * sizeof(T)));
  }

 private:
  void* bytes(std::size_t size);

  const Execution& exec_;
  std::vector<void*> own_;  // what came from the device's pool
};

// A second stream of this thread and device for a chain of small kernels that must not queue behind what fills the
// device: of higher priority. It starts after what the caller's stream was given before, and the caller's stream goes
// on after it when this ends.
class Beside {
 public:
  explicit Beside(const Execution& exec);
  ~Beside();
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;

  const Execution& exec() const { return exec_; }
  void wait();  // what comes here follows what the caller's stream has been given by now
  // A place in this stream, and what comes on the caller's stream following it.
  void mark();
  void let_caller_wait_for_mark();

 private:
  Execution exec_;
  cudaStream_t caller_;
};

// Handles of this thread and device, set to the stream. Their products are float32 or float64 throughout (no TF32),
// in workspace from `scratch`, so that the same call gives the same bits and may be captured in a graph.
cublasHandle_t blas(const Execution& exec, Scratch& scratch);
cublasHandle_t blas(const Beside& beside, Scratch& scratch);  // another one, to be used in turn with the first
cusolverDnHandle_t solver(const Execution& exec);

}  // namespace quadric::cuda
