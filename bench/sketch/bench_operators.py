"""Sketching operators, the fused gradient and the Hadamard transform, in reads of the matrix.

    python -m bench.sketch.bench_operators [--quick]

The opponents here are bound by memory or have no BLAS in them, so OpenBLAS's choice of kernels
makes no difference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import scipy.fft
from scipy.linalg import hadamard
from threadpoolctl import ThreadpoolController
from tqdm.auto import tqdm

import quadric as qd
from bench import common
from bench.common import NUMBA_GOAL, Candidate, Stopwatch
from bench.sketch import problems, prototypes
from quadric.backends import available

DTYPES = ("float64", "float32")
SINGLE_GOAL = 1.7  # float64 / float32, at least
WIDTH = 8  # columns that the transforms of opponents take at a time; more is slower
CHUNK = 4096  # rows, likewise
BOTH = tuple({1, common.THREADS})

Work: TypeAlias = Callable[[], object]
Make: TypeAlias = Callable[..., Any]  # (m, n, backend=..., n_threads=...) to the operator
Opponent: TypeAlias = Callable[[int, np.ndarray], Work]  # (m, A) to S A of the same distribution


def csc(nnz: int) -> Opponent:
    """SciPy's product; the operator is there before the clock starts."""

    def opponent(m: int, A: np.ndarray) -> Work:
        S = prototypes.embedding(m, len(A), nnz, A.dtype.type)
        return lambda: S @ A

    return opponent


def cosines(pad: bool) -> Opponent:
    """Signs, the cosine transform and a sample of its rows; some columns at a time."""

    def opponent(m: int, A: np.ndarray) -> Work:
        rng = np.random.default_rng(0)
        N = 1 << (len(A) - 1).bit_length() if pad else len(A)
        signs = rng.choice(np.array([-1, 1], A.dtype), (len(A), 1))
        sample = rng.choice(N, m, replace=False)

        def run() -> np.ndarray:
            out = np.empty((m, A.shape[1]), A.dtype)
            for columns in _slices(A.shape[1], WIDTH):
                X = np.zeros((N, columns.stop - columns.start), A.dtype)
                np.multiply(A[:, columns], signs, out=X[: len(A)])
                Y = scipy.fft.dct(X, axis=0, workers=common.THREADS, overwrite_x=True)
                out[:, columns] = Y[sample]
            return out

        return run

    return opponent


def convolved(m: int, A: np.ndarray) -> Work:
    """Signs, multiplication by a circulant matrix through the FFT, and its first rows."""
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-1, 1], A.dtype), (len(A), 1))
    N = scipy.fft.next_fast_len(len(A), real=True)
    factor = scipy.fft.rfft(rng.standard_normal(N).astype(A.dtype))[:, None]

    def run() -> np.ndarray:
        out = np.empty((m, A.shape[1]), A.dtype)
        for columns in _slices(A.shape[1], WIDTH):
            X = scipy.fft.rfft(A[:, columns] * signs, N, axis=0, workers=common.THREADS)
            X *= factor
            Y = scipy.fft.irfft(X, N, axis=0, workers=common.THREADS, overwrite_x=True)
            out[:, columns] = Y[:m]
        return out

    return run


def drawn(draw: Callable[[np.random.Generator, int, np.ndarray], np.ndarray]) -> Opponent:
    """NumPy: some columns of S at a time, drawn and multiplied."""

    def opponent(m: int, A: np.ndarray) -> Work:
        rng = np.random.default_rng(0)

        def run() -> np.ndarray:
            out = np.zeros((m, A.shape[1]), A.dtype)
            for rows in _slices(len(A), CHUNK):
                out += draw(rng, m, A[rows]) @ A[rows]
            return out

        return run

    return opponent


def normals(rng: np.random.Generator, m: int, rows: np.ndarray) -> np.ndarray:
    return rng.standard_normal((m, len(rows)), rows.dtype.type)


def signs(rng: np.random.Generator, m: int, rows: np.ndarray) -> np.ndarray:
    bits = np.frombuffer(rng.bytes(m * len(rows) // 8 + 1), np.uint8)
    ones = np.unpackbits(bits, count=m * len(rows)).view(np.int8)
    return (2 * ones - 1).astype(rows.dtype).reshape(m, len(rows))


@dataclass(frozen=True)
class Case:
    """An operator with its opponents, the first of which is judged."""

    name: str
    m: int
    make: Make
    opponents: dict[str, Opponent]
    reads: float | None = None  # at most
    speed: float | None = None  # times the opponent, at least
    share: int = 1  # one part in so many of the rows


CASES = (
    Case("sparse sign", 2048, qd.sketch.sparse_sign, {"CSC @ A": csc(8)}, reads=2.5, speed=4),
    Case("CountSketch", 2048, qd.sketch.count_sketch, {"CSC @ A": csc(1)}, reads=1.3),
    Case(
        "SRHT",
        1024,
        qd.sketch.srht,
        {"padded DCT": cosines(pad=True), "DCT": cosines(pad=False)},
        reads=2.5,
        speed=15,
    ),
    Case("circulant", 1024, qd.sketch.circulant, {"FFT": convolved}),
    Case("Gaussian", 1024, qd.sketch.gaussian, {"NumPy": drawn(normals)}, share=8),
    Case("Rademacher", 1024, qd.sketch.rademacher, {"NumPy": drawn(signs)}, share=8),
)

HEADER = ["read ms", "native ms", "numba ms", "reads", "at most", "met"]
HEADER += ["numba / native", f"<= {NUMBA_GOAL}", "float64 / this", "goal", "met"]
HEADER += ["opponent", "ms", "/ native", "goal", "met"]


def compare(
    name: str,
    arrays: dict[str, np.ndarray],
    ours: Callable[[np.ndarray, str], Work],
    theirs: dict[str, Callable[[np.ndarray], Work]],
    *,
    seconds: float,
    threads: tuple[int, ...] = (common.THREADS,),
    reads: float | None = None,
    speed: float | None = None,
) -> list[list[str]]:
    """Rows of the table, by dtype and opponent; the first opponent is judged, in float64.

    `threads` are those of BLAS that the opponents try.
    """
    controller = ThreadpoolController()

    def limited(work: Work, count: int) -> Candidate:
        def candidate(watch: Stopwatch) -> None:
            with controller.limit(limits=count, user_api="blas"):
                watch.skip()
                work()
                watch.lap("total")

        return candidate

    candidates: dict[str, Candidate] = {}
    for dtype, A in arrays.items():
        candidates[f"read {dtype}"] = common.read(A)
        for backend in available():
            candidates[f"{backend} {dtype}"] = common.timed(ours(A, backend))
        for opponent, function in theirs.items():
            work = function(A)
            candidates |= {f"{opponent} {dtype} {t}": limited(work, t) for t in threads}
    timings = common.alternate(candidates, seconds=seconds, rounds=(2, 20))
    times = {key: timing.best for key, timing in timings.items()}
    rows = []
    for dtype in arrays:
        once, native, numba = (times[f"{who} {dtype}"] for who in ("read", "native", "numba"))
        row = [f"{name}, {dtype}", *(f"{1e3 * t:.4g}" for t in (once, native, numba))]
        row += [f"{native / once:.2f}"]
        double = dtype == "float64"
        judged = double and reads is not None
        row += [f"{reads:g}", common.verdict(native <= reads * once)] if judged else ["", ""]
        row += common.second_opinion(native, numba)
        row += [""] * 3 if double else common.faster(times["native float64"], native, SINGLE_GOAL)
        for k, opponent in enumerate(theirs):
            best = min(times[f"{opponent} {dtype} {t}"] for t in threads)
            cells = [opponent, f"{1e3 * best:.4g}"]
            cells += common.faster(best, native, speed if k == 0 and double else None)
            rows.append((row if k == 0 else [row[0], *[""] * (len(row) - 1)]) + cells)
    return rows


def sketched(case: Case, arrays: dict[str, np.ndarray], seconds: float) -> list[list[str]]:
    def ours(A: np.ndarray, backend: str) -> Work:
        S = case.make(case.m, len(A), backend=backend, n_threads=common.THREADS)
        return lambda: S @ A

    some = {dtype: A[: len(A) // case.share] for dtype, A in arrays.items()}
    theirs = {name: partial(opponent, case.m) for name, opponent in case.opponents.items()}
    n = len(some["float64"])
    name = f"{case.name}, m = {case.m}, n = {n}"
    return compare(name, some, ours, theirs, seconds=seconds, reads=case.reads, speed=case.speed)


def gradients(arrays: dict[str, np.ndarray], seconds: float) -> list[list[str]]:
    """A^T (b - A x): once through A, or twice."""
    rng = np.random.default_rng(0)
    n, d = arrays["float64"].shape
    x, b = rng.standard_normal(d), rng.standard_normal(n)

    def ours(A: np.ndarray, backend: str) -> Work:
        y, c = x.astype(A.dtype), b.astype(A.dtype)
        options = {"backend": backend, "n_threads": common.THREADS}
        return lambda: qd.sketch.residual_gradient(A, y, c, **options)

    def theirs(A: np.ndarray, *, scipy: bool) -> Work:
        y, c = x.astype(A.dtype), b.astype(A.dtype)
        if scipy:
            return lambda: prototypes.adjoint(A, c - prototypes.times(A, y))
        return lambda: A.T @ (c - A @ y)

    opponents = {
        f"{name} gemv": partial(theirs, scipy=name == "SciPy") for name in ("NumPy", "SciPy")
    }
    return compare(
        f"gradient, {n} x {d}", arrays, ours, opponents, seconds=seconds, threads=BOTH, reads=1.2
    )


def transforms(arrays: dict[str, np.ndarray], seconds: float) -> list[list[str]]:
    """Hadamard transforms of columns, into new memory."""

    def ours(A: np.ndarray, backend: str) -> Work:
        options = {"backend": backend, "n_threads": common.THREADS}
        return lambda: qd.sketch.fwht(A, axis=0, **options)

    def levels(A: np.ndarray, *, count: int) -> Work:
        """Products with `count` Hadamard matrices of about equal size."""
        bits = len(A).bit_length() - 1
        cuts = [bits * k // count for k in range(count + 1)]
        sizes = [2 ** (b - a) for a, b in pairwise(cuts)]
        factors = [hadamard(size, dtype=A.dtype) for size in sizes]

        def run() -> np.ndarray:
            X, before = A, 1
            for H, size in zip(factors, sizes, strict=True):
                X = H @ X.reshape(before, size, -1)
                before *= size
            return X.reshape(A.shape)

        return run

    def butterflies(A: np.ndarray) -> Work:
        def run() -> np.ndarray:
            X, Y, h = A, np.empty_like(A), 1
            spare = np.empty_like(A)
            while h < len(A):
                pairs, sums = (Z.reshape(-1, 2, h, A.shape[1]) for Z in (X, Y))
                np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
                np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
                X, Y = Y, spare if X is A else X
                h *= 2
            return X

        return run

    opponents: dict[str, Callable[[np.ndarray], Work]] = {
        "NumPy, two levels": partial(levels, count=2),
        "NumPy, four levels": partial(levels, count=4),
        "NumPy, butterflies": butterflies,
    }
    n, d = arrays["float64"].shape
    return compare(f"FWHT, {n} x {d}", arrays, ours, opponents, seconds=seconds, threads=BOTH)


def main(quick: bool, report: common.Report) -> None:
    n, d = (40_000, 32) if quick else (1_000_000, 256)
    seconds = 0.3 if quick else 3.0
    double = problems.normal(n, d)
    arrays = {"float64": double, "float32": double.astype(np.float32)}

    def part(rows: int, columns: int) -> dict[str, np.ndarray]:
        return {
            k: A.reshape(-1)[: rows * columns].reshape(rows, columns) for k, A in arrays.items()
        }

    report.add(
        f"A with {d} columns of normal numbers, row-major, {common.THREADS} threads. Best of the "
        "rounds, alternating in one process. read: the product of A with itself by BLAS, on all "
        "threads; reads: time of native over that. CSC @ A: SciPy's product, one thread; making "
        "its S is not counted, quadric makes its own on the way. DCT: signs, scipy.fft.dct on all "
        f"threads, {WIDTH} columns at a time, and a sample of its rows; padded to a power of two, "
        "as the Hadamard transform needs it, or not. FFT: the same with a circulant matrix. NumPy "
        f"for dense S: draws {CHUNK} columns at a time and multiplies."
    )
    rows = [
        row
        for case in tqdm(CASES, "operators", leave=False)
        for row in sketched(case, arrays, seconds)
    ]
    report.add(common.table(["S A", *HEADER], rows))
    rows = gradients(part(10_000, 50) if quick else part(200_000, 200), seconds)
    rows += transforms(part(2**12, 16) if quick else part(2**20, 16), seconds)
    report.add(
        "gradient: A^T (b - A x) and the residual, against one product with A and one with A^T. "
        "FWHT: along the columns, natural order, against products with Hadamard matrices (their "
        "Kronecker product is the transform) and against additions and subtractions of halves. "
        f"Opponents at the better of 1 and {common.THREADS} threads of BLAS."
    )
    report.add(common.table(["passes", *HEADER], rows))


def _slices(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


if __name__ == "__main__":
    common.run("operators", "Sketching operators", main)
