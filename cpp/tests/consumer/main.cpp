// Links the installed library and checks one sweep against numbers worked out by hand.
//
// H = [[4, 2], [2, 2]] = R R^T with R = [[sqrt 2, sqrt 2], [0, sqrt 2]]. W = [[0.6, 0.2]] on the grid of whole numbers
// 0..3. The first column: t = 0.6, q = 1, D = -0.4, e = -0.4 sqrt 2. It leaves C = -0.4 sqrt 2 to the second:
// t = 0.2 - 0.4 = -0.2, q = 0, D = 0.2, e = -0.4 sqrt 2 + 0.2 sqrt 2. Loss = 0.32 + 0.08 = 0.4, and indeed
// D H D^T = 4 * 0.16 - 2 * 2 * 0.08 + 2 * 0.04 = 0.4.
#include <quadric/blas_fortran.hpp>
#include <quadric/simd.hpp>
#include <quadric/sweep.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  std::printf("%s  %s\n", condition ? "ok    " : "FAILED", what);
  if (!condition) ++failures;
}

template <class T>
void check_sweep(double tolerance) {
  using namespace quadric;
  const Execution exec;
  const std::int64_t order[] = {0, 1};
  const double diagonal[] = {4, 2};
  T h[] = {4, 2, 2, 2};
  T a[4];
  sweep::gather<T>(exec, MatrixView<const T>(h, 2, 2), order, MatrixView<T>(a, 2, 2));
  const Status status = sweep::cholesky<T>(exec, MatrixView<T>(a, 2, 2), diagonal);
  expect(status.ok(), "H is positive definite");

  sweep::Factor<T> factor;
  factor.R = sweep::upper_factor(MatrixView<T>(a, 2, 2));
  factor.order = order;
  const T root = std::sqrt(T(2));
  expect(std::abs(factor.R(0, 0) - root) < tolerance && std::abs(factor.R(0, 1) - root) < tolerance &&
             factor.R(1, 0) == 0 && std::abs(factor.R(1, 1) - root) < tolerance,
         "H = R R^T");

  T w[] = {T(0.6), T(0.2)};
  std::uint8_t codes[2] = {9, 9};
  T scales[] = {1};
  std::uint8_t zeros[] = {0};
  const std::int32_t group[] = {0, 0};
  double loss = -1;
  sweep::SweepOptions options;
  options.grid.max_code = 3;
  options.group = group;
  sweep::SweepOutput<T> output;
  output.codes = {codes, 1, 2};
  output.scales = {scales, 1, 1};
  output.zeros = {zeros, 1, 1};
  output.loss = &loss;
  sweep::sweep<T>(exec, MatrixView<const T>(w, 1, 2), factor, options, output);
  expect(codes[0] == 1 && codes[1] == 0, "codes are 1, 0");
  expect(std::abs(loss - 0.4) < tolerance, "loss is 0.4");

  const double indefinite[] = {1, 2};
  sweep::gather<T>(exec, MatrixView<const T>(h, 2, 2), order, MatrixView<T>(a, 2, 2));
  const Status failed = sweep::cholesky<T>(exec, MatrixView<T>(a, 2, 2), indefinite);
  expect(!failed.ok() && failed.pivot == 0, "an indefinite matrix names its pivot");

  options.group = nullptr;
  bool thrown = false;
  try {
    sweep::sweep<T>(exec, MatrixView<const T>(w, 1, 2), factor, options, output);
  } catch (const invalid_argument& error) {
    thrown = std::string(error.what()).find("group") != std::string::npos;
  }
  expect(thrown, "a wrong argument is named");
}

}  // namespace

int main() {
  quadric::set_blas(quadric::fortran_blas());
  std::printf("instruction set: %s\n", quadric::simd_name(quadric::simd_level()).c_str());
  check_sweep<float>(1e-6);  // a handful of roundings of numbers near 1
  check_sweep<double>(1e-15);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
