// What is asked of F^-1, block by block: a team of warps factors the B x B matrix F_b of a block, or the m x m matrix
// m lambda I + X_b X_b^T where there are few rows, in shared memory, and answers from there. Nothing is kept.
//
// Bytes: the sums (or the rows) and the results once. Flops: B^3 / 3 for the factor, as much again for each of its
// inverse and the product of that with itself, at 60 TFLOP/s of the tensor cores. d = 4 M, B = 50: 0.8 GB of sums and
// 0.8 GB of a whole inverse in float32, 0.4 ms; 1e10 flops, 0.2 ms. To be reached: 2 ms, as a pivot must wait for the
// one before; what hides that are the 20 or more warps of a multiprocessor, whose number shared memory limits.
//
// Matrices that do not fit there (B > 220 or so, or the larger of rows and factors) stay in L2, in scratch.
#include <algorithm>

#include "quadric/cuda/woodbury.hpp"
#include "require.hpp"
#include "woodbury/block.cuh"

namespace quadric::cuda::woodbury {
namespace {

constexpr std::int64_t kLargest = 256;

template <class T>
struct InverseTask {
  std::int64_t group;
  T* out;
  std::int32_t* status;

  static int vectors(int) { return 0; }
  static int extra(const Problem&) { return 0; }

  template <int W>
  __device__ void operator()(Block<W>& block) const {
    const Problem& p = block.p;
    block.load();
    block.factorize();
    block.inverse();
    if (block.team.thread == 0) status[block.b] = block.failed;
    const bool good = block.failed < 0;
    const int live = block.live();
    if (group == p.B) {
      T* const to = out + block.b * p.B * p.B;
      block.product([&](int i, int j, double entry) {
        const T value = static_cast<T>(i >= live ? 0.0 : good ? entry : not_a_number());
        to[i * p.B + j] = value;
        to[j * p.B + i] = value;
      });
      return;
    }
    const int g = static_cast<int>(group);
    T* const to = out + block.b * p.B * g;
    for (int e = block.team.thread; e < p.B * g; e += Team<W>::kThreads) {
      const int i = e / g, first = i / g * g, j = first + e % g;
      if (j > i || first >= live) continue;  // groups beyond d do not exist
      const T value = static_cast<T>(i >= live ? 0.0 : good ? block.inverse_entry(i, j) : not_a_number());
      to[i * g + (j - first)] = value;
      to[j * g + (i - first)] = value;
    }
  }
};

template <class T>
struct ScoresTask {
  const T* w;
  std::int64_t group;
  T* out;
  std::int32_t* status;

  static constexpr int kSmall = 8;  // groups up to here have a thread of their own

  static int vectors(int) { return 1; }
  int extra(const Problem& p) const {
    const int g = static_cast<int>(group);
    return g <= kSmall ? p.B * (g + 1) : kTileSize * triangle((g + 7) / 8) + p.B / g;
  }

  template <int W>
  __device__ void operator()(Block<W>& block) const {
    const Problem& p = block.p;
    const Team<W>& team = block.team;
    const int g = static_cast<int>(group), groups = p.B / g, live = block.live();
    block.load();
    block.factorize();
    block.inverse();
    if (g <= kSmall)
      small(block, g);
    else
      large(block, g);
    // Scores lie at extra() + B g or behind the tiles; those of a block that failed are NaN.
    const double* const scores = block.extra() + (g <= kSmall ? p.B * g : kTileSize * triangle((g + 7) / 8));
    if (team.thread == 0) status[block.b] = block.failed;
    for (int q = team.thread; q < groups; q += Team<W>::kThreads)
      if (q * g < live) out[block.b * groups + q] = static_cast<T>(block.failed < 0 ? scores[q] : not_a_number());
  }

  __device__ double weight(const Problem& p, std::int64_t begin, int live, int i) const {
    return i < live ? static_cast<double>(w[begin + i]) : 0.0;
  }

  // All groups at once: their inverses cooperatively, then one thread for each.
  template <int W>
  __device__ void small(Block<W>& block, int g) const {
    const Problem& p = block.p;
    const Team<W>& team = block.team;
    double *const inverses = block.extra(), *const scores = inverses + p.B * g;
    for (int e = team.thread; e < p.B * g; e += Team<W>::kThreads) {
      const int i = e / g, j = i / g * g + e % g;
      if (j <= i) inverses[e] = block.inverse_entry(i, j);
    }
    int* const failures = reinterpret_cast<int*>(block.vector(0));  // one for each group
    team.sync();
    for (int q = team.thread; q < p.B / g; q += Team<W>::kThreads) {
      double* const a = inverses + q * g * g;
      double score = 0;
      int failed = -1;
      for (int i = 0; i < g; ++i) {  // on the way y = L^-1 w, in the last column, which is free above the diagonal
        double y = weight(p, block.begin(), block.live(), q * g + i);
        for (int j = 0; j < i; ++j) {
          double entry = a[i * g + j];
          for (int k = 0; k < j; ++k) entry -= a[i * g + k] * a[j * g + k];
          a[i * g + j] = entry * a[j * g + j];  // reciprocals on the diagonal
        }
        double pivot = a[i * g + i];
        for (int k = 0; k < i; ++k) {
          pivot -= a[i * g + k] * a[i * g + k];
          y -= a[i * g + k] * a[k * g + g - 1];
        }
        if (!(pivot > 0 && pivot <= DBL_MAX)) {
          if (failed < 0) failed = i;
          pivot = 1;
        }
        const double reciprocal = rsqrt(pivot);
        a[i * g + i] = reciprocal;
        y *= reciprocal;
        if (i + 1 < g) a[i * g + g - 1] = y;
        score += y * y / 2;
      }
      scores[q] = score;
      failures[q] = failed;
    }
    team.sync();
    for (int q = 0; q < p.B / g && block.failed < 0; ++q)
      if (failures[q] >= 0) block.failed = q * g + failures[q];
  }

  // One group after another by the whole team.
  template <int W>
  __device__ void large(Block<W>& block, int g) const {
    const Problem& p = block.p;
    const Team<W>& team = block.team;
    const int n = (g + 7) / 8;
    double *const a = block.extra(), *const scores = a + kTileSize * triangle(n), *const y = block.vector(0);
    for (int q = 0; q < p.B / g; ++q) {
      for (int e = team.thread; e < 64 * n * n; e += Team<W>::kThreads) {
        const int i = e / (8 * n), j = e % (8 * n);
        if (j > i && j / 8 > i / 8) continue;
        double value = i == j ? 1.0 : 0.0;
        if (i < g && j <= i) value = block.inverse_entry(q * g + i, q * g + j);
        a[lower(i / 8, j / 8) + i % 8 * 8 + j % 8] = value;
      }
      for (int i = team.thread; i < 8 * n; i += Team<W>::kThreads)
        y[i] = i < g ? weight(p, block.begin(), block.live(), q * g + i) : 0.0;
      team.sync();
      const int failed = factor(team, a, n);
      if (block.failed < 0 && failed >= 0) block.failed = q * g + failed;
      if (team.warp == 0) {
        forward(a, n, y, team.lane);
        const double score = block.dot(y, y, g) / 2;
        if (team.lane == 0) scores[q] = score;
      }
      team.sync();
    }
  }
};

template <class T>
struct SolveTask {
  const T* V;
  T* out;
  std::int64_t count, stride, out_stride;
  std::int32_t* status;

  static int vectors(int warps) { return 2 * warps; }
  static int extra(const Problem&) { return 0; }

  template <int W>
  __device__ void operator()(Block<W>& block) const {
    const Team<W>& team = block.team;
    block.load();
    block.factorize();
    if (team.thread == 0) status[block.b] = block.failed;
    const int live = block.live();
    double *const v = block.vector(2 * team.warp), *const s = block.vector(2 * team.warp + 1);
    for (std::int64_t k = team.warp; k < count; k += W) {
      for (int i = team.lane; i < 8 * block.weights; i += 32)
        v[i] = i < live ? static_cast<double>(V[k * stride + block.begin() + i]) : 0.0;
      __syncwarp();
      block.solve(v, s);
      for (int i = team.lane; i < live; i += 32)
        out[k * out_stride + block.begin() + i] = static_cast<T>(block.failed < 0 ? v[i] : not_a_number());
      __syncwarp();
    }
  }
};

template <class T>
struct PruneTask {
  const T* w;
  const bool* mask;
  T* out;
  double* loss;
  std::int32_t* status;

  static int vectors(int) { return 5; }
  static int extra(const Problem&) { return 0; }

  template <int W>
  __device__ void operator()(Block<W>& block) const {
    const Team<W>& team = block.team;
    const int n = 8 * block.weights, live = block.live();
    double *const keep = block.vector(0), *const gone = block.vector(1), *const z = block.vector(2);
    block.load();
    for (int i = team.thread; i < n; i += Team<W>::kThreads) {
      const double kept = i < live && mask[block.begin() + i] ? 1.0 : 0.0;
      keep[i] = kept;
      gone[i] = i < live ? (1 - kept) * static_cast<double>(w[block.begin() + i]) : 0.0;
    }
    team.sync();
    const double lost = block.primal() ? primal(block, keep, gone, z) : dual(block, keep, gone, z);
    const bool good = block.failed < 0;
    if (team.thread == 0) {
      status[block.b] = block.failed;
      loss[block.b] = good ? lost : not_a_number();
    }
    for (int i = team.thread; i < live; i += Team<W>::kThreads) {
      const double moved = keep[i] != 0 ? static_cast<double>(w[block.begin() + i]) + z[i] : 0.0;
      out[block.begin() + i] = static_cast<T>(good ? moved : not_a_number());
    }
  }

  // z = F_SS^-1 F_SP w_P, and dw^T F dw / 2 in thread 0.
  template <int W>
  __device__ double primal(Block<W>& block, const double* keep, const double* gone, double* z) const {
    const Team<W>& team = block.team;
    const int n = 8 * block.weights;
    double *const a = block.factored(), *const right = block.vector(3);
    const auto entry = [a](int i, int j) -> double& { return a[lower(i / 8, j / 8) + i % 8 * 8 + j % 8]; };
    for (int i = team.thread; i < n; i += Team<W>::kThreads) {
      double sum = 0;
      for (int j = 0; j <= i; ++j) sum += entry(i, j) * gone[j];
      for (int j = i + 1; j < n; ++j) sum += entry(j, i) * gone[j];
      z[i] = sum;
    }
    team.sync();
    double lost = 0;
    if (team.warp == 0) lost = block.dot(gone, z, n);
    team.sync();
    for (int i = team.thread; i < n; i += Team<W>::kThreads) right[i] = z[i] *= keep[i];
    for (int i = team.thread / 8; i < n; i += Team<W>::kThreads / 8) {  // rows of what is pruned become the identity's
      for (int j = team.thread % 8; j <= i; j += 8) {
        double& e = entry(i, j);
        e = i == j ? e * keep[i] + (1 - keep[i]) : e * (keep[i] * keep[j]);
      }
    }
    team.sync();
    block.factorize();
    if (team.warp == 0) {
      block.solve_factored(z);
      lost = (lost - block.dot(right, z, n)) / 2;
    }
    team.sync();
    return lost;
  }

  template <int W>
  __device__ double dual(Block<W>& block, const double* keep, const double* gone, double* z) const {
    const Team<W>& team = block.team;
    const int n = 8 * block.weights, m = 8 * block.rows;
    double *const u = block.vector(3), *const t = block.vector(4);  // X_P w_P, (m lambda I + X_S X_S^T)^-1 u
    block.multiply(gone, u, team.thread, Team<W>::kThreads);
    team.sync();
    for (int e = team.thread; e < m * n; e += Team<W>::kThreads) block.entry(e / n, e % n) *= keep[e % n];
    team.sync();
    block.factorize();
    double lost = 0;
    if (team.warp == 0) {
      for (int i = team.lane; i < m; i += 32) t[i] = u[i];
      __syncwarp();
      block.solve_factored(t);
      lost = (block.dot(gone, gone, n) + block.dot(u, t, m)) / (2 * block.p.inverse_damping);
    }
    team.sync();
    block.multiply_transposed(t, z, team.thread, Team<W>::kThreads);
    team.sync();
    return lost;
  }
};

// Teams take blocks in turn. A block of threads has eight teams of one warp, so that they read whole lines of the
// interleaved sums, or one larger team.
template <int W>
constexpr int kTeams = W == 1 ? 8 : 1;

template <int W, bool Shared, class Task>
__global__ void __launch_bounds__(32 * W * kTeams<W>) blocks_kernel(Problem p, Task task, double* scratch) {
  Team<W> team;
  const int index = W == 1 ? threadIdx.x / 32 : 0;
  team.thread = W == 1 ? threadIdx.x % 32 : threadIdx.x;
  team.warp = team.thread / 32;
  team.lane = team.thread % 32;
  double* memory;
  if constexpr (Shared)
    memory = reinterpret_cast<double*>(dynamic_shared()) + index * p.at.total;
  else
    memory = scratch + static_cast<std::int64_t>(blockIdx.x) * p.at.total;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kTeams<W>;
  for (std::int64_t b = static_cast<std::int64_t>(blockIdx.x) * kTeams<W> + index; b < p.blocks; b += step) {
    Block<W> block(p, team, memory, b);
    task(block);
    team.sync();  // before the next one takes its memory
  }
}

// How the memory of a team of `warps` is laid out; everything begins on a multiple of 16 bytes.
template <class Task>
Layout layout(const Problem& p, const Task& task, int warps) {
  const int weights = (p.B + 7) / 8, rows = (p.m + 7) / 8;
  Layout at;
  at.vector = 8 * std::max(weights, rows);
  at.rows = kTileSize * triangle(p.m == 0 ? weights : rows);
  at.vectors = at.rows + kTileSize * rows * weights;
  at.extra = at.vectors + task.vectors(warps) * at.vector;
  at.total = (at.extra + task.extra(p) + 1) / 2 * 2;
  return at;
}

template <int W, class Task>
void run_shared(const Execution& exec, const Problem& p, const Task& task) {
  constexpr std::int64_t kGrid = 1 << 30;
  launch(blocks_kernel<W, true, Task>, std::min(kGrid, (p.blocks + kTeams<W> - 1) / kTeams<W>), 32 * W * kTeams<W>,
         static_cast<std::size_t>(p.at.total) * kTeams<W> * sizeof(double), stream(exec), p, task,
         static_cast<double*>(nullptr));
}

template <class Task>
void run(const Execution& exec, Problem p, const Task& task) {
  if (p.blocks == 0) return;
  const int tiles = (std::max(p.B, p.m) + 7) / 8;
  const int warps = tiles <= 4 ? 1 : tiles <= 8 ? 2 : tiles <= 16 ? 4 : 8;
  p.at = layout(p, task, warps);
  const std::int64_t bytes = static_cast<std::int64_t>(p.at.total) * (warps == 1 ? kTeams<1> : 1) * 8;
  if (bytes <= shared_limit()) {
    switch (warps) {
      case 1:
        return run_shared<1>(exec, p, task);
      case 2:
        return run_shared<2>(exec, p, task);
      case 4:
        return run_shared<4>(exec, p, task);
      default:
        return run_shared<8>(exec, p, task);
    }
  }
  p.at = layout(p, task, 8);
  const std::int64_t grid = std::min<std::int64_t>(p.blocks, 2 * multiprocessors());
  Scratch scratch(exec);
  launch(blocks_kernel<8, false, Task>, grid, 256, 0, stream(exec), p, task, scratch.get<double>(grid * p.at.total));
}

Problem problem(const BlockSource& F) {
  QUADRIC_REQUIRE(F.block_size >= 1 && F.block_size <= kLargest, "block_size must lie between 1 and 256");
  QUADRIC_REQUIRE((F.sums == nullptr) != (F.rows.data == nullptr), "F must have sums or rows, not both");
  QUADRIC_REQUIRE(F.count >= 1, "count must be at least 1");
  QUADRIC_REQUIRE(F.sums != nullptr || (F.rows.rows == F.count && F.rows.cols == F.d && F.count <= kLargest),
                  "rows must be count x d, count at most 256");
  QUADRIC_REQUIRE(F.damping > 0, "damping must be positive");
  const auto count = static_cast<double>(F.count);
  Problem p{};
  p.sums = F.sums;
  p.data = F.rows.data;
  p.storage = F.rows.storage;
  p.row_stride = F.rows.row_stride;
  p.B = static_cast<int>(F.block_size);
  p.m = F.sums != nullptr ? 0 : static_cast<int>(F.count);
  p.d = F.d;
  p.blocks = (F.d + F.block_size - 1) / F.block_size;
  p.shift = F.sums != nullptr ? F.damping : count * F.damping;
  p.scale = 1 / count;
  p.inverse_damping = 1 / F.damping;
  return p;
}

}  // namespace

template <class T>
void block_inverse(const Execution& exec, const BlockSource& F, std::int64_t group, T* out, std::int32_t* status) {
  const Problem p = problem(F);
  QUADRIC_REQUIRE(group >= 1 && F.block_size % group == 0, "group must divide block_size");
  run(exec, p, InverseTask<T>{group, out, status});
}

template <class T>
void block_scores(const Execution& exec, const BlockSource& F, const T* w, std::int64_t group, T* out,
                  std::int32_t* status) {
  const Problem p = problem(F);
  QUADRIC_REQUIRE(group >= 1 && F.block_size % group == 0, "group must divide block_size");
  run(exec, p, ScoresTask<T>{w, group, out, status});
}

template <class T>
void block_solve(const Execution& exec, const BlockSource& F, MatrixView<const T> V, MatrixView<T> out,
                 std::int32_t* status) {
  const Problem p = problem(F);
  QUADRIC_REQUIRE(V.cols == F.d && V.col_stride == 1, "V must have d contiguous columns");
  QUADRIC_REQUIRE(out.rows == V.rows && out.cols == F.d && out.col_stride == 1, "out must have the shape of V");
  run(exec, p, SolveTask<T>{V.data, out.data, V.rows, V.row_stride, out.row_stride, status});
}

template <class T>
void block_prune(const Execution& exec, const BlockSource& F, const T* w, const bool* mask, T* out, double* loss,
                 std::int32_t* status) {
  run(exec, problem(F), PruneTask<T>{w, mask, out, loss, status});
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

}  // namespace quadric::cuda::woodbury
