"""Whole models on a real GPU: compression, optimizers, Fisher matrices, pruning."""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from quadric import LinAlgError  # noqa: E402
from quadric.adapters.torch import FisherCollector, LayerRecipe, Recipe, compress  # noqa: E402
from quadric.adapters.torch.optim import MFAC, MKOR, NaturalGaLore, Preconditioner  # noqa: E402
from quadric.adapters.torch.prune import Pruner  # noqa: E402
from tests.adapters.models import Toy, token_batches  # noqa: E402
from tests.adapters.optimizers import OPTIMIZERS, PRECONDITIONERS, Net, data  # noqa: E402
from tests.cuda.real import needs_gpu, needs_two, no_wait  # noqa: E402

pytestmark = [*needs_gpu, pytest.mark.filterwarnings("ignore:the model is taken as one block")]

ALL = {**OPTIMIZERS, **{f"{name}, preconditioner": m for name, m in PRECONDITIONERS.items()}}
everything = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())

TIES = 0.1  # of the codes: there may be none, but one moves all that comes after it


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # in convolutions


def moved(batches: list[Any], to: str = "cuda") -> list[Any]:
    return [
        {k: v.to(to) for k, v in b.items()} if isinstance(b, dict) else b.to(to) for b in batches
    ]


# ---- compress ------------------------------------------------------------------------------------


def agree(there: tuple[Any, Any], here: tuple[Any, Any]) -> None:
    """Assert that two models are compressed in the same way, up to counted ties."""
    (model, report), (other, expected) = there, here
    assert report.layers.keys() == expected.layers.keys()
    differ = total = 0
    for name, q in report.layers.items():
        for field in ("codes", "mask"):
            a, b = (getattr(x, field, None) for x in (q, expected.layers[name]))
            if b is not None:
                assert isinstance(a, np.ndarray)
                differ, total = differ + int((a != b).sum()), total + b.size
    assert differ <= TIES * total, (differ, total)
    for a, b in zip(report, expected, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=0.2, abs=1e-9)
    far = every = 0
    state = other.state_dict()
    for name, x in model.state_dict().items():
        assert x.is_cuda
        assert x.dtype == state[name].dtype
        y = state[name].to(x.device)
        far += int(((x - y).abs() > 1e-4 * y.abs().max()).sum())
        every += x.numel()
    assert far <= TIES * every, (far, every)


RECIPES: dict[str, Any] = {
    "4 bits": LayerRecipe(bits=4, group_size=8),
    "ordered": LayerRecipe(bits=4, group_size=8, order="activation"),
    "2:4": LayerRecipe(bits=None, pattern=(2, 4)),
    "mixed": Recipe(
        {
            "head": LayerRecipe(bits=8),
            "*.up": LayerRecipe(bits=None, sparsity=0.5),
            "*": LayerRecipe(bits=4, group_size=8),
        }
    ),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("options", [{}, {"true_sequential": True}, {"asymmetric": True}])
def test_compress(recipe: Any, options: dict[str, Any]) -> None:
    original, batches = Toy(depth=2), token_batches(padded=True)
    here = copy.deepcopy(original)
    there = copy.deepcopy(original).cuda()
    expected = compress(here, batches, recipe, progress=False, **options)
    report = compress(there, moved(batches), recipe, progress=False, **options)
    agree((there, report), (here, expected))
    on_cpu = copy.deepcopy(original).cuda()
    report = compress(on_cpu, moved(batches), recipe, progress=False, backend="native", **options)
    agree((on_cpu, report), (here, expected))


def test_compress_in_half_precision() -> None:
    model = Toy(depth=1, width=32).cuda().bfloat16()
    report = compress(model, moved(token_batches()), RECIPES["4 bits"], progress=False)
    assert all(p.is_cuda and p.dtype == torch.bfloat16 for p in model.parameters())
    assert all(np.isfinite(row.loss) for row in report)


class Experts(nn.Module):
    """Each of three experts gets the rows whose first entries say so, the last one none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.experts = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for expert, chosen in zip(self.experts, (x[:, 0] > 0, x[:, 0] <= 0), strict=False):
            y[chosen] = expert(x[chosen])
        return y + self.first(x)


def test_experts() -> None:
    original = Experts()
    batches = [torch.randn(200, 16) for _ in range(2)]
    here, there = copy.deepcopy(original), copy.deepcopy(original).cuda()
    options: dict[str, Any] = {"progress": False, "on_failure": "skip"}
    expected = compress(here, batches, RECIPES["4 bits"], **options)
    report = compress(there, moved(batches), RECIPES["4 bits"], **options)
    assert [row.method for row in report] == [row.method for row in expected]
    assert report.layers.keys() == expected.layers.keys()
    for name, q in report.layers.items():
        assert np.mean(q.codes != expected.layers[name].codes) <= TIES
    assert torch.equal(there.experts[2].weight.cpu(), original.experts[2].weight)


def test_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.adapters.test_resume import Crash, crash_after

    def run(work_dir: Path | None) -> tuple[Any, Any]:
        model = Toy(depth=2).cuda()
        batches = moved(token_batches(padded=True))
        recipe = RECIPES["mixed"]
        return model, compress(model, batches, recipe, work_dir=work_dir, progress=False)

    model, expected = run(None)
    for layers in (1, 6):
        with monkeypatch.context() as patch:
            crash_after(layers, patch)
            with pytest.raises(Crash):
                run(tmp_path / str(layers))
        again, report = run(tmp_path / str(layers))
        for name, q in expected.layers.items():
            for field in ("codes", "mask", "weights", "scales"):
                a, b = (getattr(x, field, None) for x in (q, report.layers[name]))
                assert b is None if a is None else np.array_equal(a, b), (name, field)
        other = again.state_dict()
        assert all(torch.equal(x, other[name]) for name, x in model.state_dict().items())


class Split(nn.Module):
    """Layers on one device, then layers on another."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8)]
        self.left = nn.Sequential(*layers[:2]).to(first)
        self.right = nn.Sequential(*layers[2:]).to(second)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        return self.right(self.left(x).to(self.second))


@needs_two
def test_a_model_on_two_devices() -> None:
    batches = [torch.randn(100, 16) for _ in range(3)]
    here, there = Split("cpu", "cpu"), Split("cuda:0", "cuda:1")
    expected = compress(here, batches, RECIPES["4 bits"], progress=False)
    report = compress(there, moved(batches, "cuda:0"), RECIPES["4 bits"], progress=False)
    agree((there, report), (here, expected))
    for make in ALL.values():
        models = Split("cpu", "cpu"), Split("cuda:0", "cuda:1")
        optimizers = [make(model) for model in models]
        for batch in batches * 2:
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                device = next(model.parameters()).device
                model(batch.to(device)).square().mean().backward()
            same_gradients(*models)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        close(*models)
    for joint in (False, True):
        scores = []
        for model, device in ((here, "cpu"), (there, "cuda:0")):
            fisher = FisherCollector(model.named_parameters(), joint=joint, damping=1e-3)
            for batch in batches:
                model.zero_grad()
                model(batch.to(device)).square().mean().backward()
                fisher.collect()
            scores.append(fisher.scores())
        for name, x in scores[0].items():
            assert scores[1][name].is_cuda
            # The weights are not quite the same.
            torch.testing.assert_close(scores[1][name].cpu().sum(), x.sum(), rtol=0.1, atol=0)


# ---- optimizers ----------------------------------------------------------------------------------


def close(here: Any, there: Any) -> None:
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(p, q.to(p.device), rtol=1e-3, atol=1e-4)


def same_gradients(here: Any, there: Any) -> None:
    """Overwrite the gradients, so that Adam does not magnify the rounding of small ones."""
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        q.grad.copy_(p.grad)


def backward(model: Any, batch: int) -> Tensor:
    p = next(model.parameters())
    x, y = data(batch)
    loss = F.cross_entropy(model(x.to(p.device, p.dtype)), y.to(p.device))
    loss.backward()
    return loss.detach()


def refreshes(optimizer: Any, batch: int) -> bool:
    return isinstance(optimizer, NaturalGaLore) and batch % 3 == 0


@everything
def test_steps_are_those_of_the_cpu_and_do_not_wait(make: Any) -> None:
    here, there = Net(), Net().cuda()
    one, two = make(here), make(there)
    for batch in range(10):
        for model, optimizer in ((here, one), (there, two)):
            optimizer.zero_grad()
            backward(model, batch)
        same_gradients(here, there)
        one.step()
        quiet = batch in (7, 8) and not refreshes(two, batch)
        with no_wait() if quiet else contextlib.nullcontext():
            two.step()
    for state in two.state.values():
        for x in state.values():
            assert not isinstance(x, Tensor) or x.is_cuda
    close(here, there)


@everything
def test_state_from_one_device_to_the_other(make: Any, tmp_path: Path) -> None:
    here, there = Net(), Net()
    one, two = make(here), make(there)
    for start, device in enumerate(("cpu", "cuda", "cpu", "cuda")):
        there.to(device)
        before, two = two, make(there)
        torch.save(before.state_dict(), tmp_path / "state")
        two.load_state_dict(torch.load(tmp_path / "state"))
        for batch in range(3 * start, 3 * start + 3):
            for model, optimizer in ((here, one), (there, two)):
                optimizer.zero_grad()
                backward(model, batch)
            same_gradients(here, there)
            one.step()
            two.step()
        other = copy.deepcopy(two)
        assert type(other) is type(two)
    close(here, there)


@everything
def test_the_same_bits_in_every_run(make: Any) -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        model = Net().cuda()
        optimizer = make(model)
        for _ in range(6):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, device="cuda")
            optimizer.step()
        return list(model.parameters()) + [p.grad for p in model.parameters()]

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


def test_a_model_that_moves() -> None:
    """A window goes with the parameters, as gradients do."""
    model = Net()
    for make in (OPTIMIZERS["mfac"], PRECONDITIONERS["mkor"], PRECONDITIONERS["mfac"]):
        optimizer = make(model)
        for batch, device in enumerate(("cpu", "cuda", "cuda", "cpu", "cuda", "cpu")):
            model.to(device)
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


class Linears(nn.Module):
    """Layers without convolutions, whose backward pass has the same bits in and out of a graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


MKORS: dict[str, Callable[..., Any]] = {
    "update": lambda model: MKOR(model.parameters(), lr=0.05, model=model, update_every=1),
    "plain": lambda model: MKOR(model.parameters(), lr=0.05, model=model, update_every=1000),
    "first order": lambda model: MKOR(model.parameters(), model=model, first_order=True),
    "rate": lambda model: MKOR(
        model.parameters(), lr=torch.tensor(0.05, device="cuda"), model=model, weight_decay=0.1
    ),
}


@pytest.mark.parametrize("make", MKORS.values(), ids=MKORS.keys())
def test_mkor_in_a_graph(make: Any) -> None:
    """Forward pass, backward pass and step; the same without a graph."""
    model, x = Linears().cuda(), torch.randn(64, 24, device="cuda")
    y = torch.randn(64, 5, device="cuda")
    optimizer = make(model)

    def step(m: Any, o: Any) -> None:
        o.zero_grad(set_to_none=True)
        F.mse_loss(m(x), y).backward()
        o.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(model, optimizer)
    torch.cuda.current_stream().wait_stream(stream)
    twin = copy.deepcopy(model)
    other = make(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step(model, optimizer)
    for i in range(4):
        x.normal_(), y.normal_()
        if torch.is_tensor(optimizer.param_groups[0]["lr"]):
            for o in (optimizer, other):
                o.param_groups[0]["lr"].fill_(0.05 / (i + 1))
        graph.replay()
        step(twin, other)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        for key in ("j_in", "j_out"):
            if key in optimizer.state[p]:
                torch.testing.assert_close(
                    optimizer.state[p][key], other.state[q][key], rtol=1e-4, atol=1e-5
                )


def test_what_cannot_be_captured_says_so() -> None:
    for make in ALL.values():
        model = Linears().cuda()
        optimizer = make(model)
        if "norm_bound" in optimizer.defaults:  # those of MKOR can
            continue
        assert isinstance(optimizer, MFAC | NaturalGaLore | Preconditioner)
        x = torch.randn(8, 24, device="cuda")
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        before = copy.deepcopy(model.state_dict())
        graph, passed = torch.cuda.CUDAGraph(), torch.zeros(3, device="cuda")
        with torch.cuda.graph(graph):
            passed += 1
            with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
                optimizer.step()
        graph.replay()
        for name, p in model.state_dict().items():
            assert torch.equal(p, before[name])


# ---- Fisher matrices -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"joint": True}, {"dtype": "bfloat16"}, {"rows": 3}])
@pytest.mark.parametrize("count", [4, 40])
def test_fisher(options: dict[str, Any], count: int, tmp_path: Path) -> None:
    found = []
    shapes = [p.shape for p in Net().parameters()]
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(count)]
    kept = [torch.rand(shape) > 0.5 for shape in shapes]
    for device in ("cpu", "cuda"):
        model = Net().to(device)
        named = dict(model.named_parameters())
        fisher = FisherCollector(named, block_size=8, damping=1e-2, **options)
        for i, rows in enumerate(gradients):
            given = [g.to(device) for g in rows]
            quiet = device == "cuda" and i == 38
            with no_wait() if quiet else contextlib.nullcontext():
                fisher.collect(given)
        masks = dict(zip(named, (k.to(device) for k in kept), strict=True))
        results = [fisher.diagonal(), fisher.solve(named), fisher.scores(2)]
        results.append({k: p.weights for k, p in fisher.prune(masks).items()})
        fisher.save(tmp_path / device)
        for path in {"cpu", device}:
            again = FisherCollector.load(tmp_path / path, named)
            again.damping = 1e-2
            results.append(again.solve(named))
        found.append(results)
    found[0].append(found[0][-1])
    for a, b in zip(*found, strict=True):
        for name, x in a.items():
            assert b[name].is_cuda
            torch.testing.assert_close(b[name].cpu(), x, rtol=1e-4, atol=1e-5)


def test_fisher_with_nan() -> None:
    model = Net().cuda()
    fisher = FisherCollector(model.named_parameters(), block_size=8)
    backward(model, 0)
    model.head.weight.grad[1, 2] = torch.nan
    fisher.collect()
    with pytest.raises(LinAlgError, match=r"of 'head.weight': NaN or Inf in the result"):
        fisher.scores()


@pytest.mark.parametrize("method", ["obert", "diagonal", "magnitude"])
def test_pruner(method: str) -> None:
    def loss(model: Any, batch: int) -> Tensor:
        p = next(model.parameters())
        x, y = data(batch)
        return F.cross_entropy(model(x.to(p.device, p.dtype)), y.to(p.device))

    models = Net().double(), Net().double().cuda()
    for model in models:
        pruner = Pruner(model, loss, range(20), method=method, progress=False, damping=1e-3)
        pruner.prune(0.6, recomputations=2)
        assert all(mask.device == model.head.weight.device for mask in pruner.masks.values())
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert q.is_cuda
        assert torch.equal(p == 0, q.cpu() == 0)
        torch.testing.assert_close(q.cpu(), p, rtol=1e-6, atol=1e-9)
