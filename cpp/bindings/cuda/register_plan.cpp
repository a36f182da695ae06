#include "costs.hpp"

namespace quadric::python {
namespace {

namespace transport = cuda::transport;

void plan(const py::object& M_, const py::object& x_, const py::object& y_, int kind, const py::object& f_,
          const py::object& g_, double reg, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Costs costs(where, M_, x_, y_, kind);
  const Operand f(where, f_, "f"), g(where, g_, "g"), out(where, out_, "out");
  by_float(costs.first(), [&](auto zero) {
    using T = decltype(zero);
    const auto cost = costs.one<T>();
    transport::plan<T>(where.exec(), cost, f.vector<double>(cost.rows()), g.vector<double>(cost.cols()), reg,
                       out.mutable_matrix<T>());
  });
  where.sync_back();
}

py::object apply_plan(const py::object& M_, const py::object& x_, const py::object& y_, int kind, const py::object& f_,
                      const py::object& g_, double reg, const py::object& V_, const py::object& out_,
                      const py::object& rows_, const py::object& columns_, const py::object& where_,
                      const py::object& transported_) {
  Where where(where_);
  const Costs costs(where, M_, x_, y_, kind);
  const Operand f(where, f_, "f"), g(where, g_, "g"), V(where, V_, "V", kOptional), out(where, out_, "out", kOptional),
      rows(where, rows_, "rows"), columns(where, columns_, "columns");
  if (V.present() != out.present()) throw invalid_argument("out must be given if and only if V is");
  if (V.present() && V.ndim() != 2) throw invalid_argument("V must have two dimensions");
  const Scalar<double> transported(where, transported_, "transported");
  by_float(costs.first(), [&](auto zero) {
    using T = decltype(zero);
    const auto cost = costs.one<T>();
    const std::int64_t n = cost.rows(), m = cost.cols(), k = V.present() ? V.size(1) : 0;
    const MatrixView<const double> v =
        V.present() ? MatrixView<const double>(V.block<double>({m, k}), m, k) : MatrixView<const double>();
    double* const product = out.mutable_block<double>({n, k});
    transport::apply_plan<T>(where.exec(), cost, f.vector<double>(n), g.vector<double>(m), reg, v, product,
                             rows.mutable_vector<double>(n), columns.mutable_vector<double>(m), transported.data());
  });
  where.sync_back();
  return transported.result();
}

void apply_plans(const py::object& M_, const py::object& x_, const py::object& y_, int kind, const py::object& f_,
                 const py::object& g_, double reg, const py::object& rows_, const py::object& columns_,
                 const py::object& costs_, const py::object& where_) {
  Where where(where_);
  const Costs given(where, M_, x_, y_, kind);
  const Operand f(where, f_, "f"), g(where, g_, "g"), rows(where, rows_, "rows"), columns(where, columns_, "columns"),
      transported(where, costs_, "costs");
  by_float(given.first(), [&](auto zero) {
    using T = decltype(zero);
    const auto all = given.all<T>();
    const std::int64_t problems = given.problems(), n = all.first.rows(), m = all.first.cols();
    if (problems == 0) return;
    transport::apply_plans<T>(where.exec(), problems, all, f.block<double>({problems, n}),
                              g.block<double>({problems, m}), reg, rows.mutable_block<double>({problems, n}),
                              columns.mutable_block<double>({problems, m}),
                              transported.mutable_vector<double>(problems));
  });
  where.sync_back();
}

void point_gradient(const py::object& x_, const py::object& y_, int kind, const py::object& f_, const py::object& g_,
                    double reg, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Costs costs(where, py::none(), x_, y_, kind);
  const Operand f(where, f_, "f"), g(where, g_, "g"), out(where, out_, "out");
  by_float(costs.x, [&](auto zero) {
    using T = decltype(zero);
    const auto cost = costs.one<T>();
    transport::point_gradient<T>(where.exec(), cost, f.vector<double>(cost.rows()), g.vector<double>(cost.cols()), reg,
                                 out.mutable_block<double>({cost.rows(), cost.x.cols}));
  });
  where.sync_back();
}

void capped_columns(const py::object& M_, const py::object& f_, const py::object& b_, std::int64_t k, double reg,
                    const py::object& indices_, const py::object& values_, const py::object& g_,
                    const py::object& where_) {
  Where where(where_);
  const Operand M(where, M_, "M"), f(where, f_, "f"), b(where, b_, "b"), indices(where, indices_, "indices"),
      values(where, values_, "values"), g(where, g_, "g");
  by_float(M, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<const T> cost = M.matrix<T>();
    transport::capped_columns<T>(where.exec(), cost, f.vector<double>(cost.rows), b.vector<double>(cost.cols), k, reg,
                                 indices.mutable_block<std::int32_t>({cost.cols, k}),
                                 values.mutable_block<double>({cost.cols, k}), g.mutable_vector<double>(cost.cols));
  });
  where.sync_back();
}

void capped_dual(const py::object& M_, const py::object& f_, const py::object& g_, std::int64_t k, double reg,
                 const py::object& indices_, const py::object& values_, const py::object& where_) {
  Where where(where_);
  const Operand M(where, M_, "M"), f(where, f_, "f"), g(where, g_, "g"), indices(where, indices_, "indices"),
      values(where, values_, "values");
  by_float(M, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<const T> cost = M.matrix<T>();
    transport::capped_dual<T>(where.exec(), cost, f.vector<double>(cost.rows), g.vector<double>(cost.cols), k, reg,
                              indices.mutable_block<std::int32_t>({cost.cols, k}),
                              values.mutable_block<double>({cost.cols, k}));
  });
  where.sync_back();
}

void largest_finite(const py::object& M_, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand M(where, M_, "M"), out(where, out_, "out");
  by_float(M, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<const T> cost = M.matrix<T>();
    transport::largest_finite<T>(where.exec(), cost, out.mutable_vector<double>(cost.cols));
  });
  where.sync_back();
}

// out is M^T, so that its rows are what is written column by column.
void keep_places(const py::object& M_, const py::object& places_, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand M(where, M_, "M"), places(where, places_, "places"), out(where, out_, "out");
  by_float(M, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<const T> cost = M.matrix<T>();
    const std::int64_t k = places.size(1);
    transport::keep_places<T>(where.exec(), cost, places.block<std::int32_t>({cost.cols, k}), k,
                              out.mutable_block<T>({cost.cols, cost.rows}));
  });
  where.sync_back();
}

transport::RouteMask mask_of(const Operand& mask, std::int64_t tokens, std::int64_t experts) {
  if (!mask.present()) return {};
  if (mask.ndim() == 1) return {mask.vector<bool>(tokens), 1, 0};
  const MatrixView<const bool> pairs = mask.matrix<bool>();
  if (pairs.rows != tokens || pairs.cols != experts) throw invalid_argument("mask must have the shape of scores");
  return {pairs.data, pairs.row_stride, pairs.col_stride};
}

void route(const py::object& scores_, const py::object& mask_, const py::object& loads_, std::int64_t capacity,
           double capacity_factor, double reg, double tol, std::int64_t max_iter, const py::object& gates_,
           const py::object& tight_, const py::object& f_, const py::object& error_, const py::object& iterations_,
           const py::object& where_) {
  Where where(where_);
  const Operand scores(where, scores_, "scores"), mask(where, mask_, "mask", kOptional),
      loads(where, loads_, "loads", kOptional), gates(where, gates_, "gates"), tight(where, tight_, "tight"),
      f(where, f_, "f", kOptional), error(where, error_, "error"), iterations(where, iterations_, "iterations");
  by_float(scores, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<const T> s = scores.matrix<T>();
    transport::route<T>(where.exec(), s, mask_of(mask, s.rows, s.cols), loads.vector<double>(s.cols),
                        gates.mutable_block<T>({s.rows, s.cols}), tight.mutable_vector<bool>(s.rows),
                        f.mutable_vector<double>(s.rows), error.mutable_vector<double>(1),
                        iterations.mutable_vector<std::int64_t>(1), {capacity, capacity_factor, reg, tol, max_iter});
  });
  where.sync_back();
}

void route_backward(const py::object& gradient_, const py::object& gates_, const py::object& free_, double reg,
                    const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand gradient(where, gradient_, "gradient"), gates(where, gates_, "gates"), free(where, free_, "free"),
      out(where, out_, "out");
  by_float(gates, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<const T> p = gates.matrix<T>();
    transport::route_backward<T>(where.exec(), gradient.matrix<T>(), p, free.vector<bool>(p.rows), reg,
                                 out.mutable_block<T>({p.rows, p.cols}));
  });
  where.sync_back();
}

}  // namespace

void register_plan(py::module_& m) {
  const auto M = py::arg("M"), x = py::arg("x"), y = py::arg("y"), kind = py::arg("kind"), f = py::arg("f"),
             g = py::arg("g"), reg = py::arg("reg"), where = py::arg("where");
  m.def("plan", &plan, M, x, y, kind, f, g, reg, py::arg("out"), where, "The plan of two potentials.");
  m.def("apply_plan", &apply_plan, M, x, y, kind, f, g, reg, py::arg("V"), py::arg("out"), py::arg("rows"),
        py::arg("columns"), where, py::arg("transported") = py::none(),
        "P V, the marginals and <P, C>, the plan never stored as a whole.");
  m.def("apply_plans", &apply_plans, M, x, y, kind, f, g, reg, py::arg("rows"), py::arg("columns"), py::arg("costs"),
        where, "The marginals and <P, C> of a batch.");
  m.def("point_gradient", &point_gradient, x, y, kind, f, g, reg, py::arg("out"), where,
        "sum_j P_ij dC_ij / dx_i for distances.");
  m.def("capped_columns", &capped_columns, M, f, py::arg("b"), py::arg("k"), reg, py::arg("indices"), py::arg("values"),
        g, where, "The k largest entries of each column of f - M, projected.");
  m.def("capped_dual", &capped_dual, M, f, g, py::arg("k"), reg, py::arg("indices"), py::arg("values"), where,
        "The same entries where g is given.");
  m.def("largest_finite", &largest_finite, M, py::arg("out"), where, "The largest finite entry of each column.");
  m.def("keep_places", &keep_places, M, py::arg("places"), py::arg("out"), where,
        "out = M^T at the places of each column of M, infinite elsewhere.");
  m.def("route", &route, py::arg("scores"), py::arg("mask"), py::arg("loads"), py::arg("capacity"),
        py::arg("capacity_factor"), reg, py::arg("tol"), py::arg("max_iter"), py::arg("gates"), py::arg("tight"), f,
        py::arg("error"), py::arg("iterations"), where, "Gates of tokens and experts of limited capacity.");
  m.def("route_backward", &route_backward, py::arg("gradient"), py::arg("gates"), py::arg("free"), reg, py::arg("out"),
        where, "The derivative in the scores.");
}

}  // namespace quadric::python
