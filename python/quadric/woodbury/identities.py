"""The two identities behind the family, for matrices of any kind."""

from collections.abc import Iterator

import numpy as np
from scipy.linalg import lapack

from quadric import arrays, checks, threads
from quadric.arrays import Array
from quadric.errors import LinAlgError
from quadric.woodbury.results import UpdatedInverse, WoodburySolution

_SLAB = 262_144  # entries that are held in float64 at a time


def woodbury_solve(
    diagonal: Array | float,
    U: Array,
    C: Array,
    x: Array,
    *,
    n_threads: int | None = None,
) -> WoodburySolution:
    """Solve ``(D + U C U^T) y = x`` with D diagonal, and give the determinant.

    Parameters
    ----------
    diagonal : array, shape (n,), or float
        Diagonal of D, nowhere zero. It may have both signs.
    U : array, shape (n, k)
        float32 or float64, any strides; k should be far below n.
    C : array, shape (k, k)
        Any matrix; it may be singular, and need not be symmetric.
    x : array, shape (n,) or (r, n)
        One right-hand side, or several as rows. All arrays have the dtype of `x`.
    n_threads : int, optional
        Limit of the BLAS threads; None leaves them as they are. It may change the last bits.

    Returns
    -------
    WoodburySolution
        The solution, ``log |det(D + U C U^T)|`` and its sign.

    Raises
    ------
    LinAlgError
        If S, below, is singular to working precision, as it is where ``D + U C U^T`` is.
    ValueError
        If a shape does not fit, an entry is not finite, or one of `diagonal` is zero.
    TypeError
        If the dtypes are not float32 or float64, all the same.

    Notes
    -----
    With the capacitance matrix ``S = I + C U^T D^-1 U``, k x k [1]_,

        ``y = D^-1 (x - U S^-1 C U^T D^-1 x)``,

        ``det(D + U C U^T) = det(D) det(S)`` (matrix determinant lemma).

    C is never inverted. Cost: ``2 n k^2 + 4 n k r`` flops, two passes over U and no copy of it.

    **Accuracy.** Everything is computed in float64; float32 is a type of storage. What limits the
    result is the subtraction: where x lies in the span of U, all but 1 / rho of it cancels, with
    ``rho = |D^-1| |U C U^T|``. The relative error is up to about ``1e-16 rho cond(S)``, beside the
    rounding of the result to its dtype; for other x it is smaller. For x = U w with known w,
    :meth:`EmpiricalFisher.combine` and :meth:`GradientWindow.combine` do without the subtraction.

    References
    ----------
    .. [1] Hager, "Updating the Inverse of a Matrix", SIAM Review 31 (2), 1989.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> U = np.array([[1.0], [1.0], [0.0]])
    >>> s = qd.woodbury.woodbury_solve(2.0, U, np.array([[3.0]]), np.array([5.0, 5.0, 4.0]))
    >>> s.x  # of [[5, 3, 0], [3, 5, 0], [0, 0, 2]]
    array([0.625, 0.625, 2.   ])
    >>> round(float(s.sign * np.exp(s.logdet)), 12)
    32.0
    """
    u = checks.matrix(U, "U")
    n, k = u.shape
    if not (n and k):
        raise ValueError(f"U must have at least one row and one column, got shape {u.shape}")
    checks.finite(u, "U")
    d = _diagonal(diagonal, n, u.dtype)
    c = checks.square(C, "C", k)
    checks.same_type(c, "C", u.dtype, "U")
    checks.finite(c, "C")
    sides = checks.vectors(x, "x", n, u.dtype, "U")
    threads.resolve(n_threads)

    c = c.astype(np.float64)
    M, right = np.zeros((k, k)), np.zeros((k, sides.shape[0]))
    with threads.blas_limit(n_threads):
        for part in _slabs(n, max(k, sides.shape[0])):
            wide = u[part].astype(np.float64)
            scaled = (wide / d[part, None]).T
            M += scaled @ wide
            right += scaled @ sides[:, part].T
        # Each row is divided by what its terms add up to before they cancel.
        terms = 1 + (np.abs(c) @ np.abs(M)).sum(axis=1)
        S = (np.eye(k) + c @ M) / terms[:, None]
        lu, swaps, _ = lapack.dgetrf(S)
        reciprocal, _ = lapack.dgecon(lu, 1.0, norm="I")
        if not reciprocal > k * np.finfo(np.float64).eps:
            raise LinAlgError(
                "I + C U^T D^-1 U is singular to working precision: its reciprocal condition "
                f"number is {reciprocal:.2g}"
            )
        z, _ = lapack.dgetrs(lu, swaps, (c @ right) / terms[:, None])
        out = np.empty(sides.shape, u.dtype)
        for part in _slabs(n, max(k, sides.shape[0])):
            out[:, part] = (sides[:, part] - (u[part] @ z).T) / d[part]

    pivots = np.diagonal(lu)
    swapped = np.count_nonzero(swaps != np.arange(k))
    negative = np.count_nonzero(pivots < 0) + np.count_nonzero(d < 0) + swapped
    logdet = np.log(np.abs(d)).sum() + np.log(np.abs(pivots)).sum() + np.log(terms).sum()
    return WoodburySolution(
        arrays.like(x)(out.reshape(x.shape)), float(logdet), -1.0 if negative % 2 else 1.0
    )


def sherman_morrison(
    J: Array,
    u: Array,
    v: Array | None = None,
    *,
    weight: float = 1.0,
    out: Array | None = None,
    n_threads: int | None = None,
) -> UpdatedInverse:
    """Update an inverse after a change of rank one: ``(A + weight u v^T)^-1`` from ``J = A^-1``.

    Parameters
    ----------
    J : array, shape (n, n)
        The inverse of A; float32 or float64.
    u : array, shape (n,)
        Of the dtype of `J`.
    v : array, shape (n,), optional
        Of the dtype of `J`. Left out it is `u`, and `J` is taken to be symmetric: the result is
        then exactly symmetric if `J` is.
    weight : float, optional
        May be negative (a downdate).
    out : array, shape (n, n), optional
        Where the result goes, C-contiguous; it may be `J`.
    n_threads : int, optional
        Limit of the BLAS threads; None leaves them as they are. It may change the last bits.

    Returns
    -------
    UpdatedInverse
        The new inverse, and by how much ``log |det A|`` and its sign have changed.

    Raises
    ------
    LinAlgError
        If ``1 + weight v^T J u`` is zero within the rounding of `J`: the new matrix is singular.
        `out` is then as before.
    ValueError
        If a shape does not fit, an entry is not finite, or `out` cannot be used.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    ``J - weight (J u)(v^T J) / (1 + weight v^T J u)``, and
    ``det(A + weight u v^T) = (1 + weight v^T J u) det A`` (matrix determinant lemma) [1]_.
    8 n^2 flops, two or three passes over J.

    **Accuracy.** Products and sums are float64, and each entry of the result is rounded once to the
    dtype of `J`. Errors that are in `J` already grow by ``|v| |J u| / |1 + weight v^T J u|``, and a
    long chain of updates adds them up: compute the inverse afresh now and then.

    References
    ----------
    .. [1] Hager, "Updating the Inverse of a Matrix", SIAM Review 31 (2), 1989.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> new = qd.woodbury.sherman_morrison(np.eye(2), np.array([1.0, 1.0]))
    >>> new.inverse * 3
    array([[ 2., -1.],
           [-1.,  2.]])
    >>> round(float(np.exp(new.logdet)), 12)
    3.0
    """
    j = checks.square(J, "J")
    n, dtype = j.shape[0], j.dtype
    checks.finite(j, "J")
    right = checks.vector(u, "u", n, dtype, "J").astype(np.float64)
    left = right if v is None else checks.vector(v, "v", n, dtype, "J").astype(np.float64)
    weight = checks.real(weight, "weight")
    threads.resolve(n_threads)
    if out is None:
        target = np.empty((n, n), dtype)
    else:
        target = checks.output(out, "out", (n, n), dtype, "J")
        checks.itself_or_apart(target, "out", j, "J")

    column, row = np.empty(n), np.zeros(n)  # J u and v^T J
    with threads.blas_limit(n_threads):
        for part in _slabs(n, n):
            wide = j[part].astype(np.float64)
            column[part] = wide @ right
            if v is not None:
                row += left[part] @ wide
    if v is None:
        row = column
    ratio = 1 + weight * float(left @ column)
    terms = 1 + abs(weight) * float(np.abs(left) @ np.abs(column))
    if not abs(ratio) > np.finfo(dtype).eps * terms:
        raise LinAlgError(
            f"A + weight u v^T is singular to working precision: 1 + weight v^T J u is {ratio:.2g}"
        )
    # The root on both sides, so that equal factors give equal products: symmetry is exact.
    factor = -weight / ratio
    root = np.sqrt(abs(factor))
    column, row = np.copysign(root, factor) * column, root * row
    for part in _slabs(n, n):
        target[part] = j[part] + column[part, None] * row
    inverse = arrays.like(J)(target) if out is None else out
    return UpdatedInverse(inverse, float(np.log(abs(ratio))), float(np.sign(ratio)))


def _diagonal(diagonal: Array | float, n: int, dtype: np.dtype[np.floating]) -> np.ndarray:
    if isinstance(diagonal, int | float | np.number):
        d = np.broadcast_to(np.float64(checks.real(diagonal, "diagonal")), n)
    else:
        d = checks.vector(diagonal, "diagonal", n, dtype, "U").astype(np.float64)
    if not d.all():
        raise ValueError(f"diagonal must be nonzero, got 0 at index {int(np.argmin(d != 0))}")
    return d


def _slabs(n: int, width: int) -> Iterator[slice]:
    step = max(1, _SLAB // width)
    return (slice(start, start + step) for start in range(0, n, step))
