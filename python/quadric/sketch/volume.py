"""Volume sampling: least squares from few rows whose solution is right on average."""

import numpy as np

from quadric import checks
from quadric.arrays import Array
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import draws, inputs
from quadric.sketch.dpp import ProjectionDPP
from quadric.sketch.row_sample import RowSample, categorical, flag
from quadric.sketch.rows import check_rows


def volume_sample(
    A: Array,
    k: int,
    *,
    rescaled: bool = True,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> RowSample:
    """Draw k rows S of A such that the least-squares solution from them has the mean of the whole.

    Parameters
    ----------
    A : array or scipy.sparse matrix, shape (n, d)
        float32 or float64, of any strides, of rank d.
    k : int
        Rows to draw, at least d; at most n unless `rescaled`.
    rescaled : bool, optional
        True: d rows of the projection DPP and k - d independent ones by leverage, with weights
        ``sqrt(d / (k l_i))``; a row may come several times. False: a subset of k different rows
        with ``P(S)`` proportional to ``det(A_S^T A_S)``, all of weight 1.
    seed : int, Generator or None, optional
        Same seed, same rows.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    RowSample
        With S the weighted rows: ``E[argmin ||S (A x - b)||] = argmin ||A x - b||`` for every b.
        With `rescaled` also ``E[(S A)^T S A] = A^T A``, and ``d log d + d / eps`` rows suffice for
        a residual within 1 + eps [1]_. Without, ``E[(A_S^T A_S)^-1] = (n - d + 1) / (k - d + 1)
        (A^T A)^-1`` [2]_ for rows in general position.

    Raises
    ------
    ValueError
        If `A` is empty, not finite or of rank below d, or `k` is out of range.
    TypeError
        If `A` is not float32 or float64.

    Notes
    -----
    ``det(A_S^T A_S)`` is the sum of ``det(A_T)^2`` over the subsets T of d rows (Cauchy and Binet),
    so a set T of the projection DPP, and k - d of the other rows drawn uniformly, follow the law
    of volume sampling.

    References
    ----------
    .. [1] Derezinski, Warmuth, Hsu, "Leveraged volume sampling for linear regression", NeurIPS
       2018, arXiv:1802.06749.
    .. [2] Derezinski, Warmuth, "Reverse iterative volume sampling for linear regression", JMLR 19,
       2018, arXiv:1806.01969.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> A, b = rng.standard_normal((500, 3)), rng.standard_normal(500)
    >>> indices, weights = qd.sketch.volume_sample(A, 12)
    >>> x = np.linalg.lstsq(weights[:, None] * A[indices], weights * b[indices])[0]
    >>> x.shape
    (3,)
    """
    rescaled = flag(rescaled, "rescaled")
    rows = check_rows(A, "A", backend, n_threads)
    n, d = rows.shape
    k = checks.integer(k, "k", low=d, high=None if rescaled else n)
    process = ProjectionDPP.of(rows)
    if process.rank < d:
        raise ValueError(f"A must have rank d = {d}, got rank {process.rank}")
    seed = resolve_seed(seed)
    first = process.sample(seed=seed)
    source = draws.Draws(seed, draws.VOLUME, backend)
    if rescaled:
        more = categorical(process.cumulative, source.uniforms(k - d))
        indices = np.sort(np.concatenate((first, more)))
        weights = np.sqrt(d / (k * process.leverage[indices]))
    else:
        keys = source.uniforms(n)
        keys[first] = -1.0
        indices = np.sort(np.argpartition(keys, k - 1)[:k])
        weights = np.ones(k)
    wrap = inputs.wrapper(A)
    return RowSample(wrap(indices), wrap(weights.astype(rows.dtype)), n)
