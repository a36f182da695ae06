"""What every benchmark shares: fair timing, the machine's ceilings, and the stored table."""

import argparse
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.linalg import blas, lapack
from threadpoolctl import ThreadpoolController

import quadric.config

RESULTS = Path(__file__).parent / "results"
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

NUMBA_GOAL = 3  # times native, at most


class Stopwatch:
    """Seconds between the calls of :meth:`lap`, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.skip()

    def skip(self) -> None:
        """Leave out what was done since the last lap: a copy of the input, say."""
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        self.laps[name] = time.perf_counter() - self._start
        self.skip()


Candidate = Callable[[Stopwatch], object]


@dataclass(frozen=True)
class Timing:
    """Laps of every round of one candidate."""

    rounds: tuple[dict[str, float], ...]

    @property
    def totals(self) -> list[float]:
        return [sum(laps.values()) for laps in self.rounds]

    @property
    def best(self) -> float:
        return min(self.totals)

    @property
    def median(self) -> float:
        return statistics.median(self.totals)

    def lap(self, name: str) -> float:
        """Shortest `name` lap."""
        return min(laps[name] for laps in self.rounds)


def alternate(
    candidates: Mapping[str, Candidate], *, seconds: float = 3.0, rounds: tuple[int, int] = (3, 40)
) -> dict[str, Timing]:
    """Time the candidates in turn, round after round, so that all meet the same disturbances.

    A first round warms up and is not counted; `seconds` is what the slowest candidate may take in
    all, within the limits on the number of `rounds`. Calls of milliseconds are made twice and the
    second one counts: layers come one after another, and the pause leaves cold caches behind.
    """
    short: set[Candidate] = set()

    def run(candidate: Candidate) -> dict[str, float]:
        time.sleep(0.05)  # the threads of the one before spin for tens of milliseconds
        if candidate in short:
            candidate(Stopwatch())
        watch = Stopwatch()
        candidate(watch)
        if sum(watch.laps.values()) < 0.05:
            short.add(candidate)
        return watch.laps

    for candidate in candidates.values():
        run(candidate)
    first = {name: run(candidate) for name, candidate in candidates.items()}
    slowest = max(sum(laps.values()) for laps in first.values())
    count = min(max(round(seconds / slowest), rounds[0]), rounds[1])
    record = {name: [laps] for name, laps in first.items()}
    for _ in range(count - 1):
        for name, candidate in candidates.items():
            record[name].append(run(candidate))
    return {name: Timing(tuple(laps)) for name, laps in record.items()}


def timed(function: Callable[[], object]) -> Candidate:
    """Candidate with a single lap."""

    def candidate(watch: Stopwatch) -> None:
        function()
        watch.lap("total")

    return candidate


def torch_candidates(name: str, function: Callable[[], object]) -> dict[str, Candidate]:
    """`function` of PyTorch with one thread and with all, as "`name` 1" and so on.

    Either may win: small operations lose more by a second thread than they gain.
    """
    import torch

    def candidate(threads: int) -> Candidate:
        def run(watch: Stopwatch) -> None:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                watch.skip()
                function()
                watch.lap("total")

        return run

    return {f"{name} {threads}": candidate(threads) for threads in {1, THREADS}}


def best(timings: Mapping[str, Timing], name: str) -> float:
    """Best of the candidates that :func:`torch_candidates` called `name`."""
    return min(timing.best for key, timing in timings.items() if key.rpartition(" ")[0] == name)


@dataclass(frozen=True)
class Ceilings:
    """The best that this machine does: bytes/s of a copy, flop/s of SGEMM and SPOTRF."""

    copy: float
    sgemm: float
    spotrf: float

    def __str__(self) -> str:
        return (
            f"copy {self.copy / 1e9:.1f} GB/s (read and write), "
            f"SGEMM {self.sgemm / 1e9:.0f} GFLOP/s, SPOTRF {self.spotrf / 1e9:.0f} GFLOP/s"
        )


def gemm(m: int, n: int, k: int) -> Candidate:
    """SciPy's SGEMM, the one that the kernels call: (m, k) times (k, n)."""
    a, b = (np.asfortranarray(_random(shape)) for shape in ((m, k), (k, n)))
    c = np.zeros((m, n), np.float32, order="F")
    return timed(lambda: blas.sgemm(1.0, a, b, c=c, overwrite_c=True))


def potrf(n: int) -> Candidate:
    """SciPy's SPOTRF in place; the copy that it overwrites is not timed."""
    a = np.asfortranarray(_random((n, n)) + 2 * n * np.eye(n, dtype=np.float32))
    scratch = np.empty_like(a)

    def candidate(watch: Stopwatch) -> None:
        scratch[...] = a
        watch.skip()
        lapack.spotrf(scratch, lower=1, clean=0, overwrite_a=1)
        watch.lap("total")

    return candidate


def copy(size: int) -> Candidate:
    """Copy `size` bytes with all threads."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    parts = list(zip(np.array_split(target, THREADS), np.array_split(source, THREADS), strict=True))
    pool = ThreadPoolExecutor(THREADS)
    return timed(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))


def read(array: np.ndarray) -> Candidate:
    """Read a contiguous array once with all threads: the product of each part with itself."""
    parts = np.array_split(array.reshape(-1), THREADS)
    pool = ThreadPoolExecutor(THREADS)
    controller = ThreadpoolController()

    def candidate(watch: Stopwatch) -> None:
        with controller.limit(limits=1, user_api="blas"):  # the pool has threads enough
            watch.skip()
            list(pool.map(lambda part: np.dot(part, part), parts))
            watch.lap("total")

    return candidate


def ceilings(n: int = 2048, size: int = 2**28) -> Ceilings:
    """Measure the ceilings of this machine."""
    times = alternate({"copy": copy(size), "sgemm": gemm(n, n, n), "spotrf": potrf(n)}, seconds=1)
    return Ceilings(
        copy=2 * size / times["copy"].best,
        sgemm=2 * n**3 / times["sgemm"].best,
        spotrf=n**3 / 3 / times["spotrf"].best,
    )


def layer(m: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights (m, n) and a Hessian (n, n) whose inputs are correlated and of unequal strength."""
    inputs = _random((2 * n, n), seed)
    mixed = inputs + 0.5 * np.roll(inputs, 1, axis=1) + inputs.mean(axis=1, keepdims=True)
    mixed *= np.exp(0.5 * _random((n,), seed + 1))
    return _random((m, n), seed + 2), mixed.T @ mixed / np.float32(2 * n)


def machine(packages: Iterable[str] = ("numpy", "scipy", "numba", "torch")) -> list[str]:
    """Describe what the numbers belong to, one line each."""
    config = quadric.config.config()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return [
        f"CPU: {_cpu()}, {THREADS} threads",
        f"System: {platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"Libraries: {versions}",
        f"BLAS: {'; '.join(config['blas'])}",
        f"quadric: commit {commit()}, backends {', '.join(config['backends'])}, "
        f"SIMD {(config['simd'] or ['none'])[0]}",
        f"Date: {time.strftime('%Y-%m-%d', time.gmtime())}",
    ]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown table that also reads well as plain text; the first column is left-aligned."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return " | ".join(["| " + first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]) + " |"

    dashes = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(lines[0]), line(dashes), *map(line, lines[1:])])


def verdict(met: bool) -> str:
    return "yes" if met else "NO"


def faster(theirs: float, ours: float, goal: float | None) -> list[str]:
    """Cells "ratio of the times, goal, met"; no goal, no verdict."""
    judged = ["", ""] if goal is None else [f"{goal:g}", verdict(theirs >= goal * ours)]
    return [f"{theirs / ours:.1f}", *judged]


def share(rate: float, ceiling: float, goal: float | None) -> list[str]:
    """Cells "share of the ceiling, goal, met"; no goal, no verdict."""
    judged = ["", ""] if goal is None else [f"{goal:.0%}", verdict(rate >= goal * ceiling)]
    return [f"{rate / ceiling:.0%}", *judged]


def second_opinion(native: float, numba: float) -> list[str]:
    """Cells "numba / native, met": the backend without a compiler must not be far behind."""
    return [f"{numba / native:.1f}", verdict(numba <= NUMBA_GOAL * native)]


class Report:
    """Text that is printed as it comes and stored at the end."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self._parts: list[str] = []
        self.add(f"# {title}")
        self.add("\n".join(f"- {line}" for line in machine()))

    def add(self, text: str) -> None:
        print(text, end="\n\n", flush=True)
        self._parts.append(text)

    def save(self, folder: Path) -> None:
        """Write ``<name>-<machine>.md`` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", _cpu().lower())).strip("-")
        path = folder / f"{self.name}-{slug}-{THREADS}-threads.md"
        path.write_text("\n\n".join(self._parts) + "\n", encoding="utf-8")
        print(f"stored {path}")


def run(name: str, title: str, benchmark: Callable[[bool, Report], None]) -> None:
    """Command line that all benchmarks share; `benchmark` gets "quick?" and fills the report."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="small shapes only; store nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the stored table")
    options = parser.parse_args()
    report = Report(name, title)
    benchmark(options.quick, report)
    if not options.quick:
        report.save(options.out)


def _random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _cpu() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
