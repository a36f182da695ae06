"""Leverage scores: how much each row of a matrix matters to least squares."""

import numpy as np

from quadric import checks, threads
from quadric.arrays import Array
from quadric.device import DeviceArray
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import draws, inputs
from quadric.sketch.rows import Factor, Rows, check_rows, factorize, scores_on_gpu

_COLUMNS = 32  # of a rough estimate


def leverage_scores(
    A: Array,
    *,
    ridge: float = 0.0,
    approximate: bool | int = False,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Array:
    """Return ``a_i^T (A^T A + ridge I)^+ a_i`` for every row ``a_i`` of A.

    Parameters
    ----------
    A : array or scipy.sparse matrix, shape (n, d)
        float32 or float64, of any strides, rank and shape.
    ridge : float, optional
        Not negative. Above 0 the scores are those of the first n rows of ``[A; sqrt(ridge) I]``.
    approximate : bool or int, optional
        Estimate the scores from that many random directions; True is 32. The relative standard
        deviation of a score is ``sqrt(2 / approximate)``, on top of the error of the sketch.
    seed : int, Generator or None, optional
        Of the sketch and of the directions. Exact scores differ between seeds by rounding only.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    array, shape (n,)
        Scores between 0 and 1, of the dtype of `A`. Without ridge they sum to the rank of A.

    Raises
    ------
    ValueError
        If `A` is empty or not finite, or a number is out of range.
    TypeError
        If `A` is not float32 or float64.
    LinAlgError
        If `ridge` is above 0 but lost against the rounding of a rank-deficient A.

    See Also
    --------
    lp_sensitivities, lewis_weights : what they become for other powers than 2.
    sample_rows : draws rows by such scores.

    Notes
    -----
    A sparse-sign sketch of 4 d + 64 rows gives ``S A = Q1 R1``. One more pass gives
    ``G = (A R1^-1)^T (A R1^-1)``, whose Cholesky factor C makes ``R = C R1`` as good a factor of A
    as that of a QR factorization, and a last pass the scores ``||a_i R^-1||^2``: about 4 n d^2
    flops, all in matrix products. The Gram matrix of A alone would lose the square of its condition
    number. The error of a score is a few eps times the condition number that A has with columns of
    norm 1.

    With `approximate`, R is that of a sketch of 16 d + 64 rows, and the scores are
    ``||a_i R^-1 W||^2 / approximate`` for normal W, scaled to sum to the rank [1]_.

    References
    ----------
    .. [1] Drineas, Magdon-Ismail, Mahoney, Woodruff, "Fast approximation of matrix coherence and
       statistical leverage", JMLR 13, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.random.default_rng(0).standard_normal((1000, 3))
    >>> A[7] *= 100  # a row that no other can stand in for
    >>> scores = qd.sketch.leverage_scores(A)
    >>> round(float(scores.sum()), 9), bool(scores[7] > 0.9)
    (3.0, True)
    """
    rows = check_rows(A, "A", backend, n_threads, gpu=True)
    ridge = checks.real(ridge, "ridge", low=0.0)
    columns = directions(approximate)
    seed = resolve_seed(seed)
    if isinstance(rows.a, DeviceArray) and not columns:
        found = scores_on_gpu(rows, ridge=ridge, seed=seed)
        if found is not None:
            return found.finished()
    with threads.blas_limit(1):
        factor = factorize(rows, ridge=ridge, exact=not columns, seed=seed)
        result = estimate(rows, factor, columns, seed) if columns else rows.norms(factor.M)
        if columns and not ridge and (total := result.sum()) > 0:
            result *= factor.rank / total
    if not np.isfinite(result).all():
        rows.refuse_what_is_not_finite()
    return inputs.wrapper(A)(np.clip(result, 0.0, 1.0).astype(rows.dtype))


def estimate(rows: Rows, factor: Factor, columns: int, seed: int) -> np.ndarray:
    """Return the squared norms of the rows of ``A M`` from random directions."""
    normals = draws.Draws(seed, draws.LEVERAGE, rows.backend).normals(factor.rank * columns)
    return rows.norms(factor.M @ normals.reshape(factor.rank, columns) / np.sqrt(columns))


def directions(approximate: bool | int) -> int:
    if isinstance(approximate, bool | np.bool_):
        return _COLUMNS if approximate else 0
    return checks.integer(approximate, "approximate", low=1)
