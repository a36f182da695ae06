"""The algorithms of `quadric.sketch.lstsq` as one writes them in NumPy and SciPy.

Products with A and factorizations all go through SciPy's BLAS: NumPy brings a second one, and the
two fight for the processor.  Each function returns the solution and how often it read A after the
sketch, forth and back counted as one.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp

Answer: TypeAlias = tuple[np.ndarray, int]
Factor: TypeAlias = tuple[np.ndarray, np.ndarray]
Gram: TypeAlias = Callable[[np.ndarray], np.ndarray]
Done: TypeAlias = Callable[[int, np.ndarray, float], bool]  # iteration, y, length of its step

EPS = float(np.finfo(np.float64).eps) / 2
NNZ = 8
ROWS = 12  # of the sketch for each column
LIMIT = 100  # iterations
EVERY = 5  # iterations between two looks at the backward error


def embedding(
    m: int, n: int, nnz: int = NNZ, dtype: type = np.float64, seed: int = 0
) -> sp.csc_array:
    """Sparse sign matrix (m, n): `nnz` stacked CountSketches of m / nnz rows each."""
    rng = np.random.default_rng(seed)
    block = m // nnz
    rows = rng.integers(0, block, (n, nnz), np.int32) + block * np.arange(nnz, dtype=np.int32)
    signs = rng.integers(0, 2, n * nnz, np.int8).astype(dtype)
    values = (2 * signs - 1) / dtype(np.sqrt(nnz))
    starts = np.arange(0, n * nnz + 1, nnz, dtype=np.int32)
    return sp.csc_array((values, rows.ravel(), starts), shape=(block * nnz, n))


def times(A: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A x by SciPy's BLAS, which sees a matrix of contiguous rows as the transpose of its own."""
    gemv = la.get_blas_funcs("gemv", (A,))
    y: np.ndarray = gemv(1.0, A.T, x, trans=1) if A.flags.c_contiguous else gemv(1.0, A, x)
    return y


def adjoint(A: np.ndarray, r: np.ndarray) -> np.ndarray:
    """A^T r, the same way."""
    gemv = la.get_blas_funcs("gemv", (A,))
    g: np.ndarray = gemv(1.0, A.T, r) if A.flags.c_contiguous else gemv(1.0, A, r, trans=1)
    return g


def lsqr(A: np.ndarray, b: np.ndarray) -> Answer:
    """LSQR on A R^-1 from the sketched solution, S A = Q R.

    Rokhlin and Tygert, PNAS 105, 2008; LSQR: Paige and Saunders, ACM TOMS 8, 1982.
    """
    R, y = _triangle(A, b)
    start = _solve(R, y)
    u = b - times(A, start)
    beta = la.norm(u)
    u /= beta
    v = _solve(R, adjoint(A, u), transposed=True)
    alpha = la.norm(v)
    v /= alpha
    w, phi, rho = v.copy(), beta, alpha
    step = np.zeros_like(y)
    reads = 1
    while reads < LIMIT:
        reads += 1
        u = times(A, _solve(R, v)) - alpha * u
        beta = la.norm(u)
        u /= beta
        v = _solve(R, adjoint(A, u), transposed=True) - beta * v
        alpha = la.norm(v)
        v /= alpha
        length = np.hypot(rho, beta)
        cosine, sine = rho / length, beta / length
        step += (cosine * phi / length) * w
        moved = abs(cosine * phi / length) * la.norm(w)
        w = v - (sine * alpha / length) * w
        rho, phi = -cosine * alpha, sine * phi
        if moved <= EPS * la.norm(y + step):
            break
    return start + _solve(R, step), reads


def momentum(A: np.ndarray, b: np.ndarray) -> Answer:
    """Iterative sketching with momentum, every step from a fresh residual.

    x+ = x + alpha (R^T R)^-1 A^T (b - A x) + beta (x - x_before), beta = d / m,
    alpha = (1 - beta)^2.  Epperly, SIAM J. Matrix Anal. Appl. 45, 2024, arXiv:2311.04362.
    """
    R, y = _triangle(A, b)
    x = before = _solve(R, y)
    sigma = la.svdvals(R)
    beta = 1 / ROWS
    reads = 0
    while reads < LIMIT:
        reads += 1
        r = b - times(A, x)
        step = (1 - beta) ** 2 * _solve(R, _solve(R, adjoint(A, r), transposed=True))
        step += beta * (x - before)
        before, x = x, x + step
        if la.norm(times(R, step)) <= _floor(sigma, la.norm(x), la.norm(r)):
            break
    return x, reads


def spir(A: np.ndarray, b: np.ndarray) -> Answer:
    """Sketch-and-precondition with iterative refinement: two solves by conjugate gradients.

    Epperly, Meier and Nakatsukasa, Comm. Pure Appl. Math., 2025, arXiv:2406.03468.
    """

    def solve(gram: Gram, c: np.ndarray, done: Done) -> Answer:
        y, r, p = np.zeros_like(c), c.copy(), c.copy()
        square = r @ r
        for k in range(1, LIMIT + 1):
            q = gram(p)
            length = square / (p @ q)
            y += length * p
            if done(k, y, length * la.norm(p)):
                break
            r -= length * q
            square, last = r @ r, square
            p = r + (square / last) * p
        return y, k

    return _refined(A, b, solve)


def fossils(A: np.ndarray, b: np.ndarray) -> Answer:
    """The same with Polyak's heavy ball; the paper is that of :func:`spir`."""
    beta = 1 / ROWS

    def solve(gram: Gram, c: np.ndarray, done: Done) -> Answer:
        y = before = c
        for k in range(1, LIMIT + 1):
            step = (1 - beta) ** 2 * (c - gram(y)) + beta * (y - before)
            before, y = y, y + step
            if done(k, y, float(la.norm(step))):
                break
        return y, k

    return _refined(A, b, solve)


def _refined(
    A: np.ndarray, b: np.ndarray, solve: Callable[[Gram, np.ndarray, Done], Answer]
) -> Answer:
    """x += P y twice, (A P)^T A P y = (A P)^T (b - A x), until the backward error is rounding."""
    R, y = _triangle(A, b)
    U, sigma, Vt = la.svd(R, check_finite=False)
    P, y = np.ascontiguousarray(Vt.T / sigma), adjoint(U, y)  # A P is nearly orthonormal
    norm, ratio = la.norm(sigma), la.norm(sigma) / la.norm(b)

    def gram(y: np.ndarray) -> np.ndarray:
        return adjoint(P, adjoint(A, times(A, times(P, y))))

    def exact(x: np.ndarray) -> bool:
        r = b - times(A, x)
        size = np.sqrt(1 + (ratio * la.norm(x)) ** 2)
        scale = np.sqrt(sigma**2 + (ratio * la.norm(r) / size) ** 2)
        scaled = sigma * adjoint(P, adjoint(A, r)) / scale
        return bool(ratio / size * la.norm(scaled) <= EPS * norm)

    def refine(x: np.ndarray, last: bool) -> Answer:
        r = b - times(A, x)
        floor = 10 * _floor(sigma, la.norm(x), la.norm(r))
        looks = 0

        def done(k: int, y: np.ndarray, moved: float) -> bool:
            nonlocal looks
            if not last:
                return moved <= floor
            if k % EVERY:
                return False
            looks += 1
            return exact(x + times(P, y))

        y, k = solve(gram, adjoint(P, adjoint(A, r)), done)
        return x + times(P, y), 1 + k + looks

    x, first = refine(times(P, y), False)
    if exact(x):
        return x, first + 1
    x, second = refine(x, True)
    return x, first + 1 + second


def _floor(sigma: np.ndarray, solution: float, residual: float) -> float:
    """What rounding leaves of a step, measured by ||A step||."""
    return EPS * float(sigma[0] * solution + 0.04 * sigma[0] / sigma[-1] * residual)


def _triangle(A: np.ndarray, b: np.ndarray) -> Factor:
    """R (d, d) and Q^T S b, with S A = Q R."""
    n, d = A.shape
    S = embedding(ROWS * d // NNZ * NNZ, n)
    Q, R = la.qr(S @ A, mode="economic", overwrite_a=True, check_finite=False)
    return np.ascontiguousarray(R), adjoint(Q, S @ b)


def _solve(R: np.ndarray, y: np.ndarray, transposed: bool = False) -> np.ndarray:
    x: np.ndarray = la.solve_triangular(R, y, trans=int(transposed), check_finite=False)
    return x
