"""The debiased divergence of two clouds, and the gap of a map."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadric.transport import monge_gap, sinkhorn_divergence
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import Long, wide
from tests.transport import oracle
from tests.transport.problems import masses

KINDS = tuple(oracle.KINDS)


def clouds(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d)) + 0.5
    return x, y, masses(rng, n), masses(rng, m)


def exact_value(x, a, y, b, reg, kind):
    """Return min <C, P> + reg KL(P | a b^T) of the longdouble optimum."""
    cost = oracle.costs(x, y, kind)
    f, g = oracle.optimum(cost, a, b, reg)
    p = oracle.plan(cost, f, g, reg)
    return oracle.transport_cost(cost, p) + reg * oracle.divergence(p, np.outer(wide(a), wide(b)))


def exact_divergence(x, a, y, b, reg, kind):
    return exact_value(x, a, y, b, reg, kind) - (
        exact_value(x, a, x, a, reg, kind) + exact_value(y, b, y, b, reg, kind)
    ) / Long(2)


@given(
    n=st.integers(1, 9), m=st.integers(1, 9), d=st.sampled_from([1, 3]),
    kind=st.sampled_from(KINDS), log_reg=st.sampled_from([-1, 0, 1]), seed=draws.seeds,
)  # fmt: skip
def test_divergence(backend, n, m, d, kind, log_reg, seed):
    """From the definition with relative entropies (Feydy et al. 2019), whose constants cancel."""
    x, y, a, b = clouds(n, m, d, seed)
    reg = 10.0**log_reg
    found = sinkhorn_divergence(x, y, reg, a=a, b=b, cost=kind, tol=1e-11, backend=backend)
    expected = exact_divergence(x, a, y, b, reg, kind)
    size = 100 * (float(oracle.costs(x, y, kind).max()) + reg)
    # A dual value is off by the error times a potential; three of them.
    assert_within(found.value, expected, 3e-11 * size)
    assert found.converged
    assert found.value >= -3e-11 * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_reg", [-3, 0, 2])
def test_identical_clouds(backend, kind, log_reg):
    x, _, a, _ = clouds(30, 1, 2)
    found = sinkhorn_divergence(x, x, 10.0**log_reg, a=a, b=a, cost=kind, backend=backend)
    size = float(oracle.costs(x, x, kind).max()) + 10.0**log_reg
    assert_within(found.value, 0, 1e-8 * size)
    # In any order.
    order = np.random.default_rng(1).permutation(30)
    found = sinkhorn_divergence(
        x, x[order], 10.0**log_reg, a=a, b=a[order], cost=kind, backend=backend
    )
    assert_within(found.value, 0, 1e-8 * size)


@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_and_positive(backend, kind):
    x, y, a, b = clouds(30, 20, 2)
    one = sinkhorn_divergence(x, y, 0.1, a=a, b=b, cost=kind, backend=backend).value
    other = sinkhorn_divergence(y, x, 0.1, a=b, b=a, cost=kind, backend=backend).value
    assert_within(one, other, 1e-7)
    assert one > 0


@pytest.mark.parametrize("reg", [0.01, 1.0, 100.0])
def test_shift(backend, reg):
    """A shift by v of a cloud: |v|^2 for the squared distance, whatever reg."""
    x, _, a, _ = clouds(40, 1, 2)
    v = np.array([0.6, -1.1])
    found = sinkhorn_divergence(x, x + v, reg, a=a, b=a, tol=1e-11, backend=backend)
    assert_within(found.value, v @ v, 1e-9 * (reg + 30))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_divergence(backend, kind):
    x, y, a, b = clouds(5, 6, 2)
    reg = 0.5
    found = sinkhorn_divergence(
        x, y, reg, a=a, b=b, cost=kind, tol=1e-13, backend=backend
    ).gradients()
    rng = np.random.default_rng(3)
    dx, dy = wide(rng.standard_normal(x.shape)) / 10, wide(rng.standard_normal(y.shape)) / 10
    da = wide(a * rng.standard_normal(5)) / 10
    da -= a * da.sum()
    assert_slope = _assert_slope
    assert_slope((found.x * dx).sum(), lambda t: exact_divergence(x + t * dx, a, y, b, reg, kind))
    assert_slope((found.y * dy).sum(), lambda t: exact_divergence(x, a, y + t * dy, b, reg, kind))
    assert_slope((found.a * da).sum(), lambda t: exact_divergence(x, a + t * da, y, b, reg, kind))


def _assert_slope(found, function):
    coarse, fine = ((function(h) - function(-h)) / (2 * h) for h in (Long(1e-4), Long(5e-5)))
    assert_within(found, fine, abs(coarse - fine) + 1e-8)


def test_gradient_is_zero_for_equal_clouds(backend):
    x, _, a, _ = clouds(20, 1, 2)
    g = sinkhorn_divergence(x, x.copy(), 0.3, a=a, b=a, tol=1e-12, backend=backend).gradients()
    assert_within(g.x, 0, 1e-9)
    assert_within(g.y, 0, 1e-9)


def test_batch(backend):
    pairs = [clouds(8, 9, 2, k) for k in range(3)]
    x, y, a, b = (np.stack([p[i] for p in pairs]) for i in range(4))
    found = sinkhorn_divergence(x, y, 0.3, a=a, b=b, tol=1e-11, backend=backend)
    assert found.value.shape == (3,)
    for k in range(3):
        one = sinkhorn_divergence(x[k], y[k], 0.3, a=a[k], b=b[k], tol=1e-11, backend=backend).value
        assert_within(found.value[k], one, 1e-8)


# ---- the gap of a map ----------------------------------------------------------------------------


@given(
    n=st.integers(1, 9), d=st.sampled_from([1, 3]), kind=st.sampled_from(KINDS),
    log_reg=st.sampled_from([-1, 0, 1]), seed=draws.seeds,
)  # fmt: skip
def test_gap(backend, n, d, kind, log_reg, seed):
    """mean c(x, T x) - min <C, P> + reg sum P log P (Uscidda and Cuturi 2023)."""
    rng = np.random.default_rng(seed)
    x, image, reg = rng.standard_normal((n, d)), rng.standard_normal((n, d)), 10.0**log_reg
    found = monge_gap(x, image, reg, cost=kind, tol=1e-11, backend=backend)
    cost, a = oracle.costs(x, image, kind), np.full(n, 1 / n)
    f, g = oracle.optimum(cost, a, a, reg)
    p = oracle.plan(cost, f, g, reg)
    best = oracle.transport_cost(cost, p) + reg * (oracle.entropy(p) + p.sum())
    size = 100 * (float(cost.max()) + reg)
    assert_within(found.displacement, np.diag(cost).mean(), 1e-14 * size)
    assert_within(found.value, np.diag(cost).mean() - best, 2e-11 * size)
    assert found.value >= -2e-11 * size


@pytest.mark.parametrize("kind", ["sqeuclidean", "euclidean"])
def test_gap_of_the_best_map(backend, kind):
    """The best permutation costs what W does but for reg log n; another one as much more."""
    rng = np.random.default_rng(0)
    x, y, reg = rng.random((40, 2)), rng.random((40, 2)), 1e-3
    cost = oracle.costs(x, y, kind)
    order, least = oracle.assignment(cost.astype(float))
    best = monge_gap(x, y[order], reg, cost=kind, backend=backend).value
    # W is between least - reg 2 log n and least - reg log n: at least that of the permutation.
    assert reg * np.log(40) - 1e-7 <= best <= 2 * reg * np.log(40) + 1e-7
    other = np.roll(order, 1)
    excess = float(cost[np.arange(40), other].mean()) - least
    found = monge_gap(x, y[other], reg, cost=kind, backend=backend).value
    assert_within(found - best, excess, 1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_gap(backend, kind):
    rng = np.random.default_rng(1)
    x, image, a = rng.standard_normal((6, 2)), rng.standard_normal((6, 2)), masses(rng, 6)
    reg = 0.5
    found = monge_gap(x, image, reg, a=a, cost=kind, tol=1e-13, backend=backend).gradients()

    def gap(x, image):
        cost = oracle.costs(x, image, kind)
        f, g = oracle.optimum(cost, a, a, reg)
        return (np.diag(cost) * a).sum() - oracle.dual_value(cost, a, a, reg, f, g)

    dx, dy = wide(rng.standard_normal(x.shape)) / 10, wide(rng.standard_normal(x.shape)) / 10
    _assert_slope((found.x * dx).sum(), lambda t: gap(x + t * dx, image))
    _assert_slope((found.y * dy).sum(), lambda t: gap(x, image + t * dy))
