"""Lewis weights: the change of density under which an l_p norm looks most like a Euclidean one."""

import math
import warnings

import numpy as np
from scipy import linalg

from quadric import checks, threads
from quadric.arrays import Array
from quadric.errors import ConvergenceWarning, LinAlgError
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import inputs
from quadric.sketch.rows import Rows, check_rows, factorize

_SETBACKS = 10  # until only safe steps are taken


def lewis_weights(
    A: Array,
    p: float,
    *,
    tol: float | None = None,
    max_iter: int = 200,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Array:
    """Return the weights w with ``w_i = a_i^T (A^T W^(1 - 2/p) A)^+ a_i w_i^(1 - 2/p)``.

    Parameters
    ----------
    A : array or scipy.sparse matrix, shape (n, d)
        float32 or float64, of any strides, rank and shape. A copy of it in an orthonormal basis,
        dense, is kept during the call.
    p : float
        At least 1, finite.
    tol : float, optional
        Largest relative change of a weight at which to stop, in one plain iteration. None is 1e-10,
        1e-5 if A is float32.
    max_iter : int, optional
        Most iterations, each of 3 n d^2 flops.
    seed : int, Generator or None, optional
        Of the sketch that finds the basis; the weights differ by rounding only.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    array, shape (n,)
        Weights between 0 and 1, of the dtype of `A`, that sum to the rank of A.

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not reached.

    Raises
    ------
    ValueError
        If `A` is empty or not finite, or a number is out of range.
    TypeError
        If `A` is not float32 or float64.

    Notes
    -----
    With ``u_i = (a_i^T (A^T W^(1 - 2/p) A)^-1 a_i)^(p/2)`` the weights are the fixed point of
    ``w <- w^(1 - t) u^t``. Step t = 1 is the iteration of Cohen and Peng [1]_, which contracts by
    ``|p/2 - 1|``, so for p < 4 only. Step t = 2/p is ``w <- leverage(W^(1/2 - 1/p) A)``, the one
    that Lee [2]_ averages; it minimizes a majorant of the convex function ``(1 - 2/p) sum w -
    log det(A^T W^(1 - 2/p) A)`` of ``w^(1 - 2/p)`` for every p > 2, so it converges by itself. Near
    the fixed point the best step is ``t = 4 / (p + 2)``, with the rate ``|p - 2| / (p + 2)``; it is
    taken, but after a setback one of the other two.

    References
    ----------
    .. [1] Cohen, Peng, "l_p row sampling by Lewis weights", STOC 2015, arXiv:1412.0588.
    .. [2] Lee, "Faster algorithms for convex and combinatorial optimization", PhD thesis, MIT,
       2016.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.random.default_rng(0).standard_normal((1000, 3))
    >>> w = qd.sketch.lewis_weights(A, 1.0)
    >>> round(float(w.sum()), 9)
    3.0
    >>> np.allclose(qd.sketch.lewis_weights(A, 2), qd.sketch.leverage_scores(A))
    True
    """
    rows = check_rows(A, "A", backend, n_threads, gpu=True)
    p = check_power(p)
    tol = default_tol(rows) if tol is None else checks.positive(tol, "tol")
    max_iter = checks.integer(max_iter, "max_iter", low=1)
    seed = resolve_seed(seed)
    with threads.blas_limit(1):
        w, u, change = iterate(basis(rows, seed), p, tol, max_iter)
    if change > tol:
        warnings.warn(
            f"lewis_weights stopped after {max_iter} iterations with a relative change of "
            f"{change:.3g}, above tol = {tol:.3g}",
            ConvergenceWarning,
            stacklevel=2,
        )
    return inputs.wrapper(A)(np.minimum(leverage(w, u, p), 1.0).astype(rows.dtype))


def basis(rows: Rows, seed: int) -> Rows:
    """Return ``Q = A M`` with orthonormal columns, of the same weights, in the dtype of A."""
    factor = factorize(rows, seed=seed)
    return Rows(rows.times(factor.M), rows.name, rows.backend, rows.n_threads)


def iterate(
    rows: Rows, p: float, tol: float, max_iter: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the last w, the u that it leads to, and the largest change of log w in step t = 1."""
    n, d = rows.shape
    u = rows.norms() if d else np.zeros(n)
    alive = u > 0  # a row of zeros has weight 0 and plays no part
    w = np.where(alive, d / max(int(np.count_nonzero(alive)), 1), 0.0)
    if not alive.any():
        return w, w, 0.0
    best, safe = 4 / (p + 2), 2 / p if p >= 4 else 1.0
    before, setbacks = math.inf, 0
    for _ in range(max_iter):
        u = quadratic_form(rows, w, p) ** (p / 2)
        alive &= u > 0  # what underflows counts as 0
        w[~alive] = u[~alive] = 0.0
        log = np.log(u[alive] / w[alive])
        change = float(np.abs(log).max(initial=0.0))
        if change <= tol:
            break
        setbacks += change > before
        careful = change > before or setbacks > _SETBACKS
        before = change
        w[alive] *= np.exp((safe if careful else best) * log)
    else:
        u = quadratic_form(rows, w, p) ** (p / 2)
    return w, u, change


def quadratic_form(rows: Rows, w: np.ndarray, p: float) -> np.ndarray:
    """Return ``a_i^T (A^T W^(1 - 2/p) A)^-1 a_i`` for every row, float64."""
    scale = np.zeros_like(w)
    np.power(w, 1 - 2 / p, out=scale, where=w > 0)
    try:
        C = linalg.cholesky(rows.gram(scale))
    except (linalg.LinAlgError, ValueError):
        raise LinAlgError(
            f"{rows.name} has rows of too different size for p = {p:g}: its weighted Gram matrix "
            "is not positive definite"
        ) from None
    return rows.norms(linalg.solve_triangular(C, np.eye(len(C))))


def leverage(w: np.ndarray, u: np.ndarray, p: float) -> np.ndarray:
    """Return the leverage scores of ``W^(1/2 - 1/p) A``, which sum to the rank."""
    out = np.zeros_like(w)
    np.power(w, 1 - 2 / p, out=out, where=w > 0)
    return out * u ** (2 / p)


def check_power(p: float, high: float = math.inf) -> float:
    """Return the power of an l_p norm."""
    return checks.real(p, "p", low=1.0, high=high)


def default_tol(rows: Rows) -> float:
    """Return the tolerance that the dtype of A allows."""
    return 1e-5 if rows.dtype == np.float32 else 1e-10
