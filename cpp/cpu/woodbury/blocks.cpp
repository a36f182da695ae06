#include <algorithm>
#include <limits>

#include "buffer.hpp"
#include "linalg/lanes.hpp"
#include "quadric/woodbury.hpp"
#include "require.hpp"
#include "threads.hpp"
#include "woodbury/row_kernels.hpp"
#include "woodbury/slabs.hpp"

namespace quadric::woodbury {
namespace {

using linalg::detail::kTile;
using linalg::detail::packed;
using linalg::detail::padded;

static_assert(kLanes == linalg::detail::kPack<double>);

constexpr std::int64_t kLargest = 256;

// Vectors of d weights as lanes: blocks [first, first + kLanes) of `block_size` weights, one to a lane. What lies
// beyond d is zero.
class Lanes {
 public:
  Lanes(std::int64_t block_size, std::int64_t d, double* staging)
      : kernels_(linalg::detail::lane_kernels<double>()),
        rows_(detail::row_kernels<double>()),
        size_(block_size),
        d_(d),
        staging_(staging) {}

  // out(i) of each block, entries `stride` apart.
  template <class Widen>
  void load(std::int64_t chunk, double* out, std::int64_t stride, const Widen& widen) const {
    const std::int64_t begin = chunk * kLanes * size_, count = std::min(kLanes * size_, d_ - begin);
    widen(begin, count, staging_);
    std::fill_n(staging_ + count, kLanes * size_ - count, 0.0);
    kernels_.load(staging_, size_, size_, kLanes, out, stride);
  }

  void load_row(const StoredRows& G, std::int64_t r, std::int64_t chunk, double* out, std::int64_t stride) const {
    load(chunk, out, stride, [&](std::int64_t begin, std::int64_t count, double* to) {
      rows_.widen(element(G, r, begin), G.storage, count, to);
    });
  }

  template <class T>
  void load(const T* v, std::int64_t chunk, double* out) const {
    load(chunk, out, 1, [&](std::int64_t begin, std::int64_t count, double* to) { std::copy_n(v + begin, count, to); });
  }

  template <class T>
  void store(const double* in, std::int64_t chunk, T* v) const {
    const std::int64_t begin = chunk * kLanes * size_, count = std::min(kLanes * size_, d_ - begin);
    kernels_.store(in, 1, size_, kLanes, staging_, size_);
    for (std::int64_t i = 0; i < count; ++i) v[begin + i] = static_cast<T>(staging_[i]);
  }

 private:
  const linalg::detail::LaneKernels<double>& kernels_;
  const detail::RowKernels<double>& rows_;
  std::int64_t size_, d_;
  double* staging_;
};

// F of the blocks of one chunk and what can be asked of it. Primal: F = sums / m + lambda I is factored. Dual:
// K = m lambda I + X X^T is, and X is kept as rows of packs.
class Chunk {
 public:
  Chunk(const BlockSource& F, double* memory)
      : F_(F),
        kernels_(linalg::detail::lane_kernels<double>()),
        n_(F.sums != nullptr ? F.block_size : F.count),
        lanes_(F.block_size, F.d, memory) {
    const auto take = [&memory](std::int64_t packs) {
      double* piece = memory;
      memory += packs * kLanes;
      return piece;
    };
    take(F.block_size);  // the staging of lanes_
    factor_ = take(packed(padded(n_)));
    inverted_ = take(spare_size(F, n_));
    reciprocal_ = take(padded(n_));
    small_ = take(std::max(n_, F.block_size));
    x_ = take(F.sums != nullptr ? 0 : F.count * F.block_size);
    transposed_ = take(F.sums != nullptr ? 0 : F.count * F.block_size);
  }

  static std::int64_t memory(const BlockSource& F) {
    const std::int64_t n = F.sums != nullptr ? F.block_size : F.count;
    return kLanes * (F.block_size + packed(padded(n)) + spare_size(F, n) + padded(n) + std::max(n, F.block_size) +
                     (F.sums != nullptr ? 0 : 2 * F.count * F.block_size));
  }

  const Lanes& lanes() const { return lanes_; }
  const std::int32_t* failed() const { return failed_; }

  void load(std::int64_t chunk) {
    std::fill_n(failed_, kLanes, -1);
    if (primal()) {
      kernels_.damp(F_.sums + chunk * packed(n_) * kLanes, n_, 1 / static_cast<double>(F_.count), F_.damping, factor_);
      return;
    }
    for (std::int64_t r = 0; r < n_; ++r) lanes_.load_row(F_.rows, r, chunk, row(r), 1);
  }

  void factor() {
    if (!primal()) dual_matrix();
    kernels_.cholesky(factor_, padded(n_), reciprocal_, failed_);
  }

  // After `factor`: prepares `group`. The factor is lost.
  void invert() {
    if (primal())
      kernels_.invert(factor_, padded(n_), reciprocal_, inverted_);
    else
      kernels_.forward_many(factor_, n_, reciprocal_, x_, F_.block_size);  // W = C^-1 X
  }

  // Entries [first, first + g) of F^-1, packed.
  void group(std::int64_t first, std::int64_t g, double* out) const {
    if (primal()) {
      kernels_.group(factor_, n_, first, g, out);
      return;
    }
    kernels_.cross(x_, n_, F_.block_size, first, g, out);
    subtract_from_identity(g, out);
  }

  // The whole of F^-1, packed, in the primal where the factor was.
  const double* whole(double* memory) {
    if (primal()) {
      kernels_.product(factor_, padded(n_), inverted_);
      return factor_;
    }
    for (std::int64_t r = 0; r < n_; ++r)  // columns of W side by side, as the tiles of `gram` want them
      for (std::int64_t i = 0; i < F_.block_size; ++i)
        std::copy_n(row(r) + i * kLanes, kLanes, transposed_ + (i * n_ + r) * kLanes);
    std::fill_n(memory, packed(F_.block_size) * kLanes, 0.0);
    kernels_.gram(transposed_, F_.block_size, n_, n_, memory);
    subtract_from_identity(F_.block_size, memory);
    return memory;
  }

  // v = F^-1 v, after `factor`.
  void solve(double* v) {
    if (primal()) {
      substitute(v);
      return;
    }
    kernels_.multiply(x_, n_, F_.block_size, v, small_);
    substitute(small_);
    kernels_.multiply_transposed(x_, n_, F_.block_size, small_, spare());
    const double scale = 1 / F_.damping;
    const double* correction = spare();
    for (std::int64_t i = 0; i < F_.block_size * kLanes; ++i) v[i] = (v[i] - correction[i]) * scale;
  }

  // After `load`, instead of `factor`: z = F_SS^-1 F_SP w_P, for `gone` = w on P and zero on S; keep is 1 on S.
  // loss[lane] = dw^T F dw / 2 with dw_P = -w_P, dw_S = z.
  void prune(const double* keep, const double* gone, double* z, double* loss) {
    const std::int64_t B = F_.block_size;
    std::fill_n(loss, kLanes, 0.0);
    if (primal()) {
      kernels_.symmetric_multiply(factor_, B, gone, z);
      add_dot(gone, z, B, loss);
      for (std::int64_t i = 0; i < B * kLanes; ++i) z[i] *= keep[i];
      std::copy_n(z, B * kLanes, small_);
      kernels_.mask(factor_, B, keep);
      factor();
      solve(z);
      double regained[kLanes] = {};
      add_dot(small_, z, B, regained);
      for (std::int64_t lane = 0; lane < kLanes; ++lane) loss[lane] = (loss[lane] - regained[lane]) / 2;
      return;
    }
    double* const u = spare();  // X_P w_P; then t = (m lambda I + X_S X_S^T)^-1 u
    kernels_.multiply(x_, n_, B, gone, small_);
    kernels_.scale_columns(x_, n_, B, keep);
    factor();
    std::copy_n(small_, n_ * kLanes, u);
    substitute(u);
    kernels_.multiply_transposed(x_, n_, B, u, z);
    add_dot(gone, gone, B, loss);  // dw^T F dw = lambda (|w_P|^2 + u . t)
    add_dot(small_, u, n_, loss);
    for (std::int64_t lane = 0; lane < kLanes; ++lane) loss[lane] *= F_.damping / 2;
  }

 private:
  bool primal() const { return F_.sums != nullptr; }
  double* row(std::int64_t r) const { return x_ + r * F_.block_size * kLanes; }
  // The working memory of `invert`, which the dual form does not call, serves it as a vector.
  double* spare() const { return inverted_; }
  static std::int64_t spare_size(const BlockSource& F, std::int64_t n) {
    return std::max(2 * padded(n) * kTile, F.block_size);
  }

  // v = (C C^T)^-1 v for the factor C
  void substitute(double* v) const {
    kernels_.forward(factor_, n_, reciprocal_, v);
    kernels_.backward(factor_, n_, reciprocal_, v);
  }

  // F^-1 = (I - W^T W) / lambda
  void subtract_from_identity(std::int64_t g, double* cross) const {
    const double scale = 1 / F_.damping;
    for (std::int64_t i = 0; i < g; ++i) {
      for (std::int64_t j = 0; j <= i; ++j, cross += kLanes)
        for (std::int64_t lane = 0; lane < kLanes; ++lane) cross[lane] = ((i == j ? 1.0 : 0.0) - cross[lane]) * scale;
    }
  }

  void dual_matrix() {
    std::fill_n(factor_, packed(n_) * kLanes, 0.0);
    kernels_.gram(x_, n_, F_.block_size, F_.block_size, factor_);
    kernels_.damp(factor_, n_, 1.0, static_cast<double>(F_.count) * F_.damping, factor_);
  }

  static void add_dot(const double* a, const double* b, std::int64_t n, double* sum) {
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t lane = 0; lane < kLanes; ++lane) sum[lane] += a[i * kLanes + lane] * b[i * kLanes + lane];
  }

  const BlockSource& F_;
  const linalg::detail::LaneKernels<double>& kernels_;
  std::int64_t n_;
  Lanes lanes_;
  double *factor_, *inverted_, *reciprocal_, *small_, *x_, *transposed_;
  std::int32_t failed_[kLanes];
};

void check_block_size(std::int64_t block_size) {
  QUADRIC_REQUIRE(block_size >= 1 && block_size <= kLargest, "block_size must lie between 1 and 256");
}

void check(const BlockSource& F) {
  check_block_size(F.block_size);
  QUADRIC_REQUIRE((F.sums == nullptr) != (F.rows.data == nullptr), "F must have sums or rows, not both");
  QUADRIC_REQUIRE(F.count >= 1, "count must be at least 1");
  QUADRIC_REQUIRE(F.sums != nullptr || (F.rows.rows == F.count && F.rows.cols == F.d && F.count <= kLargest),
                  "rows must be count x d, count at most 256");
  QUADRIC_REQUIRE(F.damping > 0, "damping must be positive");
}

// body(chunk, factor of the worker, extra memory of the worker) for every chunk of eight blocks.
template <class Body>
void for_chunks(const Execution& exec, const BlockSource& F, std::int64_t extra, const Body& body) {
  const std::int64_t chunks = ceil_div(ceil_div(F.d, F.block_size), kLanes);
  const std::int64_t per_task = std::max<std::int64_t>(1, 64 / F.block_size);
  const std::int64_t tasks = ceil_div(chunks, per_task);
  const int n_threads = thread_count(exec, tasks);
  const std::int64_t own = Chunk::memory(F) + extra * kLanes;
  const Buffer<double> memory(n_threads * own);
  parallel_for(n_threads, tasks, [&](std::int64_t task, int worker) {
    double* const at = memory.data() + worker * own;
    Chunk factor(F, at);
    for (std::int64_t chunk = task * per_task; chunk < std::min(chunks, (task + 1) * per_task); ++chunk)
      body(chunk, factor, at + Chunk::memory(F));
  });
}

// status of the blocks of a chunk
void report(const BlockSource& F, std::int64_t chunk, const std::int32_t* failed, std::int32_t* status) {
  const std::int64_t first = chunk * kLanes;
  std::copy_n(failed, std::min(kLanes, ceil_div(F.d, F.block_size) - first), status + first);
}

// Rows [first, first + count) of G, as far as there are any, columns [begin, end). They come while the processor
// computes; it would not see them coming, because the pieces are short and far apart.
void prefetch(const StoredRows& G, std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = first; r < std::min(first + count, G.rows); ++r) {
    const char* const last = element(G, r, std::min(end, G.cols));
    for (const char* p = element(G, r, begin); p < last; p += 64) __builtin_prefetch(p, 0, 2);
  }
}

// NaN in the lanes of the blocks that failed: nobody takes them for results.
void void_failed(const std::int32_t* failed, double* x, std::int64_t n) {
  for (std::int64_t lane = 0; lane < kLanes; ++lane)
    for (std::int64_t i = 0; failed[lane] >= 0 && i < n; ++i)
      x[i * kLanes + lane] = std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

void block_gram(const Execution& exec, const StoredRows& G, std::int64_t block_size, double* sums) {
  check_block_size(block_size);
  // A task takes pieces of 8 KiB and more out of the rows, or memory would be slow, and 32 rows at a time; as packs of
  // float64 they stay in L2, beside the sums.
  constexpr std::int64_t kColumns = 2048, kDepth = 32;
  const std::int64_t chunks = ceil_div(ceil_div(G.cols, block_size), kLanes);
  const std::int64_t per_task = std::max<std::int64_t>(1, kColumns / (kLanes * block_size));
  const std::int64_t tasks = ceil_div(chunks, per_task);
  const int n_threads = thread_count(exec, tasks);
  const std::int64_t chunk_columns = kLanes * block_size, panel = chunk_columns * kDepth;
  const std::int64_t own = per_task * (panel + chunk_columns);
  const Buffer<double> memory(n_threads * own);
  const auto& kernels = linalg::detail::lane_kernels<double>();
  const auto& rows = detail::row_kernels<double>();
  parallel_for(n_threads, tasks, [&](std::int64_t task, int worker) {
    double* const x = memory.data() + worker * own;
    double* const staging = x + per_task * panel;
    const std::int64_t first = task * per_task, count = std::min(per_task, chunks - first);
    const std::int64_t begin = first * chunk_columns, width = std::min(count * chunk_columns, G.cols - begin);
    std::fill_n(staging + width, count * chunk_columns - width, 0.0);
    const bool direct = G.storage == Storage::float32 && width == count * chunk_columns;
    for (std::int64_t r0 = 0; r0 < G.rows; r0 += kDepth) {
      const std::int64_t depth = std::min(kDepth, G.rows - r0);
      for (std::int64_t r = 0; r < depth; ++r) {
        if (direct) {
          const auto* g = reinterpret_cast<const float*>(element(G, r0 + r, begin));
          for (std::int64_t c = 0; c < count; ++c)
            kernels.load_float(g + c * chunk_columns, block_size, block_size, width - c * chunk_columns,
                               x + c * panel + r * kLanes, kDepth);
          continue;
        }
        rows.widen(element(G, r0 + r, begin), G.storage, width, staging);
        for (std::int64_t c = 0; c < count; ++c)
          kernels.load(staging + c * chunk_columns, block_size, block_size, kLanes, x + c * panel + r * kLanes, kDepth);
      }
      for (std::int64_t c = 0; c < count; ++c) {
        prefetch(G, r0 + kDepth, kDepth, begin + c * chunk_columns, begin + (c + 1) * chunk_columns);
        kernels.gram(x + c * panel, block_size, depth, kDepth, sums + (first + c) * packed(block_size) * kLanes);
      }
    }
  });
}

template <class T>
void block_inverse(const Execution& exec, const BlockSource& F, std::int64_t group, T* out, std::int32_t* status) {
  check(F);
  const std::int64_t B = F.block_size;
  QUADRIC_REQUIRE(group >= 1 && B % group == 0, "group must divide block_size");
  const auto& kernels = linalg::detail::lane_kernels<double>();
  const std::int64_t groups = ceil_div(F.d, group), blocks = ceil_div(F.d, B);
  for_chunks(exec, F, packed(B) + 2 * B, [&](std::int64_t chunk, Chunk& factor, double* memory) {
    double *const inverse = memory, *const row = memory + packed(B) * kLanes, *const staging = row + B * kLanes;
    factor.load(chunk);
    factor.factor();
    factor.invert();
    report(F, chunk, factor.failed(), status);
    const std::int64_t first = chunk * kLanes, count = std::min(kLanes, blocks - first);
    if (group == B) {
      const double* const a = factor.whole(inverse);
      for (std::int64_t i = 0; i < B; ++i) {
        std::copy_n(a + packed(i) * kLanes, (i + 1) * kLanes, row);
        for (std::int64_t j = i + 1; j < B; ++j) std::copy_n(a + (packed(j) + i) * kLanes, kLanes, row + j * kLanes);
        void_failed(factor.failed(), row, B);
        kernels.store(row, 1, B, kLanes, staging, B);
        for (std::int64_t lane = 0; lane < count; ++lane) {
          const std::int64_t live = std::min(B, F.d - (first + lane) * B);
          T* const to = out + ((first + lane) * B + i) * B;
          for (std::int64_t j = 0; j < B; ++j)
            to[j] = i < live && j < live ? static_cast<T>(staging[lane * B + j]) : T(0);
        }
      }
      return;
    }
    for (std::int64_t q = 0; q < B / group; ++q) {
      factor.group(q * group, group, inverse);
      void_failed(factor.failed(), inverse, packed(group));
      for (std::int64_t lane = 0; lane < count; ++lane) {
        const std::int64_t which = (first + lane) * (B / group) + q;
        if (which >= groups) break;
        const std::int64_t live = std::min(group, F.d - which * group);
        T* const to = out + which * group * group;
        for (std::int64_t i = 0; i < group; ++i) {
          for (std::int64_t j = 0; j < group; ++j) {
            const double entry = inverse[(packed(std::max(i, j)) + std::min(i, j)) * kLanes + lane];
            to[i * group + j] = i < live && j < live ? static_cast<T>(entry) : T(0);
          }
        }
      }
    }
  });
}

template <class T>
void block_scores(const Execution& exec, const BlockSource& F, const T* w, std::int64_t group, T* out,
                  std::int32_t* status) {
  check(F);
  const std::int64_t B = F.block_size;
  QUADRIC_REQUIRE(group >= 1 && B % group == 0, "group must divide block_size");
  const auto& kernels = linalg::detail::lane_kernels<double>();
  const std::int64_t groups = ceil_div(F.d, group), blocks = ceil_div(F.d, B), p = padded(group);
  for_chunks(exec, F, B + packed(p) + 2 * p + B / group, [&](std::int64_t chunk, Chunk& factor, double* memory) {
    double *const weight = memory, *const inverse = weight + B * kLanes;
    double *const reciprocal = inverse + packed(p) * kLanes, *const y = reciprocal + p * kLanes;
    double* const scores = y + p * kLanes;
    factor.load(chunk);
    factor.lanes().load(w, chunk, weight);
    factor.factor();
    factor.invert();
    std::int32_t failed[kLanes];
    std::copy_n(factor.failed(), kLanes, failed);
    const std::int64_t first = chunk * kLanes, count = std::min(kLanes, blocks - first);
    for (std::int64_t q = 0; q < B / group; ++q) {
      factor.group(q * group, group, inverse);
      kernels.damp(inverse, group, 1.0, 0.0, inverse);  // pads it, no more
      std::int32_t group_failed[kLanes];
      std::fill_n(group_failed, kLanes, -1);
      kernels.cholesky(inverse, p, reciprocal, group_failed);
      std::copy_n(weight + q * group * kLanes, group * kLanes, y);
      kernels.forward(inverse, group, reciprocal, y);
      double* const score = scores + q * kLanes;
      std::fill_n(score, kLanes, 0.0);
      for (std::int64_t i = 0; i < group; ++i)
        for (std::int64_t lane = 0; lane < kLanes; ++lane)
          score[lane] += y[i * kLanes + lane] * y[i * kLanes + lane] / 2;
      for (std::int64_t lane = 0; lane < kLanes; ++lane)
        if (failed[lane] < 0 && group_failed[lane] >= 0)
          failed[lane] = static_cast<std::int32_t>(q * group) + group_failed[lane];
    }
    report(F, chunk, failed, status);
    void_failed(failed, scores, B / group);
    for (std::int64_t lane = 0; lane < count; ++lane) {
      for (std::int64_t q = 0; q < B / group; ++q) {
        const std::int64_t which = (first + lane) * (B / group) + q;
        if (which < groups) out[which] = static_cast<T>(scores[q * kLanes + lane]);
      }
    }
  });
}

template <class T>
void block_solve(const Execution& exec, const BlockSource& F, MatrixView<const T> V, MatrixView<T> out,
                 std::int32_t* status) {
  check(F);
  QUADRIC_REQUIRE(V.cols == F.d && V.col_stride == 1, "V must have d contiguous columns");
  QUADRIC_REQUIRE(out.rows == V.rows && out.cols == F.d && out.col_stride == 1, "out must have the shape of V");
  for_chunks(exec, F, F.block_size, [&](std::int64_t chunk, Chunk& factor, double* v) {
    factor.load(chunk);
    factor.factor();
    report(F, chunk, factor.failed(), status);
    for (std::int64_t k = 0; k < V.rows; ++k) {
      factor.lanes().load(V.data + k * V.row_stride, chunk, v);
      factor.solve(v);
      void_failed(factor.failed(), v, F.block_size);
      factor.lanes().store(v, chunk, out.data + k * out.row_stride);
    }
  });
}

template <class T>
void block_prune(const Execution& exec, const BlockSource& F, const T* w, const bool* mask, T* out, double* loss,
                 std::int32_t* status) {
  check(F);
  const std::int64_t B = F.block_size, blocks = ceil_div(F.d, B);
  for_chunks(exec, F, 4 * B, [&](std::int64_t chunk, Chunk& factor, double* memory) {
    double *const weight = memory, *const keep = weight + B * kLanes, *const gone = keep + B * kLanes;
    double* const z = gone + B * kLanes;
    factor.load(chunk);
    factor.lanes().load(w, chunk, weight);
    factor.lanes().load(mask, chunk, keep);
    for (std::int64_t i = 0; i < B * kLanes; ++i) gone[i] = (1 - keep[i]) * weight[i];
    double lost[kLanes];
    factor.prune(keep, gone, z, lost);
    report(F, chunk, factor.failed(), status);
    for (std::int64_t i = 0; i < B * kLanes; ++i) weight[i] = keep[i] != 0 ? weight[i] + z[i] : 0.0;
    void_failed(factor.failed(), weight, B);
    void_failed(factor.failed(), lost, 1);
    factor.lanes().store(weight, chunk, out);
    std::copy_n(lost, std::min(kLanes, blocks - chunk * kLanes), loss + chunk * kLanes);
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                                    \
  template QUADRIC_API void block_inverse(const Execution&, const BlockSource&, std::int64_t, T*, std::int32_t*); \
  template QUADRIC_API void block_scores(const Execution&, const BlockSource&, const T*, std::int64_t, T*,        \
                                         std::int32_t*);                                                          \
  template QUADRIC_API void block_solve(const Execution&, const BlockSource&, MatrixView<const T>, MatrixView<T>, \
                                        std::int32_t*);                                                           \
  template QUADRIC_API void block_prune(const Execution&, const BlockSource&, const T*, const bool*, T*, double*, \
                                        std::int32_t*);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::woodbury
