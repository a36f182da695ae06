"""Optimal transport on a GPU: passes of Sinkhorn's iteration, whole solves, batches.

    python -m bench.transport.bench_transport_gpu

Floors of a pass: the bytes of a stored cost over the copy bandwidth; of a cost of points one
exponential per entry, on the unit that does 16 of them per clock and multiprocessor, or the
products of its points, split into two parts of 16 bits, on the tensor cores. What FlashSinkhorn
takes was measured on an H200 once: it is not run here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import quadric as qd
from bench import common, gpu
from quadric import device
from quadric.transport.cost import KINDS

COUNT = 20  # iterations in a call of the kernel
CHECKED = 2048  # rows and columns of the problems on which results are compared
PRODUCTS = 3  # of the parts of 16 bits that a product of float32 is split into


def main(report: gpu.Report, ceilings: gpu.Ceilings) -> None:
    rows: list[list[str]] = []
    for part in tqdm((stored, points, assignment, batch), "transport", leave=False):
        rows += part(ceilings)
        torch.cuda.empty_cache()
    report.add(common.table(gpu.HEADER, rows))
    report.add(accuracy())
    report.add(agreement())


# ---- passes --------------------------------------------------------------------------------------


@dataclass
class Passes:
    """COUNT iterations of one problem with uniform masses; nothing leaves the GPU."""

    M: Tensor | None
    x: Tensor | None
    y: Tensor | None
    kind: int
    reg: float

    def __post_init__(self) -> None:
        n, m = self.M.shape if self.M is not None else (len(self.x), len(self.y))  # type: ignore

        def new(*shape: int, value: float) -> Tensor:
            return torch.full(shape, value, device="cuda", dtype=torch.float64)

        self.a, self.b = new(1, n, value=1 / n), new(1, m, value=1 / m)
        self.f, self.g = new(1, n, value=0.0), new(1, m, value=0.0)
        self.omega, self.errors = new(1, value=1.0), new(1, COUNT, value=0.0)
        self.cost = [None if t is None else device.wrap(t[None]) for t in (self.M, self.x, self.y)]

    def __call__(self) -> None:
        self.f.zero_(), self.g.zero_()
        masses, state = (
            [device.wrap(t) for t in ts] for ts in ((self.a, self.b), (self.f, self.g))
        )
        never = -1.0  # a tolerance that no error is below
        masses[0].space.run(
            device.transport().sinkhorn,
            *(*self.cost, self.kind, *masses, self.reg, 1.0, 1.0),
            *(device.wrap(self.omega), never, COUNT, *state, device.wrap(self.errors)),
        )


def per_iteration(passes: Passes, **others: gpu.Call) -> dict[str, float]:
    times = gpu.measure({"ours": passes, **others})
    return {**times, "ours": times["ours"] / COUNT}


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.rand(*shape, device="cuda", dtype=dtype, generator=generator)


def logsumexp_iteration(C: Tensor, g: Tensor, reg: float) -> tuple[Tensor, Tensor]:
    """An iteration as it is written in PyTorch, masses uniform; C (..., n, m), g (..., m)."""
    n, m = C.shape[-2:]
    log_n, log_m = (torch.tensor(float(k), dtype=torch.float64).log().item() for k in (n, m))
    f = -reg * (torch.logsumexp((g[..., None, :] - C) / reg, -1) + log_n)
    g = -reg * (torch.logsumexp((f[..., :, None] - C) / reg, -2) + log_m)
    return f, g


def stored(ceilings: gpu.Ceilings) -> list[list[str]]:
    rows = []
    for n, dtype, goal in (
        (10_000, torch.float32, 0.13),
        (20_000, torch.float32, 0.48),
        (10_000, torch.float64, 0.25),
    ):
        C = uniform(n, n, dtype=dtype)
        g = torch.zeros(n, device="cuda", dtype=dtype)
        passes = Passes(C, None, None, 0, 0.01)
        times = per_iteration(passes, torch=partial(logsumexp_iteration, C, g, 0.01))
        name = f"iteration, stored {str(dtype).removeprefix('torch.')}, n = {n}"
        peer = ("torch log-sum-exp", times["torch"])
        rows.append(gpu.row(name, times["ours"], C.nbytes / ceilings.copy, goal, peer))
        del C, passes
    return rows


def exponentials() -> float:
    """Return how many exponentials of float32 the device can do in a second."""
    properties = torch.cuda.get_device_properties(0)
    clock = getattr(properties, "clock_rate", 1_755_000) * 1e3
    return 16 * properties.multi_processor_count * clock


def points(ceilings: gpu.Ceilings) -> list[list[str]]:
    rows = []
    for d, n, goal, flash in (
        (3, 10_000, 0.06, 0.216e-3),
        (3, 50_000, 0.9, 2.34e-3),
        (64, 50_000, 2.0, 4.6e-3),
    ):
        x, y = (torch.randn(n, d, device="cuda") for _ in range(2))
        times = per_iteration(Passes(None, x, y, KINDS["sqeuclidean"], 0.1 * d))
        floor = n * n / exponentials()
        if d > 8:
            floor = max(floor, PRODUCTS * 2 * n * n * d / ceilings.bfloat16)
        name = f"iteration, points float32, d = {d}, n = {n}"
        peer = ("FlashSinkhorn (figure of another run)", flash)
        rows.append(gpu.row(name, times["ours"], floor, goal, peer))
    for kind, d in (("euclidean", 3), ("cityblock", 3), ("euclidean", 64)):
        n = 20_000
        x, y = (torch.randn(n, d, device="cuda") for _ in range(2))
        times = per_iteration(Passes(None, x, y, KINDS[kind], 0.1 * d))
        name = f"iteration, {kind} float32, d = {d}, n = {n}"
        rows.append(gpu.row(name, times["ours"], n * n / exponentials(), None, None))
    x, y = (torch.randn(10_000, 3, device="cuda", dtype=torch.float64) for _ in range(2))
    times = per_iteration(Passes(None, x, y, KINDS["sqeuclidean"], 0.3))
    floor = 10_000**2 * 13 * 2 / ceilings.float64  # a polynomial of degree 11 or so
    rows.append(
        gpu.row("iteration, points float64, d = 3, n = 10000", times["ours"], floor, None, None)
    )
    return rows


# ---- whole solves --------------------------------------------------------------------------------


def seconds(call: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Return the shortest time of a call that waits for its end, and what it returned."""
    best, result = float("inf"), None
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = call()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best, result


SOLVED: list[list[str]] = []
"""Rows of the table of errors: what, method, iterations, error that was wanted, error found."""


def note(name: str, result: Any, tol: float, C: Tensor) -> None:
    """Note how far the marginals of a plan in float64 are from 1 / n and 1 / m."""
    error = plan_error(C, result.f, result.g, result.reg)
    iterations = int(torch.as_tensor(result.iterations).max())
    SOLVED.append([name, result.method, str(iterations), f"{tol:g}", f"{error:.2g}"])


def plan_error(C: Tensor, f: Tensor, g: Tensor, reg: float) -> float:
    """Return the largest marginal error of problems, some rows at a time, by torch in float64."""
    n, m = C.shape[-2:]
    columns, error = 0, 0
    for i in range(0, n, 2048):
        block = C[..., i : i + 2048, :].double()
        P = ((f[..., i : i + 2048, None] + g[..., None, :] - block) / reg).exp_()
        error = error + (P.sum(-1) - 1 / n).abs().sum(-1)
        columns = columns + P.sum(-2)
    return float((error + (columns - 1 / m).abs().sum(-1)).max())


def assignment(ceilings: gpu.Ceilings) -> list[list[str]]:
    n, reg, tol = 10_000, 1 / 12_000, 1e-9
    C = uniform(n, n, dtype=torch.float64)
    solve = partial(qd.transport.solve, None, None, C, reg, tol=tol)
    solve(max_iter=30, method="newton")  # kernels are loaded, memory is taken
    newton, result = seconds(solve, 3)
    name = f"assignment n = {n}, reg = 1 / 12 000, float64"
    note(name, result, tol, C)
    relaxed, other = seconds(partial(solve, method="sinkhorn", max_iter=60_000), 1)
    note(name, other, tol, C)
    peer = (f"our over-relaxed Sinkhorn, {other.iterations} iterations", relaxed)
    floor = C.nbytes / ceilings.copy  # one look at the costs
    row = gpu.row(f"{name}, to 1e-9", newton, floor, relaxed / 2 * 1e3, peer)
    row[4] = "half of the peer's"
    return [row]


def batch(ceilings: gpu.Ceilings) -> list[list[str]]:
    B, n, reg, tol = 1024, 64, 0.05, 1e-6
    C = uniform(B, n, n)
    solve = partial(qd.transport.solve, None, None, C, reg, method="sinkhorn", tol=tol)
    solve()
    ours, result = seconds(solve, 20)
    name = f"{B} problems of {n} x {n}, float32"
    note(name, result, tol, C)
    count = plain_iterations(C.double(), reg, tol)
    g = torch.zeros(B, n, device="cuda")

    def theirs() -> Tensor:
        last = g
        for _ in range(count):
            _, last = logsumexp_iteration(C, last, reg)
        return last

    theirs()
    torch_time, _ = seconds(theirs, 5)
    peer = (f"torch batched log-sum-exp, {count} iterations", torch_time)
    row = gpu.row(f"{name}, to 1e-6", ours, C.nbytes / ceilings.copy, torch_time / 20 * 1e3, peer)
    row[4] = "a 20th of the peer's"
    return [row]


def plain_iterations(C: Tensor, reg: float, tol: float) -> int:
    """Return after how many iterations all problems are at the tolerance, in float64."""
    g = torch.zeros(C.shape[0], C.shape[2], device="cuda", dtype=torch.float64)
    for k in range(1, 20_000):
        f, new = logsumexp_iteration(C, g, reg)
        if k % 5 == 0 and plan_error(C, f, g, reg) <= tol:
            return k
        g = new
    raise RuntimeError("plain Sinkhorn has not converged")


# ---- accuracy ------------------------------------------------------------------------------------


def accuracy() -> str:
    """Return a table of the potentials after COUNT iterations against torch in float64."""
    rows = []
    for name, d in (("stored", 0), ("points, d = 3", 3), ("points, d = 64", 64)):
        x, y = (torch.randn(CHECKED, max(d, 1), device="cuda") for _ in range(2))
        exact = (
            torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
        )
        exact = exact if d else uniform(CHECKED, CHECKED).double()
        reg = 0.02 * float(exact.median())
        g = torch.zeros(CHECKED, device="cuda", dtype=torch.float64)
        for _ in range(COUNT):
            f, g = logsumexp_iteration(exact, g, reg)
        for dtype in (torch.float32, torch.float64):
            points_ = (x.to(dtype), y.to(dtype)) if d else (None, None)
            passes = Passes(None if d else exact.to(dtype), *points_, 1 if d else 0, reg)
            passes()
            off = [
                float((mine[0] - theirs).abs().max()) / reg
                for mine, theirs in ((passes.f, f), (passes.g, g))
            ]
            kind = str(dtype).removeprefix("torch.")
            rows.append([name, kind, f"{reg:.3g}", *(f"{error:.1g}" for error in off)])
    header = ["cost", "dtype", "reg", "f", "g"]
    text = (
        f"Potentials after {COUNT} iterations, n = {CHECKED}, against torch in float64: the "
        "largest difference in units of reg, which is the relative error of an entry of the plan."
    )
    return f"{text}\n\n{common.table(header, rows)}"


def agreement() -> str:
    """Return a table of the marginal errors of the whole solves."""
    header = ["problem", "method", "iterations", "wanted", "found"]
    text = "Marginal errors of whole solves, computed by torch in float64 from their potentials."
    return f"{text}\n\n{common.table(header, SOLVED)}"


if __name__ == "__main__":
    gpu.run("transport", "Optimal transport on a GPU", main)
