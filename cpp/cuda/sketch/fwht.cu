// Walsh-Hadamard transforms.
//
// Floor: X is read and written once, 4.2 TB/s together: 2^15 rows of 2^15 float32 are 8.6 GB = 2.0 ms; 15 additions an
// entry take 0.6 of that at 30 TFLOP/s (no multiply-adds), two exchanges through shared memory 0.6 of it. To be
// reached: 1.2 times the floor up to 2^15 entries of float32 (2^14 of float64), where one block holds a vector in
// registers; 1.4 times for twice as many, where two blocks read the vector, one of them from the second-level cache,
// and hold the sums and the differences of its halves; 2.4 times beyond.
//
// Layout: a tile of 2^t entries, the last 5 bits of an entry's number being the lane. A thread holds the 5 bits above
// (and one more where numbers have 4 bytes), and the rest is the warp. Bits that a thread holds are transformed in
// registers; the lanes change places with 5 of them by a transposition within the warp, the warps with some of them by
// one between warps. In one pass the bits are those of positions in contiguous vectors, as many of them as a tile
// covers; in the other they are those of rows, and the lanes are columns, which stay as they are. Tiles of 512 threads
// fill a multiprocessor: their blocks stay, and fetch the next tile while they work on the one at hand. Of smaller
// tiles several blocks share a multiprocessor.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <utility>

#include "copies.cuh"
#include "device.hpp"
#include "quadric/cuda/sketch.hpp"
#include "require.hpp"
#include "sketch/pairs.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kPitch = 33;  // entries from row to row of an exchange: reads along both axes meet all banks

template <class S>
using Number = std::conditional_t<sizeof(S) == 8, double, float>;

// Bits that a thread holds, and those of a tile with 2^kWarpBits warps.
template <class S>
inline constexpr int kHeld = sizeof(S) == 8 ? 5 : 6;
template <class S, int kWarpBits>
inline constexpr int kTileBits = 5 + kHeld<S> + kWarpBits;

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ double number(double x) { return x; }
__device__ __forceinline__ float number(__half x) { return __half2float(x); }
__device__ __forceinline__ float number(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void put(float& to, float x) { to = x; }
__device__ __forceinline__ void put(double& to, double x) { to = x; }
__device__ __forceinline__ void put(__half& to, float x) { to = __float2half(x); }
__device__ __forceinline__ void put(__nv_bfloat16& to, float x) { to = __float2bfloat16(x); }

// Vectors of 2^log_size contiguous entries, which are `stride` apart: entry v of all of them, one after the other.
template <class S>
struct Vectors {
  S* data;
  std::int64_t total, stride;
  int log_size;
  bool linear;  // the entries of every tile follow one another

  struct Tile {
    S* data;
    std::int64_t first, total, stride;
    int log_size;
    bool plain;  // entry e is at data + e

    __host__ __device__ bool valid(int e) const { return first + e < total; }
    __host__ __device__ S* at(int e) const {
      if (plain) return data + e;
      const std::int64_t v = first + e;
      return data + (v >> log_size) * stride + (v & ((std::int64_t{1} << log_size) - 1));
    }
  };

  __host__ __device__ Tile tile(std::int64_t number, int bits) const {
    const std::int64_t first = number << bits;
    if (!linear || first + (std::int64_t{1} << bits) > total) return {data, first, total, stride, log_size, false};
    const std::int64_t vector = first >> log_size;
    return {data + vector * stride + (first - (vector << log_size)), first, total, stride, log_size, true};
  }
};

// Groups of 2^log_rows rows, `row_stride` apart. A tile has the rows of one group, and 32 columns or, of few rows, a
// multiple of that.
template <class S>
struct Columns {
  S* data;
  std::int64_t count, row_stride, column_stride;
  int log_rows;
  std::int64_t spans;          // tiles side by side in a group
  std::int64_t inner, middle;  // groups: outer x middle x inner
  std::int64_t inner_stride, middle_stride, outer_stride;

  struct Tile {
    S* data;
    std::int64_t count, row_stride, column_stride;  // columns from data on
    int log_rows;
    static constexpr bool plain = false;

    __host__ __device__ std::int64_t column(int e) const {
      return (static_cast<std::int64_t>(e >> 5 >> log_rows) << 5) + (e & 31);
    }
    __host__ __device__ bool valid(int e) const { return column(e) < count; }
    __host__ __device__ S* at(int e) const {
      return data + static_cast<std::int64_t>(e >> 5 & ((1 << log_rows) - 1)) * row_stride + column(e) * column_stride;
    }
  };

  __host__ __device__ Tile tile(std::int64_t number, int bits) const {
    const std::int64_t first = number % spans << (bits - log_rows);
    std::int64_t group = number / spans;
    S* at = data + first * column_stride + group % inner * inner_stride;
    group /= inner;
    at += group % middle * middle_stride + group / middle * outer_stride;
    return {at, count - first, row_stride, column_stride, log_rows};
  }
};

// The transform along one bit of the numbers of a thread's 32 entries.
template <int kBit, class F>
__device__ __forceinline__ void transform(F (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    if (i & 1 << kBit) continue;
    const F a = x[i], b = x[i | 1 << kBit];
    x[i] = a + b;
    x[i | 1 << kBit] = a - b;
  }
}

// kCount bits from kFirst on, as long as there are `levels`.
template <int kFirst, int kCount, class F>
__device__ __forceinline__ void transform_bits(F (&x)[32], int levels) {
  if constexpr (kCount > 0) {
    if (levels <= 0) return;
    transform<kFirst>(x);
    transform_bits<kFirst + 1, kCount - 1>(x, levels - 1);
  }
}

// X <- H X for the first `levels` bits of the positions in vectors, or of the rows. kWhole: all bits of a tile, whose
// entries follow one another, so that no branches are left. kPair: of vectors of two tiles, by two blocks each.
template <class S, template <class> class Map, int kWarpBits, bool kAhead, bool kWhole, bool kPair>
__global__ void __launch_bounds__(32 << kWarpBits, 16 >> kWarpBits)
    fwht_kernel(const Map<S> map, const int some_levels, const std::int64_t tiles) {
  using F = Number<S>;
  using Tile = typename Map<S>::Tile;
  constexpr bool kVectors = std::is_same_v<Map<S>, Vectors<S>>;
  constexpr int kThreads = 32 << kWarpBits, kBits = kTileBits<S, kWarpBits>, kParts = 1 << (kHeld<S> - 5);
  constexpr int kFirst = kVectors ? 5 : 0;  // the first bit that is held
  constexpr int kEach = 32 >> kWarpBits;    // held bits that stay with a thread when it gets those of the warps
  extern __shared__ __align__(16) unsigned char memory[];
  F* const exchange = reinterpret_cast<F*>(memory);                               // kThreads x kPitch
  S* const ahead = reinterpret_cast<S*>(memory + kThreads * kPitch * sizeof(F));  // a tile
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int levels = kWhole ? kBits : some_levels;
  F* const own = exchange + warp * 32 * kPitch;

  const auto fetch = [&](std::int64_t number_) {
    if (number_ < tiles) {
      constexpr int kPack = 16 / static_cast<int>(sizeof(S));
      const Tile tile = map.tile(number_, kBits);
      const int mine = static_cast<int>(threadIdx.x) * kPack;
      if (kWhole || tile.plain) {
#pragma unroll
        for (int e = 0; e < 1 << kBits; e += kThreads * kPack) copy_async<16>(ahead + mine + e, tile.data + mine + e);
      } else {
#pragma unroll 4
        for (int e = mine; e < 1 << kBits; e += kThreads * kPack)
          if (tile.valid(e)) copy_async<16>(ahead + e, tile.at(e));
      }
    }
    commit_copies();
  };
  if constexpr (kAhead) fetch(blockIdx.x);

  for (std::int64_t t = kPair ? blockIdx.x / 2 : blockIdx.x; t < tiles; t += kPair ? gridDim.x / 2 : gridDim.x) {
    Tile tile = map.tile(t, kPair ? kBits + 1 : kBits);
#ifdef __CUDA_ARCH__
    __builtin_assume(__isGlobal(tile.data));  // or stores would have to find out
#endif
    F x[kParts][32];
    const int begin = warp << (5 + kHeld<S>) | lane;  // the number of this thread's first entry
    if constexpr (kPair) {
      const S* const upper = tile.data + (1 << kBits);
      const bool second = rank_in_pair() != 0;
      const F sign = second ? F(-1) : F(1);
#pragma unroll
      for (int s = 0; s < kParts; ++s)
#pragma unroll
        for (int h = 0; h < 32; ++h) {
          const int e = begin + (s << 10 | h << 5);
          x[s][h] = number(tile.data[e]) + sign * number(upper[e]);
        }
      arrive_in_pair();
      if (second) tile.data += 1 << kBits;
    } else if constexpr (kAhead) {
      wait_all_copies();
      __syncthreads();
#pragma unroll
      for (int s = 0; s < kParts; ++s)
#pragma unroll
        for (int h = 0; h < 32; ++h) x[s][h] = number(ahead[begin + (s << 10 | h << 5)]);
      __syncthreads();
      fetch(t + gridDim.x);
    } else if (kWhole || tile.plain) {
#pragma unroll
      for (int s = 0; s < kParts; ++s)
#pragma unroll
        for (int h = 0; h < 32; ++h) x[s][h] = number(tile.data[begin + (s << 10 | h << 5)]);
    } else {
#pragma unroll
      for (int s = 0; s < kParts; ++s)
#pragma unroll
        for (int h = 0; h < 32; ++h) {
          int e = begin + (s << 10 | h << 5);
          if (sizeof(F) == 8) asm volatile("" : "+r"(e));  // one address after the other, as there are few registers
          x[s][h] = tile.valid(e) ? number(*tile.at(e)) : F(0);
        }
    }

#pragma unroll
    for (int s = 0; s < kParts; ++s) transform_bits<0, 5>(x[s], levels - kFirst);
    if (kParts == 2 && levels > kFirst + 5) {
#pragma unroll
      for (int h = 0; h < 32; ++h) {
        const F a = x[0][h], b = x[kParts - 1][h];
        x[0][h] = a + b;
        x[kParts - 1][h] = a - b;
      }
    }

#pragma unroll
    for (int s = 0; s < kParts; ++s) {
      if (!kVectors && levels <= kHeld<S>) {  // no bit of the warps
        int again = begin;
        asm volatile("" : "+r"(again));  // or 64 addresses would be kept from the loads on
#pragma unroll
        for (int h = 0; h < 32; ++h) {
          const int e = again + (s << 10 | h << 5);
          if (tile.valid(e)) put(*tile.at(e), x[s][h]);
        }
        continue;
      }
      F z[32];
#pragma unroll
      for (int h = 0; h < 32; ++h) own[h * kPitch + lane] = x[s][h];
      if constexpr (kVectors) {
        __syncwarp();
#pragma unroll
        for (int l = 0; l < 32; ++l) z[l] = own[lane * kPitch + l];
        transform_bits<0, 5>(z, levels);
#pragma unroll
        for (int l = 0; l < 32; ++l) own[lane * kPitch + l] = z[l];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 32; ++i) {  // i = (the warp that had it, the upper held bits)
        const int w = i / kEach, h = i % kEach << kWarpBits | warp;
        z[i] = exchange[(w * 32 + h) * kPitch + lane];
      }
      __syncthreads();
      transform_bits<5 - kWarpBits, kWarpBits>(z, levels - kFirst - kHeld<S>);
      if (kPair && s == 0) wait_for_pair();  // the other block has read what is overwritten now
      const int first = s << 10 | warp << 5 | lane;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int e = first + (i / kEach << (5 + kHeld<S>) | (i % kEach << kWarpBits) << 5);
        if (kWhole || tile.plain)
          put(tile.data[e], z[i]);
        else if (tile.valid(e))
          put(*tile.at(e), z[i]);
      }
    }
  }
}

// ---- launches ------------------------------------------------------------------------------------------------------

template <class S, template <class> class Map, int kWarpBits, bool kAhead, bool kWhole = false, bool kPair = false>
void launch(const Execution& exec, const Map<S>& map, int levels, std::int64_t tiles) {
  constexpr int kThreads = 32 << kWarpBits;
  constexpr std::size_t kExchange = std::size_t{kThreads} * kPitch * sizeof(Number<S>);
  constexpr std::size_t kShared = kExchange + (kAhead ? sizeof(S) << kTileBits<S, kWarpBits> : 0);
  static_assert(kShared <= 227 * 1024);
  const auto kernel = fwht_kernel<S, Map, kWarpBits, kAhead, kWhole, kPair>;
  if (kShared > 48 * 1024)
    QUADRIC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kShared)));
  const std::int64_t most = kAhead ? multiprocessors() : std::numeric_limits<int>::max() / 2;
  if (kPair) return launch_pairs(stream(exec), kernel, std::min(tiles, most), kThreads, kShared, map, levels, tiles);
  kernel<<<static_cast<unsigned>(std::min(tiles, most)), kThreads, kShared, stream(exec)>>>(map, levels, tiles);
  QUADRIC_CUDA_LAUNCHED();
}

// `ready`: 16 bytes may be read from every multiple of 16 bytes of a tile.
template <class S, template <class> class Map>
void launch(const Execution& exec, const Map<S>& map, int levels, std::int64_t tiles, int warp_bits, bool ready) {
  switch (warp_bits) {
    case 1:
      return launch<S, Map, 1, false>(exec, map, levels, tiles);
    case 2:
      return launch<S, Map, 2, false>(exec, map, levels, tiles);
    case 3:
      return launch<S, Map, 3, false>(exec, map, levels, tiles);
    default:
      constexpr bool kWhole = std::is_same_v<Map<S>, Vectors<S>>;  // no shorter vectors come here
      if constexpr (sizeof(S) < 8) {                               // both would not fit
        if (ready) return launch<S, Map, 4, true, kWhole>(exec, map, levels, tiles);
      }
      return launch<S, Map, 4, false, kWhole>(exec, map, levels, tiles);
  }
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

int log2_of(std::int64_t power) {
  int log = 0;
  while (std::int64_t{1} << log < power) ++log;
  return log;
}

template <class S>
bool whole_packs(const S* data, std::initializer_list<std::int64_t> strides) {
  constexpr std::int64_t kPack = 16 / static_cast<std::int64_t>(sizeof(S));
  bool whole = reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
  for (std::int64_t stride : strides) whole = whole && stride % kPack == 0;
  return whole;
}

// `count` vectors of 2^log_size contiguous entries: the first bits of the positions, as many as are returned.
template <class S>
int transform_vectors(const Execution& exec, S* data, std::int64_t count, std::int64_t stride, int log_size) {
  const std::int64_t size = std::int64_t{1} << log_size;
  if (log_size == kTileBits<S, 4> + 1) {
    const Vectors<S> map{data, count << log_size, stride, log_size, true};
    launch<S, Vectors, 4, false, true, true>(exec, map, log_size, count);
    return log_size;
  }
  const int warp_bits = std::clamp(log_size - 5 - kHeld<S>, 1, 4), bits = 5 + kHeld<S> + warp_bits;
  const bool contiguous = count == 1 || stride == size;
  const Vectors<S> map{data, count << log_size, stride, log_size, contiguous || log_size >= bits};
  const bool ready = whole_packs(data, {contiguous ? size : stride, size});
  launch<S, Vectors>(exec, map, log_size, ceil_div(map.total, std::int64_t{1} << bits), warp_bits, ready);
  return std::min(log_size, bits);
}

template <class S>
struct Axes {
  S* data;
  std::int64_t outer, rows, inner, outer_stride, row_stride, inner_stride;
};

// 2^log_rows rows that are `step` rows apart, for all of them.
template <class S>
void transform_rows(const Execution& exec, const Axes<S>& X, std::int64_t step, int log_rows) {
  const std::int64_t size = std::int64_t{1} << log_rows;
  Columns<S> map{};
  map.data = X.data;
  map.log_rows = log_rows;
  map.row_stride = step * X.row_stride;
  map.column_stride = X.inner_stride;
  map.outer_stride = X.outer_stride;
  map.middle = X.rows / (step * size);
  map.middle_stride = step * size * X.row_stride;
  // Rows that follow one another are one with the columns.
  const bool merged = X.row_stride == X.inner * X.inner_stride;
  map.count = merged ? step * X.inner : X.inner;
  map.inner = merged ? 1 : step;
  map.inner_stride = X.row_stride;
  const int warp_bits = std::clamp(log_rows - kHeld<S>, 1, 4), bits = 5 + kHeld<S> + warp_bits;
  map.spans = ceil_div(map.count, std::int64_t{1} << (bits - log_rows));
  const bool ready = map.column_stride == 1 && map.count % (16 / static_cast<std::int64_t>(sizeof(S))) == 0 &&
                     whole_packs(X.data, {map.row_stride, map.middle > 1 ? map.middle_stride : 0,
                                          map.inner > 1 ? map.inner_stride : 0, X.outer > 1 ? X.outer_stride : 0});
  launch<S, Columns>(exec, map, log_rows, map.spans * map.inner * map.middle * X.outer, warp_bits, ready);
}

template <class S>
void transform_cube(const Execution& exec, const StoredCube& X) {
  Axes<S> axes{static_cast<S*>(X.data), X.outer, X.rows, X.inner, X.outer_stride, X.row_stride, X.inner_stride};
  // The axes on both sides are alike: one of two that follow each other, the nearer entries last.
  if (axes.outer == 1) axes.outer_stride = 0;
  if (axes.inner == 1) axes.inner_stride = 0;
  const auto swap = [&] {
    std::swap(axes.outer, axes.inner);
    std::swap(axes.outer_stride, axes.inner_stride);
  };
  if (axes.outer > 1 && (axes.inner == 1 || std::abs(axes.outer_stride) < std::abs(axes.inner_stride))) swap();
  if (axes.outer > 1 && axes.outer_stride == axes.inner * axes.inner_stride) {
    axes.inner *= axes.outer;
    axes.outer = 1;
    axes.outer_stride = 0;
  }
  const int log_size = log2_of(X.rows);
  int done = 0;
  if (axes.row_stride == 1) {
    for (std::int64_t o = 0; o < axes.outer; ++o)
      done = transform_vectors(exec, axes.data + o * axes.outer_stride, axes.inner, axes.inner_stride, log_size);
    if (done == log_size) return;
    for (std::int64_t o = 0; o < axes.outer; ++o) {  // what a pass has covered is a row now
      const std::int64_t covered = std::int64_t{1} << done;
      const Axes<S> rest{
          axes.data + o * axes.outer_stride, axes.inner, X.rows / covered, covered, axes.inner_stride, covered, 1};
      const int levels = log_size - done, passes = (levels + kHeld<S> + 3) / (kHeld<S> + 4);
      for (int p = 0, at = 0; p < passes; ++p) {
        const int count = (levels - at + passes - p - 1) / (passes - p);
        transform_rows(exec, rest, std::int64_t{1} << at, count);
        at += count;
      }
    }
    return;
  }
  const int passes = (log_size + kHeld<S> + 3) / (kHeld<S> + 4);
  for (int p = 0; p < passes; ++p) {
    const int count = (log_size - done + passes - p - 1) / (passes - p);
    transform_rows(exec, axes, std::int64_t{1} << done, count);
    done += count;
  }
}

}  // namespace

void fwht(const Execution& exec, const StoredCube& X) {
  QUADRIC_REQUIRE(X.rows >= 1 && (X.rows & (X.rows - 1)) == 0, "the axis must have a power of two entries");
  if (X.outer == 0 || X.inner == 0 || X.rows == 1) return;
  switch (X.storage) {
    case Storage::float16:
      return transform_cube<__half>(exec, X);
    case Storage::bfloat16:
      return transform_cube<__nv_bfloat16>(exec, X);
    case Storage::float32:
      return transform_cube<float>(exec, X);
    case Storage::float64:
      return transform_cube<double>(exec, X);
  }
}

}  // namespace quadric::cuda::sketch
