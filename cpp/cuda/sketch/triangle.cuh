// Norms of the products of the rows of a tall matrix with an upper triangle, float64, on the tensor cores.
#pragma once

#include <cstdint>

#include "device.hpp"
#include "quadric/view.hpp"

namespace quadric::cuda::sketch {

// An upper triangle in the order in which the kernel reads it; what M has below the diagonal is not read.
struct Triangle {
  const double* strips;
  std::int64_t d;
};
bool triangle_fits();  // the device has the shared memory for it
Triangle laid_out(const Execution& exec, Scratch& scratch, const MatrixView<const double>& M);

// out[i] = ||row i of A M||^2 for `rows` contiguous rows that begin at multiples of 16 bytes, `stride` apart; nothing
// else is written.
void norms_by_triangle(const Execution& exec, const double* A, std::int64_t stride, std::int64_t rows,
                       const Triangle& M, double* out);

}  // namespace quadric::cuda::sketch
