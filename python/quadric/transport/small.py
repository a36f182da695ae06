"""Small problems on a GPU, many of them at once: the whole solution is one kernel.

A block of threads keeps the cost of a problem and iterates as `Sinkhorn.converge` does, with its
policy for the factor; the host sees the result only.
"""

import math
from dataclasses import dataclass

import numpy as np

from quadric import device
from quadric.arrays import Array
from quadric.device import DeviceArray, Space
from quadric.transport.cost import Cost
from quadric.transport.history import MANY, Progress, Recorder
from quadric.transport.problem import Measures, Problem
from quadric.transport.relaxation import Sinkhorn, State

PATIENCE = 2000  # iterations, which are quick here, before Newton's method
_INSIDE = 0.75  # of the tolerance: the plan of the result is rounded otherwise
_MEASURES = 4  # numbers that the kernel finds for each problem
_UNMEASURED = (False, None, None, 0.0)  # from given potentials, without measures
_ROUND = 200  # iterations between two translations of unbalanced potentials


def fits(cost: Cost) -> bool:
    """Say whether problems are on a GPU, and small enough for one block of threads each."""
    if not isinstance(cost.array, DeviceArray):
        return False
    _, n, m = cost.shape
    d = 0 if cost.M is not None else cost.array.shape[2]
    return bool(device.transport().converges(cost.kind, n, m, d, cost.dtype.itemsize))


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """What `whole` found; the potentials are on the GPU.

    `outputs` are the attributes of the result from f to converged, if all errors are below `tol`.
    """

    f: DeviceArray
    g: DeviceArray
    measures: Measures
    iterations: np.ndarray
    history: np.ndarray
    outputs: tuple[Array, ...] | None


def suits(problem: Problem, method: str, tol: np.ndarray) -> bool:
    """Say whether `whole` may begin with these problems, from potentials that are zeros.

    They are several, small and on a GPU, balanced, with masses everywhere and tolerances that are
    about the same.
    """
    if method not in ("auto", "sinkhorn") or not problem.balanced or len(tol) < 2:
        return False
    if not fits(problem.cost):
        return False
    if problem.uniform:  # so are the tolerances, which are shares of the mass
        return True
    return bool(tol.max() <= 2 * tol.min() and problem.a.min() > 0 and problem.b.min() > 0)


def whole(
    problem: Problem,
    tol: float,
    omega: float | None,
    max_iter: int | None,
    *,
    most: int | None,
    progress: Progress,
) -> Whole:
    """Solve problems that suit, in one launch.

    The kernel anneals, iterates, centres the potentials and finds what they are worth; what the
    host sees of them is some numbers for each. At most `max_iter` iterations are made, and `most`.
    A cost that is NaN or -Inf, or forbids all pairs of a mass, keeps its problem from converging.
    """
    cost, space = problem.cost, problem.cost.array.space
    B, n, m = cost.shape
    recorder = Recorder(tol, MANY if max_iter is None else max_iter, progress)
    f, g = space.empty((B, n), np.float64), space.empty((B, m), np.float64)
    found, converged = space.empty((2 + _MEASURES, B), np.float64), space.empty(B, np.bool_)
    masses = (None, None) if problem.uniform else (problem.a, problem.b)
    factor = None if omega is None else np.full(B, omega)
    count = min(recorder.left + 1, most or recorder.left + 1)
    options = (problem.reg, 1.0, 1.0, factor, _INSIDE * tol, count)
    made, worth = found[1].as_bits(np.int64), found[2:]
    written = (f, g, found[0], made, True, worth, converged, tol)
    space.run(device.transport().converge, *cost.args, *masses, *options, *written)
    # The arrays that the caller gets are made while the kernel runs.
    results = tuple(map(problem.wrap, (f, g, *worth, made, converged)))
    here = found.host()
    iterations = here[1].view(np.int64)
    measures = Measures(*here[2:])
    worst, objective = float(measures.marginal_error.max()), float(measures.dual_value.sum())
    recorder.add("sinkhorn", problem.reg, int(iterations.max()), worst, objective, B * n * m)
    outputs = results if worst <= tol else None
    return Whole(f, g, measures, iterations, recorder.history(), outputs)


def solve(
    sinkhorn: Sinkhorn,
    state: State,
    levels: list[float],
    reg: float,
    tol: float,
    omega: float | None,
    *,
    steps: int,
    coarse: float,
    most: int,
) -> None:
    """Bring B problems to `tol`, or to where it goes no further, in place.

    `levels` are the values of reg on the way down to it, with so many plain `steps` at each, or as
    few as bring the error to `coarse`, and at most `most` iterations at the end.
    """
    space, kernels = sinkhorn.cost.array.space, device.transport()
    B = len(state.f)
    fixed = (*sinkhorn.cost.args, *sinkhorn.masses)
    theta = sinkhorn.theta_a, sinkhorn.theta_b
    f, g = _placed(state.f, space), _placed(state.g, space)
    levels = levels[: max(sinkhorn.recorder.left // steps, 0)]
    errors = space.empty((len(levels), B, steps), np.float64)
    for level, made in zip(levels, errors, strict=True):
        options = (level, *theta, np.ones(B), coarse, steps)
        space.run(kernels.sinkhorn, *fixed, *options, f, g, made)
    if levels:
        made = np.count_nonzero(~np.isnan(errors.host()), axis=2).sum(axis=0)
        state.iterations += made
        sinkhorn.recorder.iterations += int(made.max())
    balanced = theta == (1.0, 1.0)
    factor = np.full(B, math.nan if omega is None else omega)
    stop = max(sinkhorn.recorder.left - most, 0)
    while sinkhorn.recorder.left > stop:
        left = sinkhorn.recorder.left - stop
        count = left if balanced else min(left, _ROUND)
        last, iterations = np.empty(B), np.empty(B, np.int64)
        options = (reg, *theta, factor, _INSIDE * tol, count)
        space.run(kernels.converge, *fixed, *options, f, g, last, iterations, *_UNMEASURED)
        state.f, state.g, state.error = f.host(), g.host(), last
        state.iterations += iterations
        sinkhorn.note(state, reg, int(iterations.max()))
        if balanced or (last <= tol).all() or not iterations.any():
            break
        sinkhorn.translate(state, reg)
        f, g = space.from_host(state.f), space.from_host(state.g)
    if not (state.error < math.inf).any() and sinkhorn.recorder.left == 0:
        sinkhorn.exact(state, reg)  # the one iteration that there was


def _placed(potentials: np.ndarray, space: Space) -> DeviceArray:
    if potentials.any():
        return space.from_host(potentials)
    return space.full(potentials.shape, np.float64, 0.0)
