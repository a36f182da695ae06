#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <new>
#include <string>

#include "operands.hpp"
#include "quadric/status.hpp"

namespace quadric::python {

void register_arrays(py::module_& m);
void register_blocks(py::module_& m);
void register_linalg(py::module_& m);
void register_newton(py::module_& m);
void register_passes(py::module_& m);
void register_plan(py::module_& m);
void register_random(py::module_& m);
void register_rows(py::module_& m);
void register_sketch(py::module_& m);
void register_steps(py::module_& m);
void register_sweep(py::module_& m);
void register_transport(py::module_& m);

namespace {

int device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice) {
    cudaGetLastError();
    return 0;
  }
  check_cuda(error, "cudaGetDeviceCount");
  return count;
}

std::string device_name(int device) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.name;
}

int attribute(cudaDeviceAttr what, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, what, device), "cudaDeviceGetAttribute");
  return value;
}

py::tuple compute_capability(int device) {
  return py::make_tuple(attribute(cudaDevAttrComputeCapabilityMajor, device),
                        attribute(cudaDevAttrComputeCapabilityMinor, device));
}

py::tuple memory_info() {
  std::size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return py::make_tuple(free, total);
}

py::tuple versions() {
  int driver = 0, runtime = 0;
  check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check_cuda(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  return py::make_tuple(driver, runtime);
}

void stream_synchronize(std::uintptr_t stream) {
  py::gil_scoped_release release;
  check_cuda(cudaStreamSynchronize(reinterpret_cast<cudaStream_t>(stream)), "cudaStreamSynchronize");
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "The CUDA kernels of quadric.";
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const invalid_argument& e) {
      py::set_error(PyExc_ValueError, e.what());
    } catch (const std::bad_alloc& e) {
      const std::string what = e.what();  // of the library: with the size; of the host's allocator: nothing useful
      py::set_error(PyExc_MemoryError, what.find("GPU") != std::string::npos ? what.c_str() : "out of GPU memory");
    }
  });
  m.def("device_count", &device_count, "The devices that the driver shows; 0 without a driver's device.");
  m.def("device_name", &device_name, py::arg("device"), "The name of a device.");
  m.def("compute_capability", &compute_capability, py::arg("device"), "(major, minor) of a device.");
  m.def("memory_info", &memory_info, "Bytes of the current device: (free, total).");
  m.def("versions", &versions, "CUDA versions of the driver (0 without one) and of the runtime, as 13000 for 13.0.");
  m.attr("architectures") = QUADRIC_CUDA_ARCHITECTURES;
  m.def("stream_synchronize", &stream_synchronize, py::arg("stream"), "Waits for a stream, without the GIL.");
  py::module_ arrays = m.def_submodule("arrays", "What an array library does.");
  register_arrays(arrays);
  py::module_ linalg = m.def_submodule("linalg", "Kernels that several families stand on.");
  register_linalg(linalg);
  py::module_ random = m.def_submodule("random", "Random words.");
  register_random(random);
  py::module_ sketch = m.def_submodule("sketch", "Kernels of the sketch family.");
  register_sketch(sketch);
  register_passes(sketch);
  py::module_ sweep = m.def_submodule("sweep", "Kernels of the sweep family.");
  register_sweep(sweep);
  py::module_ transport = m.def_submodule("transport", "Kernels of the transport family.");
  register_transport(transport);
  register_plan(transport);
  register_newton(transport);
  py::module_ woodbury = m.def_submodule("woodbury", "Kernels of the woodbury family.");
  register_blocks(woodbury);
  register_rows(woodbury);
  register_steps(woodbury);
}

}  // namespace quadric::python
