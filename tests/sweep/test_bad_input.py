"""Bad input: one line that starts with the argument's name, and nothing changed."""

import re

import numpy as np
import pytest

from quadric import sweep

N = 12
NAN, INF = float("nan"), float("inf")


class Case:
    """A good layer; each test spoils one argument."""

    def __init__(self, backend):
        rng = np.random.default_rng(0)
        self.backend = backend
        self.x = rng.standard_normal((40, N))
        self.h = self.x.T @ self.x / 40
        self.w = rng.standard_normal((5, N))
        self.factor = sweep.factorize(self.h, backend=backend)
        self.before = self.state()

    def state(self):
        return [a.tobytes() for a in (self.x, self.h, self.w, self.factor.R, self.factor.order)]


@pytest.fixture
def case(backend):
    return Case(backend)


def spoiled(a, value, at=(1, 2)):
    bad = a.copy()
    bad[at] = value
    return bad


def assert_refused(case, name, call, error=(ValueError, TypeError)):
    """Assert that the call raises one line about the argument and changes no input."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert re.match(rf"{re.escape(name)}\b", message), message
    assert "\n" not in message
    assert case.state() == case.before


MATRICES = {
    "nan": (lambda a: spoiled(a, NAN), ValueError),
    "inf": (lambda a: spoiled(a, INF), ValueError),
    "minus inf": (lambda a: spoiled(a, -INF), ValueError),
    "last entry": (lambda a: spoiled(a, NAN, (-1, -1)), ValueError),
    "both infinities": (lambda a: spoiled(spoiled(a, INF), -INF, (0, 0)), ValueError),
    "vector": (lambda a: a[0], ValueError),
    "three axes": (lambda a: a[None], ValueError),
    "fewer columns": (lambda a: a[:, :-1], ValueError),
    "integers": (lambda a: a.astype(np.int64), TypeError),
    "booleans": (lambda a: a > 0, TypeError),
    "complex": (lambda a: a.astype(np.complex128), TypeError),
    "half precision": (lambda a: a.astype(np.float16), TypeError),
    "objects": (lambda a: a.astype(object), TypeError),
    "other byte order": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError),
    "list": (lambda a: a.tolist(), TypeError),
    "none": (lambda a: None, TypeError),
}

SWEEPS = {
    "quantize": lambda c, w, **k: sweep.quantize(w, k.pop("factor", c.factor), **k),
    "prune": lambda c, w, **k: sweep.prune(w, k.pop("factor", c.factor), **_half(k)),
    "compress": lambda c, w, **k: sweep.compress(w, k.pop("factor", c.factor), **_half(k)),
    "round_to_nearest": lambda c, w, **k: sweep.round_to_nearest(
        w, factor=k.pop("factor", c.factor), **k
    ),
    "magnitude_prune": lambda c, w, **k: sweep.magnitude_prune(
        w, factor=k.pop("factor", c.factor), **_half(k)
    ),
}


def _half(options):
    """Add a share to prune, unless the test speaks of that."""
    return options if {"sparsity", "pattern"} & options.keys() else {"sparsity": 0.5, **options}


every_sweep = pytest.mark.parametrize("function", SWEEPS)


@every_sweep
@pytest.mark.parametrize("kind", MATRICES)
def test_weights(case, function, kind):
    spoil, error = MATRICES[kind]
    w = spoil(case.w)
    call = SWEEPS[function]
    assert_refused(case, "W", lambda: call(case, w, backend=case.backend), error)


@every_sweep
def test_weights_of_another_dtype_than_the_factor(case, function):
    w = case.w.astype(np.float32)
    assert_refused(case, "W", lambda: SWEEPS[function](case, w, backend=case.backend), TypeError)


@every_sweep
def test_weights_without_columns(case, function):
    call = SWEEPS[function]
    assert_refused(case, "W", lambda: call(case, case.w[:, :0], backend=case.backend), ValueError)


@pytest.mark.parametrize("function", ["quantize", "prune", "compress"])
@pytest.mark.parametrize("factor", [None, "factor", np.eye(N)], ids=["none", "str", "matrix"])
def test_factor(case, function, factor):
    call = SWEEPS[function]
    assert_refused(case, "factor", lambda: call(case, case.w, factor=factor), TypeError)


@pytest.mark.parametrize("function", ["round_to_nearest", "magnitude_prune"])
def test_optional_factor(case, function):
    call = SWEEPS[function]
    assert_refused(case, "factor", lambda: call(case, case.w, factor=np.eye(N)), TypeError)


GRID = [
    ("bits", 5),
    ("bits", 0),
    ("bits", -4),
    ("bits", 16),
    ("bits", 4.0),
    ("bits", "4"),
    ("bits", None),
    ("group_size", 0),
    ("group_size", -1),
    ("group_size", N + 1),
    ("group_size", 2.5),
    ("group_size", "row"),
    ("group_size", True),
    ("scale", "max"),
    ("scale", None),
    ("scale_dtype", "float8"),
    ("scale_dtype", "float64"),
    ("mse_norm", 0.0),
    ("mse_norm", -1.0),
    ("mse_norm", NAN),
    ("mse_norm", "two"),
]
PATTERN = [
    ("sparsity", -0.1),
    ("sparsity", 1.1),
    ("sparsity", NAN),
    ("sparsity", "half"),
    ("pattern", (5, 4)),
    ("pattern", (-1, 4)),
    ("pattern", (2, 0)),
    ("pattern", (2, 5)),  # 5 does not divide 12
    ("pattern", (2, 4, 8)),
    ("pattern", (2.5, 4)),
    ("pattern", "2:4"),
    ("pattern", 2),
    ("block_size", 0),
    ("block_size", -1),
    ("block_size", 2.5),
]
CROSS = [
    ("cross", np.zeros((N, N + 1))),
    ("cross", np.zeros((N + 1, N + 1))),
    ("cross", np.zeros(N)),
    ("cross", np.zeros((N, N), np.float32)),
    ("cross", np.zeros((N, N), np.int64)),
    ("cross", spoiled(np.zeros((N, N)), NAN)),
    ("cross", spoiled(np.zeros((N, N)), INF)),
    ("cross_strength", NAN),
    ("cross_strength", -0.5),
    ("cross_strength", "full"),
]
EXECUTION = [
    ("backend", "fortran"),
    ("backend", "Native"),
    ("n_threads", 0),
    ("n_threads", -1),
    ("n_threads", 1.5),
    ("n_threads", "all"),
]
OPTIONS = {
    "quantize": GRID + CROSS + EXECUTION,
    "prune": PATTERN + CROSS + EXECUTION,
    "compress": GRID + PATTERN + CROSS + EXECUTION,
    "round_to_nearest": GRID + PATTERN + EXECUTION,
    "magnitude_prune": PATTERN + EXECUTION,
}


def shown(value):
    return f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else repr(value)


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [(f, n, v) for f, options in OPTIONS.items() for n, v in options],
    ids=lambda v: v if isinstance(v, str) else shown(v),
)
def test_options(case, function, name, value):
    call = SWEEPS[function]
    options = {"backend": case.backend} | {name: value}
    if name == "mse_norm":
        options["scale"] = "mse"
    if name == "cross_strength":
        options["cross"] = np.zeros((N, N))
    assert_refused(case, name, lambda: call(case, case.w, **options))


@pytest.mark.parametrize("function", ["quantize", "compress"])
def test_options_that_exclude_each_other(case, function):
    call = SWEEPS[function]
    options = {"group_size": 4, "static_groups": True, "stale_scales": True}
    assert_refused(case, "stale_scales", lambda: call(case, case.w, **options), ValueError)


@pytest.mark.parametrize("function", ["prune", "compress", "magnitude_prune"])
def test_neither_or_both_ways_to_prune(case, function):
    call = SWEEPS[function]
    both = {"sparsity": 0.5, "pattern": (2, 4)}
    assert_refused(case, "sparsity", lambda: call(case, case.w, **both), ValueError)
    none = {"sparsity": None, "pattern": None}
    assert_refused(case, "sparsity", lambda: call(case, case.w, **none), ValueError)


def test_groups_and_patterns_that_do_not_fit(case):
    def compress(**options):
        return lambda: sweep.compress(case.w, case.factor, backend=case.backend, **options)

    assert_refused(case, "group_size", compress(group_size=6, pattern=(2, 4)), ValueError)
    # Static groups have nothing to do with the sweep.
    compress(group_size=6, pattern=(2, 4), static_groups=True)()


# ---- factorize -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MATRICES)
def test_hessian(case, kind):
    spoil, error = MATRICES[kind]
    h = spoil(case.h)
    assert_refused(case, "H", lambda: sweep.factorize(h, backend=case.backend), error)
    if isinstance(h, np.ndarray) and h.dtype != object:
        before = h.tobytes()
        with pytest.raises(error):
            sweep.factorize(h, overwrite_h=True, backend=case.backend)
        assert h.tobytes() == before  # refused before the first write


@pytest.mark.parametrize(
    "h",
    [
        np.array([[2.0, 1.0], [0.0, 2.0]]),
        np.array([[2.0, 1.0], [-1.0, 2.0]]),
        np.zeros((3, 3)),
        np.zeros((0, 0)),
        -np.eye(3),
    ],
    ids=["triangular", "antisymmetric", "zero", "empty", "negative"],
)
def test_matrices_that_are_no_hessian(case, h):
    before = h.tobytes()
    for overwrite in (False, True):
        assert_refused(
            case,
            "H",
            lambda overwrite=overwrite: sweep.factorize(
                h, overwrite_h=overwrite, backend=case.backend
            ),
        )
        assert h.tobytes() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("damping", -0.01),
        ("damping", NAN),
        ("damping", INF),
        ("damping", "small"),
        ("order", "random"),
        ("order", np.arange(N - 1)),
        ("order", np.zeros(N, np.int64)),
        ("order", np.arange(1, N + 1)),
        ("order", np.arange(N) - 1),
        ("order", np.arange(N).astype(float)),
        ("order", np.arange(N).reshape(1, N)),
        ("order", None),
        ("retries", -1),
        ("retries", 1.5),
        ("on_failure", "ignore"),
        *EXECUTION,
    ],
    ids=lambda v: v if isinstance(v, str) else shown(v),
)
def test_options_of_factorize(case, name, value):
    options = {"backend": case.backend} | {name: value}
    assert_refused(case, name, lambda: sweep.factorize(case.h, **options))


def test_overwriting_what_cannot_be_overwritten(case):
    h = case.h.copy()
    h.flags.writeable = False
    for bad in (h, np.full((N, 2 * N), 1.0)[:, ::2]):
        before = bad.tobytes()
        assert_refused(
            case,
            "H",
            lambda bad=bad: sweep.factorize(bad, overwrite_h=True, backend=case.backend),
            ValueError,
        )
        assert bad.tobytes() == before


# ---- HessianAccumulator --------------------------------------------------------------------------

BATCHES = {
    "nan": (lambda x: {"X": spoiled(x, NAN)}, "X"),
    "inf": (lambda x: {"X": spoiled(x, INF)}, "X"),
    "nan in half precision": (lambda x: {"X": spoiled(x, NAN).astype(np.float16)}, "X"),
    "overflow of the sums' type": (lambda x: {"X": spoiled(x, 1e300)}, "X"),
    "columns": (lambda x: {"X": x[:, :-1]}, "X"),
    "scalar": (lambda x: {"X": np.float64(1.0).reshape(())}, "X"),
    "integers": (lambda x: {"X": x.astype(np.int32)}, "X"),
    "unsigned 16 bit": (lambda x: {"X": np.ones(x.shape, np.uint16)}, "X"),
    "complex": (lambda x: {"X": x.astype(complex)}, "X"),
    "list": (lambda x: {"X": x.tolist()}, "X"),
    "none": (lambda x: {"X": None}, "X"),
    "weights: length": (lambda x: {"X": x, "weights": np.ones(len(x) - 1)}, "weights"),
    "weights: shape": (lambda x: {"X": x, "weights": np.ones((len(x), 1))}, "weights"),
    "weights: negative": (lambda x: {"X": x, "weights": -np.ones(len(x))}, "weights"),
    "weights: nan": (lambda x: {"X": x, "weights": np.full(len(x), NAN)}, "weights"),
    "weights: integers": (lambda x: {"X": x, "weights": np.ones(len(x), int)}, "weights"),
    "reference: shape": (lambda x: {"X": x, "reference": x[:-1]}, "reference"),
    "reference: nan": (lambda x: {"X": x, "reference": spoiled(x, NAN)}, "reference"),
    "reference: integers": (lambda x: {"X": x, "reference": x.astype(int)}, "reference"),
}


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("fresh", [False, True])
def test_batches(case, kind, fresh):
    """A bad batch is refused as a whole: the sums are as before."""
    accumulator = sweep.HessianAccumulator(N, backend=case.backend)
    if not fresh:
        accumulator.update(case.x)
        before = accumulator.value().tobytes()
    arguments, name = BATCHES[kind]
    arguments = arguments(case.x)
    assert_refused(case, name, lambda: accumulator.update(**arguments))
    assert accumulator.tokens == (0 if fresh else len(case.x))
    if not fresh:
        assert accumulator.value().tobytes() == before
    else:  # as if nothing had happened, with a reference or without
        accumulator.update(case.x, reference=case.x)


def test_reference_always_or_never(case):
    accumulator = sweep.HessianAccumulator(N, backend=case.backend)
    accumulator.update(case.x, reference=case.x)
    assert_refused(case, "reference", lambda: accumulator.update(case.x), ValueError)
    accumulator = sweep.HessianAccumulator(N, backend=case.backend)
    accumulator.update(case.x)
    late = {"X": case.x, "reference": case.x}
    assert_refused(case, "reference", lambda: accumulator.update(**late), ValueError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", -1),
        ("n", 2.5),
        ("dtype", "float16"),
        ("dtype", "int64"),
        *EXECUTION,
    ],
    ids=lambda v: v if isinstance(v, str) else shown(v),
)
def test_options_of_the_accumulator(case, name, value):
    options = {"n": N, "backend": case.backend} | {name: value}

    def build_and_use():
        n = options.pop("n")
        sweep.HessianAccumulator(n, **options).update(case.x)

    assert_refused(case, name, build_and_use)


def test_no_tokens(case):
    accumulator = sweep.HessianAccumulator(N, backend=case.backend)
    for empty in (None, case.x[:0]):
        if empty is not None:
            accumulator.update(empty)
        with pytest.raises(ValueError, match="tokens"):
            accumulator.value()
        with pytest.raises(ValueError, match="tokens"):
            accumulator.cross()
    accumulator.update(case.x, weights=np.zeros(len(case.x)))
    with pytest.raises(ValueError, match="weight"):
        accumulator.value()


def test_cross_without_reference(case):
    accumulator = sweep.HessianAccumulator(N, backend=case.backend)
    accumulator.update(case.x)
    with pytest.raises(ValueError, match="reference"):
        accumulator.cross()


def test_merge(case):
    a = sweep.HessianAccumulator(N, dtype="float64", backend=case.backend)
    a.update(case.x)
    before = a.value().tobytes()
    smaller = sweep.HessianAccumulator(N - 1, dtype="float64", backend=case.backend)
    single = sweep.HessianAccumulator(N, backend=case.backend)
    crossed = sweep.HessianAccumulator(N, dtype="float64", backend=case.backend)
    crossed.update(case.x, reference=case.x)
    for other in (smaller, single, crossed, None, a.value()):
        assert_refused(case, "other", lambda other=other: a.merge(other))
    assert a.value().tobytes() == before
    assert a.tokens == len(case.x)


# ---- packing -------------------------------------------------------------------------------------


def packable(**options):
    w = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
    return sweep.round_to_nearest(w, scale_dtype="float16", **options)


def test_pack():
    q = packable(bits=4)
    for name in ("awq", "GPTQ", None):
        with pytest.raises(ValueError, match=r"^format\b"):
            q.pack(name)
    with pytest.raises(ValueError, match=r"^bits\b"):
        packable(bits="ternary").pack("gptq_v2")
    odd = sweep.round_to_nearest(np.ones((8, 12)), bits=4)
    with pytest.raises(ValueError, match=r"^format 'gptq.*12"):
        odd.pack("gptq_v2")
    odd = sweep.round_to_nearest(np.ones((12, 8)), bits=4)
    with pytest.raises(ValueError, match=r"^format 'gptq.*12"):
        odd.pack("gptq_v2")


@pytest.mark.parametrize("format", ["gptq", "gptq_v2", "compressed-tensors"])
def test_unpack_of_truncated_tensors(format):
    q = packable(bits=4, group_size=8, symmetric=True)
    tensors = q.pack(format)
    options = {"bits": 4, "group_size": 8, "symmetric": True}
    sweep.unpack(tensors, format, **options)
    for name in tensors:
        less = {k: v for k, v in tensors.items() if k != name}
        if name != "g_idx":  # older checkpoints have none
            with pytest.raises(ValueError, match=name):
                sweep.unpack(less, format, **options)
        with pytest.raises(ValueError, match=r"^(tensors|\w+ must)"):
            sweep.unpack(tensors | {name: tensors[name][:-1]}, format, **options)
        with pytest.raises((ValueError, TypeError), match=name):
            sweep.unpack(tensors | {name: None}, format, **options)


def test_unpack_options():
    tensors = packable(bits=4, symmetric=True).pack("gptq_v2")
    options = {"bits": 4, "group_size": None, "symmetric": True}
    with pytest.raises(ValueError, match=r"^format\b"):
        sweep.unpack(tensors, "awq", **options)
    with pytest.raises(ValueError, match=r"^bits\b"):
        sweep.unpack(tensors, "gptq_v2", **options | {"bits": 5})
    with pytest.raises(ValueError, match=r"^bits\b"):
        sweep.unpack(tensors, "gptq_v2", **options | {"bits": "ternary"})
    with pytest.raises(ValueError, match=r"^group_size\b"):
        sweep.unpack(tensors, "gptq_v2", **options | {"group_size": 0})
    wild = tensors | {"g_idx": np.full(32, 7, np.int32)}
    with pytest.raises(ValueError, match="group"):
        sweep.unpack(wild, "gptq_v2", **options)


# ---- what works although it looks odd ------------------------------------------------------------


def test_read_only_arrays(case):
    for a in (case.x, case.h, case.w):
        a.flags.writeable = False
    accumulator = sweep.HessianAccumulator(N, dtype="float64", backend=case.backend)
    accumulator.update(case.x, weights=case.x[:, 0] ** 2, reference=case.x)
    factor = sweep.factorize(case.h, backend=case.backend)
    for function, call in SWEEPS.items():
        a = call(case, case.w, factor=factor, backend=case.backend)
        b = call(case, case.w.copy(), factor=factor, backend=case.backend)
        np.testing.assert_array_equal(a.loss, b.loss, err_msg=function)
    assert case.state() == case.before


def test_a_single_weight(case):
    factor = sweep.factorize(np.ones((1, 1)), backend=case.backend)
    for function in ("quantize", "round_to_nearest"):
        q = SWEEPS[function](case, np.array([[2.0]]), factor=factor, backend=case.backend)
        assert abs(q.dequantize().item() - 2.0) <= 2 * np.finfo(float).eps * 2.0
    p = sweep.prune(np.array([[2.0]]), factor, pattern=(1, 1), backend=case.backend)
    assert p.weights.item() == 2.0


def test_a_range_that_the_dtype_cannot_hold(backend):
    w = np.array([[3e38, -3e38]], np.float32)
    factor = sweep.factorize(np.eye(2, dtype=np.float32), backend=backend)
    with pytest.raises(ValueError, match=r"^W must have ranges that float32 can hold"):
        sweep.quantize(w, factor, backend=backend)
