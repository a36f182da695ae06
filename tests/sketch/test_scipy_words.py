"""SciPy's transform by its own words: swapping the import works."""

import inspect

import numpy as np
import pytest
from scipy import linalg, sparse

from quadric.sketch import clarkson_woodruff_transform, count_sketch
from tests import strategies as draws
from tests.refusals import ARRAYS, assert_refused, shown
from tests.sketch.matrices import integers, make


def test_the_words_are_those_of_scipy():
    theirs = list(inspect.signature(linalg.clarkson_woodruff_transform).parameters)
    ours = list(inspect.signature(clarkson_woodruff_transform).parameters)
    assert ours[: len(theirs)] == theirs
    assert "seed" in ours


@pytest.mark.parametrize("dtype", draws.DTYPES)
def test_it_is_a_count_sketch(backend, dtype):
    a = make(500, 6, dtype=dtype).a
    expected = count_sketch(40, 500, seed=9, backend=backend) @ a
    for words in ({"rng": 9}, {"seed": 9}):
        found = clarkson_woodruff_transform(a, 40, **words, backend=backend)
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(clarkson_woodruff_transform(a, 40, 9, backend=backend), expected)
    vector = clarkson_woodruff_transform(a[:, 0], 40, 9, backend=backend)
    np.testing.assert_array_equal(vector, expected[:, 0])


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
@pytest.mark.parametrize("family", [sparse.csr_array, sparse.csr_matrix])
def test_sparse_stays_sparse(backend, kind, family):
    a = integers(0, (300, 7)) * (np.random.default_rng(0).random((300, 7)) < 0.1)
    found = clarkson_woodruff_transform(family(a).asformat(kind), 20, rng=3, backend=backend)
    assert sparse.issparse(found)
    assert isinstance(found, sparse.spmatrix) == (family is sparse.csr_matrix)
    expected = clarkson_woodruff_transform(a, 20, rng=3, backend=backend)
    np.testing.assert_array_equal(found.toarray(), expected)


def test_batches(backend):
    a = make(2 * 3 * 50, 4).a.reshape(2, 3, 50, 4)
    found = clarkson_woodruff_transform(a, 10, rng=3, backend=backend)
    assert found.shape == (2, 3, 10, 4)
    for at in np.ndindex(2, 3):
        alone = clarkson_woodruff_transform(a[at], 10, rng=3, backend=backend)
        np.testing.assert_array_equal(found[at], alone)


def test_sources_of_randomness(backend):
    a = make(50, 2).a

    def run(rng):
        return clarkson_woodruff_transform(a, 10, rng=rng, backend=backend)

    assert not np.array_equal(run(None), run(None))
    np.testing.assert_array_equal(run(np.random.default_rng(1)), run(np.random.default_rng(1)))
    np.testing.assert_array_equal(run(np.random.SeedSequence(1)), run(np.random.SeedSequence(1)))
    np.testing.assert_array_equal(run([1, 2]), run([1, 2]))
    rng = np.random.default_rng(1)
    assert not np.array_equal(run(rng), run(rng))


def test_more_rows_than_there_are(backend):
    """SciPy takes them."""
    a = integers(0, (5, 2))
    found = clarkson_woodruff_transform(a, 50, rng=0, backend=backend)
    assert found.shape == (50, 2)
    assert np.count_nonzero(found.any(axis=1)) <= 5


@pytest.mark.parametrize("kind", ARRAYS)
def test_matrices(backend, kind):
    if kind in ("one entry less", "more axes", "list"):
        return
    spoil, error = ARRAYS[kind]
    bad = spoil(make(50, 3).a)
    call = lambda: clarkson_woodruff_transform(bad, 10, rng=0, backend=backend)  # noqa: E731
    assert_refused("input_matrix", call, error)


def test_lists_as_in_scipy(backend):
    a = make(50, 3).a
    expected = clarkson_woodruff_transform(a, 10, rng=0, backend=backend)
    found = clarkson_woodruff_transform(a.tolist(), 10, rng=0, backend=backend)
    np.testing.assert_array_equal(found, expected)
    assert_refused(
        "input_matrix",
        lambda: clarkson_woodruff_transform([[1, 2], [3, 4]], 2, rng=0, backend=backend),
        TypeError,
    )


def test_empty(backend):
    for empty in (np.empty((0, 3)), sparse.csr_array((0, 3))):
        assert_refused(
            "input_matrix",
            lambda empty=empty: clarkson_woodruff_transform(empty, 4, rng=0, backend=backend),
            ValueError,
        )


@pytest.mark.parametrize("size", [0, -1, 2.5, None, "3"], ids=shown)
def test_sizes(backend, size):
    a = np.ones((9, 2))
    assert_refused(
        "sketch_size", lambda: clarkson_woodruff_transform(a, size, rng=0, backend=backend)
    )


def test_seeds(backend):
    a = np.ones((9, 2))
    for words, name in [
        ({"rng": -1}, "rng"),
        ({"seed": 2**64}, "seed"),
        ({"rng": "words"}, "rng"),
        ({"rng": 1, "seed": 1}, "seed"),
    ]:
        assert_refused(
            name,
            lambda words=words: clarkson_woodruff_transform(a, 4, **words, backend=backend),
        )
