"""Naive longdouble curvature, written from the definitions and from the updates as printed.

F = lambda I + G^T G / m for gradients in the rows of G. What is true comes from dense matrices and
from constrained minima; `woodfisher`, `mfac` and the rules of MKOR are the published recursions,
step by step. Nothing is shared with the package, which forms none of these matrices.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from tests.linalg.oracle import Array, Long, inverse, least_squares, solve, wide

Mask = NDArray[np.bool_]


def curvature(gradients: Array, damping: float, count: float | None = None) -> Array:
    """Return F = damping I + G^T G / count, dense; count is the number of gradients by default."""
    g = wide(gradients)
    outer = g.T @ g / Long(max(len(g), 1) if count is None else count)
    return outer + Long(damping) * np.eye(g.shape[1], dtype=Long)


def blocks(d: int, size: int | None) -> list[slice]:
    """Return the blocks of consecutive weights; the last may be short."""
    size = size or d
    return [slice(start, min(start + size, d)) for start in range(0, d, size)]


def block_curvature(
    gradients: Array, size: int | None, damping: float, count: float | None = None
) -> Array:
    """Return F with everything outside the blocks on its diagonal set to zero."""
    d = gradients.shape[1]
    full = np.zeros((d, d), Long)
    for at in blocks(d, size):
        full[at, at] = curvature(gradients[:, at], damping, count)
    return full


# ---- recursions as they are printed --------------------------------------------------------------


def woodfisher(gradients: Array, damping: float) -> Array:
    """Return F^-1 by Sherman-Morrison, gradient after gradient.

    WoodFisher (Singh and Alistarh 2020), equation 7; the blocks of oBERT (Kurtic et al. 2022) are
    made by the same recursion.
    """
    g = wide(gradients)
    m, d = g.shape
    result = np.eye(d, dtype=Long) / Long(damping)
    for row in g:
        h = result @ row
        result = result - np.outer(h, h) / (m + row @ h)
    return result


def mfac(gradients: Array, damping: float, x: Array) -> Array:
    """Return F^-1 x by the static algorithm of M-FAC (Frantar et al. 2021), section 3.1.

    v_i = F_{i-1}^-1 g_i with F_0 = damping I, and F^-1 x = x / damping - sum_i v_i (v_i.x) / q_i
    with q_i = m + g_i.v_i.
    """
    g, x = wide(gradients), wide(x)
    vectors: list[tuple[Array, Long]] = []

    def product(y: Array) -> Array:
        result = y / Long(damping)
        for v, q in vectors:
            result = result - v * ((v @ y) / q)
        return result

    for row in g:
        v = product(row)
        vectors.append((v, len(g) + row @ v))
    return product(x)


# ---- pruning -------------------------------------------------------------------------------------


def increase(gradients: Array, damping: float, change: Array) -> Long:
    """Return dw^T F dw / 2 as a sum of squares."""
    g, change = wide(gradients), wide(change)
    return (Long(damping) * (change**2).sum() + ((g @ change) ** 2).sum() / len(g)) / 2


def constrained(gradients: Array, damping: float, weights: Array, kept: Mask) -> tuple[Array, Long]:
    """Return argmin (w' - w)^T F (w' - w) / 2 subject to w'_P = 0, and the minimum.

    As the least squares problem that it is,  |sqrt(lambda) dw|^2 + |G dw / sqrt(m)|^2  with dw_P
    given: so it loses no more than the square root of cond(F).
    """
    g, w = wide(gradients) / np.sqrt(Long(len(gradients))), wide(weights)
    change = np.where(kept, Long(0), -w)
    root = np.sqrt(Long(damping)) * np.eye(int(kept.sum()), dtype=Long)
    target = np.concatenate([np.zeros(len(root), Long), -g @ change])
    change[kept] = least_squares(np.concatenate([root, g[:, kept]]), target)
    return np.where(kept, w + change, Long(0)), increase(gradients, damping, change)


def independent(inverted: Array, weights: Array, kept: Mask) -> Array:
    """Return the weights after the update that oBERT's reference code makes.

    Each pruned weight moves the others as if it were pruned alone, and the moves are added up:
    w <- w - sum_q (w_q / [F^-1]_qq) F^-1 e_q, after which the pruned weights are set to zero.
    """
    w = wide(weights)
    result = w.copy()
    for q in np.flatnonzero(~kept):
        result = result - w[q] / inverted[q, q] * inverted[:, q]
    return np.where(kept, result, Long(0))


def scores(inverted: Array, weights: Array, group: int) -> Array:
    """Return w_Q^T ([F^-1]_QQ)^-1 w_Q / 2 for each group Q of consecutive weights.

    It is what pruning the group costs with all other weights free to move: test_oracle compares
    with `constrained`.
    """
    w = wide(weights)
    return np.array(
        [w[q] @ inverse(inverted[q, q]) @ w[q] / 2 for q in blocks(len(w), group)], Long
    )


# ---- a window of gradients -----------------------------------------------------------------------


class Window:
    """The last ``capacity`` gradients, the newest first."""

    def __init__(self, capacity: int, damping: float, normalize: str = "count") -> None:
        self.rows: deque[Array] = deque(maxlen=capacity)
        self.capacity, self.damping, self.normalize = capacity, damping, normalize

    @property
    def divisor(self) -> int:
        return {"count": len(self.rows), "capacity": self.capacity, "sum": 1}[self.normalize]

    def push(self, gradient: Array) -> None:
        self.rows.appendleft(wide(gradient))

    def curvature(self) -> Array:
        return curvature(np.stack(self.rows), self.damping, self.divisor)

    def solve(self, x: Array) -> Array:
        """Return F^-1 x for the rows of x."""
        return solve(self.curvature(), np.atleast_2d(wide(x)).T).T.reshape(np.shape(x))

    def combine(self, weights: Array) -> Array:
        """Return F^-1 sum_i weights_i g_i."""
        w = wide(weights)
        return self.solve(sum((w[i] * self.rows[i] for i in range(len(w))), 0 * self.rows[0]))


# ---- inverses of factors -------------------------------------------------------------------------


def factor(matrix: Array, v: Array, decay: float) -> Array:
    """Return decay L + (1 - decay) v v^T."""
    return Long(decay) * wide(matrix) + (1 - Long(decay)) * np.outer(wide(v), wide(v))


def exact_rule(j: Array, v: Array, decay: float) -> Array:
    """Return the inverse of decay J^-1 + (1 - decay) v v^T by Sherman and Morrison's identity."""
    j, v, c = wide(j), wide(v), Long(decay)
    u = j @ v
    return (j - (1 - c) * np.outer(u, u) / (c + (1 - c) * (v @ u))) / c


def mkor_rule(j: Array, v: Array, decay: float) -> Array:
    """Return the step of the released mkor package.

    It blends the inverse itself with the identity, then adds v v^T with weight 1 by
    Sherman-Morrison.
    """
    j, v, c = wide(j), wide(v), Long(decay)
    a = c * j + (1 - c) * np.eye(len(v), dtype=Long)
    av = a @ v
    return a - np.outer(av, av) / (1 + v @ av)


def published_rule(j: Array, v: Array, decay: float) -> Array:
    """Return the step as Algorithm 1, line 7 of MKOR (Mozaffari et al. 2023) prints it."""
    j, v, c = wide(j), wide(v), Long(decay)
    u = j @ v
    return c * j + (1 - c) / (c**2 * (1 + c * (1 - c) * (v @ u))) * np.outer(u, u)


RULES = {"exact": exact_rule, "mkor": mkor_rule, "published": published_rule}


def stabilized(j: Array, norm_bound: float, blend: float) -> Array:
    """Return blend J + (1 - blend) I if the largest absolute row sum of J exceeds the bound."""
    if np.abs(j).sum(axis=1).max() <= norm_bound:
        return j
    return Long(blend) * j + (1 - Long(blend)) * np.eye(len(j), dtype=Long)


def kronecker(j_out: Array, grad: Array, j_in: Array, *, rescale: bool) -> Array:
    """Return J_out grad J_in, with the Frobenius norm of grad if rescaled."""
    g = wide(grad)
    result = wide(j_out) @ g @ wide(j_in)
    if not rescale:
        return result
    norms = [np.sqrt((a**2).sum()) for a in (g, result)]
    return result * (norms[0] / norms[1] if norms[1] else 0)
