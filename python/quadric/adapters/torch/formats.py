"""The quantization_config of config.json, both ways."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import quadric
from quadric.adapters.torch.files import CONFIG
from quadric.adapters.torch.layers import kind_of
from quadric.sweep import QuantizedMatrix

FORMATS = ("compressed-tensors", "gptq", "gptq_v2")
TENSORS = {  # those that a layer must have, and those that it may have
    "compressed-tensors": (
        ("weight_packed", "weight_scale", "weight_shape"),
        ("weight_zero_point", "weight_g_idx"),
    ),
    "gptq": (("qweight", "qzeros", "scales"), ("g_idx",)),
    "gptq_v2": (("qweight", "qzeros", "scales"), ("g_idx",)),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """How the codes of a layer are to be read; no group size is one group per row."""

    bits: int
    group_size: int | None
    symmetric: bool


def _group_of(q: QuantizedMatrix) -> int | None:
    return q.group_size if isinstance(q.group_size, int) else None


def compressed_tensors_config(
    model: nn.Module, layers: Mapping[str, QuantizedMatrix]
) -> dict[str, Any]:
    """Return the quantization_config for these layers: a group for each distinct setting."""
    settings: dict[tuple[Any, ...], list[str]] = {}
    for name, q in layers.items():
        reordered = bool((np.diff(q.group_index) < 0).any())
        settings.setdefault((q.bits, _group_of(q), q.symmetric, reordered), []).append(name)
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    groups = {}
    for i, ((bits, group_size, symmetric, reordered), names) in enumerate(settings.items()):
        one = len(settings) == 1 and set(names) <= set(linear)
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if one else names,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": symmetric,
                "strategy": "channel" if group_size is None else "group",
                "group_size": group_size,
                "actorder": "group" if reordered else None,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name for name in linear if name not in layers],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def gptq_config(
    model: nn.Module, blocks: Sequence[str], layers: Mapping[str, QuantizedMatrix], format: str
) -> dict[str, Any]:
    """Return the quantization_config for these layers, which must have one setting."""
    settings = dict.fromkeys((q.bits, _group_of(q), q.symmetric) for q in layers.values())
    if len(settings) > 1:
        listed = " and ".join(
            f"bits={bits}, group_size={group}, symmetric={symmetric}"
            for bits, group, symmetric in settings
        )
        raise ValueError(
            f"format {format!r} needs one setting for all layers, the recipe has {listed}; use "
            "format='compressed-tensors'"
        )
    ((bits, group_size, symmetric),) = settings
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": -1 if group_size is None else group_size,
        "desc_act": any(bool((np.diff(q.group_index) < 0).any()) for q in layers.values()),
        "sym": symmetric,
        "checkpoint_format": format,
        "lm_head": any(name.split(".")[-1] == "lm_head" for name in layers),
        "meta": {"quantizer": [f"quadric:{quadric.__version__}"]},
    }
    inside = _names_inside_blocks(model, blocks)
    left = [name for name in inside if name not in layers]
    if left:
        # Two spellings of the same: engines take every layer of a block for quantized otherwise.
        config["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in left}
        packed = dict.fromkeys(inside[name] for name in inside if name in layers)
        if not set(packed) & {inside[name] for name in left}:
            config["modules_in_block_to_quantize"] = [list(packed)]
    return config


def _names_inside_blocks(model: nn.Module, blocks: Sequence[str]) -> dict[str, str]:
    """Return the full names of all layers inside the blocks, and their names inside the block."""
    names = {}
    for name, module in model.named_modules():
        if kind_of(module) is None:
            continue
        if not blocks:
            names[name] = name
        for block in blocks:
            prefix = f"{block}." if block else ""
            if name.startswith(prefix):
                names[name] = name[len(prefix) :].partition(".")[2]
    return names


def format_of(quantization: Mapping[str, Any], where: Path) -> str:
    """Return one of FORMATS, or "" for a dense checkpoint."""
    if not quantization:
        return ""
    method = quantization.get("quant_method")
    if method == "gptq":
        format = quantization.get("checkpoint_format", "gptq")
        if format in ("gptq", "gptq_v2"):
            return str(format)
        method = f"gptq with checkpoint_format {format}"
    if method == "compressed-tensors":
        if quantization.get("format") == "pack-quantized":
            return "compressed-tensors"
        method = f"compressed-tensors with format {quantization.get('format')}"
    raise ValueError(f"{where}: unknown quantization {method!r}; known are {', '.join(FORMATS)}")


def settings_of(
    quantization: Mapping[str, Any], format: str
) -> list[tuple[Callable[[str], Any], Setting]]:
    """Return pairs of a test for layer names and a setting, the most specific first."""
    if not format:
        return []
    try:
        if format != "compressed-tensors":
            group = int(quantization["group_size"])
            bits, symmetric = int(quantization["bits"]), bool(quantization.get("sym", True))
            return [(lambda _: True, Setting(bits, group if group > 0 else None, symmetric))]
        pairs: list[tuple[int, Any, Setting]] = []
        for group in quantization["config_groups"].values():
            weights = group["weights"]
            size = weights["group_size"] if weights["strategy"] == "group" else None
            setting = Setting(int(weights["num_bits"]), size, bool(weights["symmetric"]))
            for target in group["targets"]:
                if target.startswith("re:"):
                    pairs.append((1, re.compile(target[3:]).match, setting))
                elif target in ("Linear", "Conv1D", "Conv2d"):
                    pairs.append((2, lambda _: True, setting))
                else:
                    pairs.append((0, target.__eq__, setting))
        return [pair[1:] for pair in sorted(pairs, key=lambda pair: pair[0])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{CONFIG}: quantization_config is damaged: {error!r}") from error
