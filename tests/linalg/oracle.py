"""Naive elimination in longdouble, one pivot at a time, over a batch of matrices (..., n, n).

Where longdouble is wider than float64 (x86: 64 bits of mantissa), its own error is 2000 times below
that of a float64 kernel. LAPACK is not asked: it would bring its own roundings.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Long = np.longdouble


def wide(a: Array) -> Array:
    return np.asarray(a).astype(Long)


def cholesky(a: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return L with L L^T = A of the lower triangles, and the first bad pivot of each, or -1.

    A bad pivot is one that is not positive and finite; all of L is NaN then.
    """
    rest = np.tril(wide(a))
    rest = rest + np.swapaxes(np.tril(rest, -1), -1, -2)
    factor = np.zeros_like(rest)
    status = np.full(rest.shape[:-2], -1)
    with np.errstate(all="ignore"):
        for j in range(rest.shape[-1]):
            pivot = rest[..., j, j]
            bad = ~((pivot > 0) & np.isfinite(pivot))
            status = np.where(bad & (status < 0), j, status)
            factor[..., j:, j] = rest[..., j:, j] / np.sqrt(pivot)[..., None]
            column = factor[..., :, j]
            rest = rest - column[..., :, None] * column[..., None, :]
    factor[status >= 0] = np.nan
    return factor, status


def solve(a: Array, b: Array) -> Array:
    """Return A^-1 b by Gaussian elimination with row exchanges; b has shape (..., n, k)."""
    return _eliminate(a, b)[0]


def inverse(a: Array) -> Array:
    return solve(a, np.broadcast_to(np.eye(a.shape[-1], dtype=Long), a.shape))


def slogdet(a: Array) -> tuple[Array, Array]:
    """Return the sign of det A and log |det A|."""
    return _eliminate(a, np.zeros((*a.shape[:-1], 0)))[1:]


def least_squares(a: Array, b: Array) -> Array:
    """Return argmin |A x - b| for one matrix of full column rank, by Householder reflections."""
    n = a.shape[1]
    table = np.concatenate([wide(a), wide(b)[:, None]], axis=1)
    for j in range(n):
        v = table[j:, j].copy()
        v[0] += np.copysign(np.sqrt(v @ v), v[0])
        table[j:] -= np.outer(2 * v / (v @ v), v @ table[j:])
    x = np.zeros(n, Long)
    for j in reversed(range(n)):
        x[j] = (table[j, n] - table[j, j + 1 : n] @ x[j + 1 :]) / table[j, j]
    return x


def _eliminate(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Return A^-1 b, the sign of det A and log |det A|.

    Elimination downwards, then substitution upwards: Gauss and Jordan's way, in one sweep, leaves
    residuals as large as cond(A) eps.
    """
    n = a.shape[-1]
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    table = np.concatenate(
        [np.broadcast_to(wide(m), lead + m.shape[-2:]) for m in (a, b)], axis=-1
    ).reshape(-1, n, n + b.shape[-1])
    sign, log = np.ones(len(table), Long), np.zeros(len(table), Long)
    each = np.arange(len(table))
    for j in range(n):
        best = j + np.abs(table[:, j:, j]).argmax(axis=1)
        row = table[each, best].copy()
        table[each, best] = table[:, j]
        table[:, j] = row
        pivot = row[:, j]
        sign = sign * np.where(best == j, 1, -1) * np.sign(pivot)
        log = log + np.log(np.abs(pivot))
        factors = table[:, j + 1 :, j] / pivot[:, None]
        table[:, j + 1 :, j:] -= factors[:, :, None] * row[:, None, j:]
    x = table[:, :, n:]
    for j in reversed(range(n)):
        known = table[:, j, None, j + 1 : n] @ x[:, j + 1 :]
        x[:, j] = (x[:, j] - known[:, 0]) / table[:, j, j, None]
    return x.reshape(*lead, n, b.shape[-1]), sign.reshape(lead), log.reshape(lead)
