"""Explicit matrices of the sketching operators, from random words made again in plain Python.

All are float64 and unscaled: the entries of sparse signs are 0 and +-1, and so on.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.floating]

MASK = 0xFFFFFFFF


# ---- random words --------------------------------------------------------------------------------


@functools.cache
def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10 as in the paper of Salmon et al., figure 2 and section 3.3."""
    c, k = counter, key
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = (
            (right >> 32) ^ c[1] ^ k[0],
            right & MASK,
            (left >> 32) ^ c[3] ^ k[1],
            left & MASK,
        )
        k = (k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK
    return c


def block(seed: int, stream: int, number: int) -> tuple[int, int, int, int]:
    return philox((number & MASK, number >> 32, stream, 0), (seed & MASK, seed >> 32))


def word(seed: int, stream: int, number: int) -> int:
    return block(seed, stream, number // 4)[number % 4]


def sign(seed: int, stream: int, number: int) -> int:
    return -1 if word(seed, stream, number // 32) >> number % 32 & 1 else 1


def signs(seed: int, stream: int, count: int) -> Array:
    return np.array([sign(seed, stream, i) for i in range(count)], float)


# ---- operators -----------------------------------------------------------------------------------


def sparse_sign(m: int, n: int, nnz: int, seed: int) -> Array:
    s, group = np.zeros((m, n)), m // nnz
    for i in range(n):
        for k in range(nnz):
            w = word(seed, 0, i * nnz + k)
            s[k * group + ((w >> 1) * group >> 31), i] = -1 if w & 1 else 1
    return s


def rademacher(m: int, n: int, seed: int) -> Array:
    words = -(-m // 128) * 4  # of a column
    s = np.empty((m, n))
    for i in range(n):
        for r in range(m):
            s[r, i] = -1 if word(seed, 4, i * words + r // 32) >> r % 32 & 1 else 1
    return s


def gaussian(m: int, n: int, seed: int) -> tuple[Array, Array]:
    """Return the entries, and the radius that belongs to each."""
    blocks = -(-m // 4)  # of a column
    s, radius = np.empty((4 * blocks, n)), np.empty((4 * blocks, n))
    for i in range(n):
        for q in range(blocks):
            w = block(seed, 4, i * blocks + q)
            for half in (0, 2):
                size = math.sqrt(-2 * math.log((w[half] + 0.5) * 2.0**-32))
                angle = 2 * math.pi * (w[half + 1] + 0.5) * 2.0**-32
                s[4 * q + half, i] = size * math.cos(angle)
                s[4 * q + half + 1, i] = size * math.sin(angle)
                radius[4 * q + half : 4 * q + half + 2, i] = size
    return s[:m], radius[:m]


def order(n: int) -> int:
    """Return the smallest power of two from n on."""
    size = 1
    while size < n:
        size *= 2
    return size


def samples(m: int, n: int, seed: int) -> list[int]:
    """Return m different rows of the Hadamard matrix for n rows of A.

    Each number takes the upper bits of two words. Few numbers are drawn until there are enough
    different ones; many are the places of the m smallest of N random numbers of 64 bits.
    """
    size = order(n)
    bits = size.bit_length() - 1
    if 2 * m > size:
        keys = [word(seed, 2, 2 * i) << 32 | word(seed, 2, 2 * i + 1) for i in range(size)]
        return sorted(range(size), key=lambda i: keys[i])[:m]
    found: dict[int, None] = {}
    i = 0
    while len(found) < m:
        drawn = word(seed, 2, 2 * i) << 32 | word(seed, 2, 2 * i + 1)
        found.setdefault(drawn >> 64 - bits if bits else 0)
        i += 1
    return list(found)


def srht(m: int, n: int, seed: int) -> Array:
    rows = linalg.hadamard(order(n), dtype=float)[samples(m, n, seed)]
    return rows[:, :n] * signs(seed, 1, n)


def circulant(m: int, n: int, seed: int) -> Array:
    return linalg.circulant(signs(seed, 3, n))[:m] * signs(seed, 1, n)


def row_sampling(indices: Array, n: int, weights: Array) -> Array:
    s = np.zeros((len(indices), n))
    for k, (i, w) in enumerate(zip(indices, weights, strict=True)):
        s[k, i] = w
    return s
