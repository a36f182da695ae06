// Gaussian and Rademacher matrices, a slab of columns at a time, times A by cuBLAS.
//
// n = 1e6, d = 256, m = 1024, float32. Floor: 2 m n d = 5.2e11 flops at 50 TFLOP/s = 10.5 ms. The 1e9 entries of S are
// written and read twice, 12 GB, mostly in the second-level cache: 2 ms. Normals take about 60 operations each, 2 ms at
// 30e12/s (4 ms in double); signs take 0.3 ms. The next slab is drawn on a second stream, beside a product as far as
// that leaves room. To be reached: 14 ms, 12.5 ms.
#include "random/philox.cuh"

#include <cstdint>

#include "sketch/tiles.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kSlabBytes = std::int64_t{64} << 20;
constexpr std::int64_t kMostRows = 1 << 15;  // of S at a time

// S[row : row + rows, first : first + columns], of `blocks` blocks of words in a column.
template <class T>
struct Part {
  std::uint64_t seed, blocks;
  std::int64_t row, rows, first, columns;
  T* out;  // rows x columns

  // A thread has a column, and every gridDim.y-th of `count` units of rows: body(unit, column).
  template <class Body>
  __device__ void visit(std::int64_t begin, std::int64_t count, const Body& body) const {
    const std::int64_t j = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
    if (j >= columns) return;
    for (std::int64_t u = blockIdx.y; u < count; u += gridDim.y) body(begin + u, j);
  }
  __device__ void set(std::int64_t r, std::int64_t j, T value) const {
    if (r >= row && r < row + rows) out[(r - row) * columns + j] = value;
  }
  __device__ random::Words words(std::int64_t block, std::int64_t j) const {
    const std::uint64_t column = static_cast<std::uint64_t>(first + j);
    return random::block_of_words(seed, static_cast<std::uint32_t>(Draw::dense),
                                  column * blocks + static_cast<std::uint64_t>(block));
  }
};

// (w + 1/2) / 2^32.
__device__ __forceinline__ double uniform(std::uint32_t w) { return (static_cast<double>(w) + 0.5) * 0x1p-32; }

template <class T>
struct Pair {
  T first, second;
};

// Two normals by Box and Muller, within 4 eps of their radius.
__device__ __forceinline__ Pair<double> normals(std::uint32_t a, std::uint32_t b, double) {
  const double radius = sqrt(-2.0 * log(uniform(a)));
  double sine, cosine;
  sincospi(2.0 * uniform(b), &sine, &cosine);
  return {radius * cosine, radius * sine};
}

template <int kCount>
__device__ __forceinline__ float polynomial(float x, const float (&coefficients)[kCount]) {
  float sum = coefficients[kCount - 1];
#pragma unroll
  for (int i = kCount - 2; i >= 0; --i) sum = fmaf(sum, x, coefficients[i]);
  return sum;
}

// Within 3 eps of themselves. In float32 neither a number near 1 nor an angle may be rounded before it is reduced.
__device__ __forceinline__ Pair<float> normals(std::uint32_t a, std::uint32_t b, float) {
  // u = (a + 1/2) / 2^32 = 2^e (1 + f), -1/3 <= f <= 1/3. Minimax polynomials: log(1 + f) = f + f^2 P(f).
  constexpr float logarithm[] = {-0.5f,       0.33333209f,  -0.24999717f, 0.20010749f, -0.16682300f,
                                 0.14001158f, -0.12167225f, 0.14004773f,  -0.12948667f};
  const std::uint32_t bits = __float_as_uint((static_cast<float>(a) + 0.5f) * 0x1p-32f);
  const std::int32_t e = static_cast<std::int32_t>(bits - 0x3f2aaaabu) >> 23;
  const float near = __uint_as_float(bits - (static_cast<std::uint32_t>(e) << 23)) - 1;
  const float f = e == 0 ? (static_cast<float>(~a) + 0.5f) * -0x1p-32f : near;
  const float log_u = fmaf(static_cast<float>(e), 0.693147181f, fmaf(f * f, polynomial(f, logarithm), f));
  const float radius = sqrtf(-2 * log_u);
  // (b + 1/2) / 2^32 of a turn is q quarters and x of one, -1/2 <= x <= 1/2.
  constexpr float sines[] = {1.5707964f, -0.6459635f, 0.07968003f, -0.004601658f};
  constexpr float cosines[] = {1.0f, -1.2337005f, 0.2536692f, -0.020860072f, 0.0009036317f};
  const std::uint32_t q = (b + (1u << 29)) >> 30;
  const float x = (static_cast<float>(static_cast<std::int32_t>(b - (q << 30))) + 0.5f) * 0x1p-30f, square = x * x;
  const float sine = x * polynomial(square, sines), cosine = polynomial(square, cosines);
  const bool odd = (q & 1) != 0;
  return {radius * flipped(odd ? sine : cosine, (q + 1) << 30), radius * flipped(odd ? cosine : sine, q << 30)};
}

// Four rows of a column a thread.
template <class T>
__global__ void __launch_bounds__(kThreads) gaussian_kernel(const Part<T> part) {
  const std::int64_t begin = part.row / 4, count = (part.row + part.rows + 3) / 4 - begin;
  part.visit(begin, count, [&](std::int64_t q, std::int64_t j) {
    const random::Words words = part.words(q, j);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const Pair<T> both = normals(words.at[2 * pair], words.at[2 * pair + 1], T());
      part.set(4 * q + 2 * pair, j, both.first);
      part.set(4 * q + 2 * pair + 1, j, both.second);
    }
  });
}

// 32 rows of a column, one word, a thread.
template <class T>
__global__ void __launch_bounds__(kThreads) rademacher_kernel(const Part<T> part) {
  const std::int64_t begin = part.row / 32, count = (part.row + part.rows + 31) / 32 - begin;
  part.visit(begin, count, [&](std::int64_t w, std::int64_t j) {
    const random::Words words = part.words(w / 4, j);
    const std::uint32_t low = (w & 1) != 0 ? words.at[1] : words.at[0];
    const std::uint32_t high = (w & 1) != 0 ? words.at[3] : words.at[2];
    const std::uint32_t bits = (w & 2) != 0 ? high : low;
#pragma unroll 8
    for (int row = 0; row < 32; ++row) part.set(32 * w + row, j, unit<T>(bits << (31 - row)));
  });
}

template <class T>
void draw(const Execution& exec, Entries entries, std::uint64_t seed, std::int64_t m, std::int64_t row,
          std::int64_t rows, std::int64_t first, std::int64_t columns, T* out) {
  const bool normal = entries == Entries::gaussian;
  const Part<T> part{seed, static_cast<std::uint64_t>(ceil_div(m, normal ? 4 : 128)), row, rows, first, columns, out};
  const std::int64_t unit = normal ? 4 : 32, count = ceil_div(row + rows, unit) - row / unit;
  const auto kernel = normal ? gaussian_kernel<T> : rademacher_kernel<T>;
  const dim3 grid(grid_of(ceil_div(columns, kThreads)), static_cast<unsigned>(std::min<std::int64_t>(count, 65535)));
  kernel<<<grid, kThreads, 0, stream(exec)>>>(part);
  QUADRIC_CUDA_LAUNCHED();
}

// C += op(A) B, by columns.
cublasStatus_t gemm(cublasHandle_t handle, bool transposed, std::int64_t rows, std::int64_t cols, std::int64_t k,
                    const float* A, std::int64_t lda, const float* B, std::int64_t ldb, float* C, std::int64_t ldc) {
  const float one = 1;
  return cublasSgemm_64(handle, transposed ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N, rows, cols, k, &one, A, lda, B,
                        ldb, &one, C, ldc);
}
cublasStatus_t gemm(cublasHandle_t handle, bool transposed, std::int64_t rows, std::int64_t cols, std::int64_t k,
                    const double* A, std::int64_t lda, const double* B, std::int64_t ldb, double* C, std::int64_t ldc) {
  const double one = 1;
  return cublasDgemm_64(handle, transposed ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N, rows, cols, k, &one, A, lda, B,
                        ldb, &one, C, ldc);
}

template <class S, class T>
void add_products(const Execution& exec, const Source<S>& A, const Place& place, Entries entries,
                  const MatrixView<T>& out) {
  const std::int64_t n = A.rows, m = out.rows, d = A.cols, most = std::min(m, kMostRows);
  // A slab's length is a multiple of kDenseBlock.
  const std::int64_t fits = kSlabBytes / (static_cast<std::int64_t>(sizeof(T)) * std::max(most, d));
  const std::int64_t slab = std::min(n, std::max<std::int64_t>(fits / kDenseBlock, 1) * kDenseBlock);
  bool by_rows = false, by_columns = false;  // as cuBLAS takes them
  if constexpr (std::is_same_v<S, T>) {
    by_rows = A.col_stride == 1 && (n == 1 || A.row_stride >= d);
    by_columns = !by_rows && A.row_stride == 1 && (d == 1 || A.col_stride >= n);
  }
  const std::int64_t slabs = ceil_div(n, slab), pieces = ceil_div(m, most);
  Scratch scratch(exec);
  const cublasHandle_t handle = blas(exec, scratch);
  T* const drawn[] = {scratch.get<T>(most * slab), scratch.get<T>(slabs * pieces > 1 ? most * slab : 0)};
  T* const copy = by_rows || by_columns ? nullptr : scratch.get<T>(slab * d);
  Beside beside(exec);
  // Piece number `step` of S, as soon as the product before the last one has read what was there.
  const auto draw_ahead = [&](std::int64_t step) {
    if (step >= slabs * pieces) return;
    const std::int64_t begin = step / pieces * slab, top = step % pieces * most;
    if (step > 0) beside.wait();
    draw(beside.exec(), entries, place.seed, m, top, std::min(most, m - top), place.first + begin,
         std::min(slab, n - begin), drawn[step % 2]);
    beside.mark();
  };
  draw_ahead(0);
  std::int64_t step = 0;
  for (std::int64_t begin = 0; begin < n; begin += slab) {
    const std::int64_t count = std::min(slab, n - begin);
    const T* a = copy;
    std::int64_t lda = d;
    if constexpr (std::is_same_v<S, T>) {
      if (by_rows || by_columns) {
        a = A.data + begin * A.row_stride;
        lda = by_rows ? (n == 1 ? d : A.row_stride) : (d == 1 ? n : A.col_stride);
      }
    }
    if (copy != nullptr) copy_rows(exec, A, begin, count, copy);
    for (std::int64_t top = 0; top < m; top += most) {
      const std::int64_t rows = std::min(most, m - top);
      beside.let_caller_wait_for_mark();
      draw_ahead(step + 1);
      // Contiguous rows are columns to BLAS: out^T += A^T S^T.
      QUADRIC_CUDA(gemm(handle, by_columns, d, rows, count, a, lda, drawn[step % 2], count, out.data + top * d, d));
      ++step;
    }
  }
}

}  // namespace

template <class T>
void dense(const Execution& exec, const StoredMatrix& A, Place place, Entries entries, MatrixView<T> out) {
  QUADRIC_REQUIRE(place.first >= 0 && place.first % kDenseBlock == 0, "first must be a multiple of 256");
  QUADRIC_REQUIRE(out.cols == A.cols, "out must have the columns of A");
  if (A.empty() || out.rows == 0) return;
  with_source<T>(A, [&](const auto& from) { add_products(exec, from, place, entries, out); });
}

template <class T>
void dense_entries(const Execution& exec, std::int64_t row, Place place, std::int64_t m, Entries entries,
                   MatrixView<T> out) {
  QUADRIC_REQUIRE(row >= 0 && row + out.rows <= m, "row must be within S");
  QUADRIC_REQUIRE(place.first >= 0, "first must not be negative");
  if (out.empty()) return;
  draw(exec, entries, place.seed, m, row, out.rows, place.first, out.cols, out.data);
}

#define QUADRIC_INSTANTIATE(T)                                                                           \
  template QUADRIC_API void dense(const Execution&, const StoredMatrix&, Place, Entries, MatrixView<T>); \
  template QUADRIC_API void dense_entries(const Execution&, std::int64_t, Place, std::int64_t, Entries, MatrixView<T>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::sketch
