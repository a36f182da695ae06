"""Losses of optimal transport captured in a CUDA graph, and Newton's large systems, on a GPU."""

from typing import Any

import numpy as np
import pytest

from quadric import backends
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


@pytest.mark.parametrize("tol", [1e-6, 1e-9])  # entries in float32, in float64
def test_curvature_far_below_the_rounding_of_entries(tol: float) -> None:
    """Two halves that exchange 1e-9 of their mass, and a gradient from one to the other.

    The step is that along the smallest eigenvalue, 1e-9: rounded entries alone move it by 1e-2.
    """
    n = 1500  # n^2 > 2^21, from where entries are kept in float32
    rng = np.random.default_rng(0)
    S = rng.uniform(0.1, 1, (n, n)) / n
    half = np.arange(n) < n // 2
    S[half[:, None] != half] *= 1e-9
    a, c = S.sum(1), S.sum(0)
    gradient = np.where(half, 1.0, -1.0) * c
    gradient -= c * gradient.sum() / c.sum()
    direction = np.empty(n)
    starts, columns = np.arange(n + 1) * n, np.tile(np.arange(n, dtype=np.int32), n)
    newton_direction = backends.resolve("transport.newton_direction", "cuda")
    newton_direction(starts, columns, S.ravel(), a, c, gradient, 0.0, 0.0, tol, 500, direction, 0)

    # H x = gradient; c c^T fills its null space, and x is orthogonal to c. Rows and columns of
    # H sum to zero, which gives its diagonal without cancellation.
    H = -S.T @ (S / a[:, None])
    np.fill_diagonal(H, 0)
    np.fill_diagonal(H, -H.sum(0))
    expected = np.linalg.solve(H + np.outer(c, c) / c.sum(), gradient)
    direction -= direction @ c / c.sum()
    np.testing.assert_allclose(direction, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("x_size", "y_size", "reg"),
    [(1e3, 1e3, 1.0), (0, 1, 1e-4), (1, 0, 1e-4), (1e-12, 1, 0.01), (1, 1e-12, 0.01)],
)
def test_points_of_any_size(x_size: float, y_size: float, reg: float) -> None:
    """Coordinates are split into float16: what is far or small beside the other side must not go.

    Marginal errors of the first iterations in float32 are compared with those of a CPU in float64.
    """
    rng = np.random.default_rng(0)
    n, m, count = 300, 400, 6
    x, y = rng.standard_normal((1, n, 3)) * x_size, rng.standard_normal((1, m, 3)) * y_size
    errors = {}
    for backend, dtype in (("cuda", np.float32), ("native", np.float64)):
        f, g, found = np.zeros((1, n)), np.zeros((1, m)), np.full((1, count), np.nan)
        masses = np.full((1, n), 1 / n), np.full((1, m), 1 / m)
        sinkhorn = backends.resolve("transport.sinkhorn", backend)
        points = x.astype(dtype), y.astype(dtype)
        relaxation = np.ones(1), 0.0, count
        sinkhorn(None, *points, 1, *masses, reg, 1.0, 1.0, *relaxation, f, g, found, 1)
        errors[backend] = found
    np.testing.assert_allclose(errors["cuda"], errors["native"], rtol=0.02, atol=5e-3)
