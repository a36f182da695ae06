"""Calls of public functions on arrays of any library: all families.

Each takes `put`, which brings a NumPy array to where the call is to be, and a dtype; it returns its
results under their names.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from quadric import linalg, sweep, transport, woodbury
from tests.cuda.sketch_calls import SKETCH

Put = Callable[[np.ndarray], Any]
Call = Callable[[Put, str], dict[str, Any]]

M, N, D = 24, 48, 300


def normal(shape: Any, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def inputs(dtype: Any, tokens: int = 4 * N) -> np.ndarray:
    return (normal((tokens, N), "f8", 1) @ (normal((N, N), "f8", 2) / 7)).astype(dtype)


def hessian(dtype: Any, seed: int = 0) -> np.ndarray:
    x = normal((4 * N, N), "f8", seed) @ (np.eye(N) + normal((N, N), "f8", seed + 1) / 14)
    return (x.T @ x / len(x)).astype(dtype)


def positive(n: int, dtype: Any, seed: int = 0) -> np.ndarray:
    x = normal((2 * n, n), "f8", seed)
    a = (x.T @ x / (2 * n) + np.eye(n) / 2).astype(dtype)
    return (a + a.T) / 2


# ---- sweep ---------------------------------------------------------------------------------------


def accumulator(put: Put, dtype: str) -> dict[str, Any]:
    plain = sweep.HessianAccumulator(N, dtype=dtype)
    plain.update(put(inputs(dtype)))
    plain.update(put(inputs("float16")))
    other = sweep.HessianAccumulator(N, dtype=dtype)
    weights = np.abs(normal(4 * N, dtype, 3))
    other.update(put(inputs(dtype)), put(weights), put(inputs(dtype)[::-1].copy()))
    found = {"value": plain.value(), "weighted": other.value(), "cross": other.cross()}
    merged = sweep.HessianAccumulator(N, dtype=dtype)
    merged.update(put(inputs(dtype)[:20]))
    merged.merge(plain)
    return {**found, "merged": merged.value()}


def factorize(put: Put, dtype: str) -> dict[str, Any]:
    orders = ("natural", "activation")
    return {order: sweep.factorize(put(hessian(dtype)), order=order).R for order in orders}


def results(q: Any, prefix: str = "") -> dict[str, Any]:
    fields = ("codes", "zeros", "group_index", "mask", "scales", "loss", "weights")
    found = {prefix + name: getattr(q, name, None) for name in fields}
    if found[prefix + "codes"] is not None:
        found[prefix + "dequantized"] = q.dequantize()
    return {name: value for name, value in found.items() if value is not None}


def swept(function: Any, **options: Any) -> Call:
    def call(put: Put, dtype: str) -> dict[str, Any]:
        factor = sweep.factorize(put(hessian(dtype)), order="activation")
        return results(function(put(normal((M, N), dtype, 5)), factor, **options))

    return call


def baseline(function: Any, **options: Any) -> Call:
    def call(put: Put, dtype: str) -> dict[str, Any]:
        factor = sweep.factorize(put(hessian(dtype)))
        w = put(normal((M, N), dtype, 5))
        alone = results(function(w, **options), "alone, ")
        return {**alone, **results(function(w, factor=factor, **options))}

    return call


def crossed(put: Put, dtype: str) -> dict[str, Any]:
    cross, factor = put(0.1 * hessian(dtype, 9)), sweep.factorize(put(hessian(dtype)))
    return results(sweep.quantize(put(normal((M, N), dtype, 5)), factor, cross=cross, bits=8))


def batch(put: Put, dtype: str) -> dict[str, Any]:
    w = np.stack([normal((M, N), dtype, i) for i in range(3)])
    h = np.stack([hessian(dtype, i) for i in range(3)])
    found = sweep.quantize_batch(put(w), put(h), bits=3, group_size=16)
    return {k: v for i, q in enumerate(found) for k, v in results(q, f"{i}, ").items()}


def packed(put: Put, dtype: str) -> dict[str, Any]:
    factor = sweep.factorize(put(hessian(dtype)))
    options: dict[str, Any] = {"bits": 4, "group_size": 8, "symmetric": True}
    w = put(normal((32, N), dtype, 5))
    q = sweep.quantize(w, factor, **options, scale_dtype="float16")
    return {f"{how}, {k}": v for how in ("gptq", "gptq_v2") for k, v in q.pack(how).items()}


# ---- woodbury ------------------------------------------------------------------------------------


def block_fisher(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    mask = np.random.default_rng(4).random(D) < 0.5
    mask[::10] = True
    w = put(normal(D, dtype, 6))
    for count in (7, 40):
        fisher = woodbury.BlockFisher(D, block_size=10, damping=0.1)
        fisher.update(put(normal((count, D), dtype)))
        found |= {f"diagonal {count}": fisher.diagonal(), f"inverse {count}": fisher.inverse(3, 12)}
        found[f"solve {count}"] = fisher.solve(put(normal((3, D), dtype, 7)))
        found |= {f"scores {count}": fisher.scores(w), f"groups {count}": fisher.scores(w, 5)}
        for update in ("joint", "independent"):
            pruned = fisher.prune(w, put(mask), update=update)
            found[f"{update} {count}"] = pruned.weights
            found[f"{update} loss {count}"] = pruned.loss
    other = woodbury.BlockFisher(D, block_size=10, damping=0.1)
    other.update(put(normal((15, D), dtype, 8)))
    other.merge(fisher)
    return {**found, "merged": other.diagonal()}


def empirical_fisher(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for size in (None, 70):
        g = put(normal((12, D), dtype))
        fisher = woodbury.EmpiricalFisher(g, damping=0.1, block_size=size)
        fisher.append(put(normal((5, D), dtype, 1)))
        found[f"solve {size}"] = fisher.solve(put(normal((3, D), dtype, 7)))
        found[f"combine {size}"] = fisher.combine(put(normal(17, dtype, 3)))
        found[f"diagonal {size}"] = fisher.diagonal()
        found[f"element {size}"] = np.float64(fisher.element(3, 60))
    return found


def gradient_window(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for storage in (dtype, "bfloat16", "float16"):
        window = woodbury.GradientWindow(D, capacity=5, damping=0.1, dtype=storage)
        double = storage == "float64"
        for i in range(8):
            g = put(normal(D, "f8" if double else "f4", i))
            found[f"step {storage} {i}"] = window.push_and_solve(g)
        found[f"combine {storage}"] = window.combine([1.0, 0.5, 0.25])
        found[f"solve {storage}"] = window.solve(put(normal(D, "f8" if double else "f4", 9)))
    return found


def inverse_updates(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rule in ("exact", "mkor", "published"):
        j = [put(positive(n, dtype)) for n in (1, 30, 65)]
        v = [put(normal(n, dtype, 2) / 4) for n in (1, 30, 65)]
        new = woodbury.rank_one_inverse_update(j, v, rule=rule, norm_bound=3.0)
        found |= {f"one, {rule} {i}": x for i, x in enumerate(new)}
        k = put(normal((4, 65), dtype, 3) / 4)
        found[f"four, {rule}"] = woodbury.rank_k_inverse_update(j[2], k, rule=rule)
    return found


def kronecker(put: Put, dtype: str) -> dict[str, Any]:
    arrays = (positive(M, dtype), normal((M, N), dtype), positive(N, dtype))
    left, g, right = map(put, arrays)
    precondition = woodbury.kronecker_precondition
    return {str(r): precondition(left, g, right, rescale=r) for r in (True, False)}


def natural_gradient(put: Put, dtype: str) -> dict[str, Any]:
    g = put(normal((6, D), dtype))
    other = put(normal(D, dtype, 3))
    solve = woodbury.natural_gradient
    return {"last": solve(g, damping=0.1), "other": solve(g, other, 0.1)}


def identities(put: Put, dtype: str) -> dict[str, Any]:
    u, c, x = normal((D, 5), dtype), normal((5, 5), dtype, 1), normal((3, D), dtype, 2)
    d = np.linspace(1, 2, D).astype(dtype)
    solved = woodbury.woodbury_solve(put(d), put(u), put(c), put(x))
    j, v = positive(N, dtype), normal(N, dtype, 4)
    updated = woodbury.sherman_morrison(put(j), put(v), weight=0.3)
    return {
        "x": solved.x,
        "inverse": updated.inverse,
        "logdet": np.float64(solved.logdet),
        "logdet of the update": np.float64(updated.logdet),
    }


# ---- linalg --------------------------------------------------------------------------------------


def small_matrices(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for n in (3, 20, 50, 130):
        a = put(np.stack([positive(n, dtype, i) for i in range(6)]))
        b = put(normal((6, n, 2), dtype))
        found[f"solve {n}"] = linalg.solve(a, b).value
        found |= {f"{f.__name__} {n}": f(a).value for f in (linalg.cholesky, linalg.inverse)}
        found[f"logdet {n}"] = linalg.logdet(a).logdet
    return found


# ---- transport -----------------------------------------------------------------------------------

EXACT = {
    "float32": 2e-6,
    "float64": 1e-13,
}  # tolerances of solves, below what results may differ by


def solved(result: Any, prefix: str = "") -> dict[str, Any]:
    fields = ("f", "g", "cost", "value", "dual_value")
    found = {name: getattr(result, name) for name in fields}
    found |= {"plan": result.plan()}
    if result.problem.balanced:
        found["rounded"] = result.rounded_plan()
    gradients = result.gradients()
    found |= {f"gradient {k}": getattr(gradients, k) for k in ("M", "x", "y", "a", "b")}
    given = {prefix + k: v for k, v in found.items() if v is not None}
    return {k: np.float64(v) if isinstance(v, float) else v for k, v in given.items()}


def masses(n: int, dtype: Any, seed: int = 0, empty: int = 0) -> np.ndarray:
    w = np.random.default_rng(seed).random(n) + 0.5
    w[:empty] = 0
    return (w / w.sum()).astype(dtype)


def distinct(shape: Any, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(dtype)


def transport_of_costs(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for n, m in ((20, 30), (230, 301)):  # a solve in one kernel, and one of many
        M = distinct((n, m), dtype)
        a, b = masses(n, "f8", 1), masses(m, "f8", 2)
        for method in ("auto", "sinkhorn", "newton"):
            r = transport.solve(a, b, put(M), 0.3, method=method, tol=EXACT[dtype])
            found |= solved(r, f"{n} {method} ")
        V = put(normal((m, 3), dtype, 4))
        found |= {f"{n} barycentric": r.barycentric(V), f"{n} vjp": r.vjp(plan=put(M)).M}
        unbalanced = {"unbalanced": (2.0, 1.0), "tol": EXACT[dtype]}
        found |= solved(transport.solve(a, b, put(M), 0.3, **unbalanced), f"{n} unbalanced ")
        turned = put(np.ascontiguousarray(M.T)).T
        empty = masses(n, "f8", 1, 3), masses(m, "f8", 2, 5)
        r = transport.solve(*empty, turned, 0.3, tol=EXACT[dtype])
        for k in ("f", "g"):  # -Inf where there is no mass
            found[f"{n} turned, exp {k}"] = getattr(r, k)[5:]
        found[f"{n} turned plan"] = r.plan()
        M[0, 3:9] = np.inf
        r = transport.solve(a, b, put(M), 0.3, tol=EXACT[dtype])
        found |= {f"{n} forbidden {k}": getattr(r, k) for k in ("f", "g")}
        found[f"{n} forbidden plan"] = r.plan()
    return found


def transport_of_points(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (n, m), d in itertools.product(((20, 30), (230, 301)), (3, 19)):
        x, y = distinct((n, d), dtype, 3), distinct((m, d), dtype, 4)
        for cost in ("sqeuclidean", "euclidean", "cityblock", "cosine"):
            reg = {"cosine": 0.05, "cityblock": 0.15 * d}.get(cost, 0.3)
            options: dict[str, Any] = {"cost": cost, "tol": EXACT[dtype]}
            r = transport.solve_points(put(x), put(y), reg, **options)
            found |= solved(r, f"{n} {d} {cost} ")
            moved = transport.entropic_map(put(x[:7]), put(y), r.g, reg, cost=cost)
            found[f"{n} {d} {cost} moved"] = moved
    return found


def transport_of_batches(put: Put, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for n, m in ((20, 30), (230, 301)):
        M = distinct((4, n, m), dtype)
        r = transport.solve(None, None, put(M), 0.3, tol=EXACT[dtype], method="sinkhorn")
        found |= solved(r, f"{n} ") | solved(r[2], f"{n} of one, ")
        x, y = distinct((4, n, 3), dtype, 3), distinct((4, m, 3), dtype, 4)
        r = transport.solve_points(put(x), put(y), 0.3, tol=EXACT[dtype], method="sinkhorn")
        found |= solved(r, f"{n} points ")
    return found


SWEPT: dict[str, Call] = {
    "quantize": swept(sweep.quantize, bits=4, group_size=16),
    "quantize, static": swept(sweep.quantize, bits=2, group_size=8, static_groups=True),
    "quantize, mse": swept(sweep.quantize, bits=3, group_size=5, scale="mse"),
    "quantize, ternary": swept(sweep.quantize, bits="ternary", group_size="tensor"),
    "quantize, cross": crossed,
    "quantize_batch": batch,
    "prune": swept(sweep.prune, sparsity=0.5),
    "prune, 2:4": swept(sweep.prune, pattern=(2, 4)),
    "compress": swept(sweep.compress, bits=4, group_size=16, pattern=(2, 4)),
    "round_to_nearest": baseline(sweep.round_to_nearest, bits=4, group_size=16),
    "magnitude_prune": baseline(sweep.magnitude_prune, sparsity=0.5),
    "pack": packed,
}
"""What rounds and selects: in float32, a near tie may fall the other way."""

CALLS: dict[str, Call] = {
    "HessianAccumulator": accumulator,
    "factorize": factorize,
    **SWEPT,
    "BlockFisher": block_fisher,
    "EmpiricalFisher": empirical_fisher,
    "GradientWindow": gradient_window,
    "inverse updates": inverse_updates,
    "kronecker_precondition": kronecker,
    "natural_gradient": natural_gradient,
    "identities": identities,
    "linalg": small_matrices,
    "transport of costs": transport_of_costs,
    "transport of points": transport_of_points,
    "transport of batches": transport_of_batches,
    **SKETCH,
}
