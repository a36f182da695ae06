"""Entropic optimal transport between points; the cost is computed from them, never stored."""

from typing import Literal, TypeAlias

import numpy as np

from quadric import arrays, checks
from quadric.arrays import Array, Data
from quadric.transport import problem as problems
from quadric.transport.cost import KINDS, Cost
from quadric.transport.problem import Problem, Unbalanced
from quadric.transport.results import TransportResult
from quadric.transport.run import Method, Omega, WarmStart, run

PointCost: TypeAlias = Literal["sqeuclidean", "euclidean", "cityblock", "cosine"]


def solve_points(
    x: Array,
    y: Array,
    reg: float,
    *,
    a: Array | None = None,
    b: Array | None = None,
    cost: PointCost = "sqeuclidean",
    method: Method = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    omega: Omega = "auto",
    unbalanced: Unbalanced = None,
    warm_start: WarmStart = None,
    normalize: bool = False,
    progress: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> TransportResult:
    """Solve the transport problem of :func:`solve` for the cost ``C_ij = c(x_i, y_j)``.

    Parameters
    ----------
    x, y : array, shape (n, d) and (m, d), or (B, n, d) and (B, m, d)
        Points, float32 or float64, both of the same dtype and in the same memory. Those on a GPU
        stay there, and the result's arrays are there too.
    reg : float
        Regularization above 0, in units of the cost.
    a, b : array, shape (n,) and (m,), or None
        Masses, none negative, of the same sum; None is uniform with sum 1. A batch has masses
        (B, n) and (B, m), or the same for all problems.
    cost : {"sqeuclidean", "euclidean", "cityblock", "cosine"}, optional
        ``sum (x - y)^2``, its root, ``sum |x - y|``, or ``1 - x.y / (|x| |y|)``.
    method, tol, max_iter, omega, unbalanced, warm_start, normalize, progress, backend, n_threads
        As in :func:`solve`. The default of `tol` follows the dtype of the points.

    Returns
    -------
    TransportResult
        Potentials, cost, value, errors; ``result.barycentric(y)`` is where the plan sends x.

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not reached. The result has the best that was found.

    Raises
    ------
    ValueError
        If a shape does not fit, a point is not finite, a cost overflows its dtype, a vector is 0
        and the cost is the cosine, or as :func:`solve` says.
    TypeError
        If a dtype is neither float32 nor float64, or that of `x` and `y` differs.

    Notes
    -----
    Memory is that of the points: 100 000 points in 3-D take less than 1 GB with everything that
    belongs to a run. Squared distances are computed from points less their common mean, which does
    not change them but saves digits.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> x = np.linspace(0, 1, 100)[:, None]
    >>> result = qd.transport.solve_points(x, x + 2, reg=1e-3)
    >>> result.converged, round(result.cost, 2)  # all move by 2
    (True, 4.0)
    """
    problem = points_problem(
        x,
        y,
        reg,
        a=a,
        b=b,
        cost=cost,
        unbalanced=unbalanced,
        normalize=normalize,
        backend=backend,
        n_threads=n_threads,
    )
    return run(
        problem,
        method=method,
        tol=tol,
        max_iter=max_iter,
        omega=omega,
        warm_start=warm_start,
        progress=progress,
    )


def points_problem(
    x: Array,
    y: Array,
    reg: float,
    *,
    a: Array | None = None,
    b: Array | None = None,
    cost: PointCost = "sqeuclidean",
    unbalanced: Unbalanced = None,
    normalize: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Problem:
    """Check the arguments of :func:`solve_points`, and return the problem that they describe."""
    checks.choice(cost, "cost", tuple(KINDS))
    x_, y_ = _points(x, "x"), _points(y, "y")
    checks.same_type(y_, "y", x_.dtype, "x")
    arrays.together(y_, x_, "y", "x")
    if y_.ndim != x_.ndim or y_.shape[-1] != x_.shape[-1] or y_.shape[:-2] != x_.shape[:-2]:
        wanted = ", ".join(str(s) for s in (*x_.shape[:-2], "m", x_.shape[-1]))
        raise ValueError(f"y must have shape ({wanted}) to go with x, got {y_.shape}")
    built = Cost.points(x_, y_, KINDS[cost])
    _check_range(built, cost)
    return problems.build(
        built,
        a,
        b,
        reg,
        unbalanced=unbalanced,
        normalize=normalize,
        batched=x_.ndim == 3,
        wrap=arrays.like(x),
        backend=backend,
        n_threads=n_threads,
    )


def _points(x: Array, name: str) -> Data:
    points = arrays.take(x, name)
    if points.ndim not in (2, 3) or 0 in points.shape:
        raise ValueError(
            f"{name} must have shape (n, d) or (B, n, d) with at least one point and dimension,"
            f" got {points.shape}"
        )
    checks.floating(points, name)
    points = arrays.contiguous(points)
    checks.finite(points, name)
    return points


def _check_range(cost: Cost, name: str) -> None:
    """Refuse points so far from each other that a cost might overflow."""
    with np.errstate(over="ignore"):
        largest, d = cost.largest(), cost.array.shape[2]
        bound = d * (largest if name == "cityblock" else largest * largest)
    if not bound < float(np.finfo(cost.dtype).max):
        raise ValueError(
            f"x and y must be less far apart: their {name} cost overflows {cost.dtype}"
        )
