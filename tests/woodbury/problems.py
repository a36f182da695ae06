"""Gradients for the tests, in every storage type, and how far float64 or T may be from the truth.

Everything here is W^T W or W^T L^-T with W = L^-1 X and A = L L^T. A computed L belongs to a matrix
that is c eps tr(A) away from A in the Frobenius norm, as |L||L^T|_ij <= sqrt(A_ii A_jj), and a
triangular solve with L is off as if L were c eps sqrt(tr A) away (Higham, Accuracy and Stability of
Numerical Algorithms, theorems 8.5, 10.3 and 10.4, with eps = 2 u where they have u). To first order
W_i.W_j then moves by at most

    c eps (|W_i| + sqrt(tr A) |Y_i|) (|W_j| + sqrt(tr A) |Y_j|),    Y = A^-1 X.

The constant c is 2 (longer side + 4 * shorter side + 8): the roundings of an inner product and of
two triangular solves, and a factor 2 for everything of second order.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import strategies as draws
from tests.linalg.oracle import Array, Long, cholesky, inverse, solve, wide
from tests.woodbury import oracle

STORAGES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
KINDS = ("normal", "correlated", "repeated", "sparse")
EPS = float(np.finfo(np.float64).eps)

storages = st.sampled_from(list(STORAGES))


def gradients(rng: np.random.Generator, m: int, d: int, kind: str = "normal") -> Array:
    """Return m gradients of mean square about 1."""
    g = rng.standard_normal((m, d))
    if kind == "correlated":  # a mean and eight directions common to all, as late in training
        g = g + rng.standard_normal((m, 8)) @ rng.standard_normal((8, d)) / 2
        g = g + rng.standard_normal(d)
    if kind == "repeated":
        g = g[rng.integers(0, (m + 1) // 2, m)]
    if kind == "sparse":  # weights already pruned, a batch without a signal
        g[:, rng.random(d) < 0.3] = 0.0
        g[rng.random(m) < 0.2] = 0.0
    return g


def computing(storage: np.dtype) -> np.dtype:
    """Return T, the type of the vectors that belong to gradients of that type."""
    return np.dtype(np.float64 if storage == np.float64 else np.float32)


def bits(a: Array) -> NDArray[Any]:
    """Return what a raw kernel gets: bfloat16 as its bit pattern."""
    return a.view(np.uint16) if a.dtype == ml_dtypes.bfloat16 else a


@dataclass(frozen=True, repr=False)
class Gradients:
    """Gradients (m, d) in their storage type, and the damping; ``exact`` has them in float64."""

    stored: NDArray[Any]
    damping: float
    block_size: int
    rng: np.random.Generator
    parameters: str = ""

    @property
    def m(self) -> int:
        return self.stored.shape[0]

    @property
    def d(self) -> int:
        return self.stored.shape[1]

    @property
    def dtype(self) -> np.dtype:
        return computing(self.stored.dtype)

    @property
    def eps(self) -> float:
        return float(np.finfo(self.dtype).eps)

    @cached_property
    def exact(self) -> Array:
        return self.stored.astype(np.float64)

    @cached_property
    def at(self) -> list[slice]:
        return oracle.blocks(self.d, self.block_size)

    @cached_property
    def blocks(self) -> list["Block"]:
        return [Block(self.exact[:, at], self.damping, self.block_size) for at in self.at]

    def vectors(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(self.dtype)

    def __repr__(self) -> str:
        return (
            f"Gradients({self.m} x {self.d}, {self.stored.dtype}, block_size={self.block_size}, "
            f"damping={self.damping:.3g}, {self.parameters})"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


def make(
    m: int,
    d: int,
    block_size: int,
    *,
    storage: str = "float32",
    log_damping: float = -5,
    kind: str = "normal",
    log_scale: int = 0,
    seed: int = 0,
) -> Gradients:
    """Return gradients; the damping is relative to the mean squared entry."""
    rng = np.random.default_rng(seed)
    stored = (10.0**log_scale * gradients(rng, m, d, kind)).astype(STORAGES[storage])
    mean_square = float(np.square(stored.astype(float)).mean()) if stored.size else 0.0
    return Gradients(
        stored=stored,
        damping=10.0**log_damping * (mean_square or 1.0),
        block_size=block_size,
        rng=rng,
        parameters=f"{kind=}, {log_damping=}, {log_scale=}, {seed=}",
    )


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    max_block: int = 40,
    max_blocks: int = 3,
    max_count: int = 100,
    regime: str | None = None,
    storage: str | None = None,
    group: int = 1,
) -> Gradients:
    """Draw gradients with m below, at or above the block size; the last block may be short."""
    block_size = group * draw(draws.sizes(max_block // group))
    d = draw(st.integers(1, max_blocks * block_size) | st.sampled_from([block_size, 1]))
    regime = regime or draw(st.sampled_from(("fewer", "equal", "more")))
    m = {
        "fewer": st.integers(1, block_size),
        "equal": st.just(block_size),
        "more": st.integers(block_size + 1, max(max_count, block_size + 1)),
    }
    storage = storage or draw(storages)
    half = storage == "float16"  # keeps the entries away from its limits
    return make(
        draw(m[regime]),
        d,
        block_size,
        storage=storage,
        log_damping=draw(st.integers(-7, -2)),
        kind=draw(st.sampled_from(KINDS)),
        log_scale=draw(st.integers(-1, 1) if half else st.integers(-4, 4)),
        seed=draw(draws.seeds),
    )


def masks(g: Gradients, share: float = 0.5) -> NDArray[np.bool_]:
    """Return a random mask that keeps a weight in every block; True is kept."""
    mask = g.rng.random(g.d) >= share
    for at in g.at:
        mask[g.rng.integers(at.start, at.stop)] = True
    return mask


# ---- blocks --------------------------------------------------------------------------------------


class Block:
    """A block of n weights: F and F^-1 in longdouble, and the error of float64 arithmetic.

    With at most `block_size` gradients A is K = m lambda I + X X^T and F^-1 = (I - W^T W) / lambda,
    else A is F and F^-1 = L^-T L^-1. Entry (i, j) of F^-1 is off by `roundings` * s_i s_j with
    s = `scale`.
    """

    def __init__(self, x: Array, damping: float, block_size: int | None = None) -> None:
        self.x, self.damping = x, damping
        self.m, self.n = x.shape
        self.curvature = oracle.curvature(x, damping)
        self.dual = self.m <= (block_size or self.n)
        if self.dual:
            # Eliminating F would cost eps cond(F); the recursion starts at 1 / damping and loses
            # only an eps of that.
            self.inverse = oracle.woodfisher(x, damping)
            k = x @ x.T + self.m * damping * np.eye(self.m)
            y = np.linalg.norm(np.linalg.solve(k, x), axis=0)
            self.scale = (1 + np.sqrt(np.trace(k)) * y) / np.sqrt(damping)
        else:
            self.inverse = inverse(self.curvature)
            inverted = self.inverse.astype(float)
            root = np.sqrt(float(np.trace(self.curvature)))
            self.scale = np.sqrt(np.diag(inverted)) + root * np.linalg.norm(inverted, axis=0)
        long, short = max(self.m, self.n), min(self.m, self.n)
        self.roundings = 2 * (long + 4 * short + 8) * EPS

    def inverse_error(self) -> Array:
        return self.roundings * np.outer(self.scale, self.scale)

    def solve_error(self, v: Array) -> Array:
        """Bound F^-1 v for the rows of v: that of the inverse times |v|."""
        return self.roundings * np.outer(np.abs(v) @ self.scale, self.scale)

    def score_error(self, w: Array, group: int) -> tuple[Array, Array]:
        """Return the scores of the groups, and a bound of their error, Inf where it says nothing.

        An error dM in M = F^-1_QQ moves w^T M^-1 w / 2 by z^T dM z / 2 with z = M^-1 w; M itself is
        factored with g weights. Second order stays below first while ||M^-1 dM|| < 1 / 2.
        """
        exact = oracle.scores(self.inverse, w, group)
        bound = np.empty(len(exact))
        for i, at in enumerate(oracle.blocks(self.n, group)):
            m = self.inverse[at, at]
            inverted = inverse(m)
            z = np.abs(inverted @ wide(w[at])).astype(float)
            own, s = np.sqrt(np.diag(m).astype(float)), self.scale[at]
            limit = 4 * (group + 4) * EPS
            bound[i] = self.roundings * (z @ s) ** 2 + limit * (z @ own) ** 2
            near = self.roundings * np.outer(s, s) + limit * np.outer(own, own)
            if np.linalg.norm(near) * np.linalg.norm(inverted.astype(float)) > 0.5:
                bound[i] = np.inf
        return exact, bound

    def prune_error(self, w: Array, kept: NDArray[np.bool_]) -> tuple[float, float]:
        """Bound the Euclidean error of the weights after a joint update, and that of the loss.

        Primal: z = F_SS^-1 r with r = F_SP w_P; both F's are off by c eps tr(F).
        Dual: z = X_S^T y with y = K_S^-1 X_P w_P.
        Loss: half of w_P^T F_PP w_P - r^T z; in the dual lambda (|w_P|^2 + u^T y) / 2, u = X_P w_P,
        where an error E of K_S moves u^T y by y^T E y, and one of u by twice its product with y.
        """
        w = w.astype(float)
        f, gone = self.curvature.astype(float), ~kept
        norm_p, total = np.linalg.norm(w[gone]), np.trace(f)
        z = np.linalg.norm(np.linalg.solve(f[kept][:, kept], f[kept][:, gone] @ w[gone]))
        if self.dual:
            s, p = self.x[:, kept], self.x[:, gone]
            k = s @ s.T + self.m * self.damping * np.eye(self.m)
            y = np.linalg.norm(np.linalg.solve(k, p @ w[gone]))
            moved = np.linalg.norm(p) * norm_p + np.trace(k) * y
            moved = np.linalg.norm(np.linalg.solve(k, s), 2) * moved + np.linalg.norm(s) * y
            moved *= self.roundings
            loss = np.trace(k) * y**2 + 2 * np.linalg.norm(p) * norm_p * y + norm_p**2
            loss *= self.damping * self.roundings
        else:
            least = smallest(f[kept][:, kept]) if kept.any() else 1.0
            moved = self.roundings * total / least * (z + norm_p)
            loss = 0.0
        loss += self.roundings * total * norm_p * (norm_p + z)
        return float(moved), float(loss + np.linalg.norm(f[kept][:, gone] @ w[gone]) * moved)


def smallest(a: Array) -> float:
    """Return the smallest eigenvalue of a symmetric positive definite matrix."""
    return float(np.linalg.eigvalsh(a)[0])


# ---- rows ----------------------------------------------------------------------------------------


class Rows:
    """Gradients as rows of one Gram matrix A = count lambda I + G G^T, with vectors in T.

    With s_i the singular values of G, tau = max s_i / (count lambda + s_i^2) = ||G^T A^-1||: what
    float32 loses in G x or in A reaches the result through tau, not through 1 / lambda.
    `eps_gram` is float64's where the Gram matrix must be exact: where a pivot of its Cholesky
    factor is below a fifth of the diagonal entry, so that tau may be large beside 1 / |G|.
    """

    def __init__(self, g: Array, damping: float, dtype: np.dtype, count: int | None = None) -> None:
        self.g, self.damping = g, damping
        self.m, self.d = g.shape
        self.count = self.m if count is None else count
        self.eps = float(np.finfo(dtype).eps)
        self.a = wide(g) @ wide(g).T + Long(self.count * damping) * np.eye(self.m, dtype=Long)
        s = np.linalg.svd(g, compute_uv=False)
        self.tau = float((s / (self.count * damping + s**2)).max())
        self.norm = float(np.linalg.norm(g))
        self.trace = float(np.trace(self.a))
        pivots = np.diag(cholesky(self.a)[0]) ** 2 / np.diag(self.a)
        self.eps_gram = EPS if pivots.min() < 0.2 else self.eps
        self.roundings = 2 * (self.d + 4 * self.m + 8)

    def solved(self, b: Array) -> Array:
        """Return A^-1 b in longdouble; b is a vector, or a matrix with the right-hand sides."""
        return solve(self.a, wide(b).reshape(self.m, -1)).reshape(np.shape(b))

    @cached_property
    def y(self) -> Array:
        """A^-1 G."""
        return self.solved(self.g)

    @cached_property
    def inverse(self) -> Array:
        """F^-1, dense."""
        return self.solve(np.eye(self.d))

    def solve(self, x: Array) -> Array:
        """Return F^-1 x for the rows of x, in longdouble.

        By the identity that test_problems ties to the dense inverse, which would cost eps cond(F).
        """
        x, g = wide(x), wide(self.g)
        return (x - self.solved(g @ x.T).T @ g) / Long(self.damping)

    def combine(self, w: Array) -> Array:
        """Return F^-1 G^T w in longdouble."""
        return self.count * self.solved(w) @ wide(self.g)

    def solve_error(self, x: Array) -> Array:
        """Bound each entry of x / lambda - G^T A^-1 G x / lambda, a column of bounds for the rows.

        With y = A^-1 G x: G x is off by d eps ||G|| ||x||, A by c eps_gram tr(A), the product G^T y
        by m eps ||G|| ||y||, and the difference is rounded.
        """
        x = np.atleast_2d(x).astype(float)
        y = np.linalg.norm(self.solved(self.g @ x.T).astype(float), axis=0)
        size = np.linalg.norm(x, axis=1)
        wrong = self.eps * (self.tau * self.norm * size + self.norm * y + size)
        wrong += self.eps_gram * self.tau * self.trace * y
        return (self.roundings * wrong / self.damping)[:, None]

    def combine_error(self, w: Array, *, exact_gram: bool = True, parts: int = 1) -> Array:
        """Bound each entry of count G^T A^-1 w: nothing is subtracted, or divided by lambda.

        Sums are float64 and rounded once to T; those of `parts` > 1 are rounded before they are
        added up. A window keeps an exact Gram matrix always.
        """
        y = float(np.linalg.norm(self.solved(w).astype(float)))
        eps_gram = EPS if exact_gram else self.eps_gram
        wrong = (EPS if parts == 1 else self.eps) * self.norm * y
        wrong += eps_gram * self.tau * self.trace * y
        rounding = self.eps * np.abs(self.combine(w)).astype(float)
        return self.count * self.roundings * wrong + rounding

    def element_error(self, i: Any, j: Any) -> Any:
        """Bound ([i = j] - G_i^T A^-1 G_j) / lambda, everything but A in float64."""
        y = np.linalg.norm(self.y.astype(float), axis=0)
        own = 1 + np.sqrt(self.trace) * y
        wrong = self.eps_gram * self.trace * y[i] * y[j] + EPS * own[i] * own[j]
        return self.roundings * wrong / self.damping
