"""Natural GaLore: Adam on natural gradients in a subspace."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadric import checks
from quadric.adapters.torch.capture import home, runs_on_gpu
from quadric.adapters.torch.optim.base import (
    CurvatureOptimizer,
    Group,
    computing,
    decay_weights,
    go,
)
from quadric.woodbury import GradientWindow


class NaturalGaLore(CurvatureOptimizer):
    """Adam in a low-rank subspace of each matrix's gradients, on natural gradients there.

    A gradient of shape (m, n) is projected on its leading `rank` singular vectors, on the side of
    the shorter of m and n, as they were at the last refresh. With the window G of the last
    `history` projected gradients and ``F = damping I + G^T G``, Adam's moments are those of
    ``F^-1 g``, and its step is projected back. Parameters that are not matrices, or have a side no
    longer than `rank`, take the step of AdamW.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or groups, as for any torch optimizer.
    lr : float or Tensor, optional
        Learning rate.
    rank : int or None, optional
        Dimension of the subspace. None is AdamW.
    update_every : int, optional
        Steps from one refresh of the subspace to the next.
    scale : float, optional
        Factor on the steps that were projected back.
    history : int, optional
        Gradients in the window of each matrix.
    damping : float, optional
        Added to the diagonal of F.
    on_refresh : {"clear", "rotate"}, optional
        What becomes of the window: it starts anew, or its gradients are expressed in the new
        subspace. Adam's moments are kept as they are, as GaLore does; no singular vector is at an
        obtuse angle to the one whose moments it takes over.
    betas : (float, float), optional
        Of Adam's moments.
    eps : float, optional
        Of Adam.
    weight_decay : float, optional
        Decoupled from the gradient, as in :class:`torch.optim.AdamW`.
    maximize : bool, optional
        Go uphill.
    save_curvature : bool, optional
        Whether :meth:`state_dict` has the windows in it. Without them, training goes on from
        empty windows.

    Raises
    ------
    ValueError, TypeError
        If an option is out of range, or a parameter is not a dense real tensor.

    Notes
    -----
    On a GPU that the CUDA kernels can be used on, windows are there too and a step does not wait,
    but for one that refreshes a subspace: the singular value decomposition does. Gradients are not
    looked at for NaN and Inf, which make weights NaN as with torch's own optimizers. Steps cannot
    be captured in a CUDA graph.

    References
    ----------
    Das, "Natural GaLore: Accelerating GaLore for memory-efficient LLM Training and Fine-tuning",
    2024. Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
    ICML 2024.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch.optim import NaturalGaLore
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(16, 32)
    >>> optimizer = NaturalGaLore(model.parameters(), lr=0.01, rank=4, update_every=10)
    >>> loss = model(torch.randn(8, 16)).square().mean()
    >>> loss.backward()
    >>> optimizer.step()
    >>> optimizer.state[model.weight]["exp_avg"].shape
    torch.Size([32, 4])
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        *,
        rank: int | None = 128,
        update_every: int = 200,
        scale: float = 0.25,
        history: int = 20,
        damping: float = 1e-3,
        on_refresh: str = "clear",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
        save_curvature: bool = True,
    ) -> None:
        options = {
            "lr": lr,
            "rank": rank,
            "update_every": update_every,
            "scale": scale,
            "history": history,
            "damping": damping,
            "on_refresh": on_refresh,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, options, save_curvature)

    def _check_options(self, group: Group) -> None:
        checks.real(group["lr"], "lr", low=0)
        if group["rank"] is not None:
            checks.integer(group["rank"], "rank", low=1)
        checks.integer(group["update_every"], "update_every", low=1)
        checks.real(group["scale"], "scale", low=0)
        checks.integer(group["history"], "history", low=1)
        checks.positive(group["damping"], "damping")
        checks.choice(group["on_refresh"], "on_refresh", ("clear", "rotate"))
        betas = tuple(group["betas"])
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {betas}")
        checks.real(group["eps"], "eps", low=0)
        checks.real(group["weight_decay"], "weight_decay", low=0)
        checks.choice(group["maximize"], "maximize", (True, False))

    def _host_decides(self) -> str | None:
        return "subspaces, places in windows and the corrections of Adam's moments"

    def _shapes(self, p: Tensor, group: Group) -> dict[str, tuple[int, ...]]:
        shape, shapes = tuple(p.shape), {}
        if _is_projected(p, group):
            rank, (rows, columns) = group["rank"], shape
            shape = (rows, rank) if rows >= columns else (rank, columns)
            shapes["basis"] = (min(rows, columns), rank)
        return {**shapes, "exp_avg": shape, "exp_avg_sq": shape}

    def _window(self, p: Tensor, group: Group) -> GradientWindow | None:
        if not _is_projected(p, group):
            return None
        return GradientWindow(
            math.prod(self._shapes(p, group)["exp_avg"]),
            capacity=group["history"],
            damping=group["damping"],
            dtype=str(computing(p)).removeprefix("torch."),
            normalize="sum",
            check_finite=not runs_on_gpu(p, None),
        )

    def _update(self, group: Group) -> None:
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            state["step"] = state.get("step", 0) + 1
            gradient = p.grad.to(computing(p))
            if group["maximize"]:  # now, because the SVD of -g has other roundings than that of g
                gradient = -gradient
            if _is_projected(p, group):
                if (state["step"] - 1) % group["update_every"] == 0:
                    self._refresh(p, gradient, group)
                if "window" not in state:
                    state["window"] = self._window(p, group)
                low = _project(gradient, state["basis"])
                state["window"].damping = group["damping"]
                natural = state["window"].push_and_solve(low.reshape(-1).to(home(p)))
                update = _adam(natural.view(low.shape).to(p.device), group, state)
                update = _project_back(update, state["basis"]).mul_(group["scale"])
            else:
                update = _adam(gradient, group, state)
            decay_weights(p, group)
            go(p, update, group, -1)

    def _refresh(self, p: Tensor, gradient: Tensor, group: Group) -> None:
        """Take the leading singular vectors of today's gradient as the basis."""
        state = self.state[p]
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        basis = (vh.mT if _is_tall(gradient) else u)[:, : group["rank"]].contiguous()
        before, state["basis"] = state.get("basis"), basis
        if before is not None:  # signs are arbitrary, but the moments go with the old ones
            basis.mul_(torch.where((before * basis).sum(0) < 0, -1.0, 1.0))
        window = state.pop("window", None)
        if before is None or window is None or group["on_refresh"] == "clear":
            return
        state["window"] = self._window(p, group)
        content = window.state_dict()
        for row in np.roll(content["rows"], -content["head"], axis=0):  # the oldest first
            low = torch.from_numpy(row).view(state["exp_avg"].shape).to(p.device)
            turned = _project(_project_back(low, before), basis)
            state["window"].push(turned.reshape(-1).to(home(p)))


def _is_projected(p: Tensor, group: Group) -> bool:
    return p.ndim == 2 and group["rank"] is not None and min(p.shape) > group["rank"]


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] >= matrix.shape[1]


def _project(gradient: Tensor, basis: Tensor) -> Tensor:
    return gradient @ basis if _is_tall(gradient) else basis.mT @ gradient


def _project_back(low: Tensor, basis: Tensor) -> Tensor:
    # The projected side has `rank` entries; a basis is taller than that.
    return low @ basis.mT if low.shape[1] == basis.shape[1] else basis @ low


def _adam(gradient: Tensor, group: Group, state: dict[str, Any]) -> Tensor:
    """Take up a gradient in the moments, and return the step for a learning rate of 1."""
    if "exp_avg" not in state:
        state["exp_avg"] = torch.zeros_like(gradient)
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    beta1, beta2 = group["betas"]
    mean: Tensor = state["exp_avg"].lerp_(gradient, 1 - beta1)
    square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    correction1, correction2 = (1 - beta ** state["step"] for beta in (beta1, beta2))
    denominator = square.sqrt().div_(math.sqrt(correction2)).add_(group["eps"])
    return mean.div(denominator).div_(correction1)
