"""
Kernels that several families stand on.
"""

from __future__ import annotations

import typing

import numpy
import numpy.typing

__all__: list[str] = ["spd"]

@typing.overload
def spd(
    A: numpy.typing.NDArray[numpy.float32],
    b: numpy.typing.NDArray[numpy.float32] | None,
    what: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32] | None,
    logdet: numpy.typing.NDArray[numpy.float64] | None,
    status: numpy.typing.NDArray[numpy.int32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Cholesky factor (0), inverse (1), solution (2) or log-determinant alone (3) of a batch.
    """

@typing.overload
def spd(
    A: numpy.typing.NDArray[numpy.float64],
    b: numpy.typing.NDArray[numpy.float64] | None,
    what: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64] | None,
    logdet: numpy.typing.NDArray[numpy.float64] | None,
    status: numpy.typing.NDArray[numpy.int32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Cholesky factor (0), inverse (1), solution (2) or log-determinant alone (3) of a batch.
    """
