"""Small matrices side by side, one in each vector lane: products, Cholesky, triangular solves.

All matrices of a pack lie in one array ``x`` of entries, (entries, 8), in float64. A matrix is the
number of its first entry and the entries from one row to the next; x[a + i * lda + j] holds entry
(i, j) of eight matrices. Sizes are multiples of ``TILE``: whoever has a smaller matrix pads
it with the rows of an identity. The work is done by one register tile, `add_products`.

A factor L stands below the diagonal with its diagonal; ``r`` is a line of 1 / L_ii. A matrix that
is not positive definite spoils its own lane only: some r is then not positive and finite.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.lanes import (
    BYTES,
    WIDE,
    load,
    multiply_add,
    multiply_subtract,
    narrow,
    number,
    splat,
    square_root,
    store,
    transpose,
    widen,
)

Array = NDArray[Any]

TILE = 4


def padded(n: int) -> int:
    """Return the least multiple of TILE that is not below n."""
    return -(-n // TILE) * TILE


def workspace(entries: int) -> NDArray[np.float64]:
    """Return uninitialized entries; aligned, or every vector would cross a cache line."""
    buffer = np.empty((entries + 1) * BYTES, np.uint8)
    start = -buffer.ctypes.data % BYTES
    return buffer[start : start + entries * BYTES].view(np.float64).reshape(entries, WIDE)


@inlined
def _row(
    a: Any, b0: Any, b1: Any, b2: Any, b3: Any, c0: Any, c1: Any, c2: Any, c3: Any
) -> tuple[Any, Any, Any, Any]:
    return (
        multiply_add(a, b0, c0),
        multiply_add(a, b1, c1),
        multiply_add(a, b2, c2),
        multiply_add(a, b3, c3),
    )


@inlined
def _add(x: Array, sign: Any, c: int, c0: Any, c1: Any, c2: Any, c3: Any) -> None:
    store(x, c, multiply_add(sign, c0, load(x, c)))
    store(x, c + 1, multiply_add(sign, c1, load(x, c + 1)))
    store(x, c + 2, multiply_add(sign, c2, load(x, c + 2)))
    store(x, c + 3, multiply_add(sign, c3, load(x, c + 3)))


@compiled
def add_products(
    x: Array,
    sign: float,
    c: int,
    ldc: int,
    a: int,
    lda: int,
    next_a: int,
    b: int,
    ldb: int,
    next_b: int,
    n: int,
) -> None:
    """C[p, q] += sign sum_k A[p, k] B[q, k] for a tile; next_a and next_b lead from k to k + 1."""
    c00 = c01 = c02 = c03 = c10 = c11 = c12 = c13 = splat(0.0)
    c20 = c21 = c22 = c23 = c30 = c31 = c32 = c33 = c00
    for _ in range(n):
        b0, b1 = load(x, b), load(x, b + ldb)
        b2, b3 = load(x, b + 2 * ldb), load(x, b + 3 * ldb)
        c00, c01, c02, c03 = _row(load(x, a), b0, b1, b2, b3, c00, c01, c02, c03)
        c10, c11, c12, c13 = _row(load(x, a + lda), b0, b1, b2, b3, c10, c11, c12, c13)
        c20, c21, c22, c23 = _row(load(x, a + 2 * lda), b0, b1, b2, b3, c20, c21, c22, c23)
        c30, c31, c32, c33 = _row(load(x, a + 3 * lda), b0, b1, b2, b3, c30, c31, c32, c33)
        a += next_a
        b += next_b
    s = splat(sign)
    _add(x, s, c, c00, c01, c02, c03)
    _add(x, s, c + ldc, c10, c11, c12, c13)
    _add(x, s, c + 2 * ldc, c20, c21, c22, c23)
    _add(x, s, c + 3 * ldc, c30, c31, c32, c33)


@compiled
def fill(x: Array, a: int, lda: int, rows: int, columns: int, diagonal: float) -> None:
    """Zero, with `diagonal` on the diagonal."""
    for i in range(rows):
        for j in range(columns):
            store(x, a + i * lda + j, splat(diagonal if i == j else 0.0))


@inlined
def fill_tile(x: Array, a: int, lda: int, diagonal: float) -> None:
    """The same for a tile."""
    for i in range(TILE):
        for j in range(TILE):
            store(x, a + i * lda + j, splat(diagonal if i == j else 0.0))


@inlined
def _solve_tile(x: Array, c: int, ldc: int, a: int, lda: int, r: int) -> None:
    """C = C L^-T for a tile."""
    r0, r1, r2, r3 = load(x, r), load(x, r + 1), load(x, r + 2), load(x, r + 3)
    a10, a20, a21 = load(x, a + lda), load(x, a + 2 * lda), load(x, a + 2 * lda + 1)
    a30, a31 = load(x, a + 3 * lda), load(x, a + 3 * lda + 1)
    a32 = load(x, a + 3 * lda + 2)
    for _ in range(TILE):
        c0 = load(x, c) * r0
        c1 = multiply_subtract(c0, a10, load(x, c + 1)) * r1
        c2 = multiply_subtract(c0, a20, load(x, c + 2))
        c2 = multiply_subtract(c1, a21, c2) * r2
        c3 = multiply_subtract(c0, a30, load(x, c + 3))
        c3 = multiply_subtract(c1, a31, c3)
        c3 = multiply_subtract(c2, a32, c3) * r3
        store(x, c, c0)
        store(x, c + 1, c1)
        store(x, c + 2, c2)
        store(x, c + 3, c3)
        c += ldc


@inlined
def _solve_tile_back(x: Array, c: int, ldc: int, a: int, lda: int, r: int) -> None:
    """C = C L^-1 for a tile."""
    r0, r1, r2, r3 = load(x, r), load(x, r + 1), load(x, r + 2), load(x, r + 3)
    a10, a20, a21 = load(x, a + lda), load(x, a + 2 * lda), load(x, a + 2 * lda + 1)
    a30, a31 = load(x, a + 3 * lda), load(x, a + 3 * lda + 1)
    a32 = load(x, a + 3 * lda + 2)
    for _ in range(TILE):
        c3 = load(x, c + 3) * r3
        c2 = multiply_subtract(c3, a32, load(x, c + 2)) * r2
        c1 = multiply_subtract(c3, a31, load(x, c + 1))
        c1 = multiply_subtract(c2, a21, c1) * r1
        c0 = multiply_subtract(c3, a30, load(x, c))
        c0 = multiply_subtract(c2, a20, c0)
        c0 = multiply_subtract(c1, a10, c0) * r0
        store(x, c, c0)
        store(x, c + 1, c1)
        store(x, c + 2, c2)
        store(x, c + 3, c3)
        c += ldc


@inlined
def _factor_tile(x: Array, a: int, lda: int, r: int) -> None:
    """A = L L^T for a tile."""
    one = splat(1.0)
    for j in range(TILE):
        row = a + j * lda
        pivot = load(x, row + j)
        for k in range(j):
            pivot = multiply_subtract(load(x, row + k), load(x, row + k), pivot)
        root = square_root(pivot)
        scale = one / root
        store(x, row + j, root)
        store(x, r + j, scale)
        for i in range(j + 1, TILE):
            below = a + i * lda
            entry = load(x, below + j)
            for k in range(j):
                entry = multiply_subtract(load(x, below + k), load(x, row + k), entry)
            store(x, below + j, entry * scale)


@compiled
def cholesky(x: Array, a: int, lda: int, r: int, n: int) -> None:
    """A = L L^T on the lower triangle, row of tiles by row of tiles."""
    for i in range(0, n, TILE):
        row = a + i * lda
        for j in range(0, i, TILE):
            above = a + j * lda
            add_products(x, -1.0, row + j, lda, row, lda, 1, above, lda, 1, j)
            _solve_tile(x, row + j, lda, above + j, lda, r + j)
        add_products(x, -1.0, row + i, lda, row, lda, 1, row, lda, 1, i)
        _factor_tile(x, row + i, lda, r + i)


@compiled
def forward(x: Array, y: int, ldy: int, a: int, lda: int, r: int, n: int) -> None:
    """Y = Y L^-T for Y with TILE rows."""
    for j in range(0, n, TILE):
        row = a + j * lda
        add_products(x, -1.0, y + j, ldy, y, ldy, 1, row, lda, 1, j)
        _solve_tile(x, y + j, ldy, row + j, lda, r + j)


@compiled
def backward(x: Array, y: int, ldy: int, a: int, lda: int, r: int, n: int) -> None:
    """Y = Y L^-1 for Y with TILE rows."""
    for j in range(n - TILE, -1, -TILE):
        k = j + TILE
        add_products(x, -1.0, y + j, ldy, y + k, ldy, 1, a + k * lda + j, 1, lda, n - k)
        _solve_tile_back(x, y + j, ldy, a + j * lda + j, lda, r + j)


@compiled
def inverse(x: Array, a: int, lda: int, r: int, t: int, n: int, group: int) -> None:
    """A^-1 on the lower triangle in the place of L, at least inside groups of `group` columns.

    X = L^-T is written above the diagonal, its diagonal tiles to t, TILE rows `lda` apart. Then
    A^-1 = X X^T.
    """
    for i in range(0, n, TILE):
        row, corner, after = a + i * lda, t + i, i + TILE
        fill_tile(x, corner, lda, 1.0)
        _solve_tile(x, corner, lda, row + i, lda, r + i)
        for j in range(after, n, TILE):
            tile, other = row + j, a + j * lda
            fill_tile(x, tile, lda, 0.0)
            add_products(x, -1.0, tile, lda, corner, lda, 1, other + i, lda, 1, after - i)
            add_products(x, -1.0, tile, lda, row + after, lda, 1, other + after, lda, 1, j - after)
            _solve_tile(x, tile, lda, other + j, lda, r + j)
    for i in range(0, n, TILE):
        row, corner, after = a + i * lda, t + i, i + TILE
        for j in range(0, after, TILE):
            if (j + TILE - 1) // group < i // group:
                continue
            tile, other = row + j, a + j * lda
            top = corner if i == j else other + i
            fill_tile(x, tile, lda, 0.0)
            add_products(x, 1.0, tile, lda, corner, lda, 1, top, lda, 1, after - i)
            add_products(x, 1.0, tile, lda, row + after, lda, 1, other + after, lda, 1, n - after)


@compiled
def mirror(x: Array, a: int, lda: int, n: int, group: int) -> None:
    """Copy the lower triangle to the upper one inside groups of `group` columns."""
    for i in range(n):
        for j in range(i // group * group, i):
            store(x, a + j * lda + i, load(x, a + i * lda + j))


@inlined
def scale_tile(x: Array, a: int, lda: int, factor: float) -> None:
    """Multiply a tile by a number."""
    for i in range(TILE):
        for j in range(TILE):
            store(x, a + i * lda + j, load(x, a + i * lda + j) * splat(factor))


@compiled
def first_failure(x: Array, r: int, n: int, lane: int) -> int:
    """Return the index of the first pivot of a lane that was not positive and finite, or -1."""
    for i in range(n):
        if not (0 < x[r + i, lane] < np.inf):
            return i
    return -1


@inlined
def _octet(line: Array, s: int, stride: int, x: Array, a: int, step: int, n: int) -> None:
    """The first n of eight entries, from eight places of the line."""
    e0, e1, e2, e3, e4, e5, e6, e7 = transpose(
        widen(line, s),
        widen(line, s + stride),
        widen(line, s + 2 * stride),
        widen(line, s + 3 * stride),
        widen(line, s + 4 * stride),
        widen(line, s + 5 * stride),
        widen(line, s + 6 * stride),
        widen(line, s + 7 * stride),
    )
    store(x, a, e0)
    if n > 1:
        store(x, a + step, e1)
    if n > 2:
        store(x, a + 2 * step, e2)
    if n > 3:
        store(x, a + 3 * step, e3)
    if n > 4:
        store(x, a + 4 * step, e4)
    if n > 5:
        store(x, a + 5 * step, e5)
    if n > 6:
        store(x, a + 6 * step, e6)
    if n > 7:
        store(x, a + 7 * step, e7)


@inlined
def gather(line: Array, start: int, stride: int, n: int, x: Array, a: int, step: int) -> None:
    """x[a + i * step, lane] = line[start + lane * stride + i] for i < n, as float64.

    The line holds numbers in any storage type of `widen`; up to 7 beyond the last one are read.
    """
    full = n - n % WIDE
    for i in range(0, full, WIDE):
        _octet(line, start + i, stride, x, a + i * step, step, WIDE)
    if full < n:
        _octet(line, start + full, stride, x, a + full * step, step, n - full)


@inlined
def gather_end(
    line: Array, start: int, stop: int, stride: int, n: int, x: Array, a: int, step: int
) -> None:
    """As `gather`, but `stop` ends the line, and what lies beyond is 0."""
    for i in range(n):
        for lane in range(WIDE):
            x[a + i * step, lane] = 0.0
            if start + lane * stride + i < stop:
                x[a + i * step, lane] = number(line, start + lane * stride + i)


@inlined
def scatter(
    x: Array, a: int, step: int, line: Array, start: int, stop: int, stride: int, n: int
) -> None:
    """line[start + lane * stride + i] = x[a + i * step, lane] for i < n, up to `stop`.

    The line holds float32 or float64 numbers.
    """
    whole = n - n % WIDE if start + (WIDE - 1) * stride + n <= stop else 0
    for i in range(0, whole, WIDE):
        e, s = a + i * step, start + i
        e0, e1, e2, e3, e4, e5, e6, e7 = transpose(
            load(x, e),
            load(x, e + step),
            load(x, e + 2 * step),
            load(x, e + 3 * step),
            load(x, e + 4 * step),
            load(x, e + 5 * step),
            load(x, e + 6 * step),
            load(x, e + 7 * step),
        )
        narrow(line, s, e0)
        narrow(line, s + stride, e1)
        narrow(line, s + 2 * stride, e2)
        narrow(line, s + 3 * stride, e3)
        narrow(line, s + 4 * stride, e4)
        narrow(line, s + 5 * stride, e5)
        narrow(line, s + 6 * stride, e6)
        narrow(line, s + 7 * stride, e7)
    for lane in range(WIDE):
        s = start + lane * stride
        for i in range(whole, min(n, stop - s)):
            line[s + i] = x[a + i * step, lane]
