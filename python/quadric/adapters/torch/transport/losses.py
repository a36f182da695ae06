"""Optimal transport as a loss."""

from typing import Any

import torch
from torch import Tensor, nn

from quadric.adapters.torch.transport.operators import ot_value
from quadric.transport.problem import Unbalanced
from quadric.transport.run import Method
from quadric.transport.solve_points import PointCost


def ot_loss(
    x: Tensor,
    y: Tensor,
    reg: float,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    cost: PointCost = "sqeuclidean",
    unbalanced: Unbalanced = None,
    method: Method = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Tensor:
    """Return the value of the best transport from x to y: ``min <C, P> + reg sum P (log P - 1)``.

    Parameters
    ----------
    x, y : Tensor, shape (n, d) and (m, d) or (B, n, d) and (B, m, d)
        Points of one dtype; those of float16 and bfloat16 are computed with in float32.
    reg : float
        Regularization above 0, in units of the cost.
    a, b : Tensor, shape (n,) and (m,), or (B, n) and (B, m), optional
        Masses, none negative, of the same sum; uniform with sum 1 if they are not given.
    cost : {"sqeuclidean", "euclidean", "cityblock", "cosine"}, optional
        ``sum (x - y)^2``, its root, ``sum |x - y|``, or ``1 - x.y / (|x| |y|)``.
    unbalanced : float or pair of float, optional
        Weights of KL terms that replace the constraints of the masses.
    method, tol, max_iter, backend, n_threads : optional
        As in :func:`quadric.transport.solve_points`.

    Returns
    -------
    Tensor, shape () or (B,)
        The value, of the dtype of `x`; differentiable once in x, y, a and b.

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not reached.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, a mass is negative, the sums of the masses
        differ, or an option has no such value.
    TypeError
        If a dtype does not fit.

    See Also
    --------
    SinkhornDivergence : 0 for equal clouds, which this value is not.

    Notes
    -----
    The gradient is that of the envelope theorem, computed from the potentials in one pass over the
    pairs for each of x and y, without a matrix of their costs. Tensors on a GPU stay there; those
    on other devices are copied to the CPU, and the value and gradients back.

    **CUDA graphs.** Value and gradient can be captured, with `max_iter` given: nothing decides how
    long to go on but the tolerance, on the GPU, and nothing is checked or warned of, so run it
    once outside before. Small problems (up to about 200 x 200 in float32) are solved as outside;
    larger ones, and unbalanced ones, by plain iterations.

    **Masses.** Those of a balanced problem sum to the same, so the gradient in them is defined up
    to ``a' + c, b' - c``. What comes is the smallest, ``sum(a') = sum(b')``: right in every
    direction that keeps the sums equal, so also behind a softmax. A mass of 0 has gradient 0 (its
    derivative is -Inf), and so have its points, which may be padding.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch.transport import ot_loss
    >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64, requires_grad=True)
    >>> y = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    >>> ot_loss(x, y, reg=0.01).backward()
    >>> x.grad.round(decimals=6)  # 2 (x - y) / n
    tensor([[-3.],
            [-3.]], dtype=torch.float64)
    """
    x, y = _computing(x), _computing(y)
    a, b = (None if w is None else _computing(w) for w in (a, b))
    if unbalanced is None:
        rho = []
    else:
        rho = list(unbalanced) if isinstance(unbalanced, tuple | list) else [unbalanced]
    outputs = ot_value(x, y, a, b, reg, cost, rho, method, tol, max_iter, backend, n_threads)
    value: Tensor = outputs[0].to(x.dtype)
    return value


def monge_gap(
    x: Tensor,
    Tx: Tensor,
    reg: float,
    *,
    a: Tensor | None = None,
    cost: PointCost = "sqeuclidean",
    **options: Any,
) -> Tensor:
    """Return how much more a map costs than the best transport to where it leads.

    Parameters
    ----------
    x, Tx : Tensor, shape (n, d) or (B, n, d)
        Points and their images.
    reg, a, cost
        As in :func:`quadric.transport.monge_gap`, which has the definition.
    **options
        `method`, `tol`, `max_iter`, `backend` and `n_threads` of :func:`ot_loss`.

    Returns
    -------
    Tensor, shape () or (B,)
        The gap, differentiable once in x, Tx and a.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch.transport import monge_gap
    >>> x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> bool(monge_gap(x, x + 5, reg=1e-2) < 0.1 < monge_gap(x, -x, reg=1e-2))
    True
    """
    if x.shape != Tx.shape:
        raise ValueError(f"Tx must have the shape {tuple(x.shape)} of x, got {tuple(Tx.shape)}")
    best = ot_loss(x, Tx, reg, a=a, b=a, cost=cost, **options)
    costs = _paired(_computing(x), _computing(Tx), cost)
    if a is None:
        return costs.mean(-1) - best - reg
    return ((costs - reg) * _computing(a)).sum(-1).to(best.dtype) - best


class SinkhornDivergence(nn.Module):
    """``W(x, y) - W(x, x) / 2 - W(y, y) / 2`` with the W of :func:`ot_loss`: 0 for equal clouds.

    Parameters
    ----------
    reg, cost, method, tol, max_iter, backend, n_threads
        As in :func:`ot_loss`.

    See Also
    --------
    quadric.transport.sinkhorn_divergence : the same for arrays, with its definition.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch.transport import SinkhornDivergence
    >>> loss = SinkhornDivergence(reg=0.5)
    >>> x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> round(float(loss(x, x + 1.0)), 6)
    2.0
    """

    def __init__(
        self,
        reg: float,
        cost: PointCost = "sqeuclidean",
        *,
        method: Method = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        super().__init__()
        self.reg = reg
        self.cost: PointCost = cost
        self.options: dict[str, Any] = {
            "method": method,
            "tol": tol,
            "max_iter": max_iter,
            "backend": backend,
            "n_threads": n_threads,
        }

    def forward(
        self, x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None
    ) -> Tensor:
        """Return the divergence of clouds with masses `a` and `b`; shapes as in :func:`ot_loss`."""

        def value(p: Tensor, q: Tensor, v: Tensor | None, w: Tensor | None) -> Tensor:
            return ot_loss(p, q, self.reg, a=v, b=w, cost=self.cost, **self.options)

        return value(x, y, a, b) - (value(x, x, a, a) + value(y, y, b, b)) / 2

    def extra_repr(self) -> str:
        """Return what stands between the brackets of the module's description."""
        given = {"cost": self.cost, **self.options}
        return ", ".join(
            [f"reg={self.reg:g}", *(f"{k}={v!r}" for k, v in given.items() if v is not None)]
        )


def _computing(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _paired(x: Tensor, y: Tensor, cost: PointCost) -> Tensor:
    """Return the costs between points of the same index."""
    if cost == "cosine":
        return 1 - torch.cosine_similarity(x, y, dim=-1, eps=0.0)
    if cost == "sqeuclidean":
        return (x - y).square().sum(-1)
    distances: Tensor = torch.linalg.vector_norm(x - y, 1 if cost == "cityblock" else 2, dim=-1)
    return distances
