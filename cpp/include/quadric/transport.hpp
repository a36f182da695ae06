// Entropic optimal transport: minimize <C, P> + reg sum P (log P - 1) with P 1 = a and P^T 1 = b. The plan is
//
//   P_ij = exp((f_i + g_j - C_ij) / reg)
//
// for potentials f and g in the units of the cost. The kernels are one-pass Sinkhorn iterations, over-relaxed, balanced
// or not; the same on a list of the entries that matter; the direction of a sparse Newton step on such a list; and what
// follows from potentials. A cost is stored, or made of points as it is needed, so that no n x m memory is. Masses are
// positive; entries of the plan below the smallest normal number count as zero. Float32 or float64 costs, float64
// potentials. Results do not depend on the number of threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"
#include "quadric/view.hpp"

namespace quadric::transport {

enum class CostKind { stored = 0, sqeuclidean = 1, euclidean = 2, cityblock = 3, cosine = 4 };

// C, n x m: M, or the distances of the rows of x and y.
template <class T>
struct Cost {
  CostKind kind = CostKind::stored;
  MatrixView<const T> M;  // n x m, any strides; infinite entries are forbidden pairs
  MatrixView<const T> x;  // n x d, contiguous rows; of unit length for CostKind::cosine, 1 - x.y
  MatrixView<const T> y;  // m x d

  std::int64_t rows() const { return kind == CostKind::stored ? M.rows : x.rows; }
  std::int64_t cols() const { return kind == CostKind::stored ? M.cols : y.rows; }
  // C_ij in double.
  double entry(std::int64_t i, std::int64_t j) const {
    if (kind == CostKind::stored) return static_cast<double>(M(i, j));
    double sum = 0;
    for (std::int64_t k = 0; k < x.cols; ++k) {
      const double u = static_cast<double>(x(i, k)), v = static_cast<double>(y(j, k));
      switch (kind) {
        case CostKind::cosine:
          sum += u * v;
          break;
        case CostKind::cityblock:
          sum += std::abs(u - v);
          break;
        default:
          sum += (u - v) * (u - v);
      }
    }
    return kind == CostKind::cosine ? 1 - sum : kind == CostKind::euclidean ? std::sqrt(sum) : sum;
  }
};

struct SinkhornOptions {
  double reg = 1;
  double theta_a = 1, theta_b = 1;  // rho / (rho + reg) for marginals that are only penalized, rho KL(P 1 | a)
  double tol = 0;
  std::int64_t count = 1;  // iterations at most
};

// Up to `count` iterations of each of `problems` problems: f <- f + omega (theta_a (f + reg log(a / s)) - f) with the
// row sums s of P, then the same for g and the column sums c with the new f. Each costs one pass: one read, or one
// evaluation, and one exponential per entry. errors[iteration] = sum |P 1 - a| + sum |P^T 1 - b| with the new f and the
// old g (unbalanced: a exp(-f / rho_a) and b exp(-g / rho_b) in place of a and b). Where it is <= tol, g stays as it is
// and the iteration ends: f and g have that error. Errors after the last iteration are NaN, and all those of problems
// whose omega is 0: they are left alone. An infinite error: f and g
// were about to become so, the relaxation has failed.
template <class T>
QUADRIC_API void sinkhorn(const Execution& exec, std::int64_t problems, const Cost<T>* cost,
                          const double* a,      // problems x n, positive
                          const double* b,      // problems x m, positive
                          const double* omega,  // problems
                          double* f,            // problems x n, in and out
                          double* g,            // problems x m, in and out
                          double* errors,       // problems x count
                          const SinkhornOptions& options);

// A sparse matrix of n rows by columns of each row, ascending: entries [starts[i], starts[i + 1]) are those of row i.
struct Pattern {
  std::vector<std::int64_t> starts;  // n + 1
  std::vector<std::int32_t> columns;
  std::vector<double> costs;
};

struct CandidateOptions {
  double reg = 1;
  double bits = 50;
  std::int64_t limit = 0;  // entries
};

// The entries with P_ij >= 2^-bits min(a_i, b_j): what is left out sums to at most min(n, m) 2^-bits. False, and
// nothing of use in `pattern`, if they are more than `limit` (or, in large problems, more than twice as many in a
// sample of the rows). One read.
template <class T>
QUADRIC_API bool candidates(const Execution& exec, const Cost<T>& cost, const double* a, const double* b,
                            const double* f, const double* g, Pattern& pattern, const CandidateOptions& options);

// A view of a Pattern, or of arrays like it.
struct SparseView {
  std::int64_t rows = 0, cols = 0;
  const std::int64_t* starts = nullptr;
  const std::int32_t* columns = nullptr;
};

struct SparseSinkhornOptions {
  double reg = 1;
  double omega = 1;
  double tol = 0;
  std::int64_t count = 1;
};

// `sinkhorn` with P = 0 outside the pattern. values and columns: P with the last f and the g before its last update,
// and its column sums.
QUADRIC_API void sparse_sinkhorn(const Execution& exec, const SparseView& pattern,
                                 const double* costs,  // of the entries
                                 const double* a, const double* b, double* f, double* g, double* errors,
                                 double* values,        // of the entries, or null
                                 double* columns_sums,  // m
                                 const SparseSinkhornOptions& options);

struct NewtonOptions {
  double shift = 0;  // Levenberg: the diagonal grows by this factor
  double drop = 0;   // the smallest entries are left out while their sum is at most this
  double tol = 0.1;  // of the residual, relative to the gradient
  std::int64_t max_iter = 1000;
};

struct NewtonReport {
  std::int64_t iterations = 0, kept = 0;
  double dropped = 0;    // mass
  double residual = 0;   // relative
  double predicted = 0;  // gradient.d - d^T (diag(c) - S^T diag(1 / a) S) d / 2
};

// d with (diag(c) (1 + shift) - S^T diag(1 / a) S) d = gradient, by conjugate gradients with the diagonal as
// preconditioner: the Newton step of the dual in g, f being optimal, times 1 / reg. S: the plan without small entries
// (Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying, "Accelerating Sinkhorn algorithm with sparse
// Newton iterations", 2024, arXiv:2401.12253; the Schur complement and the choice by mass are ours).
QUADRIC_API NewtonReport newton_direction(const Execution& exec, const SparseView& pattern,
                                          const double* values,    // of the entries: P
                                          const double* a,         // n: row sums of P
                                          const double* c,         // m: column sums of P
                                          const double* gradient,  // m
                                          double* direction,       // m
                                          const NewtonOptions& options);

// P itself.
template <class T>
QUADRIC_API void plan(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg,
                      MatrixView<T> out);  // n x m, contiguous rows

// out = P V; rows = P 1; columns = P^T 1; returns <P, C>. One pass, nothing n x m is stored.
template <class T>
QUADRIC_API double apply_plan(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg,
                              MatrixView<const double> V,  // m x k, contiguous; k = 0 for none
                              double* out,                 // n x k
                              double* rows, double* columns);

// out_i = sum_j P_ij dC_ij / dx_i for CostKind::euclidean (0 where the points meet) and CostKind::cityblock.
template <class T>
QUADRIC_API void point_gradient(const Execution& exec, const Cost<T>& cost, const double* f, const double* g,
                                double reg,
                                double* out);  // n x d

// ---- sparsity-constrained transport --------------------------------------------------------------------------------

// One cost matrix, quadratic regularization, at most k entries in a column of the plan (Liu, Puigcerver and Blondel,
// arXiv:2209.15466). With z_j = f - c_j restricted to its k largest entries (the first rows among equals):
//
//   capped_columns:  P_j = [z_j + g_j]_+ / reg with the g_j for which it has the sum b_j: the semi-dual, equation 11
//   capped_dual:     the same with g given: the dual, equation 10
//
// Column j of P is indices[j], values[j]: its positive entries in the order of their rows, then row n with value 0
// where there are fewer than k. Two reads of C, the second from cache; nothing but the few entries that can be positive
// is sorted. Entries of C may be +inf: those pairs are forbidden. g_j is +inf and P_j = 0 where the whole column is.
template <class T>
QUADRIC_API void capped_columns(const Execution& exec,
                                MatrixView<const T> M,  // n x m, the cost C; any strides
                                const double* f,        // n, finite
                                const double* b,        // m, above 0
                                std::int64_t k, double reg,
                                std::int32_t* indices,  // m x k
                                double* values,         // m x k
                                double* g);             // m
template <class T>
QUADRIC_API void capped_dual(const Execution& exec,
                             MatrixView<const T> M,  // n x m; any strides
                             const double* f,        // n, finite
                             const double* g,        // m, finite
                             std::int64_t k, double reg,
                             std::int32_t* indices,  // m x k
                             double* values);        // m x k

}  // namespace quadric::transport
