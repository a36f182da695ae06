"""Second-order linear-algebra kernels: invert, update, sparsify or sketch a Hessian.

============  ==========================================================================
`sweep`       quantize and prune weights while the later columns absorb the error
`woodbury`    inverse curvature kept current while gradients come in
`transport`   entropic optimal transport: over-relaxed Sinkhorn and a sparse Newton method
`sketch`      regression on tall matrices: sketches, solvers, scores and samples of rows
`linalg`      Cholesky factor, inverse, solve and determinant of many small matrices at once
`random`      random numbers with a place: the same for any number of threads
============  ==========================================================================

Each family is a submodule that is imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quadric.config import get_cmake_dir, show_config
from quadric.errors import ConvergenceWarning, LinAlgError

if TYPE_CHECKING:
    from quadric import linalg, random, sketch, sweep, transport, woodbury

    __version__: str

__all__ = [
    "ConvergenceWarning",
    "LinAlgError",
    "__version__",
    "get_cmake_dir",
    "linalg",
    "random",
    "show_config",
    "sketch",
    "sweep",
    "transport",
    "woodbury",
]

_FAMILIES = ("linalg", "random", "sketch", "sweep", "transport", "woodbury")


def __getattr__(name: str) -> Any:
    if name in _FAMILIES:
        return import_module(f"quadric.{name}")
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'quadric' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("quadric")
    except PackageNotFoundError:  # run from the source tree without an install
        return "0+unknown"
