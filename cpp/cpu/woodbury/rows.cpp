#include <algorithm>
#include <limits>
#include <vector>

#include "buffer.hpp"
#include "quadric/blas.hpp"
#include "quadric/woodbury.hpp"
#include "require.hpp"
#include "threads.hpp"
#include "woodbury/row_kernels.hpp"
#include "woodbury/slabs.hpp"

namespace quadric::woodbury {
namespace {

using detail::row_kernels;

template <class T>
constexpr bool stores(Storage storage) {
  return (storage == Storage::float64) == (sizeof(T) == 8);
}

template <class T>
bool is_stored_as(Storage storage) {
  return storage == (sizeof(T) == 8 ? Storage::float64 : Storage::float32);
}

void check(const StoredRows& G, std::int64_t block_size) {
  QUADRIC_REQUIRE(block_size >= 1, "block_size must be at least 1");
  QUADRIC_REQUIRE(G.rows <= std::numeric_limits<int>::max() && G.row_stride <= std::numeric_limits<int>::max(),
                  "G is too large for BLAS with 32-bit integers");
}

// A slab of G as T with rows `stride` apart: G itself where it is stored so, else a copy.
template <class T>
struct Dense {
  const T* data;
  std::int64_t stride;

  Dense(const StoredRows& G, std::int64_t begin, std::int64_t count, T* copy) {
    if (is_stored_as<T>(G.storage)) {
      data = reinterpret_cast<const T*>(element(G, 0, begin));
      stride = std::max(G.row_stride, count);
      return;
    }
    for (std::int64_t r = 0; r < G.rows; ++r)
      row_kernels<T>().widen(element(G, r, begin), G.storage, count, copy + r * count);
    data = copy;
    stride = count;
  }

  // Size of the copy of a slab.
  static std::int64_t size(const StoredRows& G, std::int64_t width) {
    return is_stored_as<T>(G.storage) ? 0 : G.rows * width;
  }
};

template <class T>
StoredRows stored(const T* data, std::int64_t rows, std::int64_t cols, std::int64_t row_stride) {
  StoredRows result;
  result.data = data;
  result.storage = sizeof(T) == 8 ? Storage::float64 : Storage::float32;
  result.rows = rows;
  result.cols = cols;
  result.row_stride = row_stride;
  return result;
}

// Whether a pass over this much of G is worth a second thread.
int pass_threads(const Execution& exec, const StoredRows& G, std::int64_t tasks) {
  return std::min(thread_count(exec, tasks), thread_count(exec, G.rows * G.cols >> 17));
}

template <class T>
void gram_in(const Execution& exec, const StoredRows& G, std::int64_t block_size, double* K) {
  const std::int64_t m = G.rows;
  constexpr std::int64_t kMostParts = 16;  // each has a sum of its own
  constexpr std::int64_t kShort = 1024;
  // The sum of a slab in T is added to the sum in float64, which must cost little beside it.
  const Slabs slabs(G.cols, block_size, is_stored_as<T>(G.storage) ? 8192 : 2048, kMostParts);
  const std::int64_t copy = Dense<T>::size(G, slabs.width), own = copy + m * m;
  const int n_threads = thread_count(exec, slabs.tasks());
  const Buffer<T> memory(n_threads * own);
  std::vector<double> sums(static_cast<std::size_t>(slabs.tasks() * m * m), 0.0);
  parallel_for(n_threads, slabs.tasks(), [&](std::int64_t task, int worker) {
    T* const product = memory.data() + worker * own + copy;
    double* const sum = sums.data() + task * m * m;
    slabs.for_share(task / slabs.parts, task % slabs.parts, [&](std::int64_t begin, std::int64_t count) {
      const Dense<T> g(G, begin, count, memory.data() + worker * own);
      // Contiguous rows are columns to BLAS, and its upper triangle is our lower one. SYRK likes short rows.
      for (std::int64_t from = 0; from < count; from += kShort) {
        char uplo = 'U', trans = 'T';
        int n = static_cast<int>(m), k = static_cast<int>(std::min(kShort, count - from));
        int ld = static_cast<int>(g.stride);
        T one = 1, beta = from > 0 ? T(1) : T(0);
        blas_routines<T>().syrk(&uplo, &trans, &n, &k, &one, const_cast<T*>(g.data + from), &ld, &beta, product, &n);
      }
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j <= i; ++j) sum[i * m + j] += static_cast<double>(product[i * m + j]);
    });
  });
  parallel_for(copy_thread_count(exec, slabs.tasks() * m * m), slabs.blocks * m, [&](std::int64_t task, int) {
    const std::int64_t block = task / m, i = task % m;
    for (std::int64_t j = 0; j <= i; ++j) {
      double total = 0;
      for (std::int64_t part = 0; part < slabs.parts; ++part)
        total += sums[((block * slabs.parts + part) * m + i) * m + j];
      K[(block * m + i) * m + j] = total;
      K[(block * m + j) * m + i] = total;
    }
  });
}

}  // namespace

void gram(const Execution& exec, const StoredRows& G, std::int64_t block_size, bool exact, double* K) {
  check(G, block_size);
  if (exact || G.storage == Storage::float64)
    gram_in<double>(exec, G, block_size, K);
  else
    gram_in<float>(exec, G, block_size, K);
}

template <class T>
void dots(const Execution& exec, const StoredRows& G, MatrixView<const T> X, std::int64_t block_size, double* out) {
  check(G, block_size);
  QUADRIC_REQUIRE(stores<T>(G.storage), "X must be float64 if and only if G is");
  QUADRIC_REQUIRE(X.cols == G.cols && (X.col_stride == 1 || X.rows == 0 || X.cols <= 1),
                  "X must have d contiguous columns");
  const std::int64_t m = G.rows, k = X.rows;
  if (m * k == 0) return;
  const bool many = k > 1;
  const Slabs slabs(G.cols, block_size, many ? 1024 : 8192, 256);
  const StoredRows vectors = stored(X.data, k, G.cols, X.row_stride);
  const std::int64_t copy = many ? Dense<double>::size(G, slabs.width) : 0;
  const std::int64_t own = many ? copy + Dense<double>::size(vectors, slabs.width) : 0;
  const int n_threads = pass_threads(exec, G, slabs.tasks());
  const Buffer<double> memory(n_threads * own);
  std::vector<double> sums(static_cast<std::size_t>(slabs.tasks() * m * k), 0.0);
  parallel_for(n_threads, slabs.tasks(), [&](std::int64_t task, int worker) {
    double* const sum = sums.data() + task * m * k;
    slabs.for_share(task / slabs.parts, task % slabs.parts, [&](std::int64_t begin, std::int64_t count) {
      if (!many) {
        row_kernels<T>().exact_dots(columns(G, begin, count), X.data + begin, sum);
        return;
      }
      // sum is m x k by rows: k x m to BLAS.
      const Dense<double> g(G, begin, count, memory.data() + worker * own);
      const Dense<double> x(vectors, begin, count, memory.data() + worker * own + copy);
      char trans = 'T', no = 'N';
      int k_ = static_cast<int>(k), m_ = static_cast<int>(m), depth = static_cast<int>(count);
      int ldx = static_cast<int>(x.stride), ldg = static_cast<int>(g.stride);
      double one = 1;
      blas_routines<double>().gemm(&trans, &no, &k_, &m_, &depth, &one, const_cast<double*>(x.data), &ldx,
                                   const_cast<double*>(g.data), &ldg, &one, sum, &k_);
    });
  });
  for (std::int64_t block = 0; block < slabs.blocks; ++block) {
    for (std::int64_t i = 0; i < m * k; ++i) {
      double total = 0;
      for (std::int64_t part = 0; part < slabs.parts; ++part) total += sums[(block * slabs.parts + part) * m * k + i];
      out[block * m * k + i] = total;
    }
  }
}

template <class T>
void combine(const Execution& exec, const StoredRows& G, const double* C, const T* X, double scale,
             std::int64_t block_size, MatrixView<T> out) {
  check(G, block_size);
  QUADRIC_REQUIRE(stores<T>(G.storage), "out must be float64 if and only if G is");
  QUADRIC_REQUIRE(out.cols == G.cols && (out.row_stride == out.cols || out.rows == 0),
                  "out must be contiguous with d columns");
  const std::int64_t m = G.rows, k = out.rows, d = G.cols;
  if (k == 0) return;
  const bool many = k > 1;
  const Slabs slabs(d, block_size, many ? 1024 : 8192, std::numeric_limits<std::int64_t>::max());
  const std::int64_t copy = many ? Dense<double>::size(G, slabs.width) : 0;
  const std::int64_t own = many ? copy + k * slabs.width : 0;
  const int n_threads = pass_threads(exec, G, slabs.tasks());
  const Buffer<double> memory(n_threads * own);
  parallel_for(n_threads, slabs.tasks(), [&](std::int64_t task, int worker) {
    const std::int64_t block = task / slabs.parts;
    const double* const c = C + block * k * m;
    slabs.for_share(block, task % slabs.parts, [&](std::int64_t begin, std::int64_t count) {
      if (!many) {
        row_kernels<T>().combine(columns(G, begin, count), c, X == nullptr ? nullptr : X + begin, scale,
                                 out.data + begin);
        return;
      }
      double* const y = memory.data() + worker * own + copy;
      for (std::int64_t r = 0; r < k; ++r)
        for (std::int64_t j = 0; j < count; ++j)
          y[r * count + j] = X == nullptr ? 0.0 : scale * static_cast<double>(X[r * d + begin + j]);
      if (m > 0) {
        const Dense<double> g(G, begin, count, memory.data() + worker * own);
        char no = 'N';
        int n_ = static_cast<int>(count), k_ = static_cast<int>(k), m_ = static_cast<int>(m);
        int ldg = static_cast<int>(g.stride);
        double one = 1;
        blas_routines<double>().gemm(&no, &no, &n_, &k_, &m_, &one, const_cast<double*>(g.data), &ldg,
                                     const_cast<double*>(c), &m_, &one, y, &n_);
      }
      for (std::int64_t r = 0; r < k; ++r)
        for (std::int64_t j = 0; j < count; ++j) out.data[r * d + begin + j] = static_cast<T>(y[r * count + j]);
    });
  });
}

void column_norms(const Execution& exec, const StoredRows& G, const StoredRows& E, std::int64_t block_size,
                  const double* L, double* out) {
  check(G, block_size);
  QUADRIC_REQUIRE(E.rows == 0 || E.cols == G.cols, "E must have the columns of G");
  const std::int64_t m = G.rows + E.rows;
  const Slabs slabs(G.cols, block_size, 256, std::numeric_limits<std::int64_t>::max());
  const int n_threads = thread_count(exec, slabs.tasks());
  const Buffer<double> memory(n_threads * m * slabs.width);
  const auto& kernels = row_kernels<double>();
  parallel_for(n_threads, slabs.tasks(), [&](std::int64_t task, int worker) {
    const std::int64_t block = task / slabs.parts;
    double* const x = memory.data() + worker * m * slabs.width;
    slabs.for_share(block, task % slabs.parts, [&](std::int64_t begin, std::int64_t count) {
      for (std::int64_t r = 0; r < G.rows; ++r) kernels.widen(element(G, r, begin), G.storage, count, x + r * count);
      for (std::int64_t r = 0; r < E.rows; ++r)
        kernels.widen(element(E, r, begin), E.storage, count, x + (G.rows + r) * count);
      // x = L^-1 x; to BLAS x is count x m and L an upper triangle, so it is x = x L^-1.
      char right = 'R', upper = 'U', no = 'N';
      int rows = static_cast<int>(count), cols = static_cast<int>(m);
      double one = 1;
      blas_routines<double>().trsm(&right, &upper, &no, &no, &rows, &cols, &one, const_cast<double*>(L + block * m * m),
                                   &cols, x, &rows);
      std::fill_n(out + begin, count, 0.0);
      for (std::int64_t r = 0; r < m; ++r)
        for (std::int64_t j = 0; j < count; ++j) out[begin + j] += x[r * count + j] * x[r * count + j];
    });
  });
}

template <class T>
std::int64_t store(const Execution& exec, const T* g, Storage storage, void* row, T* rounded, std::int64_t d) {
  QUADRIC_REQUIRE(stores<T>(storage), "g must be float64 if and only if the row is");
  // The largest number that does not round to infinity: for 16 bits, just below the largest finite one plus half a
  // unit.
  const double limit = storage == Storage::float16    ? 65519.996
                       : storage == Storage::bfloat16 ? 3.3961773e38
                                                      : static_cast<double>(std::numeric_limits<T>::max());
  constexpr std::int64_t kPiece = 65536;
  const std::int64_t pieces = ceil_div(d, kPiece);
  const int n_threads = std::min(thread_count(exec, pieces), copy_thread_count(exec, 4 * d));
  const auto& kernels = row_kernels<T>();
  std::vector<std::int64_t> bad(static_cast<std::size_t>(pieces));
  parallel_for(n_threads, pieces, [&](std::int64_t p, int) {
    bad[p] = kernels.first_beyond(g + p * kPiece, std::min(kPiece, d - p * kPiece), static_cast<T>(limit));
  });
  for (std::int64_t p = 0; p < pieces; ++p)
    if (bad[p] >= 0) return p * kPiece + bad[p];
  parallel_for(n_threads, pieces, [&](std::int64_t p, int) {
    const std::int64_t begin = p * kPiece, count = std::min(kPiece, d - begin);
    char* const to = static_cast<char*>(row) + begin * element_size(storage);
    kernels.narrow(g + begin, storage, count, to);
    if (rounded != nullptr) kernels.widen(to, storage, count, rounded + begin);
  });
  return -1;
}

#define QUADRIC_INSTANTIATE(T)                                                                                     \
  template QUADRIC_API void dots(const Execution&, const StoredRows&, MatrixView<const T>, std::int64_t, double*); \
  template QUADRIC_API void combine(const Execution&, const StoredRows&, const double*, const T*, double,          \
                                    std::int64_t, MatrixView<T>);                                                  \
  template QUADRIC_API std::int64_t store(const Execution&, const T*, Storage, void*, T*, std::int64_t);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::woodbury
