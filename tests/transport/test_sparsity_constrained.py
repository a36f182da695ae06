"""At most k entries in a column: enumeration, quadratic programs, assignments, bounds."""

import itertools
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linear_sum_assignment, linprog, minimize

import quadric as qd
from quadric.transport import sparsity_constrained
from tests import strategies as draws
from tests.refusals import (
    ARRAYS,
    EXECUTION,
    INF,
    NAN,
    POSITIVE,
    SIZES,
    assert_refused,
    shown,
    spoiled,
)
from tests.transport.problems import cost_matrix, masses

EPS = float(np.finfo(np.float64).eps)


@contextmanager
def quiet():
    """Let a plan miss its masses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qd.ConvergenceWarning)
        yield


def objective(M, P, reg):
    M = np.where(P > 0, M, 0)
    return float((M * P).sum() + reg / 2 * (P**2).sum())


def error(P, a, b):
    return float(np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum())


def quadratic_program(M, a, b, reg, allowed=None):
    """Return the least value of a plan on the allowed pairs by a general solver; inf if none."""
    n, m = M.shape
    here = np.flatnonzero(np.ones(n * m, bool) if allowed is None else allowed.ravel())
    A = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])[:, here]
    target, c = np.concatenate([a, b]), M.ravel()[here]
    start = linprog(c, A_eq=A[:-1], b_eq=target[:-1])
    if start.status != 0:
        return np.inf
    found = minimize(
        lambda x: (c @ x + reg / 2 * x @ x, c + reg * x),
        start.x,
        jac=True,
        bounds=[(0, None)] * len(here),
        constraints=LinearConstraint(A[:-1], target[:-1], target[:-1]),
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
    )
    return float(found.fun)


def problem(seed, n, m, kind="uniform", mass="random"):
    rng = np.random.default_rng(seed)
    return masses(rng, n, mass), masses(rng, m, mass), cost_matrix(rng, n, m, kind)


# ---- against other solvers -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reg", [0.1, 3.0])
def test_enumeration(backend, seed, reg):
    """Every choice of two places in each column of a 4 x 3 problem."""
    a, b, M = problem(seed, 4, 3)
    best = np.inf
    for rows in itertools.product(itertools.combinations(range(4), 2), repeat=3):
        allowed = np.zeros(M.shape, bool)
        for j, chosen in enumerate(rows):
            allowed[list(chosen), j] = True
        if allowed.any(1).all():
            best = min(best, quadratic_program(M, a, b, reg, allowed))
    with quiet():
        r = sparsity_constrained(a, b, M, 2, reg, backend=backend)
    assert r.dual_value <= best + 1e-9
    if r.converged:
        assert r.value >= best - 1e-9
        if r.value - r.dual_value < 1e-9:
            assert r.value == pytest.approx(best, abs=1e-8)


@pytest.mark.parametrize("shape", [(6, 4), (4, 7), (1, 3), (3, 1)])
@pytest.mark.parametrize("reg", [0.05, 1.0, 50.0])
@pytest.mark.parametrize("method", ["semidual", "dual"])
def test_large_k_is_quadratic_regularization(backend, shape, reg, method):
    """The conditions of optimality, which suffice there, and a general solver."""
    n, m = shape
    a, b, M = problem(n, n, m)
    r = sparsity_constrained(a, b, M, n, reg, method=method, tol=1e-12, backend=backend)
    P = r.plan()
    assert r.converged
    assert error(P, a, b) <= 2e-12
    size = (np.abs(r.f).max() + np.abs(r.g).max() + 1) / reg
    expected = np.maximum(r.f[:, None] + r.g - M, 0) / reg
    np.testing.assert_allclose(P, expected, rtol=0, atol=8 * EPS * size)
    assert r.value == pytest.approx(r.dual_value, rel=1e-11)
    assert r.value == pytest.approx(objective(M, P, reg), rel=1e-14)
    assert r.value == pytest.approx(quadratic_program(M, a, b, reg), rel=1e-6)
    assert sparsity_constrained(a, b, M, n + 5, reg, tol=1e-12).value == pytest.approx(r.value)


@pytest.mark.parametrize("n", [1, 7, 40])
@pytest.mark.parametrize("kind", ["uniform", "points"])
@pytest.mark.parametrize("reg", [0.01, 10.0])
def test_one_place_per_column_is_the_assignment(backend, n, kind, reg):
    _, _, M = problem(n, n, n, kind)
    r = sparsity_constrained(None, None, M, 1, reg, backend=backend)
    rows, columns = linear_sum_assignment(M)
    expected = np.zeros_like(M)
    expected[rows, columns] = 1 / n
    np.testing.assert_allclose(r.plan(), expected, rtol=1e-12)
    assert r.cost == pytest.approx(M[rows, columns].mean(), rel=1e-12)
    assert r.dual_value == pytest.approx(r.value, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_one_place_per_column_bounds_unregularized_transport(backend, seed):
    """The dual is that of the linear program; no plan with one entry has such masses."""
    n, m = 12, 9
    a, b, M = problem(seed, n, m)
    A = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    exact = linprog(M.ravel(), A_eq=A[:-1], b_eq=np.concatenate([a, b])[:-1]).fun
    with pytest.warns(
        qd.ConvergenceWarning, match="9 columns of 1 entries have room for few plans"
    ):
        r = sparsity_constrained(a, b, M, 1, 1.0, backend=backend)
    linear = r.dual_value - 0.5 * b @ b
    assert exact * 0.98 < linear <= exact + 1e-12
    assert not r.converged
    np.testing.assert_allclose(r.plan().sum(0), b, rtol=1e-14)


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")
@pytest.mark.parametrize("k", [2, 4, 30])
@pytest.mark.parametrize("reg", [1.0, 30.0])
def test_pot(k, reg):
    """Not below what the solver of POT reaches."""
    ot = pytest.importorskip("ot")
    a, b, M = problem(0, 30, 20, "points")
    _, log = ot.smooth.smooth_ot_semi_dual(
        a, b, M, reg, reg_type="sparsity_constrained", max_nz=k, numItermax=2000, log=True
    )
    with quiet():
        ours = sparsity_constrained(a, b, M, k, reg, repair=False)
        other = log["alpha"]
        z = other[:, None] - M
        z = np.where(z >= np.sort(z, 0)[-k], z, -np.inf)
        theirs = other @ a - sum(_smooth_max(z[:, j], b[j], reg) for j in range(len(b)))
    assert ours.dual_value >= theirs - 1e-4 * abs(theirs)


def _smooth_max(z, mass, reg):
    """Return max <z, t> - reg / 2 |t|^2 over t >= 0 with the sum `mass`."""
    top = np.sort(z)[::-1]
    for s in range(len(top), 0, -1):
        t = (top[:s].sum() - reg * mass) / s
        if top[s - 1] > t:
            break
    p = np.maximum(top - t, 0) / reg
    return (np.where(p > 0, top, 0) * p).sum() - reg / 2 * p @ p


# ---- what holds always ---------------------------------------------------------------------------


@given(
    n=draws.sizes(40),
    m=draws.sizes(40),
    k=st.integers(1, 8),
    log_reg=st.integers(-3, 3),
    kind=st.sampled_from(["uniform", "points", "grid"]),
    mass=st.sampled_from(["uniform", "random", "skewed"]),
    method=st.sampled_from(["semidual", "dual"]),
    repair=st.booleans(),
    dtype=draws.dtypes,
    seed=draws.seeds,
)
def test_report(backend, n, m, k, log_reg, kind, mass, method, repair, dtype, seed):
    """Few entries, exact columns, an error that is true, and a bound that is one."""
    a, b, M = problem(seed, n, m, kind, mass)
    M, reg = M.astype(dtype), 10.0**log_reg
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        r = sparsity_constrained(
            a, b, M, k, reg, method=method, repair=repair, max_iter=100, backend=backend
        )
    P, exact = r.plan(), M.astype(float)
    eps = float(np.finfo(dtype).eps)
    tol = {np.float32: 1e-5, np.float64: 1e-9}[dtype]
    assert P.dtype == dtype
    assert (P >= 0).all()
    assert (P > 0).sum(0).max() <= k
    np.testing.assert_allclose(P.sum(0, dtype=float), b, rtol=(k + 8) * eps)
    assert r.marginal_error == pytest.approx(error(P.astype(float), a, b), abs=8 * eps)
    assert r.converged == (r.marginal_error <= tol)
    assert [w.category for w in caught] == [] if r.converged else [qd.ConvergenceWarning]
    assert r.converged == (r.reason == "converged")
    size = np.abs(r.f).max() + np.abs(r.g).max() + 1
    assert r.value == pytest.approx(objective(exact, P.astype(float), reg), abs=8 * eps * size)
    expected = np.maximum(r.f[:, None] + r.g - exact, 0)[P > 0] / reg
    np.testing.assert_allclose(P[P > 0], expected, rtol=2 * eps, atol=16 * EPS * size / reg)
    if r.converged:
        assert r.dual_value <= r.value + size * r.marginal_error + 64 * EPS * size


@pytest.mark.parametrize("shape", [(60, 10), (40, 40), (10, 60)])
def test_more_places_cost_less(backend, shape):
    """The bound falls with k to that of quadratic regularization; values lie between."""
    _, _, M = problem(3, *shape, "points")
    last, values = np.inf, []
    for k in (-(-shape[0] // shape[1]) + 1, 12, 30, 60):
        r = sparsity_constrained(None, None, M, k, 40.0, backend=backend)
        assert r.converged
        assert r.dual_value <= last * (1 + 1e-5)
        last = r.dual_value
        values.append(r.value)
        assert r.dual_value <= r.value * (1 + 1e-8)
    assert values[-1] == pytest.approx(last, rel=1e-9)


def test_repair_meets_the_masses(backend):
    """What the paper's plan misses, for a price that is proven to be small."""
    _, _, M = problem(0, 256, 16, "points")
    with quiet():
        paper = sparsity_constrained(None, None, M, 32, 30.0, repair=False, backend=backend)
    ours = sparsity_constrained(None, None, M, 32, 30.0, backend=backend)
    assert not paper.converged
    assert paper.reason == "stalled"
    assert ours.converged
    assert ours.dual_value == paper.dual_value
    assert ours.dual_value < ours.value < 1.02 * ours.dual_value
    assert (np.diff(ours.sparse_plan().indptr) <= 32).all()


@pytest.mark.parametrize("k", [3, 30])
def test_methods_agree(backend, k):
    a, b, M = problem(1, 30, 20)
    with quiet():
        found = [
            sparsity_constrained(a, b, M, k, 5.0, method=method, backend=backend)
            for method in ("semidual", "dual")
        ]
    assert found[0].dual_value == pytest.approx(found[1].dual_value, rel=2e-3 if k == 3 else 1e-10)


@pytest.mark.parametrize("log_scale", [-8, 8])
def test_scale(backend, log_scale):
    """A cost in other units, and other units of mass."""
    a, b, M = problem(2, 20, 15)
    c = 10.0**log_scale
    one = sparsity_constrained(a, b, M, 20, 2.0, backend=backend)
    other = sparsity_constrained(a, b, c * M, 20, c * 2.0, backend=backend)
    np.testing.assert_allclose(other.plan(), one.plan(), atol=2e-9)
    assert other.value == pytest.approx(c * one.value, rel=1e-7)
    mass = sparsity_constrained(c * a, c * b, M, 20, 2.0 / c, backend=backend)
    assert mass.converged
    np.testing.assert_allclose(mass.plan() / c, one.plan(), atol=2e-9)


def test_layouts_threads_and_backends(backend):
    """Not a bit."""
    a, b, M = problem(4, 70, 33)
    before = M.tobytes(), a.tobytes(), b.tobytes()
    with quiet():
        other = "cuda" if backend == "cuda" else "numba"  # a GPU divides sums of its own
        expected = sparsity_constrained(a, b, M, 5, 20.0, max_iter=50, backend=other).plan()
        for layout in draws.LAYOUTS:
            for threads in (1, 2):
                r = sparsity_constrained(
                    a,
                    b,
                    draws.relayout(M, layout),
                    5,
                    20.0,
                    max_iter=50,
                    n_threads=threads,
                    backend=backend,
                )
                np.testing.assert_array_equal(r.plan(), expected)
    assert (M.tobytes(), a.tobytes(), b.tobytes()) == before


def test_masses_of_zero(backend):
    a, b, M = problem(5, 12, 9)
    more_a, more_b = np.insert(a, [0, 6, 12], 0.0), np.insert(b, [4, 9], 0.0)
    wide = np.full((15, 11), NAN)
    rows, columns = np.flatnonzero(more_a), np.flatnonzero(more_b)
    wide[:] = 1e-3  # tempting
    wide[np.ix_(rows, columns)] = M
    one = sparsity_constrained(a, b, M, 6, 4.0, backend=backend)
    r = sparsity_constrained(more_a, more_b, wide, 6, 4.0, backend=backend)
    P = r.plan()
    np.testing.assert_array_equal(P[np.ix_(rows, columns)], one.plan())
    assert P.sum() == pytest.approx(1)
    assert np.isneginf(r.f[more_a == 0]).all()
    assert np.isneginf(r.g[more_b == 0]).all()
    again = sparsity_constrained(more_a, more_b, wide, 6, 4.0, warm_start=r, backend=backend)
    assert again.converged
    assert again.value == pytest.approx(r.value, rel=1e-3)


def test_forbidden_pairs(backend):
    a, b, M = problem(6, 20, 20)
    M[np.random.default_rng(0).random(M.shape) < 0.6] = np.inf
    np.fill_diagonal(M, 5.0)
    a = b = np.full(20, 0.05)
    r = sparsity_constrained(a, b, M, 6, 20.0, backend=backend)
    assert r.converged
    assert (r.plan()[np.isinf(M)] == 0).all()
    assert np.isfinite(r.value)
    # Rows 0 and 1 can only go to column 0, which cannot take them both.
    M[:2] = np.inf
    M[:2, 0] = 1.0
    with pytest.warns(qd.ConvergenceWarning, match="cannot carry|no plan of its"):
        r = sparsity_constrained(a, b, M, 6, 20.0, backend=backend)
    assert r.marginal_error >= 0.05 - 1e-9


def test_warm_start_and_array_types():
    torch = pytest.importorskip("torch")
    a, b, M = problem(7, 30, 30)
    r = sparsity_constrained(a, b, M, 30, 5.0)
    assert sparsity_constrained(a, b, M, 30, 5.0, warm_start=r).iterations == 0
    assert sparsity_constrained(a, b, M, 30, 5.0, warm_start=r.f).iterations == 0
    t = sparsity_constrained(*(torch.from_numpy(x) for x in (a, b, M)), 30, 5.0)
    assert isinstance(t.f, torch.Tensor)
    np.testing.assert_array_equal(t.plan().numpy(), r.plan())
    np.testing.assert_array_equal(t.sparse_plan().toarray(), r.plan())
    assert repr(r).startswith("SparsityConstrainedResult(30 x 30, k=30, value=")
    n = sparsity_constrained(3 * a, 4 * b, M, 30, 5.0, normalize=True)
    np.testing.assert_allclose(n.plan(), r.plan(), atol=1e-9)


# ---- derivative ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reg", [0.3, 20.0])
def test_vjp_is_the_derivative(backend, reg):
    rng = np.random.default_rng(0)
    a, b, M = problem(8, 7, 6)
    G, direction = rng.standard_normal((2, 7, 6))

    def plan(t):
        r = sparsity_constrained(a, b, M + t * direction, 7, reg, tol=1e-14, backend=backend)
        return r.plan()

    h = 1e-5 * reg
    expected = (G * (plan(h) - plan(-h))).sum() / (2 * h)
    r = sparsity_constrained(a, b, M, 7, reg, tol=1e-13, backend=backend)
    assert (r.vjp(G) * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-7 / reg)


@pytest.mark.parametrize("k", [2, 5])
def test_vjp_is_a_projection(backend, k):
    """Against dense least squares on the entries of the plan."""
    n, m, reg = 20, 12, 8.0
    _, _, M = problem(9, n, m)
    G = np.random.default_rng(1).standard_normal((n, m))
    with quiet():
        r = sparsity_constrained(None, None, M, k, reg, backend=backend)
    rows, columns = np.nonzero(r.plan())
    B = np.zeros((len(rows), n + m))
    B[np.arange(len(rows)), rows] = B[np.arange(len(rows)), n + columns] = 1
    fit = B @ np.linalg.lstsq(B, G[rows, columns], rcond=None)[0]
    expected = np.zeros_like(M)
    expected[rows, columns] = (fit - G[rows, columns]) / reg
    np.testing.assert_allclose(r.vjp(G), expected, atol=1e-11)


# ---- bad input -----------------------------------------------------------------------------------


class Case:
    def __init__(self):
        self.a, self.b, self.M = problem(0, 6, 5)

    def refuse(self, name, error=(ValueError, TypeError), **change):
        good = {"a": self.a, "b": self.b, "M": self.M, "k": 2, "reg": 1.0}
        state = [x.tobytes() for x in (self.a, self.b, self.M)]
        message = assert_refused(name, lambda: sparsity_constrained(**(good | change)), error)
        assert state == [x.tobytes() for x in (self.a, self.b, self.M)]
        return message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("k", x) for x in SIZES),
        *(("reg", x) for x in POSITIVE),
        *(("max_iter", x) for x in SIZES),
        *(("tol", x) for x in (-1.0, NAN, INF, "small")),
        *(("method", x) for x in ("primal", None, 1)),
        ("repair", None),
        ("warm_start", np.zeros(5)),
        ("warm_start", np.full(6, NAN)),
        ("warm_start", np.full(6, INF)),
        ("warm_start", "cold"),
        *EXECUTION,
    ],
    ids=shown,
)
def test_options(option, value):
    Case().refuse(option, **{option: value})


@pytest.mark.parametrize("name", ["a", "b", "M"])
@pytest.mark.parametrize("kind", [k for k in ARRAYS if k != "unsigned 16 bit"])
def test_arrays(name, kind):
    if (name, kind) in (("a", "none"), ("b", "none"), ("M", "inf")):
        return
    case = Case()
    spoil, error = ARRAYS[kind]
    bad = spoil(getattr(case, name))
    case.refuse("b" if (name, kind) == ("M", "one entry less") else name, error, **{name: bad})


def test_masses():
    case = Case()
    case.refuse("a", ValueError, a=spoiled(case.a, -0.1))
    case.refuse("a", ValueError, a=np.zeros(6))
    assert "differ by 0.5" in case.refuse("a and b", ValueError, a=1.5 * case.a)
    bad = case.M.copy()
    bad[3] = INF
    assert "row 3" in case.refuse("M", ValueError, M=bad)
    bad = case.M.copy()
    bad[:, 2] = INF
    assert "column 2" in case.refuse("M", ValueError, M=bad)


@pytest.mark.parametrize("plan", [np.ones((5, 6)), np.full((6, 5), NAN), np.ones(6), None])
def test_cotangents(plan):
    case = Case()
    r = sparsity_constrained(case.a, case.b, case.M, 6, 1.0)
    assert_refused("plan", lambda: r.vjp(plan))


def test_few_iterations_say_so(backend):
    a, b, M = problem(0, 50, 40)
    with pytest.warns(qd.ConvergenceWarning, match=r"marginal error of .*, above tol=.*max_iter"):
        r = sparsity_constrained(a, b, M, 50, 1e-3, max_iter=1, backend=backend)
    assert r.reason == "max_iter"
