// The costs of several problems as one Batch.
#pragma once

#include <cstdint>

#include "quadric/cuda/arrays.hpp"
#include "require.hpp"
#include "transport/pass.hpp"

namespace quadric::cuda::transport {

template <class T>
constexpr Type type_of() {
  return sizeof(T) == 4 ? Type::float32 : Type::float64;
}

// Matrices so many entries apart, with contiguous rows, as they are; others as copies in scratch.
template <class T>
void gather(const Execution& exec, Scratch& scratch, std::int64_t problems, const MatrixView<const T>& first,
            std::int64_t stride, const T*& data, std::int64_t& problem_stride, std::int64_t& row_stride) {
  const std::int64_t rows = first.rows, cols = first.cols;
  data = first.data;
  row_stride = first.row_stride;
  problem_stride = stride;
  if (first.col_stride == 1 || cols <= 1 || rows == 0) return;
  T* const copies = scratch.get<T>(problems * rows * cols);
  for (std::int64_t p = 0; p < problems; ++p)
    copy(exec, {const_cast<T*>(first.data + p * stride), type_of<T>(), rows, cols, first.row_stride, first.col_stride},
         {copies + p * rows * cols, type_of<T>(), rows, cols, cols, 1});
  data = copies;
  problem_stride = rows * cols;
  row_stride = cols;
}

// Checks as on the CPU. At least one problem.
template <class T>
Batch<T> batch(const Execution& exec, Scratch& scratch, std::int64_t problems, const Costs<T>& cost) {
  const Cost<T>& first = cost.first;
  Batch<T> result;
  result.kind = first.kind;
  result.problems = problems;
  result.n = first.rows();
  result.m = first.cols();
  if (result.kind == CostKind::stored) {
    gather(exec, scratch, problems, first.M, cost.M_stride, result.M, result.M_problem, result.M_row);
    return result;
  }
  QUADRIC_REQUIRE(first.x.cols == first.y.cols, "y must have points of as many coordinates as x");
  QUADRIC_REQUIRE((first.x.cols <= 1 || first.x.col_stride == 1) && (first.y.cols <= 1 || first.y.col_stride == 1),
                  "x and y must have contiguous rows");
  result.d = first.x.cols;
  gather(exec, scratch, problems, first.x, cost.x_stride, result.x, result.x_problem, result.x_row);
  gather(exec, scratch, problems, first.y, cost.y_stride, result.y, result.y_problem, result.y_row);
  return result;
}

}  // namespace quadric::cuda::transport
