"""Calls of the raw kernels of transport."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from tests.cuda.kernel_arrays import FLOATS, Call, normal, padded

SHAPES = ((1, 1), (7, 300), (130, 33), (65, 1025), (260, 1))
Arguments = tuple[Any, Any, Any, int]


def masses(n: int, count: int, seed: int) -> np.ndarray:
    w = np.random.default_rng(seed).random((count, n)) + 0.1
    return w / w.sum(axis=1, keepdims=True)


def costs(n: int, m: int, dtype: Any, count: int = 1) -> Iterator[tuple[str, Arguments]]:
    """Yield costs of all kinds, of one problem where `count` is 0."""
    shape = (count,) if count else ()
    M = np.abs(normal((*shape, n, m), dtype))
    yield "stored", (M, None, None, 0)
    yield "stored, strided", (padded(M), None, None, 0)
    forbidden = M.copy()
    forbidden[..., 1:, 1:][M[..., 1:, 1:] < 0.3] = np.inf
    yield "stored, forbidden pairs", (forbidden, None, None, 0)
    for kind, d in product((1, 2, 3, 4), (1, 3, 8, 19, 64)):
        x, y = normal((*shape, n, d), dtype, 3), normal((*shape, m, d), dtype, 4)
        if kind == 4:
            x, y = (p / np.linalg.norm(p, axis=-1, keepdims=True) for p in (x, y))
        yield f"points, kind {kind}, d = {d}", (None, x.astype(dtype), y.astype(dtype), kind)


def of_iterations() -> Iterator[Call]:
    for dtype, (n, m), count in product(FLOATS, SHAPES, (1, 3)):
        # Not below rounding errors: of two points that are the same, an error of 0 is a chance.
        tol = 1e-5 if dtype is np.float32 else 1e-12
        for word, cost in costs(n, m, dtype, count):
            for theta, omega in (((1.0, 1.0), 1.5), ((0.9, 0.5), 1.0)):
                a, b = masses(n, count, 1), masses(m, count, 2)
                relaxed = np.full(count, omega)
                relaxed[1:2] = 0  # left alone
                f, g, errors = np.zeros((count, n)), np.zeros((count, m)), np.zeros((count, 4))
                yield (
                    f"transport.sinkhorn {n} x {m} {word}",
                    (*cost, a, b, 0.3, *theta, relaxed, tol, 4, f, g, errors),
                )


def of_plans() -> Iterator[Call]:
    for dtype, (n, m) in product(FLOATS, SHAPES):
        f, g = 0.1 * normal(n), 0.1 * normal(m, seed=9) - 2
        for word, cost in costs(n, m, dtype, 0):
            yield f"transport.plan {n} x {m} {word}", (*cost, f, g, 0.3, np.zeros((n, m), dtype))
            for k in (0, 1, 5):
                V = normal((m, k)) if k else None
                out = np.zeros((n, k)) if k else None
                rest = (V, out, np.zeros(n), np.zeros(m))
                yield f"transport.apply_plan {n} x {m} {word}", (*cost, f, g, 0.3, *rest)
            if cost[3] in (2, 3):
                assert cost[1] is not None
                out = np.zeros((n, cost[1].shape[1]))
                yield f"transport.point_gradient {word}", (*cost[1:], f, g, 0.3, out)


def listed(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a list with every column and row, and some without neighbours."""
    keep = np.random.default_rng(5).random((n, m)) < 0.2
    keep[np.arange(n), np.arange(n) % m] = True
    keep[np.arange(m) % n, np.arange(m)] = True
    rows, columns = np.nonzero(keep)
    starts = np.searchsorted(rows, np.arange(n + 1)).astype(np.int64)
    return starts, columns.astype(np.int32), np.abs(normal(len(columns)))


def of_lists() -> Iterator[Call]:
    for n, m in SHAPES:
        a, b = masses(n, 1, 1)[0], masses(m, 1, 2)[0]
        for dtype, limit in product(FLOATS, (n * m, 3)):
            for word, cost in costs(n, m, dtype, 0):
                f, g = 0.1 * normal(n), 0.1 * normal(m, seed=9) - 1
                yield (
                    f"transport.candidates {n} x {m} {word}",
                    (*cost, a, b, f, g, 0.1, 10.0, limit),
                )
        starts, indices, cost_of = listed(n, m)
        for values in (None, np.zeros(len(cost_of))):
            f, g, errors = np.zeros(n), np.zeros(m), np.zeros(3)
            rest = (1.5, 1e-12, 3, f, g, errors, values, np.zeros(m))
            yield (
                f"transport.sparse_sinkhorn {n} x {m}",
                (starts, indices, cost_of, a, b, 0.3, *rest),
            )
        plan = np.exp(-cost_of)
        rows = np.add.reduceat(plan, starts[:-1])
        columns = np.bincount(indices, plan, m)
        for shift, drop in ((0.5, 0.0), (0.1, 0.05 * plan.sum())):
            gradient = normal(m) * columns
            gradient -= gradient.mean()
            rest = (gradient, shift, drop, 1e-12, 500, np.zeros(m))
            yield (
                f"transport.newton_direction {n} x {m}",
                (starts, indices, plan, rows, columns, *rest),
            )


def of_columns() -> Iterator[Call]:
    for dtype, (n, m), k in product(FLOATS, SHAPES, (1, 3, 40)):
        if k > n:
            continue
        M = np.abs(normal((n, m), dtype))
        M[1:, ::3][M[1:, ::3] < 0.3] = np.inf
        for layout in (M, np.asfortranarray(M), padded(M)):
            f, g, b = normal(n), normal(m, seed=9), masses(m, 1, 2)[0]
            found = np.zeros((m, k), np.int32), np.zeros((m, k))
            yield (
                f"transport.capped_columns {n} x {m} {k}",
                (layout, f, b, k, 0.2, *found, np.zeros(m)),
            )
            yield f"transport.capped_dual {n} x {m} {k}", (layout, f, g, k, 0.2, *found)


TRANSPORT: tuple[Callable[[], Iterator[Call]], ...] = (
    *(of_iterations, of_plans, of_lists, of_columns),
)
