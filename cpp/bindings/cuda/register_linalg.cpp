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

void product(const py::object& A_, const py::object& B_, const py::object& C_, double alpha, double beta,
             const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), B(where, B_, "B"), C(where, C_, "C");
  by_float(C, [&](auto zero) {
    using T = decltype(zero);
    cuda::linalg::product<T>(where.exec(), A.matrix<T>(), B.matrix<T>(), C.mutable_matrix<T>(), alpha, beta);
  });
  where.sync_back();
}

void triangular_solve(const py::object& R_, const py::object& B_, bool left, bool transposed,
                      const py::object& where_) {
  Where where(where_);
  const Operand R(where, R_, "R"), B(where, B_, "B");
  by_float(B, [&](auto zero) {
    using T = decltype(zero);
    cuda::linalg::triangular_solve<T>(where.exec(), R.matrix<T>(), B.mutable_matrix<T>(), left, transposed);
  });
  where.sync_back();
}

void triangular_inverse(const py::object& R_, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand R(where, R_, "R"), out(where, out_, "out");
  by_float(R, [&](auto zero) {
    using T = decltype(zero);
    cuda::linalg::triangular_inverse<T>(where.exec(), R.matrix<T>(), out.mutable_matrix<T>());
  });
  where.sync_back();
}

template <bool kRough>
py::object qr(const py::object& A_, const py::object& R_, const py::object& where_, const py::object& status_) {
  Where where(where_);
  const Operand A(where, A_, "A"), R(where, R_, "R");
  const Scalar<std::int32_t> status(where, status_, "status");
  by_float(A, [&](auto zero) {
    using T = decltype(zero);
    cuda::linalg::qr<T>(where.exec(), A.mutable_matrix<T>(), R.mutable_matrix<T>(), status.data(), kRough);
  });
  where.sync_back();
  return status.result();
}

py::object symmetric_cholesky(const py::object& G_, const py::object& R_, const py::object& where_,
                              const py::object& status_) {
  Where where(where_);
  const Operand G(where, G_, "G"), R(where, R_, "R");
  const Scalar<std::int32_t> status(where, status_, "status");
  by_float(G, [&](auto zero) {
    using T = decltype(zero);
    cuda::linalg::symmetric_cholesky<T>(where.exec(), G.matrix<T>(), R.mutable_matrix<T>(), status.data());
  });
  where.sync_back();
  return status.result();
}

void column_norms(const py::object& A_, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), out(where, out_, "out");
  if (A.ndim() != 2) throw invalid_argument("A must have two dimensions");
  by_float(A, [&](auto zero) {
    using T = decltype(zero);
    cuda::linalg::column_norms<T>(where.exec(), A.matrix<T>(), out.mutable_vector<double>(A.size(1)));
  });
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
  m.def("product", &product, py::arg("A"), py::arg("B"), py::arg("C"), py::arg("alpha"), py::arg("beta"), where,
        "C = alpha A B + beta C.");
  m.def("triangular_solve", &triangular_solve, py::arg("R"), py::arg("B"), py::arg("left"), py::arg("transposed"),
        where, "B <- R^-1 B or B R^-1, with R^T for R if transposed; R upper triangular.");
  m.def("triangular_inverse", &triangular_inverse, py::arg("R"), py::arg("out"), where, "out = R^-1, R upper.");
  m.def("qr", &qr<false>, py::arg("A"), py::arg("R"), where, py::arg("status") = py::none(),
        "A = Q R; A becomes Q; -1, or the column that failed.");
  m.def("rough_qr", &qr<true>, py::arg("A"), py::arg("R"), where, py::arg("status") = py::none(),
        "The same with a Q of which only the condition is small.");
  m.def("symmetric_cholesky", &symmetric_cholesky, py::arg("G"), py::arg("R"), where, py::arg("status") = py::none(),
        "G = R^T R with R upper triangular; -1, or the pivot that failed.");
  m.def("column_norms", &column_norms, py::arg("A"), py::arg("out"), where, "Norms of the columns.");
}

}  // namespace quadric::python
