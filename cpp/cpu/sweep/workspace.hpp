// Memory of the panels and the setting up of a job: what sweep.cpp and grid.cpp share.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "quadric/sweep.hpp"
#include "sweep/panel.hpp"

namespace quadric::sweep::detail {

// One aligned allocation, cut into the arrays of `count` panels.
template <class T>
class Workspace {
 public:
  Workspace(std::int64_t count, std::int64_t error_columns, const Widths& widths) {
    constexpr std::int64_t P = kPanelRows<T>;
    const std::int64_t floats = (error_columns + 6 * widths.block + widths.chunk + 2 * widths.groups) * P;
    const std::int64_t bytes = floats * sizeof(T) + round_up(widths.block * P) + P * sizeof(double);
    memory_.reset(
        static_cast<char*>(::operator new(static_cast<std::size_t>(count * bytes), std::align_val_t(kAlign))));
    char* at = memory_.get();
    const auto take = [&at](std::int64_t size) {
      char* piece = at;
      at += size;
      return piece;
    };
    const auto columns = [&](std::int64_t n) { return reinterpret_cast<T*>(take(n * P * sizeof(T))); };
    for (std::int64_t i = 0; i < count; ++i) {
      Panel<T> p{};
      p.error = columns(error_columns);
      p.base = columns(widths.block);
      p.weight = columns(widths.block);
      p.current = columns(widths.block);
      p.value = columns(widths.block);
      p.kept = columns(widths.block);
      p.score = columns(widths.block);
      p.chunk = columns(widths.chunk);
      p.scale = columns(widths.groups);
      p.zero = columns(widths.groups);
      p.code = reinterpret_cast<std::uint8_t*>(take(round_up(widths.block * P)));
      p.loss = reinterpret_cast<double*>(take(P * sizeof(double)));
      panels_.push_back(p);
    }
  }

  std::vector<Panel<T>>& panels() { return panels_; }

 private:
  static constexpr std::int64_t kAlign = 64;
  static std::int64_t round_up(std::int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t(kAlign)); }
  };
  std::unique_ptr<char, Free> memory_;
  std::vector<Panel<T>> panels_;
};

// The part of a job that a grid search needs too.
template <class T>
Job<T> make_job(MatrixView<const T> W, const GridOptions& grid, MatrixView<T> scales, MatrixView<std::uint8_t> zeros) {
  Job<T> job{};
  job.w = W.data;
  job.w_row = W.row_stride;
  job.w_col = W.col_stride;
  job.m = W.rows;
  job.n = W.cols;
  job.groups = scales.cols;
  job.scales = scales.data;
  job.zeros = zeros.data;
  job.max_code = grid.max_code;
  job.zero = (grid.max_code + 1) / 2;
  job.symmetric = grid.symmetric;
  job.mse = grid.mse;
  job.norm = grid.norm;
  job.steps = grid.mse ? grid.steps : 1;
  job.scale_type = static_cast<int>(grid.scale_type);
  return job;
}

}  // namespace quadric::sweep::detail
