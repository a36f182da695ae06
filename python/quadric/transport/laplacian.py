"""The graph of a plan with few entries: its rows and columns are nodes, its entries edges.

Where an entry is ``(f_i + g_j - M_ij) / reg``, what changes the potentials by df and dg changes the
row and column sums by B B^T (df, dg) / reg, with B the incidence matrix of the graph: with the sign
of dg turned it is the graph's Laplacian. Newton steps and derivatives solve with it.
"""

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_array, csc_array
from scipy.sparse.csgraph import connected_components

from quadric import device
from quadric.device import DeviceArray

_RESIDUAL = 1e-14  # relative to the right sides


def parts(indices: np.ndarray, values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the connected parts that rows and columns belong to."""
    m = len(indices)
    entries = values > 0
    rows, columns = indices[entries], np.nonzero(entries)[0]
    graph = coo_array((np.ones(len(rows)), (rows, n + columns)), shape=(n + m, n + m))
    _, part = connected_components(graph.tocsr(), directed=False)
    return part[:n], part[n:]


def balance(
    indices: np.ndarray, values: np.ndarray, free: np.ndarray, r: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return u and v so that u_i + v_j, over the positive entries, has row sums r and sums c.

    Rows that are not `free` or have no entry get u = 0 and no condition. Where r and c cannot both
    be met, the difference is spread over a connected part.
    """
    n, m = len(free), len(indices)
    entries = values > 0
    per_column = np.count_nonzero(entries, axis=1)
    rows = indices[entries]
    columns = np.repeat(np.arange(m), per_column)
    inner = free[rows]
    starts = np.concatenate([[0], np.cumsum(np.bincount(columns[inner], minlength=m))])
    A = csc_array((np.ones(np.count_nonzero(inner)), rows[inner], starts), shape=(n, m))
    per_row = np.bincount(rows[inner], minlength=n)
    share = np.divide(1.0, per_row, out=np.zeros(n), where=per_row > 0)
    At = A.T.tocsr()
    degrees = np.maximum(per_column, 1).astype(np.float64)

    def schur(v: np.ndarray) -> np.ndarray:
        result: np.ndarray = degrees * v - At @ (share * (A @ v))
        return result

    right = c - At @ (share * r)
    # A part of the graph without a row that is held has the null vector of equal v.
    count, part = connected_components((At @ A).tocsr(), directed=False)
    size = np.bincount(part, minlength=count)
    held = np.bincount(part, np.abs(schur(np.ones(m))), count) > 1e-9
    off = np.where(held, 0, np.bincount(part, right, count) / size)
    right -= off[part]
    v = _conjugate_gradients(
        schur, right, degrees, _RESIDUAL * float(np.abs(c).sum() + np.abs(r).sum())
    )
    return share * (r - A @ v), v


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    diagonal: np.ndarray,
    tol: float,
) -> np.ndarray:
    """Solve a positive semidefinite system whose null space `right` has no part in."""
    x, residual = np.zeros_like(right), right
    direction, size = np.zeros_like(right), 1.0
    for _ in range(2 * len(right) + 50):
        if np.abs(residual).sum() <= tol:
            break
        scaled = residual / diagonal
        before, size = size, float(residual @ scaled)
        direction = scaled + size / before * direction
        image = product(direction)
        curvature = float(direction @ image)
        if curvature <= 0:  # what is left is rounding
            break
        x = x + size / curvature * direction
        residual = residual - size / curvature * image
    return x


def pull_back(matrix: csc_array, cotangent: np.ndarray, reg: float, free: np.ndarray) -> np.ndarray:
    """Return the derivative in the cost, shape (n, m), given that in the entries of the plan.

    Rows that are not `free` have f fixed, so that their sums may change.
    """
    n, m = matrix.shape
    counts = np.diff(matrix.indptr)
    columns = np.repeat(np.arange(m), counts)
    rows = matrix.indices
    k = int(counts.max(initial=1))
    place = np.arange(len(rows)) - np.repeat(matrix.indptr[:-1], counts)
    indices, values = np.full((m, k), n, np.int64), np.zeros((m, k))
    indices[columns, place], values[columns, place] = rows, matrix.data
    G = cotangent[rows, columns]
    u, v = balance(
        indices, values, free, np.bincount(rows, G, n) * free, np.bincount(columns, G, m)
    )
    result = np.zeros((n, m))
    result[rows, columns] = (u[rows] + v[columns] - G) / reg
    return result


def pull_back_there(
    gates: DeviceArray, cotangent: DeviceArray, reg: float, free: DeviceArray
) -> DeviceArray:
    """Return the derivative of gates in the scores on the GPU that they are on; nothing waits.

    That is :func:`pull_back` with the other sign, for a cost ``-scores``. There are at most
    :data:`quadric.transport.routing.EXPERTS` columns.
    """
    result = gates.space.empty(gates.shape, gates.dtype)
    kernel = device.transport().route_backward
    gates.space.run(kernel, cotangent, gates, free, reg, result)
    return result
