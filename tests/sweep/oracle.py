"""Naive float64 GPTQ, SparseGPT and joint sweep, written from the published definition.

With U upper and U^T U = H^-1, for each column j in sweep order, on the current weights w:

    q_j = Q(w_j),    e_j = (w_j - q_j) / U_jj,    w_{j:} -= e_j U_{j,j:}

An explicit inverse and one rank-one update of everything per column; no blocks. Nothing is shared
with the package, whose recurrence is another one. Option names are the package's, so that a test
hands the same dictionary to both.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

STALE_BLOCK = 128  # the original code looks at its weights once in so many columns
MSE_STEPS, MSE_GRID = 80, 100
# significant digits, exponent of the smallest subnormal, largest finite number
FORMATS = {"float16": (11, -24, 65504.0), "bfloat16": (8, -133, (2.0 - 2.0**-7) * 2.0**127)}


def damped(hessian: Array, damping: float) -> tuple[Array, Mask]:
    """Return H + damping * mean(live diagonal) I with 1 at the dead inputs, and which are dead."""
    h = np.array(hessian, np.float64)
    dead = np.diag(h) == 0.0
    if not dead.all():
        h[np.diag_indices_from(h)] += damping * np.diag(h)[~dead].mean()
    h[dead, dead] = 1.0
    return h, dead


# ---- grids ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How a group of weights gets its scale and zero point."""

    bits: int | str
    symmetric: bool = False
    scale: str = "minmax"
    scale_dtype: str | None = None
    mse_norm: float = 2.0

    @property
    def maxq(self) -> int:
        return 2 if self.bits == "ternary" else 2 ** int(self.bits) - 1

    def candidates(self, w: Array) -> tuple[Array, Array]:
        """Return the scales and zero points to choose from, (candidates, rows), not rounded yet."""
        lo = np.minimum(w.min(axis=1), 0.0)
        hi = np.maximum(w.max(axis=1), 0.0)
        if self.symmetric:
            hi = np.maximum(-lo, hi)
            lo = -hi
        empty = (lo == 0.0) & (hi == 0.0)
        lo, hi = np.where(empty, -1.0, lo), np.where(empty, 1.0, hi)
        shrink = 1.0 - np.arange(MSE_STEPS if self.scale == "mse" else 1)[:, None] / MSE_GRID
        lo, hi = shrink * lo, shrink * hi
        scales = (hi - lo) / self.maxq
        middle = np.full(scales.shape, float((self.maxq + 1) // 2))
        return scales, middle if self.symmetric else -lo / self.stored(scales)

    def stored(self, scale: Array) -> Array:
        """Round positive scales to the stored format, never to zero and never to infinity."""
        if self.scale_dtype is None:
            return scale
        digits, smallest, largest = FORMATS[self.scale_dtype]
        quantum = np.ldexp(1.0, np.maximum(np.frexp(scale)[1] - digits, smallest))
        return np.clip(np.rint(scale / quantum) * quantum, 2.0**smallest, largest)

    def zero_point(self, real: Array) -> Array:
        return np.clip(np.rint(real), 0, self.maxq)

    def round(self, x: Array, zero: Array) -> Array:
        """Return the codes of targets x, given in units of the scale."""
        return np.clip(np.rint(x) + zero, 0, self.maxq)

    def misfit(self, w: Array, scale: Array, zero: Array) -> Array:
        """Return |q - w|^norm for each entry of w (rows, columns)."""
        scale, zero = scale[..., None], zero[..., None]
        return np.abs(scale * (self.round(w / scale, zero) - zero) - w) ** self.mse_norm

    def fit(self, w: Array) -> tuple[Array, Array]:
        """Return the best scale and zero point of each row of w; the first candidate wins ties."""
        scales, zeros = self.candidates(w)
        scales, zeros = self.stored(scales), self.zero_point(zeros)
        best = self.misfit(w, scales, zeros).sum(axis=2).argmin(axis=0), np.arange(len(w))
        return scales[best], zeros[best]


# ---- the sweep -----------------------------------------------------------------------------------


class Unaided:
    """Takes every decision itself; `Witness` beside this file listens to a kernel where it may."""

    def start(self, w: Array, h: Array, u: Array, order: NDArray[np.int64]) -> None:
        """Begin with weights w, Hessian h and factor u, all in sweep order."""

    def grid(self, group: int, grid: Grid, seen: Array, since: int, width: int) -> tuple:
        """Choose the grid of the last ``width`` columns of ``seen``, which begins at ``since``."""
        return grid.fit(seen[:, seen.shape[1] - width :])

    def zeroed(self, j: int, window: Array, scores: Array, drop: NDArray[np.int64]) -> Mask:
        """Choose the ``drop`` smallest scores of each row, or of all if drop has one element."""
        flat = scores if len(drop) == len(scores) else scores.reshape(1, -1)
        rank = flat.argsort(axis=1, kind="stable").argsort(axis=1)
        return (rank < drop[:, None]).reshape(scores.shape)

    def code(self, j: int, grid: Grid, t: Array, scale: Array, zero: Array) -> Array:
        """Choose the codes of targets t of column j."""
        return grid.round(t / scale, zero)

    def done(self, j: int, t: Array, q: Array) -> None:
        """Column j went from the current weight t to q."""


@dataclass(frozen=True)
class Outcome:
    """What a sweep decides, in the original column order."""

    weights: Array
    mask: Mask
    codes: NDArray[np.uint8] | None = None
    scales: Array | None = None
    zeros: NDArray[np.uint8] | None = None
    group_index: NDArray[np.int32] | None = None


def sweep(
    weights: Array,
    hessian: Array | None,
    order: NDArray[np.int64] | None = None,
    *,
    dead: Mask | None = None,
    bits: int | str | None = None,
    group_size: int | str | None = None,
    symmetric: bool = False,
    scale: str = "minmax",
    static_groups: bool = False,
    stale_scales: bool = False,
    scale_dtype: str | None = None,
    mse_norm: float = 2.0,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    per_row: bool = False,
    block_size: int | None = 128,
    u: Array | None = None,
    witness: Unaided | None = None,
) -> Outcome:
    """Sweep weights (m, n) with a damped Hessian (n, n), both in the original column order.

    ``bits=None`` only prunes. ``hessian=None`` has no feedback: rounding to nearest, magnitudes.
    ``u`` is U in sweep order where the caller knows it exactly.
    """
    m, n = weights.shape
    order = np.arange(n) if order is None else np.asarray(order)
    back = np.argsort(order)
    original = np.array(weights, np.float64)
    if dead is not None:
        original[:, dead] = 0.0
    current = original[:, order]
    h = np.eye(n) if hessian is None else np.asarray(hessian, np.float64)[np.ix_(order, order)]
    u = np.linalg.cholesky(np.linalg.inv(h)).T if u is None else u
    witness = Unaided() if witness is None else witness
    witness.start(current, h, u, order)

    grid = Grid(
        bits=bits or 2,
        symmetric=symmetric,
        scale=scale,
        scale_dtype=scale_dtype,
        mse_norm=mse_norm,
    )
    block_size = block_size or n
    size = n if group_size in (None, "tensor") else int(group_size)
    static = static_groups or group_size == "tensor"
    groups = (order if static else np.arange(n)) // size
    count = -(-n // size)
    scales, zeros = np.ones((m, count)), np.zeros((m, count))
    if bits and static:
        for g in range(count):
            block = original[:, g * size : (g + 1) * size]
            block = block.reshape(1, -1) if group_size == "tensor" else block
            scales[:, g], zeros[:, g] = witness.grid(g, grid, block, 0, block.shape[1])

    codes, result, gone = np.zeros((m, n)), np.zeros((m, n)), np.zeros((m, n), bool)
    zeroed = 0
    for j in range(n):
        if j % STALE_BLOCK == 0:
            stale, stale_at = current.copy(), j
        if bits and not static and j % size == 0:
            seen, since = (stale, stale_at) if stale_scales else (current, j)
            end = min(j + size, n)
            scales[:, j // size], zeros[:, j // size] = witness.grid(
                j // size, grid, seen[:, since:end], since, end - j
            )
        window, drop = 0, np.zeros(0, int)
        if pattern is not None and j % pattern[1] == 0:
            window, drop = pattern[1], np.full(m, pattern[1] - pattern[0])
        elif sparsity is not None and j % block_size == 0:
            window = min(block_size, n - j)
            total = math.floor(sparsity * ((1 if per_row else m) * (j + window)) + 0.5)
            drop = np.full(m if per_row else 1, total - zeroed)
            zeroed = total
        if window:
            seen = current[:, j : j + window]
            scores = (seen / np.diag(u)[j : j + window]) ** 2
            gone[:, j : j + window] = witness.zeroed(j, seen, scores, drop)

        t = np.where(gone[:, j], 0.0, current[:, j])
        q = t
        if bits:
            codes[:, j] = witness.code(j, grid, t, scales[:, groups[j]], zeros[:, groups[j]])
            q = scales[:, groups[j]] * (codes[:, j] - zeros[:, groups[j]])
        result[:, j] = q
        witness.done(j, current[:, j].copy(), q)
        if hessian is not None:
            current[:, j:] -= np.outer((current[:, j] - q) / u[j, j], u[j, j:])

    pruned = Outcome(weights=result[:, back], mask=~gone[:, back])
    if not bits:
        return pruned
    return Outcome(
        weights=pruned.weights,
        mask=pruned.mask,
        codes=codes[:, back].astype(np.uint8),
        scales=scales,
        zeros=zeros.astype(np.uint8),
        group_index=groups[back].astype(np.int32),
    )
