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

constexpr std::int64_t kEntries = 1 << 19;  // of S that are known at a time, for sparse A

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

}  // namespace

template <class T>
void sparse_sign(const Execution& exec, MatrixView<const T> A, Place place, std::int64_t nnz, MatrixView<T> out) {
  const std::int64_t n = A.rows, m = out.rows;
  check(m, nnz, place);
  QUADRIC_REQUIRE(out.cols == A.cols, "out must have the columns of A");
  if (A.empty() || m == 0) return;
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
