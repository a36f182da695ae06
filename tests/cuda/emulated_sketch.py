"""The emulated kernels of sketching, where they are not simply those of the CPU."""

from typing import Any

import ml_dtypes
import numpy as np
from scipy.linalg import LinAlgError, cholesky, lapack, solve_triangular

from quadric import backends


def widened(a: np.ndarray) -> np.ndarray:
    """Return entries of 16 bits as float32, others as they are."""
    a = a.view(ml_dtypes.bfloat16) if a.dtype == np.uint16 else a
    return a.astype(np.float32) if a.itemsize == 2 else a


def oriented(a: np.ndarray) -> np.ndarray:
    """Refuse what is neither row- nor column-major."""
    assert a.ndim == 2
    assert a.size < 2 or 1 in a.shape or a.itemsize in a.strides, a.strides
    return a


def product(A: np.ndarray, B: np.ndarray, C: np.ndarray, alpha: float, beta: float) -> None:
    assert A.dtype == B.dtype == C.dtype
    for operand in (A, B, C):
        oriented(operand)
    for operand in (A, B):
        assert not np.shares_memory(operand, C)
    scaled = C.dtype.type(beta) * C if beta else 0
    C[...] = C.dtype.type(alpha) * (A @ B) + scaled


def triangular_solve(R: np.ndarray, B: np.ndarray, left: bool, transposed: bool) -> None:
    oriented(B)
    assert R.dtype == B.dtype
    if left:
        B[...] = solve_triangular(R, B, trans=int(transposed), check_finite=False)
    else:
        B[...] = solve_triangular(R, B.T, trans=int(not transposed), check_finite=False).T


def triangular_inverse(R: np.ndarray, out: np.ndarray) -> None:
    assert R.dtype == out.dtype
    (trtri,) = lapack.get_lapack_funcs(("trtri",), (R,))
    out[...] = np.triu(trtri(np.asfortranarray(R))[0])


def qr(A: np.ndarray, R: np.ndarray) -> int:
    assert A.shape[0] >= A.shape[1] == R.shape[0]
    if not np.isfinite(A).all():
        R[...] = A[: len(R)] = np.nan
        return 0
    q, r = np.linalg.qr(A)
    signs = np.where(r.diagonal() < 0, -1.0, 1.0).astype(A.dtype)
    A[...], R[...] = q * signs, r * signs[:, None]
    zero = np.abs(R.diagonal()) <= 1e-15 * np.abs(R).max(initial=0)
    return int(np.argmax(zero)) if zero.any() else -1


def symmetric_cholesky(G: np.ndarray, R: np.ndarray) -> int:
    try:
        R[...] = cholesky(G)
    except (LinAlgError, ValueError):
        R[...] = np.nan
        return 0
    return -1


def column_norms(A: np.ndarray, out: np.ndarray) -> None:
    assert out.dtype == np.float64
    assert out.flags.c_contiguous
    out[...] = np.sqrt(np.square(A, dtype=np.float64).sum(axis=0))


def halves(function: Any) -> Any:
    """Return a kernel that takes A of 16 bits too, with results in float32."""

    def call(A: np.ndarray, *rest: Any) -> Any:
        return function(widened(A), *rest)

    return call


def fwht(function: Any) -> Any:
    """Return the transform in place, of entries of 16 bits in float32."""

    def call(X: np.ndarray) -> None:
        if X.itemsize > 2:
            function(X)
            return
        wide = widened(X)
        function(wide)
        to = X.view(ml_dtypes.bfloat16) if X.dtype == np.uint16 else X
        to[...] = wide.astype(to.dtype)

    return call


def triangular_row_norms(function: Any) -> Any:
    """Return the norms of the rows of A M of which the lower triangle of M is not read."""

    def call(A: np.ndarray, M: np.ndarray, out: np.ndarray) -> None:
        assert M.shape == (A.shape[1],) * 2
        function(A, np.triu(M), out)

    return call


LINALG = {
    "product": product,
    "triangular_solve": triangular_solve,
    "triangular_inverse": triangular_inverse,
    "qr": qr,
    "rough_qr": qr,
    "symmetric_cholesky": symmetric_cholesky,
    "column_norms": column_norms,
}


def sketch(forwarded: Any) -> dict[str, Any]:
    """Return the kernels that are not those of the CPU; `forwarded` returns these."""
    names = ("sparse_sign", "dense", "srht")
    result = {name: halves(forwarded(f"sketch.{name}")) for name in names}
    result["fwht"] = fwht(forwarded("sketch.fwht"))
    result["triangular_row_norms"] = triangular_row_norms(forwarded("sketch.row_norms"))
    return {**result, **{name: serial(name) for name in ("kaczmarz", "kaczmarz_csr")}}


def serial(name: str) -> Any:
    """Return a kernel of the CPU that takes no number of threads."""

    def call(*arguments: Any) -> None:
        backend = next(b for b in backends.ORDER if backends.why_missing(b) is None)
        backends._resolve(f"sketch.{name}", backend, None)(*arguments)

    return call
