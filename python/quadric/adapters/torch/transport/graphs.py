"""The value of transport between points inside a CUDA graph, where nothing may wait for the GPU.

So the number of launches is fixed, and nothing is looked at: neither the points, nor whether the
tolerance was reached. A problem that has reached it lets the iterations that are left pass.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quadric import device
from quadric.transport.cost import KINDS
from quadric.transport.problem import TOL

_NOTHING = 1e-200  # a mass in place of 0, whose logarithm is finite


def capturing(x: Tensor) -> bool:
    """Say whether what is done with a tensor is captured in a graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def value(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the operator ``quadric::ot_value`` does.

    Balanced problems that are small enough are solved in one launch, over-relaxed; others by
    `max_iter` plain iterations from potentials of 0, or as few as bring them to `tol`.

    Raises
    ------
    ValueError
        If `method` is another one, or `max_iter` is not given.
    """
    if method not in ("auto", "sinkhorn"):
        raise ValueError(f"method must be 'auto' or 'sinkhorn' inside a CUDA graph, got {method!r}")
    if max_iter is None:
        raise ValueError(
            "max_iter must be given inside a CUDA graph, which cannot decide how long to go on"
        )
    (x_, y_), _ = _prepared(x, y, cost)
    B, n, m = len(x_), x_.shape[1], y_.shape[1]
    penalties = (*rho, *rho)[:2] if rho else (math.inf, math.inf)
    theta_a, theta_b = (1.0 if r == math.inf else r / (r + reg) for r in penalties)
    masses = [_masses(w, B, p) for w, p in ((a, x_), (b, y_))]
    there = [w > 0 for w in masses]
    balanced = min(penalties) == math.inf
    if balanced:
        masses[1] = masses[1] * (masses[0].sum(1) / masses[1].sum(1))[:, None]
    weights = [w.clamp(min=_NOTHING) for w in masses]
    f, g = (torch.zeros_like(w) for w in masses)

    kernels, kind, points = device.transport(), KINDS[cost], device.wrap(x_)
    fixed = (None, points, device.wrap(y_), kind, *map(device.wrap, weights), reg)
    eps = TOL[points.dtype] if tol is None else tol
    small = kernels.converges(kind, n, m, x_.shape[2], points.dtype.itemsize)
    if balanced and small:
        errors, made = f.new_empty(B), f.new_empty(B, dtype=torch.int64)
        outputs = (*map(device.wrap, (f, g, errors, made)), True, None, None, 0.0)
        points.space.run(kernels.converge, *fixed, 1.0, 1.0, None, eps, max_iter, *outputs)
    else:
        omega, errors = f.new_ones(B), f.new_empty(B, max_iter)
        options = (theta_a, theta_b, device.wrap(omega), eps, max_iter)
        points.space.run(kernels.sinkhorn, *fixed, *options, *map(device.wrap, (f, g, errors)))

    if balanced:  # of the potentials f - c, g + c, those that balance
        c = ((f * weights[0]).sum(1) - (g * weights[1]).sum(1)) / (2 * weights[0].sum(1))
        f, g = f - c[:, None], g + c[:, None]
    rows, columns, costs = torch.empty_like(f), torch.empty_like(g), f.new_empty(B)
    outputs = tuple(map(device.wrap, (f, g)))
    sums = map(device.wrap, (rows, columns, costs))
    points.space.run(kernels.apply_plans, *fixed[:4], *outputs, reg, *sums)
    of = [
        p if r == math.inf else -r * torch.expm1(-p / r)
        for p, r in zip((f, g), penalties, strict=True)
    ]
    dual = sum(((p * w).sum(1) for p, w in zip(of, masses, strict=True)), -reg * rows.sum(1))
    if balanced:  # the smallest gradient
        count = there[0].sum(1) + there[1].sum(1)
        total = [torch.where(t, p, 0).sum(1) for t, p in zip(there, of, strict=True)]
        excess = ((total[0] - total[1]) / count)[:, None]
        of = [of[0] - excess, of[1] + excess]
    gradients = [torch.where(t, p, 0) for t, p in zip(there, of, strict=True)]
    potentials = [torch.where(t, p, -math.inf) for t, p in zip(there, (f, g), strict=True)]
    (f, g), (of_a, of_b) = potentials, gradients
    if x.ndim == 3:
        return dual, f, g, of_a, of_b
    return dual[0], f[0], g[0], of_a[0], of_b[0]


def point_gradient(x: Tensor, y: Tensor, f: Tensor, g: Tensor, reg: float, cost: str) -> Tensor:
    """Return what the operator ``quadric::ot_point_gradient`` does."""
    (x_, y_), lengths = _prepared(x, y, cost)
    kernels, kind = device.transport(), KINDS[cost]
    result = torch.empty_like(x_, dtype=torch.float64)
    potentials = zip(_batch(f, 1).contiguous(), _batch(g, 1).contiguous(), strict=True)
    for k, (u, v) in enumerate(potentials):
        p, q, f_, g_ = map(device.wrap, (x_[k], y_[k], u, v))
        if cost in ("euclidean", "cityblock"):
            p.space.run(kernels.point_gradient, p, q, kind, f_, g_, reg, device.wrap(result[k]))
            continue
        products, rows, columns, paid = (u.new_empty(s) for s in (p.shape, len(u), len(v), 1))
        others = (y_[k].double(), products, rows, columns)
        arguments = (None, p, q, kind, f_, g_, reg, *map(device.wrap, others))
        p.space.run(kernels.apply_plan, *arguments, result=device.wrap(paid))
        if cost == "sqeuclidean":
            result[k] = 2 * (rows[:, None] * x_[k] - products)
        else:
            along = (x_[k] * products).sum(1, keepdim=True)
            result[k] = (along * x_[k] - products) / lengths[k]
    return result.to(x.dtype).reshape(x.shape)


def _prepared(x: Tensor, y: Tensor, cost: str) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return the points as the kernels take them, with B in front, and what x was divided by."""
    x, y = (_batch(p, 2) for p in (x, y))
    lengths = x.new_ones(len(x), 1, 1)
    if cost == "sqeuclidean":  # less the common mean, which saves digits
        center = (_mean(x) + _mean(y)) / 2
        x, y = ((p - center).to(p.dtype) for p in (x, y))
    elif cost == "cosine":
        lengths, others = (p.double().norm(dim=2, keepdim=True) for p in (x, y))
        x, y = (x / lengths).to(x.dtype), (y / others).to(y.dtype)
    return (x.contiguous(), y.contiguous()), lengths


def _mean(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True, dtype=torch.float64)


def _batch(t: Tensor, ndim: int) -> Tensor:
    return t if t.ndim > ndim else t[None]


def _masses(given: Tensor | None, B: int, points: Tensor) -> Tensor:
    shape = (B, points.shape[1])
    if given is None:
        return points.new_full(shape, 1 / shape[1], dtype=torch.float64)
    return given.double().expand(shape).contiguous()
