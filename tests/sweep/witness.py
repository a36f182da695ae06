"""Error bounds of a sweep, and the oracle that follows a kernel where rounding errors decide."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.sweep import oracle
from tests.sweep.oracle import Array, Grid, Mask, Outcome, Unaided, sweep

EPS64 = float(np.finfo(np.float64).eps)


def scaled_condition(h: Array) -> float:
    """Return the condition number of h scaled to a unit diagonal: bad scaling costs nothing."""
    d = 1.0 / np.sqrt(np.diag(h))
    return float(np.linalg.cond(h * np.outer(d, d)))


@dataclass
class Witness(Unaided):
    """A kernel's decisions, which the oracle follows where they are right within rounding errors.

    Once a target lies within its error of a rounding boundary both codes are right, and all that
    follows in the row depends on the choice. There the oracle takes the kernel's side, counts a tie
    and goes on, so that every other decision, before and after, is still compared exactly.

    Error of a current weight, with gamma = 2 (n + 8) eps for inner products of length n and a few
    more roundings (the 2 because eps is twice the unit roundoff and once more to spare), and D the
    original minus the current weights:

        |delta w| <= gamma (|w_original| + (|D| |R|) |U|)

    |D| |R| bounds the terms of the scaled errors e = D R, |U| = |R^-1| carries their errors to the
    later columns. The oracle's own error enters with 16 n eps64 cond(H) |w|, and that of weights
    which are themselves computed with ``input_error`` |w|.
    """

    eps: float
    codes: NDArray[np.uint8] | None = None
    scales: Array | None = None
    zeros: NDArray[np.uint8] | None = None
    mask: Mask | None = None
    input_error: float = 0.0
    ties: int = 0
    bounds: Array = field(default_factory=lambda: np.zeros((0, 0)), repr=False)

    def start(self, w: Array, h: Array, u: Array, order: NDArray[np.int64]) -> None:
        n = len(u)
        self._order = order
        self._gamma = 2 * (n + 8) * self.eps
        condition = scaled_condition(h)
        self._own = 16 * n * EPS64 * condition + self.input_error * np.sqrt(condition)
        self._u, self._r = np.abs(u), np.abs(np.linalg.inv(u))
        self._w = w.copy()
        self._terms = np.zeros_like(w)  # |D| |R| of the columns done
        self._largest = np.abs(w).max(axis=1, keepdims=True, initial=0.0)
        self.bounds = np.zeros_like(w)

    def _moved(self, current: Array, at: slice) -> Array:
        """Return |D| and the rounding of the subtraction, as a share of gamma."""
        original = self._w[:, at]
        return np.abs(original - current) + (np.abs(original) + np.abs(current)) / len(self._u)

    def error(self, current: Array, start: int) -> Array:
        """Return the error bounds of current weights of the columns from start on."""
        if start == 0:
            return self.input_error * np.abs(current)  # nothing has happened yet
        at, before = slice(start, start + current.shape[1]), slice(0, start)
        terms = self._terms[:, at] + self._moved(current, at) @ self._r[at, at]
        carried = terms @ self._u[at, at] + self._terms[:, before] @ self._u[before, at]
        self._largest = np.maximum(
            self._largest, np.abs(current).max(axis=1, keepdims=True, initial=0.0)
        )
        return self._gamma * (np.abs(self._w[:, at]) + carried) + self._own * self._largest

    def done(self, j: int, t: Array, q: Array) -> None:
        self.bounds[:, self._order[j]] = np.where(q == 0.0, 0.0, self.error(t[:, None], j)[:, 0])
        self._terms[:, j:] += self._moved(q[:, None], slice(j, j + 1)) * self._r[j, j:]

    def _decide(self, mine: Array, theirs: Array, possible: Mask) -> Array:
        follow = (mine != theirs) & possible
        self.ties += int(follow.sum())
        return np.where(follow, theirs, mine)

    def code(self, j: int, grid: Grid, t: Array, scale: Array, zero: Array) -> Array:
        theirs = self.codes[:, self._order[j]].astype(float)
        x = t / scale
        slack = self.error(t[:, None], j)[:, 0] / scale + 4 * self.eps * np.abs(x)
        slack[t == 0.0] = 0.0  # pruned, or an input that is dead
        low, high = grid.round(x - slack, zero), grid.round(x + slack, zero)
        return self._decide(grid.round(x, zero), theirs, (low <= theirs) & (theirs <= high))

    def grid(self, group: int, grid: Grid, seen: Array, since: int, width: int) -> tuple:
        first = seen.shape[1] - width
        w, error = seen[:, first:], self.error(seen, since)[:, first:]
        scale = self.scales[: len(w), group].astype(float)  # a tensor's grid is one row here
        zero = self.zeros[: len(w), group].astype(float)
        ends = error.max(axis=1)

        # Which candidates may this have been? Their ends are off by at most the error of a weight.
        scales, real = grid.candidates(w)
        room = 2 * ends / grid.maxq + 4 * self.eps * scales
        low, high = (
            grid.stored(np.maximum(scales - room, scales / 1024)),
            grid.stored(scales + room),
        )
        near = (low <= scale) & (scale <= high)
        slack = 0.0 if grid.symmetric else ends / scale + 4 * self.eps * real
        near &= (grid.zero_point(real - slack) <= zero) & (zero <= grid.zero_point(real + slack))

        # Of a search it must fit as well as the best, within the errors of the weights and the sum,
        # however the stored scales of the others were rounded.
        my_scale, my_zero = grid.fit(w)
        zeros = grid.zero_point(real)
        least = np.maximum(
            grid.misfit(w, low, zeros).sum(axis=2), grid.misfit(w, high, zeros).sum(axis=2)
        ).min(axis=0)
        terms = grid.misfit(w, scale, zero)
        distance = terms ** (1 / grid.mse_norm)
        off = error + (2 * ends + 16 * self.eps * grid.maxq * scale)[:, None]
        tolerance = 2 * ((distance + off) ** grid.mse_norm - terms)
        tolerance += (4 * width + 64) * self.eps * terms
        possible = near.any(axis=0) & (terms.sum(axis=1) <= least + tolerance.sum(axis=1))

        # The same candidate rounded differently is no tie; nor is the middle of [-1, 1], the grid
        # of nothing but zeros.
        same = (np.abs(scale - my_scale) <= room.max(axis=0)) & (zero == my_zero)
        same |= ~w.any(axis=1)
        self.ties += int((possible & ~same).sum())
        return np.where(possible, scale, my_scale), np.where(possible, zero, my_zero)

    def zeroed(self, j: int, window: Array, scores: Array, drop: NDArray[np.int64]) -> Mask:
        mine = super().zeroed(j, window, scores, drop)
        theirs = ~self.mask[:, self._order[j : j + window.shape[1]]]
        error = self.error(window, j)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(window == 0.0, 0.0, error / np.abs(window))
        slack = scores * (2 * relative + relative**2 + 16 * self.eps + 2 * self._own)
        # Right is any choice in which no zeroed score is surely above a kept one.
        axis = 1 if len(drop) == len(scores) else None
        worst = np.where(theirs, scores - slack, -np.inf).max(axis=axis, initial=-np.inf)
        least = np.where(theirs, np.inf, scores + slack).min(axis=axis, initial=np.inf)
        possible = (worst <= least) & (theirs.sum(axis=axis) == drop)
        return self._decide(mine, theirs, possible.reshape(-1, 1))


def hessian_of(factor) -> Array:
    """Return R R^T in float64 and in the original order: what the sweep really works with."""
    r = factor.R.astype(np.float64)
    back = np.argsort(factor.order)
    return (r @ r.T)[np.ix_(back, back)]


def follow(
    result, weights: Array, hessian: Array | None, factor=None, *, input_error=0.0, **options
) -> tuple[Outcome, Witness]:
    """Assert that each decision of a kernel is the definition's, except for ties; return those."""
    mask = np.ones(weights.shape, bool) if result.mask is None else result.mask
    quantized = hasattr(result, "codes")
    witness = Witness(
        eps=float(np.finfo(result.scales.dtype if quantized else result.weights.dtype).eps),
        codes=result.codes if quantized else None,
        scales=result.scales if quantized else None,
        zeros=result.zeros if quantized else None,
        mask=mask,
        input_error=input_error,
    )
    order, dead = (None, None) if factor is None else (factor.order, factor.dead)
    expected = sweep(weights, hessian, order, dead=dead, witness=witness, **options)
    np.testing.assert_array_equal(mask, expected.mask)
    if quantized:
        np.testing.assert_array_equal(result.scales, expected.scales)
        np.testing.assert_array_equal(result.zeros, expected.zeros)
        np.testing.assert_array_equal(result.group_index, expected.group_index)
        np.testing.assert_array_equal(result.codes, expected.codes)
    return expected, witness


def errors(weights: Array, q: Array, factor) -> tuple[Array, Array]:
    """Return the scaled errors e = D R of Q in sweep order, and how far a kernel's may be off.

    e_j = C_j + (t_j - q_j) R_jj: the inner product C_j, and R_jj times the error of a target.
    """
    eps = float(np.finfo(weights.dtype).eps)
    n = factor.n
    w = np.where(factor.dead, 0.0, weights)[:, factor.order].astype(np.float64)
    q = q[:, factor.order].astype(np.float64)
    r = factor.R.astype(np.float64)
    u = np.abs(np.linalg.inv(r))
    terms = (np.abs(w - q) + (np.abs(w) + np.abs(q)) / n) @ np.abs(r)
    off = 2 * (n + 8) * eps * (terms + (np.abs(w) + terms @ u) * np.diag(r))
    return (w - q) @ r, off


def loss_bound(e: Array, off: Array, eps: float) -> Array:
    """Return how far the sum of squares of e + off may be from that of e."""
    n = e.shape[1]
    return (2 * np.abs(e) * off + off**2).sum(axis=1) + (n + 8) * eps * (e**2).sum(axis=1)


def assert_same(a, b, fields=("codes", "scales", "zeros", "group_index", "loss")) -> None:
    """Assert that two results agree in every bit."""
    for name in fields:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, err_msg=name)


def assert_definition(result, layer, factor, options) -> int:
    """Assert that a sweep's result is the definition's; return the ties its arithmetic left open.

    In float64 the oracle starts from H alone, and nothing random comes as near to a tie as the
    errors are small. In float32 it takes the kernel's factor (test_factorize bounds that), because
    the error of factoring would drown that of the sweep, and one in a thousand may be a tie.
    """
    float64 = layer.dtype == np.float64
    h = oracle.damped(layer.hessian, factor.damping)[0] if float64 else hessian_of(factor)
    expected, witness = follow(result, layer.weights, h, factor, **options)
    # On a symmetric grid the largest weight of a group, if negative, lies on a rounding boundary by
    # construction: at -maxq / 2.
    by_construction = result.scales.size if options.get("symmetric") else 0
    entries = result.mask.size if options.get("bits") is None else result.codes.size
    assert witness.ties <= by_construction + (0 if float64 else 2 + 0.002 * entries)
    if options.get("bits") is None:
        wrong = np.abs(result.weights - expected.weights)
        assert (wrong <= witness.bounds).all()
    return witness.ties
