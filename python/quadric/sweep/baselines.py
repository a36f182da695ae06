"""What the sweeps are measured against: the same results without feedback."""

from quadric.arrays import Array
from quadric.sweep import sweep
from quadric.sweep.factorize import Factor
from quadric.sweep.grid import check_grid
from quadric.sweep.pattern import check_pattern
from quadric.sweep.results import PrunedMatrix, QuantizedMatrix


def round_to_nearest(
    W: Array,
    *,
    factor: Factor | None = None,
    bits: int | str = 4,
    group_size: int | str | None = None,
    symmetric: bool = False,
    scale: str = "minmax",
    scale_dtype: str | None = None,
    mse_norm: float = 2.0,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    per_row: bool = False,
    block_size: int | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> QuantizedMatrix:
    """Round each weight to its nearest level, the smallest ones to 0 if asked.

    Parameters
    ----------
    W : array, shape (m, n)
        Weights (out, in); float32 or float64.
    factor : Factor, optional
        Gives the loss and the dead inputs. `pattern` and `block_size` then count columns in its
        order, as they do in the sweep that is to be compared.
    bits, group_size, symmetric, scale, scale_dtype, mse_norm
        As in :func:`quantize`; groups are consecutive columns of `W`.
    sparsity, pattern, per_row, block_size
        As in :func:`magnitude_prune`; nothing is pruned by default.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment.

    Returns
    -------
    QuantizedMatrix
        ``loss`` is None without a factor.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or an option is out of range.
    TypeError
        If `W` is neither float32 nor float64, or not of the factor's dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> W = np.array([[-1.0, 0.2, 0.5, 2.0]])
    >>> q = qd.sweep.round_to_nearest(W, bits=2)
    >>> q.codes, q.scales, q.zeros
    (array([[0, 1, 1, 3]], dtype=uint8), array([[1.]]), array([[1]], dtype=uint8))
    >>> q
    QuantizedMatrix(1 x 4, bits=2, group_size=None, symmetric=False)
    """
    w = sweep.check_weights(W, factor, required=False)
    grid = check_grid(
        w.shape[1],
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        scale=scale,
        scale_dtype=scale_dtype,
        mse_norm=mse_norm,
    )
    checked = check_pattern(
        w.shape[1],
        sparsity=sparsity,
        pattern=pattern,
        per_row=per_row,
        block_size=block_size,
        required=False,
    )
    return sweep.quantized(
        W, w, factor, grid, checked, feedback=False, backend=backend, n_threads=n_threads
    )


def magnitude_prune(
    W: Array,
    *,
    factor: Factor | None = None,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    per_row: bool = False,
    block_size: int | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> PrunedMatrix:
    """Zero the weights of smallest magnitude.

    Parameters
    ----------
    W : array, shape (m, n)
        Weights (out, in); float32 or float64.
    factor : Factor, optional
        Gives the loss and the dead inputs. `pattern` and `block_size` then count columns in its
        order, as they do in the sweep that is to be compared.
    sparsity : float, optional
        Share of the weights to zero, 0 to 1.
    pattern : (int, int), optional
        Keep n of every m columns, for ``(n, m)``. Give either `sparsity` or `pattern`.
    per_row : bool, optional
        Zero the same number of weights in every row.
    block_size : int or None, optional
        Columns among which `sparsity` chooses at a time; None is the whole matrix.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment.

    Returns
    -------
    PrunedMatrix
        ``loss`` is None without a factor.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or an option is out of range.
    TypeError
        If `W` is neither float32 nor float64, or not of the factor's dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> W = np.array([[-1.0, 0.2, 0.5, 2.0]])
    >>> qd.sweep.magnitude_prune(W, pattern=(1, 2)).weights
    array([[-1.,  0.,  0.,  2.]])
    """
    w = sweep.check_weights(W, factor, required=False)
    checked = check_pattern(
        w.shape[1], sparsity=sparsity, pattern=pattern, per_row=per_row, block_size=block_size
    )
    return sweep.pruned(W, w, factor, checked, feedback=False, backend=backend, n_threads=n_threads)
