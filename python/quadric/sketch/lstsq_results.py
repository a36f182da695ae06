"""What least-squares solvers return."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import linalg

from quadric import arrays
from quadric.arrays import Array


@dataclass(frozen=True, slots=True, eq=False)
class LstsqResult:
    """A least-squares solution and how good it is; unpacks as ``scipy.linalg.lstsq`` returns.

    If A is on a GPU, so are x, the residual and R; what is said of each right-hand side is NumPy's.

    ``x, residues, rank, s = result`` gives the solution, the squared norms of the residuals (empty
    if ``n <= d`` or ``rank < d``), the rank and the singular values of the sketch, which are within
    a third or so of those of A, largest first.

    Attributes
    ----------
    x : array, shape (d,) or (d, k)
        The solution, of the dtype and array type of A.
    residual : array, shape (n,) or (n, k)
        ``b - A x``.
    residual_norm : float or array of float64, shape (k,)
        Its Euclidean norm, without the share of `ridge`.
    iterations : int
        Iterations of the solver.
    passes : int
        How often A was read, the sketch included.
    method : str
        What was used: a method of :func:`lstsq`, "direct" where A was so small that it was factored
        itself, "minimum_norm" where it has fewer rows than columns.
    rank : int
        Numerical rank of A (with ridge, of what is factored).
    condition : float
        Estimate of the condition number of A with its columns scaled to norm 1, over the singular
        values that count.
    backward_error : float or array of float64, shape (k,)
        Estimate from the sketch of how much A and b would have to change, relative to ``|A|_F`` and
        ``|b|``, for x to be an exact solution; see :func:`lstsq_backward_error`.
    converged : bool
        Whether the solver reached what was asked for: a backward error of `tol`, or without `tol`
        of rounding, which with "precondition" and "iterative" is that of their own steps. The
        method "sketch" does not iterate: with `tol` it has converged if it happens to be that good,
        without `tol` always, and `backward_error` tells how good it is.
    history : structured array
        One row per point at which the residual was computed: method, iterations, passes,
        residual_norm (ridge included) and backward_error (columns scaled, the largest one over the
        right-hand sides), seconds so far.
    R : array of float64, shape (d, d)
        Triangular factor: the columns of ``A R^-1`` are nearly orthonormal, and are so to working
        precision with method "gram" or "direct". Of ``A^T`` if ``n < d``.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    >>> result = qd.sketch.lstsq(A, np.array([1.0, 2.0, 4.0]))
    >>> x, residues, rank, s = result
    >>> x.round(6), round(float(residues), 6), rank, s.round(4)
    (array([0.833333, 1.5     ]), 0.166667, 2, array([2.6762, 0.9153]))
    """

    x: Array
    residual: Array
    residual_norm: Any
    iterations: int
    passes: int
    method: str
    rank: int
    condition: float
    backward_error: Any
    converged: bool
    history: np.ndarray = field(repr=False)
    R: Array = field(repr=False)

    @property
    def singular_values(self) -> Array:
        """Singular values of the sketch, shape (d,), largest first, computed when asked for."""
        values = linalg.svdvals(arrays.host(arrays.take(self.R, "R")), check_finite=False)
        return arrays.like(self.x)(values)

    @property
    def residues(self) -> Array:
        """Squared norms of the residuals, empty if ``n <= d`` or ``rank < d``."""
        n, d = self.residual.shape[0], self.x.shape[0]
        like = arrays.like(self.x)
        if n <= d or self.rank < d:
            return like(np.empty(0))
        squares = np.square(self.residual_norm)
        return squares if isinstance(squares, float | np.ndarray) else like(np.asarray(squares))

    def __iter__(self) -> Iterator[Any]:
        yield from (self.x, self.residues, self.rank, self.singular_values)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return tuple(self)[index]

    def __repr__(self) -> str:
        shape = tuple(self.x.shape)
        norm = np.max(self.residual_norm)
        error = np.max(self.backward_error)
        parts = [f"x of shape {shape}", f"residual_norm={norm:.6g}", f"rank={self.rank}"]
        parts += [f"backward_error={error:.1e}", f"method={self.method!r}"]
        parts += [f"iterations={self.iterations}", f"converged={self.converged}"]
        return f"LstsqResult({', '.join(parts)})"
