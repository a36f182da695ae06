// The Cholesky factorization of many matrices of one shape.
#pragma once

#include <cstdint>

#include "device.hpp"

namespace quadric::cuda::sweep {

// Factors the lower triangles of `count` column-major n x n matrices, which stand one after the other, in place; parts
// of the upper triangles are overwritten. info[k] = 0, or the first pivot of matrix k, counted from 1, that is not
// positive and finite.
template <class T>
void potrf_batch(const Execution& exec, Scratch& scratch, std::int64_t count, std::int64_t n, T* A, int* info);

}  // namespace quadric::cuda::sweep
