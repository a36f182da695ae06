#include <pybind11/pybind11.h>

#include "operands.hpp"
#include "quadric/cuda/linalg.hpp"

namespace quadric::python {
namespace {

void spd(const py::object& A_, const py::object& b_, int what, const py::object& out_, const py::object& logdet_,
         const py::object& status_, const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), b(where, b_, "b", kOptional), out(where, out_, "out", kOptional),
      logdet(where, logdet_, "logdet", kOptional), status(where, status_, "status");
  if (what < 0 || what > 3) throw invalid_argument("what must be 0, 1, 2 or 3");
  const auto kind = static_cast<linalg::Spd>(what);
  by_float(A, [&](auto zero) {
    using T = decltype(zero);
    const auto a = A.batch<T>();
    const auto rhs = b.batch<T>();
    T* const o = out.mutable_block<T>({a.count, a.rows, kind == linalg::Spd::solve ? rhs.cols : a.rows});
    cuda::linalg::spd<T>(where.exec(), a, rhs, kind, o, logdet.mutable_vector<double>(a.count),
                         status.mutable_vector<std::int32_t>(a.count));
  });
  where.sync_back();
}

py::object cholesky(const py::object& A_, double shift, const py::object& where_, const py::object& info_) {
  Where where(where_);
  const Operand A(where, A_, "A");
  const Scalar<std::int32_t> info(where, info_, "info");
  if (A.ndim() != 2) throw invalid_argument("A must have two dimensions");
  const std::int64_t m = A.size(0);
  cuda::linalg::cholesky(where.exec(), A.mutable_block<double>({m, m}), m, shift, info.data());
  where.sync_back();
  return info.result();
}

void cho_solve(const py::object& L_, const py::object& B_, const py::object& where_) {
  Where where(where_);
  const Operand L(where, L_, "L"), B(where, B_, "B");
  if (L.ndim() != 2) throw invalid_argument("L must have two dimensions");
  if (B.ndim() != 2) throw invalid_argument("B must have two dimensions");
  const std::int64_t m = L.size(0), k = B.size(1);
  cuda::linalg::cho_solve(where.exec(), L.block<double>({m, m}), m, B.mutable_block<double>({m, k}), k);
  where.sync_back();
}

}  // namespace

void register_linalg(py::module_& m) {
  const auto where = py::arg("where");
  m.def("spd", &spd, py::arg("A"), py::arg("b"), py::arg("what"), py::arg("out"), py::arg("logdet"), py::arg("status"),
        where, "Cholesky factor (0), inverse (1), solution (2) or log-determinant alone (3) of a batch.");
  m.def("cholesky", &cholesky, py::arg("A"), py::arg("shift"), where, py::arg("info") = py::none(),
        "A + shift I = L L^T in place, one float64 matrix; -1, or the pivot that failed.");
  m.def("cho_solve", &cho_solve, py::arg("L"), py::arg("B"), where, "B <- (L L^T)^-1 B in place, float64.");
}

}  // namespace quadric::python
