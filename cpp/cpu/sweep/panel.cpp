// The panel kernels, compiled once per instruction set: QUADRIC_LEVEL names the namespace, QUADRIC_VECTOR_BYTES the
// register width, QUADRIC_TILE_COLUMNS how many columns of R fit beside it. See panel.hpp for the rules of this file:
// no header here may bring inline functions that the rest of the library uses too.
#include "sweep/panel.hpp"

#include "sweep/panel_grid.hpp"
#include "vectors.hpp"

namespace quadric::sweep::detail::QUADRIC_LEVEL {
namespace {

constexpr std::int64_t kChunk = 8;    // columns that are finished together
constexpr std::int64_t kDepth = 512;  // rows of D per pass of a block product: 96 KiB, half an L2 cache of 256 KiB

// ---- products ------------------------------------------------------------------------------------------------------

// C (columns x rows) += sum_k D_k R_kc for one tile of NC columns.
// Registers: NC x MV accumulators, MV of D, one broadcast entry of R.
template <class T, int NC, int MV>
inline void multiply_tile(std::int64_t depth, const T* d, const T* r, std::int64_t r_row, std::int64_t r_col, T* c) {
  for (int row = 0; row < kRows<T>; row += MV * kLanes<T>) {
    V<T> sum[NC][MV];
    for (int j = 0; j < NC; ++j)
      for (int v = 0; v < MV; ++v) sum[j][v] = vec(c + j * kRows<T> + row + v * kLanes<T>);
    const T* dk = d + row;
    const T* rk = r;
    for (std::int64_t k = 0; k < depth; ++k) {
      V<T> dv[MV];
      for (int v = 0; v < MV; ++v) dv[v] = vec(dk + v * kLanes<T>);
#pragma GCC unroll 8
      for (int j = 0; j < NC; ++j) {
        const T rkj = rk[j * r_col];
        for (int v = 0; v < MV; ++v) sum[j][v] += dv[v] * rkj;
      }
      dk += kRows<T>;
      rk += r_row;
    }
    for (int j = 0; j < NC; ++j)
      for (int v = 0; v < MV; ++v) vec(c + j * kRows<T> + row + v * kLanes<T>) = sum[j][v];
  }
}

// C_j += sum_{from <= i < to} D_i R_ij for columns [begin, end); `c` is C_begin.
template <class T>
void multiply(const Job<T>& job, const T* error, std::int64_t from, std::int64_t to, std::int64_t begin,
              std::int64_t end, T* c) {
  constexpr int MV = kVectors<T> < 3 ? kVectors<T> : 3;
  for (std::int64_t k = from; k < to; k += kDepth) {
    const std::int64_t depth = smaller(kDepth, to - k);
    const T* d = error + k * kRows<T>;
    std::int64_t j = begin;
    const auto tile = [&](auto kernel, std::int64_t columns) {
      for (; end - j >= columns; j += columns)
        kernel(depth, d, job.r + k * job.r_row + j * job.r_col, job.r_row, job.r_col, c + (j - begin) * kRows<T>);
    };
    tile(multiply_tile<T, QUADRIC_TILE_COLUMNS, MV>, QUADRIC_TILE_COLUMNS);
    tile(multiply_tile<T, 2, MV>, 2);
    tile(multiply_tile<T, 1, MV>, 1);
  }
}

// ---- panels --------------------------------------------------------------------------------------------------------

template <class T>
inline std::int64_t rows_of(const Job<T>& job, std::int64_t panel) {
  return smaller(kRows<T>, job.m - panel * kRows<T>);
}

// W of columns [begin, end), transposed; rows past the end and dead inputs are 0.
template <class T>
void load_weights(const Job<T>& job, std::int64_t panel, std::int64_t begin, std::int64_t end, T* to) {
  const std::int64_t rows = rows_of(job, panel);
  for (std::int64_t i = 0; i < kRows<T>; ++i) {
    const T* w = job.w + (panel * kRows<T> + i) * job.w_row;
    for (std::int64_t j = begin; j < end; ++j) {
      const std::int64_t column = job.order ? job.order[j] : j;
      const bool live = i < rows && !(job.dead && job.dead[column]);
      to[(j - begin) * kRows<T> + i] = live ? w[column * job.w_col] : T(0);
    }
  }
}

template <class T, class From, class To>
void store(const Job<T>& job, std::int64_t panel, std::int64_t begin, std::int64_t end, const From* from, To* to) {
  const std::int64_t rows = rows_of(job, panel);
  for (std::int64_t i = 0; i < rows; ++i) {
    To* row = to + (panel * kRows<T> + i) * job.n;
    for (std::int64_t j = begin; j < end; ++j) row[job.order[j]] = static_cast<To>(from[(j - begin) * kRows<T> + i]);
  }
}

template <class T>
void store_grid(const Job<T>& job, std::int64_t panel, std::int64_t group, const T* scale, const T* zero) {
  for (std::int64_t i = 0; i < rows_of(job, panel); ++i) {
    const std::int64_t at = (panel * kRows<T> + i) * job.groups + group;
    job.scales[at] = scale[i];
    job.zeros[at] = static_cast<std::uint8_t>(zero[i]);
  }
}

template <class T>
void load_grid(const Job<T>& job, std::int64_t panel, std::int64_t group, T* scale, T* zero) {
  const std::int64_t rows = rows_of(job, panel);
  for (std::int64_t i = 0; i < kRows<T>; ++i) {
    const std::int64_t at = (panel * kRows<T> + i) * job.groups + group;
    scale[i] = i < rows ? job.scales[at] : T(1);
    zero[i] = i < rows ? T(job.zeros[at]) : T(0);
  }
}

template <class T>
void begin_block(const Job<T>& job, Panel<T>& p, std::int64_t panel, std::int64_t begin, std::int64_t end) {
  if (begin == 0) {
    for (int i = 0; i < kRows<T>; ++i) p.loss[i] = 0.0;
    p.loaded_group = -1;
  }
  load_weights(job, panel, begin, end, p.weight);
  for (std::int64_t i = 0; i < (end - begin) * kRows<T>; ++i) p.base[i] = T(0);
  if (job.mask)  // stays so where nothing is pruned
    for (std::int64_t i = 0; i < (end - begin) * kRows<T>; ++i) p.kept[i] = T(1);
  if (job.r) multiply(job, p.error, 0, begin, begin, end, p.base);
}

// C_j for columns [from, to) of the block that starts at `begin`, complete up to column `from`.
template <class T>
inline void load_chunk(const Job<T>& job, Panel<T>& p, std::int64_t begin, std::int64_t from, std::int64_t to) {
  copy(p.chunk, p.base + (from - begin) * kRows<T>, (to - from) * kRows<T>);
  if (job.r) multiply(job, p.error, begin, from, from, to, p.chunk);
}

// C_l += D_j R_jl for the columns l > j of the chunk [from, to).
template <class T>
inline void pass_on(const Job<T>& job, Panel<T>& p, std::int64_t from, std::int64_t to, std::int64_t j) {
  const T* d = p.error + j * kRows<T>;
  const T* r = job.r + j * job.r_row;
  for (std::int64_t l = j + 1; l < to; ++l)
    for (int i = 0; i < kRows<T>; i += kLanes<T>)
      vec(p.chunk + (l - from) * kRows<T> + i) += vec(d + i) * r[l * job.r_col];
}

// The current weights of columns [from, to): the sweep with nothing rounded, so that D_j = -C_j / R_jj.
template <class T>
void look_ahead(const Job<T>& job, Panel<T>& p, std::int64_t begin, std::int64_t from, std::int64_t to) {
  if (!job.feedback) {
    copy(p.current + (from - begin) * kRows<T>, p.weight + (from - begin) * kRows<T>, (to - from) * kRows<T>);
    return;
  }
  for (std::int64_t a = from; a < to; a += kChunk) {
    const std::int64_t b = smaller(a + kChunk, to);
    load_chunk(job, p, begin, a, b);
    for (std::int64_t j = a; j < b; ++j) {
      const T* r = job.r + j * job.r_row;
      const T inverse = T(1) / r[j * job.r_col];
      T* d = p.error + j * kRows<T>;
      for (int i = 0; i < kRows<T>; i += kLanes<T>) {
        const V<T> x = vec(p.chunk + (j - a) * kRows<T> + i) * inverse;
        vec(d + i) = -x;
        vec(p.current + (j - begin) * kRows<T> + i) = vec(p.weight + (j - begin) * kRows<T> + i) + x;
      }
      pass_on(job, p, a, b, j);
    }
  }
}

// Scores of columns [from, to): |current weight * R_jj|, which orders like its square and does not underflow.
template <class T>
void scores(const Job<T>& job, Panel<T>& p, std::int64_t begin, std::int64_t from, std::int64_t to) {
  look_ahead(job, p, begin, from, to);
  for (std::int64_t j = from; j < to; ++j) {
    const T r = job.feedback ? job.r[j * (job.r_row + job.r_col)] : T(1);
    for (int i = 0; i < kRows<T>; i += kLanes<T>) {
      vec(p.score + (j - begin) * kRows<T> + i) = magnitude<T>(vec(p.current + (j - begin) * kRows<T> + i) * r);
    }
  }
}

// Keeps all but the `pruned` lowest scores of each row. Scores are not negative, so their bits order like the numbers
// and the threshold is found bit by bit, all rows at once.
template <class T>
void mask_rows(const T* score, std::int64_t columns, std::int64_t pruned, T* kept) {
  using Int = typename Simd<T>::Int;
  for (int row = 0; row < kRows<T>; row += kLanes<T>) {
    I<T> threshold{};  // becomes the largest number with at most `pruned` scores below it
    for (int bit = static_cast<int>(sizeof(T)) * 8 - 2; bit >= 0; --bit) {
      const I<T> candidate = threshold | (Int(1) << bit);
      I<T> below{};
      for (std::int64_t j = 0; j < columns; ++j) below -= bits<T>(vec(score + j * kRows<T> + row)) < candidate;
      threshold = below <= Int(pruned) ? candidate : threshold;
    }
    I<T> left = I<T>{} + Int(pruned);
    for (std::int64_t j = 0; j < columns; ++j)
      left += bits<T>(vec(score + j * kRows<T> + row)) < threshold;  // -1 for each
    for (std::int64_t j = 0; j < columns; ++j) {
      const I<T> s = bits<T>(vec(score + j * kRows<T> + row));
      const I<T> tie = (s == threshold) & (left > Int(0));
      left += tie;
      vec(kept + j * kRows<T> + row) = (s < threshold) | tie ? V<T>{} : splat<T>(T(1));
    }
  }
}

// The n:m mask of columns [from, from + out_of), whose C_j stand in `c`.
template <class T>
void mask_pattern(const Job<T>& job, Panel<T>& p, std::int64_t begin, std::int64_t from, const T* c) {
  const std::int64_t width = job.out_of;
  T* score = p.score + (from - begin) * kRows<T>;
  T* ahead = p.current + (from - begin) * kRows<T>;  // C_j while nothing is rounded
  copy(ahead, c, width * kRows<T>);
  for (std::int64_t j = 0; j < width; ++j) {
    const T* r = job.r + (from + j) * job.r_row + from * job.r_col;
    const T diagonal = job.feedback ? r[j * job.r_col] : T(1);
    const T inverse = T(1) / diagonal;
    for (int i = 0; i < kRows<T>; i += kLanes<T>) {
      V<T> w = vec(p.weight + (from + j - begin) * kRows<T> + i);
      if (job.feedback) {
        const V<T> x = vec(ahead + j * kRows<T> + i) * inverse;
        w += x;
        for (std::int64_t l = j + 1; l < width; ++l) vec(ahead + l * kRows<T> + i) -= x * r[l * job.r_col];
      }
      vec(score + j * kRows<T> + i) = magnitude<T>(w * diagonal);
    }
  }
  const T pruned = T(width - job.keep);
  T* kept = p.kept + (from - begin) * kRows<T>;
  for (std::int64_t j = 0; j < width; ++j) {
    for (int i = 0; i < kRows<T>; i += kLanes<T>) {
      const V<T> s = vec(score + j * kRows<T> + i);
      V<T> rank{};  // how many of the others go before this one
      for (std::int64_t l = 0; l < width; ++l) {
        const V<T> other = vec(score + l * kRows<T> + i);
        rank += (l < j ? other <= s : other < s) ? splat<T>(T(1)) : V<T>{};
      }
      vec(kept + j * kRows<T> + i) = rank < pruned ? V<T>{} : splat<T>(T(1));
    }
  }
}

// Grids of the groups that start in columns [from, to), from the weights that are current now.
template <class T>
void find_group_grids(const Job<T>& job, Panel<T>& p, std::int64_t panel, std::int64_t begin, std::int64_t from,
                      std::int64_t to) {
  const std::int64_t g = job.group_size;
  const std::int64_t first = (from + g - 1) / g * g;
  if (first >= to) return;
  const std::int64_t last = (to - 1) / g * g;
  look_ahead(job, p, begin, from, smaller(last + g, job.n));
  for (std::int64_t a = first; a <= last; a += g) {
    T* scale = p.scale + (a / g - begin / g) * kRows<T>;
    T* zero = p.zero + (a / g - begin / g) * kRows<T>;
    find_grid(job, p.current + (a - begin) * kRows<T>, smaller(g, job.n - a), scale, zero);
    store_grid(job, panel, a / g, scale, zero);
  }
}

// Rounds column j, whose C_j is complete, and passes its error on to the columns of the chunk that follow.
template <class T>
inline void finish_column(const Job<T>& job, Panel<T>& p, std::int64_t begin, std::int64_t from, std::int64_t to,
                          std::int64_t j, const T* scale, const T* zero, V<T> (&loss)[kVectors<T>]) {
  const T* r = job.r + j * job.r_row;
  const T diagonal = job.r ? r[j * job.r_col] : T(0);
  const T inverse = job.feedback ? T(1) / diagonal : T(0);
  const std::int64_t at = (j - begin) * kRows<T>;
  const bool masked = job.out_of > 0 || job.sparsity > 0;
  T* d = p.error + j * kRows<T>;
  for (int v = 0; v < kVectors<T>; ++v) {
    const int i = v * kLanes<T>;
    const V<T> w = vec(p.weight + at + i);
    const V<T> c = vec(p.chunk + (j - from) * kRows<T> + i);
    V<T> q = w + c * inverse;
    V<T> code{};
    if (job.max_code > 0) {
      const V<T> s = vec(scale + i);
      const V<T> z = vec(zero + i);
      const V<T> level = nearest<T>(lower<T>(higher<T>(q / s, -z), T(job.max_code) - z));
      q = level * s;
      code = level + z;
    }
    if (masked) {
      const auto pruned = vec(p.kept + at + i) == V<T>{};
      q = pruned ? V<T>{} : q;
      if (job.max_code > 0) code = pruned ? vec(zero + i) : code;
    }
    if (job.codes)
      for (int lane = 0; lane < kLanes<T>; ++lane)
        p.code[at + i + lane] = static_cast<std::uint8_t>(static_cast<int>(code[lane]));
    vec(p.value + at + i) = q;
    const V<T> error = w - q;
    vec(d + i) = error;
    const V<T> e = c + error * diagonal;
    loss[v] += e * e;
  }
  if (job.r) pass_on(job, p, from, to, j);
}

// How many of the first `columns` columns of a row a sparsity leaves at 0.
inline std::int64_t pruned_before(double sparsity, std::int64_t columns) {
  return static_cast<std::int64_t>(sparsity * static_cast<double>(columns) + 0.5);
}

inline std::int64_t next_multiple(std::int64_t x, std::int64_t unit) { return (x / unit + 1) * unit; }

// Sweeps columns [from, to) of the block that starts at `begin`.
template <class T>
void sweep_columns(const Job<T>& job, Panel<T>& p, std::int64_t panel, std::int64_t begin, std::int64_t from,
                   std::int64_t to) {
  const bool dynamic = job.max_code > 0 && job.group_size > 0;
  const bool stale = job.stale_block > 0;
  const bool mask_here = job.sparsity > 0 && job.per_row;
  const std::int64_t width =
      job.out_of == 0 ? kChunk : (job.out_of < kChunk ? kChunk / job.out_of * job.out_of : job.out_of);
  for (std::int64_t a = from; a < to;) {
    std::int64_t b = smaller(a + width, to);
    if (dynamic) {
      const std::int64_t unit = stale ? job.stale_block : job.group_size;
      if (a % unit == 0) find_group_grids(job, p, panel, begin, a, stale ? smaller(a + unit, job.n) : a + 1);
      b = smaller(b, next_multiple(a, unit));
    }
    if (mask_here) {
      const std::int64_t end = smaller(next_multiple(a, job.mask_block), job.n);
      if (a % job.mask_block == 0) {
        scores(job, p, begin, a, end);
        mask_rows(p.score + (a - begin) * kRows<T>, end - a,
                  pruned_before(job.sparsity, end) - pruned_before(job.sparsity, a), p.kept + (a - begin) * kRows<T>);
      }
      b = smaller(b, end);
    }
    load_chunk(job, p, begin, a, b);
    V<T> loss[kVectors<T>] = {};
    for (std::int64_t j = a; j < b; ++j) {
      if (job.out_of > 0 && j % job.out_of == 0) mask_pattern(job, p, begin, j, p.chunk + (j - a) * kRows<T>);
      std::int64_t slot = 0;
      if (dynamic) {
        slot = j / job.group_size - begin / job.group_size;
      } else if (job.max_code > 0 && job.group[j] != p.loaded_group) {
        p.loaded_group = job.group[j];
        load_grid(job, panel, p.loaded_group, p.scale, p.zero);
      }
      finish_column(job, p, begin, a, b, j, p.scale + slot * kRows<T>, p.zero + slot * kRows<T>, loss);
    }
    for (int v = 0; v < kVectors<T>; ++v)
      for (int lane = 0; lane < kLanes<T>; ++lane) p.loss[v * kLanes<T> + lane] += static_cast<double>(loss[v][lane]);
    a = b;
  }
}

// Writes what was found in the block [begin, end).
template <class T>
void end_block(const Job<T>& job, Panel<T>& p, std::int64_t panel, std::int64_t begin, std::int64_t end) {
  if (job.codes) store(job, panel, begin, end, p.code, job.codes);
  if (job.weights) store(job, panel, begin, end, p.value, job.weights);
  if (job.mask) store(job, panel, begin, end, p.kept, job.mask);
  if (end < job.n || !job.loss) return;
  for (std::int64_t i = 0; i < rows_of(job, panel); ++i) job.loss[panel * kRows<T> + i] = p.loss[i];
}

template <class T>
void run(const Job<T>& job, Panel<T>& p, std::int64_t panel, const std::int64_t* blocks, std::int64_t n_blocks) {
  for (std::int64_t k = 0; k < n_blocks; ++k) {
    begin_block(job, p, panel, blocks[k], blocks[k + 1]);
    sweep_columns(job, p, panel, blocks[k], blocks[k], blocks[k + 1]);
    end_block(job, p, panel, blocks[k], blocks[k + 1]);
  }
}

template <class T>
void fixed_grids(const Job<T>& job, Panel<T>& p, std::int64_t panel) {
  for (std::int64_t group = 0; group < job.groups; ++group) {
    const std::int64_t begin = group * job.group_size;
    const std::int64_t end = smaller(begin + job.group_size, job.n);
    load_weights(job, panel, begin, end, p.weight);
    find_grid(job, p.weight, end - begin, p.scale, p.zero);
    store_grid(job, panel, group, p.scale, p.zero);
  }
}

template <class T>
void grid_errors(const Job<T>& job, Panel<T>& p, std::int64_t panel, T low, T high, double* errors) {
  load_weights(job, panel, 0, job.n, p.weight);
  for (int step = 0; step < job.steps; ++step) {
    V<T> scale, zero;
    shrink_to_grid<T>(job, splat<T>(low), splat<T>(high), step, scale, zero);
    errors[step] = 0.0;
    for (int row = 0; row < kRows<T>; row += kLanes<T>) {
      V<T> sum{};
      add_error<T>(job, p.weight + row, 0, job.n, scale, zero, sum);
      for (int lane = 0; lane < kLanes<T> && row + lane < rows_of(job, panel); ++lane)
        errors[step] += static_cast<double>(sum[lane]);
    }
  }
}

template <class T>
void range_to_grid(const Job<T>& job, T low, T high, int step, T* scale, T* zero) {
  V<T> l = splat<T>(low), h = splat<T>(high), s, z;
  widen_range<T>(job, l, h);
  shrink_to_grid<T>(job, l, h, step, s, z);
  *scale = s[0];
  *zero = z[0];
}

}  // namespace

template <class T>
const PanelKernels<T>& panel_kernels() {
  static constexpr PanelKernels<T> kernels = {
      run<T>,       begin_block<T>, scores<T>,      sweep_columns<T>,
      end_block<T>, fixed_grids<T>, grid_errors<T>, range_to_grid<T>,
  };
  return kernels;
}
template const PanelKernels<float>& panel_kernels<float>();
template const PanelKernels<double>& panel_kernels<double>();

}  // namespace quadric::sweep::detail::QUADRIC_LEVEL
