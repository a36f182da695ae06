"""Transport losses: values of the family, gradients against finite differences, torch's own checks.

The derivative of gradcheck is a central difference with a step of 1e-6: the dual value is good to
the square of the marginal error, so that 1e-9 is more than enough for its tolerance of 1e-5.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quadric.adapters.torch import SinkhornDivergence, ot_loss
from quadric.adapters.torch.transport import monge_gap
from quadric.adapters.torch.transport.operators import ot_point_gradient, ot_value
from quadric.errors import ConvergenceWarning
from quadric.transport import monge_gap as gap_of_arrays
from quadric.transport import sinkhorn_divergence, solve_points

COSTS = ("sqeuclidean", "euclidean", "cityblock", "cosine")
BATCHES = ((), (2,))
REG = 0.7


def clouds(batch: tuple[int, ...] = (), n: int = 4, m: int = 5, d: int = 3) -> tuple[Tensor, ...]:
    """Return points x, y and logits of their masses, all of which require a gradient."""
    shapes = (*batch, n, d), (*batch, m, d), (*batch, n), (*batch, m)
    return tuple(torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes)


def softmax(*logits: Tensor) -> tuple[Tensor, ...]:
    return tuple(u.softmax(-1) for u in logits)


def check(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("cost", COSTS)
def test_loss(backend: str, cost: Any, batch: tuple[int, ...]) -> None:
    x, y, u, v = clouds(batch)
    a, b = softmax(u, v)
    loss = ot_loss(x, y, REG, a=a, b=b, cost=cost, backend=backend)
    assert loss.shape == batch
    arrays = {"a": a.detach().numpy(), "b": b.detach().numpy()}
    points = x.detach().numpy(), y.detach().numpy()
    result = solve_points(*points, REG, **arrays, cost=cost, backend=backend)
    np.testing.assert_array_equal(loss.detach().numpy(), result.dual_value)

    def of_masses(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        a, b = softmax(u, v)
        return ot_loss(x, y, REG, a=a, b=b, cost=cost, backend=backend)

    if batch:
        check(of_masses, x, y, u, v)
    else:
        check(lambda x, y: ot_loss(x, y, REG, cost=cost, backend=backend), x, y)


@pytest.mark.parametrize("unbalanced", [1.0, (0.5, 2.0), (math.inf, 0.5), (0.5, math.inf)], ids=str)
def test_unbalanced_loss(backend: str, unbalanced: Any) -> None:
    x, y, u, v = clouds()

    def loss(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        a, b = u.exp(), v.exp()
        return ot_loss(x, y, REG, a=a, b=b, unbalanced=unbalanced, backend=backend)

    check(loss, x, y, u, v)


def test_masses_that_move_together(backend: str) -> None:
    """The gradient is right in all directions that keep the sums equal, also if they change."""
    x, y, u, v = clouds()

    def loss(u: Tensor, v: Tensor) -> Tensor:
        a, b = u.exp(), v.softmax(0)
        return ot_loss(x, y, REG, a=a, b=a.sum() * b, backend=backend)

    check(loss, u, v)


def test_smallest_gradient_in_the_masses() -> None:
    x, y, u, v = clouds()
    a, b = (w.detach().requires_grad_() for w in softmax(u, v))
    ot_loss(x, y, REG, a=a, b=b).backward()
    torch.testing.assert_close(a.grad.sum(), b.grad.sum())


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("cost", COSTS)
def test_divergence(backend: str, cost: Any, batch: tuple[int, ...]) -> None:
    x, y, u, v = clouds(batch)
    divergence = SinkhornDivergence(REG, cost, backend=backend)
    a, b = softmax(u, v)
    values = (w.detach().numpy() for w in (x, y, a, b))
    xs, ys, masses, others = values
    expected = sinkhorn_divergence(xs, ys, REG, a=masses, b=others, cost=cost, backend=backend)
    value = divergence(x, y, a, b)
    np.testing.assert_allclose(value.detach().numpy(), expected.value, rtol=0, atol=1e-14)
    gradients = torch.autograd.grad(value.sum(), (x, y))
    slopes = expected.gradients()
    for found, wanted in zip(gradients, (slopes.x, slopes.y), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-14)
    if not batch:
        check(lambda x, y, u, v: divergence(x, y, *softmax(u, v)), x, y, u, v)


def test_divergence_of_equal_clouds() -> None:
    x, *_ = clouds(n=30)
    divergence = SinkhornDivergence(0.1)(x, x.detach().clone())
    divergence.backward()
    assert abs(divergence.item()) < 1e-10
    assert x.grad.abs().max() < 1e-7


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("cost", COSTS)
def test_gap(backend: str, cost: Any, batch: tuple[int, ...]) -> None:
    x, image, u, _ = clouds(batch, m=4)
    a = u.softmax(-1)
    gap = monge_gap(x, image, REG, a=a, cost=cost, backend=backend)
    given = (w.detach().numpy() for w in (x, image))
    expected = gap_of_arrays(*given, REG, a=a.detach().numpy(), cost=cost, backend=backend)
    np.testing.assert_allclose(gap.detach().numpy(), expected.value, rtol=0, atol=1e-13)

    def loss(x: Tensor, image: Tensor, u: Tensor) -> Tensor:
        return monge_gap(x, image, REG, a=u.softmax(-1), cost=cost, backend=backend)

    if batch:
        check(loss, x, image, u)
    else:
        check(lambda x, image: monge_gap(x, image, REG, cost=cost, backend=backend), x, image)


def test_a_map_learns_to_be_optimal() -> None:
    """The gap of a linear map falls, and with it its rotation: the best ones are symmetric."""
    x = torch.randn(40, 2, dtype=torch.float64)
    A = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([A], lr=0.1)
    gaps = []
    for _ in range(40):
        optimizer.zero_grad()
        gap = monge_gap(x, x @ A.T, reg=0.05)
        gap.backward()
        optimizer.step()
        gaps.append(gap.item())
    assert gaps[-1] < 0.3 * gaps[0]
    assert abs(A[0, 1] - A[1, 0]) < 0.6  # 2 at first


# ---- operators -----------------------------------------------------------------------------------


def operands(batch: tuple[int, ...], masses: bool) -> tuple[Any, ...]:
    x, y, u, v = clouds(batch)
    a, b = (w.detach().requires_grad_() for w in softmax(u, v)) if masses else (None, None)
    return x, y, a, b, REG, "euclidean", [], "auto", None, None, None, 1


@pytest.mark.parametrize("masses", [False, True])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_operators(batch: tuple[int, ...], masses: bool) -> None:
    args = operands(batch, masses)
    torch.library.opcheck(ot_value, args)
    value, f, g, *_ = ot_value(*args)
    assert value.requires_grad
    assert not f.requires_grad
    x, y = args[0].detach(), args[1].detach()
    torch.library.opcheck(ot_point_gradient, (x, y, f, g, REG, "cosine", None, 1))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_compile(batch: tuple[int, ...]) -> None:
    x, y, u, v = clouds(batch)
    divergence = SinkhornDivergence(REG)

    def loss(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return divergence(x, y, *softmax(u, v)).sum() + ot_loss(x, y, REG, unbalanced=2.0).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    inputs = (x, y, u, v)
    torch.testing.assert_close(compiled(*inputs), loss(*inputs))
    found = torch.autograd.grad(compiled(*inputs), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(loss(*inputs), inputs))


def test_only_what_is_needed() -> None:
    x, y, _, _ = clouds()
    ot_loss(x, y.detach(), REG).backward()
    assert x.grad is not None
    assert y.grad is None


def test_once_differentiable() -> None:
    x, y, _, _ = clouds()
    (gradient,) = torch.autograd.grad(ot_loss(x, y, REG), x, create_graph=True)
    with pytest.raises(RuntimeError, match="ot_point_gradient"):
        gradient.sum().backward()


# ---- what it is given ----------------------------------------------------------------------------


def test_padding() -> None:
    """Points without mass change nothing, and have no gradient."""
    x, y, u, _ = (t.detach() for t in clouds())
    a = u.softmax(0).requires_grad_()
    x.requires_grad_()
    ot_loss(x, y, REG, a=a).backward()
    padded = torch.cat([x.detach(), torch.full((2, 3), 7.0, dtype=x.dtype)]).requires_grad_()
    masses = torch.cat([a.detach(), torch.zeros(2, dtype=x.dtype)]).requires_grad_()
    loss = ot_loss(padded, y, REG, a=masses)
    loss.backward()
    torch.testing.assert_close(padded.grad[:4], x.grad, rtol=0, atol=1e-8)
    torch.testing.assert_close(masses.grad[:4], a.grad, rtol=0, atol=1e-8)
    assert padded.grad[4:].eq(0).all()
    assert masses.grad[4:].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_types(dtype: torch.dtype) -> None:
    x, y, _, _ = clouds(n=30, m=30)
    exact = torch.autograd.grad(ot_loss(x, y, REG), x)[0]
    short = x.detach().to(dtype).requires_grad_()
    a = torch.full((30,), 1 / 30, dtype=dtype, requires_grad=True)
    b = torch.full((30,), 1 / 30, dtype=dtype)
    loss = ot_loss(short, y.detach().to(dtype), REG, a=a, b=b)
    assert loss.dtype == torch.float32
    loss.backward()
    assert short.grad.dtype == a.grad.dtype == dtype
    # What rounding the points changes, and the default tolerance of float32.
    limit = 60 * torch.finfo(dtype).eps + 1e-4
    assert (short.grad.double() - exact).abs().max() < limit * exact.abs().max()


@pytest.mark.parametrize("layout", ["transposed", "expanded", "strided"])
def test_layouts(layout: str) -> None:
    x, y, _, _ = clouds((2,))
    with torch.no_grad():
        given = {
            "transposed": x.transpose(1, 2).contiguous().transpose(1, 2),
            "expanded": x[:1].expand(2, -1, -1),
            "strided": torch.repeat_interleave(x, 2, dim=-1)[..., ::2],
        }[layout]
    given.requires_grad_()
    same = given.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    for t in (given, same):
        ot_loss(t, y, REG).sum().backward()
    assert torch.equal(given.grad, same.grad)


def test_not_converged() -> None:
    x, y, _, _ = clouds(n=30, m=30)
    with pytest.warns(ConvergenceWarning, match="marginal error"):
        ot_loss(x, y, 1e-3, max_iter=2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reg", {"reg": 0.0}),
        ("reg", {"reg": -1.0}),
        ("a", {"a": torch.ones(3)}),
        ("a", {"a": -torch.ones(4)}),
        ("a and b", {"a": torch.ones(4)}),
        ("b", {"b": torch.full((5,), math.nan)}),
        ("cost", {"cost": "manhattan"}),
        ("method", {"method": "simplex"}),
        ("unbalanced", {"unbalanced": -1.0}),
        ("unbalanced", {"unbalanced": (1.0, 2.0, 3.0)}),
        ("y", {"y": torch.ones(5, 2, dtype=torch.float64)}),
        ("y", {"y": torch.ones(5, 3)}),
        ("x", {"x": torch.full((4, 3), math.inf, dtype=torch.float64)}),
        ("backend", {"backend": "fortran"}),
        ("n_threads", {"n_threads": 0}),
    ],
    ids=str,
)
def test_bad_input(name: str, options: dict[str, Any]) -> None:
    x, y, _, _ = clouds()
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b") as caught:
        ot_loss(**{"x": x, "y": y, "reg": REG} | options)
    assert "\n" not in str(caught.value)


def test_images_of_another_shape() -> None:
    x, y, _, _ = clouds()
    with pytest.raises(ValueError, match="Tx must have the shape"):
        monge_gap(x, y, REG)


def test_module() -> None:
    divergence = SinkhornDivergence(0.5, "cosine", tol=1e-6)
    assert (
        repr(divergence) == "SinkhornDivergence(reg=0.5, cost='cosine', method='auto', tol=1e-06)"
    )
    assert not list(divergence.parameters())
