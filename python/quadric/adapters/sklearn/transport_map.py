"""A transformer that moves points to where optimal transport sends their distribution."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from quadric import checks, transport
from quadric.adapters.sklearn.inputs import DTYPES, sample_weights
from quadric.transport.run import Method
from quadric.transport.solve_points import PointCost

_SHARE = 0.05  # of the spread of the cost: `reg` where it is "auto"
_TINY = np.finfo(np.float32).tiny

# By the variance of each feature, that of the source and that of the target added.
_SPREADS: dict[str, Callable[[Any], Any]] = {
    "sqeuclidean": np.sum,
    "euclidean": lambda variance: np.sqrt(np.sum(variance)),
    "cityblock": lambda variance: np.sum(np.sqrt(variance)),
    "cosine": lambda variance: np.sum(variance) / 2,
}


class TransportMap(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Map points of a source distribution to a target distribution by entropic transport.

    `fit` solves the transport problem between two sets of points. `transform` moves any point of
    the source domain, also one that `fit` has not seen, and `inverse_transform` moves points of the
    target domain back. The cost matrix is never stored.

    Parameters
    ----------
    reg : float or "auto", optional
        Strength of the regularization, in units of the cost. The smaller, the closer to a
        one-to-one map and the more iterations; the larger, the smoother, and the closer all points
        come to the mean of the target. "auto" is 5 % of the cost that the spread of the two sets
        makes; for the squared Euclidean cost, of the variance of both, added up.
    cost : {"sqeuclidean", "euclidean", "cityblock", "cosine"}, optional
        What it costs to move a point.
    method : {"auto", "sinkhorn", "newton", "published"}, optional
        Of the solver.
    tol : float, optional
        Of the solver: L1 error of both marginals, added. None is 1e-9 for float64 and 1e-5 for
        float32.
    max_iter : int, optional
        Of the solver; None leaves it to the method.
    unbalanced : float or pair of float, optional
        Let the masses of source and target deviate at this price (see
        :func:`quadric.transport.solve`), so that points that have no counterpart need not be
        matched.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the results.

    Attributes
    ----------
    source_, target_ : array, shape (n_samples, n_features) and (m, n_features)
        The points, copied; float32 if the source is, else float64.
    result_ : TransportResult
        The solution, with its potentials, plan and convergence.
    reg_ : float
        What was used for `reg`.
    n_iter_ : int
        Iterations of the solver.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, where `X` has them.

    See Also
    --------
    quadric.transport.entropic_map : the map itself.
    quadric.transport.solve_points : the solver.

    Notes
    -----
    With the potentials g of the target points, a point goes to
    ``sum_j w_j y_j / sum_j w_j``, ``w_j = exp((g_j - c(x, y_j)) / reg)`` [1]_. This lies in the
    convex hull of the target, so points far outside the source go to its border. The other way
    round it is the same with the potentials of the source.

    References
    ----------
    .. [1] A.-A. Pooladian, J. Niles-Weed. Entropic estimation of optimal transport maps. 2021.
       arXiv:2109.12004

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.adapters.sklearn import TransportMap
    >>> rng = np.random.default_rng(0)
    >>> source = rng.random((500, 2))
    >>> target = rng.random((400, 2)) * [1.0, 3.0] + [5.0, 0.0]
    >>> mapping = TransportMap(reg=1e-2).fit(source, target=target)
    >>> new = np.array([[0.25, 0.25], [0.75, 0.75]])
    >>> bool(np.abs(mapping.transform(new) - [[5.25, 0.75], [5.75, 2.25]]).max() < 0.2)
    True
    >>> bool(np.abs(mapping.inverse_transform(mapping.transform(new)) - new).max() < 0.1)
    True
    """

    def __init__(
        self,
        reg: float | str = "auto",
        *,
        cost: PointCost = "sqeuclidean",
        method: Method = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
        unbalanced: float | tuple[float, float] | None = None,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.reg = reg
        self.cost = cost
        self.method = method
        self.tol = tol
        self.max_iter = max_iter
        self.unbalanced = unbalanced
        self.backend = backend
        self.n_threads = n_threads

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        target: Any = None,
        sample_weight: Any = None,
        target_weight: Any = None,
    ) -> Self:
        """Solve the transport problem from the points `X` to the points `target`.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            Points of the source.
        y : ignored
            Labels; in a pipeline they are for the steps that follow.
        target : array-like, shape (m, n_features), optional
            Points of the target. If it is not given it is `X` with its masses, and the map smooths
            the points among themselves.
        sample_weight, target_weight : array-like, shape (n_samples,) and (m,), optional
            Masses of the points, not negative. They are scaled to sum to 1; None is equal masses.

        Returns
        -------
        TransportMap
            This object.

        Raises
        ------
        ValueError
            If a shape does not fit, an entry is not finite, or an option is out of range.
        TypeError
            If the target is given as `y`.
        """
        X = validate_data(self, X, dtype=DTYPES, copy=True)
        if target is None:
            shape: tuple[int, ...] = getattr(y, "shape", ())
            if len(shape) == 2 and shape[1] == X.shape[1]:
                raise TypeError(f"target must be named, fit(X, target=...): got y of shape {shape}")
            target, target_weight = X, sample_weight
        target = check_array(target, dtype=X.dtype, copy=True, input_name="target")
        if target.shape[1] != X.shape[1]:
            raise ValueError(
                f"target must have the {X.shape[1]} features of X, got {target.shape[1]}"
            )
        checks.choice(self.cost, "cost", tuple(_SPREADS))
        a = _masses(sample_weight, "sample_weight", len(X))
        b = _masses(target_weight, "target_weight", len(target))
        reg = self.reg
        if isinstance(reg, str):
            checks.choice(reg, "reg", ("auto",))
            reg = _SHARE * _spread(X, a, target, b, self.cost) or 1.0
        result = transport.solve_points(
            X,
            target,
            reg,
            a=a,
            b=b,
            cost=self.cost,
            method=self.method,
            tol=self.tol,
            max_iter=self.max_iter,
            unbalanced=self.unbalanced,
            backend=self.backend,
            n_threads=self.n_threads,
        )
        self.source_, self.target_, self.result_ = X, target, result
        self.reg_, self.n_iter_ = float(reg), result.iterations
        return self

    def transform(self, X: Any) -> Any:
        """Move points of the source domain to the target domain.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            Points; those that were fitted or others.

        Returns
        -------
        array, shape (n_samples, n_features)
            Where they go, of the dtype of `X` if that is float32 or float64.
        """
        check_is_fitted(self)
        return self._move(X, self.target_, self.result_.g)

    def inverse_transform(self, X: Any) -> Any:
        """Move points of the target domain to the source domain.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            Points; those that were fitted or others.

        Returns
        -------
        array, shape (n_samples, n_features)
            Where they go, of the dtype of `X` if that is float32 or float64.
        """
        check_is_fitted(self)
        return self._move(X, self.source_, self.result_.f)

    def _move(self, X: Any, to: np.ndarray, potentials: np.ndarray) -> Any:
        X = validate_data(self, X, dtype=DTYPES, reset=False)
        moved = transport.entropic_map(
            X.astype(to.dtype, copy=False),
            to,
            potentials,
            self.reg_,
            cost=self.cost,
            backend=self.backend,
            n_threads=self.n_threads,
        )
        return moved.astype(X.dtype, copy=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _masses(weights: Any, name: str, count: int) -> np.ndarray | None:
    masses = sample_weights(weights, name, count)
    return None if masses is None else masses / masses.sum()


def _spread(
    X: np.ndarray, a: np.ndarray | None, Y: np.ndarray, b: np.ndarray | None, cost: str
) -> float:
    """Return about the mean cost between the two sets when their means are the same."""
    if cost == "cosine":
        X, Y = (p / np.maximum(np.linalg.norm(p, axis=1, keepdims=True), _TINY) for p in (X, Y))
    variance = np.zeros(X.shape[1])
    for points, masses in ((X, a), (Y, b)):
        mean = np.average(points.astype(np.float64), axis=0, weights=masses)
        variance += np.average(np.square(points - mean), axis=0, weights=masses)
    return float(_SPREADS[cost](variance))
