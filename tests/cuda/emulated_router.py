"""The emulated kernels of capped columns and of the router that only a GPU has."""

from typing import Any

import numpy as np
from scipy.sparse import csc_array

from quadric.transport.capped import Capped, run
from quadric.transport.laplacian import pull_back


def largest_finite(M: np.ndarray, out: np.ndarray) -> None:
    out[...] = np.where(np.isfinite(M), M, -np.inf).max(axis=0)


def keep_places(M: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    assert out.flags.c_contiguous
    assert out.shape == M.shape[::-1]
    assert places.dtype == np.int32
    out[...] = np.inf
    taken = places < len(M)
    rows, columns = places[taken], np.nonzero(taken)[0]
    out[columns, rows] = M[rows, columns]


def route(
    scores: np.ndarray,
    mask: np.ndarray | None,
    loads: np.ndarray | None,
    capacity: int,
    capacity_factor: float,
    reg: float,
    tol: float,
    max_iter: int,
    gates: np.ndarray,
    tight: np.ndarray,
    f: np.ndarray | None,
    error: np.ndarray,
    iterations: np.ndarray,
) -> None:
    """Solve by what the CPU has for it."""
    assert gates.flags.c_contiguous
    assert gates.shape == scores.shape
    T, E = scores.shape
    if not np.isfinite(scores).all():
        gates[...] = error[...] = np.nan
        return
    pairs = np.ones((T, E), bool)
    if mask is not None:
        assert mask.dtype == np.bool_
        pairs = np.broadcast_to(mask[:, None] if mask.ndim == 1 else mask, (T, E))
    active = pairs.any(axis=1)
    total = active.sum()
    gates[...], tight[...], error[...], iterations[...] = 0, False, 0, 0
    if f is not None:
        f[...] = -np.inf
    if not total:
        return
    capacity = capacity or max(int(np.ceil(capacity_factor * total / E - 1e-9)), 1)
    if loads is None:
        loads = np.full(E, min(total / E, capacity), float)
        if total <= capacity * E < total + E - 1:
            loads = np.floor(loads)
            loads[: int(total - loads.sum())] += 1
    cost = np.where(pairs, -scores, np.inf).astype(scores.dtype)
    partial = bool(loads.sum() < total * (1 - 1e-12))
    problem = Capped(
        cost, active.astype(float), loads, capacity, reg, "semidual", partial, "numba", 1
    )
    found = run(problem, np.zeros(T), tol=tol * total, max_iter=max_iter, repair=True)
    gates[...], tight[...] = found.matrix.toarray(), found.tight
    error[...], iterations[...] = found.error / total, found.iterations
    if f is not None:
        f[...] = found.f


def route_backward(
    gradient: np.ndarray, gates: np.ndarray, free: np.ndarray, reg: float, out: np.ndarray
) -> None:
    assert out.flags.c_contiguous
    assert gradient.dtype == gates.dtype == out.dtype
    assert free.dtype == np.bool_
    matrix = csc_array(gates.astype(float))
    out[...] = -pull_back(matrix, gradient.astype(float), reg, free)


KERNELS: dict[str, Any] = {
    "largest_finite": largest_finite,
    "keep_places": keep_places,
    "route": route,
    "route_backward": route_backward,
}
