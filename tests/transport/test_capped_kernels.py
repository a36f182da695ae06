"""The raw kernels of plans with at most k entries in a column: against sorting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import wide
from tests.transport import oracle
from tests.transport.problems import EPS, kernel, make, problems


def columns(p, f, k, backend, threads=1):
    m = p.shape[1]
    indices, values, g = np.full((m, k), -7, np.int32), np.full((m, k), -7.0), np.full(m, -7.0)
    kernel("capped_columns", backend)(p.args[0], f, p.b, k, p.reg, indices, values, g, threads)
    return indices, values, g


def dual(p, f, g, k, backend, threads=1):
    m = p.shape[1]
    indices, values = np.full((m, k), -7, np.int32), np.full((m, k), -7.0)
    kernel("capped_dual", backend)(p.args[0], f, g, k, p.reg, indices, values, threads)
    return indices, values


def potentials(p):
    return p.scale * p.rng.standard_normal(p.shape[0])


stored = problems(sources=("stored",), min_log_reg=-2)


def chosen(indices, values, n):
    """Return the rows of the positive entries of a column, after which only n and 0 may follow."""
    count = int((indices < n).sum())
    assert (np.diff(indices[:count]) > 0).all()
    assert (values[:count] > 0).all()
    assert (indices[count:] == n).all()
    assert (values[count:] == 0).all()
    return indices[:count]


def assert_largest(scores, rows, shift, k, limit):
    """Assert that no entry that was left out should be there, in place of another or beside it."""
    left = np.delete(scores, rows)
    if not left.size:
        return
    if len(rows) == k:
        assert left.max() <= scores[rows].min() + limit
    else:
        assert left.max() + shift <= limit


@given(p=stored, layout=draws.layouts, k=st.sampled_from([1, 2, 5, 200]))
def test_columns(backend, p, layout, k):
    """Each column is the projection of its k best scores onto the plans of mass b_j.

    Scores (f - c) / reg are rounded, relative to their size; where two compete for the last place
    within that, either may have it.
    """
    n, m = p.shape
    k, f = min(k, n), potentials(p)
    indices, values, g = columns(p.relayout(layout), f, k, backend)
    scores = (wide(f)[:, None] - p.exact) / p.reg
    size = (np.abs(f)[:, None] + p.size) / p.reg
    limit = 16 * EPS * (float(size.max()) + float(p.b.max())) * (k + 4)
    for j in range(m):
        rows = chosen(indices[j], values[j], n)
        assert_within(values[j].sum(), p.b[j], limit)
        t, shift = oracle.capped_column(scores[rows, j], p.b[j], k)
        assert_within(values[j, : len(rows)], t, limit)
        assert_within(g[j] / p.reg, shift, limit)
        assert_largest(scores[:, j], rows, shift, k, limit)


@given(p=stored, layout=draws.layouts, k=st.sampled_from([1, 2, 5, 200]))
def test_dual(backend, p, layout, k):
    """[f_i + g_j - C_ij]_+ / reg on the k largest of them."""
    n, m = p.shape
    k, f = min(k, n), potentials(p)
    g = p.scale * p.rng.standard_normal(m)
    indices, values = dual(p.relayout(layout), f, g, k, backend)
    scores = (wide(f)[:, None] + wide(g) - p.exact) / p.reg
    limit = 16 * EPS * (np.abs(f).max() + np.abs(g).max() + p.scale) / p.reg
    for j in range(m):
        rows = chosen(indices[j], values[j], n)
        assert_within(values[j, : len(rows)], scores[rows, j], limit)
        assert_largest(scores[:, j], rows, 0.0, k, limit)


def _dense(indices, values, n):
    out = np.zeros((len(indices), n + 1))
    np.put_along_axis(out, indices.astype(int), values, 1)
    return out


def test_columns_give_the_dual_its_potentials(backend):
    p = make(30, 40)
    f = potentials(p)
    indices, values, g = columns(p, f, 4, backend)
    again = dual(p, f, g, 4, backend)
    size = (np.abs(f).max() + np.abs(g).max() + p.scale) / p.reg
    for first, second in zip(
        *(_dense(*pair, 30) for pair in ((indices, values), again)), strict=True
    ):
        assert_within(second, first, 32 * EPS * size)


@pytest.mark.parametrize("k", [1, 3])
def test_ties(backend, k):
    """Equal scores: k of them, each with its share."""
    p = make(8, 5, cost="grid")
    cost = np.zeros((8, 5))
    indices, values, g = np.empty((5, k), np.int32), np.empty((5, k)), np.empty(5)
    kernel("capped_columns", backend)(cost, np.zeros(8), p.b, k, 2.0, indices, values, g, 1)
    assert_within(values, np.repeat(p.b[:, None] / k, k, 1), 8 * EPS)
    assert_within(g, 2 * p.b / k, 8 * EPS)
    assert (np.diff(indices, axis=1) > 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (200, 9), (9, 200)])
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_layouts_and_threads(backend, shape, dtype):
    """Not a bit."""
    p = make(*shape, dtype=dtype)
    f, k = potentials(p), min(3, shape[0])
    first = columns(p, f, k, backend)
    second = dual(p, f, first[2], k, backend)
    for layout in draws.LAYOUTS:
        for threads in (1, 2, 3):
            again = columns(p.relayout(layout), f, k, backend, threads)
            for x, y in zip(again, first, strict=True):
                np.testing.assert_array_equal(x, y)
            again = dual(p.relayout(layout), f, first[2], k, backend, threads)
            for x, y in zip(again, second, strict=True):
                np.testing.assert_array_equal(x, y)
