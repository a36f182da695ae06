// What the passes from points share: the points as their kernels want them, and the exponents.
#pragma once

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
};

// The device memory of a plan, by the shape alone. The points of the columns are multiplied by 2 kappa (sqeuclidean) or
// kappa (cosine), so that t_ij = G_j + x_i . y_j.
template <class T>
struct Points {
  std::int64_t depth = 0, half_depth = 0;
  Side<T> x, y;
  T* u = nullptr;                   // problems x x.padded_count: of this pass
  T* shift = nullptr;               // problems x x.padded_count: with which e was raised to u
  int* largest = nullptr;           // problems x 2: max |x| and |y| as bits, for the exponents of parts
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

template <class T>
Points<T> points_at(void* memory, const Batch<T>& cost) {
  Points<T> points;
  auto* const base = static_cast<char*>(memory);
  std::int64_t used = 0;
  const auto take = [&](auto*& to, std::int64_t count) {
    to = reinterpret_cast<std::decay_t<decltype(to)>>(base + used);
    used += (count * static_cast<std::int64_t>(sizeof(*to)) + 255) / 256 * 256;
  };
  const bool tensor = by_tensor_cores<T>(cost.kind, cost.d);
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
    } else {
      take(side.by_point, all * points.depth);
      take(side.by_coordinate, all * cost.d);
    }
  };
  side(points.x, cost.n);
  side(points.y, cost.m);
  take(points.u, cost.problems * points.x.padded_count);
  take(points.shift, cost.problems * points.x.padded_count);
  if (tensor) take(points.largest, 2 * cost.problems);
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

// Both from one evaluation: points_once.cu. Float32 products of at most 8 coordinates.
inline constexpr std::int64_t kOnceDepth = 8;
bool points_once_fits(const Batch<float>& cost);
std::int64_t points_once_slots(const Batch<float>& cost);
void points_once(const Execution& exec, const Points<float>& points, const Pass<float>& pass);

// Long points, by the tensor cores, with two evaluations: points_tensor.cu.
std::int64_t points_tensor_slots(const Batch<float>& cost);
void points_tensor(const Execution& exec, const Points<float>& points, const Pass<float>& pass);

}  // namespace quadric::cuda::transport
