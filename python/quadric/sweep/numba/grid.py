"""The quantization grid of a group of weights, for many rows at once.

lo = min(w, 0), hi = max(w, 0); symmetric: hi = max(-lo, hi), lo = -hi.
scale = (hi - lo) / maxq; zero = rint(-lo / scale), symmetric: (maxq + 1) // 2.
q = scale (code - zero), code = clip(rint(w / scale) + zero, 0, maxq).
The search shrinks lo and hi by 1 % per step and keeps the least sum of |q - w|^norm.

Blocks are stored with a column of W per row of memory, so that the vector lanes run over rows of W.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.parallel import run
from quadric.sweep.numba.power import power
from quadric.sweep.numba.tiles import load

Array = NDArray[Any]

ROWS = 256  # rows of W per piece of work
LANES = 32  # rows searched together: the search of all ends when none of them can still improve
STRIDE = 16  # columns between two looks at whether it can end

Format = tuple[int, int, float, float]


def scale_format(scale_bits: int, dtype: np.dtype[Any]) -> Format:
    """Return what scales are rounded to: precision, least exponent, least and largest value."""
    if scale_bits == 0:
        info = np.finfo(dtype)
        return 0, 0, float(info.smallest_subnormal), float(info.max)
    precision, exponent, top = {16: (11, -14, 15), 17: (8, -126, 127)}[scale_bits]
    least = 2.0 ** (exponent - precision + 1)
    return precision, exponent, least, (2.0 - 2.0 ** (1 - precision)) * 2.0**top


@compiled
def round_scale(scale: float, precision: int, exponent: int, least: float, most: float) -> float:
    """Round to nearest even in a narrow float format, kept within its positive finite values."""
    rounded = min(float(scale), most)
    if precision > 0 and rounded > 0:
        # One unit in the last place is a power of two, so only rint rounds.
        e = max(math.frexp(rounded)[1] - 1, exponent)
        unit = math.ldexp(1.0, e - precision + 1)
        rounded = min(np.rint(rounded / unit) * unit, most)
    return max(rounded, least)


@compiled
def bounds(w: Array, symmetric: bool, lo: Array, hi: Array) -> None:
    """Write the range that the grid of each lane covers; w is (columns, lanes)."""
    for r in range(w.shape[1]):
        lo[r] = 0
        hi[r] = 0
    for k in range(w.shape[0]):
        for r in range(w.shape[1]):
            x = w[k, r]
            lo[r] = x if x < lo[r] else lo[r]
            hi[r] = x if x > hi[r] else hi[r]
    for r in range(w.shape[1]):
        if symmetric:
            hi[r] = max(-lo[r], hi[r])
            lo[r] = -hi[r]
        if lo[r] == hi[r]:
            lo[r] = -1
            hi[r] = 1


@compiled
def grid_of(
    lo: Array, hi: Array, maxq: Any, symmetric: bool, rounding: Format, scale: Array, zero: Array
) -> None:
    """Write scale and zero of each lane's range."""
    for r in range(len(lo)):
        scale[r] = (hi[r] - lo[r]) / maxq
    for r in range(len(lo)):
        if rounding[0] > 0 or not scale[r] > 0:
            scale[r] = round_scale(scale[r], rounding[0], rounding[1], rounding[2], rounding[3])
    for r in range(len(lo)):
        if symmetric:
            zero[r] = np.rint(maxq / 2 + 0.25)  # (maxq + 1) // 2 for an integer maxq
        else:
            zero[r] = min(max(np.rint(-lo[r] / scale[r]), 0), maxq)


@compiled
def deviation(x: Any, scale: Any, zero: Any, maxq: Any) -> Any:
    """Return |q - x|."""
    nothing = maxq - maxq  # 0 in the dtype: a literal would make float32 arithmetic float64
    code = min(max(np.rint(x / scale) + zero, nothing), maxq)
    return abs(scale * (code - zero) - x)


@compiled
def error_of(x: Any, scale: Any, zero: Any, maxq: Any, norm: Any) -> Any:
    """Return |q - x|^norm."""
    d = deviation(x, scale, zero, maxq)
    return d * d if norm == 2 else power(d, norm)


@compiled
def add_errors(w: Array, scale: Array, zero: Array, maxq: Any, norm: Any, error: Array) -> None:
    """Add the errors of the columns of w to those of its lanes."""
    for k in range(w.shape[0]):
        x = w[k]
        if norm == 2:
            for r in range(len(error)):
                d = deviation(x[r], scale[r], zero[r], maxq)
                error[r] += d * d
        else:
            for r in range(len(error)):
                error[r] += power(deviation(x[r], scale[r], zero[r], maxq), norm)


@compiled
def any_less(a: Array, b: Array) -> bool:
    """Return whether a lane of a is less than that of b."""
    less = False
    for r in range(len(a)):
        less |= a[r] < b[r]
    return less


@compiled
def search(
    w: Array, maxq: Any, symmetric: bool, norm: Any, steps: int, rounding: Format,
    lo: Array, hi: Array, scale: Array, zero: Array
) -> None:  # fmt: skip
    """Try narrower and narrower ranges; scale and zero enter as those of the full one."""
    columns, lanes = w.shape
    least = np.zeros(lanes, w.dtype)
    most = np.zeros(lanes, w.dtype)
    for k in range(columns):
        for r in range(lanes):
            least[r] = min(w[k, r], least[r])
            most[r] = max(w[k, r], most[r])
    best, error, low, high, s, z = [np.zeros(lanes, w.dtype) for _ in range(6)]
    add_errors(w, scale, zero, maxq, norm, best)
    for step in range(1, steps):
        p = w.dtype.type(1 - step / 100)
        for r in range(lanes):
            low[r] = p * lo[r]
            high[r] = p * hi[r]
        grid_of(low, high, maxq, symmetric, rounding, s, z)
        # Errors only grow: a step that no lane can win ends early, often before it has begun,
        # because the largest weights, which are clipped, lose it alone.
        for r in range(lanes):
            error[r] = error_of(least[r], s[r], z[r], maxq, norm)
            error[r] += error_of(most[r], s[r], z[r], maxq, norm)
        if not any_less(error, best):
            continue
        error[:] = 0
        k = 0
        while k < columns and any_less(error, best):
            add_errors(w[k : k + STRIDE], s, z, maxq, norm, error)
            k += STRIDE
        if k >= columns:
            for r in range(lanes):
                if error[r] < best[r]:
                    best[r] = error[r]
                    scale[r] = s[r]
                    zero[r] = z[r]


@compiled
def fit(
    w: Array, maxq: Any, symmetric: bool, norm: Any, steps: int, rounding: Format,
    scale: Array, zero: Array
) -> None:  # fmt: skip
    """Write the best scale and zero of each lane of a group w (columns, lanes)."""
    rows = w.shape[1]
    lo = np.empty(rows, w.dtype)
    hi = np.empty(rows, w.dtype)
    bounds(w, symmetric, lo, hi)
    grid_of(lo, hi, maxq, symmetric, rounding, scale, zero)
    if steps > 1:
        for a in range(0, rows, LANES):
            b = min(a + LANES, rows)
            search(
                w[:, a:b].copy(), maxq, symmetric, norm, steps, rounding,
                lo[a:b], hi[a:b], scale[a:b], zero[a:b],
            )  # fmt: skip


@compiled
def total_error(w: Array, scale: Array, zero: Array, maxq: Any, norm: Any) -> float:
    """Return the sum of all lanes' errors for one grid."""
    rows = w.shape[1]
    error = np.zeros(rows, w.dtype)
    add_errors(w, np.full(rows, scale[0]), np.full(rows, zero[0]), maxq, norm, error)
    total = 0.0
    for r in range(rows):
        total += error[r]
    return total


def grid(
    W: Array,
    group_size: int,
    per_tensor: bool,
    maxq: int,
    symmetric: bool,
    mse: bool,
    norm: float,
    steps: int,
    scale_bits: int,
    scales: Array,
    zeros: NDArray[np.uint8],
    n_threads: int,
) -> None:
    """Write the scales and zeros of groups of consecutive columns.

    Parameters
    ----------
    W : (m, n) array, any strides
    group_size : int
        Columns that share a grid in each row.
    per_tensor : bool
        One grid for all rows; group_size is n.
    maxq : int
        Largest code.
    symmetric : bool
    mse : bool
        Search `steps` ranges for the least sum of |q - w|^norm.
    norm : float
    steps : int
    scale_bits : int
        0, or 16 for float16 scales, or 17 for bfloat16 scales.
    scales : (m, groups) array of W's dtype, written
    zeros : (m, groups) uint8 array, written
    n_threads : int
    """
    m = len(W)
    real = W.dtype.type
    rounding = scale_format(scale_bits, W.dtype)
    steps = steps if mse else 1

    def piece(i: int) -> Array:
        rows = np.array(W[i * ROWS : (i + 1) * ROWS], order="C")
        tile = np.empty(rows.shape[::-1], W.dtype)
        load(rows, np.arange(rows.shape[1]), tile)
        return tile

    def groups(i: int) -> None:
        w = piece(i)
        s, z = (np.empty((scales.shape[1], w.shape[1]), W.dtype) for _ in range(2))
        for g in range(len(s)):
            columns = w[g * group_size : (g + 1) * group_size]
            fit(columns, real(maxq), symmetric, real(norm), steps, rounding, s[g], z[g])
        scales[i * ROWS : (i + 1) * ROWS] = s.T
        zeros[i * ROWS : (i + 1) * ROWS] = z.T

    count = -(-m // ROWS)
    if not per_tensor:
        run(groups, count, n_threads)
    elif m:
        scales[...], zeros[...] = _tensor_grid(
            W, piece, count, real(maxq), symmetric, real(norm), steps, rounding, n_threads
        )


def _tensor_grid(
    W: Array,
    piece: Any,
    count: int,
    maxq: Any,
    symmetric: bool,
    norm: Any,
    steps: int,
    rounding: Format,
    n_threads: int,
) -> tuple[Any, Any]:
    """Return one scale and zero for the whole of W."""
    extremes = np.array([[W.min()], [W.max()]])
    lo, hi, scale, zero = (np.empty(1, W.dtype) for _ in range(4))
    bounds(extremes, symmetric, lo, hi)
    grid_of(lo, hi, maxq, symmetric, rounding, scale, zero)
    best, winner = np.inf, (scale[0], zero[0])
    errors = np.empty(count)
    for step in range(steps if steps > 1 else 0):
        p = W.dtype.type(1 - step / 100)
        grid_of(p * lo, p * hi, maxq, symmetric, rounding, scale, zero)

        def measure(i: int) -> None:
            errors[i] = total_error(piece(i), scale, zero, maxq, norm)

        run(measure, count, n_threads)
        if errors.sum() < best:
            best, winner = float(errors.sum()), (scale[0], zero[0])
    return winner
