"""From checked arguments to the result: sketch, factor, solve."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from quadric import arrays, checks, threads
from quadric.arrays import Data
from quadric.device import DeviceArray
from quadric.errors import ConvergenceWarning
from quadric.sketch import cost_model, krylov, lstsq_on_gpu, refine, scaling
from quadric.sketch.karlson_walden import Estimate
from quadric.sketch.lstsq_factor import (
    Factor,
    default_rcond,
    factorize,
    of_triangle,
    redrawn,
    sketch,
    truncate,
    unscale,
)
from quadric.sketch.lstsq_passes import Passes, is_sparse
from quadric.sketch.lstsq_problem import Point, Problem
from quadric.sketch.lstsq_results import LstsqResult
from quadric.sketch.operator import SketchingOperator
from quadric.sketch.underdetermined import LeastNorm

DENSE = ("srht", "circulant", "gaussian", "rademacher")
OPERATORS = ("sparse_sign", "count_sketch", *DENSE)

_ROUGH = 1e-3  # reciprocal condition of (A R^-1)^T (A R^-1) at which the sketch was unlucky


@dataclass(frozen=True, slots=True)
class Options:
    """The checked options of a solve; their meaning is that of `lstsq`."""

    method: str
    tol: float | None
    max_iter: int
    sketch_size: int | None
    nnz: int | None
    operator: str | SketchingOperator
    linf: bool
    eps: float
    minimum_norm: bool
    rcond: float | None
    seed: int
    progress: Callable[[int, float, float], None] | None

    @property
    def plain(self) -> bool:
        """Whether the sketch is ours to choose."""
        return self.sketch_size is None and self.operator == "sparse_sign"


def solve(passes: Passes, b: Data, options: Options) -> LstsqResult:
    """Solve for b of shape (n, k), C-contiguous; x and the residual of the result are matrices."""
    if isinstance(b, DeviceArray):
        # Nobody looks at b before the solution is there: most are of moderate size.
        result, again = _on_gpu(passes, b, options)
        if result is not None:
            return result
        b, b_norms, exponents = _sides_on_gpu(b)
        if again and (result := _on_gpu(passes, b, options)[0]) is not None:
            return _scaled_back(result, exponents, passes)
    else:
        b, exponents = scaling.moderate(b)
        b_norms = scaling.sums_norms(b)
    if passes.n < passes.d:
        result, text = _wide(passes, b, b_norms, options)
    else:
        result, text = _tall(passes, b, b_norms, options)
    if text:
        warnings.warn(text, ConvergenceWarning, stacklevel=3)
    if result.rank < min(passes.n, passes.d) and not options.minimum_norm and passes.n >= passes.d:
        warnings.warn(
            f"A has numerical rank {result.rank}, below its {passes.d} columns: many x are as good "
            "as the one returned; minimum_norm=True asks for the shortest one, ridge makes it "
            "unique",
            np.exceptions.RankWarning,
            stacklevel=3,
        )
    return _scaled_back(result, exponents, passes)


def make_operator(
    name: str, m: int, n: int, nnz: int, seed: int, passes: Passes
) -> SketchingOperator:
    """Return the operator of that name."""
    from quadric import sketch as family

    words: dict[str, Any] = {"seed": seed, "backend": passes.backend, "n_threads": passes.workers}
    if name == "sparse_sign":
        words["nnz"] = nnz
    operator: SketchingOperator = getattr(family, name)(m, n, **words)
    return operator


def _on_gpu(passes: Passes, b: DeviceArray, options: Options) -> tuple[LstsqResult | None, bool]:
    """Return the solution by the Gram route on the GPU, or None and whether b is to blame."""
    if passes.n < passes.d or options.rcond is not None:
        return None, False
    method, operator = _plan(passes, b.shape[1], options)
    if method not in ("gram", "direct"):
        return None, False
    task = lstsq_on_gpu.Task(passes, b, options.tol, options.max_iter, options.progress)
    return task.run(operator, method), not task.moderate


def _sides_on_gpu(b: DeviceArray) -> tuple[DeviceArray, np.ndarray, np.ndarray]:
    """Return moderate right-hand sides, their norms and exponents; norms tell what is moderate."""
    norms = scaling.sums_norms(b)
    exponents = np.zeros(len(norms), np.int64)
    if scaling.extreme(norms, b.dtype).any():
        checks.finite(b, "b")
        b, exponents = scaling.moderate(b)
        norms = scaling.sums_norms(b)
    return b, norms, exponents


def _tall(
    passes: Passes, b: Data, b_norms: np.ndarray, options: Options
) -> tuple[LstsqResult, str]:
    method, operator = _plan(passes, b.shape[1], options)
    factor = _factor(passes, b, operator, options)
    x = factor.apply(factor.start)
    R = factor.R
    if method == "gram":
        exact = None if factor.truncated else exact_factor(passes, factor)
        if exact is None:
            method = "spir"
        else:
            factor, R = exact, exact.R
    problem = Problem(
        passes,
        b,
        b_norms,
        factor,
        tol=options.tol,
        max_iter=options.max_iter,
        progress=options.progress,
    )
    with threads.blas_limit(1):
        point = problem.visit(x, "sketch")
        point, converged = _iterate(problem, point, method)
        if factor.truncated and options.minimum_norm:
            null = factor.null_space()
            point = problem.visit(point.x - null @ (null.T @ point.x), method)
        error = Estimate(factor, b_norms).at(point.g, point.norms, point.x)
    text = ""
    if not converged:
        text = (
            f"lstsq has not converged: after {problem.iterations} iterations the backward error is "
            f"{point.error.max():.3g}, above {problem.accepted:.3g}; raise max_iter, tol or "
            "sketch_size"
        )
    result = LstsqResult(
        x=point.x.astype(passes.dtype),
        residual=problem.r,
        residual_norm=scaling.sums_norms(problem.r),
        iterations=problem.iterations,
        passes=passes.count,
        method=method,
        rank=factor.rank,
        condition=factor.condition,
        backward_error=error,
        converged=converged,
        history=problem.history(),
        R=R,
    )
    return result, text


def _iterate(problem: Problem, point: Point, method: str) -> tuple[Point, bool]:
    """Improve the solution of the sketched problem; return whether it is as good as was asked."""
    if method == "sketch":
        return point, problem.to_rounding or bool((point.error <= problem.accepted).all())
    if method in ("precondition", "iterative"):
        solver = krylov.lsqr if method == "precondition" else krylov.momentum
        point, settled = solver(problem, point)
        settled &= problem.to_rounding  # to the level of rounding, which need not be an asked tol
        return point, settled or bool((point.error <= problem.accepted).all())
    inner = {"spir": refine.conjugate_gradients, "fossils": refine.heavy_ball}
    point = refine.refine(problem, point, inner.get(method, refine.newton), method)
    if method != "spir" and not (point.error <= problem.accepted).all():
        # Conjugate gradients need no guess of how good the preconditioner is.
        point = refine.refine(problem, point, refine.conjugate_gradients, "spir")
    return point, bool((point.error <= problem.accepted).all())


def _plan(passes: Passes, k: int, options: Options) -> tuple[str, SketchingOperator | None]:
    """Return the method, and the operator or None to factor A itself."""
    n, d = passes.n, passes.d
    method = options.method
    if options.linf:
        method = "sketch"
    elif method == "auto":
        if options.plain and cost_model.direct(n, d):
            return "direct", None
        if isinstance(passes.A, DeviceArray):
            method = "gram"  # products are that much faster there than reads
        else:
            method = "spir" if is_sparse(passes.A) else cost_model.fastest(n, d, k)
    return method, _operator(passes, k, method, options)


def _operator(passes: Passes, k: int, method: str, options: Options) -> SketchingOperator | None:
    n, d = passes.n, passes.d
    if isinstance(options.operator, SketchingOperator):
        if options.operator.n != n or not d <= options.operator.m:
            raise ValueError(
                f"operator must have {n} columns and at least {d} rows, got shape "
                f"{options.operator.shape}"
            )
        return options.operator
    on_gpu = isinstance(passes.A, DeviceArray)
    if on_gpu and method == "gram" and options.plain and options.nnz is None:
        # Accumulators in registers: faster there than sparse signs, whose lists branch.
        return _sized("srht", cost_model.rows_on_gpu(d), 1, options.seed, passes)
    m = options.sketch_size
    if m is None and options.linf:
        m = cost_model.rows_for_coordinates(d, k, options.eps)
    elif m is None:
        m = cost_model.rows(d, method)
    elif not d <= m <= n:
        raise ValueError(
            f"sketch_size must be between {d} and {n} for A of shape {(n, d)}, got {m}"
        )
    nnz = options.nnz or cost_model.signs(d, method)
    return _sized(options.operator, m, nnz, options.seed, passes)


def _sized(name: str, m: int, nnz: int, seed: int, passes: Passes) -> SketchingOperator | None:
    """Return the operator of at least m rows, or None if A has no more."""
    if name == "sparse_sign":
        m = -(-m // nnz) * nnz
    return None if m >= passes.n else make_operator(name, m, passes.n, nnz, seed, passes)


def _factor(
    passes: Passes, b: Data, operator: SketchingOperator | None, options: Options
) -> Factor:
    """Return the factor of a sketch that has lost no direction of A, by this operator or others."""
    name = options.operator

    def draw(attempt: int) -> Factor:
        S = operator
        if attempt and S is not None and isinstance(name, str):
            m = S.m if options.sketch_size else S.m << attempt
            seed = (options.seed + attempt) % 2**64
            S = _sized(name, m, max(options.nnz or 8, 8), seed, passes)
        return _factor_once(passes, b, S, options)

    return redrawn(passes, draw, options.rcond, 3 if isinstance(name, str) else 1)


def _factor_once(
    passes: Passes, b: Data, operator: SketchingOperator | None, options: Options
) -> Factor:
    passes.count += 1
    with threads.blas_limit(1):
        top, side = sketch(passes.A, b, operator, passes.ridge)
    m = len(top)
    with threads.blas_limit(cost_model.factor_threads(passes.d, passes.workers)):
        factor = factorize(top, side, options.rcond)
    if factor is None:
        passes.refuse(b)
    factor.distortion = 0.0 if operator is None else float(np.sqrt(max(factor.rank, 1) / m))
    return factor


def exact_factor(passes: Passes, factor: Factor) -> Factor | None:
    """Return the factor of A itself, ``C R`` with ``C^T C = (A R^-1)^T (A R^-1)``.

    The condition of ``A R^-1`` is small, so C has the accuracy of a QR factorization. None if it is
    not small after all.
    """
    with threads.blas_limit(cost_model.factor_threads(passes.d, passes.workers)):
        inverse, info = lapack.dtrtri(factor.R)
    if info or not np.isfinite(inverse).all():
        return None
    with threads.blas_limit(1):
        G = passes.gram(inverse)
    if not np.isfinite(G).all():
        passes.refuse(None)
    with threads.blas_limit(cost_model.factor_threads(passes.d, passes.workers)):
        C, info = lapack.dpotrf(G.T, clean=1, overwrite_a=1)
        if info or lapack.dtrcon(C)[0] ** 2 < _ROUGH / len(C):
            return None
        return of_triangle(blas.dtrmm(1.0, C, factor.R), factor.start)


def _wide(
    passes: Passes, b: Data, b_norms: np.ndarray, options: Options
) -> tuple[LstsqResult, str]:
    n, d = passes.n, passes.d
    if options.method not in ("auto", "spir") or options.linf:
        what = "guarantee must be None" if options.linf else "method must be 'auto' or 'spir'"
        got = "'linf'" if options.linf else repr(options.method)
        raise ValueError(f"{what} where A has fewer rows than columns, {n} x {d}; got {got}")
    turned = passes.turned()
    b = arrays.host(b)  # of the few rows that A has here
    operator = None
    if not (options.plain and cost_model.direct(d, n)):
        operator = _operator(turned, b.shape[1], "spir", options)
    # Only the factor counts, whatever the sketched right-hand side.
    factor = _factor(turned, np.zeros((d, 1), passes.dtype), operator, options)
    shift = scaling.exponent(float(factor.norms.max()), passes.dtype)
    if shift:
        # Below x = A^T y, and y is of the size of b over the square of A.
        result, text = _wide(_scaled(passes, -shift), b, b_norms, options)
        x = scaling.restored(result.x, np.array(-shift), passes.dtype)
        if x is None:
            passes.refuse(None)
        return replace(result, x=x, R=np.ldexp(result.R, shift)), text
    if factor.truncated:
        # If the rows contradict each other, what is least must be the residual as it is. The start,
        # which is of no use here, is in terms of the scaled columns.
        factor.start = np.zeros((n, 1))
        unscale(factor)
        truncate(factor, options.rcond or default_rcond(passes.dtype, n))
    passes.count += 1
    task = LeastNorm(
        passes,
        b,
        b_norms,
        factor,
        tol=options.tol,
        max_iter=options.max_iter,
        progress=options.progress,
    )
    with threads.blas_limit(1):
        task.solve()
    text = ""
    if not task.converged:
        text = (
            f"lstsq has not converged: after {task.iterations} iterations the relative residual is "
            f"{task.error.max():.3g}, above {task.accepted:.3g}; raise max_iter or tol"
        )
    result = LstsqResult(
        x=task.x.astype(passes.dtype),
        residual=task.r,
        residual_norm=scaling.sums_norms(task.r),
        iterations=task.iterations,
        passes=task.count,
        method="minimum_norm",
        rank=factor.rank,
        condition=factor.condition,
        backward_error=task.error,
        converged=task.converged,
        history=task.history(),
        R=factor.R,
    )
    return result, text


def _scaled(passes: Passes, exponent: int) -> Passes:
    """Return the passes over ``2^exponent A``, a copy, with the ridge that goes with it."""
    A = passes.A
    if is_sparse(A):
        A = A.copy()
        A.data = np.ldexp(A.data, exponent)
    else:
        A = scaling.shifted(A, np.array(exponent))
    ridge = float(np.ldexp(passes.ridge, 2 * exponent))
    scaled = Passes(A, ridge, passes.backend, passes.workers)
    scaled.count = passes.count
    return scaled


def _scaled_back(result: LstsqResult, exponents: np.ndarray, passes: Passes) -> LstsqResult:
    if not exponents.any():
        return result
    x = scaling.restored(arrays.host(result.x), exponents, passes.dtype)
    if x is None:
        passes.refuse(None)
    with np.errstate(over="ignore", under="ignore"):
        residual = scaling.shifted(result.residual, exponents)
        norms = np.ldexp(result.residual_norm, exponents)
    return replace(result, x=x, residual=residual, residual_norm=norms)
