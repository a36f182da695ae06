"""Sketches of rows that come in chunks: the bits of the whole, and nothing lost on the way."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from quadric.sketch import count_sketch, gaussian, sparse_sign, srht
from tests import strategies as draws
from tests.refusals import assert_refused, shown
from tests.sketch.bits import assert_bits
from tests.sketch.matrices import integers, make
from tests.sketch.operators import EXACT, MAKE, bound

operators = pytest.mark.parametrize("name", MAKE)


def fed(operator, a, cuts, **options):
    stream = operator.stream(a.shape[1], a.dtype, **options)
    for chunk in np.split(a, cuts):
        stream.update(chunk)
    return stream


@operators
@given(
    n=st.integers(1, 700),
    cuts=st.lists(st.integers(0, 700), max_size=8),
    dtype=draws.dtypes,
    layout=draws.layouts,
    seed=draws.seeds,
)
def test_chunks_change_no_bit(backend, name, n, cuts, dtype, layout, seed):
    a = make(n, 3, dtype=dtype, kind="graded", layout=layout, seed=seed).a
    operator = MAKE[name](min(24, n), n, seed, backend=backend)
    stream = fed(operator, a, sorted(min(c, n) for c in cuts))
    assert stream.rows_seen == n
    assert_bits(stream.value(), operator @ a, backend)


@operators
@pytest.mark.parametrize("first", [1, 24, 255, 256, 300])
def test_chunks_of_a_part_change_no_bit(backend, name, first):
    a = make(700, 3, kind="graded").a
    part = MAKE[name](24, 700, 5, backend=backend)[3:20, first:601]
    expected = part @ a[first:601]
    for cuts in ([1], [100], [5, 5, 17, 200, 290]):
        stream = fed(part, a[first:601], [min(c, 600 - first) for c in cuts])
        assert_bits(stream.value(), expected, backend)


@operators
def test_row_by_row(backend, name):
    a = make(300, 2, dtype=np.float32).a
    operator = MAKE[name](24, 300, 5, backend=backend)
    stream = fed(operator, a, range(1, 300))
    assert_bits(stream.value(), operator @ a, backend)


@operators
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_sparse_chunks(backend, name, dtype):
    """Their bits do not depend on the cuts; and those of integers not on how they are stored."""
    a = integers(0, (700, 9), dtype) * (np.random.default_rng(0).random((700, 9)) < 0.3)
    a = a.astype(dtype)
    operator = MAKE[name](24, 700, 5, backend=backend)
    expected = operator @ sparse.csr_array(a)
    for cuts in ([1, 256], [100, 300, 511, 512]):
        for mixed in (False, True):
            stream = operator.stream(9, dtype)
            for i, chunk in enumerate(np.split(a, cuts)):
                stream.update(chunk if mixed and i % 2 else sparse.csc_array(chunk))
            if mixed and name not in EXACT:
                s, eps = operator.to_dense(), np.finfo(dtype).eps
                limit = 2 * bound(name, s, a.astype(float), eps)
                assert (np.abs(stream.value() - expected) <= limit).all()
            else:
                np.testing.assert_array_equal(stream.value(), expected)


@operators
def test_partial_values(backend, name):
    """Of the rows so far; and looking does not disturb."""
    a = make(600, 3).a
    operator = MAKE[name](24, 600, 5, backend=backend)
    stream = operator.stream(3)
    np.testing.assert_array_equal(stream.value(partial=True), 0)
    for cut in (100, 299, 300):
        stream.update(a[stream.rows_seen : cut])
        expected = operator[:, :cut] @ a[:cut]
        assert_bits(stream.value(partial=True), expected, backend)
    stream.update(a[300:])
    assert_bits(stream.value(), operator @ a, backend)
    assert_bits(stream.value(partial=True), operator @ a, backend)


@operators
def test_merging(backend, name):
    """Sketches of disjoint rows add up, in any order."""
    a = make(600, 3).a
    operator = MAKE[name](24, 600, 5, backend=backend)
    limit = 4 * bound(name, operator.to_dense(), a, 2.0**-52)
    cuts = [0, 100, 110, 400, 600]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        parts = [fed(operator[:, i:j], a[i:j], [3]) for i, j in pairwise(cuts)]
        total = parts[order[0]]
        for k in order[1:]:
            before = parts[k].value()
            total.merge(parts[k])
            np.testing.assert_array_equal(parts[k].value(), before)
        assert total.rows_seen == 600
        assert (np.abs(total.value() - operator @ a) <= limit).all()


def test_merging_while_rows_come(backend):
    a = make(600, 3).a
    S = gaussian(8, 600, backend=backend)
    stream = S[:, :300].stream(3)
    stream.update(a[:77])
    stream.merge(fed(S[:, 300:], a[300:], []))
    assert stream.rows_seen == 377
    stream.update(a[77:300])
    np.testing.assert_allclose(stream.value(), S @ a, rtol=0, atol=1e-12)


def test_the_caller_may_reuse_its_buffer(backend):
    a, buffer = make(600, 3).a, np.empty((50, 3))
    S = srht(20, 600, backend=backend)
    stream = S.stream(3)
    for i in range(0, 600, 50):
        buffer[:] = a[i : i + 50]
        stream.update(buffer)
        buffer[:] = np.nan
    assert_bits(stream.value(), S @ a, backend)


@operators
def test_pickles_go_on(backend, name):
    a = make(600, 3).a
    operator = MAKE[name](24, 600, 5, backend=backend)
    stream = operator.stream(3)
    stream.update(a[:301])
    again = pickle.loads(pickle.dumps(stream))
    again.update(a[301:])
    assert_bits(again.value(), operator @ a, backend)


def test_types(backend):
    S = sparse_sign(8, 100, backend=backend)
    assert S.stream(3).dtype == np.float64
    assert S.stream(3, "float32").dtype == np.float32
    assert gaussian(8, 100, dtype=np.float32, backend=backend).stream(3).dtype == np.float32
    assert repr(S.stream(3)) == (
        "StreamingSketch(sparse_sign(8, 100, nnz=8, seed=0), d=3, dtype=float64, rows_seen=0)"
    )


def test_torch(backend):
    torch = pytest.importorskip("torch")
    a = make(100, 3).a
    S = sparse_sign(8, 100, backend=backend)
    stream = S.stream(3)
    stream.update(torch.from_numpy(a))
    assert isinstance(stream.value(), torch.Tensor)


# ---- what is refused -----------------------------------------------------------------------------


class Case:
    def __init__(self, backend, dtype=np.float64):
        self.a = make(40, 3, dtype=dtype).a
        self.S = srht(6, 40, backend=backend)
        self.stream = self.S.stream(3, dtype)
        self.stream.update(self.a[:15])

    def state(self):
        return self.stream.rows_seen, self.stream.value(partial=True).tobytes(), self.a.tobytes()

    def refuse(self, name, call, error=ValueError):
        return assert_refused(name, call, error, self.state)


@pytest.fixture
def case(backend):
    return Case(backend)


@pytest.mark.parametrize("shape", [(4, 2), (4, 4), (3,), (1, 4, 3), (0, 5)])
def test_a_chunk_of_the_wrong_width(case, shape):
    message = case.refuse("chunk", lambda: case.stream.update(np.zeros(shape)))
    assert "(rows, 3)" in message
    assert str(shape) in message


def test_a_sparse_chunk_of_the_wrong_width(case):
    case.refuse("chunk", lambda: case.stream.update(sparse.csr_array((4, 2))))


def test_too_many_rows(case):
    message = case.refuse("chunk", lambda: case.stream.update(case.a[:26]))
    assert "25" in message
    assert "26" in message


def test_a_stream_that_ends_early(case):
    message = case.refuse("partial", lambda: case.stream.value())
    assert "25 of 40" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stored", ["dense", "sparse"])
def test_rows_that_are_not_finite(case, value, stored):
    bad = case.a[15:20].copy()
    bad[2, 1] = value
    chunk = bad if stored == "dense" else sparse.csr_array(bad)
    case.refuse("chunk", lambda: case.stream.update(chunk))


def test_rows_that_nobody_looks_at(backend):
    a = make(40, 3).a
    a[7] = np.nan
    stream = fed(sparse_sign(8, 40, backend=backend), a, [5], check_finite=False)
    assert np.isnan(stream.value()).any()


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.complex128, bool, object, np.float16])
def test_chunks_of_another_type(case, dtype):
    case.refuse("chunk", lambda: case.stream.update(np.ones((2, 3), dtype)), TypeError)


@pytest.mark.parametrize("chunk", [None, "rows", [[1.0, 2.0, 3.0]], 5])
def test_chunks_that_are_none(case, chunk):
    case.refuse("chunk", lambda: case.stream.update(chunk), TypeError)


def test_what_cannot_be_merged(case, backend):
    whole, a = case.S, case.a

    def part(operator, start=15, stop=40, dtype=np.float64, d=3):
        rows = np.zeros((stop - start, d), dtype)
        return fed(operator[:, start:stop], rows, [])

    def merge(other):
        return case.refuse("other", lambda: case.stream.merge(other), (ValueError, TypeError))

    # `case.stream` claims all rows, so that nothing can be merged with it.
    assert "15 to 40 again" in merge(part(whole))
    merge(part(srht(6, 40, seed=1, backend=backend)))
    merge(part(srht(6, 41, backend=backend)))
    merge(part(count_sketch(6, 40, backend=backend)))
    merge(part(whole[:5]))
    merge(part(whole, dtype=np.float32))
    merge(part(whole, d=2))
    merge(case.S)
    merge(None)
    left = whole[:, :15].stream(3)
    left.update(a[:15])
    late = whole[:, 15:].stream(3)
    late.update(a[15:30])
    assert "10 too few" in assert_refused("other", lambda: left.merge(late), ValueError)
    late.update(a[30:])
    left.merge(late)
    assert "again" in assert_refused("other", lambda: left.merge(late), ValueError)
    assert "again" in assert_refused("other", lambda: left.merge(left), ValueError)


@pytest.mark.parametrize("d", [0, -1, 2.5, "3", None], ids=shown)
def test_width(backend, d):
    assert_refused("d", lambda: sparse_sign(8, 40, backend=backend).stream(d))


@pytest.mark.parametrize("dtype", ["float16", np.int64, complex, "words", object], ids=shown)
def test_dtype(backend, dtype):
    assert_refused("dtype", lambda: sparse_sign(8, 40, backend=backend).stream(3, dtype))
