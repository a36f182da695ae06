"""Results of one or a few passes over a Dask array."""

from typing import Any

import dask.array as da
import numpy as np

from quadric import checks, threads
from quadric import sketch as plain
from quadric.adapters.dask.chunks import beside, blame, chunked, total
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import leverage
from quadric.sketch.lstsq_passes import Passes
from quadric.sketch.products import ResidualGradient
from quadric.sketch.rows import Rows, factorize


def sketch(S: plain.SketchingOperator, A: da.Array) -> da.Array:
    """Return ``S @ A`` for a Dask array A.

    Each chunk is sketched by the columns of S that belong to it, and the sketches are added.

    Parameters
    ----------
    S : SketchingOperator, shape (m, n)
        Any operator of :mod:`quadric.sketch`.
    A : dask.array.Array, shape (n, d), float32 or float64
        Cut into chunks of whole rows.

    Returns
    -------
    dask.array.Array, shape (m, d)
        One chunk, of the dtype of A. It differs from the plain ``S @ A`` by the rounding of the
        sum over chunks.

    Raises
    ------
    ValueError
        If A is cut between columns, has unknown chunks or does not fit S; when computed, if an
        entry is not finite.
    TypeError
        If A is no Dask array, or neither float32 nor float64.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import quadric as qd
    >>> import quadric.adapters.dask as qdask
    >>> A = np.random.default_rng(0).standard_normal((3000, 4))
    >>> S = qd.sketch.gaussian(40, 3000)
    >>> lazy = qdask.sketch(S, da.from_array(A, chunks=(700, 4)))
    >>> bool(np.abs(lazy.compute() - S @ A).max() < 1e-13)
    True
    """
    if not isinstance(S, plain.SketchingOperator):
        raise TypeError(f"S must be a sketching operator, got {type(S).__name__}")
    rows = chunked(A, "A", None, None)
    if rows.shape[0] != S.shape[1]:
        raise ValueError(f"A must have {S.shape[1]} rows to go with S, got shape {A.shape}")
    return da.from_delayed(rows.sketched(S), (S.shape[0], A.shape[1]), A.dtype)


def gram(
    A: da.Array,
    *,
    weights: np.ndarray | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> da.Array:
    """Return ``A^T A``, or ``A^T diag(weights) A``, of a Dask array A.

    Parameters
    ----------
    A : dask.array.Array, shape (n, d), float32 or float64
        Cut into chunks of whole rows.
    weights : array, shape (n,), optional
        Of the rows.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        Threads on a worker; None follows its environment. It does not change the result.

    Returns
    -------
    dask.array.Array, shape (d, d), float64
        One chunk, exactly symmetric. Blocks of rows are multiplied in the dtype of A and added up
        in float64.

    Raises
    ------
    ValueError
        If A is cut between columns or has unknown chunks; when computed, if an entry is not finite.
    TypeError
        If A is no Dask array, or neither float32 nor float64.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import quadric.adapters.dask as qdask
    >>> A = da.from_array(np.arange(8.0).reshape(4, 2), chunks=(2, 2))
    >>> qdask.gram(A).compute()
    array([[56., 68.],
           [68., 84.]])
    """
    rows = chunked(A, "A", backend, n_threads)
    if weights is not None:
        weights = checks.vector(weights, "weights", rows.shape[0], np.dtype(np.float64), "the sums")
    d = rows.shape[1]
    return da.from_delayed(rows.weighted_gram(weights), (d, d), np.float64)


def residual_gradient(
    A: da.Array,
    x: np.ndarray,
    b: Any = None,
    *,
    backend: str | None = None,
    n_threads: int | None = None,
) -> ResidualGradient:
    """Return ``g = A^T r``, ``r = b - A x`` and the norm of r, in one read of a Dask array A.

    Parameters
    ----------
    A : dask.array.Array, shape (n, d), float32 or float64
        Cut into chunks of whole rows.
    x : array, shape (d,) or (d, k)
        Of the dtype of A.
    b : dask.array.Array or array, shape (n,) or (n, k), optional
        Of the dtype of A. Without it ``r = A x``.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        Threads on a worker; None follows its environment. It does not change the result.

    Returns
    -------
    gradient : dask.array.Array, shape (d,) or (d, k)
        One chunk, of the dtype of A.
    residual : dask.array.Array, shape (n,) or (n, k)
        Cut like A, of its dtype.
    norm : dask.array.Array, shape () or (k,)
        Norms of the columns of the residual.

    Raises
    ------
    ValueError
        If A is cut between columns or has unknown chunks, or a shape does not fit; when computed,
        if an entry is not finite.
    TypeError
        If A is no Dask array, or a dtype does not fit.

    See Also
    --------
    quadric.sketch.residual_gradient : the same of an array.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import numpy as np
    >>> import quadric.adapters.dask as qdask
    >>> A = da.from_array(np.arange(8.0).reshape(4, 2), chunks=(2, 2))
    >>> g, r, norm = dask.compute(*qdask.residual_gradient(A, np.ones(2), np.ones(4)))
    >>> g, r, round(float(norm), 6)
    (array([-112., -136.]), array([  0.,  -4.,  -8., -12.]), 14.96663)
    """
    rows = chunked(A, "A", backend, n_threads)
    x = np.asarray(x)
    if x.ndim not in (1, 2) or x.shape[0] != rows.shape[1]:
        d = rows.shape[1]
        raise ValueError(f"x must have shape ({d},) or ({d}, k), got {x.shape}")
    checks.same_type(x, "x", rows.dtype, "A")
    checks.finite(x, "x")
    side = None if b is None else beside(b, "b", rows)
    if side is not None and side.shape[1:] != x.shape[1:]:
        raise ValueError(f"b must have shape {(rows.shape[0], *x.shape[1:])}, got {side.shape}")
    k = x.shape[1:]
    tasks = rows.each(reduce_residual, x, b=side)
    g = da.from_delayed(total([task[0] for task in tasks]), x.shape, np.float64)
    squares = da.from_delayed(total([task[1] for task in tasks]), k, np.float64)
    r = rows.per_row([task[2] for task in tasks], k, rows.dtype)
    return ResidualGradient(g.astype(rows.dtype), r, da.sqrt(squares))


def leverage_scores(
    A: da.Array,
    *,
    ridge: float = 0.0,
    approximate: bool | int = False,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> da.Array:
    """Return the leverage scores of the rows of a Dask array A.

    The call reads A twice, once if `approximate`, for a factor R of A. The array that it returns
    reads A once more when it is computed.

    Parameters
    ----------
    A : dask.array.Array, shape (n, d), float32 or float64
        Cut into chunks of whole rows.
    ridge, approximate, seed : optional
        As in :func:`quadric.sketch.leverage_scores`.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        Threads on a worker; None follows its environment. It does not change the result.

    Returns
    -------
    dask.array.Array, shape (n,)
        Scores, cut like A and of its dtype.

    Raises
    ------
    ValueError
        If A is cut between columns or has unknown chunks, an entry is not finite, or an option is
        out of range.
    TypeError
        If A is no Dask array, or neither float32 nor float64.

    See Also
    --------
    quadric.sketch.leverage_scores : the same of an array.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import quadric.adapters.dask as qdask
    >>> A = np.random.default_rng(0).standard_normal((1000, 3))
    >>> scores = qdask.leverage_scores(da.from_array(A, chunks=(300, 3)))
    >>> round(float(scores.sum().compute()), 9)
    3.0
    """
    rows = chunked(A, "A", backend, n_threads)
    ridge = checks.real(ridge, "ridge", low=0.0)
    columns = leverage.directions(approximate)
    seed = resolve_seed(seed)
    with threads.blas_limit(1):
        factor = factorize(rows, ridge=ridge, exact=not columns, seed=seed)
        result = leverage.estimate(rows, factor, columns, seed) if columns else rows.norms(factor.M)
    if columns and not ridge:
        result = result * (factor.rank / result.sum())
    return da.clip(result, 0.0, 1.0).astype(rows.dtype)


def reduce_residual(
    rows: Rows, first: int, x: np.ndarray, b: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``A^T r``, the squares of the norms of r, and r, for the rows of one chunk."""
    if b is not None:
        blame(b, first, "b")
        b = np.ascontiguousarray(b).reshape(len(b), -1)
    passes = Passes(rows.a, 0.0, rows.backend, rows.n_threads)
    r = np.empty((rows.shape[0], x[0].size), rows.dtype)
    g, squares = passes.step(x.reshape(len(x), -1), b, r)
    k = x.shape[1:]
    return g.reshape(x.shape), squares.reshape(k), r.reshape(-1, *k)
