"""What every public function must do with bad input."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

NAN, INF = float("nan"), float("inf")

Refused = type[Exception] | tuple[type[Exception], ...]


def spoiled(a: np.ndarray, value: float, at: Any = None) -> np.ndarray:
    """Return a copy with one bad entry, by default in the middle."""
    bad = a.copy()
    bad[tuple(n // 2 for n in a.shape) if at is None else at] = value
    return bad


# Ways to spoil an array of float32 or float64, and what must come of it.
ARRAYS: dict[str, tuple[Callable[[np.ndarray], Any], Refused]] = {
    "nan": (lambda a: spoiled(a, NAN), ValueError),
    "inf": (lambda a: spoiled(a, INF), ValueError),
    "minus inf": (lambda a: spoiled(a, -INF), ValueError),
    "last entry": (lambda a: spoiled(a, NAN, (-1,) * a.ndim), ValueError),
    "both infinities": (lambda a: spoiled(spoiled(a, INF), -INF, (0,) * a.ndim), ValueError),
    "scalar": (lambda a: np.ones((), a.dtype), ValueError),
    "more axes": (lambda a: a[None, None], ValueError),
    "one entry less": (lambda a: a[..., :-1], ValueError),
    "integers": (lambda a: a.astype(np.int64), TypeError),
    "unsigned 16 bit": (lambda a: np.ones(a.shape, np.uint16), TypeError),
    "booleans": (lambda a: a > 0, TypeError),
    "complex": (lambda a: a.astype(np.complex128), TypeError),
    "objects": (lambda a: a.astype(object), TypeError),
    "other byte order": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError),
    "list": (lambda a: a.tolist(), TypeError),
    "none": (lambda a: None, TypeError),
    "string": (lambda a: "gradient", TypeError),
}

EXECUTION = [
    ("backend", "fortran"),
    ("backend", "Native"),
    ("n_threads", 0),
    ("n_threads", -1),
    ("n_threads", 1.5),
    ("n_threads", "all"),
]

# Of a number that must be an integer, at least 1.
SIZES = [0, -1, 2.5, "3", None, True, NAN]
# Of a number that must be finite and above 0.
POSITIVE = [0, 0.0, -1.0, NAN, INF, -INF, "small", "2", True, None]


def shown(value: Any) -> str:
    """Return a short id of a parameter."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}"
    return value if isinstance(value, str) else repr(value)


def assert_refused(
    name: str,
    call: Callable[[], Any],
    error: Refused = (ValueError, TypeError),
    state: Callable[[], Any] = lambda: None,
) -> str:
    """Assert that the call raises one line that begins with the argument, and changes nothing.

    LinAlgError is a ValueError to Python, but not the right one for an argument that is wrong.
    """
    before = state()
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert re.match(rf"{re.escape(name)}(?!\w)" if name else "", message), message
    assert "\n" not in message
    assert state() == before
    return message
