"""The inverse of ``A = shift I + K``, K the Gram matrix of a window, while rows are replaced."""

from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from quadric import arrays, device
from quadric.device import DeviceArray, Space
from quadric.woodbury.rows import factor_in_place, not_positive_definite

# Relative correction by a step of refinement at which the inverse is made anew: what is left after
# the step is its square, so nothing is lost.
_DRIFT = 1e-8


class WindowInverse:
    """``A^-1`` for a window that fills up to `capacity` rows, after which rows are replaced.

    Replacing a row of a full window takes a few products with m x m matrices. All solutions are
    refined once, and the size of the correction says how good the inverse still is: beyond 1e-8,
    and after `capacity` updates at the latest, it is made anew by Cholesky.

    Attributes
    ----------
    gram : ndarray, shape (capacity, capacity)
        K, symmetric; only the first `count` rows and columns are meant.
    inverse : ndarray, shape (count, count), or None
        Lower triangle of ``A^-1``, column-major; None where it is to be made at the next use.
    updates : int
        Rows replaced since it was made.
    """

    def __init__(self, capacity: int) -> None:
        self.gram = np.zeros((capacity, capacity), order="F")
        self.count = 0
        self.shift = 0.0
        self.inverse: np.ndarray | None = None
        self.updates = 0

    def replace(self, row: int, column: np.ndarray, shift: float) -> np.ndarray | None:
        """Set a row of K, the one after the last to add one; `column` has the new count of entries.

        Returns ``A^-1 e_row`` where it is a by-product of keeping the inverse, else None.
        """
        count = len(column)
        unit = None
        if self.inverse is not None and (count, shift) == (self.count, self.shift):
            unit = self._update(self.inverse, row, column)
        if unit is None:
            self.inverse = None
        self.gram[:count, row] = self.gram[row, :count] = column
        self.count, self.shift = count, shift
        return unit

    def solve(self, B: np.ndarray) -> np.ndarray:
        """Return ``A^-1 B`` for B of shape (count,) or (count, k).

        Raises
        ------
        LinAlgError
            If A is not positive definite in float64.
        """
        while True:
            inverse = self._make() if self.inverse is None else self.inverse
            X = _product(inverse, B)
            correction = _product(inverse, self._residual(B, X))
            X += correction
            limit = _DRIFT * np.abs(X).max(axis=0)
            if self.updates == 0 or (np.abs(correction).max(axis=0) <= limit).all():
                return X
            self.inverse = None

    def set_shift(self, shift: float) -> None:
        """Set the shift of A for the rows that are present."""
        if shift != self.shift:
            self.shift, self.inverse = shift, None

    def saved(self, row: int) -> tuple[Any, ...]:
        """Return what :meth:`restore` needs after a :meth:`replace` that gave None."""
        column = self.gram[:, row].copy()
        return row, column, self.count, self.shift, self.inverse, self.updates

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Undo what has happened since :meth:`saved`."""
        row, column, self.count, self.shift, self.inverse, self.updates = saved
        self.gram[:, row] = self.gram[row, :] = column

    def _make(self) -> np.ndarray:
        n = self.count
        A = self.gram[:n, :n].copy(order="F")
        A[np.diag_indices(n)] += self.shift
        L, info = lapack.dpotrf(A, lower=1, clean=0, overwrite_a=1)
        if info:
            raise not_positive_definite(self.gram.diagonal()[:n], self.shift)
        inverse: np.ndarray = lapack.dpotri(L, lower=1, overwrite_c=1)[0]
        self.inverse, self.updates = inverse, 0
        return inverse

    def _residual(self, B: np.ndarray, X: np.ndarray) -> np.ndarray:
        K = self.gram[: self.count, : self.count]
        # Where the window is full, half of K is enough.
        product = _product(K, X) if K.flags.f_contiguous else K @ X
        residual: np.ndarray = B - product - self.shift * X
        return residual

    def _update(self, inverse: np.ndarray, row: int, column: np.ndarray) -> np.ndarray | None:
        """Replace a row in `inverse`, and return its new column; None, and no change, to give up.

        Without the row, the inverse is ``P = A^-1 - u u^T / u_row``, u its column; with the new
        row it is ``P + s z z^T``, where ``z = (-P c, 1) / s`` and ``s = A_row,row - c^T P c``.
        """
        u = np.concatenate([inverse[row, :row], inverse[row:, row]])
        c = column.copy()
        c[row] = 0.0
        if self.updates + 1 >= len(self.gram) or not u[row] > 0:
            return None

        def without_row(b: np.ndarray) -> np.ndarray:
            y = _product(inverse, b)
            y -= u * ((u @ b) / u[row])
            y[row] = 0.0
            return y

        rough = without_row(c)
        residual = self._residual(c, rough)
        residual[row] = 0.0
        correction = without_row(residual)
        w = rough + correction
        # c.w of a better w still: the error of this is one of third order.
        s = float(column[row] + self.shift - c @ rough - w @ residual)
        # K is positive semidefinite, so that in exact arithmetic s is at least the shift.
        if not (s >= 0.5 * self.shift and np.abs(correction).max() <= _DRIFT * np.abs(w).max()):
            return None
        z: np.ndarray = w / -s
        z[row] = 1 / s
        x, y = z * np.sqrt(s), u / np.sqrt(u[row])
        blas.dsyr2(0.5, x + y, x - y, lower=1, a=inverse, overwrite_a=1)  # + x x^T - y y^T
        inverse[row, :row], inverse[row:, row] = z[:row], z[row:]
        self.updates += 1
        return z


class WindowOnGpu:
    """The same for a window on a GPU, where A is factored anew for each solution.

    A factorization takes less time there than the pass over the window that goes with it, and
    nothing that the host decides depends on the numbers, so that nothing waits for them.
    """

    inverse = None
    updates = 0

    def __init__(self, capacity: int, space: Space, check: bool) -> None:
        self.gram = space.full((capacity, capacity), np.float64, 0)
        self.count = 0
        self.shift = 0.0
        self.check = check

    def replace(self, row: int, column: DeviceArray, shift: float) -> None:
        """Set a row of K, the one after the last to add one; `column` has the new count of entries.

        There is no ``A^-1 e_row`` as a by-product here.
        """
        count = len(column)
        arrays.assign(self.gram[:count, row], column)
        arrays.assign(self.gram[row, :count], column)
        self.count, self.shift = count, shift

    def solve(self, B: DeviceArray) -> DeviceArray:
        """Return ``A^-1 B`` for B of shape (count,) or (count, k); NaN if A has no factor.

        Raises
        ------
        LinAlgError
            If A is not positive definite in float64, and that is looked at.
        """
        A = self.gram[: self.count, : self.count].copy()
        status = arrays.empty(A, 1, np.int32)
        factor_in_place(A, self.shift, status)
        if self.check and status.host()[0] != -1:
            raise not_positive_definite(self.gram.diagonal()[: self.count].host(), self.shift)
        X = B.copy().reshape(self.count, -1)
        X.space.run(device.linalg().cho_solve, A, X)
        return X.reshape(*B.shape)

    def set_shift(self, shift: float) -> None:
        """Set the shift of A for the rows that are present."""
        self.shift = shift

    def saved(self, row: int) -> tuple[Any, ...]:
        """Return what :meth:`restore` needs."""
        return row, self.gram[:, row].copy(), self.count, self.shift

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Undo what has happened since :meth:`saved`."""
        row, column, self.count, self.shift = saved
        arrays.assign(self.gram[:, row], column)
        arrays.assign(self.gram[row], column)


def _product(symmetric: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return the product with a symmetric matrix of which the lower triangle is given."""
    product = blas.dsymv if B.ndim == 1 else blas.dsymm
    result: np.ndarray = product(1.0, symmetric, B, lower=1)
    return result
