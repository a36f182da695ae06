"""The reads of A that a least-squares solver makes, counted: each costs n d entries of memory."""

from typing import Any, NoReturn

import numpy as np
from scipy import sparse

from quadric import backends, checks, threads
from quadric.sketch import inputs

_SPARSE_BLOCK = 4096  # rows of a sparse matrix that are made dense at a time


def is_sparse(A: Any) -> bool:
    """Say whether A is a sparse matrix of SciPy."""
    return bool(sparse.issparse(A))


class Passes:
    """Products with A, an array of any layout or a sparse matrix, and with ``[A; sqrt(ridge) I]``.

    Vectors are columns of matrices, x is (d, k) and b is (n, k). What has d rows is float64, what
    has n rows is of the dtype of A. Callers hold the BLAS pools to one thread, because the kernels
    call BLAS from their own.

    Parameters
    ----------
    A : ndarray or sparse matrix, shape (n, d)
    ridge : float
        What ``A^T A`` is shifted by.
    backend : str or None
        See :mod:`quadric.backends`.
    n_threads : int or None

    Attributes
    ----------
    count : int
        How often A was read.
    """

    def __init__(
        self,
        A: Any,
        ridge: float = 0.0,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self._kernel = backends.resolve("sketch.residual_gradient", backend)
        self.backend = backend
        self.workers = threads.resolve(n_threads)
        self.A, self.ridge, self.count = A, ridge, 0
        self.n, self.d = (int(size) for size in A.shape)
        self.dtype = np.dtype(A.dtype)
        # Sums over rows belong into float64, and SciPy has no product that does so by itself.
        self._sparse = A.astype(np.float64, copy=False) if is_sparse(A) else None

    def turned(self) -> "Passes":
        """Return the passes over ``A^T``, which is not copied."""
        return Passes(self.A.T, self.ridge, self.backend, self.workers)

    def empty(self, k: int) -> np.ndarray:
        """Return memory for k residuals."""
        return np.empty((self.n, k), self.dtype)

    def gradient(
        self, x: np.ndarray, b: np.ndarray, r: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Write ``r = b - A x``; return ``A^T r - ridge x`` and ``|r|^2 + ridge |x|^2``."""
        g, norms = self._run(x, b, r)
        if self.ridge:
            g -= self.ridge * x
            norms += self.ridge * np.einsum("ij,ij->j", x, x)
        return g, norms

    def step(
        self, x: np.ndarray, b: np.ndarray | None, r: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Write ``r = b - A x``; return ``A^T r`` and ``|r|^2``, without the ridge."""
        return self._run(x, b, r)

    def normal(self, x: np.ndarray, r: np.ndarray | None = None) -> np.ndarray:
        """Return ``(A^T A + ridge I) x``, and write ``r = A x`` if it is given."""
        g, _ = self._run(x, None, r)
        if self.ridge:
            g += self.ridge * x
        return g

    def lengths(self, x: np.ndarray) -> np.ndarray:
        """Return the norms of the columns of ``A x``, without the ridge."""
        return np.asarray(np.sqrt(self._run(x, None, None, gradient=False)[1]))

    def residual(self, x: np.ndarray, b: np.ndarray, r: np.ndarray) -> None:
        """Write ``r = b - A x``."""
        self._run(x, b, r, gradient=False)

    def gram(self, inverse: np.ndarray) -> np.ndarray:
        """Return ``M^T (A^T A + ridge I) M`` for an upper triangular matrix M."""
        run = backends.resolve("sketch.preconditioned_gram", self.backend)
        inverse = np.ascontiguousarray(inverse)
        out = np.empty((self.d, self.d))
        self.count += 1
        if self._sparse is None:
            run(self.A, inverse, out, self.workers)
        else:
            rows, part = self._sparse.tocsr(), np.empty_like(out)
            out[:] = 0
            for i in range(0, self.n, _SPARSE_BLOCK):
                run(rows[i : i + _SPARSE_BLOCK].toarray(), inverse, part, self.workers)
                out += part
        if self.ridge:
            out += self.ridge * (inverse.T @ inverse)
        return out

    def refuse(self, b: np.ndarray | None) -> NoReturn:
        """Say why a result is not finite."""
        inputs.finite(self.A, "A")
        if b is not None:
            checks.finite(b, "b")
        raise ValueError(f"A must have columns, and with b a solution, that {self.dtype} can hold")

    def _run(
        self, x: np.ndarray, b: np.ndarray | None, r: np.ndarray | None, gradient: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        self.count += 1
        k = x.shape[1]
        g, norms = np.empty((self.d, k)), np.empty(k)
        if self._sparse is None:
            x = np.ascontiguousarray(x, self.dtype)
            self._kernel(self.A, x, b, r, g if gradient else None, norms, self.workers)
            return g, norms
        y = self._sparse @ x
        if b is not None:
            np.subtract(b, y, out=y)
        if r is not None:
            r[:] = y
        if gradient:
            g[:] = self._sparse.T @ y
        norms[:] = np.einsum("ij,ij->j", y, y)
        return g, norms
