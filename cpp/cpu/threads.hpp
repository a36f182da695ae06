// Parallel loops. Exceptions must not leave an OpenMP region, so bodies do not throw: allocate and check before.
#pragma once

#include <cstdint>
#include <exception>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "quadric/execution.hpp"

namespace quadric {

// The number of threads to start for `tasks` independent pieces of work.
inline int thread_count(const Execution& exec, std::int64_t tasks) {
#ifdef _OPENMP
  const int wanted = exec.n_threads > 0 ? exec.n_threads : omp_get_max_threads();
#else
  const int wanted = 1;
#endif
  return tasks < wanted ? static_cast<int>(tasks > 1 ? tasks : 1) : wanted;
}

// The same for passes over `entries` numbers that do little with each. A thread must be worth waking: OpenMP's threads
// spin for milliseconds after their work and would take the cores from the BLAS call that follows.
inline int copy_thread_count(const Execution& exec, std::int64_t entries) {
  return thread_count(exec, entries / (std::int64_t{1} << 21));
}

// body(task, worker) for 0 <= task < tasks, in no particular order; worker < n_threads tells workspaces apart.
template <class Body>
void parallel_for(int n_threads, std::int64_t tasks, const Body& body) {
  if (n_threads <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic, 1) num_threads(n_threads)
  for (std::int64_t task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
#endif
}

// The same for bodies that may throw, which they do for lack of memory: the first exception is thrown again here.
template <class Body>
void parallel_try(int n_threads, std::int64_t tasks, const Body& body) {
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(tasks));
  parallel_for(n_threads, tasks, [&](std::int64_t task, int worker) {
    try {
      body(task, worker);
    } catch (...) {
      failures[task] = std::current_exception();
    }
  });
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

}  // namespace quadric
