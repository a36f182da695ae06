"""Rows that come in chunks, summarized for a linear regression on all of them."""

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy import sparse

from quadric import checks, sketch

Stream = Literal["exact", "sketch"]

_ROWS = 1 << 48  # of the operator of a stream whose end is not known; its columns are never stored
_SHARE = 32  # rows of the sketch per column
_NNZ = 8


@dataclass(frozen=True, slots=True)
class Solution:
    """Coefficients (d, k), intercept (k,) or of no axes where none is fitted, and their quality."""

    coefficients: np.ndarray
    intercept: np.ndarray
    backward_error: float
    condition: float
    rank: int
    iterations: int


class RowStream:
    """A summary of the rows [1, x, y] seen so far, each times the root of its weight.

    Rows are collected in a buffer of fixed size, so the summary has the same bits however they
    were cut into chunks. "exact" keeps the triangle R of the QR factorization of all rows, which
    holds all that least squares depends on; "sketch" keeps their sparse sign sketch, of which R is
    taken when it is asked for.

    Parameters
    ----------
    features, outputs : int
        Columns of X and y.
    intercept : bool
        Whether there is a column of ones.
    stream : {"exact", "sketch"}
        Which summary.
    sketch_size : int or None
        Rows of the sketch; None is 32 per column.
    nnz : int or None
        Nonzeros per column of the sketching operator; None is 8.
    seed : int, Generator or None
        Of the operator.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        intercept: bool,
        stream: Stream,
        sketch_size: int | None,
        nnz: int | None,
        seed: Any,
    ) -> None:
        checks.choice(stream, "stream", get_args(Stream))
        self.shape = features, outputs
        self.intercept = intercept
        width = intercept + features + outputs
        self.summary: _Triangle | _Sketch
        if stream == "exact":
            self.summary = _Triangle(width)
        else:
            self.summary = _Sketch(width, sketch_size, nnz, seed)
        self.buffer = np.empty((max(4 * width, 256), width))
        self.filled = 0
        self.rows = 0

    def update(self, X: Any, y: np.ndarray, weights: np.ndarray | None) -> None:
        """Add rows: X (n, d) dense or CSR, y (n, k), weights (n,)."""
        first = 0
        while first < len(y):
            last = min(first + len(self.buffer) - self.filled, len(y))
            rows = self.buffer[self.filled : self.filled + last - first]
            rows[:, : self.intercept] = 1
            part = X[first:last]
            rows[:, self.intercept : -y.shape[1]] = part.toarray() if sparse.issparse(X) else part
            rows[:, -y.shape[1] :] = y[first:last]
            if weights is not None:
                rows *= np.sqrt(weights[first:last, None])
            self.filled += last - first
            if self.filled == len(self.buffer):
                self.summary.update(self.buffer)
                self.filled = 0
            first = last
        self.rows += len(y)

    def triangle(self) -> np.ndarray:
        """Return R, upper triangular with as many rows as columns, of all rows seen."""
        R = self.summary.triangle(self.buffer[: self.filled])
        return np.pad(R, ((0, R.shape[1] - len(R)), (0, 0)))

    def solve(self, ridge: float, rcond: float | None, dtype: Any) -> Solution:
        """Solve for the coefficients: the shortest, where more than one fit equally well.

        The first row of R eliminates the intercept from the others, which are a factor of the
        centred problem: neither the penalty nor the norm sees the intercept.
        """
        d, one = self.shape[0], int(self.intercept)
        R = self.triangle()
        found = sketch.lstsq(
            R[one:, one : one + d], R[one:, one + d :], ridge=ridge, minimum_norm=True, rcond=rcond
        )
        level = np.zeros(())
        if one:
            level = (R[0, one + d :] - R[0, one : one + d] @ found.x) / R[0, 0]
        error = np.nan if isinstance(self.summary, _Sketch) else float(found.backward_error.max())
        return Solution(
            found.x.astype(dtype), level.astype(dtype), error, found.condition, found.rank, 1
        )


class _Triangle:
    def __init__(self, width: int) -> None:
        self.R = np.empty((0, width))

    def update(self, rows: np.ndarray) -> None:
        self.R = self.triangle(rows)

    def triangle(self, rest: np.ndarray) -> np.ndarray:
        return _factor(np.vstack([self.R, rest]))


class _Sketch:
    def __init__(self, width: int, size: int | None, nnz: int | None, seed: Any) -> None:
        nnz = _NNZ if nnz is None else checks.integer(nnz, "nnz", low=1)
        size = _SHARE * width if size is None else size
        size = -(-checks.integer(size, "sketch_size", low=width) // nnz) * nnz
        operator = sketch.sparse_sign(size, _ROWS, nnz=nnz, seed=seed)
        self.stream = operator.stream(width, np.float64)

    def update(self, rows: np.ndarray) -> None:
        self.stream.update(rows)

    def triangle(self, rest: np.ndarray) -> np.ndarray:
        stream = copy.deepcopy(self.stream)
        stream.update(rest)
        return _factor(stream.value(partial=True))


def _factor(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.qr(rows, mode="r"))
