// A cost, stored or of points, as rows that the inner loops of a pass can work on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "buffer.hpp"
#include "quadric/blas.hpp"
#include "quadric/transport.hpp"
#include "require.hpp"
#include "threads.hpp"
#include "transport/pass_kernels.hpp"

namespace quadric::transport::detail {

inline constexpr std::int64_t kMaxRows = 64;  // of a tile
inline constexpr std::int64_t kFlush = 512;   // rows that are added in T before they join the double sums

// The parts into which the rows are cut; column sums are added part by part, whoever computed them.
inline std::int64_t part_count(std::int64_t n, std::int64_t m) {
  return std::clamp<std::int64_t>(std::min(n * m >> 14, n / 8), 1, 64);
}
struct Range {
  std::int64_t begin, end;
};
inline Range part_range(std::int64_t n, std::int64_t parts, std::int64_t part) {
  return {n * part / parts, n * (part + 1) / parts};
}

// A few rows of the pass in cache. One for each thread.
template <class T>
struct Tile {
  Tile(std::int64_t rows_, std::int64_t width) : rows(rows_), stride(width), e(rows_ * width), t(width) {}
  std::int64_t rows, stride;
  Buffer<T> e;  // rows x width
  Buffer<T> t;  // exponents of one row
  T* row(std::int64_t r) const { return e.data() + r * stride; }
};

// Everything below is in bits: kappa = log2(e) / reg, F = kappa f, t = G - kappa C. For products of points,
// -kappa C = 2 kappa x.y - kappa |x|^2 - kappa |y|^2: the squares join the potentials as offsets.
template <class T>
class Source {
 public:
  Source(const Cost<T>& cost, double reg) : cost_(cost), kappa_(1.4426950408889634074 / reg) {
    n_ = cost.rows();
    m_ = cost.cols();
    row_offset_.assign(static_cast<std::size_t>(n_), 0.0);
    column_offset_.assign(static_cast<std::size_t>(m_), 0.0);
    if (cost.kind == CostKind::stored) {
      gather_ = cost.M.col_stride != 1 && m_ > 1;
      factor_ = static_cast<T>(-kappa_);
      return;
    }
    const std::int64_t d = cost.x.cols;
    const bool squares = cost.kind == CostKind::sqeuclidean;
    const bool product = squares || cost.kind == CostKind::cosine;
    form_ = product ? Form::product : cost.kind == CostKind::cityblock ? Form::taxicab : Form::euclidean;
    multiply_ = product && d > 8;
    factor_ = product ? T(1) : static_cast<T>(-kappa_);
    const T scale = product ? static_cast<T>(squares ? 2 * kappa_ : kappa_) : T(1);
    const std::int64_t width = padded(m_);
    others_.reset(new Buffer<T>(std::max<std::int64_t>(d * width, 1)));
    std::fill_n(others_->data(), d * width, T(0));
    for (std::int64_t j = 0; j < m_; ++j)
      for (std::int64_t k = 0; k < d; ++k) others_->data()[k * width + j] = scale * cost.y(j, k);
    const auto offsets = [&](const MatrixView<const T>& points, std::vector<double>& offset) {
      for (std::int64_t i = 0; i < points.rows; ++i) {
        double square = 0;
        for (std::int64_t k = 0; k < d; ++k) square += static_cast<double>(points(i, k)) * points(i, k);
        offset[i] = kappa_ * square;
      }
    };
    if (squares) {
      offsets(cost.x, row_offset_);
      offsets(cost.y, column_offset_);
    }
    if (cost.kind == CostKind::cosine) std::fill(row_offset_.begin(), row_offset_.end(), kappa_);
  }

  std::int64_t n() const { return n_; }
  std::int64_t m() const { return m_; }
  std::int64_t width() const { return padded(m_); }
  double kappa() const { return kappa_; }
  double row_offset(std::int64_t i) const { return row_offset_[i]; }
  double column_offset(std::int64_t j) const { return column_offset_[j]; }

  // Computes what is costly to compute, products of long points and distances, once for all passes to come, if that
  // takes little memory.
  void keep(int n_threads, std::int64_t parts) {
    constexpr std::int64_t kMost = std::int64_t{1} << 27;  // bytes
    if (form_ == Form::stored || (form_ == Form::product && !multiply_)) return;
    if (n_ * width() * static_cast<std::int64_t>(sizeof(T)) > kMost) return;
    std::unique_ptr<Buffer<T>> kept(new Buffer<T>(n_ * width()));
    const Buffer<T> zeros(width());
    std::fill_n(zeros.data(), width(), T(0));
    parallel_for(n_threads, parts, [&](std::int64_t part, int) {
      const auto [begin, end] = part_range(n_, parts, part);
      for (std::int64_t first = begin; first < end; first += kMaxRows) {
        T* const to = kept->data() + first * width();
        const std::int64_t count = std::min(kMaxRows, end - first);
        this->begin(first, count, to, width());
        for (std::int64_t r = 0; r < count && !multiply_; ++r)
          kernels_.exponents(form_, row(first + r, nullptr), T(1), zeros.data(), m_, to + r * width());
      }
    });
    kept_ = std::move(kept);
    form_ = Form::stored;
    multiply_ = false;
  }

  // How many rows to work on at once: a tile that stays in the second-level cache.
  std::int64_t rows_at_once() const {
    const std::int64_t fitting = (multiply_ ? 1 << 20 : 1 << 19) / (width() * static_cast<std::int64_t>(sizeof(T)) + 1);
    return std::clamp<std::int64_t>(fitting / 4 * 4, 4, multiply_ ? kMaxRows : 8);
  }

  // Makes rows ready: products of long points and scattered costs are laid out where their exponentials will be.
  void begin(std::int64_t first, std::int64_t count, T* to, std::int64_t stride) const {
    if (multiply_) {
      char no = 'N';
      int m = static_cast<int>(m_), rows = static_cast<int>(count), d = static_cast<int>(cost_.x.cols),
          width = static_cast<int>(this->width()), ldx = static_cast<int>(std::max(cost_.x.row_stride, cost_.x.cols)),
          ld = static_cast<int>(stride);
      T one = 1, zero = 0;
      blas_routines<T>().gemm(&no, &no, &m, &rows, &d, &one, others_->data(), &width,
                              const_cast<T*>(cost_.x.data + first * cost_.x.row_stride), &ldx, &zero, to, &ld);
    } else if (gather_) {
      for (std::int64_t r = 0; r < count; ++r)
        for (std::int64_t j = 0; j < m_; ++j) to[r * stride + j] = cost_.M(first + r, j);
    }
  }

  // Rows from `first` on, made ready in `e`, where their exponentials go.
  void exponentials(std::int64_t first, std::int64_t count, const T* shift, const T* G, const T* weight, T* e,
                    std::int64_t stride, double* sums) const {
    Row<T> rows[kMaxRows];
    for (std::int64_t r = 0; r < count; ++r) rows[r] = row(first + r, e + r * stride);
    kernels_.exponentials(form(), rows, count, factor_, shift, G, weight, m_, e, stride, sums);
  }
  // The exponents of row i, made ready in `e`.
  T exponents(std::int64_t i, const T* G, const T* e, T* t) const {
    return kernels_.exponents(form(), row(i, e), factor_, G, m_, t);
  }
  void directions(std::int64_t i, const T* e, const T* weight, double* out) const {
    kernels_.directions(form_, row(i, nullptr), e, weight, width(), out);
  }

  double entry(std::int64_t i, std::int64_t j) const { return cost_.entry(i, j); }

 private:
  Form form() const { return multiply_ ? Form::stored : form_; }
  Row<T> row(std::int64_t i, const T* prepared) const {
    Row<T> row;
    if (multiply_ || gather_) {
      row.cost = prepared;
    } else if (kept_) {
      row.cost = kept_->data() + i * width();
    } else if (cost_.kind == CostKind::stored) {
      row.cost = cost_.M.data + i * cost_.M.row_stride;
    } else {
      row.point = cost_.x.data + i * cost_.x.row_stride;
      row.others = others_->data();
      row.stride = width();
      row.d = cost_.x.cols;
    }
    return row;
  }

  const Cost<T>& cost_;
  const PassKernels<T>& kernels_ = pass_kernels<T>();
  double kappa_;
  std::int64_t n_ = 0, m_ = 0;
  Form form_ = Form::stored;
  bool multiply_ = false;  // products by GEMM
  bool gather_ = false;    // rows of the stored cost are not contiguous
  T factor_ = 1;
  std::vector<double> row_offset_, column_offset_;
  std::unique_ptr<Buffer<T>> others_, kept_;
};

// The potential of the columns in the two parts that a pass needs: G = base + log2(weight), where base, less the
// offsets, is a T exactly. In float32 the base is rounded once, so that the rounding errors of t stay the same from
// one pass to the next, and whatever G gains meanwhile is in the weight.
template <class T>
struct Columns {
  explicit Columns(const Source<T>& source)
      : m(source.m()), width(source.width()), G(width), weight(width), base(width), potential(width), scaling(width) {
    std::fill_n(G.data(), width, -std::numeric_limits<T>::infinity());
    std::fill_n(weight.data(), width, T(0));
    std::fill_n(base.data(), width, 0.0);
    std::fill_n(potential.data(), width, 0.0);
    std::fill_n(scaling.data(), width, 1.0);
  }
  // Takes `potential` apart anew.
  void rebase(const Source<T>& source) {
    for (std::int64_t j = 0; j < m; ++j) {
      G.data()[j] = static_cast<T>(potential.data()[j] - source.column_offset(j));
      base.data()[j] = static_cast<double>(G.data()[j]) + source.column_offset(j);
      scaling.data()[j] = potential.data()[j] - base.data()[j];
      if (potential.data()[j] == -std::numeric_limits<double>::infinity()) base.data()[j] = 0;  // a column without mass
    }
    pass_kernels<T>().exp2(scaling.data(), m, scaling.data());
    weigh();
  }
  void weigh() {
    for (std::int64_t j = 0; j < m; ++j) weight.data()[j] = static_cast<T>(scaling.data()[j]);
  }
  std::int64_t m, width;
  Buffer<T> G, weight;
  Buffer<double> base, potential, scaling;
};

template <class T>
void check(const Cost<T>& cost) {
  if (cost.kind == CostKind::stored) return;
  QUADRIC_REQUIRE(cost.x.cols == cost.y.cols, "y must have points of as many coordinates as x");
  QUADRIC_REQUIRE((cost.x.cols <= 1 || cost.x.col_stride == 1) && (cost.y.cols <= 1 || cost.y.col_stride == 1),
                  "x and y must have contiguous rows");
}

}  // namespace quadric::transport::detail
