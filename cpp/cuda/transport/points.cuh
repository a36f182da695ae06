// What the passes from points share: the points as their kernels want them, and the exponents.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>

#include "transport/pass.cuh"

namespace quadric::cuda::transport {

enum class PointForm { product, taxicab, euclidean };

inline PointForm point_form(CostKind kind) {
  if (kind == CostKind::cityblock) return PointForm::taxicab;
  return kind == CostKind::euclidean ? PointForm::euclidean : PointForm::product;
}

// One side's points. All are zero beyond the points and the coordinates that there are.
template <class T>
struct Side {
  std::int64_t count = 0, padded_count = 0;
  const T* by_point = nullptr;       // problems x padded_count x depth, depth = d padded to a multiple of 4
  const T* by_coordinate = nullptr;  // problems x d x padded_count
  // Of long float32 points: x = (upper + lower) 2^-exponent, float16, problems x padded_count / kPage pages, each
  // half_depth / half_width(d) chunks of coordinates x 2 parts x kPage points x half_width(d), as half_place() says.
  const std::uint16_t* parts = nullptr;
  // Of short float32 points: problems x padded_count x short_words(), as word_place() says.
  std::uint32_t* words = nullptr;
};

// The device memory of a plan, by the shape alone. The points of the columns are multiplied by 2 kappa (sqeuclidean) or
// kappa (cosine), so that t_ij = G_j + x_i . y_j.
template <class T>
struct Points {
  std::int64_t depth = 0, half_depth = 0;
  Side<T> x, y;
  T* u = nullptr;          // problems x x.padded_count: of this pass; of short points in value_place()
  T* shift = nullptr;      // problems x x.padded_count: with which e was raised to u
  int* largest = nullptr;  // problems x 2: max |x| and |y| as bits, for the exponents of parts and words
  // Of short points.
  float* weight = nullptr;          // problems x y.padded_count, in value_place()
  float* row_sum = nullptr;         // problems x short_row_parts() x x.padded_count
  float* row_shift = nullptr;       // the same: with which row_sum was raised, where shifts are to be found
  int* arrived = nullptr;           // problems x short_blocks(n): parts that have written row_sum
  double* row_offset = nullptr;     // problems x n
  double* column_offset = nullptr;  // problems x m
  std::int64_t bytes = 0;           // of all
};

inline constexpr int kPage = 64;                  // points that are together in memory for the tensor cores
inline constexpr std::int64_t kTensorTile = 256;  // points that a block of theirs has, at most

// Coordinates that are together, as few as d allows.
__host__ __device__ constexpr int half_width(std::int64_t d) { return d <= 16 ? 16 : d <= 32 ? 32 : 64; }
// Where coordinate k of a point is in a part of a page, k < width: pieces of 8 change places with the row, so that the
// same piece of 8 rows is in 8 different places modulo 128 bytes, as the tensor cores want it.
__host__ __device__ constexpr int half_place(int row, int k, int width) {
  return row * width + (k ^ row * width / 64 % (width / 8) * 8);
}

// The exponent e with max |scale x| 2^e in [2^13, 2^14), so that products of 2^20 coordinates fit into a float32 and
// the lower parts of all but the smallest numbers into a float16.
__device__ __forceinline__ int half_exponent(int largest, double scale) {
  const double scaled = scale * static_cast<double>(__int_as_float(largest));
  return scaled > 0 && scaled < INFINITY ? 13 - ilogb(scaled) : 0;
}

template <class T>
bool by_tensor_cores(CostKind kind, std::int64_t d) {
  return sizeof(T) == 4 && point_form(kind) == PointForm::product && d > 8;
}

// ---- short points (points_short.cu): float32 products of 1 to 8 coordinates -----------------------------------------

inline constexpr int kShortOwn = 128;  // points that a block of theirs has

inline bool short_points(const Batch<float>& cost) {
  return point_form(cost.kind) == PointForm::product && cost.d >= 1 && cost.d <= 8;
}
inline bool short_points(const Batch<double>&) { return false; }

// An exponent is two products, added up: upper parts of coordinates, G and shift, and then the lesser ones, upper times
// lower parts, when the large numbers have cancelled. A word is two float16; each product has 4 words of a point for up
// to 4 coordinates, 8 for more. Those of the first are coordinates in pairs, at the end G and shift, a word each; the
// second one has a word for a coordinate.
__host__ __device__ constexpr int short_steps(std::int64_t d) { return d <= 4 ? 1 : 2; }
__host__ __device__ constexpr int short_words(int steps) { return 8 * steps; }
__host__ __device__ constexpr int lesser_word(int steps) { return 4 * steps; }
__host__ __device__ constexpr int G_word(int steps) { return 4 * steps - 2; }
__host__ __device__ constexpr int shift_word(int steps) { return 4 * steps - 1; }

// G and shift are kPotentialUnit times the sums of two float16, none of which is larger than kMostHalf: enough for all
// exponents of which float32 knows a whole number.
inline constexpr float kPotentialUnit = 1024, kMostHalf = 65504;

// Where a word of a point is: as the lanes of a warp hold 16 points' factors, on either side of a product.
__host__ __device__ constexpr std::int64_t word_place(std::int64_t point, int word, int steps) {
  return (((point / 16 * steps + word / 8) * 8 + point % 8) * 4 + word % 4) * 4 + point / 8 % 2 * 2 + word / 4 % 2;
}
// Where the value of a point is that multiplies its e: what a lane needs of 32 points is together.
__host__ __device__ constexpr std::int64_t value_place(std::int64_t point) {
  return point / 32 * 32 + point % 8 / 2 * 8 + point / 8 % 4 * 2 + point % 2;
}

// The nearest float16 that is finite; NaN stays.
__device__ __forceinline__ __half half_within(float x) {
  return __float2half_rn(x > kMostHalf ? kMostHalf : x < -kMostHalf ? -kMostHalf : x);
}

inline std::int64_t short_blocks(std::int64_t count) { return (count + kShortOwn - 1) / kShortOwn; }
std::int64_t short_parts(const Batch<float>& cost, std::int64_t own, std::int64_t other);
inline std::int64_t short_row_parts(const Batch<float>& cost) { return short_parts(cost, cost.n, cost.m); }
std::int64_t points_short_slots(const Batch<float>& cost);
void points_short(const Execution& exec, const Points<float>& points, const Pass<float>& pass);

template <class T>
Points<T> points_at(void* memory, const Batch<T>& cost) {
  Points<T> points;
  auto* const base = static_cast<char*>(memory);
  std::int64_t used = 0;
  const auto take = [&](auto*& to, std::int64_t count) {
    to = reinterpret_cast<std::decay_t<decltype(to)>>(base + used);
    used += (count * static_cast<std::int64_t>(sizeof(*to)) + 255) / 256 * 256;
  };
  const bool tensor = by_tensor_cores<T>(cost.kind, cost.d), few = short_points(cost);
  points.depth = std::max<std::int64_t>((cost.d + 3) / 4 * 4, 4);
  const std::int64_t width = half_width(cost.d);
  points.half_depth = (cost.d + width - 1) / width * width;
  const auto side = [&](Side<T>& side, std::int64_t count) {
    side.count = count;
    // A whole number of what the tensor cores' blocks have.
    side.padded_count = tensor ? (count + kTensorTile - 1) / kTensorTile * kTensorTile : padded(count);
    const std::int64_t all = cost.problems * side.padded_count;
    if (tensor) {
      take(side.parts, 2 * all * points.half_depth);
    } else if (few) {
      take(side.words, all * short_words(short_steps(cost.d)));
    } else {
      take(side.by_point, all * points.depth);
      take(side.by_coordinate, all * cost.d);
    }
  };
  side(points.x, cost.n);
  side(points.y, cost.m);
  take(points.u, cost.problems * points.x.padded_count);
  take(points.shift, cost.problems * points.x.padded_count);
  if (tensor || few) take(points.largest, 2 * cost.problems);
  if constexpr (sizeof(T) == 4) {
    if (few) {
      take(points.weight, cost.problems * points.y.padded_count);
      const std::int64_t sums = cost.problems * short_row_parts(cost) * points.x.padded_count;
      take(points.row_sum, sums);
      take(points.row_shift, sums);
      take(points.arrived, cost.problems * short_blocks(cost.n));
    }
  }
  if (point_form(cost.kind) == PointForm::product) take(points.row_offset, cost.problems * cost.n);
  if (cost.kind == CostKind::sqeuclidean) take(points.column_offset, cost.problems * cost.m);
  points.bytes = used;
  return points;
}

// Adds coordinate k to what becomes a distance, or to t, by the same operations whichever side x is on.
template <PointForm form, class T>
__device__ __forceinline__ T add_coordinate(T sum, T x, T y) {
  if constexpr (form == PointForm::product) {
    return fma(x, y, sum);
  } else if constexpr (form == PointForm::taxicab) {
    return sum + fabs(x - y);
  } else {
    const T difference = x - y;
    return fma(difference, difference, sum);
  }
}
__device__ __forceinline__ float root(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ double root(double x) { return sqrt(x); }

// t from the sum over coordinates, which began with first(G).
template <PointForm form, class T>
__device__ __forceinline__ T first(T G) {
  return form == PointForm::product ? G : T(0);
}
template <PointForm form, class T>
__device__ __forceinline__ T exponent(T sum, T G, T factor) {
  if constexpr (form == PointForm::product) return sum;
  if constexpr (form == PointForm::taxicab) return fma(sum, factor, G);
  return fma(root(sum), factor, G);
}

// Sums by row and by column, with two evaluations: points_twice.cu.
template <class T>
void points_twice(const Execution& exec, const Points<T>& points, const Pass<T>& pass);

// Long points, by the tensor cores, with two evaluations: points_tensor.cu.
std::int64_t points_tensor_slots(const Batch<float>& cost);
void points_tensor(const Execution& exec, const Points<float>& points, const Pass<float>& pass);

}  // namespace quadric::cuda::transport
