"""Several steps of each optimizer against plain float64 code with dense inverses.

Gradients are given, so that an error of one step is not fed back through a model. Both sides work
in float64: a solution with F differs by a modest multiple of ``eps cond(F)`` of its size, and these
differences add up over the steps. The constant is 16 throughout.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from quadric.adapters.torch.optim import MFAC, MKOR, NaturalGaLore, Preconditioner

Vector = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
STEPS = 9


class Bound:
    """What the difference of two runs may be: the sum over the steps of 16 eps cond |step|."""

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, matrix: Vector, step: Vector) -> None:
        self.value += 16 * EPS * float(np.linalg.cond(matrix) * np.linalg.norm(step))

    def check(self, got: Tensor, expected: Vector) -> None:
        difference = float(np.linalg.norm(got.detach().numpy() - expected))
        assert difference <= self.value + 16 * EPS * float(np.linalg.norm(expected))
        assert difference < 1e-6 * np.linalg.norm(expected)  # the bound means something


def given(parameters: list[nn.Parameter], step: int, missing: int | None = None) -> Vector:
    """Set random gradients, the `missing` parameter's to None; returns them as one vector."""
    generator = torch.Generator().manual_seed(step)
    flat = []
    for i, p in enumerate(parameters):
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        flat.append(p.grad.flatten().numpy().copy())
        if i == missing:
            p.grad = None
            flat[-1][:] = 0.0
    return np.concatenate(flat)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((3, 4), (5,), ())]


def flatten(parameters: list[nn.Parameter]) -> Vector:
    return np.concatenate([p.detach().flatten().numpy() for p in parameters])


class DenseMFAC:
    """The algorithm as it stands in the paper, with F written out."""

    def __init__(self, w: Vector, lr: float, capacity: int, damping: float, **options: Any) -> None:
        self.w, self.lr, self.capacity, self.damping = w.copy(), lr, capacity, damping
        self.momentum = options.get("momentum", 0.0)
        self.inside = options.get("momentum_in") == "window"
        self.weight_decay = options.get("weight_decay", 0.0)
        self.normalize = options.get("normalize", "count")
        self.rows: list[Vector] = []  # the newest first
        self.buffer = np.zeros_like(w)
        self.bound = Bound()

    def step(self, g: Vector, moves: NDArray[np.bool_]) -> None:
        self.rows = [g, *self.rows][: self.capacity]
        G = np.array(self.rows)
        m = {"count": len(G), "capacity": self.capacity, "sum": 1}[self.normalize]
        fisher = self.damping * np.eye(len(g)) + G.T @ G / m
        if self.inside:
            total = sum(self.momentum**i * row for i, row in enumerate(self.rows))
            direction = np.linalg.inv(fisher) @ total
        else:
            update = np.linalg.inv(fisher) @ g
            self.buffer[moves] = self.momentum * self.buffer[moves] + update[moves]
            direction = self.buffer
        step = self.lr * (direction + self.weight_decay * self.w)
        self.bound.add(fisher, step / (1 - self.momentum))
        self.w[moves] -= step[moves]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": "capacity"},
        {"normalize": "sum"},
        {"weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "momentum_in": "window"},
        {"momentum": 0.5, "momentum_in": "window", "weight_decay": 0.1, "normalize": "sum"},
    ],
    ids=str,
)
@pytest.mark.parametrize("damping", [1e-1, 1e-4])
def test_mfac(options: dict[str, Any], damping: float) -> None:
    """The window fills up and wraps; in one step a parameter has no gradient."""
    ps = parameters()
    optimizer = MFAC(ps, 0.1, capacity=4, damping=damping, **options)
    dense = DenseMFAC(flatten(ps), 0.1, 4, damping, **options)
    for step in range(STEPS):
        g = given(ps, step, missing=1 if step == 3 else None)
        moves = np.ones(len(g), dtype=bool)
        moves[12:17] = step != 3
        optimizer.step()
        dense.step(g, moves)
    dense.bound.check(torch.from_numpy(flatten(ps)), dense.w)


def test_mfac_with_a_schedule_of_its_damping() -> None:
    ps = parameters()
    optimizer = MFAC(ps, 0.1, capacity=4, damping=1.0)
    dense = DenseMFAC(flatten(ps), 0.1, 4, 1.0)
    for step in range(STEPS):
        optimizer.param_groups[0]["damping"] = dense.damping = 0.7**step
        g = given(ps, step)
        optimizer.step()
        dense.step(g, np.ones(len(g), dtype=bool))
    dense.bound.check(torch.from_numpy(flatten(ps)), dense.w)


def test_mfac_in_float32_stores_what_it_says() -> None:
    """float32 parameters: the same as float64 within the push-through bound of 1e-5 a step."""
    ps = parameters(torch.float32)
    optimizer = MFAC(ps, 0.1, capacity=4, damping=1e-5)
    dense = DenseMFAC(flatten(ps).astype(np.float64), 0.1, 4, 1e-5)
    for step in range(STEPS):
        g = given(ps, step).astype(np.float64)
        optimizer.step()
        dense.step(g, np.ones(len(g), dtype=bool))
    moved = np.linalg.norm(dense.w - flatten(parameters(torch.float32)))
    assert np.linalg.norm(flatten(ps) - dense.w) <= STEPS * 1e-5 * moved


class Layers(nn.Module):
    """Every kind of layer, and one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.inner = nn.Linear(12, 12)
        self.head = nn.Linear(12, 4, bias=False)
        self.double()

    def forward(self, x: Tensor, seen: dict[str, list[Tensor]] | None = None) -> Tensor:
        def call(name: str, x: Tensor) -> Tensor:
            layer = getattr(self, name)
            y = layer(x)
            if seen is not None:
                y.retain_grad()
                rows = x
                if name == "conv":
                    rows = F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1))
                    rows = rows.transpose(1, 2)
                seen.setdefault(name, []).append((rows.detach().flatten(0, -2), y))
            return y

        x = torch.tanh(call("conv", x)).flatten(1)
        x = torch.tanh(call("inner", x))
        x = torch.tanh(call("inner", x))
        return call("head", x)


class DenseMKOR:
    """Factors as they are, inverted where they are needed."""

    def __init__(self, model: Layers, lr: float, decay: float, every: int, momentum: float) -> None:
        self.w = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
        self.lr, self.decay, self.every, self.momentum = lr, decay, every, momentum
        self.factors: dict[str, tuple[Vector, Vector]] = {}
        self.buffers = {name: np.zeros_like(w) for name, w in self.w.items()}
        self.steps = 0
        self.bounds = {name: Bound() for name in self.w}

    def step(self, model: Layers, seen: dict[str, list[Any]]) -> None:
        for name, p in model.named_parameters():
            gradient = p.grad.numpy()
            layer, _, kind = name.partition(".")
            update = gradient
            cond = np.eye(1)
            if kind == "weight":
                self._gather(layer, seen[layer], p)
                l_out, l_in = self.factors[layer]
                matrix = gradient.reshape(len(gradient), -1)
                update = np.linalg.inv(l_out) @ matrix @ np.linalg.inv(l_in)
                update *= np.linalg.norm(matrix) / np.linalg.norm(update)
                update = update.reshape(gradient.shape)
                cond = np.diag([1.0, 1 / (np.linalg.cond(l_out) * np.linalg.cond(l_in))])
            self.buffers[name] = self.momentum * self.buffers[name] + update
            self.w[name] -= self.lr * self.buffers[name]
            self.bounds[name].add(cond, self.lr * self.buffers[name] / (1 - self.momentum))
        self.steps += 1

    def _gather(self, layer: str, calls: list[Any], weight: Tensor) -> None:
        if self.steps % self.every != 0:
            return
        a = torch.cat([rows for rows, _ in calls]).mean(0).numpy()
        g = sum(
            y.grad.flatten(2).mean(2).sum(0) if y.ndim == 4 else y.grad.sum(0) for _, y in calls
        )
        if layer not in self.factors:
            self.factors[layer] = np.eye(len(g)), np.eye(len(a))
        self.factors[layer] = tuple(  # type: ignore[assignment]
            self.decay * factor + (1 - self.decay) * np.outer(v, v)
            for factor, v in zip(self.factors[layer], (g, a), strict=True)
        )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("every", [1, 3])
def test_mkor(momentum: float, every: int) -> None:
    model = Layers()
    optimizer = MKOR(
        model.parameters(),
        0.01,
        model=model,
        decay=0.8,
        update_every=every,
        momentum=momentum,
        norm_bound=None,
    )
    dense = DenseMKOR(model, 0.01, 0.8, every, momentum)
    for step in range(STEPS):
        x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step)).double()
        optimizer.zero_grad()
        seen: dict[str, list[Any]] = {}
        model(x, seen).square().sum().backward()
        dense.step(model, seen)
        optimizer.step()
        for name, p in model.named_parameters():
            dense.bounds[name].check(p, dense.w[name])
            # The gradients are those of the model, so both sides go on from the same weights.
            dense.w[name] = p.detach().numpy().copy()


class DenseGaLore:
    """One matrix."""

    def __init__(self, w: Vector, **options: Any) -> None:
        self.w, self.o = w.copy(), options
        self.rows: list[Vector] = []
        self.steps = 0
        self.mean = self.square = np.zeros(())
        self.bound = Bound()

    def step(self, g: Vector) -> None:
        o, tall = self.o, g.shape[0] >= g.shape[1]
        if self.steps % o["update_every"] == 0:
            u, _, vh = np.linalg.svd(g, full_matrices=False)
            basis = vh[: o["rank"]].T if tall else u[:, : o["rank"]]
            if self.steps:
                basis = basis * np.where((basis * self.basis).sum(0) < 0, -1.0, 1.0)
            if o["on_refresh"] == "clear":
                self.rows = []
            elif self.steps:
                turn = self.basis.T @ basis
                self.rows = [row @ turn if tall else turn.T @ row for row in self.rows]
            self.basis = basis
        self.steps += 1
        low = g @ self.basis if tall else self.basis.T @ g
        self.rows = [low, *self.rows][: o["history"]]
        G = np.array([row.ravel() for row in self.rows])
        fisher = o["damping"] * np.eye(G.shape[1]) + G.T @ G
        natural = (np.linalg.inv(fisher) @ G[0]).reshape(low.shape)
        b1, b2 = o["betas"]
        self.mean = b1 * self.mean + (1 - b1) * natural
        self.square = b2 * self.square + (1 - b2) * natural**2
        adam = self.mean / (1 - b1**self.steps)
        adam = adam / (np.sqrt(self.square / (1 - b2**self.steps)) + o["eps"])
        back = adam @ self.basis.T if tall else self.basis @ adam
        step = o["lr"] * (o["scale"] * back + o["weight_decay"] * self.w)
        self.w -= step
        self.bound.add(fisher, step)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
@pytest.mark.parametrize("on_refresh", ["clear", "rotate"])
def test_galore(shape: tuple[int, int], on_refresh: str) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    options: dict[str, Any] = {
        "lr": 0.1,
        "rank": 3,
        "update_every": 4,
        "scale": 0.5,
        "history": 3,
        "damping": 1e-2,
        "on_refresh": on_refresh,
        "betas": (0.8, 0.9),
        "eps": 1e-6,
        "weight_decay": 0.1,
    }
    optimizer = NaturalGaLore([p], **options)
    dense = DenseGaLore(p.detach().numpy(), **options)
    for step in range(STEPS):
        given([p], step)
        assert p.grad is not None
        dense.step(p.grad.numpy().copy())
        optimizer.step()
    dense.bound.check(p, dense.w)


def test_galore_without_a_rank_is_adamw() -> None:
    ours, theirs = parameters(), parameters()
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-6}
    one = NaturalGaLore(ours, rank=None, **options)
    two = torch.optim.AdamW(theirs, **options)
    for step in range(STEPS):
        given(ours, step)
        given(theirs, step)
        one.step()
        two.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            p, q, rtol=0, atol=16 * EPS * STEPS * float(q.detach().abs().max())
        )


@pytest.mark.parametrize("method", ["mfac", "mkor"])
def test_preconditioner_before_sgd_is_the_optimizer(method: str) -> None:
    def run(make: Callable[[Layers], list[Any]]) -> Layers:
        model = Layers()
        steps = make(model)
        for step in range(STEPS):
            x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step)).double()
            model.zero_grad()
            model(x).square().mean().backward()
            for optimizer in steps:
                optimizer.step()
        return model

    options: dict[str, Any] = {"capacity": 4, "damping": 1e-2}
    if method == "mkor":
        options = {"decay": 0.8, "update_every": 2}

    def apart(model: Layers) -> list[Any]:
        where = {} if method == "mfac" else {"model": model}
        first = Preconditioner(model.parameters(), method, **where, **options)
        return [first, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)]

    def together(model: Layers) -> list[Any]:
        if method == "mfac":
            return [MFAC(model.parameters(), 0.01, momentum=0.9, **options)]
        return [MKOR(model.parameters(), 0.01, model=model, momentum=0.9, **options)]

    one, two = run(apart), run(together)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)
