"""What the benchmarks on a GPU share: timing by events, the device's ceilings, the stored table.

Every table has a column "floor": what no version can run much faster than, bytes over the copy
bandwidth or operations over the rate of the unit that does them, both measured in the same run.
"""

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from bench import common
from quadric.backends import why_missing

Call = Callable[[], object]


def require_gpu() -> None:
    """Stop with a sentence where there is no GPU: a table without one would say nothing."""
    if (reason := why_missing("cuda")) is not None:
        raise SystemExit(f"this benchmark needs a GPU and quadric's CUDA kernels: {reason}")


def measure(
    calls: Mapping[str, Call], *, seconds: float = 1.0, rounds: tuple[int, int] = (3, 30)
) -> dict[str, float]:
    """Time calls in turn by CUDA events; the median of the rounds in seconds.

    A first round warms up and is not counted; the slowest call may take `seconds` in all, within
    the limits on the number of `rounds`.
    """
    record: dict[str, list[float]] = {name: [] for name in calls}

    def run(call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    first = max(run(call) for call in calls.values())
    again = max(run(call) for call in calls.values())
    count = min(max(round(seconds / min(first, again)), rounds[0]), rounds[1])
    for _ in range(count):
        for name, call in calls.items():
            record[name].append(run(call))
    return {name: statistics.median(times) for name, times in record.items()}


class Ceilings:
    """Measured rates of the device: bytes/s of a copy, flop/s of matrix products."""

    def __init__(self) -> None:
        a = torch.randn(2**28, device="cuda")
        b = torch.empty_like(a)
        products = {}
        for dtype, n in ((torch.float32, 8192), (torch.bfloat16, 8192), (torch.float64, 4096)):
            x = torch.randn(n, n, device="cuda", dtype=torch.float32).to(dtype)
            products[str(dtype).removeprefix("torch.")] = (x, 2 * n**3)
        calls: dict[str, Call] = {"copy": lambda: b.copy_(a)}
        for name, (x, _) in products.items():
            calls[name] = lambda x=x: x @ x  # type: ignore[misc]
        times = measure(calls)
        self.copy = 2 * a.nbytes / times["copy"]
        self.float32, self.bfloat16, self.float64 = (
            products[name][1] / times[name] for name in ("float32", "bfloat16", "float64")
        )

    def __str__(self) -> str:
        return (
            f"copy {self.copy / 1e12:.2f} TB/s (read and write); products of float32 "
            f"{self.float32 / 1e12:.0f}, float64 {self.float64 / 1e12:.0f}, bfloat16 "
            f"{self.bfloat16 / 1e12:.0f} TFLOP/s"
        )


def machine() -> list[str]:
    """Describe what the numbers belong to, one line each."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    smi = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return [
        f"GPU, driver: {smi.splitlines()[0] if smi else torch.cuda.get_device_name()}",
        f"Libraries: torch {torch.__version__}, CUDA {torch.version.cuda}",
        f"quadric: commit {os.environ.get('QUADRIC_COMMIT') or common.commit()}",
        f"Date: {time.strftime('%Y-%m-%d', time.gmtime())}",
    ]


class Report:
    """Text that is printed as it comes and stored as ``<name>-h200.md``, say, at the end."""

    def __init__(self, name: str, title: str, folder: Path) -> None:
        device = torch.cuda.get_device_name().lower().replace("nvidia", "").split()
        self.path = folder / f"{name}-{'-'.join(device)}.md"
        self._parts: list[str] = []
        self.add(f"# {title}")
        self.add("\n".join(f"- {line}" for line in machine()))

    def add(self, text: str) -> None:
        """Print a paragraph and write all that there is, so that nothing is lost at a limit."""
        print(text, end="\n\n", flush=True)
        self._parts.append(text)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n\n".join(self._parts) + "\n", encoding="utf-8")


def run(name: str, title: str, benchmark: Callable[[Report, Ceilings], None]) -> None:
    """Command line that all benchmarks on a GPU share."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder of the table")
    options, _ = parser.parse_known_args()  # a benchmark may have words of its own
    require_gpu()
    report = Report(name, title, options.out)
    ceilings = Ceilings()
    report.add(f"Ceilings: {ceilings}.")
    benchmark(report, ceilings)
    print(f"stored {report.path}")


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def row(
    work: str, ours: float, floor: float, goal: float | None, peer: tuple[str, float] | None
) -> list[str]:
    """Cells "work, ms, floor, share of the floor, goal, met, peer, peer ms, peer / ours"."""
    judged = ["", ""] if goal is None else [f"{goal:g}", common.verdict(ours * 1e3 <= goal)]
    theirs = ["", "", ""]
    if peer is not None:
        theirs = [peer[0], milliseconds(peer[1]), f"{peer[1] / ours:.1f}"]
    cells = [work, milliseconds(ours), milliseconds(floor), f"{floor / ours:.0%}"]
    return [*cells, *judged, *theirs]


HEADER = ["work", "ms", "floor ms", "of floor", "goal ms", "met", "peer", "peer ms", "peer / ours"]
