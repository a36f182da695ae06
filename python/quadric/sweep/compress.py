"""Rounding and zeroing in one sweep."""

from quadric.arrays import Array
from quadric.sweep import sweep
from quadric.sweep.factorize import Factor
from quadric.sweep.grid import check_grid
from quadric.sweep.pattern import check_pattern
from quadric.sweep.results import QuantizedMatrix


def compress(
    W: Array,
    factor: Factor,
    *,
    bits: int | str = 4,
    group_size: int | str | None = None,
    symmetric: bool = False,
    scale: str = "minmax",
    static_groups: bool = False,
    stale_scales: bool = False,
    scale_dtype: str | None = None,
    mse_norm: float = 2.0,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    per_row: bool = False,
    block_size: int | None = 128,
    cross: Array | None = None,
    cross_strength: float = 1.0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> QuantizedMatrix:
    """Prune and quantize together, so that the later columns make up for both errors at once.

    Parameters
    ----------
    W : array, shape (m, n)
        Weights (out, in); float32 or float64, as the factor.
    factor : Factor
        From :func:`factorize`.
    bits, group_size, symmetric, scale, static_groups, stale_scales, scale_dtype, mse_norm
        As in :func:`quantize`. With `pattern` (n, m), a group that follows the sweep is a multiple
        of m columns.
    sparsity, pattern, per_row, block_size
        As in :func:`prune`.
    cross, cross_strength
        As in :func:`quantize`.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment.

    Returns
    -------
    QuantizedMatrix
        With ``mask``; a pruned weight has the code of the zero point, which is exactly 0.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or an option is out of range.
    TypeError
        If the dtype of `W` is not that of the factor.

    Notes
    -----
    A column is pruned first, then rounded; its error is what both did to it, as in SparseGPT [1]_.

    References
    ----------
    .. [1] Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
       One-Shot", 2023, arXiv:2301.00774, section 3.5.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((256, 16)) @ rng.standard_normal((16, 16))
    >>> W = rng.standard_normal((8, 16))
    >>> fac = qd.sweep.factorize(X.T @ X / 256)
    >>> c = qd.sweep.compress(W, fac, bits=4, group_size=8, sparsity=0.5)
    >>> c.sparsity
    0.5
    >>> bool(np.all(c.dequantize()[~c.mask] == 0))
    True
    """
    w = sweep.check_weights(W, factor)
    grid = check_grid(
        w.shape[1],
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        scale=scale,
        scale_dtype=scale_dtype,
        mse_norm=mse_norm,
        static_groups=static_groups,
        stale_scales=stale_scales,
    )
    checked = check_pattern(
        w.shape[1],
        sparsity=sparsity,
        pattern=pattern,
        per_row=per_row,
        block_size=block_size,
        grid=grid,
    )
    w = sweep.shift(w, factor, cross, cross_strength, n_threads)
    return sweep.quantized(W, w, factor, grid, checked, backend=backend, n_threads=n_threads)
