"""The bounds themselves: plain NumPy stays within them, and a wrong form or type does not."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from tests.bounds import assert_within
from tests.linalg.oracle import inverse
from tests.woodbury import oracle
from tests.woodbury.problems import EPS, Rows, gradients, make, problems


def primal(x, damping, dtype=np.float64):
    x = x.astype(dtype)
    f = x.T @ x / dtype(len(x)) + dtype(damping) * np.eye(x.shape[1], dtype=dtype)
    factor = np.linalg.inv(np.linalg.cholesky(f))
    return factor.T @ factor


def dual(x, damping, dtype=np.float64):
    x = x.astype(dtype)
    k = x @ x.T + dtype(len(x) * damping) * np.eye(len(x), dtype=dtype)
    w = np.linalg.solve(np.linalg.cholesky(k), x)
    return (np.eye(x.shape[1], dtype=dtype) - w.T @ w) / dtype(damping)


@given(g=problems())
def test_plain_blocks_are_within(g):
    for block in g.blocks:
        found = (dual if block.dual else primal)(block.x, g.damping)
        used = assert_within(found, block.inverse, block.inverse_error())
        v = g.rng.standard_normal((2, block.n))
        assert_within(v @ found, v @ block.inverse, block.solve_error(v))
    target(used)


@pytest.mark.parametrize("log_damping", [-2, -7])
@pytest.mark.parametrize("m", [10, 40, 100])
def test_float32_and_the_larger_side_are_not(m, log_damping):
    g = make(m, 40, 40, storage="float64", log_damping=log_damping)
    (block,) = g.blocks
    right, wrong = (dual, primal) if block.dual else (primal, dual)
    assert_within(right(block.x, g.damping), block.inverse, block.inverse_error())
    with pytest.raises(AssertionError, match="its bound"):
        assert_within(right(block.x, g.damping, np.float32), block.inverse, block.inverse_error())
    if m > 40 and log_damping == -7:  # the larger side
        with pytest.raises(AssertionError, match="its bound"):
            assert_within(wrong(block.x, g.damping), block.inverse, block.inverse_error())


@given(g=problems(), group=st.sampled_from((1, 2, 4)))
def test_plain_scores_and_prunes_are_within(g, group):
    w = g.rng.standard_normal(g.d)
    for block, at in zip(g.blocks, g.at, strict=True):
        found = (dual if block.dual else primal)(block.x, g.damping)
        exact, bound = block.score_error(w[at], group)
        scores = [
            w[at][q] @ np.linalg.solve(found[q, q], w[at][q]) / 2
            for q in oracle.blocks(block.n, group)
        ]
        assert_within(scores, exact, bound)

        kept = g.rng.random(block.n) < 0.5
        f = block.curvature.astype(float)
        r = f[kept][:, ~kept] @ w[at][~kept]
        if block.dual:
            s, p = block.x[:, kept], block.x[:, ~kept]
            k = s @ s.T + block.m * g.damping * np.eye(block.m)
            z = s.T @ np.linalg.solve(k, p @ w[at][~kept])
        else:
            z = np.linalg.solve(f[kept][:, kept], r)
        pruned, loss = oracle.constrained(block.x, g.damping, w[at], kept)
        near, near_loss = block.prune_error(w[at], kept)
        assert_within(w[at][kept] + z, pruned[kept], near + EPS * np.abs(w[at][kept]))
        own = w[at][~kept] @ f[~kept][:, ~kept] @ w[at][~kept]
        assert_within((own - r @ z) / 2, loss, near_loss)


@given(g=problems(storage="float32"))
def test_plain_rows_are_within(g):
    rows = Rows(g.exact, g.damping, np.dtype(np.float32))
    x = g.rng.standard_normal((2, g.d)).astype(np.float32)
    g32 = g.stored
    gram = g32 @ g32.T if rows.eps_gram > EPS else rows.g @ rows.g.T
    a = gram + g.m * g.damping * np.eye(g.m)
    y = np.linalg.solve(a, (g32 @ x.T).astype(float)).astype(np.float32)
    found = (x - (g32.T @ y).T) / np.float32(g.damping)
    target(assert_within(found, rows.solve(x), rows.solve_error(x)))
    w = g.rng.standard_normal(g.m)
    y = g.m * np.linalg.solve(rows.g @ rows.g.T + g.m * g.damping * np.eye(g.m), w)
    combined = y.astype(np.float32) @ g32
    assert_within(combined, rows.combine(w), rows.combine_error(w, parts=2))


@pytest.mark.parametrize("m", [1, 7, 30])
def test_rows_are_the_dense_inverse(m):
    g = gradients(np.random.default_rng(m), m, 20)
    rows = Rows(g, 0.1, np.dtype(np.float64))
    x = np.eye(20)
    dense = inverse(oracle.curvature(g, 0.1))
    assert_within(rows.solve(x), dense, 1e-15)
    e = rows.element_error(slice(None), slice(None))
    assert e.shape == (20,)


def test_float32_gram():
    """Gradients that float32 can hardly tell apart: all pivots but the first are rounding.

    The constant is 8 here, not one that holds for any order of any sum.
    """
    rng = np.random.default_rng(0)
    g = rng.standard_normal((1, 20)) + 1e-4 * rng.standard_normal((3, 20))
    g, x = g.astype(np.float32), rng.standard_normal((1, 20)).astype(np.float32)
    rows = Rows(g.astype(float), 1e-9, np.dtype(np.float32))
    assert rows.eps_gram == EPS
    bound = rows.solve_error(x) * 8 / rows.roundings

    def solved(gram):
        y = np.linalg.solve(gram + 3e-9 * np.eye(3), (g @ x.T).astype(float))
        return ((x - (g.T @ y.astype(np.float32)).T) / np.float32(1e-9)).astype(float)

    assert_within(solved(rows.g @ rows.g.T), rows.solve(x), bound)
    with pytest.raises(AssertionError, match="its bound"):
        assert_within(solved(g @ g.T), rows.solve(x), bound)
