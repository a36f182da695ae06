"""Whole models: the adapter must do what doing it by hand does, and leave nothing broken behind."""

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, T5Config, T5Model

import quadric as qd
from quadric.adapters.torch import LayerRecipe, Recipe, compress, methods
from tests.adapters.models import (
    Toy,
    assert_same_matrices,
    call,
    compressed_up_to,
    factor_by_hand,
    inputs_of,
    token_batches,
)

RECIPE = LayerRecipe(bits=4, group_size=8)
INPUT_GROUPS = [
    ("attention.query", "attention.key", "attention.value"),
    ("attention.out",),
    ("up",),
    ("down",),
]


def bert() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=40, num_hidden_layers=3, **sizes))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=1)
    )


def t5() -> T5Model:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5Model(T5Config(vocab_size=40, **sizes))


def by_hand(
    original: nn.Module,
    compressed: nn.Module,
    name: str,
    ready: tuple[str, ...],
    batches: list[Any],
    **options: Any,
) -> qd.sweep.QuantizedMatrix:
    """Compress one layer against its inputs in a model of which the layers `ready` are done."""
    mixed = compressed_up_to(original, compressed, lambda layer: layer.startswith(ready))
    masks = [b.get("attention_mask") if isinstance(b, dict) else None for b in batches]
    inputs = inputs_of(mixed, name, batches)
    factor = factor_by_hand(inputs, masks, **options)
    weight = original.get_submodule(name).weight.detach()
    if type(original.get_submodule(name)).__name__ == "Conv1D":
        weight = weight.T
    W = np.ascontiguousarray(weight.numpy())
    return qd.sweep.quantize(W, factor, bits=4, group_size=8, scale_dtype="float16")


@pytest.mark.parametrize("padded", [False, True])
def test_toy_equals_layer_by_layer(padded: bool) -> None:
    original, batches = Toy(), token_batches(padded=padded)
    model = copy.deepcopy(original)
    report = compress(model, batches, RECIPE, progress=False)
    assert len(report.layers) == 18
    for name, result in report.layers.items():
        block = int(name.split(".")[1])
        ready = tuple(f"blocks.{i}." for i in range(block)) or ("none",)
        expected = by_hand(original, model, name, ready, batches)
        np.testing.assert_array_equal(result.codes, expected.codes, err_msg=name)
        np.testing.assert_array_equal(result.loss, expected.loss)
        weight = model.get_submodule(name).weight
        assert torch.equal(weight, torch.from_numpy(expected.dequantize()))
    tokens = int(sum(batch["attention_mask"].sum() for batch in batches))
    assert {row.tokens for row in report} == {tokens}


@pytest.mark.parametrize(
    ("make", "blocks", "layers"),
    [(bert, "encoder.layer", 18), (gpt2, "transformer.h", 12)],
)
def test_transformers_equal_layer_by_layer(make: Any, blocks: str, layers: int) -> None:
    original, batches = make(), token_batches(padded=True)
    model = copy.deepcopy(original)
    report = compress(model, batches, RECIPE, progress=False)
    assert report.blocks == (blocks,)
    assert len(report.layers) == layers
    for name, result in report.layers.items():
        block = int(name.removeprefix(f"{blocks}.").split(".")[0])
        ready = tuple(f"{blocks}.{i}." for i in range(block)) or ("none",)
        expected = by_hand(original, model, name, ready, batches)
        np.testing.assert_array_equal(result.codes, expected.codes, err_msg=name)
    assert report.loss < report.rtn_loss


def test_encoder_and_decoder_in_turn() -> None:
    original = t5()
    ids = [batch["input_ids"] for batch in token_batches()]
    batches = [{"input_ids": x, "decoder_input_ids": x.flip(1)} for x in ids]
    model = copy.deepcopy(original)
    blocks = ["encoder.block", "decoder.block"]
    report = compress(model, batches, RECIPE, blocks=blocks, progress=False)
    assert len(report.layers) == 2 * 6 + 2 * 10
    # The second block's position bias is an output of the first.
    for name in (
        "encoder.block.1.layer.0.SelfAttention.q",
        "decoder.block.1.layer.1.EncDecAttention.k",
    ):
        ready = ("encoder.block.0",) if name.startswith("enc") else ("encoder", "decoder.block.0")
        expected = by_hand(original, model, name, ready, batches)
        np.testing.assert_array_equal(report.layers[name].codes, expected.codes, err_msg=name)


def test_true_sequential_recalibrates_within_a_block() -> None:
    original, batches = Toy(depth=2), token_batches()
    model = copy.deepcopy(original)
    report = compress(model, batches, RECIPE, true_sequential=True, progress=False)
    ready: tuple[str, ...] = ("none",)
    for block in range(2):
        for group in INPUT_GROUPS:
            names = tuple(f"blocks.{block}.{layer}" for layer in group)
            for name in names:
                expected = by_hand(original, model, name, ready, batches)
                np.testing.assert_array_equal(report.layers[name].codes, expected.codes, name)
            ready += names


def test_asymmetric_aims_at_the_uncompressed_model() -> None:
    original, batches = Toy(depth=2), token_batches(padded=True)
    model = copy.deepcopy(original)
    report = compress(model, batches, RECIPE, asymmetric=True, progress=False)
    plain = compress(copy.deepcopy(original), batches, RECIPE, progress=False)
    ready: tuple[str, ...] = ()
    for block in range(2):
        for group in INPUT_GROUPS:
            names = tuple(f"blocks.{block}.{layer}" for layer in group)
            for name in names:
                codes = report.layers[name].codes
                if not ready:  # nothing is compressed before it
                    np.testing.assert_array_equal(codes, plain.layers[name].codes)
                    continue
                expected = aimed_by_hand(original, model, name, ready, batches)
                np.testing.assert_array_equal(codes, expected.codes, err_msg=name)
            ready += names


def aimed_by_hand(original, model, name, ready, batches):
    """Layer `name` with the layers in `ready` compressed, aiming at the original's outputs."""
    mixed = compressed_up_to(original, model, lambda layer: layer in ready)
    acc = qd.sweep.HessianAccumulator(original.get_submodule(name).in_features)
    pairs = zip(
        batches, inputs_of(mixed, name, batches), inputs_of(original, name, batches), strict=True
    )
    for batch, x, reference in pairs:
        keep = batch["attention_mask"] != 0
        acc.update(x[keep], reference=reference[keep])
    factor = qd.sweep.factorize(acc.value().numpy())
    W = original.get_submodule(name).weight.detach().numpy()
    return qd.sweep.quantize(
        W, factor, group_size=8, scale_dtype="float16", cross=acc.cross().numpy()
    )


def test_one_factorization_for_query_key_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    factorize = qd.sweep.factorize
    monkeypatch.setattr(
        "quadric.sweep.factorize", lambda *a, **k: calls.append(1) or factorize(*a, **k)
    )
    compress(Toy(depth=2), token_batches(), RECIPE, progress=False)
    assert len(calls) == 2 * len(INPUT_GROUPS)
    calls.clear()
    recipe = Recipe({"*.key": {"group_size": 8, "order": "activation"}, "*": RECIPE})
    compress(Toy(depth=2), token_batches(), recipe, progress=False)
    assert len(calls) == 2 * (len(INPUT_GROUPS) + 1)


def test_rules_decide_by_name() -> None:
    model = Toy(depth=2)
    before = copy.deepcopy(model.state_dict())
    recipe = Recipe(
        {
            "head": LayerRecipe(bits=8),
            "project": LayerRecipe(bits=8, symmetric=True),
            "blocks.0.*": "skip",
            "*.query": LayerRecipe(bits="ternary", symmetric=True),
            "*.up": LayerRecipe(bits=None, pattern="2:4"),
            "*.down": LayerRecipe(bits=4, sparsity=0.5, group_size=8),
            "*": LayerRecipe(bits=3, method="round_to_nearest"),
        }
    )
    report = compress(model, token_batches(), recipe, progress=False)
    assert (report.rows[0].name, report.rows[-1].name) == ("project", "head")
    assert {row.name: row.bits for row in report} == {
        "project": 8,
        "blocks.1.attention.query": "ternary",
        "blocks.1.attention.key": 3,
        "blocks.1.attention.value": 3,
        "blocks.1.attention.out": 3,
        "blocks.1.up": None,
        "blocks.1.down": 4,
        "head": 8,
    }
    for key, old in before.items():
        name = key.rpartition(".")[0]
        changed = not torch.equal(model.state_dict()[key], old)
        assert changed == (name in report.layers and key.endswith("weight")), key
    rows = {row.name: row for row in report}
    assert rows["blocks.1.up"].sparsity == rows["blocks.1.down"].sparsity == 0.5
    assert rows["blocks.1.attention.key"].ratio == 1.0
    kept = (model.blocks[1].up.weight.detach().numpy() != 0).reshape(-1, 4).sum(1)
    assert kept.max() <= 2
    assert all(why == "the recipe skips it" for why in report.skipped.values())


def test_a_star_stays_inside_the_blocks() -> None:
    report = compress(Toy(), token_batches(), Recipe({"*": RECIPE}), progress=False)
    assert report.skipped == {"project": "outside the blocks", "head": "outside the blocks"}


def test_heads_see_the_compressed_blocks() -> None:
    original, batches = Toy(depth=2), token_batches()
    model = copy.deepcopy(original)
    report = compress(model, batches, Recipe({"head": RECIPE, "*": RECIPE}), progress=False)
    expected = by_hand(original, model, "head", ("blocks.",), batches)
    np.testing.assert_array_equal(report.layers["head"].codes, expected.codes)


class Net(nn.Module):
    """Convolutions and a head, with batches that are plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.second = nn.Conv2d(8, 12, 2, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.first(x))))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def test_convolutions() -> None:
    torch.manual_seed(1)
    batches = [torch.randn(6, 3, 10, 10) for _ in range(3)]
    original = Net()
    model = copy.deepcopy(original)
    report = compress(model, batches, LayerRecipe(bits=4), true_sequential=True, progress=False)
    assert [row.kind for row in report] == ["Conv2d", "Conv2d", "Linear"]
    assert report.skipped == {"grouped": "it is a grouped convolution"}
    assert report.layers["first"].shape == (8, 27)
    assert torch.equal(
        model.first.weight.flatten(1), torch.from_numpy(report.layers["first"].dequantize())
    )
    nearest = copy.deepcopy(original)
    compress(nearest, batches, LayerRecipe(method="round_to_nearest"), progress=False)
    with torch.no_grad():
        target = original(torch.cat(batches))
        assert (model(torch.cat(batches)) - target).norm() < (
            nearest(torch.cat(batches)) - target
        ).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_dtype(dtype: torch.dtype) -> None:
    model = Toy(depth=1).to(dtype)
    report = compress(model, token_batches(), RECIPE, progress=False)
    assert {p.dtype for p in model.parameters()} == {dtype}
    for name, result in report.layers.items():
        expected = torch.from_numpy(result.dequantize()).to(dtype)
        assert torch.equal(model.get_submodule(name).weight, expected)


def test_a_single_layer_is_a_model() -> None:
    model = nn.Linear(16, 4)
    report = compress(model, [torch.randn(40, 16)], RECIPE, progress=False)
    assert list(report.layers) == [""]
    assert "(model)" in report.summary()


def test_a_sequential_of_blocks_is_a_chain() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
    batches = [torch.randn(40, 8)]
    original = copy.deepcopy(model)
    report = compress(model, batches, RECIPE, progress=False)
    assert report.blocks == ("",)
    expected = by_hand(original, model, "1.0", ("0.",), batches)
    np.testing.assert_array_equal(report.layers["1.0"].codes, expected.codes)


class Recurrent(nn.Module):
    """Calls its only block twice, so the blocks are no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for block in [*self.blocks, *self.blocks]:
            x = torch.tanh(block(x))
        return x


def test_blocks_that_are_no_chain() -> None:
    batches = [torch.randn(40, 8)]
    with pytest.warns(UserWarning, match=r"taken as one block: block 'blocks.1' does not get"):
        report = compress(Recurrent(), batches, RECIPE, progress=False)
    assert report.blocks == ()
    assert [row.tokens for row in report] == [80, 80]
    with pytest.raises(ValueError, match=r"blocks 'blocks': block 'blocks.1' does not get"):
        compress(Recurrent(), batches, RECIPE, blocks="blocks", progress=False)
    with pytest.raises(ValueError, match=r"blocks must name .* 'none' is no module"):
        compress(Recurrent(), batches, RECIPE, blocks="none", progress=False)


def test_blocks_that_change_their_input() -> None:
    blocks = (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)) for _ in range(2))
    model = nn.Sequential(*blocks)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"block '0' changes its input in place"):
        compress(model, [torch.randn(40, 8)], RECIPE, progress=False)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class Experts(nn.Module):
    """Routes by the first feature; the last expert gets nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for expert, chosen in zip(self.experts, (x[:, 0] > 0, x[:, 0] <= 0), strict=False):
            y[chosen] = expert(x[chosen])
        return y


@pytest.mark.filterwarnings("ignore:the model is taken as one block")
def test_layers_without_tokens() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(40, 8)]
    original = Experts()
    model = copy.deepcopy(original)
    with pytest.raises(ValueError, match=r"layer 'experts.2': no token reached it"):
        compress(model, batches, RECIPE, progress=False)
    assert torch.equal(model.experts[0].weight, original.experts[0].weight)

    report = compress(model, batches, RECIPE, on_failure="skip", progress=False)
    assert list(report.layers) == ["experts.0", "experts.1"]
    assert report.rows[2].method == "none"
    assert report.rows[2].note == "skipped: no token reached it"
    assert torch.equal(model.experts[2].weight, original.experts[2].weight)
    assert "no token reached it" in report.summary()

    report = compress(original, batches, RECIPE, on_failure="round_to_nearest", progress=False)
    assert report.rows[2].method == "round_to_nearest"
    assert report.rows[2].loss is None
    assert [row.tokens for row in report][2] == 0


def fail(*_: Any, **__: Any) -> Any:
    raise qd.LinAlgError("H is not positive definite", pivot=3)


def test_a_hessian_that_cannot_be_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    factorize = qd.sweep.factorize

    def sometimes(H: Any, **options: Any) -> Any:
        if H.shape[0] == 32 and options["on_failure"] == "raise":
            fail()
        return factorize(H, **options)

    monkeypatch.setattr("quadric.sweep.factorize", sometimes)
    model = Toy(depth=1)
    with pytest.raises(qd.LinAlgError, match=r"layer 'blocks.0.down': H is not") as error:
        compress(model, token_batches(), RECIPE, progress=False)
    assert error.value.pivot == 3
    report = compress(model, token_batches(), RECIPE, on_failure="skip", progress=False)
    assert report.rows[-1].note == "skipped: H is not positive definite"


def test_few_tokens_and_dead_inputs_are_noted() -> None:
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU())
    x = torch.randn(10, 16)
    x[:, 3] = 0
    (row,) = compress(model, [x], RECIPE, progress=False)
    assert row.note == "1 dead inputs; fewer tokens than inputs"


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_model_gets_its_weights_back(
    monkeypatch: pytest.MonkeyPatch, layer: int, error: type[BaseException]
) -> None:
    left = [layer]

    def until(*args: Any) -> Any:
        if left[0] == 0:
            raise error("enough")
        left[0] -= 1
        return methods.swept(*args)

    # The module: the package has the function under the same name.
    monkeypatch.setattr(sys.modules["quadric.adapters.torch.compress"], "swept", until)
    model = Toy(depth=1).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=r"enough"):
        compress(model, token_batches(), RECIPE, progress=False)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bad_calibration_data_names_layer_and_batch() -> None:
    model = Toy(depth=2)
    batches = token_batches()
    with torch.no_grad():
        model.embed.weight[batches[1]["input_ids"][0, 0]] = torch.nan
    batches = [batches[1], batches[0]]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'blocks\.0\.attention\.query', calib.* batch 0: X"):
        compress(model, batches, RECIPE, progress=False)
    bad = nn.Linear(4, 4)
    bad.weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"layer '': W must be finite"):
        compress(bad, [torch.randn(9, 4)], LayerRecipe(), progress=False)
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor, before[key])


def test_batches_are_not_modified() -> None:
    batches = token_batches(padded=True)
    before = copy.deepcopy(batches)
    compress(Toy(depth=1), iter(batches), RECIPE, progress=False)
    for batch, old in zip(batches, before, strict=True):
        assert all(torch.equal(batch[key], old[key]) for key in old)


@pytest.mark.parametrize(
    "batches",
    [
        [(x["input_ids"], x["attention_mask"]) for x in token_batches()],
        [[x["input_ids"]] for x in token_batches()],
        [x["input_ids"] for x in token_batches()],
    ],
)
def test_forms_of_batches(batches: list[Any]) -> None:
    report = compress(Toy(depth=1), batches, RECIPE, progress=False)
    wanted = compress(Toy(depth=1), token_batches(), RECIPE, progress=False)
    assert_same_matrices(report, wanted)
    assert call(Toy(depth=1), batches[0]).shape == (4, 12, 40)


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_fused_attention_is_left_alone() -> None:
    report = compress(Attentive().eval(), [torch.randn(4, 5, 8)], RECIPE, progress=False)
    assert [row.name for row in report] == [
        f"layers.{i}.linear{j}" for i in range(2) for j in (1, 2)
    ]
    assert "nn.MultiheadAttention" in report.skipped["layers.0.self_attn.out_proj"]
    assert torch.backends.mha.get_fastpath_enabled()


def test_tied_weights_are_left_alone() -> None:
    model = gpt2()
    report = compress(model, token_batches(), RECIPE, progress=False)
    assert report.skipped["lm_head"] == "it shares its weight with transformer.wte.weight"
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.config.use_cache
    with pytest.raises(ValueError, match=r"'lm_head' matches no layer .* it shares its weight"):
        compress(model, token_batches(), Recipe({"lm_head": RECIPE, "*": RECIPE}), progress=False)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"*.q_proj": RECIPE}, "rule '\\*.q_proj' matches no layer"),
        ({"*": "skip"}, "it skips them all"),
        ({"*": {"group_size": 17}}, "query.*group_size must be at most its 16 inputs, got 17"),
        (
            {"*": {"bits": None, "pattern": (3, 7)}},
            "16 inputs must be a multiple of m in pattern 3:7",
        ),
        ({"*": {"bits": 6}}, "rule '\\*': bits must be one of"),
    ],
)
def test_recipes_are_checked_before_anything_runs(recipe: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(Toy(), token_batches(), recipe, progress=False)


def test_a_skip_rule_without_layers_is_only_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"'\*.pooler' matches no layer"):
        compress(
            Toy(depth=1), token_batches(), Recipe({"*.pooler": "skip", "*": RECIPE}), progress=False
        )


@pytest.mark.parametrize(
    ("model", "batches", "error", "message"),
    [
        (nn.ReLU(), [torch.ones(1)], ValueError, "model has no Linear"),
        (nn.Sequential(), [torch.ones(1)], ValueError, "model has no Linear"),
        (nn.Linear(4, 2, device="meta"), [torch.ones(1, 4)], ValueError, "model has no Linear"),
        (nn.Linear(4, 2), [], ValueError, "batches must hold at least one batch"),
        (nn.Linear(4, 2), torch.ones(1, 4), TypeError, "batches must be an iterable of batches"),
        (nn.Linear(4, 2), {"input": torch.ones(1, 4)}, TypeError, "put it into a list"),
        (nn.Linear(4, 2), [torch.ones(0, 4)], ValueError, "layer '': no token reached it"),
        ("model", [torch.ones(1)], TypeError, "model must be a torch.nn.Module, got str"),
        (nn.Linear(4, 2), [torch.zeros(9, 4)], ValueError, "layer '': H must"),
    ],
)
def test_bad_arguments(model: Any, batches: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compress(model, batches, LayerRecipe(), progress=False)
    with pytest.raises(ValueError, match=r"on_failure must be one of"):
        compress(nn.Linear(4, 2), [torch.ones(1, 4)], LayerRecipe(), on_failure="cry")


def test_silence_and_noise(capfd: pytest.CaptureFixture[str]) -> None:
    compress(Toy(depth=1), token_batches(), RECIPE, progress=False)
    assert capfd.readouterr() == ("", "")
    compress(Toy(depth=1), token_batches(), RECIPE)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err
    assert "blocks.0.down, loss" in err


def test_backends_agree() -> None:
    from quadric import backends

    reports = [
        compress(Toy(), token_batches(), RECIPE, backend=name, progress=False)
        for name in backends.available()
    ]
    for report in reports[1:]:
        ratios = [b.loss / a.loss for a, b in zip(reports[0], report, strict=True)]
        np.testing.assert_allclose(ratios, 1.0, atol=0.1)  # a tie that falls the other way moves on
