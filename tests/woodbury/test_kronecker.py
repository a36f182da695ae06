"""kronecker_precondition: J_out grad J_in, as long as the gradient."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric.woodbury import kronecker_precondition
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import wide
from tests.woodbury import oracle


def make(rng, m, n, dtype, scale=1.0):
    left, right = (draws.spd(rng, size, "exponential", 100.0) for size in (m, n))
    grad = scale * rng.standard_normal((m, n))
    return left.astype(dtype), grad.astype(dtype), right.astype(dtype)


@given(
    m=draws.sizes(50),
    n=draws.sizes(50),
    dtype=draws.dtypes,
    rescale=st.booleans(),
    log_scale=st.integers(-6, 6),
    layout=draws.layouts,
    seed=draws.seeds,
)
def test_definition(backend, m, n, dtype, rescale, log_scale, layout, seed):
    """Inner products of m and of n terms, two norms of m n terms, each within its own eps."""
    arguments = make(np.random.default_rng(seed), m, n, dtype, 10.0**log_scale)
    shown = [draws.relayout(a, layout) for a in arguments]
    before = [draws.whole(a).tobytes() for a in shown]
    found = kronecker_precondition(*shown, rescale=rescale, backend=backend)
    assert found.dtype == dtype
    left, grad, right = arguments
    expected = oracle.kronecker(left, grad, right, rescale=rescale)
    plain = oracle.kronecker(left, grad, right, rescale=False)
    size = np.abs(wide(left)) @ np.abs(grad) @ np.abs(right)
    norms = [np.sqrt((a**2).sum()) for a in (wide(grad), plain)]
    scale = norms[0] / norms[1] if rescale else 1
    limit = (m + n + 16) * np.finfo(dtype).eps * size * scale
    if rescale:  # the norm of the product is off by the norm of its errors
        own = np.sqrt((limit**2).sum()) / norms[0] + (m * n + 8) * np.finfo(dtype).eps
        limit = limit + np.abs(expected) * own
    target(assert_within(found, expected, limit))
    assert [draws.whole(a).tobytes() for a in shown] == before


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_integers_are_exact(backend, dtype):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, (size, size)) for size in (21, 34))
    left, right = (a + a.T).astype(dtype), (b + b.T).astype(dtype)
    grad = rng.integers(-3, 4, (21, 34)).astype(dtype)
    found = kronecker_precondition(left, grad, right, rescale=False, backend=backend)
    np.testing.assert_array_equal(found, left.astype(float) @ grad @ right)


def test_identities_change_nothing(backend):
    """The norm is computed, not assumed: a quarter of the length comes back at the full one."""
    grad = np.random.default_rng(1).integers(-8, 9, (5, 3)).astype(float)
    for scale in (1.0, 0.25, 1024.0):
        found = kronecker_precondition(scale * np.eye(5), grad, np.eye(3), backend=backend)
        assert_within(found, grad, 4 * np.finfo(float).eps * np.abs(grad))


def test_zeros_stay_zeros(backend):
    found = kronecker_precondition(np.eye(4), np.zeros((4, 3)), np.eye(3), backend=backend)
    assert not found.any()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_norms_neither_overflow_nor_underflow(backend, scale):
    """The squares of the entries do, in float32."""
    left, grad, right = make(np.random.default_rng(2), 6, 4, np.float32, scale)
    found = kronecker_precondition(left, grad, right, backend=backend)
    norm = np.linalg.norm(grad.astype(float))
    assert_within(np.linalg.norm(found.astype(float)), norm, 64 * np.finfo(np.float32).eps * norm)


def test_threads_change_nothing(backend):
    arguments = make(np.random.default_rng(3), 200, 130, np.float32)
    one, two = (kronecker_precondition(*arguments, backend=backend, n_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_torch_in_torch_out(backend):
    torch = pytest.importorskip("torch")
    arguments = make(np.random.default_rng(4), 6, 4, np.float32)
    expected = kronecker_precondition(*arguments, backend=backend)
    left, grad, right = (torch.from_numpy(a) for a in arguments)
    found = kronecker_precondition(left, grad.requires_grad_(), right, backend=backend)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), expected)
