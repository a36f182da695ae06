// Sparse matrices by columns: which entries each column has, in the order of the rows.
//
// Floor: a stable sort by column of E entries in two or three digits of 8 bits, each a read and a write of 8 bytes an
// entry: 32 E to 48 E bytes, 10 us for 1e6 entries where the second-level cache holds them; 30 us with its launches.
// Stable, so that the sums of the columns have one order, whatever the device.
#include <cub/device/device_radix_sort.cuh>

#include "require.hpp"
#include "transport/sparse.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kThreads = 256;

__global__ void count_up_kernel(std::uint32_t* to, std::int64_t size) {
  const std::int64_t k = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  if (k < size) to[k] = static_cast<std::uint32_t>(k);
}

// starts[j]: the first of the sorted entries whose column is not less than j.
__global__ void starts_kernel(const std::int32_t* sorted, std::int64_t size, std::int64_t cols, std::int64_t* starts) {
  const std::int64_t j = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  if (j > cols) return;
  std::int64_t low = 0, high = size;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (sorted[middle] < j)
      low = middle + 1;
    else
      high = middle;
  }
  starts[j] = low;
}

// One block: 8 192 numbers in each round, 8 of them a thread's.
constexpr int kScanThreads = 1024, kScanEach = 8;
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(const std::int64_t* counts, std::int64_t n, std::int64_t* starts) {
  __shared__ std::int64_t of_warp[kScanThreads / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  std::int64_t before = 0;
  for (std::int64_t first = 0; first < n; first += kScanThreads * kScanEach) {
    const std::int64_t begin = first + threadIdx.x * kScanEach;
    std::int64_t count[kScanEach], mine = 0;
#pragma unroll
    for (int e = 0; e < kScanEach; ++e) {
      count[e] = begin + e < n ? counts[begin + e] : 0;
      mine += count[e];
    }
    std::int64_t up_to = mine;  // of the warp, this thread included
    for (int step = 1; step < 32; step *= 2) {
      const std::int64_t other = __shfl_up_sync(kAllLanes, up_to, step);
      if (lane >= step) up_to += other;
    }
    if (lane == 31) of_warp[warp] = up_to;
    __syncthreads();  // all counts of this round have been read: starts may be where they were
    std::int64_t total = 0, sum = before + up_to - mine;
    for (int w = 0; w < kScanThreads / 32; ++w) {
      if (w < warp) sum += of_warp[w];
      total += of_warp[w];
    }
    before += total;
#pragma unroll
    for (int e = 0; e < kScanEach; ++e) {
      if (begin + e < n) starts[begin + e] = sum;
      sum += count[e];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) starts[n] = before;
}

}  // namespace

void scan(const Execution& exec, const std::int64_t* counts, std::int64_t n, std::int64_t* starts) {
  scan_kernel<<<1, kScanThreads, 0, stream(exec)>>>(counts, n, starts);
  QUADRIC_CUDA_LAUNCHED();
}

Transposed transpose(const Execution& exec, Scratch& scratch, const std::int32_t* columns, std::int64_t size,
                     std::int64_t cols) {
  QUADRIC_REQUIRE(size <= std::int64_t{0xffffffff}, "a list must have less than 2^32 entries");
  auto* const starts = scratch.get<std::int64_t>(cols + 1);
  auto* const order = scratch.get<std::uint32_t>(size);
  auto* const sorted = scratch.get<std::int32_t>(size);
  if (size > 0) {
    auto* const unsorted = scratch.get<std::uint32_t>(size);
    count_up_kernel<<<blocks_for(size, kThreads), kThreads, 0, stream(exec)>>>(unsorted, size);
    QUADRIC_CUDA_LAUNCHED();
    int bits = 1;
    while (bits < 31 && cols >> bits != 0) ++bits;  // a column may be `cols`
    std::size_t bytes = 0;
    QUADRIC_CUDA(
        cub::DeviceRadixSort::SortPairs(nullptr, bytes, columns, sorted, unsorted, order, size, 0, bits, stream(exec)));
    auto* const memory = scratch.get<char>(static_cast<std::int64_t>(bytes));
    QUADRIC_CUDA(
        cub::DeviceRadixSort::SortPairs(memory, bytes, columns, sorted, unsorted, order, size, 0, bits, stream(exec)));
  }
  starts_kernel<<<blocks_for(cols + 1, kThreads), kThreads, 0, stream(exec)>>>(sorted, size, cols, starts);
  QUADRIC_CUDA_LAUNCHED();
  return {starts, order};
}

}  // namespace quadric::cuda::transport
