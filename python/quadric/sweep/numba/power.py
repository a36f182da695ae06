"""x^e for vector lanes, where the compiler would call the C library once per element.

x = m 2^k with m in [sqrt(1/2), sqrt(2)); log2 x = k + 2 / ln 2 atanh(s), s = (m - 1) / (m + 1);
x^e = 2^i 2^g with e log2 x = i + g, |g| <= 1/2. The series end where they reach the rounding error.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

_ONE = np.float32(1)
_LOG = [np.float32(2 / math.log(2) / (2 * k + 1)) for k in range(4)]
_EXP = [np.float32(math.log(2) ** k / math.factorial(k)) for k in range(7)]
L0, L1, L2, L3 = _LOG
E0, E1, E2, E3, E4, E5, E6 = _EXP
SQRT_HALF = np.int32(0x3F3504F3)  # its bits
FRACTION = np.int32(23)  # bits of a fraction
LEAST = np.float32(-126)  # exponents of normal numbers: powers beyond them become the nearest
MOST = np.float32(127)


def power(x: Any, e: Any) -> Any:
    """Return x^e for x >= 0 in a compiled kernel; float32 within 1e-7 (4 + |e log2 x|)."""
    raise NotImplementedError("for compiled kernels")


def _power32(x: Any, e: Any) -> Any:
    bits = np.float32(x).view(np.int32)
    k = np.int32(np.int32(bits - SQRT_HALF) >> FRACTION)
    m = np.int32(bits - np.int32(k << FRACTION)).view(np.float32)
    s = (m - _ONE) / (m + _ONE)
    z = s * s
    y = e * (np.float32(k) + s * (L0 + z * (L1 + z * (L2 + z * L3))))
    y = min(max(y, LEAST), MOST)
    i = np.rint(y)
    g = y - i
    p = E0 + g * (E1 + g * (E2 + g * (E3 + g * (E4 + g * (E5 + g * E6)))))
    bits = np.float32(p).view(np.int32) + np.int32(np.int32(i) << FRACTION)
    return np.int32(bits).view(np.float32)


def _power64(x: Any, e: Any) -> Any:
    return x**e


@overload(power)
def _power(x: Any, e: Any) -> Any:
    return _power32 if x is types.float32 else _power64
