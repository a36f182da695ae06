"""The pairs whose mass counts, as a sparse matrix of their costs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import (
    lanes,
    load,
    lower,
    pointer,
    reaching,
    spread,
    workspace,
)
from quadric.transport.numba.costs import ROWS, bare, cost_tile, padded, problem, source
from quadric.transport.numba.rows import LOG2E, grid, row_stride, split

Array = NDArray[Any]
Floats = NDArray[np.float64]
Matrix = tuple[NDArray[np.int64], NDArray[np.int32], Floats]

ROOM = 16  # entries of a row that there is room for at first


def candidates(
    M: Array | None,
    x: Array | None,
    y: Array | None,
    kind: int,
    a: Floats,
    b: Floats,
    f: Floats,
    g: Floats,
    reg: float,
    bits: float,
    limit: int,
    n_threads: int,
) -> Matrix | None:
    """Return the pairs with log2 P_ij >= min(log2 a_i, log2 b_j) - bits.

    Parameters
    ----------
    M : (n, m) array, any strides, or None
    x, y : (n, d) and (m, d) arrays, C-contiguous, or None
    kind : int
    a, b, f, g : (n,) and (m,) float64 arrays
    reg, bits : float
    limit : int
    n_threads : int

    Returns
    -------
    indptr, indices, costs : int64, int32 and float64 arrays
        The costs in CSR, columns ascending. None instead of more than `limit` pairs.
    """
    prepared = source(M, x, y, kind, False)
    _, n, m = prepared.shape
    cost, parts, k = problem(prepared.args, 0), prepared.parts(), LOG2E / reg
    alpha, beta = prepared.alpha[0], prepared.beta[0, :m]
    like, width = prepared.like, prepared.width
    # The potentials of the columns and the least mass in the type of the costs, to find candidates
    # of candidates; each of those is then looked at in float64.
    step = grid(f, alpha, g, beta, 22 if like.itemsize == 4 else 51)
    rows = padded(n)
    hi, G = np.empty(rows, like.dtype), np.empty(width, like.dtype)
    split(f, alpha, step, k, hi, np.empty(rows))
    split(g, beta, step, k, G, np.empty(width))
    least_a, least_b = np.log2(a) - bits, np.log2(b) - bits
    tolerance = 8 * float(np.finfo(like.dtype).eps)
    low = np.full(width, np.inf, like.dtype)
    low[:m] = least_b / k - 2 * step - tolerance * np.abs(least_b / k)
    low_a = (least_a / k - 2 * step - tolerance * np.abs(least_a / k)).astype(like.dtype)
    indptr = np.zeros(n + 1, np.int64)
    found: list[tuple[NDArray[np.int32], Floats]] = [(np.empty(0, np.int32), np.empty(0))] * len(
        parts
    )

    counts = np.zeros(len(parts), np.int64)

    def work(i: int) -> None:
        start, stop = parts[i]
        if counts.sum() > limit:
            return
        size = min(ROOM, m) * (stop - start)
        indices, entries = np.empty(size, np.int32), np.empty(size)
        row, used = start, 0
        while True:
            row, used = collect(
                cost, row, stop, hi, G, low_a, low, k, f, g, alpha, beta, least_a, least_b,
                indptr, indices, entries, used,
            )  # fmt: skip
            counts[i] = used
            if row == stop or counts.sum() > limit:
                break
            more = len(indices) + ROWS * m
            indices, entries = (
                np.concatenate([p, np.empty(more, p.dtype)]) for p in (indices, entries)
            )
        found[i] = indices[:used], entries[:used]

    run(work, len(parts), n_threads)
    if counts.sum() > limit:
        return None
    np.cumsum(indptr, out=indptr)
    indices, entries = (np.concatenate(p) for p in zip(*found, strict=True))
    return indptr, indices, entries


@compiled
def collect(
    cost: Any, start: int, stop: int, hi: Array, G: Array, low_a: Array, low: Array, k: float,
    f: Floats, g: Floats, alpha: Floats, beta: Floats, least_a: Floats, least_b: Floats,
    counts: NDArray[np.int64], indices: NDArray[np.int32], entries: Floats, used: int,
) -> tuple[int, int]:  # fmt: skip
    """Note the pairs of rows [start, stop) while there is room; return where it ended.

    The number of pairs of row i is written to counts[i + 1].
    """
    width, m, wide, stride = len(G), len(g), lanes(G), row_stride(len(G), G)
    inner, room = bare(cost), workspace(ROWS * stride, G)
    E, H, least = pointer(room), pointer(G), pointer(low)
    for i in range(start, stop, ROWS):
        before = used
        cost_tile(inner, i, 0, width, E, 0, stride)
        for r in range(i, min(i + ROWS, stop)):
            shift, row_low, e = spread(G, hi[r]), spread(G, low_a[r]), (r - i) * stride
            first = used
            for j in range(0, width, wide):
                z = (shift + load(H, j)) - load(E, e + j)
                mask, column = reaching(z, lower(row_low, load(least, j))), j
                while mask != 0:
                    if mask & 1 and column < m:
                        C = np.float64(room[e + column]) + alpha[r] + beta[column]
                        z_exact = k * ((f[r] + g[column]) - C)
                        if z_exact >= min(least_a[r], least_b[column]):
                            if used == len(indices):
                                return i, before
                            indices[used], entries[used] = column, C
                            used += 1
                    mask >>= 1
                    column += 1
            counts[r + 1] = used - first
    return stop, used
