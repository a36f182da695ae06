"""
Kernels of the sweep family.
"""

from __future__ import annotations

import typing

import numpy
import numpy.typing

__all__: list[str] = ["cholesky", "gather", "gram", "grid", "sweep", "symmetry_defect"]

@typing.overload
def cholesky(
    A: numpy.typing.NDArray[numpy.float32],
    diagonal: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> int:
    """
    Factors A in place; -1, or the sweep position of the pivot that failed.
    """

@typing.overload
def cholesky(
    A: numpy.typing.NDArray[numpy.float64],
    diagonal: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> int:
    """
    Factors A in place; -1, or the sweep position of the pivot that failed.
    """

@typing.overload
def gather(
    H: numpy.typing.NDArray[numpy.float32],
    order: numpy.typing.NDArray[numpy.int64],
    A: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    A = H in reversed sweep order.
    """

@typing.overload
def gather(
    H: numpy.typing.NDArray[numpy.float64],
    order: numpy.typing.NDArray[numpy.int64],
    A: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    A = H in reversed sweep order.
    """

@typing.overload
def gram(
    X: numpy.typing.NDArray[numpy.float32],
    weights: numpy.typing.NDArray[numpy.float32] | None,
    H: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    H += X^T diag(weights) X on the upper triangle.
    """

@typing.overload
def gram(
    X: numpy.typing.NDArray[numpy.float64],
    weights: numpy.typing.NDArray[numpy.float64] | None,
    H: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    H += X^T diag(weights) X on the upper triangle.
    """

@typing.overload
def grid(
    W: numpy.typing.NDArray[numpy.float32],
    group_size: typing.SupportsInt | typing.SupportsIndex,
    per_tensor: bool,
    max_code: typing.SupportsInt | typing.SupportsIndex,
    symmetric: bool,
    mse: bool,
    norm: typing.SupportsFloat | typing.SupportsIndex,
    steps: typing.SupportsInt | typing.SupportsIndex,
    scale_bits: typing.SupportsInt | typing.SupportsIndex,
    scales: numpy.typing.NDArray[numpy.float32],
    zeros: numpy.typing.NDArray[numpy.uint8],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Grids of fixed groups of columns.
    """

@typing.overload
def grid(
    W: numpy.typing.NDArray[numpy.float64],
    group_size: typing.SupportsInt | typing.SupportsIndex,
    per_tensor: bool,
    max_code: typing.SupportsInt | typing.SupportsIndex,
    symmetric: bool,
    mse: bool,
    norm: typing.SupportsFloat | typing.SupportsIndex,
    steps: typing.SupportsInt | typing.SupportsIndex,
    scale_bits: typing.SupportsInt | typing.SupportsIndex,
    scales: numpy.typing.NDArray[numpy.float64],
    zeros: numpy.typing.NDArray[numpy.uint8],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Grids of fixed groups of columns.
    """

@typing.overload
def sweep(
    W: numpy.typing.NDArray[numpy.float32],
    R: numpy.typing.NDArray[numpy.float32] | None,
    order: numpy.typing.NDArray[numpy.int64],
    dead: numpy.typing.NDArray[numpy.bool] | None,
    group: numpy.typing.NDArray[numpy.int32] | None,
    group_size: typing.SupportsInt | typing.SupportsIndex,
    stale_block: typing.SupportsInt | typing.SupportsIndex,
    max_code: typing.SupportsInt | typing.SupportsIndex,
    symmetric: bool,
    mse: bool,
    norm: typing.SupportsFloat | typing.SupportsIndex,
    steps: typing.SupportsInt | typing.SupportsIndex,
    scale_bits: typing.SupportsInt | typing.SupportsIndex,
    keep: typing.SupportsInt | typing.SupportsIndex,
    out_of: typing.SupportsInt | typing.SupportsIndex,
    sparsity: typing.SupportsFloat | typing.SupportsIndex,
    mask_block: typing.SupportsInt | typing.SupportsIndex,
    per_row: bool,
    feedback: bool,
    codes: numpy.typing.NDArray[numpy.uint8] | None,
    scales: numpy.typing.NDArray[numpy.float32] | None,
    zeros: numpy.typing.NDArray[numpy.uint8] | None,
    weights: numpy.typing.NDArray[numpy.float32] | None,
    mask: numpy.typing.NDArray[numpy.bool] | None,
    loss: numpy.typing.NDArray[numpy.float64] | None,
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The sweep: codes, grids, weights, mask and loss of W.
    """

@typing.overload
def sweep(
    W: numpy.typing.NDArray[numpy.float64],
    R: numpy.typing.NDArray[numpy.float64] | None,
    order: numpy.typing.NDArray[numpy.int64],
    dead: numpy.typing.NDArray[numpy.bool] | None,
    group: numpy.typing.NDArray[numpy.int32] | None,
    group_size: typing.SupportsInt | typing.SupportsIndex,
    stale_block: typing.SupportsInt | typing.SupportsIndex,
    max_code: typing.SupportsInt | typing.SupportsIndex,
    symmetric: bool,
    mse: bool,
    norm: typing.SupportsFloat | typing.SupportsIndex,
    steps: typing.SupportsInt | typing.SupportsIndex,
    scale_bits: typing.SupportsInt | typing.SupportsIndex,
    keep: typing.SupportsInt | typing.SupportsIndex,
    out_of: typing.SupportsInt | typing.SupportsIndex,
    sparsity: typing.SupportsFloat | typing.SupportsIndex,
    mask_block: typing.SupportsInt | typing.SupportsIndex,
    per_row: bool,
    feedback: bool,
    codes: numpy.typing.NDArray[numpy.uint8] | None,
    scales: numpy.typing.NDArray[numpy.float64] | None,
    zeros: numpy.typing.NDArray[numpy.uint8] | None,
    weights: numpy.typing.NDArray[numpy.float64] | None,
    mask: numpy.typing.NDArray[numpy.bool] | None,
    loss: numpy.typing.NDArray[numpy.float64] | None,
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The sweep: codes, grids, weights, mask and loss of W.
    """

@typing.overload
def symmetry_defect(
    H: numpy.typing.NDArray[numpy.float32], n_threads: typing.SupportsInt | typing.SupportsIndex
) -> float:
    """
    max |H_ij - H_ji| / max |H_ij|; NaN if an entry is not finite.
    """

@typing.overload
def symmetry_defect(
    H: numpy.typing.NDArray[numpy.float64], n_threads: typing.SupportsInt | typing.SupportsIndex
) -> float:
    """
    max |H_ij - H_ji| / max |H_ij|; NaN if an entry is not finite.
    """
