#include "operands.hpp"

#include <algorithm>
#include <new>
#include <stdexcept>

namespace quadric::python {
namespace {

constexpr std::size_t kAlignment = 256;  // of device memory

// Where an array without entries points to: kernels tell it from None by this.
void* const kNowhere = reinterpret_cast<void*>(kAlignment);

std::string type_of(const py::array& array) {
  const py::dtype type = array.dtype();
  const bool native = type.byteorder() == '=' || type.byteorder() == '|';
  const std::string key = native ? type.kind() + std::to_string(type.itemsize()) : "";
  for (const auto& [known, name] :
       {std::pair("f2", "float16"), std::pair("f4", "float32"), std::pair("f8", "float64"), std::pair("u1", "uint8"),
        std::pair("u2", "uint16"), std::pair("b1", "bool"), std::pair("i4", "int32"), std::pair("i8", "int64")})
    if (key == known) return name;
  return py::str(type).cast<std::string>();
}

[[noreturn]] void wrong_type(const char* name, const std::string& expected, const std::string& got) {
  throw py::type_error(std::string(name) + " must be " + expected + "; got " + (got.empty() ? "None" : got));
}

}  // namespace

void check_cuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it
  if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

// ---- Where
// -----------------------------------------------------------------------------------------------------------

Where::Where(const py::object& where) {
  if (py::isinstance<py::int_>(where)) return;
  if (!py::hasattr(where, "stream") || !py::hasattr(where, "allocate"))
    throw py::type_error("where must be an int or have .stream and .allocate");
  exec_.stream = reinterpret_cast<void*>(where.attr("stream").cast<std::uintptr_t>());
  allocate_ = where.attr("allocate");
  if (!allocate_.is_none()) {
    exec_.allocate = &Where::allocate;
    exec_.context = this;
  }
  const py::object device = py::getattr(where, "device", py::none());
  if (!py::isinstance<py::int_>(device)) return;
  int current = 0;
  check_cuda(cudaGetDevice(&current), "cudaGetDevice");
  if (const int wanted = device.cast<int>(); wanted != current) {
    check_cuda(cudaSetDevice(wanted), "cudaSetDevice");
    device_before_ = current;
  }
}

Where::~Where() {
  for (void* memory : own_) cudaFreeAsync(memory, stream());
  if (device_before_ >= 0) cudaSetDevice(device_before_);
}

void* Where::allocate(void* where, std::size_t bytes) {
  constexpr std::size_t kRoom = 512 << 10;
  Where& own = *static_cast<Where*>(where);
  const auto ask = [&](std::size_t size) {
    return reinterpret_cast<char*>(own.allocate_(size).cast<std::uintptr_t>());
  };
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > kRoom / 2) return ask(bytes);
  if (bytes > own.left_) {
    own.room_ = ask(kRoom);
    own.left_ = kRoom;
  }
  own.left_ -= bytes;
  own.room_ += bytes;
  return own.room_ - bytes;
}

void* Where::bytes(std::size_t size) {
  size = std::max<std::size_t>(size, 1);
  if (exec_.allocate != nullptr) return exec_.allocate(exec_.context, size);
  void* memory = nullptr;
  const cudaError_t error = cudaMallocAsync(&memory, size, stream());
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    PyErr_SetString(PyExc_MemoryError, ("out of GPU memory: " + std::to_string(size) + " bytes asked for").c_str());
    throw py::error_already_set();
  }
  check_cuda(error, "cudaMallocAsync");
  own_.push_back(memory);
  return memory;
}

HostSpan& Where::upload(char* host, std::size_t bytes, py::object owner) {
  for (HostSpan& span : spans_)
    if (host >= span.host && host + bytes <= span.host + span.bytes) return span;
  // The same place after a multiple of the alignment, so that fast paths for aligned rows are taken as for the
  // caller's.
  const std::size_t shift = reinterpret_cast<std::uintptr_t>(host) % kAlignment;
  char* const device = static_cast<char*>(this->bytes(shift + bytes)) + shift;
  if (bytes > 0) check_cuda(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream()), "cudaMemcpyAsync");
  spans_.push_back({host, bytes, device, false, std::move(owner)});
  return spans_.back();
}

void Where::sync_back() {
  bool waits = false;
  for (HostSpan& a : spans_) {
    if (!a.written || a.bytes == 0) continue;
    for (const HostSpan& b : spans_)
      if (&a != &b && b.written && a.host < b.host + b.bytes && b.host < a.host + a.bytes)
        throw invalid_argument("two NumPy outputs overlap in memory");
    check_cuda(cudaMemcpyAsync(a.host, a.device, a.bytes, cudaMemcpyDeviceToHost, stream()), "cudaMemcpyAsync");
    waits = true;
  }
  if (waits) synchronize();
}

void Where::synchronize() const {
  py::gil_scoped_release release;
  check_cuda(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
}

// ---- Operand
// ---------------------------------------------------------------------------------------------------------

Operand::Operand(Where& where, const py::object& array, const char* name, Need need) : where_(where), name_(name) {
  if (array.is_none()) {
    if (need == Need::required) throw py::type_error(std::string(name) + " must be an array; got None");
    return;
  }
  present_ = true;
  if (py::isinstance<py::array>(array))
    from_numpy(py::reinterpret_borrow<py::array>(array));
  else if (py::isinstance<py::tuple>(array) && py::len(array) == 4)
    from_view(py::reinterpret_borrow<py::tuple>(array));
  else
    throw py::type_error(std::string(name) + " must be a NumPy array or a View; got " +
                         py::str(py::type::of(array)).cast<std::string>());
}

void Operand::from_numpy(const py::array& array) {
  dtype_ = type_of(array);
  read_only_ = !array.writeable();
  const auto item = static_cast<std::int64_t>(array.itemsize());
  std::int64_t low = 0, high = item;  // bytes of the span, from the first entry
  bool empty = false;
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    const std::int64_t size = array.shape(axis), stride = array.strides(axis);
    if (size > 1 && stride % item != 0)
      throw invalid_argument(std::string(name_) + " must have strides of whole entries");
    shape_.push_back(size);
    strides_.push_back(stride / item);
    empty = empty || size == 0;
    if (size > 1) (stride < 0 ? low : high) += (size - 1) * stride;
  }
  if (empty) {
    data_ = kNowhere;
    return;
  }
  char* const first = const_cast<char*>(static_cast<const char*>(array.data()));
  span_ = &where_.upload(first + low, static_cast<std::size_t>(high - low), array);
  data_ = span_->device + (first - span_->host);
}

void Operand::from_view(const py::tuple& view) {
  dtype_ = view[3].cast<std::string>();
  if (dtype_ == "bfloat16") dtype_ = "uint16";
  data_ = reinterpret_cast<void*>(view[0].cast<std::uintptr_t>());
  for (const py::handle size : py::reinterpret_borrow<py::tuple>(view[1])) shape_.push_back(size.cast<std::int64_t>());
  for (const py::handle stride : py::reinterpret_borrow<py::tuple>(view[2]))
    strides_.push_back(stride.cast<std::int64_t>());
  if (shape_.size() != strides_.size())
    throw invalid_argument(std::string(name_) + " must have as many strides as axes");
  if (size() == 0)
    data_ = kNowhere;
  else if (data_ == nullptr)
    throw invalid_argument(std::string(name_) + " must point to device memory");
}

std::int64_t Operand::size() const {
  if (!present_) return 0;
  std::int64_t product = 1;
  for (std::int64_t size : shape_) product *= size;
  return product;
}

bool Operand::typed(const char* type, std::int64_t axes) const {
  if (!present_) return false;
  if (dtype_ != type) wrong_type(name_, type, dtype_);
  if (ndim() != axes)
    throw invalid_argument(std::string(name_) + " must have " + std::to_string(axes) + " dimensions; got " +
                           std::to_string(ndim()));
  return true;
}

void Operand::require_vector(std::int64_t size) const {
  if (shape_[0] != size || (size > 1 && strides_[0] != 1))
    throw invalid_argument(std::string(name_) + " must be contiguous with " + std::to_string(size) + " entries");
}

void Operand::require_block(std::initializer_list<std::int64_t> shape) const {
  bool fits = std::equal(shape.begin(), shape.end(), shape_.begin(), shape_.end());
  std::int64_t stride = 1;
  if (size() > 0)
    for (std::size_t axis = shape_.size(); fits && axis-- > 0; stride *= shape_[axis])
      fits = shape_[axis] == 1 || strides_[axis] == stride;
  if (!fits) throw invalid_argument(std::string(name_) + " must be contiguous and have the right shape");
}

void Operand::mark_written() const {
  if (read_only_) throw invalid_argument(std::string(name_) + " must be writable");
  if (span_ != nullptr) span_->written = true;
}

Storage Operand::storage() const {
  if (dtype_ == "float16") return Storage::float16;
  if (dtype_ == "uint16") return Storage::bfloat16;
  if (dtype_ == "float32") return Storage::float32;
  if (dtype_ == "float64") return Storage::float64;
  wrong_type(name_, "float16, bfloat16 (as uint16), float32 or float64", dtype_);
}

StoredRows Operand::rows() const {
  StoredRows rows;
  if (!present_) return rows;
  rows.storage = storage();
  if (ndim() != 2 || (shape_[1] > 1 && shape_[0] > 0 && strides_[1] != 1))
    throw invalid_argument(std::string(name_) + " must have two dimensions and contiguous rows");
  rows.data = data_;
  rows.rows = shape_[0];
  rows.cols = shape_[1];
  rows.row_stride = strides_[0];
  return rows;
}

void* Operand::mutable_row(std::int64_t size) const {
  storage();
  if (ndim() != 1) throw invalid_argument(std::string(name_) + " must have one dimension");
  require_vector(size);
  return writable<void>();
}

std::vector<Operand> operands(Where& where, const py::object& arrays, const char* name) {
  std::vector<Operand> result;
  for (const py::handle array : arrays) result.emplace_back(where, py::reinterpret_borrow<py::object>(array), name);
  return result;
}

}  // namespace quadric::python
