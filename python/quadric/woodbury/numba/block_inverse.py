"""Inverses of groups of consecutive weights, and the scores of pruning them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.lanes import WIDE, load, multiply_add, splat, store
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.packs import (
    TILE,
    add_products,
    cholesky,
    fill,
    fill_tile,
    first_failure,
    forward,
    inverse,
    mirror,
    padded,
    scale_tile,
    scatter,
)
from quadric.woodbury.numba.blocks import Side, load_rows, over_packs, write_rows

Array = NDArray[Any]


class Inverse(Side):
    """A side with room for the inverse: at `a`, rows `lda` apart."""

    def __init__(
        self,
        sums: NDArray[np.float64] | None,
        rows: Array | None,
        block_size: int,
        d: int,
        count: int,
        damping: float,
        group: int,
    ) -> None:
        super().__init__(sums, rows, block_size, d, count, damping)
        self.group = group
        self.a = self.end if self.dual else 0
        self.lda = self.width + 1
        self.t = self.end
        self.end += (self.width if self.dual else TILE) * self.lda

    def invert(self, x: Array, size: int, first: int, stop: int, status: NDArray[np.int32]) -> None:
        """Write the lower triangle of F^-1, at least inside the groups."""
        self.factor(x, size, first, stop, status)
        if self.dual:
            invert_dual(
                x, size, stop - first, self.n, self.ld, self.r, self.g, self.width, self.a,
                self.lda, self.group, 1 / self.damping,
            )  # fmt: skip
        else:
            invert_primal(x, size, stop - first, self.n, self.ld, self.r, self.t, self.group)


@compiled
def invert_primal(
    x: Array, size: int, packs: int, n: int, ld: int, r: int, t: int, group: int
) -> None:
    """F^-1 in the place of the factor of F."""
    for a in range(0, packs * size, size):
        inverse(x, a, ld, a + r, a + t, n, group)


@compiled
def invert_dual(
    x: Array,
    size: int,
    packs: int,
    n: int,
    ld: int,
    r: int,
    g: int,
    width: int,
    a: int,
    lda: int,
    group: int,
    scaling: float,
) -> None:
    """F^-1 = (I - W^T W) / lambda, W = L^-1 X in the place of the gradients."""
    for b in range(0, packs * size, size):
        for i in range(0, width, TILE):
            forward(x, b + g + i * ld, ld, b, ld, b + r, n)
        for i in range(0, width, TILE):
            for j in range(0, i + 1, TILE):
                if (j + TILE - 1) // group < i // group:
                    continue
                tile = b + a + i * lda + j
                fill_tile(x, tile, lda, 1.0 if i == j else 0.0)
                add_products(x, -1.0, tile, lda, b + g + i * ld, ld, 1, b + g + j * ld, ld, 1, n)
                scale_tile(x, tile, lda, scaling)


def block_inverse(
    sums: NDArray[np.float64] | None,
    rows: Array | None,
    block_size: int,
    d: int,
    count: int,
    damping: float,
    group: int,
    out: Array,
    status: NDArray[np.int32],
    n_threads: int,
) -> None:
    """Write (F^-1)_QQ for all groups Q of consecutive weights.

    Parameters
    ----------
    sums : (packs, block_size (block_size + 1) / 2, 8) float64 array, or None
    rows : (m, d) array of gradients, contiguous rows, or None
    block_size, d, count : int
    damping : float
    group : int
        Divides `block_size`.
    out : (ceil(d / group), group, group) array, C-contiguous, written
        Zero outside a short last group.
    status : (blocks,) int32 array, written
        -1, or the first pivot that is not positive and finite; out is then NaN.
    n_threads : int
    """
    side = Inverse(sums, rows, block_size, d, count, damping, group)
    size, memory = side.end, line(out)[0]

    def work(x: Array, first: int, stop: int) -> None:
        side.invert(x, size, first, stop, status)
        write_groups(x, size, first, stop, side.a, side.lda, block_size, group, memory)

    over_packs(side.packs, size, n_threads, work)
    for b in np.flatnonzero(status >= 0):
        out[b * block_size // group : (b + 1) * block_size // group] = np.nan
    beyond = len(out) * group - d
    if beyond:
        out[-1, -beyond:] = 0
        out[-1, :, -beyond:] = 0


@compiled
def write_groups(
    x: Array,
    size: int,
    first: int,
    stop: int,
    a: int,
    lda: int,
    block_size: int,
    group: int,
    out: Array,
) -> None:
    """Write the groups of all blocks."""
    for pack in range(first, stop):
        b = (pack - first) * size + a
        start = pack * WIDE * block_size
        if group == 1:
            scatter(x, b, lda + 1, out, start, len(out), block_size, block_size)
            continue
        mirror(x, b, lda, block_size, group)
        for i in range(block_size):
            row = b + i * lda + i // group * group
            scatter(x, row, 1, out, (start + i) * group, len(out), block_size * group, group)


def block_scores(
    sums: NDArray[np.float64] | None,
    rows: Array | None,
    block_size: int,
    count: int,
    damping: float,
    w: Array,
    group: int,
    out: Array,
    status: NDArray[np.int32],
    n_threads: int,
) -> None:
    """Write w_Q^T ((F^-1)_QQ)^-1 w_Q / 2 for all groups Q of consecutive weights.

    Parameters
    ----------
    sums, rows, block_size, count, damping, group, status, n_threads
        As in `block_inverse`; a group whose part of the inverse is not positive definite counts as
        a failure of its block, with the weight as the pivot.
    w : (d,) array
    out : (ceil(d / group),) array of w's dtype, C-contiguous, written
    """
    side = Inverse(sums, rows, block_size, len(w), count, damping, group)
    memory = line(np.ascontiguousarray(w))[0]
    target = line(out)[0]
    v = side.end
    n = padded(group)
    size = v + 2 * side.width + n * (n + 1) + n + TILE * (n + 1)

    def work(x: Array, first: int, stop: int) -> None:
        side.invert(x, size, first, stop, status)
        load_rows(memory, 0, 0, 1, side.d, block_size, first, stop, x, size, v, 1, 0)
        score(
            x, size, first, stop, side.a, side.lda, v, v + side.width, v + 2 * side.width,
            block_size, group, status,
        )  # fmt: skip
        write_rows(
            x, size, v + side.width, 0, target, 0, 0, 1, len(out), block_size // group, first, stop
        )

    over_packs(side.packs, size, n_threads, work)
    for b in np.flatnonzero(status >= 0):
        out[b * block_size // group : (b + 1) * block_size // group] = np.nan


@compiled
def score(
    x: Array,
    size: int,
    first: int,
    stop: int,
    a: int,
    lda: int,
    v: int,
    s: int,
    t: int,
    block_size: int,
    group: int,
    status: NDArray[np.int32],
) -> None:
    """Scores of the weights at v to s, with the factors of groups at t."""
    n = -(-group // TILE) * TILE
    ld = n + 1
    half = splat(0.5)
    for pack in range(first, stop):
        b = (pack - first) * size
        c = b + t
        r = c + n * ld
        y = r + n
        for k in range(block_size // group):
            q = k * group
            corner = b + a + q * (lda + 1)
            if group == 1:
                w, variance = load(x, b + v + q), load(x, corner)
                store(x, r, variance)
                store(x, b + s + k, w * w * half / variance)
            else:
                fill(x, c, ld, n, n, 1.0)
                for i in range(0, n, TILE):
                    fill_tile(x, y + i, ld, 0.0)
                for i in range(group):
                    for j in range(i + 1):
                        store(x, c + i * ld + j, load(x, corner + i * lda + j))
                    store(x, y + i, load(x, b + v + q + i))
                cholesky(x, c, ld, r, n)
                forward(x, y, ld, c, ld, r, n)
                total = splat(0.0)
                for i in range(group):
                    total = multiply_add(load(x, y + i), load(x, y + i), total)
                store(x, b + s + k, total * half)
            for block in range(pack * WIDE, min((pack + 1) * WIDE, len(status))):
                pivot = first_failure(x, r, group, block % WIDE)
                if pivot >= 0 and status[block] < 0:
                    status[block] = q + pivot
