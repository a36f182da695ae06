"""lp_sensitivities: convex problems against a linear program, and bounds that hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from quadric.sketch import leverage_scores, lewis_weights, lp_sensitivities
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, INF, NAN, POSITIVE, SIZES, assert_refused, shown
from tests.sketch.scores import matrix

POWERS = (1.0, 1.5, 3.0, 4.0, 8.0)


def by_linear_program(a: np.ndarray, i: int) -> float:
    """Return the l_1 sensitivity: ``min sum t``, ``-t <= A x <= t``, ``a_i^T x = 1``."""
    n, d = a.shape
    found = linprog(
        np.r_[np.zeros(d), np.ones(n)],
        A_ub=np.block([[a, -np.eye(n)], [-a, -np.eye(n)]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.r_[a[i], np.zeros(n)][None],
        b_eq=[1.0],
        bounds=[(None, None)] * d + [(0, None)] * n,
    )
    return 1 / found.fun


def test_one_against_a_linear_program(backend):
    """HiGHS is right to 1e-7."""
    a = matrix(25, 4, spread=1.0)
    found = lp_sensitivities(a, 1, backend=backend)
    assert_within(found, [by_linear_program(a, i) for i in range(25)], 1e-7)


@pytest.mark.parametrize("p", [1.5, 3.0, 6.0])
def test_against_a_general_minimizer(backend, p):
    """Gradients by hand; BFGS stops where the value is right to 1e-7."""
    a = matrix(20, 3, spread=1.0)
    found = lp_sensitivities(a, p, backend=backend)
    for i in range(0, 20, 4):
        start = a[i] / (a[i] @ a[i])
        free = np.linalg.svd(a[i : i + 1])[2][1:].T

        def f(z, start=start, free=free):
            r = a @ (start + free @ z)
            slope = p * np.sign(r) * np.abs(r) ** (p - 1)
            return (np.abs(r) ** p).sum(), free.T @ (a.T @ slope)

        least = minimize(f, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-10})
        assert_within(found[i], 1 / least.fun, 1e-7)


@pytest.mark.parametrize("p", [*POWERS, 2.0])
def test_matrices_with_a_formula(backend, p):
    a = np.array([[3.0], [-1.0], [0.0], [0.5], [2.0]])
    expected = np.abs(a[:, 0]) ** p / (np.abs(a) ** p).sum()
    for method in ("exact", "bound"):
        # One column: the bound is tight at the Lewis weights, which it is given to a tenth.
        slack = 1e-9 if method == "exact" or p == 2 else 0.25 * p
        found = lp_sensitivities(a, p, method=method, backend=backend)
        assert (found >= expected - 1e-9).all()
        assert_within(found, expected, slack)
        assert_within(lp_sensitivities(np.eye(5), p, method=method, backend=backend), 1.0, 1e-12)
        assert not lp_sensitivities(np.zeros((9, 2)), p, method=method, backend=backend).any()


def test_two_is_leverage(backend):
    a = matrix(60, 4, spread=1.0)
    expected = leverage_scores(a, backend=backend)
    for method in ("auto", "exact", "bound"):
        found = lp_sensitivities(a, 2, method=method, backend=backend)
        np.testing.assert_array_equal(found, expected)


@given(
    p=st.sampled_from(POWERS) | st.floats(1, 8),
    seed=draws.seeds,
    spread=st.sampled_from((0.0, 1.0, 2.0)),
    dtype=draws.dtypes,
)
def test_bounds_hold(backend, p, seed, spread, dtype):
    a = matrix(30, 3, spread=spread, dtype=dtype, seed=seed)
    before = a.tobytes()
    exact = lp_sensitivities(a, p, method="exact", backend=backend)
    bound = lp_sensitivities(a, p, method="bound", backend=backend)
    assert a.tobytes() == before
    assert exact.dtype == bound.dtype == a.dtype
    # The rounding of A itself to an orthonormal basis, p times as much in a p-th power.
    slack = 1e-8 + 256 * p * float(np.finfo(dtype).eps)
    assert (exact <= bound * (1 + slack) + slack).all()
    assert exact.min() >= 0
    assert bound.max() <= 1
    assert exact.sum(dtype=float) <= 3 ** max(1.0, p / 2) * (1 + 30 * slack)
    # No vector has a larger share: A's own rows, columns of the identity, and chance.
    x = np.random.default_rng(seed).standard_normal((3, 200))
    share = np.abs(a.astype(float) @ x) ** p
    assert (share / share.sum(axis=0) <= exact[:, None] * (1 + slack) + slack).all()


@pytest.mark.parametrize("p", POWERS)
def test_bounds_are_close_to_lewis_weights(backend, p):
    """At most half more than ``d^max(0, p/2 - 1) w`` gives, from 8 iterations."""
    a = matrix(3000, 5, spread=1.0)
    w = lewis_weights(a, p, backend=backend)
    found = lp_sensitivities(a, p, backend=backend)
    assert found.sum() <= 1.5 * np.minimum(5 ** max(0.0, p / 2 - 1) * w, 1).sum()


@pytest.mark.parametrize("p", [1.0, 4.0])
@pytest.mark.parametrize("method", ["exact", "bound"])
def test_the_basis_does_not_matter(backend, p, method):
    a = matrix(40, 4, spread=1.0)
    change = matrix(4, 4, log_cond=2, seed=1)
    found = lp_sensitivities(a @ change, p, method=method, backend=backend)
    assert_within(found, lp_sensitivities(a, p, method=method, backend=backend), 1e-7)


@pytest.mark.parametrize("method", ["exact", "bound"])
def test_threads_change_nothing(backend, method):
    a = matrix(40 if method == "exact" else 20_000, 4)
    one, two = (
        lp_sensitivities(a, 1.5, method=method, n_threads=n, backend=backend) for n in (1, 2)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("method", ["exact", "bound"])
def test_bad_matrices(backend, kind, method):
    if kind == "one entry less":
        return
    spoil, error = ARRAYS[kind]
    a = matrix(12, 3)
    for p in (1.5, 2.0):
        assert_refused(
            "A",
            lambda p=p: lp_sensitivities(spoil(a), p, method=method, backend=backend),
            error,
            a.tobytes,
        )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("p", v) for v in (0.999, 0, -1, NAN, INF, None, "two", "2", True)),
        *(("method", v) for v in ("Exact", None, 1)),
        *(("tol", v) for v in POSITIVE),
        *(("max_iter", v) for v in SIZES),
        ("seed", -1),
        *EXECUTION,
    ],
    ids=shown,
)
def test_bad_options(backend, option, value):
    options = {"p": 1.0, "backend": backend, option: value}
    assert_refused(option, lambda: lp_sensitivities(matrix(30, 3), **options))
