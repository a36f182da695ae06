"""BlockFisher from gradients to the dense inverse of every block, against two PyTorch versions.

    python -m bench.woodbury.bench_block_fisher [--quick]

All take the same gradients (m, d), float32, and end with the inverses (blocks, B, B), float32.
"""

from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import quadric as qd
from bench import common
from bench.common import NUMBA_GOAL, Candidate
from bench.woodbury import peers
from quadric.backends import available

BLOCKS = (50, 4, 128)
SPEED_GOALS = {50: (100, 20)}  # times sequential, times batched; (50, 10) elsewhere
SAMPLE = 32  # gradients given to the sequential version, whose time is linear in their number
DAMPING = 1e-7


def gradients(m: int, d: int, block: int) -> np.ndarray:
    """Random gradients whose last block is filled up with zeros, as the opponents need it."""
    G = np.zeros((m, -(-d // block) * block), np.float32)
    G[:, :d] = np.random.default_rng(0).standard_normal((m, d), dtype=np.float32)
    return G


def inverse(G: np.ndarray, block: int, backend: str) -> np.ndarray:
    options: dict[str, Any] = {"backend": backend, "n_threads": common.THREADS}
    fisher = qd.woodbury.BlockFisher(G.shape[1], block_size=block, damping=DAMPING, **options)
    fisher.update(G)
    result: np.ndarray = fisher.inverse()
    return result


def sequential_inverse(G: np.ndarray, block: int) -> torch.Tensor:
    state = peers.SequentialInverse(G.shape[1], block, DAMPING, len(G))
    for g in torch.from_numpy(G):
        state.add(g)
    return state.inverse


def sequential(G: np.ndarray, block: int) -> dict[str, Candidate]:
    """The first :data:`SAMPLE` gradients; the start from I / damping is not timed."""
    state = peers.SequentialInverse(G.shape[1], block, DAMPING, len(G))

    def add() -> None:
        for g in torch.from_numpy(G[:SAMPLE]):
            state.add(g)

    return common.torch_candidates("sequential", add)


def errors(G: np.ndarray, block: int) -> list[str]:
    """Relative error of the inverses of a few blocks: native, batched, sequential."""
    few = np.ascontiguousarray(G[:, : 8 * block])
    X = few.reshape(len(few), -1, block).swapaxes(0, 1).astype(np.float64)
    exact = np.linalg.inv(X.swapaxes(1, 2) @ X / len(few) + DAMPING * np.eye(block))
    with torch.inference_mode():
        found = [
            inverse(few, block, "native"),
            peers.batched_inverse(torch.from_numpy(few), block, DAMPING).numpy(),
            sequential_inverse(few, block).numpy(),
        ]
    return [f"{np.linalg.norm(x - exact) / np.linalg.norm(exact):.0e}" for x in found]


def main(quick: bool, report: common.Report) -> None:
    m, d = (256, 4000) if quick else (1024, 200_000)
    header = ["B", "sequential s", "batched s", *(f"{b} s" for b in available())]
    header += ["sequential / native", "goal", "met", "batched / native", "goal", "met"]
    header += ["numba / native", f"<= {NUMBA_GOAL}", "reads G at GB/s"]
    header += ["error native", "batched", "sequential"]
    rows = []
    for block in tqdm(BLOCKS, "block fisher", leave=False):
        G = gradients(m, d, block)
        tensor = torch.from_numpy(G)
        candidates = sequential(G, block) | common.torch_candidates(
            "batched", lambda G=tensor, B=block: peers.batched_inverse(G, B, DAMPING)
        )
        for backend in available():
            candidates[backend] = common.timed(
                lambda G=G[:, :d], B=block, b=backend: inverse(G, B, b)
            )
        timings = common.alternate(candidates, seconds=0.1 if quick else 3)
        native, numba = timings["native"].best, timings["numba"].best
        one_by_one = common.best(timings, "sequential") * m / SAMPLE
        batched = common.best(timings, "batched")
        row = [str(block), f"{one_by_one:.2f}", f"{batched:.4f}"]
        row += [f"{timings[backend].best:.4f}" for backend in available()]
        goals = SPEED_GOALS.get(block, (50, 10))
        row += common.faster(one_by_one, native, goals[0])
        row += common.faster(batched, native, goals[1])
        row += common.second_opinion(native, numba)
        rows.append([*row, f"{m * d * 4 / native / 1e9:.1f}", *errors(G, block)])
    ceilings = common.ceilings(512, 2**24) if quick else common.ceilings()
    report.add(f"Ceilings: {ceilings}.")
    report.add(
        f"d = {d}, m = {m} gradients, float32, damping {DAMPING:g}. Best of the rounds, "
        f"alternating in one process; PyTorch at the better of 1 and {common.THREADS} threads.\n\n"
        "sequential: one update of all inverses per gradient, as oBERT does. "
        f"**Extrapolated**: {SAMPLE} gradients were timed and the time multiplied by "
        f"{m / SAMPLE:g}, since each gradient costs the same. batched: torch.baddbmm over 64 "
        "gradients at a time, torch.linalg.cholesky, torch.cholesky_inverse, in full. Where B does "
        "not divide d, their gradients were padded before. Errors: Frobenius norm over 8 blocks, "
        "relative, against float64; nan where float32 has lost positive definiteness."
    )
    report.add(common.table(header, rows))


if __name__ == "__main__":
    common.run("block-fisher", "BlockFisher: update and dense inverses", main)
