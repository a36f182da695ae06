"""sketch.lstsq against LAPACK's drivers and against NumPy prototypes of the same algorithms.

    python -m bench.sketch.bench_lstsq [--quick]

All solve the same problem; OpenBLAS's kernels are chosen in every way that this processor permits,
and an opponent counts with those that suit it best.
"""

from importlib.metadata import version

from tqdm.auto import tqdm

from bench import common
from bench.common import NUMBA_GOAL
from bench.sketch import contest
from bench.sketch.contest import Outcome
from bench.sketch.contestants import EASY, HARD, METHODS
from bench.sketch.problems import RESIDUAL
from quadric.backends import available

CASES = {(200_000, 200): 4.0, (200_000, 1000): 4.5, (1_000_000, 64): 3.0}  # times LAPACK, at least
QUICK = {(10_000, 40): None, (20_000, 20): None}
BACKWARD_GOAL = 1e-15
SINGLE_GOAL = 1.7  # float64 / float32, at least
STABLE = ("prototype spir", "prototype fossils")  # what is as exact as LAPACK


def drivers(outcome: Outcome) -> list[str]:
    return [name for name in outcome.own if name not in available() and "prototype" not in name]


def times(outcome: Outcome, shape: tuple[int, int]) -> str:
    """Table of all contestants."""
    native = outcome.own["native"].seconds
    header = ["{} x {}".format(*shape), *(f"{name} s" for name in outcome.entries), "threads"]
    header += ["/ native", "backward error", "forward error", ""]
    rows = []
    for name in outcome.own:
        entry = outcome.best(name)
        row = [name, *(f"{e[name].seconds:.3g}" for e in outcome.entries.values())]
        row += [str(entry.threads), f"{entry.seconds / native:.1f}"]
        row += [f"{entry.facts[kind]:.1e}" for kind in ("backward", "forward")]
        rows.append([*row, entry.facts["note"]])
    return common.table(header, rows)


def goals(outcomes: dict[tuple[int, int], Outcome], cases: dict[tuple[int, int], float]) -> str:
    header = ["n x d", "native s", "LAPACK", "s", "/ native", "goal", "met"]
    header += ["backward error", f"<= {BACKWARD_GOAL:g}", "numba / native", f"<= {NUMBA_GOAL}"]
    header += ["prototype", "s", "/ native"]
    rows = []
    for shape, outcome in outcomes.items():
        native, numba = (outcome.own[backend] for backend in ("native", "numba"))
        driver, prototype = (outcome.fastest(names) for names in (drivers(outcome), STABLE))
        theirs = outcome.best(driver).seconds
        row = ["{} x {}".format(*shape), f"{native.seconds:.3g}", driver, f"{theirs:.3g}"]
        row += common.faster(theirs, native.seconds, cases[shape])
        backward = native.facts["backward"]
        row += [f"{backward:.1e}", common.verdict(backward <= BACKWARD_GOAL)]
        row += common.second_opinion(native.seconds, numba.seconds)
        seconds = outcome.best(prototype).seconds
        rows.append([*row, prototype, f"{seconds:.3g}", f"{seconds / native.seconds:.1f}"])
    return common.table(header, rows)


def methods(found: dict[tuple[int, int], Outcome]) -> str:
    """Table of seconds and backward errors by method."""
    header = ["n x d", *(f"{name} s" for name in METHODS), *(f"{name} error" for name in METHODS)]
    rows = []
    for shape, outcome in found.items():
        entries = [outcome.own[method] for method in METHODS]
        row = ["{} x {}".format(*shape), *(f"{entry.seconds:.3g}" for entry in entries)]
        rows.append(row + [f"{entry.facts['backward']:.1e}" for entry in entries])
    return common.table(header, rows)


def precisions(found: dict[tuple[int, int], Outcome]) -> str:
    """Table of both precisions."""
    header = ["n x d", "float64 s", "float32 s", "float64 / float32", "goal", "met"]
    header += ["numba / native, float32", f"<= {NUMBA_GOAL}", "backward error float64", "float32"]
    header += ["gels float32 s", "backward error", "/ native", "how, float32"]
    rows = []
    for shape, outcome in found.items():
        double, single = (outcome.own[f"native {dtype}"] for dtype in ("float64", "float32"))
        gels = outcome.own["gels float32"]
        row = ["{} x {}".format(*shape), f"{double.seconds:.3g}", f"{single.seconds:.3g}"]
        row += common.faster(double.seconds, single.seconds, SINGLE_GOAL)
        row += common.second_opinion(single.seconds, outcome.own["numba float32"].seconds)
        row += [f"{entry.facts['backward']:.1e}" for entry in (double, single)]
        row += [f"{gels.seconds:.3g}", f"{gels.facts['backward']:.1e}"]
        rows.append([*row, f"{gels.seconds / single.seconds:.1f}", single.facts["note"]])
    return common.table(header, rows)


def main(quick: bool, report: common.Report) -> None:
    cases = QUICK if quick else CASES
    seconds = 0.3 if quick else 3.0
    report.add(
        f"min ||A x - b||, float64, condition number {HARD:g} that no scaling of columns removes, "
        f"||x|| = 1, residual {RESIDUAL:g}; from A, rows contiguous, and b to the answer. Each set "
        "of OpenBLAS's kernels in a process of its own, the ones it chooses first; within it best "
        f"of the rounds, alternating; opponents at the better of 1 and {common.THREADS} threads; "
        f"who takes more than {contest.SLOW:g} s has one round, on all threads. / native: the "
        "opponent with the kernels that suit it best, over quadric with those that OpenBLAS "
        "chooses."
    )
    report.add(
        "gels: LAPACK's driver called directly, in place, with its best workspace; columns: A is "
        "given by columns; rows: A^T is, and the transposed problem solved. LinearRegression: "
        f"scikit-learn {version('scikit-learn')}, without intercept or copy, tolerance as in SciPy "
        "(its own loses small singular values). Prototypes: bench/sketch/prototypes.py; a read is "
        "one product with A and one with A^T. Backward error: smallest change of A that makes the "
        "answer the solution, by Karlson and Walden, relative to ||A||_F. Forward error: distance "
        "from the solution; for a backward stable method it is what the condition number makes of "
        "rounding."
    )
    outcomes = {}
    for shape in tqdm(cases, "lstsq", leave=False):
        outcomes[shape] = contest.hold(
            "least_squares", *shape, seconds=seconds, all_kernels=not quick
        )
        report.add(times(outcomes[shape], shape))
    report.add(goals(outcomes, cases))
    found = {
        work: {
            shape: contest.hold(work, *shape, seconds=seconds, all_kernels=False)
            for shape in tqdm(cases, work, leave=False)
        }
        for work in ("methods", "precisions")
    }
    report.add("The same problems by each method of quadric, native:")
    report.add(methods(found["methods"]))
    report.add(
        f"Both precisions, condition number {EASY:g}; backward errors for the data as rounded:"
    )
    report.add(precisions(found["precisions"]))


if __name__ == "__main__":
    common.run("lstsq", "sketch.lstsq", main)
