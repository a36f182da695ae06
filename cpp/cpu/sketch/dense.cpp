#include <algorithm>

#include "quadric/blas.hpp"
#include "quadric/sketch.hpp"
#include "require.hpp"
#include "sketch/slabs.hpp"

namespace quadric::sketch {
namespace {

using namespace detail;

// Rows of S that are drawn together.
std::int64_t granule(Entries entries) { return entries == Entries::gaussian ? 4 : 128; }

// Rows [begin, end) granules of S, columns [first, first + columns).
template <class T>
void draw(Entries entries, std::uint64_t seed, std::int64_t m, std::int64_t begin, std::int64_t end, std::int64_t first,
          std::int64_t columns, std::int64_t stride, T* out) {
  const auto blocks = static_cast<std::uint64_t>(ceil_div(m, granule(entries)));
  const auto& kernels = sketch_kernels<T>();
  const auto kernel = entries == Entries::gaussian ? kernels.gaussian : kernels.rademacher;
  kernel(seed, blocks, begin, end, static_cast<std::uint64_t>(first), columns, stride, out);
}

}  // namespace

template <class T>
void dense(const Execution& exec, MatrixView<const T> A, Place place, Entries entries, MatrixView<T> out) {
  constexpr std::int64_t kRows = 128, kPanel = 16 * kDenseBlock;
  const std::int64_t n = A.rows, m = out.rows, d = A.cols;
  QUADRIC_REQUIRE(place.first >= 0 && place.first % kDenseBlock == 0, "first must be a multiple of 256");
  QUADRIC_REQUIRE(out.cols == d, "out must have the columns of A");
  if (A.empty() || m == 0) return;
  // BLAS gets contiguous rows always, so that the layout of A changes no bit.
  const bool ready = by_rows(A);
  const std::int64_t tasks = ceil_div(m, kRows), unit = granule(entries);
  const int n_threads = std::min(thread_count(exec, tasks), pass_threads(exec, m * n * d));
  const Buffer<T> spaces(n_threads * kRows * kDenseBlock), copies(ready ? 1 : std::min(kPanel, n) * d);
  for (std::int64_t panel = 0; panel < n; panel += kPanel) {
    const std::int64_t end = std::min(n, panel + kPanel);
    if (!ready) copy_rows(A, panel, end - panel, 0, d, d, copies.data());
    parallel_for(n_threads, tasks, [&](std::int64_t task, int worker) {
      T* const S = spaces.data() + worker * kRows * kDenseBlock;
      const std::int64_t top = task * kRows, rows = std::min(kRows, m - top);
      for (std::int64_t begin = panel; begin < end; begin += kDenseBlock) {
        const std::int64_t count = std::min(kDenseBlock, end - begin);
        draw(entries, place.seed, m, top / unit, ceil_div(top + rows, unit), place.first + begin, count, kDenseBlock,
             S);
        // Contiguous rows are columns to BLAS: out^T += A^T S^T.
        char plain = 'N';
        int columns = static_cast<int>(d), own = static_cast<int>(rows), k = static_cast<int>(count),
            lds = static_cast<int>(kDenseBlock), ldo = static_cast<int>(d);
        T one = 1;
        const T* a = ready ? A.data + begin * A.row_stride : copies.data() + (begin - panel) * d;
        int lda = static_cast<int>(ready ? A.row_stride : d);
        blas_routines<T>().gemm(&plain, &plain, &columns, &own, &k, &one, const_cast<T*>(a), &lda, S, &lds, &one,
                                out.data + top * d, &ldo);
      }
    });
  }
}

template <class T>
void dense_entries(const Execution& exec, std::int64_t row, Place place, std::int64_t m, Entries entries,
                   MatrixView<T> out) {
  QUADRIC_REQUIRE(row >= 0 && row + out.rows <= m, "row must be within S");
  QUADRIC_REQUIRE(place.first >= 0, "first must not be negative");
  if (out.empty()) return;
  const std::int64_t unit = granule(entries), begin = row / unit, end = ceil_div(row + out.rows, unit);
  constexpr std::int64_t kColumns = 512;
  const std::int64_t pieces = ceil_div(out.cols, kColumns), tasks = (end - begin) * pieces;
  const int n_threads = std::min(thread_count(exec, tasks), pass_threads(exec, out.rows * out.cols));
  const Buffer<T> spaces(n_threads * unit * kColumns);
  parallel_for(n_threads, tasks, [&](std::int64_t task, int worker) {
    T* const S = spaces.data() + worker * unit * kColumns;
    const std::int64_t q = begin + task / pieces, first = task % pieces * kColumns;
    const std::int64_t columns = std::min(kColumns, out.cols - first);
    draw(entries, place.seed, m, q, q + 1, place.first + first, columns, kColumns, S);
    for (std::int64_t r = std::max(row, q * unit); r < std::min(row + out.rows, (q + 1) * unit); ++r)
      std::copy_n(S + (r - q * unit) * kColumns, columns, out.data + (r - row) * out.cols + first);
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                           \
  template QUADRIC_API void dense(const Execution&, MatrixView<const T>, Place, Entries, MatrixView<T>); \
  template QUADRIC_API void dense_entries(const Execution&, std::int64_t, Place, std::int64_t, Entries, MatrixView<T>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::sketch
