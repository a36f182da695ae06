"""What the estimators share in reading their arguments."""

from typing import Any

import numpy as np
from sklearn.utils.validation import check_array

DTYPES = (np.float64, np.float32)
FORMATS = ("csr", "csc")  # of sparse matrices


def sample_weights(weights: Any, name: str, count: int) -> np.ndarray | None:
    """Return one weight per row as a new float64 array, not negative and not zeros alone."""
    if weights is None:
        return None
    checked: np.ndarray = check_array(
        weights, dtype=np.float64, copy=True, ensure_2d=False, input_name=name
    )
    if checked.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {checked.shape}")
    if checked.min() < 0:
        raise ValueError(f"{name} must not be negative, got {checked.min():.6g}")
    if not checked.any():
        raise ValueError(f"{name} must be above zero for one point at least, got zeros alone")
    return checked


def seed(random_state: Any) -> Any:
    """Return the seed that scikit-learn's `random_state` stands for.

    An int passes as it is and None means fresh entropy; a RandomState gives its next word.
    """
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**32, dtype=np.uint64))
    return random_state
