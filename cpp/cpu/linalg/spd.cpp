#include <algorithm>
#include <cmath>
#include <limits>

#include "buffer.hpp"
#include "linalg/lanes.hpp"
#include "quadric/linalg.hpp"
#include "require.hpp"
#include "threads.hpp"

namespace quadric::linalg {
namespace {

using detail::kPack;
using detail::kTile;
using detail::packed;
using detail::padded;

constexpr std::int64_t kLargest = 256;

// Lower triangles of the matrices [first, first + lanes), and the identity below them.
template <class T>
void load_lower(const detail::LaneKernels<T>& kernels, const BatchView<const T>& A, std::int64_t first,
                std::int64_t lanes, T* a) {
  const std::int64_t n = A.rows;
  for (std::int64_t i = 0; i < n; ++i) {
    T* const row = a + packed(i) * kPack<T>;
    const T* const src = A.data + first * A.stride + i * A.row_stride;
    if (A.col_stride == 1) {
      kernels.load(src, A.stride, i + 1, lanes, row, 1);
      continue;
    }
    for (std::int64_t j = 0; j <= i; ++j)
      for (std::int64_t lane = 0; lane < kPack<T>; ++lane)
        row[j * kPack<T> + lane] = lane < lanes ? src[lane * A.stride + j * A.col_stride] : T(0);
  }
  for (std::int64_t i = n; i < padded(n); ++i) {
    T* const row = a + packed(i) * kPack<T>;
    std::fill_n(row, i * kPack<T>, T(0));
    std::fill_n(row + i * kPack<T>, kPack<T>, T(1));
  }
}

// log det = 2 sum log L_ii; the product is taken as far as it stays within range, which saves most logarithms.
template <class T>
double log_determinant(const T* l, std::int64_t n, std::int64_t lane) {
  double sum = 0, product = 1;
  for (std::int64_t i = 0; i < n; ++i) {
    product *= static_cast<double>(l[(packed(i) + i) * kPack<T> + lane]);
    if (product < 1e-140 || product > 1e140) {  // L_ii lies between 1e-162 and 1e155
      sum += std::log(product);
      product = 1;
    }
  }
  return 2 * (sum + std::log(product));
}

}  // namespace

template <class T>
void spd(const Execution& exec, BatchView<const T> A, BatchView<const T> b, Spd what, T* out, double* logdet,
         std::int32_t* status) {
  const std::int64_t n = A.rows;
  QUADRIC_REQUIRE(A.cols == n, "A must hold square matrices");
  QUADRIC_REQUIRE(n >= 1 && n <= kLargest, "A must hold matrices of 1 to 256 rows");
  QUADRIC_REQUIRE(status != nullptr, "status must be given");
  QUADRIC_REQUIRE(out != nullptr || what == Spd::logdet, "out must be given");
  QUADRIC_REQUIRE(what != Spd::solve || (b.count == A.count && b.rows == n), "b must have as many rows as A");

  const detail::LaneKernels<T>& kernels = detail::lane_kernels<T>();
  const std::int64_t columns = what == Spd::solve ? b.cols : n;
  const std::int64_t packs = (A.count + kPack<T> - 1) / kPack<T>;
  const std::int64_t per_task = std::max<std::int64_t>(1, 4096 / (n * n));  // tiny ones many at a time
  const std::int64_t tasks = (packs + per_task - 1) / per_task;
  const int n_threads = thread_count(exec, tasks);
  const std::int64_t triangle = packed(padded(n)), work = 2 * padded(n) * kTile,
                     scratch = triangle + work + 2 * padded(n);
  const Buffer<T> memory(n_threads * scratch * kPack<T>);

  parallel_for(n_threads, tasks, [&](std::int64_t task, int worker) {
    T* const a = memory.data() + worker * scratch * kPack<T>;
    T* const inverted = a + triangle * kPack<T>;
    T* const reciprocal = inverted + work * kPack<T>;
    T* const row = reciprocal + padded(n) * kPack<T>;
    for (std::int64_t pack = task * per_task; pack < std::min(packs, (task + 1) * per_task); ++pack) {
      const std::int64_t first = pack * kPack<T>, lanes = std::min(kPack<T>, A.count - first);
      load_lower(kernels, A, first, lanes, a);
      std::int32_t failed[kPack<T>];
      std::fill_n(failed, kPack<T>, -1);
      kernels.cholesky(a, padded(n), reciprocal, failed);
      std::copy_n(failed, lanes, status + first);
      if (logdet != nullptr)
        for (std::int64_t lane = 0; lane < lanes; ++lane)
          logdet[first + lane] =
              failed[lane] < 0 ? log_determinant(a, n, lane) : std::numeric_limits<double>::quiet_NaN();

      T* const to = what == Spd::logdet ? nullptr : out + first * n * columns;
      if (what == Spd::cholesky) {
        for (std::int64_t i = 0; i < n; ++i) {
          kernels.store(a + packed(i) * kPack<T>, 1, i + 1, lanes, to + i * n, n * n);
          for (std::int64_t lane = 0; lane < lanes; ++lane)
            std::fill_n(to + lane * n * n + i * n + i + 1, n - i - 1, T(0));
        }
      } else if (what == Spd::inverse) {
        kernels.invert(a, padded(n), reciprocal, inverted);
        kernels.product(a, padded(n), inverted);
        for (std::int64_t i = 0; i < n; ++i) {
          std::copy_n(a + packed(i) * kPack<T>, (i + 1) * kPack<T>, row);
          for (std::int64_t j = i + 1; j < n; ++j)
            std::copy_n(a + (packed(j) + i) * kPack<T>, kPack<T>, row + j * kPack<T>);
          kernels.store(row, 1, n, lanes, to + i * n, n * n);
        }
      } else if (what == Spd::solve) {
        for (std::int64_t c = 0; c < columns; ++c) {
          for (std::int64_t i = 0; i < n; ++i)
            for (std::int64_t lane = 0; lane < kPack<T>; ++lane)
              row[i * kPack<T> + lane] = lane < lanes ? b[first + lane](i, c) : T(0);
          kernels.forward(a, n, reciprocal, row);
          kernels.backward(a, n, reciprocal, row);
          for (std::int64_t i = 0; i < n; ++i)
            for (std::int64_t lane = 0; lane < lanes; ++lane)
              to[(lane * n + i) * columns + c] = row[i * kPack<T> + lane];
        }
      }
      for (std::int64_t lane = 0; lane < lanes && to != nullptr; ++lane)
        if (failed[lane] >= 0) std::fill_n(to + lane * n * columns, n * columns, std::numeric_limits<T>::quiet_NaN());
    }
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                              \
  template QUADRIC_API void spd(const Execution&, BatchView<const T>, BatchView<const T>, Spd, T*, double*, \
                                std::int32_t*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::linalg
