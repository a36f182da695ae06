// Links the installed CUDA library and checks a small call of each family. Exit status 77: no GPU is visible.
//
// H = [[4, 2], [2, 2]] and the sweep of W = [[0.6, 0.2]] are those of main.cpp, as are the gradient (2, 2) with
// F = [[5, 4], [4, 5]] and the joint step on the weights (1, 1).
#include <cuda_runtime_api.h>
#include <quadric/cuda/linalg.hpp>
#include <quadric/cuda/sweep.hpp>
#include <quadric/cuda/woodbury.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <vector>

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  std::printf("%s  %s\n", condition ? "ok    " : "FAILED", what);
  if (!condition) ++failures;
}

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("%s\n", cudaGetErrorString(error));
  std::exit(1);
}

// An array on the device.
template <class T>
class Device {
 public:
  Device(std::initializer_list<T> values) : size_(values.size()) {
    check(cudaMalloc(&data_, size_ * sizeof(T)));
    check(cudaMemcpy(data_, values.begin(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* data() const { return static_cast<T*>(data_); }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    check(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  std::size_t size_;
  void* data_ = nullptr;
};

template <class T>
void check_sweep(const quadric::Execution& exec, double tolerance) {
  using namespace quadric;
  const Device<T> h{4, 2, 2, 2}, a{0, 0, 0, 0}, w{T(0.6), T(0.2)}, scales{1};
  const Device<std::int64_t> order{0, 1}, pivot{7};
  const Device<double> diagonal{4, 2}, loss{-1};
  const Device<std::uint8_t> codes{9, 9}, zeros{0};
  const Device<std::int32_t> group{0, 0};
  const MatrixView<T> factored(a.data(), 2, 2);
  cuda::sweep::gather<T>(exec, MatrixView<const T>(h.data(), 2, 2), order.data(), factored);
  cuda::sweep::cholesky<T>(exec, factored, diagonal.data(), pivot.data());
  expect(pivot.host()[0] == -1, "H is positive definite");

  sweep::Factor<T> factor;
  factor.R = sweep::upper_factor(factored);
  factor.order = order.data();
  sweep::SweepOptions options;
  options.grid.max_code = 3;
  options.group = group.data();
  sweep::SweepOutput<T> output;
  output.codes = {codes.data(), 1, 2};
  output.scales = {scales.data(), 1, 1};
  output.zeros = {zeros.data(), 1, 1};
  output.loss = loss.data();
  cuda::sweep::sweep<T>(exec, MatrixView<const T>(w.data(), 1, 2), factor, options, output);
  expect(codes.host() == std::vector<std::uint8_t>({1, 0}), "codes are 1, 0");
  expect(std::abs(loss.host()[0] - 0.4) < tolerance, "loss is 0.4");
}

template <class T>
void check_woodbury(const quadric::Execution& exec, double tolerance) {
  using namespace quadric;
  const Device<T> g{2, 2}, w{1, 1}, out{0, 0}, a{4, 2, 2, 2}, inverse{0, 0, 0, 0};
  const Device<bool> mask{false, true};
  const Device<double> loss{-1};
  const Device<std::int32_t> status{7};
  woodbury::BlockSource F;
  F.rows.data = g.data();
  F.rows.storage = sizeof(T) == 8 ? Storage::float64 : Storage::float32;
  F.rows.rows = 1;
  F.rows.cols = F.rows.row_stride = F.d = F.block_size = 2;
  F.count = 1;
  F.damping = 1;
  cuda::woodbury::block_prune<T>(exec, F, w.data(), mask.data(), out.data(), loss.data(), status.data());
  expect(status.host()[0] == -1 && std::abs(out.host()[1] - 1.8) < tolerance, "the joint step");
  expect(std::abs(loss.host()[0] - 0.9) < tolerance, "its loss");

  cuda::linalg::spd<T>(exec, {a.data(), 1, 2, 2, 4, 2, 1}, {}, linalg::Spd::inverse, inverse.data(), nullptr,
                       status.data());
  const std::vector<T> x = inverse.host();
  expect(status.host()[0] == -1 && std::abs(x[0] - 0.5) < tolerance && std::abs(x[1] + 0.5) < tolerance, "an inverse");
}

}  // namespace

int main() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("no GPU is visible\n");
    return 77;
  }
  quadric::Execution exec;
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));  // waits for the default stream, and is waited for by it
  exec.stream = stream;
  check_sweep<float>(exec, 1e-6);
  check_sweep<double>(exec, 1e-14);
  check_woodbury<float>(exec, 1e-6);
  check_woodbury<double>(exec, 1e-14);
  bool thrown = false;
  try {
    quadric::cuda::linalg::spd<float>(exec, {nullptr, 1, 2, 3, 6, 3, 1}, {}, quadric::linalg::Spd::logdet, nullptr,
                                      nullptr, nullptr);
  } catch (const quadric::invalid_argument&) {
    thrown = true;
  }
  expect(thrown, "a wrong argument throws");
  check(cudaStreamDestroy(stream));
  return failures == 0 ? 0 : 1;
}
