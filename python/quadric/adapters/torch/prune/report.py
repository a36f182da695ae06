"""What each pruning step did, as rows, a table, JSON and a picture."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quadric.adapters.torch.report import table


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedLayer:
    """One layer after one step.

    Attributes
    ----------
    name : str
        Name in the model.
    shape : tuple of int
        Of the weight.
    weights, pruned : int
        How many there are, and how many of them are pruned.
    predicted : float or None
        Increase of the loss that the curvature predicts for this step; None for magnitude.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    pruned: int
    predicted: float | None = None

    @property
    def sparsity(self) -> float:
        """Share of the weights that is pruned."""
        return self.pruned / self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningStep:
    """One step, with Fisher matrices of its own.

    Attributes
    ----------
    target : float
        Sparsity that was asked for.
    gradients : int
        Gradients in the Fisher matrices.
    loss : float or None
        Measured after the step; None where it was not.
    seconds : float
        For gradients, curvature and new weights; the measurement not counted.
    training_step : int or None
        When it was, for a :class:`GradualPruner`.
    layers : tuple of PrunedLayer
    """

    target: float
    gradients: int
    loss: float | None
    seconds: float
    training_step: int | None = None
    layers: tuple[PrunedLayer, ...]

    @property
    def sparsity(self) -> float:
        """Share of the weights of all layers that is pruned."""
        return sum(row.pruned for row in self.layers) / sum(row.weights for row in self.layers)

    @property
    def predicted(self) -> float | None:
        """Increase of the loss that the curvature predicts; None for magnitude."""
        parts = [row.predicted for row in self.layers if row.predicted is not None]
        return sum(parts) if parts else None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values."""
        return {
            **asdict(self),
            "layers": [{**asdict(row), "shape": list(row.shape)} for row in self.layers],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PruningStep":
        """Undo :meth:`to_dict`."""
        layers = (PrunedLayer(**{**x, "shape": tuple(x["shape"])}) for x in values["layers"])
        return cls(**{**values, "layers": tuple(layers)})


@dataclass(slots=True)
class PruningReport:
    """What a :class:`Pruner` has done so far.

    The predicted increase is of the second order, from gradients averaged over a batch. It ranks
    weights well; as a number it is of the right size only where the gradients are of single samples
    and the model fits its data.

    Attributes
    ----------
    options : dict
        Method, scope, sizes, as plain values.
    dense_loss : float or None
        Measured before the first step.
    steps : list of PruningStep
    skipped : dict of str to str
        Layers that are left alone, and why.
    """

    options: dict[str, Any]
    dense_loss: float | None = None
    steps: list[PruningStep] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[PruningStep]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def sparsity(self) -> float:
        """Share of the weights that is pruned now."""
        return self.steps[-1].sparsity if self.steps else 0.0

    @property
    def loss(self) -> float | None:
        """Measured after the last step."""
        return self.steps[-1].loss if self.steps else self.dense_loss

    @property
    def seconds(self) -> float:
        """Time of all steps."""
        return sum(step.seconds for step in self.steps)

    def summary(self) -> str:
        """Return a table of the steps, one of the layers, and what was left alone."""
        text = table(self._steps()) + "\n\n" + table(self._layers())
        for reason in dict.fromkeys(self.skipped.values()):
            names = [name or "(model)" for name, why in self.skipped.items() if why == reason]
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
            text += f"\nleft alone, {reason}: {shown}"
        return text

    def to_markdown(self) -> str:
        """Return the same two tables in Markdown."""
        return "\n\n".join(_markdown(lines) for lines in (self._steps(), self._layers()))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "options": self.options,
            "dense_loss": self.dense_loss,
            "steps": [step.to_dict() for step in self.steps],
            "skipped": self.skipped,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PruningReport":
        """Undo :meth:`to_dict`."""
        steps = [PruningStep.from_dict(step) for step in values["steps"]]
        return cls(**{**values, "steps": steps})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the measured loss against sparsity and save the picture.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If no loss was measured.
        """
        plot({str(self.options.get("method", "")): self}, path)

    def _steps(self) -> list[list[str]]:
        lines = [["step", "sparsity", "gradients", "predicted", "loss", "s"]]
        lines.append(["dense", "0.00 %", "", "", _number(self.dense_loss), ""])
        for i, step in enumerate(self.steps):
            when = i + 1 if step.training_step is None else step.training_step
            numbers = [_percent(step.sparsity), str(step.gradients or "-")]
            numbers += [_number(step.predicted), _number(step.loss), f"{step.seconds:.1f}"]
            lines.append([str(when), *numbers])
        return lines

    def _layers(self) -> list[list[str]]:
        lines = [["layer", "weights", "sparsity", "predicted"]]
        for row in self.steps[-1].layers if self.steps else ():
            shape = " x ".join(map(str, row.shape))
            lines.append(
                [row.name or "(model)", shape, _percent(row.sparsity), _number(row.predicted)]
            )
        return lines


def plot(reports: Mapping[str, PruningReport], path: str | os.PathLike[str]) -> None:
    """Draw the measured losses of several reports against sparsity, and save the picture.

    Parameters
    ----------
    reports : mapping of str to PruningReport
        By the label of their line.
    path : path
        Where to; the suffix says in which format.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    ValueError
        If no loss was measured.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plot needs matplotlib: pip install "quadric[plot]"') from error
    lines: dict[str, list[tuple[float, float]]] = {}
    for label, report in reports.items():
        points = [(0.0, report.dense_loss), *((step.sparsity, step.loss) for step in report)]
        lines[label] = [(100 * x, loss) for x, loss in points if loss is not None]
    if not any(len(line) > 1 for line in lines.values()):
        raise ValueError("the reports must hold a measured loss; see validation")
    figure = Figure(figsize=(5.6, 3.6))
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    for label, line in lines.items():
        axis.plot(*zip(*line, strict=True), "o-", ms=4, label=label or None)
    axis.set_xlabel("sparsity, %")
    axis.set_ylabel("loss")
    axis.grid(alpha=0.3)
    if any(lines):
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
