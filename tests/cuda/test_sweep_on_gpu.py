"""The sweep family on arrays of a GPU, which is an emulated one: what Python does around kernels.

The kernels are those of the CPU, so results are the same to the last bit, but for sums that are
taken in another order.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest

from quadric import LinAlgError, backends, sweep
from tests.cuda import emulated

DTYPES = ("float32", "float64")


def inputs(tokens=60, n=16, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((tokens, n)) @ rng.standard_normal((n, n))).astype(dtype)


def hessian(n=16, dtype="float32", seed=0):
    X = inputs(4 * n, n, "float64", seed)
    H = (X.T @ X / len(X)).astype(dtype)
    return (H + H.T) / 2


def weights(m=6, n=16, dtype="float32", seed=1):
    return np.random.default_rng(seed).standard_normal((m, n)).astype(dtype)


def same(gpu, found, expected, eps=0.0):
    """Assert that `found` is on the GPU, and is `expected` up to that part of its largest entry."""
    a = gpu.get(found)
    assert (a.shape, a.dtype) == (expected.shape, expected.dtype)
    assert not np.isnan(a.astype(float)).any()
    largest = np.abs(expected.astype(float)).max(initial=0)
    assert np.abs(a.astype(float) - expected.astype(float)).max(initial=0) <= eps * largest


# ---- HessianAccumulator --------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float16", ml_dtypes.bfloat16, "float32", "float64"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_accumulator(gpu, storage, dtype, weighted, crossed):
    here, there = (sweep.HessianAccumulator(16, dtype=dtype) for _ in range(2))
    for seed in range(2):
        X = inputs(24, seed=seed).astype(storage).reshape(4, 6, 16)
        w = np.linspace(0, 2, 24, dtype=np.float32).reshape(4, 6) if weighted else None
        reference = (X + np.asarray(0.1, storage)).astype(storage) if crossed else None
        here.update(X, w, reference)
        there.update(*(None if a is None else gpu.put(a) for a in (X, w, reference)))
    eps = 64 * np.finfo(dtype).eps
    same(gpu, there.value(), here.value(), eps)
    H = gpu.get(there.value())
    assert np.array_equal(H, H.T)
    assert there.tokens == here.tokens
    if crossed:
        same(gpu, there.cross(), here.cross(), eps)


def test_accumulator_of_strided_and_transposed_inputs(gpu):
    X = inputs(40, 32)
    for part in (X[::2, :16], X[:, ::2], X[::-1, ::-1][:, :16], np.asfortranarray(X[:, :16])):
        here, there = sweep.HessianAccumulator(16), sweep.HessianAccumulator(16)
        here.update(part)
        there.update(gpu.put(X)[::2, :16] if part.shape[0] == 20 else gpu.put(part))
        same(gpu, there.value(), here.value(), 1e-5)


def test_accumulators_merge(gpu):
    parts = [sweep.HessianAccumulator(16) for _ in range(3)]
    whole = sweep.HessianAccumulator(16)
    for seed, part in enumerate(parts):
        X, reference = inputs(seed=seed), inputs(seed=seed + 10)
        part.update(gpu.put(X), reference=gpu.put(reference))
        whole.update(X, reference=reference)
    total = sweep.HessianAccumulator(16)
    for part in parts:
        total.merge(part)
    same(gpu, total.value(), whole.value(), 1e-5)
    same(gpu, total.cross(), whole.cross(), 1e-5)
    same(gpu, parts[0].value(), gpu.get(parts[0].value()))  # it stays as it was


def test_accumulator_goes_through_a_file(gpu, tmp_path):
    whole, acc = sweep.HessianAccumulator(16), sweep.HessianAccumulator(16)
    acc.update(gpu.put(inputs()), reference=gpu.put(inputs(seed=3)))
    acc.save(tmp_path / "sums.npz")
    for seed in (0, 1):
        whole.update(inputs(seed=seed), reference=inputs(seed=3))
    loaded = sweep.HessianAccumulator.load(tmp_path / "sums.npz")
    loaded.update(gpu.put(inputs(seed=1)), reference=gpu.put(inputs(seed=3)))
    same(gpu, loaded.value(), whole.value(), 1e-5)
    same(gpu, loaded.cross(), whole.cross(), 1e-5)


def test_accumulator_stays_where_it_began(gpu):
    acc = sweep.HessianAccumulator(16)
    acc.update(gpu.put(inputs()))
    before = gpu.get(acc.value()).copy()
    for X in (inputs(), gpu.put(inputs(), device=1)):
        with pytest.raises(ValueError, match=r"^X must be where the sum so far is \(emulated"):
            acc.update(X)
    with pytest.raises(ValueError, match=r"^reference must be where X is"):
        sweep.HessianAccumulator(16).update(gpu.put(inputs()), reference=inputs())
    with pytest.raises(ValueError, match=r"^weights must be where X is"):
        acc.update(gpu.put(inputs()), np.ones(60, np.float32))
    other = sweep.HessianAccumulator(16)
    other.update(inputs())
    with pytest.raises(ValueError, match=r"^other must be where the sum so far is"):
        acc.merge(other)
    with pytest.raises(ValueError, match=r"^other must be where the sum so far is"):
        other.merge(acc)
    same(gpu, acc.value(), before)


def test_accumulator_refuses_what_is_not_finite(gpu):
    acc = sweep.HessianAccumulator(16)
    for bad in (np.nan, np.inf):
        X = inputs()
        X[3, 5] = bad
        with pytest.raises(ValueError, match=rf"^X must be finite, got {bad} at index \(3, 5\)"):
            acc.update(gpu.put(X))
    X64 = inputs(dtype="float64")
    X64[1, 2] = 1e300
    with pytest.raises(ValueError, match=r"^X must be finite, got inf at index \(1, 2\)"):
        acc.update(gpu.put(X64))
    with pytest.raises(ValueError, match=r"^weights must be at least 0, got -1"):
        acc.update(gpu.put(inputs()), gpu.put(np.full(60, -1, np.float32)))
    with pytest.raises(TypeError, match=r"^X must be float16"):
        acc.update(gpu.put(np.ones((3, 16), np.int32)))
    assert acc.tokens == 0
    acc.update(gpu.put(inputs(0)))
    assert acc.tokens == 0


# ---- factorize -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["natural", "activation", list(range(15, -1, -1))])
@pytest.mark.parametrize("dead", [False, True])
def test_factorize(gpu, dtype, order, dead):
    H = hessian(dtype=dtype)
    if dead:
        H[[3, 7]] = H[:, [3, 7]] = 0
    here = sweep.factorize(H, order=order)
    for layout in (H, np.asfortranarray(H), H[::-1, ::-1][::-1, ::-1]):
        there = sweep.factorize(gpu.put(layout), order=order)
        same(gpu, there.R, here.R)
        assert np.array_equal(there.order, here.order)
        assert np.array_equal(there.dead, here.dead)
        assert repr(there) == repr(here)


def test_factorize_takes_an_order_from_the_gpu(gpu):
    order = np.random.default_rng(0).permutation(16)
    there = sweep.factorize(gpu.put(hessian()), order=gpu.put(order))
    assert np.array_equal(there.order, order)


def test_factorize_in_place(gpu):
    for H in (hessian(), np.asfortranarray(hessian())):
        on_gpu = gpu.put(H)
        there = sweep.factorize(on_gpu, overwrite_h=True)
        same(gpu, there.R, sweep.factorize(H).R)
        assert there._upper.owner is on_gpu
    with pytest.raises(ValueError, match=r"^H must be contiguous with overwrite_h=True"):
        sweep.factorize(gpu.put(np.tile(hessian(), (2, 2)))[::2, ::2], overwrite_h=True)


def test_factorize_tries_again_and_gives_up_as_on_the_cpu(gpu):
    # Of rank 4, and a little indefinite: more damping helps; then only float64 does; then nothing.
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4, 16))
    low = (X.T @ X).astype(np.float32)
    low = (low + low.T) / 2
    indefinite = low - 0.5 * np.eye(16, dtype=np.float32)
    for H, options in itertools.product(
        (low, indefinite), ({"damping": 0.0}, {"damping": 1e-9, "retries": 0}, {"retries": 6})
    ):
        try:
            here = sweep.factorize(H, on_failure="round_to_nearest", **options)
        except ValueError as error:
            with pytest.raises(type(error), match=r"^" + str(error)[:20]):
                sweep.factorize(gpu.put(H), on_failure="round_to_nearest", **options)
            continue
        there = sweep.factorize(gpu.put(H), on_failure="round_to_nearest", **options)
        same(gpu, there.R, here.R)
        outcome = [(a.dtype, a.damping, a.pivot) for a in here.report.attempts]
        assert [(a.dtype, a.damping, a.pivot) for a in there.report.attempts] == outcome
        assert there.report.fallback == here.report.fallback
    negative = hessian()
    negative[0, 1] = negative[1, 0] = 100
    with pytest.raises(LinAlgError, match=r"^H is not positive definite: pivot at column 0"):
        sweep.factorize(gpu.put(negative), retries=0)


def test_factorize_refuses(gpu):
    H = hessian()
    H[2, 3] = H[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"^H must be finite, got nan at index \(2, 3\)"):
        sweep.factorize(gpu.put(H))
    with pytest.raises(ValueError, match=r"^H must be symmetric"):
        sweep.factorize(gpu.put(np.triu(hessian())))
    with pytest.raises(ValueError, match=r"^H must have a nonzero diagonal"):
        sweep.factorize(gpu.put(np.zeros((3, 3))))
    with pytest.raises(ValueError, match=r"^H must be square"):
        sweep.factorize(gpu.put(np.zeros((3, 4))))
    with pytest.raises(TypeError, match=r"^H must be float32 or float64"):
        sweep.factorize(gpu.put(np.eye(3, dtype=np.int32)))
    with pytest.raises(TypeError, match=r"^H cannot be bfloat16"):
        sweep.factorize(gpu.put(np.eye(3, dtype=ml_dtypes.bfloat16)))


def test_backends_of_gpu_arrays(gpu):
    for backend in ("native", "numba"):
        with pytest.raises(
            ValueError, match=rf"^backend must be cuda for arrays on a GPU, got '{backend}'"
        ):
            sweep.factorize(gpu.put(hessian()), backend=backend)
    sweep.factorize(gpu.put(hessian()), backend="cuda")
    assert "cuda" in backends.available()


def test_the_environment_does_not_choose_for_gpu_arrays(gpu, monkeypatch):
    monkeypatch.setenv("QUADRIC_BACKEND", "numba")
    same(
        gpu,
        sweep.factorize(gpu.put(hessian())).R,
        sweep.factorize(hessian(), backend="numba").R,
        1e-5,
    )


# ---- the sweeps ----------------------------------------------------------------------------------

GRIDS = [
    {},
    {"bits": 2, "group_size": 4},
    {"bits": 8, "group_size": 4, "static_groups": True, "symmetric": True},
    {"bits": 3, "group_size": 5, "scale": "mse", "scale_dtype": "float16"},
    {"bits": "ternary", "group_size": "tensor"},
    {"group_size": 4, "stale_scales": True, "scale_dtype": "bfloat16"},
]
PATTERNS = [
    {"pattern": (2, 4)},
    {"sparsity": 0.5},
    {"sparsity": 0.3, "per_row": True, "block_size": 4},
    {"sparsity": 0.0},
]
FIELDS = ("codes", "scales", "zeros", "group_index", "loss", "mask", "weights")


def agree(gpu, there, here):
    """Assert that two results are the same, field by field."""
    for name in FIELDS:
        expected, found = getattr(here, name, None), getattr(there, name, None)
        if expected is None:
            assert found is None
        else:
            same(gpu, found, expected)
    assert there.sparsity == here.sparsity
    assert repr(there) == repr(here)


@pytest.fixture(params=list(itertools.product(DTYPES, ("natural", "activation"), (False, True))))
def case(request, gpu):
    """A Hessian's factors, weights, and a cross matrix, on the CPU and on the GPU."""
    dtype, order, dead = request.param
    H, W = hessian(dtype=dtype), weights(dtype=dtype)
    if dead:
        H[[3, 7]] = H[:, [3, 7]] = 0
    cross = 0.1 * hessian(dtype=dtype, seed=5)
    here = (W, sweep.factorize(H, order=order), cross)
    there = (gpu.put(W), sweep.factorize(gpu.put(H), order=order), gpu.put(cross))
    return here, there


@pytest.mark.parametrize("options", GRIDS)
def test_quantize(gpu, case, options):
    (W, fac, _), (W_there, fac_there, _) = case
    here, there = sweep.quantize(W, fac, **options), sweep.quantize(W_there, fac_there, **options)
    agree(gpu, there, here)
    same(gpu, there.dequantize(), here.dequantize())


@pytest.mark.parametrize("options", PATTERNS)
def test_prune(gpu, case, options):
    (W, fac, _), (W_there, fac_there, _) = case
    agree(gpu, sweep.prune(W_there, fac_there, **options), sweep.prune(W, fac, **options))


@pytest.mark.parametrize("options", [a | b for a, b in zip(GRIDS[:2] * 2, PATTERNS, strict=True)])
def test_compress(gpu, case, options):
    (W, fac, _), (W_there, fac_there, _) = case
    agree(gpu, sweep.compress(W_there, fac_there, **options), sweep.compress(W, fac, **options))


def test_cross(gpu, case):
    (W, fac, cross), (W_there, fac_there, cross_there) = case
    here = sweep.prune(W, fac, sparsity=0.0, cross=cross, cross_strength=0.5)
    there = sweep.prune(W_there, fac_there, sparsity=0.0, cross=cross_there, cross_strength=0.5)
    same(gpu, there.weights, here.weights, 1e-5 if W.dtype == np.float32 else 1e-12)
    q = sweep.quantize(W_there, fac_there, cross=cross_there[:, :], bits=8)
    assert q.shape == W.shape
    with pytest.raises(ValueError, match=r"^cross must be where W is"):
        sweep.quantize(W_there, fac_there, cross=cross)
    with pytest.raises(TypeError, match=r"^cross must be float"):
        sweep.quantize(
            W_there, fac_there, cross=gpu.put(cross.astype("f4" if W.itemsize == 8 else "f8"))
        )


@pytest.mark.parametrize("factored", [False, True])
def test_baselines(gpu, case, factored):
    (W, fac, _), (W_there, fac_there, _) = case
    here, there = ({"factor": f} if factored else {} for f in (fac, fac_there))
    for options in [o for o in GRIDS if not {"static_groups", "stale_scales"} & set(o)]:
        found = sweep.round_to_nearest(W_there, **there, **options)
        agree(gpu, found, sweep.round_to_nearest(W, **here, **options))
    for options in PATTERNS:
        found = sweep.magnitude_prune(W_there, **there, **options)
        agree(gpu, found, sweep.magnitude_prune(W, **here, **options))


@pytest.mark.parametrize(
    "part", [np.s_[:, ::2], np.s_[::-1, :16], np.s_[:0, :16], np.s_[:, -17:-1]]
)
def test_weights_of_any_layout(gpu, part):
    W, H = weights(n=32), hessian()
    fac, fac_there = sweep.factorize(H), sweep.factorize(gpu.put(H))
    agree(
        gpu,
        sweep.quantize(gpu.put(W)[part], fac_there, group_size=4),
        sweep.quantize(W[part], fac, group_size=4),
    )
    agree(
        gpu,
        sweep.quantize(gpu.put(W[part]).T.T, fac_there, group_size=8, static_groups=True),
        sweep.quantize(W[part], fac, group_size=8, static_groups=True),
    )


def test_cross_of_any_layout(gpu):
    W, H, cross = weights(n=32), hessian(), 0.1 * hessian(32, seed=5)
    fac, fac_there = sweep.factorize(H), sweep.factorize(gpu.put(H))
    for columns in (np.s_[::2], np.s_[15::-1], np.s_[3:19]):
        here = sweep.prune(W[:, columns], fac, sparsity=0.0, cross=cross[columns, columns].T)
        there = sweep.prune(
            gpu.put(W)[:, columns],
            fac_there,
            sparsity=0.0,
            cross=gpu.put(cross)[columns, columns].T,
        )
        same(gpu, there.weights, here.weights, 1e-5)


@pytest.mark.parametrize("format", ["gptq", "gptq_v2", "compressed-tensors"])
def test_pack(gpu, format):
    W, H = weights(m=32, n=32), hessian(32)
    options = {"bits": 4, "group_size": 8, "symmetric": True, "scale_dtype": "float16"}
    here = sweep.quantize(W, sweep.factorize(H, order="activation"), **options)
    there = sweep.quantize(gpu.put(W), sweep.factorize(gpu.put(H), order="activation"), **options)
    packed, expected = there.pack(format), here.pack(format)
    assert packed.keys() == expected.keys()
    for name, a in expected.items():
        same(gpu, packed[name], a)


@pytest.mark.parametrize("options", [{}, {"bits": 3, "group_size": 4}, {"group_size": "tensor"}])
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_quantize_batch(gpu, options, order):
    W = np.stack([weights(seed=i) for i in range(4)])
    H = np.stack([hessian(seed=i) for i in range(4)])
    H[1, 3] = H[1, :, 3] = 0
    H[2] = H[2, :, :1] * H[2, :1]  # of rank one: it takes more damping than the others
    here = sweep.quantize_batch(W, H, order=order, damping=1e-9, **options)
    there = sweep.quantize_batch(gpu.put(W), gpu.put(H), order=order, damping=1e-9, **options)
    for a, b in zip(there, here, strict=True):
        agree(gpu, a, b)
    with pytest.raises(ValueError, match=r"must be where"):
        sweep.quantize_batch(gpu.put(W), H)


def test_sweeps_refuse(gpu):
    W, H = weights(), hessian()
    fac, fac_there = sweep.factorize(H), sweep.factorize(gpu.put(H))
    for w, factor in (
        (W, fac_there),
        (gpu.put(W), fac),
        (gpu.put(W, device=1), fac_there),
    ):
        with pytest.raises(ValueError, match=r"^W must be where the factor is"):
            sweep.quantize(w, factor)
        with pytest.raises(ValueError, match=r"^W must be where the factor is"):
            sweep.round_to_nearest(w, factor=factor)
    W[1, 2] = np.inf
    with pytest.raises(ValueError, match=r"^W must be finite, got inf at index \(1, 2\)"):
        sweep.prune(gpu.put(W), fac_there, sparsity=0.5)
    with pytest.raises(ValueError, match=r"^W must be finite"):
        sweep.round_to_nearest(gpu.put(W))
    with pytest.raises(TypeError, match=r"^W must be float32 as the factor"):
        sweep.prune(gpu.put(weights(dtype="float64")), fac_there, sparsity=0.5)
    huge = np.array([[-3e38, 3e38]], np.float32)
    with pytest.raises(ValueError, match=r"^W must have ranges that float32 can hold"):
        sweep.round_to_nearest(gpu.put(huge))
    with pytest.raises(ValueError, match=r"^backend must be cuda for arrays on a GPU"):
        sweep.round_to_nearest(gpu.put(weights()), backend="numba")


def test_gpu_arrays_do_not_become_numpy_arrays(gpu):
    with pytest.raises(TypeError):
        np.asarray(gpu.put(weights()))
    with pytest.raises(TypeError):
        np.isfinite(emulated.device.wrap(gpu.put(weights())))
    with pytest.raises(TypeError):
        np.ones(3) + emulated.device.wrap(gpu.put(np.ones(3)))


def test_memory_that_is_gone_is_not_read(gpu):
    a = emulated.device.wrap(gpu.put(np.ones(3)))
    view = a.view
    del a
    with pytest.raises(AssertionError, match=r"memory of the device"):
        gpu.seen(view)
