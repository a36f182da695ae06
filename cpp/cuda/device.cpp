#include "device.hpp"

#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

namespace quadric::cuda {
namespace {

// What std::bad_alloc says where it was the device's memory that ran out.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(const std::string& call) : what_("out of GPU memory: " + call) {}
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  std::string what_;
};

constexpr std::size_t kBlasWorkspace = std::size_t{32} << 20;  // what cuBLAS asks for on Hopper

int attribute(cudaDeviceAttr what) {
  int device = 0, value = 0;
  QUADRIC_CUDA(cudaGetDevice(&device));
  QUADRIC_CUDA(cudaDeviceGetAttribute(&value, what, device));
  return value;
}

struct Handles {
  cublasHandle_t blas = nullptr, blas_beside = nullptr;
  cusolverDnHandle_t solver = nullptr;
  cudaStream_t beside = nullptr;
  cudaEvent_t mark = nullptr, other = nullptr;

  Handles() = default;
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;
  // No destructor: at the end of a process the driver may be gone before the thread's variables are.
};

Handles& handles() {
  static thread_local std::map<int, Handles> of_device;
  int device = 0;
  QUADRIC_CUDA(cudaGetDevice(&device));
  return of_device[device];
}

}  // namespace

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it
  if (error == cudaErrorMemoryAllocation) throw OutOfMemory(call);
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw OutOfMemory(call);
  throw std::runtime_error(std::string(call) + ": " + cublasGetStatusString(status));
}

void check(cusolverStatus_t status, const char* call) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  if (status == CUSOLVER_STATUS_ALLOC_FAILED) throw OutOfMemory(call);
  throw std::runtime_error(std::string(call) + ": cuSOLVER status " + std::to_string(status));
}

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }
int shared_limit() { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

void* Scratch::bytes(std::size_t size) {
  if (exec_.allocate != nullptr) return exec_.allocate(exec_.context, size);
  void* memory = nullptr;
  const cudaError_t error = cudaMallocAsync(&memory, size, stream(exec_));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw OutOfMemory(std::to_string(size) + " bytes of temporary memory asked for");
  }
  check(error, "cudaMallocAsync");
  own_.push_back(memory);
  return memory;
}

Scratch::~Scratch() {
  for (void* memory : own_) cudaFreeAsync(memory, stream(exec_));
}

Beside::Beside(const Execution& exec) : exec_(exec), caller_(stream(exec)) {
  Handles& own = handles();
  if (own.beside == nullptr) {
    int lowest = 0, highest = 0;
    QUADRIC_CUDA(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    QUADRIC_CUDA(cudaEventCreateWithFlags(&own.mark, cudaEventDisableTiming));
    QUADRIC_CUDA(cudaEventCreateWithFlags(&own.other, cudaEventDisableTiming));
    QUADRIC_CUDA(cudaStreamCreateWithPriority(&own.beside, cudaStreamNonBlocking, highest));
  }
  exec_.stream = own.beside;
  wait();
}

Beside::~Beside() {
  // Whatever went wrong, what was launched here comes before what the caller does next.
  cudaEventRecord(handles().other, stream(exec_));
  cudaStreamWaitEvent(caller_, handles().other, 0);
}

void Beside::wait() {
  QUADRIC_CUDA(cudaEventRecord(handles().other, caller_));
  QUADRIC_CUDA(cudaStreamWaitEvent(stream(exec_), handles().other, 0));
}

void Beside::mark() { QUADRIC_CUDA(cudaEventRecord(handles().mark, stream(exec_))); }

void Beside::let_caller_wait_for_mark() { QUADRIC_CUDA(cudaStreamWaitEvent(caller_, handles().mark, 0)); }

namespace {

cublasHandle_t set(cublasHandle_t& handle, const Execution& exec, Scratch& scratch) {
  if (handle == nullptr) {
    QUADRIC_CUDA(cublasCreate(&handle));
    QUADRIC_CUDA(cublasSetPointerMode(handle, CUBLAS_POINTER_MODE_HOST));
    QUADRIC_CUDA(cublasSetMathMode(
        handle, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  }
  QUADRIC_CUDA(cublasSetStream(handle, stream(exec)));
  QUADRIC_CUDA(cublasSetWorkspace(handle, scratch.get<char>(kBlasWorkspace), kBlasWorkspace));
  return handle;
}

}  // namespace

cublasHandle_t blas(const Execution& exec, Scratch& scratch) { return set(handles().blas, exec, scratch); }
cublasHandle_t blas(const Beside& beside, Scratch& scratch) {
  return set(handles().blas_beside, beside.exec(), scratch);
}

cusolverDnHandle_t solver(const Execution& exec) {
  cusolverDnHandle_t& handle = handles().solver;
  if (handle == nullptr) QUADRIC_CUDA(cusolverDnCreate(&handle));
  QUADRIC_CUDA(cusolverDnSetStream(handle, stream(exec)));
  return handle;
}

}  // namespace quadric::cuda
