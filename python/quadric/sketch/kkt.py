"""Equality-constrained problems by an inexact Newton method on their KKT systems."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from quadric import arrays, checks, threads
from quadric.arrays import Array
from quadric.errors import ConvergenceWarning, LinAlgError
from quadric.progress import bar
from quadric.random import resolve_seed
from quadric.random.philox import Seed
from quadric.sketch import scaling
from quadric.sketch.linear_system import Floats
from quadric.sketch.sketch_and_project import sketch_and_project

Function: TypeAlias = Callable[[Array], Any]
Inner: TypeAlias = Literal["block_kaczmarz", "gaussian", "sparse_sign", "kaczmarz", "direct"]

HISTORY = np.dtype(
    [
        ("kkt", "f8"),
        ("objective", "f8"),
        ("constraints", "f8"),
        ("merit", "f8"),
        ("step", "f8"),
        ("accuracy", "f8"),
        ("inner", "i8"),
        ("direct", "?"),
        ("penalty_constraints", "f8"),
        ("penalty_gradient", "f8"),
        ("seconds", "f8"),
    ]
)
"""A step: ||(grad L, c)|| before it, f, ||c|| and the merit function there, the length of the step,
the relative residual of the KKT system, projections, whether that was solved directly, eta_1,
eta_2, seconds so far."""

BETA = 0.1  # of the Armijo condition
GROWTH = 1.5  # of the penalty parameters
CURVATURE = 0.1  # least eigenvalue of the reduced Hessian after a correction
LEAST_DELTA = 1e-6  # of the accuracy condition, as rounding forbids more
LARGEST_PENALTY = 1e8
LARGEST_PSI = 1e150  # its square is still a number
HALVINGS = 50
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, eq=False)
class NewtonKktResult:
    """What `sketched_newton_kkt` found.

    Attributes
    ----------
    x : array, shape (d,)
        The solution, in the array type of `x0`.
    multipliers : ndarray, shape (m,)
        Of the Lagrangian ``f(x) + c(x)^T multipliers``.
    objective : float
        f(x).
    constraints : ndarray, shape (m,)
        c(x).
    kkt_error : float
        ``||(grad f + J^T multipliers, c)||``.
    iterations : int
        Newton steps.
    inner_iterations : int
        Projections, in all of them.
    direct_solves : int
        Newton systems that the projections did not solve well enough, or with ``inner="direct"``.
    converged : bool
        Whether `kkt_error` is at most the tolerance.
    message : str
        Why it stopped.
    history : structured array
        One row per step: see the names of its fields.
    """

    x: Array
    multipliers: Floats
    objective: float
    constraints: Floats
    kkt_error: float
    iterations: int
    inner_iterations: int
    direct_solves: int
    converged: bool
    message: str
    history: np.ndarray


def sketched_newton_kkt(
    f: Function,
    gradient: Function,
    hessian: Callable[[Array, Floats], Any],
    c: Function,
    jacobian: Function,
    x0: Array,
    *,
    multipliers0: Array | None = None,
    inner: Inner = "block_kaczmarz",
    block_size: int | None = None,
    tol: float = 1e-8,
    max_iter: int = 200,
    inner_max_iter: int | None = None,
    penalty_constraints: float = 1.0,
    penalty_gradient: float = 0.1,
    accuracy: float = 0.1,
    accuracy_power: float = 0.0,
    seed: Seed = 0,
    progress: bool = False,
    n_threads: int | None = None,
) -> NewtonKktResult:
    """Minimize f(x) subject to c(x) = 0, each Newton system solved only as well as needed.

    Parameters
    ----------
    f : callable
        ``f(x)``, a number.
    gradient : callable
        ``gradient(x)``, shape (d,).
    hessian : callable
        ``hessian(x, multipliers)``, the Hessian of the Lagrangian
        ``f(x) + c(x)^T multipliers``, shape (d, d), symmetric, an array or a sparse matrix.
    c, jacobian : callable
        ``c(x)``, shape (m,), and ``jacobian(x)``, shape (m, d), of full row rank; m from 1 to d.
    x0 : array, shape (d,)
        Where to start, float64; it need not satisfy the constraints.
    multipliers0 : array, shape (m,), optional
        By default those of least squares, ``min ||gradient + J^T multipliers||``.
    inner : str, optional
        What solves the KKT systems: a method of `sketch_and_project`, or "direct".
    block_size : int, optional
        Equations in a step of it; by default a half of them.
    tol : float, optional
        ``||(gradient + J^T multipliers, c)||`` to reach.
    max_iter, inner_max_iter : int, optional
        Most Newton steps; most projections in a Newton system, by default 200 times its size
        divided by `block_size`. A system that this does not solve well enough is solved directly.
    penalty_constraints, penalty_gradient : float, optional
        eta_1 and eta_2 of the merit function to begin with.
    accuracy : float, optional
        delta of the accuracy condition to begin with, between 0 and 1.
    accuracy_power : float, optional
        Sharpens the condition as the error e falls, by ``min(1, e)^accuracy_power``: with 0
        convergence is linear near the solution, and above 0 faster.
    seed : int, Generator or None, optional
        What the projections follow from; None is another one in each call.
    progress : bool, optional
        Show a progress bar (needs tqdm).
    n_threads : int, optional
        Limits the BLAS.

    Returns
    -------
    NewtonKktResult

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not reached.

    Raises
    ------
    ValueError
        If a shape does not fit, a function returns NaN or Inf at `x0`, or m > d.
    TypeError
        If `x0` is not a float64 array, or a function is not callable.
    LinAlgError
        If a Jacobian has not full row rank.

    Notes
    -----
    With the Lagrangian ``L = f + c^T y`` and G the Jacobian of c, a step (dx, dy) solves [1]_ ::

        [ B  G^T ] [dx]     [ grad L ]
        [ G   0  ] [dy] = - [    c   ] + r,     ||K|| psi ||r|| <= theta delta ||(grad L, c)||

    in which K is the matrix, B the Hessian of L, with a multiple of the identity added where it is
    not positive definite on the null space of G, and psi bounds ``||K^-1||``:
    ``psi = 20 max(||B||^2, 1) / (min(sigma_min(G)^2, 1) min(xi, 1))``, xi the least curvature of B
    on that null space. What is added is ``||hess L|| + 0.1``, as in the code of the authors. The
    merit function is the exact augmented Lagrangian ::

        L(x, y) + eta_1/2 ||c||^2 + eta_2/2 ||grad L||^2

    in x and y together. A step (dx, dy) is taken if its slope along it is at most
    ``-eta_2/2 ||(grad L, c)||^2``. If not, eta_1 grows by 1.5^2, eta_2 falls by 1.5 and delta by
    1.5^4, and the projections go on from where they are to the new accuracy. delta also stays below
    ``(1/2 - beta) eta_2 / ((1 + eta_1 + eta_2) Y^2 psi^2)``, Y the largest of ||G||, ||hess L|| and
    1, and above 1e-6. The step length comes from halving until the Armijo condition with
    beta = 0.1 holds. theta is ``min(1, ||(grad L, c)||)^accuracy_power``.

    psi is a crude bound: a system that the projections cannot solve to that accuracy within
    `inner_max_iter` is solved directly if what they have found is not a direction of descent. The
    bounds take singular values and eigenvalues of dense matrices of size d in each step.

    A stationary point of the merit function need not solve the problem. Where the constraints
    cannot be satisfied near a point, the iteration ends there without convergence.

    References
    ----------
    .. [1] I. Hong, S. Na, M. W. Mahoney, M. Kolar. Constrained optimization via exact augmented
       Lagrangian and randomized iterative sketching. ICML 2023. arXiv:2305.18379

    Examples
    --------
    The point on the unit sphere that is nearest to (2, 2, 1):

    >>> import numpy as np
    >>> import quadric as qd
    >>> a = np.array([2.0, 2.0, 1.0])
    >>> result = qd.sketch.sketched_newton_kkt(
    ...     f=lambda x: ((x - a) ** 2).sum() / 2,
    ...     gradient=lambda x: x - a,
    ...     hessian=lambda x, y: (1 + 2 * y[0]) * np.eye(3),
    ...     c=lambda x: np.array([x @ x - 1]),
    ...     jacobian=lambda x: 2 * x[None],
    ...     x0=np.ones(3),
    ... )
    >>> result.converged, bool(np.abs(result.x - a / 3).max() < 1e-8)
    (True, True)
    """
    for name, function in (
        ("f", f),
        ("gradient", gradient),
        ("hessian", hessian),
        ("c", c),
        ("jacobian", jacobian),
    ):
        if not callable(function):
            raise TypeError(f"{name} must be callable, got {function!r}")
    start = arrays.to_numpy(x0, "x0")
    if start.ndim != 1 or start.size == 0:
        raise ValueError(f"x0 must have shape (d,), got {start.shape}")
    checks.same_type(start, "x0", np.dtype(np.float64), "the KKT system")
    checks.finite(start, "x0")
    checks.choice(inner, "inner", get_args(Inner))
    tol = checks.positive(tol, "tol")
    most = checks.integer(max_iter, "max_iter", low=0)
    if inner_max_iter is not None:
        inner_max_iter = checks.integer(inner_max_iter, "inner_max_iter", low=1)
    eta_1 = checks.positive(penalty_constraints, "penalty_constraints")
    eta_2 = checks.positive(penalty_gradient, "penalty_gradient")
    delta = checks.between(accuracy, "accuracy", 0.0, 1.0)
    power = checks.real(accuracy_power, "accuracy_power", low=0.0)
    number = resolve_seed(seed)
    limit = None if n_threads is None else threads.resolve(n_threads)

    problem = _Problem(f, gradient, hessian, c, jacobian, arrays.like(x0))
    with threads.blas_limit(limit), bar(progress, "KKT error") as show:
        point = problem.first(start.copy(), multipliers0)
        if block_size is not None:
            block_size = checks.integer(block_size, "block_size", 1, point.size)
        solver = _Solver(inner, block_size, inner_max_iter, number)
        state = _State(eta_1, eta_2, delta)
        rows: list[tuple[Any, ...]] = []
        begin = time.perf_counter()
        message = "the tolerance was reached"
        while (error := problem.error(point)) > tol:
            if show is not None:
                show(len(rows), error, tol)
            if len(rows) == most:
                message = f"max_iter={most} steps were made"
                break
            step = _direction(problem, point, state, solver, min(1.0, point.error) ** power)
            found = _line_search(problem, point, state, step)
            if found is None:
                message = "no step along the direction lowers the merit function"
                break
            length, merit, following = found
            seconds = time.perf_counter() - begin
            rows.append(
                (
                    error,
                    float(np.ldexp(point.f, problem.of_f)),
                    scaling.norm(np.ldexp(point.c, problem.of_c)),
                    float(np.ldexp(merit, problem.of_f)),
                    length,
                    step.accuracy,
                    step.inner,
                    step.direct,
                    state.eta_1,
                    state.eta_2,
                    seconds,
                )
            )
            point = following
    history = np.array(rows, HISTORY)
    converged = error <= tol
    if not converged:
        warnings.warn(
            f"sketched_newton_kkt stopped at a KKT error of {error:.3g}, above"
            f" tol={tol:g}: {message}",
            ConvergenceWarning,
            stacklevel=2,
        )
    return NewtonKktResult(
        arrays.like(x0)(point.x),
        problem.multipliers(point.y),
        float(np.ldexp(point.f, problem.of_f)),
        np.ldexp(point.c, problem.of_c),
        error,
        len(rows),
        int(history["inner"].sum()),
        int(history["direct"].sum()),
        converged,
        message,
        history,
    )


@dataclass(frozen=True, slots=True)
class _Point:
    """A pair (x, y) and what the functions are there."""

    x: Floats
    y: Floats
    f: float
    c: Floats
    J: Floats
    slope: Floats  # grad_x L

    @property
    def size(self) -> int:
        return len(self.x) + len(self.y)

    @property
    def kkt(self) -> Floats:
        return np.concatenate([self.slope, self.c])

    @property
    def error(self) -> float:
        return scaling.norm(self.kkt)

    def merit(self, eta_1: float, eta_2: float) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            squares = eta_1 * (self.c @ self.c) + eta_2 * (self.slope @ self.slope)
            return float(self.f + self.c @ self.y + squares / 2)


@dataclass(slots=True)
class _State:
    """What adapts from step to step."""

    eta_1: float
    eta_2: float
    delta: float


@dataclass(frozen=True, slots=True)
class _Step:
    """A direction, and how it was found."""

    dx: Floats
    dy: Floats
    slope: float
    accuracy: float
    inner: int
    direct: bool


class _Problem:
    """The caller's functions, with their answers checked, f over 2^of_f and c over 2^of_c.

    The exponents are 0 unless the squares of derivatives at the start could over- or underflow.
    """

    def __init__(
        self,
        f: Function,
        gradient: Function,
        hessian: Callable[[Array, Floats], Any],
        c: Function,
        jacobian: Function,
        wrap: Callable[[np.ndarray], Array],
    ) -> None:
        self._f, self._gradient, self._hessian = f, gradient, hessian
        self._c, self._jacobian, self._wrap = c, jacobian, wrap
        self.of_f = self.of_c = 0

    def first(self, x: Floats, multipliers: Array | None) -> _Point:
        """Return the start; its multipliers are those of least squares if none are given."""
        shown = self._wrap(x)
        m = np.atleast_1d(_values(self._c(shown), "c")).size
        if not 1 <= m <= len(x):
            raise ValueError(f"c must return between 1 and {len(x)} values, got {m}")
        point = self.at(x, np.zeros(m))
        for name, value in (("c", point.c), ("jacobian", point.J), ("gradient", point.slope)):
            if not np.isfinite(value).all():
                raise ValueError(f"{name} must return finite values at x0, got NaN or Inf")
        if not math.isfinite(point.f):
            raise ValueError(f"f must return a finite number at x0, got {point.f}")
        self.of_f = scaling.exponent(float(np.abs(point.slope).max()), np.float64, power=4)
        self.of_c = scaling.exponent(float(np.abs(point.J).max()), np.float64, power=4)
        if self.of_f or self.of_c:
            point = self.at(x, point.y)
        if multipliers is None:
            y = np.asarray(np.linalg.lstsq(point.J.T, -point.slope)[0], np.float64)
        else:
            y = checks.vector(multipliers, "multipliers0", m, np.dtype(np.float64), "x0")
            y = np.ldexp(y, self.of_c - self.of_f)
        return replace(point, y=y, slope=point.slope + point.J.T @ y)

    def at(self, x: Floats, y: Floats) -> _Point:
        shown = self._wrap(x)
        d, m = len(x), len(y)
        value = _values(self._f(shown), "f")
        if value.size != 1:
            raise ValueError(f"f must return a number, got an array of shape {value.shape}")
        c = _values(self._c(shown), "c", (m,))
        J = _values(self._jacobian(shown), "jacobian", (m, d))
        slope = _values(self._gradient(shown), "gradient", (d,))
        with np.errstate(over="ignore", invalid="ignore"):  # the line search comes back from there
            if self.of_f or self.of_c:
                value, slope = (np.ldexp(v, -self.of_f) for v in (value, slope))
                c, J = (np.ldexp(v, -self.of_c) for v in (c, J))
            slope = slope + J.T @ y
        return _Point(x, y, float(value.reshape(())), c, J, slope)

    def multipliers(self, y: Floats) -> Floats:
        """Return the multipliers of the functions as they are."""
        found = scaling.restored(y, np.array(self.of_f - self.of_c), np.float64)
        if found is None:
            raise LinAlgError("c and f must be nearer in size: float64 cannot hold the multipliers")
        return found

    def error(self, p: _Point) -> float:
        """Return ``||(grad L, c)||`` of the functions as they are."""
        if not (self.of_f or self.of_c):
            return p.error
        with np.errstate(over="ignore", under="ignore"):
            parts = np.ldexp(p.slope, self.of_f), np.ldexp(p.c, self.of_c)
        return scaling.norm(np.concatenate(parts))

    def hessian(self, p: _Point) -> Floats:
        d = len(p.x)
        H = _values(self._hessian(self._wrap(p.x), self.multipliers(p.y)), "hessian", (d, d))
        H = np.ldexp(H, -self.of_f) if self.of_f else H
        if not np.isfinite(H).all():
            raise ValueError("hessian must return finite values, got NaN or Inf")
        if np.abs(H - H.T).max() > 1e-8 * np.abs(H).max():
            raise ValueError("hessian must return a symmetric matrix, got one that is not")
        return H


class _Solver:
    """What solves the KKT systems; the seed moves on from one to the next."""

    def __init__(
        self, method: Inner, block_size: int | None, max_iter: int | None, seed: int
    ) -> None:
        self.method, self._block_size, self._max_iter = method, block_size, max_iter
        self._seed = seed

    def project(self, K: Floats, rhs: Floats, start: Floats, goal: float) -> tuple[Floats, int]:
        """Go on from `start` until the residual is at most `goal`, or for as long as allowed."""
        size = 1 if self.method == "kaczmarz" else self._block_size or -(-len(K) // 2)
        self._seed = (self._seed + 1) % 2**64
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            result = sketch_and_project(
                K,
                rhs,
                method=self.method,  # type: ignore[arg-type]
                x0=start,
                block_size=size,
                tol=0.0,
                atol=goal,
                max_iter=self._max_iter,
                seed=self._seed,
                check_finite=False,
            )
        return result.x, result.iterations


def _direction(problem: _Problem, p: _Point, state: _State, solver: _Solver, theta: float) -> _Step:
    """Return a direction of descent of the merit function; the parameters adapt until it is one."""
    H = problem.hessian(p)
    B, curvature, least = _convexified(H, p.J)
    d, m = len(p.x), len(p.c)
    K = np.block([[B, p.J.T], [p.J, np.zeros((m, m))]])
    rhs, error = -p.kkt, p.error
    size_B, size_J, size_H = (float(np.linalg.norm(M, 2)) for M in (B, p.J, H))
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        spread = np.square([size_B, least])
        psi = float(20 * max(spread[0], 1.0) / (min(spread[1], 1.0) * min(curvature, 1.0)))
    if not psi < LARGEST_PSI:
        raise LinAlgError(
            "hessian and jacobian must be nearer 1 in size, got norms of"
            f" {size_H:.3g} and {size_J:.3g}: scale the variables, f or c"
        )
    growth = max(size_J, size_H, 1.0)
    size_K = float(np.linalg.norm(K, 2))

    def capped(delta: float) -> float:
        eta_1, eta_2 = state.eta_1, state.eta_2
        bound = (0.5 - BETA) * eta_2 / ((1 + eta_1 + eta_2) * growth**2 * psi**2)
        return max(min(delta, bound), LEAST_DELTA)

    state.delta = capped(state.delta)
    found, inner, direct = np.zeros(d + m), 0, solver.method == "direct"
    if direct:
        found = _direct(K, rhs)
    while True:
        if not direct:
            goal = theta * state.delta * error / (size_K * psi)
            # Below the rounding of K times the step nothing can be reached.
            goal = max(goal, 8 * EPS * size_K * float(np.linalg.norm(found)))
            found, more = solver.project(K, rhs, found, goal)
            inner += more
            reached = np.linalg.norm(rhs - K @ found) <= goal
        dx, dy = found[:d], found[d:]
        slope_x = p.slope + state.eta_2 * (H @ p.slope) + state.eta_1 * (p.J.T @ p.c)
        slope_y = p.c + state.eta_2 * (p.J @ p.slope)
        slope = float(slope_x @ dx + slope_y @ dy)
        if slope <= -state.eta_2 / 2 * error**2:
            break
        if not direct and not reached:
            found, direct = _direct(K, rhs), True
            continue
        if state.eta_1 > LARGEST_PENALTY or state.eta_2 < 1 / LARGEST_PENALTY:
            break
        state.eta_1 *= GROWTH**2
        state.eta_2 /= GROWTH
        state.delta = capped(state.delta / GROWTH**4)
    accuracy = float(np.linalg.norm(rhs - K @ found)) / error
    return _Step(dx, dy, slope, accuracy, inner, direct)


def _line_search(
    problem: _Problem, p: _Point, state: _State, step: _Step
) -> tuple[float, float, _Point] | None:
    """Return the step length of Armijo's condition, the merit function before, and the point."""
    merit = p.merit(state.eta_1, state.eta_2)
    # Differences below the rounding of the merit function itself mean nothing.
    slack = 4 * EPS * (abs(merit) + abs(p.f))
    length = 1.0
    for _ in range(HALVINGS):
        there = problem.at(p.x + length * step.dx, p.y + length * step.dy)
        found = there.merit(state.eta_1, state.eta_2)
        if found <= merit + BETA * length * min(step.slope, 0.0) + slack:
            return length, merit, there
        length /= 2
    return None


def _convexified(H: Floats, J: Floats) -> tuple[Floats, float, float]:
    """Return B, its least curvature on the null space of J, the least singular value of J."""
    m, d = J.shape
    Q, R = np.linalg.qr(J.T, mode="complete")
    values = np.linalg.svd(R[:m], compute_uv=False)
    if not values[-1] > d * EPS * values[0]:
        raise LinAlgError(
            f"jacobian must have full row rank, got singular values from {values[0]:.3g} to"
            f" {values[-1]:.3g}"
        )
    Z = Q[:, m:]
    if m == d:
        return H, 1.0, float(values[-1])
    least = float(np.linalg.eigvalsh(Z.T @ H @ Z)[0])
    if least >= 1e-6 * max(np.abs(H).max(), 1e-300):
        return H, least, float(values[-1])
    # A shift that just does makes steps so long that the line search has to cut them to nothing.
    shift = CURVATURE + float(np.linalg.norm(H, 2))
    return H + shift * np.eye(d), CURVATURE, float(values[-1])


def _direct(K: Floats, rhs: Floats) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)  # the error is looked at anyway
        found: Floats = scipy.linalg.solve(K, rhs, assume_a="sym", check_finite=False)
    return found


def _values(value: Any, name: str, shape: tuple[int, ...] | None = None) -> Floats:
    """Return what a function of the caller's gave as float64, of the shape it should have."""
    if sp.issparse(value):
        value = cast(Any, value).toarray()
    try:
        array = np.ascontiguousarray(value, np.float64).reshape(np.shape(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must return real numbers: {error}") from None
    if shape is not None:
        if name == "c" and array.ndim == 0:
            array = array.reshape(1)
        if array.shape != shape:
            raise ValueError(f"{name} must return shape {shape}, got {array.shape}")
    return array
