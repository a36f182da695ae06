"""Philox 4x32-10: words of 32 random bits from a key and a counter, each block on its own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import pointer

Words = NDArray[np.uint32]

PIECE = 1 << 14  # blocks of a piece of work

_LOW, _SHIFT, _ZERO = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(0)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def philox(seed: int, stream: int, first: int, out: Words, n_threads: int) -> None:
    """Write the blocks of words from number `first` on.

    Parameters
    ----------
    seed : int
        The key, 64 bits.
    stream : int
        The third word of the counter; the first two are the number of the block.
    first : int
    out : (blocks, 4) uint32 array, C-contiguous, written
    n_threads : int
    """
    line, count = out.reshape(-1), len(out)

    def work(i: int) -> None:
        start, stop = i * PIECE, min((i + 1) * PIECE, count)
        fill(np.uint64(seed), np.uint64(stream), np.uint64(first + start), line, start, stop)

    run(work, -(-count // PIECE), n_threads)


@compiled
def fill(
    seed: np.uint64, stream: np.uint64, first: np.uint64, out: Words, start: int, stop: int
) -> None:
    """Write blocks [start, stop) of `out`, the first of them with number `first`."""
    low, high = seed & _LOW, seed >> _SHIFT
    words = pointer(out)
    for i in range(stop - start):
        n = first + np.uint64(i)
        a, b, c, d = block(n & _LOW, n >> _SHIFT, stream, _ZERO, low, high)
        at = 4 * (start + i)
        words[at] = np.uint32(a)
        words[at + 1] = np.uint32(b)
        words[at + 2] = np.uint32(c)
        words[at + 3] = np.uint32(d)


@inlined
def block(a: Any, b: Any, c: Any, d: Any, low: Any, high: Any) -> tuple[Any, Any, Any, Any]:
    """The four words of a counter (a, b, c, d) under a key (low, high); all are uint64."""
    for _ in range(10):
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (q >> _SHIFT) ^ b ^ low, q & _LOW, (p >> _SHIFT) ^ d ^ high, p & _LOW
        low, high = (low + _WEYL[0]) & _LOW, (high + _WEYL[1]) & _LOW
    return a, b, c, d
