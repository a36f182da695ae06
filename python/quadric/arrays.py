"""The caller's arrays: in as NumPy views, out as what the caller works with.

Nothing is copied on the way in or out, and no dtype changes.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_torch_array

Array: TypeAlias = Any
"""A NumPy array, or anything that hands out CPU memory through DLPack (a torch tensor)."""

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
