// Passes over rows of any storage type. row_kernels.cpp is compiled once per instruction set; only plain pointers and
// structs cross this border.
#pragma once

#include <cstdint>

#include "quadric/simd.hpp"
#include "quadric/storage.hpp"

namespace quadric::woodbury::detail {

inline constexpr int kUpdateRows = 4;  // rows of a factor that are updated together

template <class T>
struct RowKernels {
  // out = src as T (n entries).
  void (*widen)(const void* src, Storage storage, std::int64_t n, T* out);
  // row = x rounded to nearest, half to even; x is within the range of `storage`.
  void (*narrow)(const T* x, Storage storage, std::int64_t n, void* row);
  // First i < n where |x_i| > limit or x_i is NaN, or -1.
  std::int64_t (*first_beyond)(const T* x, std::int64_t n, T limit);
  // sums[r] = row r of a contiguous matrix (rows x n) times x; products and sums in T.
  void (*dots)(const T* j, std::int64_t rows, std::int64_t n, const T* x, double* sums);
  // sums[r] += row r of G times x, r < G.rows; products and sums in double.
  void (*exact_dots)(const StoredRows& G, const T* x, double* sums);
  // y = scale x + sum_r c[r] row r of G in double, rounded once; x may be null for zero.
  void (*combine)(const StoredRows& G, const double* c, const T* x, double scale, T* y);
  // Row r of out = alpha row r of J + sum_k coefficient[k * kUpdateRows + r] y_k; norms[r] = sum |row|. rows is 1 or
  // kUpdateRows; rows of J and out are n apart, rows of Y y_stride.
  void (*update)(const T* j, T alpha, std::int64_t rows, std::int64_t n, const T* y, std::int64_t y_rows,
                 std::int64_t y_stride, const T* coefficient, T* out, double* norms);
};

// The kernels of the level in force.
template <class T>
const RowKernels<T>& row_kernels();

#define QUADRIC_DECLARE_LEVEL(level)  \
  namespace level {                   \
  template <class T>                  \
  const RowKernels<T>& row_kernels(); \
  }
QUADRIC_DECLARE_LEVEL(baseline)
QUADRIC_DECLARE_LEVEL(v3)
QUADRIC_DECLARE_LEVEL(v4)
#undef QUADRIC_DECLARE_LEVEL

}  // namespace quadric::woodbury::detail
