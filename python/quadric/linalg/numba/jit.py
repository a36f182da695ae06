"""The one way kernels are compiled: cached on disk, without the GIL, in IEEE arithmetic.

No fastmath: error bounds are promised. Divisions follow NumPy (x / 0 is inf), because a test for
ZeroDivisionError in a loop keeps it from being vectorized.

Numba's own threading layers must not be entered from several Python threads at once, so nothing
here is compiled with ``parallel=True``; `quadric.linalg.numba.parallel` runs kernels on threads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from numba import njit
from numba.core.caching import FunctionCache

try:
    import fcntl
except ImportError:  # not a POSIX system: processes that start together may compile twice in vain
    fcntl = None  # type: ignore[assignment]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a kernel at its first call, once per combination of argument types."""
    return _cached(njit(nogil=True, error_model="numpy")(function), function)


def inlined(function: F) -> F:
    """A small piece of kernels, made part of each of them; vector values pass through freely."""
    dispatcher = njit(nogil=True, error_model="numpy", forceinline=True)(function)
    return _cached(dispatcher, function)


def _cached(dispatcher: Any, _: F) -> F:
    dispatcher._cache = _Cache(dispatcher.py_func)  # type: ignore[no-untyped-call]
    return cast(F, dispatcher)


class _Cache(FunctionCache):
    """Numba's cache, safe where several processes compile at the same time.

    The versions of a function are numbered when they are written. Two processes could give two
    versions the same number, and then run the one for the other.
    """

    def save_overload(self, sig: Any, data: Any) -> None:
        self._impl.locator.ensure_cache_path()
        with _locked(self.cache_path, self._cache_file._index_name):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


@contextmanager
def _locked(folder: str, name: str) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    try:
        file = open(f"{folder}/{name}.lock", "w")  # noqa: SIM115
    except OSError:  # read-only: nothing will be written either
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
