"""Arrays at the boundary: the caller's type in and out, no copies, no changes."""

import numpy as np
import pytest

from quadric import arrays, sweep


class Dlpack:
    """An array of a library that knows nothing but DLPack."""

    def __init__(self, a):
        self._a = a
        self.dtype = a.dtype

    def __dlpack__(self, **options):
        return self._a.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._a.__dlpack_device__()


def test_numpy_is_not_copied():
    a = np.zeros((3, 4))[:, ::2]
    view = arrays.to_numpy(a, "a")
    assert np.shares_memory(view, a)
    assert view.strides == a.strides
    assert arrays.like(a)(view) is view


def test_dlpack_is_not_copied():
    a = np.arange(6.0).reshape(2, 3)
    assert np.shares_memory(arrays.to_numpy(Dlpack(a), "a"), a)


@pytest.mark.parametrize("thing", [[[1.0]], 1.0, "W", None, object()], ids=type)
def test_what_is_no_array(thing):
    with pytest.raises(TypeError, match=r"^W must be"):
        arrays.to_numpy(thing, "W")


def test_memory_of_another_device():
    class OnGpu(Dlpack):
        def __dlpack_device__(self):
            return (2, 0)  # kDLCUDA

    with pytest.raises(ValueError, match=r"^W must be in CPU memory"):
        arrays.to_numpy(OnGpu(np.eye(2)), "W")


def test_unaligned_memory(backend):
    """A field of a packed record may start at any byte."""
    record = np.zeros(6, dtype=[("tag", np.uint8), ("row", np.float64, (4,))])
    w = record["row"]
    assert not w.flags.aligned
    w[...] = np.random.default_rng(0).standard_normal((6, 4))
    factor = sweep.factorize(np.eye(4), backend=backend)
    a = sweep.quantize(w, factor, backend=backend)
    b = sweep.quantize(w.copy(), factor, backend=backend)
    np.testing.assert_array_equal(a.codes, b.codes)


torch = pytest.importorskip("torch")


def test_torch_shares_memory():
    t = torch.arange(6.0).reshape(2, 3).T
    view = arrays.to_numpy(t, "t")
    assert view.shape == (3, 2)
    view[0, 1] = 9.0
    assert t[0, 1] == 9.0
    back = arrays.like(t)(view)
    assert isinstance(back, torch.Tensor)
    assert back.data_ptr() == t.data_ptr()


def test_torch_bfloat16_comes_as_bits():
    t = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    assert arrays.is_bfloat16(t)
    assert arrays.to_numpy(t, "t", bfloat16=True).tolist() == [0x3F80, 0xC000]
    with pytest.raises(TypeError, match=r"^t cannot be bfloat16"):
        arrays.to_numpy(t, "t")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_torch_in_torch_out(backend, dtype, requires_grad):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 16, generator=generator, dtype=dtype)
    w = torch.randn(6, 16, generator=generator, dtype=dtype, requires_grad=requires_grad)
    kept = w.detach().clone()
    accumulator = sweep.HessianAccumulator(16, dtype=str(dtype)[6:], backend=backend)
    accumulator.update(x.reshape(5, 10, 16))
    h = accumulator.value()
    assert isinstance(h, torch.Tensor)
    assert h.dtype == dtype
    factor = sweep.factorize(h, backend=backend)
    q = sweep.quantize(w, factor, group_size=8, backend=backend)
    p = sweep.prune(w, factor, pattern=(2, 4), backend=backend)
    nearest = sweep.round_to_nearest(w, backend=backend)
    for field in (q.codes, q.scales, q.zeros, q.group_index, q.loss, q.dequantize(), p.weights):
        assert isinstance(field, torch.Tensor)
    assert q.codes.dtype == nearest.codes.dtype == torch.uint8
    assert p.mask.dtype == torch.bool
    assert q.dequantize().dtype == p.weights.dtype == dtype
    # The same numbers as from NumPy arrays.
    reference = sweep.quantize(
        kept.numpy(), sweep.factorize(h.numpy(), backend=backend), group_size=8, backend=backend
    )
    np.testing.assert_array_equal(q.codes.numpy(), reference.codes)
    np.testing.assert_array_equal(q.dequantize().numpy(), reference.dequantize())
    assert torch.equal(w.detach(), kept)


def test_torch_views(backend):
    """Transposed, strided and expanded tensors, without a copy by the caller."""
    base = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    factor = sweep.factorize(np.eye(16, dtype=np.float32), backend=backend)
    for view in (base.T, base[::2], base[:1].expand(5, 16)):
        a = sweep.quantize(view, factor, backend=backend)
        b = sweep.quantize(view.contiguous().numpy(), factor, backend=backend)
        np.testing.assert_array_equal(a.codes.numpy(), b.codes)
