"""From costs and masses to potentials: which solver runs, and when another takes over."""

import math
from dataclasses import dataclass

import numpy as np

from quadric import threads
from quadric.transport.cost import Cost
from quadric.transport.history import HISTORY, Progress, Recorder
from quadric.transport.newton import Newton
from quadric.transport.relaxation import Sinkhorn, State

__all__ = ["HISTORY", "Outcome", "optimize"]

_START = 1 / 8  # reg to begin with, relative to the spread of the cost
_FACTOR = 4.0  # between two values of reg on the way down
_COARSE = 3e-2  # share of the mass that the error may have on the way
_STEPS = 10  # iterations on the way, where there are not few enough entries for Newton
_MANY = 10_000  # iterations by default
_TRIAL = 60  # Sinkhorn iterations before "auto" asks whether Newton would be faster
_SPARSE = 0.3  # share of the entries that may count for Newton to work on a list of them
_MEMORY = 2**25  # entries of such a list, of 20 to 40 bytes each
_CLOSE = 0.5  # share of the mass: a warm start with a larger error starts from the beginning


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What :func:`optimize` found.

    Attributes
    ----------
    f, g : array of float64, shape (B, n) and (B, m)
        Potentials.
    error : array of float64, shape (B,)
        Marginal error.
    iterations : array of int64, shape (B,)
        Passes of Sinkhorn's iteration and Newton steps, added.
    converged : array of bool, shape (B,)
        Whether the error is at most the tolerance.
    history : array of HISTORY, shape (steps,)
        What was done.
    method : str
        By whom, in this order: "sinkhorn", "newton", "sinkhorn+newton" and so on.
    """

    f: np.ndarray
    g: np.ndarray
    error: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    history: np.ndarray
    method: str


def optimize(
    cost: Cost,
    a: np.ndarray,
    b: np.ndarray,
    reg: float,
    *,
    theta_a: float = 1.0,
    theta_b: float = 1.0,
    method: str = "auto",
    tol: float = 1e-9,
    max_iter: int | None = None,
    omega: float | None = None,
    warm_start: tuple[np.ndarray, np.ndarray] | None = None,
    progress: Progress = None,
    backend: str | None = None,
    n_threads: int = 1,
) -> Outcome:
    """Solve B problems whose masses are all positive.

    Parameters
    ----------
    cost : Cost
        (B, n, m).
    a, b : array of float64, shape (B, n) and (B, m)
        Masses.
    reg : float
        In the units of the cost.
    theta_a, theta_b : float, default 1
        ``rho / (rho + reg)`` of a marginal that is only penalized.
    method : {"auto", "sinkhorn", "newton", "published"}
        "auto" is Newton's method wherever the plan is sparse enough, and Sinkhorn elsewhere.
    tol : float
        Marginal error.
    max_iter : int, optional
        10 000 by default.
    omega : float, optional
        A fixed factor of over-relaxation for Sinkhorn.
    warm_start : pair of array of float64, shape (B, n) and (B, m), optional
        Potentials, finite.
    progress : callable, optional
        Is told (iterations, error, tol) after each step.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, default 1

    Returns
    -------
    Outcome
        Also where it has not converged.
    """
    if max_iter is None:
        max_iter = _MANY
    if method == "published":
        from quadric.transport.published import published

        return published(cost, a, b, reg, tol, max_iter, backend, n_threads, warm_start=warm_start)
    recorder = Recorder(tol, progress)
    sinkhorn = Sinkhorn(cost, a, b, theta_a, theta_b, backend, n_threads)
    balanced = theta_a == theta_b == 1
    with threads.blas_limit(1):
        if balanced and method != "sinkhorn" and len(a) == 1:
            state = _newton(sinkhorn, reg, method, tol, max_iter, omega, warm_start, recorder)
        else:
            trial = balanced and method != "sinkhorn"
            count = min(_TRIAL, max_iter) if trial else max_iter
            state = _sinkhorn(sinkhorn, reg, tol, count, omega, warm_start, recorder)
            if trial:
                state = _rest(sinkhorn, state, reg, method, tol, max_iter, omega, recorder)
    history = recorder.history()
    names = "+".join(dict.fromkeys(history["method"].tolist()))
    converged = state.error <= tol
    return Outcome(
        state.f, state.g, state.error, state.iterations, converged, history, names or "sinkhorn"
    )


def _levels(sinkhorn: Sinkhorn, reg: float) -> list[float]:
    """Return the values of reg on the way down, the last one excepted."""
    first = sinkhorn.cost.spread() * _START
    count = math.ceil(math.log(first / reg, _FACTOR) - 1e-9) if first > reg else 0
    return [reg * _FACTOR**k for k in range(count, 0, -1)]


def _warm(sinkhorn: Sinkhorn, reg: float, warm_start: tuple[np.ndarray, np.ndarray]) -> State:
    state = sinkhorn.start()
    state.f[:], state.g[:] = warm_start
    sinkhorn.exact(state, reg)
    return state


def _begin(
    sinkhorn: Sinkhorn, reg: float, warm_start: tuple[np.ndarray, np.ndarray] | None
) -> tuple[State, list[float]]:
    """Return where to start from, and the values of reg to go through before the last one."""
    if warm_start is not None:
        state = _warm(sinkhorn, reg, warm_start)
        if (state.error <= _CLOSE * sinkhorn.a.sum(axis=1)).all():
            return state, []
    return sinkhorn.start(), _levels(sinkhorn, reg)


def _sinkhorn(
    sinkhorn: Sinkhorn,
    reg: float,
    tol: float,
    max_iter: int,
    omega: float | None,
    warm_start: tuple[np.ndarray, np.ndarray] | None,
    recorder: Recorder,
) -> State:
    """Over-relaxed Sinkhorn, annealed."""
    state, levels = _begin(sinkhorn, reg, warm_start)
    coarse = max(tol, _COARSE * float(sinkhorn.a.sum(axis=1).min()))
    unused = np.ones(len(state.f))
    for level in levels:
        count = min(_STEPS, max_iter - recorder.iterations)
        if count < 1:
            break
        errors = sinkhorn.iterate(state, level, unused, coarse, count)
        recorder.add(
            "sinkhorn",
            level,
            count,
            float(np.nanmax(errors)),
            sinkhorn.objective(state),
            errors.size,
        )
    left = max(max_iter - recorder.iterations, 1)
    sinkhorn.converge(state, reg, tol, left, omega, recorder)
    return state


def _newton(
    sinkhorn: Sinkhorn,
    reg: float,
    method: str,
    tol: float,
    max_iter: int,
    omega: float | None,
    warm_start: tuple[np.ndarray, np.ndarray] | None,
    recorder: Recorder,
) -> State:
    """Annealed Newton; Sinkhorn at values of reg where too many entries of the plan count."""
    state, levels = _begin(sinkhorn, reg, warm_start)
    newton = Newton(sinkhorn, max_iter, recorder)
    entries = sinkhorn.cost.shape[1] * sinkhorn.cost.shape[2]
    few = min(int(_SPARSE * entries), _MEMORY)
    coarse = max(tol, _COARSE * float(sinkhorn.a.sum()))
    for level, after in zip(levels, [*levels[1:], reg], strict=False):
        if recorder.iterations + _STEPS >= max_iter:
            break
        if newton.solve(state, level, coarse, few, last=False) == "dense":
            errors = sinkhorn.iterate(state, level, np.ones(1), coarse, _STEPS)
            made = errors[~np.isnan(errors)]
            recorder.add(
                "sinkhorn", level, made.size, float(made[-1]), sinkhorn.objective(state), entries
            )
        newton.extrapolate(state, level, after)
    outcome = newton.solve(state, reg, tol, few, last=True)
    if outcome == "dense":
        all_of_them = entries if entries <= _MEMORY else few
        if method == "auto":
            left = max(min(_TRIAL, max_iter - recorder.iterations), 1)
            sinkhorn.converge(state, reg, tol, left, omega, recorder)
        if not state.error[0] <= tol and all_of_them > few:
            outcome = newton.solve(state, reg, tol, all_of_them, last=True)
    if not state.error[0] <= tol and recorder.iterations < max_iter:
        sinkhorn.converge(state, reg, tol, max_iter - recorder.iterations, omega, recorder)
    return state


def _rest(
    sinkhorn: Sinkhorn,
    state: State,
    reg: float,
    method: str,
    tol: float,
    max_iter: int,
    omega: float | None,
    recorder: Recorder,
) -> State:
    """Solve those problems of a batch by Newton that Sinkhorn has not solved."""
    for k in np.flatnonzero(~(state.error <= tol)):
        s = slice(k, k + 1)
        single = Sinkhorn(
            sinkhorn.cost.item(k), sinkhorn.a[s], sinkhorn.b[s], 1.0, 1.0, sinkhorn.backend,
            sinkhorn.n_threads,
        )  # fmt: skip
        start = state.f[s], state.g[s]
        found = _newton(single, reg, method, tol, max_iter, omega, start, recorder)
        state.f[k], state.g[k], state.error[k] = found.f[0], found.g[0], found.error[0]
        state.iterations[k] += found.iterations[0]
    return state
