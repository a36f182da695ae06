"""Passes over the rows of a tall matrix, dense or sparse, and the factor that makes it orthonormal.

Scores and samplers see A only through ``Q = A M``, whose columns are orthonormal. M is d x rank, is
small, and comes from a sketch of A that one more pass makes exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, sparse

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Data
from quadric.device import DeviceArray
from quadric.errors import LinAlgError
from quadric.sketch import cost_model, inputs
from quadric.sketch.hadamard import srht
from quadric.sketch.lstsq_factor import column_norms
from quadric.sketch.triangle_on_gpu import Together, Triangle, condition

NNZ = 8  # nonzeros per column of the sketch

_SPARSE_BLOCK = 4096  # rows of a sparse matrix that are made dense at a time
_ENTRIES = 2**25  # of a matrix on a GPU that are widened at a time


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of A, float32 or float64, at least one row and one column.

    Callers hold the BLAS pools to one thread, because the kernels call BLAS from their own.
    """

    a: inputs.Rows
    name: str
    backend: str | None
    n_threads: int | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        n, d = self.a.shape
        return int(n), int(d)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the entries."""
        found: np.dtype[Any] = np.dtype(self.a.dtype)
        return found

    def gram(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return ``A^T diag(weights) A``, float64."""

        def add(part: slice, block: np.ndarray, out: np.ndarray) -> None:
            w = None if weights is None else np.ascontiguousarray(weights[part])
            self._run("weighted_gram", block, w, out)

        return self._sum(add)

    def preconditioned_gram(self, inverse: np.ndarray) -> np.ndarray:
        """Return ``(A inverse)^T (A inverse)``, float64, for an upper triangular matrix."""
        inverse = np.ascontiguousarray(inverse)

        def add(_: slice, block: np.ndarray, out: np.ndarray) -> None:
            self._run("preconditioned_gram", block, inverse, out)

        return self._sum(add)

    def norms(self, M: np.ndarray | None = None) -> np.ndarray:
        """Return the squared norms of the rows of ``A M``, shape (n,), float64."""
        if isinstance(self.a, DeviceArray):
            return arrays.host(self.norms_on_gpu(M))
        out = np.zeros(self.shape[0])
        if M is not None and not M.shape[1]:
            return out
        M = None if M is None else np.ascontiguousarray(M)
        for part, block in self._blocks():
            self._run("row_norms", block, M, out[part])
        return out

    def norms_on_gpu(self, M: Data | None) -> DeviceArray:
        """Return what `norms` does where A is; M may be there too."""
        out: DeviceArray = arrays.zeros(self.a, self.shape[0], np.float64)
        if M is None or M.shape[1]:
            M = None if M is None else arrays.contiguous(M)
            self._run("row_norms", self.a, M, out)
        return out

    def sketch(self, m: int, seed: int) -> np.ndarray:
        """Return an m x d sketch of A by sparse signs, unscaled, float64."""
        out = arrays.zeros(self.a, (m, self.shape[1]), self.dtype)
        if isinstance(self.a, DeviceArray):
            self._run("sparse_sign", self.a, 0, seed, NNZ, out)
        else:
            for part, block in self._blocks():
                self._run("sparse_sign", block, part.start, seed, NNZ, out)
        return arrays.host(out).astype(np.float64, copy=False)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Return some rows as a dense float64 matrix."""
        if isinstance(self.a, DeviceArray):
            whole = len(index) == self.shape[0] and bool((index == np.arange(len(index))).all())
            rows = self.a if whole else _taken(self.a.T, index).T
            taken = arrays.host(rows)
        else:
            taken = inputs.dense_of(self.a[index])
        result: np.ndarray = taken.astype(np.float64, copy=False)
        return result

    def times(self, M: np.ndarray, dtype: Any = None) -> Data:
        """Return ``A M``, computed in float64 block by block and rounded once, where A is."""
        n, d = self.shape
        if isinstance(self.a, DeviceArray):
            result = arrays.empty(self.a, (n, M.shape[1]), self.dtype if dtype is None else dtype)
            there = arrays.beside(np.ascontiguousarray(M), self.a)
            step = max(_ENTRIES // d, 16)
            for first in range(0, n if M.size else 0, step):
                piece = arrays.rows(self.a[first : first + step].astype(np.float64, copy=False))
                to = result[first : first + step]
                exact = to if to.dtype == np.float64 else arrays.empty(to, to.shape, np.float64)
                self.a.space.run(device.linalg().product, piece, there, exact, 1.0, 0.0)
                if exact is not to:
                    to.assign(exact)
            return result
        out = np.empty((n, *M.shape[1:]), self.dtype if dtype is None else dtype)
        for part, block in self._blocks(max(262_144 // d, 16)):
            out[part] = block.astype(np.float64, copy=False) @ M
        return out

    def columns(self, index: np.ndarray) -> "Rows":
        """Return some of the columns, copied."""
        if isinstance(self.a, DeviceArray):
            return Rows(_taken(self.a, index), self.name, self.backend, self.n_threads)
        return Rows(self.a[:, index], self.name, self.backend, self.n_threads)

    def refuse_what_is_not_finite(self) -> None:
        """Name the first NaN or Inf; entries that are finite have overflowed."""
        inputs.finite(self.a, self.name)
        raise ValueError(f"{self.name} must have squared norms that float64 can hold")

    def _blocks(self, size: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        n = self.shape[0]
        size = size or (_SPARSE_BLOCK if inputs.is_sparse(self.a) else n)
        for first in range(0, n, size):
            part = slice(first, min(first + size, n))
            yield part, inputs.dense_of(self.a[part])

    def _sum(self, add: Any) -> np.ndarray:
        d = self.shape[1]
        total, out = np.zeros((d, d)), np.empty((d, d))
        for part, block in self._blocks():
            add(part, block, out)
            total += out
        return total

    def _run(self, kernel: str, *arguments: Any) -> None:
        run = backends.resolve(f"sketch.{kernel}", self.backend, self.a)
        run(*arguments, threads.resolve(self.n_threads, self.a))


def _taken(a: DeviceArray, columns: np.ndarray) -> DeviceArray:
    out = a.space.empty((a.shape[0], len(columns)), a.dtype)
    if out.size:
        index = np.ascontiguousarray(columns, np.int64)
        a.space.run(device.arrays().take_columns, a, index, out)
    return out


def check_rows(
    A: Any, name: str, backend: str | None, n_threads: int | None, *, gpu: bool = False
) -> Rows:
    """Return the rows of `A`: an array, or a sparse matrix of SciPy, which becomes CSR."""
    a = inputs.rows_of(A, name) if sparse.issparse(A) else checks.matrix(A, name, gpu=gpu)
    threads.resolve(n_threads, a)
    backends.resolve("sketch.row_norms", backend, a)
    if 0 in a.shape:
        raise ValueError(f"{name} must have at least one row and column, got shape {a.shape}")
    return Rows(a, name, backend, n_threads)


@dataclass(frozen=True, slots=True)
class Factor:
    """A basis of the range of A.

    Attributes
    ----------
    M : array of float64, shape (d, rank)
        ``A M`` has orthonormal columns. Rows of columns of A that are not needed are 0.
    R : array of float64, shape (rank, rank)
        Upper triangular, with ``A[:, kept] = (A M) R``.
    kept : array of int64, shape (rank,)
        Columns of A that span its range, in the order of R.
    """

    M: np.ndarray
    R: np.ndarray
    kept: np.ndarray

    @property
    def rank(self) -> int:
        """Numerical rank of A."""
        return len(self.kept)


def factorize(rows: Rows, *, ridge: float = 0.0, exact: bool = True, seed: int = 0) -> Factor:
    """Return the factor of ``[A; sqrt(ridge) I]``.

    A tall matrix is sketched to ``R1 = qr(S A)``; then ``G = (A R1^-1)^T (A R1^-1)`` is close to I
    and its Cholesky factor C gives ``R = C R1`` with the accuracy of a QR factorization of A,
    because ``A R1^-1`` has a small condition number whatever that of A. Without `exact` R is R1.

    A column counts as dependent on others when what is left of it, relative to its norm, is below
    10 d eps, with the eps of the dtype of A.
    """
    n, d = rows.shape
    m = _sketch_rows(d, exact=exact)
    direct = n <= 2 * m
    top = rows.take(np.arange(n)) if direct else rows.sketch(m, seed) / np.sqrt(NNZ)
    if not np.isfinite(top).all():
        rows.refuse_what_is_not_finite()
    if ridge:
        top = np.concatenate((top, np.sqrt(ridge) * np.eye(d)))
    first = _triangle(top, 10 * d * float(np.finfo(rows.dtype).eps))
    if direct or not exact or not first.rank:
        return first
    if first.rank < d:
        # Ridge needs every column, and has them all unless it is tiny.
        if ridge:
            raise LinAlgError(
                f"ridge must be larger: {rows.name} has rank {first.rank} of {d} with it"
            )
        part = factorize(rows.columns(first.kept), seed=seed)
        M = np.zeros((d, part.rank))
        M[first.kept] = part.M
        return Factor(M, part.R, first.kept[part.kept])
    order = first.kept
    inverse = linalg.solve_triangular(first.R, np.eye(d))
    straight = bool((order == np.arange(d)).all())
    G = (rows if straight else rows.columns(order)).preconditioned_gram(inverse)
    if ridge:
        G += ridge * inverse.T @ inverse
    try:
        C = linalg.cholesky(G)
    except (linalg.LinAlgError, ValueError):
        raise LinAlgError(
            f"{rows.name} could not be made orthonormal: its sketch lost a direction; try another "
            "seed"
        ) from None
    M = np.empty((d, d))
    M[order] = linalg.solve_triangular(C.T, inverse.T, lower=True).T
    return Factor(M, C @ first.R, order)


def scores_on_gpu(rows: Rows, *, ridge: float = 0.0, seed: int = 0) -> DeviceArray | None:
    """Return the leverage scores from ``A M`` of :func:`factorize`, without the CPU.

    None where the rank of A is in doubt.
    """
    n, d = rows.shape
    m, scale = cost_model.rows_on_gpu(d), 1.0
    direct = n <= 2 * m
    if direct:
        part = rows.a.astype(np.float64, copy=True)
    else:
        operator = srht(m, n, seed=seed)
        scale = operator.scale
        part = operator._unscaled_on_gpu(rows.a).astype(np.float64, copy=False)
    top = part
    if ridge:
        top = arrays.zeros(part, (len(part) + d, d), np.float64)
        top[: len(part)].assign(part)
        top[len(part) :].diagonal().fill(np.sqrt(ridge) / scale)
    if len(top) < d:
        return None
    there = Together(part.space, norms=(d,), powers=(4, d), failures=(2,))
    triangle = Triangle(top, there["norms"], rough=not direct)
    if not direct:
        triangle.correct(lambda P, G: rows._run("preconditioned_gram", rows.a, P, G), ridge)
    triangle.powers(there["powers"])
    there["failures"].assign(triangle.failures)
    found = there.fetch()  # the last pass needs no wait after it
    if found is None or (found["failures"] != -1).any():
        return None
    _, cond = condition(found["powers"])
    if not cond * 400 * d * float(np.finfo(rows.dtype).eps) < 1:
        return None
    result: DeviceArray = rows.a.space.empty(n, np.float64)
    result.space.run(device.sketch().triangular_row_norms, rows.a, triangle.P, result)
    result = result.space.apply(lambda xp, scores: xp.clip(scores, 0.0, 1.0), result)
    return result.astype(rows.dtype, copy=False)


def _sketch_rows(d: int, *, exact: bool) -> int:
    """Return how many rows a sketch is to have.

    Nine rows per block at least: two rows of A that meet in every block look the same.
    """
    return NNZ * (8 - (-4 * d // NNZ) if exact else 8 - (-16 * d // NNZ))


def _triangle(a: np.ndarray, tol: float) -> Factor:
    """Return the factor of a small matrix, its columns in their own order at rank d."""
    n, d = a.shape
    scale = column_norms(a)
    R = linalg.qr(a / scale, mode="r", check_finite=False)[0][:d]
    kept = np.arange(d)
    if n < d or _reciprocal_condition(R) < 4 * tol:
        R, order = linalg.qr(R, mode="r", pivoting=True, check_finite=False)
        pivots = np.abs(R.diagonal())
        rank = int((pivots > tol).sum())
        R, kept = R[:rank, :rank], order[:rank].astype(np.int64)
    M = np.zeros((d, len(kept)))
    if len(kept):
        M[kept] = linalg.solve_triangular(R, np.eye(len(kept))) / scale[kept, None]
    return Factor(M, R * scale[kept], kept)


def _reciprocal_condition(R: np.ndarray) -> float:
    value, _ = linalg.lapack.dtrcon(R, norm="1", uplo="U")
    return float(value)
