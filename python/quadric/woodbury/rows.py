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

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.errors import LinAlgError

_SLAB = 8192  # columns that are converted to float64 at a time
_SLAB_ON_GPU = 65_536
_SMALL = 256  # rows of the largest matrices that are worked on many at a time on a GPU
_CHOLESKY, _SOLVE = 0, 2  # of linalg.spd


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

    def gram(self, G: Data, exact: bool) -> Data:
        """Return ``G_b G_b^T``, shape (n_blocks, m, m), float64; `exact`: of float64 products."""
        K = arrays.empty(G, (self.n_blocks, len(G), len(G)), np.float64)
        self._kernel("gram", G)(G, self.block_size, exact, K, self._threads())
        return K

    def dots(self, G: Data, X: Data, exact: bool = False) -> Data:
        """Return ``G_b X_b^T``, shape (n_blocks, m, k), float64; `exact` as in :meth:`gram`."""
        out = arrays.zeros(G, (self.n_blocks, len(G), len(X)), np.float64)
        if exact and G.dtype != np.float64:  # rare, so a few times as slow will do
            on_gpu = isinstance(G, DeviceArray)
            for b, part in self._slabs(_SLAB_ON_GPU if on_gpu else _SLAB):
                g, x = (arrays.widen(rows[:, part], np.float64) for rows in (G, X))
                if on_gpu:
                    G.space.run(device.arrays().gemm, 1.0, g, x.T, 1.0, out[b])
                else:
                    out[b] += g @ x.T
        else:
            x = arrays.widen(X, arrays.computing(G.dtype))
            self._kernel("dots", G)(G, x, self.block_size, out, self._threads())
        return out

    def combine(
        self, G: Data, C: Data, X: Data | None = None, scale: float = 0.0, out: Data | None = None
    ) -> Data:
        """Return ``scale X_b + C_b G_b``, shape (k, d); C is (n_blocks, k, m), `out` may be X."""
        if out is None:
            out = arrays.empty(G, (C.shape[1], self.d), arrays.computing(G.dtype))
        C = arrays.contiguous(C)
        self._kernel("combine", G)(G, C, X, scale, self.block_size, out, self._threads())
        return out

    def column_norms(self, G: Data, E: Data | None, L: Data) -> Data:
        """Return the column sums of squares of ``L_b^-1 [G; E]_b``, shape (d,), float64."""
        out = arrays.empty(G, self.d, np.float64)
        self._kernel("column_norms", G)(G, E, self.block_size, L, out, self._threads())
        return out

    def store(self, g: np.ndarray, row: np.ndarray, rounded: np.ndarray | None) -> int:
        """Round `g` into `row`; -1, or the index of an entry that is not finite there."""
        return int(self._kernel("store", g)(g, row, rounded, self._threads()))

    def _kernel(self, name: str, on: Data) -> Any:
        return backends.resolve(f"woodbury.{name}", self.backend, on)

    def _threads(self) -> int:
        return threads.resolve(self.n_threads)

    def _slabs(self, width: int) -> Iterator[tuple[int, slice]]:
        for b in range(self.n_blocks):
            end = min((b + 1) * self.block_size, self.d)
            for start in range(b * self.block_size, end, width):
                yield b, slice(start, min(start + width, end))


def cholesky(K: Data, shift: float, *, check: bool = True) -> Data:
    """Return the lower factors L of ``shift I + K_b = L L^T``, shape (n_blocks, m, m).

    Without a `check` nothing waits for a GPU, and there the factors of a matrix that has none are
    NaN.

    Raises
    ------
    LinAlgError
        If a pivot is not positive; ``.pivot`` is its row.
    """
    if isinstance(K, DeviceArray):
        return _cholesky_on_gpu(K, shift, check)
    L = K.copy()
    for A in L:
        norms = A.diagonal().copy()
        A.flat[:: len(A) + 1] += shift
        # LAPACK sees the transpose of a row-major matrix: what is upper there is lower here.
        _, info = lapack.dpotrf(A.T, lower=0, clean=1, overwrite_a=1)
        if info:
            raise not_positive_definite(norms, shift, info - 1)
    return L


def cho_solve(L: Data, B: Data, K: Data, shift: float) -> Data:
    """Return ``(shift I + K_b)^-1 B_b`` from the factors, shape (n_blocks, m, k)."""
    if isinstance(L, DeviceArray):
        X = B.copy()
        if _many(L):
            spd = backends.resolve("linalg.spd", None, L)
            status = arrays.empty(L, len(L), np.int32)
            logdet = arrays.empty(L, len(L), np.float64)
            spd(_shifted(K, shift), B, _SOLVE, X, logdet, status, 1)
        else:
            kernel = device.linalg().cho_solve
            for factor, x in zip(L, X, strict=True):
                L.space.run(kernel, factor, x)
        return X
    return np.stack([lapack.dpotrs(A.T, b, lower=0)[0] for A, b in zip(L, B, strict=True)])


def coefficients(solved: Data, scale: float | None = None) -> Data:
    """Return solutions (n_blocks, m, k) as rows (n_blocks, k, m), divided by `scale`."""
    if isinstance(solved, DeviceArray):
        n_blocks, m, k = solved.shape
        C = arrays.zeros(solved, (n_blocks, k, m), np.float64)
        factor = 1.0 if scale is None else 1.0 / scale
        if k == 1:
            arrays.add(C, solved.reshape(n_blocks, 1, m), factor)
        else:
            for rows, columns in zip(C, solved, strict=True):
                arrays.add(rows, columns.T, factor)
        return C
    C = solved.transpose(0, 2, 1)
    return C if scale is None else C / scale


def _many(K: DeviceArray) -> bool:
    return len(K) > 1 and K.shape[1] <= _SMALL


def _shifted(K: DeviceArray, shift: float) -> DeviceArray:
    A = K.copy()
    diagonal = A.diagonal()
    arrays.add(diagonal, K.space.full(1, np.float64, shift).spread(diagonal.shape))
    return A


def _cholesky_on_gpu(K: DeviceArray, shift: float, check: bool) -> Data:
    status = K.space.empty(len(K), np.int32)
    if _many(K):
        L = arrays.empty(K, K.shape, np.float64)
        spd = backends.resolve("linalg.spd", None, K)
        logdet = arrays.empty(K, len(K), np.float64)
        spd(_shifted(K, shift), None, _CHOLESKY, L, logdet, status, 1)
    else:
        L = K.copy()
        for b, factor in enumerate(L):
            factor_in_place(factor, shift, status[b : b + 1])
    if check:
        failed = status.host()
        if (failed != -1).any():
            b = int(np.argmax(failed != -1))
            raise not_positive_definite(K[b].diagonal().host(), shift, int(failed[b]))
    return L


def factor_in_place(A: DeviceArray, shift: float, status: DeviceArray) -> None:
    """Make A the lower factor of ``shift I + A``; NaN, and `status` a pivot, where it has none."""
    A.space.run(device.linalg().cholesky, A, shift, result=status)
    A.space.run(device.arrays().spoil, status, A)


def not_positive_definite(norms: np.ndarray, shift: float, pivot: int | None = None) -> LinAlgError:
    """Return the error for a Gram matrix with diagonal `norms`."""
    return LinAlgError(
        f"damping must be larger: m damping I + G G^T is not positive definite in float64 with "
        f"m damping = {shift:.3g} and squared norms of gradients up to {norms.max():.3g}",
        pivot=pivot,
    )


def check_weights(
    weights: Array, low: int, high: int, beside: Data, *, check_finite: bool = True
) -> Data:
    """Return the weights of `low` to `high` gradients, which are `beside`, as finite float64."""
    if isinstance(weights, list | tuple):
        try:
            a = np.asarray(weights, np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"weights must be numbers, got {weights!r:.60}") from None
    else:
        a = arrays.take(weights, "weights")
    if a.dtype.kind not in "iuf":
        raise TypeError(f"weights must be real numbers, got {a.dtype}")
    if a.ndim != 1 or not low <= len(a) <= high:
        wanted = f"({high},)" if low == high else f"(k,) with k from {low} to {high}"
        raise ValueError(f"weights must have shape {wanted}, got {a.shape}")
    if check_finite:
        checks.finite(a, "weights")
    a = a.astype(np.float64)
    if not isinstance(a, DeviceArray):
        return arrays.beside(a, beside)  # a few numbers may come from anywhere
    arrays.together(a, beside, "weights", "the first gradient")
    return a
