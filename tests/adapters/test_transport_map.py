"""TransportMap: scikit-learn's own checks, and that it maps as the theory says."""

import pickle
import re
from typing import Any, Self

import numpy as np
import pytest
import sklearn
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from quadric.adapters.sklearn import TransportMap

COSTS = ("sqeuclidean", "euclidean", "cityblock", "cosine")


def clouds(n: int = 60, m: int = 50, d: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d)), 2 * rng.standard_normal((m, d)) + 1


class Elsewhere(TransportMap):
    """With a target that is not the source; the checks do not give one."""

    def fit(self, X: Any, y: Any = None, *, sample_weight: Any = None) -> Self:
        target = 2.0 * np.asarray(X) if getattr(X, "dtype", None) in ("f4", "f8") else X
        return super().fit(
            X, target=target, sample_weight=sample_weight, target_weight=sample_weight
        )


# The checks compare to 1e-7 what is only solved to the tolerance.
@pytest.mark.parametrize(
    "estimator",
    [
        TransportMap(tol=1e-13),
        Elsewhere(reg=2.0, tol=1e-13),
        TransportMap(reg=5.0, cost="cityblock", tol=1e-13),
    ],
    ids=["smoothing", "mapping", "cityblock"],
)
@pytest.mark.filterwarnings("ignore")  # of scikit-learn, about the checks that it skips
def test_scikit_learn_checks(estimator: TransportMap) -> None:
    check_estimator(estimator)


@pytest.mark.parametrize("cost", COSTS)
def test_it_is_the_softmax_of_the_potentials(cost: str) -> None:
    X, Y = clouds()
    new = np.random.default_rng(1).standard_normal((7, 3))
    mapping = TransportMap(cost=cost).fit(X, target=Y)
    C, reg, result = cdist(new, Y, cost), mapping.reg_, mapping.result_
    expected = softmax((result.g - C) / reg, axis=1) @ Y
    assert np.abs(mapping.transform(new) - expected).max() < 1e-12 * np.abs(Y).max() / reg
    back = softmax((result.f - cdist(new, X, cost)) / reg, axis=1) @ X
    assert np.abs(mapping.inverse_transform(new) - back).max() < 1e-12 * np.abs(X).max() / reg


@pytest.mark.parametrize("cost", COSTS)
def test_fitted_points_go_to_the_barycentric_projection(cost: str) -> None:
    X, Y = clouds()
    mapping = TransportMap(cost=cost).fit(X, target=Y)
    projected = mapping.result_.barycentric(Y)
    moved = mapping.transform(X)
    assert np.abs(moved - projected).max() < 1e-10
    # Mass is conserved: the mean is that of the target, up to the marginal error.
    assert np.abs(moved.mean(axis=0) - Y.mean(axis=0)).max() < 1e-8 * np.abs(Y).max()


def test_gaussians_are_mapped_as_bures_says() -> None:
    """To a Gaussian with 3 times the spread: T(x) = 3 x + shift, up to sampling and bias."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((2000, 1)), 3 * rng.standard_normal((2000, 1)) + 5
    mapping = TransportMap(reg=0.05).fit(X, target=Y)
    new = np.linspace(-1, 1, 9)[:, None]
    assert np.abs(mapping.transform(new) - (3 * new + 5)).max() < 0.4
    assert np.abs(mapping.inverse_transform(mapping.transform(new)) - new).max() < 0.05


def test_far_points_go_to_the_border_of_the_target() -> None:
    X, Y = clouds()
    far = TransportMap(reg=0.1).fit(X, target=Y).transform(1e6 * np.eye(3))
    assert np.isfinite(far).all()
    assert np.array_equal(far.argmax(axis=1), [0, 1, 2])
    assert np.abs(np.diag(far) - Y.max(axis=0)).max() < 1e-12


def test_points_without_mass_do_not_count() -> None:
    X, Y = clouds()
    a, b = np.arange(60.0) % 3, np.arange(50.0) % 2
    whole = TransportMap(tol=1e-12).fit(X, target=Y, sample_weight=a, target_weight=b)
    part = TransportMap(tol=1e-12).fit(
        X[a > 0], target=Y[b > 0], sample_weight=a[a > 0], target_weight=b[b > 0]
    )
    assert whole.reg_ == pytest.approx(part.reg_, rel=1e-14)
    assert np.abs(whole.transform(X) - part.transform(X)).max() < 1e-8
    assert np.abs(whole.inverse_transform(Y) - part.inverse_transform(Y)).max() < 1e-8


def test_the_default_reg_does_not_see_shifts_and_follows_the_scale() -> None:
    X, Y = clouds()
    reg = TransportMap().fit(X, target=Y).reg_
    assert reg == pytest.approx(0.05 * (X.var(axis=0).sum() + Y.var(axis=0).sum()))
    assert TransportMap().fit(X + 9, target=Y - 9).reg_ == pytest.approx(reg)
    assert TransportMap().fit(3 * X, target=3 * Y).reg_ == pytest.approx(9 * reg)
    assert TransportMap().fit(np.ones((4, 2)), target=np.ones((3, 2))).reg_ == 1.0


def test_unbalanced_leaves_an_outlier_alone() -> None:
    X, Y = clouds()
    Y = np.vstack([Y, [[100.0, 100.0, 100.0]]])
    balanced = TransportMap(reg=0.5).fit(X, target=Y).transform(X)
    unbalanced = TransportMap(reg=0.5, unbalanced=10.0).fit(X, target=Y).transform(X)
    assert balanced.max() > 50 > 10 > unbalanced.max()


def test_float32_stays_float32() -> None:
    X, Y = (p.astype(np.float32) for p in clouds())
    mapping = TransportMap().fit(X, target=Y)
    assert mapping.target_.dtype == mapping.transform(X).dtype == np.float32
    double = mapping.transform(X.astype(np.float64))
    assert double.dtype == np.float64
    assert np.array_equal(double, mapping.transform(X))
    exact = TransportMap(reg=mapping.reg_).fit(X.astype(float), target=Y.astype(float))
    assert np.abs(double - exact.transform(X.astype(float))).max() < 1e-2


def test_the_arrays_given_are_copied_and_left_alone() -> None:
    X, Y = clouds()
    before = X.copy(), Y.copy()
    mapping = TransportMap().fit(X, target=Y)
    moved = mapping.transform(X)
    assert np.array_equal(X, before[0])
    assert np.array_equal(Y, before[1])
    X[:], Y[:] = 0, 0
    assert np.array_equal(mapping.transform(before[0]), moved)


def test_pickled_it_maps_the_same() -> None:
    X, Y = clouds()
    mapping = TransportMap().fit(X, target=Y)
    again = pickle.loads(pickle.dumps(mapping))
    assert np.array_equal(again.transform(X), mapping.transform(X))
    assert np.array_equal(again.result_.plan(), mapping.result_.plan())


def test_names_of_features() -> None:
    X, Y = clouds()
    mapping = TransportMap().fit(X, target=Y)
    assert list(mapping.get_feature_names_out()) == ["x0", "x1", "x2"]
    assert list(mapping.get_feature_names_out(["r", "g", "b"])) == ["r", "g", "b"]


def test_in_a_pipeline_the_labels_pass_by() -> None:
    X, Y = clouds()
    labels = (X[:, 0] > 0).astype(int)
    with sklearn.config_context(enable_metadata_routing=True):
        steps = make_pipeline(
            StandardScaler(), TransportMap().set_fit_request(target=True), LogisticRegression()
        )
        assert clone(steps).fit(X, labels, target=Y).score(X, labels) > 0.9


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"target": np.ones((5, 2))}, "target must have the 3 features of X, got 2"),
        ({}, {"target": np.full((5, 3), np.nan)}, "Input target contains NaN"),
        ({}, {"y": clouds()[1]}, "target must be named, fit(X, target=...)"),
        ({}, {"sample_weight": np.ones(5)}, "sample_weight must have shape (60,), got (5,)"),
        ({}, {"sample_weight": -np.ones(60)}, "sample_weight must not be negative, got -1"),
        (
            {},
            {"target": clouds()[1], "target_weight": np.zeros(50)},
            "target_weight must be above zero for one point at least",
        ),
        ({"reg": -1.0}, {}, "reg must be finite and above 0, got -1.0"),
        ({"reg": "small"}, {}, "reg must be one of 'auto'"),
        ({"cost": "taxi"}, {}, "cost must be one of"),
        ({"method": "simplex"}, {}, "method must be one of"),
        ({"tol": -1.0}, {}, "tol must be"),
        ({"max_iter": 0}, {}, "max_iter must be"),
    ],
)
def test_what_is_wrong_is_said(
    options: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        TransportMap(**options).fit(clouds()[0], **arguments)


def test_new_points_must_fit() -> None:
    X, Y = clouds()
    mapping = TransportMap().fit(X, target=Y)
    for move in (mapping.transform, mapping.inverse_transform):
        with pytest.raises(ValueError, match="X has 2 features"):
            move(X[:, :2])
        with pytest.raises(ValueError, match="contains NaN"):
            move(np.full((1, 3), np.nan))
