"""M-FAC: natural gradient by the window of the last gradients."""

from typing import Any

from quadric import checks
from quadric.adapters.torch.optim.base import Descent, Group
from quadric.adapters.torch.optim.window import WindowMethod


class MFAC(Descent):
    """Descend along ``F^-1 g``, where F is the empirical Fisher matrix of the last gradients.

    Each parameter group has one window for all its parameters together:
    ``F = damping I + G^T G / count``, where the rows of G are its last `capacity` gradients.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or groups, as for any torch optimizer.
    lr : float or Tensor, optional
        Learning rate.
    capacity : int, optional
        Gradients in the window; the paper has up to 1024. Each takes the memory of the parameters
        in `dtype`, and time in every step.
    damping : float, optional
        Added to the diagonal of F.
    momentum : float, optional
        ``b = momentum b + F^-1 g``, as in :class:`torch.optim.SGD`.
    momentum_in : {"update", "window"}, optional
        "update" keeps the vector b. "window" applies today's ``F^-1`` to the momentum of the
        gradients: it is a combination of rows of G, so it needs no vector and costs nothing extra;
        it ends at the oldest gradient in the window.
    weight_decay : float, optional
        Decoupled from the gradient, as in :class:`torch.optim.AdamW`.
    dtype : {"float32", "bfloat16", "float16", "float64"}, optional
        Type of the stored gradients; sums are float32 or better whatever it is. None is float64
        for a group with float64 parameters, else float32.
    normalize : {"count", "capacity", "sum"}, optional
        Divisor of ``G^T G``: the gradients there are, the window's capacity (as in the reference
        implementation, whose window starts full of zeros), or 1.
    maximize : bool, optional
        Go uphill.
    save_curvature : bool, optional
        Whether :meth:`state_dict` has the windows in it. Without them, training goes on from an
        empty window.

    Raises
    ------
    ValueError, TypeError
        If an option is out of range, or a parameter is not a dense real tensor.

    Notes
    -----
    A step reads the window twice and writes one row. A parameter without a gradient stays as it
    is, and counts as one with gradient 0 in the window. Compared with the reference
    implementation, momentum sums instead of averaging (its `lr` is ours divided by
    ``1 - momentum``), and the weight decay is no part of the gradient.

    On a GPU that the CUDA kernels can be used on, the window is there too, with the first parameter
    of its group, and a step does not wait. Gradients are not looked at for NaN and Inf: as with
    torch's own optimizers they make weights NaN, here until the window has forgotten them, and so
    does a `damping` that is too small for float64. The passes can be captured in a CUDA graph but
    the step cannot: its place in the window is decided on the host.

    References
    ----------
    Frantar, Kurtic, Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
    Information", NeurIPS 2021.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch.optim import MFAC
    >>> A = torch.diag(torch.tensor([1.0, 100.0]))
    >>> x = torch.ones(2, requires_grad=True)
    >>> optimizer = MFAC([x], lr=1.0, capacity=8, damping=1.0)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     (x @ A @ x / 2).backward()
    ...     optimizer.step()
    >>> bool(x.abs().max() < 0.01)
    True
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        *,
        capacity: int = 64,
        damping: float = 1e-5,
        momentum: float = 0.0,
        momentum_in: str = "update",
        weight_decay: float = 0.0,
        dtype: str | None = None,
        normalize: str = "count",
        maximize: bool = False,
        save_curvature: bool = True,
    ) -> None:
        options = {
            "lr": lr,
            "capacity": capacity,
            "damping": damping,
            "momentum": momentum,
            "momentum_in": momentum_in,
            "weight_decay": weight_decay,
            "dtype": dtype,
            "normalize": normalize,
            "maximize": maximize,
        }
        super().__init__(params, WindowMethod(), options, save_curvature)

    def _check_options(self, group: Group) -> None:
        checks.choice(group["momentum_in"], "momentum_in", ("update", "window"))
        super()._check_options(group)
