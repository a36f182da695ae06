"""What a solver did, step by step."""

import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

HISTORY = np.dtype(
    [
        ("method", "U12"),
        ("reg", "f8"),
        ("iterations", "i8"),
        ("error", "f8"),
        ("objective", "f8"),
        ("kept", "i8"),
        ("cg", "i8"),
        ("seconds", "f8"),
    ]
)
"""A step: what it was, the reg it worked at, iterations so far, marginal error and dual objective
after it, entries of the plan that it looked at, iterations of CG, seconds so far."""

MANY = 10_000
"""Iterations by default."""

Progress: TypeAlias = Callable[[int, float, float], None] | None
"""Is told the iterations so far, the error and the tolerance."""


class Recorder:
    """Collects the steps of a run and passes them on.

    Parameters
    ----------
    tol : float
        What the run is after.
    max_iter : int
        Iterations that it may make.
    progress : callable or None
        See :data:`Progress`.
    """

    def __init__(self, tol: float, max_iter: int, progress: Progress) -> None:
        self.iterations = 0
        self._tol, self._max_iter, self._progress = tol, max_iter, progress
        self._start = time.perf_counter()
        self._rows: list[tuple[str, float, int, float, float, int, int, float]] = []

    @property
    def left(self) -> int:
        """Iterations that may still be made, but for the last one, which finds the error."""
        return self._max_iter - 1 - self.iterations

    def add(
        self,
        method: str,
        reg: float,
        iterations: int,
        error: float,
        objective: float,
        kept: int,
        cg: int = 0,
    ) -> None:
        """Note a step of so many `iterations`; the other arguments are as in :data:`HISTORY`."""
        self.iterations += iterations
        seconds = time.perf_counter() - self._start
        self._rows.append((method, reg, self.iterations, error, objective, kept, cg, seconds))
        if self._progress is not None:
            self._progress(self.iterations, error, self._tol)

    def join(self, other: "Recorder") -> None:
        """Take over the steps of a run that began after this one, and has ended."""
        late = other._start - self._start
        for *row, seconds in other._rows:
            self._rows.append((*row, seconds + late))  # type: ignore[arg-type]

    def history(self) -> np.ndarray:
        """Return all steps so far."""
        return np.array(self._rows, HISTORY)
