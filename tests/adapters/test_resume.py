"""A job that stops and starts again ends where it would have ended."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quadric.adapters.torch import (
    CompressionReport,
    LayerRecipe,
    Recipe,
    compress,
    methods,
    workdir,
)
from tests.adapters.models import Toy, assert_same_matrices, token_batches

RECIPE = Recipe(
    {
        "head": LayerRecipe(bits=8),
        "*.up": LayerRecipe(bits=None, sparsity=0.5),
        "*.down": LayerRecipe(bits=4, group_size=8, pattern=(2, 4)),
        "*": LayerRecipe(bits=4, group_size=8, order="activation"),
    }
)
LAYERS = 13


class Crash(Exception):
    pass


def crash_after(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let that many layers through, once."""
    left = [layers]

    def swept(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise Crash
        return methods.swept(*args)

    # The module: the package has the function under the same name.
    monkeypatch.setattr(sys.modules["quadric.adapters.torch.compress"], "swept", swept)


def run(work_dir: Path | None, **options: Any) -> tuple[Toy, CompressionReport]:
    model = Toy(depth=2)
    batches = token_batches(padded=True)
    report = compress(model, batches, RECIPE, work_dir=work_dir, progress=False, **options)
    return model, report


def assert_same(a: tuple[Toy, CompressionReport], b: tuple[Toy, CompressionReport]) -> None:
    assert_same_matrices(a[1], b[1])
    other = b[0].state_dict()
    assert all(torch.equal(tensor, other[key]) for key, tensor in a[0].state_dict().items())
    for x, y in zip(a[1], b[1], strict=True):
        assert {**x.to_dict(), "seconds": 0} == {**y.to_dict(), "seconds": 0}


@pytest.mark.parametrize("layers", [0, 1, 3, 6, 9, 12])
@pytest.mark.parametrize("options", [{}, {"true_sequential": True}, {"asymmetric": True}])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, options: dict[str, Any]
) -> None:
    expected = run(None, **options)
    assert len(expected[1]) == LAYERS
    crash_after(layers, monkeypatch)
    with pytest.raises(Crash):
        run(tmp_path / "work", **options)
    done = set((tmp_path / "work").glob("*.safetensors"))
    assert len(done) == layers
    times = {path: path.stat().st_mtime_ns for path in done}
    assert_same(run(tmp_path / "work", **options), expected)
    assert {path: path.stat().st_mtime_ns for path in done} == times
    assert_same(run(tmp_path / "work", **options), expected)  # nothing left to do


def test_a_crash_at_every_step_of_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = 0
    while True:
        crash_after(1, monkeypatch)
        try:
            result = run(tmp_path)
        except Crash:
            crashes += 1
            continue
        break
    assert crashes == LAYERS - 1
    monkeypatch.undo()
    assert_same(result, run(None))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.adapters.test_resume import run
count, fsync = [0], os.fsync
def kill(file):
    count[0] += 1
    if count[0] == 5:  # the state file and three layers are there; the fourth is half written
        os.truncate(file, os.fstat(file).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)
os.fsync = kill
run(Path(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    package = str(Path(sys.modules["quadric"].__path__[0]).parent)
    environment = {**os.environ, "PYTHONPATH": package}
    command = [sys.executable, "-c", KILLED, root, str(tmp_path / "work")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert sum(name.endswith(".partial") for name in names) == 1
    assert sum(name.endswith(".safetensors") for name in names) == 3
    assert_same(run(tmp_path / "work"), run(None))
    assert not list((tmp_path / "work").glob("*.partial"))


def test_a_folder_of_another_job_is_refused(tmp_path: Path) -> None:
    batches = token_batches()
    recipe = LayerRecipe(bits=4, group_size=8)

    def job(model: Toy, batches: Any = batches, recipe: Any = recipe, **options: Any) -> None:
        compress(model, batches, recipe, work_dir=tmp_path, progress=False, **options)

    job(Toy(depth=1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"another job \(different model\); delete it or choose"):
        job(Toy(depth=1, seed=1))
    with pytest.raises(ValueError, match=r"different recipe\)"):
        job(Toy(depth=1), recipe=LayerRecipe(bits=3, group_size=8))
    with pytest.raises(ValueError, match=r"different calibration batches\)"):
        job(Toy(depth=1), batches=batches[:2])
    with pytest.raises(ValueError, match=r"different recipe, options\)"):
        job(Toy(depth=1), recipe=LayerRecipe(), asymmetric=True)
    job(Toy(depth=1), n_threads=1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and not from an earlier run"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(OSError, match=r"thesis.txt"):
        run(tmp_path / "thesis.txt" / "work")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run(tmp_path)
    layer = tmp_path / "blocks.0.up.safetensors"
    whole = layer.read_bytes()
    for content in (b"", whole[:9], whole[:-1], b"x" * 100):
        layer.write_bytes(content)
        with pytest.raises(ValueError, match=r"blocks\.0\.up\.safetensors is damaged, delete it"):
            run(tmp_path)
    layer.unlink()
    assert_same(run(tmp_path), run(None))
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state\.json is damaged"):
        run(tmp_path)


def test_a_fallback_is_not_taken_for_a_result(tmp_path: Path) -> None:
    model = torch.nn.Linear(8, 4)
    batches = [torch.ones(0, 8)]

    def job(on_failure: str) -> CompressionReport:
        return compress(
            copy.deepcopy(model),
            batches,
            LayerRecipe(),
            work_dir=tmp_path,
            on_failure=on_failure,
            progress=False,
        )

    assert job("round_to_nearest").rows[0].method == "round_to_nearest"
    assert job("skip").rows[0].method == "none"
    with pytest.raises(ValueError, match=r"no token reached it"):
        job("raise")
    assert job("round_to_nearest").rows[0].method == "round_to_nearest"


def test_digests() -> None:
    a = {"x": torch.arange(4), "y": [1, None, "z", (2.5, True)]}
    assert workdir.digest_of(a) == workdir.digest_of(copy.deepcopy(a))
    different = [
        {"x": torch.arange(4).reshape(2, 2), "y": a["y"]},
        {"x": torch.arange(4, dtype=torch.int32), "y": a["y"]},
        {"x": torch.arange(4).numpy(), "y": a["y"]},
        {"x": torch.arange(4), "y": [1, None, "z", (2.5, False)]},
        {"x": torch.arange(4), "y": [1, None, ["z"], (2.5, True)]},
        {"y": a["y"], "x": torch.arange(4)},
        {"x": torch.tensor(1.0), "y": a["y"]},
    ]
    assert len({workdir.digest_of(b) for b in [a, *different]}) == 8


def test_state_file_says_what_the_job_is(tmp_path: Path) -> None:
    run(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    assert set(state) == {"version", "recipe", "model", "calibration batches", "options"}
