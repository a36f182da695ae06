"""quadric.sketch.sparse_regression: random supports, optimality of the lasso, what it refuses."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from quadric.errors import ConvergenceWarning
from quadric.sketch import sparse_regression
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, NAN, SIZES, assert_refused, shown

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def design(rng, kind, n, d):
    """Columns that are independent, share factors, are a chain, or are nearly of low rank."""
    E = rng.standard_normal((n, d))
    if kind == "factors":
        return E + 6 * rng.standard_normal((n, 4)) @ rng.standard_normal((4, d))
    if kind == "one":
        return 0.3 * E + rng.standard_normal((n, 1))
    if kind == "chain":
        for j in range(1, d):
            E[:, j] = 0.9 * E[:, j - 1] + np.sqrt(1 - 0.81) * E[:, j]
        return E
    if kind == "low rank":
        return rng.standard_normal((n, 15)) @ rng.standard_normal((15, d)) + 0.01 * E
    return E


KINDS = ("independent", "factors", "one", "chain", "low rank")


def problem(seed, kind, n=100, d=600, k=5, noise=0.0):
    rng = np.random.default_rng(seed)
    A = design(rng, kind, n, d)
    x = np.zeros(d)
    support = np.sort(rng.choice(d, k, replace=False))
    x[support] = rng.choice([-1, 1], k) * rng.uniform(1, 2, k)
    return A, x, support, A @ x + noise * rng.standard_normal(n)


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return sparse_regression(*args, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_random_supports_are_found(kind):
    """A sixth as many rows as columns, no noise: the support, and x to rounding."""
    for seed in range(4):
        A, x, support, b = problem(seed, kind)
        r = sparse_regression(A, b, 5)
        assert np.array_equal(r.support, support)
        # Least squares on five columns: their condition is below 1e4 even if nearly of low rank.
        assert_within(r.x, x, 1e4 * 100 * EPS["float64"])
        assert r.converged


@pytest.mark.parametrize("kind", KINDS)
def test_noise(kind):
    """The prediction error is that of least squares on the true support, k sigma^2 on the mean."""
    noise = 1e-3 if kind == "low rank" else 0.1
    for seed in range(3):
        A, x, support, b = problem(10 + seed, kind, noise=noise)
        r = sparse_regression(A, b, 5)
        assert np.array_equal(r.support, support)
        oracle = np.linalg.lstsq(A[:, support], b)[0]
        assert_within(r.x[support], oracle, 1e-9)
        assert np.linalg.norm(A @ (r.x - x)) <= noise * (np.sqrt(5) + 4)


def test_the_basis_is_what_finds_them():
    """With columns nearly of low rank the plain lasso does not find what the partial one does."""
    found = plain = 0
    for seed in range(6):
        A, _, support, b = problem(20 + seed, "low rank")
        found += np.array_equal(sparse_regression(A, b, 5).support, support)
        other = quiet(A, b, 5, basis=np.zeros(0, int))
        assert len(other.basis) == 0
        plain += np.array_equal(other.support, support)
    assert found == 6
    assert plain <= 2


def test_independent_columns_need_no_basis():
    for seed in range(4):
        A, _, _, b = problem(seed, "independent")
        assert len(sparse_regression(A, b, 5).basis) == 0


@pytest.mark.parametrize("kind", ["factors", "one"])
def test_the_basis_takes_what_columns_share(kind):
    """After it is projected out, correlations are near those of chance."""
    A, _, _, b = problem(0, kind)
    A /= np.linalg.norm(A, axis=0)
    basis = sparse_regression(A, b, 5).basis
    assert 1 <= len(basis) <= 25
    assert len(np.unique(basis)) == len(basis)
    Q = np.linalg.qr(A[:, basis])[0]
    Z = A - Q @ (Q.T @ A)
    before, after = (((M.T @ M) ** 2).sum() / (M**2).sum() ** 2 for M in (A, Z))
    assert before > 0.1
    assert after <= 1.5 * (1 / (100 - len(basis)) + 1 / 600)


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(10, 60),
    d=st.integers(1, 120),
    k=st.integers(1, 5),
    log_scale=st.integers(-3, 3),
    seed=draws.seeds,
)
def test_the_lasso_is_solved(kind, n, d, k, log_scale, seed):
    """Optimality: slopes at most the penalty, and equal to it where a coefficient is not 0."""
    rng = np.random.default_rng(seed)
    A = 10.0**log_scale * design(rng, kind, n, d)
    b = rng.standard_normal(n)
    r = sparse_regression(A, b, min(k, d), max_iter=200_000)
    assert r.converged
    # As it is stated: columns of unit norm, the basis projected out, and scaled again.
    M = A / np.linalg.norm(A, axis=0)
    Q = np.linalg.qr(M[:, r.basis])[0]
    Z = M - Q @ (Q.T @ M)
    scales = np.linalg.norm(Z, axis=0)
    left = scales > 1e-10
    left[r.basis] = False
    Z, target = Z[:, left] / scales[left], b - Q @ (Q.T @ b)
    w = (r.lasso * np.linalg.norm(A, axis=0))[left] * scales[left]
    if not left.any():
        return
    top = np.abs(Z.T @ target).max()
    slopes = Z.T @ (target - Z @ w)
    # 1e-6 of the penalty is the tolerance of the solver, the rest is rounding.
    slack = 2e-6 * r.penalty * top + 1e-9 * np.linalg.norm(b)
    assert np.abs(slopes).max() <= r.penalty * top + slack
    active = np.abs(w) > 0
    assert_within(slopes[active], np.sign(w[active]) * r.penalty * top, slack)
    # And least squares in the basis, given the rest.
    assert_within(M[:, r.basis].T @ (b - A @ r.lasso), 0, 1e-7 * np.linalg.norm(b))


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 50),
    d=st.integers(1, 80),
    k=st.integers(1, 6),
    dtype=draws.dtypes,
    layout=draws.layouts,
    seed=draws.seeds,
)
def test_the_answer_is_least_squares_on_its_support(kind, n, d, k, dtype, layout, seed):
    rng = np.random.default_rng(seed)
    A = draws.relayout(design(rng, kind, n, d).astype(dtype), layout)
    b = rng.standard_normal(n).astype(dtype)
    k = min(k, d, n - 1)
    before = draws.whole(A).tobytes(), b.tobytes()
    r = quiet(A, b, k)
    assert (draws.whole(A).tobytes(), b.tobytes()) == before
    assert r.x.dtype == r.residual.dtype == dtype
    assert r.x.shape == (d,)
    assert len(r.support) <= k
    assert np.array_equal(np.flatnonzero(r.x), r.support)
    eps = EPS[np.dtype(dtype).name]
    x, wide = r.x.astype(float), A.astype(float)
    size = np.linalg.norm(b) + np.linalg.norm(wide[:, r.support] * x[r.support])
    residual = b - wide @ x
    assert_within(r.residual, residual, 8 * np.sqrt(n) * eps * size)
    norms = np.linalg.norm(wide, axis=0)[r.support]
    slopes = wide[:, r.support].T @ r.residual.astype(float)
    assert_within(slopes, 0, 20 * np.sqrt(n) * eps * size * norms)
    assert r.residual_norm <= np.linalg.norm(b) * (1 + 8 * eps)


def test_units_of_columns_do_not_matter():
    A, _, _, b = problem(3, "factors", noise=0.05)
    units = np.exp(np.random.default_rng(0).normal(scale=3, size=A.shape[1]))
    plain, scaled = sparse_regression(A, b, 5), sparse_regression(A * units, b, 5)
    assert np.array_equal(plain.support, scaled.support)
    assert_within(scaled.x * units, plain.x, 1e-9)


def test_exchanges_only_help():
    for seed in range(5):
        A, _, _, b = problem(30 + seed, "chain", n=40, d=300, k=6, noise=0.3)
        without, with_ = (sparse_regression(A, b, 6, swaps=s) for s in (0, 12))
        assert with_.residual_norm <= without.residual_norm * (1 + 1e-12)


def test_a_basis_of_the_caller():
    A, _, support, b = problem(4, "factors")
    r = sparse_regression(A, b, 5, basis=np.array([7, 3]))
    assert r.basis.tolist() == [7, 3]
    assert np.array_equal(r.support, support)
    assert len(sparse_regression(A, b, 5, max_basis=2).basis) <= 2


def test_special_columns():
    """Zero columns, equal columns, and a right-hand side of zeros."""
    A, x, support, b = problem(5, "independent", n=30, d=50, k=2)
    outside = np.setdiff1d(np.arange(50), support)
    A[:, outside[0]] = 0.0
    A[:, outside[1]] = A[:, outside[2]]
    r = sparse_regression(A, b, 2)
    assert np.array_equal(r.support, support)
    assert_within(r.x, x, 1e-12)
    nothing = sparse_regression(A, np.zeros(30), 2)
    assert not nothing.x.any()
    assert nothing.residual_norm == 0
    assert not sparse_regression(np.zeros((5, 4)), np.ones(5), 2).x.any()


def test_history():
    A, _, _, b = problem(6, "factors", noise=0.1)
    r = sparse_regression(A, b, 5)
    assert r.history["penalty"][0] == 1
    assert r.history["nonzero"][0] == 0
    assert (np.diff(r.history["penalty"]) < 0).all()
    assert r.penalty in r.history["penalty"]
    assert r.residual_norm <= r.history["residual"].min() * (1 + 1e-9)


def test_sparse_matrices_and_other_arrays():
    A, _, _, b = problem(7, "independent", n=30, d=60, k=3)
    A[np.abs(A) < 0.5] = 0
    plain = sparse_regression(A, b, 3)
    assert np.array_equal(sparse_regression(sp.csc_array(A), b, 3).x, plain.x)
    torch = pytest.importorskip("torch")
    r = sparse_regression(torch.from_numpy(A), torch.from_numpy(b), 3)
    assert isinstance(r.x, torch.Tensor)
    assert np.array_equal(r.x.numpy(), plain.x)


def test_too_few_iterations():
    A, _, _, b = problem(8, "chain", noise=0.5)
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        assert not sparse_regression(A, b, 5, max_iter=1).converged


# ---- bad input -----------------------------------------------------------------------------------

GOOD_A, _, _, GOOD_B = problem(9, "independent", n=12, d=20, k=2)


def refuse(name, error=(ValueError, TypeError), **options):
    arguments = {"A": GOOD_A, "b": GOOD_B, "k": 2, **options}
    return assert_refused(
        name,
        lambda: sparse_regression(**arguments),
        error,
        lambda: (GOOD_A.tobytes(), GOOD_B.tobytes()),
    )


@pytest.mark.parametrize("kind", [k for k in ARRAYS if k != "one entry less"])
@pytest.mark.parametrize("name", ["A", "b"])
def test_arrays(name, kind):
    spoil, error = ARRAYS[kind]
    refuse(name, error, **{name: spoil(GOOD_A if name == "A" else GOOD_B)})


def test_shapes_and_types():
    refuse("A", ValueError, A=np.zeros((1, 3)), b=np.zeros(1))
    refuse("A", ValueError, A=np.zeros((3, 0)), b=np.zeros(3))
    refuse("b", ValueError, b=GOOD_B[:-1])
    refuse("b", ValueError, b=GOOD_B[:, None])
    refuse("b", TypeError, b=GOOD_B.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("k", v) for v in (*SIZES, 12)],
        *[("max_iter", v) for v in SIZES],
        *[("max_basis", v) for v in (-1, 1.5, 13)],
        *[("swaps", v) for v in (-1, 1.5)],
        *[("n_threads", v) for v in (0, 1.5)],
        ("basis", "all"),
        ("basis", None),
        ("basis", [0.5]),
        ("basis", [0, 20]),
        ("basis", [-1]),
        ("basis", [1, 1]),
        ("basis", [[1]]),
        ("basis", list(range(11))),
        ("basis", NAN),
    ],
    ids=shown,
)
def test_options(name, value):
    refuse(name, **{name: value})


@pytest.mark.parametrize("of_a", [-900, -600, 0, 600, 900])
@pytest.mark.parametrize("of_b", [-900, -600, 0, 600, 900])
def test_scale(of_a, of_b):
    A, _, _, b = problem(0, "independent", n=40, d=60, k=2, noise=0.1)
    usual = sparse_regression(A, b, 2)
    scaled = np.ldexp(A, of_a), np.ldexp(b, of_b)
    if abs(of_b - of_a) > 1000:
        with pytest.raises(ValueError, match="for an x that float64 can hold"):
            sparse_regression(*scaled, 2)
        return
    found = sparse_regression(*scaled, 2)
    np.testing.assert_array_equal(found.support, usual.support)
    size = np.abs(usual.x).max()
    assert_within(np.ldexp(found.x, of_a - of_b), usual.x, 1e-10 * size)
    assert_within(np.ldexp(found.residual_norm, -of_b), usual.residual_norm, 1e-10)
    assert_within(np.ldexp(found.history["residual"], -of_b), usual.history["residual"], 1e-10)
