"""Linear regression on many rows."""

import warnings
from typing import Any, Literal, Self

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import check_is_fitted, validate_data

from quadric import sketch
from quadric.adapters.sklearn.inputs import DTYPES, FORMATS, sample_weights, seed
from quadric.adapters.sklearn.row_stream import RowStream, Solution, Stream
from quadric.adapters.sklearn.rows import mean, scaled, weighted, with_penalty
from quadric.sketch.lstsq import Method


class SketchedRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Least squares for tall data, backward stable and faster than a factorization of `X`.

    The same coefficients as `sklearn.linear_model.LinearRegression`, from a compressed matrix: a
    sketch of the rows preconditions the problem, and a few passes over `X` solve it [1]_.

    Parameters
    ----------
    fit_intercept : bool, optional
        Whether to fit a constant term.
    method : str, optional
        Of :func:`quadric.sketch.lstsq`. "sketch" is the one that does not solve the problem itself
        but the sketched one, whose residual is larger by about `n_features / sketch_size`.
    tol : float, optional
        Of the solver; None is the accuracy of the dtype.
    max_iter : int, optional
        Of the solver; None leaves it to the method.
    sketch_size : int, optional
        Rows of the sketch. None leaves it to the solver, and is 32 per column in a stream.
    operator : str, optional
        Kind of the sketch; None is "sparse_sign", or "srht" with a guarantee.
    nnz : int, optional
        Nonzeros per column of a sparse sketch; None leaves it to the solver, and is 8 in a stream.
    guarantee : {None, "linf"}, optional
        "linf" bounds the error of every coefficient; it needs a dense sketch.
    rcond : float, optional
        Singular values below this share of the largest one count as zero. None leaves it to the
        solver.
    stream : {"exact", "sketch"}, optional
        What `partial_fit` keeps of the rows, see the notes.
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
        Estimate of how far, in relative terms, the nearest problem lies of which these are the
        exact coefficients; the largest of all outputs. NaN after streaming into a sketch, which
        does not say.
    condition_ : float
        Estimated condition number of the matrix that was solved with.
    rank_ : int
        Rank of `X`, centred if there is an intercept.
    n_iter_ : int
        Iterations of the solver, at least 1.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, where `X` has them.

    See Also
    --------
    quadric.sketch.lstsq : the solver.
    SketchedRidge : with a penalty.

    Notes
    -----
    A dense `X` is copied once if there is an intercept or weights, else not at all. A sparse one
    keeps its zeros. Where the columns are dependent the shortest coefficients are found, for sparse
    `X` with an intercept the shortest of coefficients and intercept together.

    `partial_fit` collects the rows (1, x, y), times the root of their weight, in blocks of fixed
    size. With `stream="exact"` a block is folded into the triangle R of their QR factorization,
    from which the least-squares solution of all rows follows as if they had been there at once
    (backward stable; ``2 p**2`` flops per row and ``p**2`` numbers for
    ``p = 1 + n_features + n_outputs``). With `stream="sketch"` a block is added to a sparse sign
    sketch (``2 nnz p`` flops per row and ``sketch_size * p`` numbers), and the sketched problem is
    solved: the squared residual is expected to be larger by ``p / (sketch_size - p)``, 3 % by
    default.

    References
    ----------
    .. [1] E. N. Epperly, M. Meier, Y. Nakatsukasa. Fast randomized least-squares solvers can be
       just as accurate and stable as classical direct solvers. 2024. arXiv:2406.03468

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.adapters.sklearn import SketchedRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((5000, 3))
    >>> y = X @ [1.0, -2.0, 0.5] + 4.0
    >>> model = SketchedRegressor().fit(X, y)
    >>> bool(np.abs(model.coef_ - [1.0, -2.0, 0.5]).max() < 1e-13)
    True
    >>> chunked = SketchedRegressor()
    >>> for rows in range(0, 5000, 1000):
    ...     chunked = chunked.partial_fit(X[rows : rows + 1000], y[rows : rows + 1000])
    >>> round(float(chunked.intercept_), 12)
    4.0
    """

    def __init__(
        self,
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
        self.fit_intercept = fit_intercept
        self.method = method
        self.tol = tol
        self.max_iter = max_iter
        self.sketch_size = sketch_size
        self.operator = operator
        self.nnz = nnz
        self.guarantee = guarantee
        self.rcond = rcond
        self.stream = stream
        self.random_state = random_state
        self.backend = backend
        self.n_threads = n_threads

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the coefficients to the rows of `X`.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Rows. What is neither float32 nor float64 becomes float64; sparse formats other than
            CSR and CSC become CSR.
        y : array-like, shape (n_samples,) or (n_samples, n_outputs)
            Values to predict; they are brought to the dtype of `X`.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of the squared errors, not negative.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If a shape does not fit, an entry is not finite, or an option is out of range.
        """
        ridge = self._ridge
        X, y = validate_data(
            self, X, y, accept_sparse=FORMATS, dtype=DTYPES, multi_output=True, y_numeric=True
        )
        weights = sample_weights(sample_weight, "sample_weight", len(y))
        Y = y.reshape(len(y), -1)
        d = X.shape[1]
        center, level = np.zeros(d), np.zeros(Y.shape[1])
        if self.fit_intercept:
            level = mean(Y, weights)
            if not sparse.issparse(X):
                center = mean(X, weights)
        root = None if weights is None else np.sqrt(weights)
        A, b = X, weighted(Y, level, root, X.dtype)
        if sparse.issparse(X):
            A = scaled(X, root, ones=self.fit_intercept)
            if self.fit_intercept and ridge > 0:
                (A, b), ridge = with_penalty(A, b, ridge), 0.0
        elif self.fit_intercept or root is not None:
            A = weighted(X, center, root, X.dtype)
        result = self._solve(A, b, ridge)
        x = result.x.reshape(A.shape[1], -1)
        intercept = level - center @ x[:d] if self.fit_intercept else np.zeros(())
        rank = int(result.rank)
        if self.fit_intercept and sparse.issparse(X):
            intercept += x[d]
            rank -= 1
        self.__dict__.pop("_stream", None)
        self._columns = y.shape[1:]
        self._solution = Solution(
            x[:d],
            intercept.astype(X.dtype),
            float(np.max(result.backward_error)),
            float(result.condition),
            rank,
            max(result.iterations, 1),
        )
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Add rows to those that came before; the first call begins.

        The coefficients are solved for when they are next asked for, so many small chunks cost no
        more than a few large ones. The result does not depend on how the rows are cut into chunks,
        not even in its last bit.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Rows.
        y : array-like, shape (n_samples,) or (n_samples, n_outputs)
            Values to predict.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of the squared errors, not negative.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If a shape does not fit, an entry is not finite, or an option is out of range; nothing
            is added then.

        Warns
        -----
        UserWarning
            If the last call was to `fit`, which keeps nothing of its rows that more could be added
            to: the stream begins with this chunk.
        """
        stream: RowStream | None = self.__dict__.get("_stream")
        if stream is None and "_solution" in self.__dict__:
            warnings.warn(
                "partial_fit begins anew: fit keeps nothing of its rows that more could be added "
                "to; give all rows to partial_fit",
                UserWarning,
                stacklevel=2,
            )
        _ = self._ridge  # an option that is wrong is refused here, not when it is solved
        X, y = validate_data(
            self,
            X,
            y,
            reset=stream is None,
            accept_sparse="csr",
            dtype=DTYPES,
            multi_output=True,
            y_numeric=True,
        )
        weights = sample_weights(sample_weight, "sample_weight", len(y))
        if stream is None:
            outputs = 1 if y.ndim == 1 else y.shape[1]
            stream = self._new_stream(X.shape[1], outputs)
            self._columns, self._dtype = y.shape[1:], X.dtype
        elif y.shape[1:] != self._columns:
            wanted = ("n_samples", *self._columns)
            raise ValueError(f"y must have shape {wanted} as before, got {y.shape}")
        stream.update(X, y.reshape(len(y), -1), weights)
        self._stream = stream
        self.__dict__.pop("_solution", None)
        return self

    def predict(self, X: Any) -> Any:
        """Predict the values of rows.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Rows.

        Returns
        -------
        array, shape (n_samples,) or (n_samples, n_outputs)
            ``X @ coef_.T + intercept_``.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=FORMATS, dtype=DTYPES, reset=False)
        return safe_sparse_dot(X, self.coef_.T, dense_output=True) + self.intercept_

    @property
    def coef_(self) -> np.ndarray:
        """Coefficients, shape (n_features,), or (n_outputs, n_features) if `y` has two axes."""
        x = self._solved("coef_").coefficients
        return x.T if self._columns else x[:, 0]

    @property
    def intercept_(self) -> Any:
        """Constant term; shape (n_outputs,) if `y` has two axes and `fit_intercept` is set."""
        intercept = self._solved("intercept_").intercept
        return intercept if intercept.ndim and self._columns else intercept.reshape(-1)[0]

    @property
    def backward_error_(self) -> float:
        """Estimated relative backward error of the problem solved, the largest of all outputs."""
        return self._solved("backward_error_").backward_error

    @property
    def condition_(self) -> float:
        """Estimated condition number of the problem solved."""
        return self._solved("condition_").condition

    @property
    def rank_(self) -> int:
        """Rank of `X`, centred if there is an intercept."""
        return self._solved("rank_").rank

    @property
    def n_iter_(self) -> int:
        """Iterations of the solver, at least 1."""
        return self._solved("n_iter_").iterations

    def _solved(self, name: str) -> Solution:
        if "_solution" not in self.__dict__:
            if "_stream" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__} has no {name} before it is fitted")
            self._solution = self._stream.solve(self._ridge, self.rcond, self._dtype)
        return self._solution

    def __sklearn_is_fitted__(self) -> bool:
        return "_solution" in self.__dict__ or "_stream" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @property
    def _ridge(self) -> float:
        """Penalty on the squares of the coefficients."""
        return 0.0

    def _solve(self, A: Any, b: np.ndarray, ridge: float) -> Any:
        return sketch.lstsq(
            A,
            b,
            method=self.method,
            ridge=ridge,
            tol=self.tol,
            max_iter=self.max_iter,
            sketch_size=self.sketch_size,
            nnz=self.nnz,
            operator=self.operator,
            guarantee=self.guarantee,
            minimum_norm=True,
            rcond=self.rcond,
            seed=seed(self.random_state),
            backend=self.backend,
            n_threads=self.n_threads,
        )

    def _new_stream(self, features: int, outputs: int) -> RowStream:
        return RowStream(
            features,
            outputs,
            intercept=self.fit_intercept,
            stream=self.stream,
            sketch_size=self.sketch_size,
            nnz=self.nnz,
            seed=seed(self.random_state),
        )
