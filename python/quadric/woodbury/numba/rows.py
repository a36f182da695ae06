"""Rows of gradients: Gram matrices, products with vectors, combinations, norms of columns.

Gradients are float16, bfloat16 (its bits in uint16), float32 or float64; vectors are float64 where
the gradients are, else float32. A matrix of each kind may be cut into blocks of columns.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba import blas
from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.lanes import WIDE
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.packs import workspace
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.streams import COLUMNS, add_combination, add_dots, convert

Array = NDArray[Any]

SLAB = 2048  # columns whose products are summed in the precision of the vectors
TILE = 512  # rows and columns of a Gram matrix that one thread computes at a time
WAVE = 1 << 24  # bytes of the products that wait to be added, about
STEP = 64  # rows that BLAS solves at a time: gemm, for the others, is faster
SUMS = 1 << 16  # of a combination that are kept at a time
SEGMENT = 16384  # columns of a piece of work, at least
SEGMENTS = 128  # pieces of a block, at most


def gram(G: Array, block_size: int, exact: bool, K: NDArray[np.float64], n_threads: int) -> None:
    """Write K = G G^T of every block.

    Parameters
    ----------
    G : (m, d) array of gradients, contiguous rows
    block_size : int
    exact : bool
        Whether products are taken in float64; else in float32 where the gradients are no longer,
        and summed in float64 from slab to slab.
    K : (blocks, m, m) float64 array, C-contiguous, written
    n_threads : int
    """
    m, d = G.shape
    dtype = np.dtype(np.float64 if exact or G.dtype == np.float64 else np.float32)
    memory, _, (stride, _) = line(G)
    rows = [slice(i, min(i + TILE, m)) for i in range(0, m, TILE)]
    tiles = [(i, j) for i in rows for j in rows if i.start <= j.start]

    def columns(i: slice, start: int, stop: int) -> Array:
        if G.dtype == dtype:
            return G[i, start:stop]
        part = np.empty((i.stop - i.start, stop - start), dtype)
        at, n = i.start * stride + start, stop - start
        convert(memory, at, stride, part.reshape(-1), 0, n, len(part), n)
        return part

    def multiply(tile: tuple[slice, slice], start: int, stop: int, out: Array) -> None:
        i, j = tile
        left = columns(i, start, stop)
        if i == j:
            blas.syrk(1.0, left.T, 0.0, out[i, i])
        else:
            blas.gemm(1.0, left, columns(j, start, stop).T, 0.0, out[i, j])

    K[...] = 0
    blocks = [slice(b * block_size, min((b + 1) * block_size, d)) for b in range(len(K))]
    together = max(WAVE // max(m * m * dtype.itemsize, 1), 1)
    if len(K) > 1 and block_size <= SLAB * together:

        def work(b: int) -> None:
            out = np.empty((1, m, m), dtype)
            for start in range(blocks[b].start, blocks[b].stop, SLAB):
                for tile in tiles:
                    multiply(tile, start, min(start + SLAB, blocks[b].stop), out[0])
                add_upper(out, 0, m, K[b])
            mirror(K[b])

        run(work, len(K), n_threads)
        return
    products = np.empty((together, m, m), dtype)
    for b, block in enumerate(blocks):
        starts = range(block.start, block.stop, SLAB)
        for wave in range(0, len(starts), together):
            slabs = starts[wave : wave + together]

            def product(i: int, slabs: range = slabs, stop: int = block.stop) -> None:
                k, tile = divmod(i, len(tiles))
                multiply(tiles[tile], slabs[k], min(slabs[k] + SLAB, stop), products[k])

            def add(i: int, out: Array = K[b], count: int = len(slabs)) -> None:
                add_upper(products[:count], m * i // 8, m * (i + 1) // 8, out)

            run(product, len(slabs) * len(tiles), n_threads)
            run(add, 8, n_threads)
        mirror(K[b])


@compiled
def add_upper(products: Array, first: int, stop: int, out: NDArray[np.float64]) -> None:
    """Add rows [first, stop) of the upper triangles, one matrix after the other."""
    m = len(out)
    for i in range(first, stop):
        row = out[i]
        for p in range(len(products)):
            other = products[p, i]
            for j in range(i, m):
                row[j] += other[j]


@compiled
def mirror(A: NDArray[np.float64]) -> None:
    """Copy the upper triangle to the lower one."""
    for start in range(0, len(A), 16):
        for i in range(start, len(A)):
            for j in range(start, min(start + 16, i)):
                A[i, j] = A[j, i]


def segments(d: int, block_size: int) -> list[tuple[int, int]]:
    """Cut the columns into pieces of work: parts of a block, or several blocks."""
    blocks = max(SEGMENT // block_size, 1)
    parts = min(max(block_size // SEGMENT, 1), SEGMENTS)
    size = blocks * block_size if parts == 1 else -(-block_size // (parts * COLUMNS)) * COLUMNS
    return [
        (start, min(start + size, stop))
        for first in range(0, d, blocks * block_size)
        for stop in [min(first + blocks * block_size, d)]
        for start in range(first, stop, size)
    ]


def dots(G: Array, X: Array, block_size: int, out: NDArray[np.float64], n_threads: int) -> None:
    """Write G X^T of every block.

    Parameters
    ----------
    G : (m, d) array of gradients, contiguous rows
    X : (k, d) array, contiguous rows
    block_size : int
    out : (blocks, m, k) float64 array, C-contiguous, written
    n_threads : int
    """
    (m, d), k = G.shape, len(X)
    memory, _, (stride, _) = line(G)
    vectors, _, (step, _) = line(X)
    pieces = segments(d, block_size)
    sums = [np.empty(0)] * len(pieces)

    def work(i: int) -> None:
        start, stop = pieces[i]
        sums[i] = np.zeros((-(-(stop - start) // block_size), m, k))
        add_dots(
            memory, start, stride, m, vectors, start, step, k, stop - start, block_size, sums[i]
        )

    run(work, len(pieces), n_threads)
    out[...] = 0
    for (start, _), part in zip(pieces, sums, strict=True):
        out[start // block_size : start // block_size + len(part)] += part


def combine(
    G: Array,
    C: NDArray[np.float64],
    X: Array | None,
    scale: float,
    block_size: int,
    out: Array,
    n_threads: int,
) -> None:
    """Write scale X + C G of every block.

    Parameters
    ----------
    G : (m, d) array of gradients, contiguous rows
    C : (blocks, k, m) float64 array
    X : (k, d) array, contiguous rows, or None
    scale : float
    block_size : int
    out : (k, d) array of X's dtype, C-contiguous, written; may be X
    n_threads : int
    """
    d, k = G.shape[1], len(out)
    memory, _, (stride, _) = line(G)
    vectors, _, (step, _) = line(np.empty((0, d), out.dtype) if X is None else X)
    target, _, (to_row, _) = line(out)
    C = np.ascontiguousarray(C)
    pieces = segments(d, block_size)
    width = max(min(COLUMNS, SUMS // max(k, 1)) // WIDE * WIDE, WIDE)
    if block_size <= width:
        width -= width % block_size

    def work(i: int) -> None:
        x = workspace(-(-k * width // WIDE)).reshape(-1)[: k * width]
        start, end = pieces[i]
        while start < end:
            b = start // block_size
            n = min(width, end - start)
            if block_size > width:
                n = min(n, (b + 1) * block_size - start)
            begin(vectors, start, step, scale, x.reshape(k, width), n)
            add_combination(memory, start, stride, C[b:], block_size, x.reshape(k, width), n)
            convert(x, 0, width, target, start, to_row, k, n)
            start += n

    run(work, len(pieces), n_threads)


@compiled
def begin(X: Array, start: int, step: int, scale: float, sums: NDArray[np.float64], n: int) -> None:
    """sums = scale X on n columns; 0 without X."""
    for j in range(len(sums)):
        row = sums[j]
        for c in range(n):
            row[c] = scale * X[start + j * step + c] if len(X) > 0 else 0.0


def column_norms(
    G: Array,
    E: Array | None,
    block_size: int,
    L: NDArray[np.float64],
    out: NDArray[np.float64],
    n_threads: int,
) -> None:
    """Write the sums of squares of the columns of L^-1 [G; E] in every block.

    Parameters
    ----------
    G : (m, d) array of gradients, contiguous rows
    E : (e, d) array of gradients, contiguous rows, or None
    block_size : int
    L : (blocks, m + e, m + e) float64 array, lower triangular
    out : (d,) float64 array, written
    n_threads : int
    """
    m, d = G.shape
    rows = L.shape[1]
    sources = [(line(A), at, len(A)) for A, at in ((G, 0), (E, m)) if A is not None]
    width = min(max((1 << 17) // max(rows, 1), 32), 1024)
    strips = [
        (b, start, min(start + width, (b + 1) * block_size, d))
        for b in range(len(L))
        for start in range(b * block_size, min((b + 1) * block_size, d), width)
    ]

    def work(i: int) -> None:
        b, start, stop = strips[i]
        n = stop - start
        X = np.empty((rows, n))
        for (memory, _, (stride, _)), at, count in sources:
            convert(memory, start, stride, X.reshape(-1), at * n, n, count, n)
        for j in range(0, rows, STEP):
            part = slice(j, j + STEP)
            blas.gemm(-1.0, L[b, part, :j], X[:j], 1.0, X[part])
            blas.solve_lower(1.0, L[b, part, part], X[part])
        sum_squares(X, out[start:stop])

    run(work, len(strips), n_threads)


@compiled
def sum_squares(X: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Sums over the rows."""
    out[:] = 0
    for i in range(len(X)):
        row = X[i]
        for j in range(len(out)):
            out[j] += row[j] * row[j]


LIMITS = {"e": 65520.0, "H": 2.0**128 - 2.0**119}
"""From where on numbers are rounded to infinity in float16 and bfloat16."""


def store(g: Array, row: Array, rounded: Array | None, n_threads: int) -> int:
    """Round a gradient to a row; return -1, or the first entry that is not finite there.

    Parameters
    ----------
    g : (d,) array
    row : (d,) array of gradients, written unless an entry is not finite
        Rounded to nearest even.
    rounded : (d,) array of g's dtype or None, written likewise
        The values of `row`.
    n_threads : int
    """
    d = len(g)
    g = np.ascontiguousarray(g)
    source, target = line(g)[0], line(row)[0]
    limit = LIMITS.get(row.dtype.char, np.inf)
    cuts = range(0, d, SEGMENT)
    first = np.full(len(cuts), -1)

    def look(i: int) -> None:
        first[i] = first_beyond(source[cuts[i] : cuts[i] + SEGMENT], limit)

    def write(i: int) -> None:
        start, n = cuts[i], min(SEGMENT, d - cuts[i])
        convert(source, start, 0, target, start, 0, 1, n)
        if rounded is not None:
            convert(target, start, 0, rounded, start, 0, 1, n)

    run(look, len(cuts), n_threads)
    wrong = np.flatnonzero(first >= 0)
    if len(wrong):
        return int(cuts[wrong[0]] + first[wrong[0]])
    run(write, len(cuts), n_threads)
    return -1


@compiled
def first_beyond(g: Array, limit: float) -> int:
    """Return the index of the first entry that is not below the limit in size, or -1."""
    for start in range(0, len(g), 256):
        part = g[start : start + 256]
        wrong = 0
        for i in range(len(part)):
            wrong |= not (abs(part[i]) < limit)
        if wrong:
            for i in range(len(part)):
                if not (abs(part[i]) < limit):
                    return start + i
    return -1
