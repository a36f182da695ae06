"""The plan of given potentials: written out, multiplied with vectors, or differentiated."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import (
    Line,
    higher,
    lanes,
    load,
    multiply_add,
    pointer,
    repeat,
    signed,
    spread,
    store,
    total,
    workspace,
)
from quadric.transport.numba.costs import (
    EUCLIDEAN,
    PANEL,
    ROWS,
    Source,
    bare,
    cost_tile,
    padded,
    problem,
    source,
)
from quadric.transport.numba.rows import (
    CHUNK,
    FLUSH,
    LOG2E,
    Columns,
    Limits,
    add_rows,
    flush,
    grid,
    powers,
    row_stride,
    split,
)

Array = NDArray[Any]
Floats = NDArray[np.float64]


class Plan:
    """The potentials of one problem, split, and its cost.

    Attributes
    ----------
    costs : Source
    cost : tuple
    k : float
        log2(e) / reg.
    hi, weight : arrays of the rows
    G, V : arrays of the columns
    """

    def __init__(self, costs: Source, f: Floats, g: Floats, reg: float) -> None:
        _, n, m = costs.shape
        self.costs, self.cost, self.k = costs, problem(costs.args, 0), LOG2E / reg
        like = costs.like
        self.hi, self.weight = np.empty(padded(n), like.dtype), np.empty(padded(n))
        self.G, self.V = (np.empty(costs.width, like.dtype) for _ in range(2))
        alpha, beta = costs.alpha[0], costs.beta[0]
        finite = (np.where(np.isfinite(p), p, 0) for p in (f, g))  # -Inf where there is no mass
        digits = 22 if like.itemsize == 4 else 51
        step = grid(next(finite), alpha, next(finite), beta[:m], digits)
        split(f, alpha, step, self.k, self.hi, self.weight)
        split(g, beta[:m], step, self.k, self.G, self.V)

    @property
    def args(self) -> tuple[Any, Array, Array, Array, float, Limits]:
        """What all passes take first."""
        return self.cost, self.hi, self.G, self.V, self.k, self.costs.limits

    def room(self) -> Array:
        """Memory for four rows."""
        result: Array = workspace(ROWS * row_stride(len(self.G), self.G), self.G)
        return result


def plan(
    M: Array | None,
    x: Array | None,
    y: Array | None,
    kind: int,
    f: Floats,
    g: Floats,
    reg: float,
    out: Array,
    n_threads: int,
) -> None:
    """Write exp((f_i + g_j - C_ij) / reg).

    Parameters
    ----------
    M : (n, m) array, any strides, or None
    x, y : (n, d) and (m, d) arrays, C-contiguous, or None
    kind : int
    f, g : (n,) and (m,) float64 arrays
    reg : float
    out : (n, m) array of the dtype of the costs, C-contiguous, written
    n_threads : int
    """
    p = Plan(source(M, x, y, kind, False), f, g, reg)
    parts = p.costs.parts()

    def work(i: int) -> None:
        start, stop = parts[i]
        write_plan(*p.args, start, stop, p.weight, out, p.room())

    run(work, len(parts), n_threads)


@compiled
def write_plan(
    cost: Any, hi: Array, G: Array, V: Array, k: float, limits: Limits, start: int, stop: int,
    weight: Floats, out: Array, room: Array,
) -> None:  # fmt: skip
    """Rows [start, stop) of the plan."""
    inner, columns, stride = (
        bare(cost),
        (pointer(G), pointer(V), len(G)),
        row_stride(len(G), G),
    )
    shift, E = pointer(hi), pointer(room)
    for i in range(start, stop, ROWS):
        powers(inner, i, shift, i, columns, k, limits, E, 0, stride)
        for r in range(min(ROWS, stop - i)):
            w, e, row = out.dtype.type(weight[i + r]), r * stride, out[i + r]
            for j in range(len(row)):
                row[j] = (room[e + j] * V[j]) * w


def apply_plan(
    M: Array | None,
    x: Array | None,
    y: Array | None,
    kind: int,
    f: Floats,
    g: Floats,
    reg: float,
    V: Floats | None,
    out: Floats | None,
    rows: Floats,
    columns: Floats,
    n_threads: int,
) -> float:
    """Multiply the plan with vectors without storing it.

    Parameters
    ----------
    M, x, y, kind, f, g, reg :
        See :func:`plan`.
    V : (m, k) float64 array, C-contiguous, or None
    out : (n, k) float64 array, C-contiguous, written, or None
        P V.
    rows, columns : (n,) and (m,) float64 arrays, written
        P 1 and P^T 1.
    n_threads : int

    Returns
    -------
    float
        sum(P C); forbidden pairs count 0.
    """
    p = Plan(source(M, x, y, kind, False), f, g, reg)
    m, width = len(g), p.costs.width
    k = 0 if V is None else V.shape[1]
    vectors = np.zeros((k, width), p.G.dtype)
    if V is not None:
        vectors[:, :m] = V.T * p.V[:m]
    product = np.empty((len(f), 0)) if out is None else out
    parts = p.costs.parts()
    sums, slack = np.empty((len(parts), width)), np.empty(len(parts))

    def work(i: int) -> None:
        start, stop = parts[i]
        slack[i] = multiply_plan(
            *p.args, start, stop, p.weight, vectors.reshape(-1), product, rows, sums[i], p.room(),
            p.room(), np.empty(width, p.G.dtype),
        )  # fmt: skip

    run(work, len(parts), n_threads)
    columns[...] = sums.sum(axis=0)[:m] * p.V[:m]
    # C = (hi_i + G_j - slack) + alpha_i + beta_j on every pair; hi and G may be -Inf where P is 0.
    left = np.where(rows > 0, p.hi[: len(f)] + p.costs.alpha[0], 0)
    right = np.where(columns > 0, p.G[:m] + p.costs.beta[0, :m], 0)
    return float(rows @ left + columns @ right - slack.sum())


@compiled
def multiply_plan(
    cost: Any, hi: Array, G: Array, V: Array, k: float, limits: Limits, start: int, stop: int,
    weight: Floats, vectors: Array, out: Floats, rows: Floats, sums: Floats, room: Array,
    other: Array, added: Array,
) -> float:  # fmt: skip
    """Rows [start, stop) of `apply_plan`; return sum P (hi_i + G_j - c_ij)."""
    width, stride, chunk = len(G), row_stride(len(G), G), CHUNK * lanes(G)
    inner, columns = bare(cost), (pointer(G), pointer(V), width)
    shift, E, Z, recent = pointer(hi), pointer(room), pointer(other), pointer(added)
    scales = workspace(ROWS, G)
    added[:] = 0
    sums[:] = 0
    slack, lowest = 0.0, limits[0] / k
    steps = 0
    for i in range(start, stop, ROWS):
        valid = min(ROWS, stop - i)
        s = powers(inner, i, shift, i, columns, k, limits, E, 0, stride)
        for at in range(0, width, chunk):
            cost_tile(inner, i, at, min(at + chunk, width), Z, 0, stride)
        scales[:] = 0
        for r in range(valid):
            w = weight[i + r]
            rows[i + r] = s[r] * w
            scales[r] = w
            slack += w * _slack(Z, E, r * stride, columns, hi[i + r], lowest)
        add_rows(E, stride, ROWS, pointer(scales), recent, width)
        for q in range(out.shape[1]):
            p = four_dots(E, 0, stride, pointer(vectors), q * width, width)
            for r in range(valid):
                out[i + r, q] = p[r] * weight[i + r]
        steps += 1
        if steps == 2 * FLUSH:
            flush(recent, pointer(sums), width)
            steps = 0
    flush(recent, pointer(sums), width)
    return slack


@inlined
def _slack(Z: Line, E: Line, at: int, columns: Columns, shift: float, lowest: float) -> float:
    """The sum of E V times (shift + G) - c."""
    G, V, width = columns
    f, least, zero = spread(E, shift), spread(E, lowest), spread(E, 0.0)
    result, chunk = 0.0, CHUNK * lanes(E)
    for start in range(0, width, chunk):
        part = zero
        for j in range(start, min(start + chunk, width), lanes(E)):
            z = higher((f + load(G, j)) - load(Z, at + j), least)
            part = multiply_add(load(E, at + j) * load(V, j), z, part)
        result += total(part)
    return result


@compiled
def four_dots(
    E: Line, e: int, stride: int, v: Line, at: int, width: int
) -> tuple[float, float, float, float]:
    """Products of four rows of E with the vector from v[at] on."""
    t0 = t1 = t2 = t3 = 0.0
    chunk = CHUNK * lanes(E)
    e1, e2, e3 = e + stride, e + 2 * stride, e + 3 * stride
    for start in range(0, width, chunk):
        s0 = s1 = s2 = s3 = spread(E, 0.0)
        for j in range(start, min(start + chunk, width), lanes(E)):
            x = load(v, at + j)
            s0 = multiply_add(load(E, e + j), x, s0)
            s1 = multiply_add(load(E, e1 + j), x, s1)
            s2 = multiply_add(load(E, e2 + j), x, s2)
            s3 = multiply_add(load(E, e3 + j), x, s3)
        t0, t1, t2, t3 = t0 + total(s0), t1 + total(s1), t2 + total(s2), t3 + total(s3)
    return t0, t1, t2, t3


def point_gradient(
    x: Array,
    y: Array,
    kind: int,
    f: Floats,
    g: Floats,
    reg: float,
    out: Floats,
    n_threads: int,
) -> None:
    """Write sum_j P_ij dC_ij/dx_i, where x_i = y_j counts 0.

    Parameters
    ----------
    x, y : (n, d) and (m, d) arrays, C-contiguous
    kind : int
        2 Euclidean or 3 taxicab.
    f, g, reg :
        See :func:`plan`.
    out : (n, d) float64 array, C-contiguous, written
    n_threads : int
    """
    p = Plan(source(None, x, y, kind, False), f, g, reg)
    parts = p.costs.parts()

    def work(i: int) -> None:
        start, stop = parts[i]
        differentiate(*p.args, start, stop, p.weight, out, p.room(), p.room())

    run(work, len(parts), n_threads)


@compiled
def differentiate(
    cost: Any, hi: Array, G: Array, V: Array, k: float, limits: Limits, start: int, stop: int,
    weight: Floats, out: Floats, room: Array, other: Array,
) -> None:  # fmt: skip
    """Rows [start, stop) of `point_gradient`."""
    X, x, Y, y, d, kind = cost[4], cost[5], cost[6], cost[7], cost[8], cost[9]
    width, wide, stride = len(G), lanes(G), row_stride(len(G), G)
    inner, columns = bare(cost), (pointer(G), pointer(V), width)
    shift, E, Z = pointer(hi), pointer(room), pointer(other)
    panel, zero = PANEL * wide, spread(E, 0.0)
    for i in range(start, stop, ROWS):
        powers(inner, i, shift, i, columns, k, limits, E, 0, stride)
        if kind == EUCLIDEAN:
            cost_tile(inner, i, 0, width, Z, 0, stride)
        for r in range(min(ROWS, stop - i)):
            row = r * stride
            for j in range(0, width, wide):
                q = load(E, row + j) * load(V, j)
                if kind == EUCLIDEAN:
                    distance = load(Z, row + j)
                    q = signed(q / distance, distance)
                store(E, row + j, q)
            for c in range(d):
                point, result = repeat(X, x + (i + r) * d + c), 0.0
                for j in range(0, width, panel):
                    part, at = zero, y + j * d + c * panel
                    for t in range(0, panel, wide):
                        difference = point - load(Y, at + t)
                        q = load(E, row + j + t)
                        if kind == EUCLIDEAN:
                            part = multiply_add(q, difference, part)
                        else:
                            part = part + signed(q, difference)
                    result += total(part)
                out[i + r, c] = result * weight[i + r]
