"""sample_rows: probabilities, weights, rules, and what the sample is for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from quadric.sketch import leverage_scores, lewis_weights, sample_rows
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, INF, NAN, assert_refused, shown, spoiled
from tests.sketch.scores import FALSE_ALARM, matrix

EPS = float(np.finfo(float).eps)
MATRIX_RULES = ("uniform", "leverage", "root_leverage", "sensitivity", "lewis", "mixed")


def skewed(n: int, seed: int = 0) -> np.ndarray:
    return 10.0 ** np.random.default_rng(seed).uniform(-4, 0, n)


@given(
    n=draws.sizes(300),
    share=st.floats(0, 1),
    zeros=st.sampled_from((0.0, 0.5)),
    p=st.sampled_from((1.0, 2.0, 5.0)),
    dtype=draws.dtypes,
    seed=draws.seeds,
)
def test_kept_rows(backend, n, share, zeros, p, dtype, seed):
    """Weights are q^(-1/p) for q = min(1, c score), with the sum of q equal to the size."""
    scores = (skewed(n, seed) * (np.random.default_rng(seed).random(n) >= zeros)).astype(dtype)
    scores[-1] = 1
    before = scores.tobytes()
    size = 1 + int(share * (n - 1))
    sample = sample_rows(scores, size, p=p, seed=seed, backend=backend)
    indices, weights = sample
    assert scores.tobytes() == before
    assert (sample.n, len(sample)) == (n, len(indices))
    assert (indices.dtype, weights.dtype) == (np.int64, dtype)
    assert (np.diff(indices) > 0).all()
    assert (scores[indices] > 0).all()
    exact = scores.astype(float)
    if size >= np.count_nonzero(exact):
        np.testing.assert_array_equal(indices, np.flatnonzero(exact))
        assert (weights == 1).all()
        return
    c = _solve(exact, size)
    q = np.minimum(1, c * exact)
    assert abs(q.sum() - size) < 1e-9 * size
    limit = 16 * float(np.finfo(dtype).eps) + 1e-10
    assert_within(weights * q[indices] ** (1 / p), 1.0, limit)


def _solve(scores: np.ndarray, size: int) -> float:
    """Return c with ``sum min(1, c scores) = size`` by bisection of its logarithm."""
    low, high = 0.0, np.log(size / scores[scores > 0].min())
    for _ in range(200):
        middle = (low + high) / 2
        if np.minimum(1, np.exp(middle) * scores).sum() < size:
            low = middle
        else:
            high = middle
        low = min(low, np.log(size / scores.sum())) if low == 0 else low
    return float(np.exp(high))


def test_how_often_rows_are_kept(backend):
    """Binomial counts over 2000 seeds: the squared deviations add up to chi-square."""
    scores = skewed(30)
    q = np.minimum(1, _solve(scores, 8) * scores)
    found = np.zeros(30)
    sizes = []
    for seed in range(2000):
        sample = sample_rows(scores, 8, seed=seed, backend=backend)
        found[sample.indices] += 1
        sizes.append(len(sample))
    sure = q > 1 - 1e-9
    assert sure.any()
    assert (found[sure] == 2000).all()
    rest = ~sure
    z = (found - 2000 * q)[rest] ** 2 / (2000 * q * (1 - q))[rest]
    assert stats.chi2.sf(z.sum(), rest.sum()) > FALSE_ALARM
    # Independent coins: the variance of the size is that of their sum.
    spread = np.var(sizes) / (q * (1 - q)).sum()
    assert abs(spread - 1) < 5 * np.sqrt(2 / 2000)


def test_draws_with_replacement(backend):
    scores = skewed(12)
    scores[[0, 5, 11]] = 0
    indices, weights = sample_rows(scores, 20_000, p=3, replace=True, seed=1, backend=backend)
    assert len(indices) == 20_000
    assert (np.diff(indices) >= 0).all()
    q = scores / scores.sum()
    counts = np.bincount(indices, minlength=12)
    assert not counts[q == 0].any()
    assert stats.chisquare(counts[q > 0], 20_000 * q[q > 0]).pvalue > FALSE_ALARM
    assert_within(weights, (20_000 * q[indices]) ** (-1 / 3), 16 * EPS)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_norms_are_right_on_average(backend, replace, p):
    """``E ||S A x||_p^p = ||A x||_p^p``: within five standard errors (one false alarm in 1e6)."""
    a, x = matrix(200, 3, spread=1.0), np.array([1.0, -2.0, 0.5])
    y = np.abs(a @ x)
    found = []
    for seed in range(200):
        i, w = sample_rows(a, 40, p=p, replace=replace, seed=seed, backend=backend)
        found.append(((w * y[i]) ** p).sum())
    error = np.std(found) / np.sqrt(200)
    assert abs(np.mean(found) - (y**p).sum()) < 5 * error


@pytest.mark.parametrize("rule", MATRIX_RULES)
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0])
def test_every_rule_embeds_the_norm(backend, rule, p):
    """600 of 3000 rows keep all norms of the plane within a third."""
    a = matrix(3000, 2, spread=0.5)
    sample = sample_rows(a, 600, rule=rule, p=p, seed=3, backend=backend)
    assert abs(len(sample) - 600) < 6 * np.sqrt(600)
    angle = np.linspace(0, np.pi, 100)
    x = np.stack((np.cos(angle), np.sin(angle)))
    whole = (np.abs(a @ x) ** p).sum(axis=0) ** (1 / p)
    part = (np.abs((sample.weights[:, None] * a[sample.indices]) @ x) ** p).sum(axis=0) ** (1 / p)
    assert np.abs(part / whole - 1).max() < 1 / 3


def test_rules_are_the_scores_they_name(backend):
    a = matrix(400, 4, spread=1.0)
    leverage = leverage_scores(a, backend=backend)
    expected = {
        ("leverage", 2.0): leverage,
        ("auto", 2.0): leverage,
        ("root_leverage", 1.0): np.sqrt(leverage),
        ("lewis", 1.0): lewis_weights(a, 1, backend=backend),
        ("auto", 6.0): lewis_weights(a, 6, backend=backend),
        ("sensitivity", 2.0): leverage,
        ("mixed", 2.0): 2 * leverage + 1 / 400,
        ("uniform", 3.0): np.ones(400),
    }
    for (rule, p), scores in expected.items():
        by_rule = sample_rows(a, 50, rule=rule, p=p, seed=4, backend=backend)
        given = sample_rows(scores, 50, p=p, seed=4, backend=backend)
        np.testing.assert_array_equal(by_rule.indices, given.indices)
        assert_within(by_rule.weights, given.weights, 0.02 * given.weights)  # lewis stops at 0.01
    assert len(sample_rows(a, 50, rule="auto", p=1, seed=4, backend=backend)) == len(
        sample_rows(a, 50, rule="mixed", p=1, seed=4, backend=backend)
    )


def test_operator(backend):
    a = matrix(100, 3)
    for replace in (False, True):
        sample = sample_rows(a, 20, replace=replace, seed=2, backend=backend)
        S = sample.operator()
        assert S.shape == (len(sample), 100)
        np.testing.assert_array_equal(S @ a, sample.weights[:, None] * a[sample.indices])


def test_seeds_threads_and_types(backend):
    a = matrix(20_000, 5)

    def rows(seed, **options):
        return sample_rows(a, 300, seed=seed, backend=backend, **options).indices.tolist()

    assert rows(1) == rows(1) == rows(1, n_threads=2) != rows(2)
    assert rows(None) != rows(None)
    sample = sample_rows(torch.from_numpy(a), 300, seed=1, backend=backend)
    assert isinstance(sample.indices, torch.Tensor)
    assert sample.indices.tolist() == rows(1)
    assert repr(sample) == f"RowSample(rows={len(sample)}, n=20000)"


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("rule", ["uniform", "auto", "lewis"])
def test_bad_matrices(backend, kind, rule):
    if kind == "one entry less" or (rule == "uniform" and ARRAYS[kind][1] is ValueError):
        return  # another matrix; rows of equal weight are not read
    spoil, error = ARRAYS[kind]
    a = matrix(60, 3)
    assert_refused(
        "A",
        lambda: sample_rows(spoil(a), 10, rule=rule, p=1.5, backend=backend),
        error,
        a.tobytes,
    )


@pytest.mark.parametrize(
    "bad",
    [
        spoiled(skewed(9), NAN),
        spoiled(skewed(9), INF),
        spoiled(skewed(9), -1e-300),
        np.zeros(9),
        np.zeros(0),
        np.arange(9),
    ],
    ids=["nan", "inf", "negative", "zeros", "empty", "integers"],
)
def test_bad_scores(backend, bad):
    assert_refused("A", lambda: sample_rows(bad, 3 if bad.size else 1, backend=backend))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("size", v) for v in (0, -1, 61, 2.5, None, True)),
        *(("rule", v) for v in ("levrage", None, 2)),
        *(("p", v) for v in (0.5, NAN, INF, "two")),
        *(("replace", v) for v in (1, None, "no")),
        ("seed", -1),
        *EXECUTION,
    ],
    ids=shown,
)
def test_bad_options(backend, option, value):
    options = {"size": 5, "backend": backend, option: value}
    assert_refused(option, lambda: sample_rows(matrix(60, 3), **options))


def test_a_rule_for_scores(backend):
    assert_refused("rule", lambda: sample_rows(np.ones(5), 2, rule="leverage", backend=backend))
    assert len(sample_rows(np.ones(5), 50, replace=True, backend=backend)) == 50


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e200, 1e308])
def test_scores_whose_sum_overflows_or_vanishes(backend, replace, scale):
    usual = sample_rows(np.ones(200), 20, replace=replace, backend=backend)
    found = sample_rows(np.full(200, scale), 20, replace=replace, backend=backend)
    np.testing.assert_array_equal(found.indices, usual.indices)
    assert_within(found.weights, usual.weights, 1e-14)


def test_scores_of_all_sizes(backend):
    """Two rows of four are certain, and the others share what is left."""
    for scores in ([1e308, 1e308, 1e-270, 1e-270], [1e308, 1e308, 1e-10, 1e-10]):
        weights = [sample_rows(np.array(scores), 3, seed=s, backend=backend) for s in range(8)]
        assert all(set(w.indices) >= {0, 1} for w in weights)
        rest = np.concatenate([w.weights[2:] for w in weights])
        assert rest.size
        assert_within(rest, np.sqrt(2.0), 0.01)
