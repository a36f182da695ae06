// Passes from points: what is made once for all passes, and which kernels do them.
//
// Floors of a pass over n m pairs, float32, d = 3, n = m = 50 000: one exponential each at 16 per cycle and
// multiprocessor, 0.6 ms to 0.68 ms. Two evaluations cost twice that, so that points_once.cu keeps the exponentials in
// registers from the sums of the rows to those of the columns where they fit; points_twice.cu takes the rest, and
// points_tensor.cu products of more than 8 coordinates.
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
      if (by_tensor_cores<T>(cost.kind, cost.d)) {
        const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>(raw.count * raw.d >> 12, 1, 512)),
                        static_cast<unsigned>(std::min(raw.problems, kMostBlocks)));
        find_largest<<<grid, kThreads, 0, stream(exec)>>>(raw, which, points.largest);
        QUADRIC_CUDA_LAUNCHED();
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
    if (points_once_fits(cost))
      plan.slots = points_once_slots(cost);
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
    if (points_once_fits(pass.cost)) return points_once(exec, points, pass);
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
