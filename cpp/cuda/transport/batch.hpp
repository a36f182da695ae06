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

// Matrices that are equally far apart, with contiguous rows, as they are; others as copies in scratch.
template <class T, class Get>
void gather(const Execution& exec, Scratch& scratch, std::int64_t problems, const Get& matrix, const T*& data,
            std::int64_t& problem_stride, std::int64_t& row_stride) {
  const MatrixView<const T> first = matrix(0);
  const std::int64_t rows = first.rows, cols = first.cols;
  data = first.data;
  row_stride = first.row_stride;
  problem_stride = problems > 1 ? matrix(1).data - first.data : 0;
  bool regular = first.col_stride == 1 || cols <= 1;
  for (std::int64_t p = 1; p < problems && regular; ++p)
    regular = matrix(p).data == data + p * problem_stride && matrix(p).row_stride == row_stride &&
              matrix(p).col_stride == first.col_stride;
  if (regular || rows == 0 || cols == 0) return;
  T* const copies = scratch.get<T>(problems * rows * cols);
  for (std::int64_t p = 0; p < problems; ++p) {
    const MatrixView<const T> from = matrix(p);
    copy(exec, {const_cast<T*>(from.data), type_of<T>(), rows, cols, from.row_stride, from.col_stride},
         {copies + p * rows * cols, type_of<T>(), rows, cols, cols, 1});
  }
  data = copies;
  problem_stride = rows * cols;
  row_stride = cols;
}

// Checks as on the CPU. At least one problem.
template <class T>
Batch<T> batch(const Execution& exec, Scratch& scratch, std::int64_t problems, const Cost<T>* cost) {
  Batch<T> result;
  result.kind = cost[0].kind;
  result.problems = problems;
  result.n = cost[0].rows();
  result.m = cost[0].cols();
  for (std::int64_t p = 0; p < problems; ++p) {
    QUADRIC_REQUIRE(cost[p].kind == cost[0].kind && cost[p].rows() == result.n && cost[p].cols() == result.m &&
                        cost[p].x.cols == cost[0].x.cols,
                    "cost must have the same shape in all problems");
    if (result.kind == CostKind::stored) continue;
    QUADRIC_REQUIRE(cost[p].x.cols == cost[p].y.cols, "y must have points of as many coordinates as x");
    QUADRIC_REQUIRE(
        (cost[p].x.cols <= 1 || cost[p].x.col_stride == 1) && (cost[p].y.cols <= 1 || cost[p].y.col_stride == 1),
        "x and y must have contiguous rows");
  }
  if (result.kind == CostKind::stored) {
    gather(
        exec, scratch, problems, [&](std::int64_t p) { return cost[p].M; }, result.M, result.M_problem, result.M_row);
  } else {
    result.d = cost[0].x.cols;
    gather(
        exec, scratch, problems, [&](std::int64_t p) { return cost[p].x; }, result.x, result.x_problem, result.x_row);
    gather(
        exec, scratch, problems, [&](std::int64_t p) { return cost[p].y; }, result.y, result.y_problem, result.y_row);
  }
  return result;
}

}  // namespace quadric::cuda::transport
