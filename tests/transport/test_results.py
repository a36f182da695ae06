"""What a result gives: plans dense, sparse and rounded, projections, pictures."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from quadric.transport import round_to_marginals, solve, solve_points
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import wide
from tests.transport import oracle
from tests.transport.problems import EPS, SOURCES, make, masses, problems


def solved(backend, p, **options):
    options = {"backend": backend} | options
    if p.args[3] == 0:
        return solve(p.a, p.b, p.args[0], p.reg, **options)
    kind = SOURCES[p.args[3]]
    return solve_points(*p.args[1:3], p.reg, a=p.a, b=p.b, cost=kind, **options)


@given(p=problems(max_rows=12, max_columns=20, min_log_reg=-1.5))
def test_plan(backend, p):
    """exp((f + g - C) / reg) of the potentials that are told."""
    r = solved(backend, p, tol=1e-3)
    found = r.plan()
    expected = p.plan(r.f, r.g)
    assert found.dtype == p.dtype
    assert_within(found, expected, 2 * p.entry_error(r.f, r.g) * expected + p.tiny)
    np.testing.assert_array_equal(r.plan(), found)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("k", [1, 3, 40, 100])
def test_k_largest(backend, source, k):
    """The k largest entries of each row, and the mass of the others."""
    p = make(30, 40, source=source)
    r = solved(backend, p)
    dense, sparse = r.plan(), r.sparse_plan(k)
    assert isinstance(sparse.matrix, scipy.sparse.csr_array)
    assert sparse.matrix.dtype == p.dtype
    assert sparse.matrix.has_sorted_indices
    kept = sparse.matrix.toarray()
    assert (np.count_nonzero(kept, axis=1) == min(k, 40)).all()
    least = -np.sort(-dense, axis=1)[:, min(k, 40) - 1]
    expected = np.where(dense >= least[:, None], dense, 0)
    assert_within(kept, expected, 4 * p.entry_error(r.f, r.g) * dense)
    rounding = 40 * 30 * EPS
    assert_within(sparse.dropped, dense.sum() - expected.sum(), rounding)
    assert "\n" not in repr(sparse)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("drop", [0.0, 1e-9, 1e-3, 0.5])
def test_dropped_mass(backend, source, dtype, drop):
    """At most what was allowed, and no entry is kept that is smaller than one that was dropped."""
    p = make(30, 40, source=source, dtype=dtype, log_reg=-1.7)
    r = solved(backend, p)
    dense, sparse = r.plan().astype(float), r.sparse_plan(drop=drop)
    kept = sparse.matrix.toarray().astype(float)
    there = kept > 0
    wrong = 4 * p.entry_error(r.f, r.g) * dense
    assert_within(kept[there], dense[there], wrong[there])
    rounding = float(wrong.sum()) + dense.size * EPS
    assert sparse.dropped <= drop * dense.sum() + rounding
    assert_within(sparse.dropped, dense[~there].sum(), rounding)
    if drop == 0:
        assert dense[~there].sum() <= rounding
    elif (~there).any() and there.any():
        assert dense[~there].max() <= dense[there].min() + wrong.max()


def test_sparse_plan_of_zero_masses(backend):
    p = make(10, 12)
    a = p.a.copy()
    a[4] = 0
    a /= a.sum()
    r = solve(a, p.b, p.args[0], p.reg, backend=backend)
    for sparse in (r.sparse_plan(), r.sparse_plan(3)):
        assert np.isfinite(sparse.dropped)
        assert sparse.matrix[[4]].nnz == 0
    assert_within(r.sparse_plan(drop=0).matrix.sum(), 1.0, 1e-8)


@given(p=problems(max_rows=12, max_columns=20, min_log_reg=-1.0), log_tol=st.sampled_from([-1, -4]))
def test_rounded_plan(backend, p, log_tol):
    """Exactly feasible, and no farther than twice the error (Altschuler et al., lemma 7)."""
    r = solved(backend, p, tol=10.0**log_tol)
    plan, rounded = wide(r.plan()), wide(r.rounded_plan())
    n, m = p.shape
    assert (rounded >= 0).all()
    assert_within(rounded.sum(1), p.a, 4 * (n + m) * p.eps * p.a + n * m * p.tiny)
    # The difference of the totals, by rounding, lies in the columns.
    assert_within(rounded.sum(0), p.b, 4 * (n + m) * (p.eps * p.b + EPS) + n * m * p.tiny)
    error = np.abs(plan.sum(1) - p.a).sum() + np.abs(plan.sum(0) - p.b).sum()
    assert np.abs(rounded - plan).sum() <= 2 * error + 8 * (n + m) * p.eps


@given(
    n=draws.sizes(20),
    m=draws.sizes(20),
    seed=draws.seeds,
    log_error=st.sampled_from([-12, -3, 0]),
    dtype=draws.dtypes,
    layout=draws.layouts,
)
def test_round_to_marginals(n, m, seed, log_error, dtype, layout):
    rng = np.random.default_rng(seed)
    a, b = masses(rng, n), masses(rng, m)
    plan = (np.outer(a, b) * (1 + 10.0**log_error * rng.uniform(-1, 1, (n, m)))).astype(dtype)
    shown = draws.relayout(plan, layout)
    before = draws.whole(shown).tobytes(), a.tobytes(), b.tobytes()
    rounded = round_to_marginals(shown, a, b)
    assert (draws.whole(shown).tobytes(), a.tobytes(), b.tobytes()) == before
    assert rounded.dtype == dtype
    eps = float(np.finfo(dtype).eps)
    assert (rounded >= 0).all()
    assert_within(wide(rounded).sum(1), a, 4 * (n + m) * (eps * a + EPS))
    assert_within(wide(rounded).sum(0), b, 4 * (n + m) * (eps * b + EPS))
    error = np.abs(wide(plan).sum(1) - a).sum() + np.abs(wide(plan).sum(0) - b).sum()
    assert np.abs(wide(rounded) - plan).sum() <= 2 * error + 8 * (n + m) * eps


def test_rounding_by_hand():
    half = np.array([0.5, 0.5])
    # Row 0 is scaled by 5/6, then column 0 is short of 3/20 and column 1 of 1/20, row 1 of 1/5.
    plan = np.array([[0.3, 0.3], [0.1, 0.2]])
    expected = np.array([[0.25, 0.25], [0.1 + 0.15, 0.2 + 0.05]])
    assert_within(round_to_marginals(plan, half, half), expected, 8 * EPS)
    zero = round_to_marginals(np.zeros((2, 2)), half, half)
    assert_within(zero, np.full((2, 2), 0.25), 4 * EPS)
    feasible = np.array([[0.5, 0.0], [0.0, 0.5]])
    np.testing.assert_array_equal(round_to_marginals(feasible, half, half), feasible)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_barycentric(backend, source, dtype):
    """P V / P 1, for vectors, matrices, and either type."""
    p = make(20, 30, source=source, dtype=dtype)
    r = solved(backend, p)
    plan = p.plan(r.f, r.g)
    rng = np.random.default_rng(0)
    for shape in ((30,), (30, 1), (30, 4)):
        for kind in draws.DTYPES:
            v = rng.standard_normal(shape).astype(kind)
            found = r.barycentric(v)
            assert found.dtype == kind
            expected = (plan @ wide(v)) / plan.sum(1).reshape(-1, *[1] * (len(shape) - 1))
            # A mean of values whose weights are wrong by that much, doubled for their sum.
            wrong = 2 * float(p.entry_error(r.f, r.g).max() + 50 * p.eps) + np.finfo(kind).eps
            assert_within(found, expected, 2 * wrong * np.abs(v).max())


def test_barycentric_of_zero_masses(backend):
    """Nowhere to go: NaN, and no warning."""
    p = make(10, 12)
    a = p.a.copy()
    a[4] = 0
    a /= a.sum()
    r = solve(a, p.b, p.args[0], p.reg, backend=backend)
    found = r.barycentric(np.ones((12, 2)))
    assert np.isnan(found[4]).all()
    assert_within(np.delete(found, 4, 0), 1.0, 64 * EPS)


def test_barycentric_of_batches(backend):
    many = [make(6, 7, seed=k) for k in range(3)]
    r = solve(None, None, np.stack([p.args[0] for p in many]), many[0].reg, backend=backend)
    rng = np.random.default_rng(0)
    shared, own = rng.standard_normal((7, 2)), rng.standard_normal((3, 7, 2))
    assert r.barycentric(shared[:, 0]).shape == (3, 6)
    for k in range(3):
        np.testing.assert_array_equal(r.barycentric(shared)[k], r[k].barycentric(shared))
        np.testing.assert_array_equal(r.barycentric(own)[k], r[k].barycentric(own[k]))
        assert (r.sparse_plan(2)[k].matrix != r[k].sparse_plan(2).matrix).nnz == 0
        np.testing.assert_array_equal(r.rounded_plan()[k], r[k].rounded_plan())


def test_items(backend):
    many = [make(6, 7, seed=k) for k in range(3)]
    r = solve(None, None, np.stack([p.args[0] for p in many]), many[0].reg, backend=backend)
    assert r.shape == (3, 6, 7)
    assert r[0].shape == (6, 7)
    assert r[-1].cost == r.cost[2]
    assert type(r[1].cost) is float
    assert type(r[1].converged) is bool
    with pytest.raises(IndexError):
        r[3]
    with pytest.raises(TypeError):
        r[0][0]
    assert len(list(r)) == 3


def test_shown_in_one_line(backend):
    p = make(6, 7)
    r = solved(backend, p)
    assert "\n" not in repr(r)
    assert "6 x 7" in repr(r)
    assert len(repr(r)) < 200
    assert "\n" not in repr(r.gradients())


def test_frozen(backend):
    r = solved(backend, make(6, 7))
    with pytest.raises(AttributeError):
        r.cost = 1.0


def test_plot(backend):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    r = solved(backend, make(30, 30, log_reg=-2))
    axes = r.plot()
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    _figure, own = pyplot.subplots()
    assert r.plot(own) is own
    pyplot.close("all")


def test_value_is_the_objective(backend):
    """<C, P> + reg sum P (log P - 1), of the plan that is returned."""
    p = make(9, 11)
    r = solved(backend, p, tol=1e-12)
    plan = p.plan(r.f, r.g)
    limit = 64 * 20 * EPS * (p.scale + p.reg * 10)
    assert_within(r.value, oracle.value(p.exact, p.a, p.b, p.reg, plan), limit)
    assert_within(r.cost, oracle.transport_cost(p.exact, plan), limit)
    # <f, a> = <g, b> picks one of the potentials.
    assert_within(r.f @ p.a, r.g @ p.b, limit)
