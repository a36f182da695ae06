// One block of threads on one column: sums, the k-th largest entry, and places in the order of rows. Sums have a fixed
// order; what is added by atomics are whole numbers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace quadric::cuda::transport::column {

constexpr unsigned kAll = 0xffffffffu;

template <class T>
__device__ T warp_sum(T x) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// The sum of x over the block, for all its threads.
template <int kThreads, class T>
__device__ T block_sum(T x) {
  __shared__ T part[kThreads / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  x = warp_sum(x);
  __syncthreads();  // an earlier call has been read
  if (lane == 0) part[warp] = x;
  __syncthreads();
  T sum = part[0];
  for (int w = 1; w < kThreads / 32; ++w) sum += part[w];
  return sum;
}

template <int kThreads>
__device__ double block_max(double x) {
  __shared__ double part[kThreads / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) x = fmax(x, __shfl_xor_sync(kAll, x, step));
  __syncthreads();
  if (lane == 0) part[warp] = x;
  __syncthreads();
  double most = part[0];
  for (int w = 1; w < kThreads / 32; ++w) most = fmax(most, part[w]);
  return most;
}

// Unsigned numbers in the order of doubles; none is 0, which stands for what does not take part. -0 counts as 0.
__host__ __device__ inline std::uint64_t ordered(double z) {
  z += 0.0;
  std::uint64_t bits;
  memcpy(&bits, &z, sizeof bits);
  return bits >> 63 ? ~bits : bits | std::uint64_t{1} << 63;
}

// The k-th largest key, and how many of those equal to it are among the first k.
struct Limit {
  std::uint64_t key = 0;  // 0: all are
  std::int64_t ties = 0;
};

// The limit of key(i), i < n, of which more than k >= 1 are not 0. Eight bits at a time; n < 2^32.
template <int kThreads, class Key>
__device__ Limit kth_largest(std::int64_t n, std::int64_t k, const Key& key) {
  __shared__ unsigned histogram[256];
  __shared__ unsigned digit_found, above_found;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  std::uint64_t prefix = 0, known = 0;
  std::int64_t left = k;
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (int t = thread; t < 256; t += kThreads) histogram[t] = 0;
    __syncthreads();
    for (std::int64_t first = 0; first < n; first += kThreads) {
      const std::int64_t i = first + thread;
      const std::uint64_t u = i < n ? key(i) : 0;
      const unsigned digit = static_cast<unsigned>(u >> shift) & 255u;
      unsigned rest = __ballot_sync(kAll, u != 0 && (u & known) == prefix);
      // The first digits are those of nearly all: a warp adds equal ones at once.
      for (int round = 0; round < 2 && rest != 0; ++round) {
        const int leader = __ffs(static_cast<int>(rest)) - 1;
        const unsigned common = __shfl_sync(kAll, digit, leader);
        const unsigned same = __ballot_sync(kAll, digit == common) & rest;
        if (lane == leader) atomicAdd(&histogram[common], static_cast<unsigned>(__popc(same)));
        rest &= ~same;
      }
      if (rest >> lane & 1u) atomicAdd(&histogram[digit], 1u);
    }
    __syncthreads();
    if (thread < 32) {  // lane l has the digits 255 - 8 l, ..., 248 - 8 l
      unsigned own = 0;
      for (int t = 0; t < 8; ++t) own += histogram[255 - 8 * lane - t];
      unsigned upto = own;
      for (int step = 1; step < 32; step <<= 1) {
        const unsigned other = __shfl_up_sync(kAll, upto, static_cast<unsigned>(step));
        if (lane >= step) upto += other;
      }
      unsigned above = upto - own;
      if (above < left && left <= upto) {  // one lane
        int digit = 255 - 8 * lane;
        while (above + histogram[digit] < left) above += histogram[digit--];
        digit_found = static_cast<unsigned>(digit);
        above_found = above;
      }
    }
    __syncthreads();
    prefix |= static_cast<std::uint64_t>(digit_found) << shift;
    known |= std::uint64_t{255} << shift;
    left -= above_found;
    __syncthreads();  // before the next round writes
  }
  return {prefix, left};
}

// For two flags: how many threads of the block before this one have them, and how many of all.
struct Ranks {
  int first, second, firsts, seconds;
};
template <int kThreads>
__device__ Ranks block_ranks(bool first, bool second) {
  __shared__ int counts[2][kThreads / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const unsigned a = __ballot_sync(kAll, first), b = __ballot_sync(kAll, second);
  __syncthreads();
  if (lane == 0) {
    counts[0][warp] = __popc(a);
    counts[1][warp] = __popc(b);
  }
  __syncthreads();
  const unsigned before = (1u << lane) - 1;
  Ranks ranks{__popc(a & before), __popc(b & before), 0, 0};
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) {
      ranks.first += counts[0][w];
      ranks.second += counts[1][w];
    }
    ranks.firsts += counts[0][w];
    ranks.seconds += counts[1][w];
  }
  return ranks;
}

}  // namespace quadric::cuda::transport::column
