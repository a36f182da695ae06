"""What the operators are for: lengths are kept. And the laws that their entries follow.

Seeds are fixed, so each test passes or fails for good; its limit says how sure a right one is.
"""

import numpy as np
import pytest
from scipy import stats

from quadric.sketch import (
    circulant,
    count_sketch,
    gaussian,
    rademacher,
    row_sampling,
    sparse_sign,
    srht,
)
from tests.sketch.matrices import rows

SURE = 1e-3

MAKE = {
    "count_sketch": lambda m, n, seed: count_sketch(m, n, seed=seed),
    "sparse_sign": lambda m, n, seed: sparse_sign(m, n, nnz=8, seed=seed),
    "gaussian": lambda m, n, seed: gaussian(m, n, seed=seed),
    "rademacher": lambda m, n, seed: rademacher(m, n, seed=seed),
    "srht": lambda m, n, seed: srht(m, n, seed=seed),
    "circulant": lambda m, n, seed: circulant(m, n, seed=seed),
}
operators = pytest.mark.parametrize("name", MAKE)


@operators
@pytest.mark.parametrize("kind", ["normal", "graded", "coherent", "spikes"])
@pytest.mark.parametrize("seed", [0, 1])
def test_subspace_distortion(name, kind, seed):
    """All singular values of S Q, Q orthonormal, are within sqrt(d / m) of 1, and a little more.

    For Gaussian matrices the edges are 1 +- sqrt(d / m) (Davidson and Szarek), and 0.15 is five
    standard deviations of what is beyond. CountSketch has that quality only where no few rows
    matter; where d spikes are all there is, two of them must not share a bucket: m >> d^2.
    """
    n, d, m = 3000, 10, 400
    rng = np.random.default_rng(seed)
    a = np.eye(n, d) if kind == "spikes" else rows(rng, n, d, kind)
    q = np.linalg.qr(a)[0]
    if name == "count_sketch" and kind != "normal":
        m = 3000  # expected collisions: d^2 / (2 m)
    values = np.linalg.svd(MAKE[name](m, n, seed) @ q, compute_uv=False)
    assert np.abs(values - 1).max() < np.sqrt(d / m) + 0.15


@operators
def test_lengths_are_right_on_average(name):
    """E |S x|^2 = |x|^2, with a variance of at most 2 |x|^4 / m: five standard deviations."""
    n, m, draws = 64, 16, 600
    x = np.random.default_rng(0).standard_normal(n)
    x /= np.linalg.norm(x)
    found = [np.sum((MAKE[name](m, n, seed) @ x) ** 2) for seed in range(draws)]
    assert abs(np.mean(found) - 1) < 5 * np.sqrt(2 / m / draws)
    assert np.var(found) < 2 * 2 / m


@operators
def test_the_mean_of_the_gram_matrix_is_the_identity(name):
    """E S^T S = I, entry by entry: 6 standard deviations for 24^2 entries."""
    n, m, draws = 24, 8, 1500
    total = np.zeros((n, n))
    for seed in range(draws):
        s = MAKE[name](m, n, seed).to_dense()
        total += s.T @ s
    # No entry of S^T S has a standard deviation above that of a product of two columns: for sparse
    # signs and CountSketch 1 / sqrt(m), and for Gaussian entries on the diagonal sqrt(2 / m).
    assert np.abs(total / draws - np.eye(n)).max() < 6 * np.sqrt(2 / m / draws)


@pytest.mark.parametrize("seed", [0, 3, 2**60])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gaussian_entries_are_normal(seed, dtype):
    s = gaussian(37, 4000, seed=seed).to_dense(dtype).astype(float) * np.sqrt(37)
    assert stats.kstest(s.reshape(-1), "norm").pvalue > SURE
    # Rows and columns apart: neighbours share words, in pairs and in fours.
    for left, right in [(s[:-1], s[1:]), (s[:, :-1], s[:, 1:]), (s[:-2], s[2:])]:
        correlation = np.corrcoef(left.reshape(-1), right.reshape(-1))[0, 1]
        assert abs(correlation) < 5 / np.sqrt(left.size)
        squares = np.corrcoef(left.reshape(-1) ** 2, right.reshape(-1) ** 2)[0, 1]
        assert abs(squares) < 5 / np.sqrt(left.size)


@pytest.mark.parametrize("seed", [0, 3])
def test_signs_are_even(seed):
    """Half of them are positive, of each operator: five standard deviations."""
    for name in ("rademacher", "srht", "circulant", "count_sketch", "sparse_sign"):
        s = MAKE[name](64, 4000, seed).to_dense()
        signs = np.sign(s[s != 0])
        # The entries of an SRHT and of a circulant matrix follow from about n + m signs.
        free = 4000 if name in ("srht", "circulant") else signs.size
        assert abs(signs.mean()) < 5 / np.sqrt(free), name


@pytest.mark.parametrize("nnz", [1, 2, 8])
def test_rows_of_sparse_signs_are_uniform(nnz):
    """Each row of the sketch is as likely as any other."""
    s = sparse_sign(56, 20_000, nnz=nnz, seed=1).to_sparse()
    counts = np.bincount(s.indices, minlength=56)
    assert stats.chisquare(counts).pvalue > SURE


def test_samples_are_uniform():
    """Each row of the Hadamard matrix is drawn equally often, in both ways to draw."""
    for m in (5, 20):  # of 32: by rejection, and by sorting
        counts = np.zeros(32)
        for seed in range(2000):
            counts[srht(m, 32, seed=seed).samples] += 1
        # Without replacement the variance is below that of the law of chi^2, so it is on the safe
        # side only for large counts; a bias of 10 % would be far outside.
        assert stats.chisquare(counts).pvalue > SURE
        first = np.array([srht(m, 32, seed=seed).samples[0] for seed in range(2000)])
        assert stats.chisquare(np.bincount(first, minlength=32)).pvalue > SURE


def test_sampled_rows_are_right_on_average():
    """Weights 1 / sqrt(m q) make E S^T S = I: five standard deviations."""
    rng = np.random.default_rng(0)
    a, q = rng.standard_normal((50, 2)), rng.random(50) + 0.1
    q /= q.sum()
    m, draws, total = 20, 800, []
    for _ in range(draws):
        at = rng.choice(50, m, p=q)
        sketch = row_sampling(at, 50, 1 / np.sqrt(m * q[at])) @ a
        total.append(sketch.T @ sketch)
    error = np.abs(np.mean(total, axis=0) - a.T @ a)
    assert (error < 5 * np.std(total, axis=0) / np.sqrt(draws)).all()
