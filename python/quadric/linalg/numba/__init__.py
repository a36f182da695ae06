"""Batched linear algebra without a compiler, and what the Numba kernels of all families share."""

from quadric.linalg.numba.spd import spd

__all__ = ["spd"]
