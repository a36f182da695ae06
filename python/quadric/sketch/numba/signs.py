"""Random signs and rows: where each operator finds its words."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import pointer
from quadric.random.numba.philox import fill

Array = NDArray[Any]
Rows = NDArray[np.int32]

PIECE = 1 << 15  # of the entries that a thread makes at a time
SPARSE, DIAGONAL = 0, 1  # streams


class Codes:
    """Rows and signs of consecutive columns of a sparse sign matrix."""

    def __init__(self, seed: int, nnz: int, m: int, most: int, dtype: Any) -> None:
        self.seed, self.nnz, self.m = np.uint64(seed), nnz, m
        self.rows = np.empty(most * nnz, np.int32)
        self.signs = np.empty(most * nnz, dtype)

    def write(self, first: int, count: int, n_threads: int) -> None:
        """Make those of columns `first` to `first` + `count` - 1."""
        step = max(PIECE // self.nnz, 1)

        def work(i: int) -> None:
            start = i * step
            entries = slice(start * self.nnz, min(start + step, count) * self.nnz)
            write_codes(
                self.seed, first + start, self.nnz, self.m, self.rows[entries], self.signs[entries]
            )

        run(work, -(-count // step), n_threads)


@compiled
def write_codes(seed: np.uint64, first: int, nnz: int, m: int, rows: Rows, signs: Array) -> None:
    """Write row and sign of each entry of the columns from `first` on."""
    begin = first * nnz // 4
    skip = first * nnz - 4 * begin
    blocks = (skip + len(rows) + 3) // 4
    words = np.empty(4 * blocks, np.uint32)
    fill(np.uint64(seed), np.uint64(SPARSE), np.uint64(begin), words, 0, blocks)
    size = m // nnz
    for e in range(len(rows)):
        word = np.int64(words[skip + e])
        rows[e] = (word >> 1) * size >> 31
        signs[e] = 1 - 2 * (word & 1)
    if nnz > 1:
        for i in range(len(rows) // nnz):
            for k in range(nnz):
                rows[i * nnz + k] += k * size


@compiled
def write_signs(seed: np.uint64, first: int, signs: Array) -> None:
    """Write the diagonal of D from `first` on."""
    begin = first // 128
    skip = first - 128 * begin
    blocks = (skip + len(signs) + 127) // 128
    words = np.empty(4 * blocks, np.uint32)
    fill(np.uint64(seed), np.uint64(DIAGONAL), np.uint64(begin), words, 0, blocks)
    from_bits(words, skip, signs)


@compiled
def from_bits(words: NDArray[np.uint32], skip: int, signs: Array) -> None:
    """Write the signs that the bits from number `skip` on stand for."""
    word, sign, i = pointer(words), pointer(signs), 0
    while i < len(signs):
        bit = (skip + i) % 32
        value = np.int64(word[(skip + i) // 32]) >> bit
        for j in range(min(32 - bit, len(signs) - i)):
            sign[i + j] = 1 - 2 * ((value >> j) & 1)
        i += 32 - bit
