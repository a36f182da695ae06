"""Cholesky and inverse of many small matrices, against PyTorch and against LAPACK in a loop.

python -m bench.linalg.bench_spd [--quick]
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import lapack
from tqdm.auto import tqdm

import quadric as qd
from bench import common
from bench.common import NUMBA_GOAL
from quadric.backends import available

CASES = ((4, 1_000_000), (16, 100_000), (50, 20_000), (128, 1500))  # size, number of matrices
SPEED_GOALS = {50: (20, 5)}  # times PyTorch, times LAPACK in a loop


def matrices(n: int, count: int) -> np.ndarray:
    """Well-conditioned random matrices (count, n, n); a few hundred different ones, repeated."""
    X = np.random.default_rng(0).standard_normal((min(count, 256), 2 * n, n), dtype=np.float32)
    return np.resize(X.swapaxes(1, 2) @ X / np.float32(n), (count, n, n))


def with_torch(A: np.ndarray) -> Callable[[], object]:
    tensor = torch.from_numpy(A)
    return lambda: torch.cholesky_inverse(torch.linalg.cholesky(tensor))


def with_lapack(A: np.ndarray) -> Callable[[], object]:
    """SPOTRF and SPOTRI in place on copies; one triangle, as LAPACK leaves it."""
    out = np.empty_like(A)

    def run() -> None:
        out[...] = A
        for matrix in out:
            lapack.spotrf(matrix.T, clean=0, overwrite_a=1)
            lapack.spotri(matrix.T, overwrite_c=1)

    return run


def main(quick: bool, report: common.Report) -> None:
    header = ["B, matrices", "torch ms", "LAPACK ms", *(f"{b} ms" for b in available())]
    header += ["torch / native", "goal", "met", "LAPACK / native", "goal", "met"]
    header += ["numba / native", f"<= {NUMBA_GOAL}", "GFLOP/s", "of SGEMM", "error native", "torch"]
    ceilings = common.ceilings(512, 2**24) if quick else common.ceilings()
    rows = []
    for n, count in tqdm(CASES, "spd", leave=False):
        A = matrices(n, count // 100 if quick else count)
        candidates = common.torch_candidates("torch", with_torch(A))
        candidates["lapack"] = common.timed(with_lapack(A))
        for backend in available():
            candidates[backend] = common.timed(
                lambda A=A, b=backend: qd.linalg.inverse(A, backend=b, n_threads=common.THREADS)
            )
        timings = common.alternate(candidates, seconds=0.1 if quick else 3)
        native, numba = timings["native"].best, timings["numba"].best
        theirs = common.best(timings, "torch"), timings["lapack"].best
        row = [f"{n}, {len(A)}", *(f"{1e3 * t:.2f}" for t in theirs)]
        row += [f"{1e3 * timings[backend].best:.2f}" for backend in available()]
        for seconds, goal in zip(theirs, SPEED_GOALS.get(n, (None, None)), strict=True):
            row += common.faster(seconds, native, goal)
        row += common.second_opinion(native, numba)
        rate = len(A) * n**3 / native
        row += [f"{rate / 1e9:.0f}", f"{rate / ceilings.sgemm:.0%}"]
        few = A[:64]
        exact = np.linalg.inv(few.astype(np.float64))
        for x in (qd.linalg.inverse(few).value, with_torch(few)().numpy()):  # type: ignore[attr-defined]
            row.append(f"{np.linalg.norm(x - exact) / np.linalg.norm(exact):.0e}")
        rows.append(row)
    report.add(f"Ceilings: {ceilings}.")
    report.add(
        "float32, from A to the whole inverse. Best of the rounds, alternating in one process. "
        f"torch: linalg.cholesky and cholesky_inverse at the better of 1 and {common.THREADS} "
        "threads. LAPACK: SciPy's SPOTRF and SPOTRI in place in a Python loop, one triangle of the "
        "inverse. GFLOP/s: n^3 flops for each matrix, native."
    )
    report.add(common.table(header, rows))


if __name__ == "__main__":
    common.run("spd", "Batched Cholesky and inverse of small matrices", main)
