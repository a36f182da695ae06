"""Operators refuse bad input in one line that names the argument."""

import numpy as np
import pytest
from scipy import sparse

from quadric.sketch import (
    circulant,
    compose,
    count_sketch,
    gaussian,
    rademacher,
    row_sampling,
    sparse_sign,
    srht,
)
from tests import strategies as draws
from tests.refusals import ARRAYS, EXECUTION, INF, NAN, SIZES, assert_refused, shown, spoiled
from tests.sketch.matrices import make
from tests.sketch.operators import MAKE

FACTORIES = {
    "count_sketch": count_sketch,
    "sparse_sign": lambda m, n, **o: sparse_sign(m, n, nnz=1, **o),
    "gaussian": gaussian,
    "rademacher": rademacher,
    "srht": srht,
    "circulant": circulant,
}
factories = pytest.mark.parametrize("factory", FACTORIES)
operators = pytest.mark.parametrize("name", MAKE)

# ---- making them ---------------------------------------------------------------------------------


@factories
@pytest.mark.parametrize("argument", ["m", "n"])
@pytest.mark.parametrize("value", SIZES, ids=shown)
def test_sizes(factory, argument, value):
    sizes = {"m": 4, "n": 9} | {argument: value}
    assert_refused(argument, lambda: FACTORIES[factory](**sizes))


@factories
def test_more_rows_than_there_are(factory):
    message = assert_refused("m", lambda: FACTORIES[factory](10, 9), ValueError)
    assert "10 > 9" in message
    assert FACTORIES[factory](9, 9).shape == (9, 9)


@pytest.mark.parametrize(("m", "nnz"), [(10, 8), (4, 8), (7, 2), (1, 2)])
def test_rows_that_nnz_does_not_divide(m, nnz):
    message = assert_refused("m", lambda: sparse_sign(m, 100, nnz=nnz), ValueError)
    assert message == f"m must be a multiple of nnz: {m} is not a multiple of {nnz}"


@pytest.mark.parametrize("nnz", SIZES, ids=shown)
def test_nnz(nnz):
    assert_refused("nnz", lambda: sparse_sign(8, 100, nnz=nnz))


@factories
@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "zero", True, np.random.RandomState(0)])
def test_seeds(factory, seed):
    assert_refused("seed", lambda: FACTORIES[factory](4, 9, seed=seed))


@factories
@pytest.mark.parametrize(("argument", "value"), EXECUTION, ids=shown)
def test_execution(factory, argument, value):
    assert_refused(argument, lambda: FACTORIES[factory](4, 9, **{argument: value}))


@pytest.mark.parametrize("dtype", ["float16", np.int64, complex, "words", object], ids=shown)
def test_dtypes(dtype):
    for build in (gaussian, rademacher):
        assert_refused("dtype", lambda build=build: build(4, 9, dtype=dtype))
    for build in MAKE.values():
        assert_refused("dtype", lambda build=build: build(4, 9, 0).to_dense(dtype))


# ---- A -------------------------------------------------------------------------------------------


@operators
@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_matrices(backend, name, kind, dtype):
    if kind == "one entry less":
        return  # another matrix, and a good one
    spoil, error = ARRAYS[kind]
    a = make(60, 3, dtype=dtype).a
    # Rows that are not picked are not looked at.
    S = (
        row_sampling(np.arange(60), 60)
        if name == "row_sampling"
        else MAKE[name](8, 60, 1, backend=backend)
    )
    bad = spoil(a)
    before = repr(bad)
    assert_refused("A", lambda: S @ bad, error)
    assert repr(bad) == before
    if isinstance(bad, np.ndarray):
        assert_refused("A", lambda: bad.T @ S.T, error)
    bad = spoil(make(8, 3, dtype=dtype).a)
    assert_refused("B", lambda: S.T @ bad, error)


@operators
@pytest.mark.parametrize("value", [NAN, INF])
def test_what_is_not_finite_in_a_sparse_matrix(backend, name, value):
    a = sparse.random_array((60, 5), density=0.4, format="csr", rng=np.random.default_rng(0))
    a.data[7] = value
    S = (
        row_sampling(np.arange(60), 60)
        if name == "row_sampling"
        else MAKE[name](8, 60, 1, backend=backend)
    )
    place = tuple(int(i[7]) for i in a.nonzero())
    for kind in ("csr", "csc", "coo"):
        given = a.asformat(kind)
        message = assert_refused("A", lambda given=given: S @ given, ValueError)
        assert message == f"A must be finite, got {value} at index {place}"
        message = assert_refused("A", lambda given=given: given.T @ S.T, ValueError)
        assert message == f"A must be finite, got {value} at index {place[::-1]}"


@operators
def test_shapes(backend, name):
    S = MAKE[name](8, 60, 1, backend=backend)
    for rows in (0, 59, 61, 8):
        message = assert_refused("A", lambda rows=rows: S @ np.ones((rows, 2)), ValueError)
        assert "60 rows" in message
        assert_refused("A", lambda rows=rows: S @ np.ones(rows), ValueError)
        assert_refused("A", lambda rows=rows: np.ones((2, rows)) @ S.T, ValueError)
        assert_refused("A", lambda rows=rows: S @ sparse.csr_array((rows, 2)), ValueError)
    for rows in (0, 7, 9, 60):
        assert_refused("B", lambda rows=rows: S.T @ np.ones((rows, 2)), ValueError)
        assert_refused("B", lambda rows=rows: S.T @ np.ones(rows), ValueError)
        assert_refused("A", lambda rows=rows: np.ones((2, rows)) @ S, ValueError)


@operators
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_adjoints(backend, name, value):
    S = MAKE[name](8, 600, 1, backend=backend)
    bad = spoiled(np.ones((8, 3)), value)
    assert_refused("B", lambda: S.T @ bad, ValueError)
    message = assert_refused("A", lambda: bad.T @ S, ValueError)
    assert "index (1, 4)" in message
    for dtype in (np.int64, np.complex128, bool, object):
        assert_refused("B", lambda dtype=dtype: S.T @ np.ones((8, 2), dtype), TypeError)


@operators
def test_overflow_is_not_hidden(backend, name):
    if name in ("row_sampling", "count_sketch", "sparse_sign", "composition"):
        S = sparse_sign(1, 60, nnz=1, backend=backend)
        a = np.full((60, 1), 3e38, np.float32) * S.to_dense().T.astype(np.float32)
    else:
        S = MAKE[name](1, 60, 1, backend=backend)
        a = np.full((60, 1), 3e38, np.float32) * np.sign(S.to_dense()).T.astype(np.float32)
    message = assert_refused("A", lambda: S @ a, ValueError)
    assert "overflows float32" in message


@pytest.mark.parametrize("field", ["indices", "indptr"])
@pytest.mark.parametrize("value", [-1, 99])
def test_damaged_sparse_matrices(backend, field, value):
    """Compiled loops must never follow an index that leads out of the matrix."""
    a = sparse.random_array((60, 5), density=0.4, format="csr", rng=np.random.default_rng(0))
    getattr(a, field)[5] = value
    assert_refused("A", lambda: sparse_sign(8, 60, backend=backend) @ a, ValueError)


# ---- parts, rows, compositions -------------------------------------------------------------------


@operators
def test_parts(backend, name):
    S = MAKE[name](8, 60, 1, backend=backend)
    for key in (3, [1, 2], None, slice(0, 8, 2), slice(8, 0, -1), np.arange(3), ...):
        assert_refused("rows", lambda key=key: S[key], TypeError)
        assert_refused("columns", lambda key=key: S[:, key], TypeError)
    assert_refused("rows", lambda: S[5:5], ValueError)
    assert_refused("rows", lambda: S[20:30], ValueError)
    assert_refused("columns", lambda: S[:, 60:], ValueError)


@pytest.mark.parametrize(
    ("indices", "error"),
    [
        (np.array([0, 9]), ValueError),
        (np.array([-1, 3]), ValueError),
        (np.array([], np.int64), ValueError),
        (np.zeros((2, 2), np.int64), ValueError),
        (np.array([0.0, 1.0]), TypeError),
        (np.array([True, False]), TypeError),
        (None, TypeError),
        ("rows", TypeError),
    ],
    ids=shown,
)
def test_indices(indices, error):
    assert_refused("indices", lambda: row_sampling(indices, 9), error)


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        (np.array([1.0]), ValueError),
        (np.array([[1.0, 2.0]]), ValueError),
        (np.array([1.0, -1e-9]), ValueError),
        (np.array([1.0, NAN]), ValueError),
        (np.array([INF, 1.0]), ValueError),
        (np.array([1, 2]), TypeError),
        (np.array([1j, 2]), TypeError),
        ("weights", TypeError),
    ],
    ids=shown,
)
def test_weights(weights, error):
    assert_refused("weights", lambda: row_sampling(np.array([1, 2]), 9, weights), error)


def test_sampled_rows_are_the_callers_copy():
    indices, weights = np.array([1, 2]), np.array([1.0, 2.0])
    S = row_sampling(indices, 9, weights)
    indices[0], weights[0] = 5, 7
    np.testing.assert_array_equal(S @ np.arange(9.0), [1.0, 4.0])
    with pytest.raises(ValueError, match="read-only"):
        S.indices[0] = 3


def test_compositions():
    S = count_sketch(5, 9)
    assert_refused("inner", lambda: compose(gaussian(2, 4), S), ValueError)
    assert_refused("inner", lambda: gaussian(2, 4) @ S, ValueError)
    assert_refused("outer", lambda: compose(np.eye(5), S), TypeError)
    assert_refused("inner", lambda: compose(S, np.eye(5)), TypeError)
    for call in (lambda: S @ S.T, lambda: S.T @ S, lambda: S.T @ S.T):
        with pytest.raises(TypeError, match=r"^(A must be a |unsupported operand)"):
            call()
