#include "operands.hpp"
#include "quadric/cuda/woodbury.hpp"

namespace quadric::python {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return b > 0 ? (a + b - 1) / b : 0; }

void gram(const py::object& G_, std::int64_t block_size, bool exact, const py::object& K_, const py::object& where_) {
  Where where(where_);
  const Operand G(where, G_, "G"), K(where, K_, "K");
  const StoredRows g = G.rows();
  cuda::woodbury::gram(where.exec(), g, block_size, exact,
                       K.mutable_block<double>({ceil_div(g.cols, block_size), g.rows, g.rows}));
  where.sync_back();
}

void dots(const py::object& G_, const py::object& X_, std::int64_t block_size, const py::object& out_,
          const py::object& where_) {
  Where where(where_);
  const Operand G(where, G_, "G"), X(where, X_, "X"), out(where, out_, "out");
  const StoredRows g = G.rows();
  by_float(X, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<const T> x = X.matrix<T>();
    cuda::woodbury::dots<T>(where.exec(), g, x, block_size,
                            out.mutable_block<double>({ceil_div(g.cols, block_size), g.rows, x.rows}));
  });
  where.sync_back();
}

void combine(const py::object& G_, const py::object& C_, const py::object& X_, double scale, std::int64_t block_size,
             const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand G(where, G_, "G"), C(where, C_, "C"), X(where, X_, "X", kOptional), out(where, out_, "out");
  const StoredRows g = G.rows();
  by_float(out, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t k = out.matrix<T>().rows;
    const double* const c = C.block<double>({ceil_div(g.cols, block_size), k, g.rows});
    const T* const x = X.block<T>({k, g.cols});
    const MatrixView<T> o(out.mutable_block<T>({k, g.cols}), k, g.cols);
    cuda::woodbury::combine<T>(where.exec(), g, c, x, scale, block_size, o);
  });
  where.sync_back();
}

void column_norms(const py::object& G_, const py::object& E_, std::int64_t block_size, const py::object& L_,
                  const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand G(where, G_, "G"), E(where, E_, "E", kOptional), L(where, L_, "L"), out(where, out_, "out");
  const StoredRows g = G.rows(), e = E.present() ? E.rows() : StoredRows{};
  const std::int64_t m = g.rows + e.rows;
  cuda::woodbury::column_norms(where.exec(), g, e, block_size, L.block<double>({ceil_div(g.cols, block_size), m, m}),
                               out.mutable_vector<double>(g.cols));
  where.sync_back();
}

py::object store(const py::object& g_, const py::object& row_, const py::object& rounded_, const py::object& where_,
                 const py::object& first_) {
  Where where(where_);
  const Operand g(where, g_, "g"), row(where, row_, "row"), rounded(where, rounded_, "rounded", kOptional);
  const Scalar<std::int64_t> first(where, first_, "first");
  by_float(g, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t d = g.size();
    cuda::woodbury::store<T>(where.exec(), g.vector<T>(d), row.storage(), row.mutable_row(d),
                             rounded.mutable_vector<T>(d), d, first.data());
  });
  where.sync_back();
  return first.result();
}

void symmetric_product(const py::object& J_, const py::object& V_, const py::object& Y_, const py::object& where_) {
  Where where(where_);
  const std::vector<Operand> J = operands(where, J_, "J"), V = operands(where, V_, "V"), Y = operands(where, Y_, "Y");
  if (V.size() != J.size() || Y.size() != J.size()) throw invalid_argument("J, V and Y must be equally many");
  if (J.empty()) return;
  by_float(J.front(), [&](auto zero) {
    using T = decltype(zero);
    const auto j = matrices<T>(J), v = matrices<T>(V);
    const auto y = mutable_matrices<T>(Y);
    cuda::woodbury::symmetric_product<T>(where.exec(), static_cast<std::int64_t>(j.size()), j.data(), v.data(),
                                         y.data());
  });
  where.sync_back();
}

// `cleared`: norms holds zeros.
template <bool cleared>
void symmetric_update(const py::object& J_, const py::object& alpha_, const py::object& delta_, const py::object& sign_,
                      const py::object& Y_, const py::object& out_, const py::object& norms_,
                      const py::object& where_) {
  Where where(where_);
  const std::vector<Operand> J = operands(where, J_, "J"), Y = operands(where, Y_, "Y"),
                             out = operands(where, out_, "out");
  const Operand alpha(where, alpha_, "alpha"), delta(where, delta_, "delta"), sign(where, sign_, "sign"),
      norms(where, norms_, "norms");
  if (Y.size() != J.size() || out.size() != J.size()) throw invalid_argument("J, Y and out must be equally many");
  if (J.empty()) return;
  const auto count = static_cast<std::int64_t>(J.size());
  by_float(J.front(), [&](auto zero) {
    using T = decltype(zero);
    const auto j = matrices<T>(J), y = matrices<T>(Y);
    const auto o = mutable_matrices<T>(out);
    cuda::woodbury::symmetric_update<T>(where.exec(), count, j.data(), alpha.vector<double>(count),
                                        delta.vector<double>(count), sign.vector<double>(count), y.data(), o.data(),
                                        norms.mutable_vector<double>(count), cleared);
  });
  where.sync_back();
}

}  // namespace

void register_rows(py::module_& m) {
  const auto where = py::arg("where");
  m.def("gram", &gram, py::arg("G"), py::arg("block_size"), py::arg("exact"), py::arg("K"), where,
        "K = G G^T for blocks of columns.");
  m.def("dots", &dots, py::arg("G"), py::arg("X"), py::arg("block_size"), py::arg("out"), where,
        "G X^T for blocks of columns.");
  m.def("combine", &combine, py::arg("G"), py::arg("C"), py::arg("X"), py::arg("scale"), py::arg("block_size"),
        py::arg("out"), where, "scale X + C G for blocks of columns.");
  m.def("column_norms", &column_norms, py::arg("G"), py::arg("E"), py::arg("block_size"), py::arg("L"), py::arg("out"),
        where, "Column sums of squares of L^-1 [G; E].");
  m.def("store", &store, py::arg("g"), py::arg("row"), py::arg("rounded"), where, py::arg("first") = py::none(),
        "Rounds g into a row; -1, or the index of the first entry that is not finite.");
  m.def("symmetric_product", &symmetric_product, py::arg("J"), py::arg("V"), py::arg("Y"), where,
        "Y = V J for many factors.");
  m.def("symmetric_update", &symmetric_update<false>, py::arg("J"), py::arg("alpha"), py::arg("delta"), py::arg("sign"),
        py::arg("Y"), py::arg("out"), py::arg("norms"), where,
        "out = alpha J + delta I + sign Y^T Y for many factors, and their norms.");
  m.def("update_after_steps", &symmetric_update<true>, py::arg("J"), py::arg("alpha"), py::arg("delta"),
        py::arg("sign"), py::arg("Y"), py::arg("out"), py::arg("norms"), where,
        "The same where inverse_steps has set norms to 0.");
}

}  // namespace quadric::python
