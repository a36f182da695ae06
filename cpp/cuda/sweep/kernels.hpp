// The kernels of the sweep and what they are launched with. `sums` holds C_j of the columns to come and D_j of those
// that are done. It is stored as the factor wants it: in reversed sweep order, column j at place n - 1 - j, rows
// fastest, so that in cuBLAS' terms everything is without transposition:
//
//   R_ij = A(n-1-i, n-1-j),  A lower triangular, n x n, column-major,  C_j(i) = sums[(n-1-j) * rows + i].
//
// `rows` is m rounded up, and matrices of a batch stand one after the other.
#pragma once

#include <cstdint>

#include "device.hpp"
#include "quadric/cuda/sweep.hpp"

namespace quadric::cuda::sweep {

// The weights of a batch of matrices, seen in sweep order.
template <class T>
struct Weights {
  const T* data = nullptr;
  std::int64_t row_stride = 0, col_stride = 0;
  std::int64_t m = 0, n = 0, count = 1;  // count m rows in all
  const std::int64_t* order = nullptr;   // count x n; null: the columns as they are
  const bool* dead = nullptr;            // count x n, original columns that count as 0; may be null
};

// What is added to the weights of columns [begin, end) to get the current ones: C_begin..end R^-1, in reversed order
// and with rows fastest. Null: nothing.
template <class T>
struct Shift {
  const T* data = nullptr;
  std::int64_t end = 0;
  std::int64_t rows = 0, matrix = 0;  // strides of a column and of a matrix
};

// What all blocks of one sweep share.
template <class T>
struct Job {
  Weights<T> weights;
  quadric::sweep::SweepOptions options;
  const T* a = nullptr;  // count x n x n; null: identity, nothing to feed back
  T* sums = nullptr;     // count x n x rows; null where `a` is
  std::int64_t rows = 0;
  const float* up = nullptr;  // count x rows, powers of two that rows of `sums` are multiplied by (split.hpp); null: 1
  std::uint8_t* codes = nullptr;  // results, in the original order of the columns; null: not wanted
  T* scales = nullptr;
  std::uint8_t* zeros = nullptr;
  T* values = nullptr;
  bool* mask = nullptr;
  double* loss = nullptr;
  std::int64_t groups = 0;
  bool grids_inside = false, masks_inside = false;  // as in Plan
};

template <class T>
struct BlockTask {
  std::int64_t begin = 0;
  int width = 0;
  bool keep_errors = false;            // D is needed after the block
  T* scores = nullptr;                 // not null: only write the scores of the block, count x width x rows
  const std::uint8_t* kept = nullptr;  // masks found before: count x ... x rows, from column kept_begin on
  std::int64_t kept_begin = 0, kept_matrix = 0;
};

template <class T>
void sweep_block(const Execution& exec, const Job<T>& job, const BlockTask<T>& task);

// Grids of groups [first, last) of `group_size` consecutive columns of weights plus shift.
template <class T>
void group_grids(const Execution& exec, const Weights<T>& weights, const Shift<T>& shift,
                 const quadric::sweep::GridOptions& options, std::int64_t group_size, std::int64_t first,
                 std::int64_t last, T* scales, std::uint8_t* zeros, std::int64_t groups);

// scores = |weights plus shift, times R_jj| of columns [begin, end), rows fastest, in the order of the sweep.
template <class T>
void range_scores(const Execution& exec, const Weights<T>& weights, const Shift<T>& shift,
                  const T* a,  // count x n x n; null: R_jj = 1
                  std::int64_t begin, std::int64_t end, std::int64_t rows, T* scores);

// kept = 0 for the `pruned` lowest of `columns` scores of each row, or of all rows of a matrix; of equals those in the
// first rows, then the first columns, go. Both count x columns x rows, rows fastest.
template <class T>
void mask_each_row(const Execution& exec, const T* scores, std::int64_t count, std::int64_t columns, std::int64_t m,
                   std::int64_t rows, std::int64_t pruned, std::uint8_t* kept);
template <class T>
void mask_all_rows(const Execution& exec, const T* scores, std::int64_t count, std::int64_t columns, std::int64_t m,
                   std::int64_t rows, std::int64_t pruned, std::int64_t* workspace, std::uint8_t* kept);
std::int64_t mask_workspace(std::int64_t count, std::int64_t m);  // entries

}  // namespace quadric::cuda::sweep
