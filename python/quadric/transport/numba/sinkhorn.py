"""One-pass Sinkhorn iterations: each entry of the plan is computed once per iteration."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import (
    higher,
    load,
    logarithm,
    multiply_add,
    spread,
    store,
    widen,
    workspace,
)
from quadric.transport.numba.costs import STEP, Source, problem, problem_of, source
from quadric.transport.numba.rows import (
    LOG2E,
    MOST,
    Limits,
    Memory,
    column_maxima,
    grid,
    power,
    scratch,
    split,
    sweep,
)

Array = NDArray[Any]
Floats = NDArray[np.float64]

ALONE = 1 << 19  # entries of a problem from which on threads share it
SMALL = 1 << 15  # entries that are worth a piece of work of their own


def sinkhorn(
    M: Array | None,
    x: Array | None,
    y: Array | None,
    kind: int,
    a: Floats,
    b: Floats,
    reg: float,
    theta_a: float,
    theta_b: float,
    omega: Floats,
    tol: float,
    count: int,
    f: Floats,
    g: Floats,
    errors: Floats,
    n_threads: int,
) -> None:
    """Make up to `count` iterations of each problem of a batch.

    Parameters
    ----------
    M : (B, n, m) array, any strides, or None
        Costs; Inf forbids a pair.
    x, y : (B, n, d) and (B, m, d) arrays, C-contiguous, or None
    kind : int
        0 stored, 1 squared Euclidean, 2 Euclidean, 3 taxicab, 4 cosine of unit vectors.
    a, b : (B, n) and (B, m) float64 arrays, above 0
    reg, theta_a, theta_b : float
        theta = rho / (rho + reg), 1 where the marginal is met exactly.
    omega : (B,) float64 array
        Over-relaxation; problems where it is 0 are left alone, with NaN for errors.
    tol : float
        A problem stops before it updates g if its error is not above.
    count : int
    f, g : (B, n) and (B, m) float64 arrays, updated
    errors : (B, count) float64 array, written
        L1 errors of both marginals at (new f, old g); Inf where the potentials would not be
        finite, NaN after the last iteration.
    n_threads : int
    """
    costs = source(M, x, y, kind, count > 1)
    B, n, m = costs.shape
    errors[...] = np.nan
    log_a, log_b = np.log2(a), np.log2(b)
    k, parts = LOG2E / reg, np.array(costs.parts())
    if n_threads > B and len(parts) > 1 and n * m >= ALONE:
        for p in (p for p in range(B) if omega[p] > 0):
            marginals = (a[p], log_a[p], b[p], log_b[p])
            _iterate_together(
                costs, p, marginals, k, theta_a, theta_b, omega[p], tol, f[p], g[p], errors[p],
                n_threads,
            )  # fmt: skip
        return
    size = max(SMALL // max(n * m * count, 1), 1)

    def work(i: int) -> None:
        iterate(
            costs.args, costs.alpha, costs.beta, costs.limits, parts, i * size,
            min((i + 1) * size, B), a, log_a, b, log_b, k, theta_a, theta_b, omega, tol, f, g,
            errors,
        )  # fmt: skip

    run(work, -(-B // size), n_threads)


def _iterate_together(
    costs: Source, p: int, marginals: tuple[Floats, ...], k: float, theta_a: float, theta_b: float,
    omega: float, tol: float, f: Floats, g: Floats, errors: Floats, n_threads: int,
) -> None:  # fmt: skip
    """The iterations of one problem, whose parts are shared by threads; see `iterate`."""
    cost, limits, parts = problem(costs.args, p), costs.limits, costs.parts()
    state = prepare(costs.like, f, costs.alpha[p], g, costs.beta[p], *marginals)
    sums, failed = np.empty((len(parts), costs.width)), np.empty(len(parts))
    tops = np.empty(sums.shape, costs.like.dtype)
    memories: list[Any] = []  # as many as there are threads

    def over_parts(kernel: Any) -> None:
        def work(i: int) -> None:
            memory = memories.pop() if memories else scratch(costs.width, costs.like, f[:0])
            kernel(i, *parts[i], memory)
            memories.append(memory)

        run(work, len(parts), n_threads)

    def rows(i: int, start: int, stop: int, memory: Memory) -> None:
        failed[i] = sweep_part(cost, start, stop, state, k, limits, theta_a, omega, sums[i], memory)

    def maxima(i: int, start: int, stop: int, memory: Memory) -> None:
        maxima_part(cost, start, stop, state, tops[i], memory)

    def columns(i: int, start: int, stop: int, memory: Memory) -> None:
        sweep_part(cost, start, stop, state, k, limits, 1.0, 0.0, sums[i], memory)

    for it in range(len(errors)):
        begin(state, k)
        over_parts(rows)
        error = float(np.add.accumulate(failed)[-1])  # in the order of `iterate`
        if error < np.inf and not add_columns(state, sums):
            begin(state, k)
            over_parts(maxima)
            if lower_columns(state, tops, k):
                over_parts(columns)
                raise_columns(state, sums, k)
            else:
                error = np.inf
        errors[it] = end(state, k, theta_b, omega, tol, error)
        if errors[it] <= tol or errors[it] == np.inf:
            break
    g[...] = state[2][: len(g)]


@compiled
def iterate(
    costs: Any, alpha: Floats, beta: Floats, limits: Limits,
    parts: NDArray[np.int64], first: int, last: int, a: Floats, log_a: Floats, b: Floats,
    log_b: Floats, k: float, theta_a: float, theta_b: float, omega: Floats, tol: float, f: Floats,
    g: Floats, errors: Floats,
) -> None:  # fmt: skip
    """The iterations of the problems from `first` to `last`, one after the other."""
    memory = scratch(beta.shape[1], costs[0], f[0])
    for p in range(first, last):
        if not omega[p] > 0:
            continue
        cost = problem_of(costs, p)
        state = prepare(cost[0], f[p], alpha[p], g[p], beta[p], a[p], log_a[p], b[p], log_b[p])
        sums = np.empty((len(parts), beta.shape[1]))
        for it in range(errors.shape[1]):
            begin(state, k)
            error = 0.0
            for i in range(len(parts)):
                error += sweep_part(
                    cost, parts[i, 0], parts[i, 1], state, k, limits, theta_a, omega[p],
                    sums[i], memory,
                )  # fmt: skip
            if error < np.inf and not add_columns(state, sums):
                begin(state, k)
                tops = np.empty(sums.shape, cost[0].dtype)
                for i in range(len(parts)):
                    maxima_part(cost, parts[i, 0], parts[i, 1], state, tops[i], memory)
                if lower_columns(state, tops, k):
                    for i in range(len(parts)):
                        sweep_part(
                            cost, parts[i, 0], parts[i, 1], state, k, limits, 1.0, 0.0,
                            sums[i], memory,
                        )  # fmt: skip
                    raise_columns(state, sums, k)
                else:
                    error = np.inf
            errors[p, it] = end(state, k, theta_b, omega[p], tol, error)
            if errors[p, it] <= tol or errors[p, it] == np.inf:
                break
        for j in range(g.shape[1]):
            g[p, j] = state[2][j]


@compiled
def prepare(
    like: Array, f: Floats, alpha: Floats, g: Floats, beta: Floats, a: Floats, log_a: Floats,
    b: Floats, log_b: Floats,
) -> Any:  # fmt: skip
    """What a problem keeps from iteration to iteration.

    f, alpha, g (padded), beta, (a, log a, b, log b (padded)), hi and weight of the rows, G and V
    of the columns, column sums, their log2, the step of the grid.
    """
    n, width = len(f), len(beta)
    padded = -(-n // STEP) * STEP + STEP
    own, logs = workspace(width, f), workspace(width, f)
    for j in range(width):
        own[j], logs[j] = (g[j], log_b[j]) if j < len(g) else (0.0, 0.0)
    return (
        f, alpha, own, beta, a, log_a, b, logs,
        workspace(padded, like), workspace(padded, f),
        workspace(width, like), workspace(width, like),
        workspace(width, f), workspace(width, f), np.empty(1),
    )  # fmt: skip


@compiled
def begin(state: Any, k: float) -> None:
    """Split the potentials of an iteration."""
    f, alpha, g, beta, _, _, b, _, hi, weight, G, V, _, _, step = state
    m = len(b)
    step[0] = grid(f, alpha, g[:m], beta[:m], 22 if G.itemsize == 4 else 51)
    split(f, alpha, step[0], k, hi, weight)
    split(g, beta, step[0], k, G, V)


@compiled
def sweep_part(
    cost: Any, start: int, stop: int, state: Any, k: float, limits: Limits,
    theta: float, omega: float, sums: Floats, memory: Memory,
) -> float:  # fmt: skip
    """See `sweep`."""
    f, _, _, _, a, log_a, _, _, hi, weight, G, V, _, _, step = state
    rows = (f, hi, weight, a, log_a)
    return sweep(cost, start, stop, rows, G, V, k, step[0], limits, theta, omega, sums, memory)


@compiled
def maxima_part(cost: Any, start: int, stop: int, state: Any, tops: Array, memory: Memory) -> None:
    """See `column_maxima`."""
    column_maxima(cost, start, stop, state[8], state[10], tops, memory)


@compiled
def add_columns(state: Any, sums: Floats) -> bool:
    """Add up the parts; return whether every sum is finite and far above what was flushed to 0."""
    V, c, log_c = state[11], state[12], state[13]
    least = 2.0**-60 if V.itemsize == 4 else 2.0**-700
    tiny, line = spread(c, least), sums.reshape(-1)
    for j in range(0, len(c), 8):
        value = load(line, j)
        for p in range(1, len(sums)):
            value = value + load(line, p * len(c) + j)
        value = value * widen(V, j)
        store(c, j, value)
        store(log_c, j, logarithm(c, higher(value, tiny)))
    enough = True
    for j in range(len(state[6])):
        enough &= least < c[j] < np.inf
    return enough


@compiled
def lower_columns(state: Any, tops: Array, k: float) -> bool:
    """Subtract the largest exponent of each column from its potential, kept in place of its sum."""
    _, alpha, g, beta, _, _, b, _, hi, weight, G, V, c, _, step = state
    m = len(b)
    for j in range(m):
        top = tops[0, j]
        for p in range(1, len(tops)):
            top = max(top, tops[p, j])
        if not (-np.inf < top < np.inf):
            return False
        c[j] = top
    moved = g[:m] - c[:m]
    step[0] = grid(state[0], alpha, moved, beta[:m], 22 if G.itemsize == 4 else 51)
    split(state[0], alpha, step[0], k, hi, weight)
    split(moved, beta, step[0], k, G, V)
    return True


@compiled
def raise_columns(state: Any, sums: Floats, k: float) -> None:
    """Undo `lower_columns` on the logarithms of the sums."""
    c, log_c = state[12], state[13]
    tops = c.copy()
    add_columns(state, sums)
    for j in range(len(state[6])):
        log_c[j] += k * tops[j]
    for j in range(0, len(c), 8):
        store(c, j, power(c, load(log_c, j)))


@compiled
def end(state: Any, k: float, theta: float, omega: float, tol: float, error: float) -> float:
    """Return the error of both marginals; update g if it is above `tol`."""
    f, _, g, _, _, _, b, log_b, _, _, _, _, c, log_c, _ = state
    if not error < np.inf:
        return np.inf
    target = workspace(8, c)
    slope, scale = spread(c, k * (1 - theta) / theta), spread(c, k)
    for start in range(0, len(c), 8):
        old, logs = load(g, start), load(log_b, start)
        if theta != 1.0:
            store(target, 0, power(c, logs - slope * old))
        for j in range(start, min(start + 8, len(b))):
            error += min(abs(c[j] - (b[j] if theta == 1.0 else target[j - start])), MOST)
    if not error < np.inf:
        return np.inf
    if error > tol:
        for j in range(0, len(c), 8):
            old = load(g, j)
            full = spread(c, theta) * (old + (load(log_b, j) - load(log_c, j)) / scale)
            store(g, j, multiply_add(spread(c, omega), full - old, old))
    for j in range(len(b)):
        if not -np.inf < g[j] < np.inf:
            return np.inf
    for i in range(len(f)):
        if not -np.inf < f[i] < np.inf:
            return np.inf
    return error
