"""How many threads a call uses."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from quadric import checks
from quadric.device import DeviceArray


@functools.cache
def blas_pools() -> ThreadpoolController:
    """Return the BLAS thread pools of this process.

    Finding them walks over all loaded libraries (milliseconds), hence once; SciPy's BLAS, the one
    that the kernels call, is imported first so that it cannot be missed.
    """
    import scipy.linalg.blas  # noqa: F401

    return ThreadpoolController().select(user_api="blas")


def available() -> int:
    """Return the number of threads that the environment grants.

    ``OMP_NUM_THREADS`` where it is set, else the CPUs that this process may run on; never more
    than the limit of the BLAS thread pools, so that ``threadpoolctl.threadpool_limits(1)`` holds
    here too.
    """
    return max(min(_from_environment() or _cpus(), _limit.before or _pool_size()), 1)


def resolve(n_threads: int | None, on: Any = None) -> int:
    """Return the number of threads that an ``n_threads=`` argument stands for.

    `on` is an array that is worked on: where that is on a GPU, the number does not matter.
    """
    if n_threads is None:
        return 1 if isinstance(on, DeviceArray) else available()
    return checks.integer(n_threads, "n_threads", low=1)


class _Limit:
    """The limit on the BLAS pools that the uses of :func:`blas_limit` share."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.uses = 0
        self.first: Any = None  # restores what was before the first use
        self.before = 0


_limit = _Limit()

if hasattr(os, "register_at_fork"):
    # A lock that another thread held would stay locked in the child.
    os.register_at_fork(after_in_child=lambda: setattr(_limit, "lock", Lock()))


@contextmanager
def blas_limit(n_threads: int | None) -> Iterator[None]:
    """Hold the BLAS pools to `n_threads` inside the block; None leaves them as they are.

    Uses may nest and overlap in several threads: what was before the first one comes back when the
    last one ends.
    """
    if n_threads is None:
        yield
        return
    with _limit.lock:
        before = _pool_size()
        limiter = blas_pools().limit(limits=n_threads)
        if _limit.uses == 0:
            _limit.first, _limit.before = limiter, before
        _limit.uses += 1
    try:
        yield
    finally:
        with _limit.lock:
            _limit.uses -= 1
            if _limit.uses == 0:
                _limit.first.restore_original_limits()
                _limit.before = 0


def _pool_size() -> int:
    sizes = [library.num_threads or 1 for library in blas_pools().lib_controllers]
    return min(sizes, default=_cpus())


def _from_environment() -> int:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdigit() else 0


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
