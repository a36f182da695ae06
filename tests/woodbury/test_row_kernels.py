"""The raw kernels that see gradients as rows: Gram matrices, products, column norms, rounding."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric import backends
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import wide
from tests.woodbury import oracle
from tests.woodbury.problems import EPS, STORAGES, bits, computing, make, problems, storages

row_layouts = st.sampled_from(["C", "padded"])
LARGE = 70_001  # more than any slab or vector in one go


def kernel(name, backend):
    return backends.resolve(f"woodbury.{name}", backend)


def empty(shape, dtype=np.float64):
    return np.full(shape, -7, dtype)


def integers(seed, shape, storage, largest=8):
    rng = np.random.default_rng(seed)
    return rng.integers(-largest, largest + 1, shape).astype(STORAGES[storage])


def gram(x, size, exact, backend, n_threads=1):
    m, d = x.shape
    k = empty((len(oracle.blocks(d, size)), m, m))
    kernel("gram", backend)(bits(x), size, exact, k, n_threads)
    return k


def dots(x, v, size, backend, n_threads=1):
    out = empty((len(oracle.blocks(x.shape[1], size)), len(x), len(v)))
    kernel("dots", backend)(bits(x), v, size, out, n_threads)
    return out


def combine(x, c, v, scale, size, backend, n_threads=1, in_place=False):
    dtype = computing(x.dtype)
    out = v.copy() if in_place else empty((c.shape[1], x.shape[1]), dtype)
    source = out if in_place else v
    kernel("combine", backend)(bits(x), c, source, scale, size, out, n_threads)
    return out


def column_norms(x, e, size, factor, backend, n_threads=1):
    out = empty(x.shape[1])
    more = None if e is None else bits(e)
    kernel("column_norms", backend)(bits(x), more, size, factor, out, n_threads)
    return out


# ---- bounds --------------------------------------------------------------------------------------


@given(g=problems(max_block=90), layout=row_layouts, exact=st.booleans())
def test_gram(backend, g, layout, exact):
    """Inner products of n entries: n + 8 roundings, of float64 where it must be exact."""
    shown = draws.relayout(g.stored, layout)
    before = draws.whole(shown).tobytes()
    found = gram(shown, g.block_size, exact, backend)
    eps, used = (EPS if exact else g.eps), 0.0
    for k, at in zip(found, g.at, strict=True):
        np.testing.assert_array_equal(k, k.T)
        x = wide(g.exact[:, at])
        size = np.abs(x) @ np.abs(x).T
        used = max(used, assert_within(k, x @ x.T, (at.stop - at.start + 8) * eps * size))
    target(used)
    assert draws.whole(shown).tobytes() == before


@given(g=problems(max_block=90), layout=row_layouts, k=st.integers(1, 4))
def test_dots(backend, g, layout, k):
    v = draws.relayout(g.vectors(k, g.d), layout)
    shown = draws.relayout(g.stored, layout)
    before = draws.whole(shown).tobytes(), draws.whole(v).tobytes()
    found, used = dots(shown, v, g.block_size, backend), 0.0
    for p, at in zip(found, g.at, strict=True):
        x, y = wide(g.exact[:, at]), wide(v[:, at])
        limit = (at.stop - at.start + 8) * g.eps * (np.abs(x) @ np.abs(y).T)
        used = max(used, assert_within(p, x @ y.T, limit))
    target(used)
    assert (draws.whole(shown).tobytes(), draws.whole(v).tobytes()) == before


@given(
    g=problems(max_block=90),
    layout=row_layouts,
    k=st.integers(1, 4),
    form=st.sampled_from(["product", "sum", "in place"]),
)
def test_combine(backend, g, layout, k, form):
    """m products and an axpy in T; the coefficients may be rounded to T first."""
    v = None if form == "product" else g.vectors(k, g.d)
    scale = 0.0 if v is None else 1.7
    c = g.rng.standard_normal((len(g.at), k, g.m))
    shown = draws.relayout(g.stored, layout)
    before = draws.whole(shown).tobytes()
    found = combine(shown, c, v, scale, g.block_size, backend, in_place=form == "in place")
    used = 0.0
    for b, at in enumerate(g.at):
        x, y = wide(g.exact[:, at]), 0 if v is None else wide(v[:, at])
        size = np.abs(c[b]) @ np.abs(x) + np.abs(scale * y)
        expected = c[b] @ x + np.longdouble(scale) * y
        used = max(used, assert_within(found[:, at], expected, (g.m + 8) * g.eps * size))
    target(used)
    assert draws.whole(shown).tobytes() == before


@given(g=problems(max_block=40), layout=row_layouts, extra=st.integers(0, 3))
def test_column_norms(backend, g, layout, extra):
    """W = L^-1 [G; E] is off as if L were: |W_i|^2 by 2 |L^-T W_i| c eps |L|, all in float64."""
    e = min(extra, g.m - 1)
    x, added = g.stored[: g.m - e], g.stored[g.m - e :] if e else None
    factors = []
    for at in g.at:
        y = g.exact[:, at]
        factors.append(np.linalg.cholesky(y @ y.T + g.m * max(g.damping, 1e-8) * np.eye(g.m)))
    shown = draws.relayout(x, layout)
    before = draws.whole(shown).tobytes()
    found = column_norms(shown, added, g.block_size, np.stack(factors), backend)
    used = 0.0
    for factor, at in zip(factors, g.at, strict=True):
        w = np.zeros((g.m, at.stop - at.start), np.longdouble)
        for i in range(g.m):  # forward substitution
            w[i] = (g.exact[i, at] - wide(factor[i, :i]) @ w[:i]) / factor[i, i]
        y = np.linalg.norm(np.linalg.solve(factor.T, w.astype(float)), axis=0)
        own = (w**2).sum(axis=0)
        limit = np.linalg.norm(factor) * y * np.sqrt(own.astype(float)) + own
        used = max(used, assert_within(found[at], own, 4 * (g.m + 8) * EPS * limit))
    target(used)
    assert draws.whole(shown).tobytes() == before


# ---- exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("m", "d", "size"),
    [(1, 1, 1), (3, LARGE, LARGE), (17, 3000, 1000), (33, 500, 64), (5, 40, 1), (130, 300, 128)],
)
def test_integer_grams_are_exact(backend, exact, storage, m, d, size):
    x = integers(m, (m, d), storage)
    found = gram(x, size, exact, backend, n_threads=2)
    for k, at in zip(found, oracle.blocks(d, size), strict=True):
        y = x[:, at].astype(float)
        np.testing.assert_array_equal(k, y @ y.T)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("m", "d", "size", "k"),
    [(1, 1, 1, 1), (4, LARGE, LARGE, 1), (17, 3000, 1000, 3), (9, 99, 7, 2)],
)
def test_integer_products_are_exact(backend, storage, m, d, size, k):
    x = integers(m, (m, d), storage)
    at = oracle.blocks(d, size)
    v = integers(1, (k, d), storage).astype(computing(x.dtype))
    c = np.random.default_rng(2).integers(-8, 9, (len(at), k, m)).astype(float)
    found, combined = dots(x, v, size, backend, 2), combine(x, c, v, -2.0, size, backend, 2)
    for b, block in enumerate(at):
        y = x[:, block].astype(float)
        np.testing.assert_array_equal(found[b], y @ v[:, block].astype(float).T)
        np.testing.assert_array_equal(combined[:, block], c[b] @ y - 2 * v[:, block])


def test_unit_factors_give_exact_norms(backend):
    """L = I: sums of squares of integers; then L = 2 I with one row appended."""
    x = integers(0, (6, 900), "float32")
    factor = np.broadcast_to(np.eye(6), (9, 6, 6)).copy()
    expected = (x.astype(float) ** 2).sum(axis=0)
    np.testing.assert_array_equal(column_norms(x, None, 100, factor, backend), expected)
    found = column_norms(x[:5], x[5:], 100, 2 * factor, backend, 2)
    np.testing.assert_array_equal(found, expected / 4)


# ---- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(("d", "size"), [(LARGE, LARGE), (LARGE, 1000), (5003, 7)])
def test_threads_change_nothing(backend, storage, d, size):
    m = 6
    g = make(m, d, size, storage=storage)
    v = g.vectors(2, g.d)
    blocks = len(g.at)
    c = g.rng.standard_normal((blocks, 2, m))
    factor = np.broadcast_to(np.eye(m) + np.tri(m, k=-1), (blocks, m, m)).copy()
    calls = {
        "gram": lambda n: gram(g.stored, size, False, backend, n),
        "exact gram": lambda n: gram(g.stored, size, True, backend, n),
        "dots": lambda n: dots(g.stored, v, size, backend, n),
        "combine": lambda n: combine(g.stored, c, v, 0.5, size, backend, n),
        "column_norms": lambda n: column_norms(g.stored, None, size, factor, backend, n),
    }
    for name, call in calls.items():
        one = call(1)
        for threads in (2, 3):
            assert call(threads).tobytes() == one.tobytes(), name


# ---- store ---------------------------------------------------------------------------------------


def store(g, storage, backend, *, rounded=True, n_threads=1):
    row, back = empty(len(g), STORAGES[storage]), empty(len(g), g.dtype) if rounded else None
    first = kernel("store", backend)(g, bits(row), back, n_threads)
    return first, row, back


@given(storage=storages, d=draws.sizes(300), seed=draws.seeds, rounded=st.booleans())
def test_store_rounds_to_nearest_even(backend, storage, d, seed, rounded):
    """Bit by bit what NumPy and ml_dtypes do, subnormal numbers and ties included."""
    rng = np.random.default_rng(seed)
    g = rng.standard_normal(d) * 10.0 ** rng.integers(-9, 4, d)
    g = g.astype(computing(STORAGES[storage]))
    half = (rng.integers(-512, 512, d) + 0.5) / 256  # ties of bfloat16
    g = np.where(rng.random(d) < 0.3, half.astype(g.dtype), g)
    expected = g.astype(STORAGES[storage])
    first, row, back = store(g, storage, backend, rounded=rounded)
    assert first == -1
    assert row.tobytes() == expected.tobytes()
    if rounded:
        np.testing.assert_array_equal(back, expected.astype(g.dtype))


EVERY_PATTERN = np.arange(2**16, dtype=np.uint16)


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_every_short_number_is_kept(backend, storage):
    """And between two neighbours the one with the even pattern is taken."""
    values = EVERY_PATTERN.view(STORAGES[storage])
    finite = values[np.isfinite(values.astype(np.float32))]
    first, row, back = store(finite.astype(np.float32), storage, backend, n_threads=2)
    assert first == -1
    assert row.tobytes() == finite.tobytes()
    np.testing.assert_array_equal(back, finite.astype(np.float32))
    # Halfway between neighbours; float32 holds that exactly unless they are subnormal.
    positive = finite[: finite.size // 2].astype(np.float32)
    middle = positive[1:] / 2 + positive[:-1] / 2
    ties = middle.astype(float) * 2 == positive[1:].astype(float) + positive[:-1]
    assert ties.sum() > 30_000
    _, row, _ = store(middle[ties], storage, backend)
    even = np.where(EVERY_PATTERN[: len(middle)] % 2, positive[1:], positive[:-1])[ties]
    np.testing.assert_array_equal(row.astype(np.float32), even)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("d", "at"), [(1, 0), (9, 8), (100, 33), (LARGE, 0), (LARGE, LARGE - 1)])
def test_store_refuses(backend, storage, bad, d, at):
    """The first bad index comes back and nothing is written, whatever thread found it."""
    g = np.ones(d, computing(STORAGES[storage]))
    g[at] = g[-1] = bad
    for threads in (1, 2, 3):
        first, row, back = store(g, storage, backend, n_threads=threads)
        assert first == at
        assert (row == -7).all()
        assert (back == -7).all()


@pytest.mark.parametrize(
    ("storage", "largest", "smallest_bad"),
    [
        ("float16", 65519.0, 65520.0),
        ("bfloat16", 3.3895e38, 3.3962e38),  # (2 - 2^-8) 2^127 is the tie
    ],
)
def test_store_refuses_what_rounds_to_infinity(backend, storage, largest, smallest_bad):
    good = np.array([1.0, largest, -largest], np.float32)
    assert np.isfinite(good.astype(STORAGES[storage]).astype(float)).all()
    assert store(good, storage, backend)[0] == -1
    for bad in (smallest_bad, -smallest_bad):
        g = np.array([1.0, bad, 2.0], np.float32)
        with np.errstate(over="ignore"):
            assert np.isinf(g.astype(STORAGES[storage])[1].astype(float))
        first, row, _ = store(g, storage, backend)
        assert first == 1
        assert (row == -7).all()


def test_store_into_a_ring(backend):
    """One row of a window: its neighbours stay."""
    window = empty((3, 50), ml_dtypes.bfloat16)
    g = np.linspace(-1, 1, 50, dtype=np.float32)
    kernel("store", backend)(g, window.view(np.uint16)[1], None, 1)
    np.testing.assert_array_equal(window[1], g.astype(ml_dtypes.bfloat16))
    assert (window[[0, 2]].astype(float) == -7).all()
