"""Random projections of the features, one transformer per sketching operator."""

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.random_projection import johnson_lindenstrauss_min_dim
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from quadric import checks, sketch
from quadric.adapters.sklearn.inputs import DTYPES, FORMATS, seed


class _FeatureSketch(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base: X (n_samples, d) becomes X S^T (n_samples, n_components)."""

    dense_output = True

    def __init__(
        self, n_components: int | str = "auto", *, eps: float = 0.1, random_state: Any = 0
    ) -> None:
        self.n_components = n_components
        self.eps = eps
        self.random_state = random_state

    @abstractmethod
    def _operator(self, m: int, n: int, seed: Any) -> sketch.SketchingOperator:
        """Return the sketching operator, m x n."""

    @property
    def _multiple(self) -> int:
        """What an automatic number of components is rounded up to."""
        return 1

    def fit(self, X: Any, y: Any = None) -> Self:
        """Draw the operator for as many features as `X` has; its values do not matter.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Rows.
        y : ignored
            Labels; in a pipeline they are for the steps that follow.

        Returns
        -------
        self
            The fitted transformer.

        Raises
        ------
        ValueError
            If there are to be more components than features, or an option is out of range.
        """
        X = validate_data(self, X, accept_sparse=FORMATS, dtype=DTYPES)
        samples, features = X.shape
        m = self.n_components
        if isinstance(m, str):
            checks.choice(m, "n_components", ("auto",))
            checks.between(self.eps, "eps", 0, 1)
            m = int(johnson_lindenstrauss_min_dim(samples, eps=self.eps))
            m += -m % self._multiple
            source = f"{m} for eps = {self.eps:g} and {samples} samples"
        else:
            checks.integer(m, "n_components", low=1)
            source = str(m)
        if m > features:
            raise ValueError(f"n_components must be at most n_features = {features}, got {source}")
        self.operator_ = self._operator(m, features, seed(self.random_state))
        self.n_components_ = self._n_features_out = m
        return self

    def transform(self, X: Any) -> Any:
        """Project rows.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Rows.

        Returns
        -------
        array, shape (n_samples, n_components)
            ``X @ S.T``, of the dtype of `X` if that is float32 or float64.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=FORMATS, dtype=DTYPES, reset=False)
        S, dtype = self.operator_.T, X.dtype
        return X @ (S.to_sparse(dtype) if sparse.issparse(X) and not self.dense_output else S)

    def inverse_transform(self, X: Any) -> Any:
        """Return the shortest rows that `transform` sends to these.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_components)
            Projected rows.

        Returns
        -------
        array, shape (n_samples, n_features)
            ``X @ pinv(S).T``. Projecting it again gives `X`, unless S has dependent rows.
        """
        check_is_fitted(self)
        X = check_array(X, accept_sparse=FORMATS, dtype=DTYPES)
        if X.shape[1] != self.n_components_:
            raise ValueError(f"X must have {self.n_components_} columns, got {X.shape[1]}")
        inverse = np.linalg.pinv(self.operator_.to_dense(dtype=X.dtype))
        return X @ inverse.T

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class GaussianSketch(_FeatureSketch):
    """Project the features by independent normal entries.

    The best quality for a given number of components, and the most work: ``2 n_components`` flops
    per entry of `X`. The entries are drawn while they are used and never stored.

    Parameters
    ----------
    n_components : int or "auto", optional
        Components. "auto" is the number for which distances between the rows given to
        `fit` change by at most a share of about `eps`, by the lemma of Johnson and Lindenstrauss;
        it grows with the logarithm of the number of rows.
    eps : float, optional
        That share, between 0 and 1.
    random_state : int, RandomState, Generator or None, optional
        Seed of the operator. The default is the same operator every time; None is a new one each
        time.

    Attributes
    ----------
    operator_ : SketchingOperator
        The operator S, of shape ``(n_components_, n_features_in_)``.
    n_components_ : int
        Number of components.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, where `X` has them.

    See Also
    --------
    quadric.sketch.gaussian : the operator.

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.adapters.sklearn import GaussianSketch
    >>> X = np.random.default_rng(0).standard_normal((10, 5000))
    >>> Z = GaussianSketch(n_components=1000).fit_transform(X)
    >>> Z.shape
    (10, 1000)
    >>> share = (Z**2).sum(axis=1) / (X**2).sum(axis=1)
    >>> bool(np.abs(share - 1).max() < 0.2)
    True
    """

    def _operator(self, m: int, n: int, seed: Any) -> sketch.SketchingOperator:
        return sketch.gaussian(m, n, seed=seed)


class RademacherSketch(_FeatureSketch):
    """Project the features by independent random signs.

    As good as :class:`GaussianSketch`, with entries that are cheaper to draw.

    Parameters
    ----------
    n_components : int or "auto", optional
        Components. "auto" is the number for which distances between the rows given to
        `fit` change by at most a share of about `eps`, by the lemma of Johnson and Lindenstrauss;
        it grows with the logarithm of the number of rows.
    eps : float, optional
        That share, between 0 and 1.
    random_state : int, RandomState, Generator or None, optional
        Seed of the operator. The default is the same operator every time; None is a new one each
        time.

    Attributes
    ----------
    operator_ : SketchingOperator
        The operator S, of shape ``(n_components_, n_features_in_)``.
    n_components_ : int
        Number of components.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, where `X` has them.

    See Also
    --------
    quadric.sketch.rademacher : the operator.

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.adapters.sklearn import RademacherSketch
    >>> X = np.random.default_rng(0).standard_normal((10, 5000))
    >>> Z = RademacherSketch(n_components=1000).fit_transform(X)
    >>> Z.shape
    (10, 1000)
    >>> share = (Z**2).sum(axis=1) / (X**2).sum(axis=1)
    >>> bool(np.abs(share - 1).max() < 0.2)
    True
    """

    def _operator(self, m: int, n: int, seed: Any) -> sketch.SketchingOperator:
        return sketch.rademacher(m, n, seed=seed)


class CountSketch(_FeatureSketch):
    """Add every feature, with a random sign, to one random component.

    The cheapest projection, one addition per entry of `X`, known as feature hashing. It needs more
    components than the others where few features carry most of a row.

    Parameters
    ----------
    n_components : int or "auto", optional
        Components. "auto" is the number for which distances between the rows given to
        `fit` change by at most a share of about `eps`, by the lemma of Johnson and Lindenstrauss;
        it grows with the logarithm of the number of rows.
    eps : float, optional
        That share, between 0 and 1.
    dense_output : bool, optional
        Whether a sparse `X` becomes a dense array; else it stays sparse.
    random_state : int, RandomState, Generator or None, optional
        Seed of the operator. The default is the same operator every time; None is a new one each
        time.

    Attributes
    ----------
    operator_ : SketchingOperator
        The operator S, of shape ``(n_components_, n_features_in_)``.
    n_components_ : int
        Number of components.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, where `X` has them.

    See Also
    --------
    quadric.sketch.count_sketch : the operator.

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.adapters.sklearn import CountSketch
    >>> X = np.random.default_rng(0).standard_normal((10, 5000))
    >>> Z = CountSketch(n_components=1000).fit_transform(X)
    >>> Z.shape
    (10, 1000)
    >>> share = (Z**2).sum(axis=1) / (X**2).sum(axis=1)
    >>> bool(np.abs(share - 1).max() < 0.2)
    True
    """

    def __init__(
        self,
        n_components: int | str = "auto",
        *,
        eps: float = 0.1,
        dense_output: bool = False,
        random_state: Any = 0,
    ) -> None:
        super().__init__(n_components, eps=eps, random_state=random_state)
        self.dense_output = dense_output

    def _operator(self, m: int, n: int, seed: Any) -> sketch.SketchingOperator:
        return sketch.count_sketch(m, n, seed=seed)


class SparseSignSketch(_FeatureSketch):
    """Add every feature, with random signs, to a few components.

    `nnz` stacked copies of :class:`CountSketch`: nearly the quality of a dense projection at `nnz`
    additions per entry of `X`.

    Parameters
    ----------
    n_components : int or "auto", optional
        Components, a multiple of `nnz` or fewer. "auto" is the number for which distances between
        the rows given to `fit` change by at most a share of about `eps`, by the lemma of Johnson
        and Lindenstrauss; it grows with the logarithm of the number of rows.
    eps : float, optional
        That share, between 0 and 1.
    nnz : int, optional
        Entries that are not zero in each column of the operator, all if there are no more.
    dense_output : bool, optional
        Whether a sparse `X` becomes a dense array; else it stays sparse.
    random_state : int, RandomState, Generator or None, optional
        Seed of the operator. The default is the same operator every time; None is a new one each
        time.

    Attributes
    ----------
    operator_ : SketchingOperator
        The operator S, of shape ``(n_components_, n_features_in_)``.
    n_components_ : int
        Number of components.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, where `X` has them.

    See Also
    --------
    quadric.sketch.sparse_sign : the operator.

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.adapters.sklearn import SparseSignSketch
    >>> X = np.random.default_rng(0).standard_normal((10, 5000))
    >>> Z = SparseSignSketch(n_components=1000).fit_transform(X)
    >>> Z.shape
    (10, 1000)
    >>> share = (Z**2).sum(axis=1) / (X**2).sum(axis=1)
    >>> bool(np.abs(share - 1).max() < 0.2)
    True
    """

    def __init__(
        self,
        n_components: int | str = "auto",
        *,
        eps: float = 0.1,
        nnz: int = 8,
        dense_output: bool = False,
        random_state: Any = 0,
    ) -> None:
        super().__init__(n_components, eps=eps, random_state=random_state)
        self.nnz = nnz
        self.dense_output = dense_output

    @property
    def _multiple(self) -> int:
        return checks.integer(self.nnz, "nnz", low=1)

    def _operator(self, m: int, n: int, seed: Any) -> sketch.SketchingOperator:
        nnz = min(self._multiple, m)
        if m % nnz:
            raise ValueError(f"n_components must be a multiple of nnz = {nnz}, got {m}")
        return sketch.sparse_sign(m, n, nnz=nnz, seed=seed)


class SRHTSketch(_FeatureSketch):
    """Project the features by a subsampled randomized Hadamard transform.

    The quality of a dense projection at the cost of a fast transform of each row.

    Parameters
    ----------
    n_components : int or "auto", optional
        Components. "auto" is the number for which distances between the rows given to
        `fit` change by at most a share of about `eps`, by the lemma of Johnson and Lindenstrauss;
        it grows with the logarithm of the number of rows.
    eps : float, optional
        That share, between 0 and 1.
    random_state : int, RandomState, Generator or None, optional
        Seed of the operator. The default is the same operator every time; None is a new one each
        time.

    Attributes
    ----------
    operator_ : SketchingOperator
        The operator S, of shape ``(n_components_, n_features_in_)``.
    n_components_ : int
        Number of components.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, where `X` has them.

    See Also
    --------
    quadric.sketch.srht : the operator.

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.adapters.sklearn import SRHTSketch
    >>> X = np.random.default_rng(0).standard_normal((10, 5000))
    >>> Z = SRHTSketch(n_components=1000).fit_transform(X)
    >>> Z.shape
    (10, 1000)
    >>> share = (Z**2).sum(axis=1) / (X**2).sum(axis=1)
    >>> bool(np.abs(share - 1).max() < 0.2)
    True
    """

    def _operator(self, m: int, n: int, seed: Any) -> sketch.SketchingOperator:
        return sketch.srht(m, n, seed=seed)


class CirculantSketch(_FeatureSketch):
    """Project the features by a subsampled circulant matrix.

    Rows of a random convolution with random signs, applied by fast Fourier transforms: the quality
    of a dense projection from as many random numbers as there are features.

    Parameters
    ----------
    n_components : int or "auto", optional
        Components. "auto" is the number for which distances between the rows given to
        `fit` change by at most a share of about `eps`, by the lemma of Johnson and Lindenstrauss;
        it grows with the logarithm of the number of rows.
    eps : float, optional
        That share, between 0 and 1.
    random_state : int, RandomState, Generator or None, optional
        Seed of the operator. The default is the same operator every time; None is a new one each
        time.

    Attributes
    ----------
    operator_ : SketchingOperator
        The operator S, of shape ``(n_components_, n_features_in_)``.
    n_components_ : int
        Number of components.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, where `X` has them.

    See Also
    --------
    quadric.sketch.circulant : the operator.

    Examples
    --------
    >>> import numpy as np
    >>> from quadric.adapters.sklearn import CirculantSketch
    >>> X = np.random.default_rng(0).standard_normal((10, 5000))
    >>> Z = CirculantSketch(n_components=1000).fit_transform(X)
    >>> Z.shape
    (10, 1000)
    >>> share = (Z**2).sum(axis=1) / (X**2).sum(axis=1)
    >>> bool(np.abs(share - 1).max() < 0.2)
    True
    """

    def _operator(self, m: int, n: int, seed: Any) -> sketch.SketchingOperator:
        return sketch.circulant(m, n, seed=seed)
