// What kernels on blocks of weights use of the machine beyond C++: tensor cores in float64, copies into shared memory
// that run beside the arithmetic, launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "copies.cuh"
#include "device.hpp"

namespace quadric::cuda::woodbury {

constexpr unsigned kAll = 0xffffffffu;

__device__ inline double widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline double widen(__half x) { return __half2float(x); }
__device__ inline double widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// d += a b with a 8 x 4, b 4 x 8. Lane 4 r + q holds a(r, q), b(q, r), d(r, 2 q) and d(r, 2 q + 1).
__device__ inline void mma(double (&d)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
}

// Two such products with the same b, 4 S deep: one of Hopper's instructions. Entries s of a, c and b belong together;
// in what order the instruction takes them does not matter.
template <int S>
__device__ inline void mma(double (&d)[2], double (&e)[2], const double (&a)[S], const double (&c)[S],
                           const double (&b)[S]) {
  static_assert(S == 1 || S == 2 || S == 4);
  if constexpr (S == 1) {
    asm volatile("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+d"(d[0]), "+d"(d[1]), "+d"(e[0]), "+d"(e[1])
                 : "d"(a[0]), "d"(c[0]), "d"(b[0]));
  } else if constexpr (S == 2) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+d"(d[0]), "+d"(d[1]), "+d"(e[0]), "+d"(e[1])
        : "d"(a[0]), "d"(c[0]), "d"(a[1]), "d"(c[1]), "d"(b[0]), "d"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7, %8, %9, %10, %11}, "
        "{%12, %13, %14, %15}, {%0, %1, %2, %3};"
        : "+d"(d[0]), "+d"(d[1]), "+d"(e[0]), "+d"(e[1])
        : "d"(a[0]), "d"(c[0]), "d"(a[1]), "d"(c[1]), "d"(a[2]), "d"(c[2]), "d"(a[3]), "d"(c[3]), "d"(b[0]), "d"(b[1]),
          "d"(b[2]), "d"(b[3]));
  }
}

__device__ inline char* dynamic_shared() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// 16 bytes, the first `valid` of them from memory and zeros after them; addresses are multiples of 16. The last bytes
// of a row are copied one by one, because a checker of memory takes every asynchronous copy for 16 bytes.
__device__ inline void copy_async(char* to, const char* from, int valid) {
  if (valid == 16) {
    cuda::copy_async<16>(to, from);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < 16; ++i) to[i] = i < valid ? from[i] : char(0);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t grid, int threads, std::size_t shared, cudaStream_t stream,
            Arguments... arguments) {
  if (shared > 48 * 1024)
    QUADRIC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  kernel<<<static_cast<unsigned>(grid), threads, shared, stream>>>(arguments...);
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace quadric::cuda::woodbury
