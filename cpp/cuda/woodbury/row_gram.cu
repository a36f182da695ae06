// K = G G^T for long rows, and G X^T for many rows of X, in float64 on the tensor cores.
//
// Products of float32 and shorter numbers are exact in float64, so that `exact` asks for nothing more: both forms are
// computed alike. Float32 arithmetic would be no faster (60 TFLOP/s of FFMA, 67 of DMMA).
//
// Floor: m^2 d flops on the lower half, (n + 1) / 2n more than half with n tiles a side, at 60 TFLOP/s; m = 512,
// d = 4 M: 1.3e12 flops in tiles of 128 = 22 ms, while G is 8 GB = 2 ms. To be reached: 80 %, 28 ms.
//
// A block of threads takes a tile of K and a part of the columns. Sixteen columns at a time come through registers,
// where they become float64, into one of two buffers in shared memory; conversions take 12 % of the time at 16 a cycle
// and hide behind the products. The blocks that share columns are neighbours in the grid, so that all but the first
// read them from L2. Parts are added up in a fixed order.
#include <cstdint>

#include "quadric/cuda/woodbury.hpp"
#include "woodbury/dmma.cuh"
#include "woodbury/rows.cuh"

namespace quadric::cuda::rows {
namespace {

constexpr int kDepth = 16;             // columns of a step
constexpr int kPitch = kDepth + 4;     // sixteen lanes that read four columns of four rows meet no bank twice
constexpr std::int64_t kUnits = 1320;  // blocks of threads to aim at: ten for each multiprocessor of an H200

// kM x kN of K by kWarpsM x kWarpsN warps.
template <int kM_, int kN_, int kWarpsM_, int kWarpsN_>
struct Tile {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static constexpr int kSharedBytes = 2 * (kM + kN) * kPitch * static_cast<int>(sizeof(double));
  static_assert(kWarpM % 16 == 0 && kWarpN % 8 == 0);
};
using LargeTile = Tile<128, 128, 2, 4>;  // 64 x 32 a warp: 128 registers of sums
using MediumTile = Tile<64, 64, 2, 2>;
using SmallTile = Tile<32, 32, 2, 2>;
using NarrowTile = Tile<64, 32, 2, 2>;

// kDepth columns of kRows rows on their way to shared memory: a thread takes 16 bytes of every kStride-th row.
template <class S, int kRows, int kThreads>
class Columns {
  static constexpr int kChunks = kDepth / kPack<S>;   // of 16 bytes, in a row
  static constexpr int kStride = kThreads / kChunks;  // rows that all threads read at a time
  static_assert(kThreads % kChunks == 0);

 public:
  static constexpr int kCount = (kRows + kStride - 1) / kStride;

  // Rows from `row`, columns from `column`.
  __device__ __forceinline__ Columns(const Rows<S>& G, std::int64_t row, std::int64_t column)
      : next_(G.at(row + first_row(), column + first_column())), jump_(kStride * G.stride) {
    const std::int64_t rows = G.count - row;
    rows_ = (rows < kRows ? static_cast<int>(rows) : kRows) - first_row();
  }

  // Chunk i of the next kDepth columns, of which `left` are there; zero beyond, and beyond the last row. kWhole: all or
  // none are there, and 16 bytes are aligned.
  template <bool kWhole>
  __device__ __forceinline__ void read(int i, std::int64_t left) {
    chunks_[i] = uint4{0, 0, 0, 0};
    if (kWhole) {
      if (i * kStride < rows_ && left > 0) chunks_[i] = __ldg(reinterpret_cast<const uint4*>(next_ + i * jump_));
    } else {
      if (i * kStride < rows_) chunks_[i] = read_some(next_ + i * jump_, left - first_column(), false);
    }
    if (i == kCount - 1) next_ += kDepth;
  }

  __device__ __forceinline__ void write(int i, double* shared) const {
    if (kRows % kStride != 0 && first_row() + i * kStride >= kRows) return;
    double* const to = shared + (first_row() + i * kStride) * kPitch + first_column();
    double value[kPack<S>];
    widen<S>(chunks_[i], value);
#pragma unroll
    for (int e = 0; e < kPack<S>; e += 2) *reinterpret_cast<double2*>(to + e) = double2{value[e], value[e + 1]};
  }

 private:
  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / kChunks; }
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) % kChunks * kPack<S>; }

  const S* next_;
  std::int64_t jump_;
  int rows_;  // that are there, from the thread's first on
  uint4 chunks_[kCount];
};

// A warp's sums over kDepth columns in shared memory, from rows of A and B of this lane. After each 16 rows
// `between(i)` does a part of something else, which the tensor cores then hide. Numbers are read one by one, to where
// they are used: of 16 bytes each would have to be moved once more.
template <int kMs, int kNs, class Between>
__device__ __forceinline__ void multiply(const double* a_rows, const double* b_rows, double (&sum)[kMs][kNs][4],
                                         const Between& between) {
  double b[kNs][4];
#pragma unroll
  for (int n = 0; n < kNs; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) b[n][i] = b_rows[8 * n * kPitch + 4 * i];
  }
#pragma unroll
  for (int m = 0; m < kMs; ++m) {
    double a[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i] = a_rows[(16 * m + 8 * (i % 2)) * kPitch + 4 * (i / 2)];
#pragma unroll
    for (int n = 0; n < kNs; ++n) dmma(sum[m][n], a, b[n]);
    between(m);
  }
}

// The row and column of tile t of a lower triangle.
__device__ inline void lower_tile(std::int64_t t, std::int64_t& i, std::int64_t& j) {
  i = 0;
  while ((i + 1) * (i + 2) / 2 <= t) ++i;
  j = t - i * (i + 1) / 2;
}

// Partial sums of A B^T over one part of the columns, to out[block][part] (A.count x B.count). Grid: tiles, fastest,
// times parts times blocks. With kLower, B is A and only tiles that reach below the diagonal are computed.
template <class Shape, class SA, class SB, bool kLower, bool kAligned>
__global__ void __launch_bounds__(Shape::kThreads) products_kernel(const Rows<SA> A, const Rows<SB> B, const Cut cut,
                                                                   const std::int64_t tiles, double* __restrict__ out) {
  constexpr int kBuffer = (Shape::kM + Shape::kN) * kPitch;
  constexpr int kMs = Shape::kWarpM / 16, kNs = Shape::kWarpN / 8;
  extern __shared__ __align__(16) double shared[];

  const std::int64_t tile = blockIdx.x % tiles, rest = blockIdx.x / tiles;
  const std::int64_t part = rest % cut.parts, block = rest / cut.parts;
  std::int64_t tile_i, tile_j;
  if (kLower) {
    lower_tile(tile, tile_i, tile_j);
  } else {
    const std::int64_t across = (B.count + Shape::kN - 1) / Shape::kN;
    tile_i = tile / across;
    tile_j = tile % across;
  }
  const std::int64_t row_a = tile_i * Shape::kM, row_b = tile_j * Shape::kN;
  const std::int64_t begin = cut.begin(block, part), end = cut.end(block, part);

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;
  const int warp_i = warp / Shape::kWarpsN * Shape::kWarpM, warp_j = warp % Shape::kWarpsN * Shape::kWarpN;

  double sum[kMs][kNs][4] = {};
  using ColumnsA = Columns<SA, Shape::kM, Shape::kThreads>;
  using ColumnsB = Columns<SB, Shape::kN, Shape::kThreads>;
  ColumnsA a_columns(A, row_a, begin);
  ColumnsB b_columns(B, row_b, begin);
  double* const b_shared = shared + Shape::kM * kPitch;
  const double* const a_rows = shared + (warp_i + g) * kPitch + t;
  const double* const b_rows = b_shared + (warp_j + g) * kPitch + t;
  // Every kMs-th chunk from m on goes to `buffer`, and the columns after it come; `left` of those are there.
  const auto advance = [&](int m, int buffer, std::int64_t left) {
#pragma unroll
    for (int i = 0; i < ColumnsA::kCount; ++i) {
      if (i % kMs != m) continue;
      a_columns.write(i, shared + buffer);
      a_columns.template read<kAligned>(i, left);
    }
#pragma unroll
    for (int i = 0; i < ColumnsB::kCount; ++i) {
      if ((i + ColumnsB::kCount) % kMs != m) continue;  // in their order
      b_columns.write(i, b_shared + buffer);
      b_columns.template read<kAligned>(i, left);
    }
  };
  const auto nothing = [](int) {};

  // Steps: one is in one buffer, the next on its way from registers to the other, the one after that from memory to
  // registers. One barrier a step: who writes a buffer has passed the one after everybody's products of what it held.
  std::int64_t left = end - begin;
  if (kAligned) left -= left % kDepth;
#pragma unroll
  for (int i = 0; i < ColumnsA::kCount; ++i) a_columns.template read<kAligned>(i, left);
#pragma unroll
  for (int i = 0; i < ColumnsB::kCount; ++i) b_columns.template read<kAligned>(i, left);
#pragma unroll
  for (int m = 0; m < kMs; ++m) advance(m, 0, left - kDepth);
  __syncthreads();
  int buffer = 0;
  for (; left > 0; left -= kDepth) {
    multiply(a_rows + buffer, b_rows + buffer, sum, [&](int m) { advance(m, kBuffer - buffer, left - 2 * kDepth); });
    __syncthreads();
    buffer = kBuffer - buffer;
  }
  if (kAligned && (end - begin) % kDepth != 0) {
    left = (end - begin) % kDepth;
    ColumnsA a_rest(A, row_a, end - left);
    ColumnsB b_rest(B, row_b, end - left);
#pragma unroll
    for (int i = 0; i < ColumnsA::kCount; ++i) {
      a_rest.template read<false>(i, left);
      a_rest.write(i, shared);
    }
#pragma unroll
    for (int i = 0; i < ColumnsB::kCount; ++i) {
      b_rest.template read<false>(i, left);
      b_rest.write(i, b_shared);
    }
    __syncthreads();
    multiply(a_rows, b_rows, sum, nothing);
  }

  double* const to = out + (block * cut.parts + part) * A.count * B.count;
#pragma unroll
  for (int m = 0; m < kMs; ++m) {
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const std::int64_t i = row_a + warp_i + 16 * m + 8 * (e / 2) + g, j = row_b + warp_j + 8 * n + 2 * t + e % 2;
        if (i < A.count && j < B.count && (!kLower || j <= i)) to[i * B.count + j] = sum[m][n][e];
      }
    }
  }
}

template <class Shape, class SA, class SB, bool kLower>
void products(const Execution& exec, const Rows<SA>& A, const Rows<SB>& B, std::int64_t d, std::int64_t block_size,
              double* out) {
  const std::int64_t across = ceil_div(B.count, Shape::kN), down = ceil_div(A.count, Shape::kM);
  const std::int64_t tiles = kLower ? down * (down + 1) / 2 : down * across;
  const std::int64_t blocks = ceil_div(d, std::min(block_size, d));
  const Cut cut(d, block_size, 2048, kDepth, ceil_div(kUnits, tiles * blocks));
  const std::int64_t size = A.count * B.count;
  Scratch scratch(exec);
  // A lower triangle goes through the sum of parts even where there is one, to be mirrored.
  const bool direct = cut.parts == 1 && !kLower;
  double* const partials = direct ? out : scratch.get<double>(cut.blocks * cut.parts * size);
  const bool whole = aligned(A) && aligned(B) && cut.in_step(kPack<SA>) && cut.in_step(kPack<SB>);
  const auto kernel =
      whole ? products_kernel<Shape, SA, SB, kLower, true> : products_kernel<Shape, SA, SB, kLower, false>;
  QUADRIC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes));
  kernel<<<grid_of(tiles * cut.parts * cut.blocks), Shape::kThreads, Shape::kSharedBytes, stream(exec)>>>(
      A, B, cut, tiles, partials);
  QUADRIC_CUDA_LAUNCHED();
  if (!direct) sum_parts(exec, cut, partials, size, kLower, A.count, out);
}

// ---- sums of parts -------------------------------------------------------------------------------------------------

constexpr int kSumLanes = 32;  // outputs of a block of threads
constexpr int kSumWays = 16;   // threads that share the parts of an output

__global__ void __launch_bounds__(kSumLanes* kSumWays)
    sum_kernel(const Cut cut, const double* __restrict__ partials, const std::int64_t size, const bool symmetric,
               const std::int64_t m, double* __restrict__ out) {
  __shared__ double shared[kSumWays][kSumLanes];
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes, way = static_cast<int>(threadIdx.x) / kSumLanes;
  const std::int64_t groups = (size + kSumLanes - 1) / kSumLanes;
  const std::int64_t block = blockIdx.x / groups, entry = blockIdx.x % groups * kSumLanes + lane;
  const std::int64_t i = symmetric ? entry / m : 0, j = symmetric ? entry % m : 0;
  const bool wanted = entry < size && j <= i;
  double sum = 0;
  if (wanted) {
    const double* const from = partials + block * cut.parts * size + entry;
#pragma unroll 4
    for (std::int64_t part = way; part < cut.parts; part += kSumWays) sum += from[part * size];
  }
  shared[way][lane] = sum;
  __syncthreads();
  if (way != 0 || !wanted) return;
  for (int w = 1; w < kSumWays; ++w) sum += shared[w][lane];
  double* const to = out + block * size;
  to[entry] = sum;
  if (symmetric) to[j * m + i] = sum;
}

}  // namespace

void sum_parts(const Execution& exec, const Cut& cut, const double* partials, std::int64_t size, bool symmetric,
               std::int64_t m, double* out) {
  sum_kernel<<<grid_of(cut.blocks * ceil_div(size, kSumLanes)), kSumLanes * kSumWays, 0, stream(exec)>>>(
      cut, partials, size, symmetric, m, out);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void cross(const Execution& exec, const StoredRows& G, const Rows<T>& X, std::int64_t block_size, double* out) {
  with_type(G, [&](auto g) {
    using S = typename decltype(g)::Entry;
    if constexpr ((sizeof(S) == 8) == (sizeof(T) == 8)) {
      if (X.count > 64)
        products<LargeTile, S, T, false>(exec, g, X, G.cols, block_size, out);
      else
        products<NarrowTile, S, T, false>(exec, g, X, G.cols, block_size, out);
    }
  });
}
template void cross(const Execution&, const StoredRows&, const Rows<float>&, std::int64_t, double*);
template void cross(const Execution&, const StoredRows&, const Rows<double>&, std::int64_t, double*);

}  // namespace quadric::cuda::rows

namespace quadric::cuda::woodbury {

void gram(const Execution& exec, const StoredRows& G, std::int64_t block_size, bool exact, double* K) {
  static_cast<void>(exact);
  rows::check_rows(G, block_size);
  if (G.rows == 0 || G.cols == 0) return;
  rows::with_type(G, [&](auto g) {
    using S = typename decltype(g)::Entry;
    if (G.rows > 64)
      rows::products<rows::LargeTile, S, S, true>(exec, g, g, G.cols, block_size, K);
    else if (G.rows > 32)
      rows::products<rows::MediumTile, S, S, true>(exec, g, g, G.cols, block_size, K);
    else
      rows::products<rows::SmallTile, S, S, true>(exec, g, g, G.cols, block_size, K);
  });
}

}  // namespace quadric::cuda::woodbury
