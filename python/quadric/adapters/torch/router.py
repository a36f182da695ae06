"""A mixture-of-experts layer whose experts are in balance by construction."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy.sparse import csc_array
from torch import Tensor, nn

from quadric import checks, device
from quadric.adapters.torch.capture import runs_on_gpu, to_cpu
from quadric.transport.laplacian import pull_back, pull_back_there
from quadric.transport.routing import EXPERTS, gates_there, route


@dataclass(frozen=True, slots=True, eq=False)
class RouterReport:
    """What a :class:`SparseRouter` did with the last batch.

    Attributes
    ----------
    counts : torch.Tensor, shape (experts,)
        Tokens of each expert.
    dropped : torch.Tensor
        Number of tokens that take part and that no expert got.
    marginal_error : torch.Tensor
        By how much gates miss the sums they should have, added up, per token.
    converged : torch.Tensor of bool
        Whether that is within the tolerance. Capacities and loads hold in any case.
    """

    counts: Tensor
    dropped: Tensor
    marginal_error: Tensor
    converged: Tensor


@torch.library.custom_op("quadric::route_tokens", mutates_args=())
def route_tokens(
    scores: Tensor,
    mask: Tensor | None,
    capacity: int,
    reg: float,
    tol: float,
    max_iter: int,
    solved: bool,
    capacity_factor: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gates of :func:`quadric.transport.route`, its `tight` and its error.

    `solved` tells the derivative: with f solved for, or left alone. A capacity of 0 follows from
    the factor and the tokens that take part, on the GPU that they are on.
    """
    if _there(scores):
        found_there = gates_there(
            device.wrap(scores.detach()),
            None if mask is None else device.wrap(mask.contiguous()),
            capacity=capacity,
            capacity_factor=capacity_factor,
            reg=reg,
            tol=tol,
            max_iter=max_iter,
        )
        gates, tight, error = (a.finished() for a in found_there)
        return gates, tight, error.reshape(())
    routing = route(
        to_cpu(scores.detach()),
        capacity,
        reg=reg,
        mask=None if mask is None else to_cpu(mask),
        tol=tol,
        max_iter=max_iter,
        warn=False,
    )
    error = torch.tensor(routing.marginal_error, dtype=torch.float64)
    found = routing.gates(), routing.tight, error
    gates, tight, error = (t.to(scores.device) for t in found)
    return gates, tight, error


@route_tokens.register_fake
def _(
    scores: Tensor,
    mask: Tensor | None,
    capacity: int,
    reg: float,
    tol: float,
    max_iter: int,
    solved: bool,
    capacity_factor: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(scores, memory_format=torch.contiguous_format),
        scores.new_empty(scores.shape[:1], dtype=torch.bool),
        scores.new_empty((), dtype=torch.float64),
    )


@torch.library.custom_op("quadric::route_tokens_backward", mutates_args=())
def route_tokens_backward(gradient: Tensor, gates: Tensor, free: Tensor, reg: float) -> Tensor:
    """Return the derivative in the scores; see :meth:`quadric.transport.Routing.vjp`."""
    if _there(gates):
        given = gradient.to(gates.dtype), free.contiguous()
        cotangent_there, free_there = (device.wrap(t.detach()) for t in given)
        there = pull_back_there(device.wrap(gates.detach()), cotangent_there, reg, free_there)
        result: Tensor = there.finished()
        return result
    matrix = csc_array(to_cpu(gates).numpy())
    cotangent = to_cpu(gradient).double().numpy()
    found = -pull_back(matrix, cotangent, reg, to_cpu(free).numpy())
    return torch.from_numpy(found).to(gates)


@route_tokens_backward.register_fake
def _(gradient: Tensor, gates: Tensor, free: Tensor, reg: float) -> Tensor:
    return gates.new_empty(gates.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    reg, solved = inputs[3], inputs[6]
    gates, tight, error = output
    ctx.save_for_backward(gates, tight if solved else torch.zeros_like(tight))
    ctx.reg = reg
    ctx.mark_non_differentiable(tight, error)


def _backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gates, free = ctx.saved_tensors
    return route_tokens_backward(gradient, gates, free, ctx.reg), *[None] * (
        len(ctx.needs_input_grad) - 1
    )


def _there(scores: Tensor) -> bool:
    """Say whether scores are routed on the GPU that they are on."""
    return runs_on_gpu(scores, None) and scores.shape[1] <= EXPERTS and scores.numel() > 0


route_tokens.register_autograd(_backward, setup_context=_setup)


class SparseRouter(nn.Module):
    """A mixture of experts in which each expert gets at most `capacity` tokens and the same load.

    A linear router scores tokens against experts, :func:`quadric.transport.route` makes sparse
    gates of the scores, and a token's output is the sum of its experts' outputs times their gates.
    No auxiliary loss is needed to keep the experts in balance.

    Parameters
    ----------
    dim : int
        Size of a token.
    experts : iterable of torch.nn.Module
        Each maps (tokens, dim) to (tokens, size), the same size for all.
    capacity : int, optional
        Most tokens per expert in a batch.
    capacity_factor : float, optional
        Without `capacity`: this times the tokens of the batch, divided by the number of experts and
        rounded up. From 1 on no token need be dropped.
    reg : float, optional
        Above 0, in units of the scores; the larger, the more experts share a token.
    gates : {"plan", "softmax"}, optional
        Weights of the outputs: the transport plan, whose weights sum to 1 over the experts of a
        token; or the softmax of the scores over all experts at the places of the plan, which only
        selects then.
    derivative : {"solved", "fixed"}, optional
        Of the plan in the scores, see :meth:`quadric.transport.Routing.vjp`. "solved" is exact:
        the gates of a token keep their sum, so that one with a single expert teaches the router
        nothing. "fixed" holds the tokens' potentials and lets an expert's tokens compete.
    router : torch.nn.Module, optional
        Maps (tokens, dim) to scores (tokens, experts); by default a linear layer without bias.
    tol : float, optional
        Error of the gates' sums per token at which the iterations end.
    max_iter : int, optional
        Most iterations; gates are useful long before they are exact.

    Attributes
    ----------
    report : RouterReport or None
        About the last batch.

    Raises
    ------
    ValueError, TypeError
        If an option is out of range.

    Notes
    -----
    Experts choose among the tokens of a whole batch, so outputs depend on the batch, and a
    sequence's later tokens on the choice of its earlier ones. The plan is
    ``(f_i + g_j + s_ij) / reg`` where it is not 0, piecewise linear in the scores s: its derivative
    subtracts a least-squares fit ``u_i + v_j`` on the kept places and divides by `reg`; places that
    are not kept get none. The experts get theirs through the weighted sum. Routing is done in
    float32 or float64.

    A layer on a GPU routes there (see :func:`quadric.transport.route`), and the host waits for
    nothing: forward and backward can be captured in a CUDA graph. So each expert is given as many
    tokens as it may have, those beyond its own with weight 0, scores that are not finite put NaN
    into the output instead of an error, and a batch without a token that takes part gives zeros.

    References
    ----------
    T. Liu, J. Puigcerver, M. Blondel, "Sparsity-constrained optimal transport", ICLR 2023,
    arXiv:2209.15466.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch import SparseRouter
    >>> _ = torch.manual_seed(0)
    >>> layer = SparseRouter(8, [torch.nn.Linear(8, 8) for _ in range(4)])
    >>> y = layer(torch.randn(2, 32, 8))
    >>> y.shape, int(layer.report.counts.max()), int(layer.report.dropped)
    (torch.Size([2, 32, 8]), 20, 0)
    >>> y.sum().backward()
    """

    report: RouterReport | None

    def __init__(
        self,
        dim: int,
        experts: Iterable[nn.Module],
        *,
        capacity: int | None = None,
        capacity_factor: float = 1.25,
        reg: float = 1.0,
        gates: Literal["plan", "softmax"] = "plan",
        derivative: Literal["solved", "fixed"] = "solved",
        router: nn.Module | None = None,
        tol: float = 1e-4,
        max_iter: int = 50,
    ) -> None:
        super().__init__()
        self.dim = checks.integer(dim, "dim", low=1)
        self.experts = nn.ModuleList(experts)
        if not self.experts:
            raise ValueError("experts must have at least one module, got none")
        self.capacity = None if capacity is None else checks.integer(capacity, "capacity", low=1)
        self.capacity_factor = checks.positive(capacity_factor, "capacity_factor")
        self.reg = checks.positive(reg, "reg")
        self.gates = checks.choice(gates, "gates", ("plan", "softmax"))
        self.derivative = checks.choice(derivative, "derivative", ("solved", "fixed"))
        self.router = nn.Linear(dim, len(self.experts), bias=False) if router is None else router
        self.tol = checks.real(tol, "tol", low=0.0)
        self.max_iter = checks.integer(max_iter, "max_iter", low=1)
        self.report = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mixture for every token.

        Parameters
        ----------
        x : torch.Tensor, shape (..., dim)
        mask : torch.Tensor of bool, shape (...), optional
            Tokens that take part; the output of the others is 0.

        Returns
        -------
        torch.Tensor, shape (..., size)
            0 for dropped tokens: add it to x.

        Raises
        ------
        ValueError
            If a shape does not fit, there is no token, or a score is not finite.
        """
        if x.ndim < 1 or x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape (..., {self.dim}), got {tuple(x.shape)}")
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(f"mask must have shape {tuple(x.shape[:-1])}, got {tuple(mask.shape)}")
        tokens = x.reshape(-1, self.dim)
        taking = None if mask is None else mask.reshape(-1)
        scores = self.router(tokens)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        weights = self._weights(scores, taking)
        places: Tensor | None = None
        if _there(scores):
            room = min(self._capacity(len(tokens)), len(tokens))
            places = weights.detach().topk(room, dim=0, sorted=False).indices
        out: Tensor | None = None
        for e, expert in enumerate(self.experts):
            chosen = weights[:, e].nonzero().squeeze(1) if places is None else places[:, e]
            y = expert(tokens[chosen])
            if out is None:
                out = y.new_zeros(len(tokens), y.shape[-1])
            out = out.index_add(0, chosen, weights[chosen, e, None].to(y.dtype) * y)
        assert out is not None
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def extra_repr(self) -> str:
        """Return the options, for ``repr``."""
        size = (
            f"capacity_factor={self.capacity_factor:g}"
            if self.capacity is None
            else f"capacity={self.capacity}"
        )
        return f"dim={self.dim}, {size}, reg={self.reg:g}, gates={self.gates!r}"

    def _capacity(self, tokens: int) -> int:
        """Return the most tokens per expert where so many take part."""
        shared = math.ceil(self.capacity_factor * tokens / len(self.experts) - 1e-9)
        return self.capacity or max(shared, 1)

    def _weights(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        T = len(scores)
        taking: int | Tensor = T
        if mask is not None:
            taking = mask.sum() if _there(scores) else int(mask.sum())
        if isinstance(taking, Tensor):
            capacity = self.capacity or 0  # found where the tokens are
        elif taking == 0:
            raise ValueError("x must have at least one token that takes part, got none")
        else:
            capacity = self._capacity(taking)
        solved = self.derivative == "solved"
        factor = self.capacity_factor
        found: tuple[Tensor, ...] = route_tokens(
            scores, mask, capacity, self.reg, self.tol, self.max_iter, solved, factor
        )
        plan, _, error = found
        with torch.no_grad():
            kept = plan > 0
            self.report = RouterReport(
                kept.sum(dim=0), taking - kept.any(dim=1).sum(), error, error <= self.tol
            )
        if self.gates == "softmax":
            return torch.softmax(scores, dim=1) * kept
        return plan
