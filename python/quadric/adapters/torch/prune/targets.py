"""The weights of a model that can be pruned."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from quadric.adapters.torch.fisher import flatten, unflatten
from quadric.adapters.torch.layers import kind_of

# Dimensions in the order that has the inputs of an output next to each other.
_ORDERS = {"Conv1D": (1, 0), "Conv2d": (0, 2, 3, 1)}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Query, key and value on top of each other, or each on its own.
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A weight that is pruned, under the name of its layer."""

    name: str
    parameter: nn.Parameter
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.parameter.numel()

    @property
    def inputs(self) -> int:
        """Weights next to each other that belong to one output."""
        return self.parameter.shape[self.order[-1]]

    def flat(self, x: Tensor) -> Tensor:
        """Return what has the shape of the weight as a vector, inputs next to each other."""
        return flatten(x, self.order)

    def shaped(self, vector: Tensor) -> Tensor:
        """Undo :meth:`flat`."""
        return unflatten(vector, self.parameter.shape, self.order)


def find_targets(
    model: nn.Module, layers: str | Sequence[str], skip: str | Sequence[str], group_size: int
) -> tuple[list[Target], dict[str, str]]:
    """Return the weights to prune, and the other layers with the reason why not.

    An embedding table is found only by a pattern that matches no other layer.
    """
    found, skipped = _candidates(model)
    tables = [name for name in found if name in skipped]
    chosen: set[str] = set()
    for pattern in _patterns(layers, "layers"):
        names = [name for name in found if name not in tables and fnmatchcase(name, pattern)]
        names = names or [name for name in tables if fnmatchcase(name, pattern)]
        if not names:
            unfit = [f": {n}: {why}" for n, why in skipped.items() if fnmatchcase(n, pattern)]
            raise ValueError(
                f"layers pattern {pattern!r} matches no layer that can be pruned"
                + "".join(unfit[:1])
            )
        chosen.update(names)
    for pattern in _patterns(skip, "skip"):
        names = [name for name in (*found, *skipped) if fnmatchcase(name, pattern)]
        if not names:
            warnings.warn(f"skip pattern {pattern!r} matches no layer of the model", stacklevel=3)
        for name in chosen.intersection(names):
            chosen.remove(name)
            skipped[name] = "skip names it"
    if not chosen:
        raise ValueError("layers and skip must leave a layer to prune")
    for name in found:
        if name in chosen:
            skipped.pop(name, None)
        else:
            skipped.setdefault(name, "layers does not name it")
    targets = [target for name, target in found.items() if name in chosen]
    for target in targets:
        if target.inputs % group_size:
            raise ValueError(
                f"layer {target.name!r}: its {target.inputs} inputs must be a multiple of "
                f"group_size {group_size}"
            )
    return targets, skipped


def _candidates(model: nn.Module) -> tuple[dict[str, Target], dict[str, str]]:
    found: dict[str, Target] = {}
    skipped: dict[str, str] = {}
    owners: dict[int, str] = {}  # a table that is also a layer's weight is a table
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            skipped[name] = "it is an embedding table"
            owners.setdefault(id(module.weight), name)
    for name, module, key in _weights(model):
        weight = module._parameters.get(key)
        if weight is None:
            skipped[name] = "its weight is computed from other parameters"
        elif weight.is_meta:
            skipped[name] = "its weight is on the meta device"
        elif weight.dtype not in _DTYPES:
            skipped[name] = f"its weight is {str(weight.dtype)[6:]}"
        elif not weight.numel():
            skipped[name] = "its weight is empty"
        elif owners.setdefault(id(weight), name) != name:
            skipped[name] = f"it shares its weight with {owners[id(weight)]}"
        else:
            found[name] = Target(name, weight, _ORDERS.get(kind_of(module) or "", (0, 1)))
    return found, skipped


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the name of each layer, its module, and the key of the weight there."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or kind_of(module) is not None:
            yield name, module, "weight"
        elif isinstance(module, nn.MultiheadAttention):
            for key in _PROJECTIONS:
                if module._parameters.get(key) is not None:
                    yield f"{name}.{key}" if name else key, module, key


def _patterns(value: str | Sequence[str], name: str) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) else tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{name} must be patterns of layer names, got {pattern!r}")
    return patterns
