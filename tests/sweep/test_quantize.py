"""quantize: the definition, its algebra, and what must not matter."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, event, given, target
from hypothesis import strategies as st

from quadric import backends, sweep
from tests import strategies as draws
from tests.sweep import oracle
from tests.sweep.options import grids
from tests.sweep.witness import assert_definition, assert_same, errors, follow, loss_bound


@given(layer=draws.layers(), data=st.data())
def test_is_gptq(backend, layer, data):
    options = data.draw(grids(layer.shape[1]))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    q = sweep.quantize(layer.weights, factor, backend=backend, **options)
    assert q.codes.dtype == np.uint8
    assert q.zeros.dtype == np.uint8
    assert q.scales.dtype == layer.dtype
    assert q.loss.dtype == np.float64
    assert q.shape == layer.shape
    ties = assert_definition(q, layer, factor, options)
    event(f"{layer.dtype}, {'some ties' if ties else 'no tie'}")


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("group_size", [1, 48, 96, 100, 127, 128, 130, 150])
@pytest.mark.parametrize("stale", [False, True])
def test_groups_across_blocks(backend, dtype, group_size, stale):
    """Groups that start inside a block and end in another one, for the default sizes of blocks."""
    rng = np.random.default_rng(group_size)
    n = 290
    x = rng.standard_normal((400, n)) @ rng.standard_normal((n, n)) / 20
    layer = draws.Layer(
        weights=rng.standard_normal((5, n)).astype(dtype),
        hessian=(x.T @ x / 400).astype(dtype),
        order=rng.permutation(n),
    )
    options = {"bits": 4, "group_size": group_size, "stale_scales": stale, "symmetric": False}
    factor = sweep.factorize(layer.hessian, damping=0.1, order=layer.order, backend=backend)
    q = sweep.quantize(layer.weights, factor, backend=backend, **options)
    assert_definition(q, layer, factor, options)


@given(layer=draws.layers(), data=st.data())
def test_loss_is_the_error_in_the_hessian(backend, layer, data):
    options = data.draw(grids(layer.shape[1]))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    q = sweep.quantize(layer.weights, factor, backend=backend, **options)
    eps = np.finfo(layer.dtype).eps
    e, off = errors(layer.weights, q.dequantize(), factor)
    bound = loss_bound(e, off, eps)
    wrong = np.abs(q.loss - (e**2).sum(axis=1))
    assert (wrong <= bound).all()
    target(float(np.max(wrong / np.maximum(bound, 1e-300), initial=0.0)))
    # tr(D H D^T) from H itself: on top comes what factoring does to H, 2 (n + 2) eps |R| |R|^T.
    n = layer.shape[1]
    h = oracle.damped(layer.hessian, factor.damping)[0]
    d = np.where(factor.dead, 0.0, layer.weights) - q.dequantize().astype(float)
    r = np.abs(factor.R.astype(float))
    in_order = np.abs(d[:, factor.order]) @ r
    factoring = 2 * (n + 2) * eps * (in_order**2).sum(axis=1)
    assert (np.abs(q.loss - ((d @ h) * d).sum(axis=1)) <= bound + factoring).all()


@given(
    layer=draws.layers(max_columns=60, dead=False),
    bits=st.sampled_from((3, 4, 8)),
    symmetric=st.booleans(),
)
def test_babai_bound_without_clipping(backend, layer, bits, symmetric):
    """|e_j| <= s R_jj / 2 where no code is clipped: the row loses at most s^2 / 4 sum R_jj^2."""
    # One more input, independent of the others, spans a grid that the others cannot leave.
    m, n = layer.shape
    h = np.zeros((n + 1, n + 1), layer.dtype)
    h[:n, :n] = layer.hessian
    h[n, n] = np.diag(layer.hessian).mean()
    w = np.zeros((m, n + 1), layer.dtype)
    w[:, :n] = layer.weights
    w[:, n] = 4 * np.abs(layer.weights).max()
    factor = sweep.factorize(h, backend=backend)
    q = sweep.quantize(w, factor, bits=bits, symmetric=symmetric, backend=backend)
    if not symmetric:  # the grid reaches down to the smallest weight only
        assume((q.codes[:, :n] > 0).all())
    e, off = errors(w, q.dequantize(), factor)
    half = q.scales.astype(float) / 2 * np.diag(factor.R).astype(float)
    assert (np.abs(e) <= half + off).all()
    bound = (half**2).sum(axis=1)
    allowed = bound + loss_bound(half, off, np.finfo(layer.dtype).eps)
    assert (q.loss <= allowed).all()


@given(layer=draws.layers(max_columns=60), data=st.data())
def test_diagonal_hessian_is_rounding_to_nearest(backend, layer, data):
    options = data.draw(grids(layer.shape[1]))
    # Dynamic groups follow the sweep and those of round_to_nearest the columns.
    options.pop("stale_scales", None)
    options["static_groups"] = True
    h = np.diag(np.diag(layer.hessian))
    factor = sweep.factorize(h, order=layer.order, backend=backend)
    q = sweep.quantize(layer.weights, factor, backend=backend, **options)
    options.pop("static_groups")
    nearest = sweep.round_to_nearest(layer.weights, factor=factor, backend=backend, **options)
    assert_same(q, nearest, ("codes", "scales", "zeros", "group_index"))
    e, off = errors(layer.weights, q.dequantize(), factor)
    bound = loss_bound(e, off, np.finfo(layer.dtype).eps)
    assert (np.abs(q.loss - nearest.loss) <= 2 * bound).all()


@given(layer=draws.layers(dead=False), data=st.data())
def test_permuting_inputs_permutes_the_result(backend, layer, data):
    """Sweeping in an order is sweeping the permuted layer in its natural order, bit by bit."""
    options = data.draw(grids(layer.shape[1])) | {"static_groups": False}
    p = layer.order
    # Without damping, which would sum the diagonal in another order.
    given_order = sweep.factorize(layer.hessian, damping=0.0, order=p, backend=backend)
    assume(given_order.damping == 0.0)
    assume(given_order.report.attempts[-1].dtype == layer.dtype)
    permuted = sweep.factorize(layer.hessian[np.ix_(p, p)], damping=0.0, backend=backend)
    np.testing.assert_array_equal(given_order.R, permuted.R)
    if options.get("group_size") == "tensor":
        options["scale"] = "minmax"  # the search sums over all weights, in another order
    a = sweep.quantize(layer.weights, given_order, backend=backend, **options)
    b = sweep.quantize(layer.weights[:, p], permuted, backend=backend, **options)
    if options["scale"] == "minmax":
        np.testing.assert_array_equal(a.codes[:, p], b.codes)
        np.testing.assert_array_equal(a.group_index[p], b.group_index)
        assert_same(a, b, ("scales", "zeros", "loss"))
    else:
        assert np.mean(a.codes[:, p] == b.codes) > 0.9


@given(layer=draws.layers(types=(np.float64,)), data=st.data(), seed=draws.seeds)
def test_rows_are_independent(backend, layer, data, seed):
    options = data.draw(grids(layer.shape[1])) | {"symmetric": False}
    if options.get("group_size") == "tensor":
        options["group_size"] = None
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    rows = np.random.default_rng(seed).permutation(layer.shape[0])[: layer.shape[0] // 2 + 1]
    whole = sweep.quantize(layer.weights, factor, backend=backend, **options)
    part = sweep.quantize(layer.weights[rows], factor, backend=backend, **options)
    # The last bits may differ, because a matrix product may treat its last rows in another way.
    for name in ("codes", "zeros"):
        np.testing.assert_array_equal(getattr(whole, name)[rows], getattr(part, name), name)
    e, off = errors(layer.weights, whole.dequantize(), factor)
    bound = 2 * loss_bound(e, off, np.finfo(layer.dtype).eps)[rows]
    assert (np.abs(whole.loss[rows] - part.loss) <= bound).all()


@given(
    layer=draws.layers(),
    data=st.data(),
    log4_h=st.integers(-3, 3),
    log2_w=st.integers(-4, 4),
)
def test_powers_of_two_scale_the_result(backend, layer, data, log4_h, log2_w):
    """H -> 4^k H and W -> 2^l W change exponents only: every bit of the codes stays."""
    options = data.draw(grids(layer.shape[1], mse=False)) | {"scale_dtype": None}
    assume(not np.any(np.all(layer.weights == 0, axis=1)))
    # Dead inputs keep H_jj = 1 and weight 0, so that they change nothing.
    c, s = layer.dtype.type(4.0**log4_h), layer.dtype.type(2.0**log2_w)
    plain = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    scaled = sweep.factorize(c * layer.hessian, order=layer.order, backend=backend)
    live = ~plain.dead[plain.order]
    np.testing.assert_array_equal(
        scaled.R[:, live], layer.dtype.type(2.0**log4_h) * plain.R[:, live]
    )
    a = sweep.quantize(layer.weights, plain, backend=backend, **options)
    b = sweep.quantize(s * layer.weights, scaled, backend=backend, **options)
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.zeros, b.zeros)
    np.testing.assert_array_equal(4.0 ** (log4_h + log2_w) * a.loss, b.loss)


@given(layer=draws.layers(), layout=draws.layouts, data=st.data())
def test_layout_guards_and_inputs(backend, layer, layout, data):
    options = data.draw(grids(layer.shape[1]))
    w = draws.relayout(layer.weights, layout)
    h = draws.relayout(layer.hessian, data.draw(draws.layouts))
    before = [draws.whole(a).tobytes() for a in (w, h)]
    reference = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    factor = sweep.factorize(h, order=layer.order, backend=backend)
    np.testing.assert_array_equal(factor.R, reference.R)
    fac_before = factor.R.tobytes(), factor.order.tobytes(), factor.dead.tobytes()
    a = sweep.quantize(layer.weights, reference, backend=backend, **options)
    b = sweep.quantize(w, factor, backend=backend, **options)
    assert_same(a, b)
    assert [draws.whole(a).tobytes() for a in (w, h)] == before
    assert (factor.R.tobytes(), factor.order.tobytes(), factor.dead.tobytes()) == fac_before


@given(layer=draws.layers(max_rows=40, max_columns=140), data=st.data())
def test_threads_change_nothing(backend, layer, data):
    options = data.draw(grids(layer.shape[1], mse=False))
    factor = sweep.factorize(layer.hessian, order=layer.order, backend=backend)
    one = sweep.quantize(layer.weights, factor, backend=backend, n_threads=1, **options)
    two = sweep.quantize(layer.weights, factor, backend=backend, n_threads=2, **options)
    assert_same(one, two)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("group_size", [None, 32])
def test_more_threads_change_nothing(backend, dtype, group_size):
    """The same with enough rows that every thread has work."""
    rng = np.random.default_rng(10)
    factor = sweep.factorize(np.cov(rng.standard_normal((150, 300))).astype(dtype), backend=backend)
    w = rng.standard_normal((333, 150)).astype(dtype)
    results = [
        sweep.quantize(w, factor, group_size=group_size, backend=backend, n_threads=threads)
        for threads in (1, 2, 3)
    ]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@st.composite
def exact_layers(draw):
    """Draw a layer on which every operation of every correct sweep is exact: integers and eighths.

    R = I + N with N nonzero only from the first half of the sweep to the second, so U = I - N. The
    weights are multiples of 1/4 and the range of each row makes the scale 1, so ties are frequent.
    """
    bits = draw(st.sampled_from((2, 3, 4)))
    n = draw(st.integers(2, 60))
    m = draw(draws.sizes(20))
    half = draw(st.integers(1, n - 1))
    symmetric = draw(st.booleans())
    rng = np.random.default_rng(draw(draws.seeds))
    off = np.zeros((n, n))
    off[:half, half:] = rng.integers(-1, 2, (half, n - half))
    r = np.eye(n) + off
    order = rng.permutation(n)
    back = np.argsort(order)
    maxq = 2**bits - 1
    if symmetric:
        low, high = -maxq / 2, maxq / 2
    else:
        low = -float(rng.integers(0, maxq + 1))
        high = low + maxq
    w = np.clip(rng.integers(-4 * maxq, 4 * maxq + 1, (m, n)) / 4, low, high)
    w[:, 0], w[:, 1] = low, high
    return (
        w,
        (r @ r.T)[np.ix_(back, back)],
        order,
        np.eye(n) - off,
        {"bits": bits, "symmetric": symmetric},
    )


@given(drawn=exact_layers(), dtype=draws.dtypes)
def test_exact_where_arithmetic_is_exact(backend, drawn, dtype):
    """No tolerance and no witness: ties go to the even level, on every backend."""
    w, h, order, u, options = drawn
    factor = sweep.factorize(h.astype(dtype), damping=0.0, order=order, backend=backend)
    q = sweep.quantize(w.astype(dtype), factor, backend=backend, **options)
    expected = oracle.sweep(w, h, order, u=u, **options)
    assert (q.scales == 1.0).all()
    np.testing.assert_array_equal(q.zeros, expected.zeros)
    np.testing.assert_array_equal(q.codes, expected.codes)
    d = w - expected.weights
    np.testing.assert_array_equal(q.loss, ((d @ h) * d).sum(axis=1))


@pytest.mark.skipif(len(backends.available()) < 2, reason="one backend only")
@given(layer=draws.layers(types=(np.float64,), max_log_cond=3), data=st.data())
def test_backends_agree(layer, data):
    """Follow one backend's decisions with the others': float64 codes differ in ties only."""
    options = data.draw(grids(layer.shape[1], mse=False)) | {"symmetric": False}
    results = []
    for name in backends.available():
        factor = sweep.factorize(layer.hessian, order=layer.order, backend=name)
        results.append(sweep.quantize(layer.weights, factor, backend=name, **options))
    for other in results[1:]:
        np.testing.assert_array_equal(other.codes, results[0].codes)
        np.testing.assert_array_equal(other.zeros, results[0].zeros)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("group_size", [None, 16, "tensor"])
def test_no_rows(backend, dtype, group_size):
    factor = sweep.factorize(np.eye(48, dtype=dtype), backend=backend)
    q = sweep.quantize(np.zeros((0, 48), dtype), factor, group_size=group_size, backend=backend)
    assert q.codes.shape == (0, 48)
    assert q.scales.shape == (0, 3 if group_size == 16 else 1)
    assert q.loss.shape == (0,)
    assert q.dequantize().shape == (0, 48)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8, "ternary"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 1, 3, "tensor"])
def test_zeros_and_constants(backend, dtype, bits, symmetric, group_size):
    """A group without range must not divide by zero, and zero is always on the grid."""
    w = np.zeros((3, 5), dtype)
    w[1] = 0.75
    w[2] = -0.75
    factor = sweep.factorize(np.eye(5, dtype=dtype), backend=backend)
    options = {"bits": bits, "symmetric": symmetric, "group_size": group_size}
    q = sweep.quantize(w, factor, backend=backend, **options)
    assert np.isfinite(q.scales).all()
    assert (q.scales > 0).all()
    back = q.dequantize()
    assert (back[0] == 0).all()
    assert (q.codes <= (2 if bits == "ternary" else 2**bits - 1)).all()
    if not symmetric and group_size != "tensor":
        # The end of the grid: maxq * fl(0.75 / maxq), two roundings.
        assert (np.abs(back - w) <= 2 * np.finfo(dtype).eps * np.abs(w)).all()


@pytest.mark.parametrize("dtype", draws.DTYPES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale", ["minmax", "mse"])
def test_weights_too_small_for_a_scale(backend, dtype, symmetric, scale):
    """Where the range divided by the levels underflows, the scale is still no zero."""
    tiny = np.finfo(dtype).smallest_subnormal
    w = np.array([[tiny, 0, 0], [3 * tiny, -tiny, 0]], dtype)
    factor = sweep.factorize(np.eye(3, dtype=dtype), backend=backend)
    q = sweep.quantize(w, factor, symmetric=symmetric, scale=scale, backend=backend)
    assert (q.scales > 0).all()
    back = q.dequantize()
    assert (back[:, 2] == 0).all()
    assert (np.abs(back - w) <= 3 * tiny).all()
    static = sweep.round_to_nearest(w, symmetric=symmetric, scale=scale, backend=backend)
    np.testing.assert_array_equal(static.scales, q.scales)


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_one_input(backend, dtype):
    w = np.array([[3.0], [-1.0], [0.0]], dtype)
    factor = sweep.factorize(np.array([[2.0]], dtype), backend=backend)
    q = sweep.quantize(w, factor, bits=2, backend=backend)
    np.testing.assert_array_equal(q.codes[:2], [[3], [0]])
    assert (np.abs(q.dequantize() - w) <= 2 * np.finfo(dtype).eps * np.abs(w)).all()


def test_dead_inputs_become_zero(backend):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((50, 20))
    x[:, [2, 11]] = 0.0
    w = rng.standard_normal((6, 20))
    w[:, 2] = 1e6  # must not reach the scales
    factor = sweep.factorize(x.T @ x / 50, backend=backend)
    assert factor.dead.tolist() == [j in (2, 11) for j in range(20)]
    for options in ({}, {"group_size": "tensor"}, {"group_size": 7}, {"static_groups": True}):
        q = sweep.quantize(w, factor, backend=backend, **options)
        assert (q.dequantize()[:, [2, 11]] == 0).all()
        assert q.scales.max() < 10


def test_wider_scale_search_never_hurts_a_single_group(backend):
    """The search includes the whole range, so rounding to nearest cannot get worse by it."""
    rng = np.random.default_rng(4)
    w = rng.standard_t(3, (16, 64))
    plain = sweep.round_to_nearest(w, bits=3, backend=backend)
    search = sweep.round_to_nearest(w, bits=3, scale="mse", mse_norm=2.0, backend=backend)
    error = [((w - q.dequantize()) ** 2).sum(axis=1) for q in (plain, search)]
    assert (error[1] <= error[0] * (1 + 64 * np.finfo(float).eps)).all()
    assert error[1].sum() < 0.9 * error[0].sum()


def test_feedback_pays(backend):
    """On correlated inputs the sweep clearly beats rounding to nearest; smoke for a sign error."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((400, 100)) @ rng.standard_normal((100, 100))
    w = rng.standard_normal((30, 100))
    factor = sweep.factorize(x.T @ x / 400, order="activation", backend=backend)
    q = sweep.quantize(w, factor, bits=4, group_size=25, backend=backend)
    nearest = sweep.round_to_nearest(w, factor=factor, bits=4, group_size=25, backend=backend)
    assert q.loss.sum() < 0.5 * nearest.loss.sum()


# ---- asymmetric calibration ----------------------------------------------------------------------


def calibrated(seed, m=8, n=24, tokens=200):
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((tokens, n)) @ rng.standard_normal((n, n)) / 4
    x = reference + 0.3 * rng.standard_normal((tokens, n))
    accumulator = sweep.HessianAccumulator(n, dtype="float64")
    accumulator.update(x, reference=reference)
    return rng.standard_normal((m, n)), x, reference, accumulator


@pytest.mark.parametrize("strength", [0.25, 1.0])
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_cross_rounds_the_least_squares_target(backend, strength, order):
    w, x, reference, accumulator = calibrated(6)
    h, g = x.T @ x / len(x), (reference - x).T @ x / len(x)
    factor = sweep.factorize(accumulator.value(), order=order, backend=backend)
    cross = accumulator.cross()
    q = sweep.quantize(
        w, factor, bits=4, group_size=10, cross=cross, cross_strength=strength, backend=backend
    )
    damped = oracle.damped(h, factor.damping)[0]
    moved = w + strength * w @ g @ np.linalg.inv(damped)
    n = w.shape[1]
    room = 16 * n * np.finfo(float).eps * np.linalg.cond(damped)
    follow(q, moved, damped, factor, bits=4, group_size=10, input_error=room)
    d = moved - q.dequantize()
    assert q.loss == pytest.approx(((d @ damped) * d).sum(axis=1), rel=100 * room)


def test_cross_improves_the_real_outputs(backend):
    w, x, reference, accumulator = calibrated(7)
    factor = sweep.factorize(accumulator.value(), backend=backend)

    def wrong(**options):
        q = sweep.quantize(w, factor, bits=8, backend=backend, **options)
        return np.linalg.norm(reference @ w.T - x @ q.dequantize().T)

    assert wrong(cross=accumulator.cross()) < 0.9 * wrong()


def test_no_cross_is_no_change(backend):
    w, _, _, accumulator = calibrated(8)
    factor = sweep.factorize(accumulator.value(), backend=backend)
    plain = sweep.quantize(w, factor, backend=backend)
    cross = accumulator.cross()
    assert_same(plain, sweep.quantize(w, factor, cross=np.zeros_like(cross), backend=backend))
    assert_same(plain, sweep.quantize(w, factor, cross=cross, cross_strength=0.0, backend=backend))


# ---- the result ----------------------------------------------------------------------------------


def test_result_is_frozen_and_dequantizes_by_its_own_fields(backend):
    rng = np.random.default_rng(9)
    w = rng.standard_normal((4, 20))
    factor = sweep.factorize(np.cov(rng.standard_normal((20, 90))), order="activation")
    q = sweep.quantize(w, factor, bits=3, group_size=6, backend=backend)
    with pytest.raises(dataclasses.FrozenInstanceError):
        q.codes = None
    by_hand = np.empty((4, 20))
    for i in range(4):
        for j in range(20):
            g = q.group_index[j]
            by_hand[i, j] = q.scales[i, g] * (int(q.codes[i, j]) - int(q.zeros[i, g]))
    np.testing.assert_array_equal(q.dequantize(), by_hand)
    assert (q.bits, q.group_size, q.symmetric, q.mask) == (3, 6, False, None)
