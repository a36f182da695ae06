"""Newton's method for the dual, on the entries of the plan that count.

The unknown is g; f is always the best one for it, which makes the rows exact and nothing overflow.
With c = P^T 1 the gradient is b - c, and a step d, in units of reg, solves

    (diag(c) (1 + shift) - S^T diag(1/a) S) d = b - c,

S being the plan without its smallest entries, which together have a share of the error as their
mass. What makes this work where the published method (arXiv:2401.12253) stalls: entries go by mass
and not by number; a Levenberg shift, proportional to the error, is kept by the usual trust ratio;
a Sinkhorn step follows every Newton step; CG stops early; and reg comes down in steps, each started
from where the last two point to. All of it happens on a list of the entries that could ever count,
made anew when the potentials have moved too far.
"""

import math
from dataclasses import dataclass

import numpy as np

from quadric import arrays, backends
from quadric.arrays import Data
from quadric.transport.relaxation import Sinkhorn, State, copy, put

_SLACK = 20.0  # bits by which an entry may grow before the list is made anew; more after that
_WIDEST = 200.0  # of it
_CARE = 3  # times that steps may be made smaller, by 4
_WORSE = 3.0  # times the least error before: steps on the list have led astray
_DROP = 0.05  # mass left out of the Hessian, relative to the error
_CG = 0.1  # residual of CG, or the error where that is smaller
_CG_STEPS = 3000
_SHIFT = 0.1  # to begin with, relative to the error
_LISTS = 60  # lists that one value of reg may need
_STEPS = 300  # Newton steps that one value of reg may need
_INSIDE = 0.9  # of the tolerance: the rest is for the entries that are not on the list


@dataclass(slots=True)
class _Point:
    """Potentials whose rows are exact, their plan on the list, and how far its columns are off.

    The values of the plan are where the list is, on a GPU perhaps.
    """

    f: np.ndarray
    g: np.ndarray
    values: Data
    columns: np.ndarray
    error: float


@dataclass(frozen=True, slots=True)
class _List:
    """The entries of the plan that count, row by row, and the problem on them.

    `there` has the masses a and b where the entries are.
    """

    starts: Data
    indices: Data
    costs: Data
    a: np.ndarray
    b: np.ndarray
    there: tuple[Data, Data]
    reg: float
    backend: str | None
    n_threads: int

    def evaluate(self, f: np.ndarray, g: np.ndarray) -> _Point:
        """Return the point with these g; f tells where about the rows are."""
        values = arrays.empty(self.costs, len(self.costs), np.float64)
        point = _Point(f.copy(), g, values, np.empty(len(self.b)), 0.0)
        error = np.empty(1)
        kernel = backends.resolve("transport.sparse_sinkhorn", self.backend, on=self.costs)
        kernel(
            self.starts, self.indices, self.costs, *self.there, self.reg, 1.0, math.inf, 1,
            point.f, g, error, point.values, point.columns, self.n_threads,
        )  # fmt: skip
        point.error = float(error[0])
        return point

    def balance(self, point: _Point, most: float) -> _Point:
        """Return the point after a Sinkhorn step that moves no g by more than `most`."""
        with np.errstate(divide="ignore"):  # a column of nothing goes as far as it may
            step = self.reg * (np.log(self.b) - np.log(point.columns))
        return self.evaluate(point.f, point.g + np.clip(step, -most, most))

    def objective(self, point: _Point) -> float:
        return float(self.a @ point.f + self.b @ point.g)

    def direction(
        self, point: _Point, shift: float, most: float
    ) -> tuple[np.ndarray, float, int, int]:
        """Return the step in g, the gain it promises, the entries kept and iterations of CG.

        Where pieces of the plan exchange hardly any mass, there is hardly any curvature and steps
        are enormous: no g moves by more than `most`.
        """
        step = np.empty_like(self.b)
        gradient = self.b - point.columns
        kernel = backends.resolve("transport.newton_direction", self.backend, on=self.costs)
        cg, kept, _, _, gain = kernel(
            self.starts, self.indices, point.values, self.there[0], point.columns, gradient,
            shift * point.error, _DROP * point.error, min(_CG, point.error), _CG_STEPS, step,
            self.n_threads,
        )  # fmt: skip
        step -= step @ self.b / self.b.sum()  # the null direction
        most /= self.reg
        if np.abs(step).max() > most:
            step = np.clip(step, -most, most)
            gain = float(gradient @ step) / 2
        step *= self.reg
        return step, self.reg * gain, kept, cg


class Newton:
    """Newton's method for one problem, at one value of reg after another.

    Parameters
    ----------
    sinkhorn : Sinkhorn
        The problem, and passes over all of its entries.
    """

    def __init__(self, sinkhorn: Sinkhorn) -> None:
        self._sinkhorn, self._recorder = sinkhorn, sinkhorn.recorder
        self._shift = _SHIFT
        self._last: tuple[float, np.ndarray] | None = None

    def extrapolate(self, state: State, reg: float, next_reg: float) -> None:
        """Move g to where it points as reg goes on to `next_reg`."""
        g = state.g.copy()
        if self._last is not None:
            before, g_before = self._last
            state.g += (g - g_before) * (next_reg - reg) / (reg - before)
        self._last = reg, g

    def solve(self, state: State, reg: float, tol: float, limit: int, *, last: bool) -> str:
        """Bring one problem to `tol`, in place.

        Parameters
        ----------
        state : State
        reg, tol : float
        limit : int
            Entries that the list may have.
        last : bool
            Whether the error must hold for all entries; otherwise for those on the list.

        Returns
        -------
        {"done", "dense", "stalled"}
            "dense" if more entries count than `limit`; "stalled" also if no iterations are left.
        """
        least, slack = math.inf, _SLACK
        state.error[0] = math.inf  # it was that of another reg
        best = before = copy(state)
        care = 0
        for _ in range(_LISTS):
            if self._recorder.left < 1:
                break
            self._sinkhorn.iterate(state, reg, tol, 1)
            if state.error[0] <= tol:
                return "done"
            if not state.error[0] < math.inf:
                break
            if state.error[0] < best.error[0]:
                best = copy(state)
            if state.error[0] > _WORSE * before.error[0]:
                # What was not on the list has come to count: back, and smaller steps from here on.
                put(state, 0, before)
                care += 1
            else:
                before = copy(state)
            entries = self._list(state, reg, tol, slack, limit)
            if entries is None:
                return "dense"
            reach = slack * math.log(2) * reg / 4**care
            point, moved = self._steps(entries, state, tol * _INSIDE, reach)
            state.f[0], state.g[0], state.error[0] = point.f, point.g, point.error
            if moved:
                slack = min(1.5 * slack, _WIDEST)
                continue
            if not last:
                return "done"
            self._sinkhorn.exact(state, reg)
            if state.error[0] <= tol:
                return "done"
            if not state.error[0] < 0.5 * least:
                care += 1
            if care > _CARE:
                break
            least = min(least, float(state.error[0]))
        if not state.error[0] <= best.error[0]:
            put(state, 0, best)
        return "stalled"

    def _list(self, state: State, reg: float, tol: float, slack: float, limit: int) -> _List | None:
        s = self._sinkhorn
        a, b = s.a[0], s.b[0]
        # What is not on the list has at most the mass min(n, m) 2^-bits of the larger masses.
        bits = math.log2(min(len(a), len(b)) * min(a.sum(), b.sum()) / tol) + 4 + slack
        kernel = backends.resolve("transport.candidates", s.backend, on=s.cost.array)
        there = s.masses[0][0], s.masses[1][0]
        found = kernel(
            *s.cost.single(), *there, state.f[0], state.g[0], reg, max(bits, slack), limit,
            s.n_threads,
        )  # fmt: skip
        if found is None:
            return None
        starts, indices, costs = found
        return _List(starts, indices, costs, a, b, there, reg, s.backend, s.n_threads)

    def _steps(self, entries: _List, state: State, tol: float, most: float) -> tuple[_Point, bool]:
        """Iterate on the list, no g moving by more than `most` in a step.

        Return where that ends, and whether the list is too old by then.
        """
        here = entries.evaluate(state.f[0], state.g[0])
        f, g = here.f, here.g
        for _ in range(_STEPS):
            if here.error > tol:
                here = entries.balance(here, most)
            if here.error <= tol or self._recorder.left < 1:
                break
            before = self._recorder.iterations
            there = self._step(entries, here, most)
            state.iterations += self._recorder.iterations - before
            if there is None:
                break
            here = there
            if np.abs(here.f - f).max() + np.abs(here.g - g).max() > 2 * most:
                return here, True
        return here, False

    def _step(self, entries: _List, here: _Point, most: float) -> _Point | None:
        """Return the next point, or None if no step leads upwards."""
        objective = entries.objective(here)
        while self._shift < 1e6 and self._recorder.left > 0:
            step, promised, kept, cg = entries.direction(here, self._shift, most)
            there = entries.evaluate(here.f, here.g + step)
            gain = entries.objective(there) - objective
            ratio = gain / promised if promised > 0 else -1.0
            # Where the gain is lost in rounding, the error decides.
            lost = abs(gain) < 1e-13 * abs(objective) and there.error < here.error
            if ratio > 0.75:
                self._shift = max(self._shift / 4, 1e-6)
            elif ratio < 0.25 and not lost:
                self._shift *= 4
            taken = ratio > 1e-4 or lost
            shown = there if taken else here
            self._recorder.add(
                "newton", entries.reg, 1, shown.error, entries.objective(shown), kept, cg
            )
            if taken:
                return there
            self._shift *= 4
        self._shift = min(self._shift, 1.0)
        return None
