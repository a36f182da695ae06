// Products, triangles and QR factorizations of single matrices.
//
// Floors in float64: a product of d x d matrices 2 d^3 flops at 58 TFLOP/s, 37 us for d = 1024; one with a vector is a
// read of the matrix, from L2 mostly. column_norms is one read of A at 4.2 TB/s, 0.49 ms for 1e6 x 256; to be reached
// 80 %. qr has three rounds of m d^2 flops for the Gram matrix and as many for the triangular solve, 6 m d^2 in all:
// 0.45 ms for 4200 x 1024, where in fact the latencies of potrf's chains of kernels come first (0.15 ms a round for
// d = 256, some 0.8 ms for 1024): to be reached 1.5 ms for 2000 x 256 and 8 ms for 4200 x 1024.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "linalg/columns.cuh"
#include "linalg/potrf.hpp"
#include "linalg/products.hpp"
#include "quadric/cuda/arrays.hpp"
#include "quadric/cuda/linalg.hpp"
#include "require.hpp"

namespace quadric::cuda::linalg {
namespace {

constexpr int kThreads = 256;
constexpr int kRounds = 3;             // of qr
constexpr unsigned kBlocks = 1 << 20;  // of a grid at most; they go on until all work is done

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

unsigned grid_over(std::int64_t blocks) { return static_cast<unsigned>(std::min<std::int64_t>(blocks, kBlocks)); }

template <class T>
MatrixView<T> turned(const MatrixView<T>& A) {
  return {A.data, A.cols, A.rows, A.col_stride, A.row_stride};
}

// ---- layouts -------------------------------------------------------------------------------------------------------

// Whether A has contiguous rows for cuBLAS, which wants them apart by no less than their length. What it sees column by
// column is A^T then.
template <class T>
bool by_rows(const MatrixView<T>& A) {
  return (A.col_stride == 1 || A.cols == 1) && (A.rows == 1 || A.row_stride >= A.cols);
}

// Entries between rows of what is `by_rows`.
template <class T>
std::int64_t leading(const MatrixView<T>& A) {
  return std::max<std::int64_t>({A.rows == 1 ? 1 : A.row_stride, A.cols, 1});
}

template <class T>
Entries entries(const MatrixView<T>& A) {
  constexpr Type type = std::is_same_v<std::remove_const_t<T>, float> ? Type::float32 : Type::float64;
  return {const_cast<std::remove_const_t<T>*>(A.data), type, A.rows, A.cols, A.row_stride, A.col_stride};
}

template <class T>
bool oriented(const MatrixView<T>& A) {
  return by_rows(A) || by_rows(turned(A));
}

// A, or a copy with contiguous rows of what is neither row- nor column-major.
template <class T>
MatrixView<const T> packed(const Execution& exec, Scratch& scratch, const MatrixView<const T>& A) {
  if (oriented(A)) return A;
  const MatrixView<T> to(scratch.get<T>(A.rows * A.cols), A.rows, A.cols);
  copy(exec, entries(A), entries(to));
  return to;
}

// ---- cuBLAS --------------------------------------------------------------------------------------------------------

// y = alpha op(A) x + beta y; A column-major, m x n.
template <class T>
void gemv(cublasHandle_t handle, cublasOperation_t op, std::int64_t m, std::int64_t n, T alpha, const T* A,
          std::int64_t lda, const T* x, std::int64_t step_x, T beta, T* y, std::int64_t step_y) {
  if constexpr (std::is_same_v<T, float>)
    QUADRIC_CUDA(cublasSgemv_64(handle, op, m, n, &alpha, A, lda, x, step_x, &beta, y, step_y));
  else
    QUADRIC_CUDA(cublasDgemv_64(handle, op, m, n, &alpha, A, lda, x, step_x, &beta, y, step_y));
}

// B <- op(L)^-1 B or B op(L)^-1; B column-major, m x n.
template <class T>
void trsm(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t uplo, cublasOperation_t op, std::int64_t m,
          std::int64_t n, const T* L, std::int64_t ldl, T* B, std::int64_t ldb) {
  const T one = 1;
  constexpr cublasDiagType_t diagonal = CUBLAS_DIAG_NON_UNIT;
  if constexpr (std::is_same_v<T, float>)
    QUADRIC_CUDA(cublasStrsm_64(handle, side, uplo, op, diagonal, m, n, &one, L, ldl, B, ldb));
  else
    QUADRIC_CUDA(cublasDtrsm_64(handle, side, uplo, op, diagonal, m, n, &one, L, ldl, B, ldb));
}

template <class T>
void trsv(cublasHandle_t handle, cublasFillMode_t uplo, cublasOperation_t op, std::int64_t n, const T* L,
          std::int64_t ldl, T* x, std::int64_t step) {
  constexpr cublasDiagType_t diagonal = CUBLAS_DIAG_NON_UNIT;
  if constexpr (std::is_same_v<T, float>)
    QUADRIC_CUDA(cublasStrsv_64(handle, uplo, op, diagonal, n, L, ldl, x, step));
  else
    QUADRIC_CUDA(cublasDtrsv_64(handle, uplo, op, diagonal, n, L, ldl, x, step));
}

// How cuBLAS sees op(R), R upper and row- or column-major.
struct Seen {
  cublasFillMode_t uplo;
  bool transposed;
  std::int64_t ld;
};

template <class T>
Seen seen(const MatrixView<const T>& R, bool transposed) {
  if (by_rows(R)) return {CUBLAS_FILL_MODE_LOWER, !transposed, leading(R)};
  return {CUBLAS_FILL_MODE_UPPER, transposed, leading(turned(R))};
}

cublasOperation_t operation(bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; }

// B <- op(R)^-1 B, or B op(R)^-1; both row- or column-major.
template <class T>
void solve(cublasHandle_t handle, const MatrixView<const T>& R, const MatrixView<T>& B, bool left, bool transposed) {
  const Seen r = seen(R, transposed);
  if (left ? B.cols == 1 : B.rows == 1) {                          // x^T op(R)^-1 is op(R)^-T x
    const std::int64_t step = left ? B.row_stride : B.col_stride;  // of any sign where there is but one entry
    trsv<T>(handle, r.uplo, operation(left ? r.transposed : !r.transposed), R.rows, R.data, r.ld, B.data,
            std::max<std::int64_t>(step, 1));
  } else if (by_rows(B)) {  // turned, it is on the other side of op(R)^-T
    trsm<T>(handle, left ? CUBLAS_SIDE_RIGHT : CUBLAS_SIDE_LEFT, r.uplo, operation(!r.transposed), B.cols, B.rows,
            R.data, r.ld, B.data, leading(B));
  } else {
    trsm<T>(handle, left ? CUBLAS_SIDE_LEFT : CUBLAS_SIDE_RIGHT, r.uplo, operation(r.transposed), B.rows, B.cols,
            R.data, r.ld, B.data, leading(turned(B)));
  }
}

// ---- kernels -------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads) scale_kernel(MatrixView<T> C, T beta) {
  const std::int64_t size = C.rows * C.cols, step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t t = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; t < size; t += step) {
    T& c = entry(C, t / C.cols, t % C.cols);
    c = beta == 0 ? T(0) : beta * c;
  }
}

// W = the upper triangle of G, or of the unit matrix where G has no entries; zeros below. W has contiguous rows.
template <class T, class W>
__global__ void __launch_bounds__(kThreads) upper_kernel(MatrixView<const T> G, std::int64_t d, W* to) {
  const std::int64_t size = d * d, step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t t = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; t < size; t += step) {
    const std::int64_t i = t / d, j = t % d;
    if (G.data == nullptr)
      to[t] = i == j ? W(1) : W(0);
    else
      to[t] = j < i ? W(0) : static_cast<W>(entry(G, i, j));
  }
}

__device__ std::int32_t first_failure(const std::int32_t* noted, int rounds) {
  for (int round = 0; round < rounds; ++round)
    if (noted[round] >= 0) return noted[round];
  return -1;
}

// R = the triangle, zeros below it, rounded; NaN if a round has failed, of which *status is to tell.
template <class W, class T>
__global__ void __launch_bounds__(kThreads) finish_kernel(const W* from, std::int64_t d, const std::int32_t* noted,
                                                          int rounds, MatrixView<T> R, std::int32_t* status) {
  const std::int32_t failed = first_failure(noted, rounds);
  const std::int64_t size = d * d, step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  if (status != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *status = failed;
  for (std::int64_t t = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; t < size; t += step) {
    const std::int64_t i = t / d, j = t % d;
    if (failed >= 0)
      entry(R, i, j) = std::numeric_limits<T>::quiet_NaN();
    else
      entry(R, i, j) = j < i ? T(0) : static_cast<T>(from[t]);
  }
}

__global__ void __launch_bounds__(kThreads) shift_kernel(double* G, std::int64_t d, double factor) {
  const std::int64_t j = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  if (j < d) G[j * (d + 1)] *= factor;
}

// Clears what is below the diagonal of U, which has contiguous rows, and notes in noted[round], -1 before, the first
// pivot that is out of bounds or NaN. After a round that has failed nothing is noted. A block for each row.
__global__ void __launch_bounds__(kThreads)
    note_kernel(double* U, std::int64_t d, const int* info, double low, double high, std::int32_t* noted, int round) {
  const std::int64_t i = blockIdx.x;
  for (std::int64_t j = threadIdx.x; j < i; j += kThreads) U[i * d + j] = 0;
  if (threadIdx.x != 0 || first_failure(noted, round) >= 0) return;
  const double pivot = U[i * (d + 1)];
  const std::int64_t reached = *info > 0 ? *info - 1 : d;  // behind it numbers mean nothing
  // -1 is the largest number without a sign.
  if (i == reached || (i < reached && !(pivot > low && pivot < high)))
    atomicMin(reinterpret_cast<unsigned*>(noted + round), static_cast<unsigned>(i));
}

// ---- factorizations ------------------------------------------------------------------------------------------------

std::int32_t* cleared(const Execution& exec, std::int32_t* status, std::int64_t count = 1) {
  QUADRIC_CUDA(cudaMemsetAsync(status, 0xff, static_cast<std::size_t>(count) * sizeof(*status), stream(exec)));
  return status;
}

template <class T>
void check_triangle(const MatrixView<T>& R, std::int64_t d, const char* message) {
  QUADRIC_REQUIRE(R.rows == d && R.cols == d && d <= std::numeric_limits<int>::max(), message);
}

template <class W, class T>
void finish(const Execution& exec, const W* from, const std::int32_t* noted, int rounds, const MatrixView<T>& R,
            std::int32_t* status) {
  finish_kernel<W, T><<<grid_over(ceil_div(R.rows * R.rows, kThreads)), kThreads, 0, stream(exec)>>>(
      from, R.rows, noted, rounds, R, status);
  QUADRIC_CUDA_LAUNCHED();
}

// W, rows contiguous, becomes U of U^T U = W, of which the upper triangle is read; see note_kernel.
void factor(const Execution& exec, Scratch& scratch, double* W, std::int64_t d, double low, double high,
            std::int32_t* noted, int round) {
  int* const info = scratch.get<int>(1);
  // Column by column, our upper triangle is the lower one.
  potrf<double>(exec, scratch, CUBLAS_FILL_MODE_LOWER, d, W, info);
  note_kernel<<<static_cast<unsigned>(d), kThreads, 0, stream(exec)>>>(W, d, info, low, high, noted, round);
  QUADRIC_CUDA_LAUNCHED();
}

// Q, rows contiguous, is overwritten. The first round adds to the diagonal of the Gram matrix what rounding may have
// taken, so that its factor exists; Q then has a condition of at most some 1e8 for 1e16 before, and two rounds without
// a shift make its columns orthonormal to rounding. The shift of a column is relative to its norm: columns may be
// scaled as they like.
const double* orthogonalize(const Execution& exec, Scratch& scratch, const MatrixView<double>& Q, int rounds,
                            std::int32_t* noted) {
  constexpr double eps = std::numeric_limits<double>::epsilon(), any = std::numeric_limits<double>::infinity();
  const std::int64_t m = Q.rows, d = Q.cols, ld = leading(Q);
  const auto bytes = static_cast<std::size_t>(d * d) * sizeof(double);
  double* const G = scratch.get<double>(d * d);
  double* total = scratch.get<double>(d * d);
  double* next = scratch.get<double>(d * d);
  const cublasHandle_t handle = blas(exec, scratch);
  GramSum<double> sum(exec, scratch, handle, d, G);
  cleared(exec, noted, kRounds);
  for (int round = 0; round < rounds; ++round) {
    if (round > 0) QUADRIC_CUDA(cudaMemsetAsync(G, 0, bytes, stream(exec)));
    sum.add(Q.data, Q.data, ld, m);
    if (round == 0) {
      const double shift = 2 * eps * static_cast<double>(d + 16);
      shift_kernel<<<static_cast<unsigned>(ceil_div(d, kThreads)), kThreads, 0, stream(exec)>>>(G, d, 1 + shift);
      QUADRIC_CUDA_LAUNCHED();
    }
    // At last the pivots are near 1, or the columns are not orthonormal after it.
    const bool last = round == kRounds - 1;
    factor(exec, scratch, G, d, last ? 0.5 : 0, last ? 2 : any, noted, round);
    solve<double>(handle, MatrixView<const double>(G, d, d), Q, false, false);
    if (round == 0) {
      QUADRIC_CUDA(cudaMemcpyAsync(total, G, bytes, cudaMemcpyDeviceToDevice, stream(exec)));
    } else {
      // Column by column: total^T G^T.
      multiply<double>(handle, d, d, d, 1.0, {CUBLAS_OP_N, total, d}, {CUBLAS_OP_N, G, d}, 0.0, next, d);
      std::swap(total, next);
    }
  }
  return total;
}

}  // namespace

template <class T>
void product(const Execution& exec, MatrixView<const T> A, MatrixView<const T> B, MatrixView<T> C, double alpha,
             double beta) {
  QUADRIC_REQUIRE(A.rows == C.rows && B.cols == C.cols && A.cols == B.rows, "A B must have the shape of C");
  if (C.empty()) return;
  if (!oriented(C)) {
    Scratch scratch(exec);
    const MatrixView<T> to(scratch.get<T>(C.rows * C.cols), C.rows, C.cols);
    if (beta != 0) copy(exec, entries(C), entries(to));
    product<T>(exec, A, B, to, alpha, beta);
    copy(exec, entries(to), entries(C));
    return;
  }
  const T a = static_cast<T>(alpha), b = static_cast<T>(beta);
  if (A.cols == 0) {
    scale_kernel<T><<<grid_over(ceil_div(C.rows * C.cols, kThreads)), kThreads, 0, stream(exec)>>>(C, b);
    QUADRIC_CUDA_LAUNCHED();
    return;
  }
  Scratch scratch(exec);
  A = packed(exec, scratch, A);
  B = packed(exec, scratch, B);
  const cublasHandle_t handle = blas(exec, scratch);
  if (C.cols > 1 && (C.rows == 1 || !by_rows(C))) {  // C^T = B^T A^T
    const MatrixView<const T> left = turned(B);
    B = turned(A);
    A = left;
    C = turned(C);
  }
  const bool a_rows = by_rows(A), b_rows = by_rows(B);
  const std::int64_t lda = a_rows ? leading(A) : leading(turned(A)), ldb = b_rows ? leading(B) : leading(turned(B));
  if (C.cols == 1) {
    const auto step = [](std::int64_t size, std::int64_t stride) { return size == 1 ? std::int64_t{1} : stride; };
    gemv<T>(handle, a_rows ? CUBLAS_OP_T : CUBLAS_OP_N, a_rows ? A.cols : A.rows, a_rows ? A.rows : A.cols, a, A.data,
            lda, B.data, step(B.rows, B.row_stride), b, C.data, step(C.rows, C.row_stride));
    return;
  }
  // Column by column, B and A that are by rows are those of C^T = B^T A^T.
  multiply<T>(handle, C.cols, C.rows, A.cols, a, {b_rows ? CUBLAS_OP_N : CUBLAS_OP_T, B.data, ldb},
              {a_rows ? CUBLAS_OP_N : CUBLAS_OP_T, A.data, lda}, b, C.data, leading(C));
}

template <class T>
void triangular_solve(const Execution& exec, MatrixView<const T> R, MatrixView<T> B, bool left, bool transposed) {
  check_triangle(R, left ? B.rows : B.cols, "R must be square, and B must have as many rows (left) or columns");
  if (B.empty()) return;
  Scratch scratch(exec);
  R = packed(exec, scratch, R);
  const bool copied = !oriented(B);
  const MatrixView<T> X = copied ? MatrixView<T>(scratch.get<T>(B.rows * B.cols), B.rows, B.cols) : B;
  if (copied) copy(exec, entries(B), entries(X));
  solve<T>(blas(exec, scratch), R, X, left, transposed);
  if (copied) copy(exec, entries(X), entries(B));
}

template <class T>
void triangular_inverse(const Execution& exec, MatrixView<const T> R, MatrixView<T> out) {
  const std::int64_t d = R.rows;
  check_triangle(R, d, "R must be square");
  check_triangle(out, d, "out must have the shape of R");
  if (d == 0) return;
  Scratch scratch(exec);
  R = packed(exec, scratch, R);
  T* const X = scratch.get<T>(d * d);
  upper_kernel<T, T><<<grid_over(ceil_div(d * d, kThreads)), kThreads, 0, stream(exec)>>>(MatrixView<const T>(), d, X);
  QUADRIC_CUDA_LAUNCHED();
  solve<T>(blas(exec, scratch), R, MatrixView<T>(X, d, d), true, false);
  finish<T, T>(exec, X, nullptr, 0, out, nullptr);
}

template <class T>
void qr(const Execution& exec, MatrixView<T> A, MatrixView<T> R, std::int32_t* status, bool rough) {
  const std::int64_t m = A.rows, d = A.cols;
  QUADRIC_REQUIRE(m >= d, "A must have no more columns than rows");
  check_triangle(R, d, "R must be d x d, d the columns of A");
  if (d == 0) {
    cleared(exec, status);
    return;
  }
  Scratch scratch(exec);
  MatrixView<double> Q;
  if constexpr (std::is_same_v<T, double>) {
    if (by_rows(A)) Q = A;
  }
  const bool copied = Q.data == nullptr;  // float32 is factored in float64, which takes no longer
  if (copied) {
    Q = MatrixView<double>(scratch.get<double>(m * d), m, d);
    copy(exec, entries(A), entries(Q));
  }
  std::int32_t* const noted = scratch.get<std::int32_t>(kRounds);
  const int rounds = rough ? kRounds - 1 : kRounds;
  const double* const triangle = orthogonalize(exec, scratch, Q, rounds, noted);
  if (copied) copy(exec, entries(Q), entries(A));
  finish<double, T>(exec, triangle, noted, rounds, R, status);
}

template <class T>
void symmetric_cholesky(const Execution& exec, MatrixView<const T> G, MatrixView<T> R, std::int32_t* status) {
  const std::int64_t d = G.rows;
  check_triangle(G, d, "G must be square");
  check_triangle(R, d, "R must have the shape of G");
  if (d == 0) {
    cleared(exec, status);
    return;
  }
  Scratch scratch(exec);
  double* const W = scratch.get<double>(d * d);
  std::int32_t* const noted = cleared(exec, scratch.get<std::int32_t>(1));
  upper_kernel<T, double><<<grid_over(ceil_div(d * d, kThreads)), kThreads, 0, stream(exec)>>>(G, d, W);
  QUADRIC_CUDA_LAUNCHED();
  factor(exec, scratch, W, d, 0, std::numeric_limits<double>::infinity(), noted, 0);
  finish<double, T>(exec, W, noted, 1, R, status);
}

template <class T>
void column_norms(const Execution& exec, MatrixView<const T> A, double* out) {
  reduce_columns<Norm>(exec, A, out);
}

#define QUADRIC_INSTANTIATE(T)                                                                                         \
  template QUADRIC_API void product(const Execution&, MatrixView<const T>, MatrixView<const T>, MatrixView<T>, double, \
                                    double);                                                                           \
  template QUADRIC_API void triangular_solve(const Execution&, MatrixView<const T>, MatrixView<T>, bool, bool);        \
  template QUADRIC_API void triangular_inverse(const Execution&, MatrixView<const T>, MatrixView<T>);                  \
  template QUADRIC_API void qr(const Execution&, MatrixView<T>, MatrixView<T>, std::int32_t*, bool);                   \
  template QUADRIC_API void symmetric_cholesky(const Execution&, MatrixView<const T>, MatrixView<T>, std::int32_t*);   \
  template QUADRIC_API void column_norms(const Execution&, MatrixView<const T>, double*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::linalg
