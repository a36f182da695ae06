"""The grid that weights are rounded to: how many levels, and which weights share a scale."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from quadric import arrays, backends, checks
from quadric.arrays import Data

BITS = (2, 3, 4, 8, "ternary")
SCALES = ("minmax", "mse")
SCALE_DTYPES = (None, "float16", "bfloat16")

_MSE_STEPS = 80  # ranges tried, each 1 % of the full one narrower
_SCALE_BITS = {None: 0, "float16": 16, "bfloat16": 17}  # codes of the kernels
_STALE_BLOCK = 128  # block of the original GPTQ code


@dataclass(frozen=True, slots=True)
class Grid:
    """Checked grid options for a matrix with `n` columns.

    `group_size` is what the caller gave, `width` the columns that share a scale, and `dynamic`
    says that the scales are taken during the sweep, from the weights that are current then.
    """

    n: int
    bits: int | str
    group_size: int | str | None
    symmetric: bool
    mse: bool
    norm: float
    scale_bits: int
    width: int
    dynamic: bool
    stale_block: int

    @property
    def maxq(self) -> int:
        """Largest code."""
        return 2 if isinstance(self.bits, str) else 2**self.bits - 1

    @property
    def groups(self) -> int:
        """Scales per row."""
        return -(-self.n // self.width)

    @property
    def steps(self) -> int:
        """Ranges that the scale search tries."""
        return _MSE_STEPS if self.mse else 1

    @property
    def options(self) -> tuple[Any, ...]:
        """What kernels are told of the rounding, in their order."""
        return self.maxq, self.symmetric, self.mse, self.norm, self.steps, self.scale_bits

    def index(self, perm: np.ndarray) -> np.ndarray:
        """Return the group of each sweep position: along the sweep, or by original column."""
        return ((np.arange(self.n) if self.dynamic else perm) // self.width).astype(np.int32)

    def fit(
        self,
        W: Data,
        dead: np.ndarray | None,
        scales: Data,
        zeros: Data,
        backend: str | None,
        n_threads: int,
    ) -> None:
        """Write the static scales and zero points of `W`, in which dead columns count as 0."""
        if dead is not None:
            W = W.copy()
            arrays.clear(W, np.flatnonzero(dead), rows=False)
        backends.resolve("sweep.grid", backend, W)(
            W,
            self.width,
            self.group_size == "tensor",
            *self.options,
            scales,
            zeros,
            n_threads,
        )


def check_grid(
    n: int,
    *,
    bits: Any,
    group_size: Any,
    symmetric: bool,
    scale: str,
    scale_dtype: str | None,
    mse_norm: float,
    static_groups: bool = True,
    stale_scales: bool = False,
) -> Grid:
    """Check the grid options of the public functions."""
    if isinstance(bits, np.integer):
        bits = int(bits)
    checks.choice(bits, "bits", BITS)
    checks.choice(scale, "scale", SCALES)
    checks.choice(scale_dtype, "scale_dtype", SCALE_DTYPES)
    if group_size is None or (isinstance(group_size, str) and group_size == "tensor"):
        width = n
    elif isinstance(group_size, str):
        raise ValueError(f"group_size must be an integer, 'tensor' or None, got {group_size!r}")
    else:
        width = group_size = checks.integer(group_size, "group_size", 1, n)
    if stale_scales and static_groups:
        raise ValueError("stale_scales=True must not meet static_groups=True, which never go stale")
    # A group as wide as the matrix sees every weight before the first one moves.
    dynamic = not static_groups and width < n
    return Grid(
        n=n,
        bits=bits,
        group_size=group_size,
        symmetric=bool(symmetric),
        mse=scale == "mse",
        norm=checks.real(mse_norm, "mse_norm", low=1e-3),
        scale_bits=_SCALE_BITS[scale_dtype],
        width=width,
        dynamic=dynamic,
        stale_block=_STALE_BLOCK if stale_scales and dynamic else 0,
    )
