// Dense algebra of one small matrix by a team of W warps, in float64 on the tensor cores.
//
// Everything is cut into tiles of 8 x 8, each stored by rows: lane 4 r + q keeps (r, 2 q) and (r, 2 q + 1), one access
// of 16 bytes without a bank conflict. That is how the tensor cores return a tile, and, if the columns are taken in the
// order 0 2 4 6 1 3 5 7, also how they want both factors of a b^T. So all algorithms here are written in products
// a b^T and in substitutions from the right, x L^-T, whose rows lie in four lanes each: no tile is ever transposed.
//
// Symmetric and triangular matrices hold their lower tiles by rows: tile (i, j) at 64 (i (i + 1) / 2 + j). A factor has
// reciprocals on its diagonal and zeros above it. Matrices are padded with rows of an identity to n tiles.
#pragma once

#include <cfloat>
#include <cstdint>

#include "woodbury/warp.cuh"

namespace quadric::cuda::woodbury {

constexpr int kTileSize = 64;
constexpr int kOwn = 4;  // tiles of a column that a warp takes: n <= kOwn W

__host__ __device__ constexpr int triangle(int n) { return n * (n + 1) / 2; }
__host__ __device__ constexpr int lower(int i, int j) { return kTileSize * (triangle(i) + j); }

template <int W>
struct Team {
  static constexpr int kThreads = 32 * W;
  int warp, lane, thread;

  __device__ void sync() const {
    if constexpr (W == 1)
      __syncwarp();
    else
      __syncthreads();
  }
};

using Pair = double[2];

// The lane's entries of a tile.
__device__ inline double2 read(const double* tile, int lane) {
  return *reinterpret_cast<const double2*>(tile + 2 * lane);
}
__device__ inline void write(double* tile, int lane, double x, double y) {
  *reinterpret_cast<double2*>(tile + 2 * lane) = {x, y};
}

// d += a b^T, d -= a b^T
__device__ inline void add_product(Pair& d, double2 a, double2 b) {
  mma(d, a.x, b.x);
  mma(d, a.y, b.y);
}
__device__ inline void subtract_product(Pair& d, double2 a, double2 b) {
  mma(d, -a.x, b.x);
  mma(d, -a.y, b.y);
}

// Column u = 2 h + t of the substitution x L^-T, where the lane has entries (2 q, u) and (2 q + 1, u) of L.
__device__ inline void eliminate(Pair& x, int h, int t, int lane, double reciprocal, const Pair& column) {
  const int q = lane % 4, u = 2 * h + t;
  const double solved = __shfl_sync(kAll, x[t], lane - q + h) * reciprocal;
  if (2 * q > u) x[0] -= solved * column[0];
  if (2 * q + 1 > u) x[1] -= solved * column[1];
  if (q == h) x[t] = solved;
}

// x L^-T for tiles x and a tile L of a factor.
template <int Count>
__device__ inline void substitute(double2 L, Pair (&x)[Count], int lane) {
#pragma unroll 1
  for (int h = 0; h < 4; ++h) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const double entry = t == 0 ? L.x : L.y;
      const double reciprocal = __shfl_sync(kAll, entry, 4 * (2 * h + t) + h);
      const Pair column = {__shfl_sync(kAll, entry, 8 * (lane % 4) + h),
                           __shfl_sync(kAll, entry, 8 * (lane % 4) + 4 + h)};
#pragma unroll
      for (int k = 0; k < Count; ++k) eliminate(x[k], h, t, lane, reciprocal, column);
    }
  }
}

// A = L L^T in place. Returns -1, or the first pivot that is not positive and finite; it then counts as 1.
template <int W>
__device__ int factor(const Team<W>& team, double* a, int n) {
  const int lane = team.lane, r = lane / 4, q = lane % 4;
  int failed = -1;
  for (int j = 0; j < n; ++j) {
    // Every warp has the diagonal tile and up to kOwn tiles below it, from the left all at once.
    Pair diagonal, x[kOwn] = {};
    const double2 d = read(a + lower(j, j), lane);
    diagonal[0] = d.x;
    diagonal[1] = d.y;
    const int first = j + 1 + team.warp;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      if (first + k * W >= n) continue;
      const double2 t = read(a + lower(first + k * W, j), lane);
      x[k][0] = t.x;
      x[k][1] = t.y;
    }
    for (int c = 0; c < j; ++c) {
      const double2 b = read(a + lower(j, c), lane);
      subtract_product(diagonal, b, b);
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        if (first + k * W < n) subtract_product(x[k], read(a + lower(first + k * W, c), lane), b);
    }
#pragma unroll 1
    for (int h = 0; h < 4; ++h) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int u = 2 * h + t;
        double pivot = __shfl_sync(kAll, diagonal[t], 4 * u + h);
        if (!(pivot > 0 && pivot <= DBL_MAX)) {
          if (failed < 0) failed = 8 * j + u;
          pivot = 1;
        }
        const double reciprocal = rsqrt(pivot);
        const Pair column = {__shfl_sync(kAll, diagonal[t], 8 * q + h) * reciprocal,
                             __shfl_sync(kAll, diagonal[t], 8 * q + 4 + h) * reciprocal};
        eliminate(diagonal, h, t, lane, reciprocal, column);
        if (r == u && q == h) diagonal[t] = reciprocal;
#pragma unroll
        for (int k = 0; k < kOwn; ++k) eliminate(x[k], h, t, lane, reciprocal, column);
      }
    }
    team.sync();  // the others have read their tiles of this column
#pragma unroll
    for (int k = 0; k < kOwn; ++k)
      if (first + k * W < n) write(a + lower(first + k * W, j), lane, x[k][0], x[k][1]);
    if (team.warp == 0)
      write(a + lower(j, j), lane, 2 * q <= r ? diagonal[0] : 0.0, 2 * q + 1 <= r ? diagonal[1] : 0.0);
    team.sync();
  }
  return failed;
}

// L becomes M = L^-1 in place, each tile transposed: with N = M^T, slot (i, j) holds tile (j, i) of N,
//   N(j, i) = (I(j, i) - sum_{j <= k < i} N(j, k) L(i, k)^T) L(i, i)^-T.
template <int W>
__device__ void invert(const Team<W>& team, double* a, int n) {
  const int lane = team.lane, r = lane / 4, q = lane % 4;
  for (int i = 0; i < n; ++i) {
    Pair x[kOwn] = {};
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      if (team.warp + k * W != i) continue;
      x[k][0] = 2 * q == r ? 1 : 0;
      x[k][1] = 2 * q + 1 == r ? 1 : 0;
    }
    for (int c = team.warp; c < i; ++c) {
      const double2 b = read(a + lower(i, c), lane);
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        if (team.warp + k * W <= c) subtract_product(x[k], read(a + lower(c, team.warp + k * W), lane), b);
    }
    substitute(read(a + lower(i, i), lane), x, lane);
    team.sync();  // row i of L has been read
#pragma unroll
    for (int k = 0; k < kOwn; ++k)
      if (team.warp + k * W <= i) write(a + lower(i, team.warp + k * W), lane, x[k][0], x[k][1]);
    team.sync();
  }
}

// v = L^-1 v and v = L^-T v for 8 n numbers, by one warp. A tile is solved by all lanes alike.
__device__ inline void forward(const double* a, int n, double* v, int lane) {
  for (int j = 0; j < n; ++j) {
    const double* const d = a + lower(j, j);
    double y[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) y[u] = v[8 * j + u];
#pragma unroll
    for (int u = 0; u < 8; ++u) {
      y[u] *= d[9 * u];
#pragma unroll
      for (int c = u + 1; c < 8; ++c) y[c] -= d[8 * c + u] * y[u];
    }
    __syncwarp();
#pragma unroll
    for (int u = 0; u < 8; ++u)
      if (lane == u) v[8 * j + u] = y[u];
    for (int i = 8 * (j + 1) + lane; i < 8 * n; i += 32) {
      const double* const row = a + lower(i / 8, j) + i % 8 * 8;
      double sum = v[i];
#pragma unroll
      for (int u = 0; u < 8; ++u) sum -= row[u] * y[u];
      v[i] = sum;
    }
    __syncwarp();
  }
}

__device__ inline void backward(const double* a, int n, double* v, int lane) {
  for (int i = n - 1; i >= 0; --i) {
    const double* const d = a + lower(i, i);
    double x[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) x[u] = v[8 * i + u];
#pragma unroll
    for (int u = 7; u >= 0; --u) {
      x[u] *= d[9 * u];
#pragma unroll
      for (int c = 0; c < u; ++c) x[c] -= d[8 * u + c] * x[u];
    }
    __syncwarp();
#pragma unroll
    for (int u = 0; u < 8; ++u)
      if (lane == u) v[8 * i + u] = x[u];
    for (int j = lane; j < 8 * i; j += 32) {
      const double* const column = a + lower(i, j / 8) + j % 8;
      double sum = v[j];
#pragma unroll
      for (int u = 0; u < 8; ++u) sum -= column[8 * u] * x[u];
      v[j] = sum;
    }
    __syncwarp();
  }
}

// ---- rectangular matrices: m x n tiles, tile (i, j) at 64 (i n + j) ------------------------------------------------

// Lower tiles of X X^T + shift I, with ones on the diagonal from row `rows` on.
template <int W>
__device__ void outer(const Team<W>& team, const double* x, int m, int n, int rows, double shift, double* a) {
  const int lane = team.lane, r = lane / 4, q = lane % 4;
  for (int j = 0; j < m; ++j) {
    Pair sum[kOwn] = {};
    const int first = j + team.warp;
    for (int c = 0; c < n; ++c) {
      const double2 b = read(x + kTileSize * (j * n + c), lane);
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        if (first + k * W < m) add_product(sum[k], read(x + kTileSize * ((first + k * W) * n + c), lane), b);
    }
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      if (first + k * W >= m) continue;
      if (first + k * W == j) {
        const double diagonal = 8 * j + r < rows ? shift : 1.0;
        if (2 * q == r) sum[k][0] += diagonal;
        if (2 * q + 1 == r) sum[k][1] += diagonal;
      }
      write(a + lower(first + k * W, j), lane, sum[k][0], sum[k][1]);
    }
  }
  team.sync();
}

// X becomes W = C^-1 X in place, each tile transposed: with V = W^T, slot (i, b) holds tile (b, i) of V,
//   V(b, i) = (X(i, b)^T - sum_{k < i} V(b, k) C(i, k)^T) C(i, i)^-T.
template <int W>
__device__ void forward_many(const Team<W>& team, const double* a, int m, double* x, int n) {
  const int lane = team.lane, r = lane / 4, q = lane % 4;
  for (int i = 0; i < m; ++i) {
    Pair v[kOwn] = {};
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int b = team.warp + k * W;
      if (b >= n) continue;
      const double* const tile = x + kTileSize * (i * n + b);
      v[k][0] = tile[8 * (2 * q) + r];
      v[k][1] = tile[8 * (2 * q + 1) + r];
    }
    for (int c = 0; c < i; ++c) {
      const double2 l = read(a + lower(i, c), lane);
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
        const int b = team.warp + k * W;
        if (b < n) subtract_product(v[k], read(x + kTileSize * (c * n + b), lane), l);
      }
    }
    substitute(read(a + lower(i, i), lane), v, lane);
    __syncwarp();  // columns of tiles belong to warps
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int b = team.warp + k * W;
      if (b < n) write(x + kTileSize * (i * n + b), lane, v[k][0], v[k][1]);
    }
  }
  team.sync();
}

}  // namespace quadric::cuda::woodbury
