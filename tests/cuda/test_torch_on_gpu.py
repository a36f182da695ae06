"""The torch adapters where the model is on a GPU, which is an emulated one.

Its tensors are those of the CPU, taken for tensors of a GPU, and its kernels are those of the CPU,
so that results are the same but for what Python does in another way there.
"""

import contextlib
import copy
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from quadric import LinAlgError, device  # noqa: E402
from quadric.adapters.torch import FisherCollector  # noqa: E402
from quadric.adapters.torch.optim import MFAC, MKOR, NaturalGaLore, Preconditioner  # noqa: E402
from quadric.adapters.torch.prune import Pruner  # noqa: E402
from tests.adapters.optimizers import (  # noqa: E402
    OPTIMIZERS,
    PRECONDITIONERS,
    Net,
    assert_same,
    backward,
    train,
)
from tests.cuda import emulated  # noqa: E402

ALL = {**OPTIMIZERS, **{f"{name}, preconditioner": m for name, m in PRECONDITIONERS.items()}}
everything = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())


class Everything(dict[int, Any]):
    """Memory that kernels may touch: what torch has of it is not followed."""

    def values(self) -> Any:
        return [(0, 1 << 64)]


class Library(device.Torch):
    """Tensors of the CPU, as if they were on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self._devices = [torch.device("cpu")]

    def device(self, x: Any) -> int:
        return 0

    def stream(self, device: int) -> int:
        return 7 + device


class Switch:
    """Tells where tensors are: on the emulated GPU while it is on."""

    def __init__(self, gpu: emulated.Gpu) -> None:
        self.gpu = gpu
        self.on = self.capturing = False

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Take all tensors for tensors of the GPU."""
        self.on = True
        try:
            yield
        finally:
            self.on = False


@pytest.fixture
def switch(gpu: emulated.Gpu, monkeypatch: pytest.MonkeyPatch) -> Switch:
    result, library = Switch(gpu), Library()
    gpu._held = Everything()
    monkeypatch.setattr(device, "_torch", lambda: library)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda x: result.on), raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: result.capturing)
    return result


def close(a: Any, b: Any) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)


@everything
def test_steps_are_those_of_the_cpu_and_do_not_wait(switch: Switch, make: Any) -> None:
    here, there = Net(), Net()
    train(here, make(here), range(7))
    with switch.here():
        optimizer = make(there)
        for batch in range(7):
            optimizer.zero_grad()
            backward(there, batch)
            waits = switch.gpu.waits
            optimizer.step()
            refreshes = isinstance(optimizer, NaturalGaLore) and batch % 3 == 0
            assert refreshes or switch.gpu.waits == waits
    assert switch.gpu.launched
    close(here, there)


@everything
def test_state_goes_from_one_device_to_the_other(switch: Switch, make: Any) -> None:
    here, there = Net(), Net()
    one, two = make(here), make(there)
    for start in range(0, 8, 2):
        train(here, one, range(start, start + 2))
        with switch.here() if start % 4 else contextlib.nullcontext():
            train(there, two, range(start, start + 2))
            state = two.state_dict()
        with switch.here() if not start % 4 else contextlib.nullcontext():
            two = make(there)
            two.load_state_dict(state)
    close(here, there)


@everything
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(switch: Switch, make: Any, how: Any) -> None:
    model = Net()
    with switch.here():
        optimizer = make(model)
        train(model, optimizer, range(5))
        other, copied = how((model, optimizer))
        train(model, optimizer, range(5, 9))
        gc.collect()
        train(other, copied, range(5, 9))
    assert_same(model, other)


def test_nobody_looks_for_nan(switch: Switch) -> None:
    for make in ALL.values():
        model = Net()
        with switch.here():
            optimizer = make(model)
            train(model, optimizer, range(2))
            backward(model, 2)
            model.norm.weight.grad[0] = torch.nan  # no matrix: it goes through no decomposition
            optimizer.step()


def test_what_cannot_be_captured_says_so(switch: Switch) -> None:
    for make in ALL.values():
        model = Net()
        with switch.here():
            optimizer = make(model)
            train(model, optimizer, range(2))
            backward(model, 2)
            switch.capturing = True
            kind = type(optimizer).__name__
            before = copy.deepcopy(model.state_dict())
            if isinstance(optimizer, MFAC | NaturalGaLore) or "capacity" in optimizer.defaults:
                with pytest.raises(RuntimeError, match=f"step of {kind} cannot be captured"):
                    optimizer.step()
                assert_same(model.state_dict(), before)
            else:
                assert isinstance(optimizer, MKOR | Preconditioner)
                optimizer.step()
            switch.capturing = False


def test_the_switch_of_mkor(switch: Switch) -> None:
    options = {"lr": 0.05, "update_every": 1, "switch": "mkor-h", "switch_window": 3}
    models, flags = [Net(), Net()], []
    for model, where in zip(models, (contextlib.nullcontext, switch.here), strict=True):
        with where():
            optimizer = MKOR(model.parameters(), model=model, **options, switch_ratio=0.9)
            for batch in range(30):
                optimizer.zero_grad()
                optimizer.record_loss(backward(model, batch))
                optimizer.step()
                flags.append(optimizer.param_groups[0]["first_order"])
            assert optimizer.param_groups[0]["first_order"]
    assert flags[:30] == flags[30:]
    close(*models)
    with switch.here():
        optimizer = MKOR(model.parameters(), model=model, **options)
        for batch in range(3):
            optimizer.record_loss(torch.tensor(torch.inf))
            if batch < 2:
                optimizer.step()
        with pytest.raises(ValueError, match="sum of the losses must be finite"):
            optimizer.step()
        optimizer.record_loss(backward(model, 0))
        switch.capturing = True
        with pytest.raises(RuntimeError, match="switch 'mkor-h' cannot be captured"):
            optimizer.step()


def test_a_learning_rate_on_the_gpu(switch: Switch) -> None:
    for make in OPTIMIZERS.values():
        here, there = Net(), Net()
        train(here, make(here, lr=0.03), range(4))
        with switch.here():
            train(there, make(there, lr=torch.tensor([0.03], dtype=torch.float64)), range(4))
        close(here, there)


@pytest.mark.parametrize("options", [{}, {"joint": True}, {"dtype": "bfloat16"}, {"rows": 3}])
@pytest.mark.parametrize("count", [4, 20])
def test_fisher(switch: Switch, tmp_path: Any, options: Any, count: int) -> None:
    model = Net()
    masks = {"head.weight": torch.rand(5, 8) > 0.3}
    orders = {"conv.weight": (0, 2, 3, 1)}
    options = {"block_size": 8, "damping": 1e-3, "masks": masks, "orders": orders, **options}
    named = dict(model.named_parameters())
    kept = {name: torch.rand(p.shape) > 0.5 for name, p in named.items()}
    results = []
    for where in (contextlib.nullcontext, switch.here):
        with where():
            fisher = FisherCollector(named, **options)
            for batch in range(count):
                model.zero_grad()
                backward(model, batch)
                waits = switch.gpu.waits
                fisher.collect()
                assert switch.gpu.waits == waits
            found = [fisher.diagonal(), fisher.solve(named), fisher.scores(2)]
            for update in ("joint", "independent"):
                pruned = fisher.prune(kept, update=update)
                found.append({name: p.weights for name, p in pruned.items()})
                found.append({name: torch.tensor(p.loss) for name, p in pruned.items()})
            fisher.save(tmp_path / where.__name__)
        with switch.here():
            again = FisherCollector.load(
                tmp_path / where.__name__, named, masks=masks, orders=orders
            )
            again.damping = 1e-3
            found += [again.diagonal(), again.solve(named)]
        results.append(found)
    for a, b in zip(*results, strict=True):
        for name in named:
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_fisher_with_nan(switch: Switch) -> None:
    model = Net()
    with switch.here():
        fisher = FisherCollector(model.named_parameters(), block_size=8)
        backward(model, 0)
        model.head.weight.grad[1, 2] = torch.nan
        fisher.collect()
        with pytest.raises(LinAlgError, match=r"of 'head.weight': NaN or Inf in the result"):
            fisher.scores()


@pytest.mark.parametrize("method", ["obert", "diagonal", "magnitude"])
def test_pruner(switch: Switch, method: str) -> None:
    models = [Net(), Net()]

    def loss(model: Any, batch: int) -> Any:
        from tests.adapters.optimizers import data

        x, y = data(batch)
        return torch.nn.functional.cross_entropy(model(x), y)

    for model, where in zip(models, (contextlib.nullcontext, switch.here), strict=True):
        with where():
            pruner = Pruner(model, loss, range(20), method=method, progress=False, damping=1e-3)
            pruner.prune(0.6, recomputations=2)
    close(*models)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p == 0, q == 0)
