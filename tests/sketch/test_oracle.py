"""The oracle itself: by hand, and what its matrices must have in common."""

import numpy as np
import pytest

from tests.sketch import oracle


def test_signs_are_bits():
    w = oracle.word(3, 1, 5)
    assert oracle.sign(3, 1, 5 * 32) == (-1 if w & 1 else 1)
    assert oracle.sign(3, 1, 5 * 32 + 31) == (-1 if w >> 31 else 1)
    assert oracle.word(3, 1, 5) == oracle.block(3, 1, 1)[1]


@pytest.mark.parametrize(("m", "nnz"), [(1, 1), (7, 1), (8, 2), (24, 8), (8, 8)])
def test_sparse_signs_have_one_sign_in_each_group(m, nnz):
    s = oracle.sparse_sign(m, 30, nnz, 1)
    groups = np.abs(s).reshape(nnz, m // nnz, 30)
    assert (groups.sum(axis=1) == 1).all()


def test_the_word_of_a_sparse_sign():
    w = oracle.word(9, 0, 3 * 2 + 1)  # of column 3, second group of 5 rows
    column = oracle.sparse_sign(10, 4, 2, 9)[:, 3]
    assert column[5 + int((w >> 1) / 2**31 * 5)] == (-1 if w & 1 else 1)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 4), (5, 16), (9, 16), (16, 16), (4, 9), (2, 100)])
def test_samples_are_different(m, n):
    found = oracle.samples(m, n, 2)
    assert len(set(found)) == m
    assert min(found) >= 0
    assert max(found) < oracle.order(n)


def test_orthogonal_rows():
    """All rows of a Hadamard matrix; and a circulant matrix of signs has rows of length sqrt(n)."""
    s = oracle.srht(16, 16, 4)
    np.testing.assert_array_equal(s @ s.T, 16 * np.eye(16))
    c = oracle.circulant(5, 12, 4)
    np.testing.assert_array_equal(np.abs(c), 1)
    # Row i is row i - 1 shifted, once the signs of the columns are undone.
    undone = c * oracle.signs(4, 1, 12)
    np.testing.assert_array_equal(undone[1:], np.roll(undone[:-1], 1, axis=1))


def test_gaussian_pairs():
    """Two entries share a radius: by it, their squares add up."""
    s, radius = oracle.gaussian(8, 5, 7)
    np.testing.assert_allclose(s[::2] ** 2 + s[1::2] ** 2, radius[::2] ** 2, rtol=1e-14)
