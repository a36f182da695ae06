// The four arguments (M, x, y, kind) by which every kernel of transport takes a cost.
#pragma once

#include <vector>

#include "operands.hpp"
#include "quadric/cuda/transport.hpp"

namespace quadric::python {

// The cost of one problem, or of a batch.
struct Costs {
  Costs(Where& where, const py::object& M_, const py::object& x_, const py::object& y_, int kind_)
      : M(where, M_, "M", kOptional), x(where, x_, "x", kOptional), y(where, y_, "y", kOptional), kind(kind_) {
    if (kind < 0 || kind > 4) throw invalid_argument("kind must be 0 to 4");
    if (kind == 0 ? !M.present() : !x.present() || !y.present())
      throw invalid_argument("M must be given for kind 0, x and y for the others");
  }

  const Operand& first() const { return kind == 0 ? M : x; }

  template <class T>
  cuda::transport::Cost<T> one() const {
    cuda::transport::Cost<T> cost;
    cost.kind = static_cast<cuda::transport::CostKind>(kind);
    if (kind == 0) {
      cost.M = M.matrix<T>();
    } else {
      cost.x = x.matrix<T>();
      cost.y = y.matrix<T>();
    }
    return cost;
  }

  template <class T>
  std::vector<cuda::transport::Cost<T>> all() const {
    const linalg::BatchView<const T> batch = first().batch<T>();
    const linalg::BatchView<const T> others = kind == 0 ? linalg::BatchView<const T>{} : y.batch<T>();
    if (kind != 0 && others.count != batch.count) throw invalid_argument("y must hold as many problems as x");
    std::vector<cuda::transport::Cost<T>> costs(static_cast<std::size_t>(batch.count));
    for (std::int64_t p = 0; p < batch.count; ++p) {
      costs[p].kind = static_cast<cuda::transport::CostKind>(kind);
      if (kind == 0) {
        costs[p].M = batch[p];
      } else {
        costs[p].x = batch[p];
        costs[p].y = others[p];
      }
    }
    return costs;
  }

  Operand M, x, y;
  int kind;
};

}  // namespace quadric::python
