// What the kernels for Kronecker factors share: packs of 16 bytes, and arithmetic in the roundings of the CPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "require.hpp"

namespace quadric::cuda::factors {

constexpr int kFactors = 32;  // of a launch, whose table is an argument of the kernel: 2.3 KB of 4

template <class T, int kN>
struct alignas(kN * sizeof(T)) Several {
  T at[kN];
};
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));
template <class T>
using Pack16 = Several<T, kPack<T>>;

inline unsigned grid_of(std::int64_t blocks) {
  QUADRIC_REQUIRE(blocks <= 0x7fffffff, "J has too many rows for one launch");
  return static_cast<unsigned>(blocks);
}

inline bool aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float sum(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double sum(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return fabs(x); }

// Of a number >= 0 or NaN: the order of the bits is that of the numbers, NaN last.
__device__ __forceinline__ unsigned long long as_bits(double x) {
  return static_cast<unsigned long long>(__double_as_longlong(x)) & 0x7fffffffffffffffULL;
}

}  // namespace quadric::cuda::factors
