"""Hessian, factor and sweep on a GPU, against the published column loop and the best peer's parts.

    python -m bench.sweep.bench_sweep_gpu

The peers: "loop" is GPTQ as published (three factorizations and a loop over columns in PyTorch),
"three factors" its factorizations alone, which every peer still does: a bound on the best of them.
Floors: one Cholesky factorization by cuSOLVER in this run, and m n^2 flops at the rate of SGEMM.
"""

from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

import quadric as qd
from bench import common, gpu
from bench.sweep import column_loop

SHAPES = {  # rows, columns -> goal in ms, whether the loop is run too
    (1024, 1024): (1.2, True),
    (4096, 4096): (5.0, True),
    (14336, 4096): (10.0, False),
    (4096, 14336): (65.0, False),
    (8192, 28672): (420.0, False),
}
LLAMA = {  # layers of a block of Llama-3-8B by the input that they share
    "attention": ((4096, 4096), (1024, 4096), (1024, 4096)),
    "output": ((4096, 4096),),
    "gate, up": ((14336, 4096), (14336, 4096)),
    "down": ((4096, 14336),),
}


def hessian(n: int, seed: int = 0) -> Tensor:
    """X^T X / tokens of correlated inputs of unequal strength."""
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(2 * n, n, device="cuda", generator=generator)
    x = x + 0.5 * x.roll(1, 1) + x.mean(1, keepdim=True)
    x *= torch.exp(0.5 * torch.randn(n, device="cuda", generator=generator))
    return x.T @ x / (2 * n)


def weights(m: int, n: int) -> Tensor:
    return torch.randn(m, n, device="cuda", generator=torch.Generator("cuda").manual_seed(1))


def quantized(W: Tensor, H: Tensor) -> object:
    return qd.sweep.quantize(W, qd.sweep.factorize(H), bits=4, group_size=128)


def published(W: Tensor, H: Tensor) -> object:
    return column_loop.quantize(W, column_loop.factorize(H), 4, 128)


def three_factors(H: Tensor) -> Tensor:
    damped = H.clone()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(damped)[0])
    return torch.linalg.cholesky_ex(inverse, upper=True)[0]


def main(report: gpu.Report, ceilings: gpu.Ceilings) -> None:
    rows = []
    for (m, n), (goal, loop) in tqdm(SHAPES.items(), "shapes", leave=False):
        W, H = weights(m, n), hessian(n)
        calls: dict[str, gpu.Call] = {
            "ours": partial(quantized, W, H),
            "factor": partial(qd.sweep.factorize, H),
            "potrf": partial(torch.linalg.cholesky_ex, H),
            "three factors": partial(three_factors, H),
        }
        if n <= 14336:
            factor = qd.sweep.factorize(H)
            calls["2:4"] = partial(qd.sweep.prune, W, factor, pattern=(2, 4))
        times = gpu.measure(calls, seconds=1.0)
        peer = ("three factors", times["three factors"])
        if loop:
            once = gpu.measure({"loop": partial(published, W, H)}, rounds=(1, 1))
            peer = ("loop", once["loop"])
        sweep = m * n * n / ceilings.float32
        floor = times["potrf"] + sweep
        rows.append(gpu.row(f"quantize {m} x {n}", times["ours"], floor, goal, peer))
        rows.append(gpu.row(f"  factor of it {n}", times["factor"], times["potrf"], None, None))
        if (m, n) == (4096, 4096):
            pruned = times["2:4"] + times["factor"]
            rows.append(gpu.row("prune 2:4 4096 x 4096, factor included", pruned, floor, 6, None))
        del W, H, calls
        torch.cuda.empty_cache()
    report.add("## 4 bit, groups of 128, float32, factor included")
    report.add(common.table(gpu.HEADER, rows))
    report.add("## Many layers")
    report.add(common.table(gpu.HEADER, [llama(ceilings), experts(ceilings)]))
    report.add("## Hessian of bfloat16 inputs")
    report.add(common.table([*gpu.HEADER, "TFLOP/s as a full product"], [gram(ceilings)]))


def llama(ceilings: gpu.Ceilings) -> list[str]:
    hessians = {n: hessian(n) for n in (4096, 14336)}
    layers = {shape: weights(*shape) for shapes in LLAMA.values() for shape in shapes}

    def run() -> None:
        for _ in range(32):
            for shapes in LLAMA.values():
                factor = qd.sweep.factorize(hessians[shapes[0][1]])
                for shape in shapes:
                    qd.sweep.quantize(layers[shape], factor, bits=4, group_size=128)

    potrf = gpu.measure({str(n): partial(torch.linalg.cholesky_ex, H) for n, H in hessians.items()})
    flops = sum(m * n * n for shapes in LLAMA.values() for m, n in shapes)
    floor = 32 * (3 * potrf["4096"] + potrf["14336"] + flops / ceilings.float32)
    ours = gpu.measure({"ours": run}, rounds=(1, 1))["ours"]
    return gpu.row("224 layers of a Llama-3-8B shape", ours, floor, 3000, None)


def experts(ceilings: gpu.Ceilings) -> list[str]:
    m, n, count = 768, 2048, 64
    W = torch.stack([weights(m, n) for _ in range(count)])
    H = torch.stack([hessian(n, seed) for seed in range(count)])
    times = gpu.measure(
        {
            "ours": lambda: qd.sweep.quantize_batch(W, H, bits=4, group_size=128),
            "potrf": lambda: torch.linalg.cholesky_ex(H),
        }
    )
    flops = count * (m * n * n + n**3 / 3)
    peer = ("torch cholesky", times["potrf"])
    return gpu.row("64 experts of 768 x 2048", times["ours"], flops / ceilings.float32, 12, peer)


def gram(ceilings: gpu.Ceilings) -> list[str]:
    tokens, n = 65_536, 4096
    X = torch.randn(tokens, n, device="cuda").to(torch.bfloat16)
    sums = qd.sweep.HessianAccumulator(n)
    times = gpu.measure({"ours": lambda: sums.update(X), "product": lambda: X.T @ X})
    full = 2 * tokens * n * n
    cells = gpu.row(
        "X^T X, 65 536 x 4096", times["ours"], full / 2 / ceilings.bfloat16, full / 900e12 * 1e3,
        ("torch X^T X in bfloat16", times["product"]),
    )  # fmt: skip
    return [*cells, f"{full / times['ours'] / 1e12:.0f}"]


if __name__ == "__main__":
    gpu.run("sweep", "Hessian, factor and sweep on a GPU", main)
