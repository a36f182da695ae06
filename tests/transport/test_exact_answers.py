"""Problems whose solution is known: lines, permutations, Gaussians, 2 x 2."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadric.transport import solve, solve_points
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import wide
from tests.transport import oracle
from tests.transport.problems import EPS, masses

METHODS = ("auto", "sinkhorn", "newton")


def assert_between(found, least, entropy, error):
    """Assert least <= found <= least + reg * entropy, give or take the error.

    P is optimal for reg and P0 for reg = 0, so <C, P> - <C, P0> <= reg (S(P) - S(P0)), S being the
    entropy. That of a plan is at most S(a) + S(b) and at least the larger of the two: the smaller
    of the two is left.
    """
    assert least - error <= found <= least + entropy + error


def entropy_of(a):
    return float(-(a * np.log(a)).sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("log_reg", [-4, -2, 0])
@pytest.mark.parametrize("power", [1, 2])
def test_sorting(backend, method, log_reg, power):
    """Points of a line, as a stored cost and as points: in sorted order at the least cost."""
    if method == "sinkhorn" and log_reg < -2:
        pytest.skip("this is what the other methods are for")
    rng = np.random.default_rng(power)
    n, reg = 40, 10.0**log_reg
    x, y = rng.random((n, 1)), rng.random((n, 1)) * 1.5
    least = float(oracle.line(x[:, 0], y[:, 0], power))
    kind = {1: "euclidean", 2: "sqeuclidean"}[power]
    cost = np.abs(x - y.T) ** power
    for r in (
        solve(None, None, cost, reg, method=method, backend=backend),
        solve_points(x, y, reg, cost=kind, method=method, backend=backend),
    ):
        feasible = float((wide(r.rounded_plan()) * cost).sum())
        # Rounding moves at most the error, 1e-9, over a distance of at most 2.25.
        assert_between(feasible, least, reg * np.log(n), 4 * 2.25 * 1e-9)
        assert_between(r.cost, least, reg * np.log(n), 4 * 2.25 * 1e-9)


@pytest.mark.parametrize("log_reg", [-3, -1])
def test_sorting_with_weights(backend, log_reg):
    rng = np.random.default_rng(0)
    reg = 10.0**log_reg
    x, y, a, b = rng.random((30, 1)), rng.random((50, 1)), masses(rng, 30), masses(rng, 50)
    least = float(oracle.line_with_weights(x[:, 0], a, y[:, 0], b))
    for kind in ("euclidean", "cityblock"):
        r = solve_points(x, y, reg, a=a, b=b, cost=kind, backend=backend)
        assert_between(r.cost, least, reg * min(entropy_of(a), entropy_of(b)), 4e-9)


@pytest.mark.parametrize("method", ["auto", "newton"])
@pytest.mark.parametrize("n", [2, 15, 60])
def test_assignment(backend, method, n):
    """Small reg: the largest entry of each row is its partner in the best assignment.

    Costs are integers and the best assignment is alone by construction: it costs 0, any other
    pair at least 1. So <C, P> is at least the mass outside of it, and at most reg log n.
    """
    rng = np.random.default_rng(n)
    order = rng.permutation(n)
    cost = rng.integers(1, 10, (n, n)).astype(float)
    cost[np.arange(n), order] = 0
    u, v = rng.integers(0, 20, n).astype(float), rng.integers(0, 20, n).astype(float)
    reg = 0.02
    r = solve(None, None, cost + u[:, None] + v, reg, method=method, backend=backend)
    found, least = oracle.assignment(cost + u[:, None] + v)
    assert (found == order).all()
    assert_between(r.cost, least, reg * np.log(n), 50 * 1e-9)
    plan = r.plan()
    outside = 1 - plan[np.arange(n), order].sum()
    assert outside <= reg * np.log(n) + 50 * 1e-9
    # Far less, in fact: a cycle of k exchanges is exp(-k / reg) times as likely.
    assert outside <= n * n * np.exp(-1 / reg) + 1e-9 + 64 * n * EPS / reg
    assert (plan.argmax(1) == order).all()


@pytest.mark.parametrize("seed", range(3))
def test_random_assignment(backend, seed):
    """As of the benchmarks, but small: close to the least cost of all permutations."""
    cost = np.random.default_rng(seed).random((50, 50))
    reg = 1 / 1200
    r = solve(None, None, cost, reg, backend=backend)
    _, least = oracle.assignment(cost)
    assert_between(r.cost, least, reg * np.log(50), 4e-9)
    assert_between(float((wide(r.rounded_plan()) * cost).sum()), least, reg * np.log(50), 4e-9)


# ---- Gaussians -----------------------------------------------------------------------------------


def lattice(reach, step, d):
    """Return the points of a lattice, and a function that gives them the masses of a Gaussian."""
    line = np.arange(-reach, reach + step / 2, step)
    points = np.stack(np.meshgrid(*[line] * d, indexing="ij"), -1).reshape(-1, d)

    def weights(covariance, mean):
        off = points - mean
        w = np.exp(-np.einsum("ij,jk,ik->i", off, np.linalg.inv(covariance), off) / 2)
        return w / w.sum()

    return points, weights


@pytest.mark.parametrize("reg", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("method", METHODS)
def test_gaussians_on_a_line(backend, method, reg):
    """Bures, with the blur of reg: on a lattice, sums of Gaussians are their integrals.

    A Gaussian of deviation s on a lattice of step h is integrated with a relative error of
    2 exp(-2 pi^2 s^2 / h^2); the narrowest here is that of x given y.
    """
    s, t, step = 1.0, 0.7, 0.1
    points, weights = lattice(9.0, step, 1)
    a, b = weights(np.eye(1) * s**2, 0.0), weights(np.eye(1) * t**2, 0.5)
    r = solve_points(points, points, reg, a=a, b=b, tol=1e-11, method=method, backend=backend)
    covariance = oracle.gaussian_covariance(np.eye(1) * s**2, np.eye(1) * t**2, reg)[0, 0]
    expected = s**2 + t**2 + 0.25 - 2 * covariance
    narrow = s**2 - covariance**2 / t**2
    aliasing = 2 * np.exp(-2 * np.pi**2 * narrow / step**2)
    # The error of the marginals, over the largest distance of points that have mass, and tails.
    limit = 100 * (1e-11 + aliasing) + 300 * np.exp(-(8.0**2) / 2)
    assert_within(r.cost, expected, limit)
    mean = r.barycentric(points)[:, 0]
    middle = np.abs(points[:, 0]) < 3
    slope = covariance / s**2
    # Tails: row i has mass a_i, and may be wrong by the error relative to that.
    assert_within(mean[middle], 0.5 + slope * points[middle, 0], limit / a[middle] + 1e-9)


def test_gaussians_in_the_plane(backend):
    a, b = np.array([[1.0, 0.4], [0.4, 0.7]]), np.array([[0.6, -0.2], [-0.2, 1.1]])
    reg, step, reach = 1.0, 0.35, 8.05
    points, weights = lattice(reach, step, 2)
    masses_ = weights(a, np.zeros(2)), weights(b, np.zeros(2))
    keep = [w > 1e-12 for w in masses_]
    w = [m[k] / m[k].sum() for m, k in zip(masses_, keep, strict=True)]
    r = solve_points(
        points[keep[0]], points[keep[1]], reg, a=w[0], b=w[1], tol=1e-10, backend=backend
    )
    k = oracle.gaussian_covariance(a, b, reg)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(k)
    narrow = np.linalg.eigvalsh(a - k @ np.linalg.inv(b) @ k.T).min()
    aliasing = 4 * np.exp(-2 * np.pi**2 * narrow / step**2)
    # Masses below 1e-12 are left out, at squared distances of at most 8 reach^2.
    error = 1e-10 + aliasing + len(points) * 1e-12
    assert_within(r.cost, expected, 8 * reach**2 * error)
    assert oracle.bures(a, b) < expected


def test_gaussians_approach_bures(backend):
    """The blurred cost is above the squared Bures distance by at most reg times the dimension.

    d/dreg of E|x - y|^2 is -2 dK/dreg <= 1/2 per dimension.
    """
    points, weights = lattice(6.0, 0.05, 1)
    a, b = weights(np.eye(1), 0.0), weights(np.eye(1) * 0.25, 0.0)
    keep = [w > 1e-12 for w in (a, b)]
    a, b = (w[k] / w[k].sum() for w, k in zip((a, b), keep, strict=True))
    for reg in (0.3, 0.1, 0.03):
        r = solve_points(points[keep[0]], points[keep[1]], reg, a=a, b=b, backend=backend)
        # Masses left out, 1e-12 of at most 241 points at a distance of at most 12, and the error.
        slack = 144 * (241 * 1e-12 + 1e-9)
        assert 0.25 - slack <= r.cost <= 0.25 + reg / 2 + slack


# ---- 2 x 2 ---------------------------------------------------------------------------------------


@given(
    seed=draws.seeds,
    log_reg=st.floats(-2, 1),
    log_scale=st.integers(-8, 8),
    method=st.sampled_from(METHODS),
)
def test_two_by_two(backend, seed, log_reg, log_scale, method):
    """By the quadratic equation for P_00; the marginal errors are the only other ones.

    With marginals that are off by e the odds ratio is still exact, so an entry moves by at most
    2 e, and by the roundings of the exponents.
    """
    rng = np.random.default_rng(seed)
    cost, a, b = 10.0**log_scale * rng.random((2, 2)), masses(rng, 2), masses(rng, 2)
    if method == "sinkhorn":
        log_reg = max(log_reg, -1.0)
    reg = 10.0 ** (log_scale + log_reg)
    r = solve(a, b, cost, reg, method=method, tol=1e-12, max_iter=1_000_000, backend=backend)
    size = 16 * (np.abs(r.f).max() + np.abs(r.g).max() + cost.max()) / reg
    assert_within(r.plan(), oracle.two_by_two(cost, a, b, reg), 2e-12 + size * EPS)


def test_two_by_two_by_hand(backend):
    """P = 1/2 [[s, 1 - s], [1 - s, s]] with s = 1 / (1 + exp(-1 / reg))."""
    half = np.array([0.5, 0.5])
    for reg in (0.05, 1.0, 7.0):
        r = solve(half, half, np.array([[0.0, 1.0], [1.0, 0.0]]), reg, backend=backend)
        s = 1 / (1 + np.exp(-1 / reg))
        assert_within(r.plan(), np.array([[s, 1 - s], [1 - s, s]]) / 2, 1e-9)
        assert_within(r.cost, 1 - s, 1e-9)
