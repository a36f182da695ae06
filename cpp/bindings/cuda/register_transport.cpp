#include "costs.hpp"

namespace quadric::python {
namespace {

void sinkhorn(const py::object& M_, const py::object& x_, const py::object& y_, int kind, const py::object& a_,
              const py::object& b_, double reg, double theta_a, double theta_b, const py::object& omega_, double tol,
              std::int64_t count, const py::object& f_, const py::object& g_, const py::object& errors_,
              const py::object& where_) {
  Where where(where_);
  const Costs costs(where, M_, x_, y_, kind);
  const Operand a(where, a_, "a"), b(where, b_, "b"), omega(where, omega_, "omega"), f(where, f_, "f"),
      g(where, g_, "g"), errors(where, errors_, "errors");
  by_float(costs.first(), [&](auto zero) {
    using T = decltype(zero);
    const auto of = costs.all<T>();
    const std::int64_t problems = costs.problems(), n = of.first.rows(), m = of.first.cols();
    if (problems == 0) return;
    cuda::transport::sinkhorn<T>(where.exec(), problems, of, a.block<double>({problems, n}),
                                 b.block<double>({problems, m}), omega.vector<double>(problems),
                                 f.mutable_block<double>({problems, n}), g.mutable_block<double>({problems, m}),
                                 errors.mutable_block<double>({problems, count}), {reg, theta_a, theta_b, tol, count});
  });
  where.sync_back();
}

void converge(const py::object& M_, const py::object& x_, const py::object& y_, int kind, const py::object& a_,
              const py::object& b_, double reg, double theta_a, double theta_b, const py::object& omega_, double tol,
              std::int64_t count, const py::object& f_, const py::object& g_, const py::object& errors_,
              const py::object& iterations_, bool anneal, const py::object& measures_, const py::object& converged_,
              double wanted, const py::object& where_) {
  Where where(where_);
  const Costs costs(where, M_, x_, y_, kind);
  const Operand a(where, a_, "a", kOptional), b(where, b_, "b", kOptional), omega(where, omega_, "omega", kOptional),
      f(where, f_, "f"), g(where, g_, "g"), errors(where, errors_, "errors"),
      iterations(where, iterations_, "iterations"), measures(where, measures_, "measures", kOptional),
      converged(where, converged_, "converged", kOptional);
  by_float(costs.first(), [&](auto zero) {
    using T = decltype(zero);
    const auto of = costs.all<T>();
    const std::int64_t problems = costs.problems(), n = of.first.rows(), m = of.first.cols();
    if (problems == 0) return;
    cuda::transport::converge<T>(
        where.exec(), problems, of, a.block<double>({problems, n}), b.block<double>({problems, m}),
        omega.vector<double>(problems), f.mutable_block<double>({problems, n}), g.mutable_block<double>({problems, m}),
        errors.mutable_vector<double>(problems), iterations.mutable_vector<std::int64_t>(problems),
        {reg, theta_a, theta_b, tol, count, anneal,
         measures.mutable_block<double>({cuda::transport::kMeasures, problems}),
         converged.mutable_vector<bool>(problems), wanted});
  });
  where.sync_back();
}

bool converges(int kind, std::int64_t n, std::int64_t m, std::int64_t d, int itemsize) {
  if (kind < 0 || kind > 4) throw invalid_argument("kind must be 0 to 4");
  return cuda::transport::converges(static_cast<cuda::transport::CostKind>(kind), n, m, d, itemsize);
}

}  // namespace

void register_transport(py::module_& m) {
  m.def("sinkhorn", &sinkhorn, py::arg("M"), py::arg("x"), py::arg("y"), py::arg("kind"), py::arg("a"), py::arg("b"),
        py::arg("reg"), py::arg("theta_a"), py::arg("theta_b"), py::arg("omega"), py::arg("tol"), py::arg("count"),
        py::arg("f"), py::arg("g"), py::arg("errors"), py::arg("where"),
        "One-pass Sinkhorn iterations of a batch of problems.");
  m.def("converge", &converge, py::arg("M"), py::arg("x"), py::arg("y"), py::arg("kind"), py::arg("a"), py::arg("b"),
        py::arg("reg"), py::arg("theta_a"), py::arg("theta_b"), py::arg("omega"), py::arg("tol"), py::arg("count"),
        py::arg("f"), py::arg("g"), py::arg("errors"), py::arg("iterations"), py::arg("anneal"), py::arg("measures"),
        py::arg("converged"), py::arg("wanted"), py::arg("where"),
        "Whole solutions of many small problems; NaN or None for omega finds the factor by itself.");
  m.def("converges", &converges, py::arg("kind"), py::arg("n"), py::arg("m"), py::arg("d"), py::arg("itemsize"),
        "Whether problems are small enough for converge.");
}

}  // namespace quadric::python
