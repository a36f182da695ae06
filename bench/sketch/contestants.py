"""Who takes part in the contests: least squares, leverage scores, projection DPPs."""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as la
from dppy.exact_sampling import proj_dpp_sampler_eig
from scipy.linalg import lapack
from sklearn.linear_model import LinearRegression

import quadric as qd
from bench import common
from bench.common import Stopwatch
from bench.sketch import problems, prototypes
from bench.sketch.contest import Contestant, Field
from quadric.backends import available

METHODS = ("precondition", "iterative", "spir", "fossils", "gram")
MODES = ("GS", "GS_bis")  # of DPPy; its third one takes four times as long
DTYPES = (np.float64, np.float32)
HARD, EASY = 1e8, 1e3  # condition numbers; the second one leaves float32 half its digits


class Solution(NamedTuple):
    """Of a least-squares problem, and how it was found."""

    x: np.ndarray
    note: str = ""


def least_squares(n: int, d: int) -> Field:
    """`lstsq` as it is called first, the drivers of LAPACK, and the prototypes."""
    problem = problems.least_squares(n, d, HARD)
    A, b = problem.A, problem.b
    scipy_lstsq = partial(la.lstsq, A, b, check_finite=False)
    eps = float(np.finfo(np.float64).eps)
    # Its own tolerance would cut off the small singular values; nothing is centred, so A stays.
    model = LinearRegression(fit_intercept=False, copy_X=False, tol=eps)
    scratch = np.empty(A.size)
    theirs: dict[str, Contestant] = {
        "numpy lstsq": lambda watch: Solution(np.linalg.lstsq(A, b, rcond=None)[0]),
        "scipy gelsd": lambda watch: Solution(scipy_lstsq(lapack_driver="gelsd")[0]),
        "scipy gelsy": lambda watch: Solution(scipy_lstsq(lapack_driver="gelsy")[0]),
        "gels, columns": _gels(A, b, scratch, columns=True),
        "gels, rows": _gels(A, b, scratch, columns=False),
        "LinearRegression": lambda watch: Solution(model.fit(A, b).coef_),
    }
    theirs |= {
        f"prototype {name}": _counted(getattr(prototypes, name), problem)
        for name in ("lsqr", "momentum", "spir", "fossils")
    }
    ours = {backend: _lstsq(problem, backend=backend) for backend in available()}
    return Field(ours, theirs, partial(_errors, problem))


def methods(n: int, d: int) -> Field:
    """Each method of `lstsq`."""
    problem = problems.least_squares(n, d, HARD)
    ours = {method: _lstsq(problem, method=method) for method in METHODS}
    return Field(ours, judge=partial(_errors, problem))


def precisions(n: int, d: int) -> Field:
    """`lstsq` in both precisions, of a problem that suits both."""
    double = problems.least_squares(n, d, EASY)
    single = double.astype(np.float32)
    ours = {
        f"{backend} {problem.A.dtype}": _lstsq(problem, backend=backend)
        for problem in (double, single)
        for backend in available()
    }
    theirs = {"gels float32": _gels(single.A, single.b, np.empty_like(single.A), columns=True)}

    def judge(found: Solution) -> dict[str, Any]:
        return _errors(single if found.x.dtype == np.float32 else double, found)

    return Field(ours, theirs, judge)


def leverage(n: int, d: int) -> Field:
    """Leverage scores: quadric's, and the squared rows of Q."""
    double = problems.least_squares(n, d, EASY).A
    arrays = {np.dtype(dtype).name: double.astype(dtype, copy=False) for dtype in DTYPES}
    ours: dict[str, Contestant] = {
        f"{backend} {dtype}": _plain(
            partial(qd.sketch.leverage_scores, A, backend=backend, n_threads=common.THREADS)
        )
        for dtype, A in arrays.items()
        for backend in available()
    }
    ours["native approximate"] = _plain(
        partial(qd.sketch.leverage_scores, double, approximate=True)
    )
    theirs = {
        "numpy qr": _plain(lambda: _squares(np.linalg.qr(double)[0])),
        "scipy qr": _plain(lambda: _squares(la.qr(double, mode="economic", check_finite=False)[0])),
        "geqrf, orgqr": _triangular(double, form_q=True),
        "geqrf, A / R": _triangular(double, form_q=False),
    }
    exact = _squares(np.linalg.qr(double)[0])

    def judge(scores: np.ndarray) -> dict[str, Any]:
        return {"error": float(np.max(np.abs(scores - exact) / exact))}

    return Field(ours, theirs, judge)


def dpp(n: int, d: int) -> Field:
    """Samples of a projection DPP, each contestant with a new seed each time."""
    Phi = problems.normal(n, d)
    Q = np.linalg.qr(Phi)[0]
    ours: dict[str, Contestant] = {}
    for backend in available():
        ours |= {
            f"{backend} Q": _sample(Q, backend),
            f"{backend} Q float32": _sample(Q.astype(np.float32), backend),
            f"{backend} Phi": _sample(Phi, backend),
            f"{backend} Phi float32": _sample(Phi.astype(np.float32), backend),
        }
    ours["native exact"] = _sample(Q, None, method="exact")
    theirs: dict[str, Contestant] = {}
    for mode in MODES:
        for layout, V in {"rows": Q, "columns": np.asfortranarray(Q)}.items():
            theirs[f"{mode}, {layout}"] = _seeded(partial(_dppy, V, mode))
        theirs[f"QR, {mode}"] = _seeded(
            lambda seed, mode=mode: _dppy(np.linalg.qr(Phi)[0], mode, seed)
        )
    return Field(ours, theirs, summary="median")


WORKS: dict[str, Callable[[int, int], Field]] = {
    "least_squares": least_squares,
    "methods": methods,
    "precisions": precisions,
    "leverage": leverage,
    "dpp": dpp,
}


def _plain(function: Callable[[], Any]) -> Contestant:
    return lambda watch: function()


def _seeded(function: Callable[[int], Any]) -> Contestant:
    """A new seed in each call: how long rejection takes depends on it."""
    seeds = count()
    return lambda watch: function(next(seeds))


def _counted(
    solver: Callable[..., prototypes.Answer], problem: problems.LeastSquares
) -> Contestant:
    def run(watch: Stopwatch) -> Solution:
        x, reads = solver(problem.A, problem.b)
        return Solution(x, f"{reads} reads")

    return run


def _lstsq(problem: problems.LeastSquares, **options: Any) -> Contestant:
    def run(watch: Stopwatch) -> Solution:
        found = qd.sketch.lstsq(problem.A, problem.b, n_threads=common.THREADS, **options)
        return Solution(found.x, f"{found.method}, {found.iterations} iterations")

    return run


def _gels(A: np.ndarray, b: np.ndarray, scratch: np.ndarray, *, columns: bool) -> Contestant:
    """LAPACK's driver in place with its best workspace; A is in `scratch` before the clock starts.

    Rows that are contiguous are the columns of A^T, whose transposed problem is the same.
    """
    n, d = A.shape
    gels, gels_lwork = lapack.get_lapack_funcs(("gels", "gels_lwork"), (A,))
    trans = "N" if columns else "T"
    shape = (n, d) if columns else (d, n)
    size = int(gels_lwork(*shape, 1, trans=trans)[0].real)
    matrix = scratch.reshape(-1).reshape(shape, order="F")

    def run(watch: Stopwatch) -> Solution:
        matrix[...] = A if columns else A.T
        watch.skip()
        x = gels(matrix, b, trans=trans, lwork=size, overwrite_a=True)[1]
        return Solution(x[:d])

    return run


def _errors(problem: problems.LeastSquares, found: Solution) -> dict[str, Any]:
    x, note = found
    backward, forward = problem.backward_error(x), problem.forward_error(x)
    return {"backward": backward, "forward": forward, "note": note}


def _squares(X: np.ndarray) -> np.ndarray:
    y: np.ndarray = np.einsum("ij,ij->i", X, X)
    return y


def _triangular(A: np.ndarray, *, form_q: bool) -> Contestant:
    """LAPACK's QR in place, columns contiguous before the clock starts; rows of Q or of A R^-1."""
    n, d = A.shape
    scratch = np.empty(A.shape, A.dtype, order="F")
    size = int(lapack.dgeqrf_lwork(n, d)[0])

    def run(watch: Stopwatch) -> np.ndarray:
        scratch[...] = A
        watch.skip()
        qr, tau, _, _ = lapack.dgeqrf(scratch, lwork=size, overwrite_a=True)
        if form_q:
            return _squares(lapack.dorgqr(qr, tau, lwork=size, overwrite_a=True)[0])
        return _squares(la.blas.dtrsm(1.0, qr[:d], A.T, trans_a=1).T)

    return run


def _sample(Phi: np.ndarray, backend: str | None, **options: Any) -> Contestant:
    options |= {"backend": backend, "n_threads": common.THREADS}
    return _seeded(lambda seed: qd.sketch.projection_dpp(Phi, seed=seed, **options))


def _dppy(V: np.ndarray, mode: str, seed: int) -> list[int]:
    sample: list[int] = proj_dpp_sampler_eig(V, mode, random_state=seed)
    return sample
