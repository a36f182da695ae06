"""The subsampled randomized Hadamard transform."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadric import backends, device, random
from quadric.arrays import Data
from quadric.device import DeviceArray, Space
from quadric.random.philox import Seed
from quadric.sketch.inputs import Rows
from quadric.sketch.operator import SketchingOperator, check_execution, check_shape, float_type
from quadric.sketch.signs import SAMPLES, SIGNS, signs

_STREAMS = 8  # that samples are kept for
_LARGEST = 2048  # longest block: a tile of 32 columns of it stays in the second-level cache


@dataclass(frozen=True, kw_only=True, repr=False)
class SubsampledHadamard(SketchingOperator):
    """Sampled rows of a Hadamard matrix, columns with random signs; see :func:`srht`."""

    @property
    def scale(self) -> float:
        """1 / sqrt(m)."""
        return float(self.whole[0] ** -0.5)

    @property
    def dense(self) -> bool:
        """True."""
        return True

    @property
    def order(self) -> int:
        """Order N of the Hadamard matrix: the power of two from n on."""
        return 1 << (self.whole[1] - 1).bit_length()

    @property
    def samples(self) -> np.ndarray:
        """Rows of the Hadamard matrix, shape (m,), all different, in random order."""
        found = _samples(self.seed, self.whole[0], self.order)
        return found[self.row : self.row + self.m]

    def to_dense(self, dtype: Any = "float64") -> np.ndarray:
        """Return S as an array."""
        columns = np.arange(self.column, self.column + self.n)
        odd = np.bitwise_count(self.samples[:, None] & columns) & 1
        out = np.where(odd, -self.scale, self.scale).astype(float_type(dtype))
        out *= self._signs(self.column, self.n, out.dtype)
        return out

    @property
    def _block(self) -> int:
        """Length k of the short transforms: the work for a row of A is log2 k + m / k."""
        return min(1 << (self.whole[0].bit_length() - 1), _LARGEST)

    def _call(self) -> str:
        m, n = self.whole
        return f"srht({m}, {n}, seed={self.seed})"

    def _add(self, A: Data, first: int, total: Data) -> None:
        kernel = backends.resolve("sketch.srht", self.backend, A)
        there = self._there.get(_place(A)) if isinstance(A, DeviceArray) else None
        samples = self.samples if there is None else there
        kernel(A, first, self.seed, self._block, samples, total, self._threads(A))

    @functools.cached_property
    def _there(self) -> dict[tuple[Space, int], DeviceArray]:
        """The samples in the memory of GPUs, each for the stream that they were copied on."""
        return {}

    def _product(self, A: Rows, shape: tuple[int, ...], given: Rows | None = None) -> Data:
        out = super()._product(A, shape, given)
        # The stream was waited for, so it is not captured in a graph and lasts.
        if isinstance(A, DeviceArray) and (place := _place(A)) not in self._there:
            if len(self._there) == _STREAMS:
                self._there.clear()
            self._there[place] = A.space.from_host(self.samples)
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_there"}

    def _adjoint(self, B: Data) -> Data:
        if isinstance(B, DeviceArray):
            return self._adjoint_on_gpu(self._scaled_on_gpu(B))
        spread = np.zeros((1, self.order, B.shape[1]), B.dtype)
        spread[0, self.samples] = B
        if spread.size:
            backends.resolve("sketch.fwht", self.backend)(spread, self._threads())
        with np.errstate(over="ignore", invalid="ignore"):
            factors = self._signs(self.column, self.n, B.dtype) * B.dtype.type(self.scale)
            out: np.ndarray = spread[0, self.column : self.column + self.n] * factors[:, None]
        return out

    def _adjoint_on_gpu(self, B: DeviceArray) -> DeviceArray:
        space, k = B.space, B.shape[1]
        spread = B.space.full((1, self.order, k), B.dtype, 0)
        if not B.size:
            return spread[0, : self.n]
        space.run(device.arrays().add_to_columns, B.T, self.samples, 1.0, spread[0].T)
        backends.resolve("sketch.fwht", self.backend, B)(spread, 1)
        out = spread[0, self.column : self.column + self.n]
        factors = self._signs(self.column, self.n, B.dtype)
        space.run(device.arrays().scale_rows, factors, out)
        return out

    def _signs(self, first: int, count: int, dtype: Any) -> np.ndarray:
        return signs(
            self.seed, SIGNS, first, count, dtype, backend=self.backend, n_threads=self._threads()
        )


def srht(
    m: int,
    n: int,
    *,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> SubsampledHadamard:
    """Return the subsampled randomized Hadamard transform ``S = P H D / sqrt(m)``.

    D has random signs, H is the Hadamard matrix whose order N is the power of two from n on, and P
    picks m of its rows without replacement.

    Parameters
    ----------
    m : int
        Rows of the sketch.
    n : int
        Rows of the matrix to be sketched; it is not padded in memory.
    seed : int, Generator or None, optional
        Below 2^64. None takes fresh entropy; a generator gives one number.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. The result does not depend on it.

    Returns
    -------
    SubsampledHadamard
        A dense operator: sketch-and-solve with it is accurate in each coordinate.

    Raises
    ------
    ValueError, TypeError
        If a number is out of range or no integer, or `m` is above `n`.

    Notes
    -----
    Introduced in [1]_, analysed in [2]_. ``S @ A`` reads A once: blocks of k rows, k about m, get
    short transforms in cache, and each sampled row of H adds or subtracts one row of each of these,
    because ``(H_N x)[i k + j] = sum_b (-1)^popcount(i & b) (H_k x_b)[j]``. That is
    ``n d (log2 k + m / k)`` additions, where a transform of the whole takes ``N d log2 N`` and
    several passes.

    References
    ----------
    .. [1] Ailon and Chazelle, "The Fast Johnson-Lindenstrauss Transform and Approximate Nearest
       Neighbors", SIAM Journal on Computing 39 (1), 2009.
    .. [2] Tropp, "Improved Analysis of the Subsampled Randomized Hadamard Transform", Advances in
       Adaptive Data Analysis 3, 2011.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> S = qd.sketch.srht(4, 6, seed=0)
    >>> np.unique(S.to_dense())
    array([-0.5,  0.5])
    >>> x = np.arange(6.0)
    >>> np.allclose(S @ x, S.to_dense() @ x)
    True
    """
    m, n = check_shape(m, n)
    check_execution("srht", backend, n_threads)
    return SubsampledHadamard(
        m=m,
        n=n,
        whole=(m, n),
        seed=random.resolve_seed(seed),
        backend=backend,
        n_threads=n_threads,
    )


def _place(A: DeviceArray) -> tuple[Space, int]:
    return A.space, A.space.library.stream(A.space.device)


@functools.lru_cache(maxsize=32)
def _samples(seed: int, count: int, order: int) -> np.ndarray:
    """Return `count` different numbers below `order`, a power of two, in random order."""
    if 2 * count > order:
        found = np.argsort(_numbers(seed, order, 64), kind="stable")[:count]
    else:  # draw until there are enough; each number counts where it comes first
        bits, draws = order.bit_length() - 1, 2 * count
        while True:
            drawn = _numbers(seed, draws, bits)
            first = np.sort(np.unique(drawn, return_index=True)[1])
            if len(first) >= count:
                break
            draws *= 2
        found = drawn[first[:count]]
    found = found.astype(np.int64)
    found.flags.writeable = False
    return found


def _numbers(seed: int, count: int, bits: int) -> np.ndarray:
    """Return numbers of that many bits: the upper ones of two words."""
    pairs = random.words(seed, SAMPLES, 0, 2 * count).reshape(count, 2).astype(np.uint64)
    whole = pairs[:, 0] << np.uint64(32) | pairs[:, 1]
    result: np.ndarray = whole >> np.uint64(64 - bits) if bits else 0 * whole
    return result
