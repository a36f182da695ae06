"""Solved problems one by one, without the masses that are 0, for what is computed from them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from quadric.transport.problem import Problem

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Something of the rows and the same of the columns."""


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """One solved problem of n rows and m columns, all of which have mass.

    Attributes
    ----------
    problem : Problem
        This one problem.
    f, g : array of float64, shape (n,) and (m,)
        Potentials, finite.
    rows, columns : array of int, shape (n,) and (m,)
        Where these stand among all rows and columns, those without mass included.
    """

    problem: Problem
    f: np.ndarray
    g: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.f), len(self.g)

    def transposed(self) -> "Solved":
        """Exchange the roles of rows and columns."""
        return Solved(self.problem.transposed(), self.g, self.f, self.columns, self.rows)


def each(problem: Problem, f: np.ndarray, g: np.ndarray) -> Iterator[Solved]:
    """Yield the problems of a batch; `f` and `g` have the shapes (B, n) and (B, m)."""
    for k in range(len(f)):
        rows, columns = (np.flatnonzero(np.isfinite(p[k])) for p in (f, g))
        one = problem.item(k)
        if len(rows) < f.shape[1] or len(columns) < g.shape[1]:
            cost = one.cost.select(rows, columns)
            one = replace(one, cost=cost, a=one.a[:, rows], b=one.b[:, columns])
        yield Solved(one, f[k, rows], g[k, columns], rows, columns)
