"""Transport with at most k entries in each column of the plan: the dual, and plans that fit.

The dual is concave and differentiable except where the k-th and the next entry of a column tie:
there two choices of k entries are equally good, and a maximum that lies there is that of a relaxed
problem, of no plan with k entries. So there are three stages: L-BFGS-B on the dual; a semismooth
Newton method, which ends what L-BFGS-B cannot because differences of values round; and, if the
masses still do not fit, the best plan on k chosen places of each column, where nothing can tie.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csc_array

from quadric import arrays, backends, device
from quadric.arrays import Data
from quadric.device import DeviceArray
from quadric.transport.laplacian import balance, parts

_ROUND = 100  # iterations of L-BFGS-B between attempts of Newton's method
_MEMORY = 20  # past steps that it keeps
_STALLED = 1e-7  # gain of a round, relative to the regularization term
_NEWTON = 30  # most steps in one go
_REPAIRS = 20  # sets of places that are tried
_BLOCK = 2**22  # entries of the cost that are looked at together
_ALL = 1e300  # a potential for which every allowed entry is positive


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What potentials stand for.

    Attributes
    ----------
    f, g : array of float64, shape (n,) and (m,)
        Potentials.
    indices, values : array of int32 and float64, shape (m, k)
        The columns of the plan: rows of their entries, then n with value 0.
    gap_f, gap_g : array of float64, shape (n,) and (m,)
        What is missing from the masses; the gradient of the dual.
    dual_value : float
        Never above the least value of a plan.
    error : float
        L1 norm of both gaps.
    """

    f: np.ndarray
    g: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    gap_f: np.ndarray
    gap_g: np.ndarray
    dual_value: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The end of a run: the best plan, the best dual value, iterations, and why it ended."""

    state: State
    dual_value: float
    iterations: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Capped:
    """One problem whose masses are all positive.

    ``min <M, P> + reg / 2 |P|^2`` with ``P^T 1 = b``, at most k entries in each column, and
    ``P 1 = a``, or ``P 1 <= a`` if `partial`; then ``f <= 0``, and where f is 0 a row may keep
    some of its mass. M may be on a GPU; all else is small, and NumPy's.
    """

    M: Data
    a: np.ndarray
    b: np.ndarray
    k: int
    reg: float
    method: str
    partial: bool
    backend: str | None
    n_threads: int

    def at(self, f: np.ndarray, g: np.ndarray | None = None) -> State:
        """Return the state of the dual, or of the semi-dual where `g` is None."""
        n, m = self.M.shape
        indices, values = np.empty((m, self.k), np.int32), np.empty((m, self.k))
        if g is None:
            g = np.empty(m)
            project = self._kernel("capped_columns")
            project(self.M, f, self.b, self.k, self.reg, indices, values, g, self.n_threads)
        else:
            clip = self._kernel("capped_dual")
            clip(self.M, f, g, self.k, self.reg, indices, values, self.n_threads)
        gap_f = self.a - np.bincount(indices.ravel(), values.ravel(), n + 1)[:n]
        if self.partial:
            gap_f[(f >= 0) & (gap_f > 0)] = 0
        gap_g = self.b - values.sum(axis=1)
        dual = f @ self.a + g @ self.b - self.reg / 2 * np.vdot(values, values)
        error = np.abs(gap_f).sum() + np.abs(gap_g).sum()
        return State(f, g, indices, values, gap_f, gap_g, float(dual), float(error))

    def _kernel(self, name: str) -> Callable[..., Any]:
        return backends.resolve(f"transport.{name}", self.backend, on=self.M)

    def tight(self, s: State) -> np.ndarray:
        """Say which rows must give all their mass."""
        return s.f < 0 if self.partial else np.ones(len(s.f), bool)

    def solve(
        self,
        f: np.ndarray,
        tol: float,
        max_iter: int,
        progress: Callable[[int, float, float], None] | None,
        repair: bool,
    ) -> Found:
        """Maximize the dual from `f`; if `repair`, find a plan that fits where its own does not."""
        best = self._maximize(f, tol, max_iter, progress)
        dual, iterations = best.dual_value, best.iterations
        n, m = self.M.shape
        repair = repair and best.state.error > tol and (self.partial or self.k * m >= n)
        if repair:
            outside = s = best.state
            places = self._largest(outside.f)
            alone = np.bincount(places.ravel(), minlength=n + 1)[:n] == 0
            part_f, part_g = np.arange(n), np.full(m, n)
            deficit = np.append(np.where(alone, s.gap_f, 0), 0)
            for _ in range(_REPAIRS):
                moved = self._connect(places, s, outside, part_f, part_g, deficit)
                if s is not outside and not moved:
                    break
                found = self._inside(places)._maximize(outside.f, tol, max_iter, progress)
                iterations += found.iterations
                s = found.state
                if s.error < best.state.error:
                    best = found
                if s.error <= tol:
                    break
                part_f, part_g = parts(s.indices, s.values, n)
                deficit = np.bincount(part_f, s.gap_f, part_g.max() + 1)
        # The dual values of fewer places are no bound for the others.
        return Found(best.state, dual, iterations, best.reason)

    def _maximize(
        self,
        f: np.ndarray,
        tol: float,
        max_iter: int,
        progress: Callable[[int, float, float], None] | None,
    ) -> Found:
        ceiling = self._ceiling()
        best = last = self.at(f)
        value, iterations, reason = best.dual_value, 0, "max_iter"
        while best.error > tol and iterations < max_iter:
            climb = _Climb(self, last, tol, ceiling, iterations, progress)
            iterations += climb.run(min(_ROUND, max_iter - iterations))
            tried, steps = self._newton(self.at(climb.last.f), tol)
            iterations += steps
            gain = max(climb.last.dual_value, tried.dual_value) - last.dual_value
            value = max(value, climb.last.dual_value, tried.dual_value)
            best = min(best, self.at(climb.best.f), tried, key=lambda s: s.error)
            last = climb.last
            if value > ceiling:
                reason = "infeasible"
                break
            if gain <= _STALLED * self.reg * np.vdot(last.values, last.values):
                reason = "stalled"
                break
        return Found(best, value, iterations, "converged" if best.error <= tol else reason)

    def _ceiling(self) -> float:
        """Return what no plan costs more than, rounding included.

        A larger dual value means that no plan exists.
        """
        if isinstance(self.M, DeviceArray):
            most = np.empty(len(self.b))
            self.M.space.run(device.transport().largest_finite, self.M, most)
        else:
            finite = np.where(np.isfinite(self.M), self.M, -np.inf)
            most = finite.max(axis=0).astype(np.float64)
        bound = self.b @ most + self.reg / 2 * (self.b @ self.b)
        return float(bound + 1e-6 * (self.b @ np.abs(most) + abs(bound)))

    def _newton(self, s: State, tol: float) -> tuple[State, int]:
        """Take Newton steps while the error falls; return the last state and how many."""
        for step in range(_NEWTON):
            if s.error <= tol:
                return s, step
            free = self.tight(s)
            df, _ = balance(s.indices, s.values, free, self.reg * s.gap_f, self.reg * s.gap_g)
            for length in (1.0, 0.5, 0.25):
                f = s.f + length * df
                new = self.at(np.minimum(f, 0) if self.partial else f)
                if new.error <= (1 - length / 2) * s.error:
                    break
            else:
                return s, step + 1
            s = new
        return s, _NEWTON

    def _largest(self, f: np.ndarray) -> np.ndarray:
        """Return the rows of the k largest entries of each column of f - M, shape (m, k)."""
        n, m = self.M.shape
        if isinstance(self.M, DeviceArray):
            indices, values = np.empty((m, self.k), np.int32), np.empty((m, self.k))
            clip = self._kernel("capped_dual")
            clip(self.M, f, np.full(m, _ALL), self.k, 1.0, indices, values, self.n_threads)
            return indices.astype(np.int64)
        places = np.empty((m, self.k), np.int64)
        step = max(_BLOCK // n, 1)
        for start in range(0, m, step):
            z = f[:, None] - self.M[:, start : start + step]
            chosen = np.argpartition(-z, min(self.k, n - 1), axis=0)[: self.k]
            chosen[np.take_along_axis(z, chosen, axis=0) == -np.inf] = n  # forbidden: it is free
            places[start : start + step] = chosen.T
        return places

    def _inside(self, places: np.ndarray) -> "Capped":
        """Return the problem in which everything but the places is forbidden."""
        if isinstance(self.M, DeviceArray):
            kept = self.M.space.empty(self.M.shape[::-1], self.M.dtype)
            taken_there = places.astype(np.int32)
            self.M.space.run(device.transport().keep_places, self.M, taken_there, kept)
            return replace(self, M=kept.T)
        M = np.full_like(self.M, np.inf)
        taken = places < len(M)
        rows, columns = places[taken], np.nonzero(taken)[0]
        M[rows, columns] = self.M[rows, columns]
        return replace(self, M=M)

    def _connect(
        self,
        places: np.ndarray,
        s: State,
        outside: State,
        part_f: np.ndarray,
        part_g: np.ndarray,
        deficit: np.ndarray,
    ) -> bool:
        """Move places to where mass is missing; return whether any was moved.

        Each part of the plan's graph whose rows have more mass than its columns take gets one place
        in a column of a part that has room: where the loss is least, instead of an entry of a row
        that has another. `places` and `deficit`, the mass that the parts miss, are changed.
        """
        n, m = self.M.shape
        noise = 1e-12 * self.a.sum()
        taken = places < n
        rows, columns = places[taken], np.nonzero(taken)[0]
        slack = np.full(places.shape, -np.inf)  # of free places
        slack[taken] = s.f[rows] + s.g[columns] - arrays.at(self.M, rows, columns)
        count = np.bincount(places.ravel(), minlength=n + 1)
        count[n] = places.size + m
        moved = False
        for part in np.argsort(-deficit, kind="stable")[: np.count_nonzero(deficit > noise)]:
            own = np.flatnonzero(part_f == part)
            rich = np.flatnonzero((part_g != part) & (deficit[part_g] <= noise))
            if not len(rich):
                continue
            spare = np.where(count[places[rich]] > 1, slack[rich], np.inf)
            between = arrays.host(arrays.cut(self.M, own, rich)).T
            gain = outside.f[own] + outside.g[rich, None] - between
            loss = np.maximum(spare.min(axis=1), 0)[:, None] - gain
            there, _ = np.nonzero(np.isin(places[rich], own))
            loss[there, np.searchsorted(own, places[rich][np.isin(places[rich], own)])] = np.inf
            best = int(np.argmin(loss))
            r, i = best // len(own), own[best % len(own)]
            if loss.flat[best] == np.inf:
                continue
            j, p = rich[r], spare[r].argmin()
            count[places[j, p]] -= 1
            count[i] += 1
            places[j, p], slack[j, p] = i, np.inf
            deficit[part_g[j]] += deficit[part]
            moved = True
        return moved


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A run, for all rows and columns.

    Attributes
    ----------
    f, g : array of float64, shape (n,) and (m,)
        Potentials of the plan, -Inf where there is no mass.
    matrix : scipy.sparse.csc_array of float64, shape (n, m)
        The plan, its positive entries only.
    tight : array of bool, shape (n,)
        Rows that must give all their mass.
    cost, value, dual_value, error : float
        ``<M, P>``, with the regularization, the lower bound, and the marginal error.
    iterations : int
    reason : str
    """

    f: np.ndarray
    g: np.ndarray
    matrix: csc_array
    tight: np.ndarray
    cost: float
    value: float
    dual_value: float
    error: float
    iterations: int
    reason: str


def run(
    problem: Capped,
    start: np.ndarray,
    *,
    tol: float,
    max_iter: int,
    repair: bool,
    progress: Callable[[int, float, float], None] | None = None,
) -> Outcome:
    """Solve a problem that may have masses of 0."""
    M, (n, m) = problem.M, problem.M.shape
    rows, columns = np.flatnonzero(problem.a > 0), np.flatnonzero(problem.b > 0)
    if len(rows) < n or len(columns) < m:
        M = arrays.cut(M, rows, columns)
    inner = replace(
        problem,
        M=arrays.contiguous(M.T).T,  # read column by column, many times
        a=np.ascontiguousarray(problem.a[rows]),
        b=np.ascontiguousarray(problem.b[columns]),
        k=min(problem.k, len(rows)),
    )
    first = start[rows]
    found = inner.solve(
        np.minimum(first, 0) if problem.partial else first, tol, max_iter, progress, repair
    )
    s = found.state
    f, g = np.full(n, -np.inf), np.full(m, -np.inf)
    f[rows], g[columns] = s.f, s.g
    tight = np.zeros(n, bool)
    tight[rows] = inner.tight(s)
    entries = s.values > 0
    counts = np.zeros(m, np.int64)
    counts[columns] = np.count_nonzero(entries, axis=1)
    i, values = rows[s.indices[entries]], s.values[entries]
    matrix = csc_array((values, i, np.concatenate([[0], np.cumsum(counts)])), shape=(n, m))
    cost = float(values @ arrays.at(problem.M, i, np.repeat(np.arange(m), counts)))
    value = cost + problem.reg / 2 * float(values @ values)
    return Outcome(
        f, g, matrix, tight, cost, value, found.dual_value, s.error, found.iterations, found.reason
    )


class _Climb:
    """One run of L-BFGS-B, in units in which an entry of the plan and the curvature are about 1."""

    def __init__(
        self,
        problem: Capped,
        start: State,
        tol: float,
        ceiling: float,
        before: int,
        progress: Callable[[int, float, float], None] | None,
    ) -> None:
        self.problem, self.start, self.tol = problem, start, tol
        self.ceiling, self.before, self.progress = ceiling, before, progress
        self.best = self.last = start
        self.iterations = 0
        n, m = problem.M.shape
        self.entry = float(problem.b.sum()) / min(problem.k * m, max(n, m))
        self.both = problem.method == "dual"

    def run(self, max_iter: int) -> int:
        """Climb from the start; return the number of iterations."""
        n, m = self.problem.M.shape
        zero = np.zeros(n + m if self.both else n)
        bounds: Any = None
        if self.problem.partial:
            upper = np.full(len(zero), np.inf)
            upper[:n] = -self.start.f / (self.problem.reg * self.entry)
            bounds = np.stack([np.full(len(zero), -np.inf), upper], axis=1)
        options: Any = {
            "maxcor": _MEMORY,
            "maxiter": max_iter,
            "maxls": 40,
            "maxfun": 100 * max_iter,
        }
        options |= {"ftol": 0.0, "gtol": 0.0}
        objective: Any = self._objective  # the stubs know no function of value and gradient
        minimize(
            objective,
            zero,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            callback=self._look,
            options=options,
        )
        return self.iterations

    def _objective(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        n, unit = self.problem.M.shape[0], self.problem.reg * self.entry
        f = self.start.f + unit * x[:n]
        if self.problem.partial:
            f = np.minimum(f, 0)
        s = self.problem.at(f, self.start.g + unit * x[n:] if self.both else None)
        if s.error < self.best.error:
            self.best = s
        if s.dual_value > self.last.dual_value:
            self.last = s
        gap = np.concatenate([s.gap_f, s.gap_g]) if self.both else s.gap_f
        gain = (s.dual_value - self.start.dual_value) / (unit * self.entry)
        return -gain, gap / -self.entry

    def _look(self, intermediate_result: Any) -> None:
        self.iterations += 1
        if self.progress is not None and self.iterations % 10 == 0:
            self.progress(self.before + self.iterations, self.best.error, self.tol)
        if self.best.error <= self.tol or self.last.dual_value > self.ceiling:
            raise StopIteration
