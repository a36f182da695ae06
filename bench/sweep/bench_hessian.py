"""Hessian of a layer, X^T X over streamed batches: quadric against NumPy's and PyTorch's product.

python -m bench.sweep.bench_hessian [--quick]
"""

from collections.abc import Callable

import numpy as np
import torch
from tqdm.auto import tqdm

import quadric as qd
from bench import common
from bench.common import Candidate
from quadric.backends import available

QUICK = ((4096, 384), (4096, 1536))
SHAPES = (*QUICK, (4096, 4096))  # tokens of a batch, inputs


def accumulate(X: np.ndarray | torch.Tensor, backend: str) -> Candidate:
    accumulator = qd.sweep.HessianAccumulator(
        X.shape[-1], backend=backend, n_threads=common.THREADS
    )
    return common.timed(lambda: accumulator.update(X))


def product(X: torch.Tensor) -> Callable[[], object]:
    """What GPTQ does with a batch: the full product in float32, added to the sum so far."""
    total = torch.zeros(X.shape[1], X.shape[1])

    def run() -> None:
        x = X.float()
        torch.addmm(total, x.T, x, out=total)

    return run


def main(quick: bool, report: common.Report) -> None:
    torch.set_num_threads(common.THREADS)
    ceilings = common.ceilings()
    report.add(f"Ceilings: {ceilings}.")
    header = ["tokens x in, type", "torch ms", *(f"{b} ms" for b in available()), "numpy ms"]
    header += ["torch / native", "GFLOP/s", "of SGEMM"]
    rows = []
    for tokens, n in tqdm(QUICK if quick else SHAPES, "hessian", leave=False):
        X = np.random.default_rng(0).standard_normal((tokens, n), dtype=np.float32)
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.from_numpy(X).to(dtype)
            candidates: dict[str, Candidate] = {"torch": common.timed(product(x))}
            candidates |= {backend: accumulate(x, backend) for backend in available()}
            candidates["numpy"] = common.timed(lambda X=X: X.T @ X)  # type: ignore[misc]
            timings = common.alternate(candidates, seconds=2)
            best = {name: timing.best for name, timing in timings.items()}
            row = [f"{tokens} x {n}, {str(dtype).removeprefix('torch.')}"]
            row += [f"{1e3 * best[name]:.2f}" for name in candidates]
            rate = tokens * n**2 / best["native"]
            row += [f"{best['torch'] / best['native']:.1f}"]
            rows.append([*row, f"{rate / 1e9:.0f}", f"{rate / ceilings.sgemm:.0%}"])
    report.add("GFLOP/s: tokens n^2 flops, those of one triangle. NumPy: float32, no sum.")
    report.add(common.table(header, rows))


if __name__ == "__main__":
    common.run("hessian", "Hessian accumulation", main)
