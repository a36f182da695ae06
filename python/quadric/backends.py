"""Which backend serves which kernel, in one table.

``native`` is compiled C++, ``numba`` needs no compiler, ``cuda`` runs on a GPU. Every public
function takes ``backend=``; the environment variable ``QUADRIC_BACKEND`` sets it for the whole
process. Left alone, arrays on a GPU are worked on there, and for all others the first backend of
:data:`ORDER` that has the kernel and can be imported is used.

Arrays in CPU memory can be worked on by ``cuda`` too, if it is asked for: they travel to the GPU
and back with every kernel, which is for comparisons rather than for speed.
"""

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from quadric import cuda_library
from quadric.device import DeviceArray, Space

ORDER = ("native", "numba")
"""The backends that CPU arrays come to by themselves, the preferred one first."""

_ALL = (*ORDER, "cuda")
_MODULES = {
    "native": "quadric._core.{family}",
    "numba": "quadric.{family}.numba",
    "cuda": "quadric._cuda.{family}",
}

_FLOATS = ("float32", "float64")
_STORAGE = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of the table.

    Attributes
    ----------
    backends : tuple of str
        Backends that have the kernel.
    dtypes : tuple of str
        Floating-point types it takes; all float arrays of a call share one. Gradients may also be
        kept in float16 or bfloat16: they are computed with in float32 or float64.
    layout : str
        Memory layout that it accepts without a copy.
    work : str
        What it does, and what bounds its speed.
    """

    backends: tuple[str, ...]
    dtypes: tuple[str, ...]
    layout: str
    work: str


TABLE: dict[str, Kernel] = {
    "sweep.gram": Kernel(_ALL, _FLOATS, "any strides", "X^T X, upper triangle; SYRK"),
    "sweep.symmetry_defect": Kernel(
        _ALL, _FLOATS, "any strides", "largest |H - H^T|; memory bandwidth"
    ),
    "sweep.gather": Kernel(
        _ALL, _FLOATS, "any strides", "H in reversed sweep order; memory bandwidth"
    ),
    "sweep.cholesky": Kernel(_ALL, _FLOATS, "C-contiguous", "one factorization in place; POTRF"),
    "sweep.grid": Kernel(
        _ALL, _FLOATS, "any strides", "scales and zero points of static groups; vector units"
    ),
    "sweep.sweep": Kernel(
        _ALL, _FLOATS, "any strides", "round or zero column by column; GEMM and vector units"
    ),
    "linalg.spd": Kernel(
        _ALL, _FLOATS, "any strides", "factor many small matrices; vector units across matrices"
    ),
    "woodbury.block_gram": Kernel(
        _ALL, _STORAGE, "contiguous rows", "sums of X_b^T X_b; vector units across blocks"
    ),
    "woodbury.block_inverse": Kernel(
        _ALL, _STORAGE, "contiguous rows", "groups of F_b^-1; vector units across blocks"
    ),
    "woodbury.block_scores": Kernel(
        _ALL, _STORAGE, "contiguous rows", "what each group is worth; vector units across blocks"
    ),
    "woodbury.block_solve": Kernel(
        _ALL, _STORAGE, "contiguous rows", "F_b^-1 v; vector units across blocks"
    ),
    "woodbury.block_prune": Kernel(
        _ALL, _STORAGE, "contiguous rows", "joint update of a block; vector units across blocks"
    ),
    "woodbury.gram": Kernel(
        _ALL, _STORAGE, "contiguous rows", "G G^T of each block, symmetric; SYRK"
    ),
    "woodbury.dots": Kernel(
        _ALL, _STORAGE, "contiguous rows", "G X^T of each block; memory bandwidth"
    ),
    "woodbury.combine": Kernel(
        _ALL, _STORAGE, "contiguous rows", "scale X + C G; memory bandwidth"
    ),
    "woodbury.column_norms": Kernel(
        _ALL, _STORAGE, "contiguous rows", "columns of L^-1 G without storing it; TRSM"
    ),
    "woodbury.store": Kernel(
        _ALL, _STORAGE, "contiguous rows", "round a gradient, and look at it; memory bandwidth"
    ),
    "woodbury.symmetric_product": Kernel(
        _ALL, _FLOATS, "C-contiguous", "V J for symmetric matrices J; memory bandwidth"
    ),
    "woodbury.symmetric_update": Kernel(
        _ALL, _FLOATS, "C-contiguous", "alpha J + delta I + Y^T Y; memory bandwidth"
    ),
    "transport.sinkhorn": Kernel(
        _ALL, _FLOATS, "any strides", "iterations, one pass over the cost each; exponentials"
    ),
    "transport.candidates": Kernel(
        _ALL, _FLOATS, "any strides", "sparse matrix of the costs that matter; exponents"
    ),
    "transport.sparse_sinkhorn": Kernel(
        _ALL, ("float64",), "C-contiguous", "iterations on listed entries; exponentials"
    ),
    "transport.newton_direction": Kernel(
        _ALL, ("float64",), "C-contiguous", "conjugate gradients on a sparse plan; bandwidth"
    ),
    "transport.plan": Kernel(_ALL, _FLOATS, "any strides", "P from its potentials; exponentials"),
    "transport.apply_plan": Kernel(
        _ALL, _FLOATS, "any strides", "P V, sums and cost without storing P; exponentials"
    ),
    "transport.point_gradient": Kernel(
        _ALL, _FLOATS, "C-contiguous", "gradient in the points; exponentials"
    ),
    "transport.capped_columns": Kernel(
        _ALL, _FLOATS, "any strides", "largest entries of columns on simplices; bandwidth"
    ),
    "transport.capped_dual": Kernel(
        _ALL, _FLOATS, "any strides", "largest entries of columns, shifted; bandwidth"
    ),
    "random.philox": Kernel(_ALL, (), "C-contiguous", "random words; integer vector units"),
    "sketch.sparse_sign": Kernel(
        _ALL, _FLOATS, "any strides", "S A, few signs per column of S; vector units and caches"
    ),
    "sketch.sparse_sign_rows": Kernel(
        _ALL, _FLOATS, "any strides", "S^T B, few signs per column of S; memory bandwidth"
    ),
    "sketch.sparse_sign_csr": Kernel(_ALL, _FLOATS, "C-contiguous", "S A for A in CSR; caches"),
    "sketch.dense": Kernel(
        _ALL, _FLOATS, "any strides", "S A, Gaussian or signs, S never stored; GEMM"
    ),
    "sketch.dense_entries": Kernel(
        _ALL, _FLOATS, "C-contiguous", "a part of a dense S; vector units"
    ),
    "sketch.srht": Kernel(
        _ALL, _FLOATS, "any strides", "sampled Hadamard transform in one read; vector units"
    ),
    "sketch.fwht": Kernel(
        _ALL, _FLOATS, "any strides", "Walsh-Hadamard transform in place; memory bandwidth"
    ),
    "sketch.residual_gradient": Kernel(
        _ALL, _FLOATS, "any strides", "A^T (b - A x) in one read of A; memory bandwidth"
    ),
    "sketch.preconditioned_gram": Kernel(
        _ALL, _FLOATS, "any strides", "(A R^-1)^T (A R^-1) in one read of A; TRMM and SYRK"
    ),
    "sketch.row_norms": Kernel(
        _ALL, _FLOATS, "any strides", "rows of A M without storing it; GEMM"
    ),
    "sketch.weighted_gram": Kernel(
        _ALL, _FLOATS, "any strides", "A^T diag(w) A in one read of A; SYRK"
    ),
    "sketch.kaczmarz": Kernel(
        _ALL, _FLOATS, "any strides", "projections onto rows in turn; vector units"
    ),
    "sketch.kaczmarz_csr": Kernel(_ALL, _FLOATS, "C-contiguous", "the same for A in CSR; caches"),
}
"""Kernel name to the backends that have it."""


_SERIAL = {"sketch.kaczmarz", "sketch.kaczmarz_csr"}
"""Kernels without a number of threads, in whose place a GPU is told where to work."""


def table() -> list[tuple[str, Kernel]]:
    """Return the rows of the table, by name.

    Examples
    --------
    >>> from quadric import backends
    >>> dict(backends.table())["sweep.sweep"].dtypes
    ('float32', 'float64')
    """
    return sorted(TABLE.items())


def available() -> list[str]:
    """Return the names of the backends that can be used here, the preferred one first.

    Examples
    --------
    >>> from quadric import backends
    >>> "numba" in backends.available()
    True
    """
    return [name for name in _ALL if why_missing(name) is None]


@functools.cache
def why_missing(backend: str) -> str | None:
    """Return why `backend` cannot be used here, or None if it can."""
    if backend == "numba":
        return None  # a dependency; importing it takes a second, so not before it is needed
    if backend == "cuda":
        return cuda_library.why_missing()
    try:
        core = import_module("quadric._core")
    except ModuleNotFoundError as error:
        if error.name == "quadric._core":
            return "this is the pure-Python install"
        return str(error)
    except ImportError as error:
        # It was built, so somebody expects its speed: falling back must not go unnoticed.
        warnings.warn(f"quadric's compiled module is unusable: {error}", RuntimeWarning, 2)
        return str(error)
    if getattr(core, "__file__", None) is None:  # only the folder with its stubs is there
        return "the compiled module has not been built"
    return None


def resolve(kernel: str, backend: str | None = None, on: Any = None) -> Callable[..., Any]:
    """Return the function that runs `kernel`.

    Parameters
    ----------
    kernel : str
        A name of :data:`TABLE`.
    backend : str, optional
        The ``backend=`` argument of the public function; None is automatic.
    on : ndarray or DeviceArray, optional
        An array that it is to work on: where that is on a GPU, so is the function.

    Raises
    ------
    ValueError
        If there is no such backend, or it lacks the kernel, or it cannot be used here; the message
        lists the backends that have the kernel.

    Examples
    --------
    >>> from quadric import backends
    >>> backends.resolve("sweep.gram", "fortran")
    Traceback (most recent call last):
        ...
    ValueError: backend must be one of native, numba, cuda for sweep.gram; got 'fortran'
    """
    if isinstance(on, DeviceArray):
        return functools.partial(_run_there, on.space, _on_gpu(kernel, backend))
    return _resolve(kernel, backend, os.environ.get("QUADRIC_BACKEND") or None)


def _on_gpu(kernel: str, argument: str | None) -> Callable[..., Any]:
    if argument not in (None, "cuda"):
        raise ValueError(f"backend must be cuda for arrays on a GPU, got {argument!r}")
    return _resolve(kernel, "cuda", None)


def _run_there(space: Space, function: Callable[..., Any], *arguments: Any) -> Any:
    return space.run(function, *arguments[:-1])  # the last one is a number of threads


@functools.cache
def _resolve(kernel: str, argument: str | None, environment: str | None) -> Callable[..., Any]:
    having = TABLE[kernel].backends
    name = argument if argument is not None else environment
    source = "backend" if argument is not None else "QUADRIC_BACKEND"
    if name is None:
        name = next(b for b in having if why_missing(b) is None)
    if name not in having:
        raise ValueError(f"{source} must be one of {', '.join(having)} for {kernel}; got {name!r}")
    if (reason := why_missing(name)) is not None:
        usable = ", ".join(b for b in having if why_missing(b) is None)
        raise ValueError(
            f"{source} {name!r} cannot be used here ({reason}); {kernel} has: {usable}"
        )
    family, function = kernel.split(".")
    module = import_module(_MODULES[name].format(family=family))
    result: Callable[..., Any] = getattr(module, function)
    if name == "cuda" and kernel in _SERIAL:
        return functools.partial(_on_default_stream, result)
    return result


def _on_default_stream(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments, 0)
