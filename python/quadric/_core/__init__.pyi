"""
The native kernels of quadric.
"""

from __future__ import annotations

from . import linalg, random, sketch, sweep, transport, woodbury

__all__: list[str] = [
    "linalg",
    "random",
    "simd_level",
    "simd_levels",
    "sketch",
    "sweep",
    "transport",
    "woodbury",
]

def simd_level() -> str:
    """
    The instruction-set level in force: the best of this processor, or QUADRIC_SIMD.
    """

def simd_levels() -> list[str]:
    """
    The instruction-set levels that run on this processor, lowest first.
    """
