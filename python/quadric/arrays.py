"""The caller's arrays: in as NumPy views, out as what the caller works with.

Nothing is copied on the way in or out, and no dtype changes. Arrays on a GPU come in as
:class:`quadric.device.DeviceArray`, in the functions that have kernels there.

NumPy has no bfloat16, so inside the library its bits pass as uint16: among the types of
:data:`STORAGE`, uint16 never means anything else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from quadric import device
from quadric.device import DeviceArray

Array: TypeAlias = Any
"""A NumPy array, anything that hands out CPU memory through DLPack (a torch tensor), or an array of
torch, CuPy or JAX on a GPU."""

Data: TypeAlias = Any
"""The same inside the library: a NumPy array, or a DeviceArray."""

STORAGE = ("float16", "uint16", "float32", "float64")
"""Types that values may be kept in; uint16 is bfloat16."""

_CPU = 1  # kDLCPU


def take(x: Array, name: str, *, bfloat16: bool = False) -> Data:
    """Return :func:`to_numpy` of an array in CPU memory, a DeviceArray of one on a GPU."""
    try:
        found = device.seen(x)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} cannot be used: {error}") from None
    if found is None:
        return to_numpy(x, name, bfloat16=bfloat16)
    if found.dtype == np.uint16 and not bfloat16 and is_bfloat16(x):
        raise TypeError(f"{name} cannot be bfloat16 here: convert it to float32")
    return found


def to_numpy(x: Array, name: str, *, bfloat16: bool = False) -> np.ndarray:
    """Return a NumPy view of `x`, the bit pattern (uint16) of bfloat16 where that is welcome.

    Raises
    ------
    TypeError
        If `x` is not an array, or is bfloat16 and that is not welcome.
    ValueError
        If `x` is not in CPU memory.
    """
    if isinstance(x, np.ndarray):
        a = np.asarray(x)
    elif hasattr(x, "__dlpack__"):
        a = _from_dlpack(x, name)
    else:
        raise TypeError(
            f"{name} must be a NumPy array or an array with DLPack, got {type(x).__name__}"
        )
    if (a.dtype.kind not in "iuf" or a is not x) and is_bfloat16(x):
        if not bfloat16:
            raise TypeError(f"{name} cannot be bfloat16 here: convert it to float32")
        a = a.view(np.uint16)
    # A view into a packed record may start at any byte; compiled code may not read it there.
    return a if a.flags.aligned else a.copy()


def is_bfloat16(x: Array) -> bool:
    """Say whether `x` holds bfloat16, whatever library it comes from."""
    return str(x.dtype).endswith("bfloat16")


def like(x: Array) -> Callable[[Data], Array]:
    """Return the function that turns a result into the array type of `x`, sharing memory."""
    if isinstance(x, np.ndarray):
        return _same
    if (space := device.find(x)) is not None:
        return _There(space)
    return _Wrap(array_namespace(x))


def _same(a: np.ndarray) -> Array:
    return a


@dataclass(frozen=True)
class _There:
    space: device.Space

    def __call__(self, a: Data) -> Array:
        return (a if isinstance(a, DeviceArray) else self.space.from_host(a)).finished()


class _Wrap:
    def __init__(self, namespace: Any) -> None:
        self.namespace = namespace

    def __call__(self, a: np.ndarray) -> Array:
        return self.namespace.asarray(a)

    def __reduce__(self) -> tuple[Callable[[str], "_Wrap"], tuple[str]]:
        return _wrap, (self.namespace.__name__,)  # a module itself cannot be pickled


def _wrap(namespace: str) -> _Wrap:
    return _Wrap(import_module(namespace))


def storage_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a type of :data:`STORAGE` as users know it."""
    return "bfloat16" if dtype == np.uint16 else dtype.name


def computing(storage: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that values of a storage type are computed in: float32 or float64."""
    return np.dtype(np.float64 if storage == np.float64 else np.float32)


def promote(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    """Return the smallest storage type that holds all values of both."""
    if a == b:
        return a
    return np.promote_types(computing(a), computing(b))


def widen(a: Data, dtype: Any) -> Data:
    """Return values of a storage type as `dtype`, without a copy where that is their type.

    A float64 beyond the range of float32 becomes Inf.
    """
    if isinstance(a, DeviceArray):
        return a.astype(dtype, copy=False)
    if a.dtype == np.uint16 and dtype != np.uint16:
        a = (a.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return a.astype(dtype, copy=False)


def empty(like: Data, shape: int | tuple[int, ...], dtype: Any) -> Data:
    """Return a new array in the memory that `like` is in."""
    return (
        like.space.empty(shape, dtype) if isinstance(like, DeviceArray) else np.empty(shape, dtype)
    )


def zeros(like: Data, shape: int | tuple[int, ...], dtype: Any) -> Data:
    """Return a new array of zeros in the memory that `like` is in."""
    if isinstance(like, DeviceArray):
        return like.space.full(shape, dtype, 0)
    return np.zeros(shape, dtype)


def beside(a: np.ndarray, like: Data) -> Data:
    """Return a NumPy array in the memory that `like` is in; a copy only where that is a GPU's."""
    return like.space.from_host(a) if isinstance(like, DeviceArray) else a


def host(a: Data) -> np.ndarray:
    """Return a NumPy array of the same values; a copy where they are on a GPU."""
    result: np.ndarray = a.host() if isinstance(a, DeviceArray) else a
    return result


def assign(to: Data, a: Data) -> None:
    """Copy the entries of `a`, converted to the type of `to`."""
    if isinstance(to, DeviceArray):
        to.assign(a)
    else:
        to[...] = a


def add(to: Data, a: Data, scale: float = 1.0) -> None:
    """Add ``scale a`` to the entries of `to`, of the same shape and dtype."""
    if isinstance(to, DeviceArray):
        to.space.run(device.arrays().add_to_columns, device.flat(a), None, scale, device.flat(to))
    else:
        to += a if scale == 1.0 else scale * a


def scaled(a: Data, factor: float) -> Data:
    """Return ``factor a``, float32 or float64, as a new contiguous array of the same dtype."""
    if isinstance(a, DeviceArray):
        result = zeros(a, a.shape, a.dtype)
        if a.size:
            add(result, a, factor)
        return result
    return a * a.dtype.type(factor)


def scale(a: DeviceArray, factor: float) -> None:
    """Multiply the entries of a row- or column-major matrix, float32 or float64, where they are."""
    if factor != 1.0 and a.size:  # a product without terms, whose result is the factor times C
        a.space.run(device.linalg().product, a[:, :0], a[:0], a, 0.0, factor)


def diagonal(a: Data) -> Data:
    """Return a view of the diagonal that can be written to."""
    return a.diagonal() if isinstance(a, DeviceArray) else np.einsum("ii->i", a)


def clear(a: Data, index: np.ndarray, *, rows: bool) -> None:
    """Set columns, and with `rows` the same rows, to zero."""
    if isinstance(a, DeviceArray):
        a.space.run(device.arrays().clear, beside(index.astype(np.int64), a), rows, a)
        return
    a[:, index] = 0
    if rows:
        a[index] = 0


def at(a: Data, *index: np.ndarray) -> np.ndarray:
    """Return the entries at these places as a NumPy array of one axis."""
    result: np.ndarray = a.at(*index).host() if isinstance(a, DeviceArray) else a[index]
    return result.reshape(-1)


def cut(a: Data, rows: np.ndarray, columns: np.ndarray, out: Data = None) -> Data:
    """Return a copy of the rows and columns of a matrix with these numbers, in `out` if given."""
    result = empty(a, (len(rows), len(columns)), a.dtype) if out is None else out
    if not isinstance(a, DeviceArray):
        result[...] = a[np.ix_(rows, columns)]
    elif result.size:
        index = (np.ascontiguousarray(i, np.int64) for i in (rows, columns))
        a.space.run(device.arrays().select, a, *index, result)
    return result


def scatter(to: Data, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
    """Set entries of a C-contiguous matrix of zeros, no place of which is named twice."""
    if not isinstance(to, DeviceArray):
        to[rows, columns] = values
    elif values.size:
        places = rows.astype(np.int64) * to.shape[1] + columns
        given = device.flat(beside(np.ascontiguousarray(values, to.dtype), to))
        to.space.run(device.arrays().add_to_columns, given, places, 1.0, to.reshape(1, -1))


def placed(part: Data, rows: np.ndarray, n: int, fill: float) -> Data:
    """Return a matrix of n rows: those of `part` in these places, the others all `fill`."""
    if len(rows) == n:
        return part
    if isinstance(part, DeviceArray):
        longer = empty(part, (len(part) + 1, part.shape[1]), part.dtype)
        longer[:-1].assign(part)
        longer[-1:].fill(fill)
        index = np.full(n, len(part))
        index[rows] = np.arange(len(part))
        return cut(longer, index, np.arange(part.shape[1]))
    result = np.full((n, part.shape[1]), fill, part.dtype)
    result[rows] = part
    return result


def largest(a: Data) -> float:
    """Return the largest absolute value; waits for a GPU."""
    if isinstance(a, DeviceArray):
        result = np.zeros(1)
        if a.size:
            a.space.run(device.arrays().largest, a.reshape(-1), result)
        return float(result[0])
    return float(np.abs(a).max(initial=0))


def column_sums(a: Data) -> np.ndarray:
    """Return the sums of the columns of a matrix, in float64; waits for a GPU."""
    if isinstance(a, DeviceArray):
        result = np.zeros(a.shape[1])
        if a.size:
            a.space.run(device.arrays().column_sums, a, result)
        return result
    return np.asarray(a.sum(axis=0, dtype=np.float64))


def divide(a: Data, by: np.ndarray) -> None:
    """Divide a matrix in place by a NumPy array of its dtype, (m,) or (n, 1)."""
    if isinstance(a, DeviceArray):
        if a.size:
            spread = a.space.from_host(by).spread(a.shape)
            a.space.run(device.arrays().divide, spread, a)
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        a /= by


def add_product(a: Data, column: np.ndarray, row: np.ndarray) -> None:
    """Add the outer product of NumPy vectors to a C-contiguous matrix, all of one dtype."""
    if isinstance(a, DeviceArray):
        left, right = beside(column[:, None], a), beside(row[None], a)
        a.space.run(device.arrays().gemm, 1.0, left, right, 1.0, a)
    else:
        a += column[:, None] * row


def all_finite(a: Data) -> bool:
    """Say whether no entry is NaN or infinite; waits for a GPU."""
    if isinstance(a, DeviceArray):
        return a.first_not_finite() < 0
    return bool(np.isfinite(a).all())


def any_below(a: Data, bound: float) -> bool:
    """Say whether an entry is below `bound`; waits for a GPU, where NaN counts as below."""
    if isinstance(a, DeviceArray):
        return bool(a.space.run(device.arrays().first_below, device.flat(a), bound) >= 0)
    return bool((a < bound).any())


def equal(a: Data, b: Data) -> bool:
    """Say whether two arrays of one shape, dtype and memory are the same; waits for a GPU."""
    return first_difference(a, b) < 0


def first_difference(a: Data, b: Data) -> int:
    """Return the place of the first entry that is not that of `b`, -1 if there is none.

    The arrays are of one shape, dtype and memory. Waits for a GPU.
    """
    if isinstance(a, DeviceArray):
        if not a.size:
            return -1
        first = device.arrays().first_difference
        return int(a.space.run(first, device.flat(a), device.flat(b)))
    different = a != b
    return int(np.argmax(different)) if different.any() else -1


def together(a: Data, other: Data, name: str, what: str) -> None:
    """Refuse an array that is not in the memory of another one."""
    here, there = (x.space if isinstance(x, DeviceArray) else None for x in (a, other))
    if here != there:
        places = [repr(s) if s is not None else "in CPU memory" for s in (there, here)]
        raise ValueError(f"{name} must be where {what} is ({places[0]}), got one {places[1]}")


def contiguous(a: Data) -> Data:
    """Return a C-contiguous array; a copy if `a` is none."""
    if isinstance(a, DeviceArray):
        return a if a.c_contiguous else a.copy()
    return np.ascontiguousarray(a)


def rows(a: Data) -> Data:
    """Return a matrix whose rows are contiguous and lie apart; a copy if those of `a` do not."""
    m, n = a.shape
    if isinstance(a, DeviceArray):
        if a.c_contiguous:
            return a.reshape(m, n)
        return a if a.strides[1] == 1 and a.strides[0] >= n else a.copy()
    if a.flags.c_contiguous:
        return a.reshape(-1).reshape(m, n)  # canonical strides, also of rows or columns of one
    apart = a.strides[0] >= n * a.itemsize and a.strides[1] == a.itemsize
    return a if apart else a.copy()


def address(a: Data) -> int:
    """Return where the first entry is."""
    return a.pointer if isinstance(a, DeviceArray) else int(a.ctypes.data)


def _from_dlpack(x: Any, name: str) -> np.ndarray:
    try:
        device, _ = x.__dlpack_device__()
    except Exception as error:  # each library has its own for storage it cannot export
        raise ValueError(f"{name} must be in CPU memory: {error}") from error
    if int(device) != _CPU:
        raise ValueError(
            f"{name} must be in CPU memory, got device {getattr(x, 'device', device)}: "
            "there are no kernels for a GPU here"
        )
    if is_torch_array(x):
        x = x.detach()
        if is_bfloat16(x):  # NumPy has no such dtype; the bits pass as any other 16-bit integer
            import torch

            return np.from_dlpack(x.view(torch.int16))
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError) as error:
        raise TypeError(f"{name} cannot be read as a NumPy array: {error}") from error
