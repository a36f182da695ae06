"""lp_regression: against linear programs, least squares, optimality, and its own certificate."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from quadric import ConvergenceWarning
from quadric.sketch import lp_regression
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, INF, NAN, POSITIVE, assert_refused, shown
from tests.sketch.scores import matrix

EPS = float(np.finfo(float).eps)
POWERS = (1.0, 1.001, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
ERRORS = ("normal", "cauchy", "few", "huge", "integers", "none", "tiny")


def problem(
    n: int, d: int, errors: str = "normal", *, dtype=np.float64, seed: int = 0, **options
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = matrix(n, d, seed=seed, **options) * np.sqrt(n)
    e = rng.standard_normal(n)
    if errors == "cauchy":
        e = rng.standard_cauchy(n)
    if errors == "few":
        e[rng.random(n) < 0.8] = 0
    if errors == "huge":
        e[rng.random(n) < 0.05] *= 1e8
    if errors in ("none", "tiny"):
        e *= 0 if errors == "none" else 1e-10
    if errors == "integers":  # many ties: vertices that more than d hyperplanes meet in
        a, e = np.rint(a), np.rint(2 * e)
    b = a @ rng.standard_normal(d) + e if errors != "integers" else e
    return a.astype(dtype), b.astype(dtype)


def norm(r: np.ndarray, p: float) -> float:
    r = np.abs(r.astype(float))
    return r.max() * ((r / r.max()) ** p).sum() ** (1 / p) if r.any() else 0.0


def linear_program(a: np.ndarray, b: np.ndarray) -> float:
    n, d = a.shape
    found = linprog(
        np.r_[np.zeros(d), np.ones(2 * n)],
        A_eq=np.block([a, np.eye(n), -np.eye(n)]),
        b_eq=b,
        bounds=[(None, None)] * d + [(0, None)] * (2 * n),
    )
    return found.fun


@pytest.mark.parametrize("errors", ERRORS)
@pytest.mark.parametrize(("n", "d"), [(30, 3), (200, 10), (13, 12)])
def test_one_against_a_linear_program(backend, errors, n, d):
    """HiGHS keeps its constraints to 1e-7 per row; a smaller value of ours is only welcome."""
    a, b = problem(n, d, errors)
    found = lp_regression(a, b, 1, sampling=None, backend=backend)
    assert found.converged
    assert found.objective <= linear_program(a, b) * (1 + 1e-9) + 1e-7
    assert found.sampled_rows is None
    assert found.weights is None


@pytest.mark.parametrize("n", [40, 1000])
def test_two_is_least_squares(backend, n):
    a, b = problem(n, 6, log_cond=4)
    found = lp_regression(a, b, 2, sampling=None, backend=backend)
    exact = np.linalg.lstsq(a, b)[0]
    assert found.iterations == 0
    # Forward error of least squares: cond (1 + cond ||r|| / ||A x||), a few eps of it.
    size = np.linalg.norm(exact)
    residual = np.linalg.norm(b - a @ exact) / np.linalg.norm(a, 2) / size
    limit = 64 * EPS * np.linalg.cond(a) * (1 + np.linalg.cond(a) * residual) * size
    assert_within(found.x, exact, limit)


@pytest.mark.parametrize("p", [1.2, 1.5, 3.0, 8.0])
@pytest.mark.parametrize("errors", ["normal", "cauchy"])
def test_against_a_general_minimizer(backend, p, errors):
    """BFGS from least squares; it stops at a value that is right to 1e-8, from above."""
    a, b = problem(60, 4, errors)
    start = np.linalg.lstsq(a, b)[0]
    scale = norm(b - a @ start, p)

    def f(x):
        r = (b - a @ x) / scale
        slope = -np.sign(r) * np.abs(r) ** (p - 1) / scale
        return (np.abs(r) ** p).sum() / p, a.T @ slope

    least = minimize(f, start, jac=True, method="BFGS", options={"gtol": 1e-12})
    expected = scale * (p * least.fun) ** (1 / p)
    found = lp_regression(a, b, p, sampling=None, backend=backend)
    assert found.objective <= expected * (1 + 1e-12)
    assert_within(found.objective, expected, 1e-8 * expected)


@given(
    n=st.integers(1, 300),
    d=st.integers(1, 12),
    errors=st.sampled_from(ERRORS),
    p=st.sampled_from(POWERS) | st.floats(1, 8),
    spread=st.sampled_from((0.0, 2.0)),
    log_cond=st.integers(0, 6),
    layout=draws.layouts,
    seed=draws.seeds,
)
def test_it_converges_and_proves_it(backend, n, d, errors, p, spread, log_cond, layout, seed):
    """Few steps for every kind of problem, and no x of our own search is better.

    The rounding of the residual, ``eps |b|`` per row, bounds what is not seen.
    """
    d = min(n, d)
    a, b = problem(n, d, errors, spread=spread, log_cond=log_cond if d > 1 else 0, seed=seed)
    shown, right = draws.relayout(a, layout), draws.relayout(b, layout)
    before = draws.whole(shown).tobytes(), draws.whole(right).tobytes()
    found = lp_regression(shown, right, p, sampling=None, max_iter=60, backend=backend)
    assert (draws.whole(shown).tobytes(), draws.whole(right).tobytes()) == before
    assert found.converged
    rounding = 64 * EPS * (norm(np.abs(a) @ np.abs(found.x), p) + norm(b, p)) * n ** (1 / p)
    assert_within(found.objective, norm(b - a @ found.x, p), rounding)
    rng = np.random.default_rng(seed)
    if np.linalg.matrix_rank(a) == d:
        start = np.linalg.lstsq(a, b)[0]
        for size in (0.0, 1e-6, 1e-3, 0.1, 1.0):
            for x in (start, found.x):
                other = x + size * np.linalg.norm(x) * rng.standard_normal(d)
                assert norm(b - a @ other, p) >= found.objective * (1 - 1e-12) - rounding


@pytest.mark.parametrize("p", POWERS)
def test_robust_or_not(backend, p):
    """Least absolute deviations do not see outliers of any size."""
    a, b = problem(300, 4)
    bad = b.copy()
    bad[:30] = 1e6
    x, y = (lp_regression(a, v, p, sampling=None, backend=backend).x for v in (b, bad))
    if p == 1:
        assert np.abs(x - y).max() < 1
    elif p >= 1.5:
        assert np.abs(x - y).max() > 10


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, 8.0])
def test_scale_and_basis(backend, p):
    a, b = problem(200, 4)
    x = lp_regression(a, b, p, sampling=None, tol=1e-14, backend=backend).x
    for scale in (1e-100, 1e100):
        found = lp_regression(scale * a, scale * b, p, sampling=None, tol=1e-14, backend=backend)
        assert_within(found.x, x, 1e-6)
    change = matrix(4, 4, log_cond=2, seed=1)
    found = lp_regression(a @ change, b, p, sampling=None, tol=1e-14, backend=backend).x
    # The value is right to 1e-14, so x to its root.
    assert_within(change @ found, x, 1e-5)


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("n", [100, 2000])
def test_rank_deficient(backend, p, n):
    a, b = problem(n, 3)
    more = np.column_stack((a, a[:, 0] - a[:, 2], 0 * a[:, 0]))
    found = lp_regression(more, b, p, sampling=None, backend=backend)
    expected = lp_regression(a, b, p, sampling=None, backend=backend)
    assert_within(found.objective, expected.objective, 1e-11 * expected.objective)
    nothing = lp_regression(0 * a, b, p, sampling=None, backend=backend)
    assert not nothing.x.any()
    assert_within(nothing.objective, norm(b, p), 1e-13 * nothing.objective)
    assert not lp_regression(a, 0 * b, p, sampling=None, backend=backend).x.any()


@pytest.mark.parametrize("p", [1.0, 1.5, 4.0])
def test_float32_and_sparse(backend, p):
    a, b = problem(500, 4, dtype=np.float32)
    found = lp_regression(a, b, p, sampling=None, backend=backend)
    assert found.x.dtype == np.float32
    exact = lp_regression(a.astype(float), b.astype(float), p, sampling=None, backend=backend)
    assert found.objective <= exact.objective * (1 + 2e-6)
    sparse = lp_regression(sp.csc_array(a), b, p, sampling=None, backend=backend)
    assert_within(sparse.objective, found.objective, 1e-6 * found.objective)


# ---- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 6.0])
@pytest.mark.parametrize("sampling", ["sensitivity", "lewis"])
@pytest.mark.parametrize("errors", ["normal", "few", "cauchy"])
def test_samples_come_close(backend, p, sampling, errors):
    """A fortieth of the rows: a sketch with d / m = 1 / 100 and p times the loss of p = 2."""
    a, b = problem(20_000, 5, errors, spread=0.5)
    best = lp_regression(a, b, p, sampling=None, backend=backend)
    found = lp_regression(a, b, p, sampling=sampling, sketch_size=500, seed=1, backend=backend)
    assert abs(len(found.sampled_rows) - 500) < 6 * np.sqrt(500)
    assert best.objective * (1 - 1e-12) <= found.objective <= best.objective * (1 + 0.04 * p)
    assert_within(found.objective, norm(b - a @ found.x, p), 1e-12 * found.objective)
    i, w = found.sampled_rows, found.weights
    again = lp_regression(w[:, None] * a[i], w * b[i], p, sampling=None, backend=backend)
    assert_within(found.x, again.x, 1e-5)
    twice = lp_regression(
        a, b, p, sampling=sampling, sketch_size=500, seed=1, backend=backend, n_threads=2
    )
    np.testing.assert_array_equal(twice.x, found.x)


def test_sizes_of_samples(backend):
    a, b = problem(3000, 4)
    assert lp_regression(a, b, 8, backend=backend).sampled_rows is None  # 50 5^4 rows are too many
    found = lp_regression(a, b, 1.5, backend=backend)
    assert abs(len(found.sampled_rows) - 250) < 6 * np.sqrt(250)
    assert lp_regression(a, b, 1.5, sketch_size=3000, backend=backend).sampled_rows is None
    other = lp_regression(a, b, 1.5, seed=1, backend=backend)
    assert (other.x != found.x).any()
    sparse = lp_regression(sp.csr_array(a), b, 1.5, backend=backend)
    np.testing.assert_array_equal(sparse.sampled_rows, found.sampled_rows)


def test_a_row_that_matters_is_kept(backend):
    a, b = np.zeros((5000, 2)), np.zeros(5000)
    a[:, 0], b[:] = 1.0, 1.0
    a[77] = 1.0, 5.0
    b[77] = 11.0
    for p in (1.0, 2.0, 4.0):
        found = lp_regression(a, b, p, sketch_size=50, backend=backend)
        assert 77 in found.sampled_rows
        assert_within(found.x, [1.0, 2.0], 1e-9)


def test_array_types(backend):
    a, b = problem(400, 3)
    found = lp_regression(torch.from_numpy(a), torch.from_numpy(b), 1.5, backend=backend)
    assert isinstance(found.x, torch.Tensor)
    assert isinstance(found.sampled_rows, torch.Tensor)
    plain = lp_regression(a, b, 1.5, backend=backend)
    np.testing.assert_array_equal(found.x.numpy(), plain.x)
    assert repr(plain).startswith("LpResult(d=3, objective=")


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, 1.5, 4.0])
def test_it_says_when_it_stopped(backend, p):
    a, b = problem(200, 4)
    best = lp_regression(a, b, p, sampling=None, backend=backend)
    before = INF
    for steps in (0, 1, 2):
        with pytest.warns(ConvergenceWarning, match=f"stopped after {steps} iterations"):
            found = lp_regression(
                a, b, p, sampling=None, max_iter=steps, tol=1e-14, backend=backend
            )
        assert not found.converged
        assert found.objective <= before
        # What it proves is true.
        assert found.objective * (1 - found.gap) <= best.objective * (1 + 1e-12)
        before = found.objective


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("sampling", [None, "lewis"])
def test_bad_arrays(backend, kind, sampling):
    spoil, error = ARRAYS[kind]
    a, b = problem(60, 3)

    def state():
        return a.tobytes(), b.tobytes()

    def call(A, right):
        return lp_regression(A, right, 1.5, sampling=sampling, sketch_size=30, backend=backend)

    if kind != "one entry less":
        assert_refused("A", lambda: call(spoil(a), b), error, state)
    assert_refused("b", lambda: call(a, spoil(b)), error, state)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("p", v) for v in (0.999, 0, -1, 8.001, NAN, INF, None, "two", "2", True)),
        *(("sampling", v) for v in ("leverage", False, 1)),
        *(("sketch_size", v) for v in (3, 0, -1, 61, 5.5)),
        *(("tol", v) for v in POSITIVE if v is not None),
        *(("max_iter", v) for v in (-1, 2.5, None, True)),
        ("seed", -1),
        *EXECUTION,
    ],
    ids=shown,
)
def test_bad_options(backend, option, value):
    a, b = problem(60, 3)
    options = {"p": 1.0, "backend": backend, option: value}
    assert_refused(option, lambda: lp_regression(a, b, **options))


def test_shapes_and_types_that_do_not_fit(backend):
    a, b = problem(60, 3)
    assert_refused("b", lambda: lp_regression(a, b[:, None], 1, backend=backend), ValueError)
    assert_refused("b", lambda: lp_regression(a, b[:-1], 1, backend=backend), ValueError)
    assert_refused("b", lambda: lp_regression(a, b.astype("f4"), 1, backend=backend), TypeError)
    for shape in ((0, 3), (60, 0)):
        assert_refused(
            "A", lambda s=shape: lp_regression(np.zeros(s), b[: s[0]], 1, backend=backend)
        )


@pytest.mark.parametrize("p", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("sampling", [None, "lewis"])
@pytest.mark.parametrize("tol", [1e-6, 1e-9])
def test_what_is_judged_is_returned(backend, p, sampling, tol):
    """The gap is that of the rounded x, so of a float32 one it is hardly below 1e-8."""
    a, b = problem(2000, 4, dtype=np.float32)
    found = lp_regression(a, b, p, sampling=sampling, sketch_size=300, tol=tol, backend=backend)
    wide, target = a.astype(float), b.astype(float)
    if sampling:
        rows = found.sampled_rows
        weights = found.weights.astype(float)
        wide, target = wide[rows] * weights[:, None], target[rows] * weights
    exact = lp_regression(wide, target, p, sampling=None, backend=backend)
    here = norm(target - wide @ found.x, p)
    assert exact.objective >= here * (1 - found.gap) * (1 - 1e-6)
    assert found.converged
    assert found.gap <= max(tol, 8 * 2.0**-23 * norm(target, p) / here)
