"""Calls of the raw kernels that have no twin on the CPU, compared with NumPy."""

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import ml_dtypes
import numpy as np

from quadric import backends
from quadric.woodbury import inverse_update
from tests.cuda import emulated

FLOATS = (np.float32, np.float64)


def normal(shape: Any, dtype: Any = np.float64, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def native(name: str) -> Callable[..., Any]:
    return backends.resolve(name, "native")


def same(a: Any, b: Any) -> None:
    np.testing.assert_array_equal(a, b)


def near(a: np.ndarray, b: np.ndarray) -> None:
    size = max(np.abs(b).max(initial=0), 1e-300)
    np.testing.assert_allclose(a, b, rtol=0, atol=200 * np.finfo(a.dtype).eps * size)


def copy(cuda: Any) -> None:
    for kind in (np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_):
        x = (10 * normal((7, 40))).astype(kind)
        for target in (np.float32, np.float64) if x.dtype.kind == "f" else (kind,):
            out = np.full((9, 7), 3, target).T[:, 1:9]
            cuda.arrays.copy(x[:, 3:35:4], out, 0)
            same(out, x[:, 3:35:4].astype(target))
    x = normal((3, 50), np.float32)
    out = np.zeros((3, 50), np.uint16)
    cuda.arrays.copy(x, out, 0)
    same(out, x.astype(ml_dtypes.bfloat16).view(np.uint16))
    back = np.zeros((3, 50), np.float32)
    cuda.arrays.copy(out, back, 0)
    same(back, out.view(ml_dtypes.bfloat16).astype(np.float32))


def fill(cuda: Any) -> None:
    out = np.zeros((5, 9), np.float32)
    cuda.arrays.fill(out[:, ::2], 2.5, 0)
    same(out[:, ::2], 2.5)
    same(out[:, 1::2], 0)


def first_not_finite(cuda: Any) -> None:
    for dtype in (np.float16, *FLOATS):
        x = normal((30, 70), dtype)
        assert cuda.arrays.first_not_finite(x, 0) == -1
        x[21, 3], x[12, 5], x[12, 69] = np.nan, np.inf, -np.inf
        assert cuda.arrays.first_not_finite(x, 0) == 12 * 70 + 5


def upload(cuda: Any) -> None:
    import torch

    there = torch.zeros(11, dtype=torch.float64, device="cuda")
    view = (there.data_ptr(), (11,), (1,), "float64")
    cuda.arrays.upload(normal(11), view, 0)
    back = np.zeros(11)
    cuda.arrays.download(view, back, 0)
    same(back, normal(11))


def symmetrize(cuda: Any) -> None:
    for dtype in FLOATS:
        a = normal((75, 75), dtype)
        upper = np.triu(a)
        cuda.arrays.symmetrize(a, 0.5, a, 0)
        same(a, dtype(0.5) * (upper + np.triu(upper, 1).T))


def columns(cuda: Any) -> None:
    for dtype in FLOATS:
        x, index = normal((6, 50), dtype), np.random.default_rng(3).permutation(50)[:20]
        out = np.zeros((6, 20), dtype)
        cuda.arrays.take_columns(x, index, out, 0)
        same(out, x[:, index])
        to = np.ones((6, 50), dtype)
        cuda.arrays.add_to_columns(out, index, 2.0, to, 0)
        expected = np.ones((6, 50), dtype)
        expected[:, index] += 2 * out
        near(to, expected)


def scale_rows(cuda: Any) -> None:
    for dtype in FLOATS:
        x, w = normal((6, 50), dtype), normal(6, dtype)
        expected = x * w[:, None]
        cuda.arrays.scale_rows(w, x, 0)
        same(x, expected)


def clear(cuda: Any) -> None:
    for dtype, rows in ((np.float32, True), (np.float64, False)):
        x, index = normal((50, 50), dtype), np.array([3, 40])
        expected = x.copy()
        expected[:, index] = 0
        if rows:
            expected[index] = 0
        cuda.arrays.clear(index, rows, x, 0)
        same(x, expected)


def dequantize(cuda: Any) -> None:
    rng = np.random.default_rng(2)
    for dtype in FLOATS:
        codes, zeros = (rng.integers(0, 16, s).astype(np.uint8) for s in ((7, 45), (7, 3)))
        scales, group = normal((7, 3), dtype), rng.integers(0, 3, 45).astype(np.int32)
        out = np.zeros((7, 45), dtype)
        cuda.arrays.dequantize(codes, scales, zeros, group, out, 0)
        near(out, scales[:, group] * (codes.astype(dtype) - zeros[:, group]))


def gemm(cuda: Any) -> None:
    for dtype in FLOATS:
        a, b, c = (normal(s, dtype) for s in ((33, 20), (20, 45), (33, 45)))
        expected = (2 * a.astype(np.float64) @ b + 0.5 * c).astype(dtype)
        for a_ in (a, np.asfortranarray(a)):
            for b_ in (b, np.asfortranarray(b)):
                out = c.copy()
                cuda.arrays.gemm(2.0, a_, b_, 0.5, out, 0)
                near(out, expected)


def root(n: int, seed: int = 1) -> np.ndarray:
    x = normal((n, n), seed=seed)
    return np.linalg.cholesky(x @ x.T / n + np.eye(n))


def cho_solve_columns(cuda: Any) -> None:
    for dtype in FLOATS:
        lower, x = (np.asfortranarray(a.astype(dtype)) for a in (root(70), normal((70, 9))))
        whole = np.tril(lower.astype(np.float64))
        expected = np.linalg.solve(whole @ whole.T, x).astype(dtype)
        cuda.arrays.cho_solve_columns(lower, x, 0)
        near(x, expected)


def positive(n: int, seed: int = 1) -> np.ndarray:
    lower = root(n, seed)
    return lower @ lower.T


def cholesky(cuda: Any) -> None:
    for m in (1, 37, 300):
        a = positive(m)
        lower = np.triu(a, 1) * 7 + np.tril(a)  # only the lower triangle is read
        assert cuda.linalg.cholesky(lower, 0.5, 0) == -1
        near(lower, np.linalg.cholesky(a + 0.5 * np.eye(m)))
    a = positive(37)
    a[20, 20] = -5
    assert cuda.linalg.cholesky(a, 0.0, 0) == 20


def cho_solve(cuda: Any) -> None:
    for k in (1, 5):
        lower, b = root(70), normal((70, k))
        expected = np.linalg.solve(lower @ lower.T, b)
        cuda.linalg.cho_solve(lower, b, 0)
        near(b, expected)


def factors(count: int, n: int, dtype: Any) -> np.ndarray:
    """Return what ``cholesky_batch`` leaves, from the CPU's kernel."""
    a = np.stack([positive(n, seed).astype(dtype) for seed in range(count)])
    for one in a:
        assert native("sweep.cholesky")(one, one.diagonal()[::-1].astype(np.float64), 1) == -1
    return a


def gather_batch(cuda: Any) -> None:
    for dtype in FLOATS:
        for count, n in ((1, 1), (3, 67), (40, 33), (2, 300)):
            h = np.stack([positive(n, seed).astype(dtype) for seed in range(count)])
            crooked = h.copy()
            crooked[-1, n // 2, 0] += 1
            order = np.stack([np.random.default_rng(i).permutation(n) for i in range(count)])
            defects, wanted = np.full(count, np.nan), np.full(count, np.nan)
            cuda.sweep.symmetry_defect_batch(crooked, defects, 0)
            emulated.symmetry_defect_batch(crooked, wanted)
            near(defects, wanted)
            for dead in (None, normal((count, n)) < -1):
                a, b = (np.full_like(h, np.nan) for _ in range(2))
                cuda.sweep.gather_batch(h, order, dead, a, 0)
                emulated.gather_batch(h, order, dead, b)
                same(a, b)
        crooked[1, 5, 200] = np.inf
        cuda.sweep.symmetry_defect_batch(crooked, defects, 0)
        same(np.isnan(defects), [False, True])


def arrange(cuda: Any) -> None:
    for dtype in FLOATS:
        for count, n in ((1, 1), (3, 67), (2, 300), (1, 1025)):
            h = np.stack([positive(n, seed).astype(dtype) for seed in range(count)])
            h[:, n // 2, n // 2] = 0
            h[-1, n // 3, n // 3] = h[-1, 0, 0]  # the first of equals goes first
            for activation, group in ((False, None), (True, np.arange(n, dtype=np.int32) // 7)):
                shape = (count, n)
                found, wanted = (
                    (
                        np.full(shape, -7), np.zeros(shape, bool),
                        *(np.full(shape, np.nan) for _ in range(2)),
                        None if group is None else np.full(shape, -7, np.int32),
                    )
                    for _ in range(2)
                )  # fmt: skip
                cuda.sweep.arrange(h, 0.25, activation, group, *found, 0)
                emulated.arrange(h, 0.25, activation, group, *wanted)
                for place in (0, 1, 2):
                    same(found[place], wanted[place])
                near(found[3], wanted[3])
                if group is not None:
                    same(found[4], wanted[4])
    h[0, 3, 3] = np.nan  # an order all the same
    cuda.sweep.arrange(h, 0.25, True, group, *found, 0)
    same(np.sort(found[0]), np.arange(h.shape[1])[None])


def cholesky_batch(cuda: Any) -> None:
    for dtype in FLOATS:
        for n in (1, 67, 300):
            a = np.stack([positive(n, seed).astype(dtype) for seed in range(5)])
            diagonal = a.diagonal(axis1=1, axis2=2)[:, ::-1].astype(np.float64).copy()
            diagonal[1, n // 2] = -1
            wrong, pivot = a[1].copy(), np.zeros(5, np.int64)
            at = native("sweep.cholesky")(wrong, diagonal[1], 1)
            cuda.sweep.cholesky_batch(a, diagonal, pivot, 0)
            same(pivot, [-1, at, -1, -1, -1])
            same(a[1], np.eye(n))
            for i in (0, 2, 3, 4):
                near(a[i], factors(5, n, dtype)[i])


def factorize_batch(cuda: Any) -> None:
    for dtype in FLOATS:
        for count, n in ((1, 67), (5, 130)):
            h = np.stack([positive(n, seed).astype(dtype) for seed in range(count)])
            h[-1, 5] = h[-1, :, 5] = 0
            for activation, group in ((False, None), (True, np.arange(n, dtype=np.int32) // 7)):
                found, wanted = (
                    (
                        np.zeros_like(h), np.full((count, n), -7), np.zeros((count, n), bool),
                        np.full((count, n), np.nan),
                        None if group is None else np.full((count, n), -7, np.int32),
                        np.full(count, np.nan), np.full(count, -7),
                    )
                    for _ in range(2)
                )  # fmt: skip
                cuda.sweep.factorize_batch(h, 0.01, activation, group, *found, 0)
                emulated.factorize_batch(h, 0.01, activation, group, *wanted)
                near(found[0], wanted[0])
                for place in (1, 2, 3, 6):
                    same(found[place], wanted[place])
                near(found[5], wanted[5])
                if group is not None:
                    same(found[4], wanted[4])
                again = np.zeros_like(h)
                cuda.sweep.factorize_batch(
                    *(h, 0.01, activation, None, again, found[1], None, None, None, *found[5:]), 0
                )
                same(again, found[0])
        cuda.sweep.factorize_batch(
            *(np.zeros_like(h), 0.01, False, None, *found[:3], None, None, *found[5:]), 0
        )
        same(found[6], np.full(count, n - 1))  # a Hessian of no input has no factor


def not_finite(cuda: Any) -> None:
    for dtype in FLOATS:
        w, scales = normal((30, 70), dtype), normal((30, 3), dtype)
        assert cuda.sweep.first_not_finite(w, None, 0) == (-1, -1)
        assert cuda.sweep.first_not_finite(w[:, ::2], scales, 0) == (-1, -1)
        w[12, 5], scales[1, 2] = np.nan, np.inf
        assert cuda.sweep.first_not_finite(w, scales, 0) == (12 * 70 + 5, 5)


def sweep_batch(cuda: Any) -> None:
    count, m, n = 3, 20, 200
    for dtype in FLOATS:
        a, w = factors(count, n, dtype), normal((count, m, n), dtype)
        order = np.stack([np.random.default_rng(i).permutation(n) for i in range(count)])
        dead = normal((count, n)) < -1.5
        for sparsity in (0.0, 0.4):
            options = (64, 0, 15, False, False, 2.0, 80, 0, 0, 0, sparsity, 128, False, True)
            outputs = (
                np.zeros((count, m, n), np.uint8), np.zeros((count, m, 4), dtype),
                np.zeros((count, m, 4), np.uint8), np.zeros((count, m, n), dtype),
                np.zeros((count, m, n), bool), np.zeros((count, m)),
            )  # fmt: skip
            cuda.sweep.sweep_batch(w, a, order, dead, None, *options, *outputs, 0)
            for i in range(count):
                one = [np.zeros_like(x[i]) for x in outputs]
                r = a[i][::-1, ::-1].T
                native("sweep.sweep")(w[i], r, order[i], dead[i], None, *options, *one, 1)
                different = np.mean(one[0] != outputs[0][i])
                assert different <= (0.1 if dtype == np.float32 else 0), f"{different:.1%} of codes"
                if dtype == np.float64:
                    near(outputs[5][i], one[5])


def looks(cuda: Any) -> None:
    for dtype in FLOATS:
        x = np.abs(normal((30, 70), dtype)) + 1
        y = x.copy()
        assert cuda.arrays.first_below(x, 1.0, 0) == -1
        assert cuda.arrays.first_difference(x, y, 0) == -1
        x[21, 3], x[12, 5] = 0.5, np.nan
        assert cuda.arrays.first_below(x, 1.0, 0) == 12 * 70 + 5
        assert cuda.arrays.first_difference(x, y, 0) == 12 * 70 + 5
        assert cuda.arrays.first_difference(x[13:, ::2], y[13:, ::2], 0) == -1
    status = np.full((1, 70), -1, np.int32)
    status[0, 9] = 0
    assert cuda.arrays.first_difference(status, np.full_like(status, -1), 0) == 9


def parts(cuda: Any) -> None:
    for dtype in FLOATS:
        x, by = normal((30, 70), dtype), normal((70, 30), dtype, 2).T
        wanted = x / by
        cuda.arrays.divide(by, x, 0)
        same(x, wanted)
        v, mask = normal(700, dtype), normal(700) > 0
        for value in (True, False):
            out = v.copy()
            cuda.arrays.clear_where(mask, value, out, 0)
            same(out, np.where(mask == value, 0, v))
    for status in (-1, 0, 5):
        x = np.ones((7, 5))
        cuda.arrays.spoil(np.array([status], np.int32), x, 0)
        same(x, 1.0 if status == -1 else np.nan)


def inverse_steps(cuda: Any) -> None:
    for dtype in FLOATS:
        for rule in inverse_update._RULES.values():
            options = astuple(rule(0.9))
            sizes = [(1, 1), (33, 1), (70, 5), (200, 17), (7, 4)] + [(3, 2)] * 40
            J = tuple(root(n, i).astype(dtype) for i, (n, _) in enumerate(sizes))
            J = tuple(j @ j.T for j in J)
            J[4][...] *= -1  # what is none is told apart
            V = tuple(normal((k, n), dtype, i) for i, (n, k) in enumerate(sizes))
            U = tuple(v @ j for v, j in zip(V, J, strict=True))
            found, wanted = ([np.full_like(v, np.nan) for v in V] for _ in range(2))
            numbers, expected = (
                [
                    *np.full((3, len(J)), np.nan),
                    np.full(len(J), -7, np.int32),
                    np.ones((len(J), 2)),
                    np.ones(len(J)),
                ]
                for _ in range(2)
            )
            cuda.woodbury.inverse_steps(J, V, U, tuple(found), *options, *numbers, 0)
            emulated.inverse_steps(J, V, U, tuple(wanted), *options, *expected)
            same(numbers[2], expected[2])
            same(numbers[3], expected[3])
            same(numbers[5], 0.0)
            near(numbers[0], expected[0])
            near(numbers[1], expected[1])
            for a, b in zip(found, wanted, strict=True):
                near(a, b)


def update_after_steps(cuda: Any) -> None:
    for dtype in FLOATS:
        J = tuple(root(n, n).astype(dtype) for n in (1, 33, 1200))
        V = tuple(normal((k, len(j)), dtype) for k, j in zip((1, 3, 1), J, strict=True))
        numbers = np.array([[0.9, 1.0, 1.1], [0.1, 0.0, 0.2], [1.0, -1.0, -1.0]])
        found, wanted = ([np.empty_like(j) for j in J] for _ in range(2))
        norms, expected = np.zeros(3), np.ones(3)
        cuda.woodbury.update_after_steps(J, *numbers, V, tuple(found), norms, 0)
        cuda.woodbury.symmetric_update(J, *numbers, V, tuple(wanted), expected, 0)
        same(norms, expected)
        for a, b in zip(found, wanted, strict=True):
            same(a, b)


def blend(cuda: Any) -> None:
    for dtype in FLOATS:
        J = tuple(normal((n, n), dtype) for n in (1, 33, 100))
        wanted = tuple(j.copy() for j in J)
        cuda.woodbury.blend(J, np.array([3.0, 1.0, np.inf]), 2.0, 0.9, 0)
        emulated.blend(wanted, np.array([3.0, 1.0, np.inf]), 2.0, 0.9)
        for a, b in zip(J, wanted, strict=True):
            near(a, b)


def scale_to_norm(cuda: Any) -> None:
    for dtype in FLOATS:
        for m, n in ((1, 1), (33, 65), (100, 300)):
            grad, product, rescale = normal((m, n), dtype), normal((n, m), dtype, 2), n > 65
            out, wanted = np.empty_like(grad), np.empty_like(grad)
            norms, expected = np.empty((2, 2))
            cuda.woodbury.scale_to_norm(product, grad, rescale, out, norms, 0)
            emulated.scale_to_norm(product, grad, rescale, wanted, expected)
            near(out, wanted)
            near(norms, expected)


def lost_block(cuda: Any) -> None:
    for dtype in FLOATS:
        w, mask = normal(5000, dtype), np.ones(5000, bool)
        assert cuda.woodbury.lost_block(w, mask, 50, 0) == -1
        mask[200:250] = mask[4900:] = mask[:50] = False
        w[:50] = 0
        assert cuda.woodbury.lost_block(w, mask, 50, 0) == 4


OWN: dict[str, Callable[[Any], None]] = {
    "arrays.copy": copy,
    "arrays.fill": fill,
    "arrays.first_not_finite": first_not_finite,
    "arrays.upload": upload,
    "arrays.download": upload,
    "arrays.symmetrize": symmetrize,
    "arrays.take_columns": columns,
    "arrays.add_to_columns": columns,
    "arrays.scale_rows": scale_rows,
    "arrays.clear": clear,
    "arrays.dequantize": dequantize,
    "arrays.gemm": gemm,
    "arrays.cho_solve_columns": cho_solve_columns,
    "arrays.first_below": looks,
    "arrays.first_difference": looks,
    "arrays.divide": parts,
    "arrays.clear_where": parts,
    "arrays.spoil": parts,
    "linalg.cholesky": cholesky,
    "linalg.cho_solve": cho_solve,
    "sweep.symmetry_defect_batch": gather_batch,
    "sweep.arrange": arrange,
    "sweep.gather_batch": gather_batch,
    "sweep.cholesky_batch": cholesky_batch,
    "sweep.factorize_batch": factorize_batch,
    "sweep.first_not_finite": not_finite,
    "sweep.sweep_batch": sweep_batch,
    "woodbury.inverse_steps": inverse_steps,
    "woodbury.update_after_steps": update_after_steps,
    "woodbury.blend": blend,
    "woodbury.scale_to_norm": scale_to_norm,
    "woodbury.lost_block": lost_block,
}
