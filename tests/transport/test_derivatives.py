"""Derivatives of the value, the plan and the potentials against finite differences.

The differences are those of the longdouble optimum. With steps h and h / 2 the central difference
at h / 2 is off by about a third of the difference of the two; the whole of it is the bound.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadric.transport import solve, solve_points
from tests.bounds import assert_within
from tests.linalg.oracle import Long, wide
from tests.transport import oracle
from tests.transport.problems import EPS, make, masses

INF = oracle.INF
KINDS = tuple(oracle.KINDS)
RHO = {"balanced": (INF, INF), "rows": (0.3, INF), "columns": (INF, 0.5), "both": (0.4, 0.7)}


def slope(function, step):
    """Return the derivative of function(t) at 0, and a bound of its error."""
    coarse, fine = ((function(h) - function(-h)) / (2 * h) for h in (Long(step), Long(step) / 2))
    return fine, np.abs(coarse - fine)


def centred(a, b, f, g, rho):
    """Return the potentials that a result has: <f, a> = <g, b> where there is a choice."""
    if rho != (INF, INF):
        return f, g
    c = ((f * a).sum() - (g * b).sum()) / (a.sum() + b.sum())
    return f - c, g + c


def solution(cost, a, b, reg, rho):
    """Return value, plan and potentials of the exact optimum."""
    f, g = oracle.optimum(cost, a, b, reg, rho=rho)
    f, g = centred(a, b, f, g, rho)
    return oracle.dual_value(cost, a, b, reg, f, g, rho), oracle.plan(cost, f, g, reg), f, g


def directions(rng, a, b, rho):
    """Return changes of the masses; those of a balanced problem keep the sums equal."""
    da, db = (wide(w * rng.standard_normal(len(w))) for w in (a, b))
    if rho == (INF, INF):
        da, db = da - a * da.sum(), db - b * db.sum()
        both = Long(rng.standard_normal())  # more mass on both sides
        da, db = da + both * a, db + both * b
    elif rho[0] == INF or rho[1] == INF:
        pass
    return da, db


def given_problem(rho, seed=0, forbidden=0.0, log_reg=-0.7):
    p = make(5, 6, seed=seed, forbidden=forbidden, log_reg=log_reg)
    b = p.b if rho == (INF, INF) else 1.3 * p.b
    return p, wide(p.a), wide(b), tuple(r * p.scale for r in rho)


def solved(p, a, b, rho, backend):
    unbalanced = None if rho == (INF, INF) else rho
    return solve(
        a.astype(float), b.astype(float), p.args[0], p.reg, tol=1e-13, unbalanced=unbalanced,
        max_iter=100_000, backend=backend,
    )  # fmt: skip


def assert_slope(found, function, scale, name):
    """Compare; beyond the differences, the solution itself is good to an error of 1e-13 only."""
    expected, error = slope(function, 1e-4)
    assert_within(found, expected, error + 1e-9 * scale, name)


@pytest.mark.parametrize("sides", RHO)
@pytest.mark.parametrize("forbidden", [0.0, 0.3])
def test_envelope(backend, sides, forbidden):
    """The value in the cost and the masses: the plan and the potentials."""
    p, a, b, rho = given_problem(RHO[sides], forbidden=forbidden)
    gradients = solved(p, a, b, rho, backend).gradients()
    rng = np.random.default_rng(1)
    dc = np.where(np.isfinite(p.exact), wide(rng.standard_normal(p.shape)), 0) * p.scale / 10
    da, db = directions(rng, a, b, rho)
    da, db = da / 10, db / 10
    size = p.scale * 10
    moved = (gradients.M * dc).sum()
    assert_slope(moved, lambda t: solution(p.exact + t * dc, a, b, p.reg, rho)[0], size, "M")
    moved = (gradients.a * da).sum() + (gradients.b * db).sum()
    assert_slope(
        moved, lambda t: solution(p.exact, a + t * da, b + t * db, p.reg, rho)[0], size, "masses"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", ["balanced", "both"])
def test_envelope_of_points(backend, kind, sides):
    p = make(5, 6, source=kind, d=2, log_reg=-0.5)
    x, y = p.args[1].copy(), p.args[2].copy()
    if kind != "cosine":
        y[0] += 0.1 * p.scale ** (0.5 if kind == "sqeuclidean" else 1.0)  # no kink at zero
    else:
        x, y = 2 * x, 0.7 * y
    rho = tuple(r * p.scale for r in RHO[sides])
    r = solve_points(
        x, y, p.reg, a=p.a, b=p.b, cost=kind, unbalanced=None if sides == "balanced" else rho,
        tol=1e-13, max_iter=100_000, backend=backend,
    )  # fmt: skip
    gradients = r.gradients()
    assert gradients.M is None
    assert gradients.x.shape == x.shape
    assert gradients.y.shape == y.shape
    rng = np.random.default_rng(2)
    dx, dy = wide(rng.standard_normal(x.shape)) / 10, wide(rng.standard_normal(y.shape)) / 10

    def value(t, dx, dy):
        cost = oracle.costs(x + t * dx, y + t * dy, kind)
        return solution(cost, wide(p.a), wide(p.b), p.reg, rho)[0]

    size = 10 * p.scale
    assert_slope((gradients.x * dx).sum(), lambda t: value(t, dx, 0 * dy), size, "x")
    assert_slope((gradients.y * dy).sum(), lambda t: value(t, 0 * dx, dy), size, "y")


COTANGENTS = ("plan", "low rank", "f", "g", "all")


def cotangents(rng, p, which):
    n, m = p.shape
    w, u, v = rng.standard_normal((n, m)), rng.standard_normal(n), rng.standard_normal(m)
    low = rng.standard_normal((n, 2)), rng.standard_normal((m, 2))
    options = {
        "plan": {"plan": w},
        "low rank": {"plan": low},
        "f": {"f": u},
        "g": {"g": v},
        "all": {"plan": w, "f": u, "g": v},
    }[which]
    if which == "low rank":
        w = low[0] @ low[1].T
    weights = (
        w if "plan" in options else 0 * w,
        u if "f" in options else 0 * u,
        v if "g" in options else 0 * v,
    )
    return options, weights


def pairing(solution_, weights, reg):
    """Return <W, P> + <u, f> + <v, g>, with the potentials in units of reg."""
    _, plan, f, g = solution_
    w, u, v = weights
    return (w * plan).sum() + (u * f).sum() + (v * g).sum()


@pytest.mark.parametrize("which", COTANGENTS)
@pytest.mark.parametrize("sides", RHO)
def test_implicit(backend, which, sides):
    """Functions of the plan and the potentials, in the cost and the masses."""
    p, a, b, rho = given_problem(RHO[sides], seed=3)
    rng = np.random.default_rng(4)
    options, weights = cotangents(rng, p, which)
    gradients = solved(p, a, b, rho, backend).vjp(**options)
    dc = wide(rng.standard_normal(p.shape)) * p.scale / 20
    da, db = (d / 20 for d in directions(rng, a, b, rho))
    size = 100 * (1 + p.scale)

    def function(cost, a, b):
        return pairing(solution(cost, a, b, p.reg, rho), weights, p.reg)

    moved = (gradients.M * dc).sum()
    assert_slope(moved, lambda t: function(p.exact + t * dc, a, b), size, "M")
    moved = (gradients.a * da).sum() + (gradients.b * db).sum()
    assert_slope(moved, lambda t: function(p.exact, a + t * da, b + t * db), size, "masses")


@pytest.mark.parametrize("which", ["plan", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_implicit_of_points(backend, kind, which):
    p = make(5, 6, source=kind, d=2, log_reg=-0.5)
    x, y = p.args[1].copy(), p.args[2].copy()
    if kind != "cosine":
        y[0] += 0.1 * p.scale ** (0.5 if kind == "sqeuclidean" else 1.0)
    rng = np.random.default_rng(5)
    options, weights = cotangents(rng, p, which)
    r = solve_points(x, y, p.reg, a=p.a, b=p.b, cost=kind, tol=1e-13, backend=backend)
    gradients = r.vjp(**options)
    dx, dy = wide(rng.standard_normal(x.shape)) / 20, wide(rng.standard_normal(y.shape)) / 20

    def function(t, dx, dy):
        cost = oracle.costs(x + t * dx, y + t * dy, kind)
        found = solution(cost, wide(p.a), wide(p.b), p.reg, (INF, INF))
        return pairing(found, weights, p.reg)

    size = 100 * (1 + p.scale)
    assert_slope((gradients.x * dx).sum(), lambda t: function(t, dx, 0 * dy), size, "x")
    assert_slope((gradients.y * dy).sum(), lambda t: function(t, 0 * dx, dy), size, "y")


# ---- algebra -------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), log_reg=st.floats(-1.5, 0.5))
def test_envelope_is_the_solution(backend, seed, log_reg):
    p = make(7, 9, seed=seed, log_reg=log_reg)
    r = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    gradients = r.gradients()
    np.testing.assert_array_equal(gradients.M, r.plan())
    # The smallest of all gradients in the masses: f and g up to a constant, of the same sum.
    limit = 64 * EPS * (np.abs(r.f).sum() + np.abs(r.g).sum())
    assert_within(gradients.a - gradients.a[0], r.f - r.f[0], limit)
    assert_within(gradients.b - gradients.b[0], r.g - r.g[0], limit)
    assert_within(gradients.a.sum(), gradients.b.sum(), limit)
    assert_within(gradients.a[0] + gradients.b[0], r.f[0] + r.g[0], limit)


def test_what_cannot_change(backend):
    """Row sums of the plan are given: their gradient in the cost is zero."""
    p = make(7, 9)
    r = solve(p.a, p.b, p.args[0], p.reg, tol=1e-12, backend=backend)
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal(7), rng.standard_normal(9)
    gradients = r.vjp(plan=u[:, None] + v)
    assert_within(gradients.M, 0, 1e-9 / p.reg)
    # A constant cost of a row moves its potential and nothing else.
    gradients = r.vjp(plan=rng.standard_normal((7, 9)))
    assert_within(gradients.M.sum(1), 0, 1e-9 / p.reg)
    assert_within(gradients.M.sum(0), 0, 1e-9 / p.reg)


def test_gradients_are_linear(backend):
    p = make(7, 9)
    r = solve(p.a, p.b, p.args[0], p.reg, tol=1e-12, backend=backend)
    rng = np.random.default_rng(0)
    w, u = rng.standard_normal((2, 7, 9)), rng.standard_normal((2, 7))
    first, second = (r.vjp(plan=w[k], f=u[k]) for k in (0, 1))
    both = r.vjp(plan=2 * w[0] - w[1], f=2 * u[0] - u[1])
    for name in ("M", "a", "b"):
        expected = 2 * getattr(first, name) - getattr(second, name)
        assert_within(getattr(both, name), expected, 1e-9 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("method", ["envelope", "implicit"])
def test_batches(backend, method):
    many = [make(5, 6, seed=k) for k in range(3)]
    a, b = np.stack([p.a for p in many]), np.stack([p.b for p in many])
    a[1, 2] = 0
    a /= a.sum(1, keepdims=True)
    r = solve(a, b, np.stack([p.args[0] for p in many]), many[0].reg, tol=1e-12, backend=backend)
    w = np.random.default_rng(0).standard_normal((3, 5, 6))
    g = r.gradients() if method == "envelope" else r.vjp(plan=w)
    assert g.M.shape == (3, 5, 6)
    assert g.a.shape == (3, 5)
    for k in range(3):
        one = r[k].gradients() if method == "envelope" else r[k].vjp(plan=w[k])
        for name in ("M", "a", "b"):
            np.testing.assert_array_equal(getattr(g, name)[k], getattr(one, name))
    assert (g.M[1, 2] == 0).all()
    assert g.a[1, 2] == 0


def test_zero_masses(backend):
    """They are fixed: nothing about them matters."""
    p = make(6, 7)
    a = p.a.copy()
    a[3] = 0
    a /= a.sum()
    r = solve(a, p.b, p.args[0], p.reg, tol=1e-12, backend=backend)
    s = solve(np.delete(a, 3), p.b, np.delete(p.args[0], 3, 0), p.reg, tol=1e-12, backend=backend)
    w = np.random.default_rng(0).standard_normal((6, 7))
    pairs = (r.gradients(), s.gradients()), (r.vjp(plan=w), s.vjp(plan=np.delete(w, 3, 0)))
    for ours, without in pairs:
        assert (ours.M[3] == 0).all()
        assert ours.a[3] == 0
        assert_within(np.delete(ours.M, 3, 0), without.M, 1e-8)
        assert_within(np.delete(ours.a, 3), without.a, 1e-8)
        assert_within(ours.b, without.b, 1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types(backend, dtype):
    p = make(6, 7, dtype=dtype)
    r = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    for g in (r.gradients(), r.vjp(plan=np.ones((6, 7)))):
        assert g.M.dtype == dtype
        assert g.a.dtype == g.b.dtype == np.float64
        assert g.x is None
        assert g.y is None
    x, y = p.rng.random((6, 2)).astype(dtype), p.rng.random((7, 2)).astype(dtype)
    g = solve_points(x, y, 0.1, backend=backend).gradients()
    assert g.x.dtype == g.y.dtype == dtype


@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts(backend, order):
    p = make(6, 7)
    cost = np.asarray(p.args[0], order=order)
    r = solve(p.a, p.b, cost, p.reg, tol=1e-13, backend=backend)
    w = np.random.default_rng(0).standard_normal((6, 7))
    first = solve(p.a, p.b, p.args[0], p.reg, tol=1e-13, backend=backend)
    assert_within(r.gradients().M, first.gradients().M, 1e-11)
    assert_within(r.vjp(plan=w).M, first.vjp(plan=w).M, 1e-9)
    assert_within(r.vjp(f=w[:, 0]).a, first.vjp(f=w[:, 0]).a, 1e-8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plan", np.ones((7, 6))),
        ("plan", np.full((6, 7), np.nan)),
        ("plan", np.ones((6, 7), int)),
        ("plan", "all"),
        ("f", np.ones(7)),
        ("f", np.full(6, np.inf)),
        ("g", np.ones((1, 7))),
        ("g", [1.0] * 7),
    ],
)
def test_bad_cotangents(backend, name, value):
    p = make(6, 7)
    r = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b") as caught:
        r.vjp(**{name: value})
    assert "\n" not in str(caught.value)


def test_small_reg(backend):
    """Far from the smooth regime, on a larger problem: the equations hold, to rounding."""
    p = make(60, 60, log_reg=-2.5, mass="uniform")
    r = solve(p.a, p.b, p.args[0], p.reg, tol=1e-12, backend=backend)
    rng = np.random.default_rng(0)
    w = rng.standard_normal((60, 60))
    gradients = r.vjp(plan=w)
    plan = r.plan()
    # The gradient in M is P o (s_i + t_j - w / reg), with zero row and column sums.
    assert_within(gradients.M.sum(1), 0, 1e-6 * plan.max() / p.reg)
    assert_within(gradients.M.sum(0), 0, 1e-6 * plan.max() / p.reg)
    there = plan > 1e-6 * plan.max()
    rest = np.where(there, gradients.M / np.where(there, plan, 1) + w / p.reg, 0)
    i, j = np.nonzero(there)
    design = np.zeros((len(i), 120))
    design[np.arange(len(i)), i] = design[np.arange(len(i)), 60 + j] = 1
    fit = design @ np.linalg.lstsq(design, rest[i, j], rcond=None)[0]
    assert_within(rest[i, j], fit, 1e-6 * np.abs(rest).max())


def test_masses_of_one(backend):
    a = masses(np.random.default_rng(0), 1)
    r = solve(a, a, np.array([[2.0]]), 0.5, backend=backend)
    assert r.vjp(plan=np.ones((1, 1))).M.tolist() == [[0.0]]
    assert r.gradients().M.shape == (1, 1)
