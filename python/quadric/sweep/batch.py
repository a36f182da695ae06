"""Many matrices of one shape, such as the experts of a layer, rounded in one call."""

from typing import Any

import numpy as np

from quadric import arrays, backends, checks, device
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.errors import LinAlgError
from quadric.sweep import pattern as patterns
from quadric.sweep.factorize import factorize
from quadric.sweep.grid import Grid, check_grid
from quadric.sweep.quantize import quantize
from quadric.sweep.results import QuantizedMatrix


def quantize_batch(
    W: Array,
    H: Array,
    *,
    bits: int | str = 4,
    group_size: int | str | None = None,
    symmetric: bool = False,
    scale: str = "minmax",
    static_groups: bool = False,
    scale_dtype: str | None = None,
    mse_norm: float = 2.0,
    damping: float = 0.01,
    order: str = "natural",
    retries: int = 3,
    backend: str | None = None,
    n_threads: int | None = None,
) -> list[QuantizedMatrix]:
    """Factor many Hessians and round as many matrices: :func:`factorize`, :func:`quantize` of each.

    On a GPU small matrices do not fill the device one by one: all of them are worked on at once.

    Parameters
    ----------
    W : array, shape (k, m, n)
        Weights (out, in) of each; float32 or float64.
    H : array, shape (k, n, n)
        Hessians, of the dtype of `W`.
    bits, group_size, symmetric, scale, static_groups, scale_dtype, mse_norm
        As in :func:`quantize`, for all of them.
    damping, order, retries
        As in :func:`factorize`.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment.

    Returns
    -------
    list of QuantizedMatrix

    Raises
    ------
    LinAlgError
        If a Hessian is not positive definite with any damping that was tried; the message has its
        number.
    ValueError, TypeError
        As for the two functions.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((3, 64, 16))
    >>> W = rng.standard_normal((3, 8, 16))
    >>> experts = qd.sweep.quantize_batch(W, X.mT @ X / 64, bits=4, group_size=8)
    >>> len(experts), experts[0].codes.shape
    (3, (8, 16))
    """
    w, h = _stack(W, "W"), _stack(H, "H")
    k, m, n = w.shape
    if h.shape != (k, n, n):
        raise ValueError(f"H must have shape {(k, n, n)} to go with W, got {h.shape}")
    checks.same_type(h, "H", w.dtype, "W")
    arrays.together(h, w, "H", "W")
    grid_options: dict[str, Any] = {
        "bits": bits,
        "group_size": group_size,
        "symmetric": symmetric,
        "scale": scale,
        "static_groups": static_groups,
        "scale_dtype": scale_dtype,
        "mse_norm": mse_norm,
    }
    factor_options: dict[str, Any] = {"damping": damping, "order": order, "retries": retries}
    where: dict[str, Any] = {"backend": backend, "n_threads": n_threads}

    def one(i: int) -> QuantizedMatrix:
        try:
            factor = factorize(H[i], **factor_options, **where)
            return quantize(W[i], factor, **grid_options, **where)
        except LinAlgError as error:
            raise LinAlgError(f"matrix {i}: {error}", error.pivot) from error
        except ValueError as error:
            raise ValueError(f"matrix {i}: {error}") from error

    grid = check_grid(n, **grid_options)
    along = grid.dynamic or grid.group_size is None  # groups of each row, in the order of the sweep
    if not (isinstance(w, DeviceArray) and along and k * m > 0):
        return [one(i) for i in range(k)]
    checks.integer(retries, "retries", low=0)
    results, failed = _on_gpu(W, w, h, grid, damping, order, backend)
    for i in failed:  # more damping, float64, or an error that says what is wrong
        results[i] = one(i)
    return results


def _stack(x: Array, name: str) -> Data:
    a = arrays.take(x, name)
    if a.ndim != 3 or 0 in a.shape[1:]:
        raise ValueError(f"{name} must be a stack of matrices, got an array of shape {a.shape}")
    checks.floating(a, name)
    return a


def _on_gpu(
    W: Array,
    w: DeviceArray,
    h: DeviceArray,
    grid: Grid,
    damping: float,
    order: str,
    backend: str | None,
) -> tuple[list[QuantizedMatrix], list[int]]:
    """Return all results, and which of them are none because a factorization failed."""
    space, (k, m, n) = w.space, w.shape
    run, kernels = space.run, device.sweep()
    backends.resolve("sweep.sweep", backend, w)
    damping = checks.real(damping, "damping", low=0)
    checks.choice(order, "order", ("natural", "activation"))

    w, h = arrays.contiguous(w), arrays.contiguous(h)
    found = space.empty((2, k), np.float64)  # defects and pivots: one copy to the host
    there, dead = space.empty((k, n), np.int64), space.empty((k, n), np.bool_)
    index, A = space.empty((k, n), np.int32), space.empty((k, n, n), w.dtype)
    group = space.from_host(grid.index(np.arange(n)))
    run(
        kernels.factorize_batch,
        *(h, damping, order == "activation", group),
        *(A, there, dead, None, index, found[0], found[1].as_bits(np.int64)),
    )

    codes, loss = space.empty((k, m, n), np.uint8), space.empty((k, m), np.float64)
    scales = space.empty((k, m, grid.groups), w.dtype)
    zeros = space.empty((k, m, grid.groups), np.uint8)
    run(
        kernels.sweep_batch,
        w,
        A,
        there,
        dead,
        group,
        grid.width,
        0,  # grids are never stale
        *grid.options,
        *patterns.NONE.options,
        True,
        codes,
        scales,
        zeros,
        None,
        None,
        loss,
    )
    like = arrays.like(W)
    results = [  # while the GPU works
        QuantizedMatrix(
            codes=like(codes[i]),
            scales=like(scales[i]),
            zeros=like(zeros[i]),
            group_index=like(index[i]),
            bits=grid.bits,
            group_size=grid.group_size,
            symmetric=grid.symmetric,
            loss=like(loss[i]),
        )
        for i in range(k)
    ]
    not_finite = run(kernels.first_not_finite, device.flat(w), device.flat(scales))
    defects, pivots = found.host()
    bad = ~(defects <= np.sqrt(np.finfo(w.dtype).eps)) | (pivots.view(np.int64) >= 0)
    if max(not_finite) >= 0:
        bad |= True  # one by one, so that the message is about the one that is meant
    return results, [int(i) for i in np.flatnonzero(bad)]
