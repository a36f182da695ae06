"""The one way kernels are compiled: cached on disk, without the GIL, in IEEE arithmetic.

No fastmath: error bounds are promised. Divisions follow NumPy (x / 0 is inf), because a test for
ZeroDivisionError in a loop keeps it from being vectorized.

Numba's own threading layers must not be entered from several Python threads at once, so nothing
here is compiled with ``parallel=True``; `quadric.linalg.numba.parallel` runs kernels on threads.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a kernel at its first call, once per combination of argument types."""
    return cast(F, njit(cache=True, nogil=True, error_model="numpy")(function))


def inlined(function: F) -> F:
    """A small piece of kernels, made part of each of them; vector values pass through freely."""
    return cast(F, njit(cache=True, nogil=True, error_model="numpy", forceinline=True)(function))
