// Links the installed library and checks a few small calls against numbers worked out by hand.
//
// Sweep. H = [[4, 2], [2, 2]] = R R^T with R = [[sqrt 2, sqrt 2], [0, sqrt 2]]. W = [[0.6, 0.2]] on the grid of whole
// numbers 0..3. The first column: t = 0.6, q = 1, D = -0.4, e = -0.4 sqrt 2. It leaves C = -0.4 sqrt 2 to the second:
// t = 0.2 - 0.4 = -0.2, q = 0, D = 0.2, e = -0.4 sqrt 2 + 0.2 sqrt 2. Loss = 0.32 + 0.08 = 0.4, and indeed
// D H D^T = 4 * 0.16 - 2 * 2 * 0.08 + 2 * 0.04 = 0.4.
//
// Woodbury. One gradient (2, 2) and lambda = 1: F = [[5, 4], [4, 5]], F^-1 = [[5, -4], [-4, 5]] / 9. Without the first
// of the weights (1, 1) the second one becomes 1 + 4 / 5, and the loss is (5 - 16 / 5) / 2 = 0.9.
//
// Transport. C = [[0, 1], [1, 0]], masses 1/2 and reg 1: the plan is p on the diagonal and p / e beside it with
// p (1 + 1 / e) = 1/2, and it costs 2 p / e = 1 / (1 + e).
//
// Sketch. Whole numbers throughout, so that most results are exact.
//   signs:     S A = (+-3 +-4) for A = (3, 4), and <S A, B> = <A, S^T B>.
//   Hadamard:  H_4 (1, 2, 3, 4) = (10, -2, -4, 0), and |H_8 D x|^2 = 8 |x|^2 = 8 * 204 for x = (1, ..., 8).
//   Gram:      A = [[1, 2], [3, 4]] and M = [[1, 1], [0, 1]]: A M = [[1, 3], [3, 7]], whose rows have the squared norms
//              10 and 58 and whose Gram matrix is [[10, 24], [24, 58]]; A^T diag(4, -1) A = [[-5, -4], [-4, 0]].
//   Kaczmarz:  the point of 3 x + 4 y = 10 that is nearest to 0 is (1.2, 1.6).
#include <quadric/blas_fortran.hpp>
#include <quadric/linalg.hpp>
#include <quadric/random.hpp>
#include <quadric/simd.hpp>
#include <quadric/sketch.hpp>
#include <quadric/sweep.hpp>
#include <quadric/transport.hpp>
#include <quadric/woodbury.hpp>

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

template <class T>
void check_woodbury(double tolerance) {
  using namespace quadric;
  const Execution exec;
  const T g[] = {2, 2}, w[] = {1, 1};
  woodbury::BlockSource rows;
  rows.rows.data = g;
  rows.rows.storage = sizeof(T) == 8 ? Storage::float64 : Storage::float32;
  rows.rows.rows = 1;
  rows.rows.cols = rows.rows.row_stride = rows.d = rows.block_size = 2;
  rows.count = 1;
  rows.damping = 1;
  double packs[3 * woodbury::kLanes] = {};
  woodbury::block_gram(exec, rows.rows, 2, packs);
  woodbury::BlockSource sums = rows;
  sums.rows = {};
  sums.sums = packs;
  for (const woodbury::BlockSource& F : {rows, sums}) {
    std::int32_t status = 0;
    T diagonal[2], pruned[2];
    woodbury::block_inverse<T>(exec, F, 1, diagonal, &status);
    expect(status == -1 && std::abs(diagonal[0] - 5.0 / 9) < tolerance && std::abs(diagonal[1] - 5.0 / 9) < tolerance,
           "diagonal of F^-1");
    const bool mask[] = {false, true};
    double loss = -1;
    woodbury::block_prune<T>(exec, F, w, mask, pruned, &loss, &status);
    expect(status == -1 && pruned[0] == 0 && std::abs(pruned[1] - 1.8) < tolerance, "the joint step");
    expect(std::abs(loss - 0.9) < tolerance, "its loss");
  }

  const T a[] = {4, 2, 2, 2};
  T inverse[4];
  double logdet = 0;
  std::int32_t status = 0;
  linalg::spd<T>(exec, {a, 1, 2, 2, 4, 2, 1}, {}, linalg::Spd::inverse, inverse, &logdet, &status);
  expect(status == -1 && std::abs(inverse[0] - 0.5) < tolerance && std::abs(inverse[1] + 0.5) < tolerance &&
             std::abs(inverse[3] - 1) < tolerance && std::abs(logdet - std::log(4.0)) < tolerance,
         "an inverse and its determinant");
}

template <class T>
void check_transport(double tolerance) {
  using namespace quadric;
  const Execution exec;
  const T c[] = {0, 1, 1, 0};
  transport::Cost<T> cost;
  cost.M = {c, 2, 2};
  const double mass[] = {0.5, 0.5}, omega[] = {1};
  double f[2] = {}, g[2] = {}, errors[20];
  transport::SinkhornOptions options;
  options.tol = tolerance;
  options.count = 20;
  transport::sinkhorn<T>(exec, 1, &cost, mass, mass, omega, f, g, errors, options);
  T p[4];
  transport::plan<T>(exec, cost, f, g, options.reg, MatrixView<T>(p, 2, 2));
  const double e = std::exp(1.0), diagonal = 0.5 / (1 + 1 / e);
  expect(std::abs(p[0] - diagonal) < tolerance && std::abs(p[3] - diagonal) < tolerance, "the plan's diagonal");
  double rows[2], columns[2];
  const double paid = transport::apply_plan<T>(exec, cost, f, g, options.reg, {}, nullptr, rows, columns);
  expect(std::abs(paid - 1 / (1 + e)) < tolerance, "the plan costs 1 / (1 + e)");
  expect(std::abs(rows[0] - 0.5) < tolerance && std::abs(columns[1] - 0.5) < tolerance, "the marginals");
}

template <class T>
void check_sketch(double tolerance) {
  using namespace quadric;
  const Execution exec;
  const std::int64_t n = 64, d = 3;
  T a[n * d], s[16 * d] = {}, halves[16 * d] = {};
  for (std::int64_t i = 0; i < n * d; ++i) a[i] = static_cast<T>((i * 7) % 11 - 5);
  sketch::sparse_sign<T>(exec, MatrixView<const T>(a, n, d), {1, 0}, 4, MatrixView<T>(s, 16, d));
  for (std::int64_t first = 0; first < n; first += n / 2)
    sketch::sparse_sign<T>(exec, MatrixView<const T>(a + first * d, n / 2, d), {1, first}, 4,
                           MatrixView<T>(halves, 16, d));
  bool same = true;
  for (int i = 0; i < 16 * d; ++i) same = same && s[i] == halves[i];
  expect(same, "two halves make the sketch of the whole");
  const T x[] = {1, -1, 2};
  T b[n];
  for (std::int64_t i = 0; i < n; ++i) b[i] = a[i * d] - a[i * d + 1] + 2 * a[i * d + 2];
  const MatrixView<const T> target(b, n, 1);
  double g[d], norm[1];
  sketch::residual_gradient<T>(exec, MatrixView<const T>(a, n, d), MatrixView<const T>(x, d, 1), &target, nullptr, g,
                               norm);
  expect(norm[0] < tolerance && std::abs(g[0]) < tolerance, "a solution has no residual");
}

template <class T>
void check_signs() {
  using namespace quadric;
  const Execution exec;
  const std::int64_t n = 40, m = 16, nnz = 4;
  T a[n], b[m], s[m] = {}, sparse[m] = {}, back[n];
  std::int32_t starts[n + 1] = {};
  std::int32_t columns[n] = {};
  for (std::int64_t i = 0; i < n; ++i) {
    a[i] = static_cast<T>(i % 5 + 1);
    starts[i + 1] = static_cast<std::int32_t>(i + 1);
  }
  for (std::int64_t i = 0; i < m; ++i) b[i] = static_cast<T>(i % 3 - 1);
  const sketch::Place place{7, 0};
  sketch::sparse_sign<T>(exec, MatrixView<const T>(a, n, 1), place, nnz, MatrixView<T>(s, m, 1));
  const sketch::SparseRows<T, std::int32_t> rows{n, starts, columns, a};
  sketch::sparse_sign_csr<T>(exec, rows, place, nnz, MatrixView<T>(sparse, m, 1));
  sketch::sparse_sign_rows<T>(exec, MatrixView<const T>(b, m, 1), place, nnz, MatrixView<T>(back, n, 1));
  T left = 0, right = 0;
  bool same = true;
  for (std::int64_t i = 0; i < m; ++i) left += s[i] * b[i], same = same && s[i] == sparse[i];
  for (std::int64_t i = 0; i < n; ++i) right += a[i] * back[i];
  expect(same, "a sparse matrix has the sketch of a dense one");
  expect(left == right, "S and its adjoint");

  T entries[2 * m], c[] = {3, 4}, out[m] = {};
  sketch::dense_entries<T>(exec, 0, place, m, sketch::Entries::rademacher, MatrixView<T>(entries, m, 2));
  sketch::dense<T>(exec, MatrixView<const T>(c, 2, 1), place, sketch::Entries::rademacher, MatrixView<T>(out, m, 1));
  bool exact = true;
  for (std::int64_t i = 0; i < m; ++i)
    exact = exact && std::abs(entries[2 * i]) == 1 && std::abs(entries[2 * i + 1]) == 1 &&
            out[i] == 3 * entries[2 * i] + 4 * entries[2 * i + 1];
  expect(exact, "a dense sketch of signs");
}

template <class T>
void check_hadamard() {
  using namespace quadric;
  const Execution exec;
  T x[] = {1, 2, 3, 4};
  sketch::fwht<T>(exec, {x, 1, 4, 1, 4, 1, 1});
  expect(x[0] == 10 && x[1] == -2 && x[2] == -4 && x[3] == 0, "a Walsh-Hadamard transform");

  const T a[] = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::int64_t samples[] = {5, 0, 7, 2, 1, 4, 6, 3};
  T out[8] = {}, squares = 0;
  sketch::srht<T>(exec, MatrixView<const T>(a, 8, 1), {3, 0}, 4, samples, MatrixView<T>(out, 8, 1));
  for (const T value : out) squares += value * value;
  expect(squares == 8 * 204, "all rows of a Hadamard transform keep the length");
}

template <class T>
void check_gram(double tolerance) {
  using namespace quadric;
  const Execution exec;
  const T a[] = {1, 2, 3, 4};
  const double m[] = {1, 1, 0, 1}, w[] = {4, -1};
  const MatrixView<const T> A(a, 2, 2);
  double g[4], norms[2];
  sketch::preconditioned_gram<T>(exec, A, m, g);
  expect(g[0] == 10 && g[1] == 24 && g[2] == 24 && g[3] == 58, "a preconditioned Gram matrix");
  sketch::weighted_gram<T>(exec, A, w, g);
  expect(g[0] == -5 && g[1] == -4 && g[2] == -4 && g[3] == 0, "a weighted Gram matrix");
  sketch::row_norms<T>(exec, A, MatrixView<const double>(m, 2, 2), norms);
  expect(norms[0] == 10 && norms[1] == 58, "norms of rows");

  const T row[] = {3, 4};
  const double y[] = {10}, square[] = {25};
  const std::int64_t order[] = {0};
  const std::int32_t starts[] = {0, 2}, columns[] = {0, 1};
  double x[2] = {}, z[2] = {};
  const sketch::Projections projections{y, square, order, 1, 1.0};
  sketch::kaczmarz<T>(MatrixView<const T>(row, 1, 2), projections, MatrixView<double>(x, 1, 2));
  sketch::kaczmarz_csr<T, std::int32_t>({1, starts, columns, row}, projections, MatrixView<double>(z, 1, 2));
  expect(std::abs(x[0] - 1.2) < tolerance && std::abs(x[1] - 1.6) < tolerance, "a projection onto a row");
  expect(std::abs(z[0] - 1.2) < tolerance && std::abs(z[1] - 1.6) < tolerance, "and onto a sparse one");
}

void check_random() {
  std::uint32_t words[8], second[4];
  quadric::random::philox({}, {0, 0}, 0, 2, words);
  quadric::random::philox({}, {0, 0}, 1, 1, second);
  expect(words[0] == 0x6627e8d5 && words[1] == 0xe169c58d && words[2] == 0xbc57ac4c && words[3] == 0x9b00dbd8,
         "the published words of Philox");
  bool same = true;
  for (int i = 0; i < 4; ++i) same = same && words[4 + i] == second[i];
  expect(same, "a part of its stream");
}

}  // namespace

int main() {
  quadric::set_blas(quadric::fortran_blas());
  std::printf("instruction set: %s\n", quadric::simd_name(quadric::simd_level()).c_str());
  check_sweep<float>(1e-6);  // a handful of roundings of numbers near 1
  check_sweep<double>(1e-15);
  check_woodbury<float>(1e-6);
  check_woodbury<double>(2e-15);
  check_transport<float>(1e-6);
  check_transport<double>(1e-14);
  check_random();
  check_sketch<float>(1e-6);
  check_sketch<double>(1e-15);
  check_signs<float>();
  check_signs<double>();
  check_hadamard<float>();
  check_hadamard<double>();
  check_gram<float>(1e-6);
  check_gram<double>(1e-15);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
