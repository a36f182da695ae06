"""A^T (b - A x) in one read of A."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba import blas
from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import multiply_add, pointer, repeat, spread, store, total, widen
from quadric.sketch.numba import tiles
from quadric.sketch.numba.blocks import Blocks, cut
from quadric.threads import blas_limit

Array = NDArray[Any]
Floats = NDArray[np.float64]

MANY = 6  # columns of x that BLAS is faster with
CACHED = 1 << 16  # numbers of A that all columns of x are multiplied with before the next
ROWS = 4  # whose products with x are taken together
COPIED = 1 << 16  # numbers that are copied at a time, where they must be, about


def residual_gradient(
    A: Array, x: Array, b: Array | None, r: Array | None, g: Floats | None, norms: Floats,
    n_threads: int,
) -> None:  # fmt: skip
    """Write r = b - A x, g = A^T r and the sums of squares of the columns of r.

    Parameters
    ----------
    A : (n, d) array, any strides
    x : (d, k) array of A's dtype
    b : (n, k) array of A's dtype, or None
        Without it r = A x.
    r : (n, k) array of A's dtype, written, or None
    g : (d, k) float64 array, C-contiguous, written, or None
    norms : (k,) float64 array, written
    n_threads : int
    """
    (n, d), k = A.shape, x.shape[1]
    pieces = cut(n, d * k if g is not None else k)
    wide = np.array(x.T, np.float64, order="C")
    sums, squares = np.zeros((len(pieces), k, d)), np.zeros((len(pieces), k))
    if k < MANY:
        memory, start, (to_row, to_column) = line(A)
        none = np.empty((0, k), A.dtype)
        left, right = line(none if b is None else b), line(none if r is None else r)
        # Rows stay in the second cache from one column of x to the next.
        together = n if k == 1 else max(CACHED // max(d, 1) // ROWS, 1) * ROWS

        def work(i: int) -> None:
            low, high = pieces[i]
            for row in range(low, high, together):
                for c in range(k):
                    squares[i, c] += add_rows(
                        memory, start + row * to_row, to_row, to_column, row,
                        min(together, high - row), d, wide[c], b is not None, left[0],
                        left[1] + c * left[2][1], left[2][0], r is not None, right[0],
                        right[1] + c * right[2][1], right[2][0], g is not None, sums[i, c],
                    )  # fmt: skip

        run(work, len(pieces), n_threads)
    else:

        def multiply(i: int) -> None:
            add_blocks(A, wide, b, r, g, *pieces[i], sums[i], squares[i])

        with blas_limit(1):
            run(multiply, len(pieces), n_threads)
    norms[...] = 0
    for square in squares:
        norms += square
    if g is not None:
        g[...] = 0
        for part in sums:
            g += part.T


def add_blocks(
    A: Array, x: Floats, b: Array | None, r: Array | None, g: Floats | None, low: int, high: int,
    sums: Floats, squares: Floats,
) -> None:  # fmt: skip
    """Add what rows [low, high) contribute, many columns of x at a time."""
    k = len(x)
    for start, stop, part in Blocks(A, k)(low, high):
        residual = np.zeros((stop - start, k))
        if b is not None:
            residual[...] = b[start:stop]
        blas.gemm(1.0 if b is None else -1.0, part, x.T, 1.0, residual)
        squares += np.einsum("ij,ij->j", residual, residual)
        if r is not None:
            r[start:stop] = residual
        if g is not None:
            blas.gemm(1.0, residual.T, part, 1.0, sums)


@compiled
def add_rows(
    A: Array, start: int, to_row: int, to_column: int, row: int, rows: int, d: int, x: Floats,
    has_b: bool, b: Array, b0: int, to_b: int, has_r: bool, r: Array, r0: int, to_r: int,
    has_g: bool, g: Floats,
) -> float:  # fmt: skip
    """Add what `rows` rows, the first of them number `row`, contribute; return |r|^2."""
    square = 0.0
    direct = to_column == 1
    size = max(COPIED // max(d, 1) // 16, 1) * 16
    buffer = np.empty(0 if direct else size * d, A.dtype)
    values = np.empty(ROWS)
    for i in range(0, rows, ROWS):
        at, stride, source = start + i * to_row, to_row, A
        if not direct:
            if i % size == 0:
                count = min(size, rows - i)
                tiles.copy(A, at, to_row, to_column, count, d, buffer, 0, d, d)
            at, stride, source = i % size * d, d, buffer
        count = min(ROWS, rows - i)
        # Rows beyond the last repeat it, and what comes of them is dropped.
        a1, a2, a3 = (
            at + min(1, count - 1) * stride,
            at + min(2, count - 1) * stride,
            at + min(3, count - 1) * stride,
        )
        products(source, at, a1, a2, a3, d, x, values)
        for q in range(ROWS):
            if q >= count:
                values[q] = 0.0
                continue
            if has_b:
                values[q] = b[b0 + (row + i + q) * to_b] - values[q]
            if has_r:
                r[r0 + (row + i + q) * to_r] = values[q]
            square += values[q] * values[q]
        if has_g:
            combine(source, at, a1, a2, a3, d, values, g)
    return square


@compiled
def products(A: Array, a0: int, a1: int, a2: int, a3: int, d: int, x: Floats, out: Floats) -> None:
    """Write the products of four rows with x."""
    source, vector = pointer(A), pointer(x)
    full = d - d % 8
    s0 = s1 = s2 = s3 = spread(x, 0.0)
    for j in range(0, full, 8):
        v = widen(vector, j)
        s0 = multiply_add(widen(source, a0 + j), v, s0)
        s1 = multiply_add(widen(source, a1 + j), v, s1)
        s2 = multiply_add(widen(source, a2 + j), v, s2)
        s3 = multiply_add(widen(source, a3 + j), v, s3)
    t0, t1, t2, t3 = total(s0), total(s1), total(s2), total(s3)
    for j in range(full, d):
        v = vector[j]
        t0 += source[a0 + j] * v
        t1 += source[a1 + j] * v
        t2 += source[a2 + j] * v
        t3 += source[a3 + j] * v
    out[0], out[1], out[2], out[3] = t0, t1, t2, t3


@compiled
def combine(
    A: Array, a0: int, a1: int, a2: int, a3: int, d: int, weights: Floats, g: Floats
) -> None:
    """Add four rows with weights."""
    source, sums, weight = pointer(A), pointer(g), pointer(weights)
    full = d - d % 8
    w0, w1, w2, w3 = repeat(weight, 0), repeat(weight, 1), repeat(weight, 2), repeat(weight, 3)
    for j in range(0, full, 8):
        v = multiply_add(widen(source, a0 + j), w0, widen(sums, j))
        v = multiply_add(widen(source, a1 + j), w1, v)
        v = multiply_add(widen(source, a2 + j), w2, v)
        store(sums, j, multiply_add(widen(source, a3 + j), w3, v))
    for j in range(full, d):
        v = weight[0] * source[a0 + j] + weight[1] * source[a1 + j]
        sums[j] += v + (weight[2] * source[a2 + j] + weight[3] * source[a3 + j])
