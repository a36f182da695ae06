"""The preconditioner of MKOR: Kronecker factors of layers, with statistics from hooks."""

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from quadric import checks
from quadric.adapters.torch.capture import home, runs_on_gpu
from quadric.adapters.torch.layers import Kind, Layer, from_matrix, kind_of, to_matrix
from quadric.adapters.torch.optim.base import Directions, Group, Method, State, computing
from quadric.errors import LinAlgError
from quadric.woodbury import kronecker_precondition, rank_one_inverse_update


class KroneckerMethod(Method):
    """The inverse factors of each layer, in the state of its weight.

    The statistics of a layer are the mean of its inputs and the sum of its output gradients, over
    all backward passes since the last step. They are taken only where the next step needs them.
    """

    options: Mapping[str, Any] = {
        "decay": 0.95,
        "rule": "exact",
        "update_every": 10,
        "norm_bound": 100.0,
        "blend": 0.9,
        "max_size": 8192,
        "first_order": False,
    }

    def __init__(self, model: nn.Module | None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = model
        self._layers: dict[Tensor, Layer] = {}  # weight -> the first layer that has it
        self._due: set[Tensor] = set()
        self._sums: dict[Tensor, _Sums] = {}
        handles = []
        for name, module in model.named_modules():
            kind, weight = kind_of(module), module._parameters.get("weight")
            if kind is None or weight is None or getattr(module, "groups", 1) != 1:
                continue
            if weight.numel() == 0:
                continue
            self._layers.setdefault(weight, Layer(name, module, kind))
            hook = _Observer(self, kind)
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        weakref.finalize(self, lambda: [handle.remove() for handle in handles]).atexit = False

    def __reduce__(self) -> tuple[type[Self], tuple[nn.Module]]:
        return type(self), (self.model,)  # a copy watches the copied model

    def check(self, group: Group) -> None:
        checks.between(group["decay"], "decay", 0, 1)
        checks.choice(group["rule"], "rule", ("exact", "mkor", "published"))
        checks.integer(group["update_every"], "update_every", low=1)
        if group["norm_bound"] is not None:
            checks.positive(group["norm_bound"], "norm_bound")
        checks.real(group["blend"], "blend", low=0, high=1)
        checks.integer(group["max_size"], "max_size", low=1)
        checks.choice(group["first_order"], "first_order", (True, False))

    def shapes(self, p: Tensor) -> dict[str, tuple[int, ...]]:
        if p not in self._layers:
            return {}
        n_out, n_in = self._layers[p].shape
        return {"j_out": (n_out, n_out), "j_in": (n_in, n_in)}

    def prepare(self, group: Group, state: State) -> None:
        for p in group["params"]:
            layer = self._layers.get(p)
            small = layer is not None and max(layer.shape) <= group["max_size"]
            step = state[p].get("step", 0) if p in state else 0
            if small and not group["first_order"] and step % group["update_every"] == 0:
                self._due.add(p)
            else:
                self._due.discard(p)

    def forget(self) -> None:
        self._sums.clear()

    def check_statistics(self) -> None:
        for p, sums in self._sums.items():
            if runs_on_gpu(p, None):
                continue
            for x, what in ((sums.inputs, "inputs"), (sums.gradients, "output gradients")):
                if not torch.isfinite(x).all():
                    name = self._layers[p].name
                    raise ValueError(f"{what} of layer {name!r} must be finite, got NaN or Inf")

    def directions(self, group: Group, state: State) -> Directions:
        params = [p for p in group["params"] if p.grad is not None]
        noted = [p for p in params if p in self._due and p in self._sums]
        for kind in dict.fromkeys(map(_kind, noted)):
            self._update([p for p in noted if _kind(p) == kind], group, state)
        for p in params:
            layer = self._layers.get(p)
            if layer is None:
                yield p, p.grad
                continue
            own = state[p]
            own["step"] = own.get("step", 0) + 1
            if "j_in" not in own or group["first_order"]:
                yield p, p.grad
                continue
            dtype, place = _kind(p)
            gradient = to_matrix(p.grad, layer.kind).to(place, dtype)
            direction = kronecker_precondition(
                own["j_out"].to(place),
                gradient,
                own["j_in"].to(place),
                check_finite=not runs_on_gpu(p, None),
            )
            yield p, from_matrix(direction, layer.kind, tuple(p.shape)).to(p.device)
        for p in params:  # those of other groups wait for their turn
            self._sums.pop(p, None)
        self.prepare(group, state)

    def _update(self, weights: list[Tensor], group: Group, state: State) -> None:
        """Update the factors of all these layers, of one type and in one place, in one call."""
        names, factors, vectors = [], [], []
        for p in weights:
            dtype, place = _kind(p)
            sums, own = self._sums[p], state[p]
            for key, v in (("j_in", sums.inputs / sums.count), ("j_out", sums.gradients)):
                if key not in own:
                    own[key] = torch.eye(len(v), dtype=dtype, device=place)
                own[key] = own[key].to(place)  # of a model that has been moved
                names.append(f"{key} of layer {self._layers[p].name!r}")
                factors.append(own[key])
                vectors.append(v.to(place))
        options = {key: group[key] for key in ("decay", "rule", "norm_bound", "blend")}
        options["check_finite"] = not runs_on_gpu(weights[0], None)
        try:
            rank_one_inverse_update(factors, vectors, **options, out=factors)
        except LinAlgError as error:
            message = str(error)
            for i, name in enumerate(names):
                message = message.replace(f"J[{i}]", name)
            raise LinAlgError(message) from error

    def note(self, p: Tensor, sums: "_Sums") -> None:
        """Add the sums over one call of the layer with weight `p`."""
        if p in self._sums:
            self._sums[p].add(sums)
        else:
            self._sums[p] = sums

    def is_due(self, p: Tensor) -> bool:
        return p in self._due and p.requires_grad


def _kind(p: Tensor) -> tuple[torch.dtype, torch.device]:
    """Return the type of the factors of a weight, and where they are."""
    return computing(p), home(p)


@dataclass
class _Sums:
    inputs: Tensor  # (in,)
    gradients: Tensor  # (out,)
    count: int  # rows in `inputs`

    def add(self, other: "_Sums") -> None:
        self.inputs.add_(other.inputs)
        self.gradients.add_(other.gradients)
        self.count += other.count


class _Observer:
    """Forward hook. It keeps nothing alive, and in a copy of the model it does nothing."""

    def __init__(self, method: KroneckerMethod | None, kind: Kind) -> None:
        self._method = None if method is None else weakref.ref(method)
        self._kind = kind

    def __reduce__(self) -> tuple[type["_Observer"], tuple[None, Kind]]:
        return _Observer, (None, self._kind)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        method = None if self._method is None else self._method()
        layer = Layer("", module, self._kind)
        if method is None or not output.requires_grad or not method.is_due(layer.weight):
            return
        x = args[0] if args else next(iter(kwargs.values()))
        with torch.no_grad():
            inputs, count = _sum_inputs(layer, x.detach())

        # On the tensor and not on the module: a module's backward hook forbids in-place operations
        # on its output. What no backward pass comes back to is not noted at all.
        def note(gradient: Tensor) -> None:
            method.note(layer.weight, _Sums(inputs, _sum_gradients(layer, gradient), count))

        output.register_hook(note)  # type: ignore[no-untyped-call]


def _sum_inputs(layer: Layer, x: Tensor) -> tuple[Tensor, int]:
    """Return the sum of the rows that the layer multiplies, and their number."""
    dtype = computing(layer.weight)
    if layer.kind != "Conv2d":
        rows = layer.rows(x, None)
        return rows.sum(0, dtype=dtype), len(rows)
    images = x.unsqueeze(0) if x.ndim == 3 else x
    # Cutting into patches is linear, so it is done once for the sum of the images.
    patches = layer.rows(images.sum(0, keepdim=True, dtype=dtype), None)
    return patches.sum(0), len(images) * len(patches)


def _sum_gradients(layer: Layer, gradient: Tensor) -> Tensor:
    """Return the sum of the output gradients over the batch, and their mean over positions."""
    gradient, dtype = gradient.detach(), computing(layer.weight)
    if layer.kind != "Conv2d":
        return gradient.reshape(-1, gradient.shape[-1]).sum(0, dtype=dtype)
    images = gradient.unsqueeze(0) if gradient.ndim == 3 else gradient
    return images.sum((0, 2, 3), dtype=dtype) / math.prod(images.shape[2:])
