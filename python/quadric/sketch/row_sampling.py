"""Rows of a matrix, picked and weighted."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from quadric import arrays, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.sketch.operator import SketchingOperator, float_type


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RowSampling(SketchingOperator):
    """Weighted rows; see :func:`row_sampling`.

    Attributes
    ----------
    indices : array of int64, shape (m,)
    weights : array of float64, shape (m,)
    """

    indices: np.ndarray
    weights: np.ndarray

    @property
    def scale(self) -> float:
        """1: the weights have it all."""
        return 1.0

    @property
    def dense(self) -> bool:
        """False: a row of the sketch is a row of A."""
        return False

    @property
    def oblivious(self) -> bool:
        """False: rows are picked by what is in them."""
        return False

    def to_sparse(self, dtype: Any = "float64") -> sparse.csc_array:
        """Return S in CSC."""
        indices, weights = self._picked()
        places = indices - self.column
        there = (places >= 0) & (places < self.n)
        entries = weights[there].astype(float_type(dtype))
        at = (np.flatnonzero(there), places[there])
        return sparse.coo_array((entries, at), shape=self.shape).tocsc()

    def to_dense(self, dtype: Any = "float64") -> np.ndarray:
        """Return S as an array."""
        result: np.ndarray = self.to_sparse(dtype).toarray()
        return result

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RowSampling)
            and (self.shape, self.whole) == (other.shape, other.whole)
            and (self.row, self.column) == (other.row, other.column)
            and np.array_equal(self.indices, other.indices)
            and np.array_equal(self.weights, other.weights)
        )

    def __hash__(self) -> int:
        return hash((self.shape, self.whole, self.row, self.column, self.indices.tobytes()))

    def _call(self) -> str:
        return f"row_sampling(<{len(self.indices)} indices>, {self.whole[1]})"

    def _add(self, A: Data, first: int, total: Data) -> None:
        to, rows, weights = self._of(first, len(A), total.dtype)
        if isinstance(A, DeviceArray):
            if to.size:
                picked = _picked_on_gpu(A.astype(total.dtype, copy=False), rows, weights[:, 0])
                A.space.run(device.arrays().add_to_columns, picked.T, to, 1.0, total.T)
            return
        total[to] = A[rows] * weights

    def _add_sparse(self, A: sparse.csr_array, first: int, total: np.ndarray) -> None:
        to, rows, weights = self._of(first, A.shape[0], A.dtype)
        total[to] = A[rows].toarray() * weights

    def _adjoint(self, B: Data) -> Data:
        if isinstance(B, DeviceArray):
            return self._adjoint_on_gpu(B)
        result: np.ndarray = self.to_sparse(B.dtype).T @ B
        return result

    def _adjoint_on_gpu(self, B: DeviceArray) -> DeviceArray:
        out = B.space.full((self.n, B.shape[1]), B.dtype, 0)
        to, rows, weights = self._of(self.column, self.n, B.dtype)
        if not (B.size and to.size):
            return out
        picked = _picked_on_gpu(B, to, weights[:, 0])
        # A row that was picked several times gets its shares one after the other.
        order = np.argsort(rows, kind="stable")
        starts = np.r_[True, rows[order][1:] != rows[order][:-1]]
        turn = np.empty(len(rows), np.int64)
        turn[order] = np.arange(len(rows)) - np.maximum.accumulate(
            np.where(starts, np.arange(len(rows)), 0)
        )
        for t in range(int(turn.max()) + 1):
            mine = np.flatnonzero(turn == t)
            part = picked if len(mine) == len(rows) else _picked_on_gpu(picked, mine, None)
            B.space.run(device.arrays().add_to_columns, part.T, rows[mine], 1.0, out.T)
        return out

    def _picked(self) -> tuple[np.ndarray, np.ndarray]:
        at = slice(self.row, self.row + self.m)
        return self.indices[at], self.weights[at]

    def _of(self, first: int, count: int, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which rows of the sketch come from a chunk of A, whence, and their weights."""
        indices, weights = self._picked()
        to = np.flatnonzero((indices >= first) & (indices < first + count))
        return to, indices[to] - first, weights[to, None].astype(dtype)


def row_sampling(
    indices: Array,
    n: int,
    weights: Array | None = None,
    *,
    n_threads: int | None = None,
) -> RowSampling:
    """Return the operator that picks rows, ``(S A)[s] = weights[s] A[indices[s]]``.

    Parameters
    ----------
    indices : array of int, shape (m,)
        Rows from 0 to n - 1, in any order; a row may come more than once.
    n : int
        Rows of the matrix to be sampled.
    weights : array, shape (m,), optional
        At least 0; ones by default. Rows picked with probability q_i in each of m draws want
        ``1 / sqrt(m q_i)``.
    n_threads : int, optional
        For the sake of uniformity; nothing here is worth a second thread.

    Returns
    -------
    RowSampling

    Raises
    ------
    ValueError
        If a shape does not fit, an index is out of range, or a weight is negative or not finite.
    TypeError
        If the indices are no integers, or the weights no floats.

    Notes
    -----
    Rows that are not picked are not read: NaN there goes unnoticed.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> S = qd.sketch.row_sampling(np.array([3, 0]), 4, weights=np.array([2.0, 1.0]))
    >>> S @ np.arange(4.0)
    array([6., 0.])
    """
    n = checks.integer(n, "n", low=1)
    threads.resolve(n_threads)
    picked = np.asarray(indices) if isinstance(indices, list) else None
    picked = arrays.to_numpy(indices, "indices") if picked is None else picked
    if picked.ndim != 1 or not picked.size:
        raise ValueError(f"indices must have shape (m,) with m at least 1, got {picked.shape}")
    if picked.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {picked.dtype}")
    if picked.min() < 0 or picked.max() >= n:
        bad = picked[(picked < 0) | (picked >= n)][0]
        raise ValueError(f"indices must be from 0 to n - 1 = {n - 1}, got {bad}")
    factors = _weights(weights, len(picked))
    return RowSampling(
        m=len(picked),
        n=n,
        whole=(len(picked), n),
        seed=0,
        indices=_frozen(picked, np.int64),
        weights=_frozen(factors, np.float64),
        n_threads=n_threads,
    )


def _picked_on_gpu(A: DeviceArray, rows: np.ndarray, weights: np.ndarray | None) -> DeviceArray:
    """Return rows of A, times weights of its dtype."""
    out = A.space.empty((len(rows), A.shape[1]), A.dtype)
    A.space.run(device.arrays().take_columns, A.T, np.ascontiguousarray(rows, np.int64), out.T)
    if weights is not None:
        A.space.run(device.arrays().scale_rows, np.ascontiguousarray(weights), out)
    return out


def _weights(weights: Array | None, m: int) -> np.ndarray:
    if weights is None:
        return np.ones(m)
    a = np.asarray(weights) if isinstance(weights, list) else arrays.to_numpy(weights, "weights")
    if a.shape != (m,):
        raise ValueError(f"weights must have shape ({m},) to go with indices, got {a.shape}")
    checks.floating(a, "weights")
    checks.finite(a, "weights")
    if a.min() < 0:
        at = int(np.argmin(a))
        raise ValueError(f"weights must be at least 0, got {a[at]} at index ({at},)")
    return a


def _frozen(a: np.ndarray, dtype: Any) -> np.ndarray:
    copy = np.array(a, dtype)
    copy.flags.writeable = False
    return copy
