// Long Kronecker factors with one vector each, of which only the tiles on and below the diagonal are read.
#pragma once

#include <cstdint>
#include <vector>

#include "quadric/execution.hpp"

namespace quadric::cuda::factors {

constexpr std::int64_t kLong = 1024;  // rows from which on this is faster than to read all

// J, x and out at multiples of 16 bytes, n a multiple of the entries in 16 bytes.
template <class T>
struct Single {
  const T* J;  // n x n
  const T* x;  // n: v or y
  T* out;      // n, or n x n; may be J
  std::int64_t n;
  int number;  // among all factors of the call
};

// out = J x.
template <class T>
void product_by_tiles(const Execution& exec, const std::vector<Single<T>>& factors);

// out = alpha J + delta I + sign x x^T, and the largest row sums of magnitudes, where norms is 0 before. `settled`: the
// kernel before this one in the stream does not write any J, which may be read before it ends.
template <class T>
void update_by_tiles(const Execution& exec, const std::vector<Single<T>>& factors, const double* alpha,
                     const double* delta, const double* sign, double* norms, bool settled);

}  // namespace quadric::cuda::factors
