"""Passes over gradients, the rows of G, and the m x m matrices that they lead to.

    A = m lambda I + G G^T,    F^-1 x = (x - G^T A^-1 G x) / lambda,    F^-1 G^T w = m G^T A^-1 w

G may be cut into blocks of consecutive columns, each with an A of its own. The matrices A are small
and always float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import lapack

from quadric import arrays, backends, checks, threads
from quadric.arrays import Array
from quadric.errors import LinAlgError

_SLAB = 8192  # columns that are converted to float64 at a time


@dataclass(frozen=True, slots=True)
class Passes:
    """The kernels that read rows of d entries, in blocks of `block_size` columns.

    Callers hold the BLAS pools to one thread, because the kernels call BLAS from their own.
    """

    d: int
    block_size: int
    backend: str | None
    n_threads: int | None

    def __post_init__(self) -> None:
        backends.resolve("woodbury.dots", self.backend)
        threads.resolve(self.n_threads)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.d // self.block_size)

    def gram(self, G: np.ndarray, exact: bool) -> np.ndarray:
        """Return ``G_b G_b^T``, shape (n_blocks, m, m), float64; `exact`: of float64 products."""
        K = np.empty((self.n_blocks, len(G), len(G)))
        self._kernel("gram")(G, self.block_size, exact, K, self._threads())
        return K

    def dots(self, G: np.ndarray, X: np.ndarray, exact: bool = False) -> np.ndarray:
        """Return ``G_b X_b^T``, shape (n_blocks, m, k), float64; `exact` as in :meth:`gram`."""
        out = np.zeros((self.n_blocks, len(G), len(X)))
        if exact and G.dtype != np.float64:  # rare, so a few times as slow will do
            for b, part in self._slabs():
                g, x = (arrays.widen(rows[:, part], np.float64) for rows in (G, X))
                out[b] += g @ x.T
        else:
            x = arrays.widen(X, arrays.computing(G.dtype))
            self._kernel("dots")(G, x, self.block_size, out, self._threads())
        return out

    def combine(
        self,
        G: np.ndarray,
        C: np.ndarray,
        X: np.ndarray | None = None,
        scale: float = 0.0,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return ``scale X_b + C_b G_b``, shape (k, d); C is (n_blocks, k, m), `out` may be X."""
        if out is None:
            out = np.empty((C.shape[1], self.d), arrays.computing(G.dtype))
        C = np.ascontiguousarray(C)
        self._kernel("combine")(G, C, X, scale, self.block_size, out, self._threads())
        return out

    def column_norms(self, G: np.ndarray, E: np.ndarray | None, L: np.ndarray) -> np.ndarray:
        """Return the column sums of squares of ``L_b^-1 [G; E]_b``, shape (d,), float64."""
        out = np.empty(self.d)
        self._kernel("column_norms")(G, E, self.block_size, L, out, self._threads())
        return out

    def store(self, g: np.ndarray, row: np.ndarray, rounded: np.ndarray | None) -> int:
        """Round `g` into `row`; -1, or the index of an entry that is not finite there."""
        return int(self._kernel("store")(g, row, rounded, self._threads()))

    def _kernel(self, name: str) -> Any:
        return backends.resolve(f"woodbury.{name}", self.backend)

    def _threads(self) -> int:
        return threads.resolve(self.n_threads)

    def _slabs(self) -> Iterator[tuple[int, slice]]:
        for b in range(self.n_blocks):
            end = min((b + 1) * self.block_size, self.d)
            for start in range(b * self.block_size, end, _SLAB):
                yield b, slice(start, min(start + _SLAB, end))


def cholesky(K: np.ndarray, shift: float) -> np.ndarray:
    """Return the lower factors L of ``shift I + K_b = L L^T``, shape (n_blocks, m, m).

    Raises
    ------
    LinAlgError
        If a pivot is not positive; ``.pivot`` is its row.
    """
    L = K.copy()
    for A in L:
        norms = A.diagonal().copy()
        A.flat[:: len(A) + 1] += shift
        # LAPACK sees the transpose of a row-major matrix: what is upper there is lower here.
        _, info = lapack.dpotrf(A.T, lower=0, clean=1, overwrite_a=1)
        if info:
            raise not_positive_definite(norms, shift, info - 1)
    return L


def cho_solve(L: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return ``(L_b L_b^T)^-1 B_b``, shape (n_blocks, m, k)."""
    return np.stack([lapack.dpotrs(A.T, b, lower=0)[0] for A, b in zip(L, B, strict=True)])


def not_positive_definite(norms: np.ndarray, shift: float, pivot: int | None = None) -> LinAlgError:
    """Return the error for a Gram matrix with diagonal `norms`."""
    return LinAlgError(
        f"damping must be larger: m damping I + G G^T is not positive definite in float64 with "
        f"m damping = {shift:.3g} and squared norms of gradients up to {norms.max():.3g}",
        pivot=pivot,
    )


def check_weights(weights: Array, low: int, high: int) -> np.ndarray:
    """Return the weights of `low` to `high` gradients as a finite vector of float64."""
    if isinstance(weights, list | tuple):
        try:
            a = np.asarray(weights, np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"weights must be numbers, got {weights!r:.60}") from None
    else:
        a = arrays.to_numpy(weights, "weights")
    if a.dtype.kind not in "iuf":
        raise TypeError(f"weights must be real numbers, got {a.dtype}")
    if a.ndim != 1 or not low <= len(a) <= high:
        wanted = f"({high},)" if low == high else f"(k,) with k from {low} to {high}"
        raise ValueError(f"weights must have shape {wanted}, got {a.shape}")
    checks.finite(a, "weights")
    return a.astype(np.float64)
