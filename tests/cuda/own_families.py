"""Calls of the raw kernels that only a GPU has, for transport, sketch and what both stand on."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda import emulated_router, emulated_sketch
from tests.cuda.kernel_arrays import FLOATS, normal, padded
from tests.cuda.transport_kernels import masses


def same(a: Any, b: Any) -> None:
    np.testing.assert_array_equal(a, b)


def near(a: np.ndarray, b: np.ndarray, scale: float = 200) -> None:
    size = max(np.abs(b).max(initial=0), 1e-300)
    np.testing.assert_allclose(a, b, rtol=0, atol=scale * np.finfo(a.dtype).eps * size)


# ---- arrays --------------------------------------------------------------------------------------


def entries(cuda: Any) -> None:
    rng = np.random.default_rng(0)
    for dtype in FLOATS:
        for n, m in ((1, 1), (33, 65), (3000, 40), (5, 700)):
            for a in (
                normal((n, m), dtype),
                padded(normal((n, m), dtype)),
                normal((m, n), dtype).T,
            ):
                rows, columns = rng.integers(0, n, 17), rng.integers(0, m, 9)
                out = np.full((17, 9), np.nan, dtype)
                cuda.arrays.select(a, rows, columns, out, 0)
                same(out, a[np.ix_(rows, columns)])
                sums = np.full(m, np.nan)
                cuda.arrays.column_sums(a, sums, 0)
                near(sums, a.sum(axis=0, dtype=np.float64), 4 * n)
                row, centred = normal(m), np.full((n, m), np.nan, dtype)
                cuda.arrays.subtract_row(a, row, centred, 0)
                same(centred, (a - row).astype(dtype))
            x, index, largest = normal(n * m, dtype), rng.integers(0, n * m, 33), np.full(1, np.nan)
            taken = np.full(33, np.nan, dtype)
            cuda.arrays.take_entries(x, index, taken, 0)
            same(taken, x[index])
            cuda.arrays.largest(x, largest, 0)
            assert largest[0] == np.abs(x).max()


# ---- linalg --------------------------------------------------------------------------------------


def products(cuda: Any) -> None:
    for dtype in FLOATS:
        for m, k, n in ((1, 1, 1), (33, 65, 1), (1, 40, 70), (100, 300, 65)):
            for A in (
                normal((m, k), dtype),
                normal((k, m), dtype).T,
                padded(normal((m, k), dtype)),
            ):
                B, C = normal((k, n), dtype, 2), normal((m, n), dtype, 3)
                wanted = C.copy()
                cuda.linalg.product(A, B, C, 0.5, 2.0, 0)
                emulated_sketch.product(A, B, wanted, 0.5, 2.0)
                near(C, wanted)


def triangles(cuda: Any) -> None:
    for dtype in FLOATS:
        for d, k in ((1, 1), (33, 5), (130, 40)):
            R = np.triu(normal((d, d), dtype)) / d + 2 * np.eye(d, dtype=dtype)
            out = np.full((d, d), np.nan, dtype)
            cuda.linalg.triangular_inverse(R, out, 0)
            near(out, np.linalg.inv(R.astype(float)).astype(dtype))
            same(np.tril(out, -1), 0)
            for left in (True, False):
                for transposed in (True, False):
                    B = normal((d, k) if left else (k, d), dtype)
                    wanted = B.copy()
                    cuda.linalg.triangular_solve(R, B, left, transposed, 0)
                    emulated_sketch.triangular_solve(R, wanted, left, transposed)
                    near(B, wanted)


def factors(cuda: Any) -> None:
    for dtype in FLOATS:
        for m, d in ((1, 1), (40, 7), (300, 65), (1100, 256)):
            A = normal((m, d), dtype) * np.logspace(0, -3, d, dtype=dtype)
            R = np.full((d, d), np.nan, dtype)
            for factored in (cuda.linalg.qr, cuda.linalg.rough_qr):
                Q = A.copy()
                assert factored(Q, R, 0) == -1
                near(Q @ R, A)
                near(Q.T @ Q, np.eye(d, dtype=dtype))
                assert (R.diagonal() > 0).all()
            norms = np.full(d, np.nan)
            cuda.linalg.column_norms(A, norms, 0)
            near(norms, np.linalg.norm(A.astype(float), axis=0))
            G = (A.T @ A + np.eye(d)).astype(dtype)
            assert cuda.linalg.symmetric_cholesky(G, R, 0) == -1
            near(R.T @ R, G)
        Q = np.zeros((9, 3), dtype)
        assert cuda.linalg.qr(Q, np.zeros((3, 3), dtype), 0) >= 0
        assert (
            cuda.linalg.symmetric_cholesky(-np.eye(3, dtype=dtype), np.zeros((3, 3), dtype), 0) == 0
        )


# ---- sketch --------------------------------------------------------------------------------------


def triangular_norms(cuda: Any) -> None:
    for dtype in FLOATS:
        for n, d in ((1, 1), (700, 3), (2500, 33), (513, 260)):
            P = np.triu(normal((d, d))) / d
            below = P + np.tril(np.full((d, d), np.nan), -1)
            for A in (normal((n, d), dtype), padded(normal((n, d), dtype))):
                out = np.full(n, np.nan)
                cuda.sketch.triangular_row_norms(A, below, out, 0)
                wanted = np.square(A @ P).sum(axis=1)
                near(out.astype(dtype), wanted.astype(dtype), 4 * d)


# ---- transport -----------------------------------------------------------------------------------


def batches(cuda: Any) -> None:
    for dtype in FLOATS:
        shapes = (1, 1, 1), (3, 7, 30), (40, 64, 64), (5, 50, 61), (4, 36, 48), (2, 100, 65)
        for B, n, m in shapes:
            for kind in (0, 1, 2, 3):
                M = np.abs(normal((B, n, m), dtype)) if kind == 0 else None
                x, y = (normal((B, k, 3), dtype, k) if kind else None for k in (n, m))
                if not cuda.transport.converges(
                    kind, n, m, 3 if kind else 0, np.dtype(dtype).itemsize
                ):
                    continue
                a, b = masses(n, B, 1), masses(m, B, 2)
                f, g, errors = np.zeros((B, n)), np.zeros((B, m)), np.full(B, np.nan)
                iterations, tol = np.zeros(B, np.int64), 1e-4 if dtype == np.float32 else 1e-9
                omega = np.full(B, np.nan)
                cuda.transport.converge(
                    *(M, x, y, kind, a, b, 0.5, 1.0, 1.0, omega, tol, 3000),
                    *(f, g, errors, iterations, False, None, None, 0.0, 0),
                )
                assert (errors <= tol).all()
                assert (iterations > 0).all()
                rows, columns, paid = np.zeros((B, n)), np.zeros((B, m)), np.zeros(B)
                cuda.transport.apply_plans(M, x, y, kind, f, g, 0.5, rows, columns, paid, 0)
                off = np.abs(rows - a).sum(axis=1) + np.abs(columns - b).sum(axis=1)
                assert (off <= 3 * tol).all()
                assert np.isfinite(paid).all()
                measures, converged = np.full((4, B), np.nan), np.zeros(B, bool)
                cuda.transport.converge(
                    *(M, x, y, kind, None, None, 0.1, 1.0, 1.0, None, tol, 3000),
                    *(f, g, errors, iterations, True, measures, converged, 1e-3, 0),
                )
                assert (errors < 1e-3).all()
                assert (measures[3] <= errors + tol).all()
                np.testing.assert_array_equal(converged, measures[3] <= 1e-3)
                most = max(np.abs(f).max(), np.abs(g).max())
                assert (np.abs(measures[1] - measures[2]) <= 2 * measures[3] * most + 1e-12).all()
                cuda.transport.apply_plans(M, x, y, kind, f, g, 0.1, rows, columns, paid, 0)
                eps = 2000 * np.finfo(dtype).eps
                assert (np.abs(measures[0] - paid) <= eps * (1 + np.abs(paid))).all()


def places(cuda: Any) -> None:
    rng = np.random.default_rng(0)
    for dtype in FLOATS:
        for n, m, k in ((1, 1, 1), (65, 3, 5), (700, 130, 7)):
            M = normal((n, m), dtype)
            M[rng.random((n, m)) < 0.2] = np.inf
            found, wanted = np.full(m, np.nan), np.full(m, np.nan)
            cuda.transport.largest_finite(M, found, 0)
            emulated_router.largest_finite(M, wanted)
            same(found, wanted)
            chosen = np.stack([rng.permutation(n + 1)[:k] for _ in range(m)]).astype(np.int32)
            chosen = np.pad(chosen, ((0, 0), (0, k - chosen.shape[1])), constant_values=n)
            kept, expected = (np.full((m, n), np.nan, dtype) for _ in range(2))
            cuda.transport.keep_places(M, chosen, kept, 0)
            emulated_router.keep_places(M, chosen, expected)
            same(kept, expected)


def routes(cuda: Any) -> None:
    for dtype in FLOATS:
        for tokens, experts, capacity in ((5, 1, 5), (64, 3, 40), (999, 17, 90)):
            scores = normal((tokens, experts), dtype)
            gates, tight = np.full(scores.shape, np.nan, dtype), np.zeros(tokens, bool)
            f, error, iterations = np.zeros(tokens), np.full(1, np.nan), np.zeros(1, np.int64)
            cuda.transport.route(
                *(scores, None, None, capacity, 1.0, 1.0, 1e-6, 500),
                *(gates, tight, f, error, iterations, 0),
            )
            assert (gates >= 0).all()
            assert (gates > 0).sum(axis=0).max() <= capacity
            assert np.isfinite(error).all()
            gradient, out, wanted = (
                normal(scores.shape, dtype, 4),
                *np.zeros((2, *scores.shape), dtype),
            )
            cuda.transport.route_backward(gradient, gates, tight, 1.0, out, 0)
            emulated_router.route_backward(gradient, gates, tight, 1.0, wanted)
            near(out, wanted, 1e4)


FAMILIES: dict[str, Callable[[Any], None]] = {
    "arrays.take_entries": entries,
    "arrays.select": entries,
    "arrays.column_sums": entries,
    "arrays.subtract_row": entries,
    "arrays.largest": entries,
    "linalg.product": products,
    "linalg.triangular_inverse": triangles,
    "linalg.triangular_solve": triangles,
    "linalg.qr": factors,
    "linalg.rough_qr": factors,
    "linalg.column_norms": factors,
    "linalg.symmetric_cholesky": factors,
    "sketch.triangular_row_norms": triangular_norms,
    "transport.converge": batches,
    "transport.converges": batches,
    "transport.apply_plans": batches,
    "transport.largest_finite": places,
    "transport.keep_places": places,
    "transport.route": routes,
    "transport.route_backward": routes,
}
