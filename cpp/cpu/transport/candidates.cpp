#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "quadric/transport.hpp"
#include "require.hpp"
#include "threads.hpp"
#include "transport/source.hpp"

namespace quadric::transport {

template <class T>
bool candidates(const Execution& exec, const Cost<T>& cost, const double* a, const double* b, const double* f,
                const double* g, Pattern& pattern, const CandidateOptions& options) {
  using namespace detail;
  check(cost);
  QUADRIC_REQUIRE(options.reg > 0, "reg must be positive");
  const Source<T> source(cost, options.reg);
  const std::int64_t n = source.n(), m = source.m(), parts = part_count(n, m);
  pattern.starts.assign(static_cast<std::size_t>(n) + 1, 0);
  pattern.columns.clear();
  pattern.costs.clear();
  if (n == 0 || m == 0) return true;
  Columns<T> columns(source);
  Buffer<T> floor(source.width());
  std::fill_n(floor.data(), source.width(), T(0));
  for (std::int64_t j = 0; j < m; ++j) {
    columns.potential.data()[j] = g[j] * source.kappa();
    floor.data()[j] = static_cast<T>(std::log2(b[j]) - options.bits);
  }
  columns.rebase(source);
  const int n_threads = std::min(thread_count(exec, parts), thread_count(exec, n * m >> 14));
  struct Worker {
    Worker(std::int64_t rows, std::int64_t width) : tile(rows, width), selected(width + 1) {}
    Tile<T> tile;
    Buffer<std::int32_t> selected;
  };
  std::vector<std::unique_ptr<Worker>> workers;
  for (int t = 0; t < n_threads; ++t) workers.emplace_back(new Worker(source.rows_at_once(), source.width()));
  std::vector<std::vector<std::int32_t>> found(static_cast<std::size_t>(parts));
  std::atomic<std::int64_t> total{0};
  const PassKernels<T>& kernels = pass_kernels<T>();
  parallel_try(n_threads, parts, [&](std::int64_t part, int worker) {
    const Tile<T>& tile = workers[worker]->tile;
    std::int32_t* const selected = workers[worker]->selected.data();
    const auto [begin, end] = part_range(n, parts, part);
    for (std::int64_t first = begin; first < end && total.load() <= options.limit; first += tile.rows) {
      const std::int64_t rows = std::min(tile.rows, end - first);
      source.begin(first, rows, tile.row(0), tile.stride);
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t i = first + r;
        source.exponents(i, columns.G.data(), tile.row(r), tile.t.data());
        const std::int64_t count =
            kernels.select(tile.t.data(), static_cast<T>(f[i] * source.kappa() - source.row_offset(i)),
                           static_cast<T>(std::log2(a[i]) - options.bits), floor.data(), source.width(), selected);
        found[part].insert(found[part].end(), selected, selected + count);
        pattern.starts[i + 1] = count;
        total += count;
      }
    }
  });
  if (total > options.limit) return false;
  for (std::int64_t i = 0; i < n; ++i) pattern.starts[i + 1] += pattern.starts[i];
  pattern.columns.resize(static_cast<std::size_t>(total));
  pattern.costs.resize(static_cast<std::size_t>(total));
  parallel_for(n_threads, parts, [&](std::int64_t part, int) {
    const auto [begin, end] = part_range(n, parts, part);
    std::copy(found[part].begin(), found[part].end(), pattern.columns.begin() + pattern.starts[begin]);
    for (std::int64_t i = begin; i < end; ++i)
      for (std::int64_t k = pattern.starts[i]; k < pattern.starts[i + 1]; ++k)
        pattern.costs[k] = source.entry(i, pattern.columns[k]);
  });
  return true;
}

#define QUADRIC_INSTANTIATE(T)                                                                                        \
  template QUADRIC_API bool candidates(const Execution&, const Cost<T>&, const double*, const double*, const double*, \
                                       const double*, Pattern&, const CandidateOptions&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::transport
