"""Hessians of many layers at once, gathered while the model runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from quadric import backends
from quadric.adapters.torch.layers import Layer
from quadric.sweep import HessianAccumulator

References: TypeAlias = dict[str, list[Tensor]]
"""Layer name to the inputs of one run of the model, one for each time the layer was called."""


_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class SharedInput:
    """Layers that saw the same inputs, and the sums over these."""

    layers: tuple[Layer, ...]
    accumulator: HessianAccumulator


class UnequalInputs(Exception):
    """Layers that shared an input in one call did not in another: gather them one by one."""


class Capture:
    """Sums of the inputs of `layers`, streamed from hooks; the inputs themselves are not kept.

    In every run of the model, the first layer that is given a tensor leads; layers that are given
    the same one later in that run follow, and share the leader's sums. With ``share=False`` every
    layer has its own.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        share: bool = True,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.layers = layers
        self.share = share
        self._options: dict[str, Any] = {"backend": backend, "n_threads": n_threads}
        self._sums: dict[str, HessianAccumulator] = {}
        self._updates: dict[str, int] = {}
        self._seen: dict[str, dict[str, int]] = {}  # layer -> leader -> number of inputs
        # One run: the leaders' inputs stay alive, so that no new tensor can take their memory.
        self._leaders: dict[Any, tuple[Tensor, str]] = {}
        self._calls: dict[str, int] = {}
        self._mask: Tensor | None = None
        self._references: References | None = None
        self._where = ""

    def run(
        self,
        function: Callable[[], Any],
        *,
        mask: Tensor | None = None,
        references: References | None = None,
        where: str = "",
    ) -> None:
        """Call `function`, which runs the layers once, and add their inputs.

        Raises
        ------
        ValueError
            If an input holds NaN or Inf; the message names the layer and `where`.
        """
        self._mask, self._references, self._where = mask, references, where
        try:
            with input_hooks(self.layers, self._add):
                function()
        finally:
            self._leaders.clear()
            self._calls.clear()
            self._references = None

    def shared(self) -> list[SharedInput]:
        """Return the sums, in the order in which the layers were first called.

        Raises
        ------
        UnequalInputs
            If layers shared some inputs and not others.
        """
        followers: dict[str, list[Layer]] = {}
        for layer in self.layers:
            seen = self._seen.get(layer.name, {})
            if not seen:
                continue
            (leader, count), *others = seen.items()
            if others or count != self._updates[leader]:
                raise UnequalInputs(layer.name)
            followers.setdefault(leader, []).append(layer)
        return [
            SharedInput(tuple(followers[name]), sums)
            for name, sums in self._sums.items()
            if name in followers
        ]

    def _add(self, layer: Layer, x: Tensor) -> None:
        nth = self._calls.get(layer.name, 0)
        self._calls[layer.name] = nth + 1
        if x.numel() == 0:  # an expert that no token went to
            return
        seen = self._seen.setdefault(layer.name, {})
        key = (x.data_ptr(), x.shape, x.stride(), x.dtype, version(x), layer.reads())
        known = self._leaders.get(key) if self.share else None
        if known is not None:
            seen[known[1]] = seen.get(known[1], 0) + 1
            return
        self._leaders[key] = x, layer.name
        seen[layer.name] = seen.get(layer.name, 0) + 1
        self._updates[layer.name] = self._updates.get(layer.name, 0) + 1

        sums = self._sums.get(layer.name)
        if sums is None:
            sums = HessianAccumulator(layer.shape[1], **self._options)
            self._sums[layer.name] = sums
        reference = None
        if self._references is not None:
            reference = self._reference(layer, x, nth)
        try:
            sums.update(self._placed(layer, layer.rows(x, self._mask)), reference=reference)
        except ValueError as error:
            raise ValueError(f"layer {layer.name!r}, {self._where}: {error}") from error

    def _reference(self, layer: Layer, x: Tensor, nth: int) -> Tensor:
        assert self._references is not None
        inputs = self._references.get(layer.name, [])
        if nth >= len(inputs) or inputs[nth].shape != x.shape:
            raise ValueError(
                f"layer {layer.name!r} does not see the same tokens in the uncompressed model, so "
                "asymmetric calibration does not fit it (is it an expert?)"
            )
        return self._placed(layer, layer.rows(inputs[nth], self._mask))

    def _placed(self, layer: Layer, x: Tensor) -> Tensor:
        return x.to(home(layer.weight, self._options["backend"]))


def record(layers: Sequence[Layer], function: Callable[[], Any]) -> References:
    """Return the inputs of `layers` while `function` runs."""
    inputs: References = {}
    with input_hooks(layers, lambda layer, x: inputs.setdefault(layer.name, []).append(x)):
        function()
    return inputs


def call_order(layers: Sequence[Layer], function: Callable[[], Any]) -> list[tuple[Layer, ...]]:
    """Return the layers in the order in which `function` calls them, those with one input together.

    Layers that it does not call are left out.
    """
    groups: dict[Any, list[Layer]] = {}
    alive = []
    called = set()

    def note(layer: Layer, x: Tensor) -> None:
        alive.append(x)
        if layer.name not in called:
            called.add(layer.name)
            key = (x.data_ptr(), x.shape, x.stride(), version(x), layer.reads())
            groups.setdefault(key, []).append(layer)

    with input_hooks(layers, note):
        function()
    return [tuple(group) for group in groups.values()]


@contextmanager
def input_hooks(layers: Sequence[Layer], hook: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Call ``hook(layer, input)`` before each layer runs, without gradients."""

    def attach(layer: Layer) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            hook(layer, x.detach())

        return layer.module.register_forward_pre_hook(before, with_kwargs=True)

    handles = [attach(layer) for layer in layers]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def version(x: Tensor) -> int:
    """Return a number that grows when `x` is changed in place."""
    return 0 if x.is_inference() else x._version


def runs_on_gpu(weight: Tensor, backend: str | None) -> bool:
    """Say whether a layer is compressed where its weight is because that is a GPU."""
    return weight.is_cuda and backend in (None, "cuda") and backends.why_missing("cuda") is None


def home(weight: Tensor, backend: str | None = None) -> torch.device:
    """Return where the kernels for a weight work: on its GPU if they can, else on the CPU."""
    return weight.device if runs_on_gpu(weight, backend) else _CPU


def to_cpu(x: Tensor) -> Tensor:
    """Return `x` where the kernels for the CPU can read it."""
    return x if x.device.type == "cpu" else x.cpu()
