// The sweep of one block of up to 128 columns, everything but the products that bring C_j there.
//
// Floor at m = n = 4096, a block: W, C and D 6 MB and codes 0.5 MB, 1.6 us; products inside the block and ahead of it
// 2 m 128^2 flops, 2 us. What counts is the chain of 128 columns, each of which waits for the one before: about 75
// cycles for a dozen instructions one after the other, a shuffle among them, 5 us; ahead of a dynamic group half of
// that once more. With loads and stores this kernel should take about 15 us. With many rows the instructions count:
// about 45 a column for four rows, 65 with the look ahead, so that 49152 rows should take about 150 us.
//
// Layout: a warp sweeps four rows and waits for no other. The eight lanes of a row hold C_j of its columns in
// registers, lane p those of columns p, p + 8, ... Eight columns ("chunk") are finished one by one, the error of each
// going to the other lanes by a shuffle; then all lanes update their later columns by a product of depth eight with R,
// which stands in shared memory for all warps of the block. The loop over chunks is not unrolled: the update moves C by
// one register, so that the current chunk is always the first. A row's result depends neither on kRows nor on the other
// rows.
#include <algorithm>
#include <cstdint>

#include "copies.cuh"
#include "sweep/kernels.hpp"
#include "sweep/launch.cuh"
#include "sweep/plan.hpp"
#include "sweep/rule.cuh"

namespace quadric::cuda::sweep {
namespace {

constexpr int kThreads = 256;
constexpr int kResident = 2;  // blocks of a multiprocessor, as far as registers go (float)
constexpr int kChunk = 8;     // lanes of a row, and columns that are finished together
constexpr int kChunks = static_cast<int>(kBlock) / kChunk;
constexpr int kWarpRows = 32 / kChunk;
// Rows of W in shared memory lie this far apart: four rows of eight columns are in different banks.
constexpr int kSide = static_cast<int>(kBlock) + 8;

template <class T>
struct alignas(16) Four {
  T x[4];
};

// R in shared memory: tiles of 8 x 8, on and above the diagonal, those of a chunk of rows one after the other. Half of
// a tile is four rows of R: of each column the four, the last one first, as they come from A.
constexpr int kTile = kChunk * kChunk;
__host__ __device__ inline int tile_start(int chunk, int chunks) {
  return kTile * (chunk * chunks - chunk * (chunk - 1) / 2);
}
constexpr int kAhead = 4;  // tiles that are read together: up to three beyond those of a chunk

#ifdef __CUDA_ARCH__
// x of the lane of column k of the chunk, in this lane's row: lane numbers are row + 4 * column.
__device__ inline float of_column(float x, int k) {
  float y;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x31f, 0xffffffff;" : "=f"(y) : "f"(x), "r"(k * kWarpRows));
  return y;
}
// Sixteen bytes to shared memory, which are there after `arrive`.
__device__ inline void fetch(void* to, const void* from) { copy_async<16>(to, from); }
__device__ inline void arrive() { wait_all_copies(); }
#else
__device__ inline float of_column(float x, int k) {
  return __shfl_sync(~0U, x, static_cast<int>(threadIdx.x) % kWarpRows + k * kWarpRows);
}
__device__ inline void fetch(void* to, const void* from) {
  *static_cast<Four<float>*>(to) = *static_cast<const Four<float>*>(from);
}
__device__ inline void arrive() {}
#endif
__device__ inline double of_column(double x, int k) {
  return __shfl_sync(~0U, x, static_cast<int>(threadIdx.x) % kWarpRows + k * kWarpRows);
}

// Byte offsets of a block's arrays in shared memory.
struct Layout {
  std::int64_t factor, diagonal, inverse, weight, current, scale, zero, order, slot, kept, size;
};

struct Needs {
  bool factor, current, kept;
  int width, slots;
};

template <class T, int kRows>
Layout make_layout(const Needs& needs) {
  Layout at{};
  const auto take = [&](std::int64_t bytes) {
    const std::int64_t here = at.size;
    at.size += (bytes + 15) / 16 * 16;
    return here;
  };
  const int chunks = (needs.width + kChunk - 1) / kChunk, columns = chunks * kChunk;
  at.factor = take(needs.factor ? (tile_start(chunks, chunks) + (kAhead - 1) * kTile) * sizeof(T) : 0);
  at.diagonal = take(columns * sizeof(T));
  at.inverse = take(columns * sizeof(T));
  at.weight = take(std::int64_t{kRows} * kSide * sizeof(T));
  at.current = take(needs.current ? std::int64_t{kRows} * kSide * sizeof(T) : 0);
  at.scale = take(std::int64_t{needs.slots} * kRows * sizeof(T));
  at.zero = take(std::int64_t{needs.slots} * kRows * sizeof(T));
  at.order = take(columns * sizeof(int));
  at.slot = take(columns * sizeof(int));
  at.kept = take(needs.kept ? std::int64_t{kRows} * kSide : 0);
  return at;
}

// Everything a kernel needs, by value.
template <class T>
struct Arguments {
  Weights<T> weights;
  Rule<T> rule;
  BlockTask<T> task;
  const T* a;
  T* sums;
  std::int64_t rows, groups;
  const float* up;
  std::uint8_t* codes;
  T* scales;
  std::uint8_t* zeros;
  T* values;
  bool* mask;
  double* loss;
  const std::int32_t* group;
  // positions are 32-bit numbers, whose remainders are cheap; periods are at most n
  int group_size, stale_block, mask_unit;
  std::int64_t keep, out_of;
  double sparsity;
  bool feedback, masked, grids_inside, masks_inside, quantize;
  int first_slot;  // 1 where grids are by group: the slot of a column is its group; else each has its own
  Layout at;
};

// How columns are rounded: to a grid with a scale of ordinary size, to any grid, or not at all.
enum class Rounding { kFast, kAny, kNone };

template <class T, int kRows>
struct Tile {
  const Arguments<T>& job;
  std::int64_t batch, row_begin;  // the matrix, and the first row in it
  int row, lane;                  // of this thread: row of the tile, column of a chunk
  int width, chunks;
  T* sums;               // C of the first column, this thread's row
  T up;                  // a power of two that this row of sums is multiplied by
  std::int64_t results;  // where this thread's row begins in codes, values and masks
  T *factor, *diagonal, *inverse, *weight, *current, *scale, *zero;
  int *order, *slot;
  std::uint8_t* kept;
  double loss = 0.0;

  __device__ Tile(const Arguments<T>& arguments, unsigned char* memory) : job(arguments) {
    const unsigned tiles = static_cast<unsigned>((job.weights.m + kRows - 1) / kRows);
    batch = blockIdx.x / tiles;
    row_begin = std::int64_t{blockIdx.x % tiles} * kRows;
    row = threadIdx.x / 32 * kWarpRows + threadIdx.x % kWarpRows;
    lane = threadIdx.x % 32 / kWarpRows;
    const std::int64_t n = job.weights.n;
    sums = job.a == nullptr ? nullptr : job.sums + (batch * n + (n - 1 - job.task.begin)) * job.rows + row_begin + row;
    up = job.up != nullptr && live() ? T(job.up[batch * job.rows + row_begin + row]) : T(1);
    results = row_of_all() * n;
    width = job.task.width;
    chunks = (width + kChunk - 1) / kChunk;
    factor = reinterpret_cast<T*>(memory + job.at.factor);
    diagonal = reinterpret_cast<T*>(memory + job.at.diagonal);
    inverse = reinterpret_cast<T*>(memory + job.at.inverse);
    weight = reinterpret_cast<T*>(memory + job.at.weight);
    current = reinterpret_cast<T*>(memory + job.at.current);
    scale = reinterpret_cast<T*>(memory + job.at.scale);
    zero = reinterpret_cast<T*>(memory + job.at.zero);
    order = reinterpret_cast<int*>(memory + job.at.order);
    slot = reinterpret_cast<int*>(memory + job.at.slot);
    kept = memory + job.at.kept;
  }

  __device__ bool works() const { return row < kRows; }  // the other warps only load
  __device__ bool live() const { return row_begin + row < job.weights.m; }
  __device__ std::int64_t row_of_all() const { return batch * job.weights.m + row_begin + row; }
  // C or D of column j of the block, this thread's row; the number of rows has 31 bits
  __device__ T* sums_at(int j) const { return sums - std::int64_t{j} * static_cast<int>(job.rows); }
  __device__ int slot_of(int j) const {
    const int begin = static_cast<int>(job.task.begin);
    return job.first_slot != 0 ? (begin + j) / job.group_size - begin / job.group_size : j;
  }

  // Fills shared memory, and C of this lane's columns; synchronizes. Nothing waits for anything else but weights for
  // the order.
  __device__ void load(T (&c)[kChunks]) {
    const std::int64_t n = job.weights.n, begin = job.task.begin;
    if (job.a != nullptr) {
      load_factor();
    } else {
      for (int j = threadIdx.x; j < chunks * kChunk; j += kThreads) diagonal[j] = inverse[j] = T(0);
    }
    const bool has_sums = job.a != nullptr && begin > 0 && works() && live();
    const T down = T(1) / up;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int j = i * kChunk + lane;
      c[i] = has_sums && j < width ? *sums_at(j) * down : T(0);
    }
    if (works()) load_weights();
    for (int j = threadIdx.x; j < chunks * kChunk; j += kThreads) {
      order[j] = j < width ? static_cast<int>(job.weights.order[batch * n + begin + j]) : 0;
      slot[j] = job.quantize && j < width ? slot_of(j) : 0;
    }
    if (job.task.scores == nullptr) load_options();
    arrive();
    __syncthreads();
  }

  __device__ T* tile_at(int chunk, int to) const { return factor + tile_start(chunk, chunks) + (to - chunk) * kTile; }

  // How much further tiles of the same column stand two chunks below.
  __device__ int two_chunks_on(int chunk) const { return kTile * (2 * (chunks - chunk) - 3); }

  __device__ void load_factor() {
    const std::int64_t n = job.weights.n, end = n - job.task.begin;
    const int p = threadIdx.x % kChunk, quarter = threadIdx.x % 32 / kChunk;
    const bool aligned =
        sizeof(T) == 4 && n % 4 == 0 && end % 4 == 0 && reinterpret_cast<std::uintptr_t>(job.a) % 16 == 0;
    static_assert(2 * (kThreads / 32) == kChunks, "each warp loads two chunks of columns, a high and a low one");
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      const int warp = threadIdx.x / 32, to = pass == 0 ? kChunks - 1 - warp : warp;
      if (to >= chunks) continue;
      const int j = to * kChunk + p;
      const T* column = job.a + (batch * n + (end - 1 - j)) * n + (end - 1);   // R_ij is column[-i]
      T* half = tile_at(quarter / 2, to) + quarter % 2 * (kTile / 2) + 4 * p;  // rows 4 u, 4 u + 1, ...
      if (j < width && aligned) {
#pragma unroll 1
        for (int u = quarter; u < 2 * to; u += 4) {
          fetch(half, column - (4 * u + 3));
          half += two_chunks_on(u / 2);
        }
      } else {
#pragma unroll 1
        for (int u = quarter; u < 2 * to; u += 4) {
#pragma unroll
          for (int v = 0; v < 4; ++v) half[v] = j < width ? column[v - (4 * u + 3)] : T(0);
          half += two_chunks_on(u / 2);
        }
      }
#pragma unroll
      for (int v = 0; v < kChunk / 4; ++v) {  // zeros on the diagonal and below
        const int k = quarter * (kChunk / 4) + v, i = to * kChunk + k;
        tile_at(to, to)[k / 4 * (kTile / 2) + 4 * p + 3 - k % 4] = i < j && j < width ? column[-i] : T(0);
        if (k != p) continue;
        const T r = j < width ? column[-i] : T(0);
        diagonal[j] = r;
        inverse[j] = job.feedback && j < width ? T(1) / r : T(0);
      }
    }
  }

  // Each lane loads what only it reads: the weights of its columns, 0 where inputs are dead.
  __device__ void load_weights() {
    const Weights<T>& w = job.weights;
    const std::int64_t* places = w.order + batch * w.n + job.task.begin;
    const bool* dead = w.dead == nullptr ? nullptr : w.dead + batch * w.n;
    const T* data = w.data + row_of_all() * w.row_stride;
    // loads depend on each other as little as can be: of the weight and whether it counts, both are fetched
    constexpr int kTogether = 8;
#pragma unroll 1
    for (int from = lane; from < width; from += kTogether * kChunk) {
      std::int64_t column[kTogether];
      T x[kTogether];
#pragma unroll
      for (int v = 0; v < kTogether; ++v) {
        const int j = from + v * kChunk;
        column[v] = j < width ? places[j] : -1;
      }
#pragma unroll
      for (int v = 0; v < kTogether; ++v) x[v] = column[v] >= 0 && live() ? data[column[v] * w.col_stride] : T(0);
      if (dead != nullptr) {
#pragma unroll
        for (int v = 0; v < kTogether; ++v)
          if (column[v] >= 0 && dead[column[v]]) x[v] = T(0);
      }
#pragma unroll
      for (int v = 0; v < kTogether; ++v) weight[row * kSide + from + v * kChunk] = x[v];
    }
  }

  // Masks and grids that are there already.
  __device__ void load_options() {
    const std::int64_t begin = job.task.begin;
    const int i = threadIdx.x % kRows, part = threadIdx.x / kRows;
    constexpr int kParts = kThreads / kRows;
    const bool there = row_begin + i < job.weights.m;
    if (job.masked || job.mask != nullptr) {
      const std::int64_t from = batch * job.task.kept_matrix + row_begin + i;
      for (int j = part; j < width; j += kParts)
        kept[i * kSide + j] =
            job.task.kept != nullptr && there ? job.task.kept[from + (begin + j - job.task.kept_begin) * job.rows] : 1;
    }
    if (!job.quantize || job.grids_inside) return;
    const int slots = slot_of(width - 1) + 1;
    for (int s = part; s < slots; s += kParts) {
      const std::int64_t group = job.first_slot != 0 ? begin / job.group_size + s : job.group[begin + s];
      const std::int64_t at = (batch * job.weights.m + row_begin + i) * job.groups + group;
      scale[s * kRows + i] = there ? job.scales[at] : T(1);
      zero[s * kRows + i] = there ? T(job.zeros[at]) : T(0);
    }
  }

  // r_k = R_kl of four rows k of a chunk and this lane's column l of a tile.
  __device__ void load_half(const T* tile, int half, T* r) const {
    const auto four = *reinterpret_cast<const Four<T>*>(tile + half * (kTile / 2) + 4 * lane);
#pragma unroll
    for (int k = 0; k < 4; ++k) r[k] = four.x[3 - k];
  }
  __device__ void load_tile(const T* tile, T (&r)[kChunk]) const {
    load_half(tile, 0, r);
    load_half(tile, 1, r + 4);
  }

  // C of the `left` chunks after the current one: c_l += sum_k e_k R_kl. kMove: the next chunk becomes the first.
  template <bool kMove>
  __device__ void update(T (&c)[kChunks], const T (&e)[kChunk], int chunk, int left) const {
    const T* tile = tile_at(chunk, chunk + 1);
#pragma unroll
    for (int i = 0; i < kChunks - 1; i += kAhead) {
      if (i >= left) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T r[kAhead][4];
#pragma unroll
        for (int v = 0; v < kAhead && i + v < kChunks - 1; ++v) load_half(tile + (i + v) * kTile, half, r[v]);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int v = 0; v < kAhead && i + v < kChunks - 1; ++v) c[i + v + 1] += e[4 * half + k] * r[v][k];
        }
      }
      if constexpr (kMove) {
#pragma unroll
        for (int v = 0; v < kAhead && i + v < kChunks - 1; ++v) c[i + v] = c[i + v + 1];
      }
    }
  }

  // `current` of columns [from, to): W + C R^-1, the sweep with nothing rounded. `from` is in the chunk that is first
  // in c. Each lane writes its own columns.
  __device__ void look_ahead(const T (&c)[kChunks], int from, int to) {
    const int first = from / kChunk, last = (to - 1) / kChunk;
    if (!job.feedback || job.task.begin + from == 0) {
      for (int j = first * kChunk + lane; j < to; j += kChunk) current[row * kSide + j] = weight[row * kSide + j];
      __syncwarp();
      return;
    }
    T x[kChunks];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) x[i] = c[i];
    if (first * kChunk + lane < from) x[0] = T(0);
#pragma unroll 1
    for (int chunk = first; chunk <= last; ++chunk) {
      T r[kChunk], e[kChunk];
      load_tile(tile_at(chunk, chunk), r);
      const int at = chunk * kChunk + lane;
      const T minus = -inverse[at];
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        e[k] = of_column(x[0] * minus, k);
        if (k < kChunk - 1) x[0] += e[k] * r[k];  // nothing for lanes up to k
      }
      current[row * kSide + at] = weight[row * kSide + at] - x[0] * minus;
      update<true>(x, e, chunk, last - chunk);
    }
    __syncwarp();
  }

  // |current weight * R_jj|, which orders like its square and does not underflow.
  __device__ T score(int j) const {
    return magnitude<T>(current[row * kSide + j] * (job.feedback ? diagonal[j] : T(1)));
  }
  // The first of this lane's columns that is not before `from`.
  __device__ int own(int from) const { return from + ((lane - from) & (kChunk - 1)); }

  // The grid of the columns [from, to) of `current`: as `find_grid`, by the lanes of the row.
  __device__ void group_grid(int from, int to, T& s, T& z) const {
    const T* x = current + row * kSide;
    T low = T(0), high = T(0);
    for (int j = own(from); j < to; j += kChunk) {
      low = lower<T>(low, x[j]);
      high = higher<T>(high, x[j]);
    }
#pragma unroll
    for (int apart = kWarpRows; apart < 32; apart *= 2) {
      low = lower<T>(low, __shfl_xor_sync(~0U, low, apart));
      high = higher<T>(high, __shfl_xor_sync(~0U, high, apart));
    }
    widen_range(job.rule, low, high);
    int step = 0;
    if (job.rule.steps > 1)
      step = job.rule.squares ? search<true>(x, from, to, low, high) : search<false>(x, from, to, low, high);
    shrink_to_grid(job.rule, low, high, step, s, z);
  }

  // The step with the least error, of equals the first. Every lane tries its share of the candidates, some at a time.
  template <bool kSquares>
  __device__ int search(const T* x, int from, int to, T low, T high) const {
    constexpr int kTogether = sizeof(T) == 4 ? 5 : 2;
    Rule<T> rule = job.rule;
    rule.squares = kSquares;  // known to the compiler
    T best = Number<T>::kMax;
    int best_step = 0;
#pragma unroll 1
    for (int first = lane; first < rule.steps; first += kTogether * kChunk) {
      Candidate<T> candidates[kTogether];
      T sums[kTogether];
#pragma unroll
      for (int v = 0; v < kTogether; ++v) {
        T s, z;
        shrink_to_grid(rule, low, high, higher(0, lower(first + v * kChunk, rule.steps - 1)), s, z);
        candidates[v] = Candidate<T>(rule, s, z);
        sums[v] = T(0);
      }
#pragma unroll 2
      for (int j = from; j < to; ++j) {
        const T y = x[j];
#pragma unroll
        for (int v = 0; v < kTogether; ++v) sums[v] += candidates[v].error(rule, y);
      }
#pragma unroll
      for (int v = 0; v < kTogether; ++v) {
        if (first + v * kChunk < rule.steps && sums[v] < best) {
          best = sums[v];
          best_step = first + v * kChunk;
        }
      }
    }
#pragma unroll
    for (int apart = kWarpRows; apart < 32; apart *= 2) {
      const T sum = __shfl_xor_sync(~0U, best, apart);
      const int step = __shfl_xor_sync(~0U, best_step, apart);
      if (sum < best || (sum == best && step < best_step)) {
        best = sum;
        best_step = step;
      }
    }
    return best_step;
  }

  // Grids of the groups that start in columns [from, from + unit), from the weights that are current now.
  __device__ void group_grids(const T (&c)[kChunks], int from, int unit) {
    const int g = job.group_size, n = static_cast<int>(job.weights.n), begin = static_cast<int>(job.task.begin);
    const int a = begin + from, stop = unit < n - a ? a + unit : n;
    const int first = a / g + (a % g != 0 ? 1 : 0), last = (stop - 1) / g;
    if (first > last) return;
    const auto end_of = [&](int group) { return g < n - group * g ? group * g + g : n; };
    look_ahead(c, from, end_of(last) - begin);
#pragma unroll 1
    for (int group = first; group <= last; ++group) {
      T s, z;
      group_grid(group * g - begin, end_of(group) - begin, s, z);
      if (lane != 0) continue;
      const int at = (group - begin / g) * kRows + row;
      scale[at] = s;
      zero[at] = z;
      if (!live()) continue;
      job.scales[row_of_all() * job.groups + group] = s;
      job.zeros[row_of_all() * job.groups + group] = static_cast<std::uint8_t>(z);
    }
    __syncwarp();
  }

  // `kept` of columns [from, to): 0 for the `pruned` lowest scores of each row, of equals the first.
  __device__ void mask_columns(const T (&c)[kChunks], int from, int to, std::int64_t pruned) {
    constexpr int kColumns = 4;
    look_ahead(c, from, to);
    T* scores = current + row * kSide;
    for (int j = own(from); j < to; j += kChunk) scores[j] = score(j);
    __syncwarp();
    for (int j = own(from); j < to; j += kColumns * kChunk) {
      T mine[kColumns];
      int rank[kColumns] = {};  // how many of the others go before this one
#pragma unroll
      for (int v = 0; v < kColumns; ++v) mine[v] = j + v * kChunk < to ? scores[j + v * kChunk] : T(0);
      for (int l = from; l < to; ++l) {
        const T other = scores[l];
#pragma unroll
        for (int v = 0; v < kColumns; ++v)
          rank[v] += other < mine[v] || (other == mine[v] && l < j + v * kChunk) ? 1 : 0;
      }
#pragma unroll
      for (int v = 0; v < kColumns; ++v)
        if (j + v * kChunk < to) kept[row * kSide + j + v * kChunk] = rank[v] < pruned ? 0 : 1;
    }
    __syncwarp();
  }

  // Whether this lane's column is kept, of the four columns from kFrom on that it is one of; other lanes get anything.
  template <int kFrom>
  __device__ bool keeps(T w, T c, T inv, T diag, const T (&r)[kChunk]) const {
#pragma unroll
    for (int k = kFrom; k < kFrom + 3; ++k) c -= of_column(c * inv, k) * r[k];  // C_j while nothing is rounded
    const T t = w + c * inv;
    const T s = magnitude<T>(t * (job.feedback ? diag : T(1)));
    int rank = 0;
#pragma unroll
    for (int v = 1; v < 4; ++v) {
      const T other = __shfl_xor_sync(~0U, s, v * kWarpRows);
      rank += (lane ^ v) < lane ? other <= s : other < s;
    }
    return rank >= job.out_of - job.keep;
  }

  // What this lane knows of its column.
  struct Column {
    T w, inv, diag, scale, per_scale, zero, low, high;
    bool keep;
    T q, level, error;  // results
  };

  template <Rounding kRounding>
  __device__ void round(Column& column, T c) const {
    T q = T(0), level = T(0);
    if constexpr (kRounding == Rounding::kNone) {
      q = column.keep ? column.w + c * column.inv : T(0);
    } else {
      const T t = column.w + c * column.inv;
      T x;
      if constexpr (kRounding == Rounding::kFast)
        x = quotient(t, column.scale, column.per_scale);
      else
        x = t / column.scale;
      level = nearest<T>(Number<T>::clamp(x, column.low, column.high));
      q = Number<T>::product(level, column.scale);
    }
    column.q = q;
    column.level = level;
    column.error = column.w - q;
  }

  // The columns of the chunk one by one. All lanes round theirs every time: what they have in the end is right, as
  // nothing changes a column's C after its turn. kWhole: all of them count; else errors of the others are taken as 0.
  template <Rounding kRounding, bool kWhole, bool kFours>
  __device__ void steps(Column& column, T& c, T (&e)[kChunk], const T (&r)[kChunk], bool mine) const {
    const auto mask = [&](bool keep) {
      column.keep = keep;
      if (!keep) column.low = column.high = T(0);
    };
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      if (kFours && k == 0) {
        const bool keep = keeps<0>(column.w, c, column.inv, column.diag, r);
        if (lane < 4) mask(keep);
      }
      if (kFours && k == 4) {
        const bool keep = keeps<4>(column.w, c, column.inv, column.diag, r);
        if (lane >= 4) mask(keep);
      }
      round<kRounding>(column, c);
      e[k] = of_column(kWhole || mine ? column.error : T(0), k);
      if (k < kChunk - 1) c += e[k] * r[k];
    }
  }

  // Finishes columns k0 to k1 of a chunk, whose C_j stand in c, complete but for each other.
  template <bool kWhole, bool kFours>
  __device__ void finish(T& c, T (&e)[kChunk], int chunk, int k0, int k1) {
    const int j = chunk * kChunk + lane;
    const bool mine = kWhole || (lane >= k0 && lane < k1);
    T r[kChunk] = {};
    if (job.a != nullptr) load_tile(tile_at(chunk, chunk), r);
    Column column;
    column.w = weight[row * kSide + j];
    column.inv = inverse[j];
    column.diag = diagonal[j];
    column.keep = !job.masked || kFours || (mine && kept[row * kSide + j] != 0);
    column.zero = T(0);
    if (job.quantize) {
      const int grid = slot[j] * kRows + row;
      const T s = scale[grid], z = zero[grid];
      column.scale = s;
      column.zero = z;
      column.low = column.keep ? -z : T(0);
      column.high = column.keep ? T(job.rule.max_code) - z : T(0);
      column.per_scale = Number<T>::reciprocal(s);
      if (__all_sync(~0U, is_ordinary(s) || !mine))
        steps<Rounding::kFast, kWhole, kFours>(column, c, e, r, mine);
      else
        steps<Rounding::kAny, kWhole, kFours>(column, c, e, r, mine);
    } else {
      steps<Rounding::kNone, kWhole, kFours>(column, c, e, r, mine);
    }
    if (!mine) return;
    if (job.loss != nullptr) {
      const T x = c + column.error * column.diag;
      loss += static_cast<double>(x * x);
    }
    if (!live()) return;
    const std::int64_t at = results + order[j];
    if (job.codes != nullptr) job.codes[at] = static_cast<std::uint8_t>(static_cast<int>(column.level + column.zero));
    if (job.values != nullptr) job.values[at] = column.q;
    if (job.mask != nullptr) job.mask[at] = column.keep;
    if (job.task.keep_errors) *sums_at(j) = column.error * up;
  }

  __device__ void store_loss() {
    if (job.loss == nullptr) return;
#pragma unroll
    for (int apart = kWarpRows; apart < 32; apart *= 2) loss += __shfl_xor_sync(~0U, loss, apart);
    if (lane == 0 && live()) job.loss[row_of_all()] = job.task.begin == 0 ? loss : job.loss[row_of_all()] + loss;
  }

  __device__ void store_scores() const {
    if (!live()) return;
    for (int j = lane; j < width; j += kChunk)
      job.task.scores[(batch * width + j) * job.rows + row_begin + row] = score(j);
  }
};

// How far it is to the next multiple of `unit`, 0 if this is one.
__device__ inline int step_to(int from, int unit) { return (unit - from % unit) % unit; }

template <class T, int kRows, bool kFours>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? kResident : 1)
    sweep_block_kernel(const __grid_constant__ Arguments<T> job) {
  extern __shared__ __align__(16) unsigned char memory[];
  Tile<T, kRows> tile(job, memory);
  const int begin = static_cast<int>(job.task.begin), n = static_cast<int>(job.weights.n);
  T c[kChunks], e[kChunk];
  tile.load(c);
  if (!tile.works()) return;
  if (job.task.scores != nullptr) {
    tile.look_ahead(c, 0, tile.width);
    tile.store_scores();
    return;
  }
  const bool masks_inside = job.masks_inside && !kFours;
  const int grid_unit = job.stale_block > 0 ? job.stale_block : job.group_size;
  // columns to the next of a kind
  int grids = job.grids_inside ? step_to(begin, grid_unit) : n,
      masks = masks_inside ? step_to(begin, job.mask_unit) : n;
#pragma unroll 1
  for (int chunk = 0; chunk < tile.chunks; ++chunk) {
    const int left = tile.chunks - 1 - chunk;
    const int end = left > 0 ? kChunk : tile.width - chunk * kChunk;
#pragma unroll 1
    for (int k0 = 0; k0 < end;) {
      const int from = chunk * kChunk + k0;
      if (grids == 0) {
        tile.group_grids(c, from, job.stale_block > 0 ? job.stale_block : 1);
        grids = grid_unit;
      }
      if (masks == 0) {
        const int unit = job.mask_unit, to = unit < n - begin - from ? from + unit : n - begin;
        const auto before = [&](int columns) {
          return static_cast<std::int64_t>(job.sparsity * static_cast<double>(columns) + 0.5);
        };
        tile.mask_columns(c, from, to,
                          job.out_of > 0 ? job.out_of - job.keep : before(begin + to) - before(begin + from));
        masks = unit;
      }
      const int columns = lower(end - k0, lower(grids, masks));
      if (columns == kChunk)
        tile.template finish<true, kFours>(c[0], e, chunk, 0, kChunk);
      else
        tile.template finish<false, kFours>(c[0], e, chunk, k0, k0 + columns);
      k0 += columns;
      grids -= columns;
      masks -= columns;
      if (k0 < end && job.a != nullptr) tile.template update<false>(c, e, chunk, left);
    }
    if (job.a != nullptr) tile.template update<true>(c, e, chunk, left);
  }
  tile.store_loss();
}

template <class T, int kRows>
void run(const Execution& exec, const Job<T>& job, const BlockTask<T>& task) {
  const quadric::sweep::SweepOptions& options = job.options;
  Arguments<T> arguments{};
  arguments.weights = job.weights;
  arguments.rule = Rule<T>(options.grid);
  arguments.task = task;
  arguments.a = job.a;
  arguments.sums = job.sums;
  arguments.rows = job.rows;
  arguments.groups = job.groups;
  arguments.up = job.up;
  arguments.codes = job.codes;
  arguments.scales = job.scales;
  arguments.zeros = job.zeros;
  arguments.values = job.values;
  arguments.mask = job.mask;
  arguments.loss = job.loss;
  arguments.group = options.group;
  const auto period = [&](std::int64_t unit) { return static_cast<int>(std::min(unit, job.weights.n)); };
  arguments.group_size = period(options.group_size);
  arguments.stale_block = period(options.stale_block);
  arguments.mask_unit = period(options.out_of > 0 ? options.out_of : options.mask_block);
  arguments.keep = options.keep;
  arguments.out_of = options.out_of;
  arguments.sparsity = options.sparsity;
  arguments.feedback = options.feedback;
  arguments.masked = options.out_of > 0 || options.sparsity > 0;
  arguments.quantize = options.grid.max_code > 0;
  arguments.grids_inside = arguments.quantize && options.group_size > 0 && job.grids_inside;
  arguments.masks_inside = arguments.masked && job.masks_inside;
  arguments.first_slot = options.group_size > 0 ? 1 : 0;

  const bool scores = task.scores != nullptr;
  const bool stale = arguments.grids_inside && options.stale_block > 0;
  const bool fours = arguments.masks_inside && options.out_of == 4 && (!stale || options.stale_block % 4 == 0);
  Needs needs{};
  needs.factor = job.a != nullptr;
  needs.current = scores || arguments.grids_inside || (arguments.masks_inside && !fours);
  needs.kept = (arguments.masked || job.mask != nullptr) && !scores;
  needs.width = task.width;
  if (arguments.quantize && !scores) {
    const std::int64_t last = task.begin + task.width - 1;
    needs.slots = arguments.first_slot != 0
                      ? static_cast<int>(last / options.group_size - task.begin / options.group_size) + 1
                      : task.width;
  }
  arguments.at = make_layout<T, kRows>(needs);
  const std::int64_t tiles = (job.weights.m + kRows - 1) / kRows;
  launch(exec, fours ? sweep_block_kernel<T, kRows, true> : sweep_block_kernel<T, kRows, false>,
         tiles * job.weights.count, kThreads, static_cast<std::size_t>(arguments.at.size), arguments);
}

}  // namespace

template <class T>
void sweep_block(const Execution& exec, const Job<T>& job, const BlockTask<T>& task) {
  const std::int64_t rows = job.weights.m * job.weights.count;
  if (rows <= 1280) return run<T, 8>(exec, job, task);
  if (sizeof(T) == 8 || rows <= 2560) return run<T, 16>(exec, job, task);
  if constexpr (sizeof(T) == 4) return run<T, 32>(exec, job, task);
}

template void sweep_block(const Execution&, const Job<float>&, const BlockTask<float>&);
template void sweep_block(const Execution&, const Job<double>&, const BlockTask<double>&);

}  // namespace quadric::cuda::sweep
