"""Solvers that precondition with a sketch and iterate: forward stable, not backward stable."""

from functools import partial

import numpy as np

from quadric import arrays
from quadric.sketch.lstsq_factor import Factor
from quadric.sketch.lstsq_problem import Point, Problem, Watch
from quadric.sketch.refine import rates

_LOST = 10.0  # growth of a step that is no accident


def lsqr(problem: Problem, point: Point) -> tuple[Point, bool]:
    """Continue from a point by LSQR on A P; return where it came to, and whether by itself.

    The bidiagonalization ``u+ = A P v - alpha u``, ``v+ = P^T A^T u+ - beta v`` reads A once in
    each step: up to a factor the new u is the residual of ``P v / alpha``, with u on the right.
    """
    factor, passes = problem.factor, problem.passes
    root = np.sqrt(passes.ridge)
    watch, floor = Watch(problem, point, problem.target / 2), problem.floor(point)

    beta = point.norms
    v = factor.apply_t(point.g)
    todo = (beta > 0) & np.any(v != 0, axis=0)
    u = problem.r.copy()
    arrays.divide(u, np.where(todo, beta, 1.0).astype(passes.dtype))
    below = -root * point.x / np.where(todo, beta, 1.0)  # u of the rows sqrt(ridge) I
    alpha = np.linalg.norm(v, axis=0)
    v /= np.where(todo, alpha, 1.0)
    alpha = alpha / np.where(todo, beta, 1.0)
    w, y = v.copy(), np.zeros_like(v)
    phi, rho = beta.copy(), alpha.copy()
    converged = ~todo | (point.error <= problem.target)
    todo &= ~converged
    following = arrays.empty(u, u.shape, u.dtype)
    while todo.any() and problem.left > 0:
        problem.iterations += 1
        safe = np.where(todo, alpha, 1.0)
        x = factor.apply(v) / safe
        g, squares = passes.step(x, u, following)
        u, following = following, u
        if root:
            below = below - root * x
            g += root * below
            squares += np.einsum("ij,ij->j", below, below)
        length = np.sqrt(squares)
        beta = safe * length
        length = np.where(length > 0, length, 1.0)  # 0: x is exact after this step
        arrays.divide(u, -length.astype(passes.dtype))
        below /= -length
        v = factor.apply_t(g) / -length - beta * v
        alpha = np.linalg.norm(v, axis=0)
        v /= np.where(alpha > 0, alpha, 1.0)

        size = np.hypot(rho, beta)
        size[size == 0] = 1.0  # of what is solved already
        cosine, sine = rho / size, beta / size
        y += np.where(todo, cosine * phi / size, 0.0) * w
        steps = np.abs(cosine * phi / size) * np.linalg.norm(w, axis=0)
        phi = np.where(todo, sine * phi, phi)
        w = v - sine * alpha / size * w
        rho = -cosine * alpha
        gradient = factor.lift(phi * alpha * cosine * v)
        there = watch.reached(gradient, partial(_moved, point.x, factor, y))
        converged |= todo & ((steps <= floor) | there | (alpha == 0))
        todo &= ~converged
        v, w = np.where(todo, v, 0.0), np.where(todo, w, 0.0)
    return problem.visit(point.x + factor.apply(y), "precondition"), bool(converged.all())


def momentum(problem: Problem, point: Point) -> tuple[Point, bool]:
    """Continue from a point by ``x += alpha P P^T g + beta (x - x_before)``, residuals anew.

    Returns where it came to, and whether its steps came to the level of rounding.
    """
    factor, passes = problem.factor, problem.passes
    alpha, beta = rates(factor.distortion)
    watch = Watch(problem, point, problem.target / 2)
    x, g = point.x, point.g
    step = np.zeros((factor.rank, x.shape[1]))
    converged = point.error <= problem.target
    todo, first = ~converged, None
    while todo.any() and problem.left > 0:
        problem.iterations += 1
        step = np.where(todo, alpha * factor.apply_t(g) + beta * step, 0.0)
        x = x + factor.apply(step)
        lengths = np.linalg.norm(step, axis=0)
        first = lengths if first is None else first
        converged |= todo & (lengths <= problem.floor(point))
        todo &= ~converged & (lengths < _LOST * first)
        if not todo.any():
            break
        g, _ = passes.gradient(x, problem.b, problem.r)
        converged |= watch.reached(g / factor.norms[:, None], partial(np.asarray, x))
        todo &= ~converged
    return problem.visit(x, "iterative"), bool(converged.all())


def _moved(x: np.ndarray, factor: Factor, y: np.ndarray) -> np.ndarray:
    return np.asarray(x + factor.apply(y))
