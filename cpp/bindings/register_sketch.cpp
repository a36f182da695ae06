#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "arrays.hpp"
#include "quadric/sketch.hpp"

namespace quadric::python {
namespace {

template <class T>
using Maybe = std::optional<Array<T>>;

// A contiguous matrix that is written.
template <class T>
MatrixView<T> target(Array<T>& out) {
  if (out.ndim() != 2) throw invalid_argument("out must have two dimensions");
  const std::int64_t rows = out.shape(0), cols = out.shape(1);
  return {mutable_block(out, "out", {rows, cols}), rows, cols};
}

template <class T>
void sparse_sign(const Array<T>& A, std::int64_t first, std::uint64_t seed, std::int64_t nnz, Array<T>& out,
                 int n_threads) {
  const auto a = view(A, "A");
  const auto to = target(out);
  py::gil_scoped_release release;
  sketch::sparse_sign(threads(n_threads), a, {seed, first}, nnz, to);
}

template <class T>
void sparse_sign_rows(const Array<T>& B, std::int64_t first, std::uint64_t seed, std::int64_t nnz, Array<T>& out,
                      int n_threads) {
  const auto b = view(B, "B");
  const auto to = target(out);
  py::gil_scoped_release release;
  sketch::sparse_sign_rows(threads(n_threads), b, {seed, first}, nnz, to);
}

template <class T, class Index>
sketch::SparseRows<T, Index> sparse_rows(const Array<Index>& indptr, const Array<Index>& indices,
                                         const Array<T>& data) {
  sketch::SparseRows<T, Index> A;
  A.rows = indptr.size() - 1;
  if (A.rows < 0) throw invalid_argument("indptr must not be empty");
  A.starts = vector(indptr, "indptr", A.rows + 1);
  A.columns = vector(indices, "indices", indices.size());
  A.values = vector(data, "data", indices.size());
  if (A.starts[A.rows] > static_cast<Index>(indices.size()))
    throw invalid_argument("indices must have all entries that indptr counts");
  return A;
}

template <class T, class Index>
void sparse_sign_csr(const Array<Index>& indptr, const Array<Index>& indices, const Array<T>& data, std::int64_t first,
                     std::uint64_t seed, std::int64_t nnz, Array<T>& out, int n_threads) {
  const auto A = sparse_rows(indptr, indices, data);
  const auto to = target(out);
  py::gil_scoped_release release;
  sketch::sparse_sign_csr(threads(n_threads), A, {seed, first}, nnz, to);
}

sketch::Entries entries(int kind) {
  if (kind != 0 && kind != 1) throw invalid_argument("kind must be 0 or 1");
  return static_cast<sketch::Entries>(kind);
}

template <class T>
void dense(const Array<T>& A, std::int64_t first, std::uint64_t seed, int kind, Array<T>& out, int n_threads) {
  const auto a = view(A, "A");
  const auto to = target(out);
  const auto of = entries(kind);
  py::gil_scoped_release release;
  sketch::dense(threads(n_threads), a, {seed, first}, of, to);
}

template <class T>
void dense_entries(std::int64_t row, std::int64_t first, std::uint64_t seed, std::int64_t m, int kind, Array<T>& out,
                   int n_threads) {
  const auto to = target(out);
  const auto of = entries(kind);
  py::gil_scoped_release release;
  sketch::dense_entries(threads(n_threads), row, {seed, first}, m, of, to);
}

template <class T>
void srht(const Array<T>& A, std::int64_t first, std::uint64_t seed, std::int64_t k, const Array<std::int64_t>& samples,
          Array<T>& out, int n_threads) {
  const auto a = view(A, "A");
  const auto to = target(out);
  const std::int64_t* rows = vector(samples, "samples", to.rows);
  py::gil_scoped_release release;
  sketch::srht(threads(n_threads), a, {seed, first}, k, rows, to);
}

template <class T>
void fwht(Array<T>& X, int n_threads) {
  if (X.ndim() != 3) throw invalid_argument("X must have three dimensions");
  const auto size = static_cast<py::ssize_t>(sizeof(T));
  const sketch::Cube<T> cube{X.mutable_data(),    X.shape(0),          X.shape(1),         X.shape(2),
                             X.strides(0) / size, X.strides(1) / size, X.strides(2) / size};
  py::gil_scoped_release release;
  sketch::fwht(threads(n_threads), cube);
}

template <class T>
void residual_gradient(const Array<T>& A, const Array<T>& x, const Maybe<T>& b, Maybe<T>& r, Maybe<double>& g,
                       Array<double>& norms, int n_threads) {
  const auto a = view(A, "A");
  const auto x_ = view(x, "x");
  MatrixView<const T> b_;
  MatrixView<T> r_;
  if (b) b_ = view(*b, "b");
  if (r) r_ = mutable_view(*r, "r");
  double* const g_ = g ? mutable_block(*g, "g", {a.cols, x_.cols}) : nullptr;
  double* const n_ = mutable_vector(norms, "norms", x_.cols);
  py::gil_scoped_release release;
  sketch::residual_gradient(threads(n_threads), a, x_, b ? &b_ : nullptr, r ? &r_ : nullptr, g_, n_);
}

template <class T>
void preconditioned_gram(const Array<T>& A, const Array<double>& R_inverse, Array<double>& G, int n_threads) {
  const auto a = view(A, "A");
  const double* m = block(R_inverse, "R_inverse", {a.cols, a.cols});
  double* g = mutable_block(G, "G", {a.cols, a.cols});
  py::gil_scoped_release release;
  sketch::preconditioned_gram(threads(n_threads), a, m, g);
}

template <class T>
void weighted_gram(const Array<T>& A, const Maybe<double>& w, Array<double>& G, int n_threads) {
  const auto a = view(A, "A");
  const double* w_ = vector(w, "w", a.rows);
  double* g = mutable_block(G, "G", {a.cols, a.cols});
  py::gil_scoped_release release;
  sketch::weighted_gram(threads(n_threads), a, w_, g);
}

template <class T>
void row_norms(const Array<T>& A, const Maybe<double>& M, Array<double>& out, int n_threads) {
  const auto a = view(A, "A");
  MatrixView<const double> m;
  if (M) m = {block(*M, "M", {a.cols, M->ndim() == 2 ? M->shape(1) : 0}), a.cols, M->shape(1)};
  double* to = mutable_vector(out, "out", a.rows);
  py::gil_scoped_release release;
  sketch::row_norms(threads(n_threads), a, m, to);
}

// X as k x d, and the rest of a call's arguments.
struct Steps {
  Steps(const Array<double>& Y, const Array<double>& norms, const Array<std::int64_t>& order, double relaxation,
        std::int64_t n, std::int64_t d, Array<double>& X_)
      : X(target(X_)) {
    if (X.cols != d) throw invalid_argument("X must have the columns of A");
    projections.Y = block(Y, "Y", {n, X.rows});
    projections.norms = vector(norms, "norms", n);
    projections.order = vector(order, "order", order.size());
    projections.steps = order.size();
    projections.relaxation = relaxation;
  }
  MatrixView<double> X;
  sketch::Projections projections;
};

template <class T>
void kaczmarz(const Array<T>& A, const Array<double>& Y, const Array<double>& norms, const Array<std::int64_t>& order,
              double relaxation, Array<double>& X) {
  const auto a = view(A, "A");
  const Steps steps(Y, norms, order, relaxation, a.rows, a.cols, X);
  py::gil_scoped_release release;
  sketch::kaczmarz(a, steps.projections, steps.X);
}

template <class T, class Index>
void kaczmarz_csr(const Array<Index>& indptr, const Array<Index>& indices, const Array<T>& data, const Array<double>& Y,
                  const Array<double>& norms, const Array<std::int64_t>& order, double relaxation, Array<double>& X) {
  const auto a = sparse_rows(indptr, indices, data);
  const Steps steps(Y, norms, order, relaxation, a.rows, X.ndim() == 2 ? X.shape(1) : 0, X);
  py::gil_scoped_release release;
  sketch::kaczmarz_csr(a, steps.projections, steps.X);
}

template <class T, class Index>
void register_csr(py::module_& m) {
  m.def("sparse_sign_csr", &sparse_sign_csr<T, Index>, py::arg("indptr").noconvert(), py::arg("indices").noconvert(),
        py::arg("data").noconvert(), py::arg("first"), py::arg("seed"), py::arg("nnz"), py::arg("out").noconvert(),
        py::arg("n_threads"), "out += S A for A in CSR and a sparse sign matrix S.");
  m.def("kaczmarz_csr", &kaczmarz_csr<T, Index>, py::arg("indptr").noconvert(), py::arg("indices").noconvert(),
        py::arg("data").noconvert(), py::arg("Y").noconvert(), py::arg("norms").noconvert(),
        py::arg("order").noconvert(), py::arg("relaxation"), py::arg("X").noconvert(),
        "Projections onto rows of A in CSR, one after the other.");
}

template <class T>
void register_type(py::module_& m) {
  m.def("sparse_sign", &sparse_sign<T>, py::arg("A").noconvert(), py::arg("first"), py::arg("seed"), py::arg("nnz"),
        py::arg("out").noconvert(), py::arg("n_threads"), "out += S A for a sparse sign matrix S.");
  m.def("sparse_sign_rows", &sparse_sign_rows<T>, py::arg("B").noconvert(), py::arg("first"), py::arg("seed"),
        py::arg("nnz"), py::arg("out").noconvert(), py::arg("n_threads"), "out = S^T B for a sparse sign matrix S.");
  register_csr<T, std::int32_t>(m);
  register_csr<T, std::int64_t>(m);
  m.def("dense", &dense<T>, py::arg("A").noconvert(), py::arg("first"), py::arg("seed"), py::arg("kind"),
        py::arg("out").noconvert(), py::arg("n_threads"), "out += S A for a Gaussian or Rademacher matrix S.");
  m.def("dense_entries", &dense_entries<T>, py::arg("row"), py::arg("first"), py::arg("seed"), py::arg("m"),
        py::arg("kind"), py::arg("out").noconvert(), py::arg("n_threads"), "A part of a dense S.");
  m.def("srht", &srht<T>, py::arg("A").noconvert(), py::arg("first"), py::arg("seed"), py::arg("k"),
        py::arg("samples").noconvert(), py::arg("out").noconvert(), py::arg("n_threads"),
        "out += sampled rows of H D A, in one read of A.");
  m.def("fwht", &fwht<T>, py::arg("X").noconvert(), py::arg("n_threads"),
        "Walsh-Hadamard transform of the middle axis in place.");
  m.def("residual_gradient", &residual_gradient<T>, py::arg("A").noconvert(), py::arg("x").noconvert(),
        py::arg("b").noconvert().none(true), py::arg("r").noconvert().none(true), py::arg("g").noconvert().none(true),
        py::arg("norms").noconvert(), py::arg("n_threads"), "r = b - A x and g = A^T r in one read of A.");
  m.def("preconditioned_gram", &preconditioned_gram<T>, py::arg("A").noconvert(), py::arg("R_inverse").noconvert(),
        py::arg("G").noconvert(), py::arg("n_threads"), "(A R_inverse)^T (A R_inverse) in one read of A.");
  m.def("weighted_gram", &weighted_gram<T>, py::arg("A").noconvert(), py::arg("w").noconvert().none(true),
        py::arg("G").noconvert(), py::arg("n_threads"), "A^T diag(w) A in one read of A.");
  m.def("kaczmarz", &kaczmarz<T>, py::arg("A").noconvert(), py::arg("Y").noconvert(), py::arg("norms").noconvert(),
        py::arg("order").noconvert(), py::arg("relaxation"), py::arg("X").noconvert(),
        "Projections onto rows of A, one after the other.");
  m.def("row_norms", &row_norms<T>, py::arg("A").noconvert(), py::arg("M").noconvert().none(true),
        py::arg("out").noconvert(), py::arg("n_threads"), "Squared norms of the rows of A M.");
}

}  // namespace

void register_sketch(py::module_& m) {
  register_type<float>(m);
  register_type<double>(m);
}

}  // namespace quadric::python
