"""Tall matrices for the tests of operators and kernels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import strategies as draws

Array = NDArray[np.floating]

KINDS = ("normal", "graded", "coherent", "sparse")


def rows(rng: np.random.Generator, n: int, d: int, kind: str = "normal") -> Array:
    """Return n rows of d entries in float64."""
    a = rng.standard_normal((n, d))
    if kind == "graded":
        a *= 10.0 ** rng.uniform(-5, 5, (n, 1))
    if kind == "coherent":  # a few rows are all that matters
        a[rng.random(n) < 0.9] *= 1e-6
    if kind == "sparse":
        a[rng.random((n, d)) < 0.8] = 0
    return a


def integers(seed: int, shape: Any, dtype: Any = np.float64, largest: int = 8) -> Array:
    """Return integers: their sums are exact in any order."""
    rng = np.random.default_rng(seed)
    return rng.integers(-largest, largest + 1, shape).astype(dtype)


@dataclass(frozen=True, repr=False)
class Tall:
    """A matrix (n, d) in its dtype and layout, a number of rows of a sketch, and a seed."""

    a: Array
    m: int
    seed: int
    parameters: str = ""

    @property
    def exact(self) -> Array:
        return self.a.astype(np.float64)

    @property
    def eps(self) -> float:
        return float(np.finfo(self.a.dtype).eps)

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed % 2**32, 1])

    def like(self, shape: Any) -> Array:
        """Return normal numbers of the dtype."""
        return self.rng.standard_normal(shape).astype(self.a.dtype)

    def __repr__(self) -> str:
        return f"Tall({self.a.shape}, {self.a.dtype}, m={self.m}, {self.parameters})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


def make(
    n: int,
    d: int,
    m: int = 8,
    *,
    dtype: Any = np.float64,
    kind: str = "normal",
    layout: str = "C",
    seed: int = 0,
) -> Tall:
    a = rows(np.random.default_rng(seed % 2**32), n, d, kind).astype(dtype)
    return Tall(draws.relayout(a, layout), m, seed, f"{kind=}, {layout=}, {seed=}")


@st.composite
def tall(
    draw: st.DrawFn, *, max_rows: int = 130, max_columns: int = 40, max_sketch: int = 40
) -> Tall:
    """Draw a matrix with n rows; m is at most n."""
    n = draw(draws.sizes(max_rows))
    return make(
        n,
        draw(draws.sizes(max_columns)),
        draw(st.integers(1, min(n, max_sketch)) | st.just(min(n, max_sketch))),
        dtype=draw(draws.dtypes),
        kind=draw(st.sampled_from(KINDS)),
        layout=draw(draws.layouts),
        seed=draw(st.integers(0, 3) | st.integers(0, 2**64 - 1)),
    )
