"""The longdouble elimination itself: by hand, on integers, and against LAPACK in float64."""

import numpy as np
import pytest

from tests.linalg import oracle

EPS = float(np.finfo(float).eps)


def test_cholesky_by_hand():
    factor, status = oracle.cholesky(np.array([[4.0, 99.0], [2.0, 10.0]]))  # upper: never read
    assert factor.tolist() == [[2.0, 0.0], [1.0, 3.0]]
    assert status == -1


def test_inverse_by_hand():
    a = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert np.abs(oracle.inverse(3 * a) - [[2 / 9, -1 / 9], [-1 / 9, 2 / 9]]).max() <= EPS
    assert oracle.solve(a, np.array([[3.0], [3.0]])).tolist() == [[1.0], [1.0]]


def test_rows_are_exchanged_where_they_must():
    a = np.array([[0.0, 2.0], [1.0, 0.0]])
    assert oracle.inverse(a).tolist() == [[0.0, 1.0], [0.5, 0.0]]
    sign, log = oracle.slogdet(a)
    assert sign == -1
    assert log == np.log(oracle.Long(2))


def test_integers_come_back_exactly():
    rng = np.random.default_rng(0)
    factor = np.eye(20) + np.tril(rng.integers(-1, 2, (5, 20, 20)), -1) * (rng.random(20) < 0.1)
    found, status = oracle.cholesky(factor @ np.swapaxes(factor, 1, 2))
    np.testing.assert_array_equal(found, factor)
    assert (status == -1).all()


@pytest.mark.parametrize(
    ("a", "pivot"),
    [
        ([[0.0, 0.0], [0.0, 1.0]], 0),
        ([[1.0, 0.0], [2.0, 4.0]], 1),  # 4 - 2 * 2
        ([[1.0, 0.0], [3.0, 4.0]], 1),
        ([[np.nan, 0.0], [0.0, 1.0]], 0),
        ([[np.inf, 0.0], [0.0, 1.0]], 0),
        ([[1.0, 0.0], [np.nan, 1.0]], 1),
        ([[1.0, 0.0], [np.inf, 1.0]], 1),
        ([[1.0, np.nan], [0.0, 1.0]], -1),  # above the diagonal
    ],
)
def test_first_bad_pivot(a, pivot):
    factor, status = oracle.cholesky(np.stack([np.eye(2), np.array(a)]))
    assert status.tolist() == [-1, pivot]
    np.testing.assert_array_equal(factor[0], np.eye(2))
    assert np.isnan(factor[1]).all() == (pivot >= 0)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_agrees_with_lapack(n):
    """LAPACK's error is a few n eps cond; the oracle adds nothing to that."""
    rng = np.random.default_rng(n)
    a = rng.standard_normal((3, n, n)) + 2 * np.eye(n)
    limit = 16 * n * EPS * np.linalg.cond(a)[:, None, None]
    inverse = np.linalg.inv(a)
    scale = np.linalg.norm(inverse, axis=(1, 2), keepdims=True)
    assert (np.abs(oracle.inverse(a) - inverse) <= limit * scale).all()
    sign, log = np.linalg.slogdet(a)
    found = oracle.slogdet(a)
    np.testing.assert_array_equal(found[0], sign)
    assert (np.abs(found[1] - log) <= n * limit[:, 0, 0]).all()
    spd = a @ np.swapaxes(a, 1, 2)
    factor, status = oracle.cholesky(spd)
    assert (status == -1).all()
    wrong = np.abs(factor @ np.swapaxes(factor, 1, 2) - spd)
    assert (wrong <= EPS * n * np.trace(spd, axis1=1, axis2=2)[:, None, None]).all()


def test_residuals_are_small_whatever_the_condition():
    """A^-1 b may be wrong by cond(A) eps, but A x = b holds to a few eps |A| |x|."""
    rng = np.random.default_rng(1)
    g = rng.standard_normal((12, 4))
    a = g @ g.T + 1e-12 * np.eye(12)
    b = g @ rng.standard_normal((4, 3))
    x = oracle.solve(a, b)
    limit = 12**2 * np.finfo(np.longdouble).eps * np.linalg.norm(a) * np.abs(x).max()
    assert np.abs(a @ x - b).max() <= limit


def test_least_squares():
    line = oracle.least_squares(np.array([[1.0, 0], [1, 1], [1, 2]]), np.array([1.0, 0, 2]))
    assert np.abs(line - [0.5, 0.5]).max() <= EPS
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((30, 9)), rng.standard_normal(30)
    x = oracle.least_squares(a, b)
    assert np.abs(a.T @ (a @ x - b)).max() <= 256 * np.finfo(np.longdouble).eps
    assert oracle.least_squares(np.zeros((3, 0)), b[:3]).shape == (0,)


@pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="longdouble is no wider than float64 here"
)
def test_its_own_error_is_far_below_float64():
    """The Hilbert matrix of order 6 is integer after scaling, and so is its inverse."""
    n = 6
    i = np.arange(n)
    hilbert = 1 / (oracle.wide(i)[:, None] + i + 1)
    exact = np.linalg.inv(hilbert.astype(float)).round()  # entries up to 4e6, error 1e-3
    assert np.abs(oracle.inverse(hilbert) - exact).max() <= 1e7 * 3e6 * 1.1e-19 * n
