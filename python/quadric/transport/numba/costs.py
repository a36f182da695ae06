"""Where kernels take the entries of a cost from: four rows of it at a time, chunk by chunk.

An entry is C_ij = c_ij + alpha_i + beta_j. Stored costs have alpha = beta = 0. Of the squared
distance c_ij = -2 x_i . y_j, of the cosine c_ij = -x_i . y_j; the rest goes into the potentials.
c_ij is the same number in every kernel, so what one says of an entry holds for all.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.vectors import (
    BYTES,
    Line,
    lanes,
    load,
    magnitude,
    multiply_add,
    pointer,
    repeat,
    spread,
    square_root,
    store,
)

Array = NDArray[Any]
Floats = NDArray[np.float64]

STORED, SQUARED, EUCLIDEAN, TAXICAB, COSINE = range(5)

PRODUCTS = (SQUARED, COSINE)
DIRECT = 3  # coordinates whose products do not go through memory

ROWS = 4  # of a tile
PANEL = 4  # packs of columns of a tile; points of that many columns lie together
ENTRIES = 1 << 16  # of a part, at least
PARTS = 32  # of a problem, at most: each has its own sums of columns
STEP = 8  # rows that are finished together
CACHED = 1 << 27  # bytes of costs that are kept rather than computed again


@dataclass(frozen=True, slots=True)
class Source:
    """Costs of B problems, as compiled kernels take them.

    Attributes
    ----------
    args : tuple
        M, first entry, entries to the next problem, row and column, x, y, d, kind, n, m.
    alpha, beta : (B, n) and (B, width) float64 arrays
        Inf beyond the last column, so that there G is -Inf.
    width : int
        Columns with those that pad the last panel.
    """

    args: tuple[Any, ...]
    alpha: Floats
    beta: Floats
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Problems, rows and columns."""
        return len(self.alpha), self.args[-2], self.args[-1]

    @property
    def like(self) -> Array:
        """An empty line of the type of the costs."""
        empty: Array = self.args[0][:0]
        return empty

    @property
    def limits(self) -> tuple[float, float]:
        """Exponents of two between which powers are normal numbers."""
        return (-125.9999, 127.9999) if self.like.itemsize == 4 else (-1021.9999, 1023.9999)

    def parts(self) -> list[tuple[int, int]]:
        """Cut the rows of a problem, whatever the number of threads."""
        _, n, m = self.shape
        count = max(1, min(PARTS, n * m // ENTRIES, n // STEP))
        size = -(-n // (count * STEP)) * STEP
        return [(start, min(start + size, n)) for start in range(0, n, size)]


def source(M: Array | None, x: Array | None, y: Array | None, kind: int, often: bool) -> Source:
    """Prepare the costs of one problem or of a batch; `often` if they are used several times."""
    if M is not None:
        M = M if M.ndim == 3 else M[None]
        B, n, m = M.shape
        memory, first, strides = line(M)
        wide = BYTES // M.itemsize
        width = -(-m // wide) * wide
        empty = np.empty(0, M.dtype)
        args = (memory, first, *strides, empty, empty, 0, kind, n, m)
        return Source(args, np.zeros((B, n)), _extended(np.zeros((B, m)), width), width)
    assert x is not None
    assert y is not None
    x, y = (p if p.ndim == 3 else p[None] for p in (x, y))
    (B, n, d), m = x.shape, y.shape[1]
    if kind in PRODUCTS and d < DIRECT:  # zeros cost less than loops over few coordinates
        x, y = (
            np.concatenate([p, np.zeros((*p.shape[:2], DIRECT - d), p.dtype)], 2) for p in (x, y)
        )
        d = DIRECT
    panel = PANEL * BYTES // x.itemsize
    width = -(-m // panel) * panel
    alpha, beta = np.zeros((B, n)), np.zeros((B, m))
    if kind == SQUARED:
        alpha, beta = (np.einsum("bid,bid->bi", p, p, dtype=np.float64) for p in (x, y))
    elif kind == COSINE:
        alpha += 1
    scale = {SQUARED: -2, COSINE: -1}.get(kind, 1)
    panels = np.zeros((B, width, d), x.dtype)
    panels[:, :m] = y
    panels = panels.reshape(B, width // panel, panel, d).transpose(0, 1, 3, 2)
    X, Y = (np.ascontiguousarray(p).reshape(-1) for p in (x * x.dtype.type(scale), panels))
    result = Source(
        (np.empty(0, x.dtype), 0, 0, 0, 0, X, Y, d, kind, n, m),
        alpha,
        _extended(beta, width),
        width,
    )
    heavy = d > 2 * PANEL or kind == EUCLIDEAN
    return _cached(result) if often and heavy and _size(result) <= CACHED else result


def _size(source: Source) -> int:
    B, n, _ = source.shape
    return B * n * source.width * int(source.like.itemsize)


def padded(n: int) -> int:
    """Room for n rows, and for a step of them that begins at any row."""
    return -(-n // STEP) * STEP + STEP


def _extended(values: Floats, width: int) -> Floats:
    result = np.full((len(values), width), np.inf)
    result[:, : values.shape[1]] = values
    return result


def _cached(source: Source) -> Source:
    """The same entries, stored."""
    B, n, m = source.shape
    C = np.empty((B, -(-n // ROWS) * ROWS, source.width), source.like.dtype)
    for p in range(B):
        write_costs(problem(source.args, p), source.width, C[p])
    empty = source.like
    args = (C.reshape(-1), 0, C[0].size, source.width, 1, empty, empty, 0, STORED, n, m)
    return Source(args, source.alpha, source.beta, source.width)


@inlined
def problem_of(cost: Any, p: int) -> Any:
    """The cost of one problem of the batch: M, first entry, strides, x, place, y, place, d, ..."""
    M, at, batch, to_row, to_column, X, Y, d, kind, n, m = cost
    x = p * n * d
    y = 0 if m == 0 or d == 0 else p * (len(Y) // (len(X) // (n * d)))
    return M, at + p * batch, to_row, to_column, X, x, Y, y, d, kind, n, m


@compiled
def problem(cost: Any, p: int) -> Any:
    """See `problem_of`."""
    return problem_of(cost, p)


@inlined
def bare(cost: Any) -> Any:
    """The cost of one problem by pointers, as `cost_tile` and `powers` take it."""
    M, at, to_row, to_column, X, x, Y, y, d, kind, n, m = cost
    return (
        pointer(M), len(M), at, to_row, to_column, pointer(X), x, pointer(Y), y, d, kind, n, m,
    )  # fmt: skip


@compiled
def write_costs(cost: Any, width: int, C: Array) -> None:
    """Write all entries, and those that pad."""
    C = C.reshape(-1)
    inner, out = bare(cost), pointer(C)
    for i in range(0, cost[-2], ROWS):
        cost_tile(inner, i, 0, width, out, i * width, width)


@compiled
def cost_tile(cost: Any, i: int, start: int, stop: int, out: Line, at: int, stride: int) -> None:
    """Write c of the columns [start, stop) of four rows to out[at + r * stride + j].

    Rows beyond the last repeat it. `start` is the first column of a panel.
    """
    M, _, first, to_row, to_column, X, x, Y, y, d, kind, n, m = cost
    if kind == STORED:
        for r in range(ROWS):
            row, target = first + min(i + r, n - 1) * to_row, at + r * stride
            for j in range(start, min(stop, m)):
                out[target + j] = M[row + j * to_column]
        return
    x0, x1 = x + i * d, x + min(i + 1, n - 1) * d
    x2, x3 = x + min(i + 2, n - 1) * d, x + min(i + 3, n - 1) * d
    place, target = y + start * d, at + start
    if kind == EUCLIDEAN:
        distances(X, x0, x1, x2, x3, Y, place, d, out, target, stride, stop - start)
    elif kind == TAXICAB:
        sizes(X, x0, x1, x2, x3, Y, place, d, out, target, stride, stop - start)
    else:
        products(X, x0, x1, x2, x3, Y, place, d, out, target, stride, stop - start)


def _tiles(term: Any, finish: Any) -> Any:
    """Sums of a term over the coordinates, in register tiles of four rows and four packs."""

    @inlined
    def write(out: Line, at: int, a: Any, b: Any, c: Any, e: Any) -> None:
        wide = lanes(out)
        store(out, at, finish(a))
        store(out, at + wide, finish(b))
        store(out, at + 2 * wide, finish(c))
        store(out, at + 3 * wide, finish(e))

    @compiled
    def fill(
        X: Line, x0: int, x1: int, x2: int, x3: int, Y: Line, y: int, d: int,
        out: Line, at: int, stride: int, columns: int,
    ) -> None:  # fmt: skip
        wide = lanes(out)
        for j in range(at, at + columns, PANEL * wide):
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = spread(out, 0.0)
            c0 = c1 = c2 = c3 = e0 = e1 = e2 = e3 = a0
            for k in range(d):
                y0, y1 = load(Y, y), load(Y, y + wide)
                y2, y3 = load(Y, y + 2 * wide), load(Y, y + 3 * wide)
                x = repeat(X, x0 + k)
                a0, a1, a2, a3 = (
                    term(x, y0, a0),
                    term(x, y1, a1),
                    term(x, y2, a2),
                    term(x, y3, a3),
                )
                x = repeat(X, x1 + k)
                b0, b1, b2, b3 = (
                    term(x, y0, b0),
                    term(x, y1, b1),
                    term(x, y2, b2),
                    term(x, y3, b3),
                )
                x = repeat(X, x2 + k)
                c0, c1, c2, c3 = (
                    term(x, y0, c0),
                    term(x, y1, c1),
                    term(x, y2, c2),
                    term(x, y3, c3),
                )
                x = repeat(X, x3 + k)
                e0, e1, e2, e3 = (
                    term(x, y0, e0),
                    term(x, y1, e1),
                    term(x, y2, e2),
                    term(x, y3, e3),
                )
                y += PANEL * wide
            write(out, j, a0, a1, a2, a3)
            write(out, j + stride, b0, b1, b2, b3)
            write(out, j + 2 * stride, c0, c1, c2, c3)
            write(out, j + 3 * stride, e0, e1, e2, e3)

    return fill


@inlined
def _square(x: Any, y: Any, total: Any) -> Any:
    difference = x - y
    return multiply_add(difference, difference, total)


@inlined
def _size_of(x: Any, y: Any, total: Any) -> Any:
    return total + magnitude(x - y)


@inlined
def _same(value: Any) -> Any:
    return value


products = _tiles(multiply_add, _same)
sizes = _tiles(_size_of, _same)
distances = _tiles(_square, square_root)
