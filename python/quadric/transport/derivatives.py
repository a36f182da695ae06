"""Derivatives of the value by the envelope theorem, of plan and potentials by the implicit one.

Where a mass is 0 it is taken as fixed: its potential is -Inf, and all that belongs to it has
gradient 0.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from quadric import arrays, checks
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.transport import plans
from quadric.transport.cost import KINDS
from quadric.transport.implicit import Entries, pull_back
from quadric.transport.problem import Problem
from quadric.transport.solved import Pair, Solved, each

if TYPE_CHECKING:
    from quadric.transport.results import TransportResult

PlanCotangent: TypeAlias = Array | tuple[Array, Array]
"""A matrix (n, m), or the factors (n, k) and (m, k) of one; with B in front for a batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Derivatives in what a transport problem was given; None for what it was not given.

    Attributes
    ----------
    M : array, shape (n, m) or (B, n, m), or None
        In the stored cost.
    x, y : array, shape (n, d) and (m, d) or (B, n, d) and (B, m, d), or None
        In the points.
    a, b : array of float64, shape (n,) and (m,) or (B, n) and (B, m), or None
        In the masses. Those of a balanced problem sum to the same, so only derivatives along
        changes that keep this are defined; of all gradients that yield them, this is the smallest,
        ``sum(a) = sum(b)`` over the masses that are not 0.
    """

    M: Array | None = None
    x: Array | None = None
    y: Array | None = None
    a: Array | None = None
    b: Array | None = None

    def __repr__(self) -> str:
        given = ((k, getattr(self, k)) for k in ("M", "x", "y", "a", "b"))
        shapes = (f"{k}{tuple(v.shape)}" for k, v in given if v is not None)
        return f"Gradients({', '.join(shapes)})"


def envelope_gradients(result: "TransportResult") -> Gradients:
    """Return the derivatives of the value of a solved problem; see ``result.gradients()``."""
    problem, (f, g) = result.problem, result.potentials()
    a, b = (problem.array(w) for w in mass_gradients(problem, f, g))
    if problem.cost.M is not None:
        return Gradients(M=result.plan(), a=a, b=b)
    x, y = point_gradient(problem, f, g), point_gradient(problem.transposed(), g, f)
    return Gradients(None, problem.array(x), problem.array(y), a, b)


def mass_gradients(problem: Problem, f: np.ndarray, g: np.ndarray) -> Pair:
    """Return the derivatives of the values of B problems in their masses: the potentials.

    By the envelope theorem they are those of the dual value with f, shape (B, n), and g, shape
    (B, m), held fixed.
    """
    a, b = (
        np.where(mass > 0, p if rho == math.inf else -rho * np.expm1(-p / rho), 0.0)
        for p, mass, rho in zip((f, g), (problem.a, problem.b), problem.rho, strict=True)
    )
    return smallest(problem, a, b)


def point_gradient(problem: Problem, f: np.ndarray, g: np.ndarray) -> Data:
    """Return the derivatives of the values of B problems in x: ``sum_j P_ij dC_ij / dx_i``.

    They are where the points are.
    """
    x = problem.cost.x
    assert x is not None
    out = arrays.empty(x, x.shape, x.dtype)
    for k, s in enumerate(each(problem, f, g)):
        arrays.assign(out[k], arrays.placed(_point_gradient(s), s.rows, x.shape[1], 0.0))
    return out


def smallest(problem: Problem, a: np.ndarray, b: np.ndarray) -> Pair:
    """Return the smallest gradients in the masses that are the same where these can go.

    Balanced masses keep equal sums, so ``a + c`` and ``b - c`` are gradients too.
    """
    if not problem.balanced:
        return a, b
    there = problem.a > 0, problem.b > 0
    count = there[0].sum(axis=1) + there[1].sum(axis=1)
    excess = ((a.sum(axis=1) - b.sum(axis=1)) / count)[:, None]
    return np.where(there[0], a - excess, 0.0), np.where(there[1], b + excess, 0.0)


def implicit_gradients(
    result: "TransportResult",
    plan: PlanCotangent | None = None,
    f: Array | None = None,
    g: Array | None = None,
) -> Gradients:
    """Pull cotangents of plan and potentials back to the problem; see ``result.vjp()``."""
    problem = result.problem
    _, n, m = problem.cost.shape
    W = _plan_cotangent(plan, problem)
    of_f, of_g = (
        arrays.host(_cotangent(p, name, (size,), problem))
        for p, name, size in ((f, "f", n), (g, "g", m))
    )
    cost = problem.cost
    M = None if cost.M is None else arrays.zeros(cost.M, cost.shape, cost.dtype)
    x, y = (None if p is None else np.zeros(p.shape, p.dtype) for p in (cost.x, cost.y))
    a, b = np.zeros_like(problem.a), np.zeros_like(problem.b)
    for k, s in enumerate(each(problem, *result.potentials())):
        entries = Entries.of(s)
        rows, columns = s.rows[entries.rows], s.columns[entries.columns]
        potentials = of_f[k, s.rows], of_g[k, s.columns]
        values = None if W is None else _at(W, k, rows, columns)
        costs, a[k, s.rows], b[k, s.columns] = pull_back(s, entries, values, potentials)
        if M is not None:
            arrays.scatter(M[k], rows, columns, costs)
        elif x is not None and y is not None:
            x[k, s.rows], y[k, s.columns] = _entry_gradients(s, entries, costs)
    found = (M, x, y, *smallest(problem, a, b))
    return Gradients(*(None if part is None else problem.array(part) for part in found))


def _point_gradient(s: Solved) -> Data:
    """Return ``sum_j P_ij dC_ij / dx_i``."""
    p = s.problem
    _, x, y, kind = p.cost.single()
    assert x is not None
    assert y is not None
    if kind in (KINDS["euclidean"], KINDS["cityblock"]):
        out = arrays.empty(x, x.shape, np.float64)
        p.kernel("point_gradient")(x, y, kind, s.f, s.g, p.reg, out, p.n_threads)
        return out
    sums, products = plans.apply(s, y.astype(np.float64))
    if isinstance(x, DeviceArray) and kind == KINDS["sqeuclidean"]:
        gradient = x.astype(np.float64, copy=True)
        with np.errstate(divide="ignore"):
            arrays.divide(gradient, 1 / (2 * sums[:, None]))
        arrays.add(gradient, products, -2.0)
        return gradient
    return arrays.beside(_bilinear_gradient(s, sums, arrays.host(products)), x)


def _bilinear_gradient(s: Solved, sums: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Return ``sum_j G_ij dC_ij / dx_i``, given G 1 and G y, where C depends on y by x.y only."""
    cost = s.problem.cost
    assert cost.x is not None
    x = arrays.host(cost.x[0]).astype(np.float64)
    if cost.kind == KINDS["sqeuclidean"]:
        gradient: np.ndarray = 2 * (sums[:, None] * x - products)
        return gradient
    assert cost.lengths is not None
    along = np.einsum("ij,ij->i", x, products)
    gradient = (along[:, None] * x - products) / cost.lengths[0][0][:, None]
    return gradient


def _entry_gradients(s: Solved, entries: Entries, weights: np.ndarray) -> Pair:
    """Return ``sum_j G_ij dC_ij / dx_i`` and ``sum_i G_ij dC_ij / dy_j`` for the weights G."""
    cost = s.problem.cost
    assert cost.x is not None
    assert cost.y is not None
    x, y = (arrays.host(p[0]).astype(np.float64) for p in (cost.x, cost.y))
    if cost.kind in (KINDS["sqeuclidean"], KINDS["cosine"]):
        G, (rows, columns) = entries.matrix(weights), entries.sums(weights)
        back = s.transposed()
        return _bilinear_gradient(s, rows, G @ y), _bilinear_gradient(back, columns, G.T @ x)
    if cost.kind == KINDS["euclidean"]:
        apart = entries.costs > 0
        weights = np.divide(weights, entries.costs, out=np.zeros_like(weights), where=apart)
    of_x, of_y = np.empty_like(x), np.empty_like(y)
    for k in range(x.shape[1]):
        slope = x[entries.rows, k] - y[entries.columns, k]
        if cost.kind == KINDS["cityblock"]:
            slope = np.sign(slope)
        of_x[:, k], of_y[:, k] = entries.sums(weights * slope)
    return of_x, -of_y


def _cotangent(x: Array | None, name: str, shape: tuple[int, ...], problem: Problem) -> Any:
    """Return a cotangent, finite and with B in front; zeros for None."""
    B = problem.cost.shape[0]
    if x is None:
        return np.zeros((B, *shape))
    c = arrays.take(x, name)
    wanted = (B, *shape) if problem.batched else shape
    if c.shape != wanted:
        raise ValueError(f"{name} must have shape {wanted}, got {c.shape}")
    checks.floating(c, name)
    c = arrays.contiguous(c) if isinstance(c, DeviceArray) else c
    checks.finite(c, name)
    return c.reshape(B, *shape)


def _plan_cotangent(plan: PlanCotangent | None, problem: Problem) -> Any:
    if plan is None:
        return None
    _, n, m = problem.cost.shape
    if not isinstance(plan, tuple | list):
        return _cotangent(plan, "plan", (n, m), problem)
    if len(plan) != 2:
        raise ValueError(f"plan must be a matrix or two factors of one, got {len(plan)} factors")
    k = plan[0].shape[-1]
    left = _cotangent(plan[0], "plan[0]", (n, k), problem)
    right = _cotangent(plan[1], "plan[1]", (m, k), problem)
    return arrays.host(left), arrays.host(right)


def _at(W: Any, k: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the entries of a cotangent of the k-th plan."""
    if not isinstance(W, tuple):
        return arrays.at(W[k], rows, columns).astype(np.float64)
    values = np.zeros(len(rows))
    for left, right in zip(W[0][k].T, W[1][k].T, strict=True):  # no nnz x k array in between
        values += left[rows] * right[columns]
    return values
