"""Gram matrices and norms of rows of A times a small matrix, in one read of A."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba import blas
from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.parallel import run
from quadric.sketch.numba.blocks import Blocks, cut
from quadric.threads import blas_limit

Array = NDArray[Any]
Floats = NDArray[np.float64]


def preconditioned_gram(A: Array, R_inverse: Floats, G: Floats, n_threads: int) -> None:
    """Write G = (A R^-1)^T (A R^-1).

    Parameters
    ----------
    A : (n, d) array, any strides
    R_inverse : (d, d) float64 array, C-contiguous, upper triangular
    G : (d, d) float64 array, C-contiguous, written, exactly symmetric
    n_threads : int
    """
    pieces = cut(len(A), G.size)
    sums = np.zeros((len(pieces), *G.shape))

    def work(i: int) -> None:
        blocks = Blocks(A, 0)
        product = np.empty((blocks.rows if blocks.direct else 0, A.shape[1]))
        for start, stop, part in blocks(*pieces[i]):
            found = part
            if blocks.direct:
                found = product[: stop - start]
                found[...] = part
            blas.multiply_upper(R_inverse, found)
            blas.syrk(1.0, found, 1.0, sums[i])

    with blas_limit(1):
        run(work, len(pieces), n_threads)
    add_up(sums, G)


def weighted_gram(A: Array, w: Floats | None, G: Floats, n_threads: int) -> None:
    """Write G = A^T diag(w) A.

    Parameters
    ----------
    A : (n, d) array, any strides
    w : (n,) float64 array, or None for ones
    G : (d, d) float64 array, C-contiguous, written, exactly symmetric
    n_threads : int
    """
    pieces = cut(len(A), G.size)
    sums = np.zeros((len(pieces), *G.shape))
    # Weights of one sign are worth a root: half the products.
    signed = w is not None and bool(len(w)) and not w.min() >= 0
    scale = w if w is None or signed else np.sqrt(w)

    def work(i: int) -> None:
        blocks = Blocks(A, 0)
        product = np.empty((0 if scale is None else blocks.rows, A.shape[1]))
        for start, stop, part in blocks(*pieces[i]):
            if scale is None:
                blas.syrk(1.0, part, 1.0, sums[i])
                continue
            found = product[: stop - start]
            np.multiply(part, scale[start:stop, None], out=found)
            if signed:
                blas.gemm(1.0, part.T, found, 1.0, sums[i])
            else:
                blas.syrk(1.0, found, 1.0, sums[i])

    with blas_limit(1):
        run(work, len(pieces), n_threads)
    add_up(sums, G)


@compiled
def add_up(sums: Floats, G: Floats) -> None:
    """Add the upper triangles of the parts and copy them to the lower one."""
    d = len(G)
    G[:] = 0
    for p in range(len(sums)):
        for i in range(d):
            row, part = G[i], sums[p, i]
            for j in range(i, d):
                row[j] += part[j]
    for first in range(0, d, 16):
        for i in range(first, d):
            for j in range(first, min(first + 16, i)):
                G[i, j] = G[j, i]


def row_norms(A: Array, M: Floats | None, out: Floats, n_threads: int) -> None:
    """Write the sums of squares of the rows of A M.

    Parameters
    ----------
    A : (n, d) array, any strides
    M : (d, k) float64 array, C-contiguous, or None for the identity
    out : (n,) float64 array, written
    n_threads : int
    """
    n, d = A.shape
    k = d if M is None else M.shape[1]
    # Half of the products of a triangle are known.
    triangle = M is not None and d == k and not np.tril(M, -1).any()
    rows = Blocks(A, k).rows

    def work(i: int) -> None:
        blocks = Blocks(A, k)
        for start, stop, part in blocks(i * rows, min((i + 1) * rows, n)):
            found = part
            if M is not None and triangle:
                found = part.copy()
                blas.multiply_upper(M, found)
            elif M is not None:
                found = np.empty((stop - start, k))
                blas.gemm(1.0, part, M, 0.0, found)
            out[start:stop] = np.einsum("ij,ij->i", found, found)

    with blas_limit(1):
        run(work, -(-n // rows), n_threads)
