"""Leverage scores against QR, and projection DPPs against DPPy's exact sampler.

    python -m bench.sketch.bench_scores [--quick]

OpenBLAS's kernels are chosen in every way that this processor permits, and an opponent counts with
those that suit it best.
"""

from importlib.metadata import version

from tqdm.auto import tqdm

from bench import common
from bench.common import NUMBA_GOAL
from bench.sketch import contest
from bench.sketch.contest import Outcome
from bench.sketch.contestants import EASY, MODES

LEVERAGE_GOAL, DPP_GOAL = 3, 20  # times the opponent, at least
SINGLE_GOAL = 1.7  # float64 / float32, at least
QRS = ("numpy qr", "scipy qr", "geqrf, orgqr", "geqrf, A / R")


def leverage(outcome: Outcome, shape: tuple[int, int]) -> str:
    """Table of all that compute the scores."""
    native = outcome.own["native float64"].seconds
    kernels = list(outcome.entries)
    header = ["{} x {}".format(*shape), *(f"{name} s" for name in kernels), "threads", "/ native"]
    rows = []
    for name in outcome.own:
        entry = outcome.best(name)
        row = [name, *(f"{outcome.entries[k][name].seconds:.3g}" for k in kernels)]
        row += [str(entry.threads), f"{entry.seconds / native:.1f}", f"{entry.facts['error']:.0e}"]
        rows.append(row)
    return common.table([*header, "largest relative error"], rows)


def samples(outcome: Outcome, shape: tuple[int, int]) -> str:
    """Table of all samplers."""
    kernels = list(outcome.entries)
    header = ["{} x {}".format(*shape), *(f"{name} ms" for name in kernels), "threads"]
    rows = []
    for name in outcome.own:
        row = [name, *(f"{1e3 * outcome.entries[k][name].seconds:.4g}" for k in kernels)]
        rows.append([*row, str(outcome.best(name).threads)])
    return common.table(header, rows)


def goals(scores: Outcome, dpp: Outcome) -> str:
    header = ["work", "native ms", "fastest opponent", "ms", "/ native", "goal", "met"]
    header += ["numba / native", f"<= {NUMBA_GOAL}", "float64 / float32", "goal", "met"]
    rows = []

    def row(
        name: str, outcome: Outcome, kind: str, single: str, names: list[str], goal: float
    ) -> None:
        native, numba = (outcome.own[f"{b} {kind}"].seconds for b in ("native", "numba"))
        opponent = outcome.fastest(names)
        theirs = outcome.best(opponent).seconds
        cells = [name, f"{1e3 * native:.4g}", opponent, f"{1e3 * theirs:.4g}"]
        cells += common.faster(theirs, native, goal) + common.second_opinion(native, numba)
        rows.append(
            cells + common.faster(native, outcome.own[f"native {single}"].seconds, SINGLE_GOAL)
        )

    row("leverage scores", scores, "float64", "float32", list(QRS), LEVERAGE_GOAL)
    given = [name for name in dpp.own if name.endswith((", rows", ", columns"))]
    row("DPP, Q given", dpp, "Q", "Q float32", given, DPP_GOAL)
    row("DPP, any Phi", dpp, "Phi", "Phi float32", [f"QR, {mode}" for mode in MODES], DPP_GOAL)
    return common.table(header, rows)


def main(quick: bool, report: common.Report) -> None:
    seconds = 0.3 if quick else 3.0
    shapes = ((20_000, 20), (5000, 10)) if quick else ((1_000_000, 100), (100_000, 50))
    works = ("leverage", "dpp")
    scores, dpp = (
        contest.hold(work, *shape, seconds=seconds, all_kernels=not quick)
        for work, shape in zip(tqdm(works, "scores", leave=False), shapes, strict=True)
    )
    report.add(
        "Each set of OpenBLAS's kernels in a process of its own, the ones it chooses first; within "
        "it the rounds alternate; opponents at the better of 1 and "
        f"{common.THREADS} threads. / native: the opponent with the kernels that suit it best, "
        "over quadric with those that OpenBLAS chooses."
    )
    report.add(
        f"Leverage scores, condition number {EASY:g}, best of the rounds: all contestants but the "
        "approximate one are exact up to rounding. The QRs end with the squared norms of the rows "
        "of Q, or of A R^-1; geqrf and orgqr: LAPACK called directly, in place, A given by columns."
    )
    report.add(leverage(scores, shapes[0]))
    report.add(
        "One sample of the projection DPP of a matrix Phi of normal numbers, medians, because each "
        f"sample has a new seed. DPPy {version('dppy')}: proj_dpp_sampler_eig gets the orthonormal "
        f"Q of Phi, by rows and by columns, modes {' and '.join(MODES)}; QR: np.linalg.qr of Phi "
        "first. quadric gets the same Q, from which it does not know that it is orthonormal, or "
        "Phi; exact: its chain rule."
    )
    report.add(samples(dpp, shapes[1]))
    report.add(goals(scores, dpp))


if __name__ == "__main__":
    common.run("scores", "Leverage scores and projection DPPs", main)
