"""One Cholesky factorization in reversed sweep order, in place: J Hs J = L L^T, R = J L J.

With J the reversal, R is upper triangular and Hs = R R^T; no inverse is ever formed. L^T is written
into the upper triangle of a row-major A, so ``R = A[::-1, ::-1].T`` costs nothing, while the strict
lower triangle keeps H for another attempt with more damping.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba import blas
from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.parallel import run

Array = NDArray[Any]

BLOCK = 192  # rows of the factor per step; no power of two, so that they do not share cache sets
ROWS = 64  # rows gathered at a time


def gather(H: Array, perm: NDArray[np.int64], A: Array, n_threads: int) -> None:
    """Write A[j, i] = H[perm[n-1-j], perm[n-1-i]]; A may be H itself.

    Parameters
    ----------
    H : (n, n) array, any strides, symmetric
    perm : (n,) int64 array, original column at each sweep position
    A : (n, n) array of H's dtype, C-contiguous
    n_threads : int
    """
    n = len(A)
    order = np.ascontiguousarray(perm[::-1])
    in_place = np.may_share_memory(A, H)
    if in_place:
        _permute_rows(A, order)

    def block(k: int) -> None:
        rows = slice(k * ROWS, (k + 1) * ROWS)
        permute_columns(A[rows].copy() if in_place else H[order[rows]], order, A[rows])

    run(block, -(-n // ROWS), n_threads)


@compiled
def permute_columns(source: Array, order: NDArray[np.int64], target: Array) -> None:
    """target[:, i] = source[:, order[i]]."""
    for j in range(len(source)):
        row, out = source[j], target[j]
        for i in range(len(order)):
            out[i] = row[order[i]]


def _permute_rows(A: Array, order: NDArray[np.int64]) -> None:
    """A[i] = A[order[i]] along the cycles of the permutation, with one row to spare."""
    pending = np.ones(len(A), np.bool_)
    for first in range(len(A)):
        if not pending[first] or order[first] == first:
            continue
        spare = A[first].copy()
        i = first
        while pending[i]:
            pending[i] = False
            following = int(order[i])
            A[i] = spare if following == first else A[following]
            i = following


def cholesky(A: Array, diagonal: NDArray[np.float64], n_threads: int) -> int:
    """Factor in place; return -1, or the sweep position of the pivot that is not positive.

    Parameters
    ----------
    A : (n, n) array, C-contiguous
        Strict lower triangle: the reversed H. Upper triangle on success: A[j, i] = L[i, j], and the
        strict lower one is zero; on failure the strict lower one is untouched.
    diagonal : (n,) float64 array
        Damped diagonal in sweep order.
    n_threads : int
    """
    n = len(A)
    starts = range(0, n, BLOCK)

    def rebuild(k: int) -> None:
        rows = slice(starts[k], min(starts[k] + BLOCK, n))
        corner = np.tril(A[rows, rows], -1)
        corner += corner.T
        np.fill_diagonal(corner, diagonal[::-1][rows])
        A[rows, rows] = corner
        for j in starts[k + 1 :]:
            columns = slice(j, j + BLOCK)
            A[rows, columns] = A[columns, rows].T

    def clear(k: int) -> None:
        rows = slice(starts[k], min(starts[k] + BLOCK, n))
        A[rows, : rows.start] = 0
        A[rows, rows] = np.triu(A[rows, rows])

    run(rebuild, len(starts), n_threads)
    for k, start in enumerate(starts):
        pivot = _step(A, starts[k:], n_threads)
        if pivot >= 0:
            return n - 1 - (start + pivot)
    run(clear, len(starts), n_threads)
    return -1


def _step(A: Array, starts: range, n_threads: int) -> int:
    """Eliminate the first of the remaining blocks; return its failing pivot or -1."""
    n = len(A)
    rows = slice(starts[0], min(starts[0] + BLOCK, n))
    corner = A[rows, rows]
    failed = blas.cholesky_upper(corner)
    pivots = np.diagonal(corner)[: failed or None]
    # LAPACK lets a NaN through: an overflow further up shows as the first pivot that is not finite.
    wrong = np.flatnonzero(~np.isfinite(pivots))
    if len(wrong) or failed:
        return int(wrong[0]) if len(wrong) else failed - 1

    rest = starts[1:]

    def panel(k: int) -> None:
        blas.solve_upper(1.0, corner, A[rows, rest[k] : rest[k] + BLOCK], transposed=True)

    def trail(k: int) -> None:
        i, j = rest[k], min(rest[k] + BLOCK, n)
        left = A[rows, i:j]
        blas.syrk(-1.0, left, 1.0, A[i:j, i:j])
        blas.gemm(-1.0, left.T, A[rows, j:], 1.0, A[i:j, j:])

    run(panel, len(rest), n_threads)
    run(trail, len(rest), n_threads)
    return -1
