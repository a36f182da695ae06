"""The compiled CUDA kernels, ``quadric._cuda``, loaded when they are first needed.

They stand on cuBLAS and cuSOLVER, which are not part of this package. Any of these will do: those
that PyTorch, CuPy or JAX have loaded already, those on the path of the dynamic loader, those of the
PyPI packages ``nvidia-cublas`` and ``nvidia-cusolver`` (with what they require), or those of
``CUDA_HOME``. ``import quadric`` does nothing of this, and never starts the driver.
"""

import ctypes
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

_ABSENT = "quadric was installed without its CUDA kernels"


@functools.cache
def load() -> ModuleType:
    """Return ``quadric._cuda``.

    Raises
    ------
    ImportError
        If it was not built, or a library that it stands on is nowhere to be found; the message
        says which.
    """
    while True:
        try:
            module = import_module("quadric._cuda")
        except ModuleNotFoundError as error:
            if error.name != "quadric._cuda":
                raise
            raise ImportError(_ABSENT) from None
        except ImportError as error:
            _load_library(_missing_library(error))
        else:
            return module


def why_missing() -> str | None:
    """Return why nothing can be computed on a GPU here, or None if it can."""
    try:
        module = load()
    except ImportError as error:
        return str(error)
    driver, runtime = module.versions()
    if driver == 0:
        return "there is no NVIDIA driver"
    if driver // 1000 < runtime // 1000:
        return (
            f"the NVIDIA driver serves CUDA up to {_version(driver)}; "
            f"quadric was built with {_version(runtime)}"
        )
    try:
        count = module.device_count()
    except RuntimeError as error:
        return str(error)
    if count == 0:
        return "no GPU is visible"
    newest = max(module.compute_capability(i) for i in range(count))
    oldest = min(map(int, re.findall(r"\d+", module.architectures)), default=0)
    if 10 * newest[0] + newest[1] < oldest:
        return (
            f"quadric was built for GPUs of compute capability {oldest / 10} and newer; "
            f"{module.device_name(0)} has {newest[0]}.{newest[1]}"
        )
    return None


def devices() -> list[str]:
    """Return the names of the GPUs that can be used; empty where :func:`why_missing` says why."""
    if why_missing() is not None:
        return []
    module = load()
    return [module.device_name(i) for i in range(module.device_count())]


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _missing_library(error: Exception) -> str:
    """Return the library that the dynamic loader has not found; another error is raised on."""
    found = re.match(r"(lib[^\s:/]+): cannot open shared object file", str(error))
    if found is None:
        raise error
    return found[1]


def _load_library(name: str) -> None:
    """Load a library, and what it needs itself, so that the dynamic loader finds it by its name."""
    path = next((p for folder in _folders() if (p := folder / name).is_file()), None)
    if path is None:
        raise ImportError(
            f"{name} is missing: install nvidia-cublas and nvidia-cusolver, or the CUDA toolkit"
        )
    while True:
        try:
            ctypes.CDLL(str(path))
        except OSError as error:
            needed = _missing_library(ImportError(str(error)))
            if needed == name:
                raise ImportError(str(error)) from None
            _load_library(needed)
        else:
            return


def _folders() -> Iterator[Path]:
    """Folders that the dynamic loader does not know, but that may have NVIDIA's libraries."""
    packages = importlib.util.find_spec("nvidia")
    for location in packages.submodule_search_locations or () if packages else ():
        yield from sorted(Path(location).glob("*/lib"), reverse=True)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if root := os.environ.get(variable):
            yield from (Path(root) / "lib64", Path(root) / "lib")
    yield Path(sys.prefix) / "lib"
