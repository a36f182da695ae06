"""The operators: against explicit matrices, on every kind of input, in parts and compositions."""

import pickle

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st
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
from tests.bounds import assert_within
from tests.sketch import oracle
from tests.sketch.bits import assert_bits
from tests.sketch.matrices import integers, make, tall
from tests.sketch.operators import EPS, EXACT, MAKE, SPARSE, bound, explicit

operators = pytest.mark.parametrize("name", MAKE)

# ---- products ------------------------------------------------------------------------------------


@operators
@given(p=tall())
def test_product(backend, name, p):
    n, before = len(p.a), np.array(p.a)
    s = explicit(name, p.m, n, p.seed)
    operator = MAKE[name](p.m, n, p.seed, backend=backend)
    found = operator @ p.a
    assert found.dtype == p.a.dtype
    assert operator.shape == (p.m, n)
    target(assert_within(found, s @ p.exact, bound(name, s, p.exact, p.eps)))
    np.testing.assert_array_equal(p.a, before)


@operators
@given(p=tall(), layout=draws.layouts)
def test_adjoint(backend, name, p, layout):
    n, k = len(p.a), p.a.shape[1]
    s = explicit(name, p.m, n, p.seed)
    b = draws.relayout(p.like((p.m, k)), layout)
    operator = MAKE[name](p.m, n, p.seed, backend=backend)
    found = operator.T @ b
    assert found.dtype == b.dtype
    assert operator.T.shape == (n, p.m)
    exact = b.astype(float)
    target(assert_within(found, s.T @ exact, bound(name, s.T, exact, p.eps)))


@operators
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_inner_products(backend, name, dtype):
    """<S x, y> = <x, S^T y>: both are within the bound of a sum of n terms."""
    p = make(700, 3, dtype=dtype)
    operator = MAKE[name](40, 700, 1, backend=backend)
    y = p.like((40, 3))
    left = ((operator @ p.a).astype(float) * y).sum(axis=0)
    right = (p.exact * (operator.T @ y)).sum(axis=0)
    size = 700 * p.eps * np.abs(operator.to_dense()).max() * np.abs(p.exact).sum(0) * 40
    assert_within(left, right, size)


@operators
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 3), (17, 33), (40, 300)])
def test_to_dense(backend, name, dtype, shape):
    expected = explicit(name, *shape, 6)
    operator = MAKE[name](*shape, 6, backend=backend)
    found = operator.to_dense(dtype)
    assert found.dtype == dtype
    slack = 8 if name != "composition" else 64 * shape[1]
    angles = 7 * shape[0] ** -0.5 if name in ("gaussian", "composition") else 0
    assert_within(found, expected, slack * np.finfo(dtype).eps * (np.abs(expected) + angles))
    np.testing.assert_array_equal(operator.T.to_dense(dtype), found.T)
    if name in SPARSE:
        stored = operator.to_sparse(dtype)
        assert stored.format == "csc"
        assert stored.dtype == dtype
        assert stored.nnz == np.count_nonzero(found) or name == "row_sampling"
        np.testing.assert_array_equal(stored.toarray(), found)
        np.testing.assert_array_equal(operator.T.to_sparse(dtype).toarray(), found.T)
    else:
        with pytest.raises(TypeError, match=r"^to_sparse\(\) needs an operator with zeros"):
            operator.to_sparse()


def test_composition_of_sparse_operators_is_sparse(backend):
    S = count_sketch(5, 20, backend=backend) @ sparse_sign(20, 90, nnz=4, backend=backend)
    assert S.to_sparse().format == "csc"
    np.testing.assert_allclose(S.to_sparse().toarray(), S.to_dense(), rtol=4 * EPS)


# ---- kinds of input ------------------------------------------------------------------------------


def sparse_kinds(a):
    return [
        make_sparse(a)
        for make_sparse in (
            sparse.csr_array,
            sparse.csc_array,
            sparse.coo_array,
            sparse.csr_matrix,
            sparse.csc_matrix,
            sparse.coo_matrix,
            sparse.lil_array,
        )
    ]


@operators
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_sparse_matrices(backend, name, dtype):
    """Integers: where sums are exact, so are the sketches."""
    a = integers(0, (600, 13), dtype) * (np.random.default_rng(0).random((600, 13)) < 0.2)
    a = a.astype(dtype)
    operator = MAKE[name](24, 600, 4, backend=backend)
    expected = operator @ a
    limit = 2 * bound(name, operator.to_dense(), np.abs(a.astype(float)), np.finfo(dtype).eps)
    for x in sparse_kinds(a):
        found = operator @ x
        assert isinstance(found, np.ndarray)
        assert found.dtype == dtype
        assert_within(found, expected, 0 if name in EXACT else limit, x.__class__.__name__)
        left = sparse.csr_array(x.T) @ operator.T
        assert_within(left, expected.T, 0 if name in EXACT else limit.T)
    b = integers(1, (24, 3), dtype)
    np.testing.assert_array_equal(operator.T @ sparse.csr_array(b), operator.T @ b)


def test_sparse_matrices_keep_what_they_are(backend):
    """Duplicates are added up, and the caller's matrix stays as it is."""
    x = sparse.coo_array((np.array([1.0, 2.0, 4.0]), ([0, 0, 3], [1, 1, 0])), shape=(5, 2))
    S = sparse_sign(4, 5, nnz=2, backend=backend)
    assert_within(S @ x, S.to_dense() @ x.toarray(), 4 * EPS * 7)
    assert x.nnz == 3
    rows = sparse.csr_array(x)
    before = [v.tobytes() for v in (rows.data, rows.indices, rows.indptr)]
    S @ rows
    assert [v.tobytes() for v in (rows.data, rows.indices, rows.indptr)] == before


@operators
def test_vectors(backend, name):
    p = make(300, 1)
    operator = MAKE[name](17, 300, 2, backend=backend)
    x, y = p.a[:, 0], p.like(17)
    np.testing.assert_array_equal(operator @ x, (operator @ p.a)[:, 0])
    np.testing.assert_array_equal(operator.T @ y, (operator.T @ y[:, None])[:, 0])
    np.testing.assert_array_equal(x @ operator.T, operator @ x)
    np.testing.assert_array_equal(y @ operator, operator.T @ y)
    assert (operator @ x).shape == (17,)
    assert (operator @ p.a[:, :0]).shape == (17, 0)
    assert (operator.T @ np.empty((17, 0))).shape == (300, 0)


@operators
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_arrays_on_the_left(backend, name, dtype):
    p = make(300, 4, dtype=dtype)
    operator = MAKE[name](17, 300, 2, backend=backend)
    left = np.ascontiguousarray(p.a.T)
    assert_bits(left @ operator.T, (operator @ p.a).T, backend)
    b = p.like((17, 3))
    assert_bits(np.ascontiguousarray(b.T) @ operator, (operator.T @ b).T, backend)


@operators
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_layouts_change_no_bit(backend, name, dtype):
    p = make(900, 7, dtype=dtype, kind="graded")
    operator = MAKE[name](24, 900, 2, backend=backend)
    expected = operator @ p.a
    for layout in draws.LAYOUTS:
        found = operator @ draws.relayout(p.a, layout)
        assert_bits(found, expected, backend, err_msg=layout)
    read_only = p.a.copy()
    read_only.flags.writeable = False
    assert_bits(operator @ read_only, expected, backend)


@operators
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_threads_change_no_bit(backend, name, dtype):
    p = make(3000, 20, dtype=dtype)
    b = p.like((48, 5))
    one, more = (MAKE[name](48, 3000, 2, backend=backend, n_threads=k) for k in (1, 3))
    assert one == more
    np.testing.assert_array_equal(one @ p.a, more @ p.a)
    np.testing.assert_array_equal(one.T @ b, more.T @ b)
    np.testing.assert_array_equal(one.to_dense(dtype), more.to_dense(dtype))


@operators
def test_memory_maps(backend, name, tmp_path):
    p = make(700, 6)
    stored = np.memmap(tmp_path / "rows.bin", np.float64, "w+", shape=(700, 6))
    stored[:] = p.a
    stored.flush()
    mapped = np.memmap(tmp_path / "rows.bin", np.float64, "r", shape=(700, 6))
    operator = MAKE[name](24, 700, 2, backend=backend)
    found = operator @ mapped
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, operator @ p.a)


def test_torch(backend):
    torch = pytest.importorskip("torch")
    a = make(200, 5).a
    for name, build in MAKE.items():
        operator = build(16, 200, 2, backend=backend)
        found = operator @ torch.from_numpy(a)
        assert isinstance(found, torch.Tensor), name
        np.testing.assert_array_equal(found.numpy(), operator @ a)
        left = torch.from_numpy(np.ascontiguousarray(a.T)) @ operator.T
        np.testing.assert_array_equal(left.numpy(), (operator @ a).T)


# ---- parts and compositions ----------------------------------------------------------------------

PARTS = [
    (slice(3, 9), slice(None)),
    (slice(None), slice(301, 777)),
    (slice(23, 24), slice(899, 900)),
    (slice(5, 20), slice(256, 300)),
    (slice(-4, None), slice(None, 1)),
]


@operators
@pytest.mark.parametrize("part", PARTS)
def test_parts(backend, name, part):
    p = make(900, 3)
    operator = MAKE[name](24, 900, 5, backend=backend)
    whole = operator.to_dense()
    found = operator[part]
    expected = whole[part]
    assert found.shape == expected.shape
    if name == "composition":
        assert_within(found.to_dense(), expected, 64 * EPS * np.abs(whole).max())
    else:
        np.testing.assert_array_equal(found.to_dense(), expected)
    if name in SPARSE:
        np.testing.assert_array_equal(found.to_sparse().toarray(), expected)
    a, b = p.a[part[1]], p.like((24, 2))[part[0]]
    # The norms behind the bounds are those of the whole.
    assert_within(found @ a, expected @ a, bound(name, whole, p.exact, EPS)[part[0]])
    padded = np.zeros((24, 2))
    padded[part[0]] = b
    assert_within(found.T @ b, expected.T @ b, bound(name, whole.T, padded, EPS)[part[1]])
    # A part of a part.
    again = found[: found.m // 2 + 1, found.n // 3 :]
    assert_within(again.to_dense(), expected[: found.m // 2 + 1, found.n // 3 :], 64 * EPS)


@operators
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_rows_of_the_product(backend, name, dtype):
    """Bit for bit those of the whole, but where BLAS orders the sums of fewer rows differently."""
    p = make(900, 3, dtype=dtype)
    operator = MAKE[name](24, 900, 5, backend=backend)
    found, expected = operator[5:13] @ p.a, (operator @ p.a)[5:13]
    if name in ("gaussian", "rademacher", "composition"):
        assert_within(found, expected, 2 * bound(name, operator.to_dense(), p.exact, p.eps)[5:13])
    else:
        np.testing.assert_array_equal(found, expected)


@operators
@pytest.mark.parametrize("cut", [1, 300, 512, 899])
def test_columns_add_up(backend, name, cut):
    a = make(900, 4).a
    operator = MAKE[name](24, 900, 5, backend=backend)
    found = operator[:, :cut] @ a[:cut] + operator[:, cut:] @ a[cut:]
    limit = 3 * bound(name, operator.to_dense(), a, EPS)
    assert_within(found, operator @ a, limit)


@pytest.mark.parametrize("outer", [k for k in MAKE if k != "composition"])
@pytest.mark.parametrize("inner", [k for k in MAKE if k != "composition"])
def test_compositions(backend, outer, inner):
    p = make(400, 3)
    first = MAKE[inner](40, 400, 1, backend=backend)
    second = MAKE[outer](8, 40, 2, backend=backend)
    both = second @ first
    assert both == compose(second, first)
    assert both.shape == (8, 400)
    assert both.dense == (second.dense and first.dense)
    assert both.scale == second.scale * first.scale
    np.testing.assert_array_equal(both @ p.a, second @ (first @ p.a))
    y = p.like((8, 2))
    np.testing.assert_array_equal(both.T @ y, first.T @ (second.T @ y))
    three = gaussian(4, 8, backend=backend) @ both
    np.testing.assert_array_equal(three @ p.a, gaussian(4, 8, backend=backend) @ (both @ p.a))


# ---- objects -------------------------------------------------------------------------------------


@operators
def test_operators_are_values(name):
    a, b, other = (MAKE[name](24, 100, seed) for seed in (7, 7, 8))
    assert a == b
    assert hash(a) == hash(b)
    assert a != other
    assert a[:4] != a
    assert a[:4] == b[:4]
    again = pickle.loads(pickle.dumps(a[2:7, 10:90]))
    assert again == a[2:7, 10:90]
    x = make(80, 2).a
    np.testing.assert_array_equal(again @ x, a[2:7, 10:90] @ x)
    with pytest.raises(AttributeError):
        a.m = 5


@operators
def test_the_same_seed_is_the_same_matrix(backend, name):
    x = make(100, 2).a
    first, again, other = (MAKE[name](24, 100, s, backend=backend) @ x for s in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_seeds():
    assert count_sketch(4, 9) == count_sketch(4, 9, seed=0)
    assert count_sketch(4, 9, seed=None) != count_sketch(4, 9, seed=None)
    a, b = (count_sketch(4, 9, seed=np.random.default_rng(3)) for _ in range(2))
    assert a == b
    rng = np.random.default_rng(3)
    assert count_sketch(4, 9, seed=rng) != count_sketch(4, 9, seed=rng)
    assert sparse_sign(16, 90, seed=2**64 - 1).seed == 2**64 - 1


def test_what_is_dense_and_what_is_oblivious():
    """Only dense operators have the guarantee for each coordinate."""
    dense = {"gaussian", "rademacher", "srht", "circulant"}
    for name, build in MAKE.items():
        S = build(8, 50, 0)
        assert S.dense == (name in dense), name
        assert S.oblivious == (name != "row_sampling"), name
        assert S[:4, 3:].dense == S.dense
        assert S.ndim == S.T.ndim == 2


def test_words():
    S = sparse_sign(16, 100, nnz=4, seed=3)
    assert repr(S) == "sparse_sign(16, 100, nnz=4, seed=3)"
    assert repr(S[2:4, 5:]) == "sparse_sign(16, 100, nnz=4, seed=3)[2:4, 5:100]"
    assert repr(S.T) == "sparse_sign(16, 100, nnz=4, seed=3).T"
    assert repr(count_sketch(3, 4)) == "count_sketch(3, 4, seed=0)"
    assert repr(gaussian(3, 4)) == "gaussian(3, 4, seed=0)"
    assert repr(rademacher(3, 4)) == "rademacher(3, 4, seed=0)"
    assert repr(srht(3, 4)) == "srht(3, 4, seed=0)"
    assert repr(circulant(3, 4)) == "circulant(3, 4, seed=0)"
    assert repr(row_sampling(np.arange(3), 4)) == "row_sampling(<3 indices>, 4)"


@given(m=st.integers(1, 40), n=st.integers(1, 300), seed=st.integers(0, 2**64 - 1))
def test_samples_of_the_hadamard_matrix(m, n, seed):
    m = min(m, n)
    S = srht(m, n, seed=seed)
    assert S.order == oracle.order(n)
    assert S.samples.tolist() == oracle.samples(m, n, seed)
