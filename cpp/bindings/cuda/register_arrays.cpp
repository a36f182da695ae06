#include <cstring>

#include "operands.hpp"
#include "quadric/cuda/arrays.hpp"

namespace quadric::python {
namespace {

cuda::Type type_of(const Operand& a) {
  static constexpr std::pair<const char*, cuda::Type> kTypes[] = {
      {"bool", cuda::Type::boolean},    {"uint8", cuda::Type::uint8},     {"int32", cuda::Type::int32},
      {"int64", cuda::Type::int64},     {"float16", cuda::Type::float16}, {"uint16", cuda::Type::bfloat16},
      {"float32", cuda::Type::float32}, {"float64", cuda::Type::float64},
  };
  for (const auto& [name, type] : kTypes)
    if (a.dtype() == name) return type;
  throw py::type_error(std::string(a.name()) + " has an unknown type, " + a.dtype());
}

cuda::Entries entries(const Operand& a, bool written) {
  const auto view = [&](auto v) {
    return cuda::Entries{v.data, type_of(a), v.rows, v.cols, v.row_stride, v.col_stride};
  };
  return written ? view(a.any_mutable_matrix()) : view(a.any_matrix());
}

void copy(const py::object& from_, const py::object& to_, const py::object& where_) {
  Where where(where_);
  const Operand from(where, from_, "from"), to(where, to_, "to");
  cuda::copy(where.exec(), entries(from, false), entries(to, true));
  where.sync_back();
}

void fill(const py::object& to_, double value, const py::object& where_) {
  Where where(where_);
  const Operand to(where, to_, "to");
  cuda::fill(where.exec(), entries(to, true), value);
  where.sync_back();
}

py::object first_not_finite(const py::object& x_, const py::object& where_, const py::object& index_) {
  Where where(where_);
  const Operand x(where, x_, "x");
  Scalar<std::int64_t> index(where, index_, "index");
  cuda::first_not_finite(where.exec(), entries(x, false), index.data());
  where.sync_back();
  return index.result();
}

// The host's memory may be used again as soon as this returns.
void upload(const py::array& host, const py::tuple& device, const py::object& where_) {
  Where where(where_);
  cuda::upload(where.exec(), host.data(), host.nbytes(), reinterpret_cast<void*>(device[0].cast<std::uintptr_t>()));
}

void download(const py::tuple& device, py::array& host, const py::object& where_) {
  Where where(where_);
  check_cuda(cudaMemcpyAsync(host.mutable_data(), reinterpret_cast<const void*>(device[0].cast<std::uintptr_t>()),
                             static_cast<std::size_t>(host.nbytes()), cudaMemcpyDeviceToHost, where.stream()),
             "cudaMemcpyAsync");
  where.synchronize();
}

py::object first_below(const py::object& x_, double bound, const py::object& where_, const py::object& index_) {
  Where where(where_);
  const Operand x(where, x_, "x");
  Scalar<std::int64_t> index(where, index_, "index");
  by_float(x, [&](auto zero) {
    using T = decltype(zero);
    cuda::first_below<T>(where.exec(), x.matrix<T>(), bound, index.data());
  });
  where.sync_back();
  return index.result();
}

py::object first_difference(const py::object& a_, const py::object& b_, const py::object& where_,
                            const py::object& index_) {
  Where where(where_);
  const Operand a(where, a_, "a"), b(where, b_, "b");
  Scalar<std::int64_t> index(where, index_, "index");
  cuda::first_difference(where.exec(), entries(a, false), entries(b, false), index.data());
  where.sync_back();
  return index.result();
}

void divide(const py::object& by_, const py::object& x_, const py::object& where_) {
  Where where(where_);
  const Operand by(where, by_, "by"), x(where, x_, "x");
  by_float(x, [&](auto zero) {
    using T = decltype(zero);
    cuda::divide<T>(where.exec(), by.matrix<T>(), x.mutable_matrix<T>());
  });
  where.sync_back();
}

void clear_where(const py::object& mask_, bool value, const py::object& x_, const py::object& where_) {
  Where where(where_);
  const Operand mask(where, mask_, "mask"), x(where, x_, "x");
  by_float(x, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t size = x.size();
    cuda::clear_where<T>(where.exec(), mask.vector<bool>(size), value, x.mutable_vector<T>(size), size);
  });
  where.sync_back();
}

void spoil(const py::object& status_, const py::object& X_, const py::object& where_) {
  Where where(where_);
  const Operand status(where, status_, "status"), X(where, X_, "X");
  cuda::spoil(where.exec(), status.vector<std::int32_t>(1), X.mutable_matrix<double>());
  where.sync_back();
}

void symmetrize(const py::object& A_, double scale, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), out(where, out_, "out");
  by_float(A, [&](auto zero) {
    using T = decltype(zero);
    cuda::symmetrize<T>(where.exec(), A.matrix<T>(), scale, out.mutable_matrix<T>());
  });
  where.sync_back();
}

void take_columns(const py::object& from_, const py::object& index_, const py::object& to_, const py::object& where_) {
  Where where(where_);
  const Operand from(where, from_, "from"), index(where, index_, "index"), to(where, to_, "to");
  by_float(from, [&](auto zero) {
    using T = decltype(zero);
    cuda::take_columns<T>(where.exec(), from.matrix<T>(), index.vector<std::int64_t>(to.size(1)),
                          to.mutable_matrix<T>());
  });
  where.sync_back();
}

void add_to_columns(const py::object& from_, const py::object& index_, double scale, const py::object& to_,
                    const py::object& where_) {
  Where where(where_);
  const Operand from(where, from_, "from"), index(where, index_, "index", kOptional), to(where, to_, "to");
  by_float(from, [&](auto zero) {
    using T = decltype(zero);
    cuda::add_to_columns<T>(where.exec(), from.matrix<T>(), index.vector<std::int64_t>(from.size(1)), scale,
                            to.mutable_matrix<T>());
  });
  where.sync_back();
}

void take_entries(const py::object& a_, const py::object& index_, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand a(where, a_, "a"), index(where, index_, "index"), out(where, out_, "out");
  const std::int64_t count = index.size(0);
  by_float(a, [&](auto zero) {
    using T = decltype(zero);
    cuda::take_entries<T>(where.exec(), a.vector<T>(a.size(0)), index.vector<std::int64_t>(count), count,
                          out.mutable_vector<T>(count));
  });
  where.sync_back();
}

void select(const py::object& a_, const py::object& rows_, const py::object& columns_, const py::object& out_,
            const py::object& where_) {
  Where where(where_);
  const Operand a(where, a_, "a"), rows(where, rows_, "rows"), columns(where, columns_, "columns"),
      out(where, out_, "out");
  by_float(a, [&](auto zero) {
    using T = decltype(zero);
    cuda::select<T>(where.exec(), a.matrix<T>(), rows.vector<std::int64_t>(out.size(0)),
                    columns.vector<std::int64_t>(out.size(1)), out.mutable_matrix<T>());
  });
  where.sync_back();
}

void subtract_row(const py::object& a_, const py::object& row_, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand a(where, a_, "a"), row(where, row_, "row"), out(where, out_, "out");
  by_float(a, [&](auto zero) {
    using T = decltype(zero);
    cuda::subtract_row<T>(where.exec(), a.matrix<T>(), row.vector<double>(a.size(1)), out.mutable_matrix<T>());
  });
  where.sync_back();
}

void largest(const py::object& a_, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand a(where, a_, "a"), out(where, out_, "out");
  by_float(a, [&](auto zero) {
    using T = decltype(zero);
    cuda::largest<T>(where.exec(), a.vector<T>(a.size(0)), a.size(0), out.mutable_vector<double>(1));
  });
  where.sync_back();
}

void column_sums(const py::object& a_, const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand a(where, a_, "a"), out(where, out_, "out");
  by_float(a, [&](auto zero) {
    using T = decltype(zero);
    cuda::column_sums<T>(where.exec(), a.matrix<T>(), out.mutable_vector<double>(a.size(1)));
  });
  where.sync_back();
}

void scale_rows(const py::object& weights_, const py::object& X_, const py::object& where_) {
  Where where(where_);
  const Operand weights(where, weights_, "weights"), X(where, X_, "X");
  by_float(X, [&](auto zero) {
    using T = decltype(zero);
    cuda::scale_rows<T>(where.exec(), weights.vector<T>(X.size(0)), X.mutable_matrix<T>());
  });
  where.sync_back();
}

void clear(const py::object& index_, bool rows, const py::object& X_, const py::object& where_) {
  Where where(where_);
  const Operand index(where, index_, "index"), X(where, X_, "X");
  by_float(X, [&](auto zero) {
    using T = decltype(zero);
    cuda::clear<T>(where.exec(), index.vector<std::int64_t>(index.size(0)), index.size(0), rows, X.mutable_matrix<T>());
  });
  where.sync_back();
}

void dequantize(const py::object& codes_, const py::object& scales_, const py::object& zeros_, const py::object& group_,
                const py::object& out_, const py::object& where_) {
  Where where(where_);
  const Operand codes(where, codes_, "codes"), scales(where, scales_, "scales"), zeros(where, zeros_, "zeros"),
      group(where, group_, "group"), out(where, out_, "out");
  const std::int64_t m = codes.size(0), n = codes.size(1), groups = scales.size(1);
  by_float(scales, [&](auto zero) {
    using T = decltype(zero);
    const MatrixView<const std::uint8_t> c = {codes.block<std::uint8_t>({m, n}), m, n};
    const MatrixView<const T> s = {scales.block<T>({m, groups}), m, groups};
    const MatrixView<const std::uint8_t> z = {zeros.block<std::uint8_t>({m, groups}), m, groups};
    cuda::dequantize<T>(where.exec(), c, s, z, group.vector<std::int32_t>(n), out.output<T>(m, n));
  });
  where.sync_back();
}

void gemm(double alpha, const py::object& A_, const py::object& B_, double beta, const py::object& C_,
          const py::object& where_) {
  Where where(where_);
  const Operand A(where, A_, "A"), B(where, B_, "B"), C(where, C_, "C");
  by_float(C, [&](auto zero) {
    using T = decltype(zero);
    cuda::gemm<T>(where.exec(), alpha, A.matrix<T>(), B.matrix<T>(), beta, C.mutable_matrix<T>());
  });
  where.sync_back();
}

void cho_solve_columns(const py::object& L_, const py::object& X_, const py::object& where_) {
  Where where(where_);
  const Operand L(where, L_, "L"), X(where, X_, "X");
  by_float(X, [&](auto zero) {
    using T = decltype(zero);
    cuda::cho_solve_columns<T>(where.exec(), L.matrix<T>(), X.mutable_matrix<T>());
  });
  where.sync_back();
}

}  // namespace

void register_arrays(py::module_& m) {
  const auto where = py::arg("where");
  m.def("copy", &copy, py::arg("from"), py::arg("to"), where, "to = from, converted.");
  m.def("fill", &fill, py::arg("to"), py::arg("value"), where, "Sets all entries.");
  m.def("first_not_finite", &first_not_finite, py::arg("x"), where, py::arg("index") = py::none(),
        "Place of the first entry that is NaN or infinite, row by row; -1 if there is none.");
  m.def("upload", &upload, py::arg("host"), py::arg("device"), where, "Copies a contiguous NumPy array to a view.");
  m.def("download", &download, py::arg("device"), py::arg("host"), where,
        "Copies a contiguous view to a NumPy array, and waits for it.");
  m.def("first_below", &first_below, py::arg("x"), py::arg("bound"), where, py::arg("index") = py::none(),
        "Place of the first entry that is NaN or below the bound, row by row; -1 if there is none.");
  m.def("first_difference", &first_difference, py::arg("a"), py::arg("b"), where, py::arg("index") = py::none(),
        "Place of the first entry that is not the same in both, row by row; -1 if there is none.");
  m.def("divide", &divide, py::arg("by"), py::arg("x"), where, "x /= by.");
  m.def("clear_where", &clear_where, py::arg("mask"), py::arg("value"), py::arg("x"), where,
        "x = 0 where the mask has the value.");
  m.def("spoil", &spoil, py::arg("status"), py::arg("X"), where, "X becomes NaN if the status is not -1.");
  m.def("symmetrize", &symmetrize, py::arg("A"), py::arg("scale"), py::arg("out"), where,
        "out = scale * the symmetric matrix with the upper triangle of A.");
  m.def("take_columns", &take_columns, py::arg("from"), py::arg("index"), py::arg("to"), where,
        "to[:, j] = from[:, index[j]].");
  m.def("add_to_columns", &add_to_columns, py::arg("from"), py::arg("index"), py::arg("scale"), py::arg("to"), where,
        "to[:, index[j]] += scale * from[:, j].");
  m.def("take_entries", &take_entries, py::arg("a"), py::arg("index"), py::arg("out"), where, "out = a[index].");
  m.def("select", &select, py::arg("a"), py::arg("rows"), py::arg("columns"), py::arg("out"), where,
        "out[i, j] = a[rows[i], columns[j]].");
  m.def("subtract_row", &subtract_row, py::arg("a"), py::arg("row"), py::arg("out"), where, "out = a - row.");
  m.def("largest", &largest, py::arg("a"), py::arg("out"), where, "out[0] = max |a|.");
  m.def("column_sums", &column_sums, py::arg("a"), py::arg("out"), where, "out = sums of the columns of a.");
  m.def("scale_rows", &scale_rows, py::arg("weights"), py::arg("X"), where, "X[i] *= weights[i].");
  m.def("clear", &clear, py::arg("index"), py::arg("rows"), py::arg("X"), where,
        "Columns, and with `rows` rows, become 0.");
  m.def("dequantize", &dequantize, py::arg("codes"), py::arg("scales"), py::arg("zeros"), py::arg("group"),
        py::arg("out"), where, "out = scales * (codes - zeros), by group.");
  m.def("gemm", &gemm, py::arg("alpha"), py::arg("A"), py::arg("B"), py::arg("beta"), py::arg("C"), where,
        "C = alpha A B + beta C.");
  m.def("cho_solve_columns", &cho_solve_columns, py::arg("L"), py::arg("X"), where,
        "X <- (L L^T)^-1 X; both contiguous along columns.");
}

}  // namespace quadric::python
