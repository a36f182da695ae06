"""The Newton direction of the semi-dual: conjugate gradients on the largest entries of the plan."""

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.parallel import run
from quadric.linalg.numba.vectors import pointer
from quadric.transport.numba.sparse import ALONE, cut

Floats = NDArray[np.float64]
Pointers = NDArray[np.int64]
Indices = NDArray[np.int32]

SHIFT = 49  # bits of a number below its bucket: eight buckets for each power of two
LEAST = 1e-3  # of the preconditioner, relative to c


def newton_direction(
    indptr: Pointers,
    indices: Indices,
    values: Floats,
    a: Floats,
    c: Floats,
    gradient: Floats,
    shift: float,
    drop: float,
    tol: float,
    max_iter: int,
    direction: Floats,
    n_threads: int,
) -> tuple[int, int, float, float, float]:
    """Solve (diag(c) (1 + shift) - S^T diag(1 / a) S) d = gradient.

    Conjugate gradients with the diagonal as preconditioner; S is the plan without its smallest
    entries.

    Parameters
    ----------
    indptr, indices, values : (n + 1,) int64, (nnz,) int32 and (nnz,) float64 arrays
        The plan in CSR.
    a, c : (n,) and (m,) float64 arrays
        Row and column sums.
    gradient : (m,) float64 array
    shift : float
    drop : float
        The dropped entries have at most this sum.
    tol : float
        Stop when the residual is not above tol |gradient|.
    max_iter : int
    direction : (m,) float64 array, written
    n_threads : int

    Returns
    -------
    iterations, kept, dropped, residual, predicted : int, int, float, float, float
        How many entries were kept, the sum of the others, |residual| / |gradient|, and
        gradient.d - d^T (diag(c) - S^T diag(1 / a) S) d / 2.
    """
    S, dropped = largest_entries(indptr, indices, values, drop)
    parts = cut(S[0])
    vectors, scalars = np.empty((5, len(c))), np.empty(4)
    sums = np.empty((len(parts), len(c)))
    running = begin(S, a, c, gradient, shift, vectors, scalars)
    if n_threads == 1 or len(S[1]) < ALONE:
        iterations = iterate(S, parts, a, c, shift, tol, max_iter, vectors, scalars, sums, running)
    else:
        iterations = 0

        def work(i: int) -> None:
            start, stop = parts[i]
            multiply(*S, a, start, stop, vectors[2], sums[i])

        while running and iterations < max_iter and scalars[0] > tol * scalars[1]:
            run(work, len(parts), n_threads)
            running = advance(c, shift, vectors, scalars, sums)
            iterations += 1
    d, r = vectors[0], vectors[1]
    direction[...] = d
    slope = float(gradient @ d)
    curvature = slope - float(r @ d) - shift * float(c @ (d * d))
    residual = float(scalars[0] / scalars[1]) if scalars[1] > 0 else 0.0
    return iterations, len(S[1]), float(dropped), residual, slope - curvature / 2


@compiled
def largest_entries(
    indptr: Pointers, indices: Indices, values: Floats, drop: float
) -> tuple[tuple[Pointers, Indices, Floats], float]:
    """Return the matrix without its smallest entries, and their sum, at most `drop`."""
    mass = np.zeros(1 << (63 - SHIFT))
    bits = values.view(np.int64)
    for e in range(len(values)):
        mass[bits[e] >> SHIFT] += values[e]
    bucket, dropped = 0, 0.0
    while bucket < len(mass) and dropped + mass[bucket] <= drop:
        dropped += mass[bucket]
        bucket += 1
    starts = np.zeros(len(indptr), np.int64)
    for i in range(len(indptr) - 1):
        starts[i + 1] = starts[i]
        for e in range(indptr[i], indptr[i + 1]):
            starts[i + 1] += bits[e] >> SHIFT >= bucket and values[e] > 0
    columns, entries = np.empty(starts[-1], np.int32), np.empty(starts[-1])
    at = 0
    for e in range(len(values)):
        if bits[e] >> SHIFT >= bucket and values[e] > 0:
            columns[at], entries[at] = indices[e], values[e]
            at += 1
    return (starts, columns, entries), dropped


@compiled
def begin(
    S: tuple[Pointers, Indices, Floats], a: Floats, c: Floats, gradient: Floats, shift: float,
    vectors: Floats, scalars: Floats,
) -> bool:  # fmt: skip
    """Start from d = 0: d, residual, search direction, S^T diag(1/a) S times it, 1 / diagonal.

    scalars: |residual|, |gradient|, residual . preconditioned residual.
    """
    indptr, indices, values = S
    d, r, p, _, inverse = vectors
    for j in range(len(c)):
        inverse[j] = c[j] * (1 + shift)
    for i in range(len(a)):
        for e in range(indptr[i], indptr[i + 1]):
            inverse[indices[e]] -= values[e] * (values[e] / a[i])
    squares = product = 0.0
    for j in range(len(c)):
        inverse[j] = 1 / max(inverse[j], LEAST * c[j])
        d[j], r[j], p[j] = 0.0, gradient[j], gradient[j] * inverse[j]
        squares += r[j] * r[j]
        product += r[j] * p[j]
    scalars[0] = scalars[1] = np.sqrt(squares)
    scalars[2] = product
    return product > 0


@compiled
def iterate(
    S: tuple[Pointers, Indices, Floats], parts: Pointers, a: Floats, c: Floats, shift: float,
    tol: float, max_iter: int, vectors: Floats, scalars: Floats, sums: Floats, running: bool,
) -> int:  # fmt: skip
    """All iterations on one thread; return how many."""
    indptr, indices, values = S
    iterations = 0
    while running and iterations < max_iter and scalars[0] > tol * scalars[1]:
        for i in range(len(parts)):
            multiply(
                indptr, indices, values, a, parts[i, 0], parts[i, 1], vectors[2], sums[i]
            )  # fmt: skip
        running = advance(c, shift, vectors, scalars, sums)
        iterations += 1
    return iterations


@compiled
def multiply(
    indptr: Pointers, indices: Indices, values: Floats, a: Floats, start: int, stop: int,
    p: Floats, sums: Floats,
) -> None:  # fmt: skip
    """Write S^T diag(1 / a) S p of the rows [start, stop)."""
    sums[:] = 0
    to, value, x, out = pointer(indices), pointer(values), pointer(p), pointer(sums)
    for i in range(start, stop):
        first, last = indptr[i], indptr[i + 1]
        full = first + (last - first) // 4 * 4
        s0 = s1 = s2 = s3 = 0.0
        for e in range(first, full, 4):
            s0 += value[e] * x[to[e]]
            s1 += value[e + 1] * x[to[e + 1]]
            s2 += value[e + 2] * x[to[e + 2]]
            s3 += value[e + 3] * x[to[e + 3]]
        for e in range(full, last):
            s0 += value[e] * x[to[e]]
        t = ((s0 + s1) + (s2 + s3)) / a[i]
        for e in range(first, last):
            out[to[e]] += t * value[e]


@compiled
def advance(c: Floats, shift: float, vectors: Floats, scalars: Floats, sums: Floats) -> bool:
    """One step of conjugate gradients; return whether another can follow."""
    d, r, p, q, inverse = vectors
    slope = 0.0
    for j in range(len(c)):
        q[j] = c[j] * (1 + shift) * p[j]
    for i in range(len(sums)):
        part = sums[i]
        for j in range(len(c)):
            q[j] -= part[j]
    for j in range(len(c)):
        slope += p[j] * q[j]
    if not 0 < slope < np.inf:
        return False  # the matrix is singular to working precision along p
    alpha, squares, product = scalars[2] / slope, 0.0, 0.0
    for j in range(len(c)):
        d[j] += alpha * p[j]
        r[j] -= alpha * q[j]
        squares += r[j] * r[j]
        product += r[j] * (r[j] * inverse[j])
    beta = product / scalars[2]
    for j in range(len(c)):
        p[j] = r[j] * inverse[j] + beta * p[j]
    scalars[0], scalars[2] = np.sqrt(squares), product
    return True
