"""The reads of A that a least-squares solver makes, counted: each costs n d entries of memory."""

from typing import Any, NoReturn

import numpy as np
from scipy import sparse

from quadric import arrays, backends, checks, threads
from quadric.arrays import Data
from quadric.device import DeviceArray
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
    A : ndarray, DeviceArray or sparse matrix, shape (n, d)
        Of one on a GPU, b and r are there too; what has d rows is NumPy's.
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
        on = A if isinstance(A, DeviceArray) else None
        self._kernel = backends.resolve("sketch.residual_gradient", backend, on)
        self.backend = backend
        self.workers = threads.resolve(n_threads, on)
        self.A, self.ridge, self.count = A, ridge, 0
        self.n, self.d = (int(size) for size in A.shape)
        self.dtype = np.dtype(A.dtype)
        # Sums over rows belong into float64, and SciPy has no product that does so by itself.
        self._sparse = A.astype(np.float64, copy=False) if is_sparse(A) else None

    def turned(self) -> "Passes":
        """Return the passes over ``A^T``, which is not copied."""
        return Passes(self.A.T, self.ridge, self.backend, self.workers)

    def empty(self, k: int) -> Data:
        """Return memory for k residuals, where A is."""
        return arrays.empty(self.A, (self.n, k), self.dtype)

    def gradient(self, x: np.ndarray, b: Data, r: Data) -> tuple[np.ndarray, np.ndarray]:
        """Write ``r = b - A x``; return ``A^T r - ridge x`` and ``|r|^2 + ridge |x|^2``."""
        g, norms = self._run(x, b, r)
        if self.ridge:
            g -= self.ridge * x
            norms += self.ridge * np.einsum("ij,ij->j", x, x)
        return g, norms

    def step(self, x: np.ndarray, b: Data | None, r: Data) -> tuple[np.ndarray, np.ndarray]:
        """Write ``r = b - A x``; return ``A^T r`` and ``|r|^2``, without the ridge."""
        return self._run(x, b, r)

    def normal(self, x: np.ndarray, r: np.ndarray | None = None) -> np.ndarray:
        """Return ``(A^T A + ridge I) x``, and write ``r = A x`` if it is given."""
        g, _ = self._run(x, None, r)
        if self.ridge:
            g += self.ridge * x
        return g

    def visit_on_gpu(
        self, x: DeviceArray, b: DeviceArray, r: DeviceArray, g: DeviceArray, norms: DeviceArray
    ) -> None:
        """Do what `gradient` does where A is, without waiting; `norms` are without the ridge."""
        self.count += 1
        self._kernel(self.A, x.astype(self.dtype, copy=False), b, r, g, norms, self.workers)
        if self.ridge:
            arrays.add(g, x, -self.ridge)

    def lengths(self, x: np.ndarray) -> np.ndarray:
        """Return the norms of the columns of ``A x``, without the ridge."""
        return np.asarray(np.sqrt(self._run(x, None, None, gradient=False)[1]))

    def residual(self, x: np.ndarray, b: Data, r: Data) -> None:
        """Write ``r = b - A x``."""
        self._run(x, b, r, gradient=False)

    def gram(self, inverse: np.ndarray) -> np.ndarray:
        """Return ``M^T (A^T A + ridge I) M`` for an upper triangular matrix M."""
        on = None if self._sparse is not None else self.A
        run = backends.resolve("sketch.preconditioned_gram", self.backend, on)
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

    def gram_on_gpu(self, inverse: DeviceArray, out: DeviceArray) -> None:
        """Write ``M^T A^T A M`` where A is, without waiting and without the ridge."""
        self.count += 1
        run = backends.resolve("sketch.preconditioned_gram", self.backend, self.A)
        run(self.A, inverse, out, self.workers)

    def refuse(self, b: Data | None) -> NoReturn:
        """Say why a result is not finite."""
        inputs.finite(self.A, "A")
        if b is not None:
            checks.finite(b, "b")
        raise ValueError(f"A must have columns, and with b a solution, that {self.dtype} can hold")

    def _run(
        self, x: np.ndarray, b: Data | None, r: Data | None, gradient: bool = True
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
