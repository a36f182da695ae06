"""The triangular factor of a tall matrix on a GPU: Cholesky factors and products, and no wait.

What fails on the way (a pivot that is not positive) is noted in device memory, for who looks later.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from quadric import arrays, device
from quadric.device import DeviceArray

_STEPS = 4  # of power iteration


class Triangle:
    """``A D^-1 = Q R`` with columns scaled by their norms D, as far as a GPU has come with it.

    Parameters
    ----------
    top : DeviceArray of float64, shape (m, d)
        A, or a sketch of it; overwritten by Q.

    Attributes
    ----------
    Q : DeviceArray, shape (m, d)
    R : DeviceArray, shape (d, d)
        Upper triangular, of the scaled matrix.
    inverse : DeviceArray, shape (d, d)
        Of R.
    norms : DeviceArray, shape (d,)
        D.
    P : DeviceArray, shape (d, d)
        ``D^-1 R^-1``: the columns of ``A P`` are orthonormal.
    failures : list of DeviceArray of int32
        -1 where all went well.
    """

    def __init__(self, top: DeviceArray) -> None:
        d = top.shape[1]
        self.space = top.space
        self.failures: list[DeviceArray] = []
        self.norms = self._empty(d)
        run, linalg = self.space.run, device.linalg()
        run(linalg.column_norms, top, self.norms)
        run(device.arrays().divide, self.norms.spread(top.shape), top)
        self.Q, self.R = top, self._empty(d, d)
        self._noted(linalg.qr, top, self.R)
        self.inverse = self._empty(d, d)
        run(linalg.triangular_inverse, self.R, self.inverse)
        self.P = self._unscaled(self.inverse)

    def correct(self, gram: Callable[[DeviceArray, DeviceArray], None], ridge: float) -> None:
        """Turn the factor of a sketch into that of A, ``[A; sqrt(ridge) I]`` with ridge.

        ``gram(P, G)`` writes ``G = (A P)^T (A P)``. The condition of A P is small, so that the
        Cholesky factor of G has the accuracy of a QR factorization.
        """
        d = self.norms.size
        linalg = device.linalg()
        G, C, inverse = self._empty(d, d), self._empty(d, d), self._empty(d, d)
        gram(self.P, G)
        if ridge:
            self.product(self.P.T, self.P, G, ridge, 1.0)
        self._noted(linalg.symmetric_cholesky, G, C)
        self.space.run(linalg.triangular_inverse, C, inverse)
        self.R = self.product(C, self.R)
        self.inverse = self.product(self.inverse, inverse)
        self.P = self._unscaled(self.inverse)

    def product(
        self,
        A: DeviceArray,
        B: DeviceArray,
        out: DeviceArray | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
    ) -> DeviceArray:
        """Return ``alpha A B + beta out``, in `out` or in new memory."""
        out = self._empty(A.shape[0], B.shape[1]) if out is None else out
        self.space.run(device.linalg().product, A, B, out, alpha, beta)
        return out

    def unscaled(self) -> DeviceArray:
        """Return ``R D``, the factor of the matrix as it is."""
        R = self.R.copy()
        self.space.run(device.arrays().scale_rows, self.norms, R.T)
        return R

    def powers(self, R: DeviceArray, inverse: DeviceArray) -> list[DeviceArray]:
        """Return vectors, shape (d, 1), that tell :func:`condition` of a triangle and its inverse.

        They are the last two of a power iteration for each, without norms in between: at norms far
        from 1 they overflow.
        """
        result = []
        start = np.random.default_rng(0).standard_normal((len(R), 1))
        z = self.space.from_host(start / np.linalg.norm(start))
        for first, second in ((R, R.T), (inverse.T, inverse)):
            pair = [z, z]
            for _ in range(_STEPS):
                pair = [pair[1], self.product(second, self.product(first, pair[1]))]
            result += pair
        return result

    def shifted(self, R: DeviceArray, inverse: DeviceArray, phi: float, least: float) -> "Shifted":
        """Return what measures ``(z^T (R^T R + phi^2 I)^-1 z)^(1/2)``.

        `least` is about the smallest singular value of R, whose largest one is at most moderate.
        """
        return Shifted(self, R, inverse, phi, least)

    def _unscaled(self, inverse: DeviceArray) -> DeviceArray:
        P = inverse.copy()
        by = self.norms.reshape(-1, 1).spread(P.shape)
        self.space.run(device.arrays().divide, by, P)
        return P

    def _noted(self, kernel: Any, *arguments: DeviceArray) -> None:
        status = self.space.full(1, np.int32, -1)
        self.space.run(kernel, *arguments, result=status)
        self.failures.append(status)

    def _empty(self, *shape: int) -> DeviceArray:
        return self.space.empty(shape, np.float64)


class Shifted:
    """See :meth:`Triangle.shifted`.

    One of two symmetric matrices is factored. ``R^T R + phi^2 I`` has the condition ``1 / phi^2``
    for a norm of 1, and ``I + phi^2 R^-T R^-1`` has ``phi^2 / least^2``: the better one has at most
    the condition of R itself, where the first alone would have its square.
    """

    def __init__(
        self, triangle: Triangle, R: DeviceArray, inverse: DeviceArray, phi: float, least: float
    ) -> None:
        d = len(R)
        self._triangle, self._inverse = triangle, None
        if phi * phi >= least:
            G = triangle.product(R.T, R)
            arrays.add(G.diagonal(), triangle.space.full(d, np.float64, phi * phi))
        else:
            self._inverse = inverse
            G = triangle.product(inverse.T, inverse, None, phi * phi)
            arrays.add(G.diagonal(), triangle.space.full(d, np.float64, 1.0))
        self._T = triangle._empty(d, d)
        triangle.failures.clear()
        triangle._noted(device.linalg().symmetric_cholesky, G, self._T)

    def norms(self, z: np.ndarray) -> np.ndarray | None:
        """Return the norms of the columns of z, shape (d, k); None if the factorization failed."""
        triangle, linalg = self._triangle, device.linalg()
        y = triangle.space.from_host(z)
        if self._inverse is not None:
            y = triangle.product(self._inverse.T, y)
        triangle.space.run(linalg.triangular_solve, self._T, y, True, True)
        found = triangle._empty(z.shape[1] + 1)
        triangle.space.run(linalg.column_norms, y, found[1:])
        found[:1].assign(triangle.failures[-1])
        result = found.host()
        return result[1:] if result[0] == -1 and np.isfinite(result).all() else None


def fetched(parts: list[DeviceArray]) -> list[np.ndarray]:
    """Return arrays as float64 of NumPy, after a single wait."""
    sizes = [a.size for a in parts]
    ends = np.cumsum(sizes).tolist()
    together = parts[0].space.empty(ends[-1], np.float64)
    for a, size, end in zip(parts, sizes, ends, strict=True):
        together[end - size : end].assign(a.reshape(-1))
    found = together.host()
    return [
        found[end - size : end].reshape(a.shape)
        for a, size, end in zip(parts, sizes, ends, strict=True)
    ]


def condition(powers: np.ndarray) -> tuple[float, float]:
    """Return estimates of the largest singular value and the condition from :meth:`~.powers`.

    Both from below, rarely by a factor of ten.
    """
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(powers.reshape(4, -1), axis=1)
        largest, back = np.sqrt(lengths[1::2] / lengths[::2])
    return float(largest), float(largest * back)
