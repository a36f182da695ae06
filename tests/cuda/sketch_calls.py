"""Calls of the public functions of sketch on arrays of any library; see `tests.cuda.calls`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from quadric import sketch

Put = Callable[[np.ndarray], Any]

N, D = 9000, 33

OPERATORS = {
    "sparse sign": lambda: sketch.sparse_sign(256, N, nnz=8, seed=3),
    "count sketch": lambda: sketch.count_sketch(200, N, seed=3),
    "gaussian": lambda: sketch.gaussian(200, N, seed=3),
    "rademacher": lambda: sketch.rademacher(200, N, seed=3),
    "srht": lambda: sketch.srht(200, N, seed=3),
    "circulant": lambda: sketch.circulant(200, N, seed=3),
    "row sampling": lambda: sketch.row_sampling(np.array([3, 8999, 3, 0, 17, 3]), N),
    "composed": lambda: sketch.gaussian(64, 256) @ sketch.sparse_sign(256, N, seed=2),
}


def normal(shape: Any, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def operators(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    A, turned = normal((N, D), dtype), normal((5, N), dtype, 1)
    for name, make in OPERATORS.items():
        S = make()
        B = normal((S.m, 7), dtype, 2)
        found |= {
            f"{name}, S A": S @ put(A),
            f"{name}, S v": S @ put(A[:, 0].copy()),
            f"{name}, S columns": S @ put(turned).T,
            f"{name}, A S^T": put(turned) @ S.T,
            f"{name}, S^T B": S.T @ put(B),
            f"{name}, part": S[1:5, 300:8500] @ put(A[300:8500].copy()),
            f"{name}, part^T": S[1:5, 300:8500].T @ put(B[1:5].copy()),
        }
    return found


def transforms(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for shape, axis in (
        ((3, 4096), 1),
        ((256, 33), 0),
        ((2, 2**16), 1),
        ((2, 64, 3), 1),
        ((1,), 0),
    ):
        x = put(normal(shape, dtype))
        found[f"{shape}"] = sketch.fwht(x, axis)
        found[f"{shape}, orthonormal"] = sketch.fwht(x, axis, orthonormal=True)
    return found


def products(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    A = normal((N, D), dtype)
    for k in (None, 1, 5):
        shape = () if k is None else (k,)
        x, b = normal((D, *shape), dtype, 1), normal((N, *shape), dtype, 2)
        for name, right in (("", b), (" of zero", None)):
            there = None if right is None else put(right)
            g, r, norm = sketch.residual_gradient(put(A), put(x), there)
            found |= {f"gradient {k}{name}": g, f"residual {k}{name}": r}
            if k is None:
                found[f"norm{name}"] = np.float64(norm)
    return found


def regression(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for n in (100, N):
        A = normal((n, D), dtype) * np.linspace(1, 4, D).astype(dtype)
        for k in (None, 3):
            b = normal((n,) if k is None else (n, k), dtype, 2)
            for method in ("auto", "gram", "spir", "fossils", "iterative", "precondition"):
                if method in ("fossils", "iterative") and n < N:
                    continue  # a sketch of hardly fewer rows
                result = sketch.lstsq(put(A), put(b), method=method, ridge=0.0 if k else 0.5)
                found |= {
                    f"{n} {k} {method} x": result.x,
                    f"{n} {k} {method} residual": result.residual,
                }
    wide = sketch.lstsq(put(normal((20, 900), dtype)), put(normal(20, dtype, 3)))
    return found | {"least norm": wide.x}


def scores(put: Put, dtype: str) -> dict[str, Any]:
    A = normal((N, D), dtype)
    return {
        "leverage": sketch.leverage_scores(put(A)),
        "leverage of few": sketch.leverage_scores(put(A[:100])),
        "ridge": sketch.leverage_scores(put(A), ridge=3.0),
        "approximate": sketch.leverage_scores(put(A), approximate=8),
        "lewis": sketch.lewis_weights(put(A[:, :5].copy()), 1.5, tol=1e-4),
        "bounds": sketch.lp_sensitivities(put(A[:, :5].copy()), 1.5, method="bound"),
        "rows": sketch.sample_rows(put(A), 500, rule="uniform").indices,
    }


SKETCH: dict[str, Callable[[Put, str], dict[str, Any]]] = {
    "sketching operators": operators,
    "fwht": transforms,
    "residual_gradient": products,
    "lstsq": regression,
    "scores": scores,
}
