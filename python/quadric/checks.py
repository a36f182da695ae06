"""Argument checks: each failure is one line that names the argument, what it needs and what came.

The checks run before every kernel, also on matrices that take a millisecond, so each is a few
microseconds in the case where nothing is wrong.
"""

from collections.abc import Collection
from operator import index
from typing import Any, TypeVar

import numpy as np

from quadric import arrays

FLOATS = ("float32", "float64")

T = TypeVar("T")


def matrix(x: Any, name: str) -> np.ndarray:
    """Return `x` as a 2-D float32 or float64 NumPy array without copying it."""
    a = arrays.to_numpy(x, name)
    if a.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got an array of shape {a.shape}")
    floating(a, name)
    return a


def square(x: Any, name: str, n: int | None = None) -> np.ndarray:
    """Return `x` as a square matrix, n x n where `n` is given."""
    a = matrix(x, name)
    if a.shape[0] != a.shape[1]:
        raise ValueError(f"{name} must be square, got shape {a.shape}")
    if a.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, got shape {a.shape}")
    if n is not None and a.shape[0] != n:
        raise ValueError(f"{name} must be {n} x {n}, got shape {a.shape}")
    return a


def floating(a: np.ndarray, name: str) -> None:
    """Refuse every dtype that the kernels do not compute in."""
    if a.dtype.name not in FLOATS or not a.dtype.isnative:
        raise TypeError(f"{name} must be float32 or float64, got {a.dtype}")


def finite(a: np.ndarray, name: str, first: int = 0) -> None:
    """Refuse NaN and Inf; `a` begins at row `first` of the argument."""
    # One pass without a temporary: a sum is finite only if every entry is. The converse fails
    # where finite entries overflow, and then the entries are looked at one by one.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(a.sum()):
            return
    bad = ~np.isfinite(a)
    if bad.any():
        where = tuple(int(i) for i in np.unravel_index(np.argmax(bad), a.shape))
        value, where = a[where], (where[0] + first, *where[1:])
        raise ValueError(f"{name} must be finite, got {value} at index {where}")


def choice(value: T, name: str, options: Collection[T]) -> T:
    """Refuse a value that is not one of `options`."""
    if not any(value == option and type(value) is type(option) for option in options):
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}")
    return value


def integer(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return `value` as an int between `low` and `high`, both included."""
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < low or (high is not None and number > high):
        wanted = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {wanted}, got {number}")
    return number


def real(value: Any, name: str, low: float, high: float = np.inf) -> float:
    """Return `value` as a finite float between `low` and `high`, both included."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not (np.isfinite(number) and low <= number <= high):
        wanted = f"at least {low:g}" if high == np.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be finite and {wanted}, got {number}")
    return number
