"""The router, and plans with few entries, on arrays of an emulated GPU: what Python does there."""

from typing import Any

import numpy as np
import pytest

from quadric.transport import route, sparsity_constrained
from tests.cuda import emulated

torch = pytest.importorskip("torch")

from quadric.adapters.torch import SparseRouter  # noqa: E402
from quadric.adapters.torch.router import route_tokens, route_tokens_backward  # noqa: E402
from tests.cuda.test_torch_on_gpu import Switch, switch  # noqa: E402, F401

DIM, EXPERTS = 6, 4


def scores(dtype: str = "float64", seed: int = 0, shape: tuple[int, int] = (48, 4)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- the functions -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"capacity": 12}, {"capacity": 8}, {"reg": 0.1}], ids=str)
def test_route(gpu: emulated.Gpu, dtype: str, options: dict[str, Any]) -> None:
    s = scores(dtype)
    options = {"capacity": 15, **options}
    expected, found = route(s, **options), route(gpu.put(s), **options)
    assert "transport.route" in gpu.launched
    for name in ("tokens", "weights", "counts", "dropped", "tight", "f"):
        ours, there = getattr(expected, name), gpu.get(getattr(found, name))
        assert ours.dtype == there.dtype
        np.testing.assert_allclose(there, ours, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gpu.get(found.gates()), expected.gates(), rtol=1e-6, atol=1e-6)
    assert found.converged
    assert found.reason == "converged"
    assert repr(found)
    ours, there = expected.experts(), found.experts()
    np.testing.assert_array_equal(gpu.get(there[0]), ours[0])
    G = scores(seed=1)
    near = gpu.get(found.vjp(gpu.put(G)))
    np.testing.assert_allclose(near, expected.vjp(G), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(48,), (48, 4)])
@pytest.mark.parametrize("there", [True, False])
def test_route_with_a_mask_and_loads(
    gpu: emulated.Gpu, shape: tuple[int, ...], there: bool
) -> None:
    s, rng = scores(), np.random.default_rng(2)
    mask = rng.random(shape) < 0.8
    mask[0] = True
    loads = np.array([10.0, 0.0, 12.0, 5.0])
    put = gpu.put if there else np.asarray
    options = {"mask": put(mask), "tokens_per_expert": put(loads)}
    found = route(gpu.put(s), 14, **options)
    expected = route(s, 14, mask=mask, tokens_per_expert=loads)
    np.testing.assert_allclose(gpu.get(found.gates()), expected.gates(), atol=1e-7)
    assert (gpu.get(found.f)[~mask.reshape(48, -1).any(axis=1)] == -np.inf).all()


def test_another_method_follows(gpu: emulated.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the one for the GPU ends with an error; and where there are too many experts."""
    from quadric.transport import routing

    s = scores()
    expected = route(s, 15)
    monkeypatch.setattr(routing, "EXPERTS", 3)
    found = route(gpu.put(s), 15)
    assert "transport.route" not in gpu.launched
    assert "transport.capped_columns" in gpu.launched
    np.testing.assert_allclose(gpu.get(found.gates()), expected.gates(), atol=1e-12)
    masked = route(gpu.put(s), 15, mask=gpu.put(np.arange(48) < 40))
    np.testing.assert_allclose(
        gpu.get(masked.gates()), route(s, 15, mask=np.arange(48) < 40).gates(), atol=1e-12
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("k", [3, 4, 20])
def test_sparsity_constrained(gpu: emulated.Gpu, dtype: str, order: str, k: int) -> None:
    """Also where places are looked for, k = 3 and 4, and with forbidden pairs and empty masses."""
    M = np.asarray(scores(dtype, 3, (20, 10)), order=order)
    M[0, :5] = np.inf
    a, b = np.ones(20) / 19, np.ones(10) / 10
    a[7] = 0
    options = {"reg": 2.0, "max_iter": 200}
    with np.errstate(all="ignore"):
        expected = sparsity_constrained(a, b, M, k, **options)
        found = sparsity_constrained(a, b, gpu.put(M), k, **options)
    assert found.reason == expected.reason
    for name in ("cost", "value", "dual_value"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)
    np.testing.assert_allclose(gpu.get(found.plan()), expected.plan(), atol=1e-6)
    np.testing.assert_allclose(gpu.get(found.f), expected.f, rtol=1e-6, atol=1e-6)
    G = np.random.default_rng(4).standard_normal(M.shape)
    np.testing.assert_allclose(gpu.get(found.vjp(gpu.put(G))), expected.vjp(G), atol=1e-6)
    again = sparsity_constrained(a, b, gpu.put(M), k, warm_start=found, **options)
    assert again.marginal_error <= max(2 * found.marginal_error, 1e-5)


def test_refusals(gpu: emulated.Gpu) -> None:
    s = scores()
    with pytest.raises(ValueError, match=r"^backend must be cuda"):
        route(gpu.put(s), 15, backend="numba")
    s[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"^scores must be finite"):
        route(gpu.put(s), 15)
    with pytest.raises(ValueError, match=r"^mask must have shape"):
        route(gpu.put(scores()), 15, mask=gpu.put(np.ones(7, bool)))


# ---- the layer -----------------------------------------------------------------------------------


def layer(**options: Any) -> SparseRouter:
    torch.manual_seed(0)
    experts = [torch.nn.Linear(DIM, 5) for _ in range(EXPERTS)]
    return SparseRouter(DIM, experts, **options).double()


def tokens(n: int) -> Any:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize(
    "options",
    [{}, {"gates": "softmax"}, {"derivative": "fixed"}, {"capacity": 5}, {"capacity": 100}],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_layer(switch: Switch, options: dict[str, Any], masked: bool) -> None:  # noqa: F811
    """Outputs and derivatives are those of the CPU, and nothing waits for the GPU."""
    module, x = layer(**options), tokens(40).requires_grad_()
    mask = torch.arange(40) % 5 > 0 if masked else None
    y = module(x, mask)
    y.square().sum().backward()
    expected = y.detach(), x.grad, [p.grad.clone() for p in module.parameters()]
    report = module.report
    x.grad = None
    module.zero_grad()
    with switch.here():
        y = module(x, mask)
        y.square().sum().backward()
    assert switch.gpu.waits == switch.gpu.copies == 0
    backward = [] if "gates" in options else ["transport.route_backward"]
    assert switch.gpu.launched == ["transport.route", *backward]
    found = y.detach(), x.grad, [p.grad for p in module.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(report.counts, module.report.counts)
    assert int(report.dropped) == int(module.report.dropped)


def test_scores_that_are_not_finite(switch: Switch) -> None:  # noqa: F811
    module = layer()
    with switch.here():
        y = module(tokens(20) * torch.nan)
        assert not bool(module.report.converged)
        none = module(tokens(20), torch.zeros(20, dtype=torch.bool))
    assert y.isnan().any()
    assert (none == 0).all()


def test_operators(switch: Switch) -> None:  # noqa: F811
    s = torch.from_numpy(scores()).requires_grad_()
    options = 100, 2.0, 1e-13, 200
    here = route_tokens(s.detach(), None, *options, True)
    with switch.here():
        there = route_tokens(s.detach(), None, *options, True)
        torch.testing.assert_close(here, there)
        G = torch.randn(s.shape, generator=torch.Generator().manual_seed(3)).double()
        back = route_tokens_backward(G, there[0], there[1], 2.0)
    torch.testing.assert_close(back, route_tokens_backward(G, here[0], here[1], 2.0))
