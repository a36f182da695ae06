"""The public pass A^T (b - A x): shapes, kinds of input, what is refused."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st
from scipy import sparse

from quadric.sketch import residual_gradient
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, INF, NAN, assert_refused, shown, spoiled
from tests.sketch.matrices import integers, make, tall


@given(p=tall(), k=st.sampled_from([None, 1, 3]), right=st.booleans(), stored=st.booleans())
def test_values(backend, p, k, right, stored):
    (n, d), columns = p.a.shape, () if k is None else (k,)
    x, b = p.like((d, *columns)), p.like((n, *columns)) if right else None
    a = sparse.csc_array(p.a) if stored else p.a
    g, r, norm = residual_gradient(a, x, b, backend=backend)
    assert g.dtype == r.dtype == p.a.dtype
    assert g.shape == (d, *columns)
    assert r.shape == (n, *columns)
    exact, wide = p.exact, x.astype(float)
    expected = exact @ wide if b is None else b - exact @ wide
    size = np.abs(exact) @ np.abs(wide) + (0 if b is None else np.abs(b))
    off = (d + 4) * p.eps * size
    rounding = (min(n, 256) + n // 256 + 8) * p.eps  # sums of blocks in T at worst
    used = assert_within(r, expected, off, "r")
    limit = np.abs(exact).T @ (off + rounding * np.abs(expected))
    used = max(used, assert_within(g, exact.T @ expected, limit, "g"))
    length = np.linalg.norm(expected, axis=0)
    limit = np.linalg.norm(off, axis=0) + rounding * length
    target(max(used, assert_within(norm, length, limit, "norm")))
    assert isinstance(norm, float) == (k is None)


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_layouts(backend, dtype):
    """Integers are exact, so any layout of any argument gives the same."""
    a, x, b = (integers(i, s, dtype) for i, s in enumerate([(90, 11), (11, 3), (90, 3)]))
    expected = residual_gradient(a, x, b, backend=backend)
    for layout in draws.LAYOUTS:
        shown_arrays = [draws.relayout(v, layout) for v in (a, x, b)]
        for found, other in zip(
            residual_gradient(*shown_arrays, backend=backend), expected, strict=True
        ):
            np.testing.assert_array_equal(found, other)
    np.testing.assert_array_equal(expected.residual, b - a @ x)
    np.testing.assert_array_equal(expected.gradient, a.T @ (b - a @ x))


def test_edges(backend):
    g, r, norm = residual_gradient(np.empty((3, 0)), np.empty(0), np.array([3.0, 0, 4.0]))
    assert g.shape == (0,)
    assert r.tolist() == [3.0, 0.0, 4.0]
    assert norm == 5.0
    g, r, norm = residual_gradient(np.empty((0, 2)), np.ones(2), np.empty(0), backend=backend)
    assert (g.tolist(), r.tolist(), norm) == ([0.0, 0.0], [], 0.0)


def test_torch(backend):
    torch = pytest.importorskip("torch")
    a = torch.ones((4, 2), dtype=torch.float64)
    result = residual_gradient(a, torch.ones(2, dtype=torch.float64), backend=backend)
    assert isinstance(result.gradient, torch.Tensor)
    assert result.gradient.tolist() == [8.0, 8.0]


class Case:
    def __init__(self, backend, dtype=np.float64):
        p = make(20, 4, dtype=dtype)
        self.backend = backend
        self.good = {"A": p.a, "x": p.like(4), "b": p.like(20)}

    def refuse(self, name, value, error=(ValueError, TypeError)):
        call = lambda: residual_gradient(  # noqa: E731
            **(self.good | {name: value}), backend=self.backend
        )
        return assert_refused(name, call, error, lambda: [v.tobytes() for v in self.good.values()])


@pytest.mark.parametrize("name", ["A", "x", "b"])
@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_arrays(backend, name, kind, dtype):
    if (name, kind) in [("A", "one entry less"), ("b", "none")]:
        return  # x is what does not fit then; and b may be left out
    spoil, error = ARRAYS[kind]
    case = Case(backend, dtype)
    case.refuse(name, spoil(case.good[name]), error)


@pytest.mark.parametrize("value", [NAN, INF])
def test_sparse_matrices(backend, value):
    case = Case(backend)
    case.refuse("A", sparse.csr_array(spoiled(case.good["A"], value)), ValueError)


def test_shapes_and_types_go_together(backend):
    case = Case(backend)
    case.refuse("x", np.ones(5), ValueError)
    case.refuse("b", np.ones(19), ValueError)
    case.refuse("b", np.ones((20, 1)), ValueError)
    case.refuse("x", np.ones(4, np.float32), TypeError)
    case.refuse("b", np.ones(20, np.float32), TypeError)
    case.refuse("A", np.ones(20), ValueError)


def test_overflow(backend):
    a = np.full((4, 2), 1e30, np.float32)
    message = assert_refused("A", lambda: residual_gradient(a, a[0], backend=backend), ValueError)
    assert "overflows float32" in message


@pytest.mark.parametrize(("argument", "value"), EXECUTION, ids=shown)
def test_execution(argument, value):
    a = np.ones((4, 2))
    assert_refused(argument, lambda: residual_gradient(a, a[0], **{argument: value}))


@pytest.mark.parametrize("stored", ["dense", "csr"])
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e160, 1e200, 1e300])
def test_norms_whose_squares_are_no_numbers(backend, stored, scale):
    A, x, b = np.eye(5, 2), np.array([1.0, 2.0]), np.array([4.0, 2.0, 4.0, 0.0, 0.0])
    A = A if stored == "dense" else sparse.csr_array(A)
    found = residual_gradient(A, x * scale, b * scale, backend=backend)
    assert_within(found.norm / scale, 5.0, 1e-14)
