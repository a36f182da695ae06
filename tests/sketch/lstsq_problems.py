"""Least-squares problems with known solutions, and how good a solution is, in longdouble."""

from dataclasses import dataclass

import numpy as np

from tests.strategies import spectrum

U = {"float32": 2.0**-24, "float64": 2.0**-53}
STABLE = ("auto", "spir", "fossils", "gram")
FORWARD = ("precondition", "iterative")
METHODS = (*STABLE, *FORWARD, "sketch")


@dataclass(frozen=True, repr=False)
class LeastSquares:
    """``b = A x + r`` with r orthogonal to the range of A, up to rounding."""

    A: np.ndarray
    b: np.ndarray
    x: np.ndarray
    r: np.ndarray

    @property
    def u(self) -> float:
        return U[self.A.dtype.name]


def orthonormal(rng, n, k):
    return np.linalg.qr(rng.standard_normal((n, k)))[0]


def make(n, d, *, cond=1e3, rho=1e-3, kind="exponential", seed=0, dtype=np.float64, k=None):
    """Return a problem with singular values from 1 to 1 / cond, |x| = 1 and |r| = rho."""
    rng = np.random.default_rng(seed)
    u, v = orthonormal(rng, n, min(n, d + (k or 1))), orthonormal(rng, d, d)
    A = (u[:, :d] * spectrum(kind, d, cond)) @ v.T
    x = rng.standard_normal((d, k or 1))
    x /= np.linalg.norm(x, axis=0)
    r = rho * u[:, d:] if n > d else np.zeros((n, k or 1))
    if k is None:
        x, r = x[:, 0], r[:, 0]
    return LeastSquares(A.astype(dtype), (A @ x + r).astype(dtype), x, r)


def fixture(name):
    """Return one of the six problems that every solver must pass, and the rank of its matrix."""
    n, d = 1500, 30
    rng = np.random.default_rng(5)
    if name == "tall":
        return make(n, d, cond=1e5, rho=0.0), d
    if name == "low rank":
        u, v = orthonormal(rng, n, d // 2), orthonormal(rng, d, d // 2)
        A = (u * np.linspace(1, 0.1, d // 2)) @ v.T
        x = v @ rng.standard_normal(d // 2)
        return LeastSquares(A, A @ x, x, np.zeros(n)), d // 2
    if name == "square":
        return make(d, d, cond=1e5, rho=0.0), d
    if name == "orthogonal b":
        p = make(n, d, cond=1e2, rho=1.0)
        return LeastSquares(p.A, p.r, np.zeros(d), p.r), d
    if name == "two-level spectrum":
        return make(n, d, cond=1e5, rho=0.1, kind="step"), d
    copies = n // d  # the solution is the mean of the pieces of b
    A = np.tile(np.eye(d), (copies, 1))
    b = rng.standard_normal(n)
    x = b.reshape(copies, d).mean(axis=0)
    return LeastSquares(A, b, x, b - A @ x), d


FIXTURES = (
    "tall", "low rank", "square", "orthogonal b", "two-level spectrum", "stacked identity",
)  # fmt: skip


def karlson_walden(A, b, x, theta=1.0, rank=None):
    """Return the estimate of the backward error, relative to |A|_F, with a gradient in longdouble.

    Every entry of the gradient is right to 1e-19 |A| |r| n, so it is good for backward errors far
    below a unit of roundoff of float64.
    """
    wide = np.longdouble
    r = b.astype(wide) - A.astype(wide) @ x.astype(wide)
    g = (A.astype(wide).T @ r).astype(float)
    size, x_norm = float(np.sqrt((r * r).sum())), float(np.linalg.norm(x.astype(float)))
    _, s, vt = np.linalg.svd(A.astype(float), full_matrices=False)
    s, vt = s[:rank], vt[:rank]
    frobenius = np.linalg.norm(s)
    if size == 0:
        return 0.0
    length = np.hypot(np.linalg.norm(b.astype(float)) / (theta * frobenius), x_norm)
    if length == 0:  # the limit for large phi
        return np.linalg.norm(g) / size / frobenius
    phi = size / length
    return phi / size * np.linalg.norm((vt @ g) / np.hypot(s, phi)) / frobenius


def wedin(A, x, b, r, eta, rank=None):
    """Return bounds of the errors of x and r, to first order, for a backward error eta."""
    s = np.linalg.svd(A.astype(float), compute_uv=False)[:rank]
    dA, db = eta * np.linalg.norm(s), eta * np.linalg.norm(b)
    inverse = 1 / (s[-1] - min(dA, s[-1] / 2))
    moved = dA * np.linalg.norm(x) + db
    size = np.linalg.norm(r)
    return inverse * (moved + inverse * dA * size), moved + inverse * dA * size


def true_residual(A, x, b):
    wide = np.longdouble
    return (b.astype(wide) - A.astype(wide) @ x.astype(wide)).astype(float)
