"""Rows drawn by scores, with the weights that make up for the rows left out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

from quadric import arrays, checks, device, threads
from quadric.arrays import Array
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import draws, inputs, lewis, sensitivities
from quadric.sketch.rows import Rows, check_rows, factorize

Rule = Literal["auto", "uniform", "leverage", "root_leverage", "sensitivity", "lewis", "mixed"]

RULES = ("auto", "uniform", "leverage", "root_leverage", "sensitivity", "lewis", "mixed")


@dataclass(frozen=True, slots=True, eq=False)
class RowSample:
    """Rows that stand for all n rows of a matrix; ``indices, weights = sample`` unpacks it.

    Attributes
    ----------
    indices : array of int64, shape (m,)
        Rows, in ascending order; a row that was drawn several times is there as often.
    weights : array, shape (m,)
        What to multiply each row by.
    n : int
        Rows of the whole.
    """

    indices: Array
    weights: Array
    n: int

    def __iter__(self) -> Iterator[Array]:
        return iter((self.indices, self.weights))

    def __len__(self) -> int:
        return int(self.indices.shape[0])

    def operator(self) -> Any:
        """Return the sketch S whose product ``S @ A`` is the weighted rows."""
        from quadric.sketch.row_sampling import row_sampling

        indices, weights = (
            arrays.host(arrays.take(a, name))
            for a, name in ((self.indices, "indices"), (self.weights, "weights"))
        )
        return row_sampling(indices, self.n, weights)

    def __repr__(self) -> str:
        return f"RowSample(rows={len(self)}, n={self.n})"


def sample_rows(
    A: Array,
    size: int,
    *,
    rule: Rule = "auto",
    p: float = 2.0,
    replace: bool = False,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> RowSample:
    """Draw rows of A by their importance, so that ``||S A x||_p`` stays close to ``||A x||_p``.

    Parameters
    ----------
    A : array or scipy.sparse matrix, shape (n, d), or array, shape (n,)
        A matrix; or scores, one per row and none negative, that probabilities are proportional to.
    size : int
        Expected number of rows; exact with `replace`.
    rule : str, optional
        What a matrix is scored by: "uniform", "leverage" l, "root_leverage" ``l^(p/2)``,
        "sensitivity" s (upper bounds of :func:`lp_sensitivities`), "lewis" w, or "mixed"
        ``s + l + 1/n``. "auto" is leverage for p = 2, mixed for p below and lewis for p above.
    p : float, optional
        Power of the norm to keep, at least 1.
    replace : bool, optional
        False keeps each row by a coin of its own, with probability ``q_i = min(1, c score_i)`` and
        weight ``q_i^(-1/p)``; c is such that the q sum to `size`. True draws `size` rows
        independently with probabilities ``q_i = score_i / sum``, of weight
        ``(size q_i)^(-1/p)``.
    seed : int, Generator or None, optional
        Same seed, same rows.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    RowSample
        ``S = sample.operator()`` has ``E ||S A x||_p^p = ||A x||_p^p`` for every x, where no row
        with a_i^T x != 0 has score 0. Weights are of the dtype of `A`.

    Raises
    ------
    ValueError
        If an array is empty, not finite, or a score is negative; if all are 0; if a number is out
        of range, or `size` is above n without `replace`.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    To keep all norms up to a factor 1 +- eps, "sensitivity" needs ``S^(2/p) / eps^2`` rows for
    p < 2 and ``S^(2 - 2/p) / eps^2`` beyond, S the sum of the sensitivities [1]_; "mixed" needs
    ``(S + d) / eps^2`` for p <= 2 [2]_; "lewis" needs ``d / eps^2`` for p <= 2 and
    ``d^(p/2) / eps^2`` beyond; all up to logarithms.

    References
    ----------
    .. [1] Woodruff, Yasuda, "Sharper bounds for l_p sensitivity sampling", ICML 2023,
       arXiv:2306.00732.
    .. [2] Munteanu, Omlor, "Optimal bounds for l_p sensitivity sampling via l_2 augmentation",
       ICML 2024.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.random.default_rng(0).standard_normal((10_000, 5))
    >>> indices, weights = qd.sketch.sample_rows(A, 500)
    >>> B = weights[:, None] * A[indices]
    >>> bool(np.linalg.norm(B.T @ B - A.T @ A, 2) < 0.3 * np.linalg.norm(A, 2) ** 2)
    True
    """
    checks.choice(rule, "rule", RULES)
    p = lewis.check_power(p)
    on_gpu = device.find(A) is not None
    if sparse.issparse(A) or arrays.take(A, "A").ndim != 1:
        rows = check_rows(A, "A", backend, n_threads, gpu=True)
        n, dtype = rows.shape[0], rows.dtype
    else:
        if rule != "auto":
            raise ValueError(f"rule must be left out where A has scores already, got {rule!r}")
        rows, (given, dtype) = None, _given(A)
        n = len(given)
    size = checks.integer(size, "size", low=1, high=None if replace else n)
    replace = flag(replace, "replace")
    seed = resolve_seed(seed)
    with threads.blas_limit(1):
        values = given if rows is None else scores(rows, rule, p, seed)
    source = draws.Draws(seed, draws.ROWS, None if on_gpu else backend)
    indices, q = draw(values, size, replace, source)
    wrap = inputs.wrapper(A)
    return RowSample(wrap(indices), wrap((q ** (-1 / p)).astype(dtype)), n)


def scores(rows: Rows, rule: str, p: float, seed: int) -> np.ndarray:
    """Return the scores that a rule gives to the rows, float64."""
    n = rows.shape[0]
    if rule == "auto":
        rule = "leverage" if p == 2 else "mixed" if p < 2 else "lewis"
    if rule == "uniform":
        return np.ones(n)
    if rule in ("leverage", "root_leverage") or p == 2:
        result = rows.norms(factorize(rows, seed=seed).M)
        result = result ** (p / 2) if rule == "root_leverage" else result
    else:
        basis = lewis.basis(rows, seed)
        if rule == "lewis":
            w, u, _ = lewis.iterate(basis, p, 0.01, 50)
            result = lewis.leverage(w, u, p)
        else:
            result = sensitivities.bounds(basis, p)
            if rule == "mixed":
                result += basis.norms()
    if rule == "mixed":
        result = (2 * result if p == 2 else result) + 1 / n
    if not np.isfinite(result).all():
        rows.refuse_what_is_not_finite()
    return result


def draw(
    values: np.ndarray, size: int, replace: bool, source: draws.Draws
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows in ascending order, and how often each was to be expected."""
    if not values.any():
        raise ValueError("A must have a row that is not zero, got only zeros")
    values = summable(values)
    if replace:
        indices = np.sort(categorical(np.cumsum(values), source.uniforms(size)))
        return indices, size * (values[indices] / values.sum())
    q = inclusion_probabilities(values, size)
    indices = np.flatnonzero(source.uniforms(len(q)) < q)
    return indices, q[indices]


def inclusion_probabilities(values: np.ndarray, size: int) -> np.ndarray:
    """Return ``min(1, c values)`` with the c that makes them sum to `size`, or else c infinite."""
    if size >= np.count_nonzero(values):
        return (values > 0).astype(np.float64)
    down = np.sort(values)[::-1]
    rest = np.cumsum(down[::-1])[::-1]  # sum of what is not among the k largest
    above = np.arange(size)
    # With the k largest at 1, the next one must not be above 1.
    k = int(np.argmax((size - above) * down[:size] <= rest[:size]))
    with np.errstate(over="ignore"):  # rest may be tiny
        result: np.ndarray = np.minimum(1.0, values / rest[k] * (size - k))
    return result


def summable(values: np.ndarray) -> np.ndarray:
    """Return values, none negative, in a unit in which their sum does not overflow."""
    return np.ldexp(values, -64) if values.max() > 2.0**959 else values


def categorical(cumulative: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Return one index per uniform number, with probabilities that have these cumulative sums."""
    # A zero has the sum of the one before it, which "right" steps over.
    found = np.searchsorted(cumulative, uniforms * cumulative[-1], side="right")
    last = np.searchsorted(cumulative, cumulative[-1], side="left")
    result: np.ndarray = np.minimum(found, last)
    return result


def _given(A: Array) -> tuple[np.ndarray, np.dtype[Any]]:
    a = arrays.host(arrays.take(A, "A"))
    checks.floating(a, "A")
    if not a.size:
        raise ValueError(f"A must have at least one score, got shape {a.shape}")
    checks.finite(a, "A")
    if a.min() < 0:
        i = int(np.argmin(a))
        raise ValueError(f"A must not have negative scores, got {a[i]:.6g} at index ({i},)")
    return a.astype(np.float64), a.dtype


def flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)
