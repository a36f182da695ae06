"""Peak memory of a solve between points, in a process of its own (Linux).

    python -m bench.transport.peak_memory {native,numba} N

Prints the bytes by which the process grew at its largest beyond the points, the result included.
A small run comes first, so that compiled code is not counted.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

from bench import common
from bench.sweep.peak_memory import resident

REG = 1e-2  # of the largest squared distance, about
ITERATIONS = 5


def measure(backend: str, n: int) -> int:
    """Bytes for n points on either side, measured in a new process."""
    command = [sys.executable, "-m", "bench.transport.peak_memory", backend, str(n)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def cloud(n: int, d: int = 3, seed: int = 0) -> np.ndarray:
    """Points in the unit cube, (n, d), float32."""
    return np.random.default_rng(seed).random((n, d), dtype=np.float32)


def run(backend: str, x: np.ndarray, y: np.ndarray) -> object:
    import quadric as qd

    with warnings.catch_warnings():  # so few iterations do not have to be enough
        warnings.simplefilter("ignore")
        return qd.transport.solve_points(
            x, y, REG, max_iter=ITERATIONS, backend=backend, n_threads=common.THREADS
        )


def main() -> None:
    backend, n = sys.argv[1], int(sys.argv[2])
    run(backend, cloud(1000), cloud(1000, seed=1))
    x, y = cloud(n), cloud(n, seed=1)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the high-water mark
    before = resident("VmRSS")
    result = run(backend, x, y)  # kept: what is returned counts too
    print(resident("VmHWM") - before)
    del result


if __name__ == "__main__":
    main()
