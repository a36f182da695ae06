"""The preconditioners of M-FAC and MKOR on their own, in front of any optimizer."""

from typing import Any

from torch import nn

from quadric import checks
from quadric.adapters.torch.optim.base import Group, Method, PreconditionedOptimizer
from quadric.adapters.torch.optim.kronecker import KroneckerMethod
from quadric.adapters.torch.optim.window import WindowMethod

METHODS = ("mfac", "mkor")


class Preconditioner(PreconditionedOptimizer):
    """Put the preconditioned gradients in the place of the gradients.

    Its :meth:`step` comes between the backward pass and the step of another optimizer: it writes
    to ``p.grad`` and leaves the parameters alone. Otherwise it is used as an optimizer is: it has
    parameter groups and a state.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or groups, as for any torch optimizer.
    method : {"mfac", "mkor"}, optional
        See :class:`MFAC` and :class:`MKOR`.
    model : torch.nn.Module, optional
        Where the parameters are from; "mkor" needs it.
    save_curvature : bool, optional
        Whether :meth:`state_dict` has the windows or factors in it.
    **options
        Of the method. "mfac" has `capacity`, `damping`, `dtype` and `normalize`; "mkor" has
        `decay`, `rule`, `update_every`, `norm_bound`, `blend`, `max_size` and `first_order`. They
        mean what they do in the optimizers, and may differ between groups.

    Notes
    -----
    On a GPU, and in a CUDA graph, it is as the optimizer of its method.

    Raises
    ------
    ValueError, TypeError
        If an option is unknown or out of range, or a parameter is not a dense real tensor.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch.optim import Preconditioner
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(4, 1)
    >>> preconditioner = Preconditioner(model.parameters(), "mkor", model=model)
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> loss = model(torch.randn(8, 4)).square().mean()
    >>> loss.backward()
    >>> preconditioner.step()
    >>> _ = optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        method: str = "mfac",
        *,
        model: nn.Module | None = None,
        save_curvature: bool = True,
        **options: Any,
    ) -> None:
        checks.choice(method, "method", METHODS)
        how: Method = WindowMethod() if method == "mfac" else KroneckerMethod(model)
        for name in options:
            if name not in how.options:
                known = ", ".join(how.options)
                raise TypeError(f"method {method!r} must have options among {known}; got {name!r}")
        super().__init__(params, how, options, save_curvature)

    def _check_options(self, group: Group) -> None:
        self._method.check(group)

    def _update(self, group: Group) -> None:
        for p, direction in self._method.directions(group, self.state):
            if p.grad is not None and p.grad is not direction:
                p.grad.copy_(direction)
