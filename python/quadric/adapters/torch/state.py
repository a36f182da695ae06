"""What compression changes in a model for a while, and puts back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quadric.adapters.torch.layers import Layer


class Weights:
    """Weights of the model that were replaced; as a context, puts them back on an exception."""

    def __init__(self) -> None:
        self._originals: dict[Layer, Tensor] = {}

    def replace(self, layer: Layer, weight: Tensor) -> None:
        self._originals.setdefault(layer, layer.weight.data)
        layer.weight.data = weight

    def restore(self) -> None:
        for layer, weight in self._originals.items():
            layer.weight.data = weight

    @contextmanager
    def original(self) -> Iterator[None]:
        """Let the model have its own weights for a while."""
        replaced = {layer: layer.weight.data for layer in self._originals}
        self.restore()
        try:
            yield
        finally:
            for layer, weight in replaced.items():
                layer.weight.data = weight

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.restore()


@contextmanager
def calibration_mode(model: nn.Module) -> Iterator[None]:
    """No dropout, no key-value cache, and no fused attention that bypasses the layers' hooks."""
    training = {module: module.training for module in model.modules()}
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    cached = [config for config in configs if getattr(config, "use_cache", None) is True]
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    for config in cached:
        config.use_cache = False
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        torch.backends.mha.set_fastpath_enabled(fused)
        for config in cached:
            config.use_cache = True
