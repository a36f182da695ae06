"""Naive entropic optimal transport in longdouble, in the log domain, and problems solved exactly.

min <C, P> + reg sum P (log P - 1) with the marginals a, b, or with the penalties rho KL(P 1 | a)
and rho KL(P^T 1 | b); P_ij = exp((f_i + g_j - C_ij) / reg). Every sum is a log-sum-exp shifted by
its largest term, every matrix is dense. Nothing is shared with the package.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from tests.linalg.oracle import Array, Long, solve, wide

INF = float("inf")
KINDS = {"sqeuclidean": 1, "euclidean": 2, "cityblock": 3, "cosine": 4}


def costs(x: Array, y: Array, kind: str) -> Array:
    """Return the costs (n, m) of points (n, d) and (m, d), from the definitions."""
    x, y = wide(x), wide(y)
    if kind == "cosine":
        lengths = np.sqrt((x**2).sum(1))[:, None] * np.sqrt((y**2).sum(1))
        return 1 - (x[:, None] * y).sum(2) / lengths
    apart = x[:, None] - y
    if kind == "cityblock":
        return np.abs(apart).sum(2)
    squares = (apart**2).sum(2)
    return squares if kind == "sqeuclidean" else np.sqrt(squares)


def log_sum(z: Array, axis: int) -> Array:
    """Return log sum exp z; -inf where every term is."""
    top = z.max(axis)
    shift = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(z - np.expand_dims(shift, axis)).sum(axis))


def exponents(cost: Array, f: Array, g: Array, reg: float) -> Array:
    return (wide(f)[:, None] + wide(g) - wide(cost)) / Long(reg)


def plan(cost: Array, f: Array, g: Array, reg: float) -> Array:
    return np.exp(exponents(cost, f, g, reg))


def theta(rho: float, reg: float) -> Long:
    """Return rho / (rho + reg), 1 for a marginal that is a constraint."""
    return Long(1) if rho == INF else Long(rho) / (Long(rho) + Long(reg))


def target(a: Array, f: Array, rho: float) -> Array:
    """Return what the row sums are at the optimum: a, or a exp(-f / rho)."""
    return wide(a) if rho == INF else wide(a) * np.exp(-wide(f) / Long(rho))


@dataclass(frozen=True)
class Step:
    """One iteration: the new potentials, and what was found in between.

    ``rows`` and ``columns`` are the sums of the plan of the new f and the old g, ``first`` the row
    sums of the old f and g; ``error`` is that of ``rows`` and ``columns``.
    """

    f: Array
    g: Array
    first: Array
    rows: Array
    columns: Array
    error: Long


def iterate(
    cost: Array,
    a: Array,
    b: Array,
    reg: float,
    f: Array,
    g: Array,
    *,
    rho: tuple[float, float] = (INF, INF),
    omega: float = 1.0,
) -> Step:
    """Make one over-relaxed Sinkhorn iteration, f first; all weights are positive."""
    a, b, f, g, e, w = wide(a), wide(b), wide(f), wide(g), Long(reg), Long(omega)
    log_s = log_sum(exponents(cost, f, g, reg), 1)
    new = f + w * (theta(rho[0], reg) * (f + e * (np.log(a) - log_s)) - f)
    z = exponents(cost, new, g, reg)
    log_c = log_sum(z, 0)
    rows, columns = np.exp(log_sum(z, 1)), np.exp(log_c)
    error = (
        np.abs(rows - target(a, new, rho[0])).sum() + np.abs(columns - target(b, g, rho[1])).sum()
    )
    after = g + w * (theta(rho[1], reg) * (g + e * (np.log(b) - log_c)) - g)
    with np.errstate(over="ignore"):
        return Step(new, after, np.exp(log_s), rows, columns, error)


def marginal_error(
    cost: Array,
    a: Array,
    b: Array,
    reg: float,
    f: Array,
    g: Array,
    rho: tuple[float, float] = (INF, INF),
) -> float:
    """Return the L1 distances of both marginals from what they should be, added."""
    p = plan(cost, f, g, reg)
    rows = np.abs(p.sum(1) - target(a, f, rho[0])).sum()
    return float(rows + np.abs(p.sum(0) - target(b, g, rho[1])).sum())


def entropy(p: Array) -> Long:
    """Return sum P (log P - 1), with 0 log 0 = 0."""
    p = wide(p)
    return (p * (np.log(np.where(p > 0, p, 1)) - 1)).sum()


def divergence(p: Array, q: Array) -> Long:
    """Return KL(p | q) = sum p log(p / q) - p + q."""
    p, q = wide(p), wide(q)
    ratio = np.where(p > 0, p, 1) / np.where(p > 0, q, 1)
    return (p * np.log(ratio) - p + q).sum()


def transport_cost(cost: Array, p: Array) -> Long:
    """Return <C, P>; a pair that is forbidden costs nothing where P is 0."""
    p, cost = wide(p), wide(cost)
    return np.where(p > 0, p * np.where(p > 0, cost, 0), 0).sum()


def value(
    cost: Array,
    a: Array,
    b: Array,
    reg: float,
    p: Array,
    rho: tuple[float, float] = (INF, INF),
) -> Long:
    """Return the objective at P; a marginal that is a constraint adds nothing."""
    total = transport_cost(cost, p) + Long(reg) * entropy(p)
    for weight, marginal, sums in zip(rho, (a, b), (p.sum(1), p.sum(0)), strict=True):
        if weight != INF:
            total += Long(weight) * divergence(sums, marginal)
    return total


def dual_value(
    cost: Array,
    a: Array,
    b: Array,
    reg: float,
    f: Array,
    g: Array,
    rho: tuple[float, float] = (INF, INF),
) -> Long:
    """Return <f, a> + <g, b> - reg sum P, or its form rho <1 - exp(-f / rho), a> for penalties.

    A weight of 0 times a potential of -inf is 0.
    """
    total = -Long(reg) * plan(cost, f, g, reg).sum()
    for weight, marginal, potential in zip(rho, (a, b), (f, g), strict=True):
        w, v = wide(marginal), wide(potential)
        v = np.where(w > 0, v, 0)
        gain = v if weight == INF else -Long(weight) * np.expm1(-v / Long(weight))
        total += (w * gain).sum()
    return total


def sinkhorn(
    cost: Array,
    a: Array,
    b: Array,
    reg: float,
    *,
    rho: tuple[float, float] = (INF, INF),
    tol: float = 1e-15,
    max_iter: int = 20_000,
) -> tuple[Array, Array]:
    """Return potentials of the optimum by plain Sinkhorn iterations; all weights are positive."""
    f, g = np.zeros(len(a), Long), np.zeros(len(b), Long)
    for _ in range(max_iter):
        step = iterate(cost, a, b, reg, f, g, rho=rho)
        f = step.f
        if step.error <= tol:
            return f, g
        g = step.g
    raise AssertionError(f"{max_iter} iterations end with {step.error}")


def optimum(
    cost: Array,
    a: Array,
    b: Array,
    reg: float,
    *,
    rho: tuple[float, float] = (INF, INF),
    tol: float = 1e-16,
) -> tuple[Array, Array]:
    """Return potentials of the optimum: a few Sinkhorn iterations, then dense damped Newton steps.

    For problems on which plain iterations take too long; test_oracle compares the two. Larger reg
    come first in balanced problems, each to a coarse tolerance. The masses of float64 are made to
    have the same sum in longdouble, and of the potentials f + c, g - c of a balanced problem those
    with <f, a> = <g, b> are taken.
    """
    a, b, f, g = wide(a), wide(b), np.zeros(len(a), Long), np.zeros(len(b), Long)
    balanced = rho == (INF, INF)
    if balanced:
        b = b * (a.sum() / b.sum())
    coarse = 1e-3 * min(float(a.min()), float(b.min()))
    for level in (256, 64, 16, 4) if balanced else ():
        f, g = _newton(cost, a, b, level * reg, f, g, rho, coarse)
        # P_ij = a_i b_j exp((f'_i + g'_j - C_ij) / reg): f' and g' stay.
        f, g = (v - 0.75 * level * Long(reg) * np.log(w) for v, w in ((f, a), (g, b)))
    f, g = _newton(cost, a, b, reg, f, g, rho, tol)
    shift = ((f * a).sum() - (g * b).sum()) / (a.sum() + b.sum()) if balanced else 0
    return f - shift, g + shift


def _newton(
    cost: Array,
    a: Array,
    b: Array,
    reg: float,
    f: Array,
    g: Array,
    rho: tuple[float, float],
    tol: float,
) -> tuple[Array, Array]:
    n, balanced = len(a), rho == (INF, INF)
    for _ in range(5):
        step = iterate(cost, a, b, reg, f, g, rho=rho)
        f, g = step.f, step.g
    for _ in range(400):
        error = marginal_error(cost, a, b, reg, f, g, rho)
        if error <= tol:
            return f, g
        gradient, hessian = derivatives(cost, a, b, reg, f, g, rho)
        if balanced:  # the last entry of g is kept
            gradient, hessian = gradient[:-1], hessian[:-1, :-1]
        # Parts of the plan that exchange no mass but for rounding stay where they are.
        hessian = hessian + Long(1e-15) * np.diag(np.diag(hessian))
        d = np.append(solve(hessian, gradient[:, None])[:, 0], [Long(0)] * balanced)
        # A quadratic model of exponentials holds where the exponents change by no more than 2.
        change = np.abs(d[:n, None] + d[n:])[np.isfinite(cost)].max() / Long(reg)
        t = 1 / max(Long(1), change / 2)
        f, g = f + t * d[:n], g + t * d[n:]
    if error > 1e-13:
        raise AssertionError(f"400 steps end with {error}")
    return f, g  # the rounding of the masses is more than what the parts of the plan exchange


def derivatives(
    cost: Array,
    a: Array,
    b: Array,
    reg: float,
    f: Array,
    g: Array,
    rho: tuple[float, float] = (INF, INF),
) -> tuple[Array, Array]:
    """Return the gradient of the dual value in (f, g), and minus its second derivatives."""
    p = plan(cost, f, g, reg)
    goals = target(a, f, rho[0]), target(b, g, rho[1])
    gradient = np.concatenate([goals[0] - p.sum(1), goals[1] - p.sum(0)])
    hessian = np.block([[np.diag(p.sum(1)), p], [p.T, np.diag(p.sum(0))]]) / Long(reg)
    for weight, goal, start in zip(rho, goals, (0, len(a)), strict=True):
        if weight != INF:
            at = np.arange(start, start + len(goal))
            hessian[at, at] += goal / Long(weight)
    return gradient, hessian


# ---- exact answers -------------------------------------------------------------------------------


def two_by_two(cost: Array, a: Array, b: Array, reg: float) -> Array:
    """Return the plan of a 2 x 2 problem.

    With t = P_00 the odds ratio t (1 - p - q + t) / ((p - t) (q - t)) is
    k = exp((C_01 + C_10 - C_00 - C_11) / reg), a quadratic equation for t.
    """
    cost, p, q = wide(cost), wide(a)[0], wide(b)[0]
    k = np.exp((cost[0, 1] + cost[1, 0] - cost[0, 0] - cost[1, 1]) / Long(reg))
    # (1 - k) t^2 + (1 - p - q + k (p + q)) t - k p q = 0, the root in [0, min(p, q)]; it is p q
    # for k = 1, and k < 1 where the first form below would cancel.
    half = (1 - p - q + k * (p + q)) / 2
    root = np.sqrt(half**2 + (1 - k) * k * p * q)
    t = k * p * q / (half + root) if half >= 0 else (root - half) / (1 - k)
    return np.array([[t, p - t], [q - t, 1 - p - q + t]])


def line(x: Array, y: Array, power: float) -> Long:
    """Return the least cost of moving n points of a line onto n others: in sorted order."""
    return (np.abs(np.sort(wide(x)) - np.sort(wide(y))) ** power).mean()


def line_with_weights(x: Array, a: Array, y: Array, b: Array) -> Long:
    """Return the least sum of |x - y| on a line: the area between the distribution functions."""
    at = np.concatenate([wide(x), wide(y)])
    mass = np.concatenate([wide(a), -wide(b)])
    order = np.argsort(at)
    return (np.abs(np.cumsum(mass[order]))[:-1] * np.diff(at[order])).sum()


def assignment(cost: Array) -> tuple[Array, float]:
    """Return the permutation of least cost, and its mean cost."""
    rows, columns = linear_sum_assignment(cost)
    return columns, float(wide(cost)[rows, columns].mean())


def _root(a: Array) -> Array:
    values, vectors = np.linalg.eigh(a)
    return (vectors * np.sqrt(values)) @ vectors.T


def gaussian_covariance(a: Array, b: Array, reg: float) -> Array:
    """Return E[x y^T] of the optimal plan between N(0, A) and N(0, B), squared Euclidean cost.

    Maximize 2 tr K + (reg / 2) log det(A - K B^-1 K^T): K = A^1/2 (A^1/2 B A^1/2 + (reg/4)^2 I)^1/2
    A^-1/2 - (reg/4) I (Janati, Muzellec, Peyre, Cuturi 2020, theorem 1).
    """
    root = _root(a)
    inner = root @ b @ root + (reg / 4) ** 2 * np.eye(len(a))
    return root @ _root(inner) @ np.linalg.inv(root) - reg / 4 * np.eye(len(a))


def bures(a: Array, b: Array) -> float:
    """Return the squared Bures distance tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2."""
    root = _root(a)
    return float(np.trace(a) + np.trace(b) - 2 * np.trace(_root(root @ b @ root)))


# ---- sparsity constraints ------------------------------------------------------------------------


def capped_column(scores: Array, mass: float, k: int) -> tuple[Array, Long]:
    """Project scores (n,) onto {t >= 0, sum t = mass, at most k entries}; return it and the shift.

    The k largest scores survive, lowered by one number until their sum is the mass (Liu,
    Puigcerver, Blondel 2022): t = max(scores + shift, 0).
    """
    s = wide(scores)
    order = np.argsort(-s, kind="stable")[:k]
    best = None
    for used in range(1, len(order) + 1):
        shift = (Long(mass) - s[order[:used]].sum()) / used
        if s[order[used - 1]] + shift > 0:
            best = shift
    t = np.zeros(len(s), Long)
    t[order] = np.maximum(s[order] + best, 0)
    return t, best
