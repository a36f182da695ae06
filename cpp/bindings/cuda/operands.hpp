// Arguments of the CUDA kernels. An array is one of
//
//   a NumPy array: the span of memory it covers goes to the device as it is (strides, guards and alignment kept), and
//     comes back at `where.sync_back()` if it was asked for as mutable;
//   a View (quadric.device.View): the tuple (pointer, shape, strides in elements, dtype name) of device memory.
//
// and the last argument, `where`, is
//
//   an int, for the default stream and the memory pool of the device, or
//   an object with `.stream` (an int) and `.allocate(nbytes) -> int`, a device pointer that stays valid until the work
//     that this call launches has run (None instead: the pool). If `.device` is an int, that device is made the current
//     one during the call.
//
// A binding makes Where first, the operands next, and calls the kernel with what they hand out:
//
//   void gram(const py::object& X_, const py::object& weights_, const py::object& H_, const py::object& where_) {
//     Where where(where_);
//     const Operand X(where, X_, "X"), weights(where, weights_, "weights", kOptional), H(where, H_, "H");
//     by_float(H, [&](auto zero) {
//       using T = decltype(zero);
//       cuda::sweep::gram<T>(where.exec(), X.rows(), weights.vector<T>(X.size(0)), H.mutable_matrix<T>());
//     });
//     where.sync_back();
//   }
//
// What a kernel writes into one device scalar is a Scalar: the binding returns its value (after a synchronization), or
// None where the caller gave a device array of one entry for it as an optional argument after `where`:
//
//   py::object cholesky(..., const py::object& where_, const py::object& pivot_) {
//     ...
//     Scalar<std::int64_t> pivot(where, pivot_, "pivot");
//     cuda::sweep::cholesky<T>(where.exec(), A.mutable_matrix<T>(), diagonal.vector<double>(n), pivot.data());
//     where.sync_back();
//     return pivot.result();
//   }
//   m.def("cholesky", &cholesky, ..., py::arg("where"), py::arg("pivot") = py::none());
//
// The GIL stays held: kernels only enqueue work, and `.allocate` needs it. Wrong arguments raise ValueError or
// TypeError that name the argument.
#pragma once

#include <cuda_runtime_api.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <deque>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "quadric/execution.hpp"
#include "quadric/linalg.hpp"
#include "quadric/status.hpp"
#include "quadric/storage.hpp"
#include "quadric/view.hpp"

namespace quadric::python {

namespace py = pybind11;

// RuntimeError that names the call; MemoryError where memory ran out.
void check_cuda(cudaError_t error, const char* call);

// The device's copy of a NumPy array's span of memory.
struct HostSpan {
  char* host = nullptr;
  std::size_t bytes = 0;
  char* device = nullptr;
  bool written = false;
  py::object owner;
};

class Where {
 public:
  explicit Where(const py::object& where);
  ~Where();
  Where(const Where&) = delete;
  Where& operator=(const Where&) = delete;

  const Execution& exec() const { return exec_; }
  cudaStream_t stream() const { return static_cast<cudaStream_t>(exec_.stream); }

  // Device memory until the end of this call.
  void* bytes(std::size_t size);

  // The span on the device. Equal spans, and spans inside an earlier one, share memory as on the host.
  HostSpan& upload(char* host, std::size_t bytes, py::object owner);

  // Brings the mutable NumPy arrays back. Without any it does nothing; else it waits for the stream.
  void sync_back();

  // Waits for the stream without the GIL.
  void synchronize() const;

 private:
  static void* allocate(void* where, std::size_t bytes);

  // A piece of the memory that small requests share: the caller's library takes microseconds for each of its own.
  char* room_ = nullptr;
  std::size_t left_ = 0;

  Execution exec_;
  py::object allocate_;
  int device_before_ = -1;
  std::vector<void*> own_;
  std::deque<HostSpan> spans_;  // addresses stay
};

// Name of a C++ type as NumPy has it.
template <class T>
constexpr const char* type_name();

enum class Need { required, optional };
inline constexpr Need kOptional = Need::optional;

class Operand {
 public:
  Operand(Where& where, const py::object& array, const char* name, Need need = Need::required);

  bool present() const { return present_; }  // or None
  const char* name() const { return name_; }

  // float16, uint16 (bfloat16), float32, float64, uint8, bool, uint32, int32 or int64; "" for None
  const std::string& dtype() const { return dtype_; }
  template <class T>
  bool is() const {
    return dtype_ == type_name<T>();
  }

  std::int64_t ndim() const { return static_cast<std::int64_t>(shape_.size()); }
  std::int64_t size(std::int64_t axis) const { return shape_.at(static_cast<std::size_t>(axis)); }  // 0 axes for None
  std::int64_t size() const;                                                                        // of all axes

  // Everything below throws where the type, the number of axes or the layout is another one. None becomes a null
  // pointer or an empty view.

  // Two axes, any strides.
  template <class T>
  MatrixView<const T> matrix() const {
    if (!typed<T>(2)) return {};
    return {static_cast<const T*>(data_), shape_[0], shape_[1], strides_[0], strides_[1]};
  }
  template <class T>
  MatrixView<T> mutable_matrix() const {
    const MatrixView<const T> v = matrix<T>();
    return {writable<T>(), v.rows, v.cols, v.row_stride, v.col_stride};
  }

  // Two axes, any strides, any type.
  struct AnyMatrix {
    void* data;
    std::int64_t rows, cols, row_stride, col_stride;
  };
  AnyMatrix any_matrix() const {
    if (!typed(dtype_.c_str(), 2)) return {};
    return {data_, shape_[0], shape_[1], strides_[0], strides_[1]};
  }
  AnyMatrix any_mutable_matrix() const {
    const AnyMatrix v = any_matrix();
    mark_written();
    return v;
  }

  // Three axes, any strides, any type.
  struct AnyCube {
    void* data;
    std::int64_t outer, rows, inner, outer_stride, row_stride, inner_stride;
  };
  AnyCube any_mutable_cube() const {
    if (!typed(dtype_.c_str(), 3)) return {};
    mark_written();
    return {data_, shape_[0], shape_[1], shape_[2], strides_[0], strides_[1], strides_[2]};
  }

  // rows x cols with contiguous rows; for optional outputs.
  template <class T>
  MatrixView<T> output(std::int64_t rows, std::int64_t cols) const {
    if (!present_) return {};
    return {mutable_block<T>({rows, cols}), rows, cols};
  }

  // Three axes, any strides.
  template <class T>
  linalg::BatchView<const T> batch() const {
    if (!typed<T>(3)) return {};
    return {static_cast<const T*>(data_), shape_[0], shape_[1], shape_[2], strides_[0], strides_[1], strides_[2]};
  }

  // Contiguous with `size` entries, one axis.
  template <class T>
  const T* vector(std::int64_t size) const {
    if (!typed<T>(1)) return nullptr;
    require_vector(size);
    return static_cast<const T*>(data_);
  }
  template <class T>
  T* mutable_vector(std::int64_t size) const {
    return vector<T>(size) == nullptr ? nullptr : writable<T>();
  }

  // Contiguous with this shape.
  template <class T>
  const T* block(std::initializer_list<std::int64_t> shape) const {
    if (!typed<T>(static_cast<std::int64_t>(shape.size()))) return nullptr;
    require_block(shape);
    return static_cast<const T*>(data_);
  }
  template <class T>
  T* mutable_block(std::initializer_list<std::int64_t> shape) const {
    return block<T>(shape) == nullptr ? nullptr : writable<T>();
  }

  // Two axes with contiguous rows, kept as any of the four storage types.
  StoredRows rows() const;
  Storage storage() const;

  // Contiguous with `size` entries of any storage type: where a gradient is stored.
  void* mutable_row(std::int64_t size) const;

  // Back to the host, where it came from there: waits. `where.sync_back()` does it for all at once.
  void sync_back() const { where_.sync_back(); }

 private:
  bool typed(const char* type, std::int64_t axes) const;  // false for None
  template <class T>
  bool typed(std::int64_t axes) const {
    return typed(type_name<T>(), axes);
  }
  void require_vector(std::int64_t size) const;
  void require_block(std::initializer_list<std::int64_t> shape) const;
  void mark_written() const;
  template <class T>
  T* writable() const {
    mark_written();
    return static_cast<T*>(data_);
  }
  void from_numpy(const py::array& array);
  void from_view(const py::tuple& view);

  Where& where_;
  const char* name_;
  bool present_ = false;
  bool read_only_ = false;
  std::string dtype_;
  void* data_ = nullptr;
  std::vector<std::int64_t> shape_;
  std::vector<std::int64_t> strides_;  // in elements
  HostSpan* span_ = nullptr;           // null for device memory of the caller
};

// A sequence of arrays.
std::vector<Operand> operands(Where& where, const py::object& arrays, const char* name);

template <class T>
std::vector<MatrixView<const T>> matrices(const std::vector<Operand>& arrays) {
  std::vector<MatrixView<const T>> result;
  result.reserve(arrays.size());
  for (const Operand& a : arrays) result.push_back(a.matrix<T>());
  return result;
}

template <class T>
std::vector<MatrixView<T>> mutable_matrices(const std::vector<Operand>& arrays) {
  std::vector<MatrixView<T>> result;
  result.reserve(arrays.size());
  for (const Operand& a : arrays) result.push_back(a.mutable_matrix<T>());
  return result;
}

// f(float()) or f(double()), by the type of `array`.
template <class F>
void by_float(const Operand& array, F&& f) {
  if (array.is<float>()) return f(float());
  if (array.is<double>()) return f(double());
  throw py::type_error(std::string(array.name()) + " must be float32 or float64; got " + array.dtype());
}

// One value that a kernel writes into device memory.
template <class T>
class Scalar {
 public:
  Scalar(Where& where, const py::object& out, const char* name) : where_(where), out_(where, out, name, kOptional) {
    data_ = out_.present() ? out_.mutable_vector<T>(1) : static_cast<T*>(where.bytes(sizeof(T)));
  }

  T* data() const { return data_; }

  // The value, waiting for the stream; None where the caller has given the memory.
  py::object result() const {
    if (out_.present()) return py::none();
    T value{};
    check_cuda(cudaMemcpyAsync(&value, data_, sizeof(T), cudaMemcpyDeviceToHost, where_.stream()), "cudaMemcpyAsync");
    where_.synchronize();
    return py::cast(value);
  }

 private:
  Where& where_;
  Operand out_;
  T* data_ = nullptr;
};

template <>
constexpr const char* type_name<float>() {
  return "float32";
}
template <>
constexpr const char* type_name<double>() {
  return "float64";
}
template <>
constexpr const char* type_name<bool>() {
  return "bool";
}
template <>
constexpr const char* type_name<std::uint8_t>() {
  return "uint8";
}
template <>
constexpr const char* type_name<std::uint16_t>() {
  return "uint16";
}
template <>
constexpr const char* type_name<std::uint32_t>() {
  return "uint32";
}
template <>
constexpr const char* type_name<std::int32_t>() {
  return "int32";
}
template <>
constexpr const char* type_name<std::int64_t>() {
  return "int64";
}

}  // namespace quadric::python
