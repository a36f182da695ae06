"""Results that are the same to the bit, where sums are added in the order of the rows."""

from typing import Any

import numpy as np


def assert_bits(found: Any, expected: Any, backend: str, err_msg: str = "") -> None:
    """Assert equal arrays; on a GPU, where each shape has an order of its own, but for rounding.

    Sums of some thousand terms of about one size lose less than 200 eps of the largest result.
    """
    if backend != "cuda":
        np.testing.assert_array_equal(found, expected, err_msg=err_msg)
        return
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    bound = 200 * np.finfo(expected.dtype).eps * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=float(bound), err_msg=err_msg)
