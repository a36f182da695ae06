"""The raw kernels: against explicit matrices, in any layout, on any threads, chunk by chunk.

Bounds are those of sums: c terms in a type with eps make an error of at most c eps times the sum of
their sizes, where half of it is slack for everything of second order.
"""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st
from scipy import linalg, sparse

from quadric import backends, threads
from tests import strategies as draws
from tests.bounds import assert_within
from tests.sketch import oracle
from tests.sketch.bits import assert_bits
from tests.sketch.matrices import integers, make, tall

EPS = float(np.finfo(np.float64).eps)
THREADS = (2, 3)
BLOCK = 256  # rows that dense operators and blocked sums take together

nnzs = st.sampled_from([1, 1, 2, 3, 4, 8])


def kernel(name, backend):
    return backends.resolve(f"sketch.{name}", backend)


def zeros(m, a):
    return np.zeros((m, a.shape[1]), a.dtype)


def sparse_sign(a, m, nnz, seed, backend, *, first=0, out=None, n_threads=1):
    out = zeros(m, a) if out is None else out
    kernel("sparse_sign", backend)(a, first, seed, nnz, out, n_threads)
    return out


def sparse_sign_rows(b, n, nnz, seed, backend, *, first=0, n_threads=1):
    out = np.full((n, b.shape[1]), np.nan, b.dtype)
    kernel("sparse_sign_rows", backend)(b, first, seed, nnz, out, n_threads)
    return out


def sparse_sign_csr(a, m, nnz, seed, backend, *, first=0, out=None, n_threads=1, index=np.int32):
    out = np.zeros((m, a.shape[1]), a.dtype) if out is None else out
    indptr, indices = a.indptr.astype(index), a.indices.astype(index)
    kernel("sparse_sign_csr", backend)(indptr, indices, a.data, first, seed, nnz, out, n_threads)
    return out


def dense(a, m, kind, seed, backend, *, first=0, out=None, n_threads=1):
    out = zeros(m, a) if out is None else out
    with threads.blas_limit(1):
        kernel("dense", backend)(a, first, seed, kind, out, n_threads)
    return out


def entries(m, kind, seed, row, first, shape, dtype, backend, n_threads=1):
    out = np.full(shape, np.nan, dtype)
    kernel("dense_entries", backend)(row, first, seed, m, kind, out, n_threads)
    return out


def srht(a, samples, k, seed, backend, *, first=0, out=None, n_threads=1):
    samples = np.array(samples, np.int64)
    out = zeros(len(samples), a) if out is None else out
    kernel("srht", backend)(a, first, seed, k, samples, out, n_threads)
    return out


def fwht(x, backend, n_threads=1):
    kernel("fwht", backend)(x, n_threads)
    return x


def residual_gradient(a, x, b, backend, *, n_threads=1, r=True, g=True):
    (n, d), k = a.shape, x.shape[1]
    residual = np.full((n, k), np.nan, a.dtype) if r else None
    gradient = np.full((d, k), np.nan) if g else None
    norms = np.full(k, np.nan)
    with threads.blas_limit(1):
        kernel("residual_gradient", backend)(a, x, b, residual, gradient, norms, n_threads)
    return residual, gradient, norms


def gram(name, a, extra, backend, n_threads=1):
    d = a.shape[1]
    out = np.full((d, d), np.nan)
    with threads.blas_limit(1):
        kernel(name, backend)(a, extra, out, n_threads)
    return out


def row_norms(a, m, backend, n_threads=1):
    out = np.full(len(a), np.nan)
    with threads.blas_limit(1):
        kernel("row_norms", backend)(a, m, out, n_threads)
    return out


def hadamard(rows, columns):
    """Return some entries of a Hadamard matrix that is too large to be made."""
    return np.array([[(-1.0) ** (i & j).bit_count() for j in columns] for i in rows])


def multiple(m, nnz):
    """Return a number of rows near m that nnz divides."""
    return max(m // nnz, 1) * nnz


# ---- sketches: bounds ----------------------------------------------------------------------------


@given(p=tall(), nnz=nnzs)
def test_sparse_sign(backend, p, nnz):
    m = multiple(p.m, nnz)
    before = draws.whole(p.a).tobytes()
    s = oracle.sparse_sign(m, len(p.a), nnz, p.seed)
    terms = np.abs(s).sum(axis=1, keepdims=True)
    limit = terms * p.eps * (np.abs(s) @ np.abs(p.exact))
    found = sparse_sign(p.a, m, nnz, p.seed, backend)
    target(assert_within(found, s @ p.exact, limit))
    assert draws.whole(p.a).tobytes() == before


@given(p=tall(), nnz=nnzs, layout=draws.layouts, first=st.integers(0, 9))
def test_sparse_sign_rows(backend, p, nnz, layout, first):
    m, n = multiple(p.m, nnz), len(p.a)
    b = draws.relayout(p.like((m, p.a.shape[1])), layout)
    before = draws.whole(b).tobytes()
    s = oracle.sparse_sign(m, n + first, nnz, p.seed)[:, first:]
    limit = nnz * p.eps * (np.abs(s).T @ np.abs(b.astype(float)))
    found = sparse_sign_rows(b, n, nnz, p.seed, backend, first=first)
    target(assert_within(found, s.T @ b.astype(float), limit))
    assert draws.whole(b).tobytes() == before


@given(p=tall(), nnz=nnzs, index=st.sampled_from([np.int32, np.int64]))
def test_sparse_sign_csr(backend, p, nnz, index):
    m = multiple(p.m, nnz)
    a = np.where(p.rng.random(p.a.shape) < 0.3, p.a, 0).astype(p.a.dtype)
    s = oracle.sparse_sign(m, len(a), nnz, p.seed)
    terms = np.abs(s).sum(axis=1, keepdims=True)
    limit = terms * p.eps * (np.abs(s) @ np.abs(a.astype(float)))
    found = sparse_sign_csr(sparse.csr_array(a), m, nnz, p.seed, backend, index=index)
    target(assert_within(found, s @ a.astype(float), limit))


def test_csr_rows_with_repeated_and_unsorted_columns(backend):
    a = sparse.csr_array((np.arange(1.0, 6), np.array([2, 0, 2, 1, 1]), np.array([0, 3, 3, 5])))
    s = oracle.sparse_sign(4, 3, 2, 0)
    np.testing.assert_array_equal(sparse_sign_csr(a, 4, 2, 0, backend), s @ a.toarray())


@given(p=tall(max_sketch=70), kind=st.sampled_from([0, 1]))
def test_dense(backend, p, kind):
    n, before = len(p.a), draws.whole(p.a).tobytes()
    s, radius = (
        (oracle.rademacher(p.m, n, p.seed), np.zeros((p.m, n)))
        if kind
        else oracle.gaussian(p.m, n, p.seed)
    )
    # The sums, rounding of an entry to T, and of its angle: 2 pi eps times the radius.
    size = np.abs(s) @ np.abs(p.exact)
    limit = (min(n, BLOCK) + n // BLOCK + 8) * p.eps * size
    limit = limit + 16 * EPS * (radius @ np.abs(p.exact))
    target(assert_within(dense(p.a, p.m, kind, p.seed, backend), s @ p.exact, limit))
    assert draws.whole(p.a).tobytes() == before


@given(
    m=draws.sizes(131),
    seed=st.integers(0, 2**64 - 1),
    row=st.integers(0, 40),
    first=st.integers(0, 600),
    columns=st.integers(1, 12),
    dtype=draws.dtypes,
    kind=st.sampled_from([0, 1]),
)
def test_dense_entries(backend, m, seed, row, first, columns, dtype, kind):
    """Any part of the matrix, without the rest."""
    row = min(row, m - 1)
    rows = min(m - row, 9)
    found = entries(m, kind, seed, row, first, (rows, columns), dtype, backend)
    if kind:
        expected = part_of(oracle.rademacher, m, seed, row, rows, first, columns)
        np.testing.assert_array_equal(found, expected)
        return
    expected = part_of(lambda *a: oracle.gaussian(*a)[0], m, seed, row, rows, first, columns)
    radius = part_of(lambda *a: oracle.gaussian(*a)[1], m, seed, row, rows, first, columns)
    bound = 16 * EPS * radius + roundings(backend, dtype) * np.abs(expected)
    target(assert_within(found, expected, bound))


def roundings(backend, dtype):
    """Of float64 normals to `dtype`; a GPU makes those of float32 in float32, in a few steps."""
    eps = np.finfo(dtype).eps
    return 4 * eps if backend == "cuda" and dtype == np.float32 else eps / 2


def part_of(make_matrix, m, seed, row, rows, first, columns):
    return make_matrix(m, first + columns, seed)[row : row + rows, first:]


@given(p=tall(max_rows=131), log_k=st.integers(0, 6))
def test_srht(backend, p, log_k):
    n, before = len(p.a), draws.whole(p.a).tobytes()
    k = min(1 << log_k, oracle.order(n))
    s = oracle.srht(p.m, n, p.seed)
    size = np.abs(p.exact).sum(axis=0)
    limit = (np.log2(k) + -(-n // k) + 1) * p.eps * size
    found = srht(p.a, oracle.samples(p.m, n, p.seed), k, p.seed, backend)
    target(assert_within(found, s @ p.exact, limit))
    assert draws.whole(p.a).tobytes() == before


@given(
    log_n=st.integers(0, 7),
    outer=draws.sizes(5),
    inner=draws.sizes(33),
    dtype=draws.dtypes,
    layout=draws.layouts,
    seed=draws.seeds,
)
def test_fwht(backend, log_n, outer, inner, dtype, layout, seed):
    n = 1 << log_n
    x = np.random.default_rng(seed).standard_normal((outer, n, inner)).astype(dtype)
    h = linalg.hadamard(n, dtype=float)
    expected = np.einsum("ij,ajb->aib", h, x.astype(float))
    limit = log_n * np.finfo(dtype).eps * np.abs(x.astype(float)).sum(axis=1, keepdims=True)
    view = draws.relayout(x, layout)
    guards = np.isnan(draws.whole(view))
    found = fwht(view, backend)
    target(assert_within(found, expected, limit))
    if layout in ("padded", "step2"):
        np.testing.assert_array_equal(np.isnan(draws.whole(view)), guards)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize(("outer", "log_n", "inner"), [(1, 15, 1), (1, 13, 3), (2, 11, 17)])
def test_fwht_of_many(backend, dtype, outer, log_n, inner):
    """Longer than a tile; integers below 2^20 in sum, so that float32 is exact."""
    n = 1 << log_n
    x = integers(1, (outer, n, inner), dtype, largest=3)
    expected = x.astype(float)
    for level in range(log_n):
        pairs = expected.reshape(outer, n >> level + 1, 2, 1 << level, inner)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        expected = np.stack([first + second, first - second], axis=2).reshape(x.shape)
    np.testing.assert_array_equal(fwht(x.copy(), backend), expected)
    np.testing.assert_array_equal(fwht(x.copy(), backend, 3), expected)


# ---- sketches: what does not matter --------------------------------------------------------------


SKETCHES = {
    "sparse_sign": lambda a, b, **o: sparse_sign(a, 24, 8, 5, b, **o),
    "count_sketch": lambda a, b, **o: sparse_sign(a, 23, 1, 5, b, **o),
    "gaussian": lambda a, b, **o: dense(a, 37, 0, 5, b, **o),
    "rademacher": lambda a, b, **o: dense(a, 37, 1, 5, b, **o),
    "srht": lambda a, b, **o: srht(a, oracle.samples(37, 3000, 5), 32, 5, b, **o),
}
EVERY = {"sparse_sign": 1, "count_sketch": 1, "gaussian": BLOCK, "rademacher": BLOCK, "srht": 32}
sketches = pytest.mark.parametrize("sketch", SKETCHES)


@sketches
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("d", [1, 5, 140])
def test_layouts_and_threads_change_no_bit(backend, sketch, dtype, d):
    a = make(1111, d, dtype=dtype, kind="graded").a
    expected = SKETCHES[sketch](a, backend)
    assert np.isfinite(expected).all()
    for layout in draws.LAYOUTS:
        shown = draws.relayout(a, layout)
        for count in (1, *THREADS):
            found = SKETCHES[sketch](shown, backend, n_threads=count)
            assert_bits(found, expected, backend, err_msg=f"{layout}, {count} threads")


@sketches
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("d", [1, 5, 140])
def test_chunks_change_no_bit(backend, sketch, dtype, d):
    a = make(1111, d, dtype=dtype, kind="graded").a
    expected = SKETCHES[sketch](a, backend)
    for cuts in ([1], [1, 2, 4], [3, 4]):
        out, first = None, 0
        for cut in [EVERY[sketch] * c for c in cuts] + [len(a)]:
            out = SKETCHES[sketch](a[first:cut], backend, first=first, out=out)
            first = cut
        assert_bits(out, expected, backend, err_msg=str(cuts))


@sketches
def test_sketches_add_to_what_is_there(backend, sketch):
    """Integers: but for the Gaussian, sums are exact, so the order cannot hide anything."""
    a = integers(0, (1000, 6))
    fresh = SKETCHES[sketch](a, backend)
    there = integers(1, fresh.shape)
    found = SKETCHES[sketch](a, backend, out=there.copy())
    if sketch == "gaussian":
        size = np.abs(fresh) + np.abs(there) + 8 * 4 * 1000
        assert_within(found, there + fresh, 8 * EPS * size)
    else:
        np.testing.assert_array_equal(found, there + fresh)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_csr_bits_are_those_of_the_dense_matrix(backend, dtype, index):
    a = make(900, 40, dtype=dtype, kind="sparse").a
    expected = sparse_sign(a, 24, 8, 5, backend)
    rows = sparse.csr_array(a)
    for count in (1, *THREADS):
        found = sparse_sign_csr(rows, 24, 8, 5, backend, n_threads=count, index=index)
        assert_bits(found, expected, backend)
    head, tail = sparse.csr_array(a[:333]), sparse.csr_array(a[333:])
    out = sparse_sign_csr(head, 24, 8, 5, backend)
    assert_bits(sparse_sign_csr(tail, 24, 8, 5, backend, first=333, out=out), expected, backend)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("k", [1, 7, 64])
def test_adjoint_threads_layouts_and_parts(backend, dtype, k):
    b = make(24, k, dtype=dtype).a
    expected = sparse_sign_rows(b, 1111, 8, 5, backend)
    for layout in draws.LAYOUTS:
        shown = draws.relayout(b, layout)
        for count in (1, *THREADS):
            found = sparse_sign_rows(shown, 1111, 8, 5, backend, n_threads=count)
            np.testing.assert_array_equal(found, expected)
    part = sparse_sign_rows(b, 77, 8, 5, backend, first=501)
    np.testing.assert_array_equal(part, expected[501:578])


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_entries_threads_and_parts(backend, kind, dtype):
    whole = entries(101, kind, 5, 0, 0, (101, 700), dtype, backend)
    for count in THREADS:
        again = entries(101, kind, 5, 0, 0, (101, 700), dtype, backend, count)
        np.testing.assert_array_equal(again, whole)
    for row, first, shape in [(0, 1, (101, 255)), (33, 257, (7, 3)), (100, 699, (1, 1))]:
        part = entries(101, kind, 5, row, first, shape, dtype, backend)
        expected = whole[row : row + shape[0], first : first + shape[1]]
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("shape", [(1, 512, 70), (5, 64, 1), (300, 8, 3)])
def test_fwht_threads_and_layouts(backend, dtype, shape):
    x = make(shape[0] * shape[1], shape[2], dtype=dtype, kind="graded").a.reshape(shape)
    expected = fwht(x.copy(), backend)
    for layout in draws.LAYOUTS:
        for count in (1, *THREADS):
            found = fwht(draws.relayout(x.copy(), layout), backend, count)
            assert_bits(found, expected, backend)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("first", [0, 2**33, 2**40])
def test_rows_far_down_and_large_seeds(backend, seed, first):
    """Row numbers and seeds beyond 32 bits."""
    a = np.eye(3)
    expected = np.zeros((10, 3))
    for i in range(3):
        for k in range(2):
            w = oracle.word(seed, 0, (first + i) * 2 + k)
            expected[k * 5 + ((w >> 1) * 5 >> 31), i] = -1 if w & 1 else 1
    np.testing.assert_array_equal(sparse_sign(a, 10, 2, seed, backend, first=first), expected)
    rows = sparse_sign_rows(np.eye(10), 3, 2, seed, backend, first=first)
    np.testing.assert_array_equal(rows, expected.T)
    words = [oracle.word(seed, 4, (first + i) * 4) for i in range(3)]
    signs = np.array([[-1.0 if w >> r & 1 else 1.0 for w in words] for r in range(10)])
    np.testing.assert_array_equal(dense(a, 10, 1, seed, backend, first=first), signs)
    found = entries(10, 1, seed, 0, first, (10, 3), np.float64, backend)
    np.testing.assert_array_equal(found, signs)
    samples, d = [0, 5, 3 * 2**41 + 1], [oracle.sign(seed, 1, first + i) for i in range(3)]
    found = srht(a, samples, 4, seed, backend, first=first)
    np.testing.assert_array_equal(found, hadamard(samples, range(first, first + 3)) * d)


# ---- passes over A -------------------------------------------------------------------------------


def blocked(n, eps):
    """Relative error of a sum of n terms: at worst in T within blocks, and so over them."""
    return (min(n, BLOCK) + n // BLOCK + 8) * eps


@given(p=tall(), k=st.sampled_from([1, 1, 2, 5]), right=st.booleans(), layout=draws.layouts)
def test_residual_gradient(backend, p, k, right, layout):
    (n, d), before = p.a.shape, draws.whole(p.a).tobytes()
    x, a = p.like((d, k)), p.exact
    b = draws.relayout(p.like((n, k)), layout) if right else None
    b = b if b is None else np.ascontiguousarray(b)
    r, g, norms = residual_gradient(p.a, x, b, backend)
    image = a @ x.astype(float)
    expected = image if b is None else b.astype(float) - image
    size = np.abs(a) @ np.abs(x.astype(float)) + (0 if b is None else np.abs(b.astype(float)))
    off = (d + 4) * p.eps * size
    used = assert_within(r, expected, off, "r")
    limit = np.abs(a).T @ (off + blocked(n, p.eps) * np.abs(expected))
    used = max(used, assert_within(g, a.T @ expected, limit, "g"))
    limit = (2 * np.abs(expected) * off + off**2 + blocked(n, p.eps) * expected**2).sum(axis=0)
    target(max(used, assert_within(norms, (expected**2).sum(axis=0), limit, "norms")))
    assert draws.whole(p.a).tobytes() == before


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (3000, 17), (5, 600)])
def test_residual_gradient_threads(backend, dtype, k, shape):
    p = make(*shape, dtype=dtype)
    x, b = p.like((shape[1], k)), p.like((shape[0], k))
    for side in (b, None):
        first = residual_gradient(p.a, x, side, backend)
        for count in THREADS:
            again = residual_gradient(p.a, x, side, backend, n_threads=count)
            for found, expected in zip(again, first, strict=True):
                np.testing.assert_array_equal(found, expected)
        # What is not asked for changes nothing.
        r, _, norms = residual_gradient(p.a, x, side, backend, g=False)
        np.testing.assert_array_equal(r, first[0])
        assert_within(norms, first[2], 2 * blocked(shape[0], p.eps) * first[2])
        _, g, norms = residual_gradient(p.a, x, side, backend, r=False)
        np.testing.assert_array_equal(g, first[1])
        np.testing.assert_array_equal(norms, first[2])


def upper(rng, d):
    """Return an upper triangular matrix; what is below may not be read."""
    return np.triu(rng.standard_normal((d, d)))


@given(p=tall(max_columns=70))
def test_preconditioned_gram(backend, p):
    """An entry of A R^-1 is a sum of d; then sums of n products of two of them."""
    (n, d), before = p.a.shape, draws.whole(p.a).tobytes()
    inverse = upper(p.rng, d)
    q, size = p.exact @ inverse, np.abs(p.exact) @ np.abs(inverse)
    found = gram("preconditioned_gram", p.a, inverse, backend)
    limit = (2 * (d + 2) * p.eps + blocked(n, p.eps)) * (size.T @ size)
    target(assert_within(found, q.T @ q, limit))
    np.testing.assert_array_equal(found, found.T)
    assert draws.whole(p.a).tobytes() == before


@given(p=tall(max_columns=70), weights=st.sampled_from([None, "positive", "zeros", "signed"]))
def test_weighted_gram(backend, p, weights):
    n, before = len(p.a), draws.whole(p.a).tobytes()
    w = None if weights is None else p.rng.random(n)
    if weights == "zeros":
        w[p.rng.random(n) < 0.5] = 0
    if weights == "signed":
        w -= 0.5
    found = gram("weighted_gram", p.a, w, backend)
    a, factor = p.exact, np.ones(n) if w is None else w
    limit = (blocked(n, p.eps) + 4 * p.eps) * (np.abs(a).T * np.abs(factor)) @ np.abs(a)
    target(assert_within(found, (a.T * factor) @ a, limit))
    np.testing.assert_array_equal(found, found.T)
    assert draws.whole(p.a).tobytes() == before


@given(p=tall(max_columns=70), kind=st.sampled_from(["rows", "triangle", "square", "few", "many"]))
def test_row_norms(backend, p, kind):
    (_, d), before = p.a.shape, draws.whole(p.a).tobytes()
    k = {"few": 1, "many": d + 5}.get(kind, d)
    m = None if kind == "rows" else p.rng.standard_normal((d, k))
    if kind == "triangle":
        m = np.triu(m)
    factor = np.eye(d) if m is None else m
    y, size = p.exact @ factor, np.abs(p.exact) @ np.abs(factor)
    limit = (2 * (d + 2) + k + 8) * p.eps * np.square(size).sum(axis=1)
    target(assert_within(row_norms(p.a, m, backend), np.square(y).sum(axis=1), limit))
    assert draws.whole(p.a).tobytes() == before


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3000, 17), (1500, 130), (5, 200)])
def test_threads_of_gram_and_norms(backend, dtype, shape):
    p = make(*shape, dtype=dtype)
    inverse, w = upper(p.rng, shape[1]), p.rng.random(shape[0])
    calls = [
        lambda n_threads: gram("preconditioned_gram", p.a, inverse, backend, n_threads),
        lambda n_threads: gram("weighted_gram", p.a, w, backend, n_threads),
        lambda n_threads: gram("weighted_gram", p.a, None, backend, n_threads),
        lambda n_threads: row_norms(p.a, inverse, backend, n_threads),
        lambda n_threads: row_norms(p.a, None, backend, n_threads),
    ]
    for call in calls:
        first = call(1)
        for count in THREADS:
            np.testing.assert_array_equal(call(count), first)


# ---- agreement of backends -----------------------------------------------------------------------

HERE = [b for b in backends.TABLE["sketch.dense"].backends if backends.why_missing(b) is None]
OTHERS = [name for name in HERE if name != "numba"]


@pytest.mark.skipif(not OTHERS, reason="there is one backend only")
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("seed", [0, 7, 2**63 + 1])
def test_backends_make_the_same_signs_and_indices(dtype, seed):
    """Integers: every sum is exact, so what differs would be a sign or a place."""
    a, b = integers(1, (1000, 19), dtype), integers(2, (40, 7), dtype)
    samples = oracle.samples(40, 1000, seed % 2**64)

    def everything(name):
        rows = sparse.csr_array(a * (a > 5))
        x = integers(3, (3, 1024, 2), dtype)
        return [
            *(sparse_sign(a, 40, nnz, seed, name) for nnz in (1, 2, 4, 8)),
            *(sparse_sign_rows(b, 1000, nnz, seed, name) for nnz in (1, 2, 4, 8)),
            sparse_sign_csr(rows, 40, 8, seed, name),
            dense(a, 41, 1, seed, name),
            entries(41, 1, seed, 0, 0, (41, 600), dtype, name),
            srht(a, samples, 32, seed, name),
            fwht(x, name),
        ]

    expected = everything("numba")
    for name in OTHERS:
        for found, other in zip(everything(name), expected, strict=True):
            np.testing.assert_array_equal(found, other)


@pytest.mark.skipif(not OTHERS, reason="there is one backend only")
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_backends_make_the_same_normal_numbers(dtype):
    """Up to the last bits of the logarithm and the sine, and so of a rounding to float32."""
    expected = entries(101, 0, 3, 0, 0, (101, 3000), dtype, "numba")
    for name in OTHERS:
        found = entries(101, 0, 3, 0, 0, (101, 3000), dtype, name)
        relative = roundings(name, dtype) + roundings("numba", dtype)
        assert_within(found, expected, 32 * EPS * 7 + relative * np.abs(expected))


# ---- edges ---------------------------------------------------------------------------------------


@sketches
@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0), (700, 3), (1110, 6)])
def test_nothing_hides_what_is_not_finite(backend, sketch, dtype, value, where):
    """Callers look for NaN in the sketch instead of in A."""
    a = make(1111, 7, dtype=dtype).a
    a[where] = value
    column = SKETCHES[sketch](a, backend)[:, where[1]]
    assert not np.isfinite(column).all()


@sketches
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33])
def test_few_rows(backend, sketch, n):
    a = integers(n, (n, 3))
    found = SKETCHES[sketch](a, backend)
    m, seed = len(found), 5
    s = {
        "sparse_sign": lambda: oracle.sparse_sign(m, n, 8, seed),
        "count_sketch": lambda: oracle.sparse_sign(m, n, 1, seed),
        "gaussian": lambda: oracle.gaussian(m, n, seed)[0],
        "rademacher": lambda: oracle.rademacher(m, n, seed),
        "srht": lambda: hadamard(oracle.samples(37, 3000, 5), range(n)) * oracle.signs(5, 1, n),
    }[sketch]()
    assert_within(found, s @ a, 64 * (n + 8) * EPS * 8 if sketch == "gaussian" else 0)
