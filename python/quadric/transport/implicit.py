"""The linear system of the implicit function theorem, on the entries of the plan that count.

With r = P 1 and c = P^T 1, a small change of the problem moves the potentials by

    [ diag(r') P ; P^T diag(c') ] [ df ; dg ] = [ (P o dC) 1 + reg a' ; (P o dC)^T 1 + reg b' ],
    r' = (1 + reg / rho_a) r,   a' = exp(-f / rho_a) da,   and c', b' alike,

and the plan by P o (df + dg - dC) / reg. The functions here run this backwards. The matrix is
symmetric; once the rows are eliminated, it is the one of the Newton steps.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from quadric import arrays
from quadric.arrays import Data
from quadric.errors import ConvergenceWarning
from quadric.transport.solved import Pair, Solved

_BITS = 60.0  # entries of the plan below 2^-60 of both their masses are left out
_SHIFT = 1e-12  # keeps CG away from null vectors; the refinement takes its effect out again
_RESIDUAL = 1e-12  # to stop at, relative to the right side; rounding may not let it get there
_DOUBTFUL = 1e-6  # residual at which there is no such derivative
_ROUNDS = 6
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """The entries of a plan that count, row by row.

    Attributes
    ----------
    rows, columns : array of int, shape (nnz,)
        Where they stand.
    starts : array of int64, shape (n + 1,)
        Where each row begins.
    costs, plan : array of float64, shape (nnz,)
        Cost and mass.
    shape : (int, int)
        Of the plan.
    listed : triple of array
        `starts`, `columns` and `plan` where the kernels work.
    """

    rows: np.ndarray
    columns: np.ndarray
    starts: np.ndarray
    costs: np.ndarray
    plan: np.ndarray
    shape: tuple[int, int]
    listed: tuple[Data, Data, Data]

    @classmethod
    def of(cls, s: Solved) -> "Entries":
        """Collect the entries of the plan of a solved problem."""
        p = s.problem
        state = (*p.cost.single(), p.a[0], p.b[0], s.f, s.g, p.reg)
        limit = s.shape[0] * s.shape[1]
        found = p.kernel("candidates")(*state, _BITS, limit, p.n_threads)
        starts, columns, costs = map(arrays.host, found)
        rows = np.repeat(np.arange(len(s.f)), np.diff(starts))
        plan = np.exp((s.f[rows] + s.g[columns] - costs) / p.reg)
        listed = (*found[:2], arrays.beside(plan, found[2]))
        return cls(rows, columns, starts, costs, plan, s.shape, listed)

    def matrix(self, values: np.ndarray) -> csr_array:
        """Return the matrix that has `values` at these places."""
        return csr_array((values, self.columns, self.starts), shape=self.shape)

    def sums(self, values: np.ndarray) -> Pair:
        """Sum `values` over each row and over each column."""
        n, m = self.shape
        return np.bincount(self.rows, values, n), np.bincount(self.columns, values, m)


def pull_back(
    s: Solved, entries: Entries, plan: np.ndarray | None, potentials: Pair
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients in the costs of the entries, in a and in b.

    `plan`, shape (nnz,) or None, is the cotangent of the entries; `potentials` those of f and g,
    which a balanced problem fixes by ``<f, a> = <g, b>``.
    """
    p, P = s.problem, entries.plan
    direct = np.zeros_like(P) if plan is None else P * plan / p.reg
    upper, lower = (q + d for q, d in zip(potentials, entries.sums(direct), strict=True))
    excess = 0.0
    if p.balanced:
        # What is asked of f + c, g - c with the c that fixes them is moved to f, g and the masses.
        excess = float(potentials[0].sum() - potentials[1].sum()) / (2 * float(p.a.sum()))
        upper, lower = upper - excess * p.a[0], lower + excess * p.b[0]
    r, c = (q * (1 + p.reg / w) for q, w in zip(entries.sums(P), p.rho, strict=True))
    S = entries.matrix(P)
    right = lower - S.T @ (upper / r)
    noise = _EPS * float(np.linalg.norm(np.abs(lower) + S.T @ (np.abs(upper) / r)))
    by_column = _solve(s, entries, S, r, c, right, noise)
    by_row = (upper - S @ by_column) / r
    costs = P * (by_row[entries.rows] + by_column[entries.columns]) - direct
    a = p.reg * np.exp(-s.f / p.rho[0]) * by_row - excess * s.f
    b = p.reg * np.exp(-s.g / p.rho[1]) * by_column + excess * s.g
    return costs, a, b


def _solve(
    s: Solved,
    entries: Entries,
    S: csr_array,
    r: np.ndarray,
    c: np.ndarray,
    right: np.ndarray,
    noise: float,
) -> np.ndarray:
    """Solve ``(diag(c) - S^T diag(1/r) S) x = right`` by CG with iterative refinement.

    `noise` is how far the right side may be off by rounding.
    """
    direction = s.problem.kernel("newton_direction")
    x, step = np.zeros_like(right), np.empty_like(right)
    rest = right
    scale = left = float(np.linalg.norm(right))
    enough = max(_RESIDUAL * scale, noise)
    for _ in range(_ROUNDS):
        if left <= enough:
            break
        tol = max(enough / left, 1e-9)
        options = (_SHIFT, 0.0, tol, 10 * len(right) + 100, step, s.problem.n_threads)
        direction(*entries.listed, r, c, rest, *options)
        better = x + step
        rest = right - (c * better - S.T @ ((S @ better) / r))
        size = float(np.linalg.norm(rest))
        if not size < left:
            break
        x, left = better, size
    if left > max(_DOUBTFUL * scale, 100 * noise):
        warnings.warn(
            f"the derivative solves its equations to {left / scale:.1g} only: in float64 the plan "
            "falls apart into pieces that exchange no mass; a larger reg joins them",
            ConvergenceWarning,
            stacklevel=5,
        )
    return x
