"""Sampled rows of a Walsh-Hadamard transform with random signs, in one read of A.

With rows of x in blocks of k, (H_N x)[i k + j] = sum_b (-1)^popcount(i & b) (H_k x_b)[j].
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import lanes, load, multiply_add, pointer, prefetch, repeat, store
from quadric.sketch.numba import tiles
from quadric.sketch.numba.hadamard import transform
from quadric.sketch.numba.signs import write_signs

Array = NDArray[Any]
Samples = NDArray[np.int64]

VISIT = 2048  # rows of A that a tile sees at a time
PIECE = 1 << 16  # signs that a thread makes at a time
AHEAD = 16  # rows of A that are fetched before they are needed


def srht(
    A: Array, first: int, seed: int, k: int, samples: Samples, out: Array, n_threads: int
) -> None:
    """Add (H_N D)[samples, first:first+n] A.

    Parameters
    ----------
    A : (n, d) array, any strides
    first : int
        A multiple of k. So is n, unless the rows of A are the last ones.
    seed : int
    k : int
        Rows that are transformed together, a power of two.
    samples : (m,) int64 array
        Rows of H_N.
    out : (m, d) array of A's dtype, C-contiguous, updated in the order of the blocks of A
    n_threads : int
    """
    (n, d), m = A.shape, len(out)
    if not (n and d and m):
        return
    memory, start, (to_row, to_column) = line(A)
    wide = tiles.width(d, m + k, A.itemsize, n_threads)
    groups, visit = tiles.groups(d, wide, n_threads), tiles.visit(n, d, VISIT, k)
    packed = tiles.pack(out, wide)
    samples = np.ascontiguousarray(samples)
    signs = np.empty(n, A.dtype)

    def sign(i: int) -> None:
        write_signs(np.uint64(seed), first + i * PIECE, signs[i * PIECE : (i + 1) * PIECE])

    def work(i: int) -> None:
        add_tiles(
            memory, start, to_row, to_column, n, d, signs, first // k, k, samples, packed, wide,
            *groups[i], visit, tiles.empty(k * wide, A.dtype),
        )  # fmt: skip

    run(sign, -(-n // PIECE), n_threads)
    run(work, len(groups), n_threads)
    tiles.unpack(packed, wide, out)


@compiled
def add_tiles(
    A: Array, start: int, to_row: int, to_column: int, n: int, d: int, signs: Array, block: int,
    k: int, samples: Samples, out: Array, wide: int, first: int, stop: int, visit: int, Y: Array,
) -> None:  # fmt: skip
    """Take tiles [first, stop) through all blocks."""
    m = len(samples)
    places, upper = np.empty(m, np.int64), np.empty(m, np.int64)
    shift = 0
    while 1 << shift < k:
        shift += 1
    for s in range(m):
        places[s], upper[s] = (samples[s] & (k - 1)) * wide, samples[s] >> shift
    parities = np.empty(m, A.dtype)
    for low in range(0, n, visit):
        for t in range(first, stop):
            columns, to = min(wide, d - t * wide), start + t * wide * to_column
            for i in range(low, min(low + visit, n), k):
                rows = min(k, n - i)
                begin(A, to + i * to_row, to_row, to_column, rows, columns, signs, i, Y, wide)
                for e in range(rows * wide, k * wide):
                    Y[e] = 0
                transform(Y, 0, k, wide)
                parity(upper, block + i // k, parities)
                add(Y, places, parities, out, t * m * wide, wide)


@compiled
def begin(
    A: Array, start: int, to_row: int, to_column: int, rows: int, columns: int, signs: Array,
    first: int, Y: Array, wide: int,
) -> None:  # fmt: skip
    """Write D times the rows of a block."""
    source, target, sign, pack = pointer(A), pointer(Y), pointer(signs), lanes(A)
    direct = to_column == 1 and columns == wide
    if not direct:
        tiles.copy(A, start, to_row, to_column, rows, columns, Y, 0, wide, wide)
    for i in range(rows):
        s, y, a = repeat(sign, first + i), i * wide, start + i * to_row
        if direct:
            for c in range(0, wide, pack):
                prefetch(source, a + AHEAD * to_row + c)
                store(target, y + c, s * load(source, a + c))
        else:
            for c in range(0, wide, pack):
                store(target, y + c, s * load(target, y + c))


@compiled
def parity(upper: Samples, block: int, out: Array) -> None:
    """Write (-1)^popcount(upper & block)."""
    for s in range(len(out)):
        bits = upper[s] & block
        bits ^= bits >> 32
        bits ^= bits >> 16
        bits ^= bits >> 8
        bits ^= bits >> 4
        bits ^= bits >> 2
        bits ^= bits >> 1
        out[s] = 1 - 2 * (bits & 1)


@compiled
def add(Y: Array, places: Samples, signs: Array, out: Array, at: int, wide: int) -> None:
    """Add the sampled rows with their signs, which are products that round nothing."""
    source, target, place, sign = pointer(Y), pointer(out), pointer(places), pointer(signs)
    pack = lanes(Y)
    for s in range(len(places)):
        value, y, o = repeat(sign, s), place[s], at + s * wide
        if wide == 4 * pack:
            for c in range(4):
                q = c * pack
                store(target, o + q, multiply_add(value, load(source, y + q), load(target, o + q)))
        else:
            for q in range(0, wide, pack):
                store(target, o + q, multiply_add(value, load(source, y + q), load(target, o + q)))
