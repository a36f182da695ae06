"""Hypothesis draws parameters (sizes, spectrum, scale, layout, a seed); arrays follow from them.

This shrinks to a small, well conditioned problem and never searches over single entries.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[np.floating]

DTYPES = (np.float32, np.float64)
LAYOUTS = ("C", "F", "padded", "negative", "step2")
# Zero is tested where it means something; the others straddle every block size in use.
EDGE_SIZES = (1, 2, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129, 131)

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(LAYOUTS)


def sizes(largest: int) -> st.SearchStrategy[int]:
    """Any size from 1 to ``largest``, with the edges of blocks drawn often."""
    return st.integers(1, largest) | st.sampled_from([s for s in EDGE_SIZES if s <= largest])


def relayout(a: Array, layout: str) -> Array:
    """Return a view with the values of ``a`` in another layout, NaN wherever nobody may look."""
    if layout == "C":
        return np.ascontiguousarray(a)
    if layout == "F":
        return np.asfortranarray(a)
    if layout == "padded":
        guarded = np.full((*a.shape[:-1], a.shape[-1] + 3), np.nan, a.dtype)
        view = guarded[..., : a.shape[-1]]
    elif layout == "negative":
        view = np.empty(a.shape, a.dtype)[(slice(None, None, -1),) * a.ndim]
    else:
        guarded = np.full([2 * size for size in a.shape], np.nan, a.dtype)
        view = guarded[(slice(None, None, 2),) * a.ndim]
    view[...] = a
    return view


def whole(a: Array) -> Array:
    """Return the array that owns the memory of the view ``a``, guards included."""
    return a if a.base is None else a.base


def spectrum(kind: str, n: int, cond: float) -> Array:
    """Return n eigenvalues from 1 down to 1 / cond, or to 1 / 2."""
    if kind == "exponential":
        return np.logspace(0.0, -np.log10(cond), n)
    if kind == "step":
        return np.where(np.arange(n) < max(1, n // 2), 1.0, 1.0 / cond)
    return np.linspace(1.0, 0.5, n)


def spd(rng: np.random.Generator, n: int, kind: str, cond: float) -> Array:
    """Return a dense symmetric positive definite matrix with that spectrum."""
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    a = (basis * spectrum(kind, n, cond)) @ basis.T
    return (a + a.T) / 2


@dataclass(frozen=True, repr=False)
class Layer:
    """Weights (m, n) and Hessian (n, n) of a linear layer, and the order of the sweep."""

    weights: Array
    hessian: Array
    order: NDArray[np.int64]
    parameters: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return self.weights.shape

    @property
    def dtype(self) -> np.dtype:
        return self.weights.dtype

    def __repr__(self) -> str:
        return f"Layer({self.shape}, {self.dtype}, {self.parameters})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would print every entry


@st.composite
def layers(
    draw: st.DrawFn,
    *,
    max_rows: int = 20,
    max_columns: int = 100,
    types: tuple[type, ...] = DTYPES,
    max_log_cond: int = 6,
    columns_multiple_of: int = 1,
    dead: bool = True,
    natural: bool = False,
) -> Layer:
    """Draw a layer. float32 conditions stay below 1e3, so that its error bounds say something."""
    rows = draw(sizes(max_rows))
    columns = columns_multiple_of * draw(sizes(max_columns // columns_multiple_of))
    dtype = np.dtype(draw(st.sampled_from(types)))
    kind = draw(st.sampled_from(("flat", "exponential", "step")))
    log_cond = draw(st.integers(1, min(3, max_log_cond) if dtype == np.float32 else max_log_cond))
    log_scales = draw(st.integers(-6, 3)), draw(st.integers(-3, 1))
    dead_inputs = draw(st.sampled_from((0, 0, 1, columns // 3))) if dead and columns > 2 else 0
    order_kind = "natural" if natural else draw(st.sampled_from(("natural", "random", "reversed")))
    seed = draw(seeds)

    rng = np.random.default_rng(seed)
    hessian = 10.0 ** log_scales[0] * spd(rng, columns, kind, 10.0**log_cond)
    gone = rng.choice(columns, dead_inputs, replace=False)
    hessian[gone] = 0.0
    hessian[:, gone] = 0.0
    weights = 10.0 ** log_scales[1] * rng.standard_normal((rows, columns))
    order = {
        "natural": np.arange(columns),
        "random": rng.permutation(columns),
        "reversed": np.arange(columns)[::-1].copy(),
    }[order_kind]
    return Layer(
        weights=weights.astype(dtype),
        hessian=hessian.astype(dtype),
        order=order.astype(np.int64),
        parameters=f"{kind=}, {log_cond=}, {log_scales=}, {dead_inputs=}, {order_kind=}, {seed=}",
    )
