"""Blocks of consecutive weights: one Fisher matrix each, eight of them side by side in a pack.

With X the columns of a block and m gradients, F = lambda I + X^T X / m. `sums` holds X^T X, and F
itself is factored (primal); `rows` holds the gradients, where they are no more than the weights of
a block, and K = m lambda I + X X^T is factored (dual). Weights beyond the last are zeros.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.lanes import WIDE, load, splat, store
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.packs import (
    TILE,
    add_products,
    cholesky,
    fill,
    first_failure,
    gather,
    gather_end,
    padded,
    scatter,
    workspace,
)
from quadric.linalg.numba.parallel import run

Array = NDArray[Any]

ENTRIES = 1 << 14  # of a workspace, about: 1 MB, so that it stays in the second cache
PIECES = 64  # cuts of the work, at most


def over_packs(
    packs: int, entries: int, n_threads: int, work: Callable[[Array, int, int], None]
) -> None:
    """Call work(workspace, first, stop) for all packs, a few at a time, of `entries` each."""
    at_once = max(ENTRIES // max(entries, 1), 1)
    batches = -(-packs // at_once)
    count = min(batches, PIECES)

    def piece(i: int) -> None:
        x = workspace(min(at_once, packs) * entries)
        for batch in range(batches * i // count, batches * (i + 1) // count):
            work(x, batch * at_once, min((batch + 1) * at_once, packs))

    run(piece, count, n_threads)


class Side:
    """What is factored, and where it lies in the part of a workspace that a pack has.

    The factor is at 0 with `n` rows `ld` apart, its reciprocal pivots at `r`; in the dual the
    gradients are at `g`, a row per weight, also `ld` apart. From `end` on there is room.
    """

    def __init__(
        self,
        sums: NDArray[np.float64] | None,
        rows: Array | None,
        block_size: int,
        d: int,
        count: int,
        damping: float,
    ) -> None:
        self.dual = rows is not None
        self.block_size, self.d = block_size, d
        self.count, self.damping = count, damping
        self.packs = -(-d // (block_size * WIDE))
        self.width = padded(block_size)
        if rows is not None:
            self.memory, _, (self.stride, _) = line(rows)
            self.pivots = len(rows)
        elif sums is not None:
            self.memory, self.stride = sums.reshape(-1, WIDE), 0
            self.pivots = block_size
        self.n = padded(self.pivots)
        self.ld = self.n + 1  # no power of two, so that rows do not share cache sets
        self.r = self.n * self.ld
        self.g = self.r + self.n
        self.end = self.g + (self.width * self.ld if self.dual else 0)

    def load(self, x: Array, size: int, first: int, stop: int) -> None:
        """Write the matrices to be factored, or what they are made of."""
        if self.dual:
            load_rows(
                self.memory, self.stride, 0, self.pivots, self.d, self.block_size, first, stop,
                x, size, self.g, self.ld, 1,
            )  # fmt: skip
            clear_margins(
                x, size, stop - first, self.g, self.ld, self.block_size, self.width,
                self.pivots, self.n,
            )  # fmt: skip
        else:
            load_sums(
                self.memory, self.block_size, self.n, self.ld, max(self.count, 1), self.damping,
                first, stop, x, size,
            )  # fmt: skip

    def factor(self, x: Array, size: int, first: int, stop: int, status: NDArray[np.int32]) -> None:
        """Load and factor."""
        self.load(x, size, first, stop)
        if self.dual:
            gram_of_rows(
                x, size, stop - first, self.g, self.n, self.ld, self.block_size,
                self.count * self.damping,
            )  # fmt: skip
        factor(x, size, first, stop, self.n, self.ld, self.r)
        self.check(x, size, first, stop, status)

    def check(self, x: Array, size: int, first: int, stop: int, status: NDArray[np.int32]) -> None:
        """Write the status of the blocks."""
        check(x, size, first, stop, self.r, self.pivots, status)


@compiled
def load_rows(
    line: Array,
    stride: int,
    row: int,
    depth: int,
    d: int,
    block_size: int,
    first: int,
    stop: int,
    x: Array,
    size: int,
    a: int,
    next_column: int,
    next_row: int,
) -> None:
    """Load rows [row, row + depth) of gradients for packs [first, stop)."""
    inside = max((d - WIDE) // (WIDE * block_size), first)  # packs that are far from the end
    for r in range(depth):
        start = (row + r) * stride
        for pack in range(first, min(inside, stop)):
            column = start + pack * WIDE * block_size
            entry = (pack - first) * size + a + r * next_row
            gather(line, column, block_size, block_size, x, entry, next_column)
    for r in range(depth):
        start = (row + r) * stride
        for pack in range(inside, stop):
            column = start + pack * WIDE * block_size
            entry = (pack - first) * size + a + r * next_row
            gather_end(line, column, start + d, block_size, block_size, x, entry, next_column)


@compiled
def write_rows(
    x: Array,
    size: int,
    a: int,
    next_row: int,
    line: Array,
    stride: int,
    row: int,
    depth: int,
    d: int,
    block_size: int,
    first: int,
    stop: int,
) -> None:
    """Write the entries of packs [first, stop) to rows [row, row + depth) of d numbers."""
    for r in range(depth):
        start = (row + r) * stride
        for pack in range(first, stop):
            column = start + pack * WIDE * block_size
            entry = (pack - first) * size + a + r * next_row
            scatter(x, entry, 1, line, column, start + d, block_size, block_size)


@compiled
def clear_margins(
    x: Array, size: int, packs: int, a: int, ld: int, rows: int, all_rows: int, n: int, all_n: int
) -> None:
    """Zero what pads a matrix of rows x n to all_rows x all_n."""
    for pack in range(packs):
        b = pack * size + a
        fill(x, b + n, ld, rows, all_n - n, 0.0)
        fill(x, b + rows * ld, ld, all_rows - rows, all_n, 0.0)


@compiled
def load_sums(
    sums: Array,
    block_size: int,
    n: int,
    ld: int,
    count: int,
    damping: float,
    first: int,
    stop: int,
    x: Array,
    size: int,
) -> None:
    """Write F = lambda I + sums / m."""
    m, ridge = splat(float(count)), splat(damping)
    for pack in range(first, stop):
        a = (pack - first) * size
        entry = pack * (block_size * (block_size + 1) // 2)
        for i in range(block_size):
            row = a + i * ld
            for j in range(i + 1):
                store(x, row + j, load(sums, entry) / m)
                entry += 1
            store(x, row + i, load(x, row + i) + ridge)
        fill(x, a + block_size * ld, ld, n - block_size, n, 0.0)
        for i in range(block_size, n):
            store(x, a + i * ld + i, splat(1.0))


@compiled
def gram_of_rows(
    x: Array, size: int, packs: int, g: int, n: int, ld: int, block_size: int, ridge: float
) -> None:
    """K = ridge I + X X^T."""
    for pack in range(packs):
        a = pack * size
        fill(x, a, ld, n, n, ridge)
        for i in range(0, n, TILE):
            for j in range(0, i + 1, TILE):
                add_products(
                    x, 1.0, a + i * ld + j, ld, a + g + i, 1, ld, a + g + j, 1, ld, block_size
                )


@compiled
def factor(x: Array, size: int, first: int, stop: int, n: int, ld: int, r: int) -> None:
    """Cholesky of all packs."""
    for a in range(0, (stop - first) * size, size):
        cholesky(x, a, ld, a + r, n)


@compiled
def check(
    x: Array, size: int, first: int, stop: int, r: int, n: int, status: NDArray[np.int32]
) -> None:
    """Write the first failing pivot of every block, or -1."""
    for b in range(first * WIDE, min(stop * WIDE, len(status))):
        status[b] = first_failure(x, (b // WIDE - first) * size + r, n, b % WIDE)
