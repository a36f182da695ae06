"""Search for the best options of every opponent, and keep them in options.json.

    python -m bench.transport.tune [PROBLEM ...] [--peers PEER ...]

What counts is processor time, so that other programs do not matter much, and for over-relaxation
the number of iterations.  A run that needs more than :data:`CAP` seconds is stopped.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import time
import warnings
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from bench.transport.peers import PEERS
from bench.transport.problems import PROBLEMS, TOL

FILE = Path(__file__).with_name("options.json")
CAP = 60.0
_PILOT = 20  # iterations, to learn how many fit into the time
_MANY = 1_000_000
_PATIENCE = 3  # other programs may run: time on the clock may be longer than processor time
RAMPS = (300, 30, 100, 600, 1000)  # those that come first converge on most problems
OMEGAS = (1.96, 1.9, 1.97, 1.94, 1.98, 1.85, 1.985, 1.8)

Options = dict[str, Any]

GRIDS: dict[str, list[Options]] = {}


def grid(peer: str, **lists: list[Any]) -> None:
    names = list(lists)
    GRIDS.setdefault(peer, []).extend(
        dict(zip(names, values, strict=True)) for values in itertools.product(*lists.values())
    )


grid("POT sinkhorn", library=["numpy", "torch"])
grid("POT log", library=["torch"])
grid("POT stabilized", tau=[1e50], print_period=[200, 1000])
grid("POT stabilized", tau=[1e3], print_period=[200])
grid("POT scaling", epsilon0=[0.1, 10.0], tau=[1e50])
grid("RegOT SSNS", mu0=[1.0, 100.0], warm=[0])
grid("RegOT SSNS", mu0=[1.0], warm=[100])
grid("RegOT SPLR", density=[0.1, 0.02, 0.03, 0.05, 0.01, 0.2], warm=[0])
grid("RegOT SPLR", density=[0.1], warm=[100])
grid("published SNS", sparsity=[15, 2, 40], sweeps=[20])
grid("published SNS", sparsity=[15], sweeps=[700])


@dataclass(frozen=True)
class Trial:
    """What came of some options; `error` is NaN if the run had to be stopped."""

    options: Options
    tol: float = TOL
    max_iter: int = _MANY
    error: float = np.nan
    iterations: int = 0
    seconds: float = np.inf

    @property
    def converged(self) -> bool:
        return self.error <= TOL


class Worker:
    """A process that solves, and that can be stopped."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self.problem), daemon=True)
        self._process.start()

    def run(self, peer: str, trial: Trial, seconds: float) -> Trial:
        """Solve within `seconds`, or stop."""
        with contextlib.suppress(EOFError, OSError):  # it may have crashed
            self._pipe.send((peer, trial))
            if self._pipe.poll(_PATIENCE * seconds + 10):
                result: Trial = self._pipe.recv()
                return result
        self._process.kill()
        self._process.join()
        self._start()
        return replace(trial, error=np.nan, seconds=np.inf)

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, problem_name: str) -> None:
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    problem = PROBLEMS[problem_name]()
    with threadpool_limits(1):
        while True:
            peer, trial = pipe.recv()
            start = time.process_time()
            P, iterations = PEERS[peer](
                problem, tol=trial.tol, max_iter=trial.max_iter, **trial.options
            )
            seconds = time.process_time() - start
            error = problem.error(P)
            pipe.send(replace(trial, error=error, iterations=iterations, seconds=seconds))


def attempt(worker: Worker, peer: str, options: Options, cap: float) -> Trial:
    """Solve with a limit on the iterations that fits into `cap` seconds."""
    found = worker.run(peer, Trial(options, TOL / 100, _PILOT), cap)
    limit, tol = _PILOT, _norm(worker.problem)
    while found.seconds < 0.7 * cap and limit < _MANY:  # what comes before the first one counts too
        limit = min(_MANY, int(limit * cap / found.seconds))
        found = worker.run(peer, Trial(options, tol, limit), 2 * cap)
        if found.converged or found.iterations < limit:
            break
    return found


def loosen(worker: Worker, peer: str, trial: Trial) -> Trial:
    """Stop as late as the error allows: each peer looks at a norm of its own."""
    for _ in range(3):
        looser = replace(trial, tol=trial.tol * min(0.97 * TOL / max(trial.error, 1e-13), 100))
        if looser.tol <= trial.tol:
            break
        found = worker.run(peer, looser, CAP)
        if not found.converged or found.seconds >= trial.seconds:
            break
        trial = found
    return trial


def search(worker: Worker, peer: str) -> Trial:
    """The fastest options of the grid, or those that come closest.

    The first ones are those that are best on most problems; once they have failed, the others get
    half of the time.
    """
    best = Trial({})
    for options in tqdm(GRIDS[peer], peer, leave=False):
        cap = CAP / 2 if best.options else CAP
        if best.converged:
            cap = min(CAP, 1.5 * best.seconds)
        best = _better(best, attempt(worker, peer, options, cap))
    return loosen(worker, peer, best) if best.converged else best


def search_over_relaxed(worker: Worker) -> Trial:
    """The fewest iterations win: a coarse grid, then one option after the other around the best."""
    peer = "over-relaxed"
    cost = worker.run(peer, Trial({"levels": 2}, max_iter=_PILOT), CAP).seconds / (3 * _PILOT)
    best = Trial({}, 0.99 * TOL, max_iter=int(CAP / cost))

    def consider(options: Options) -> None:
        nonlocal best
        found = worker.run(peer, replace(best, options=options), 2 * CAP)
        if found.converged:
            best = replace(found, max_iter=found.iterations - 1)

    for ramp, omega in tqdm(list(itertools.product(RAMPS, OMEGAS)), peer, leave=False):
        consider({"omega": omega, "ramp": ramp, "levels": 3})
    for step in (0.2, 0.1, 0.05, 0.2, 0.1, 0.05) if best.converged else ():
        options = best.options
        for slack in (1 - step, 1 + step):
            consider(best.options | {"omega": round(2 - slack * (2 - options["omega"]), 4)})
            consider(best.options | {"ramp": round(slack**2 * options["ramp"])})
        for levels in (0, 1, 2, 5):
            consider(best.options | {"levels": levels})
    return replace(best, max_iter=2 * best.iterations)


def _better(one: Trial, other: Trial) -> Trial:
    if one.converged or other.converged:
        return min(one, other, key=lambda t: t.seconds if t.converged else np.inf)
    return min(other, one, key=lambda t: np.nan_to_num(t.error, nan=np.inf))


def _norm(problem_name: str) -> float:
    """A 2-norm below which the L1 error of both marginals is small enough."""
    return TOL / np.sqrt(sum(PROBLEMS[problem_name]().C.shape))


def main() -> None:
    parser = argparse.ArgumentParser(description="Search for the best options of every opponent.")
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS), metavar="PROBLEM")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    chosen = parser.parse_args()
    for name in tqdm(chosen.problems, "problems"):
        worker = Worker(name)
        for peer in chosen.peers:
            found = search(worker, peer) if peer in GRIDS else search_over_relaxed(worker)
            known = json.loads(FILE.read_text()) if FILE.exists() else {}
            known.setdefault(name, {})[peer] = asdict(found)
            FILE.write_text(json.dumps(known, indent=1) + "\n")
        worker.close()


if __name__ == "__main__":
    main()
