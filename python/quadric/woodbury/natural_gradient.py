"""The natural gradient from a few gradients (Natural GaLore)."""

import numpy as np

from quadric import arrays, checks, threads
from quadric.arrays import Array
from quadric.device import DeviceArray
from quadric.woodbury.rows import Passes, cho_solve, cholesky, coefficients


def natural_gradient(
    G: Array,
    g: Array | None = None,
    damping: float = 1e-3,
    *,
    gram: Array | None = None,
    check_finite: bool = True,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Array:
    """Return ``F^-1 g`` for ``F = damping I + G^T G``, which is not divided by the number of rows.

    Parameters
    ----------
    G : array, shape (s, d)
        Gradients in rows, the newest last; float16, bfloat16, float32 or float64.
    g : array, shape (d,), optional
        Vector to precondition; float64 if G is float64, else float32. None, the default, is the
        last row of G.
    damping : float, optional
        Absolute, above 0.
    gram : array, shape (s, s), optional
        ``G G^T``, float32 or better float64, of a caller who keeps it from step to step. It is
        computed if it is not given.
    check_finite : bool, optional
        False leaves it to the caller that no argument holds NaN or Inf. On a GPU nothing then waits
        for it: the result is NaN where `damping` is too small, and g is taken for the last row of G
        only if it is in the same place.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Returns
    -------
    array, shape (d,)
        Of the array type of G; float64 if G is float64, else float32.

    Raises
    ------
    LinAlgError
        If `damping` is so small that ``damping I + G G^T`` is singular in float64.
    ValueError
        If a shape does not fit, an entry is not finite, or `damping` is not positive.
    TypeError
        If a dtype does not fit.

    See Also
    --------
    GradientWindow : does the same from step to step with ``normalize="sum"``.

    Notes
    -----
    This is the step of Natural GaLore [1]_. If g is the last row of G, which is looked at, the
    push-through identity ``F^-1 g = G^T (damping I + G G^T)^-1 e_last`` gives a result that is
    right to about 5e-7 in float32 at any damping. Any other g takes the form with a subtraction,
    ``(g - G^T (damping I + G G^T)^-1 G g) / damping``, whose error is a few eps of
    ``|g| / damping``.

    **Step by step.** From one step to the next ``G G^T`` changes by one row and column. A
    :class:`GradientWindow` of the same length keeps it up to date and replaces the oldest row in
    place::

        window = GradientWindow(d, capacity=20, damping=1e-3, normalize="sum")
        x = window.push_and_solve(g)       # natural_gradient of the last 20 gradients
        window.clear()                     # when the basis of the projection has changed

    A caller with a history of their own shifts the old matrix and computes the new row, exactly
    in float64::

        gram[:-1, :-1] = gram[1:, 1:]
        gram[-1] = gram[:, -1] = G.astype(np.float64) @ G[-1].astype(np.float64)

    References
    ----------
    .. [1] Das, "Natural GaLore: Accelerating GaLore for memory-efficient LLM Training and
       Fine-tuning", 2024, arXiv:2410.16029.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> G = np.random.default_rng(0).standard_normal((3, 8))
    >>> x = qd.woodbury.natural_gradient(G, damping=0.1)
    >>> np.allclose((0.1 * np.eye(8) + G.T @ G) @ x, G[2])
    True
    >>> np.array_equal(qd.woodbury.natural_gradient(G, G[2], 0.1), x)
    True
    """
    a = checks.storage(G, "G", gpu=True)
    if a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"G must be a matrix with at least one entry, got shape {a.shape}")
    a = arrays.rows(a)
    s, d = a.shape
    dtype = arrays.computing(a.dtype)
    looks = check_finite or not isinstance(a, DeviceArray)
    X = None
    if g is not None:
        X = checks.vector(g, "g", d, dtype, gpu=True, check_finite=check_finite).reshape(1, d)
        arrays.together(X, a, "g", "G")
        at = arrays.address(X) == arrays.address(a[-1]) and X.dtype == a.dtype
        if at or (looks and arrays.equal(X, arrays.widen(a[-1:], dtype))):
            X = None
    damping = checks.positive(damping, "damping")
    passes = Passes(d, d, backend, n_threads)
    with threads.blas_limit(1):
        if gram is None:
            K = passes.gram(a, exact=True)
            if check_finite and not arrays.all_finite(K):
                checks.finite(a, "G")
                raise ValueError("G must have squared norms that float64 can hold")
        else:
            small = checks.square(gram, "gram", s, gpu=True)
            arrays.together(small, a, "gram", "G")
            K = small.astype(np.float64).reshape(1, s, s)
            if check_finite:
                checks.finite(K[0], "gram")
        L = cholesky(K, damping, check=looks)
        if X is None:
            last = arrays.zeros(a, (1, s, 1), np.float64)
            last[:, -1].fill(1.0)
            x = passes.combine(a, coefficients(cho_solve(L, last, K, damping)))[0]
        else:
            C = coefficients(cho_solve(L, passes.dots(a, X), K, damping), -damping)
            x = passes.combine(a, C, X, 1 / damping)[0]
    if check_finite and not arrays.all_finite(x):
        checks.finite(a, "G")
        raise ValueError(f"G must have products that {dtype} can hold")
    return arrays.like(G)(x)
