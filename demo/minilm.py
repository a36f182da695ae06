"""Quantize and prune all-MiniLM-L6-v2, and see what that does to its embeddings of unseen text.

    python -m demo.minilm [--out FOLDER]

The text is the docstrings of the standard library: some modules calibrate, others are held out.
Nothing is downloaded.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from demo import docstrings
from demo.embedding import (
    Batch,
    batches,
    count_tokens,
    embed,
    load_model,
    load_tokenizer,
    mean_cosine,
    model_dir,
    neighbours_kept,
)
from quadric.adapters.torch import CompressionReport, LayerRecipe, checkpoint, compress

CALIBRATION_TEXTS = 256
HELD_OUT_TEXTS = 400
OUT = Path(__file__).parent / "out"

# Inputs with much energy go first, while all the others can still make up for their rounding.
FOUR_BITS = LayerRecipe(bits=4, group_size=64, order="activation")
RECIPES = {
    "4 bits, groups of 64": FOUR_BITS,
    "4 bits, per row": replace(FOUR_BITS, group_size=None),
    "3 bits, groups of 64": replace(FOUR_BITS, bits=3),
    "3 bits, per row": replace(FOUR_BITS, bits=3, group_size=None),
    # Hardware wants 2 of 4 neighbours, hence the natural order here.
    "2:4 sparse": LayerRecipe(bits=None, pattern="2:4"),
    "2:4 and 4 bits, groups of 64": LayerRecipe(bits=4, group_size=64, pattern="2:4"),
}
WRITTEN = "4 bits, groups of 64"  # the checkpoint that stays

NOTES = """
loss    of the layers' outputs, relative to rounding (or pruning by magnitude) on the same inputs
cosine  between original and compressed embeddings of held-out text, the mean
top 10  share of the original's ten nearest neighbours that stay among the ten nearest
size    of the checkpoint, and of the compressed layers in it; embedding tables stay as they are,
        and what is only pruned is stored with its zeros
"""


@dataclass(frozen=True)
class Task:
    """What every run is given: batches to calibrate on, others to judge by."""

    calibration: Sequence[Batch]
    held_out: Sequence[Batch]
    reference: Tensor  # the original's embeddings of `held_out`


@dataclass(frozen=True)
class Row:
    """What one way of compressing did to the model."""

    label: str
    method: str
    loss_ratio: float  # to rounding or magnitude pruning, given the same inputs
    cosine: float
    kept: float
    file_bytes: int
    layer_bytes: int
    seconds: float


def baseline(recipe: LayerRecipe) -> str:
    """What a recipe amounts to when no other weight makes up for the change."""
    parts = ["magnitude"] if recipe.pattern else []
    return " + ".join(parts + (["nearest"] if recipe.bits else []))


def run(
    label: str, method: str, recipe: LayerRecipe, task: Task, folder: Path
) -> tuple[Row, CompressionReport]:
    """Compress a fresh model, write it to `folder`, and judge what can be read back from there."""
    model = load_model()
    start = time.perf_counter()
    report = compress(model, task.calibration, recipe, progress=False)
    seconds = time.perf_counter() - start
    info = checkpoint.save(model, report, folder, source_dir=model_dir(), overwrite=True)
    embeddings = embed(read_back(folder, model, task.held_out[:1]), task.held_out)
    parameters = model.named_parameters()
    fixed = sum(p.nbytes for k, p in parameters if k.removesuffix(".weight") not in report.layers)
    row = Row(
        label=label,
        method=method,
        loss_ratio=report.loss / report.rtn_loss,
        cosine=mean_cosine(task.reference, embeddings),
        kept=neighbours_kept(task.reference, embeddings),
        file_bytes=info.bytes,
        layer_bytes=info.bytes - fixed,
        seconds=seconds,
    )
    return row, report


def read_back(folder: Path, model: nn.Module, inputs: Sequence[Batch]) -> nn.Module:
    """The model in a checkpoint; exits unless its weights and embeddings are those of `model`."""
    fresh = load_model()
    state = checkpoint.load(folder, fresh)
    weights = model.state_dict()
    same = state.keys() == weights.keys() and all(torch.equal(state[k], weights[k]) for k in state)
    if not same or not torch.equal(embed(fresh, inputs), embed(model, inputs)):
        raise SystemExit(f"{folder} does not read back to the model that was written")
    return fresh


def judge(rows: Sequence[Row]) -> str:
    """Say how much nearer the sweep stays to the original; exit unless it is nearer throughout."""
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    for nearest, swept in pairs:
        if not (swept.cosine > nearest.cosine and swept.kept > nearest.kept):
            raise SystemExit(f"{swept.label}: the sweep is no better than {nearest.method}")
    gains = [(1 - nearest.cosine) / (1 - swept.cosine) for nearest, swept in pairs]
    return (
        "The sweep is better in every pair. Its distance to the original on held-out text, "
        f"1 - cosine,\nis {min(gains):.1f} to {max(gains):.1f} times smaller."
    )


def table(rows: Sequence[Row], original: nn.Module) -> str:
    """Lay out the rows below the original model's."""
    size = sum(p.nbytes for p in original.parameters())
    layers = sum(m.weight.nbytes for m in original.modules() if isinstance(m, nn.Linear))
    header = ["", "", "loss", "cosine", "top 10", "file MB", "layers MB", "seconds"]
    lines = [header, ["original", "", "", *_numbers(1.0, 1.0, size, layers), ""]]
    for i, row in enumerate(rows):
        lines.append(
            [
                row.label if i % 2 == 0 else "",
                row.method,
                f"{row.loss_ratio:.3f}",
                *_numbers(row.cosine, row.kept, row.file_bytes, row.layer_bytes),
                f"{row.seconds:.1f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _numbers(cosine: float, kept: float, file_bytes: int, layer_bytes: int) -> list[str]:
    return [
        f"{cosine:.4f}",
        f"{100 * kept:.1f} %",
        f"{file_bytes / 1e6:.1f}",
        f"{layer_bytes / 1e6:.1f}",
    ]


def texts() -> tuple[list[str], list[str]]:
    """Calibration and held-out paragraphs; none is in both."""
    calibration = docstrings.paragraphs(docstrings.CALIBRATION)
    seen = set(calibration)
    held_out = [text for text in docstrings.paragraphs(docstrings.HELD_OUT) if text not in seen]
    return (
        docstrings.spread(calibration, CALIBRATION_TEXTS),
        docstrings.spread(held_out, HELD_OUT_TEXTS),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder of what is written")
    out: Path = parser.parse_args().out
    start = time.perf_counter()

    original, tokenizer = load_model(), load_tokenizer()
    calibration, held_out = (batches(tokenizer, part) for part in texts())
    task = Task(calibration, held_out, embed(original, held_out))
    print("all-MiniLM-L6-v2, the 36 linear layers of its 6 blocks; text: Python's docstrings")
    print(f"calibration  {CALIBRATION_TEXTS} paragraphs, {count_tokens(calibration)} tokens")
    print(f"held out     {HELD_OUT_TEXTS} paragraphs, {count_tokens(held_out)} tokens\n")

    rows: list[Row] = []
    written, scratch, picture = out / "minilm-4-bits", out / "scratch", out / "loss.png"
    with tqdm(total=2 * len(RECIPES), unit="run", leave=False) as bar:
        for label, recipe in RECIPES.items():
            plain = replace(recipe, method="round_to_nearest")
            for method, how in ((baseline(recipe), plain), ("sweep", recipe)):
                bar.set_description(f"{label}: {method}")
                stays = label == WRITTEN and how is recipe
                row, report = run(label, method, how, task, written if stays else scratch)
                rows.append(row)
                if stays:
                    report.plot(picture)
                bar.update()
    shutil.rmtree(scratch)

    print(table(rows, original))
    print(NOTES)
    print(judge(rows))
    print(f"\ncheckpoint   {written}")
    print("read back    from every run's checkpoint: the same weights and embeddings, bit for bit")
    print(f"picture      {picture}: loss of each layer, sweep against nearest")
    print(f"time         {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
