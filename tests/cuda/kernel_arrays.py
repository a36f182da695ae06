"""Arrays for calls of raw kernels, of all types and awkward layouts."""

import functools
from typing import Any

import numpy as np

FLOATS = (np.float32, np.float64)
STORAGES = ("float16", "bfloat16", "float32", "float64")

Call = tuple[str, tuple[Any, ...]]
"""The kernel's name and a word on the case; arguments but for the last."""


def normal(shape: Any, dtype: Any = np.float64, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def permutation(n: int) -> np.ndarray:
    return np.random.default_rng(5).permutation(n)


def stored(x: np.ndarray, storage: str) -> np.ndarray:
    """Return `x` in a storage type; bfloat16 as uint16, cut rather than rounded."""
    if storage == "bfloat16":
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(storage)


@functools.cache
def _positive(n: int, seed: int) -> np.ndarray:
    x = normal((n + 9, n), seed=seed)
    return x.T @ x / n + 0.1 * np.eye(n)


def positive(n: int, dtype: Any, seed: int = 2) -> np.ndarray:
    """Return a positive definite matrix."""
    return _positive(n, seed).astype(dtype)


def widened(x: np.ndarray) -> np.ndarray:
    """Return numbers of 16 bits as float32."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32) if x.dtype == np.float16 else x


def padded(a: np.ndarray) -> np.ndarray:
    """Return `a` inside a larger array of sevens, with an odd row stride."""
    room = np.full((*a.shape[:-1], a.shape[-1] + 3), 7, a.dtype)
    room[..., 1:-2] = a
    return room[..., 1:-2]


def backwards(a: np.ndarray) -> np.ndarray:
    """Return `a` with negative strides."""
    return a[::-1, ::-1].copy()[::-1, ::-1]
