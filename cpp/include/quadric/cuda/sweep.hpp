// The functions of quadric/sweep.hpp on an Nvidia GPU: the same names, meaning and results, with pointers to memory of
// the current device. Everything is launched on `exec.stream`, takes temporary memory from `exec` and waits for
// nothing, so that a call may be captured in a CUDA graph. What the CPU functions return, these write to the device.
// Values behind device pointers are not checked (permutations, groups).
//
// The same call gives the same bits on every run; the number of multiprocessors does not enter.
#pragma once

#include <cstdint>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"
#include "quadric/storage.hpp"
#include "quadric/sweep.hpp"
#include "quadric/view.hpp"

namespace quadric::cuda::sweep {

using quadric::sweep::Factor;        // R, order and dead in device memory
using quadric::sweep::GridOptions;   //
using quadric::sweep::ScaleType;     //
using quadric::sweep::SweepOptions;  // group in device memory
using quadric::sweep::SweepOutput;   // in device memory
using quadric::sweep::upper_factor;  //

// H += X^T diag(weights) X on the upper triangle of H (i <= j); the lower triangle is not touched. Products of float16
// and bfloat16 numbers are exact and run on the tensor cores, with sums in float32 over slices of tokens.
// Cost: about tokens n^2 flops, one read of X.
template <class T>
QUADRIC_API void gram(const Execution& exec,
                      const StoredRows& X,  // tokens x n, any type
                      const T* weights,     // tokens, each >= 0, or null for ones
                      MatrixView<T> H);     // n x n, contiguous rows

// *out = max |H_ij - H_ji| / max |H_ij|: 0 for a symmetric matrix, NaN if an entry is NaN or infinite.
template <class T>
QUADRIC_API void symmetry_defect(const Execution& exec,
                                 MatrixView<const T> H,  // n x n
                                 double* out);           // 1

// A_ji = H[order[n-1-j], order[n-1-i]]. A may be H itself when H has contiguous rows.
template <class T>
QUADRIC_API void gather(const Execution& exec,
                        MatrixView<const T> H,      // n x n, symmetric
                        const std::int64_t* order,  // n, a permutation
                        MatrixView<T> A);           // n x n, contiguous rows

// Both for `count` matrices, which stand one after the other. Rows and columns of dead inputs become zero.
template <class T>
QUADRIC_API void symmetry_defect_batch(const Execution& exec, std::int64_t count, std::int64_t n,
                                       const T* H,    // count x n x n
                                       double* out);  // count

// What the factorizations of `count` Hessians begin with: their diagonals, which inputs are dead (zero there), the
// order of the sweep (natural, or by falling diagonal) and the diagonal in that order with `damping` times its mean
// over the live inputs added, 1 for dead ones (0 without any live one, as there is nothing to factor then).
// index_j = group[the place of column j], where they are given.
template <class T>
QUADRIC_API void arrange(const Execution& exec, std::int64_t count, std::int64_t n,
                         const T* H,  // count x n x n
                         double damping, bool activation,
                         const std::int32_t* group,  // n, or null
                         std::int64_t* order,        // count x n, as the others
                         bool* dead, double* original, double* damped,
                         std::int32_t* index);  // or null

template <class T>
QUADRIC_API void gather_batch(const Execution& exec, std::int64_t count, std::int64_t n,
                              const T* H,                 // count x n x n, symmetric
                              const std::int64_t* order,  // count x n, permutations
                              const bool* dead,           // count x n, in the order of H, or null for none
                              T* A);                      // count x n x n, not H

// Factors what `gather` left in A, in place, with the diagonal replaced. *pivot = -1 and the strict lower triangle is
// zero, or *pivot is the sweep position of the first pivot that was not positive and A is as it was but for its
// diagonal, so that the call may be repeated with another one.
template <class T>
QUADRIC_API void cholesky(const Execution& exec,
                          MatrixView<T> A,         // n x n, contiguous rows
                          const double* diagonal,  // n, in sweep order, damping included
                          std::int64_t* pivot);    // 1

// The same for `count` matrices, which stand one after the other; one that fails may become the identity. Matrices of
// float32 with 1024 to 8192 rows may take a good 4 GiB of temporary memory for parts of the factors, which products on
// the tensor cores are made of.
template <class T>
QUADRIC_API void cholesky_batch(const Execution& exec, std::int64_t count, std::int64_t n,
                                T* A,                    // count x n x n
                                const double* diagonal,  // count x n
                                std::int64_t* pivot);    // count

// The four of them one after the other: symmetry_defect, arrange, gather and cholesky of `count` Hessians.
template <class T>
QUADRIC_API void factorize_batch(const Execution& exec, std::int64_t count, std::int64_t n,
                                 const T* H,  // count x n x n
                                 double damping, bool activation,
                                 const std::int32_t* group,  // n, or null
                                 T* A,                       // count x n x n, not H
                                 std::int64_t* order,        // count x n, as the others
                                 bool* dead,                 // or null, as the two that follow
                                 double* original, std::int32_t* index,
                                 double* defects,        // count
                                 std::int64_t* pivots);  // count

// The grids of fixed groups of `group_size` consecutive columns of W, from W as it is.
template <class T>
QUADRIC_API void grid(const Execution& exec,
                      MatrixView<const T> W,            // m x n, any strides
                      std::int64_t group_size,          // >= 1
                      bool per_tensor,                  // one grid for the whole matrix; group_size must be n
                      const GridOptions& options,       //
                      MatrixView<T> scales,             // m x ceil(n / group_size), contiguous rows
                      MatrixView<std::uint8_t> zeros);  // the same shape

// The sweep. Cost: m n^2 flops in matrix products of 128 columns or more. A factor of another layout than that of
// `upper_factor` is copied (n^2 numbers); besides that temporary memory holds m x n sums. The large products of float32
// run on the tensor cores, by parts of float16 with an error up to twice that of float32; the parts of 256 columns take
// 1.5 KB for each row of W and 3 KB for each column; from 4096 columns on they are of 512.
template <class T>
QUADRIC_API void sweep(const Execution& exec,
                       MatrixView<const T> W,    // m x n, any strides
                       const Factor<T>& factor,  //
                       const SweepOptions& options, const SweepOutput<T>& output);

// The sweep of `count` matrices of one shape, each with its own factor and order. The rows of the matrices stand below
// each other in W and in all outputs; with sparsity over all rows, each matrix has its own threshold. `group` is
// shared.
template <class T>
QUADRIC_API void sweep_batch(const Execution& exec, std::int64_t count,
                             MatrixView<const T> W,  // count m x n, any strides
                             const T* A,             // count x n x n as `cholesky_batch` leaves them; null: identity
                             const std::int64_t* order,                                   // count x n
                             const bool* dead,                                            // count x n or null
                             const SweepOptions& options, const SweepOutput<T>& output);  // count m rows each

}  // namespace quadric::cuda::sweep
