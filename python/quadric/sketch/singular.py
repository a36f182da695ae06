"""Low-rank and QR factorizations from sketches."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from quadric import arrays, backends, checks, random, threads
from quadric.arrays import Array
from quadric.errors import LinAlgError
from quadric.random.philox import Seed
from quadric.sketch import inputs, scaling
from quadric.sketch.linear_system import Floats, linear_system
from quadric.sketch.lstsq_factor import default_rcond
from quadric.sketch.lstsq_passes import Passes
from quadric.sketch.sparse import sparse_sign

Mode: TypeAlias = Literal["reduced", "r"]

STREAM = 45  # of the test matrix
PIECE = 2048  # rows that a thread solves with at a time


@dataclass(frozen=True, slots=True, eq=False)
class RandomizedSvd:
    """``U diag(s) Vh``, near A; unpacks into the three.

    Attributes
    ----------
    U : array, shape (n, k)
        Orthonormal columns.
    s : array, shape (k,)
        Singular values, falling.
    Vh : array, shape (k, d)
        Orthonormal rows.
    """

    U: Array
    s: Array
    Vh: Array

    def __iter__(self) -> Iterator[Array]:
        return iter((self.U, self.s, self.Vh))


@dataclass(frozen=True, slots=True, eq=False)
class SketchedQr:
    """``A = Q R``; unpacks into the two.

    Attributes
    ----------
    Q : array, shape (n, d), or None
        Orthonormal columns; None with ``mode="r"``.
    R : array, shape (d, d)
        Upper triangular, its diagonal positive.
    """

    Q: Array | None
    R: Array

    def __iter__(self) -> Iterator[Array | None]:
        return iter((self.Q, self.R))


def randomized_svd(
    A: Any,
    k: int,
    *,
    oversampling: int = 10,
    power_iterations: int = 2,
    seed: Seed = 0,
    check_finite: bool = True,
    n_threads: int | None = None,
) -> RandomizedSvd:
    """Return the k largest singular values of a matrix and their vectors, approximately.

    Parameters
    ----------
    A : array, scipy.sparse matrix or scipy.sparse.linalg.LinearOperator, shape (n, d)
        Float32 or float64.
    k : int
        How many; at most the smaller of n and d.
    oversampling : int, optional
        Columns of the test matrix beyond k.
    power_iterations : int, optional
        Each multiplies by ``A A^T`` once more, at two passes over A, and sharpens what decays
        slowly.
    seed : int, Generator or None, optional
        Of the test matrix; None is another one in each call.
    check_finite : bool, optional
        Look for NaN and Inf in A, unless it is an operator.
    n_threads : int, optional
        Limits the BLAS. The last bits may depend on its threads.

    Returns
    -------
    RandomizedSvd
        ``U, s, Vh = randomized_svd(A, k)`` works as well. In the dtype of A.

    Raises
    ------
    ValueError
        If A is empty or has an entry that is not finite, or k is out of range.
    TypeError
        If a dtype is neither float32 nor float64.

    Notes
    -----
    With a Gaussian matrix W of ``k + oversampling`` columns, an orthonormal basis Q of
    ``(A A^T)^q A W`` holds nearly all of the range of A that matters, and the factors are those of
    the small ``Q^T A`` [1]_. Each product is made orthonormal again, or rounding would bury what
    belongs to small singular values. The expected error in the spectral norm is at most

        ``(1 + sqrt(k / (p - 1)) + e sqrt(k + p) / p sqrt(min(n, d) - k))^(1 / (2q + 1))``

    times the singular value k + 1, p the oversampling and q the power iterations. Computed in
    float64.

    References
    ----------
    .. [1] N. Halko, P.-G. Martinsson, J. A. Tropp. Finding structure with randomness: probabilistic
       algorithms for constructing approximate matrix decompositions. SIAM Review 53, 2011.
       arXiv:0909.4061

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> A = rng.standard_normal((300, 5)) @ rng.standard_normal((5, 200))
    >>> U, s, Vh = qd.sketch.randomized_svd(A, 5)
    >>> bool(np.abs((U * s) @ Vh - A).max() < 1e-12)
    True
    """
    system = linear_system(A)
    n, d = system.shape
    k = checks.integer(k, "k", 1, min(n, d))
    extra = checks.integer(oversampling, "oversampling", low=0)
    rounds = checks.integer(power_iterations, "power_iterations", low=0)
    number = random.resolve_seed(seed)
    if check_finite and (sp.issparse(A) or not hasattr(A, "matvec")):
        system.check_finite("A")
    width = min(k + extra, n, d)
    with threads.blas_limit(None if n_threads is None else threads.resolve(n_threads)):
        test = random.normals(number, STREAM, 0, d * width).reshape(d, width)
        with np.errstate(over="ignore", invalid="ignore"):
            Q = _basis(system.times(test))
            for _ in range(rounds):
                Q = _basis(system.times(_basis(system.transposed_times(Q))))
            small = system.transposed_times(Q)
        if not np.isfinite(small).all():
            system.check_finite("A")
            raise ValueError("A must be smaller: its products overflow float64")
        # The factors of A^T Q are those of Q^T A, turned.
        V, s, Wh = np.linalg.svd(small, full_matrices=False)
        U = Q @ Wh[:k].T
    as_given = inputs.wrapper(A) if hasattr(A, "__dlpack__") else _same
    return RandomizedSvd(
        *(as_given(np.ascontiguousarray(part, system.dtype)) for part in (U, s[:k], V[:, :k].T))
    )


def sketched_qr(
    A: Array,
    *,
    mode: Mode = "reduced",
    sketch_size: int | None = None,
    nnz: int = 8,
    operator: Any | None = None,
    seed: Seed = 0,
    check_finite: bool = True,
    backend: str | None = None,
    n_threads: int | None = None,
) -> SketchedQr:
    """Return a QR factorization of a tall matrix, by Cholesky, preconditioned with a sketch.

    Parameters
    ----------
    A : array or sparse matrix, shape (n, d), n >= d
        Float32 or float64, of full rank.
    mode : {"reduced", "r"}, optional
        "r" leaves out Q, and does with one read of A after the sketch.
    sketch_size : int, optional
        Rows of the sketch, from d to n; by default about 4 d. Multiples of `nnz` are taken.
    nnz : int, optional
        Nonzeros in each column of the sparse sign sketch.
    operator : SketchingOperator, optional
        Another sketch, m x n.
    seed : int, Generator or None, optional
        Of the sketch; None is another one in each call. Q and R depend on it by rounding alone.
    check_finite : bool, optional
        Look for NaN and Inf in A.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    SketchedQr
        ``Q, R = sketched_qr(A)`` works as well. In the dtype of A.

    Raises
    ------
    ValueError
        If A is empty, has fewer rows than columns or an entry that is not finite, or a size is out
        of range.
    TypeError
        If a dtype is neither float32 nor float64.
    LinAlgError
        If A has not full rank, as far as rounding can tell; `pivot` names the column.

    Notes
    -----
    With ``S A = Q_1 R_1`` the columns of ``Y = A R_1^-1`` are nearly orthonormal, so that the
    Cholesky factor C of ``Y^T Y`` is accurate, whatever the condition of A: ``Q = Y C^-1`` and
    ``R = C R_1`` [1]_. Q is orthonormal to rounding; without the sketch its error would grow with
    the square of the condition, and break down at 1e8.

    References
    ----------
    .. [1] A. J. Higgins, D. B. Szyld, E. G. Boman, I. Yamazaki. Analysis of randomized
       Householder-Cholesky QR factorization with multisketching. arXiv:2309.05868

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.random.default_rng(0).standard_normal((2000, 30)) * np.logspace(0, -10, 30)
    >>> Q, R = qd.sketch.sketched_qr(A)
    >>> bool(np.abs(Q.T @ Q - np.eye(30)).max() < 1e-14)
    True
    >>> bool(np.abs(Q @ R - A).max() < 1e-14)
    True
    """
    checks.choice(mode, "mode", get_args(Mode))
    rows = inputs.rows_of(A, "A")
    if A.ndim != 2:
        raise ValueError(f"A must be a matrix, got an array of shape {A.shape}")
    n, d = rows.shape
    if not n >= d >= 1:
        raise ValueError(f"A must have at least as many rows as columns, got shape {A.shape}")
    workers = threads.resolve(n_threads)
    if check_finite:
        inputs.finite(rows, "A")
    S = operator
    if S is None:
        nnz = checks.integer(nnz, "nnz", low=1)
        m = 4 * d if sketch_size is None else checks.integer(sketch_size, "sketch_size", d, n)
        m = -(-m // nnz) * nnz
        number = random.resolve_seed(seed)
        if m < n:  # else the sketch is not shorter than A itself
            S = sparse_sign(m, n, nnz=nnz, seed=number, backend=backend, n_threads=n_threads)
    elif getattr(S, "shape", (0, 0))[1] != n or S.shape[0] < d:
        raise ValueError(
            f"operator must be at least {d} x {n}, got shape {getattr(S, 'shape', None)}"
        )
    small = inputs.dense_of(rows) if S is None else arrays.to_numpy(S @ A, "operator @ A")
    with threads.blas_limit(1):  # the kernels and the pieces have threads of their own
        R1 = np.asarray(np.linalg.qr(small.astype(np.float64), mode="r"), np.float64)
        inputs.finite_result(R1, "its sketch", (rows, "A"))
        _check_rank(R1, small.dtype)
        Y = np.empty((n, d), rows.dtype) if mode == "reduced" else None
        if Y is not None:
            gram = np.empty((d, d))
            _solve_rows(rows, R1, Y, workers)
            backends.resolve("sketch.weighted_gram", backend)(Y, None, gram, workers)
        else:
            inverse = scipy.linalg.solve_triangular(R1, np.eye(d), check_finite=False)
            gram = Passes(rows, 0.0, backend, workers).gram(np.triu(inverse))
        try:
            C = scipy.linalg.cholesky(gram, check_finite=False)
        except np.linalg.LinAlgError:
            raise LinAlgError(
                "A lost a direction in the sketch: try another seed or a larger sketch_size"
            ) from None
        R = np.triu(C @ R1)
        sign = np.where(np.diagonal(R) < 0, -1.0, 1.0)
        if Y is not None:
            _solve_rows(Y, sign[:, None] * C, Y, workers)
    wrap = inputs.wrapper(A)
    with np.errstate(over="ignore"):
        R = np.ascontiguousarray(sign[:, None] * R, rows.dtype)
    inputs.finite_result(R, "R", (rows, "A"))
    return SketchedQr(None if Y is None else wrap(Y), wrap(R))


def _basis(Y: Floats) -> Floats:
    return np.asarray(np.linalg.qr(Y)[0], np.float64)


def _same(a: np.ndarray) -> Array:
    return a


def _check_rank(R: Floats, dtype: np.dtype[Any]) -> None:
    """Refuse a factor that is singular to rounding once its columns are scaled to unit norm."""
    norms = scaling.norms(R)
    if norms.all():
        sizes = np.linalg.svd(R / norms, compute_uv=False)
        if sizes[-1] > default_rcond(dtype, len(R)) * sizes[0]:
            return
        scaled = R / norms
    else:
        scaled = R
    pivot = int(np.abs(np.diagonal(scaled)).argmin())
    raise LinAlgError(f"A must have full rank, but column {pivot} depends on the others", pivot)


def _solve_rows(rows: Any, R: Floats, out: Array, workers: int) -> None:
    """Write ``rows R^-1`` piece by piece; rows may be `out` itself."""
    (trsm,) = scipy.linalg.get_blas_funcs(("trsm",), (R,))
    factor = np.asfortranarray(R)

    def piece(start: int) -> None:
        part = inputs.dense_of(rows[start : start + PIECE]).astype(np.float64)
        # Rows in C order are columns in Fortran order: R^-T from the left.
        out[start : start + PIECE] = trsm(1.0, factor, part.T, trans_a=1, overwrite_b=1).T

    starts = range(0, rows.shape[0], PIECE)
    if workers == 1 or len(starts) == 1:
        for start in starts:
            piece(start)
        return
    with ThreadPoolExecutor(min(workers, len(starts))) as pool:
        list(pool.map(piece, starts))
