"""Backward stable solvers: corrections from residuals that are computed anew.

A correction P y solves ``P^T A^T A P y = P^T A^T r``, whose matrix is near I. What is lost in it to
rounding is small relative to the correction, so one or two bring x to a backward error near u
whatever the condition of A: SPIR solves by conjugate gradients, FOSSILS by Polyak's heavy ball [1],
the Gram route has a P with which the matrix is I.

[1] E. N. Epperly, M. Meier, Y. Nakatsukasa. Fast randomized least-squares solvers can be just as
accurate and stable as classical direct solvers. 2024. arXiv:2406.03468
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from quadric.sketch.lstsq_problem import Point, Problem, Watch

Stop: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Of the solution of the inner system, its residual, shape (rank, k), and the lengths of the last
steps: which of the right-hand sides are done."""

Inner: TypeAlias = Callable[[Problem, np.ndarray, Stop], np.ndarray]

_ROUNDS = 8  # of corrections; two do unless A is at the edge of what its dtype can hold
_IDLE = 8  # steps of the heavy ball, which is not monotonic, without a residual below all before


def refine(problem: Problem, point: Point, inner: Inner, method: str) -> Point:
    """Correct x until the backward error is that of rounding, or no longer falls."""
    best, idle = point, 0
    for number in range(_ROUNDS):
        todo = ~(point.error <= problem.target)
        if not todo.any() or problem.left <= 0:
            break
        c = np.where(todo, problem.factor.apply_t(point.g), 0.0)
        y = inner(problem, c, _stop(problem, point, first=number == 0))
        point = problem.visit(point.x + problem.factor.apply(y), method)
        halved = (point.error < best.error / 2)[todo].any()
        best = _merge(best, point, point.error < best.error)
        # Without this guard rounds would go on and on at the level of rounding. One round that does
        # not help is no reason to stop above it: the first one often leaves the error as it was.
        idle = 0 if halved else idle + 1
        if idle > 1 or (idle and (best.error <= problem.accepted).all()):
            break
    stale = (best.error < point.error).any()
    return problem.visit(best.x, method) if stale else point


def conjugate_gradients(problem: Problem, c: np.ndarray, stop: Stop) -> np.ndarray:
    """Return y with ``P^T A^T A P y = c``: one pass over A in each iteration."""
    factor, passes = problem.factor, problem.passes
    y, residual, p = np.zeros_like(c), c.copy(), c.copy()
    squares = np.einsum("ij,ij->j", c, c)
    todo = squares > 0
    while todo.any() and problem.left > 0:
        problem.iterations += 1
        product = factor.apply_t(passes.normal(factor.apply(p)))
        curvature = np.einsum("ij,ij->j", p, product)
        todo &= curvature > 0  # else the sketch or the arithmetic has lost a direction
        step = np.where(todo, squares, 0.0) / np.where(todo, curvature, 1.0)
        y += step * p
        residual -= step * product
        new = np.einsum("ij,ij->j", residual, residual)
        todo &= ~stop(y, residual, step * np.linalg.norm(p, axis=0))
        p = np.where(todo, residual + new / np.where(squares > 0, squares, 1.0) * p, 0.0)
        squares = new
        todo &= squares > 0
    return y


def heavy_ball(problem: Problem, c: np.ndarray, stop: Stop) -> np.ndarray:
    """Return y with ``P^T A^T A P y = c`` without inner products: one pass in each iteration."""
    factor, passes = problem.factor, problem.passes
    alpha, beta = rates(factor.distortion)
    y, step = c.copy(), np.zeros_like(c)
    least = np.linalg.norm(c, axis=0)
    todo, idle = least > 0, np.zeros(len(least), int)
    while todo.any() and problem.left > 0:
        problem.iterations += 1
        residual = c - factor.apply_t(passes.normal(factor.apply(y)))
        step = np.where(todo, alpha * residual + beta * step, 0.0)
        y += step
        todo &= ~stop(y, residual, np.linalg.norm(step, axis=0))
        # Residuals that no longer fall are those of rounding, or of a rate that was taken wrong.
        size = np.linalg.norm(residual, axis=0)
        idle = np.where(size < least, 0, idle + 1)
        least = np.minimum(least, size)
        todo &= idle < _IDLE
    return y


def newton(problem: Problem, c: np.ndarray, stop: Stop) -> np.ndarray:
    """Return c itself, where ``P^T A^T A P`` is I."""
    problem.iterations += 1
    return c


def rates(distortion: float) -> tuple[float, float]:
    """Return step and momentum that are best where ``|S y| / |y|`` is within 1 +- distortion."""
    beta = min(distortion, 0.95) ** 2
    return (1 - beta) ** 2, beta


def _stop(problem: Problem, point: Point, *, first: bool) -> Stop:
    """Return when to stop: the inner residual says what the backward error will be, without a pass.

    The first correction is that large that steps sooner come to the level of its rounding.
    """
    factor, watch = problem.factor, Watch(problem, point, problem.target / 2)
    floor = 10 * problem.floor(point) if first else np.zeros(len(point.norms))

    def stop(y: np.ndarray, residual: np.ndarray, steps: np.ndarray) -> np.ndarray:
        there = watch.reached(factor.lift(residual), lambda: point.x + factor.apply(y))
        return np.asarray(there | (steps <= floor))

    return stop


def _merge(old: Point, new: Point, better: np.ndarray) -> Point:
    if better.all():
        return new
    return replace(
        new,
        x=np.where(better, new.x, old.x),
        g=np.where(better, new.g, old.g),
        norms=np.where(better, new.norms, old.norms),
        error=np.where(better, new.error, old.error),
    )
