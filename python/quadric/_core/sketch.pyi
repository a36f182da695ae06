"""
Kernels of the sketch family.
"""

from __future__ import annotations

import typing

import numpy
import numpy.typing

__all__: list[str] = [
    "dense",
    "dense_entries",
    "fwht",
    "kaczmarz",
    "kaczmarz_csr",
    "preconditioned_gram",
    "residual_gradient",
    "row_norms",
    "sparse_sign",
    "sparse_sign_csr",
    "sparse_sign_rows",
    "srht",
    "weighted_gram",
]

@typing.overload
def dense(
    A: numpy.typing.NDArray[numpy.float32],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    kind: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out += S A for a Gaussian or Rademacher matrix S.
    """

@typing.overload
def dense(
    A: numpy.typing.NDArray[numpy.float64],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    kind: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out += S A for a Gaussian or Rademacher matrix S.
    """

@typing.overload
def dense_entries(
    row: typing.SupportsInt | typing.SupportsIndex,
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    m: typing.SupportsInt | typing.SupportsIndex,
    kind: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    A part of a dense S.
    """

@typing.overload
def dense_entries(
    row: typing.SupportsInt | typing.SupportsIndex,
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    m: typing.SupportsInt | typing.SupportsIndex,
    kind: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    A part of a dense S.
    """

@typing.overload
def fwht(
    X: numpy.typing.NDArray[numpy.float32], n_threads: typing.SupportsInt | typing.SupportsIndex
) -> None:
    """
    Walsh-Hadamard transform of the middle axis in place.
    """

@typing.overload
def fwht(
    X: numpy.typing.NDArray[numpy.float64], n_threads: typing.SupportsInt | typing.SupportsIndex
) -> None:
    """
    Walsh-Hadamard transform of the middle axis in place.
    """

@typing.overload
def kaczmarz(
    A: numpy.typing.NDArray[numpy.float32],
    Y: numpy.typing.NDArray[numpy.float64],
    norms: numpy.typing.NDArray[numpy.float64],
    order: numpy.typing.NDArray[numpy.int64],
    relaxation: typing.SupportsFloat | typing.SupportsIndex,
    X: numpy.typing.NDArray[numpy.float64],
) -> None:
    """
    Projections onto rows of A, one after the other.
    """

@typing.overload
def kaczmarz(
    A: numpy.typing.NDArray[numpy.float64],
    Y: numpy.typing.NDArray[numpy.float64],
    norms: numpy.typing.NDArray[numpy.float64],
    order: numpy.typing.NDArray[numpy.int64],
    relaxation: typing.SupportsFloat | typing.SupportsIndex,
    X: numpy.typing.NDArray[numpy.float64],
) -> None:
    """
    Projections onto rows of A, one after the other.
    """

@typing.overload
def kaczmarz_csr(
    indptr: numpy.typing.NDArray[numpy.int32],
    indices: numpy.typing.NDArray[numpy.int32],
    data: numpy.typing.NDArray[numpy.float32],
    Y: numpy.typing.NDArray[numpy.float64],
    norms: numpy.typing.NDArray[numpy.float64],
    order: numpy.typing.NDArray[numpy.int64],
    relaxation: typing.SupportsFloat | typing.SupportsIndex,
    X: numpy.typing.NDArray[numpy.float64],
) -> None:
    """
    Projections onto rows of A in CSR, one after the other.
    """

@typing.overload
def kaczmarz_csr(
    indptr: numpy.typing.NDArray[numpy.int64],
    indices: numpy.typing.NDArray[numpy.int64],
    data: numpy.typing.NDArray[numpy.float32],
    Y: numpy.typing.NDArray[numpy.float64],
    norms: numpy.typing.NDArray[numpy.float64],
    order: numpy.typing.NDArray[numpy.int64],
    relaxation: typing.SupportsFloat | typing.SupportsIndex,
    X: numpy.typing.NDArray[numpy.float64],
) -> None:
    """
    Projections onto rows of A in CSR, one after the other.
    """

@typing.overload
def kaczmarz_csr(
    indptr: numpy.typing.NDArray[numpy.int32],
    indices: numpy.typing.NDArray[numpy.int32],
    data: numpy.typing.NDArray[numpy.float64],
    Y: numpy.typing.NDArray[numpy.float64],
    norms: numpy.typing.NDArray[numpy.float64],
    order: numpy.typing.NDArray[numpy.int64],
    relaxation: typing.SupportsFloat | typing.SupportsIndex,
    X: numpy.typing.NDArray[numpy.float64],
) -> None:
    """
    Projections onto rows of A in CSR, one after the other.
    """

@typing.overload
def kaczmarz_csr(
    indptr: numpy.typing.NDArray[numpy.int64],
    indices: numpy.typing.NDArray[numpy.int64],
    data: numpy.typing.NDArray[numpy.float64],
    Y: numpy.typing.NDArray[numpy.float64],
    norms: numpy.typing.NDArray[numpy.float64],
    order: numpy.typing.NDArray[numpy.int64],
    relaxation: typing.SupportsFloat | typing.SupportsIndex,
    X: numpy.typing.NDArray[numpy.float64],
) -> None:
    """
    Projections onto rows of A in CSR, one after the other.
    """

@typing.overload
def preconditioned_gram(
    A: numpy.typing.NDArray[numpy.float32],
    R_inverse: numpy.typing.NDArray[numpy.float64],
    G: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    (A R_inverse)^T (A R_inverse) in one read of A.
    """

@typing.overload
def preconditioned_gram(
    A: numpy.typing.NDArray[numpy.float64],
    R_inverse: numpy.typing.NDArray[numpy.float64],
    G: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    (A R_inverse)^T (A R_inverse) in one read of A.
    """

@typing.overload
def residual_gradient(
    A: numpy.typing.NDArray[numpy.float32],
    x: numpy.typing.NDArray[numpy.float32],
    b: numpy.typing.NDArray[numpy.float32] | None,
    r: numpy.typing.NDArray[numpy.float32] | None,
    g: numpy.typing.NDArray[numpy.float64] | None,
    norms: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    r = b - A x and g = A^T r in one read of A.
    """

@typing.overload
def residual_gradient(
    A: numpy.typing.NDArray[numpy.float64],
    x: numpy.typing.NDArray[numpy.float64],
    b: numpy.typing.NDArray[numpy.float64] | None,
    r: numpy.typing.NDArray[numpy.float64] | None,
    g: numpy.typing.NDArray[numpy.float64] | None,
    norms: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    r = b - A x and g = A^T r in one read of A.
    """

@typing.overload
def row_norms(
    A: numpy.typing.NDArray[numpy.float32],
    M: numpy.typing.NDArray[numpy.float64] | None,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Squared norms of the rows of A M.
    """

@typing.overload
def row_norms(
    A: numpy.typing.NDArray[numpy.float64],
    M: numpy.typing.NDArray[numpy.float64] | None,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Squared norms of the rows of A M.
    """

@typing.overload
def sparse_sign(
    A: numpy.typing.NDArray[numpy.float32],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    nnz: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out += S A for a sparse sign matrix S.
    """

@typing.overload
def sparse_sign(
    A: numpy.typing.NDArray[numpy.float64],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    nnz: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out += S A for a sparse sign matrix S.
    """

@typing.overload
def sparse_sign_csr(
    indptr: numpy.typing.NDArray[numpy.int32],
    indices: numpy.typing.NDArray[numpy.int32],
    data: numpy.typing.NDArray[numpy.float32],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    nnz: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out += S A for A in CSR and a sparse sign matrix S.
    """

@typing.overload
def sparse_sign_csr(
    indptr: numpy.typing.NDArray[numpy.int64],
    indices: numpy.typing.NDArray[numpy.int64],
    data: numpy.typing.NDArray[numpy.float32],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    nnz: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out += S A for A in CSR and a sparse sign matrix S.
    """

@typing.overload
def sparse_sign_csr(
    indptr: numpy.typing.NDArray[numpy.int32],
    indices: numpy.typing.NDArray[numpy.int32],
    data: numpy.typing.NDArray[numpy.float64],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    nnz: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out += S A for A in CSR and a sparse sign matrix S.
    """

@typing.overload
def sparse_sign_csr(
    indptr: numpy.typing.NDArray[numpy.int64],
    indices: numpy.typing.NDArray[numpy.int64],
    data: numpy.typing.NDArray[numpy.float64],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    nnz: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out += S A for A in CSR and a sparse sign matrix S.
    """

@typing.overload
def sparse_sign_rows(
    B: numpy.typing.NDArray[numpy.float32],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    nnz: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out = S^T B for a sparse sign matrix S.
    """

@typing.overload
def sparse_sign_rows(
    B: numpy.typing.NDArray[numpy.float64],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    nnz: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out = S^T B for a sparse sign matrix S.
    """

@typing.overload
def srht(
    A: numpy.typing.NDArray[numpy.float32],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    samples: numpy.typing.NDArray[numpy.int64],
    out: numpy.typing.NDArray[numpy.float32],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out += sampled rows of H D A, in one read of A.
    """

@typing.overload
def srht(
    A: numpy.typing.NDArray[numpy.float64],
    first: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    samples: numpy.typing.NDArray[numpy.int64],
    out: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    out += sampled rows of H D A, in one read of A.
    """

@typing.overload
def weighted_gram(
    A: numpy.typing.NDArray[numpy.float32],
    w: numpy.typing.NDArray[numpy.float64] | None,
    G: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    A^T diag(w) A in one read of A.
    """

@typing.overload
def weighted_gram(
    A: numpy.typing.NDArray[numpy.float64],
    w: numpy.typing.NDArray[numpy.float64] | None,
    G: numpy.typing.NDArray[numpy.float64],
    n_threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    A^T diag(w) A in one read of A.
    """
