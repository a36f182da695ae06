"""Linear systems by random projections: Kaczmarz and its family."""

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import scipy.linalg

from quadric import arrays, checks, threads
from quadric.arrays import Array
from quadric.errors import ConvergenceWarning, LinAlgError
from quadric.progress import bar
from quadric.random import resolve_seed
from quadric.random.philox import Seed
from quadric.sketch import projections, scaling
from quadric.sketch.linear_system import (
    DenseSystem,
    Floats,
    Indices,
    LinearSystem,
    linear_system,
    right_hand_side,
)
from quadric.sketch.projections import Blocks, Extended, Projection, Rows, Sketched, Solve

Method: TypeAlias = Literal[
    "auto", "kaczmarz", "block_kaczmarz", "extended", "gaussian", "sparse_sign"
]

HISTORY = np.dtype(
    [("iterations", "i8"), ("residual", "f8"), ("gradient", "f8"), ("seconds", "f8")]
)
"""A look at the residual: iterations so far, ||b - A x||, ||A^T (b - A x)||, seconds so far."""

TOL = {"float64": 1e-8, "float32": 1e-4}
SWEEPS = 200  # as often each row is taken by default
NNZ = 8  # rows in a sparse combination
LARGEST_BLOCK = 128


@dataclass(frozen=True, slots=True, eq=False)
class ProjectResult:
    """What `sketch_and_project` found.

    Attributes
    ----------
    x : array, shape (d,) or (d, k)
        The solution, in the dtype and array type of `b`.
    residual : array, shape (n,) or (n, k)
        ``b - A x``.
    residual_norm : float or ndarray, shape (k,)
        Its norm, column by column.
    gradient_norm : float or ndarray, shape (k,)
        ``||A^T (b - A x)||``, which is 0 at a least-squares solution.
    iterations : int
        Steps; one of "extended" takes columns and rows.
    converged : bool
        Whether the tolerance was reached, by every column.
    method : str
        What was used.
    block_size : int
        Rows, or combinations of rows, in a step.
    history : structured array
        One row per look at the residual: iterations, residual and gradient (norms over all columns;
        the gradient is NaN where it was not needed), seconds.
    """

    x: Array
    residual: Array
    residual_norm: Any
    gradient_norm: Any
    iterations: int
    converged: bool
    method: str
    block_size: int
    history: np.ndarray


def sketch_and_project(
    A: Any,
    b: Array,
    *,
    method: Method = "auto",
    x0: Array | None = None,
    block_size: int | None = None,
    metric: Array | None = None,
    relaxation: float = 1.0,
    tol: float | None = None,
    atol: float = 0.0,
    max_iter: int | None = None,
    seed: Seed = 0,
    check_finite: bool = True,
    progress: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> ProjectResult:
    """Solve ``A x = b`` by projections onto random combinations of its equations.

    Each step moves x to the nearest point that satisfies a few combinations S^T A x = S^T b of the
    equations, so it touches a few rows of A and needs memory of their size.

    Parameters
    ----------
    A : array, scipy.sparse matrix or scipy.sparse.linalg.LinearOperator, shape (n, d)
        Float32 or float64, of any layout; rows may be more or fewer than columns, and dependent.
    b : array, shape (n,) or (n, k)
        Right-hand sides, of the dtype of A.
    method : str, optional
        What S is in a step:

        - "kaczmarz": one row, as often as its squared norm says (rows of an operator equally
          often);
        - "block_kaczmarz": the rows of a block of a random partition; factors are kept. This is
          "auto".
        - "extended": as "kaczmarz", or with a `block_size` as "block_kaczmarz", on the columns and
          then on the rows, for least squares: the system need not have a solution;
        - "gaussian": Gaussian combinations of all rows, which cost a pass over A;
        - "sparse_sign": combinations of 8 rows with random signs.
    x0 : array, shape of x, optional
        Where to start; 0 by default, which leads to the solution of least norm.
    block_size : int, optional
        Equations in a step; by default 1 for "kaczmarz" and "extended" (where A has rows to look
        at), and else a fourth of the columns, at most 128.
    metric : array, shape (d,) or (d, d), optional
        B, symmetric positive definite, as a diagonal or a matrix: "nearest" is in the norm
        ``sqrt(x^T B x)``. Not for "kaczmarz" and "extended".
    relaxation : float, optional
        Part of each projection that is made, between 0 and 2.
    tol, atol : float, optional
        Done when ``||b - A x|| <= max(tol ||b||, atol)`` in each column, and with "extended" also
        when ``||A^T (b - A x)|| <= tol ||A||_F ||b - A x||``. By default 1e-8, 1e-4 in float32;
        and 0.
    max_iter : int, optional
        Most steps; by default as many as use each row 200 times. With 0 this only looks at x0.
    seed : int, Generator or None, optional
        What the choices follow from; None is another one in each call.
    check_finite : bool, optional
        Look for NaN and Inf in A, which for an operator costs n products.
    progress : bool, optional
        Show a progress bar (needs tqdm).
    backend : str, optional
        See :mod:`quadric.backends`; matters to "kaczmarz" and "extended".
    n_threads : int, optional
        Limits the BLAS; the steps follow each other.

    Returns
    -------
    ProjectResult

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not reached. Every method but "extended" needs a system that has a
        solution.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, A is empty, or an option does not go with
        the method.
    TypeError
        If a dtype is neither float32 nor float64, or differs.
    LinAlgError
        If the metric is not positive definite, or x is beyond the numbers of its dtype.

    See Also
    --------
    lstsq : the method of choice for tall least-squares problems of full rank.

    Notes
    -----
    A step is [1]_ ::

        x += relaxation B^-1 A^T S (S^T A B^-1 A^T S)^+ S^T (b - A x)

    With one row at a time [2]_ the expected squared distance to the solution falls by at least
    ``1 - sigma_min(A)^2 / ||A||_F^2`` per step (sigma_min the smallest singular value that is not
    0), with the blocks of a partition [3]_ faster. "extended" [4]_ also projects z, which starts
    as b, onto the complement of random columns; z tends to the part of b outside the range of A,
    and x solves ``A x = b - z``. Its steps come in turns of min(n, d) equations with columns and
    as many with rows.

    The residual costs a pass over A; it is looked at after 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15 ...
    sweeps over the rows. Computed in float64, also for float32, but it is the rounded x that is
    looked at and judged, so a tolerance near 1e-7 times the condition is out of reach then. Data of
    extreme size is scaled by a power of two, which takes a copy of A. The products with A are those
    of the BLAS, whose rounding may depend on its threads.

    References
    ----------
    .. [1] R. M. Gower, P. Richtarik. Randomized iterative methods for linear systems. SIAM J.
       Matrix Anal. Appl. 36, 2015. arXiv:1506.03296
    .. [2] T. Strohmer, R. Vershynin. A randomized Kaczmarz algorithm with exponential convergence.
       J. Fourier Anal. Appl. 15, 2009. arXiv:math/0702226
    .. [3] D. Needell, J. A. Tropp. Paved with good intentions: analysis of a randomized block
       Kaczmarz method. Linear Algebra Appl. 441, 2014. arXiv:1208.3805
    .. [4] A. Zouzias, N. M. Freris. Randomized extended Kaczmarz for solving least squares. SIAM J.
       Matrix Anal. Appl. 34, 2013. arXiv:1205.5770

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> A, x = rng.standard_normal((500, 20)), rng.standard_normal(20)
    >>> result = qd.sketch.sketch_and_project(A, A @ x)
    >>> result.converged, bool(np.abs(result.x - x).max() < 1e-7)
    (True, True)

    With noise, least squares:

    >>> b = A @ x + 0.1 * rng.standard_normal(500)
    >>> found = qd.sketch.sketch_and_project(A, b, method="extended").x
    >>> bool(np.abs(found - np.linalg.lstsq(A, b)[0]).max() < 1e-6)
    True
    """
    checks.choice(method, "method", get_args(Method))
    system = linear_system(A)
    n, d = system.shape
    given = right_hand_side(b, "b", n, system.dtype, "A")
    tol = checks.real(TOL[system.dtype.name] if tol is None else tol, "tol", low=0.0)
    atol = checks.real(atol, "atol", low=0.0)
    relaxation = checks.between(relaxation, "relaxation", 0.0, 2.0)
    rows_only = projections.can_take_rows(system)
    name, size = _method_and_size(method, block_size, system.shape, rows_only)
    inverse = _metric(metric, name, d, system.dtype)
    sweep = -(-(min(n, d) if name == "extended" else n) // size)
    most = SWEEPS * sweep if max_iter is None else checks.integer(max_iter, "max_iter", low=0)
    number = resolve_seed(seed)
    limit = None if n_threads is None else threads.resolve(n_threads)

    Y, units = scaling.moderate(np.array(given.reshape(n, -1), np.float64, order="C"))
    X = np.zeros((Y.shape[1], d))
    if x0 is not None:
        start = arrays.to_numpy(x0, "x0")
        if start.shape != (d, *given.shape[1:]):
            raise ValueError(f"x0 must have shape {(d, *given.shape[1:])}, got {start.shape}")
        checks.same_type(start, "x0", system.dtype, "A")
        checks.finite(start, "x0")
        X[:] = start.reshape(d, -1).T

    with threads.blas_limit(limit), bar(progress, "residual") as show:
        system, norms, shift = _moderate(system, check_finite, needed=rows_only)
        with np.errstate(over="ignore"):
            X = np.ldexp(X, (shift - units)[:, None])
        if norms is not None and not norms.any():
            size, projection = 1, None  # 0 x = b: nothing to do
        else:
            projection = _projection(
                name, system, norms, Y, relaxation, number, size, inverse, sweep, backend
            )
        run = _Run(system, Y, X, norms, tol, atol, name == "extended", units, shift, show)
        run.to_the_end(projection, sweep, most)

    one = given.ndim == 1
    if not run.converged:
        hint = "" if name == "extended" else '; method="extended" if A x = b has no solution'
        warnings.warn(
            f"sketch_and_project stopped after {run.iterations} iterations at a residual of"
            f" {scaling.norm(run.residual_norms()):.3g}, before it reached tol={tol:g}{hint}",
            ConvergenceWarning,
            stacklevel=2,
        )
    wrap = arrays.like(b)
    residuals, gradients = run.residual_norms(), run.gradient_norms()
    found = scaling.restored(run.rounded, units - shift, system.dtype)
    if found is None:
        raise LinAlgError(f"sketch_and_project: {system.dtype} cannot hold an x of that size")
    x, residual = (np.ascontiguousarray(v, system.dtype) for v in (found, np.ldexp(run.R, units)))
    return ProjectResult(
        wrap(x[:, 0] if one else x),
        wrap(residual[:, 0] if one else residual),
        float(residuals[0]) if one else residuals,
        float(gradients[0]) if one else gradients,
        run.iterations,
        run.converged,
        name,
        size,
        np.array(run.history, HISTORY),
    )


class _Run:
    """The iterations of a call, and what they have come to.

    Right-hand sides are in units of 2^units, A in those of 2^shift. What is judged is x as it is
    returned, in the dtype of A.
    """

    def __init__(
        self,
        system: LinearSystem,
        Y: Floats,
        X: Floats,
        row_norms: Floats | None,
        tol: float,
        atol: float,
        least_squares: bool,
        units: Indices,
        shift: int,
        show: Any,
    ) -> None:
        self._system, self._Y, self._X, self._show = system, Y, X, show
        self._least_squares, self._units, self._shift = least_squares, units, shift
        with np.errstate(over="ignore"):
            self._goal = np.maximum(tol * scaling.norms(Y), np.ldexp(atol, -units))
        # Overflows where tol is 0 or the matrix an operator, and is not used then.
        self._slope = 0.0 if row_norms is None else tol * math.sqrt(float(row_norms.sum()))
        self._start = time.perf_counter()
        self.iterations = 0
        self.converged = False
        self.history: list[tuple[int, float, float, float]] = []
        self._look()

    def to_the_end(self, projection: Projection | None, sweep: int, most: int) -> None:
        """Make steps and look at the residual now and then."""
        sweeps = 0
        while not self.converged and self.iterations < most and projection is not None:
            more = 1 + sweeps // 8
            steps = min(more * sweep, most - self.iterations)
            projection.advance(self._X, steps)
            sweeps += more
            self.iterations += steps
            self._look()

    def _look(self) -> None:
        with np.errstate(over="ignore"):
            found = self._X.T.astype(self._system.dtype)
        self.rounded = np.ascontiguousarray(found, np.float64)
        if not np.isfinite(self.rounded).all():
            raise LinAlgError(
                f"sketch_and_project: x overflowed within {self.iterations} iterations"
            )
        self.R = self._Y - self._system.times(self.rounded)
        norms = scaling.norms(self.R)
        done = norms <= self._goal
        gradient = math.nan
        if self._least_squares and not done.all():
            slopes = scaling.norms(self._system.transposed_times(self.R))
            gradient = scaling.norm(self._back(slopes, self._shift))
            done |= slopes <= self._slope * norms
        self.converged = bool(done.all())
        residual = scaling.norm(self._back(norms))
        seconds = time.perf_counter() - self._start
        self.history.append((self.iterations, residual, gradient, seconds))
        if self._show is not None:
            self._show(self.iterations, residual, scaling.norm(self._back(self._goal)))

    def residual_norms(self) -> Floats:
        """Return ||b - A x|| of each column."""
        return self._back(scaling.norms(self.R))

    def gradient_norms(self) -> Floats:
        """Return ||A^T (b - A x)|| of each column."""
        return self._back(scaling.norms(self._system.transposed_times(self.R)), self._shift)

    def _back(self, norms: Floats, shift: int = 0) -> Floats:
        """Return norms in the units of the caller."""
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.ldexp(norms, self._units + shift))


def _method_and_size(
    method: str, block_size: int | None, shape: tuple[int, int], rows_only: bool
) -> tuple[str, int]:
    n, d = shape
    name = "block_kaczmarz" if method == "auto" else method
    usual = min(max(d // 4, 1), LARGEST_BLOCK, n)
    if name == "kaczmarz" or (name == "extended" and rows_only):
        usual = 1
    size = usual if block_size is None else checks.integer(block_size, "block_size", 1, n)
    if name == "kaczmarz" and size != 1:
        raise ValueError(
            f'block_size must be 1 for method="kaczmarz", got {size}: use "block_kaczmarz"'
        )
    return name, size


def _metric(metric: Array | None, method: str, d: int, dtype: np.dtype[Any]) -> Solve | None:
    """Return what solves with the metric; None is the identity."""
    if metric is None:
        return None
    if method in ("kaczmarz", "extended"):
        raise ValueError(f'metric must be None for method="{method}", got an array')
    B = arrays.to_numpy(metric, "metric")
    if B.shape not in ((d,), (d, d)):
        raise ValueError(f"metric must have shape ({d},) or ({d}, {d}), got {B.shape}")
    checks.same_type(B, "metric", dtype, "A")
    checks.finite(B, "metric")
    B = B.astype(np.float64)
    if B.ndim == 1:
        if not (B > 0).all():
            raise LinAlgError(f"metric must be positive, got {B.min():.6g}", int(B.argmin()))
        return lambda V: V / B[:, None]
    if np.abs(B - B.T).max() > 8 * np.finfo(dtype).eps * np.abs(B).max():
        raise ValueError("metric must be symmetric, got a matrix that differs from its transpose")
    try:
        factor = scipy.linalg.cho_factor(B, check_finite=False)
    except np.linalg.LinAlgError as error:
        raise LinAlgError(f"metric must be positive definite: {error}") from None
    return lambda V: scipy.linalg.cho_solve(factor, V, check_finite=False)


def _moderate(
    system: LinearSystem, check_finite: bool, needed: bool
) -> tuple[LinearSystem, Floats | None, int]:
    """Return the system over 2^e, with the squared norms of its rows, and e.

    It is scaled, which takes a copy, only if its squares could over- or underflow.
    """
    if not (needed or check_finite):
        return system, None, 0
    norms = system.row_norms()
    peak = math.sqrt(norms.max())
    if 0 < peak < math.inf and not scaling.exponent(peak, np.float64):
        return system, norms, 0
    system.check_finite("A")
    shift = scaling.exponent(system.largest(), np.float64)
    if shift:
        system = system.scaled(-shift)
        norms = system.row_norms()
    return system, norms, shift


def _projection(
    name: str,
    system: LinearSystem,
    norms: Floats | None,
    Y: Floats,
    relaxation: float,
    seed: int,
    size: int,
    inverse: Solve | None,
    sweep: int,
    backend: str | None,
) -> Projection:
    by_rows = projections.can_take_rows(system) and size == 1
    if name == "kaczmarz" and by_rows:
        assert norms is not None
        return Rows(system, norms, Y, relaxation, seed, backend=backend)
    if name in ("kaczmarz", "block_kaczmarz"):
        return Blocks(system, Y, relaxation, seed, size, inverse)
    if name == "extended":
        turned, zero = system.transposed(), np.zeros((system.shape[1], Y.shape[1]))
        target = Y.copy()
        columns: Projection
        rows: Projection
        if by_rows:
            assert norms is not None
            if isinstance(turned, DenseSystem):  # a step reads a column: they have to be together
                turned = DenseSystem(np.ascontiguousarray(turned.A))
            weights = turned.row_norms()
            columns = Rows(turned, weights, zero, relaxation, seed, projections.ROWS + 1, backend)
            rows = Rows(system, norms, target, relaxation, seed, backend=backend)
        else:
            width = min(size, system.shape[1])
            columns = Blocks(turned, zero, relaxation, seed, width, stream=projections.BLOCKS + 1)
            rows = Blocks(system, target, relaxation, seed, size)
        return Extended(columns, rows, Y, target, sweep)
    nnz = NNZ if name == "sparse_sign" else None
    return Sketched(system, Y, relaxation, seed, size, inverse, nnz)
