"""rank_one_inverse_update in place, against the least traffic and against PyTorch.

python -m bench.woodbury.bench_inverse_update [--quick]
"""

from itertools import cycle

import numpy as np
import torch
from tqdm.auto import tqdm

import quadric as qd
from bench import common
from bench.common import NUMBA_GOAL, Candidate
from bench.woodbury import peers
from quadric.backends import available

CEILING_GOAL = 0.75  # of 3 n^2 entries at the speed of a copy; for the largest n
DECAY = 0.999  # hundreds of updates follow one another: with 0.95 they would overflow float32


def update(n: int, vectors: np.ndarray, backend: str) -> Candidate:
    J = np.eye(n, dtype=np.float32)
    stream = cycle(vectors)
    return common.timed(
        lambda: qd.woodbury.rank_one_inverse_update(
            J,
            next(stream),
            decay=DECAY,
            out=J,
            backend=backend,
            n_threads=common.THREADS,
        )
    )


def main(quick: bool, report: common.Report) -> None:
    sizes = (256, 512) if quick else (1024, 2048, 4096)
    header = ["n", "torch ms", "torch tuned ms", *(f"{backend} ms" for backend in available())]
    header += ["torch / native", "tuned / native", "numba / native", f"<= {NUMBA_GOAL}"]
    header += ["GB/s", "copy GB/s", "of copy", "goal", "met"]
    rows = []
    for n in tqdm(sizes, "inverse update", leave=False):
        vectors = np.random.default_rng(0).standard_normal((64, n), dtype=np.float32)
        v, plain, tuned = torch.from_numpy(vectors[0]), torch.eye(n), torch.eye(n)
        candidates = {"copy": common.copy(4 * n * n)}
        candidates |= {backend: update(n, vectors, backend) for backend in available()}
        candidates |= common.torch_candidates(
            "torch", lambda J=plain, v=v: peers.rank_one(J, v, DECAY)
        )
        candidates |= common.torch_candidates(
            "tuned", lambda J=tuned, v=v: peers.rank_one_in_place(J, v, DECAY)
        )
        timings = common.alternate(candidates, seconds=0.1 if quick else 2)
        native, numba = timings["native"].best, timings["numba"].best
        theirs, best = common.best(timings, "torch"), common.best(timings, "tuned")
        rate, speed = 12 * n * n / native, 8 * n * n / timings["copy"].best
        row = [str(n), f"{1e3 * theirs:.2f}", f"{1e3 * best:.2f}"]
        row += [f"{1e3 * timings[backend].best:.2f}" for backend in available()]
        row += [f"{theirs / native:.1f}", f"{best / native:.1f}"]
        row += common.second_opinion(native, numba)
        row += [f"{rate / 1e9:.1f}", f"{speed / 1e9:.1f}"]
        rows.append(row + common.share(rate, speed, CEILING_GOAL if n == sizes[-1] else None))
    report.add(
        "float32, rule exact, out=J. Best of the rounds, alternating in one process; PyTorch at "
        f"the better of 1 and {common.THREADS} threads.\n\n"
        "GB/s: 3 n^2 entries (J read for J v; read and written by the update) over the time. copy: "
        "a matrix of that size, bytes read and bytes written, in the same rounds. torch: "
        "J - outer(u, u), as one writes it first; tuned: torch.addr_ in place, two passes."
    )
    report.add(common.table(header, rows))


if __name__ == "__main__":
    common.run("inverse-update", "rank_one_inverse_update in place", main)
