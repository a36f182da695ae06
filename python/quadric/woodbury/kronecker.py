"""The gradient of a layer between its two Kronecker factors."""

import numpy as np
from scipy.linalg import blas

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray


def kronecker_precondition(
    J_out: Array,
    grad: Array,
    J_in: Array,
    *,
    rescale: bool = True,
    check_finite: bool = True,
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
    check_finite : bool, optional
        False leaves it to the caller that no argument holds NaN or Inf, and that the product does
        not overflow; nothing then waits for a GPU.
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
    g = checks.matrix(grad, "grad", gpu=True)
    if 0 in g.shape:
        raise ValueError(f"grad must have at least one entry, got shape {g.shape}")
    m, n = g.shape
    left = checks.square(J_out, "J_out", m, gpu=True)
    right = checks.square(J_in, "J_in", n, gpu=True)
    for j, name in ((left, "J_out"), (right, "J_in")):
        checks.same_type(j, name, g.dtype, "grad")
        arrays.together(j, g, name, "grad")
    product = backends.resolve("woodbury.symmetric_product", backend, g)
    workers = threads.resolve(n_threads)
    checks.choice(rescale, "rescale", (True, False))

    # (J_out (grad J_in))^T = (grad J_in)^T J_out: the same product twice.
    rows, half = arrays.contiguous(g), arrays.empty(g, (m, n), g.dtype)
    full = arrays.empty(g, (n, m), g.dtype)
    with threads.blas_limit(1), np.errstate(over="ignore", invalid="ignore"):
        product((arrays.contiguous(right),), (rows,), (half,), workers)
        product((arrays.contiguous(left),), (arrays.contiguous(half.T),), (full,), workers)
        scaled = _scaled_on_gpu if isinstance(g, DeviceArray) else _scaled
        # Every entry is in a norm, so no pass of its own is needed to look for NaN.
        result, fits = scaled(full, rows, rescale, check_finite)
    if not fits:
        for a, name in ((g, "grad"), (left, "J_out"), (right, "J_in")):
            checks.finite(a, name)
        raise ValueError(f"J_out grad J_in must have a norm that {g.dtype} can hold")
    return arrays.like(grad)(result)


def _scaled(full: Data, grad: Data, rescale: bool, check: bool) -> tuple[Data, bool]:
    """Return the transpose of `full` as long as `grad`, and whether the dtype can hold its norm."""
    nrm2 = blas.snrm2 if grad.dtype == np.float32 else blas.dnrm2
    before, after = float(nrm2(grad.ravel())), float(nrm2(full.ravel()))
    if check and not np.isfinite(after):
        return full, False
    scale = before / after if rescale and after > 0 else 1.0
    return np.multiply(full.T, grad.dtype.type(scale), order="C"), True


def _scaled_on_gpu(
    full: DeviceArray, grad: DeviceArray, rescale: bool, check: bool
) -> tuple[DeviceArray, bool]:
    out = grad.space.empty(grad.shape, grad.dtype)
    norms = grad.space.empty(2, np.float64)
    grad.space.run(device.woodbury().scale_to_norm, full, grad, rescale, out, norms)
    return out, not check or bool(norms.host()[1] <= np.finfo(grad.dtype).max)
