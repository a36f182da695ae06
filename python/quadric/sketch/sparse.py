"""Operators with a few signs in each column."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from quadric import arrays, backends, checks, random
from quadric.arrays import Data
from quadric.device import DeviceArray
from quadric.random.philox import Seed
from quadric.sketch.operator import SketchingOperator, check_execution, check_shape, float_type
from quadric.sketch.signs import SPARSE


@dataclass(frozen=True, kw_only=True, repr=False)
class SparseSign(SketchingOperator):
    """Sparse signs; see :func:`sparse_sign`.

    Attributes
    ----------
    nnz : int
        Signs in each column, one in each of `nnz` groups of m / nnz rows.
    """

    nnz: int

    @property
    def scale(self) -> float:
        """1 / sqrt(nnz)."""
        return float(self.nnz**-0.5)

    @property
    def dense(self) -> bool:
        """False: a row of A reaches `nnz` rows of the sketch."""
        return False

    def to_sparse(self, dtype: Any = "float64") -> sparse.csc_array:
        """Return S in CSC; the row indices of a column increase."""
        first, count = self.column * self.nnz, self.n * self.nnz
        w = random.words(
            self.seed, SPARSE, first, count, backend=self.backend, n_threads=self._threads()
        ).reshape(self.n, self.nnz)
        group = np.uint64(self.whole[0] // self.nnz)
        rows = ((w >> 1) * group >> np.uint64(31)).astype(np.int64)
        rows += np.arange(self.nnz) * int(group)
        values = np.where(w & 1, -self.scale, self.scale).astype(float_type(dtype))
        starts = np.arange(0, count + 1, self.nnz)
        shape = (self.whole[0], self.n)
        found = sparse.csc_array((values.reshape(-1), rows.reshape(-1), starts), shape=shape)
        return found if self.m == shape[0] else found[self.row : self.row + self.m]

    def to_dense(self, dtype: Any = "float64") -> np.ndarray:
        """Return S as an array."""
        result: np.ndarray = self.to_sparse(dtype).toarray()
        return result

    def _call(self) -> str:
        m, n = self.whole
        if self.nnz == 1:
            return f"count_sketch({m}, {n}, seed={self.seed})"
        return f"sparse_sign({m}, {n}, nnz={self.nnz}, seed={self.seed})"

    # The rows of a part are cut from those of the whole: it adds in the same order, so the bits are
    # the same too. To draw all places and add at a few takes longer, unless these are less than 1 %
    # (n = 400 000, d = 100).

    def _zeros(self, d: int, dtype: np.dtype[Any]) -> np.ndarray:
        return np.zeros((self.whole[0], d), dtype)

    def _sum_on_gpu(self, A: DeviceArray, first: int) -> DeviceArray:
        total = A.space.full((self.whole[0], A.shape[1]), arrays.computing(A.dtype), 0)
        if A.size:
            self._add(A, first, total)
        return total

    def _add(self, A: Data, first: int, total: Data) -> None:
        kernel = backends.resolve("sketch.sparse_sign", self.backend, A)
        kernel(A, first, self.seed, self.nnz, total, self._threads(A))

    def _add_sparse(self, A: sparse.csr_array, first: int, total: np.ndarray) -> None:
        kernel = backends.resolve("sketch.sparse_sign_csr", self.backend)
        starts, columns, values = (np.ascontiguousarray(x) for x in (A.indptr, A.indices, A.data))
        kernel(starts, columns, values, first, self.seed, self.nnz, total, self._threads())

    def _value(self, total: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        return super()._value(total[self.row : self.row + self.m], dtype)

    def _adjoint(self, B: Data) -> Data:
        there = isinstance(B, DeviceArray)
        if there:
            B = self._scaled_on_gpu(B)
        if self.m != self.whole[0]:
            part, B = B, arrays.zeros(B, (self.whole[0], B.shape[1]), B.dtype)
            arrays.assign(B[self.row : self.row + self.m], part)
        out = arrays.empty(B, (self.n, B.shape[1]), B.dtype)
        if out.size:
            kernel = backends.resolve("sketch.sparse_sign_rows", self.backend, B)
            kernel(B, self.column, self.seed, self.nnz, out, self._threads())
            if not there:
                out *= out.dtype.type(self.scale)
        return out


def sparse_sign(
    m: int,
    n: int,
    *,
    nnz: int = 8,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> SparseSign:
    """Return an operator with `nnz` random signs in each column: the default of most methods.

    Parameters
    ----------
    m : int
        Rows of the sketch, a multiple of `nnz`. 12 d for a dense matrix of d columns, or 4 d for a
        sparse one, makes a preconditioner that a few iterations do not notice.
    n : int
        Rows of the matrix to be sketched.
    nnz : int, optional
        Signs in each column. 8 is about as good as a dense operator for most matrices, 4 will do
        for a preconditioner, 1 is :func:`count_sketch`.
    seed : int, Generator or None, optional
        Below 2^64. None takes fresh entropy; a generator gives one number.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. The result does not depend on it.

    Returns
    -------
    SparseSign
        ``S = [S_1; ...; S_nnz] / sqrt(nnz)``, where each of the S_k is a CountSketch.

    Raises
    ------
    ValueError
        If `m` is no multiple of `nnz`, or above `n`, or a number is out of range.
    TypeError
        If a number is no integer.

    Notes
    -----
    Also known as OSNAP [1]_ and SparseStack. ``S @ A`` reads A once and costs ``nnz n d``
    additions, or nnz additions for each entry of a sparse A. Some rows of S, ``S[i:j] @ A``, cost
    as much as all, and have their bits; some columns, ``S[:, i:j]``, cost their share.

    References
    ----------
    .. [1] Nelson and Nguyen, "OSNAP: Faster Numerical Linear Algebra Algorithms via Sparser
       Subspace Embeddings", FOCS 2013.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> S = qd.sketch.sparse_sign(96, 5000, nnz=8)
    >>> A = np.random.default_rng(0).standard_normal((5000, 8))
    >>> (S @ A).shape
    (96, 8)
    >>> bool(np.linalg.cond(S @ A) < 4 * np.linalg.cond(A))
    True
    >>> qd.sketch.sparse_sign(10, 5000, nnz=8)
    Traceback (most recent call last):
        ...
    ValueError: m must be a multiple of nnz: 10 is not a multiple of 8
    """
    m, n = check_shape(m, n)
    return stacked(m, n, nnz, seed, backend, n_threads)


def count_sketch(
    m: int,
    n: int,
    *,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> SparseSign:
    """Return an operator with one random sign in each column: the fastest one.

    Each row of A is added to, or subtracted from, one row of the sketch [1]_.

    Parameters
    ----------
    m, n, seed, backend, n_threads
        As in :func:`sparse_sign`. For an error of eps in all directions `m` must be about
        ``d^2 / eps^2`` in the worst case; for most matrices far less will do.

    Returns
    -------
    SparseSign

    Raises
    ------
    ValueError, TypeError
        As in :func:`sparse_sign`.

    References
    ----------
    .. [1] Clarkson and Woodruff, "Low Rank Approximation and Regression in Input Sparsity Time",
       STOC 2013.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> S = qd.sketch.count_sketch(3, 6, seed=1)
    >>> np.abs(S.to_dense()).sum(axis=0)
    array([1., 1., 1., 1., 1., 1.])
    """
    m, n = check_shape(m, n)
    return stacked(m, n, 1, seed, backend, n_threads)


def stacked(
    m: int, n: int, nnz: int, seed: Seed, backend: str | None, n_threads: int | None
) -> SparseSign:
    """Return a :class:`SparseSign` of any shape."""
    nnz = checks.integer(nnz, "nnz", low=1)
    if m % nnz:
        raise ValueError(f"m must be a multiple of nnz: {m} is not a multiple of {nnz}")
    check_execution("sparse_sign", backend, n_threads)
    return SparseSign(
        m=m,
        n=n,
        whole=(m, n),
        nnz=nnz,
        seed=random.resolve_seed(seed),
        backend=backend,
        n_threads=n_threads,
    )
