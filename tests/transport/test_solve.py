"""quadric.transport.solve: against longdouble, its algebra, what it says about itself."""

import copy
import itertools
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric.errors import ConvergenceWarning
from quadric.transport import solve
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import wide
from tests.transport import oracle
from tests.transport.problems import (
    COSTS,
    EPS,
    make,
    masses,
    optimal,
    plan_bound,
    problems,
    sum_error,
)

METHODS = ("auto", "sinkhorn", "newton")
DEFAULT_TOL = {"float32": 1e-5, "float64": 1e-9}

small = problems(
    max_rows=16, max_columns=24, sources=("stored",), types=(np.float64,), min_log_reg=-1.5
)


def quiet(call):
    """Return the result of a solver, and its ConvergenceWarning or None."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    assert len(caught) <= 1
    assert all(w.category is ConvergenceWarning for w in caught)
    return result, caught[0] if caught else None


def true_error(p, r):
    return oracle.marginal_error(p.exact, p.a, p.b, p.reg, r.f, r.g)


# ---- the optimum ---------------------------------------------------------------------------------


@given(p=small, method=st.sampled_from(METHODS), layout=draws.layouts)
def test_the_plan_is_the_optimal_one(backend, p, method, layout):
    """Marginals to tol, the plan as near to the optimum as that says, nothing given is changed."""
    shown = draws.relayout(p.args[0], layout)
    before = draws.whole(shown).tobytes(), p.a.tobytes(), p.b.tobytes()
    r, warning = quiet(
        lambda: solve(p.a, p.b, shown, p.reg, method=method, tol=1e-11, backend=backend)
    )
    assert (draws.whole(shown).tobytes(), p.a.tobytes(), p.b.tobytes()) == before
    assert r.converged
    assert warning is None
    assert true_error(p, r) <= 1e-11 + sum_error(p, r.f, r.g)
    best = optimal(p.exact, p.a, p.b, p.reg)
    bound = plan_bound(p.exact, p.a, p.b, p.reg, best, r.f, r.g)
    expected = oracle.plan(p.exact, best[0], best[1], p.reg)
    assert_within(oracle.plan(p.exact, r.f, r.g, p.reg), expected, bound + 1e-16 * expected)
    rounding = p.entry_error(r.f, r.g) * expected * 2 + p.tiny
    target(assert_within(r.plan(), expected, bound + rounding))


@given(p=small, method=st.sampled_from(METHODS), log_tol=st.sampled_from([-2, -6, -10]))
def test_duality(backend, p, method, log_tol):
    """dual value <= optimum, by no more than the error times the distance of the potentials.

    The dual is concave: opt - dual <= <f* - f, a - P 1> + <g* - g, b - P^T 1>, for every shift of
    (f, g). The value differs from the dual value by <f, P 1 - a> + <g, P^T 1 - b>.
    """
    r = solve(p.a, p.b, p.args[0], p.reg, method=method, tol=10.0**log_tol, backend=backend)
    f, g, _ = optimal(p.exact, p.a, p.b, p.reg)
    best = oracle.dual_value(p.exact, p.a, p.b, p.reg, f, g)
    exact = oracle.dual_value(p.exact, p.a, p.b, p.reg, r.f, r.g)
    plan = oracle.plan(p.exact, r.f, r.g, p.reg)
    rounding = sum_error(p, r.f, r.g) * (p.reg + p.scale + np.abs(r.f).max() + np.abs(r.g).max())
    assert_within(r.dual_value, exact, rounding)
    assert_within(r.cost, oracle.transport_cost(p.exact, plan), rounding)
    assert_within(r.value, oracle.value(p.exact, p.a, p.b, p.reg, plan), rounding)
    shift = np.median((f - r.f).astype(float))
    far = max(np.abs(f - r.f - shift).max(), np.abs(g - r.g + shift).max())
    # The sums of a and b differ by the rounding of float64.
    slack = 4 * EPS * (p.scale + p.reg + np.abs(r.f).max() + np.abs(r.g).max())
    assert -slack <= best - exact <= true_error(p, r) * far + slack
    # A feasible plan costs no less than the optimum.
    feasible = r.rounded_plan()
    assert oracle.value(p.exact, p.a, p.b, p.reg, feasible) >= best - rounding - 1e-14 * p.scale


@pytest.mark.parametrize("method", METHODS)
def test_algebra(backend, method):
    """What is done to the cost and the masses is done to the plan and the potentials."""
    p = make(13, 19, log_reg=-1.2)
    cost = p.args[0]
    best = optimal(p.exact, p.a, p.b, p.reg)
    expected = oracle.plan(p.exact, best[0], best[1], p.reg)
    u, v = p.rng.standard_normal(13), p.rng.standard_normal(19)
    rows, columns = p.rng.permutation(13), p.rng.permutation(19)

    def same(a, b, m, reg, back, scale=1.0):
        r = solve(a, b, m, reg, method=method, tol=1e-12 * a.sum(), backend=backend)
        plan = back(r.plan())
        # The first-order bound for an error of 1e-12 and of the roundings of the changed cost.
        size = 8 * (np.abs(r.f).max() + np.abs(r.g).max() + np.abs(m).max()) / reg
        error = 2 * (1e-12 + size * EPS)
        far = 2 * error / (best[2] * p.reg) * np.sqrt(2)
        assert_within(plan / scale, expected, expected * (np.expm1(far) + size * EPS))
        return r

    same(p.b, p.a, cost.T, p.reg, lambda q: q.T)
    same(p.b, p.a, np.ascontiguousarray(cost.T), p.reg, lambda q: q.T)
    for factor in (1e-8, 3.0, 1e8):
        same(p.a, p.b, factor * cost, factor * p.reg, lambda q: q)
    for factor in (1e-6, 7.0, 1e6):
        same(factor * p.a, factor * p.b, cost, p.reg, lambda q: q, factor)
    same(p.a, p.b, cost + u[:, None] + v, p.reg, lambda q: q)
    same(p.a, p.b, cost - 100.0, p.reg, lambda q: q)  # costs may be negative
    back = np.argsort(rows), np.argsort(columns)
    same(p.a[rows], p.b[columns], cost[rows][:, columns], p.reg, lambda q: q[back[0]][:, back[1]])


def test_potentials_of_a_scaled_cost(backend):
    """Powers of two scale every number of the solution but the plan, to the bit."""
    p = make(20, 23, log_reg=-1)
    r = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    for factor in (2.0**-26, 2.0**26):
        s = solve(p.a, p.b, factor * p.args[0], factor * p.reg, backend=backend)
        assert_within(s.f, factor * r.f, 1e-8 * factor * p.scale)
        assert_within(s.cost, factor * r.cost, 1e-8 * factor * p.scale)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("mass", ["uniform", "random", "skewed"])
@pytest.mark.parametrize("log_reg", [-4, -3, -2, -1, 0, 1])
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_every_reg(backend, cost, mass, log_reg, dtype):
    """From 1e-4 to 10 times the scale of the cost, by default."""
    if dtype == np.float32 and log_reg < -2:
        return  # test_honesty: roundings of the cost alone are 1e-3 of an entry
    p = make(45, 40, cost=cost, mass=mass, log_reg=log_reg, dtype=dtype)
    r = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    tol = DEFAULT_TOL[np.dtype(dtype).name]
    assert r.converged
    assert r.marginal_error <= tol
    assert true_error(p, r) <= tol + sum_error(p, r.f, r.g)


@pytest.mark.parametrize("log_scale", [-8, 8])
@pytest.mark.parametrize("log_reg", [-3, -1, 1])
@pytest.mark.parametrize("method", METHODS)
def test_scales_of_the_cost(backend, log_scale, log_reg, method):
    if method == "sinkhorn" and log_reg < -2:
        log_reg = -2
    p = make(30, 25, log_scale=log_scale, log_reg=log_reg)
    r = solve(p.a, p.b, p.args[0], p.reg, method=method, backend=backend)
    assert true_error(p, r) <= 1e-9 + sum_error(p, r.f, r.g)


# ---- honesty -------------------------------------------------------------------------------------


@given(
    p=problems(max_rows=16, max_columns=24, sources=("stored",), min_log_reg=-4),
    method=st.sampled_from(METHODS),
    log_tol=st.integers(-14, -2),
    max_iter=st.sampled_from([1, 3, 20, 100]),
)
def test_honesty(backend, p, method, log_tol, max_iter):
    """converged is error <= tol; the error is the true one; there is a warning or it is True."""
    tol = 10.0**log_tol
    r, warning = quiet(
        lambda: solve(
            p.a, p.b, p.args[0], p.reg, method=method, tol=tol, max_iter=max_iter, backend=backend
        )
    )
    assert type(r.converged) is bool
    assert r.converged == (r.marginal_error <= tol)
    assert (warning is None) == r.converged
    assert r.iterations <= max_iter
    assert np.isfinite(r.f).all()
    assert np.isfinite(r.g).all()
    limit = sum_error(p, r.f, r.g)
    assert_within(r.marginal_error, true_error(p, r), limit)
    if warning is not None:
        text = str(warning.message)
        assert "\n" not in text
        assert f"{r.marginal_error:.1e}"[:3] in text or f"{r.marginal_error:.3g}" in text


@pytest.mark.parametrize("method", METHODS)
def test_the_best_plan_so_far(backend, method):
    """More iterations are never worse, and the errors that are told go down with them."""
    p = make(40, 40, log_reg=-2.5)
    errors = []
    for max_iter in (1, 2, 5, 20, 100):
        r, warning = quiet(
            lambda k=max_iter: solve(
                p.a, p.b, p.args[0], p.reg, method=method, max_iter=k, tol=1e-13, backend=backend
            )
        )
        assert warning is not None or r.converged
        assert np.isfinite(r.plan()).all()
        errors.append(r.marginal_error)
    assert all(late <= early for early, late in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("method", METHODS)
def test_history(backend, method):
    p = make(60, 60, log_reg=-2, cost="points")
    r = solve(p.a, p.b, p.args[0], p.reg, method=method, backend=backend)
    assert r.history.dtype.names == (
        "method", "reg", "iterations", "error", "objective", "kept", "cg", "seconds",
    )  # fmt: skip
    assert len(r.history) >= 1
    assert r.history["iterations"][-1] == r.iterations
    for sofar in ("iterations", "seconds"):
        assert (np.diff(r.history[sofar], prepend=0) >= 0).all()
    assert r.history["reg"][-1] == p.reg
    assert (r.history["reg"] >= p.reg).all()
    assert np.isfinite(r.history["error"]).all()
    steps = set(r.history["method"])
    assert steps <= {"sinkhorn", "newton"}
    newton = r.history[r.history["method"] == "newton"]
    assert (newton["kept"] > 0).all()
    if method == "sinkhorn":
        assert steps == {"sinkhorn"}
    if method == "newton":
        assert "newton" in steps


def test_auto_switches(backend):
    """Where Sinkhorn is slow auto takes Newton steps, and says so; where it is fast it does not."""
    hard = make(100, 100, log_reg=-3.3, mass="uniform")
    r = solve(hard.a, hard.b, hard.args[0], hard.reg, backend=backend)
    assert "newton" in r.history["method"]
    easy = make(100, 100, log_reg=0)
    r = solve(easy.a, easy.b, easy.args[0], easy.reg, backend=backend)
    assert set(r.history["method"]) == {"sinkhorn"}


def test_published(backend):
    """The paper's method is there for comparison; on an easy problem it arrives."""
    p = make(20, 24, log_reg=-1)
    r = solve(p.a, p.b, p.args[0], p.reg, method="published", backend=backend)
    assert r.converged
    assert true_error(p, r) <= 1e-9 + sum_error(p, r.f, r.g)
    f, g, _ = optimal(p.exact, p.a, p.b, p.reg)
    assert_within(r.cost, oracle.transport_cost(p.exact, oracle.plan(p.exact, f, g, p.reg)), 1e-6)


# ---- special problems ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_one_row_or_column(backend, shape, method):
    """There is one feasible plan."""
    p = make(*shape, log_reg=-3)
    r = solve(p.a, p.b, p.args[0], p.reg, method=method, backend=backend)
    assert_within(r.plan(), np.outer(p.a, p.b), 1e-9 + 64 * EPS * p.scale / p.reg)


@pytest.mark.parametrize("value", [0.0, 1e8, -1e-8])
@pytest.mark.parametrize("method", METHODS)
def test_constant_costs(backend, value, method):
    """The plan is a b^T whatever reg."""
    a, b = masses(np.random.default_rng(0), 9), masses(np.random.default_rng(1), 12)
    for reg in (1e-4 * (abs(value) or 1), 1.0 * (abs(value) or 1)):
        r = solve(a, b, np.full((9, 12), value), reg, method=method, backend=backend)
        assert_within(r.plan(), np.outer(a, b), 1e-9 + 64 * EPS * abs(value) / reg)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("log_reg", [-4, -2, 0])
def test_identical_clouds(backend, method, log_reg):
    """The cost of a cloud to itself: the plan is symmetric, the potentials are the same."""
    rng = np.random.default_rng(0)
    x = rng.random((40, 2))
    cost = ((x[:, None] - x) ** 2).sum(2)
    a = masses(rng, 40)
    if method == "sinkhorn":
        log_reg = max(log_reg, -2)
    r = solve(a, a, cost, 10.0**log_reg, method=method, backend=backend)
    assert r.converged
    plan = r.plan()
    exact = oracle.plan(cost, r.f, r.g, 10.0**log_reg)
    assert np.abs(exact.sum(0) - a).sum() + np.abs(exact.sum(1) - a).sum() <= 1.001e-9
    best = optimal(cost, a, a, 10.0**log_reg) if log_reg > -3 else None
    if best is not None:
        bound = plan_bound(cost, a, a, 10.0**log_reg, best, r.f, r.g) + 1e-13 * exact
        assert_within(plan, plan.T, bound + bound.T)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_zero_masses(backend, method, order):
    """Their rows and columns of the plan are zero; the others are as without them."""
    p = make(14, 17, log_reg=-1.5)
    a, b = np.zeros(17), np.zeros(19)
    rows, columns = np.arange(17) % 6 != 2, np.arange(19) % 9 != 0
    rows[[2, 8]], columns[[0]] = False, False
    rows, columns = (
        np.flatnonzero(rows)[:14],
        np.flatnonzero(columns)[:17] if columns.sum() >= 17 else None,
    )
    if columns is None:
        columns = np.setdiff1d(np.arange(19), [0, 9])
    a[rows], b[columns] = p.a, p.b
    cost = np.full((17, 19), 0.5)
    cost[np.ix_(rows, columns)] = p.args[0]
    cost = np.asarray(cost, order=order)
    r = solve(a, b, cost, p.reg, method=method, tol=1e-12, backend=backend)
    gone = np.setdiff1d(np.arange(17), rows), np.setdiff1d(np.arange(19), columns)
    assert (r.f[gone[0]] == -np.inf).all()
    assert (r.g[gone[1]] == -np.inf).all()
    plan = r.plan()
    assert (plan[gone[0]] == 0).all()
    assert (plan[:, gone[1]] == 0).all()
    best = optimal(p.exact, p.a, p.b, p.reg)
    bound = plan_bound(p.exact, p.a, p.b, p.reg, best, r.f[rows], r.g[columns])
    expected = oracle.plan(p.exact, best[0], best[1], p.reg)
    assert_within(plan[np.ix_(rows, columns)], expected, bound + 1e-12 * expected)
    for number in (r.cost, r.value, r.dual_value, r.marginal_error):
        assert np.isfinite(number)
    assert np.isfinite(r.rounded_plan()).all()
    assert r.sparse_plan().matrix.shape == (17, 19)


@pytest.mark.parametrize("method", METHODS)
def test_forbidden_pairs(backend, method):
    p = make(12, 12, forbidden=0.5, log_reg=-1)
    r = solve(
        p.a, p.b, p.args[0], p.reg, method=method, tol=1e-11, backend=backend, max_iter=100_000
    )
    closed = np.isinf(p.exact)
    assert (r.plan()[closed] == 0).all()
    assert true_error(p, r) <= 1e-11 + sum_error(p, r.f, r.g)
    assert np.isfinite(r.cost)


def test_forbidden_pairs_by_hand(backend):
    """Only the diagonal and one pair are open; the flow is forced."""
    cost = np.array([[1.0, np.inf], [2.0, 3.0]])
    r = solve(np.array([0.25, 0.75]), np.array([0.5, 0.5]), cost, 0.1, tol=1e-12, backend=backend)
    assert_within(r.plan(), [[0.25, 0.0], [0.25, 0.5]], 1e-11)
    assert_within(r.cost, 0.25 + 0.5 + 1.5, 1e-11)


# ---- what does not matter ------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(64, 128), (256, 16)])
def test_layouts_and_threads(backend, method, shape):
    """Threads change not a bit; columns that lie together turn the problem around."""
    p = make(*shape, log_reg=-1.5, mass="uniform")
    options = {"method": method, "backend": backend}
    default = solve(None, None, p.args[0], p.reg, n_threads=1, **options)
    for layout in draws.LAYOUTS:
        shown = draws.relayout(p.args[0], layout)
        first = solve(None, None, shown, p.reg, n_threads=1, **options)
        if layout == "F":
            turned = solve(None, None, p.args[0].T.copy(), p.reg, **options)
            np.testing.assert_array_equal(first.f, turned.g)
            np.testing.assert_array_equal(first.plan(), turned.plan().T)
        elif layout == "padded":
            np.testing.assert_array_equal(first.f, default.f)
        assert true_error(p, first) <= 1e-9 + sum_error(p, first.f, first.g)
        # Both duals are below the same optimum, by the error times a distance of potentials.
        size = 4 * (np.abs(first.f).max() + np.abs(first.g).max())
        assert_within(first.dual_value, default.dual_value, 1e-9 * size + 64 * EPS * p.scale)
        for threads in (2, 3):
            r = solve(None, None, shown, p.reg, n_threads=threads, **options)
            np.testing.assert_array_equal(r.f, first.f)
            np.testing.assert_array_equal(r.g, first.g)
            np.testing.assert_array_equal(r.plan(), first.plan())
            assert r.iterations == first.iterations


def test_masses_in_other_layouts(backend):
    p = make(10, 12)
    first = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    r = solve(
        draws.relayout(p.a, "step2"),
        draws.relayout(p.b, "negative"),
        p.args[0],
        p.reg,
        backend=backend,
    )
    np.testing.assert_array_equal(r.f, first.f)


def test_uniform_is_the_default(backend):
    p = make(10, 12, mass="uniform")
    first = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    np.testing.assert_array_equal(solve(None, None, p.args[0], p.reg, backend=backend).f, first.f)


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_types(backend, dtype):
    p = make(10, 12, dtype=dtype)
    r = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    assert r.plan().dtype == dtype
    assert r.rounded_plan().dtype == dtype
    assert r.sparse_plan().matrix.dtype == dtype
    assert r.f.dtype == r.g.dtype == np.float64
    assert (type(r.cost), type(r.value), type(r.marginal_error)) == (float, float, float)
    assert (type(r.iterations), type(r.converged)) == (int, bool)
    assert r.reg == p.reg
    # Masses may be of the other type.
    s = solve(p.a.astype(np.float32), p.b.astype(np.float32), p.args[0], p.reg, backend=backend)
    assert s.plan().dtype == dtype


def test_torch(backend):
    torch = pytest.importorskip("torch")
    p = make(10, 12)
    r = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    t = solve(*(torch.from_numpy(x) for x in (p.a, p.b, p.args[0])), p.reg, backend=backend)
    for x in (t.f, t.g, t.plan(), t.rounded_plan()):
        assert isinstance(x, torch.Tensor)
    np.testing.assert_array_equal(t.f.numpy(), r.f)
    np.testing.assert_array_equal(t.plan().numpy(), r.plan())


def test_results_can_be_kept(backend):
    p = make(8, 9)
    r = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    for again in (copy.deepcopy(r), pickle.loads(pickle.dumps(r))):
        np.testing.assert_array_equal(again.plan(), r.plan())
        assert again.value == r.value


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_warm_start(backend, method, order):
    """From the solution there is next to nothing to do, however it is handed over."""
    p = make(50, 60, log_reg=-1.7)
    cost = np.asarray(p.args[0], order=order)
    options = {"method": method, "backend": backend}
    r = solve(p.a, p.b, cost, p.reg, tol=1e-10, **options)
    cold = solve(p.a, p.b, cost, p.reg, **options)
    for start in (r, (r.f, r.g), (r.f + 0.5, r.g - 0.5)):
        again = solve(p.a, p.b, cost, p.reg, warm_start=start, **options)
        assert again.converged
        assert again.iterations <= 3
        assert again.iterations < cold.iterations
    # From the solution of a larger reg.
    near = solve(p.a, p.b, cost, 1.2 * p.reg, **options)
    again = solve(p.a, p.b, cost, p.reg, warm_start=near, **options)
    assert true_error(p, again) <= 1e-9 + sum_error(p, again.f, again.g)


def test_warm_start_with_zero_masses(backend):
    p = make(10, 12)
    a = p.a.copy()
    a[3] = 0
    a /= a.sum()
    r = solve(a, p.b, p.args[0], p.reg, backend=backend)
    again = solve(a, p.b, p.args[0], p.reg, warm_start=r, backend=backend)
    assert again.iterations <= 3
    # A mass that was zero and is not: its potential says nothing about where to start.
    more = solve(p.a, p.b, p.args[0], p.reg, warm_start=r, backend=backend)
    assert true_error(p, more) <= 1e-9 + sum_error(p, more.f, more.g)


@pytest.mark.parametrize("start", [1e6, -1e6])
@pytest.mark.parametrize("method", METHODS)
def test_warm_start_from_far_away(backend, method, start):
    p = make(10, 12)
    rng = np.random.default_rng(0)
    f, g = start * p.scale * rng.random(10), start * p.scale * rng.random(12)
    r = solve(p.a, p.b, p.args[0], p.reg, warm_start=(f, g), method=method, backend=backend)
    assert true_error(p, r) <= 1e-9 + sum_error(p, r.f, r.g)


@pytest.mark.parametrize("omega", ["auto", 1.0, 1.5, 1.9, 1.99])
def test_omega(backend, omega):
    """Whatever the factor, the solution is the same."""
    p = make(40, 40, log_reg=-1.7)
    r = solve(
        p.a, p.b, p.args[0], p.reg, method="sinkhorn", omega=omega, backend=backend, max_iter=50_000
    )
    assert true_error(p, r) <= 1e-9 + sum_error(p, r.f, r.g)


def test_over_relaxation_pays(backend):
    p = make(60, 60, log_reg=-2, mass="uniform")
    plain, relaxed = (
        solve(
            p.a,
            p.b,
            p.args[0],
            p.reg,
            method="sinkhorn",
            omega=w,
            backend=backend,
            max_iter=100_000,
        )
        for w in (1.0, "auto")
    )
    assert 2 * relaxed.iterations < plain.iterations


def test_normalize(backend):
    p = make(10, 12)
    r = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    s = solve(3 * p.a, 0.2 * p.b, p.args[0], p.reg, normalize=True, backend=backend)
    assert_within(s.plan(), r.plan(), 1e-8)


def test_masses_that_sum_to_anything(backend):
    p = make(10, 12)
    for total in (1e-12, 1e12):
        r = solve(total * p.a, total * p.b, p.args[0], p.reg, tol=1e-9 * total, backend=backend)
        assert r.converged
        plan = wide(r.plan())
        assert np.abs(plan.sum(1) - total * p.a).sum() <= 1.1e-9 * total


def test_progress(backend, capsys):
    pytest.importorskip("tqdm")
    p = make(30, 30, log_reg=-2)
    first = solve(p.a, p.b, p.args[0], p.reg, backend=backend)
    assert capsys.readouterr() == ("", "")
    r = solve(p.a, p.b, p.args[0], p.reg, progress=True, backend=backend)
    assert capsys.readouterr().err
    np.testing.assert_array_equal(r.f, first.f)


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_equal_singles(backend, method, order):
    many = [make(14, 18, seed=k, log_reg=-1) for k in range(4)]
    a, b = (np.stack([getattr(p, w) for p in many]) for w in "ab")
    a[1, 3] = b[2, 4] = 0  # zero masses in different places
    a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    cost = np.stack([p.args[0] for p in many])
    if order == "F":
        cost = np.ascontiguousarray(cost.transpose(0, 2, 1)).transpose(0, 2, 1)
    reg = many[0].reg
    r = solve(a, b, cost, reg, method=method, tol=1e-11, backend=backend)
    assert r.f.shape == (4, 14)
    assert r.g.shape == (4, 18)
    for field in ("cost", "value", "dual_value", "marginal_error", "iterations", "converged"):
        assert getattr(r, field).shape == (4,)
    assert r.converged.dtype == bool
    assert r.converged.all()
    assert r.plan().shape == (4, 14, 18)
    for k in range(4):
        s = solve(a[k], b[k], cost[k], reg, method=method, tol=1e-11, backend=backend)
        rows, columns = a[k] > 0, b[k] > 0
        c = wide(cost[k][rows][:, columns])
        best = optimal(c, a[k][rows], b[k][columns], reg)
        for one in (s, r[k]):
            bound = plan_bound(c, a[k][rows], b[k][columns], reg, best, one.f[rows], one.g[columns])
            expected = oracle.plan(c, best[0], best[1], reg)
            assert_within(one.plan()[rows][:, columns], expected, bound + 1e-12 * expected)
            assert one.converged
        np.testing.assert_array_equal(r[k].plan(), r.plan()[k])
        assert r[k].cost == r.cost[k]


def test_batches_share_masses(backend):
    many = [make(6, 7, seed=k) for k in range(3)]
    cost = np.stack([p.args[0] for p in many])
    p = many[0]
    r = solve(p.a, p.b, cost, p.reg, backend=backend)
    again = solve(np.stack([p.a] * 3), np.stack([p.b] * 3), cost, p.reg, backend=backend)
    np.testing.assert_array_equal(r.f, again.f)
    assert solve(None, None, cost, p.reg, backend=backend).f.shape == (3, 6)


def test_batches_are_honest(backend):
    """One of them does not get there: one warning, and converged says which."""
    easy, hard = make(20, 20, log_reg=1), make(20, 20, log_reg=1, seed=1)
    cost = np.stack([easy.args[0], 300 * hard.args[0]])
    r, warning = quiet(
        lambda: solve(
            easy.a, easy.b, cost, easy.reg, method="sinkhorn", max_iter=30, backend=backend
        )
    )
    assert r.converged.tolist() == [True, False]
    assert warning is not None
    assert (r.marginal_error <= 1e-9).tolist() == [True, False]


@pytest.mark.parametrize("log_reg", [-4, -3.7])
@pytest.mark.parametrize("whole", [False, True])
def test_uneven_masses(backend, whole, log_reg):
    """Small plans that nearly fall apart: steps on a few entries must not lead astray."""
    for seed in range(12 if backend == "native" else 3):
        rng = np.random.default_rng(seed)
        cost = rng.integers(0, 5, (20, 12)) / 4 if whole else rng.random((20, 12))
        a, b = rng.dirichlet(np.ones(20)), rng.dirichlet(np.ones(12))
        r = solve(a, b, cost, 10.0**log_reg, backend=backend)
        assert r.converged, seed


def test_batch_of_unequal_masses(backend):
    """The tolerance is a share of each problem's own mass."""
    rng = np.random.default_rng(0)
    mass = np.full((2, 10), 0.1) * np.array([[1.0], [1e6]])
    r = solve(mass, mass, rng.random((2, 10, 10)), 0.05, backend=backend)
    assert r.converged.all()
    assert (r.marginal_error <= 1e-9 * np.array([1, 1e6])).all()
