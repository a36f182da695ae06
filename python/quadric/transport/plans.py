"""The plan of a solved problem: its entries, and its product with values, by the kernels."""

import numpy as np

from quadric.transport.solved import Solved


def write(s: Solved, out: np.ndarray) -> None:
    """Write the plan to `out`, C-contiguous, which has also the rows and columns without mass."""
    if out.shape == s.shape:
        _fill(s, out)
        return
    part = np.empty(s.shape, out.dtype)
    _fill(s, part)
    out[...] = 0
    out[np.ix_(s.rows, s.columns)] = part


def some_rows(s: Solved, start: int, stop: int) -> np.ndarray:
    """Return the rows of the plan from `start` to `stop`, among those that have mass."""
    problem = s.problem
    out = np.empty((stop - start, len(s.g)), problem.cost.dtype)
    cost = problem.cost.rows(start, stop).single()
    problem.kernel("plan")(*cost, s.f[start:stop], s.g, problem.reg, out, problem.n_threads)
    return out


def apply(s: Solved, V: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the row sums (n,) of the plan, and its product with `V`, shape (m, k)."""
    problem, (n, m) = s.problem, s.shape
    rows, columns = np.empty(n), np.empty(m)
    out = None if V is None else np.empty((n, V.shape[1]))
    problem.kernel("apply_plan")(
        *problem.cost.single(), s.f, s.g, problem.reg, V, out, rows, columns, problem.n_threads
    )
    return rows, out


def _fill(s: Solved, out: np.ndarray) -> None:
    problem = s.problem
    cost = problem.cost.single()
    problem.kernel("plan")(*cost, s.f, s.g, problem.reg, out, problem.n_threads)
