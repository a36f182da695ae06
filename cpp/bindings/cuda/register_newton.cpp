#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "costs.hpp"

namespace quadric::python {
namespace {

namespace transport = cuda::transport;

// Where the library waits for the stream, other Python threads may run: the GIL is held only while memory is asked for.
class Unlocked {
 public:
  explicit Unlocked(const Where& where) : exec_(where.exec()) {
    if (exec_.allocate == nullptr) return;
    exec_.allocate = &Unlocked::allocate;
    exec_.context = const_cast<Execution*>(&where.exec());
  }
  const Execution& exec() const { return exec_; }

 private:
  static void* allocate(void* locked, std::size_t bytes) {
    const py::gil_scoped_acquire acquire;
    const auto& exec = *static_cast<const Execution*>(locked);
    return exec.allocate(exec.context, bytes);
  }
  Execution exec_;
  py::gil_scoped_release release_;
};

// A new array with one axis: of the caller's library where `where` makes such, else of NumPy.
template <class T>
std::pair<py::object, T*> new_array(Where& where, const py::object& where_, const char* name, std::int64_t size) {
  if (py::isinstance<py::int_>(where_)) {
    py::array_t<T> array(static_cast<py::ssize_t>(size));
    T* const data = Operand(where, array, name).mutable_vector<T>(size);
    return {std::move(array), data};
  }
  py::object array = where_.attr("new")(py::make_tuple(size), type_name<T>());
  T* const data = Operand(where, array.attr("view"), name).mutable_vector<T>(size);
  return {std::move(array), data};
}

py::object candidates(const py::object& M_, const py::object& x_, const py::object& y_, int kind, const py::object& a_,
                      const py::object& b_, const py::object& f_, const py::object& g_, double reg, double bits,
                      std::int64_t limit, const py::object& where_) {
  Where where(where_);
  const Costs given(where, M_, x_, y_, kind);
  const Operand a(where, a_, "a"), b(where, b_, "b"), f(where, f_, "f"), g(where, g_, "g");
  py::object starts, columns, costs;
  bool few = false;
  by_float(given.first(), [&](auto zero) {
    using T = decltype(zero);
    const auto cost = given.one<T>();
    const double *const a_data = a.vector<double>(cost.rows()), *const b_data = b.vector<double>(cost.cols()),
                        *const f_data = f.vector<double>(cost.rows()), *const g_data = g.vector<double>(cost.cols());
    const auto make = [&](std::int64_t entries) {
      const py::gil_scoped_acquire acquire;
      transport::PatternMemory memory;
      std::tie(starts, memory.starts) = new_array<std::int64_t>(where, where_, "starts", cost.rows() + 1);
      std::tie(columns, memory.columns) = new_array<std::int32_t>(where, where_, "columns", entries);
      std::tie(costs, memory.costs) = new_array<double>(where, where_, "costs", entries);
      return memory;
    };
    const Unlocked unlocked(where);
    few = transport::candidates<T>(unlocked.exec(), cost, a_data, b_data, f_data, g_data, {reg, bits, limit}, make);
  });
  if (!few) return py::none();
  where.sync_back();
  return py::make_tuple(starts, columns, costs);
}

transport::SparseView sparse(const Operand& indptr, const Operand& indices, std::int64_t rows, std::int64_t cols) {
  transport::SparseView pattern;
  pattern.rows = rows;
  pattern.cols = cols;
  pattern.starts = indptr.vector<std::int64_t>(rows + 1);
  pattern.columns = indices.vector<std::int32_t>(indices.size());
  return pattern;
}

void sparse_sinkhorn(const py::object& indptr_, const py::object& indices_, const py::object& costs_,
                     const py::object& a_, const py::object& b_, double reg, double omega, double tol,
                     std::int64_t count, const py::object& f_, const py::object& g_, const py::object& errors_,
                     const py::object& values_, const py::object& columns_, const py::object& where_) {
  Where where(where_);
  const Operand indptr(where, indptr_, "indptr"), indices(where, indices_, "indices"), costs(where, costs_, "costs"),
      a(where, a_, "a"), b(where, b_, "b"), f(where, f_, "f"), g(where, g_, "g"), errors(where, errors_, "errors"),
      values(where, values_, "values", kOptional), columns(where, columns_, "columns");
  const std::int64_t n = a.size(), m = b.size(), entries = indices.size();
  transport::sparse_sinkhorn(where.exec(), sparse(indptr, indices, n, m), entries, costs.vector<double>(entries),
                             a.vector<double>(n), b.vector<double>(m), f.mutable_vector<double>(n),
                             g.mutable_vector<double>(m), errors.mutable_vector<double>(count),
                             values.mutable_vector<double>(entries), columns.mutable_vector<double>(m),
                             {reg, omega, tol, count});
  where.sync_back();
}

std::tuple<std::int64_t, std::int64_t, double, double, double> newton_direction(
    const py::object& indptr_, const py::object& indices_, const py::object& values_, const py::object& a_,
    const py::object& c_, const py::object& gradient_, double shift, double drop, double tol, std::int64_t max_iter,
    const py::object& direction_, const py::object& where_) {
  Where where(where_);
  const Operand indptr(where, indptr_, "indptr"), indices(where, indices_, "indices"), values(where, values_, "values"),
      a(where, a_, "a"), c(where, c_, "c"), gradient(where, gradient_, "gradient"),
      direction(where, direction_, "direction");
  const std::int64_t n = a.size(), m = c.size(), entries = indices.size();
  const transport::SparseView pattern = sparse(indptr, indices, n, m);
  const double *const v = values.vector<double>(entries), *const a_data = a.vector<double>(n),
                      *const c_data = c.vector<double>(m), *const g = gradient.vector<double>(m);
  double* const d = direction.mutable_vector<double>(m);
  transport::NewtonReport report;
  {
    const Unlocked unlocked(where);
    report = transport::newton_direction(unlocked.exec(), pattern, entries, v, a_data, c_data, g, d,
                                         {shift, drop, tol, max_iter});
  }
  where.sync_back();
  return {report.iterations, report.kept, report.dropped, report.residual, report.predicted};
}

}  // namespace

void register_newton(py::module_& m) {
  m.def("candidates", &candidates, py::arg("M"), py::arg("x"), py::arg("y"), py::arg("kind"), py::arg("a"),
        py::arg("b"), py::arg("f"), py::arg("g"), py::arg("reg"), py::arg("bits"), py::arg("limit"), py::arg("where"),
        "The entries of the plan that matter, with their costs.");
  m.def("sparse_sinkhorn", &sparse_sinkhorn, py::arg("indptr"), py::arg("indices"), py::arg("costs"), py::arg("a"),
        py::arg("b"), py::arg("reg"), py::arg("omega"), py::arg("tol"), py::arg("count"), py::arg("f"), py::arg("g"),
        py::arg("errors"), py::arg("values"), py::arg("columns"), py::arg("where"),
        "Sinkhorn iterations on a list of entries.");
  m.def("newton_direction", &newton_direction, py::arg("indptr"), py::arg("indices"), py::arg("values"), py::arg("a"),
        py::arg("c"), py::arg("gradient"), py::arg("shift"), py::arg("drop"), py::arg("tol"), py::arg("max_iter"),
        py::arg("direction"), py::arg("where"), "Conjugate gradients for a sparse Newton step.");
}

}  // namespace quadric::python
