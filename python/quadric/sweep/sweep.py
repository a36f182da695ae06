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


class _Finite:
    """Looks at arrays on a GPU without waiting for it until the end."""

    def __init__(self, w: Data) -> None:
        self._found: DeviceArray | None = None
        if isinstance(w, DeviceArray):
            self._found = w.space.full(2, np.int64, -1)
            self._look(w, 0)
        self._w = w

    def check(self, scales: Data) -> bool:
        """Refuse weights that are not finite, and say whether `scales` are."""
        if self._found is None:
            return scales is None or arrays.all_finite(scales)
        if scales is not None:
            self._look(scales, 1)
        of_weights, of_scales = self._found.host()
        if of_weights >= 0:
            checks.finite(self._w, "W")
        return bool(of_scales < 0)

    def _look(self, a: DeviceArray, place: int) -> None:
        assert self._found is not None
        if a.size:
            a.space.run(
                device.arrays().first_not_finite,
                device.flat(a),
                result=self._found[place : place + 1],
            )


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
    group = grid.index(_order(factor, n))
    there = arrays.beside(group, w)
    if not grid.dynamic and m:
        grid.fit(w, _dead(factor), scales, zeros, backend, workers)
    outputs = (codes, scales, zeros, None, mask if pattern.prunes else None)
    loss = _call(w, factor, there, grid, pattern, feedback, outputs, backend, workers)
    finite = _Finite(w)  # this, and all that follows, while a GPU works
    group_index = np.empty_like(group)
    group_index[_order(factor, n)] = group
    index = there if np.array_equal(group, group_index) else arrays.beside(group_index, w)
    if not finite.check(scales):
        largest = np.abs(arrays.host(w)).max()
        raise ValueError(
            f"W must have ranges that {w.dtype} can hold, got entries up to {largest:.2g}"
        )
    like = arrays.like(W)
    return QuantizedMatrix(
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
    group = arrays.zeros(w, n, np.int32)
    workers = threads.resolve(n_threads)
    outputs = (None, None, None, weights, mask if pattern.prunes else None)
    loss = _call(w, factor, group, None, pattern, feedback, outputs, backend, workers)
    _Finite(w).check(None)
    like = arrays.like(W)
    return PrunedMatrix(like(weights), like(mask), None if loss is None else like(loss))


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
    group: Data,
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
    if grid is not None:
        options = (grid.width if grid.dynamic else 0, grid.stale_block, *grid.options)
    kernel(
        w,
        None if factor is None else factor._upper,
        arrays.beside(_order(factor, n), w) if factor is None else factor._there,
        None if (dead := _dead(factor)) is None else arrays.beside(dead, w),
        group,
        *options,
        *pattern.options,
        feedback,
        *outputs,
        loss,
        workers,
    )
    return loss
