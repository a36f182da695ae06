#include <algorithm>
#include <numeric>
#include <vector>

#include "quadric/sketch.hpp"
#include "require.hpp"
#include "sketch/tiles.hpp"

namespace quadric::sketch {

using namespace detail;

template <class T>
void srht(const Execution& exec, MatrixView<const T> A, Place place, std::int64_t k, const std::int64_t* samples,
          MatrixView<T> out) {
  const std::int64_t n = A.rows, m = out.rows;
  QUADRIC_REQUIRE(k >= 1 && (k & (k - 1)) == 0, "k must be a power of two");
  QUADRIC_REQUIRE(place.first >= 0 && place.first % k == 0, "first must be a multiple of k");
  QUADRIC_REQUIRE(out.cols == A.cols, "out must have the columns of A");
  for (std::int64_t s = 0; s < m; ++s) QUADRIC_REQUIRE(samples[s] >= 0, "samples must not be negative");
  if (A.empty() || m == 0) return;
  const int n_threads = std::min(pass_threads(exec, n * A.cols * 8), thread_count(exec, ceil_div(A.cols, kLineEntries<T>)));
  const Tiles<T> tiles(m + k, A.cols, n_threads);
  // Samples in the order in which their rows lie in a transformed block.
  std::vector<std::int64_t> order(static_cast<std::size_t>(m)), lower(order.size()), upper(order.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return (samples[a] & (k - 1)) != (samples[b] & (k - 1)) ? (samples[a] & (k - 1)) < (samples[b] & (k - 1)) : a < b;
  });
  for (std::size_t s = 0; s < order.size(); ++s) {
    lower[s] = samples[order[s]] & (k - 1);
    upper[s] = samples[order[s]] / k;
  }
  std::vector<std::uint32_t> memory(static_cast<std::size_t>(n / 32 + 16));
  const std::int64_t first_word = place.first / 32;
  const std::uint32_t* const words =
      draw_kernels().words(place.seed, static_cast<std::uint32_t>(Draw::sign), static_cast<std::uint64_t>(first_word),
                           (place.first + n - 1) / 32 - first_word + 1, memory.data());
  const std::int64_t bit = place.first - 32 * first_word, size = (m + k + kCopied) * tiles.width;
  const Buffer<T> spaces(n_threads * size);
  const auto& kernels = sketch_kernels<T>();
  const MatrixView<const T> before = out;
  parallel_for(n_threads, tiles.count, [&](std::int64_t t, int worker) {
    T* const block = spaces.data() + worker * size;
    T* const sums = block + k * tiles.width;
    T* const copies = sums + m * tiles.width;
    for (std::int64_t s = 0; s < m; ++s)
      copy_rows(before, order[s], 1, t * tiles.width, tiles.columns(t), tiles.width, sums + s * tiles.width);
    for (std::int64_t begin = 0; begin < n; begin += k) {
      const std::int64_t end = std::min(n, begin + k);
      for_rows(A, tiles, t, begin, end, copies,
               [&](const T* rows, std::int64_t stride, std::int64_t first, std::int64_t count) {
                 kernels.signed_rows(rows, stride, count, words, bit + first, tiles.lines,
                                     block + (first - begin) * tiles.width);
               });
      std::fill(block + (end - begin) * tiles.width, block + k * tiles.width, T(0));
      kernels.transform(block, k, tiles.lines);
      kernels.add_samples(block, lower.data(), upper.data(), (place.first + begin) / k, m, tiles.lines, sums);
    }
    for (std::int64_t s = 0; s < m; ++s)
      std::copy_n(sums + s * tiles.width, tiles.columns(t), &out(order[s], t * tiles.width));
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                             \
  template QUADRIC_API void srht(const Execution&, MatrixView<const T>, Place, std::int64_t, const std::int64_t*, \
                                 MatrixView<T>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::sketch
