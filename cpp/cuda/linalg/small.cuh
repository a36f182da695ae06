// Small symmetric positive definite matrices, by one warp or by one block of threads.
//
// A warp holds a matrix of N <= 32 rows in registers, one row in each lane. A block of threads works on a lower
// triangle by rows (entry (i, j) at packed(i) + j), in shared or in global memory: 32 rows that follow one another
// begin in different banks, so that a column is read with hardly a conflict. Sums have a fixed order.
#pragma once

#include <cuda_runtime.h>

#include <limits>

#include "linalg/triangle.cuh"

namespace quadric::cuda::small {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kPanel = 16;  // columns that are eliminated together
constexpr int kTile = 4;

template <class T>
__device__ bool good_pivot(T pivot) {
  return pivot > T(0) && pivot <= std::numeric_limits<T>::max();
}

// A = L L^T for the matrices of a warp's groups of Width lanes. a: row `lane` of A, entries j <= lane, 0 behind them;
// rows of the identity beyond the last. Becomes row `lane` of L (what stands behind the diagonal is of no use).
// reciprocal = 1 / L_lane,lane. Returns the first pivot that is not positive and finite, or -1; it then counts as 1.
template <int N, int Width, class T>
__device__ int cholesky_rows(T (&a)[N], int lane, T& reciprocal) {
  int failed = -1;
  reciprocal = T(1);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    T pivot = __shfl_sync(kAllLanes, a[k], k, Width);
    const bool good = good_pivot(pivot);
    if (!good && failed < 0) failed = k;
    pivot = good ? pivot : T(1);
    const T root = sqrt(pivot), scale = T(1) / root;
    if (lane == k) reciprocal = scale;
    const T l = lane == k ? root : a[k] * scale;
    a[k] = l;
#pragma unroll
    for (int j = k + 1; j < N; ++j) a[j] -= l * __shfl_sync(kAllLanes, l, j, Width);
  }
  return failed;
}

// A = L L^T in place. reciprocal[i] = 1 / L_ii. *failed, -1 at first, becomes the first pivot that is not positive and
// finite; it then counts as 1. Every thread of the block calls; before and after it a barrier has been passed.
template <class T>
__device__ void cholesky_block(T* a, int n, T* reciprocal, int* failed) {
  int first = -1;  // what lane 0 has written
  for (int k0 = 0; k0 < n; k0 += kPanel) {
    if (threadIdx.x < 32) {  // the block on the diagonal, in the registers of one warp
      const int lane = static_cast<int>(threadIdx.x), width = n - k0 < kPanel ? n - k0 : kPanel;
      T* const row = a + packed(k0 + lane) + k0;
      T x[kPanel], scale;
#pragma unroll
      for (int j = 0; j < kPanel; ++j) x[j] = lane < width ? (j <= lane ? row[j] : T(0)) : (j == lane ? T(1) : T(0));
      const int bad = cholesky_rows<kPanel, 32>(x, lane, scale);
      if (lane < width) {
#pragma unroll
        for (int j = 0; j < kPanel; ++j)
          if (j <= lane) row[j] = x[j];
        reciprocal[k0 + lane] = scale;
      }
      if (lane == 0 && bad >= 0 && first < 0) *failed = first = k0 + bad;
    }
    __syncthreads();
    const int next = k0 + kPanel;
    for (int i = next + static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
      T* const row = a + packed(i) + k0;
      T x[kPanel];
#pragma unroll
      for (int u = 0; u < kPanel; ++u) x[u] = row[u];
#pragma unroll
      for (int u = 0; u < kPanel; ++u) {
        x[u] *= reciprocal[k0 + u];
#pragma unroll
        for (int v = u + 1; v < kPanel; ++v) x[v] -= x[u] * a[packed(k0 + v) + k0 + u];
      }
#pragma unroll
      for (int u = 0; u < kPanel; ++u) row[u] = x[u];
    }
    __syncthreads();
    // What is right of the panel, by tiles. Rows beyond the last repeat it, and their sums are dropped.
    const int count = packed((n - next + kTile - 1) / kTile);
    for (int t = static_cast<int>(threadIdx.x); next < n && t < count; t += static_cast<int>(blockDim.x)) {
      const LowerEntry<int> tile = lower_entry<float>(t);
      const int i0 = next + tile.row * kTile, j0 = next + tile.column * kTile;
      const T *ri[kTile], *rj[kTile];
#pragma unroll
      for (int s = 0; s < kTile; ++s) {
        ri[s] = a + packed(i0 + s < n ? i0 + s : n - 1) + k0;
        rj[s] = a + packed(j0 + s < n ? j0 + s : n - 1) + k0;
      }
      T sum[kTile][kTile] = {};
#pragma unroll 4
      for (int k = 0; k < kPanel; ++k) {
        T x[kTile], y[kTile];
#pragma unroll
        for (int s = 0; s < kTile; ++s) {
          x[s] = ri[s][k];
          y[s] = rj[s][k];
        }
#pragma unroll
        for (int s = 0; s < kTile; ++s)
#pragma unroll
          for (int u = 0; u < kTile; ++u) sum[s][u] += x[s] * y[u];
      }
#pragma unroll
      for (int s = 0; s < kTile; ++s)
#pragma unroll
        for (int u = 0; u < kTile; ++u)
          if (i0 + s < n && j0 + u <= i0 + s) a[packed(i0 + s) + j0 + u] -= sum[s][u];
    }
    __syncthreads();
  }
}

// L becomes L^-1 in place: a thread for each column, so blockDim.x >= n. work: 4 (n + 3) numbers of shared memory.
template <class T>
__device__ void invert_block(T* l, int n, const T* reciprocal, T* work) {
  const int c = static_cast<int>(threadIdx.x);
  for (int i0 = 0; i0 < n; i0 += kTile) {
    const int rows = n - i0 < kTile ? n - i0 : kTile;
    if (c < i0 + rows) {  // four rows of L, entry (i0 + t, k) at 4 k + t: what replaces them is being written
#pragma unroll
      for (int t = 0; t < kTile; ++t) work[c * kTile + t] = t < rows && c <= i0 + t ? l[packed(i0 + t) + c] : T(0);
    }
    __syncthreads();
    if (c < i0 + rows) {
      T sum[kTile] = {};
#pragma unroll 4
      for (int k = c & ~31; k < i0; ++k) {
        const T m = k >= c ? l[packed(k) + c] : T(0);
#pragma unroll
        for (int t = 0; t < kTile; ++t) sum[t] += work[k * kTile + t] * m;
      }
      T x[kTile];
#pragma unroll
      for (int t = 0; t < kTile; ++t) {
        if (t < rows) {
          T rest = (c == i0 + t ? T(1) : T(0)) - sum[t];
#pragma unroll
          for (int u = 0; u < t; ++u) rest -= work[(i0 + u) * kTile + t] * x[u];
          x[t] = rest * reciprocal[i0 + t];
          if (c <= i0 + t) l[packed(i0 + t) + c] = x[t];
        }
      }
    }
    __syncthreads();
  }
}

// The lower triangle M = L^-1 becomes that of M^T M = A^-1 in place; blockDim.x and work as above.
template <class T>
__device__ void product_block(T* m, int n, T* work) {
  const int c = static_cast<int>(threadIdx.x);
  // Rows i0 and below alone enter rows i0 to i0 + 3 of the result, so they may take their place.
  for (int i0 = 0; i0 < n; i0 += kTile) {
    const int rows = n - i0 < kTile ? n - i0 : kTile, k0 = i0 + c;
    if (k0 < n) {
#pragma unroll
      for (int t = 0; t < kTile; ++t) work[k0 * kTile + t] = t < rows && k0 >= i0 + t ? m[packed(k0) + i0 + t] : T(0);
    }
    __syncthreads();
    T sum[kTile] = {};
    if (c < i0 + rows) {
#pragma unroll 4
      for (int k = i0; k < n; ++k) {
        const T mk = k >= c ? m[packed(k) + c] : T(0);
#pragma unroll
        for (int t = 0; t < kTile; ++t) sum[t] += work[k * kTile + t] * mk;
      }
    }
    __syncthreads();
    if (c < i0 + rows) {
#pragma unroll
      for (int t = 0; t < kTile; ++t)
        if (t < rows && c <= i0 + t) m[packed(i0 + t) + c] = sum[t];
    }
    __syncthreads();
  }
}

// y <- (L L^T)^-1 y by one warp, n <= 32 Parts: y[q] of a lane is entry 32 q + lane.
template <int Parts, class T>
__device__ void solve_warp(const T* l, int n, const T* reciprocal, T (&y)[Parts]) {
  const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int p = 0; p < Parts; ++p) {
    for (int i = 32 * p; i < n && i < 32 * p + 32; ++i) {
      const T yi = __shfl_sync(kAllLanes, y[p], i & 31) * reciprocal[i];
      if (lane == (i & 31)) y[p] = yi;
#pragma unroll
      for (int q = p; q < Parts; ++q) {
        const int j = 32 * q + lane;
        if (j > i && j < n) y[q] -= l[packed(j) + i] * yi;
      }
    }
  }
#pragma unroll
  for (int p = Parts - 1; p >= 0; --p) {
    for (int i = (n < 32 * p + 32 ? n : 32 * p + 32) - 1; i >= 32 * p; --i) {
      const T xi = __shfl_sync(kAllLanes, y[p], i & 31) * reciprocal[i];
      if (lane == (i & 31)) y[p] = xi;
#pragma unroll
      for (int q = 0; q <= p; ++q) {
        const int j = 32 * q + lane;
        if (j < i) y[q] -= l[packed(i) + j] * xi;
      }
    }
  }
}

}  // namespace quadric::cuda::small
