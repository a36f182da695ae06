"""Arrays of torch, CuPy and JAX on a real GPU: results, streams, graphs, memory."""

import contextlib
import copy
import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quadric import linalg, sketch, sweep, transport, woodbury  # noqa: E402
from tests.cuda.calls import CALLS, SWEPT, D, M, N, hessian, normal, positive  # noqa: E402
from tests.cuda.real import (  # noqa: E402
    SLEEP,
    Torch,
    library,
    needs_gpu,
    needs_two,
    no_wait,
)

pytestmark = needs_gpu

NEAR = {
    "float32": 2e-4,
    "float64": 1e-10,
}  # of the largest entry: a few hundred eps, conditions of ten
TIES = 0.01  # the share of codes that may fall the other way in float32

names = pytest.mark.parametrize("name", CALLS)


def put(a: np.ndarray) -> Any:
    return Torch().put(a)


def whole(found: dict[str, Any]) -> dict[str, np.ndarray]:
    lib = Torch()
    return {k: np.asarray(v) if np.isscalar(v) else lib.get(v) for k, v in found.items()}


# ---- results -------------------------------------------------------------------------------------


@names
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("of", ["torch", "cupy", "jax"])
def test_same_kind_and_same_results(of: str, name: str, dtype: str) -> None:
    lib = library(of)
    if dtype not in lib.dtypes:
        pytest.skip(f"{of} has no {dtype} as it is")
    expected = CALLS[name](lambda a: a, dtype)
    found = CALLS[name](lib.put, dtype)
    assert found.keys() == expected.keys()
    assert found
    tied = False
    for key, e in expected.items():
        f = np.asarray(found[key]) if np.isscalar(e) else lib.get(found[key])
        assert f.shape == e.shape, key
        assert of == "jax" or f.dtype == e.dtype, key
        if e.dtype.kind in "iub":
            others = np.mean(f != e)
            assert others <= (TIES if dtype == "float32" and name in SWEPT else 0), (key, others)
            tied |= bool(others)
        else:
            storage = "float16" in key  # of which an entry may be rounded the other way
            near = 2e-3 if storage and "bfloat16" not in key else NEAR[dtype]
            near = 2e-2 if "bfloat16" in key else near
            error = np.abs(f.astype(float) - e).max(initial=0) / (np.abs(e).max(initial=0) or 1)
            assert tied or error <= near, (key, error)


@names
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_again(name: str, dtype: str) -> None:
    first, second = (whole(CALLS[name](put, dtype)) for _ in range(2))
    for key, a in first.items():
        assert a.tobytes() == second[key].tobytes(), key


@pytest.mark.parametrize(("n", "times"), [(2048, 2), (4096, 3)])  # products of 256 and 512 columns
def test_products_by_parts_round_as_well_as_those_of_float32(n: int, times: int) -> None:
    """A sweep of many rows takes the tensor cores for its products, one of few rows does not."""
    m = 1024
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(2 * n, n, device="cuda", generator=generator)
    x += 0.5 * x.roll(1, 1) + x.mean(1, keepdim=True)
    w = torch.randn(m, n, device="cuda", generator=generator)
    factor = sweep.factorize(x.T @ x / (2 * n))
    wide = dataclasses.replace(factor, _upper=factor._upper.astype(np.float64))

    def swept(weights: Any, factor: Any) -> Any:
        return sweep.quantize(weights, factor, bits=4, group_size=128)

    exact, parts = swept(w.double(), wide), swept(w, factor)
    slices = [swept(rows, factor) for rows in w.split(128)]
    float32 = torch.cat([q.codes for q in slices])
    others, usual = (float((c != exact.codes).float().mean()) for c in (parts.codes, float32))
    assert others <= times * usual + 1e-3, (others, usual)
    loss = float(exact.loss.sum())
    assert abs(float(parts.loss.sum()) - loss) <= 1e-4 * loss


@pytest.mark.parametrize("spread", [0.0, 2.0])  # of the logarithms of the sizes of inputs and rows
def test_a_batch_by_parts_rounds_as_well_as_matrices_of_float32(spread: float) -> None:
    """Factors and sweeps of many large matrices take the tensor cores, at any scale of any row."""
    k, m, n = 16, 512, 1024
    generator = torch.Generator("cuda").manual_seed(1)

    def random(*shape: int) -> Any:
        return torch.randn(*shape, device="cuda", generator=generator)

    x = random(k, 2 * n, n)
    x += 0.5 * x.roll(1, 2) + x.mean(2, keepdim=True)
    x *= (spread * random(k, 1, n)).exp()
    h = x.mT @ x / (2 * n)
    h = (h + h.mT) / 2
    w = random(k, m, n) * (spread * random(k, m, 1)).exp()
    options: dict[str, Any] = {"bits": 4, "group_size": 128}
    exact = sweep.quantize_batch(w.double(), h.double(), **options)
    parts = sweep.quantize_batch(w, h, **options)
    for i in range(k):
        factor = sweep.factorize(h[i])
        slices = [sweep.quantize(rows, factor, **options) for rows in w[i].split(128)]
        float32 = torch.cat([q.codes for q in slices])
        others, usual = (
            float((c != exact[i].codes).float().mean()) for c in (parts[i].codes, float32)
        )
        assert others <= 2 * usual + 1e-3, (i, others, usual)
        off = (parts[i].loss - exact[i].loss).abs() / exact[i].loss
        assert float(off.mean()) <= 2e-4, (i, off)


@needs_two
@names
def test_arrays_of_another_device_than_the_current_one(name: str) -> None:
    assert torch.cuda.current_device() == 0
    there = Torch()
    there.place = "cuda:1"
    first = whole(CALLS[name](put, "float32"))
    for key, x in CALLS[name](there.put, "float32").items():
        b = np.asarray(x) if np.isscalar(x) else there.get(x)
        assert first[key].tobytes() == b.tobytes(), key
    assert torch.cuda.current_device() == 0


# ---- nothing waits -------------------------------------------------------------------------------


def unwatched() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield calls that must not wait, under their names."""
    off = {"check_finite": False}
    for storage in ("float32", "bfloat16", "float64"):
        kind = torch.float64 if storage == "float64" else torch.float32
        g = torch.randn(D, device="cuda", dtype=kind)
        window = woodbury.GradientWindow(D, capacity=4, damping=0.1, dtype=storage, **off)
        yield f"push {storage}", lambda w=window, g=g: w.push(g)
        yield f"push_and_solve {storage}", lambda w=window, g=g: w.push_and_solve(g)
        yield f"combine {storage}", lambda w=window: w.combine([1.0])
        yield f"solve {storage}", lambda w=window, g=g: w.solve(g)
    for count in (7, 40):
        rows = torch.randn(count, D, device="cuda")
        v, mask = torch.randn(D, device="cuda"), torch.rand(D, device="cuda") < 0.5
        fisher = woodbury.BlockFisher(D, block_size=10, damping=0.1, **off)
        yield f"BlockFisher.update {count}", lambda f=fisher, r=rows: f.update(r)
        yield f"BlockFisher.diagonal {count}", fisher.diagonal
        yield f"BlockFisher.inverse {count}", fisher.inverse
        yield f"BlockFisher.solve {count}", lambda f=fisher, v=v: f.solve(v)
        yield f"BlockFisher.scores {count}", lambda f=fisher, v=v: f.scores(v, 5)
        yield (
            f"BlockFisher.prune {count}",
            lambda f=fisher, v=v, m=mask: f.prune(v, m, whole_blocks="zero"),
        )
    g = torch.randn(12, D, device="cuda")
    yield "EmpiricalFisher", lambda: woodbury.EmpiricalFisher(g, damping=0.1, **off).solve(v)
    natural = woodbury.natural_gradient
    yield "natural_gradient", lambda: natural(g, v, 0.1, **off)
    yield "natural_gradient, last", lambda: natural(g, damping=0.1, **off)
    j = [put(positive(n, "float32")) for n in (M, N)]
    vs = [torch.randn(n, device="cuda") for n in (M, N)]
    vk = [torch.randn(3, n, device="cuda") for n in (M, N)]
    grad = torch.randn(M, N, device="cuda")
    more = {"norm_bound": 3.0, "out": j, **off}
    yield "rank one", lambda: woodbury.rank_one_inverse_update(j, vs, **more)
    yield "rank k", lambda: woodbury.rank_k_inverse_update(j, vk, **more)
    yield "kronecker", lambda: woodbury.kronecker_precondition(j[0], grad, j[1], **off)


def test_without_checks_nothing_waits() -> None:
    calls = list(unwatched())
    for _ in range(2):
        for _, call in calls:
            call()
    for start in range(0, len(calls), 6):  # in parts, so that the GPU sleeps long enough
        with no_wait():
            for _, call in calls[start : start + 6]:
                call()


# ---- streams -------------------------------------------------------------------------------------


def works() -> dict[str, Callable[[Any], Any]]:
    """Return functions of a random 1024 x 1024 matrix."""
    n = 1024
    j = put(positive(n, "float32"))

    def window(x: Any) -> Any:
        w = woodbury.GradientWindow(n * n, capacity=3, damping=0.1)
        for i in range(4):
            out = w.push_and_solve(x.reshape(-1) * (i + 1))
        return out

    def quantize(x: Any) -> Any:
        acc = sweep.HessianAccumulator(n)
        acc.update(x)
        factor = sweep.factorize(acc.value(), damping=0.1)
        return sweep.quantize(x, factor, bits=4, group_size=128).dequantize()

    def fisher(x: Any) -> Any:
        f = woodbury.BlockFisher(n * 16, damping=0.1)
        f.update(x.reshape(-1, n * 16))
        return f.diagonal()

    return {
        "kronecker": lambda x: woodbury.kronecker_precondition(j, x, j),
        "window": window,
        "quantize": quantize,
        "fisher": fisher,
        "inverse": lambda x: linalg.inverse((x.reshape(-1, 32, 32) @ x.reshape(-1, 32, 32).mT)
                                            + torch.eye(32, device=x.device)).value,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["kronecker", "window", "quantize", "fisher", "inverse"])
def test_streams_of_torch(name: str) -> None:
    """Two at once, each with input that is late: only on their own streams do calls see it."""
    work = works()[name]
    xs = [put(normal((1024, 1024), "float32", i)) for i in range(2)]
    expected = [work(x) for x in xs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in xs]
    late = [torch.zeros_like(x) for x in xs]
    found: list[Any] = []
    torch.cuda.synchronize()
    for x, to, stream in zip(xs, late, streams, strict=True):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP // 4)
            to.copy_(x)
            found.append(work(to))
    torch.cuda.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_the_default_stream_is_left_alone() -> None:
    work = works()["kronecker"]
    x = put(normal((1024, 1024), "float32"))
    work(x)
    stream, asleep = torch.cuda.Stream(), torch.cuda.Event()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        work(x)
        torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP)
    asleep.record()
    with torch.cuda.stream(stream):
        work(x)
    stream.synchronize()
    assert not asleep.query()
    torch.cuda.synchronize()


def test_a_stream_of_cupy() -> None:
    cupy = library("cupy")._cupy
    j, x = (cupy.asarray(a) for a in (positive(512, "float32"), normal((512, 512), "float32")))
    expected = woodbury.kronecker_precondition(j, x, j)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        slow = cupy.ones((6000, 6000), cupy.float32)
        for _ in range(8):
            slow = slow @ slow / 6000
        late = x * slow[0, 0]  # exactly one
        found = woodbury.kronecker_precondition(j, late, j, check_finite=False)
        stream.synchronize()
    assert bool((found == expected).all())


def test_jax_arrays_that_are_still_computed() -> None:
    jax = library("jax")._jax
    lib = library("jax")
    j, x = lib.put(positive(512, "float32")), lib.put(normal((512, 512), "float32"))
    expected = np.asarray(woodbury.kronecker_precondition(j, x, j))
    slow = jax.numpy.ones((6000, 6000))
    for _ in range(8):
        slow = slow @ slow / 6000
    found = woodbury.kronecker_precondition(j, x + (slow[0, 0] - slow[0, 0]), j)
    np.testing.assert_array_equal(np.asarray(found * 2) / 2, expected)


# ---- graphs --------------------------------------------------------------------------------------


def captured(call: Callable[[], Any]) -> tuple[Any, Any]:
    """Return a graph of a call, which has been made twice before, and its result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_graph_of_push_and_solve(storage: str) -> None:
    """A replay pushes to the place that the captured call had."""
    options = {"capacity": 4, "damping": 0.1, "dtype": storage, "check_finite": False}
    window = woodbury.GradientWindow(D, **options)
    gradients = torch.randn(8, D, device="cuda")
    for g in gradients[:5]:
        window.push(g)
    g = gradients[5].clone()
    states: list[Any] = []

    def call() -> Any:
        if not torch.cuda.is_current_stream_capturing():
            out = window.push_and_solve(g)
            states.append(window.state_dict())
            return out
        return window.push_and_solve(g)

    graph, out = captured(call)
    for new in gradients[6:]:
        g.copy_(new)
        graph.replay()
        other = woodbury.GradientWindow(D, **options)
        other.load_state_dict(states[-1])
        assert torch.equal(out, other.push_and_solve(new))


@pytest.mark.parametrize("rule", ["exact", "mkor"])
def test_graph_of_rank_one_inverse_update(rule: str) -> None:
    sizes = (30, 257, 2052)
    start = [put(positive(n, "float32")) for n in sizes]
    js, v = [j.clone() for j in start], [torch.randn(n, device="cuda") for n in sizes]
    options = {"rule": rule, "norm_bound": 10.0, "check_finite": False}
    graph, _ = captured(lambda: woodbury.rank_one_inverse_update(js, v, out=js, **options))
    for j, s in zip(js, start, strict=True):
        j.copy_(s)
    for _ in range(3):
        for x in v:
            x.normal_()
        graph.replay()
        woodbury.rank_one_inverse_update(start, v, out=start, **options)
    for j, s in zip(js, start, strict=True):
        assert torch.equal(j, s)


def test_graphs_of_kronecker_and_block_fisher() -> None:
    left, right = put(positive(M, "float32")), put(positive(N, "float32"))
    x, v = torch.randn(M, N, device="cuda"), torch.randn(3, D, device="cuda")
    off = {"check_finite": False}
    fishers = [woodbury.BlockFisher(D, block_size=10, damping=0.1, **off) for _ in range(2)]
    for count, fisher in zip((7, 40), fishers, strict=True):
        fisher.update(torch.randn(count, D, device="cuda"))

    def call() -> list[Any]:
        first = woodbury.kronecker_precondition(left, x, right, **off)
        return [first, *(f.solve(v) for f in fishers)]

    graph, out = captured(call)
    for _ in range(2):
        x.normal_(), v.normal_()
        graph.replay()
        for a, b in zip(out, call(), strict=True):
            assert torch.equal(a, b)


# ---- out of memory -------------------------------------------------------------------------------


@contextlib.contextmanager
def short_of_memory(megabytes: int) -> Iterator[None]:
    """Leave torch that much more memory than it has."""
    gc.collect()  # what earlier tests have left must not become free in between
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + megabytes * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        with pytest.raises((torch.OutOfMemoryError, MemoryError), match=r"(?i)memory"):
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_out_of_memory_in_a_sweep() -> None:
    w, h = torch.randn(4096, 4096, device="cuda"), put(hessian("float32"))
    h = torch.block_diag(*[h] * 85)[:4080, :4080].contiguous()
    w = w[:, :4080].contiguous()
    w_before, h_before = w.clone(), h.clone()
    with short_of_memory(16):
        sweep.factorize(h)
    assert torch.equal(h, h_before)
    factor = sweep.factorize(h)
    r_before = factor.R.clone()
    with short_of_memory(16):
        sweep.quantize(w, factor)
    assert torch.equal(w, w_before)
    assert torch.equal(factor.R, r_before)
    assert sweep.quantize(w, factor).codes.shape == w.shape


def test_out_of_memory_in_an_accumulator() -> None:
    x = torch.randn(64, 16384, device="cuda")
    acc = sweep.HessianAccumulator(16384)  # sums of 1 GB
    with short_of_memory(64):
        acc.update(x)
    assert acc.tokens == 0
    acc.update(x)
    before = acc.value()
    with short_of_memory(64):
        acc.value()
    acc.update(x)
    assert torch.allclose(acc.value(), before, rtol=1e-5, atol=1e-6)


def test_out_of_memory_in_a_window() -> None:
    d = 8_000_000
    g = torch.randn(d, device="cuda")
    before = g.clone()
    for check in (True, False):
        window = woodbury.GradientWindow(d, capacity=16, damping=0.1, check_finite=check)
        with short_of_memory(128):
            window.push_and_solve(g)
        assert window.count == 0
        first = window.push_and_solve(g)
        with short_of_memory(1):
            window.push_and_solve(g)
        assert window.count == 1
        assert torch.allclose(window.combine([1.0]), first, rtol=1e-5)
        assert torch.equal(g, before)
        del window, first


def test_out_of_memory_in_block_fisher() -> None:
    d = 2_000_000
    g = torch.randn(60, d, device="cuda")
    fisher = woodbury.BlockFisher(d, damping=0.1)
    with short_of_memory(256):
        fisher.update(g)
    assert fisher.count == 0
    fisher.update(g[:30])
    before = fisher.diagonal()
    with short_of_memory(128):
        fisher.update(g)
    assert fisher.count == 30
    assert torch.equal(fisher.diagonal(), before)


def test_out_of_memory_in_transport() -> None:
    M = torch.rand(3000, 3000, device="cuda")
    before = M.clone()
    with short_of_memory(1):
        transport.solve(None, None, M, 0.1, method="sinkhorn").plan()
    assert torch.equal(M, before)
    assert transport.solve(None, None, M, 0.1).plan().shape == M.shape


def test_out_of_memory_in_regression() -> None:
    A = torch.randn(200_000, 64, device="cuda")
    b = A.sum(1)
    before = A.clone(), b.clone()
    with short_of_memory(1):
        sketch.sparse_sign(20_000, len(A), nnz=4, seed=0) @ A
    with short_of_memory(1):
        sketch.lstsq(A, b)
    assert torch.equal(A, before[0])
    assert torch.equal(b, before[1])
    assert float((sketch.lstsq(A, b).x - 1).abs().max()) < 1e-4


# ---- copies --------------------------------------------------------------------------------------


def test_copies_of_what_is_on_a_gpu() -> None:
    """Copies and pickles have memory of their own, on the same GPU."""
    import pickle

    window = woodbury.GradientWindow(D, capacity=3, damping=0.1, dtype="bfloat16")
    fisher = woodbury.BlockFisher(D, damping=0.1)
    gradients = torch.randn(8, D, device="cuda")
    for g in gradients[:5]:
        window.push(g)
        fisher.update(g)
    for again in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        other, twin = again((window, fisher))
        mine = copy.deepcopy(window)
        for g in gradients[5:]:
            assert torch.equal(other.push_and_solve(g), mine.push_and_solve(g))
        assert torch.equal(twin.solve(gradients[0]), fisher.solve(gradients[0]))
