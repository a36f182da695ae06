#include <pybind11/pybind11.h>

#include "arrays.hpp"
#include "quadric/random.hpp"

namespace quadric::python {
namespace {

void philox(std::uint64_t seed, std::uint32_t stream, std::uint64_t first, Array<std::uint32_t>& out, int n_threads) {
  const std::int64_t blocks = out.ndim() == 2 ? out.shape(0) : 0;
  std::uint32_t* words = mutable_block(out, "out", {blocks, 4});
  py::gil_scoped_release release;
  random::philox(threads(n_threads), {seed, stream}, first, blocks, words);
}

}  // namespace

void register_random(py::module_& m) {
  m.def("philox", &philox, py::arg("seed"), py::arg("stream"), py::arg("first"), py::arg("out").noconvert(),
        py::arg("n_threads"), "Blocks of four words of Philox 4x32-10.");
}

}  // namespace quadric::python
