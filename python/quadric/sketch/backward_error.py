"""The backward error of any solution of a least-squares problem."""

from typing import Any

import numpy as np
from scipy.linalg import lapack

from quadric import arrays, checks, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import cost_model, scaling
from quadric.sketch.karlson_walden import Estimate
from quadric.sketch.lstsq_factor import Factor, factorize, of_triangle, sketch
from quadric.sketch.lstsq_passes import Passes
from quadric.sketch.lstsq_solve import make_operator
from quadric.sketch.operator import SketchingOperator


def lstsq_backward_error(
    A: Array,
    b: Array,
    x: Array,
    *,
    ridge: float = 0.0,
    theta: float = 1.0,
    operator: SketchingOperator | None = None,
    exact: bool = False,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> float | Array:
    """Return by how much A and b would have to change for x to be an exact solution.

    Parameters
    ----------
    A : array or sparse matrix, shape (n, d)
        float32 or float64, with at least as many rows as columns (or with ridge).
    b, x : array, shape (n,) and (d,), or (n, k) and (d, k)
        Of the dtype of A; b where A is.
    ridge : float, optional
        Of the problem that x is to solve, ``min |b - A x|^2 + ridge |x|^2``; its rows
        ``sqrt(ridge) I`` count as part of A.
    theta : float, optional
        Weight of changes of b, above 0; ``numpy.inf`` allows changes of A only.
    operator : SketchingOperator, optional
        Sketch to see A through. None is a sparse sign sketch of about 12 d rows.
    exact : bool, optional
        Use the singular values of A itself instead: ``2 n d^2`` flops and one more read of A.
    seed : int, Generator or None, optional
        Of the sketch.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment.

    Returns
    -------
    float, or array of float64, shape (k,), of NumPy if A is on a GPU
        ``|[dA, theta |A|_F / |b| db]|_F / |A|_F`` of the smallest change; a few 1e-16 for what a
        backward stable solver returns in float64.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or ``n < d`` without ridge.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    The estimate of Karlson and Waldén, which is at most a factor sqrt(2) away from that of the
    definition [1]_, seen through a sketch, which adds a factor of about ``1 + sqrt(d / m)`` [2]_:
    with r = b - A x and ``phi = theta |A|_F |r| / sqrt(|b|^2 + theta^2 |A|_F^2 |x|^2)``::

        eta = phi / |r| |(A^T A + phi^2 I)^(-1/2) A^T r| / |A|_F

    Two reads of A, the sketch included. ``A^T r`` is computed in the precision of A, so results
    below a unit of roundoff, also 0, say that there is nothing left to gain, and no more.

    References
    ----------
    .. [1] Waldén, Karlson, Sun, "Optimal backward perturbation bounds for the linear least squares
       problem", Numerical Linear Algebra with Applications 2, 1995; Gratton, Jiránek,
       Titley-Peloquin, "On the accuracy of the Karlson-Waldén estimate of the backward error for
       linear least squares problems", SIAM J. Matrix Anal. Appl. 33, 2012.
    .. [2] Epperly, Meier, Nakatsukasa, "Fast randomized least-squares solvers can be just as
       accurate and stable as classical direct solvers", 2024, arXiv:2406.03468.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> A = np.vander(rng.random(5000), 12)  # condition 2e8
    >>> b = rng.standard_normal(5000)
    >>> good = qd.sketch.lstsq(A, b).x
    >>> normal_equations = np.linalg.solve(A.T @ A, A.T @ b)
    >>> qd.sketch.lstsq_backward_error(A, b, good) < 1e-15
    True
    >>> qd.sketch.lstsq_backward_error(A, b, normal_equations) > 1e-13
    True
    """
    from quadric.sketch.lstsq import check_matrix, check_sides

    matrix = check_matrix(A)
    n, d = matrix.shape
    sides = check_sides(b, "b", n, matrix.dtype)
    point = check_sides(x, "x", d, matrix.dtype)
    if point.shape[1] != sides.shape[1] or x.ndim != b.ndim:
        raise ValueError(f"x must have shape {(d, *b.shape[1:])} to go with b, got {x.shape}")
    arrays.together(sides, matrix, "b", "A")
    checks.finite(sides, "b")
    checks.finite(point, "x")
    point = arrays.host(point)
    passes = Passes(matrix, checks.real(ridge, "ridge", low=0.0), backend, n_threads)
    weight = np.inf if theta == np.inf else checks.positive(theta, "theta")
    if n < d and not passes.ridge:
        raise ValueError(f"A must have at least as many rows as columns, got shape {(n, d)}")
    if operator is not None and not isinstance(operator, SketchingOperator):
        raise TypeError(f"operator must be a SketchingOperator, got {type(operator).__name__}")
    if operator is not None and (operator.n != n or operator.m + d * bool(passes.ridge) < d):
        raise ValueError(
            f"operator must have {n} columns and at least {d} rows, got shape {operator.shape}"
        )
    seed = resolve_seed(seed)
    m = -(-cost_model.rows(d, "spir") // 8) * 8
    if operator is None and m < n and not cost_model.direct(n, d):
        operator = make_operator("sparse_sign", m, n, 8, seed, passes)

    factor = _factor(passes, sides, operator)
    sides, point = _moderate(sides, point, float(factor.norms.max()))
    with threads.blas_limit(1):
        if exact and operator is not None:
            factor = _exact(passes, factor)
        r = passes.empty(sides.shape[1])
        wide = point.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            g, squares = passes.gradient(wide, sides, r)
            b_norms = scaling.sums_norms(sides)
        if not (np.isfinite(g).all() and np.isfinite(squares).all()):
            passes.refuse(sides)
        error = Estimate(factor, b_norms, theta=weight).at(g, np.sqrt(squares), wide)
    if b.ndim == 1:
        return float(error[0])
    return error if isinstance(sides, DeviceArray) else arrays.like(b)(error)


def _moderate(b: Data, x: np.ndarray, size: float) -> tuple[Data, np.ndarray]:
    """Return b and x over a power of two, which changes no error; |b| and |A| |x| are moderate."""
    sizes = scaling.largest(b)
    products = np.frexp(scaling.largest(x))[1] + np.frexp(size)[1]
    bound = np.where(x.any(axis=0), products, np.frexp(sizes)[1])
    bound = np.where(sizes > 0, np.maximum(bound, np.frexp(sizes)[1]), bound)
    if (np.abs(bound) < np.finfo(b.dtype).maxexp // 4).all():
        return b, x
    return scaling.shifted(b, -bound), np.ldexp(x, -bound)


def _factor(passes: Passes, b: Data, operator: Any) -> Factor:
    with threads.blas_limit(1):
        top, side = sketch(passes.A, b, operator, passes.ridge)
    with threads.blas_limit(passes.workers):
        factor = factorize(top, side, None)
    if factor is None:
        passes.refuse(b)
    return factor


def _exact(passes: Passes, factor: Factor) -> Factor:
    """Return the factor of A itself, of any rank.

    The rows ``30 u |A| I`` make a preconditioner of what may be singular. A null space of A is then
    that of ``G = (A R^-1)^T (A R^-1)``, and a root of G times R is a root of ``A^T A``.
    """
    d = len(factor.R)
    floor = 30 * 2.0**-53 * float(factor.largest) * factor.norms
    R = lapack.dtpqrt(d, min(32, d), factor.R, np.asfortranarray(np.diag(floor)))[0]
    G = passes.gram(lapack.dtrtri(np.triu(R))[0])
    if not np.isfinite(G).all():
        passes.refuse(None)
    values, vectors = np.linalg.eigh(G)
    half = np.sqrt(np.maximum(values, 0.0))[:, None] * (vectors.T @ np.triu(R))
    return of_triangle(np.asfortranarray(np.triu(lapack.dgeqrf(half)[0])), factor.start)
