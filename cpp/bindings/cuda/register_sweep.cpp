#include "operands.hpp"
#include "quadric/cuda/arrays.hpp"
#include "quadric/cuda/sweep.hpp"
#include "sweep_options.hpp"

namespace quadric::python {
namespace {

void gram(const py::object& X_, const py::object& weights_, const py::object& H_, const py::object& where_) {
  Where where(where_);
  const Operand X(where, X_, "X"), weights(where, weights_, "weights", kOptional), H(where, H_, "H");
  by_float(H, [&](auto zero) {
    using T = decltype(zero);
    const StoredRows rows = X.rows();
    cuda::sweep::gram<T>(where.exec(), rows, weights.vector<T>(rows.rows), H.mutable_matrix<T>());
  });
  where.sync_back();
}

py::object symmetry_defect(const py::object& H_, const py::object& where_, const py::object& defect_) {
  Where where(where_);
  const Operand H(where, H_, "H");
  Scalar<double> defect(where, defect_, "defect");
  by_float(H, [&](auto zero) {
    using T = decltype(zero);
    cuda::sweep::symmetry_defect<T>(where.exec(), H.matrix<T>(), defect.data());
  });
  where.sync_back();
  return defect.result();
}

void gather(const py::object& H_, const py::object& order_, const py::object& A_, const py::object& where_) {
  Where where(where_);
  const Operand H(where, H_, "H"), order(where, order_, "order"), A(where, A_, "A");
  by_float(H, [&](auto zero) {
    using T = decltype(zero);
    const auto h = H.matrix<T>();
    cuda::sweep::gather<T>(where.exec(), h, order.vector<std::int64_t>(h.rows), A.mutable_matrix<T>());
  });
  where.sync_back();
}

void symmetry_defect_batch(const py::object& H_, const py::object& defects_, const py::object& where_) {
  Where where(where_);
  const Operand H(where, H_, "H"), defects(where, defects_, "defects");
  if (H.ndim() != 3) throw invalid_argument("H must have three dimensions");
  const std::int64_t count = H.size(0), n = H.size(1);
  by_float(H, [&](auto zero) {
    using T = decltype(zero);
    cuda::sweep::symmetry_defect_batch<T>(where.exec(), count, n, H.block<T>({count, n, n}),
                                          defects.mutable_vector<double>(count));
  });
  where.sync_back();
}

void arrange(const py::object& H_, double damping, bool activation, const py::object& group_, const py::object& order_,
             const py::object& dead_, const py::object& original_, const py::object& damped_, const py::object& index_,
             const py::object& where_) {
  Where where(where_);
  const Operand H(where, H_, "H"), group(where, group_, "group", kOptional), order(where, order_, "order"),
      dead(where, dead_, "dead"), original(where, original_, "original"), damped(where, damped_, "damped"),
      index(where, index_, "index", kOptional);
  if (H.ndim() != 3) throw invalid_argument("H must have three dimensions");
  const std::int64_t count = H.size(0), n = H.size(1);
  by_float(H, [&](auto zero) {
    using T = decltype(zero);
    cuda::sweep::arrange<T>(where.exec(), count, n, H.block<T>({count, n, n}), damping, activation,
                            group.vector<std::int32_t>(n), order.mutable_block<std::int64_t>({count, n}),
                            dead.mutable_block<bool>({count, n}), original.mutable_block<double>({count, n}),
                            damped.mutable_block<double>({count, n}), index.mutable_block<std::int32_t>({count, n}));
  });
  where.sync_back();
}

void gather_batch(const py::object& H_, const py::object& order_, const py::object& dead_, const py::object& A_,
                  const py::object& where_) {
  Where where(where_);
  const Operand H(where, H_, "H"), order(where, order_, "order"), dead(where, dead_, "dead", kOptional),
      A(where, A_, "A");
  if (H.ndim() != 3) throw invalid_argument("H must have three dimensions");
  const std::int64_t count = H.size(0), n = H.size(1);
  by_float(H, [&](auto zero) {
    using T = decltype(zero);
    cuda::sweep::gather_batch<T>(where.exec(), count, n, H.block<T>({count, n, n}),
                                 order.block<std::int64_t>({count, n}), dead.block<bool>({count, n}),
                                 A.mutable_block<T>({count, n, n}));
  });
  where.sync_back();
}

py::object cholesky(const py::object& A_, const py::object& diagonal_, const py::object& where_,
                    const py::object& pivot_) {
  Where where(where_);
  const Operand A(where, A_, "A"), diagonal(where, diagonal_, "diagonal");
  Scalar<std::int64_t> pivot(where, pivot_, "pivot");
  by_float(A, [&](auto zero) {
    using T = decltype(zero);
    const auto a = A.mutable_matrix<T>();
    cuda::sweep::cholesky<T>(where.exec(), a, diagonal.vector<double>(a.rows), pivot.data());
  });
  where.sync_back();
  return pivot.result();
}

void cholesky_batch(const py::object& A_, const py::object& diagonal_, const py::object& pivot_,
                    const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), diagonal(where, diagonal_, "diagonal"), pivot(where, pivot_, "pivot");
  if (A.ndim() != 3) throw invalid_argument("A must have three dimensions");
  const std::int64_t count = A.size(0), n = A.size(1);
  by_float(A, [&](auto zero) {
    using T = decltype(zero);
    cuda::sweep::cholesky_batch<T>(where.exec(), count, n, A.mutable_block<T>({count, n, n}),
                                   diagonal.block<double>({count, n}), pivot.mutable_vector<std::int64_t>(count));
  });
  where.sync_back();
}

void factorize_batch(const py::object& H_, double damping, bool activation, const py::object& group_,
                     const py::object& A_, const py::object& order_, const py::object& dead_,
                     const py::object& original_, const py::object& index_, const py::object& defects_,
                     const py::object& pivots_, const py::object& where_) {
  Where where(where_);
  const Operand H(where, H_, "H"), group(where, group_, "group", kOptional), A(where, A_, "A"),
      order(where, order_, "order"), dead(where, dead_, "dead", kOptional),
      original(where, original_, "original", kOptional), index(where, index_, "index", kOptional),
      defects(where, defects_, "defects"), pivots(where, pivots_, "pivots");
  if (H.ndim() != 3) throw invalid_argument("H must have three dimensions");
  const std::int64_t count = H.size(0), n = H.size(1);
  by_float(H, [&](auto zero) {
    using T = decltype(zero);
    cuda::sweep::factorize_batch<T>(where.exec(), count, n, H.block<T>({count, n, n}), damping, activation,
                                    group.vector<std::int32_t>(n), A.mutable_block<T>({count, n, n}),
                                    order.mutable_block<std::int64_t>({count, n}), dead.mutable_block<bool>({count, n}),
                                    original.mutable_block<double>({count, n}),
                                    index.mutable_block<std::int32_t>({count, n}),
                                    defects.mutable_vector<double>(count), pivots.mutable_vector<std::int64_t>(count));
  });
  where.sync_back();
}

// The place of the first entry of W and of scales that is NaN or infinite, -1 without one. Waits.
py::tuple first_not_finite(const py::object& W_, const py::object& scales_, const py::object& where_) {
  Where where(where_);
  const Operand W(where, W_, "W"), scales(where, scales_, "scales", kOptional);
  std::int64_t found[2] = {-1, -1};
  auto* const there = static_cast<std::int64_t*>(where.bytes(sizeof found));
  const std::size_t bytes = scales.present() ? sizeof found : sizeof *found;
  by_float(W, [&](auto zero) {
    using T = decltype(zero);
    const cuda::Type type = sizeof(T) == 4 ? cuda::Type::float32 : cuda::Type::float64;
    const auto look = [&](const Operand::AnyMatrix& v, std::int64_t* index) {
      cuda::first_not_finite(where.exec(), {v.data, type, v.rows, v.cols, v.row_stride, v.col_stride}, index);
    };
    look(W.any_matrix(), there);
    if (scales.present()) look(scales.any_matrix(), there + 1);
  });
  check_cuda(cudaMemcpyAsync(found, there, bytes, cudaMemcpyDeviceToHost, where.stream()), "cudaMemcpyAsync");
  where.synchronize();
  return py::make_tuple(found[0], found[1]);
}

void grid(const py::object& W_, std::int64_t group_size, bool per_tensor, int max_code, bool symmetric, bool mse,
          double norm, int steps, int scale_bits, const py::object& scales_, const py::object& zeros_,
          const py::object& where_) {
  Where where(where_);
  const Operand W(where, W_, "W"), scales(where, scales_, "scales"), zeros(where, zeros_, "zeros");
  const auto options = grid_options(max_code, symmetric, mse, norm, steps, scale_bits);
  by_float(W, [&](auto zero) {
    using T = decltype(zero);
    const auto w = W.matrix<T>();
    const std::int64_t groups = scales.size(1);
    cuda::sweep::grid<T>(where.exec(), w, group_size, per_tensor, options, scales.output<T>(w.rows, groups),
                         zeros.output<std::uint8_t>(w.rows, groups));
  });
  where.sync_back();
}

void sweep_(const py::object& W_, const py::object& R_, const py::object& order_, const py::object& dead_,
            const py::object& group_, std::int64_t group_size, std::int64_t stale_block, int max_code, bool symmetric,
            bool mse, double norm, int steps, int scale_bits, std::int64_t keep, std::int64_t out_of, double sparsity,
            std::int64_t mask_block, bool per_row, bool feedback, const py::object& codes_, const py::object& scales_,
            const py::object& zeros_, const py::object& weights_, const py::object& mask_, const py::object& loss_,
            const py::object& where_) {
  Where where(where_);
  const Operand W(where, W_, "W"), R(where, R_, "R", kOptional), order(where, order_, "order"),
      dead(where, dead_, "dead", kOptional), group(where, group_, "group", kOptional),
      codes(where, codes_, "codes", kOptional), scales(where, scales_, "scales", kOptional),
      zeros(where, zeros_, "zeros", kOptional), weights(where, weights_, "weights", kOptional),
      mask(where, mask_, "mask", kOptional), loss(where, loss_, "loss", kOptional);
  auto options = sweep_options(group_size, stale_block, grid_options(max_code, symmetric, mse, norm, steps, scale_bits),
                               keep, out_of, sparsity, mask_block, per_row, feedback);
  by_float(W, [&](auto zero) {
    using T = decltype(zero);
    const auto w = W.matrix<T>();
    const std::int64_t m = w.rows, n = w.cols;
    sweep::Factor<T> factor;
    if (R.present()) factor.R = R.matrix<T>();
    factor.order = order.vector<std::int64_t>(n);
    factor.dead = dead.vector<bool>(n);
    options.group = group.vector<std::int32_t>(n);
    const std::int64_t groups = scales.present() ? scales.size(1) : 0;
    sweep::SweepOutput<T> out;
    out.codes = codes.output<std::uint8_t>(m, n);
    out.scales = scales.output<T>(m, groups);
    out.zeros = zeros.output<std::uint8_t>(m, groups);
    out.weights = weights.output<T>(m, n);
    out.mask = mask.output<bool>(m, n);
    out.loss = loss.mutable_vector<double>(m);
    cuda::sweep::sweep<T>(where.exec(), w, factor, options, out);
  });
  where.sync_back();
}

// Of `count` matrices: every array has one more axis in front, but for `group`.
void sweep_batch(const py::object& W_, const py::object& A_, const py::object& order_, const py::object& dead_,
                 const py::object& group_, std::int64_t group_size, std::int64_t stale_block, int max_code,
                 bool symmetric, bool mse, double norm, int steps, int scale_bits, std::int64_t keep,
                 std::int64_t out_of, double sparsity, std::int64_t mask_block, bool per_row, bool feedback,
                 const py::object& codes_, const py::object& scales_, const py::object& zeros_,
                 const py::object& weights_, const py::object& mask_, const py::object& loss_,
                 const py::object& where_) {
  Where where(where_);
  const Operand W(where, W_, "W"), A(where, A_, "A", kOptional), order(where, order_, "order"),
      dead(where, dead_, "dead", kOptional), group(where, group_, "group", kOptional),
      codes(where, codes_, "codes", kOptional), scales(where, scales_, "scales", kOptional),
      zeros(where, zeros_, "zeros", kOptional), weights(where, weights_, "weights", kOptional),
      mask(where, mask_, "mask", kOptional), loss(where, loss_, "loss", kOptional);
  auto options = sweep_options(group_size, stale_block, grid_options(max_code, symmetric, mse, norm, steps, scale_bits),
                               keep, out_of, sparsity, mask_block, per_row, feedback);
  if (W.ndim() != 3) throw invalid_argument("W must have three dimensions");
  const std::int64_t count = W.size(0), m = W.size(1), n = W.size(2);
  const std::int64_t groups = scales.present() ? scales.size(2) : 0;
  by_float(W, [&](auto zero) {
    using T = decltype(zero);
    const auto stacked = [&](auto* data, std::int64_t columns) {
      using View = MatrixView<std::remove_pointer_t<decltype(data)>>;
      return data == nullptr ? View() : View(data, count * m, columns);
    };
    options.group = group.vector<std::int32_t>(n);
    sweep::SweepOutput<T> out;
    out.codes = stacked(codes.mutable_block<std::uint8_t>({count, m, n}), n);
    out.scales = stacked(scales.mutable_block<T>({count, m, groups}), groups);
    out.zeros = stacked(zeros.mutable_block<std::uint8_t>({count, m, groups}), groups);
    out.weights = stacked(weights.mutable_block<T>({count, m, n}), n);
    out.mask = stacked(mask.mutable_block<bool>({count, m, n}), n);
    out.loss = loss.mutable_block<double>({count, m});
    cuda::sweep::sweep_batch<T>(where.exec(), count, stacked(W.block<T>({count, m, n}), n), A.block<T>({count, n, n}),
                                order.block<std::int64_t>({count, n}), dead.block<bool>({count, n}), options, out);
  });
  where.sync_back();
}

template <class F>
void define_sweep(py::module_& m, const char* name, F f, const char* factor, const char* doc) {
  m.def(name, f, py::arg("W"), py::arg(factor), py::arg("order"), py::arg("dead"), py::arg("group"),
        py::arg("group_size"), py::arg("stale_block"), py::arg("max_code"), py::arg("symmetric"), py::arg("mse"),
        py::arg("norm"), py::arg("steps"), py::arg("scale_bits"), py::arg("keep"), py::arg("out_of"),
        py::arg("sparsity"), py::arg("mask_block"), py::arg("per_row"), py::arg("feedback"), py::arg("codes"),
        py::arg("scales"), py::arg("zeros"), py::arg("weights"), py::arg("mask"), py::arg("loss"), py::arg("where"),
        doc);
}

}  // namespace

void register_sweep(py::module_& m) {
  const auto where = py::arg("where");
  m.def("gram", &gram, py::arg("X"), py::arg("weights"), py::arg("H"), where,
        "H += X^T diag(weights) X on the upper triangle.");
  m.def("symmetry_defect", &symmetry_defect, py::arg("H"), where, py::arg("defect") = py::none(),
        "max |H_ij - H_ji| / max |H_ij|; NaN if an entry is not finite.");
  m.def("gather", &gather, py::arg("H"), py::arg("order"), py::arg("A"), where, "A = H in reversed sweep order.");
  m.def("symmetry_defect_batch", &symmetry_defect_batch, py::arg("H"), py::arg("defects"), where,
        "The same for many matrices; defects receives what `symmetry_defect` returns.");
  m.def("arrange", &arrange, py::arg("H"), py::arg("damping"), py::arg("activation"), py::arg("group"),
        py::arg("order"), py::arg("dead"), py::arg("original"), py::arg("damped"), py::arg("index"), where,
        "Orders, dead inputs and damped diagonals of many Hessians.");
  m.def("gather_batch", &gather_batch, py::arg("H"), py::arg("order"), py::arg("dead"), py::arg("A"), where,
        "The same for many matrices, with zeros for dead inputs.");
  m.def("cholesky", &cholesky, py::arg("A"), py::arg("diagonal"), where, py::arg("pivot") = py::none(),
        "Factors A in place; -1, or the sweep position of the pivot that failed.");
  m.def("cholesky_batch", &cholesky_batch, py::arg("A"), py::arg("diagonal"), py::arg("pivot"), where,
        "The same for many matrices; pivot receives what `cholesky` returns.");
  m.def("factorize_batch", &factorize_batch, py::arg("H"), py::arg("damping"), py::arg("activation"), py::arg("group"),
        py::arg("A"), py::arg("order"), py::arg("dead"), py::arg("original"), py::arg("index"), py::arg("defects"),
        py::arg("pivots"), where, "The four of them one after the other.");
  m.def("first_not_finite", &first_not_finite, py::arg("W"), py::arg("scales"), where,
        "Where the first entry of each is that is NaN or infinite, or -1; waits.");
  m.def("grid", &grid, py::arg("W"), py::arg("group_size"), py::arg("per_tensor"), py::arg("max_code"),
        py::arg("symmetric"), py::arg("mse"), py::arg("norm"), py::arg("steps"), py::arg("scale_bits"),
        py::arg("scales"), py::arg("zeros"), where, "Grids of fixed groups of columns.");
  define_sweep(m, "sweep", &sweep_, "R", "The sweep: codes, grids, weights, mask and loss of W.");
  define_sweep(m, "sweep_batch", &sweep_batch, "A",
               "The sweep of many matrices of one shape, with factors as `cholesky_batch` leaves them.");
}

}  // namespace quadric::python
