"""
Kernels of the woodbury family.
"""

from __future__ import annotations

import typing

import numpy
import numpy.typing

__all__: list[str] = [
    "block_gram",
    "block_inverse",
    "block_prune",
    "block_scores",
    "block_solve",
    "column_norms",
    "combine",
    "dots",
    "gram",
    "store",
    "symmetric_product",
    "symmetric_update",
]

def block_gram(
    G: numpy.ndarray,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    sums: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    sums += X_b^T X_b for all blocks.
    """

@typing.overload
def block_inverse(
    sums: numpy.typing.NDArray[numpy.float64] | None,
    rows: numpy.ndarray | None,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    d: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    damping: typing.SupportsFloat | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32],
    status: numpy.typing.NDArray[numpy.int32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Entries of F^-1 for groups of consecutive weights.
    """

@typing.overload
def block_inverse(
    sums: numpy.typing.NDArray[numpy.float64] | None,
    rows: numpy.ndarray | None,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    d: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    damping: typing.SupportsFloat | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    status: numpy.typing.NDArray[numpy.int32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Entries of F^-1 for groups of consecutive weights.
    """

@typing.overload
def block_prune(
    sums: numpy.typing.NDArray[numpy.float64] | None,
    rows: numpy.ndarray | None,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    damping: typing.SupportsFloat | typing.SupportsIndex,
    w: numpy.typing.NDArray[numpy.float32],
    mask: numpy.typing.NDArray[numpy.bool],
    out: numpy.typing.NDArray[numpy.float32],
    loss: numpy.typing.NDArray[numpy.float64],
    status: numpy.typing.NDArray[numpy.int32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The joint step of optimal brain surgeon in each block.
    """

@typing.overload
def block_prune(
    sums: numpy.typing.NDArray[numpy.float64] | None,
    rows: numpy.ndarray | None,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    damping: typing.SupportsFloat | typing.SupportsIndex,
    w: numpy.typing.NDArray[numpy.float64],
    mask: numpy.typing.NDArray[numpy.bool],
    out: numpy.typing.NDArray[numpy.float64],
    loss: numpy.typing.NDArray[numpy.float64],
    status: numpy.typing.NDArray[numpy.int32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The joint step of optimal brain surgeon in each block.
    """

@typing.overload
def block_scores(
    sums: numpy.typing.NDArray[numpy.float64] | None,
    rows: numpy.ndarray | None,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    damping: typing.SupportsFloat | typing.SupportsIndex,
    w: numpy.typing.NDArray[numpy.float32],
    group: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32],
    status: numpy.typing.NDArray[numpy.int32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    What it costs to set groups of weights to zero.
    """

@typing.overload
def block_scores(
    sums: numpy.typing.NDArray[numpy.float64] | None,
    rows: numpy.ndarray | None,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    damping: typing.SupportsFloat | typing.SupportsIndex,
    w: numpy.typing.NDArray[numpy.float64],
    group: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    status: numpy.typing.NDArray[numpy.int32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    What it costs to set groups of weights to zero.
    """

@typing.overload
def block_solve(
    sums: numpy.typing.NDArray[numpy.float64] | None,
    rows: numpy.ndarray | None,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    damping: typing.SupportsFloat | typing.SupportsIndex,
    V: numpy.typing.NDArray[numpy.float32],
    out: numpy.typing.NDArray[numpy.float32],
    status: numpy.typing.NDArray[numpy.int32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    F^-1 V, row by row.
    """

@typing.overload
def block_solve(
    sums: numpy.typing.NDArray[numpy.float64] | None,
    rows: numpy.ndarray | None,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    damping: typing.SupportsFloat | typing.SupportsIndex,
    V: numpy.typing.NDArray[numpy.float64],
    out: numpy.typing.NDArray[numpy.float64],
    status: numpy.typing.NDArray[numpy.int32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    F^-1 V, row by row.
    """

def column_norms(
    G: numpy.ndarray,
    E: numpy.ndarray | None,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    L: numpy.typing.NDArray[numpy.float64],
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Column sums of squares of L^-1 [G; E].
    """

@typing.overload
def combine(
    G: numpy.ndarray,
    C: numpy.typing.NDArray[numpy.float64],
    X: numpy.typing.NDArray[numpy.float32] | None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    scale X + C G for blocks of columns.
    """

@typing.overload
def combine(
    G: numpy.ndarray,
    C: numpy.typing.NDArray[numpy.float64],
    X: numpy.typing.NDArray[numpy.float64] | None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    scale X + C G for blocks of columns.
    """

@typing.overload
def dots(
    G: numpy.ndarray,
    X: numpy.typing.NDArray[numpy.float32],
    block_size: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    G X^T for blocks of columns.
    """

@typing.overload
def dots(
    G: numpy.ndarray,
    X: numpy.typing.NDArray[numpy.float64],
    block_size: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    G X^T for blocks of columns.
    """

def gram(
    G: numpy.ndarray,
    block_size: typing.SupportsInt | typing.SupportsIndex,
    exact: bool,
    K: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    K = G G^T for blocks of columns.
    """

@typing.overload
def store(
    g: numpy.typing.NDArray[numpy.float32],
    row: numpy.ndarray,
    rounded: numpy.typing.NDArray[numpy.float32] | None,
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> int:
    """
    Rounds g into a row; -1, or the index of the first entry that is not finite.
    """

@typing.overload
def store(
    g: numpy.typing.NDArray[numpy.float64],
    row: numpy.ndarray,
    rounded: numpy.typing.NDArray[numpy.float64] | None,
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> int:
    """
    Rounds g into a row; -1, or the index of the first entry that is not finite.
    """

@typing.overload
def symmetric_product(
    J: list[numpy.typing.NDArray[numpy.float32]],
    V: list[numpy.typing.NDArray[numpy.float32]],
    Y: list[numpy.typing.NDArray[numpy.float32]],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Y = V J for many factors.
    """

@typing.overload
def symmetric_product(
    J: list[numpy.typing.NDArray[numpy.float64]],
    V: list[numpy.typing.NDArray[numpy.float64]],
    Y: list[numpy.typing.NDArray[numpy.float64]],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Y = V J for many factors.
    """

@typing.overload
def symmetric_update(
    J: list[numpy.typing.NDArray[numpy.float32]],
    alpha: numpy.typing.NDArray[numpy.float64],
    delta: numpy.typing.NDArray[numpy.float64],
    sign: numpy.typing.NDArray[numpy.float64],
    Y: list[numpy.typing.NDArray[numpy.float32]],
    out: list[numpy.typing.NDArray[numpy.float32]],
    norms: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out = alpha J + delta I + sign Y^T Y for many factors, and their norms.
    """

@typing.overload
def symmetric_update(
    J: list[numpy.typing.NDArray[numpy.float64]],
    alpha: numpy.typing.NDArray[numpy.float64],
    delta: numpy.typing.NDArray[numpy.float64],
    sign: numpy.typing.NDArray[numpy.float64],
    Y: list[numpy.typing.NDArray[numpy.float64]],
    out: list[numpy.typing.NDArray[numpy.float64]],
    norms: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out = alpha J + delta I + sign Y^T Y for many factors, and their norms.
    """
