"""What was done to each layer, as rows, a table, a picture and the compressed matrices."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from quadric.sweep import PrunedMatrix, QuantizedMatrix

Result: TypeAlias = QuantizedMatrix | PrunedMatrix


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One layer.

    Attributes
    ----------
    name : str
        Name in the model.
    kind : str
        "Linear", "Conv1D" or "Conv2d".
    shape : (int, int)
        (out, in) of the weights as a matrix.
    dtype : str
        Type of the weights in the model.
    method : str
        "sweep", "round_to_nearest", or "none" for a layer that was left as it is.
    bits, group_size, symmetric
        As in the layer's recipe.
    sparsity : float
        Fraction of the weights that is zero because it was pruned.
    tokens : int
        Inputs it was calibrated on.
    loss, rtn_loss : float or None
        Mean squared error of the output, summed over the outputs: of the result, and of rounding
        to nearest (magnitude pruning) with the same options. None where nothing was measured.
    damping : float or None
        Damping that the factorization went through with.
    attempts : int
        Factorizations tried.
    seconds : float
        Factorization (shared equally) and sweep.
    note : str
        What else to know; empty if all went well.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    dtype: str
    method: str
    bits: int | str | None
    group_size: int | str | None
    symmetric: bool
    sparsity: float = 0.0
    tokens: int
    loss: float | None = None
    rtn_loss: float | None = None
    damping: float | None = None
    attempts: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Loss relative to round-to-nearest's; below 1 is better."""
        return self.loss / self.rtn_loss if self.loss is not None and self.rtn_loss else None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LayerReport":
        """Undo :meth:`to_dict`."""
        return cls(**{**values, "shape": tuple(values["shape"])})


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """What :func:`~quadric.adapters.torch.compress` did.

    Attributes
    ----------
    rows : list of LayerReport
        In the order the layers were done.
    layers : dict of str to QuantizedMatrix or PrunedMatrix
        The results, by name; weights as matrices (out, in).
    recipe : dict
        The rules, as plain values.
    blocks : tuple of str
        Names of the lists of blocks; empty where the model was taken as one block.
    skipped : dict of str to str
        Layers that were left alone, and why.
    """

    rows: list[LayerReport]
    layers: dict[str, Result] = field(repr=False)
    recipe: dict[str, Any] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def loss(self) -> float:
        """Sum of the losses of the layers."""
        return sum(row.loss or 0.0 for row in self.rows)

    @property
    def rtn_loss(self) -> float:
        """Sum of the losses of round-to-nearest."""
        return sum(row.rtn_loss or 0.0 for row in self.rows)

    @property
    def seconds(self) -> float:
        """Time in factorizations and sweeps."""
        return sum(row.seconds for row in self.rows)

    def summary(self) -> str:
        """Return a table, one line per layer, then totals and what was left alone.

        Losses are per token; ``ratio`` is the loss relative to round-to-nearest's.
        """
        header = ["layer", "out x in", "bits", "group", "zeros", "tokens"]
        header += ["loss", "nearest", "ratio", "s", "note"]
        lines = [header]
        for row in self.rows:
            lines.append(
                [
                    row.name or "(model)",
                    f"{row.shape[0]} x {row.shape[1]}",
                    "-" if row.bits is None else str(row.bits),
                    "row" if row.group_size is None else str(row.group_size),
                    f"{row.sparsity:.0%}" if row.sparsity else "-",
                    str(row.tokens),
                    _number(row.loss),
                    _number(row.rtn_loss),
                    _ratio(row.ratio),
                    f"{row.seconds:.2f}",
                    row.note,
                ]
            )
        ratio = self.loss / self.rtn_loss if self.rtn_loss else None
        total = [f"{len(self.rows)} layers", *[""] * 5, _number(self.loss), _number(self.rtn_loss)]
        lines.append([*total, _ratio(ratio), f"{self.seconds:.2f}", ""])
        text = table(lines, left=(0, 10))
        for reason in dict.fromkeys(self.skipped.values()):
            names = [name or "(model)" for name, why in self.skipped.items() if why == reason]
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
            text += f"\nleft alone, {reason}: {shown}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return all but the matrices as plain values."""
        return {
            "recipe": self.recipe,
            "blocks": list(self.blocks),
            "loss": self.loss,
            "rtn_loss": self.rtn_loss,
            "seconds": self.seconds,
            "layers": [{**row.to_dict(), "ratio": row.ratio} for row in self.rows],
            "skipped": self.skipped,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the loss of each layer against round-to-nearest's and save the picture.

        Layers that repeat in every block share a panel, with the block on the x axis.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If no layer has a loss.
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
        except ImportError as error:
            raise ImportError('plot needs matplotlib: pip install "quadric[plot]"') from error
        rows = [row for row in self.rows if row.loss is not None]
        if not rows:
            raise ValueError("the report must hold at least one layer with a loss")
        panels: dict[str, list[tuple[int, LayerReport]]] = {}
        for row in rows:
            kind, block = self._place(row.name)
            panels.setdefault(kind, []).append((block, row))
        repeated = len(panels) < len(rows)
        if not repeated:  # nothing to line up: one panel, one tick per layer
            panels = {"": list(enumerate(rows))}

        columns = min(3, len(panels))
        lines = -(-len(panels) // columns)
        width = 3.6 * columns if repeated else max(4.8, 1.6 + 0.4 * len(rows))
        figure = Figure(figsize=(width, 2.5 * lines + (0.6 if repeated else 1.8)))
        figure.set_layout_engine("constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.remove()
        for axis, (kind, entries) in zip(axes, panels.items(), strict=False):
            entries.sort(key=lambda entry: entry[0])
            x = [i for i, _ in entries]
            nearest = [row.rtn_loss for _, row in entries]
            losses = [row.loss for _, row in entries]
            lines_between = ("o--", "o-") if repeated else ("o", "o")
            axis.plot(x, nearest, lines_between[0], color="0.6", ms=4, lw=1, label="to nearest")
            axis.plot(x, losses, lines_between[1], color="C0", ms=4, label="sweep")
            if all(row.loss and row.rtn_loss for _, row in entries):
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set_title(kind, fontsize=9)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3)
            if repeated:
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            else:
                axis.set_xticks(x, [row.name for _, row in entries], rotation=45, ha="right")
        if repeated:
            figure.supxlabel("block", fontsize=9)
        figure.supylabel("loss per token", fontsize=9)
        handles, labels = axes[0].get_legend_handles_labels()
        where: dict[str, Any] = {"loc": "outside upper center", "ncols": 2}
        figure.legend(handles, labels, fontsize=9, frameon=False, **where)
        figure.savefig(path, dpi=150)

    def _place(self, name: str) -> tuple[str, int]:
        """Return what a layer is called inside its block, and the number of the block."""
        for chain in self.blocks:
            prefix = f"{chain}." if chain else ""
            block, dot, kind = name.removeprefix(prefix).partition(".")
            if name.startswith(prefix) and dot and block.isdigit():
                several = len(self.blocks) > 1
                return (f"{chain}: {kind}" if several else kind), int(block)
        return name, 0


def table(lines: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    """Lay out rows of cells; the columns in `left` are flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
