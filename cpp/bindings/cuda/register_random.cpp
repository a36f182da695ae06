#include "operands.hpp"
#include "quadric/cuda/random.hpp"

namespace quadric::python {
namespace {

void philox(std::uint64_t seed, std::uint32_t stream, std::uint64_t first, const py::object& out_,
            const py::object& where_) {
  Where where(where_);
  const Operand out(where, out_, "out");
  const std::int64_t blocks = out.ndim() == 2 ? out.size(0) : 0;
  std::uint32_t* const words = out.mutable_block<std::uint32_t>({blocks, 4});
  cuda::random::philox(where.exec(), {seed, stream}, first, blocks, words);
  where.sync_back();
}

}  // namespace

void register_random(py::module_& m) {
  m.def("philox", &philox, py::arg("seed"), py::arg("stream"), py::arg("first"), py::arg("out"), py::arg("where"),
        "Blocks of four words of Philox 4x32-10.");
}

}  // namespace quadric::python
