"""Random projections onto the solutions of a few equations of a linear system at a time.

The unknowns of k right-hand sides are the rows of X, shape (k, d), in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from quadric import backends, random
from quadric.sketch.inputs import dense_of
from quadric.sketch.linear_system import (
    DenseSystem,
    Floats,
    LinearSystem,
    OperatorSystem,
    SparseSystem,
)

# Streams of random numbers of a seed; an extended method adds 1 for the columns.
ROWS, BLOCKS, ORDER, GAUSSIAN, SIGNS, PLACES = 32, 34, 36, 38, 40, 42

Solve: TypeAlias = Callable[[Floats], Floats]


class Projection(ABC):
    """A way to project X onto some equations of ``A X^T = Y``.

    Attributes
    ----------
    size : int
        Equations of a step.
    """

    size: int

    @abstractmethod
    def advance(self, X: Floats, steps: int) -> None:
        """Make so many steps from X, which is changed."""


class Uniforms:
    """Numbers of a stream in their order, drawn many at a time."""

    _AHEAD = 4096

    def __init__(self, seed: int, stream: int) -> None:
        self._seed, self._stream, self._next = seed, stream, 0
        self._ahead = np.empty(0)

    def draw(self, count: int) -> Floats:
        """Return the next `count` numbers."""
        while len(self._ahead) < count:
            drawn = max(count - len(self._ahead), self._AHEAD)
            more = random.uniforms(self._seed, self._stream, self._next, drawn)
            self._ahead, self._next = np.concatenate([self._ahead, more]), self._next + drawn
        result, self._ahead = self._ahead[:count], self._ahead[count:]
        return result


class Rows(Projection):
    """One row at a time, each as often as its squared norm says: Kaczmarz.

    Parameters
    ----------
    system : DenseSystem or SparseSystem
    norms : ndarray, shape (n,)
        Squared norms of the rows, not all 0.
    Y : ndarray, shape (n, k)
        The right-hand sides, C-contiguous; may change between the steps.
    relaxation : float
    seed, stream : int
    backend : str or None
    """

    size = 1

    def __init__(
        self,
        system: LinearSystem,
        norms: Floats,
        Y: Floats,
        relaxation: float,
        seed: int,
        stream: int = ROWS,
        backend: str | None = None,
    ) -> None:
        self._norms, self._Y, self._relaxation = norms, Y, relaxation
        self._up_to = np.cumsum(norms)
        self._last = int(np.flatnonzero(norms)[-1])
        self._uniforms = Uniforms(seed, stream)
        self._matrix: tuple[Any, ...]
        if isinstance(system, SparseSystem):
            self._kernel = backends.resolve("sketch.kaczmarz_csr", backend)
            self._matrix = (system.A.indptr, system.A.indices, system.A.data)
        else:
            assert isinstance(system, DenseSystem)
            self._kernel = backends.resolve("sketch.kaczmarz", backend)
            self._matrix = (system.A,)

    def advance(self, X: Floats, steps: int) -> None:
        places = self._uniforms.draw(steps) * self._up_to[-1]
        order = np.searchsorted(self._up_to, places, side="right")
        # Rounding may carry the last place beyond the last row that is not zero.
        order = np.minimum(order, self._last).astype(np.int64, copy=False)
        self._kernel(*self._matrix, self._Y, self._norms, order, self._relaxation, X)


class Blocks(Projection):
    """One block of a random partition of the rows at a time; their factors are kept.

    Parameters
    ----------
    system, Y, relaxation, seed
        As in `Rows`.
    size : int
        Rows of a block.
    inverse : callable or None
        B^-1 of the metric, for matrices with d rows; None is the identity.
    stream : int
    """

    def __init__(
        self,
        system: LinearSystem,
        Y: Floats,
        relaxation: float,
        seed: int,
        size: int,
        inverse: Solve | None = None,
        stream: int = BLOCKS,
    ) -> None:
        self.size, self._system, self._Y, self._relaxation = size, system, Y, relaxation
        self._inverse = inverse
        n = system.shape[0]
        # Without order among the rows, a block is a sample of them.
        shuffled = np.argsort(random.uniforms(seed, stream - BLOCKS + ORDER, 0, n), kind="stable")
        count = -(-n // size)
        self._blocks = [np.sort(part) for part in np.array_split(shuffled, count)]
        self._factors: list[Solve | None] = [None] * count
        self._uniforms = Uniforms(seed, stream)

    def advance(self, X: Floats, steps: int) -> None:
        picks = (self._uniforms.draw(steps) * len(self._blocks)).astype(np.int64)
        for pick in picks:
            index = self._blocks[pick]
            rows = self._system.rows(index)
            back = _transposed(rows) if self._inverse is None else self._inverse(_dense(rows).T)
            factor = self._factors[pick]
            if factor is None:
                factor = self._factors[pick] = factored(_dense(rows @ back))
            step = back @ factor(self._Y[index] - rows @ X.T)
            X += self._relaxation * step.T


class Sketched(Projection):
    """Random combinations of all rows at a time.

    Parameters
    ----------
    system, Y, relaxation, seed, size, inverse
        As in `Blocks`.
    nnz : int or None
        Rows in a combination, with random signs; None takes all, with Gaussian weights.
    """

    def __init__(
        self,
        system: LinearSystem,
        Y: Floats,
        relaxation: float,
        seed: int,
        size: int,
        inverse: Solve | None = None,
        nnz: int | None = None,
    ) -> None:
        self.size, self._system, self._Y, self._relaxation = size, system, Y, relaxation
        self._inverse, self._seed, self._nnz = inverse, seed, nnz
        self._drawn = 0  # Gaussian numbers so far
        self._places, self._signs = Uniforms(seed, PLACES), Uniforms(seed, SIGNS)

    def advance(self, X: Floats, steps: int) -> None:
        for _ in range(steps):
            S = self._gaussian() if self._nnz is None else self._sparse(self._nnz)
            rows = _dense(self._system.combine(S))
            back = rows.T if self._inverse is None else self._inverse(rows.T)
            step = back @ factored(rows @ back)(S @ self._Y - rows @ X.T)
            X += self._relaxation * step.T

    def _gaussian(self) -> Floats:
        count = self.size * self._system.shape[0]
        numbers = random.normals(self._seed, GAUSSIAN, self._drawn, count)
        self._drawn += count
        return numbers.reshape(self.size, -1)

    def _sparse(self, nnz: int) -> Any:
        count, n = self.size * nnz, self._system.shape[0]
        places = (self._places.draw(count) * n).astype(np.int64)
        signs = np.where(self._signs.draw(count) < 0.5, -1.0, 1.0)
        return sp.csr_array((signs, places, np.arange(0, count + 1, nnz)), (self.size, n))


class Extended(Projection):
    """Columns and rows in turn, for systems that have no solution.

    Z comes down to the part of Y that no X explains, and X solves ``A X^T = Y - Z``.

    Parameters
    ----------
    columns : Projection
        Onto ``A^T Z^T = 0``.
    rows : Projection
        Onto ``A X^T = target``.
    Y : ndarray, shape (n, k)
    target : ndarray, shape (n, k)
        What `rows` refers to; is changed.
    turn : int
        Steps with the columns, and then with the rows.
    """

    def __init__(
        self, columns: Projection, rows: Projection, Y: Floats, target: Floats, turn: int
    ) -> None:
        self.size, self._columns, self._rows = rows.size, columns, rows
        self._Y, self._target, self._turn = Y, target, turn
        self._Z = Y.T.copy(order="C")  # also of one column, where Y.T would do

    def advance(self, X: Floats, steps: int) -> None:
        for done in range(0, steps, self._turn):
            turn = min(self._turn, steps - done)
            self._columns.advance(self._Z, turn)
            np.subtract(self._Y, self._Z.T, out=self._target)
            self._rows.advance(X, turn)


def factored(gram: Floats) -> Solve:
    """Return what solves with a symmetric positive semidefinite matrix, in the least norm."""
    gram = np.asarray(gram, np.float64)
    s = len(gram)
    eps = np.finfo(np.float64).eps
    try:
        factor = scipy.linalg.cho_factor(gram, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        factor = None
    if factor is not None:
        pivots = np.diag(factor[0])
        if pivots.min() ** 2 > s * eps * pivots.max() ** 2:
            return lambda R: scipy.linalg.cho_solve(factor, R, check_finite=False)
    values, vectors = scipy.linalg.eigh(gram, check_finite=False)
    kept = values > s * eps * max(values[-1], 0.0)
    half = vectors[:, kept] / np.sqrt(values[kept])
    return lambda R: half @ (half.T @ R)


def can_take_rows(system: LinearSystem) -> bool:
    """Whether `Rows` can work on it; an operator has rows only as products."""
    return not isinstance(system, OperatorSystem)


def _transposed(rows: Any) -> Any:
    return rows.T


def _dense(rows: Any) -> Floats:
    return np.asarray(dense_of(rows), np.float64)
