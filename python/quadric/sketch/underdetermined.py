"""The solution of least norm where A has fewer rows than columns.

It is ``x = A^T y`` with ``(A A^T + ridge I) y = b``. The sketch of ``A^T``, which is tall, is the
preconditioner, and residuals computed anew keep the square of the condition out of the answer.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from quadric.sketch.lstsq_factor import Factor
from quadric.sketch.lstsq_passes import Passes
from quadric.sketch.lstsq_problem import HISTORY

_ROUNDS = 8


class LeastNorm:
    """A solve of ``A x = b`` for n < d; after :meth:`solve` it holds what the result needs.

    Parameters
    ----------
    passes : Passes
        Over A, with the ridge.
    b : array, shape (n, k)
    b_norms : array of float64, shape (k,)
    factor : Factor
        Of ``A^T`` over ``sqrt(ridge) I``, with ``start`` of any value.
    tol : float or None
        Residual to stop at, relative to ``|A|_F |x| + |b|``; None is the unit roundoff.
    max_iter : int
    progress : callable or None

    Attributes
    ----------
    x : array of float64, shape (d, k)
    r : array, shape (n, k)
        ``b - A x``.
    error : array of float64, shape (k,)
        What `tol` is compared with, of the part of the residual in the range of A.
    """

    def __init__(
        self,
        passes: Passes,
        b: np.ndarray,
        b_norms: np.ndarray,
        factor: Factor,
        *,
        tol: float | None,
        max_iter: int,
        progress: Callable[[int, float, float], None] | None,
    ) -> None:
        self.passes, self.b, self.factor = passes, b, factor
        self._turned = passes.turned()
        self._b_norms, self._progress = b_norms, progress
        u = float(np.finfo(passes.dtype).eps) / 2
        self.target, self.accepted = (u, 4 * u) if tol is None else (tol, tol)
        self.max_iter, self.iterations = max_iter, 0
        self.r = np.empty(b.shape, passes.dtype)
        self._size = float(np.linalg.norm(factor.norms))
        self._rows: list[Any] = []
        self._clock = time.perf_counter()

    @property
    def count(self) -> int:
        """How often A was read, the sketch not included."""
        return self.passes.count + self._turned.count

    @property
    def converged(self) -> bool:
        """Whether the residual is as small as was asked for."""
        return bool((self.error <= self.accepted).all())

    def solve(self) -> None:
        """Find x, y and the residual."""
        factor, turned = self.factor, self._turned
        x = np.empty((self.passes.d, self.b.shape[1]), self.passes.dtype)
        self._y = factor.apply(factor.apply_t(self.b.astype(np.float64)))
        turned.normal(self._y, x)
        self.x = x.astype(np.float64)
        residual = self._visit()
        for _ in range(_ROUNDS):
            before = self.error
            todo = ~(before <= self.target)
            if not todo.any() or self.iterations >= self.max_iter:
                break
            self._correct(np.where(todo, factor.apply_t(residual), 0.0))
            residual = self._visit()
            if not (self.error[todo] < before[todo] / 2).any():
                break

    def history(self) -> np.ndarray:
        """Return all points so far."""
        return np.array(self._rows, HISTORY)

    def _correct(self, c: np.ndarray) -> None:
        """Add the solution of ``P^T (A A^T + ridge I) P z = c`` by conjugate gradients.

        Each product with ``A A^T`` has the step of x on its way, so x costs no pass of its own.
        """
        factor = self.factor
        residual, p = c.copy(), c.copy()
        squares = np.einsum("ij,ij->j", c, c)
        todo = squares > 0
        along = np.empty((self.passes.d, c.shape[1]), self.passes.dtype)
        while todo.any() and self.iterations < self.max_iter:
            self.iterations += 1
            direction = factor.apply(p)
            product = factor.apply_t(self._turned.normal(direction, along))
            curvature = np.einsum("ij,ij->j", p, product)
            todo &= curvature > 0
            step = np.where(todo, squares, 0.0) / np.where(todo, curvature, 1.0)
            self.x += step * along
            self._y += step * direction
            residual -= step * product
            new = np.einsum("ij,ij->j", residual, residual)
            todo &= ~(self._relative(residual) <= self.target / 2) & (new > 0)
            p = np.where(todo, residual + new / np.where(squares > 0, squares, 1.0) * p, 0.0)
            squares = new

    def _visit(self) -> np.ndarray:
        """Compute the residual at x; return that of the shifted system."""
        passes = self.passes
        with np.errstate(over="ignore", invalid="ignore"):
            self.x = self.x.astype(passes.dtype).astype(np.float64, copy=False)
            passes.residual(self.x, self.b, self.r)
        residual = self.r.astype(np.float64)
        if not (np.isfinite(residual).all() and np.isfinite(self.x).all()):
            passes.refuse(self.b)
        if passes.ridge:
            residual -= passes.ridge * self._y
        self.error = self._relative(self.factor.apply_t(residual))
        self._note(residual)
        return residual

    def _relative(self, z: np.ndarray) -> np.ndarray:
        """Return the norm of the part of a residual that is ``P^T r = z``, relative."""
        part = np.linalg.norm(self.factor.norms[:, None] * self.factor.lift(z), axis=0)
        size = self._size * np.linalg.norm(self.x, axis=0) + self._b_norms
        return np.asarray(part / np.where(size > 0, size, 1.0))

    def _note(self, residual: np.ndarray) -> None:
        error, norm = float(self.error.max()), float(np.linalg.norm(residual, axis=0).max())
        seconds = time.perf_counter() - self._clock
        row = ("minimum_norm", self.iterations, self.count, norm, error, seconds)
        self._rows.append(row)
        if self._progress is not None:
            self._progress(self.iterations, error, self.target)
