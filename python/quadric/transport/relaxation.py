"""Sinkhorn iterations, over-relaxed by a factor that follows from how fast they converge.

With the factor omega at 1 the error falls by some mu^2 per iteration in the end. Over-relaxation
is that of Young for consistently ordered matrices: the rate r at omega obeys
``(r + omega - 1)^2 = r omega^2 mu^2``, and the best factor is ``2 / (1 + sqrt(1 - mu^2))``.
Far from the solution there is no such rate, and a large factor diverges: so it starts when the
rate has settled, grows in steps, and a run that makes things worse is taken back.
"""

import math
from dataclasses import dataclass

import numpy as np

from quadric import backends
from quadric.transport.cost import Cost
from quadric.transport.history import Recorder

_RUN = 10  # iterations between two looks at the rate; twice as many once omega is above 1
_LARGEST = 1.998
_SETTLED = 0.3  # relative difference of two successive rates
_WORTHWHILE = 25  # iterations that are still to come, or relaxation does not pay
_WORSE = 10.0  # times the least error so far: the factor was too large
_PATIENCE = 40  # runs without a smaller error: rounding is what is left


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
        self.stalled = 0
        self._fixed = fixed is not None
        self._mass, self._tol = mass, tol
        self._wait = 0

    def failed(self, errors: np.ndarray) -> bool:
        """Return whether a run is to be taken back, and look back at it if not."""
        last = float(errors[-1])
        if not math.isfinite(last) or last > _WORSE * min(self.least, 2 * self._mass):
            self.omega = 1 + 0.6 * (self.omega - 1) if self.omega > 1.05 else 1.0
            self._wait = 2
            if self.omega == 1.0:
                self.least = math.inf  # plain iterations never fail: this is a new start
            return True
        lowest = float(errors.min())
        self.stalled = 0 if lowest < 0.999 * self.least else self.stalled + 1
        self.least = min(self.least, lowest)
        self._adapt(errors)
        return False

    def _adapt(self, errors: np.ndarray) -> None:
        if self._fixed or len(errors) < 6 or errors[-1] <= self._tol:
            return
        if self._wait > 0:
            self._wait -= 1
            return
        half = len(errors) // 2
        early, late = (
            math.log(max(e[-1], 1e-300) / max(e[0], 1e-300)) / (len(e) - 1)
            for e in (errors[: half + 1], errors[half:])
        )
        if late >= 0:
            return
        rate, omega = math.exp(late), self.omega
        if omega == 1.0:
            ahead = math.log(self._tol / errors[-1]) / late if self._tol > 0 else math.inf
            settled = abs(late - early) <= _SETTLED * -late and errors[-1] < 0.3 * self._mass
            if settled and ahead > _WORTHWHILE:
                self.omega = min(_best(rate), _LARGEST)
        elif rate > omega - 1:
            # Not yet the best factor. Half of the way: the rate fluctuates.
            mu2 = (rate + omega - 1) ** 2 / (rate * omega**2)
            if mu2 < 1:
                self.omega = min(max(omega, (omega + _best(mu2)) / 2), _LARGEST)


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
    backend : str or None
    n_threads : int
    """

    cost: Cost
    a: np.ndarray
    b: np.ndarray
    theta_a: float
    theta_b: float
    backend: str | None
    n_threads: int

    def start(self) -> State:
        """Return the state of potentials that are zero."""
        (B, n), m = self.a.shape, self.b.shape[1]
        error = np.full(B, math.inf)
        return State(np.zeros((B, n)), np.zeros((B, m)), error, np.zeros(B, np.int64))

    def iterate(
        self, state: State, reg: float, omega: np.ndarray, tol: float, count: int
    ) -> np.ndarray:
        """Make up to `count` iterations in place and return the errors, (B, count).

        Problems whose omega is 0 are left alone.
        """
        errors = np.full((len(omega), count), math.nan)
        kernel = backends.resolve("transport.sinkhorn", self.backend)
        fixed = (*self.cost.args, self.a, self.b, reg, self.theta_a, self.theta_b)
        kernel(*fixed, omega, tol, count, state.f, state.g, errors, self.n_threads)
        state.iterations += np.count_nonzero(~np.isnan(errors), axis=1)
        return errors

    def exact(self, state: State, reg: float) -> None:
        """Make one plain iteration without its second half: rows are exact, the error is known."""
        errors = self.iterate(state, reg, np.ones(len(state.f)), math.inf, 1)
        state.error = errors[:, 0]

    def objective(self, state: State) -> float:
        """Return the sum of the linear part of the dual objectives."""
        return float((state.f * self.a).sum() + (state.g * self.b).sum())

    def converge(
        self,
        state: State,
        reg: float,
        tol: float,
        max_iter: int,
        omega: float | None,
        recorder: Recorder,
    ) -> None:
        """Iterate all problems to `tol`, or until it goes no further, in place."""
        B, n = self.a.shape
        masses = np.maximum(self.a.sum(axis=1), self.b.sum(axis=1))
        factors = [Factor(float(mass), tol, omega) for mass in masses]
        active = np.ones(B, bool)
        made = 0
        while active.any() and made < max_iter:
            factor = np.array([f.omega for f in factors])
            count = min(_RUN if (factor[active] == 1).all() else 2 * _RUN, max_iter - made)
            before_f, before_g = state.f.copy(), state.g.copy()
            errors = self.iterate(state, reg, np.where(active, factor, 0.0), tol, count)
            for k in np.flatnonzero(active):
                made_here = errors[k, ~np.isnan(errors[k])]
                if factors[k].failed(made_here):
                    state.f[k], state.g[k] = before_f[k], before_g[k]
                    active[k] = len(made_here) > 0 and factor[k] != 1.0
                else:
                    state.error[k] = made_here[-1]
                    active[k] = not made_here[-1] <= tol and factors[k].stalled < _PATIENCE
            made += count
            worst = float(state.error.max())
            entries = B * n * self.b.shape[1]
            recorder.add("sinkhorn", reg, count, worst, self.objective(state), entries)
