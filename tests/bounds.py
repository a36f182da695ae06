"""One way to compare with a bound."""

from typing import Any

import numpy as np


def assert_within(found: Any, expected: Any, bound: Any, name: str = "error") -> float:
    """Assert |found - expected| <= bound entry by entry; return the largest ratio of the two.

    The ratio is for ``hypothesis.target``. NaN is never within anything.
    """
    error, bound = np.broadcast_arrays(np.abs(np.asarray(found) - expected), bound)
    if not error.size:
        return 0.0
    ratio = error.astype(float) / np.maximum(bound, np.finfo(float).tiny).astype(float)
    if not (error <= bound).all():
        at = np.unravel_index(np.argmax(np.nan_to_num(ratio, nan=np.inf)), ratio.shape)
        where = tuple(int(i) for i in at)
        raise AssertionError(
            f"{name} {float(error[at]):.3g} at {where} is {ratio[at]:.3g} times its bound"
        )
    return float(ratio.max())
