"""The two identities behind the family, for matrices of any kind."""

from collections.abc import Iterator

import numpy as np
from scipy.linalg import lapack

from quadric import arrays, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.errors import LinAlgError
from quadric.woodbury.results import UpdatedInverse, WoodburySolution

_SLAB = 262_144  # entries that are held in float64 at a time
_SLAB_ON_GPU = 16_777_216


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
    u = checks.matrix(U, "U", gpu=True)
    n, k = u.shape
    if not (n and k):
        raise ValueError(f"U must have at least one row and one column, got shape {u.shape}")
    checks.finite(u, "U")
    d = _diagonal(diagonal, n, u)
    c = checks.square(C, "C", k, gpu=True)
    checks.same_type(c, "C", u.dtype, "U")
    checks.finite(c, "C")
    sides = checks.vectors(x, "x", n, u.dtype, "U", gpu=True)
    for a, name in ((d, "diagonal"), (c, "C"), (sides, "x")):
        arrays.together(a, u, name, "U")
    threads.resolve(n_threads)

    c = arrays.host(c).astype(np.float64)
    products, combined = (
        (_products_on_gpu, _combined_on_gpu)
        if isinstance(u, DeviceArray)
        else (_products, _combined)
    )
    with threads.blas_limit(n_threads):
        M, right = products(u, d, sides)
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
        out = combined(u, d, sides, z)

    d = arrays.host(d)
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
    j = checks.square(J, "J", gpu=True)
    n, dtype = j.shape[0], j.dtype
    checks.finite(j, "J")
    right = checks.vector(u, "u", n, dtype, "J", gpu=True).astype(np.float64)
    left = right
    if v is not None:
        left = checks.vector(v, "v", n, dtype, "J", gpu=True).astype(np.float64)
    for a, name in ((right, "u"), (left, "v")):
        arrays.together(a, j, name, "J")
    weight = checks.real(weight, "weight")
    threads.resolve(n_threads)
    if out is None:
        target = arrays.empty(j, (n, n), dtype)
    else:
        target = checks.output(out, "out", (n, n), dtype, "J", gpu=True)
        arrays.together(target, j, "out", "J")
        checks.itself_or_apart(target, "out", j, "J")

    with threads.blas_limit(n_threads):
        column, row = _images(j, right, None if v is None else left)  # J u and v^T J
    left = arrays.host(left)
    ratio = 1 + weight * float(left @ column)
    terms = 1 + abs(weight) * float(np.abs(left) @ np.abs(column))
    if not abs(ratio) > np.finfo(dtype).eps * terms:
        raise LinAlgError(
            f"A + weight u v^T is singular to working precision: 1 + weight v^T J u is {ratio:.2g}"
        )
    # The root on both sides, so that equal factors give equal products: symmetry is exact.
    factor = -weight / ratio
    root = np.sqrt(abs(factor))
    _add_product(j, np.copysign(root, factor) * column, root * row, target)
    inverse = arrays.like(J)(target) if out is None else out
    return UpdatedInverse(inverse, float(np.log(abs(ratio))), float(np.sign(ratio)))


def _diagonal(diagonal: Array | float, n: int, u: Data) -> Data:
    if isinstance(diagonal, int | float | np.number):
        value = np.float64(checks.real(diagonal, "diagonal"))
        if isinstance(u, DeviceArray) and value:
            return u.space.full(n, np.float64, float(value))
        d = np.broadcast_to(value, n)
    else:
        d = checks.vector(diagonal, "diagonal", n, u.dtype, "U", gpu=True).astype(np.float64)
    zero = arrays.host(d) == 0
    if zero.any():
        raise ValueError(f"diagonal must be nonzero, got 0 at index {int(np.argmax(zero))}")
    return d


def _slabs(n: int, width: int, most: int = _SLAB) -> Iterator[slice]:
    step = max(1, most // width)
    return (slice(start, start + step) for start in range(0, n, step))


# The passes over the large matrices, in float64, a slab at a time. On a GPU as well, where the
# small matrices come to the host, as their determinant does.


def _products(u: Data, d: Data, sides: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return ``U^T D^-1 U`` and ``U^T D^-1 x^T``."""
    k, r = u.shape[1], sides.shape[0]
    M, right = np.zeros((k, k)), np.zeros((k, r))
    for part in _slabs(u.shape[0], max(k, r)):
        wide = u[part].astype(np.float64)
        scaled = (wide / d[part, None]).T
        M += scaled @ wide
        right += scaled @ sides[:, part].T
    return M, right


def _combined(u: Data, d: Data, sides: Data, z: np.ndarray) -> Data:
    """Return ``D^-1 (x - U z)``, in rows as x."""
    out = np.empty(sides.shape, u.dtype)
    for part in _slabs(u.shape[0], max(u.shape[1], sides.shape[0])):
        out[:, part] = (sides[:, part] - (u[part] @ z).T) / d[part]
    return out


def _products_on_gpu(
    u: DeviceArray, d: DeviceArray, sides: DeviceArray
) -> tuple[np.ndarray, np.ndarray]:
    run, kernels, (k, r) = u.space.run, device.arrays(), (u.shape[1], sides.shape[0])
    both = u.space.full((k, k + r), np.float64, 0.0)
    for part in _slabs(u.shape[0], max(k, r), _SLAB_ON_GPU):
        wide = u[part].astype(np.float64)
        scaled = wide.copy()
        run(kernels.scale_rows, _reciprocals(d[part]), scaled)
        run(kernels.gemm, 1.0, scaled.T, wide, 1.0, both[:, :k])
        if r:
            x = sides[:, part].astype(np.float64)
            run(kernels.gemm, 1.0, scaled.T, x.T, 1.0, both[:, k:])
    found = both.host()
    return found[:, :k], found[:, k:]


def _combined_on_gpu(
    u: DeviceArray, d: DeviceArray, sides: DeviceArray, z: np.ndarray
) -> DeviceArray:
    run, kernels = u.space.run, device.arrays()
    out, there = u.space.empty(sides.shape, u.dtype), u.space.from_host(z)
    if not out.size:
        return out
    for part in _slabs(u.shape[0], max(u.shape[1], sides.shape[0]), _SLAB_ON_GPU):
        x = sides[:, part].astype(np.float64, copy=True)
        run(kernels.gemm, -1.0, there.T, u[part].astype(np.float64).T, 1.0, x)
        run(kernels.scale_rows, _reciprocals(d[part]), x.T)
        out[:, part].assign(x)
    return out


def _reciprocals(d: DeviceArray) -> DeviceArray:
    result = d.space.full(d.shape, np.float64, 1.0)
    d.space.run(device.arrays().divide, device.flat(d), device.flat(result))
    return result


def _images(j: Data, right: Data, left: Data | None) -> tuple[np.ndarray, np.ndarray]:
    """Return ``J right`` and ``left^T J``; the first one twice without `left`."""
    n = len(j)
    if isinstance(j, DeviceArray):
        run, gemm = j.space.run, device.arrays().gemm
        on_gpu = j.space.full((2, n), np.float64, 0.0)
        for part in _slabs(n, n, _SLAB_ON_GPU):
            wide = j[part].astype(np.float64)
            run(gemm, 1.0, wide, right.reshape(n, 1), 0.0, on_gpu[0, part].reshape(-1, 1))
            if left is not None:
                run(gemm, 1.0, left[part].reshape(1, -1), wide, 1.0, on_gpu[1:])
        column, row = on_gpu.host()
    else:
        column, row = np.empty(n), np.zeros(n)
        for part in _slabs(n, n):
            wide = j[part].astype(np.float64)
            column[part] = wide @ right
            if left is not None:
                row += left[part] @ wide
    return column, column if left is None else row


def _add_product(j: Data, column: np.ndarray, row: np.ndarray, target: Data) -> None:
    """Write ``J + column row``, each entry rounded once."""
    n = len(j)
    if isinstance(j, DeviceArray):
        c, r = j.space.from_host(column).reshape(n, 1), j.space.from_host(row).reshape(1, n)
        for part in _slabs(n, n, _SLAB_ON_GPU):
            sums = j[part].astype(np.float64, copy=True)
            j.space.run(device.arrays().gemm, 1.0, c[part], r, 1.0, sums)
            target[part].assign(sums)
        return
    for part in _slabs(n, n):
        target[part] = j[part] + column[part, None] * row
