"""Train a small network on scikit-learn's digits with four optimizers, each at its best rate.

    python -m demo.digits [--out FOLDER]

Every optimizer gets a grid of as many learning rates; the one with the lowest validation loss is
its own. The runs that are shown have other seeds. Nothing is downloaded.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from quadric import LinAlgError
from quadric.adapters.torch.optim import MFAC, MKOR

STEPS = 300
BATCH = 64
EVERY = 10  # steps from one look at the training loss to the next
TARGET = 0.1
TUNING_SEEDS = (10, 11)
SEEDS = (0, 1, 2)
OUT = Path(__file__).parent / "out"

NOTES = f"""
rate      the best of its grid by validation loss; it falls linearly to 0
steps     until the loss over the whole training set is below {TARGET}
seconds   until then, of forward and backward passes and steps; a step takes what it took in the
          fastest of all runs, those of the tuning included
loss      over the whole training set after {STEPS} steps, the geometric mean of {len(SEEDS)} runs
accuracy  on the test set, the mean

All but AdamW have a momentum of 0.9. M-FAC's window holds 64 gradients, with a damping of 0.1; MKOR
updates its factors in every step. All else is left at its default.
"""


@dataclass(frozen=True)
class Entrant:
    """An optimizer, and the learning rates it is tried with."""

    name: str
    rates: tuple[float, ...]
    make: Callable[[nn.Module, float], torch.optim.Optimizer]


ENTRANTS = (
    Entrant(
        "SGD",
        (0.02, 0.05, 0.1, 0.2, 0.4),
        lambda model, rate: torch.optim.SGD(model.parameters(), rate, momentum=0.9),
    ),
    Entrant(
        "AdamW",
        (0.001, 0.003, 0.01, 0.03, 0.1),
        lambda model, rate: torch.optim.AdamW(model.parameters(), rate),
    ),
    Entrant(
        "M-FAC",
        (0.003, 0.01, 0.02, 0.05, 0.1),
        lambda model, rate: MFAC(
            model.parameters(), rate, capacity=64, damping=0.1, momentum=0.9, momentum_in="window"
        ),
    ),
    Entrant(
        "MKOR",
        (0.02, 0.05, 0.1, 0.2, 0.4),
        lambda model, rate: MKOR(model.parameters(), rate, model=model, update_every=1),
    ),
)


@dataclass(frozen=True)
class Digits:
    """Pictures of 8 x 8 pixels and what they show; a third is held out in two equal parts."""

    training: tuple[Tensor, Tensor]
    shifted: Tensor  # the pictures to train on, moved by up to a pixel: (9, pictures, 1, 8, 8)
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def load(cls) -> "Digits":
        content = load_digits()
        x = torch.tensor(content.images, dtype=torch.float32).unsqueeze(1) / 16
        y = torch.tensor(content.target)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        training, *others = ((x[i], y[i]) for i in order.tensor_split((1197, 1497)))
        moves = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        shifted = torch.stack([training[0].roll(move, (2, 3)) for move in moves])
        return cls(training, shifted, *others)


@dataclass(frozen=True)
class Run:
    """What one training run left behind."""

    losses: list[float]  # over the training set, at the start and after every EVERY steps
    seconds: list[float]  # of each step
    validation_loss: float
    accuracy: float


def network(seed: int) -> nn.Module:
    """Two convolutions and two linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@torch.no_grad()
def loss_of(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    x, y = part
    loss = float(F.cross_entropy(model(x), y))
    return loss if math.isfinite(loss) else math.inf


@torch.no_grad()
def accuracy_of(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    x, y = part
    return float((model(x).argmax(1) == y).float().mean())


def train(entrant: Entrant, rate: float, seed: int, digits: Digits, curve: bool) -> Run:
    """Train a fresh network; `curve` asks for the losses on the way."""
    model = network(seed)
    optimizer = entrant.make(model, rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    generator = torch.Generator().manual_seed(seed)
    labels = digits.training[1]
    losses, seconds = [loss_of(model, digits.training)] if curve else [], []
    for step in range(1, STEPS + 1):
        batch = torch.randint(len(labels), (BATCH,), generator=generator)
        move = torch.randint(len(digits.shifted), (BATCH,), generator=generator)
        x, y = digits.shifted[move, batch], labels[batch]
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        schedule.step()
        if curve and step % EVERY == 0:
            losses.append(loss_of(model, digits.training))
    return Run(losses, seconds, loss_of(model, digits.validation), accuracy_of(model, digits.test))


def tune(entrant: Entrant, digits: Digits, done: Callable[[], Any]) -> tuple[float, list[Run]]:
    """The rate with the lowest mean validation loss, and all runs that came to an end."""
    judged: dict[float, float] = {}
    runs = []
    for rate in entrant.rates:
        losses = []
        for seed in TUNING_SEEDS:
            try:
                runs.append(train(entrant, rate, seed, digits, curve=False))
                losses.append(runs[-1].validation_loss)
            except (ValueError, LinAlgError):  # what quadric says to NaN and to huge numbers
                losses.append(math.inf)
            done()
        judged[rate] = fmean(losses)
    return min(judged, key=judged.__getitem__), runs


@dataclass(frozen=True)
class Result:
    """What an optimizer did at its best rate, over all seeds."""

    name: str
    rate: float
    losses: list[float]  # geometric means over the seeds
    seconds: list[float]  # since the start, at each of the losses
    accuracy: float

    @classmethod
    def of(cls, entrant: Entrant, rate: float, runs: Sequence[Run], all: Sequence[Run]) -> "Result":
        losses = [geometric_mean(point) for point in zip(*(r.losses for r in runs), strict=True)]
        # Other processes slow some steps down, but hardly the same one in every run.
        fastest = [min(step) for step in zip(*(r.seconds for r in all), strict=True)]
        seconds = [sum(fastest[:step]) for step in range(0, STEPS + 1, EVERY)]
        return cls(entrant.name, rate, losses, seconds, fmean(r.accuracy for r in runs))

    @property
    def steps(self) -> list[int]:
        return list(range(0, STEPS + 1, EVERY))

    def reached(self) -> int | None:
        """Where in the lists the loss is below the target for the first time."""
        return next((i for i, loss in enumerate(self.losses) if loss < TARGET), None)


def table(results: Sequence[Result]) -> str:
    """Lay out the results, one optimizer in each line."""
    lines = [["", "rate", "steps", "seconds", "ms a step", "loss", "accuracy"]]
    for r in results:
        at = r.reached()
        lines.append(
            [
                r.name,
                f"{r.rate:g}",
                "-" if at is None else str(r.steps[at]),
                "-" if at is None else f"{r.seconds[at]:.2f}",
                f"{1000 * r.seconds[-1] / STEPS:.2f}",
                f"{r.losses[-1]:.3f}",
                f"{100 * r.accuracy:.1f} %",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw the loss against steps and against seconds."""
    figure = Figure(figsize=(9, 3.4))
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, r in enumerate(results):
        left.plot(r.steps, r.losses, color=f"C{i}", lw=1.5, label=f"{r.name}, rate {r.rate:g}")
        right.plot(r.seconds, r.losses, color=f"C{i}", lw=1.5)
    for axis, what in ((left, "steps"), (right, "seconds")):
        axis.set_yscale("log")
        axis.set_xlabel(what, fontsize=9)
        axis.set_xlim(left=0)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    left.set_ylabel("loss over the training set", fontsize=9)
    left.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the picture")
    picture: Path = parser.parse_args().out / "digits-optimizers.png"
    start = time.perf_counter()
    torch.set_num_threads(1)  # in a network this small, threads cost more than they give
    threadpool_limits(1, user_api="blas")

    digits = Digits.load()
    sizes = [len(y) for _, y in (digits.training, digits.validation, digits.test)]
    weights = sum(p.numel() for p in network(0).parameters())
    print("digits of 8 x 8 pixels: {} to train, {} to validate, {} to test".format(*sizes))
    print(f"network of {weights} parameters; {STEPS} steps, batches of {BATCH}, random shifts")
    print("one thread\n")

    results = []
    runs_each = [len(e.rates) * len(TUNING_SEEDS) + len(SEEDS) for e in ENTRANTS]
    with tqdm(total=sum(runs_each), unit="run", leave=False) as bar:
        for entrant in ENTRANTS:
            bar.set_description(entrant.name)
            rate, tuning = tune(entrant, digits, bar.update)
            runs: list[Run] = []
            for seed in SEEDS:
                runs.append(train(entrant, rate, seed, digits, curve=True))
                bar.update()
            results.append(Result.of(entrant, rate, runs, [*tuning, *runs]))

    print(table(results))
    print(NOTES)
    plot(results, picture)
    print(f"picture   {picture}: loss against steps and seconds")
    print(f"time      {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
