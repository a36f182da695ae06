"""Entropic optimal transport for a cost that is stored as a matrix."""

from quadric import arrays, checks
from quadric.arrays import Array
from quadric.transport import problem as problems
from quadric.transport.cost import Cost
from quadric.transport.problem import Problem, Unbalanced
from quadric.transport.results import TransportResult
from quadric.transport.run import Method, Omega, WarmStart, run


def solve(
    a: Array | None,
    b: Array | None,
    M: Array,
    reg: float,
    *,
    method: Method = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    omega: Omega = "auto",
    unbalanced: Unbalanced = None,
    warm_start: WarmStart = None,
    normalize: bool = False,
    progress: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> TransportResult:
    """Solve ``min <M, P> + reg sum P (log P - 1)`` with ``P 1 = a`` and ``P^T 1 = b``.

    Parameters
    ----------
    a, b : array, shape (n,) and (m,), or None
        Masses of rows and columns, float32 or float64; none negative, of the same sum. None is
        uniform with sum 1. Masses of 0 are allowed. They may be in another memory than M.
    M : array, shape (n, m) or (B, n, m)
        Cost of moving a unit of mass, float32 or float64, of any layout. Inf forbids a pair. A
        batch has masses (B, n) and (B, m), or the same for all problems. A cost on a GPU stays
        there, and the result's arrays are there too.
    reg : float
        Regularization above 0, in units of the cost.
    method : {"auto", "sinkhorn", "newton", "published"}, optional
        "sinkhorn" is over-relaxed, "newton" is the sparse Newton method; both come down to `reg` in
        steps. "auto" takes Newton steps wherever few enough entries of the plan count, and
        Sinkhorn iterations elsewhere. "published" is Sinkhorn-Newton-Sparse as its paper has it,
        for comparison.
    tol : float, optional
        Marginal error to reach: the L1 errors of rows and columns, added. None is 1e-9 of the mass,
        1e-5 if M is float32 (whose rounding does not allow for much less).
    max_iter : int, optional
        Most iterations of all kinds together; 10 000 by default.
    omega : float or "auto", optional
        Over-relaxation of Sinkhorn, between 0 and 2; 1 is none. "auto" estimates the best one from
        the rate.
    unbalanced : float or pair of float, optional
        Weights rho of ``rho_a KL(P 1 | a) + rho_b KL(P^T 1 | b)``, which replace the constraints;
        Inf keeps the constraint of that side. Only Sinkhorn solves it.
    warm_start : TransportResult or pair of arrays, optional
        Potentials (f, g) to start from, or the result that has them.
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
    TransportResult
        Potentials, cost, value, errors; ``result.plan()`` is the plan.

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not reached. The result has the best that was found.

    Raises
    ------
    ValueError
        If a shape does not fit; a mass is negative or not finite, or all are 0; the masses differ
        in sum by more than rounding; a cost is NaN or -Inf; a row or column has mass but all its
        pairs are forbidden; `reg` is not positive.
    TypeError
        If a dtype is neither float32 nor float64.

    See Also
    --------
    solve_points : the same for points, without a stored cost.

    Notes
    -----
    Negative costs are allowed: a constant added to M changes potentials, not the plan. Entries of
    the plan below the smallest normal number count as 0. Computed in the dtype of M, with sums and
    potentials in float64.

    The value is concave in (f, g), and its maximum is where the sums of P fit [1]_. One iteration
    of Sinkhorn makes rows and then columns fit, ``f += omega reg log(a / P 1)`` [2]_; it reads
    each cost once. A Newton step solves with the Hessian ``[[diag(P 1), P], [P^T, diag(P^T 1)]]``,
    in which P has few entries that matter [3]_.

    References
    ----------
    .. [1] M. Cuturi. Sinkhorn distances: lightspeed computation of optimal transport. NeurIPS 2013.
       arXiv:1306.0895
    .. [2] A. Thibault, L. Chizat, C. Dossal, N. Papadakis. Overrelaxed Sinkhorn-Knopp algorithm for
       regularized optimal transport. Algorithms 14, 2021. arXiv:1711.01851
    .. [3] X. Tang, M. Shavlovsky, H. Rahmanian, E. Tardini, K. K. Thekumparampil, T. Xiao, L. Ying.
       Accelerating Sinkhorn algorithm with sparse Newton iterations. ICLR 2024. arXiv:2401.12253

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> M = np.random.default_rng(0).random((50, 60))
    >>> result = qd.transport.solve(None, None, M, reg=0.01)
    >>> result.converged
    True
    >>> P = result.plan()
    >>> bool(np.abs(P.sum(axis=1) - 1 / 50).sum() + np.abs(P.sum(axis=0) - 1 / 60).sum() < 1e-9)
    True
    >>> bool(abs(result.value - result.dual_value) < 1e-9)
    True
    """
    return run(
        prepare(
            a,
            b,
            M,
            reg,
            unbalanced=unbalanced,
            normalize=normalize,
            backend=backend,
            n_threads=n_threads,
        ),
        method=method,
        tol=tol,
        max_iter=max_iter,
        omega=omega,
        warm_start=warm_start,
        progress=progress,
    )


def prepare(
    a: Array | None,
    b: Array | None,
    M: Array,
    reg: float,
    *,
    unbalanced: Unbalanced = None,
    normalize: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Problem:
    """Return the problem, as :func:`solve` takes it; `run` looks at the entries of its cost."""
    given = arrays.take(M, "M")
    if given.ndim not in (2, 3) or 0 in given.shape:
        raise ValueError(
            f"M must have shape (n, m) or (B, n, m) with at least one entry, got {given.shape}"
        )
    checks.floating(given, "M")
    return problems.build(
        Cost.stored(given),
        a,
        b,
        reg,
        unbalanced=unbalanced,
        normalize=normalize,
        batched=given.ndim == 3,
        wrap=arrays.like(M),
        backend=backend,
        n_threads=n_threads,
    )
