"""The Walsh-Hadamard transform of a few columns that stay in the cache."""

from typing import Any

from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.vectors import lanes, load, pointer, store

Array = NDArray[Any]

INNER = 64  # rows that are transformed while they are in the first cache


@compiled
def transform(Y: Array, at: int, k: int, wide: int) -> None:
    """Transform k rows of `wide` numbers, whole vectors; k is a power of two."""
    inner = min(k, INNER)
    for i in range(0, k, inner):
        steps(Y, at + i * wide, inner, 1, wide)
    steps(Y, at, k, inner, wide)


@compiled
def steps(Y: Array, at: int, k: int, h: int, wide: int) -> None:
    """Combine rows at distances h, 2 h and so on, below k."""
    y, pack = pointer(Y), lanes(Y)
    while h < k:
        if 8 * h <= k:
            for i in range(0, k, 8 * h):
                for q in range(at + i * wide, at + (i + h) * wide, pack):
                    eight(y, q, h * wide)
            h *= 8
        elif 4 * h <= k:
            for i in range(0, k, 4 * h):
                for q in range(at + i * wide, at + (i + h) * wide, pack):
                    four(y, q, h * wide)
            h *= 4
        else:
            for i in range(0, k, 2 * h):
                for q in range(at + i * wide, at + (i + h) * wide, pack):
                    a, b = load(y, q), load(y, q + h * wide)
                    store(y, q, a + b)
                    store(y, q + h * wide, a - b)
            h *= 2


@inlined
def four(y: Any, q: int, s: int) -> None:
    """Two steps, of distances s and 2 s."""
    a, b, c, d = load(y, q), load(y, q + s), load(y, q + 2 * s), load(y, q + 3 * s)
    a, b, c, d = a + b, a - b, c + d, c - d
    store(y, q, a + c)
    store(y, q + s, b + d)
    store(y, q + 2 * s, a - c)
    store(y, q + 3 * s, b - d)


@inlined
def eight(y: Any, q: int, s: int) -> None:
    """Three steps, of distances s, 2 s and 4 s."""
    a, b, c, d = load(y, q), load(y, q + s), load(y, q + 2 * s), load(y, q + 3 * s)
    e, f = load(y, q + 4 * s), load(y, q + 5 * s)
    g, h = load(y, q + 6 * s), load(y, q + 7 * s)
    a, b, c, d, e, f, g, h = a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h
    a, c, b, d, e, g, f, h = a + c, a - c, b + d, b - d, e + g, e - g, f + h, f - h
    store(y, q, a + e)
    store(y, q + s, b + f)
    store(y, q + 2 * s, c + g)
    store(y, q + 3 * s, d + h)
    store(y, q + 4 * s, a - e)
    store(y, q + 5 * s, b - f)
    store(y, q + 6 * s, c - g)
    store(y, q + 7 * s, d - h)
