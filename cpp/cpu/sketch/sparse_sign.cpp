#include <algorithm>
#include <limits>
#include <vector>

#include "quadric/sketch.hpp"
#include "require.hpp"
#include "sketch/tiles.hpp"

namespace quadric::sketch {
namespace {

using namespace detail;

// A block of the rows of S that are added to stays in the first-level cache where it can, and as many rows of A as are
// added to one block after the other, and those of the next tile, in the second.
constexpr std::int64_t kFirstCache = 40 << 10, kSecondCache = 1 << 19;  // bytes

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

}  // namespace

template <class T>
void sparse_sign(const Execution& exec, MatrixView<const T> A, Place place, std::int64_t nnz, MatrixView<T> out) {
  const std::int64_t n = A.rows, m = out.rows;
  check(m, nnz, place);
  QUADRIC_REQUIRE(out.cols == A.cols, "out must have the columns of A");
  if (A.empty() || m == 0) return;
  const int n_threads =
      std::min(pass_threads(exec, n * A.cols * nnz), thread_count(exec, ceil_div(A.cols, kLineEntries<T>)));
  const std::int64_t block = m / nnz;
  const Tiles<T> tiles(block, A.cols, n_threads, block * kLine <= kFirstCache ? kFirstCache : kSecondCache);
  const std::int64_t most = std::clamp<std::int64_t>(kSecondCache / (tiles.lines * kLine), 1, n);
  const std::int64_t size = m * tiles.width;
  const Buffer<T> sums(tiles.count * size), copies(n_threads * most * tiles.width);
  const Buffer<std::int32_t> places(n_threads * most * nnz);
  const auto& kernels = sketch_kernels<T>();
  const MatrixView<const T> before = out;
  parallel_for(n_threads, n_threads, [&](std::int64_t share, int) {
    std::int32_t* const own = places.data() + share * most * nnz;
    T* const copy = copies.data() + share * most * tiles.width;
    for_share(tiles, share, n_threads, [&](std::int64_t t) {
      copy_rows(before, 0, m, t * tiles.width, tiles.columns(t), tiles.width, sums.data() + t * size);
    });
    for (std::int64_t begin = 0; begin < n; begin += most) {
      const std::int64_t rows = std::min(most, n - begin);
      find_places(place, begin, rows, nnz, m, own);
      for_share(tiles, share, n_threads, [&](std::int64_t t) {
        // Packed always: rows that are powers of two apart would share a few places of the caches.
        if (A.col_stride == 1 && tiles.columns(t) == tiles.width)
          kernels.pack(A.data + begin * A.row_stride + t * tiles.width, A.row_stride, rows, tiles.lines, copy);
        else
          copy_rows(A, begin, rows, t * tiles.width, tiles.columns(t), tiles.width, copy);
        for (std::int64_t k = 0; k < nnz; ++k)
          kernels.scatter(copy, rows, own + k * rows, tiles.lines, sums.data() + t * size + k * block * tiles.width);
      });
    }
  });
  for (std::int64_t t = 0; t < tiles.count; ++t)
    for (std::int64_t i = 0; i < m; ++i)
      std::copy_n(sums.data() + t * size + i * tiles.width, tiles.columns(t), &out(i, t * tiles.width));
}

template <class T>
void sparse_sign_rows(const Execution& exec, MatrixView<const T> B, Place place, std::int64_t nnz,
                      MatrixView<T> out) {
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
    sketch_kernels<T>().gather(rows.data(), d, own, nnz, m / nnz, count, out.data + begin * d);
  });
}

template <class T, class Index>
void sparse_sign_csr(const Execution& exec, const SparseRows<T, Index>& A, Place place, std::int64_t nnz,
                     MatrixView<T> out) {
  const std::int64_t n = A.rows, m = out.rows, d = out.cols;
  check(m, nnz, place);
  if (n == 0 || out.empty()) return;
  const std::int64_t most = std::min(n, std::max<std::int64_t>(1, kSecondCache / nnz));
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

#define QUADRIC_INSTANTIATE(T)                                                                                  \
  template QUADRIC_API void sparse_sign(const Execution&, MatrixView<const T>, Place, std::int64_t, MatrixView<T>); \
  template QUADRIC_API void sparse_sign_rows(const Execution&, MatrixView<const T>, Place, std::int64_t,        \
                                             MatrixView<T>);                                                    \
  template QUADRIC_API void sparse_sign_csr(const Execution&, const SparseRows<T, std::int32_t>&, Place,        \
                                            std::int64_t, MatrixView<T>);                                       \
  template QUADRIC_API void sparse_sign_csr(const Execution&, const SparseRows<T, std::int64_t>&, Place,        \
                                            std::int64_t, MatrixView<T>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::sketch
