#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "quadric/transport.hpp"
#include "require.hpp"
#include "threads.hpp"
#include "transport/source.hpp"

namespace quadric::transport {
namespace {

constexpr std::int64_t kSample = 16;  // rows

}  // namespace

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
  const PassKernels<T>& kernels = pass_kernels<T>();
  // The entries of row i that count, which `begin` made ready in `row`.
  const auto select = [&](std::int64_t i, const T* row, const Worker& worker) {
    source.exponents(i, columns.G.data(), row, worker.tile.t.data());
    return kernels.select(worker.tile.t.data(), static_cast<T>(f[i] * source.kappa() - source.row_offset(i)),
                          static_cast<T>(std::log2(a[i]) - options.bits), floor.data(), source.width(),
                          worker.selected.data());
  };
  // A few rows tell a hopeless case at little cost.
  if (n >= 16 * kSample) {
    std::int64_t count = 0;
    for (std::int64_t s = 0; s < kSample; ++s) {
      const std::int64_t i = (2 * s + 1) * n / (2 * kSample);
      source.begin(i, 1, workers[0]->tile.row(0), workers[0]->tile.stride);
      count += select(i, workers[0]->tile.row(0), *workers[0]);
    }
    if (count * n > 2 * kSample * options.limit) return false;
  }
  std::vector<std::vector<std::int32_t>> found(static_cast<std::size_t>(parts));
  std::vector<std::vector<double>> costs(static_cast<std::size_t>(parts));
  std::atomic<std::int64_t> total{0};
  parallel_try(n_threads, parts, [&](std::int64_t part, int worker) {
    const Tile<T>& tile = workers[worker]->tile;
    std::int32_t* const selected = workers[worker]->selected.data();
    const auto [begin, end] = part_range(n, parts, part);
    for (std::int64_t first = begin; first < end && total.load() <= options.limit; first += tile.rows) {
      const std::int64_t rows = std::min(tile.rows, end - first);
      source.begin(first, rows, tile.row(0), tile.stride);
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t i = first + r;
        const std::int64_t count = select(i, tile.row(r), *workers[worker]);
        found[part].insert(found[part].end(), selected, selected + count);
        // While the row is in cache.
        for (std::int64_t k = 0; k < count; ++k) costs[part].push_back(source.entry(i, selected[k]));
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
    const std::int64_t begin = pattern.starts[part_range(n, parts, part).begin];
    std::copy(found[part].begin(), found[part].end(), pattern.columns.begin() + begin);
    std::copy(costs[part].begin(), costs[part].end(), pattern.costs.begin() + begin);
  });
  return true;
}

#define QUADRIC_INSTANTIATE(T)                                                                                        \
  template QUADRIC_API bool candidates(const Execution&, const Cost<T>&, const double*, const double*, const double*, \
                                       const double*, Pattern&, const CandidateOptions&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::transport
