"""Compressed models on disk: safetensors and config.json, as inference engines load them."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import quadric
from quadric import checks, sweep
from quadric.adapters.torch.files import (
    CONFIG,
    Stored,
    check_out_dir,
    new_folder,
    read_header,
    read_json,
)
from quadric.adapters.torch.formats import (
    FORMATS,
    TENSORS,
    Setting,
    compressed_tensors_config,
    format_of,
    gptq_config,
    settings_of,
)
from quadric.adapters.torch.layers import Kind, Layer, from_matrix, kind_of
from quadric.adapters.torch.methods import dense
from quadric.adapters.torch.report import CompressionReport, table
from quadric.sweep import QuantizedMatrix

__all__ = ["FORMATS", "CheckpointInfo", "PackedLayer", "check_out_dir", "inspect", "load", "save"]

_WEIGHTS = "model.safetensors"


def save(
    model: nn.Module,
    report: CompressionReport,
    out_dir: str | os.PathLike[str],
    format: str = "compressed-tensors",
    *,
    source_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> "CheckpointInfo":
    """Write a compressed model as model.safetensors and config.json.

    Quantized layers are packed; what was only pruned is stored dense, zeros included.

    Parameters
    ----------
    model : torch.nn.Module
        The model that was compressed, with its weights as they came out.
    report : CompressionReport
        What :func:`~quadric.adapters.torch.compress` returned for it.
    out_dir : path
        A new or empty folder. It appears whole or not at all.
    format : {"compressed-tensors", "gptq", "gptq_v2"}, optional
        The first takes layers with different settings. "gptq" is the first version of that format
        and cannot hold a zero point of 0; the fastest kernels for it want ``symmetric=True``.
    source_dir : path, optional
        Folder of the original model: its config.json is the base of the new one, and its tokenizer
        and other small files are copied.
    overwrite : bool, optional
        Replace a checkpoint that is there already.

    Returns
    -------
    CheckpointInfo
        Layers and sizes, as :func:`inspect` gives them.

    Raises
    ------
    ValueError
        If the format cannot hold a layer or the layers' settings, or `model` and `report` do not
        belong together.
    OSError
        If `out_dir` exists and is not to be overwritten, or cannot be written.

    Examples
    --------
    >>> import tempfile, torch
    >>> from quadric.adapters.torch import LayerRecipe, checkpoint, compress
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU())
    >>> recipe = LayerRecipe(bits=4, group_size=32)
    >>> report = compress(model, [torch.randn(128, 64)], recipe, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     info = checkpoint.save(model, report, f"{folder}/out")
    ...     state = checkpoint.load(f"{folder}/out")
    >>> info.rows[0].bits, torch.equal(state["0.weight"], model[0].weight)
    (4, True)
    """
    checks.choice(format, "format", FORMATS)
    out_dir = Path(out_dir)
    source = None if source_dir is None else Path(source_dir)
    if source is not None and source.resolve() == out_dir.resolve():
        raise ValueError(f"out_dir must not be source_dir, got {out_dir} for both")
    modules = dict(model.named_modules())
    tensors, tied = _state(model)
    about: dict[str, dict[str, Any]] = {}
    quantized: dict[str, QuantizedMatrix] = {}
    for name, result in report.layers.items():
        module = modules.get(name)
        kind = None if module is None else kind_of(module)
        if module is None or kind is None:
            raise ValueError(f"report has layer {name!r}, which model does not have")
        layer = Layer(name, module, kind)
        if layer.shape != result.shape or not torch.equal(
            layer.weight.data, layer.weight_from(dense(result))
        ):
            raise ValueError(f"model's weight of layer {name!r} is not the one in report")
        about[name] = {
            "kind": kind,
            "shape": list(layer.weight.shape),
            "dtype": str(layer.weight.dtype).removeprefix("torch."),
            "sparsity": result.sparsity,
            "packed": isinstance(result, QuantizedMatrix),
        }
        if not isinstance(result, QuantizedMatrix):
            continue
        if result.bits == "ternary":  # packed formats know it as 2 bits, one level unused
            result = replace(result, bits=2, symmetric=False)
        quantized[name] = result
        try:
            packed = result.pack(format)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        del tensors[_join(name, "weight")]
        for key, array in packed.items():
            tensors[_join(name, key)] = torch.from_numpy(np.ascontiguousarray(array))

    config = _base_config(model, source)
    if quantized:
        config["quantization_config"] = (
            compressed_tensors_config(model, quantized)
            if format == "compressed-tensors"
            else gptq_config(model, report.blocks, quantized, format)
        )
    ours = {"version": quadric.__version__, "format": format, "layers": about, "tied": tied}
    with new_folder(out_dir, overwrite) as folder:
        if source is not None:
            _copy_extras(source, folder)
        settings = folder / CONFIG
        settings.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        try:
            save_file(tensors, folder / _WEIGHTS, {"format": "pt", "quadric": json.dumps(ours)})
        except SafetensorError as error:
            raise OSError(f"out_dir {out_dir} cannot be written: {error}") from error
        # safetensors makes files for their owner alone.
        (folder / _WEIGHTS).chmod(settings.stat().st_mode & 0o777)
    return inspect(out_dir)


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Read a checkpoint back to dense weights.

    Parameters
    ----------
    path : path
        A folder that :func:`save` wrote, or another in one of its formats.
    model : torch.nn.Module, optional
        Filled with the weights; it is changed only after everything has been read and fits.

    Returns
    -------
    dict of str to Tensor
        What ``model.state_dict()`` was when it was saved, bit for bit.

    Raises
    ------
    ValueError
        If a file is damaged, a tensor is missing or does not fit, or the format is unknown; the
        message names the file and the tensor.
    OSError
        If a file is missing or cannot be read.
    """
    folder = _Folder(path)
    modules = {} if model is None else dict(model.named_modules())
    state: dict[str, Tensor] = {}
    packed_keys: set[str] = set()
    for name in folder.packed:
        setting = folder.setting(name)
        keys = folder.keys_of(name)
        packed_keys.update(keys.values())
        tensors = {short: folder.read(key).numpy() for short, key in keys.items()}
        try:
            q = sweep.unpack(
                tensors,
                folder.format,
                bits=setting.bits,
                group_size=setting.group_size,
                symmetric=setting.symmetric,
            )
        except ValueError as error:
            raise ValueError(f"{folder.weights}: layer {name!r}: {error}") from error
        about = folder.about(name, q.shape, modules.get(name))
        matrix = torch.from_numpy(q.dequantize())
        weight = from_matrix(matrix, about.kind, about.shape).to(about.dtype)
        state[_join(name, "weight")] = weight
    for key in folder.tensors:
        if key not in packed_keys:
            state[key] = folder.read(key)
    for alias, key in folder.tied.items():
        if key not in state:
            raise ValueError(f"{folder.weights}: tensor {key!r} is missing")
        state[alias] = state[key]
    if model is not None:
        _fill(model, state, folder)
    return state


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A quantized layer of a checkpoint."""

    name: str
    shape: tuple[int, int]
    bits: int
    group_size: int | None
    symmetric: bool
    sparsity: float | None
    bytes: int
    dense_bytes: int


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What is in a checkpoint.

    Attributes
    ----------
    path : Path
    format : str
        One of :data:`FORMATS`, or "dense".
    rows : list of PackedLayer
        Quantized layers.
    other_tensors, other_bytes : int
        All that is stored as it is.
    """

    path: Path
    format: str
    rows: list[PackedLayer]
    other_tensors: int
    other_bytes: int

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return self.other_bytes + sum(row.bytes for row in self.rows)

    @property
    def dense_bytes(self) -> int:
        """Size of all tensors if the quantized ones were dense, in the type they had."""
        return self.other_bytes + sum(row.dense_bytes for row in self.rows)

    def summary(self) -> str:
        """Return a table, one line per quantized layer, then totals."""
        lines = [["layer", "out x in", "bits", "group", "grid", "zeros", "size", "dense", "ratio"]]
        for row in self.rows:
            lines.append(
                [
                    row.name or "(model)",
                    f"{row.shape[0]} x {row.shape[1]}",
                    str(row.bits),
                    "row" if row.group_size is None else str(row.group_size),
                    "symmetric" if row.symmetric else "shifted",
                    f"{row.sparsity:.0%}" if row.sparsity else "-",
                    *_sizes(row.bytes, row.dense_bytes),
                ]
            )
        other = [f"{self.other_tensors} other tensors", *[""] * 5]
        lines.append([*other, *_sizes(self.other_bytes, self.other_bytes)])
        lines.append(["total", *[""] * 5, *_sizes(self.bytes, self.dense_bytes)])
        return f"{self.path}: {self.format}\n{table(lines)}"


def inspect(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Return the layers and sizes of a checkpoint without reading its weights.

    Raises
    ------
    ValueError, OSError
        As :func:`load`.
    """
    folder = _Folder(path)
    rows = []
    packed_keys: set[str] = set()
    for name in folder.packed:
        keys = folder.keys_of(name).values()
        packed_keys.update(keys)
        setting = folder.setting(name)
        shape = folder.packed_shape(name, setting.bits)
        about = folder.about(name, shape, None)
        rows.append(
            PackedLayer(
                name=name,
                shape=shape,
                bits=setting.bits,
                group_size=setting.group_size,
                symmetric=setting.symmetric,
                sparsity=about.sparsity,
                bytes=sum(folder.tensors[key].bytes for key in keys),
                dense_bytes=shape[0] * shape[1] * about.dtype.itemsize,
            )
        )
    others = [tensor for key, tensor in folder.tensors.items() if key not in packed_keys]
    return CheckpointInfo(
        path=folder.path,
        format=folder.format or "dense",
        rows=rows,
        other_tensors=len(others),
        other_bytes=sum(tensor.bytes for tensor in others),
    )


@dataclass(frozen=True, slots=True)
class _About:
    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype
    sparsity: float | None


class _Folder:
    """A checkpoint folder with its config and headers read and checked."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(f"checkpoint {self.path} is no folder")
        config = read_json(self.path / CONFIG)
        self.dtype = config.get("dtype") or config.get("torch_dtype")
        self.quantization = config.get("quantization_config") or {}
        self.format = format_of(self.quantization, self.path / CONFIG)
        index = self.path / f"{_WEIGHTS}.index.json"
        self.weights = self.path / _WEIGHTS
        files = [self.weights]
        if index.exists():
            files = sorted(
                {self.path / file for file in read_json(index).get("weight_map", {}).values()}
            )
        self.tensors: dict[str, Stored] = {}
        self._about: dict[str, Any] = {}
        self.tied: dict[str, str] = {}
        for file in files:
            tensors, metadata = read_header(file)
            self.tensors.update(tensors)
            ours = json.loads(metadata.get("quadric", "{}"))
            self._about.update(ours.get("layers", {}))
            self.tied.update(ours.get("tied", {}))
        self.packed = self._packed()
        self._settings = settings_of(self.quantization, self.format)

    def read(self, key: str) -> Tensor:
        file = self.tensors[key].file
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(key)
                return tensor
        except SafetensorError as error:
            raise ValueError(f"{file}: tensor {key!r} cannot be read: {error}") from error

    def setting(self, name: str) -> Setting:
        for matches, setting in self._settings:
            if matches(name):
                return setting
        raise ValueError(f"{self.path / CONFIG} has no settings for layer {name!r}")

    def about(self, name: str, shape: tuple[int, int], module: nn.Module | None) -> _About:
        """Return what the layer was in the model; guess where another program wrote the file."""
        about = self._about.get(name)
        if about is not None:
            dtype = getattr(torch, about["dtype"])
            return _About(about["kind"], tuple(about["shape"]), dtype, about["sparsity"])
        kind = (None if module is None else kind_of(module)) or "Linear"
        dtype = getattr(torch, str(self.dtype or "float16"))
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            return _About(kind, tuple(weight.shape), weight.dtype, None)
        return _About(kind, shape, dtype, None)

    def packed_shape(self, name: str, bits: int) -> tuple[int, int]:
        """Return (out, in)."""
        if self.format == "compressed-tensors":
            m, n = self.read(_join(name, "weight_shape")).tolist()
            return m, n
        words, m = self.tensors[_join(name, "qweight")].shape
        return m, words * 32 // bits

    def _packed(self) -> list[str]:
        """Return the names of the quantized layers; each has all tensors that it must have."""
        if not self.format:
            return []
        required, _ = TENSORS[self.format]
        found = (key for key in self.tensors if f".{key}".endswith(f".{required[0]}"))
        names = [key.removesuffix(required[0]).removesuffix(".") for key in found]
        names += [n for n, about in self._about.items() if about["packed"] and n not in names]
        for key in (_join(name, key) for name in names for key in required):
            if key not in self.tensors:
                raise ValueError(f"{self.weights}: tensor {key!r} is missing")
        return names

    def keys_of(self, name: str) -> dict[str, str]:
        """Return the tensors that a quantized layer has: short name to full name."""
        keys = {key: _join(name, key) for part in TENSORS[self.format] for key in part}
        return {short: key for short, key in keys.items() if key in self.tensors}


def _fill(model: nn.Module, state: Mapping[str, Tensor], folder: _Folder) -> None:
    wanted = model.state_dict()
    for key, tensor in wanted.items():
        if not isinstance(tensor, Tensor):
            continue
        if key not in state:
            raise ValueError(f"{folder.weights}: tensor {key!r} is missing")
        if state[key].shape != tensor.shape:
            raise ValueError(
                f"{folder.weights}: tensor {key!r} has shape {tuple(state[key].shape)}, "
                f"model has {tuple(tensor.shape)}"
            )
    for key in state:
        if key not in wanted:
            raise ValueError(f"{folder.weights}: model has no tensor {key!r}")
    model.load_state_dict(state)


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a model on the CPU, and the names that are other names of one."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    known: dict[Any, str] = {}
    for key, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in known:
            tied[key] = known[place]
            continue
        known[place] = key
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes:  # safetensors takes no views
            tensor = tensor.clone()
        tensors[key] = tensor
    return tensors, tied


def _base_config(model: nn.Module, source: Path | None) -> dict[str, Any]:
    config: dict[str, Any] = {}
    to_json: Any = getattr(getattr(model, "config", None), "to_json_string", None)
    if source is not None and (source / CONFIG).exists():
        config = read_json(source / CONFIG)
    elif to_json is not None:  # a transformers model
        config = json.loads(to_json())
    if not config.get("architectures"):
        config["architectures"] = [type(model).__name__]
    return config


def _copy_extras(source: Path, folder: Path) -> None:
    """Copy what is next to the weights of a model: tokenizer, modules of sentence-transformers."""
    weights = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ot")
    for path in source.iterdir():
        hidden = path.name.startswith(".") or path.name.endswith(".index.json")
        if path.is_file() and not hidden and path.suffix not in weights and path.name != CONFIG:
            shutil.copy2(path, folder)
    parts = source / "modules.json"
    if not parts.exists():
        return
    for entry in json.loads(parts.read_text(encoding="utf-8")):
        part = source / entry.get("path", "")
        if entry.get("path") and part.is_dir() and part.parent == source:
            shutil.copytree(part, folder / part.name)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _sizes(size: int, dense_size: int) -> list[str]:
    ratio = f"{dense_size / size:.2f}" if size else "-"
    return [_megabytes(size), _megabytes(dense_size), ratio]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
