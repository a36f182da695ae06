"""The opponent: GPTQ as its authors published it, a plain PyTorch loop over columns.

Three factorizations (Cholesky, inverse, Cholesky of the inverse), then blocks of 128 columns with a
rank-one update of the block per column and one product per block for the columns behind it.  Group
scales are computed where a group starts; with groups that are a multiple of the block, the weights
there are current.  Frantar et al., "GPTQ", ICLR 2023, https://arxiv.org/abs/2210.17323.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128


class Grid(NamedTuple):
    """Asymmetric grid of some columns: a scale and a zero point per row, both (rows, 1)."""

    scale: Tensor
    zero: Tensor
    maxq: int

    def codes(self, weights: Tensor) -> Tensor:
        return torch.clamp(torch.round(weights / self.scale) + self.zero, 0, self.maxq)

    def round(self, weights: Tensor) -> Tensor:
        return self.scale * (self.codes(weights) - self.zero)


def find_params(weights: Tensor, bits: int) -> Grid:
    """Minmax grid of each row of `weights` (rows, columns); the range always includes zero."""
    maxq = 2**bits - 1
    zero = torch.zeros(weights.shape[0], device=weights.device)
    low = torch.minimum(weights.min(1)[0], zero)
    high = torch.maximum(weights.max(1)[0], zero)
    empty = (low == 0) & (high == 0)
    low[empty] = -1
    high[empty] = +1
    scale = (high - low) / maxq
    return Grid(scale.unsqueeze(1), torch.round(-low / scale).unsqueeze(1), maxq)


def factorize(hessian: Tensor, damping: float = 0.01) -> Tensor:
    """Upper U with inv(H + damping) = U^T U: the three factorizations.  hessian (n, n)."""
    hessian = hessian.clone()
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    hessian = torch.linalg.cholesky(hessian)
    hessian = torch.cholesky_inverse(hessian)
    upper: Tensor = torch.linalg.cholesky(hessian, upper=True)
    return upper


def quantize(
    weights: Tensor,
    upper: Tensor,
    bits: int = 4,
    group_size: int | None = None,
    *,
    tuned: bool = False,
) -> tuple[Tensor, list[Grid]]:
    """Rounded weights (m, n) and the grids, one per group (one in all without `group_size`).

    `tuned` is not in the original: columns contiguous in memory and the rank-one update in place,
    which makes the loop up to twice as fast.
    """
    weights = weights.T.contiguous().T if tuned else weights.clone()
    rounded = torch.zeros_like(weights)
    losses = torch.zeros_like(weights)
    n = weights.shape[1]
    grids = [] if group_size else [find_params(weights, bits)]
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        block = weights[:, start:stop].clone()
        block_rounded = torch.zeros_like(block)
        block_errors = torch.zeros_like(block)
        block_losses = torch.zeros_like(block)
        block_upper = upper[start:stop, start:stop]
        for i in range(stop - start):
            if group_size and (start + i) % group_size == 0:
                group = weights[:, start + i : min(start + i + group_size, n)]
                grids.append(find_params(group, bits))
            column = block[:, i]
            pivot = block_upper[i, i]
            q = grids[-1].round(column.unsqueeze(1)).flatten()
            block_rounded[:, i] = q
            block_losses[:, i] = (column - q) ** 2 / pivot**2
            error = (column - q) / pivot
            if tuned:
                block[:, i:].addr_(error, block_upper[i, i:], alpha=-1)
            else:
                block[:, i:] -= error.unsqueeze(1).matmul(block_upper[i, i:].unsqueeze(0))
            block_errors[:, i] = error
        rounded[:, start:stop] = block_rounded
        losses[:, start:stop] = block_losses / 2
        weights[:, stop:] -= block_errors.matmul(upper[start:stop, stop:])
    return rounded, grids


def codes(rounded: Tensor, grids: list[Grid], group_size: int | None = None) -> Tensor:
    """Integer codes (m, n) of rounded weights, for comparison (not timed)."""
    parts = torch.split(rounded, group_size or rounded.shape[1], dim=1)
    return torch.cat([grid.codes(part) for grid, part in zip(grids, parts, strict=True)], dim=1)
