"""What a weight is worth, and what the others do when it goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from quadric.adapters.torch.fisher import FisherCollector
from quadric.adapters.torch.prune.targets import Target

METHODS = ("obert", "diagonal", "magnitude")

Pruned: TypeAlias = tuple[Tensor, float | None]
"""New weights in the shape of the parameter, and the predicted increase of the loss."""


class Criterion(Protocol):
    """A score for each group of weights, and the weights after some have been zeroed.

    `block_size` is that of the Fisher matrices that it needs, None for none.
    """

    @property
    def block_size(self) -> int | None: ...

    def scores(
        self, targets: Sequence[Target], fisher: FisherCollector | None, group_size: int
    ) -> list[Tensor]: ...

    def prune(
        self, targets: Sequence[Target], fisher: FisherCollector | None, masks: dict[str, Tensor]
    ) -> list[Pruned]: ...


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The square of a weight; the others stay."""

    block_size: None = None

    def scores(
        self, targets: Sequence[Target], fisher: FisherCollector | None, group_size: int
    ) -> list[Tensor]:
        found = []
        for target in targets:
            weights = target.flat(target.parameter.detach())
            squares = weights.to(torch.promote_types(weights.dtype, torch.float32)).square()
            if not squares.isfinite().all():
                raise ValueError(f"layer {target.name!r}: its weights must be finite")
            found.append(_sums(squares, group_size))
        return found

    def prune(
        self, targets: Sequence[Target], fisher: FisherCollector | None, masks: dict[str, Tensor]
    ) -> list[Pruned]:
        return [
            (target.parameter.detach().masked_fill(~masks[target.name], 0), None)
            for target in targets
        ]


@dataclass(frozen=True, slots=True)
class BlockCurvature:
    """Optimal BERT surgeon: scores and update from block Fisher matrices.

    Blocks of one weight are the diagonal Fisher: the score is ``w^2 F_ii / 2``, the others stay.
    """

    block_size: int
    update: str = "joint"

    def scores(
        self, targets: Sequence[Target], fisher: FisherCollector | None, group_size: int
    ) -> list[Tensor]:
        assert fisher is not None
        if self.block_size > 1:
            found = fisher.scores(group_size)
            return [found[target.name] for target in targets]
        found = fisher.scores()  # without off-diagonal terms those of a group add up
        return [_sums(found[target.name], group_size) for target in targets]

    def prune(
        self, targets: Sequence[Target], fisher: FisherCollector | None, masks: dict[str, Tensor]
    ) -> list[Pruned]:
        assert fisher is not None
        found = fisher.prune({t.name: masks[t.name] for t in targets}, update=self.update)
        return [(found[target.name].weights, found[target.name].loss) for target in targets]


def criterion(method: str, block_size: int | None, group_size: int, update: str) -> Criterion:
    """Return what the options of a pruner ask for."""
    if method == "magnitude":
        return Magnitude()
    if method == "diagonal":
        return BlockCurvature(1)
    if block_size is None:
        block_size = max(1, 50 // group_size) * group_size
    elif block_size % group_size:
        raise ValueError(
            f"block_size must be a multiple of group_size {group_size}, got {block_size}"
        )
    return BlockCurvature(block_size, update)


def _sums(values: Tensor, group_size: int) -> Tensor:
    return values if group_size == 1 else values.reshape(-1, group_size).sum(1)
