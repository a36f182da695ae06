// A pass from float32 points of at most 8 coordinates: exponents by the tensor cores, evaluated twice, for the sums of
// the rows and then for those of the columns.
//
// A coordinate is the sum of two float16, 22 bits of it, and so are G and shift, each times a power of two. So
//
//   t_ij + shift_i = sum_k (x_k y_k) + G_j + shift_i
//
// is a product of 8 float16 slots (upper parts, G and shift) and one of 8 lesser ones for up to 4 coordinates, of 16
// each for up to 8; products of float16 are exact, and both kernels add the same ones in the same slots to nothing, so
// that both see the same e. What G has beyond its two float16 goes into the weight, and into the sums of the columns at
// their end. A power of two shares the factor of x . y out to both. Points are those of their words in all terms of a
// cost, so that an error of x counts times |x - y|; where one side is hardly more than a point, what is left is 2^-22
// of the exponent.
//
// A warp keeps kRowTiles times 16 of its own points in registers and walks over a part of the other side, 16 points at
// a time, which come from the level-1 cache: warps of a block walk side by side. No warp waits for another. What
// remains of a pair is an exponential and a multiplication that adds it. Exponentials are at 4 per cycle and quarter of
// a multiprocessor, other operations at 32, so that kPolynomials of 16 exponentials are a polynomial instead; which
// ones depends on the bits 3 and 4 of i and j alone, in the same way. Parts are many and
// small, so that blocks that have ended are followed by others.
//
// The sums of a part are float32 of at most 128 numbers each, added up with what they lose; parts are float64 sums in
// their order, by the last block to come with one.
//
// Floor: 2 n m exponentials at 16 / (1 - kPolynomials / 16) per cycle and multiprocessor: 0.9 to 1.0 ms for n = m =
// 50 000, 36 to 40 us for 10 000. Beside 6 cycles for the exponentials of a pair and warp, its instructions take about
// 5. Measured: 1.4 ms and 91 us, with instructions issued in 60 % of the cycles; more warps (32 of 64 registers for 24
// of 80) and fewer or more polynomials are no faster.
#include "early.cuh"
#include "require.hpp"
#include "transport/async.cuh"
#include "transport/points.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kWarps = kShortOwn / 32, kThreads = kShortOwn;
constexpr int kRowTiles = 2;     // of 16 own points; those of a warp
constexpr int kPolynomials = 4;  // of 16 exponentials: 0, 2, 4, 5 or 6
constexpr int kGroup = 64;       // other points of a step of a walk
constexpr int kRun = 8;          // groups whose sums are plain float32
constexpr int kMostParts = 32, kRounds = 8;
static_assert(kWarps * kRowTiles * 16 == kShortOwn && kPad % kGroup == 0, "");

// Blocks of a multiprocessor, so that registers suffice.
constexpr int resident(int steps) { return steps == 1 ? 6 : 5; }

// Beyond this no exponent is real: that of points without mass is about -2 kMostHalf kPotentialUnit.
constexpr float kNone = 1 << 26;

struct Short {
  uint4 *x, *y;  // words
  std::int64_t x_count, y_count;
  float *u, *weight;
  float *row_sum, *row_shift;
  int* arrived;
  std::int64_t parts, blocks;  // of the rows' kernel or of the columns'
};

__device__ __forceinline__ int lane_of() { return static_cast<int>(threadIdx.x) % 32; }

// A potential as a word, and what is left of it.
__device__ __forceinline__ std::uint32_t word_of(float value, float& rest) {
  const __half upper = half_within(value * (1 / kPotentialUnit));
  rest = value - __half2float(upper) * kPotentialUnit;
  const __half lower = half_within(rest * (1 / kPotentialUnit));
  rest -= __half2float(lower) * kPotentialUnit;
  return __half_as_ushort(upper) | static_cast<std::uint32_t>(__half_as_ushort(lower)) << 16;
}
// -infinity: a row that is none. Infinity: a row without entries; they remain small with 0.
__device__ __forceinline__ std::uint32_t word_of_shift(float shift) {
  float rest;
  return word_of(shift < INFINITY ? shift : 0, rest);
}

// An exponent's two products: as multiply() of async.cuh, but the first one is added to nothing. Of 8 slots,
__device__ __forceinline__ void exponents(float (&t)[4], const unsigned (&own)[1][4], const unsigned (&other)[1][2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
      : "=f"(t[0]), "=f"(t[1]), "=f"(t[2]), "=f"(t[3])
      : "r"(own[0][0]), "r"(own[0][1]), "r"(other[0][0]), "f"(0.0F));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(t[0]), "+f"(t[1]), "+f"(t[2]), "+f"(t[3])
      : "r"(own[0][2]), "r"(own[0][3]), "r"(other[0][1]));
}
// and of 16.
__device__ __forceinline__ void exponents(float (&t)[4], const unsigned (&own)[2][4], const unsigned (&other)[2][2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, "
      "%10};"
      : "=f"(t[0]), "=f"(t[1]), "=f"(t[2]), "=f"(t[3])
      : "r"(own[0][0]), "r"(own[0][1]), "r"(own[0][2]), "r"(own[0][3]), "r"(other[0][0]), "r"(other[0][1]), "f"(0.0F));
  multiply(t, own[1], other[1][0], other[1][1]);
}

// 2^t by the special function unit; 0 below 2^-126.
__device__ __forceinline__ float special_power(float t) {
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(t));
  return e;
}
// 2^t with a relative error of 1.6e-7 by other units: the nearest whole number goes into the exponent, the rest, within
// 1/2, into a polynomial. About 2^-120 below that, not finite or about 2^128 from 2^128 on.
__device__ __forceinline__ float polynomial_power(float t) {
  constexpr float kMagic = 12582912;  // 1.5 2^23: the sum's lowest bits are the nearest whole number
  constexpr float kLeast = 0x1p-120F;
  constexpr int kLow = 120, kHigh = 128;
  t = fmaxf(t, -0x1p22F);  // so that the sum keeps its exponent
  const float moved = t + kMagic;
  const float r = t - (moved - kMagic);
  float q = kLeast * 0.001326472731307149F;
  q = fmaf(q, r, kLeast * 0.009671512991189957F);
  q = fmaf(q, r, kLeast * 0.05550733581185341F);
  q = fmaf(q, r, kLeast * 0.24022242426872253F);
  q = fmaf(q, r, kLeast * 0.6931470036506653F);
  q = fmaf(q, r, kLeast);
  const int exponent = __viaddmin_s32_relu(__float_as_int(moved), kLow - 0x4b400000, kLow + kHigh);
  return __int_as_float(__float_as_int(q) + (exponent << 23));
}

// Whether 2^t is a polynomial for points with these bits 3 and 4: symmetric.
__host__ __device__ constexpr bool by_polynomial(int own, int other) {
  if ((own + other) % 4 == 3) return kPolynomials >= 4 || (kPolynomials >= 2 && own % 3 == 0);
  return (own == 3 && other == 3 && kPolynomials >= 5) || (own == 1 && other == 1 && kPolynomials >= 6);
}

// ---- walks ---------------------------------------------------------------------------------------------------------

// This lane's part of its warp's own points, its rows 16 r + 8 h + lane / 4.
template <int kSteps>
struct Own {
  unsigned words[kRowTiles][kSteps][4];

  __device__ __forceinline__ void load(const uint4* from, std::int64_t first) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const uint4 q = from[((first / 16 + r) * kSteps + s) * 32 + lane_of()];
        words[r][s][0] = q.x;
        words[r][s][1] = q.z;
        words[r][s][2] = q.y;
        words[r][s][3] = q.w;
      }
  }
  __device__ __forceinline__ void set_shift(const float (&shift)[kRowTiles][2]) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (lane_of() % 4 == 3) words[r][0][(kSteps == 1 ? 0 : 2) + h] = word_of_shift(shift[r][h]);
  }
};

// What a lane has of 16 other points.
template <int kSteps>
struct Other {
  uint4 words[kSteps];
  float4 values;

  // Number q of a group, from where the lane's data of the group begin.
  __device__ __forceinline__ void load(const uint4* from, const float4* value, int q) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) words[s] = from[(q * kSteps + s) * 32];
    values = value[q / 2 * 8 + q % 2];
  }
};

template <bool largest>
__device__ __forceinline__ float join(float a, float b) {
  return largest ? fmaxf(a, b) : a + b;
}

// sums += e times value, or the largest t; `odd`: of the second 16 of 32 points.
template <int kSteps, bool largest, bool odd>
__device__ __forceinline__ void add(const Own<kSteps>& own, const Other<kSteps>& other, float (&sums)[kRowTiles][2]) {
  const float value[2][2] = {{other.values.x, other.values.y}, {other.values.z, other.values.w}};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    unsigned words[kSteps][2];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      words[s][0] = c == 0 ? other.words[s].x : other.words[s].z;
      words[s][1] = c == 0 ? other.words[s].y : other.words[s].w;
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float t[4];
      exponents(t, own.words[r], words);
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int l = 0; l < 2; ++l) {
          const float exponent = t[2 * h + l];
          if constexpr (largest)
            sums[r][h] = fmaxf(sums[r][h], exponent);
          else
            sums[r][h] = fmaf(by_polynomial((2 * r + h) % 4, 2 * (odd ? 1 : 0) + c) ? polynomial_power(exponent)
                                                                                    : special_power(exponent),
                              value[c][l], sums[r][h]);
        }
    }
  }
}

// The sums of e times value, or the largest t, over groups begin to end - 1, for all four lanes of a row. While 16
// points are added, the next ones come.
template <int kSteps, bool largest>
__device__ __forceinline__ void walk(const Own<kSteps>& own, const uint4* words, const float* values, int begin,
                                     int end, float (&result)[kRowTiles][2]) {
  constexpr int kWords = 4 * kSteps * 32, kValues = kGroup / 4;
  float rest[kRowTiles][2];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      result[r][h] = largest ? -INFINITY : 0;
      rest[r][h] = 0;
    }
  const uint4* from = words + static_cast<std::int64_t>(begin) * kWords + lane_of();
  const float4* value =
      reinterpret_cast<const float4*>(values) + static_cast<std::int64_t>(begin) * kValues + lane_of() % 4 * 2;
  Other<kSteps> even, odd;
  if (begin < end) even.load(from, value, 0);
  for (int left = end - begin; left > 0;) {
    float here[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) here[r][h] = largest ? -INFINITY : 0;
    const int after = left > kRun ? left - kRun : 0;
#pragma unroll 1
    do {
      odd.load(from, value, 1);
      add<kSteps, largest, false>(own, even, here);
      even.load(from, value, 2);
      add<kSteps, largest, true>(own, odd, here);
      odd.load(from, value, 3);
      add<kSteps, largest, false>(own, even, here);
      if (left > 1) {  // else the last group is read again
        from += kWords;
        value += kValues;
      }
      even.load(from, value, 0);
      add<kSteps, largest, true>(own, odd, here);
    } while (--left > after);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float sum = join<largest>(result[r][h], here[r][h]);
        if constexpr (!largest) rest[r][h] += here[r][h] - (sum - result[r][h]);
        result[r][h] = sum;
      }
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float value = result[r][h] + rest[r][h];
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2) {
        const float there = __shfl_xor_sync(~0U, value, lanes);
        value = join<largest>(value, there);
      }
      result[r][h] = value;
    }
}

// ---- kernels -------------------------------------------------------------------------------------------------------

// G and weight of the columns as the kernels want them; a thread for a column.
__global__ void __launch_bounds__(kThreads)
    set_columns(const __grid_constant__ Pass<float> pass, const __grid_constant__ Short points, const int steps,
                const std::int64_t blocks) {
  wait_for_earlier_kernels();
  let_next_kernel_begin();
  const std::int64_t p = blockIdx.x / blocks, j = blockIdx.x % blocks * kThreads + threadIdx.x;
  const Flags flags = pass.flags[p];
  if (!flags.active || j >= pass.width) return;
  const std::int64_t at = (p * 4 + flags.slot) * pass.width + j;
  float rest;
  const std::uint32_t word = word_of(pass.G[at], rest);
  auto* const words = reinterpret_cast<std::uint32_t*>(points.y);
  words[p * points.y_count * short_words(steps) + word_place(j, G_word(steps), steps)] = word;
  const float weight = pass.weight[at];
  points.weight[p * points.y_count + value_place(j)] = weight != 0 ? weight * exp2f(rest) : 0;
}

// The block's problem, part of the other side and first own point. Blocks that follow each other have the same part.
struct Place {
  std::int64_t p, part, block;

  __device__ __forceinline__ explicit Place(const Short& points)
      : p(blockIdx.x / (points.blocks * points.parts)),
        part(blockIdx.x / points.blocks % points.parts),
        block(blockIdx.x % points.blocks) {}
};

__device__ __forceinline__ int begin_of(std::int64_t groups, std::int64_t part, std::int64_t parts) {
  return static_cast<int>(groups * part / parts);
}

// -the largest exponent as a shift; infinite if there is none.
__device__ __forceinline__ float shift_of(float most) { return most > -kNone ? -rintf(most) : INFINITY; }

template <int kSteps>
__global__ void __launch_bounds__(kThreads, resident(kSteps))
    row_sums(const __grid_constant__ Pass<float> pass, const __grid_constant__ Short points) {
  __shared__ float sums[kShortOwn], shifts[kShortOwn];
  __shared__ bool last;
  wait_for_earlier_kernels();
  let_next_kernel_begin();
  const Place place(points);
  const std::int64_t p = place.p, n = pass.cost.n;
  const auto groups = static_cast<int>(points.y_count / kGroup);
  const Flags flags = pass.flags[p];
  if (!flags.active) return;
  const bool rebase = flags.rebase;
  const std::int64_t block_first = place.block * kShortOwn, first = block_first + threadIdx.x / 32 * 32;
  const bool live = first < n;  // a warp has points
  const uint4* const y = points.y + p * points.y_count * 2 * kSteps;
  const float* const weight = points.weight + p * points.y_count;
  const int row = static_cast<int>(threadIdx.x) / 32 * 32 + lane_of() / 4;  // of this lane, the first one
  Own<kSteps> own;

  const std::int64_t i = block_first + threadIdx.x;  // which this thread relaxes, in the last block
  const bool real = i < n;
  bool bad = false;
  double sum = 0;
  float shift = 0;
  RowInputs inputs;

  int begin = begin_of(groups, place.part, points.parts), end = begin_of(groups, place.part + 1, points.parts);
  float its_shift[kRowTiles][2];  // of the lane's rows; infinite: to be found
  if (live) {
    own.load(points.x + p * points.x_count * 2 * kSteps, first);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::int64_t its = block_first + row + 16 * r + 8 * h;
        its_shift[r][h] = its >= n ? 0 : rebase ? INFINITY : pass.shift[p * n + its];
      }
  }
  for (bool again = false;; again = true) {  // a second time, over all groups, if sums are bad
    if (live) {
      float found[kRowTiles][2];
      if (rebase || again) {
        const float none[kRowTiles][2] = {};
        own.set_shift(none);
        walk<kSteps, true>(own, y, weight, begin, end, found);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            if (!isfinite(its_shift[r][h])) its_shift[r][h] = shift_of(found[r][h]);
      }
      own.set_shift(its_shift);
      walk<kSteps, false>(own, y, weight, begin, end, found);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const std::int64_t its = block_first + row + 16 * r + 8 * h;
          if (lane_of() % 4 != 0 || its >= n) continue;
          if (again) {
            sums[row + 16 * r + 8 * h] = found[r][h];
            shifts[row + 16 * r + 8 * h] = its_shift[r][h];
          } else {
            const std::int64_t at = (p * points.parts + place.part) * points.x_count + its;
            points.row_sum[at] = found[r][h];
            if (rebase) points.row_shift[at] = its_shift[r][h];
          }
        }
    }
    __threadfence();
    __syncthreads();
    if (again) break;

    if (threadIdx.x == 0) {
      int* const arrived = points.arrived + p * points.blocks + place.block;
      last = atomicAdd(arrived, 1) == points.parts - 1;
      if (last) *arrived = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (real) {
      inputs = load_row(pass, p * n + i);
      const std::int64_t at = p * points.parts * points.x_count + i;
      shift = rebase ? INFINITY : pass.shift[p * n + i];
#pragma unroll 8
      for (std::int64_t part = 0; part < (rebase ? points.parts : 0); ++part)
        shift = fminf(shift, __ldcg(points.row_shift + at + part * points.x_count));
#pragma unroll 8
      for (std::int64_t part = 0; part < points.parts; ++part) {
        const std::int64_t where = at + part * points.x_count;
        const double scale = rebase ? static_cast<double>(exp2f(shift - __ldcg(points.row_shift + where))) : 1.0;
        sum += scale * static_cast<double>(__ldcg(points.row_sum + where));
      }
    }
    bad = !rebase && real && outside<float>(sum);
    if (!__syncthreads_or(static_cast<int>(bad))) break;
    shifts[threadIdx.x] = bad ? INFINITY : shift;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) its_shift[r][h] = shifts[row + 16 * r + 8 * h];
    begin = 0;
    end = groups;
    __syncthreads();
  }
  if (bad) {
    sum = static_cast<double>(sums[threadIdx.x]);
    shift = shifts[threadIdx.x];
  }
  if (i >= points.x_count) return;
  float u = 0;
  if (real) {
    const RelaxedRow relaxed = relaxed_row(pass, inputs, pass.omega[p], sum, shift);
    keep_row(pass, p, p * n + i, inputs, relaxed, sum, shift, rebase);
    u = static_cast<float>(relaxed.u);
  }
  points.u[p * points.x_count + value_place(i)] = u;
  auto* const words = reinterpret_cast<std::uint32_t*>(points.x);
  words[p * points.x_count * short_words(kSteps) + word_place(i, shift_word(kSteps), kSteps)] =
      word_of_shift(real ? shift : -INFINITY);
}

template <int kSteps>
__global__ void __launch_bounds__(kThreads, resident(kSteps))
    column_sums(const __grid_constant__ Pass<float> pass, const __grid_constant__ Short points) {
  wait_for_earlier_kernels();
  let_next_kernel_begin();
  const Place place(points);
  const std::int64_t p = place.p, m = pass.cost.m, groups = points.x_count / kGroup;
  const Flags flags = pass.flags[p];
  if (!flags.active) return;
  const std::int64_t first = place.block * kShortOwn + threadIdx.x / 32 * 32;
  if (first >= m) return;
  Own<kSteps> own;
  own.load(points.y + p * points.y_count * 2 * kSteps, first);
  float sum[kRowTiles][2];
  walk<kSteps, false>(own, points.x + p * points.x_count * 2 * kSteps, points.u + p * points.x_count,
                      begin_of(groups, place.part, points.parts), begin_of(groups, place.part + 1, points.parts), sum);
  const float* const G = pass.G + (p * 4 + flags.slot) * pass.width;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t j = first + 16 * r + 8 * h + lane_of() / 4;
      if (lane_of() % 4 != 0 || j >= m) continue;
      float rest;
      word_of(G[j], rest);
      pass.partial[(p * pass.slots + place.part) * pass.width + j] = sum[r][h] * exp2f(rest);
    }
}

template <int kSteps>
void launch(const Execution& exec, const Pass<float>& pass, Short points) {
  const auto run = [&](auto kernel, std::int64_t parts, std::int64_t blocks) {
    points.parts = parts;
    points.blocks = blocks;
    const std::int64_t all = pass.cost.problems * parts * blocks;
    QUADRIC_REQUIRE(all < (std::int64_t{1} << 31), "x or y has too many points");
    launch_early(exec, kernel, static_cast<unsigned>(all), kThreads, 0, 1, pass, points);
  };
  const std::int64_t blocks = (pass.width + kThreads - 1) / kThreads;
  QUADRIC_REQUIRE(pass.cost.problems * blocks < (std::int64_t{1} << 31), "y has too many points");
  launch_early(exec, &set_columns, static_cast<unsigned>(pass.cost.problems * blocks), kThreads, 0, 1, pass, points,
               kSteps, blocks);
  run(&row_sums<kSteps>, short_row_parts(pass.cost), short_blocks(pass.cost.n));
  run(&column_sums<kSteps>, pass.slots, short_blocks(pass.cost.m));
}

}  // namespace

// Into how many parts the other side is cut, for 132 multiprocessors, whatever the device is. A block begins and ends
// in what a group takes; at the end, multiprocessors are empty for about 3/5 of what a block takes. More than kRounds
// rounds of blocks gain nothing, and each part has sums in memory.
std::int64_t short_parts(const Batch<float>& cost, std::int64_t own, std::int64_t other) {
  const std::int64_t at_once = 132 * resident(short_steps(cost.d)), groups = padded(other) / kGroup;
  std::int64_t best = 1, least = 0;
  for (std::int64_t parts = 1; parts <= kMostParts && parts <= groups; ++parts) {
    const std::int64_t units = cost.problems * short_blocks(own) * parts;
    if (parts > 1 && units > kRounds * at_once) break;
    const std::int64_t time = (5 * units + 3 * at_once) * ((groups + parts - 1) / parts + 1);
    if (parts > 1 && time >= least) continue;
    best = parts;
    least = time;
  }
  return best;
}
std::int64_t points_short_slots(const Batch<float>& cost) { return short_parts(cost, cost.m, cost.n); }

void points_short(const Execution& exec, const Points<float>& points, const Pass<float>& pass) {
  Short all = {reinterpret_cast<uint4*>(points.x.words),
               reinterpret_cast<uint4*>(points.y.words),
               points.x.padded_count,
               points.y.padded_count,
               points.u,
               points.weight,
               points.row_sum,
               points.row_shift,
               points.arrived,
               1,
               1};
  if (short_steps(pass.cost.d) == 1)
    launch<1>(exec, pass, all);
  else
    launch<2>(exec, pass, all);
}

}  // namespace quadric::cuda::transport
