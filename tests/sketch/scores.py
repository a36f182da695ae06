"""What scores and samplers are checked against: naive, in long double or by full enumeration."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy import stats

from tests import strategies as draws

FALSE_ALARM = 1e-4  # of a chi-square test with the seeds of a fresh choice; those here are fixed


def matrix(
    n: int,
    d: int,
    *,
    log_cond: float = 1.0,
    spread: float = 0.0,
    log_scales: float = 0.0,
    dtype: Any = np.float64,
    seed: int = 0,
) -> np.ndarray:
    """Return a matrix with a spectrum, rows of different size, and columns of different scale."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((n, d)) * np.exp(spread * rng.standard_normal((n, 1)))
    right = np.linalg.qr(rng.standard_normal((d, d)))[0]
    a = (np.linalg.qr(left)[0] * np.logspace(0, -log_cond, d)) @ right.T
    return (a * 10.0 ** rng.uniform(-log_scales, log_scales, d)).astype(dtype)


@st.composite
def matrices(draw: st.DrawFn, max_log_cond: int = 9) -> np.ndarray:
    """Draw a tall matrix; its number of rows falls on both sides of where a sketch is made."""
    d = draw(st.integers(1, 9))
    dtype = draw(draws.dtypes)
    limit = min(max_log_cond, 3) if dtype == np.float32 else max_log_cond
    return matrix(
        draw(st.integers(d, 12 * d) | st.integers(12 * d + 150, 600)),
        d,
        log_cond=draw(st.integers(0, limit)) if d > 1 else 0,
        spread=draw(st.sampled_from((0.0, 1.0, 3.0))),
        log_scales=draw(st.sampled_from((0.0, 4.0))),
        dtype=dtype,
        seed=draw(draws.seeds),
    )


def condition(a: np.ndarray) -> float:
    """Return the condition number with columns of norm 1."""
    exact = a.astype(np.float64)
    return float(np.linalg.cond(exact / np.linalg.norm(exact, axis=0)))


def orthonormal(a: np.ndarray) -> np.ndarray:
    """Return a basis of the range by Gram-Schmidt, every projection twice, in long double."""
    q = a.astype(np.longdouble)
    for j in range(q.shape[1]):
        for _ in range(2):
            for i in range(j):
                q[:, j] -= q[:, i] * (q[:, i] @ q[:, j])
        q[:, j] /= np.sqrt(q[:, j] @ q[:, j])
    return q


def leverage(a: np.ndarray) -> np.ndarray:
    q = orthonormal(a)
    return (q * q).sum(axis=1)


def subsets(n: int, k: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(n), k))


def dpp_law(a: np.ndarray) -> dict[tuple[int, ...], float]:
    """Return ``det(Q_S)^2`` of every set of d rows; they sum to 1 (Cauchy and Binet)."""
    q = orthonormal(a).astype(np.float64)
    law = {s: np.linalg.det(q[list(s)]) ** 2 for s in subsets(*a.shape)}
    assert abs(sum(law.values()) - 1) < 1e-12
    return law


def chi_square(found: Iterable[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> None:
    """Assert that samples follow a law, at a rate of false alarms of :data:`FALSE_ALARM`.

    Outcomes that are expected fewer than five times count together.
    """
    counts = Counter(found)
    assert all(law.get(s, 0) > 0 for s in counts)
    total = counts.total()
    often = [s for s in law if total * law[s] >= 5]
    observed = [counts[s] for s in often]
    expected = [total * law[s] for s in often]
    if (rest := total - sum(expected)) > 1e-6 * total:
        observed.append(total - sum(observed))
        expected.append(rest)
    if len(observed) == 1:
        return  # there is only one outcome
    expected = np.array(expected) * (total / np.sum(expected))
    assert stats.chisquare(observed, expected).pvalue > FALSE_ALARM


def outcomes(
    sample: Callable[[int], Any], count: int
) -> tuple[list[tuple[int, ...]], dict[tuple[int, ...], np.ndarray]]:
    """Return the rows of samples with seeds 0, 1, ..., and the weights of each outcome."""
    found, weights = [], {}
    for seed in range(count):
        rows, w = sample(seed)
        found.append(tuple(int(i) for i in rows))
        weights[found[-1]] = np.asarray(w)
    return found, weights
