"""The optimizers under test, on one small network, and what training leaves behind."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quadric.adapters.torch.optim import MFAC, MKOR, NaturalGaLore, Preconditioner

Make = Callable[..., Any]


def mfac(model: nn.Module, params: Any = None, **options: Any) -> MFAC:
    return MFAC(_params(model, params), **{"lr": 0.05, "capacity": 4, "damping": 1e-2, **options})


def mkor(model: nn.Module, params: Any = None, **options: Any) -> MKOR:
    options = {"lr": 0.02, "update_every": 2, **options}
    return MKOR(_params(model, params), model=model, **options)


def galore(model: nn.Module, params: Any = None, **options: Any) -> NaturalGaLore:
    options = {"lr": 0.05, "rank": 3, "update_every": 3, "history": 4, **options}
    return NaturalGaLore(_params(model, params), **options)


OPTIMIZERS: dict[str, Make] = {
    "mfac": mfac,
    "mfac, momentum": lambda *a, **k: mfac(*a, **{"momentum": 0.9, "weight_decay": 0.01, **k}),
    "mfac, window": lambda *a, **k: mfac(*a, **{"momentum": 0.9, "momentum_in": "window", **k}),
    "mfac, bfloat16": lambda *a, **k: mfac(*a, **{"dtype": "bfloat16", **k}),
    "mkor": mkor,
    "mkor, decay": lambda *a, **k: mkor(*a, **{"weight_decay": 0.01, "rule": "mkor", **k}),
    "galore": galore,
    "galore, rotate": lambda *a, **k: galore(
        *a, **{"on_refresh": "rotate", "weight_decay": 0.01, **k}
    ),
}

PRECONDITIONERS: dict[str, Make] = {
    "mfac": lambda model, params=None, **k: Preconditioner(
        _params(model, params), "mfac", **{"capacity": 4, "damping": 1e-2, **k}
    ),
    "mkor": lambda model, params=None, **k: Preconditioner(
        _params(model, params), "mkor", model=model, **{"update_every": 2, **k}
    ),
}


def _params(model: nn.Module, params: Any) -> Any:
    return model.parameters() if params is None else params


class Net(nn.Module):
    """A convolution, a norm, two linear layers; activations work in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(4 * 9)
        self.hidden = nn.Linear(4 * 9, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x), inplace=True)
        x = self.norm(x.flatten(1))
        return self.head(F.relu(self.hidden(x), inplace=True))


def data(batch: int) -> tuple[Tensor, Tensor]:
    """A batch of noisy pictures of five classes, the same for the same number."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(5, 1, 6, 6, generator=generator)
    generator.manual_seed(2 + batch)
    y = torch.randint(0, 5, (16,), generator=generator)
    return pictures[y] + 0.5 * torch.randn(16, 1, 6, 6, generator=generator), y


def backward(model: nn.Module, batch: int, sign: float = 1.0) -> Tensor:
    x, y = data(batch)
    dtype = next(model.parameters()).dtype
    loss = sign * F.cross_entropy(model(x.to(dtype)), y)
    loss.backward()
    return loss.detach()


def train(model: nn.Module, optimizer: Any, batches: Any, sign: float = 1.0) -> list[float]:
    """One step on each batch; returns the losses."""
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        losses.append(float(backward(model, batch, sign)))
        optimizer.step()
    return losses


def tensors(state: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)


def assert_same(a: Any, b: Any) -> None:
    """Two models, or two states, are the same bit for bit."""
    if isinstance(a, nn.Module):
        a, b = a.state_dict(), b.state_dict()
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


def snapshot(model: nn.Module, optimizer: Any) -> Any:
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))
