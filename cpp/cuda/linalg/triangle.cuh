// Lower triangles by rows: entry (i, j), j <= i, has the number i (i + 1) / 2 + j.
#pragma once

#include <cmath>

namespace quadric::cuda {

template <class Int>
__host__ __device__ constexpr Int packed(Int i) {
  return i * (i + 1) / 2;
}

template <class Int>
struct LowerEntry {
  Int row, column;
};

// Entry number t. The square root may be off by one, not the result. Float is that of the root: float reaches t < 2^20.
template <class Float, class Int>
__host__ __device__ LowerEntry<Int> lower_entry(Int t) {
  Int row = static_cast<Int>((std::sqrt(Float(8) * static_cast<Float>(t) + Float(1)) - Float(1)) * Float(0.5));
  while (packed(row) > t) --row;
  while (packed(row + 1) <= t) ++row;
  return {row, t - packed(row)};
}

}  // namespace quadric::cuda
