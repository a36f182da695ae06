"""Rounding and zeroing column by column: the later columns absorb the error of the earlier ones.

In sweep order, with Hs = R R^T and D = W - Q, for j = 0, 1, ...:

    C_j = sum_{i<j} D_i R_ij,   t_j = W_j + C_j / R_jj,   Q_j = round(t_j),   e_j = C_j + D_j R_jj,

and loss = sum e_j^2 = tr(D Hs D^T). "Current weights" of columns ahead, which scales and masks are
taken from, are the same recurrence with Q_j = t_j: E R = -C, one triangular solve, then W - E.

Rows are independent, so a tile of rows is one piece of work. It is stored with a column per row of
memory: the vector lanes run over rows of W, and nothing in a lane depends on its neighbours. The
factor is stored reversed (sweep position t is its row n-1-t), and so are the tiles: what columns
add to the C of later ones is a rectangle of the factor times the rows of D below it. One array X
holds C ahead of the sweep and D behind it.
"""

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadric.linalg.numba import blas
from quadric.linalg.numba.jit import compiled
from quadric.linalg.numba.parallel import run
from quadric.sweep.numba.grid import Format, fit, scale_format
from quadric.sweep.numba.tiles import load, store
from quadric.threads import blas_limit

Array = NDArray[Any]
Mask = NDArray[np.bool_]

ROWS = 192  # rows of W in a tile, at most
BLOCK = 128  # columns, at least, between two large products
SEGMENT = 32  # columns whose C the compiled recurrence completes


@dataclass
class Segment:
    """Columns [start, stop) and what is decided before the first of them is rounded."""

    start: int
    stop: int
    groups: list[tuple[int, int]] = field(default_factory=list)  # columns that get their scales
    mask_stop: int = 0  # columns [start, mask_stop) get their mask

    @property
    def horizon(self) -> int:
        """End of the columns whose current weights are needed at `start`."""
        return max([stop for _, stop in self.groups] + [self.mask_stop, self.start])


@dataclass(frozen=True)
class Job:
    """The checked arguments of a sweep that its tiles share."""

    W: Array
    A: Array | None  # the factor as stored, (n, n) row-major, R[i, j] = A[n-1-j, n-1-i]
    order: NDArray[np.int64]  # original column of each stored row
    dead: Mask | None  # by stored row
    group: NDArray[np.int32]  # column of scales, by stored row
    dynamic: bool
    maxq: int
    symmetric: bool
    norm: float
    steps: int
    rounding: Format
    keep: int
    out_of: int
    sparsity: float
    per_row: bool
    feedback: bool
    codes: NDArray[np.uint8] | None
    scales: Array | None
    zeros: NDArray[np.uint8] | None
    weights: Array | None
    mask: Mask | None
    loss: NDArray[np.float64] | None
    blocks: list[list[Segment]]


def sweep(
    W: Array,
    R: Array | None,
    perm: NDArray[np.int64],
    dead: Mask | None,
    group: NDArray[np.int32] | None,
    group_size: int,
    stale_block: int,
    maxq: int,
    symmetric: bool,
    mse: bool,
    norm: float,
    steps: int,
    scale_bits: int,
    keep: int,
    out_of: int,
    sparsity: float,
    mask_block: int,
    per_row: bool,
    feedback: bool,
    codes: NDArray[np.uint8] | None,
    scales: Array | None,
    zeros: NDArray[np.uint8] | None,
    weights: Array | None,
    mask: Mask | None,
    loss: NDArray[np.float64] | None,
    n_threads: int,
) -> None:
    """Sweep over the columns of W; all outputs are in the original order of the columns.

    Parameters
    ----------
    W : (m, n) array, any strides
    R : (n, n) array, upper triangular, or None
        Factor in sweep order; without it there is no feedback and no loss.
    perm : (n,) int64 array
        Original column at each sweep position.
    dead : (n,) bool array or None
        Original columns taken as 0.
    group : (n,) int32 array or None
        Column of `scales` at each sweep position; needed only where scales are given.
    group_size : int
        0 if scales and zeros are given; else they are written, for groups of this size along the
        sweep, from the weights that are current where a group starts.
    stale_block : int
        If not 0, groups take their scales from the weights current at the last multiple of it.
    maxq : int
        Largest code; 0 for pruning alone, without codes, scales and zeros.
    symmetric, mse, norm, steps, scale_bits
        As in `quadric.sweep.numba.grid.grid`.
    keep, out_of : int
        Keep `keep` of every `out_of` columns; 0, 0 for none.
    sparsity : float
        Fraction zeroed, counted over blocks of `mask_block` columns and all rows, or in each row.
    mask_block : int
    per_row : bool
    feedback : bool
        Whether later columns absorb errors.
    codes : (m, n) uint8 array or None, written
    scales : (m, groups) array or None
    zeros : (m, groups) uint8 array or None
    weights : (m, n) array or None, written
        Rounded or pruned weights.
    mask : (m, n) bool array or None, written
        True where kept.
    loss : (m,) float64 array or None, written
    n_threads : int
    """
    m, n = W.shape
    order = np.ascontiguousarray(perm[::-1])
    dynamic = bool(maxq and group_size)
    if group is None:
        group = (np.arange(n) // group_size if dynamic else np.zeros(n)).astype(np.int32)
    job = Job(
        W=W,
        A=None if R is None else np.ascontiguousarray(R[::-1, ::-1].T),  # no copy as factored
        order=order,
        dead=None if dead is None else dead[order],
        group=np.ascontiguousarray(group[::-1]),
        dynamic=dynamic,
        maxq=maxq,
        symmetric=symmetric,
        norm=norm,
        steps=steps if mse else 1,
        rounding=scale_format(scale_bits, W.dtype),
        keep=keep,
        out_of=out_of,
        sparsity=sparsity,
        per_row=per_row,
        feedback=feedback and R is not None,
        codes=codes,
        scales=scales,
        zeros=zeros,
        weights=weights,
        mask=mask,
        loss=loss,
        blocks=plan(
            n,
            group_size if dynamic else 0,
            stale_block,
            out_of,
            mask_block if sparsity and not out_of else 0,
        ),
    )
    # An even number of equal tiles: they keep two threads, or four, busy to the end.
    count = -(-m // ROWS)
    count = min(max(count + count % 2, 4), -(-m // 16))
    rows = [slice(m * i // count, m * (i + 1) // count) for i in range(count)]
    tiles = [sweep_rows(job, r) for r in rows]
    with blas_limit(1):
        if sparsity and not out_of and not per_row:
            _in_step(job, tiles, rows, n_threads)
        else:
            run(lambda i: next(tiles[i], None), count, n_threads)


def _in_step(
    job: Job, tiles: list[Generator[Array, Mask]], rows: list[slice], n_threads: int
) -> None:
    """Advance all tiles from mask to mask: the threshold needs the scores of all rows."""
    m = len(job.W)
    kept: Mask | None = None
    for block in job.blocks:
        for segment in block:
            if not segment.mask_stop:
                continue
            scores = np.empty((m, segment.mask_stop - segment.start), job.W.dtype)

            def advance(i: int, kept: Mask | None = kept, scores: Array = scores) -> None:
                scores[rows[i]] = next(tiles[i]) if kept is None else tiles[i].send(kept[rows[i]])

            run(advance, len(tiles), n_threads)
            count = zeroed(job.sparsity, m, segment.start, segment.mask_stop)
            kept = keep_largest(scores.reshape(1, -1), count).reshape(scores.shape)

    def finish(i: int) -> None:
        with suppress(StopIteration):
            tiles[i].send(kept[rows[i]]) if kept is not None else next(tiles[i])

    run(finish, len(tiles), n_threads)


def plan(
    n: int, group_size: int, stale_block: int, out_of: int, mask_block: int
) -> list[list[Segment]]:
    """Cut the columns into blocks, and these into segments, so that nobody looks past its block.

    A block ends where no group, mask block or n:m pattern that a decision inside the block looks at
    is cut. Decisions at column 0 look at nothing but W, so they do not count.
    """
    decisions: dict[int, Segment] = {}

    def at(column: int) -> Segment:
        return decisions.setdefault(column, Segment(column, column))

    for start in range(0, n, group_size) if group_size else ():
        stop = min(start + group_size, n)
        at(start - start % stale_block if stale_block else start).groups.append((start, stop))
    for start in range(0, n, mask_block) if mask_block else ():
        at(start).mask_stop = min(start + mask_block, n)

    blocks = []
    start = 0
    while start < n:
        stop, seen = min(start + BLOCK, n), max(start, 1)
        while True:
            reach = max(
                (decisions[c].horizon for c in range(seen, stop) if c in decisions), default=0
            )
            reach = max(reach, stop)
            if out_of:
                reach = min(-(-reach // out_of) * out_of, n)
            if reach == stop:
                break
            seen, stop = stop, reach
        cuts = [c for c in range(start, stop) if c in decisions or c == start]
        segments = []
        for a, b in zip(cuts, [*cuts[1:], stop], strict=True):
            for c in range(a, b, SEGMENT):
                segment = decisions.get(c, Segment(c, c))
                segment.stop = min(c + SEGMENT, b)
                segments.append(segment)
        blocks.append(segments)
        start = stop
    return blocks


def sweep_rows(job: Job, rows: slice) -> Generator[Array, Mask]:
    """Sweep one tile; yield the scores of each global mask block and receive its mask."""
    m, n = job.W[rows].shape
    W = np.empty((n, m), job.W.dtype)
    load(np.array(job.W[rows], order="C"), job.order, W)  # a copy: kernels see one layout only
    if job.dead is not None:
        W[job.dead] = 0
    real = W.dtype.type
    none = np.empty((0, m), W.dtype)
    A, X = job.A, none
    if A is not None:
        X = np.zeros((n, m), W.dtype)
    pruned = job.out_of > 0 or job.sparsity > 0
    codes = np.empty((n if job.maxq else 0, m), np.uint8)
    kept = np.ones((n if pruned else 0, m), np.bool_)
    loss = np.zeros(m)
    scales, zeros = none, none
    if job.scales is not None and job.zeros is not None:
        scales = np.ascontiguousarray(job.scales[rows].T)
        zeros = np.ascontiguousarray(job.zeros[rows].T, W.dtype)

    for i, block in enumerate(job.blocks, 1):
        first = n - block[-1].stop  # last stored row that the block may look at
        for segment in block:
            low, high = n - segment.stop, n - segment.start
            far = n - segment.horizon
            if far < high:
                now = W[far:high]
                if A is not None and job.feedback and high < n:
                    ahead = X[far:high].copy()
                    blas.solve_upper(1.0, A[far:high, far:high], ahead)
                    now = now + ahead
                for start, stop in segment.groups:
                    g = job.group[n - 1 - start]
                    fit(
                        now[n - stop - far : n - start - far], real(job.maxq), job.symmetric,
                        real(job.norm), job.steps, job.rounding, scales[g], zeros[g],
                    )  # fmt: skip
                if segment.mask_stop:
                    stored = slice(n - segment.mask_stop, high)
                    scores = np.abs(now[stored.start - far :])
                    if A is not None and job.feedback:
                        scores *= np.diagonal(A)[stored, None]
                    if job.per_row:
                        count = zeroed(job.sparsity, 1, segment.start, segment.mask_stop)
                        chosen = keep_largest(scores[::-1].T, count)
                    else:
                        chosen = yield scores[::-1].T
                    kept[stored] = chosen.T[::-1]
            # The n:m pattern of the last column may reach past the segment.
            near = slice(max(low - max(job.out_of - 1, 0), first), high)
            round_columns(
                none if A is None else A[near, near].copy(), W[near], X[near], high - low,
                job.group[near], scales, zeros, real(job.maxq), kept[near], job.keep, job.out_of,
                -segment.start % max(job.out_of, 1), job.feedback, codes[near], loss,
            )  # fmt: skip
            if A is not None:
                blas.gemm(1.0, A[first:low, low:high], X[low:high], 1.0, X[first:low])
        if A is not None and i < len(job.blocks):
            # As in a recursion that halves the columns, the last 1, 2, 4, ... blocks add to as many
            # after them: most of the work is in large products, which are the fast ones.
            width = i & -i
            top = n - job.blocks[min(i + width, len(job.blocks)) - 1][-1].stop
            done = slice(first, n - job.blocks[i - width][0].start)
            blas.gemm(1.0, A[top:first, done], X[done], 1.0, X[top:first])

    if job.codes is not None:
        store(codes, job.order, job.codes[rows])
    if job.weights is not None:
        store(W, job.order, job.weights[rows])
    if job.mask is not None:
        if pruned:
            store(kept.view(np.uint8), job.order, job.mask[rows].view(np.uint8))
        else:
            job.mask[rows] = True
    if job.loss is not None:
        job.loss[rows] = loss
    if job.dynamic and job.scales is not None and job.zeros is not None:
        job.scales[rows] = scales.T
        job.zeros[rows] = zeros.T


def zeroed(sparsity: float, rows: int, start: int, stop: int) -> int:
    """Return how many entries of columns start to stop are zeroed, so that the total is exact."""
    return int(sparsity * (rows * stop) + 0.5) - int(sparsity * (rows * start) + 0.5)


def keep_largest(scores: Array, count: int) -> Mask:
    """Return what is left of each row without its `count` smallest, of equals the first ones."""
    if count <= 0:
        return np.ones(scores.shape, np.bool_)
    threshold = np.partition(scores, count - 1, axis=1)[:, count - 1 : count]
    smaller = scores < threshold
    equal = scores == threshold
    missing = count - np.count_nonzero(smaller, axis=1, keepdims=True)
    kept: Mask = ~(smaller | (equal & (np.cumsum(equal, axis=1) <= missing)))
    return kept


@compiled
def complete(A: Array, X: Array, p: int, start: int, high: int, c: Array) -> None:
    """c += sum of A[p, i] X_i over the stored rows i = high-1 down to start."""
    row = A[p]
    i = high - 1
    while i - 3 >= start:
        a0, a1, a2, a3 = row[i], row[i - 1], row[i - 2], row[i - 3]
        d0, d1, d2, d3 = X[i], X[i - 1], X[i - 2], X[i - 3]
        for r in range(len(c)):
            c[r] = c[r] + a0 * d0[r] + a1 * d1[r] + a2 * d2[r] + a3 * d3[r]
        i -= 4
    while i >= start:
        a0, d0 = row[i], X[i]
        for r in range(len(c)):
            c[r] += a0 * d0[r]
        i -= 1


@compiled
def choose(
    A: Array, W: Array, X: Array, p: int, high: int, keep: int, out_of: int, feedback: bool,
    kept: Array
) -> None:  # fmt: skip
    """Keep the best `keep` of the stored rows p, p-1, ..., p-out_of+1, from the current weights."""
    rows = W.shape[1]
    scores = np.empty((out_of, rows), W.dtype)
    ahead = np.empty((out_of, rows), W.dtype)  # minus D, as if columns were rounded to themselves
    for k in range(out_of):
        w, score = W[p - k], scores[k]
        if feedback:
            c, pivot = ahead[k], A[p - k, p - k]
            c[:] = X[p - k]
            complete(A, X, p - k, p + 1, high, c)
            for i in range(k):
                a, e = A[p - k, p - i], ahead[i]
                for r in range(rows):
                    c[r] -= a * e[r]
            for r in range(rows):
                c[r] = c[r] / pivot
            for r in range(rows):
                score[r] = abs((w[r] + c[r]) * pivot)
        else:
            for r in range(rows):
                score[r] = abs(w[r])
    better = np.empty(rows, np.int32)
    for k in range(out_of):
        better[:] = 0
        for other in range(out_of):
            if other < k:
                for r in range(rows):
                    better[r] += scores[other, r] > scores[k, r]
            elif other > k:  # of equals the later one is kept
                for r in range(rows):
                    better[r] += scores[other, r] >= scores[k, r]
        for r in range(rows):
            kept[p - k, r] = better[r] < keep


@compiled
def round_columns(
    A: Array, W: Array, X: Array, count: int, group: Array, scales: Array, zeros: Array, maxq: Any,
    kept: Array, keep: int, out_of: int, phase: int, feedback: bool, codes: Array, loss: Array
) -> None:  # fmt: skip
    """Round the last `count` stored rows, backwards: codes, loss, D = W - Q in X, and Q in W.

    Every `out_of` rows, for the first time after `phase` of them, a new n:m pattern begins.
    """
    high, rows = W.shape
    nothing = maxq - maxq  # 0 in the dtype: a literal would make float32 arithmetic float64
    c = np.empty(rows, W.dtype)
    target = np.empty(rows, W.dtype)
    code = np.empty(rows, W.dtype)
    for p in range(high - 1, high - 1 - count, -1):
        w = W[p]
        if out_of > 0 and (high - 1 - p) % out_of == phase:
            choose(A, W, X, p, high, keep, out_of, feedback, kept)
        if len(X) > 0:
            c[:] = X[p]
            complete(A, X, p, p + 1, high, c)
        # One simple loop per step: the compiler vectorizes what it can see does not alias.
        if feedback:
            pivot = A[p, p]
            for r in range(rows):
                target[r] = w[r] + c[r] / pivot
        else:
            target[:] = w
        if maxq > 0:
            s, z = scales[group[p]], zeros[group[p]]
            for r in range(rows):
                code[r] = min(max(np.rint(target[r] / s[r]) + z[r], nothing), maxq)
            if len(kept) > 0:
                keeps = kept[p]
                for r in range(rows):
                    code[r] = code[r] if keeps[r] else z[r]
            for r in range(rows):
                target[r] = s[r] * (code[r] - z[r])
            out = codes[p]
            for r in range(rows):
                out[r] = np.uint8(code[r])
        elif len(kept) > 0:
            keeps = kept[p]
            for r in range(rows):
                target[r] = target[r] if keeps[r] else nothing
        if len(X) > 0:
            d, pivot = X[p], A[p, p]
            for r in range(rows):
                d[r] = w[r] - target[r]
            for r in range(rows):
                e = c[r] + d[r] * pivot
                loss[r] += np.float64(e) * np.float64(e)
        w[:] = target
