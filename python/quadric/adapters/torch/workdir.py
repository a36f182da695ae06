"""Finished layers on disk, so that a job that was interrupted goes on where it stopped."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors_numpy
from torch import Tensor, nn

from quadric.adapters.torch.files import PARTIAL, write_atomically
from quadric.adapters.torch.report import LayerReport, Result
from quadric.sweep import PrunedMatrix, QuantizedMatrix

_STATE = "state.json"
_KINDS: dict[str, type[QuantizedMatrix] | type[PrunedMatrix]] = {
    "quantized": QuantizedMatrix,
    "pruned": PrunedMatrix,
}


class WorkDir:
    """A folder with one file per finished layer and a description of the job.

    Every file appears whole or not at all, whatever kills the process.

    Raises
    ------
    ValueError
        If the folder belongs to another job, or holds something else.
    OSError
        If it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], job: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        state = self.path / _STATE
        for partial in self.path.glob(f"*{PARTIAL}"):
            partial.unlink()
        if state.exists():
            self._compare(state, job)
        elif any(self.path.iterdir()):
            raise ValueError(f"work_dir {self.path} is not empty and not from an earlier run")
        else:
            write_atomically(state, json.dumps(job, indent=2).encode())

    def _compare(self, state: Path, job: Mapping[str, str]) -> None:
        try:
            before = json.loads(state.read_text(encoding="utf-8"))
            differing = [key for key, value in job.items() if before.get(key) != value]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"work_dir {self.path}: {_STATE} is damaged: {error}") from error
        if differing:
            raise ValueError(
                f"work_dir {self.path} belongs to another job (different {', '.join(differing)}); "
                "delete it or choose another"
            )

    def load(self, name: str) -> tuple[LayerReport, Result] | None:
        """Return what was saved for a layer, or None if that has still to be done."""
        path = self._file(name)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads(file.metadata()["quadric"])
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            result = _KINDS[about["kind"]](**arrays, **about["values"])
            return LayerReport.from_dict(about["report"]), result
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"work_dir file {path} is damaged, delete it: {error}") from error

    def save(self, report: LayerReport, result: Result) -> None:
        """Write the result of a layer."""
        arrays, values = {}, {}
        for field in fields(result):
            value = getattr(result, field.name)
            if isinstance(value, np.ndarray):
                arrays[field.name] = np.ascontiguousarray(value)
            else:
                values[field.name] = value
        kind = next(kind for kind, cls in _KINDS.items() if isinstance(result, cls))
        about = {"kind": kind, "values": values, "report": report.to_dict()}
        content = safetensors_numpy.save(arrays, {"quadric": json.dumps(about)})
        write_atomically(self._file(report.name), content)

    def _file(self, name: str) -> Path:
        return self.path / f"{name or 'model'}.safetensors"


def model_digest(model: nn.Module) -> str:
    """Return a hash of every parameter and buffer."""
    digest = hashlib.sha256()
    _digest(model.state_dict(), digest)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Return a hash of plain values, tensors and arrays, nested in any way."""
    digest = hashlib.sha256()
    _digest(value, digest)
    return digest.hexdigest()


def _digest(value: Any, digest: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}".encode())
        for key, entry in value.items():
            digest.update(f"key {key}".encode())
            _digest(entry, digest)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        digest.update(f"sequence {len(value)}".encode())
        for entry in value:
            _digest(entry, digest)
    else:
        digest.update(f"{type(value).__name__} {value!r}".encode())
