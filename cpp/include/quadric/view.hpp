// A matrix that somebody else owns: pointer, shape and strides, counted in elements.
#pragma once

#include <cstdint>
#include <type_traits>

namespace quadric {

template <class T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  // elements between (i, j) and (i + 1, j); may be negative
  std::int64_t col_stride = 0;  // elements between (i, j) and (i, j + 1); may be negative

  MatrixView() = default;
  MatrixView(T* data_, std::int64_t rows_, std::int64_t cols_, std::int64_t row_stride_, std::int64_t col_stride_)
      : data(data_), rows(rows_), cols(cols_), row_stride(row_stride_), col_stride(col_stride_) {}

  // Contiguous rows, as C, NumPy and torch lay them out.
  MatrixView(T* data_, std::int64_t rows_, std::int64_t cols_) : MatrixView(data_, rows_, cols_, cols_, 1) {}

  // A view of mutable entries passes where constant ones are asked for.
  template <class U, class = std::enable_if_t<std::is_same_v<T, const U>>>
  MatrixView(const MatrixView<U>& other)  // NOLINT(google-explicit-constructor)
      : MatrixView(other.data, other.rows, other.cols, other.row_stride, other.col_stride) {}

  T& operator()(std::int64_t i, std::int64_t j) const { return data[i * row_stride + j * col_stride]; }
  bool empty() const { return rows == 0 || cols == 0; }
};

}  // namespace quadric
