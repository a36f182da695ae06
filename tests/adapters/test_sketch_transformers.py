"""Random projections of features: scikit-learn's own checks, the operators, their inverse."""

import pickle
import re
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.random_projection import johnson_lindenstrauss_min_dim
from sklearn.utils.estimator_checks import parametrize_with_checks

import quadric as qd
from quadric.adapters.sklearn import (
    CirculantSketch,
    CountSketch,
    GaussianSketch,
    RademacherSketch,
    SparseSignSketch,
    SRHTSketch,
)

OPERATORS = {
    CirculantSketch: qd.sketch.circulant,
    CountSketch: qd.sketch.count_sketch,
    GaussianSketch: qd.sketch.gaussian,
    RademacherSketch: qd.sketch.rademacher,
    SRHTSketch: qd.sketch.srht,
    SparseSignSketch: qd.sketch.sparse_sign,
}
ALL = pytest.mark.parametrize("kind", OPERATORS, ids=lambda kind: kind.__name__)
EPS = np.finfo(np.float64).eps


def rows(samples: int = 12, features: int = 300, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((samples, features)).astype(dtype)


def bound(S: Any, X: Any, dtype: Any = np.float64) -> np.ndarray:
    """Each entry is a sum of d products, rounded at most 4 log2(d) + 8 times on its way.

    The circulant goes through Fourier transforms, so its error is relative to whole rows.
    """
    d = X.shape[1]
    dense = S.to_dense()
    size = np.linalg.norm(X, axis=1)[:, None] * np.linalg.norm(dense, axis=1)
    return (4 * np.log2(d) + 8) * np.finfo(dtype).eps * size


@parametrize_with_checks([kind(n_components=2) for kind in OPERATORS])
def test_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@ALL
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_the_operator(kind: Any, dtype: Any) -> None:
    X = rows(dtype=dtype)
    S = OPERATORS[kind](64, 300, seed=7)
    Z = kind(n_components=64, random_state=7).fit(X).transform(X)
    assert Z.dtype == dtype
    assert np.array_equal(Z, X @ S.T)
    error = np.abs(Z - X.astype(float) @ S.to_dense().T)
    assert (error <= bound(S, X.astype(float), dtype)).all()


@ALL
def test_sparse_and_dense_rows_agree(kind: Any) -> None:
    X = rows() * (np.random.default_rng(1).random((12, 300)) < 0.1)
    model = kind(n_components=64).fit(X)
    limit = 2 * bound(model.operator_, X)
    for form in (sparse.csr_array, sparse.csc_array, sparse.csr_matrix):
        Z = model.transform(form(X))
        Z = Z.toarray() if sparse.issparse(Z) else Z
        assert (np.abs(Z - model.transform(X)) <= limit).all()


@pytest.mark.parametrize("kind", [CountSketch, SparseSignSketch])
def test_sparse_rows_stay_sparse_unless_asked(kind: Any) -> None:
    X = sparse.random_array((20, 500), density=0.01, rng=0, format="csr", dtype=np.float32)
    kept = kind(n_components=96).fit_transform(X)
    assert sparse.issparse(kept)
    assert kept.dtype == np.float32
    dense = kind(n_components=96, dense_output=True).fit_transform(X)
    assert isinstance(dense, np.ndarray)
    assert np.abs(kept.toarray() - dense).max() <= 8 * np.finfo(np.float32).eps * abs(X).max()


@ALL
def test_lengths_stay(kind: Any) -> None:
    X = rows(50, 2000)
    Z = kind(n_components=512).fit_transform(X)
    share = np.einsum("ij,ij->i", Z, Z) / np.einsum("ij,ij->i", X, X)
    # The squared length of a projected row has the relative standard deviation sqrt(2 / m).
    assert np.abs(share - 1).max() < 5 * np.sqrt(2 / 512)


@ALL
def test_the_inverse_is_the_pseudo_inverse(kind: Any) -> None:
    X = rows()
    model = kind(n_components=64).fit(X)
    Z = model.transform(X)
    back = model.inverse_transform(Z)
    S = model.operator_.to_dense()
    error = 1e3 * EPS * np.linalg.cond(S)
    assert np.abs(back - Z @ np.linalg.pinv(S).T).max() <= error * np.abs(back).max()
    assert np.abs(model.transform(back) - Z).max() <= error * np.abs(Z).max()
    assert model.inverse_transform(Z.astype(np.float32)).dtype == np.float32
    with pytest.raises(ValueError, match="X must have 64 columns, got 63"):
        model.inverse_transform(Z[:, 1:])


@ALL
def test_auto_follows_johnson_and_lindenstrauss(kind: Any) -> None:
    X = np.zeros((5, 3000))
    model = kind(eps=0.3).fit(X)
    least = johnson_lindenstrauss_min_dim(5, eps=0.3)
    assert least <= model.n_components_ < least + 8
    assert model.operator_.shape == (model.n_components_, 3000)
    with pytest.raises(ValueError, match=r"n_components must be at most n_features = 100, got"):
        kind().fit(X[:, :100])


def test_names_of_features() -> None:
    model = GaussianSketch(n_components=3).fit(rows())
    assert list(model.get_feature_names_out()) == [f"gaussiansketch{i}" for i in range(3)]
    assert list(SRHTSketch(2).fit(rows()).get_feature_names_out()) == ["srhtsketch0", "srhtsketch1"]


@ALL
def test_seeds(kind: Any) -> None:
    X = rows()
    first = kind(n_components=64).fit_transform(X)
    assert np.array_equal(first, kind(n_components=64, random_state=0).fit_transform(X))
    assert not np.array_equal(first, kind(n_components=64, random_state=1).fit_transform(X))
    a, b = (
        kind(n_components=64, random_state=np.random.RandomState(3)).fit_transform(X)
        for _ in range(2)
    )
    assert np.array_equal(a, b)
    fresh = kind(n_components=64, random_state=None)
    assert not np.array_equal(fresh.fit_transform(X), clone(fresh).fit_transform(X))


@ALL
def test_pickled_it_projects_the_same(kind: Any) -> None:
    X = rows()
    model = kind(n_components=64).fit(X)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.transform(X), model.transform(X))


def test_in_a_pipeline() -> None:
    X = rows(400, 60)
    y = X @ np.ones(60)
    steps = make_pipeline(SRHTSketch(n_components=60), LinearRegression())
    assert steps.fit(X, y).score(X, y) > 0.999  # all directions are kept


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (GaussianSketch(n_components=0), "n_components must be at least 1, got 0"),
        (GaussianSketch(n_components=2.5), "n_components must be an integer, got 2.5"),
        (GaussianSketch(n_components="all"), "n_components must be one of 'auto'; got 'all'"),
        (GaussianSketch(n_components=301), "n_components must be at most n_features = 300, got"),
        (GaussianSketch(eps=1.5), "eps must be between 0 and 1"),
        (SparseSignSketch(n_components=20), "n_components must be a multiple of nnz = 8, got 20"),
        (SparseSignSketch(n_components=20, nnz=0), "nnz must be at least 1, got 0"),
        (SRHTSketch(n_components=20, random_state=-1), "seed must be"),
    ],
)
def test_what_is_wrong_is_said(model: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        model.fit(rows())
