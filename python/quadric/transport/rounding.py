"""A plan that has exactly the marginals asked for, from one that nearly has them."""

import numpy as np

from quadric import arrays, checks
from quadric.arrays import Array, Data
from quadric.transport import problem


def round_to_marginals(P: Array, a: Array, b: Array) -> Array:
    """Return the feasible plan near `P`: non-negative, with row sums `a` and column sums `b`.

    Parameters
    ----------
    P : array, shape (n, m)
        Plan to round, float32 or float64, not negative. It is not changed.
    a, b : array, shape (n,) and (m,)
        Masses of the same sum, in any memory.

    Returns
    -------
    array, shape (n, m)
        Of the array type and dtype of `P`, and where that is. Its marginals are exact up to the
        rounding of that dtype, and ``sum |result - P| <= 2 (sum |P 1 - a| + sum |P^T 1 - b|)``.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is negative or not finite, or the masses differ in sum.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    Algorithm 2 of [1]_: rows that have too much are scaled down, then columns, and what is missing
    after that comes back as one product of a row and a column.

    References
    ----------
    .. [1] J. Altschuler, J. Weed, P. Rigollet. Near-linear time approximation algorithms for
       optimal transport via Sinkhorn iteration. NeurIPS 2017. arXiv:1705.09634

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> P = np.array([[0.3, 0.3], [0.1, 0.2]])
    >>> half = np.array([0.5, 0.5])
    >>> R = qd.transport.round_to_marginals(P, half, half)
    >>> R.sum(axis=0), R.sum(axis=1)
    (array([0.5, 0.5]), array([0.5, 0.5]))
    """
    plan = checks.matrix(P, "P", gpu=True)
    checks.finite(plan, "P")
    n, m = plan.shape
    if plan.size == 0:
        raise ValueError(f"P must have at least one row and column, got shape {plan.shape}")
    if arrays.any_below(plan, 0.0):
        entries = arrays.host(plan)
        i, j = np.unravel_index(np.argmin(entries), plan.shape)
        raise ValueError(
            f"P must not be negative, got {entries[i, j]:.6g} at index {(int(i), int(j))}"
        )
    (a_, eps_a), (b_, eps_b) = problem.masses(a, "a", (n,)), problem.masses(b, "b", (m,))
    b_ = problem.equal_mass(a_[None], b_[None], max(eps_a, eps_b))[0]
    return arrays.like(P)(rounded(plan, a_, b_))


def rounded(P: Data, a: np.ndarray, b: np.ndarray) -> Data:
    """Return `P` rounded to the marginals `a` and `b`, all of them checked before."""
    result = P.astype(np.float64, copy=True)
    arrays.divide(result, _excess(arrays.column_sums(result.T), a)[:, None])
    arrays.divide(result, _excess(arrays.column_sums(result), b))
    row, column = a - arrays.column_sums(result.T), b - arrays.column_sums(result)
    row, column = np.maximum(row, 0), np.maximum(column, 0)  # rounding may go below
    if row.sum() > 0 and column.sum() > 0:
        # The two sums differ by rounding; this one keeps the rows.
        arrays.add_product(result, row, column / column.sum())
    return result.astype(P.dtype, copy=False)


def _excess(sums: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return by how much too large the sums are, as factors of at least 1; Inf for 0."""
    factor = np.ones_like(sums)
    with np.errstate(divide="ignore"):
        np.divide(sums, wanted, out=factor, where=sums > wanted)
    return factor
