"""The largest entries of each column, projected: sparsity-constrained transport."""

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.parallel import run

LINE = 64  # bytes
PIECE = 1 << 18  # entries that one thread works on


def capped_columns(
    M: NDArray[np.floating],
    f: NDArray[np.float64],
    b: NDArray[np.float64],
    k: int,
    reg: float,
    indices: NDArray[np.int32],
    values: NDArray[np.float64],
    g: NDArray[np.float64],
    n_threads: int,
) -> None:
    """Write the columns ``[f + g_j - c_j]_+ / reg`` on their k largest entries, with sums b.

    Parameters
    ----------
    M : (n, m) array, any strides
        Costs; Inf forbids a pair.
    f : (n,) float64 array
    b : (m,) float64 array, above 0
    k : int
    reg : float
    indices : (m, k) int32 array, written
        Rows of the positive entries in their order, then n.
    values : (m, k) float64 array, written
        The entries, then 0.
    g : (m,) float64 array, written
        Inf where all of a column is forbidden.
    n_threads : int
    """
    pieces = _pieces(M)

    def work(i: int) -> None:
        project(M, f, b, reg, *pieces[i], indices, values, g)

    run(work, len(pieces), n_threads)


def capped_dual(
    M: NDArray[np.floating],
    f: NDArray[np.float64],
    g: NDArray[np.float64],
    k: int,
    reg: float,
    indices: NDArray[np.int32],
    values: NDArray[np.float64],
    n_threads: int,
) -> None:
    """Write the columns ``[f + g_j - c_j]_+ / reg`` on their k largest entries.

    Parameters
    ----------
    M : (n, m) array, any strides
    f, g : (n,) and (m,) float64 arrays
    k : int
    reg : float
    indices, values : (m, k) int32 and float64 arrays, written
        As in :func:`capped_columns`.
    n_threads : int
    """
    pieces = _pieces(M)

    def work(i: int) -> None:
        clip(M, f, g, reg, *pieces[i], indices, values)

    run(work, len(pieces), n_threads)


def _pieces(M: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Cut the columns into groups that begin on a cache line."""
    n, m = M.shape
    line = LINE // M.itemsize
    width = -(-max(PIECE // max(n, 1), 1) // line) * line
    return [(start, min(start + width, m)) for start in range(0, m, width)]


@compiled
def project(
    M: NDArray[np.floating],
    f: NDArray[np.float64],
    b: NDArray[np.float64],
    reg: float,
    start: int,
    stop: int,
    indices: NDArray[np.int32],
    values: NDArray[np.float64],
    g: NDArray[np.float64],
) -> None:
    """Columns from `start` to `stop` of the semi-dual."""
    n, k = len(f), values.shape[1]
    rows, entries = np.empty(n, np.int64), np.empty(n)
    top, low = ranges(M, f, k, start, stop)
    for j in range(start, stop):
        # Nothing below the threshold that the largest entry alone would have is ever positive.
        highest, mass = top[j - start], reg * b[j]
        floor = np.inf if highest == -np.inf else max(highest - mass, low[j - start])
        count = gather(M, f, j, floor, k, rows, entries)
        t = threshold(entries[:count], highest, mass)
        write(rows, entries, count, -highest, -t, reg, n, indices[j], values[j])
        g[j] = -(highest + t)


@compiled
def clip(
    M: NDArray[np.floating],
    f: NDArray[np.float64],
    g: NDArray[np.float64],
    reg: float,
    start: int,
    stop: int,
    indices: NDArray[np.int32],
    values: NDArray[np.float64],
) -> None:
    """Columns from `start` to `stop` of the dual."""
    n, k = len(f), values.shape[1]
    rows, entries = np.empty(n, np.int64), np.empty(n)
    for j in range(start, stop):
        count = gather(M, f, j, -g[j], k, rows, entries)
        write(rows, entries, count, g[j], 0.0, reg, n, indices[j], values[j])


@compiled
def ranges(
    M: NDArray[np.floating], f: NDArray[np.float64], k: int, start: int, stop: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest entry of each column, and what at least k entries are not below.

    That is the least of the maxima of k or more groups of rows.
    """
    n, width = len(f), stop - start
    group = max(n // k, 1)
    top, low, most = np.full(width, -np.inf), np.full(width, np.inf), np.empty(width)
    for first in range(0, n, group):
        most[:] = -np.inf
        for i in range(first, min(first + group, n)):
            for j in range(width):
                z = f[i] - np.float64(M[i, start + j])
                most[j] = z if z > most[j] else most[j]
        for j in range(width):
            top[j], low[j] = max(top[j], most[j]), min(low[j], most[j])
    return top, low


@compiled
def gather(
    M: NDArray[np.floating],
    f: NDArray[np.float64],
    j: int,
    floor: float,
    k: int,
    rows: NDArray[np.int64],
    entries: NDArray[np.float64],
) -> int:
    """Note those of the k largest entries of f - c_j not below `floor`; return how many."""
    count = 0
    for i in range(len(f)):
        z = f[i] - np.float64(M[i, j])
        if z >= floor:
            rows[count], entries[count] = i, z
            count += 1
    return keep_largest(rows, entries, count, k)


@compiled
def keep_largest(rows: NDArray[np.int64], entries: NDArray[np.float64], count: int, k: int) -> int:
    """Leave the k largest, the first rows among equals, in the order of their rows."""
    if count <= k:
        return count
    limit = np.partition(entries[:count], count - k)[count - k]
    equal = k
    for p in range(count):
        equal -= entries[p] > limit
    kept = 0
    for p in range(count):
        if entries[p] == limit:
            equal -= 1
        if entries[p] > limit or (entries[p] == limit and equal >= 0):
            rows[kept], entries[kept] = rows[p], entries[p]
            kept += 1
    return kept


@compiled
def threshold(entries: NDArray[np.float64], top: float, mass: float) -> float:
    """Return the t < 0 for which [entries - top - t]_+ has the sum `mass`; `top` is the largest."""
    ordered = np.sort(entries - top)
    total, result = 0.0, -mass
    for p in range(len(ordered)):
        z = ordered[len(ordered) - 1 - p]
        total += z
        t = (total - mass) / (p + 1)
        if z <= t:
            break
        result = t
    return result


@compiled
def write(
    rows: NDArray[np.int64],
    entries: NDArray[np.float64],
    count: int,
    first: float,
    second: float,
    reg: float,
    n: int,
    indices: NDArray[np.int32],
    values: NDArray[np.float64],
) -> None:
    """Write the positive [entries + first + second] / reg; what is left over holds row n and 0."""
    indices[:], values[:] = n, 0.0
    kept = 0
    for p in range(count):
        value = ((entries[p] + first) + second) / reg
        if value > 0:
            indices[kept], values[kept] = rows[p], value
            kept += 1
