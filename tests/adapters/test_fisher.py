"""FisherCollector: the gradients of a loop, as a dense Fisher matrix would have them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quadric.adapters.torch import FisherCollector
from tests.adapters import surgeon
from tests.adapters.surgeon import Conv, conv_batches, mlp, mlp_batches, squared_error
from tests.bounds import assert_within

DAMPING = 1e-4
ORDERS = {"conv.weight": (0, 2, 3, 1)}
EPS = float(np.finfo(np.float64).eps)


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.ndim > 1 and "table" not in name}


def collected(model: nn.Module, batches: list[Any], **options: Any) -> FisherCollector:
    options = {"damping": DAMPING, "block_size": 16, **options}
    collector = FisherCollector(weights_of(model), **options)
    for batch in batches:
        model.zero_grad()
        squared_error(model, batch).backward()
        collector.collect()
    return collector


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("count", [5, 16, 40])
def test_equals_dense(joint: bool, count: int) -> None:
    model, batches = Conv(), conv_batches(count)
    weights = weights_of(model)
    fisher = collected(model, batches, joint=joint, orders=ORDERS, rows=7)
    assert fisher.count == count
    G = surgeon.gradients(model, batches, weights)
    vectors = {name: torch.randn(w.shape, dtype=torch.float64) for name, w in weights.items()}
    diagonal, solved = fisher.diagonal(), fisher.solve(vectors)
    single, four = fisher.scores(), fisher.scores(4)
    masks = {name: torch.rand(w.shape) < 0.6 for name, w in weights.items()}
    pruned = fisher.prune(masks)
    for name, weight in weights.items():
        g, w, v = G[name], surgeon.flat(weight), surgeon.flat(vectors[name])
        tol = 50 * EPS * surgeon.condition(g, 16, DAMPING)
        inverses = [
            np.linalg.inv(surgeon.fisher(g[:, b], DAMPING)) for b in surgeon.blocks(len(w), 16)
        ]
        expected = np.concatenate([np.diag(inverse) for inverse in inverses])
        assert_within(surgeon.flat(diagonal[name]), expected, tol * expected, "diagonal")
        parts = [i @ v[b] for i, b in zip(inverses, surgeon.blocks(len(w), 16), strict=True)]
        expected = np.concatenate(parts)
        assert diagonal[name].shape == solved[name].shape == weight.shape
        assert_within(surgeon.flat(solved[name]), expected, tol * np.abs(expected).max(), "solve")
        for group, found in ((1, single), (4, four)):
            expected = surgeon.scores(g, w, 16, DAMPING, group)
            assert_within(found[name].numpy(), expected, tol * expected.max(), "scores")
        kept = surgeon.flat(masks[name]) > 0
        expected, loss = surgeon.surgery(g, w, kept, 16, DAMPING)
        found = surgeon.flat(pruned[name].weights)
        assert_within(found, expected, tol * np.abs(expected).max(), "weights")
        assert pruned[name].loss == pytest.approx(loss, rel=tol)
        assert (found[~kept] == 0).all()
        assert torch.equal(pruned[name].mask, masks[name])


def test_joint_blocks_do_not_straddle() -> None:
    model, batches = mlp(), mlp_batches(30)
    apart, joint = (collected(model, batches, joint=joint) for joint in (False, True))
    assert len(apart.fishers) == 3
    (whole,) = joint.fishers
    assert whole.d == 240 + 240 + 48  # 240 = 15 blocks of 16, so nothing is padded here
    for name, diagonal in apart.diagonal().items():
        assert torch.equal(diagonal, joint.diagonal()[name])
    odd = {"a": nn.Parameter(torch.ones(3, 7)), "b": nn.Parameter(torch.ones(5))}
    collector = FisherCollector(odd, block_size=8, joint=True)
    collector.collect([torch.ones(3, 7), torch.ones(5)])
    assert collector.fishers[0].d == 24 + 5
    assert {name: len(s) for name, s in collector.scores().items()} == {"a": 21, "b": 5}
    assert {name: len(s) for name, s in collector.scores(4).items()} == {"a": 6, "b": 2}


def test_rows_in_the_buffer_do_not_matter() -> None:
    model, batches = mlp(), mlp_batches(30)
    expected = collected(model, batches, rows=1).diagonal()
    for rows in (4, 30, 64):
        for name, diagonal in collected(model, batches, rows=rows).diagonal().items():
            torch.testing.assert_close(diagonal, expected[name], rtol=1e-11, atol=0)


def test_none_counts_as_zero() -> None:
    a, b = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    collector = FisherCollector([a, b], block_size=1, damping=1.0)
    collector.collect([torch.full((4,), 2.0), None])
    collector.collect([torch.full((4,), 2.0), torch.full((4,), 2.0)])
    assert collector.missing == {"0": 0, "1": 1}
    diagonal = collector.diagonal()
    assert torch.equal(diagonal["0"], torch.full((4,), 1 / 5))
    assert torch.equal(diagonal["1"], torch.full((4,), 1 / 3))


def test_layouts() -> None:
    """Transposed, channels_last, expanded and sparse gradients, and parameters laid out so."""
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(s, generator=generator) for s in ((6, 4), (5, 4, 3, 2), (4, 3), (6, 4))]
    params = [nn.Parameter(torch.ones(g.shape)) for g in plain]
    params[1].data = params[1].data.to(memory_format=torch.channels_last)
    odd = [plain[0].T.contiguous().T, plain[1].to(memory_format=torch.channels_last)]
    odd += [plain[2][:, :1].expand(4, 3), plain[3].to_sparse()]
    plain[2] = odd[2].contiguous()
    orders = {"1": (0, 2, 3, 1), "2": (1, 0)}
    found = []
    for gradients in (plain, odd):
        collector = FisherCollector(params, block_size=4, damping=0.1, orders=orders)
        collector.collect(gradients)
        found.append(collector.diagonal())
    for name, diagonal in found[0].items():
        assert torch.equal(diagonal, found[1][name])
    # Flattened as told: a block is four input channels of one position.
    g = plain[1].permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    inverses = [np.diag(np.linalg.inv(surgeon.fisher(row[None], 0.1))) for row in g]
    expected = surgeon.shaped(np.concatenate(inverses), params[1])
    torch.testing.assert_close(found[0]["1"].double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_stored_as_such(dtype: str) -> None:
    """Half-precision gradients are used as they are, without a rounding of their own."""
    half = getattr(torch, dtype)
    parameter = nn.Parameter(torch.randn(40).to(half))
    gradients = torch.randn(60, 40).to(half)
    collector = FisherCollector({"w": parameter}, block_size=16, damping=1e-3)
    wide = FisherCollector({"w": nn.Parameter(parameter.detach().double())}, block_size=16)
    wide.damping = 1e-3
    stored = FisherCollector(
        {"w": nn.Parameter(parameter.detach().float())}, block_size=16, damping=1e-3, dtype=dtype
    )
    for g in gradients:
        collector.collect([g])
        wide.collect([g.double()])
        stored.collect([g.float()])
    assert collector._parts[0].dtype == half
    found = collector.scores()["w"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wide.scores()["w"], rtol=1e-6, atol=0)
    assert torch.equal(found, stored.scores()["w"])


def test_masked_gradients() -> None:
    model, batches = mlp(), mlp_batches(30)
    weights = weights_of(model)
    masks = {name: torch.rand(w.shape) < 0.5 for name, w in weights.items()}
    fisher = collected(model, batches, masks=masks)
    G = surgeon.gradients(model, batches, weights)
    for name, diagonal in fisher.diagonal().items():
        kept = surgeon.flat(masks[name])
        g = G[name] * kept
        expected = [
            np.diag(np.linalg.inv(surgeon.fisher(g[:, b], DAMPING)))
            for b in surgeon.blocks(len(kept), 16)
        ]
        tol = 50 * EPS * surgeon.condition(g, 16, DAMPING)
        assert_within(surgeon.flat(diagonal), np.concatenate(expected), tol / DAMPING)
        assert (surgeon.flat(diagonal)[kept == 0] == 1 / DAMPING).all()


def test_merge() -> None:
    model, batches = mlp(), mlp_batches(40)
    whole = collected(model, batches, rows=3)
    a, b = collected(model, batches[:13], rows=3), collected(model, batches[13:], rows=3)
    a.merge(b)
    assert (a.count, b.count, whole.count) == (40, 27, 40)
    for name, diagonal in a.diagonal().items():
        torch.testing.assert_close(diagonal, whole.diagonal()[name], rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="other must have the same"):
        a.merge(collected(model, batches[:2], block_size=8))
    with pytest.raises(TypeError, match="other must be a FisherCollector, got int"):
        a.merge(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("count", [5, 40])
def test_save_and_load(tmp_path: Path, joint: bool, count: int) -> None:
    model, batches = Conv(), conv_batches(count + 10)
    options: dict[str, Any] = {"joint": joint, "orders": ORDERS, "rows": 4}
    first = collected(model, batches[:count], **options)
    first.save(tmp_path / "fisher")
    again = FisherCollector.load(tmp_path / "fisher", weights_of(model), orders=ORDERS)
    assert (again.count, again.damping, again.missing) == (count, DAMPING, first.missing)
    for collector in (first, again):
        for batch in batches[count:]:
            model.zero_grad()
            squared_error(model, batch).backward()
            collector.collect()
    for name, diagonal in again.diagonal().items():
        assert torch.equal(diagonal, first.diagonal()[name])
    with pytest.raises(OSError, match="not empty"):
        first.save(tmp_path / "fisher")
    first.save(tmp_path / "fisher", overwrite=True)
    loaded = FisherCollector.load(tmp_path / "fisher", weights_of(model), orders=ORDERS)
    assert loaded.count == count + 10
    with pytest.raises(ValueError, match="params must be those of"):
        FisherCollector.load(tmp_path / "fisher", weights_of(mlp()))
    with pytest.raises(ValueError, match="params must be those of"):
        FisherCollector.load(tmp_path / "fisher", weights_of(model))


def test_load_what_is_no_collector(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"was not written by FisherCollector\.save"):
        FisherCollector.load(tmp_path, weights_of(mlp()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("joint", [False, True])
def test_bad_gradient_is_refused_whole(value: float, joint: bool) -> None:
    model, batches = mlp(), mlp_batches(4)
    fisher = collected(model, batches, joint=joint, rows=2)
    before = fisher.diagonal()
    fisher = collected(model, batches, joint=joint, rows=3)  # one row waits in the buffer
    gradients = [torch.ones_like(w) for w in weights_of(model).values()]
    gradients[1][4, 2] = value
    with pytest.raises(ValueError, match=r"gradient of '2\.weight' must be finite .* \(4, 2\)"):
        fisher.collect(gradients)
    gradients[1] = torch.ones(3, 3)
    with pytest.raises(ValueError, match=r"gradient of '2\.weight' must have its shape \(12, 20\)"):
        fisher.collect(gradients)
    with pytest.raises(ValueError, match="one per parameter, 3, got 2"):
        fisher.collect(gradients[:2])
    assert fisher.count == 4
    for name, diagonal in fisher.diagonal().items():
        torch.testing.assert_close(diagonal, before[name], rtol=1e-12, atol=0)


def test_large_gradients_are_finite() -> None:
    """A sum that overflows is no reason to refuse what is finite."""
    collector = FisherCollector([nn.Parameter(torch.ones(8, dtype=torch.float64))], damping=1.0)
    collector.collect([torch.full((8,), 1e308, dtype=torch.float64)])
    assert collector.count == 1


def test_storage_that_overflows_is_an_error() -> None:
    collector = FisherCollector({"w": nn.Parameter(torch.ones(4))}, dtype="float16")
    with pytest.raises(ValueError, match=r"'w' must be finite in float16, got 1e\+06 at index \(2"):
        collector.collect([torch.tensor([1.0, 2.0, 1e6, 3.0])])
    assert collector.count == 0


def test_wrong_arguments() -> None:
    layer = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="no gradient in any of the 2 parameters, the first is"):
        FisherCollector(layer.named_parameters()).collect()
    with pytest.raises(ValueError, match="no gradients have been collected"):
        FisherCollector(layer.parameters()).diagonal()
    for params, error, message in [
        ([], ValueError, "at least one parameter"),
        (layer.weight, TypeError, "got a single tensor"),
        ([torch.ones(3, dtype=torch.int64)], TypeError, "'0' must be of float16.*got int64"),
        ([torch.ones(3, dtype=torch.complex64)], TypeError, "got complex64"),
        (["weight"], TypeError, "'0' must be a tensor, got str"),
        ([torch.ones(0)], ValueError, "'0' must have weights"),
        ([("a", layer.weight), ("a", layer.bias)], ValueError, "got 'a' twice"),
    ]:
        with pytest.raises(error, match=message):
            FisherCollector(params)  # type: ignore[arg-type]
    mask = torch.ones(2, 4)
    for options, error, message in [
        ({"block_size": 0}, ValueError, "block_size must be"),
        ({"rows": 0}, ValueError, "rows must be at least 1"),
        ({"dtype": "float8"}, ValueError, "dtype must be one of"),
        ({"damping": 0.0}, ValueError, "damping"),
        ({"masks": {"w": mask}}, ValueError, "masks must be of the parameters.*'w'"),
        ({"masks": {"weight": mask}}, ValueError, "mask of 'weight' must be bool of shape"),
        ({"orders": {"weight": (0, 2)}}, ValueError, "permutation"),
    ]:
        with pytest.raises(error, match=message):
            FisherCollector(layer.named_parameters(), **options)
    fisher = FisherCollector({"w": layer.weight})
    fisher.collect([torch.ones(2, 4)])
    with pytest.raises(ValueError, match="vectors must be of"):
        fisher.solve({"v": torch.ones(2, 4)})
    with pytest.raises(ValueError, match=r"vectors\['w'\] must have the parameter's shape"):
        fisher.solve({"w": torch.ones(4, 2)})
    with pytest.raises(ValueError, match="masks must be of"):
        fisher.prune({})


def test_nothing_is_held_back_from_autograd() -> None:
    """The loop's own gradients stay as they are."""
    model, batches = mlp(), mlp_batches(1)
    squared_error(model, batches[0]).backward()
    before: list[Tensor] = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    FisherCollector(model.parameters()).collect()
    for p, g in zip(model.parameters(), before, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, g)
