"""Build an EmpiricalFisher (Gram matrix and Cholesky), against the M-FAC recursion in PyTorch.

python -m bench.woodbury.bench_empirical_fisher [--quick]
"""

import numpy as np
import torch

import quadric as qd
from bench import common
from bench.common import NUMBA_GOAL, Candidate
from bench.woodbury import peers
from quadric.backends import available

SPEED_GOAL = 10  # times the recursion
CEILING_GOAL = 0.7  # of the rate of SGEMM
DAMPING = 1e-5


def build(G: np.ndarray, backend: str) -> Candidate:
    return common.timed(
        lambda: qd.woodbury.EmpiricalFisher(
            G, damping=DAMPING, backend=backend, n_threads=common.THREADS
        )
    )


def error(x: np.ndarray, exact: np.ndarray) -> str:
    return f"{np.linalg.norm(x - exact) / np.linalg.norm(exact):.0e}"


def accuracy(G: np.ndarray, V: torch.Tensor, q: torch.Tensor) -> list[str]:
    """Relative error of F^-1 x on random x: native, then the recursion."""
    m, d = G.shape
    x = np.random.default_rng(1).standard_normal(d, dtype=np.float32)
    wide = G.astype(np.float64)
    small = np.linalg.solve(m * DAMPING * np.eye(m) + wide @ wide.T, wide @ x)
    exact = (x - wide.T @ small) / DAMPING
    native = qd.woodbury.EmpiricalFisher(G, damping=DAMPING, backend="native").solve(x)
    y = torch.from_numpy(x)
    recursion = y / DAMPING - ((V @ y) / q) @ V
    return [error(native, exact), error(recursion.numpy(), exact)]


def main(quick: bool, report: common.Report) -> None:
    m, d = (32, 20_000) if quick else (256, 1_000_000)
    G = np.random.default_rng(0).standard_normal((m, d), dtype=np.float32)
    tensor, V = torch.from_numpy(G), torch.zeros(m, d)
    candidates = common.torch_candidates("torch", lambda: peers.static_setup(tensor, DAMPING, V))
    candidates |= {backend: build(G, backend) for backend in available()}
    n = 512 if quick else 2048
    candidates["sgemm"] = common.gemm(n, n, n)
    timings = common.alternate(candidates, seconds=0.1 if quick else 3)
    torch_s = common.best(timings, "torch")
    native, numba = timings["native"].best, timings["numba"].best
    rate, ceiling = m * m * d / native, 2 * n**3 / timings["sgemm"].best
    header = ["d, m", "torch s", *(f"{backend} s" for backend in available())]
    header += ["torch / native", "goal", "met", "numba / native", f"<= {NUMBA_GOAL}"]
    header += ["GFLOP/s", "SGEMM GFLOP/s", "of SGEMM", "goal", "met", "error native", "torch"]
    row = [f"{d}, {m}", f"{torch_s:.2f}"]
    row += [f"{timings[backend].best:.4f}" for backend in available()]
    row += common.faster(torch_s, native, SPEED_GOAL)
    row += common.second_opinion(native, numba)
    row += [f"{rate / 1e9:.0f}", f"{ceiling / 1e9:.0f}"]
    row += common.share(rate, ceiling, CEILING_GOAL)
    with torch.inference_mode():
        row += accuracy(G, V, peers.static_setup(tensor, DAMPING, V))
    report.add(
        f"float32, damping {DAMPING:g}. Best of the rounds, alternating in one process; PyTorch at "
        f"the better of 1 and {common.THREADS} threads.\n\n"
        "torch: the sequential recursion of static M-FAC (V and q), in full, its V allocated "
        "before. GFLOP/s: the m^2 d flops of one triangle of G G^T (m^2 / 2 dot products of length "
        f"d, a multiplication and an addition each), over the whole time. SGEMM: 2 n^3 flops at "
        f"n = {n}, in the same rounds. Errors: of F^-1 x on a random x, relative, against float64."
    )
    report.add(common.table(header, [row]))


if __name__ == "__main__":
    common.run("empirical-fisher", "EmpiricalFisher: build", main)
