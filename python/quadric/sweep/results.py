"""What the sweeps return."""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from quadric import arrays, device
from quadric.arrays import Array


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedMatrix:
    """A matrix on a grid: ``scales * (codes - zeros)``, each group of weights with its own scale.

    All arrays are in the order of the original columns.

    Attributes
    ----------
    codes : array of uint8, shape (m, n)
        Level of each weight.
    scales : array, shape (m, G)
        Step of each group, in the dtype of the weights.
    zeros : array of uint8, shape (m, G)
        Level that stands for 0.
    group_index : array of int32, shape (n,)
        Group of each column.
    bits : int or "ternary"
        Bits per code.
    group_size : int, "tensor" or None
        As it was asked for; None is one group per row.
    symmetric : bool
        Whether 0 is the middle of the grid.
    loss : array of float64, shape (m,), or None
        ``tr(D H D^T)`` per row, damping included, where D is what was changed.
    mask : array of bool, shape (m, n), or None
        True where a weight was kept, if weights were pruned as well.
    """

    codes: Array
    scales: Array
    zeros: Array
    group_index: Array
    bits: int | str
    group_size: int | str | None
    symmetric: bool
    loss: Array | None = None
    mask: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        m, n = self.codes.shape
        return int(m), int(n)

    @property
    def sparsity(self) -> float:
        """Share of the weights that were pruned."""
        return 0.0 if self.mask is None else _pruned_share(self.mask)

    def dequantize(self) -> Array:
        """Return the weights, shape (m, n), in the dtype of the scales.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> W = np.array([[0.0, 1.0, 2.0, 3.0], [-2.0, -1.0, 0.0, 1.0]])
        >>> qd.sweep.round_to_nearest(W, bits=2).dequantize()
        array([[ 0.,  1.,  2.,  3.],
               [-2., -1.,  0.,  1.]])
        """
        if (space := device.find(self.codes)) is not None:
            parts = (self.codes, self.scales, self.zeros, self.group_index)
            on_gpu = [arrays.contiguous(device.wrap(a)) for a in parts]
            out = space.empty(self.shape, on_gpu[1].dtype)
            space.run(device.arrays().dequantize, *on_gpu, out)
            return out.finished()
        scales = arrays.to_numpy(self.scales, "scales")
        zeros = arrays.to_numpy(self.zeros, "zeros")
        if scales.shape[1] > 1:
            index = arrays.to_numpy(self.group_index, "group_index")
            scales, zeros = scales.take(index, axis=1), zeros.take(index, axis=1)
        weights = arrays.to_numpy(self.codes, "codes").astype(scales.dtype)
        weights -= zeros
        weights *= scales
        return arrays.like(self.codes)(weights)

    def pack(self, format: str, *, scale_dtype: str = "float16") -> dict[str, Array]:
        """Return the tensors that inference engines load.

        Parameters
        ----------
        format : {"gptq", "gptq_v2", "compressed-tensors"}
            "gptq" stores each zero point minus one, "gptq_v2" as it is; "compressed-tensors" is
            that library's "pack-quantized".
        scale_dtype : {"float16", "float32"}, optional
            Type of the stored scales. Engines expect float16, to which the scales are rounded;
            ``quantize(..., scale_dtype="float16")`` makes that exact.

        Returns
        -------
        dict of str to array
            Names without the prefix of the layer; see :mod:`quadric.sweep.packing`.

        Raises
        ------
        ValueError
            If the format cannot hold this matrix.

        See Also
        --------
        unpack : the way back.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> W = np.random.default_rng(0).standard_normal((8, 16))
        >>> q = qd.sweep.round_to_nearest(W, bits=4, scale_dtype="float16")
        >>> tensors = q.pack("gptq_v2")
        >>> {name: a.shape for name, a in tensors.items()}
        {'qweight': (2, 8), 'qzeros': (1, 1), 'scales': (1, 8), 'g_idx': (16,)}
        >>> back = qd.sweep.unpack(tensors, "gptq_v2", bits=4, group_size=None, symmetric=False)
        >>> np.array_equal(back.codes, q.codes)
        True
        """
        from quadric.sweep import packing

        space = device.find(self.codes)
        if space is None:
            return packing.pack(self, format, scale_dtype=scale_dtype)
        # The bits are put together in CPU memory, where they go to a file anyway.
        packed = packing.pack(to_host(self), format, scale_dtype=scale_dtype)
        return {name: space.from_host(a).finished() for name, a in packed.items()}

    def __repr__(self) -> str:
        m, n = self.shape
        parts = [f"{m} x {n}", f"bits={self.bits}", f"group_size={self.group_size}"]
        parts.append(f"symmetric={self.symmetric}")
        if self.mask is not None:
            parts.append(f"sparsity={self.sparsity:.3g}")
        return f"QuantizedMatrix({', '.join(parts + _loss(self.loss))})"


@dataclass(frozen=True, slots=True, eq=False)
class PrunedMatrix:
    """A matrix with zeros.

    Attributes
    ----------
    weights : array, shape (m, n)
        The weights that were kept, adapted, and zeros.
    mask : array of bool, shape (m, n)
        True where a weight was kept.
    loss : array of float64, shape (m,), or None
        ``tr(D H D^T)`` per row, damping included, where D is what was changed.
    """

    weights: Array
    mask: Array
    loss: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        m, n = self.weights.shape
        return int(m), int(n)

    @property
    def sparsity(self) -> float:
        """Share of the weights that were pruned."""
        return _pruned_share(self.mask)

    def __repr__(self) -> str:
        m, n = self.shape
        parts = [f"{m} x {n}", f"sparsity={self.sparsity:.3g}"]
        return f"PrunedMatrix({', '.join(parts + _loss(self.loss))})"


Matrix = TypeVar("Matrix", bound=QuantizedMatrix | PrunedMatrix)


def to_host(matrix: Matrix) -> Matrix:
    """Return the same matrix as NumPy arrays: a copy where its arrays are on a GPU."""
    found = {field.name: getattr(matrix, field.name) for field in fields(matrix)}
    arrays_of: dict[str, Any] = {
        name: device.wrap(a).host() for name, a in found.items() if device.find(a) is not None
    }
    return replace(matrix, **arrays_of)


def _pruned_share(mask: Array) -> float:
    kept = arrays.host(arrays.take(mask, "mask"))
    return 1.0 - int(np.count_nonzero(kept)) / kept.size if kept.size else 0.0


def _loss(loss: Array | None) -> list[str]:
    return [] if loss is None else [f"loss={float(loss.sum()):.4g}"]
