"""What all sweeps share: check the arrays, lay out the result, call the kernel."""

from typing import Any

import numpy as np
from scipy.linalg import cho_solve

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.sweep import pattern as patterns
from quadric.sweep.factorize import Factor
from quadric.sweep.grid import Grid
from quadric.sweep.pattern import Pattern
from quadric.sweep.results import PrunedMatrix, QuantizedMatrix


def check_weights(W: Array, factor: Factor | None, *, required: bool = True) -> Data:
    """Return `W` as a matrix that `factor` serves."""
    w = checks.matrix(W, "W", gpu=True)
    if w.shape[1] == 0:
        raise ValueError(f"W must have at least one column, got shape {w.shape}")
    if factor is not None or required:
        if not isinstance(factor, Factor):
            raise TypeError(
                f"factor must come from quadric.sweep.factorize, got {type(factor).__name__}"
            )
        if w.shape[1] != factor.n:
            raise ValueError(f"W must have {factor.n} columns as the factor, got shape {w.shape}")
        if w.dtype != factor.dtype:
            raise TypeError(f"W must be {factor.dtype} as the factor, got {w.dtype}")
        arrays.together(w, factor._upper, "W", "the factor")
    if not isinstance(w, DeviceArray):
        checks.finite(w, "W")
    return w


def _finite(w: Data, scales: Data | None) -> bool:
    """Refuse weights on a GPU that are not finite, and say whether `scales` are; waits for it."""
    if not isinstance(w, DeviceArray):
        return scales is None or arrays.all_finite(scales)
    of_weights, of_scales = w.space.run(device.sweep().first_not_finite, w, scales)
    if of_weights >= 0:
        checks.finite(w, "W")
    return bool(of_scales < 0)


def shift(
    w: Data, factor: Factor, cross: Array | None, strength: float, n_threads: int | None
) -> Data:
    """Return the weights that do best on the inputs X of the compressed model.

    With ``G = (X' - X)^T X / tokens`` for reference inputs X', the least-squares fit of ``W X'``
    by a multiple of X is ``W (I + G H^-1)``; two triangular solves on the rows of ``W G``.
    """
    strength = checks.real(strength, "cross_strength", low=0)
    if cross is None:
        return w
    g = checks.square(cross, "cross", factor.n, gpu=True)
    if g.dtype != w.dtype:
        raise TypeError(f"cross must be {w.dtype} as W, got {g.dtype}")
    arrays.together(g, w, "cross", "W")
    checks.finite(g, "cross")
    if isinstance(w, DeviceArray):
        checks.finite(w, "W")
        return _shift_on_gpu(w, factor, g, strength)
    backwards = factor.order[::-1]
    lower = factor.R.T[::-1, ::-1].T  # column-major: LAPACK takes it without a copy
    with threads.blas_limit(n_threads):
        wg = (w @ g)[:, backwards]
        solved = cho_solve((lower, True), wg.T, check_finite=False).T
    target = w.copy()
    target[:, backwards] += w.dtype.type(strength) * solved
    checks.finite(target, "cross")
    return target


def _shift_on_gpu(w: DeviceArray, factor: Factor, g: DeviceArray, strength: float) -> DeviceArray:
    run, kernels = w.space.run, device.arrays()
    backwards = w.space.from_host(factor.order[::-1])
    wg, solved, target = w.space.empty(w.shape, w.dtype), w.space.empty(w.shape, w.dtype), w.copy()
    run(kernels.gemm, 1.0, arrays.contiguous(w), arrays.contiguous(g), 0.0, wg)
    run(kernels.take_columns, wg, backwards, solved)
    run(kernels.cho_solve_columns, factor._upper.T[::-1, ::-1].T, solved.T)
    run(kernels.add_to_columns, solved, backwards, strength, target)
    checks.finite(target, "cross")
    return target


def quantized(
    W: Array,
    w: Data,
    factor: Factor | None,
    grid: Grid,
    pattern: Pattern = patterns.NONE,
    *,
    feedback: bool = True,
    backend: str | None,
    n_threads: int | None,
) -> QuantizedMatrix:
    """Sweep `w`, the checked `W`, onto `grid`."""
    m, n = w.shape
    workers = threads.resolve(n_threads)
    codes = arrays.empty(w, (m, n), np.uint8)
    scales = arrays.empty(w, (m, grid.groups), w.dtype)
    zeros = arrays.empty(w, (m, grid.groups), np.uint8)
    mask = None if pattern is patterns.NONE else _all_kept(w)
    order = _order(factor, n)
    group = grid.index(order)
    if not grid.dynamic and m:
        grid.fit(w, _dead(factor), scales, zeros, backend, workers)
    outputs = (codes, scales, zeros, None, mask if pattern.prunes else None)
    loss = _call(w, factor, group, grid, pattern, feedback, outputs, backend, workers)
    index = np.empty_like(group)  # this, and all that follows, while a GPU works
    index[order] = group
    like = arrays.like(W)
    result = QuantizedMatrix(
        codes=like(codes),
        scales=like(scales),
        zeros=like(zeros),
        group_index=like(index),
        bits=grid.bits,
        group_size=grid.group_size,
        symmetric=grid.symmetric,
        loss=None if loss is None else like(loss),
        mask=None if mask is None else like(mask),
    )
    if not _finite(w, scales):
        largest = np.abs(arrays.host(w)).max()
        raise ValueError(
            f"W must have ranges that {w.dtype} can hold, got entries up to {largest:.2g}"
        )
    return result


def pruned(
    W: Array,
    w: Data,
    factor: Factor | None,
    pattern: Pattern,
    *,
    feedback: bool = True,
    backend: str | None,
    n_threads: int | None,
) -> PrunedMatrix:
    """Sweep `w`, the checked `W`, with zeros only."""
    m, n = w.shape
    weights = arrays.empty(w, (m, n), w.dtype)
    mask = _all_kept(w)
    group = np.zeros(n, np.int32)
    workers = threads.resolve(n_threads)
    outputs = (None, None, None, weights, mask if pattern.prunes else None)
    loss = _call(w, factor, group, None, pattern, feedback, outputs, backend, workers)
    like = arrays.like(W)
    result = PrunedMatrix(like(weights), like(mask), None if loss is None else like(loss))
    _finite(w, None)
    return result


def _all_kept(w: Data) -> Data:
    mask = arrays.empty(w, w.shape, np.bool_)
    mask.fill(True)
    return mask


def _order(factor: Factor | None, n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64) if factor is None else factor.order


def _dead(factor: Factor | None) -> np.ndarray | None:
    return factor.dead if factor is not None and factor.report.dead else None


def _call(
    w: Data,
    factor: Factor | None,
    group: np.ndarray,
    grid: Grid | None,
    pattern: Pattern,
    feedback: bool,
    outputs: tuple[Data | None, ...],
    backend: str | None,
    workers: int,
) -> Data | None:
    """Call the kernel, and return the loss per row where a factor gives one.

    `outputs` are codes, scales, zeros, weights and mask.
    """
    m, n = w.shape
    kernel = backends.resolve("sweep.sweep", backend, w)
    loss = None if factor is None else arrays.empty(w, m, np.float64)
    if m == 0:
        return loss
    options: tuple[Any, ...] = (0, 0, 0, False, False, 1.0, 1, 0)
    told: Data | None = group
    if grid is not None:
        options = (grid.width if grid.dynamic else 0, grid.stale_block, *grid.options)
    if isinstance(w, DeviceArray):  # where it is needed only if grids are given
        told = None if grid is None or grid.dynamic else arrays.beside(group, w)
    kernel(
        w,
        None if factor is None else factor._upper,
        arrays.beside(_order(factor, n), w) if factor is None else factor._there,
        None if (dead := _dead(factor)) is None else arrays.beside(dead, w),
        told,
        *options,
        *pattern.options,
        feedback,
        *outputs,
        loss,
        workers,
    )
    return loss
