"""Factorize and quantize: quadric against a plain PyTorch column loop, on the same arrays.

    python -m bench.sweep.bench_quantize [--quick]

Float32, 4 bits, damping 0.01, natural order, minmax scales; all threads of the machine.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import quadric as qd
from bench import common
from bench.common import Candidate, Stopwatch, Timing, verdict
from bench.sweep import column_loop, peak_memory
from quadric.backends import available
from quadric.sweep import Factor, QuantizedMatrix

QUICK = ((384, 384), (1536, 384), (384, 1536), (1024, 1024))
SHAPES = (*QUICK, (2048, 2048), (4096, 4096))  # out, in
GROUPS = (None, 128)

SPEED_GOAL = {(384, 384): 10, (1536, 384): 10, (4096, 4096): 4}  # times the loop; 5 elsewhere
CEILING_GOAL = 1.6  # times one SPOTRF and one SGEMM of the same flops
SEARCH_GOAL = 2.0  # times minmax
MEMORY_GOAL = 1.5  # times the size of H


class Case(NamedTuple):
    """One layer: weights (m, n), Hessian (n, n) and how many columns share a scale."""

    W: np.ndarray
    H: np.ndarray
    group_size: int | None

    def __str__(self) -> str:
        m, n = self.W.shape
        return f"{m} x {n}, {f'groups of {self.group_size}' if self.group_size else 'per row'}"

    @property
    def flops(self) -> float:
        m, n = self.W.shape
        return float(n**3 / 3 + m * n**2)


def cases(shapes: Sequence[tuple[int, int]]) -> Iterator[Case]:
    for m, n in shapes:
        W, H = common.layer(m, n)
        for group_size in GROUPS:
            yield Case(W, H, group_size)


def loop(
    case: Case, threads: int, *, tuned: bool = False
) -> Callable[[Stopwatch], tuple[Tensor, list[column_loop.Grid]]]:
    """The PyTorch loop; `threads` because one is often faster than all on small layers."""
    weights, hessian = torch.from_numpy(case.W), torch.from_numpy(case.H)

    def run(watch: Stopwatch) -> tuple[Tensor, list[column_loop.Grid]]:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            watch.skip()
            upper = column_loop.factorize(hessian)
            watch.lap("factorize")
            result = column_loop.quantize(weights, upper, 4, case.group_size, tuned=tuned)
            watch.lap("quantize")
        return result

    return run


def sweep(case: Case, backend: str) -> Callable[[Stopwatch], QuantizedMatrix]:
    """quadric's factorize and quantize."""
    options: dict[str, Any] = {"backend": backend, "n_threads": common.THREADS}

    def run(watch: Stopwatch) -> QuantizedMatrix:
        factor = qd.sweep.factorize(case.H, **options)
        watch.lap("factorize")
        result = qd.sweep.quantize(case.W, factor, bits=4, group_size=case.group_size, **options)
        watch.lap("quantize")
        return result

    return run


def agreement(case: Case) -> float:
    """Share of the codes that the loop and quadric have in common: both must do the same work."""
    rounded, grids = loop(case, common.THREADS)(Stopwatch())
    theirs = column_loop.codes(rounded, grids, case.group_size).numpy()
    return float(np.mean(theirs == sweep(case, "native")(Stopwatch()).codes))


def seconds(timing: Timing) -> str:
    """Best total, and its laps."""
    return f"{timing.best:.4f} ({timing.lap('factorize'):.4f} + {timing.lap('quantize'):.4f})"


def speed(shapes: Sequence[tuple[int, int]], sgemm: float) -> str:
    """All backends against the loop; `sgemm` is the ceiling in flop/s."""
    header = ["out x in", "torch s", "torch tuned s", "native s", "numba s", "torch / native"]
    header += ["of medians", "goal", "met", "torch / numba", ">= 1", "tuned / native"]
    header += ["GFLOP/s", "of SGEMM", "same codes"]
    rows = []
    for case in tqdm(cases(shapes), "speed", len(GROUPS) * len(shapes), leave=False):
        m, n = case.W.shape
        candidates: dict[str, Candidate] = {}
        for threads in {common.THREADS, 1 if n < 2048 else common.THREADS}:  # one never wins there
            candidates[f"plain {threads}"] = loop(case, threads)
            candidates[f"tuned {threads}"] = loop(case, threads, tuned=True)
        candidates |= {backend: sweep(case, backend) for backend in available()}
        timings = common.alternate(candidates)
        plain, tuned = (
            min((t for name, t in timings.items() if name.startswith(kind)), key=lambda t: t.best)
            for kind in ("plain", "tuned")
        )
        native, numba = timings["native"], timings["numba"]
        goal = SPEED_GOAL.get((m, n), 5)
        row = [str(case), seconds(plain), f"{tuned.best:.4f}", seconds(native), seconds(numba)]
        row += [f"{plain.best / native.best:.1f}", f"{plain.median / native.median:.1f}"]
        row += [str(goal), verdict(plain.best >= goal * native.best)]
        row += [f"{plain.best / numba.best:.1f}", verdict(plain.best >= numba.best)]
        row += [f"{tuned.best / native.best:.1f}", f"{case.flops / native.best / 1e9:.0f}"]
        row += [f"{case.flops / native.best / sgemm:.0%}", f"{agreement(case):.2%}"]
        rows.append(row)
    return common.table(header, rows)


def ceiling(shape: tuple[int, int]) -> str:
    """Native against one SPOTRF of size n and one SGEMM of m n^2 flops."""
    m, n = shape
    header = ["out x in", "SPOTRF s", "SGEMM s", "native s", "native / both"]
    header += ["factorize / SPOTRF", "quantize / SGEMM", "goal", "met"]
    rows = []
    for case in tqdm(cases([shape]), "ceiling", len(GROUPS), leave=False):
        timings = common.alternate(
            {
                "potrf": common.potrf(n),
                "gemm": common.gemm(m, n, n // 2),
                "native": sweep(case, "native"),
            }
        )
        potrf, gemm, native = timings["potrf"].best, timings["gemm"].best, timings["native"]
        row = [str(case), f"{potrf:.4f}", f"{gemm:.4f}", seconds(native)]
        row += [f"{native.best / (potrf + gemm):.2f}", f"{native.lap('factorize') / potrf:.2f}"]
        row += [f"{native.lap('quantize') / gemm:.2f}", str(CEILING_GOAL)]
        rows.append([*row, verdict(native.best <= CEILING_GOAL * (potrf + gemm))])
    return common.table(header, rows)


def search(shapes: Sequence[tuple[int, int]], backend: str) -> str:
    """MSE search of the scales against minmax: quantize alone, and with factorize."""
    header = ["out x in", "factorize s", "minmax s", "mse s", "mse / minmax", "met"]
    header += ["with factorize", "met"]
    options: dict[str, Any] = {"backend": backend, "n_threads": common.THREADS}

    def rounding(case: Case, factor: Factor, scale: str) -> Candidate:
        group = case.group_size
        return common.timed(
            lambda: qd.sweep.quantize(case.W, factor, group_size=group, scale=scale, **options)
        )

    def factoring(case: Case) -> Candidate:
        return common.timed(lambda: qd.sweep.factorize(case.H, **options))

    rows = []
    for case in tqdm(cases(shapes), f"search, {backend}", len(GROUPS) * len(shapes), leave=False):
        factor = qd.sweep.factorize(case.H, **options)
        candidates = {scale: rounding(case, factor, scale) for scale in ("minmax", "mse")}
        timings = common.alternate(candidates | {"factorize": factoring(case)}, seconds=1)
        first, minmax, mse = (timings[name].best for name in ("factorize", "minmax", "mse"))
        row = [str(case), f"{first:.4f}", f"{minmax:.4f}", f"{mse:.4f}", f"{mse / minmax:.2f}"]
        row += [verdict(mse <= SEARCH_GOAL * minmax)]
        row += [f"{(first + mse) / (first + minmax):.2f}"]
        rows.append([*row, verdict(first + mse <= SEARCH_GOAL * (first + minmax))])
    return common.table(header, rows)


def memory(n: int) -> str:
    """Peak memory of factorize + quantize of an n x n layer beyond its input."""
    rows = []
    for who in tqdm([*available(), "torch"], "memory", leave=False):
        grown = peak_memory.measure(who, n)
        share = grown / (4 * n * n)
        met = "" if who == "torch" else verdict(share <= MEMORY_GOAL)
        rows.append([who, f"{grown / 2**20:.0f}", f"{share:.2f}", str(MEMORY_GOAL), met])
    return common.table(["", "MiB", "size of H", "goal", "met"], rows)


def main(quick: bool, report: common.Report) -> None:
    shapes = QUICK if quick else SHAPES
    m, n = shapes[-1]
    ceilings = common.ceilings()
    report.add(f"Ceilings: {ceilings}.")
    report.add(
        "## Speed\n\n"
        "Best of the rounds, alternating in one process; in brackets factorize + quantize. torch: "
        "the column loop of the original GPTQ code at the better of 1 and "
        f"{common.THREADS} threads. torch tuned: the same loop with contiguous columns and an "
        "update in place, which the original has not. GFLOP/s: n^3/3 + m n^2 flops, native."
    )
    report.add(speed(shapes, ceilings.sgemm))
    report.add("## Against one SPOTRF and one SGEMM of m n^2 flops, both SciPy's")
    report.add(ceiling((m, n)))
    report.add(f"## MSE search of the scales, native: at most {SEARCH_GOAL:g} times minmax")
    report.add(search(shapes, "native"))
    report.add("## MSE search of the scales, numba")
    report.add(search(QUICK, "numba"))
    report.add(f"## Peak memory beyond W and H, {n} x {n}, per row, in processes of their own")
    report.add(memory(n))


if __name__ == "__main__":
    common.run("quantize", "Factorize and quantize, float32, 4 bits", main)
