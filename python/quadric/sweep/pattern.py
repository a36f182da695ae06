"""Which weights become zero: a share of each block, or n of every m columns."""

from dataclasses import dataclass
from typing import Any

from quadric import checks
from quadric.sweep.grid import Grid


@dataclass(frozen=True, slots=True)
class Pattern:
    """Checked pruning options; `keep` of every `out_of` columns, or else the share `sparsity`."""

    keep: int
    out_of: int
    sparsity: float
    block: int
    per_row: bool

    @property
    def prunes(self) -> bool:
        """Whether any weight becomes zero."""
        return self.keep < self.out_of or self.sparsity > 0

    @property
    def options(self) -> tuple[Any, ...]:
        """What kernels are told of the pruning, in their order."""
        return self.keep, self.out_of, self.sparsity, self.block, self.per_row


NONE = Pattern(keep=0, out_of=0, sparsity=0.0, block=1, per_row=False)
"""Nothing is pruned."""


def check_pattern(
    n: int,
    *,
    sparsity: Any,
    pattern: Any,
    per_row: bool,
    block_size: int | None,
    grid: Grid | None = None,
    required: bool = True,
) -> Pattern:
    """Check the pruning options of the public functions for a matrix with `n` columns."""
    block = n if block_size is None else checks.integer(block_size, "block_size", low=1)
    if sparsity is not None and pattern is not None:
        raise ValueError(f"sparsity must be None with pattern={pattern!r}, got {sparsity!r}")
    width = 0 if grid is None or not grid.dynamic else grid.width
    if pattern is not None:
        try:
            keep, out_of = pattern
        except (TypeError, ValueError):
            raise ValueError(f"pattern must be two integers (n, m), got {pattern!r}") from None
        out_of = checks.integer(out_of, "pattern[1]", low=1)
        keep = checks.integer(keep, "pattern[0]", low=1, high=out_of)
        if n % out_of:
            raise ValueError(f"pattern {keep}:{out_of} must divide the {n} columns of W")
        if width % out_of:
            raise ValueError(
                f"group_size must be a multiple of {out_of} with pattern {keep}:{out_of}, "
                f"got {width}"
            )
        return Pattern(keep, out_of, 0.0, 1, False)
    if sparsity is None:
        if required:
            raise ValueError("sparsity or pattern must be given, got neither")
        return NONE
    share = checks.real(sparsity, "sparsity", low=0, high=1)
    return Pattern(0, 0, share, min(block, n), bool(per_row))
