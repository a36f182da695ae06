// Dense algebra on packs: 64 bytes' worth of small problems side by side, one in each lane, so that every operation is
// a vector operation and no size is too small. An entry of a pack is kPack<T> numbers. Symmetric and triangular
// matrices hold their lower triangle by rows: entry (i, j), j <= i, at packed(i) + j. lanes.cpp is compiled once per
// instruction set; only plain pointers cross this border.
//
// The factorizations work on tiles of kTile x kTile entries: n is a multiple of kTile there, and whoever has a smaller
// matrix pads it with the rows of an identity, which come after the others in this layout.
//
// Packs lie on multiples of 64 bytes, but for `sums`, which may be the caller's own.
#pragma once

#include <cstdint>

#include "quadric/simd.hpp"

namespace quadric::linalg::detail {

template <class T>
inline constexpr std::int64_t kPack = 64 / sizeof(T);
inline constexpr std::int64_t kTile = 4;

// Internal linkage: files of different instruction sets must not share a copy.
static constexpr std::int64_t padded(std::int64_t n) { return (n + kTile - 1) / kTile * kTile; }
static constexpr std::int64_t packed(std::int64_t i) { return i * (i + 1) / 2; }

template <class T>
struct LaneKernels {
  // sums(a, b) += sum_k x(a, k) x(b, k) for b <= a < n (any n); x(a, k) at x + (a * depth_stride + k) * kPack, k <
  // depth.
  void (*gram)(const T* x, std::int64_t n, std::int64_t depth, std::int64_t depth_stride, T* sums);
  // A = L L^T in place; reciprocal[i] = 1 / L_ii; status[lane] = first pivot that is not positive and finite, if none
  // came before; the pivot then counts as 1.
  void (*cholesky)(T* a, std::int64_t n, T* reciprocal, std::int32_t* status);
  // L becomes L^-1 in place; work: 2 n kTile entries.
  void (*invert)(T* l, std::int64_t n, const T* reciprocal, T* work);
  // M = L^-1 becomes M^T M = A^-1 in place; work as `invert` left it.
  void (*product)(T* m, std::int64_t n, const T* work);
  // out (packed, g x g) = entries [first, first + g) of M^T M, M n x n.
  void (*group)(const T* m, std::int64_t n, std::int64_t first, std::int64_t g, T* out);
  // y = L^-1 y and y = L^-T y for n entries (any n).
  void (*forward)(const T* l, std::int64_t n, const T* reciprocal, T* y);
  void (*backward)(const T* l, std::int64_t n, const T* reciprocal, T* y);
  // X = L^-1 X. Rectangular matrices: X(i, c) at x + (i * columns + c) * kPack, i < n (any n), c < columns.
  void (*forward_many)(const T* l, std::int64_t n, const T* reciprocal, T* x, std::int64_t columns);
  // a = scale * sums + shift I for n x n matrices (any n), followed by the identity rows up to padded(n).
  void (*damp)(const T* sums, std::int64_t n, T scale, T shift, T* a);
  // Rows and columns of the symmetric A whose keep(i) is 0 become those of the identity; the others have keep(i) = 1.
  void (*mask)(T* a, std::int64_t n, const T* keep);
  // out = A v for a symmetric A (any n).
  void (*symmetric_multiply)(const T* a, std::int64_t n, const T* v, T* out);
  // out = X v; out = X^T c; X = X diag(keep); out (packed, g x g) = columns [first, first + g) of X, X_Q^T X_Q.
  void (*multiply)(const T* x, std::int64_t rows, std::int64_t columns, const T* v, T* out);
  void (*multiply_transposed)(const T* x, std::int64_t rows, std::int64_t columns, const T* c, T* out);
  void (*scale_columns)(T* x, std::int64_t rows, std::int64_t columns, const T* keep);
  void (*cross)(const T* x, std::int64_t rows, std::int64_t columns, std::int64_t first, std::int64_t g, T* out);
  // out(i) lane l = src[l * lane_stride + i] for i < count and l < lanes, 0 in the other lanes; out(i) at
  // out + i * stride * kPack. And back.
  void (*load)(const T* src, std::int64_t lane_stride, std::int64_t count, std::int64_t lanes, T* out,
               std::int64_t stride);
  // `load` of all lanes from float32. src has `available` numbers, some of which may lie beyond the last lane's.
  void (*load_float)(const float* src, std::int64_t lane_stride, std::int64_t count, std::int64_t available, T* out,
                     std::int64_t stride);
  void (*store)(const T* in, std::int64_t stride, std::int64_t count, std::int64_t lanes, T* dst,
                std::int64_t lane_stride);
};

// The kernels of the level in force.
template <class T>
const LaneKernels<T>& lane_kernels();

#define QUADRIC_DECLARE_LEVEL(level)    \
  namespace level {                     \
  template <class T>                    \
  const LaneKernels<T>& lane_kernels(); \
  }
QUADRIC_DECLARE_LEVEL(baseline)
QUADRIC_DECLARE_LEVEL(v3)
QUADRIC_DECLARE_LEVEL(v4)
#undef QUADRIC_DECLARE_LEVEL

}  // namespace quadric::linalg::detail
