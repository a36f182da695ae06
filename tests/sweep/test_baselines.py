"""round_to_nearest and magnitude_prune: the same results without feedback."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadric import sweep
from tests import strategies as draws
from tests.sweep.options import grids, patterns
from tests.sweep.witness import assert_same, errors, follow, loss_bound

QUANTIZED = ("codes", "scales", "zeros", "group_index")


def static(options):
    """Return the grid options with the groups that round_to_nearest knows, for both sides."""
    options = {k: v for k, v in options.items() if k not in ("stale_scales", "static_groups")}
    return options, options | {"static_groups": True}


@given(layer=draws.layers(), data=st.data(), pruned=st.booleans())
def test_rounds_to_nearest(backend, layer, data, pruned):
    options, expected_options = static(data.draw(grids(layer.shape[1])))
    pattern = data.draw(patterns(layer.shape[1])) if pruned else {}
    q = sweep.round_to_nearest(layer.weights, backend=backend, **options, **pattern)
    assert q.loss is None
    assert (q.mask is None) == (not pruned)
    _, witness = follow(q, layer.weights, None, **expected_options, **pattern)
    # Nothing is carried along: in float64 only -maxq / 2 on a symmetric grid is a tie.
    by_construction = q.scales.size if options["symmetric"] else 0
    single = layer.dtype == np.float32
    assert witness.ties <= by_construction + (2 + 1e-3 * q.codes.size if single else 0)


@given(layer=draws.layers(), data=st.data())
def test_factor_adds_dead_inputs_and_loss(backend, layer, data):
    options, expected_options = static(data.draw(grids(layer.shape[1])))
    pattern = data.draw(patterns(layer.shape[1]))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    q = sweep.round_to_nearest(layer.weights, factor=factor, backend=backend, **options, **pattern)
    follow(q, layer.weights, None, factor, **expected_options, **pattern)
    e, off = errors(layer.weights, q.dequantize(), factor)
    bound = loss_bound(e, off, np.finfo(layer.dtype).eps)
    assert (np.abs(q.loss - (e**2).sum(axis=1)) <= bound).all()


@given(layer=draws.layers(), data=st.data())
def test_prunes_by_magnitude(backend, layer, data):
    pattern = data.draw(patterns(layer.shape[1]))
    p = sweep.magnitude_prune(layer.weights, backend=backend, **pattern)
    assert p.loss is None
    follow(p, layer.weights, None, **pattern)
    # What is kept is kept bit by bit.
    np.testing.assert_array_equal(p.weights, np.where(p.mask, layer.weights, 0))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    p = sweep.magnitude_prune(layer.weights, factor=factor, backend=backend, **pattern)
    follow(p, layer.weights, None, factor, **pattern)
    e, off = errors(layer.weights, p.weights, factor)
    bound = loss_bound(e, off, np.finfo(layer.dtype).eps)
    assert (np.abs(p.loss - (e**2).sum(axis=1)) <= bound).all()


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_smallest_of_all_go(backend, dtype):
    """The default looks at the whole matrix, not at blocks of columns."""
    rng = np.random.default_rng(0)
    w = (rng.permutation(7 * 300).reshape(7, 300) + 1).astype(dtype) * rng.choice([-1, 1], 300)
    w = w.astype(dtype)
    p = sweep.magnitude_prune(w, sparsity=0.3, backend=backend)
    np.testing.assert_array_equal(p.mask, np.abs(w) > 630)
    q = sweep.round_to_nearest(w, bits=8, sparsity=0.3, backend=backend)
    np.testing.assert_array_equal(q.mask, np.abs(w) > 630)


@given(layer=draws.layers(), layout=draws.layouts, data=st.data())
def test_layout_guards_and_inputs(backend, layer, layout, data):
    options = static(data.draw(grids(layer.shape[1])))[0]
    w = draws.relayout(layer.weights, layout)
    before = draws.whole(w).tobytes()
    a = sweep.round_to_nearest(layer.weights, backend=backend, **options)
    b = sweep.round_to_nearest(w, backend=backend, **options)
    assert_same(a, b, QUANTIZED)
    pattern = data.draw(patterns(layer.shape[1]))
    a = sweep.magnitude_prune(layer.weights, backend=backend, **pattern)
    b = sweep.magnitude_prune(w, backend=backend, **pattern)
    assert_same(a, b, ("weights", "mask"))
    assert draws.whole(w).tobytes() == before


@given(
    m=draws.sizes(200),
    n=draws.sizes(200),
    dtype=draws.dtypes,
    seed=draws.seeds,
    data=st.data(),
)
def test_threads_change_nothing(backend, m, n, dtype, seed, data):
    w = np.random.default_rng(seed).standard_normal((m, n)).astype(dtype)
    options = static(data.draw(grids(n)))[0]
    one = sweep.round_to_nearest(w, backend=backend, n_threads=1, **options)
    two = sweep.round_to_nearest(w, backend=backend, n_threads=2, **options)
    assert_same(one, two, QUANTIZED)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_stored_scales_never_vanish_or_overflow(backend, name, dtype):
    """0 becomes the smallest subnormal, infinity the largest finite number of the format."""
    w = np.array([[1e-12, -1e-12], [1e-30, 0.0], [3e7, -3e7], [1.0, 2.0]], dtype)
    q = sweep.round_to_nearest(w, bits=4, scale_dtype=name, backend=backend)
    follow(q, w, None, bits=4, scale_dtype=name)
    if name == "float16":
        np.testing.assert_array_equal(q.scales[:3, 0], [2.0**-24, 2.0**-24, 65504.0])
    assert (q.scales > 0).all()
    assert np.isfinite(q.dequantize()).all()


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_ties_round_to_even(backend, dtype, bits):
    maxq = 2**bits - 1
    # The range is [0, maxq], so the scale is 1 and halves are ties.
    w = np.arange(0, 2 * maxq + 1, dtype=dtype)[None, :] / 2
    q = sweep.round_to_nearest(w, bits=bits, backend=backend)
    assert q.scales.item() == 1
    np.testing.assert_array_equal(q.codes, np.rint(w))


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_scale_search_ends_at_a_fifth_of_the_range(backend, dtype, symmetric):
    """400 weights on the levels of the last of the 80 ranges; an outlier sets the first."""
    low, step = (-3, 2.0 / 7.0) if symmetric else (0, 1.0 / 7.0)
    w = step * np.random.default_rng(1).integers(low, low + 7, (3, 401))
    w[:, 5] = 1.0 / 0.21
    w = w.astype(dtype)
    options = {"bits": 3, "symmetric": symmetric}
    plain = sweep.round_to_nearest(w, backend=backend, **options)
    search = sweep.round_to_nearest(w, scale="mse", mse_norm=1.5, backend=backend, **options)
    follow(search, w, None, scale="mse", mse_norm=1.5, **options)
    shrink = search.scales.astype(float) / plain.scales.astype(float)
    assert (np.abs(shrink - 0.21) <= 4 * np.finfo(dtype).eps).all()
