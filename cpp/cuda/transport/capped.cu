// Columns of plans with at most k entries: the largest entries of z_j = f - c_j, projected onto a simplex or clipped.
//
// A block of threads has a column. Without the bound on their number, the positive entries are found by a few sums over
// the column: those above the threshold that all so far would have (Michelot), fewer each time. Only where they are
// more than k, the k-th largest is looked for, digit by digit; then the k largest are all positive. Ties go to the
// first rows, as on the CPU.
//
// Floor: one read of C at 4.2 TB/s; n = m = 10 000 in float32 95 us. To be reached: 3 times that where a column (8 n
// bytes) fits into shared memory, so that C is read once and the rest is instructions of the block; longer columns are
// read again for each sum, from L2 where C fits there. Columns that are contiguous in memory are fast, all others
// right.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <limits>

#include "device.hpp"
#include "quadric/cuda/transport.hpp"
#include "require.hpp"
#include "transport/columns.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kRounds = 256;  // of sums, at most; there are a handful

__device__ char* dynamic_shared() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// f - c_j of one column; kept in shared memory where it fits.
template <class T>
struct Column {
  const T* C;  // of the first row
  std::int64_t stride;
  const double* f;
  double* kept;  // or null

  __device__ double operator()(std::int64_t i) const {
    return kept != nullptr ? kept[i] : f[i] - static_cast<double>(C[i * stride]);
  }
};

// Writes the positive ones of ((z + first) + second) / reg among the entries not below `floor` and within the limit.
template <int kThreads, class Z>
__device__ void write(const Z& z, std::int64_t n, double floor, column::Limit limit, double first, double second,
                      double reg, std::int64_t k, std::int32_t* indices, double* values) {
  std::int64_t count = 0, ties = 0;
  for (std::int64_t start = 0; start < n; start += kThreads) {
    const std::int64_t i = start + threadIdx.x;
    const double entry = i < n ? z(i) : 0.0;
    const bool candidate = i < n && entry >= floor;
    const std::uint64_t key = candidate ? column::ordered(entry) : 0;
    const double value = ((entry + first) + second) / reg;
    bool taken = candidate && key > limit.key;
    if (limit.key != 0) {  // the same for all threads
      const bool tie = key == limit.key;
      const column::Ranks ranks = column::block_ranks<kThreads>(tie, false);
      taken = taken || (tie && ties + ranks.first < limit.ties);
      ties += ranks.firsts;
    }
    const column::Ranks ranks = column::block_ranks<kThreads>(taken && value > 0, false);
    const std::int64_t place = count + ranks.first;
    if (taken && value > 0 && place < k) {
      indices[place] = static_cast<std::int32_t>(i);
      values[place] = value;
    }
    count += ranks.firsts;
  }
  for (std::int64_t p = count + threadIdx.x; p < k; p += kThreads) {
    indices[p] = static_cast<std::int32_t>(n);
    values[p] = 0;
  }
}

template <class T, int kThreads, bool kDual>
__global__ void __launch_bounds__(kThreads)
    columns_kernel(const T* __restrict__ M, std::int64_t n, std::int64_t row_stride, std::int64_t col_stride,
                   const double* __restrict__ f, const double* __restrict__ given, std::int64_t k, double reg,
                   bool keep, std::int32_t* __restrict__ indices, double* __restrict__ values, double* __restrict__ g) {
  const std::int64_t j = blockIdx.x;
  Column<T> z{M + j * col_stride, row_stride, f, nullptr};
  double* const kept = reinterpret_cast<double*>(dynamic_shared());
  double top = -kInfinity;
  if (keep || !kDual) {
    for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
      const double entry = z(i);
      if (keep) kept[i] = entry;
      top = fmax(top, entry);
    }
    if (!kDual) top = column::block_max<kThreads>(top);
    __syncthreads();
    if (keep) z.kept = kept;
  }
  // The CPU's floor may be higher; what lies between the two is not positive or not among the k largest.
  const double mass = kDual ? 0.0 : reg * given[j], floor = kDual               ? -given[j]
                                                            : top == -kInfinity ? kInfinity
                                                                                : top - mass;
  double threshold = -mass;
  std::int64_t count = 0;
  if (kDual) {
    std::int64_t own = 0;
    for (std::int64_t i = threadIdx.x; i < n; i += kThreads) own += z(i) >= floor;
    count = column::block_sum<kThreads>(own);
  } else if (top != -kInfinity) {
    std::int64_t before = -1;
    for (int round = 0; round < kRounds && count != before; ++round) {
      double sum = 0;
      std::int64_t own = 0;
      for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
        const double entry = z(i) - top;
        if (round == 0 ? entry >= threshold : entry > threshold) {
          sum += entry;
          ++own;
        }
      }
      before = count;
      count = column::block_sum<kThreads>(own);
      sum = column::block_sum<kThreads>(sum);
      if (count > 0) threshold = (sum - mass) / static_cast<double>(count);
    }
  }
  column::Limit limit;
  if (count > k) {
    limit = column::kth_largest<kThreads>(n, k, [&](std::int64_t i) {
      const double entry = z(i);
      return entry >= floor ? column::ordered(entry) : std::uint64_t{0};
    });
    if (!kDual) {
      double sum = 0;
      for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
        const double entry = z(i);
        if (entry >= floor && column::ordered(entry) > limit.key) sum += entry - top;
      }
      sum = column::block_sum<kThreads>(sum);
      // The ties are equal: the limit itself, as often as it counts.
      std::uint64_t bits = limit.key >> 63 ? limit.key & ~(std::uint64_t{1} << 63) : ~limit.key;
      double least;
      memcpy(&least, &bits, sizeof least);
      threshold = (sum + static_cast<double>(limit.ties) * (least - top) - mass) / static_cast<double>(k);
    }
  }
  if (kDual) {
    write<kThreads>(z, n, floor, limit, given[j], 0.0, reg, k, indices + j * k, values + j * k);
  } else {
    write<kThreads>(z, n, floor, limit, -top, -threshold, reg, k, indices + j * k, values + j * k);
    if (threadIdx.x == 0) g[j] = -(top + threshold);
  }
}

template <class T, int kThreads, bool kDual>
void launch_columns(const Execution& exec, MatrixView<const T> M, const double* f, const double* given, std::int64_t k,
                    double reg, std::int32_t* indices, double* values, double* g) {
  const auto bytes = static_cast<std::size_t>(M.rows) * sizeof(double);
  const bool keep = M.rows <= (std::int64_t{1} << 20) && bytes + 4096 <= static_cast<std::size_t>(shared_limit());
  const auto kernel = columns_kernel<T, kThreads, kDual>;
  if (keep && bytes > 40 * 1024)
    QUADRIC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const std::size_t shared = keep ? bytes : 0;
  kernel<<<static_cast<unsigned>(M.cols), kThreads, shared, stream(exec)>>>(M.data, M.rows, M.row_stride, M.col_stride,
                                                                            f, given, k, reg, keep, indices, values, g);
  QUADRIC_CUDA_LAUNCHED();
}

template <bool kDual, class T>
void columns_of(const Execution& exec, MatrixView<const T> M, const double* f, const double* given, std::int64_t k,
                double reg, std::int32_t* indices, double* values, double* g) {
  QUADRIC_REQUIRE(M.rows < std::numeric_limits<std::int32_t>::max(), "M must have fewer than 2^31 - 1 rows");
  QUADRIC_REQUIRE(M.cols < std::numeric_limits<std::int32_t>::max(), "M must have fewer than 2^31 - 1 columns");
  QUADRIC_REQUIRE(k >= 1, "k must be at least 1");
  QUADRIC_REQUIRE(reg > 0, "reg must be above 0");
  if (M.cols == 0) return;
  if (M.rows <= 4096) {
    launch_columns<T, 256, kDual>(exec, M, f, given, k, reg, indices, values, g);
  } else {
    launch_columns<T, 1024, kDual>(exec, M, f, given, k, reg, indices, values, g);
  }
}

// ---- what the search for places needs of a cost on the device -------------------------------------------------------

constexpr int kThreads = 256;

inline unsigned blocks_for(std::int64_t entries) {
  const std::int64_t blocks = (entries + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < (1 << 20) ? blocks : 1 << 20);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    largest_kernel(const T* M, std::int64_t n, std::int64_t row_stride, std::int64_t col_stride, double* out) {
  const std::int64_t j = blockIdx.x;
  double most = -kInfinity;
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
    const double entry = static_cast<double>(M[i * row_stride + j * col_stride]);
    if (entry < kInfinity) most = fmax(most, entry);
  }
  most = column::block_max<kThreads>(most);
  if (threadIdx.x == 0) out[j] = most;
}

template <class T>
__global__ void __launch_bounds__(kThreads) forbid_kernel(T* out, std::int64_t count) {
  for (std::int64_t p = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; p < count;
       p += gridDim.x * std::int64_t{kThreads})
    out[p] = std::numeric_limits<T>::infinity();
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    keep_kernel(const T* M, std::int64_t n, std::int64_t row_stride, std::int64_t col_stride,
                const std::int32_t* places, std::int64_t k, std::int64_t count, T* out) {
  for (std::int64_t p = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; p < count;
       p += gridDim.x * std::int64_t{kThreads}) {
    const std::int64_t i = places[p], j = p / k;
    if (i >= 0 && i < n) out[i + j * n] = M[i * row_stride + j * col_stride];
  }
}

}  // namespace

template <class T>
void capped_columns(const Execution& exec, MatrixView<const T> M, const double* f, const double* b, std::int64_t k,
                    double reg, std::int32_t* indices, double* values, double* g) {
  columns_of<false>(exec, M, f, b, k, reg, indices, values, g);
}

template <class T>
void capped_dual(const Execution& exec, MatrixView<const T> M, const double* f, const double* g, std::int64_t k,
                 double reg, std::int32_t* indices, double* values) {
  columns_of<true>(exec, M, f, g, k, reg, indices, values, nullptr);
}

template <class T>
void largest_finite(const Execution& exec, MatrixView<const T> M, double* out) {
  QUADRIC_REQUIRE(M.cols < std::numeric_limits<std::int32_t>::max(), "M must have fewer than 2^31 - 1 columns");
  if (M.cols == 0) return;
  largest_kernel<<<static_cast<unsigned>(M.cols), kThreads, 0, stream(exec)>>>(M.data, M.rows, M.row_stride,
                                                                               M.col_stride, out);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void keep_places(const Execution& exec, MatrixView<const T> M, const std::int32_t* places, std::int64_t k, T* out) {
  if (M.rows == 0 || M.cols == 0) return;
  forbid_kernel<<<blocks_for(M.rows * M.cols), kThreads, 0, stream(exec)>>>(out, M.rows * M.cols);
  QUADRIC_CUDA_LAUNCHED();
  if (k == 0) return;
  keep_kernel<<<blocks_for(M.cols * k), kThreads, 0, stream(exec)>>>(M.data, M.rows, M.row_stride, M.col_stride, places,
                                                                     k, M.cols * k, out);
  QUADRIC_CUDA_LAUNCHED();
}

#define QUADRIC_INSTANTIATE(T)                                                                                  \
  template QUADRIC_API void capped_columns(const Execution&, MatrixView<const T>, const double*, const double*, \
                                           std::int64_t, double, std::int32_t*, double*, double*);              \
  template QUADRIC_API void capped_dual(const Execution&, MatrixView<const T>, const double*, const double*,    \
                                        std::int64_t, double, std::int32_t*, double*);                          \
  template QUADRIC_API void largest_finite(const Execution&, MatrixView<const T>, double*);                     \
  template QUADRIC_API void keep_places(const Execution&, MatrixView<const T>, const std::int32_t*, std::int64_t, T*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::transport
