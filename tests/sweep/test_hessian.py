"""HessianAccumulator: X^T X from batches."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric import sweep
from tests import strategies as draws

ml_dtypes = pytest.importorskip("ml_dtypes")
SIXTEEN_BITS = (np.float16, ml_dtypes.bfloat16)


def exact(x, weights=None, left=None):
    """Return X^T diag(w) X / sum(w), and the same of absolute values, in float64."""
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    left = x if left is None else left.reshape(x.shape).astype(np.float64)
    w = np.ones(len(x)) if weights is None else weights.reshape(-1).astype(np.float64)
    total = w.sum()
    return (left.T * w) @ x / total, (np.abs(left).T * w) @ np.abs(x) / total


def bound(tokens, dtype, absolute):
    """Sums of T products in any order: (T + 8) eps |X|^T |X| / T, with the weight and 1 / T."""
    tiny = float(np.finfo(dtype).tiny)
    return (tokens + 8) * float(np.finfo(dtype).eps) * absolute + tokens * tiny


@st.composite
def inputs(draw, types=draws.DTYPES):
    tokens, n = draw(draws.sizes(150)), draw(draws.sizes(100))
    dtype = np.dtype(draw(st.sampled_from(types)))
    scale = 10.0 ** draw(st.integers(-3, 2))
    rng = np.random.default_rng(draw(draws.seeds))
    return (scale * rng.standard_normal((tokens, n))).astype(dtype), rng


@given(drawn=inputs(), layout=draws.layouts, batches=st.integers(1, 5), weighted=st.booleans())
def test_value_within_the_bound(backend, drawn, layout, batches, weighted):
    x, rng = drawn
    weights = rng.uniform(0, 3, len(x)).astype(x.dtype) if weighted else None
    shown = draws.relayout(x, layout)
    before = draws.whole(shown).tobytes()
    accumulator = sweep.HessianAccumulator(x.shape[1], dtype=x.dtype.name, backend=backend)
    edges = np.sort(rng.integers(0, len(x) + 1, batches - 1))
    for start, stop in zip([0, *edges], [*edges, len(x)], strict=True):  # some may be empty
        part = None if weights is None else weights[start:stop]
        accumulator.update(shown[start:stop], weights=part)
    h = accumulator.value()
    assert accumulator.tokens == len(x)
    assert h.dtype == x.dtype
    np.testing.assert_array_equal(h, h.T)
    expected, absolute = exact(x, weights)
    allowed = bound(len(x), x.dtype, absolute)
    error = np.abs(h - expected)
    assert (error <= allowed).all()
    target(float((error / allowed).max()))
    assert draws.whole(shown).tobytes() == before


@given(
    tokens=draws.sizes(64),
    n=draws.sizes(100),
    dtype=draws.dtypes,
    layout=draws.layouts,
    seed=draws.seeds,
)
def test_integers_are_exact(backend, tokens, n, dtype, layout, seed):
    """Sums of small integers have no rounding, in any order and on every instruction set.

    Nor have those with weights of which a kernel may take the root. The mean has two roundings.
    """
    rng = np.random.default_rng(seed)
    x = rng.integers(-8, 9, (tokens, n)).astype(dtype)
    weights = 4.0 ** rng.integers(-1, 3, tokens)
    accumulator = sweep.HessianAccumulator(n, dtype=np.dtype(dtype).name, backend=backend)
    accumulator.update(draws.relayout(x, layout), weights=weights.astype(dtype))
    expected = exact(x, weights)[0]
    error = np.abs(accumulator.value() - expected)
    assert (error <= 2 * np.finfo(dtype).eps * np.abs(expected)).all()


@given(drawn=inputs(), data=st.data())
def test_cross_within_the_bound(backend, drawn, data):
    x, rng = drawn
    reference = x + rng.standard_normal(x.shape).astype(x.dtype) * np.abs(x).max()
    weights = rng.uniform(0.1, 3, len(x)).astype(x.dtype) if data.draw(st.booleans()) else None
    accumulator = sweep.HessianAccumulator(x.shape[1], dtype=x.dtype.name, backend=backend)
    middle = data.draw(st.integers(0, len(x)))
    shown = draws.relayout(x, data.draw(draws.layouts))
    other = draws.relayout(reference, data.draw(draws.layouts))
    before = draws.whole(shown).tobytes(), draws.whole(other).tobytes()
    for at in (slice(0, middle), slice(middle, None)):
        part = None if weights is None else weights[at]
        accumulator.update(shown[at], weights=part, reference=other[at])
    difference = reference.astype(np.float64) - x
    expected, absolute = exact(x, weights, difference)
    assert (np.abs(accumulator.cross() - expected) <= bound(len(x), x.dtype, absolute)).all()
    expected, absolute = exact(x, weights)
    assert (np.abs(accumulator.value() - expected) <= bound(len(x), x.dtype, absolute)).all()
    assert (draws.whole(shown).tobytes(), draws.whole(other).tobytes()) == before


@given(drawn=inputs(types=SIXTEEN_BITS))
def test_sixteen_bits_lose_nothing(backend, drawn):
    """Their values, and the products of two, are exact in float32."""
    x, _ = drawn
    n = x.shape[1]
    short, wide = (sweep.HessianAccumulator(n, backend=backend) for _ in range(2))
    before = x.tobytes()
    short.update(x)
    wide.update(x.astype(np.float32))
    np.testing.assert_array_equal(short.value(), wide.value())
    expected, absolute = exact(x)
    assert (np.abs(short.value() - expected) <= bound(len(x), np.float32, absolute)).all()
    assert x.tobytes() == before


def test_torch_bfloat16(backend):
    torch = pytest.importorskip("torch")
    x = torch.randn(40, 17, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    accumulator = sweep.HessianAccumulator(17, backend=backend)
    accumulator.update(x)
    h = accumulator.value()
    assert isinstance(h, torch.Tensor)
    assert h.dtype == torch.float32
    expected, absolute = exact(x.float().numpy())
    assert (np.abs(h.numpy() - expected) <= bound(40, np.float32, absolute)).all()


@given(drawn=inputs(), split=st.integers(0, 150))
def test_merge(backend, drawn, split):
    x, _ = drawn
    name = x.dtype.name
    a, b = (sweep.HessianAccumulator(x.shape[1], dtype=name, backend=backend) for _ in range(2))
    a.update(x[:split])
    b.update(x[split:])
    before = b.value().tobytes() if b.tokens else b""
    a.merge(b)
    assert a.tokens == len(x)
    expected, absolute = exact(x)
    assert (np.abs(a.value() - expected) <= bound(len(x), x.dtype, absolute)).all()
    assert (b.value().tobytes() if b.tokens else b"") == before


def test_merge_keeps_weights_and_cross(backend):
    rng = np.random.default_rng(0)
    x, reference = rng.integers(-4, 5, (2, 8, 5)).astype(float)
    weights = np.array([1.0, 1, 4, 4, 1, 1, 4, 0])  # 16 in all
    parts = [sweep.HessianAccumulator(5, dtype="float64", backend=backend) for _ in range(2)]
    for part, at in zip(parts, (slice(0, 3), slice(3, 8)), strict=True):
        part.update(x[at], weights=weights[at], reference=reference[at])
    parts[0].merge(parts[1])
    np.testing.assert_array_equal(parts[0].value(), exact(x, weights)[0])
    np.testing.assert_array_equal(parts[0].cross(), exact(x, weights, reference - x)[0])


@pytest.mark.parametrize("lead", [(), (1,), (0,), (24,), (2, 12), (2, 3, 4), (1, 0, 3)])
def test_any_leading_shape(backend, lead):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((*lead, 7)).astype(np.float32)
    flat, shaped = (sweep.HessianAccumulator(7, backend=backend) for _ in range(2))
    more = rng.standard_normal((3, 7)).astype(np.float32)
    for accumulator, batch in ((flat, x.reshape(-1, 7)), (shaped, x)):
        accumulator.update(batch, weights=np.ones(batch.shape[:-1], np.float32))
        accumulator.update(more)
    assert shaped.tokens == x.size // 7 + 3
    np.testing.assert_array_equal(flat.value(), shaped.value())


def test_no_update_changes_a_value_given_out(backend):
    accumulator = sweep.HessianAccumulator(3, backend=backend)
    accumulator.update(np.eye(3, dtype=np.float32))
    first = accumulator.value()
    kept = first.copy()
    accumulator.update(np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("with_cross", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_save_and_load(backend, tmp_path, dtype, with_cross):
    rng = np.random.default_rng(2)
    x, reference = rng.standard_normal((2, 30, 9)).astype(dtype)
    a = sweep.HessianAccumulator(9, dtype=dtype, backend=backend)
    path = tmp_path / "state.npz"
    a.update(x[:20], **({"reference": reference[:20]} if with_cross else {}))
    a.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]
    b = sweep.HessianAccumulator.load(str(path), backend=backend)
    assert (b.n, b.tokens, b.dtype) == (9, 20, np.dtype(dtype))
    for accumulator in (a, b):  # go on where the file stopped
        accumulator.update(x[20:], **({"reference": reference[20:]} if with_cross else {}))
    np.testing.assert_array_equal(a.value(), b.value())
    if with_cross:
        np.testing.assert_array_equal(a.cross(), b.cross())


def test_a_failing_save_leaves_the_old_file(backend, tmp_path, monkeypatch):
    a = sweep.HessianAccumulator(2, backend=backend)
    a.update(np.ones((1, 2), np.float32))
    path = tmp_path / "state.npz"
    a.save(path)
    before = path.read_bytes()

    def no_space(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", no_space)
    monkeypatch.setattr(np, "savez_compressed", no_space)
    with pytest.raises(OSError, match="No space"):
        a.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_damaged_file_is_refused(backend, tmp_path, keep):
    a = sweep.HessianAccumulator(2, backend=backend)
    a.update(np.ones((1, 2), np.float32))
    path = tmp_path / "state.npz"
    a.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="path"):
        sweep.HessianAccumulator.load(path)


def test_a_folder_that_cannot_be_written(backend, tmp_path):
    a = sweep.HessianAccumulator(2, backend=backend)
    a.update(np.ones((1, 2), np.float32))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        a.save(tmp_path / "file" / "state.npz")
    with pytest.raises(FileNotFoundError):
        a.save(tmp_path / "missing" / "state.npz")
    with pytest.raises(FileNotFoundError):
        sweep.HessianAccumulator.load(tmp_path / "missing.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_stay_within_the_bound(backend, dtype):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((500, 130)).astype(dtype)
    expected, absolute = exact(x)
    for threads in (1, 2):
        a = sweep.HessianAccumulator(130, dtype=dtype, backend=backend, n_threads=threads)
        a.update(x)
        assert (np.abs(a.value() - expected) <= bound(500, dtype, absolute)).all()
