// Small dense linear algebra on an Nvidia GPU. Pointers are memory of the current device; calls are launched on
// `exec.stream`, take temporary memory from `exec` and wait for nothing. The same call gives the same bits on every
// run.
#pragma once

#include <cstdint>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"
#include "quadric/linalg.hpp"

namespace quadric::cuda::linalg {

using quadric::linalg::BatchView;
using quadric::linalg::Spd;

// As quadric::linalg::spd: the Cholesky factor, the inverse, the solution or the log-determinant alone of every
// symmetric positive definite matrix of a batch. A warp for one to four matrices of up to 32 rows, a block of threads
// for a larger one. Backward stable: |L L^T - A| <= (n + 1) eps |L| |L^T|.
template <class T>
QUADRIC_API void spd(const Execution& exec,
                     BatchView<const T> A,   // count x n x n, n <= 256, any strides; only the lower triangles are read
                     BatchView<const T> b,   // count x n x k, any strides (solve alone)
                     Spd what,               //
                     T* out,                 // count x n x n, or count x n x k for solve; contiguous
                     double* logdet,         // count, or null
                     std::int32_t* status);  // count: -1, or the first pivot that is not positive and finite

// A + shift I = L L^T in place, for one matrix of any size: m^3/3 flops by cuSOLVER. *info = -1 and L has zeros above
// its diagonal, or *info is the first pivot that is not positive and finite and A holds nothing of use.
QUADRIC_API void cholesky(const Execution& exec,
                          double* A,                     // m x m, contiguous rows; only the lower triangle is read
                          std::int64_t m, double shift,  //
                          std::int32_t* info);           // 1

// B <- (L L^T)^-1 B: 2 m^2 k flops by cuBLAS.
QUADRIC_API void cho_solve(const Execution& exec,
                           const double* L,  // m x m lower, contiguous rows
                           std::int64_t m,   //
                           double* B,        // m x k, contiguous rows
                           std::int64_t k);

}  // namespace quadric::cuda::linalg
