"""Words, uniform and normal numbers: their places, their laws, what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from quadric import random
from tests.refusals import EXECUTION, assert_refused, shown

SEQUENCES = [random.words, random.uniforms, random.normals]
COUNT = 100_000
# The seeds are fixed, so a test passes or fails for good; one that is right passes with this.
SURE = 1e-3

seeds = st.integers(0, 2**64 - 1)
streams = st.integers(0, 2**32 - 1)
places = st.integers(0, 2**40)


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda f: f.__name__)
@given(seed=seeds, stream=streams, first=places, skip=st.integers(0, 9), count=st.integers(0, 40))
def test_a_part_of_a_sequence_is_that_of_the_whole(
    backend, sequence, seed, stream, first, skip, count
):
    whole = sequence(seed, stream, first, skip + count, backend=backend)
    part = sequence(seed, stream, first + skip, count, backend=backend)
    assert part.shape == (count,)
    # Vector units and the rest of a loop may round a logarithm differently.
    slack = 8 * np.finfo(float).eps * np.abs(part) if part.dtype == float else 0
    if sequence is random.normals:
        assert (np.abs(part - whole[skip:]) <= slack + 1e-15).all()
    else:
        assert (part == whole[skip:]).all()


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda f: f.__name__)
def test_threads_do_not_matter(backend, sequence):
    one = sequence(3, 16, 5, 300_001, backend=backend, n_threads=1)
    assert (one == sequence(3, 16, 5, 300_001, backend=backend, n_threads=3)).all()


@given(seed=seeds, stream=streams, first=places, count=st.integers(0, 40))
def test_backends_agree(backend, seed, stream, first, count):
    expected = random.words(seed, stream, first, count, backend="numba")
    assert (random.words(seed, stream, first, count, backend=backend) == expected).all()


@pytest.mark.parametrize("change", [(1, 0), (2**32, 0), (0, 1), (0, 2**31)])
def test_seeds_and_streams_are_apart(backend, change):
    """Half of the bits differ: 5 standard deviations."""
    one = random.words(0, 0, 0, COUNT, backend=backend)
    other = random.words(*change, 0, COUNT, backend=backend)
    differ = int(np.bitwise_count(one ^ other).sum())
    assert abs(differ - 16 * COUNT) < 5 * np.sqrt(8 * COUNT)


def test_every_bit_is_even(backend):
    """Each bit is set in half of the words: 5 standard deviations."""
    words = random.words(11, 20, 0, COUNT, backend=backend)
    for bit in range(32):
        count = int((words >> np.uint32(bit) & 1).sum())
        assert abs(count - COUNT / 2) < 5 * np.sqrt(COUNT / 4)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_uniforms_are_uniform(backend, seed):
    u = random.uniforms(seed, 16, 0, COUNT, backend=backend)
    assert stats.kstest(u, "uniform").pvalue > SURE
    assert u.min() >= 0
    assert u.max() < 1
    assert (u * 2.0**53 == np.floor(u * 2.0**53)).all()
    # Neighbours have nothing to do with each other.
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(COUNT)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_normals_are_normal(backend, seed):
    z = random.normals(seed, 16, 0, COUNT, backend=backend)
    assert stats.kstest(z, "norm").pvalue > SURE
    # The two numbers of a pair share a radius, but not more.
    a, b = z[::2], z[1::2]
    for x, y in ((a, b), (a**2, b**2), (np.abs(a), b)):
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(len(a))


def test_numbers_are_made_of_their_words(backend):
    w = random.words(9, 17, 0, 20, backend=backend).astype(np.float64)
    u = random.uniforms(9, 17, 0, 10, backend=backend)
    z = random.normals(9, 17, 0, 20, backend=backend)
    assert (u == (w[::2] // 32 * 2**26 + w[1::2] // 64) / 2**53).all()
    angle = 2 * np.pi * (w[1::2] + 0.5) / 2**32
    # The square of a pair's length tells its first word, the direction its second.
    length = z[::2] ** 2 + z[1::2] ** 2
    np.testing.assert_allclose(np.exp(-length / 2) * 2**32, w[::2] + 0.5, rtol=1e-13)
    np.testing.assert_allclose(np.arctan2(z[1::2], z[::2]) % (2 * np.pi), angle, rtol=1e-13)


def test_seeds(monkeypatch):
    assert random.resolve_seed(0) == 0
    assert random.resolve_seed(np.uint64(2**64 - 1)) == 2**64 - 1
    assert random.resolve_seed(None) != random.resolve_seed(None)
    assert random.resolve_seed(np.random.default_rng(1)) == random.resolve_seed(
        np.random.default_rng(1)
    )
    generator = np.random.default_rng(1)
    drawn = {random.resolve_seed(generator) for _ in range(100)}
    assert len(drawn) == 100
    assert max(drawn) > 2**60


@pytest.mark.parametrize("value", [-1, 2**64, 1.5, "0", True, np.random], ids=shown)
def test_seeds_that_are_none(value):
    assert_refused("seed", lambda: random.resolve_seed(value))


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, v) for name in ("seed", "stream", "first", "count") for v in (-1, 0.5, "1", None)),
        ("seed", 2**64),
        ("stream", 2**32),
        ("first", 2**63),
        ("count", 2**63),
        *EXECUTION,
    ],
    ids=shown,
)
def test_bad_input(sequence, name, value):
    arguments = {"seed": 0, "stream": 16, "first": 0, "count": 3, name: value}
    assert_refused(name, lambda: sequence(**arguments))
