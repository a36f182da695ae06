"""Sparse sign matrices: a few entries +1 or -1 in each column, never stored as a whole."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import lanes, load, multiply_add, pointer, prefetch, repeat, store
from quadric.sketch.numba import tiles
from quadric.sketch.numba.signs import Codes, Rows

Array = NDArray[Any]

ENTRIES = 1 << 19  # of S that are known at a time
PRODUCTS = 256  # rows of A that a tile sees at a time, for each sign in a column of S
AHEAD = 16  # rows of A that are fetched before they are needed


def sparse_sign(A: Array, first: int, seed: int, nnz: int, out: Array, n_threads: int) -> None:
    """Add S[:, first:first+n] A, with entries +1 and -1.

    Parameters
    ----------
    A : (n, d) array, any strides
    first : int
    seed : int
    nnz : int
        Entries per column of S; divides m.
    out : (m, d) array of A's dtype, C-contiguous, updated in the order of the rows of A
    n_threads : int
    """
    (n, d), m = A.shape, len(out)
    if not (n and d):
        return
    memory, start, (to_row, to_column) = line(A)
    wide = tiles.width(d, m, A.itemsize, n_threads)
    groups, visit = tiles.groups(d, wide, n_threads), tiles.visit(n, d, PRODUCTS * nnz)
    packed = tiles.pack(out, wide)
    most = min(n, max(ENTRIES // nnz, 1))
    codes = Codes(seed, nnz, m, most, A.dtype)
    for row in range(0, n, most):
        rows = min(most, n - row)
        codes.write(first + row, rows, n_threads)

        def work(i: int, row: int = row, rows: int = rows) -> None:
            add_tiles(
                memory, start + row * to_row, to_row, to_column, rows, d, codes.rows, codes.signs,
                nnz, packed, m, wide, *groups[i], visit,
            )  # fmt: skip

        run(work, len(groups), n_threads)
    tiles.unpack(packed, wide, out)


@compiled
def add_tiles(
    A: Array, start: int, to_row: int, to_column: int, rows: int, d: int, places: Rows,
    signs: Array, nnz: int, out: Array, m: int, wide: int, first: int, stop: int, visit: int,
) -> None:  # fmt: skip
    """Add the rows of tiles [first, stop); copy them first where they do not lie side by side."""
    buffer = np.empty((0 if to_column == 1 and stop * wide <= d else visit) * wide, A.dtype)
    for i in range(0, rows, visit):
        count = min(visit, rows - i)
        for t in range(first, stop):
            columns, at, to = min(wide, d - t * wide), t * m * wide, start + t * wide * to_column
            if to_column == 1 and columns == wide:
                a = to + i * to_row
                add_rows(A, a, to_row, count, places, signs, i * nnz, nnz, out, at, wide)
                continue
            tiles.copy(
                A, to + i * to_row, to_row, to_column, count, columns, buffer, 0, wide, wide
            )  # fmt: skip
            add_rows(buffer, 0, wide, count, places, signs, i * nnz, nnz, out, at, wide)


@compiled
def add_rows(
    A: Array, start: int, stride: int, rows: int, places: Rows, signs: Array, e: int, nnz: int,
    out: Array, at: int, wide: int,
) -> None:  # fmt: skip
    """Add each row with a sign, which is a product that rounds nothing, to `nnz` rows."""
    source, target, place, sign = pointer(A), pointer(out), pointer(places), pointer(signs)
    pack = lanes(A)
    four = 4 * pack
    for i in range(rows):
        a = start + i * stride
        for c in range(0, wide, pack):
            prefetch(source, a + AHEAD * stride + c)
        if wide == four:
            v0, v1 = load(source, a), load(source, a + pack)
            v2, v3 = load(source, a + 2 * pack), load(source, a + 3 * pack)
            for k in range(e, e + nnz):
                o = at + place[k] * wide
                s = repeat(sign, k)
                store(target, o, multiply_add(s, v0, load(target, o)))
                store(target, o + pack, multiply_add(s, v1, load(target, o + pack)))
                store(target, o + 2 * pack, multiply_add(s, v2, load(target, o + 2 * pack)))
                store(target, o + 3 * pack, multiply_add(s, v3, load(target, o + 3 * pack)))
        else:
            for c in range(0, wide, pack):
                v0 = load(source, a + c)
                for k in range(e, e + nnz):
                    o = at + place[k] * wide + c
                    store(target, o, multiply_add(repeat(sign, k), v0, load(target, o)))
        e += nnz


def sparse_sign_rows(B: Array, first: int, seed: int, nnz: int, out: Array, n_threads: int) -> None:
    """Write S[:, first:first+n]^T B, with entries +1 and -1.

    Parameters
    ----------
    B : (m, d) array, any strides
    first, seed, nnz : int
        As in `sparse_sign`.
    out : (n, d) array of B's dtype, C-contiguous, written
    n_threads : int
    """
    (m, d), n = B.shape, len(out)
    if not (n and d):
        return
    source, target = line(np.ascontiguousarray(B))[0], out.reshape(-1)
    step = max(min(ENTRIES // 8 // nnz, n // 64), 1)

    def work(i: int) -> None:
        start = i * step
        rows = min(step, n - start)
        codes = Codes(seed, nnz, m, rows, B.dtype)
        codes.write(first + start, rows, 1)
        gather(source, d, codes.rows, codes.signs, nnz, target, start * d)

    run(work, -(-n // step), n_threads)


@compiled
def gather(B: Array, d: int, places: Rows, signs: Array, nnz: int, out: Array, at: int) -> None:
    """Write the sums of `nnz` rows of B with their signs."""
    source, target, place, sign = pointer(B), pointer(out), pointer(places), pointer(signs)
    pack = lanes(B)
    full = d - d % pack
    for e in range(0, len(places), nnz):
        for c in range(0, full, pack):
            total = repeat(sign, e) * load(source, place[e] * d + c)
            for k in range(e + 1, e + nnz):
                total = multiply_add(repeat(sign, k), load(source, place[k] * d + c), total)
            store(target, at + c, total)
        for c in range(full, d):
            value = sign[e] * source[place[e] * d + c]
            for k in range(e + 1, e + nnz):
                value += sign[k] * source[place[k] * d + c]
            target[at + c] = value
        at += d


def sparse_sign_csr(
    indptr: Array, indices: Array, data: Array, first: int, seed: int, nnz: int, out: Array,
    n_threads: int,
) -> None:  # fmt: skip
    """Add S[:, first:first+n] A for a sparse A.

    Parameters
    ----------
    indptr, indices, data : (n + 1,), (entries,) and (entries,) arrays
        A in CSR; the first two both int32 or both int64.
    first, seed, nnz, out, n_threads
        As in `sparse_sign`.
    """
    n, (m, d) = len(indptr) - 1, out.shape
    target, size = out.reshape(-1), m // nnz
    pointers, columns, values = line(indptr)[0], line(indices)[0], line(data)[0]
    # Rows of the sketch, cut for the threads: a piece sees all of A and adds to its rows alone.
    parts = max(-(-2 * n_threads // nnz), 1) if n_threads > 1 else 1
    parts = min(parts, size)
    most = max(ENTRIES // nnz, 1)
    codes = Codes(seed, nnz, m, min(most, max(n, 1)), data.dtype)
    for row in range(0, n, most):
        rows = min(most, n - row)
        codes.write(first + row, rows, n_threads)

        def work(i: int, row: int = row, rows: int = rows) -> None:
            k, part = divmod(i, parts)
            low, high = (k * size + part * size // parts, k * size + (part + 1) * size // parts)
            scatter(
                pointers, columns, values, row, rows, codes.rows, codes.signs, k, nnz, low, high,
                target, d,
            )  # fmt: skip

        run(work, nnz * parts, n_threads)


@compiled
def scatter(
    indptr: Array, indices: Array, data: Array, row: int, rows: int, places: Rows, signs: Array,
    k: int, nnz: int, low: int, high: int, out: Array, d: int,
) -> None:  # fmt: skip
    """Add entry k of each column of S times the row of A, where it goes to rows [low, high)."""
    column, value, target = pointer(indices), pointer(data), pointer(out)
    for i in range(rows):
        place, sign = np.int64(places[i * nnz + k]), signs[i * nnz + k]
        if low <= place < high:
            for e in range(indptr[row + i], indptr[row + i + 1]):
                target[place * d + column[e]] += sign * value[e]
