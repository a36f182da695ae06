"""Batched Cholesky of small matrices: factor, inverse, solution, log-determinant.

Eight matrices are handled side by side, whatever their size, and in float64 whatever their dtype.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.lanes import WIDE, splat, store
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.packs import (
    TILE,
    backward,
    cholesky,
    fill_tile,
    first_failure,
    forward,
    gather,
    inverse,
    mirror,
    padded,
    scatter,
    workspace,
)
from quadric.linalg.numba.parallel import run

Array = NDArray[Any]

PIECES = 64  # cuts of the batch, at most
CHOLESKY, INVERSE, SOLVE = 0, 1, 2


def spd(
    A: Array,
    b: Array | None,
    what: int,
    out: Array | None,
    logdet: NDArray[np.float64],
    status: NDArray[np.int32],
    n_threads: int,
) -> None:
    """Factor every A = L L^T and write what is asked for.

    Parameters
    ----------
    A : (N, B, B) array, any strides
        Only the lower triangles are read.
    b : (N, B, k) array of A's dtype, any strides, or None
        Right sides, for ``what = 2``.
    what : int
        0: L with zeros above; 1: A^-1; 2: A^-1 b; 3: the log-determinant alone.
    out : (N, B, B) or (N, B, k) array of A's dtype, or None, written
    logdet : (N,) float64 array, written
    status : (N,) int32 array, written
        -1, or the first pivot that is not positive and finite; out and logdet are then NaN.
    n_threads : int
    """
    N, B = A.shape[:2]
    packs = -(-N // WIDE)
    count = min(packs, PIECES)
    columns = 0 if b is None else b.shape[2]
    n = padded(B)
    size = (n + TILE + padded(columns)) * (n + 1) + n
    nothing = np.empty((0, 0, 0), A.dtype)
    result = line(nothing if out is None else out)[0]
    matrices: list[Any] = []  # memory, origin and strides of A, then those of b
    for operand in (A, nothing if b is None else b):
        memory, origin, strides = line(operand)
        matrices += [memory, origin, *strides]

    def work(i: int) -> None:
        x = workspace(size)
        first, stop = packs * i // count * WIDE, min(packs * (i + 1) // count * WIDE, N)
        solve_packs(x, 0, n, B, columns, what, first, stop, result, logdet, status, *matrices)

    run(work, count, n_threads)


@compiled
def solve_packs(
    x: Array,
    a: int,
    n: int,
    B: int,
    columns: int,
    what: int,
    first: int,
    stop: int,
    out: Array,
    logdet: NDArray[np.float64],
    status: NDArray[np.int32],
    A: Array,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
    b: Array,
    b0: int,
    b1: int,
    b2: int,
    b3: int,
) -> None:
    """Do for matrices [first, stop), eight by eight at a of x, what `spd` does for all.

    Entry (i, j) of A_k is at a0 + k * a1 + i * a2 + j * a3 of A; b likewise; out is contiguous.
    """
    lda = n + 1  # no power of two, so that rows do not share cache sets
    r = a + n * lda
    t = r + n
    y = t + TILE * lda
    for k in range(first, stop, WIDE):
        lanes = min(stop - k, WIDE)
        load_matrices(x, a, lda, n, B, lanes, A, a0 + k * a1, a1, a2, a3)
        cholesky(x, a, lda, r, n)
        for lane in range(lanes):
            status[k + lane] = first_failure(x, r, B, lane)
            logdet[k + lane] = log_determinant(x, a, lda, B, lane)
        if what == CHOLESKY:
            for i in range(B):
                for j in range(i + 1, B):
                    store(x, a + i * lda + j, splat(0.0))
        elif what == INVERSE:
            inverse(x, a, lda, r, t, n, n)
            mirror(x, a, lda, B, B)
        elif what == SOLVE:
            for i in range(0, columns, TILE):
                for j in range(0, n, TILE):
                    fill_tile(x, y + i * lda + j, lda, 0.0)
            for j in range(columns):
                for lane in range(lanes):
                    start = b0 + (k + lane) * b1 + j * b3
                    for i in range(B):
                        x[y + j * lda + i, lane] = b[start + i * b2]
            for i in range(0, columns, TILE):
                forward(x, y + i * lda, lda, a, lda, r, n)
                backward(x, y + i * lda, lda, a, lda, r, n)
            for i in range(B):
                start = (k * B + i) * columns
                scatter(x, y + i, lda, out, start, len(out), B * columns, columns)
        if what != SOLVE and len(out) > 0:
            for i in range(B):
                scatter(x, a + i * lda, 1, out, (k * B + i) * B, len(out), B * B, B)
        for lane in range(lanes):
            if status[k + lane] >= 0:
                size = len(out) // len(status)
                out[(k + lane) * size : (k + lane + 1) * size] = np.nan
                logdet[k + lane] = np.nan


@inlined
def load_matrices(
    x: Array,
    a: int,
    lda: int,
    n: int,
    B: int,
    lanes: int,
    A: Array,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
) -> None:
    """The lower triangles, padded with the rows of an identity."""
    for i in range(B, n):
        for j in range(n):
            store(x, a + i * lda + j, splat(1.0 if i == j else 0.0))
    if a3 == 1 and a0 + (WIDE - 1) * a1 + (B - 1) * a2 + B + WIDE <= len(A) and a1 > 0 and a2 > 0:
        for i in range(B):
            gather(A, a0 + i * a2, a1, i + 1, x, a + i * lda, 1)
    else:
        for i in range(B):
            for j in range(i + 1):
                store(x, a + i * lda + j, splat(1.0 if i == j else 0.0))
                for lane in range(lanes):
                    x[a + i * lda + j, lane] = A[a0 + lane * a1 + i * a2 + j * a3]


@inlined
def log_determinant(x: Array, a: int, lda: int, n: int, lane: int) -> float:
    """2 sum log L_ii, from the product of the significands, which is one logarithm."""
    product, exponent = 1.0, 0
    for i in range(n):
        significand, e = math.frexp(x[a + i * lda + i, lane])
        product *= 2 * significand
        exponent += e - 1
    return 2 * (math.log(product) + exponent * math.log(2.0))
