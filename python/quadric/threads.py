"""How many threads a call uses."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from quadric import checks


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
    than the current limit of the BLAS thread pools, so that
    ``threadpoolctl.threadpool_limits(1)`` holds here too.
    """
    count = _from_environment() or _cpus()
    for library in blas_pools().lib_controllers:
        count = min(count, library.num_threads or count)
    return max(count, 1)


def resolve(n_threads: int | None) -> int:
    """Return the number of threads that an ``n_threads=`` argument stands for."""
    if n_threads is None:
        return available()
    return checks.integer(n_threads, "n_threads", low=1)


@contextmanager
def blas_limit(n_threads: int | None) -> Iterator[None]:
    """Hold the BLAS pools to `n_threads` inside the block; None leaves them as they are."""
    if n_threads is None:
        yield
    else:
        with blas_pools().limit(limits=n_threads):
            yield


def _from_environment() -> int:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdigit() else 0


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
