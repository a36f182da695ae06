"""What the Woodbury family returns."""

from dataclasses import dataclass

import numpy as np

from quadric import arrays
from quadric.arrays import Array


@dataclass(frozen=True, slots=True, eq=False)
class PrunedVector:
    """Weights with zeros.

    Attributes
    ----------
    weights : array, shape (d,)
        The weights that were kept, adapted, and zeros.
    mask : array of bool, shape (d,)
        True where a weight was kept.
    loss : array of float64, shape (n_blocks,)
        ``D^T F_b D / 2`` of each block, damping included, where D is what was changed: by how much
        the loss of the model is predicted to grow.
    """

    weights: Array
    mask: Array
    loss: Array

    @property
    def sparsity(self) -> float:
        """Share of the weights that are pruned."""
        kept = arrays.host(arrays.take(self.mask, "mask"))
        return 1.0 - int(np.count_nonzero(kept)) / kept.size

    def __repr__(self) -> str:
        return (
            f"PrunedVector(d={self.mask.shape[0]}, sparsity={self.sparsity:.3g}, "
            f"loss={float(self.loss.sum()):.4g})"
        )


@dataclass(frozen=True, slots=True, eq=False)
class WoodburySolution:
    """The solution of ``A y = x``, and the determinant of A.

    Attributes
    ----------
    x : array, shape (n,) or (k, n)
        ``A^-1 x``, of the shape and type of what was given.
    logdet : float
        ``log |det A|``.
    sign : float
        Sign of ``det A``, 1 or -1.
    """

    x: Array
    logdet: float
    sign: float


@dataclass(frozen=True, slots=True, eq=False)
class UpdatedInverse:
    """The inverse of A after an update of A.

    Attributes
    ----------
    inverse : array, shape (n, n)
        The new ``A^-1``.
    logdet : float
        By how much ``log |det A|`` has grown.
    sign : float
        Factor on the sign of ``det A``, 1 or -1.
    """

    inverse: Array
    logdet: float
    sign: float
