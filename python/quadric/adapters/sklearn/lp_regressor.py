"""Linear regression in the p-norm of the residuals."""

from typing import Any, Self

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from quadric import checks, sketch
from quadric.adapters.sklearn.inputs import DTYPES, FORMATS, sample_weights, seed
from quadric.adapters.sklearn.rows import scaled
from quadric.sketch.lp_regression import Sampling


class LpRegressor(RegressorMixin, BaseEstimator):
    """Minimize the sum of the p-th powers of the residuals, on a sample of the rows that matter.

    ``p = 1`` is least absolute deviations, which outliers do not move; ``p = 2`` is least squares;
    large ``p`` comes close to the smallest largest residual.

    Parameters
    ----------
    p : float, optional
        Power, from 1 to 8.
    fit_intercept : bool, optional
        Whether to fit a constant term.
    sampling : {"sensitivity", "lewis", None}, optional
        Of :func:`quadric.sketch.lp_regression`: by which scores rows are sampled. None takes all
        rows, and the result is the minimizer itself.
    sketch_size : int, optional
        Rows to sample; None leaves it to the solver.
    tol : float, optional
        Of the solver: relative gap to the least norm; None is the accuracy of the dtype.
    max_iter : int, optional
        Of the solver: most Newton steps.
    random_state : int, RandomState, Generator or None, optional
        Seed of the sample. The default is the same sample every time; None is a new one each time.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the results.

    Attributes
    ----------
    coef_ : array, shape (n_features,)
        Coefficients, of the dtype of `X`.
    intercept_ : float
        Constant term.
    objective_ : float
        The p-norm of the weighted residuals, of all rows.
    n_iter_ : int
        Iterations of the solver, at least 1.
    result_ : LpResult
        What the solver returned, with the rows that were sampled and their weights.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, where `X` has them.

    See Also
    --------
    quadric.sketch.lp_regression : the solver.

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.adapters.sklearn import LpRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((2000, 2))
    >>> y = X @ [1.0, -2.0] + 3.0
    >>> y[::10] += 1e3
    >>> model = LpRegressor(p=1.0).fit(X, y)
    >>> bool(np.abs(model.coef_ - [1.0, -2.0]).max() < 1e-3)
    True
    """

    def __init__(
        self,
        p: float = 1.0,
        *,
        fit_intercept: bool = True,
        sampling: Sampling = "sensitivity",
        sketch_size: int | None = None,
        tol: float | None = None,
        max_iter: int = 100,
        random_state: Any = 0,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.p = p
        self.fit_intercept = fit_intercept
        self.sampling = sampling
        self.sketch_size = sketch_size
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.backend = backend
        self.n_threads = n_threads

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the coefficients to the rows of `X`.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Rows. What is neither float32 nor float64 becomes float64.
        y : array-like, shape (n_samples,)
            Values to predict; they are brought to the dtype of `X`.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of the p-th powers of the residuals, not negative.

        Returns
        -------
        LpRegressor
            This object.

        Raises
        ------
        ValueError
            If a shape does not fit, an entry is not finite, or an option is out of range.
        """
        p = checks.real(self.p, "p", 1, 8)
        X, y = validate_data(self, X, y, accept_sparse=FORMATS, dtype=DTYPES, y_numeric=True)
        weights = sample_weights(sample_weight, "sample_weight", len(y))
        A, b, d = X, y.astype(X.dtype), X.shape[1]
        scale = None if weights is None else weights ** (1 / p)
        if sparse.issparse(X):
            A = scaled(X, scale, ones=self.fit_intercept)
        elif self.fit_intercept or weights is not None:
            A = np.ones((len(X), d + bool(self.fit_intercept)), X.dtype)
            A[:, :d] = X
            if scale is not None:
                A *= scale[:, None]
        if scale is not None:
            b *= scale
        result = sketch.lp_regression(
            A,
            b,
            p,
            sampling=self.sampling,
            sketch_size=self.sketch_size,
            tol=self.tol,
            max_iter=self.max_iter,
            seed=seed(self.random_state),
            backend=self.backend,
            n_threads=self.n_threads,
        )
        x = result.x
        if not x.all():
            # Columns that depend on others have zeros; of all x with these residuals the shortest
            # does not depend on the order of rows and columns.
            x = sketch.lstsq(A, A @ x, minimum_norm=True).x
        self.coef_ = x[:d]
        self.intercept_ = x[d] if self.fit_intercept else X.dtype.type(0)
        self.objective_, self.n_iter_ = result.objective, max(result.iterations, 1)
        self.result_ = result
        return self

    def predict(self, X: Any) -> Any:
        """Predict the values of rows.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Rows.

        Returns
        -------
        array, shape (n_samples,)
            ``X @ coef_ + intercept_``.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=FORMATS, dtype=DTYPES, reset=False)
        return X @ self.coef_ + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
