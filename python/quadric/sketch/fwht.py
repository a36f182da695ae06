"""The fast Walsh-Hadamard transform."""

import math

import numpy as np

from quadric import arrays, backends, checks, threads
from quadric.arrays import Array


def fwht(
    x: Array,
    axis: int = 0,
    *,
    orthonormal: bool = False,
    out: Array | None = None,
    check_finite: bool = True,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Array:
    """Multiply by the Hadamard matrix along an axis.

    Parameters
    ----------
    x : array
        float32 or float64, any strides. Its length N along `axis` is a power of two.
    axis : int, optional
    orthonormal : bool, optional
        Whether the result is divided by sqrt(N): the transform is its own inverse then.
    out : array, optional
        Where the result goes: of the shape and dtype of `x`, any strides. It may be `x` itself.
    check_finite : bool, optional
        Whether `x` is looked through for NaN and Inf first.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. The result does not depend on it.

    Returns
    -------
    array
        `out`, or a new array of the type of `x`.

    Raises
    ------
    ValueError
        If N is no power of two, an entry is not finite, or `axis` or `out` does not fit.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    In natural (Sylvester's) order: ``H_1 = 1`` and ``H_2k = [[H_k, H_k], [H_k, -H_k]]``, the matrix
    of :func:`scipy.linalg.hadamard`. ``N log2 N`` additions for each vector. Each entry of the
    result has an error of at most ``log2(N) eps / 2`` times the sum of the absolute entries.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> qd.sketch.fwht(np.array([1.0, 2.0, 3.0, 4.0]))
    array([10., -2., -4.,  0.])
    """
    a = arrays.to_numpy(x, "x")
    checks.floating(a, "x")
    if a.ndim == 0:
        raise ValueError("x must have at least one axis, got a scalar")
    axis = checks.integer(axis, "axis", low=-a.ndim, high=a.ndim - 1) % a.ndim
    size = a.shape[axis]
    if size < 1 or size & (size - 1):
        raise ValueError(
            f"x must have a power of two of entries along axis {axis}, got shape {a.shape}"
        )
    kernel = backends.resolve("sketch.fwht", backend)
    count = threads.resolve(n_threads)
    target = np.empty(a.shape, a.dtype) if out is None else _target(out, a)
    if check_finite:
        checks.finite(a, "x")

    work = target if target.flags.c_contiguous else np.empty(a.shape, a.dtype)
    if work is not a:
        np.copyto(work, a)
    if work.size:
        inner = math.prod(a.shape[axis + 1 :])
        kernel(work.reshape(-1, size, inner), count)
    if orthonormal:
        work *= work.dtype.type(size**-0.5)
    if work is not target:
        target[...] = work
    return arrays.like(x)(target) if out is None else out


def _target(out: Array, a: np.ndarray) -> np.ndarray:
    target = arrays.to_numpy(out, "out")
    if target.shape != a.shape:
        raise ValueError(f"out must have the shape of x, {a.shape}, got {target.shape}")
    checks.same_type(target, "out", a.dtype, "x")
    if not target.flags.writeable:
        raise ValueError("out must be writable, got a read-only array")
    checks.itself_or_apart(target, "out", a, "x")
    return target
