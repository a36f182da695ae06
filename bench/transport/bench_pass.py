"""One full Sinkhorn iteration, against one read of the cost and in entries per second.

python -m bench.transport.bench_pass [--quick]
"""

from typing import TypeAlias

import numpy as np
from tqdm.auto import tqdm

from bench import common
from bench.common import NUMBA_GOAL, Candidate
from bench.transport import peak_memory
from quadric import backends
from quadric.backends import available
from quadric.transport.cost import KINDS, Cost

ITERATIONS = 20  # in a call, as the solver makes them
READ_GOAL = 1.3  # times one read of the cost, at most
RATE_GOAL = 10e9  # entries per second, float32 points in three dimensions
MEMORY_GOAL = 1e9  # bytes for 100 000 points on either side

Potentials: TypeAlias = tuple[np.ndarray, np.ndarray]


def iterations(cost: Cost, reg: float, backend: str) -> Candidate:
    """Iterations with uniform masses, from where the first ones have led to."""
    _, n, m = cost.shape
    a, b, f, g = np.full((1, n), 1 / n), np.full((1, m), 1 / m), np.zeros((1, n)), np.zeros((1, m))
    errors, one = np.empty((1, ITERATIONS)), np.ones(1)
    kernel = backends.resolve("transport.sinkhorn", backend)
    arguments = (*cost.args, a, b, reg, 1.0, 1.0, one, 0.0, ITERATIONS, f, g, errors)
    return common.timed(lambda: kernel(*arguments, common.THREADS))


def stored(n: int, dtype: type, seconds: float) -> list[str]:
    """Row of the table for a cost in memory: squared distances, scaled to 1."""
    C = np.ascontiguousarray(_squared(peak_memory.cloud(n, 2), peak_memory.cloud(n, 2, 1)), dtype)
    candidates = {"read": common.read(C)}
    candidates |= {b: iterations(Cost.stored(C), 1 / 1200, b) for b in available()}
    times = {name: t.best for name, t in common.alternate(candidates, seconds=seconds).items()}
    once = times["read"]
    native, numba = (times[backend] / ITERATIONS for backend in ("native", "numba"))
    goal = [f"{READ_GOAL:g}", common.verdict(native <= READ_GOAL * once)]
    row = [f"{n}, {np.dtype(dtype)}", *(f"{1e3 * t:.2f}" for t in (once, native, numba))]
    row += [f"{native / once:.2f}", *(goal if dtype is np.float64 else ["", ""])]
    return row + common.second_opinion(native, numba) + [f"{C.nbytes / once / 1e9:.0f}"]


def points(n: int, d: int, kind: str, seconds: float) -> list[str]:
    """Row of the table for a cost that is computed from points, float32."""
    x, y = peak_memory.cloud(n, d), peak_memory.cloud(n, d, 1)
    cost = Cost.points(x, y, KINDS[kind])
    reg = cost.spread() / 50
    candidates = {backend: iterations(cost, reg, backend) for backend in available()}
    times = {name: t.best for name, t in common.alternate(candidates, seconds=seconds).items()}
    native, numba = (times[backend] / ITERATIONS for backend in ("native", "numba"))
    rate = n * n / native
    judged = d == 3 and kind == "sqeuclidean"
    row = [f"{n}, d = {d}, {kind}", *(f"{1e3 * t:.1f}" for t in (native, numba))]
    row += [f"{rate / 1e9:.1f}", f"{RATE_GOAL / 1e9:g}" if judged else ""]
    row += [common.verdict(rate >= RATE_GOAL) if judged else ""]
    return row + common.second_opinion(native, numba)


def main(quick: bool, report: common.Report) -> None:
    seconds = 0.3 if quick else 3.0
    n = 1024 if quick else 4096
    report.add(
        f"Uniform masses, {common.THREADS} threads; a full iteration updates both potentials and "
        f"measures the error. Time of a call that makes {ITERATIONS}, divided. Best of the rounds, "
        "alternating in one process. Read: the product of the cost with itself by BLAS, on all "
        "threads."
    )
    header = ["stored cost, n", "read ms", "native ms", "numba ms", "native / read", "goal", "met"]
    header += ["numba / native", f"<= {NUMBA_GOAL}", "read GB/s"]
    report.add(common.table(header, [stored(n, t, seconds) for t in (np.float64, np.float32)]))
    header = ["points, n", "native ms", "numba ms", "native G entries/s", "goal", "met"]
    header += ["numba / native", f"<= {NUMBA_GOAL}"]
    shapes = [(3, kind) for kind in KINDS] + [(64, "sqeuclidean"), (784, "sqeuclidean")]
    many, fewer = (2048, 1024) if quick else (16384, 4096)  # long points take their time
    rows = [
        points(many if d == 3 else fewer, d, kind, seconds)
        for d, kind in tqdm(shapes, "points", leave=False)
    ]
    report.add(common.table(header, rows))
    n = 10_000 if quick else 100_000
    header = [f"n = {n}, d = 3, float32", "peak MB", "goal", "met"]
    rows = []
    for backend in available():
        size = peak_memory.measure(backend, n)
        verdict = common.verdict(size < MEMORY_GOAL)
        rows.append([backend, f"{size / 1e6:.0f}", f"< {MEMORY_GOAL / 1e6:.0f}", verdict])
    report.add(common.table(header, rows))
    report.add(
        f"Peak: growth of the process while solve_points makes {peak_memory.ITERATIONS} iterations "
        f"at reg {peak_memory.REG:g}, beyond the points, measured in a process of its own. The "
        f"matrix of all costs would take {4 * n * n / 1e6:.0f} MB."
    )


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    C: np.ndarray = np.square(x[:, None] - y).sum(axis=-1)
    return C / C.max()


if __name__ == "__main__":
    common.run("pass", "One Sinkhorn iteration", main)
