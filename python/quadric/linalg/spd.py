"""Batched Cholesky factorization, and what follows from it."""

import math
from dataclasses import dataclass

import numpy as np

from quadric import arrays, backends, checks, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.errors import LinAlgError

_LARGEST = 256  # beyond it LAPACK, one matrix at a time, is as fast

_CHOLESKY, _INVERSE, _SOLVE, _LOGDET = range(4)


@dataclass(frozen=True, slots=True, eq=False)
class SpdResult:
    """What came out for each matrix of a batch.

    Attributes
    ----------
    value : array
        The factors, inverses, solutions or log-determinants; NaN for a matrix that failed.
    logdet : array of float64, shape (...)
        ``log det A``; NaN for a matrix that failed.
    status : array of int32, shape (...)
        -1, or the first pivot that was not positive and finite.
    """

    value: Array
    logdet: Array
    status: Array

    @property
    def ok(self) -> bool:
        """Whether every matrix was positive definite."""
        return bool((self.status == -1).all())

    def __repr__(self) -> str:
        failed = int((self.status != -1).sum())
        return f"SpdResult(value={tuple(self.value.shape)}, failed={failed})"


def cholesky(
    A: Array,
    *,
    on_failure: str = "raise",
    backend: str | None = None,
    n_threads: int | None = None,
) -> SpdResult:
    """Factor every matrix: ``A = L L^T``, B^3 / 3 flops each.

    Parameters
    ----------
    A : array, shape (..., B, B)
        Symmetric positive definite, float32 or float64, B from 1 to 256, any strides. Only the
        lower triangles are read.
    on_failure : {"raise", "nan"}, optional
        What to do where a matrix is not positive definite, or not finite. "nan" fills its result
        with NaN and says in ``status`` which pivot failed.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    SpdResult
        ``value`` (..., B, B) is L, with zeros above the diagonal.

    Raises
    ------
    LinAlgError
        If a matrix is not positive definite, with ``on_failure="raise"``; the message names the
        first such matrix, and ``.pivot`` is its pivot.
    ValueError
        If a shape does not fit, or an option is unknown.
    TypeError
        If `A` is not of type float32 or float64.

    Notes
    -----
    ``|A - L L^T| <= (B + 1) eps |L| |L|^T`` entry by entry, with the eps of the dtype [1]_.

    References
    ----------
    .. [1] Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM, 2002,
       theorem 10.3.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.array([[[4.0, 2.0], [2.0, 5.0]], [[1.0, 0.0], [0.0, 9.0]]])
    >>> qd.linalg.cholesky(A).value
    array([[[2., 0.],
            [1., 2.]],
           [[1., 0.],
            [0., 3.]]])
    """
    return _run(A, _CHOLESKY, None, on_failure, backend, n_threads)


def inverse(
    A: Array,
    *,
    on_failure: str = "raise",
    backend: str | None = None,
    n_threads: int | None = None,
) -> SpdResult:
    """Invert every matrix, B^3 flops each.

    Parameters
    ----------
    A : array, shape (..., B, B)
        As in :func:`cholesky`.
    on_failure : {"raise", "nan"}, optional
        As in :func:`cholesky`.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    SpdResult
        ``value`` (..., B, B) is ``A^-1``, exactly symmetric.

    Raises
    ------
    LinAlgError
        If a matrix is not positive definite, with ``on_failure="raise"``.
    ValueError
        If a shape does not fit, or an option is unknown.
    TypeError
        If `A` is not of type float32 or float64.

    Notes
    -----
    ``A^-1 = L^-T L^-1``. The relative error grows with the condition number: about
    ``B cond(A) eps``.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> qd.linalg.inverse(np.array([[4.0, 2.0], [2.0, 5.0]])).value
    array([[ 0.3125, -0.125 ],
           [-0.125 ,  0.25  ]])
    """
    return _run(A, _INVERSE, None, on_failure, backend, n_threads)


def solve(
    A: Array,
    b: Array,
    *,
    on_failure: str = "raise",
    check_finite: bool = True,
    backend: str | None = None,
    n_threads: int | None = None,
) -> SpdResult:
    """Solve ``A x = b`` with every matrix, B^3 / 3 + 2 B^2 k flops each.

    Parameters
    ----------
    A : array, shape (..., B, B)
        As in :func:`cholesky`.
    b : array, shape (..., B) or (..., B, k)
        One right-hand side for each matrix, or k as columns; of the dtype of `A`, with the same
        leading shape.
    on_failure : {"raise", "nan"}, optional
        As in :func:`cholesky`.
    check_finite : bool, optional
        False leaves it to the caller that `b` holds neither NaN nor Inf. With
        ``on_failure="nan"`` nothing then waits for a GPU.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    SpdResult
        ``value`` is x, of the shape of `b`.

    Raises
    ------
    LinAlgError
        If a matrix is not positive definite, with ``on_failure="raise"``.
    ValueError
        If a shape does not fit, `b` is not finite, or an option is unknown.
    TypeError
        If `A` is not of type float32 or float64, or `b` not of that of `A`.

    Notes
    -----
    The computed x solves ``(A + E) x = b`` with ``|E| <= (3 B + 1) eps |L| |L|^T`` entry by entry
    (Higham, theorem 10.4).

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.array([[4.0, 2.0], [2.0, 5.0]])
    >>> qd.linalg.solve(A, np.array([8.0, 12.0])).value
    array([1., 2.])
    """
    return _run(A, _SOLVE, b, on_failure, backend, n_threads, check_finite)


def logdet(
    A: Array,
    *,
    on_failure: str = "raise",
    backend: str | None = None,
    n_threads: int | None = None,
) -> SpdResult:
    """Compute ``log det A`` of every matrix, B^3 / 3 flops each.

    Parameters
    ----------
    A : array, shape (..., B, B)
        As in :func:`cholesky`.
    on_failure : {"raise", "nan"}, optional
        As in :func:`cholesky`.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    SpdResult
        ``value`` is ``logdet``, (...) float64.

    Raises
    ------
    LinAlgError
        If a matrix is not positive definite, with ``on_failure="raise"``.
    ValueError
        If a shape does not fit, or an option is unknown.
    TypeError
        If `A` is not of type float32 or float64.

    Notes
    -----
    Twice the sum of the logarithms of the pivots' roots, summed in float64, so it neither
    overflows nor underflows as the determinant would.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.array([[[4.0, 2.0], [2.0, 5.0]], [[1.0, 0.0], [0.0, 9.0]]])
    >>> np.exp(qd.linalg.logdet(A).value).round(12)
    array([16.,  9.])
    """
    return _run(A, _LOGDET, None, on_failure, backend, n_threads)


def _run(
    A: Array,
    what: int,
    b: Array,
    on_failure: str,
    backend: str | None,
    n_threads: int | None,
    check_finite: bool = True,
) -> SpdResult:
    a = arrays.take(A, "A")
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"A must have shape (..., B, B), got {a.shape}")
    checks.floating(a, "A")
    *lead, size = a.shape[:-1]
    if not 1 <= size <= _LARGEST:
        raise ValueError(f"A must have matrices of 1 to {_LARGEST} rows, got shape {a.shape}")
    checks.choice(on_failure, "on_failure", ("raise", "nan"))
    sides = _right_hand_sides(b, a, check_finite) if what == _SOLVE else None
    kernel = backends.resolve("linalg.spd", backend, a)
    workers = threads.resolve(n_threads)

    count = math.prod(lead)
    shape = a.shape if sides is None else sides.shape
    log = arrays.empty(a, tuple(lead), np.float64)
    value = log if what == _LOGDET else arrays.empty(a, shape, a.dtype)
    status = arrays.empty(a, tuple(lead), np.int32)
    if count:
        k = 1 if len(shape) < a.ndim else shape[-1]
        with threads.blas_limit(1):  # the kernel calls BLAS from threads of its own
            kernel(
                a if len(lead) == 1 else a.reshape(count, size, size),
                None if sides is None else sides.reshape(count, size, k),
                what,
                None if what == _LOGDET else value.reshape(count, size, k),
                log.reshape(count),
                status.reshape(count),
                workers,
            )
    if on_failure == "raise":
        _refuse_failures(status)
    like = arrays.like(A)
    return SpdResult(like(value), like(log), like(status))


def _refuse_failures(status: Data) -> None:
    if isinstance(status, DeviceArray):
        good = status.space.full(1, np.int32, -1).spread(status.shape)
        if arrays.equal(status, good):
            return
        status = status.host()
    failed = status != -1
    if failed.any():
        first = np.unravel_index(np.argmax(failed), failed.shape)
        which = f"A[{', '.join(str(i) for i in first)}]" if status.ndim else "A"
        pivot = int(status[first])
        raise LinAlgError(f"{which} is not positive definite: pivot {pivot}", pivot=pivot)


def _right_hand_sides(b: Array, a: Data, check_finite: bool) -> Data:
    sides = arrays.take(b, "b")
    if sides.shape[: a.ndim - 1] != a.shape[:-1] or sides.ndim > a.ndim:
        wanted = ", ".join(str(n) for n in a.shape[:-1])
        raise ValueError(f"b must have shape ({wanted}) or ({wanted}, k), got {sides.shape}")
    if sides.dtype != a.dtype:
        raise TypeError(f"b must be {a.dtype} as A, got {sides.dtype}")
    arrays.together(sides, a, "b", "A")
    if check_finite:
        checks.finite(sides, "b")
    return sides
