// Products of float32 matrices on the tensor cores. A number is the sum of two of float16, its high and its low part,
// which leave 2^-22 of it or less. Of the four products of parts the least, that of low ones, is left out. The other
// three are one product of three times the depth: the segments of the left matrix are
//
//   h l h   and of the right one   l h h,   h h last: sums stay small until then.
//
// What float16 lacks is range, so powers of two bring the operands there, and back. A term of a product, column k of
// the left matrix and row k of the right one, can be scaled by one power on the left and its inverse on the right: each
// row of the right matrix gets the same largest entry, 2^14. Rows of the left matrix get one below 2^15 and not below
// 2^6, by powers that stay with them: the product is that of scaled rows, and so is what it is added to. A number that
// is 2^16 times smaller than the largest of its row keeps 15 bits or more.
//
// Sums are those of the tensor cores, in float32 and cut off instead of rounded, but after every sixteenth product
// alone. In a model of them the error is 4e-7 of the root mean square of the entries at a depth of 256 and 8e-7 at one
// of 512, where sums in float32, one product after the other, have 3e-7 and 4e-7. With six products of three parts of
// bfloat16 it is the same: what counts are the sums.
#pragma once

#include <cstdint>

#include "device.hpp"

namespace quadric::cuda::sweep {

constexpr std::int64_t kSegments = 3;

// Columns of numbers that follow one another.
template <class T>
struct Columns {
  T* data;
  std::int64_t ld, stride;  // from a column, and from a matrix, to the next
};

// The parts of the right matrices, k x n with segments k rows apart, and the largest entry of each of their rows, as
// the bits of a float, count x k.
void split_right(const Execution& exec, std::int64_t count, std::int64_t n, std::int64_t k,
                 const Columns<const float>& from, std::uint32_t* largest, const Columns<std::uint16_t>& to);

// The parts of the left matrices, m x k with segments k columns apart, whose rows come multiplied by up_i: up[i], or 1
// where `first`. Rows that have left their range get another up[i] (count x up_stride; written in either case), and
// those of the columns `behind`, which come with the same scale, follow. Columns begin at even places, an even distance
// apart; where m is odd, what follows its last row is read, and overwritten in the parts.
struct Behind {
  Columns<float> columns;
  std::int64_t count;  // of columns
};
void split_left(const Execution& exec, std::int64_t count, std::int64_t m, std::int64_t k,
                const Columns<const float>& from, const std::uint32_t* largest, bool first, float* up,
                std::int64_t up_stride, const Behind& behind, const Columns<std::uint16_t>& to);

// C = A B + beta C for `count` matrices, m x n with k terms, column by column. Rows of A and of C are scaled.
void multiply_parts(cublasHandle_t handle, std::int64_t count, std::int64_t m, std::int64_t n, std::int64_t k,
                    const Columns<const std::uint16_t>& A, const Columns<const std::uint16_t>& B, float beta,
                    const Columns<float>& C);

// x, count x columns x rows with rows fastest, without the scales of its m rows.
void unscale_rows(const Execution& exec, std::int64_t count, std::int64_t columns, std::int64_t m, std::int64_t rows,
                  const float* up, float* x);

}  // namespace quadric::cuda::sweep
