"""Masks: zeros that stay zeros whatever an optimizer does."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadric.adapters.torch.prune import Masks
from tests.adapters.surgeon import mlp, mlp_batches, squared_error

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{i}": model.get_submodule(f"{i}").weight for i in (0, 2, 4)}


def random_masks(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: torch.rand(w.shape) < 0.5 for name, w in weights.items()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Any]) -> None:
    for batch in batches:
        optimizer.zero_grad()
        squared_error(model, batch).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hold_in_training(name: str) -> None:
    model, batches = mlp(torch.float32), mlp_batches(20, torch.float32)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, batches[:10])  # momentum of the weights that go
    weights = weights_of(model)
    masks = Masks(weights)
    masks.update(random_masks(weights))
    before = {name: w.detach().clone() for name, w in weights.items()}
    masks.hold(optimizer)
    for batch in batches[10:]:
        train(model, optimizer, [batch])
        for key, w in weights.items():
            assert (w[~masks[key]] == 0).all()
            for state in optimizer.state[w].values():
                if isinstance(state, Tensor) and state.shape == w.shape:
                    assert (state[~masks[key]] == 0).all()
    for key, w in weights.items():
        assert (w != before[key])[masks[key]].float().mean() > 0.5  # the others learn


def test_equals_a_model_without_those_inputs() -> None:
    """To the weights that are kept, a masked one is as if it were not there."""
    batches = [(x[:, :6], y) for x, y in mlp_batches(30)]
    small = nn.Sequential(nn.Linear(6, 4)).double()
    large = nn.Sequential(nn.Linear(12, 4)).double()
    with torch.no_grad():
        large[0].weight[:, :6] = small[0].weight
        large[0].bias.copy_(small[0].bias)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (small, large)]
    train(large, optimizers[1], [])
    masks = Masks({"0": large[0].weight})
    mask = torch.zeros(4, 12, dtype=torch.bool)
    mask[:, :6] = True
    masks["0"] = mask
    masks.hold(optimizers[1])
    train(small, optimizers[0], batches)
    wide = [(torch.cat([x, torch.randn_like(x)], 1), y) for x, y in batches]
    train(large, optimizers[1], wide)
    torch.testing.assert_close(large[0].weight[:, :6], small[0].weight, rtol=1e-12, atol=1e-14)


def test_momentum_does_not_revive_after_release() -> None:
    model, batches = mlp(), mlp_batches(10)
    weights = weights_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, optimizer, batches)
    masks = Masks(weights)
    masks.hold(optimizer)
    masks.update(random_masks(weights))
    masks.apply()
    for name, w in weights.items():
        assert (optimizer.state[w]["momentum_buffer"][~masks[name]] == 0).all()
    masks.release()
    masks.release()  # twice is as good as once
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    optimizer.zero_grad()  # without gradients only momentum could move a weight
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    optimizer.step()
    assert all((w[~masks[name]] == 0).all() for name, w in weights.items())
    train(model, optimizer, batches)
    assert all((w[~masks[name]] != 0).any() for name, w in weights.items())


def test_closure() -> None:
    """LBFGS has its gradients inside of step, and no state in the shape of a weight."""
    model, batches = mlp(), mlp_batches(3)
    weights = weights_of(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
    masks = Masks(weights)
    masks.update(random_masks(weights))
    masks.hold(optimizer)

    def closure() -> float:
        optimizer.zero_grad()
        loss = squared_error(model, batches[0])
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    assert all((w[~masks[name]] == 0).all() for name, w in weights.items())


def test_two_optimizers() -> None:
    model, batches = mlp(), mlp_batches(5)
    weights = weights_of(model)
    masks = Masks(weights)
    first = torch.optim.SGD(model[:2].parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.Adam(model[2:].parameters())
    masks.hold(first)
    masks.hold(first)
    masks.hold(second)
    assert len(first._optimizer_step_post_hooks) == 1
    masks.update(random_masks(weights))
    for batch in batches:
        model.zero_grad()
        squared_error(model, batch).backward()
        first.step()
        second.step()
    assert all((w[~masks[name]] == 0).all() for name, w in weights.items())
    masks.release(first)
    assert not first._optimizer_step_post_hooks
    assert second._optimizer_step_post_hooks


def test_state_round_trip_in_mid_training() -> None:
    """Model, optimizer and masks saved and loaded go on to the same weights, bit for bit."""
    batches = mlp_batches(20)

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Masks]:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        masks = Masks(weights_of(model))
        masks.hold(optimizer)
        return model, optimizer, masks

    model, optimizer, masks = fresh()
    masks.update(random_masks(weights_of(model)))
    train(model, optimizer, batches[:10])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, optimizer, masks)], file)
    train(model, optimizer, batches[10:])
    again = fresh()
    file.seek(0)
    for part, state in zip(again, torch.load(file), strict=True):
        part.load_state_dict(state)
    train(again[0], again[1], batches[10:])
    for a, b in zip(model.parameters(), again[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(masks[name], again[2][name]) for name in masks)
    found = Masks.of_zeros(weights_of(again[0]))
    assert all(torch.equal(masks[name], found[name]) for name in masks)


def test_the_model_stays_what_it_was() -> None:
    """No new keys in its state, nothing in the way of a copy."""
    model = mlp()
    keys = list(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters())
    masks = Masks(weights_of(model))
    masks.hold(optimizer)
    assert list(model.state_dict()) == keys
    twin = copy.deepcopy(model)
    for a, b in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert masks != Masks(weights_of(model))
    assert masks == masks
    assert repr(masks) == "Masks(3 layers, sparsity=0.0000)"


def test_frozen_weights_and_missing_gradients() -> None:
    model, batches = mlp(), mlp_batches(3)
    weights = weights_of(model)
    weights["0"].requires_grad_(False)
    masks = Masks(weights)
    optimizer = torch.optim.Adam(model.parameters())
    masks.hold(optimizer)
    masks.update(random_masks(weights))
    train(model, optimizer, batches)
    assert all((w[~masks[name]] == 0).all() for name, w in weights.items())


def test_sparsity() -> None:
    layer = nn.Linear(4, 2)
    masks = Masks({"a": layer.weight, "b": nn.Linear(4, 4).weight})
    masks["a"] = torch.tensor([[True, False, True, True], [False, False, False, False]])
    assert masks.sparsity("a") == 5 / 8
    assert masks.sparsity() == 5 / 24
    assert (dict(masks)["a"] == (layer.weight != 0)).all()


def test_wrong_arguments() -> None:
    model = mlp()
    weights = weights_of(model)
    masks = Masks(weights)
    good = random_masks(weights)
    before = masks.state_dict()
    values = {name: w.detach().clone() for name, w in weights.items()}
    for bad, message in [
        ({**good, "1": good["0"]}, "masks have no layer '1'"),
        ({**good, "4": good["0"]}, r"mask of '4' must be bool of shape \(4, 12\), got torch.bool"),
        ({**good, "4": good["4"].float()}, "mask of '4' must be bool"),
        ({**good, "4": 3}, "mask of '4' must be bool of shape .* got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            masks.update(bad)
    with pytest.raises(ValueError, match="state must be of the same layers, '4' is only in one"):
        masks.load_state_dict({"0": good["0"], "2": good["2"]})
    for name, w in weights.items():
        assert torch.equal(masks[name], before[name])
        assert torch.equal(w, values[name])
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got int"):
        masks.hold(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one of the masked weights"):
        masks.hold(torch.optim.SGD(mlp().parameters(), lr=0.1))
