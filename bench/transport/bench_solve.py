"""transport.solve against POT, RegOT, over-relaxed Sinkhorn and the published sparse Newton.

    python -m bench.transport.bench_solve [--quick]

Everybody solves the same problem to the same error; the options of the opponents are the best that
bench.transport.tune found. What did not reach the error there is not run again.
"""

import json
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from tqdm.auto import tqdm

import quadric as qd
from bench import common
from bench.common import NUMBA_GOAL, Candidate, Stopwatch, Timing
from bench.transport import tune
from bench.transport.peers import PEERS
from bench.transport.problems import PROBLEMS, TOL, Problem
from quadric.backends import available

FASTEST_GOAL = 1.3  # times the fastest of all, at most
POT_GOAL, REGOT_GOAL = 4, 2  # times faster, on every problem
TOTAL_GOALS = {"POT": 10, "over-relaxed": 2}  # times faster, all problems together
QUICK = ("assignment 500", "points 500", "images, squared")
SLOW = 1.0  # seconds from which on a candidate is run once, not round after round
THREADS = (1, common.THREADS)


@dataclass
class Contest:
    """Who takes how long for one problem, and what each found."""

    problem: Problem
    known: dict[str, Any]
    timings: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    steps: str = ""

    def seconds(self, name: str) -> float:
        """Of an opponent at the better number of threads, or of a backend; inf if not solved."""
        times = [self.timings[key].best for key in self._keys(name)]
        return min(times, default=np.inf)

    def best(self, prefix: str) -> float:
        """Of the fastest opponent whose name begins so."""
        return min(
            (self.seconds(peer) for peer in PEERS if peer.startswith(prefix)), default=np.inf
        )

    def cell(self, peer: str) -> str:
        """Seconds; in brackets the error of who does not reach it."""
        seconds = self.seconds(peer)
        if np.isfinite(seconds):
            return f"{seconds:.3g}"
        error = self.errors.get(peer, self.known[peer]["error"])
        return "(stopped)" if np.isnan(error) else f"({error:.0e})"

    def run(self) -> None:
        fast: dict[str, Candidate] = {b: self._ours(b) for b in available()}
        slow: dict[str, Candidate] = {}
        for peer, found in self.known.items():
            if found["error"] <= TOL:
                slowly = found["seconds"] > SLOW
                used = {common.THREADS} if slowly else set(THREADS)
                group = slow if slowly else fast
                group |= {f"{peer} {t}": self._theirs(peer, t) for t in used}
        self.timings |= common.alternate(fast, seconds=1.5)
        for name, candidate in slow.items():
            watch = Stopwatch()
            candidate(watch)
            self.timings[name] = Timing((watch.laps,))

    def _keys(self, name: str) -> list[str]:
        keys = {name, *(f"{name} {t}" for t in THREADS)}
        return [key for key in keys & self.timings.keys() if self.errors[key] <= TOL]

    def _judge(self, name: str, P: np.ndarray) -> None:
        self.errors[name] = max(self.errors.get(name, 0.0), self.problem.error(P))
        self.values[name] = self.problem.value(P)

    def _ours(self, backend: str) -> Candidate:
        p, options = self.problem, {"backend": backend, "n_threads": common.THREADS}

        def candidate(watch: Stopwatch) -> None:
            result = qd.transport.solve(p.a, p.b, p.C, p.reg, tol=TOL, **options)
            P = result.plan()
            watch.lap("total")
            self._judge(backend, P)
            if backend == "native":
                cg = int(result.history["cg"].sum())
                self.steps = f"{result.method}: {result.iterations} iterations, {cg} of CG"

        return candidate

    def _theirs(self, peer: str, threads: int) -> Candidate:
        found = self.known[peer]
        arguments = {name: found[name] for name in ("tol", "max_iter")} | found["options"]

        def candidate(watch: Stopwatch) -> None:
            torch.set_num_threads(threads)
            with ThreadpoolController().limit(limits=threads):
                watch.skip()
                P, _ = PEERS[peer](self.problem, **arguments)
                watch.lap("total")
            self._judge(f"{peer} {threads}", P)

        return candidate


def times(contests: dict[str, Contest]) -> str:
    """Table of seconds."""
    rows = []
    for name, contest in contests.items():
        ours = [f"{contest.seconds(backend):.3g}" for backend in available()]
        rows.append([name, *ours, *map(contest.cell, PEERS)])
    return common.table(["problem", *available(), *PEERS], rows)


def at_least(theirs: float, ours: float, goal: float) -> list[str]:
    """Cells "ratio, goal, met", where `theirs` is the limit if nobody finished in time."""
    if np.isinf(theirs):
        return [f"> {tune.CAP / ours:.0f}", f"{goal:g}", common.verdict(goal * ours <= tune.CAP)]
    return common.faster(theirs, ours, goal)


def ratios(contests: dict[str, Contest]) -> str:
    """Table of what is to be reached on every problem."""
    header = ["problem", "fastest opponent", "of its time", f"<= {FASTEST_GOAL}"]
    header += ["POT / native", "goal", "met", "RegOT / native", "goal", "met"]
    header += ["numba / native", f"<= {NUMBA_GOAL}", "error", "native"]
    rows = []
    for name, contest in contests.items():
        native, numba = contest.seconds("native"), contest.seconds("numba")
        first = min(PEERS, key=contest.seconds)
        share = native / contest.seconds(first)
        row = [name, first, f"{share:.2f}", common.verdict(share <= FASTEST_GOAL)]
        row += at_least(contest.best("POT"), native, POT_GOAL)
        row += at_least(contest.best("RegOT"), native, REGOT_GOAL)
        row += common.second_opinion(native, numba)
        rows.append([*row, f"{contest.errors['native']:.1e}", contest.steps])
    return common.table(header, rows)


def totals(contests: dict[str, Contest]) -> str:
    """Table of what is to be reached on all problems together."""
    native = sum(contest.seconds("native") for contest in contests.values())
    rows = [["native", f"{native:.3g}", "", "", ""]]
    for who, goal in TOTAL_GOALS.items():
        seconds = [min(contest.best(who), tune.CAP) for contest in contests.values()]
        rows.append([who, f"{sum(seconds):.3g}", *common.faster(sum(seconds), native, goal)])
    return common.table(["all problems", "s", "/ native", "goal", "met"], rows)


def disagreement(contests: dict[str, Contest]) -> float:
    """Largest relative difference of the objective among all who reached the error."""
    worst = 0.0
    for contest in contests.values():
        reached = [v for name, v in contest.values.items() if contest.errors[name] <= TOL]
        worst = max(worst, float(np.ptp(reached)) / abs(reached[0]))
    return worst


def main(quick: bool, report: common.Report) -> None:
    warnings.simplefilter("ignore")  # of those who say that they have not converged
    options = json.loads(tune.FILE.read_text(encoding="utf-8"))
    contests: dict[str, Contest] = {}
    for name in tqdm(QUICK if quick else PROBLEMS, "solve", leave=False):
        contests[name] = Contest(PROBLEMS[name](), options[name])
        contests[name].run()
    report.add(
        f"float64, both marginal errors in L1, added, at most {TOL:g}, evaluated on each plan; "
        "from the costs to the dense plan. Subnormal numbers are zero for all. Opponents: the "
        f"options that tune.py found, at the better of 1 and {common.THREADS} threads. Best of the "
        f"rounds, alternating in one process; who takes more than {SLOW:g} s has one round, on all "
        "threads. In "
        f"brackets: the error of who does not get there within {tune.CAP:g} s of processor time or "
        "diverges. The objectives of all others agree to "
        f"{disagreement(contests):.0e}, relatively."
    )
    report.add(times(contests))
    report.add(ratios(contests))
    report.add(f"Who does not finish counts with {tune.CAP:g} s.")
    report.add(totals(contests))


if __name__ == "__main__":
    common.run("solve", "transport.solve", main)
