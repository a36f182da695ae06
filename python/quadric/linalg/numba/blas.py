"""SciPy's own BLAS and LAPACK on row-major views, in place and without the GIL.

SciPy's Python wrappers copy what is not column-major and contiguous, and hold the GIL. The pointers
it exports to Cython do neither. A row-major matrix is the transpose of a column-major one, so each
function below states its row-major meaning and calls the transposed operation.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack

Array = NDArray[Any]

_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(
    ("PyCapsule_GetName", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@cache
def _routine(name: str, dtype: np.dtype[Any]) -> tuple[Callable[..., None], type, type]:
    """The routine for this dtype, with its C types of integers and of scalars."""
    prefix, real = {"f": ("s", ctypes.c_float), "d": ("d", ctypes.c_double)}[dtype.char]
    table = (cython_lapack if name == "potrf" else cython_blas).__pyx_capi__
    capsule = table[prefix + name]
    signature = _name(capsule)
    # The capsule's name is the C signature; a SciPy with 64-bit integers says so there.
    integer = ctypes.c_int if b"int *" in signature else ctypes.c_int64
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (signature.count(b",") + 1))
    return prototype(_pointer(capsule, signature)), integer, real


def _call(name: str, *arguments: Any) -> int:
    """Call with flags as bytes, dimensions as int, scalars as float, and arrays; return info."""
    dtype = next(a.dtype for a in arguments if isinstance(a, np.ndarray))
    routine, integer, real = _routine(name, dtype)
    info = integer(0)
    converted: list[Any] = []
    for a in arguments:
        if isinstance(a, bytes):
            converted.append(a)
        elif isinstance(a, int):
            converted.append(ctypes.byref(integer(a)))
        elif isinstance(a, float):
            converted.append(ctypes.byref(real(a)))
        else:
            converted.append(a.ctypes.data)
    if name == "potrf":
        converted.append(ctypes.byref(info))
    routine(*converted)
    return int(info.value)


def _leading(A: Array) -> int:
    """Elements between the rows of a row-major view, also where there is only one row."""
    return int(max(A.strides[0] // A.itemsize, A.shape[1], 1))


def is_rows(A: Array) -> bool:
    """Whether the entries of a row lie side by side and its rows follow one another."""
    m, n = A.shape
    return (n <= 1 or A.strides[1] == A.itemsize) and (m <= 1 or A.strides[0] >= n * A.itemsize)


def _factor(A: Array) -> tuple[bytes, Array, int]:
    """A factor of a product as BLAS sees it: flag, pointer's array, leading dimension."""
    if is_rows(A):
        return b"N", A, _leading(A)
    return b"T", A, _leading(A.T)


def gemm(alpha: float, A: Array, B: Array, beta: float, C: Array) -> None:
    """C = alpha A B + beta C; A and B row-major or the transpose of a row-major view."""
    m, n = C.shape
    if m and n:
        a, b = _factor(A), _factor(B)
        _call(
            "gemm", b[0], a[0], n, m, A.shape[1], alpha, b[1], b[2], a[1], a[2],
            beta, C, _leading(C),
        )  # fmt: skip


def syrk(alpha: float, A: Array, beta: float, C: Array) -> None:
    """C = alpha A^T A + beta C on the upper triangle of C; A row-major."""
    if len(C):
        flag, A, leading = _factor(A)
        n, k = len(C), A.shape[0]
        _call("syrk", b"L", flag, n, k, alpha, A, leading, beta, C, _leading(C))


def multiply_upper(U: Array, B: Array) -> None:
    """B = B U; U upper triangular, its strict lower part is not read."""
    m, n = B.shape
    if m and n:
        _call("trmm", b"L", b"L", b"N", b"N", n, m, 1.0, U, _leading(U), B, _leading(B))


def solve_upper(alpha: float, U: Array, B: Array, transposed: bool = False) -> None:
    """B = alpha U^-1 B, or alpha U^-T B; U upper triangular, its strict lower part is not read."""
    m, n = B.shape
    if m and n:
        flag = b"T" if transposed else b"N"
        _call("trsm", b"R", b"L", flag, b"N", n, m, alpha, U, _leading(U), B, _leading(B))


def solve_lower(alpha: float, L: Array, B: Array) -> None:
    """B = alpha L^-1 B; L lower triangular, its strict upper part is not read."""
    m, n = B.shape
    if m and n:
        _call("trsm", b"R", b"U", b"N", b"N", n, m, alpha, L, _leading(L), B, _leading(B))


def cholesky_upper(A: Array) -> int:
    """A = U^T U on the upper triangle, in place; 0, or 1 + the index of the failing pivot."""
    return _call("potrf", b"L", len(A), A, _leading(A))
