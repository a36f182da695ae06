"""Sinkhorn iterations on the listed entries of a sparse matrix, all in float64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import (
    Line,
    load,
    pointer,
    power_of_two,
    spread,
    store,
    workspace,
)
from quadric.transport.numba.costs import PARTS, STEP
from quadric.transport.numba.rows import HIGHEST, LOG2E, LOWEST, MOST, finish, power
from quadric.transport.numba.sinkhorn import add_columns, end, prepare

Array = NDArray[Any]
Floats = NDArray[np.float64]
Pointers = NDArray[np.int64]
Indices = NDArray[np.int32]

ENTRIES = 1 << 15  # of a part, at least
ALONE = 1 << 18  # entries from which on threads share the work


def sparse_sinkhorn(
    indptr: Pointers,
    indices: Indices,
    costs: Floats,
    a: Floats,
    b: Floats,
    reg: float,
    omega: float,
    tol: float,
    count: int,
    f: Floats,
    g: Floats,
    errors: Floats,
    values: Floats | None,
    columns: Floats,
    n_threads: int,
) -> None:
    """Make up to `count` iterations with the listed entries only.

    Parameters
    ----------
    indptr, indices, costs : (n + 1,) int64, (nnz,) int32 and (nnz,) float64 arrays
        CSR.
    a, b : (n,) and (m,) float64 arrays, above 0
    reg, omega, tol : float
    count : int
    f, g : (n,) and (m,) float64 arrays, updated
    errors : (count,) float64 array, written
        As those of :func:`quadric.transport.numba.sinkhorn`.
    values : (nnz,) float64 array, written, or None
        The plan of f and the g before its last update.
    columns : (m,) float64 array, written
        Its column sums.
    n_threads : int
    """
    n, m, k = len(a), len(b), LOG2E / reg
    width = -(-m // STEP) * STEP
    parts = cut(indptr)
    errors[...] = np.nan
    entries = np.empty(0) if values is None else values
    state = prepare(np.empty(0), f, np.zeros(n), g, np.zeros(width), a, np.log2(a), b, np.log2(b))
    state[9][:], state[11][:] = 1.0, 1.0
    sums = np.empty((len(parts), width))
    matrix = indptr, indices, costs
    if n_threads == 1 or len(indices) < ALONE:
        iterate(matrix, parts, state, k, omega, tol, errors, entries, sums)
    else:
        failed = np.empty(len(parts))

        def work(i: int) -> None:
            start, stop = parts[i]
            failed[i] = sweep_entries(*matrix, start, stop, state, k, omega, entries, sums[i])

        for it in range(count):
            run(work, len(parts), n_threads)
            error = float(np.add.accumulate(failed)[-1])  # in the order of `iterate`
            if conclude(matrix, state, k, omega, tol, error, sums, errors, it):
                break
    g[...], columns[...] = state[2][:m], state[12][:m]


def cut(indptr: Pointers) -> Pointers:
    """Cut the rows into parts with about as many entries, whatever the number of threads."""
    n = len(indptr) - 1
    count = max(1, min(PARTS, int(indptr[-1]) // ENTRIES, n // STEP))
    bounds = np.searchsorted(indptr, np.arange(1, count) * (int(indptr[-1]) // count))
    edges = np.concatenate([[0], np.minimum(bounds, n), [n]]).astype(np.int64)
    return np.stack([edges[:-1], edges[1:]], axis=1)


@compiled
def iterate(
    matrix: Any, parts: Pointers, state: Any, k: float, omega: float, tol: float, errors: Floats,
    values: Floats, sums: Floats,
) -> None:  # fmt: skip
    """All iterations on one thread."""
    indptr, indices, costs = matrix
    for it in range(len(errors)):
        error = 0.0
        for i in range(len(parts)):
            error += sweep_entries(
                indptr, indices, costs, parts[i, 0], parts[i, 1], state, k, omega, values, sums[i]
            )  # fmt: skip
        if conclude(matrix, state, k, omega, tol, error, sums, errors, it):
            break


@compiled
def sweep_entries(
    indptr: Pointers, indices: Indices, costs: Floats, start: int, stop: int, state: Any,
    k: float, omega: float, values: Floats, sums: Floats,
) -> float:  # fmt: skip
    """Update f in rows [start, stop), write their entries, add up columns; see `sweep`."""
    most = 0
    for i in range(start, stop, STEP):
        most = max(most, indptr[min(i + STEP, stop)] - indptr[i])
    room, numbers = workspace(most + STEP, sums), workspace(6 * STEP, sums)
    f, g, a, log_a = pointer(state[0]), pointer(state[2]), pointer(state[4]), pointer(state[5])
    E, row, weight, part = pointer(room), pointer(numbers), pointer(state[9]), pointer(sums)
    to, cost, out = pointer(indices), pointer(costs), pointer(values)
    room[:], sums[:], numbers[:] = 0.0, 0.0, 1.0
    error, write = 0.0, len(values) > 0
    scale, low, high = spread(E, k), spread(E, LOWEST / k), spread(E, HIGHEST / k)
    for first in range(start, stop, STEP):
        last, base = min(first + STEP, stop), indptr[first]
        for i in range(first, last):
            shift = f[i]
            for e in range(indptr[i], indptr[i + 1]):
                E[e - base] = (shift + g[to[e]]) - cost[e]
        for e in range(0, indptr[last] - base, STEP):
            store(E, e, power_of_two(load(E, e), scale, low, high))
        for i in range(first, last):
            r, begin, stop_row = i - first, indptr[i], indptr[i + 1]
            row[r], row[2 * STEP + r] = row_sum(E, begin - base, stop_row - base), 0.0
            if not (1e-150 < row[r] < 1e200):
                top = -np.inf
                for e in range(begin, stop_row):
                    top = max(top, (f[i] + g[to[e]]) - cost[e])
                if not (-np.inf < top < np.inf):
                    return np.inf
                for e in range(begin, stop_row):
                    E[e - base] = 2.0 ** (k * ((f[i] + g[to[e]]) - cost[e] - top))
                row[r] = row_sum(E, begin - base, stop_row - base)
                row[2 * STEP + r] = k * top
        finish(row, f, weight, log_a, first, last - first, k, 1.0, omega)
        for i in range(first, last):
            u, f[i] = row[STEP + i - first], row[3 * STEP + i - first]
            u = u if u < MOST else np.inf
            error += min(abs(row[5 * STEP + i - first] - a[i]), MOST)
            for e in range(indptr[i], indptr[i + 1]):
                p = u * E[e - base]
                part[to[e]] += p
                if write:
                    out[e] = p
    # Memory is freed after the last use of its array, whatever points there.
    room[0] = numbers[0] = 0.0
    return error


@inlined
def row_sum(E: Line, start: int, stop: int) -> float:
    """The sum of E from `start` to `stop`, in four strands."""
    s0 = s1 = s2 = s3 = 0.0
    full = start + (stop - start) // 4 * 4
    for e in range(start, full, 4):
        s0, s1, s2, s3 = s0 + E[e], s1 + E[e + 1], s2 + E[e + 2], s3 + E[e + 3]
    for e in range(full, stop):
        s0 += E[e]
    return (s0 + s1) + (s2 + s3)


@compiled
def conclude(
    matrix: Any, state: Any, k: float, omega: float, tol: float, error: float, sums: Floats,
    errors: Floats, it: int,
) -> bool:  # fmt: skip
    """Finish an iteration with its columns; return whether it was the last."""
    if error < np.inf and not add_columns(state, sums) and not sum_columns(matrix, state, k):
        error = np.inf
    errors[it] = end(state, k, 1.0, omega, tol, error)
    return bool(errors[it] <= tol or errors[it] == np.inf)


@compiled
def sum_columns(matrix: Any, state: Any, k: float) -> bool:
    """Sums of columns by their largest entries; return whether every column has one."""
    indptr, indices, costs = matrix
    f, g, c, log_c = state[0], state[2], state[12], state[13]
    m = len(state[6])
    tops, scaled = np.full(m, -np.inf), np.zeros(m)
    for i in range(len(f)):
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            tops[j] = max(tops[j], (f[i] + g[j]) - costs[e])
    for i in range(len(f)):
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            scaled[j] += 2.0 ** (k * ((f[i] + g[j]) - costs[e] - tops[j]))
    for j in range(m):
        if not (-np.inf < tops[j] < np.inf):
            return False
        log_c[j] = np.log2(scaled[j]) + k * tops[j]
    for j in range(0, len(c), 8):
        store(c, j, power(c, load(log_c, j)))
    return True
