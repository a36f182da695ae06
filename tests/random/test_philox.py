"""The generator behind everything: published words, and every counter against plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadric import backends
from tests.sketch import oracle

# kat_vectors of Random123, the package of the paper's authors: counter, key, words.
PUBLISHED = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def numbers(text):
    return tuple(int(w, 16) for w in text.split())


def philox(backend, seed, stream, first, count, n_threads=1):
    out = np.full((count, 4), 7, np.uint32)
    backends.resolve("random.philox", backend)(seed, stream, first, out, n_threads)
    return out


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_the_oracle_gives_the_published_words(counter, key, words):
    assert oracle.philox(numbers(counter), numbers(key)) == numbers(words)


def test_the_kernel_gives_the_published_words(backend):
    """Its counters end with 0, so of the three vectors it can give the first."""
    assert tuple(philox(backend, 0, 0, 0, 1)[0]) == numbers(PUBLISHED[0][2])


@given(
    seed=st.integers(0, 2**64 - 1) | st.sampled_from([0, 2**32 - 1, 2**32, 2**64 - 1]),
    stream=st.integers(0, 2**32 - 1),
    first=st.integers(0, 2**63 - 6) | st.sampled_from([2**32 - 3, 2**32]),
    count=st.integers(0, 5),
)
def test_every_counter_and_key(backend, seed, stream, first, count):
    found = philox(backend, seed, stream, first, count)
    for i in range(count):
        assert tuple(found[i]) == oracle.block(seed, stream, first + i)


@pytest.mark.parametrize("count", [1, 1000, 70_001])
def test_threads(backend, count):
    one = philox(backend, 5, 1, 3, count)
    for threads in (2, 3):
        np.testing.assert_array_equal(philox(backend, 5, 1, 3, count, threads), one)
