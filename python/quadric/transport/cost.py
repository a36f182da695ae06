"""What it costs to move mass: a stored matrix, or points from which each entry is computed."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from quadric import arrays, device
from quadric.arrays import Data
from quadric.device import DeviceArray

KINDS = {"sqeuclidean": 1, "euclidean": 2, "cityblock": 3, "cosine": 4}
"""The costs between points and their numbers in the kernels; 0 is a stored matrix."""

_SAMPLE = 4096  # entries that the scale of a cost is estimated from
_LARGE = 2**16  # numbers of a cloud from which on a GPU prepares its own

Arguments: TypeAlias = tuple[Data | None, Data | None, Data | None, int]
"""The four arguments (M, x, y, kind) by which every kernel takes a cost."""


@dataclass(frozen=True, slots=True, eq=False)
class Cost:
    """The costs of B problems of one shape, as the kernels take them: all in one memory.

    Attributes
    ----------
    M : array, shape (B, n, m), or None
        Stored entries with any strides; Inf forbids a pair.
    x, y : array, shape (B, n, d) and (B, m, d), or None
        C-contiguous points, of unit length for the cosine.
    kind : int
        0 if `M` is stored, else one of :data:`KINDS`.
    lengths : pair of NumPy array of float64, shape (B, n) and (B, m), or None
        Of the points as they were given, for the cosine.
    """

    M: Data | None
    x: Data | None
    y: Data | None
    kind: int
    lengths: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def stored(cls, M: Data) -> "Cost":
        """Return the cost that is kept in `M`, shape (n, m) or (B, n, m)."""
        return cls(M if M.ndim == 3 else M[None], None, None, 0)

    @classmethod
    def points(cls, x: Data, y: Data, kind: int) -> "Cost":
        """Return the cost between points, shapes (n, d) and (m, d), or those of a batch.

        Raises
        ------
        ValueError
            If a vector is 0 and the cost is the cosine.
        """
        # The order of a sum follows the layout; so it is one layout for all that follows.
        x, y = (arrays.contiguous(p if p.ndim == 3 else p[None]) for p in (x, y))
        lengths = None
        if kind == KINDS["sqeuclidean"]:
            # |x|^2 - 2 x.y + |y|^2 cancels what the points have in common.
            x, y = _centred(x, y)
        elif kind == KINDS["cosine"]:
            units = [_unit(arrays.host(p), name) for p, name in ((x, "x"), (y, "y"))]
            x, y = (arrays.beside(unit, x) for unit, _ in units)
            lengths = units[0][1], units[1][1]
        return cls(None, x, y, kind, lengths)

    @property
    def array(self) -> Data:
        """An array of the cost: the kernels work in its memory."""
        return self.x if self.M is None else self.M

    @property
    def shape(self) -> tuple[int, int, int]:
        """Problems, rows and columns."""
        if self.M is not None:
            B, n, m = self.M.shape
            return B, n, m
        x, y = self._pair()
        return len(x), x.shape[1], y.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Float32 or float64."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    @property
    def args(self) -> Arguments:
        """The arguments of a kernel that takes all problems at once."""
        return self.M, self.x, self.y, self.kind

    @property
    def by_columns(self) -> bool:
        """Whether a column lies closer together in memory than a row."""
        return self.M is not None and abs(self.M.strides[1]) < abs(self.M.strides[2])

    def single(self, k: int = 0) -> Arguments:
        """Return the arguments of a kernel that takes one problem, the k-th."""
        M, x, y = (None if a is None else a[k] for a in (self.M, self.x, self.y))
        return M, x, y, self.kind

    def item(self, k: int) -> "Cost":
        """Return the k-th problem alone."""
        M, x, y = (None if a is None else a[k : k + 1] for a in (self.M, self.x, self.y))
        lengths = self.lengths and (self.lengths[0][k : k + 1], self.lengths[1][k : k + 1])
        return Cost(M, x, y, self.kind, lengths)

    def host(self) -> "Cost":
        """Return the cost in CPU memory; a copy where it is on a GPU."""
        M, x, y = (None if a is None else arrays.host(a) for a in (self.M, self.x, self.y))
        return Cost(M, x, y, self.kind, self.lengths)

    def transposed(self) -> "Cost":
        """Return the cost with the roles of rows and columns exchanged, without a copy."""
        M = None if self.M is None else self.M.transpose(0, 2, 1)
        lengths = self.lengths and self.lengths[::-1]
        return Cost(M, self.y, self.x, self.kind, lengths)

    def select(self, rows: np.ndarray, columns: np.ndarray) -> "Cost":
        """Return a copy with these rows and columns, which are masks (n,) and (m,) or numbers."""
        if self.M is not None:
            return Cost(_cut(self.M, rows, columns), None, None, 0)
        x, y = self._pair()
        lengths = self.lengths and (self.lengths[0][:, rows], self.lengths[1][:, columns])
        return Cost(None, _cut(x, rows), _cut(y, columns), self.kind, lengths)

    def rows(self, start: int, stop: int) -> "Cost":
        """Return the rows from `start` to `stop`, without a copy if there is one problem."""
        M = None if self.M is None else self.M[:, start:stop]
        x = None if self.x is None else arrays.contiguous(self.x[:, start:stop])
        lengths = self.lengths and (self.lengths[0][:, start:stop], self.lengths[1])
        return Cost(M, x, self.y, self.kind, lengths)

    def spread(self) -> float:
        """Return a scale of the cost: the median less the least of a sample of finite entries.

        The sample is the same in every call. 0 if the cost seems to be constant.
        """
        entries = self._entries(*_sample(*self.shape))
        entries = entries[np.isfinite(entries)]
        return float(np.median(entries) - entries.min()) if entries.size else 0.0

    def all_finite(self) -> bool:
        """Say whether no entry of a stored cost is NaN or infinite; waits for a GPU."""
        M = self.M
        assert M is not None
        if isinstance(M, DeviceArray):
            if M.c_contiguous or M.transpose(0, 2, 1).c_contiguous:
                return arrays.all_finite(M if M.c_contiguous else M.transpose(0, 2, 1))
            return all(arrays.all_finite(one) for one in M)
        with np.errstate(over="ignore", invalid="ignore"):
            # One pass without a temporary, and the rule. Finite entries may overflow, though.
            return bool(np.isfinite(M.sum()) or np.isfinite(M).all())

    def largest(self) -> float:
        """Return the largest absolute coordinate of x plus that of y."""
        return sum(arrays.largest(p) for p in self._pair())

    def _pair(self) -> tuple[Data, Data]:
        """Return the points of a cost that is computed from them."""
        assert self.x is not None
        assert self.y is not None
        return self.x, self.y

    def _entries(self, k: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        if self.M is not None:
            return arrays.at(self.M, k, i, j).astype(np.float64)
        points, others = self._pair()
        d = points.shape[2]
        result = np.empty(len(k))
        step = max(1, 2**20 // d)  # high dimensions would need much memory at once
        for p in range(0, len(k), step):
            s = slice(p, p + step)
            x, y = (
                arrays.at(q, k[s, None], r[s, None], np.arange(d)[None])
                .astype(np.float64)
                .reshape(-1, d)
                for q, r in ((points, i), (others, j))
            )
            if self.kind == KINDS["cosine"]:
                result[s] = 1 - (x * y).sum(axis=1)
            elif self.kind == KINDS["cityblock"]:
                result[s] = np.abs(x - y).sum(axis=1)
            else:
                result[s] = np.square(x - y).sum(axis=1)
        return np.sqrt(result) if self.kind == KINDS["euclidean"] else result


@lru_cache(maxsize=16)
def _sample(B: int, n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return problem, row and column of entries that stand for all of them."""
    random = np.random.default_rng(0)
    k, i, j = (random.integers(0, size, _SAMPLE) for size in (B, n, m))
    if n == m:
        j = np.where(i == j, (j + 1) % m, j)  # the diagonal of equal clouds tells nothing
    return k, i, j


def _cut(a: Data, rows: np.ndarray, columns: np.ndarray | None = None) -> Data:
    """Return a copy of a batch with these rows, and columns if they are given."""
    if not isinstance(a, DeviceArray):
        return a[:, rows] if columns is None else a[:, rows][:, :, columns]
    if columns is None:
        columns = np.arange(a.shape[2])
    i, j = (np.flatnonzero(k) if k.dtype == np.bool_ else k for k in (rows, columns))
    result = a.space.empty((len(a), len(i), len(j)), a.dtype)
    for one, part in zip(a, result, strict=True):
        arrays.cut(one, i, j, out=part)
    return result


def _centred(x: Data, y: Data) -> tuple[Data, Data]:
    """Return the clouds of a batch less their common means."""
    if isinstance(x, DeviceArray) and len(x) == 1 and x.size + y.size >= _LARGE:
        center = (_mean_there(x) + _mean_there(y)) / 2
        results = x.space.empty(x.shape, x.dtype), y.space.empty(y.shape, y.dtype)
        for p, result in zip((x, y), results, strict=True):
            p.space.run(device.arrays().subtract_row, p[0], center, result[0])
        return results
    points = arrays.host(x), arrays.host(y)
    center = (_mean(points[0]) + _mean(points[1])) / 2
    centred = (np.subtract(p, center, dtype=np.float64).astype(p.dtype) for p in points)
    left, right = (arrays.beside(p, x) for p in centred)
    return left, right


def _mean_there(points: DeviceArray) -> np.ndarray:
    return arrays.column_sums(points[0]) / points.shape[1]


def _mean(points: np.ndarray) -> np.ndarray:
    mean: np.ndarray = points.mean(axis=1, keepdims=True, dtype=np.float64)
    return mean


def _unit(points: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return points of unit length, and what their lengths were."""
    # The largest entry comes out first, so that no square over- or underflows.
    largest = np.abs(points).max(axis=2, keepdims=True, initial=0).astype(np.float64)
    if not largest.all():
        i = int(np.argmin(largest[..., 0].min(axis=0)))
        raise ValueError(f"{name} must not hold zero vectors if cost='cosine', got one at row {i}")
    scaled = points / largest
    lengths = np.linalg.norm(scaled, axis=2, keepdims=True)
    return (scaled / lengths).astype(points.dtype), (lengths * largest)[..., 0]
