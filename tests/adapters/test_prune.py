"""Pruner: at once, against the optimal brain surgeon with dense inverses in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

import quadric as qd
from quadric.adapters.torch.prune import Masks, Pruner
from tests.adapters import surgeon
from tests.adapters.surgeon import Conv, conv_batches, mlp, mlp_batches, squared_error

DAMPING = 1e-3
EPS = float(np.finfo(np.float64).eps)


def pruner_of(model: nn.Module, batches: Any, **options: Any) -> Pruner:
    options = {"damping": DAMPING, "block_size": 16, "progress": False, **options}
    return Pruner(model, squared_error, batches, **options)


def weights_of(pruner: Pruner) -> dict[str, nn.Parameter]:
    return {target.name: target.parameter for target in pruner.targets}


def kept_by_hand(
    scores: dict[str, Any], sparsity: float, together: bool, group: int
) -> dict[str, Any]:
    names = list(scores)
    if together:
        every = np.concatenate(list(scores.values()))
        gone = surgeon.lowest(every, round(sparsity * len(every)))
        parts = np.split(gone, np.cumsum([len(s) for s in scores.values()])[:-1])
    else:
        parts = [surgeon.lowest(s, round(sparsity * len(s))) for s in scores.values()]
    return {name: ~np.repeat(part, group) for name, part in zip(names, parts, strict=True)}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("make", [Conv, mlp])
def test_equals_dense(make: Callable[[], nn.Module], together: bool, group: int) -> None:
    model = make()
    batches = conv_batches(40) if make is Conv else mlp_batches(40)
    scope = "global" if together else "layer"
    pruner = pruner_of(model, batches, scope=scope, group_size=group)
    weights = weights_of(pruner)
    G = surgeon.gradients(model, batches, weights)
    w = {name: surgeon.flat(p) for name, p in weights.items()}
    scores = {name: surgeon.scores(G[name], w[name], 16, DAMPING, group) for name in weights}
    kept = kept_by_hand(scores, 0.5, together, group)
    bias = model.get_submodule("head" if make is Conv else "4").bias.detach().clone()
    dense = surgeon.mean_loss(model, batches)
    report = pruner.prune(0.5)
    assert report.dense_loss == pytest.approx(dense, rel=1e-12)
    assert report.loss == pytest.approx(surgeon.mean_loss(model, batches), rel=1e-12)
    for row in report.steps[0].layers:
        name = row.name
        tol = 50 * EPS * surgeon.condition(G[name], 16, DAMPING)
        expected, loss = surgeon.surgery(G[name], w[name], kept[name], 16, DAMPING)
        np.testing.assert_array_equal(surgeon.flat(pruner.masks[name]) > 0, kept[name], name)
        found = surgeon.flat(weights[name])
        np.testing.assert_allclose(found, expected, rtol=0, atol=tol * np.abs(expected).max())
        assert row.predicted == pytest.approx(loss, rel=tol)
        assert row.pruned == (found == 0).sum() == (~kept[name]).sum()
    assert torch.equal(model.get_submodule("head" if make is Conv else "4").bias, bias)
    assert pruner.report.steps[0].gradients == 40


def test_a_second_step_equals_dense_on_masked_gradients() -> None:
    model, batches = mlp(), mlp_batches(40)
    pruner = pruner_of(model, batches)
    weights = weights_of(pruner)
    pruner.prune(0.4)
    before = {name: surgeon.flat(pruner.masks[name]) for name in weights}
    G = surgeon.gradients(model, batches, weights)
    G = {name: g * before[name] for name, g in G.items()}
    w = {name: surgeon.flat(p) for name, p in weights.items()}
    scores = {
        name: np.where(before[name] > 0, surgeon.scores(G[name], w[name], 16, DAMPING), -1)
        for name in weights
    }
    kept = kept_by_hand(scores, 0.7, True, 1)
    pruner.prune(0.7)
    for name, p in weights.items():
        tol = 50 * EPS * surgeon.condition(G[name], 16, DAMPING)
        expected, _ = surgeon.surgery(G[name], w[name], kept[name], 16, DAMPING)
        np.testing.assert_allclose(
            surgeon.flat(p), expected, rtol=0, atol=tol * np.abs(expected).max()
        )
        assert not (kept[name] & (before[name] == 0)).any()


def test_independent_update() -> None:
    model, batches = mlp(), mlp_batches(40)
    pruner = pruner_of(model, batches, update="independent")
    weights = weights_of(pruner)
    G = surgeon.gradients(model, batches, weights)
    w = {name: surgeon.flat(p) for name, p in weights.items()}
    pruner.prune(0.5)
    for name, p in weights.items():
        kept = surgeon.flat(pruner.masks[name]) > 0
        expected = w[name].copy()
        for b in surgeon.blocks(len(kept), 16):
            inverse = np.linalg.inv(surgeon.fisher(G[name][:, b], DAMPING))
            expected[b] -= inverse @ np.where(kept[b], 0, w[name][b] / np.diag(inverse))
        expected[~kept] = 0
        tol = 50 * EPS * surgeon.condition(G[name], 16, DAMPING)
        np.testing.assert_allclose(
            surgeon.flat(p), expected, rtol=0, atol=tol * np.abs(expected).max()
        )


@pytest.mark.parametrize("group", [1, 4])
def test_baselines(group: int) -> None:
    batches = conv_batches(20)
    for method in ("magnitude", "diagonal"):
        model = Conv()
        pruner = pruner_of(model, batches, method=method, group_size=group)
        weights = weights_of(pruner)
        w = {name: surgeon.flat(p) for name, p in weights.items()}
        curvature = {name: np.full(len(x), 2.0) for name, x in w.items()}
        if method == "diagonal":
            G = surgeon.gradients(model, batches, weights)
            curvature = {name: DAMPING + (g**2).mean(0) for name, g in G.items()}
        scores = {
            name: (x**2 * curvature[name] / 2).reshape(-1, group).sum(1) for name, x in w.items()
        }
        kept = kept_by_hand(scores, 0.6, True, group)
        report = pruner.prune(0.6)
        for name, p in weights.items():
            np.testing.assert_array_equal(surgeon.flat(p), np.where(kept[name], w[name], 0))
        (step,) = report.steps
        gone = sum(np.repeat(scores[n] / group, group)[~kept[n]].sum() for n in w)
        if method == "magnitude":
            assert (step.predicted, step.gradients) == (None, 0)
        elif group == 1:
            assert step.predicted == pytest.approx(gone, rel=1e-12)


def test_magnitude_needs_no_loss() -> None:
    model = mlp()
    report = Pruner(model, method="magnitude", progress=False).prune(0.5, recomputations=2)
    assert report.sparsity == 0.5
    assert report.loss is report.dense_loss is None


@pytest.mark.parametrize("method", ["obert", "diagonal", "magnitude"])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.777, 0.99])
def test_counts_are_exact(method: str, group: int, sparsity: float) -> None:
    """Rounded to the nearest count of groups: of all, or of each layer."""
    for scope in ("global", "layer"):
        model, batches = mlp(torch.float32), mlp_batches(6, torch.float32)
        pruner = pruner_of(model, batches, method=method, group_size=group, scope=scope)
        pruner.prune(sparsity, recomputations=3, path="cubic")
        zeros = {name: int((p == 0).sum()) for name, p in weights_of(pruner).items()}
        sizes = {"0": 240, "2": 240, "4": 48}
        if scope == "layer":
            assert zeros == {n: group * int(sparsity * d / group + 0.5) for n, d in sizes.items()}
        else:
            assert sum(zeros.values()) == group * int(sparsity * 528 / group + 0.5)
        assert sum(zeros.values()) == sum(row.pruned for row in pruner.report.steps[-1].layers)
        assert pruner.report.sparsity == pruner.masks.sparsity()


def test_equal_scores_go_in_order() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(4, 2))
    for layer in model:
        nn.init.ones_(layer.weight)
    Pruner(model, method="magnitude", progress=False).prune(5 / 16)
    assert model[0].weight.flatten().tolist() == [0.0] * 5 + [1.0] * 3
    assert (model[1].weight == 1).all()


def trained() -> tuple[nn.Module, list[Any], list[Any]]:
    model, batches = mlp(), mlp_batches(60)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(10):
        for batch in batches:
            optimizer.zero_grad()
            squared_error(model, batch).backward()
            optimizer.step()
    return model, batches, mlp_batches(90)[60:]


def test_recomputations_and_updates_lower_the_loss() -> None:
    """What all of it is for: more steps are better than one, curvature than magnitude."""
    model, batches, held_out = trained()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    loss = {}
    for label, method, steps in [
        ("magnitude", "magnitude", 1),
        ("diagonal", "diagonal", 1),
        ("once", "obert", 1),
        ("eight times", "obert", 8),
    ]:
        model.load_state_dict(state)
        pruner = pruner_of(model, batches, method=method, block_size=48, damping=1e-4)
        pruner.prune(0.6, recomputations=steps)
        loss[label] = surgeon.mean_loss(model, held_out)
    assert loss["eight times"] < 0.7 * loss["once"]
    assert loss["once"] < 0.7 * loss["magnitude"]
    assert loss["eight times"] < 0.5 * loss["diagonal"]


def test_zeros_stay_zeros_from_step_to_step() -> None:
    model, batches = mlp(), mlp_batches(30)
    pruner = pruner_of(model, batches)
    gone: dict[str, Tensor] = {}
    for sparsity in (0.2, 0.2, 0.5, 0.8):
        pruner.prune(sparsity, recomputations=2)
        for name, p in weights_of(pruner).items():
            assert not (p[gone[name]] != 0).any() if name in gone else True
            gone[name] = p == 0
    assert len(pruner.report) == 8
    assert [round(step.sparsity, 2) for step in pruner.report][:5] == [0.1, 0.2, 0.2, 0.2, 0.35]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_layers_in_turn_equal_all_at_once(scope: str) -> None:
    """A small `fisher_memory` costs passes over the batches, and changes nothing."""
    states, reads = [], []
    for memory in (8 << 30, 240 * 4 * 17, 1):
        model, source = Conv(), Counted(conv_batches(25))
        pruner = pruner_of(model, source, fisher_memory=memory, scope=scope, validation=())
        assert len(pruner._parts()) == (1 if memory > 1 << 20 else 2)
        pruner.prune(0.6, recomputations=2)
        states.append(model.state_dict())
        reads.append(source.reads)
    for state in states[1:]:
        assert all(torch.equal(state[key], states[0][key]) for key in state)
    assert reads == ([2, 6, 6] if scope == "global" else [2, 4, 4])


class Counted:
    """Batches, and how often they were read."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.reads, self.given = batches, 0, 0

    def __iter__(self) -> Iterator[Any]:
        self.reads += 1
        for batch in self.batches:
            self.given += 1
            yield batch


def test_n_gradients_and_validation() -> None:
    batches, other = Counted(mlp_batches(30)), Counted(mlp_batches(35)[30:])
    model = mlp()
    report = pruner_of(model, batches, n_gradients=7, validation=other).prune(0.5)
    assert (batches.given, report.steps[0].gradients) == (7, 7)
    assert (other.reads, other.given) == (2, 10)
    assert report.loss == pytest.approx(surgeon.mean_loss(model, other.batches), rel=1e-12)
    batches = Counted(mlp_batches(30))
    report = pruner_of(mlp(), batches, n_gradients=7).prune(0.5)
    assert batches.given == 21  # before, gradients, after
    assert report.dense_loss == pytest.approx(surgeon.mean_loss(mlp(), batches.batches[:7]))


def test_model_is_left_as_it_was() -> None:
    """Mode, gradients and what requires one; dropout does not enter the gradients."""
    model, batches = mlp(), mlp_batches(20)
    model.insert(2, nn.Dropout(0.5))
    model[2].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    pruner = pruner_of(model, batches)
    pruner.prune(0.5)
    assert all((p.grad == 1).all() for p in model.parameters())
    assert model.training
    assert not model[2].training
    plain = mlp()
    pruner_of(plain, batches).prune(0.5)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, batches = mlp(), mlp_batches(40)
    model, batches = model.to(dtype), [(x.to(dtype), y.to(dtype)) for x, y in batches]
    pruner = pruner_of(model, batches, damping=1e-2)
    pruner.prune(0.5, recomputations=2)
    for name, p in weights_of(pruner).items():
        assert p.dtype == dtype
        assert p.isfinite().all()
        assert torch.equal(p == 0, ~pruner.masks[name])


def test_new_weights_that_overflow_are_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).half()
    nn.init.constant_(model[0].weight, 60000.0)
    before = model[0].weight.detach().clone()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return (model[0].weight.float() * x).sum()

    # Both inputs are the same, so the one that stays takes over all.
    pruner = Pruner(model, loss, [torch.ones(1, 2)], progress=False, validation=())
    with pytest.raises(ValueError, match="layer '0': its new weights are not finite"):
        pruner.prune(0.5)
    assert torch.equal(model[0].weight, before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # of torch, in backward
def test_weights_on_two_devices() -> None:
    """Curvature is where the weights are; in training the masks go with them."""

    class Split(nn.Module):
        def __init__(self, device: str) -> None:
            super().__init__()
            self.layers = mlp()
            self.layers[2:].to(device)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layers[:2](x)
            return self.layers[2:](x.to(self.layers[2].weight.device)).cpu()

    batches = mlp_batches(30)
    models = [Split("cpu"), Split("cuda")]
    for model in models:
        pruner = pruner_of(model, batches)
        pruner.prune(0.5, recomputations=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
        pruner.masks.hold(optimizer)
        for batch in batches:
            optimizer.zero_grad()
            squared_error(model, batch).backward()
            optimizer.step()
        for name, p in weights_of(pruner).items():
            assert torch.equal(p == 0, ~pruner.masks[name])
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-6, atol=1e-9)


class Tied(nn.Module):
    """An embedding whose table is also the head, attention, and a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.dense = nn.Linear(16, 16)
        self.twin = nn.Linear(16, 16)
        self.twin.weight = self.dense.weight
        self.shaped = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.pooler = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.twin(torch.tanh(self.shaped(torch.tanh(self.dense(x))))))


def tied_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


IDS = [torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(i)) for i in range(30)]


def test_which_layers() -> None:
    model = Tied()
    pruner = Pruner(model, tied_loss, IDS, skip="pooler", progress=False)
    names = ["attention.in_proj_weight", "attention.out_proj", "dense"]
    assert [target.name for target in pruner.targets] == names
    assert pruner.report.skipped == {
        "embed": "it is an embedding table",
        "twin": "it shares its weight with dense",
        "shaped": "its weight is computed from other parameters",
        "pooler": "skip names it",
        "head": "it shares its weight with embed",
    }
    table = model.embed.weight.detach().clone()
    report = pruner.prune(0.5)
    assert torch.equal(model.embed.weight, table)
    assert int((model.attention.in_proj_weight == 0).sum()) == report.steps[0].layers[0].pruned > 0
    options: dict[str, Any] = {"method": "magnitude", "progress": False}
    for layers, skip, expected in [
        ("attention*", (), ["attention.in_proj_weight", "attention.out_proj"]),
        (["dense", "pool*"], (), ["dense", "pooler"]),
        ("*", ["att*", "pooler"], ["dense"]),
        (["dense", "embed"], (), ["embed", "dense"]),
    ]:
        found = Pruner(Tied(), layers=layers, skip=skip, **options).targets
        assert [target.name for target in found] == expected


def test_projections_of_their_own() -> None:
    """Attention whose keys and values are of another width has three matrices."""
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    targets = Pruner(attention, method="magnitude", progress=False).targets
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"]
    assert [target.name for target in targets] == names


def test_4_blocks_are_inputs() -> None:
    """In a convolution they are four channels of one position; in a Conv1D they run down."""
    model, batches = Conv(torch.float32), conv_batches(20, torch.float32)
    pruner_of(model, batches, group_size=4, layers="conv").prune(0.5)
    zeros = (model.conv.weight == 0).permute(0, 2, 3, 1)
    assert torch.equal(zeros.any(-1), zeros.all(-1))
    assert 0 < zeros.float().mean() < 1
    torch.manual_seed(0)
    gpt = GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2))
    Pruner(gpt, method="magnitude", group_size=4, progress=False).prune(0.5)
    weight = gpt.h[0].mlp.c_fc.weight
    assert weight.shape == (16, 64)
    zeros = weight.T.reshape(64, 4, 4) == 0
    assert torch.equal(zeros.any(-1), zeros.all(-1))


def test_block_size_default() -> None:
    for group, size in [(1, 50), (2, 50), (4, 48), (32, 32)]:
        model = nn.Sequential(nn.Linear(64, 4))
        pruner = Pruner(model, squared_error, [], group_size=group, progress=False)
        assert pruner.criterion.block_size == size


def test_goes_on_from_the_zeros_of_a_model() -> None:
    model, batches = mlp(), mlp_batches(20)
    pruner_of(model, batches).prune(0.5)
    again = mlp()
    again.load_state_dict(model.state_dict())
    weights = {name: again.get_submodule(name).weight for name in ("0", "2", "4")}
    masks = Masks.of_zeros(weights)
    pruner = pruner_of(again, batches, masks=masks)
    report = pruner.prune(0.75, recomputations=2)
    assert [step.target for step in report] == [0.625, 0.75]
    assert all(
        (again.get_submodule(n).weight[model.get_submodule(n).weight == 0] == 0).all()
        for n in weights
    )


def test_groups_after_single_weights() -> None:
    """A group is gone when all of it is; zeros outside of those are kept too."""
    model, batches = mlp(), mlp_batches(20)
    single = pruner_of(model, batches)
    single.prune(0.3)
    pruner = pruner_of(model, batches, group_size=4, masks=single.masks)
    pruner.prune(0.5)
    for name, p in weights_of(pruner).items():
        assert torch.equal(p == 0, ~pruner.masks[name])
    groups = torch.cat([p.reshape(-1, 4) for p in weights_of(pruner).values()]) == 0
    assert int(groups.all(1).sum()) == 66


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor], pruner: Pruner) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert pruner.masks.sparsity() == 0
    assert not pruner.report.steps


def test_wrong_sparsity() -> None:
    model, batches = mlp(), mlp_batches(10)
    pruner = pruner_of(model, batches)
    before = snapshot(model)
    for sparsity, message in [
        (1.0, "sparsity must be at least 0 and below 1, got 1"),
        (-0.1, "got -0.1"),
        (float("nan"), "got nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            pruner.prune(sparsity)
    with pytest.raises(TypeError, match="sparsity must be a number, got 'half'"):
        pruner.prune("half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="recomputations must be at least 1, got 0"):
        pruner.prune(0.5, recomputations=0)
    with pytest.raises(ValueError, match="path must be one of"):
        pruner.prune(0.5, path="steep")
    assert_untouched(model, before, pruner)
    pruner.prune(0.5)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"sparsity must be at least the present 0\.5, got 0\.4"):
        pruner.prune(0.4)
    layered = pruner_of(model, batches, scope="layer", masks=pruner.masks)
    with pytest.raises(ValueError, match=r"at least the present 0\.\d+ of layer '0', got 0\.1"):
        layered.prune(0.1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def nan_at(name: str, batch: int) -> Callable[[nn.Module, Any], Tensor]:
    """A loss whose gradient for one weight is NaN in one batch."""
    count = 0

    def loss(model: nn.Module, data: Any) -> Tensor:
        nonlocal count
        value = squared_error(model, data)
        if torch.is_grad_enabled():
            if count == batch:
                weight = model.get_submodule(name).weight
                value = value + 0 * (weight[1, 2] - weight[1, 2].detach()).sqrt()
            count += 1
        return value

    return loss


@pytest.mark.parametrize("batch", [3, 14])
def test_a_gradient_that_is_nan_changes_nothing(batch: int) -> None:
    """In the first step or in the second, whose first has already been made."""
    model = mlp()
    pruner = Pruner(model, nan_at("2", batch), mlp_batches(10), progress=False)
    before = snapshot(model)
    message = rf"batch {batch % 10}: gradient of '2' must be finite .* got nan at .*\(1, 2\)"
    with pytest.raises(ValueError, match=message):
        pruner.prune(0.6, recomputations=2)
    assert_untouched(model, before, pruner)


def test_interrupt_changes_nothing() -> None:
    model, batches = mlp(), mlp_batches(10)
    calls = 0

    def loss(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 45:
            raise KeyboardInterrupt
        return squared_error(model, batch)

    model.train()
    pruner = Pruner(model, loss, batches, progress=False)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        pruner.prune(0.6, recomputations=3)
    assert_untouched(model, before, pruner)
    assert model.training
    pruner.prune(0.6, recomputations=3)  # and it can go on
    assert len(pruner.report) == 3


def test_factor_that_breaks_down_changes_nothing() -> None:
    """All inputs are the same, in numbers whose roots are exact: the second pivot is zero."""
    model = nn.Sequential(nn.Linear(12, 4))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return (model[0].weight * x).sum()

    batches = [torch.ones(4, 12)] * 64
    pruner = Pruner(model, loss, batches, damping=1e-30, block_size=12, progress=False)
    before = snapshot(model)
    with pytest.raises(qd.LinAlgError, match=r"Fisher matrix of '0': block 0 .* not positive"):
        pruner.prune(0.5)
    assert_untouched(model, before, pruner)


def test_losses_that_do_not_fit() -> None:
    batches = mlp_batches(10)
    for loss, error, message in [
        (lambda m, b: m(b[0]), TypeError, r"scalar tensor, got shape \(8, 4\) for batch 0"),
        (lambda m, b: 1.0, TypeError, "scalar tensor, got float"),
        (lambda m, b: b[0].sum(), ValueError, "loss must depend on the weights"),
        (lambda m, b: squared_error(m, b) * torch.inf, ValueError, "must be finite, got inf"),
        (lambda m, b: m[0](b[0]).square().mean(), ValueError, "layer '2': no gradient reaches"),
        (lambda m, b: m[0].bias.sum(), ValueError, "layer '0': no gradient reaches"),
    ]:
        model = mlp()
        pruner = Pruner(model, loss, batches, progress=False, validation=())
        before = snapshot(model)
        with pytest.raises(error, match=message):
            pruner.prune(0.5)
        assert_untouched(model, before, pruner)


def test_wrong_data() -> None:
    model = mlp()
    for batches in ([], iter(mlp_batches(3))):
        pruner = Pruner(model, squared_error, batches, progress=False)
        with pytest.raises(ValueError, match="batches must hold one each time they are read"):
            pruner.prune(0.5)
    model[0].weight.requires_grad_(False)
    pruner = Pruner(model, squared_error, mlp_batches(3), progress=False)
    with pytest.raises(ValueError, match="layer '0': its weight must require a gradient"):
        pruner.prune(0.5)
    with torch.no_grad():
        model[2].weight[3, 4] = torch.nan
    pruner = Pruner(model, method="magnitude", progress=False)
    with pytest.raises(ValueError, match="layer '2': its weights must be finite"):
        pruner.prune(0.5)


def test_wrong_arguments() -> None:
    model, batches = mlp(), mlp_batches(2)
    for options, message in [
        ({"method": "random"}, "method must be one of"),
        ({"scope": "block"}, "scope must be one of"),
        ({"update": "none"}, "update must be one of"),
        ({"group_size": 0}, "group_size must be between 1 and 32"),
        ({"group_size": 8}, "layer '0': its 12 inputs must be a multiple of group_size 8"),
        ({"group_size": 4, "block_size": 50}, "block_size must be a multiple of group_size 4"),
        ({"n_gradients": 0}, "n_gradients must be at least 1"),
        ({"damping": 0.0}, "damping must be"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"fisher_memory": 0}, "fisher_memory must be at least 1"),
        ({"layers": "encoder.*"}, r"layers pattern 'encoder\.\*' matches no layer"),
        ({"layers": ["0", "1"]}, "layers pattern '1' matches no layer"),
        ({"skip": "*"}, "must leave a layer to prune"),
        ({"masks": Masks({"0": model[0].weight})}, "masks must be of the layers to prune, '2'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Pruner(model, squared_error, batches, **options)
    strange = Masks({name: mlp().get_submodule(name).weight for name in ("0", "2", "4")})
    with pytest.raises(ValueError, match="masks must be of the weights of this model"):
        Pruner(model, squared_error, batches, masks=strange)
    with pytest.raises(ValueError, match=r"layers pattern 'twin' .*: twin: it shares its weight"):
        Pruner(Tied(), tied_loss, IDS, layers="twin")
    with pytest.warns(UserWarning, match="skip pattern 'pooler' matches no layer"):
        Pruner(model, squared_error, batches, skip="pooler")
    with pytest.raises(ValueError, match="loss and batches must be given for method 'obert'"):
        Pruner(model, squared_error)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        Pruner([model], squared_error, batches)  # type: ignore[arg-type]


def test_progress(capfd: pytest.CaptureFixture[str]) -> None:
    pruner_of(mlp(), mlp_batches(5)).prune(0.5)
    assert capfd.readouterr() == ("", "")
    pruner_of(mlp(), mlp_batches(5), progress=True).prune(0.5, recomputations=2)
    err = capfd.readouterr().err
    assert "100%" in err
    pruner_of(mlp(), Counted(mlp_batches(5)), progress=True).prune(0.5)  # of unknown length
    assert "loss 5" in capfd.readouterr().err
