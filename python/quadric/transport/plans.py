"""The plan of a solved problem: its entries, and its product with values, by the kernels."""

import numpy as np

from quadric import arrays
from quadric.arrays import Data
from quadric.device import DeviceArray
from quadric.transport.problem import Problem
from quadric.transport.solved import Solved, each


def whole(problem: Problem, f: np.ndarray, g: np.ndarray) -> Data:
    """Return all plans, shape (B, n, m), where the cost is; closest in memory as the cost is."""
    if problem.cost.by_columns:
        return whole(problem.transposed(), g, f).transpose(0, 2, 1)
    out = arrays.empty(problem.cost.array, problem.cost.shape, problem.cost.dtype)
    if isinstance(out, DeviceArray):
        _write_there(problem, f, g, out)
    else:
        for s, plan in zip(each(problem, f, g), out, strict=True):
            _write(s, plan)
    return out


def some_rows(s: Solved, start: int, stop: int) -> Data:
    """Return the rows of the plan from `start` to `stop`, among those that have mass."""
    problem = s.problem
    out = arrays.empty(problem.cost.array, (stop - start, len(s.g)), problem.cost.dtype)
    cost = problem.cost.rows(start, stop).single()
    problem.kernel("plan")(*cost, s.f[start:stop], s.g, problem.reg, out, problem.n_threads)
    return out


def apply(s: Solved, V: Data = None) -> tuple[np.ndarray, Data]:
    """Return the row sums (n,) of the plan, and its product with `V`, shape (m, k).

    `V` is float64, and where the cost is; the product comes there too.
    """
    problem, (n, m) = s.problem, s.shape
    rows, columns = np.empty(n), np.empty(m)
    out = None if V is None else arrays.empty(V, (n, V.shape[1]), np.float64)
    problem.kernel("apply_plan")(
        *problem.cost.single(), s.f, s.g, problem.reg, V, out, rows, columns, problem.n_threads
    )
    return rows, out


def _write(s: Solved, out: np.ndarray) -> None:
    """Write the plan to `out`, C-contiguous, which has also the rows and columns without mass."""
    if out.shape == s.shape:
        _fill(s, out)
        return
    part = np.empty(s.shape, out.dtype)
    _fill(s, part)
    out[...] = 0
    out[np.ix_(s.rows, s.columns)] = part


def _fill(s: Solved, out: np.ndarray) -> None:
    problem = s.problem
    cost = problem.cost.single()
    problem.kernel("plan")(*cost, s.f, s.g, problem.reg, out, problem.n_threads)


def _write_there(problem: Problem, f: np.ndarray, g: np.ndarray, out: DeviceArray) -> None:
    """Write all plans without a copy of a cost, and without a wait for each."""
    there = np.isfinite(f), np.isfinite(g)
    # Rows and columns without mass get entries of some size, and lose them.
    lowest = (
        np.where(t, p, np.where(t, p, np.inf).min(axis=1, keepdims=True))
        for t, p in zip(there, (f, g), strict=True)
    )
    f_, g_ = (out.space.from_host(p) for p in lowest)
    kernel = problem.kernel("plan")
    for k, plan in enumerate(out):
        kernel(*problem.cost.single(k), f_[k], g_[k], problem.reg, plan, problem.n_threads)
        for lines, with_mass in ((plan.T, there[0][k]), (plan, there[1][k])):
            if not with_mass.all():
                arrays.clear(lines, np.flatnonzero(~with_mass), rows=False)
