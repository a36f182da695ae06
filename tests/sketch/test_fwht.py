"""The Walsh-Hadamard transform: against SciPy's matrix, over any axis, in place or not."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st
from scipy import linalg

from quadric.sketch import fwht
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, assert_refused, shown
from tests.sketch.matrices import integers


@given(
    log_n=st.integers(0, 8),
    others=st.lists(st.integers(1, 6), max_size=3),
    data=st.data(),
    dtype=draws.dtypes,
    layout=draws.layouts,
    orthonormal=st.booleans(),
    seed=draws.seeds,
)
def test_any_axis(backend, log_n, others, data, dtype, layout, orthonormal, seed):
    """Each of log2 N steps loses eps / 2 of the sum of the sizes; so does the scale."""
    axis = data.draw(st.integers(-len(others) - 1, len(others)), label="axis")
    shape = list(others)
    shape.insert(axis % (len(others) + 1), 1 << log_n)
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    h = linalg.hadamard(1 << log_n, dtype=float) * (2.0 ** (-log_n / 2) if orthonormal else 1)
    moved = np.moveaxis(x, axis, 0).astype(float)
    expected = np.moveaxis(np.tensordot(h, moved, 1), 0, axis)
    sizes = np.moveaxis(np.tensordot(np.abs(h), np.abs(moved), 1), 0, axis)
    shown_x = draws.relayout(x, layout)
    found = fwht(shown_x, axis, orthonormal=orthonormal, backend=backend)
    assert found.dtype == dtype
    target(assert_within(found, expected, (log_n + 2) * np.finfo(dtype).eps * sizes))
    np.testing.assert_array_equal(shown_x, x)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("layout", draws.LAYOUTS)
def test_in_place_and_out(backend, dtype, axis, layout):
    x = integers(0, (8, 16, 4), dtype)
    expected = fwht(x, axis, backend=backend)
    view = draws.relayout(x.copy(), layout)
    guards = np.isnan(draws.whole(view))
    assert fwht(view, axis, out=view, backend=backend) is view
    np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(np.isnan(draws.whole(view)), guards)
    out = draws.relayout(np.full(x.shape, -7, dtype), layout)
    assert fwht(x, axis, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, expected)
    # N times its own inverse.
    np.testing.assert_array_equal(fwht(expected, axis, backend=backend), x.shape[axis] * x)


def test_orthonormal_is_its_own_inverse(backend):
    x = np.random.default_rng(0).standard_normal(1 << 14)
    once = fwht(x, orthonormal=True, backend=backend)
    again = fwht(once, orthonormal=True, backend=backend)
    # Orthogonal up to 14 roundings of each entry, each of about the size of the norm.
    assert_within(again, x, 2 * 16 * 2.0**-52 * np.linalg.norm(x))
    assert_within(np.linalg.norm(once), np.linalg.norm(x), 32 * 2.0**-52 * np.linalg.norm(x))


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_threads_change_no_bit(backend, dtype):
    x = np.random.default_rng(0).standard_normal((3, 2048, 33)).astype(dtype)
    for axis in (1,):
        first = fwht(x, axis, backend=backend, n_threads=1)
        for count in (2, 3):
            np.testing.assert_array_equal(fwht(x, axis, backend=backend, n_threads=count), first)


def test_edges(backend):
    assert fwht(np.array([5.0]), backend=backend).tolist() == [5.0]
    assert fwht(np.empty((4, 0)), backend=backend).shape == (4, 0)
    assert fwht(np.empty((0, 4)), 1, backend=backend).shape == (0, 4)
    assert fwht(np.ones((2, 3)), backend=backend).tolist() == [[2.0] * 3, [0.0] * 3]


def test_torch(backend):
    torch = pytest.importorskip("torch")
    x = torch.arange(8, dtype=torch.float32)
    expected = fwht(x.numpy(), backend=backend)
    found = fwht(x, backend=backend)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert fwht(x, out=x, backend=backend) is x
    np.testing.assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(backend, kind):
    if kind == "more axes":
        return
    spoil, error = ARRAYS[kind]
    x = np.ones((4, 8))
    bad = spoil(x)
    assert_refused("x", lambda: fwht(bad, -1 if kind != "scalar" else 0, backend=backend), error)


@pytest.mark.parametrize("size", [0, 3, 6, 1000])
def test_lengths(backend, size):
    message = assert_refused("x", lambda: fwht(np.ones((size, 2)), backend=backend), ValueError)
    assert "power of two" in message


@pytest.mark.parametrize("axis", [2, -3, 0.5, None, "0", True], ids=shown)
def test_axes(backend, axis):
    assert_refused("axis", lambda: fwht(np.ones((4, 8)), axis, backend=backend))


def test_outputs(backend):
    x = np.random.default_rng(0).standard_normal((8, 4))
    state = x.tobytes
    frozen = np.empty_like(x)
    frozen.flags.writeable = False
    wide = np.zeros((9, 4))
    wide[:8] = x
    for out, error in [
        (np.empty((4, 8)), ValueError),
        (np.empty((8, 4), np.float32), TypeError),
        (frozen, ValueError),
        ("out", TypeError),
    ]:
        assert_refused("out", lambda out=out: fwht(x, out=out, backend=backend), error, state)
    assert_refused(
        "out", lambda: fwht(wide[:8], out=wide[1:], backend=backend), ValueError, wide.tobytes
    )


def test_a_failed_call_changes_nothing(backend):
    x = np.ones((8, 4))
    x[3, 2] = np.nan
    assert_refused("x", lambda: fwht(x, out=x, backend=backend), ValueError, x.tobytes)
    out = np.ones((8, 4))
    assert_refused("x", lambda: fwht(x, out=out, backend=backend), ValueError, out.tobytes)
    assert np.isnan(fwht(x, check_finite=False, backend=backend)).any()


@pytest.mark.parametrize(("argument", "value"), EXECUTION, ids=shown)
def test_execution(argument, value):
    assert_refused(argument, lambda: fwht(np.ones(4), **{argument: value}))
