#include <algorithm>
#include <numeric>
#include <vector>

#include "quadric/sketch.hpp"
#include "require.hpp"
#include "sketch/tiles.hpp"

namespace quadric::sketch {

using namespace detail;

static constexpr std::int64_t kChunk = 64;  // rows that are transformed in the first-level cache

template <class T>
void srht(const Execution& exec, MatrixView<const T> A, Place place, std::int64_t k, const std::int64_t* samples,
          MatrixView<T> out) {
  const std::int64_t n = A.rows, m = out.rows;
  QUADRIC_REQUIRE(k >= 1 && (k & (k - 1)) == 0, "k must be a power of two");
  QUADRIC_REQUIRE(place.first >= 0 && place.first % k == 0, "first must be a multiple of k");
  QUADRIC_REQUIRE(out.cols == A.cols, "out must have the columns of A");
  for (std::int64_t s = 0; s < m; ++s) QUADRIC_REQUIRE(samples[s] >= 0, "samples must not be negative");
  if (A.empty() || m == 0) return;
  const int n_threads = column_threads<T>(exec, A.cols, n * A.cols * 8);
  const Tiles<T> tiles(A.cols, most_lines(m + k, 3 << 19), n_threads);
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
  const std::int64_t bit = place.first - 32 * first_word, chunk = std::min(k, kChunk);
  const Buffer<T> spaces(n_threads * (m + k + chunk) * tiles.width);
  const auto& kernels = sketch_kernels<T>();
  const MatrixView<const T> before = out;
  parallel_for(n_threads, tiles.count, [&](std::int64_t t, int worker) {
    const std::int64_t width = tiles.packed(t), lines = tiles.lines(t);
    T* const sums = spaces.data() + worker * (m + k + chunk) * tiles.width;
    T* const block = sums + m * width;
    T* const copies = block + k * width;
    for (std::int64_t s = 0; s < m; ++s)
      copy_rows(before, order[s], 1, tiles.first(t), tiles.columns(t), width, sums + s * width);
    for (std::int64_t begin = 0; begin < n; begin += k) {
      for (std::int64_t i = 0; i < k; i += chunk) {
        const std::int64_t first = begin + i, count = std::clamp<std::int64_t>(n - first, 0, chunk);
        Packing<T> packing{A.data + first * A.row_stride + tiles.first(t), A.row_stride, block + i * width, words,
                           bit + first};
        if (!tiles.ready(A, t) && count > 0) {
          copy_rows(A, first, count, tiles.first(t), tiles.columns(t), width, copies);
          packing.from = copies;
          packing.stride = width;
        }
        kernels.pack(packing, count, lines);
        std::fill(block + (i + count) * width, block + (i + chunk) * width, T(0));
        kernels.transform(block + i * width, chunk, 1, lines);
      }
      kernels.transform(block, k, chunk, lines);
      kernels.add_samples(block, lower.data(), upper.data(), (place.first + begin) / k, m, lines, sums);
    }
    for (std::int64_t s = 0; s < m; ++s)
      std::copy_n(sums + s * width, tiles.columns(t), &out(order[s], tiles.first(t)));
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                                    \
  template QUADRIC_API void srht(const Execution&, MatrixView<const T>, Place, std::int64_t, const std::int64_t*, \
                                 MatrixView<T>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::sketch
