"""Calls of the raw kernels of sketch and random."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from scipy import sparse

from tests.cuda.kernel_arrays import FLOATS, STORAGES, Call, backwards, normal, padded, stored

SHAPES = ((1, 1), (700, 3), (2500, 33), (513, 260))


def target(storage: str) -> Any:
    """Return the type that a sketch of numbers of a storage type has."""
    return np.float64 if storage == "float64" else np.float32


def matrices(n: int, d: int) -> Iterator[tuple[str, np.ndarray, Any]]:
    for storage in STORAGES:
        a = stored(normal((n, d)), storage)
        for word, layout in (("", a), ("padded ", padded(a)), ("turned ", np.asfortranarray(a))):
            yield f"{n} x {d} {word}{storage}", layout, target(storage)
    yield f"{n} x {d} backwards", backwards(normal((n, d))), np.float64


def of_words() -> Iterator[Call]:
    for blocks in (1, 77, 3000):
        yield "random.philox", (12345678901234, 3, 2**32 - 5, np.zeros((blocks, 4), np.uint32))


def of_signs() -> Iterator[Call]:
    for n, d in SHAPES:
        for word, a, t in matrices(n, d):
            for nnz, m in ((1, 40), (4, 64), (8, 2048)):
                rest = (256, 7, nnz, normal((m, d), t))
                yield f"sketch.sparse_sign {word} {nnz}", (a, *rest)
        for t, nnz in product(FLOATS, (1, 8)):
            for b in (normal((48, d), t), padded(normal((48, d), t))):
                out = np.zeros((n, d), t)
                yield f"sketch.sparse_sign_rows {n} x {d} {nnz}", (b, 3, 7, nnz, out)
            for index in (np.int32, np.int64):
                csr = sparse.random_array((n, d), density=0.1, rng=1, dtype=t, format="csr")
                arrays = csr.indptr.astype(index), csr.indices.astype(index), csr.data
                rest = (3, 7, nnz, normal((48, d), t))
                yield f"sketch.sparse_sign_csr {n} x {d} {nnz}", (*arrays, *rest)


def of_dense() -> Iterator[Call]:
    for (n, d), kind in product(SHAPES, (0, 1)):
        for word, a, t in matrices(n, d):
            yield f"sketch.dense {word} {kind}", (a, 512, 7, kind, normal((130, d), t))
    for t, kind in product(FLOATS, (0, 1)):
        for row, first, shape in ((0, 0, (130, 300)), (5, 1000, (3, 129)), (127, 3, (1, 1))):
            yield f"sketch.dense_entries {kind}", (row, first, 7, 200, kind, np.zeros(shape, t))


def of_hadamard() -> Iterator[Call]:
    for n, d in SHAPES:
        for (word, a, t), (k, m) in product(matrices(n, d), ((1, 5), (64, 40), (1024, 300))):
            big = max(4096, 2 * k)
            samples = np.sort(np.random.default_rng(2).choice(big, m, replace=False))
            yield f"sketch.srht {word} {k}", (a, k, 7, k, samples, normal((m, d), t))
    for storage, (outer, rows, inner) in product(
        STORAGES,
        (
            *((3, 1, 5), (5, 64, 1), (2, 256, 33), (3, 4096, 1)),
            *((1, 32768, 2), (3, 32768, 1), (2, 65536, 1)),
        ),
    ):
        if storage in ("float32", "float64"):
            x = stored(normal((outer, rows, inner)), storage)
            yield f"sketch.fwht {rows} {storage}", (x,)
            room = np.zeros((outer, rows + 3, inner + 1), x.dtype)
            room[:, 1:-2, 1:] = x
            yield f"sketch.fwht {rows} {storage}, strided", (room[:, 1:-2, 1:],)


def of_passes() -> Iterator[Call]:
    for n, d in (*SHAPES, (4000, 1)):
        for t in FLOATS:
            a = normal((n, d), t)
            for layout, k in product((a, padded(a), np.asfortranarray(a)), (1, 2, 9)):
                x, b = normal((d, k), t), normal((n, k), t)
                for word, given, r, g in (
                    ("", b, np.zeros((n, k), t), np.zeros((d, k))),
                    ("of zero", None, None, np.zeros((d, k))),
                    ("no gradient", padded(b), padded(np.zeros((n, k), t)), None),
                ):
                    yield (
                        f"sketch.residual_gradient {n} x {d} {k} {word}",
                        (layout, x, given, r, g, np.zeros(k)),
                    )
            upper = np.triu(normal((d, d))) / d
            w = np.random.default_rng(1).standard_normal(n)
            for layout in (a, padded(a), np.asfortranarray(a)):
                yield f"sketch.preconditioned_gram {n} x {d}", (layout, upper, np.zeros((d, d)))
                for weights in (None, w):
                    yield f"sketch.weighted_gram {n} x {d}", (layout, weights, np.zeros((d, d)))
                for M in (None, upper, normal((d, 5))):
                    yield f"sketch.row_norms {n} x {d}", (layout, M, np.zeros(n))


def of_projections() -> Iterator[Call]:
    for (n, d), t, k in product(((1, 1), (40, 3), (90, 33), (60, 260)), FLOATS, (1, 3)):
        a, y = normal((n, d), t), normal((n, k))
        order = np.random.default_rng(1).integers(0, n, 3 * n)
        norms = np.square(a.astype(np.float64)).sum(axis=1)
        for layout in (a, padded(a), np.asfortranarray(a)):
            yield (
                f"sketch.kaczmarz {n} x {d} {k}",
                (layout, y, norms, order, 0.9, np.zeros((k, d))),
            )
        for index in (np.int32, np.int64):
            csr = sparse.csr_array(a)
            arrays = csr.indptr.astype(index), csr.indices.astype(index), csr.data
            yield (
                f"sketch.kaczmarz_csr {n} x {d} {k}",
                (*arrays, y, norms, order, 0.9, np.zeros((k, d))),
            )


SKETCH: tuple[Callable[[], Iterator[Call]], ...] = (
    *(of_words, of_signs, of_dense, of_hadamard, of_passes, of_projections),
)
