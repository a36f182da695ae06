"""All optimizers, tested the way PyTorch tests its own."""

import copy
import gc
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from quadric.adapters.torch.optim import MFAC, MKOR, NaturalGaLore
from tests.adapters.optimizers import (
    OPTIMIZERS,
    PRECONDITIONERS,
    Make,
    Net,
    assert_same,
    backward,
    snapshot,
    tensors,
    train,
)

every = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
everything = pytest.mark.parametrize(
    "make",
    [*OPTIMIZERS.values(), *PRECONDITIONERS.values()],
    ids=[*OPTIMIZERS, *(f"{name} preconditioner" for name in PRECONDITIONERS)],
)


@every
def test_it_is_a_torch_optimizer_that_trains(make: Make) -> None:
    model = Net()
    optimizer = make(model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    losses = train(model, optimizer, range(80))
    assert sum(losses[-10:]) < 0.25 * sum(losses[:10])


@pytest.mark.parametrize(
    ("make", "lr"),
    [
        (lambda p, lr: MFAC([p], lr, capacity=8, damping=100.0), 0.5),
        (lambda p, lr: MFAC([p], lr, capacity=8, damping=100.0, momentum=0.9), 0.1),
        (lambda p, lr: MKOR([p], lr, model=nn.Module()), 3e-4),
        (lambda p, lr: NaturalGaLore([p], lr), 0.1),
    ],
    ids=["mfac", "mfac, momentum", "mkor", "galore"],
)
def test_rosenbrock_comes_nearer(make: Any, lr: float) -> None:
    x = torch.tensor([1.5, 1.5], requires_grad=True)
    minimum = torch.ones(2)
    optimizer = make(x, lr)
    before = x.detach().dist(minimum)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        value.backward()
        return value

    for _ in range(1000):
        optimizer.step(closure)
    assert x.detach().dist(minimum) < 0.5 * before


@every
def test_learning_rates_of_groups(make: Make) -> None:
    """Two groups do what two optimizers with the same options do; a rate of 0 does nothing."""
    together, apart, start = Net(), Net(), Net()
    halves = [
        [list(m.conv.parameters()) + list(m.norm.parameters()), list(m.hidden.parameters())]
        for m in (together, apart)
    ]
    groups = [{"params": halves[0][0], "lr": 0.03}, {"params": halves[0][1]}]
    one = make(together, [*groups, {"params": together.head.parameters(), "lr": 0.0}], lr=0.01)
    two = [make(apart, halves[1][0], lr=0.03), make(apart, halves[1][1], lr=0.01)]
    for batch in range(8):
        apart.zero_grad()
        backward(apart, batch)
        for optimizer in two:
            optimizer.step()
        train(together, one, [batch])
    assert_same(together, apart)
    assert_same(together.head, start.head)
    assert not torch.equal(together.hidden.weight, start.hidden.weight)


@every
def test_rate_as_a_tensor(make: Make) -> None:
    left, right = Net(), Net()
    train(left, make(left, lr=torch.tensor(0.25)), range(4))
    train(right, make(right, lr=0.25), range(4))
    assert_same(left, right)


@every
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=9, cycle_momentum=False),
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=1.0),
    ],
    ids=["step", "cosine", "one cycle", "plateau"],
)
def test_schedulers(make: Make, schedule: Any) -> None:
    scheduled, by_hand = Net(), Net()
    one, two = make(scheduled), make(by_hand)
    scheduler = schedule(one)
    for batch in range(8):
        two.param_groups[0]["lr"] = one.param_groups[0]["lr"]
        (loss,) = train(scheduled, one, [batch])
        train(by_hand, two, [batch])
        scheduler.step(*[loss] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
    assert one.param_groups[0]["lr"] != two.param_groups[0]["lr"]
    assert_same(scheduled, by_hand)


@every
def test_closure(make: Make) -> None:
    left, right = Net(), Net()
    optimizer = make(left)
    losses = []
    for batch in range(6):

        def closure(batch: int = batch) -> Tensor:
            optimizer.zero_grad()
            return backward(left, batch)

        losses.append(float(optimizer.step(closure)))
    assert losses == train(right, make(right), range(6))
    assert_same(left, right)


@every
def test_maximize_is_to_minimize_the_negative(make: Make) -> None:
    up, down = Net(), Net()
    train(up, make(up, maximize=True), range(8), sign=-1.0)
    train(down, make(down), range(8))
    assert_same(up, down)


@everything
def test_parameters_without_a_gradient_stay(make: Make) -> None:
    model = Net()
    start = copy.deepcopy(model)
    optimizer = make(model)
    optimizer.step()
    assert not optimizer.state
    model.norm.requires_grad_(False)
    for batch in range(5):
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
    assert_same(model.norm, start.norm)
    assert not any(optimizer.state.get(p) for p in model.norm.parameters())


@every
def test_a_parameter_left_out_once_keeps_its_state(make: Make) -> None:
    model = Net()
    optimizer = make(model)
    train(model, optimizer, range(4))
    before = snapshot(model.head, optimizer)
    backward(model, 4)
    model.head.weight.grad = None
    optimizer.step()
    assert torch.equal(before[0]["weight"], model.head.weight)
    index = [p is model.head.weight for p in model.parameters()].index(True)
    assert_same(before[1]["state"].get(index), optimizer.state_dict()["state"].get(index))
    assert not torch.equal(before[0]["bias"], model.head.bias)


@every
def test_zero_gradients_change_nothing(make: Make) -> None:
    model = Net()
    start = copy.deepcopy(model)
    optimizer = make(model, weight_decay=0.0)
    for _ in range(6):
        optimizer.zero_grad()
        (0 * model(torch.ones(2, 1, 6, 6)).sum()).backward()
        optimizer.step()
    assert_same(model, start)
    train(model, optimizer, range(4))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@everything
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite(make: Make, value: float) -> None:
    model = Net()
    names = list(model.named_parameters())
    optimizer = make(model, [{"params": names[:2]}, {"params": names[2:]}])
    for batch in range(3):
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
    before = snapshot(model, optimizer)
    optimizer.zero_grad()
    backward(model, 3)
    model.head.weight.grad[1, 2] = value
    expected = rf"^gradient of parameter 'head.weight' must be finite, got {value} at index \(1, 2"
    with pytest.raises(ValueError, match=expected):
        optimizer.step()
    assert_same(before, snapshot(model, optimizer))
    unnamed = make(model)
    with pytest.raises(ValueError, match=r"^gradient of parameter 6 of group 0 must be finite"):
        unnamed.step()


@everything
def test_training_goes_on_after_a_bad_batch(make: Make) -> None:
    """A batch that is skipped leaves no trace, also in what hooks have noted."""
    left, right = Net(), Net()
    one, two = make(left), make(right)
    for model, optimizer in ((left, one), (right, two)):
        train(model, optimizer, range(2))
    backward(left, 2)
    left.head.bias.grad[0] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        one.step()
    for p in left.parameters():
        p.grad = None  # not through the optimizer
    for model, optimizer in ((left, one), (right, two)):
        train(model, optimizer, range(3, 6))
    assert_same(snapshot(left, one), snapshot(right, two))


@everything
def test_state_in_mid_training_bit_for_bit(make: Make) -> None:
    model = Net()
    optimizer = make(model)
    train(model, optimizer, range(7))  # windows have wrapped, and the next update is not due

    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file)  # weights_only: nothing but tensors and numbers
    fresh = Net()
    fresh.load_state_dict(model.state_dict())
    resumed = make(fresh, lr=77.0) if "lr" in optimizer.defaults else make(fresh)
    resumed.load_state_dict(saved)
    assert_same(saved, resumed.state_dict())

    train(model, optimizer, range(7, 14))
    assert_same(saved["state"], torch.load(file.seek(0) or file)["state"])  # not shared with it
    train(fresh, resumed, range(7, 14))
    assert_same(snapshot(model, optimizer), snapshot(fresh, resumed))


@everything
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(make: Make, how: str) -> None:
    model = Net()
    optimizer = make(model)
    train(model, optimizer, range(5))
    if how == "deepcopy":
        other, copied = copy.deepcopy((model, optimizer))
    else:
        other, copied = pickle.loads(pickle.dumps((model, optimizer)))
    assert copied.param_groups[0]["params"][0] is next(other.parameters())
    train(model, optimizer, range(5, 10))
    train(other, copied, range(5, 10))
    assert_same(snapshot(model, optimizer), snapshot(other, copied))


@everything
def test_state_without_curvature(make: Make) -> None:
    model = Net()
    optimizer = make(model, save_curvature=False)
    train(model, optimizer, range(5))
    content = optimizer.state_dict()
    keys = {key for state in content["state"].values() for key in state}
    assert not keys & {"window", "j_in", "j_out"}
    assert any("window" in s or "j_in" in s for s in optimizer.state.values())
    other = copy.deepcopy(model)
    resumed = make(other)
    resumed.load_state_dict(content)
    train(other, resumed, range(5, 9))
    assert all(torch.isfinite(p).all() for p in other.parameters())


@everything
def test_state_of_something_else(make: Make) -> None:
    model, optimizer = Net(), None
    optimizer = make(model)
    train(model, optimizer, range(4))
    before = snapshot(model, optimizer)

    class Wider(Net):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(36, 9)
            self.head = nn.Linear(9, 5)

    wider = Wider()
    other = make(wider)
    train(wider, other, range(4))
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(
            make(model, [{"params": [p]} for p in model.parameters()]).state_dict()
        )
    wrong = copy.deepcopy(optimizer.state_dict())
    wrong["param_groups"][0][
        "update_every" if "update_every" in wrong["param_groups"][0] else "capacity"
    ] = 0
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        optimizer.load_state_dict(wrong)
    adam = torch.optim.Adam(model.parameters(), amsgrad=True)
    train(model, adam, [4])
    model.load_state_dict(before[0])
    with pytest.raises((ValueError, KeyError), match=r"\A[^\n]*\Z"):
        optimizer.load_state_dict(adam.state_dict())
    assert_same(before, snapshot(model, optimizer))
    train(model, optimizer, range(4, 6))


@everything
def test_parameters_that_come_later(make: Make) -> None:
    model = Net()
    early = [*model.conv.parameters(), *model.norm.parameters()]
    optimizer = make(model, early)
    train(model, optimizer, range(3))
    start = copy.deepcopy(model.head)
    optimizer.add_param_group({"params": [*model.hidden.parameters(), *model.head.parameters()]})
    train(model, optimizer, range(3, 8))
    assert len(optimizer.param_groups) == 2
    if "lr" in optimizer.defaults:
        assert not torch.equal(start.weight, model.head.weight)
    assert any(s for s in (optimizer.state[p] for p in model.hidden.parameters()))


@everything
@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), "must be float16, .* got int64$"),
        (torch.zeros(2, dtype=torch.complex64), "must be float16, .* got complex64$"),
        (torch.zeros(2, 2).to_sparse(), "must be dense, got torch.sparse_coo$"),
    ],
    ids=["integer", "complex", "sparse"],
)
def test_parameters_that_cannot_be(make: Make, parameter: Tensor, message: str) -> None:
    model = Net()
    optimizer = make(model, model.conv.parameters())
    before = snapshot(model, optimizer)
    with pytest.raises(TypeError, match=f"^parameter 1 of group 1 {message}"):
        optimizer.add_param_group({"params": [torch.zeros(1), parameter]})
    assert_same(before, snapshot(model, optimizer))
    with pytest.raises(TypeError, match=f"^parameter 0 of group 0 {message}"):
        make(model, [parameter])


@everything
def test_sparse_gradients(make: Make) -> None:
    model = nn.Embedding(5, 3, sparse=True)
    start = copy.deepcopy(model)
    optimizer = make(model)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"^gradient of parameter 0 of group 0 must be dense, got"):
        optimizer.step()
    assert_same(model, start)
    assert not optimizer.state


BAD = [
    (OPTIMIZERS["mfac"], "capacity", 0, "capacity must be at least 1, got 0"),
    (OPTIMIZERS["mfac"], "damping", 0.0, "damping must be finite and above 0, got 0.0"),
    (OPTIMIZERS["mfac"], "lr", -1.0, "lr must be finite and at least 0, got -1.0"),
    (OPTIMIZERS["mfac"], "lr", "fast", "lr must be a number, got 'fast'"),
    (OPTIMIZERS["mfac"], "momentum", 1.5, "momentum must be finite and between 0 and 1, got 1.5"),
    (OPTIMIZERS["mfac"], "weight_decay", -0.1, "weight_decay must be finite and at least 0"),
    (OPTIMIZERS["mfac"], "momentum_in", "both", "momentum_in must be one of"),
    (OPTIMIZERS["mfac"], "dtype", "int8", "dtype must be one of"),
    (OPTIMIZERS["mfac"], "normalize", None, "normalize must be one of"),
    (OPTIMIZERS["mfac"], "maximize", 1, "maximize must be one of True, False; got 1"),
    (OPTIMIZERS["mfac"], "save_curvature", None, "save_curvature must be one of"),
    (OPTIMIZERS["mkor"], "decay", 1.0, "decay must be between 0 and 1, both excluded, got 1.0"),
    (OPTIMIZERS["mkor"], "rule", "wrong", "rule must be one of 'exact', 'mkor', 'published'"),
    (OPTIMIZERS["mkor"], "update_every", 0, "update_every must be at least 1, got 0"),
    (OPTIMIZERS["mkor"], "update_every", 2.5, "update_every must be an integer, got 2.5"),
    (OPTIMIZERS["mkor"], "norm_bound", 0, "norm_bound must be finite and above 0, got 0"),
    (OPTIMIZERS["mkor"], "blend", 1.1, "blend must be finite and between 0 and 1, got 1.1"),
    (OPTIMIZERS["mkor"], "max_size", 0, "max_size must be at least 1, got 0"),
    (OPTIMIZERS["mkor"], "switch", True, "switch must be one of 'never', 'mkor-h'; got True"),
    (OPTIMIZERS["mkor"], "switch_window", 0, "switch_window must be at least 1, got 0"),
    (OPTIMIZERS["mkor"], "first_order", 0, "first_order must be one of True, False; got 0"),
    (OPTIMIZERS["galore"], "rank", 0, "rank must be at least 1, got 0"),
    (OPTIMIZERS["galore"], "history", 0, "history must be at least 1, got 0"),
    (OPTIMIZERS["galore"], "damping", -1e-3, "damping must be finite and above 0, got -0.001"),
    (OPTIMIZERS["galore"], "on_refresh", "", "on_refresh must be one of 'clear', 'rotate'"),
    (
        OPTIMIZERS["galore"],
        "betas",
        (0.9, 1.0),
        "betas must be two numbers from 0 to below 1, got (0.9, 1.0)",
    ),
    (OPTIMIZERS["galore"], "eps", -1.0, "eps must be finite and at least 0, got -1.0"),
    (PRECONDITIONERS["mkor"], "decay", 0.0, "decay must be between 0 and 1"),
    (PRECONDITIONERS["mfac"], "capacity", True, "capacity must be an integer, got True"),
]


@pytest.mark.parametrize(("make", "option", "value", "message"), BAD)
def test_options_out_of_range(make: Make, option: str, value: Any, message: str) -> None:
    model = Net()
    with pytest.raises((ValueError, TypeError)) as caught:
        make(model, **{option: value})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    if option == "save_curvature":
        return
    optimizer = make(model, model.conv.parameters())
    before = snapshot(model, optimizer)
    with pytest.raises((ValueError, TypeError)) as caught:
        optimizer.add_param_group({"params": model.norm.parameters(), option: value})
    assert str(caught.value).startswith(message)
    assert_same(before, snapshot(model, optimizer))


@everything
def test_bfloat16_parameters_have_float32_state(make: Make) -> None:
    model = Net().to(torch.bfloat16)
    optimizer = make(model)
    train(model, optimizer, range(6))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}

    def dtypes(optimizer: Any) -> set[torch.dtype]:
        stored = [s for state in optimizer.state_dict()["state"].values() for s in tensors(state)]
        return {s.dtype for s in stored}

    assert torch.float32 in dtypes(optimizer) or torch.float64 in dtypes(optimizer)
    other = copy.deepcopy(model)
    resumed = make(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert dtypes(resumed) == dtypes(optimizer)
    train(model, optimizer, range(6, 10))
    train(other, resumed, range(6, 10))
    assert_same(snapshot(model, optimizer), snapshot(other, resumed))


@every
def test_bfloat16_parameters_train(make: Make) -> None:
    model = Net().to(torch.bfloat16)
    losses = train(model, make(model), range(80))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@every
def test_memory_layout_does_not_matter(make: Make) -> None:
    plain, strided = Net(), Net()
    for model in (plain, strided):
        torch.manual_seed(1)
        model.conv = nn.Conv2d(3, 4, 3)
    strided.conv.to(memory_format=torch.channels_last)
    with torch.no_grad():
        strided.hidden.weight = nn.Parameter(strided.hidden.weight.T.contiguous().T)
        strided.head.weight = nn.Parameter(torch.empty(5, 16)[:, ::2].copy_(strided.head.weight))
    one, two = make(plain), make(strided)
    for batch in range(5):
        # The gradients are given, so that only the optimizers see the layouts.
        for p, q in zip(plain.parameters(), strided.parameters(), strict=True):
            generator = torch.Generator().manual_seed(batch)
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = torch.empty_like(q).copy_(p.grad)
        one.step()
        two.step()
    assert not strided.conv.weight.is_contiguous()
    assert not strided.hidden.weight.is_contiguous()
    assert not strided.head.weight.is_contiguous()
    for p, q in zip(plain.parameters(), strided.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=50 * 2**-23)  # SVD and GEMM see the layout


@every
def test_scalars_and_empty_parameters(make: Make) -> None:
    model = nn.Module()
    model.scalar = nn.Parameter(torch.tensor(2.0))
    model.empty = nn.Parameter(torch.empty(0, 3))
    optimizer = make(model)
    for _ in range(4):
        optimizer.zero_grad()
        (model.scalar**2 + model.empty.sum()).backward()
        optimizer.step()
    assert 0 <= model.scalar < 2
    only_empty = nn.ParameterList([torch.empty(0)])
    optimizer = make(only_empty)
    only_empty[0].sum().backward()
    optimizer.step()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@everything
def test_parameters_on_two_devices(make: Make) -> None:
    left, right = Net(), Net()
    one, two = make(left), make(right)
    for step in range(5):
        for i, (p, q) in enumerate(zip(left.parameters(), right.parameters(), strict=True)):
            if i >= 4:
                q.data = q.data.cuda()
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = p.grad.to(q.device)
        one.step()
        two.step()
        two.load_state_dict(copy.deepcopy(two.state_dict()))
    for p, q in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(p, q.cpu(), rtol=0, atol=50 * 2**-23)


@everything
def test_hooks_of_torch(make: Make) -> None:
    model = Net()
    optimizer = make(model)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append(len(o.state)))
    train(model, optimizer, [0])
    states = len(optimizer.state)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert calls == ["before", "after", states]


@everything
def test_no_trace_in_the_process(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    def switches() -> list[Any]:
        return [
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.allow_tf32 if hasattr(torch.backends.mkldnn, "allow_tf32") else 0,
            torch.get_rng_state().tolist(),
        ]

    model = Net()
    before = switches()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = make(model)
        train(model, optimizer, range(5))
        repr(optimizer)
    assert switches() == before
    assert capfd.readouterr() == ("", "")
    del optimizer
    gc.collect()
    assert not any(module._forward_hooks for module in model.modules())
