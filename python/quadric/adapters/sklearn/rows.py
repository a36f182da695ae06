"""Centring and weighting the rows of a regression."""

from typing import Any

import numpy as np
from scipy import sparse

_PIECE = 1 << 16  # entries that are widened to float64 at once


def mean(X: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return the mean of the rows in float64.

    It is taken about the first row: of a constant column it is that constant to the last bit, so
    that the column is zero when centred and not noise.
    """
    if weights is None:
        weights = np.ones(len(X))
    shift = X[0].astype(np.float64)
    total = np.zeros(X.shape[1])
    step = max(_PIECE // X.shape[1], 1)
    for i in range(0, len(X), step):
        total += weights[i : i + step] @ (X[i : i + step] - shift)
    result: np.ndarray = shift + total / weights.sum()
    return result


def weighted(X: np.ndarray, center: np.ndarray, root: np.ndarray | None, dtype: Any) -> np.ndarray:
    """Return the rows, centred and weighted, in one copy of the layout of `X`."""
    A: np.ndarray = np.empty_like(X, dtype=dtype)
    np.subtract(X, center, out=A, casting="same_kind")
    if root is not None:
        A *= root[:, None]
    return A


def scaled(X: Any, scale: np.ndarray | None, *, ones: bool) -> Any:
    """Return sparse rows, each times its scale, with a column of ones behind if it is asked for."""
    n = X.shape[0]
    column = np.ones(n, X.dtype) if scale is None else scale.astype(X.dtype)
    if scale is not None:
        X = sparse.diags_array(column) @ X
    return sparse.hstack([X, sparse.coo_array(column[:, None])], format="csr") if ones else X


def with_penalty(X: Any, b: np.ndarray, ridge: float) -> tuple[Any, np.ndarray]:
    """Return sparse rows and values with a penalty on all columns but the last as further rows."""
    d = X.shape[1] - 1
    root = sparse.diags_array(np.full(d, np.sqrt(ridge), X.dtype), shape=(d, d + 1))
    zeros = np.zeros((d, b.shape[1]), b.dtype)
    return sparse.vstack([X, root], format="csr"), np.vstack([b, zeros])
