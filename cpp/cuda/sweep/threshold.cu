// Masks from scores, where a threshold is needed over more than a block of columns, or over all rows. Scores are not
// negative, so their bits order like the numbers.
//
// Floor: the scores of a block, 4096 x 128, are 2 MB and stay in L2: five or six short kernels, about 3 us each.
#include <algorithm>
#include <cstdint>

#include "sweep/kernels.hpp"
#include "sweep/launch.cuh"
#include "sweep/rule.cuh"

namespace quadric::cuda::sweep {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 32;
constexpr int kParts = 32;  // threads of a row in the search of row thresholds
constexpr int kDigit = 11;  // bits that one pass over the scores of all rows finds
constexpr int kBins = 1 << kDigit;

template <class T>
__device__ typename Number<T>::Bits bits_of(T x) {
  return static_cast<typename Number<T>::Bits>(Number<T>::bits(x));
}

// ---- each row ------------------------------------------------------------------------------------------------------

// The sum of `mine` over all parts of the row.
__device__ int sum_of_parts(int mine, int (&counts)[kParts][kRows]) {
  const int row = threadIdx.x % kRows, part = threadIdx.x / kRows;
  __syncthreads();
  counts[part][row] = mine;
  __syncthreads();
  int sum = 0;
  for (int p = 0; p < kParts; ++p) sum += counts[p][row];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kRows* kParts)
    mask_each_row_kernel(const T* scores, std::int64_t columns, std::int64_t m, std::int64_t rows, std::int64_t pruned,
                         std::uint8_t* kept) {
  using Bits = typename Number<T>::Bits;
  __shared__ int counts[kParts][kRows];
  const std::int64_t tiles = (m + kRows - 1) / kRows, batch = blockIdx.x / tiles;
  const int part = threadIdx.x / kRows;
  const std::int64_t row = blockIdx.x % tiles * kRows + threadIdx.x % kRows;
  const std::int64_t share = (columns + kParts - 1) / kParts;
  const std::int64_t begin = share * part < columns ? share * part : columns;
  const std::int64_t end = row >= m ? begin : begin + share < columns ? begin + share : columns;
  const T* score = scores + batch * columns * rows + row;

  Bits threshold = 0;  // becomes the largest number with at most `pruned` scores below it
  for (int bit = static_cast<int>(sizeof(T)) * 8 - 2; bit >= 0; --bit) {
    const Bits candidate = threshold | (Bits(1) << bit);
    int below = 0;
#pragma unroll 4
    for (std::int64_t j = begin; j < end; ++j) below += bits_of(score[j * rows]) < candidate ? 1 : 0;
    if (sum_of_parts(below, counts) <= pruned) threshold = candidate;
  }
  int below = 0, equal = 0;
  for (std::int64_t j = begin; j < end; ++j) {
    below += bits_of(score[j * rows]) < threshold ? 1 : 0;
    equal += bits_of(score[j * rows]) == threshold ? 1 : 0;
  }
  std::int64_t left = pruned - sum_of_parts(below, counts);  // so many of those equal to the threshold go, the first
  sum_of_parts(equal, counts);
  for (int p = 0; p < part; ++p) left -= counts[p][threadIdx.x % kRows];
  for (std::int64_t j = begin; j < end; ++j) {
    const Bits s = bits_of(score[j * rows]);
    const bool tie = s == threshold && left > 0;
    if (tie) --left;
    kept[(batch * columns + j) * rows + row] = s < threshold || tie ? 0 : 1;
  }
}

// ---- all rows ------------------------------------------------------------------------------------------------------

// How far the search for a matrix' threshold has come: the bits found, and how many scores that begin with them go.
struct Search {
  std::uint64_t threshold;
  std::int64_t left;
};

__global__ void start_search(Search* searches, std::int64_t count, std::int64_t pruned) {
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) searches[i] = {0, pruned};
}

// Counts, among the scores that begin with the bits found so far, the values of bits [low, high). A block of threads
// takes one column.
template <class T>
__global__ void __launch_bounds__(kThreads)
    count_digits(const T* scores, std::int64_t columns, std::int64_t m, std::int64_t rows, int low, int high,
                 const Search* searches, unsigned long long* bins) {
  using Bits = typename Number<T>::Bits;
  __shared__ unsigned counts[kBins];
  const std::int64_t batch = blockIdx.x / columns;
  const T* score = scores + std::int64_t{blockIdx.x} * rows;
  const int values = 1 << (high - low);
  const Bits prefix = high < static_cast<int>(sizeof(T)) * 8 ? ~Bits(0) << high : Bits(0);
  const auto found = static_cast<Bits>(searches[batch].threshold);
  for (int v = threadIdx.x; v < values; v += kThreads) counts[v] = 0;
  __syncthreads();
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < m; i += kThreads) {
    const Bits s = bits_of(score[i]);
    if ((s & prefix) == found) atomicAdd(&counts[(s >> low) & static_cast<Bits>(values - 1)], 1U);
  }
  __syncthreads();
  for (int v = threadIdx.x; v < values; v += kThreads)
    if (counts[v] != 0) atomicAdd(&bins[batch * kBins + v], static_cast<unsigned long long>(counts[v]));
}

// Adds the digit at which `left` scores are reached to the threshold, and clears the bins.
__global__ void __launch_bounds__(kThreads) pick_digit(unsigned long long* bins, int low, int high, Search* searches) {
  constexpr int kShare = kBins / kThreads;
  __shared__ std::int64_t sums[kThreads];
  unsigned long long* bin = bins + std::int64_t{blockIdx.x} * kBins + threadIdx.x * kShare;
  const int values = 1 << (high - low);
  std::int64_t sum = 0;
  for (int v = 0; v < kShare; ++v) sum += static_cast<std::int64_t>(bin[v]);
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    Search search = searches[blockIdx.x];
    const unsigned long long* all = bins + std::int64_t{blockIdx.x} * kBins;
    int part = 0;
    while (part < kThreads - 1 && (part + 1) * kShare < values && sums[part] <= search.left)
      search.left -= sums[part++];
    int digit = part * kShare;
    for (; digit < values - 1; ++digit) {
      const auto here = static_cast<std::int64_t>(all[digit]);
      if (here > search.left) break;
      search.left -= here;
    }
    search.threshold |= static_cast<std::uint64_t>(digit) << low;
    searches[blockIdx.x] = search;
  }
  __syncthreads();
  for (int v = 0; v < kShare; ++v) bin[v] = 0;
}

constexpr int kTieParts = kThreads / kRows;

// How many of columns [begin, end) of a row equal the threshold.
template <class T>
__device__ int count_equal(const T* score, std::int64_t rows, std::int64_t begin, std::int64_t end,
                           typename Number<T>::Bits threshold) {
  int equal = 0;
#pragma unroll 4
  for (std::int64_t j = begin; j < end; ++j) equal += bits_of(score[j * rows]) == threshold ? 1 : 0;
  return equal;
}

// ties[matrix * m + row]: how many scores of the row equal the threshold.
template <class T>
__global__ void __launch_bounds__(kThreads) count_ties(const T* scores, std::int64_t columns, std::int64_t m,
                                                       std::int64_t rows, const Search* searches, std::int64_t* ties) {
  __shared__ int counts[kTieParts][kRows];
  const std::int64_t tiles = (m + kRows - 1) / kRows, batch = blockIdx.x / tiles;
  const int part = threadIdx.x / kRows;
  const std::int64_t row = blockIdx.x % tiles * kRows + threadIdx.x % kRows;
  const std::int64_t begin = columns * part / kTieParts, end = row < m ? columns * (part + 1) / kTieParts : begin;
  counts[part][threadIdx.x % kRows] = count_equal(scores + batch * columns * rows + row, rows, begin, end,
                                                  static_cast<typename Number<T>::Bits>(searches[batch].threshold));
  __syncthreads();
  if (part != 0 || row >= m) return;
  std::int64_t sum = 0;
  for (int p = 0; p < kTieParts; ++p) sum += counts[p][threadIdx.x];
  ties[batch * m + row] = sum;
}

// ties becomes the sum of those of the rows before; a block of threads takes a matrix.
__global__ void __launch_bounds__(kThreads) sum_ties(std::int64_t m, std::int64_t* ties) {
  __shared__ std::int64_t sums[kThreads];
  std::int64_t* tie = ties + blockIdx.x * m;
  const std::int64_t begin = m * threadIdx.x / kThreads, end = m * (threadIdx.x + 1) / kThreads;
  std::int64_t sum = 0;
  for (std::int64_t i = begin; i < end; ++i) sum += tie[i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  std::int64_t before = 0;
  for (unsigned t = 0; t < threadIdx.x; ++t) before += sums[t];
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t here = tie[i];
    tie[i] = before;
    before += here;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    apply_threshold(const T* scores, std::int64_t columns, std::int64_t m, std::int64_t rows, const Search* searches,
                    const std::int64_t* ties, std::uint8_t* kept) {
  __shared__ int counts[kTieParts][kRows];
  const std::int64_t tiles = (m + kRows - 1) / kRows, batch = blockIdx.x / tiles;
  const int part = threadIdx.x / kRows;
  const std::int64_t row = blockIdx.x % tiles * kRows + threadIdx.x % kRows;
  const std::int64_t begin = columns * part / kTieParts, end = row < m ? columns * (part + 1) / kTieParts : begin;
  const T* score = scores + batch * columns * rows + row;
  const auto threshold = static_cast<typename Number<T>::Bits>(searches[batch].threshold);
  counts[part][threadIdx.x % kRows] = count_equal(score, rows, begin, end, threshold);
  __syncthreads();
  if (row >= m) return;
  std::int64_t left = searches[batch].left - ties[batch * m + row];
  for (int p = 0; p < part; ++p) left -= counts[p][threadIdx.x % kRows];
  for (std::int64_t j = begin; j < end; ++j) {
    const auto s = bits_of(score[j * rows]);
    const bool tie = s == threshold && left > 0;
    if (tie) --left;
    kept[(batch * columns + j) * rows + row] = s < threshold || tie ? 0 : 1;
  }
}

}  // namespace

template <class T>
void mask_each_row(const Execution& exec, const T* scores, std::int64_t count, std::int64_t columns, std::int64_t m,
                   std::int64_t rows, std::int64_t pruned, std::uint8_t* kept) {
  launch(exec, mask_each_row_kernel<T>, (m + kRows - 1) / kRows * count, kRows * kParts, 0, scores, columns, m, rows,
         pruned, kept);
}

std::int64_t mask_workspace(std::int64_t count, std::int64_t m) {
  return count * (static_cast<std::int64_t>(sizeof(Search) / sizeof(std::int64_t)) + kBins + m);
}

template <class T>
void mask_all_rows(const Execution& exec, const T* scores, std::int64_t count, std::int64_t columns, std::int64_t m,
                   std::int64_t rows, std::int64_t pruned, std::int64_t* workspace, std::uint8_t* kept) {
  static_assert(sizeof(Search) % sizeof(std::int64_t) == 0);
  auto* searches = reinterpret_cast<Search*>(workspace);
  auto* bins = reinterpret_cast<unsigned long long*>(searches + count);
  std::int64_t* ties = workspace + mask_workspace(count, 0);
  QUADRIC_CUDA(cudaMemsetAsync(bins, 0, static_cast<std::size_t>(count * kBins) * sizeof *bins, stream(exec)));
  launch(exec, start_search, 1, kThreads, 0, searches, count, pruned);
  for (int high = static_cast<int>(sizeof(T)) * 8; high > 0;) {
    const int low = std::max(high - kDigit, 0);
    launch(exec, count_digits<T>, columns * count, kThreads, 0, scores, columns, m, rows, low, high, searches, bins);
    launch(exec, pick_digit, count, kThreads, 0, bins, low, high, searches);
    high = low;
  }
  const std::int64_t tiles = (m + kRows - 1) / kRows * count;
  launch(exec, count_ties<T>, tiles, kThreads, 0, scores, columns, m, rows, searches, ties);
  launch(exec, sum_ties, count, kThreads, 0, m, ties);
  launch(exec, apply_threshold<T>, tiles, kThreads, 0, scores, columns, m, rows, searches, ties, kept);
}

#define QUADRIC_INSTANTIATE(T)                                                                                    \
  template void mask_each_row(const Execution&, const T*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, \
                              std::int64_t, std::uint8_t*);                                                       \
  template void mask_all_rows(const Execution&, const T*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, \
                              std::int64_t, std::int64_t*, std::uint8_t*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::sweep
