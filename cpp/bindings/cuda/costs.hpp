// The four arguments (M, x, y, kind) by which every kernel of transport takes a cost.
#pragma once

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

  std::int64_t problems() const { return first().size(0); }

  template <class T>
  cuda::transport::Costs<T> all() const {
    cuda::transport::Costs<T> costs;
    costs.first.kind = static_cast<cuda::transport::CostKind>(kind);
    if (kind == 0) {
      const linalg::BatchView<const T> all = M.batch<T>();
      costs.first.M = all[0];
      costs.M_stride = all.stride;
    } else {
      const linalg::BatchView<const T> points = x.batch<T>(), others = y.batch<T>();
      if (others.count != points.count) throw invalid_argument("y must hold as many problems as x");
      costs.first.x = points[0];
      costs.first.y = others[0];
      costs.x_stride = points.stride;
      costs.y_stride = others.stride;
    }
    return costs;
  }

  Operand M, x, y;
  int kind;
};

}  // namespace quadric::python
