"""quadric.sketch.lstsq: errors of every method, on easy and on hard problems."""

import warnings

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st
from scipy import sparse

from quadric.sketch import cost_model, lstsq
from tests import strategies as draws
from tests.bounds import assert_within
from tests.sketch.lstsq_problems import (
    FIXTURES,
    FORWARD,
    METHODS,
    STABLE,
    LeastSquares,
    U,
    fixture,
    karlson_walden,
    make,
    orthonormal,
    true_residual,
    wedin,
)

# The solvers stop at a backward error of u and accept 4 u, with columns scaled and seen through a
# sketch; the latter is worth a factor below 2.
BACKWARD = 8
# What the problem itself is off: A, b and r are rounded products of orthonormal matrices.
ROUNDED = 16
# Forward stable methods: their steps end at u (|A| |x| + 0.04 cond |r|), and rounding of a gradient
# by a few u |A| |r| sqrt(d) is amplified as one of A would be.
FORWARD_ERROR = 100


def check(p, result, method, rank=None, cond=None):
    """Assert the bounds that the method promises; return the ratio that came closest."""
    u, n = p.u, len(p.b)
    d = p.A.shape[1]
    assert result.converged
    assert result.rank == (d if rank is None else rank)
    assert result.x.dtype == result.residual.dtype == p.A.dtype
    exact = true_residual(p.A, result.x, p.b)
    sums = np.abs(p.A).astype(float) @ np.abs(result.x) + np.abs(p.b)
    assert_within(result.residual, exact, (d + 4) * u * sums, "residual")
    norm = np.linalg.norm(result.residual.astype(float))
    assert_within(result.residual_norm, norm, n * U["float64"] * norm)
    worst = 0.0
    if method == "sketch":
        # |S y| / |y| is within 1 +- 1/3 on the range of [A, b], so the residual within (4/3)/(2/3).
        least = np.linalg.norm(p.r)
        assert result.residual_norm <= 2 * least + 40 * d * u * np.linalg.norm(p.b)
        return 0.0
    if method in STABLE:
        found = karlson_walden(p.A, p.b, result.x, rank=rank)
        worst = assert_within(found, 0, BACKWARD * u, "backward error")
    eta = (BACKWARD + ROUNDED if method in STABLE else FORWARD_ERROR) * u
    of_x, of_r = wedin(p.A, p.x, p.b, p.r, eta, rank)
    if cond is None or cond * eta * np.sqrt(d) < 0.2:  # else first order says nothing of x
        assert_within(np.linalg.norm(result.x - p.x), 0, of_x, "error of x")
    assert_within(np.linalg.norm(exact - p.r), 0, of_r, "error of the residual")
    return worst


# ---- fixtures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FIXTURES)
def test_fixtures(backend, name, method):
    p, rank = fixture(name)
    result = lstsq(p.A, p.b, method=method, minimum_norm=True, backend=backend)
    check(p, result, method, rank)
    if name == "tall" and method in STABLE:
        # Consistent: what is left is rounding of A x, whose sums have d terms.
        assert result.residual_norm <= 30 * p.u * np.linalg.norm(p.b)


CONDS = (1e2, 1e6, 1e10, 1e14)
RESIDUALS = (1e-12, 1e-6, 1e-3, 1.0)


@pytest.mark.parametrize("method", [*STABLE, *FORWARD])
@pytest.mark.parametrize("cond", CONDS)
@pytest.mark.parametrize("rho", RESIDUALS)
def test_any_condition_any_residual(backend, cond, rho, method):
    p = make(1500, 30, cond=cond, rho=rho)
    check(p, lstsq(p.A, p.b, method=method, backend=backend), method, cond=cond)


@pytest.mark.parametrize("method", STABLE)
def test_changes_of_a_alone_explain_the_answer(backend, method):
    p = make(2000, 25, cond=1e9, rho=1e-2)
    x = lstsq(p.A, p.b, method=method, backend=backend).x
    assert karlson_walden(p.A, p.b, x, theta=np.inf) <= BACKWARD * p.u


def hard(kind):
    """Return a matrix (2000, 20) that sketches and scaling find hard."""
    n, d = 2000, 20
    rng = np.random.default_rng(3)
    A = make(n, d, cond=1e4).A
    if kind == "graded rows":
        return np.logspace(0, -10, n)[:, None] * A
    if kind == "coherent rows":  # a fifth of the columns live in one row each, nearly
        A[:4] = 0
        A[np.arange(4), np.arange(4)] = 1e6
        return A
    if kind == "graded columns":
        return A * np.logspace(0, -12, d)
    if kind == "few rows count":
        A *= 1e-9
        A[rng.choice(n, 40, replace=False)] += rng.standard_normal((40, d))
        return A
    return rng.standard_cauchy((n, d))


@pytest.mark.parametrize("method", STABLE)
@pytest.mark.parametrize(
    "kind", ["graded rows", "coherent rows", "graded columns", "few rows count", "heavy tails"]
)
@pytest.mark.parametrize("rho", [1e-8, 1.0])
def test_hard_matrices(backend, kind, rho, method):
    A = hard(kind)
    rng = np.random.default_rng(0)
    b = A @ (rng.standard_normal(20) / np.linalg.norm(A, axis=0)) + rho * rng.standard_normal(2000)
    result = lstsq(A, b, method=method, backend=backend)
    assert result.converged
    assert_within(karlson_walden(A, b, result.x), 0, BACKWARD * U["float64"], "backward error")
    # Each column is as good relative to its own norm: no column is lost behind a large one.
    norms = np.linalg.norm(A, axis=0)
    scaled = karlson_walden(A / norms, b, result.x * norms)
    assert_within(scaled, 0, BACKWARD * U["float64"], "backward error with scaled columns")


# ---- anything ------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 3000),
    d=st.integers(1, 24),
    dtype=draws.dtypes,
    log_cond=st.integers(0, 13),
    log_rho=st.integers(-12, 1),
    log_scales=st.tuples(st.integers(-12, 12), st.integers(-12, 12)),
    kind=st.sampled_from(("exponential", "step", "flat")),
    method=st.sampled_from((*STABLE, *FORWARD)),
    layout=draws.layouts,
    seed=draws.seeds,
)
def test_bounds(backend, n, d, dtype, log_cond, log_rho, log_scales, kind, method, layout, seed):
    """Backward and forward errors of c u, whatever the layout; nothing given is changed."""
    n, scales = max(n, d), (10.0 ** log_scales[0], 10.0 ** log_scales[1])
    if dtype == np.float32:
        log_cond, log_rho = min(log_cond, 4), max(log_rho, -5)
    made = make(n, d, cond=10.0**log_cond, rho=10.0**log_rho, kind=kind, seed=seed)
    A, b = (made.A * scales[0]).astype(dtype), (made.b * scales[1]).astype(dtype)
    shown, side = draws.relayout(A, layout), draws.relayout(b, layout)
    before = draws.whole(shown).tobytes(), draws.whole(side).tobytes()
    result = lstsq(shown, side, method=method, seed=seed, backend=backend)
    assert (draws.whole(shown).tobytes(), draws.whole(side).tobytes()) == before
    p = LeastSquares(A, b, made.x * scales[1] / scales[0], made.r * scales[1])
    target(check(p, result, method, cond=10.0**log_cond))


def test_no_part_of_the_answer_depends_on_the_layout(backend):
    p = make(14_000, 20, cond=1e6)
    first = lstsq(p.A, p.b, backend=backend)
    for layout in draws.LAYOUTS:
        other = lstsq(draws.relayout(p.A, layout), p.b, backend=backend)
        of_x, _ = wedin(p.A, p.x, p.b, p.r, 2 * BACKWARD * p.u)
        assert_within(np.linalg.norm(first.x - other.x), 0, of_x)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_bits(backend, method):
    p = make(14_000, 20, cond=1e6)
    first, second = (lstsq(p.A, p.b, method=method, backend=backend) for _ in range(2))
    assert first.x.tobytes() == second.x.tobytes()
    assert first.residual.tobytes() == second.residual.tobytes()
    other = lstsq(p.A, p.b, method=method, seed=1, backend=backend)
    assert other.x.tobytes() != first.x.tobytes()
    drawn = [
        lstsq(p.A, p.b, method=method, seed=np.random.default_rng(7), backend=backend).x
        for _ in range(2)
    ]
    assert drawn[0].tobytes() == drawn[1].tobytes()


@pytest.mark.parametrize("method", STABLE)
def test_threads_change_rounding_only(backend, method):
    p = make(5000, 40, cond=1e6)
    results = [lstsq(p.A, p.b, method=method, n_threads=t, backend=backend) for t in (1, 2, 3)]
    of_x, _ = wedin(p.A, p.x, p.b, p.r, 2 * BACKWARD * p.u)
    for other in results[1:]:
        assert_within(np.linalg.norm(results[0].x - other.x), 0, of_x)


@pytest.mark.parametrize("method", [*STABLE, *FORWARD])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_backends_agree(backend, method, dtype):
    """Signs are the same everywhere, sums are not: the answers differ by backward errors."""
    p = make(3000, 25, cond=1e3, dtype=dtype)
    result = lstsq(p.A, p.b, method=method, backend=backend)
    expected = lstsq(p.A, p.b, method=method, backend="numba")
    eta = 2 * (BACKWARD if method in STABLE else FORWARD_ERROR) * p.u
    of_x, of_r = wedin(p.A, p.x, p.b, p.r, eta)
    assert_within(np.linalg.norm(result.x - expected.x), 0, of_x)
    assert_within(np.linalg.norm(result.residual - expected.residual), 0, of_r + 60 * p.u)
    assert result.method == expected.method


def test_scales_at_the_ends_of_the_range(backend):
    """Squares of such numbers over- or underflow; the answer is that of the middle, scaled."""
    p = make(2000, 20, cond=1e4)
    middle = lstsq(p.A, p.b, backend=backend)
    of_x, _ = wedin(p.A, p.x, p.b, p.r, 2 * BACKWARD * p.u)
    for scale_a, scale_b in ((2.0**-660, 1.0), (2.0**660, 1.0), (1.0, 2.0**-660), (1.0, 2.0**660)):
        result = lstsq(p.A * scale_a, p.b * scale_b, backend=backend)
        back = result.x / scale_b * scale_a
        assert_within(np.linalg.norm(back - middle.x), 0, of_x)
        assert result.backward_error < BACKWARD * p.u


def test_a_right_hand_side_of_zeros(backend):
    p = make(2000, 20)
    for method in METHODS:
        result = lstsq(p.A, np.zeros(2000), method=method, backend=backend)
        assert result.converged
        assert not result.x.any()
        assert result.backward_error == 0


# ---- what the result says ------------------------------------------------------------------------


def test_reads_of_a_are_few(backend):
    """The figures of the docstring: they are what a call costs."""
    p = make(20_000, 40, cond=1e8, rho=1e-3)
    passes = {m: lstsq(p.A, p.b, method=m, backend=backend).passes for m in METHODS}
    assert passes["sketch"] == 2
    assert passes["gram"] <= 6
    assert passes["spir"] <= 30
    assert passes["fossils"] <= 36
    assert passes["precondition"] <= 25
    assert passes["iterative"] <= 30


def test_auto_takes_the_fastest(backend):
    def method(n, d, **words):
        p = make(n, d)
        return lstsq(p.A, p.b, **words, backend=backend).method

    assert method(100, 5) == "direct"
    assert method(1000, 200) == "direct"
    assert method(10_000, 40) == "gram"
    assert method(100, 5, sketch_size=50) == "gram"
    # Many columns make the products dear, many right-hand sides the iterations.
    assert cost_model.fastest(1_000_000, 2000, 1) == "spir"
    assert cost_model.fastest(1_000_000, 2000, 500) == "gram"


def test_what_the_result_says(backend):
    p = make(4000, 30, cond=1e5)
    for method in METHODS:
        r = lstsq(p.A, p.b, method=method, backend=backend)
        history = r.history
        assert (np.diff(history["passes"]) > 0).all()
        assert (np.diff(history["iterations"]) >= 0).all()
        assert (np.diff(history["seconds"]) >= 0).all()
        assert history["passes"][-1] == r.passes
        assert history["iterations"][-1] == r.iterations
        # Of scaled columns; the estimate is from inside, and the sketch moves it by a third.
        scaled = p.A / np.linalg.norm(p.A, axis=0)
        assert 0.3 < r.condition / np.linalg.cond(scaled) < 3
        assert_within(r.singular_values / np.linalg.svd(p.A, compute_uv=False), 1, 0.67)
        exact = karlson_walden(p.A, p.b, r.x)
        # Both are rounding where the solver has done its work.
        assert exact / 2 - p.u <= r.backward_error <= 2 * exact + p.u
        assert method in repr(r) or method == "auto"


def test_gram_gives_the_factor_of_a_itself(backend):
    p = make(4000, 30, cond=1e10)
    R = lstsq(p.A, p.b, method="gram", backend=backend).R
    Q = p.A @ np.linalg.inv(R)
    # cond u for the products with the inverses.
    assert_within(Q.T @ Q, np.eye(30), 1e10 * 30 * p.u)


def test_tol_and_max_iter(backend):
    p = make(4000, 30, cond=1e5)
    for method in ("spir", "fossils", "precondition", "iterative"):
        full = lstsq(p.A, p.b, method=method, backend=backend)
        rough = lstsq(p.A, p.b, method=method, tol=1e-10, backend=backend)
        assert rough.converged
        assert rough.iterations < full.iterations
        assert karlson_walden(p.A, p.b, rough.x) < 2e-10
        with pytest.warns(match="has not converged: after 2 iterations") as caught:
            few = lstsq(p.A, p.b, method=method, max_iter=2, backend=backend)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert not few.converged
        assert few.iterations == 2


def test_the_default_warns_of_nothing(backend):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A = orthonormal(np.random.default_rng(0), 3000, 12)
        assert lstsq(A, A[:, 0], backend=backend).converged


@pytest.mark.parametrize("stored", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize(("of_a", "of_b"), [(665, 0), (-665, 0), (665, 665), (-900, -900)])
def test_scale_of_wide_matrices(backend, stored, of_a, of_b):
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((6, 300)), rng.standard_normal(6)
    usual = lstsq(stored(A), b, backend=backend)
    found = lstsq(stored(np.ldexp(A, of_a)), np.ldexp(b, of_b), backend=backend)
    assert found.converged
    assert_within(np.ldexp(found.x, of_a - of_b), usual.x, 1e-13)
    assert_within(np.ldexp(found.R, -of_a), usual.R, 1e-11)


@pytest.mark.parametrize("shape", [(6, 300), (300, 6)])
@pytest.mark.parametrize("size", [-600, 600])
def test_answers_that_no_float_holds(backend, shape, size):
    A = np.random.default_rng(0).standard_normal(shape)
    with pytest.raises(ValueError, match="with b a solution, that float64 can hold"):
        lstsq(np.ldexp(A, size), np.ldexp(A[:, 0], -size), backend=backend)
