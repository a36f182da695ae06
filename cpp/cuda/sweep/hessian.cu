// H += X^T diag(w) X on the upper triangle.
//
// Floor: T n^2 flops, half of a full product: T = 65 536, n = 4096 in bfloat16 1.4 ms at 790 TFLOP/s, in float32 22 ms
// at 50; reading X takes 0.13 and 0.26 ms. The triangle is cut into squares: 2^(levels-1-k) pairs of width
// block * 2^k off the diagonal at level k, and blocks on the diagonal, which are computed whole. Their number is such
// that few multiprocessors idle; where the pairs of a level would leave half of them idle, several slices of tokens go
// side by side. For n = 4096 one square of 2048, two of 1024 and four blocks of 1024 take 1, 1/2 and 1 rounds of 132
// tiles for a slice, where a full product takes four; 20 rounds for T = 65 536, which should give 1.8 to 1.9 ms.
//
// Accuracy with 16-bit X: products are exact, the tensor cores add them in float32 and cut off instead of rounding, a
// slice of at most 8192 tokens at a time; H takes the slices with rounding. So
//   |H - exact| <= (min(T, 8192) + T / 8192 + 2) 2^-23 |X|^T |X|,
// of which one sixteenth is the usual order: the sums are formed 16 products at a time.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "device.hpp"
#include "quadric/cuda/sweep.hpp"
#include "require.hpp"

namespace quadric::cuda::sweep {
namespace {

constexpr std::int64_t kSlice = 8192;         // tokens that are summed within one product
constexpr std::int64_t kLargestBlock = 2048;  // the blocks on the diagonal take n * kLargestBlock numbers of memory
constexpr std::int64_t kSmallestBlock = 512;
constexpr std::int64_t kCopied = std::int64_t{1} << 26;  // entries of X that are converted at a time
constexpr std::int64_t kConcurrent = 132;  // tiles at a time; a constant, so that the partition is the same everywhere
constexpr int kThreads = 256;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

struct Cut {
  std::int64_t block = 0;  // columns of a block on the diagonal
  int levels = 0;          // block * 2^levels >= n
};

std::int64_t tiles(std::int64_t rows, std::int64_t columns, std::int64_t tile_columns) {
  return ceil_div(rows, 128) * ceil_div(columns, tile_columns);
}

// Slices that go side by side in the products of a level, one product for each of its pairs, which then take
// pairs / side rounds for a slice; or 1: the pairs of a slice go side by side.
std::int64_t side_by_side(std::int64_t n, std::int64_t width, std::int64_t tile_columns, std::int64_t slices) {
  const std::int64_t side = std::min(kConcurrent / tiles(width, width, tile_columns), slices);
  return n % (2 * width) == 0 && side > n / (2 * width) ? side : 1;
}

// The cut with the fewest rounds of tiles; a launch counts as a twentieth of a round.
Cut best_cut(std::int64_t n, std::int64_t tile_columns, std::int64_t slices) {
  Cut best;
  double best_cost = std::numeric_limits<double>::infinity();
  for (int levels = 0; levels < 24; ++levels) {
    const std::int64_t parts = std::int64_t{1} << levels;
    const std::int64_t block = levels == 0 ? n : round_up(ceil_div(n, parts), 64);
    if (block > kLargestBlock) continue;
    if (levels > 0 && block < kSmallestBlock && best.block > 0) break;
    double cost =
        0.05 + static_cast<double>(ceil_div(ceil_div(n, block) * tiles(block, block, tile_columns), kConcurrent));
    for (int k = 0; k < levels; ++k) {
      const std::int64_t width = block << k, pairs = ceil_div(n, 2 * width);
      const std::int64_t side = side_by_side(n, width, tile_columns, slices);
      if (side > 1)
        cost += 1.05 * static_cast<double>(pairs) / static_cast<double>(side);
      else
        cost += 0.05 + static_cast<double>(ceil_div(pairs * tiles(width, width, tile_columns), kConcurrent));
    }
    if (cost < best_cost) {
      best_cost = cost;
      best = {block, levels};
    }
  }
  return best;
}

template <class T>
constexpr cudaDataType data_type() {
  if constexpr (std::is_same_v<T, __half>) return CUDA_R_16F;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return CUDA_R_16BF;
  return std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_64F;
}

// C = A B^T + beta C, column-major, `count` times.
template <class In, class T>
void multiply(cublasHandle_t handle, std::int64_t m, std::int64_t n, std::int64_t k, const In* A, const In* B,
              std::int64_t ld, std::int64_t stride, T beta, T* C, std::int64_t ldc, std::int64_t stride_c,
              std::int64_t count) {
  const T alpha = 1;
  QUADRIC_CUDA(cublasGemmStridedBatchedEx(
      handle, CUBLAS_OP_N, CUBLAS_OP_T, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), &alpha, A,
      data_type<In>(), static_cast<int>(ld), stride, B, data_type<In>(), static_cast<int>(ld), stride, &beta, C,
      data_type<T>(), static_cast<int>(ldc), stride_c, static_cast<int>(count),
      std::is_same_v<T, float> ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_64F, CUBLAS_GEMM_DEFAULT));
}

// Row by row X is the column-major n x tokens matrix x, and the upper triangle of H is the lower one of H^T:
// entry (j, i) of H^T, j >= i, lies at H + i n + j.
template <class In, class T>
struct Triangle {
  cublasHandle_t handle;
  std::int64_t n;
  Cut cut;
  T* H;         // n x n
  T* diagonal;  // for each part: the blocks on the diagonal, block x block each
  std::int64_t tile_columns, slices;

  std::int64_t side(int level) const { return side_by_side(n, cut.block << level, tile_columns, slices); }
  std::int64_t part() const { return ceil_div(n, cut.block) * cut.block * cut.block; }

  // The tokens [0, tokens) of x, and for each further part the `tokens` that follow.
  void add(const In* x, std::int64_t ld, std::int64_t tokens, std::int64_t parts, bool first) const {
    for (int k = 0; k < cut.levels; ++k) {
      const std::int64_t width = cut.block << k, pairs = n / (2 * width);
      if (side(k) > 1) continue;
      if (pairs > 0)
        multiply<In, T>(handle, width, width, tokens, x + width, x, ld, 2 * width, T(1), H + width, n,
                        2 * width * (n + 1), pairs);
      const std::int64_t i = pairs * 2 * width, j = i + width;  // a pair whose second half is cut short
      if (j < n) multiply<In, T>(handle, n - j, width, tokens, x + j, x + i, ld, 0, T(1), H + i * n + j, n, 0, 1);
    }
    const T beta = first ? T(0) : T(1);  // the sums of the blocks on the diagonal begin with the first slice
    const std::int64_t block = cut.block, whole = n / block, rest = n - whole * block;
    if (parts > 1) {  // one block only
      multiply<In, T>(handle, n, n, tokens, x, x, ld, tokens * ld, beta, diagonal, block, part(), parts);
      return;
    }
    if (whole > 0)
      multiply<In, T>(handle, block, block, tokens, x, x, ld, block, beta, diagonal, block, block * block, whole);
    if (rest > 0) {
      const In* last = x + whole * block;
      multiply<In, T>(handle, rest, rest, tokens, last, last, ld, 0, beta, diagonal + whole * block * block, block, 0,
                      1);
    }
  }
};

// The squares of one level, summed over `parts` of them each. A block of threads for each row of a square.
template <class T>
__global__ void add_squares(const T* squares, std::int64_t width, std::int64_t parts, std::int64_t n, T* H) {
  const std::int64_t pair = blockIdx.x / width, i = blockIdx.x % width, corner = 2 * width * pair;
  const T* const row = squares + (pair * parts * width + i) * width;
  T* const to = H + (corner + i) * n + corner + width;
  for (std::int64_t j = threadIdx.x; j < width; j += kThreads) {
    T sum = 0;
    for (std::int64_t p = 0; p < parts; ++p) sum += row[p * width * width + j];
    to[j] += sum;
  }
}

// The blocks on the diagonal, their upper triangles alone, summed over the parts. A block of threads for each row of H.
template <class T>
__global__ void add_diagonal(const T* diagonal, std::int64_t block, std::int64_t parts, std::int64_t part,
                             std::int64_t n, T* H) {
  const std::int64_t i = blockIdx.x, first = i / block * block;
  const std::int64_t end = first + block < n ? first + block : n;
  const T* const row = diagonal + first * block + (i - first) * block;
  for (std::int64_t j = i + threadIdx.x; j < end; j += kThreads) {
    T sum = 0;
    for (std::int64_t p = 0; p < parts; ++p) sum += row[p * part + j - first];
    H[i * n + j] += sum;
  }
}

// out = diag(sqrt(weights)) x. A block for each token.
template <class In, class Out>
__global__ void convert(const In* x, std::int64_t stride, const Out* weights, std::int64_t n, Out* out,
                        std::int64_t ld) {
  const std::int64_t t = blockIdx.x;
  const In* const from = x + t * stride;
  Out* const to = out + t * ld;
  if constexpr (std::is_same_v<In, Out>) {
    if (weights == nullptr) {
      for (std::int64_t j = threadIdx.x; j < n; j += kThreads) to[j] = from[j];
      return;
    }
  }
  if constexpr (std::is_floating_point_v<Out>) {
    const Out root = weights == nullptr ? Out(1) : sqrt(weights[t]);
    for (std::int64_t j = threadIdx.x; j < n; j += kThreads) to[j] = root * static_cast<Out>(from[j]);
  }
}

// A level whose products are of several slices.
template <class In, class T>
void squares_side_by_side(const Execution& exec, Scratch& scratch, const Triangle<In, T>& triangle, int level,
                          const In* x, std::int64_t ld, std::int64_t rows) {
  const std::int64_t side = triangle.side(level), n = triangle.n, width = triangle.cut.block << level;
  if (side == 1) return;
  const std::int64_t pairs = n / (2 * width), square = width * width;
  T* const squares = scratch.get<T>(pairs * side * square);
  std::int64_t begin = 0;
  while (begin < rows) {  // the first `side` slices are whole, so that all sums have begun
    std::int64_t parts = std::min(side, (rows - begin) / kSlice), tokens = kSlice;
    if (parts == 0) {
      parts = 1;
      tokens = rows - begin;
    }
    for (std::int64_t p = 0; p < pairs; ++p) {
      const In* const at = x + begin * ld + 2 * width * p;
      multiply<In, T>(triangle.handle, width, width, tokens, at + width, at, ld, tokens * ld, begin == 0 ? T(0) : T(1),
                      squares + p * side * square, width, square, parts);
    }
    begin += parts * tokens;
  }
  add_squares<T>
      <<<static_cast<unsigned>(pairs * width), kThreads, 0, stream(exec)>>>(squares, width, side, n, triangle.H);
  QUADRIC_CUDA_LAUNCHED();
}

// X is multiplied as numbers of type Mul: its own, or T.
template <class In, class Mul, class T>
void accumulate(const Execution& exec, const StoredRows& X, const T* weights, MatrixView<T> H) {
  const std::int64_t n = X.cols;
  constexpr std::int64_t kAligned = 16 / sizeof(Mul);  // what the fast kernels of cuBLAS ask for
  const In* const x = static_cast<const In*>(X.data);
  const bool as_is =
      std::is_same_v<In, Mul> && weights == nullptr && X.row_stride >= n &&
      X.row_stride <= std::numeric_limits<int>::max() &&
      (sizeof(In) > 2 || (X.row_stride % kAligned == 0 && reinterpret_cast<std::uintptr_t>(X.data) % 16 == 0));

  Scratch scratch(exec);
  constexpr std::int64_t tile_columns = sizeof(Mul) == 2 ? 256 : 128;
  const std::int64_t slices = as_is ? X.rows / kSlice : 0;  // that may go side by side
  const Cut cut = best_cut(n, tile_columns, slices);
  Triangle<Mul, T> triangle{blas(exec, scratch), n, cut, H.data, nullptr, tile_columns, slices};

  // Where one product leaves multiprocessors idle, several slices of tokens go side by side, each to its own part.
  std::int64_t side = cut.levels > 0 ? 1 : std::max<std::int64_t>(1, kConcurrent / tiles(n, n, tile_columns));
  std::int64_t slice = std::clamp<std::int64_t>(round_up(ceil_div(X.rows, side), 64), 512, kSlice);
  if (!as_is) slice = std::min(slice, std::max<std::int64_t>(kCopied / (n * side) / 64 * 64, 512));
  side = std::clamp<std::int64_t>(X.rows / slice, 1, side);
  triangle.diagonal = scratch.get<T>(side * triangle.part());
  const std::int64_t ld = round_up(n, kAligned);
  Mul* const copy = as_is ? nullptr : scratch.get<Mul>(std::min(X.rows, side * slice) * ld);

  std::int64_t begin = 0;
  while (begin < X.rows) {
    std::int64_t parts = std::min(side, (X.rows - begin) / slice), tokens = slice;
    if (parts == 0) {
      parts = 1;
      tokens = X.rows - begin;
    }
    const In* const from = x + begin * X.row_stride;
    if (as_is) {
      if constexpr (std::is_same_v<In, Mul>) triangle.add(from, X.row_stride, tokens, parts, begin == 0);
    } else {
      const Mul* w = nullptr;
      if constexpr (std::is_same_v<Mul, T>) w = weights == nullptr ? nullptr : weights + begin;
      convert<In, Mul>
          <<<static_cast<unsigned>(parts * tokens), kThreads, 0, stream(exec)>>>(from, X.row_stride, w, n, copy, ld);
      QUADRIC_CUDA_LAUNCHED();
      triangle.add(copy, ld, tokens, parts, begin == 0);
    }
    begin += parts * tokens;
  }
  for (int k = 0; k < cut.levels; ++k) {
    if constexpr (std::is_same_v<In, Mul>) squares_side_by_side(exec, scratch, triangle, k, x, X.row_stride, X.rows);
  }
  add_diagonal<T><<<static_cast<unsigned>(n), kThreads, 0, stream(exec)>>>(triangle.diagonal, cut.block, side,
                                                                           triangle.part(), n, H.data);
  QUADRIC_CUDA_LAUNCHED();
}

// 16-bit numbers go to the tensor cores as they are; with weights, or for a float64 H, they become numbers of type T.
template <class In, class T>
void by_width(const Execution& exec, const StoredRows& X, const T* weights, MatrixView<T> H) {
  if constexpr (sizeof(In) == 2 && std::is_same_v<T, float>) {
    if (weights == nullptr) return accumulate<In, In, T>(exec, X, weights, H);
  }
  accumulate<In, T, T>(exec, X, weights, H);
}

}  // namespace

template <class T>
void gram(const Execution& exec, const StoredRows& X, const T* weights, MatrixView<T> H) {
  const std::int64_t n = X.cols;
  QUADRIC_REQUIRE(H.rows == n && H.cols == n, "H must be n x n, n the columns of X");
  QUADRIC_REQUIRE(n == 0 || (H.col_stride == 1 && H.row_stride == n), "H must have contiguous rows");
  QUADRIC_REQUIRE(n <= std::numeric_limits<int>::max() - 64, "X has too many columns");
  if (n == 0 || X.rows == 0) return;
  switch (X.storage) {
    case Storage::float16:
      return by_width<__half>(exec, X, weights, H);
    case Storage::bfloat16:
      return by_width<__nv_bfloat16>(exec, X, weights, H);
    case Storage::float32:
      return by_width<float>(exec, X, weights, H);
    case Storage::float64:
      return by_width<double>(exec, X, weights, H);
  }
}

template QUADRIC_API void gram(const Execution&, const StoredRows&, const float*, MatrixView<float>);
template QUADRIC_API void gram(const Execution&, const StoredRows&, const double*, MatrixView<double>);

}  // namespace quadric::cuda::sweep
