// One block of B weights in the memory of its team: F_b or, with m rows, X_b and K = m lambda I + X_b X_b^T; their
// factor, and what is asked of it.
#pragma once

#include <cstdint>

#include "quadric/woodbury.hpp"
#include "woodbury/tiles.cuh"

namespace quadric::cuda::woodbury {

using quadric::woodbury::kLanes;

// Doubles of a team's memory: the factor, X in the dual form, vectors, and what the task wants for itself.
struct Layout {
  int vector = 0;   // one vector: weights or rows, padded to tiles
  int rows = 0;     // where X begins
  int vectors = 0;  // where the vectors begin
  int extra = 0;    // where the task's own memory begins
  int total = 0;
};

struct Problem {
  const double* sums;
  const void* data;
  Storage storage;
  std::int64_t row_stride;
  int B, m;  // m rows in the dual form, else 0
  std::int64_t d, blocks;
  double shift, scale;  // F = scale sums + shift I; K = shift I + X X^T
  double inverse_damping;
  Layout at;
};

__device__ inline double stored_entry(const Problem& p, std::int64_t row, std::int64_t column) {
  const std::int64_t at = row * p.row_stride + column;
  switch (p.storage) {
    case Storage::float16:
      return widen(static_cast<const __half*>(p.data)[at]);
    case Storage::bfloat16:
      return widen(static_cast<const __nv_bfloat16*>(p.data)[at]);
    case Storage::float32:
      return widen(static_cast<const float*>(p.data)[at]);
    default:
      return static_cast<const double*>(p.data)[at];
  }
}

__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// One block of weights and its team.
template <int W>
struct Block {
  const Problem& p;
  Team<W> team;
  double* memory;
  std::int64_t b;
  int weights, rows;  // tiles of the block, and of the rows in the dual form
  int failed = -1;

  __device__ Block(const Problem& problem, const Team<W>& who, double* where, std::int64_t block)
      : p(problem), team(who), memory(where), b(block), weights((problem.B + 7) / 8), rows((problem.m + 7) / 8) {}

  __device__ bool primal() const { return p.m == 0; }
  __device__ int size() const { return primal() ? weights : rows; }  // tiles of the factor
  __device__ double* factored() const { return memory; }
  __device__ double* x() const { return memory + p.at.rows; }
  __device__ double* vector(int i) const { return memory + p.at.vectors + i * p.at.vector; }
  __device__ double* extra() const { return memory + p.at.extra; }
  __device__ std::int64_t begin() const { return b * p.B; }
  __device__ int live() const {  // weights
    const std::int64_t left = p.d - begin();
    return left < p.B ? static_cast<int>(left) : p.B;
  }
  __device__ double& entry(int row, int column) const {  // of X
    return x()[kTileSize * (row / 8 * weights + column / 8) + row % 8 * 8 + column % 8];
  }

  __device__ void load() {
    if (primal())
      load_sums();
    else
      load_rows();
    team.sync();
  }

  __device__ void load_sums() {
    constexpr int kBatch = 4;
    const int lane = team.lane, r = lane / 4, q = lane % 4, tiles = triangle(weights);
    const double* const sums = p.sums + b / kLanes * triangle(p.B) * kLanes + b % kLanes;
    int i = 0, j = team.warp;
    for (int tile = team.warp; tile < tiles; tile += kBatch * W) {
      double2 value[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        while (j > i) j -= ++i;
        const int row = 8 * i + r;
        double entries[2];
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          const int column = 8 * j + 2 * q + t;
          const bool inside = tile + k * W < tiles && row < p.B && column <= row;
          entries[t] = inside ? sums[static_cast<std::int64_t>(triangle(row) + column) * kLanes] * p.scale : 0.0;
          if (row == column) entries[t] = inside ? entries[t] + p.shift : 1.0;
        }
        value[k] = {entries[0], entries[1]};
        j += W;
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k)
        if (tile + k * W < tiles) write(factored() + kTileSize * (tile + k * W), lane, value[k].x, value[k].y);
    }
  }

  __device__ void load_rows() {
    constexpr int kBatch = 4;
    const int columns = live();
    for (int row = team.warp; row < 8 * rows; row += kBatch * W) {
      for (int column = team.lane; column < 8 * weights; column += 32) {
        double value[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k)
          value[k] = row + k * W < p.m && column < columns ? stored_entry(p, row + k * W, begin() + column) : 0.0;
#pragma unroll
        for (int k = 0; k < kBatch; ++k)
          if (row + k * W < 8 * rows) entry(row + k * W, column) = value[k];
      }
    }
  }

  __device__ void factorize() {
    if (!primal()) outer(team, x(), rows, weights, p.m, p.shift, factored());
    failed = factor(team, factored(), size());
  }

  // After `factorize`: prepares `product` and `inverse_entry`. The factor is lost in the primal form.
  __device__ void inverse() {
    if (primal())
      invert(team, factored(), weights);
    else
      forward_many(team, factored(), rows, x(), weights);
  }

  // With N = L^-T, F^-1 = N N^T; in the dual form F^-1 = (I - V V^T) / lambda. Tile (i, k) of N or V, k >= start(i):
  const __device__ double* half(int i, int k) const {
    return primal() ? factored() + lower(k, i) : x() + kTileSize * (k * weights + i);
  }
  __device__ int start(int i) const { return primal() ? i : 0; }
  __device__ double finish(double product, bool diagonal) const {
    return primal() ? product : ((diagonal ? 1.0 : 0.0) - product) * p.inverse_damping;
  }

  // Entry (i, j), j <= i, of F^-1.
  __device__ double inverse_entry(int i, int j) const {
    double sum = 0;
    for (int k = start(i / 8); k < size(); ++k) {
      const double *const a = half(i / 8, k) + i % 8 * 8, *const c = half(j / 8, k) + j % 8 * 8;
#pragma unroll
      for (int u = 0; u < 8; ++u) sum += a[u] * c[u];
    }
    return finish(sum, i == j);
  }

  // write(i, j, entry of F^-1) for all j <= i < B, by whole tiles.
  template <class Write>
  __device__ void product(const Write& write) const {
    const int lane = team.lane, r = lane / 4, q = lane % 4;
    for (int i = 0; i < weights; ++i) {
      Pair sum[kOwn] = {};
      for (int c = start(i); c < size(); ++c) {
        const double2 a = read(half(i, c), lane);
#pragma unroll
        for (int k = 0; k < kOwn; ++k)
          if (team.warp + k * W <= i) add_product(sum[k], a, read(half(team.warp + k * W, c), lane));
      }
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          const int row = 8 * i + r, column = 8 * (team.warp + k * W) + 2 * q + t;
          if (row < p.B && column <= row) write(row, column, finish(sum[k][t], row == column));
        }
      }
    }
  }

  // ---- vectors: 8 tiles() numbers each, zero beyond the block; by threads [first, first + count) of the team --------

  // s = X v and z = X^T s.
  __device__ void multiply(const double* v, double* s, int thread, int threads) const {
    for (int row = thread; row < 8 * rows; row += threads) {
      double sum = 0;
      for (int c = 0; c < 8 * weights; ++c) sum += entry(row, c) * v[c];
      s[row] = sum;
    }
  }
  __device__ void multiply_transposed(const double* s, double* z, int thread, int threads) const {
    for (int column = thread; column < 8 * weights; column += threads) {
      double sum = 0;
      for (int row = 0; row < 8 * rows; ++row) sum += entry(row, column) * s[row];
      z[column] = sum;
    }
  }

  // v = (L L^T)^-1 v, by one warp.
  __device__ void solve_factored(double* v) const {
    forward(factored(), size(), v, team.lane);
    backward(factored(), size(), v, team.lane);
  }

  // v = F^-1 v after `factorize`, by one warp; s: another vector.
  __device__ void solve(double* v, double* s) const {
    if (primal()) return solve_factored(v);
    multiply(v, s, team.lane, 32);
    __syncwarp();
    solve_factored(s);
    for (int column = team.lane; column < 8 * weights; column += 32) {
      double sum = 0;
      for (int row = 0; row < 8 * rows; ++row) sum += entry(row, column) * s[row];
      v[column] = (v[column] - sum) * p.inverse_damping;
    }
    __syncwarp();
  }

  __device__ double dot(const double* u, const double* v, int n) const {  // by one warp
    double sum = 0;
    for (int i = team.lane; i < n; i += 32) sum += u[i] * v[i];
    return warp_sum(sum);
  }
};

__device__ inline double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

}  // namespace quadric::cuda::woodbury
