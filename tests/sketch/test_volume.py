"""volume_sample: laws by full enumeration, and the expectations that it is for."""

import itertools
from functools import cache

import numpy as np
import pytest

from quadric.sketch import volume_sample
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, assert_refused, shown
from tests.sketch.scores import chi_square, dpp_law, leverage, matrix, outcomes, subsets

COUNT = 1000


def volume_law(a: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
    law = {s: np.linalg.det(a[list(s)].T @ a[list(s)]) for s in subsets(len(a), k)}
    total = sum(law.values())
    return {s: v / total for s, v in law.items()}


def rescaled_law(a: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
    """Return the law of d rows of the DPP and k - d by leverage, as rows in ascending order."""
    n, d = a.shape
    q = leverage(a).astype(float) / d
    law: dict[tuple[int, ...], float] = {}
    for s, p in dpp_law(a).items():
        for more in itertools.product(range(n), repeat=k - d):
            key = tuple(sorted(s + more))
            law[key] = law.get(key, 0) + p * float(np.prod(q[list(more)]))
    return law


@cache
def drawn(backend: str, rescaled: bool, k: int):
    a = matrix(5, 2, spread=1.0)

    def sample(seed):
        return volume_sample(a, k, rescaled=rescaled, seed=seed, backend=backend)

    return a, *outcomes(sample, COUNT)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_law(backend, k):
    a, found, weights = drawn(backend, False, k)
    chi_square(found, volume_law(a, k))
    assert all((w == 1).all() for w in weights.values())


@pytest.mark.parametrize("k", [2, 3])
def test_rescaled_law(backend, k):
    a, found, _ = drawn(backend, True, k)
    chi_square(found, rescaled_law(a, k))


@pytest.mark.parametrize(
    ("rescaled", "k"), [(False, 2), (False, 3), (False, 5), (True, 2), (True, 3)]
)
def test_the_solution_is_right_on_average(backend, rescaled, k):
    """The weights of each outcome as they came, its probability by enumeration: to rounding.

    Independent leverage sampling misses the same mean by a percent at least.
    """
    a, _found, weights = drawn(backend, rescaled, k)
    b = np.random.default_rng(1).standard_normal(len(a))
    law = rescaled_law(a, k) if rescaled else volume_law(a, k)
    law = {s: p for s, p in law.items() if s in weights}
    assert sum(law.values()) > 1 - 30 / COUNT  # all that matter have come
    scores = leverage(a).astype(float)
    mean, total, gram = np.zeros(2), 0.0, np.zeros((2, 2))
    full = rescaled_law(a, k) if rescaled else volume_law(a, k)
    for s, p in full.items():
        w = weights.get(s, np.sqrt(2 / (k * scores[list(s)])) if rescaled else np.ones(k))
        rows = w[:, None] * a[list(s)]
        mean += p * np.linalg.lstsq(rows, w * b[list(s)])[0]
        gram += p * rows.T @ rows
        total += p
    exact = np.linalg.lstsq(a, b)[0]
    assert abs(total - 1) < 1e-12
    # Condition numbers of outcomes reach 1e3, their weight in the mean falls with their square.
    assert_within(mean, exact, 1e-11)
    if rescaled:
        assert_within(gram, a.T @ a, 1e-13)
    q = scores / 2
    iid = np.zeros(2)
    for s in itertools.product(range(len(a)), repeat=3):
        w = 1 / np.sqrt(q[list(s)])
        rows = w[:, None] * a[list(s)]
        iid += np.prod(q[list(s)]) * np.linalg.lstsq(rows, w * b[list(s)])[0]
    assert np.abs(iid - exact).max() > 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("k", [2, 3, 5])
def test_inverse_moment(backend, k):
    """``E[(A_S^T A_S)^-1] = (n - d + 1) / (k - d + 1) (A^T A)^-1``: in samples and in the law."""
    a, found, _ = drawn(backend, False, k)
    expected = (5 - 2 + 1) / (k - 2 + 1) * np.linalg.inv(a.T @ a)
    inverse = {s: np.linalg.inv(a[list(s)].T @ a[list(s)]) for s in volume_law(a, k)}
    law = volume_law(a, k)
    mean = sum(p * inverse[s] for s, p in law.items())
    assert_within(mean, expected, 1e-10 * np.abs(expected).max())
    traces = np.array([np.trace(inverse[s]) for s in found])
    # Five standard errors, with the variance of the law: the tails are heavy.
    square = sum(p * np.trace(inverse[s]) ** 2 for s, p in law.items())
    error = np.sqrt(max(square - np.trace(expected) ** 2, 0) / COUNT)
    assert abs(traces.mean() - np.trace(expected)) < 5 * error + 1e-10 * np.trace(expected)


def test_large(backend):
    a = matrix(20_000, 8, spread=1.0, dtype=np.float32)
    before = a.tobytes()
    one, two = (volume_sample(a, 40, seed=3, backend=backend, n_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.indices, two.indices)
    assert a.tobytes() == before
    assert (len(one), one.weights.dtype, one.n) == (40, np.float32, 20_000)
    plain = volume_sample(a, 40, rescaled=False, seed=3, backend=backend).indices
    assert (np.diff(plain) > 0).all()
    assert len(plain) == 40
    everything = volume_sample(a[:50], 50, rescaled=False, backend=backend).indices
    np.testing.assert_array_equal(everything, np.arange(50))
    assert (volume_sample(a, 40, seed=4, backend=backend).indices != one.indices).any()


@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_matrices(backend, kind):
    if kind == "one entry less":
        return
    spoil, error = ARRAYS[kind]
    a = matrix(60, 3)
    assert_refused("A", lambda: volume_sample(spoil(a), 5, backend=backend), error, a.tobytes)


def test_low_rank(backend):
    a = np.ones((30, 2))
    message = assert_refused("A", lambda: volume_sample(a, 5, backend=backend), ValueError)
    assert "rank 1" in message
    assert_refused("A", lambda: volume_sample(np.zeros((9, 2)), 5, backend=backend), ValueError)
    assert_refused("k", lambda: volume_sample(np.ones((1, 2)), 1, backend=backend), ValueError)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("k", v) for v in (0, 2, -1, 2.5, None, True)),
        *(("rescaled", v) for v in (1, None, "no")),
        ("seed", -1),
        *EXECUTION,
    ],
    ids=shown,
)
def test_bad_options(backend, option, value):
    options = {"k": 5, "backend": backend, option: value}
    assert_refused(option, lambda: volume_sample(matrix(60, 3), **options))


def test_more_rows_than_there_are(backend):
    a = matrix(9, 3)
    assert_refused("k", lambda: volume_sample(a, 10, rescaled=False, backend=backend), ValueError)
    assert len(volume_sample(a, 10, backend=backend)) == 10
