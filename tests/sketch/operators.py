"""Every operator and its explicit matrix, and how far a product with it may be off."""

import numpy as np

from quadric.sketch import (
    circulant,
    count_sketch,
    gaussian,
    rademacher,
    row_sampling,
    sparse_sign,
    srht,
)
from tests.sketch import oracle

EPS = float(np.finfo(np.float64).eps)


def picked(m, n, seed):
    """Return indices with repetitions, and weights."""
    rng = np.random.default_rng([seed % 2**32, 3])
    return rng.integers(0, n, m), rng.random(m)


def sampling(m, n, seed, **options):
    options.pop("backend", None)
    indices, weights = picked(m, n, seed)
    return row_sampling(indices, n, weights, **options)


def sampling_matrix(m, n, seed):
    indices, weights = picked(m, n, seed)
    return oracle.row_sampling(indices, n, weights)


def composed(m, n, seed, **options):
    k = min(n, m + 5)
    inner = sparse_sign(k, n, nnz=1, seed=seed, **options)
    return gaussian(m, k, seed=seed, **options) @ inner


def composed_matrix(m, n, seed):
    k = min(n, m + 5)
    return oracle.gaussian(m, k, seed)[0] @ oracle.sparse_sign(k, n, 1, seed)


MAKE = {
    "count_sketch": lambda m, n, seed, **o: count_sketch(m, n, seed=seed, **o),
    "sparse_sign": lambda m, n, seed, **o: sparse_sign(m, n, nnz=zeta(m), seed=seed, **o),
    "gaussian": lambda m, n, seed, **o: gaussian(m, n, seed=seed, **o),
    "rademacher": lambda m, n, seed, **o: rademacher(m, n, seed=seed, **o),
    "srht": lambda m, n, seed, **o: srht(m, n, seed=seed, **o),
    "circulant": lambda m, n, seed, **o: circulant(m, n, seed=seed, **o),
    "row_sampling": sampling,
    "composition": composed,
}
EXPLICIT = {
    "count_sketch": lambda m, n, seed: oracle.sparse_sign(m, n, 1, seed),
    "sparse_sign": lambda m, n, seed: oracle.sparse_sign(m, n, zeta(m), seed),
    "gaussian": lambda m, n, seed: oracle.gaussian(m, n, seed)[0],
    "rademacher": oracle.rademacher,
    "srht": oracle.srht,
    "circulant": oracle.circulant,
    "row_sampling": sampling_matrix,
    "composition": composed_matrix,
}
SPARSE = ("count_sketch", "sparse_sign", "row_sampling")
# Operators whose sketches of integers are exact in any order of the sums, but for the scale.
EXACT = ("count_sketch", "sparse_sign", "rademacher", "srht")


def zeta(m):
    """Return the largest of 8, 4, 2 and 1 that divides m."""
    return next(k for k in (8, 4, 2, 1) if m % k == 0)


def scale(name, m):
    """Return the factor that makes E[S^T S] = I."""
    unit = {"count_sketch": 1.0, "row_sampling": 1.0, "sparse_sign": zeta(m) ** -0.5}
    return unit.get(name, m**-0.5)


def explicit(name, m, n, seed):
    return scale(name, m) * EXPLICIT[name](m, n, seed)


def bound(name, s, a, eps):
    """Return how far a product with s, an operator or its transpose, may be off.

    A sum of c terms loses c eps of the sum of their sizes, and the scale a little more. An entry of
    a Gaussian matrix is off by its angle: 2 pi eps times its radius, at most 6.8. A convolution by
    transforms of length L loses log2 L eps of the norms of both factors, and L is at most 4 n.
    """
    (m, n), sums = sorted(s.shape), np.abs(s) @ np.abs(a)
    if name == "circulant":
        norms = np.sqrt(4 * n / m) * np.linalg.norm(a, axis=0)
        return 4 * eps * np.log2(4 * n + 1) * np.maximum(norms, sums)
    if name in ("gaussian", "composition"):
        sums = sums + 7 * m**-0.5 * np.abs(a).sum(axis=0)
    return (len(a) + 32) * eps * sums
