"""The entropic map against a softmax in long double, and what it refuses."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

import quadric as qd
from tests.refusals import ARRAYS, EXECUTION, POSITIVE, assert_refused, shown

COSTS = ("sqeuclidean", "euclidean", "cityblock", "cosine")


def reference(
    x: np.ndarray, y: np.ndarray, g: np.ndarray, reg: float, values: np.ndarray, cost: str
) -> np.ndarray:
    C = cdist(x.astype(np.float64), y.astype(np.float64), cost).astype(np.longdouble)
    exponents = (g - C) / reg
    weights = np.exp(exponents - exponents.max(axis=1, keepdims=True))
    return (weights @ values.astype(np.longdouble)) / weights.sum(axis=1, keepdims=True)


def problem(
    seed: int, n: int, m: int, d: int, dtype: Any = np.float64
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((m, d)).astype(dtype)
    return x, y, rng.standard_normal(m)


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 70),
    m=st.integers(1, 70),
    d=st.integers(1, 40),
    cost=st.sampled_from(COSTS),
    dtype=st.sampled_from([np.float32, np.float64]),
    log_reg=st.floats(-3, 1),
)
def test_it_is_a_softmax(
    backend: str, seed: int, n: int, m: int, d: int, cost: str, dtype: Any, log_reg: float
) -> None:
    x, y, g = problem(seed, n, m, d, dtype)
    reg = d * 10**log_reg
    moved = qd.transport.entropic_map(x, y, g, reg, cost=cost, backend=backend)
    exact = reference(x, y, g, reg, y, cost)
    assert moved.dtype == dtype
    # An error of delta in an exponent moves the mean by at most 2 delta times the largest value.
    # Exponents are off by the rounding of costs of size |x|^2 + |y|^2, in d terms.
    eps = np.finfo(dtype).eps
    largest = np.abs(y).max()
    size = 4 * d * max(np.abs(x).max(), largest) ** 2 + np.abs(g).max() + 2
    bound = 2 * largest * (4 + d) * eps * size / reg + 8 * eps * largest
    assert np.abs(moved - exact).max() <= bound


@pytest.mark.parametrize("cost", COSTS)
def test_layouts_and_threads_do_not_matter(backend: str, cost: str) -> None:
    x, y, g = problem(0, 150, 130, 5)
    options: dict[str, Any] = {"cost": cost, "backend": backend}
    moved = qd.transport.entropic_map(x, y, g, 0.1, n_threads=1, **options)
    assert np.array_equal(moved, qd.transport.entropic_map(x, y, g, 0.1, n_threads=3, **options))
    wide = np.full((150, 15), np.nan)
    wide[:, 4:14:2] = x
    strided = qd.transport.entropic_map(
        wide[:, 4:14:2], np.asfortranarray(y), g[::-1].copy()[::-1], 0.1, **options
    )
    assert np.array_equal(moved, strided)


def test_shapes_of_values(backend: str) -> None:
    x, y, g = problem(0, 20, 30, 3)
    whole = qd.transport.entropic_map(x, y, g, 0.5, values=y, backend=backend)
    for k in range(3):
        one = qd.transport.entropic_map(x, y, g, 0.5, values=y[:, k].copy(), backend=backend)
        assert one.shape == (20,)
        assert np.abs(one - whole[:, k]).max() < 1e-14
    single = qd.transport.entropic_map(x, y, g, 0.5, values=y.astype(np.float32), backend=backend)
    assert single.dtype == np.float32
    assert qd.transport.entropic_map(x[:0], y, g, 0.5, backend=backend).shape == (0, 3)


def test_points_without_mass_are_as_if_not_there(backend: str) -> None:
    x, y, g = problem(0, 20, 30, 3)
    g[::3] = -np.inf
    there = g > -np.inf
    moved = qd.transport.entropic_map(x, y, g, 0.5, backend=backend)
    part = qd.transport.entropic_map(x, y[there], g[there], 0.5, backend=backend)
    assert np.array_equal(moved, part)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("far", [1e3, 1e6, 1e12])
def test_far_points_go_to_the_border_and_disturb_nobody(
    backend: str, dtype: Any, cost: str, far: float
) -> None:
    y = np.array([[-1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype)
    x = far * np.array([[1, 0], [0, 1], [-1, 0]], dtype)
    near = np.random.default_rng(0).random((20, 2)).astype(dtype)
    options: dict[str, Any] = {"cost": cost, "backend": backend}
    moved = qd.transport.entropic_map(np.vstack([x, near]), y, np.zeros(3), 1e-2, **options)
    if dtype == np.float64 or cost == "cosine" or far < 1e12:
        assert np.abs(moved[:3] - y[[1, 2, 0]]).max() < 1e-5
    alone = qd.transport.entropic_map(near, y, np.zeros(3), 1e-2, **options)
    assert np.abs(moved[3:] - alone).max() < 1e5 * np.finfo(dtype).eps


def test_costs_that_overflow(backend: str) -> None:
    x, y, g = problem(0, 6, 7, 3)
    assert_refused("x and y", lambda: qd.transport.entropic_map(1e200 * x, y, g, 0.5))
    moved = qd.transport.entropic_map(1e200 * x, y, g, 0.5, cost="cityblock", backend=backend)
    assert np.isfinite(moved).all()


def test_other_arrays_come_back_as_they_came() -> None:
    torch = pytest.importorskip("torch")
    x, y, g = problem(0, 20, 30, 3)
    moved = qd.transport.entropic_map(*map(torch.from_numpy, (x, y, g)), 0.5)
    assert isinstance(moved, torch.Tensor)
    assert np.array_equal(moved.numpy(), qd.transport.entropic_map(x, y, g, 0.5))


@pytest.mark.parametrize("name", ["x", "y", "values"])
@pytest.mark.parametrize("way", ARRAYS)
def test_bad_arrays(name: str, way: str) -> None:
    x, y, g = problem(0, 6, 7, 3)
    arguments = {"x": x, "y": y, "g": g, "reg": 0.5, "values": y.copy()}
    spoil, error = ARRAYS[way]
    arguments[name] = spoil(arguments[name])
    if name == "values" and way in ("one entry less", "none"):
        return  # fewer values per point are fine, and none means y
    first = "x and y" if way == "one entry less" else name
    before = x.copy(), y.copy(), g.copy()
    assert_refused(first, lambda: qd.transport.entropic_map(**arguments), error)
    assert all(map(np.array_equal, (x, y, g), before))


@pytest.mark.parametrize(
    "g",
    [np.zeros(6), np.zeros((7, 1)), np.full(7, np.nan), np.full(7, np.inf), np.full(7, -np.inf)],
)
def test_bad_potentials(g: np.ndarray) -> None:
    x, y, _ = problem(0, 6, 7, 3)
    assert_refused("g", lambda: qd.transport.entropic_map(x, y, g, 0.5), ValueError)


@pytest.mark.parametrize(
    ("name", "value"),
    [*[("reg", v) for v in POSITIVE], *EXECUTION, ("cost", "taxi"), ("cost", None)],
    ids=shown,
)
def test_bad_options(name: str, value: Any) -> None:
    x, y, g = problem(0, 6, 7, 3)
    arguments = {"reg": 0.5, name: value}
    assert_refused(name, lambda: qd.transport.entropic_map(x, y, g, **arguments))


def test_types_that_differ() -> None:
    x, y, g = problem(0, 6, 7, 3)
    assert_refused("y", lambda: qd.transport.entropic_map(x, y.astype("f4"), g, 0.5), TypeError)
    assert_refused("g", lambda: qd.transport.entropic_map(x, y, g.astype("f4"), 0.5), TypeError)
