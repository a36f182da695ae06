"""Hypothesis strategies for the options of the sweeps, one dictionary for package and oracle."""

from typing import Any

from hypothesis import strategies as st

from tests.strategies import sizes

Options = dict[str, Any]


@st.composite
def grids(draw: st.DrawFn, columns: int, *, mse: bool = True, multiple_of: int = 1) -> Options:
    """Draw the options of quantize for that many columns."""
    options: Options = {
        "bits": draw(st.sampled_from((2, 3, 4, 8, "ternary"))),
        "symmetric": draw(st.booleans()),
        "scale": draw(st.sampled_from(("minmax", "mse"))) if mse else "minmax",
        "scale_dtype": draw(st.sampled_from((None, None, "float16", "bfloat16"))),
    }
    if options["scale"] == "mse":
        # Not 1: a sum of absolute values is flat between candidates, so that they are often tied.
        options["mse_norm"] = draw(st.sampled_from((2.4, 2.0)))
    kind = draw(st.sampled_from(("row", "tensor", "dynamic", "dynamic", "stale", "static")))
    if kind == "row":
        return options
    if kind == "tensor":
        return options | {"group_size": "tensor"}
    size = multiple_of * draw(sizes(max(1, columns // multiple_of)))
    options["group_size"] = min(size, columns)
    if kind == "stale":
        options["stale_scales"] = True
    if kind == "static":
        options["static_groups"] = True
    return options


@st.composite
def patterns(draw: st.DrawFn, columns: int, group: int | None = None) -> Options:
    """Draw the options of prune; m of n:m divides the dynamic groups of that size."""
    if draw(st.booleans()):
        divisors = [m for m in (1, 2, 4, 5, 8, 16, columns) if columns % m == 0]
        divisors = [m for m in divisors if group is None or group % m == 0]
        out_of = draw(st.sampled_from(divisors))
        return {"pattern": (draw(st.integers(1, out_of)), out_of)}
    return {
        "sparsity": draw(st.sampled_from((0.0, 0.125, 0.3, 0.5, 0.75, 1.0))),
        "per_row": draw(st.booleans()),
        "block_size": draw(st.none() | sizes(columns) | st.just(128)),
    }
