"""
Kernels of the transport family.
"""

from __future__ import annotations

import typing

import numpy
import numpy.typing

__all__: list[str] = [
    "apply_plan",
    "candidates",
    "capped_columns",
    "capped_dual",
    "newton_direction",
    "plan",
    "point_gradient",
    "sinkhorn",
    "sparse_sinkhorn",
]

@typing.overload
def apply_plan(
    M: numpy.typing.NDArray[numpy.float32] | None,
    x: numpy.typing.NDArray[numpy.float32] | None,
    y: numpy.typing.NDArray[numpy.float32] | None,
    kind: typing.SupportsInt | typing.SupportsIndex,
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    V: numpy.typing.NDArray[numpy.float64] | None,
    out: numpy.typing.NDArray[numpy.float64] | None,
    rows: numpy.typing.NDArray[numpy.float64],
    columns: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> float:
    """
    P V, the marginals and <P, C>, the plan never stored.
    """

@typing.overload
def apply_plan(
    M: numpy.typing.NDArray[numpy.float64] | None,
    x: numpy.typing.NDArray[numpy.float64] | None,
    y: numpy.typing.NDArray[numpy.float64] | None,
    kind: typing.SupportsInt | typing.SupportsIndex,
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    V: numpy.typing.NDArray[numpy.float64] | None,
    out: numpy.typing.NDArray[numpy.float64] | None,
    rows: numpy.typing.NDArray[numpy.float64],
    columns: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> float:
    """
    P V, the marginals and <P, C>, the plan never stored.
    """

@typing.overload
def candidates(
    M: numpy.typing.NDArray[numpy.float32] | None,
    x: numpy.typing.NDArray[numpy.float32] | None,
    y: numpy.typing.NDArray[numpy.float32] | None,
    kind: typing.SupportsInt | typing.SupportsIndex,
    a: numpy.typing.NDArray[numpy.float64],
    b: numpy.typing.NDArray[numpy.float64],
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    bits: typing.SupportsFloat | typing.SupportsIndex,
    limit: typing.SupportsInt | typing.SupportsIndex,
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> (
    tuple[
        numpy.typing.NDArray[numpy.int64],
        numpy.typing.NDArray[numpy.int32],
        numpy.typing.NDArray[numpy.float64],
    ]
    | None
):
    """
    The entries of the plan that matter, with their costs.
    """

@typing.overload
def candidates(
    M: numpy.typing.NDArray[numpy.float64] | None,
    x: numpy.typing.NDArray[numpy.float64] | None,
    y: numpy.typing.NDArray[numpy.float64] | None,
    kind: typing.SupportsInt | typing.SupportsIndex,
    a: numpy.typing.NDArray[numpy.float64],
    b: numpy.typing.NDArray[numpy.float64],
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    bits: typing.SupportsFloat | typing.SupportsIndex,
    limit: typing.SupportsInt | typing.SupportsIndex,
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> (
    tuple[
        numpy.typing.NDArray[numpy.int64],
        numpy.typing.NDArray[numpy.int32],
        numpy.typing.NDArray[numpy.float64],
    ]
    | None
):
    """
    The entries of the plan that matter, with their costs.
    """

@typing.overload
def capped_columns(
    M: numpy.typing.NDArray[numpy.float32],
    f: numpy.typing.NDArray[numpy.float64],
    b: numpy.typing.NDArray[numpy.float64],
    k: typing.SupportsInt | typing.SupportsIndex,
    reg: typing.SupportsFloat | typing.SupportsIndex,
    indices: numpy.typing.NDArray[numpy.int32],
    values: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The k largest entries of each column of f - M, projected.
    """

@typing.overload
def capped_columns(
    M: numpy.typing.NDArray[numpy.float64],
    f: numpy.typing.NDArray[numpy.float64],
    b: numpy.typing.NDArray[numpy.float64],
    k: typing.SupportsInt | typing.SupportsIndex,
    reg: typing.SupportsFloat | typing.SupportsIndex,
    indices: numpy.typing.NDArray[numpy.int32],
    values: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The k largest entries of each column of f - M, projected.
    """

@typing.overload
def capped_dual(
    M: numpy.typing.NDArray[numpy.float32],
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    k: typing.SupportsInt | typing.SupportsIndex,
    reg: typing.SupportsFloat | typing.SupportsIndex,
    indices: numpy.typing.NDArray[numpy.int32],
    values: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The same entries where g is given.
    """

@typing.overload
def capped_dual(
    M: numpy.typing.NDArray[numpy.float64],
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    k: typing.SupportsInt | typing.SupportsIndex,
    reg: typing.SupportsFloat | typing.SupportsIndex,
    indices: numpy.typing.NDArray[numpy.int32],
    values: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The same entries where g is given.
    """

def newton_direction(
    indptr: numpy.typing.NDArray[numpy.int64],
    indices: numpy.typing.NDArray[numpy.int32],
    values: numpy.typing.NDArray[numpy.float64],
    a: numpy.typing.NDArray[numpy.float64],
    c: numpy.typing.NDArray[numpy.float64],
    gradient: numpy.typing.NDArray[numpy.float64],
    shift: typing.SupportsFloat | typing.SupportsIndex,
    drop: typing.SupportsFloat | typing.SupportsIndex,
    tol: typing.SupportsFloat | typing.SupportsIndex,
    max_iter: typing.SupportsInt | typing.SupportsIndex,
    direction: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[int, int, float, float, float]:
    """
    Conjugate gradients for a sparse Newton step.
    """

@typing.overload
def plan(
    M: numpy.typing.NDArray[numpy.float32] | None,
    x: numpy.typing.NDArray[numpy.float32] | None,
    y: numpy.typing.NDArray[numpy.float32] | None,
    kind: typing.SupportsInt | typing.SupportsIndex,
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The plan of two potentials.
    """

@typing.overload
def plan(
    M: numpy.typing.NDArray[numpy.float64] | None,
    x: numpy.typing.NDArray[numpy.float64] | None,
    y: numpy.typing.NDArray[numpy.float64] | None,
    kind: typing.SupportsInt | typing.SupportsIndex,
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    The plan of two potentials.
    """

@typing.overload
def point_gradient(
    x: numpy.typing.NDArray[numpy.float32],
    y: numpy.typing.NDArray[numpy.float32],
    kind: typing.SupportsInt | typing.SupportsIndex,
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    sum_j P_ij dC_ij / dx_i for distances.
    """

@typing.overload
def point_gradient(
    x: numpy.typing.NDArray[numpy.float64],
    y: numpy.typing.NDArray[numpy.float64],
    kind: typing.SupportsInt | typing.SupportsIndex,
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    sum_j P_ij dC_ij / dx_i for distances.
    """

@typing.overload
def sinkhorn(
    M: numpy.typing.NDArray[numpy.float32] | None,
    x: numpy.typing.NDArray[numpy.float32] | None,
    y: numpy.typing.NDArray[numpy.float32] | None,
    kind: typing.SupportsInt | typing.SupportsIndex,
    a: numpy.typing.NDArray[numpy.float64],
    b: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    theta_a: typing.SupportsFloat | typing.SupportsIndex,
    theta_b: typing.SupportsFloat | typing.SupportsIndex,
    omega: numpy.typing.NDArray[numpy.float64],
    tol: typing.SupportsFloat | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    errors: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    One-pass Sinkhorn iterations of a batch of problems.
    """

@typing.overload
def sinkhorn(
    M: numpy.typing.NDArray[numpy.float64] | None,
    x: numpy.typing.NDArray[numpy.float64] | None,
    y: numpy.typing.NDArray[numpy.float64] | None,
    kind: typing.SupportsInt | typing.SupportsIndex,
    a: numpy.typing.NDArray[numpy.float64],
    b: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    theta_a: typing.SupportsFloat | typing.SupportsIndex,
    theta_b: typing.SupportsFloat | typing.SupportsIndex,
    omega: numpy.typing.NDArray[numpy.float64],
    tol: typing.SupportsFloat | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    errors: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    One-pass Sinkhorn iterations of a batch of problems.
    """

def sparse_sinkhorn(
    indptr: numpy.typing.NDArray[numpy.int64],
    indices: numpy.typing.NDArray[numpy.int32],
    costs: numpy.typing.NDArray[numpy.float64],
    a: numpy.typing.NDArray[numpy.float64],
    b: numpy.typing.NDArray[numpy.float64],
    reg: typing.SupportsFloat | typing.SupportsIndex,
    omega: typing.SupportsFloat | typing.SupportsIndex,
    tol: typing.SupportsFloat | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    f: numpy.typing.NDArray[numpy.float64],
    g: numpy.typing.NDArray[numpy.float64],
    errors: numpy.typing.NDArray[numpy.float64],
    values: numpy.typing.NDArray[numpy.float64] | None,
    columns: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Sinkhorn iterations on a list of entries.
    """
