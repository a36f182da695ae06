// The factor of a Hessian in reversed sweep order.
//
// Floor for n = 4096 in float32: symmetry_defect 64 MB, 16 us; gather 128 MB, 31 us; cholesky n^3/3 flops, 0.5 ms at
// 50 TFLOP/s and 32 MB of zeros, 8 us. The first two should reach 70 % of the bandwidth; cuSOLVER's potrf takes
// about 1.9 ms. A batch of 64 with n = 2048: symmetry_defect 0.26 ms, gather 0.51 ms, 1.8e11 flops 3.7 ms, or 1.6 ms
// from parts of float16 (potrf_batch.cu); reach 0.4, 0.6 and 3.5 ms.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "device.hpp"
#include "linalg/potrf.hpp"
#include "linalg/triangle.cuh"
#include "quadric/cuda/sweep.hpp"
#include "require.hpp"
#include "sweep/potrf_batch.hpp"

namespace quadric::cuda::sweep {
namespace {

constexpr int kTile = 32;
constexpr int kRows = 8;  // rows of a tile that are read at a time
constexpr int kThreads = 256;
constexpr std::int64_t kStrip = std::int64_t{32} << 20;  // bytes: what is permuted at a time stays in L2
constexpr unsigned kBlocks = 1 << 20;                    // blocks at most; they go on until all work is done
constexpr std::int64_t kPartial = 2112;                  // of those that compare tiles, over all matrices
constexpr std::int64_t kClearing = 8448;                 // of those that clear tiles
constexpr unsigned kMatrices = 65535;                    // of a grid

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

unsigned blocks(std::int64_t work) { return static_cast<unsigned>(std::min<std::int64_t>(work, kBlocks)); }

template <class T>
void check_square(const MatrixView<T>& A, const char* message) {
  QUADRIC_REQUIRE(A.rows == A.cols && (A.rows == 0 || (A.col_stride == 1 && A.row_stride == A.cols)), message);
}

// ---- symmetry ------------------------------------------------------------------------------------------------------

struct Extent {  // without initializers: shared memory has none
  double defect, largest;
  bool finite;
};

__device__ void combine(Extent& a, const Extent& b) {
  a.defect = fmax(a.defect, b.defect);
  a.largest = fmax(a.largest, b.largest);
  a.finite = a.finite && b.finite;
}

// The extent of a block of kThreads threads, in thread 0.
__device__ Extent over_block(Extent mine) {
  __shared__ Extent of_thread[kThreads];
  const int t = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  of_thread[t] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) combine(of_thread[t], of_thread[t + half]);
  }
  return of_thread[0];
}

// Every tile on and below the diagonal with its mirror image, of gridDim.y matrices `apart` entries from each other.
// Blocks of 32 x 8 threads; out has one extent for each.
template <class T>
__global__ void compare_tiles(MatrixView<const T> H, std::int64_t apart, std::int64_t tiles, Extent* out) {
  H.data += blockIdx.y * apart;
  __shared__ T mirror[kTile][kTile + 1];
  const std::int64_t n = H.rows;
  const int x = static_cast<int>(threadIdx.x), y0 = static_cast<int>(threadIdx.y);
  T defect = 0, largest = 0;
  bool finite = true;
  for (std::int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const LowerEntry<std::int64_t> tile = lower_entry<double>(t);
    const std::int64_t r0 = tile.row * kTile, c0 = tile.column * kTile;
    T entry[kTile / kRows];
#pragma unroll
    for (int s = 0; s < kTile / kRows; ++s) {
      const int y = y0 + s * kRows;
      entry[s] = r0 + y < n && c0 + x < n ? H.data[(r0 + y) * H.row_stride + (c0 + x) * H.col_stride] : T(0);
      mirror[y][x] = c0 + y < n && r0 + x < n ? H.data[(c0 + y) * H.row_stride + (r0 + x) * H.col_stride] : T(0);
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kTile / kRows; ++s) {
      const T a = entry[s], b = mirror[x][y0 + s * kRows];
      defect = fmax(defect, fabs(a - b));
      largest = fmax(largest, fmax(fabs(a), fabs(b)));
      finite = finite && isfinite(a) && isfinite(b);
    }
    __syncthreads();
  }
  const Extent mine = over_block({static_cast<double>(defect), static_cast<double>(largest), finite});
  if (x == 0 && y0 == 0) out[static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = mine;
}

// A block for each matrix, which has `count` extents.
__global__ void conclude(const Extent* extents, std::int64_t count, double* out) {
  extents += blockIdx.x * count;
  out += blockIdx.x;
  Extent mine = {0, 0, true};
  for (std::int64_t t = threadIdx.x; t < count; t += kThreads) combine(mine, extents[t]);
  mine = over_block(mine);
  if (threadIdx.x != 0) return;
  if (!mine.finite)
    *out = std::numeric_limits<double>::quiet_NaN();
  else
    *out = mine.largest > 0 ? mine.defect / mine.largest : 0.0;
}

template <class T>
void defects(const Execution& exec, std::int64_t count, MatrixView<const T> H, std::int64_t apart, double* out) {
  const std::int64_t tiles = packed(ceil_div(H.rows, kTile));
  const std::int64_t each = std::min(tiles, std::max<std::int64_t>(kPartial / count, 32));
  const std::int64_t some = std::min<std::int64_t>(count, kMatrices);
  Scratch scratch(exec);
  Extent* const extents = scratch.get<Extent>(some * each);
  for (std::int64_t k = 0; k < count; k += some) {
    const auto here = static_cast<unsigned>(std::min(some, count - k));
    if (tiles > 0) {
      compare_tiles<T>
          <<<dim3(static_cast<unsigned>(each), here), dim3(kTile, kRows), 0, stream(exec)>>>(H, apart, tiles, extents);
      QUADRIC_CUDA_LAUNCHED();
    }
    conclude<<<here, kThreads, 0, stream(exec)>>>(extents, each, out + k);
    QUADRIC_CUDA_LAUNCHED();
    H.data += some * apart;
  }
}

// ---- order ---------------------------------------------------------------------------------------------------------

// Entry j of `order` reversed.
__device__ std::int64_t source(const std::int64_t* order, std::int64_t n, std::int64_t j) { return order[n - 1 - j]; }

// Matrices stand one after the other, their orders and dead inputs (or null) too. A block for each row of A. A row of H
// stays in L1 while its entries are picked.
template <class T>
__global__ void gather_all(std::int64_t count, std::int64_t n, const T* __restrict__ H,
                           const std::int64_t* __restrict__ order, const bool* __restrict__ dead, T* __restrict__ A) {
  for (std::int64_t row = blockIdx.x; row < count * n; row += gridDim.x) {
    const std::int64_t k = row / n, j = row - k * n;
    const std::int64_t* __restrict__ const mine = order + k * n;
    const bool* __restrict__ const gone = dead == nullptr ? nullptr : dead + k * n;
    const std::int64_t from_row = source(mine, n, j);
    const T* __restrict__ const from = H + (k * n + from_row) * n;
    const bool none = gone != nullptr && gone[from_row];
#pragma unroll 4
    for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
      const std::int64_t at = source(mine, n, i);
      A[row * n + i] = none || (gone != nullptr && gone[at]) ? T(0) : from[at];
    }
  }
}

// The same for one matrix with any strides.
template <class T>
__global__ void gather_rows(MatrixView<const T> H, const std::int64_t* __restrict__ order, T* __restrict__ A) {
  const std::int64_t n = H.rows;
  for (std::int64_t j = blockIdx.x; j < n; j += gridDim.x) {
    const T* __restrict__ const from = H.data + source(order, n, j) * H.row_stride;
#pragma unroll 4
    for (std::int64_t i = threadIdx.x; i < n; i += kThreads) A[j * n + i] = from[source(order, n, i) * H.col_stride];
  }
}

// The same where entries of a column lie closer together: by tiles that are turned. Blocks of 32 x 8 threads.
template <class T>
__global__ void gather_columns(MatrixView<const T> H, const std::int64_t* __restrict__ order, T* __restrict__ A) {
  __shared__ T tile[kTile][kTile + 1];
  const std::int64_t n = H.rows, across = (n + kTile - 1) / kTile;
  const int x = static_cast<int>(threadIdx.x);
  for (std::int64_t t = blockIdx.x; t < across * across; t += gridDim.x) {
    const std::int64_t j0 = t / across * kTile, i0 = t % across * kTile;
    if (j0 + x < n) {
      const T* const from = H.data + source(order, n, j0 + x) * H.row_stride;
      for (int y = static_cast<int>(threadIdx.y); y < kTile && i0 + y < n; y += kRows)
        tile[y][x] = from[source(order, n, i0 + y) * H.col_stride];
    }
    __syncthreads();
    if (i0 + x < n)
      for (int y = static_cast<int>(threadIdx.y); y < kTile && j0 + y < n; y += kRows)
        A[(j0 + y) * n + i0 + x] = tile[x][y];
    __syncthreads();
  }
}

// Permutes every row of A in place by way of a copy in shared memory, or, where a row is too long, in `rows`.
template <class T, bool Shared>
__global__ void permute_columns(const std::int64_t* __restrict__ order, std::int64_t n, T* A, T* rows) {
  extern __shared__ double shared[];
  T* copy;
  if constexpr (Shared)
    copy = reinterpret_cast<T*>(shared);
  else
    copy = rows + blockIdx.x * n;
  for (std::int64_t j = blockIdx.x; j < n; j += gridDim.x) {
    T* const row = A + j * n;
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) copy[i] = row[i];
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) row[i] = copy[source(order, n, i)];
    __syncthreads();
  }
}

// strip_jc = A_source(j),c for the `width` columns from A on. A block for each row.
template <class T>
__global__ void permute_strip(const std::int64_t* __restrict__ order, std::int64_t n, const T* __restrict__ A,
                              std::int64_t width, T* __restrict__ strip) {
  for (std::int64_t j = blockIdx.x; j < n; j += gridDim.x) {
    const T* const from = A + source(order, n, j) * n;
    for (std::int64_t c = threadIdx.x; c < width; c += kThreads) strip[j * width + c] = from[c];
  }
}

template <class T>
void permute_in_place(const Execution& exec, const std::int64_t* order, std::int64_t n, T* A) {
  Scratch scratch(exec);
  const std::int64_t row = n * static_cast<std::int64_t>(sizeof(T));
  if (row <= shared_limit()) {
    QUADRIC_CUDA(cudaFuncSetAttribute(permute_columns<T, true>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(row)));
    const int threads = n >= 8192 ? 1024 : kThreads;
    const auto bytes = static_cast<std::size_t>(row);
    permute_columns<T, true><<<blocks(n), threads, bytes, stream(exec)>>>(order, n, A, nullptr);
  } else {
    constexpr unsigned some = 264;
    permute_columns<T, false><<<some, 1024, 0, stream(exec)>>>(order, n, A, scratch.get<T>(some * n));
  }
  QUADRIC_CUDA_LAUNCHED();

  const std::int64_t width = std::min(n, std::max<std::int64_t>(kStrip / row / 32 * 32, 32));
  T* const strip = scratch.get<T>(n * width);
  for (std::int64_t first = 0; first < n; first += width) {
    const std::int64_t columns = std::min(width, n - first);
    permute_strip<T><<<blocks(n), kThreads, 0, stream(exec)>>>(order, n, A + first, columns, strip);
    QUADRIC_CUDA_LAUNCHED();
    const auto bytes = static_cast<std::size_t>(columns) * sizeof(T);
    QUADRIC_CUDA(cudaMemcpy2DAsync(A + first, static_cast<std::size_t>(row), strip, bytes, bytes,
                                   static_cast<std::size_t>(n), cudaMemcpyDeviceToDevice, stream(exec)));
  }
}

// The diagonal of each matrix, a block for each: which inputs are dead, and what to add to the others.
template <class T>
__global__ void __launch_bounds__(kThreads) read_diagonals(std::int64_t n, const T* __restrict__ H, double damping,
                                                           bool* dead, double* original, double* shift) {
  __shared__ double sums[kThreads];
  __shared__ int counts[kThreads];
  const std::int64_t k = blockIdx.x;
  const int t = static_cast<int>(threadIdx.x);
  double sum = 0;
  int live = 0;
  for (std::int64_t j = t; j < n; j += kThreads) {
    const double d = static_cast<double>(H[k * n * n + j * (n + 1)]);
    original[k * n + j] = d;
    dead[k * n + j] = d == 0;
    sum += d;
    live += d != 0;
  }
  sums[t] = sum;
  counts[t] = live;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) {
      sums[t] += sums[t + half];
      counts[t] += counts[t + half];
    }
  }
  if (t == 0) shift[k] = damping * sums[0] / counts[0];  // NaN without a live input
}

// The place of each column in the sweep: its own, or by falling diagonal, the first column first among equals. NaN
// comes last. A thread for each column of gridDim.y matrices at a time.
__global__ void __launch_bounds__(kThreads)
    arrange_columns(std::int64_t count, std::int64_t n, bool activation, const bool* dead, const double* original,
                    const double* shift, const std::int32_t* group, std::int64_t* order, double* damped,
                    std::int32_t* index) {
  __shared__ double others[kThreads];
  const std::int64_t j = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const auto key = [&](double d) { return isnan(d) ? -std::numeric_limits<double>::infinity() : d; };
  for (std::int64_t k = blockIdx.y; k < count; k += gridDim.y) {
    const double* const diagonal = original + k * n;
    const double mine = j < n ? diagonal[j] : 0;
    std::int64_t place = j;
    if (activation) {
      place = 0;
      for (std::int64_t first = 0; first < n; first += kThreads) {
        __syncthreads();
        if (first + threadIdx.x < n) others[threadIdx.x] = key(diagonal[first + threadIdx.x]);
        __syncthreads();
        const int some = static_cast<int>(min(n - first, static_cast<std::int64_t>(kThreads)));
        for (int i = 0; i < some; ++i)
          place += others[i] > key(mine) || (others[i] == key(mine) && first + i < j) ? 1 : 0;
      }
    }
    if (j >= n) continue;
    order[k * n + place] = j;
    damped[k * n + place] = !dead[k * n + j] ? mine + shift[k] : isnan(shift[k]) ? 0.0 : 1.0;
    if (index != nullptr) index[k * n + j] = group[place];
  }
}

// ---- factor --------------------------------------------------------------------------------------------------------

// Matrices stand one after the other; gridDim.y of them at a time.
template <class T>
__global__ void set_diagonal(std::int64_t count, std::int64_t n, const double* diagonal, T* A) {
  const std::int64_t j = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= n) return;
  for (std::int64_t k = blockIdx.y; k < count; k += gridDim.y)
    A[k * n * n + j * (n + 1)] = static_cast<T>(diagonal[k * n + n - 1 - j]);
}

// From cuSOLVER's info (0, or a pivot counted from 1) and the diagonal, as NaN may have passed: the sweep position of
// the first pivot that is not positive and finite, or -1. A block for each matrix.
template <class T>
__global__ void find_pivot(std::int64_t n, const T* A, const int* info, std::int64_t* pivot) {
  __shared__ long long first;
  const std::int64_t k = blockIdx.x;
  const std::int64_t limit = info[k] > 0 ? info[k] - 1 : n;
  if (threadIdx.x == 0) first = info[k] > 0 ? limit : n;
  __syncthreads();
  for (std::int64_t j = threadIdx.x; j < limit; j += blockDim.x) {
    const T root = A[k * n * n + j * (n + 1)];
    if (!(root > 0 && isfinite(root))) atomicMin(&first, static_cast<long long>(j));
  }
  __syncthreads();
  if (threadIdx.x == 0) pivot[k] = first < n ? n - 1 - first : -1;
}

// The strict lower triangle becomes zero; after a failure the upper one takes back what it was, if that is there, or
// the matrix becomes that of ones on the diagonal. Blocks of 32 x 8 threads; gridDim.y matrices at a time.
template <class T>
__global__ void clear_or_restore(std::int64_t count, std::int64_t n, std::int64_t tiles, const std::int64_t* pivot,
                                 bool there, T* A_) {
  __shared__ T tile[kTile][kTile + 1];
  const int x = static_cast<int>(threadIdx.x);
  for (std::int64_t k = blockIdx.y; k < count; k += gridDim.y) {
    T* const A = A_ + k * n * n;
    const bool failed = pivot[k] >= 0, restores = failed && there;
    for (std::int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
      const LowerEntry<std::int64_t> at = lower_entry<double>(t);
      const std::int64_t r0 = at.row * kTile, c0 = at.column * kTile;
      for (int y = static_cast<int>(threadIdx.y); y < kTile; y += kRows) {
        const std::int64_t i = r0 + y, j = c0 + x;
        if (i >= n || j > i) continue;
        if (restores) {
          tile[y][x] = A[i * n + j];
        } else {
          if (j < i) A[i * n + j] = T(0);
          if (failed) A[j * n + i] = T(i == j ? 1 : 0);
        }
      }
      if (!restores) continue;
      __syncthreads();
      for (int y = static_cast<int>(threadIdx.y); y < kTile; y += kRows) {
        const std::int64_t i = r0 + x, j = c0 + y;
        if (i < n && j < i) A[j * n + i] = tile[x][y];
      }
      __syncthreads();
    }
  }
}

template <class T>
void factor(const Execution& exec, std::int64_t count, std::int64_t n, T* A, const double* diagonal,
            std::int64_t* pivot) {
  Scratch scratch(exec);
  int* const info = scratch.get<int>(count);
  const auto some = static_cast<unsigned>(std::min<std::int64_t>(count, kMatrices));
  set_diagonal<T>
      <<<dim3(static_cast<unsigned>(ceil_div(n, kThreads)), some), kThreads, 0, stream(exec)>>>(count, n, diagonal, A);
  QUADRIC_CUDA_LAUNCHED();
  // One matrix fills the device only through the many small kernels of cuSOLVER, which wait for one another; several
  // do it together, a block of columns of all of them at a time.
  const bool together = count >= 4 && (n <= 512 || count * n >= 16384);
  if (together) {
    potrf_batch(exec, scratch, count, n, A, info);
  } else {
    // Row by row our upper triangle is the lower one, column by column.
    for (std::int64_t k = 0; k < count; ++k) potrf(exec, scratch, CUBLAS_FILL_MODE_LOWER, n, A + k * n * n, info + k);
  }
  const int threads = n >= 8192 ? 1024 : kThreads;
  find_pivot<T><<<static_cast<unsigned>(count), threads, 0, stream(exec)>>>(n, A, info, pivot);
  QUADRIC_CUDA_LAUNCHED();
  const std::int64_t tiles = packed(ceil_div(n, kTile));
  const unsigned each = blocks(std::min(tiles, std::max<std::int64_t>(kClearing / count, 32)));
  clear_or_restore<T><<<dim3(each, some), dim3(kTile, kRows), 0, stream(exec)>>>(count, n, tiles, pivot, !together, A);
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace

template <class T>
void symmetry_defect(const Execution& exec, MatrixView<const T> H, double* out) {
  QUADRIC_REQUIRE(H.rows == H.cols, "H must be square");
  if (std::abs(H.row_stride) < std::abs(H.col_stride)) std::swap(H.row_stride, H.col_stride);  // H^T is as symmetric
  defects(exec, 1, H, 0, out);
}

template <class T>
void symmetry_defect_batch(const Execution& exec, std::int64_t count, std::int64_t n, const T* H, double* out) {
  QUADRIC_REQUIRE(count >= 0 && n >= 0, "H must have a shape");
  if (count > 0) defects(exec, count, MatrixView<const T>(H, n, n), n * n, out);
}

template <class T>
void gather(const Execution& exec, MatrixView<const T> H, const std::int64_t* order, MatrixView<T> A) {
  const std::int64_t n = H.rows;
  QUADRIC_REQUIRE(H.rows == H.cols, "H must be square");
  QUADRIC_REQUIRE(A.rows == n, "A must have the shape of H");
  check_square(A, "A must be square with contiguous rows");
  if (n == 0) return;
  if (A.data == H.data) {
    QUADRIC_REQUIRE(H.col_stride == 1 && H.row_stride == n, "H must have contiguous rows in place");
    return permute_in_place(exec, order, n, A.data);
  }
  if (std::abs(H.row_stride) < std::abs(H.col_stride)) {
    const std::int64_t across = ceil_div(n, kTile);
    gather_columns<T><<<blocks(across * across), dim3(kTile, kRows), 0, stream(exec)>>>(H, order, A.data);
  } else {
    gather_rows<T><<<blocks(n), kThreads, 0, stream(exec)>>>(H, order, A.data);
  }
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void arrange(const Execution& exec, std::int64_t count, std::int64_t n, const T* H, double damping, bool activation,
             const std::int32_t* group, std::int64_t* order, bool* dead, double* original, double* damped,
             std::int32_t* index) {
  QUADRIC_REQUIRE(count >= 0 && count <= std::numeric_limits<int>::max() && n >= 0, "H must have a shape");
  QUADRIC_REQUIRE((group == nullptr) == (index == nullptr), "index goes with group");
  if (count == 0 || n == 0) return;
  Scratch scratch(exec);
  double* const shift = scratch.get<double>(count);
  read_diagonals<T><<<static_cast<unsigned>(count), kThreads, 0, stream(exec)>>>(n, H, damping, dead, original, shift);
  QUADRIC_CUDA_LAUNCHED();
  const auto some = static_cast<unsigned>(std::min<std::int64_t>(count, kMatrices));
  arrange_columns<<<dim3(static_cast<unsigned>(ceil_div(n, kThreads)), some), kThreads, 0, stream(exec)>>>(
      count, n, activation, dead, original, shift, group, order, damped, index);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void gather_batch(const Execution& exec, std::int64_t count, std::int64_t n, const T* H, const std::int64_t* order,
                  const bool* dead, T* A) {
  QUADRIC_REQUIRE(count >= 0 && n >= 0, "H must have a shape");
  QUADRIC_REQUIRE(A != H, "A must not be H");
  if (count == 0 || n == 0) return;
  gather_all<T><<<blocks(count * n), kThreads, 0, stream(exec)>>>(count, n, H, order, dead, A);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void cholesky(const Execution& exec, MatrixView<T> A, const double* diagonal, std::int64_t* pivot) {
  check_square(A, "A must be square with contiguous rows");
  cholesky_batch(exec, 1, A.rows, A.data, diagonal, pivot);
}

template <class T>
void cholesky_batch(const Execution& exec, std::int64_t count, std::int64_t n, T* A, const double* diagonal,
                    std::int64_t* pivot) {
  constexpr std::int64_t largest = std::numeric_limits<int>::max();
  QUADRIC_REQUIRE(n >= 0 && n <= largest, "A has too many columns");
  QUADRIC_REQUIRE(count >= 0 && count <= largest, "A holds too many matrices");
  if (count == 0) return;
  if (n == 0) {
    QUADRIC_CUDA(cudaMemsetAsync(pivot, 0xff, static_cast<std::size_t>(count) * sizeof(*pivot), stream(exec)));
    return;
  }
  factor(exec, count, n, A, diagonal, pivot);
}

template <class T>
void factorize_batch(const Execution& exec, std::int64_t count, std::int64_t n, const T* H, double damping,
                     bool activation, const std::int32_t* group, T* A, std::int64_t* order, bool* dead,
                     double* original, std::int32_t* index, double* defects, std::int64_t* pivots) {
  Scratch scratch(exec);
  if (dead == nullptr) dead = scratch.get<bool>(count * n);
  if (original == nullptr) original = scratch.get<double>(count * n);
  double* const damped = scratch.get<double>(count * n);
  symmetry_defect_batch(exec, count, n, H, defects);
  arrange(exec, count, n, H, damping, activation, group, order, dead, original, damped, index);
  gather_batch(exec, count, n, H, order, dead, A);
  cholesky_batch(exec, count, n, A, damped, pivots);
}

#define QUADRIC_INSTANTIATE(T)                                                                                        \
  template QUADRIC_API void symmetry_defect(const Execution&, MatrixView<const T>, double*);                          \
  template QUADRIC_API void gather(const Execution&, MatrixView<const T>, const std::int64_t*, MatrixView<T>);        \
  template QUADRIC_API void symmetry_defect_batch(const Execution&, std::int64_t, std::int64_t, const T*, double*);   \
  template QUADRIC_API void arrange(const Execution&, std::int64_t, std::int64_t, const T*, double, bool,             \
                                    const std::int32_t*, std::int64_t*, bool*, double*, double*, std::int32_t*);      \
  template QUADRIC_API void gather_batch(const Execution&, std::int64_t, std::int64_t, const T*, const std::int64_t*, \
                                         const bool*, T*);                                                            \
  template QUADRIC_API void cholesky(const Execution&, MatrixView<T>, const double*, std::int64_t*);                  \
  template QUADRIC_API void cholesky_batch(const Execution&, std::int64_t, std::int64_t, T*, const double*,           \
                                           std::int64_t*);                                                            \
  template QUADRIC_API void factorize_batch(const Execution&, std::int64_t, std::int64_t, const T*, double, bool,     \
                                            const std::int32_t*, T*, std::int64_t*, bool*, double*, std::int32_t*,    \
                                            double*, std::int64_t*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::sweep
