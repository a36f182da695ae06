"""natural_gradient: (damping I + G^T G)^-1 g for a few gradients (Natural GaLore)."""

import numpy as np
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from quadric.woodbury import GradientWindow, natural_gradient
from tests import strategies as draws
from tests.bounds import assert_within
from tests.woodbury.problems import (
    EPS,
    KINDS,
    STORAGES,
    Gradients,
    Rows,
    gradients,
    make,
    storages,
)


@st.composite
def histories(draw: st.DrawFn) -> Gradients:
    storage = draw(storages)
    d = draw(draws.sizes(130))
    return make(
        draw(st.integers(1, 30)),
        d,
        d,
        storage=storage,
        log_damping=draw(st.integers(-7, 0)),
        kind=draw(st.sampled_from(KINDS)),
        log_scale=draw(st.integers(-1, 1) if storage == "float16" else st.integers(-4, 4)),
        seed=draw(draws.seeds),
    )


def truth(g: Gradients) -> Rows:
    rows = Rows(g.exact, g.damping, g.dtype, 1)
    rows.eps_gram = EPS  # the Gram matrix is made of float64 products
    return rows


def last_error(rows: Rows):
    """Return F^-1 times the last row by push-through, and its bound."""
    newest = np.eye(rows.m)[-1]
    return rows.combine(newest), rows.combine_error(newest)


@given(g=histories(), layout=draws.layouts, way=st.sampled_from(["none", "row", "copy", "gram"]))
def test_last_row(backend, g, layout, way):
    """Without a subtraction, whatever way the last row is named."""
    shown = draws.relayout(g.stored, layout)
    before = draws.whole(shown).tobytes()
    last, options = None, {}
    if way in ("row", "copy"):
        last = shown[-1] if way == "row" else g.stored[-1].copy()
        last = last.astype(g.dtype, copy=False)
    if way == "gram":
        options["gram"] = g.exact @ g.exact.T
    found = natural_gradient(shown, last, g.damping, backend=backend, **options)
    assert (found.shape, found.dtype) == ((g.d,), g.dtype)
    exact, limit = last_error(truth(g))
    target(assert_within(found, exact, limit))
    assert draws.whole(shown).tobytes() == before


@given(g=histories(), layout=draws.layouts)
def test_any_vector(backend, g, layout):
    x = g.vectors(1, g.d)
    shown = draws.relayout(x, layout)[0]
    before = draws.whole(shown).tobytes()
    found = natural_gradient(g.stored, shown, g.damping, backend=backend)
    rows = truth(g)
    target(assert_within(found, rows.solve(x)[0], rows.solve_error(x)[0]))
    assert draws.whole(shown).tobytes() == before


def test_push_through_against_subtraction(backend):
    """1e-5 of the result where the subtraction in float32 keeps nothing of it."""
    g = make(20, 800, 800, kind="correlated", log_damping=-6)
    rows = truth(g)
    exact, _ = last_error(rows)
    size = np.linalg.norm(exact.astype(float))
    found = natural_gradient(g.stored, None, g.damping, backend=backend) - exact
    assert np.linalg.norm(found.astype(float)) <= 1e-5 * size
    y = rows.solved(rows.g @ rows.g[-1]).astype(np.float32)
    subtracted = (g.stored[-1] - g.stored.T @ y) / np.float32(g.damping) - exact
    assert np.linalg.norm(subtracted.astype(float)) > size / 2


def test_gradients_that_float32_cannot_tell_apart(backend):
    """The Gram matrix is made of float64 products; the constant is 8, as in test_problems."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal((1, 20)) + 1e-4 * rng.standard_normal((3, 20))
    g, x = g.astype(np.float32), rng.standard_normal(20).astype(np.float32)
    rows = Rows(g.astype(float), 1e-9, np.dtype(np.float32), 1)
    found = natural_gradient(g, x, 1e-9, backend=backend)
    assert_within(found, rows.solve(x[None])[0], rows.solve_error(x)[0] * 8 / rows.roundings)


def test_it_is_a_window_of_the_sum(backend):
    rng = np.random.default_rng(0)
    g = gradients(rng, 25, 40, "correlated")
    window = GradientWindow(
        40, capacity=20, damping=1e-3, dtype="float64", normalize="sum", backend=backend
    )
    for row in g:
        step = window.push_and_solve(row)
    found = natural_gradient(g[-20:], g[-1], backend=backend)
    limit = Rows(g[-20:], 1e-3, np.dtype(float), 1).combine_error(np.eye(20)[-1])
    assert_within(found, step, 2 * limit)


def test_gram_is_believed(backend):
    """It is not computed again; float32 is taken as it is."""
    rng = np.random.default_rng(1)
    g = rng.standard_normal((5, 30))
    gram = g @ g.T
    a = natural_gradient(g, None, 0.1, gram=2 * gram, backend=backend)
    expected = np.linalg.solve(0.1 * np.eye(5) + 2 * gram, np.eye(5)[-1]) @ g
    assert_within(a, expected, 64 * EPS * np.linalg.cond(gram) * np.abs(expected).max())
    short = gram.astype(np.float32)
    np.testing.assert_array_equal(
        natural_gradient(g, None, 0.1, gram=short, backend=backend),
        natural_gradient(g, None, 0.1, gram=short.astype(float), backend=backend),
    )


@pytest.mark.parametrize("storage", STORAGES)
def test_threads_change_nothing(backend, storage):
    g = make(6, 40_000, 40_000, storage=storage)
    for last in (None, g.vectors(40_000)):
        one, two = (natural_gradient(g.stored, last, backend=backend, n_threads=n) for n in (1, 2))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("storage", STORAGES)
def test_torch_in_torch_out(backend, storage):
    torch = pytest.importorskip("torch")
    g = make(4, 20, 20, storage=storage, log_damping=-2)
    rows = torch.from_numpy(g.exact).to(getattr(torch, storage)).requires_grad_()
    found = natural_gradient(rows, damping=g.damping, backend=backend)
    assert isinstance(found, torch.Tensor)
    plain = natural_gradient(g.stored, damping=g.damping, backend=backend)
    np.testing.assert_array_equal(found.numpy(), plain)
