"""From costs and masses to potentials: which solver runs, and when another takes over."""

import math
from dataclasses import dataclass, replace

import numpy as np

from quadric import arrays, threads
from quadric.device import DeviceArray
from quadric.transport import small
from quadric.transport.cost import Cost
from quadric.transport.history import HISTORY, MANY, Progress, Recorder
from quadric.transport.newton import Newton
from quadric.transport.relaxation import Sinkhorn, State

__all__ = ["HISTORY", "Outcome", "optimize"]

_START = 1 / 8  # reg to begin with, relative to the spread of the cost
_FACTOR = 4.0  # between two values of reg on the way down
_COARSE = 3e-2  # share of the mass that the error may have on the way
_STEPS = 10  # iterations on the way, where there are not few enough entries for Newton
_TRIAL = 60  # Sinkhorn iterations after which "auto" asks whether Newton would be faster
_AFFORDABLE = 300  # Sinkhorn iterations that are no slower than Newton on a list of all entries
_SPARSE = 0.3  # share of the entries that may count for Newton to work on a list of them
_MEMORY = 2**23  # entries of such a list, of 50 bytes each, where there is no larger matrix
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
        10 000 by default; 100 Newton steps for "published".
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
    if method == "published":
        from quadric.transport.published import published

        return published(
            cost, a, b, reg, tol, max_iter, backend, n_threads,
            warm_start=warm_start, progress=progress,
        )  # fmt: skip
    if max_iter is None:
        max_iter = MANY
    recorder = Recorder(tol, max_iter, progress)
    there = None
    if isinstance(on := cost.array, DeviceArray):
        there = arrays.beside(a, on), arrays.beside(b, on)
    sinkhorn = Sinkhorn(cost, a, b, theta_a, theta_b, recorder, backend, n_threads, there)
    sparse = theta_a == theta_b == 1 and method != "sinkhorn"
    with threads.blas_limit(1):
        if method in ("auto", "sinkhorn") and small.fits(cost):
            state, levels = _begin(sinkhorn, reg, warm_start)
            coarse = max(tol, _COARSE * float(a.sum(axis=1).min()))
            options = {"steps": _STEPS, "most": small.PATIENCE if sparse else max_iter}
            small.solve(sinkhorn, state, levels, reg, tol, omega, coarse=coarse, **options)
            if sparse and not (state.error <= tol).all():
                # What is left is small, and hard: Newton's many short steps are for the CPU.
                here = replace(sinkhorn, cost=cost.host(), there=None)
                _rest(here, state, reg, method, tol, max_iter, omega)
        elif sparse and len(a) == 1:
            state = _newton(sinkhorn, reg, method, tol, omega, warm_start)
        else:
            state = _sinkhorn(sinkhorn, reg, tol, omega, warm_start, trial=sparse)
            if sparse:
                _rest(sinkhorn, state, reg, method, tol, max_iter, omega)
    history = recorder.history()
    names = "+".join(dict.fromkeys(history["method"].tolist()))
    converged = state.error <= tol
    return Outcome(state.f, state.g, state.error, state.iterations, converged, history, names)


def _levels(sinkhorn: Sinkhorn, reg: float) -> list[float]:
    """Return the values of reg on the way down, the last one excepted."""
    first = sinkhorn.cost.spread() * _START
    count = math.ceil(math.log(first / reg, _FACTOR) - 1e-9) if first > reg else 0
    return [reg * _FACTOR**k for k in range(count, 0, -1)]


def _begin(
    sinkhorn: Sinkhorn, reg: float, warm_start: tuple[np.ndarray, np.ndarray] | None
) -> tuple[State, list[float]]:
    """Return where to start from, and the values of reg to go through before the last one."""
    if warm_start is not None:
        state = sinkhorn.start()
        state.f[:], state.g[:] = warm_start
        sinkhorn.exact(state, reg)
        if (state.error <= _CLOSE * sinkhorn.a.sum(axis=1)).all():
            return state, []
    return sinkhorn.start(), _levels(sinkhorn, reg)


def _sinkhorn(
    sinkhorn: Sinkhorn,
    reg: float,
    tol: float,
    omega: float | None,
    warm_start: tuple[np.ndarray, np.ndarray] | None,
    *,
    trial: bool,
) -> State:
    """Over-relaxed Sinkhorn, annealed; a trial is a few iterations."""
    state, levels = _begin(sinkhorn, reg, warm_start)
    coarse = max(tol, _COARSE * float(sinkhorn.a.sum(axis=1).min()))
    for level in levels:
        if sinkhorn.recorder.left > _STEPS:
            sinkhorn.iterate(state, level, coarse, _STEPS)
    sinkhorn.converge(state, reg, tol, omega, _TRIAL if trial else None)
    return state


def _newton(
    sinkhorn: Sinkhorn,
    reg: float,
    method: str,
    tol: float,
    omega: float | None,
    warm_start: tuple[np.ndarray, np.ndarray] | None,
) -> State:
    """Annealed Newton; Sinkhorn at values of reg where too many entries of the plan count."""
    state, levels = _begin(sinkhorn, reg, warm_start)
    newton = Newton(sinkhorn)
    entries = math.prod(sinkhorn.cost.shape)
    room = _MEMORY if sinkhorn.cost.M is None else max(_MEMORY, entries // 8)
    few = min(int(_SPARSE * entries), room)
    coarse = max(tol, _COARSE * float(sinkhorn.a.sum()))
    for level, after in zip(levels, [*levels[1:], reg], strict=False):
        if sinkhorn.recorder.left > 2 * _STEPS:
            if newton.solve(state, level, coarse, few, last=False) == "dense":
                sinkhorn.iterate(state, level, coarse, _STEPS)
            newton.extrapolate(state, level, after)
    if newton.solve(state, reg, tol, few, last=True) == "dense":
        _dense(sinkhorn, newton, state, reg, method, tol, omega, entries <= room)
    if not np.isfinite(state.f).all() or not np.isfinite(state.g).all():
        state = sinkhorn.start()
    if not state.error[0] <= tol:
        sinkhorn.converge(state, reg, tol, omega)
    return state


def _dense(
    sinkhorn: Sinkhorn,
    newton: Newton,
    state: State,
    reg: float,
    method: str,
    tol: float,
    omega: float | None,
    affordable: bool,
) -> None:
    """Go on where too many entries count for a short list.

    Sinkhorn goes first, and on as long as its rate promises an early end. Newton on a list of all
    entries takes over otherwise, if that is `affordable`.
    """
    if method == "auto" or not affordable:
        ahead = float(_TRIAL)
        while ahead <= _AFFORDABLE and not state.error[0] <= tol and sinkhorn.recorder.left > 0:
            before = float(state.error[0])
            sinkhorn.converge(state, reg, tol, omega, _TRIAL)
            gained = math.log(before / max(float(state.error[0]), 1e-300))
            to_go = math.log(max(float(state.error[0]), 1e-300) / tol) if tol > 0 else math.inf
            ahead = _TRIAL * to_go / gained if gained > 0 else math.inf
    if affordable and not state.error[0] <= tol:
        newton.solve(state, reg, tol, math.prod(sinkhorn.cost.shape), last=True)


def _rest(
    sinkhorn: Sinkhorn,
    state: State,
    reg: float,
    method: str,
    tol: float,
    max_iter: int,
    omega: float | None,
) -> None:
    """Solve those problems of a batch by Newton that Sinkhorn has not solved."""
    for k in np.flatnonzero(~(state.error <= tol)).tolist():
        left = max_iter - int(state.iterations[k])
        if left < 1:
            continue
        recorder = Recorder(tol, left, None)
        single = replace(sinkhorn.item(k), recorder=recorder)
        found = _newton(single, reg, method, tol, omega, (state.f[k][None], state.g[k][None]))
        state.f[k], state.g[k], state.error[k] = found.f[0], found.g[0], found.error[0]
        state.iterations[k] += found.iterations[0]
        sinkhorn.recorder.join(recorder)
