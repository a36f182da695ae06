"""Peak memory of one factorize + quantize, in a process of its own (Linux).

    python -m bench.sweep.peak_memory {native,numba,torch} N

Prints the bytes by which the process grew at its largest beyond W and H, results included.  A small
run and one SGEMM come first, so that compiled code and the BLAS's own buffers, which do not grow
with the layer, are not counted.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench import common
from bench.common import Stopwatch


def measure(who: str, n: int) -> int:
    """Bytes for an n x n layer, measured in a new process."""
    command = [sys.executable, "-m", "bench.sweep.peak_memory", who, str(n)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def run(who: str, W: np.ndarray, H: np.ndarray) -> object:
    if who == "torch":
        import torch

        from bench.sweep import column_loop

        with torch.inference_mode():
            upper = column_loop.factorize(torch.from_numpy(H))
            return column_loop.quantize(torch.from_numpy(W), upper)
    import quadric as qd

    factor = qd.sweep.factorize(H, backend=who)
    return qd.sweep.quantize(W, factor, backend=who)


def resident(which: str) -> int:
    """Bytes in memory: "VmRSS" now, "VmHWM" the most so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{which}:\s*(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    who, n = sys.argv[1], int(sys.argv[2])
    common.gemm(1024, 1024, 1024)(Stopwatch())
    run(who, *common.layer(512, 512))
    W, H = common.layer(n, n)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the high-water mark
    before = resident("VmRSS")
    result = run(who, W, H)  # kept: what is returned counts too
    print(resident("VmHWM") - before)
    del result


if __name__ == "__main__":
    main()
