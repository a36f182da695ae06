"""Dask arrays as chunks of rows, and sums over them in an order that nothing changes."""

import math
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed

from quadric import backends, checks, sketch, threads
from quadric.sketch.lstsq_passes import is_sparse
from quadric.sketch.rows import NNZ, Rows, check_rows

_FAN = 4  # partial results that one task adds up


class ChunkedRows(Rows):
    """The rows of a Dask array, for whatever works on :class:`quadric.sketch.rows.Rows`.

    Sums over rows are computed at once, but for those that are tasks; what has a value for each row
    is a Dask array.
    """

    __slots__ = ()

    a: Any

    def each(
        self, function: Callable[..., Any], *shared: Any, b: da.Array | None = None
    ) -> list[Delayed]:
        """Return the tasks ``function(rows, first, *shared)``, one for each chunk.

        `first` is the number of the first of its rows. With `b`, cut like A, its chunk is the last
        argument.
        """
        common = [delayed(x) for x in shared]  # sent to a worker once, and not with each task
        options = self.name, self.backend, self.n_threads
        blocks = self.a.to_delayed().ravel()
        sides = [()] * len(blocks) if b is None else [(side,) for side in b.to_delayed().ravel()]
        starts = np.cumsum((0, *self.a.chunks[0][:-1]))
        return [
            delayed(_on_chunk)(function, block, int(first), options, *common, *side)
            for block, first, side in zip(blocks, starts, sides, strict=True)
        ]

    def sketched(self, S: sketch.SketchingOperator) -> Delayed:
        """Return ``S A``."""
        return total(self.each(_sketch, S))

    def weighted_gram(self, weights: np.ndarray | None) -> Delayed:
        """Return ``A^T diag(weights) A``."""
        return total(self.each(_gram, weights))

    def gram(self, weights: np.ndarray | None = None) -> np.ndarray:
        return _computed(self.weighted_gram(weights))

    def preconditioned_gram(self, inverse: np.ndarray) -> np.ndarray:
        return _computed(total(self.each(_preconditioned_gram, inverse)))

    def norms(self, M: np.ndarray | None = None) -> Any:
        return self.per_row(self.each(_norms, M), (), np.float64)

    def sketch(self, m: int, seed: int) -> np.ndarray:
        S = sketch.sparse_sign(m, self.shape[0], nnz=NNZ, seed=seed, backend=self.backend)
        return _computed(self.sketched(S)).astype(np.float64) * math.sqrt(NNZ)

    def take(self, index: np.ndarray) -> np.ndarray:
        return np.asarray(_computed(self.a[index]), np.float64)

    def columns(self, index: np.ndarray) -> "ChunkedRows":
        return ChunkedRows(self.a[:, index], self.name, self.backend, self.n_threads)

    def refuse_what_is_not_finite(self) -> None:
        raise ValueError(f"{self.name} must be finite, with squared norms that float64 can hold")

    def per_row(self, tasks: list[Delayed], columns: tuple[int, ...], dtype: Any) -> da.Array:
        """Return the results of tasks, of as many rows as their chunks, as one array."""
        pieces = [
            da.from_delayed(task, (rows, *columns), dtype)
            for task, rows in zip(tasks, self.a.chunks[0], strict=True)
        ]
        return da.concatenate(pieces)


def chunked(A: Any, name: str, backend: str | None, n_threads: int | None) -> ChunkedRows:
    """Return the rows of a Dask array that is cut between rows alone."""
    backends.resolve("sketch.row_norms", backend)
    if n_threads is not None:
        threads.resolve(n_threads)
    if not isinstance(A, da.Array):
        raise TypeError(f"{name} must be a Dask array, got {type(A).__name__}")
    if A.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got an array of shape {A.shape}")
    checks.floating(A, name)
    if any(math.isnan(size) for size in A.shape):
        raise ValueError(f"{name} must have known chunks: call {name}.compute_chunk_sizes() first")
    if 0 in A.shape:
        raise ValueError(f"{name} must have at least one row and column, got shape {A.shape}")
    if len(A.chunks[1]) > 1:
        raise ValueError(
            f"{name} must be cut between rows alone, got {len(A.chunks[1])} chunks of columns: "
            f"{name}.rechunk({{1: -1}}) joins them"
        )
    full = tuple(rows for rows in A.chunks[0] if rows)
    if full != A.chunks[0]:
        A = A.rechunk({0: full})
    return ChunkedRows(A, name, backend, n_threads)


def beside(b: Any, name: str, rows: ChunkedRows) -> da.Array:
    """Return right-hand sides (n,) or (n, k), cut like A."""
    if not isinstance(b, da.Array):
        if not isinstance(b, np.ndarray):
            raise TypeError(f"{name} must be a Dask or NumPy array, got {type(b).__name__}")
        b = da.from_array(b, chunks=-1)
    n = rows.shape[0]
    if b.ndim not in (1, 2) or b.shape[0] != n:
        raise ValueError(f"{name} must have shape ({n},) or ({n}, k), got {b.shape}")
    checks.same_type(b, name, rows.dtype, rows.name)
    return b.rechunk((rows.a.chunks[0], *[-1] * (b.ndim - 1)))


def total(tasks: list[Delayed]) -> Delayed:
    """Return the sum of the results, or of each part of tuples, in fixed groups and order."""
    while len(tasks) > 1:
        tasks = [delayed(_add)(tasks[i : i + _FAN]) for i in range(0, len(tasks), _FAN)]
    return tasks[0]


def _add(terms: list[Any]) -> Any:
    if isinstance(terms[0], tuple):
        return tuple(_add(list(parts)) for parts in zip(*terms, strict=True))
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def _computed(lazy: Any) -> np.ndarray:
    result: np.ndarray = lazy.compute()
    return result


def _on_chunk(
    function: Callable[..., Any], block: Any, first: int, options: Any, *arguments: Any
) -> Any:
    """Run a function on the rows of one chunk; an entry that is not finite is named as one of A."""
    rows = check_rows(block, *options)
    with threads.blas_limit(1):
        try:
            result = function(rows, first, *arguments)
            finite = all(np.isfinite(part).all() for part in _parts(result))
        except ValueError:
            blame(rows.a, first, rows.name)
            raise
    if not finite:
        blame(rows.a, first, rows.name)
        raise ValueError(f"{rows.name} must be smaller: a result overflows")
    return result


def blame(block: Any, first: int, name: str) -> None:
    """Raise an error if the chunk that begins at row `first` has an entry that is not finite."""
    entries = block.toarray() if is_sparse(block) else block
    bad = ~np.isfinite(entries)
    if bad.any():
        at = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
        where = (first + at[0], *at[1:])
        raise ValueError(f"{name} must be finite, got {entries[at]} at index {where}") from None


def _parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _sketch(rows: Rows, first: int, S: sketch.SketchingOperator) -> np.ndarray:
    result: np.ndarray = S[:, first : first + rows.shape[0]] @ rows.a
    return result


def _gram(rows: Rows, first: int, weights: np.ndarray | None) -> np.ndarray:
    return rows.gram(None if weights is None else weights[first : first + rows.shape[0]])


def _preconditioned_gram(rows: Rows, first: int, inverse: np.ndarray) -> np.ndarray:
    return rows.preconditioned_gram(inverse)


def _norms(rows: Rows, first: int, M: np.ndarray | None) -> np.ndarray:
    return rows.norms(M)
