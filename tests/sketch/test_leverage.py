"""leverage_scores: exact for any condition number that a QR factorization can bear."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, target
from hypothesis import strategies as st

from quadric import LinAlgError
from quadric.sketch import leverage_scores
from tests import strategies as draws
from tests.bounds import assert_within
from tests.refusals import ARRAYS, EXECUTION, INF, NAN, assert_refused, shown
from tests.sketch.scores import condition, leverage, matrices, matrix


def bound(a: np.ndarray) -> float:
    """Return ``32 eps cond``.

    The basis turns by d eps cond in a factorization of backward error d eps, and a score by twice
    that; rounding adds up like a random walk, so sqrt(d) stands for d, and 32 for 2 sqrt(d) and the
    constants of the three factorizations.
    """
    return 32 * float(np.finfo(a.dtype).eps) * condition(a)


@given(a=matrices(), layout=draws.layouts, seed=draws.seeds)
def test_against_gram_schmidt(backend, a, layout, seed):
    shown = draws.relayout(a, layout)
    before = draws.whole(shown).tobytes()
    found = leverage_scores(shown, seed=seed, backend=backend)
    assert (found.shape, found.dtype) == ((len(a),), a.dtype)
    assert found.min() >= 0
    assert found.max() <= 1
    target(assert_within(found, leverage(a), bound(a)))
    assert_within(found.sum(dtype=float), a.shape[1], bound(a) * len(a))
    assert draws.whole(shown).tobytes() == before


@given(a=matrices(6), log_ridge=st.integers(-6, 2), seed=draws.seeds)
def test_ridge_is_more_rows(backend, a, log_ridge, seed):
    ridge = 10.0**log_ridge * float(np.square(a.astype(float)).sum(0).max())
    longer = np.concatenate((a.astype(float), np.sqrt(ridge) * np.eye(a.shape[1])))
    found = leverage_scores(a, ridge=ridge, seed=seed, backend=backend)
    limit = 32 * float(np.finfo(a.dtype).eps) * condition(longer)
    target(assert_within(found, leverage(longer)[: len(a)], limit))


@pytest.mark.parametrize("n", [60, 900])
def test_the_basis_does_not_matter(backend, n):
    a = matrix(n, 6, spread=1.0)
    change = matrix(6, 6, log_cond=2, seed=1)
    found = leverage_scores(a @ change, backend=backend)
    assert_within(found, leverage_scores(a, backend=backend), bound(a) + bound(a @ change))


@pytest.mark.parametrize("n", [40, 900])
@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_rank_deficient(backend, n, dtype):
    """A column that depends on others changes nothing."""
    a = matrix(n, 5, spread=1.0, dtype=dtype)
    more = np.column_stack((a[:, 0], 0 * a[:, 0], a, a[:, 1])).astype(dtype)
    found = leverage_scores(more, backend=backend)
    assert_within(found, leverage(a), bound(a))


def test_special_matrices(backend):
    eps = np.finfo(float).eps
    wide = matrix(9, 4).T.copy()  # its range is all of R^4
    assert_within(leverage_scores(wide, backend=backend), 1.0, bound(wide.T))
    assert not leverage_scores(np.zeros((200, 3)), backend=backend).any()
    unit = np.zeros((500, 2))
    unit[[3, 400], [0, 1]] = 7.0, 1e-150
    found = leverage_scores(unit, backend=backend)
    assert_within(found, unit.any(axis=1).astype(float), 8 * eps)
    assert_within(leverage_scores(np.full((300, 1), 2.0), backend=backend), 1 / 300, 8 * eps)


def test_huge_and_tiny_entries(backend):
    a = matrix(500, 4)
    for scale in (1e-250, 1e-150, 1e150, 1e250):
        found = leverage_scores(scale * a, backend=backend)
        assert_within(found, leverage(a), bound(a))


@pytest.mark.parametrize("columns", [True, 8, 200])
def test_approximate(backend, columns):
    """The mean of the squared relative error is near 2 / columns plus what the sketch adds.

    The sketch of 16 d + 64 rows distorts lengths by at most sqrt(1/16), squares by at most half.
    """
    a = matrix(4000, 10, spread=1.0)
    exact = leverage(a).astype(float)
    found = leverage_scores(a, approximate=columns, backend=backend)
    assert abs(found.sum() - 10) < 1e-9
    error = np.sqrt(np.mean((found / exact - 1) ** 2))
    assert error < np.sqrt(2 / (32 if columns is True else columns)) + 0.5
    assert error > 0.2 * np.sqrt(2 / (32 if columns is True else columns))  # it is not exact
    rough = leverage_scores(a, approximate=2, backend=backend)
    assert error < np.sqrt(np.mean((rough / exact - 1) ** 2))


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
@pytest.mark.parametrize("n", [30, 9000])
def test_sparse(backend, form, n):
    a = matrix(n, 5)
    a[np.random.default_rng(0).random(a.shape) < 0.7] = 0
    sparse = sp.coo_array(a).asformat(form)
    found = leverage_scores(sparse, backend=backend)
    assert isinstance(found, np.ndarray)
    assert_within(found, leverage_scores(a, backend=backend), bound(a))


def test_array_types(backend, tmp_path):
    a = matrix(300, 4)
    expected = leverage_scores(a, backend=backend)
    found = leverage_scores(torch.from_numpy(a), backend=backend)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), expected)
    on_disk = np.memmap(tmp_path / "a", a.dtype, "w+", shape=a.shape)
    on_disk[:] = a
    np.testing.assert_array_equal(leverage_scores(on_disk, backend=backend), expected)


@pytest.mark.parametrize("options", [{}, {"ridge": 1.0}, {"approximate": 5}])
def test_threads_and_layout_change_nothing(backend, options):
    a = matrix(30_000, 12)
    one, two = (leverage_scores(a, n_threads=n, backend=backend, **options) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_seeds(backend):
    a = matrix(500, 4)

    def call(seed, columns=3):
        return leverage_scores(a, approximate=columns, seed=seed, backend=backend)

    np.testing.assert_array_equal(call(5), call(5))
    assert (call(5) != call(6)).any()
    assert (call(None) != call(None)).any()
    rng = np.random.default_rng
    np.testing.assert_array_equal(call(rng(1)), call(rng(1)))


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("n", [12, 400])
def test_bad_matrices(backend, kind, n):
    if kind == "one entry less":
        return  # another matrix
    spoil, error = ARRAYS[kind]
    a = matrix(n, 4)
    for options in ({}, {"approximate": True}, {"ridge": 1.0}):
        bad = spoil(a)
        state = a.tobytes
        assert_refused(
            "A", lambda bad=bad, o=options: leverage_scores(bad, backend=backend, **o), error, state
        )


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty(backend, shape):
    assert_refused("A", lambda: leverage_scores(np.zeros(shape), backend=backend), ValueError)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("ridge", v) for v in (-1e-9, NAN, INF, "much", None)),
        *(("approximate", v) for v in (0.5, -1, 0.0, None, "yes")),
        *(("seed", v) for v in (-1, 2**64, 0.5, "now")),
        *EXECUTION,
    ],
    ids=shown,
)
def test_bad_options(backend, option, value):
    options = {"backend": backend, option: value}
    assert_refused(option, lambda: leverage_scores(matrix(90, 3), **options))


def test_lost_ridge(backend):
    a = np.ones((500, 3))
    with pytest.raises(LinAlgError, match="ridge must be larger"):
        leverage_scores(a, ridge=1e-40, backend=backend)
