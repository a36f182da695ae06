"""The command line, from a model folder and a text file to a checkpoint."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

import quadric as qd
from quadric.adapters.torch import checkpoint
from quadric.cli import main

WORDS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *"the quick brown fox jumps over a lazy dog".split()]


def save_tokenizer(folder: Path, special: bool) -> None:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    limits = {"vocab_size": len(WORDS), "max_position_embeddings": 24, "num_hidden_layers": 2}
    BertModel(BertConfig(**sizes, **limits)).save_pretrained(folder)
    save_tokenizer(folder, special=True)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 24}
    config = GPT2Config(vocab_size=len(WORDS), bos_token_id=0, eos_token_id=1, **sizes)
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, special=False)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(4, len(WORDS), (3000,), generator=generator)
    path.write_text(" ".join(WORDS[i] for i in chosen))
    return path


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


def test_compress_and_inspect(
    bert: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--bits", 4, "--group-size", 16, "--order", "activation", "--samples", 40]
    files = ["--plot", tmp_path / "loss.png", "--report", tmp_path / "report.json"]
    work = ["--work-dir", tmp_path / "work"]
    assert run("compress", bert, "--text", text, "--out", out, *options, *files, *work) == 0
    printed, bar = capfd.readouterr()
    assert "encoder.layer.1.output.dense" in printed
    assert printed.splitlines()[-1].startswith(f"{out}: ")
    assert "100%" in bar
    assert (tmp_path / "loss.png").stat().st_size > 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["loss"] < report["rtn_loss"]
    assert {layer["tokens"] for layer in report["layers"]} == {40 * 24}
    assert report["skipped"] == {"pooler.dense": "outside the blocks"}
    assert {path.name for path in out.iterdir()} >= {"config.json", "tokenizer.json"}

    assert run("inspect", out) == 0
    printed, _ = capfd.readouterr()
    assert printed.startswith(f"{out}: compressed-tensors")
    assert "encoder.layer.0.attention.self.query" in printed

    # The same command again: everything is in the work folder, and the result is the same.
    again = tmp_path / "again"
    assert run("compress", bert, "--text", text, "--out", again, *options, *work, "--quiet") == 0
    assert capfd.readouterr() == ("", "")
    a, b = checkpoint.load(out), checkpoint.load(again)
    assert all(torch.equal(tensor, b[key]) for key, tensor in a.items())

    model = BertModel.from_pretrained(bert)
    original = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    checkpoint.load(out, model)
    changed = [key for key, tensor in model.state_dict().items() if tensor.ne(original[key]).any()]
    assert len(changed) == 12


def test_causal_model_with_a_recipe_file(
    gpt2: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '"*.c_attn" = {bits = 4, group_size = 16, symmetric = true}\n'
        '"*.c_fc" = {bits = 4, group_size = 16, symmetric = true, pattern = [2, 4]}\n'
    )
    options = ["--recipe", recipe, "--format", "gptq", "--quiet", "--true-sequential"]
    assert run("compress", gpt2, "--text", text, "--out", tmp_path / "out", *options) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["quantization_config"]["modules_in_block_to_quantize"] == [
        ["attn.c_attn", "mlp.c_fc"]
    ]
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    checkpoint.load(tmp_path / "out", model)
    kept = (model.transformer.h[0].mlp.c_fc.weight.detach().T != 0).reshape(-1, 4).sum(1)
    assert int(kept.max()) <= 2
    assert model.lm_head.weight is model.transformer.wte.weight


def test_prune_only(bert: Path, text: Path, tmp_path: Path) -> None:
    options = ["--bits", "none", "--pattern", "2:4", "--quiet"]
    assert run("compress", bert, "--text", text, "--out", tmp_path / "out", *options) == 0
    model = BertModel.from_pretrained(tmp_path / "out")  # an ordinary checkpoint
    kept = (model.encoder.layer[0].output.dense.weight.detach() != 0).reshape(-1, 4).sum(1)
    assert int(kept.max()) <= 2


def error_of(capfd: pytest.CaptureFixture[str], *args: object) -> str:
    assert run(*args) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("quadric: error: ")
    return err


def test_errors_are_one_line(
    bert: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def error(*args: object, model: Path = bert, source: Path = text, out: object = None) -> str:
        out = tmp_path / "out" if out is None else out
        message = error_of(capfd, "compress", model, "--text", source, "--out", out, *args)
        assert not (tmp_path / "out").exists()
        return message

    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("  \n")
    binary.write_bytes(b"\xff\xfe\x00")
    assert "has no config.json" in error(model=tmp_path)
    assert "nowhere.txt" in error(source=tmp_path / "nowhere.txt")
    assert "--text holds no tokens" in error(source=empty)
    assert "is not UTF-8" in error(source=binary)
    assert "cannot be written" in error(out=text / "out")
    assert "is not empty; see overwrite" in error(out=bert)
    assert "bits must be one of" in error("--bits", 5)
    assert "group_size must be at most its 32 inputs, got 128" in error()
    assert "group_size must be at least 1, got 0" in error("--group-size", 0)
    assert "pattern must keep n of m" in error("--pattern", "4:2", "--group-size", 16)
    assert "--recipe takes the place of --bits" in error("--bits", 4, "--recipe", "x.json")
    assert "nowhere.json" in error("--recipe", "nowhere.json")
    assert "no such folder" in error("--plot", tmp_path / "no" / "plot.png")
    assert "blocks must name" in error("--blocks", "layers", "--group-size", 16)
    assert "backend must be one of" in error("--backend", "fortran", "--group-size", 16)
    assert "is not empty and not from" in error("--work-dir", bert, "--group-size", 16)

    quantized = tmp_path / "quantized"
    quantized.mkdir()
    (quantized / "config.json").write_text('{"quantization_config": {}}')
    assert "is quantized already" in error(model=quantized)
    (quantized / "config.json").write_text("{")
    assert "config.json is damaged" in error(model=quantized)
    (quantized / "config.json").write_text((bert / "config.json").read_text())
    assert error(model=quantized)  # no tokenizer: transformers' own words
    save_tokenizer(quantized, special=True)
    assert "model.safetensors" in error("--group-size", 16, model=quantized)

    assert "is no folder" in error_of(capfd, "inspect", tmp_path / "nowhere")
    (quantized / "model.safetensors").write_bytes(b"half")
    assert "is truncated" in error_of(capfd, "inspect", quantized)


@pytest.mark.parametrize(
    "args",
    [
        ["compress"],
        ["compress", "model", "--text", "t", "--out", "o", "--bits", "four"],
        ["compress", "model", "--text", "t", "--out", "o", "--samples", "0"],
        ["compress", "model", "--text", "t", "--out", "o", "--format", "awq"],
        ["conjure"],
    ],
)
def test_usage_errors(args: Sequence[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    assert "quadric" in capfd.readouterr().err


def test_traceback_on_request(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder"):
        run("--traceback", "inspect", tmp_path / "nowhere")


def test_info_version_and_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    assert f"quadric      {qd.__version__}" in capfd.readouterr().out
    with pytest.raises(SystemExit) as done:
        run("--version")
    assert done.value.code == 0
    assert capfd.readouterr().out == f"quadric {qd.__version__}\n"
    assert run() == 2
    assert "compress" in capfd.readouterr().out


def test_missing_packages_name_the_extra(
    bert: Path, text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    args = ("compress", bert, "--text", text, "--out", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert 'pip install "quadric[demo]"' in error_of(capfd, *args)
    for name in [name for name in sys.modules if name.startswith("quadric.adapters.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert 'needs safetensors: pip install "quadric[torch]"' in error_of(capfd, *args)
    assert 'pip install "quadric[torch]"' in error_of(capfd, "inspect", tmp_path)


def python_m(*args: str) -> "subprocess.CompletedProcess[str]":
    package = str(Path(next(iter(qd.__path__))).parent)
    environment = {**os.environ, "PYTHONPATH": package}
    command = [sys.executable, "-m", "quadric", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_python_m_quadric() -> None:
    done = python_m("--cmakedir")
    try:
        folder = qd.get_cmake_dir()
    except ImportError:
        assert done.returncode == 2
        assert done.stderr.startswith("quadric: error: ")
    else:
        assert done.returncode == 0
        assert done.stdout == f"{folder}\n"


def test_the_command_does_not_import_torch() -> None:
    code = "import sys, quadric.cli; sys.exit('torch' in sys.modules)"
    package = str(Path(next(iter(qd.__path__))).parent)
    environment = {**os.environ, "PYTHONPATH": package}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
