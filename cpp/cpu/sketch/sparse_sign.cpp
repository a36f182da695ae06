#include <algorithm>
#include <limits>
#include <vector>

#include "quadric/sketch.hpp"
#include "require.hpp"
#include "sketch/tiles.hpp"

namespace quadric::sketch {
namespace {

using namespace detail;

// Rows of A that one tile of sums takes before the next tile: it stays in the second-level cache meanwhile, unless it
// is of a wide sketch, where narrower tiles would cost more; and what memory reads beside its columns in the third.
constexpr std::int64_t kPanel = 1 << 13;
constexpr std::int64_t kPiece = 256;     // whose places are drawn together
constexpr std::int64_t kSums = 1 << 22;  // bytes of a tile

// Rows of A that are sorted together: a few for each row of S A, and no more, since memory is slower the farther apart
// the rows lie that are read one after the other.
constexpr std::int64_t kTogether = 8, kFewest = 1 << 10;

constexpr std::int64_t kEntries = 1 << 19;  // of S that are known at a time, for sorted rows and sparse A

void check(std::int64_t m, std::int64_t nnz, const Place& place) {
  QUADRIC_REQUIRE(nnz >= 1, "nnz must be at least 1");
  QUADRIC_REQUIRE(m % nnz == 0, "the rows of S must be a multiple of nnz");
  QUADRIC_REQUIRE(m <= std::numeric_limits<std::int32_t>::max() / 2, "S must have less than 2^30 rows");
  QUADRIC_REQUIRE(place.first >= 0, "first must not be negative");
}

// Where rows [begin, begin + rows) of A go.
void find_places(const Place& place, std::int64_t begin, std::int64_t rows, std::int64_t nnz, std::int64_t m,
                 std::int32_t* out) {
  draw_kernels().places(place.seed, static_cast<std::uint64_t>(place.first + begin) * static_cast<std::uint64_t>(nnz),
                        rows, nnz, m / nnz, out);
}

// Rows [begin, end) of A into a tile of sums.
template <class T>
void add_tile(const MatrixView<const T>& A, const Tiles<T>& tiles, std::int64_t t, std::int64_t begin, std::int64_t end,
              std::int64_t nnz, std::int64_t block, std::int32_t* places, T* copies, T* sums) {
  const auto& kernels = sketch_kernels<T>();
  const std::int64_t lines = tiles.lines(t);
  if (tiles.ready(A, t)) {
    kernels.scatter(A.data + begin * A.row_stride + tiles.first(t), A.row_stride, end - begin, places, nnz, block,
                    lines, sums);
    return;
  }
  const std::int64_t width = tiles.packed(t);
  copy_rows(A, begin, end - begin, tiles.first(t), tiles.columns(t), width, copies);
  kernels.scatter(copies, width, end - begin, places, nnz, block, lines, sums);
}

// The numbers of the rows that go to one row of S A after those that go to the one before, each in order.
void sort_places(const std::int32_t* places, std::int64_t rows, std::int64_t m, std::int32_t* order,
                 std::int32_t* starts) {
  // The rows for r begin at starts[r + 1] until they are entered, and then those for r + 1.
  std::fill_n(starts, m + 2, 0);
  for (std::int64_t i = 0; i < rows; ++i) ++starts[(places[i] >> 1) + 2];
  for (std::int64_t r = 2; r <= m; ++r) starts[r] += starts[r - 1];
  for (std::int64_t i = 0; i < rows; ++i)
    order[starts[(places[i] >> 1) + 1]++] = static_cast<std::int32_t>(2 * i | (places[i] & 1));
}

// One entry in each column of S and long rows of A: those that go to one row of S A are read together, so that its sums
// are loaded and stored once for all of them, while A still comes in whole rows.
template <class T>
void add_sorted(const Execution& exec, const MatrixView<const T>& A, const Place& place, const MatrixView<T>& out) {
  const std::int64_t n = A.rows, m = out.rows, panel = std::min(n, std::clamp(kTogether * m, kFewest, kEntries));
  const std::int64_t most = std::min(ceil_div(n, panel), kEntries / panel);
  const int n_threads = std::min(pass_threads(exec, n * A.cols), thread_count(exec, m));
  const Buffer<std::int32_t> orders(most * panel), starts(most * (m + 2)), places(n_threads * panel);
  for (std::int64_t begin = 0; begin < n; begin += most * panel) {
    const std::int64_t count = std::min(most, ceil_div(n - begin, panel));
    const auto first = [&](std::int64_t p) { return begin + p * panel; };
    parallel_for(n_threads, count, [&](std::int64_t p, int worker) {
      const std::int64_t rows = std::min(panel, n - first(p));
      std::int32_t* const own = places.data() + worker * panel;
      find_places(place, first(p), rows, 1, m, own);
      sort_places(own, rows, m, orders.data() + p * panel, starts.data() + p * (m + 2));
    });
    parallel_for(n_threads, n_threads, [&](std::int64_t share, int) {
      const std::int64_t low = m * share / n_threads, high = m * (share + 1) / n_threads;
      for (std::int64_t p = 0; p < count; ++p)
        sketch_kernels<T>().gather(A.data + first(p) * A.row_stride, A.row_stride, orders.data() + p * panel,
                                   starts.data() + p * (m + 2) + low, high - low, A.cols,
                                   out.data + low * out.row_stride, out.row_stride);
    });
  }
}

}  // namespace

template <class T>
void sparse_sign(const Execution& exec, MatrixView<const T> A, Place place, std::int64_t nnz, MatrixView<T> out) {
  const std::int64_t n = A.rows, m = out.rows;
  check(m, nnz, place);
  QUADRIC_REQUIRE(out.cols == A.cols, "out must have the columns of A");
  if (A.empty() || m == 0) return;
  // Rows of a single tile come whole anyway.
  if (nnz == 1 && A.col_stride == 1 && A.cols > kMostLines * kLineEntries<T>) return add_sorted(exec, A, place, out);
  const int n_threads = column_threads<T>(exec, A.cols, n * A.cols * nnz);
  const std::int64_t block = m / nnz;
  const Tiles<T> tiles(A.cols, most_lines(m, kSums), n_threads);
  const std::int64_t size = m * tiles.width, piece = std::min(n, kPiece), panel = std::min(n, kPanel);
  const Buffer<T> sums(tiles.count * size), copies(n_threads * piece * tiles.width);
  const Buffer<std::int32_t> places(n_threads * panel * nnz);
  const MatrixView<const T> before = out;
  parallel_for(n_threads, n_threads, [&](std::int64_t share, int) {
    std::int32_t* const own = places.data() + share * panel * nnz;
    T* const copy = copies.data() + share * piece * tiles.width;
    tiles.for_share(share, n_threads, [&](std::int64_t t) {
      copy_rows(before, 0, m, tiles.first(t), tiles.columns(t), tiles.packed(t), sums.data() + t * size);
    });
    for (std::int64_t begin = 0; begin < n; begin += panel) {
      const std::int64_t end = std::min(n, begin + panel);
      for (std::int64_t i = begin; i < end; i += piece)
        find_places(place, i, std::min(piece, end - i), nnz, m, own + (i - begin) * nnz);
      tiles.for_share(share, n_threads, [&](std::int64_t t) {
        for (std::int64_t i = begin; i < end; i += piece)
          add_tile(A, tiles, t, i, std::min(end, i + piece), nnz, block, own + (i - begin) * nnz, copy,
                   sums.data() + t * size);
      });
    }
    tiles.for_share(share, n_threads, [&](std::int64_t t) {
      const T* const from = sums.data() + t * size;
      for (std::int64_t i = 0; i < m; ++i)
        std::copy_n(from + i * tiles.packed(t), tiles.columns(t), &out(i, tiles.first(t)));
    });
  });
}

template <class T>
void sparse_sign_rows(const Execution& exec, MatrixView<const T> B, Place place, std::int64_t nnz, MatrixView<T> out) {
  const std::int64_t n = out.rows, m = B.rows, d = B.cols;
  check(m, nnz, place);
  QUADRIC_REQUIRE(out.cols == d, "out must have the columns of B");
  if (out.empty()) return;
  QUADRIC_REQUIRE(m > 0, "B must have rows");
  const Buffer<T> rows(m * d);
  copy_rows(B, 0, m, 0, d, d, rows.data());
  const std::int64_t piece = std::clamp<std::int64_t>((1 << 16) / (d * nnz), 16, 1 << 12), pieces = ceil_div(n, piece);
  const int n_threads = std::min(thread_count(exec, pieces), pass_threads(exec, n * d * nnz));
  const Buffer<std::int32_t> places(n_threads * piece * nnz);
  parallel_for(n_threads, pieces, [&](std::int64_t p, int worker) {
    const std::int64_t begin = p * piece, count = std::min(piece, n - begin);
    std::int32_t* const own = places.data() + worker * piece * nnz;
    find_places(place, begin, count, nnz, m, own);
    sketch_kernels<T>().adjoint(rows.data(), d, own, nnz, m / nnz, count, out.data + begin * d);
  });
}

template <class T, class Index>
void sparse_sign_csr(const Execution& exec, const SparseRows<T, Index>& A, Place place, std::int64_t nnz,
                     MatrixView<T> out) {
  const std::int64_t n = A.rows, m = out.rows, d = out.cols;
  check(m, nnz, place);
  if (n == 0 || out.empty()) return;
  const std::int64_t most = std::min(n, std::max<std::int64_t>(1, kEntries / nnz));
  std::vector<std::int32_t> places(static_cast<std::size_t>(most * nnz));
  // Each of the nnz blocks of rows of S belongs to one thread.
  const int n_threads =
      std::min(thread_count(exec, nnz), thread_count(exec, static_cast<std::int64_t>(A.starts[n]) * nnz >> 15));
  for (std::int64_t begin = 0; begin < n; begin += most) {
    const std::int64_t end = std::min(n, begin + most);
    find_places(place, begin, end - begin, nnz, m, places.data());
    parallel_for(n_threads, n_threads, [&](std::int64_t share, int) {
      for (std::int64_t i = begin; i < end; ++i)
        for (std::int64_t k = nnz * share / n_threads; k < nnz * (share + 1) / n_threads; ++k) {
          const std::int32_t where = places[static_cast<std::size_t>(k * (end - begin) + i - begin)];
          T* const to = out.data + (k * (m / nnz) + (where >> 1)) * d;
          const T sign = (where & 1) != 0 ? T(-1) : T(1);
          for (Index e = A.starts[i]; e < A.starts[i + 1]; ++e) to[A.columns[e]] += sign * A.values[e];
        }
    });
  }
}

#define QUADRIC_INSTANTIATE(T)                                                                                         \
  template QUADRIC_API void sparse_sign(const Execution&, MatrixView<const T>, Place, std::int64_t, MatrixView<T>);    \
  template QUADRIC_API void sparse_sign_rows(const Execution&, MatrixView<const T>, Place, std::int64_t,               \
                                             MatrixView<T>);                                                           \
  template QUADRIC_API void sparse_sign_csr(const Execution&, const SparseRows<T, std::int32_t>&, Place, std::int64_t, \
                                            MatrixView<T>);                                                            \
  template QUADRIC_API void sparse_sign_csr(const Execution&, const SparseRows<T, std::int64_t>&, Place, std::int64_t, \
                                            MatrixView<T>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::sketch
