"""Marginals that are punished instead of fixed, on one side or both."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadric.transport import solve, solve_points
from tests import strategies as draws
from tests.bounds import assert_within
from tests.transport import oracle
from tests.transport.problems import EPS, make, optimal, plan_bound, problems, sum_error
from tests.transport.test_solve import quiet

INF = math.inf
small = problems(
    max_rows=10, max_columns=14, sources=("stored",), types=(np.float64,), min_log_reg=-1.0
)
relative = st.sampled_from([0.01, 0.3, 1.0, 10.0])


@given(
    p=small,
    rho=st.tuples(relative, relative | st.just(INF)),
    swap=st.booleans(),
    heavy=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_the_plan_is_the_optimal_one(backend, p, rho, swap, heavy):
    """Of masses that need not sum to the same; rho relative to the scale of the cost."""
    rho = tuple(r * p.scale for r in (rho[::-1] if swap else rho))
    a, b = heavy * p.a, p.b
    r = solve(a, b, p.args[0], p.reg, unbalanced=rho, tol=1e-11, max_iter=100_000, backend=backend)
    wrong = sum_error(p, r.f, r.g)
    true = oracle.marginal_error(p.exact, a, b, p.reg, r.f, r.g, rho)
    assert_within(r.marginal_error, true, wrong)
    assert true <= 1e-11 + wrong
    best = optimal(p.exact, a, b, p.reg, rho)
    bound = plan_bound(p.exact, a, b, p.reg, best, r.f, r.g, rho)
    expected = oracle.plan(p.exact, best[0], best[1], p.reg)
    rounding = 2 * p.entry_error(r.f, r.g) * expected + p.tiny
    assert_within(r.plan(), expected, bound + rounding)


@given(p=small, rho=st.tuples(relative, relative | st.just(INF)))
def test_duality(backend, p, rho):
    """Weak duality for what is returned, strong at the optimum."""
    rho = tuple(r * p.scale for r in rho)
    r = solve(
        p.a,
        1.7 * p.b,
        p.args[0],
        p.reg,
        unbalanced=rho,
        tol=1e-11,
        max_iter=100_000,
        backend=backend,
    )
    b = 1.7 * p.b
    f, g, _ = optimal(p.exact, p.a, b, p.reg, rho)
    best = oracle.dual_value(p.exact, p.a, b, p.reg, f, g, rho)
    plan = oracle.plan(p.exact, r.f, r.g, p.reg)
    size = p.scale + p.reg + np.abs(r.f).max() + np.abs(r.g).max() + sum(x for x in rho if x < INF)
    rounding = (sum_error(p, r.f, r.g) + 64 * EPS) * size
    exact = oracle.dual_value(p.exact, p.a, b, p.reg, r.f, r.g, rho)
    assert_within(r.dual_value, exact, rounding)
    assert_within(r.cost, oracle.transport_cost(p.exact, plan), rounding)
    assert_within(r.value, oracle.value(p.exact, p.a, b, p.reg, plan, rho), rounding)
    far = max(np.abs(f - r.f).max(), np.abs(g - r.g).max())
    if INF not in rho:
        assert -1e-16 * size <= best - exact <= 1.01e-11 * far + rounding


@pytest.mark.parametrize("kind", ["sqeuclidean", "euclidean"])
def test_points(backend, kind):
    p = make(20, 30, source=kind)
    rho = 0.3 * p.scale
    r = solve_points(
        *p.args[1:3], p.reg, a=p.a, b=3 * p.b, cost=kind, unbalanced=rho, tol=1e-10, backend=backend
    )
    true = oracle.marginal_error(p.exact, p.a, 3 * p.b, p.reg, r.f, r.g, (rho, rho))
    assert true <= 1e-10 + 3 * sum_error(p, r.f, r.g)
    assert r.converged


def test_one_entry_by_hand(backend):
    a, b, c, reg, rho = 2.0, 3.0, 0.7, 0.5, (0.3, 0.9)
    r = solve(
        np.array([a]),
        np.array([b]),
        np.array([[c]]),
        reg,
        unbalanced=rho,
        tol=1e-13,
        backend=backend,
    )
    expected = math.exp((rho[0] * math.log(a) + rho[1] * math.log(b) - c) / (reg + sum(rho)))
    assert_within(r.plan(), [[expected]], 1e-12)


def test_limits(backend):
    """rho = inf is the balanced problem to the bit; a large rho is near it."""
    p = make(12, 15)
    balanced = solve(p.a, p.b, p.args[0], p.reg, method="sinkhorn", backend=backend)
    infinite = solve(p.a, p.b, p.args[0], p.reg, method="sinkhorn", unbalanced=INF, backend=backend)
    np.testing.assert_array_equal(balanced.f, infinite.f)
    both = solve(
        p.a, p.b, p.args[0], p.reg, method="sinkhorn", unbalanced=(INF, INF), backend=backend
    )
    np.testing.assert_array_equal(balanced.f, both.f)
    large = 1e6 * p.scale
    near, _ = quiet(
        lambda: solve(
            p.a, p.b, p.args[0], p.reg, unbalanced=(large, INF), tol=1e-9, backend=backend
        )
    )
    # Row sums are a exp(-f / rho); a common factor of theirs is what b allows: none.
    assert_within(near.plan().sum(1), p.a, 4 * p.a * np.ptp(near.f) / large + 4e-9)


def test_one_side(backend):
    """The side that is fixed is met, whatever the masses of the other."""
    p = make(12, 15)
    r = solve(
        5 * p.a, p.b, p.args[0], p.reg, unbalanced=(0.1 * p.scale, INF), tol=1e-11, backend=backend
    )
    assert_within(r.plan().sum(0), p.b, 1e-11 + 64 * EPS)
    r = solve(
        p.a, 5 * p.b, p.args[0], p.reg, unbalanced=(INF, 0.1 * p.scale), tol=1e-11, backend=backend
    )
    assert_within(r.plan().sum(1), p.a, 1e-11 + 64 * EPS)


def test_zero_masses_and_batches(backend):
    many = [make(9, 11, seed=k) for k in range(3)]
    a, b = np.stack([p.a for p in many]), np.stack([p.b for p in many])
    a[1, 4] = b[2, 0] = 0
    cost = np.stack([p.args[0] for p in many])
    reg, rho = many[0].reg, 0.2
    r = solve(a, b, cost, reg, unbalanced=rho, tol=1e-11, backend=backend)
    assert r.converged.all()
    assert (r.plan()[1, 4] == 0).all()
    assert (r.plan()[2, :, 0] == 0).all()
    for k in range(3):
        s = solve(a[k], b[k], cost[k], reg, unbalanced=rho, tol=1e-11, backend=backend)
        # f -> theta f contracts: both are within 1e-11 / (1 - theta^2) of the optimum.
        assert_within(r[k].plan(), s.plan(), 1e-9)
        assert np.isfinite(r[k].value)


@pytest.mark.parametrize("log_scale", [-8, 8])
def test_scales(backend, log_scale):
    p = make(12, 15, log_scale=log_scale)
    r = solve(p.a, p.b, p.args[0], p.reg, unbalanced=p.scale, backend=backend)
    true = oracle.marginal_error(p.exact, p.a, p.b, p.reg, r.f, r.g, (p.scale, p.scale))
    assert true <= 1e-9 + sum_error(p, r.f, r.g)


@given(
    p=small,
    log_tol=st.integers(-12, -2),
    max_iter=st.sampled_from([1, 10]),
)
def test_honesty(backend, p, log_tol, max_iter):
    r, warning = quiet(
        lambda: solve(
            p.a, p.b, p.args[0], p.reg, unbalanced=p.scale, tol=10.0**log_tol, max_iter=max_iter,
            backend=backend,
        )
    )  # fmt: skip
    assert r.converged == (r.marginal_error <= 10.0**log_tol)
    assert (warning is None) == r.converged


def test_no_newton(backend):
    p = make(4, 5)
    for method in ("newton", "published"):
        with pytest.raises(ValueError, match=r"^method must"):
            solve(p.a, p.b, p.args[0], p.reg, unbalanced=1.0, method=method, backend=backend)
    with pytest.raises(ValueError, match="rounded_plan"):
        solve(p.a, p.b, p.args[0], p.reg, unbalanced=1.0, backend=backend).rounded_plan()


def test_layouts(backend):
    p = make(12, 15)
    rho = (0.5, 2.0)
    options = {"tol": 1e-11, "backend": backend}
    first = solve(p.a, p.b, p.args[0], p.reg, unbalanced=rho, **options)
    # Each is within 2 |error| / curvature of the optimum.
    limit = 4e-11 / optimal(p.exact, p.a, p.b, p.reg, rho)[2] + 1e-14 * p.scale
    for layout in draws.LAYOUTS:
        shown = draws.relayout(p.args[0], layout)
        r = solve(p.a, p.b, shown, p.reg, unbalanced=rho, **options)
        assert_within(r.f, first.f, limit)
        assert_within(r.g, first.g, limit)
        again = solve(p.a, p.b, shown, p.reg, unbalanced=rho, n_threads=2, **options)
        np.testing.assert_array_equal(again.f, r.f)
    turned = solve(p.b, p.a, p.args[0].T, p.reg, unbalanced=rho[::-1], **options)
    np.testing.assert_array_equal(turned.g, first.f)
