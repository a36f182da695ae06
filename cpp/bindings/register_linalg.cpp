#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "arrays.hpp"
#include "quadric/linalg.hpp"

namespace quadric::python {
namespace {

template <class T>
linalg::BatchView<const T> batch(const Array<T>& a, const char* name) {
  if (a.ndim() != 3) throw invalid_argument(std::string(name) + " must have three dimensions");
  const auto size = static_cast<py::ssize_t>(sizeof(T));
  return {a.data(), a.shape(0), a.shape(1), a.shape(2), a.strides(0) / size, a.strides(1) / size, a.strides(2) / size};
}

template <class T>
void spd(const Array<T>& A, const std::optional<Array<T>>& b, int what, std::optional<Array<T>> out,
         std::optional<Array<double>> logdet, Array<std::int32_t>& status, int n_threads) {
  const auto a = batch(A, "A");
  const auto rhs = b ? batch(*b, "b") : linalg::BatchView<const T>{};
  if (what < 0 || what > 3) throw invalid_argument("what must be 0, 1, 2 or 3");
  const auto kind = static_cast<linalg::Spd>(what);
  T* o = out ? mutable_block(*out, "out", {a.count, a.rows, kind == linalg::Spd::solve ? rhs.cols : a.rows}) : nullptr;
  double* l = mutable_vector(logdet, "logdet", a.count);
  std::int32_t* s = mutable_vector(status, "status", a.count);
  py::gil_scoped_release release;
  linalg::spd(threads(n_threads), a, rhs, kind, o, l, s);
}

template <class T>
void register_kernels(py::module_& m) {
  const auto X = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("spd", spd<T>, X("A"), X("b"), py::arg("what"), X("out"), X("logdet"), X("status"), py::arg("n_threads"),
        "Cholesky factor (0), inverse (1), solution (2) or log-determinant alone (3) of a batch.");
}

}  // namespace

void register_linalg(py::module_& m) {
  register_kernels<float>(m);
  register_kernels<double>(m);
}

}  // namespace quadric::python
