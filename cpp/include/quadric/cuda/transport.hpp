// The functions of quadric/transport.hpp on an Nvidia GPU: the same names, meaning and results, with pointers to memory
// of the current device for all arrays, and for what the CPU functions return where no more is said; arrays of structs
// (Cost) and the structs themselves are the host's. Everything is launched on `exec.stream` and takes temporary memory
// from `exec`. Only `candidates` and `newton_direction` wait for the stream; all else may be captured in a CUDA graph.
//
// The same call gives the same bits on every run; the number of multiprocessors does not enter.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"
#include "quadric/transport.hpp"
#include "quadric/view.hpp"

namespace quadric::cuda::transport {

using quadric::transport::CandidateOptions;       //
using quadric::transport::Cost;                   // M, x and y in device memory
using quadric::transport::CostKind;               //
using quadric::transport::NewtonOptions;          //
using quadric::transport::NewtonReport;           //
using quadric::transport::SinkhornOptions;        //
using quadric::transport::SparseSinkhornOptions;  //
using quadric::transport::SparseView;             // starts and columns in device memory

// The costs of problems of one kind and shape, each as many entries after the one before.
template <class T>
struct Costs {
  Cost<T> first;
  std::int64_t M_stride = 0, x_stride = 0, y_stride = 0;
};

// Up to `count` iterations of each problem; where it stops is decided on the device, launches that come later return at
// once. One read of a stored cost per iteration, two evaluations of a cost of points.
template <class T>
QUADRIC_API void sinkhorn(const Execution& exec, std::int64_t problems, const Costs<T>& cost,
                          const double* a,      // problems x n, positive
                          const double* b,      // problems x m, positive
                          const double* omega,  // problems
                          double* f,            // problems x n, in and out
                          double* g,            // problems x m, in and out
                          double* errors,       // problems x count
                          const SinkhornOptions& options);

struct ConvergeOptions {
  double reg = 1;
  double theta_a = 1, theta_b = 1;  // as in SinkhornOptions
  double tol = 0;
  std::int64_t count = 10000;  // iterations at most
  bool anneal = false;         // start from zeros, at larger values of reg where costs spread over many times reg
  // kMeasures x problems, balanced ones; if given, the potentials end with <f, a> = <g, b>.
  double* measures = nullptr;
  bool* converged = nullptr;  // problems: whether the marginal error among the measures is at most `wanted`
  double wanted = 0;
};
// Of the plan P of the potentials, with sums r of rows and c of columns: <P, C>; what is minimized,
// <f, r> + <g, c> - reg sum P; what is maximized, <f, a> + <g, b> - reg sum P; the marginal error |r - a| + |c - b|,
// infinite where no iteration was possible.
inline constexpr int kMeasures = 4;

// Whole solutions of many small problems in one launch: Sinkhorn iterations until the error is at most tol or gets no
// smaller. Over-relaxed by omega[problem], or, where that is NaN, by a factor that follows from how fast they converge.
// Runs that make things worse are taken back; what has not converged ends at the least error that was seen. A block of
// threads works on a problem with its cost in shared memory; `converges` says whether it fits.
template <class T>
QUADRIC_API void converge(const Execution& exec, std::int64_t problems, const Costs<T>& cost,
                          const double* a,           // problems x n, positive; null: all 1 / n
                          const double* b,           // problems x m, positive; null: all 1 / m
                          const double* omega,       // problems; null: NaN
                          double* f,                 // problems x n, in (unless annealed) and out
                          double* g,                 // problems x m, as f
                          double* errors,            // problems: of f and g, infinite where no iteration was possible
                          std::int64_t* iterations,  // problems
                          const ConvergeOptions& options);

// Whether problems of this shape are small enough for `converge`; itemsize: 4 or 8.
QUADRIC_API bool converges(CostKind kind, std::int64_t n, std::int64_t m, std::int64_t d, int itemsize);

// Device memory for a pattern, that the caller has made.
struct PatternMemory {
  std::int64_t* starts = nullptr;   // n + 1
  std::int32_t* columns = nullptr;  // entries
  double* costs = nullptr;          // entries
};

// As on the CPU; `make(entries)` is called where they are few enough, once they have been counted, and they are written
// to what it returns. Waits for the stream to learn how many they are.
template <class T>
QUADRIC_API bool candidates(const Execution& exec, const Cost<T>& cost, const double* a, const double* b,
                            const double* f, const double* g, const CandidateOptions& options,
                            const std::function<PatternMemory(std::int64_t entries)>& make);

QUADRIC_API void sparse_sinkhorn(const Execution& exec, const SparseView& pattern, std::int64_t entries,
                                 const double* costs,  // entries
                                 const double* a,      // n
                                 const double* b,      // m
                                 double* f, double* g,
                                 double* errors,        // count
                                 double* values,        // entries, or null
                                 double* columns_sums,  // m
                                 const SparseSinkhornOptions& options);

// Waits for the stream: the report is the host's.
QUADRIC_API NewtonReport newton_direction(const Execution& exec, const SparseView& pattern, std::int64_t entries,
                                          const double* values,    // entries: P
                                          const double* a,         // n: row sums of P
                                          const double* c,         // m: column sums of P
                                          const double* gradient,  // m
                                          double* direction,       // m
                                          const NewtonOptions& options);

template <class T>
QUADRIC_API void plan(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg,
                      MatrixView<T> out);  // n x m

template <class T>
QUADRIC_API void apply_plan(const Execution& exec, const Cost<T>& cost, const double* f, const double* g, double reg,
                            MatrixView<const double> V,  // m x k, contiguous; k = 0 for none
                            double* out,                 // n x k
                            double* rows,                // n
                            double* columns,             // m
                            double* transported);        // 1: <P, C>

// Row and column sums and <P, C> of a batch of plans.
template <class T>
QUADRIC_API void apply_plans(const Execution& exec, std::int64_t problems, const Costs<T>& cost,
                             const double* f,  // problems x n
                             const double* g,  // problems x m
                             double reg,
                             double* rows,          // problems x n
                             double* columns,       // problems x m
                             double* transported);  // problems

template <class T>
QUADRIC_API void point_gradient(const Execution& exec, const Cost<T>& cost, const double* f, const double* g,
                                double reg,
                                double* out);  // n x d

// ---- sparsity-constrained transport --------------------------------------------------------------------------------

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

// What the search for other places reads of a cost on the device.

// Largest finite entry of each column, -inf without one.
template <class T>
QUADRIC_API void largest_finite(const Execution& exec, MatrixView<const T> M, double* out);  // out: m

// out = M at places[j] of each column j, +inf elsewhere.
template <class T>
QUADRIC_API void keep_places(const Execution& exec, MatrixView<const T> M,
                             const std::int32_t* places,  // m x k; rows, n for none
                             std::int64_t k,
                             T* out);  // n x m, column by column

// ---- the router ----------------------------------------------------------------------------------------------------

// Which pairs may have a gate; null: all.
struct RouteMask {
  const bool* data = nullptr;
  std::int64_t row_stride = 0, col_stride = 0;  // col_stride 0: whole tokens
};

struct RouteOptions {
  std::int64_t capacity = 0;   // most tokens of an expert; 0: ceil(capacity_factor * tokens that take part / experts)
  double capacity_factor = 1;  //
  double reg = 1;
  double tol = 1e-9;            // error per token
  std::int64_t max_iter = 100;  // Newton steps, about
};

// Gates P of tokens and experts: maximize <scores, P> - reg / 2 sum P^2 with row sums 1 (at most 1 where the loads sum
// to less than the tokens), column sums `loads`, and at most `capacity` entries in a column.
//
// Without the bound on their number that is a concave problem in one price per expert, and Newton's method needs a few
// passes over the scores. Where an expert has more tokens than it may, the problem is solved for smaller and smaller
// reg, whose plans have fewer entries, until it fits. The places of that plan are kept, others join them up to the
// capacity, tokens with few experts first, and the problem is solved on them with the given reg, where some plan fits.
// One launch, no wait.
//
// Capacities and loads hold whatever happens. Scores that are not finite make all gates NaN. At most 1024 experts.
template <class T>
QUADRIC_API void route(const Execution& exec, MatrixView<const T> scores, const RouteMask& mask,
                       const double* loads,       // experts; null: equal ones, in whole tokens where places are short
                       T* gates,                  // tokens x experts
                       bool* tight,               // tokens: whether its gates must sum to 1
                       double* f,                 // tokens: potentials, -inf for tokens that do not take part; or null
                       double* error,             // 1: what gates miss of the sums they should have, per token
                       std::int64_t* iterations,  // 1: passes over the scores
                       const RouteOptions& options);

// The derivative in the scores, given that in the gates: the gradient less its least-squares fit u_i + v_j where gates
// are not 0, divided by reg; u_i = 0 for tokens that are not free. 0 where a gate is 0.
template <class T>
QUADRIC_API void route_backward(const Execution& exec, MatrixView<const T> gradient, MatrixView<const T> gates,
                                const bool* free,  // tokens
                                double reg,
                                T* out);  // tokens x experts

}  // namespace quadric::cuda::transport
