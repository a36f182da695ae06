"""The functions of quadric.sweep, called as a layer's recipe says."""

from typing import Any

from quadric import sweep
from quadric.adapters.torch.recipe import LayerRecipe
from quadric.adapters.torch.report import Result
from quadric.arrays import Array

SCALE_DTYPE = "float16"
"""What checkpoints store, so that a saved model reads back to the same weights."""


def dense(result: Result) -> Array:
    """Return the weights (out, in) that a result stands for."""
    return result.weights if isinstance(result, sweep.PrunedMatrix) else result.dequantize()


def swept(
    W: Array,
    factor: sweep.Factor,
    rule: LayerRecipe,
    cross: Array | None,
    options: dict[str, Any],
) -> Result:
    """Quantize, prune, or both, with feedback."""
    zeros = _zeros(rule)
    if isinstance(rule.group_size, int):  # blocks of whole groups, as near to 128 as they get
        zeros["block_size"] = rule.group_size * max(1, 128 // rule.group_size)
    if rule.bits is None:
        return sweep.prune(W, factor, **zeros, cross=cross, **options)
    grid = {**_grid(rule), "static_groups": rule.has_static_groups, "cross": cross, **options}
    if rule.sparsity is None and rule.pattern is None:
        return sweep.quantize(W, factor, **grid)
    return sweep.compress(W, factor, **grid, **zeros)


def nearest(
    W: Array,
    factor: sweep.Factor | None,
    rule: LayerRecipe,
    options: dict[str, Any],
) -> Result:
    """Do the same without feedback: what a sweep is measured against."""
    zeros = _zeros(rule)
    if rule.bits is None:
        return sweep.magnitude_prune(W, factor=factor, **zeros, **options)
    return sweep.round_to_nearest(W, factor=factor, **_grid(rule), **zeros, **options)


def _zeros(rule: LayerRecipe) -> dict[str, Any]:
    return {"sparsity": rule.sparsity, "pattern": rule.pattern, "per_row": rule.per_row}


def _grid(rule: LayerRecipe) -> dict[str, Any]:
    return {
        "bits": rule.bits,
        "group_size": rule.group_size,
        "symmetric": rule.symmetric,
        "scale": rule.scale,
        "scale_dtype": SCALE_DTYPE,
    }
