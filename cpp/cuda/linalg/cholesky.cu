// One symmetric positive definite system of m unknowns in float64. Floor: m^3/3 flops at 60 TFLOP/s, 2 us for m = 512;
// what is left is the latency of cuSOLVER's and cuBLAS's chains of kernels, some 0.2 ms.
#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "device.hpp"
#include "linalg/potrf.hpp"
#include "quadric/cuda/linalg.hpp"
#include "require.hpp"

namespace quadric::cuda {
namespace {

cusolverDnParams_t parameters() {
  static thread_local cusolverDnParams_t value = nullptr;
  if (value == nullptr) QUADRIC_CUDA(cusolverDnCreateParams(&value));
  return value;
}

}  // namespace

template <class T>
void potrf(const Execution& exec, Scratch& scratch, cublasFillMode_t uplo, std::int64_t n, T* A, int* info) {
  constexpr cudaDataType type = std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_64F;
  cusolverDnHandle_t handle = solver(exec);
  std::size_t on_device = 0, on_host = 0;
  QUADRIC_CUDA(cusolverDnXpotrf_bufferSize(handle, parameters(), uplo, n, type, A, n, type, &on_device, &on_host));
  char* const work = scratch.get<char>(static_cast<std::int64_t>(on_device));
  std::vector<char> host(on_host);
  QUADRIC_CUDA(
      cusolverDnXpotrf(handle, parameters(), uplo, n, type, A, n, type, work, on_device, host.data(), on_host, info));
}

template void potrf(const Execution&, Scratch&, cublasFillMode_t, std::int64_t, float*, int*);
template void potrf(const Execution&, Scratch&, cublasFillMode_t, std::int64_t, double*, int*);

namespace linalg {
namespace {

constexpr int kThreads = 256;

__global__ void shift_diagonal(double* A, std::int64_t m, double shift) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < m) A[i * (m + 1)] += shift;
}

// cuSOLVER's info becomes ours: the first pivot that is not positive and finite, or -1. One block.
__global__ void first_bad_pivot(const double* A, std::int64_t m, int* info) {
  __shared__ long long first;
  const std::int64_t limit = *info > 0 ? *info - 1 : m;
  if (threadIdx.x == 0) first = *info > 0 ? limit : std::numeric_limits<long long>::max();
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < limit; i += kThreads) {
    const double pivot = A[i * (m + 1)];
    if (!(pivot > 0 && pivot <= std::numeric_limits<double>::max())) atomicMin(&first, static_cast<long long>(i));
  }
  __syncthreads();
  if (threadIdx.x == 0) *info = first < m ? static_cast<int>(first) : -1;
}

// A block for each row.
__global__ void clear_above(double* A, std::int64_t m) {
  const std::int64_t i = blockIdx.x;
  for (std::int64_t j = i + 1 + threadIdx.x; j < m; j += kThreads) A[i * m + j] = 0;
}

}  // namespace

void cholesky(const Execution& exec, double* A, std::int64_t m, double shift, std::int32_t* info) {
  static_assert(std::is_same_v<std::int32_t, int>);
  QUADRIC_REQUIRE(m >= 0 && m <= std::numeric_limits<int>::max(), "A has too many rows");
  if (m == 0) {
    QUADRIC_CUDA(cudaMemsetAsync(info, 0xff, sizeof(*info), stream(exec)));
    return;
  }
  Scratch scratch(exec);
  if (shift != 0) {
    shift_diagonal<<<static_cast<unsigned>((m + kThreads - 1) / kThreads), kThreads, 0, stream(exec)>>>(A, m, shift);
    QUADRIC_CUDA_LAUNCHED();
  }
  // Column by column, our lower triangle is the upper one.
  potrf(exec, scratch, CUBLAS_FILL_MODE_UPPER, m, A, info);
  first_bad_pivot<<<1, kThreads, 0, stream(exec)>>>(A, m, info);
  QUADRIC_CUDA_LAUNCHED();
  clear_above<<<static_cast<unsigned>(m), kThreads, 0, stream(exec)>>>(A, m);
  QUADRIC_CUDA_LAUNCHED();
}

void cho_solve(const Execution& exec, const double* L, std::int64_t m, double* B, std::int64_t k) {
  constexpr std::int64_t largest = std::numeric_limits<int>::max();
  QUADRIC_REQUIRE(m >= 0 && m <= largest && k >= 0 && k <= largest, "L or B is too large");
  if (m == 0 || k == 0) return;
  Scratch scratch(exec);
  cublasHandle_t handle = blas(exec, scratch);
  const int m_ = static_cast<int>(m), k_ = static_cast<int>(k);
  // Column by column, L is U = L^T and B is B^T, k x m.
  if (k == 1) {  // U^T y = b, U x = y
    QUADRIC_CUDA(cublasDtrsv(handle, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_T, CUBLAS_DIAG_NON_UNIT, m_, L, m_, B, 1));
    QUADRIC_CUDA(cublasDtrsv(handle, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT, m_, L, m_, B, 1));
    return;
  }
  const double one = 1;  // Y U = B^T, X^T U^T = Y
  for (cublasOperation_t op : {CUBLAS_OP_N, CUBLAS_OP_T})
    QUADRIC_CUDA(cublasDtrsm(handle, CUBLAS_SIDE_RIGHT, CUBLAS_FILL_MODE_UPPER, op, CUBLAS_DIAG_NON_UNIT, k_, m_, &one,
                             L, m_, B, k_));
}

}  // namespace linalg
}  // namespace quadric::cuda
