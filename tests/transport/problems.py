"""Transport problems for the raw kernels, and how far an entry of the plan may be from the truth.

An entry is exp(z) with z = (f + g - C) / reg. In arithmetic with unit eps / 2 the two potentials,
the cost and the scale are rounded once each and so is every product and sum of them, eight
roundings, each of at most eps / 2 times (|f| + |g| + |C|) / reg; the exponential itself is good to
2 ulp, at most 2 eps. A cost made from points brings its own error, below.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st

from quadric import backends
from tests import strategies as draws
from tests.linalg.oracle import Array, Long, wide
from tests.transport import oracle

EPS = float(np.finfo(np.float64).eps)
SOURCES = ("stored", "sqeuclidean", "euclidean", "cityblock", "cosine")
MASSES = ("uniform", "random", "skewed")
COSTS = ("uniform", "points", "grid")


def kernel(name: str, backend: str) -> Any:
    return backends.resolve(f"transport.{name}", backend)


def masses(rng: np.random.Generator, n: int, kind: str = "random") -> Array:
    """Return n positive weights that sum to 1; skewed ones span six orders of magnitude."""
    if kind == "uniform":
        return np.full(n, 1 / n)
    w = 10.0 ** rng.uniform(-6, 0, n) if kind == "skewed" else rng.random(n) + 0.1
    return w / w.sum()


def unit(x: Array) -> Array:
    return x / np.sqrt((x.astype(float) ** 2).sum(1, keepdims=True)).astype(x.dtype)


def cost_matrix(rng: np.random.Generator, n: int, m: int, kind: str) -> Array:
    """Return costs of size 1: random, of points in a square, or of a grid with many ties."""
    if kind == "uniform":
        return rng.random((n, m))
    if kind == "points":
        x, y = rng.random((n, 2)), rng.random((m, 2))
    else:
        x, y = (rng.integers(0, 4, (k, 2)) / 4 for k in (n, m))
    return ((x[:, None] - y) ** 2).sum(2)


@dataclass(frozen=True, repr=False)
class Problem:
    """One problem: the four arguments that stand for the cost, the masses and reg.

    ``exact`` has the costs (n, m) in longdouble, ``size`` what their roundings are relative to, and
    ``cost_error`` how far those computed from points may be off.
    """

    args: tuple[Any, Any, Any, int]
    exact: Array
    a: Array
    b: Array
    reg: float
    rng: np.random.Generator
    parameters: str = ""

    def __repr__(self) -> str:
        return f"Problem({self.exact.shape}, {self.dtype}, {self.parameters})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would print every entry

    @property
    def shape(self) -> tuple[int, int]:
        return self.exact.shape

    @property
    def dtype(self) -> np.dtype:
        return (self.args[0] if self.args[3] == 0 else self.args[1]).dtype

    @property
    def eps(self) -> float:
        return float(np.finfo(self.dtype).eps)

    @property
    def tiny(self) -> float:
        return float(np.finfo(self.dtype).tiny)

    @property
    def scale(self) -> float:
        return float(np.abs(self.exact[np.isfinite(self.exact)]).max()) or self.reg

    @property
    def batch(self) -> tuple[Any, Any, Any, int]:
        """The cost as a batch of one."""
        *arrays, kind = self.args
        return (*(x if x is None else x[None] for x in arrays), kind)

    def relayout(self, layout: str) -> "Problem":
        """Return the same problem with its arrays laid out anew; points stay C-contiguous."""
        if self.args[3]:
            return self
        args = (draws.relayout(self.args[0], layout), None, None, 0)
        return Problem(args, self.exact, self.a, self.b, self.reg, self.rng, self.parameters)

    @cached_property
    def size(self) -> Array:
        """|C|, or for products of points (|x| + |y|)^2, of which the cost is what is left."""
        _, x, y, kind = self.args
        if kind in (1, 4):
            lengths = [np.sqrt((wide(p) ** 2).sum(1)) for p in (x, y)]
            return (lengths[0][:, None] + lengths[1]) ** 2
        return np.where(np.isfinite(self.exact), np.abs(self.exact), 0)

    @cached_property
    def cost_error(self) -> Array:
        """Sums of d products or differences: d + 8 roundings, and a root."""
        d = 0 if self.args[3] == 0 else self.args[1].shape[1]
        return (d + 8) * self.eps * self.size if d else 0 * self.size

    def exponent_error(self, f: Array, g: Array) -> Array:
        size = np.abs(wide(f))[:, None] + np.abs(wide(g)) + self.size
        return (4 * self.eps * size + self.cost_error) / self.reg

    def entry_error(self, f: Array, g: Array) -> Array:
        """Return the relative error of the entries of the plan; doubled for the second order."""
        return 2 * (2 * self.eps + self.exponent_error(f, g))

    def plan(self, f: Array, g: Array) -> Array:
        """Return the exact plan, where what is below the smallest normal number is zero."""
        return oracle.plan(self.exact, f, g, self.reg)

    def potentials(self, state: str) -> tuple[Array, Array]:
        """Return float64 potentials, the same each time: zero, near the optimum, or anywhere."""
        n, m = self.shape
        rng = np.random.default_rng((n, m))
        f, g = np.zeros(n), np.zeros(m)
        if state == "far":
            f, g = (rng.uniform(-10, 10, k) * self.scale for k in (n, m))
        if state == "near":
            for _ in range(10):
                step = oracle.iterate(self.exact, self.a, self.b, self.reg, f, g)
                f, g = step.f, step.g
            noise = [self.reg * rng.standard_normal(k) / 4 for k in (n, m)]
            return (f + noise[0]).astype(float), (g + noise[1]).astype(float)
        return f, g


def make(
    n: int,
    m: int,
    *,
    source: str = "stored",
    dtype: Any = np.float64,
    log_reg: float = -1.0,
    log_scale: int = 0,
    cost: str = "uniform",
    mass: str = "random",
    forbidden: float = 0.0,
    d: int = 3,
    seed: int = 0,
) -> Problem:
    """Return a problem; log_reg and log_scale are powers of ten, reg relative to the cost.

    The first row and column have no forbidden pairs, so that all are connected; with forbidden
    pairs b is that of a plan which is positive on all others, so that there is one.
    """
    rng = np.random.default_rng(seed)
    scale, dtype = 10.0**log_scale, np.dtype(dtype)
    if source == "stored":
        c = (scale * cost_matrix(rng, n, m, cost)).astype(dtype)
        closed = rng.random((n, m)) < forbidden
        closed[0] = closed[:, 0] = False
        c[closed] = np.inf
        args, exact = (c, None, None, 0), wide(c)
    else:
        x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d))
        if source == "cosine":
            x, y = (unit(p.astype(dtype)) for p in (x, y))
        else:
            x, y = ((scale * p).astype(dtype) for p in (x, y))
        if n > 1 and source != "cosine":
            y[0] = x[1]  # a distance of zero
        kind = oracle.KINDS[source]
        exact = 1 - wide(x) @ wide(y).T if source == "cosine" else oracle.costs(x, y, source)
        args = (None, x, y, kind)
    finite = np.abs(exact[np.isfinite(exact)])
    largest = float(finite.max()) or scale
    a, b = masses(rng, n, mass), masses(rng, m, mass)
    if not np.isfinite(exact).all():
        feasible = np.where(np.isfinite(exact), b * (rng.random((n, m)) + 0.1), 0).astype(float)
        b = (feasible * (a / feasible.sum(1))[:, None]).sum(0)
    return Problem(
        args=args,
        exact=exact,
        a=a,
        b=b,
        reg=10.0**log_reg * largest,
        rng=rng,
        parameters=f"{source=}, {log_reg=}, {log_scale=}, {cost=}, {mass=}, {forbidden=}, "
        f"{d=}, {seed=}",
    )


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    max_rows: int = 20,
    max_columns: int = 131,
    sources: tuple[str, ...] = SOURCES,
    types: tuple[type, ...] = draws.DTYPES,
    min_log_reg: float = -2.0,
) -> Problem:
    """Draw a problem. Roundings of float32 are amplified by 1 / reg: there reg is larger."""
    dtype = draw(st.sampled_from(types))
    low = max(min_log_reg, -2.0) if dtype == np.float32 else min_log_reg
    return make(
        draw(draws.sizes(max_rows)),
        draw(draws.sizes(max_columns)),
        source=draw(st.sampled_from(sources)),
        dtype=dtype,
        log_reg=draw(st.floats(low, 1.0)),
        log_scale=draw(st.integers(-8, 8) if dtype == np.float64 else st.integers(-4, 4)),
        cost=draw(st.sampled_from(COSTS)),
        mass=draw(st.sampled_from(MASSES)),
        forbidden=draw(st.sampled_from((0.0, 0.0, 0.3, 0.9))),
        d=draw(st.sampled_from((1, 2, 3, 4, 5, 17, 64))),
        seed=draw(draws.seeds),
    )


def rho_of(theta: float, reg: float) -> Long | float:
    """Return the penalty whose update is damped by theta."""
    return oracle.INF if theta == 1 else Long(reg) * Long(theta) / (1 - Long(theta))


# ---- what comes back from the public functions ---------------------------------------------------


def sum_error(p: Problem, f: Array, g: Array) -> float:
    """Return how far a marginal error may be off: both sums, of entries and additions rounded."""
    n, m = p.shape
    there = np.isfinite(f.astype(float))[:, None] & np.isfinite(g.astype(float))
    f, g = (np.where(np.isfinite(v), v, 0) for v in (f, g))
    wrong = p.plan(f, g) * (p.entry_error(f, g) + (n + m) * p.eps) + p.tiny
    return float(2 * np.where(there, wrong, 0).sum()) + 4 * (n + m) * EPS * float(p.a.sum())


def optimal(
    cost: Array, a: Array, b: Array, reg: float, rho: tuple[float, float] = (oracle.INF, oracle.INF)
) -> tuple[Array, Array, float]:
    """Return the exact potentials, and the least curvature of the dual there.

    That of a balanced problem is least along (1, -1), where it is zero: the next one counts.
    """
    f, g = oracle.optimum(cost, a, b, reg, rho=rho)
    curvature = oracle.derivatives(cost, a, b, reg, f, g, rho)[1].astype(float)
    values = np.linalg.eigvalsh(curvature)
    # Eigenvalues are good to eps times the largest; below that nothing is known.
    least = values[1 if rho == (oracle.INF, oracle.INF) else 0] - len(values) * EPS * values[-1]
    return f, g, max(float(least), 1e-30 * float(values[-1]))


def plan_bound(
    cost: Array,
    a: Array,
    b: Array,
    reg: float,
    best: tuple[Array, Array, float],
    f: Array,
    g: Array,
    rho: tuple[float, float] = (oracle.INF, oracle.INF),
) -> Array:
    """Return how far the exact plan of f, g may be from the optimal one, entry by entry.

    The gradient of the dual at (f, g), which is what is missing in the marginals, is its curvature
    times the distance from the optimum: |(df, dg)| <= 2 |gradient| / curvature, with a factor 2 as
    the curvature differs on the way. Then |df_i + dg_j| is at most sqrt 2 of that.
    """
    gradient = oracle.derivatives(cost, a, b, reg, f, g, rho)[0]
    distance = 2 * np.sqrt((gradient**2).sum()) / best[2]
    step = np.minimum(np.sqrt(2) * distance / reg, 50)
    return oracle.plan(cost, best[0], best[1], reg) * np.expm1(step)
