"""Symmetric matrices of several sizes: products with vectors and rank-k updates in one pass."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.lanes import (
    WIDE,
    load,
    magnitude,
    multiply_add,
    narrow,
    number,
    put,
    splat,
    total,
    widen,
)
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.streams import add_dots

Array = NDArray[Any]
Arrays = tuple[Array, ...]

ENTRIES = 1 << 18  # of a matrix in a piece of work, about
ROWS = 4  # updated together


def pieces(matrices: Arrays) -> list[tuple[int, int, int]]:
    """Cut the matrices into ranges of rows: (matrix, start, stop)."""
    cuts = []
    for i, J in enumerate(matrices):
        rows = max(ENTRIES // max(len(J), 1) // ROWS, 1) * ROWS
        cuts += [(i, start, min(start + rows, len(J))) for start in range(0, len(J), rows)]
    return cuts


def symmetric_product(J: Arrays, V: Arrays, Y: Arrays, n_threads: int) -> None:
    """Write Y_i = V_i J_i.

    Parameters
    ----------
    J : tuple of (n_i, n_i) arrays, C-contiguous, symmetric
    V : tuple of (k_i, n_i) arrays, contiguous rows
    Y : tuple of (k_i, n_i) arrays, written
    n_threads : int
    """
    cuts = pieces(J)
    matrices, vectors = [line(A)[0] for A in J], [line(A) for A in V]

    def work(c: int) -> None:
        i, start, stop = cuts[c]
        n, k = len(J[i]), len(V[i])
        memory, first, (step, _) = vectors[i]
        out = np.zeros((1, stop - start, k))
        add_dots(matrices[i], start * n, n, stop - start, memory, first, step, k, n, n, out)
        Y[i][:, start:stop] = out[0].T

    run(work, len(cuts), n_threads)


def symmetric_update(
    J: Arrays,
    alpha: NDArray[np.float64],
    delta: NDArray[np.float64],
    sign: NDArray[np.float64],
    Y: Arrays,
    out: Arrays,
    norms: NDArray[np.float64],
    n_threads: int,
) -> None:
    """Write alpha_i J_i + delta_i I + sign_i Y_i^T Y_i, exactly symmetric where J_i is.

    Parameters
    ----------
    J : tuple of (n_i, n_i) arrays, C-contiguous
    alpha, delta, sign : (len(J),) float64 arrays
    Y : tuple of (k_i, n_i) arrays, contiguous rows
    out : tuple of (n_i, n_i) arrays, C-contiguous, written; may be those of J
    norms : (len(J),) float64 array, written
        The largest absolute row sums; inf or nan where an entry is not finite.
    n_threads : int
    """
    cuts = pieces(J)
    sources, targets = [line(A)[0] for A in J], [line(A)[0] for A in out]
    vectors = [np.array(A, np.float64, order="C") for A in Y]
    shifts = np.zeros((len(J), WIDE + 1, WIDE))
    shifts[:, range(WIDE), range(WIDE)] = delta[:, None]
    largest = np.zeros(len(cuts))

    def work(c: int) -> None:
        i, start, stop = cuts[c]
        largest[c] = update_rows(
            sources[i], alpha[i], shifts[i], sign[i], vectors[i].reshape(-1), len(vectors[i]),
            len(J[i]), start, stop, targets[i],
        )  # fmt: skip

    run(work, len(cuts), n_threads)
    norms[...] = 0
    for (i, _, _), norm in zip(cuts, largest, strict=True):
        norms[i] = np.maximum(norms[i], norm)  # a NaN stays


@compiled
def update_rows(
    J: Array,
    alpha: float,
    shifts: NDArray[np.float64],
    sign: float,
    Y: Array,
    k: int,
    n: int,
    start: int,
    stop: int,
    out: Array,
) -> float:
    """Update rows [start, stop); return the largest absolute row sum, nan if one is.

    shifts: delta on the diagonal of an 8 x 8 matrix, then a row of zeros.
    """
    largest = 0.0
    a, s, none = splat(alpha), splat(sign), 0.0
    full = n - n % WIDE
    for i in range(start, stop, ROWS):
        rows = min(ROWS, stop - i)
        # Rows beyond the last are not written: they repeat it in sums that are dropped.
        i1, i2, i3 = min(i + 1, stop - 1), min(i + 2, stop - 1), min(i + 3, stop - 1)
        n0 = n1 = n2 = n3 = splat(none)
        for j in range(0, full, WIDE):
            p0 = p1 = p2 = p3 = splat(none)
            for r in range(0, k * n, n):
                y = widen(Y, r + j)
                p0 = multiply_add(splat(number(Y, r + i)), y, p0)
                p1 = multiply_add(splat(number(Y, r + i1)), y, p1)
                p2 = multiply_add(splat(number(Y, r + i2)), y, p2)
                p3 = multiply_add(splat(number(Y, r + i3)), y, p3)
            n0 = n0 + _write(J, a, s * p0, shifts, i, n, j, out)
            if rows > 1:
                n1 = n1 + _write(J, a, s * p1, shifts, i1, n, j, out)
            if rows > 2:
                n2 = n2 + _write(J, a, s * p2, shifts, i2, n, j, out)
            if rows > 3:
                n3 = n3 + _write(J, a, s * p3, shifts, i3, n, j, out)
        sums = (total(n0), total(n1), total(n2), total(n3))
        for q in range(rows):
            norm, row = sums[q], (i + q) * n
            for j in range(full, n):
                p = 0.0
                for r in range(0, k * n, n):
                    p = multiply_add(number(Y, r + i + q), number(Y, r + j), p)
                value = multiply_add(alpha, number(J, row + j), sign * p)
                put(out, row + j, value + shifts[0, 0] if i + q == j else value)
                norm += abs(number(out, row + j))
            if norm > largest or norm != norm:
                largest = norm
    return largest


@inlined
def _write(
    J: Array, a: Any, p: Any, shifts: NDArray[np.float64], i: int, n: int, j: int, out: Array
) -> Any:
    """Write a J + p and the shift of the diagonal to columns j to j + 7; return their sizes."""
    shift = load(shifts, i - j if 0 <= i - j < WIDE else WIDE)
    narrow(out, i * n + j, multiply_add(a, widen(J, i * n + j), p) + shift)
    return magnitude(widen(out, i * n + j))
