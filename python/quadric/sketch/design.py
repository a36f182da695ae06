"""Where to evaluate a function that is to be fitted by weighted least squares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from quadric import arrays, checks
from quadric.arrays import Array
from quadric.errors import LinAlgError
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import draws, inputs
from quadric.sketch.dpp import ProjectionDPP
from quadric.sketch.row_sample import categorical, summable
from quadric.sketch.rows import check_rows

Rule = Literal["optimal", "dpp", "repeated_dpp"]

RULES = ("optimal", "dpp", "repeated_dpp")


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """Points to evaluate a function at, and the weighted least squares that fits it there.

    Attributes
    ----------
    indices : array of int64, shape (size,)
        Candidates, in ascending order; one that was drawn several times is there as often.
    weights : array of float64, shape (size,)
        Of the squared errors: on average their weighted sum is that over all candidates.
    stability : float
        ``||G - I||`` of the Gram matrix G of an orthonormal basis at the weighted points: the
        solution is within a factor ``1 / (1 - stability)`` of stable.
    tries : int
        Draws until the stability asked for was reached.
    """

    indices: Array
    weights: Array
    stability: float
    tries: int
    _rows: NDArray[np.float64]

    def fit(self, values: Array) -> Array:
        """Return the coefficients of the basis.

        Parameters
        ----------
        values : array, shape (size,) or (size, k)
            The function, or k of them, at the points; float32 or float64.

        Returns
        -------
        array of float64, shape (d,) or (d, k)
            ``argmin sum_i weights_i (values_i - phi(x_i)^T c)^2``; of minimum norm where the basis
            is linearly dependent.

        Raises
        ------
        ValueError
            If the shape does not fit or a value is not finite.
        TypeError
            If the values are not float32 or float64.
        """
        y = arrays.to_numpy(values, "values")
        size = len(self._rows)
        if y.ndim not in (1, 2) or len(y) != size:
            raise ValueError(f"values must have shape ({size},) or ({size}, k), got {y.shape}")
        checks.floating(y, "values")
        checks.finite(y, "values")
        w = np.sqrt(arrays.to_numpy(self.weights, "weights"))
        found = linalg.lstsq(self._rows * w[:, None], (y.T * w).T.astype(np.float64))[0]
        return arrays.like(values)(np.asarray(found))

    def __repr__(self) -> str:
        return f"Design(size={len(self._rows)}, stability={self.stability:.3g})"


def weighted_least_squares_design(
    basis: Array | Callable[[Array], Array],
    size: int,
    rule: Rule = "optimal",
    *,
    points: Array | None = None,
    measure: Array | None = None,
    stability: float | None = None,
    max_tries: int = 100,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Design:
    """Choose among candidate points those at which a function is to be evaluated.

    Parameters
    ----------
    basis : array, shape (n, d), or callable
        Values of d basis functions at n candidates, float32 or float64, or a function that gives
        them for `points`. The basis need not be orthonormal: only its span counts.
    size : int
        Points to choose, at least the rank of the basis; for "repeated_dpp" a multiple of it.
    rule : {"optimal", "dpp", "repeated_dpp"}, optional
        "optimal": independent points from the measure with density ``k(x) / d``, k the sum of the
        squares of an orthonormal basis [1]_. "dpp": d points of the projection DPP, which keep
        apart, and the rest as in "optimal": volume-rescaled sampling, so the coefficients are
        right on average. "repeated_dpp": ``size / d`` independent samples of the DPP [2]_.
    points : array, shape (n,) or (n, D), optional
        Candidates, if `basis` is a function.
    measure : array, shape (n,), optional
        Masses of the candidates, none negative; the error is that of least squares with these
        weights. None is equal masses.
    stability : float, optional
        Draw again until ``||G - I||`` is at most this, above 0 (below 1 makes the fit stable for
        sure). None takes the first draw.
    max_tries : int, optional
        Most draws.
    seed : int, Generator or None, optional
        Same seed, same design.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    Design
        ``design.indices`` and ``design.weights``; ``design.fit(values)`` gives the coefficients.

    Raises
    ------
    ValueError
        If an array is empty, not finite or of the wrong shape, a mass is negative, or a number is
        out of range.
    TypeError
        If a dtype does not fit.
    LinAlgError
        If `stability` was not reached in `max_tries` draws.

    Notes
    -----
    With the orthonormal basis q of the candidates under their measure, point i has the density
    ``||q_i||^2 / d`` and the weight ``d / ||q_i||^2``, times its own mass over that of all, so that
    ``E[G] = I`` for all three rules. "optimal" needs about d log d points to be stable; the DPP
    rules need fewer at the same probability.

    References
    ----------
    .. [1] Cohen, Migliorati, "Optimal weighted least-squares methods", SMAI J. Comput. Math. 3,
       2017, arXiv:1608.00512.
    .. [2] Nouy, Michel, "Weighted least-squares approximation with determinantal point processes
       and generalized volume sampling", 2023, arXiv:2312.14057.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> t = np.linspace(-1, 1, 10_001)
    >>> Phi = qd.sketch.polynomial_basis(t, 10)
    >>> design = qd.sketch.weighted_least_squares_design(Phi, 22, "repeated_dpp")
    >>> c = design.fit(np.exp(t[design.indices]))  # the function at 22 points
    >>> bool(np.abs(Phi @ c - np.exp(t)).max() < 1e-9)
    True
    """
    Phi = _values(basis, points)
    rows = check_rows(Phi, "basis", backend, n_threads)
    n = rows.shape[0]
    checks.choice(rule, "rule", RULES)
    mass = None if measure is None else _masses(measure, n)
    if mass is not None:
        # The DPP of the measure is that of rows scaled by the roots of the masses.
        scaled = inputs.dense_of(rows.a) * np.sqrt(mass)[:, None].astype(rows.dtype)
        rows = check_rows(scaled, "basis", backend, n_threads)
    limit = None if stability is None else checks.positive(stability, "stability")
    max_tries = checks.integer(max_tries, "max_tries", low=1)
    process = ProjectionDPP.of(rows)
    d = process.rank
    size = checks.integer(size, "size", low=d)
    if rule == "repeated_dpp" and size % d:
        raise ValueError(f"size must be a multiple of d = {d} for repeated_dpp, got {size}")
    seed = resolve_seed(seed)

    source = draws.Draws(seed, draws.DESIGN, backend)
    count = {"optimal": 0, "dpp": 1, "repeated_dpp": size // d}[rule]
    for tries in range(1, max_tries + 1):
        sets = process.draw(count, seed, (tries - 1) * count).reshape(-1)
        single = categorical(process.cumulative, source.uniforms(size - len(sets)))
        indices = np.sort(np.concatenate((sets, single)))
        weights = d / (size * process.leverage[indices])
        found = _instability(process.orthonormal(indices), weights)
        if limit is None or found <= limit:
            break
    else:
        raise LinAlgError(
            f"stability {limit:g} was not reached in {max_tries} draws of {size} points: the last "
            f"had {found:.3g}"
        )
    weights = weights if mass is None else weights * mass[indices]
    chosen = check_rows(Phi, "basis", backend, n_threads).take(indices)
    wrap = inputs.wrapper(Phi)
    return Design(wrap(indices), wrap(weights), found, tries, chosen)


def _instability(Q: np.ndarray, weights: np.ndarray) -> float:
    G = (Q.T * weights) @ Q
    return float(linalg.norm(G - np.eye(len(G)), 2))


def _values(basis: Any, points: Any) -> Any:
    if not callable(basis):
        if points is not None:
            raise ValueError("points must be left out where basis has values already")
        return basis
    if points is None:
        raise ValueError("points must be given where basis is a function")
    return basis(points)


def _masses(measure: Array, n: int) -> np.ndarray:
    """Return masses that sum to n, so that equal ones are 1."""
    m = arrays.to_numpy(measure, "measure")
    if m.shape != (n,):
        raise ValueError(f"measure must have shape ({n},), got {m.shape}")
    checks.floating(m, "measure")
    checks.finite(m, "measure")
    if m.min() < 0:
        i = int(np.argmin(m))
        raise ValueError(f"measure must not be negative, got {m[i]:.6g} at index ({i},)")
    if not m.any():
        raise ValueError("measure must have a mass above 0, got only zeros")
    m = summable(m.astype(np.float64))
    result: np.ndarray = m / m.mean()
    return result
