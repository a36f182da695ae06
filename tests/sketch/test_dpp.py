"""projection_dpp: its law by full enumeration, both ways of drawing from it, and its set-up."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from quadric.sketch import ProjectionDPP, projection_dpp
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, SIZES, assert_refused, shown
from tests.sketch.scores import chi_square, dpp_law, leverage, matrix

METHODS = ("rejection", "exact")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d"), [(6, 2), (7, 3), (8, 1), (5, 4), (4, 4)])
def test_law(backend, method, n, d):
    """3000 samples against ``det(Q_S)^2`` of every S."""
    a = matrix(n, d, spread=1.0, log_cond=3)
    found = ProjectionDPP(a, backend=backend).sample(3000, seed=1, method=method)
    chi_square([tuple(s) for s in found.tolist()], dpp_law(a))


@pytest.mark.parametrize("method", METHODS)
def test_law_of_a_large_matrix(backend, method):
    """Each row comes as often as its leverage says, each pair as ``l_i l_j - (q_i q_j)^2``.

    400 samples; five standard deviations of the count of ten halves of the rows.
    """
    a = matrix(2000, 12, spread=1.0)
    found = ProjectionDPP(a, backend=backend).sample(400, seed=2, method=method)
    assert (np.diff(found, axis=1) > 0).all()
    q = np.linalg.qr(a)[0]
    half = np.random.default_rng(0).random((10, 2000)) < 0.5
    for h in half:
        block = q[h].T @ q[h]  # the count in a set has this mean and variance
        mean, variance = np.trace(block), np.trace(block - block @ block)
        count = h[found].sum(axis=1)
        assert abs(count.mean() - mean) < 5 * np.sqrt(variance / 400)
        assert 0.6 < count.var() / variance < 1.5


@given(
    seed=draws.seeds,
    shape=st.sampled_from(((1, 1), (9, 3), (300, 5), (40, 40))),
    layout=draws.layouts,
    dtype=draws.dtypes,
    method=st.sampled_from(METHODS),
)
def test_samples_are_sets(backend, seed, shape, layout, dtype, method):
    a = matrix(*shape, dtype=dtype, seed=seed)
    shown = draws.relayout(a, layout)
    before = draws.whole(shown).tobytes()
    found = projection_dpp(shown, seed=seed, method=method, backend=backend)
    assert (found.shape, found.dtype) == ((shape[1],), np.int64)
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0
    assert found[-1] < shape[0]
    assert np.linalg.matrix_rank(a[found].astype(float), tol=0) == shape[1]
    assert draws.whole(shown).tobytes() == before


def test_low_rank(backend):
    """The law is that of the range; a row of zeros is never drawn."""
    a = matrix(7, 2, spread=1.0)
    a[3] = 0
    more = np.column_stack((a, a @ [1.0, 2.0], 0 * a[:, 0]))
    law = {s: q for s, q in dpp_law(a).items() if 3 not in s}
    for method in METHODS:
        found = projection_dpp(more, size=3000, seed=3, method=method, backend=backend)
        chi_square([tuple(s) for s in found.tolist()], law)


def test_repeated_rows_are_not_drawn_twice(backend):
    a = np.repeat(matrix(5, 3), 100, axis=0)
    found = projection_dpp(a, size=300, seed=4, backend=backend) // 100
    assert (np.diff(found, axis=1) > 0).all()


def test_set_up(backend):
    a = matrix(3000, 6, spread=1.0)
    process = ProjectionDPP(a, backend=backend)
    assert process.rank == 6
    # As in test_leverage, for a condition number of 10.
    assert_within(process.leverage, leverage(a), 32 * 10 * np.finfo(float).eps)
    sparse = ProjectionDPP(sp.csr_array(a), backend=backend)
    np.testing.assert_array_equal(process.sample(20, seed=5), sparse.sample(20, seed=5))


@pytest.mark.parametrize("method", METHODS)
def test_seeds(backend, method):
    a = matrix(5000, 8)
    process = ProjectionDPP(a, backend=backend, n_threads=1)
    many = process.sample(5, seed=6, method=method)
    np.testing.assert_array_equal(many[:3], process.sample(3, seed=6, method=method))
    np.testing.assert_array_equal(many[0], process.sample(seed=6, method=method))
    np.testing.assert_array_equal(
        many, projection_dpp(a, seed=6, size=5, method=method, backend=backend, n_threads=2)
    )
    assert len(np.unique(many, axis=0)) == 5
    assert (process.sample(seed=7, method=method) != many[0]).any()
    assert (process.sample(seed=None) != process.sample(seed=None)).any()
    assert process.sample(0).shape == (0, 8)


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("n", [9, 300])
def test_bad_matrices(backend, kind, n):
    if kind == "one entry less":
        return
    spoil, error = ARRAYS[kind]
    a = matrix(n, 3)
    for call in (projection_dpp, ProjectionDPP):
        assert_refused("Phi", lambda c=call: c(spoil(a), backend=backend), error, a.tobytes)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (9, 3), (900, 3)])
def test_nothing_to_draw(backend, shape):
    assert_refused("Phi", lambda: projection_dpp(np.zeros(shape), backend=backend), ValueError)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("method", v) for v in ("reject", None, 1)),
        *(("size", v) for v in SIZES if v is not None and v != 0),
        *(("seed", v) for v in (-1, 2**64, 1.5, "now")),
        *EXECUTION,
    ],
    ids=shown,
)
def test_bad_options(backend, option, value):
    options = {"backend": backend, option: value}
    assert_refused(option, lambda: projection_dpp(matrix(30, 3), **options))
