"""The fast Walsh-Hadamard transform."""

import math
from typing import Any

import numpy as np

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Array
from quadric.device import DeviceArray


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
        float32 or float64, on a GPU also float16 or bfloat16, any strides. Its length N along
        `axis` is a power of two.
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
    Entries of 16 bits are transformed in float32 and rounded once, after the division by sqrt(N) of
    the entries themselves, so that the transform stays in their range.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> qd.sketch.fwht(np.array([1.0, 2.0, 3.0, 4.0]))
    array([10., -2., -4.,  0.])
    """
    if device.find(x) is None:
        a = arrays.to_numpy(x, "x")
        checks.floating(a, "x")
    else:
        a = checks.storage(x, "x", gpu=True)
    if a.ndim == 0:
        raise ValueError("x must have at least one axis, got a scalar")
    axis = checks.integer(axis, "axis", low=-a.ndim, high=a.ndim - 1) % a.ndim
    size = a.shape[axis]
    if size < 1 or size & (size - 1):
        raise ValueError(
            f"x must have a power of two of entries along axis {axis}, got shape {a.shape}"
        )
    kernel = backends.resolve("sketch.fwht", backend, a)
    count = threads.resolve(n_threads, a)
    if isinstance(a, DeviceArray):
        to = a if out is x else None if out is None else _target_on_gpu(out, a)
        if check_finite:
            checks.finite(a, "x")
        result = _on_gpu(a, axis, orthonormal, to, kernel)
        return result.finished() if out is None else out
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


def _on_gpu(
    a: DeviceArray, axis: int, orthonormal: bool, to: DeviceArray | None, kernel: Any
) -> DeviceArray:
    work = to if to is not None and to.c_contiguous else arrays.empty(a, a.shape, a.dtype)
    if a.size:
        if orthonormal:
            scale = a.shape[axis] ** -0.5
            work.assign(a.space.apply(lambda xp, x: xp.multiply(x, scale), a))
        elif not (work.pointer == a.pointer and work.strides == a.strides):
            work.assign(a)
        kernel(work.reshape(-1, a.shape[axis], math.prod(a.shape[axis + 1 :])), 1)
        if to is not None and work is not to:
            to.assign(work)
    return work


def _target_on_gpu(out: Array, a: DeviceArray) -> DeviceArray:
    target: DeviceArray = checks.storage(out, "out", gpu=True)
    if target.shape != a.shape:
        raise ValueError(f"out must have the shape of x, {a.shape}, got {target.shape}")
    checks.same_type(target, "out", a.dtype, "x")
    arrays.together(target, a, "out", "x")
    same = (target.pointer, target.strides) == (a.pointer, a.strides)
    if not same and a.size:
        (low, high), (first, last) = (_bounds(v) for v in (target, a))
        if low < last and first < high:
            raise ValueError("out must be x itself or share no memory with it, got a part")
    return target


def _bounds(a: DeviceArray) -> tuple[int, int]:
    steps = [(n - 1) * s * a.dtype.itemsize for n, s in zip(a.shape, a.strides, strict=True)]
    low = a.pointer + sum(min(s, 0) for s in steps)
    return low, a.pointer + sum(max(s, 0) for s in steps) + a.dtype.itemsize


def _target(out: Array, a: np.ndarray) -> np.ndarray:
    target = arrays.to_numpy(out, "out")
    if target.shape != a.shape:
        raise ValueError(f"out must have the shape of x, {a.shape}, got {target.shape}")
    checks.same_type(target, "out", a.dtype, "x")
    if not target.flags.writeable:
        raise ValueError("out must be writable, got a read-only array")
    checks.itself_or_apart(target, "out", a, "x")
    return target
