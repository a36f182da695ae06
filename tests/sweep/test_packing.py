"""pack and unpack, against an unpacker written from the description of the formats alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadric import sweep
from tests import strategies as draws

PER_PERIOD = {2: 16, 3: 32, 4: 8, 8: 4}  # values that fill whole words


def bits_of(words):
    """Return the bits of int32 words, least significant first, as a list."""
    return [(int(word) & 0xFFFFFFFF) >> i & 1 for word in words for i in range(32)]


def values_of(words, bits, count):
    """Return the first ``count`` values of a little-endian stream of ``bits`` bits each."""
    stream = bits_of(words)
    return [sum(stream[k * bits + i] << i for i in range(bits)) for k in range(count)]


def read_gptq(tensors, bits, zero_offset):
    """Return the dense matrix [out, in] of the GPTQ tensors, by plain loops."""
    qweight, qzeros = tensors["qweight"], tensors["qzeros"]
    scales, g_idx = tensors["scales"], tensors["g_idx"]
    inputs, outputs = len(g_idx), qweight.shape[1]
    codes = [values_of(qweight[:, o], bits, inputs) for o in range(outputs)]
    zeros = [values_of(row, bits, outputs) for row in qzeros]
    dense = np.empty((outputs, inputs))
    for o in range(outputs):
        for i in range(inputs):
            g = g_idx[i]
            zero = zeros[g][o] + zero_offset
            dense[o, i] = float(scales[g, o]) * (codes[o][i] - zero)
    return dense, np.array(codes), np.array(zeros).T + zero_offset


def read_compressed(tensors, bits, group_size):
    """Return the dense matrix [out, in] of the compressed-tensors tensors, by plain loops."""
    outputs, inputs = tensors["weight_shape"].tolist()
    scales = tensors["weight_scale"]
    dense = np.empty((outputs, inputs))
    half = 2 ** (bits - 1)
    for o in range(outputs):
        signed = [v - half for v in values_of(tensors["weight_packed"][o], bits, inputs)]
        for i in range(inputs):
            g = int(tensors["weight_g_idx"][i]) if "weight_g_idx" in tensors else i // group_size
            zero = 0
            if "weight_zero_point" in tensors:
                column = tensors["weight_zero_point"][:, g]
                zero = values_of(column, bits, outputs)[o] - half
            dense[o, i] = float(scales[o, g]) * (signed[i] - zero)
    return dense


@st.composite
def packable(draw, *, whole_groups=False):
    """Draw a quantized matrix whose sides fill whole words, with scales that float16 holds."""
    bits = draw(st.sampled_from((2, 3, 4, 8)))
    step = PER_PERIOD[bits]
    m, n = (step * draw(st.integers(1, 2)) for _ in range(2))
    sizes = [s for s in range(1, n + 1) if n % s == 0 or not whole_groups]
    group_size = draw(st.none() | st.sampled_from(sizes))
    order = draw(st.sampled_from(("natural", "activation")))
    rng = np.random.default_rng(draw(draws.seeds))
    dtype = draw(draws.dtypes)
    h = np.cov(rng.standard_normal((n, 2 * n))).astype(dtype)
    return sweep.quantize(
        rng.standard_normal((m, n)).astype(dtype),
        sweep.factorize(h, order=order, damping=0.1),
        bits=bits,
        group_size=group_size,
        symmetric=draw(st.booleans()),
        scale_dtype="float16",
    )


def assert_equal(a, b):
    for name in ("codes", "zeros", "group_index"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, err_msg=name)
    np.testing.assert_array_equal(a.scales, b.scales)
    np.testing.assert_array_equal(a.dequantize(), b.dequantize())


@given(q=packable(), version=st.sampled_from(("gptq", "gptq_v2")))
def test_gptq(q, version):
    if version == "gptq" and q.zeros.min() == 0:
        with pytest.raises(ValueError, match="gptq_v2"):  # which can hold it
            q.pack(version)
        return
    t = q.pack(version)
    m, n = q.shape
    groups = q.scales.shape[1]
    assert {k: (v.dtype.name, v.shape) for k, v in t.items()} == {
        "qweight": ("int32", (n * q.bits // 32, m)),
        "qzeros": ("int32", (groups, m * q.bits // 32)),
        "scales": ("float16", (groups, m)),
        "g_idx": ("int32", (n,)),
    }
    assert all(v.flags.c_contiguous for v in t.values())
    dense, codes, zeros = read_gptq(t, q.bits, 1 if version == "gptq" else 0)
    np.testing.assert_array_equal(codes, q.codes)
    np.testing.assert_array_equal(zeros, q.zeros)
    np.testing.assert_array_equal(t["g_idx"], q.group_index)
    # scale * (code - zero) in float64 of a float16 scale is exact, and float32 rounds nothing.
    np.testing.assert_array_equal(dense, q.dequantize())
    back = sweep.unpack(
        t,
        version,
        bits=q.bits,
        group_size=q.group_size,
        symmetric=q.symmetric,
        dtype=q.scales.dtype.name,
    )
    assert_equal(back, q)
    assert (back.bits, back.group_size, back.symmetric) == (q.bits, q.group_size, q.symmetric)


@given(q=packable(whole_groups=True))
def test_compressed_tensors(q):
    t = q.pack("compressed-tensors")
    m, n = q.shape
    groups = q.scales.shape[1]
    expected = {
        "weight_packed": ("int32", (m, n * q.bits // 32)),
        "weight_scale": ("float16", (m, groups)),
        "weight_shape": ("int64", (2,)),
    }
    if not q.symmetric:
        expected["weight_zero_point"] = ("int32", (m * q.bits // 32, groups))
    shapes = {k: (v.dtype.name, v.shape) for k, v in t.items() if k != "weight_g_idx"}
    assert shapes == expected
    consecutive = np.arange(n) // (q.group_size or n)
    assert ("weight_g_idx" in t) == (not np.array_equal(q.group_index, consecutive))
    np.testing.assert_array_equal(read_compressed(t, q.bits, q.group_size or n), q.dequantize())
    back = sweep.unpack(
        t,
        "compressed-tensors",
        bits=q.bits,
        group_size=q.group_size,
        symmetric=q.symmetric,
        dtype=q.scales.dtype.name,
    )
    assert_equal(back, q)


@pytest.mark.parametrize(
    ("bits", "v1", "v2"),
    [(2, 0x55555555, 0xAAAAAAAA), (4, 0x77777777, 0x88888888), (8, 0x7F7F7F7F, 0x80808080)],
)
def test_symmetric_zero_points_have_the_known_words(bits, v1, v2):
    w = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    q = sweep.round_to_nearest(w, bits=bits, symmetric=True, group_size=16)
    for version, word in (("gptq", v1), ("gptq_v2", v2)):
        words = q.pack(version)["qzeros"].view(np.uint32)
        assert (words == word).all()


def test_three_bits_cross_the_words():
    """32 values in 3 words: value 10 has its bits 30, 31 in word 0 and one in word 1."""
    w = np.zeros((32, 32), np.float32)
    w[:, 0] = 7.0
    w[:, 10] = 5.0  # 0b101
    w[:, 21] = 6.0  # 0b110: bits 63, 64, 65
    q = sweep.round_to_nearest(w, bits=3)
    words = q.pack("gptq_v2")["qweight"].view(np.uint32)
    assert words[:, 0].tolist() == [0b111 | 0b01 << 30, 0b1, 0b11]


def test_a_known_word():
    w = np.array([[0, 1, 2, 3, 4, 5, 6, 15]] * 8, np.float32)
    q = sweep.round_to_nearest(w, bits=4)
    assert q.pack("gptq_v2")["qweight"].view(np.uint32).tolist() == [[0xF6543210] * 8]
    assert q.pack("compressed-tensors")["weight_packed"].view(np.uint32).tolist() == (
        [[0xF6543210]] * 8
    )


def test_scales_beyond_float16():
    w = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    q = sweep.round_to_nearest(w, bits=4)
    single = q.pack("gptq_v2", scale_dtype="float32")
    np.testing.assert_array_equal(single["scales"].T, q.scales)
    half = q.pack("gptq_v2")
    np.testing.assert_array_equal(half["scales"].T, q.scales.astype(np.float16))
    large = sweep.round_to_nearest(1e7 * w, bits=4)
    with pytest.raises(ValueError, match=r"^scales"):
        large.pack("gptq_v2")


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    w = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    q = sweep.round_to_nearest(w, bits=4, scale_dtype="float16")
    packed = q.pack("gptq_v2")
    assert all(isinstance(a, torch.Tensor) for a in packed.values())
    back = sweep.unpack(packed, "gptq_v2", bits=4, group_size=None, symmetric=False)
    assert torch.equal(back.codes, q.codes)
    assert torch.equal(back.dequantize(), q.dequantize())


@given(q=packable(), data=st.data())
def test_inputs_untouched(q, data):
    fields = ("codes", "scales", "zeros", "group_index")
    before = [getattr(q, name).tobytes() for name in fields]
    t = q.pack("gptq_v2")
    packed = {k: v.tobytes() for k, v in t.items()}
    sweep.unpack(t, "gptq_v2", bits=q.bits, group_size=q.group_size, symmetric=q.symmetric)
    assert [getattr(q, name).tobytes() for name in fields] == before
    assert {k: v.tobytes() for k, v in t.items()} == packed
