"""One face for the matrices that projections work on: arrays, sparse matrices, operators.

The dtype is that of the matrix; what is computed with it comes out in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TypeAlias, cast

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator

from quadric import arrays, checks
from quadric.sketch import scaling
from quadric.sketch.inputs import dense_of, finite, rows_of

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]


class LinearSystem(ABC):
    """A matrix with n rows and d columns, by what projections need of it.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = np.dtype(dtype)

    @abstractmethod
    def times(self, X: Floats) -> Floats:
        """A X for X (d, k)."""

    @abstractmethod
    def transposed_times(self, R: Floats) -> Floats:
        """A^T R for R (n, k)."""

    @abstractmethod
    def rows(self, index: Indices) -> Any:
        """The rows `index`, as an array or in CSR."""

    @abstractmethod
    def combine(self, S: Any) -> Any:
        """S A for S (s, n), an array or in CSR."""

    @abstractmethod
    def transposed(self) -> "LinearSystem":
        """The matrix A^T."""

    @abstractmethod
    def row_norms(self) -> Floats:
        """The squared norms of the rows, which are not finite if an entry of A is not."""

    @abstractmethod
    def largest(self) -> float:
        """The largest absolute value of an entry."""

    @abstractmethod
    def scaled(self, exponent: int) -> "LinearSystem":
        """The matrix 2^exponent A."""

    @abstractmethod
    def check_finite(self, name: str) -> None:
        """Refuse a matrix with an entry that is not finite."""


class DenseSystem(LinearSystem):
    """An array of any layout."""

    _TOGETHER = 4096  # rows of a float32 matrix that are there in float64 at a time

    def __init__(self, A: Array) -> None:
        super().__init__(A.shape, A.dtype)
        self.A = A

    def times(self, X: Floats) -> Floats:
        return np.concatenate([np.asarray(piece @ X, np.float64) for _, piece in self._pieces()])

    def transposed_times(self, R: Floats) -> Floats:
        result = np.zeros((self.shape[1], R.shape[1]))
        for part, piece in self._pieces():
            result += piece.T @ R[part]
        return result

    def rows(self, index: Indices) -> Any:
        return self.A[index].astype(np.float64, copy=False)

    def combine(self, S: Any) -> Any:
        result = np.zeros((S.shape[0], self.shape[1]))
        for part, piece in self._pieces():
            result += S[:, part] @ piece
        return result

    def transposed(self) -> LinearSystem:
        return DenseSystem(self.A.T)

    def row_norms(self) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(np.einsum("ij,ij->i", self.A, self.A, dtype=np.float64))

    def largest(self) -> float:
        return float(scaling.largest(self.A).max())

    def scaled(self, exponent: int) -> LinearSystem:
        return DenseSystem(np.ldexp(self.A, exponent))

    def check_finite(self, name: str) -> None:
        checks.finite(self.A, name)

    def _pieces(self) -> Iterator[tuple[slice, Floats]]:
        step = self.shape[0] if self.dtype == np.float64 else self._TOGETHER
        for i in range(0, self.shape[0], step):
            part = slice(i, i + step)
            yield part, self.A[part].astype(np.float64, copy=False)


class SparseSystem(LinearSystem):
    """A matrix in CSR."""

    def __init__(self, A: Any) -> None:
        super().__init__(A.shape, A.dtype)
        self.A = A

    def times(self, X: Floats) -> Floats:
        return np.asarray(self.A @ X, np.float64)

    def transposed_times(self, R: Floats) -> Floats:
        return np.asarray(self.A.T @ R, np.float64)

    def rows(self, index: Indices) -> Any:
        return self.A[index].astype(np.float64)

    def combine(self, S: Any) -> Any:
        return S @ self.A

    def transposed(self) -> LinearSystem:
        return SparseSystem(self.A.T.tocsr())

    def row_norms(self) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):
            squares = sp.csr_array(
                (np.square(self.A.data, dtype=np.float64), self.A.indices, self.A.indptr),
                self.A.shape,
            )
            return np.asarray(squares.sum(axis=1), np.float64).reshape(-1)

    def largest(self) -> float:
        return float(scaling.largest(self.A.data[: self.A.nnz]))

    def scaled(self, exponent: int) -> LinearSystem:
        data = np.ldexp(self.A.data, exponent)
        return SparseSystem(sp.csr_array((data, self.A.indices, self.A.indptr), self.A.shape))

    def check_finite(self, name: str) -> None:
        finite(self.A, name)


class OperatorSystem(LinearSystem):
    """A linear operator of SciPy, which has A v and A^T v alone."""

    _TOGETHER = 64  # rows that are computed at a time for their norms

    def __init__(self, A: LinearOperator) -> None:
        super().__init__(A.shape, A.dtype)
        self.A = A

    def times(self, X: Floats) -> Floats:
        return np.asarray(self.A.matmat(X), np.float64)

    def transposed_times(self, R: Floats) -> Floats:
        return np.asarray(self.A.rmatmat(R), np.float64)

    def rows(self, index: Indices) -> Any:
        picked = np.zeros((self.shape[0], len(index)))
        picked[index, np.arange(len(index))] = 1.0
        return self.transposed_times(picked).T

    def combine(self, S: Any) -> Any:
        return self.transposed_times(np.ascontiguousarray(dense_of(S).T)).T

    def transposed(self) -> LinearSystem:
        return OperatorSystem(self.A.T)

    def row_norms(self) -> Floats:
        norms = np.empty(self.shape[0])
        with np.errstate(over="ignore", invalid="ignore"):
            for part, rows in self._pieces():
                norms[part] = np.einsum("ij,ij->i", rows, rows)
        return norms

    def largest(self) -> float:
        return max(float(np.abs(rows).max()) for _, rows in self._pieces())

    def scaled(self, exponent: int) -> LinearSystem:
        half = exponent // 2  # 2^exponent itself may overflow
        return OperatorSystem(self.A * 2.0**half * 2.0 ** (exponent - half))

    def check_finite(self, name: str) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            for _, rows in self._pieces():
                checks.finite(rows, name)

    def _pieces(self) -> Iterator[tuple[slice, Floats]]:
        for i in range(0, self.shape[0], self._TOGETHER):
            part = slice(i, min(i + self._TOGETHER, self.shape[0]))
            yield part, self.rows(np.arange(part.start, part.stop))


def linear_system(A: Any, name: str = "A") -> LinearSystem:
    """Return the system of an array, a sparse matrix or an operator; it must have entries.

    Raises
    ------
    TypeError
        If it is something else, or neither float32 nor float64.
    ValueError
        If it is not a matrix, or empty.
    """
    system: LinearSystem
    if isinstance(A, LinearOperator):
        checks.floating(cast(Any, A), name)
        try:
            with np.errstate(invalid="ignore"):  # entries are looked at later, by name
                A.rmatvec(np.zeros(A.shape[0], A.dtype))
        except NotImplementedError:
            raise TypeError(f"{name} must have a transpose, rmatvec, got {A!r}") from None
        system = OperatorSystem(A)
    elif sp.issparse(A):
        rows = cast(Any, rows_of(A, name))
        if not rows.has_canonical_format:  # entries that are stored twice have no norm
            rows = rows.copy()
            rows.sum_duplicates()
        system = SparseSystem(rows)
    else:
        system = DenseSystem(checks.matrix(A, name))
    if 0 in system.shape:
        raise ValueError(f"{name} must have rows and columns, got shape {system.shape}")
    return system


def right_hand_side(b: Any, name: str, n: int, dtype: np.dtype[Any], partner: str) -> Array:
    """Return `b` as a finite array of shape (n,) or (n, k), k at least 1."""
    array = arrays.to_numpy(b, name)
    if array.ndim not in (1, 2) or array.shape[0] != n or 0 in array.shape:
        raise ValueError(f"{name} must have shape ({n},) or ({n}, k), got {array.shape}")
    checks.same_type(array, name, dtype, partner)
    checks.finite(array, name)
    return array
