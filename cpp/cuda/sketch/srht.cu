// Sampled rows of a Hadamard transform in one read of A.
//
// n = 1e6, d = 256, m = 1024, float32. Floor: one read of A, 1 GB at 4.2 TB/s = 0.24 ms. 2.8e9 additions take 0.1 ms.
// Shared memory: the copy into it, a read and two writes and reads of the transform, and a read of the samples, half of
// them with a conflict, 6.5 GB at 29 TB/s = 0.23 ms, beside the copies. To be reached: 0.45 ms.
//
// A block of threads takes tiles of 1024 rows and 64 bytes of each. (H_N x)[i k + j] = sum_b (-1)^popcount(i & b) (H_k
// x_b)[j] for any k that divides the first row's number, so k is chosen here: 1024, unless the rows begin elsewhere.
// Half of the levels of H_k are in the registers of a thread, then the other half; the sums of up to 2048 samples stay
// in registers too. Two tiles are on their way meanwhile.
#include <cstdint>

#include "quadric/cuda/random.hpp"
#include "sketch/tiles.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 512;
constexpr int kTile = 1024, kLevels = 10;                        // rows, and log2 of it
constexpr int kRowBytes = 64, kLanes = kRowBytes / 16;           // of a tile
constexpr int kSlots = kThreads / kLanes;                        // samples that are added at a time
constexpr int kTileBytes = kTile * kRowBytes + kTile / 32 * 64;  // with what keeps rows that are 32 apart off a bank

// Where a row of a tile begins.
__device__ __forceinline__ int offset(int row) { return (row + (row >> 5)) * kRowBytes; }

template <class T>
struct Samples {
  const std::uint32_t* signs;  // bit `bit` + i is the sign of row i of A
  int bit;
  std::int64_t first;  // number of row 0
  int levels;          // log2 k
  bool wide;           // numbers of blocks of k rows take more than 32 bits
  std::int64_t tiles, parts;
  const std::int64_t* samples;
  std::int64_t m, chunks;  // samples, and how many chunks they are cut into
  int size;                // of a chunk
  T* out;                  // or sums of part p from out + p * stride on
  bool add;                // to what is there
  std::int64_t stride;
};

// The first `levels` levels, of log2 R, of the transform of R numbers.
template <int R, class T>
__device__ __forceinline__ void transform(T (&x)[R], int levels) {
#pragma unroll
  for (int h = 1, level = 0; h < R; h *= 2, ++level) {
    if (level >= levels) break;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if ((r & h) != 0) continue;
      const T a = x[r], b = x[r + h];
      x[r] = a + b;
      x[r + h] = a - b;
    }
  }
}

// R rows of a column, the first at `row` and `step` apart, where they are.
template <int R, class T>
__device__ __forceinline__ void transform_rows(char* tile, int row, int step, int levels) {
  T x[R];
#pragma unroll
  for (int i = 0; i < R; ++i) x[i] = *reinterpret_cast<const T*>(tile + offset(row + i * step));
  transform(x, levels);
#pragma unroll
  for (int i = 0; i < R; ++i) *reinterpret_cast<T*>(tile + offset(row + i * step)) = x[i];
}

// kWhole: short transforms of whole tiles, which is nearly always so, and no branches are left in them.
template <class S, class T, int kEach, bool kWhole>
__global__ void __launch_bounds__(kThreads, 1) srht_kernel(const Source<S> A, const Samples<T> f) {
  constexpr int kWidth = kRowBytes / static_cast<int>(sizeof(T));
  constexpr int kRadix = kTile * kWidth / kThreads;  // 32 or 16: one transform of so many rows for each thread
  constexpr int kFirst = kRadix == 32 ? 5 : 4;       // its levels
  extern __shared__ __align__(128) char shared[];
  char* const work = shared + 2 * kTileBytes;
  uint2* const table = reinterpret_cast<uint2*>(work + kTileBytes);  // row of a block, low half of the block's number
  std::uint32_t* const upper = reinterpret_cast<std::uint32_t*>(table + kEach * kSlots);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t chunk = blockIdx.x % f.chunks, rest = blockIdx.x / f.chunks;
  const std::int64_t columns = (A.cols + kWidth - 1) / kWidth;
  const std::int64_t column = rest % columns * kWidth, part = rest / columns;
  const std::int64_t begin = f.tiles * part / f.parts, end = f.tiles * (part + 1) / f.parts;
  const int levels = kWhole ? kLevels : f.levels;
  const std::int64_t first_sample = chunk * f.size;
  const int samples = f.m - first_sample < f.size ? static_cast<int>(f.m - first_sample) : f.size;

  for (int s = thread; s < kEach * kSlots; s += kThreads) {
    const auto sample = static_cast<std::uint64_t>(s < samples ? f.samples[first_sample + s] : 0);
    const std::uint64_t block = sample >> levels;
    table[s] = uint2{static_cast<std::uint32_t>(sample) & ((1u << levels) - 1), static_cast<std::uint32_t>(block)};
    upper[s] = static_cast<std::uint32_t>(block >> 32);
  }

  const auto rows_of = [&](std::int64_t t) {
    const std::int64_t left = A.rows - t * kTile;
    return left < kTile ? static_cast<int>(left) : kTile;
  };
  const int lane = thread % kLanes, slot = thread / kLanes;
  const bool plain = A.layout == Layout::packed && column + kWidth <= A.cols;
  const auto fetch = [&](std::int64_t t, char* to) {
    if (t < end) {
      const int count = rows_of(t);
      if (std::is_same_v<S, T> && plain && count == kTile) {  // rows of a thread are a constant distance apart
        const S* from = A.data + (t * kTile + slot) * A.row_stride + column + lane * kPack<T>;
        char* const own = to + offset(slot) + lane * 16;
#pragma unroll
        for (int i = 0; i < kTile / kSlots; ++i) {
          copy_async<16>(own + i * offset(kSlots), from);
          from += kSlots * A.row_stride;
        }
      } else {
        fill_tile<kLanes, kThreads>(A, t * kTile, count, column, to, [](int row) { return offset(row); }, T());
      }
    }
    commit_copies();
  };
  const int own = thread % kWidth * static_cast<int>(sizeof(T)), group = thread / kWidth;
  // Two groups of 16 rows that are read at a time come from different halves of the banks.
  const int near = kRadix == 32 ? group : (group & ~3) | (group & 1) << 1 | (group >> 1 & 1);
  // Words with the signs of the rows that this thread transforms first.
  const auto signs_of = [&](std::int64_t t) { return f.signs + (f.bit + t * kTile + near * kRadix) / 32; };
  const auto shift = static_cast<unsigned>((f.bit + near * kRadix) % 32);

  T sum[kEach][kPack<T>] = {};
  fetch(begin, shared);
  fetch(begin + 1, shared + kTileBytes);
  std::uint32_t low_signs = signs_of(begin)[0], high_signs = signs_of(begin)[1];
  for (std::int64_t t = begin; t < end; ++t) {
    char* const raw = shared + (t - begin) % 2 * kTileBytes;
    const int count = rows_of(t);
    wait_copies<1>();
    __syncthreads();  // the tile is there, and what was in `work` is used
    {
      const int row = near * kRadix;
      const std::uint32_t bits = __funnelshift_r(low_signs, high_signs, shift);
      T x[kRadix];
#pragma unroll
      for (int i = 0; i < kRadix; ++i)
        x[i] = flipped(*reinterpret_cast<const T*>(raw + own + offset(row) + i * kRowBytes), bits << (31 - i));
      if (count < kTile) {
#pragma unroll
        for (int i = 0; i < kRadix; ++i)
          if (row + i >= count) x[i] = 0;
      }
      transform(x, levels);
#pragma unroll
      for (int i = 0; i < kRadix; ++i) *reinterpret_cast<T*>(work + own + offset(row) + i * kRowBytes) = x[i];
    }
    __syncthreads();  // the tile is used
    fetch(t + 2, raw);
    if (t + 1 < end) {
      low_signs = signs_of(t + 1)[0];
      high_signs = signs_of(t + 1)[1];
    }
    if (levels > kFirst) {
      if constexpr (kRadix == 32)
        transform_rows<32, T>(work + own, group, 32, levels - 5);
      else
        transform_rows<16, T>(work + own, group / 16 * 256 + group % 16, 16, levels - 4);
      __syncthreads();
    }
    if constexpr (kRadix == 16) {
      if (levels > 8) {
        for (int row = group; row < 256; row += kThreads / kWidth)
          transform_rows<4, T>(work + own, row, 256, levels - 8);
        __syncthreads();
      }
    }
    const std::uint64_t number = static_cast<std::uint64_t>(f.first + t * kTile) >> levels;
    for (int q = 0; q << levels < count; ++q) {
      const std::uint64_t block = number + static_cast<std::uint64_t>(q);
      const auto low = static_cast<std::uint32_t>(block), high = static_cast<std::uint32_t>(block >> 32);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const uint2 sample = table[slot + kSlots * j];
        std::uint32_t both = sample.y & low;
        if (f.wide) both ^= upper[slot + kSlots * j] & high;  // as many bits, but for an even number
        const T sign = unit<T>(static_cast<std::uint32_t>(__popc(both)) << 31);
        const int row = (q << levels) + static_cast<int>(sample.x);
        const Pack<T> x = *reinterpret_cast<const Pack<T>*>(work + offset(row) + lane * 16);
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) sum[j][e] += sign * x.at[e];
      }
    }
  }

#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int s = slot + kSlots * j;
    if (s >= samples) break;
    T* const to = f.out + part * f.stride + (first_sample + s) * A.cols;
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) {
      const std::int64_t at = column + lane * kPack<T> + e;
      if (at < A.cols) to[at] = f.add ? to[at] + sum[j][e] : sum[j][e];
    }
  }
}

template <class S, class T, int kEach>
void launch(const Execution& exec, const Source<S>& A, const Samples<T>& f) {
  constexpr std::int64_t kBytes = 3 * kTileBytes + kEach * kSlots * 12;
  const std::int64_t columns = ceil_div(A.cols, kRowBytes / static_cast<int>(sizeof(T)));
  const auto kernel = f.levels == kLevels ? srht_kernel<S, T, kEach, true> : srht_kernel<S, T, kEach, false>;
  allow_shared(kernel, kBytes);
  kernel<<<grid_of(f.chunks * columns * f.parts), kThreads, kBytes, stream(exec)>>>(A, f);
  QUADRIC_CUDA_LAUNCHED();
}

template <class S, class T>
void add_samples(const Execution& exec, const Source<S>& A, const Place& place, const std::int64_t* samples,
                 const MatrixView<T>& out) {
  constexpr std::int64_t kMost = 16 * kSlots;
  const std::int64_t n = A.rows, d = A.cols;
  Scratch scratch(exec);
  Samples<T> f{};
  f.first = place.first;
  f.samples = samples;
  f.m = out.rows;
  while (f.levels < kLevels && place.first % (std::int64_t{2} << f.levels) == 0) ++f.levels;
  f.wide = ((place.first + n - 1) >> f.levels) >> 32 != 0;
  f.tiles = ceil_div(n, kTile);
  f.chunks = ceil_div(f.m, kMost);
  f.size = static_cast<int>(ceil_div(f.m, f.chunks));
  f.chunks = ceil_div(f.m, f.size);

  f.bit = static_cast<int>(place.first % 128);
  const std::int64_t blocks = ceil_div(f.bit + f.tiles * kTile + 64, 128);
  std::uint32_t* const signs = scratch.get<std::uint32_t>(4 * blocks);
  random::philox(exec, {place.seed, static_cast<std::uint32_t>(Draw::sign)},
                 static_cast<std::uint64_t>(place.first / 128), blocks, signs);
  f.signs = signs;

  f.parts =
      count_parts(f.chunks * ceil_div(d, kRowBytes / static_cast<int>(sizeof(T))), f.tiles, sums_in_tiles<T>(f.m, d));
  f.add = f.parts == 1;
  f.stride = f.add ? 0 : f.m * d;
  f.out = f.add ? out.data : scratch.get<T>(f.parts * f.m * d);
  if (f.size <= kSlots)
    launch<S, T, 1>(exec, A, f);
  else if (f.size <= 2 * kSlots)
    launch<S, T, 2>(exec, A, f);
  else if (f.size <= 4 * kSlots)
    launch<S, T, 4>(exec, A, f);
  else if (f.size <= 8 * kSlots)
    launch<S, T, 8>(exec, A, f);
  else
    launch<S, T, 16>(exec, A, f);
  if (!f.add) add_parts(exec, f.out, f.parts, f.m * d, out.data);
}

}  // namespace

template <class T>
void srht(const Execution& exec, const StoredMatrix& A, Place place, std::int64_t k, const std::int64_t* samples,
          MatrixView<T> out) {
  QUADRIC_REQUIRE(k >= 1 && (k & (k - 1)) == 0, "k must be a power of two");
  QUADRIC_REQUIRE(place.first >= 0 && place.first % k == 0, "first must be a multiple of k");
  QUADRIC_REQUIRE(out.cols == A.cols, "out must have the columns of A");
  if (A.empty() || out.rows == 0) return;
  with_source<T>(A, [&](const auto& from) { add_samples(exec, from, place, samples, out); });
}

#define QUADRIC_INSTANTIATE(T)                                                                                    \
  template QUADRIC_API void srht(const Execution&, const StoredMatrix&, Place, std::int64_t, const std::int64_t*, \
                                 MatrixView<T>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::sketch
