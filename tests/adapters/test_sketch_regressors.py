"""Regressors: scikit-learn's own checks, agreement with its estimators, streams of rows."""

import copy
import itertools
import pickle
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, QuantileRegressor, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import quadric as qd
from quadric.adapters.sklearn import LpRegressor, SketchedRegressor, SketchedRidge
from tests.strategies import seeds

EPS = np.finfo(np.float64).eps
BOTH = pytest.mark.parametrize("kind", [SketchedRegressor, SketchedRidge])


def problem(
    n: int = 1500, d: int = 8, k: int = 0, *, cond: float = 100.0, noise: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((n, d)))[0]
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    X = np.sqrt(n) * (basis * np.logspace(0, -np.log10(cond), d)) @ turn + 3.0
    shape = (n, k) if k else (n,)
    y = X @ rng.standard_normal((d, k) if k else d) + noise * rng.standard_normal(shape) + 2.0
    return X, y


def predicted_alike(ours: Any, theirs: Any, X: Any, c: float = 100.0, eps: float = EPS) -> None:
    """Assert that two estimators predict the same up to c eps condition.

    Predictions on the rows of the fit are better determined than coefficients: their error is c eps
    times the condition number times the size of what is predicted.
    """
    a, b = ours.predict(X), theirs.predict(X)
    dense = X.toarray() if sparse.issparse(X) else X
    bound = c * eps * np.linalg.cond(np.c_[dense, np.ones(len(dense))]) * np.abs(b).max()
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= bound


@parametrize_with_checks([SketchedRegressor(), SketchedRidge(), LpRegressor(), LpRegressor(p=2.0)])
def test_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("form", [np.ascontiguousarray, np.asfortranarray, sparse.csr_array,
                                  sparse.csc_matrix])  # fmt: skip
@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_it_agrees_with_scikit_learn(
    intercept: bool, weighted: bool, k: int, form: Any, alpha: float
) -> None:
    X, y = problem(k=k)
    X *= np.random.default_rng(1).random(X.shape) < 0.5
    weights = np.random.default_rng(2).random(len(y)) if weighted else None
    if alpha:
        ours: Any = SketchedRidge(alpha, fit_intercept=intercept)
        theirs: Any = Ridge(alpha, fit_intercept=intercept, solver="cholesky")
    else:
        ours = SketchedRegressor(fit_intercept=intercept)
        theirs = LinearRegression(fit_intercept=intercept)
    given = form(X)
    ours.fit(given, y, sample_weight=weights)
    theirs.fit(X, y, sample_weight=weights)
    assert ours.coef_.shape == theirs.coef_.shape
    assert np.shape(ours.intercept_) == np.shape(theirs.intercept_)
    # X has a condition number near 10 here, and Cholesky squares it.
    assert np.abs(ours.coef_ - theirs.coef_).max() <= 1e4 * EPS * np.abs(theirs.coef_).max()
    predicted_alike(ours, theirs, given)
    assert ours.rank_ == 8
    assert ours.backward_error_ <= 4 * EPS
    chunked = clone(ours)
    for i in range(0, len(y), 400):
        part = slice(i, i + 400)
        rows = X[part] if isinstance(given, np.ndarray) else sparse.csr_array(X[part])
        chunked.partial_fit(rows, y[part], None if weights is None else weights[part])
    assert chunked.coef_.shape == theirs.coef_.shape
    assert np.abs(chunked.coef_ - theirs.coef_).max() <= 1e4 * EPS * np.abs(theirs.coef_).max()
    predicted_alike(chunked, theirs, given)
    assert chunked.rank_ == 8
    assert chunked.backward_error_ <= 10 * EPS


@pytest.mark.parametrize("log_cond", [2, 6, 10, 13])
def test_it_is_backward_stable(log_cond: int) -> None:
    X, y = problem(4000, 20, cond=10.0**log_cond, noise=1e-3)
    model = SketchedRegressor(fit_intercept=False).fit(X, y)
    assert model.backward_error_ <= 4 * EPS
    exact = qd.sketch.lstsq_backward_error(X, y, model.coef_, exact=True)
    assert exact <= 10 * EPS  # the estimate is within a small factor
    streamed = SketchedRegressor(fit_intercept=False).partial_fit(X, y)
    # Householder triangles err by a small multiple of d eps, whatever the condition.
    assert qd.sketch.lstsq_backward_error(X, y, streamed.coef_, exact=True) <= 20 * EPS


def test_far_from_the_origin() -> None:
    X, y = problem(noise=0.0)
    model = SketchedRegressor().fit(X + 1e8, y)
    # The shift itself rounds X by 1e8 eps.
    assert np.abs(model.coef_ - LinearRegression().fit(X, y).coef_).max() < 1e3 * 1e8 * EPS


def test_a_constant_column_has_no_coefficient() -> None:
    X, y = problem()
    X[:, 3] = 0.1
    for weights in (None, np.random.default_rng(0).random(len(y))):
        model = SketchedRegressor().fit(X, y, weights)
        assert abs(model.coef_[3]) <= 10 * EPS * np.abs(model.coef_).max()
        assert model.rank_ == 7
        predicted_alike(model, LinearRegression().fit(X, y, weights), X)


@pytest.mark.parametrize("stream", [False, True])
def test_dependent_columns_get_the_shortest_coefficients(stream: bool) -> None:
    X, y = problem()
    X = np.c_[X, X[:, 0] - X[:, 1]]
    model = SketchedRegressor()
    model = model.partial_fit(X, y) if stream else model.fit(X, y)
    theirs = LinearRegression().fit(X, y)
    assert model.rank_ == theirs.rank_ == 8
    assert np.abs(model.coef_ - theirs.coef_).max() <= 1e5 * EPS * np.abs(theirs.coef_).max()


@pytest.mark.parametrize("stream", [False, True])
def test_fewer_rows_than_columns(stream: bool) -> None:
    X, y = problem(30, 8)
    X, y = X[:5], y[:5]
    model = SketchedRegressor()
    model = model.partial_fit(X, y) if stream else model.fit(X, y)
    theirs = LinearRegression().fit(X, y)
    assert np.abs(model.coef_ - theirs.coef_).max() <= 1e5 * EPS * np.abs(theirs.coef_).max()
    assert np.abs(model.predict(X) - y).max() <= 1e4 * EPS * np.abs(y).max()


@BOTH
def test_the_rows_are_copied_no_more_than_needed(kind: Any, monkeypatch: Any) -> None:
    seen: list[Any] = []
    solve = qd.sketch.lstsq

    def spy(A: Any, b: Any, **options: Any) -> Any:
        seen.append(A)
        return solve(A, b, **options)

    monkeypatch.setattr(qd.sketch, "lstsq", spy)
    X, y = problem()
    before = X.copy(), y.copy()
    kind(fit_intercept=False).fit(X, y)
    assert np.shares_memory(seen.pop(), X)
    for layout in "CF":
        kind().fit(np.asarray(X, order=layout), y)
        A = seen.pop()
        assert A.flags[f"{layout}_CONTIGUOUS"]
        assert not np.shares_memory(A, X)
    few = sparse.random_array((1500, 8), density=0.1, rng=0, format="csr")
    kind().fit(few, y)
    A = seen.pop()
    assert sparse.issparse(A)
    assert A.nnz <= few.nnz + 1500 + 8
    kind(fit_intercept=False).fit(few, y, np.ones(1500))
    assert seen.pop().nnz == few.nnz
    assert np.array_equal(X, before[0])
    assert np.array_equal(y, before[1])


@BOTH
def test_float32_stays_float32(kind: Any) -> None:
    X, y = problem(cond=10.0)
    double = kind().fit(X, y)
    for fit in ("fit", "partial_fit"):
        single = getattr(kind(), fit)(X.astype(np.float32), y.astype(np.float32))
        assert single.coef_.dtype == single.intercept_.dtype == np.float32
        assert single.predict(X.astype(np.float32)).dtype == np.float32
        predicted_alike(single, double, X.astype(np.float32), eps=np.finfo(np.float32).eps)


def test_integers_become_floats() -> None:
    X = np.arange(60).reshape(30, 2) ** 2 % 17
    y = X @ [2, -3] + 5
    model = SketchedRegressor().fit(X, y)
    assert np.abs(model.coef_ - [2, -3]).max() < 1e3 * EPS
    assert abs(model.intercept_ - 5) < 1e4 * EPS


@BOTH
@given(seed=seeds, cuts=st.lists(st.integers(0, 3000), max_size=6), sketched=st.booleans())
def test_chunks_leave_the_bits_alone(kind: Any, seed: int, cuts: list[int], sketched: bool) -> None:
    X, y = problem(3000, 5, 2, seed=seed)
    weights = np.random.default_rng(seed).random(3000) + 0.1
    options = {"stream": "sketch" if sketched else "exact", "random_state": seed}
    whole = kind(**options).partial_fit(X, y, weights)
    parts = kind(**options)
    edges = sorted({0, *cuts, 3000})
    for i, j in itertools.pairwise(edges):
        parts.partial_fit(X[i:j], y[i:j], weights[i:j])
        if i % 2:
            assert np.isfinite(parts.coef_).all()  # a look does not disturb the stream
    assert np.array_equal(parts.coef_, whole.coef_)
    assert np.array_equal(parts.intercept_, whole.intercept_)


def test_a_sketched_stream_is_nearly_optimal() -> None:
    X, y = problem(20_000, 8, noise=1.0)
    best = np.square(y - LinearRegression().fit(X, y).predict(X)).sum()
    for seed in range(3):
        model = SketchedRegressor(stream="sketch", random_state=seed)
        for part in np.array_split(np.arange(20_000), 7):
            model.partial_fit(X[part], y[part])
        loss = np.square(y - model.predict(X)).sum() / best
        # Expected are 1 + p / m = 1.03; by chance three times that excess.
        assert 1.0 <= loss < 1.1
        assert np.isnan(model.backward_error_)


def test_a_stream_can_be_copied_and_pickled_midway() -> None:
    X, y = problem()
    for stream in ("exact", "sketch"):
        model = SketchedRegressor(stream=stream).partial_fit(X[:700], y[:700])
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        expected = model.partial_fit(X[700:], y[700:]).coef_
        for twin in copies:
            assert not np.array_equal(twin.coef_, expected)
            assert np.array_equal(twin.partial_fit(X[700:], y[700:]).coef_, expected)


def test_a_bad_chunk_changes_nothing() -> None:
    X, y = problem()
    model = SketchedRegressor().partial_fit(X[:700], y[:700])
    spoiled = X[700:].copy()
    spoiled[3, 2] = np.nan
    for chunk in (
        (spoiled, y[700:]),
        (X[700:, 1:], y[700:]),
        (X[700:], y[700:, None]),
        (X[700:], y[701:]),
        (X[700:], y[700:], -np.ones(800)),
    ):
        with pytest.raises(ValueError, match=r"NaN|features|must have shape|inconsistent|negative"):
            model.partial_fit(*chunk)
    expected = SketchedRegressor().partial_fit(X, y).coef_
    assert np.array_equal(model.partial_fit(X[700:], y[700:]).coef_, expected)


def test_fit_begins_anew_and_ends_a_stream() -> None:
    X, y = problem()
    model = SketchedRegressor().partial_fit(X[:700], y[:700] + 9.0)
    assert np.array_equal(model.fit(X, y).coef_, SketchedRegressor().fit(X, y).coef_)
    with pytest.warns(UserWarning, match="^partial_fit begins anew"):
        model.partial_fit(X[700:], y[700:])
    assert np.array_equal(model.coef_, SketchedRegressor().partial_fit(X[700:], y[700:]).coef_)


def test_the_same_seed_gives_the_same_bits() -> None:
    X, y = problem()
    model = SketchedRegressor(method="sketch", random_state=3)
    first = model.fit(X, y).coef_
    assert np.array_equal(first, clone(model).fit(X, y).coef_)
    assert not np.array_equal(first, model.set_params(random_state=4).fit(X, y).coef_)


def test_in_a_pipeline_and_a_search() -> None:
    X, y = problem()
    steps = make_pipeline(StandardScaler(), SketchedRidge(1e-3))
    assert cross_val_score(steps, X, y, cv=3).min() > 0.9


@BOTH
@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"method": "guess"}, {}, "method must be one of"),
        ({"operator": "dice"}, {}, "operator must be"),
        ({"tol": -1.0}, {}, "tol must be"),
        ({"max_iter": 0}, {}, "max_iter must be"),
        ({"sketch_size": 3}, {}, "sketch_size must be"),
        ({"rcond": -1.0}, {}, "rcond must be"),
        ({"backend": "fortran"}, {}, "backend must be one of"),
        ({"n_threads": 0}, {}, "n_threads must be at least 1"),
        ({}, {"sample_weight": np.ones(5)}, "sample_weight must have shape (1500,), got (5,)"),
        ({}, {"sample_weight": -np.ones(1500)}, "sample_weight must not be negative, got -1"),
        ({}, {"sample_weight": np.zeros(1500)}, "sample_weight must be above zero"),
        ({}, {"sample_weight": np.full(1500, np.nan)}, "Input sample_weight contains NaN"),
    ],
)
def test_what_is_wrong_is_said(kind: Any, options: Any, arguments: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        kind(**options).fit(*problem(), **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": "river"}, "stream must be one of 'exact', 'sketch'; got 'river'"),
        ({"stream": "sketch", "sketch_size": 5}, "sketch_size must be at least 10, got 5"),
        ({"stream": "sketch", "nnz": 0}, "nnz must be at least 1, got 0"),
        ({"alpha": -1.0}, "alpha must be finite and at least 0, got -1.0"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        SketchedRidge(**options).partial_fit(*problem())


def test_not_fitted_yet() -> None:
    assert not hasattr(SketchedRegressor(), "coef_")
    with pytest.raises(AttributeError, match="has no coef_ before it is fitted"):
        _ = SketchedRegressor().coef_


def test_least_absolute_deviations_ignore_outliers() -> None:
    X, y = problem(cond=3.0, noise=0.0)
    spoiled = y.copy()
    spoiled[::7] += 100.0
    model = LpRegressor(p=1.0, sampling=None).fit(X, spoiled)
    assert np.abs(model.predict(X) - y).max() < 1e-6
    sampled = LpRegressor(p=1.0, sketch_size=700).fit(X, spoiled)
    assert np.abs(sampled.predict(X) - y).max() < 1e-6
    assert np.abs(LinearRegression().fit(X, spoiled).predict(X) - y).max() > 10


def test_the_median_agrees_with_linear_programming() -> None:
    X, y = problem(200, 3, cond=3.0)
    ours = LpRegressor(p=1.0, sampling=None).fit(X, y)
    theirs = QuantileRegressor(quantile=0.5, alpha=0.0).fit(X, y)
    ours_sum, theirs_sum = (np.abs(y - m.predict(X)).sum() for m in (ours, theirs))
    assert ours_sum <= theirs_sum * (1 + 1e-6)
    assert ours.objective_ == pytest.approx(ours_sum, rel=1e-9)


def test_p_of_two_is_least_squares() -> None:
    X, y = problem(cond=3.0)
    weights = np.random.default_rng(0).random(len(y))
    ours = LpRegressor(p=2.0, sampling=None).fit(X, y, weights)
    theirs = LinearRegression().fit(X, y, weights)
    assert np.abs(ours.predict(X) - theirs.predict(X)).max() < 1e-6
    plain = LpRegressor(p=2.0, sampling=None, fit_intercept=False).fit(X, y)
    assert plain.intercept_ == 0.0


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0])
def test_weights_count_rows(p: float) -> None:
    X, y = problem(300, 3, cond=3.0)
    times = np.arange(300) % 3
    a = LpRegressor(p=p, sampling=None).fit(X, y, times)
    b = LpRegressor(p=p, sampling=None).fit(np.repeat(X, times, axis=0), np.repeat(y, times))
    assert a.objective_ == pytest.approx(b.objective_, rel=1e-6)
    assert np.abs(a.predict(X) - b.predict(X)).max() < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.5}, "p must be finite and between 1 and 8, got 0.5"),
        ({"p": 9.0}, "p must be finite and between 1 and 8, got 9.0"),
        ({"sampling": "dice"}, "sampling must be one of"),
        ({"sketch_size": 2}, "sketch_size must be"),
    ],
)
def test_what_is_wrong_with_p_is_said(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        LpRegressor(**options).fit(*problem())
