"""The same work by quadric and its opponents, once for each set of OpenBLAS kernels.

    python -m bench.sketch.contest WORK N D SECONDS

OpenBLAS takes its kernels by the processor's name, and not always the best: so the contest is held
in a process of its own with those that it chooses, and with each other set that it can be made to
use.  Printed are the entries, as JSON; WORK is one of :data:`bench.sketch.contestants.WORKS`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from threadpoolctl import ThreadpoolController

from bench import common
from bench.common import Candidate, Stopwatch, Timing

KERNELS = (None, "SKYLAKEX", "HASWELL")  # OPENBLAS_CORETYPE; None: what OpenBLAS takes
SLOW = 3.0  # seconds from which on an opponent runs once, on all threads

Contestant: TypeAlias = Callable[[Stopwatch], Any]
"""Does the work and returns its answer; what it prepares is left out by `Stopwatch.skip`."""


@dataclass(frozen=True)
class Entry:
    """What a contestant took, and what is to be said about its answer."""

    seconds: float
    threads: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Field:
    """Who takes part: quadric on all threads, the others at the better of one thread and all."""

    ours: Mapping[str, Contestant]
    theirs: Mapping[str, Contestant] = field(default_factory=dict)
    judge: Callable[[Any], dict[str, Any]] = lambda answer: {}
    summary: str = "best"  # of the rounds; or "median", where they are not the same work


@dataclass(frozen=True)
class Outcome:
    """Entries by kernels, those that OpenBLAS chooses first, and by name."""

    entries: dict[str, dict[str, Entry]]

    @property
    def own(self) -> dict[str, Entry]:
        """Entries with the kernels that OpenBLAS chooses: what quadric is judged by."""
        return next(iter(self.entries.values()))

    def best(self, name: str) -> Entry:
        """Entry with the kernels that suit the contestant best."""
        return min((entries[name] for entries in self.entries.values()), key=lambda e: e.seconds)

    def fastest(self, names: Iterable[str]) -> str:
        return min(names, key=lambda name: self.best(name).seconds)


def hold(work: str, n: int, d: int, *, seconds: float, all_kernels: bool = True) -> Outcome:
    """Run the contest, in a new process for each set of kernels that differs."""
    entries: dict[str, dict[str, Entry]] = {}
    for kernels in KERNELS if all_kernels else KERNELS[:1]:
        environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
        if kernels:
            environment["OPENBLAS_CORETYPE"] = kernels
        name = _python(["-c", _NAME], environment)
        if name not in entries:
            command = ["-m", "bench.sketch.contest", work, str(n), str(d), str(seconds)]
            found = json.loads(_python(command, environment))
            entries[name] = {key: Entry(**value) for key, value in found.items()}
    return Outcome(entries)


def compete(contestants: Field, seconds: float) -> dict[str, Entry]:
    """Time all in turn, and judge the last answer of each."""
    controller = ThreadpoolController()
    answers: dict[str, Any] = {}

    def candidate(name: str, contestant: Contestant, threads: int) -> Candidate:
        def run(watch: Stopwatch) -> None:
            with controller.limit(limits=threads):
                watch.skip()
                answers[name] = contestant(watch)
                watch.lap("total")

        return run

    def once(candidate: Candidate) -> float:
        watch = Stopwatch()
        candidate(watch)
        return sum(watch.laps.values())

    fast = {name: candidate(name, c, common.THREADS) for name, c in contestants.ours.items()}
    threads = dict.fromkeys(fast, common.THREADS)
    timings: dict[str, Timing] = {}
    for name, contestant in contestants.theirs.items():
        used = {t: candidate(name, contestant, t) for t in (common.THREADS, 1)}
        first = once(used[common.THREADS])
        threads[name] = common.THREADS
        if first > SLOW:
            timings[name] = Timing(({"total": first},))
            continue
        if once(used[1]) < first:
            threads[name] = 1
        fast[name] = used[threads[name]]
    timings |= common.alternate(fast, seconds=seconds, rounds=(2, 20))
    return {
        name: Entry(
            getattr(timings[name], contestants.summary),
            threads[name],
            contestants.judge(answers[name]),
        )
        for name in (*contestants.ours, *contestants.theirs)
    }


_NAME = """
from quadric import threads
info = threads.blas_pools().info()
print(info[-1].get("architecture", info[-1]["internal_api"]) if info else "unknown")
"""


def _python(arguments: list[str], environment: dict[str, str]) -> str:
    """Last line that a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def main() -> None:
    from bench.sketch.contestants import WORKS

    work, n, d, seconds = sys.argv[1:]
    entries = compete(WORKS[work](int(n), int(d)), float(seconds))
    print(json.dumps({name: asdict(entry) for name, entry in entries.items()}))


if __name__ == "__main__":
    main()
