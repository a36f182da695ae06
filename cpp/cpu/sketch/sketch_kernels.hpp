// The inner loops of sketches. sketch_kernels.cpp is compiled once per instruction set; only plain pointers cross this
// border.
//
// A tile holds a few columns of a matrix, packed: rows of `lines` cache lines each, on cache-line boundaries.
#pragma once

#include <cstdint>

#include "quadric/simd.hpp"

namespace quadric::sketch::detail {

inline constexpr std::int64_t kLine = 64;  // bytes
inline constexpr std::int64_t kMostLines = 8;
template <class T>
inline constexpr std::int64_t kLineEntries = kLine / static_cast<std::int64_t>(sizeof(T));

struct DrawKernels {
  // Where `rows` columns of a sparse sign matrix have their entries, nnz each, for `block` rows a block: entry k of
  // column i is out[k rows + i] = 2 (row within the block) + (sign < 0). The first of them is number `first` of the
  // stream.
  void (*places)(std::uint64_t seed, std::uint64_t first, std::int64_t rows, std::int64_t nnz, std::int64_t block,
                 std::int32_t* out);
  // Words [first, first + count) of a stream; room for eight more. Returns where they begin.
  std::uint32_t* (*words)(std::uint64_t seed, std::uint32_t stream, std::uint64_t first, std::int64_t count,
                          std::uint32_t* out);
};

// Rows of A on their way into a tile.
template <class T>
struct Packing {
  const T* from = nullptr;
  std::int64_t stride = 0;
  T* to = nullptr;
  const std::uint32_t* signs = nullptr;  // row i changes sign if bit `bit` + i is set
  std::int64_t bit = 0;
};

template <class T>
struct SketchKernels {
  // Packs so many rows, and asks memory for those to come.
  void (*pack)(const Packing<T>& packing, std::int64_t rows, std::int64_t lines);
  // Row k block + places[k rows + i] / 2 of the sums, k < nnz, += +-(row i of A), for `rows` rows that are `stride`
  // apart.
  void (*scatter)(const T* A, std::int64_t stride, std::int64_t rows, const std::int32_t* places, std::int64_t nnz,
                  std::int64_t block, std::int64_t lines, T* sums);
  // Row r of out += +-(row order[e] / 2 of A) for e from starts[r] to starts[r + 1], one after the other, for `rows`
  // rows of out; minus for odd order[e].
  void (*gather)(const T* A, std::int64_t stride, const std::int32_t* order, const std::int32_t* starts,
                 std::int64_t rows, std::int64_t d, T* out, std::int64_t out_stride);
  // Row i of out = sum_k +-(row places[k rows + i] / 2 of block k of B), rows of d contiguous entries.
  void (*adjoint)(const T* B, std::int64_t d, const std::int32_t* places, std::int64_t nnz, std::int64_t block,
                  std::int64_t rows, T* out);
  // Tile <- (H x I) tile with an identity of h rows, by which groups of as many rows are transformed already; rows and
  // h are powers of two.
  void (*transform)(T* tile, std::int64_t rows, std::int64_t h, std::int64_t lines);
  // The same within groups of consecutive entries, 2 to kLineEntries of them, of a vector.
  void (*transform_groups)(T* x, std::int64_t count, std::int64_t group);
  // Row s of sums += (-1)^popcount(upper[s] & b) row lower[s] of the tile.
  void (*add_samples)(const T* tile, const std::int64_t* lower, const std::int64_t* upper, std::int64_t b,
                      std::int64_t m, std::int64_t lines, T* sums);
  // Rows 4 q to 4 q + 3 of normals for q in [begin, end), of `blocks` in a column, for `columns` columns from `first`
  // on.
  void (*gaussian)(std::uint64_t seed, std::uint64_t blocks, std::int64_t begin, std::int64_t end, std::uint64_t first,
                   std::int64_t columns, std::int64_t stride, T* out);
  // Rows 128 q to 128 q + 127 of signs, likewise.
  void (*rademacher)(std::uint64_t seed, std::uint64_t blocks, std::int64_t begin, std::int64_t end,
                     std::uint64_t first, std::int64_t columns, std::int64_t stride, T* out);
  // y_i = b_i - A_i x (b null: A_i x), r_i = y_i, g += sum_i y_i A_i, for contiguous rows that are `stride` apart; r
  // and g may be null. Returns sum y_i^2.
  double (*row_residuals)(const T* A, std::int64_t stride, std::int64_t rows, std::int64_t d, const double* x,
                          const T* b, std::int64_t b_stride, T* r, std::int64_t r_stride, double* g);
  // The same for contiguous columns that are `stride` apart; y has room for the rows.
  double (*column_residuals)(const T* A, std::int64_t stride, std::int64_t rows, std::int64_t d, const double* x,
                             const T* b, std::int64_t b_stride, T* r, std::int64_t r_stride, double* g, double* y);
  // x += factor (y - a . x) a for contiguous a and x of d entries.
  void (*project)(const T* a, std::int64_t d, double y, double factor, double* x);
};

// The kernels of the level in force.
const DrawKernels& draw_kernels();
template <class T>
const SketchKernels<T>& sketch_kernels();

#define QUADRIC_DECLARE_LEVEL(level)        \
  namespace level {                         \
  const DrawKernels& draw_kernels();        \
  template <class T>                        \
  const SketchKernels<T>& sketch_kernels(); \
  }
QUADRIC_DECLARE_LEVEL(baseline)
QUADRIC_DECLARE_LEVEL(v3)
QUADRIC_DECLARE_LEVEL(v4)
#undef QUADRIC_DECLARE_LEVEL

}  // namespace quadric::sketch::detail
