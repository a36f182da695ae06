"""What the tests on a real GPU share: arrays of its libraries, and whether the host waits for it.

JAX must not take most of the memory for itself, which it does unless told before it starts.
"""

import contextlib
import fcntl
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from quadric import cuda_library

MISSING = cuda_library.why_missing()

needs_gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(MISSING is not None, reason=f"no CUDA device can be used: {MISSING}"),
    pytest.mark.filterwarnings("default"),  # libraries have much to say on a GPU
]
"""Marks of a module whose tests need one. With QUADRIC_TEST_BACKEND=cuda it must be there."""

SLEEP = 1_000_000_000
"""Cycles of the GPU, half a second: more than the host takes to launch what a test calls."""


def gpus() -> int:
    return 0 if MISSING is not None else len(cuda_library.devices())


needs_two = pytest.mark.skipif(gpus() < 2, reason="there are no two GPUs")


class Torch:
    name = "torch"
    dtypes = ("float32", "float64")
    place = "cuda:0"

    def __init__(self) -> None:
        import torch

        self._torch = torch

    def put(self, a: np.ndarray) -> Any:
        return self._torch.from_numpy(np.array(a)).to(self.place)

    def get(self, x: Any) -> np.ndarray:
        assert isinstance(x, self._torch.Tensor)
        assert x.device == self._torch.device(self.place)
        return np.asarray(x.cpu().numpy())


class CuPy:
    name = "cupy"
    dtypes = ("float32", "float64")

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy

    def put(self, a: np.ndarray) -> Any:
        return self._cupy.asarray(a)

    def get(self, x: Any) -> np.ndarray:
        assert isinstance(x, self._cupy.ndarray)
        return np.asarray(self._cupy.asnumpy(x))


class Jax:
    name = "jax"
    dtypes = ("float32",)

    def __init__(self) -> None:
        import jax

        self._jax = jax
        self._device = next(d for d in jax.devices() if d.platform in ("gpu", "cuda"))

    def put(self, a: np.ndarray) -> Any:
        return self._jax.device_put(a, self._device)

    def get(self, x: Any) -> np.ndarray:
        assert isinstance(x, self._jax.Array)
        assert x.devices() == {self._device}
        return np.asarray(x)


LIBRARIES: dict[str, Callable[[], Any]] = {"torch": Torch, "cupy": CuPy, "jax": Jax}


def library(name: str) -> Any:
    """Return a library that is installed, and skip the test where it is not, or has no GPU."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    try:
        return LIBRARIES[name]()
    except Exception as error:  # JAX without its CUDA plugin, CuPy of another CUDA
        pytest.skip(f"{name} cannot use a GPU: {error}")


@contextlib.contextmanager
def no_wait(device: int = 0) -> Iterator[None]:
    """Assert that the host does not wait for a GPU that is busy.

    What is called must have been called before: memory is taken and kernels are loaded then, for
    which CUDA may wait.
    """
    import torch

    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        torch.cuda._sleep(SLEEP)
        awake = torch.cuda.Event()
        awake.record()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
        waited = awake.query()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize(device)
    assert not waited, "the host has waited for the GPU, or was very slow"


@contextlib.contextmanager
def room(gigabytes: float) -> Iterator[None]:
    """Skip a test without that much free memory; one such test at a time."""
    import torch

    with (Path(tempfile.gettempdir()) / "quadric-large-test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 1e9
        if free < gigabytes:
            pytest.skip(f"{gigabytes:g} GB of GPU memory must be free, got {free:.0f}")
        try:
            yield
        finally:
            torch.cuda.empty_cache()
