"""Optimal brain surgeon with dense inverses in float64: the slow way to what the adapter does."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Array = NDArray[np.float64]


class Conv(nn.Module):
    """A convolution, a linear layer, and an embedding that nobody should prune."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(5, 4, dtype=dtype)
        self.conv = nn.Conv2d(4, 8, 3, padding=1, dtype=dtype)
        self.head = nn.Linear(8, 8, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids).permute(0, 3, 1, 2)
        return self.head(torch.tanh(self.conv(x)).mean((2, 3)))


def conv_batches(count: int, dtype: torch.dtype = torch.float64) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(0, 5, (6, 3, 4), generator=generator),
            torch.randn(6, 8, generator=generator).to(dtype),
        )
        for _ in range(count)
    ]


def mlp(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12), nn.Tanh())
    return model.append(nn.Linear(12, 4)).to(dtype)


def mlp_batches(count: int, dtype: torch.dtype = torch.float64) -> list[Any]:
    """Inputs that lie near a few directions, so that weights can stand in for each other."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(5, 12, generator=generator)
    batches = []
    for _ in range(count):
        x = torch.randn(8, 5, generator=generator) @ mix
        x += 0.1 * torch.randn(8, 12, generator=generator)
        y = torch.stack([x[:, 0] * x[:, 1], x[:, 2], x[:, 3].abs(), x.sum(1)], 1)
        batches.append((x.to(dtype), y.to(dtype)))
    return batches


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def mean_loss(model: nn.Module, batches: Iterable[Any]) -> float:
    with torch.no_grad():
        losses = [float(squared_error(model, batch)) for batch in batches]
    return sum(losses) / len(losses)


def flat(x: Tensor) -> Array:
    """A copy of weights in the order that has inputs next to each other."""
    x = x.detach().to(torch.float64, copy=True)
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).reshape(-1).numpy()


def shaped(vector: Array, like: Tensor) -> Tensor:
    x = torch.from_numpy(vector.copy())
    if like.ndim == 4:
        out, channels, height, width = like.shape
        return x.reshape(out, height, width, channels).permute(0, 3, 1, 2)
    return x.reshape(like.shape)


def gradients(
    model: nn.Module,
    batches: Iterable[Any],
    weights: Mapping[str, Tensor],
    loss: Callable[[nn.Module, Any], Tensor] = squared_error,
) -> dict[str, Array]:
    """One row per batch, by backward()."""
    rows: dict[str, list[Array]] = {name: [] for name in weights}
    for batch in batches:
        model.zero_grad()
        loss(model, batch).backward()
        for name, weight in weights.items():
            rows[name].append(flat(weight.grad))
    model.zero_grad()
    return {name: np.stack(found) for name, found in rows.items()}


def blocks(d: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, d)) for start in range(0, d, size)]


def fisher(G: Array, damping: float) -> Array:
    return damping * np.eye(G.shape[1]) + G.T @ G / len(G)


def condition(G: Array, size: int, damping: float) -> float:
    return max(np.linalg.cond(fisher(G[:, b], damping)) for b in blocks(G.shape[1], size))


def scores(G: Array, w: Array, size: int, damping: float, group: int = 1) -> Array:
    """``w_Q^T ([F^-1]_QQ)^-1 w_Q / 2`` of each group."""
    found = []
    for b in blocks(len(w), size):
        inverse, x = np.linalg.inv(fisher(G[:, b], damping)), w[b]
        for q in blocks(len(x), group):
            found.append(x[q] @ np.linalg.solve(inverse[q, q], x[q]) / 2)
    return np.array(found)


def surgery(
    G: Array, w: Array, kept: NDArray[np.bool_], size: int, damping: float
) -> tuple[Array, float]:
    """The joint step -F^-1[:, P] (F^-1[P, P])^-1 w_P of each block, and the predicted increase."""
    new, loss = w.copy(), 0.0
    for b in blocks(len(w), size):
        pruned = np.flatnonzero(~kept[b])
        inverse, x = np.linalg.inv(fisher(G[:, b], damping)), w[b]
        y = np.linalg.solve(inverse[np.ix_(pruned, pruned)], x[pruned])
        new[b] = x - inverse[:, pruned] @ y
        loss += x[pruned] @ y / 2
    new[~kept] = 0.0
    return new, loss


def lowest(scores: Array, count: int) -> NDArray[np.bool_]:
    """The `count` smallest, the first of equals first."""
    chosen = np.zeros(len(scores), np.bool_)
    chosen[np.argsort(scores, kind="stable")[:count]] = True
    return chosen
