"""Tokens to experts of limited capacity, by sparsity-constrained transport."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csc_array, csr_array

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.errors import ConvergenceWarning
from quadric.transport.capped import Capped, Outcome, run
from quadric.transport.laplacian import pull_back
from quadric.transport.problem import TOL
from quadric.transport.sparsity_constrained import METHODS, explain, start_from

EXPERTS = 1024
"""Most experts that the solver on a GPU takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Which tokens each expert gets, which experts each token gets, and with what weights.

    Attributes
    ----------
    tokens : array of int64, shape (experts, capacity)
        Tokens of each expert in their order, then -1.
    weights : array, shape (experts, capacity)
        Weight of each of them, in the dtype of the scores, then 0.
    counts : array of int64, shape (experts,)
        Tokens of each expert, at most the capacity.
    dropped : array of bool, shape (tokens,)
        Tokens that take part and that no expert gets.
    tight : array of bool, shape (tokens,)
        Tokens whose gates must sum to 1; the others may have less, where loads are short.
    f : array of float64, shape (tokens,)
        Potential, to start the next problem from; -Inf for tokens that do not take part.
    marginal_error : float
        By how much the weights miss what tokens and experts should have, added up, per token.
    converged : bool
        Whether `marginal_error` is at most the tolerance.
    iterations : int
        Steps of L-BFGS-B and of Newton's method, added; passes over scores on a GPU.
    reason : str
        Why it ended; see :class:`SparsityConstrainedResult`.
    reg : float
        As it was given.
    """

    tokens: Array
    weights: Array
    counts: Array
    dropped: Array
    tight: Array
    f: Array
    marginal_error: float
    converged: bool
    iterations: int
    reason: str
    reg: float
    _matrix: csc_array = field(repr=False)
    _like: Callable[[Data], Array] = field(repr=False)

    def gates(self) -> Array:
        """Return the weights as a matrix, shape (tokens, experts), mostly zeros."""
        return self._like(self._matrix.toarray(order="C"))

    def sparse_gates(self) -> csr_array:
        """Return the weights token by token, as a ``scipy.sparse.csr_array``."""
        return self._matrix.tocsr()

    def experts(self) -> tuple[Array, Array]:
        """Return the experts of each token, the heaviest first, and their weights.

        Returns
        -------
        experts : array of int64, shape (tokens, r)
            r is the most experts that a token has; then -1.
        weights : array, shape (tokens, r)
            Then 0.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> scores = np.array([[2.0, 0.0], [1.0, 0.9], [0.0, 0.0], [0.5, 3.0]])
        >>> experts, weights = qd.transport.route(scores, capacity=3).experts()
        >>> experts[:2].tolist(), weights[:2].round(3).tolist()
        ([[0, -1], [0, 1]], [[1.0, 0.0], [0.525, 0.475]])
        """
        gates = self.sparse_gates()
        counts = np.diff(gates.indptr)
        rows = np.repeat(np.arange(len(counts)), counts)
        order = np.lexsort((-gates.data, rows))
        place = np.arange(len(rows)) - np.repeat(gates.indptr[:-1], counts)
        shape = len(counts), int(counts.max(initial=0))
        experts, weights = np.full(shape, -1, np.int64), np.zeros(shape, gates.dtype)
        experts[rows, place] = gates.indices[order]
        weights[rows, place] = gates.data[order]
        return self._like(experts), self._like(weights)

    def vjp(self, gates: Array, *, potentials: str = "solved") -> Array:
        """Pull a cotangent of the gates back to the scores.

        Parameters
        ----------
        gates : array, shape (tokens, experts)
            Derivative of some function in the gates, float32 or float64.
        potentials : {"solved", "fixed"}, optional
            "solved" is the derivative of the gates as this function computes them: those of a token
            keep their sum. "fixed" leaves f alone, so that the loads of the experts are kept but
            those of the tokens are not; then also a token with one expert has a derivative.

        Returns
        -------
        array of float64, shape (tokens, experts)
            The derivative in the scores; 0 where a gate is 0.

        Raises
        ------
        ValueError
            If the shape does not fit, an entry is not finite, or there are no such potentials.

        Notes
        -----
        A gate is ``(f_i + g_j + s_ij) / reg`` where it is not 0. The cotangent loses its
        least-squares fit ``u_i + v_j`` on those entries (for fixed f: its mean over each expert)
        and is divided by `reg`. That is exact almost everywhere, as in
        :meth:`SparsityConstrainedResult.vjp`.
        """
        G = checks.matrix(gates, "gates", gpu=True)
        if G.shape != self._matrix.shape:
            raise ValueError(f"gates must have shape {self._matrix.shape}, got {G.shape}")
        checks.finite(G, "gates")
        checks.choice(potentials, "potentials", ("solved", "fixed"))
        tight = arrays.host(arrays.take(self.tight, "tight"))
        free = tight & (potentials == "solved")
        found = pull_back(self._matrix, arrays.host(G).astype(np.float64), self.reg, free)
        return arrays.like(gates)(-found)

    def __repr__(self) -> str:
        T, E = self._matrix.shape
        return (
            f"Routing({T} tokens, {E} experts, capacity={self.tokens.shape[1]}, "
            f"dropped={_count(self.dropped)}, marginal_error={self.marginal_error:.3g}, "
            f"{self.reason} after {self.iterations} iterations)"
        )


def route(
    scores: Array,
    capacity: int,
    *,
    reg: float = 1.0,
    tokens_per_expert: Array | None = None,
    mask: Array | None = None,
    method: str = "semidual",
    tol: float | None = None,
    max_iter: int = 100,
    repair: bool = True,
    warm_start: Routing | Array | None = None,
    warn: bool = True,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Routing:
    """Give each expert at most `capacity` tokens, and equal loads, so that the scores are high.

    The gates P maximize ``<scores, P> - reg / 2 sum P^2``, where the gates of a token sum to 1,
    those of an expert to its load, and no expert has more than `capacity` tokens.

    Parameters
    ----------
    scores : array, shape (tokens, experts)
        How well they go together, the logits of a router; float32 or float64.
    capacity : int
        Most tokens per expert.
    reg : float, optional
        Above 0, in units of the scores. The larger, the more experts share a token: one whose
        scores differ by more than `reg`, loads aside, goes to one expert alone.
    tokens_per_expert : array, shape (experts,), optional
        Load of each expert in tokens, float32 or float64, none negative; their sum is at most the
        number of tokens that take part. By default all tokens, or what the capacity allows, in
        equal parts; in whole tokens where the capacity is too small for shared ones.
    mask : array of bool, shape (tokens,) or (tokens, experts), optional
        Tokens that take part, or pairs that are allowed. A token without an allowed pair does not
        take part.
    method, max_iter, repair, backend, n_threads : optional
        As in :func:`sparsity_constrained`. Scores on a GPU are routed there by another method (see
        Notes); this one follows where that has not converged, unless `repair` is False.
    tol : float, optional
        Marginal error per token to reach; 1e-9, or 1e-5 if the scores are float32.
    warm_start : Routing or array of float64, shape (tokens,), optional
        The potential f to start from, or the result that has it.
    warn : bool, optional
        False leaves the report of what did not converge to the result.

    Returns
    -------
    Routing
        Capacities and loads hold whatever happens.

    Warns
    -----
    ConvergenceWarning
        If the gates of the tokens do not sum to 1 to within the tolerance.

    Raises
    ------
    ValueError
        If a shape does not fit; a score is not finite; an expert with a load has no allowed token;
        the loads exceed the tokens; an option is out of range.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    This is sparsity-constrained transport [1]_ from tokens to experts with the cost ``-scores``,
    after which no loss has to push the router towards balance. If the loads sum to less than the
    tokens (``capacity * experts < tokens``), the gates of a token sum to at most 1, and tokens may
    be dropped. Experts choose among all tokens of the call: what a token gets depends on the
    others.

    Scores on a GPU stay there. With one price per expert as the unknowns, Newton's method solves
    the problem without capacities in a few passes; where an expert has too many tokens, it does so
    for smaller and smaller `reg`, until they fit, and then solves with the given one on the places
    found and some others. Where capacities do not matter, the gates are those of the CPU;
    elsewhere both are good choices of places, but not the same. `warm_start` is of no use there.

    References
    ----------
    .. [1] T. Liu, J. Puigcerver, M. Blondel. Sparsity-constrained optimal transport. ICLR 2023.
       arXiv:2209.15466, section 5

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> scores = np.random.default_rng(0).standard_normal((64, 4))
    >>> routing = qd.transport.route(scores, capacity=20)
    >>> int(routing.counts.max()), int(routing.dropped.sum())
    (20, 0)
    >>> gates = routing.gates()
    >>> bool(np.allclose(gates.sum(axis=0), 16) and np.allclose(gates.sum(axis=1), 1))
    True
    """
    S = checks.matrix(scores, "scores", gpu=True)
    if 0 in S.shape:
        raise ValueError(f"scores must have at least one entry, got shape {S.shape}")
    checks.finite(S, "scores")
    T, E = S.shape
    capacity = checks.integer(capacity, "capacity", low=1)
    reg = checks.positive(reg, "reg")
    allowed = None if mask is None else _allowed(mask, S.shape)
    takes_part = np.ones(T, bool) if allowed is None else np.asarray(allowed.any(axis=1))
    active = takes_part.astype(np.float64)
    loads = _loads(tokens_per_expert, S, active, allowed, capacity)
    checks.choice(method, "method", METHODS)
    limit = TOL[S.dtype] if tol is None else checks.real(tol, "tol", low=0.0)
    checks.integer(max_iter, "max_iter", low=1)
    checks.choice(repair, "repair", (True, False))
    checks.choice(warn, "warn", (True, False))
    backends.resolve("transport.capped_columns", backend, on=S)
    total = active.sum()
    partial = bool(loads.sum() < total * (1 - 1e-12))
    workers = threads.resolve(n_threads)
    start = start_from(warm_start, T)
    found = None
    if isinstance(S, DeviceArray) and E <= EXPERTS:
        found = _solve_there(S, mask, loads, min(capacity, T), reg, limit, max_iter, partial)
    if found is None or (repair and found.error > limit * total):
        cost = _negative(S, allowed)
        problem = Capped(cost, active, loads, capacity, reg, method, partial, backend, workers)
        other = run(problem, start, tol=limit * total, max_iter=max_iter, repair=repair)
        found = other if found is None or other.error < found.error else found
    error = found.error / total
    converged = error <= limit
    if warn and not converged:
        text = explain(found.reason, error, limit, "capacity")
        warnings.warn(text, ConvergenceWarning, 2)
    like = arrays.like(scores)
    matrix = found.matrix.astype(S.dtype)
    counts = np.diff(matrix.indptr).astype(np.int64)
    tokens, weights = np.full((E, capacity), -1, np.int64), np.zeros((E, capacity), S.dtype)
    expert = np.repeat(np.arange(E), counts)
    place = np.arange(len(expert)) - np.repeat(matrix.indptr[:-1], counts)
    tokens[expert, place], weights[expert, place] = matrix.indices, matrix.data
    served = np.bincount(matrix.indices, minlength=T) > 0
    return Routing(
        like(tokens),
        like(weights),
        like(counts),
        like(takes_part & ~served),
        like(found.tight),
        like(found.f),
        error,
        bool(converged),
        found.iterations,
        found.reason,
        reg,
        matrix,
        like,
    )


def gates_there(
    scores: DeviceArray,
    mask: DeviceArray | None,
    *,
    capacity: int,
    capacity_factor: float,
    reg: float,
    tol: float,
    max_iter: int,
) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """Return gates, `tight` and the error on the GPU that the scores are on; nothing waits.

    Parameters
    ----------
    scores : DeviceArray, shape (tokens, experts)
        At most :data:`EXPERTS` experts. If one is not finite, all gates are NaN.
    mask : DeviceArray of bool, shape (tokens,) or (tokens, experts), or None
    capacity : int
        Or 0: ``ceil(capacity_factor * tokens / experts)`` with the tokens that take part.
    capacity_factor : float
    reg, tol : float
    max_iter : int
    """
    space, T = scores.space, scores.shape[0]
    gates, tight = space.empty(scores.shape, scores.dtype), space.empty(T, np.bool_)
    error, passes = space.empty(1, np.float64), space.empty(1, np.int64)
    options = capacity, capacity_factor, reg, tol, max_iter
    outputs = gates, tight, None, error, passes
    space.run(device.transport().route, scores, mask, None, *options, *outputs)
    return gates, tight, error


def _solve_there(
    S: DeviceArray,
    mask: Array | None,
    loads: np.ndarray,
    capacity: int,
    reg: float,
    tol: float,
    max_iter: int,
    partial: bool,
) -> Outcome:
    """Solve on the GPU that the scores are on, and bring the gates to the host."""
    T, E = S.shape
    taking = None if mask is None else arrays.host(arrays.take(mask, "mask"))
    gates = S.space.empty(S.shape, S.dtype)
    tight, f, error, passes = np.empty(T, bool), np.empty(T), np.empty(1), np.empty(1, np.int64)
    options = capacity, 1.0, reg, tol, max_iter
    outputs = gates, tight, f, error, passes
    S.space.run(device.transport().route, S, taking, loads, *options, *outputs)
    matrix = csc_array(gates.host().astype(np.float64))
    total = float(np.isfinite(f).sum())
    reason = "converged" if error[0] <= tol else "max_iter"
    unknown = np.full(E, np.nan)
    return Outcome(
        f, unknown, matrix, tight, np.nan, np.nan, np.nan,
        float(error[0]) * total, int(passes[0]), reason,
    )  # fmt: skip


def _negative(S: Data, allowed: np.ndarray | None) -> Data:
    """Return the costs, column by column; Inf where a pair is not allowed."""
    if isinstance(S, DeviceArray) and allowed is None:
        return arrays.scaled(S.T, -1.0).T
    s = arrays.host(S)
    cost = np.negative(s, out=np.empty(s.shape, s.dtype, "F"))
    if allowed is not None:
        cost[~allowed] = np.inf
    return arrays.beside(cost.T, S).T


def _count(flags: Array) -> int:
    return int(np.count_nonzero(arrays.host(arrays.take(flags, "dropped"))))


def _allowed(mask: Array, shape: tuple[int, ...]) -> np.ndarray:
    a = arrays.host(arrays.take(mask, "mask"))
    if a.dtype != np.bool_:
        raise TypeError(f"mask must be bool, got {a.dtype}")
    if a.shape not in (shape[:1], shape):
        raise ValueError(f"mask must have shape {shape[:1]} or {shape}, got {a.shape}")
    if not a.any():
        raise ValueError("mask must allow at least one pair, got none")
    return np.broadcast_to(a[:, None] if a.ndim == 1 else a, shape)


def _loads(
    given: Array | None,
    scores: Data,
    active: np.ndarray,
    allowed: np.ndarray | None,
    capacity: int,
) -> np.ndarray:
    """Return the loads of the experts, whose sum is exactly the tokens where it is to be that."""
    total, experts = active.sum(), scores.shape[1]
    if given is None:
        loads = np.full(experts, min(float(total) / experts, float(capacity)))
        if total <= capacity * experts < total + experts - 1:
            # Too few places for tokens that are shared: whole ones, more for who scores higher.
            loads = np.floor(loads)
            order = np.argsort(-(active @ arrays.host(scores)), kind="stable")
            loads[order[: int(total - loads.sum())]] += 1
    else:
        w = arrays.host(arrays.take(given, "tokens_per_expert"))
        if w.shape != (experts,):
            raise ValueError(f"tokens_per_expert must have shape ({experts},), got {w.shape}")
        checks.floating(w, "tokens_per_expert")
        checks.finite(w, "tokens_per_expert")
        if w.min() < 0:
            raise ValueError(f"tokens_per_expert must not be negative, got {w.min():.6g}")
        loads = w.astype(np.float64)
        if not loads.any():
            raise ValueError("tokens_per_expert must have some load, got only zeros")
        if loads.max() > capacity:
            raise ValueError(
                f"tokens_per_expert must be at most the capacity, {capacity}, got {loads.max():g}"
            )
        rounding = 1e-5 if w.dtype == np.float32 else 1e-10
        if loads.sum() > total * (1 + rounding):
            raise ValueError(
                f"tokens_per_expert must sum to at most {total:g} tokens, got {loads.sum():.10g}"
            )
        if abs(loads.sum() - total) <= rounding * total:
            loads *= total / loads.sum()
    if allowed is not None:
        stuck = (loads > 0) & ~allowed.any(axis=0)
        if stuck.any():
            j = int(np.argmax(stuck))
            raise ValueError(f"mask must allow a token to expert {j}, which has a load, got none")
    return loads
