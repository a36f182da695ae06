// The Cholesky factorization of one large matrix by cuSOLVER.
#pragma once

#include <cstdint>

#include "device.hpp"

namespace quadric::cuda {

// Factors the triangle `uplo` of the column-major n x n matrix A in place, the other one is not touched.
// *info = 0, or the 1-based pivot that is not positive; NaN may pass unseen.
template <class T>
void potrf(const Execution& exec, Scratch& scratch, cublasFillMode_t uplo, std::int64_t n, T* A, int* info);

}  // namespace quadric::cuda
