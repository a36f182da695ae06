// Long factors with one vector: J v and alpha J + delta I + sign y y^T from the tiles on and below the diagonal.
//
// Floor: a read of half of J and a write of all of it, 1.5 n^2 entries at 4.2 TB/s; n = 4096 in float32: 101 MB = 24
// us. That takes the product's half of J, 34 MB, to stay in L2 until the update reads it again: tiles go from first to
// last in the product and from last to first in the update, and what the update writes is marked to leave L2 first. In
// place that is only the half above the diagonal: the other one goes where J is already, and the next product will read
// it.
//
// Measured: product 6.6 us and update 20.5 us of J in L2, the sums of slots 10; a step of rank one 53 us in a graph.
//
// A tile stands for its mirror image as well. Its sums over rows go to slot `column of tiles` of its rows, those over
// columns to slot `row of tiles` of its columns: so each row has each slot once, and a small kernel adds them in order.
// That goes for entries times v and for magnitudes, the norms, alike. Tiles on the diagonal are read whole and have no
// image.
//
// The product's tiles are 512 bytes wide: a warp reads a row at once, and for n = 4096 in float32 all 528 tiles run at
// the same time, four on a multiprocessor. Those of the update are half as wide: 2080 tiles, eight on each, two rounds.
//
// The kernels begin before those ahead have ended. The update is there while the steps are still computed, and has its
// tiles by then.
#include "woodbury/symmetric.hpp"

#include <algorithm>
#include <iterator>

#include "early.cuh"
#include "woodbury/factors.cuh"

namespace quadric::cuda::factors {
namespace {

template <class T>
struct Table {
  struct Item : Single<T> {
    T* slots;        // tiles along a side x n
    unsigned tile;   // number of the first among those of the launch
    unsigned strip;  // of kStrip rows, likewise
  };
  Item at[kFactors];
  int count = 0;

  template <unsigned Item::* kFirst>
  __device__ int find(unsigned block) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (block >= at[middle].*kFirst ? low : high) = middle;
    }
    return low;
  }
};

constexpr int kStrip = 32;  // rows whose slots a block of threads adds

std::int64_t pieces(std::int64_t n, int size) { return (n + size - 1) / size; }

// Tile `index` in the order (0, 0), (1, 0), (1, 1), (2, 0) ...
struct Place {
  int row, column;
};
__device__ __forceinline__ Place place(unsigned index) {  // below 2^31
  auto row = static_cast<unsigned>(sqrtf(2.0F * static_cast<float>(index)));
  while (row * (row + 1) / 2 > index) --row;
  while ((row + 1) * (row + 2) / 2 <= index) ++row;
  return {static_cast<int>(row), static_cast<int>(index - row * (row + 1) / 2)};
}

__device__ __forceinline__ int at_most(std::int64_t x, int most) { return x < most ? static_cast<int>(x) : most; }

// The sum of x[i] over 2 kStep lanes, in those whose number among them, divided by 2 kStep / kCount, is i: half of the
// numbers go to the other half of the lanes until there is one left.
template <int kStep, int kCount, class T>
__device__ __forceinline__ T sum_over_lanes(const T (&x)[kCount]) {
  if constexpr (kCount > 1) {
    const bool far = (threadIdx.x & kStep) != 0;
    T half[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i)
      half[i] = (far ? x[i + kCount / 2] : x[i]) + __shfl_xor_sync(0xffffffffu, far ? x[i] : x[i + kCount / 2], kStep);
    return sum_over_lanes<kStep / 2>(half);
  } else {
    T total = x[0];
#pragma unroll
    for (int step = kStep; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    return total;
  }
}

// ---- product --------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kDown = 8;  // rows that a warp reads at once
template <class T>
constexpr int kSide = 32 * kPack<T>;

// Sums of at most 128 terms are of type T.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) product_kernel(const __grid_constant__ Table<T> table) {
  constexpr int kN = kPack<T>, kRows = kSide<T> / kWarps;
  using Pack = Pack16<T>;
  __shared__ Pack parts[kWarps][32];
  const auto& f = table.at[table.template find<&Table<T>::Item::tile>(blockIdx.x)];
  const auto [down, along] = place(blockIdx.x - f.tile);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const std::int64_t n = f.n, first = std::int64_t{down} * kSide<T> + warp * kRows,
                     start = std::int64_t{along} * kSide<T>;
  const int rows = at_most(n - first, kRows), columns = at_most(n - start, kSide<T>);
  const bool inside = lane * kN < columns;
  const T* const from = f.J + first * n + start + lane * kN;
  wait_for_earlier_kernels();
  let_next_kernel_begin();
  Pack v = {}, of_column = {};
  if (inside) v = *reinterpret_cast<const Pack*>(f.x + start + lane * kN);
#pragma unroll
  for (int r0 = 0; r0 < kRows; r0 += kDown) {
    Pack entries[kDown], of_row[kDown / kN];
#pragma unroll
    for (int r = 0; r < kDown; ++r) {
      entries[r] = {};
      if (inside && r0 + r / kN * kN < rows) entries[r] = *reinterpret_cast<const Pack*>(from + (r0 + r) * n);
    }
#pragma unroll
    for (int r = 0; r < kDown; r += kN) {
      of_row[r / kN] = {};
      if (r0 + r < rows) of_row[r / kN] = *reinterpret_cast<const Pack*>(f.x + first + r0 + r);
    }
    T total[kDown] = {};
#pragma unroll
    for (int r = 0; r < kDown; ++r)
#pragma unroll
      for (int e = 0; e < kN; ++e) {
        total[r] = fused(entries[r].at[e], v.at[e], total[r]);
        of_column.at[e] = fused(entries[r].at[e], of_row[r / kN].at[r % kN], of_column.at[e]);
      }
    const T y = sum_over_lanes<16>(total);
    const int row = r0 + lane / (32 / kDown);
    if (lane % (32 / kDown) == 0 && row < rows) f.slots[along * n + first + row] = y;
  }
  if (down == along) return;
  parts[warp][lane] = of_column;
  __syncthreads();
  if (thread >= columns) return;
  double total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += static_cast<double>(parts[w][thread / kN].at[thread % kN]);
  f.slots[down * n + start + thread] = static_cast<T>(total);
}

// ---- sums over slots ------------------------------------------------------------------------------------------------

// A lane for each row; a warp takes every kWarps-th slot.
template <class T, bool kNorms>
__global__ void __launch_bounds__(kThreads)
    slots_kernel(const __grid_constant__ Table<T> table, int side, double* norms) {
  __shared__ double parts[kWarps][kStrip];
  const auto& f = table.at[table.template find<&Table<T>::Item::strip>(blockIdx.x)];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t n = f.n, row = std::int64_t{blockIdx.x - f.strip} * kStrip + lane;
  const int slots = static_cast<int>((n + side - 1) / side);
  wait_for_earlier_kernels();
  let_next_kernel_begin();
  double total = 0;
  if (row < n) {
#pragma unroll 8
    for (int slot = warp; slot < slots; slot += kWarps) total += static_cast<double>(f.slots[slot * n + row]);
  }
  parts[warp][lane] = total;
  __syncthreads();
  if (warp != 0) return;
#pragma unroll
  for (int w = 1; w < kWarps; ++w) total += parts[w][lane];
  if constexpr (kNorms) {
    unsigned long long largest = as_bits(total);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const unsigned long long other = __shfl_xor_sync(0xffffffffu, largest, step);
      largest = other > largest ? other : largest;
    }
    // A maximum does not depend on the order.
    if (lane == 0) atomicMax(reinterpret_cast<unsigned long long*>(norms + f.number), largest);
  } else if (row < n) {
    f.out[row] = static_cast<T>(total);
  }
}

// ---- update ---------------------------------------------------------------------------------------------------------

// 16 lanes read 16 packs of a row. A thread has kPack rows of a pack each, kRounds times: little squares, which it
// turns over by itself before they go through shared memory.
constexpr int kUpdateThreads = 128, kAcross = 16, kGroups = kUpdateThreads / kAcross, kRounds = 2;
template <class T>
constexpr int kUpdateSide = kAcross * kPack<T>;
static_assert(kGroups * kRounds == kAcross, "as many rows of little squares as columns");

// 16 bytes; with kLast nobody needs them in L2 any more. Not from L1, where they may be those of before the update of
// the step before, and not by an assignment, which may be compiled to four.
template <bool kLast, class Pack>
__device__ __forceinline__ Pack read(const Pack* from) {
  static_assert(sizeof(Pack) == sizeof(int4));
  const auto* const whole = reinterpret_cast<const int4*>(from);
  const int4 bits = kLast ? __ldcs(whole) : __ldcg(whole);
  Pack x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
template <bool kLast, class Pack>
__device__ __forceinline__ void write(Pack* to, const Pack& x) {
  static_assert(sizeof(Pack) == sizeof(int4));
  int4 bits;
  memcpy(&bits, &x, sizeof x);
  if constexpr (kLast)
    __stcs(reinterpret_cast<int4*>(to), bits);
  else
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(bits.x), "r"(bits.y), "r"(bits.z),
                 "r"(bits.w)
                 : "memory");
}

// kInPlace: out is J, for all factors.
template <class T, bool kInPlace>
__global__ void __launch_bounds__(kUpdateThreads, 8)
    update_kernel(const __grid_constant__ Table<T> table, const double* alpha, const double* delta, const double* sign,
                  bool settled) {
  constexpr int kN = kPack<T>, kHeld = kRounds * kN;
  using Pack = Pack16<T>;
  // Pack k of row j, both of the image, is at k ^ (j / kN) % 8: eight lanes that write or read have all banks then.
  __shared__ Pack image[kUpdateSide<T>][kAcross];
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const auto& f = table.at[table.template find<&Table<T>::Item::tile>(block)];
  const auto [down, along] = place(block - f.tile);
  const int across = static_cast<int>(threadIdx.x) % kAcross, group = static_cast<int>(threadIdx.x) / kAcross;
  const std::int64_t n = f.n, top = std::int64_t{down} * kUpdateSide<T>, left = std::int64_t{along} * kUpdateSide<T>;
  const int rows = at_most(n - top, kUpdateSide<T>), columns = at_most(n - left, kUpdateSide<T>);
  const std::int64_t corner = (top + group * kN) * n + left + across * kN;
  const bool diagonal = down == along;

  if (!settled) wait_for_earlier_kernels();
  Pack entries[kRounds][kN];
#pragma unroll
  for (int u = 0; u < kRounds; ++u) {
    const int square = u * kGroups + group;
#pragma unroll
    for (int r = 0; r < kN; ++r) {
      entries[u][r] = {};
      if (square * kN >= rows || across * kN >= columns) continue;
      const auto* const from = reinterpret_cast<const Pack*>(f.J + corner + (u * kGroups * kN + r) * n);
      entries[u][r] = read<!kInPlace>(from);
    }
  }
  if (settled) wait_for_earlier_kernels();
  let_next_kernel_begin();

  const T a = static_cast<T>(alpha[f.number]), d = static_cast<T>(delta[f.number]), s = static_cast<T>(sign[f.number]);
  Pack y = {};
  if (across * kN < columns) y = *reinterpret_cast<const Pack*>(f.x + left + across * kN);
  T total[kHeld] = {};
#pragma unroll
  for (int u = 0; u < kRounds; ++u) {
    const int square = u * kGroups + group;
    if (square * kN < rows && across * kN < columns) {
      const Pack of_row = *reinterpret_cast<const Pack*>(f.x + top + square * kN);
#pragma unroll
      for (int r = 0; r < kN; ++r) {
        const T c = product(s, of_row.at[r]);
#pragma unroll
        for (int e = 0; e < kN; ++e) {
          T& entry = entries[u][r].at[e];
          entry = sum(product(entry, a), product(y.at[e], c));
          if (r == e && diagonal && square == across) entry = sum(entry, d);
          total[u * kN + r] += magnitude(entry);
        }
        auto* const to = reinterpret_cast<Pack*>(f.out + corner + (u * kGroups * kN + r) * n);
        write<!kInPlace>(to, entries[u][r]);
      }
    }
    if (diagonal) continue;
#pragma unroll
    for (int e = 0; e < kN; ++e) {
      Pack turned;
#pragma unroll
      for (int r = 0; r < kN; ++r) turned.at[r] = entries[u][r].at[e];
      image[across * kN + e][square ^ across % 8] = turned;
    }
  }

  // Of the rows that a group of lanes has, in their order; the first of kShare lanes writes.
  constexpr int kShare = kAcross / kHeld;
  const int held = across / kShare, mine = (held / kN * kGroups + group) * kN + held % kN;
  const T norm = sum_over_lanes<kAcross / 2>(total);
  if (across % kShare == 0 && mine < rows) f.slots[along * n + top + mine] = norm;
  if (diagonal) return;

  __syncthreads();
  T* const turned_corner = f.out + (left + group * kN) * n + top + across * kN;
#pragma unroll
  for (int u = 0; u < kRounds; ++u) {
    const int square = u * kGroups + group;
#pragma unroll
    for (int r = 0; r < kN; ++r) {
      T& sum_of_row = total[u * kN + r] = 0;
      if (square * kN >= columns || across * kN >= rows) continue;
      const Pack x = image[square * kN + r][across ^ square % 8];
#pragma unroll
      for (int e = 0; e < kN; ++e) sum_of_row += magnitude(x.at[e]);
      write<true>(reinterpret_cast<Pack*>(turned_corner + (u * kGroups * kN + r) * n), x);
    }
  }
  const T other = sum_over_lanes<kAcross / 2>(total);
  if (across % kShare == 0 && mine < columns) f.slots[down * n + left + mine] = other;
}

// ---- launches -------------------------------------------------------------------------------------------------------

// launch(table, tiles, strips) for every kFactors factors; tiles are `side` wide.
template <class T, class Launch>
void in_tables(const Execution& exec, const std::vector<Single<T>>& factors, int side, Launch launch) {
  for (std::size_t start = 0; start < factors.size(); start += kFactors) {
    Scratch scratch(exec);
    Table<T> table;
    std::int64_t tiles = 0, strips = 0;
    for (std::size_t i = start; i < std::min(factors.size(), start + kFactors); ++i) {
      const Single<T>& f = factors[i];
      const std::int64_t along = pieces(f.n, side);
      table.at[table.count++] = {f, scratch.get<T>(along * f.n), grid_of(tiles), grid_of(strips)};
      tiles += along * (along + 1) / 2;
      strips += pieces(f.n, kStrip);
    }
    launch(table, grid_of(tiles), grid_of(strips));
  }
}

}  // namespace

template <class T>
void product_by_tiles(const Execution& exec, const std::vector<Single<T>>& factors) {
  in_tables(exec, factors, kSide<T>, [&](const Table<T>& table, unsigned tiles, unsigned strips) {
    launch_early(exec, product_kernel<T>, tiles, kThreads, 0, 1, table);
    launch_early(exec, slots_kernel<T, false>, strips, kThreads, 0, 1, table, kSide<T>, static_cast<double*>(nullptr));
  });
}

template <class T>
void update_by_tiles(const Execution& exec, const std::vector<Single<T>>& factors, const double* alpha,
                     const double* delta, const double* sign, double* norms, bool settled) {
  for (const bool in_place : {false, true}) {
    std::vector<Single<T>> some;
    std::copy_if(factors.begin(), factors.end(), std::back_inserter(some),
                 [&](const Single<T>& f) { return (f.out == f.J) == in_place; });
    const auto kernel = in_place ? update_kernel<T, true> : update_kernel<T, false>;
    in_tables(exec, some, kUpdateSide<T>, [&](const Table<T>& table, unsigned tiles, unsigned strips) {
      launch_early(exec, kernel, tiles, kUpdateThreads, 0, 1, table, alpha, delta, sign, settled);
      launch_early(exec, slots_kernel<T, true>, strips, kThreads, 0, 1, table, kUpdateSide<T>, norms);
    });
  }
}

#define QUADRIC_INSTANTIATE(T)                                                                                 \
  template void product_by_tiles(const Execution&, const std::vector<Single<T>>&);                             \
  template void update_by_tiles(const Execution&, const std::vector<Single<T>>&, const double*, const double*, \
                                const double*, double*, bool);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::factors
