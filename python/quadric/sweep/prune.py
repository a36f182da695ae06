"""Zeroing with feedback."""

from quadric.arrays import Array
from quadric.sweep import sweep
from quadric.sweep.factorize import Factor
from quadric.sweep.pattern import check_pattern
from quadric.sweep.results import PrunedMatrix


def prune(
    W: Array,
    factor: Factor,
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    per_row: bool = False,
    block_size: int | None = 128,
    cross: Array | None = None,
    cross_strength: float = 1.0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> PrunedMatrix:
    """Zero the least important weights, and let the later columns make up for them.

    Parameters
    ----------
    W : array, shape (m, n)
        Weights (out, in); float32 or float64, as the factor.
    factor : Factor
        From :func:`factorize`.
    sparsity : float, optional
        Share of the weights to zero, 0 to 1.
    pattern : (int, int), optional
        Keep at most n of every m consecutive columns of the sweep, for ``(n, m)``; m divides the
        number of columns. Give either `sparsity` or `pattern`. Hardware that wants 2:4 wants it in
        the original columns: use a factor in natural order.
    per_row : bool, optional
        Zero the same number of weights in every row, instead of the least important of all rows.
    block_size : int or None, optional
        Columns among which `sparsity` chooses at a time; None is all of them. Later blocks choose
        with knowledge of what the earlier ones did.
    cross : array, shape (n, n), optional
        As in :func:`quantize`.
    cross_strength : float, optional
        As in :func:`quantize`.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment.

    Returns
    -------
    PrunedMatrix
        With the exact loss of each row.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or an option is out of range.
    TypeError
        If the dtype of `W` is not that of the factor.

    Notes
    -----
    A weight w of column j is worth ``w^2 R_jj^2`` at the time its block is reached: what the loss
    grows by if it becomes 0 and the later columns adapt. This is SparseGPT [1]_.

    References
    ----------
    .. [1] Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
       One-Shot", 2023, arXiv:2301.00774.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((256, 16)) @ rng.standard_normal((16, 16))
    >>> W = rng.standard_normal((8, 16))
    >>> fac = qd.sweep.factorize(X.T @ X / 256)
    >>> p = qd.sweep.prune(W, fac, pattern=(2, 4))
    >>> p.mask.reshape(8, 4, 4).sum(axis=2).max()
    np.int64(2)
    >>> magnitude = qd.sweep.magnitude_prune(W, factor=fac, pattern=(2, 4))
    >>> bool(p.loss.sum() < magnitude.loss.sum())
    True
    """
    w = sweep.check_weights(W, factor)
    checked = check_pattern(
        w.shape[1], sparsity=sparsity, pattern=pattern, per_row=per_row, block_size=block_size
    )
    w = sweep.shift(w, factor, cross, cross_strength, n_threads)
    return sweep.pruned(W, w, factor, checked, backend=backend, n_threads=n_threads)
