"""The preconditioner of M-FAC: the last gradients of a parameter group, each as one vector."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadric import checks
from quadric.adapters.torch.capture import home, runs_on_gpu
from quadric.adapters.torch.optim.base import Directions, Group, Method, State, computing
from quadric.woodbury import GradientWindow

DTYPES = ("float16", "bfloat16", "float32", "float64", None)


class WindowMethod(Method):
    """One window for all parameters of a group, in the state and where the first of them is."""

    options: Mapping[str, Any] = {
        "capacity": 64,
        "damping": 1e-5,
        "dtype": None,
        "normalize": "count",
    }

    host_decides = "the place of a gradient in its window"

    def __init__(self) -> None:
        self._flat: dict[Tensor, Tensor] = {}  # first parameter of a group -> buffer

    def __reduce__(self) -> tuple[type["WindowMethod"], tuple[()]]:
        return WindowMethod, ()  # the buffers are filled anew in every step

    def check(self, group: Group) -> None:
        checks.integer(group["capacity"], "capacity", low=1)
        checks.positive(group["damping"], "damping")
        checks.choice(group["dtype"], "dtype", DTYPES)
        checks.choice(group["normalize"], "normalize", ("count", "capacity", "sum"))

    def window(self, p: Tensor, group: Group) -> GradientWindow | None:
        if p is not group["params"][0]:
            return None
        return GradientWindow(
            sum(p.numel() for p in group["params"]),
            capacity=group["capacity"],
            damping=group["damping"],
            dtype=_dtype(group),
            normalize=group["normalize"],
            check_finite=not runs_on_gpu(p, None),
        )

    def directions(self, group: Group, state: State) -> Directions:
        params = group["params"]
        if all(p.grad is None or p.numel() == 0 for p in params):
            return
        own = state[params[0]]
        window, gradient = self._window(group, own), self._gather(group)
        window.damping = group["damping"]
        if group.get("momentum_in") == "window" and group["momentum"] != 0:
            window.push(gradient)
            weights = group["momentum"] ** np.arange(window.count, dtype=np.float64)
            solution = window.combine(weights)
        else:
            solution = window.push_and_solve(gradient)
        for p, part in zip(params, _parts(solution, params), strict=True):
            if p.grad is not None:
                yield p, part.to(p.device)

    def _window(self, group: Group, own: dict[str, Any]) -> GradientWindow:
        """Return the window of a group, which goes where the next gradient is if that is new."""
        first = group["params"][0]
        window: GradientWindow | None = own.get("window")
        flat = self._flat.get(first)
        if window is None or (flat is not None and flat.device != home(first)):
            state = None if window is None else window.state_dict()
            window = own["window"] = self.window(first, group)
            assert window is not None
            if state is not None:
                window.load_state_dict(state)
        return window

    def _gather(self, group: Group) -> Tensor:
        """Return all gradients of a group as one vector, zeros where there is none."""
        params = group["params"]
        flat, place = self._flat.get(params[0]), home(params[0])
        if flat is None or flat.device != place:
            dtype = torch.float64 if _dtype(group) == "float64" else torch.float32
            n = sum(p.numel() for p in params)
            flat = self._flat[params[0]] = torch.empty(n, dtype=dtype, device=place)
        for p, part in zip(params, _parts(flat, params), strict=True):
            if p.grad is None:
                part.zero_()
            else:
                part.copy_(p.grad)
        return flat


def _dtype(group: Group) -> str:
    if group["dtype"] is not None:
        return str(group["dtype"])
    double = any(computing(p) == torch.float64 for p in group["params"])
    return "float64" if double else "float32"


def _parts(vector: Tensor, params: list[Tensor]) -> list[Tensor]:
    """Return views of a vector in the shapes of the parameters."""
    parts = torch.split(vector, [p.numel() for p in params])
    return [part.view(p.shape) for part, p in zip(parts, params, strict=True)]
