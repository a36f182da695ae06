// The sweep: kernels for blocks of columns, and products that bring the errors of the finished columns to the others.
//
// Floor: m n^2 flops, for 4096 x 4096 1.4 ms at 50 TFLOP/s, 0.28 ms where float32 is split (split.hpp). Products within
// a panel of 512 columns have depths of 128 and take 3/32 of these flops at about half the rate of float32; those that
// leave the panel have a depth of 512, which is worth the splitting. With 32 blocks of 40 us (block.cu), which leave
// the device half empty, this is 1.8 ms one after the other. So the chain of blocks runs on a stream of its own, ahead:
// of what leaves a panel it takes along only the next panel's part, and the rest follows on the caller's stream while
// the next panel is swept. That should reach 1.6 ms.
#include "quadric/cuda/sweep.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>

#include "require.hpp"
#include "sweep/arguments.hpp"
#include "sweep/kernels.hpp"
#include "sweep/launch.cuh"
#include "sweep/plan.hpp"
#include "sweep/split.hpp"

namespace quadric::cuda::sweep {
namespace {

// Rows and columns of a product, in the harmonic mean of two, from which on splitting pays: 14 bytes for each number
// of its operands against two thirds of the time of the product or more. Three more kernels want 10 us of products.
constexpr std::int64_t kSplitFrom = 256;
constexpr double kSplitFlops = 5e8;
constexpr std::size_t kBesideFrom = 5;  // panels, for which a second stream pays

template <class T>
void check(std::int64_t count, const MatrixView<const T>& W, bool identity, const std::int64_t* order,
           const SweepOptions& options, const SweepOutput<T>& output) {
  QUADRIC_REQUIRE(count >= 0 && (count > 0 ? W.rows % count == 0 : W.rows == 0), "W must have count m rows");
  QUADRIC_REQUIRE(W.cols <= std::numeric_limits<int>::max() && W.rows <= std::numeric_limits<int>::max() - 31,
                  "W must have fewer than 2^31 rows and columns");
  quadric::sweep::check_sweep(W, identity, order, options, output);
}

// A(n-1-i, n-1-j) = R_ij, column-major; a block of threads copies the columns i of one j.
template <class T>
__global__ void __launch_bounds__(256) reverse_factor(MatrixView<const T> R, T* a) {
  const std::int64_t n = R.rows, j = n - 1 - blockIdx.x;
  T* to = a + std::int64_t{blockIdx.x} * n;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x)
    to[n - 1 - i] = i <= j ? R.data[i * R.row_stride + j * R.col_stride] : T(0);
}

// The factor as the kernels want it, which is how `upper_factor` views what `cholesky` left behind.
template <class T>
const T* reversed(const Execution& exec, Scratch& scratch, const MatrixView<const T>& R) {
  const std::int64_t n = R.rows;
  if (R.row_stride == -1 && R.col_stride == -n) return R.data - (n * n - 1);
  T* a = scratch.get<T>(n * n);
  launch(exec, reverse_factor<T>, n, 256, 0, R, a);
  return a;
}

cublasStatus_t multiply(cublasHandle_t handle, int m, int n, int k, const float* a, int lda, const float* b, int ldb,
                        float beta, float* c, int ldc, long long stride_ac, long long stride_b, int count) {
  const float one = 1;
  if (count == 1) return cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &one, a, lda, b, ldb, &beta, c, ldc);
  return cublasSgemmStridedBatched(handle, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &one, a, lda, stride_ac, b, ldb, stride_b,
                                   &beta, c, ldc, stride_ac, count);
}
cublasStatus_t multiply(cublasHandle_t handle, int m, int n, int k, const double* a, int lda, const double* b, int ldb,
                        double beta, double* c, int ldc, long long stride_ac, long long stride_b, int count) {
  const double one = 1;
  if (count == 1) return cublasDgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &one, a, lda, b, ldb, &beta, c, ldc);
  return cublasDgemmStridedBatched(handle, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &one, a, lda, stride_ac, b, ldb, stride_b,
                                   &beta, c, ldc, stride_ac, count);
}

cublasStatus_t solve(cublasHandle_t handle, int m, int n, const float* a, int lda, float* x, int ldx) {
  const float one = 1;
  return cublasStrsm(handle, CUBLAS_SIDE_RIGHT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT, m, n, &one,
                     a, lda, x, ldx);
}
cublasStatus_t solve(cublasHandle_t handle, int m, int n, const double* a, int lda, double* x, int ldx) {
  const double one = 1;
  return cublasDtrsm(handle, CUBLAS_SIDE_RIGHT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT, m, n, &one,
                     a, lda, x, ldx);
}

// One call of `sweep` or `sweep_batch`.
template <class T>
class Sweep {
 public:
  Sweep(const Execution& exec, const Job<T>& job)
      : caller_(exec),
        job_(job),
        m_(job.weights.m),
        n_(job.weights.n),
        count_(job.weights.count),
        plan_(make_plan(n_, job.options)),
        scratch_(exec) {
    job_.grids_inside = plan_.grids_inside;
    job_.masks_inside = plan_.masks_inside;
    job_.rows = (m_ + 7) / 8 * 8;  // columns that begin at 32 bytes
    if (job_.a != nullptr) {
      job_.sums = scratch_.template get<T>(count_ * n_ * job_.rows);
      blas_ = blas(exec, scratch_);
      if (plan_.panels.size() > kBesideFrom) {
        beside_.emplace(exec);
        chain_blas_ = blas(*beside_, scratch_);
      } else {
        chain_blas_ = blas_;
      }
      get_parts();
    }
    std::int64_t widest = 0;  // of the ranges whose current weights are solved for
    if (!plan_.grids_inside)
      for (const Range& r : plan_.grids) widest = std::max(widest, r.begin > 0 ? r.end - r.begin : 0);
    if (!plan_.masks_inside) {
      std::int64_t columns = 0;
      for (const Range& r : plan_.masks) {
        columns = std::max(columns, r.end - r.begin);
        if (r.begin > 0 && !in_one_block(r)) widest = std::max(widest, r.end - r.begin);
      }
      scores_ = scratch_.template get<T>(count_ * columns * job_.rows);
      workspace_ = scratch_.template get<std::int64_t>(mask_workspace(count_, m_));
      kept_ = scratch_.template get<std::uint8_t>(count_ * columns * job_.rows);
    }
    if (feeds_back() && widest > 0) ahead_ = scratch_.template get<T>(count_ * widest * job_.rows);
    if (beside_) beside_->wait();  // for memory that comes in the order of the caller's stream
  }

  void run() {
    auto grids = plan_.grids.begin(), masks = plan_.masks.begin();
    std::size_t panel = 0;
    for (std::size_t k = 0; k + 1 < plan_.blocks.size(); ++k) {
      const std::int64_t begin = plan_.blocks[k], end = plan_.blocks[k + 1];
      if (begin == plan_.panels[panel + 1]) ++panel;
      const std::int64_t panel_end = plan_.panels[panel + 1];
      if (begin == plan_.panels[panel] && splits(panel)) split_factor(panel);
      if (!plan_.grids_inside && grids != plan_.grids.end() && grids->begin == begin) find_grids(*grids++);
      if (!plan_.masks_inside && masks != plan_.masks.end() && masks->begin == begin) find_mask(*masks++);
      task_.begin = begin;
      task_.width = static_cast<int>(end - begin);
      task_.keep_errors = job_.a != nullptr && end < n_;
      sweep_block(chain(), job_, task_);
      if (job_.a == nullptr) continue;
      if (end < panel_end)
        pass_on(chain_blas_, begin, end, end, panel_end);
      else if (end < n_)
        leave_panel(panel);
    }
  }

 private:
  bool feeds_back() const { return job_.options.feedback && job_.a != nullptr; }

  bool in_one_block(const Range& range) const {
    const auto next = std::upper_bound(plan_.blocks.begin(), plan_.blocks.end(), range.begin);
    return next != plan_.blocks.end() && range.end == *next;
  }

  // Column j of sums; columns up to it follow.
  T* sums(std::int64_t j) const { return job_.sums + (n_ - 1 - j) * job_.rows; }
  // R_ij; what is left of it and above it follows.
  const T* factor(std::int64_t i, std::int64_t j) const { return job_.a + (n_ - 1 - j) * n_ + (n_ - 1 - i); }

  // The stream that blocks come one after the other on.
  const Execution& chain() const { return beside_ ? beside_->exec() : caller_; }

  // The errors of a panel go to the next one at once and to the others on the side.
  void leave_panel(std::size_t panel) {
    const std::int64_t end = plan_.panels[panel + 1], next = beside_ ? plan_.panels[panel + 2] : n_;
    if (beside_) beside_->wait();  // for what the panels before have left to the next one, and for the factor's parts
    if (splits(panel)) split_errors(panel);
    if (beside_) beside_->mark();  // the errors are there
    leave(chain_blas_, panel, end, next);
    if (next == n_) return;
    beside_->let_caller_wait_for_mark();
    leave(blas_, panel, next, n_);
  }

  // To columns [begin, end), behind the panel.
  void leave(cublasHandle_t handle, std::size_t panel, std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<T, float>) {
      if (splits(panel)) {
        const Columns<std::uint16_t> R = factor_parts(panel);
        return multiply_parts(handle, count_, m_, end - begin, depth(panel), {errors_, job_.rows, errors_apart(panel)},
                              {R.data + (n_ - end) * R.ld, R.ld, R.stride}, panel == 0 ? 0.0F : 1.0F,
                              {sums(end - 1), job_.rows, n_ * job_.rows});
      }
    }
    pass_on(handle, plan_.panels[panel], plan_.panels[panel + 1], begin, end);
  }

  std::int64_t depth(std::size_t panel) const { return plan_.panels[panel + 1] - plan_.panels[panel]; }
  std::int64_t behind(std::size_t panel) const { return n_ - plan_.panels[panel + 1]; }

  // Whether what leaves the panel is worth the splitting of its operands.
  bool splits(std::size_t panel) const {
    const std::int64_t columns = behind(panel);
    return std::is_same_v<T, float> && job_.a != nullptr && depth(panel) <= kMostPanel &&
           m_ * columns > kSplitFrom * (m_ + columns) &&
           2.0 * static_cast<double>(count_ * m_ * columns * depth(panel)) > kSplitFlops;
  }

  std::int64_t errors_apart(std::size_t panel) const { return kSegments * depth(panel) * job_.rows; }

  // The parts of the factor right of the panel: columns as in `a`, from the last one on. The caller's stream makes
  // those of a panel while the chain may still read those of the one before.
  Columns<std::uint16_t> factor_parts(std::size_t panel) const {
    const std::int64_t ld = (kSegments * depth(panel) + 7) / 8 * 8;
    return {factor_[panel % 2], ld, ld * behind(panel)};
  }

  void get_parts() {
    std::int64_t errors = 0, deepest = 0, factor[2] = {};
    for (std::size_t panel = 0; panel + 2 < plan_.panels.size(); ++panel) {
      if (!splits(panel)) continue;
      errors = std::max(errors, errors_apart(panel));
      deepest = std::max(deepest, depth(panel));
      factor[panel % 2] = std::max(factor[panel % 2], factor_parts(panel).stride);
    }
    if (errors > 0) {
      errors_ = scratch_.template get<std::uint16_t>(count_ * errors);
      up_ = scratch_.template get<float>(count_ * job_.rows);
    }
    for (int i = 0; i < 2; ++i) {
      if (factor[i] == 0) continue;
      factor_[i] = scratch_.template get<std::uint16_t>(count_ * factor[i]);
      largest_[i] = scratch_.template get<std::uint32_t>(count_ * deepest);
    }
  }

  void split_factor(std::size_t panel) {
    if constexpr (std::is_same_v<T, float>)
      split_right(caller_, count_, behind(panel), depth(panel),
                  {factor(plan_.panels[panel + 1] - 1, n_ - 1), n_, n_ * n_}, largest_[panel % 2], factor_parts(panel));
  }

  // From here on rows of sums may be scaled. Nobody else works on columns behind the panel now; those of the first one
  // are not set yet.
  void split_errors(std::size_t panel) {
    const std::int64_t end = plan_.panels[panel + 1], apart = n_ * job_.rows;
    if constexpr (std::is_same_v<T, float>)
      split_left(chain(), count_, m_, depth(panel), {sums(end - 1), job_.rows, apart}, largest_[panel % 2],
                 job_.up == nullptr, up_, job_.rows, {{sums(n_ - 1), job_.rows, apart}, panel == 0 ? 0 : behind(panel)},
                 {errors_, job_.rows, errors_apart(panel)});
    job_.up = up_;
  }

  // C of columns [begin, end) += D R of columns [from, to). The first products of all set C.
  void pass_on(cublasHandle_t handle, std::int64_t from, std::int64_t to, std::int64_t begin, std::int64_t end) {
    QUADRIC_CUDA(multiply(handle, int_of(m_), int_of(end - begin), int_of(to - from), sums(to - 1), int_of(job_.rows),
                          factor(to - 1, end - 1), int_of(n_), from == 0 ? T(0) : T(1), sums(end - 1),
                          int_of(job_.rows), n_ * job_.rows, n_ * n_, int_of(count_)));
  }

  // What C means for the weights of a range: C R^-1, in reversed order.
  Shift<T> shift(const Range& range) {
    Shift<T> result;
    if (!feeds_back() || range.begin == 0) return result;
    const std::int64_t size = (range.end - range.begin) * job_.rows;
    for (std::int64_t i = 0; i < count_; ++i) {
      T* x = ahead_ + i * size;
      QUADRIC_CUDA(cudaMemcpyAsync(x, sums(range.end - 1) + i * n_ * job_.rows,
                                   static_cast<std::size_t>(size) * sizeof(T), cudaMemcpyDeviceToDevice,
                                   stream(chain())));
      QUADRIC_CUDA(solve(chain_blas_, int_of(m_), int_of(range.end - range.begin),
                         factor(range.end - 1, range.end - 1) + i * n_ * n_, int_of(n_), x, int_of(job_.rows)));
    }
    if constexpr (std::is_same_v<T, float>)
      if (job_.up != nullptr) unscale_rows(chain(), count_, range.end - range.begin, m_, job_.rows, job_.up, ahead_);
    result.data = ahead_;
    result.end = range.end;
    result.rows = job_.rows;
    result.matrix = size;
    return result;
  }

  void find_grids(const Range& range) {
    const SweepOptions& options = job_.options;
    group_grids(chain(), job_.weights, shift(range), options.grid, options.group_size,
                first_group(options, range.begin), last_group(options, range.begin, n_), job_.scales, job_.zeros,
                job_.groups);
  }

  void find_mask(const Range& range) {
    const std::int64_t columns = range.end - range.begin;
    if (in_one_block(range)) {
      BlockTask<T> task;
      task.begin = range.begin;
      task.width = static_cast<int>(columns);
      task.scores = scores_;
      sweep_block(chain(), job_, task);
    } else {
      range_scores(chain(), job_.weights, shift(range), feeds_back() ? job_.a : nullptr, range.begin, range.end,
                   job_.rows, scores_);
    }
    const bool together = all_rows(job_.options);
    const std::int64_t pruned = pruned_in(job_.options, range, together ? m_ : 1);
    if (together)
      mask_all_rows(chain(), scores_, count_, columns, m_, job_.rows, pruned, workspace_, kept_);
    else
      mask_each_row(chain(), scores_, count_, columns, m_, job_.rows, pruned, kept_);
    task_.kept = kept_;
    task_.kept_begin = range.begin;
    task_.kept_matrix = columns * job_.rows;
  }

  static int int_of(std::int64_t x) { return static_cast<int>(x); }

  const Execution& caller_;
  Job<T> job_;
  std::int64_t m_, n_, count_;
  Plan plan_;
  Scratch scratch_;
  std::optional<Beside> beside_;  // ends before its memory does
  cublasHandle_t blas_ = nullptr, chain_blas_ = nullptr;
  std::uint16_t* errors_ = nullptr;  // parts of the errors of a panel
  std::uint16_t* factor_[2] = {};    // of the factor, by turns
  std::uint32_t* largest_[2] = {};   // entries of its rows
  float* up_ = nullptr;              // scales of the rows of sums, from the first splitting on
  BlockTask<T> task_;
  T* scores_ = nullptr;
  std::uint8_t* kept_ = nullptr;
  std::int64_t* workspace_ = nullptr;
  T* ahead_ = nullptr;
};

template <class T>
void run(const Execution& exec, std::int64_t count, const MatrixView<const T>& W, const T* a, const std::int64_t* order,
         const bool* dead, const SweepOptions& options, const SweepOutput<T>& output) {
  Job<T> job;
  job.weights.data = W.data;
  job.weights.row_stride = W.row_stride;
  job.weights.col_stride = W.col_stride;
  job.weights.m = W.rows / count;
  job.weights.n = W.cols;
  job.weights.count = count;
  job.weights.order = order;
  job.weights.dead = dead;
  job.options = options;
  for (std::int64_t* period : {&job.options.group_size, &job.options.stale_block, &job.options.mask_block})
    *period = std::min(*period, W.cols);
  job.a = options.feedback || output.loss != nullptr ? a : nullptr;
  job.codes = output.codes.data;
  job.scales = output.scales.data;
  job.zeros = output.zeros.data;
  job.values = output.weights.data;
  job.mask = output.mask.data;
  job.loss = output.loss;
  job.groups = output.scales.cols;
  Sweep<T>(exec, job).run();
}

// Whether there is nothing to do but the loss of empty rows.
template <class T>
bool done(const Execution& exec, const MatrixView<const T>& W, const SweepOutput<T>& output) {
  if (!W.empty()) return false;
  if (W.rows > 0 && output.loss != nullptr)
    QUADRIC_CUDA(cudaMemsetAsync(output.loss, 0, static_cast<std::size_t>(W.rows) * sizeof *output.loss, stream(exec)));
  return true;
}

}  // namespace

template <class T>
void sweep(const Execution& exec, MatrixView<const T> W, const Factor<T>& factor, const SweepOptions& options,
           const SweepOutput<T>& output) {
  QUADRIC_REQUIRE(factor.R.empty() || (factor.R.rows == W.cols && factor.R.cols == W.cols),
                  "factor.R must be n x n, n the columns of W");
  check(1, W, factor.R.empty(), factor.order, options, output);
  if (done(exec, W, output)) return;
  Scratch scratch(exec);
  const bool needed = !factor.R.empty() && (options.feedback || output.loss != nullptr);
  const T* a = needed ? reversed(exec, scratch, factor.R) : nullptr;
  run(exec, 1, W, a, factor.order, factor.dead, options, output);
}

template <class T>
void sweep_batch(const Execution& exec, std::int64_t count, MatrixView<const T> W, const T* A,
                 const std::int64_t* order, const bool* dead, const SweepOptions& options,
                 const SweepOutput<T>& output) {
  check(count, W, A == nullptr, order, options, output);
  if (done(exec, W, output)) return;
  run(exec, count, W, A, order, dead, options, output);
}

#define QUADRIC_INSTANTIATE(T)                                                                                  \
  template QUADRIC_API void sweep(const Execution&, MatrixView<const T>, const Factor<T>&, const SweepOptions&, \
                                  const SweepOutput<T>&);                                                       \
  template QUADRIC_API void sweep_batch(const Execution&, std::int64_t, MatrixView<const T>, const T*,          \
                                        const std::int64_t*, const bool*, const SweepOptions&, const SweepOutput<T>&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::sweep
