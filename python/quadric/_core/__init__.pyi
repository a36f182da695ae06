"""
The native kernels of quadric.
"""

from __future__ import annotations

from . import linalg, sweep, transport, woodbury

__all__: list[str] = ["linalg", "simd_level", "simd_levels", "sweep", "transport", "woodbury"]

def simd_level() -> str:
    """
    The instruction-set level in force: the best of this processor, or QUADRIC_SIMD.
    """

def simd_levels() -> list[str]:
    """
    The instruction-set levels that run on this processor, lowest first.
    """
