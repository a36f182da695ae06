"""Random signs, one bit each, and the streams of words that the operators draw from."""

from typing import Any

import numpy as np

from quadric import random

SPARSE, SIGNS, SAMPLES, CIRCULANT = 0, 1, 2, 3  # and 4, dense operators, within their kernels


def signs(
    seed: int,
    stream: int,
    first: int,
    count: int,
    dtype: Any = np.int8,
    *,
    backend: str | None = None,
    n_threads: int | None = None,
) -> np.ndarray:
    """Return signs `first` to ``first + count - 1`` of a stream: bit i mod 32 of word i // 32."""
    start = first // 32
    words = random.words(
        seed,
        stream,
        start,
        -(-(first + count) // 32) - start,
        backend=backend,
        n_threads=n_threads,
    )
    bits = np.unpackbits(words.astype("<u4", copy=False).view(np.uint8), bitorder="little")
    found = bits[first - 32 * start :][:count].astype(dtype)
    found *= -2
    found += 1
    return found
