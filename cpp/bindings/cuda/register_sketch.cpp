#include "operands.hpp"
#include "quadric/cuda/sketch.hpp"

namespace quadric::python {
namespace {

// A in any of the four storage types.
cuda::sketch::StoredMatrix stored(const Operand& A) {
  const Operand::AnyMatrix v = A.any_matrix();
  return {v.data, A.storage(), v.rows, v.cols, v.row_stride, v.col_stride};
}

// f(float()) or f(double()): the type of sums over A.
template <class F>
void by_sums(const Operand& A, F&& f) {
  if (A.storage() == Storage::float64) return f(double());
  return f(float());
}

// A contiguous matrix that is written.
template <class T>
MatrixView<T> target(const Operand& out) {
  if (out.ndim() != 2) throw invalid_argument(std::string(out.name()) + " must have two dimensions");
  return out.output<T>(out.size(0), out.size(1));
}

void sparse_sign(const py::object& A_, std::int64_t first, std::uint64_t seed, std::int64_t nnz, const py::object& out_,
                 const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), out(where, out_, "out");
  by_sums(A, [&](auto zero) {
    using T = decltype(zero);
    cuda::sketch::sparse_sign<T>(where.exec(), stored(A), {seed, first}, nnz, target<T>(out));
  });
  where.sync_back();
}

void sparse_sign_rows(const py::object& B_, std::int64_t first, std::uint64_t seed, std::int64_t nnz,
                      const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand B(where, B_, "B"), out(where, out_, "out");
  by_float(B, [&](auto zero) {
    using T = decltype(zero);
    cuda::sketch::sparse_sign_rows<T>(where.exec(), B.matrix<T>(), {seed, first}, nnz, target<T>(out));
  });
  where.sync_back();
}

// A in compressed storage; what indptr counts is checked where it is on the host.
struct Compressed {
  Compressed(Where& where, const py::object& indptr_, const py::object& indices_, const py::object& data_)
      : starts(where, indptr_, "indptr"), columns(where, indices_, "indices"), values(where, data_, "data") {
    if (starts.ndim() != 1 || starts.size() == 0) throw invalid_argument("indptr must not be empty");
    if (columns.dtype() != starts.dtype()) throw py::type_error("indices must have the type of indptr");
    if (!py::isinstance<py::array>(indptr_)) return;
    const auto last = indptr_.attr("__getitem__")(-1).cast<std::int64_t>();
    if (last > columns.size()) throw invalid_argument("indices must have all entries that indptr counts");
  }

  // f(SparseRows) with its types.
  template <class F>
  void visit(const F& f) const {
    by_float(values, [&](auto zero) {
      using T = decltype(zero);
      if (starts.is<std::int32_t>()) return f(rows<T, std::int32_t>());
      if (starts.is<std::int64_t>()) return f(rows<T, std::int64_t>());
      throw py::type_error("indptr must be int32 or int64; got " + starts.dtype());
    });
  }

  template <class T, class Index>
  cuda::sketch::SparseRows<T, Index> rows() const {
    cuda::sketch::SparseRows<T, Index> A;
    A.rows = starts.size() - 1;
    A.starts = starts.vector<Index>(A.rows + 1);
    A.columns = columns.vector<Index>(columns.size());
    A.values = values.vector<T>(columns.size());
    return A;
  }

  Operand starts, columns, values;
};

void sparse_sign_csr(const py::object& indptr, const py::object& indices, const py::object& data, std::int64_t first,
                     std::uint64_t seed, std::int64_t nnz, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Compressed A(where, indptr, indices, data);
  const Operand out(where, out_, "out");
  A.visit([&](const auto& rows) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(rows.values)>>;
    cuda::sketch::sparse_sign_csr(where.exec(), rows, {seed, first}, nnz, target<T>(out));
  });
  where.sync_back();
}

cuda::sketch::Entries entries(int kind) {
  if (kind != 0 && kind != 1) throw invalid_argument("kind must be 0 or 1");
  return static_cast<cuda::sketch::Entries>(kind);
}

void dense(const py::object& A_, std::int64_t first, std::uint64_t seed, int kind, const py::object& out_,
           const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), out(where, out_, "out");
  const auto of = entries(kind);
  by_sums(A, [&](auto zero) {
    using T = decltype(zero);
    cuda::sketch::dense<T>(where.exec(), stored(A), {seed, first}, of, target<T>(out));
  });
  where.sync_back();
}

void dense_entries(std::int64_t row, std::int64_t first, std::uint64_t seed, std::int64_t m, int kind,
                   const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand out(where, out_, "out");
  const auto of = entries(kind);
  by_float(out, [&](auto zero) {
    using T = decltype(zero);
    cuda::sketch::dense_entries<T>(where.exec(), row, {seed, first}, m, of, target<T>(out));
  });
  where.sync_back();
}

void srht(const py::object& A_, std::int64_t first, std::uint64_t seed, std::int64_t k, const py::object& samples_,
          const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), samples(where, samples_, "samples"), out(where, out_, "out");
  by_sums(A, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<T> to = target<T>(out);
    const std::int64_t* const rows = samples.vector<std::int64_t>(to.rows);
    if (py::isinstance<py::array>(samples_)) {
      const auto own = samples_.cast<py::array_t<std::int64_t>>();
      for (py::ssize_t s = 0; s < own.size(); ++s)
        if (own.at(s) < 0) throw invalid_argument("samples must not be negative");
    }
    cuda::sketch::srht<T>(where.exec(), stored(A), {seed, first}, k, rows, to);
  });
  where.sync_back();
}

// X as k x d, and the rest of a call's arguments.
struct Steps {
  Steps(Where& where, const py::object& Y_, const py::object& norms_, const py::object& order_, double relaxation,
        const py::object& X_)
      : Y(where, Y_, "Y"), norms(where, norms_, "norms"), order(where, order_, "order"), X(where, X_, "X") {
    projections.relaxation = relaxation;
    host_order = py::isinstance<py::array>(order_) ? order_ : py::none();
  }
  // For n rows of d columns.
  MatrixView<double> prepare(std::int64_t n, std::int64_t d) {
    const MatrixView<double> to = target<double>(X);
    if (to.cols != d) throw invalid_argument("X must have the columns of A");
    projections.Y = Y.block<double>({n, to.rows});
    projections.norms = norms.vector<double>(n);
    projections.order = order.vector<std::int64_t>(order.size());
    projections.steps = order.size();
    if (!host_order.is_none()) {
      const auto own = host_order.cast<py::array_t<std::int64_t>>();
      const auto rows = own.unchecked<1>();
      for (py::ssize_t s = 0; s < rows.shape(0); ++s)
        if (rows(s) < 0 || rows(s) >= n) throw invalid_argument("order must hold numbers of rows");
    }
    return to;
  }
  Operand Y, norms, order, X;
  py::object host_order;
  cuda::sketch::Projections projections;
};

void kaczmarz(const py::object& A_, const py::object& Y, const py::object& norms, const py::object& order,
              double relaxation, const py::object& X, const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A");
  Steps steps(where, Y, norms, order, relaxation, X);
  by_float(A, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<const T> a = A.matrix<T>();
    const MatrixView<double> to = steps.prepare(a.rows, a.cols);
    cuda::sketch::kaczmarz<T>(where.exec(), a, steps.projections, to);
  });
  where.sync_back();
}

void kaczmarz_csr(const py::object& indptr, const py::object& indices, const py::object& data, const py::object& Y,
                  const py::object& norms, const py::object& order, double relaxation, const py::object& X,
                  const py::object& where_) {
  Where where(where_);
  const Compressed A(where, indptr, indices, data);
  Steps steps(where, Y, norms, order, relaxation, X);
  A.visit([&](const auto& rows) {
    const MatrixView<double> to = steps.prepare(rows.rows, steps.X.ndim() == 2 ? steps.X.size(1) : 0);
    cuda::sketch::kaczmarz_csr(where.exec(), rows, steps.projections, to);
  });
  where.sync_back();
}

}  // namespace

void register_sketch(py::module_& m) {
  const auto where = py::arg("where");
  m.def("sparse_sign", &sparse_sign, py::arg("A"), py::arg("first"), py::arg("seed"), py::arg("nnz"), py::arg("out"),
        where, "out += S A for a sparse sign matrix S.");
  m.def("sparse_sign_rows", &sparse_sign_rows, py::arg("B"), py::arg("first"), py::arg("seed"), py::arg("nnz"),
        py::arg("out"), where, "out = S^T B for a sparse sign matrix S.");
  m.def("sparse_sign_csr", &sparse_sign_csr, py::arg("indptr"), py::arg("indices"), py::arg("data"), py::arg("first"),
        py::arg("seed"), py::arg("nnz"), py::arg("out"), where, "out += S A for A in CSR and a sparse sign matrix S.");
  m.def("dense", &dense, py::arg("A"), py::arg("first"), py::arg("seed"), py::arg("kind"), py::arg("out"), where,
        "out += S A for a Gaussian or Rademacher matrix S.");
  m.def("dense_entries", &dense_entries, py::arg("row"), py::arg("first"), py::arg("seed"), py::arg("m"),
        py::arg("kind"), py::arg("out"), where, "A part of a dense S.");
  m.def("srht", &srht, py::arg("A"), py::arg("first"), py::arg("seed"), py::arg("k"), py::arg("samples"),
        py::arg("out"), where, "out += sampled rows of H D A, in one read of A.");
  m.def("kaczmarz", &kaczmarz, py::arg("A"), py::arg("Y"), py::arg("norms"), py::arg("order"), py::arg("relaxation"),
        py::arg("X"), where, "Projections onto rows of A, one after the other.");
  m.def("kaczmarz_csr", &kaczmarz_csr, py::arg("indptr"), py::arg("indices"), py::arg("data"), py::arg("Y"),
        py::arg("norms"), py::arg("order"), py::arg("relaxation"), py::arg("X"), where,
        "Projections onto rows of A in CSR, one after the other.");
}

}  // namespace quadric::python
