"""Words, uniform and normal numbers of the counter-based generator."""

import secrets

import numpy as np
from numpy.typing import NDArray

from quadric import backends, checks, threads

Seed = int | np.random.Generator | None
"""What ``seed=`` takes everywhere: see `resolve_seed`."""

_MOST = 2**64 - 1


def resolve_seed(seed: Seed) -> int:
    """Return the seed that an argument ``seed=`` stands for.

    Parameters
    ----------
    seed : int, numpy.random.Generator or None
        A number below 2^64 stands for itself. One such number is drawn from a generator. None asks
        the operating system, for another one in each call.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If `seed` is nothing of this kind.
    ValueError
        If it is negative or too large.

    Examples
    --------
    >>> import quadric as qd
    >>> qd.random.resolve_seed(7)
    7
    """
    if seed is None:
        return secrets.randbits(64)
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(0, _MOST, dtype=np.uint64, endpoint=True))
    return checks.integer(seed, "seed", low=0, high=_MOST)


def words(
    seed: int,
    stream: int,
    first: int,
    count: int,
    *,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.uint32]:
    """Return words of 32 random bits.

    Parameters
    ----------
    seed : int
        0 or more, below 2^64.
    stream : int
        0 or more, below 2^32: sequences of one seed that have nothing to do with each other. The
        operators of `quadric.sketch` use those below 16.
    first : int
        Number of the first word within the sequence.
    count : int
    backend : str, optional
    n_threads : int, optional

    Returns
    -------
    ndarray, shape (count,), uint32
        Words `first` to ``first + count - 1``; each depends on its number alone.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer, or out of range.

    Notes
    -----
    Philox 4x32 with 10 rounds [1]_. Word w is number w mod 4 of the block with the counter
    (w // 4 mod 2^32, w // 4 // 2^32, stream, 0) and the key (seed mod 2^32, seed // 2^32).

    References
    ----------
    .. [1] Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

    Examples
    --------
    >>> import quadric as qd
    >>> [hex(w) for w in qd.random.words(0, 0, 0, 4)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    kernel = backends.resolve("random.philox", backend)
    seed = checks.integer(seed, "seed", low=0, high=_MOST)
    stream = checks.integer(stream, "stream", low=0, high=2**32 - 1)
    first = checks.integer(first, "first", low=0, high=2**63 - 1)
    count = checks.integer(count, "count", low=0, high=2**63 - 1 - first)
    block = first // 4
    out = np.empty((-(-(first + count) // 4) - block, 4), np.uint32)
    kernel(seed, stream, block, out, threads.resolve(n_threads))
    return out.reshape(-1)[first - 4 * block :][:count]


def uniforms(
    seed: int,
    stream: int,
    first: int,
    count: int,
    *,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.float64]:
    """Return numbers of the uniform distribution on [0, 1): multiples of 2^-53.

    Parameters
    ----------
    seed, stream, first, count, backend, n_threads
        As in `words`; number i is made of words 2 i and 2 i + 1.

    Returns
    -------
    ndarray, shape (count,), float64

    Raises
    ------
    TypeError, ValueError
        As in `words`.

    Examples
    --------
    >>> import quadric as qd
    >>> qd.random.uniforms(0, 16, 0, 3).round(3)
    array([...])
    """
    pairs = _pairs(seed, stream, first, count, backend, n_threads)
    high, low = (pairs[:, 0] >> 5).astype(np.float64), (pairs[:, 1] >> 6).astype(np.float64)
    return (high * 2.0**26 + low) * 2.0**-53


def normals(
    seed: int,
    stream: int,
    first: int,
    count: int,
    *,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.float64]:
    """Return numbers of the standard normal distribution.

    Parameters
    ----------
    seed, stream, first, count, backend, n_threads
        As in `words`; numbers 2 i and 2 i + 1 are made of words 2 i and 2 i + 1.

    Returns
    -------
    ndarray, shape (count,), float64
        The last bits may differ from machine to machine, as those of the logarithm do.

    Raises
    ------
    TypeError, ValueError
        As in `words`.

    Notes
    -----
    The transform of Box and Muller [1]_: words (v, w) give
    ``sqrt(-2 log((v + 1/2) 2^-32)) (cos, sin)(2 pi (w + 1/2) 2^-32)``. None is beyond 6.8.

    References
    ----------
    .. [1] Box and Muller, "A Note on the Generation of Random Normal Deviates", Annals of
       Mathematical Statistics 29 (2), 1958.

    Examples
    --------
    >>> import quadric as qd
    >>> z = qd.random.normals(0, 16, 0, 10_000)
    >>> bool(abs(z.mean()) < 0.05), bool(abs(z.std() - 1) < 0.05)
    (True, True)
    """
    first = checks.integer(first, "first", low=0, high=2**62)
    count = checks.integer(count, "count", low=0, high=2**62 - first)
    start, stop = first // 2, -(-(first + count) // 2)
    pairs = _pairs(seed, stream, start, stop - start, backend, n_threads)
    places = (pairs + 0.5) * 2.0**-32
    radius, angle = np.sqrt(-2 * np.log(places[:, 0])), 2 * np.pi * places[:, 1]
    numbers = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return numbers.reshape(-1)[first % 2 :][:count]


def _pairs(
    seed: int, stream: int, first: int, count: int, backend: str | None, n_threads: int | None
) -> NDArray[np.uint32]:
    first = checks.integer(first, "first", low=0, high=2**62 - 1)
    count = checks.integer(count, "count", low=0, high=2**62 - 1 - first)
    found = words(seed, stream, 2 * first, 2 * count, backend=backend, n_threads=n_threads)
    return found.reshape(count, 2)
