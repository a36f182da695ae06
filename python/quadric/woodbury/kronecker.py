"""The gradient of a layer between its two Kronecker factors."""

import numpy as np
from scipy.linalg import blas

from quadric import arrays, backends, checks, threads
from quadric.arrays import Array


def kronecker_precondition(
    J_out: Array,
    grad: Array,
    J_in: Array,
    *,
    rescale: bool = True,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Array:
    """Return ``J_out grad J_in``, by default as long as `grad`: 2 m n (m + n) flops.

    Parameters
    ----------
    J_out : array, shape (m, m)
        Symmetric inverse of the factor of the outputs, float32 or float64.
    grad : array, shape (m, n)
        Gradient of a weight matrix (out, in), of the dtype of the factors.
    J_in : array, shape (n, n)
        Symmetric inverse of the factor of the inputs.
    rescale : bool, optional
        Scale the result to the Frobenius norm of `grad`, so that the learning rate keeps its
        meaning. A gradient of zeros stays one.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    array, shape (m, n)
        Of the array type and dtype of `grad`.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or the product overflows.
    TypeError
        If a dtype does not fit.

    See Also
    --------
    rank_one_inverse_update : keeps the factors current.

    Notes
    -----
    This is the step of MKOR [1]_, and of K-FAC before it: with
    ``F = J_in^-1 (x) J_out^-1``, the result is ``F^-1 vec(grad)`` before it is scaled.

    References
    ----------
    .. [1] Mozaffari, Li, Zhang, Mehri Dehnavi, "MKOR: Momentum-Enabled
       Kronecker-Factor-Based Optimizer Using Rank-1 Updates", 2023, arXiv:2306.01685.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> grad = np.array([[3.0, 0.0], [0.0, 4.0]])
    >>> J = np.diag([2.0, 1.0])
    >>> qd.woodbury.kronecker_precondition(J, grad, J, rescale=False)
    array([[12.,  0.],
           [ 0.,  4.]])
    >>> float(np.linalg.norm(qd.woodbury.kronecker_precondition(J, grad, J)))
    5.0
    """
    g = checks.matrix(grad, "grad")
    if 0 in g.shape:
        raise ValueError(f"grad must have at least one entry, got shape {g.shape}")
    m, n = g.shape
    left, right = checks.square(J_out, "J_out", m), checks.square(J_in, "J_in", n)
    for j, name in ((left, "J_out"), (right, "J_in")):
        checks.same_type(j, name, g.dtype, "grad")
    product = backends.resolve("woodbury.symmetric_product", backend)
    workers = threads.resolve(n_threads)
    checks.choice(rescale, "rescale", (True, False))
    nrm2 = blas.snrm2 if g.dtype == np.float32 else blas.dnrm2

    # (J_out (grad J_in))^T = (grad J_in)^T J_out: the same product twice.
    rows, half, full = np.ascontiguousarray(g), np.empty((m, n), g.dtype), np.empty((n, m), g.dtype)
    with threads.blas_limit(1), np.errstate(over="ignore", invalid="ignore"):
        product((np.ascontiguousarray(right),), (rows,), (half,), workers)
        product((np.ascontiguousarray(left),), (np.ascontiguousarray(half.T),), (full,), workers)
        # Every entry is in a norm, so no pass of its own is needed to look for NaN.
        before, after = float(nrm2(rows.ravel())), float(nrm2(full.ravel()))
    if not np.isfinite(after):
        for a, name in ((g, "grad"), (left, "J_out"), (right, "J_in")):
            checks.finite(a, name)
        raise ValueError(f"J_out grad J_in must have a norm that {g.dtype} can hold")
    scale = before / after if rescale and after > 0 else 1.0
    return arrays.like(grad)(np.multiply(full.T, g.dtype.type(scale), order="C"))
