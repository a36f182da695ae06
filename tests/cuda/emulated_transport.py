"""The emulated kernels of transport, where they are not simply those of the CPU."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from quadric.transport.cost import Cost
from quadric.transport.history import Recorder
from quadric.transport.relaxation import Sinkhorn, State

SHARED = 128 * 1024  # bytes of a cost that a block of threads can keep


def transport(forwarded: Callable[[str], Any]) -> dict[str, Any]:
    """Return the kernels by name, given how those of the CPU are called."""

    def candidates(*arguments: Any, where: Any) -> Any:
        found = forwarded("transport.candidates")(*arguments)
        return found and tuple(placed(a, where) for a in found)

    candidates.makes_arrays = True  # type: ignore[attr-defined]

    def apply_plans(
        M: Any, x: Any, y: Any, kind: int, f: Any, g: Any, reg: float, *out: np.ndarray
    ) -> None:
        kernel = forwarded("transport.apply_plan")
        rows, columns, costs = out
        for k in range(len(f)):
            cost = (*(None if a is None else a[k] for a in (M, x, y)), kind)
            costs[k] = kernel(*cost, f[k], g[k], reg, None, None, rows[k], columns[k])

    return {
        "candidates": candidates,
        "apply_plans": apply_plans,
        "converge": converge,
    }


def placed(a: np.ndarray, where: Any) -> Any:
    """Return an array of the device, or of the host where no space was given."""
    if isinstance(where, int):
        return a
    result = where.new(a.shape, a.dtype.name)
    result.owner.gpu.seen(result.view)[...] = a
    return result


def converges(kind: int, n: int, m: int, d: int, itemsize: int) -> bool:
    assert (kind == 0) == (d == 0)
    return n * m * itemsize <= SHARED


def converge(
    M: Any,
    x: Any,
    y: Any,
    kind: int,
    a: np.ndarray | None,
    b: np.ndarray | None,
    reg: float,
    theta_a: float,
    theta_b: float,
    omega: np.ndarray | None,
    tol: float,
    count: int,
    f: np.ndarray,
    g: np.ndarray,
    errors: np.ndarray,
    iterations: np.ndarray,
    anneal: bool,
    measures: np.ndarray | None,
    converged: np.ndarray | None,
    wanted: float,
) -> None:
    cost = Cost(M, x, y, kind)
    B, n, m = cost.shape
    a, b = (np.full((B, k), 1 / k) if w is None else w for w, k in ((a, n), (b, m)))
    omega = np.full(B, math.nan) if omega is None else omega
    if anneal:
        f[...], g[...] = 0, 0
    assert converges(kind, *cost.shape[1:], 0 if kind == 0 else x.shape[2], cost.dtype.itemsize)
    for k in range(len(f)):
        s = slice(k, k + 1)
        recorder = Recorder(tol, count + 1, None)
        one = Sinkhorn(cost.item(k), a[s], b[s], theta_a, theta_b, recorder, None, 1)
        state = State(f[s].copy(), g[s].copy(), np.full(1, math.inf), np.zeros(1, np.int64))
        one.converge(state, reg, tol, None if math.isnan(omega[k]) else float(omega[k]))
        f[k], g[k], errors[k], iterations[k] = (
            v[0] for v in (state.f, state.g, state.error, state.iterations)
        )
        if measures is not None:
            assert theta_a == theta_b == 1
            measures[:, k] = worth(cost.item(k), a[k], b[k], reg, f[k], g[k])
            if not math.isfinite(errors[k]):
                measures[-1, k] = math.inf
    if converged is not None:
        assert converged.dtype == np.bool_
        converged[...] = measures[-1] <= wanted


def worth(
    cost: Cost, a: np.ndarray, b: np.ndarray, reg: float, f: np.ndarray, g: np.ndarray
) -> tuple[float, ...]:
    """Centre potentials in place, and return what the kernel finds of their plan."""
    c = (f @ a - g @ b) / (2 * a.sum())
    f -= c
    g += c
    i, j = np.indices(cost.shape[1:]).reshape(2, -1)
    C = cost._entries(np.zeros(len(i), np.int64), i, j).reshape(cost.shape[1:])
    P = np.exp((f[:, None] + g - C) / reg)
    paid = np.where(P > 0, P, 0) * np.where(P > 0, C, 0)
    rows, columns = P.sum(axis=1), P.sum(axis=0)
    error = np.abs(rows - a).sum() + np.abs(columns - b).sum()
    entropy = reg * P.sum()
    return paid.sum(), f @ rows + g @ columns - entropy, f @ a + g @ b - entropy, error
