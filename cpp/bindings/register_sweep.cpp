#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "arrays.hpp"
#include "quadric/sweep.hpp"
#include "sweep_options.hpp"

namespace quadric::python {
namespace {

template <class T>
void gram(const Array<T>& X, const std::optional<Array<T>>& weights, Array<T>& H, int n_threads) {
  const auto x = view(X, "X");
  const auto h = mutable_view(H, "H");
  const T* w = vector(weights, "weights", x.rows);
  py::gil_scoped_release release;
  sweep::gram(threads(n_threads), x, w, h);
}

template <class T>
double symmetry_defect(const Array<T>& H, int n_threads) {
  const auto h = view(H, "H");
  py::gil_scoped_release release;
  return sweep::symmetry_defect(threads(n_threads), h);
}

template <class T>
void gather(const Array<T>& H, const Array<std::int64_t>& order, Array<T>& A, int n_threads) {
  const auto h = view(H, "H");
  const auto a = mutable_view(A, "A");
  const std::int64_t* p = vector(order, "order", h.rows);
  py::gil_scoped_release release;
  sweep::gather(threads(n_threads), h, p, a);
}

template <class T>
std::int64_t cholesky(Array<T>& A, const Array<double>& diagonal, int n_threads) {
  const auto a = mutable_view(A, "A");
  const double* d = vector(diagonal, "diagonal", a.rows);
  py::gil_scoped_release release;
  return sweep::cholesky(threads(n_threads), a, d).pivot;
}

template <class T>
void grid(const Array<T>& W, std::int64_t group_size, bool per_tensor, int max_code, bool symmetric, bool mse,
          double norm, int steps, int scale_bits, Array<T>& scales, Array<std::uint8_t>& zeros, int n_threads) {
  const auto w = view(W, "W");
  const auto s = mutable_view(scales, "scales");
  const auto z = mutable_view(zeros, "zeros");
  const auto options = grid_options(max_code, symmetric, mse, norm, steps, scale_bits);
  py::gil_scoped_release release;
  sweep::grid(threads(n_threads), w, group_size, per_tensor, options, s, z);
}

template <class T>
void sweep_(const Array<T>& W, const std::optional<Array<T>>& R, const Array<std::int64_t>& order,
            const std::optional<Array<bool>>& dead, const std::optional<Array<std::int32_t>>& group,
            std::int64_t group_size, std::int64_t stale_block, int max_code, bool symmetric, bool mse, double norm,
            int steps, int scale_bits, std::int64_t keep, std::int64_t out_of, double sparsity, std::int64_t mask_block,
            bool per_row, bool feedback, std::optional<Array<std::uint8_t>> codes, std::optional<Array<T>> scales,
            std::optional<Array<std::uint8_t>> zeros, std::optional<Array<T>> weights, std::optional<Array<bool>> mask,
            std::optional<Array<double>> loss, int n_threads) {
  const auto w = view(W, "W");
  sweep::Factor<T> factor;
  if (R) factor.R = view(*R, "R");
  factor.order = vector(order, "order", w.cols);
  factor.dead = vector(dead, "dead", w.cols);
  auto options = sweep_options(group_size, stale_block, grid_options(max_code, symmetric, mse, norm, steps, scale_bits),
                               keep, out_of, sparsity, mask_block, per_row, feedback);
  options.group = vector(group, "group", w.cols);
  const std::int64_t groups = scales ? view(*scales, "scales").cols : 0;
  sweep::SweepOutput<T> out;
  out.codes = output(codes, "codes", w.rows, w.cols);
  out.scales = output(scales, "scales", w.rows, groups);
  out.zeros = output(zeros, "zeros", w.rows, groups);
  out.weights = output(weights, "weights", w.rows, w.cols);
  out.mask = output(mask, "mask", w.rows, w.cols);
  if (loss) {
    vector(*loss, "loss", w.rows);
    out.loss = loss->mutable_data();
  }
  py::gil_scoped_release release;
  sweep::sweep(threads(n_threads), w, factor, options, out);
}

template <class T>
void register_kernels(py::module_& m) {
  const auto X = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("gram", gram<T>, X("X"), X("weights"), X("H"), py::arg("n_threads"),
        "H += X^T diag(weights) X on the upper triangle.");
  m.def("symmetry_defect", symmetry_defect<T>, X("H"), py::arg("n_threads"),
        "max |H_ij - H_ji| / max |H_ij|; NaN if an entry is not finite.");
  m.def("gather", gather<T>, X("H"), X("order"), X("A"), py::arg("n_threads"), "A = H in reversed sweep order.");
  m.def("cholesky", cholesky<T>, X("A"), X("diagonal"), py::arg("n_threads"),
        "Factors A in place; -1, or the sweep position of the pivot that failed.");
  m.def("grid", grid<T>, X("W"), py::arg("group_size"), py::arg("per_tensor"), py::arg("max_code"),
        py::arg("symmetric"), py::arg("mse"), py::arg("norm"), py::arg("steps"), py::arg("scale_bits"), X("scales"),
        X("zeros"), py::arg("n_threads"), "Grids of fixed groups of columns.");
  m.def("sweep", sweep_<T>, X("W"), X("R"), X("order"), X("dead"), X("group"), py::arg("group_size"),
        py::arg("stale_block"), py::arg("max_code"), py::arg("symmetric"), py::arg("mse"), py::arg("norm"),
        py::arg("steps"), py::arg("scale_bits"), py::arg("keep"), py::arg("out_of"), py::arg("sparsity"),
        py::arg("mask_block"), py::arg("per_row"), py::arg("feedback"), X("codes"), X("scales"), X("zeros"),
        X("weights"), X("mask"), X("loss"), py::arg("n_threads"),
        "The sweep: codes, grids, weights, mask and loss of W.");
}

}  // namespace

void register_sweep(py::module_& m) {
  register_kernels<float>(m);
  register_kernels<double>(m);
}

}  // namespace quadric::python
