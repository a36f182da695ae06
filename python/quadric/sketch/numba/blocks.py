"""Blocks of rows in float64 that stay in the cache while BLAS works on them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba import blas
from quadric.linalg.numba.lines import line
from quadric.sketch.numba import tiles

Array = NDArray[Any]
Floats = NDArray[np.float64]

PIECES = 64  # parts of A with sums of their own, at most
SUMS = 1 << 23  # numbers in all those sums, about
ENTRIES = 1 << 16  # of a block, about


def cut(n: int, size: int) -> list[tuple[int, int]]:
    """Cut the rows into pieces that have `size` sums each: a matter of the shape alone."""
    count = min(max(min(PIECES, SUMS // max(size, 1)), 4), -(-n // 256))
    step = -(-n // max(count, 1) // 8) * 8
    return [(low, min(low + step, n)) for low in range(0, n, step)] if n else []


class Blocks:
    """Blocks of rows of a matrix as row-major float64, with a buffer where they must be copied."""

    def __init__(self, A: Array, k: int) -> None:
        self.A = A
        d = A.shape[1]
        self.rows = max(ENTRIES // max(d, k, 1) // 8, 4) * 8
        self.direct = A.dtype == np.float64 and blas.is_rows(A)
        self.buffer = np.empty((0 if self.direct else self.rows, d))
        self.memory, self.start, self.strides = line(A)

    def __call__(self, low: int, high: int) -> Iterator[tuple[int, int, Floats]]:
        """Go through rows [low, high): the first, the one after the last, and what they hold."""
        d, flat = self.A.shape[1], self.buffer.reshape(-1)
        to_row, to_column = self.strides
        for start in range(low, high, self.rows):
            stop = min(start + self.rows, high)
            if self.direct:
                yield start, stop, self.A[start:stop]
                continue
            at = self.start + start * to_row
            tiles.copy(self.memory, at, to_row, to_column, stop - start, d, flat, 0, d, d)
            yield start, stop, self.buffer[: stop - start]
