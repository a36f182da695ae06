// What kernels on sparse matrices share: teams of lanes for the rows, sums over them and over blocks, transposition.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "device.hpp"

namespace quadric::cuda::transport {

constexpr unsigned kAllLanes = 0xffffffffu;

inline unsigned blocks_for(std::int64_t items, int to_a_block) {
  return static_cast<unsigned>((items + to_a_block - 1) / to_a_block);
}

// Entries column by column: those of column j are order[starts[j]], ..., order[starts[j + 1] - 1], ascending.
struct Transposed {
  const std::int64_t* starts;  // cols + 1
  const std::uint32_t* order;
};

// Columns are 0 to cols; entries of column `cols` count for none. Device memory of `scratch`.
Transposed transpose(const Execution& exec, Scratch& scratch, const std::int32_t* columns, std::int64_t size,
                     std::int64_t cols);

// starts[i] = counts[0] + ... + counts[i - 1] for i = 0 to n. counts may be starts.
void scan(const Execution& exec, const std::int64_t* counts, std::int64_t n, std::int64_t* starts);

// ---- teams
// -----------------------------------------------------------------------------------------------------------

// How many lanes, a power of two up to 32, work on a row of so many entries on average: the same for a problem on every
// device, so that its sums are the same. A lane takes four entries or so, which are on the way at the same time.
__host__ __device__ inline int lanes_for(std::int64_t entries, std::int64_t rows) {
  const std::int64_t each = rows > 0 ? entries / rows : 0;
  return each < 12 ? 4 : each < 32 ? 8 : each < 80 ? 16 : 32;
}

// Sums over aligned groups of `lanes` lanes; each lane gets it. All lanes of the warp take part.
__device__ inline double team_sum(double x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
__device__ inline double team_max(double x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x = fmax(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
__device__ inline std::int64_t team_sum(std::int64_t x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// The sum over a block of `kWarps` warps, for every thread, in one order. `room`: kWarps numbers of shared memory, free
// again once the block has met after this.
template <int kWarps>
__device__ inline double block_sum(double x, double* room) {
  static_assert(kWarps <= 32 && (kWarps & (kWarps - 1)) == 0);
  x = team_sum(x, 32);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < kWarps ? room[threadIdx.x % 32] : 0.0;
  return team_sum(x, 32);
}

}  // namespace quadric::cuda::transport
