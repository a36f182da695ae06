"""The pruning report: rows, tables, JSON, picture."""

import json
import sys
from pathlib import Path

import pytest

from quadric.adapters.torch.prune import Pruner, PruningReport, plot
from tests.adapters.surgeon import Conv, conv_batches, squared_error


@pytest.fixture(scope="module")
def report() -> PruningReport:
    pruner = Pruner(Conv(), squared_error, conv_batches(30), damping=1e-3, progress=False)
    return pruner.prune(0.5, recomputations=2)


def test_numbers(report: PruningReport) -> None:
    assert len(report) == len(list(report)) == 2
    assert [(row.name, row.shape) for row in report.steps[0].layers] == [
        ("conv", (8, 4, 3, 3)),
        ("head", (8, 8)),
    ]
    step = report.steps[-1]
    assert sum(row.pruned for row in step.layers) == 176
    assert report.sparsity == step.sparsity == 0.5
    assert step.predicted == sum(row.predicted or 0.0 for row in step.layers) > 0
    assert report.loss == step.loss
    assert report.dense_loss is not None
    assert report.seconds == sum(step.seconds for step in report) > 0
    assert report.options == {
        "method": "obert",
        "scope": "global",
        "group_size": 1,
        "block_size": 50,
        "damping": 1e-3,
        "update": "joint",
    }


def test_tables(report: PruningReport) -> None:
    lines = report.summary().splitlines()
    assert lines[0].split() == ["step", "sparsity", "gradients", "predicted", "loss", "s"]
    assert lines[1].split()[:3] == ["dense", "0.00", "%"]
    assert lines[3].split()[:4] == ["2", "50.00", "%", "30"]
    assert lines[5].split() == ["layer", "weights", "sparsity", "predicted"]
    assert lines[6].startswith("conv   8 x 4 x 3 x 3")
    assert lines[8] == "left alone, it is an embedding table: table"
    markdown = report.to_markdown().splitlines()
    assert markdown[0] == "| step | sparsity | gradients | predicted | loss | s |"
    assert markdown[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert len(markdown) == 5 + 1 + 4


def test_json(report: PruningReport, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content == json.loads(json.dumps(report.to_dict()))
    assert PruningReport.from_dict(content) == report


def test_plot(report: PruningReport, tmp_path: Path) -> None:
    report.plot(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    plot({"obert": report, "again": report}, tmp_path / "two.svg")
    assert (tmp_path / "two.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match="must hold a measured loss; see validation"):
        PruningReport({"method": "obert"}).plot(tmp_path / "empty.png")
    assert not (tmp_path / "empty.png").exists()


def test_plot_without_matplotlib(
    report: PruningReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"quadric\[plot\]"):
        report.plot(tmp_path / "x.png")


def test_empty() -> None:
    empty = PruningReport({"method": "magnitude"})
    assert (empty.sparsity, empty.loss, len(empty)) == (0.0, None, 0)
    assert "dense" in empty.summary()
