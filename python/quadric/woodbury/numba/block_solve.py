"""F^-1 applied to vectors, and the joint update of what is left when weights are pruned."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.lanes import load, multiply_add, splat, store, where_positive
from quadric.linalg.numba.lines import line
from quadric.linalg.numba.packs import (
    TILE,
    add_products,
    backward,
    cholesky,
    fill_tile,
    forward,
    padded,
    scale_tile,
)
from quadric.woodbury.numba.blocks import (
    Side,
    clear_margins,
    gram_of_rows,
    load_rows,
    over_packs,
    write_rows,
)

Array = NDArray[Any]

VECTORS = 32  # solved at a time


def block_solve(
    sums: NDArray[np.float64] | None,
    rows: Array | None,
    block_size: int,
    count: int,
    damping: float,
    V: Array,
    out: Array,
    status: NDArray[np.int32],
    n_threads: int,
) -> None:
    """Write F^-1 v for every row v of V.

    Parameters
    ----------
    sums, rows, block_size, count, damping, status, n_threads
        As in `quadric.woodbury.numba.block_inverse.block_inverse`.
    V : (k, d) array, contiguous rows
    out : (k, d) array of V's dtype, C-contiguous, written; may be V
    """
    k, d = V.shape
    side = Side(sums, rows, block_size, d, count, damping)
    source, _, (from_row, _) = line(V)
    target, _, (to_row, _) = line(out)
    v = side.end
    ldv = side.width + 1
    u = v + padded(min(k, VECTORS)) * ldv
    size = u + (padded(min(k, VECTORS)) * side.ld if side.dual else 0)

    def work(x: Array, first: int, stop: int) -> None:
        side.factor(x, size, first, stop, status)
        for start in range(0, k, VECTORS):
            number = min(VECTORS, k - start)
            load_rows(
                source, from_row, start, number, d, block_size, first, stop, x, size, v, 1, ldv
            )
            clear_margins(
                x, size, stop - first, v, ldv, number, padded(number), block_size, side.width
            )
            if side.dual:
                solve_dual(
                    x, size, stop - first, side.n, side.ld, side.r, side.g, v, ldv, u,
                    padded(number), side.width, 1 / damping,
                )  # fmt: skip
            else:
                solve_primal(x, size, stop - first, side.n, side.ld, side.r, v, ldv, padded(number))
            write_rows(x, size, v, ldv, target, to_row, start, number, d, block_size, first, stop)

    over_packs(side.packs, size, n_threads, work)
    for b in np.flatnonzero(status >= 0):
        out[:, b * block_size : (b + 1) * block_size] = np.nan


@compiled
def solve_primal(
    x: Array, size: int, packs: int, n: int, ld: int, r: int, v: int, ldv: int, number: int
) -> None:
    """V = V L^-T L^-1."""
    for b in range(0, packs * size, size):
        for y in range(b + v, b + v + number * ldv, TILE * ldv):
            forward(x, y, ldv, b, ld, b + r, n)
            backward(x, y, ldv, b, ld, b + r, n)


@compiled
def solve_dual(
    x: Array,
    size: int,
    packs: int,
    n: int,
    ld: int,
    r: int,
    g: int,
    v: int,
    ldv: int,
    u: int,
    number: int,
    width: int,
    scaling: float,
) -> None:
    """V = (V - (V X^T K^-1) X) / lambda, V X^T K^-1 at u."""
    for b in range(0, packs * size, size):
        for i in range(0, number, TILE):
            y, z = b + v + i * ldv, b + u + i * ld
            for j in range(0, n, TILE):
                fill_tile(x, z + j, ld, 0.0)
                add_products(x, 1.0, z + j, ld, y, ldv, 1, b + g + j, 1, ld, width)
            forward(x, z, ld, b, ld, b + r, n)
            backward(x, z, ld, b, ld, b + r, n)
            for j in range(0, width, TILE):
                add_products(x, -1.0, y + j, ldv, z, ld, 1, b + g + j * ld, ld, 1, n)
                scale_tile(x, y + j, ldv, scaling)


def block_prune(
    sums: NDArray[np.float64] | None,
    rows: Array | None,
    block_size: int,
    count: int,
    damping: float,
    w: Array,
    mask: NDArray[np.bool_],
    out: Array,
    loss: NDArray[np.float64],
    status: NDArray[np.int32],
    n_threads: int,
) -> None:
    """Zero the pruned weights; the others of their block move to where the loss grows least.

    Parameters
    ----------
    sums, rows, block_size, count, damping, status, n_threads
        As in `quadric.woodbury.numba.block_inverse.block_inverse`.
    w : (d,) array
    mask : (d,) bool array
        True where kept.
    out : (d,) array of w's dtype, C-contiguous, written
    loss : (blocks,) float64 array, written
        The predicted increase.
    """
    side = Side(sums, rows, block_size, len(w), count, damping)
    weights, kept = line(np.ascontiguousarray(w))[0], line(np.ascontiguousarray(mask))[0]
    target, losses = line(out)[0], line(loss)[0]
    # The weights, 1 where kept, the pruned weights, the right side, the loss; the solution last.
    v = side.end
    n = max(side.width, side.n)
    z = v + 4 * n + 1
    size = z + TILE * (n + 1)
    move = prune_dual if side.dual else prune_primal

    def work(x: Array, first: int, stop: int) -> None:
        side.load(x, size, first, stop)
        load_rows(weights, 0, 0, 1, side.d, block_size, first, stop, x, size, v, 1, 0)
        load_rows(kept, 0, 0, 1, side.d, block_size, first, stop, x, size, v + n, 1, 0)
        move(
            x, size, stop - first, side.n, side.ld, side.r, side.g, v, n, block_size,
            float(count), damping,
        )  # fmt: skip
        side.check(x, size, first, stop, status)
        write_rows(x, size, v, 0, target, 0, 0, 1, side.d, block_size, first, stop)
        write_rows(x, size, v + 4 * n, 0, losses, 0, 0, 1, len(loss), 1, first, stop)

    over_packs(side.packs, size, n_threads, work)
    for b in np.flatnonzero(status >= 0):
        out[b * block_size : (b + 1) * block_size] = np.nan
        loss[b] = np.nan


@compiled
def prune_primal(
    x: Array,
    size: int,
    packs: int,
    n: int,
    ld: int,
    r: int,
    g: int,
    v: int,
    step: int,
    block_size: int,
    count: float,
    damping: float,
) -> None:
    """z = F_SS^-1 F_SP w_P, with the rows and columns of P replaced by those of the identity."""
    zero, one, half = splat(0.0), splat(1.0), splat(0.5)
    for a in range(0, packs * size, size):
        w, s, p, q = a + v, a + v + step, a + v + 2 * step, a + v + 3 * step
        z, ldz = q + step + 1, step + 1
        for i in range(0, step, TILE):
            fill_tile(x, z + i, ldz, 0.0)
        for i in range(block_size):
            store(x, p + i, where_positive(load(x, s + i), zero, load(x, w + i)))
            store(x, q + i, zero)
        for i in range(block_size):
            row = a + i * ld
            pruned = load(x, p + i)
            total = multiply_add(load(x, row + i), pruned, load(x, q + i))
            for j in range(i):
                entry = load(x, row + j)
                total = multiply_add(entry, load(x, p + j), total)
                store(x, q + j, multiply_add(entry, pruned, load(x, q + j)))
            store(x, q + i, total)
        # 0 times what is not finite is a NaN, so that a spoiled entry fails wherever it is.
        for i in range(block_size):
            row = a + i * ld
            keeps = load(x, s + i)
            for j in range(i + 1):
                store(x, row + j, load(x, row + j) * keeps * load(x, s + j))
            store(x, row + i, load(x, row + i) + (one - keeps))
            store(x, z + i, where_positive(keeps, load(x, q + i), zero))
        cholesky(x, a, ld, a + r, n)
        forward(x, z, ldz, a, ld, a + r, n)
        backward(x, z, ldz, a, ld, a + r, n)
        loss = zero
        for i in range(block_size):
            keeps, move = load(x, s + i), load(x, z + i)
            loss = multiply_add(
                where_positive(keeps, zero - move, load(x, p + i)), load(x, q + i), loss
            )
            store(x, w + i, where_positive(keeps, load(x, w + i) + move, zero))
        store(x, q + step, loss * half)


@compiled
def prune_dual(
    x: Array,
    size: int,
    packs: int,
    n: int,
    ld: int,
    r: int,
    g: int,
    v: int,
    step: int,
    block_size: int,
    count: float,
    damping: float,
) -> None:
    """z = X_S^T (m lambda I + X_S X_S^T)^-1 u, u = X_P w_P; loss = lambda (w_P.w_P + u.y) / 2."""
    zero, half = splat(0.0), splat(0.5 * damping)
    for a in range(0, packs * size, size):
        w, s, u = a + v, a + v + step, a + v + 3 * step
        z, ldz = u + step + 1, step + 1
        for i in range(0, step, TILE):
            fill_tile(x, z + i, ldz, 0.0)
        loss = zero
        for i in range(block_size):
            row = a + g + i * ld
            keeps = load(x, s + i)
            pruned = where_positive(keeps, zero, load(x, w + i))
            loss = multiply_add(pruned, pruned, loss)
            for j in range(n):
                entry = load(x, row + j)
                store(x, z + j, multiply_add(entry, pruned, load(x, z + j)))
                store(x, row + j, entry * keeps)
        for j in range(n):
            store(x, u + j, load(x, z + j))
        gram_of_rows(x[a : a + size], size, 1, g, n, ld, block_size, count * damping)
        cholesky(x, a, ld, a + r, n)
        forward(x, z, ldz, a, ld, a + r, n)
        backward(x, z, ldz, a, ld, a + r, n)
        for j in range(n):
            loss = multiply_add(load(x, u + j), load(x, z + j), loss)
        store(x, u + step, loss * half)
        for i in range(block_size):
            row = a + g + i * ld
            move = zero
            for j in range(n):
                move = multiply_add(load(x, row + j), load(x, z + j), move)
            keeps = load(x, s + i)
            store(x, w + i, where_positive(keeps, load(x, w + i) + move, zero))
