"""Plans of which only the entries that matter are kept."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from quadric import arrays
from quadric.transport import plans
from quadric.transport.solved import Solved

_LIMIT = 2**28  # entries of a sparse plan: 4 GiB with their indices
_ROWS = 2**22  # entries of the dense rows that are looked at together


@dataclass(frozen=True, slots=True, eq=False)
class SparsePlan:
    """A plan with few entries.

    Attributes
    ----------
    matrix : scipy.sparse.csr_array, shape (n, m)
        The entries that were kept, unchanged, in the dtype of the cost.
    dropped : float
        Sum of those that were not.
    """

    matrix: csr_array
    dropped: float

    def __repr__(self) -> str:
        n, m = self.matrix.shape
        return f"SparsePlan({n} x {m}, {self.matrix.nnz} entries, dropped={self.dropped:.3g})"


def by_mass(s: Solved, shape: tuple[int, int], drop: float) -> SparsePlan:
    """Return the plan, of `shape`, without its smallest entries, a share `drop` of its mass."""
    n, m = s.shape
    problem, dtype = s.problem, s.problem.cost.dtype
    total = float(plans.apply(s)[0].sum())
    # Entries below 2^-bits of both their masses: together at most drop / 2 of the plan.
    bits = 1100.0
    if drop > 0 and total > 0:
        most = min(m * problem.a.sum(), n * problem.b.sum())
        bits = math.log2(2 * most / (drop * total))
    found = problem.kernel("candidates")(
        *problem.cost.single(),
        *(problem.a[0], problem.b[0], s.f, s.g, problem.reg),
        bits,
        min(n * m, _LIMIT),
        problem.n_threads,
    )
    if found is None:
        raise ValueError(
            f"drop must be larger for a plan that is not sparse, got {drop:g}: more than {_LIMIT}"
            " entries would be kept; k keeps that many per row"
        )
    indptr, columns, costs = map(arrays.host, found)
    rows = np.repeat(np.arange(n), np.diff(indptr))
    values = np.exp((s.f[rows] + s.g[columns] - costs) / problem.reg)
    # The bound counts where the difference is only the rounding of float32.
    missing = min(max(total - float(values.sum()), 0.0), drop * total / 2)
    order = np.argsort(values)
    fallen = missing + np.cumsum(values[order])
    keep = values >= np.finfo(dtype).tiny  # a smaller one counts as 0
    keep[order[: np.searchsorted(fallen, drop * total, side="right")]] = False
    dropped = missing + float(values[~keep].sum())
    matrix = _placed(s, shape, rows[keep], columns[keep], values[keep].astype(dtype))
    return SparsePlan(matrix, dropped)


def by_count(s: Solved, shape: tuple[int, int], k: int) -> SparsePlan:
    """Return the `k` largest entries of each row of the plan, which has `shape`."""
    n, m = s.shape
    k = min(k, m)
    step = max(1, _ROWS // m)
    values, columns = [], []
    dropped = 0.0
    for start in range(0, n, step):
        P = arrays.host(plans.some_rows(s, start, min(start + step, n)))
        chosen = np.sort(np.argpartition(P, m - k, axis=1)[:, m - k :], axis=1)
        values.append(np.take_along_axis(P, chosen, axis=1).ravel())
        columns.append(chosen.ravel())
        np.put_along_axis(P, chosen, 0, axis=1)  # what is left is summed without a difference
        dropped += float(P.sum(dtype=np.float64))
    rows, entries = np.repeat(np.arange(n), k), np.concatenate(values)
    keep = entries > 0
    matrix = _placed(s, shape, rows[keep], np.concatenate(columns)[keep], entries[keep])
    return SparsePlan(matrix, dropped)


def _placed(
    s: Solved, shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, values: np.ndarray
) -> csr_array:
    """Return the matrix of all rows and columns from entries, in order, of those with mass."""
    counts = np.bincount(s.rows[rows], minlength=shape[0])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return csr_array((values, s.columns[columns], indptr), shape=shape)
