"""The top right singular vector of a matrix whose rows are seen once."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np

from quadric import arrays, backends, checks, random, threads
from quadric.arrays import Array
from quadric.random.philox import Seed
from quadric.sketch import inputs, scaling
from quadric.sketch.linear_system import Floats

Method: TypeAlias = Literal["blocks", "oja"]

TILE = 128  # rows that are taken together, wherever the chunks begin
STREAM = 44  # of the random start
HEAVY = 64  # heavy rows that are kept at most
PART = 4  # a block is this part of all rows before it
RATES = 8  # step sizes of Oja


class StreamingTopVector:
    """The direction in which a stream of rows varies most, in one pass and O(d) memory.

    It maximizes ``||A v||`` over unit vectors v. Rows should come in random order: shuffle what is
    sorted.

    Parameters
    ----------
    d : int
        Length of a row.
    method : {"blocks", "oja"}, optional
        "blocks" makes a power step with each of several blocks of rows, and keeps the heaviest
        rows; "oja" makes small steps with several step sizes and returns the best.
    rows : int, optional
        How many rows will come; then a stream that ends early is noticed.
    blocks : int, optional
        Cut the stream into so many blocks of one size, which needs `rows`. By default blocks grow
        with the stream.
    heavy_rows : int, optional
        Most rows to keep.
    dtype : {"float64", "float32"}, optional
        Type of the rows and of the result.
    seed : int, Generator or None, optional
        Of the start; None is another one in each call.
    check_finite : bool, optional
        Look for NaN and Inf in each chunk.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range, or no number.

    Notes
    -----
    Rows are taken in groups of 128, so the result has the same bits however they are cut into
    chunks. The start is the top singular vector of the first group, with a random vector of a tenth
    of its length added.

    "blocks" follows [1]_: rows with a squared norm above ``||A||_F^2 / (d log2(d + 1)^2)``, as far
    as that is known, are kept aside, the heaviest 64 of them. The others are cut into blocks, and a
    block B with n_B of the n rows so far moves v to::

        B^T (B v) + n_B / n  H^T (H v)            (normalized)

    in which H holds the heavy rows so far. A row that is no longer heavy joins the block at hand.
    The paper has Theta(log d) blocks of one size. Here a block has a fourth as many rows as came
    before it: that is O(log n) steps, the last of which are the most accurate, and the length of
    the stream need not be known. For rows in random order the paper shows a correlation of
    ``1 - O(1 / sqrt(R))`` with the top vector, R the ratio of the two largest eigenvalues of
    ``A^T A``.

    "oja" [2]_ moves v by ``c / t  B^T (B v)`` after the t-th group B, scaled by the mean squared
    norm of all rows so far, for 8 values of c from 1 to 4 d at once. The one whose vector predicted
    the last half of the stream best, before it was moved by it, is returned.

    References
    ----------
    .. [1] P. Kacham, D. P. Woodruff. Approximating the top eigenvector in random order streams.
       NeurIPS 2024. arXiv:2412.11963
    .. [2] E. Oja. A simplified neuron model as a principal component analyzer. J. Math. Biology 15,
       1982.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> rng = np.random.default_rng(0)
    >>> A = rng.standard_normal((20_000, 30))
    >>> A[:, 7] *= 3
    >>> stream = qd.sketch.StreamingTopVector(30)
    >>> for chunk in np.array_split(A, 11):
    ...     stream.update(chunk)
    >>> int(np.abs(stream.value()).argmax()), stream.rows_seen
    (7, 20000)
    """

    def __init__(
        self,
        d: int,
        *,
        method: Method = "blocks",
        rows: int | None = None,
        blocks: int | None = None,
        heavy_rows: int = HEAVY,
        dtype: Any = "float64",
        seed: Seed = 0,
        check_finite: bool = True,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.d = checks.integer(d, "d", low=1)
        checks.choice(method, "method", get_args(Method))
        self.rows = None if rows is None else checks.integer(rows, "rows", low=1)
        if blocks is not None:
            blocks = checks.integer(blocks, "blocks", low=1)
            if rows is None:
                raise ValueError("blocks needs rows, the length of the stream, which is None")
        heavy_rows = checks.integer(heavy_rows, "heavy_rows", low=0)
        self.dtype = np.dtype(dtype)
        if self.dtype.name not in checks.FLOATS:
            raise TypeError(f"dtype must be float32 or float64, got {self.dtype}")
        self._check_finite = check_finite
        kernels = _Kernels(backend, threads.resolve(n_threads))
        noise = random.normals(random.resolve_seed(seed), STREAM, 0, self.d)
        self._state: _State
        if method == "oja":
            self._state = _Oja(noise, kernels)
        else:
            self._state = _Blocks(noise, kernels, self.rows, blocks, heavy_rows)
        self._waiting = np.zeros((TILE, self.d), self.dtype)
        self._count = 0  # of the rows that wait for their group to be full
        self._seen = 0
        self._wrap: Callable[[np.ndarray], Array] = arrays.like(self._waiting)

    @property
    def rows_seen(self) -> int:
        """How many rows have come."""
        return self._seen

    @property
    def singular_value(self) -> float:
        """An estimate of the largest singular value of the rows so far."""
        return self._finished()[1]

    def update(self, chunk: Array) -> None:
        """Take the next rows.

        Parameters
        ----------
        chunk : array, shape (k, d) or (d,)
            Of the dtype of the stream; also a sparse matrix. It is not kept.

        Raises
        ------
        ValueError
            If the width does not fit, an entry is not finite, or there are more rows than were
            announced. Nothing has changed then.
        TypeError
            If the dtype does not fit.
        """
        given = inputs.rows_of(chunk, "chunk")
        if chunk.ndim == 1:
            given = inputs.dense_of(given).T
        if given.shape[1] != self.d:
            raise ValueError(f"chunk must have {self.d} columns, got shape {chunk.shape}")
        if given.dtype != self.dtype:
            raise TypeError(f"chunk must be {self.dtype} to go with the stream, got {given.dtype}")
        k = given.shape[0]
        if self.rows is not None and self._seen + k > self.rows:
            raise ValueError(
                f"chunk must have at most {self.rows - self._seen} rows, as rows={self.rows} were"
                f" announced, got {k}"
            )
        if self._check_finite:
            inputs.finite(given, "chunk")
        self._wrap = inputs.wrapper(chunk)
        at = 0
        while at < k:
            # A group that is full waits for the next row: the first one may be all there is.
            if self._count == TILE:
                self._state.take(self._waiting)
                self._count = 0
            more = min(TILE - self._count, k - at)
            self._waiting[self._count : self._count + more] = inputs.dense_of(given[at : at + more])
            self._count += more
            at += more
        self._seen += k

    def value(self, *, partial: bool = False) -> Array:
        """Return the vector, of unit norm, its largest entry positive; the stream may go on.

        Parameters
        ----------
        partial : bool, optional
            Allow that fewer rows came than were announced.

        Returns
        -------
        array, shape (d,)
            In the dtype of the stream and the array type of its chunks.

        Raises
        ------
        ValueError
            If no rows came, or fewer than announced and `partial` is False.
        """
        if self._seen == 0:
            raise ValueError("StreamingTopVector has no value yet: no rows came")
        if self.rows is not None and self._seen < self.rows and not partial:
            raise ValueError(
                f"StreamingTopVector has seen {self._seen} of {self.rows} rows: partial=True takes"
                " what is there"
            )
        v, _ = self._finished()
        return self._wrap((v * np.sign(v[np.abs(v).argmax()])).astype(self.dtype))

    def _finished(self) -> tuple[Floats, float]:
        if self._seen <= TILE:
            return _exact(self._waiting[: self._count])
        state = copy.deepcopy(self._state)
        state.take(self._waiting[: self._count])
        v, size = state.finish()
        return v, float(np.ldexp(size, state.exponent))


def top_singular_vector(
    A: Array | Iterable[Array],
    *,
    method: Method = "blocks",
    rows: int | None = None,
    blocks: int | None = None,
    heavy_rows: int = HEAVY,
    seed: Seed = 0,
    check_finite: bool = True,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Array:
    """Return the top right singular vector of a matrix or a stream of its rows, in one pass.

    Parameters
    ----------
    A : array, sparse matrix, or iterable of such chunks of rows
        Shape (n, d) in all, float32 or float64. Rows should be in random order.
    method, blocks, heavy_rows, seed, check_finite, backend, n_threads
        As for `StreamingTopVector`.
    rows : int, optional
        Number of rows, if A is a stream and it is known.

    Returns
    -------
    array, shape (d,)
        Of unit norm, its largest entry positive.

    Raises
    ------
    ValueError
        If A has no rows, chunks differ in width, an entry is not finite, or there are not as many
        rows as announced.
    TypeError
        If A is neither, or a dtype is neither float32 nor float64.

    See Also
    --------
    StreamingTopVector : the same as an object, and how it works.
    randomized_svd : more accurate, for a matrix that can be read a few times.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> A = np.random.default_rng(0).standard_normal((20_000, 30))
    >>> A[:, 7] += 2 * A[:, 3]
    >>> v = qd.sketch.top_singular_vector(A)
    >>> bool(abs(v @ np.linalg.svd(A, full_matrices=False)[2][0]) > 0.98)
    True
    """
    chunks: Iterable[Array]
    if hasattr(A, "shape") or hasattr(A, "__dlpack__"):
        given = inputs.rows_of(A, "A")
        if cast(Any, A).ndim != 2:
            raise ValueError(f"A must be a matrix, got an array of shape {cast(Any, A).shape}")
        if rows is not None and rows != given.shape[0]:
            raise ValueError(f"rows must be {given.shape[0]}, those of A, got {rows!r}")
        if 0 in given.shape:
            raise ValueError(f"A must have rows and columns, got shape {given.shape}")
        if check_finite:
            inputs.finite(given, "A")
            check_finite = False
        rows, chunks = given.shape[0], [A]
    elif isinstance(A, Iterable) and not isinstance(A, str | bytes):
        chunks = A
    else:
        raise TypeError(f"A must be an array or an iterable of arrays, got {type(A).__name__}")
    stream: StreamingTopVector | None = None
    for chunk in chunks:
        if stream is None:
            first = inputs.rows_of(chunk, "chunk")
            stream = StreamingTopVector(
                first.shape[0] if chunk.ndim == 1 else first.shape[1],
                method=method,
                rows=rows,
                blocks=blocks,
                heavy_rows=heavy_rows,
                dtype=first.dtype,
                seed=seed,
                check_finite=check_finite,
                backend=backend,
                n_threads=n_threads,
            )
        stream.update(chunk)
    if stream is None:
        raise ValueError("A must have rows, got a stream without a chunk")
    return stream.value()


class _Kernels:
    """The two passes over a group of rows; shared by the copies of a state."""

    def __init__(self, backend: str | None, workers: int) -> None:
        self._power = backends.resolve("sketch.residual_gradient", backend)
        self._norms = backends.resolve("sketch.row_norms", backend)
        self._workers = workers

    def __deepcopy__(self, memo: Any) -> "_Kernels":
        return self

    def power(self, rows: Array, V: Floats) -> tuple[Floats, Floats]:
        """Return ``B^T (B V)`` and the squared norms of the columns of ``B V``."""
        G, norms = np.zeros(V.shape), np.zeros(V.shape[1])
        if len(rows):
            x = np.ascontiguousarray(V, rows.dtype)
            self._power(rows, x, None, None, G, norms, self._workers)
        return G, norms

    def row_norms(self, rows: Array) -> Floats:
        """Return the squared norms of the rows."""
        norms = np.empty(len(rows))
        self._norms(rows, None, norms, self._workers)
        return norms


class _State(ABC):
    """What is known after some groups of rows, in units of 2^exponent.

    The exponent is 0 unless powers of the rows could over- or underflow.
    """

    def __init__(self, noise: Floats, kernels: _Kernels) -> None:
        self._noise, self._kernels = noise, kernels
        self.exponent = 0
        self._seen, self._total = 0, 0.0  # rows, and the sum of their squares

    def take(self, rows: Array) -> None:
        """Take the next group."""
        scaled = rows
        if self.exponent:
            with np.errstate(over="ignore", under="ignore"):
                scaled = np.ldexp(rows, -self.exponent)
        norms = self._kernels.row_norms(scaled)
        peak = math.sqrt(norms.max())  # of the rows, which are not read again for it
        if not 0 < peak < math.inf or self._unit_of(peak, rows.dtype):
            exponent = self._unit_of(np.abs(rows).max(), rows.dtype)
            # Rows that are small beside others do not count, but none is too large.
            if exponent > self.exponent or self._total == 0:
                self._rescale(self.exponent - exponent)
                self.exponent, scaled = exponent, np.ldexp(rows, -exponent)
                norms = self._kernels.row_norms(scaled)
        self._seen += len(rows)
        self._total += float(norms.sum())
        self._add(scaled, norms)

    def _unit_of(self, size: float, dtype: np.dtype[Any]) -> int:
        # Kernels may square rows in their type. The squares are squared once more in float64.
        return scaling.exponent(size, dtype, power=2 if dtype == np.float32 else 4)

    @abstractmethod
    def _add(self, rows: Array, norms: Floats) -> None:
        """Take rows with these squared norms, which are counted already."""

    @abstractmethod
    def _rescale(self, exponent: int) -> None:
        """Multiply the rows so far by 2^exponent."""
        self._total = float(np.ldexp(self._total, 2 * exponent))

    @abstractmethod
    def finish(self) -> tuple[Floats, float]:
        """Return the vector and the singular value."""


class _Blocks(_State):
    """Power steps with blocks, and heavy rows aside."""

    def __init__(
        self,
        noise: Floats,
        kernels: _Kernels,
        rows: int | None,
        blocks: int | None,
        most: int,
    ) -> None:
        super().__init__(noise, kernels)
        d = len(noise)
        self._rows, self._most = rows, most
        self._grows, self._length = blocks is None, TILE
        if rows is not None and blocks is not None:
            self._length = max(TILE * math.ceil(rows / blocks / TILE), TILE)
        self._v = np.zeros((d, 1))
        self._sum, self._in_block = np.zeros((d, 1)), 0
        self._last, self._last_rows = np.zeros((d, 1)), 0  # the last step before it was normalized
        self._heavy: Array | None = None
        self._weights = np.zeros(0)  # squared norms of the heavy rows

    def _add(self, rows: Array, norms: Floats) -> None:
        if self._seen == len(rows):
            self._v = _start(rows, self._noise)[:, None]
        for part in self._set_aside(rows, norms):
            self._sum += self._kernels.power(part, self._v)[0]
        self._in_block += len(rows)
        if self._in_block >= self._length:
            self._last, self._last_rows = self._step(), self._in_block
            self._v = _unit(self._last, self._v)
            self._sum, self._in_block = np.zeros_like(self._sum), 0
            if self._grows:
                self._length = max(TILE, self._seen // PART // TILE * TILE)

    def finish(self) -> tuple[Floats, float]:
        step, count = self._step() if self._in_block else np.zeros_like(self._v), self._in_block
        if self._last_rows and count < self._length:
            # A short block would undo what the others found: the last one makes up the length.
            missing = self._length - count
            step, count = step + missing / self._last_rows * self._last, self._length
        size = float(np.linalg.norm(step))
        return _unit(step, self._v)[:, 0], math.sqrt(size * self._seen / count)

    def _rescale(self, exponent: int) -> None:
        super()._rescale(exponent)
        self._sum, self._last, self._weights = (
            np.ldexp(a, 2 * exponent) for a in (self._sum, self._last, self._weights)
        )
        if self._heavy is not None:
            self._heavy = np.ldexp(self._heavy, exponent)

    def _step(self) -> Floats:
        if self._heavy is None or not len(self._heavy):
            return self._sum
        heavy = self._kernels.power(self._heavy, self._v)[0]
        return self._sum + self._in_block / self._seen * heavy

    def _set_aside(self, rows: Array, norms: Floats) -> list[Array]:
        """Keep the heaviest rows; return the others, with those that are no longer kept."""
        expected = self._total * (1.0 if self._rows is None else self._rows / self._seen)
        d = rows.shape[1]
        limit = expected / (d * math.log2(d + 1) ** 2)
        new = np.flatnonzero(norms > limit)
        if self._heavy is None:
            self._heavy = rows[:0].copy()
        if not len(new) and (self._weights > limit).all():
            return [rows]
        pool = np.concatenate([self._heavy, rows[new]])
        weights = np.concatenate([self._weights, norms[new]])
        order = np.argsort(-weights, kind="stable")[: self._most]
        keep = np.zeros(len(pool), bool)
        keep[order[weights[order] > limit]] = True
        before = len(self._heavy)
        self._heavy, self._weights = pool[keep], weights[keep]
        light = np.ones(len(rows), bool)
        light[new[keep[before:]]] = False
        return [rows[light], pool[:before][~keep[:before]]]


class _Oja(_State):
    """Small steps, with several step sizes side by side."""

    def __init__(self, noise: Floats, kernels: _Kernels) -> None:
        super().__init__(noise, kernels)
        d = len(noise)
        self._rates = np.geomspace(1.0, 4.0 * d, RATES)
        self._V = np.zeros((d, RATES))
        self._groups = 0
        # What each predicted, since the group before last whose number is a power of two.
        self._scores, self._earlier = np.zeros(RATES), np.zeros(RATES)
        self._counted, self._counted_earlier = 0, 0

    def _add(self, rows: Array, norms: Floats) -> None:
        if self._groups == 0:
            self._V = np.repeat(_start(rows, self._noise)[:, None], RATES, axis=1)
        G, scores = self._kernels.power(rows, self._V)
        self._groups += 1
        if self._groups & (self._groups - 1) == 0:
            self._earlier, self._counted_earlier = self._scores, self._counted
            self._scores, self._counted = np.zeros(RATES), 0
        self._scores = self._scores + scores
        self._counted += len(rows)
        if self._total > 0:
            # The mean squared norm bounds the mean of B^T B, so a step of 1 is one of power.
            mean = self._total / self._seen
            self._V = self._V + self._rates / self._groups / (mean * TILE) * G
            self._V /= np.linalg.norm(self._V, axis=0)

    def _rescale(self, exponent: int) -> None:
        super()._rescale(exponent)
        self._scores = np.ldexp(self._scores, 2 * exponent)
        self._earlier = np.ldexp(self._earlier, 2 * exponent)

    def finish(self) -> tuple[Floats, float]:
        scores, counted = self._scores + self._earlier, self._counted + self._counted_earlier
        best = int(scores.argmax())
        return self._V[:, best], math.sqrt(scores[best] * self._seen / counted)


def _start(rows: Array, noise: Floats) -> Floats:
    start = _exact(rows)[0] + 0.1 / np.linalg.norm(noise) * noise
    return np.asarray(start / np.linalg.norm(start))


def _exact(rows: Array) -> tuple[Floats, float]:
    """Return the top right singular vector and value of a few rows."""
    with threads.blas_limit(1):  # so that its bits do not depend on the threads
        _, sizes, vectors = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    return vectors[0], float(sizes[0])


def _unit(v: Floats, otherwise: Floats) -> Floats:
    size = np.linalg.norm(v)
    return np.asarray(v / size if size > 0 else otherwise / np.linalg.norm(otherwise))
