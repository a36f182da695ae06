"""Powers of two that bring data to a size whose squares neither overflow nor vanish.

Scaling by them is exact, so a result is what it would be at any other scale. What is moderate
already is left alone.
"""

import math
from typing import Any

import numpy as np

from quadric import arrays, device
from quadric.arrays import Data
from quadric.device import DeviceArray


def largest(a: Data) -> np.ndarray:
    """Return the largest absolute value in each column, without a temporary; waits for a GPU."""
    if isinstance(a, DeviceArray):
        return np.array([arrays.largest(a[:, j]) for j in range(a.shape[1])], a.dtype)
    return np.asarray(np.maximum(a.max(axis=0, initial=0.0), -a.min(axis=0, initial=0.0)))


def exponents(sizes: Any, dtype: Any, power: int = 2) -> np.ndarray:
    """Return e, int64, with ``sizes / 2^e`` from 1/2 to 1; 0 where sizes are 0 or moderate.

    Moderate is what has powers, and sums of them, far from both ends of the type.
    """
    found = np.frexp(np.asarray(sizes, np.float64))[1].astype(np.int64)
    found[np.abs(found) < np.finfo(dtype).maxexp // (2 * power)] = 0
    return found


def exponent(size: float, dtype: Any, power: int = 2) -> int:
    """Return the exponent of one number; see `exponents`."""
    found = math.frexp(size)[1]
    return 0 if abs(found) < np.finfo(dtype).maxexp // (2 * power) else found


def extreme(sizes: np.ndarray, dtype: Any) -> np.ndarray:
    """Say which sizes are 0, not moderate (see `exponents`) or not finite."""
    limit = 2.0 ** (np.finfo(dtype).maxexp // 4 - 1)
    return np.asarray(~((sizes < limit) & (sizes >= 0.5 / limit)))


def moderate(b: Data) -> tuple[Data, np.ndarray]:
    """Return ``b / 2^e`` with moderate columns, and their exponents e."""
    found = exponents(largest(b), b.dtype)
    return (shifted(b, -found) if found.any() else b), found


def shifted(b: Data, exponents: np.ndarray) -> Data:
    """Return ``b 2^e`` for the columns of a matrix and their exponents."""
    if not isinstance(b, DeviceArray):
        return np.ldexp(b, exponents)
    result = arrays.zeros(b, b.shape, b.dtype)
    for j, e in enumerate(np.broadcast_to(exponents, b.shape[1:]).tolist()):
        # In two steps: 2^e itself may be beyond the range of the type.
        half = arrays.scaled(b[:, j], 2.0 ** (e // 2))
        arrays.add(result[:, j], half, 2.0 ** (e - e // 2))
    return result


def sums_norms(b: Data) -> np.ndarray:
    """Return the norms of columns of moderate size, float64, from sums of squares."""
    if isinstance(b, DeviceArray):
        out = np.zeros(b.shape[1])
        if b.size:
            b.space.run(device.linalg().column_norms, b, out)
        return out
    return np.asarray(np.sqrt(np.einsum("ij,ij->j", b, b, dtype=np.float64)))


def restored(x: np.ndarray, exponents: np.ndarray, dtype: Any) -> np.ndarray | None:
    """Return ``x 2^e`` in a type; None where it has no number for the largest one of a column."""
    with np.errstate(over="ignore", under="ignore"):
        result: np.ndarray = np.ldexp(x, exponents).astype(dtype)
    sizes, lost = largest(result), largest(x) > 0
    lost &= (exponents != 0) & (sizes < np.finfo(dtype).smallest_normal)
    return None if lost.any() or not np.isfinite(sizes).all() else result


def norms(a: np.ndarray) -> np.ndarray:
    """Return the norms of columns, float64, which overflow only if they cannot be represented."""
    sizes = largest(a).astype(np.float64)
    units = np.where(sizes > 0, sizes, 1.0)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scaled = np.divide(a, units, dtype=np.float64)
        return np.asarray(units * np.sqrt(np.einsum("i...,i...->...", scaled, scaled)))


def norm(v: np.ndarray) -> float:
    """Return the norm of a vector; see `norms`."""
    return float(norms(v[:, None])[0])
