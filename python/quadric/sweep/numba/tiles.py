"""Tiles: rows of a matrix stored transposed, a column per row of memory, in an order of columns."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled

Array = NDArray[Any]

LINES = 8  # rows transposed together: as many cache lines as a set surely holds


@compiled
def load(source: Array, order: NDArray[np.int64], target: Array) -> None:
    """target[p, r] = source[r, order[p]]."""
    for start in range(0, len(source), LINES):
        stop = min(start + LINES, len(source))
        for p in range(len(order)):
            for r in range(start, stop):
                target[p, r] = source[r, order[p]]


@compiled
def store(source: Array, order: NDArray[np.int64], target: Array) -> None:
    """target[r, order[p]] = source[p, r]."""
    for start in range(0, len(target), LINES):
        stop = min(start + LINES, len(target))
        for p in range(len(order)):
            for r in range(start, stop):
                target[r, order[p]] = source[p, r]
