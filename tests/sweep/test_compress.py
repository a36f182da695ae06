"""compress: pruning and rounding in one sweep."""

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from quadric import sweep
from tests import strategies as draws
from tests.sweep.options import grids, patterns
from tests.sweep.witness import assert_definition, assert_same, errors, loss_bound

FIELDS = ("codes", "scales", "zeros", "group_index", "mask", "loss")


@st.composite
def joint_options(draw, columns):
    """Draw the options of compress; masks and dynamic groups have to fit each other."""
    multiple_of = draw(st.sampled_from([k for k in (1, 2, 4, 8) if columns % k == 0]))
    options = draw(grids(columns, multiple_of=multiple_of))
    size = options.get("group_size")
    follows_sweep = isinstance(size, int) and size < columns and "static_groups" not in options
    return options | draw(patterns(columns, size if follows_sweep else None))


@given(layer=draws.layers(max_log_cond=4), data=st.data())
def test_is_the_joint_sweep(backend, layer, data):
    options = data.draw(joint_options(layer.shape[1]))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    c = sweep.compress(layer.weights, factor, backend=backend, **options)
    assert c.mask.dtype == np.bool_
    ties = assert_definition(c, layer, factor, options)
    event(f"{layer.dtype}, {'some ties' if ties else 'no tie'}")


@given(layer=draws.layers(), data=st.data())
def test_zeros_and_loss(backend, layer, data):
    """A pruned weight is exactly zero; the loss is that of both errors."""
    options = data.draw(joint_options(layer.shape[1]))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    c = sweep.compress(layer.weights, factor, backend=backend, **options)
    q = c.dequantize()
    assert (q[~c.mask] == 0).all()
    assert (c.codes[~c.mask] == c.zeros[:, c.group_index][~c.mask]).all()
    e, off = errors(layer.weights, q, factor)
    bound = loss_bound(e, off, np.finfo(layer.dtype).eps)
    assert (np.abs(c.loss - (e**2).sum(axis=1)) <= bound).all()
    assert c.sparsity == pytest.approx(1 - c.mask.mean(), abs=1e-15)


@given(layer=draws.layers(), data=st.data())
def test_without_pruning_it_is_quantize(backend, layer, data):
    options = data.draw(grids(layer.shape[1]))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    q = sweep.quantize(layer.weights, factor, backend=backend, **options)
    c = sweep.compress(
        layer.weights, factor, sparsity=0.0, block_size=None, backend=backend, **options
    )
    assert_same(q, c)
    assert c.mask.all()


@given(layer=draws.layers(), layout=draws.layouts, data=st.data())
def test_layout_guards_and_inputs(backend, layer, layout, data):
    options = data.draw(joint_options(layer.shape[1]))
    w = draws.relayout(layer.weights, layout)
    before = draws.whole(w).tobytes()
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    a = sweep.compress(layer.weights, factor, backend=backend, **options)
    b = sweep.compress(w, factor, backend=backend, **options)
    assert_same(a, b, FIELDS)
    assert draws.whole(w).tobytes() == before


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": (2, 4)}], ids=str)
def test_threads_change_nothing(backend, dtype, options):
    rng = np.random.default_rng(0)
    factor = sweep.factorize(np.cov(rng.standard_normal((148, 300))).astype(dtype), backend=backend)
    w = rng.standard_normal((333, 148)).astype(dtype)
    one, two, three = (
        sweep.compress(w, factor, group_size=32, backend=backend, n_threads=threads, **options)
        for threads in (1, 2, 3)
    )
    assert_same(one, two, FIELDS)
    assert_same(one, three, FIELDS)


@pytest.mark.parametrize("group_size", [None, 4, 12, 48, "tensor"])
def test_two_of_four_with_four_bits(backend, group_size):
    rng = np.random.default_rng(1)
    w = rng.standard_normal((9, 48))
    x = rng.standard_normal((300, 8)) @ rng.standard_normal((8, 48))
    x += rng.standard_normal((300, 48)) / 2
    factor = sweep.factorize(x.T @ x / 300, backend=backend)
    options = {"pattern": (2, 4), "group_size": group_size}
    c = sweep.compress(w, factor, backend=backend, **options)
    assert (c.mask.reshape(9, 12, 4).sum(axis=2) == 2).all()
    nearest = sweep.round_to_nearest(w, factor=factor, backend=backend, **options)
    assert c.loss.sum() < 0.7 * nearest.loss.sum()


def test_no_rows(backend):
    factor = sweep.factorize(np.eye(48), backend=backend)
    c = sweep.compress(np.zeros((0, 48)), factor, pattern=(2, 4), group_size=8, backend=backend)
    assert c.codes.shape == c.mask.shape == (0, 48)
    assert c.scales.shape == (0, 6)
