// Residuals and gradients.
//
// Floor: one read of A at 4.2 TB/s; n = 1e6, d = 256: 0.49 ms in float64, 0.24 ms in float32. To be reached for one
// right-hand side: 88 %. Products are float64: 2 multiply-adds for each entry take 0.14 (0.28) of that time,
// conversions of float32 at 16 a cycle and multiprocessor 0.28. Several right-hand sides: 4 n d k flops by cuBLAS, on
// slabs of A that stay in the second-level cache between the two products; float64, d = 256, k = 16: 16 Gflop, 0.3 ms,
// so the read of A rules until k = 28.
//
// Layout for one right-hand side: a block takes a part of the rows, eight at a time; a thread has four columns, of
// which it keeps x and the sums of the gradient, and copies their entries into memory of its own in the shared one, two
// or three groups of rows ahead: 128 KB or so on the way for each multiprocessor. From there they become registers,
// which both products read.
#include <cstdint>

#include "copies.cuh"
#include "linalg/products.hpp"
#include "quadric/cuda/sketch.hpp"
#include "sketch/slabs.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kGroup = 8;    // rows at a time
constexpr int kColumns = 4;  // of a thread

// ---- one right-hand side -------------------------------------------------------------------------------------------

// Groups of rows on their way to a block.
template <class T, int kThreads>
inline constexpr int kStages = sizeof(T) == 4   ? 3
                               : kThreads < 512 ? 2
                                                : 1;
template <class T>
inline constexpr int kPieces = kColumns / kPack<T>;  // 16 bytes each

template <class T, int kThreads>
inline constexpr int kRing = kStages<T, kThreads> * kGroup * kColumns * kThreads * static_cast<int>(sizeof(T));

template <class T>
struct Pass {
  const T* A;
  std::int64_t stride, rows, cols;
  const T* x;
  std::int64_t x_stride;
  const T* b;  // or null
  std::int64_t b_stride;
  T* r;  // or null
  std::int64_t r_stride;
  std::int64_t part;  // rows of a block, a multiple of kGroup
  double* g;          // parts x cols, or null
  double* norms;      // parts
  bool packs;         // 16 bytes may be read from each row at every multiple of 16 bytes
};

// The sums over a warp of eight numbers of each lane: that of number lane / 4.
__device__ __forceinline__ double warp_sums(double (&v)[kGroup], int lane) {
#pragma unroll
  for (int half = kGroup / 2, bit = 16; half > 0; half /= 2, bit /= 2) {
    const bool upper = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const double given = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
      v[i] = kept + __shfl_xor_sync(kAll, given, bit);
    }
  }
  v[0] += __shfl_xor_sync(kAll, v[0], 2);
  return v[0] + __shfl_xor_sync(kAll, v[0], 1);
}

template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, (kThreads < 256 ? 384 : 512) / kThreads)
    residual_kernel(const Pass<T> pass) {
  constexpr int kWarps = kThreads / 32, kN = kPack<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  Pack<T>* const ring = reinterpret_cast<Pack<T>*>(memory);  // stage x row x piece x thread
  __shared__ double shared[2][kWarps][kGroup];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, row = lane / 4;
  const std::int64_t begin = blockIdx.x * pass.part, last = begin + pass.part;
  const std::int64_t end = last < pass.rows ? last : pass.rows;
  const auto place = [&](int stage, int q, int c) {
    return ((stage * kGroup + q) * kPieces<T> + c) * kThreads + thread;
  };

  double x[kColumns], g[kColumns] = {};
  int valid[kPieces<T>];  // entries of a piece
#pragma unroll
  for (int c = 0; c < kPieces<T>; ++c) {
    const std::int64_t column = static_cast<std::int64_t>(c * kThreads + thread) * kN, left = pass.cols - column;
    valid[c] = left <= 0 ? 0 : left < kN ? static_cast<int>(left) : kN;
#pragma unroll
    for (int e = 0; e < kN; ++e)
      x[c * kN + e] = e < valid[c] ? static_cast<double>(pass.x[(column + e) * pass.x_stride]) : 0.0;
#pragma unroll
    for (int place_ = 0; place_ < kStages<T, kThreads> * kGroup; ++place_) ring[place(0, place_, c)] = Pack<T>{};
  }

  const auto fetch = [&](int stage, std::int64_t first) {
#pragma unroll
    for (int q = 0; q < kGroup; ++q) {
      if (first + q >= end) break;
      const T* const a = pass.A + (first + q) * pass.stride;
#pragma unroll
      for (int c = 0; c < kPieces<T>; ++c) {
        const T* const from = a + static_cast<std::int64_t>(c * kThreads + thread) * kN;
        Pack<T>* const to = ring + place(stage, q, c);
        if (pass.packs && valid[c] == kN) {
          copy_async<16>(to, from);
        } else {
#pragma unroll
          for (int e = 0; e < kN; ++e)
            if (e < valid[c]) copy_async<static_cast<int>(sizeof(T))>(&to->at[e], from + e);
        }
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int stage = 0; stage < kStages<T, kThreads>; ++stage) fetch(stage, begin + stage * kGroup);

  double norm = 0;
  int stage = 0, parity = 0;
  for (std::int64_t first = begin; first < end; first += kGroup) {
    const std::int64_t mine = first + row;
    double b = 0;
    if (pass.b != nullptr && mine < end) b = static_cast<double>(pass.b[mine * pass.b_stride]);
    wait_copies<kStages<T, kThreads> - 1>();
    double a[kGroup][kColumns], sums[kGroup];
#pragma unroll
    for (int q = 0; q < kGroup; ++q) {
      sums[q] = 0;
#pragma unroll
      for (int c = 0; c < kPieces<T>; ++c) {
        const Pack<T> pack = ring[place(stage, q, c)];
#pragma unroll
        for (int e = 0; e < kN; ++e) {
          a[q][c * kN + e] = static_cast<double>(pack.at[e]);
          sums[q] += a[q][c * kN + e] * x[c * kN + e];
        }
      }
    }
    fetch(stage, first + kStages<T, kThreads> * kGroup);
    stage = stage + 1 < kStages<T, kThreads> ? stage + 1 : 0;

    double total = warp_sums(sums, lane);
    if constexpr (kWarps > 1) {
      if (lane % 4 == 0) shared[parity][warp][row] = total;
      __syncthreads();
      total = 0;
      for (int w = lane % 4; w < kWarps; w += 4) total += shared[parity][w][row];
      total += __shfl_xor_sync(kAll, total, 2);
      total += __shfl_xor_sync(kAll, total, 1);
      parity ^= 1;  // the next sums go elsewhere, so that one barrier is enough
    }
    double r = pass.b != nullptr ? b - total : total;
    if (mine >= end) r = 0;
    if (warp == 0 && lane % 4 == 0 && mine < end) {
      norm += r * r;
      if (pass.r != nullptr) pass.r[mine * pass.r_stride] = static_cast<T>(r);
    }
    if (pass.g != nullptr) {
#pragma unroll
      for (int q = 0; q < kGroup; ++q) {
        const double rq = __shfl_sync(kAll, r, 4 * q);
        if (first + q < end) {  // what is left of other rows may be infinite
#pragma unroll
          for (int c = 0; c < kColumns; ++c) g[c] += rq * a[q][c];
        }
      }
    }
  }

  if (pass.g != nullptr) {
#pragma unroll
    for (int c = 0; c < kPieces<T>; ++c)
#pragma unroll
      for (int e = 0; e < kN; ++e)
        if (e < valid[c])
          pass.g[blockIdx.x * pass.cols + static_cast<std::int64_t>(c * kThreads + thread) * kN + e] = g[c * kN + e];
  }
  if (warp == 0) {
#pragma unroll
    for (int distance = 16; distance > 2; distance /= 2) norm += __shfl_xor_sync(kAll, norm, distance);
    if (lane == 0) pass.norms[blockIdx.x] = norm;
  }
}

constexpr int kSumColumns = 4, kSumLanes = 64;

// out[j] = the sum over the parts of parts[part][j].
__global__ void __launch_bounds__(kSumColumns* kSumLanes)
    sum_kernel(const double* __restrict__ parts, std::int64_t count, std::int64_t size, double* out) {
  __shared__ double shared[kSumLanes][kSumColumns];
  const int column = static_cast<int>(threadIdx.x) % kSumColumns, lane = static_cast<int>(threadIdx.x) / kSumColumns;
  const std::int64_t j = blockIdx.x * static_cast<std::int64_t>(kSumColumns) + column;
  double sum = 0;
  if (j < size) {
#pragma unroll 8
    for (std::int64_t part = lane; part < count; part += kSumLanes) sum += parts[part * size + j];
  }
  shared[lane][column] = sum;
  __syncthreads();
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    if (lane < half) shared[lane][column] += shared[lane + half][column];
    __syncthreads();
  }
  if (lane == 0 && j < size) out[j] = shared[0][column];
}

void sum_over_parts(const Execution& exec, const double* parts, std::int64_t count, std::int64_t size, double* out) {
  if (size == 0) return;
  sum_kernel<<<grid_of(ceil_div(size, kSumColumns)), kSumColumns * kSumLanes, 0, stream(exec)>>>(parts, count, size,
                                                                                                 out);
  QUADRIC_CUDA_LAUNCHED();
}

constexpr int kMostThreads = 512;

// Blocks of threads for n rows: four rounds of what 132 multiprocessors hold, whatever the device is.
std::int64_t count_blocks(std::int64_t n, int threads) {
  constexpr std::int64_t kLeast = 64;
  return std::min(ceil_div(n, kLeast), std::int64_t{4} * 132 * (kMostThreads / threads));
}

template <class T, int kThreads>
void launch_pass(const Execution& exec, const Pass<T>& pass) {
  constexpr std::size_t kShared = kRing<T, kThreads>;
  static_assert(kShared <= 220 * 1024);
  const auto kernel = residual_kernel<T, kThreads>;
  allow_shared(kernel, kShared);
  kernel<<<grid_of(ceil_div(pass.rows, pass.part)), kThreads, kShared, stream(exec)>>>(pass);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
void launch_pass(const Execution& exec, const Pass<T>& pass, int threads) {
  switch (threads) {
    case 32:
      return launch_pass<T, 32>(exec, pass);
    case 64:
      return launch_pass<T, 64>(exec, pass);
    case 128:
      return launch_pass<T, 128>(exec, pass);
    case 256:
      return launch_pass<T, 256>(exec, pass);
    default:
      return launch_pass<T, kMostThreads>(exec, pass);
  }
}

constexpr std::int64_t kSlabBytes = std::int64_t{16} << 20;  // stays in the second-level cache until it is used again

template <class S, class T>
void vector_pass(const Execution& exec, const Source<S>& A, const MatrixView<const T>& X, const MatrixView<const T>* B,
                 const MatrixView<T>* R, double* G, double* norms) {
  const std::int64_t n = A.rows, d = A.cols;
  int threads = 32;
  while (kColumns * threads < d) threads *= 2;
  Scratch scratch(exec);
  // Rows that need no copy are taken all at once.
  const bool rows_ready = std::is_same_v<S, T> && (A.col_stride == 1 || d == 1);
  const auto run = [&](const auto& visit, std::int64_t slab, std::int64_t slabs) {
    const std::int64_t part = ceil_div(ceil_div(slab, count_blocks(slab, threads)), kGroup) * kGroup;
    const std::int64_t parts = ceil_div(slab, part);  // of each slab; the last has no more
    double* const all_norms = scratch.get<double>(slabs * parts);
    double* const all_g = G != nullptr ? scratch.get<double>(slabs * parts * d) : nullptr;
    std::int64_t done = 0;
    visit([&](std::int64_t first, std::int64_t count, const Rows<T>& rows) {
      Pass<T> pass{};
      pass.A = rows.data;
      pass.stride = rows.stride;
      pass.rows = count;
      pass.cols = d;
      pass.x = X.data;
      pass.x_stride = X.row_stride;
      if (B != nullptr) pass.b = B->data + first * B->row_stride, pass.b_stride = B->row_stride;
      if (R != nullptr) pass.r = R->data + first * R->row_stride, pass.r_stride = R->row_stride;
      pass.part = part;
      pass.norms = all_norms + done;
      pass.g = G != nullptr ? all_g + done * d : nullptr;
      pass.packs = aligned(rows.data, 16) && (count == 1 || rows.stride % kPack<T> == 0);
      launch_pass(exec, pass, threads);
      done += ceil_div(count, part);
    });
    sum_over_parts(exec, all_norms, done, 1, norms);
    if (G != nullptr) sum_over_parts(exec, all_g, done, d, G);
  };
  if (rows_ready) {
    if constexpr (std::is_same_v<S, T>)
      run([&](const auto& body) { body(std::int64_t{0}, n, Rows<T>{A.data, A.row_stride}); }, n, 1);
  } else {
    const Slabs<T, S> slabs(exec, scratch, A, kSlabBytes);
    run([&](const auto& body) { slabs.visit(body); }, slabs.rows(), ceil_div(n, slabs.rows()));
  }
}

// ---- several -------------------------------------------------------------------------------------------------------

constexpr std::int64_t kPiece = 256;  // rows whose squares are added up by one block
constexpr int kWide = 32, kHigh = 8;

// Y becomes B - Y, or stays without B; R = Y; squares[piece][c] = the sum of the squares of a piece of column c.
template <class T>
__global__ void __launch_bounds__(kWide* kHigh)
    subtract_kernel(T* Y, std::int64_t rows, std::int64_t k, MatrixView<const T> B, MatrixView<T> R, double* squares) {
  __shared__ double shared[kHigh][kWide];
  const int x = static_cast<int>(threadIdx.x) % kWide, y = static_cast<int>(threadIdx.x) / kWide;
  const std::int64_t begin = blockIdx.x * kPiece, end = begin + kPiece < rows ? begin + kPiece : rows;
  for (std::int64_t c0 = blockIdx.y * static_cast<std::int64_t>(kWide); c0 < k;
       c0 += gridDim.y * static_cast<std::int64_t>(kWide)) {
    const std::int64_t c = c0 + x;
    double sum = 0;
    if (c < k) {
      for (std::int64_t i = begin + y; i < end; i += kHigh) {
        T value = Y[i * k + c];
        if (B.data != nullptr) Y[i * k + c] = value = B.data[i * B.row_stride + c * B.col_stride] - value;
        if (R.data != nullptr) R.data[i * R.row_stride + c * R.col_stride] = value;
        sum += static_cast<double>(value) * static_cast<double>(value);
      }
    }
    shared[y][x] = sum;
    __syncthreads();
    if (y == 0 && c < k) {
#pragma unroll
      for (int h = 1; h < kHigh; ++h) sum += shared[h][x];
      squares[blockIdx.x * k + c] = sum;
    }
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(256) gather_kernel(MatrixView<const T> X, std::int64_t size, T* out) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * 256;
  for (std::int64_t t = blockIdx.x * std::int64_t{256} + threadIdx.x; t < size; t += step)
    out[t] = X.data[t / X.cols * X.row_stride + t % X.cols * X.col_stride];
}

template <class S, class T>
void matrix_pass(const Execution& exec, const Source<S>& A, const MatrixView<const T>& X, const MatrixView<const T>* B,
                 const MatrixView<T>* R, double* G, double* norms) {
  constexpr std::int64_t kChunk = 512;  // rows whose products are summed in T
  const std::int64_t n = A.rows, d = A.cols, k = X.cols;
  Scratch scratch(exec);
  const cublasHandle_t handle = blas(exec, scratch);
  T* const wide = scratch.get<T>(d * k);
  if (d > 0) {
    const auto grid = static_cast<unsigned>(std::min<std::int64_t>(ceil_div(d * k, 256), 1 << 16));
    gather_kernel<T><<<grid, 256, 0, stream(exec)>>>(X, d * k, wide);
    QUADRIC_CUDA_LAUNCHED();
  }
  const Slabs<T, S> slabs(exec, scratch, A, kSlabBytes);
  T* const Y = scratch.get<T>(slabs.rows() * k);
  T* const products = G != nullptr ? scratch.get<T>(ceil_div(slabs.rows(), kChunk) * d * k) : nullptr;
  double* const squares = scratch.get<double>((ceil_div(n, kPiece) + ceil_div(n, slabs.rows())) * k);
  std::int64_t pieces = 0;
  slabs.visit([&](std::int64_t first, std::int64_t count, const Rows<T>& rows) {
    // Contiguous rows are columns to BLAS: Y^T = X^T A^T, and later G^T = Y^T A.
    if (d > 0)
      linalg::multiply<T>(handle, k, count, d, T(1), {CUBLAS_OP_N, wide, k}, {CUBLAS_OP_N, rows.data, rows.stride},
                          T(0), Y, k);
    else
      QUADRIC_CUDA(cudaMemsetAsync(Y, 0, static_cast<std::size_t>(count * k) * sizeof(T), stream(exec)));
    const auto part = [&](const auto* M) {
      auto view = *M;
      view.data += first * view.row_stride;
      return view;
    };
    const MatrixView<const T> b = B != nullptr ? part(B) : MatrixView<const T>();
    const MatrixView<T> r = R != nullptr ? part(R) : MatrixView<T>();
    const dim3 grid(grid_of(ceil_div(count, kPiece)),
                    static_cast<unsigned>(std::min<std::int64_t>(ceil_div(k, kWide), 65535)));
    subtract_kernel<T><<<grid, kWide * kHigh, 0, stream(exec)>>>(Y, count, k, b, r, squares + pieces * k);
    QUADRIC_CUDA_LAUNCHED();
    pieces += ceil_div(count, kPiece);
    if (G == nullptr) return;
    const std::int64_t chunks = count / kChunk, rest = count % kChunk, size = d * k;
    const auto multiply = [&](std::int64_t from, std::int64_t depth, std::int64_t batch, T* to) {
      linalg::multiply<T>(handle, k, d, depth, T(1), {CUBLAS_OP_N, Y + from * k, k, kChunk * k},
                          {CUBLAS_OP_T, rows.data + from * rows.stride, rows.stride, kChunk * rows.stride}, T(0), to, k,
                          size, batch);
    };
    if (chunks > 0) multiply(0, kChunk, chunks, products);
    if (rest > 0) multiply(chunks * kChunk, rest, 1, products + chunks * size);
    linalg::add_parts<T>(exec, products, chunks + (rest > 0 ? 1 : 0), size, G);
  });
  sum_over_parts(exec, squares, pieces, k, norms);
}

}  // namespace

template <class T>
void residual_gradient(const Execution& exec, const StoredMatrix& A, MatrixView<const T> X,
                       const MatrixView<const T>* B, const MatrixView<T>* R, double* G, double* norms) {
  const std::int64_t n = A.rows, d = A.cols, k = X.cols;
  QUADRIC_REQUIRE(X.rows == d, "x must have a row for each column of A");
  QUADRIC_REQUIRE(B == nullptr || (B->rows == n && B->cols == k), "b must have the rows of A and the columns of x");
  QUADRIC_REQUIRE(R == nullptr || (R->rows == n && R->cols == k), "r must have the rows of A and the columns of x");
  if (k == 0) return;
  const bool vector = k == 1 && d <= kColumns * kMostThreads;
  const auto clear = [&](double* sums, std::int64_t size) {
    QUADRIC_CUDA(cudaMemsetAsync(sums, 0, static_cast<std::size_t>(size) * sizeof(double), stream(exec)));
  };
  if (n == 0) clear(norms, k);
  if (G != nullptr && d > 0 && (n == 0 || !vector)) clear(G, d * k);
  if (n == 0) return;
  with_source<T>(A, [&](const auto& source) {
    if (vector)
      vector_pass(exec, source, X, B, R, d > 0 ? G : nullptr, norms);
    else
      matrix_pass(exec, source, X, B, R, d > 0 ? G : nullptr, norms);
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                            \
  template QUADRIC_API void residual_gradient(const Execution&, const StoredMatrix&, MatrixView<const T>, \
                                              const MatrixView<const T>*, const MatrixView<T>*, double*, double*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::sketch
