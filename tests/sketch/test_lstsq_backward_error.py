"""quadric.sketch.lstsq_backward_error: against the definition, through a sketch, its algebra."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from quadric.sketch import lstsq_backward_error, sparse_sign
from tests import strategies as draws
from tests.bounds import assert_within
from tests.sketch.lstsq_problems import U, karlson_walden, make


def definition(A, b, x, theta):
    """Return the least |[dA, theta |A| / |b| db]| / |A| for which x solves exactly.

    Waldén, Karlson and Sun: the smaller of phi and the least singular value of
    ``[A, phi (I - r r^T / |r|^2)]``. Good for backward errors far above u only.
    """
    r = b - A @ x
    size, frobenius = np.linalg.norm(r), np.linalg.norm(A)
    phi = size / np.hypot(np.linalg.norm(b) / (theta * frobenius), np.linalg.norm(x))
    projector = np.eye(len(b)) - np.outer(r, r) / size**2
    least = np.linalg.svd(np.c_[A, phi * projector], compute_uv=False)[len(b) - 1]
    return min(phi, least) / frobenius


@given(
    n=st.integers(2, 40),
    d=st.integers(1, 6),
    log_cond=st.integers(0, 5),
    log_rho=st.integers(-5, 2),
    log_error=st.integers(-7, 0),
    log_theta=st.sampled_from((-3, 0, 3, np.inf)),
    seed=draws.seeds,
)
def test_the_definition(backend, n, d, log_cond, log_rho, log_error, log_theta, seed):
    """At most a factor sqrt(2) away (Gratton, Jiránek, Titley-Peloquin)."""
    p = make(max(n, d + 2), d, cond=10.0**log_cond, rho=10.0**log_rho, seed=seed)
    rng = np.random.default_rng(seed)
    x = p.x + 10.0**log_error * rng.standard_normal(d)
    theta = 10.0**log_theta
    found = lstsq_backward_error(p.A, p.b, x, theta=theta, exact=True, backend=backend)
    exact = definition(p.A, p.b, x, theta)
    slack = 40 * U["float64"]  # of the least singular value, and of the gradient
    assert found <= np.sqrt(2) * exact * (1 + 1e-6) + slack
    assert exact <= np.sqrt(2) * found * (1 + 1e-6) + slack


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("cond", [1e2, 1e8, 1e14])
@pytest.mark.parametrize("error", [1e-12, 1e-3])
def test_large_matrices(backend, exact, cond, error):
    p = make(4000, 25, cond=cond, rho=1e-4)
    x = p.x + error * np.random.default_rng(0).standard_normal(25)
    for theta in (1.0, np.inf):
        found = lstsq_backward_error(p.A, p.b, x, theta=theta, exact=exact, backend=backend)
        expected = karlson_walden(p.A, p.b, x, theta)
        # Through a sketch singular values are within 1 +- 1/3; the gradient has errors of its own.
        # With A's own factor, those of small singular values are right to cond u.
        bound = 0.5 if not exact else min(100 * cond * U["float64"], 0.5) + 1e-10
        assert_within(found, expected, bound * expected + 8 * U["float64"])


@pytest.mark.parametrize("k", [1, 2, 8])
def test_many_right_hand_sides(backend, k):
    p = make(4000, 20, k=max(k, 2), cond=1e5)
    b = p.b[:, :k] * np.logspace(0, -9, k)
    x = p.x[:, :k] * np.logspace(0, -9, k) * (1 + 1e-6)
    together = lstsq_backward_error(p.A, b, x, backend=backend)
    assert together.shape == (k,)
    for c in range(k):
        alone = lstsq_backward_error(p.A, b[:, c], x[:, c], backend=backend)
        assert isinstance(alone, float)
        # The square roots come from two factorizations.
        assert_within(together[c], alone, 1e-6 * alone + 4 * U["float64"])


def test_algebra(backend):
    """Scales of A and b, an operator of one's own, sparse A, float32, layouts."""
    p = make(4000, 20, cond=1e5)
    x = p.x * (1 + 1e-5)
    found = lstsq_backward_error(p.A, p.b, x, backend=backend)
    for a, b in ((2.0**500, 1.0), (1.0, 2.0**-300), (2.0**-400, 2.0**30)):
        scaled = lstsq_backward_error(p.A * a, p.b * b, x * b / a, backend=backend)
        assert_within(scaled, found, 1e-10 * found)
    sparse = lstsq_backward_error(sp.csr_array(p.A), p.b, x, backend=backend)
    assert_within(sparse, found, 1e-10 * found)
    S = sparse_sign(400, 4000, seed=9, backend=backend)
    assert_within(lstsq_backward_error(p.A, p.b, x, operator=S, backend=backend), found, found / 2)
    single = [v.astype(np.float32) for v in (p.A, p.b, x)]
    assert_within(lstsq_backward_error(*single, backend=backend), found, found / 2)
    shown = draws.relayout(p.A, "negative")
    assert_within(lstsq_backward_error(shown, p.b, x, backend=backend), found, 1e-10 * found)


def test_zeros(backend):
    p = make(4000, 20)
    assert lstsq_backward_error(p.A, np.zeros(4000), np.zeros(20), backend=backend) == 0
    assert lstsq_backward_error(np.zeros((4000, 20)), p.b, p.x, backend=backend) == 0
    for theta in (1.0, np.inf):
        at_zero = lstsq_backward_error(p.A, p.b, np.zeros(20), theta=theta, backend=backend)
        assert_within(at_zero, karlson_walden(p.A, p.b, np.zeros(20), theta), 0.5 * at_zero)


def test_rank_deficient(backend):
    p = make(4000, 20)
    p.A[:, 4] = p.A[:, 7]
    best = np.linalg.lstsq(p.A, p.b, rcond=1e-10)[0]
    for exact in (False, True):
        assert lstsq_backward_error(p.A, p.b, best, exact=exact, backend=backend) < 1e-14
        off = lstsq_backward_error(p.A, p.b, best * 1.001, exact=exact, backend=backend)
        assert_within(off, karlson_walden(p.A, p.b, best * 1.001), off / 2)


@pytest.mark.parametrize("scales", [(0, -565), (0, 565), (665, 665), (-665, -665), (665, 0)])
@pytest.mark.parametrize("ridge", [0.0, 0.25])
def test_scale(backend, scales, ridge):
    """A and sqrt(ridge) in one unit and b in another change nothing."""
    of_a, of_b = scales
    p = make(300, 6, cond=1e2, rho=1e-2, seed=1)
    if ridge and abs(of_a) > 500:
        pytest.skip("the ridge is no number then")
    b = np.column_stack((p.b, p.b, p.b, np.zeros(300)))
    x = np.column_stack((1.01 * p.x, 0 * p.x, 50 * p.x, p.x))
    usual = lstsq_backward_error(p.A, b, x, ridge=ridge, backend=backend)
    A = np.ldexp(p.A, of_a)
    b, x = np.ldexp(b, of_b), np.ldexp(x, of_b - of_a)
    found = lstsq_backward_error(A, b, x, ridge=ridge, backend=backend)
    assert usual.min() > 1e-5
    assert_within(found, usual, 1e-10 * usual)


def test_columns_of_all_sizes(backend):
    """They are judged by the largest of them."""
    p = make(300, 4, cond=2.0, rho=1.0, seed=1)
    A = p.A * np.array([1e-200, 1e-90, 1e90, 1e200])
    for x in (np.zeros(4), np.full(4, 1e-200)):
        found = lstsq_backward_error(A, p.b, x, backend=backend)
        largest = lstsq_backward_error(A[:, 3:] / 1e200, p.b, x[3:] * 1e200, backend=backend)
        assert found >= largest / 3 > 0.001
