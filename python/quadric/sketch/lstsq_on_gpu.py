"""The Gram route of least squares where A is on a GPU: nothing leaves it but a few numbers.

The sketch is factored by shifted Cholesky QR, one Gram matrix of A makes the factor exact, and two
corrections are launched before anybody looks. What is too ill-conditioned for that is left to the
CPU's factorizations, which know about ranks.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from quadric import arrays
from quadric.device import DeviceArray
from quadric.sketch import scaling
from quadric.sketch.lstsq_factor import default_rcond
from quadric.sketch.lstsq_passes import Passes
from quadric.sketch.lstsq_problem import HISTORY
from quadric.sketch.lstsq_results import LstsqResult
from quadric.sketch.triangle_on_gpu import Triangle, condition, fetched

_BLIND = 2  # corrections before a look: they do unless A is at the edge of what float64 can hold
_ROUNDS = 8
_LOST = 1e13  # condition from which on rounding may decide whether A has full rank
_SHIFTS = 8  # groups of right-hand sides whose backward errors are measured with one factorization
_EVEN = 1.1  # ratio of column norms below which scaled columns are as good as those of A


def solve(
    passes: Passes,
    b: DeviceArray,
    b_norms: np.ndarray,
    operator: Any,
    method: str,
    *,
    tol: float | None,
    max_iter: int,
    progress: Callable[[int, float, float], None] | None,
) -> LstsqResult | None:
    """Return the solution for b of shape (n, k); None if it is not to be had in this way."""
    task = _Task(passes, b, b_norms, tol, max_iter, progress)
    before = passes.count
    result = task.run(operator, method)
    if result is None:
        passes.count = before
    return result


class _Point:
    """A solution: x and ``A^T r - ridge x`` of shape (d, k), norms of the residuals, (k,)."""

    def __init__(self, x: DeviceArray, g: DeviceArray, norms: DeviceArray) -> None:
        self.x, self.g, self.norms = x, g, norms
        self.error = np.full(len(norms), np.inf)
        self.host = (np.empty(0), np.empty(0), np.empty(0))  # x, g and residual norms, once known


class _Task:
    def __init__(
        self,
        passes: Passes,
        b: DeviceArray,
        b_norms: np.ndarray,
        tol: float | None,
        max_iter: int,
        progress: Callable[[int, float, float], None] | None,
    ) -> None:
        self.passes, self.b, self.b_norms, self.max_iter = passes, b, b_norms, max_iter
        self.u = float(np.finfo(passes.dtype).eps) / 2
        self.accepted = 4 * self.u if tol is None else tol
        self.progress = progress
        self.r = passes.empty(b.shape[1])
        self.points: list[_Point] = []
        self.method = "gram"
        self.rows: list[tuple[str, int, int, float, float, float]] = []
        self.clock = time.perf_counter()

    def run(self, operator: Any, method: str) -> LstsqResult | None:
        self.method = method
        triangle, x = self._start(operator)
        self._visit(x)
        for _ in range(min(_BLIND, self.max_iter)):
            self._correct(triangle)
        # All that a look needs is launched before it.
        self.R = triangle.unscaled()
        powers = triangle.powers(triangle.R, triangle.inverse)
        powers += triangle.powers(self.R, triangle.P)
        numbers = fetched([*powers, *triangle.failures, triangle.norms, *self._parts(0)])
        self.largest, self.condition = condition(np.concatenate(numbers[:4]))
        self.unscaled = condition(np.concatenate(numbers[4:8]))
        numbers = numbers[8:]
        failures = len(triangle.failures)
        d = self.passes.d
        self.norms = numbers[failures]
        if any(n[0] != -1 for n in numbers[:failures]) or not self._sound(d):
            return None
        if not self._measure(triangle, 0, numbers[failures + 1 :]):
            return None
        best = self._best()
        idle = 0
        while not self._done(best) and len(self.points) <= min(_ROUNDS, self.max_iter):
            self._correct(triangle)
            last = len(self.points) - 1
            if not self._measure(triangle, last, fetched(self._parts(last))):
                return None
            halved = (self.points[last].error < best.error / 2).any()
            best = self._best()
            idle = 0 if halved else idle + 1
            if idle > 1:
                break
        if not self._done(best):
            return None
        if best is not self.points[-1]:
            self.passes.visit_on_gpu(best.x, self.b, self.r, best.g, best.norms)
        error = self._as_it_is(triangle, best)
        return None if error is None else self._result(triangle, best, error)

    def _start(self, operator: Any) -> tuple[Triangle, DeviceArray]:
        """Return the factor of A and the solution of the sketched problem."""
        passes = self.passes
        d, ridge = passes.d, passes.ridge
        A, b = passes.A, self.b
        if operator is not None:
            A, b = operator._sketch(A), operator._sketch(b)
        passes.count += 1
        m = len(A)
        if operator is None or ridge or A.dtype != np.float64:
            top = arrays.zeros(A, (m + (d if ridge else 0), d), np.float64)
            top[:m].assign(A)
            if ridge:
                top[m:].diagonal().fill(math.sqrt(ridge))
        else:
            top = arrays.contiguous(A)
        triangle = Triangle(top)
        side = b.astype(np.float64, copy=False)
        y = triangle.product(triangle.Q[:m].T, side)
        x = triangle.product(triangle.P, y)
        if operator is not None:
            triangle.correct(passes.gram_on_gpu, ridge)
        return triangle, x

    def _visit(self, x: DeviceArray) -> None:
        """Launch a pass at x, rounded to what the dtype of A has."""
        space, (d, k) = x.space, x.shape
        if self.passes.dtype != np.float64:
            x = x.astype(self.passes.dtype).astype(np.float64)
        point = _Point(x, space.empty((d, k), np.float64), space.empty(k, np.float64))
        self.passes.visit_on_gpu(x, self.b, self.r, point.g, point.norms)
        self.points.append(point)
        self.rows.append((self.method, len(self.points) - 1, self.passes.count, 0.0, 0.0, 0.0))

    def _correct(self, triangle: Triangle) -> None:
        """Launch a step to ``x + P P^T g`` and the pass there."""
        last = self.points[-1]
        y = triangle.product(triangle.P.T, last.g)
        self._visit(triangle.product(triangle.P, y, last.x.copy(), 1.0, 1.0))

    def _parts(self, first: int) -> list[DeviceArray]:
        return [a for p in self.points[first:] for a in (p.x, p.g, p.norms)]

    def _sound(self, d: int) -> bool:
        """Whether the rank of A is beyond doubt."""
        limit = min(_LOST, 0.1 / default_rcond(self.passes.dtype, d))
        return bool(np.isfinite(self.norms).all()) and self.condition < limit

    def _measure(self, triangle: Triangle, first: int, numbers: list[np.ndarray]) -> bool:
        """Set the errors, columns scaled, of the points from `first` on; whether all is finite."""
        if not all(np.isfinite(n).all() for n in numbers):
            return False
        x, g = np.stack(numbers[::3]), np.stack(numbers[1::3])
        r = np.sqrt(np.stack(numbers[2::3]) + self.passes.ridge * np.square(x).sum(axis=1))
        lengths = self.norms[:, None]
        shift = self._shift(x[-1] * lengths, r[-1], math.sqrt(len(lengths)))
        least = self.largest / self.condition
        found = self._errors(triangle, triangle.R, triangle.inverse, least, shift, g / lengths, r)
        if found is None:
            return False
        seconds = time.perf_counter() - self.clock
        size = math.sqrt(len(lengths))
        for i, error in enumerate(found / size, first):
            self.points[i].error = error
            self.points[i].host = x[i - first], g[i - first], r[i - first]
            name, iterations, count = self.rows[i][:3]
            worst = float(error.max())
            norm = float(r[i - first].max())
            self.rows[i] = (name, iterations, count, norm, worst, seconds)
            if self.progress is not None:
                self.progress(iterations, worst, self.accepted)
        return True

    def _shift(self, x: np.ndarray, r: np.ndarray, size: float) -> np.ndarray:
        """Return ``theta |r| / sqrt(1 + theta^2 |x|^2)`` with ``theta = size / |b|``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = np.hypot(self.b_norms / size, np.linalg.norm(x, axis=0))
            return np.where(r > 0, r / whole, 0.0)

    def _errors(
        self,
        triangle: Triangle,
        R: DeviceArray,
        inverse: DeviceArray,
        least: float,
        shift: np.ndarray,
        z: np.ndarray,
        r: np.ndarray,
    ) -> np.ndarray | None:
        """Return ``shift / |r| |(R^T R + shift^2)^(-1/2) z|`` for z of shape (points, d, k).

        Columns with shifts near each other share the smallest one, which can only raise an error.
        """
        points, d, k = z.shape
        result = np.zeros((points, k))
        order = np.argsort(shift)
        at = 0
        positive = shift[shift > 0]
        spread = positive.max() / positive.min() if positive.size else 1.0
        ratio = max(1.1, float(spread) ** (1 / _SHIFTS))
        while at < k:
            low = float(shift[order[at]])
            mine = order[at:][shift[order[at:]] <= ratio * low]
            at += len(mine)
            if low == 0:
                continue  # no residual, no error
            block = np.ascontiguousarray(z[:, :, mine].transpose(1, 0, 2).reshape(d, -1))
            norms = triangle.shifted(R, inverse, low, least).norms(block)
            if norms is None:
                return None
            safe = np.where(r[:, mine] > 0, r[:, mine], 1.0)
            share = np.where(r[:, mine] > 0, shift[mine] / safe, 0.0)
            result[:, mine] = share * norms.reshape(points, -1)
        return result

    def _as_it_is(self, triangle: Triangle, best: _Point) -> np.ndarray | None:
        """Return the backward errors of a point without scaled columns."""
        x, g, r = best.host
        biggest = float(self.norms.max())
        if biggest < _EVEN * self.norms.min():
            return best.error
        size = float(np.linalg.norm(self.norms / biggest))
        shift = self._shift(x * biggest, r, size)
        R = arrays.scaled(self.R, 1 / biggest)
        inverse = arrays.scaled(triangle.P, biggest)
        largest, cond = self.unscaled[0] / biggest, self.unscaled[1]
        if not np.isfinite(cond):  # or overflow
            largest, cond = condition(np.concatenate(fetched(triangle.powers(R, inverse))))
        if not cond < _LOST:
            return None
        found = self._errors(
            triangle, R, inverse, largest / cond, shift, g[None] / biggest, r[None]
        )
        return None if found is None else found[0] / size

    def _best(self) -> _Point:
        return min(self.points, key=lambda p: float(p.error.max()))

    def _done(self, point: _Point) -> bool:
        return bool((point.error <= self.accepted).all())

    def _result(self, triangle: Triangle, best: _Point, error: np.ndarray) -> LstsqResult:
        passes = self.passes
        x = best.x.astype(passes.dtype)
        return LstsqResult(
            x=x,
            residual=self.r,
            residual_norm=scaling.sums_norms(self.r) if passes.ridge else best.host[2],
            iterations=len(self.points) - 1,
            passes=passes.count,
            method=self.method,
            rank=passes.d,
            condition=self.condition,
            backward_error=error,
            converged=True,
            history=np.array(self.rows, HISTORY),
            R=self.R,
        )
