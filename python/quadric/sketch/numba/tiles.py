"""Tiles: a few columns of a matrix, which one thread takes through all rows.

The sums of a column do not depend on where the columns are cut, so the cut may suit the caches and
the number of threads. A tile of the sketch is kept apart, without the gaps of a row-major matrix:
its rows, one column block wide, would share few cache sets.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.vectors import lanes, pointer, turn

Array = NDArray[Any]

PACKS = 4  # vectors side by side in a tile, at most
CACHE = 1 << 20  # bytes of a tile of the sketch, about
VISITED = 1 << 20  # numbers of A between two visits of the same rows: their pages stay known


def width(d: int, m: int, itemsize: int, n_threads: int) -> int:
    """Return how many columns a tile has: whole vectors."""
    wide = 64 // itemsize
    packs = -(-d // wide)
    most = min(PACKS, max(CACHE // max(m * 64, 1), 1), max(packs // n_threads, 1))
    return int(most) * wide


def groups(d: int, wide: int, n_threads: int) -> list[tuple[int, int]]:
    """Share the tiles out among the threads: ranges of neighbours."""
    tiles = -(-d // wide)
    count = min(tiles, n_threads)
    return [(i * tiles // count, (i + 1) * tiles // count) for i in range(count)]


def visit(n: int, d: int, most: int, multiple: int = 1) -> int:
    """Return how many rows of A a thread takes through one of its tiles before the next.

    Few, so that the pages they are on stay known; and enough to make up for the change of tiles.
    """
    rows = max(min(VISITED // max(d, 1), most) // multiple, 1) * multiple
    return int(min(rows, max(n, 1)))


def empty(shape: int, dtype: Any) -> Array:
    """Return uninitialized numbers, aligned to cache lines."""
    itemsize = np.dtype(dtype).itemsize
    buffer = np.empty(shape + 64 // itemsize, dtype)
    start = (-buffer.ctypes.data % 64) // itemsize
    return buffer[start : start + shape]


def pack(out: Array, wide: int) -> Array:
    """Return the tiles of a C-contiguous matrix, one after the other, zeros beyond its columns."""
    m, d = out.shape
    tiles = -(-d // wide)
    packed = empty(tiles * m * wide, out.dtype)
    for t in range(tiles):
        part = packed[t * m * wide : (t + 1) * m * wide].reshape(m, wide)
        n = min(wide, d - t * wide)
        part[:, :n] = out[:, t * wide : t * wide + n]
        part[:, n:] = 0
    return packed


def unpack(packed: Array, wide: int, out: Array) -> None:
    """Undo `pack`."""
    m, d = out.shape
    for t in range(-(-d // wide)):
        part = packed[t * m * wide : (t + 1) * m * wide].reshape(m, wide)
        n = min(wide, d - t * wide)
        out[:, t * wide : t * wide + n] = part[:, :n]


@compiled
def copy(
    A: Array, start: int, to_row: int, to_column: int, rows: int, columns: int, out: Array,
    at: int, step: int, wide: int,
) -> None:  # fmt: skip
    """Copy to rows of `wide` numbers, `step` apart; zeros beyond the columns."""
    move(A, start, to_row, to_column, out, at, step, 1, rows, columns)
    target = pointer(out)
    for i in range(rows):
        for j in range(columns, wide):
            target[at + i * step + j] = 0


@compiled
def move(
    A: Array, a: int, a_row: int, a_column: int, B: Array, b: int, b_row: int, b_column: int,
    rows: int, columns: int,
) -> None:  # fmt: skip
    """Copy a matrix, with any strides, to where one with other strides is."""
    source, target, side = pointer(A), pointer(B), lanes(B)
    full = above = 0
    if (a_row == 1 and b_column == 1) or (a_column == 1 and b_row == 1):
        full, above = columns - columns % side, rows - rows % side
        for j in range(0, full, side):
            for i in range(0, above, side):
                s, t = a + i * a_row + j * a_column, b + i * b_row + j * b_column
                if a_row == 1:
                    turn(source, s, a_column, target, t, b_row)
                else:
                    turn(source, s, a_row, target, t, b_column)
    for i in range(rows):
        for j in range(full if i < above else 0, columns):
            target[b + i * b_row + j * b_column] = source[a + i * a_row + j * a_column]
