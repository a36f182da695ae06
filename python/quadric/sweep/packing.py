"""Quantized matrices in the tensors that inference engines load.

Codes form a little-endian bit stream along one axis, cut into int32 words: 16, 8 or 4 values per
word for 2, 4 or 8 bits, and 32 values in three words for 3 bits.

``gptq``, ``gptq_v2`` (transposed: in x out)

=========  =======  ====================  =======================================
qweight    int32    (n * bits / 32, m)    codes, packed along the inputs
qzeros     int32    (G, m * bits / 32)    zero points, packed along the outputs
scales     float16  (G, m)
g_idx      int32    (n,)                  group of each input
=========  =======  ====================  =======================================

``gptq`` stores zero points minus one, as the first version of the format did by accident.

``compressed-tensors`` ("pack-quantized")

=================  =======  ========================  ====================================
weight_packed      int32    (m, ceil(n * bits / 32))  codes, packed along the inputs
weight_scale       float16  (m, G)
weight_zero_point  int32    (ceil(m * bits / 32), G)  packed along the outputs; asymmetric
weight_shape       int64    (2,)                      m, n
weight_g_idx       int32    (n,)                      only where groups are not consecutive
=================  =======  ========================  ====================================
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quadric import arrays, checks
from quadric.arrays import Array
from quadric.sweep.results import QuantizedMatrix

FORMATS = ("gptq", "gptq_v2", "compressed-tensors")


def pack(q: QuantizedMatrix, format: str, *, scale_dtype: str = "float16") -> dict[str, Array]:
    """Return the tensors of `format`; see :meth:`QuantizedMatrix.pack`."""
    checks.choice(format, "format", FORMATS)
    checks.choice(scale_dtype, "scale_dtype", ("float16", "float32"))
    bits = _check_bits(q.bits)
    codes = arrays.to_numpy(q.codes, "codes")
    zeros = arrays.to_numpy(q.zeros, "zeros")
    index = arrays.to_numpy(q.group_index, "group_index")
    with np.errstate(over="ignore"):
        scales = arrays.to_numpy(q.scales, "scales").astype(scale_dtype)
    if not np.isfinite(scales).all():
        raise ValueError(f"scales must be within the range of {scale_dtype}")
    tensors = (
        _pack_compressed(codes, scales, zeros, index, bits, q)
        if format == "compressed-tensors"
        else _pack_gptq(codes, scales, zeros, index, bits, legacy=format == "gptq")
    )
    like = arrays.like(q.codes)
    return {name: like(a) for name, a in tensors.items()}


def unpack(
    tensors: Mapping[str, Array],
    format: str,
    *,
    bits: int,
    group_size: int | str | None,
    symmetric: bool,
    dtype: str = "float32",
) -> QuantizedMatrix:
    """Read the tensors of a packed layer.

    Parameters
    ----------
    tensors : mapping of str to array
        Names without the prefix of the layer, as :meth:`QuantizedMatrix.pack` returns them.
    format : {"gptq", "gptq_v2", "compressed-tensors"}
        See :mod:`quadric.sweep.packing`.
    bits : {2, 3, 4, 8}
        Bits per code.
    group_size : int or None
        Columns per group; None (also -1, as checkpoints write it) is one group per row.
    symmetric : bool
        Whether 0 is the middle of the grid. "compressed-tensors" then stores no zero points.
    dtype : {"float32", "float64"}, optional
        Type of the scales in the result, which is the one that :meth:`~QuantizedMatrix.dequantize`
        computes in.

    Returns
    -------
    QuantizedMatrix
        Without loss and mask.

    Raises
    ------
    ValueError
        If a tensor is missing or does not fit the others.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> W = np.random.default_rng(0).standard_normal((8, 16))
    >>> q = qd.sweep.round_to_nearest(W, bits=4, symmetric=True, scale_dtype="float16")
    >>> packed = q.pack("compressed-tensors")
    >>> back = qd.sweep.unpack(
    ...     packed, "compressed-tensors", bits=4, group_size=None, symmetric=True, dtype="float64"
    ... )
    >>> np.array_equal(back.dequantize(), q.dequantize())
    True
    """
    checks.choice(format, "format", FORMATS)
    checks.choice(dtype, "dtype", checks.FLOATS)
    bits = _check_bits(bits)
    if group_size in (-1, "tensor"):
        group_size = None
    if group_size is not None:
        group_size = checks.integer(group_size, "group_size", low=1)
    read = _unpack_compressed if format == "compressed-tensors" else _unpack_gptq
    codes, scales, zeros, index = read(tensors, bits, group_size, symmetric, format)
    if index.size and not 0 <= index.min() <= index.max() < scales.shape[1]:
        raise ValueError(
            f"tensors must have group indices below {scales.shape[1]}, got {index.max()}"
        )
    like = arrays.like(next(iter(tensors.values())))
    return QuantizedMatrix(
        codes=like(codes),
        scales=like(scales.astype(dtype)),
        zeros=like(zeros),
        group_index=like(index.astype(np.int32)),
        bits=bits,
        group_size=group_size,
        symmetric=bool(symmetric),
    )


def _check_bits(bits: Any) -> int:
    if isinstance(bits, str):
        raise ValueError(f"bits must be 2, 3, 4 or 8 in a packed format, got {bits!r}")
    return checks.choice(int(bits), "bits", (2, 3, 4, 8))


# Formats


def _pack_gptq(
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    index: np.ndarray,
    bits: int,
    legacy: bool,
) -> dict[str, np.ndarray]:
    m, n = codes.shape
    for size, what in ((n, "columns"), (m, "rows")):
        if size * bits % 32:
            raise ValueError(
                f"format 'gptq' needs a multiple of {_per_words(bits)} {what} at {bits} bits, "
                f"got {size}; 'compressed-tensors' takes any"
            )
    if legacy:
        if zeros.size and zeros.min() == 0:
            raise ValueError(
                "format 'gptq' stores zero points minus one and cannot hold 0, which this matrix "
                "has; use 'gptq_v2', or quantize with symmetric=True"
            )
        zeros = zeros - np.uint8(1)
    return {
        "qweight": np.ascontiguousarray(_pack_rows(codes, bits).T),
        "qzeros": _pack_rows(zeros.T, bits),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": index.astype(np.int32),
    }


def _unpack_gptq(
    tensors: Mapping[str, Array],
    bits: int,
    group_size: int | None,
    symmetric: bool,
    format: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    qweight = _tensor(tensors, "qweight", 2)
    m, n = qweight.shape[1], qweight.shape[0] * 32 // bits
    scales = _tensor(tensors, "scales", 2).T
    _check_shape("scales", scales.T, (scales.shape[1], m))
    qzeros = _tensor(tensors, "qzeros", 2)
    _check_shape("qzeros", qzeros, (scales.shape[1], _words(m, bits)))
    zeros = np.ascontiguousarray(_unpack_rows(qzeros, bits, m).T)
    if format == "gptq":
        zeros += np.uint8(1)
    index = _group_index(tensors, "g_idx", n, group_size)
    return _unpack_rows(qweight.T, bits, n), np.ascontiguousarray(scales), zeros, index


def _pack_compressed(
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    index: np.ndarray,
    bits: int,
    q: QuantizedMatrix,
) -> dict[str, np.ndarray]:
    m, n = codes.shape
    groups = scales.shape[1]
    if n % groups:
        raise ValueError(
            f"format 'compressed-tensors' needs groups of equal size, got group_size="
            f"{q.group_size} for {n} columns"
        )
    tensors = {"weight_packed": _pack_rows(codes, bits), "weight_scale": scales}
    if not q.symmetric:
        tensors["weight_zero_point"] = np.ascontiguousarray(_pack_rows(zeros.T, bits).T)
    tensors["weight_shape"] = np.array([m, n], np.int64)
    if not np.array_equal(index, _consecutive(n, n // groups)):
        tensors["weight_g_idx"] = index.astype(np.int32)
    return tensors


def _unpack_compressed(
    tensors: Mapping[str, Array],
    bits: int,
    group_size: int | None,
    symmetric: bool,
    format: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    shape = _tensor(tensors, "weight_shape", 1)
    _check_shape("weight_shape", shape, (2,))
    m, n = (int(size) for size in shape)
    packed = _tensor(tensors, "weight_packed", 2)
    _check_shape("weight_packed", packed, (m, _words(n, bits)))
    scales = _tensor(tensors, "weight_scale", 2)
    groups = scales.shape[1]
    _check_shape("weight_scale", scales, (m, groups))
    if symmetric:
        zeros = np.full((m, groups), 2 ** (bits - 1), np.uint8)
    else:
        packed_zeros = _tensor(tensors, "weight_zero_point", 2)
        _check_shape("weight_zero_point", packed_zeros, (_words(m, bits), groups))
        zeros = np.ascontiguousarray(_unpack_rows(packed_zeros.T, bits, m).T)
    index = _group_index(tensors, "weight_g_idx", n, group_size)
    return _unpack_rows(packed, bits, n), scales, zeros, index


def _tensor(tensors: Mapping[str, Array], name: str, ndim: int) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"tensors must hold {name!r}, got {sorted(tensors)}")
    a = arrays.to_numpy(tensors[name], name, bfloat16=True)
    if a.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {a.shape}")
    if arrays.is_bfloat16(tensors[name]):
        return (a.astype(np.uint32) << 16).view(np.float32)
    return a


def _check_shape(name: str, a: np.ndarray, shape: tuple[int, ...]) -> None:
    if a.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {a.shape}")


def _consecutive(n: int, width: int | None) -> np.ndarray:
    return np.arange(n, dtype=np.int32) // (width or max(n, 1))


def _group_index(
    tensors: Mapping[str, Array], name: str, n: int, group_size: int | None
) -> np.ndarray:
    if name not in tensors:
        return _consecutive(n, group_size)
    index = _tensor(tensors, name, 1)
    _check_shape(name, index, (n,))
    return index


# Bit streams


def _words(n: int, bits: int) -> int:
    return -(-n * bits // 32)


def _per_words(bits: int) -> int:
    return 32 if bits == 3 else 32 // bits


def _pack_rows(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack each row of uint8 `values` into int32 words, the last one filled up with zeros."""
    rows, n = values.shape
    out = np.zeros((rows, 4 * _words(n, bits)), np.uint8)
    if bits == 8:
        out[:, :n] = values
        return out.view("<i4")
    # Eight values of b bits make b bytes, whatever b.
    padded = -(-n // 8) * 8
    if padded > n:
        values = np.pad(values, ((0, 0), (0, padded - n)))
    octets = values.reshape(rows, padded // 8, 8)
    stream = np.zeros((rows, padded // 8), "<u4")
    for i in range(8):
        stream |= octets[:, :, i].astype(np.uint32) << np.uint32(bits * i)
    used = stream.view(np.uint8).reshape(rows, padded // 8, 4)[:, :, :bits].reshape(rows, -1)
    width = min(used.shape[1], out.shape[1])
    out[:, :width] = used[:, :width]
    return out.view("<i4")


def _unpack_rows(words: np.ndarray, bits: int, n: int) -> np.ndarray:
    """Return the first `n` values of each row of int32 `words`."""
    rows = words.shape[0]
    octets = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    if bits == 8:
        return octets[:, :n].copy()
    groups = -(-n // 8)
    stream = np.zeros((rows, groups, 4), np.uint8)
    filled = np.zeros((rows, groups * bits), np.uint8)
    width = min(filled.shape[1], octets.shape[1])
    filled[:, :width] = octets[:, :width]
    stream[:, :, :bits] = filled.reshape(rows, groups, bits)
    numbers = stream.view("<u4")[:, :, 0]
    values = np.empty((rows, groups, 8), np.uint8)
    for i in range(8):
        values[:, :, i] = (numbers >> np.uint32(bits * i)) & np.uint32(2**bits - 1)
    return np.ascontiguousarray(values.reshape(rows, -1)[:, :n])
