"""One call of every raw CUDA kernel on small, ragged sizes, compared with the CPU kernel.

For a run below compute-sanitizer, where the test suite would take hours; ``bench/gpu.sh`` does it::

    compute-sanitizer --tool memcheck python -m tests.cuda.sanitizer_suite
    python -m tests.cuda.sanitizer_suite woodbury. "spd 64"    # calls, by parts of their names
    python -m tests.cuda.sanitizer_suite -sweep.gram           # all but these

It fails where results differ, and if a kernel has no call here.
"""

import functools
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from quadric import cuda_library
from tests.cuda.kernel_arrays import (
    FLOATS,
    STORAGES,
    Call,
    backwards,
    normal,
    padded,
    permutation,
    positive,
    stored,
    widened,
)
from tests.cuda.own_calls import OWN, native
from tests.cuda.own_families import FAMILIES
from tests.cuda.sketch_kernels import SKETCH
from tests.cuda.transport_kernels import TRANSPORT

TOLERANCE = {"float32": 1e-3, "float64": 1e-9}  # of the largest entry: a rough look, no more
TIES = 0.1  # the share of codes and zero points that may fall the other way in float32


@functools.cache
def factor(n: int, dtype: Any) -> np.ndarray:
    """Return R as the sweep takes it, a view of what the factorization leaves in memory."""
    a, h = np.zeros((n, n), dtype), positive(n, dtype)
    native("sweep.gather")(h, np.arange(n), a, 1)
    assert native("sweep.cholesky")(a, h.diagonal().astype(np.float64), 1) == -1
    return a[::-1, ::-1].T


# ---- the calls ----------------------------------------------------------------------------------


def of_hessians() -> Iterator[Call]:
    for dtype, storage in product(FLOATS, STORAGES):
        x = padded(stored(normal((77, 130)), storage))
        yield f"sweep.gram {storage}", (x, np.abs(normal(77, dtype)), positive(130, dtype))
        x = stored(normal((70, 600)), storage)
        yield f"sweep.gram {storage}, no weights", (x, None, positive(600, dtype))
    for dtype in FLOATS:
        yield "sweep.symmetry_defect", (padded(positive(67, dtype) + normal((67, 67), dtype)),)
        yield "sweep.symmetry_defect of NaN", (np.full((3, 3), np.nan, dtype),)
        h = positive(67, dtype)
        yield "sweep.gather", (backwards(h), permutation(67), np.zeros((67, 67), dtype))
        for n in (1, 67, 140):
            h = positive(n, dtype)
            yield f"sweep.cholesky {n}", (h, h.diagonal().astype(np.float64))
        falling = np.full(67, 3.0) - 0.1 * np.arange(67)
        yield "sweep.cholesky of no factor", (positive(67, dtype), falling)


def of_grids() -> Iterator[Call]:
    for dtype in FLOATS:
        for mse, norm, bits in ((False, 2.0, 0), (True, 2.4, 16), (True, 2.0, 8)):
            outputs = np.zeros((5, 3), dtype), np.zeros((5, 3), np.uint8)
            w = padded(normal((5, 70), dtype))
            yield "sweep.grid", (w, 32, False, 15, False, mse, norm, 20, bits, *outputs)
        outputs = np.zeros((5, 1), dtype), np.zeros((5, 1), np.uint8)
        w = normal((5, 70), dtype)
        yield "sweep.grid of it all", (w, 70, True, 15, True, False, 2.0, 80, 0, *outputs)


def of_sweeps() -> Iterator[Call]:
    options: tuple[dict[str, Any], ...] = (
        dict(group_size=32),
        dict(group_size=200, symmetric=True),
        dict(group_size=64, mse=True, norm=2.4, steps=10, scale_bits=16),
        dict(group_size=32, stale_block=128, max_code=2, symmetric=True),
        dict(group_size=48, keep=2, out_of=4),
        dict(max_code=0, sparsity=0.5, per_row=True, dead=True),
        dict(max_code=0, sparsity=0.4, mask_block=200),
        dict(group_size=32, sparsity=0.3, mask_block=64),
        dict(fixed=True),
        dict(group_size=32, feedback=False),
    )
    for dtype, (m, n), chosen in product(FLOATS, ((37, 300), (9, 1100), (1, 1), (3, 40)), options):
        if n % chosen.get("out_of", 1) == 0:
            yield f"sweep.sweep {m} x {n} {chosen}", sweep(m, n, dtype, **chosen)


def sweep(m: int, n: int, dtype: Any, **chosen: Any) -> tuple[Any, ...]:
    """Return the arguments of ``sweep.sweep``; `fixed` gives it grids, `dead` some dead columns."""
    o = dict(
        group_size=0, stale_block=0, max_code=15, symmetric=False, mse=False, norm=2.0, steps=80,
        scale_bits=0, keep=0, out_of=0, sparsity=0.0, mask_block=128, per_row=False, feedback=True,
    )  # fmt: skip
    o.update((name, value) for name, value in chosen.items() if name in o)
    groups = -(-n // o["group_size"]) if o["group_size"] else 3
    codes: tuple[Any, ...] = (None, None, None)
    if o["max_code"]:
        grid = np.full((m, groups), 0.3, dtype), np.full((m, groups), 8, np.uint8)
        codes = (np.zeros((m, n), np.uint8), *grid)
    return (
        padded(normal((m, n), dtype)),
        factor(n, dtype) if o["feedback"] else None,
        permutation(n),
        permutation(n) < n // 8 if chosen.get("dead") else None,
        (np.arange(n) % 3).astype(np.int32) if chosen.get("fixed") else None,
        *o.values(),
        *codes,
        np.zeros((m, n), dtype),
        np.zeros((m, n), bool),
        np.zeros(m) if o["feedback"] else None,
    )


def of_small_matrices() -> Iterator[Call]:
    for dtype, n in product(FLOATS, (1, 5, 32, 33, 64, 100, 256)):
        a = padded(np.stack([positive(n, dtype, seed) for seed in range(3)]))
        for what, width in enumerate((n, n, 3, 0)):
            b = normal((3, n, 3), dtype) if what == 2 else None
            out = np.zeros((3, n, width), dtype) if width else None
            yield f"linalg.spd {n} {what}", (a, b, what, out, np.zeros(3), np.zeros(3, np.int32))
    for dtype, n in product(FLOATS, (20, 40, 100)):
        a = np.stack([positive(n, dtype), -positive(n, dtype)])
        outputs = np.zeros((2, n, n), dtype), None, np.zeros(2, np.int32)
        yield f"linalg.spd {n}, no factor", (a, None, 1, *outputs)


def of_blocks() -> Iterator[Call]:
    d = 301
    for size, group, m in ((5, 5, 4), (32, 8, 9), (50, 1, 70), (50, 50, 20), (200, 50, 20)):
        n = -(-d // size)
        sums = np.zeros((-(-n // 8), size * (size + 1) // 2, 8))
        for storage in STORAGES:
            g = padded(stored(normal((m, d)), storage))
            yield f"woodbury.block_gram {size} {storage}", (g, size, sums + 1)
        native("woodbury.block_gram")(normal((m, d), np.float32), size, sums, 1)
        rows = normal((m, d), np.float32)
        status, groups = np.zeros(n, np.int32), -(-d // group)
        for t, source in product(FLOATS, ((sums, None), (None, rows))):
            if source[0] is None and m > size:
                continue
            of = (*source, size)
            word = f"{size} {'rows' if source[0] is None else 'sums'}"
            out = np.zeros((groups, group, group), t)
            yield f"woodbury.block_inverse {word}", (*of, d, m, 0.1, group, out, status)
            w, out = normal(d, t), np.zeros(groups, t)
            yield f"woodbury.block_scores {word}", (*of, m, 0.1, w, group, out, status)
            v = padded(normal((3, d), t))
            yield (
                f"woodbury.block_solve {word}",
                (*of, m, 0.1, v, padded(np.zeros((3, d), t)), status),
            )
            mask, out = permutation(d) < 180, np.zeros(d, t)
            yield f"woodbury.block_prune {word}", (*of, m, 0.1, w, mask, out, np.zeros(n), status)


def of_rows() -> Iterator[Call]:
    d = 1237
    for storage, size, m in product(STORAGES, (d, 300), (1, 37, 130)):
        t = np.float64 if storage == "float64" else np.float32
        n, word = -(-d // size), f"{storage} {m} {size}"
        g = padded(stored(normal((m, d)), storage))
        for exact in (False, True):
            yield f"woodbury.gram {word} {exact}", (g, size, exact, np.zeros((n, m, m)))
        for k in (1, 5):
            x, c = padded(normal((k, d), t)), normal((n, k, m))
            yield f"woodbury.dots {word} {k}", (g, x, size, np.zeros((n, m, k)))
            x = normal((k, d), t) if k == 1 else None
            yield f"woodbury.combine {word} {k}", (g, c, x, 0.5, size, np.zeros((k, d), t))
        for more in (0, 2):
            e = stored(normal((more, d), seed=3), storage) if more else None
            root = np.stack([np.linalg.cholesky(positive(m + more, np.float64))] * n)
            yield f"woodbury.column_norms {word} {more}", (g, e, size, root, np.zeros(d))
    for storage, infinite in product(STORAGES, (False, True)):
        t = np.float64 if storage == "float64" else np.float32
        g = normal(d, t)
        g[1000] = np.inf if infinite else 0
        row, rounded = stored(np.zeros(d), storage), np.zeros(d, t)
        yield f"woodbury.store {storage} {infinite}", (g, row, None if infinite else rounded)


def of_factors() -> Iterator[Call]:
    sizes = ((1, 1), (33, 1), (130, 4), (200, 1), (1028, 1))
    for t in FLOATS:
        j, c = [positive(n, t) for n, _ in sizes], np.array([0.9, 1.0, 0.5, 0.95, 1.1])
        v = [normal((k, n), t) for n, k in sizes]
        yield "woodbury.symmetric_product", (j, v, [np.zeros_like(x) for x in v])
        out = [np.zeros_like(x) for x in j]
        yield "woodbury.symmetric_update", (j, c, 1 - c, -c, v, out, np.zeros(len(sizes)))


CALLS = (
    *(of_hessians, of_grids, of_sweeps, of_small_matrices, of_blocks, of_rows, of_factors),
    *TRANSPORT,
    *SKETCH,
)

# ---- the comparison -----------------------------------------------------------------------------


def twin(x: Any) -> Any:
    """Return a copy with the same strides, and of the whole array that a view belongs to."""
    if isinstance(x, list):
        return [twin(a) for a in x]
    if not isinstance(x, np.ndarray) or x.base is None:
        return x.copy() if isinstance(x, np.ndarray) else x
    owner = x.base.copy(order="K")
    offset = x.ctypes.data - x.base.ctypes.data
    return np.ndarray(x.shape, x.dtype, owner, offset, x.strides)


def memory(x: Any) -> list[np.ndarray]:
    """Return the arrays of an argument with all that surrounds them."""
    if isinstance(x, list):
        return [a for part in x for a in memory(part)]
    if not isinstance(x, np.ndarray):
        return []
    base = x.base if isinstance(x.base, np.ndarray) else x
    return [base]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return by how much `a` differs from `b`, as a multiple of what may be; NaN equals NaN."""
    if a.dtype.kind != "f" or a.dtype == np.float16:
        return float(np.mean(a != b)) if a.size else 0.0
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf
    a, b = (np.where(np.isfinite(x), x, 0) for x in (a, b))
    return float(np.abs(a - b).max(initial=0) / (np.abs(b).max(initial=0) or 1))


def agree(got: Any, expected: Any, tolerance: float) -> bool:
    """Say whether returned values are the same but for rounding."""
    if isinstance(got, tuple):
        return len(got) == len(expected) and all(
            agree(a, b, tolerance) for a, b in zip(got, expected, strict=True)
        )
    if isinstance(got, np.ndarray):
        return got.shape == expected.shape and difference(got, expected) <= (
            tolerance if got.dtype.kind == "f" else 0
        )
    return got is None or bool(np.isclose(got, expected, rtol=tolerance, equal_nan=True))


def on_cpu(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what the CPU kernel takes in place of what only the CUDA kernel takes."""
    if name == "sweep.gram":
        x, weights, h = arguments
        return widened(x).astype(h.dtype), weights, h
    if name.startswith("sketch.") and isinstance(arguments[0], np.ndarray):
        return tuple(widened(x) if isinstance(x, np.ndarray) else x for x in arguments)
    return arguments


def kernel_of(title: str) -> str:
    return title.split()[0].rstrip(",")


def compare(title: str, arguments: tuple[Any, ...]) -> str | None:
    """Return what is wrong with a call, None if nothing is."""
    name = kernel_of(title)
    family, function = name.split(".")
    ours = tuple(twin(x) for x in arguments)
    theirs = on_cpu(name, tuple(twin(x) for x in arguments))
    got = getattr(getattr(cuda_library.load(), family), function)(*ours, 0)
    threads = () if "kaczmarz" in name else (1,)
    expected = native(name)(*theirs, *threads)
    narrow = any(a.dtype == np.float32 for x in arguments for a in memory(x))
    if name == "woodbury.gram" and not arguments[2]:
        narrow |= arguments[0].dtype.itemsize == 2  # the CPU multiplies in float32
    kind = "float32" if narrow else "float64"
    if name == "sweep.cholesky" and expected != -1:
        for a in (ours[0], theirs[0]):  # a diagonal that failed is void
            np.fill_diagonal(a, 0)
    if name == "sweep.gram":
        ours, theirs = ours[2:], theirs[2:]
    if name == "sweep.sweep" and kind == "float32":
        ours, theirs = ours[-6:-5], theirs[-6:-5]  # codes alone: one tie moves all that follows
    if name == "transport.newton_direction":  # but for how many steps it took, and how far it came
        got, expected = ((kept, dropped, gain) for _, kept, dropped, _, gain in (got, expected))
    if not agree(got, expected, TOLERANCE[kind]):
        return f"returns {got}, not {expected}"
    for i, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        for a, b in zip(memory(x), memory(y), strict=True):
            if a.dtype != b.dtype:
                continue
            allowed = TOLERANCE[kind]
            if a.dtype.kind != "f" or (a.dtype == np.float16 and name != "sketch.fwht"):
                allowed = TIES if kind == "float32" and name in ("sweep.sweep", "sweep.grid") else 0
            if (d := difference(a, b)) > allowed:
                return f"argument {i} differs by {d:.1e}, more than {allowed:.1e}"
    return None


def kernels() -> set[str]:
    """Return the names of all raw kernels."""
    module = cuda_library.load()
    return {
        f"{family}.{name}"
        for family in ("arrays", "linalg", "random", "sketch", "sweep", "transport", "woodbury")
        for name in vars(getattr(module, family))
        if not name.startswith("_")
    }


def main(words: list[str]) -> int:
    left_out = [word[1:] for word in words if word.startswith("-")]
    words = [word for word in words if not word.startswith("-")]

    def chosen(title: str) -> bool:
        if any(word in title for word in left_out):
            return False
        return not words or any(word in title for word in words)

    wrong, called = 0, set()
    for calls in CALLS:
        for title, arguments in calls():
            if not chosen(title):
                continue
            called.add(kernel_of(title))
            try:
                trouble = compare(title, arguments)
            except (ValueError, TypeError, RuntimeError, MemoryError) as error:
                trouble = f"{type(error).__name__}: {error}"
            if trouble is not None:
                print(f"WRONG  {title}: {trouble}", flush=True)
                wrong += 1
    for title, check in (OWN | FAMILIES).items():
        if not chosen(title):
            continue
        called.add(kernel_of(title))
        try:
            check(cuda_library.load())
        except (AssertionError, ValueError, TypeError, RuntimeError, MemoryError) as error:
            print(f"WRONG  {title}: {type(error).__name__}: {error}", flush=True)
            wrong += 1
    uncalled = set() if words or left_out else kernels() - called
    for name in sorted(uncalled):
        print(f"WRONG  {name} has no call here")
    print(f"{len(called)} kernels called, {wrong} calls wrong, {len(uncalled)} kernels left out")
    return 1 if wrong or uncalled or not called else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
