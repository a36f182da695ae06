#include "operands.hpp"
#include "quadric/cuda/woodbury.hpp"

namespace quadric::python {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return b > 0 ? (a + b - 1) / b : 0; }

std::int64_t chunks(std::int64_t block_size, std::int64_t d) {
  return ceil_div(ceil_div(d, block_size), cuda::woodbury::kLanes);
}

// The arguments that all functions on F have in common.
struct Source {
  Operand sums, rows;
  std::int64_t block_size, count;
  double damping;

  Source(Where& where, const py::object& sums_, const py::object& rows_, std::int64_t block_size_, std::int64_t count_,
         double damping_)
      : sums(where, sums_, "sums", kOptional),
        rows(where, rows_, "rows", kOptional),
        block_size(block_size_),
        count(count_),
        damping(damping_) {}

  cuda::woodbury::BlockSource operator()(std::int64_t d) const {
    cuda::woodbury::BlockSource F;
    F.block_size = block_size;
    F.d = d;
    F.count = count;
    F.damping = damping;
    const std::int64_t entries = block_size * (block_size + 1) / 2;
    F.sums = sums.block<double>({chunks(block_size, d), entries, cuda::woodbury::kLanes});
    if (rows.present()) F.rows = rows.rows();
    return F;
  }
};

void block_gram(const py::object& G_, std::int64_t block_size, const py::object& sums_, const py::object& where_) {
  Where where(where_);
  const Operand G(where, G_, "G"), sums(where, sums_, "sums");
  const StoredRows g = G.rows();
  const std::int64_t entries = block_size * (block_size + 1) / 2;
  cuda::woodbury::block_gram(where.exec(), g, block_size,
                             sums.mutable_block<double>({chunks(block_size, g.cols), entries, cuda::woodbury::kLanes}));
  where.sync_back();
}

void block_inverse(const py::object& sums_, const py::object& rows_, std::int64_t block_size, std::int64_t d,
                   std::int64_t count, double damping, std::int64_t group, const py::object& out_,
                   const py::object& status_, const py::object& where_) {
  Where where(where_);
  const Source F(where, sums_, rows_, block_size, count, damping);
  const Operand out(where, out_, "out"), status(where, status_, "status");
  by_float(out, [&](auto zero) {
    using T = decltype(zero);
    cuda::woodbury::block_inverse<T>(where.exec(), F(d), group,
                                     out.mutable_block<T>({ceil_div(d, group), group, group}),
                                     status.mutable_vector<std::int32_t>(ceil_div(d, block_size)));
  });
  where.sync_back();
}

void block_scores(const py::object& sums_, const py::object& rows_, std::int64_t block_size, std::int64_t count,
                  double damping, const py::object& w_, std::int64_t group, const py::object& out_,
                  const py::object& status_, const py::object& where_) {
  Where where(where_);
  const Source F(where, sums_, rows_, block_size, count, damping);
  const Operand w(where, w_, "w"), out(where, out_, "out"), status(where, status_, "status");
  const std::int64_t d = w.size();
  by_float(w, [&](auto zero) {
    using T = decltype(zero);
    cuda::woodbury::block_scores<T>(where.exec(), F(d), w.vector<T>(d), group,
                                    out.mutable_vector<T>(ceil_div(d, group)),
                                    status.mutable_vector<std::int32_t>(ceil_div(d, block_size)));
  });
  where.sync_back();
}

void block_solve(const py::object& sums_, const py::object& rows_, std::int64_t block_size, std::int64_t count,
                 double damping, const py::object& V_, const py::object& out_, const py::object& status_,
                 const py::object& where_) {
  Where where(where_);
  const Source F(where, sums_, rows_, block_size, count, damping);
  const Operand V(where, V_, "V"), out(where, out_, "out"), status(where, status_, "status");
  by_float(V, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<const T> v = V.matrix<T>();
    cuda::woodbury::block_solve<T>(where.exec(), F(v.cols), v, out.mutable_matrix<T>(),
                                   status.mutable_vector<std::int32_t>(ceil_div(v.cols, block_size)));
  });
  where.sync_back();
}

void block_prune(const py::object& sums_, const py::object& rows_, std::int64_t block_size, std::int64_t count,
                 double damping, const py::object& w_, const py::object& mask_, const py::object& out_,
                 const py::object& loss_, const py::object& status_, const py::object& where_) {
  Where where(where_);
  const Source F(where, sums_, rows_, block_size, count, damping);
  const Operand w(where, w_, "w"), mask(where, mask_, "mask"), out(where, out_, "out"), loss(where, loss_, "loss"),
      status(where, status_, "status");
  const std::int64_t d = w.size(), blocks = ceil_div(d, block_size);
  by_float(w, [&](auto zero) {
    using T = decltype(zero);
    cuda::woodbury::block_prune<T>(where.exec(), F(d), w.vector<T>(d), mask.vector<bool>(d), out.mutable_vector<T>(d),
                                   loss.mutable_vector<double>(blocks), status.mutable_vector<std::int32_t>(blocks));
  });
  where.sync_back();
}

}  // namespace

void register_blocks(py::module_& m) {
  const auto where = py::arg("where");
  m.def("block_gram", &block_gram, py::arg("G"), py::arg("block_size"), py::arg("sums"), where,
        "sums += X_b^T X_b for all blocks.");
  m.def("block_inverse", &block_inverse, py::arg("sums"), py::arg("rows"), py::arg("block_size"), py::arg("d"),
        py::arg("count"), py::arg("damping"), py::arg("group"), py::arg("out"), py::arg("status"), where,
        "Entries of F^-1 for groups of consecutive weights.");
  m.def("block_scores", &block_scores, py::arg("sums"), py::arg("rows"), py::arg("block_size"), py::arg("count"),
        py::arg("damping"), py::arg("w"), py::arg("group"), py::arg("out"), py::arg("status"), where,
        "What it costs to set groups of weights to zero.");
  m.def("block_solve", &block_solve, py::arg("sums"), py::arg("rows"), py::arg("block_size"), py::arg("count"),
        py::arg("damping"), py::arg("V"), py::arg("out"), py::arg("status"), where, "F^-1 V, row by row.");
  m.def("block_prune", &block_prune, py::arg("sums"), py::arg("rows"), py::arg("block_size"), py::arg("count"),
        py::arg("damping"), py::arg("w"), py::arg("mask"), py::arg("out"), py::arg("loss"), py::arg("status"), where,
        "The joint step of optimal brain surgeon in each block.");
}

}  // namespace quadric::python
