"""How far from A the matrix is for which x is an exact solution, from a triangular factor of A.

    eta = phi / |r|  |(A^T A + phi^2 I)^-1/2 g|,    phi = theta |r| / sqrt(1 + theta^2 |x|^2)

with r = b - A x and g = A^T r. It is within a factor sqrt(2) of the smallest Frobenius norm of
[dA, theta db] for which x minimizes ``|b + db - (A + dA) x|``.
"""

import numpy as np
from scipy.linalg import lapack

from quadric.sketch.lstsq_factor import Factor, solve, svd

_BLOCK = 32
_LARGE = 1e30  # times |A|_F: what A^T A adds to its square is lost
_SAME = 0.1
_DECOMPOSE = 6  # from so many right-hand sides on, one SVD beats a QR factorization for each


class Shifted:
    """``sqrt(z^T (R^T R + phi_c^2 I)^-1 z)`` for each column c of z.

    Parameters
    ----------
    phi : array, shape (k,)
    R : array, shape (d, d), or None
        Upper triangular.
    V, sigma : array, shape (d, rank) and (rank,)
        Right singular vectors and values, used where there is no R; other directions do not count.
    """

    def __init__(
        self,
        phi: np.ndarray,
        R: np.ndarray | None,
        V: np.ndarray | None = None,
        sigma: np.ndarray | None = None,
    ) -> None:
        self.phi, self._V, self._sigma = phi, V, sigma
        self._triangles = []
        if R is not None:
            d = len(R)
            # Both halves are triangular: 2 d^3 / 3 flops. R^T R would square the condition.
            self._triangles = [
                lapack.dtpqrt(d, min(_BLOCK, d), R, np.asfortranarray(p * np.eye(d)))[0]
                for p in phi
            ]

    def norms(self, z: np.ndarray) -> np.ndarray:
        """Return the k norms for z of shape (d, k)."""
        if self._V is not None and self._sigma is not None:
            inner = (self._V.T @ z) / np.hypot(self._sigma[:, None], self.phi)
            return np.asarray(np.linalg.norm(inner, axis=0))
        parts = [solve(T, z[:, [c]], transposed=True) for c, T in enumerate(self._triangles)]
        return np.array([np.linalg.norm(part) for part in parts])


class Estimate:
    """Backward errors of one problem with k right-hand sides, relative to ``|A|_F``.

    Parameters
    ----------
    factor : Factor
        Of the sketch, or of A itself.
    b_norms : array, shape (k,)
        Norms of the right-hand sides, none of them 0.
    scaled : bool, optional
        Whether the columns of A count as scaled to norm 1: then every column changes by little
        relative to its own norm. If the factor is truncated, A counts as truncated, too.
    theta : float, optional
        Weight of changes of b in units of ``|A|_F / |b|``; Inf allows none.
    """

    def __init__(
        self, factor: Factor, b_norms: np.ndarray, *, scaled: bool = False, theta: float = 1.0
    ) -> None:
        self._factor, self._scaled = factor, scaled
        # In units of the largest column nothing overflows that the result does not.
        self._lengths = factor.norms if scaled else np.full_like(factor.norms, factor.norms.max())
        self._R: np.ndarray | None = factor.R / self._lengths
        self._V: np.ndarray | None = None
        self._sigma: np.ndarray | None = None
        if scaled and factor.truncated:
            V, sigma = factor.decompose()
            self._R, self._V, self._sigma = None, V[:, : factor.rank], sigma[: factor.rank]
        elif len(b_norms) >= _DECOMPOSE:
            if scaled:
                self._V, self._sigma = factor.decompose()
            else:
                _, self._sigma, vt = svd(self._R)
                self._V = vt.T
            self._R = None
        self.size = float(np.linalg.norm(factor.norms / self._lengths))
        with np.errstate(divide="ignore"):
            self._inverse_theta = b_norms / (theta * self.size)
        self._last: Shifted | None = None

    def at(self, g: np.ndarray, r_norms: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the backward errors, shape (k,), of x with its gradient and norms of residuals."""
        return self.of(self.shifted(r_norms, x), g / self._lengths[:, None], r_norms)

    def shifted(self, r_norms: np.ndarray, x: np.ndarray) -> Shifted:
        """Return the norm that gradients are measured in."""
        x_norms = np.linalg.norm(x * self._lengths[:, None], axis=0)
        # theta |r| / sqrt(1 + theta^2 |x|^2), written so that theta may be Inf.
        with np.errstate(divide="ignore", invalid="ignore"):
            phi = np.where(r_norms > 0, r_norms / np.hypot(self._inverse_theta, x_norms), 0.0)
        phi = np.minimum(phi, _LARGE * self.size)  # Inf if x is 0 and b may not change
        # The error is off by no more than phi is, so a factorization serves while x hardly moves.
        if self._last is None or (np.abs(phi - self._last.phi) > _SAME * phi).any():
            self._last = Shifted(phi, self._R, self._V, self._sigma)
        return self._last

    def of(self, norm: Shifted, z: np.ndarray, r_norms: np.ndarray) -> np.ndarray:
        """Return the backward errors that gradients z in units of the columns mean."""
        zero = r_norms == 0
        share = norm.phi / np.where(zero, 1.0, r_norms)
        return np.where(zero, 0.0, share * norm.norms(z) / self.size)
