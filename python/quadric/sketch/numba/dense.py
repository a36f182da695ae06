"""Dense random matrices, Gaussian or of signs, made while they are multiplied with."""

from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba import blas
from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import pointer
from quadric.random.numba.philox import Words, fill
from quadric.sketch.numba import tiles
from quadric.sketch.numba.signs import from_bits
from quadric.threads import blas_limit

Array = NDArray[Any]

GAUSSIAN, RADEMACHER = 0, 1
STREAM = 4
BLOCK = 256  # rows of A whose products are summed together
ROWS = 128  # of S that a thread works on; a multiple of 32


def dense(A: Array, first: int, seed: int, kind: int, out: Array, n_threads: int) -> None:
    """Add S[:, first:first+n] A, unscaled.

    Parameters
    ----------
    A : (n, d) array, any strides
    first : int
        A multiple of 256. So is n, unless the rows of A are the last ones.
    seed : int
    kind : int
        0 for the normal distribution, 1 for signs.
    out : (m, d) array of A's dtype, C-contiguous, updated in the order of the blocks of A
    n_threads : int
    """
    (n, d), m = A.shape, len(out)
    if not (n and d):
        return

    def work(t: int) -> None:
        start = t * ROWS
        rows = min(ROWS, m - start)
        entries = np.empty((BLOCK, rows), A.dtype)
        for i in range(0, n, BLOCK):
            columns = min(BLOCK, n - i)
            part = entries[:columns]
            write(np.uint64(seed), kind, m, start, first + i, rows, columns, part.reshape(-1))
            block = np.ascontiguousarray(A[i : i + BLOCK])
            blas.gemm(1.0, part.T, block, 1.0, out[start : start + rows])

    with blas_limit(1):
        run(work, -(-m // ROWS), n_threads)


def dense_entries(
    row: int, first: int, seed: int, m: int, kind: int, out: Array, n_threads: int
) -> None:
    """Write S[row:row+r, first:first+c], unscaled.

    Parameters
    ----------
    row, first, seed, m, kind : int
        As in `dense`; m is the number of rows of S.
    out : (r, c) array, C-contiguous, written
    n_threads : int
    """
    r, c = out.shape
    if not out.size:
        return
    target = out.reshape(-1)

    def work(t: int) -> None:
        start = t * BLOCK
        columns = min(BLOCK, c - start)
        part = np.empty(columns * r, out.dtype)
        write(np.uint64(seed), kind, m, row, first + start, r, columns, part)
        tiles.move(part, 0, 1, r, target, start, c, 1, r, columns)

    run(work, -(-c // BLOCK), n_threads)


@compiled
def write(
    seed: np.uint64, kind: int, m: int, row: int, column: int, rows: int, columns: int, out: Array
) -> None:
    """Write entries of S, one column after the other."""
    if kind == GAUSSIAN:
        write_normals(seed, m, row, column, rows, columns, out)
    else:
        write_signs(seed, m, row, column, rows, columns, out)


@compiled
def write_normals(
    seed: np.uint64, m: int, row: int, column: int, rows: int, columns: int, out: Array
) -> None:
    """Four rows of a column share a block of words."""
    begin, end = row // 4, (row + rows + 3) // 4
    words = np.empty(4 * (end - begin), np.uint32)
    memory, line = np.empty((3, 2 * (end - begin))), np.empty(4 * (end - begin))
    skip = row - 4 * begin
    source, target = pointer(line), pointer(out)
    for j in range(columns):
        block = (column + j) * ((m + 3) // 4) + begin
        fill(seed, np.uint64(STREAM), np.uint64(block), words, 0, end - begin)
        box_muller(words, memory, line)
        for i in range(rows):
            target[j * rows + i] = source[skip + i]


_LN2, _ROOT = float(np.log(2.0)), int(np.float64(np.sqrt(0.5)).view(np.int64))
_LOGARITHM = tuple(2 / k for k in range(21, 0, -2))
_SINE = tuple((-1) ** (k // 2) * (np.pi / 2) ** k / factorial(k) for k in range(17, 0, -2))
_COSINE = tuple((-1) ** (k // 2) * (np.pi / 2) ** k / factorial(k) for k in range(16, -1, -2))


@compiled
def box_muller(words: Words, memory: Array, out: Array) -> None:
    """Write a normal number for each word, within 4 eps times the radius of its pair.

    Each loop is plain arithmetic that vector units do, with the same bits on every machine.
    memory: (3, n / 2) numbers.
    """
    x, e, u = memory[0], memory[1], memory[2]
    bits = x.view(np.int64)
    for i in range(len(x)):
        x[i] = (words[2 * i] + 0.5) * 2.0**-32
        u[i] = (words[2 * i + 1] + 0.5) * 2.0**-30
    # x = 2^e y with y between sqrt(1/2) and sqrt(2).
    for i in range(len(x)):
        whole = (bits[i] - _ROOT) >> 52
        bits[i] -= whole << 52
        e[i] = whole
    for i in range(len(x)):
        s = (x[i] - 1) / (x[i] + 1)
        logarithm = e[i] * _LN2 + s * polynomial(s * s, _LOGARITHM)
        radius = np.sqrt(-2 * logarithm)
        # The angle is a number of quarters and a rest of at most half of one.
        quarter = np.floor(u[i] + 0.5)
        rest = u[i] - quarter
        sine = radius * (rest * polynomial(rest * rest, _SINE))
        cosine = radius * polynomial(rest * rest, _COSINE)
        q = np.int64(quarter)
        a, b = (sine, cosine) if q & 1 else (cosine, sine)
        out[2 * i] = -a if (q + 1) & 2 else a
        out[2 * i + 1] = -b if q & 2 else b


@inlined
def polynomial(x: float, coefficients: tuple[float, ...]) -> float:
    """The coefficient of the highest power comes first."""
    value = coefficients[0]
    for c in coefficients[1:]:
        value = value * x + c
    return value


@compiled
def write_signs(
    seed: np.uint64, m: int, row: int, column: int, rows: int, columns: int, out: Array
) -> None:
    """Each bit of a word is a row."""
    per_column = (m + 127) // 128
    begin, end = row // 128, (row + rows + 127) // 128
    words = np.empty(4 * (end - begin), np.uint32)
    for j in range(columns):
        block = (column + j) * per_column + begin
        fill(seed, np.uint64(STREAM), np.uint64(block), words, 0, end - begin)
        from_bits(words, row - 128 * begin, out[j * rows : (j + 1) * rows])
