"""Passes over long rows of numbers in any storage type, eight columns at a time, in float64.

A matrix is a line of memory (`quadric.linalg.numba.lines.line`) and the entries from row to row.
Sums run over lanes first and in an order that depends on the shapes alone.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.lanes import (
    WIDE,
    multiply_add,
    narrow,
    number,
    put,
    splat,
    total,
    widen,
)

Array = NDArray[Any]

COLUMNS = 8192  # of a strip: what is used again stays in the second cache, streams are long
ROWS = 8  # that are multiplied with a vector at a time
TOGETHER = 4  # rows and vectors of a tile


@compiled
def convert(
    source: Array, start: int, stride: int, target: Array, at: int, step: int, rows: int, n: int
) -> None:
    """Copy rows of n numbers from one storage type to another."""
    full = n - n % WIDE
    for i in range(rows):
        s, t = start + i * stride, at + i * step
        for j in range(0, full, WIDE):
            narrow(target, t + j, widen(source, s + j))
        for j in range(full, n):
            put(target, t + j, number(source, s + j))


@compiled
def add_dots(
    G: Array,
    g: int,
    stride: int,
    m: int,
    X: Array,
    x: int,
    step: int,
    k: int,
    n: int,
    block: int,
    out: NDArray[np.float64],
) -> None:
    """out[b, i, j] += g_i . x_j for m rows at g of G and k rows at x of X, over n columns.

    Blocks of `block` columns have their own sums.
    """
    for b in range(0, n, block):
        size = min(block, n - b)
        _add_dots(G, g + b, stride, m, X, x + b, step, k, size, out[b // block])


@inlined
def _add_dots(
    G: Array,
    g: int,
    stride: int,
    m: int,
    X: Array,
    x: int,
    step: int,
    k: int,
    n: int,
    out: NDArray[np.float64],
) -> None:
    full = n - n % WIDE
    for start in range(0, full, COLUMNS):
        stop = min(start + COLUMNS, full)
        for i in range(0, m, ROWS):
            # Rows beyond the last repeat it, and their sums are dropped.
            g0 = g + i * stride
            g1 = g + min(i + 1, m - 1) * stride
            g2 = g + min(i + 2, m - 1) * stride
            g3 = g + min(i + 3, m - 1) * stride
            g4 = g + min(i + 4, m - 1) * stride
            g5 = g + min(i + 5, m - 1) * stride
            g6 = g + min(i + 6, m - 1) * stride
            g7 = g + min(i + 7, m - 1) * stride
            for j in range(0, k - k % TOGETHER, TOGETHER):
                p = x + j * step
                _add_tile(G, g0, g1, g2, g3, X, p, step, start, stop, out, i, j)
                if i + TOGETHER < m:
                    _add_tile(G, g4, g5, g6, g7, X, p, step, start, stop, out, i + TOGETHER, j)
            for j in range(k - k % TOGETHER, k):
                p = x + j * step
                s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(0.0)
                for c in range(start, stop, WIDE):
                    v = widen(X, p + c)
                    s0 = multiply_add(widen(G, g0 + c), v, s0)
                    s1 = multiply_add(widen(G, g1 + c), v, s1)
                    s2 = multiply_add(widen(G, g2 + c), v, s2)
                    s3 = multiply_add(widen(G, g3 + c), v, s3)
                    s4 = multiply_add(widen(G, g4 + c), v, s4)
                    s5 = multiply_add(widen(G, g5 + c), v, s5)
                    s6 = multiply_add(widen(G, g6 + c), v, s6)
                    s7 = multiply_add(widen(G, g7 + c), v, s7)
                sums = (
                    total(s0), total(s1), total(s2), total(s3),
                    total(s4), total(s5), total(s6), total(s7),
                )  # fmt: skip
                for r in range(min(ROWS, m - i)):
                    out[i + r, j] += sums[r]
    for i in range(m):
        for j in range(k):
            for c in range(full, n):
                out[i, j] += number(G, g + i * stride + c) * number(X, x + j * step + c)


@inlined
def _add_tile(
    G: Array,
    g0: int,
    g1: int,
    g2: int,
    g3: int,
    X: Array,
    x: int,
    step: int,
    start: int,
    stop: int,
    out: NDArray[np.float64],
    i: int,
    j: int,
) -> None:
    """`add_dots` for four rows and four vectors."""
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = splat(0.0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = s00
    for c in range(start, stop, WIDE):
        x0, x1 = widen(X, x + c), widen(X, x + step + c)
        x2, x3 = widen(X, x + 2 * step + c), widen(X, x + 3 * step + c)
        s00, s01, s02, s03 = _row(widen(G, g0 + c), x0, x1, x2, x3, s00, s01, s02, s03)
        s10, s11, s12, s13 = _row(widen(G, g1 + c), x0, x1, x2, x3, s10, s11, s12, s13)
        s20, s21, s22, s23 = _row(widen(G, g2 + c), x0, x1, x2, x3, s20, s21, s22, s23)
        s30, s31, s32, s33 = _row(widen(G, g3 + c), x0, x1, x2, x3, s30, s31, s32, s33)
    _add_totals(out, i, j, s00, s01, s02, s03)
    if i + 1 < len(out):
        _add_totals(out, i + 1, j, s10, s11, s12, s13)
    if i + 2 < len(out):
        _add_totals(out, i + 2, j, s20, s21, s22, s23)
    if i + 3 < len(out):
        _add_totals(out, i + 3, j, s30, s31, s32, s33)


@inlined
def _row(
    a: Any, b0: Any, b1: Any, b2: Any, b3: Any, c0: Any, c1: Any, c2: Any, c3: Any
) -> tuple[Any, Any, Any, Any]:
    """c + a b."""
    return (
        multiply_add(a, b0, c0),
        multiply_add(a, b1, c1),
        multiply_add(a, b2, c2),
        multiply_add(a, b3, c3),
    )


@inlined
def _add_totals(
    out: NDArray[np.float64], i: int, j: int, s0: Any, s1: Any, s2: Any, s3: Any
) -> None:
    out[i, j] += total(s0)
    out[i, j + 1] += total(s1)
    out[i, j + 2] += total(s2)
    out[i, j + 3] += total(s3)


@compiled
def add_combination(
    G: Array,
    g: int,
    stride: int,
    C: NDArray[np.float64],
    block: int,
    sums: NDArray[np.float64],
    n: int,
) -> None:
    """sums[j, c] += sum_i C[b, j, i] G[i, c] for n columns, in blocks b of `block` columns.

    No more columns than let the sums stay in the second cache.
    """
    line, step = sums.reshape(-1), sums.shape[1]
    for b in range(0, n, block):
        _add_combination(G, g + b, stride, C[b // block], line, b, step, min(block, n - b))


@inlined
def _add_combination(
    G: Array,
    g: int,
    stride: int,
    C: NDArray[np.float64],
    line: Array,
    first: int,
    step: int,
    n: int,
) -> None:
    k, m = C.shape
    full = n - n % WIDE
    for i in range(0, m - m % TOGETHER, TOGETHER):
        row = g + i * stride
        for j in range(0, k - k % TOGETHER, TOGETHER):
            s = first + j * step
            a0, a1, a2, a3 = _coefficients(line, C, j, i)
            b0, b1, b2, b3 = _coefficients(line, C, j + 1, i)
            c0, c1, c2, c3 = _coefficients(line, C, j + 2, i)
            d0, d1, d2, d3 = _coefficients(line, C, j + 3, i)
            for c in range(0, full, WIDE):
                g0, g1 = widen(G, row + c), widen(G, row + stride + c)
                g2, g3 = widen(G, row + 2 * stride + c), widen(G, row + 3 * stride + c)
                _add_four(line, s + c, a0, a1, a2, a3, g0, g1, g2, g3)
                _add_four(line, s + step + c, b0, b1, b2, b3, g0, g1, g2, g3)
                _add_four(line, s + 2 * step + c, c0, c1, c2, c3, g0, g1, g2, g3)
                _add_four(line, s + 3 * step + c, d0, d1, d2, d3, g0, g1, g2, g3)
        for j in range(k - k % TOGETHER, k):
            a0, a1, a2, a3 = _coefficients(line, C, j, i)
            for c in range(0, full, WIDE):
                g0, g1 = widen(G, row + c), widen(G, row + stride + c)
                g2, g3 = widen(G, row + 2 * stride + c), widen(G, row + 3 * stride + c)
                _add_four(line, first + j * step + c, a0, a1, a2, a3, g0, g1, g2, g3)
    for i in range(m - m % TOGETHER, m):
        for j in range(k):
            a0 = splat(C[j, i])
            for c in range(0, full, WIDE):
                s = first + j * step + c
                v = multiply_add(a0, widen(G, g + i * stride + c), widen(line, s))
                narrow(line, s, v)
    for j in range(k):
        for i in range(m):
            for c in range(full, n):
                line[first + j * step + c] += C[j, i] * number(G, g + i * stride + c)


@inlined
def _coefficients(line: Array, C: NDArray[np.float64], j: int, i: int) -> tuple[Any, Any, Any, Any]:
    return (
        splat(C[j, i]),
        splat(C[j, i + 1]),
        splat(C[j, i + 2]),
        splat(C[j, i + 3]),
    )


@inlined
def _add_four(
    line: Array, c: int, a0: Any, a1: Any, a2: Any, a3: Any, g0: Any, g1: Any, g2: Any, g3: Any
) -> None:
    v = multiply_add(a1, g1, multiply_add(a0, g0, widen(line, c)))
    narrow(line, c, multiply_add(a3, g3, multiply_add(a2, g2, v)))
