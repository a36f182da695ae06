// Gaussian and Rademacher matrices, a slab of columns at a time, times A by cuBLAS.
//
// n = 1e6, d = 256, m = 1024, float32. Floor: 2 m n d = 5.2e11 flops at 50 TFLOP/s = 10.5 ms. The 1e9 entries of S are
// written and read twice, 12 GB, mostly in the second-level cache: 2 ms. Normals are made in double, as on the CPU:
// about 60 operations each at 15e12/s = 4 ms; signs take 0.3 ms. To be reached: 17 ms, 13 ms.
#include "random/philox.cuh"

#include <cstdint>

#include "sketch/tiles.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kSlabBytes = std::int64_t{64} << 20;
constexpr std::int64_t kMostRows = 1 << 15;  // of S at a time

unsigned grid_over(std::int64_t size) {
  return static_cast<unsigned>(std::min<std::int64_t>(ceil_div(size, kThreads), 1 << 16));
}

// S[row : row + rows, first : first + columns], of `blocks` blocks of words in a column.
template <class T>
struct Part {
  std::uint64_t seed, blocks;
  std::int64_t row, rows, first, columns;
  T* out;  // rows x columns

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

// Four rows of a column a thread.
template <class T>
__global__ void __launch_bounds__(kThreads) gaussian_kernel(const Part<T> part) {
  const std::int64_t begin = part.row / 4, count = (part.row + part.rows + 3) / 4 - begin;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t u = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; u < count * part.columns;
       u += step) {
    const std::int64_t q = begin + u / part.columns, j = u % part.columns;
    const random::Words words = part.words(q, j);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const double radius = sqrt(-2.0 * log(uniform(words.at[2 * pair])));
      double sine, cosine;
      sincospi(2.0 * uniform(words.at[2 * pair + 1]), &sine, &cosine);
      part.set(4 * q + 2 * pair, j, static_cast<T>(radius * cosine));
      part.set(4 * q + 2 * pair + 1, j, static_cast<T>(radius * sine));
    }
  }
}

// 32 rows of a column, one word, a thread.
template <class T>
__global__ void __launch_bounds__(kThreads) rademacher_kernel(const Part<T> part) {
  const std::int64_t begin = part.row / 32, count = (part.row + part.rows + 31) / 32 - begin;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t u = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; u < count * part.columns;
       u += step) {
    const std::int64_t w = begin + u / part.columns, j = u % part.columns;
    const random::Words words = part.words(w / 4, j);
    const std::uint32_t low = (w & 1) != 0 ? words.at[1] : words.at[0];
    const std::uint32_t high = (w & 1) != 0 ? words.at[3] : words.at[2];
    const std::uint32_t bits = (w & 2) != 0 ? high : low;
#pragma unroll 8
    for (int row = 0; row < 32; ++row) part.set(32 * w + row, j, unit<T>(bits << (31 - row)));
  }
}

template <class T>
void draw(const Execution& exec, Entries entries, std::uint64_t seed, std::int64_t m, std::int64_t row,
          std::int64_t rows, std::int64_t first, std::int64_t columns, T* out) {
  const bool normal = entries == Entries::gaussian;
  const Part<T> part{seed, static_cast<std::uint64_t>(ceil_div(m, normal ? 4 : 128)), row, rows, first, columns, out};
  const std::int64_t unit = normal ? 4 : 32, count = ceil_div(row + rows, unit) - row / unit;
  const auto kernel = normal ? gaussian_kernel<T> : rademacher_kernel<T>;
  kernel<<<grid_over(count * columns), kThreads, 0, stream(exec)>>>(part);
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
  Scratch scratch(exec);
  const cublasHandle_t handle = blas(exec, scratch);
  T* const entries_of = scratch.get<T>(most * slab);
  T* const copy = by_rows || by_columns ? nullptr : scratch.get<T>(slab * d);
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
      draw(exec, entries, place.seed, m, top, rows, place.first + begin, count, entries_of);
      // Contiguous rows are columns to BLAS: out^T += A^T S^T.
      QUADRIC_CUDA(gemm(handle, by_columns, d, rows, count, a, lda, entries_of, count, out.data + top * d, d));
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
