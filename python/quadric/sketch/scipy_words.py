"""Functions of SciPy by its own words, so that swapping the import works."""

from typing import Any

import numpy as np
from scipy import sparse

from quadric import arrays, checks
from quadric.arrays import Array
from quadric.sketch import inputs
from quadric.sketch.sparse import SparseSign, stacked


def clarkson_woodruff_transform(
    input_matrix: Array,
    sketch_size: int,
    rng: Any = None,
    *,
    seed: Any = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Array:
    """Sketch a matrix with a CountSketch: :func:`scipy.linalg.clarkson_woodruff_transform`.

    Parameters
    ----------
    input_matrix : array, list or sparse matrix, shape (..., n, d)
        float32 or float64. All matrices of a batch are sketched by the same operator.
    sketch_size : int
        Rows of the sketch.
    rng : int, Generator or None, optional
        An integer below 2^64 is the seed of :func:`count_sketch`. None takes fresh entropy, as in
        SciPy: two calls give different sketches. Anything else goes through
        :func:`numpy.random.default_rng`.
    seed : optional
        The older word for `rng`.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. The result does not depend on it.

    Returns
    -------
    array, shape (..., sketch_size, d)
        Of the dtype of `input_matrix`; sparse if that is.

    Raises
    ------
    ValueError, TypeError
        If a shape, number or dtype does not fit, or an entry is not finite.

    Notes
    -----
    The random numbers are others than SciPy's, so the sketch is another one of the same kind.
    Integer matrices are refused, as everywhere here: ``input_matrix.astype(float)`` converts them.

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.sketch import clarkson_woodruff_transform
    >>> A = np.random.default_rng(0).standard_normal((15_000, 100))
    >>> SA = clarkson_woodruff_transform(A, 200, rng=0)
    >>> SA.shape
    (200, 100)
    >>> bool(abs(np.linalg.norm(SA) / np.linalg.norm(A) - 1) < 0.05)
    True
    """
    if rng is not None and seed is not None:
        raise ValueError("seed must be left out where rng is given: it is the older word for it")
    size = checks.integer(sketch_size, "sketch_size", low=1)
    input_matrix = inputs.listed(input_matrix, "input_matrix")
    source = _source(seed if rng is None else rng, "seed" if rng is None else "rng")
    if sparse.issparse(input_matrix):
        rows = inputs.rows_of(input_matrix, "input_matrix")
        inputs.finite(rows, "input_matrix")
        S = _operator(size, rows.shape[0], source, backend, n_threads)
        product = S.to_sparse(rows.dtype) @ rows
        is_matrix = isinstance(input_matrix, sparse.spmatrix)
        return sparse.csr_matrix(product) if is_matrix else sparse.csr_array(product)
    a = arrays.to_numpy(input_matrix, "input_matrix")
    checks.floating(a, "input_matrix")
    if a.ndim < 1:
        raise ValueError("input_matrix must have shape (..., n, d), got a scalar")
    stack = a.reshape(-1, 1) if a.ndim == 1 else a
    S = _operator(size, stack.shape[-2], source, backend, n_threads)
    out = np.empty((*stack.shape[:-2], size, stack.shape[-1]), a.dtype)
    for at in np.ndindex(stack.shape[:-2]):
        out[at] = S._sketch(stack[at])
    inputs.finite_result(out, "its sketch", (a, "input_matrix"))
    return arrays.like(input_matrix)(out[:, 0] if a.ndim == 1 else out)


def _source(rng: Any, name: str) -> Any:
    if rng is None or isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, int | np.integer):
        return checks.integer(rng, name, low=0, high=2**64 - 1)
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an integer, a Generator or None: {error}") from None


def _operator(m: int, n: int, seed: Any, backend: str | None, n_threads: int | None) -> SparseSign:
    """Return a CountSketch, also one with more rows than columns, as SciPy does."""
    if n < 1:
        raise ValueError("input_matrix must have at least one row, got none")
    return stacked(m, n, 1, seed, backend, n_threads)
