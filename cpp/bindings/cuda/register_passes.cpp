#include "operands.hpp"
#include "quadric/cuda/sketch.hpp"

namespace quadric::python {
namespace {

cuda::sketch::StoredMatrix stored(const Operand& A) {
  const Operand::AnyMatrix v = A.any_matrix();
  return {v.data, A.storage(), v.rows, v.cols, v.row_stride, v.col_stride};
}

void fwht(const py::object& X_, const py::object& where_) {
  Where where(where_);
  const Operand X(where, X_, "X");
  const Operand::AnyCube v = X.any_mutable_cube();
  cuda::sketch::fwht(where.exec(),
                     {v.data, X.storage(), v.outer, v.rows, v.inner, v.outer_stride, v.row_stride, v.inner_stride});
  where.sync_back();
}

template <class T>
void residual_gradient(const Where& where, const Operand& A, const Operand& x, const Operand& b, const Operand& r,
                       const Operand& g, const Operand& norms) {
  const auto a = stored(A);
  const auto X = x.matrix<T>();
  const auto B = b.matrix<T>();
  MatrixView<T> R;
  if (r.present()) R = r.mutable_matrix<T>();
  cuda::sketch::residual_gradient<T>(where.exec(), a, X, b.present() ? &B : nullptr, r.present() ? &R : nullptr,
                                     g.mutable_block<double>({a.cols, X.cols}), norms.mutable_vector<double>(X.cols));
}

void residual_gradient(const py::object& A_, const py::object& x_, const py::object& b_, const py::object& r_,
                       const py::object& g_, const py::object& norms_, const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), x(where, x_, "x"), b(where, b_, "b", kOptional), r(where, r_, "r", kOptional),
      g(where, g_, "g", kOptional), norms(where, norms_, "norms");
  if (A.storage() == Storage::float64)
    residual_gradient<double>(where, A, x, b, r, g, norms);
  else
    residual_gradient<float>(where, A, x, b, r, g, norms);
  where.sync_back();
}

void preconditioned_gram(const py::object& A_, const py::object& R_inverse_, const py::object& G_,
                         const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), R_inverse(where, R_inverse_, "R_inverse"), G(where, G_, "G");
  const auto a = stored(A);
  cuda::sketch::preconditioned_gram(where.exec(), a, R_inverse.block<double>({a.cols, a.cols}),
                                    G.mutable_block<double>({a.cols, a.cols}));
  where.sync_back();
}

void weighted_gram(const py::object& A_, const py::object& w_, const py::object& G_, const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), w(where, w_, "w", kOptional), G(where, G_, "G");
  const auto a = stored(A);
  cuda::sketch::weighted_gram(where.exec(), a, w.vector<double>(a.rows), G.mutable_block<double>({a.cols, a.cols}));
  where.sync_back();
}

template <bool kUpper>
void row_norms(const py::object& A_, const py::object& M_, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), M(where, M_, "M", kUpper ? Need::required : kOptional), out(where, out_, "out");
  const auto a = stored(A);
  cuda::sketch::row_norms(where.exec(), a, M.matrix<double>(), out.mutable_vector<double>(a.rows), kUpper);
  where.sync_back();
}

}  // namespace

void register_passes(py::module_& m) {
  const auto where = py::arg("where");
  m.def("fwht", &fwht, py::arg("X"), where, "Walsh-Hadamard transform of the middle axis in place.");
  m.def("residual_gradient",
        py::overload_cast<const py::object&, const py::object&, const py::object&, const py::object&, const py::object&,
                          const py::object&, const py::object&>(&residual_gradient),
        py::arg("A"), py::arg("x"), py::arg("b"), py::arg("r"), py::arg("g"), py::arg("norms"), where,
        "r = b - A x and g = A^T r in one read of A.");
  m.def("preconditioned_gram", &preconditioned_gram, py::arg("A"), py::arg("R_inverse"), py::arg("G"), where,
        "(A R_inverse)^T (A R_inverse).");
  m.def("weighted_gram", &weighted_gram, py::arg("A"), py::arg("w"), py::arg("G"), where, "A^T diag(w) A.");
  m.def("row_norms", &row_norms<false>, py::arg("A"), py::arg("M"), py::arg("out"), where,
        "Squared norms of the rows of A M.");
  m.def("triangular_row_norms", &row_norms<true>, py::arg("A"), py::arg("M"), py::arg("out"), where,
        "Squared norms of the rows of A M for an upper triangular M.");
}

}  // namespace quadric::python
