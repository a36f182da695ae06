"""Gram matrices: H += X^T diag(w) X on the upper triangle, and max |H - H^T| / max |H|."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba import blas
from quadric.linalg.numba.parallel import run
from quadric.threads import blas_limit

Array = NDArray[Any]

TILE = 256  # rows and columns of H that one thread updates at a time
TOKENS = 4096  # rows of X that are copied at a time, where they must be


def gram(X: Array, weights: Array | None, H: Array, n_threads: int) -> None:
    """Add X^T diag(weights) X to the upper triangle of H; the strict lower one is left alone.

    Parameters
    ----------
    X : (tokens, n) array, any strides
    weights : (tokens,) array, >= 0, or None for ones
    H : (n, n) array of X's dtype, C-contiguous
    n_threads : int
    """
    tokens, n = X.shape
    starts = range(0, n, TILE)
    tiles = [(i, j) for i in starts for j in starts if i <= j]
    direct = weights is None and (blas.is_rows(X) or blas.is_rows(X.T))
    step = max(tokens, 1) if direct else TOKENS

    with blas_limit(1):
        for start in range(0, tokens, step):
            part = X[start : start + step]
            if weights is not None:
                part = np.multiply(part, np.sqrt(weights[start : start + step, None]), order="C")
            elif not direct:
                part = np.ascontiguousarray(part)

            def update(k: int, part: Array = part) -> None:
                i, j = tiles[k]
                rows, columns = slice(i, min(i + TILE, n)), slice(j, min(j + TILE, n))
                if i == j:
                    blas.syrk(1.0, part[:, rows], 1.0, H[rows, rows])
                else:
                    blas.gemm(1.0, part[:, rows].T, part[:, columns], 1.0, H[rows, columns])

            run(update, len(tiles), n_threads)


def symmetry_defect(H: Array, n_threads: int) -> float:
    """Return max |H_ij - H_ji| / max |H_ij|: 0 for a zero H, nan where an entry is not finite.

    Parameters
    ----------
    H : (n, n) array, any strides
    n_threads : int
    """
    n = len(H)
    starts = range(0, n, TILE)
    tiles = [(i, j) for i in starts for j in starts if i <= j]
    largest = np.zeros((len(tiles), 2))

    def measure(k: int) -> None:
        i, j = tiles[k]
        upper = H[i : i + TILE, j : j + TILE]
        lower = H[j : j + TILE, i : i + TILE].T
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(upper - lower).max()
            size = np.maximum(np.abs(upper).max(), np.abs(lower).max())
        largest[k] = difference, size

    run(measure, len(tiles), n_threads)
    difference, size = largest.max(axis=0, initial=0.0)
    if not np.isfinite(size):
        return float("nan")
    return float(difference / size) if size > 0 else 0.0
