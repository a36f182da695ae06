// A pass from points with one evaluation and one exponential for each pair: float32 products of at most 8 coordinates.
//
// A cluster of 2, 4 or 8 blocks shares the columns; a block has two groups of warps that work on different rows, so
// that one computes while the other waits. A group takes kRows rows at a time (a slab) through all columns of its block
// and keeps e = 2^(t + shift) in registers, kRows x kColumns of them in a thread. It sends its row sums to the groups
// of the other blocks that work on the same slab, hears theirs, relaxes the potentials (every block computes the same,
// block 0 writes it down) and adds u_i e_ij to its column sums, which are registers too:
//
//   sums of the columns j = k kGroup + thread:  all warps        e, partial row sums
//   messages (distributed shared memory):       all warps        [row][block, warp] in each block
//   total, log2, exp2:                          warp 0           u_i
//   column sums += u_i e_ij:                    all warps
//
// Every number has its place and its order, so that results depend on the shape alone.
//
// A message's round e uses half e % 2 of a mailbox. Nobody sends for round e + 2 before the same groups of all blocks
// have sent for e + 1, and they do that only after warp 0 has read round e and let them go on.
//
// Floor: 16 exponentials per cycle and multiprocessor, 0.60 to 0.68 ms for n = m = 50 000, 24 to 27 us for 10 000 (d =
// 3). Besides the exponential, a pair costs d + 3 operations of the 8 that fit beside it, and (d + 2) / kRows words
// from shared memory of the 2 that do: about 0.8 ms and 45 us are to be expected. Measured: 1.85 ms and 94
// us; a third of a slab's time is the exchange, of which the other group hides a part, and ten instructions are issued
// for a pair.
#include "require.hpp"
#include "transport/async.cuh"
#include "transport/points.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kGroup = 192, kGroups = 2, kGroupWarps = kGroup / 32, kMostBlocks = 8;
constexpr int kMostRows = 8;

// How a cluster works on a shape.
struct Layout {
  int blocks = 0;  // of a cluster; 0: not at all
  int rows = 0;    // at once
};

Layout layout_of(const Batch<float>& cost) {
  if (point_form(cost.kind) != PointForm::product || cost.d < 1 || cost.d > kOnceDepth) return {};
  const auto columns = [](int of_thread) { return std::int64_t{kGroup} * of_thread; };
  Layout layout;
  if (cost.d > 4) {
    layout = {2, 4};
    while (layout.blocks <= kMostBlocks && layout.blocks * columns(16) < cost.m) layout.blocks *= 2;
  } else {
    layout = {2, 7};
    while (layout.blocks <= kMostBlocks && layout.blocks * columns(14) < cost.m) layout.blocks *= 2;
    if (layout.blocks > kMostBlocks) layout = {kMostBlocks, cost.m <= kMostBlocks * columns(24) ? 4 : 3};
    if (cost.m > kMostBlocks * columns(33)) return {};
  }
  return layout.blocks > kMostBlocks ? Layout{} : layout;
}

// One group's shared memory.
struct Room {
  double input[kMostRows][4];                           // of warp 0: mass, its logarithm, F, offset
  alignas(16) float x[2][kMostRows][kOnceDepth];        // this slab's and the next one's
  float mail[2][kMostRows][kMostBlocks * kGroupWarps];  // row sums
  float u[2][kMostRows];                                // what warp 0 decided
  float shift[2][kMostRows];                            //
  float x_shift[2][kMostRows];                          // of x
  int again[2];                                         // 0: u holds; else the slab is done again
  std::uint64_t barrier[2];
};
constexpr int kSums = 1, kLargest = 2;  // what is to be computed again

// What a column's data in shared memory are: kVectors of 16 bytes, then kTail floats.
template <int D>
inline constexpr int kVectors = D <= 4 ? 1 : 2;
template <int D>
inline constexpr int kTail = D == 2   ? 0
                             : D == 3 ? 1
                                      : 2;

template <int D>
std::size_t shared_bytes(int columns) {
  return kGroups * sizeof(Room) + static_cast<std::size_t>(columns) * (16 * kVectors<D> + 4 * kTail<D>);
}

template <int D>
struct Column {
  float y[D], G, weight;
};

// The columns of a block.
template <int D>
struct Columns {
  float4* vectors;  // kVectors x count
  float* tail;      // count x kTail
  int count;

  __device__ Columns(char* memory, int count_)
      : vectors(reinterpret_cast<float4*>(memory)),
        tail(reinterpret_cast<float*>(vectors + kVectors<D> * count_)),
        count(count_) {}

  __device__ __forceinline__ Column<D> get(int j) const {
    Column<D> column;
    const float4 v = vectors[j];
    column.y[0] = v.x;
    column.y[1] = v.y;
    if constexpr (D == 2) {
      column.G = v.z;
      column.weight = v.w;
    } else {
      column.y[2] = v.z;
      if constexpr (D == 3) {
        column.G = v.w;
        column.weight = tail[j];
      } else {
        column.y[3] = v.w;
        if constexpr (D == 8) {
          const float4 w = vectors[count + j];
          column.y[4] = w.x;
          column.y[5] = w.y;
          column.y[6] = w.z;
          column.y[7] = w.w;
        }
        const float2 rest = reinterpret_cast<const float2*>(tail)[j];
        column.G = rest.x;
        column.weight = rest.y;
      }
    }
    return column;
  }

  __device__ __forceinline__ void set(int j, float4 v, float4 w, float G, float weight) const {
    if constexpr (D == 2) {
      vectors[j] = make_float4(v.x, v.y, G, weight);
    } else if constexpr (D == 3) {
      vectors[j] = make_float4(v.x, v.y, v.z, G);
      tail[j] = weight;
    } else {
      vectors[j] = v;
      if constexpr (D == 8) vectors[count + j] = w;
      reinterpret_cast<float2*>(tail)[j] = make_float2(G, weight);
    }
  }
};

struct Once {
  const float* x;  // problems x x_count x depth
  const float* y;  // problems x y_count x depth
  std::int64_t x_count, y_count;
  std::int64_t first_problem;
};

template <bool largest>
__device__ __forceinline__ float join(float a, float b) {
  return largest ? fmaxf(a, b) : a + b;
}

// Over the lanes of a warp: value[0] becomes the joined value of row lane / (32 / P).
template <bool largest, int P>
__device__ __forceinline__ void join_lanes(float (&value)[P]) {
  int lanes = 16;
#pragma unroll
  for (int half = P / 2; half > 0; half /= 2, lanes /= 2) {
    const bool upper = threadIdx.x & lanes;
#pragma unroll
    for (int r = 0; r < half; ++r) {
      const float gone = upper ? value[r] : value[r + half], kept = upper ? value[r + half] : value[r];
      value[r] = join<largest>(kept, __shfl_xor_sync(~0U, gone, lanes));
    }
  }
#pragma unroll
  for (; lanes > 0; lanes /= 2) value[0] = join<largest>(value[0], __shfl_xor_sync(~0U, value[0], lanes));
}

// What warp 0 remembers of a slab; lanes 4 r to 4 r + 3 have row r.
struct Decision {
  float shift = 0;
  bool wanted = false;  // a new shift
};

// log2 of a row's float32 sum, with an error of about 1e-13, by few operations: the warp that decides is waited for.
__device__ __forceinline__ double log2_of(float sum) {
  const bool subnormal = sum < 1.17549435e-38F;
  const int bits = __float_as_int(subnormal ? sum * 0x1p64F : sum) - 0x3f3504f3;
  const int exponent = (bits >> 23) - (subnormal ? 64 : 0);  // sum = m 2^exponent, sqrt(1/2) <= m < sqrt(2)
  const double m = static_cast<double>(__int_as_float((bits & 0x7fffff) + 0x3f3504f3));
  // log(m) = 2 atanh(z), z = (m - 1) / (m + 1); z^2 <= 0.0295
  const double below = m + 1;
  double inverse = static_cast<double>(__fdividef(1.0F, static_cast<float>(below)));
  inverse = fma(fma(-below, inverse, 1.0), inverse, inverse);
  const double z = (m - 1) * inverse, z2 = z * z, z4 = z2 * z2;
  constexpr double k2 = 2.8853900817779268;  // 2 / log(2)
  const double low = fma(k2 / 3, z2, k2), middle = fma(k2 / 7, z2, k2 / 5), high = fma(k2 / 11, z2, k2 / 9);
  const double q = fma(fma(fma(k2 / 13, z4, high), z4, middle), z4, low);
  const double result = fma(q, z, static_cast<double>(exponent));
  return sum > 0 && sum < INFINITY ? result : sum == 0 ? -static_cast<double>(INFINITY) : static_cast<double>(sum);
}

// As relaxed_row (pass.cuh), by fewer operations.
__device__ __forceinline__ RelaxedRow relax(double theta, const double (&row)[4], double omega, float sum,
                                            float shift) {
  const double F = row[2], base = static_cast<double>(shift) + row[3];
  const double marginal = log2_of(sum) + (F - base);
  RelaxedRow relaxed;
  relaxed.new_F = F + omega * (theta * (F + (row[1] - marginal)) - F);
  relaxed.rest = relaxed.new_F - base;
  relaxed.u = power(relaxed.rest < 1000 ? relaxed.rest : 1000.0, 0.0);
  return relaxed;
}
// D: coordinates; kRows x kColumns: pairs that a thread holds; no branches, so that loads and exponentials overlap.
template <int D, int kRows, int kColumns>
__global__ void __launch_bounds__(kGroups* kGroup, 1)
    sum_once(const __grid_constant__ Pass<float> pass, const __grid_constant__ Once once) {
  static_assert(kRows <= kMostRows, "");
  constexpr int P = kRows > 4 ? 8 : 4, kDepth = 4 * kVectors<D>;
  extern __shared__ __align__(16) char shared[];
  const int group = threadIdx.x / kGroup, thread = threadIdx.x % kGroup, warp = thread / 32, lane = threadIdx.x % 32;
  const int blocks = static_cast<int>(cluster_size()), rank = static_cast<int>(cluster_rank());
  const std::int64_t p = once.first_problem + blockIdx.y;
  const Flags flags = pass.flags[p];
  if (!flags.active) return;  // the whole cluster
  const bool rebase = flags.rebase;
  const double omega = pass.omega[p];
  const std::int64_t n = pass.cost.n, m = pass.cost.m;
  Room& room = reinterpret_cast<Room*>(shared)[group];
  const Columns<D> columns(shared + kGroups * sizeof(Room), kColumns * kGroup);
  const std::int64_t first_column = static_cast<std::int64_t>(rank) * columns.count;

  {  // this block's columns
    const float* const G = pass.G + (p * 4 + flags.slot) * pass.width;
    const float* const weight = pass.weight + (p * 4 + flags.slot) * pass.width;
    for (int j = static_cast<int>(threadIdx.x); j < columns.count; j += kGroups * kGroup) {
      const std::int64_t column = first_column + j;
      if (column < m) {
        const auto* const y = reinterpret_cast<const float4*>(once.y + (p * once.y_count + column) * kDepth);
        columns.set(j, y[0], kVectors<D> == 2 ? y[kVectors<D> - 1] : y[0], G[column], weight[column]);
      } else {
        const float4 zero = make_float4(0, 0, 0, 0);
        columns.set(j, zero, zero, -INFINITY, 0);
      }
    }
  }
  if (thread == 0) {
    open_barrier(&room.barrier[0]);
    open_barrier(&room.barrier[1]);
    publish_mail();
  }
  sync_cluster();

  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) / blocks * kGroups + group;
  const std::int64_t begin = slot < pass.slots ? n * slot / pass.slots : n;
  const std::int64_t end = slot < pass.slots ? n * (slot + 1) / pass.slots : n;
  // The points and shifts of a slab; by warp 0, one lane for a row.
  const auto fetch_rows = [&](std::int64_t from, int half) {
    if (lane >= kRows) return;
    const std::int64_t i = from + lane < end ? from + lane : end - 1;
    const float* const x = once.x + (p * once.x_count + i) * kDepth;
#pragma unroll
    for (int v = 0; v < kVectors<D>; ++v) copy_async<16>(&room.x[half][lane][4 * v], x + 4 * v);
    copy_async<4>(&room.x_shift[half][lane], pass.shift + p * n + i);
  };

  float sums[kColumns];
#pragma unroll
  for (int k = 0; k < kColumns; ++k) sums[k] = 0;
  if (warp == 0 && begin < end) {
    fetch_rows(begin, 0);
    commit_copies();
    wait_copies<0>();
  }
  sync_some(1 + group, kGroup);

  unsigned round = 0;
  int half = 0;
  for (std::int64_t from = begin; from < end; from += kRows, half ^= 1) {
    const int count = static_cast<int>(end - from < kRows ? end - from : kRows);
    Decision mine;
    if (warp == 0) {
      const int row = lane / 4, what = lane % 4;
      if (row < count) {
        const double* const input = what == 0   ? pass.mass
                                    : what == 1 ? pass.log_mass
                                    : what == 2 ? pass.F
                                                : pass.row_offset;
        if (input != nullptr)
          copy_async<8>(&room.input[row][what], input + p * n + from + row);
        else
          room.input[row][what] = 0;
        mine.shift = room.x_shift[half][row];
      }
      if (from + kRows < end) fetch_rows(from + kRows, half ^ 1);
      commit_copies();
      mine.wanted = rebase;
    }
    float shift[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) shift[r] = r < count ? room.x_shift[half][r] : -INFINITY;

    float e[kColumns][kRows];
    bool tried = false;
    int again = rebase ? kLargest : kSums;
    for (;;) {
      const bool largest = again == kLargest;
      float value[P];
      {
        float x[kRows][D];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          value[r] = largest ? -INFINITY : 0;
#pragma unroll
          for (int k = 0; k < D; ++k) x[r][k] = room.x[half][r][k];
        }
#pragma unroll
        for (int r = kRows; r < P; ++r) value[r] = 0;
        const auto exponent_of = [&](const Column<D>& column, int r) {
          float t = column.G;
#pragma unroll
          for (int k = 0; k < D; ++k) t = fmaf(x[r][k], column.y[k], t);
          return t;
        };
        if (largest) {
#pragma unroll 1
          for (int k = 0; k < kColumns; ++k) {
            const Column<D> column = columns.get(k * kGroup + thread);
#pragma unroll
            for (int r = 0; r < kRows; ++r) value[r] = fmaxf(value[r], exponent_of(column, r));
          }
        } else {
          const auto raise = [&](const Column<D>& column, float (&to)[kRows]) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
              to[r] = power(exponent_of(column, r), shift[r]);
              value[r] = fmaf(to[r], column.weight, value[r]);
            }
          };
#pragma unroll
          for (int k = 0; k < kColumns; ++k) raise(columns.get(k * kGroup + thread), e[k]);
        }
      }
      if (largest)
        join_lanes<true>(value);
      else
        join_lanes<false>(value);
      // Block 0 writes a row's F once it has heard of all others; then they have read the old one.
      if (warp == 0) wait_copies<0>();
      const unsigned box = round % 2;
      {
        constexpr int kSame = 32 / P;
        const int row = lane / kSame;
        if (row < kRows)
          for (int to = lane % kSame; to < blocks; to += kSame)
            send(&room.mail[box][row][rank * kGroupWarps + warp], value[0], &room.barrier[box],
                 static_cast<unsigned>(to));
      }
      RelaxedRow relaxed;
      float sum = 0;
      if (warp == 0) {
        if (lane == 0) expect_bytes(&room.barrier[box], static_cast<unsigned>(blocks * kGroupWarps * kRows * 4));
        __syncwarp();  // the inputs are there for all lanes
        wait_mail(&room.barrier[box], round / 2 % 2);
        const int row = lane / 4;
        float total = largest ? -INFINITY : 0;
        constexpr int kLetters = kMostBlocks * kGroupWarps / 4;
        float letter[kLetters];
#pragma unroll
        for (int s = 0; s < kLetters; ++s)
          letter[s] =
              row < kRows && 4 * s + lane % 4 < blocks * kGroupWarps ? room.mail[box][row][4 * s + lane % 4] : total;
#pragma unroll
        for (int s = 0; s < kLetters; ++s) total = largest ? fmaxf(total, letter[s]) : total + letter[s];
#pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2) {
          const float there = __shfl_xor_sync(~0U, total, lanes);
          total = largest ? fmaxf(total, there) : total + there;
        }
        int verdict = 0;
        float u = 0;
        if (largest) {
          if (mine.wanted) mine.shift = -rintf(total);
          verdict = kSums;
        } else {
          mine.wanted = !tried && row < count && outside<float>(static_cast<double>(total));
          if (__any_sync(~0U, mine.wanted)) {
            verdict = kLargest;
          } else if (row < count) {
            relaxed = relax(pass.theta, room.input[row], omega, total, mine.shift);
            u = static_cast<float>(relaxed.u);
            sum = total;
          }
        }
        if (lane % 4 == 0 && row < kRows) {
          room.u[box][row] = u;
          room.shift[box][row] = mine.shift;
        }
        if (lane == 0) room.again[box] = verdict;
        __syncwarp();
      }
      sync_some(1 + group, kGroup);
      again = room.again[box];
      ++round;
      if (again == 0) {
        if (warp == 0 && rank == 0 && lane % 4 == 0 && lane / 4 < count)
          keep_row(pass, p, p * n + from + lane / 4, {room.input[lane / 4][0]}, relaxed, static_cast<double>(sum),
                   mine.shift, rebase);
#pragma unroll
        for (int r = 0; r < kRows; ++r) value[r] = room.u[box][r];
#pragma unroll
        for (int k = 0; k < kColumns; ++k)
#pragma unroll
          for (int r = 0; r < kRows; ++r) sums[k] = fmaf(value[r], e[k][r], sums[k]);
        break;
      }
      if (again == kSums) {
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          if (r < count) shift[r] = room.shift[box][r];
        tried = true;
      }
    }
  }

  if (slot < pass.slots) {
    float* const partial = pass.partial + (p * pass.slots + slot) * pass.width;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const std::int64_t column = first_column + k * kGroup + thread;
      if (column < m) partial[column] = sums[k];
    }
  }
  sync_cluster();  // no block goes while others send to it
}

template <int D, int kRows, int kColumns>
void launch(const Execution& exec, const Points<float>& points, const Pass<float>& pass, int blocks) {
  Once once = {points.x.by_point, points.y.by_point, points.x.padded_count, points.y.padded_count, 0};
  const std::size_t shared = shared_bytes<D>(kColumns * kGroup);
  const auto kernel = sum_once<D, kRows, kColumns>;
  QUADRIC_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared)));
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(kGroups * kGroup);
  config.dynamicSmemBytes = shared;
  config.stream = stream(exec);
  config.attrs = &cluster;
  config.numAttrs = 1;
  constexpr std::int64_t kMostProblems = 65535;
  for (; once.first_problem < pass.cost.problems; once.first_problem += kMostProblems) {
    config.gridDim = dim3(static_cast<unsigned>((pass.slots + kGroups - 1) / kGroups * blocks),
                          static_cast<unsigned>(std::min(pass.cost.problems - once.first_problem, kMostProblems)));
    QUADRIC_CUDA(cudaLaunchKernelEx(&config, kernel, pass, once));
  }
}

// The narrowest of the kernels that have room for all columns.
template <int D, int kRows, int kColumns, int... kMore>
void launch_narrowest(const Execution& exec, const Points<float>& points, const Pass<float>& pass, int blocks) {
  if constexpr (sizeof...(kMore) > 0) {
    if (std::int64_t{blocks} * kGroup * kColumns < pass.cost.m)
      return launch_narrowest<D, kRows, kMore...>(exec, points, pass, blocks);
  }
  launch<D, kRows, kColumns>(exec, points, pass, blocks);
}

template <int D>
void launch_short(const Execution& exec, const Points<float>& points, const Pass<float>& pass, const Layout& layout) {
  switch (layout.rows) {
    case 7:
      return launch_narrowest<D, 7, 4, 8, 11, 14>(exec, points, pass, layout.blocks);
    case 4:
      return launch_narrowest<D, 4, 19, 24>(exec, points, pass, layout.blocks);
    default:
      return launch_narrowest<D, 3, 28, 33>(exec, points, pass, layout.blocks);
  }
}

}  // namespace

bool points_once_fits(const Batch<float>& cost) { return layout_of(cost).blocks > 0; }

// A slot is what a group does of the rows: two in a cluster, and as many clusters as run at the same time on 132
// multiprocessors, whose groups of 16 or 18 hold only whole clusters, whatever the device is. Longer problems have
// twice as many, and none is so long that its float32 sums lose digits.
std::int64_t points_once_slots(const Batch<float>& cost) {
  const Layout layout = layout_of(cost);
  const std::int64_t clusters = layout.blocks == 8 ? 15 : layout.blocks == 4 ? 30 : 66;
  const std::int64_t once = kGroups * clusters, slabs = (cost.n + layout.rows - 1) / layout.rows;
  std::int64_t rounds = cost.n >= once * 512 ? 2 : 1;
  rounds = std::max(rounds, cost.n / (once * 1024));
  return std::max<std::int64_t>(1, std::min(slabs, once * rounds));
}

void points_once(const Execution& exec, const Points<float>& points, const Pass<float>& pass) {
  const Layout layout = layout_of(pass.cost);
  QUADRIC_REQUIRE(pass.slots < (std::int64_t{1} << 31) / kMostBlocks, "x has too many points");
  if (pass.cost.d <= 2) return launch_short<2>(exec, points, pass, layout);
  if (pass.cost.d == 3) return launch_short<3>(exec, points, pass, layout);
  if (pass.cost.d == 4) return launch_short<4>(exec, points, pass, layout);
  launch_narrowest<8, 4, 4, 10, 16>(exec, points, pass, layout.blocks);
}

}  // namespace quadric::cuda::transport
