"""The report: rows, table, JSON, picture."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from quadric.adapters.torch import CompressionReport, LayerRecipe, LayerReport, compress
from tests.adapters.models import Toy, token_batches


@pytest.fixture(scope="module")
def report() -> CompressionReport:
    return compress(Toy(), token_batches(), LayerRecipe(bits=3, group_size=8), progress=False)


def test_rows(report: CompressionReport) -> None:
    assert len(report) == len(list(report)) == 18
    row = report.rows[0]
    assert (row.name, row.kind, row.shape) == ("blocks.0.attention.query", "Linear", (16, 16))
    assert (row.bits, row.group_size, row.dtype, row.method) == (3, 8, "float32", "sweep")
    assert row.loss == pytest.approx(float(report.layers[row.name].loss.sum()), rel=1e-12)
    assert row.ratio == row.loss / row.rtn_loss
    assert (row.damping, row.attempts, row.note) == (0.01, 1, "")
    assert LayerReport.from_dict(json.loads(json.dumps(row.to_dict()))) == row
    assert report.loss < report.rtn_loss


def test_summary(report: CompressionReport) -> None:
    lines = report.summary().splitlines()
    assert lines[0].split()[:5] == ["layer", "out", "x", "in", "bits"]
    assert lines[1].startswith("blocks.0.attention.query   16 x 16     3")
    assert lines[19].startswith("18 layers")
    assert lines[20] == "left alone, outside the blocks: project, head"
    assert max(map(len, lines)) < 120


def test_json(report: CompressionReport, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content == json.loads(json.dumps(report.to_dict()))
    assert content["blocks"] == ["blocks"]
    assert content["recipe"] == {"*": {"bits": 3, "group_size": 8}}
    assert len(content["layers"]) == 18


def test_plot(report: CompressionReport, tmp_path: Path) -> None:
    report.plot(tmp_path / "blocks.png")
    assert (tmp_path / "blocks.png").read_bytes().startswith(b"\x89PNG")
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    compress(model, [torch.randn(20, 8)], LayerRecipe(), progress=False).plot(tmp_path / "flat.svg")
    assert (tmp_path / "flat.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match="at least one layer"):
        CompressionReport([], {}).plot(tmp_path / "empty.png")
    assert not (tmp_path / "empty.png").exists()


def test_plot_without_matplotlib(
    report: CompressionReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"quadric\[plot\]"):
        report.plot(tmp_path / "x.png")
