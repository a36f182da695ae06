"""Orthonormal polynomials in several variables, as columns."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quadric import arrays, checks
from quadric.arrays import Array

Kind = Literal["legendre", "chebyshev", "hermite", "laguerre"]
Index = Literal["total", "tensor"]

KINDS = ("legendre", "chebyshev", "hermite", "laguerre")

_MOST = 2**24  # columns


def polynomial_basis(
    points: Array,
    degree: int,
    kind: Kind = "legendre",
    *,
    index: Index = "total",
    domain: Sequence[float] | None = None,
) -> Array:
    """Return the values of orthonormal polynomials at points, one column per polynomial.

    Parameters
    ----------
    points : array, shape (n,) or (n, D)
        Points in one or D dimensions, float32 or float64.
    degree : int
        Largest degree, at least 0.
    kind : {"legendre", "chebyshev", "hermite", "laguerre"}, optional
        The measure that they are orthonormal for, in every variable: uniform on [-1, 1], the
        arcsine law on [-1, 1], the standard normal law, the exponential law.
    index : {"total", "tensor"}, optional
        What is at most `degree`: the sum of the degrees in the variables, ``binom(D + degree, D)``
        columns; or each of them, ``(degree + 1)^D`` columns.
    domain : pair of float, optional
        Interval that is mapped to [-1, 1] in every variable; Legendre and Chebyshev only.

    Returns
    -------
    array, shape (n, columns)
        Of the array type and dtype of `points`. The degrees of the columns are those of
        :func:`polynomial_degrees`; the first column is 1.

    Raises
    ------
    ValueError
        If there are no points, they are not finite or have a wrong shape, or an option is out of
        range.
    TypeError
        If a dtype or type does not fit.

    Notes
    -----
    Each variable takes the three-term recurrence ``b_(k+1) p_(k+1) = (x - a_k) p_k - b_k p_(k-1)``
    of the normalized polynomials, in float64.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> Phi = qd.sketch.polynomial_basis(np.array([0.0, 1.0]), 2)
    >>> np.allclose(Phi, [[1, 0, -np.sqrt(5) / 2], [1, np.sqrt(3), np.sqrt(5)]])
    True
    >>> qd.sketch.polynomial_basis(np.zeros((10, 3)), 4).shape
    (10, 35)
    """
    x = arrays.to_numpy(points, "points")
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise ValueError(
            f"points must have shape (n,) or (n, D), n and D at least 1, got {x.shape}"
        )
    checks.floating(x, "points")
    checks.finite(x, "points")
    checks.choice(kind, "kind", KINDS)
    degrees = polynomial_degrees(1 if x.ndim == 1 else x.shape[1], degree, index=index)
    t = x.reshape(len(x), -1).astype(np.float64)
    if domain is not None:
        if kind not in ("legendre", "chebyshev"):
            raise ValueError(f"domain must be left out for {kind} polynomials, got {domain!r}")
        low, high = _interval(domain)
        t = (2 * t - (low + high)) / (high - low)
    values = _one_variable(t, int(degrees.max(initial=0)), kind)
    out = np.ones((len(t), len(degrees)))
    for j in range(t.shape[1]):
        out *= values[degrees[:, j], :, j].T
    return arrays.like(points)(out.astype(x.dtype))


def polynomial_degrees(dimension: int, degree: int, *, index: Index = "total") -> NDArray[np.int64]:
    """Return the degrees in each variable of the columns of :func:`polynomial_basis`.

    Parameters
    ----------
    dimension : int
        Number D of variables, at least 1.
    degree : int
        Largest degree, at least 0.
    index : {"total", "tensor"}, optional
        As in :func:`polynomial_basis`.

    Returns
    -------
    array of int64, shape (columns, D)
        By total degree; the first variable's is the highest first among equals.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type.

    Examples
    --------
    >>> import quadric as qd
    >>> qd.sketch.polynomial_degrees(2, 2).tolist()
    [[0, 0], [1, 0], [0, 1], [2, 0], [1, 1], [0, 2]]
    """
    dimension = checks.integer(dimension, "dimension", low=1)
    degree = checks.integer(degree, "degree", low=0)
    checks.choice(index, "index", ("total", "tensor"))
    total = index == "total"
    columns = math.comb(dimension + degree, dimension) if total else (degree + 1) ** dimension
    if columns > _MOST:
        raise ValueError(f"degree must give at most {_MOST} columns, got {columns}")
    if total:
        found = [
            np.bincount(factors, minlength=dimension)
            for k in range(degree + 1)
            for factors in map(
                lambda c: np.array(c, np.int64),
                itertools.combinations_with_replacement(range(dimension), k),
            )
        ]
        return np.array(found, np.int64)
    grid = np.indices((degree + 1,) * dimension).reshape(dimension, -1).T
    order = np.lexsort((*-grid.T[::-1], grid.sum(axis=1)))
    return grid[order].astype(np.int64)


def _one_variable(t: np.ndarray, degree: int, kind: str) -> np.ndarray:
    """Return the polynomials up to a degree, shape (degree + 1, *t.shape)."""
    k = np.arange(1, degree + 2, dtype=np.float64)
    a = np.zeros(degree + 1)
    if kind == "legendre":
        b = k / np.sqrt(4 * k * k - 1)
    elif kind == "chebyshev":
        b = np.where(k == 1, np.sqrt(0.5), 0.5)
    elif kind == "hermite":
        b = np.sqrt(k)
    else:
        a, b = 2 * k - 1, k
    values = np.ones((degree + 1, *t.shape))
    for j in range(degree):
        lower = b[j - 1] * values[j - 1] if j else 0.0
        values[j + 1] = ((t - a[j]) * values[j] - lower) / b[j]
    return values


def _interval(domain: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in domain)
    except (TypeError, ValueError):
        raise TypeError(f"domain must be a pair of numbers, got {domain!r}") from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"domain must be finite and increasing, got {domain!r}")
    return low, high
