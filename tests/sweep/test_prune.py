"""prune: SparseGPT's definition, exact counts, and what must not matter."""

import math

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from quadric import sweep
from tests import strategies as draws
from tests.sweep import oracle
from tests.sweep.options import patterns
from tests.sweep.witness import assert_definition, assert_same, errors, loss_bound

FIELDS = ("weights", "mask", "loss")


@given(layer=draws.layers(max_log_cond=4), data=st.data())
def test_is_sparsegpt(backend, layer, data):
    options = data.draw(patterns(layer.shape[1]))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    p = sweep.prune(layer.weights, factor, backend=backend, **options)
    assert p.weights.dtype == layer.dtype
    assert p.mask.dtype == np.bool_
    assert (p.weights[~p.mask] == 0).all()
    ties = assert_definition(p, layer, factor, options)
    event(f"{layer.dtype}, {'some ties' if ties else 'no tie'}")


@given(layer=draws.layers(), data=st.data())
def test_loss_is_the_error_in_the_hessian(backend, layer, data):
    options = data.draw(patterns(layer.shape[1]))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    p = sweep.prune(layer.weights, factor, backend=backend, **options)
    e, off = errors(layer.weights, p.weights, factor)
    bound = loss_bound(e, off, np.finfo(layer.dtype).eps)
    assert (np.abs(p.loss - (e**2).sum(axis=1)) <= bound).all()


@given(
    layer=draws.layers(),
    sparsity=st.floats(0, 1) | st.sampled_from((0.25, 0.5, 0.9)),
    per_row=st.booleans(),
    block_size=st.sampled_from((None, 1, 16, 48, 128)),
)
def test_count_of_zeros_is_exact(backend, layer, sparsity, per_row, block_size):
    """After every block, floor(share * entries + 1/2) of the entries so far are zero."""
    m, n = layer.shape
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    p = sweep.prune(
        layer.weights,
        factor,
        sparsity=sparsity,
        per_row=per_row,
        block_size=block_size,
        backend=backend,
    )
    gone = ~p.mask[:, factor.order]
    block = block_size or n
    for stop in [*range(block, n, block), n]:
        rows = 1 if per_row else m
        expected = math.floor(sparsity * (rows * stop) + 0.5)
        counts = gone[:, :stop].sum(axis=1 if per_row else None)
        assert (counts == expected).all()
    assert p.sparsity == pytest.approx(gone.mean(), abs=1e-15)


@pytest.mark.parametrize(
    ("sparsity", "m", "n", "zeros"),
    [(0.3, 3, 45, 41), (0.1, 3, 5, 2), (0.7, 3, 5, 11), (0.5, 1, 1, 1)],
)
def test_count_rounds_half_up(backend, sparsity, m, n, zeros):
    """sparsity * (m * n) is a half in floating point; (sparsity * m) * n need not be."""
    factor = sweep.factorize(np.eye(n), backend=backend)
    w = np.random.default_rng(0).standard_normal((m, n))
    p = sweep.prune(w, factor, sparsity=sparsity, backend=backend)
    assert (~p.mask).sum() == zeros


@given(
    layer=draws.layers(max_columns=96, columns_multiple_of=24),
    out_of=st.sampled_from((1, 2, 3, 4, 6, 8, 12, 24)),
    data=st.data(),
)
def test_n_of_m_is_exact(backend, layer, out_of, data):
    keep = data.draw(st.integers(1, out_of))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    p = sweep.prune(layer.weights, factor, pattern=(keep, out_of), backend=backend)
    m, n = layer.shape
    kept = p.mask[:, factor.order].reshape(m, n // out_of, out_of).sum(axis=2)
    assert (kept == keep).all()


@given(layer=draws.layers(max_columns=96, columns_multiple_of=4), block=draws.sizes(128))
def test_block_size_is_nothing_to_a_pattern(backend, layer, block):
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    a = sweep.prune(layer.weights, factor, pattern=(2, 4), backend=backend)
    b = sweep.prune(layer.weights, factor, pattern=(2, 4), block_size=block, backend=backend)
    assert_same(a, b, FIELDS)


@given(layer=draws.layers(), layout=draws.layouts, data=st.data())
def test_layout_guards_and_inputs(backend, layer, layout, data):
    options = data.draw(patterns(layer.shape[1]))
    w = draws.relayout(layer.weights, layout)
    before = draws.whole(w).tobytes()
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    r_before = factor.R.tobytes()
    a = sweep.prune(layer.weights, factor, backend=backend, **options)
    b = sweep.prune(w, factor, backend=backend, **options)
    assert_same(a, b, FIELDS)
    assert draws.whole(w).tobytes() == before
    assert factor.R.tobytes() == r_before


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize(
    "options", [{"sparsity": 0.5}, {"sparsity": 0.5, "per_row": True}, {"pattern": (2, 4)}], ids=str
)
def test_threads_change_nothing(backend, dtype, options):
    rng = np.random.default_rng(0)
    factor = sweep.factorize(np.cov(rng.standard_normal((148, 300))).astype(dtype), backend=backend)
    w = rng.standard_normal((333, 148)).astype(dtype)
    one, two, three = (
        sweep.prune(w, factor, backend=backend, n_threads=threads, **options)
        for threads in (1, 2, 3)
    )
    assert_same(one, two, FIELDS)
    assert_same(one, three, FIELDS)


@given(layer=draws.layers(dead=False), data=st.data(), k=st.integers(-3, 3))
def test_powers_of_two_scale_the_result(backend, layer, data, k):
    options = data.draw(patterns(layer.shape[1]))
    s, c = layer.dtype.type(2.0**k), layer.dtype.type(4.0**k)
    plain = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    scaled = sweep.factorize(c * layer.hessian, order=layer.order, backend=backend)
    a = sweep.prune(layer.weights, plain, backend=backend, **options)
    b = sweep.prune(s * layer.weights, scaled, backend=backend, **options)
    np.testing.assert_array_equal(a.mask, b.mask)
    np.testing.assert_array_equal(s * a.weights, b.weights)
    np.testing.assert_array_equal(16.0**k * a.loss, b.loss)


@given(layer=draws.layers(dead=False), data=st.data())
def test_permuting_inputs_permutes_the_result(backend, layer, data):
    options = data.draw(patterns(layer.shape[1]))
    p = layer.order
    given_order = sweep.factorize(layer.hessian, damping=0.0, order=p, backend=backend)
    assume(len(given_order.report.attempts) == 1)
    permuted = sweep.factorize(layer.hessian[np.ix_(p, p)], damping=0.0, backend=backend)
    a = sweep.prune(layer.weights, given_order, backend=backend, **options)
    b = sweep.prune(layer.weights[:, p], permuted, backend=backend, **options)
    np.testing.assert_array_equal(a.mask[:, p], b.mask)
    np.testing.assert_array_equal(a.weights[:, p], b.weights)
    np.testing.assert_array_equal(a.loss, b.loss)


@given(
    m=draws.sizes(20),
    n=draws.sizes(12).map(lambda k: 4 * k),
    dtype=draws.dtypes,
    per_row=st.booleans(),
    block_size=st.sampled_from((None, 4, 7, 128)),
    seed=draws.seeds,
)
def test_ties_go_to_the_lowest_row_and_column(backend, m, n, dtype, per_row, block_size, seed):
    """Small integers under H = I: every score is exact and most of them are tied."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-2, 3, (m, n)).astype(dtype)
    factor = sweep.factorize(np.eye(n, dtype=dtype), damping=0.0, backend=backend)
    options = {"sparsity": 0.5, "per_row": per_row, "block_size": block_size}
    p = sweep.prune(w, factor, backend=backend, **options)
    expected = oracle.sweep(w, np.eye(n), **options)
    np.testing.assert_array_equal(p.mask, expected.mask)
    np.testing.assert_array_equal(p.weights, np.where(expected.mask, w, 0))
    p = sweep.prune(w, factor, pattern=(1, 4), backend=backend)
    np.testing.assert_array_equal(p.mask, oracle.sweep(w, np.eye(n), pattern=(1, 4)).mask)


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_nothing_and_everything(backend, dtype):
    rng = np.random.default_rng(1)
    w = rng.standard_normal((5, 49)).astype(dtype)
    h = np.cov(rng.standard_normal((49, 99))).astype(dtype)
    factor = sweep.factorize(h, backend=backend)
    nothing = sweep.prune(w, factor, sparsity=0.0, backend=backend)
    np.testing.assert_array_equal(nothing.weights, w)
    assert nothing.mask.all()
    assert (nothing.loss == 0).all()
    assert nothing.sparsity == 0
    everything = sweep.prune(w, factor, sparsity=1.0, backend=backend)
    assert not everything.weights.any()
    assert everything.sparsity == 1
    # All that there was is lost: w H w^T, at the error of n products and of the factor.
    r = factor.R.astype(float)
    lost = ((w.astype(float) @ r) ** 2).sum(axis=1)
    bound = 4 * 60 * np.finfo(dtype).eps * ((np.abs(w) @ np.abs(r)) ** 2).sum(axis=1)
    assert (np.abs(everything.loss - lost) <= bound).all()


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": (2, 4)}], ids=str)
def test_no_rows(backend, options):
    factor = sweep.factorize(np.eye(48), backend=backend)
    p = sweep.prune(np.zeros((0, 48)), factor, backend=backend, **options)
    assert p.weights.shape == p.mask.shape == (0, 48)
    assert p.loss.shape == (0,)


def test_dead_inputs_go_first(backend):
    """A dead input is worth nothing: it is zero whatever the mask says, and costs no loss."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((60, 12))
    x[:, 5] = 0
    w = rng.standard_normal((4, 12))
    w[:, 5] = 100.0
    factor = sweep.factorize(x.T @ x / 60, backend=backend)
    p = sweep.prune(w, factor, sparsity=1 / 12, backend=backend)
    np.testing.assert_array_equal(~p.mask, np.arange(12)[None, :].repeat(4, axis=0) == 5)
    assert (p.loss == 0).all()
    assert (p.weights[:, 5] == 0).all()


def test_feedback_pays(backend):
    rng = np.random.default_rng(3)
    # Inputs of different strength, all correlated with a few common ones.
    x = rng.standard_normal((400, 10)) @ rng.standard_normal((10, 100))
    x = (x + rng.standard_normal((400, 100))) * rng.lognormal(size=100)
    w = rng.standard_normal((30, 100))
    factor = sweep.factorize(x.T @ x / 400, backend=backend)
    for options in ({"sparsity": 0.5}, {"pattern": (2, 4)}):
        p = sweep.prune(w, factor, backend=backend, **options)
        magnitude = sweep.magnitude_prune(w, factor=factor, backend=backend, **options)
        assert p.loss.sum() < 0.7 * magnitude.loss.sum()


def test_cross_prunes_the_least_squares_target(backend):
    rng = np.random.default_rng(4)
    reference = rng.standard_normal((200, 16)) @ rng.standard_normal((16, 16)) / 4
    x = reference + 0.3 * rng.standard_normal((200, 16))
    h, g = x.T @ x / 200, (reference - x).T @ x / 200
    w = rng.standard_normal((6, 16))
    factor = sweep.factorize(h, backend=backend)
    p = sweep.prune(w, factor, sparsity=0.0, cross=g, backend=backend)
    damped = oracle.damped(h, factor.damping)[0]
    moved = w + w @ g @ np.linalg.inv(damped)
    room = 16 * 16 * np.finfo(float).eps * np.linalg.cond(damped) * np.abs(moved).max()
    assert np.abs(p.weights - moved).max() <= room


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_scores_neither_underflow_nor_overflow(backend, size):
    """The squares of these weights are no float32 numbers."""
    w = np.array([[1, -3, 2]], np.float32) * np.float32(size)
    factor = sweep.factorize(np.eye(3, dtype=np.float32), damping=0.0, backend=backend)
    p = sweep.prune(w, factor, pattern=(1, 3), backend=backend)
    np.testing.assert_array_equal(p.mask, [[False, True, False]])
    p = sweep.prune(w, factor, sparsity=2 / 3, backend=backend)
    np.testing.assert_array_equal(p.mask, [[False, True, False]])
