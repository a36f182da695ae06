"""What the optimizers share: checks, the frame of a step, and state that survives a checkpoint."""

import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from quadric import checks
from quadric.adapters.torch.capture import home, runs_on_gpu, to_cpu
from quadric.woodbury import GradientWindow

Group: TypeAlias = dict[str, Any]
"""Parameters, and the options that hold for them."""

State: TypeAlias = MutableMapping[Tensor, dict[str, Any]]

Directions: TypeAlias = Iterable[tuple[Tensor, Tensor]]
"""Parameters that have a gradient, and what takes its place."""

CURVATURE = ("window", "j_in", "j_out")
"""State that may take more memory than the model; it lives where the kernels work, see `home`."""


def computing(p: Tensor) -> torch.dtype:
    """Return the type in which the state of a parameter is kept."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


class CurvatureOptimizer(Optimizer):
    """A torch optimizer that checks before it changes anything, with state of its own type.

    Where the kernels work on a GPU, nothing waits for it, and so nothing looks for NaN there.
    """

    def __init__(self, params: Any, defaults: Group, save_curvature: bool) -> None:
        self.save_curvature = checks.choice(save_curvature, "save_curvature", (True, False))
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients again, and returns the loss.

        Returns
        -------
        object
            What `closure` returned; None without one.

        Raises
        ------
        ValueError
            If a gradient holds NaN or Inf; nothing has been changed then. Those on a GPU that the
            kernels work on are not looked at.
        TypeError
            If a gradient is sparse; likewise.
        RuntimeError
            If a CUDA graph is being captured that could not repeat the step.
        """
        self._check_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._before_step(loss)
        for group in self.param_groups:
            self._update(group)
        return loss

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters; the dict may have options that hold for them alone.

        Raises
        ------
        ValueError, TypeError
            If an option is out of range or a parameter is not a dense real tensor; the optimizer
            is as before then.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_options(group)
            for p, name in self._named(group):
                _check_parameter(p, name)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return options and state as plain numbers and tensors.

        The tensors share memory with the optimizer, but for windows on a GPU, which are copied to
        the CPU. Past gradients and factors are left out where ``save_curvature`` is False.
        """
        result = super().state_dict()
        left_out = () if self.save_curvature else CURVATURE
        result["state"] = {
            i: {k: _to_plain(v) for k, v in state.items() if k not in left_out}
            for i, state in result["state"].items()
        }
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned, bit for bit.

        What was left out there starts anew. The state may come from another device; it goes to
        that of the parameters.

        Raises
        ------
        ValueError
            If it is the state of other parameters or of another optimizer; nothing has been
            changed then.
        """
        before = self.param_groups, self.state
        saved: dict[str, Any] = {}

        # torch casts what it loads to the type of the parameters, so it gets nothing to load.
        def take(_: Optimizer, content: dict[str, Any]) -> dict[str, Any]:
            for group in content["param_groups"]:
                self._check_saved_options(group)
            saved.update(content)
            return {**content, "state": {}}

        def fill(_: Optimizer) -> None:
            for old, group in zip(saved["param_groups"], self.param_groups, strict=True):
                for i, (p, name) in zip(old["params"], self._named(group), strict=True):
                    if i in saved["state"]:
                        self.state[p] = self._restored(saved["state"][i], p, name, group)

        handles = [
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(fill, prepend=True),
        ]
        try:
            super().load_state_dict(dict(state_dict))
        except Exception:
            self.param_groups, self.state = before
            raise
        finally:
            for handle in handles:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "save_curvature": self.save_curvature}

    def _check_capture(self) -> None:
        why = self._host_decides()
        if why is None or not any(p.is_cuda for g in self.param_groups for p in g["params"]):
            return
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"a step of {type(self).__name__} cannot be captured in a CUDA graph, because the "
                f"host decides on {why}: capture the passes, and call step() after each replay"
            )

    def _before_step(self, loss: Any) -> None:
        for group in self.param_groups:
            for p, name in self._named(group):
                if p.grad is not None:
                    _check_gradient(p.grad, f"gradient of parameter {name}")

    def _host_decides(self) -> str | None:
        """Return what keeps a step out of a CUDA graph, as :class:`Method` has it."""
        return None

    def _update(self, group: Group) -> None:
        raise NotImplementedError

    def _check_options(self, group: Group) -> None:
        raise NotImplementedError

    def _shapes(self, p: Tensor, group: Group) -> dict[str, tuple[int, ...]]:
        """Return the tensors that the state of `p` may have, and their shapes."""
        raise NotImplementedError

    def _window(self, p: Tensor, group: Group) -> GradientWindow | None:
        """Return an empty window for the state of `p`, None if that has no window."""
        raise NotImplementedError

    def _named(self, group: Group) -> list[tuple[Tensor, str]]:
        """Return the parameters of a group, and what messages call them."""
        params = group["params"]
        if "param_names" in group:
            return [(p, repr(name)) for p, name in zip(params, group["param_names"], strict=True)]
        number = next(i for i, g in enumerate(self.param_groups) if g is group)
        return [(p, f"{i} of group {number}") for i, p in enumerate(params)]

    def _check_saved_options(self, group: Group) -> None:
        for name in self.defaults:
            if name not in group and name != "differentiable":  # torch's own
                raise ValueError(f"state must be of {type(self).__name__}, got one without {name}")
        self._check_options(group)

    def _restored(self, saved: Group, p: Tensor, name: str, group: Group) -> dict[str, Any]:
        shapes = self._shapes(p, group)
        state: dict[str, Any] = {}
        for key, value in saved.items():
            if key == "window":
                window = self._window(p, group)
                if window is None:
                    raise ValueError(f"state of parameter {name} must have no window, got one")
                window.load_state_dict({k: _to_array(v) for k, v in value.items()})
                state[key] = window
            elif isinstance(value, Tensor):
                if key not in shapes:
                    raise ValueError(f"state of parameter {name} must have no {key}, got one")
                if tuple(value.shape) != shapes[key]:
                    raise ValueError(
                        f"{key} of parameter {name} must have shape {shapes[key]}, "
                        f"got {tuple(value.shape)}"
                    )
                place = home(p) if key in CURVATURE else p.device
                state[key] = value.to(place, copy=True)
            else:
                state[key] = copy.deepcopy(value)
        return state


class Method:
    """How the gradients of a parameter group become directions."""

    options: Mapping[str, Any]
    """Options that it reads from the group, with their defaults."""

    host_decides: str | None = None
    """What keeps a step out of a CUDA graph: replayed, it would do that as when it was captured."""

    def check(self, group: Group) -> None:
        """Check the options."""
        raise NotImplementedError

    def directions(self, group: Group, state: State) -> Directions:
        """Take up the gradients of a group, and yield the directions."""
        raise NotImplementedError

    def shapes(self, p: Tensor) -> dict[str, tuple[int, ...]]:
        """Return the tensors that the state of `p` may have, and their shapes."""
        return {}

    def window(self, p: Tensor, group: Group) -> GradientWindow | None:
        """Return an empty window for the state of `p`, None if that has no window."""
        return None

    def prepare(self, group: Group, state: State) -> None:
        """Make ready for the backward passes before the next step."""

    def check_statistics(self) -> None:
        """Refuse NaN and Inf in what has been noted since the last step."""

    def forget(self) -> None:
        """Drop what has been noted since the last step."""


class PreconditionedOptimizer(CurvatureOptimizer):
    """An optimizer whose directions come from a :class:`Method`."""

    def __init__(self, params: Any, method: Method, defaults: Group, save_curvature: bool) -> None:
        self._method = method
        super().__init__(params, {**method.options, **defaults}, save_curvature)

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        self._method.prepare(self.param_groups[-1], self.state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._prepare()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._method.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_method": self._method}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def _prepare(self) -> None:
        for group in self.param_groups:
            self._method.prepare(group, self.state)

    def _before_step(self, loss: Any) -> None:
        try:
            super()._before_step(loss)
            self._method.check_statistics()
        except (TypeError, ValueError):
            self._method.forget()
            raise

    def _host_decides(self) -> str | None:
        return self._method.host_decides

    def _shapes(self, p: Tensor, group: Group) -> dict[str, tuple[int, ...]]:
        return self._method.shapes(p)

    def _window(self, p: Tensor, group: Group) -> GradientWindow | None:
        return self._method.window(p, group)


class Descent(PreconditionedOptimizer):
    """Goes along the directions of a method as SGD goes along gradients."""

    def _check_options(self, group: Group) -> None:
        checks.real(group["lr"], "lr", low=0)
        checks.real(group["momentum"], "momentum", low=0, high=1)
        checks.real(group["weight_decay"], "weight_decay", low=0)
        checks.choice(group["maximize"], "maximize", (True, False))
        self._method.check(group)

    def _shapes(self, p: Tensor, group: Group) -> dict[str, tuple[int, ...]]:
        return {**super()._shapes(p, group), "momentum_buffer": tuple(p.shape)}

    def _update(self, group: Group) -> None:
        momentum = 0 if group.get("momentum_in") == "window" else group["momentum"]
        for p, direction in self._method.directions(group, self.state):
            decay_weights(p, group)
            if momentum != 0:
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p, dtype=computing(p))
                direction = state["momentum_buffer"].mul_(momentum).add_(direction)
            go(p, direction, group, 1 if group["maximize"] else -1)


def go(p: Tensor, direction: Tensor, group: Group, sign: int) -> None:
    """Add the direction times the learning rate and a sign."""
    lr = _rate(p, group)
    if isinstance(lr, Tensor):
        p.add_(direction * (sign * lr))
    else:
        p.add_(direction, alpha=sign * lr)


def decay_weights(p: Tensor, group: Group) -> None:
    """Shrink `p`, by `weight_decay` for a learning rate of 1 and apart from its gradient."""
    if group["weight_decay"] != 0:
        p.mul_(1 - _rate(p, group) * group["weight_decay"])


def _rate(p: Tensor, group: Group) -> Any:
    """Return the learning rate: a float, or a scalar on the GPU, which a graph reads anew."""
    lr = group["lr"]
    on_gpu = isinstance(lr, Tensor) and lr.is_cuda
    return lr.reshape(()).to(p.device) if on_gpu else float(lr)


def _check_parameter(p: Tensor, name: str) -> None:
    if p.layout != torch.strided:
        raise TypeError(f"parameter {name} must be dense, got {p.layout}")
    if p.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        got = str(p.dtype).removeprefix("torch.")
        raise TypeError(
            f"parameter {name} must be float16, bfloat16, float32 or float64, got {got}"
        )


def _check_gradient(gradient: Tensor, name: str) -> None:
    if gradient.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got {gradient.layout}")
    if not runs_on_gpu(gradient, None):
        checks.finite(checks.storage(to_cpu(gradient), name), name)


def _to_plain(value: Any) -> Any:
    """Turn a window into a dict of tensors, which torch.load reads without trusting the file."""
    if not isinstance(value, GradientWindow):
        return value
    state = value.state_dict()
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}


def _to_array(value: Any) -> Any:
    return to_cpu(value).numpy() if isinstance(value, Tensor) else value
