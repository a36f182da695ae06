"""Argument checks: each failure is one line that names the argument, what it needs and what came.

The checks run before every kernel, also on matrices that take a millisecond, so each is a few
microseconds in the case where nothing is wrong.
"""

import math
from collections.abc import Collection, Iterator
from operator import index
from typing import Any, TypeVar

import numpy as np

from quadric import arrays
from quadric.arrays import Data
from quadric.device import DeviceArray

FLOATS = ("float32", "float64")
_FLOAT_DTYPES = frozenset(map(np.dtype, FLOATS))
_STORED = frozenset(map(np.dtype, arrays.STORAGE))

T = TypeVar("T")


def matrix(x: Any, name: str, *, gpu: bool = False) -> Data:
    """Return `x` as a 2-D float32 or float64 array without copying it; `gpu`: it may be on one."""
    a = _take(x, name, gpu)
    if a.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got an array of shape {a.shape}")
    floating(a, name)
    return a


def square(x: Any, name: str, n: int | None = None, *, gpu: bool = False) -> Data:
    """Return `x` as a square matrix, n x n where `n` is given."""
    a = matrix(x, name, gpu=gpu)
    if a.shape[0] != a.shape[1]:
        raise ValueError(f"{name} must be square, got shape {a.shape}")
    if a.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, got shape {a.shape}")
    if n is not None and a.shape[0] != n:
        raise ValueError(f"{name} must be {n} x {n}, got shape {a.shape}")
    return a


def floating(a: Data, name: str) -> None:
    """Refuse every dtype that the kernels do not compute in."""
    if a.dtype not in _FLOAT_DTYPES:
        remedy = f": {name}.astype(float) converts it" if a.dtype.kind in "biu" else ""
        raise TypeError(f"{name} must be float32 or float64, got {a.dtype}{remedy}")


def storage(x: Any, name: str, *, gpu: bool = False) -> Data:
    """Return `x` as an array of a type of :data:`quadric.arrays.STORAGE` without copying it."""
    a = _take(x, name, gpu, bfloat16=True)
    stored = a.dtype in _STORED
    if not stored or (a.dtype == np.uint16 and not arrays.is_bfloat16(x)):
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    return a


def gradients(x: Any, name: str, d: int, *, gpu: bool = False) -> Data:
    """Return gradients of shape (k, d), or one of shape (d,), as a matrix of a storage type.

    Its rows are contiguous; it is a copy only where those of `x` are not.
    """
    a = storage(x, name, gpu=gpu)
    if a.ndim not in (1, 2) or a.shape[-1] != d:
        raise ValueError(f"{name} must have shape ({d},) or (k, {d}), got {a.shape}")
    return arrays.rows(a.reshape(-1, d))


def vectors(
    x: Any,
    name: str,
    d: int,
    dtype: np.dtype[Any],
    partner: str = "the gradients",
    *,
    gpu: bool = False,
    check_finite: bool = True,
) -> Data:
    """Return vectors of shape (k, d), or one of shape (d,), as a finite matrix of type `dtype`.

    Its rows are contiguous; it is a copy only where those of `x` are not. `partner` is what asks
    for the type.
    """
    a = _take(x, name, gpu)
    if a.ndim not in (1, 2) or a.shape[-1] != d:
        raise ValueError(f"{name} must have shape ({d},) or (k, {d}), got {a.shape}")
    same_type(a, name, dtype, partner)
    if check_finite:
        finite(a, name)
    return arrays.rows(a.reshape(-1, d))


def vector(
    x: Any,
    name: str,
    d: int,
    dtype: np.dtype[Any],
    partner: str = "the gradients",
    *,
    gpu: bool = False,
    check_finite: bool = True,
) -> Data:
    """Return a vector of d entries as a finite, contiguous array of type `dtype`."""
    a = _take(x, name, gpu)
    if a.shape != (d,):
        raise ValueError(f"{name} must have shape ({d},), got {a.shape}")
    same_type(a, name, dtype, partner)
    if check_finite:
        finite(a, name)
    return arrays.contiguous(a)


def mask(x: Any, name: str, d: int, *, gpu: bool = False) -> Data:
    """Return a mask of d entries as a contiguous array of bool."""
    a = _take(x, name, gpu)
    if a.shape != (d,):
        raise ValueError(f"{name} must have shape ({d},), got {a.shape}")
    if a.dtype != np.bool_:
        raise TypeError(f"{name} must be bool, got {a.dtype}")
    return arrays.contiguous(a)


def output(
    out: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    partner: str,
    *,
    gpu: bool = False,
) -> Data:
    """Return the array that a result is to be written to: C-contiguous and writable."""
    a = _take(out, name, gpu)
    if a.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {a.shape}")
    same_type(a, name, dtype, partner)
    if isinstance(a, DeviceArray):
        if not a.c_contiguous:
            raise ValueError(f"{name} must be C-contiguous, got strides {a.strides}")
        return a
    if not (a.flags.c_contiguous and a.flags.writeable):
        wrong = "a read-only array" if a.flags.c_contiguous else f"strides {a.strides}"
        raise ValueError(f"{name} must be C-contiguous and writable, got {wrong}")
    return a


def itself_or_apart(out: Data, name: str, a: Data, other: str) -> None:
    """Refuse an output that overlaps the input `a` in any other way than being the same array."""
    if isinstance(out, DeviceArray):
        distance = abs(out.pointer - a.pointer)  # both are contiguous, and of one shape and dtype
        if 0 < distance < a.size * a.dtype.itemsize:
            raise ValueError(
                f"{name} must be {other} itself or share no memory with it, got a part"
            )
        return
    same = out.ctypes.data == a.ctypes.data and out.strides == a.strides
    if not same and np.may_share_memory(out, a):
        raise ValueError(f"{name} must be {other} itself or share no memory with it, got a part")


def same_type(a: Data, name: str, dtype: np.dtype[Any], partner: str) -> None:
    """Refuse every dtype but the one that `partner` asks for."""
    if a.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} to go with {partner}, got {a.dtype}")


# The exponent of Inf and NaN.
_EXPONENTS = {np.dtype(np.float16): np.uint16(0x7C00), np.dtype(np.uint16): np.uint16(0x7F80)}

_PIECE = 262_144  # entries looked at together where that needs a temporary: they stay in cache


def finite(a: Data, name: str, dtype: Any = None) -> None:
    """Refuse NaN and Inf in values of a storage type, also those that arise in `dtype`."""
    if isinstance(a, DeviceArray):
        narrows = dtype is not None and np.dtype(dtype).itemsize < a.dtype.itemsize
        _finite_on_gpu(arrays.widen(a, dtype) if narrows else a, name)
        return
    exponent = _EXPONENTS.get(a.dtype)
    if exponent is None and (dtype is None or a.dtype == dtype):
        # One pass without a temporary: a sum is finite only if every entry is. The converse fails
        # where finite entries overflow, and then the entries are looked at one by one.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(a.sum()):
                return
    for piece in _pieces(a.shape):
        if exponent is None:
            bad = ~np.isfinite(a[piece] if dtype is None else arrays.widen(a[piece], dtype))
        else:
            bad = a[piece].view(np.uint16) & exponent
            if bad.max(initial=0) < exponent:
                continue
            bad = bad == exponent
        if bad.any():
            inside = np.unravel_index(np.argmax(bad), bad.shape)
            where = tuple(p.start + int(i) for p, i in zip(piece, inside, strict=True))
            value = arrays.widen(a[where], np.float32 if dtype is None else dtype)
            raise ValueError(f"{name} must be finite, got {value} at index {where}")


def _finite_on_gpu(a: DeviceArray, name: str) -> None:
    at = a.first_not_finite()
    if at >= 0:
        where = tuple(int(i) for i in np.unravel_index(at, a.shape))
        value = a.reshape(-1)[at : at + 1].astype(np.float64).host()[0]
        raise ValueError(f"{name} must be finite, got {value} at index {where}")


def _take(x: Any, name: str, gpu: bool, *, bfloat16: bool = False) -> Data:
    take = arrays.take if gpu else arrays.to_numpy
    return take(x, name, bfloat16=bfloat16)


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Cut an array into pieces of at most :data:`_PIECE` entries, in the order of its entries."""
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    if inner <= _PIECE:
        step = max(_PIECE // max(inner, 1), 1)
        rest = tuple(slice(0, n) for n in shape[1:])
        for i in range(0, shape[0], step):
            yield slice(i, min(i + step, shape[0])), *rest
    else:
        for i in range(shape[0]):
            for piece in _pieces(shape[1:]):
                yield slice(i, i + 1), *piece


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


def real(value: Any, name: str, low: float = -np.inf, high: float = np.inf) -> float:
    """Return `value` as a finite float between `low` and `high`, both included."""
    number = _number(value, name)
    if not (math.isfinite(number) and low <= number <= high):
        wanted = (
            f" and at least {low:g}" if high == np.inf else f" and between {low:g} and {high:g}"
        )
        raise ValueError(f"{name} must be finite{wanted if low > -np.inf else ''}, got {number}")
    return number


def positive(value: Any, name: str) -> float:
    """Return `value` as a finite float above 0."""
    number = _number(value, name)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be finite and above 0, got {number}")
    return number


def between(value: Any, name: str, low: float, high: float) -> float:
    """Return `value` as a float between `low` and `high`, both excluded."""
    number = _number(value, name)
    if not low < number < high:
        raise ValueError(
            f"{name} must be between {low:g} and {high:g}, both excluded, got {number}"
        )
    return number


def _number(value: Any, name: str) -> float:
    try:
        # Python turns both into floats, but who gives them means something else.
        if not isinstance(value, bool | np.bool_ | str):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a number, got {value!r}")
