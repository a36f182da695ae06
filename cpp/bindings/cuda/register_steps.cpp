#include "operands.hpp"
#include "quadric/cuda/woodbury.hpp"

namespace quadric::python {
namespace {

void inverse_steps(const py::object& J_, const py::object& V_, const py::object& U_, const py::object& Y_, double a,
                   double b, double sign, bool blended, double weight, double base, double slope,
                   const py::object& alpha_, const py::object& delta_, const py::object& signs_,
                   const py::object& status_, const py::object& report_, const py::object& norms_,
                   const py::object& where_) {
  Where where(where_);
  const auto J = operands(where, J_, "J"), V = operands(where, V_, "V"), U = operands(where, U_, "U"),
             Y = operands(where, Y_, "Y");
  const Operand alpha(where, alpha_, "alpha"), delta(where, delta_, "delta"), signs(where, signs_, "signs"),
      status(where, status_, "status"), report(where, report_, "report"), norms(where, norms_, "norms");
  if (V.size() != J.size() || U.size() != J.size() || Y.size() != J.size())
    throw invalid_argument("J, V, U and Y must be equally many");
  if (J.empty()) return;
  const auto count = static_cast<std::int64_t>(J.size());
  const cuda::woodbury::StepRule rule = {a, b, sign, blended, weight, base, slope};
  by_float(J[0], [&](auto zero) {
    using T = decltype(zero);
    const auto j = matrices<T>(J), v = matrices<T>(V), u = matrices<T>(U);
    const auto y = mutable_matrices<T>(Y);
    cuda::woodbury::inverse_steps<T>(where.exec(), count, j.data(), v.data(), u.data(), y.data(), rule,
                                     alpha.mutable_vector<double>(count), delta.mutable_vector<double>(count),
                                     signs.mutable_vector<double>(count), status.mutable_vector<std::int32_t>(count),
                                     report.mutable_block<double>({count, 2}), norms.mutable_vector<double>(count));
  });
  where.sync_back();
}

void blend(const py::object& J_, const py::object& norms_, double bound, double share, const py::object& where_) {
  Where where(where_);
  const auto J = operands(where, J_, "J");
  const Operand norms(where, norms_, "norms");
  if (J.empty()) return;
  const auto count = static_cast<std::int64_t>(J.size());
  by_float(J[0], [&](auto zero) {
    using T = decltype(zero);
    const auto j = mutable_matrices<T>(J);
    cuda::woodbury::blend<T>(where.exec(), count, j.data(), norms.vector<double>(count), bound, share);
  });
  where.sync_back();
}

void scale_to_norm(const py::object& product_, const py::object& grad_, bool rescale, const py::object& out_,
                   const py::object& norms_, const py::object& where_) {
  Where where(where_);
  const Operand product(where, product_, "product"), grad(where, grad_, "grad"), out(where, out_, "out"),
      norms(where, norms_, "norms");
  by_float(product, [&](auto zero) {
    using T = decltype(zero);
    cuda::woodbury::scale_to_norm<T>(where.exec(), product.matrix<T>(), grad.matrix<T>(), rescale,
                                     out.mutable_matrix<T>(), norms.mutable_vector<double>(2));
  });
  where.sync_back();
}

py::object lost_block(const py::object& w_, const py::object& mask_, std::int64_t block_size, const py::object& where_,
                      const py::object& block_) {
  Where where(where_);
  const Operand w(where, w_, "w"), mask(where, mask_, "mask");
  Scalar<std::int64_t> block(where, block_, "block");
  by_float(w, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t d = w.size();
    cuda::woodbury::lost_block<T>(where.exec(), w.vector<T>(d), mask.vector<bool>(d), d, block_size, block.data());
  });
  where.sync_back();
  return block.result();
}

}  // namespace

void register_steps(py::module_& m) {
  const auto where = py::arg("where");
  m.def("inverse_steps", &inverse_steps, py::arg("J"), py::arg("V"), py::arg("U"), py::arg("Y"), py::arg("a"),
        py::arg("b"), py::arg("sign"), py::arg("blended"), py::arg("weight"), py::arg("base"), py::arg("slope"),
        py::arg("alpha"), py::arg("delta"), py::arg("signs"), py::arg("status"), py::arg("report"), py::arg("norms"),
        where,
        "Y, alpha, delta and signs of steps J <- alpha J + delta I + sign Y^T Y for many factors, given U = V J, and "
        "norms = 0.");
  m.def("blend", &blend, py::arg("J"), py::arg("norms"), py::arg("bound"), py::arg("share"), where,
        "J <- share J + (1 - share) I for the factors with norms above the bound.");
  m.def("scale_to_norm", &scale_to_norm, py::arg("product"), py::arg("grad"), py::arg("rescale"), py::arg("out"),
        py::arg("norms"), where, "out = the transpose of the product, as long as grad; the norms of grad and product.");
  m.def("lost_block", &lost_block, py::arg("w"), py::arg("mask"), py::arg("block_size"), where,
        py::arg("block") = py::none(),
        "The first block of weights that the mask would make zero; -1 if there is none.");
}

}  // namespace quadric::python
