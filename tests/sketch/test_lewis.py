"""lewis_weights: the fixed point, its invariants, and both kinds of p."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from quadric import ConvergenceWarning
from quadric.sketch import leverage_scores, lewis_weights
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, INF, NAN, POSITIVE, SIZES, assert_refused, shown
from tests.sketch.scores import condition, matrices, matrix, orthonormal

POWERS = (1.0, 1.3, 2.0, 3.0, 3.9, 4.0, 6.0, 8.0, 20.0)


def plain_step(a: np.ndarray, w: np.ndarray, p: float) -> np.ndarray:
    """Return the u of the definition; rows of weight 0 have none."""
    q, w = orthonormal(a).astype(float), w.astype(float)
    alive = w > 0
    q = q[alive]
    G = (q.T * w[alive] ** (1 - 2 / p)) @ q
    u = np.zeros(len(w))
    u[alive] = np.einsum("ij,ij->i", q, np.linalg.solve(G, q.T).T) ** (p / 2)
    return u


@given(a=matrices(6), layout=draws.layouts, p=st.sampled_from(POWERS) | st.floats(1, 12))
def test_fixed_point(backend, a, layout, p):
    """Within the tolerance, and what rounding of w does to u, at most ``|p/2 - 1|`` times as much.

    The basis turns by eps cond, which moves a row by that over its own length: rows with tiny
    weights are compared with the size of the others.
    """
    shown = draws.relayout(a, layout)
    before = draws.whole(shown).tobytes()
    w = lewis_weights(shown, p, max_iter=1000, backend=backend)
    assert (w.shape, w.dtype) == ((len(a),), a.dtype)
    eps, d = float(np.finfo(a.dtype).eps), a.shape[1]
    tol = 1e-5 if a.dtype == np.float32 else 1e-10
    error = p * (tol + 64 * eps * condition(a))
    assert w.min() >= 0
    assert w.max() <= 1
    assert_within(w.sum(dtype=float), d, 64 * d * eps)
    u = plain_step(a, w, p)
    assert_within(u ** (2 / p), w.astype(float) ** (2 / p), 8 * error)
    assert draws.whole(shown).tobytes() == before


@pytest.mark.parametrize("p", POWERS)
def test_the_basis_does_not_matter(backend, p):
    a = matrix(800, 6, spread=2.0)
    change = matrix(6, 6, log_cond=3, seed=1)
    found = lewis_weights(a @ change, p, backend=backend)
    # Each stops when a step is below 1e-10; what is left is at most that over 1 - rate.
    assert_within(found, lewis_weights(a, p, backend=backend), 4 * p * 1e-10)


def test_two_is_leverage(backend):
    a = matrix(300, 5, spread=1.0)
    eps = np.finfo(float).eps
    assert_within(
        lewis_weights(a, 2, backend=backend), leverage_scores(a, backend=backend), 200 * eps
    )


@pytest.mark.parametrize("p", POWERS)
def test_one_column_has_a_formula(backend, p):
    """``w = |a|^p / sum |a|^p``."""
    a = np.array([[3.0], [-1.0], [0.0], [0.5], [2.0]])
    expected = np.abs(a[:, 0]) ** p / (np.abs(a) ** p).sum()
    assert_within(lewis_weights(a, p, backend=backend), expected, 1e-9)


@pytest.mark.parametrize("p", POWERS)
def test_a_row_in_two_parts(backend, p):
    """Two copies of ``2^(-1/p) a_i`` have half of its weight each, and the others keep theirs."""
    a = matrix(40, 4, spread=1.0)
    split = np.concatenate((a, a[:1]))
    split[[0, -1]] *= 2 ** (-1 / p)
    w, found = lewis_weights(a, p, backend=backend), lewis_weights(split, p, backend=backend)
    assert_within(found[1:-1], w[1:], 4 * p * 1e-10)
    assert_within(found[[0, -1]], w[0] / 2, 4 * p * 1e-10)


@pytest.mark.parametrize("p", [1.0, 3.0, 5.0])
def test_degenerate_matrices(backend, p):
    assert not lewis_weights(np.zeros((30, 2)), p, backend=backend).any()
    a = matrix(300, 3)
    a[::2] = 0
    more = np.column_stack((a, a[:, :1]))
    w = lewis_weights(more, p, backend=backend)
    assert not w[::2].any()
    assert abs(w.sum() - 3) < 1e-12
    assert_within(w[1::2], lewis_weights(a[1::2], p, backend=backend), 4 * p * 1e-10)
    assert_within(lewis_weights(np.eye(4), p, backend=backend), 1.0, 1e-12)


@pytest.mark.parametrize("p", [1.0, 5.0])
def test_sparse_threads_and_seeds(backend, p):
    a = matrix(5000, 6, spread=1.0)
    a[np.abs(a) < 0.003] = 0
    w = lewis_weights(a, p, backend=backend, n_threads=1)
    np.testing.assert_array_equal(lewis_weights(a, p, backend=backend, n_threads=2), w)
    assert_within(lewis_weights(sp.csr_array(a), p, backend=backend), w, 4 * p * 1e-10)
    assert_within(lewis_weights(a, p, seed=9, backend=backend), w, 4 * p * 1e-10)


@pytest.mark.parametrize("p", [1.0, 3.0, 8.0])
def test_it_says_when_it_stopped(backend, p):
    a = matrix(200, 4, spread=2.0)
    with pytest.warns(ConvergenceWarning, match="after 2 iterations") as caught:
        w = lewis_weights(a, p, max_iter=2, backend=backend)
    assert len(caught) == 1
    assert abs(w.sum() - 4) < 1e-12
    lewis_weights(a, p, max_iter=2, tol=1e3, backend=backend)


@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_matrices(backend, kind):
    if kind == "one entry less":
        return
    spoil, error = ARRAYS[kind]
    a = matrix(60, 4)
    for p in (1.0, 6.0):
        bad = spoil(a)
        assert_refused(
            "A", lambda bad=bad, p=p: lewis_weights(bad, p, backend=backend), error, a.tobytes
        )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("p", v) for v in (0.999, 0, -1, NAN, INF, None, "two", "2", True)),
        *(("tol", v) for v in POSITIVE if v is not None),
        *(("max_iter", v) for v in SIZES),
        ("seed", -1),
        *EXECUTION,
    ],
    ids=shown,
)
def test_bad_options(backend, option, value):
    options = {"p": 1.0, "backend": backend, option: value}
    assert_refused(option, lambda: lewis_weights(matrix(90, 3), **options))
