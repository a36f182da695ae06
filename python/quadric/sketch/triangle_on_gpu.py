"""The triangular factor of a tall matrix on a GPU: Cholesky factors and products, and no wait.

What fails on the way (a pivot that is not positive) is noted in device memory, for who looks later.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from quadric import arrays, device
from quadric.device import DeviceArray, Space

_STEPS = 4  # of power iteration
_NOTES = 2  # factorizations that may fail


class Triangle:
    """``A D^-1 = Q R`` with columns scaled by their norms D, as far as a GPU has come with it.

    Parameters
    ----------
    top : DeviceArray of float64, shape (m, d)
        A, or a multiple of a sketch of it; overwritten by Q.
    norms : DeviceArray of float64, shape (d,)
        Memory for D.
    rough : bool
        Whether the factor is going to be corrected, so that Q need not be orthonormal to rounding.

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
    failures : DeviceArray of int32, shape (2,)
        -1 where all went well.
    """

    def __init__(self, top: DeviceArray, norms: DeviceArray, *, rough: bool) -> None:
        d = top.shape[1]
        self.space, self.norms = top.space, norms
        self.failures, self._noted = self.space.full(_NOTES, np.int32, -1), 0
        run, linalg = self.space.run, device.linalg()
        run(linalg.column_norms, top, norms)
        run(device.arrays().divide, norms.spread(top.shape), top)
        self.Q, self.R, self.inverse = top, self._empty(d, d), self._empty(d, d)
        self._note(linalg.rough_qr if rough else linalg.qr, top, self.R)
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
        self._note(linalg.symmetric_cholesky, G, C)
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

    def powers(self, out: DeviceArray) -> None:
        """Write vectors, `out` of shape (4, d), that tell :func:`condition` of R.

        They are the last two of a power iteration for R and for its inverse, without norms in
        between: of a matrix with columns of norm 1 they are moderate.
        """
        R, inverse = self.R, self.inverse
        start = np.random.default_rng(0).standard_normal((len(R), 1))
        z = self.space.from_host(start / np.linalg.norm(start))
        for first, second, ends in ((R, R.T, out[:2]), (inverse.T, inverse, out[2:])):
            last = z
            for step in range(_STEPS):
                to = None if step < _STEPS - 2 else ends[step - _STEPS + 2][:, None]
                last = self.product(second, self.product(first, last), to)

    def shifted(self, tasks: "list[Shifted]") -> list[np.ndarray] | None:
        """Return ``|(R^T R + phi^2 I)^(-1/2) z|`` for the columns z of all tasks, after one wait.

        None if a factorization failed, of one of two symmetric matrices: ``R^T R + phi^2 I`` has
        the condition ``1 / phi^2`` for a norm of 1, and ``I + phi^2 R^-T R^-1`` has
        ``phi^2 / least^2``. The better one has at most the condition of R itself, where the first
        alone would have its square.
        """
        widths = [task.z.shape[1] for task in tasks]
        z = self.space.from_host(np.concatenate([task.z for task in tasks], axis=1))
        status = self.space.empty(len(tasks), np.int32)
        found = self._empty(sum(widths) + len(tasks))
        d, linalg = len(z), device.linalg()
        at = 0
        for i, (task, width) in enumerate(zip(tasks, widths, strict=True)):
            y, T, square = z[:, at : at + width], self._empty(d, d), task.phi**2
            if square >= task.least:
                R = _times(task.R, 1 / task.size)
                G, shift = self.product(R.T, R), square
            else:
                inverse = _times(task.inverse, task.size)
                G, shift = self.product(inverse.T, inverse, None, square), 1.0
                y = self.product(inverse.T, y)
            arrays.add(G.diagonal(), self.space.full(d, np.float64, shift))
            self.space.run(linalg.symmetric_cholesky, G, T, result=status[i : i + 1])
            self.space.run(linalg.triangular_solve, T, y, True, True)
            self.space.run(linalg.column_norms, y, found[at : at + width])
            at += width
        found[at:].assign(status)
        numbers = found.host()
        if not (numbers[at:] == -1).all() or not np.isfinite(numbers).all():
            return None
        return np.split(numbers[:at], np.cumsum(widths)[:-1])

    def _unscaled(self, inverse: DeviceArray) -> DeviceArray:
        P = inverse.copy()
        by = self.norms.reshape(-1, 1).spread(P.shape)
        self.space.run(device.arrays().divide, by, P)
        return P

    def _note(self, kernel: Any, *arguments: DeviceArray) -> None:
        self.space.run(kernel, *arguments, result=self.failures[self._noted : self._noted + 1])
        self._noted += 1

    def _empty(self, *shape: int) -> DeviceArray:
        return self.space.empty(shape, np.float64)


class Shifted(NamedTuple):
    """A task of :meth:`Triangle.shifted`, for the triangle ``R / size``.

    `least` is about its smallest singular value, and the largest one is at most moderate.
    """

    R: DeviceArray
    inverse: DeviceArray  # of R
    size: float
    phi: float
    least: float
    z: np.ndarray  # (d, any)


class Together:
    """Float64 arrays on a GPU that come to the host at once.

    Parameters
    ----------
    space : Space
    **shapes : tuple of int
        Their names and shapes.
    """

    def __init__(self, space: Space, **shapes: tuple[int, ...]) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        starts = np.cumsum([0, *(-(-size // _APART) * _APART for size in sizes)]).tolist()
        self._memory = space.full(starts[-1], np.float64, 0)
        self._parts = {
            name: (slice(start, start + size), shape)
            for (name, shape), start, size in zip(shapes.items(), starts, sizes, strict=False)
        }

    def __getitem__(self, name: str) -> DeviceArray:
        part, shape = self._parts[name]
        return self._memory[part].reshape(shape)

    def fetch(self) -> dict[str, np.ndarray] | None:
        """Return the arrays as those of NumPy, after a wait; None if a number is not finite."""
        numbers = self._memory.host()
        if not np.isfinite(numbers).all():
            return None
        return {name: numbers[part].reshape(shape) for name, (part, shape) in self._parts.items()}


_APART = 32  # entries: each array begins at a multiple of 256 bytes


def condition(powers: np.ndarray) -> tuple[float, float]:
    """Return estimates of the largest singular value and the condition from :meth:`~.powers`.

    Both from below, rarely by a factor of ten.
    """
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(powers, axis=1)
        largest, back = np.sqrt(lengths[1::2] / lengths[::2])
    return float(largest), float(largest * back)


def _times(a: DeviceArray, factor: float) -> DeviceArray:
    if factor == 1.0:
        return a
    result = a.copy()
    arrays.scale(result, factor)
    return result
