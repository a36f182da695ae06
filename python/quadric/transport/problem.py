"""A transport problem: costs, masses and how strictly the plan must meet them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from scipy.special import kl_div

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.transport.cost import Cost

Unbalanced: TypeAlias = float | tuple[float, float] | None
"""How strongly deviations from the masses of rows and columns are punished; None is infinitely."""

TOL = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-9}
"""The default tolerance of every solver, as a share of the mass."""

# Masses that are equal but for the rounding of a sum, relative to it.
_ROUNDING = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-10}


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """B transport problems of one shape, checked.

    The cost stays where it was given, also on a GPU. All else is small, and NumPy's: what a kernel
    there needs of it travels with the call.

    Attributes
    ----------
    cost : Cost
        Of shape (B, n, m).
    a, b : array of float64, shape (B, n) and (B, m)
        Masses; zeros are allowed. If nobody gave them, the problems of a batch share the memory
        of one row.
    reg : float
        In units of the cost.
    rho : tuple of float
        What a deviation from `a` and from `b` costs; Inf where the masses must be met.
    batched : bool
        Whether the caller gave a batch.
    wrap : callable
        Turns a NumPy array, or one on the GPU, into one of the caller's type and memory.
    backend : str or None
        As the caller gave it.
    n_threads : int
        At least 1.
    uniform : bool
        Whether nobody gave masses, so that they are all 1 / n and 1 / m.
    """

    cost: Cost
    a: np.ndarray
    b: np.ndarray
    reg: float
    rho: tuple[float, float]
    batched: bool
    wrap: Callable[[Data], Array]
    backend: str | None
    n_threads: int
    uniform: bool = False

    @property
    def balanced(self) -> bool:
        """Whether all masses must be met."""
        return min(self.rho) == math.inf

    @property
    def mass(self) -> np.ndarray:
        """What is moved in each problem, shape (B,)."""
        a, b = (w[:1] if self.uniform else w for w in (self.a, self.b))
        mass: np.ndarray = (a.sum(axis=1) + b.sum(axis=1)) / 2
        return np.full(len(self.a), mass[0]) if self.uniform else mass

    def kernel(self, name: str) -> Callable[..., Any]:
        """Return the kernel of this family on the caller's backend."""
        return backends.resolve(f"transport.{name}", self.backend, on=self.cost.array)

    def item(self, k: int) -> "Problem":
        """Return the k-th problem alone."""
        s = slice(k, k + 1)
        return replace(self, cost=self.cost.item(k), a=self.a[s], b=self.b[s], batched=False)

    def transposed(self) -> "Problem":
        """Return the problem with the roles of rows and columns exchanged, without a copy."""
        return replace(self, cost=self.cost.transposed(), a=self.b, b=self.a, rho=self.rho[::-1])

    def oriented(self) -> "Problem":
        """Return the problem with rows that are close in memory: itself or its transpose."""
        return self.transposed() if self.cost.by_columns else self

    def outputs(self, values: np.ndarray) -> Any:
        """Return one value per problem as the caller sees it: a number, or an array of a batch."""
        return self.wrap(values) if self.batched else values[0].item()

    def all_outputs(self, *values: np.ndarray) -> tuple[Any, ...]:
        """Return `outputs` of values of one dtype; one copy to a GPU for all of them."""
        if self.batched and isinstance(self.cost.array, DeviceArray):
            return tuple(map(self.wrap, self.cost.array.space.from_host(np.stack(values))))
        return tuple(map(self.outputs, values))

    def array(self, values: Data) -> Array:
        """Return an array per problem, shape (B, ...), as the caller sees it."""
        return self.wrap(values if self.batched else values[0])


@dataclass(frozen=True, slots=True, eq=False)
class Measures:
    """What potentials are worth, one entry per problem; the equations are in `measure`."""

    cost: np.ndarray
    value: np.ndarray
    dual_value: np.ndarray
    marginal_error: np.ndarray

    def put(self, which: np.ndarray, part: "Measures") -> None:
        """Write those of the problems `which` in their places."""
        for name in self.__slots__:
            getattr(self, name)[which] = getattr(part, name)


def measure(problem: Problem, f: np.ndarray, g: np.ndarray) -> Measures:
    """Return cost, value, dual value and marginal error of the plan of `f` and `g`; one pass.

    With r and c the row and column sums of ``P = exp((f + g - C) / reg)``, and ``KL`` terms only
    where a side is unbalanced::

        value = <f, r> + <g, c> - reg sum P + rho_a KL(r | a) + rho_b KL(c | b)
        dual value = <f, a> + <g, b> - reg sum P,  -rho_a <a, exp(-f / rho_a) - 1> for <f, a>
        error = |r - a| + |c - b|,                 a exp(-f / rho_a) for a
    """
    if problem.cost.by_columns:
        return measure(problem.oriented(), g, f)
    r, c, cost = _sums(problem, f, g)
    total = problem.reg * r.sum(axis=1)
    value, dual_value, error = -total, -total, np.zeros(len(f))
    for potential, sums, mass, rho in (
        (f, r, problem.a, problem.rho[0]),
        (g, c, problem.b, problem.rho[1]),
    ):
        p, s, w = potential, sums, mass
        if not mass.all():
            there = mass > 0
            p, s = np.where(there, p, 0.0), np.where(there, s, 0.0)
        target = w if rho == math.inf else w * np.exp(-p / rho)
        value += np.einsum("bi,bi->b", p, s)
        error += np.abs(s - target).sum(axis=1)
        if rho == math.inf:
            dual_value += np.einsum("bi,bi->b", p, w)
        else:
            value += rho * kl_div(s, w).sum(axis=1)
            dual_value -= rho * np.einsum("bi,bi->b", w, np.expm1(-p / rho))
    return Measures(cost, value, dual_value, error)


def _sums(problem: Problem, f: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return row sums, column sums and ``<P, C>`` of each plan."""
    r, c, cost = np.empty_like(f), np.empty_like(g), np.empty(len(f))
    if isinstance(on := problem.cost.array, DeviceArray) and len(f) > 1:
        backends.resolve("transport.apply_plan", problem.backend, on=on)  # refuses other names
        apply_plans = device.transport().apply_plans
        on.space.run(apply_plans, *problem.cost.args, f, g, problem.reg, r, c, cost)
        return r, c, cost
    apply_plan = problem.kernel("apply_plan")
    for k in range(len(f)):
        cost[k] = apply_plan(
            *(*problem.cost.single(k), f[k], g[k], problem.reg),
            *(None, None, r[k], c[k], problem.n_threads),
        )
    return r, c, cost


def build(
    cost: Cost,
    a: Array | None,
    b: Array | None,
    reg: float,
    *,
    unbalanced: Unbalanced,
    normalize: bool,
    batched: bool,
    wrap: Callable[[Data], Array],
    backend: str | None,
    n_threads: int | None,
) -> Problem:
    """Check what a caller gave beside the cost, and return the problem.

    Raises
    ------
    ValueError, TypeError
        As the public functions say.
    """
    B, n, m = cost.shape
    reg, rho = checks.positive(reg, "reg"), penalties(unbalanced)
    uniform = a is None and b is None
    rows = 1 if uniform else B
    a_, eps_a = _masses(a, "a", (rows, n), batched)
    b_, eps_b = _masses(b, "b", (rows, m), batched)
    if normalize and not uniform:
        a_, b_ = (w / w.sum(axis=1, keepdims=True) for w in (a_, b_))
    elif min(rho) == math.inf and not (uniform and n == m):
        b_ = equal_mass(a_, b_, max(eps_a, eps_b), ": normalize=True divides each by its sum")
    if rows < B:
        a_, b_ = _repeated(a_, B), _repeated(b_, B)
    # A wrong name is refused before any work.
    backends.resolve("transport.sinkhorn", backend, on=cost.array)
    workers = threads.resolve(n_threads, cost.array)
    return Problem(cost, a_, b_, reg, rho, batched, wrap, backend, workers, uniform)


def equal_mass(a: np.ndarray, b: np.ndarray, rounding: float, advice: str = "") -> np.ndarray:
    """Return `b` with exactly the total masses of `a`, from which it may differ by rounding.

    Raises
    ------
    ValueError
        If the totals of a problem differ by more.
    """
    total, other = a.sum(axis=1), b.sum(axis=1)
    off = np.abs(total - other) > rounding * np.maximum(total, other)
    if off.any():
        k = int(np.argmax(off))
        where = f" in problem {k}" if len(a) > 1 else ""
        raise ValueError(
            f"a and b must have the same total mass, got {total[k]:.10g} and {other[k]:.10g}"
            f"{where}, which differ by {abs(total[k] - other[k]):.3g}{advice}"
        )
    if np.array_equal(total, other):
        return b
    scaled: np.ndarray = b * (total / other)[:, None]
    return scaled


def masses(x: Array, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Return masses as float64 in `shape`, (n,) or (B, n), and how well two such sums can agree.

    They come from any memory. Masses (n,) are those of all problems of a batch.

    Raises
    ------
    ValueError
        If the shape does not fit, a mass is negative or not finite, or all are 0.
    TypeError
        If they are not float32 or float64.
    """
    w = arrays.host(arrays.take(x, name))
    if w.shape != shape and w.shape != shape[-1:]:
        wanted = " or ".join(str(s) for s in dict.fromkeys((shape[-1:], shape)))
        raise ValueError(f"{name} must have shape {wanted}, got {w.shape}")
    checks.floating(w, name)
    checks.finite(w, name)
    if w.min() < 0:
        where = np.unravel_index(np.argmin(w), w.shape)
        index = tuple(int(i) for i in where)
        raise ValueError(f"{name} must not be negative, got {w[where]:.6g} at index {index}")
    total = w.sum(axis=-1, dtype=np.float64)
    if not (total > 0).all():
        where_ = f" in problem {int(np.argmin(total))}" if w.ndim > 1 else ""
        raise ValueError(f"{name} must have some mass, got only zeros{where_}")
    if not np.isfinite(total).all():
        raise ValueError(f"{name} must have a finite sum, got {total.max()}")
    return np.ascontiguousarray(np.broadcast_to(w, shape), np.float64), _ROUNDING[w.dtype]


def _masses(
    x: Array | None, name: str, shape: tuple[int, int], batched: bool
) -> tuple[np.ndarray, float]:
    if x is None:
        return np.full(shape, 1 / shape[1]), _ROUNDING[np.dtype(np.float64)]
    w, rounding = masses(x, name, shape if batched else shape[1:])
    return w.reshape(shape), rounding


def _repeated(row: np.ndarray, count: int) -> np.ndarray:
    """Return a contiguous row, (1, n), as (count, n) in its memory; read-only."""
    result: np.ndarray = np.ndarray(
        (count, row.shape[1]), row.dtype, row, strides=(0, row.itemsize)
    )
    result.flags.writeable = False
    return result


def penalties(unbalanced: Unbalanced) -> tuple[float, float]:
    """Return the weights rho of rows and columns; Inf where the masses must be met."""
    if unbalanced is None:
        return math.inf, math.inf
    pair = unbalanced if isinstance(unbalanced, tuple | list) else (unbalanced, unbalanced)
    if len(pair) != 2:
        raise ValueError(f"unbalanced must be a number or a pair of them, got {unbalanced!r}")
    for rho in pair:
        if rho != math.inf:
            checks.positive(rho, "unbalanced")
    return float(pair[0]), float(pair[1])
