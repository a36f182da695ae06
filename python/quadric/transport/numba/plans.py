"""The plan of given potentials: written out, multiplied with vectors, or differentiated."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled, inlined
from quadric.linalg.numba.parallel import run
from quadric.transport.numba.costs import (
    EUCLIDEAN,
    PANEL,
    ROWS,
    STEP,
    Source,
    cost_tile,
    padded,
    problem,
    source,
)
from quadric.transport.numba.rows import CHUNK, LOG2E, add_rows, flush, grid, powers, split
from quadric.transport.numba.vectors import (
    BYTES,
    higher,
    lanes,
    load,
    multiply_add,
    signed,
    spread,
    store,
    total,
    widen,
    workspace,
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
        step = grid(f, alpha, g, beta[:m], 22 if like.itemsize == 4 else 51)
        split(f, alpha, step, self.k, self.hi, self.weight)
        split(g, beta[:m], step, self.k, self.G, self.V)


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
        write_plan(p.cost, *parts[i], p.hi, p.weight, p.G, p.V, p.k, p.costs.limits, out)

    run(work, len(parts), n_threads)


@compiled
def write_plan(
    cost: Any, start: int, stop: int, hi: Array, weight: Floats, G: Array, V: Array, k: float,
    limits: tuple[float, float], out: Array,
) -> None:  # fmt: skip
    """Rows [start, stop) of the plan."""
    stride = len(G) + 2 * lanes(G)
    E = workspace(ROWS * stride, G)
    for i in range(start, stop, ROWS):
        powers(cost, i, hi, i, G, V, k, limits, E, 0, stride)
        for r in range(min(ROWS, stop - i)):
            w, e, row = out.dtype.type(weight[i + r]), r * stride, out[i + r]
            for j in range(len(row)):
                row[j] = (E[e + j] * V[j]) * w


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
        slack[i] = multiply_plan(
            p.cost, *parts[i], p.hi, p.weight, p.G, p.V, p.k, p.costs.limits, vectors, product,
            rows, sums[i],
        )  # fmt: skip

    run(work, len(parts), n_threads)
    columns[...] = sums.sum(axis=0)[:m] * p.V[:m]
    # C = (hi_i + G_j - slack) + alpha_i + beta_j on every pair.
    left = p.hi[: len(f)] + p.costs.alpha[0]
    right = p.G[:m] + p.costs.beta[0, :m]
    return float(rows @ left + columns @ right - slack.sum())


@compiled
def multiply_plan(
    cost: Any, start: int, stop: int, hi: Array, weight: Floats, G: Array, V: Array, k: float,
    limits: tuple[float, float], vectors: Array, out: Floats, rows: Floats, sums: Floats,
) -> float:  # fmt: skip
    """Rows [start, stop) of `apply_plan`; return sum P (hi_i + G_j - c_ij)."""
    n, width = cost[-2], len(G)
    stride = width + 2 * lanes(G)
    E, Z = workspace(ROWS * stride, G), workspace(ROWS * stride, G)
    recent, scales = workspace(width, G), workspace(ROWS, G)
    recent[:] = 0
    sums[:] = 0
    flat = vectors.reshape(-1)
    slack, lowest = 0.0, limits[0] / k
    steps = 0
    for i in range(start, stop, ROWS):
        valid = min(ROWS, stop - i)
        s = powers(cost, i, hi, i, G, V, k, limits, E, 0, stride)
        for at in range(0, width, CHUNK * lanes(G)):
            cost_tile(cost, i, at, min(at + CHUNK * lanes(G), width), Z, 0, stride)
        for r in range(ROWS):
            scales[r] = 0
        for r in range(valid):
            w = weight[i + r]
            rows[i + r] = s[r] * w
            scales[r] = w
            slack += w * _slack(Z, E, r * stride, G, V, hi[i + r], lowest)
        add_rows(E, stride, ROWS, scales, recent)
        for q in range(len(vectors)):
            p = four_dots(E, 0, stride, flat, q * width, width)
            for r in range(valid):
                out[i + r, q] = p[r] * weight[i + r]
        steps += 1
        if steps == 2 * STEP:
            flush(recent, sums)
            steps = 0
    flush(recent, sums)
    return slack


@inlined
def _slack(Z: Array, E: Array, at: int, G: Array, V: Array, shift: Any, lowest: float) -> float:
    """The sum of E V times (shift + G) - c."""
    f, least, zero = spread(E, shift), spread(E, lowest), spread(E, 0.0)
    result, chunk = 0.0, CHUNK * lanes(E)
    for start in range(0, len(G), chunk):
        part = zero
        for j in range(start, min(start + chunk, len(G)), lanes(E)):
            z = higher((f + load(G, j)) - load(Z, at + j), least)
            part = multiply_add(load(E, at + j) * load(V, j), z, part)
        result += total(part)
    return result


@compiled
def four_dots(
    E: Array, e: int, stride: int, v: Array, at: int, width: int
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
        differentiate(p.cost, *parts[i], p.hi, p.weight, p.G, p.V, p.k, p.costs.limits, out)

    run(work, len(parts), n_threads)


@compiled
def differentiate(
    cost: Any, start: int, stop: int, hi: Array, weight: Floats, G: Array, V: Array, k: float,
    limits: tuple[float, float], out: Floats,
) -> None:  # fmt: skip
    """Rows [start, stop) of `point_gradient`."""
    X, x, Y, y, d, kind, n = cost[4], cost[5], cost[6], cost[7], cost[8], cost[9], cost[10]
    width, wide = len(G), lanes(G)
    stride, panel = width + 2 * wide, PANEL * wide
    E, Z = workspace(ROWS * stride, G), workspace(ROWS * stride, G)
    zero = spread(E, 0.0)
    for i in range(start, stop, ROWS):
        powers(cost, i, hi, i, G, V, k, limits, E, 0, stride)
        if kind == EUCLIDEAN:
            cost_tile(cost, i, 0, width, Z, 0, stride)
        for r in range(min(ROWS, stop - i)):
            row = r * stride
            for j in range(0, width, wide):
                q = load(E, row + j) * load(V, j)
                if kind == EUCLIDEAN:
                    distance = load(Z, row + j)
                    q = signed(q / distance, distance)
                store(E, row + j, q)
            for c in range(d):
                point, result = spread(X, X[x + (i + r) * d + c]), 0.0
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
