#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "quadric/blas.hpp"
#include "quadric/simd.hpp"
#include "quadric/status.hpp"

namespace py = pybind11;

namespace quadric::python {

void register_linalg(py::module_& m);
void register_random(py::module_& m);
void register_sketch(py::module_& m);
void register_sweep(py::module_& m);
void register_transport(py::module_& m);
void register_woodbury(py::module_& m);

namespace {

// One of SciPy's own BLAS or LAPACK pointers. The capsule's name is the C signature, which tells the integer width.
template <class F>
void load(py::dict api, const char* name, F*& pointer) {
  const py::capsule capsule = api[name];
  if (std::string(capsule.name()).find("int *") == std::string::npos ||
      std::string(capsule.name()).find("64") != std::string::npos)
    throw py::import_error(std::string("quadric needs a SciPy whose BLAS takes 32-bit integers; ") + name +
                           " has the signature " + capsule.name());
  pointer = reinterpret_cast<F*>(capsule.get_pointer<void>());
}

void load_scipy_blas() {
  const py::dict blas_api = py::module_::import("scipy.linalg.cython_blas").attr("__pyx_capi__");
  const py::dict lapack_api = py::module_::import("scipy.linalg.cython_lapack").attr("__pyx_capi__");
  BlasTable table;
  load(blas_api, "sgemm", table.s.gemm);
  load(blas_api, "dgemm", table.d.gemm);
  load(blas_api, "ssyrk", table.s.syrk);
  load(blas_api, "dsyrk", table.d.syrk);
  load(blas_api, "strsm", table.s.trsm);
  load(blas_api, "dtrsm", table.d.trsm);
  load(blas_api, "strmm", table.s.trmm);
  load(blas_api, "dtrmm", table.d.trmm);
  load(lapack_api, "spotrf", table.s.potrf);
  load(lapack_api, "dpotrf", table.d.potrf);
  set_blas(table);
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The native kernels of quadric.";
  load_scipy_blas();
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const invalid_argument& e) {
      py::set_error(PyExc_ValueError, e.what());
    }
  });
  m.def(
      "simd_level", [] { return simd_name(simd_level()); },
      "The instruction-set level in force: the best of this processor, or QUADRIC_SIMD.");
  m.def(
      "simd_levels",
      [] {
        std::vector<std::string> names;
        for (SimdLevel level : simd_levels()) names.push_back(simd_name(level));
        return names;
      },
      "The instruction-set levels that run on this processor, lowest first.");
  py::module_ linalg = m.def_submodule("linalg", "Kernels that several families stand on.");
  register_linalg(linalg);
  py::module_ random = m.def_submodule("random", "Random words from counters.");
  register_random(random);
  py::module_ sketch = m.def_submodule("sketch", "Kernels of the sketch family.");
  register_sketch(sketch);
  py::module_ sweep = m.def_submodule("sweep", "Kernels of the sweep family.");
  register_sweep(sweep);
  py::module_ transport = m.def_submodule("transport", "Kernels of the transport family.");
  register_transport(transport);
  py::module_ woodbury = m.def_submodule("woodbury", "Kernels of the woodbury family.");
  register_woodbury(woodbury);
}

}  // namespace quadric::python
