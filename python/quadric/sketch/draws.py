"""Random numbers for samplers that run in Python, one after the other within a stream."""

import numpy as np

from quadric import random

LEVERAGE, ROWS, DPP, VOLUME, DESIGN = range(16, 21)
"""Streams of the samplers."""


class Draws:
    """The numbers of one stream from number `first` on."""

    def __init__(self, seed: int, stream: int, backend: str | None, first: int = 0) -> None:
        self.seed, self.stream, self.backend, self.next = seed, stream, backend, first

    def uniforms(self, count: int) -> np.ndarray:
        """Return the next numbers in [0, 1), float64."""
        first, self.next = self.next, self.next + count
        return random.uniforms(self.seed, self.stream, first, count, backend=self.backend)

    def normals(self, count: int) -> np.ndarray:
        """Return the next normal numbers, float64."""
        first, self.next = self.next, self.next + count
        return random.normals(self.seed, self.stream, first, count, backend=self.backend)
