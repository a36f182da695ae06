"""l_p regression, of all rows or of a sample of them."""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse

from quadric import arrays, checks, threads
from quadric.arrays import Array
from quadric.errors import ConvergenceWarning
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import draws, inputs, lewis, lp_newton, row_sample
from quadric.sketch.rows import Rows, check_rows, factorize

Sampling = Literal["sensitivity", "lewis"] | None

_ROWS = 50  # of a sample, per column


@dataclass(frozen=True, slots=True, eq=False)
class LpResult:
    """A solution of ``min ||A x - b||_p``.

    Attributes
    ----------
    x : array, shape (d,)
        Coefficients; 0 for columns that depend on others.
    objective : float
        ``||A x - b||_p`` over all rows.
    gap : float
        Without sampling: no x has a norm below ``(1 - gap) objective``, which is proved by a dual
        solution. With sampling: the same for the sampled problem. Of x as it is here, rounded to
        its dtype; 0 where a residual is all rounding.
    iterations : int
        Newton steps.
    sampled_rows : array of int64, shape (m,), or None
        Rows that the problem was solved on; None is all of them.
    weights : array of float64, shape (m,), or None
        What they were multiplied by.
    converged : bool
        Whether the gap is below the tolerance, or below what rounding of x in its dtype makes of b.
    """

    x: Array
    objective: float
    gap: float
    iterations: int
    sampled_rows: Array | None
    weights: Array | None
    converged: bool

    def __repr__(self) -> str:
        rows = "all" if self.sampled_rows is None else str(self.sampled_rows.shape[0])
        return (
            f"LpResult(d={self.x.shape[0]}, objective={self.objective:.6g}, gap={self.gap:.2g}, "
            f"rows={rows}, iterations={self.iterations}, converged={self.converged})"
        )


def lp_regression(
    A: Array,
    b: Array,
    p: float,
    *,
    sampling: Sampling = "sensitivity",
    sketch_size: int | None = None,
    tol: float | None = None,
    max_iter: int = 100,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> LpResult:
    """Solve ``min_x ||A x - b||_p`` for 1 <= p <= 8.

    Parameters
    ----------
    A : array or scipy.sparse matrix, shape (n, d)
        float32 or float64, of any strides, rank and shape.
    b : array, shape (n,)
        Of the dtype of `A`.
    p : float
        From 1 (least absolute deviations) to 8 (close to the smallest largest residual).
    sampling : {"sensitivity", "lewis"} or None, optional
        None solves the problem with all rows, to the tolerance. The others draw rows of [A b] and
        solve for them: "sensitivity" by ``s + l + 1/n`` for p <= 2 and by s beyond, "lewis" by
        Lewis weights; see :func:`sample_rows`.
    sketch_size : int, optional
        Rows to draw, about; from d + 1 to n. None is 50 (d + 1) for p <= 2 and 50 (d + 1)^(p/2)
        beyond, or n where that is less. All rows are taken if it is n.
    tol : float, optional
        Relative gap between the value and a lower bound on it at which to stop. None is 1e-12, 1e-6
        if A is float32.
    max_iter : int, optional
        Most Newton steps, each of n d^2 flops for the rows in use; 10 to 25 are common.
    seed : int, Generator or None, optional
        Same seed, same rows and same x.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    LpResult
        ``x`` is of the array type and dtype of `A`.

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not reached. The result has the best x that was found.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or a number is out of range.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    A is made orthonormal first, in float64, so the dense rows in use are stored once more, and
    least squares is solved. Newton's method with a line search then minimizes
    ``sum (r^2 + s^2)^(p/2)``, where the smoothing s is 0 for p >= 2 and shrinks geometrically for
    p < 2. Its weights are those of a primal-dual
    method [1]_, never above those of iteratively reweighted least squares, whose steps decrease the
    value by themselves. The dual part of each step gives a lower bound on the value of the problem:
    ``b^T y / ||y||_q`` for ``A^T y = 0`` and 1/p + 1/q = 1.

    References
    ----------
    .. [1] Chan, Golub, Mulet, "A nonlinear primal-dual method for total variation-based image
       restoration", SIAM J. Sci. Comput. 20, 1999.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> A = rng.standard_normal((2000, 3))
    >>> b = A @ [1.0, 2.0, 3.0]
    >>> b[:400] += 1000 * rng.random(400)  # every fifth is far off
    >>> fit = qd.sketch.lp_regression(A, b, 1, sampling=None)
    >>> fit.x.round(9)
    array([1., 2., 3.])
    >>> bool(np.abs(np.linalg.lstsq(A, b)[0] - fit.x).max() > 10)
    True
    """
    rows = check_rows(A, "A", backend, n_threads)
    n, d = rows.shape
    right = arrays.to_numpy(b, "b")
    if right.shape != (n,):
        raise ValueError(f"b must have shape ({n},), got {right.shape}")
    checks.same_type(right, "b", rows.dtype, "A")
    checks.finite(right, "b")
    inputs.finite(rows.a, "A")
    p = lewis.check_power(p, high=8.0)
    if sampling is not None:
        checks.choice(sampling, "sampling", ("sensitivity", "lewis"))
    size = _size(sketch_size, n, d, p)
    if tol is None:
        tol = 1e-6 if rows.dtype == np.float32 else 1e-12
    tol = checks.positive(tol, "tol")
    max_iter = checks.integer(max_iter, "max_iter", low=0)
    seed = resolve_seed(seed)
    with threads.blas_limit(1):
        target = right.astype(np.float64)
        indices = weights = None
        part = rows
        if sampling is not None and size < n:
            indices, weights = _sample(rows, right, p, sampling, size, seed)
            part = Rows(rows.take(indices) * weights[:, None], "A", backend, n_threads)
            target = target[indices] * weights
        M = factorize(part, seed=seed).M
        basis = Rows(part.times(M, np.float64), "A", backend, n_threads)
        start, rest = _least_squares(part, basis, M, target)
        least = lp_newton.minimize(basis, rest, p, tol, max_iter, lp_newton.norm_p(target, p))
        x = (start + M @ least.z).astype(rows.dtype)
        wide = x.astype(np.float64)
        residual = right - rows.times(wide, np.float64)
        if rows.dtype != np.float64:
            left = residual if indices is None else target - part.times(wide, np.float64)
            least = lp_newton.rounded(
                least, lp_newton.norm_p(left, p), tol, lp_newton.norm_p(target, p), rows.dtype
            )
    if not least.converged:
        warnings.warn(
            f"lp_regression stopped after {least.iterations} iterations with a relative gap of "
            f"{least.gap:.3g}, above tol = {tol:.3g}",
            ConvergenceWarning,
            stacklevel=2,
        )
    wrap = inputs.wrapper(A)
    return LpResult(
        wrap(x),
        lp_newton.norm_p(residual, p),
        least.gap,
        least.iterations,
        None if indices is None else wrap(indices),
        None if weights is None else wrap(weights),
        least.converged,
    )


def _least_squares(
    rows: Rows, basis: Rows, M: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least-squares solution, once refined, and its residual.

    The basis is right to eps times the condition number only. What it does to what is left of b
    after the refinement is that much of the residual, not of b.
    """
    x, r = np.zeros(len(M)), b
    for _ in range(2):
        x = x + M @ (inputs.dense_of(basis.a).T @ r)
        r = b - rows.times(x, np.float64)
    return x, r


def _size(sketch_size: int | None, n: int, d: int, p: float) -> int:
    if sketch_size is not None:
        return checks.integer(sketch_size, "sketch_size", low=min(d + 1, n), high=n)
    return min(n, int(_ROWS * (d + 1) ** max(1.0, p / 2)))


def _sample(
    rows: Rows, b: np.ndarray, p: float, sampling: str, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    both: inputs.Rows
    if isinstance(rows.a, np.ndarray):
        both = np.column_stack((rows.a, b))
    else:
        both = sparse.csr_array(sparse.hstack((rows.a, sparse.csr_array(b[:, None])), "csr"))
    whole = Rows(both, "A", rows.backend, rows.n_threads)
    rule = sampling if sampling == "lewis" or p > 2 else "mixed"
    scores = row_sample.scores(whole, rule, p, seed)
    indices, q = row_sample.draw(scores, size, False, draws.Draws(seed, draws.ROWS, rows.backend))
    return indices, q ** (-1 / p)
