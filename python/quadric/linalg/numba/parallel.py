"""Threads over independent pieces of work.

A piece is a Python function that spends its time in compiled kernels and BLAS calls, both without
the GIL. How the work is cut never depends on the number of threads, and BLAS runs on one thread
inside a piece, so results do not depend on the number of threads either.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

_lock = Lock()
_pool: ThreadPoolExecutor | None = None


def _forget_threads() -> None:
    # Threads do not survive a fork, nor may a lock that another thread held.
    global _lock, _pool
    _lock, _pool = Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run(work: Callable[[int], object], count: int, n_threads: int) -> None:
    """Call ``work(i)`` for every i < count on up to `n_threads` threads, the caller's among them.

    The first error stops the rest and is raised. A busy pool delays nothing: the caller works
    through what nobody else takes, so calls may nest and come from many threads.
    """
    if n_threads == 1 or count <= 1:
        for i in range(count):
            work(i)
        return
    global _pool
    remaining = iter(range(count))
    turn = Lock()

    def worker() -> None:
        nonlocal remaining
        while True:
            with turn:
                i = next(remaining, -1)
            if i < 0:
                return
            try:
                work(i)
            except BaseException:
                with turn:
                    remaining = iter(())
                raise

    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(32, os.cpu_count() or 1), "quadric")
        pool = _pool
    helpers: list[Future[None]] = [pool.submit(worker) for _ in range(min(n_threads, count) - 1)]
    try:
        worker()
    finally:
        started = [helper for helper in helpers if not helper.cancel()]
        errors = [helper.exception() for helper in started]
    for error in errors:
        if error is not None:
            raise error
