// The sweep of one block of up to 128 columns, everything but the products that bring C_j there.
//
// Floor at m = n = 4096, a block: W, C and D 6 MB and codes 0.5 MB, 1.6 us; products inside the block and ahead of it
// 2 m 128^2 flops, 2 us. What counts is the chain of 128 columns, each of which waits for the one before: about 55
// cycles for a quotient, a rounding and two updates, and as much again for loads, 8 us; ahead of a dynamic group half
// of that once more. With loads and stores this kernel should take about 20 us.
//
// Layout: a block of 256 threads has kRows rows of W, C and the triangle of R in shared memory. Eight columns at a time
// ("chunk") are finished by kRows threads, one for each row, in registers; then all threads update the columns to the
// right of them by a product of depth eight. Few rows make small tiles, so that all multiprocessors have some. A row's
// result depends neither on kRows nor on the other rows.
#include <algorithm>
#include <cstdint>

#include "sweep/launch.cuh"
#include "sweep/plan.hpp"
#include "sweep/tile.cuh"

namespace quadric::cuda::sweep {
namespace {

constexpr int kChunk = 8;

// Column j of the triangle of R in shared memory: rows 0..j, filled up with zeros to a multiple of four.
__host__ __device__ inline int column_start(int j) { return 4 * (j / 4 + 1) * (2 * (j / 4) + j % 4); }

template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four {
  T x[4];
};

// Byte offsets of a block's arrays in shared memory.
struct Layout {
  std::int64_t order, search, factor, diagonal, inverse, weight, sum, current, scale, zero, slot, code, kept, size;
};

struct Needs {
  bool factor, current, search, kept;
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
  const std::int64_t tile = std::int64_t{needs.width} * kStride<kRows>;
  at.order = take(needs.width * sizeof(std::int64_t));
  at.search = take(needs.search ? sizeof(SearchMemory<T>) : 0);
  at.factor = take(needs.factor ? column_start(needs.width + kChunk - 1) * sizeof(T) : 0);  // `load_triangle` reads on
  at.diagonal = take(needs.width * sizeof(T));
  at.inverse = take(needs.width * sizeof(T));
  at.weight = take(tile * sizeof(T));
  at.sum = take(tile * sizeof(T));
  at.current = take(needs.current ? tile * sizeof(T) : 0);
  at.scale = take(std::int64_t{needs.slots} * kRows * sizeof(T));
  at.zero = take(std::int64_t{needs.slots} * kRows * sizeof(T));
  at.slot = take(needs.width * sizeof(int));
  at.code = take(std::int64_t{needs.width} * (kRows + 4));
  at.kept = take(needs.kept ? std::int64_t{needs.width} * (kRows + 4) : 0);
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

template <class T, int kRows>
struct Tile {
  static constexpr int kParts = kThreads / kRows;
  static constexpr int kSide = kRows + 4;  // stride of a column of bytes
  const Arguments<T>& job;
  std::int64_t batch, row_begin;  // the matrix, and the first row in it
  int row, part, width;
  std::int64_t* order;
  T *factor, *diagonal, *inverse, *weight, *sum, *current, *scale, *zero;
  int* slot;
  std::uint8_t *code, *kept;
  SearchMemory<T>* search;

  __device__ Tile(const Arguments<T>& arguments, unsigned char* memory) : job(arguments) {
    const std::int64_t tiles = (job.weights.m + kRows - 1) / kRows;
    batch = blockIdx.x / tiles;
    row_begin = blockIdx.x % tiles * kRows;
    row = threadIdx.x % kRows;
    part = threadIdx.x / kRows;
    width = job.task.width;
    order = reinterpret_cast<std::int64_t*>(memory + job.at.order);
    search = reinterpret_cast<SearchMemory<T>*>(memory + job.at.search);
    factor = reinterpret_cast<T*>(memory + job.at.factor);
    diagonal = reinterpret_cast<T*>(memory + job.at.diagonal);
    inverse = reinterpret_cast<T*>(memory + job.at.inverse);
    weight = reinterpret_cast<T*>(memory + job.at.weight);
    sum = reinterpret_cast<T*>(memory + job.at.sum);
    current = reinterpret_cast<T*>(memory + job.at.current);
    scale = reinterpret_cast<T*>(memory + job.at.scale);
    zero = reinterpret_cast<T*>(memory + job.at.zero);
    slot = reinterpret_cast<int*>(memory + job.at.slot);
    code = memory + job.at.code;
    kept = memory + job.at.kept;
  }

  __device__ bool live() const { return row_begin + row < job.weights.m; }
  __device__ std::int64_t row_of_all() const { return batch * job.weights.m + row_begin + row; }
  // C or D of column j of the block, first row of the tile
  __device__ std::int64_t sums_at(int j) const {
    const std::int64_t n = job.weights.n;
    return (batch * n + (n - 1 - job.task.begin - j)) * job.rows + row_begin;
  }
  __device__ int slot_of(int j) const {
    const int begin = static_cast<int>(job.task.begin);
    return job.first_slot != 0 ? (begin + j) / job.group_size - begin / job.group_size : j;
  }

  // Fills the tile; synchronizes.
  __device__ void load() {
    load_arrays();
    __syncthreads();
    for (int j = threadIdx.x; j < width; j += kThreads) {
      const T r = job.a != nullptr ? factor[column_start(j) + j] : T(0);
      diagonal[j] = r;
      inverse[j] = job.a != nullptr && job.feedback ? T(1) / r : T(0);
    }
    __syncthreads();
  }

  __device__ void load_arrays() {
    const std::int64_t n = job.weights.n, begin = job.task.begin;
    for (int j = threadIdx.x; j < width; j += kThreads) {
      order[j] = job.weights.order[batch * n + begin + j];
      slot[j] = job.quantize ? slot_of(j) : 0;
    }
    if (job.a != nullptr) {
#pragma unroll 2
      for (int j = threadIdx.x / 32; j < width; j += kThreads / 32) {
        // R_ij for i = begin... stands backwards in a column of A
        const T* from = job.a + (batch * n + (n - 1 - begin - j)) * n + (n - 1 - begin);
        T* to = factor + column_start(j);
#pragma unroll
        for (int k = 0; k < kBlock / 32; ++k) {
          const int i = threadIdx.x % 32 + 32 * k;
          if (i < (j + 4) / 4 * 4) to[i] = i <= j ? from[-i] : T(0);
        }
      }
    }
    if (job.a != nullptr && begin > 0) {
      const std::int64_t at = sums_at(0) + row;
#pragma unroll 8
      for (int j = part; j < width; j += kParts)
        sum[j * kStride<kRows> + row] = live() ? job.sums[at - j * job.rows] : T(0);
    } else {
      for (int j = part; j < width; j += kParts) sum[j * kStride<kRows> + row] = T(0);
    }
    load_weights<T, kRows>(job.weights, batch, row_begin, begin, width, weight);
    if (job.task.scores != nullptr) return;
    if (job.masked || job.mask != nullptr) {
      for (int j = part; j < width; j += kParts) {
        const std::int64_t at = (begin + j - job.task.kept_begin) * job.rows + row_begin + row;
        kept[j * kSide + row] =
            job.task.kept != nullptr && live() ? job.task.kept[batch * job.task.kept_matrix + at] : 1;
      }
    }
    if (!job.quantize || job.grids_inside) return;
    const int slots = slot_of(width - 1) + 1;
    for (int s = part; s < slots; s += kParts) {
      const std::int64_t group = job.first_slot != 0 ? begin / job.group_size + s : job.group[begin + s];
      const std::int64_t at = row_of_all() * job.groups + group;
      scale[s * kRows + row] = live() ? job.scales[at] : T(1);
      zero[s * kRows + row] = live() ? T(job.zeros[at]) : T(0);
    }
  }

  // to_l += or -= sum_k from_k R_kl for k in [begin, end), at most a chunk, and l in [end, last).
  template <bool kMinus>
  __device__ void update(T* tile, int begin, int end, int last) const {
    constexpr int kQuads = kChunk / 4 + 1;  // a chunk that starts anywhere
    constexpr int kColumns = 4;             // columns in flight
    const int first = begin / 4 * 4;
    T d[kQuads * 4];
#pragma unroll
    for (int k = 0; k < kQuads * 4; ++k) {
      const bool in = first + k >= begin && first + k < end;
      d[k] = in ? tile[(first + k) * kStride<kRows> + row] : T(0);
      if (kMinus) d[k] = -d[k];
    }
    for (int l = end + part; l < last; l += kColumns * kParts) {
      T c[kColumns];
#pragma unroll
      for (int v = 0; v < kColumns; ++v)
        c[v] = l + v * kParts < last ? tile[(l + v * kParts) * kStride<kRows> + row] : T(0);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        if (first + 4 * q >= end) break;
#pragma unroll
        for (int v = 0; v < kColumns; ++v) {
          if (l + v * kParts >= last) break;
          const auto r = *reinterpret_cast<const Four<T>*>(factor + column_start(l + v * kParts) + first + 4 * q);
#pragma unroll
          for (int k = 0; k < 4; ++k) c[v] += d[4 * q + k] * r.x[k];
        }
      }
#pragma unroll
      for (int v = 0; v < kColumns; ++v)
        if (l + v * kParts < last) tile[(l + v * kParts) * kStride<kRows> + row] = c[v];
    }
  }

  // R_kl of the chunk that begins at `a`, k < l. Beyond the block it is anything: nobody uses what follows from it.
  __device__ void load_triangle(int a, T (&r)[kChunk][kChunk]) const {
    if (job.a == nullptr) {
#pragma unroll
      for (int l = 1; l < kChunk; ++l) {
#pragma unroll
        for (int k = 0; k < l; ++k) r[k][l] = T(0);
      }
    } else if (a % 4 == 0) {  // column starts are a + 4, then a + 8 apart
      const T* from = factor + column_start(a) + a;
#pragma unroll
      for (int l = 0; l < kChunk; ++l) {
        const auto head = *reinterpret_cast<const Four<T>*>(from);
#pragma unroll
        for (int k = 0; k < 4 && k < l; ++k) r[k][l] = head.x[k];
        if (l > 4) {
          const auto tail = *reinterpret_cast<const Four<T>*>(from + 4);
#pragma unroll
          for (int k = 4; k < l; ++k) r[k][l] = tail.x[k - 4];
        }
        from += l < 4 ? a + 4 : a + 8;
      }
    } else {
#pragma unroll
      for (int l = 1; l < kChunk; ++l) {
#pragma unroll
        for (int k = 0; k < l; ++k) r[k][l] = factor[column_start(a + l) + a + k];
      }
    }
  }

  // `current` of columns [from, to): W + C R^-1, the sweep with nothing rounded.
  __device__ void look_ahead(int from, int to) {
    const bool solve = job.feedback && job.task.begin + from > 0;
    __syncthreads();
    for (int j = from + part; j < to; j += kParts) {
      const int at = j * kStride<kRows> + row;
      current[at] = solve ? sum[at] : weight[at];
    }
    __syncthreads();
    if (!solve) return;
    for (int a = from; a < to; a += kChunk) {
      const int b = a + kChunk < to ? a + kChunk : to;
      if (threadIdx.x < kRows) {
        T r[kChunk][kChunk], c[kChunk], reciprocal[kChunk];
        load_triangle(a, r);
#pragma unroll
        for (int k = 0; k < kChunk; ++k) {
          const int j = a + k < b ? a + k : a;
          c[k] = current[j * kStride<kRows> + row];
          reciprocal[k] = inverse[j];
        }
#pragma unroll
        for (int k = 0; k < kChunk; ++k) {
          if (a + k >= b) break;
          const T x = c[k] * reciprocal[k];
#pragma unroll
          for (int l = k + 1; l < kChunk; ++l) c[l] -= x * r[k][l];
          current[(a + k) * kStride<kRows> + row] = x;
        }
      }
      __syncthreads();
      if (b == to) break;
      update<true>(current, a, b, to);
      __syncthreads();
    }
    for (int j = from + part; j < to; j += kParts)
      current[j * kStride<kRows> + row] += weight[j * kStride<kRows> + row];
    __syncthreads();
  }

  // |current weight * R_jj|, which orders like its square and does not underflow.
  __device__ T score(int j) const {
    return magnitude<T>(current[j * kStride<kRows> + row] * (job.feedback ? diagonal[j] : T(1)));
  }

  // Grids of the groups that start in columns [from, from + unit), from the weights that are current now.
  __device__ void group_grids(int from, int unit) {
    const int g = job.group_size, n = static_cast<int>(job.weights.n), begin = static_cast<int>(job.task.begin);
    const int a = begin + from, stop = unit < n - a ? a + unit : n;
    const int first = a % g == 0 ? a / g : a / g + 1, last = (stop - 1) / g;
    if (first > last) return;
    const auto end_of = [&](int group) { return g < n - group * g ? group * g + g : n; };
    look_ahead(from, end_of(last) - begin);
    for (int group = first; group <= last; ++group) {
      T s, z;
      find_grid<T, kRows>(
          job.rule, 1,
          [&](int, const T*& tile, int& columns) {
            tile = current + (group * g - begin) * kStride<kRows>;
            columns = end_of(group) - group * g;
          },
          *search, s, z);
      if (part != 0) continue;
      const int at = (group - begin / g) * kRows + row;
      scale[at] = s;
      zero[at] = z;
      if (!live()) continue;
      job.scales[row_of_all() * job.groups + group] = s;
      job.zeros[row_of_all() * job.groups + group] = static_cast<std::uint8_t>(z);
    }
    __syncthreads();
  }

  // `kept` of columns [from, to): 0 for the `pruned` lowest scores of each row, of equals the first.
  __device__ void mask_columns(int from, int to, std::int64_t pruned) {
    constexpr int kColumns = 4;
    look_ahead(from, to);
    for (int j = from + part; j < to; j += kParts) current[j * kStride<kRows> + row] = score(j);
    __syncthreads();
    for (int j = from + part; j < to; j += kColumns * kParts) {
      T mine[kColumns];
      int rank[kColumns] = {};  // how many of the others go before this one
#pragma unroll
      for (int v = 0; v < kColumns; ++v)
        mine[v] = j + v * kParts < to ? current[(j + v * kParts) * kStride<kRows> + row] : T(0);
      for (int l = from; l < to; ++l) {
        const T other = current[l * kStride<kRows> + row];
#pragma unroll
        for (int v = 0; v < kColumns; ++v)
          rank[v] += other < mine[v] || (other == mine[v] && l < j + v * kParts) ? 1 : 0;
      }
#pragma unroll
      for (int v = 0; v < kColumns; ++v)
        if (j + v * kParts < to) kept[(j + v * kParts) * kSide + row] = rank[v] < pruned ? 0 : 1;
    }
    __syncthreads();
  }

  // Which of four columns from `a` on are kept, whose C_j stand in c, with those of the chunk: bits.
  template <int kFrom>
  __device__ unsigned mask_four(int a, const T (&w)[kChunk], const T (&c)[kChunk], const T (&r)[kChunk][kChunk]) const {
    T ahead[4], s[4];  // C_j while nothing is rounded
#pragma unroll
    for (int j = 0; j < 4; ++j) ahead[j] = c[kFrom + j];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      T t = w[kFrom + j];
      if (job.feedback) {
        const T x = ahead[j] * inverse[a + kFrom + j];
        t += x;
#pragma unroll
        for (int l = j + 1; l < 4; ++l) ahead[l] -= x * r[kFrom + j][kFrom + l];
      }
      s[j] = magnitude<T>(t * (job.feedback ? diagonal[a + kFrom + j] : T(1)));
    }
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int rank = 0;
#pragma unroll
      for (int l = 0; l < 4; ++l)
        if (l != j) rank += l < j ? s[l] <= s[j] : s[l] < s[j];
      if (rank >= job.out_of - job.keep) bits |= 1U << (kFrom + j);
    }
    return bits;
  }

  // Rounds columns [a, b), whose C_j are complete but for each other; by one thread for each row. D takes the place of
  // C, and Q that of W.
  template <bool kFours>
  __device__ void finish(int a, int b, double& loss) {
    // all loads first: none of them must wait for a column
    T r[kChunk][kChunk], c[kChunk], w[kChunk], reciprocal[kChunk], s[kChunk], z[kChunk], per_scale[kChunk];
    load_triangle(a, r);
    unsigned kept_bits = 0;
    bool ordinary = true;
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const int j = a + k < b ? a + k : a;
      c[k] = sum[j * kStride<kRows> + row];
      w[k] = weight[j * kStride<kRows> + row];
      reciprocal[k] = inverse[j];
      s[k] = job.quantize ? scale[slot[j] * kRows + row] : T(1);
      z[k] = job.quantize ? zero[slot[j] * kRows + row] : T(0);
      per_scale[k] = Number<T>::reciprocal(s[k]);
      ordinary = ordinary && is_ordinary(s[k]);
      if (job.masked && !kFours && kept[j * kSide + row] != 0) kept_bits |= 1U << k;
    }
    T squares = T(0);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      if (a + k >= b) break;
      const int j = a + k;
      if (kFours && k % 4 == 0) kept_bits |= k == 0 ? mask_four<0>(a, w, c, r) : mask_four<4>(a, w, c, r);
      T q = w[k] + c[k] * reciprocal[k];
      T level_code = T(0);
      if (job.quantize) {
        const T x = ordinary ? quotient(q, s[k], per_scale[k]) : q / s[k];
        const T level = nearest<T>(lower<T>(higher<T>(x, -z[k]), T(job.rule.max_code) - z[k]));
        q = Number<T>::product(level, s[k]);
        level_code = level + z[k];
      }
      if (job.masked) {
        const bool keep = (kept_bits >> k & 1U) != 0;
        if (kFours) kept[j * kSide + row] = keep ? 1 : 0;
        if (!keep) {
          q = T(0);
          level_code = z[k];
        }
      }
      const T error = w[k] - q;
      const T e = c[k] + error * diagonal[j];
      squares += e * e;
#pragma unroll
      for (int l = k + 1; l < kChunk; ++l) c[l] += error * r[k][l];
      sum[j * kStride<kRows> + row] = error;
      weight[j * kStride<kRows> + row] = q;
      code[j * kSide + row] = static_cast<std::uint8_t>(static_cast<int>(level_code));
    }
    loss += static_cast<double>(squares);
  }

  __device__ void store(double loss) const {
    const std::int64_t n = job.weights.n, m = job.weights.m;
    if (job.task.keep_errors && live())
      for (int j = part; j < width; j += kParts) job.sums[sums_at(j) + row] = sum[j * kStride<kRows> + row];
    for (int i = threadIdx.x / 32; i < kRows; i += kThreads / 32) {
      if (row_begin + i >= m) break;
      const std::int64_t to = (batch * m + row_begin + i) * n;
      for (int j = threadIdx.x % 32; j < width; j += 32) {
        if (job.codes != nullptr) job.codes[to + order[j]] = code[j * kSide + i];
        if (job.values != nullptr) job.values[to + order[j]] = weight[j * kStride<kRows> + i];
        if (job.mask != nullptr) job.mask[to + order[j]] = kept[j * kSide + i] != 0;
      }
    }
    if (job.loss != nullptr && part == 0 && live())
      job.loss[row_of_all()] = job.task.begin == 0 ? loss : job.loss[row_of_all()] + loss;
  }
};

// How far it is to the next multiple of `unit`.
__device__ inline int step_to(int from, int unit) { return unit - from % unit; }

template <class T, int kRows, bool kFours>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1)
    sweep_block_kernel(const __grid_constant__ Arguments<T> job) {
  extern __shared__ __align__(16) unsigned char memory[];
  Tile<T, kRows> tile(job, memory);
  const int begin = static_cast<int>(job.task.begin), n = static_cast<int>(job.weights.n);
  tile.load();
  if (job.task.scores != nullptr) {
    tile.look_ahead(0, tile.width);
    if (!tile.live()) return;
    for (int j = tile.part; j < tile.width; j += tile.kParts)
      job.task.scores[(tile.batch * tile.width + j) * job.rows + tile.row_begin + tile.row] = tile.score(j);
    return;
  }
  double loss = 0.0;
  for (int a = 0; a < tile.width;) {
    int b = a + kChunk < tile.width ? a + kChunk : tile.width;
    if (job.grids_inside) {
      const bool stale = job.stale_block > 0;
      const int unit = stale ? job.stale_block : job.group_size;
      if ((begin + a) % unit == 0) tile.group_grids(a, stale ? unit : 1);
      const int left = step_to(begin + a, unit);
      if (b - a > left) b = a + left;
    }
    if (job.masks_inside && !kFours) {
      const int left = step_to(begin + a, job.mask_unit);
      if ((begin + a) % job.mask_unit == 0) {
        const int from = begin + a, to = left < n - from ? from + left : n;
        const auto before = [&](int columns) {
          return static_cast<std::int64_t>(job.sparsity * static_cast<double>(columns) + 0.5);
        };
        tile.mask_columns(a, to - begin, job.out_of > 0 ? job.out_of - job.keep : before(to) - before(from));
      }
      if (b - a > left) b = a + left;
    }
    if (threadIdx.x < kRows) tile.template finish<kFours>(a, b, loss);
    __syncthreads();
    if (job.a != nullptr && b < tile.width) {
      tile.template update<false>(tile.sum, a, b, tile.width);
      __syncthreads();
    }
    a = b;
  }
  tile.store(loss);
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
  needs.search = arguments.grids_inside && !scores;
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
