"""Least squares of a Dask array."""

import warnings
from typing import Any, Literal, NoReturn, TypeAlias

import dask.array as da
import numpy as np

from quadric import checks, threads
from quadric import sketch as family
from quadric.adapters.dask.chunks import ChunkedRows, beside, blame, chunked, total
from quadric.adapters.dask.passes import reduce_residual, residual_gradient
from quadric.errors import ConvergenceWarning
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import cost_model, refine
from quadric.sketch.karlson_walden import Estimate
from quadric.sketch.lstsq_factor import Factor, factorize, redrawn
from quadric.sketch.lstsq_factor import sketch as stacked
from quadric.sketch.lstsq_passes import Passes
from quadric.sketch.lstsq_problem import Problem
from quadric.sketch.lstsq_results import LstsqResult
from quadric.sketch.lstsq_solve import exact_factor
from quadric.sketch.rows import Rows

Method: TypeAlias = Literal["auto", "gram", "spir"]


def lstsq(
    A: da.Array,
    b: Any,
    *,
    method: Method = "auto",
    ridge: float = 0.0,
    tol: float | None = None,
    max_iter: int | None = None,
    sketch_size: int | None = None,
    minimum_norm: bool = False,
    rcond: float | None = None,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> LstsqResult:
    """Minimize ``|b - A x|^2 + ridge |x|^2`` for a tall Dask array A, from a sketch of it.

    The same algorithms as :func:`quadric.sketch.lstsq`, backward stable, with the passes over A on
    the workers and all that is d x d here.

    Parameters
    ----------
    A : dask.array.Array, shape (n, d), float32 or float64
        Cut into chunks of whole rows, n at least d. It is read about five times: where it does not
        come from memory, persist it first if the cluster has room.
    b : dask.array.Array or array, shape (n,) or (n, k)
        One right-hand side or k of them, of the dtype of A.
    method : {"auto", "gram", "spir"}, optional
        As in :func:`quadric.sketch.lstsq`. "auto" is "gram", which has the fewest passes.
    ridge, tol, max_iter, minimum_norm, rcond, seed : optional
        As in :func:`quadric.sketch.lstsq`.
    sketch_size : int, optional
        Rows of the sketch, between d and n.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        Threads on a worker; None follows its environment.

    Returns
    -------
    LstsqResult
        All is computed but `residual`, which is a Dask array cut like A.

    Warns
    -----
    numpy.exceptions.RankWarning
        If A is numerically rank-deficient and `minimum_norm` was not asked for.
    ConvergenceWarning
        If the backward error did not become what was asked for. The result is the best found.

    Raises
    ------
    ValueError
        If A is cut between columns, has unknown chunks or fewer rows than columns, a shape does not
        fit, an entry is not finite, or a number is out of range.
    TypeError
        If A is no Dask array, or a dtype does not fit.
    LinAlgError
        If a sketch of the size that was asked for loses a direction of A.

    See Also
    --------
    quadric.sketch.lstsq : the same of an array.

    Notes
    -----
    A sparse sign sketch is one pass, and its QR factor R preconditions. With "gram" a second pass
    makes R a factor of A itself, to working precision; then each pass is a correction of x from a
    residual computed anew, and two do. The chunks of a worker that is lost are computed again by
    Dask, to the same bits.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import quadric.adapters.dask as qdask
    >>> rng = np.random.default_rng(0)
    >>> A = rng.standard_normal((5000, 3)) @ np.diag([1.0, 1e-4, 1e-8])
    >>> b = A @ [1.0, 2.0, 3.0] + rng.standard_normal(5000)
    >>> result = qdask.lstsq(da.from_array(A, chunks=(1000, 3)), b)
    >>> result.converged, result.rank, result.backward_error < 1e-15
    (True, 3, True)
    """
    rows = chunked(A, "A", backend, n_threads)
    n, d = rows.shape
    if n < d:
        raise ValueError(f"A must have at least as many rows as columns, got shape {A.shape}")
    side = beside(b, "b", rows)
    vector = side.ndim == 1
    side = side.reshape(n, -1) if vector else side
    if not side.size:
        raise ValueError(f"b must have shape ({n},) or ({n}, k), got {b.shape}")
    checks.choice(method, "method", ("auto", "gram", "spir"))
    method = "gram" if method == "auto" else method
    tol = None if tol is None else checks.positive(tol, "tol")
    max_iter = 500 if max_iter is None else checks.integer(max_iter, "max_iter", low=1)
    rcond = None if rcond is None else checks.real(rcond, "rcond", low=0.0, high=1.0)
    seed = resolve_seed(seed)
    m = cost_model.rows(d, method)
    if sketch_size is not None:
        m = checks.integer(sketch_size, "sketch_size", low=d, high=n)
    passes = ChunkedPasses(rows, checks.real(ridge, "ridge", low=0.0))
    b_norms = np.empty(side.shape[1])

    def draw(attempt: int) -> Factor:
        size = m << attempt if sketch_size is None else m
        nnz = 4 if method == "gram" and not attempt else 8
        return _factor(passes, side, b_norms, size, nnz, rcond, (seed + attempt) % 2**64)

    with threads.blas_limit(1):
        factor = redrawn(passes, draw, rcond)
        x = factor.apply(factor.start)
        exact = exact_factor(passes, factor) if method == "gram" and not factor.truncated else None
        method, factor = ("spir", factor) if exact is None else ("gram", exact)
        problem = Problem(passes, side, b_norms, factor, tol=tol, max_iter=max_iter)
        inner = refine.conjugate_gradients if exact is None else refine.newton
        point = refine.refine(problem, problem.visit(x, "sketch"), inner, method)
        if exact is not None and not (point.error <= problem.accepted).all():
            point = refine.refine(problem, point, refine.conjugate_gradients, "spir")
        if factor.truncated and minimum_norm:
            null = factor.null_space()
            point = problem.visit(point.x - null @ (null.T @ point.x), method)
        error = Estimate(factor, b_norms).at(point.g, point.norms, point.x)
    converged = bool((point.error <= problem.accepted).all())
    if not converged:
        warnings.warn(
            f"lstsq has not converged: after {problem.iterations} iterations the backward error is "
            f"{point.error.max():.3g}, above {problem.accepted:.3g}; raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=2,
        )
    if factor.rank < d and not minimum_norm:
        warnings.warn(
            f"A has numerical rank {factor.rank}, below its {d} columns: many x are as good as the "
            "one returned; minimum_norm=True asks for the shortest one, ridge makes it unique",
            np.exceptions.RankWarning,
            stacklevel=2,
        )
    norms = np.sqrt(np.maximum(point.norms**2 - passes.ridge * np.sum(point.x**2, axis=0), 0.0))
    x = point.x.astype(rows.dtype)
    x = x[:, 0] if vector else x
    residual = residual_gradient(A, x, b, backend=backend, n_threads=n_threads).residual
    return LstsqResult(
        x=x,
        residual=residual,
        residual_norm=float(norms[0]) if vector else norms,
        iterations=problem.iterations,
        passes=passes.count,
        method=method,
        rank=factor.rank,
        condition=factor.condition,
        backward_error=float(error[0]) if vector else error,
        converged=converged,
        history=problem.history(),
        R=factor.R,
    )


class ChunkedPasses(Passes):
    """The reads of a Dask array that a solver makes; residuals stay on the workers."""

    def __init__(self, rows: ChunkedRows, ridge: float) -> None:
        super().__init__(rows.a, ridge, rows.backend, rows.n_threads)
        self.rows = rows

    def empty(self, k: int) -> np.ndarray:
        return np.empty((0, k), self.dtype)

    def gram(self, inverse: np.ndarray) -> np.ndarray:
        self.count += 1
        found = self.rows.preconditioned_gram(inverse)
        return found + self.ridge * (inverse.T @ inverse) if self.ridge else found

    def refuse(self, b: Any) -> NoReturn:
        raise ValueError(f"A must have columns, and with b a solution, that {self.dtype} can hold")

    def _run(
        self, x: np.ndarray, b: Any, r: np.ndarray | None, gradient: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        self.count += 1
        x = np.ascontiguousarray(x, self.dtype)
        g, squares = total(self.rows.each(_sums, x, b=b)).compute()
        return g, squares


def _factor(
    passes: ChunkedPasses,
    b: da.Array,
    b_norms: np.ndarray,
    m: int,
    nnz: int,
    rcond: float | None,
    seed: int,
) -> Factor:
    """Return the factor of the sketch and write the norms of the columns of b, from one pass."""
    passes.count += 1
    m = -(-m // nnz) * nnz
    if m < passes.n:
        S = family.sparse_sign(m, passes.n, nnz=nnz, seed=seed, backend=passes.backend)
        SA, Sb, squares = total(passes.rows.each(_sketch_both, S, b=b)).compute()
    else:
        SA, Sb = da.compute(passes.A, b)
        for given, name in ((SA, "A"), (Sb, "b")):
            blame(given, 0, name)
        squares = np.einsum("ij,ij->j", Sb, Sb, dtype=np.float64)
    factor = factorize(*stacked(SA, Sb, None, passes.ridge), rcond)
    if factor is None:
        passes.refuse(b)
    factor.distortion = float(np.sqrt(max(factor.rank, 1) / m)) if m < passes.n else 0.0
    np.sqrt(squares, out=b_norms)
    return factor


def _sketch_both(
    rows: Rows, first: int, S: family.SketchingOperator, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    blame(b, first, "b")
    part = S[:, first : first + rows.shape[0]]
    squares = np.einsum("ij,ij->j", b, b, dtype=np.float64)
    return part @ rows.a, part @ np.ascontiguousarray(b), squares


def _sums(
    rows: Rows, first: int, x: np.ndarray, b: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    g, squares, _ = reduce_residual(rows, first, x, b)
    return g, squares
