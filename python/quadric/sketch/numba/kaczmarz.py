"""Projections onto one row after the other: each needs what the one before it left."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.lanes import (
    WIDE,
    multiply_add,
    narrow,
    number,
    put,
    splat,
    total,
    widen,
)
from quadric.linalg.numba.lines import line

Array = NDArray[Any]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def kaczmarz(
    A: Array, Y: Floats, norms: Floats, order: Indices, relaxation: float, X: Floats
) -> None:
    """X[c] += relaxation (Y[i, c] - a_i . X[c]) / norms[i] a_i for the rows i of `order`.

    A (n, d) of any strides, Y (n, k), norms (n,) the squared norms of the rows, X (k, d); float64
    but for A, C-contiguous but for A.
    """
    memory, start, (row, column) = line(A)
    _dense(memory, start, row, column, Y, norms, order, relaxation, X.reshape(-1), X.shape[1])


def kaczmarz_csr(
    indptr: Array,
    indices: Array,
    data: Array,
    Y: Floats,
    norms: Floats,
    order: Indices,
    relaxation: float,
    X: Floats,
) -> None:
    """The same for A in CSR."""
    _sparse(indptr, indices, data, Y, norms, order, relaxation, X)


@compiled
def _dense(
    A: Array,
    start: int,
    row: int,
    column: int,
    Y: Floats,
    norms: Floats,
    order: Indices,
    relaxation: float,
    X: Floats,
    d: int,
) -> None:
    full = d - d % WIDE if column == 1 else 0
    for i in order:
        at = start + i * row
        for c in range(Y.shape[1]):
            x = c * d
            sums = splat(0.0)
            for j in range(0, full, WIDE):
                sums = multiply_add(widen(A, at + j), widen(X, x + j), sums)
            product = total(sums)
            for j in range(full, d):
                product += number(A, at + j * column) * X[x + j]
            step = relaxation * (Y[i, c] - product) / norms[i]
            steps = splat(step)
            for j in range(0, full, WIDE):
                narrow(X, x + j, multiply_add(steps, widen(A, at + j), widen(X, x + j)))
            for j in range(full, d):
                put(X, x + j, multiply_add(step, number(A, at + j * column), X[x + j]))


@compiled
def _sparse(
    indptr: Array,
    indices: Array,
    data: Array,
    Y: Floats,
    norms: Floats,
    order: Indices,
    relaxation: float,
    X: Floats,
) -> None:
    for i in order:
        for c in range(Y.shape[1]):
            product = 0.0
            for p in range(indptr[i], indptr[i + 1]):
                product += data[p] * X[c, indices[p]]
            step = relaxation * (Y[i, c] - product) / norms[i]
            for p in range(indptr[i], indptr[i + 1]):
                X[c, indices[p]] += step * data[p]
