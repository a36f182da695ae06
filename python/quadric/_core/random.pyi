"""
Random words from counters.
"""

from __future__ import annotations

import typing

import numpy
import numpy.typing

__all__: list[str] = ["philox"]

def philox(
    seed: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
    first: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.uint32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Blocks of four words of Philox 4x32-10.
    """
