"""Ridge regression on many rows."""

from typing import Any, Literal

from quadric import checks
from quadric.adapters.sklearn.row_stream import Stream
from quadric.adapters.sklearn.sketched_regressor import SketchedRegressor
from quadric.sketch.lstsq import Method


class SketchedRidge(SketchedRegressor):
    """Least squares for tall data with a penalty on the squares of the coefficients.

    Minimizes ``sum_i w_i (y_i - x_i coef - intercept)**2 + alpha ||coef||**2``, as
    `sklearn.linear_model.Ridge` does; the intercept is not penalized.

    Parameters
    ----------
    alpha : float, optional
        Strength of the penalty, not negative.
    fit_intercept : bool, optional
        Whether to fit a constant term.
    method, tol, max_iter, sketch_size, operator, nnz, guarantee, rcond : optional
        Of the solver, see :class:`SketchedRegressor`.
    stream : {"exact", "sketch"}, optional
        What `partial_fit` keeps of the rows, see :class:`SketchedRegressor`.
    random_state : int, RandomState, Generator or None, optional
        Seed of the sketch. The default is the same sketch every time; None is a new one each time.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the results.

    Attributes
    ----------
    coef_ : array, shape (n_features,) or (n_outputs, n_features)
        Coefficients, of the dtype of `X`.
    intercept_ : float or array, shape (n_outputs,)
        Constant term; 0.0 if there is none.
    backward_error_ : float
        Estimated relative backward error of the penalized problem, see :class:`SketchedRegressor`.
    condition_ : float
        Estimated condition number of the matrix that was solved with, the penalty included.
    rank_ : int
        Its rank: `n_features` where `alpha` is above 0.
    n_iter_ : int
        Iterations of the solver, at least 1.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, where `X` has them.

    See Also
    --------
    quadric.sketch.lstsq : the solver.

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.adapters.sklearn import SketchedRidge
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((2000, 3))
    >>> y = X @ [1.0, -2.0, 0.5]
    >>> model = SketchedRidge(alpha=2000.0).fit(X, y)
    >>> bool(np.abs(model.coef_ - [0.5, -1.0, 0.25]).max() < 0.05)
    True
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        method: Method = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
        sketch_size: int | None = None,
        operator: str | None = None,
        nnz: int | None = None,
        guarantee: Literal["linf"] | None = None,
        rcond: float | None = None,
        stream: Stream = "exact",
        random_state: Any = 0,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        super().__init__(
            fit_intercept=fit_intercept,
            method=method,
            tol=tol,
            max_iter=max_iter,
            sketch_size=sketch_size,
            operator=operator,
            nnz=nnz,
            guarantee=guarantee,
            rcond=rcond,
            stream=stream,
            random_state=random_state,
            backend=backend,
            n_threads=n_threads,
        )
        self.alpha = alpha

    @property
    def _ridge(self) -> float:
        return checks.real(self.alpha, "alpha", low=0)
