"""Newton's method for l_p regression, with a proof of how far the value is from the smallest."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import linalg

from quadric.sketch import inputs
from quadric.sketch.rows import Rows

_EPS = float(np.finfo(np.float64).eps)
_FLOOR = 1e-5  # of residuals that weigh a step for p > 2, relative to their mean
_SHRINK = 0.1  # of the smoothing, once it is the larger part of what is missing
_LEAST = 1e-18  # smoothing, relative to the mean residual
_TRIALS = 40  # of a line search


@dataclass(frozen=True, slots=True)
class Minimum:
    """Where ``||b - Q z||_p`` is smallest.

    Attributes
    ----------
    z : array of float64, shape (d,)
    norm : float
        ``||b - Q z||_p``.
    gap : float
        No z has a norm below ``(1 - gap) norm``.
    converged : bool
        Whether the gap is below the tolerance, or below what rounding makes of b.
    iterations : int
    """

    z: np.ndarray
    norm: float
    gap: float
    converged: bool
    iterations: int


def minimize(
    rows: Rows, b: np.ndarray, p: float, tol: float, max_iter: int, size: float | None = None
) -> Minimum:
    """Minimize ``||b - Q z||_p`` for Q with orthonormal columns, float64, 1 <= p < infinity.

    `size` is the norm of what b was computed from, whose rounding b has; None is that of b.

    Newton's method with a line search on ``f = sum (r^2 + s^2)^(p/2) / p``. The smoothing s is 0
    for p >= 2. For p < 2 it starts at the size of the residuals, and shrinks whenever a step
    promises less than it hides. The weights D of a step ``dz = (Q^T D Q)^-1 Q^T y`` are those of a
    primal-dual method [1]_, held between f'' and the weights of iteratively reweighted least
    squares; the latter make a majorant of f, and every step points downhill.

    A y with ``Q^T y = 0`` proves ``||b - Q z||_p >= b^T y / ||y||_q`` for all z, 1/p + 1/q = 1. The
    new dual of a step, ``y - D Q dz``, is one up to rounding.

    References
    ----------
    .. [1] Chan, Golub, Mulet, "A nonlinear primal-dual method for total variation-based image
       restoration", SIAM J. Sci. Comput. 20, 1999.
    """
    Q, noise = inputs.dense_of(rows.a), 8 * _EPS * (norm_p(b, p) if size is None else size)
    z = Q.T @ b
    r = b - Q @ z
    unit = norm_p(r, p) * len(b) ** (-1 / p)
    if unit * len(b) ** (1 / p) <= noise or not Q.shape[1]:  # b, or nothing, is in the range
        return Minimum(z, norm_p(r, p), 0.0, True, 0)
    r = r / unit
    smoothing = 0.0 if p >= 2 else float(np.abs(r).mean())
    dual, bound, iteration = None, 0.0, 0
    best, least = z, norm_p(r, p)
    while True:
        y, D = _derivatives(r, smoothing, p, dual)
        gradient = Q.T @ y
        step = _solve(rows.gram(D), gradient)
        along = Q @ step
        dual = y - D * along
        for candidate in (y, dual) if iteration == 0 else (dual,):
            bound = max(bound, _bound(Q, b, candidate, p) / unit)
        converged = least - bound <= max(tol * least, noise / unit)
        slope = float(gradient @ step)
        rounding = 8 * _EPS * float(np.abs(y) @ np.abs(along))
        still = slope <= rounding and smoothing <= _LEAST
        if converged or iteration == max_iter or still:
            break
        hidden = float(((r**2 + smoothing**2) ** (p / 2) - np.abs(r) ** p).sum()) if p < 2 else 0.0
        iteration += 1
        # A promise within rounding is nothing that a search could see.
        length = _line_search(r, along, smoothing, p, slope) if slope > rounding else 1.0
        z = z + unit * length * step
        r = (b - Q @ z) / unit
        if (norm := norm_p(r, p)) < least:
            best, least = z, norm
        if p == 1:
            dual = np.clip(dual, -1, 1)
        if slope <= 2 * hidden:
            smoothing = max(_SHRINK * smoothing, _LEAST)
    gap = max(1 - bound / least, 0.0) if least > 0 else 0.0
    return Minimum(best, unit * least, gap, converged, iteration)


def rounded(found: Minimum, norm: float, tol: float, size: float, dtype: Any) -> Minimum:
    """Return what a minimum is worth after its x was rounded to a dtype, with this norm then.

    `size` is the norm of b, whose rounding the residual has.
    """
    bound = (1 - found.gap) * found.norm
    noise = 8 * float(np.finfo(dtype).eps) * size
    gap = 0.0 if norm <= noise else max(1 - bound / norm, 0.0)
    converged = found.converged and norm - bound <= max(tol * norm, noise)
    return replace(found, norm=norm, gap=gap, converged=converged)


def norm_p(r: np.ndarray, p: float) -> float:
    """Return ``(sum |r|^p)^(1/p)`` without overflow, the largest entry for infinite p."""
    largest = float(np.abs(r).max(initial=0.0))
    if largest == 0 or np.isinf(p):
        return largest
    total = float(((np.abs(r) / largest) ** p).sum())
    return largest * math.pow(total, 1 / p)


def _derivatives(
    r: np.ndarray, smoothing: float, p: float, dual: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``-f'`` and the weights of a step, one per row."""
    if p >= 2:
        size = np.abs(r)
        return np.sign(r) * size ** (p - 1), (p - 1) * np.maximum(size, _FLOOR) ** (p - 2)
    squares = r**2 + smoothing**2
    majorant = squares ** (p / 2 - 1)
    y = majorant * r
    bend = r**2 / squares
    if dual is not None:
        bend = np.clip(dual * r / (majorant * squares), 0.0, bend)
    return y, majorant * (1 - (2 - p) * bend)


def _bound(Q: np.ndarray, b: np.ndarray, y: np.ndarray, p: float) -> float:
    y = y - Q @ (Q.T @ y)
    size = norm_p(y, np.inf if p == 1 else p / (p - 1))
    return float(b @ y) / size if size > 0 else 0.0


def _solve(G: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Solve with a symmetric matrix whose diagonal may span many orders of magnitude."""
    scale = 1 / np.sqrt(np.maximum(G.diagonal(), np.finfo(np.float64).tiny))
    H = G * scale * scale[:, None]
    shift = 0.0
    while True:
        try:
            factor = linalg.cho_factor(H + shift * np.eye(len(H)))
        except linalg.LinAlgError:
            shift = max(10 * shift, len(H) * _EPS)  # rounding made it indefinite
            continue
        result: np.ndarray = scale * linalg.cho_solve(factor, scale * g)
        return result


def _line_search(
    r: np.ndarray, along: np.ndarray, smoothing: float, p: float, slope: float
) -> float:
    """Return the length of a step: the slope of f there is at most half of that at 0.

    The slope grows with the length, so Newton's method on it is kept between the lengths where it
    was seen below 0 and above 0.
    """
    length, low, high = 1.0, 0.0, np.inf
    for _ in range(_TRIALS):
        t = r - length * along
        squares = t * t + smoothing**2
        with np.errstate(divide="ignore"):
            weights = np.where(squares > 0, squares, 1.0) ** (p / 2 - 1) * (squares > 0)
        here = -float(weights @ (t * along))
        if abs(here) <= 0.5 * slope:
            break
        low, high = (length, high) if here < 0 else (low, length)
        bend = 1 - (2 - p) * np.divide(t * t, squares, out=np.zeros_like(t), where=squares > 0)
        curvature = float((weights * bend) @ along**2)
        newton = length - here / curvature if curvature > 0 else np.inf
        if not low < newton < high:
            newton = (low + high) / 2
        length = min(newton, 4 * length)
    return length
