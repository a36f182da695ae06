"""The triangular factor of a sketch of A: start and preconditioner of every solver.

With ``S A = Q R`` the columns of ``A R^-1`` are nearly orthonormal, whatever the condition of A.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg
from scipy.linalg import lapack

from quadric import arrays
from quadric.arrays import Data
from quadric.device import DeviceArray
from quadric.errors import LinAlgError
from quadric.sketch import scaling
from quadric.sketch.lstsq_passes import Passes, is_sparse

_BLOCK = 32  # columns of a panel of the QR factorization
_COPY = 256  # rows that are turned to column-major together, so that they stay in cache
_STEPS = 6  # of power iteration


@dataclass(slots=True, eq=False)
class Factor:
    """``S A = Q R``, with columns scaled to unit norm wherever a norm is compared with another.

    P is ``R^-1``, or of a numerically rank-deficient matrix ``D V Sigma^-1`` of the singular values
    that are kept, with ``S A D = U Sigma V^T`` and the scales D.

    Attributes
    ----------
    R : array of float64, shape (d, d)
        Upper triangular, column-major, of A as it is.
    norms : array of float64, shape (d,)
        Norms of the columns of R, 1 where that is 0. Scaled variables are ``norms * x``.
    start : array of float64, shape (rank, k)
        ``P start`` solves the sketched problem.
    rank : int
        Numerical rank.
    largest, condition : float
        Largest singular value of the scaled matrix, and its ratio to the smallest one that is kept.
        Estimates, unless the rank is in doubt.
    V, sigma : array of float64, shape (d, d) and (d,), or None
        All right singular vectors and values of the scaled matrix, where they were needed.
    truncated : bool
        Whether P comes from them.
    distortion : float
        About how far singular values of A P may be from 1; 0 of a factor of A itself.
    """

    R: np.ndarray
    norms: np.ndarray
    start: np.ndarray
    rank: int
    largest: float
    condition: float
    V: np.ndarray | None = None
    sigma: np.ndarray | None = None
    truncated: bool = False
    distortion: float = 0.0

    def apply(self, y: np.ndarray) -> np.ndarray:
        """Return ``P y``."""
        if not self.truncated:
            return solve(self.R, y)
        V, sigma = self._kept()
        return np.asarray(V @ (y / sigma[:, None]) / self.norms[:, None])

    def apply_t(self, g: np.ndarray) -> np.ndarray:
        """Return ``P^T g``."""
        if not self.truncated:
            return solve(self.R, g, transposed=True)
        V, sigma = self._kept()
        return np.asarray(V.T @ (g / self.norms[:, None]) / sigma[:, None])

    def lift(self, z: np.ndarray) -> np.ndarray:
        """Return the scaled gradient ``D g`` of which z is ``P^T g``."""
        if not self.truncated:
            return np.asarray(self.R.T @ z / self.norms[:, None])
        V, sigma = self._kept()
        return np.asarray(V @ (sigma[:, None] * z))

    def null_space(self) -> np.ndarray:
        """Return an orthonormal basis, shape (d, d - rank), of what A maps to 0."""
        assert self.V is not None
        basis = self.V[:, self.rank :] / self.norms[:, None]
        return np.asarray(np.linalg.qr(basis / np.abs(basis).max(axis=0, initial=0.0))[0])

    def decompose(self) -> tuple[np.ndarray, np.ndarray]:
        """Return V and sigma, shape (d, d) and (d,), computed at the first call."""
        if self.V is None or self.sigma is None:
            _, self.sigma, vt = svd(self.R / self.norms)
            self.V = vt.T
        return self.V, self.sigma

    def _kept(self) -> tuple[np.ndarray, np.ndarray]:
        V, sigma = self.decompose()
        return V[:, : self.rank], sigma[: self.rank]


def solve(R: np.ndarray, y: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """Return ``R^-1 y`` or ``R^-T y``; R is upper triangular and column-major."""
    x: np.ndarray = lapack.dtrtrs(R, y, trans=int(transposed))[0]
    return x


def svd(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return U, sigma and V^T of a small square matrix."""
    try:
        u, sigma, vt = linalg.svd(a, check_finite=False, overwrite_a=True)
    except linalg.LinAlgError:  # divide and conquer is known to give up now and then
        u, sigma, vt = linalg.svd(a, check_finite=False, lapack_driver="gesvd")
    return u, sigma, vt


def sketch(A: Any, b: Data, operator: Any | None, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Return ``S A`` over ``sqrt(ridge) I``, column-major, and ``S b`` over 0; S is I if not given.

    Sums over rows of float32 are float32 here: a sketch only has to be near what it stands for.
    """
    d, k = A.shape[1], b.shape[1]
    if isinstance(A, DeviceArray):
        A, b = (
            arrays.host(a if operator is None or isinstance(a, np.ndarray) else operator._sketch(a))
            for a in (A, b)
        )
        operator = None
    if operator is not None:
        A, b = operator @ A, operator @ b
    if is_sparse(A):
        A = A.toarray()
    m = len(b)
    rows = m + (d if ridge else 0)
    top, side = np.zeros((rows, d), A.dtype, order="F"), np.zeros((rows, k), A.dtype, order="F")
    for i in range(0, m, _COPY):
        top[i : min(i + _COPY, m)] = A[i : i + _COPY]
    side[:m] = b
    if ridge:
        top[m + np.arange(d), np.arange(d)] = np.sqrt(ridge)
    return top, side


def factorize(top: np.ndarray, side: np.ndarray, rcond: float | None) -> Factor | None:
    """Return the factor of a sketch, which is overwritten; None if an entry is not finite.

    Singular values up to `rcond` times the largest one count as 0. They are those of the scaled
    matrix if `rcond` is None (see :func:`default_rcond`), else those of the matrix as it is.
    """
    d = top.shape[1]
    functions: Any = lapack.get_lapack_funcs(("geqrt", "gemqrt"), (top,))
    geqrt, gemqrt = functions
    with np.errstate(over="ignore", invalid="ignore"):
        if not (np.isfinite(top.sum()) and np.isfinite(side.sum())) and not (
            np.isfinite(top).all() and np.isfinite(side).all()
        ):
            return None
    v, t, _ = geqrt(min(_BLOCK, d), top, overwrite_a=True)
    start = gemqrt(v, t, side, trans="T", overwrite_c=True)[0][:d].astype(np.float64)
    R = np.asfortranarray(np.triu(v[:d]), np.float64)
    if not (np.isfinite(R).all() and np.isfinite(start).all()):
        return None
    factor = of_triangle(R, start)
    if rcond is not None:
        unscale(factor)
    truncate(factor, default_rcond(top.dtype, d) if rcond is None else rcond)
    return factor


def unscale(factor: Factor) -> None:
    """Give all columns one length, such that ``|A|_F`` stays what it is."""
    largest = factor.norms.max()
    factor.norms[:] = largest * np.sqrt(np.mean(np.square(factor.norms / largest)))
    factor.V = factor.sigma = None
    _estimate(factor)


def truncate(factor: Factor, least: float) -> None:
    """Decide on the rank: singular values up to `least` times the largest one count as 0."""
    # The estimate is a lower bound, and rarely ten times too small.
    if factor.condition * 10 * least <= 1:
        return
    u, sigma, vt = svd(factor.R / factor.norms)
    rank = int(np.count_nonzero(sigma > least * sigma[0]))
    factor.V, factor.sigma = vt.T, sigma
    factor.rank, factor.largest = rank, float(sigma[0])
    factor.condition = float(sigma[0] / sigma[rank - 1]) if rank else np.inf
    factor.truncated = rank < len(sigma)
    if factor.truncated:
        factor.start = u[:, :rank].T @ factor.start


def lost(passes: Passes, factor: Factor, rcond: float | None) -> bool:
    """Return whether A, unlike its sketch, is not zero along what the factor leaves out.

    Two rows of A that alone reach some directions may meet in one row of a sketch: rare, and not to
    be taken for dependent columns. One read of A tells.
    """
    if not factor.truncated or not factor.distortion:
        return False
    assert factor.V is not None
    # Of the scaled columns: orthonormal vectors of x would mix entries of all sizes.
    null = factor.V[:, factor.rank :] / factor.norms[:, None]
    scales = np.where(factor.R.any(axis=0), factor.norms, 0.0)
    least = max(1e3 * float(np.finfo(passes.dtype).eps), 10 * (rcond or 0.0))
    limits = least * factor.largest * np.linalg.norm(scales[:, None] * null, axis=0)
    return bool((passes.lengths(null) > limits).any())


def redrawn(
    passes: Passes, draw: Callable[[int], Factor], rcond: float | None, attempts: int = 3
) -> Factor:
    """Return the factor of a sketch that has lost no direction of A: another one if it has.

    ``draw(0)`` returns the factor of the first sketch, ``draw(1)`` of the second one, and so on.
    """
    for attempt in range(attempts):
        factor = draw(attempt)
        if not lost(passes, factor, rcond):
            return factor
    raise LinAlgError(
        f"sketch_size must be larger, or operator or seed another: the sketch has rank "
        f"{factor.rank}, A more"
    )


def of_triangle(R: np.ndarray, start: np.ndarray) -> Factor:
    """Return the factor of a matrix that is taken to have full rank."""
    factor = Factor(R, column_norms(R), start, len(R), 0.0, 0.0)
    _estimate(factor)
    return factor


def default_rcond(dtype: Any, d: int) -> float:
    """Return the ratio to the largest singular value below which one of d counts as 0.

    Rounding alone leaves about u in place of a zero, and slowly more in larger matrices.
    """
    return max(30.0, d / 16) * float(np.finfo(dtype).eps) / 2


def column_norms(R: np.ndarray) -> np.ndarray:
    """Return the norms of columns, safe from overflow, and 1 in place of 0."""
    norms = scaling.norms(R)
    norms[norms == 0] = 1.0
    return norms


def _estimate(factor: Factor) -> None:
    """Estimate the largest and the smallest singular value by power iteration, both from inside."""
    R, norms = factor.R, factor.norms[:, None]
    z = np.random.default_rng(0).standard_normal((len(R), 1))
    factor.largest = _power(lambda z: np.asarray(R.T @ (R @ (z / norms))) / norms, z)
    if (R.diagonal() == 0).any():
        factor.condition = np.inf
        return
    with np.errstate(over="ignore", invalid="ignore"):
        back = _power(lambda z: norms * solve(R, solve(R, norms * z, transposed=True)), z)
        factor.condition = factor.largest * back if np.isfinite(back) else np.inf


def _power(step: Callable[[np.ndarray], np.ndarray], z: np.ndarray) -> float:
    """Return the square root of the largest eigenvalue of a step, from below."""
    size = 0.0
    for _ in range(_STEPS):
        z = step(z)
        size = float(np.linalg.norm(z))
        if size == 0 or not np.isfinite(size):
            break
        z /= size
    return math.sqrt(size)
