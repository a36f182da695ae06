"""Few nonzero coefficients from few samples, when columns are correlated."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg

from quadric import arrays, checks, threads
from quadric.arrays import Array
from quadric.errors import ConvergenceWarning
from quadric.sketch import inputs, scaling
from quadric.sketch.linear_system import Floats, Indices

HISTORY = np.dtype([("penalty", "f8"), ("nonzero", "i8"), ("residual", "f8")])
"""A penalty: its size relative to the largest one of use, nonzero coefficients outside the basis,
||b - A x|| after the support was cut down to k."""

RATIO = 0.75  # from a penalty to the next
LEAST = 1e-4  # penalty, relative to the first
SLACK = 1e-6  # relative, of the optimality conditions of a lasso
CHANCE = 1.5  # times the mean squared correlation of random columns is taken for chance


@dataclass(frozen=True, slots=True, eq=False)
class SparseRegressionResult:
    """What `sparse_regression` found.

    Attributes
    ----------
    x : array, shape (d,)
        At most k nonzero coefficients, of least squares on them; in the dtype and array type of A.
    support : ndarray of int64
        Where they are, rising.
    residual : array, shape (n,)
        ``b - A x``.
    residual_norm : float
    lasso : array, shape (d,)
        The solution of the partial lasso that `x` was cut down from.
    penalty : float
        Its penalty, relative to the smallest one that makes it 0 outside the basis.
    basis : ndarray of int64
        Columns that were not penalized, in the order in which they were chosen.
    converged : bool
        Whether every lasso was solved to its tolerance.
    history : structured array
        One row per penalty: penalty, nonzero, residual.
    """

    x: Array
    support: Indices
    residual: Array
    residual_norm: float
    lasso: Array
    penalty: float
    basis: Indices
    converged: bool
    history: np.ndarray


def sparse_regression(
    A: Array,
    b: Array,
    k: int,
    *,
    basis: Array | Literal["auto"] = "auto",
    max_basis: int | None = None,
    max_iter: int = 1000,
    swaps: int | None = None,
    check_finite: bool = True,
    n_threads: int | None = None,
) -> SparseRegressionResult:
    """Find an x with at most k nonzero entries and A x near b, from few rows.

    The lasso fails where columns are strongly correlated. If the support is random, it mostly
    fails because of few directions that all columns share: here these are found first, as a basis
    of columns that are not penalized.

    Parameters
    ----------
    A : array or sparse matrix, shape (n, d)
        Float32 or float64; n is usually below d. Columns may have any scale.
    b : array, shape (n,)
        Of the dtype of A.
    k : int
        Nonzero coefficients, from 1 to the smaller of n - 1 and d.
    basis : "auto" or array of int, optional
        Columns that are not penalized, or the rule of the notes. An empty array is the plain lasso.
    max_basis : int, optional
        Most columns that the rule may take; by default a fourth of the rows.
    max_iter : int, optional
        Most iterations for each penalty and working set.
    swaps : int, optional
        Most exchanges of a column of the support for a better one at the end; 2 k by default.
    check_finite : bool, optional
        Look for NaN and Inf in A.
    n_threads : int, optional
        Limits the BLAS. There is nothing random in the method.

    Returns
    -------
    SparseRegressionResult

    Warns
    -----
    ConvergenceWarning
        If a lasso was not solved to its tolerance.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or k or the basis is out of range.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    The two phases are those that make sparse regression easy for random supports [1]_, first a set
    of columns that conditions the problem, then a lasso that does not penalize them. The rules in
    them are simpler, and without its guarantee:

    1. *Basis.* Columns Z are scaled to unit norm. Again and again the column z that explains most
       of the others, ``max ||Z^T z||^2 / ||z||^2``, joins the basis U and is projected out of all
       of them. This ends when the mean squared correlation,
       ``||Z^T Z||_F^2 / (sum ||z_j||^2)^2``, is at most 1.5 times what random columns have,
       ``1 / (n - |U|) + 1 / d``.
    2. *Partial lasso.* ``min ||b - A_U v - Z w||^2 / 2 + penalty ||w||_1`` over v and w, with the
       columns of Z projected and scaled again; for penalties that fall by a factor of 0.75, each
       from the solution before it, until there are more nonzero coefficients than a support of k
       can explain.
    3. *Cut.* For each penalty, the columns of U and those with a coefficient are fitted by least
       squares, and the one whose loss costs least is left out until k are left. The best of these
       supports is kept, and columns are exchanged while that lowers the residual.

    References
    ----------
    .. [1] G. Chandrasekaran, R. Meka, K. Stavropoulos. Sparse linear regression is easy on random
       supports. 2025. arXiv:2511.06211

    Examples
    --------
    Columns that share three strong factors:

    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> factors = rng.standard_normal((80, 3)) @ rng.standard_normal((3, 400))
    >>> A = 5 * factors + rng.standard_normal((80, 400))
    >>> x = np.zeros(400)
    >>> x[[10, 150, 333]] = [1.0, -2.0, 1.5]
    >>> result = qd.sketch.sparse_regression(A, A @ x, 3)
    >>> result.support
    array([ 10, 150, 333])
    >>> bool(np.abs(result.x - x).max() < 1e-12)
    True
    """
    rows = inputs.rows_of(A, "A")
    if A.ndim != 2:
        raise ValueError(f"A must be a matrix, got an array of shape {A.shape}")
    n, d = rows.shape
    if n < 2 or d < 1:
        raise ValueError(f"A must have at least 2 rows and a column, got shape {A.shape}")
    given = arrays.to_numpy(b, "b")
    if given.shape != (n,):
        raise ValueError(f"b must have shape ({n},), got {given.shape}")
    checks.same_type(given, "b", rows.dtype, "A")
    checks.finite(given, "b")
    k = checks.integer(k, "k", 1, min(n - 1, d))
    most = checks.integer(max_iter, "max_iter", low=1)
    exchanges = 2 * k if swaps is None else checks.integer(swaps, "swaps", low=0)
    limit = max(n // 4, 0) if max_basis is None else checks.integer(max_basis, "max_basis", 0, n)
    chosen = None if isinstance(basis, str) and basis == "auto" else _indices(basis, d, n)
    if check_finite:
        inputs.finite(rows, "A")

    with threads.blas_limit(None if n_threads is None else threads.resolve(n_threads)):
        M = inputs.dense_of(rows).astype(np.float64)
        columns, exponents = scaling.moderate(given.astype(np.float64)[:, None])
        y, unit = columns[:, 0], int(exponents[0])
        sizes = scaling.largest(M)
        sizes[sizes == 0] = 1.0
        M /= sizes  # so that no square overflows
        norms = np.linalg.norm(M, axis=0)
        norms[norms == 0] = 1.0
        M /= norms
        if chosen is None:
            chosen = _basis(M, min(limit, d))
        found = _fit(M, y, k, chosen, most)
        support, path, lasso, penalty, converged = found
        support = _exchange(M, y, support, exchanges)
        x = np.zeros(d)
        x[support] = np.linalg.lstsq(M[:, support], y)[0]
        residual = y - M @ x
    if not converged:
        warnings.warn(
            f"sparse_regression stopped a lasso after max_iter={most} iterations, before it was"
            " solved",
            ConvergenceWarning,
            stacklevel=2,
        )
    sizes, powers = np.frexp(sizes)
    coefficients, path_end = (
        scaling.restored((v / norms / sizes)[None], unit - powers, rows.dtype) for v in (x, lasso)
    )
    if coefficients is None or path_end is None:
        raise ValueError(f"A must have columns, and b a size, for an x that {rows.dtype} can hold")
    wrap = inputs.wrapper(A)
    history = np.array(path, HISTORY)
    with np.errstate(over="ignore", under="ignore"):
        residual = np.ldexp(residual, unit)
        history["residual"] = np.ldexp(history["residual"], unit)
    return SparseRegressionResult(
        wrap(coefficients[0]),
        np.flatnonzero(x).astype(np.int64),
        wrap(residual.astype(rows.dtype)),
        scaling.norm(residual),
        wrap(path_end[0]),
        penalty,
        chosen,
        converged,
        history,
    )


def _indices(basis: Any, d: int, n: int) -> Indices:
    array = np.asarray(basis)
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f'basis must be "auto" or a vector of integers, got {basis!r}')
    if array.min() < 0 or array.max() >= d or len(np.unique(array)) < len(array):
        raise ValueError(f"basis must hold distinct columns from 0 to {d - 1}")
    if len(array) > n - 2:
        raise ValueError(f"basis must have at most {n - 2} columns, got {len(array)}")
    return array.astype(np.int64)


def _basis(columns: Floats, most: int) -> Indices:
    """Return columns that explain what many share, in the order in which they were chosen."""
    n, d = columns.shape
    Z, chosen = columns.copy(), np.zeros(0, np.int64)
    while len(chosen) < min(most, n - 2):
        squares = np.einsum("ij,ij->j", Z, Z)
        explained = _explained(Z)
        chance = 1 / (n - len(chosen)) + 1 / d
        whole = squares.sum()
        # What is left may be rounding alone.
        if whole <= d * np.finfo(float).eps or explained.sum() <= CHANCE * chance * whole**2:
            break
        gains = np.divide(explained, squares, out=np.zeros(d), where=squares > 1e-12)
        best = int(gains.argmax())
        chosen = np.append(chosen, best)
        q = Z[:, best] / math.sqrt(squares[best])
        for _ in range(2):  # twice is enough for orthogonality to rounding
            Z -= np.outer(q, q @ Z)
        Z[:, best] = 0.0
    return chosen


def _explained(Z: Floats) -> Floats:
    """Return ||Z^T z||^2 for each column z."""
    n, d = Z.shape
    if d <= n:
        gram = Z.T @ Z
        return np.asarray(np.einsum("ij,ij->j", gram, gram))
    return np.asarray(np.einsum("ij,ij->j", Z, (Z @ Z.T) @ Z))


def _fit(
    M: Floats, y: Floats, k: int, basis: Indices, max_iter: int
) -> tuple[Indices, list[tuple[float, int, float]], Floats, float, bool]:
    """Return the best support, the path, and the lasso that it came from."""
    n, d = M.shape
    U = np.linalg.qr(M[:, basis])[0]
    Z, target = M - U @ (U.T @ M), y - U @ (U.T @ y)
    scales = np.linalg.norm(Z, axis=0)
    # Columns in the span of the basis have a direction left that is rounding.
    alive = scales > 1e-10
    alive[basis] = False
    Z[:, alive] /= scales[alive]
    Z[:, ~alive] = 0.0
    top = float(np.abs(Z.T @ target).max(initial=0.0))
    enough = min(max(3 * k, k + 10), n - 1 - len(basis))
    w, converged = np.zeros(d), True
    path: list[tuple[float, int, float]] = []
    best: tuple[float, Indices, Floats, float] | None = None
    penalty = 1.0
    while best is None or (penalty >= LEAST and top > 0):
        w, solved = _lasso(Z, target, penalty * top, w, max_iter)
        converged = converged and solved
        active = np.flatnonzero(w)
        if len(active) > enough and best is not None:
            break
        candidates = np.union1d(basis, active)
        support = _cut(M, y, candidates, k)
        loss = _loss(M, y, support)
        path.append((penalty, len(active), loss))
        if best is None or loss < best[0]:
            best = loss, support, w.copy(), penalty
        if loss <= 8 * n * np.finfo(float).eps * np.linalg.norm(y):
            break  # exact: nothing is left to find
        penalty *= RATIO
    loss, support, w, penalty = best
    full = np.zeros(d)
    full[alive] = w[alive] / scales[alive]
    full[basis] = np.linalg.lstsq(M[:, basis], y - M @ full)[0] if len(basis) else 0.0
    return support, path, full, penalty, converged


def _lasso(
    Z: Floats, y: Floats, penalty: float, start: Floats, max_iter: int
) -> tuple[Floats, bool]:
    """Minimize ||y - Z w||^2 / 2 + penalty ||w||_1 on growing sets of columns."""
    w, solved = start.copy(), True
    working = np.flatnonzero(w)
    for _ in range(100):
        slopes = np.abs(Z.T @ (y - Z @ w))
        slopes[working] = 0.0
        new = np.flatnonzero(slopes > (1 + SLACK) * penalty)
        if not len(new):
            return w, solved
        new = new[np.argsort(-slopes[new], kind="stable")[: max(10, len(working))]]
        working = np.concatenate([working, new])
        part = Z[:, working]
        w[working], solved = _small_lasso(part.T @ part, part.T @ y, penalty, w[working], max_iter)
    return w, False


def _small_lasso(
    gram: Floats, b: Floats, penalty: float, w: Floats, max_iter: int
) -> tuple[Floats, bool]:
    """The same from the Gram matrix, by proximal gradients with momentum that restarts."""
    step = 1 / float(np.linalg.eigvalsh(gram)[-1])
    point, weight = w, 1.0
    for _ in range(max_iter):
        slope = gram @ point - b
        moved = point - step * slope
        following = np.sign(moved) * np.maximum(np.abs(moved) - step * penalty, 0.0)
        if (point - following) @ (following - w) > 0:  # it overshoots
            weight = 1.0
        heavier = (1 + math.sqrt(1 + 4 * weight**2)) / 2
        point = following + (weight - 1) / heavier * (following - w)
        w, weight = following, heavier
        slope = gram @ w - b
        wrong = np.where(w == 0, np.abs(slope) - penalty, np.abs(slope + np.sign(w) * penalty))
        if wrong.max() <= SLACK * penalty:
            return w, True
    return w, False


def _cut(M: Floats, y: Floats, candidates: Indices, k: int) -> Indices:
    """Leave out the column whose loss costs least until k are left."""
    if len(candidates) <= k:
        return candidates
    Q, R, order = scipy.linalg.qr(M[:, candidates], mode="economic", pivoting=True)
    sizes = np.abs(np.diagonal(R))
    rank = int((sizes > len(M) * np.finfo(float).eps * sizes[0]).sum())
    kept = candidates[order[:rank]]
    inverse = scipy.linalg.solve_triangular(R[:rank, :rank], np.eye(rank))
    x, spread = inverse @ (Q[:, :rank].T @ y), inverse @ inverse.T
    while len(kept) > k:
        worst = int((x**2 / np.diagonal(spread)).argmin())
        ratio = spread[:, worst] / spread[worst, worst]
        x, spread = x - ratio * x[worst], spread - np.outer(ratio, spread[worst])
        stay = np.arange(len(kept)) != worst
        kept, x, spread = kept[stay], x[stay], spread[np.ix_(stay, stay)]
    return np.sort(kept)


def _exchange(M: Floats, y: Floats, support: Indices, most: int) -> Indices:
    """Exchange columns for better ones, each time the first exchange that helps."""
    loss = _loss(M, y, support)
    done = 0
    while done < most:
        for j in range(len(support)):
            rest = np.delete(support, j)
            U = np.linalg.qr(M[:, rest])[0]
            left = y - U @ (U.T @ y)
            # After the rest is projected out, what a column takes off the squared residual.
            squares = 1 - np.einsum("ij,ij->j", U.T @ M, U.T @ M)
            usable = squares > 1e-10
            gains = np.divide((left @ M) ** 2, squares, out=np.zeros(M.shape[1]), where=usable)
            best = int(gains.argmax())
            trial = np.sort(np.append(rest, best))
            if best not in support and (found := _loss(M, y, trial)) < loss * (1 - 1e-10):
                support, loss, done = trial, found, done + 1
                break
        else:
            break
    return support


def _loss(M: Floats, y: Floats, support: Indices) -> float:
    x = np.linalg.lstsq(M[:, support], y)[0]
    return float(np.linalg.norm(y - M[:, support] @ x))
