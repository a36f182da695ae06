"""The layers that can be compressed: each is a matrix (out, in), and its input a stack of rows."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quadric.arrays import Array

Kind = Literal["Linear", "Conv1D", "Conv2d"]


def kind_of(module: nn.Module) -> Kind | None:
    """Say how `module` multiplies its input by a matrix; None if it does not."""
    if isinstance(module, nn.Linear):
        return "Linear"
    if isinstance(module, nn.Conv2d):
        return "Conv2d"
    # By name, because transformers is not a dependency and takes seconds to import.
    for base in type(module).__mro__:
        if base.__name__ == "Conv1D" and base.__module__.startswith("transformers."):
            return "Conv1D"
    return None


def to_matrix(weight: Tensor, kind: Kind) -> Tensor:
    """Return the weight of a layer as (out, in), a view where that is possible."""
    if kind == "Conv1D":
        return weight.T
    return weight.flatten(1)


def from_matrix(matrix: Tensor, kind: Kind, shape: tuple[int, ...]) -> Tensor:
    """Undo :func:`to_matrix` for a weight of that shape; the result is contiguous."""
    if kind == "Conv1D":
        return matrix.T.contiguous()
    return matrix.reshape(shape).contiguous()


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a model, under its name there."""

    name: str
    module: nn.Module
    kind: Kind

    @property
    def weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self.module.weight)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = to_matrix(self.weight, self.kind).shape
        return rows, columns

    def matrix(self, *, on_gpu: bool = False) -> Array:
        """Return the weights as a new float32 matrix (out, in): NumPy's, or where they are."""
        matrix = to_matrix(self.weight.detach(), self.kind)
        if on_gpu:
            return matrix.to(torch.float32, copy=True).contiguous()
        return np.array(matrix.to("cpu", torch.float32).numpy(), order="C")

    def weight_from(self, matrix: Array) -> Tensor:
        """Return `matrix` (out, in) in the shape, dtype and device of the layer's weight."""
        old = self.weight
        found = matrix if isinstance(matrix, Tensor) else torch.from_numpy(matrix)
        dense = from_matrix(found, self.kind, tuple(old.shape))
        return dense.to(old.device, old.dtype)

    def reads(self) -> Hashable:
        """Return what turns an input into rows; layers where it is equal see the same rows."""
        if self.kind != "Conv2d":
            return ()
        m = cast(nn.Conv2d, self.module)
        return m.kernel_size, m.stride, m.dilation, str(m.padding), m.padding_mode

    def rows(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the rows (tokens, in) that the matrix multiplies.

        `mask` (batch, time) leaves out the tokens where it is False; an input that is laid out
        in another way, such as the pooled one of a head, is taken whole.
        """
        if self.kind == "Conv2d":
            return self._patches(x)
        if mask is not None:
            if x.shape[: mask.ndim] == mask.shape:
                x = x[mask]
            elif x.ndim == 2 and len(x) == mask.numel():
                x = x[mask.flatten()]
        return x.reshape(-1, x.shape[-1])

    def _patches(self, x: Tensor) -> Tensor:
        m = cast(nn.Conv2d, self.module)
        if x.ndim == 3:
            x = x.unsqueeze(0)
        mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
        # Left, right, top, bottom: also right for padding="same", which may be lopsided.
        x = F.pad(x, m._reversed_padding_repeated_twice, mode=mode)
        columns = F.unfold(x, m.kernel_size, dilation=m.dilation, stride=m.stride)
        return columns.transpose(1, 2).flatten(0, 1)
