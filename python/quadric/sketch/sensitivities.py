"""l_p sensitivities: the largest share that a row can have in an l_p norm."""

import math
from typing import Literal

import numpy as np
from scipy import linalg

from quadric import arrays, checks, threads
from quadric.arrays import Array
from quadric.device import DeviceArray
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import inputs, lewis, lp_newton
from quadric.sketch.rows import Rows, check_rows, factorize

Method = Literal["auto", "exact", "bound"]

_SMALL = 200  # rows, for one convex problem each
_ROUGH = 0.1  # how far Lewis weights in a bound may be off: it holds for any weights
_ITERATIONS = 8


def lp_sensitivities(
    A: Array,
    p: float,
    *,
    method: Method = "auto",
    tol: float = 1e-9,
    max_iter: int = 100,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Array:
    """Return ``s_i = max_x |a_i^T x|^p / ||A x||_p^p`` for every row ``a_i`` of A, or a bound.

    Parameters
    ----------
    A : array or scipy.sparse matrix, shape (n, d)
        float32 or float64, of any strides, rank and shape. A copy of it in an orthonormal basis,
        dense, is kept during the call where p is not 2.
    p : float
        At least 1, finite.
    method : {"auto", "exact", "bound"}, optional
        "exact" solves a convex problem per row, 20 n^2 d^2 flops in all. "bound" gives upper bounds
        from approximate Lewis weights, 30 n d^2 flops. "auto" is exact up to 200 rows, and for
        p = 2, where sensitivities are leverage scores.
    tol : float, optional
        Relative accuracy of ``s_i^(1/p)`` that "exact" asks for; its values are then at most that
        much too small, and never too large.
    max_iter : int, optional
        Most Newton steps for a row.
    seed : int, Generator or None, optional
        Of the sketch that finds the basis; the results differ by rounding only.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    array, shape (n,)
        Between 0 and 1, of the dtype of `A`. Sensitivities sum to at most d for p <= 2, and to at
        most ``d^(p/2)`` beyond.

    Raises
    ------
    ValueError
        If `A` is empty or not finite, or a number is out of range.
    TypeError
        If `A` is not float32 or float64.

    Notes
    -----
    ``s_i^(-1/p)`` is the smallest ``||A x||_p`` with ``a_i^T x = 1``: l_p regression with d - 1
    unknowns.

    For any weights w > 0 let ``u_i = (a_i^T (A^T W^(1 - 2/p) A)^-1 a_i)^(p/2)``. Then
    ``s_i <= u_i max_j (u_j / w_j)^(2/p - 1)`` for p <= 2, and ``s_i <= u_i (sum w)^(p/2 - 1)``
    beyond, both by Hoelder's inequality as for Lewis weights [1]_, where they read ``s_i <= w_i``
    and ``s_i <= d^(p/2 - 1) w_i``. The bound that is returned is the smaller one of those for
    w = 1, from leverage scores, and for the w of a few iterations towards Lewis weights.

    References
    ----------
    .. [1] Woodruff, Yasuda, "Sharper bounds for l_p sensitivity sampling", ICML 2023,
       arXiv:2306.00732.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.random.default_rng(0).standard_normal((100, 3))
    >>> exact = qd.sketch.lp_sensitivities(A, 1.0)
    >>> bound = qd.sketch.lp_sensitivities(A, 1.0, method="bound")
    >>> bool((exact <= bound).all()), bool(bound.sum() <= 3.3)
    (True, True)
    """
    rows = check_rows(A, "A", backend, n_threads, gpu=True)
    p = lewis.check_power(p)
    checks.choice(method, "method", ("auto", "exact", "bound"))
    tol = checks.positive(tol, "tol")
    max_iter = checks.integer(max_iter, "max_iter", low=1)
    seed = resolve_seed(seed)
    exact = method == "exact" or (method == "auto" and rows.shape[0] <= _SMALL)
    with threads.blas_limit(1):
        if p == 2:
            result = rows.norms(factorize(rows, seed=seed).M)
        elif exact:
            result = _exact(rows, p, tol, max_iter, seed)
        else:
            result = bounds(lewis.basis(rows, seed), p)
    return inputs.wrapper(A)(np.minimum(result, 1.0).astype(rows.dtype))


def bounds(rows: Rows, p: float) -> np.ndarray:
    """Return upper bounds on the sensitivities of a matrix with orthonormal columns."""
    if not rows.shape[1]:
        return np.zeros(rows.shape[0])
    scores = rows.norms()
    alive = scores > 0
    w, u, _ = lewis.iterate(rows, p, _ROUGH, _ITERATIONS)
    found = [(scores ** (p / 2), alive.astype(np.float64)), (u, w)]
    result = alive.astype(np.float64)
    for u, w in found:
        result = np.minimum(result, _hoelder(u, w, p))
    return result


def _hoelder(u: np.ndarray, w: np.ndarray, p: float) -> np.ndarray:
    if p > 2:
        return u * math.pow(float(w.sum()), p / 2 - 1)
    ratio = np.divide(u, w, out=np.zeros_like(u), where=w > 0)
    return u * math.pow(float(ratio.max()), 2 / p - 1)


def _exact(rows: Rows, p: float, tol: float, max_iter: int, seed: int) -> np.ndarray:
    n, _ = rows.shape
    Q = arrays.host(rows.times(factorize(rows, seed=seed).M, np.float64))
    backend = None if isinstance(rows.a, DeviceArray) else rows.backend  # small, so on the CPU
    result = np.zeros(n)
    for i in range(n):
        size = linalg.norm(Q[i])
        if size == 0:
            continue
        # The reflection that takes q_i to the first axis: the other axes leave a_i^T x as it is.
        v = Q[i] / size
        sign = 1.0 if v[0] >= 0 else -1.0
        v[0] += sign
        v /= linalg.norm(v)
        turned = Q - np.outer(2 * (Q @ v), v)
        rest = Rows(np.ascontiguousarray(turned[:, 1:]), "A", backend, rows.n_threads)
        fixed = -sign * turned[:, 0] / size
        result[i] = lp_newton.minimize(rest, fixed, p, tol, max_iter).norm ** -p
    return result
