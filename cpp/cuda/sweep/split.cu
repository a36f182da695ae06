// The splitting of float32 into parts of bfloat16. Floor: 4 bytes read and 12 written for each number at 4.2 TB/s; a
// panel of 512 columns and 4096 rows with its block of the factor, 512 x 3584: 60 MB, 15 us. The products: 2 m n k
// flops at a sixth of 760 TFLOP/s, 127, where float32 has 51.
#include "sweep/split.hpp"

#include <cuda_bf16.h>

#include <algorithm>

#include "require.hpp"
#include "sweep/launch.cuh"

namespace quadric::cuda::sweep {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = 8;  // numbers that a thread splits: 16 bytes of each part

struct Parts {
  __nv_bfloat16 high, middle, low;

  __device__ explicit Parts(float x) {
    high = __float2bfloat16_rn(x);
    x -= __bfloat162float(high);
    middle = __float2bfloat16_rn(x);
    low = __float2bfloat16_rn(x - __bfloat162float(middle));
  }
};

struct alignas(16) Pack {
  __nv_bfloat16 x[kPack];
};
struct alignas(16) Four {
  float x[4];
};

// A thread for each pack of each column. kWhole: packs are aligned and columns made of whole ones.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads)
    split_kernel(bool left, std::int64_t packs, std::int64_t columns, std::int64_t length, Columns<const float> from,
                 Columns<std::uint16_t> to, std::int64_t apart, std::int64_t work) {
  const std::int64_t id = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (id >= work) return;
  const std::int64_t column = id / packs, at = (id - column * packs) * kPack;
  const std::int64_t matrix = column / columns, j = column - matrix * columns;
  const float* const in = from.data + matrix * from.stride + j * from.ld + at;
  auto* const out = reinterpret_cast<__nv_bfloat16*>(to.data) + matrix * to.stride + j * to.ld + at;
  const int some = kWhole ? kPack : static_cast<int>(min(length - at, std::int64_t{kPack}));

  float x[kPack];
  if constexpr (kWhole) {
#pragma unroll
    for (int u = 0; u < kPack / 4; ++u) {
      const Four four = reinterpret_cast<const Four*>(in)[u];
#pragma unroll
      for (int v = 0; v < 4; ++v) x[4 * u + v] = four.x[v];
    }
  } else {
#pragma unroll
    for (int u = 0; u < kPack; ++u) x[u] = u < some ? in[u] : 0.0f;
  }
  Pack high, middle, low;
#pragma unroll
  for (int u = 0; u < kPack; ++u) {
    const Parts parts(x[u]);
    high.x[u] = parts.high;
    middle.x[u] = parts.middle;
    low.x[u] = parts.low;
  }
  const auto put = [&](int segment, const Pack& pack) {
    if constexpr (kWhole) {
      *reinterpret_cast<Pack*>(out + segment * apart) = pack;
    } else {
#pragma unroll
      for (int u = 0; u < kPack; ++u)
        if (u < some) out[segment * apart + u] = pack.x[u];
    }
  };
  put(0, left ? high : low);
  put(1, left ? low : high);
  put(2, left ? high : middle);
  put(3, middle);
  put(4, left ? middle : high);
  put(5, high);
}

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

}  // namespace

void split(const Execution& exec, Side side, std::int64_t count, std::int64_t columns, std::int64_t length,
           const Columns<const float>& from, const Columns<std::uint16_t>& to, std::int64_t apart) {
  const auto packs_of = [](std::int64_t x) { return (x + kPack - 1) / kPack; };
  const std::int64_t packs = packs_of(length), work = count * columns * packs;
  const bool whole = length % kPack == 0 && apart % kPack == 0 && to.ld % kPack == 0 && to.stride % kPack == 0 &&
                     from.ld % 4 == 0 && from.stride % 4 == 0 && aligned(from.data) && aligned(to.data);
  launch(exec, whole ? split_kernel<true> : split_kernel<false>, (work + kThreads - 1) / kThreads, kThreads, 0,
         side == Side::left, packs, columns, length, from, to, apart, work);
}

void multiply_parts(cublasHandle_t handle, std::int64_t count, std::int64_t m, std::int64_t n, std::int64_t k,
                    const Columns<const std::uint16_t>& A, const Columns<const std::uint16_t>& B, float beta,
                    const Columns<float>& C) {
  const float one = 1;
  const auto number = [](std::int64_t x) { return static_cast<int>(x); };
  if (count == 1)
    QUADRIC_CUDA(cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, number(m), number(n), number(kSegments * k), &one,
                              A.data, CUDA_R_16BF, number(A.ld), B.data, CUDA_R_16BF, number(B.ld), &beta, C.data,
                              CUDA_R_32F, number(C.ld), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  else
    QUADRIC_CUDA(cublasGemmStridedBatchedEx(
        handle, CUBLAS_OP_N, CUBLAS_OP_N, number(m), number(n), number(kSegments * k), &one, A.data, CUDA_R_16BF,
        number(A.ld), A.stride, B.data, CUDA_R_16BF, number(B.ld), B.stride, &beta, C.data, CUDA_R_32F, number(C.ld),
        C.stride, number(count), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

}  // namespace quadric::cuda::sweep
