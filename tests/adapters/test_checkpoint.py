"""What is saved reads back bit for bit, and what is damaged says so."""

import copy
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertModel, GPT2Config, GPT2LMHeadModel

from quadric.adapters.torch import LayerRecipe, Recipe, checkpoint, compress
from tests.adapters.models import Toy, token_batches

FORMATS = list(checkpoint.FORMATS)


def compressed(model: nn.Module, recipe: Any, batches: Any = None) -> Any:
    return compress(model, token_batches() if batches is None else batches, recipe, progress=False)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=1, **sizes))


def assert_reads_back(folder: Path, model: nn.Module, fresh: nn.Module) -> None:
    state = model.state_dict()
    loaded = checkpoint.load(folder)
    assert loaded.keys() == state.keys()
    for key, tensor in state.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor), key
    checkpoint.load(folder, fresh)
    assert all(torch.equal(tensor, state[key]) for key, tensor in fresh.state_dict().items())


# Zero points of 0 are likely with 2 bits, and the first version of the format cannot hold them.
GRIDS = [
    (format, bits, symmetric)
    for format in FORMATS
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
    if (format, bits, symmetric) != ("gptq", 2, False)
]


@pytest.mark.parametrize(("format", "bits", "symmetric"), GRIDS)
@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("group_size", [None, 16, "tensor"])
def test_every_setting_reads_back(
    tmp_path: Path, format: str, symmetric: bool, order: str, group_size: Any, bits: int
) -> None:
    model = Toy(width=32, depth=1)
    recipe = LayerRecipe(
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        order=order,
        static_groups=False,
    )
    report = compressed(model, recipe)
    info = checkpoint.save(model, report, tmp_path / "out", format)
    assert info.format == format
    assert {row.bits for row in info.rows} == {bits}
    assert {row.group_size for row in info.rows} == {16 if group_size == 16 else None}
    assert_reads_back(tmp_path / "out", model, Toy(width=32, depth=1, seed=1))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(t.nbytes for t in tensors.values()) == info.bytes
    assert "blocks.0.up.weight" not in tensors
    assert info.bytes < info.dense_bytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("format", FORMATS)
def test_dtypes_read_back(tmp_path: Path, dtype: torch.dtype, format: str) -> None:
    model = Toy(width=32, depth=1).to(dtype)
    report = compressed(model, LayerRecipe(symmetric=True))
    checkpoint.save(model, report, tmp_path / "out", format)
    assert_reads_back(tmp_path / "out", model, Toy(width=32, depth=1, seed=1).to(dtype))


@pytest.mark.parametrize("format", FORMATS)
def test_transposed_layers_and_tied_weights(tmp_path: Path, format: str) -> None:
    model = gpt2()
    report = compressed(model, LayerRecipe(symmetric=True, group_size=16))
    checkpoint.save(model, report, tmp_path / "out", format)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert_reads_back(tmp_path / "out", model, gpt2())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["model_type"] == "gpt2"


def test_convolutions_read_back(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2))

    model = make()
    report = compressed(model, LayerRecipe(), [torch.randn(2, 4, 9, 9)])
    checkpoint.save(model, report, tmp_path / "out")
    assert_reads_back(tmp_path / "out", model, make())


def test_mixed_settings(tmp_path: Path) -> None:
    model = Toy(width=32, depth=2)
    recipe = Recipe(
        {
            "blocks.0.*.query": LayerRecipe(bits="ternary", symmetric=True),
            "*.query": LayerRecipe(bits="ternary", group_size=16),
            "*.key": "skip",
            "*.value": LayerRecipe(bits=None, pattern=(2, 4)),
            "*.out": LayerRecipe(bits=4, group_size=16, pattern=(2, 4)),
            "*.up": LayerRecipe(bits=8, symmetric=True),
            "head": LayerRecipe(bits=8),
            "*": LayerRecipe(bits=3, group_size=16, order="activation", static_groups=False),
        }
    )
    report = compressed(model, recipe)
    info = checkpoint.save(model, report, tmp_path / "out", "compressed-tensors")
    assert_reads_back(tmp_path / "out", model, Toy(width=32, depth=2, seed=1))
    sparsity = {row.name: row.sparsity for row in info.rows}
    assert sparsity["blocks.0.attention.out"] == 0.5
    assert "blocks.0.attention.value" not in sparsity
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = config["config_groups"].values()
    targets = [target for group in groups for target in group["targets"]]
    assert sorted(targets) == sorted(sparsity)
    assert {g["weights"]["num_bits"] for g in groups} == {2, 3, 4, 8}
    assert [g["weights"]["actorder"] for g in groups].count("group") == 1
    assert set(config["ignore"]) == {
        "project",
        *(f"blocks.{i}.attention.{layer}" for i in range(2) for layer in ("key", "value")),
    }
    for format in ("gptq", "gptq_v2"):
        with pytest.raises(ValueError, match=r"one setting .* has bits=.* use format='compr"):
            checkpoint.save(model, report, tmp_path / "other", format)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_gptq_config(tmp_path: Path) -> None:
    model = Toy(width=32, depth=2)
    recipe = Recipe(
        {"*.key": "skip", "blocks.1.up": "skip", "*": LayerRecipe(group_size=16, symmetric=True)}
    )
    report = compressed(model, recipe)
    checkpoint.save(model, report, tmp_path / "out", "gptq")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    skipped = ["blocks.0.attention.key", "blocks.1.attention.key", "blocks.1.up"]
    assert config.pop("meta")["quantizer"][0].startswith("quadric:")
    assert config == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 16,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
        "lm_head": False,
        "dynamic": {f"-:^{name}$".replace(".", r"\."): {} for name in skipped},
    }
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {k: tuple(t.shape) for k, t in tensors.items() if k.startswith("blocks.0.down")} == {
        "blocks.0.down.qweight": (8, 32),
        "blocks.0.down.qzeros": (4, 4),
        "blocks.0.down.scales": (4, 32),
        "blocks.0.down.g_idx": (64,),
        "blocks.0.down.bias": (32,),
    }
    assert tensors["blocks.0.down.scales"].dtype == torch.float16
    assert set(tensors["blocks.0.down.qzeros"].flatten().tolist()) == {0x77777777}

    model = Toy(width=32, depth=2)
    report = compressed(model, Recipe({"*.key": "skip", "*": LayerRecipe(order="activation")}))
    checkpoint.save(model, report, tmp_path / "rows", "gptq_v2")
    config = json.loads((tmp_path / "rows" / "config.json").read_text())["quantization_config"]
    assert (config["group_size"], config["desc_act"], config["sym"]) == (-1, False, False)
    assert config["modules_in_block_to_quantize"] == [
        ["attention.query", "attention.value", "attention.out", "up", "down"]
    ]


def test_compressed_tensors_config(tmp_path: Path) -> None:
    model = Toy(width=32, depth=1)
    report = compressed(model, LayerRecipe(group_size=16, order="activation"))
    checkpoint.save(model, report, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": False,
                    "strategy": "group",
                    "group_size": 16,
                    "actorder": None,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": ["project", "head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_pruned_only_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    model = Toy(depth=1)
    report = compressed(model, LayerRecipe(bits=None, sparsity=0.5))
    info = checkpoint.save(model, report, tmp_path / "out", "gptq")
    assert info.format == "dense"
    assert info.rows == []
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert_reads_back(tmp_path / "out", model, Toy(depth=1, seed=1))


def test_other_programs_checkpoints(tmp_path: Path) -> None:
    """Without our notes in the header, layers are Linear and have the model's dtype."""
    model = Toy(width=32, depth=1)
    report = compressed(model, LayerRecipe(group_size=16, symmetric=True))
    for format in FORMATS:
        folder = tmp_path / format
        checkpoint.save(model, report, folder, format)
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
        assert_reads_back(folder, model, Toy(width=32, depth=1, seed=1))
        assert checkpoint.inspect(folder).rows[0].sparsity is None

        names = sorted(tensors)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, keys in parts.items():
            save_file({key: tensors[key] for key in keys}, folder / file)
        index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors").unlink()
        assert_reads_back(folder, model, Toy(width=32, depth=1, seed=1))


def test_packed_layers_match_an_independent_reader(tmp_path: Path) -> None:
    """GPTQ tensors, decoded value by value from the description of the format."""
    model = Toy(width=32, depth=1)
    report = compressed(model, LayerRecipe(group_size=16, symmetric=True))
    checkpoint.save(model, report, tmp_path / "out", "gptq")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    name = "blocks.0.down"
    qweight = tensors[f"{name}.qweight"].numpy().view(np.uint32)
    qzeros = tensors[f"{name}.qzeros"].numpy().view(np.uint32)
    scales = tensors[f"{name}.scales"].float().numpy()
    weight = np.empty((32, 64), np.float32)
    for o in range(32):
        for i in range(64):
            group = int(tensors[f"{name}.g_idx"][i])
            code = (int(qweight[i // 8, o]) >> (4 * (i % 8))) & 15
            zero = ((int(qzeros[group, o // 8]) >> (4 * (o % 8))) & 15) + 1
            weight[o, i] = scales[group, o] * (code - zero)
    np.testing.assert_array_equal(weight, model.blocks[0].down.weight.detach().numpy())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = Toy(width=32, depth=1)
    report = compressed(model, LayerRecipe(group_size=16))
    checkpoint.save(model, report, tmp_path / "saved")
    return tmp_path / "saved"


def damage(folder: Path, drop: str = "", **config: Any) -> None:
    """Rewrite a checkpoint without one tensor, or with another quantization_config."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {key: tensor for key, tensor in load_file(path).items() if key != drop}
    save_file(tensors, path, metadata)
    old = json.loads((folder / "config.json").read_text())
    old["quantization_config"].update(config)
    (folder / "config.json").write_text(json.dumps(old))


@pytest.mark.parametrize("reader", [checkpoint.load, checkpoint.inspect])
def test_truncated_files(saved: Path, reader: Any) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (0, 5, 8, header - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
            reader(saved)
    for length in (header, header + 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"safetensors is damaged: .* inside tensor '"):
            reader(saved)
    path.write_bytes(whole[:8] + b"\xff" * (header - 8) + whole[header:])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        reader(saved)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        reader(saved)


@pytest.mark.parametrize(
    "key", ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point"]
)
def test_missing_tensors_of_a_layer(saved: Path, key: str) -> None:
    model = Toy(width=32, depth=1)
    before = copy.deepcopy(model.state_dict())
    damage(saved, drop=f"blocks.0.up.{key}")
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*blocks\.0\.up.*{key}|{key}.*up"):
        checkpoint.load(saved, model)
    assert all(torch.equal(tensor, before[k]) for k, tensor in model.state_dict().items())


def test_missing_and_foreign_tensors_of_a_model(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"model has no tensor 'blocks\.0"):
        checkpoint.load(saved, Toy(width=32, depth=0))
    with pytest.raises(ValueError, match=r"tensor 'blocks\.1\..*' is missing"):
        checkpoint.load(saved, Toy(width=32, depth=2))
    with pytest.raises(ValueError, match=r"'embed\.weight' has shape \(40, 32\), model has"):
        checkpoint.load(saved, Toy(width=16, depth=1))
    damage(saved, drop="embed.weight")
    assert "embed.weight" not in checkpoint.load(saved)
    with pytest.raises(ValueError, match=r"tensor 'embed\.weight' is missing"):
        checkpoint.load(saved, Toy(width=32, depth=1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "awq"}, r"config\.json: unknown quantization 'awq'; known are"),
        ({"format": "float-quantized"}, "unknown quantization 'compressed-tensors with format flo"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "checkpoint_format marlin"),
        ({"config_groups": {"group_0": {}}}, "quantization_config is damaged"),
        ({"config_groups": {}}, "no settings for layer 'blocks.0"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, "'blocks.0.*qweight' is missing"),
    ],
)
def test_configs_that_do_not_fit(saved: Path, config: dict[str, Any], message: str) -> None:
    damage(saved, **config)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(saved)


def test_wrong_bits_in_the_config(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())["quantization_config"]
    config["config_groups"]["group_0"]["weights"]["num_bits"] = 8
    damage(saved, **config)
    with pytest.raises(ValueError, match=r"model\.safetensors: layer 'blocks\.0\.attention\.key'"):
        checkpoint.load(saved)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*nowhere is no folder"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json is damaged: it holds list"):
        checkpoint.inspect(tmp_path)


def test_out_dir(tmp_path: Path) -> None:
    model = Toy(width=32, depth=1)
    report = compressed(model, LayerRecipe())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for check in (
        lambda path, **options: checkpoint.save(model, report, path, **options),
        lambda path, **options: checkpoint.check_out_dir(path, **options),
    ):
        with pytest.raises(OSError, match=r"out_dir .*file is a file"):
            check(tmp_path / "file")
        with pytest.raises(OSError, match=r"out_dir .* cannot be written: .*'.*file'"):
            check(tmp_path / "file" / "out")
        with pytest.raises(FileExistsError, match=r"is not empty; see overwrite"):
            check(tmp_path / "full")
        with pytest.raises(FileExistsError, match=r"is not a checkpoint; it is not overwritten"):
            check(tmp_path / "full", overwrite=True)
    checkpoint.check_out_dir(tmp_path / "new" / "deep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full", "new"]

    checkpoint.save(model, report, tmp_path / "empty")
    with pytest.raises(FileExistsError):
        checkpoint.save(model, report, tmp_path / "empty")
    before = (tmp_path / "empty" / "model.safetensors").read_bytes()
    again = Toy(width=32, depth=1, seed=3)
    checkpoint.save(again, compressed(again, LayerRecipe()), tmp_path / "empty", overwrite=True)
    assert (tmp_path / "empty" / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full", "new"]


def test_nothing_is_left_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Toy(width=32, depth=1)
    report = compressed(model, LayerRecipe())
    checkpoint.save(model, report, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    for target in ("out", "new"):
        with pytest.raises(OSError, match=r"cannot be written: No space left"):
            checkpoint.save(model, report, tmp_path / target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_model_and_report_must_belong_together(tmp_path: Path) -> None:
    model = Toy(width=32, depth=1)
    report = compressed(model, LayerRecipe())
    with pytest.raises(ValueError, match=r"model's weight of layer 'blocks\.0.* is not the one in"):
        checkpoint.save(Toy(width=32, depth=1), report, tmp_path / "out")
    with pytest.raises(ValueError, match=r"which model does not have"):
        checkpoint.save(nn.Linear(2, 2), report, tmp_path / "out")
    with pytest.raises(ValueError, match=r"format must be one of"):
        checkpoint.save(model, report, tmp_path / "out", "awq")
    with pytest.raises(ValueError, match=r"out_dir must not be source_dir"):
        checkpoint.save(model, report, tmp_path, source_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_that_a_format_cannot_hold(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
    model[0].weight.data.abs_()  # zero points of 0
    report = compressed(model, LayerRecipe(), [torch.randn(64, 32)])
    with pytest.raises(ValueError, match=r"layer '0': .*gptq_v2"):
        checkpoint.save(model, report, tmp_path / "out", "gptq")
    checkpoint.save(model, report, tmp_path / "out", "gptq_v2")
    assert torch.equal(checkpoint.load(tmp_path / "out")["0.weight"], model[0].weight)


def test_source_files_come_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    (source / "1_Pooling" / "config.json").write_text("{}")
    (source / "runs").mkdir()
    (source / "runs" / "log.txt").write_text("no")
    (source / "config.json").write_text(json.dumps({"model_type": "toy", "extra": [1]}))
    (source / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    for name in ("tokenizer.json", "vocab.txt"):
        (source / name).write_text(name)
    for name in ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", ".git"):
        (source / name).write_text("no")
    model = Toy(width=32, depth=1)
    report = compressed(model, LayerRecipe())
    checkpoint.save(model, report, source / "out", source_dir=source)
    assert sorted(
        p.relative_to(source / "out").as_posix() for p in (source / "out").rglob("*")
    ) == [
        "1_Pooling",
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
        "vocab.txt",
    ]
    config = json.loads((source / "out" / "config.json").read_text())
    assert config["model_type"] == "toy"
    assert config["extra"] == [1]
    assert config["architectures"] == ["Toy"]


def test_summary(saved: Path) -> None:
    lines = checkpoint.inspect(saved).summary().splitlines()
    assert lines[0] == f"{saved}: compressed-tensors"
    assert lines[1].split() == "layer out x in bits group grid zeros size dense ratio".split()
    assert (
        lines[2].split()
        == "blocks.0.attention.key 32 x 32 4 16 shifted - 0.00 MB 0.00 MB 5.95".split()
    )
    assert lines[-1].startswith("total")


def test_dense_models_of_transformers(tmp_path: Path) -> None:
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=40, num_hidden_layers=1, **sizes))
    model.save_pretrained(tmp_path)
    info = checkpoint.inspect(tmp_path)
    assert info.format == "dense"
    assert info.bytes == sum(p.nbytes for p in model.state_dict().values())
    assert checkpoint.load(tmp_path).keys() == model.state_dict().keys()
