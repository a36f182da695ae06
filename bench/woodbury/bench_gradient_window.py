"""GradientWindow.push_and_solve against two reads of the window, and the dynamic M-FAC step.

python -m bench.woodbury.bench_gradient_window [--quick]
"""

from itertools import cycle

import numpy as np
import torch

import quadric as qd
from bench import common
from bench.common import NUMBA_GOAL, Candidate
from bench.woodbury import peers
from quadric.backends import available

DTYPES = {"float32": 4, "bfloat16": 2}  # bytes of an entry
CEILING_GOAL = 0.75  # of two reads of the window at the speed of a copy
HALF_GOAL = 1.6  # times float32
DAMPING = 1e-5
STEPS = 128  # different gradients, more than are pushed: equal rows are too much for float32


def step(gradients: np.ndarray, G: np.ndarray, dtype: str, backend: str) -> Candidate:
    """Push the next of `gradients` into a window that is full of `G`, and solve for it."""
    window = qd.woodbury.GradientWindow(
        G.shape[1],
        capacity=len(G),
        damping=DAMPING,
        dtype=dtype,
        backend=backend,
        n_threads=common.THREADS,
    )
    for g in G:
        window.push(g)
    stream = cycle(gradients)
    return common.timed(lambda: window.push_and_solve(next(stream)))


def main(quick: bool, report: common.Report) -> None:
    m, d = (16, 20_000) if quick else (256, 1_000_000)
    rng = np.random.default_rng(0)
    G = rng.standard_normal((m, d), dtype=np.float32)
    gradients = rng.standard_normal((STEPS, d), dtype=np.float32)
    reference = peers.DynamicWindow(torch.from_numpy(G.copy()), DAMPING)
    stream = cycle(torch.from_numpy(gradients))
    size = min(4 * m * d, 2**28)
    candidates = {"copy": common.copy(size)}
    candidates |= {
        f"{dtype} {backend}": step(gradients, G, dtype, backend)
        for dtype in DTYPES
        for backend in available()
    }
    candidates |= common.torch_candidates("torch", lambda: reference.step(next(stream)))
    timings = common.alternate(candidates, seconds=0.1 if quick else 3)
    speed = 2 * size / timings["copy"].best
    torch_s, single = common.best(timings, "torch"), timings["float32 native"].best
    header = ["storage", *(f"{backend} ms" for backend in available())]
    header += ["numba / native", f"<= {NUMBA_GOAL}", "GB/s", "of copy", "goal", "met"]
    header += ["float32 / this", "goal", "met", "torch ms", "torch / native"]
    rows = []
    for dtype, width in DTYPES.items():
        native, numba = (timings[f"{dtype} {b}"].best for b in ("native", "numba"))
        rate = 2 * m * d * width / native
        row = [dtype, *(f"{1e3 * timings[f'{dtype} {b}'].best:.2f}" for b in available())]
        row += common.second_opinion(native, numba)
        row += [f"{rate / 1e9:.1f}"]
        row += common.share(rate, speed, CEILING_GOAL if dtype == "float32" else None)
        row += common.faster(single, native, HALF_GOAL if dtype == "bfloat16" else None)
        row += [f"{1e3 * torch_s:.2f}"]
        rows.append([*row, f"{torch_s / native:.1f}"])
    report.add(
        f"d = {d}, m = {m} gradients in a full window, damping {DAMPING:g}; gradients come in "
        "float32. Best of the rounds, alternating in one process.\n\n"
        "GB/s: two reads of the window, 2 m d entries of its storage, over the time. of copy: "
        f"against the {speed / 1e9:.1f} GB/s (bytes read and bytes written) of copying "
        f"{size / 1e6:.0f} MB in the same rounds. torch: one step of dynamic M-FAC, float32, at "
        f"the better of 1 and {common.THREADS} threads."
    )
    report.add(common.table(header, rows))


if __name__ == "__main__":
    common.run("gradient-window", "GradientWindow: push_and_solve", main)
