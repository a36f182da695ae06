// Products of float32 matrices on the tensor cores. A number is the sum of three of bfloat16, its high, middle and low
// part, 8 bits each: nothing is left over. Of the nine products of parts the three least, below 2^-24 of the whole, are
// left out. The other six are one product of six times the depth: the segments of the left matrix are
//
//   h l h m m h   and of the right one   l h m m h h,   h h last: sums stay small until then.
//
// Sums are those of the tensor cores, in float32 and cut off instead of rounded, but after every sixteenth product
// alone. In a model of them the error at a depth of 512 is 5e-7 of the root mean square of the entries, where sums in
// float32, one product after the other, have 4e-7.
#pragma once

#include <cstdint>

#include "device.hpp"

namespace quadric::cuda::sweep {

constexpr std::int64_t kSegments = 6;

enum class Side { left, right };

// `columns` columns of `length` entries.
template <class T>
struct Columns {
  T* data;
  std::int64_t ld, stride;  // from a column, and from a matrix, to the next
};

// The parts of `count` matrices; segment s of a column begins s * `apart` entries after the column.
void split(const Execution& exec, Side side, std::int64_t count, std::int64_t columns, std::int64_t length,
           const Columns<const float>& from, const Columns<std::uint16_t>& to, std::int64_t apart);

// C = A B + beta C for `count` matrices, m x n with k terms, column by column.
void multiply_parts(cublasHandle_t handle, std::int64_t count, std::int64_t m, std::int64_t n, std::int64_t k,
                    const Columns<const std::uint16_t>& A,  // m x 6 k, segments k columns apart
                    const Columns<const std::uint16_t>& B,  // 6 k x n, segments k rows apart
                    float beta, const Columns<float>& C);

}  // namespace quadric::cuda::sweep
