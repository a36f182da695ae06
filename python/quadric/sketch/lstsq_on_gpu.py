"""The Gram route of least squares where A is on a GPU: nothing leaves it but a few numbers.

The sketch is factored by shifted Cholesky QR, one Gram matrix of A makes the factor exact, and two
corrections are launched before anybody looks. What is too ill-conditioned for that is left to the
CPU's factorizations, which know about ranks.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from quadric import arrays, device
from quadric.device import DeviceArray
from quadric.sketch import scaling
from quadric.sketch.lstsq_factor import default_rcond
from quadric.sketch.lstsq_passes import Passes
from quadric.sketch.lstsq_problem import HISTORY
from quadric.sketch.lstsq_results import LstsqResult
from quadric.sketch.triangle_on_gpu import Shifted, Together, Triangle, condition

_BLIND = 2  # corrections before a look: they do unless A is at the edge of what float64 can hold
_ROUNDS = 8
_LOST = 1e13  # condition from which on rounding may decide whether A has full rank
_SHIFTS = 8  # groups of right-hand sides whose backward errors are measured with one factorization
_EVEN = 1.1  # ratio of column norms below which scaled columns are as good as those of A


class Task:
    """A problem with right-hand sides b of shape (n, k).

    Attributes
    ----------
    moderate : bool
        Whether `run` found b of moderate size, and failed for another reason if it did.
    """

    def __init__(
        self,
        passes: Passes,
        b: DeviceArray,
        tol: float | None,
        max_iter: int,
        progress: Callable[[int, float, float], None] | None,
    ) -> None:
        self.passes, self.b, self.max_iter = passes, b, max_iter
        self.u = float(np.finfo(passes.dtype).eps) / 2
        self.accepted = 4 * self.u if tol is None else tol
        self.progress = progress
        self.moderate = True
        self.points: list[_Point] = []
        self.rows: list[tuple[str, int, int, float, float, float]] = []
        self.clock = time.perf_counter()

    def run(self, operator: Any, method: str) -> LstsqResult | None:
        """Return the solution; None if it is not to be had in this way."""
        before = self.passes.count
        self.method = method
        result = self._run(operator)
        if result is None:
            self.passes.count = before
        return result

    def _run(self, operator: Any) -> LstsqResult | None:
        top, right = self._sketched(operator)  # the long kernel first: all else is launched beside
        passes, d, k = self.passes, self.passes.d, self.b.shape[1]
        self.r = passes.empty(k)
        blind = min(_BLIND, self.max_iter)
        there = Together(
            top.space,
            b_norms=(k,),
            norms=(d,),
            inverse_norms=(d,),
            powers=(4, d),
            failures=(2,),
            **_shapes(blind + 1, d, k),
        )
        run = top.space.run
        run(device.linalg().column_norms, self.b, there["b_norms"])
        triangle = Triangle(top, there["norms"], rough=operator is not None)
        y = triangle.product(triangle.Q[: len(right)].T, right)
        point = _Point(there, 0)
        triangle.product(triangle.P, y, point.x)
        if operator is not None:
            triangle.correct(passes.gram_on_gpu, passes.ridge)
        self._visit(point)
        for i in range(blind):
            self._correct(triangle, _Point(there, i + 1))
        # All that a look needs is launched before it.
        self.R = triangle.unscaled()
        triangle.powers(there["powers"])
        run(device.linalg().column_norms, triangle.P, there["inverse_norms"])
        there["failures"].assign(triangle.failures)
        found = there.fetch()
        if found is None:
            self.moderate = False  # or A is at fault: who looks at b will know
            return None
        self.b_norms, self.norms = found["b_norms"], found["norms"]
        self.moderate = not scaling.extreme(self.b_norms, self.b.dtype).any()
        largest, self.condition = condition(found["powers"])
        limit = min(_LOST, 0.1 / default_rcond(passes.dtype, d))
        if not self.moderate or (found["failures"] != -1).any() or not self.condition < limit:
            return None
        scaled = _Units(
            triangle.R,
            triangle.inverse,
            1.0,
            self.norms[:, None],
            math.sqrt(d),
            largest / self.condition,
        )
        as_it_is = self._as_it_is(triangle, found["inverse_norms"])
        if as_it_is is not None and not as_it_is.least > 1 / _LOST:
            return None
        return self._finish(triangle, scaled, as_it_is, found)

    def _finish(
        self,
        triangle: Triangle,
        scaled: "_Units",
        as_it_is: "_Units | None",
        found: dict[str, np.ndarray],
    ) -> LstsqResult | None:
        """Measure, correct further if need be, and return the best point."""
        # The last point is most likely the best one, so its error without scaled columns is
        # measured along with the errors of all.
        first = 0
        best, idle = None, 0
        while True:
            self._keep(first, found)
            last = self.points[-1]
            wanted = [(scaled, self.points[first:])]
            if as_it_is is not None:
                wanted.append((as_it_is, [last]))
            errors = self._errors(triangle, wanted)
            if errors is None:
                return None
            self._note(first, errors[0])
            plain = errors[-1][-1]  # of the last point
            before, best = best, min(self.points, key=lambda p: float(p.error.max()))
            if before is not None:
                idle = 0 if (last.error < before.error / 2).any() else idle + 1
            if self._done(best) or idle > 1 or len(self.points) > min(_ROUNDS, self.max_iter):
                break
            first = len(self.points)
            there = Together(last.x.space, **_shapes(1, *last.x.shape))
            self._correct(triangle, _Point(there, 0))
            further = there.fetch()
            if further is None:
                return None
            found = further
        if not self._done(best):
            return None
        if best is not last:
            self.passes.visit_on_gpu(best.x, self.b, self.r, best.g, best.squares)
            errors = self._errors(triangle, [(as_it_is or scaled, [best])])
            if errors is None:
                return None
            plain = errors[0][0]
        return self._result(best, plain)

    def _sketched(self, operator: Any) -> tuple[DeviceArray, DeviceArray]:
        """Return a multiple of S A, with rows for the ridge, and the same multiple of S b."""
        passes = self.passes
        d, ridge = passes.d, passes.ridge
        A, b, scale = passes.A, self.b, 1.0
        if operator is not None:
            A, scale = operator._unscaled_on_gpu(A), operator.scale
            b = operator._unscaled_on_gpu(b)
        passes.count += 1
        m = len(A)
        if operator is None or ridge or A.dtype != np.float64:
            top = A.space.empty((m + (d if ridge else 0), d), np.float64)
            top[:m].assign(A)
            if ridge:
                top[m:].fill(0)
                top[m:].diagonal().fill(math.sqrt(ridge) / scale)
        else:
            top = arrays.contiguous(A)
        return top, b.astype(np.float64, copy=False)

    def _visit(self, point: "_Point") -> None:
        """Launch a pass at a point, once its x is rounded to what the dtype of A has."""
        if self.passes.dtype != np.float64:
            point.x.assign(point.x.astype(self.passes.dtype))
        self.passes.visit_on_gpu(point.x, self.b, self.r, point.g, point.squares)
        self.points.append(point)
        self.rows.append((self.method, len(self.points) - 1, self.passes.count, 0.0, 0.0, 0.0))

    def _correct(self, triangle: Triangle, point: "_Point") -> None:
        """Launch a step to ``x + P P^T g`` and the pass there."""
        last = self.points[-1]
        y = triangle.product(triangle.P.T, last.g)
        point.x.assign(last.x)
        triangle.product(triangle.P, y, point.x, 1.0, 1.0)
        self._visit(point)

    def _keep(self, first: int, found: dict[str, np.ndarray]) -> None:
        """Keep what came to the host of the points from `first` on."""
        ridge = self.passes.ridge
        for point, x, g, squares in zip(
            self.points[first:], found["x"], found["g"], found["squares"], strict=True
        ):
            if ridge:
                squares = squares + ridge * np.square(x).sum(axis=0)
            point.host = x, g, np.sqrt(squares)

    def _note(self, first: int, errors: np.ndarray) -> None:
        """Set the errors, columns scaled, of the points from `first` on."""
        seconds = time.perf_counter() - self.clock
        for i, error in enumerate(errors, first):
            self.points[i].error = error
            name, iterations, count = self.rows[i][:3]
            worst, norm = float(error.max()), float(self.points[i].host[2].max())
            self.rows[i] = (name, iterations, count, norm, worst, seconds)
            if self.progress is not None:
                self.progress(iterations, worst, self.accepted)

    def _as_it_is(self, triangle: Triangle, inverse_norms: np.ndarray) -> "_Units | None":
        """Return the units of A without scaled columns; None where they make no difference."""
        biggest = float(self.norms.max())
        if biggest < _EVEN * self.norms.min():
            return None
        size = float(np.linalg.norm(self.norms / biggest))
        least = 1 / float(np.linalg.norm(inverse_norms * biggest))
        return _Units(self.R, triangle.P, biggest, biggest, size, least)

    def _errors(
        self, triangle: Triangle, wanted: "list[tuple[_Units, list[_Point]]]"
    ) -> list[np.ndarray] | None:
        """Return the backward errors, shape (points, k), in each of the units, after one wait.

        They are ``shift / |r| |(R^T R + shift^2)^(-1/2) z|`` with the shift of the last point.
        Columns with shifts near each other share the smallest one, which can only raise an error.
        """
        tasks, shares, result = [], [], []
        for units, points in wanted:
            x, g, r = (np.stack(parts) for parts in zip(*(p.host for p in points), strict=True))
            shift = self._shift(units, x[-1], r[-1])
            z = g / units.lengths
            errors = np.zeros(r.shape)
            result.append(errors)
            for mine in _groups(shift):
                block = z[:, :, mine].transpose(1, 0, 2).reshape(len(g[0]), -1)
                phi = float(shift[mine[0]])
                tasks.append(
                    Shifted(units.R, units.inverse, units.divisor, phi, units.least, block)
                )
                safe = np.where(r[:, mine] > 0, r[:, mine], np.inf)
                shares.append((errors, mine, shift[mine] / (safe * units.size)))
        found = triangle.shifted(tasks) if tasks else []
        if found is None:
            return None
        for (errors, mine, share), norms in zip(shares, found, strict=True):
            errors[:, mine] = share * norms.reshape(share.shape)
        return result

    def _shift(self, units: "_Units", x: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Return ``theta |r| / sqrt(1 + theta^2 |x|^2)`` with ``theta = size / |b|``."""
        whole = np.hypot(self.b_norms / units.size, np.linalg.norm(x * units.lengths, axis=0))
        return np.where(r > 0, r / np.where(whole > 0, whole, 1.0), 0.0)

    def _done(self, point: "_Point") -> bool:
        return bool((point.error <= self.accepted).all())

    def _result(self, best: "_Point", error: np.ndarray) -> LstsqResult:
        passes = self.passes
        return LstsqResult(
            x=best.x.astype(passes.dtype, copy=True),
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


class _Point:
    """A solution x, ``g = A^T r - ridge x``, both (d, k), and squared norms of residuals, (k,)."""

    def __init__(self, there: Together, i: int) -> None:
        self.x, self.g, self.squares = (there[name][i] for name in ("x", "g", "squares"))
        self.error = np.full(len(self.squares), np.inf)
        self.host = (np.empty(0), np.empty(0), np.empty(0))  # x, g and residual norms, once known


class _Units(NamedTuple):
    """In which way the columns of A are scaled when a backward error is measured."""

    R: DeviceArray
    inverse: DeviceArray
    divisor: float  # R / divisor is the factor of the scaled columns
    lengths: Any  # what the columns are divided by, (d, 1) or a number
    size: float  # Frobenius norm after that
    least: float  # singular value, about


def _shapes(points: int, d: int, k: int) -> dict[str, tuple[int, ...]]:
    return {"x": (points, d, k), "g": (points, d, k), "squares": (points, k)}


def _groups(shift: np.ndarray) -> list[np.ndarray]:
    """Return the places of shifts above 0, those together that are near each other, rising."""
    order = np.argsort(shift)
    order = order[shift[order] > 0]
    if not order.size:
        return []
    ratio = max(1.1, float(shift[order[-1]] / shift[order[0]]) ** (1 / _SHIFTS))
    groups = []
    while order.size:
        near = shift[order] <= ratio * shift[order[0]]
        groups.append(order[near])
        order = order[~near]
    return groups
