// A matrix of up to 64 x 64 in the registers of 64 threads, for products with many vectors one after the other: what is
// read from shared memory are the vectors.
//
// Thread 8 r + q holds rows 8 r + k and columns 32 (l / 4) + 4 q + l % 4, for k and l below 8: the 8 threads of a row
// are neighbours, and read a vector along it as whole lines of shared memory.
#pragma once

#include <cstdint>

#include "transport/pass.cuh"

namespace quadric::cuda::transport {

class Tile {
 public:
  static constexpr int kSide = 64, kEach = 8, kThreads = kSide * kSide / (kEach * kEach);

  __device__ static int row(int k) { return static_cast<int>(threadIdx.x) / kEach * kEach + k; }
  __device__ static int column(int l) {
    return l / 4 * (kSide / 2) + static_cast<int>(threadIdx.x) % kEach * 4 + l % 4;
  }

  // From rows of kSide entries, aligned to 16 bytes.
  __device__ void load(const float* from) {
#pragma unroll
    for (int k = 0; k < kEach; ++k) read(from + row(k) * kSide, entries_[k]);
  }

  // The sum of E_ij x_j, for row i = threadIdx.x.
  __device__ float row_sum(const float* x) const {
    float part[kEach], factor[kEach];
    read(x, factor);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      part[k] = 0;
#pragma unroll
      for (int l = 0; l < kEach; ++l) part[k] = fma(entries_[k][l], factor[l], part[k]);
    }
    fold<4>(part, 4);
    fold<2>(part, 2);
    fold<1>(part, 1);
    return part[0];
  }

  // The sums of E_ij x_i over the rows of a warp: sums[kSide warp + j]. What a thread reads of x belongs to rows of its
  // warp.
  __device__ void column_sums(const float* x, float* sums) const {
    float part[kEach] = {}, factor[kEach];
    read(x + row(0), 4, factor);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
#pragma unroll
      for (int l = 0; l < kEach; ++l) part[l] = fma(entries_[k][l], factor[k], part[l]);
    }
    fold_columns(part, sums);
  }

  // sums[kSide warp + column(l)] = the sum of part[l] over the threads of the warp that have this column.
  template <class V>
  __device__ static void fold_columns(V (&part)[kEach], V* sums) {
    fold<4>(part, 16);
    fold<2>(part, 8);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    V* const to = sums + threadIdx.x / 32 * kSide + column(lane / 16 * 4 + lane / 8 % 2 * 2);
    to[0] = part[0];
    to[1] = part[1];
  }

  // The largest value or the sum of the 8 threads of a row, for all of them.
  __device__ static double largest_of_row(double x) {
#pragma unroll
    for (int step = kEach / 2; step > 0; step /= 2) x = fmax(x, __shfl_xor_sync(kAll, x, step));
    return x;
  }
  __device__ static double sum_of_row(double x) {
#pragma unroll
    for (int step = kEach / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
    return x;
  }

  // The entries of a row in columns column(l); all of it is aligned to 16 bytes.
  __device__ static void read(const float* row, float (&to)[kEach]) { read(row + column(0), kSide / 2, to); }
  __device__ static void write(float* row, const float (&from)[kEach]) {
#pragma unroll
    for (int part = 0; part < 2; ++part)
      *reinterpret_cast<float4*>(row + column(4 * part)) =
          float4{from[4 * part], from[4 * part + 1], from[4 * part + 2], from[4 * part + 3]};
  }

 private:
  static constexpr unsigned kAll = 0xffffffffu;

  // Four entries, and four more `distance` after them.
  __device__ static void read(const float* from, int distance, float (&to)[kEach]) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const float4 four = *reinterpret_cast<const float4*>(from + part * distance);
      to[4 * part] = four.x, to[4 * part + 1] = four.y, to[4 * part + 2] = four.z, to[4 * part + 3] = four.w;
    }
  }

  // Each of two threads keeps kHalf of 2 kHalf sums: the upper ones where `mask` is in the number of the thread.
  template <int kHalf, class V>
  __device__ static void fold(V (&x)[kEach], int mask) {
    const bool upper = (threadIdx.x & static_cast<unsigned>(mask)) != 0;
#pragma unroll
    for (int k = 0; k < kHalf; ++k) {
      const V sent = upper ? x[k] : x[k + kHalf], kept = upper ? x[k + kHalf] : x[k];
      x[k] = kept + __shfl_xor_sync(kAll, sent, mask);
    }
  }

  float entries_[kEach][kEach];
};

}  // namespace quadric::cuda::transport
