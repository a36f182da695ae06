"""What this installation is made of."""

import os
import platform
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from quadric import backends, cuda_library, threads


def config() -> dict[str, Any]:
    """Return what :func:`show_config` prints.

    Returns
    -------
    dict
        Versions, usable backends, GPUs, instruction sets of the native backend (the one in use
        first), threads, BLAS libraries, and the ``QUADRIC_*`` variables in force.

    Examples
    --------
    >>> from quadric.config import config
    >>> "numba" in config()["backends"]
    True
    """
    from quadric import __version__

    blas = [
        f"{info['internal_api']} {info['version']} ({info.get('architecture', 'unknown')}, "
        f"{info['num_threads']} threads) {Path(info['filepath']).name}"
        for info in threads.blas_pools().info()
    ]
    return {
        "quadric": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "backends": backends.available(),
        "missing": {
            name: reason
            for name in (*backends.ORDER, "cuda")
            if (reason := backends.why_missing(name)) is not None
        },
        "gpus": cuda_library.devices(),
        "simd": _simd(),
        "threads": threads.available(),
        "blas": blas,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("QUADRIC_")},
    }


def show_config() -> None:
    """Print versions, backends, instruction sets, threads and BLAS: what a bug report needs.

    Examples
    --------
    >>> import quadric as qd
    >>> qd.show_config()
    quadric ...
    """
    for key, value in config().items():
        if isinstance(value, dict):
            value = [f"{name}: {what}" for name, what in value.items()]
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        print(f"{key:<12} {value}")


def get_cmake_dir() -> str:
    """Return the folder of ``quadricConfig.cmake``, for ``find_package(quadric)``.

    Returns
    -------
    str
        Give it to CMake as ``-Dquadric_DIR=...``.

    Raises
    ------
    ImportError
        If this is the pure-Python install, which carries no C++.
    """
    if backends.why_missing("native") is not None:
        raise ImportError(
            "quadric was installed without its C++ core, so it has no CMake package; "
            "install it with a C++ compiler at hand"
        )
    folder = Path(str(import_module("quadric._core").__file__)).parent / "lib" / "cmake" / "quadric"
    if not (folder / "quadricConfig.cmake").is_file():
        raise ImportError(f"quadric's CMake package is missing: no quadricConfig.cmake in {folder}")
    return str(folder)


def _simd() -> list[str]:
    if backends.why_missing("native") is not None:
        return []
    core = import_module("quadric._core")
    used: str = core.simd_level()
    return [used, *(level for level in core.simd_levels() if level != used)]
