// Floor: 4 bytes written for each entry of S, n = 1e6 with 8 signs each: 32 MB = 8 us; 2e6 blocks of words, 5 us. To
// be reached: 20 us, of a few hundred that the sums take. A counting sort for each record, whose order does not depend
// on which thread comes first: counts are whole numbers, and a warp places the rows of one block of S in their order.
#include "sketch/lists.cuh"

#include <limits>

#include "require.hpp"
#include "sketch/tiles.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr std::uint32_t kAll = 0xffffffffu;

std::int64_t shared_bytes(const Lists& lists) { return 4 * (lists.padded + lists.room) + 2 * lists.room; }

// starts[r] = counts[0] + ... + counts[r - 1], and the table of the record.
__device__ __forceinline__ void scan(std::uint32_t* starts, int size, std::uint32_t* table) {
  constexpr int kEach = kMostRows / kThreads;
  const int thread = static_cast<int>(threadIdx.x);
  std::uint32_t count[kEach], own = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int r = thread * kEach + e;
    count[e] = r < size ? starts[r] : 0;
    own += count[e];
  }
  std::uint32_t before = sum_before<kWarps>(own);
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int r = thread * kEach + e;
    if (r < size) {
      table[r] = before | count[e] << 16;
      starts[r] = before;
    }
    before += count[e];
  }
}

__global__ void __launch_bounds__(kThreads)
    lists_kernel(const Lists lists, const std::uint64_t first, const Batch batch, std::uint32_t* __restrict__ records) {
  extern __shared__ std::uint32_t shared[];
  __shared__ std::uint32_t total;
  std::uint32_t* const next = shared;  // where the next entry of a row of S goes
  std::uint32_t* const entries = next + lists.padded;
  std::uint16_t* const codes = reinterpret_cast<std::uint16_t*>(entries + lists.room);
  const std::int64_t t = batch.first_tile + blockIdx.x / batch.chunks;
  const std::int64_t chunk = batch.first_chunk + blockIdx.x % batch.chunks;
  std::uint32_t* const record = records + static_cast<std::int64_t>(blockIdx.x) * lists.words();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, count = lists.count(t);
  const int blocks = lists.blocks(chunk);

  for (int r = thread; r < lists.padded; r += kThreads) next[r] = 0;
  if (thread == 0) total = 0;
  draw<kThreads>(Drawn{lists.seed, lists.nnz, lists.block, lists.first_block(chunk), blocks, lists.skipped(chunk),
                       lists.count_rows(chunk)},
                 first + static_cast<std::uint64_t>(t * lists.tile), count, lists.tile, codes);
  __syncthreads();
  for (int k = 0; k < blocks; ++k)
    for (int i = thread; i < count; i += kThreads) {
      const std::uint16_t code = codes[k * lists.tile + i];
      if (code != kElsewhere) atomicAdd(next + (code & 0x7fff), 1u);
    }
  __syncthreads();
  scan(next, lists.padded, record);
  __syncthreads();
  std::uint32_t placed = 0;
  for (int k = thread / 32; k < blocks; k += kWarps) {  // other blocks have other rows of S
    for (int begin = 0; begin < count; begin += 32) {
      const int i = begin + lane;
      const std::uint16_t code = i < count ? codes[k * lists.tile + i] : kElsewhere;
      const bool here = code != kElsewhere;
      const std::uint32_t to = here ? code & 0x7fffu : kAll;
      const unsigned same = __match_any_sync(kAll, to);
      std::uint32_t place = 0;
      if (here) place = next[to] + __popc(same & ((1u << lane) - 1));
      __syncwarp();
      if (here) {
        entries[place] = static_cast<std::uint32_t>(i) | static_cast<std::uint32_t>(code >> 15) << 31;
        if ((same >> lane) == 1u) next[to] = place + 1;  // the last of them
        ++placed;
      }
      __syncwarp();
    }
  }
  if (placed > 0) atomicAdd(&total, placed);
  __syncthreads();
  const int used = static_cast<int>(total);
  for (int e = thread; e < used; e += kThreads) record[lists.padded + e] = entries[e];
}

}  // namespace

void make_lists(const Execution& exec, const Lists& lists, std::int64_t first, const Batch& batch,
                std::uint32_t* records) {
  const std::int64_t bytes = shared_bytes(lists);
  allow_shared(lists_kernel, bytes);
  lists_kernel<<<grid_of(batch.records()), kThreads, static_cast<std::size_t>(bytes), stream(exec)>>>(
      lists, static_cast<std::uint64_t>(first), batch, records);
  QUADRIC_CUDA_LAUNCHED();
}

void check_signs(std::int64_t m, std::int64_t nnz, const Place& place) {
  QUADRIC_REQUIRE(nnz >= 1, "nnz must be at least 1");
  QUADRIC_REQUIRE(m % nnz == 0, "the rows of S must be a multiple of nnz");
  QUADRIC_REQUIRE(m <= std::numeric_limits<std::int32_t>::max() / 2, "S must have less than 2^30 rows");
  QUADRIC_REQUIRE(place.first >= 0, "first must not be negative");
}

}  // namespace quadric::cuda::sketch
