"""Matrices and least-squares problems, made quickly and with an answer that is known."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import scipy.linalg as la

from bench import common

RESIDUAL = 1e-3  # norm of what b has outside the range of A; the solution has norm 1
_ROWS = 2**15  # that are looked at in float64 at a time


def normal(n: int, d: int, dtype: Any = np.float64, seed: int = 0) -> np.ndarray:
    """Standard normal matrix (n, d), drawn by all threads."""
    X = np.empty((n, d), dtype)
    parts = np.array_split(X, common.THREADS)
    streams = np.random.default_rng(seed).spawn(common.THREADS)
    with ThreadPoolExecutor(common.THREADS) as pool:
        list(pool.map(lambda g, part: g.standard_normal(dtype=dtype, out=part), streams, parts))
    return X


@dataclass(frozen=True)
class LeastSquares:
    """min ||A x - b|| with the `solution` (d,) and A = U diag(sigma) Vt; A (n, d), b (n,)."""

    A: np.ndarray
    b: np.ndarray
    solution: np.ndarray
    sigma: np.ndarray  # (d,)
    Vt: np.ndarray  # (d, d)

    def astype(self, dtype: Any) -> "LeastSquares":
        """Round A and b: the answer is then known as well as `dtype` permits."""
        A, b = self.A.astype(dtype), self.b.astype(dtype)
        return LeastSquares(A, b, self.solution, self.sigma, self.Vt)

    def forward_error(self, x: np.ndarray) -> float:
        """Distance from the solution, which has norm 1."""
        return float(la.norm(x - self.solution))

    def backward_error(self, x: np.ndarray) -> float:
        """Relative change of A alone that makes `x` the solution, after Karlson and Walden.

        ||(A^T A + w^2 I)^-1/2 A^T r|| / (||x|| ||A||_F) with r = b - A x, w = ||r|| / ||x||: right
        to within a small factor.  BIT 37, 1997; Grcar, Saunders and Su, 2007.
        """
        x = x.astype(np.float64)
        gradient, square = np.zeros(len(x)), 0.0
        for start in range(0, len(self.b), _ROWS):
            rows = self.A[start : start + _ROWS].astype(np.float64, copy=False)
            r = self.b[start : start + _ROWS] - rows @ x
            gradient += rows.T @ r
            square += float(r @ r)
        w = np.sqrt(square) / la.norm(x)
        scaled = self.Vt @ gradient / np.sqrt(self.sigma**2 + w**2)
        return float(la.norm(scaled) / (la.norm(x) * la.norm(self.sigma)))


def least_squares(n: int, d: int, condition: float, seed: int = 0) -> LeastSquares:
    """Problem of that condition number, no column smaller than the others; float64.

    A = G diag(s) C with G of independent normal entries, s evenly spaced logarithms in random
    order, C the cosine transform: two passes, where a random orthogonal factor takes a product.
    """
    rng = np.random.default_rng(seed)
    G = normal(n, d, seed=seed + 1)
    G /= np.sqrt(n)
    s = rng.permutation(np.logspace(0, -np.log10(condition), d))
    R = la.cholesky(la.blas.dsyrk(1.0, G.T), overwrite_a=True)  # of G: well conditioned
    outside = rng.standard_normal(n)
    for _ in range(2):  # the second time removes what rounding has left
        outside -= G @ la.cho_solve((R, False), G.T @ outside)
    G *= s
    A = _cosines(G)
    _, sigma, Vt = la.svd(R * s)
    x = rng.standard_normal(d)
    x /= la.norm(x)
    b = A @ x + (RESIDUAL / la.norm(outside)) * outside
    return LeastSquares(A, b, x, sigma, _cosines(Vt))


def _cosines(X: np.ndarray) -> np.ndarray:
    """X C, where X may be overwritten."""
    Y: np.ndarray = scipy.fft.dct(X, axis=1, norm="ortho", workers=common.THREADS, overwrite_x=True)
    return Y
