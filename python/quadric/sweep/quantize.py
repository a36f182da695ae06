"""Rounding with feedback."""

from quadric.arrays import Array
from quadric.sweep import sweep
from quadric.sweep.factorize import Factor
from quadric.sweep.grid import check_grid
from quadric.sweep.results import QuantizedMatrix


def quantize(
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
    cross: Array | None = None,
    cross_strength: float = 1.0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> QuantizedMatrix:
    """Round each column in turn, and let the later columns make up for the error.

    Parameters
    ----------
    W : array, shape (m, n)
        Weights (out, in); float32 or float64, as the factor.
    factor : Factor
        From :func:`factorize`.
    bits : {2, 3, 4, 8, "ternary"}, optional
        Levels of the grid: 2^bits, or 3.
    group_size : int from 1 to n, "tensor" or None, optional
        Weights of a row that share a scale; None is the whole row, "tensor" the whole matrix. The
        last group is smaller where the size does not divide n.
    symmetric : bool, optional
        Put 0 in the middle of the grid. Otherwise the grid is shifted to the range of the weights,
        which always includes 0. Ternary and symmetric is {-s, 0, s}.
    scale : {"minmax", "mse"}, optional
        Take the whole range of the weights, or search 80 narrower ranges for the least error.
    static_groups : bool, optional
        Groups are consecutive columns of `W`, and scales come from `W`. Otherwise groups follow the
        order of the sweep, and scales come from the weights that are current when a group begins.
    stale_scales : bool, optional
        Take the scales of groups from the weights as they were at the last multiple of 128 columns,
        as the original GPTQ code does.
    scale_dtype : {None, "float16", "bfloat16"}, optional
        Round the scales to this type first, so that they can be stored in it.
    mse_norm : float, optional
        Exponent of the error in the search for ``scale="mse"``: 2 is the mean square, 2.4 what the
        original GPTQ code has. Above 2 it costs about twice the time.
    cross : array, shape (n, n), optional
        ``G = (X' - X)^T X / tokens`` between the inputs X' of the uncompressed model and the inputs
        X that `factor` comes from: :meth:`HessianAccumulator.cross`. The target then is
        ``W (I + cross_strength * G H^-1)``, which maps X to the outputs ``W X'``, and the loss is
        against that target.
    cross_strength : float, optional
        How far to go there: 0 to 1.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment.

    Returns
    -------
    QuantizedMatrix
        With the exact loss of each row.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or an option is out of range.
    TypeError
        If the dtype of `W` is not that of the factor.

    Notes
    -----
    With D the change of the weights and ``H = R R^T`` in the order of the sweep, column j is
    rounded at ``W_j + sum_{i<j} D_i R_ij / R_jj``. This is GPTQ [1]_, and Babai's nearest plane on
    the reversed basis [2]_; ``loss = tr(D H D^T)`` comes for free. About m n^2 flops.

    The target under `cross` is the exact least-squares one; GPTAQ [3]_ keeps the part of it that
    acts on later columns only.

    Inputs that were never active get weight 0.

    References
    ----------
    .. [1] Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for
       Generative Pre-trained Transformers", 2022, arXiv:2210.17323.
    .. [2] Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane
       Algorithm", 2025, arXiv:2507.18553.
    .. [3] Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration",
       2025, arXiv:2504.02692.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((256, 16)) @ rng.standard_normal((16, 16))
    >>> W = rng.standard_normal((8, 16))
    >>> fac = qd.sweep.factorize(X.T @ X / 256)
    >>> q = qd.sweep.quantize(W, fac, bits=3, group_size=8)
    >>> q.codes.shape, q.scales.shape, q.codes.dtype
    ((8, 16), (8, 2), dtype('uint8'))
    >>> D = W - q.dequantize()
    >>> H = fac.R @ fac.R.T
    >>> np.allclose(q.loss, np.sum((D @ H) * D, axis=1))
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
    w = sweep.shift(w, factor, cross, cross_strength, n_threads)
    return sweep.quantized(W, w, factor, grid, backend=backend, n_threads=n_threads)
