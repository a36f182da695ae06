"""Zeros that stay zeros while a model is trained on."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn


class Masks(Mapping[str, Tensor]):
    """Which weights are kept, by layer; the others can be held at zero.

    :meth:`hold` makes an optimizer leave the pruned weights alone: before each step their
    gradients are zeroed, after it the weights and every entry of the optimizer's state that
    belongs to them (momentum, second moments). The model's own state_dict stays as it is, zeros
    included, so it loads anywhere.

    Parameters
    ----------
    parameters : mapping of str to torch.nn.Parameter
        The weights, by the name of their layer; also an attribute. All are kept at first.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch.prune import Masks
    >>> layer = torch.nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> masks = Masks({"layer": layer.weight})
    >>> masks["layer"] = torch.tensor([[True, True, False, False], [True, True, True, False]])
    >>> masks.hold(optimizer)
    >>> for _ in range(3):
    ...     layer(torch.ones(1, 4)).sum().backward()
    ...     optimizer.step()
    >>> int(layer.weight.count_nonzero()), masks.sparsity()
    (5, 0.375)
    >>> masks.release()
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self._kept = {
            name: torch.ones_like(p, dtype=torch.bool, requires_grad=False)
            for name, p in parameters.items()
        }
        self._held: dict[torch.optim.Optimizer, list[Any]] = {}

    @classmethod
    def of_zeros(cls, parameters: Mapping[str, nn.Parameter]) -> Self:
        """Build masks that keep what is not zero: those of a model that was pruned before."""
        masks = cls(parameters)
        masks._kept = {name: p.detach() != 0 for name, p in parameters.items()}
        return masks

    def __getitem__(self, name: str) -> Tensor:
        """Return a layer's mask, True where a weight is kept, in the shape of the weight."""
        return self._kept[name]

    def __setitem__(self, name: str, mask: Tensor) -> None:
        """Set a layer's mask, and zero the weights that it prunes."""
        self.update({name: mask})

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Set the masks of several layers, and zero the weights that they prune.

        Raises
        ------
        ValueError
            If a layer is unknown, or a mask is not bool in the shape of the weight; all masks are
            then as before.
        """
        checked = {name: self._checked(name, mask) for name, mask in masks.items()}
        self._kept.update(checked)
        for name in checked:
            _zero(self.parameters[name], self._on(name))

    def sparsity(self, name: str | None = None) -> float:
        """Return the share of the weights of a layer, or of all, that is pruned."""
        masks = list(self._kept.values()) if name is None else [self._kept[name]]
        total = sum(m.numel() for m in masks)
        return (total - sum(int(m.sum()) for m in masks)) / total

    def apply(self) -> None:
        """Zero the pruned weights now, and what held optimizers remember of them."""
        for name, parameter in self.parameters.items():
            _zero(parameter, self._on(name))
        for optimizer in self._held:
            self._forget(optimizer)

    def hold(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep pruned weights at zero through the steps of `optimizer`, until :meth:`release`.

        Raises
        ------
        TypeError
            If it is not a :class:`torch.optim.Optimizer`.
        ValueError
            If it has none of the masked weights.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if not list(self._shared(optimizer)):
            raise ValueError("optimizer must have at least one of the masked weights, it has none")
        if optimizer not in self._held:
            self._held[optimizer] = [
                optimizer.register_step_pre_hook(self._before),
                optimizer.register_step_post_hook(self._after),
            ]
        self.apply()

    def release(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Let go of an optimizer, or of all; weights and masks stay as they are."""
        for held in list(self._held) if optimizer is None else [optimizer]:
            for handle in self._held.pop(held, ()):
                handle.remove()

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the masks."""
        return {name: mask.clone() for name, mask in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set all masks to those of :meth:`state_dict`, and zero what they prune.

        Raises
        ------
        ValueError
            If `state` is of other layers or shapes; all masks are then as before.
        """
        if set(state) != set(self._kept):
            odd = sorted(set(state) ^ set(self._kept))
            raise ValueError(f"state must be of the same layers, {odd[0]!r} is only in one")
        self.update(state)

    def __eq__(self, other: object) -> bool:
        return self is other  # tensors do not compare as a mapping's values should

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, sparsity={self.sparsity():.4f})"

    def _checked(self, name: str, mask: Any) -> Tensor:
        if name not in self.parameters:
            raise ValueError(f"masks have no layer {name!r}")
        shape = self.parameters[name].shape
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != shape:
            got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else mask
            raise ValueError(f"mask of {name!r} must be bool of shape {tuple(shape)}, got {got}")
        return mask.clone()

    def _on(self, name: str) -> Tensor:
        """Return a mask on the device of its weight, where it stays."""
        mask = self._kept[name] = self._kept[name].to(self.parameters[name].device)
        return mask

    def _shared(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[nn.Parameter, Tensor]]:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self.parameters.items():
            if id(parameter) in owned:
                yield parameter, self._on(name)

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, mask in self._shared(optimizer):
            if parameter.grad is not None:
                _zero(parameter.grad, mask)

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, mask in self._shared(optimizer):
            _zero(parameter, mask)
        self._forget(optimizer)

    def _forget(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter, mask in self._shared(optimizer):
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    _zero(value, mask)


@torch.no_grad()
def _zero(x: Tensor, kept: Tensor) -> None:
    x.masked_fill_(~kept, 0)
