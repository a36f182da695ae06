// What the router's kernels share: rows by groups of lanes, and the Laplacian of the experts.
//
// Tokens are rows, experts columns; an entry of the plan is (f_i + g_j + s_ij) / reg where that is positive. If the
// rows have the sums they must have whatever g is, the derivative of the column sums in g is L / reg with
//
//   L = diag(counts) - sum over free rows i of 1_S 1_S^T / |S|,   S: the experts of token i,
//
// the Laplacian of a graph of the experts. It is gathered in whole numbers, multiples of 2^-bits, so that sums do not
// depend on their order, and rows of L sum to 0 exactly where they should.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace quadric::cuda::transport::router {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kExperts = 1024;      // at most
constexpr int kSharedExperts = 64;  // up to here a block adds up its part of L in shared memory

using Whole = unsigned long long;  // two's complement

// Numbers up to 1, of which n are added: 62 bits hold the sum.
__host__ __device__ inline int fraction_bits(std::int64_t n) {
  int bits = 60;
  while (n > 0) {
    n >>= 1;
    --bits;
  }
  return bits < 50 ? bits : 50;
}

// Lanes that work on a row together: the power of two that the experts fill.
__host__ __device__ inline int group_width(int experts) {
  int width = 1;
  while (width < experts && width < 32) width *= 2;
  return width;
}

// The sum over the lanes of a group; all lanes of the warp call.
template <class T>
__device__ T group_sum(T x, int width) {
  for (int step = width / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// Adds a row to L: `inside(j)` says whether expert j is one of its `count` experts. All lanes of the warp call, each
// group with a row of its own; rows that are free and have one expert add nothing.
template <class Inside>
__device__ void add_row(Whole* L, int experts, int width, int count, bool free, int bits, const Inside& inside) {
  const int lane = static_cast<int>(threadIdx.x) % 32, own = lane % width, base = lane - own;
  const bool any = count > (free ? 1 : 0);
  if (!__any_sync(kAll, any)) return;
  const long long one = 1ll << bits, share = any && free ? one / count : 0;
  const long long diagonal = free ? share * (count - 1) : one;
  for (int first = 0; first < experts; first += width) {
    const int j = first + own;
    const bool mine = any && j < experts && inside(j);
    if (mine) atomicAdd(&L[j * experts + j], static_cast<Whole>(diagonal));
    if (!__any_sync(kAll, mine && free)) continue;
    for (int other = 0; other < experts; other += width) {
      const bool there = any && other + own < experts && inside(other + own);
      unsigned members = __ballot_sync(kAll, there) >> base;
      if (width < 32) members &= (1u << width) - 1;
      while (mine && free && members != 0) {
        const int l = other + __ffs(static_cast<int>(members)) - 1;
        members &= members - 1;
        if (l != j) atomicAdd(&L[j * experts + l], static_cast<Whole>(-share));
      }
    }
  }
}

// x = (L + shift)^-1 x for the lower triangle of A = L + shift, by one block of threads; rows of A are `stride` apart.
// A column whose pivot is not above `least` times its diagonal is left at 0: a part of the graph that nothing holds.
// before: n numbers of room.
template <int kThreads>
__device__ void solve(double* A, int n, int stride, double* x, double* before, double least) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  for (int i = thread; i < n; i += kThreads) before[i] = least * A[i * stride + i];
  __syncthreads();
  for (int k = 0; k < n; ++k) {
    const double pivot = A[k * stride + k];
    if (pivot > before[k] && pivot > 0) {
      const double scale = 1 / pivot;
      for (int i = k + 1 + warp; i < n; i += kThreads / 32) {
        const double a = A[i * stride + k] * scale;
        if (a == 0) continue;
        for (int j = k + 1 + lane; j <= i; j += 32) A[i * stride + j] -= a * A[j * stride + k];
      }
    }
    __syncthreads();
  }
  if (warp == 0) {
    const auto reciprocal = [&](int k) {
      const double pivot = A[k * stride + k];
      return pivot > before[k] && pivot > 0 ? 1 / pivot : 0.0;
    };
    for (int k = 0; k < n; ++k) {
      __syncwarp();
      const double known = x[k] * reciprocal(k);
      for (int i = k + 1 + lane; i < n; i += 32) x[i] -= A[i * stride + k] * known;
    }
    __syncwarp();
    for (int k = lane; k < n; k += 32) x[k] *= reciprocal(k);
    for (int k = n - 1; k > 0; --k) {
      __syncwarp();
      const double known = x[k];
      for (int i = lane; i < k; i += 32) x[i] -= A[k * stride + i] * reciprocal(i) * known;
    }
  }
  __syncthreads();
}

// Rows of A end 1 after those of L: columns are read without conflicts.
__host__ __device__ inline int solve_stride(int n) { return n + 1 - n % 2; }

}  // namespace quadric::cuda::transport::router
