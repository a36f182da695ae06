// Floor at n = 1e6, d = 256: n d^2 multiply-adds where the triangle is not zero, in steps of 16 rows of it 17/32 of a
// full product: 1.2 ms at 58 TFLOP/s. A is read 1.5 times, M once for each 128 rows from L2: 5.2 GB, 0.9 ms beside
// that. Measured: 1.45 ms.
//
// A block of threads takes 128 rows and 128 columns of A M at a time, whose sums stay in registers, and goes on with
// the other columns of these rows: the product needs no memory. Sixteen columns of A and as many rows of M are a step;
// three steps are on their way meanwhile. M comes as strips of 16 x 8, as the lanes of a warp hold them. The two warps
// that share rows take a strip of each pair, so that both skip as many that are zero; pairs are multiplied from the
// right to the left, because the last one always is there. A product keeps the tensor cores busy for so long that a
// warp can do something else meanwhile: what the first product of a step needs is read before the step, and barrier
// and copies come between and behind the two products of its first pair.
#include "sketch/triangle.cuh"

#include <algorithm>

#include "sketch/tiles.cuh"
#include "woodbury/dmma.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 256, kStages = 5;
constexpr int kRows = 128, kColumns = 128, kDepth = 16;
constexpr int kPitch = kDepth + 4;  // sixteen lanes that read four columns of four rows meet no bank twice
constexpr int kStrip = kDepth * 8, kPairs = kColumns / 16, kPair = 2 * kStrip;
constexpr int kStage = kRows * kPitch + kPairs * kPair;  // numbers
constexpr int kSharedBytes = kStages * kStage * static_cast<int>(sizeof(double));

// Blocks of columns end where the last pair of strips ends, so the first one begins `skew` pairs before column 0. A
// block has as many steps as there are pairs up to its end: its last step is that on the diagonal in its last pair.
__host__ __device__ constexpr std::int64_t blocks_of(std::int64_t d) { return (d + kColumns - 1) / kColumns; }
__host__ __device__ constexpr int skew_of(std::int64_t d) {
  return static_cast<int>(blocks_of(d) * kPairs - (d + kDepth - 1) / kDepth);
}
__host__ __device__ constexpr std::int64_t steps_before(std::int64_t block, int skew) {
  return block * (block + 1) / 2 * kPairs - block * skew;
}

// strips[step][strip][half][lane][2]: with g = lane / 4 and t = lane % 4 a lane holds entries (t + 4 i, g), i < 4, of a
// strip. Zero below the diagonal and beyond the first and the last column.
__global__ void __launch_bounds__(kThreads) lay_out_kernel(MatrixView<const double> M, double* __restrict__ strips) {
  const std::int64_t block = blockIdx.y, step = blockIdx.x;
  const int skew = skew_of(M.cols);
  if (step >= steps_before(block + 1, skew) - steps_before(block, skew)) return;
  double* const to = strips + (steps_before(block, skew) + step) * (kPairs * kPair);
  for (int at = static_cast<int>(threadIdx.x); at < kPairs * kPair; at += kThreads) {
    const int strip = at / kStrip, lane = at / 2 % 32, k = lane % 4 + 4 * (at % kStrip / 64 * 2 + at % 2);
    const std::int64_t i = step * kDepth + k, j = block * kColumns - skew * 16 + 8 * strip + lane / 4;
    to[at] = i <= j && j < M.cols ? M.data[i * M.row_stride + j * M.col_stride] : 0.0;
  }
}

// Where in the rows of a tile a step is: `pair` is that on the diagonal, counted from the first one of the block.
struct Step {
  int step, pair;

  __device__ __forceinline__ bool ends_block() const { return pair == kPairs - 1; }
  __device__ __forceinline__ int first_pair() const { return pair > 0 ? pair : 0; }
  // Whether the rows are through; `last` is where `pair` begins in the last block.
  __device__ __forceinline__ bool advance(int skew, int last) {
    if (!ends_block()) {
      ++step;
      ++pair;
      return false;
    }
    const int begin = pair - step;
    step = 0;
    pair = begin > last ? begin - kPairs : skew;
    return begin <= last;
  }
};

// Read here and now: compilers would like to read a strip right before its product.
__device__ __forceinline__ double2 read_pair(const double* from) {
#ifdef __CUDA_ARCH__
  double2 x;
  asm volatile("ld.volatile.shared.v2.f64 {%0, %1}, [%2];"
               : "=d"(x.x), "=d"(x.y)
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(from)))
               : "memory");
  return x;
#else
  return {from[0], from[1]};
#endif
}
__device__ __forceinline__ void read_strip(const double* from, double (&b)[4]) {
  const double2 low = read_pair(from), high = read_pair(from + kStrip / 2);
  b[0] = low.x, b[1] = low.y, b[2] = high.x, b[3] = high.y;
}

// Pairs n, n - 1, ..., first: b is the warp's strip of the first of them, that of the next is read meanwhile. One
// branch after another: a product that is only predicated off would take its time.
template <int n>
__device__ __forceinline__ void multiply(double (&sum)[2][kPairs][4], const double (&a)[2][8], const double (&b)[4],
                                         const double* strips, int first) {
  if (n < first) return;
  double next[4];
  rows::dmma(sum[0][n], a[0], b);
  if constexpr (n > 0) read_strip(strips + (n - 1) * kPair, next);
  rows::dmma(sum[1][n], a[1], b);
  if constexpr (n > 0) multiply<n - 1>(sum, a, next, strips, first);
}

// out[i] = ||row i of A M||^2.
__global__ void __launch_bounds__(kThreads, 1)
    triangle_norms_kernel(const double* __restrict__ A, std::int64_t stride, std::int64_t rows,
                          const double* __restrict__ M, int d, double* __restrict__ out) {
  constexpr int kMs = 2, kTop = kPairs - 1;  // 16 rows of a warp, twice
  extern __shared__ __align__(16) double shared[];
  __shared__ double halves[2][kRows];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int warp_row = warp / 2 * 32, odd = warp % 2, g = lane / 4, t = lane % 4;
  const std::int64_t tiles = (rows + kRows - 1) / kRows;
  const int skew = skew_of(d), last = skew - (static_cast<int>(blocks_of(d)) - 1) * kPairs;

  // What is fetched next. Beyond the last row that one comes again, for nothing.
  constexpr int kFetched = kThreads / 8, kFetches = kRows / kFetched;  // rows at a time
  std::int64_t next_tile = blockIdx.x;
  Step next{0, skew}, now = next;
  const double *next_rows[kFetches], *next_strips;
  const auto begin_tile = [&] {
#pragma unroll
    for (int i = 0; i < kFetches; ++i) {
      const std::int64_t row = next_tile * kRows + thread / 8 + i * kFetched;
      next_rows[i] = A + (row < rows ? row : rows - 1) * stride + thread % 8 * 2;
    }
    next_strips = M + 2 * thread;
  };
  begin_tile();
  double* const to_rows = shared + thread / 8 * kPitch + thread % 8 * 2;
  double* const to_strips = shared + kRows * kPitch + 2 * thread;

  // Beyond the last column there are zeros.
  const auto fetch_rows = [&](int stage) {
    const int left = d - next.step * kDepth - thread % 8 * 2;
    double* const to = to_rows + stage;
    if (left >= 2) {
#pragma unroll
      for (int i = 0; i < kFetches; ++i) copy_async<16>(to + i * kFetched * kPitch, next_rows[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kFetches; ++i) {
        double* const here = to + i * kFetched * kPitch;
        here[1] = 0;
        if (left == 1)
          copy_async<8>(here, next_rows[i]);
        else
          here[0] = 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kFetches; ++i) next_rows[i] += kDepth;
  };
  const auto fetch_strips = [&](int stage) {
    const int first = next.first_pair() - thread / (kThreads / 2);
    double* const to = to_strips + stage;
#pragma unroll
    for (int n = 0; n < kPairs; n += 2)  // by half of the threads each
      if (n >= first) copy_async<16>(to + n * kPair, next_strips + n * kPair);
    next_strips += kPairs * kPair;
  };
  const auto advance = [&] {
    const int steps = next.step + 1;
    if (next.advance(skew, last)) {
      next_tile += gridDim.x;
      begin_tile();
    } else if (next.step == 0) {
#pragma unroll
      for (int i = 0; i < kFetches; ++i) next_rows[i] -= steps * kDepth;
    }
  };

  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (next_tile < tiles) {
      fetch_rows(stage * kStage);
      fetch_strips(stage * kStage);
      advance();
    }
    commit_copies();
  }

  double sum[kMs][kPairs][4] = {}, squares[kMs][2] = {}, a[kMs][8], b[4];
  const double* const my_rows = shared + (warp_row + g) * kPitch + t;
  const double* const my_strips = shared + kRows * kPitch + odd * kStrip + 2 * lane;
  const auto read_rows = [&](int stage, int m) {
    const double* const from = my_rows + stage + 16 * m * kPitch;
#pragma unroll
    for (int i = 0; i < 8; ++i) a[m][i] = from[8 * (i % 2) * kPitch + 4 * (i / 2)];
  };
  wait_copies<kStages - 2>();
  __syncthreads();
  read_strip(my_strips + kTop * kPair, b);
  read_rows(0, 0);
  int free = (kStages - 1) * kStage, used = 0, ahead = kStage;  // stages
  for (std::int64_t tile = blockIdx.x; tile < tiles;) {
    const double* const strips = my_strips + used;
    double second[4];
    rows::dmma(sum[0][kTop], a[0], b);
    read_rows(used, 1);
    read_strip(strips + (kTop - 1) * kPair, second);  // of no use if the top pair is the only one
    wait_copies<kStages - 3>();
    __syncthreads();  // the next stage is there, and the one before this is used
    const bool more = next_tile < tiles;
    if (more) fetch_rows(free);
    rows::dmma(sum[1][kTop], a[1], b);
    if (more) {
      fetch_strips(free);
      advance();
    }
    commit_copies();
    multiply<kTop - 1>(sum, a, second, strips, now.first_pair());
    free = used;
    used = ahead;
    ahead = ahead + kStage < kStages * kStage ? ahead + kStage : 0;
    read_strip(my_strips + used + kTop * kPair, b);  // beyond the last step: of no use
    read_rows(used, 0);

    const bool ends_block = now.ends_block(), ends_tile = now.advance(skew, last);
    if (!ends_block) continue;
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          squares[m][i / 2] += sum[m][n][i] * sum[m][n][i];
          sum[m][n][i] = 0;
        }
      }
    }
    if (!ends_tile) continue;
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        double& total = squares[m][h];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (t == 0) halves[odd][warp_row + 16 * m + 8 * h + g] = total;
        total = 0;
      }
    }
    __syncthreads();
    const std::int64_t i = tile * kRows + thread;
    if (thread < kRows && i < rows) out[i] = halves[0][thread] + halves[1][thread];
    tile += gridDim.x;
  }
}

}  // namespace

bool triangle_fits() { return shared_limit() >= kSharedBytes; }

Triangle laid_out(const Execution& exec, Scratch& scratch, const MatrixView<const double>& M) {
  const std::int64_t blocks = blocks_of(M.cols);
  double* const strips = scratch.get<double>(steps_before(blocks, skew_of(M.cols)) * (kPairs * kPair));
  if (blocks > 0) {
    QUADRIC_REQUIRE(blocks <= 65535, "a triangle on the tensor cores must have fewer columns");
    const dim3 grid(grid_of(blocks * kPairs), static_cast<unsigned>(blocks));
    lay_out_kernel<<<grid, kThreads, 0, stream(exec)>>>(M, strips);
    QUADRIC_CUDA_LAUNCHED();
  }
  return {strips, M.cols};
}

void norms_by_triangle(const Execution& exec, const double* A, std::int64_t stride, std::int64_t rows,
                       const Triangle& M, double* out) {
  if (rows == 0 || M.d == 0) return;
  allow_shared(triangle_norms_kernel, kSharedBytes);
  const std::int64_t blocks = std::min<std::int64_t>(ceil_div(rows, kRows), multiprocessors());
  triangle_norms_kernel<<<grid_of(blocks), kThreads, kSharedBytes, stream(exec)>>>(A, stride, rows, M.strips,
                                                                                   static_cast<int>(M.d), out);
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace quadric::cuda::sketch
