#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "arrays.hpp"
#include "quadric/transport.hpp"

namespace quadric::python {
namespace {

template <class T>
using Maybe = std::optional<Array<T>>;

template <class T>
MatrixView<const T> slice(const Array<T>& a, std::int64_t p, const char* name) {
  if (a.ndim() != 3) throw invalid_argument(std::string(name) + " must have three dimensions");
  const auto size = static_cast<py::ssize_t>(sizeof(T));
  return {a.data() + p * a.strides(0) / size, a.shape(1), a.shape(2), a.strides(1) / size, a.strides(2) / size};
}

template <class T>
void check_cost(const Maybe<T>& M, const Maybe<T>& x, const Maybe<T>& y, int kind) {
  if (kind < 0 || kind > 4) throw invalid_argument("kind must be 0 to 4");
  if (kind == 0 ? !M : !x || !y) throw invalid_argument("M must be given for kind 0, x and y for the others");
}

template <class T>
transport::Cost<T> cost_of(const Maybe<T>& M, const Maybe<T>& x, const Maybe<T>& y, int kind) {
  check_cost(M, x, y, kind);
  transport::Cost<T> cost;
  cost.kind = static_cast<transport::CostKind>(kind);
  if (kind == 0) {
    cost.M = view(*M, "M");
  } else {
    cost.x = view(*x, "x");
    cost.y = view(*y, "y");
  }
  return cost;
}

template <class T>
void sinkhorn(const Maybe<T>& M, const Maybe<T>& x, const Maybe<T>& y, int kind, const Array<double>& a,
              const Array<double>& b, double reg, double theta_a, double theta_b, const Array<double>& omega,
              double tol, std::int64_t count, Array<double>& f, Array<double>& g, Array<double>& errors,
              int n_threads) {
  check_cost(M, x, y, kind);
  if (kind != 0 && x->ndim() == 3 && y->ndim() == 3 && x->shape(0) != y->shape(0))
    throw invalid_argument("y must hold as many problems as x");
  const Array<T>& first = kind == 0 ? *M : *x;
  if (first.ndim() != 3) throw invalid_argument("M, x and y must have three dimensions");
  const std::int64_t problems = first.shape(0);
  std::vector<transport::Cost<T>> costs(static_cast<std::size_t>(problems));
  for (std::int64_t p = 0; p < problems; ++p) {
    costs[p].kind = static_cast<transport::CostKind>(kind);
    if (kind == 0) {
      costs[p].M = slice(*M, p, "M");
    } else {
      costs[p].x = slice(*x, p, "x");
      costs[p].y = slice(*y, p, "y");
    }
  }
  const std::int64_t n = first.shape(1), m = kind == 0 ? first.shape(2) : y->shape(1);
  const double* a_ = block(a, "a", {problems, n});
  const double* b_ = block(b, "b", {problems, m});
  const double* w = vector(omega, "omega", problems);
  double* f_ = mutable_block(f, "f", {problems, n});
  double* g_ = mutable_block(g, "g", {problems, m});
  double* e = mutable_block(errors, "errors", {problems, count});
  const transport::SinkhornOptions options{reg, theta_a, theta_b, tol, count};
  py::gil_scoped_release release;
  transport::sinkhorn(threads(n_threads), problems, costs.data(), a_, b_, w, f_, g_, e, options);
}

using Entries = std::tuple<py::array_t<std::int64_t>, py::array_t<std::int32_t>, py::array_t<double>>;

template <class U>
py::array_t<U> array_of(const std::vector<U>& from) {
  return py::array_t<U>(static_cast<py::ssize_t>(from.size()), from.data());
}

template <class T>
std::optional<Entries> candidates(const Maybe<T>& M, const Maybe<T>& x, const Maybe<T>& y, int kind,
                                  const Array<double>& a, const Array<double>& b, const Array<double>& f,
                                  const Array<double>& g, double reg, double bits, std::int64_t limit, int n_threads) {
  const auto cost = cost_of(M, x, y, kind);
  const double* a_ = vector(a, "a", cost.rows());
  const double* b_ = vector(b, "b", cost.cols());
  const double* f_ = vector(f, "f", cost.rows());
  const double* g_ = vector(g, "g", cost.cols());
  transport::Pattern pattern;
  bool few = false;
  {
    py::gil_scoped_release release;
    few = transport::candidates(threads(n_threads), cost, a_, b_, f_, g_, pattern, {reg, bits, limit});
  }
  if (!few) return std::nullopt;
  return Entries{array_of(pattern.starts), array_of(pattern.columns), array_of(pattern.costs)};
}

transport::SparseView sparse(const Array<std::int64_t>& indptr, const Array<std::int32_t>& indices, std::int64_t rows,
                             std::int64_t cols) {
  transport::SparseView pattern;
  pattern.rows = rows;
  pattern.cols = cols;
  pattern.starts = vector(indptr, "indptr", rows + 1);
  pattern.columns = vector(indices, "indices", pattern.starts[rows]);
  return pattern;
}

void sparse_sinkhorn(const Array<std::int64_t>& indptr, const Array<std::int32_t>& indices, const Array<double>& costs,
                     const Array<double>& a, const Array<double>& b, double reg, double omega, double tol,
                     std::int64_t count, Array<double>& f, Array<double>& g, Array<double>& errors,
                     Maybe<double>& values, Array<double>& columns, int n_threads) {
  const auto pattern = sparse(indptr, indices, a.size(), b.size());
  const std::int64_t entries = indices.size();
  const double* c = vector(costs, "costs", entries);
  const double* a_ = vector(a, "a", pattern.rows);
  const double* b_ = vector(b, "b", pattern.cols);
  double* f_ = mutable_vector(f, "f", pattern.rows);
  double* g_ = mutable_vector(g, "g", pattern.cols);
  double* e = mutable_vector(errors, "errors", count);
  double* v = mutable_vector(values, "values", entries);
  double* s = mutable_vector(columns, "columns", pattern.cols);
  py::gil_scoped_release release;
  transport::sparse_sinkhorn(threads(n_threads), pattern, c, a_, b_, f_, g_, e, v, s, {reg, omega, tol, count});
}

std::tuple<std::int64_t, std::int64_t, double, double, double> newton_direction(
    const Array<std::int64_t>& indptr, const Array<std::int32_t>& indices, const Array<double>& values,
    const Array<double>& a, const Array<double>& c, const Array<double>& gradient, double shift, double drop,
    double tol, std::int64_t max_iter, Array<double>& direction, int n_threads) {
  const auto pattern = sparse(indptr, indices, a.size(), c.size());
  const double* v = vector(values, "values", indices.size());
  const double* a_ = vector(a, "a", pattern.rows);
  const double* c_ = vector(c, "c", pattern.cols);
  const double* g = vector(gradient, "gradient", pattern.cols);
  double* d = mutable_vector(direction, "direction", pattern.cols);
  transport::NewtonReport report;
  {
    py::gil_scoped_release release;
    report = transport::newton_direction(threads(n_threads), pattern, v, a_, c_, g, d, {shift, drop, tol, max_iter});
  }
  return {report.iterations, report.kept, report.dropped, report.residual, report.predicted};
}

template <class T>
void plan(const Maybe<T>& M, const Maybe<T>& x, const Maybe<T>& y, int kind, const Array<double>& f,
          const Array<double>& g, double reg, Array<T>& out, int n_threads) {
  const auto cost = cost_of(M, x, y, kind);
  const double* f_ = vector(f, "f", cost.rows());
  const double* g_ = vector(g, "g", cost.cols());
  const auto o = mutable_view(out, "out");
  py::gil_scoped_release release;
  transport::plan(threads(n_threads), cost, f_, g_, reg, o);
}

template <class T>
double apply_plan(const Maybe<T>& M, const Maybe<T>& x, const Maybe<T>& y, int kind, const Array<double>& f,
                  const Array<double>& g, double reg, const Maybe<double>& V, Maybe<double>& out, Array<double>& rows,
                  Array<double>& columns, int n_threads) {
  const auto cost = cost_of(M, x, y, kind);
  const double* f_ = vector(f, "f", cost.rows());
  const double* g_ = vector(g, "g", cost.cols());
  if (V.has_value() != out.has_value()) throw invalid_argument("out must be given if and only if V is");
  MatrixView<const double> v;
  double* o = nullptr;
  if (V) {
    if (V->ndim() != 2) throw invalid_argument("V must have two dimensions");
    v = {block(*V, "V", {cost.cols(), V->shape(1)}), cost.cols(), V->shape(1)};
    o = mutable_block(*out, "out", {cost.rows(), V->shape(1)});
  }
  double* r = mutable_vector(rows, "rows", cost.rows());
  double* c = mutable_vector(columns, "columns", cost.cols());
  py::gil_scoped_release release;
  return transport::apply_plan(threads(n_threads), cost, f_, g_, reg, v, o, r, c);
}

template <class T>
void point_gradient(const Array<T>& x, const Array<T>& y, int kind, const Array<double>& f, const Array<double>& g,
                    double reg, Array<double>& out, int n_threads) {
  const auto cost = cost_of<T>(std::nullopt, x, y, kind);
  const double* f_ = vector(f, "f", cost.rows());
  const double* g_ = vector(g, "g", cost.cols());
  double* o = mutable_block(out, "out", {cost.rows(), cost.x.cols});
  py::gil_scoped_release release;
  transport::point_gradient(threads(n_threads), cost, f_, g_, reg, o);
}

template <class T>
void capped_columns(const Array<T>& M, const Array<double>& f, const Array<double>& b, std::int64_t k, double reg,
                    Array<std::int32_t>& indices, Array<double>& values, Array<double>& g, int n_threads) {
  const auto cost = view(M, "M");
  const double* potential = vector(f, "f", cost.rows);
  const double* mass = vector(b, "b", cost.cols);
  std::int32_t* rows = mutable_block(indices, "indices", {cost.cols, k});
  double* entries = mutable_block(values, "values", {cost.cols, k});
  double* out = mutable_vector(g, "g", cost.cols);
  py::gil_scoped_release release;
  transport::capped_columns(threads(n_threads), cost, potential, mass, k, reg, rows, entries, out);
}

template <class T>
void capped_dual(const Array<T>& M, const Array<double>& f, const Array<double>& g, std::int64_t k, double reg,
                 Array<std::int32_t>& indices, Array<double>& values, int n_threads) {
  const auto cost = view(M, "M");
  const double* rows_potential = vector(f, "f", cost.rows);
  const double* columns_potential = vector(g, "g", cost.cols);
  std::int32_t* rows = mutable_block(indices, "indices", {cost.cols, k});
  double* entries = mutable_block(values, "values", {cost.cols, k});
  py::gil_scoped_release release;
  transport::capped_dual(threads(n_threads), cost, rows_potential, columns_potential, k, reg, rows, entries);
}

template <class T>
void register_type(py::module_& m) {
  // noconvert: an array of another dtype is the caller's mistake, not a reason to copy.
  m.def("sinkhorn", &sinkhorn<T>, py::arg("M").noconvert().none(true), py::arg("x").noconvert().none(true),
        py::arg("y").noconvert().none(true), py::arg("kind"), py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("reg"), py::arg("theta_a"), py::arg("theta_b"), py::arg("omega").noconvert(), py::arg("tol"),
        py::arg("count"), py::arg("f").noconvert(), py::arg("g").noconvert(), py::arg("errors").noconvert(),
        py::arg("n_threads"), "One-pass Sinkhorn iterations of a batch of problems.");
  m.def("candidates", &candidates<T>, py::arg("M").noconvert().none(true), py::arg("x").noconvert().none(true),
        py::arg("y").noconvert().none(true), py::arg("kind"), py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("f").noconvert(), py::arg("g").noconvert(), py::arg("reg"), py::arg("bits"), py::arg("limit"),
        py::arg("n_threads"), "The entries of the plan that matter, with their costs.");
  m.def("plan", &plan<T>, py::arg("M").noconvert().none(true), py::arg("x").noconvert().none(true),
        py::arg("y").noconvert().none(true), py::arg("kind"), py::arg("f").noconvert(), py::arg("g").noconvert(),
        py::arg("reg"), py::arg("out").noconvert(), py::arg("n_threads"), "The plan of two potentials.");
  m.def("apply_plan", &apply_plan<T>, py::arg("M").noconvert().none(true), py::arg("x").noconvert().none(true),
        py::arg("y").noconvert().none(true), py::arg("kind"), py::arg("f").noconvert(), py::arg("g").noconvert(),
        py::arg("reg"), py::arg("V").noconvert().none(true), py::arg("out").noconvert().none(true),
        py::arg("rows").noconvert(), py::arg("columns").noconvert(), py::arg("n_threads"),
        "P V, the marginals and <P, C>, the plan never stored.");
  m.def("point_gradient", &point_gradient<T>, py::arg("x").noconvert(), py::arg("y").noconvert(), py::arg("kind"),
        py::arg("f").noconvert(), py::arg("g").noconvert(), py::arg("reg"), py::arg("out").noconvert(),
        py::arg("n_threads"), "sum_j P_ij dC_ij / dx_i for distances.");
  m.def("capped_columns", &capped_columns<T>, py::arg("M").noconvert(), py::arg("f").noconvert(),
        py::arg("b").noconvert(), py::arg("k"), py::arg("reg"), py::arg("indices").noconvert(),
        py::arg("values").noconvert(), py::arg("g").noconvert(), py::arg("n_threads"),
        "The k largest entries of each column of f - M, projected.");
  m.def("capped_dual", &capped_dual<T>, py::arg("M").noconvert(), py::arg("f").noconvert(), py::arg("g").noconvert(),
        py::arg("k"), py::arg("reg"), py::arg("indices").noconvert(), py::arg("values").noconvert(),
        py::arg("n_threads"), "The same entries where g is given.");
}

}  // namespace

void register_transport(py::module_& m) {
  register_type<float>(m);
  register_type<double>(m);
  m.def("sparse_sinkhorn", &sparse_sinkhorn, py::arg("indptr").noconvert(), py::arg("indices").noconvert(),
        py::arg("costs").noconvert(), py::arg("a").noconvert(), py::arg("b").noconvert(), py::arg("reg"),
        py::arg("omega"), py::arg("tol"), py::arg("count"), py::arg("f").noconvert(), py::arg("g").noconvert(),
        py::arg("errors").noconvert(), py::arg("values").noconvert().none(true), py::arg("columns").noconvert(),
        py::arg("n_threads"), "Sinkhorn iterations on a list of entries.");
  m.def("newton_direction", &newton_direction, py::arg("indptr").noconvert(), py::arg("indices").noconvert(),
        py::arg("values").noconvert(), py::arg("a").noconvert(), py::arg("c").noconvert(),
        py::arg("gradient").noconvert(), py::arg("shift"), py::arg("drop"), py::arg("tol"), py::arg("max_iter"),
        py::arg("direction").noconvert(), py::arg("n_threads"), "Conjugate gradients for a sparse Newton step.");
}

}  // namespace quadric::python
