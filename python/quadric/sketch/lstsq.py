"""Least squares by sketching."""

from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np

from quadric import arrays, checks
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.progress import bar
from quadric.random.philox import Seed, resolve_seed
from quadric.sketch import inputs
from quadric.sketch.lstsq_passes import Passes, is_sparse
from quadric.sketch.lstsq_results import LstsqResult
from quadric.sketch.lstsq_solve import DENSE, OPERATORS, Options, solve
from quadric.sketch.operator import SketchingOperator

Method: TypeAlias = Literal[
    "auto", "sketch", "precondition", "iterative", "spir", "fossils", "gram"
]
METHODS = ("auto", "sketch", "precondition", "iterative", "spir", "fossils", "gram")


def lstsq(
    A: Array,
    b: Array,
    cond: float | None = None,
    overwrite_a: bool = False,
    overwrite_b: bool = False,
    check_finite: bool = True,
    lapack_driver: str | None = None,
    *,
    method: Method = "auto",
    ridge: float = 0.0,
    tol: float | None = None,
    max_iter: int | None = None,
    sketch_size: int | None = None,
    nnz: int | None = None,
    operator: str | SketchingOperator | None = None,
    guarantee: Literal["linf"] | None = None,
    eps: float = 0.5,
    minimum_norm: bool = False,
    rcond: float | None = None,
    seed: Seed = 0,
    progress: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> LstsqResult:
    """Minimize ``|b - A x|^2 + ridge |x|^2`` for a tall matrix A, from a sketch of it.

    The default is backward stable, as a QR factorization of A is, at the cost of a few reads of A.

    Parameters
    ----------
    A : array, list of lists of float, or sparse matrix, shape (n, d)
        float32 or float64, any strides; CSR and CSC of SciPy, other sparse formats are converted.
    b : array or list, shape (n,) or (n, k)
        One right-hand side or k of them, of the dtype of A; on a GPU if A is.
    cond : float, optional
        SciPy's word for `rcond`.
    overwrite_a, overwrite_b, lapack_driver : optional
        SciPy's, without effect: nothing given is ever changed.
    check_finite : bool, optional
        SciPy's, without effect: the results tell whether an entry was NaN or Inf.
    method : {"auto", "sketch", "precondition", "iterative", "spir", "fossils", "gram"}, optional
        See Notes. "auto" is the fastest backward stable one for this shape.
    ridge : float, optional
        At least 0.
    tol : float, optional
        Backward error to stop at, with the columns of A scaled to norm 1; if ``n < d`` the norm of
        the residual relative to ``|A|_F |x| + |b|``. None goes to the unit roundoff, and with
        "precondition" and "iterative" to where the rounding of their own steps rules.
    max_iter : int, optional
        Most iterations, 500 by default.
    sketch_size : int, optional
        Rows of the sketch, between d and n; rounded up to a multiple of `nnz`. None is 12 d, and
        4 d for "gram", and a few more.
    nnz : int, optional
        Signs per row of A of a sparse sign sketch. None is 8, and 4 for "gram" and for 512 columns
        or more.
    operator : str or SketchingOperator, optional
        "sparse_sign" (the default), "count_sketch", "srht", "circulant", "gaussian", "rademacher",
        or an operator with n columns and at least d rows.
    guarantee : {"linf"}, optional
        "linf": sketch and solve such that every coordinate is accurate,
        ``|x - x*|_inf <= eps / sqrt(d) |r*| |A^+|``. It needs a dense sketch, "srht" by default, of
        about ``2 log(200 d k) d / eps^2`` rows [3]_.
    eps : float, optional
        Of the guarantee, between 0 and 1.
    minimum_norm : bool, optional
        If A is numerically rank-deficient, return the shortest of all solutions.
    rcond : float, optional
        Singular values of the sketch below `rcond` times the largest one count as 0. None is about
        30 units of roundoff with the columns of A scaled to norm 1.
    seed : int, Generator or None, optional
        Of the sketch, below 2^64. The default is a fixed one: the same call gives the same bits.
        None takes fresh entropy.
    progress : bool, optional
        Show a progress bar (needs tqdm).
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It changes the result by rounding only: LAPACK may order its
        sums by it.

    Returns
    -------
    LstsqResult
        x, the residual, rank, condition, backward error, and how it went. It unpacks as the tuple
        that ``scipy.linalg.lstsq`` returns.

    Warns
    -----
    numpy.exceptions.RankWarning
        If A is numerically rank-deficient and `minimum_norm` was not asked for. The answer
        minimizes the residual; among all that do it is the one for which ``sum x_j^2 |a_j|^2`` is
        least.
    ConvergenceWarning
        If the backward error did not become what was asked for. The result is the best found.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry of A or b is NaN or Inf, A is empty, `sketch_size` is
        below d or above n, `guarantee` is asked of a sparse sketch, a method does not go with
        ``n < d``, or a number is out of range.
    TypeError
        If a dtype is neither float32 nor float64, or that of b is not that of A. Unlike SciPy's
        function this one does not convert integers; ``A.astype(float)`` does.
    LinAlgError
        If a sketch of the size or the operator that was asked for loses a direction of A. What
        `lstsq` chooses by itself is then drawn anew, with more rows.

    See Also
    --------
    lstsq_backward_error : how good any solution is.

    Notes
    -----
    **Methods.** S is a random matrix with few rows, ``S A = Q R``, so that ``A R^-1`` is well
    conditioned whatever A is.

    ============== ========= ======================================================================
    method         stability what it does, and how often it reads A
    ============== ========= ======================================================================
    "sketch"       none      minimize ``|S (b - A x)|``; the residual is within 1 + O(d/m) of the
                             least one; 2 reads
    "precondition" forward   LSQR on ``A R^-1`` from there [1]_; one read per iteration, about 20
    "iterative"    forward   ``x += a R^-1 R^-T A^T (b - A x) + b (x - x_before)``; the same
    "spir"         backward  two corrections from residuals computed anew, each by conjugate
                             gradients [2]_; one read per iteration, 15 to 30
    "fossils"      backward  the same with the heavy ball in place of conjugate gradients
    "gram"         backward  ``(A R^-1)^T (A R^-1)`` once makes R exact: 5 reads and ``2 n d^2``
                             flops; best below a few hundred columns and for many right-hand sides
    ============== ========= ======================================================================

    Backward stable: x solves a problem with A and b changed by a few units of roundoff. The methods
    that are forward stable have the errors in x and r that such a change would make, but r need not
    be that of any nearby problem. "auto" chooses between "gram" and "spir" by a model of their
    cost, "spir" where A is sparse or rank-deficient, and factors A itself if it has fewer than
    eight rows per column or 2^18 entries in all (``result.method == "direct"``). Where the sketch
    turns out unlucky, "gram" and "fossils" go on with conjugate gradients.

    **Few rows.** For ``n < d`` the result is the solution of least norm (with ridge, the unique
    one), from a sketch of the transpose; `method` must be "auto" or "spir".

    **On a GPU.** "auto" is "gram", all of it there: the sketch is factored by shifted Cholesky QR,
    and A itself if it is small. What is too ill-conditioned for that, and all other methods, have
    the factorization and the steps of d entries on the CPU, and only the passes over A on the GPU.

    **Memory.** A sketch has 12 d^2 entries. Beyond that no copy of A is made, nor anything of its
    size; but a sparse float32 matrix is read as float64. Sums over rows are float64.

    References
    ----------
    .. [1] Rokhlin, Tygert, "A fast randomized algorithm for overdetermined linear least-squares
       regression", PNAS 2008; Avron, Maymounkov, Toledo, "Blendenpik", SISC 2010.
    .. [2] Epperly, Meier, Nakatsukasa, "Fast randomized least-squares solvers can be just as
       accurate and stable as classical direct solvers", 2024, arXiv:2406.03468.
    .. [3] Song, Ye, Yin, Zhang, "A nearly-optimal bound for fast regression with l-infinity
       guarantee", ICML 2023, arXiv:2302.00248. The number of rows here is what the normal
       approximation of the error asks for, with a probability of failure of 1 %.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> A = rng.standard_normal((20_000, 50)) @ np.diag(np.logspace(0, -8, 50))
    >>> b = A @ np.ones(50) + 1e-3 * rng.standard_normal(20_000)
    >>> result = qd.sketch.lstsq(A, b)
    >>> result.converged, result.rank, result.backward_error < 1e-15
    (True, 50, True)
    >>> x, residues, rank, s = qd.sketch.lstsq(A, b, method="spir")
    >>> bool(abs(residues - result.residual_norm**2) < 1e-12 * residues)
    True
    """
    A, b = inputs.listed(A, "A"), inputs.listed(b, "b")
    matrix = check_matrix(A)
    right = check_sides(b, "b", matrix.shape[0], matrix.dtype)
    if isinstance(matrix, DeviceArray) or isinstance(right, DeviceArray):
        arrays.together(right, matrix, "b", "A")
    else:
        checks.finite(right, "b")
    if cond is not None and rcond is not None:
        raise ValueError(f"cond must be None where rcond is given, got {cond!r}")
    checks.choice(method, "method", METHODS)
    checks.choice(guarantee, "guarantee", (None, "linf"))
    linf = guarantee == "linf"
    options = Options(
        method=method,
        tol=None if tol is None else checks.positive(tol, "tol"),
        max_iter=500 if max_iter is None else checks.integer(max_iter, "max_iter", low=1),
        sketch_size=_size(sketch_size),
        nnz=None if nnz is None else checks.integer(nnz, "nnz", low=1),
        operator=_operator(operator, linf),
        linf=linf,
        eps=checks.between(eps, "eps", 0, 1),
        minimum_norm=bool(minimum_norm),
        rcond=_rcond(cond, "cond") if rcond is None else _rcond(rcond, "rcond"),
        seed=resolve_seed(seed),
        progress=None,
    )
    if linf and method not in ("auto", "sketch"):
        raise ValueError(f"method must be 'auto' or 'sketch' with guarantee='linf', got {method!r}")
    if isinstance(options.operator, SketchingOperator) and sketch_size is not None:
        raise ValueError(f"sketch_size must be None where operator has a size, got {sketch_size!r}")
    passes = Passes(matrix, checks.real(ridge, "ridge", low=0.0), backend, n_threads)
    with bar(progress, "backward error") as show:
        result = solve(passes, right, replace(options, progress=show))
    return _shaped(result, b.ndim == 1, arrays.like(b if is_sparse(A) else A))


def check_matrix(A: Any) -> Any:
    """Return A as an array without a copy, or in CSR or CSC."""
    if is_sparse(A):
        if A.ndim != 2:
            raise ValueError(f"A must be a matrix, got an array of shape {A.shape}")
        checks.floating(A, "A")
        found = A if A.format in ("csr", "csc") else A.tocsr()
    else:
        found = checks.matrix(A, "A", gpu=True)
    if 0 in found.shape:
        raise ValueError(f"A must have at least one row and one column, got shape {found.shape}")
    return found


def check_sides(b: Any, name: str, n: int, dtype: Any) -> Data:
    """Return vectors, shape (n,) or (n, k), as a C-contiguous matrix (n, k) of that dtype."""
    found = arrays.take(b, name)
    if found.ndim not in (1, 2) or found.shape[0] != n or 0 in found.shape:
        raise ValueError(f"{name} must have shape ({n},) or ({n}, k), got {found.shape}")
    checks.same_type(found, name, np.dtype(dtype), "A")
    return arrays.contiguous(found.reshape(n, -1))


def _size(sketch_size: Any) -> int | None:
    return None if sketch_size is None else checks.integer(sketch_size, "sketch_size", low=1)


def _rcond(value: Any, name: str) -> float | None:
    return None if value is None else checks.real(value, name, low=0.0, high=1.0)


def _operator(operator: Any, linf: bool) -> str | SketchingOperator:
    if operator is None:
        return "srht" if linf else "sparse_sign"
    if isinstance(operator, SketchingOperator):
        dense = operator.dense
    elif not isinstance(operator, str):
        kind = type(operator).__name__
        raise TypeError(f"operator must be a name or a SketchingOperator, got {kind}")
    else:
        checks.choice(operator, "operator", OPERATORS)
        dense = operator in DENSE
    if linf and not dense:
        raise ValueError(
            f"operator must be dense for guarantee='linf', one of {', '.join(DENSE)}; "
            f"got {operator!r}"
        )
    found: str | SketchingOperator = operator
    return found


def _shaped(result: LstsqResult, vector: bool, like: Any) -> LstsqResult:
    if vector:
        result = replace(
            result,
            x=result.x[:, 0],
            residual=result.residual[:, 0],
            residual_norm=float(result.residual_norm[0]),
            backward_error=float(result.backward_error[0]),
        )
    elif not isinstance(result.residual, DeviceArray):
        result = replace(
            result,
            residual_norm=like(result.residual_norm),
            backward_error=like(result.backward_error),
        )
    return replace(result, x=like(result.x), residual=like(result.residual), R=like(result.R))
