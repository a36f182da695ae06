"""Rows of the plan, 2^(k ((f_i + g_j) - c_ij)) with k = log2(e) / reg, while they are in cache.

Potentials are split so that their resolution costs nothing: f = hi + lo with hi on a grid on which
f_i + g_j is exact in the type of the cost; 2^(k lo) multiplies whole rows and columns afterwards.
So the only rounding before the power is that of a small difference, also in float32.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.vectors import (
    Line,
    higher,
    lanes,
    largest,
    load,
    logarithm,
    magnitude,
    multiply_add,
    pointer,
    power_of_two,
    repeat,
    spread,
    store,
    total,
    widen,
    workspace,
)
from quadric.transport.numba.costs import (
    DIRECT,
    PANEL,
    PRODUCTS,
    ROWS,
    STEP,
    STORED,
    bare,
    cost_tile,
)

Array = NDArray[Any]
Floats = NDArray[np.float64]
Columns = tuple[Line, Line, int]
"""hi and weight of the columns, and how many there are, by pointers."""
Limits = tuple[float, float]
"""Exponents of two between which powers are normal numbers."""
Memory = tuple[Array, Array, Array, Array, Floats]

CHUNK = 64  # packs of a row: four such rows stay in the first cache
LONG = 256  # packs whose sums are kept in the type of the costs
FLUSH = 8  # steps of rows after which sums of columns go to float64
LOWEST, HIGHEST = -1021.9999, 1023.9999  # exponents of normal float64 numbers
MOST = 1e300  # stands for sums that overflow; a weight above makes its columns Inf
LOG2E = 1.4426950408889634


@inlined
def power(line: Line, x: Any) -> Any:
    """2^x of float64 numbers; 0 below the normal numbers, else finite."""
    return power_of_two(x, spread(line, 1.0), spread(line, LOWEST), spread(line, HIGHEST))


@inlined
def largest_size(f: Floats, offset: Floats) -> float:
    """The largest |f - offset|."""
    full, top = len(f) - len(f) % 8, spread(f, 0.0)
    for i in range(0, full, 8):
        top = higher(magnitude(load(f, i) - load(offset, i)), top)
    result: float = largest(top)
    for i in range(full, len(f)):
        result = max(result, abs(f[i] - offset[i]))
    return result


@compiled
def grid(f: Floats, alpha: Floats, g: Floats, beta: Floats, digits: int) -> float:
    """Return the step of the grid on which sums of the potentials have at most `digits` bits."""
    top = largest_size(f, alpha) + largest_size(g, beta)
    return 2.0 ** (np.ceil(np.log2(max(top, 1e-200))) - digits) if top < np.inf else np.inf


@compiled
def split(f: Floats, offset: Floats, step: float, k: float, hi: Array, weight: Array) -> None:
    """Write hi and 2^(k lo) of f - offset; -Inf and 0 beyond its end."""
    full = len(f) - len(f) % 8
    magic, scale = spread(f, 1.5 * 2.0**52 * step), spread(f, k)
    for i in range(0, full, 8):
        _split(f, load(f, i) - load(offset, i), magic, scale, i, hi, weight)
    line = workspace(8, f)
    for i in range(full, len(hi), 8):
        for r in range(8):
            line[r] = f[i + r] - offset[i + r] if i + r < len(f) else -np.inf
        _split(f, load(line, 0), magic, scale, i, hi, weight)


@inlined
def _split(
    line: Floats, value: Any, magic: Any, scale: Any, i: int, hi: Array, weight: Array
) -> None:
    rounded = (value + magic) - magic
    store(hi, i, rounded)
    store(weight, i, power(line, scale * (value - rounded)))


@inlined
def four(line: Line, i: int) -> tuple[Any, Any, Any, Any]:
    """Four numbers of a line, each in all lanes of a pack."""
    return (
        repeat(line, i),
        repeat(line, i + 1),
        repeat(line, i + 2),
        repeat(line, i + 3),
    )


@compiled
def power_tile(
    C: Line, c0: int, c1: int, c2: int, c3: int, start: int, stop: int, shift: Line, s: int,
    columns: Columns, k: float, limits: Limits, E: Line, e: int, stride: int,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Write powers of columns [start, stop) of four rows; return their sums weighted with V."""
    G, V, _ = columns
    wide = lanes(E)
    scale, least, most = (
        spread(E, k),
        spread(E, limits[0] / k),
        spread(E, limits[1] / k),
    )
    f0, f1, f2, f3 = four(shift, s)
    s0 = s1 = s2 = s3 = spread(E, 0.0)
    e1, e2, e3 = e + stride, e + 2 * stride, e + 3 * stride
    for j in range(start, stop, wide):
        g, v = load(G, j), load(V, j)
        p0 = power_of_two((f0 + g) - load(C, c0 + j), scale, least, most)
        p1 = power_of_two((f1 + g) - load(C, c1 + j), scale, least, most)
        p2 = power_of_two((f2 + g) - load(C, c2 + j), scale, least, most)
        p3 = power_of_two((f3 + g) - load(C, c3 + j), scale, least, most)
        store(E, e + j, p0)
        store(E, e1 + j, p1)
        store(E, e2 + j, p2)
        store(E, e3 + j, p3)
        s0 = multiply_add(p0, v, s0)
        s1 = multiply_add(p1, v, s1)
        s2 = multiply_add(p2, v, s2)
        s3 = multiply_add(p3, v, s3)
    return total(s0), total(s1), total(s2), total(s3)


@compiled
def power_points(
    X: Line, x0: int, x1: int, x2: int, x3: int, Y: Line, y: int, shift: Line, s: int,
    columns: Columns, k: float, limits: Limits, E: Line, e: int, stride: int,
) -> tuple[float, float, float, float]:  # fmt: skip
    """As `power_tile`, for products of points with `DIRECT` coordinates and all columns."""
    G, V, width = columns
    wide = lanes(E)
    panel, chunk = PANEL * wide, LONG * wide
    scale, least, most = (
        spread(E, k),
        spread(E, limits[0] / k),
        spread(E, limits[1] / k),
    )
    f0, f1, f2, f3 = four(shift, s)
    a0, a1, a2 = repeat(X, x0), repeat(X, x0 + 1), repeat(X, x0 + 2)
    b0, b1, b2 = repeat(X, x1), repeat(X, x1 + 1), repeat(X, x1 + 2)
    c0, c1, c2 = repeat(X, x2), repeat(X, x2 + 1), repeat(X, x2 + 2)
    d0, d1, d2 = repeat(X, x3), repeat(X, x3 + 1), repeat(X, x3 + 2)
    t0 = t1 = t2 = t3 = 0.0
    e1, e2, e3 = e + stride, e + 2 * stride, e + 3 * stride
    for start in range(0, width, chunk):
        s0 = s1 = s2 = s3 = spread(E, 0.0)
        for first in range(start, min(start + chunk, width), panel):
            place = y + first * DIRECT - first
            for j in range(first, first + panel, wide):
                y0, y1 = load(Y, place + j), load(Y, place + panel + j)
                y2 = load(Y, place + 2 * panel + j)
                g, v = load(G, j), load(V, j)
                c = multiply_add(a2, y2, multiply_add(a1, y1, a0 * y0))
                p = power_of_two((f0 + g) - c, scale, least, most)
                store(E, e + j, p)
                s0 = multiply_add(p, v, s0)
                c = multiply_add(b2, y2, multiply_add(b1, y1, b0 * y0))
                p = power_of_two((f1 + g) - c, scale, least, most)
                store(E, e1 + j, p)
                s1 = multiply_add(p, v, s1)
                c = multiply_add(c2, y2, multiply_add(c1, y1, c0 * y0))
                p = power_of_two((f2 + g) - c, scale, least, most)
                store(E, e2 + j, p)
                s2 = multiply_add(p, v, s2)
                c = multiply_add(d2, y2, multiply_add(d1, y1, d0 * y0))
                p = power_of_two((f3 + g) - c, scale, least, most)
                store(E, e3 + j, p)
                s3 = multiply_add(p, v, s3)
        t0, t1, t2, t3 = t0 + total(s0), t1 + total(s1), t2 + total(s2), t3 + total(s3)
    return t0, t1, t2, t3


@compiled
def powers(
    cost: Any, i: int, shift: Line, s: int, columns: Columns, k: float, limits: Limits,
    E: Line, e: int, stride: int,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Write 2^(k (shift_r + G_j - c_ij)) of four rows from i on; return sums weighted with V."""
    M, size, first, to_row, to_column, X, x, Y, y, d, kind, n, _ = cost
    i1, i2, i3 = min(i + 1, n - 1), min(i + 2, n - 1), min(i + 3, n - 1)
    if d == DIRECT and kind in PRODUCTS:
        x0, x1, x2, x3 = x + i * d, x + i1 * d, x + i2 * d, x + i3 * d
        return power_points(X, x0, x1, x2, x3, Y, y, shift, s, columns, k, limits, E, e, stride)
    width = columns[2]
    c0, c1 = first + i * to_row, first + i1 * to_row
    c2, c3 = first + i2 * to_row, first + i3 * to_row
    e1, e2, e3 = e + stride, e + 2 * stride, e + 3 * stride
    # What follows a row in memory may be read: G is -Inf there.
    direct = kind == STORED and to_column == 1 and max(c0, c3) + width <= size
    # The order of the sums must not depend on where the costs are.
    chunk = (LONG if kind == STORED else CHUNK) * lanes(E)
    s0 = s1 = s2 = s3 = 0.0
    for start in range(0, width, chunk):
        stop = min(start + chunk, width)
        if direct:
            t0, t1, t2, t3 = power_tile(
                M, c0, c1, c2, c3, start, stop, shift, s, columns, k, limits, E, e, stride
            )
        else:
            cost_tile(cost, i, start, stop, E, e, stride)
            t0, t1, t2, t3 = power_tile(
                E, e, e1, e2, e3, start, stop, shift, s, columns, k, limits, E, e, stride
            )
        s0, s1, s2, s3 = s0 + t0, s1 + t1, s2 + t2, s3 + t3
    return s0, s1, s2, s3


@compiled
def differences(
    cost: Any,
    i: int,
    shift: Line,
    s: int,
    columns: Columns,
    E: Line,
    e: int,
    stride: int,
) -> tuple[float, float, float, float]:
    """Write (shift_r + G_j) - c_ij of four rows, -Inf beyond the end; return the largest."""
    G, _, width = columns
    wide, chunk = lanes(E), CHUNK * lanes(E)
    none = spread(E, -np.inf)
    f0, f1, f2, f3 = four(shift, s)
    e1, e2, e3 = e + stride, e + 2 * stride, e + 3 * stride
    t0 = t1 = t2 = t3 = none
    for start in range(0, width, chunk):
        stop = min(start + chunk, width)
        cost_tile(cost, i, start, stop, E, e, stride)
        for j in range(start, stop, wide):
            g = load(G, j)
            z0, z1 = (f0 + g) - load(E, e + j), (f1 + g) - load(E, e1 + j)
            z2, z3 = (f2 + g) - load(E, e2 + j), (f3 + g) - load(E, e3 + j)
            z0, z1, z2, z3 = (
                higher(z0, none),
                higher(z1, none),
                higher(z2, none),
                higher(z3, none),
            )
            store(E, e + j, z0)
            store(E, e1 + j, z1)
            store(E, e2 + j, z2)
            store(E, e3 + j, z3)
            t0, t1, t2, t3 = (
                higher(z0, t0),
                higher(z1, t1),
                higher(z2, t2),
                higher(z3, t3),
            )
    return (
        np.float64(largest(t0)), np.float64(largest(t1)),
        np.float64(largest(t2)), np.float64(largest(t3)),
    )  # fmt: skip


@compiled
def add_rows(E: Line, stride: int, count: int, weight: Line, sums: Line, width: int) -> None:
    """sums_j += sum_r weight_r E[r, j] over `count` rows, a multiple of four."""
    for r in range(0, count, ROWS):
        w0, w1, w2, w3 = four(weight, r)
        e0, e1 = r * stride, (r + 1) * stride
        e2, e3 = (r + 2) * stride, (r + 3) * stride
        for j in range(0, width, lanes(E)):
            value = multiply_add(
                load(E, e1 + j), w1, multiply_add(load(E, e0 + j), w0, load(sums, j))
            )
            value = multiply_add(load(E, e3 + j), w3, multiply_add(load(E, e2 + j), w2, value))
            store(sums, j, value)


@compiled
def flush(recent: Line, sums: Line, width: int) -> None:
    """Move sums to float64."""
    zero = spread(recent, 0.0)
    for j in range(0, width, 8):
        store(sums, j, load(sums, j) + widen(recent, j))
    for j in range(0, width, lanes(recent)):
        store(recent, j, zero)


@inlined
def row_stride(width: int, like: Array) -> int:
    """Entries from row to row of the plan: no power of two."""
    wide: int = lanes(like)
    return width + 2 * wide


@compiled
def scratch(width: int, like: Array, line: Floats) -> Memory:
    """Memory of `sweep`: rows of the plan, sums of columns, and three for a step of rows."""
    stride = row_stride(width, like)
    count = STEP if STEP * stride * like.itemsize <= 1 << 20 else ROWS
    return (
        workspace(count * stride, like), workspace(width, like), workspace(STEP, like),
        workspace(STEP, like), workspace(6 * STEP, line),
    )  # fmt: skip


@compiled
def sweep(
    cost: Any, start: int, stop: int, rows: Any, G: Array, V: Array, k: float, step: float,
    limits: Limits, theta: float, omega: float, sums: Floats,
    memory: Memory,
) -> float:  # fmt: skip
    """Update the potentials of rows and add up the columns of the plan that they then have.

    Parameters
    ----------
    rows : f, hi, weight, a, log2(a)
    G, V : hi and weight of the columns
    omega : float
        0: the potentials stay, and only the columns are summed.
    sums : (width,) float64 array, written
        Sums of the columns over V.
    memory : see `scratch`

    Returns
    -------
    float
        The distance of the new row sums from their target; Inf if a row has no finite sum.
    """
    f, hi, weight, a, log_a = (
        pointer(rows[0]), pointer(rows[1]), pointer(rows[2]), pointer(rows[3]), pointer(rows[4])
    )  # fmt: skip
    width, stride = len(G), row_stride(len(G), G)
    count = len(memory[0]) // stride
    E, recent, shift, row = (
        pointer(memory[0]), pointer(memory[1]), pointer(memory[2]), pointer(memory[4])
    )  # fmt: skip
    scales, inner, columns = (
        pointer(memory[3]),
        bare(cost),
        (pointer(G), pointer(V), width),
    )
    part = pointer(sums)
    memory[1][:] = 0
    sums[:] = 0
    memory[4][:] = 1.0
    error, steps = 0.0, 0
    # Between these nothing that counts is flushed to 0 or overflows.
    tiny, huge = 2.0 ** (0.6 * limits[0]), 2.0 ** (0.6 * limits[1])
    most = 2.0 ** (0.2 * limits[1])
    for i in range(start, stop, count):
        valid = min(count, stop - i)
        for r in range(count):
            shift[r] = hi[i + r] if r < valid else -np.inf
            scales[r] = weight[i + r] if r < valid else 0.0
            row[2 * STEP + r] = 0.0
        for r in range(0, valid, ROWS):
            row[r], row[r + 1], row[r + 2], row[r + 3] = powers(
                inner, i + r, shift, r, columns, k, limits, E, r * stride, stride
            )
        if omega > 0:
            finish(row, f, weight, log_a, i, valid, k, theta, omega)
            again = False
            for r in range(0, valid, ROWS):
                wrong = False
                for q in range(r, min(r + ROWS, valid)):
                    wrong |= not (tiny < row[q] < huge and row[STEP + q] < most)
                if wrong:
                    again = True
                    top = differences(inner, i + r, shift, r, columns, E, r * stride, stride)
                    for q in range(min(ROWS, valid - r)):
                        if not -np.inf < top[q] < np.inf:
                            return np.inf
                        move = np.rint(top[q] / step) * step
                        row[2 * STEP + r + q] = k * move
                        shift[r + q] -= move
                    row[r], row[r + 1], row[r + 2], row[r + 3] = powers(
                        inner,
                        i + r,
                        shift,
                        r,
                        columns,
                        k,
                        limits,
                        E,
                        r * stride,
                        stride,
                    )
            if again:
                finish(row, f, weight, log_a, i, valid, k, theta, omega)
            for r in range(valid):
                if not 0 < row[r] < np.inf:
                    return np.inf
                f[i + r] = row[3 * STEP + r]
                scales[r] = row[STEP + r] if row[STEP + r] < MOST else np.inf
                target = a[i + r] if theta == 1.0 else row[4 * STEP + r]
                error += min(abs(row[5 * STEP + r] - target), MOST)
        add_rows(E, stride, -(-valid // ROWS) * ROWS, scales, recent, width)
        steps += 1
        if steps == FLUSH:
            flush(recent, part, width)
            steps = 0
    flush(recent, part, width)
    return error


@inlined
def finish(
    row: Line, f: Line, weight: Line, log_a: Line, i: int, valid: int, k: float, theta: float,
    omega: float,
) -> None:  # fmt: skip
    """The Sinkhorn update of `valid` rows, at most eight, from i on.

    `row` holds, in eights: their sums, weights, and k times what was subtracted from f for the
    sums. Weights are multiplied with 2^(k change of f); then follow the new f, the targets and the
    new sums.
    """
    for r in range(valid):
        row[STEP + r] = weight[i + r]
        row[3 * STEP + r], row[4 * STEP + r] = f[i + r], log_a[i + r]
    scale, moved = spread(row, k), load(row, 2 * STEP)
    old, logs = load(row, 3 * STEP), load(row, 4 * STEP)
    s, w = load(row, 0), load(row, STEP)
    full = spread(row, theta) * (old + (logs - (logarithm(row, s * w) + moved)) / scale)
    new = multiply_add(spread(row, omega), full - old, old)
    w = w * power(row, moved + scale * (new - old))
    store(row, STEP, w)
    store(row, 3 * STEP, new)
    store(row, 4 * STEP, power(row, logs - spread(row, k * (1 - theta) / theta) * new))
    store(row, 5 * STEP, s * w)


@compiled
def column_maxima(
    cost: Any, start: int, stop: int, hi: Array, G: Array, tops: Array,
    memory: Memory,
) -> None:  # fmt: skip
    """Write the largest f_i + G_j - c_ij of each column over the rows [start, stop)."""
    E, shift, best = pointer(memory[0]), pointer(memory[2]), pointer(tops)
    inner, columns, stride = (
        bare(cost),
        (pointer(G), pointer(G), len(G)),
        row_stride(len(G), G),
    )
    tops[:] = -np.inf
    for i in range(start, stop, ROWS):
        for r in range(ROWS):
            shift[r] = hi[i + r] if i + r < stop else -np.inf
        differences(inner, i, shift, 0, columns, E, 0, stride)
        for r in range(ROWS):
            for j in range(0, len(G), lanes(E)):
                store(best, j, higher(load(E, r * stride + j), load(best, j)))
