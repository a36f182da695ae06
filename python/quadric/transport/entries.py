"""What the entries of a stored cost must be."""

from collections.abc import Iterator

import numpy as np

from quadric import arrays
from quadric.transport.problem import Problem

_PIECE = 2**22  # entries of a cost that are looked at together


def check_entries(problem: Problem) -> None:
    """Refuse NaN, -Inf, and masses that no pair can carry, if the cost is stored."""
    M = problem.cost.M
    if M is None or problem.cost.all_finite():
        return
    B, n, m = M.shape
    of_row, of_column = np.zeros((B, n), bool), np.zeros((B, m), bool)  # some pair carries it
    for part, rows in _parts(B, n, m):
        block = arrays.host(M[part, rows])
        wrong = np.isnan(block) | np.isneginf(block)
        if wrong.any():
            where = np.unravel_index(np.argmax(wrong), wrong.shape)
            k, i, j = (int(i) for i in where)
            index = (part.start + k, rows.start + i, j)[not problem.batched :]
            raise ValueError(
                f"M must hold numbers or Inf (forbidden), got {block[where]} at index {index}"
            )
        allowed = ~np.isposinf(block)
        of_row[part, rows] = (allowed & (problem.b[part, None] > 0)).any(axis=2)
        of_column[part] |= (allowed & (problem.a[part, rows, None] > 0)).any(axis=1)
    for side, mass, carried in (("row", problem.a, of_row), ("column", problem.b, of_column)):
        stuck = (mass > 0) & ~carried
        if stuck.any():
            k, i = (int(v) for v in np.argwhere(stuck)[0])
            where_ = f" of problem {k}" if problem.batched else ""
            raise ValueError(
                f"M must allow every mass to go somewhere, but {side} {i}{where_} has mass"
                f" {mass[k, i]:.6g} and only forbidden pairs: the problem is infeasible"
            )


def _parts(B: int, n: int, m: int) -> Iterator[tuple[slice, slice]]:
    """Cut B problems into pieces that are looked at together, whole problems or some rows."""
    problems, rows = max(_PIECE // (n * m), 1), max(_PIECE // m, 1)
    for k in range(0, B, problems):
        for i in range(0, n, rows):
            yield slice(k, min(k + problems, B)), slice(i, min(i + rows, n))
