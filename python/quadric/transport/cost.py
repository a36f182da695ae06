"""What it costs to move mass: a stored matrix, or points from which each entry is computed."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

KINDS = {"sqeuclidean": 1, "euclidean": 2, "cityblock": 3, "cosine": 4}
"""The costs between points and their numbers in the kernels; 0 is a stored matrix."""

_SAMPLE = 4096  # entries that the scale of a cost is estimated from

Arguments: TypeAlias = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None, int]
"""The four arguments (M, x, y, kind) by which every kernel takes a cost."""


@dataclass(frozen=True, slots=True, eq=False)
class Cost:
    """The costs of B problems of one shape, as the kernels take them.

    Attributes
    ----------
    M : array, shape (B, n, m), or None
        Stored entries with any strides; Inf forbids a pair.
    x, y : array, shape (B, n, d) and (B, m, d), or None
        C-contiguous points, of unit length for the cosine.
    kind : int
        0 if `M` is stored, else one of :data:`KINDS`.
    lengths : pair of array of float64, shape (B, n) and (B, m), or None
        Of the points as they were given, for the cosine.
    """

    M: np.ndarray | None
    x: np.ndarray | None
    y: np.ndarray | None
    kind: int
    lengths: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def stored(cls, M: np.ndarray) -> "Cost":
        """Return the cost that is kept in `M`, shape (n, m) or (B, n, m)."""
        return cls(M if M.ndim == 3 else M[None], None, None, 0)

    @classmethod
    def points(cls, x: np.ndarray, y: np.ndarray, kind: int) -> "Cost":
        """Return the cost between points, shapes (n, d) and (m, d), or those of a batch.

        Raises
        ------
        ValueError
            If a vector is 0 and the cost is the cosine.
        """
        # The order of a sum follows the layout; so it is one layout for all that follows.
        x, y = (np.ascontiguousarray(p if p.ndim == 3 else p[None]) for p in (x, y))
        lengths = None
        if kind == KINDS["sqeuclidean"]:
            # |x|^2 - 2 x.y + |y|^2 cancels what the points have in common.
            center = (_mean(x) + _mean(y)) / 2
            x, y = (np.subtract(p, center, dtype=np.float64).astype(p.dtype) for p in (x, y))
        elif kind == KINDS["cosine"]:
            (x, of_x), (y, of_y) = _unit(x, "x"), _unit(y, "y")
            lengths = of_x, of_y
        return cls(None, x, y, kind, lengths)

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
        array = self.x if self.M is None else self.M
        assert array is not None
        return array.dtype

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

    def transposed(self) -> "Cost":
        """Return the cost with the roles of rows and columns exchanged, without a copy."""
        M = None if self.M is None else self.M.transpose(0, 2, 1)
        lengths = self.lengths and self.lengths[::-1]
        return Cost(M, self.y, self.x, self.kind, lengths)

    def select(self, rows: np.ndarray, columns: np.ndarray) -> "Cost":
        """Return a copy with the rows and columns where the masks (n,) and (m,) are True."""
        if self.M is not None:
            return Cost(self.M[:, rows][:, :, columns], None, None, 0)
        x, y = self._pair()
        lengths = self.lengths and (self.lengths[0][:, rows], self.lengths[1][:, columns])
        return Cost(None, x[:, rows], y[:, columns], self.kind, lengths)

    def rows(self, start: int, stop: int) -> "Cost":
        """Return the rows from `start` to `stop`, without a copy if there is one problem."""
        M = None if self.M is None else self.M[:, start:stop]
        x = None if self.x is None else np.ascontiguousarray(self.x[:, start:stop])
        lengths = self.lengths and (self.lengths[0][:, start:stop], self.lengths[1])
        return Cost(M, x, self.y, self.kind, lengths)

    def spread(self) -> float:
        """Return a scale of the cost: the median less the least of a sample of finite entries.

        The sample is the same in every call. 0 if the cost seems to be constant.
        """
        B, n, m = self.shape
        random = np.random.default_rng(0)
        k, i, j = (random.integers(0, size, _SAMPLE) for size in (B, n, m))
        if n == m:
            j = np.where(i == j, (j + 1) % m, j)  # the diagonal of equal clouds tells nothing
        entries = self._entries(k, i, j)
        entries = entries[np.isfinite(entries)]
        return float(np.median(entries) - entries.min()) if entries.size else 0.0

    def _pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the points of a cost that is computed from them."""
        assert self.x is not None
        assert self.y is not None
        return self.x, self.y

    def _entries(self, k: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        if self.M is not None:
            stored: np.ndarray = self.M[k, i, j].astype(np.float64)
            return stored
        points, others = self._pair()
        result = np.empty(len(k))
        step = max(1, 2**20 // points.shape[2])  # high dimensions would need much memory at once
        for p in range(0, len(k), step):
            s = slice(p, p + step)
            x, y = points[k[s], i[s]].astype(np.float64), others[k[s], j[s]].astype(np.float64)
            if self.kind == KINDS["cosine"]:
                result[s] = 1 - (x * y).sum(axis=1)
            elif self.kind == KINDS["cityblock"]:
                result[s] = np.abs(x - y).sum(axis=1)
            else:
                result[s] = np.square(x - y).sum(axis=1)
        return np.sqrt(result) if self.kind == KINDS["euclidean"] else result


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
