"""From a checked problem to its result: what a solver must not see is taken out and put back."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np

from quadric import arrays, checks
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.errors import ConvergenceWarning
from quadric.progress import bar
from quadric.transport import small
from quadric.transport.entries import check_entries
from quadric.transport.problem import TOL, Measures, Problem, measure
from quadric.transport.results import TransportResult

Method: TypeAlias = Literal["auto", "sinkhorn", "newton", "published"]
Omega: TypeAlias = float | Literal["auto"]
WarmStart: TypeAlias = TransportResult | tuple[Array, Array] | None
Pair: TypeAlias = tuple[np.ndarray, np.ndarray]

METHODS = ("auto", "sinkhorn", "newton", "published")


@dataclass(frozen=True, slots=True)
class _Options:
    method: str
    tol: np.ndarray  # of each problem
    max_iter: int | None
    omega: float | None
    progress: Callable[[int, float, float], None] | None
    check: Callable[[], None] | None  # of the entries of the cost, where it is not made yet


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    f: Data  # NumPy arrays, or on the GPU that the cost is on
    g: Data
    measures: Measures
    iterations: np.ndarray
    history: np.ndarray
    method: str
    outputs: tuple[Array, ...] | None = None
    """The arrays of the result, from f to converged, where all is on a GPU and has converged."""

    def transposed(self) -> "_Found":
        """Exchange the roles of rows and columns."""
        outputs = self.outputs and (*self.outputs[1::-1], *self.outputs[2:])
        return replace(self, f=self.g, g=self.f, outputs=outputs)


def run(
    problem: Problem,
    *,
    method: Method,
    tol: float | None,
    max_iter: int | None,
    omega: Omega,
    warm_start: WarmStart,
    progress: bool,
    warn: bool = True,
    stacklevel: int = 3,
) -> TransportResult:
    """Solve a problem; its arguments are those of `solve`.

    `stacklevel` leads from here to the line that a warning is about, if there is to be one.
    """
    checks.choice(method, "method", METHODS)
    if tol is None:
        tols = TOL[problem.cost.dtype] * problem.mass
    else:
        tols = np.full(len(problem.a), checks.real(tol, "tol", low=0.0))
    if max_iter is not None:
        max_iter = checks.integer(max_iter, "max_iter", low=1)
    factor = None if omega == "auto" else checks.between(omega, "omega", 0, 2)
    if not problem.balanced and method in ("newton", "published"):
        raise ValueError(
            f"method must be 'auto' or 'sinkhorn' for an unbalanced problem, got {method!r}"
        )
    start = None if warm_start is None else _start(problem, warm_start)
    check: Callable[[], None] | None = partial(check_entries, problem)
    if start is not None or not small.suits(problem, method, tols):
        check_entries(problem)
        check = None
    with bar(progress, "marginal error") as show:
        found = _solve(problem, start, _Options(method, tols, max_iter, factor, show, check))
        if show is not None:
            show(
                int(found.iterations.max()), float(found.measures.marginal_error.max()), tols.min()
            )
    outputs, measures = found.outputs, found.measures
    if outputs is None:
        error = measures.marginal_error
        converged = error <= tols
        if warn and not converged.all():
            text = _message(problem, error, found.iterations, tols)
            warnings.warn(text, ConvergenceWarning, stacklevel)
        outputs = (
            *(problem.array(found.f), problem.array(found.g)),
            *problem.all_outputs(measures.cost, measures.value, measures.dual_value, error),
            *(problem.outputs(found.iterations), problem.outputs(converged)),
        )
    f, g, cost, value, dual_value, error, iterations, converged = outputs
    return TransportResult(
        *(f, g, cost, value, dual_value, error, iterations, converged),
        found.history,
        found.method,
        problem.reg,
        problem,
        (found.f, found.g) if isinstance(problem.cost.array, DeviceArray) else None,
    )


def _solve(problem: Problem, start: Pair | None, options: _Options) -> _Found:
    """Solve in the order of the memory, without the rows and columns that have no mass."""
    if problem.cost.by_columns:
        return _solve(problem.oriented(), start and start[::-1], options).transposed()
    if options.check is not None:
        return _until(problem, start, options)  # it has masses everywhere
    pieces = list(_parts(problem, options.tol))
    if len(pieces) == 1 and pieces[0][1].all() and pieces[0][2].all():
        return _until(problem, start, options)
    f, g = np.full(problem.a.shape, -math.inf), np.full(problem.b.shape, -math.inf)
    measures, iterations = Measures(*np.zeros((4, len(f)))), np.zeros(len(f), np.int64)
    parts = []
    for which, rows, columns in pieces:
        part = _until(
            _strip(problem, which, rows, columns),
            start and (start[0][which][:, rows], start[1][which][:, columns]),
            replace(options, tol=options.tol[which]),
        )
        f[np.ix_(which, rows)], g[np.ix_(which, columns)] = map(arrays.host, (part.f, part.g))
        measures.put(which, part.measures)
        iterations[which] = part.iterations
        parts.append(part)
    history = _joined([part.history for part in parts])
    method = "+".join(dict.fromkeys(part.method for part in parts))
    return _Found(f, g, measures, iterations, history, method)


def _parts(
    problem: Problem, tol: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield problems that can be solved together, and masks (n,) and (m,) of where they have mass.

    That is the same for all of them, and so is about the tolerance.
    """
    if problem.uniform and tol.max() <= 2 * tol.min():
        _, n, m = problem.cost.shape
        yield np.arange(len(tol)), np.ones(n, bool), np.ones(m, bool)
        return
    rows, columns = problem.a > 0, problem.b > 0
    alike = (rows == rows[0]).all() and (columns == columns[0]).all()
    if alike and tol.max() <= 2 * tol.min():
        yield np.arange(len(rows)), rows[0], columns[0]
    else:
        for k in range(len(rows)):
            yield np.array([k]), rows[k], columns[k]


def _strip(problem: Problem, which: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Problem:
    if len(which) < len(problem.a):
        problem = problem.item(int(which[0]))
    if rows.all() and columns.all():
        return problem  # the usual case, without a copy of the cost
    return replace(
        problem,
        cost=problem.cost.select(rows, columns),
        a=np.ascontiguousarray(problem.a[:, rows]),
        b=np.ascontiguousarray(problem.b[:, columns]),
    )


def _until(problem: Problem, start: Pair | None, options: _Options) -> _Found:
    """Solve until the error of the plan that the user gets is at most the tolerance.

    The solver sees the error of the kernel that iterates, which may round otherwise.
    """
    left, histories = options.max_iter, []
    least = float(options.tol.min())
    suits = options.check is not None or small.suits(problem, options.method, options.tol)
    if start is None and suits:
        most = small.PATIENCE if options.method == "auto" else None
        whole = small.whole(
            problem, least, options.omega, left, most=most, progress=options.progress
        )
        iterations = whole.iterations
        histories.append(whole.history)
        if left is not None:
            left -= int(iterations.max())
        outputs = whole.outputs
        reached = outputs is not None or (whole.measures.marginal_error <= options.tol).all()
        if not reached and options.check is not None:
            options.check()
        if reached or (left is not None and left <= 0):
            found = (whole.f, whole.g, whole.measures, iterations, whole.history, "sinkhorn")
            return _Found(*found, outputs)
        f, g = whole.f.host(), whole.g.host()
        if np.isfinite(f).all() and np.isfinite(g).all():
            start = f, g
    else:
        iterations = np.zeros(len(problem.a), np.int64)
    from quadric.transport.optimize import optimize

    theta_a, theta_b = (1.0 if r == math.inf else r / (r + problem.reg) for r in problem.rho)
    for tol in (least, least / 2, least / 8):
        outcome = optimize(
            problem.cost,
            np.ascontiguousarray(problem.a),
            np.ascontiguousarray(problem.b),
            problem.reg,
            theta_a=theta_a,
            theta_b=theta_b,
            method=options.method,
            tol=tol,
            max_iter=left,
            omega=options.omega,
            warm_start=start,
            progress=options.progress,
            backend=problem.backend,
            n_threads=problem.n_threads,
        )
        f, g = start = _centred(problem, outcome.f, outcome.g)
        measures = measure(problem, f, g)
        iterations += outcome.iterations
        histories.append(outcome.history)
        if options.max_iter is not None:
            left = options.max_iter - int(iterations.max())
        reached = (measures.marginal_error <= options.tol).all()
        if reached or not outcome.converged.all() or (left is not None and left <= 0):
            break
    return _Found(f, g, measures, iterations, _joined(histories), outcome.method)


def _joined(histories: list[np.ndarray]) -> np.ndarray:
    """Return one history of runs one after the other."""
    for before, history in pairwise(histories):
        for name in ("iterations", "seconds"):
            history[name] += before[name].max(initial=0)
    return np.concatenate(histories)


def _centred(problem: Problem, f: np.ndarray, g: np.ndarray) -> Pair:
    """Of the potentials ``f + c, g - c``, which have the same plan, return those that balance."""
    if not problem.balanced:
        return f, g
    difference = np.einsum("bi,bi->b", f, problem.a) - np.einsum("bj,bj->b", g, problem.b)
    c = (difference / (2 * problem.a.sum(axis=1)))[:, None]
    return f - c, g + c


def _start(problem: Problem, warm_start: Any) -> Pair:
    """Return potentials to start from that are finite wherever there is mass."""
    if isinstance(warm_start, TransportResult):
        warm_start = warm_start.f, warm_start.g
    if not isinstance(warm_start, tuple | list) or len(warm_start) != 2:
        kind = type(warm_start).__name__
        raise TypeError(f"warm_start must be a TransportResult or a pair (f, g), got {kind}")
    f, g = (
        _potential(p, f"warm_start[{i}]", w > 0, problem.batched)
        for i, (p, w) in enumerate(zip(warm_start, (problem.a, problem.b), strict=True))
    )
    return f, g


def _potential(p: Array, name: str, there: np.ndarray, batched: bool) -> np.ndarray:
    given, shape = arrays.host(arrays.take(p, name)), there.shape
    fitting = (shape[1:], shape) if batched else (shape[1:],)
    if given.shape not in fitting:
        wanted = " or ".join(str(s) for s in fitting)
        raise ValueError(f"{name} must have shape {wanted}, got {given.shape}")
    checks.floating(given, name)
    if not (given < math.inf).all():
        raise ValueError(f"{name} must not hold NaN or Inf, got {given[~(given < math.inf)][0]}")
    result = np.array(np.broadcast_to(given, shape), np.float64)
    # A mass that was 0 before has no potential yet: the lowest one keeps its entries small.
    for row, missing in zip(result, there & (result == -math.inf), strict=True):
        row[missing] = row[np.isfinite(row)].min(initial=0.0)
    return result


def _message(problem: Problem, error: np.ndarray, iterations: np.ndarray, tol: np.ndarray) -> str:
    k = int(np.argmax(np.where(np.isnan(error), np.inf, error - tol)))
    who = "transport"
    if problem.batched:
        who = f"transport in {np.count_nonzero(~(error <= tol))} of {len(error)} problems"
    advice = "raise max_iter, tol or reg"
    if problem.cost.dtype == np.float32 and tol[k] < TOL[problem.cost.dtype] * problem.mass[k]:
        advice += ", or give float64, which reaches smaller errors"
    if problem.cost.M is not None and problem.balanced and not problem.cost.all_finite():
        advice += "; the pairs that are not forbidden may not be able to carry all mass"
    return (
        f"{who} has not converged: after {iterations[k]} iterations the marginal error is"
        f" {error[k]:.3g}, above tol={tol[k]:.3g}; {advice}"
    )
