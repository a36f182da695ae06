"""SparseRouter: a mixture as it is written down, capacities, and derivatives."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadric.adapters.torch.router import (
    RouterReport,
    SparseRouter,
    route_tokens,
    route_tokens_backward,
)
from quadric.transport import route

DIM, EXPERTS = 6, 4


def layer(**options: Any) -> SparseRouter:
    torch.manual_seed(0)
    experts = [nn.Linear(DIM, 5) for _ in range(EXPERTS)]
    return SparseRouter(DIM, experts, **options).double()


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(1)).double()


def report_of(module: SparseRouter) -> RouterReport:
    assert module.report is not None
    return module.report


# ---- forward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", ["plan", "softmax"])
@pytest.mark.parametrize("shape", [(32,), (3, 16), (2, 3, 8)])
def test_mixture(gates: str, shape: tuple[int, ...]) -> None:
    """The dense sum over all experts, with gates from `route`."""
    module, x = layer(gates=gates), tokens(*shape)
    y = module(x)
    flat = x.reshape(-1, DIM)
    scores = module.router(flat).detach()
    capacity = math.ceil(1.25 * len(flat) / EXPERTS)
    weights = route(scores, capacity, tol=1e-4, max_iter=50).gates()
    if gates == "softmax":
        weights = torch.softmax(scores, dim=1) * (weights > 0)
    outputs = torch.stack([expert(flat) for expert in module.experts], dim=1)
    expected = (weights[:, :, None] * outputs).sum(1).reshape(*shape, 5)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
    report = report_of(module)
    assert bool(report.converged)
    assert int(report.counts.max()) <= capacity
    assert int(report.dropped) == 0
    assert float(report.marginal_error) <= 1e-4


@pytest.mark.parametrize(("option", "most"), [("capacity", 3), ("capacity_factor", 0.25)])
def test_capacity(option: str, most: float) -> None:
    module = layer(**{option: most})
    y = module(tokens(40))
    report = report_of(module)
    assert report.counts.tolist() == [3] * EXPERTS
    assert int(report.dropped) == 40 - 3 * EXPERTS
    assert ((y == 0).all(1)).sum() == 40 - 3 * EXPERTS


def test_skewed_scores_stay_in_balance() -> None:
    """All tokens alike and one expert best for all: by argmax it would get them all."""
    module = layer(capacity_factor=1.0)
    with torch.no_grad():
        module.router.weight[0] += 5
    module(tokens(64).abs())
    assert report_of(module).counts.tolist() == [16] * EXPERTS


def test_mask() -> None:
    """Padding gets nothing, and takes no place."""
    module, x = layer(), tokens(2, 20)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 12:] = False
    y = module(x, mask)
    assert (y[~mask] == 0).all()
    assert int(report_of(module).counts.sum()) >= 32
    alone = module(x[mask])
    torch.testing.assert_close(y[mask], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype: torch.dtype) -> None:
    module, x = layer().to(dtype), tokens(32).to(dtype).requires_grad_()
    y = module(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert torch.isfinite(x.grad).all()


def test_experts_and_routers_of_any_kind() -> None:
    experts = [nn.Sequential(nn.Linear(DIM, 9), nn.ReLU(), nn.Linear(9, 2)) for _ in range(3)]
    router = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 3))
    module = SparseRouter(DIM, experts, router=router)
    assert module(tokens(5, 6).float()).shape == (5, 6, 2)
    assert "capacity_factor=1.25, reg=1, gates='plan'" in repr(module)


def test_copies_and_checkpoints() -> None:
    module, x = layer(), tokens(32)
    expected = module(x)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    other = layer()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), expected)


# ---- derivatives ---------------------------------------------------------------------------------

ROOMY = (100, 2.0, 1e-13, 200)  # capacity, reg, tol, max_iter: no place is fought for


def test_gradcheck() -> None:
    scores = tokens(12)[:, :3].clone().requires_grad_()
    options = {"eps": 1e-6, "atol": 1e-6, "rtol": 1e-4}
    assert torch.autograd.gradcheck(
        lambda s: route_tokens(s, None, *ROOMY, True)[0], scores, **options
    )
    mask = torch.arange(12) % 5 > 0
    assert torch.autograd.gradcheck(
        lambda s: route_tokens(s, mask, *ROOMY, True)[0], scores, **options
    )


@pytest.mark.parametrize("solved", [True, False])
def test_opcheck(solved: bool) -> None:
    scores = tokens(12)[:, :3].clone().requires_grad_()
    torch.library.opcheck(route_tokens, (scores, None, *ROOMY, solved))
    gates, tight, _ = route_tokens(scores.detach(), None, *ROOMY, solved)
    gradient = torch.randn_like(gates)
    torch.library.opcheck(route_tokens_backward, (gradient, gates, tight, 2.0))


def test_fixed_potentials() -> None:
    """An expert's tokens compete: the derivative of its share, a projection onto a simplex."""
    scores = tokens(12)[:, :3].clone().requires_grad_()
    gates, _, _ = route_tokens(scores, None, *ROOMY, False)
    G = torch.randn_like(gates)
    (found,) = torch.autograd.grad(gates, scores, G)
    kept = gates > 0
    mean = (G * kept).sum(0) / kept.sum(0)
    torch.testing.assert_close(found, kept * (G - mean) / 2.0, rtol=1e-12, atol=1e-14)


def test_gradients_of_the_layer() -> None:
    """Through gates, router and experts, by finite differences."""
    module = layer(capacity=100, tol=1e-13, max_iter=200, reg=3.0)
    x = tokens(10).requires_grad_()
    assert torch.autograd.gradcheck(module, x, eps=1e-6, atol=1e-6, rtol=1e-4)
    parameters = dict(module.named_parameters())

    def call(*values: Tensor) -> Tensor:
        named = dict(zip(parameters, values, strict=True))
        out: Tensor = torch.func.functional_call(module, named, (x.detach(),))
        return out

    assert torch.autograd.gradcheck(call, tuple(parameters.values()), eps=1e-6, atol=1e-6)


def test_softmax_gates_teach_lonely_tokens() -> None:
    """With one expert per token the plan has no derivative; the softmax has, and `fixed` does."""
    slopes = {}
    for name, options in {
        "solved": {},
        "fixed": {"derivative": "fixed"},
        "softmax": {"gates": "softmax"},
    }.items():
        module = layer(capacity_factor=1.0, **options)
        module(tokens(64)).square().sum().backward()
        slopes[name] = float(module.router.weight.grad.abs().max())
        assert all(p.grad is not None for p in module.experts.parameters())
    assert slopes["solved"] < 1e-10
    assert slopes["fixed"] > 1e-3
    assert slopes["softmax"] > 1e-3


@pytest.mark.parametrize("options", [{}, {"gates": "softmax"}, {"derivative": "fixed"}], ids=str)
def test_training(options: dict[str, Any]) -> None:
    """Four clusters with a linear map each: the mixture learns what one map cannot."""
    torch.manual_seed(0)
    centers, maps = 3 * torch.randn(4, DIM), torch.randn(4, DIM, DIM)
    label = torch.arange(256) % 4
    x = centers[label] + torch.randn(256, DIM)
    y = torch.einsum("tij,tj->ti", maps[label], x)
    fit = torch.linalg.lstsq(torch.cat([x, torch.ones(256, 1)], 1), y).solution
    one_map = float((torch.cat([x, torch.ones(256, 1)], 1) @ fit - y).square().mean())
    module = SparseRouter(DIM, [nn.Linear(DIM, DIM) for _ in range(8)], reg=0.5, **options)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    for _ in range(120):
        optimizer.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * one_map
    assert int(report_of(module).counts.max()) <= 40


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("capacity", 0),
        ("capacity", 1.5),
        ("capacity_factor", 0.0),
        ("capacity_factor", math.nan),
        ("reg", -1.0),
        ("gates", "hard"),
        ("derivative", "none"),
        ("tol", -1.0),
        ("max_iter", 0),
    ],
)
def test_options(option: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{option} must"):
        layer(**{option: value})


def test_inputs() -> None:
    with pytest.raises(ValueError, match=r"^experts must"):
        SparseRouter(DIM, [])
    module = layer()
    with pytest.raises(ValueError, match=r"^x must have shape \(\.\.\., 6\), got \(3, 5\)"):
        module(torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"^x must have at least one token"):
        module(torch.ones(0, DIM).double())
    with pytest.raises(ValueError, match=r"^mask must have shape"):
        module(tokens(8), torch.ones(7, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^scores must be finite"):
        module(tokens(8) * math.nan)
