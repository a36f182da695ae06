// NumPy arrays as views. Element strides only: the Python layer passes arrays whose strides are whole elements.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>

#include "quadric/execution.hpp"
#include "quadric/status.hpp"
#include "quadric/view.hpp"

namespace quadric::python {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, 0>;  // no flags: together with noconvert() nothing is copied

inline Execution threads(int n_threads) {
  Execution exec;
  exec.n_threads = n_threads;
  return exec;
}

template <class T>
MatrixView<const T> view(const Array<T>& a, const char* name) {
  if (a.ndim() != 2) throw invalid_argument(std::string(name) + " must have two dimensions");
  const auto size = static_cast<py::ssize_t>(sizeof(T));
  return {a.data(), a.shape(0), a.shape(1), a.strides(0) / size, a.strides(1) / size};
}

template <class T>
MatrixView<T> mutable_view(Array<T>& a, const char* name) {
  const MatrixView<const T> v = view(a, name);
  return {a.mutable_data(), v.rows, v.cols, v.row_stride, v.col_stride};  // throws if read-only
}

template <class T>
MatrixView<T> output(std::optional<Array<T>>& a, const char* name, std::int64_t rows, std::int64_t cols) {
  if (!a) return {};
  const MatrixView<T> v = mutable_view(*a, name);
  if (v.rows != rows || v.cols != cols || (!v.empty() && (v.col_stride != 1 || v.row_stride != cols)))
    throw invalid_argument(std::string(name) + " must have contiguous rows and the right shape");
  return v;
}

// A contiguous vector of `size` entries.
template <class T>
const T* vector(const Array<T>& a, const char* name, std::int64_t size) {
  if (a.ndim() != 1 || a.shape(0) != size || (size > 1 && a.strides(0) != static_cast<py::ssize_t>(sizeof(T))))
    throw invalid_argument(std::string(name) + " must be contiguous with " + std::to_string(size) + " entries");
  return a.data();
}

template <class T>
const T* vector(const std::optional<Array<T>>& a, const char* name, std::int64_t size) {
  return a ? vector(*a, name, size) : nullptr;
}

template <class T>
T* mutable_vector(Array<T>& a, const char* name, std::int64_t size) {
  vector(a, name, size);
  return a.mutable_data();  // throws if read-only
}

template <class T>
T* mutable_vector(std::optional<Array<T>>& a, const char* name, std::int64_t size) {
  return a ? mutable_vector(*a, name, size) : nullptr;
}

// A contiguous array of this shape.
template <class T>
const T* block(const Array<T>& a, const char* name, std::initializer_list<std::int64_t> shape) {
  bool fits = a.ndim() == static_cast<py::ssize_t>(shape.size()) && (a.flags() & py::array::c_style) != 0;
  py::ssize_t axis = 0;
  for (std::int64_t size : shape) fits = fits && a.shape(axis++) == size;
  if (!fits) throw invalid_argument(std::string(name) + " must be contiguous and have the right shape");
  return a.data();
}

template <class T>
T* mutable_block(Array<T>& a, const char* name, std::initializer_list<std::int64_t> shape) {
  block(a, name, shape);
  return a.mutable_data();  // throws if read-only
}

}  // namespace quadric::python
