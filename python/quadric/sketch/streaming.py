"""A sketch of a matrix that comes in chunks of rows."""

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from quadric import arrays
from quadric.arrays import Array
from quadric.sketch import inputs
from quadric.sketch.inputs import Rows

if TYPE_CHECKING:
    from quadric.sketch.operator import SketchingOperator


class StreamingSketch:
    """The sketch ``S A``, built up while the rows of A come in; made by ``S.stream(d)``.

    The chunks may have any number of rows: the bits of the result are those of ``S @ A``. Memory is
    that of the sketch and of less than one block of rows (256 for dense operators, about m for SRHT
    and circulant, none for the others).

    Attributes
    ----------
    operator : SketchingOperator
    d : int
        Number of columns of A.
    dtype : dtype
        Type of A.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.random.default_rng(0).standard_normal((1000, 3))
    >>> S = qd.sketch.sparse_sign(64, 1000, nnz=8)
    >>> stream = S.stream(3)
    >>> for chunk in np.array_split(A, 7):
    ...     stream.update(chunk)
    >>> np.array_equal(stream.value(), S @ A)
    True

    Workers that have some of the rows each sketch these, and the sketches are added:

    >>> left, right = S[:, :400].stream(3), S[:, 400:].stream(3)
    >>> left.update(A[:400])
    >>> right.update(A[400:])
    >>> left.merge(right)
    >>> np.allclose(left.value(), S @ A)
    True
    """

    def __init__(
        self,
        operator: "SketchingOperator",
        d: int,
        dtype: np.dtype[Any],
        *,
        check_finite: bool = True,
    ) -> None:
        self.operator = operator
        self.d = d
        self.dtype = np.dtype(dtype)
        self.check_finite = check_finite
        self._total = operator._zeros(d, self.dtype)
        self._position = operator.column
        self._stop = operator.column + operator.n
        self._merged: list[tuple[int, int]] = []  # ranges of rows that came from other sketches
        # Rows that wait until their block is full. A block that begins before the first row of this
        # sketch begins with zeros.
        self._held = operator.column % operator._block
        self._waiting: list[Rows] = []
        if self._held:
            self._waiting.append(sparse.csr_array((self._held, d), dtype=self.dtype))
        self._like = arrays.like(np.empty(0))

    @property
    def rows_seen(self) -> int:
        """Number of rows of A in the sketch."""
        return sum(stop - start for start, stop in self._ranges())

    def update(self, chunk: Array) -> None:
        """Add the next rows of A.

        Parameters
        ----------
        chunk : array or sparse matrix, shape (rows, d)

        Raises
        ------
        ValueError
            If the width does not fit, the rows are more than are missing, or one is not finite;
            nothing has changed then.
        TypeError
            If the dtype does not fit.
        """
        if len(getattr(chunk, "shape", (0, 0))) != 2:
            raise ValueError(f"chunk must have shape (rows, {self.d}), got {tuple(chunk.shape)}")
        rows = inputs.rows_of(chunk, "chunk")
        if rows.shape[1] != self.d:
            raise ValueError(f"chunk must have shape (rows, {self.d}), got {rows.shape}")
        if rows.dtype != self.dtype:
            raise TypeError(f"chunk must be {self.dtype} to go with the sketch, got {rows.dtype}")
        missing = self._stop - self._position
        if rows.shape[0] > missing:
            raise ValueError(
                f"chunk must have at most the {missing} rows that are missing of "
                f"{self.operator.n}, got {rows.shape[0]}"
            )
        if self.check_finite:
            inputs.finite(rows, "chunk")
        self.feed(rows)
        self._like = inputs.wrapper(chunk)

    def value(self, *, partial: bool = False) -> Array:
        """Return ``S A``, shape (m, d).

        Parameters
        ----------
        partial : bool, optional
            Whether a sketch of the rows that were seen so far is welcome.

        Raises
        ------
        ValueError
            If rows are missing, and `partial` is False.
        """
        missing = self._stop - self._position
        if missing and not partial:
            raise ValueError(
                f"partial must be True to end the stream early: {missing} of "
                f"{self.rows_seen + missing} rows are missing"
            )
        return self._like(self.operator._value(self.total(), self.dtype))

    def merge(self, other: "StreamingSketch") -> None:
        """Add the sketch of other rows of the same matrix; `other` stays as it is.

        Parameters
        ----------
        other : StreamingSketch
            Of other columns of the same operator, ``S[:, i:j].stream(d)``, complete.

        Raises
        ------
        ValueError
            If the operator, `d` or the dtype differ, or rows of `other` are missing, or are in this
            sketch already; nothing has changed then.
        """
        if not isinstance(other, StreamingSketch):
            raise TypeError(f"other must be a StreamingSketch, got {type(other).__name__}")
        if (other.d, other.dtype) != (self.d, self.dtype):
            raise ValueError(
                f"other must have d={self.d} and dtype={self.dtype}, "
                f"got d={other.d} and dtype={other.dtype}"
            )
        if not self.operator._same_rows(other.operator):
            raise ValueError(
                f"other must be of columns of the same operator: {self.operator!r}, "
                f"got {other.operator!r}"
            )
        if other._position < other._stop:
            missing = other._stop - other._position
            raise ValueError(f"other must have seen all of its rows, got {missing} too few")
        mine = (self.operator.column, self._stop)
        for start, stop in other._ranges():
            for first, last in (mine, *self._merged):
                if start < last and first < stop:
                    raise ValueError(
                        "other must have rows that this sketch lacks, got rows "
                        f"{max(start, first)} to {min(stop, last)} again"
                    )
        self._total += other.total()
        self._merged += other._ranges()

    def feed(self, rows: Rows) -> None:
        """Add rows that are known to fit."""
        if not self.d:
            self._position += rows.shape[0]
            return
        block, ends = self.operator._block, self._position + rows.shape[0] == self._stop
        if self._held and rows.shape[0]:
            head = rows[: block - self._held]
            self._wait(head)
            rows = rows[head.shape[0] :]
            if self._held == block or (ends and not rows.shape[0]):
                self._add(inputs.stack(self._waiting), self._position - self._held, self._total)
                self._waiting, self._held = [], 0
        whole = rows.shape[0] if ends else rows.shape[0] // block * block
        if whole:
            self._add(rows[:whole], self._position, self._total)
            self._position += whole
        if whole < rows.shape[0]:
            self._wait(rows[whole:])

    def total(self) -> np.ndarray:
        """Return the sum behind the sketch, rows that wait included."""
        if not self._held:
            return self._total
        total = self._total.copy()
        self._add(inputs.stack(self._waiting), self._position - self._held, total)
        return total

    def __repr__(self) -> str:
        return (
            f"StreamingSketch({self.operator!r}, d={self.d}, dtype={self.dtype}, "
            f"rows_seen={self.rows_seen})"
        )

    def _ranges(self) -> list[tuple[int, int]]:
        return [(self.operator.column, self._position), *self._merged]

    def _wait(self, rows: Rows) -> None:
        self._waiting.append(inputs.copy_of(rows))  # the caller may overwrite the chunk
        self._held += rows.shape[0]
        self._position += rows.shape[0]

    def _add(self, rows: Rows, first: int, total: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            if isinstance(rows, np.ndarray):
                self.operator._add(rows, first, total)
            else:
                self.operator._add_sparse(rows, first, total)
