// Passes from points: what is made once for all passes, and which kernels do them.
//
// Every pair is evaluated twice, for the sums of the rows and for those of the columns. Float32 products go to the
// tensor cores: of up to 8 coordinates in points_short.cu, of more in points_tensor.cu; points_twice.cu takes the rest.
#include "transport/points.cuh"

#include <cuda_fp16.h>

#include "require.hpp"

namespace quadric::cuda::transport {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 65535;

inline unsigned blocks_for(std::int64_t work) {
  return static_cast<unsigned>(std::clamp<std::int64_t>((work + kThreads - 1) / kThreads, 1, 1 << 20));
}

template <class T>
struct Raw {
  const T* data;
  std::int64_t problem, row;  // strides
  std::int64_t problems, count, d;
};

// Both layouts of one side; `scale` multiplies in T, as on the CPU.
template <class T>
__global__ void lay_out(Raw<T> raw, T scale, std::int64_t padded_count, std::int64_t depth, T* by_point,
                        T* by_coordinate) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  const std::int64_t all = raw.problems * padded_count * depth;
  for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < all; at += step) {
    const std::int64_t k = at % depth, point = at / depth;
    const std::int64_t i = point % padded_count, p = point / padded_count;
    const bool real = i < raw.count && k < raw.d;
    const T value = real ? scale * raw.data[p * raw.problem + i * raw.row + k] : T(0);
    by_point[at] = value;
    if (k < raw.d) by_coordinate[(p * raw.d + k) * padded_count + i] = value;
  }
}

// kappa |x_i|^2; a thread for a point.
template <class T>
__global__ void offsets(Raw<T> raw, double kappa, bool squares, double* out) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < raw.problems * raw.count;
       at += step) {
    const T* const point = raw.data + at / raw.count * raw.problem + at % raw.count * raw.row;
    double sum = 0;
    for (std::int64_t k = 0; k < raw.d && squares; ++k)
      sum += static_cast<double>(point[k]) * static_cast<double>(point[k]);
    out[at] = squares ? kappa * sum : kappa;
  }
}

// The largest |x| of each problem as the bits of a float, which are in the order of the numbers; from 0 on.
__global__ void find_largest(Raw<float> raw, int side, int* bits) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t p = blockIdx.y; p < raw.problems; p += gridDim.y) {
    float most = 0;
    for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < raw.count * raw.d;
         at += step)
      most = fmaxf(most, fabsf(raw.data[p * raw.problem + at / raw.d * raw.row + at % raw.d]));
    for (int lanes = 16; lanes > 0; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(~0U, most, lanes));
    if (threadIdx.x % 32 == 0) atomicMax(bits + 2 * p + side, __float_as_int(most));
  }
}

// x 2^e as the sum of two float16: 22 bits.
__global__ void split(Raw<float> raw, double scale, std::int64_t padded_count, std::int64_t depth, const int* largest,
                      int side, std::uint16_t* parts) {
  const int width = half_width(raw.d);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  const std::int64_t all = raw.problems * padded_count * depth;
  for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < all; at += step) {
    const std::int64_t k = at % depth, point = at / depth;
    const std::int64_t i = point % padded_count, p = point / padded_count;
    const bool real = i < raw.count && k < raw.d;
    const double value = real ? static_cast<double>(raw.data[p * raw.problem + i * raw.row + k]) : 0.0;
    const double scaled = ldexp(scale * value, half_exponent(largest[2 * p + side], scale));
    const __half upper = __float2half_rn(static_cast<float>(scaled));
    const __half lower = __float2half_rn(static_cast<float>(scaled - static_cast<double>(__half2float(upper))));
    const std::int64_t chunk = point / kPage * (depth / width) + k / width;
    std::uint16_t* const to = parts + chunk * 2 * kPage * width +
                              half_place(static_cast<int>(point % kPage), static_cast<int>(k % width), width);
    to[0] = __half_as_ushort(upper);
    to[kPage * width] = __half_as_ushort(lower);
  }
}

// The power of two that shares `scale` out: x 2^-e and scale y 2^e. A unit of x and one of y are then as far from the
// smallest numbers of float16, whatever else the other side has; only what would not fit moves it.
__device__ __forceinline__ int balance(const int* largest, double scale) {
  constexpr int kMostExponent = 14;
  const double x = static_cast<double>(__int_as_float(largest[0])),
               y = scale * static_cast<double>(__int_as_float(largest[1]));
  int e = -ilogb(scale) / 2;
  if (y > 0 && y < INFINITY) e = min(e, kMostExponent - ilogb(y));
  if (x > 0 && x < INFINITY) e = max(e, ilogb(x) - kMostExponent);
  return e;
}

// Coordinate x of a short point, times scale 2^exponent, as two float16; NaN where it is infinite.
struct Parts {
  __half upper, lower;

  __device__ __forceinline__ Parts(float x, double scale, int exponent) {
    const double scaled = isfinite(x) ? ldexp(scale * static_cast<double>(x), exponent) : NAN;
    upper = half_within(static_cast<float>(scaled));
    lower = half_within(static_cast<float>(scaled - static_cast<double>(__half2float(upper))));
  }
  __device__ __forceinline__ double sum() const {
    return static_cast<double>(__half2float(upper)) + static_cast<double>(__half2float(lower));
  }
};

// Words of short points, a thread for one. Those of G and shift begin as nothing.
__global__ void make_words(Raw<float> raw, double scale, std::int64_t padded_count, const int* largest, bool columns,
                           std::uint32_t* words) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  const int d = static_cast<int>(raw.d), steps = short_steps(d), each = short_words(steps);
  const std::int64_t all = raw.problems * padded_count * each;
  for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < all; at += step) {
    const int word = static_cast<int>(at % each);
    const std::int64_t point = at / each, i = point % padded_count, p = point / padded_count;
    const int exponent = balance(largest + 2 * p, scale);
    const bool lesser = word >= lesser_word(steps);
    std::uint32_t both = 0;
    for (int half = 0; half < 2; ++half) {
      const int k = lesser ? word - lesser_word(steps) : 2 * word + half;
      __half value = __float2half_rn(0);
      if (!lesser && word >= G_word(steps)) {
        if (word == (columns ? shift_word(steps) : G_word(steps))) value = __float2half_rn(kPotentialUnit);
      } else if (i < raw.count && k < d) {
        const Parts parts(raw.data[p * raw.problem + i * raw.row + k], columns ? scale : 1,
                          columns ? exponent : -exponent);
        // Upper, lower of the rows meet lower, upper of the columns.
        value = lesser && half == (columns ? 0 : 1) ? parts.lower : parts.upper;
      }
      both |= static_cast<std::uint32_t>(__half_as_ushort(value)) << 16 * half;
    }
    words[p * padded_count * each + word_place(i, word, steps)] = both;
  }
}

// kappa |x_i|^2 of short points; a thread for a point. Of the numbers that the words hold, so that exponents are those
// of slightly other points: an error of x counts times |x - y| then, not times |y|.
__global__ void short_offsets(Raw<float> raw, double kappa, const int* largest, bool columns, double* out) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < raw.problems * raw.count;
       at += step) {
    const std::int64_t p = at / raw.count;
    const float* const point = raw.data + p * raw.problem + at % raw.count * raw.row;
    const int exponent = balance(largest + 2 * p, 2 * kappa);
    double sum = 0;
    for (std::int64_t k = 0; k < raw.d; ++k) {
      const Parts parts(point[k], columns ? 2 * kappa : 1, columns ? exponent : -exponent);
      const double x = ldexp(parts.sum(), columns ? -exponent : exponent);
      sum += x * x;
    }
    out[at] = sum * (columns ? 0.25 / kappa : kappa);
  }
}

template <class T>
Raw<T> raw_x(const Batch<T>& cost) {
  return {cost.x, cost.x_problem, cost.x_row, cost.problems, cost.n, cost.d};
}
template <class T>
Raw<T> raw_y(const Batch<T>& cost) {
  return {cost.y, cost.y_problem, cost.y_row, cost.problems, cost.m, cost.d};
}

template <class T>
void make(const Execution& exec, const Points<T>& points, const Batch<T>& cost, double kappa) {
  const PointForm form = point_form(cost.kind);
  const double scale = form != PointForm::product ? 1 : cost.kind == CostKind::sqeuclidean ? 2 * kappa : kappa;
  const auto side = [&](const Side<T>& side, const Raw<T>& raw, double factor, int which) {
    const std::int64_t all = raw.problems * side.padded_count;
    if constexpr (sizeof(T) == 4) {
      const bool few = short_points(cost);
      if (few || by_tensor_cores<T>(cost.kind, cost.d)) {
        const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>(raw.count * raw.d >> 12, 1, 512)),
                        static_cast<unsigned>(std::min(raw.problems, kMostBlocks)));
        find_largest<<<grid, kThreads, 0, stream(exec)>>>(raw, which, points.largest);
        QUADRIC_CUDA_LAUNCHED();
        if (few) return;
        split<<<blocks_for(all * points.half_depth), kThreads, 0, stream(exec)>>>(
            raw, factor, side.padded_count, points.half_depth, points.largest, which,
            const_cast<std::uint16_t*>(side.parts));
        QUADRIC_CUDA_LAUNCHED();
        return;
      }
    }
    lay_out<T><<<blocks_for(all * points.depth), kThreads, 0, stream(exec)>>>(
        raw, static_cast<T>(factor), side.padded_count, points.depth, const_cast<T*>(side.by_point),
        const_cast<T*>(side.by_coordinate));
    QUADRIC_CUDA_LAUNCHED();
  };
  if (points.largest != nullptr)
    QUADRIC_CUDA(cudaMemsetAsync(points.largest, 0, 2 * cost.problems * sizeof(int), stream(exec)));
  side(points.x, raw_x(cost), 1, 0);
  side(points.y, raw_y(cost), scale, 1);
  if constexpr (sizeof(T) == 4) {
    if (short_points(cost)) {
      const auto words = [&](const Side<T>& side, const Raw<T>& raw, bool columns) {
        const std::int64_t all = raw.problems * side.padded_count * short_words(short_steps(cost.d));
        make_words<<<blocks_for(all), kThreads, 0, stream(exec)>>>(raw, scale, side.padded_count, points.largest,
                                                                   columns, side.words);
        QUADRIC_CUDA_LAUNCHED();
      };
      words(points.x, raw_x(cost), false);
      words(points.y, raw_y(cost), true);
      QUADRIC_CUDA(
          cudaMemsetAsync(points.arrived, 0, cost.problems * short_blocks(cost.n) * sizeof(int), stream(exec)));
      if (cost.kind == CostKind::sqeuclidean) {
        const auto square = [&](const Raw<T>& raw, bool columns, double* out) {
          short_offsets<<<blocks_for(raw.problems * raw.count), kThreads, 0, stream(exec)>>>(raw, kappa, points.largest,
                                                                                             columns, out);
          QUADRIC_CUDA_LAUNCHED();
        };
        square(raw_x(cost), false, points.row_offset);
        square(raw_y(cost), true, points.column_offset);
        return;
      }
    }
  }
  const bool squares = cost.kind == CostKind::sqeuclidean;
  if (form == PointForm::product) {
    offsets<T><<<blocks_for(cost.problems * cost.n), kThreads, 0, stream(exec)>>>(raw_x(cost), kappa, squares,
                                                                                  points.row_offset);
    QUADRIC_CUDA_LAUNCHED();
  }
  if (squares) {
    offsets<T><<<blocks_for(cost.problems * cost.m), kThreads, 0, stream(exec)>>>(raw_y(cost), kappa, squares,
                                                                                  points.column_offset);
    QUADRIC_CUDA_LAUNCHED();
  }
}

}  // namespace

template <class T>
PointPlan plan_points(const Execution& exec, Scratch& scratch, const Batch<T>& cost, double kappa) {
  QUADRIC_REQUIRE(cost.d < (std::int64_t{1} << 31), "x and y must have fewer than 2^31 coordinates");
  void* const memory = scratch.get<char>(points_at<T>(nullptr, cost).bytes);
  const Points<T> points = points_at<T>(memory, cost);
  make(exec, points, cost, kappa);
  PointPlan plan;
  if constexpr (sizeof(T) == 4) {
    if (short_points(cost))
      plan.slots = points_short_slots(cost);
    else if (by_tensor_cores<T>(cost.kind, cost.d))
      plan.slots = points_tensor_slots(cost);
  }
  plan.row_offset = points.row_offset;
  plan.column_offset = points.column_offset;
  plan.work = memory;
  return plan;
}

template <class T>
void points_pass(const Execution& exec, const PointPlan& plan, const Pass<T>& pass) {
  const Points<T> points = points_at<T>(plan.work, pass.cost);
  if constexpr (sizeof(T) == 4) {
    if (short_points(pass.cost)) return points_short(exec, points, pass);
    if (by_tensor_cores<T>(pass.cost.kind, pass.cost.d)) return points_tensor(exec, points, pass);
  }
  points_twice(exec, points, pass);
}

#define QUADRIC_INSTANTIATE(T)                                                            \
  template PointPlan plan_points<T>(const Execution&, Scratch&, const Batch<T>&, double); \
  template void points_pass<T>(const Execution&, const PointPlan&, const Pass<T>&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::transport
