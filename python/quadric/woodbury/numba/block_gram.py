"""Sums of X^T X over the gradients, for all blocks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.lanes import WIDE, load, store
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.packs import TILE, add_products, fill, fill_tile, padded
from quadric.woodbury.numba.blocks import load_rows, over_packs

Array = NDArray[Any]

DEPTH = 64  # gradients that are transposed at a time


def block_gram(G: Array, block_size: int, sums: NDArray[np.float64], n_threads: int) -> None:
    """Add X^T X of every block to its sums.

    Parameters
    ----------
    G : (k, d) array of gradients, contiguous rows
    block_size : int
    sums : (packs, block_size (block_size + 1) / 2, 8) float64 array, C-contiguous, updated
    n_threads : int
    """
    k, d = G.shape
    memory, _, (stride, _) = line(G)
    flat = sums.reshape(-1, WIDE)
    width = padded(block_size)
    step = DEPTH + 1  # entries from weight to weight; no power of two
    size = (width + TILE) * step

    def work(x: Array, first: int, stop: int) -> None:
        for row in range(0, k, DEPTH):
            depth = min(DEPTH, k - row)
            load_rows(memory, stride, row, depth, d, block_size, first, stop, x, size, 0, step, 1)
            add_sums(x, size, step, depth, block_size, first, stop, flat)

    over_packs(len(sums), size, n_threads, work)


@compiled
def add_sums(
    x: Array, size: int, step: int, depth: int, block_size: int, first: int, stop: int, sums: Array
) -> None:
    """Add the products of `depth` rows; what pads a tile is computed and dropped."""
    for pack in range(first, stop):
        a = (pack - first) * size
        tile = a + size - TILE * step
        target = pack * (block_size * (block_size + 1) // 2)
        fill(x, a + block_size * step, step, -block_size % TILE, depth, 0.0)
        for i in range(0, block_size, TILE):
            for j in range(0, i + 1, TILE):
                fill_tile(x, tile, step, 0.0)
                add_products(
                    x, 1.0, tile, step, a + i * step, step, 1, a + j * step, step, 1, depth
                )
                for p in range(min(TILE, block_size - i)):
                    entry = target + (i + p) * (i + p + 1) // 2 + j
                    for q in range(min(TILE, i + p - j + 1)):
                        store(sums, entry + q, load(sums, entry + q) + load(x, tile + p * step + q))
