"""factorize: one Cholesky factorization, in any order, and what happens when it breaks down."""

import pickle

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

import quadric as qd
from quadric import sweep
from tests import strategies as draws
from tests.sweep import oracle


def assert_factors(factor, hessian, damping):
    """Assert |R R^T - H| <= 2 (n + 2) eps |R| |R|^T for the damped H in the order of the factor.

    Higham, Accuracy and Stability of Numerical Algorithms, theorem 10.3, for any order of the
    operations; eps is twice the unit roundoff, and the two more are for the damped diagonal.
    """
    damped, dead = oracle.damped(hessian, damping)
    np.testing.assert_array_equal(factor.dead, dead)
    expected = damped[np.ix_(factor.order, factor.order)]
    r = factor.R.astype(np.float64)
    np.testing.assert_array_equal(r, np.triu(r))
    assert (np.diag(r) > 0).all()
    n = len(r)
    bound = 2 * (n + 2) * np.finfo(factor.dtype).eps * (np.abs(r) @ np.abs(r).T)
    error = np.abs(r @ r.T - expected)
    assert (error <= bound).all()
    return float(np.max(error / np.maximum(bound, np.finfo(float).tiny)))


@given(layer=draws.layers(max_columns=140), layout=draws.layouts)
def test_is_a_factor_of_the_damped_hessian(backend, layer, layout):
    h = draws.relayout(layer.hessian, layout)
    before = draws.whole(h).tobytes()
    factor = sweep.factorize(h, order=layer.order, backend=backend)
    assert factor.dtype == factor.R.dtype == layer.dtype
    assert factor.n == layer.shape[1]
    np.testing.assert_array_equal(factor.order, layer.order)
    assert factor.order.dtype == np.int64
    assert factor.damping == 0.01
    assert not factor.report.fallback
    assert factor.report.dead == factor.dead.sum()
    (attempt,) = factor.report.attempts
    assert (attempt.dtype, attempt.damping, attempt.pivot) == (layer.dtype.name, 0.01, None)
    assert attempt.seconds >= 0
    target(assert_factors(factor, layer.hessian, 0.01))
    assert draws.whole(h).tobytes() == before


@given(layer=draws.layers(max_columns=140), order=st.sampled_from(("C", "F")))
def test_overwriting_gives_the_same_bits(backend, layer, order):
    kept = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    h = np.array(layer.hessian, order=order)
    factor = sweep.factorize(h, order=layer.order, overwrite_h=True, backend=backend)
    np.testing.assert_array_equal(factor.R, kept.R)
    np.testing.assert_array_equal(factor.dead, kept.dead)
    assert np.shares_memory(factor.R, h)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("n", [1, 2, 47, 48, 49, 128, 200])
def test_integer_factors_are_exact(backend, dtype, n):
    """R with a unit diagonal and few small integers comes back bit by bit."""
    rng = np.random.default_rng(n)
    r = np.eye(n) + np.triu(rng.integers(-1, 2, (n, n)) * (rng.random((n, n)) < 2 / n), 1)
    order = rng.permutation(n)
    back = np.argsort(order)
    h = (r @ r.T)[np.ix_(back, back)].astype(dtype)
    factor = sweep.factorize(h, damping=0.0, order=order, backend=backend)
    np.testing.assert_array_equal(factor.R, r)


@given(layer=draws.layers(dead=False), log4=st.integers(-10, 10))
def test_scaling_is_exact(backend, layer, log4):
    plain = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    c = layer.dtype.type(4.0**log4)
    scaled = sweep.factorize(c * layer.hessian, order=layer.order, backend=backend)
    np.testing.assert_array_equal(scaled.R, layer.dtype.type(2.0**log4) * plain.R)


@given(layer=draws.layers())
def test_activation_takes_the_largest_diagonal_first(backend, layer):
    h = layer.hessian
    factor = sweep.factorize(h, order="activation", backend=backend)
    np.testing.assert_array_equal(factor.order, np.argsort(-np.diag(h), kind="stable"))
    explicit = sweep.factorize(h, order=factor.order, backend=backend)
    np.testing.assert_array_equal(factor.R, explicit.R)


@pytest.mark.parametrize(
    "order",
    [[2, 0, 1], (2, 0, 1), np.array([2, 0, 1], np.int32), np.array([2, 0, 1], np.uint8)],
    ids=["list", "tuple", "int32", "uint8"],
)
def test_kinds_of_orders(backend, order):
    h = np.array([[3.0, 1, 0], [1, 2, 1], [0, 1, 4]])
    factor = sweep.factorize(h, order=order, backend=backend)
    assert factor.order.tolist() == [2, 0, 1]
    assert_factors(factor, h, 0.01)


def test_a_slight_asymmetry_is_rounding(backend):
    h = np.array([[2.0, 1.0], [1.0 + 1e-12, 2.0]])
    assert_factors(sweep.factorize((h + h.T) / 2, backend=backend), (h + h.T) / 2, 0.01)
    sweep.factorize(h, backend=backend)
    with pytest.raises(ValueError, match=r"^H must be symmetric"):
        sweep.factorize(np.array([[2.0, 1.0], [1.001, 2.0]]), backend=backend)


# ---- breakdown -----------------------------------------------------------------------------------


def indefinite(eigenvalue, n=20, seed=0):
    """Return a matrix with that smallest eigenvalue, the others about 1."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = np.linspace(1.0, 1.5, n)
    values[0] = eigenvalue
    h = (basis * values) @ basis.T
    return (h + h.T) / 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_more_damping_rescues(backend, dtype, overwrite):
    h = indefinite(-0.05).astype(dtype)
    work = h.copy()
    factor = sweep.factorize(work, overwrite_h=overwrite, backend=backend)
    attempts = [(a.dtype, a.damping, a.pivot is None) for a in factor.report.attempts]
    assert attempts == [(dtype, 0.01, False), (dtype, 0.1, True)]
    assert factor.damping == 0.1
    assert not factor.report.fallback
    assert_factors(factor, h, 0.1)  # of the original matrix: nothing is left of the failed attempt
    if not overwrite:
        np.testing.assert_array_equal(work, h)


def test_without_damping_the_ladder_starts_small(backend):
    factor = sweep.factorize(indefinite(-5e-4), damping=0.0, backend=backend)
    dampings = [a.damping for a in factor.report.attempts]
    assert dampings[:2] == [0.0, 1e-4]
    assert dampings[-1] == pytest.approx(1e-3, rel=1e-12)
    assert_factors(factor, indefinite(-5e-4), factor.damping)


def test_float64_rescues_float32(backend):
    """Blocks of Fibonacci numbers, F(k+1) F(k-1) - F(k)^2 = 1: float32 loses the small pivots."""
    fibonacci = [1, 1]
    while fibonacci[-1] < 2**23:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    h = np.zeros((16, 16))
    for block, k in enumerate(range(15, 31, 2)):  # exact in float32
        at = slice(2 * block, 2 * block + 2)
        h[at, at] = [[fibonacci[k + 1], fibonacci[k]], [fibonacci[k], fibonacci[k - 1]]]
    factor = sweep.factorize(h.astype(np.float32), damping=0.0, retries=0, backend=backend)
    assert [a.dtype for a in factor.report.attempts] == ["float32", "float64"]
    assert factor.report.attempts[0].pivot is not None
    assert factor.report.attempts[1].pivot is None
    assert factor.dtype == np.float32
    assert factor.damping == 0.0
    # Factored in float64 and rounded once: |R R^T - H| <= 2 eps32 |R| |R|^T.
    r = factor.R.astype(np.float64)
    bound = 2 * np.finfo(np.float32).eps * np.abs(r) @ np.abs(r).T
    assert (np.abs(r @ r.T - h) <= bound).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["natural", "random"])
def test_final_failure_names_the_pivot(backend, dtype, order):
    """Columns 3 and 11 contradict each other: of the two, the sweep's first one breaks down."""
    h = np.eye(20)
    h[3, 11] = h[11, 3] = 50.0
    perm = np.arange(20) if order == "natural" else np.random.default_rng(2).permutation(20)
    first = min((3, 11), key=lambda j: perm.tolist().index(j))
    work = h.astype(dtype)
    with pytest.raises(qd.LinAlgError, match=rf"\bcolumn {first}\b") as caught:
        sweep.factorize(work, order=perm, backend=backend)
    assert isinstance(caught.value, np.linalg.LinAlgError)
    assert caught.value.pivot == first
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(work, h)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.pivot) == (str(caught.value), first)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fallback_on_request_only(backend, dtype):
    h = np.diag(np.linspace(1, 4, 12)).astype(dtype)
    h[3, 5] = h[5, 3] = 50.0
    factor = sweep.factorize(h, on_failure="round_to_nearest", order="activation", backend=backend)
    report = factor.report
    assert report.fallback
    # float32: 0.01, 0.1, 1, then the same in float64; never above 1.
    expected = [("float64", d) for d in (0.01, 0.1, 1.0)]
    if dtype == "float32":
        expected = [("float32", d) for _, d in expected] + expected
    assert [(a.dtype, a.damping) for a in report.attempts] == expected
    assert all(a.pivot in (3, 5) for a in report.attempts)
    assert_factors(factor, np.diag(np.diag(h)), factor.damping)
    w = np.random.default_rng(3).standard_normal((4, 12)).astype(dtype)
    q = sweep.quantize(w, factor, group_size=5, static_groups=True, backend=backend)
    nearest = sweep.round_to_nearest(w, group_size=5, backend=backend)
    np.testing.assert_array_equal(q.codes, nearest.codes)


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_number_of_retries(backend, retries, attempts):
    h = np.array([[1.0, 9.0], [9.0, 1.0]])
    factor = sweep.factorize(h, retries=retries, on_failure="round_to_nearest", backend=backend)
    assert len(factor.report.attempts) == attempts


def test_dead_inputs_have_their_own_pivot(backend):
    h = np.zeros((5, 5))
    live = np.array([0, 2, 3])
    h[np.ix_(live, live)] = indefinite(0.5, 3)
    factor = sweep.factorize(h, order=[4, 3, 2, 1, 0], backend=backend)
    assert factor.dead.tolist() == [False, True, False, False, True]
    assert factor.report.dead == 2
    for position in (0, 3):  # columns 4 and 1
        unit = np.zeros(5)
        unit[position] = 1.0
        np.testing.assert_array_equal(factor.R[position], unit)
        np.testing.assert_array_equal(factor.R[:, position], unit)
    assert_factors(factor, h, 0.01)
