"""The debiased Sinkhorn divergence between two clouds of points."""

from dataclasses import dataclass
from typing import Any, cast

from quadric.arrays import Array
from quadric.transport.derivatives import Gradients, mass_gradients, smallest
from quadric.transport.results import TransportResult
from quadric.transport.run import Method
from quadric.transport.solve_points import PointCost, solve_points


@dataclass(frozen=True, slots=True, eq=False)
class SinkhornDivergence:
    """What :func:`sinkhorn_divergence` returns.

    Attributes
    ----------
    value : float
        The divergence; of a batch an array, shape (B,). Rounding may bring it just below 0.
    between : TransportResult
        Transport from x to y.
    within_x, within_y : TransportResult
        Transport of each cloud to itself, which is taken off.
    """

    value: Any
    between: TransportResult
    within_x: TransportResult
    within_y: TransportResult

    @property
    def converged(self) -> Any:
        """Whether all three problems reached the tolerance; of a batch an array, shape (B,)."""
        return self.between.converged & self.within_x.converged & self.within_y.converged

    def gradients(self) -> Gradients:
        """Return the gradient of `value` in the points and the masses.

        Returns
        -------
        Gradients
            Its `M` is None.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> x = np.random.default_rng(0).standard_normal((20, 2))
        >>> y = x + np.array([1.0, 0.0])
        >>> g = qd.transport.sinkhorn_divergence(x, y, reg=0.5).gradients()
        >>> g.x.sum(axis=0).round(6) + 0.0  # every point is to go to the right
        array([-2.,  0.])
        """
        results = (self.between, self.within_x, self.within_y)
        both, of_x, of_y = (cast(Any, r.gradients()) for r in results)
        problem = self.between.problem
        masses, in_x, in_y = (mass_gradients(r.problem, *r.potentials()) for r in results)
        a, b = masses[0] - (in_x[0] + in_x[1]) / 2, masses[1] - (in_y[0] + in_y[1]) / 2
        a, b = smallest(problem, a, b)
        x, y = both.x - (of_x.x + of_x.y) / 2, both.y - (of_y.x + of_y.y) / 2
        return Gradients(None, x, y, problem.array(a), problem.array(b))


def sinkhorn_divergence(
    x: Array,
    y: Array,
    reg: float,
    *,
    a: Array | None = None,
    b: Array | None = None,
    cost: PointCost = "sqeuclidean",
    method: Method = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    normalize: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> SinkhornDivergence:
    """Return ``W(x, y) - W(x, x) / 2 - W(y, y) / 2``, W being the regularized transport value.

    It is 0 for equal clouds, which W itself is not, and above 0 for others.

    Parameters
    ----------
    x, y : array, shape (n, d) and (m, d) or (B, n, d) and (B, m, d)
        Points, float32 or float64.
    reg : float
        Regularization above 0, in units of the cost.
    a, b : array, shape (n,) and (m,), or (B, n) and (B, m), optional
        Masses of the points, of the same sum; uniform with sum 1 if they are not given.
    cost : {"sqeuclidean", "euclidean", "cityblock", "cosine"}, optional
        Cost between two points.
    method, tol, max_iter, normalize, backend, n_threads : optional
        As in :func:`solve_points`, for each of the three problems.

    Returns
    -------
    SinkhornDivergence
        The value, the three problems it comes from, and its gradients.

    Warns
    -----
    ConvergenceWarning
        If one of the problems did not reach the tolerance.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, a mass is negative, the sums of the masses
        differ, or an option has no such value.
    TypeError
        If a dtype does not fit.

    See Also
    --------
    solve_points : the problems one by one; unbalanced ones too.
    quadric.adapters.torch.SinkhornDivergence : the same as a loss.

    Notes
    -----
    The definition is that of [1]_ (equation 3). The relative entropy that they regularize with and
    the entropy of :func:`solve_points` differ by terms that cancel. Each W is the dual value, whose
    error is quadratic in that of the marginals.

    References
    ----------
    .. [1] J. Feydy, T. Sejourne, F.-X. Vialard, S. Amari, A. Trouve, G. Peyre. Interpolating
       between optimal transport and MMD using Sinkhorn divergences. AISTATS 2019, arXiv:1810.08278.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> x = np.random.default_rng(0).standard_normal((100, 2))
    >>> round(qd.transport.sinkhorn_divergence(x, x + 1.0, reg=0.5).value, 9)  # the shift squared
    2.0
    >>> abs(qd.transport.sinkhorn_divergence(x, x, reg=0.5).value) < 1e-12
    True
    """
    options: dict[str, Any] = {
        "cost": cost,
        "method": method,
        "tol": tol,
        "max_iter": max_iter,
        "normalize": normalize,
        "backend": backend,
        "n_threads": n_threads,
    }
    between = solve_points(x, y, reg, a=a, b=b, **options)
    within_x = solve_points(x, x, reg, a=a, b=a, **options)
    within_y = solve_points(y, y, reg, a=b, b=b, **options)
    value = between.dual_value - (within_x.dual_value + within_y.dual_value) / 2
    return SinkhornDivergence(value, between, within_x, within_y)
