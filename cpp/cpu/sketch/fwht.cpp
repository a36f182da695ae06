#include <algorithm>

#include "quadric/sketch.hpp"
#include "require.hpp"
#include "sketch/tiles.hpp"

namespace quadric::sketch {
namespace {

using namespace detail;

// One stage: groups of `size` rows that are `step` apart, for every group, in tiles of columns.
template <class T>
void stage(int n_threads, const Cube<T>& X, std::int64_t step, std::int64_t size) {
  const Tiles<T> tiles(X.inner, most_lines(size, 1 << 20), 1);
  const std::int64_t groups = X.rows / size, tasks = X.outer * groups * tiles.count;
  const Buffer<T> spaces(n_threads * size * tiles.width);
  const auto& kernels = sketch_kernels<T>();
  parallel_for(n_threads, tasks, [&](std::int64_t task, int worker) {
    const std::int64_t t = task % tiles.count, group = task / tiles.count % groups, o = task / tiles.count / groups;
    const std::int64_t first = group / step * step * size + group % step, columns = tiles.columns(t);
    T* const tile = spaces.data() + worker * size * tiles.width;
    const std::int64_t width = tiles.packed(t);
    const MatrixView<T> rows(X.data + o * X.outer_stride + first * X.row_stride + tiles.first(t) * X.inner_stride, size,
                             columns, step * X.row_stride, X.inner_stride);
    copy_rows(MatrixView<const T>(rows), 0, size, 0, columns, width, tile);
    kernels.transform(tile, size, 1, tiles.lines(t));
    for (std::int64_t i = 0; i < size; ++i)
      for (std::int64_t j = 0; j < columns; ++j) rows(i, j) = tile[i * width + j];
  });
}

constexpr std::int64_t kVector = 1 << 12;  // entries of a vector in the first-level cache

// Contiguous vectors of `size` entries at most kVector: groups of a cache line in registers, the rest as rows of such
// groups.
template <class T>
void vectors(int n_threads, const Cube<T>& X, std::int64_t size) {
  const std::int64_t each = X.rows / size, all = X.outer * each;
  const std::int64_t most = std::max<std::int64_t>(1, 4 * kVector / size), tasks = ceil_div(all, most);
  const std::int64_t group = std::min(size, kLineEntries<T>);
  const auto& kernels = sketch_kernels<T>();
  const Buffer<T> spaces(n_threads * size);
  parallel_for(n_threads, tasks, [&](std::int64_t task, int worker) {
    T* const tile = spaces.data() + worker * size;
    for (std::int64_t v = task * most; v < std::min(all, (task + 1) * most); ++v) {
      T* const x = X.data + v / each * X.outer_stride + v % each * size;
      if (size == group) {
        kernels.transform_groups(x, size, group);
        continue;
      }
      std::copy_n(x, size, tile);
      kernels.transform_groups(tile, size, group);
      kernels.transform(tile, size / group, 1, 1);
      std::copy_n(tile, size, x);
    }
  });
}

}  // namespace

template <class T>
void fwht(const Execution& exec, const Cube<T>& X) {
  QUADRIC_REQUIRE(X.rows >= 1 && (X.rows & (X.rows - 1)) == 0, "the axis must have a power of two entries");
  if (X.outer == 0 || X.inner == 0 || X.rows == 1) return;
  const int n_threads = pass_threads(exec, X.outer * X.rows * X.inner);
  Cube<T> rest = X;
  if (X.inner == 1 && X.row_stride == 1) {
    const std::int64_t size = std::min(X.rows, kVector);
    vectors(n_threads, X, size);
    rest = {X.data, X.outer, X.rows / size, size, X.outer_stride, size, 1};
  }
  constexpr std::int64_t kMost = 1 << 11;  // rows of a stage: a tile of them stays in the second-level cache
  for (std::int64_t step = 1; step < rest.rows;) {
    const std::int64_t size = std::min(kMost, rest.rows / step);
    stage(n_threads, rest, step, size);
    step *= size;
  }
}

#define QUADRIC_INSTANTIATE(T) template QUADRIC_API void fwht(const Execution&, const Cube<T>&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::sketch
