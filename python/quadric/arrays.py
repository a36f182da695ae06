"""The caller's arrays: in as NumPy views, out as what the caller works with.

Nothing is copied on the way in or out, and no dtype changes.

NumPy has no bfloat16, so inside the library its bits pass as uint16: among the types of
:data:`STORAGE`, uint16 never means anything else.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_torch_array

Array: TypeAlias = Any
"""A NumPy array, or anything that hands out CPU memory through DLPack (a torch tensor)."""

STORAGE = ("float16", "uint16", "float32", "float64")
"""Types that values may be kept in; uint16 is bfloat16."""

_CPU = 1  # kDLCPU


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


def like(x: Array) -> Callable[[np.ndarray], Array]:
    """Return the function that turns a NumPy array into the array type of `x`, sharing memory."""
    if isinstance(x, np.ndarray):
        return _same
    return _Wrap(array_namespace(x))


def _same(a: np.ndarray) -> Array:
    return a


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


def widen(a: np.ndarray, dtype: Any) -> np.ndarray:
    """Return values of a storage type as `dtype`, without a copy where that is their type.

    A float64 beyond the range of float32 becomes Inf.
    """
    if a.dtype == np.uint16 and dtype != np.uint16:
        a = (a.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return a.astype(dtype, copy=False)


def rows(a: np.ndarray) -> np.ndarray:
    """Return a matrix whose rows are contiguous and lie apart; a copy if those of `a` do not."""
    m, n = a.shape
    if a.flags.c_contiguous:
        return a.reshape(-1).reshape(m, n)  # canonical strides, also of rows or columns of one
    apart = a.strides[0] >= n * a.itemsize and a.strides[1] == a.itemsize
    return a if apart else a.copy()


def _from_dlpack(x: Any, name: str) -> np.ndarray:
    try:
        device, _ = x.__dlpack_device__()
    except Exception as error:  # each library has its own for storage it cannot export
        raise ValueError(f"{name} must be in CPU memory: {error}") from error
    if int(device) != _CPU:
        raise ValueError(
            f"{name} must be in CPU memory, got device {getattr(x, 'device', device)}: "
            "this build has no cuda backend"
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
