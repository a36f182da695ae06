"""Losses of optimal transport captured in a CUDA graph, on a GPU."""

from typing import Any

import pytest

from tests.cuda import real

pytestmark = real.needs_gpu


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
@pytest.mark.parametrize(("n", "d", "batch"), [(100, 3, ()), (60, 20, (4,)), (700, 3, ())])
def test_captured(cost: Any, n: int, d: int, batch: tuple[int, ...]) -> None:
    """Forward and backward, replayed on other points."""
    real.library("torch")
    import torch

    from quadric.adapters.torch import SinkhornDivergence

    torch.manual_seed(0)
    loss = SinkhornDivergence(2.0, cost, max_iter=500, tol=1e-10)
    x, y = (torch.randn(*batch, n, d, device="cuda", dtype=torch.float64) for _ in range(2))
    x.requires_grad_()

    def step() -> Any:
        x.grad = None
        value = loss(x, y)
        value.sum().backward()
        return value, x.grad

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    replayed = [t.detach().clone() for t in found]
    for got, expected in zip(replayed, step(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
