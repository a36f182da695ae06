"""MKOR's statistics and switch: what the hooks note, when, and what becomes of the model."""

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from quadric import LinAlgError
from quadric.adapters.torch.optim import MKOR, Preconditioner
from tests.adapters.optimizers import Net, assert_same, backward, data, mkor, snapshot, train


def factors(optimizer: Any, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    state = optimizer.state.get(weight, {})
    return (state["j_out"], state["j_in"]) if "j_in" in state else None


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_layers_have_factors_and_others_have_none() -> None:
    model = Net()
    optimizer = mkor(model)
    train(model, optimizer, [0])
    sizes = {
        name: tuple(len(j) for j in factors(optimizer, p) or ())
        for name, p in model.named_parameters()
    }
    assert sizes == {
        "conv.weight": (4, 9),
        "conv.bias": (),
        "norm.weight": (),
        "norm.bias": (),
        "hidden.weight": (8, 36),
        "hidden.bias": (),
        "head.weight": (5, 8),
        "head.bias": (),
    }


def test_others_take_the_first_order_step() -> None:
    model = Net()
    optimizer = mkor(model, lr=0.1, momentum=0.0)
    backward(model, 0)
    expected = {n: p.detach().add(p.grad, alpha=-0.1) for n, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        same = torch.equal(p, expected[name])
        assert same == (name not in ("conv.weight", "hidden.weight", "head.weight")), name
        # The preconditioned step is another one of the same length.
        ratio = (p - expected[name]).norm() / (0.1 * p.grad.norm())
        assert same or 1e-3 < ratio < 2


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 2, 3),
        nn.Conv1d(4, 2, 3),
    ],
    ids=lambda layer: f"{type(layer).__name__}, {layer.groups} groups",
)
def test_layers_that_are_left_out(layer: nn.Module) -> None:
    optimizer = MKOR(layer.parameters(), model=layer)
    shape = (2, 4, 5, 5)[: layer.weight.ndim]
    layer(torch.randn(shape)).sum().backward()
    optimizer.step()
    assert factors(optimizer, layer.weight) is None


def test_parametrized_frozen_and_unused_layers() -> None:
    model = nn.ModuleList([nn.Linear(3, 3) for _ in range(4)])
    nn.utils.parametrizations.weight_norm(model[0])
    model[1].weight.requires_grad_(False)
    optimizer = MKOR(model.parameters(), model=model, update_every=1)
    for _ in range(2):
        model[2](model[1](model[0](torch.randn(4, 3)))).sum().backward()
        optimizer.step()
    weights = [p for p in model.parameters() if p.ndim == 2]
    assert [p for p in weights if factors(optimizer, p)] == [model[2].weight]


def test_large_layers_are_left_out() -> None:
    model = Net()
    optimizer = mkor(model, max_size=9)
    train(model, optimizer, [0])
    assert factors(optimizer, model.conv.weight) is not None
    assert factors(optimizer, model.hidden.weight) is None


def test_conv1d_is_a_linear_layer() -> None:
    linear, conv1d = nn.Linear(3, 5), Conv1D(5, 3)
    with torch.no_grad():
        conv1d.weight.copy_(linear.weight.T)
        conv1d.bias.copy_(linear.bias)
    x = torch.randn(4, 7, 3)
    for layer in (linear, conv1d):
        optimizer = MKOR(layer.parameters(), model=layer, update_every=1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            optimizer.step()
    assert factors(optimizer, conv1d.weight) is not None
    torch.testing.assert_close(linear.weight, conv1d.weight.T, rtol=0, atol=50 * 2**-23)


def test_factors_are_updated_every_so_often() -> None:
    model = Net()
    optimizer = mkor(model, update_every=3)
    changed = []
    before = torch.eye(8)
    for batch in range(7):
        train(model, optimizer, [batch])
        now = optimizer.state[model.hidden.weight]["j_out"].clone()
        changed.append(not torch.equal(now, before))
        before = now
    assert changed == [True, False, False, True, False, False, True]


def test_nothing_is_noted_where_nothing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    optimizer = mkor(model, update_every=3)
    notes = []
    note = optimizer._method.note
    monkeypatch.setattr(optimizer._method, "note", lambda p, s: notes.append(p) or note(p, s))
    for batch in range(4):
        with torch.no_grad():
            model(data(batch)[0])
        model(data(batch)[0])  # no backward pass comes back
        train(model, optimizer, [batch])
    assert len(notes) == 2 * 3  # steps 0 and 3, three layers


def test_accumulated_gradients_are_one_batch() -> None:
    whole, parts = Net(), Net()
    one, two = mkor(whole), mkor(parts)
    for batch in range(4):
        x, y = data(batch)
        one.zero_grad()
        nn.functional.cross_entropy(whole(x), y).backward()
        one.step()
        two.zero_grad()
        for half in (slice(0, 8), slice(8, 16)):
            (nn.functional.cross_entropy(parts(x[half]), y[half]) / 2).backward()
        two.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=200 * 2**-23)


def test_checkpointed_layers_are_noted_once() -> None:
    plain, recomputed = nn.Linear(3, 3), nn.Linear(3, 3)
    recomputed.load_state_dict(plain.state_dict())
    one, two = (MKOR(m.parameters(), model=m, update_every=1) for m in (plain, recomputed))
    for seed in range(3):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        plain.zero_grad()
        plain(x).square().mean().backward()
        one.step()
        recomputed.zero_grad()
        checkpoint(recomputed, x, use_reentrant=False).square().mean().backward()
        two.step()
    assert_same(plain, recomputed)
    assert_same(factors(one, plain.weight), factors(two, recomputed.weight))


def test_one_picture_without_a_batch() -> None:
    batched, single = nn.Conv2d(2, 3, 2), nn.Conv2d(2, 3, 2)
    single.load_state_dict(batched.state_dict())
    one, two = (MKOR(m.parameters(), model=m, update_every=1) for m in (batched, single))
    x = torch.randn(2, 4, 4)
    batched(x.unsqueeze(0)).square().mean().backward()
    single(x).square().mean().backward()
    one.step()
    two.step()
    for p, q in zip(batched.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=16 * 2**-23)


def test_channels_last() -> None:
    plain, strided = Net(), Net()
    for model in (plain, strided):
        torch.manual_seed(1)
        model.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    strided.to(memory_format=torch.channels_last)
    one, two = mkor(plain), mkor(strided)
    for batch in range(4):
        x, y = data(batch)
        x = x.repeat(1, 3, 1, 1) * torch.arange(1, 4).view(1, 3, 1, 1)
        for model, optimizer in ((plain, one), (strided, two)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert not strided.conv.weight.is_contiguous()
    assert factors(two, strided.conv.weight) is not None
    for p, q in zip(plain.parameters(), strided.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1000 * 2**-23)  # another convolution kernel


def test_hooks_go_with_the_optimizer() -> None:
    model = Net()
    optimizer = mkor(model)
    assert hooks(model) == 3
    train(model, optimizer, range(2))
    del optimizer
    gc.collect()
    assert hooks(model) == 0


def test_a_copy_of_the_model_is_not_watched() -> None:
    model = Net()
    optimizer = mkor(model, update_every=1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        train(model, optimizer, range(2))
        before = snapshot(model, optimizer)
        backward(other, 3)
        assert not optimizer._method._sums
        assert_same(before, snapshot(model, optimizer))


def test_zero_grad_drops_what_was_noted() -> None:
    left, right = Net(), Net()
    one, two = mkor(left, update_every=1), mkor(right, update_every=1)
    backward(left, 7)
    for model, optimizer in ((left, one), (right, two)):
        train(model, optimizer, range(3))
    assert_same(left, right)


def test_inputs_that_are_not_finite() -> None:
    """The gradient is finite, as where a ReLU is closed; the statistics are not."""
    model = nn.Linear(2, 1, bias=False)
    optimizer = MKOR(model.parameters(), model=model)
    loss = model(torch.tensor([[1.0, float("inf")]])).sum()
    loss.backward()
    model.weight.grad = torch.ones(1, 2)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=r"^inputs of layer '' must be finite, got NaN or Inf$"):
        optimizer.step()
    assert_same(before, snapshot(model, optimizer))


def test_first_order_can_be_set_and_taken_back() -> None:
    model, plain = Net(), Net()
    optimizer = mkor(model, first_order=True)
    train(model, optimizer, range(4))
    train(plain, torch.optim.SGD(plain.parameters(), 0.02, momentum=0.9), range(4))
    assert_same(model, plain)
    assert not any(factors(optimizer, p) for p in model.parameters())
    optimizer.param_groups[0]["first_order"] = False
    train(model, optimizer, range(4, 8))
    assert factors(optimizer, model.head.weight) is not None


def losses(optimizer: MKOR, values: list[float]) -> list[bool]:
    """Whether steps are of first order after each of these losses."""
    result = []
    for value in values:
        optimizer.record_loss(torch.tensor(value))
        optimizer.step()
        result.append(optimizer.param_groups[0]["first_order"])
    return result


def test_switch_when_the_loss_falls_too_slowly() -> None:
    """Means over two steps: 8, 4, 2, 1.9. The rates: 1/2, 1/2, 1/20, below a fifth of 1/2."""
    model = Net()
    backward(model, 0)
    optimizer = mkor(model, switch="mkor-h", switch_window=2, switch_ratio=0.2)
    values = [9.0, 7.0, 4.0, 4.0, 1.0, 3.0, 2.0, 1.8, 1.0]
    switched = losses(optimizer, values[:-1])
    assert switched == [False] * 7 + [True]
    optimizer.step()  # it needs no loss any more
    assert optimizer.state_dict()["param_groups"][0]["first_order"] is True


def test_switch_when_maximizing() -> None:
    model = Net()
    backward(model, 0)
    options: dict[str, Any] = {"switch": "mkor-h", "switch_window": 1, "switch_ratio": 0.5}
    rising = [1.0, 2.0, 4.0, 8.0, 8.1]
    assert losses(mkor(model, maximize=True, **options), rising) == [False] * 4 + [True]
    assert losses(mkor(model, **options), [-v for v in rising]) == [False] * 4 + [True]


def test_switch_takes_the_loss_of_the_closure() -> None:
    model = Net()
    optimizer = mkor(model, switch="mkor-h", switch_window=5, switch_ratio=0.9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return backward(model, 0)

    for _ in range(200):
        optimizer.step(closure)
    assert optimizer.param_groups[0]["first_order"]


def test_switch_in_mid_window_survives_a_checkpoint() -> None:
    model = Net()
    backward(model, 0)
    options: dict[str, Any] = {"switch": "mkor-h", "switch_window": 2, "switch_ratio": 0.2}
    optimizer = mkor(model, **options)
    losses(optimizer, [9.0, 7.0, 4.0, 4.0, 1.0])
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    resumed = mkor(model, **options)
    resumed.load_state_dict(saved)
    assert losses(resumed, [3.0, 2.0, 1.8]) == [False, False, True]
    assert_same(saved, before)


@pytest.mark.parametrize("loss", [None, float("nan"), "low"])
def test_switch_must_know_the_loss(loss: Any) -> None:
    model = Net()
    backward(model, 0)
    optimizer = mkor(model, switch="mkor-h")
    before = snapshot(model, optimizer)
    if loss is not None:
        optimizer.record_loss(loss)
    with pytest.raises(
        (ValueError, TypeError), match=r"\A(switch 'mkor-h' must|loss must)[^\n]*\Z"
    ):
        optimizer.step()
    assert_same(before, snapshot(model, optimizer))
    optimizer.record_loss(1.0)
    optimizer.step()


def test_a_factor_that_is_no_longer_positive_definite() -> None:
    """Without a bound on its norm, J grows where no input has a component."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    optimizer = MKOR(model.parameters(), model=model, decay=0.1, update_every=1, norm_bound=None)
    states = []

    def run() -> None:
        for _ in range(100):
            optimizer.zero_grad()
            model(torch.tensor([[1.0, 2.0, 3.0]])).square().sum().backward()
            states.append(snapshot(model, optimizer))
            optimizer.step()

    with pytest.raises(LinAlgError, match=r"^j_(in|out) of layer '0' is not positive definite: "):
        run()
    assert_same(states[-1], snapshot(model, optimizer))


@pytest.mark.parametrize("model", [None, [nn.Linear(1, 1)]])
def test_model_must_be_one(model: Any) -> None:
    parameters = nn.Linear(1, 1).parameters
    got = f"^model must be a torch.nn.Module, got {type(model).__name__}$"
    with pytest.raises(TypeError, match=got):
        MKOR(parameters(), model=model)
    with pytest.raises(TypeError, match=got):
        Preconditioner(parameters(), "mkor", model=model)
