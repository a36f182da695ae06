#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "quadric/transport.hpp"
#include "require.hpp"
#include "threads.hpp"

namespace quadric::transport {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
template <class T>
constexpr std::int64_t kLine = 64 / sizeof(T);  // entries of a cache line

struct Entry {
  double z;  // f_i - C_ij
  std::int32_t row;
};

// What a thread works in; grown once, to the length of a column.
struct Workspace {
  std::vector<Entry> entries;
  std::vector<double> sorted;
};

// Leaves the k largest entries, the first rows among equals, and these in the order of their rows.
void keep_largest(std::vector<Entry>& entries, std::int64_t k) {
  if (static_cast<std::int64_t>(entries.size()) <= k) return;
  const auto larger = [](const Entry& p, const Entry& q) { return p.z != q.z ? p.z > q.z : p.row < q.row; };
  std::nth_element(entries.begin(), entries.begin() + k, entries.end(), larger);
  entries.erase(entries.begin() + k, entries.end());
  std::sort(entries.begin(), entries.end(), [](const Entry& p, const Entry& q) { return p.row < q.row; });
}

// The threshold t < 0 for which [z - top - t]_+ has the sum `mass`; `top` is the largest z.
double threshold(const std::vector<Entry>& entries, double top, double mass, std::vector<double>& sorted) {
  sorted.clear();
  for (const Entry& e : entries) sorted.push_back(e.z - top);
  std::sort(sorted.begin(), sorted.end(), std::greater<double>());
  double sum = 0, result = -mass, count = 0;
  for (const double z : sorted) {
    sum += z;
    const double t = (sum - mass) / ++count;
    if (z <= t) break;
    result = t;
  }
  return result;
}

// The positive ones of (z + first + second) / reg in the order of their rows; the places left over hold row n and 0.
void write(const std::vector<Entry>& entries, double first, double second, double reg, std::int64_t n, std::int64_t k,
           std::int32_t* indices, double* values) {
  std::int64_t count = 0;
  for (const Entry& e : entries) {
    const double value = ((e.z + first) + second) / reg;
    if (value <= 0) continue;
    indices[count] = e.row;
    values[count++] = value;
  }
  std::fill(indices + count, indices + k, static_cast<std::int32_t>(n));
  std::fill(values + count, values + k, 0.0);
}

template <class T>
double z_of(MatrixView<const T> M, const double* f, std::int64_t i, std::int64_t j) {
  return f[i] - static_cast<double>(M(i, j));
}

// body(begin, end, worker) for groups of columns that lie on one cache line, or for single contiguous columns.
template <class T, class Body>
void for_columns(const Execution& exec, MatrixView<const T> M, const Body& body) {
  const bool by_rows = M.col_stride == 1 || M.col_stride == -1;
  const std::int64_t width = by_rows ? kLine<T> : 1;
  const std::int64_t groups = (M.cols + width - 1) / width;
  constexpr std::int64_t kWorthAThread = 1 << 16;
  const int n_threads = std::min(thread_count(exec, groups), thread_count(exec, M.rows * M.cols / kWorthAThread));
  std::vector<Workspace> spaces(static_cast<std::size_t>(n_threads));
  for (Workspace& space : spaces) {
    space.entries.reserve(static_cast<std::size_t>(M.rows));
    space.sorted.reserve(static_cast<std::size_t>(M.rows));
  }
  parallel_for(n_threads, groups, [&](std::int64_t group, int worker) {
    body(group * width, std::min((group + 1) * width, M.cols), spaces[static_cast<std::size_t>(worker)]);
  });
}

template <class T>
void check(MatrixView<const T> M, std::int64_t k, double reg) {
  QUADRIC_REQUIRE(M.rows < std::numeric_limits<std::int32_t>::max(), "M must have fewer than 2^31 - 1 rows");
  QUADRIC_REQUIRE(k >= 1, "k must be at least 1");
  QUADRIC_REQUIRE(reg > 0, "reg must be above 0");
}

// What one pass tells of a column: its largest entry, and a number that at least k entries are not below, which is the
// least of the maxima of k or more groups of rows.
struct Range {
  double top, low;
};

template <class T>
void ranges(MatrixView<const T> M, const double* f, std::int64_t k, std::int64_t begin, std::int64_t end,
            Range* result) {
  constexpr std::int64_t kMost = kLine<T>;
  const std::int64_t width = end - begin, group = std::max<std::int64_t>(M.rows / k, 1);
  for (std::int64_t j = 0; j < width; ++j) result[j] = {-kInfinity, kInfinity};
  for (std::int64_t first = 0; first < M.rows; first += group) {
    const std::int64_t last = std::min(first + group, M.rows);
    double most[kMost];
    std::fill_n(most, kMost, -kInfinity);
    std::int64_t i = first;
    if (M.col_stride == 1 && width == kMost) {  // a full line of contiguous columns: vectors
      for (; i < last; ++i) {
        const T* row = M.data + i * M.row_stride + begin;
        for (std::int64_t j = 0; j < kMost; ++j) most[j] = std::max(most[j], f[i] - static_cast<double>(row[j]));
      }
    } else if (M.row_stride == 1 && width == 1) {  // one contiguous column: its rows side by side instead
      const T* column = M.data + begin * M.col_stride;
      for (; i + kMost <= last; i += kMost)
        for (std::int64_t l = 0; l < kMost; ++l)
          most[l] = std::max(most[l], f[i + l] - static_cast<double>(column[i + l]));
      most[0] = *std::max_element(most, most + kMost);
    }
    for (; i < last; ++i)
      for (std::int64_t j = 0; j < width; ++j) most[j] = std::max(most[j], z_of(M, f, i, begin + j));
    for (std::int64_t j = 0; j < width; ++j) {
      result[j].top = std::max(result[j].top, most[j]);
      result[j].low = std::min(result[j].low, most[j]);
    }
  }
}

// Those of the k largest entries of column j that are not below `floor`, in the order of their rows.
template <class T>
void gather(MatrixView<const T> M, const double* f, std::int64_t j, double floor, std::int64_t k,
            std::vector<Entry>& entries) {
  entries.clear();
  for (std::int64_t i = 0; i < M.rows; ++i) {
    const double z = z_of(M, f, i, j);
    if (z >= floor) entries.push_back({z, static_cast<std::int32_t>(i)});
  }
  keep_largest(entries, k);
}

}  // namespace

template <class T>
void capped_columns(const Execution& exec, MatrixView<const T> M, const double* f, const double* b, std::int64_t k,
                    double reg, std::int32_t* indices, double* values, double* g) {
  check(M, k, reg);
  for_columns(exec, M, [&](std::int64_t begin, std::int64_t end, Workspace& space) {
    Range range[kLine<T>];
    ranges(M, f, k, begin, end, range);
    for (std::int64_t j = begin; j < end; ++j) {
      // Nothing below the threshold that the largest entry alone would have is ever positive.
      const auto [top, low] = range[j - begin];
      const double mass = reg * b[j];
      gather(M, f, j, top == -kInfinity ? kInfinity : std::max(top - mass, low), k, space.entries);
      const double t = threshold(space.entries, top, mass, space.sorted);
      write(space.entries, -top, -t, reg, M.rows, k, indices + j * k, values + j * k);
      g[j] = -(top + t);
    }
  });
}

template <class T>
void capped_dual(const Execution& exec, MatrixView<const T> M, const double* f, const double* g, std::int64_t k,
                 double reg, std::int32_t* indices, double* values) {
  check(M, k, reg);
  for_columns(exec, M, [&](std::int64_t begin, std::int64_t end, Workspace& space) {
    for (std::int64_t j = begin; j < end; ++j) {
      gather(M, f, j, -g[j], k, space.entries);
      write(space.entries, g[j], 0.0, reg, M.rows, k, indices + j * k, values + j * k);
    }
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                                  \
  template QUADRIC_API void capped_columns(const Execution&, MatrixView<const T>, const double*, const double*, \
                                           std::int64_t, double, std::int32_t*, double*, double*);              \
  template QUADRIC_API void capped_dual(const Execution&, MatrixView<const T>, const double*, const double*,    \
                                        std::int64_t, double, std::int32_t*, double*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::transport
