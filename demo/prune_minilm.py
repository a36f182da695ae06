"""Prune all-MiniLM-L6-v2 with gradients of a contrastive loss, and see what that does to it.

    python -m demo.prune_minilm [--out FOLDER]

The two halves of a paragraph should be nearer to each other than to those of other paragraphs. The
paragraphs are the docstrings of the standard library: some modules give the gradients, others are
held out. Nothing is downloaded, and nothing is trained after pruning.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from demo import docstrings
from demo.embedding import (
    Batch,
    batches,
    embed,
    load_model,
    load_tokenizer,
    mean_cosine,
    neighbours_kept,
    unit_embeddings,
)
from quadric.adapters.torch.prune import Pruner
from quadric.adapters.torch.report import table

LEVELS = (0.5, 0.7, 0.8, 0.9)
GRADIENTS = 160  # for each level, at the weights that the one before has left
PAIRS = 4  # a gradient is that of a small batch: many of them say more than large ones
TEMPERATURE = 0.2
HELD_OUT_TEXTS = 256
WORDS = (12, 100)  # of a paragraph, so that half of it says something
OUT = Path(__file__).parent / "out"

METHODS = {"magnitude": "magnitude", "diagonal Fisher": "diagonal", "oBERT": "obert"}

NOTES = """
loss    contrastive loss on held-out text, 32 pairs at a time
cosine  between original and pruned embeddings of held-out text, the mean
top 10  share of the original's ten nearest neighbours that stay among the ten nearest
seconds for gradients, curvature and the new weights of this level
"""

Pair = tuple[Batch, Batch]


@dataclass(frozen=True)
class Task:
    """What every run is given: texts for the gradients, others to judge by."""

    tokenizer: Any
    texts: Sequence[str]
    pairs: Sequence[Pair]  # of held-out text
    held_out: Sequence[Batch]
    reference: Tensor  # the original's embeddings of `held_out`


@dataclass(frozen=True)
class Row:
    """What one way of pruning left of the model at one level."""

    sparsity: float
    group_size: int
    method: str
    loss: float
    cosine: float
    kept: float
    seconds: float


def pair(tokenizer: Any, texts: Sequence[str]) -> Pair:
    """Tokenized first and second halves of texts."""
    words = [text.split() for text in texts]
    sides = [w[: len(w) // 2] for w in words], [w[len(w) // 2 :] for w in words]
    options = {"truncation": True, "max_length": 32, "padding": True, "return_tensors": "pt"}
    first, second = (dict(tokenizer([" ".join(w) for w in side], **options)) for side in sides)
    return first, second


def contrastive_loss(model: nn.Module, batch: Pair) -> Tensor:
    """Cross-entropy of finding the other half of each text among those of the batch."""
    first, second = (unit_embeddings(model, side) for side in batch)
    similarity = first @ second.T / TEMPERATURE
    own = torch.arange(len(similarity))
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def run(label: str, levels: Sequence[float], group_size: int, task: Task) -> Iterator[Row]:
    """Prune a fresh model from level to level."""
    model = load_model()
    loader: Any = DataLoader(
        list(task.texts),
        batch_size=PAIRS,
        shuffle=True,
        collate_fn=partial(pair, task.tokenizer),
        generator=torch.Generator().manual_seed(0),
    )
    pruner = Pruner(
        model,
        contrastive_loss,
        loader,
        method=METHODS[label],
        group_size=group_size,
        n_gradients=GRADIENTS,
        validation=task.pairs,
        progress=False,
    )
    for level in levels:
        step = pruner.prune(level).steps[-1]
        embeddings = embed(model, task.held_out)
        yield Row(
            sparsity=step.sparsity,
            group_size=group_size,
            method=label,
            loss=step.loss or 0.0,
            cosine=mean_cosine(task.reference, embeddings),
            kept=neighbours_kept(task.reference, embeddings),
            seconds=step.seconds,
        )


def judge(rows: Sequence[Row]) -> str:
    """Compare oBERT with the others; exit unless it is better than magnitude throughout."""
    found: dict[tuple[float, int], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row.sparsity, row.group_size), {})[row.method] = row
    lines = []
    for other in ("magnitude", "diagonal Fisher"):
        pairs = [(methods[other], methods["oBERT"]) for methods in found.values()]
        wins = {
            "loss": sum(b.loss < a.loss for a, b in pairs),
            "cosine": sum(b.cosine > a.cosine for a, b in pairs),
            "top 10": sum(b.kept > a.kept for a, b in pairs),
        }
        if other == "magnitude" and min(wins.values()) < len(pairs):
            raise SystemExit(f"oBERT is not better than magnitude throughout: {wins}")
        counts = ", ".join(f"{name} {count}" for name, count in wins.items())
        lines.append(f"oBERT is better than {other} in so many of {len(pairs)} rows: {counts}")
    return "\n".join(lines)


def lay_out(rows: Sequence[Row], dense_loss: float) -> str:
    """A table of the rows below the original model's."""
    lines = [["", "", "loss", "cosine", "top 10", "seconds"]]
    lines.append(["original", "", f"{dense_loss:.3f}", "1.0000", "100.0 %", ""])
    level = None
    for row in rows:
        name = f"{100 * row.sparsity:.0f} %" + (" in 4-blocks" if row.group_size == 4 else "")
        numbers = [f"{row.loss:.3f}", f"{row.cosine:.4f}", f"{100 * row.kept:.1f} %"]
        first = "" if name == level else name
        lines.append([first, row.method, *numbers, f"{row.seconds:.1f}"])
        level = name
    return table(lines, left=(0, 1))


def draw(rows: Sequence[Row], dense_loss: float, path: Path) -> None:
    """Loss, cosine and neighbours against sparsity."""
    panels: list[tuple[str, float, Callable[[Row], float]]] = [
        ("held-out loss", dense_loss, lambda row: row.loss),
        ("cosine to the original", 1.0, lambda row: row.cosine),
        ("ten nearest kept, %", 100.0, lambda row: 100 * row.kept),
    ]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, (title, dense, value) in zip(figure.subplots(1, 3), panels, strict=True):
        for method, colour in zip(METHODS, ("0.6", "C1", "C0"), strict=True):
            points = [(0.0, dense)]
            for row in rows:
                if row.method == method and row.group_size == 1:
                    points.append((100 * row.sparsity, value(row)))
                elif row.method == method:
                    axis.plot(100 * row.sparsity, value(row), "s", ms=5, c=colour, mfc="none")
            axis.plot(*zip(*points, strict=True), "o-", ms=4, c=colour, label=method)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("sparsity, %", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axis.plot([], [], "s", ms=5, c="k", mfc="none", label="in 4-blocks")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def texts() -> tuple[list[str], list[str]]:
    """Paragraphs for the gradients, and held-out ones by length; none is in both."""
    calibration = docstrings.paragraphs(docstrings.CALIBRATION, words=WORDS)
    seen = set(calibration)
    held_out = docstrings.paragraphs(docstrings.HELD_OUT, words=WORDS)
    unseen = [text for text in held_out if text not in seen]
    return calibration, sorted(docstrings.spread(unseen, HELD_OUT_TEXTS), key=len)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder of what is written")
    picture = parser.parse_args().out / "minilm-pruning.png"
    start = time.perf_counter()

    original, tokenizer = load_model(), load_tokenizer()
    calibration, unseen = texts()
    held_out = batches(tokenizer, unseen)
    pairs = [pair(tokenizer, unseen[i : i + 32]) for i in range(0, len(unseen), 32)]
    task = Task(tokenizer, calibration, pairs, held_out, embed(original, held_out))
    with torch.inference_mode():
        dense_loss = sum(float(contrastive_loss(original, p)) for p in pairs) / len(pairs)
    print("all-MiniLM-L6-v2, the 36 linear layers of its 6 blocks, 10.6 million weights")
    print(f"gradients    {GRADIENTS} for each level, of {PAIRS} pairs: halves of a paragraph")
    print(f"text         Python's docstrings: {len(calibration)} paragraphs")
    print(f"held out     {len(unseen)} paragraphs of other modules\n")

    rows: list[Row] = []
    jobs = [(LEVELS, 1), (LEVELS[:1], 4)]
    with tqdm(total=len(METHODS) * (len(LEVELS) + 1), unit="level", leave=False) as bar:
        for levels, group_size in jobs:
            for label in METHODS:
                bar.set_description(label + (", 4-blocks" if group_size == 4 else ""))
                for row in run(label, levels, group_size, task):
                    rows.append(row)
                    bar.update()
    rows.sort(key=lambda row: (row.group_size, row.sparsity, list(METHODS).index(row.method)))

    print(lay_out(rows, dense_loss))
    print(NOTES)
    print(judge(rows))
    draw(rows, dense_loss, picture)
    print(f"\npicture      {picture}")
    print(f"time         {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
