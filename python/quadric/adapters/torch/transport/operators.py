"""The value of a transport problem between points, and its derivative in them, as operators.

The loop that solves the problem is inside an operator, so that no graph goes through it: what is
kept for the gradient are the points and the potentials.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from quadric.adapters.torch.capture import home
from quadric.adapters.torch.transport import graphs
from quadric.transport import solve_points
from quadric.transport.derivatives import mass_gradients, point_gradient
from quadric.transport.run import Method
from quadric.transport.solve_points import PointCost, points_problem

Outputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("quadric::ot_value", mutates_args=())
def ot_value(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    reg: float,
    cost: str,
    rho: Sequence[float],
    method: str,
    tol: float | None,
    max_iter: int | None,
    backend: str | None,
    n_threads: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the value (), potentials (n,) and (m,), and the gradients in a and b, all float64.

    Of points (B, n, d) and (B, m, d) the outputs have B in front. `rho` has no entry, one for both
    marginals, or two.
    """
    if graphs.capturing(x):
        return graphs.value(x, y, a, b, reg, cost, rho, method, tol, max_iter)
    place = home(x, backend)
    result = solve_points(
        x.to(place),
        y.to(place),
        reg,
        a=None if a is None else a.to(place),
        b=None if b is None else b.to(place),
        cost=cast(PointCost, cost),
        unbalanced=(rho[0] if len(rho) == 1 else cast(Any, tuple(rho))) if rho else None,
        method=cast(Method, method),
        tol=tol,
        max_iter=max_iter,
        backend=backend,
        n_threads=n_threads,
    )
    masses = mass_gradients(result.problem, *result.potentials())
    value = torch.as_tensor(result.dual_value, dtype=torch.float64)
    outputs = (value, result.f, result.g, *(result.problem.array(w) for w in masses))
    return cast(Outputs, tuple(o.to(x.device) for o in outputs))


@ot_value.register_fake
def _(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, reg: float, *options: Any
) -> Outputs:
    def empty(*shape: Any) -> Tensor:
        return x.new_empty(shape, dtype=torch.float64)

    f, g = empty(*x.shape[:-1]), empty(*y.shape[:-1])
    return empty(*x.shape[:-2]), f, g, torch.empty_like(f), torch.empty_like(g)


@torch.library.custom_op("quadric::ot_point_gradient", mutates_args=())
def ot_point_gradient(
    x: Tensor,
    y: Tensor,
    f: Tensor,
    g: Tensor,
    reg: float,
    cost: str,
    backend: str | None,
    n_threads: int | None,
) -> Tensor:
    """Return the derivative of the value in x, given the potentials."""
    if graphs.capturing(x):
        return graphs.point_gradient(x, y, f, g, reg, cost)
    kind = cast(PointCost, cost)
    place = home(x, backend)
    x_, y_ = x.to(place), y.to(place)
    problem = points_problem(x_, y_, reg, cost=kind, backend=backend, n_threads=n_threads)
    B, n, m = problem.cost.shape
    potentials = f.cpu().reshape(B, n).numpy(), g.cpu().reshape(B, m).numpy()
    gradient: Tensor = problem.array(point_gradient(problem, *potentials))
    return gradient.to(x.device)


@ot_point_gradient.register_fake
def _(x: Tensor, y: Tensor, f: Tensor, g: Tensor, reg: float, *options: Any) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    x, y, a, b, reg, cost, *_, backend, n_threads = inputs
    _, f, g, of_a, of_b = output
    ctx.mark_non_differentiable(f, g, of_a, of_b)
    ctx.save_for_backward(x, y, f, g, of_a, of_b)
    ctx.dtypes = tuple(None if w is None else w.dtype for w in (a, b))
    ctx.options = reg, cost, backend, n_threads


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    x, y, f, g, of_a, of_b = ctx.saved_tensors
    needed = ctx.needs_input_grad

    def points(p: Tensor, q: Tensor, u: Tensor, v: Tensor) -> Tensor:
        slope = torch.ops.quadric.ot_point_gradient(p, q, u, v, *ctx.options)
        pulled: Tensor = gradient[..., None, None].to(p.dtype) * slope
        return pulled

    return (
        points(x, y, f, g) if needed[0] else None,
        points(y, x, g, f) if needed[1] else None,
        (gradient[..., None] * of_a).to(ctx.dtypes[0]) if needed[2] else None,
        (gradient[..., None] * of_b).to(ctx.dtypes[1]) if needed[3] else None,
        *(None for _ in needed[4:]),
    )


ot_value.register_autograd(_backward, setup_context=_setup)
