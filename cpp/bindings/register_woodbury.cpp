#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "arrays.hpp"
#include "quadric/woodbury.hpp"

namespace quadric::python {
namespace {

Storage storage_of(const py::array& a, const char* name) {
  const py::dtype type = a.dtype();
  if (type.byteorder() == '=' || type.byteorder() == '|') {
    switch (type.char_()) {
      case 'e':
        return Storage::float16;
      case 'H':
        return Storage::bfloat16;
      case 'f':
        return Storage::float32;
      case 'd':
        return Storage::float64;
    }
  }
  throw invalid_argument(std::string(name) + " must be float16, bfloat16 (as uint16), float32 or float64");
}

StoredRows stored(const py::array& a, const char* name) {
  StoredRows rows;
  rows.storage = storage_of(a, name);
  const py::ssize_t size = a.itemsize();
  if (a.ndim() != 2 || (a.shape(1) > 1 && a.shape(0) > 0 && a.strides(1) != size))
    throw invalid_argument(std::string(name) + " must have two dimensions and contiguous rows");
  rows.data = a.data();
  rows.rows = a.shape(0);
  rows.cols = a.shape(1);
  rows.row_stride = a.strides(0) / size;
  return rows;
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return b > 0 ? (a + b - 1) / b : 0; }

using Sums = std::optional<Array<double>>;
using Rows = std::optional<py::array>;

woodbury::BlockSource source(const Sums& sums, const Rows& rows, std::int64_t block_size, std::int64_t d,
                             std::int64_t count, double damping) {
  woodbury::BlockSource F;
  F.block_size = block_size;
  F.d = d;
  F.count = count;
  F.damping = damping;
  if (sums) {
    const std::int64_t chunks = ceil_div(ceil_div(d, block_size), woodbury::kLanes);
    F.sums = block(*sums, "sums", {chunks, block_size * (block_size + 1) / 2, woodbury::kLanes});
  }
  if (rows) F.rows = stored(*rows, "rows");
  return F;
}

void block_gram(const py::array& G, std::int64_t block_size, Array<double>& sums, int n_threads) {
  const auto g = stored(G, "G");
  const std::int64_t chunks = ceil_div(ceil_div(g.cols, block_size), woodbury::kLanes);
  double* s = mutable_block(sums, "sums", {chunks, block_size * (block_size + 1) / 2, woodbury::kLanes});
  py::gil_scoped_release release;
  woodbury::block_gram(threads(n_threads), g, block_size, s);
}

template <class T>
void block_inverse(const Sums& sums, const Rows& rows, std::int64_t block_size, std::int64_t d, std::int64_t count,
                   double damping, std::int64_t group, Array<T>& out, Array<std::int32_t>& status, int n_threads) {
  const auto F = source(sums, rows, block_size, d, count, damping);
  T* o = mutable_block(out, "out", {ceil_div(d, group), group, group});
  std::int32_t* s = mutable_vector(status, "status", ceil_div(d, block_size));
  py::gil_scoped_release release;
  woodbury::block_inverse(threads(n_threads), F, group, o, s);
}

template <class T>
void block_scores(const Sums& sums, const Rows& rows, std::int64_t block_size, std::int64_t count, double damping,
                  const Array<T>& w, std::int64_t group, Array<T>& out, Array<std::int32_t>& status, int n_threads) {
  const std::int64_t d = w.size();
  const auto F = source(sums, rows, block_size, d, count, damping);
  const T* weights = vector(w, "w", d);
  T* o = mutable_vector(out, "out", ceil_div(d, group));
  std::int32_t* s = mutable_vector(status, "status", ceil_div(d, block_size));
  py::gil_scoped_release release;
  woodbury::block_scores(threads(n_threads), F, weights, group, o, s);
}

template <class T>
void block_solve(const Sums& sums, const Rows& rows, std::int64_t block_size, std::int64_t count, double damping,
                 const Array<T>& V, Array<T>& out, Array<std::int32_t>& status, int n_threads) {
  const auto v = view(V, "V");
  const auto o = mutable_view(out, "out");
  const auto F = source(sums, rows, block_size, v.cols, count, damping);
  std::int32_t* s = mutable_vector(status, "status", ceil_div(v.cols, block_size));
  py::gil_scoped_release release;
  woodbury::block_solve(threads(n_threads), F, v, o, s);
}

template <class T>
void block_prune(const Sums& sums, const Rows& rows, std::int64_t block_size, std::int64_t count, double damping,
                 const Array<T>& w, const Array<bool>& mask, Array<T>& out, Array<double>& loss,
                 Array<std::int32_t>& status, int n_threads) {
  const std::int64_t d = w.size(), blocks = ceil_div(d, block_size);
  const auto F = source(sums, rows, block_size, d, count, damping);
  const T* weights = vector(w, "w", d);
  const bool* kept = vector(mask, "mask", d);
  T* o = mutable_vector(out, "out", d);
  double* l = mutable_vector(loss, "loss", blocks);
  std::int32_t* s = mutable_vector(status, "status", blocks);
  py::gil_scoped_release release;
  woodbury::block_prune(threads(n_threads), F, weights, kept, o, l, s);
}

void gram(const py::array& G, std::int64_t block_size, bool exact, Array<double>& K, int n_threads) {
  const auto g = stored(G, "G");
  double* k = mutable_block(K, "K", {ceil_div(g.cols, block_size), g.rows, g.rows});
  py::gil_scoped_release release;
  woodbury::gram(threads(n_threads), g, block_size, exact, k);
}

template <class T>
void dots(const py::array& G, const Array<T>& X, std::int64_t block_size, Array<double>& out, int n_threads) {
  const auto g = stored(G, "G");
  const auto x = view(X, "X");
  double* o = mutable_block(out, "out", {ceil_div(g.cols, block_size), g.rows, x.rows});
  py::gil_scoped_release release;
  woodbury::dots(threads(n_threads), g, x, block_size, o);
}

template <class T>
void combine(const py::array& G, const Array<double>& C, const std::optional<Array<T>>& X, double scale,
             std::int64_t block_size, Array<T>& out, int n_threads) {
  const auto g = stored(G, "G");
  const auto o = mutable_view(out, "out");
  const double* c = block(C, "C", {ceil_div(g.cols, block_size), o.rows, g.rows});
  const T* x = X ? block(*X, "X", {o.rows, o.cols}) : nullptr;
  block(out, "out", {o.rows, g.cols});
  py::gil_scoped_release release;
  woodbury::combine(threads(n_threads), g, c, x, scale, block_size, o);
}

void column_norms(const py::array& G, const Rows& E, std::int64_t block_size, const Array<double>& L,
                  Array<double>& out, int n_threads) {
  const auto g = stored(G, "G");
  const auto e = E ? stored(*E, "E") : StoredRows{};
  const std::int64_t m = g.rows + e.rows;
  const double* l = block(L, "L", {ceil_div(g.cols, block_size), m, m});
  double* o = mutable_vector(out, "out", g.cols);
  py::gil_scoped_release release;
  woodbury::column_norms(threads(n_threads), g, e, block_size, l, o);
}

template <class T>
std::int64_t store(const Array<T>& g, py::array& row, std::optional<Array<T>> rounded, int n_threads) {
  const Storage storage = storage_of(row, "row");
  const std::int64_t d = g.size();
  if (row.ndim() != 1 || row.shape(0) != d || (d > 1 && row.strides(0) != row.itemsize()))
    throw invalid_argument("row must be contiguous with the entries of g");
  const T* from = vector(g, "g", d);
  void* to = row.mutable_data();
  T* r = mutable_vector(rounded, "rounded", d);
  py::gil_scoped_release release;
  return woodbury::store(threads(n_threads), from, storage, to, r, d);
}

template <class T>
std::vector<MatrixView<const T>> views(const std::vector<Array<T>>& arrays, const char* name) {
  std::vector<MatrixView<const T>> result;
  for (const Array<T>& a : arrays) result.push_back(view(a, name));
  return result;
}

template <class T>
std::vector<MatrixView<T>> mutable_views(std::vector<Array<T>>& arrays, const char* name) {
  std::vector<MatrixView<T>> result;
  for (Array<T>& a : arrays) result.push_back(mutable_view(a, name));
  return result;
}

template <class T>
void symmetric_product(const std::vector<Array<T>>& J, const std::vector<Array<T>>& V, std::vector<Array<T>> Y,
                       int n_threads) {
  const auto j = views(J, "J"), v = views(V, "V");
  const auto y = mutable_views(Y, "Y");
  if (v.size() != j.size() || y.size() != j.size()) throw invalid_argument("J, V and Y must be equally many");
  py::gil_scoped_release release;
  woodbury::symmetric_product(threads(n_threads), static_cast<std::int64_t>(j.size()), j.data(), v.data(), y.data());
}

template <class T>
void symmetric_update(const std::vector<Array<T>>& J, const Array<double>& alpha, const Array<double>& delta,
                      const Array<double>& sign, const std::vector<Array<T>>& Y, std::vector<Array<T>> out,
                      Array<double>& norms, int n_threads) {
  const auto j = views(J, "J"), y = views(Y, "Y");
  const auto o = mutable_views(out, "out");
  const auto count = static_cast<std::int64_t>(j.size());
  if (y.size() != j.size() || o.size() != j.size()) throw invalid_argument("J, Y and out must be equally many");
  const double *a = vector(alpha, "alpha", count), *d = vector(delta, "delta", count);
  const double* s = vector(sign, "sign", count);
  double* n = mutable_vector(norms, "norms", count);
  py::gil_scoped_release release;
  woodbury::symmetric_update(threads(n_threads), count, j.data(), a, d, s, y.data(), o.data(), n);
}

// Where an argument could be float32 or float64, the overload is chosen by its type.
template <class T>
void register_kernels(py::module_& m) {
  const auto X = [](const char* name) { return py::arg(name).noconvert(); };
  const auto n_threads = py::arg("n_threads");
  m.def("block_inverse", block_inverse<T>, X("sums"), X("rows"), py::arg("block_size"), py::arg("d"), py::arg("count"),
        py::arg("damping"), py::arg("group"), X("out"), X("status"), n_threads,
        "Entries of F^-1 for groups of consecutive weights.");
  m.def("block_scores", block_scores<T>, X("sums"), X("rows"), py::arg("block_size"), py::arg("count"),
        py::arg("damping"), X("w"), py::arg("group"), X("out"), X("status"), n_threads,
        "What it costs to set groups of weights to zero.");
  m.def("block_solve", block_solve<T>, X("sums"), X("rows"), py::arg("block_size"), py::arg("count"),
        py::arg("damping"), X("V"), X("out"), X("status"), n_threads, "F^-1 V, row by row.");
  m.def("block_prune", block_prune<T>, X("sums"), X("rows"), py::arg("block_size"), py::arg("count"),
        py::arg("damping"), X("w"), X("mask"), X("out"), X("loss"), X("status"), n_threads,
        "The joint step of optimal brain surgeon in each block.");
  m.def("dots", dots<T>, X("G"), X("X"), py::arg("block_size"), X("out"), n_threads, "G X^T for blocks of columns.");
  m.def("combine", combine<T>, X("G"), X("C"), X("X"), py::arg("scale"), py::arg("block_size"), X("out"), n_threads,
        "scale X + C G for blocks of columns.");
  m.def("store", store<T>, X("g"), X("row"), X("rounded"), n_threads,
        "Rounds g into a row; -1, or the index of the first entry that is not finite.");
  m.def("symmetric_product", symmetric_product<T>, X("J"), X("V"), X("Y"), n_threads, "Y = V J for many factors.");
  m.def("symmetric_update", symmetric_update<T>, X("J"), X("alpha"), X("delta"), X("sign"), X("Y"), X("out"),
        X("norms"), n_threads, "out = alpha J + delta I + sign Y^T Y for many factors, and their norms.");
}

}  // namespace

void register_woodbury(py::module_& m) {
  const auto X = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("block_gram", block_gram, X("G"), py::arg("block_size"), X("sums"), py::arg("n_threads"),
        "sums += X_b^T X_b for all blocks.");
  m.def("gram", gram, X("G"), py::arg("block_size"), py::arg("exact"), X("K"), py::arg("n_threads"),
        "K = G G^T for blocks of columns.");
  m.def("column_norms", column_norms, X("G"), X("E"), py::arg("block_size"), X("L"), X("out"), py::arg("n_threads"),
        "Column sums of squares of L^-1 [G; E].");
  register_kernels<float>(m);
  register_kernels<double>(m);
}

}  // namespace quadric::python
