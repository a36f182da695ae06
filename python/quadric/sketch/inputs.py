"""Matrices as they come: arrays, memory maps, and the sparse matrices of SciPy."""

from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from quadric import arrays, checks, device
from quadric.arrays import Array, Data
from quadric.device import DeviceArray

Rows: TypeAlias = Any
"""A matrix to be read row by row: dense with any strides (a DeviceArray if need be), or in CSR."""


def is_sparse(x: Any) -> bool:
    """Say whether `x` is a sparse array or matrix of SciPy."""
    return bool(sparse.issparse(x))


def listed(x: Any, name: str) -> Any:
    """Return the array that a list of floats stands for, and anything else as it is.

    For functions that have a namesake in SciPy, which takes lists.
    """
    if not isinstance(x, list | tuple):
        return x
    try:
        found = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} must have rows of one length: {error}") from None
    if found.dtype.kind in "biu" and found.size:
        raise TypeError(f"{name} must hold floats: np.array({name}, float) converts it")
    return found


def rows_of(x: Array, name: str, *, gpu: bool = False, half: bool = False) -> Rows:
    """Return a matrix (n, d), or a vector as one of one column, without copying dense entries.

    With `gpu` it may be an array on one; with `half` that may have entries of 16 bits.

    Raises
    ------
    TypeError
        If it is neither array nor sparse matrix, or neither float32 nor float64.
    ValueError
        If it is no matrix or vector, or its index arrays are damaged.
    """
    if is_sparse(x):
        if x.ndim != 2:
            raise ValueError(f"{name} must be a matrix where it is sparse, got shape {x.shape}")
        checks.floating(x, name)
        found = sparse.csr_array(x.tocsr())
        _check_indices(found, name)
        return found
    if gpu and half and device.find(x) is not None:
        a = checks.storage(x, name, gpu=True)
    else:
        a = arrays.take(x, name) if gpu else arrays.to_numpy(x, name)
        checks.floating(a, name)
    if a.ndim not in (1, 2):
        raise ValueError(f"{name} must be a matrix or a vector, got an array of shape {a.shape}")
    return a.reshape(-1, 1) if a.ndim == 1 else a


def transposed(x: Rows) -> Rows:
    """Return the transpose, dense without a copy."""
    return sparse.csr_array(x.T.tocsr()) if is_sparse(x) else x.T


def dense_of(x: Rows) -> Data:
    """Return the matrix as an array."""
    return x.toarray() if is_sparse(x) else x


def copy_of(x: Rows) -> Rows:
    """Return a copy that later changes of the caller's memory do not reach."""
    return np.array(x) if isinstance(x, np.ndarray) else x.copy()


def stack(pieces: list[Rows]) -> Rows:
    """Return the pieces below each other, sparse only if all of them are."""
    if len(pieces) == 1:
        return pieces[0]
    if any(isinstance(p, np.ndarray) for p in pieces):
        return np.concatenate([dense_of(p) for p in pieces])
    stacked: Any = sparse.vstack([sparse.csr_array(p) for p in pieces], format="csr")
    return sparse.csr_array(stacked)


def wrapper(x: Array) -> Any:
    """Return the function that turns a result into the array type of `x`, where that is."""
    return arrays.like(np.empty(0) if is_sparse(x) else x)


def finite(x: Any, name: str) -> None:
    """Refuse NaN and Inf in an array or a matrix in CSR or CSC."""
    if not is_sparse(x):
        checks.finite(x, name)
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(x.data.sum()):
            return
    bad = np.flatnonzero(~np.isfinite(x.data[: x.indptr[-1]]))
    if bad.size:
        k = int(bad[0])
        at = int(np.searchsorted(x.indptr, k, side="right")) - 1, int(x.indices[k])
        where = at if x.format == "csr" else at[::-1]
        raise ValueError(f"{name} must be finite, got {x.data[k]} at index {where}")


def finite_result(out: Data, name: str, *inputs: tuple[Rows, str]) -> None:
    """Refuse NaN and Inf in a result, and blame the input that had them.

    No pass over the inputs is needed in the case where nothing is wrong.
    """
    if isinstance(out, DeviceArray):
        if arrays.all_finite(out):
            return
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(out.sum()) or np.isfinite(out).all():
                return
    for x, argument in inputs:
        finite(x, argument)
    arguments = " and ".join(argument for _, argument in inputs)
    raise ValueError(
        f"{arguments} must be smaller: {name} overflows {arrays.storage_name(inputs[0][0].dtype)}"
    )


def _check_indices(x: sparse.csr_array, name: str) -> None:
    """Compiled loops follow the index arrays without asking."""
    starts, columns = x.indptr, x.indices
    fits = starts[0] == 0 and starts[-1] <= min(len(columns), len(x.data))
    if fits and (np.diff(starts) >= 0).all():
        used = columns[: starts[-1]]
        if not used.size or (used.min() >= 0 and used.max() < x.shape[1]):
            return
    raise ValueError(f"{name} must be a valid sparse matrix, got indices beyond its {x.shape}")
