"""Which layers of a model are compressed, how, and in which order."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from quadric.adapters.torch.blocks import Batch, NotAChain, find_chains, follow, run_model
from quadric.adapters.torch.capture import input_hooks
from quadric.adapters.torch.layers import Layer, kind_of
from quadric.adapters.torch.recipe import LayerRecipe, Recipe, Rule


class Plan:
    """Which layers are compressed how, and when.

    Attributes
    ----------
    chains : list of Chain
        Empty where the model is one block.
    rules : dict of Layer to LayerRecipe
    skipped : dict of str to str
        The other layers, and why.
    before, after : list of Layer
        Layers to compress that run before the first block, and all others outside the blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        batches: Sequence[Batch],
        blocks: str | Sequence[str] | None,
    ) -> None:
        self.skipped: dict[str, str] = {}
        layers = self._layers(model)
        if not layers:
            raise ValueError("model has no Linear, Conv1D or Conv2d layer that can be compressed")
        self.chains = find_chains(model, blocks, [layer.name for layer in layers])
        for chain in self.chains:
            try:  # one batch now rather than an error after an hour
                follow(chain, batches[:1], lambda batch: run_model(model, batch))
            except NotAChain as error:
                if blocks is not None:
                    raise ValueError(f"blocks {chain.name!r}: {error}") from error
                warnings.warn(f"the model is taken as one block: {error}", stacklevel=4)
                self.chains = []
        self.rules: dict[Layer, LayerRecipe] = {}
        self._match(recipe, layers)
        outside = [layer for layer in self.rules if not self.inside(layer)]
        self.before = self._before(model, batches[0], outside) if outside else []
        self.after = [layer for layer in outside if layer not in self.before]

    def inside(self, layer: Layer, block: str | None = None) -> bool:
        """Say whether a layer is in that block, or in any."""
        names = [name for chain in self.chains for name, _ in chain.blocks]
        if block is not None:
            names = [block]
        elif not self.chains:
            return True
        return any(layer.name == name or layer.name.startswith(f"{name}.") for name in names)

    def _layers(self, model: nn.Module) -> list[Layer]:
        owners: dict[int, list[str]] = {}
        for name, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                owners.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
        attention = [n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
        layers = []
        for name, module in model.named_modules():
            kind = kind_of(module)
            if kind is None:
                continue
            weight = module._parameters.get("weight")
            if weight is None:
                reason = "its weight is computed from other parameters"
            elif weight.is_meta or not weight.is_floating_point():
                reason = f"its weight is {'on the meta device' if weight.is_meta else weight.dtype}"
            elif len(owners[id(weight)]) > 1:
                other = next(o for o in owners[id(weight)] if o != f"{name}.weight")
                reason = f"it shares its weight with {other}"
            elif getattr(module, "groups", 1) != 1:
                reason = "it is a grouped convolution"
            elif any(name.startswith(f"{a}." if a else "") for a in attention):
                reason = "nn.MultiheadAttention reads its weight without calling it"
            elif weight.numel() == 0:
                reason = "its weight is empty"
            else:
                layers.append(Layer(name, module, kind))
                continue
            self.skipped[name] = reason
        return layers

    def _match(self, recipe: Recipe, layers: Sequence[Layer]) -> None:
        names = [layer.name for layer in layers]
        for pattern in recipe.patterns_without(names):
            rule = dict(recipe.rules)[pattern]
            message = f"recipe rule {pattern!r} matches no layer of the model"
            unfit = [name for name in self.skipped if Recipe({pattern: "skip"}).match(name)]
            if rule == "skip":
                if not unfit:
                    warnings.warn(message, stacklevel=5)
                continue
            if unfit:
                message += f" that can be compressed: {unfit[0]}: {self.skipped[unfit[0]]}"
            raise ValueError(message)
        for_outside = recipe.patterns_without(layer.name for layer in layers if self.inside(layer))
        for layer in layers:
            inside = self.inside(layer)
            found: Rule | None = recipe.match(layer.name, None if inside else for_outside)
            if isinstance(found, LayerRecipe):
                _check_fit(layer, found)
                self.rules[layer] = found
            elif found is None:
                reason = "no rule matches" if inside else "outside the blocks"
                self.skipped[layer.name] = reason
            else:
                self.skipped[layer.name] = "the recipe skips it"
        if not self.rules:
            raise ValueError("recipe must have a rule that compresses a layer, it skips them all")

    def _before(self, model: nn.Module, batch: Batch, layers: Sequence[Layer]) -> list[Layer]:
        if not self.chains:
            return []
        early: list[Layer] = []
        started = False

        def start(*_: Any) -> None:
            nonlocal started
            started = True

        def note(layer: Layer, _: Tensor) -> None:
            if not started and layer not in early:
                early.append(layer)

        handle = self.chains[0].blocks[0][1].register_forward_pre_hook(start)
        try:
            with input_hooks(layers, note):
                run_model(model, batch)
        finally:
            handle.remove()
        return early


def _check_fit(layer: Layer, rule: LayerRecipe) -> None:
    columns = layer.shape[1]
    if rule.bits is not None and isinstance(rule.group_size, int) and rule.group_size > columns:
        raise ValueError(
            f"layer {layer.name!r}: group_size must be at most its {columns} inputs, "
            f"got {rule.group_size}"
        )
    if rule.pattern is not None and columns % int(rule.pattern[1]):
        raise ValueError(
            f"layer {layer.name!r}: its {columns} inputs must be a multiple of m in pattern "
            f"{rule.pattern[0]}:{rule.pattern[1]}"
        )
