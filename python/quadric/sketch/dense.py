"""Dense operators with independent entries, generated while they are used."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

from quadric import arrays, backends, device, random, threads
from quadric.arrays import Data
from quadric.device import DeviceArray
from quadric.random.philox import Seed
from quadric.sketch.operator import SketchingOperator, check_execution, check_shape, float_type
from quadric.sketch.streaming import StreamingSketch

KINDS = {"gaussian": 0, "rademacher": 1}

_BLOCK = 256  # columns of S that are summed up before they are added to the total
_WIDTH = 1024  # columns of S that are held at a time for S^T B
_ENTRIES = 2**25  # entries of S that are held at a time on a GPU


@dataclass(frozen=True, kw_only=True, repr=False)
class IndependentEntries(SketchingOperator):
    """Independent entries; see :func:`gaussian` and :func:`rademacher`.

    Attributes
    ----------
    kind : {"gaussian", "rademacher"}
    dtype : str
        Type of `to_dense` and of `stream` where none is asked for.
    """

    kind: Literal["gaussian", "rademacher"]
    dtype: str = "float64"

    @property
    def scale(self) -> float:
        """1 / sqrt(m)."""
        return float(self.whole[0] ** -0.5)

    @property
    def dense(self) -> bool:
        """True."""
        return True

    def to_dense(self, dtype: Any = None) -> np.ndarray:
        """Return S as an array; None stands for the type that S was made with."""
        kind = float_type(self.dtype if dtype is None else dtype)
        out: np.ndarray = self._entries(self.column, self.n, kind)
        out *= out.dtype.type(self.scale)
        return out

    def stream(self, d: int, dtype: Any = None, *, check_finite: bool = True) -> StreamingSketch:
        """Return a sketch that is fed chunk by chunk; see `SketchingOperator.stream`."""
        dtype = self.dtype if dtype is None else dtype
        return super().stream(d, dtype, check_finite=check_finite)

    @property
    def _block(self) -> int:
        return _BLOCK

    def _call(self) -> str:
        m, n = self.whole
        return f"{self.kind}({m}, {n}, seed={self.seed})"

    def _sum_on_gpu(self, A: DeviceArray, first: int) -> DeviceArray:
        total = A.space.full((self.whole[0], A.shape[1]), arrays.computing(A.dtype), 0)
        if A.size:
            self._add(A, first, total)
        return total

    def _add(self, A: Data, first: int, total: Data) -> None:
        # The kernel calls BLAS from its own threads.
        with threads.blas_limit(None if isinstance(A, DeviceArray) else 1):
            if len(total) == self.whole[0]:
                kernel = backends.resolve("sketch.dense", self.backend, A)
                kernel(A, first, self.seed, KINDS[self.kind], total, self._threads(A))
                return
            for start in range(0, len(A), _BLOCK):
                rows = np.ascontiguousarray(A[start : start + _BLOCK])
                total += self._entries(first + start, len(rows), A.dtype) @ rows

    def _add_sparse(self, A: sparse.csr_array, first: int, total: np.ndarray) -> None:
        for start in range(0, A.shape[0], _BLOCK):
            rows = A[start : start + _BLOCK]
            entries = self._entries(first + start, rows.shape[0], A.dtype)
            total += (rows.T @ entries.T).T

    def _adjoint(self, B: Data) -> Data:
        if isinstance(B, DeviceArray):
            return self._adjoint_on_gpu(self._scaled_on_gpu(B))
        out = np.empty((self.n, B.shape[1]), B.dtype)
        with threads.blas_limit(1), np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, self.n, _WIDTH):
                part = out[start : start + _WIDTH]
                np.matmul(self._entries(self.column + start, len(part), B.dtype).T, B, out=part)
            out *= out.dtype.type(self.scale)
        return out

    def _adjoint_on_gpu(self, B: DeviceArray) -> DeviceArray:
        out = B.space.empty((self.n, B.shape[1]), B.dtype)
        width = max(_ENTRIES // self.m, 1)
        for start in range(0, self.n if B.size else 0, width):
            part = out[start : start + width]
            S = self._entries(self.column + start, len(part), B.dtype, B)
            B.space.run(device.linalg().product, S.T, B, part, 1.0, 0.0)
        return out

    def _entries(self, first: int, count: int, dtype: np.dtype[Any], beside: Data = None) -> Data:
        """Return columns of S from `first` of the whole on, unscaled, shape (m, count)."""
        out = arrays.empty(beside, (self.m, count), dtype)
        kernel = backends.resolve("sketch.dense_entries", self.backend, beside)
        m, kind = self.whole[0], KINDS[self.kind]
        kernel(self.row, first, self.seed, m, kind, out, self._threads())
        return out


def gaussian(
    m: int,
    n: int,
    *,
    seed: Seed = 0,
    dtype: Any = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> IndependentEntries:
    """Return an operator with independent entries of the normal distribution N(0, 1/m).

    Parameters
    ----------
    m : int
        Rows of the sketch. The relative error in all directions is about ``sqrt(d / m)``.
    n : int
        Rows of the matrix to be sketched.
    seed : int, Generator or None, optional
        Below 2^64. None takes fresh entropy; a generator gives one number.
    dtype : {"float32", "float64"}, optional
        Type of :meth:`to_dense` and of streams where none is asked for, float64 by default.
        ``S @ A`` has the type of A in any case.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. The result does not depend on it.

    Returns
    -------
    IndependentEntries

    Raises
    ------
    ValueError, TypeError
        If a number is out of range or no integer, or `m` is above `n`.

    Notes
    -----
    ``S @ A`` costs a matrix product, ``2 m n d`` flops, and m n normal numbers; S is generated tile
    by tile and never stored. The best-understood operator, and the slowest one: in exchange
    its distribution does not change when A is rotated, so all that is known about Gaussian
    matrices holds [1]_.

    References
    ----------
    .. [1] Martinsson and Tropp, "Randomized Numerical Linear Algebra: Foundations and Algorithms",
       Acta Numerica 29, 2020, section 8.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> S = qd.sketch.gaussian(400, 5000, seed=0)
    >>> x = np.full(5000, 0.1)
    >>> bool(abs(np.linalg.norm(S @ x) / np.linalg.norm(x) - 1) < 0.15)
    True
    >>> np.array_equal(S[10:12].to_dense(), S.to_dense()[10:12])
    True
    """
    return _made("gaussian", m, n, seed, dtype, backend, n_threads)


def rademacher(
    m: int,
    n: int,
    *,
    seed: Seed = 0,
    dtype: Any = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> IndependentEntries:
    """Return an operator with independent entries +-1 / sqrt(m).

    Parameters
    ----------
    m, n, seed, dtype, backend, n_threads
        As in :func:`gaussian`.

    Returns
    -------
    IndependentEntries

    Raises
    ------
    ValueError, TypeError
        As in :func:`gaussian`.

    Notes
    -----
    As good as :func:`gaussian` [1]_, and cheaper to generate: one bit for each entry.

    References
    ----------
    .. [1] Achlioptas, "Database-friendly Random Projections: Johnson-Lindenstrauss with Binary
       Coins", Journal of Computer and System Sciences 66 (4), 2003.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> np.unique(qd.sketch.rademacher(4, 100).to_dense())
    array([-0.5,  0.5])
    """
    return _made("rademacher", m, n, seed, dtype, backend, n_threads)


def _made(
    kind: Literal["gaussian", "rademacher"],
    m: int,
    n: int,
    seed: Seed,
    dtype: Any,
    backend: str | None,
    n_threads: int | None,
) -> IndependentEntries:
    m, n = check_shape(m, n)
    check_execution("dense", backend, n_threads)
    return IndependentEntries(
        m=m,
        n=n,
        whole=(m, n),
        kind=kind,
        dtype="float64" if dtype is None else float_type(dtype).name,
        seed=random.resolve_seed(seed),
        backend=backend,
        n_threads=n_threads,
    )
