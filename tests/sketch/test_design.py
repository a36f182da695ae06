"""Designs for weighted least squares, and the polynomials that they are for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import chebyshev, hermite_e, laguerre, legendre

from quadric import LinAlgError
from quadric.sketch import (
    polynomial_basis,
    polynomial_degrees,
    projection_dpp,
    weighted_least_squares_design,
)
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, INF, NAN, SIZES, assert_refused, shown, spoiled
from tests.sketch.scores import leverage, matrix

EPS = float(np.finfo(float).eps)
RULES = ("optimal", "dpp", "repeated_dpp")
KINDS = ("legendre", "chebyshev", "hermite", "laguerre")


def nodes(kind: str, count: int):
    """Return Gauss nodes and weights of the probability measure of a kind."""
    rule = {
        "legendre": legendre.leggauss,
        "chebyshev": chebyshev.chebgauss,
        "hermite": hermite_e.hermegauss,
        "laguerre": laguerre.laggauss,
    }[kind]
    x, w = rule(count)
    return x, w / w.sum()


# ---- polynomials ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_orthonormal(kind):
    """By Gauss quadrature, exact for products; Laguerre's weights are right to 1e-12 only."""
    x, w = nodes(kind, 20)
    phi = polynomial_basis(x, 12, kind)
    assert_within((phi.T * w) @ phi, np.eye(13), 1e-10)
    assert (polynomial_basis(np.array([100.0]), 12, kind) > 0).all()


@pytest.mark.parametrize(
    ("kind", "series", "size"),
    [
        ("legendre", legendre.legval, lambda k: math.sqrt(2 * k + 1)),
        ("chebyshev", chebyshev.chebval, lambda k: math.sqrt(2) if k else 1.0),
        ("hermite", hermite_e.hermeval, lambda k: 1 / math.sqrt(math.factorial(k))),
        ("laguerre", laguerre.lagval, lambda k: (-1.0) ** k),
    ],
)
def test_against_numpy(kind, series, size):
    x = np.linspace(-1, 1, 41)
    found = polynomial_basis(x, 9, kind)
    for k in range(10):
        expected = size(k) * series(x, np.eye(10)[k])
        assert_within(found[:, k], expected, 1e3 * EPS * np.abs(expected).max())


@given(
    dimension=st.integers(1, 4),
    degree=st.integers(0, 5),
    index=st.sampled_from(("total", "tensor")),
    layout=draws.layouts,
    dtype=draws.dtypes,
)
def test_several_variables(dimension, degree, index, layout, dtype):
    """Columns are products of those in one variable."""
    x = np.random.default_rng(0).uniform(-1, 1, (7, dimension)).astype(dtype)
    shown = draws.relayout(x, layout)
    before = draws.whole(shown).tobytes()
    found = polynomial_basis(shown, degree, index=index)
    degrees = polynomial_degrees(dimension, degree, index=index)
    total = index == "total"
    columns = math.comb(dimension + degree, degree) if total else (degree + 1) ** dimension
    assert found.shape == (7, columns)
    assert found.dtype == dtype
    assert degrees.shape == (columns, dimension)
    assert len({tuple(row) for row in degrees.tolist()}) == columns
    assert (degrees.sum(1) if total else degrees).max() == degree
    assert (np.diff(degrees.sum(axis=1)) >= 0).all()
    single = [polynomial_basis(x[:, j].astype(float), degree) for j in range(dimension)]
    for column, row in zip(found.T, degrees, strict=True):
        expected = np.prod([single[j][:, k] for j, k in enumerate(row)], axis=0)
        assert_within(column, expected, 4 * np.finfo(dtype).eps * np.abs(expected).max())
    assert draws.whole(shown).tobytes() == before


def test_order_of_columns():
    assert polynomial_degrees(2, 1, index="tensor").tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert polynomial_degrees(3, 1).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_domain_and_types():
    x = np.linspace(2, 5, 30)
    expected = polynomial_basis((x - 3.5) / 1.5, 4)
    assert_within(polynomial_basis(x, 4, domain=(2, 5)), expected, 100 * EPS)
    found = polynomial_basis(torch.from_numpy(x), 4, domain=(2, 5))
    assert isinstance(found, torch.Tensor)
    assert_within(found.numpy(), expected, 100 * EPS)


@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_points(kind):
    if kind == "one entry less":
        return
    spoil, error = ARRAYS[kind]
    x = matrix(9, 2)
    assert_refused("points", lambda: polynomial_basis(spoil(x), 2), error, x.tobytes)


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
def test_no_points(shape):
    message = assert_refused("points", lambda: polynomial_basis(np.empty(shape), 2), ValueError)
    assert "at least 1" in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("degree", v) for v in (-1, 1.5, None, True, 10**9)),
        *(("kind", v) for v in ("Legendre", None)),
        *(("index", v) for v in ("all", None)),
        *(("domain", v) for v in ((1, 1), (2, 1), (0, NAN), (0,), 3, "ab")),
    ],
    ids=shown,
)
def test_bad_polynomials(option, value):
    options = {"degree": 2, option: value}
    assert_refused(option, lambda: polynomial_basis(matrix(9, 2), **options))


def test_bad_dimensions():
    for value in SIZES:
        assert_refused("dimension", lambda v=value: polynomial_degrees(v, 2))
    assert_refused("domain", lambda: polynomial_basis(np.ones(3), 2, "hermite", domain=(0, 1)))


# ---- designs -------------------------------------------------------------------------------------


def basis(n: int = 2001, degree: int = 7) -> np.ndarray:
    return polynomial_basis(np.linspace(-1, 1, n), degree)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [8, 16, 40])
def test_fits_what_it_can(backend, rule, size):
    """A function in the span comes back: exactly up to the condition of the weighted points."""
    phi = basis()
    design = weighted_least_squares_design(phi, size, rule, seed=1, backend=backend)
    assert len(design.indices) == len(design.weights) == size
    assert (np.diff(design.indices) >= 0).all()
    c = np.random.default_rng(0).standard_normal((8, 3))
    found = design.fit((phi @ c)[design.indices])
    w = np.sqrt(design.weights)[:, None]
    condition = np.linalg.cond(w * phi[design.indices])
    assert_within(found, c, 200 * EPS * condition * np.abs(c).max())
    single = design.fit((phi @ c[:, 0])[design.indices])
    assert single.shape == (8,)


@pytest.mark.parametrize("rule", RULES)
def test_weights_and_stability(backend, rule):
    phi = matrix(300, 4, spread=1.0)
    design = weighted_least_squares_design(phi, 12, rule, seed=2, backend=backend)
    scores = leverage(phi).astype(float)[design.indices]
    assert_within(design.weights * scores * 12 / 4, 1.0, 1e-12)
    q = np.linalg.qr(phi)[0][design.indices]
    gram = (q.T * design.weights) @ q
    assert_within(design.stability, np.linalg.norm(gram - np.eye(4), 2), 1e-12)
    assert design.tries == 1
    assert repr(design) == f"Design(size=12, stability={design.stability:.3g})"


@pytest.mark.parametrize("rule", RULES)
def test_gram_is_right_on_average(backend, rule):
    """``E[G] = I``: within five standard errors, entry by entry (a false alarm in 1e5)."""
    phi = matrix(60, 3, spread=1.0)
    q = np.linalg.qr(phi)[0]
    grams = []
    for seed in range(300):
        d = weighted_least_squares_design(phi, 6, rule, seed=seed, backend=backend)
        grams.append((q[d.indices].T * d.weights) @ q[d.indices])
    error = np.std(grams, axis=0) / np.sqrt(300)
    assert_within(np.mean(grams, axis=0), np.eye(3), 5 * error + 1e-12)


def test_dpp_designs_are_more_stable(backend):
    """On average over 60 draws of 16 points for 8 functions."""
    phi = basis()

    def typical(rule):
        return np.median(
            [
                weighted_least_squares_design(phi, 16, rule, seed=s, backend=backend).stability
                for s in range(60)
            ]
        )

    assert typical("repeated_dpp") < typical("dpp") < typical("optimal")


def test_repeated_dpp_is_that(backend):
    phi = basis()
    design = weighted_least_squares_design(phi, 24, "repeated_dpp", seed=3, backend=backend)
    sets = projection_dpp(phi, size=3, seed=3, backend=backend)
    np.testing.assert_array_equal(design.indices, np.sort(sets.reshape(-1)))


@pytest.mark.parametrize("rule", RULES)
def test_measure(backend, rule):
    """The points of a measure are those of rows scaled by the roots of its masses."""
    phi = basis(301, 3)
    mass = np.exp(-(np.linspace(-2, 2, 301) ** 2))
    mass[:50] = 0
    design = weighted_least_squares_design(phi, 12, rule, measure=mass, seed=4, backend=backend)
    scaled = phi * np.sqrt(mass * 301 / mass.sum())[:, None]
    plain = weighted_least_squares_design(scaled, 12, rule, seed=4, backend=backend)
    np.testing.assert_array_equal(design.indices, plain.indices)
    assert design.indices.min() >= 50
    expected = plain.weights * mass[design.indices] * 301 / mass.sum()
    assert_within(design.weights, expected, 1e-12 * expected)
    c = np.array([1.0, -2.0, 3.0, 0.5])
    assert_within(design.fit((phi @ c)[design.indices]), c, 1e-12)


def test_stability_on_request(backend):
    phi = basis()
    design = weighted_least_squares_design(phi, 32, stability=0.9, seed=5, backend=backend)
    assert design.stability <= 0.9
    again = weighted_least_squares_design(phi, 32, stability=0.9, seed=5, backend=backend)
    np.testing.assert_array_equal(design.indices, again.indices)
    with pytest.raises(LinAlgError, match=r"stability 0\.001 was not reached in 3 draws"):
        weighted_least_squares_design(phi, 32, stability=1e-3, max_tries=3, backend=backend)


def test_functions_types_and_threads(backend):
    t = np.linspace(-1, 1, 500)

    def functions(points):
        return polynomial_basis(points, 4)

    def call(basis, **options):
        return weighted_least_squares_design(basis, 10, seed=6, backend=backend, **options)

    expected = call(functions(t))
    np.testing.assert_array_equal(call(functions, points=t).indices, expected.indices)
    np.testing.assert_array_equal(call(functions(t), n_threads=2).indices, expected.indices)
    found = call(functions, points=torch.from_numpy(t))
    assert isinstance(found.indices, torch.Tensor)
    assert found.indices.tolist() == expected.indices.tolist()
    assert isinstance(found.fit(torch.exp(torch.from_numpy(t))[found.indices]), torch.Tensor)


def test_low_rank(backend):
    phi = basis(200, 3)
    more = np.column_stack((phi, phi[:, 1]))
    design = weighted_least_squares_design(more, 8, "repeated_dpp", seed=7, backend=backend)
    c = design.fit(phi[design.indices, 1])
    assert_within(more @ c, phi[:, 1], 1e-12)
    assert_within(c, [0, 0.5, 0, 0, 0.5], 1e-12)  # the minimum norm shares it out


@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_bases(backend, kind):
    if kind == "one entry less":
        return
    spoil, error = ARRAYS[kind]
    phi = basis(90, 2)

    def call(**options):
        return weighted_least_squares_design(spoil(phi), 6, backend=backend, **options)

    assert_refused("basis", call, error, phi.tobytes)
    if phi.shape == np.shape(spoil(phi)):
        assert_refused("basis", lambda: call(measure=np.ones(90)), error, phi.tobytes)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("size", v) for v in (2, 0, -1, 3.5, None)),
        *(("rule", v) for v in ("dpps", None)),
        *(("points", v) for v in (np.ones(90),)),
        *(("measure", v) for v in (np.ones(89), np.zeros(90), -np.ones(90), np.arange(90))),
        ("measure", spoiled(np.ones(90), NAN)),
        *(("stability", v) for v in (0, -1, NAN, INF, "good")),
        *(("max_tries", v) for v in SIZES),
        ("seed", -1),
        *EXECUTION,
    ],
    ids=shown,
)
def test_bad_options(backend, option, value):
    options = {"size": 6, "backend": backend, option: value}
    assert_refused(option, lambda: weighted_least_squares_design(basis(90, 2), **options))


def test_bad_calls(backend):
    def call(*arguments, **options):
        return weighted_least_squares_design(*arguments, backend=backend, **options)

    assert_refused("size", lambda: call(basis(90, 2), 7, "repeated_dpp"), ValueError)
    assert_refused("points", lambda: call(lambda x: x, 7), ValueError)
    assert_refused("basis", lambda: call(lambda x: None, 7, points=np.ones(9)), TypeError)
    assert_refused("basis", lambda: call(np.zeros((9, 2)), 7), ValueError)


@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_values(backend, kind):
    spoil, error = ARRAYS[kind]
    design = weighted_least_squares_design(basis(90, 2), 6, backend=backend)
    assert_refused("values", lambda: design.fit(spoil(np.ones(6))), error)


@pytest.mark.parametrize("mass", [1e-320, 1e-200, 1e200, 1e308])
def test_masses_whose_sum_overflows_or_vanishes(backend, mass):
    Phi = basis(201, 3)
    usual = weighted_least_squares_design(Phi, 12, backend=backend)
    found = weighted_least_squares_design(Phi, 12, measure=np.full(201, mass), backend=backend)
    np.testing.assert_array_equal(found.indices, usual.indices)
    assert_within(found.weights, usual.weights, 1e-10 * usual.weights)
