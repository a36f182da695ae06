"""MKOR: rank-one updates of Kronecker factors, and MKOR-H, which stops when they no longer pay."""

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from quadric import checks
from quadric.adapters.torch.optim.base import Descent, Group
from quadric.adapters.torch.optim.kronecker import KroneckerMethod

SWITCHES = ("never", "mkor-h")


class MKOR(Descent):
    """Descend along ``J_out grad J_in``, where the J are inverse Kronecker factors of a layer.

    With the mean a of a layer's inputs and the sum g of its output gradients over the batch,
    ``L_in <- decay L_in + (1 - decay) a a^T`` and ``L_out`` likewise with g; ``J = L^-1`` is kept
    instead of L. The direction is scaled to the norm of the gradient. Parameters that are no
    weight of a layer (biases, norms, embeddings) take the first-order step: SGD with momentum.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or groups, as for any torch optimizer.
    lr : float or Tensor, optional
        Learning rate.
    model : torch.nn.Module
        Where the parameters are from. Its Linear, Conv2d (one group) and Conv1D (Hugging Face)
        layers are watched through hooks, which go when the optimizer goes.
    momentum : float, optional
        As in :class:`torch.optim.SGD`.
    weight_decay : float, optional
        Decoupled from the gradient, as in :class:`torch.optim.AdamW`.
    decay : float, optional
        Between 0 and 1.
    rule : {"exact", "mkor", "published"}, optional
        See :func:`quadric.woodbury.rank_one_inverse_update`.
    update_every : int, optional
        Steps from one update of the factors to the next.
    norm_bound : float or None, optional
        A J whose largest absolute row sum is beyond it is mixed with the identity.
    blend : float, optional
        Share of J in that mixture.
    max_size : int, optional
        Layers with more inputs or outputs take the first-order step.
    first_order : bool, optional
        Whether layers, too, take the first-order step; it may be set in a group at any time, and
        is what `switch` sets.
    switch : {"never", "mkor-h"}, optional
        "mkor-h" sets `first_order` for good, in all groups, once the loss falls too slowly: it is
        averaged over `switch_window` steps, and by how much the average falls, relative to itself,
        is compared with the best that it ever was.
    switch_window : int, optional
        Steps that are averaged.
    switch_ratio : float, optional
        Share of the best rate below which the switch is made.
    maximize : bool, optional
        Go uphill.
    save_curvature : bool, optional
        Whether :meth:`state_dict` has the factors in it. Without them, training goes on from
        identities.

    Raises
    ------
    ValueError, TypeError
        If an option is out of range, or a parameter is not a dense real tensor.

    Notes
    -----
    The statistics are those of all backward passes since the last step (or :meth:`zero_grad`), so
    gradients may be accumulated. They are this process's own. Output gradients are taken as they
    come, with the factor of a gradient scaler on them if there is one.

    On a GPU that the CUDA kernels can be used on, factors are there too, and neither the hooks nor
    a step wait. Gradients and statistics are not looked at for NaN and Inf: as with torch's own
    optimizers they make weights NaN, and a factor whose update is not positive definite stays as it
    is. `switch` reads the loss at the end of each window only.

    **CUDA graphs.** Forward pass, backward pass and step can be captured together, after a few
    steps as usual. A replay does what the captured step did: it updates the factors if that one
    was due to, so with ``update_every=1`` every time, and else takes them as they are. A learning
    rate that is a tensor on the GPU is read anew by every replay. The switch cannot be captured.

    References
    ----------
    Mozaffari, Li, Zhang, Dehnavi, "MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using
    Rank-1 Updates", NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch.optim import MKOR
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(4, 1)
    >>> x = torch.randn(64, 4)
    >>> y = x @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]])
    >>> optimizer = MKOR(model.parameters(), lr=0.05, model=model)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.mse_loss(model(x), y)
    ...     loss.backward()
    ...     optimizer.step()
    >>> bool(loss < 1e-3)
    True
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-2,
        *,
        model: nn.Module,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decay: float = 0.95,
        rule: str = "exact",
        update_every: int = 10,
        norm_bound: float | None = 100.0,
        blend: float = 0.9,
        max_size: int = 8192,
        first_order: bool = False,
        switch: str = "never",
        switch_window: int = 100,
        switch_ratio: float = 0.1,
        maximize: bool = False,
        save_curvature: bool = True,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decay": decay,
            "rule": rule,
            "update_every": update_every,
            "norm_bound": norm_bound,
            "blend": blend,
            "max_size": max_size,
            "first_order": first_order,
            "switch": switch,
            "switch_window": switch_window,
            "switch_ratio": switch_ratio,
            "maximize": maximize,
        }
        super().__init__(params, KroneckerMethod(model), options, save_curvature)

    _loss: Any = None

    def record_loss(self, loss: Any) -> None:
        """Tell the switch the loss whose gradients the next step takes, where it has no closure.

        Parameters
        ----------
        loss : float or Tensor
        """
        self._loss = loss.detach() if isinstance(loss, Tensor) else loss

    def _check_options(self, group: Group) -> None:
        super()._check_options(group)
        checks.choice(group["switch"], "switch", SWITCHES)
        checks.integer(group["switch_window"], "switch_window", low=1)
        checks.real(group["switch_ratio"], "switch_ratio", low=0)

    def _before_step(self, loss: Any) -> None:
        super()._before_step(loss)
        loss, self._loss = self._loss if loss is None else loss, None
        for group in self.param_groups:
            if group["switch"] == "never" or group["first_order"] or not group["params"]:
                continue
            if loss is None:
                raise ValueError("switch 'mkor-h' must know the loss: record_loss() or a closure")
            if isinstance(loss, Tensor) and loss.is_cuda:  # added up there, so that nothing waits
                if torch.cuda.is_current_stream_capturing():
                    raise RuntimeError("switch 'mkor-h' cannot be captured in a CUDA graph")
                value: Any = loss.detach().double().reshape(())
            else:
                value = checks.real(loss, "loss", low=-math.inf)
            self._watch(group, -value if group["maximize"] else value)

    def _watch(self, group: Group, loss: Any) -> None:
        """Take up the loss of a step, and switch if the mean over a window falls too slowly."""
        own = self.state[group["params"][0]].setdefault("losses", {"sum": 0.0, "count": 0})
        own["sum"] = own["sum"] + loss
        own["count"] += 1
        if own["count"] < group["switch_window"]:
            return
        total, count = own["sum"], own["count"]
        own["sum"], own["count"] = 0.0, 0
        mean = checks.real(total, "sum of the losses", low=-math.inf) / count
        if "mean" in own:
            rate = (own["mean"] - mean) / max(abs(own["mean"]), sys.float_info.min)
            if rate < group["switch_ratio"] * own.get("best", -math.inf):
                group["first_order"] = True
            own["best"] = max(rate, own.get("best", 0.0))
        own["mean"] = mean
