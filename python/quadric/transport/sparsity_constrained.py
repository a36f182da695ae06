"""Optimal transport whose plan has at most k entries in each column."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csc_array

from quadric import arrays, backends, checks
from quadric.arrays import Array
from quadric.errors import ConvergenceWarning
from quadric.progress import bar
from quadric.transport import problem as problems
from quadric.transport.capped import Capped, run
from quadric.transport.cost import Cost
from quadric.transport.entries import check_entries
from quadric.transport.laplacian import pull_back
from quadric.transport.problem import TOL

METHODS = ("semidual", "dual")


@dataclass(frozen=True, slots=True, eq=False)
class SparsityConstrainedResult:
    """A plan with at most k entries in each column, and how good it is.

    Attributes
    ----------
    f, g : array of float64, shape (n,) and (m,)
        Potentials of the plan, in units of the cost: its entries are
        ``[f_i + g_j - M_ij]_+ / reg``. -Inf where the mass is 0.
    cost : float
        ``<M, P>``.
    value : float
        ``<M, P> + reg / 2 sum P^2``.
    dual_value : float
        The largest value of the dual that was met: no plan with these masses and at most k entries
        in each column has a smaller value. With `value` of a plan that has converged it bounds the
        optimum from both sides.
    marginal_error : float
        ``sum |P 1 - a| + sum |P^T 1 - b|`` of this plan.
    converged : bool
        Whether `marginal_error` is at most the tolerance.
    iterations : int
        Steps of L-BFGS-B and of Newton's method, added.
    reason : str
        Why it ended: "converged"; "max_iter"; "stalled", where the dual grows no more but its
        plan does not fit; or "infeasible", where the chosen places cannot carry the masses.
    k : int
        Most entries in a column.
    reg : float
        As it was given.
    method : str
        As it was given.
    """

    f: Array
    g: Array
    cost: float
    value: float
    dual_value: float
    marginal_error: float
    converged: bool
    iterations: int
    reason: str
    k: int
    reg: float
    method: str
    _matrix: csc_array = field(repr=False)
    _like: Callable[[np.ndarray], Array] = field(repr=False)

    def plan(self) -> Array:
        """Return the plan, shape (n, m), in the dtype of the cost and the caller's array type."""
        return self._like(self._matrix.toarray(order="C"))

    def sparse_plan(self) -> csc_array:
        """Return the plan as a ``scipy.sparse.csc_array``, in the dtype of the cost.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> M = np.random.default_rng(0).random((6, 3))
        >>> result = qd.transport.sparsity_constrained(None, None, M, k=2, reg=1.0)
        >>> np.diff(result.sparse_plan().indptr)
        array([2, 2, 2])
        """
        return self._matrix.copy()

    def vjp(self, plan: Array) -> Array:
        """Pull a cotangent of the plan back to the cost.

        Parameters
        ----------
        plan : array, shape (n, m)
            Derivative of some function in the entries of the plan, float32 or float64.

        Returns
        -------
        array of float64, shape (n, m)
            Its derivative in the entries of M, for fixed masses; 0 where the plan is 0.

        Raises
        ------
        ValueError
            If the shape does not fit, or an entry is not finite.

        Notes
        -----
        On its entries the plan is ``(f_i + g_j - M_ij) / reg``, and f and g keep its row and column
        sums. So the cotangent loses its least-squares fit ``u_i + v_j`` on those entries and is
        divided by ``-reg``. That is the exact derivative wherever a small change of M leaves the
        entries in place: almost everywhere.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> rng = np.random.default_rng(0)
        >>> M, G = rng.random((2, 5, 5))
        >>> result = qd.transport.sparsity_constrained(None, None, M, k=5, reg=10.0)
        >>> D = result.vjp(G)
        >>> bool(np.abs(D.sum(axis=0)).max() < 1e-12 and np.abs(D.sum(axis=1)).max() < 1e-12)
        True
        """
        G = checks.matrix(plan, "plan", gpu=True)
        if G.shape != self._matrix.shape:
            raise ValueError(f"plan must have shape {self._matrix.shape}, got {G.shape}")
        checks.finite(G, "plan")
        free = np.ones(G.shape[0], bool)
        cotangent = arrays.host(G).astype(np.float64)
        return arrays.like(plan)(pull_back(self._matrix, cotangent, self.reg, free))

    def __repr__(self) -> str:
        n, m = self._matrix.shape
        return (
            f"SparsityConstrainedResult({n} x {m}, k={self.k}, value={self.value:.6g}, "
            f"dual_value={self.dual_value:.6g}, marginal_error={self.marginal_error:.3g}, "
            f"{self.reason} after {self.iterations} iterations)"
        )


def sparsity_constrained(
    a: Array | None,
    b: Array | None,
    M: Array,
    k: int,
    reg: float,
    *,
    method: str = "semidual",
    tol: float | None = None,
    max_iter: int = 1000,
    repair: bool = True,
    warm_start: SparsityConstrainedResult | Array | None = None,
    normalize: bool = False,
    progress: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> SparsityConstrainedResult:
    """Solve ``min <M, P> + reg / 2 sum P^2`` with at most `k` entries in each column of P.

    The plan has ``P 1 = a`` and ``P^T 1 = b`` as always.

    Parameters
    ----------
    a, b : array, shape (n,) and (m,), or None
        Masses of rows and columns, float32 or float64; none negative, of the same sum. None is
        uniform with sum 1. Masses of 0 are allowed.
    M : array, shape (n, m)
        Cost of moving a unit of mass, float32 or float64, of any layout. Inf forbids a pair.
    k : int
        Most entries in a column, at least 1.
    reg : float
        Weight of the quadratic regularization, above 0. The larger, the more even a column. Entries
        of a plan of mass 1 are about ``1 / n``, so this is about n times what it would be for
        entries of size 1.
    method : {"semidual", "dual"}, optional
        What is maximized: a function of f alone, whose g is found exactly by sorting, or one of
        both. They have the same maximum; the first is nearly always faster.
    tol : float, optional
        Marginal error to reach: the L1 errors of rows and columns, added. None is 1e-9 of the mass,
        1e-5 if M is float32.
    max_iter : int, optional
        Most iterations of L-BFGS-B on the dual, and as many again for the repair.
    repair : bool, optional
        Where the plan of the dual does not have the masses `a`, look for one that does, on k places
        of each column (see Notes). False leaves the plan as the paper has it.
    warm_start : SparsityConstrainedResult or array of float64, shape (n,), optional
        The potential f to start from, or the result that has it.
    normalize : bool, optional
        Divide `a` and `b` by their sums first.
    progress : bool, optional
        Show a progress bar (needs tqdm).
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    SparsityConstrainedResult
        Its columns have the masses `b` whatever happens.

    Warns
    -----
    ConvergenceWarning
        If the masses `a` are met less well than the tolerance says; it says how well and why. The
        result has the best plan that was found.

    Raises
    ------
    ValueError
        If a shape does not fit; a mass is negative or not finite, or all are 0; the masses differ
        in sum by more than rounding; a cost is NaN or -Inf; a row or column has mass but all its
        pairs are forbidden; an option is out of range.
    TypeError
        If a dtype is neither float32 nor float64, or a number is none.

    See Also
    --------
    route : the same for a mixture of experts.

    Notes
    -----
    With ``z_j`` the k largest entries of ``f - M_j``, the dual [1]_ is to maximize ::

        <f, a> + <g, b> - sum_j |[z_j + g_j]_+|^2 / (2 reg)

    and the plan has the columns ``[z_j + g_j]_+ / reg``. For large k this is transport with
    quadratic regularization [2]_, smooth and quickly solved. For ``k = 1`` the dual is that of
    transport without regularization, plus ``reg / 2 sum b^2``.

    Where k matters, the maximum often lies where the k-th and the next entry of a column tie. It is
    then the optimum of a relaxed problem: a lower bound, but the k entries of no choice have the
    row sums `a`. The repair gives each column k places, chosen at the best potentials so that each
    row has at least one, and finds the best plan on them, which is a smooth problem; where they
    cannot carry the masses, it moves some. Masses that are not special need ``n + m - 1`` entries,
    so that it has no chance if ``k m`` is less; with some more it nearly always succeeds, and
    ``(value - dual_value) / |value|`` is then a proven bound of what the choice costs.

    L-BFGS-B does the first steps, a semismooth Newton method the last ones: it solves with the
    Laplacian of the graph whose edges are the entries of the plan. Where M is on a GPU, what looks
    at all its entries is done there, and these steps on the host.

    References
    ----------
    .. [1] T. Liu, J. Puigcerver, M. Blondel. Sparsity-constrained optimal transport. ICLR 2023.
       arXiv:2209.15466, equations 10 and 11
    .. [2] M. Blondel, V. Seguy, A. Rolet. Smooth and sparse optimal transport. AISTATS 2018.
       arXiv:1710.06276

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> M = np.random.default_rng(0).random((60, 10))
    >>> result = qd.transport.sparsity_constrained(None, None, M, k=8, reg=10.0)
    >>> P = result.plan()
    >>> int((P > 0).sum(axis=0).max())
    8
    >>> result.converged, bool(np.abs(P.sum(axis=1) - 1 / 60).max() < 1e-9)
    (True, True)
    >>> bool(result.dual_value <= result.value <= 1.05 * result.dual_value)
    True
    """
    given = arrays.take(M, "M")
    if given.ndim != 2 or 0 in given.shape:
        raise ValueError(f"M must have shape (n, m) with at least one entry, got {given.shape}")
    checks.floating(given, "M")
    k = checks.integer(k, "k", low=1)
    backends.resolve("transport.capped_columns", backend, on=given)
    problem = problems.build(
        Cost.stored(given),
        a,
        b,
        reg,
        unbalanced=None,
        normalize=normalize,
        batched=False,
        wrap=arrays.like(M),
        backend=backend,
        n_threads=n_threads,
    )
    check_entries(problem)
    checks.choice(method, "method", METHODS)
    limit = (
        TOL[given.dtype] * float(problem.mass[0])
        if tol is None
        else checks.real(tol, "tol", low=0.0)
    )
    checks.integer(max_iter, "max_iter", low=1)
    checks.choice(repair, "repair", (True, False))
    capped = Capped(
        given, problem.a[0], problem.b[0], k, problem.reg, method, False, backend, problem.n_threads
    )
    start = start_from(warm_start, given.shape[0])
    with bar(progress, "marginal error") as show:
        found = run(capped, start, tol=limit, max_iter=max_iter, repair=repair, progress=show)
    converged = found.error <= limit
    if not converged:
        text = explain(found.reason, found.error, limit, "k")
        n, m = (np.count_nonzero(w) for w in (capped.a, capped.b))
        if k * m < n + m - 1:
            text += f"; {m} columns of {k} entries have room for few plans of {n} rows"
        warnings.warn(text, ConvergenceWarning, 2)
    return SparsityConstrainedResult(
        problem.wrap(found.f),
        problem.wrap(found.g),
        found.cost,
        found.value,
        found.dual_value,
        found.error,
        converged,
        found.iterations,
        found.reason,
        k,
        problem.reg,
        method,
        found.matrix.astype(given.dtype),
        problem.wrap,
    )


def start_from(warm_start: Any, n: int) -> np.ndarray:
    """Return the potential f that a ``warm_start=`` argument stands for, finite."""
    if warm_start is None:
        return np.zeros(n)
    f = arrays.host(arrays.take(getattr(warm_start, "f", warm_start), "warm_start"))
    if f.shape != (n,):
        raise ValueError(f"warm_start must have shape ({n},), got {f.shape}")
    checks.floating(f, "warm_start")
    known = f != -np.inf  # what had no mass has none
    checks.finite(f[known], "warm_start")
    return np.where(known, f, f[known].min(initial=0.0)).astype(np.float64)


def explain(reason: str, error: float, tol: float, k: str) -> str:
    """Say in one line why a plan does not fit; `k` is what the caller calls it."""
    why = {
        "max_iter": "max_iter was reached",
        "stalled": "the dual has reached its maximum, but no plan of its largest entries fits;"
        f" a larger {k} or reg may help",
        "infeasible": f"the places chosen cannot carry the masses; a larger {k} may help",
    }
    return f"the plan has a marginal error of {error:.3g}, above tol={tol:.3g}: {why[reason]}"
