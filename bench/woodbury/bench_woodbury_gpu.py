"""Inverse curvature on a GPU: blocks, long rows and Kronecker factors, against PyTorch forms.

    python -m bench.woodbury.bench_woodbury_gpu

Floors: bytes that must move over the copy bandwidth, or flops that the float64 tensor cores must
do, whichever is more; both rates are measured in this run.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

import quadric as qd
from bench import common, gpu
from bench.woodbury import peers

DAMPING = 1e-7
BLOCK = 50


def gradients(m: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    G = torch.empty(m, d, device="cuda", dtype=dtype)
    generator = torch.Generator("cuda").manual_seed(0)
    for row in G:  # no temporary of its size
        row.normal_(generator=generator)
    return G


def main(report: gpu.Report, ceilings: gpu.Ceilings) -> None:
    parts = (block_fisher, many_blocks, empirical_fisher, gradient_window, rank_one, batches)
    rows: list[list[str]] = []
    for part in tqdm(parts, "woodbury", leave=False):
        rows += part(ceilings)
        torch.cuda.empty_cache()
    report.add(common.table(gpu.HEADER, rows))


def block_fisher(ceilings: gpu.Ceilings) -> list[list[str]]:
    m, d = 1024, 4_000_000
    G = gradients(m, d)

    def ours() -> object:
        fisher = qd.woodbury.BlockFisher(d, block_size=BLOCK, damping=DAMPING)
        fisher.update(G)
        return fisher.inverse()

    times = gpu.measure(
        {"ours": ours, "batched": lambda: peers.batched_inverse(G, BLOCK, DAMPING)},
        rounds=(3, 5),
    )
    flops = m * d * (BLOCK + 1)  # a multiplication and an addition for half of each block
    floor = max(G.nbytes / ceilings.copy, flops / ceilings.float64)
    peer = ("torch bmm, Cholesky, inverse", times["batched"])
    return [gpu.row("BlockFisher 1024 x 4 M, B = 50, inverse", times["ours"], floor, 16, peer)]


def many_blocks(ceilings: gpu.Ceilings) -> list[list[str]]:
    chunk, chunks, d = 64, 16, 85_000_000
    G = gradients(chunk, d)

    def ours(check: bool) -> None:
        fisher = qd.woodbury.BlockFisher(d, block_size=BLOCK, damping=DAMPING, check_finite=check)
        for _ in range(chunks):
            fisher.update(G)

    sums = d * (BLOCK + 1) * 4
    floor = chunks * (G.nbytes + 2 * sums) / ceilings.copy
    calls = {"looks": partial(ours, True), "trusts": partial(ours, False)}
    times = gpu.measure(calls, rounds=(2, 2))
    name = "BlockFisher 85 M, 16 chunks of 64"
    # A look for NaN before each chunk is one more read of it.
    return [
        gpu.row(f"{name}, check_finite=False", times["trusts"], floor, 350, None),
        gpu.row(f"{name}, gradients looked at", times["looks"], floor, None, None),
    ]


def empirical_fisher(ceilings: gpu.Ceilings) -> list[list[str]]:
    m, d = 512, 4_000_000
    G = gradients(m, d)

    def theirs() -> Tensor:
        K = G @ G.T
        K.diagonal().add_(m * DAMPING)
        return torch.linalg.cholesky_ex(K)[0]

    calls = {"ours": lambda: qd.woodbury.EmpiricalFisher(G, damping=1e-5), "torch": theirs}
    times = gpu.measure(calls, rounds=(3, 10))
    floor = max(G.nbytes / ceilings.copy, m * m * d / ceilings.float64)
    peer = ("torch G G^T in float32", times["torch"])
    rows = [gpu.row("EmpiricalFisher 512 x 4 M", times["ours"], floor, 40, peer)]
    fisher = qd.woodbury.EmpiricalFisher(G, damping=1e-5)
    x = torch.randn(d, device="cuda")
    times = gpu.measure({"ours": lambda: fisher.solve(x)})
    rows.append(gpu.row("  solve", times["ours"], 2 * G.nbytes / ceilings.copy, None, None))
    return rows


def gradient_window(ceilings: gpu.Ceilings) -> list[list[str]]:
    m, d = 512, 25_000_000
    rows = []
    for dtype, goal in (("float32", 28.0), ("bfloat16", 15.0)):
        window = qd.woodbury.GradientWindow(
            d, capacity=m, damping=1e-5, dtype=dtype, check_finite=False
        )
        g = torch.randn(d, device="cuda")
        for _ in range(m):
            window.push(g.normal_())
        calls: dict[str, gpu.Call] = {"ours": partial(window.push_and_solve, g)}
        size = m * d * (4 if dtype == "float32" else 2)
        peer = None
        times = gpu.measure(calls)
        del window, calls
        torch.cuda.empty_cache()
        if dtype == "float32":
            opponent = peers.DynamicWindow(gradients(m, d), 1e-5)
            others = torch.randn(
                40, d, device="cuda"
            )  # one for each round: equal rows are singular
            step = partial(step_on, opponent, iter(others))
            peer = ("torch, two passes", gpu.measure({"torch": step})["torch"])
            del opponent, step, others
        name = f"GradientWindow push_and_solve 512 x 25 M, {dtype}"
        rows.append(gpu.row(name, times["ours"], 2 * size / ceilings.copy, goal, peer))
    return rows


def step_on(window: peers.DynamicWindow, gradients: Iterator[Tensor]) -> Tensor:
    return window.step(next(gradients))


def rank_one(ceilings: gpu.Ceilings) -> list[list[str]]:
    rows = []
    for n, count, goal in ((4096, 1, 0.065), (1024, 32, None)):
        J = [torch.eye(n, device="cuda") for _ in range(count)]
        v = [torch.randn(n, device="cuda") for _ in range(count)]

        def ours(J: list[Tensor] = J, v: list[Tensor] = v) -> None:
            qd.woodbury.rank_one_inverse_update(J, v, out=J, norm_bound=100.0, check_finite=False)

        graph = captured(ours)
        other = [j.clone() for j in J]

        def theirs(J: list[Tensor] = other, v: list[Tensor] = v) -> None:
            for j, x in zip(J, v, strict=True):
                peers.rank_one_on_gpu(j, x, 0.95)

        times = gpu.measure({"ours": ours, "graph": graph.replay, "torch": captured(theirs).replay})
        floor = count * 3 * n * n * 4 / ceilings.copy
        peer = ("torch in a graph", times["torch"])
        name = f"rank_one_inverse_update {count} of {n}"
        rows.append(gpu.row(f"{name}, in a graph", times["graph"], floor, goal, peer))
        rows.append(gpu.row(f"{name}, launched from Python", times["ours"], floor, None, None))
    return rows


def batches(ceilings: gpu.Ceilings) -> list[list[str]]:
    rows = []
    for count, n in ((100_000, 16), (20_000, 64), (1000, 256)):
        A = torch.randn(count, n, n, device="cuda")
        A = A @ A.mT + n * torch.eye(n, device="cuda")
        calls = {
            "ours": lambda A=A: qd.linalg.inverse(A),
            "torch": lambda A=A: torch.cholesky_inverse(torch.linalg.cholesky_ex(A)[0]),
        }
        times = gpu.measure(calls)
        floor = max(2 * A.nbytes / ceilings.copy, count * n**3 / ceilings.float32)
        peer = ("torch Cholesky, inverse", times["torch"])
        rows.append(gpu.row(f"inverse of {count} of {n} x {n}", times["ours"], floor, None, peer))
    return rows


def captured(call: gpu.Call) -> torch.cuda.CUDAGraph:
    """Return a graph of what `call` launches."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


if __name__ == "__main__":
    gpu.run("woodbury", "Inverse curvature on a GPU", main)
