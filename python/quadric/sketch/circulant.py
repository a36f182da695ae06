"""The subsampled randomized circulant matrix."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft

from quadric import arrays, backends, random, threads
from quadric.arrays import Data
from quadric.device import DeviceArray
from quadric.random.philox import Seed
from quadric.sketch.operator import SketchingOperator, check_shape, float_type
from quadric.sketch.signs import CIRCULANT, SIGNS, signs

_SHORTEST = 4096  # length of a transform, unless n is small: shorter ones waste time on calls
_ENTRIES = 2**21  # entries that are transformed together
_ENTRIES_ON_GPU = 2**26


@dataclass(frozen=True, kw_only=True, repr=False)
class SubsampledCirculant(SketchingOperator):
    """Rows of a circulant matrix, columns with random signs; see :func:`circulant`."""

    @property
    def scale(self) -> float:
        """1 / sqrt(m)."""
        return float(self.whole[0] ** -0.5)

    @property
    def dense(self) -> bool:
        """True."""
        return True

    def to_dense(self, dtype: Any = "float64") -> np.ndarray:
        """Return S as an array."""
        n = self.whole[1]
        rows = np.arange(self.row, self.row + self.m)
        columns = np.arange(self.column, self.column + self.n)
        generator = self._signs(CIRCULANT, 0, n, float_type(dtype))
        out: np.ndarray = generator[(rows[:, None] - columns) % n]
        out *= self._signs(SIGNS, self.column, self.n, out.dtype) * out.dtype.type(self.scale)
        return out

    # Overlap-save: the m results of a block of rows are a piece of the circular convolution of the
    # block with a window of r. The transforms of all blocks are added up, so there is one inverse
    # transform at the end.

    @property
    def _length(self) -> int:
        """Length of a transform: a power of two, room for the window of a block."""
        m, n = self.whole
        shortest = max(2 * m, min(_SHORTEST, m + n - 1))
        return 1 << (shortest - 1).bit_length()

    @property
    def _block(self) -> int:
        return self._length - self.whole[0] + 1

    def _call(self) -> str:
        m, n = self.whole
        return f"circulant({m}, {n}, seed={self.seed})"

    def _zeros(self, d: int, dtype: np.dtype[Any]) -> np.ndarray:
        return np.zeros((self._length // 2 + 1, d), np.complex128)

    def _add(self, A: np.ndarray, first: int, total: np.ndarray) -> None:
        width = max(1, _ENTRIES // self._length)
        for start in range(0, len(A), self._block):
            rows = A[start : start + self._block]
            flips = self._signs(SIGNS, first + start, len(rows), A.dtype)[:, None]
            window = self._window(first + start, A.dtype)
            for left in range(0, A.shape[1], width):
                at = slice(left, left + width)
                total[:, at] += window * self._transform(rows[:, at] * flips)

    def _value(self, total: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        start = self._block - 1 + self.row
        with np.errstate(over="ignore", invalid="ignore"):
            rows = self._inverse(total)[start : start + self.m] * self.scale
            result: np.ndarray = rows.astype(dtype)
        return result

    def _sum_on_gpu(self, A: DeviceArray, first: int) -> DeviceArray:
        """As `_add` and `_value`, many blocks at once; sums of them are transformed back."""
        m, d, dtype = self.whole[0], A.shape[1], arrays.computing(A.dtype)
        total = A.space.full((m, d), np.float64, 0)
        start, length = self._block - 1, self._length

        def convolved(xp: Any, rows: Any, flips: Any, windows: Any) -> Any:
            count, width = windows.shape[0], rows.shape[1]
            x = xp.multiply(rows, xp.reshape(flips, (-1, 1)))
            x = xp.fft.rfft(xp.reshape(x, (count, -1, width)), n=length, axis=1)
            w = xp.fft.rfft(windows, n=length, axis=1)
            image = xp.sum(xp.multiply(x, xp.reshape(w, (count, -1, 1))), axis=0)
            return xp.fft.irfft(image, n=length, axis=0)[start : start + m]

        for left, right, begin, end in self._pieces(A.shape[0], d):
            rows = A[begin:end, left:right].astype(dtype, copy=False)
            flips = self._signs(SIGNS, first + begin, end - begin, dtype)
            windows = self._windows(first + begin, end - begin, dtype)
            there = (A.space.from_host(a) for a in (flips, windows))
            part = A.space.apply(convolved, rows, *there)
            arrays.add(total[:, left:right], part.astype(np.float64, copy=False))
        return total

    def _pieces(self, n: int, d: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield ranges of columns and of rows, these either whole blocks or less than one."""
        width = max(1, min(d, _ENTRIES_ON_GPU // self._length))
        rows = max(1, _ENTRIES_ON_GPU // (self._length * width)) * self._block
        whole = n // self._block * self._block
        for left in range(0, d, width):
            right = min(left + width, d)
            for begin in range(0, whole, rows):
                yield left, right, begin, min(begin + rows, whole)
            if whole < n:
                yield left, right, whole, n

    def _windows(self, first: int, count: int, dtype: Any) -> np.ndarray:
        """Return what the blocks of some rows of A are convolved with, one in each row."""
        starts = range(first, first + count, self._block)
        return np.stack([self._convolver(start, dtype) for start in starts])

    def _adjoint_on_gpu(self, B: DeviceArray) -> DeviceArray:
        block, length, k = self._block, self._length, B.shape[1]
        out = B.space.empty((self.n, k), B.dtype)
        padded = B.space.full((length, k), B.dtype, 0)
        padded[block - 1 + self.row :][: self.m].assign(B)
        skipped = self.column % block

        def correlated(xp: Any, b: Any, flips: Any, windows: Any) -> Any:
            image, w = xp.fft.rfft(b, n=length, axis=0), xp.fft.rfft(windows, n=length, axis=1)
            product = xp.multiply(xp.conj(xp.reshape(w, (*w.shape, 1))), image)
            rows = xp.fft.irfft(product, n=length, axis=1)[:, :block]
            rows = xp.reshape(rows, (-1, rows.shape[2]))[: flips.shape[0]]
            return xp.multiply(rows, xp.reshape(flips, (-1, 1)))

        for left, right, begin, end in self._pieces(skipped + self.n, k):
            first = self.column - skipped + begin
            flips = self._signs(SIGNS, first, end - begin, B.dtype)
            there = map(B.space.from_host, (flips, self._windows(first, end - begin, B.dtype)))
            rows = B.space.apply(correlated, padded[:, left:right], *there)
            low = max(begin, skipped)
            if low < end:
                out[low - skipped : end - skipped, left:right].assign(rows[low - begin :])
        return out

    def _adjoint(self, B: Data) -> Data:
        if isinstance(B, DeviceArray):
            return self._adjoint_on_gpu(self._scaled_on_gpu(B))
        block, length = self._block, self._length
        out = np.empty((self.n, B.shape[1]), B.dtype)
        width = max(1, _ENTRIES // length)
        first, last = self.column // block * block, self.column + self.n
        with np.errstate(over="ignore", invalid="ignore"):
            for left in range(0, B.shape[1], width):
                at = slice(left, left + width)
                padded = np.zeros((length, B[:, at].shape[1]), B.dtype)
                padded[block - 1 + self.row :][: self.m] = B[:, at]
                image = self._transform(padded)
                for start in range(first, last, block):
                    begin, end = max(start, self.column), min(start + block, last)
                    rows = self._inverse(np.conj(self._window(start, B.dtype)) * image)
                    flips = self._signs(SIGNS, begin, end - begin, B.dtype)[:, None]
                    rows = rows[begin - start : end - start] * (flips * B.dtype.type(self.scale))
                    out[begin - self.column : end - self.column, at] = rows
        return out

    def _window(self, first: int, dtype: Any) -> np.ndarray:
        """Return the transform of what the rows of A from `first` on are convolved with."""
        return self._transform(self._convolver(first, dtype)[:, None])

    def _convolver(self, first: int, dtype: Any) -> np.ndarray:
        """Return the window of r that the rows of A from `first` on are convolved with."""
        n = self.whole[1]
        place, missing = (1 - self._block - first) % n, self._length
        pieces = []
        while missing:
            count = min(missing, n - place)
            pieces.append(self._signs(CIRCULANT, place, count, dtype))
            place, missing = 0, missing - count
        return np.concatenate(pieces)

    def _transform(self, x: np.ndarray) -> np.ndarray:
        result: np.ndarray = fft.rfft(x, self._length, axis=0, workers=self._threads())
        return result

    def _inverse(self, x: np.ndarray) -> np.ndarray:
        result: np.ndarray = fft.irfft(x, self._length, axis=0, workers=self._threads())
        return result

    def _signs(self, stream: int, first: int, count: int, dtype: Any) -> np.ndarray:
        return signs(
            self.seed, stream, first, count, dtype, backend=self.backend, n_threads=self._threads()
        )


def circulant(
    m: int,
    n: int,
    *,
    seed: Seed = 0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> SubsampledCirculant:
    """Return m rows of a random circulant matrix, ``S = P C(r) D / sqrt(m)``.

    ``C(r)[i, j] = r[(i - j) mod n]`` with random signs r, D has random signs too, and P picks the
    first m rows.

    Parameters
    ----------
    m : int
        Rows of the sketch.
    n : int
        Rows of the matrix to be sketched.
    seed : int, Generator or None, optional
        Below 2^64. None takes fresh entropy; a generator gives one number.
    backend : str, optional
        See :mod:`quadric.backends`; it makes the random words, the rest is :mod:`scipy.fft`,
        or on a GPU the transform of the library that the array is from.
    n_threads : int, optional
        None follows the environment. The result does not depend on it.

    Returns
    -------
    SubsampledCirculant
        A dense operator: sketch-and-solve with it is accurate in each coordinate.

    Raises
    ------
    ValueError, TypeError
        If a number is out of range or no integer, or `m` is above `n`.

    Notes
    -----
    See [1]_. ``S @ A`` reads A once: it is cut into blocks of about m rows, and their convolutions
    are summed up before the one inverse transform. That costs about ``5 n d log2(2 m)`` flops.

    References
    ----------
    .. [1] Hinrichs and Vybiral, "Johnson-Lindenstrauss Lemma for Circulant Matrices", Random
       Structures and Algorithms 39 (3), 2011.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> S = qd.sketch.circulant(50, 1000, seed=0)
    >>> x = np.arange(1000.0)
    >>> np.allclose(S @ x, S.to_dense() @ x)
    True
    """
    m, n = check_shape(m, n)
    backends.resolve("random.philox", backend)
    threads.resolve(n_threads)
    return SubsampledCirculant(
        m=m,
        n=n,
        whole=(m, n),
        seed=random.resolve_seed(seed),
        backend=backend,
        n_threads=n_threads,
    )
