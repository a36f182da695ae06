"""A checked problem, its factor, and the points that a solver visits."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quadric.arrays import Data
from quadric.sketch.karlson_walden import Estimate
from quadric.sketch.lstsq_factor import Factor
from quadric.sketch.lstsq_passes import Passes

HISTORY = np.dtype(
    [
        ("method", "U12"),
        ("iterations", "i8"),
        ("passes", "i8"),
        ("residual_norm", "f8"),
        ("backward_error", "f8"),
        ("seconds", "f8"),
    ]
)
"""A point: who came to it, iterations and reads of A so far, the largest norm of a residual and the
largest backward error over the right-hand sides (columns scaled), seconds so far."""


@dataclass(slots=True, eq=False)
class Point:
    """A solution and what one pass over A says about it.

    Attributes
    ----------
    x : array, shape (d, k)
        float64, but of values that the dtype of A has.
    g : array of float64, shape (d, k)
        ``A^T r - ridge x``, half the negative gradient.
    norms : array of float64, shape (k,)
        Norms of the residuals, those of the rows ``sqrt(ridge) I`` included.
    error : array of float64, shape (k,)
        Backward errors, relative, with columns scaled.
    """

    x: np.ndarray
    g: np.ndarray
    norms: np.ndarray
    error: np.ndarray


class Watch:
    """Backward errors on the way from a point, known from gradients, without a pass over A.

    Parameters
    ----------
    problem : Problem
    point : Point
        Where the way begins.
    target : float
        Backward error to reach.
    """

    def __init__(self, problem: "Problem", point: Point, target: float) -> None:
        self._estimate, self._norms, self._target = problem.estimate, point.norms, target
        self._measure = problem.estimate.shifted(point.norms, point.x)
        self._known = np.zeros(len(point.norms), bool)

    def reached(self, z: np.ndarray, x: Callable[[], np.ndarray]) -> np.ndarray:
        """Return which right-hand sides are there, shape (k,), with gradients z of scaled columns.

        Errors depend on the length of x, which is far off in the beginning of an ill-conditioned
        problem: whatever seems to be there is looked at once more with the x of now.
        """
        there = self._there(z)
        if (there & ~self._known).any():
            self._measure = self._estimate.shifted(self._norms, x())
            there = self._there(z)
            self._known |= there
        return there

    def _there(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(self._estimate.of(self._measure, z, self._norms) <= self._target)


class Problem:
    """``min |b - A x|^2 + ridge |x|^2`` for n at least d, or any n with ridge.

    Parameters
    ----------
    passes : Passes
        Over A, with the ridge.
    b : array, shape (n, k)
        C-contiguous, of the dtype of A, and where that is.
    b_norms : array of float64, shape (k,)
    factor : Factor
    tol : float or None
        Backward error to stop at; None is the unit roundoff.
    max_iter : int
    progress : callable or None
        Is told the iterations so far, the backward error and what it is to become.

    Attributes
    ----------
    r : array, shape (n, k)
        Residual at the point that was visited last.
    u : float
        Unit roundoff of the dtype of A.
    iterations : int
        Iterations so far.
    to_rounding : bool
        Whether no `tol` was given.
    """

    def __init__(
        self,
        passes: Passes,
        b: Data,
        b_norms: np.ndarray,
        factor: Factor,
        *,
        tol: float | None,
        max_iter: int,
        progress: Callable[[int, float, float], None] | None = None,
    ) -> None:
        self.passes, self.b, self.b_norms = passes, b, b_norms
        self.u = float(np.finfo(passes.dtype).eps) / 2
        self.target = self.u if tol is None else tol
        self.accepted = 4 * self.u if tol is None else tol
        self.to_rounding = tol is None
        self.max_iter, self.iterations = max_iter, 0
        self.r = passes.empty(b.shape[1])
        self._progress = progress
        self._rows: list[tuple[str, int, int, float, float, float]] = []
        self._clock = time.perf_counter()
        self.use(factor)

    def use(self, factor: Factor) -> None:
        """Measure and precondition with this factor from now on."""
        self.factor = factor
        self.estimate = Estimate(factor, self.b_norms, scaled=True)

    @property
    def left(self) -> int:
        """Iterations that may still be made."""
        return self.max_iter - self.iterations

    def visit(self, x: np.ndarray, method: str) -> Point:
        """Return what a pass over A says about x; `r` is its residual afterwards."""
        with np.errstate(over="ignore", invalid="ignore"):
            x = x.astype(self.passes.dtype).astype(np.float64, copy=False)
            g, squares = self.passes.gradient(x, self.b, self.r)
        if not (np.isfinite(g).all() and np.isfinite(squares).all() and np.isfinite(x).all()):
            self.passes.refuse(self.b)
        norms = np.sqrt(squares)
        point = Point(x, g, norms, self.estimate.at(g, norms, x))
        self._note(method, point)
        return point

    def done(self, point: Point) -> bool:
        """Whether all right-hand sides are solved as well as they can be."""
        return bool((point.error <= self.target).all())

    def floor(self, point: Point) -> np.ndarray:
        """Return the length, shape (k,), of steps of ``P^-1 x`` below which rounding rules.

        It is ``u (|A| |x| + 0.04 condition |r|)``, the error of a forward stable solver.
        """
        factor = self.factor
        size = np.linalg.norm(point.x * factor.norms[:, None], axis=0)
        return np.asarray(self.u * (factor.largest * size + 0.04 * factor.condition * point.norms))

    def history(self) -> np.ndarray:
        """Return all points so far."""
        return np.array(self._rows, HISTORY)

    def _note(self, method: str, point: Point) -> None:
        error, norm = float(point.error.max()), float(point.norms.max())
        seconds = time.perf_counter() - self._clock
        row = (method, self.iterations, self.passes.count, norm, error, seconds)
        self._rows.append(row)
        if self._progress is not None:
            self._progress(self.iterations, error, self.target)
