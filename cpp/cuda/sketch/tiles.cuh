// Tiles of a tall matrix on their way into shared memory, and sums over parts of its rows. For the kernels that sketch.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "copies.cuh"
#include "device.hpp"
#include "quadric/cuda/sketch.hpp"
#include "require.hpp"

namespace quadric::cuda::sketch {

// ---- entries -------------------------------------------------------------------------------------------------------

struct Float16 {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
// bfloat16 is the upper half of a float32.
__device__ __forceinline__ float widened(Bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

// 1 or -1, by the top bit of `sign`.
template <class T>
__device__ __forceinline__ T unit(std::uint32_t sign) {
  if constexpr (sizeof(T) == 8)
    return __hiloint2double(static_cast<int>((sign & 0x80000000u) | 0x3ff00000u), 0);
  else
    return __uint_as_float((sign & 0x80000000u) | 0x3f800000u);
}

// x, or -x if the top bit of `sign` is set.
__device__ __forceinline__ float flipped(float x, std::uint32_t sign) {
  return __uint_as_float(__float_as_uint(x) ^ (sign & 0x80000000u));
}
__device__ __forceinline__ double flipped(double x, std::uint32_t sign) {
  return __hiloint2double(static_cast<int>(static_cast<std::uint32_t>(__double2hiint(x)) ^ (sign & 0x80000000u)),
                          __double2loint(x));
}

// Entries of T in 16 bytes.
template <class T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));
template <class T>
struct alignas(16) Pack {
  T at[kPack<T>];
};

// ---- sources -------------------------------------------------------------------------------------------------------

enum class Layout {
  packed,   // contiguous rows that begin at a multiple of 16 bytes; of 8 bytes for entries of 2
  rows,     // the entries of a row are nearer to each other than those of a column
  columns,  // the other way round
};

template <class S>
struct Source {
  const S* data;
  std::int64_t rows, cols, row_stride, col_stride;
  Layout layout;
};

inline bool aligned(const void* p, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(p) % bytes == 0; }

template <class S>
Source<S> source(const StoredMatrix& A) {
  constexpr std::int64_t kBytes = sizeof(S) == 2 ? 8 : 16, kStep = kBytes / static_cast<std::int64_t>(sizeof(S));
  Source<S> from{static_cast<const S*>(A.data), A.rows, A.cols, A.row_stride, A.col_stride, Layout::rows};
  if (A.cols == 1) from.col_stride = 1;
  const auto magnitude = [](std::int64_t x) { return x < 0 ? -x : x; };
  if (from.col_stride == 1 && aligned(A.data, kBytes) && (A.rows == 1 || A.row_stride % kStep == 0))
    from.layout = Layout::packed;
  else if (A.rows > 1 && magnitude(A.row_stride) < magnitude(from.col_stride))
    from.layout = Layout::columns;
  return from;
}

// body(Source<S>) for the storage type S; T is the type of the sums.
template <class T, class Body>
void with_source(const StoredMatrix& A, const Body& body) {
  QUADRIC_REQUIRE((A.storage == Storage::float64) == (sizeof(T) == 8), "out must be float64 if and only if A is");
  if constexpr (sizeof(T) == 8) {
    body(source<double>(A));
  } else {
    if (A.storage == Storage::float16)
      body(source<Float16>(A));
    else if (A.storage == Storage::bfloat16)
      body(source<Bfloat16>(A));
    else
      body(source<float>(A));
  }
}

// ---- tiles ---------------------------------------------------------------------------------------------------------

// The bits of four entries of 16 bits that begin at a multiple of 8 bytes, or of the first `count` if those are fewer.
template <class S>
__device__ __forceinline__ uint2 read_bits(const S* from, std::int64_t count) {
  static_assert(sizeof(S) == 2);
  if (count >= 4) return __ldg(reinterpret_cast<const uint2*>(from));
  std::uint32_t at[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) at[e] = e < count ? from[e].bits : 0;
  return uint2{at[0] | at[1] << 16, at[2] | at[3] << 16};
}

template <class S>
__device__ __forceinline__ Pack<float> widened(uint2 bits) {
  return {{widened(S{static_cast<std::uint16_t>(bits.x)}), widened(S{static_cast<std::uint16_t>(bits.x >> 16)}),
           widened(S{static_cast<std::uint16_t>(bits.y)}), widened(S{static_cast<std::uint16_t>(bits.y >> 16)})}};
}

// One pack of a tile: entries (row, column) to (row, column + kPack<T> - 1) as far as they are there.
template <class S, class T>
__device__ __forceinline__ Pack<T> read_pack(const Source<S>& A, std::int64_t row, std::int64_t column) {
  const S* const from = A.data + row * A.row_stride + column * A.col_stride;
  if constexpr (sizeof(S) == 2) {
    if (A.layout == Layout::packed) return widened<S>(read_bits(from, A.cols - column));
  }
  Pack<T> pack;
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) pack.at[e] = column + e < A.cols ? widened(from[e * A.col_stride]) : T(0);
  return pack;
}

// `count` rows of A from row `first` on, kPacks packs from column `column` on, to shared memory: row i to
// to + offset(i) bytes. By a block of kThreads threads; with packed rows of T the copies go on while the threads do
// something else, until wait_all_copies(). Columns beyond the last keep what is there.
template <int kPacks, int kThreads, class S, class T, class Offset>
__device__ __forceinline__ void fill_tile(const Source<S>& A, std::int64_t first, int count, std::int64_t column,
                                          char* to, const Offset& offset, T) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (std::is_same_v<S, T>) {
    if (A.layout == Layout::packed) {
      const std::int64_t mine = column + thread % kPacks * kPack<T>;  // the same in all steps
      const std::int64_t left = (A.cols - mine) * static_cast<std::int64_t>(sizeof(T));
      if (left > 0) {
        const T* from = A.data + (first + thread / kPacks) * A.row_stride + mine;
        for (int row = thread / kPacks; row < count; row += kThreads / kPacks) {
          copy_async(to + offset(row) + thread % kPacks * 16, from, left < 16 ? static_cast<int>(left) : 16);
          from += kThreads / kPacks * A.row_stride;
        }
      }
      return;
    }
  }
  constexpr int kWays = 4;  // packs on the way
  const int packs = (count + 7) / 8 * 8 * kPacks;
  for (int begin = 0; begin < packs; begin += kThreads * kWays) {
    Pack<T> pack[kWays];
    int rows[kWays], places[kWays];
#pragma unroll
    for (int u = 0; u < kWays; ++u) {
      const int i = begin + u * kThreads + thread;
      rows[u] = i / kPacks;
      places[u] = i % kPacks;
      if (A.layout == Layout::columns) {  // eight rows by four packs: whole sectors, and few conflicts of banks
        rows[u] = i / (8 * kPacks) * 8 + i / 4 % 8;
        places[u] = i % (8 * kPacks) / 32 * 4 + i % 4;
      }
      if (rows[u] < count) pack[u] = read_pack<S, T>(A, first + rows[u], column + places[u] * kPack<T>);
    }
#pragma unroll
    for (int u = 0; u < kWays; ++u)
      if (rows[u] < count) *reinterpret_cast<Pack<T>*>(to + offset(rows[u]) + places[u] * 16) = pack[u];
  }
}

// ---- parts of the rows ---------------------------------------------------------------------------------------------

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Blocks of threads in one dimension.
inline unsigned grid_of(std::int64_t blocks) {
  QUADRIC_REQUIRE(blocks <= std::numeric_limits<int>::max(), "A is too large for one launch");
  return static_cast<unsigned>(blocks);
}

// Into how many parts the tiles of a column of tiles are cut, for `units` blocks of threads each, of which a
// multiprocessor holds one: the fewest rounds of the 132 multiprocessors of an H200, whatever the device is, because
// sums depend on it. A part's sums cost as much as `each` tiles.
inline std::int64_t count_parts(std::int64_t units, std::int64_t tiles, double each) {
  constexpr std::int64_t kAtOnce = 132;
  std::int64_t best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (std::int64_t parts = 1; parts <= std::min<std::int64_t>(tiles, kAtOnce); ++parts) {
    const double time =
        static_cast<double>(ceil_div(units * parts, kAtOnce)) * static_cast<double>(ceil_div(tiles, parts)) +
        each * static_cast<double>(parts);
    if (time < least) {
      least = time;
      best = parts;
    }
  }
  return best;
}

// Writes of sums that take as long as a block of threads takes for a tile, about 3 us: m d sums of T each.
template <class T>
double sums_in_tiles(std::int64_t m, std::int64_t d) {
  return static_cast<double>(m) * static_cast<double>(d) * sizeof(T) / 6e6;
}

// out += parts[0] + parts[1] + ..., `size` numbers each, one after the other.
template <class T>
void add_parts(const Execution& exec, const T* parts, std::int64_t count, std::int64_t size, T* out);

// Rows [first, first + count) of A as T, contiguous.
template <class S, class T>
void copy_rows(const Execution& exec, const Source<S>& A, std::int64_t first, std::int64_t count, T* out);

// A kernel that asks for more shared memory than 48 KB.
template <class Kernel>
void allow_shared(Kernel kernel, std::int64_t bytes) {
  if (bytes > 32 * 1024)  // 48 KB with what the kernel declares itself
    QUADRIC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace quadric::cuda::sketch
