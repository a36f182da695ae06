"""The Walsh-Hadamard transform along one axis, in place."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import lanes
from quadric.sketch.numba import tiles
from quadric.sketch.numba.hadamard import transform

Array = NDArray[Any]

LONGEST = 1 << 10  # rows that are transformed together
COLUMNS = 2048  # of a piece of work, about


def fwht(X: Array, n_threads: int) -> None:
    """Transform X along its second axis: natural order, unscaled.

    Parameters
    ----------
    X : (outer, N, inner) array, any strides, updated
        N is a power of two.
    n_threads : int
    """
    outer, n, inner = X.shape
    if n < 2 or not X.size:
        return
    memory, start, strides = line(X)
    bits = n.bit_length() - 1
    passes = -(-bits // (LONGEST.bit_length() - 1))
    below = 1  # rows between those that a pass combines
    for p in range(passes):
        k = 1 << (bits * (p + 1) // passes - bits * p // passes)
        above = n // (below * k)
        # Everything but the axis of length k, the shortest stride last: columns of that matrix.
        axes = [
            (outer, strides[0]), (above, below * k * strides[1]), (below, strides[1]),
            (inner, strides[2]),
        ]  # fmt: skip
        axes = sorted((a for a in axes if a[0] > 1), key=lambda a: -abs(a[1])) or [(1, 1)]
        axes = [(1, 0)] * (4 - len(axes)) + axes
        counts, steps = np.array([a[0] for a in axes]), np.array([a[1] for a in axes])
        columns = int(counts[3])
        lines = int(counts[:3].prod())
        size = -(-min(columns, COLUMNS) // 16) * 16
        parts = -(-columns // size)
        together = max(COLUMNS // size, 1) if parts == 1 else 1

        def work(
            i: int, k: int = k, step: int = below * strides[1], counts: Array = counts,
            steps: Array = steps, size: int = size, parts: int = parts, together: int = together,
            lines: int = lines,
        ) -> None:  # fmt: skip
            first, part = divmod(i, parts)
            first *= together
            transform_lines(
                memory, start, k, step, counts, steps, first, min(first + together, lines),
                part * size, min((part + 1) * size, int(counts[3])),
            )  # fmt: skip

        run(work, -(-lines // together) * parts, n_threads)
        below *= k


@compiled
def transform_lines(
    X: Array, start: int, k: int, step: int, counts: Array, steps: Array, first: int, stop: int,
    low: int, high: int,
) -> None:  # fmt: skip
    """Transform columns [low, high) of each line; k rows, `step` apart."""
    pack, to_column = lanes(X), steps[3]
    wide = 4 * pack
    while wide > pack and wide // 2 >= high - low:
        wide //= 2
    Y = np.empty(k * wide, X.dtype)
    for number in range(first, stop):
        c = number % counts[2]
        b = number // counts[2] % counts[1]
        a = number // counts[2] // counts[1]
        at = start + a * steps[0] + b * steps[1] + c * steps[2]
        for j in range(low, high, wide):
            columns = min(wide, high - j)
            x = at + j * to_column
            tiles.copy(X, x, step, to_column, k, columns, Y, 0, wide, wide)
            transform(Y, 0, k, wide)
            tiles.move(Y, 0, wide, 1, X, x, step, to_column, k, columns)
