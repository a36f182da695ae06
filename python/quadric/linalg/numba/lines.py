"""Arrays as kernels see them: a line of numbers and the strides along it.

One type per storage type, whatever the layout and whether the caller may write: so few versions of
a kernel are compiled.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class _Memory:
    def __init__(self, owner: Array, low: int, count: int, typestr: str) -> None:
        self.owner = owner  # keeps the memory alive
        self.__array_interface__ = {
            "version": 3,
            "data": (low, False),
            "shape": (count,),
            "typestr": typestr,
        }


def line(A: Array) -> tuple[Array, int, tuple[int, ...]]:
    """Return the memory of an array, where its first entry is there, and its strides in entries.

    float16 comes as int16, its bits, since Numba has no such numbers on a CPU; bool as uint8.
    """
    bits: dict[str, type] = {"e": np.int16, "?": np.uint8}
    dtype = np.dtype(bits.get(A.dtype.char, A.dtype))
    strides = tuple(s // A.itemsize for s in A.strides)
    if A.size == 0:
        return np.empty(0, dtype), 0, strides
    if A.flags.c_contiguous and A.flags.writeable:
        return A.reshape(-1).view(dtype), 0, strides
    spans = [s * (n - 1) for s, n in zip(strides, A.shape, strict=True)]
    low = sum(min(s, 0) for s in spans)
    count = sum(abs(s) for s in spans) + 1
    address = A.ctypes.data + low * A.itemsize
    return np.asarray(_Memory(A, address, count, dtype.str)), -low, strides
