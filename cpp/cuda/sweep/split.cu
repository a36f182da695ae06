// The splitting of float32 into parts of float16. Floor: 4 bytes read, twice on the right, and 6 written for each
// number at 4.2 TB/s; a panel of 512 columns and 4096 rows with its block of the factor, 512 x 3584: 45 MB, 11 us. The
// products: 2 m n k flops at a third of 760 TFLOP/s, where float32 has 51.
//
// On the left a block of threads reads 32 rows of up to 256 columns once and keeps them in registers until the largest
// entry of each row is known; of more columns it reads those before the last 256 again. On the right rows are as long
// as the matrix is wide: one kernel finds their largest entries, the other splits, beginning with what was read last.
#include "sweep/split.hpp"

#include <algorithm>

#include "require.hpp"
#include "sweep/launch.cuh"
#include "sweep/parts.cuh"

namespace quadric::cuda::sweep {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 4;                     // of the right matrix, that a thread sees to
constexpr int kAcross = 64;                  // threads for neighbouring rows
constexpr int kBeside = kThreads / kAcross;  // and for neighbouring columns
constexpr int kLooked = 8, kTogether = 4;    // columns that it fetches together, to compare and to split
constexpr int kFew = 32, kMany = 128;        // columns of a slice, which a block sees to
constexpr std::int64_t kBlocks = 1024;       // from which on there may be many

constexpr int kTileRows = 32;  // rows of the left matrix that a block of threads sees to, two for each thread
constexpr int kWarps = 16;
constexpr int kPairs = kTileRows / 2;
constexpr int kSides = 32 * kWarps / kPairs;  // columns beside each other
constexpr int kHeld = 8;                      // that a thread holds in registers

constexpr int kBias = 127, kFraction = 23, kRightExponent = 14;  // of float32; rows on the right stay below 2^14
constexpr float kBelow = 32768, kNotBelow = 64;                  // rows on the left
constexpr int kNewExponent = 11;                                 // of one that is scaled anew: amid the two
constexpr int kLeast = -117, kMost = 80;                         // exponent of the scale of a row
constexpr int kGrowth = 60, kShrinking = 120;                    // of a change of it

struct alignas(16) Four {
  float x[4];
};
struct alignas(8) Two {
  float x[2];
};
template <int N>
struct alignas(2 * N) Halves {
  __half x[N];
};

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The power of two next above the largest entry of a row on the right, which the left is multiplied by. Its exponent is
// kept where it and its inverse have room.
__device__ int weight_field(std::uint32_t largest) {
  const int field = static_cast<int>(largest >> kFraction) + 1;
  return max(kRightExponent, min(field, 2 * kBias));
}
__device__ float power(int field) { return __uint_as_float(static_cast<std::uint32_t>(field) << kFraction); }
__device__ float left_weight(std::uint32_t largest) { return power(weight_field(largest)); }
__device__ float right_weight(std::uint32_t largest) {
  return power(2 * kBias + kRightExponent - weight_field(largest));
}

// How the right matrices are shared out to blocks of threads: rows to `parts`, columns to `slices`.
struct Cut {
  std::int64_t columns, length;
  unsigned parts, slices;
  int slice;
};

// What a thread sees to: `some` rows from `row` on, and of the columns from `begin` to `end` each kBeside-th.
struct Place {
  std::int64_t matrix, row, begin, end;
  int across, beside, some;

  __device__ Place(const Cut& cut, unsigned block) {
    const unsigned at = block / cut.parts, part = block - at * cut.parts, slice = at % cut.slices;
    across = static_cast<int>(threadIdx.x) % kAcross;
    beside = static_cast<int>(threadIdx.x) / kAcross;
    matrix = at / cut.slices;
    row = std::int64_t{part} * (kAcross * kRows) + across * kRows;
    begin = std::int64_t{slice} * cut.slice;
    end = min(begin + cut.slice, cut.columns);
    some = static_cast<int>(max(std::int64_t{0}, min(cut.length - row, std::int64_t{kRows})));
  }
};

// kWhole: columns are made of whole fours, and aligned.
template <bool kWhole>
__device__ Four load(const float* in, int some) {
  Four four;
  if constexpr (kWhole) {
    four = *reinterpret_cast<const Four*>(in);
  } else {
#pragma unroll
    for (int v = 0; v < kRows; ++v) four.x[v] = v < some ? in[v] : 0.0f;
  }
  return four;
}

template <bool kWhole, int N>
__device__ void load_columns(const Columns<const float>& from, const Place& at, std::int64_t j, Four (&x)[N]) {
  const float* const in = from.data + at.matrix * from.stride + at.row;
#pragma unroll
  for (int u = 0; u < N; ++u) {
    const std::int64_t column = j + u * kBeside;
    x[u] = column < at.end && at.some > 0 ? load<kWhole>(in + column * from.ld, at.some) : Four{};
  }
}

template <bool kWhole>
__global__ void __launch_bounds__(kThreads, 4)
    find_largest(Cut cut, Columns<const float> from, std::uint32_t* largest) {
  __shared__ Four most[kBeside][kAcross];
  const Place at(cut, blockIdx.x);
  Four mine{};
  for (std::int64_t j = at.begin + at.beside; j < at.end; j += kBeside * kLooked) {
    Four x[kLooked];
    load_columns<kWhole>(from, at, j, x);
#pragma unroll
    for (int u = 0; u < kLooked; ++u)
#pragma unroll
      for (int v = 0; v < kRows; ++v) mine.x[v] = fmaxf(mine.x[v], fabsf(x[u].x[v]));
  }
  most[at.beside][at.across] = mine;
  __syncthreads();
  static_assert(kRows == kBeside, "a thread for each row of the block");
  const int i = at.across * kRows + at.beside;  // of the block's rows
  float x = 0;
#pragma unroll
  for (int b = 0; b < kBeside; ++b) x = fmaxf(x, most[b][at.across].x[at.beside]);
  if (at.beside < at.some)
    atomicMax(largest + at.matrix * cut.length + (at.row - at.across * kRows) + i, __float_as_uint(x));
}

template <bool kWhole>
__global__ void __launch_bounds__(kThreads, 4)
    split_right_kernel(Cut cut, Columns<const float> from, const std::uint32_t* largest, Columns<std::uint16_t> to) {
  const Place at(cut, gridDim.x - 1 - blockIdx.x);  // what has been read last is the most likely to be in the cache
  if (at.some == 0) return;
  float weight[kRows];
#pragma unroll
  for (int v = 0; v < kRows; ++v)
    weight[v] = right_weight(v < at.some ? largest[at.matrix * cut.length + at.row + v] : 0);
  auto* const out = reinterpret_cast<__half*>(to.data) + at.matrix * to.stride + at.row;
  for (std::int64_t j = at.begin + at.beside; j < at.end; j += kBeside * kTogether) {
    Four x[kTogether];
    load_columns<kWhole>(from, at, j, x);
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      const std::int64_t column = j + u * kBeside;
      if (column >= at.end) break;
      Halves<kRows> high, low;
#pragma unroll
      for (int v = 0; v < kRows; ++v) {
        const Parts parts(x[u].x[v] * weight[v]);
        high.x[v] = parts.high;
        low.x[v] = parts.low;
      }
      const auto put = [&](int segment, const Halves<kRows>& halves) {
        __half* const here = out + column * to.ld + segment * cut.length;
        if constexpr (kWhole) {
          *reinterpret_cast<Halves<kRows>*>(here) = halves;
        } else {
#pragma unroll
          for (int v = 0; v < kRows; ++v)
            if (v < at.some) here[v] = halves.x[v];
        }
      };
      put(0, low);
      put(1, high);
      put(2, high);
    }
  }
}

// What a row of the left matrix, whose largest entry is `most` at the scale `before`, is to be multiplied by. A scale
// only grows so far that the sums of before, and errors times later rows on the right, which may be much larger, remain
// finite: what is smaller is below the rounding of these sums.
__device__ float change_of(float most, float before) {
  if (!(most > 0 && most < kNotBelow) && !(most >= kBelow && isfinite(most))) return 1;
  int exponent = 0, now = 0;  // most < 2^exponent, before = 2^(now - 1)
  frexpf(most, &exponent);
  frexpf(before, &now);
  --now;
  int next = max(kLeast, min(now + kNewExponent - exponent, kMost));
  if (before != 1) next = min(next, now + kGrowth);
  return ldexpf(1.0f, max(next - now, -kShrinking));
}

// Rows whose change is not 1, of columns c[j ld + row]. Few rows change as a rule: these alone are shared out.
__device__ void rescale(const float (&changes)[kTileRows], float* c, std::int64_t ld, std::int64_t count) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32;
  unsigned rows = __ballot_sync(0xffffffffu, changes[lane] != 1.0f);
  const int some = __popc(rows), beside = 32 * kWarps / some, first = tid / some;
  if (first >= beside) return;
  for (int r = tid - first * some; r > 0; --r) rows &= rows - 1;
  const int row = __ffs(static_cast<int>(rows)) - 1;
  const float change = changes[row];
  c += row;
  constexpr int kBatch = 8;
  for (std::int64_t j = first; j < count; j += kBatch * beside) {
    float x[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) x[u] = j + u * beside < count ? c[(j + u * beside) * ld] : 0.0f;
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (j + u * beside < count) c[(j + u * beside) * ld] = x[u] * change;
  }
}

// 32 rows of a matrix. Half a warp has a column of them, two rows for each lane.
__global__ void __launch_bounds__(32 * kWarps, 2)
    split_left_kernel(unsigned tiles, std::int64_t m, std::int64_t k, Columns<const float> from,
                      const std::uint32_t* largest, bool first, float* up, std::int64_t up_stride, Behind behind,
                      Columns<std::uint16_t> to) {
  __shared__ Two most[kWarps][kPairs];
  __shared__ float changes[kTileRows];
  const std::int64_t matrix = blockIdx.x / tiles;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int pair = lane % kPairs, side = static_cast<int>(threadIdx.x) / kPairs;
  const std::int64_t tile_row = std::int64_t{blockIdx.x % tiles} * kTileRows, row = tile_row + 2 * pair;
  const int live = row >= m ? 0 : row + 1 < m ? 2 : 1;  // rows of this thread
  const float* const in = from.data + matrix * from.stride + row;
  const std::uint32_t* const weights = largest + matrix * k;
  constexpr int kColumns = kHeld * kSides;
  Two x[kHeld];
  const auto fetch = [&](std::int64_t begin) {
    std::uint32_t weight[kHeld];
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const std::int64_t c = begin + u * kSides + side;
      const bool there = c < k && live > 0;
      x[u] = there ? *reinterpret_cast<const Two*>(in + c * from.ld) : Two{};
      weight[u] = there ? weights[c] : 0;
    }
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const float by = left_weight(weight[u]);
      x[u].x[0] *= by;
      x[u].x[1] = live > 1 ? x[u].x[1] * by : 0.0f;
    }
  };

  Two mine{};
  std::int64_t begin = 0;  // of the columns that are held
  while (true) {
    fetch(begin);
#pragma unroll
    for (int u = 0; u < kHeld; ++u)
#pragma unroll
      for (int v = 0; v < 2; ++v) mine.x[v] = fmaxf(mine.x[v], fabsf(x[u].x[v]));
    if (begin + kColumns >= k) break;
    begin += kColumns;
  }
#pragma unroll
  for (int v = 0; v < 2; ++v) mine.x[v] = fmaxf(mine.x[v], __shfl_xor_sync(0xffffffffu, mine.x[v], kPairs));
  if (lane < kPairs) most[warp][pair] = mine;
  float before[2];
#pragma unroll
  for (int v = 0; v < 2; ++v) before[v] = v < live && !first ? up[matrix * up_stride + row + v] : 1.0f;
  __syncthreads();  // and nobody writes `up` before all have read it
#pragma unroll
  for (int w = 0; w < kWarps; ++w)
#pragma unroll
    for (int v = 0; v < 2; ++v) mine.x[v] = fmaxf(mine.x[v], most[w][pair].x[v]);
  float change[2];
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    change[v] = v < live ? change_of(mine.x[v], before[v]) : 1.0f;
    if (side > 0) continue;
    changes[2 * pair + v] = change[v];
    if (v < live && (first || change[v] != 1)) up[matrix * up_stride + row + v] = before[v] * change[v];
  }
  const bool any = __syncthreads_or(static_cast<int>(change[0] != 1 || change[1] != 1)) != 0;

  auto* const out = reinterpret_cast<__half*>(to.data) + matrix * to.stride + row;
  while (live > 0) {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const std::int64_t c = begin + u * kSides + side;
      if (c >= k) break;
      Halves<2> high, low;
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const Parts parts(x[u].x[v] * change[v]);
        high.x[v] = parts.high;
        low.x[v] = parts.low;
      }
      const auto put = [&](int segment, const Halves<2>& halves) {
        *reinterpret_cast<Halves<2>*>(out + (segment * k + c) * to.ld) = halves;
      };
      put(0, high);
      put(1, low);
      put(2, high);
    }
    if (begin == 0) break;
    begin -= kColumns;
    fetch(begin);
  }
  if (any)
    rescale(changes, behind.columns.data + matrix * behind.columns.stride + tile_row, behind.columns.ld, behind.count);
}

__global__ void __launch_bounds__(kThreads)
    unscale_kernel(std::int64_t columns, std::int64_t m, std::int64_t rows, const float* up, float* x) {
  const std::int64_t matrix = blockIdx.x / columns;
  for (std::int64_t i = threadIdx.x; i < m; i += kThreads) x[blockIdx.x * rows + i] /= up[matrix * rows + i];
}

bool aligned(const void* p, std::size_t to) { return reinterpret_cast<std::uintptr_t>(p) % to == 0; }

}  // namespace

void split_right(const Execution& exec, std::int64_t count, std::int64_t n, std::int64_t k,
                 const Columns<const float>& from, std::uint32_t* largest, const Columns<std::uint16_t>& to) {
  QUADRIC_CUDA(cudaMemsetAsync(largest, 0, static_cast<std::size_t>(count * k) * sizeof(*largest), stream(exec)));
  const std::int64_t parts = ceil_div(k, kAcross * kRows);
  const int slice = count * parts * n >= kBlocks * kMany ? kMany : kFew;
  const std::int64_t slices = ceil_div(n, slice);
  const Cut cut{n, k, static_cast<unsigned>(parts), static_cast<unsigned>(slices), slice};
  const bool whole = k % kRows == 0 && to.ld % kRows == 0 && to.stride % kRows == 0 && from.ld % kRows == 0 &&
                     from.stride % kRows == 0 && aligned(from.data, sizeof(Four)) &&
                     aligned(to.data, sizeof(Halves<kRows>));
  const std::int64_t blocks = count * slices * parts;
  launch(exec, whole ? find_largest<true> : find_largest<false>, blocks, kThreads, 0, cut, from, largest);
  launch(exec, whole ? split_right_kernel<true> : split_right_kernel<false>, blocks, kThreads, 0, cut, from, largest,
         to);
}

void split_left(const Execution& exec, std::int64_t count, std::int64_t m, std::int64_t k,
                const Columns<const float>& from, const std::uint32_t* largest, bool first, float* up,
                std::int64_t up_stride, const Behind& behind, const Columns<std::uint16_t>& to) {
  const std::int64_t tiles = ceil_div(m, kTileRows);
  launch(exec, split_left_kernel, count * tiles, 32 * kWarps, 0, static_cast<unsigned>(tiles), m, k, from, largest,
         first, up, up_stride, behind, to);
}

void multiply_parts(cublasHandle_t handle, std::int64_t count, std::int64_t m, std::int64_t n, std::int64_t k,
                    const Columns<const std::uint16_t>& A, const Columns<const std::uint16_t>& B, float beta,
                    const Columns<float>& C) {
  constexpr float alpha = 1.0f / (1 << kRightExponent);
  const auto number = [](std::int64_t x) { return static_cast<int>(x); };
  if (count == 1)
    QUADRIC_CUDA(cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, number(m), number(n), number(kSegments * k), &alpha,
                              A.data, CUDA_R_16F, number(A.ld), B.data, CUDA_R_16F, number(B.ld), &beta, C.data,
                              CUDA_R_32F, number(C.ld), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  else
    QUADRIC_CUDA(cublasGemmStridedBatchedEx(
        handle, CUBLAS_OP_N, CUBLAS_OP_N, number(m), number(n), number(kSegments * k), &alpha, A.data, CUDA_R_16F,
        number(A.ld), A.stride, B.data, CUDA_R_16F, number(B.ld), B.stride, &beta, C.data, CUDA_R_32F, number(C.ld),
        C.stride, number(count), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void unscale_rows(const Execution& exec, std::int64_t count, std::int64_t columns, std::int64_t m, std::int64_t rows,
                  const float* up, float* x) {
  launch(exec, unscale_kernel, count * columns, kThreads, 0, columns, m, rows, up, x);
}

}  // namespace quadric::cuda::sweep
