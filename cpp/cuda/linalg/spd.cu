// Batches of small symmetric positive definite matrices.
//
// Floor: bytes, n^2 in and n^2 out, up to n of about 30 in float32 (a million matrices of 16 x 16: 2 GB, 0.5 ms); above
// it n^3/6 multiply-adds for the factor and n^3/2 for the inverse at 30 T/s in float32 and 15 in float64 (1000 matrices
// of 256 in float64: 0.2 and 0.6 ms). The warp kernel should reach half the bandwidth. The block kernel reads two
// operands from shared memory for every two multiply-adds and waits at barriers: a fifth to a tenth of the rate.
#include <algorithm>
#include <cmath>
#include <limits>

#include "device.hpp"
#include "linalg/small.cuh"
#include "quadric/cuda/linalg.hpp"
#include "require.hpp"

namespace quadric::cuda::linalg {
namespace {

using small::kAllLanes;
using small::kTile;

constexpr int kLargest = 256;
constexpr int kWarps = 4;  // of a block of the warp kernel

// Everything that a kernel needs to know, by value.
template <class T>
struct Job {
  BatchView<const T> A, b;
  Spd what;
  T* out;
  double* logdet;
  std::int32_t* status;
  bool by_columns;  // the entries of a column of A lie closer together than those of a row
};

template <class T>
__device__ T not_a_number() {
  return std::numeric_limits<T>::quiet_NaN();
}

// The sum over a group of lanes, in every lane of it.
template <int Width>
__device__ double sum_over_lanes(double x) {
#pragma unroll
  for (int step = Width / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step, Width);
  return x;
}

// y <- (L L^T)^-1 y for every lane of a warp. L: N x N with rows N + 1 apart, the reciprocals of the diagonal in its
// last column.
template <int N, class T>
__device__ void solve_lane(const T* L, T (&y)[N]) {
  constexpr int ld = N + 1;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    y[i] *= L[i * ld + N];
#pragma unroll
    for (int j = i + 1; j < N; ++j) y[j] -= L[j * ld + i] * y[i];
  }
  __syncwarp();  // or the compiler would keep all of L for the way back
#pragma unroll
  for (int i = N - 1; i >= 0; --i) {
    y[i] *= L[i * ld + N];
#pragma unroll
    for (int j = 0; j < i; ++j) y[j] -= L[i * ld + j] * y[i];
  }
}

// n <= N: N lanes for a matrix, 32 / N matrices for a warp. Smaller ones are filled up with the identity.
template <int N, class T>
__global__ void __launch_bounds__(32 * kWarps, sizeof(T) == 4 ? 5 : 2) spd_warp(const Job<T> job) {
  constexpr int ld = N + 1, groups = 32 / N;
  __shared__ T memory[kWarps * groups * N * ld];
  const int n = static_cast<int>(job.A.rows), lane = static_cast<int>(threadIdx.x % N);
  T* const L = memory + threadIdx.x / N * (N * ld);
  const std::int64_t k = static_cast<std::int64_t>(blockIdx.x) * (kWarps * groups) + threadIdx.x / N;
  const bool present = k < job.A.count;

  if (present && lane < n) {
    const T* const A = job.A.data + k * job.A.stride;
    if (job.by_columns) {
      for (int j = 0; j < n; ++j)
        if (j <= lane) L[lane * ld + j] = A[lane * job.A.row_stride + j * job.A.col_stride];
    } else {
      for (int i = 0; i < n; ++i)
        if (lane <= i) L[i * ld + lane] = A[i * job.A.row_stride + lane * job.A.col_stride];
    }
  }
  __syncwarp();
  T a[N], reciprocal;
#pragma unroll
  for (int j = 0; j < N; ++j)
    a[j] = present && lane < n ? (j <= lane ? L[lane * ld + j] : T(0)) : (j == lane ? T(1) : T(0));
  const int failed = small::cholesky_rows<N, N>(a, lane, reciprocal);
  __syncwarp();
#pragma unroll
  for (int j = 0; j < N; ++j) L[lane * ld + j] = j <= lane ? a[j] : T(0);
  L[lane * ld + N] = reciprocal;
  __syncwarp();

  if (job.logdet != nullptr) {
    const double sum = sum_over_lanes<N>(std::log(static_cast<double>(L[lane * ld + lane])));
    if (present && lane == 0) job.logdet[k] = failed < 0 ? 2 * sum : not_a_number<double>();
  }
  if (present && lane == 0) job.status[k] = failed;

  if (job.what == Spd::inverse) {  // column `lane`
    T y[N];
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = i == lane ? T(1) : T(0);
    solve_lane<N>(L, y);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i >= lane) L[i * ld + lane] = y[i];
    __syncwarp();
  }
  if (job.what == Spd::solve) {
    const std::int64_t columns = job.b.cols;
    for (std::int64_t c0 = 0; c0 < columns; c0 += N) {
      __syncwarp();  // or the compiler would take all of L out of the loop, to registers that are not there
      const std::int64_t c = c0 + lane;
      const bool mine = present && c < columns;
      const T* const b = job.b.data + k * job.b.stride + c * job.b.col_stride;
      T y[N];
#pragma unroll
      for (int i = 0; i < N; ++i) y[i] = mine && i < n ? b[i * job.b.row_stride] : T(0);
      solve_lane<N>(L, y);
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (mine && i < n) job.out[(k * n + i) * columns + c] = failed < 0 ? y[i] : not_a_number<T>();
    }
    return;
  }
  if (!present || job.what == Spd::logdet) return;
  if (lane >= n) return;
  T* const out = job.out + k * n * n;
  for (int i = 0; i < n; ++i) {
    T value = lane <= i ? L[i * ld + lane] : job.what == Spd::inverse ? L[lane * ld + i] : T(0);
    if (failed >= 0) value = not_a_number<T>();
    out[i * n + lane] = value;
  }
}

// Numbers of shared memory besides the matrix: the work of an inversion and the reciprocals. The work comes first, so
// that four of its numbers lie together.
constexpr int extra(int n) { return kTile * (n + kTile) + n; }

// One block of threads for a matrix of 33 to 256 rows; blockDim.x >= n. The lower triangle is in shared memory, or,
// where it is larger than that, in `triangles`, one for each block (and so in L2).
template <class T, bool Shared>
__global__ void __launch_bounds__(kLargest) spd_block(const Job<T> job, T* triangles) {
  extern __shared__ double shared[];
  __shared__ int failed;
  const int n = static_cast<int>(job.A.rows), tid = static_cast<int>(threadIdx.x), lane = tid & 31, warp = tid >> 5,
            warps = static_cast<int>(blockDim.x) >> 5;
  T* const work = reinterpret_cast<T*>(shared);
  T* const reciprocal = work + kTile * (n + kTile);
  T* l;
  if constexpr (Shared)
    l = reciprocal + n;
  else
    l = triangles + blockIdx.x * static_cast<std::int64_t>(packed(n));

  for (std::int64_t k = blockIdx.x; k < job.A.count; k += gridDim.x) {
    const T* const A = job.A.data + k * job.A.stride;
    if (job.by_columns) {
      for (int j = warp; j < n; j += warps)
        for (int i = j + lane; i < n; i += 32) l[packed(i) + j] = A[i * job.A.row_stride + j * job.A.col_stride];
    } else {
      for (int i = warp; i < n; i += warps)
        for (int j = lane; j <= i; j += 32) l[packed(i) + j] = A[i * job.A.row_stride + j * job.A.col_stride];
    }
    if (tid == 0) failed = -1;
    __syncthreads();
    small::cholesky_block(l, n, reciprocal, &failed);
    if (tid == 0) job.status[k] = failed;
    if (job.logdet != nullptr && warp == 0) {
      double sum = 0;
      for (int i = lane; i < n; i += 32) sum += std::log(static_cast<double>(l[packed(i) + i]));
      sum = sum_over_lanes<32>(sum);
      if (lane == 0) job.logdet[k] = failed < 0 ? 2 * sum : not_a_number<double>();
    }

    if (job.what == Spd::solve) {
      const std::int64_t columns = job.b.cols;
      for (std::int64_t c = warp; c < columns; c += warps) {
        const T* const b = job.b.data + k * job.b.stride + c * job.b.col_stride;
        T y[kLargest / 32];
#pragma unroll
        for (int q = 0; q < kLargest / 32; ++q) y[q] = 32 * q + lane < n ? b[(32 * q + lane) * job.b.row_stride] : T(0);
        small::solve_warp(l, n, reciprocal, y);
#pragma unroll
        for (int q = 0; q < kLargest / 32; ++q)
          if (32 * q + lane < n) job.out[(k * n + 32 * q + lane) * columns + c] = failed < 0 ? y[q] : not_a_number<T>();
      }
    } else if (job.what != Spd::logdet) {
      if (job.what == Spd::inverse) {
        small::invert_block(l, n, reciprocal, work);
        small::product_block(l, n, work);
      }
      T* const out = job.out + k * n * n;
      for (int i = warp; i < n; i += warps) {
        for (int j = lane; j < n; j += 32) {
          T value = j <= i ? l[packed(i) + j] : job.what == Spd::inverse ? l[packed(j) + i] : T(0);
          if (failed >= 0) value = not_a_number<T>();
          out[i * n + j] = value;
        }
      }
    }
    __syncthreads();
  }
}

template <int N, class T>
void launch_warps(const Execution& exec, const Job<T>& job) {
  constexpr std::int64_t per_block = kWarps * (32 / N);
  spd_warp<N, T>
      <<<static_cast<unsigned>((job.A.count + per_block - 1) / per_block), 32 * kWarps, 0, stream(exec)>>>(job);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void launch_blocks(const Execution& exec, const Job<T>& job) {
  const int n = static_cast<int>(job.A.rows), threads = (n + 31) / 32 * 32;
  const int bytes = extra(n) * static_cast<int>(sizeof(T)), whole = bytes + packed(n) * static_cast<int>(sizeof(T));
  if (whole + 64 <= shared_limit()) {
    QUADRIC_CUDA(cudaFuncSetAttribute(spd_block<T, true>, cudaFuncAttributeMaxDynamicSharedMemorySize, whole));
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(job.A.count, 1 << 20));
    spd_block<T, true><<<blocks, threads, whole, stream(exec)>>>(job, nullptr);
  } else {
    Scratch scratch(exec);
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(job.A.count, 264));
    T* const triangles = scratch.get<T>(static_cast<std::int64_t>(blocks) * packed(n));
    spd_block<T, false><<<blocks, threads, bytes, stream(exec)>>>(job, triangles);
  }
  QUADRIC_CUDA_LAUNCHED();
}

}  // namespace

template <class T>
void spd(const Execution& exec, BatchView<const T> A, BatchView<const T> b, Spd what, T* out, double* logdet,
         std::int32_t* status) {
  const std::int64_t n = A.rows;
  QUADRIC_REQUIRE(A.cols == n, "A must hold square matrices");
  QUADRIC_REQUIRE(n >= 1 && n <= kLargest, "A must hold matrices of 1 to 256 rows");
  QUADRIC_REQUIRE(status != nullptr || A.count == 0, "status must be given");
  QUADRIC_REQUIRE(out != nullptr || what == Spd::logdet || A.count == 0, "out must be given");
  QUADRIC_REQUIRE(what != Spd::solve || (b.count == A.count && b.rows == n), "b must have as many rows as A");
  if (A.count == 0) return;
  const Job<T> job = {A, b, what, out, logdet, status, std::abs(A.row_stride) < std::abs(A.col_stride)};
  if (n <= 8) return launch_warps<8>(exec, job);
  if (n <= 16) return launch_warps<16>(exec, job);
  if (n <= 32) return launch_warps<32>(exec, job);
  launch_blocks(exec, job);
}

#define QUADRIC_INSTANTIATE(T)                                                                              \
  template QUADRIC_API void spd(const Execution&, BatchView<const T>, BatchView<const T>, Spd, T*, double*, \
                                std::int32_t*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::linalg
