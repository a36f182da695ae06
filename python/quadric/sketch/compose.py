"""A sketch of a sketch."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from quadric.arrays import Data
from quadric.device import DeviceArray
from quadric.sketch.operator import SketchingOperator


@dataclass(frozen=True, kw_only=True, repr=False)
class Composition(SketchingOperator):
    """Two operators, one after the other; see :func:`compose`.

    Attributes
    ----------
    outer, inner : SketchingOperator
        S is ``outer @ inner``.
    """

    outer: SketchingOperator
    inner: SketchingOperator

    @property
    def scale(self) -> float:
        """The product of both scales."""
        return self.outer.scale * self.inner.scale

    @property
    def dense(self) -> bool:
        """Whether both are dense."""
        return self.outer.dense and self.inner.dense

    @property
    def oblivious(self) -> bool:
        """Whether both are."""
        return self.outer.oblivious and self.inner.oblivious

    def to_dense(self, dtype: Any = "float64") -> np.ndarray:
        """Return S as an array."""
        result: np.ndarray = self.outer @ self.inner.to_dense(dtype)
        return result

    def to_sparse(self, dtype: Any = "float64") -> sparse.csc_array:
        """Return S in CSC, where both have zeros."""
        return sparse.csc_array(self.outer.to_sparse(dtype) @ self.inner.to_sparse(dtype))

    def __repr__(self) -> str:
        return f"{self.outer!r} @ {self.inner!r}"

    @property
    def _block(self) -> int:
        return self.inner._block

    def _call(self) -> str:
        return repr(self)

    def _zeros(self, d: int, dtype: np.dtype[Any]) -> np.ndarray:
        return self.inner._zeros(d, dtype)

    def _add(self, A: Data, first: int, total: Data) -> None:
        self.inner._add(A, first, total)

    def _add_sparse(self, A: sparse.csr_array, first: int, total: np.ndarray) -> None:
        self.inner._add_sparse(A, first, total)

    def _value(self, total: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        result: np.ndarray = self.outer._sketch(self.inner._value(total, dtype))
        return result

    def _unscaled_on_gpu(self, A: DeviceArray) -> DeviceArray:
        return self.outer._unscaled_on_gpu(self.inner._unscaled_on_gpu(A))

    def _adjoint(self, B: Data) -> Data:
        return self.inner._adjoint(self.outer._adjoint(B))

    def _part(self, row: int, m: int, column: int, n: int) -> "Composition":
        outer, inner = self.outer, self.inner
        return replace(
            self,
            row=row,
            m=m,
            column=column,
            n=n,
            outer=outer._part(row, m, outer.column, outer.n),
            inner=inner._part(inner.row, inner.m, column, n),
        )


def compose(outer: SketchingOperator, inner: SketchingOperator) -> Composition:
    """Return the operator ``outer @ inner``.

    A fast operator first and a small dense one after it: the cost of the first, and the size and
    quality of the second.

    Parameters
    ----------
    outer : SketchingOperator, shape (m, k)
    inner : SketchingOperator, shape (k, n)

    Returns
    -------
    Composition

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        If one is no operator.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> S = qd.sketch.gaussian(32, 256) @ qd.sketch.count_sketch(256, 10_000)
    >>> S
    gaussian(32, 256, seed=0) @ count_sketch(256, 10000, seed=0)
    >>> (S @ np.ones((10_000, 4))).shape
    (32, 4)
    """
    for operator, name in ((outer, "outer"), (inner, "inner")):
        if not isinstance(operator, SketchingOperator):
            raise TypeError(f"{name} must be a sketching operator, got {type(operator).__name__}")
    if outer.n != inner.m:
        raise ValueError(
            f"inner must have {outer.n} rows to go with {outer!r}, got shape {inner.shape}"
        )
    return Composition(
        m=outer.m,
        n=inner.n,
        whole=(outer.whole[0], inner.whole[1]),
        row=outer.row,
        column=inner.column,
        seed=inner.seed,
        backend=inner.backend,
        n_threads=inner.n_threads,
        outer=outer,
        inner=inner,
    )
