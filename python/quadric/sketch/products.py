"""Products with a tall matrix that read it once."""

from typing import Any, NamedTuple

import numpy as np

from quadric import arrays, backends, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.sketch import inputs, scaling


class ResidualGradient(NamedTuple):
    """What :func:`residual_gradient` returns.

    Attributes
    ----------
    gradient : array, shape (d,) or (d, k)
        ``A^T r``.
    residual : array, shape (n,) or (n, k)
        ``r = b - A x``; ``A x`` where no b was given.
    norm : float, or array of float64, shape (k,)
        Euclidean norm of each column of r; a NumPy array where A is on a GPU.
    """

    gradient: Array
    residual: Array
    norm: float | Array


def residual_gradient(
    A: Array,
    x: Array,
    b: Array | None = None,
    *,
    backend: str | None = None,
    n_threads: int | None = None,
) -> ResidualGradient:
    """Return ``A^T (b - A x)``, the residual and its norm, from one read of A.

    Parameters
    ----------
    A : array or sparse matrix, shape (n, d)
        float32 or float64, any strides; on a GPU, x and b are there too.
    x : array, shape (d,) or (d, k)
        One vector or several, of the dtype of A.
    b : array, shape (n,) or (n, k), optional
        Right-hand sides. Without them the result is ``A^T A x`` with ``A x``: a step of the power
        method.
    backend : str, optional
        See :mod:`quadric.backends`; sparse matrices are SciPy's business.
    n_threads : int, optional
        None follows the environment. The result does not depend on it.

    Returns
    -------
    ResidualGradient
        A tuple ``gradient, residual, norm``; the arrays are of the dtype of A.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or a product overflows.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    Two products by themselves read A twice, which is all that they take time for. The sums over
    the n rows are float64 also for float32.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    >>> g, r, norm = qd.sketch.residual_gradient(A, np.array([1.0, 1.0]), np.array([1.0, 2.0, 5.0]))
    >>> g
    array([2., 4.])
    >>> r
    array([0., 0., 2.])
    >>> norm
    2.0
    """
    a = inputs.rows_of(A, "A", gpu=True)
    if len(A.shape) != 2:
        raise ValueError(f"A must be a matrix, got an array of shape {tuple(A.shape)}")
    n, d = a.shape
    right = _side(x, "x", d, a)
    left = None if b is None else _side(b, "b", n, a)
    if left is not None and tuple(b.shape[1:]) != tuple(x.shape[1:]):  # type: ignore[union-attr]
        raise ValueError(
            f"b must have shape {(n, *x.shape[1:])} to go with A and x, got {tuple(b.shape)}"  # type: ignore[union-attr]
        )
    kernel = backends.resolve("sketch.residual_gradient", backend, a)
    count = threads.resolve(n_threads, a)
    if isinstance(a, DeviceArray):
        return _on_gpu(a, right, left, kernel, len(x.shape) == 1)

    k = right.shape[1]
    g, r, squares = np.zeros((d, k)), np.zeros((n, k), a.dtype), np.zeros(k)
    with np.errstate(over="ignore", invalid="ignore"):
        if not isinstance(a, np.ndarray):
            np.copyto(r, a @ right if left is None else left - a @ right)
            wide = r.astype(np.float64)
            np.copyto(g, a.T @ wide)
            np.copyto(squares, np.einsum("ij,ij->j", wide, wide))
        elif n and d and k:
            kernel(a, right, left, r, g, squares, count)
        elif left is not None:
            np.copyto(r, left)
            np.copyto(squares, np.square(left, dtype=np.float64).sum(axis=0))
        gradient = g.astype(a.dtype)
    given = [(a, "A"), (right, "x")] + ([] if left is None else [(left, "b")])
    inputs.finite_result(gradient, "the gradient", *given)
    norms = np.sqrt(squares)
    # Where squares overflow or vanish the norm need not.
    extreme = scaling.extreme(norms, np.float64)
    if extreme.any():
        norms[extreme] = scaling.norms(r[:, extreme])
        inputs.finite_result(norms, "the residual", *given)
    wrap = inputs.wrapper(A)
    if len(x.shape) == 1:
        return ResidualGradient(wrap(gradient[:, 0]), wrap(r[:, 0]), float(norms[0]))
    return ResidualGradient(wrap(gradient), wrap(r), wrap(norms))


def _on_gpu(
    A: DeviceArray, x: DeviceArray, b: DeviceArray | None, kernel: Any, vector: bool
) -> ResidualGradient:
    (n, d), k = A.shape, x.shape[1]
    space = A.space
    tail = () if vector else (k,)
    r, g = space.empty((n, *tail), A.dtype), space.empty((d, *tail), np.float64)
    looked_at = space.empty(1 + k, np.float64)  # where g is not finite, and the squares of norms
    if n and d and k:
        R, G = (r[:, None], g[:, None]) if vector else (r, g)
        kernel(A, x, b, R, G, looked_at[1:], 1)
    else:
        looked_at.fill(0)
        g.fill(0)
        if b is None:
            r.fill(0)
        else:
            r.assign(b[:, 0] if vector else b)
    gradient = g.astype(A.dtype, copy=False)
    place = looked_at[:1].as_bits(np.int64)
    space.run(device.arrays().first_not_finite, device.flat(gradient), result=place)
    found = looked_at.host()
    norms = np.sqrt(found[1:])
    extreme = scaling.extreme(norms, np.float64)
    given = [(A, "A"), (x, "x")] + ([] if b is None else [(b, "b")])
    if found[:1].view(np.int64)[0] >= 0:
        inputs.finite_result(gradient, "the gradient", *given)
    if extreme.any() and n:
        for j in np.flatnonzero(extreme).tolist():
            norms[j] = scaling.norm(arrays.host(r if vector else r[:, j]))
        inputs.finite_result(norms, "the residual", *given)
    norm = float(norms[0]) if vector else norms
    return ResidualGradient(gradient.finished(), r.finished(), norm)


def _side(x: Array, name: str, rows: int, A: Data) -> Data:
    a = inputs.dense_of(inputs.rows_of(x, name, gpu=isinstance(A, DeviceArray)))
    if isinstance(A, DeviceArray):
        arrays.together(a, A, name, "A")
    if a.shape[0] != rows:
        raise ValueError(f"{name} must have shape ({rows},) or ({rows}, k), got {tuple(x.shape)}")
    checks.same_type(a, name, A.dtype, "A")
    return arrays.contiguous(a)
