"""Sinkhorn iterations, over-relaxed by a factor that follows from how fast they converge.

With the factor omega at 1 the error falls by some mu^2 per iteration in the end. Over-relaxation
is that of Young for consistently ordered matrices: the rate r at omega obeys
``(r + omega - 1)^2 = r omega^2 mu^2``, and the best factor is ``2 / (1 + sqrt(1 - mu^2))``.
Far from the solution there is no such rate, and a large factor diverges: so it starts when the
rate has settled, grows in steps, and a run that makes things worse is taken back.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

from quadric import backends
from quadric.arrays import Data
from quadric.transport.cost import Cost
from quadric.transport.history import Recorder

_RUN = 10  # plain iterations between two looks at the rate, 20 relaxed ones
_LARGEST = 1.998
_SETTLED = 0.3  # relative difference of two successive rates
_WORTHWHILE = 25  # iterations that are still to come, or relaxation does not pay
_WINDOW = 2.0  # times 1 / (2 - omega), the iterations in which the error falls by e: a verdict
_WORSE = 10.0  # times the least error so far: the factor was too large
_FLOOR = 60  # plain runs without a smaller error at the level of rounding: that is what is left


class Factor:
    """The over-relaxation factor of one problem.

    Parameters
    ----------
    mass : float
        Of the problem; errors are shares of it.
    tol : float
        Marginal error to reach.
    fixed : float or None
        A factor to keep to, as long as it does not diverge.
    """

    def __init__(self, mass: float, tol: float, fixed: float | None) -> None:
        self.omega = 1.0 if fixed is None else fixed
        self.least = math.inf
        self._idle = 0
        self._seen = np.empty(0)  # errors at this factor
        self._fixed = fixed is not None
        self._mass, self._tol = mass, tol
        self._wait = 0

    def failed(self, errors: np.ndarray) -> bool:
        """Return whether a run is to be taken back, and look back at it if not."""
        last = float(errors[-1])
        if not math.isfinite(last) or last > _WORSE * min(self.least, 2 * self._mass):
            self._set(1 + 0.6 * (self.omega - 1) if self.omega > 1.05 else 1.0)
            self._wait = 4 * _RUN
            if self.omega == 1.0:
                self.least = math.inf  # plain iterations never fail: this is a new start
            return True
        lowest = float(errors.min())
        self._idle = 0 if lowest < (1 - 1e-6) * self.least else self._idle + 1
        self.least = min(self.least, lowest)
        if not self._fixed and last > self._tol:
            self._seen = np.append(self._seen, errors)
            self._adapt()
        return False

    @property
    def stalled(self) -> bool:
        """Whether plain iterations get no further."""
        return self.omega <= 1 and self._idle >= _FLOOR

    def _set(self, omega: float) -> None:
        self.omega = min(omega, _LARGEST) if omega > 1.01 else 1.0
        self._seen, self._idle = np.empty(0), 0

    def _adapt(self) -> None:
        if self.omega == 1.0:
            self._begin()
        elif len(self._seen) >= max(20.0, _WINDOW / (2 - self.omega)):
            self._judge()

    def _begin(self) -> None:
        """Start to relax when the rate has settled."""
        errors = self._seen[-_RUN:]
        if len(errors) < _RUN or len(self._seen) < self._wait:
            return
        half = _RUN // 2
        early, late = (
            math.log(max(e[-1], 1e-300) / max(e[0], 1e-300)) / (len(e) - 1)
            for e in (errors[: half + 1], errors[half:])
        )
        if late >= 0:
            return
        ahead = math.log(self._tol / errors[-1]) / late if self._tol > 0 else math.inf
        settled = abs(late - early) <= _SETTLED * -late and errors[-1] < 0.3 * self._mass
        if settled and ahead > _WORTHWHILE:
            self._set(_best(math.exp(late)))

    def _judge(self) -> None:
        """Compare the rate with omega - 1, which it is from the best factor on."""
        third = len(self._seen) // 3
        first, last = self._seen[:third].max(), self._seen[-third:].max()
        rate, omega = (last / first) ** (1 / (2 * third)), self.omega
        if rate <= omega - 1 + 0.1 * (2 - omega):
            self._set(2 - 1.25 * (2 - omega))  # perhaps beyond the best
        elif rate < 1:
            mu2 = (rate + omega - 1) ** 2 / (rate * omega**2)
            self._set((omega + _best(min(mu2, 1.0))) / 2)  # half of the way: rates fluctuate
        else:
            self._set(2 - 1.6 * (2 - omega))


def _best(mu2: float) -> float:
    return 2 / (1 + math.sqrt(1 - mu2))


@dataclass(slots=True)
class State:
    """Potentials of B problems, (B, n) and (B, m), the errors that they have, iterations made."""

    f: np.ndarray
    g: np.ndarray
    error: np.ndarray
    iterations: np.ndarray


@dataclass(frozen=True, slots=True)
class Sinkhorn:
    """The Sinkhorn kernel with what stays the same during a solution.

    Attributes
    ----------
    cost : Cost
    a, b : array of float64, shape (B, n) and (B, m)
    theta_a, theta_b : float
        ``rho / (rho + reg)``, 1 where the marginal is enforced.
    recorder : Recorder
    backend : str or None
    n_threads : int
    there : pair of DeviceArray or None
        The masses where the cost is, if that is on a GPU.
    """

    cost: Cost
    a: np.ndarray
    b: np.ndarray
    theta_a: float
    theta_b: float
    recorder: Recorder
    backend: str | None
    n_threads: int
    there: tuple[Data, Data] | None = None

    @property
    def masses(self) -> tuple[Data, Data]:
        """The masses for a kernel that works on the cost."""
        return self.there or (self.a, self.b)

    def start(self) -> State:
        """Return the state of potentials that are zero."""
        (B, n), m = self.a.shape, self.b.shape[1]
        error = np.full(B, math.inf)
        return State(np.zeros((B, n)), np.zeros((B, m)), error, np.zeros(B, np.int64))

    def item(self, k: int) -> "Sinkhorn":
        """Return the k-th problem alone."""
        s = slice(k, k + 1)
        there = self.there and (self.there[0][s], self.there[1][s])
        return replace(self, cost=self.cost.item(k), a=self.a[s], b=self.b[s], there=there)

    def iterate(self, state: State, reg: float, tol: float, count: int) -> None:
        """Make up to `count` plain iterations in place, and note them."""
        errors = self._run(state, reg, np.ones(len(state.f)), tol, count)
        made = np.count_nonzero(~np.isnan(errors), axis=1)
        last = errors[np.arange(len(errors)), made - 1]
        state.error = np.where(made > 0, last, math.inf)
        self.note(state, reg, int(made.max()))

    def exact(self, state: State, reg: float) -> None:
        """Make one plain iteration without its second half: rows are exact, the error is known."""
        self.iterate(state, reg, math.inf, 1)

    def converge(
        self,
        state: State,
        reg: float,
        tol: float,
        omega: float | None,
        max_iter: int | None = None,
    ) -> None:
        """Iterate all problems to `tol`, or until it goes no further, in place.

        What has not converged ends at the least error that was seen.
        """
        stop = 0 if max_iter is None else max(self.recorder.left - max_iter, 0)
        masses = np.maximum(self.a.sum(axis=1), self.b.sum(axis=1))
        factors = [Factor(float(mass), tol, omega) for mass in masses]
        active = np.ones(len(factors), bool)
        best = copy(state)
        while active.any() and self.recorder.left > stop:
            factor = np.array([f.omega for f in factors])
            count = _RUN if (factor[active] == 1).all() else 2 * _RUN
            before = copy(state)
            count = min(count, self.recorder.left - stop)
            errors = self._run(state, reg, np.where(active, factor, 0.0), tol, count)
            for k in np.flatnonzero(active).tolist():
                made = errors[k, ~np.isnan(errors[k])]
                if factors[k].failed(made):
                    put(state, k, before)
                    active[k] = factor[k] != 1.0  # plain iterations fail only if nothing helps
                    continue
                state.error[k] = made[-1]
                stalled = factors[k].stalled and made[-1] < self._rounding(state, k, reg)
                active[k] = not made[-1] <= tol and not stalled
                if state.error[k] < best.error[k]:
                    put(best, k, state)
            self.note(state, reg, int((~np.isnan(errors)).sum(axis=1).max()))
            self.translate(state, reg)
        if not (state.error <= tol).all() and self.recorder.left >= 0:
            for k in np.flatnonzero(~(state.error <= best.error)).tolist():
                put(state, k, best)
            # Potentials that were moved too far for the sake of the next step come back.
            if self.recorder.left > 0:
                self.iterate(state, reg, tol, min(_RUN, self.recorder.left))
            if not (state.error <= tol).all():
                self.exact(state, reg)

    def _rounding(self, state: State, k: int, reg: float) -> float:
        """Return an error that the rounding of exponents may leave."""
        exponent = (np.abs(state.f[k]).max() + np.abs(state.g[k]).max()) / reg + 1
        return 16 * float(np.finfo(self.cost.dtype).eps * exponent * self.a[k].sum())

    def translate(self, state: State, reg: float) -> None:
        """Give f + c, g - c the best c, which unbalanced iterations find slowly where rho is large.

        The plan does not change. See Sejourne, Vialard, Peyre, "Faster unbalanced optimal
        transport: translation invariant Sinkhorn and 1-D Frank-Wolfe", 2022, arXiv:2201.00730.
        """
        if self.theta_a == self.theta_b == 1:
            return
        pull_a, pull_b = ((1 - t) / (t * reg) for t in (self.theta_a, self.theta_b))  # 1 / rho
        masses_a = logsumexp(-state.f * pull_a, axis=1, b=self.a)
        masses_b = logsumexp(-state.g * pull_b, axis=1, b=self.b)
        c = ((masses_a - masses_b) / (pull_a + pull_b))[:, None]
        state.f += c
        state.g -= c

    def objective(self, state: State) -> float:
        """Return the sum of the linear part of the dual objectives."""
        return float(np.vdot(state.f, self.a) + np.vdot(state.g, self.b))

    def _run(
        self, state: State, reg: float, omega: np.ndarray, tol: float, count: int
    ) -> np.ndarray:
        """Return the errors, (B, count), NaN where no iteration was made.

        Problems whose omega is 0 are left alone.
        """
        errors = np.full((len(omega), count), math.nan)
        kernel = backends.resolve("transport.sinkhorn", self.backend, on=self.cost.array)
        fixed = (*self.cost.args, *self.masses, reg, self.theta_a, self.theta_b)
        kernel(*fixed, omega, tol, count, state.f, state.g, errors, self.n_threads)
        state.iterations += np.count_nonzero(~np.isnan(errors), axis=1)
        return errors

    def note(self, state: State, reg: float, made: int) -> None:
        """Record a run of at most `made` iterations."""
        worst, entries = float(state.error.max()), math.prod(self.cost.shape)
        self.recorder.add("sinkhorn", reg, made, worst, self.objective(state), entries)


def copy(state: State) -> State:
    """Return a copy; the iterations go on being counted together."""
    return State(state.f.copy(), state.g.copy(), state.error.copy(), state.iterations)


def put(to: State, k: int, state: State) -> None:
    """Copy the k-th problem's potentials and error."""
    to.f[k], to.g[k], to.error[k] = state.f[k], state.g[k], state.error[k]
