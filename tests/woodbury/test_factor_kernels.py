"""The raw kernels for inverses of factors: V J and alpha J + delta I + sign Y^T Y."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric import backends
from tests import strategies as draws
from tests.bounds import assert_within
from tests.linalg.oracle import wide

# One call takes many factors of different sizes.
several = st.lists(st.tuples(draws.sizes(70), st.integers(1, 9)), min_size=1, max_size=5)


def kernel(name, backend):
    return backends.resolve(f"woodbury.{name}", backend)


def matrices(rng, shapes, dtype):
    js = [rng.standard_normal((n, n)) for n, _ in shapes]
    vs = [rng.standard_normal((k, n)).astype(dtype) for n, k in shapes]
    return tuple((j + j.T).astype(dtype) for j in js), tuple(vs)


def product(js, vs, backend, n_threads=1):
    ys = tuple(np.full_like(v, -7) for v in vs)
    kernel("symmetric_product", backend)(js, vs, ys, n_threads)
    return ys


def update(js, alpha, delta, sign, ys, backend, n_threads=1, in_place=False):
    sources = tuple(j.copy() for j in js) if in_place else js
    out = sources if in_place else tuple(np.full_like(j, -7) for j in js)
    norms = np.full(len(js), -7.0)
    numbers = (np.asarray(x, float) for x in (alpha, delta, sign))
    kernel("symmetric_update", backend)(sources, *numbers, ys, out, norms, n_threads)
    return out, norms


@given(shapes=several, dtype=draws.dtypes, seed=draws.seeds)
def test_product(backend, shapes, dtype, seed):
    js, vs = matrices(np.random.default_rng(seed), shapes, dtype)
    before = [a.tobytes() for a in (*js, *vs)]
    used = 0.0
    for y, j, v in zip(product(js, vs, backend), js, vs, strict=True):
        limit = (len(j) + 8) * np.finfo(dtype).eps * (np.abs(v) @ np.abs(j)).astype(float)
        used = max(used, assert_within(y, wide(v) @ wide(j), limit))
    target(used)
    assert [a.tobytes() for a in (*js, *vs)] == before


@given(shapes=several, dtype=draws.dtypes, seed=draws.seeds, in_place=st.booleans())
def test_update(backend, shapes, dtype, seed, in_place):
    """k products and three terms: k + 8 roundings; the norm is that of the matrix written."""
    rng = np.random.default_rng(seed)
    js, ys = matrices(rng, shapes, dtype)
    alpha, delta = rng.uniform(0.5, 1.5, (2, len(shapes)))
    sign = rng.choice([-1.0, 1.0], len(shapes))
    before = [a.tobytes() for a in (*js, *ys)]
    out, norms = update(js, alpha, delta, sign, ys, backend, in_place=in_place)
    used = 0.0
    for i, (j, y, found) in enumerate(zip(js, ys, out, strict=True)):
        np.testing.assert_array_equal(found, found.T)
        eye, products = np.eye(len(j)), wide(y).T @ wide(y)
        expected = wide(alpha[i]) * j + wide(delta[i]) * eye + sign[i] * products
        size = np.abs(alpha[i] * j) + delta[i] * eye + np.abs(y).T @ np.abs(y)
        limit = (len(y) + 8) * np.finfo(dtype).eps * size.astype(float)
        used = max(used, assert_within(found, expected, limit))
        norm = np.abs(wide(found)).sum(axis=1).max()
        # In the type of the matrix or better.
        assert_within(norms[i], norm, (len(j) + 8) * np.finfo(dtype).eps * norm)
    target(used)
    assert [a.tobytes() for a in (*js, *ys)] == before


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 63, 64, 65, 300, 1100])
def test_integers_are_exact(backend, dtype, n):
    rng = np.random.default_rng(n)
    shapes = [(n, 1), (n, 3), (5, 2)]
    js = tuple(rng.integers(-8, 9, (size, size)) for size, _ in shapes)
    js = tuple((j + j.T).astype(dtype) for j in js)
    vs = tuple(rng.integers(-8, 9, (k, size)).astype(dtype) for size, k in shapes)
    for y, j, v in zip(product(js, vs, backend, 2), js, vs, strict=True):
        np.testing.assert_array_equal(y, v.astype(float) @ j)
    out, norms = update(js, [2, 1, -1], [0, 3, 1], [1, -1, 1], vs, backend, 2)
    expected = [
        2 * js[0] + vs[0].T @ vs[0],
        js[1] + 3 * np.eye(n) - vs[1].T @ vs[1],
        np.eye(5) - js[2] + vs[2].T @ vs[2],
    ]
    for i, matrix in enumerate(expected):
        np.testing.assert_array_equal(out[i], matrix)
        assert norms[i] == np.abs(matrix).sum(axis=1).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 5, 64, 130, 1100])
def test_norms_tell_what_is_not_finite(backend, bad, n):
    """The last entry of a matrix, or an overflow; the others keep their norms."""
    js = [np.eye(n), np.eye(n), np.eye(3)]
    js[1][-1, -1] = bad
    ys = tuple(np.zeros((1, len(j))) for j in js)
    _, norms = update(tuple(js), [1, 1, 1], [0, 0, 0], [1, 1, 1], ys, backend)
    assert norms[0] == norms[2] == 1.0
    assert not np.isfinite(norms[1])
    big = (np.full((1, n), 1e30, np.float32),)
    with np.errstate(over="ignore"):
        _, norms = update((np.eye(n, dtype=np.float32),), [1], [0], [1], big, backend)
    assert not np.isfinite(norms[0])


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("shapes", [[(1, 1)], [(300, 1), (5, 2), (64, 8)], [(700, 16)]], ids=str)
def test_threads_change_nothing(backend, dtype, shapes):
    js, vs = matrices(np.random.default_rng(0), shapes, dtype)
    ones = np.ones(len(shapes))
    y = product(js, vs, backend)
    out, norms = update(js, ones, ones, -ones, vs, backend)
    for threads in (2, 3):
        for a, b in zip(product(js, vs, backend, threads), y, strict=True):
            assert a.tobytes() == b.tobytes()
        more, again = update(js, ones, ones, -ones, vs, backend, threads)
        assert again.tobytes() == norms.tobytes()
        for a, b in zip(more, out, strict=True):
            assert a.tobytes() == b.tobytes()
