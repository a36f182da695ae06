"""Losses of optimal transport inside a CUDA graph, on an emulated GPU.

What would be captured is done at once, and must be what is done outside.
"""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from quadric.adapters.torch import SinkhornDivergence, ot_loss  # noqa: E402
from quadric.adapters.torch.transport.operators import ot_value  # noqa: E402
from tests.cuda.test_torch_on_gpu import Switch, switch  # noqa: E402, F401

COSTS = ["sqeuclidean", "euclidean", "cityblock", "cosine"]


def clouds(dtype: Any = torch.float64, n: int = 30, m: int = 40, batch: Any = ()) -> Any:
    random = torch.Generator().manual_seed(0)
    shapes = ((*batch, k, 3) for k in (n, m))
    return [(torch.randn(s, generator=random) + 1).to(dtype).requires_grad_() for s in shapes]


def masses(n: int, batch: Any = ()) -> Any:
    return torch.rand((*batch, n), generator=torch.Generator().manual_seed(n)).double() + 0.1


def gradients(switch: Switch, inputs: Any, options: dict[str, Any]) -> list[list[Any]]:  # noqa: F811
    """Return value and gradients of a loss, outside a graph and inside."""
    results = []
    for inside in (False, True):
        switch.capturing = inside
        with switch.here():
            a, b = (w / w.sum(-1, keepdim=True) for w in inputs[2:]) if inputs[2:] else (None, None)
            waits = switch.gpu.waits
            loss = ot_loss(*inputs[:2], 0.5, a=a, b=b, **options)
            weights = torch.arange(1.0, loss.numel() + 1).reshape(loss.shape).to(loss)
            slopes = torch.autograd.grad((weights * loss).sum(), inputs)
            assert not inside or switch.gpu.waits == waits
        results.append([loss.detach(), *slopes])
    switch.capturing = False
    return results


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("sizes", [(30, 40), (200, 190)])  # in one launch, and not
@pytest.mark.parametrize("weighted", [False, True])
def test_as_outside(
    switch: Switch,  # noqa: F811
    cost: str,
    batch: Any,
    sizes: tuple[int, int],
    weighted: bool,
) -> None:
    inputs = clouds(torch.float64, *sizes, batch)
    if weighted:
        inputs += [masses(k, batch).requires_grad_() for k in sizes]
    outside, inside = gradients(switch, inputs, {"cost": cost, "max_iter": 500, "tol": 1e-10})
    for a, b in zip(outside, inside, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("rho", [2.0, (1.0, 3.0), (float("inf"), 1.0)])
def test_unbalanced(switch: Switch, rho: Any) -> None:  # noqa: F811
    inputs = [*clouds(), masses(30).requires_grad_(), masses(40).requires_grad_()]
    options = {"unbalanced": rho, "max_iter": 500, "tol": 1e-11}
    outside, inside = gradients(switch, inputs, options)
    for a, b in zip(outside, inside, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_float32_and_padding(switch: Switch) -> None:  # noqa: F811
    x, y = clouds(torch.float32)
    a = torch.ones(30)
    a[20:] = 0
    outside, inside = gradients(
        switch, [x, y, a.requires_grad_(), torch.ones(40).requires_grad_()], {"max_iter": 300}
    )
    for p, q in zip(outside, inside, strict=True):
        assert p.dtype == q.dtype
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    assert (inside[1][20:] == 0).all()


def test_divergence(switch: Switch) -> None:  # noqa: F811
    x, y = clouds()
    loss = SinkhornDivergence(0.5, max_iter=300)
    expected = loss(x, y)
    switch.capturing = True
    with switch.here():
        torch.testing.assert_close(loss(x, y), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "max_iter must be given inside a CUDA graph"),
        ({"max_iter": 5, "method": "newton"}, "method must be 'auto' or 'sinkhorn' inside"),
    ],
)
def test_refused(switch: Switch, options: dict[str, Any], message: str) -> None:  # noqa: F811
    switch.capturing = True
    with switch.here(), pytest.raises(ValueError, match=message):
        ot_loss(*clouds(), 0.5, **options)


def test_the_shapes_of_the_operator(switch: Switch) -> None:  # noqa: F811
    arguments = ("sqeuclidean", [], "auto", None, 300, None, None)
    for batch in ((), (2,)):
        x, y = clouds(batch=batch)
        expected = ot_value(x, y, None, None, 0.5, *arguments)
        switch.capturing = True
        with switch.here():
            found = ot_value(x, y, None, None, 0.5, *arguments)
        switch.capturing = False
        assert [t.shape for t in found] == [t.shape for t in expected]
        assert [t.dtype for t in found] == [t.dtype for t in expected]
