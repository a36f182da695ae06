// A pass from points with two evaluations of each pair: the sums of the rows, then those of the columns with the
// rows' new potentials. Any number of coordinates, float32 and float64, every distance; the same operations in the same
// order both times, so that both see the same e.
//
// The two kernels are one template: "own" is the side whose sums are made, "other" the one that is summed over. A warp
// owns kOwn points, whose coordinates stay in registers; its lanes walk over the others, which lie by coordinate, so
// that a load is used kOwn times. `parts` warps of a block share the others of the same own points.
//
// Floors, n = m: d = 3 float32 6 + 6 operations and 2 exponentials, which are at 16 per cycle and multiprocessor:
// 48 us for n = 10 000, 1.2 ms for 50 000. Float64: 2 (d + 18) operations at 30 TFLOP/s / 2: 0.28 ms for n = 10 000.
#include "require.hpp"
#include "transport/points.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kWarps = 8;
constexpr std::int64_t kRun = 64;  // steps that are added in T before they join double sums

template <class T>
inline constexpr int kOwn = sizeof(T) == 4 ? 8 : 4;

// Where the sums of one side come from.
template <class T>
struct Sums {
  Side<T> own, other;
  std::int64_t depth, d;
  int parts;
  T factor;  // of distances
  T* u;
  T* shift;
};

// One warp's points and what it knows of them.
template <class T, PointForm form, int D, bool rows>
struct Own {
  static constexpr int R = kOwn<T>, C = D == 0 ? 2 : 1;  // C: others that a lane works on at once
  static_assert(kPad % (32 * C) == 0, "");

  const T* coordinates[R];
  T near[R][D > 0 ? D : 1];
  T value[R];  // rows: shift; columns: G
  const T* other;
  const T* other_value;  // rows: G; columns: shift
  const T* weight;
  std::int64_t stride, steps;
  int d;
  T factor;

  // Where this lane's others from a step on are: the rest of an index fits an int, so that few operations find it.
  struct Place {
    const T* coordinates[D > 0 ? D : 1];
    const T *value, *weight;
  };
  __device__ __forceinline__ Place place(std::int64_t step) const {
    const std::int64_t j = step * 32 * C + threadIdx.x % 32;
    Place at;
#pragma unroll
    for (int k = 0; k < (D > 0 ? D : 1); ++k) at.coordinates[k] = other + k * stride + j;
    at.value = other_value + j;
    at.weight = weight + j;
    return at;
  }

  // t of own points and others j + 32 c.
  __device__ __forceinline__ void exponents(const Place& at, int j, T (&t)[R][C]) const {
    T G[C];
#pragma unroll
    for (int c = 0; c < C; ++c) G[c] = rows ? at.value[j + 32 * c] : T(0);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) t[r][c] = first<form>(rows ? G[c] : value[r]);
    if constexpr (D > 0) {
#pragma unroll
      for (int k = 0; k < D; ++k) {
        const T y = at.coordinates[k][j];
#pragma unroll
        for (int r = 0; r < R; ++r) t[r][0] = add_coordinate<form>(t[r][0], near[r][k], y);
      }
    } else {
      for (int k = 0; k < d; k += 4) {  // coordinates from d on are zero on the own side
        T y[4][C];
#pragma unroll
        for (int l = 0; l < 4; ++l)
#pragma unroll
          for (int c = 0; c < C; ++c) y[l][c] = k + l < d ? at.coordinates[0][(k + l) * stride + j + 32 * c] : T(0);
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int l = 0; l < 4; ++l) {
            const T x = coordinates[r][k + l];
#pragma unroll
            for (int c = 0; c < C; ++c) t[r][c] = add_coordinate<form>(t[r][c], x, y[l][c]);
          }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) t[r][c] = exponent<form>(t[r][c], rows ? G[c] : value[r], factor);
  }

  // This lane's share of the largest t.
  __device__ __forceinline__ void largest(int part, int parts, double (&result)[R]) const {
    T most[R];
#pragma unroll
    for (int r = 0; r < R; ++r) most[r] = -static_cast<T>(INFINITY);
    for (std::int64_t step = part; step < steps; step += parts) {
      T t[R][C];
      exponents(place(step), 0, t);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int c = 0; c < C; ++c) most[r] = fmax(most[r], t[r][c]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) result[r] = static_cast<double>(most[r]);
  }

  // This lane's share of sum e weight.
  __device__ __forceinline__ void sums(int part, int parts, double (&result)[R]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) result[r] = 0;
    for (std::int64_t begin = 0; begin < steps; begin += kRun * parts) {
      // The warps of a block stay together, so that the level-1 cache has for the others what one has loaded.
      if (begin > 0) __syncthreads();
      T sum[R] = {};
      const std::int64_t left = (steps - begin - part + parts - 1) / parts;
      const int count = static_cast<int>(left < kRun ? left : kRun), stride_of_steps = 32 * C * parts;
      const Place at = place(begin + part);
#pragma unroll 2
      for (int step = 0, j = 0; step < count; ++step, j += stride_of_steps) {
        T t[R][C];
        exponents(at, j, t);
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const T w = at.weight[j + 32 * c];
          const T shift = rows ? T(0) : at.value[j + 32 * c];
#pragma unroll
          for (int r = 0; r < R; ++r) sum[r] = fma(power(t[r][c], rows ? value[r] : shift), w, sum[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) result[r] += static_cast<double>(sum[r]);
    }
  }
};

// What `parts` consecutive warps found, in all their lanes. The whole block comes here.
template <int R, bool most>
__device__ __forceinline__ void combine(double (&value)[R], int parts, double (*shared)[R]) {
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const double there = __shfl_xor_sync(~0U, value[r], lanes);
      value[r] = most ? fmax(value[r], there) : value[r] + there;
    }
  const int warp = threadIdx.x / 32, begin = warp / parts * parts;
  __syncthreads();  // what was there before has been read
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int r = 0; r < R; ++r) shared[warp][r] = value[r];
  __syncthreads();
#pragma unroll
  for (int r = 0; r < R; ++r) {
    value[r] = shared[begin][r];
    for (int part = 1; part < parts; ++part)
      value[r] = most ? fmax(value[r], shared[begin + part][r]) : value[r] + shared[begin + part][r];
  }
}

template <class T, PointForm form, int D, bool rows>
__global__ void __launch_bounds__(kWarps * 32)
    sum_side(const __grid_constant__ Pass<T> pass, const __grid_constant__ Sums<T> sums) {
  using Points = Own<T, form, D, rows>;
  constexpr int R = Points::R;
  __shared__ double shared[kWarps][R];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % sums.parts;
  const std::int64_t own_point =
      (static_cast<std::int64_t>(blockIdx.x) * (kWarps / sums.parts) + warp / sums.parts) * R;
  for (std::int64_t p = blockIdx.y; p < pass.cost.problems; p += gridDim.y) {
    const Flags flags = pass.flags[p];
    if (!flags.active) continue;
    const bool rebase = flags.rebase;
    const T* const G = pass.G + (p * 4 + flags.slot) * pass.width;
    Points points;
    points.other = sums.other.by_coordinate + p * sums.d * sums.other.padded_count;
    points.stride = sums.other.padded_count;
    points.steps = sums.other.padded_count / (32 * Points::C);
    points.d = static_cast<int>(sums.d);
    points.factor = sums.factor;
    points.other_value = rows ? G : sums.shift + p * sums.other.padded_count;
    points.weight = rows ? pass.weight + (p * 4 + flags.slot) * pass.width : sums.u + p * sums.other.padded_count;
#pragma unroll
    for (int r = 0; r < R; ++r) {  // points beyond the last repeat it
      const std::int64_t i = own_point + r < sums.own.count ? own_point + r : sums.own.count - 1;
      points.coordinates[r] = sums.own.by_point + (p * sums.own.padded_count + i) * sums.depth;
#pragma unroll
      for (int k = 0; k < D; ++k) points.near[r][k] = points.coordinates[r][k];
      points.value[r] = rows ? pass.shift[p * sums.own.count + i] : G[i];
    }
    double total[R];
    if constexpr (rows) {
      const auto shift_to_largest = [&](unsigned which) {
        double most[R];
        points.largest(part, sums.parts, most);
        combine<R, true>(most, sums.parts, shared);
#pragma unroll
        for (int r = 0; r < R; ++r)
          if (which >> r & 1U) points.value[r] = static_cast<T>(-rint(most[r]));
      };
      if (rebase) shift_to_largest(~0U);
      points.sums(part, sums.parts, total);
      combine<R, false>(total, sums.parts, shared);
      unsigned bad = 0;
#pragma unroll
      for (int r = 0; r < R; ++r) bad |= outside<T>(total[r]) ? 1U << r : 0U;
      if (!rebase && __syncthreads_or(static_cast<int>(bad))) {
        shift_to_largest(bad);
        points.sums(part, sums.parts, total);
        combine<R, false>(total, sums.parts, shared);
      }
      double sum = 0;
      T shift = 0;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r != lane) continue;
        sum = total[r];
        shift = points.value[r];
      }
      const std::int64_t i = own_point + lane;
      if (part == 0 && lane < R && i < sums.own.padded_count) {
        const bool real = i < sums.own.count;
        sums.u[p * sums.own.padded_count + i] = real ? relax_row(pass, p, i, sum, shift, rebase) : T(0);
        sums.shift[p * sums.own.padded_count + i] = real ? shift : -static_cast<T>(INFINITY);
      }
    } else {
      points.sums(part, sums.parts, total);
      combine<R, false>(total, sums.parts, shared);
      double sum = 0;
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (r == lane) sum = total[r];
      const std::int64_t j = own_point + lane;
      if (part == 0 && lane < R && j < sums.own.count)
        pass.partial[p * pass.slots * pass.width + j] = static_cast<T>(sum);
    }
  }
}

// How many warps share the same own points: so many that blocks fill the device, by the shape alone.
int parts_for(std::int64_t problems, std::int64_t own, int at_once, std::int64_t steps) {
  int parts = 1;
  while (parts < kWarps && 2 * parts <= steps && problems * own * parts < std::int64_t{at_once} * kWarps * 132 * 8)
    parts *= 2;
  return parts;
}

template <class T, PointForm form, int D>
void launch(const Execution& exec, const Points<T>& points, const Pass<T>& pass) {
  const auto run = [&](auto kernel, const Side<T>& own, const Side<T>& other) {
    Sums<T> sums = {own, other, points.depth, pass.cost.d, 1, static_cast<T>(-pass.kappa), points.u, points.shift};
    sums.parts = parts_for(pass.cost.problems, own.count, kOwn<T>, other.padded_count / 64);
    const std::int64_t at_once = kOwn<T> * (kWarps / sums.parts);
    // The rows' kernel also writes what the columns' reads beyond the last row.
    const std::int64_t blocks = (own.padded_count + at_once - 1) / at_once;
    QUADRIC_REQUIRE(blocks < (std::int64_t{1} << 31), "x or y has too many points");
    const dim3 grid(static_cast<unsigned>(blocks),
                    static_cast<unsigned>(std::min<std::int64_t>(pass.cost.problems, 65535)));
    kernel<<<grid, kWarps * 32, 0, stream(exec)>>>(pass, sums);
    QUADRIC_CUDA_LAUNCHED();
  };
  run(sum_side<T, form, D, true>, points.x, points.y);
  run(sum_side<T, form, D, false>, points.y, points.x);
}

template <class T, PointForm form>
void launch(const Execution& exec, const Points<T>& points, const Pass<T>& pass) {
  switch (pass.cost.d) {
    case 1:
      return launch<T, form, 1>(exec, points, pass);
    case 2:
      return launch<T, form, 2>(exec, points, pass);
    case 3:
      return launch<T, form, 3>(exec, points, pass);
    case 4:
      return launch<T, form, 4>(exec, points, pass);
    case 8:
      return launch<T, form, 8>(exec, points, pass);
    default:
      return launch<T, form, 0>(exec, points, pass);
  }
}

}  // namespace

template <class T>
void points_twice(const Execution& exec, const Points<T>& points, const Pass<T>& pass) {
  switch (point_form(pass.cost.kind)) {
    case PointForm::product:
      return launch<T, PointForm::product>(exec, points, pass);
    case PointForm::taxicab:
      return launch<T, PointForm::taxicab>(exec, points, pass);
    default:
      return launch<T, PointForm::euclidean>(exec, points, pass);
  }
}
template void points_twice<float>(const Execution&, const Points<float>&, const Pass<float>&);
template void points_twice<double>(const Execution&, const Points<double>&, const Pass<double>&);

}  // namespace quadric::cuda::transport
