"""What all sketching operators have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import sparse

from quadric import arrays, backends, checks, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.sketch import inputs
from quadric.sketch.inputs import Rows
from quadric.sketch.streaming import StreamingSketch


@dataclass(frozen=True, kw_only=True, repr=False)
class SketchingOperator(ABC):
    """A random matrix S, m x n with m far below n, that is never stored.

    ``S @ A`` is about as good as A where only lengths count: ``E[S^T S] = I``, and with enough rows
    ``|S A x|`` is near ``|A x|`` for all x.

    Attributes
    ----------
    m, n : int
        Shape of S.
    seed : int
        All random numbers of S follow from it. The same seed gives the same matrix, and the same
        bits of a product whatever the number of threads and the chunks.
    whole : tuple of int
        Shape of the operator that this one was cut from.
    row, column : int
        Where it was cut.
    backend : str or None
        See :mod:`quadric.backends`.
    n_threads : int or None
        None follows the environment.

    Notes
    -----
    ``S @ A`` takes a matrix (n, d) or a vector (n,), float32 or float64, with any strides: a NumPy
    array, a memory map, anything with DLPack on the CPU, a sparse matrix of SciPy (CSR is read
    in place), or an array on a GPU, which may also be float16 or bfloat16. The result (m, d) is
    dense and has the dtype of A, float32 for entries of 16 bits. ``A @ S.T``, ``S.T @ B`` and
    ``B @ S`` work as well, ``S2 @ S1`` composes, and ``S[2:5]`` and ``S[:, 100:200]`` are operators
    for some of the rows and columns: those of the columns are what sketches a chunk of A.
    Of rows, sparse signs and circulant matrices (on a GPU independent entries too) compute all and
    cut; the others what is asked for.

    An operator never changes, so it has no ``update``. Rows that come chunk by chunk go into
    ``stream = S.stream(d)`` by ``stream.update(chunk)``, and ``stream.value()`` is ``S A``: see
    :class:`StreamingSketch`.
    """

    m: int
    n: int
    seed: int
    whole: tuple[int, int]
    row: int = 0
    column: int = 0
    backend: str | None = field(default=None, compare=False)
    n_threads: int | None = field(default=None, compare=False)

    # NumPy arrays on the left leave the product to `__rmatmul__`.
    __array_ufunc__ = None
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.m, self.n

    @property
    def T(self) -> "Transposed":
        """The transpose."""
        return Transposed(self)

    @property
    @abstractmethod
    def scale(self) -> float:
        """The factor that makes ``E[S^T S] = I``."""

    @property
    @abstractmethod
    def dense(self) -> bool:
        """Whether S mixes all rows of A into each of its own: so each coordinate is accurate."""

    @property
    def oblivious(self) -> bool:
        """Whether S was chosen without a look at A."""
        return True

    def __matmul__(self, A: Array) -> Any:
        """Return ``S A``, or the composition with another operator."""
        if isinstance(A, SketchingOperator):
            from quadric.sketch.compose import compose

            return compose(self, A)
        if isinstance(A, Transposed):
            return NotImplemented
        rows = _rows(A, "A")
        out = self._product(rows, _shape(A))
        return out.finished() if isinstance(out, DeviceArray) else inputs.wrapper(A)(out)

    def __rmatmul__(self, A: Array) -> Any:
        """Return ``A S``."""
        return self.T._from_left(A)

    def __getitem__(self, key: Any) -> "SketchingOperator":
        """Return some consecutive rows, ``S[i:j]``, or columns, ``S[:, i:j]``, or both."""
        rows, columns = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        start, stop = _range(rows, "rows", self.m)
        first, last = _range(columns, "columns", self.n)
        return self._part(self.row + start, stop - start, self.column + first, last - first)

    def stream(
        self, d: int, dtype: Any = "float64", *, check_finite: bool = True
    ) -> StreamingSketch:
        """Return a sketch that is fed with the rows of A chunk by chunk.

        Parameters
        ----------
        d : int
            Number of columns of A.
        dtype : {"float32", "float64"}, optional
            Type of A.
        check_finite : bool, optional
            Whether each chunk is looked through for NaN and Inf before it is added.

        Returns
        -------
        StreamingSketch
        """
        d = checks.integer(d, "d", low=1)
        return StreamingSketch(self, d, float_type(dtype), check_finite=check_finite)

    @abstractmethod
    def to_dense(self, dtype: Any = "float64") -> np.ndarray:
        """Return S as an array (m, n) of type `dtype`."""

    def to_sparse(self, dtype: Any = "float64") -> sparse.csc_array:
        """Return S in CSC, where it has zeros.

        Raises
        ------
        TypeError
            If S has none.
        """
        raise TypeError(f"to_sparse() needs an operator with zeros, got {self!r}: use to_dense()")

    def __repr__(self) -> str:
        rows, columns = self.row + self.m, self.column + self.n
        if (self.m, self.n) == self.whole:
            return self._call()
        return f"{self._call()}[{self.row}:{rows}, {self.column}:{columns}]"

    # ---- for subclasses and for the stream -------------------------------------------------------

    @property
    def _block(self) -> int:
        """Rows of A are given to `_add` in blocks that start at multiples of this."""
        return 1

    @abstractmethod
    def _call(self) -> str:
        """How the whole operator is made."""

    @abstractmethod
    def _add(self, A: Data, first: int, total: Data) -> None:
        """Add the share of some rows of A; `first` counts from the start of the whole.

        On a GPU `total` is what `_sum_on_gpu` makes, and A may have entries of 16 bits.
        """

    @abstractmethod
    def _adjoint(self, B: Data) -> Data:
        """Return ``S^T B`` for B of shape (m, k), float32 or float64."""

    def _add_sparse(self, A: sparse.csr_array, first: int, total: np.ndarray) -> None:
        """Like `_add`; here through dense pieces of about 2^22 entries."""
        step = max(1, 2**22 // max(A.shape[1], 1) // self._block) * self._block
        for start in range(0, A.shape[0], step):
            self._add(A[start : start + step].toarray(), first + start, total)

    def _zeros(self, d: int, dtype: np.dtype[Any]) -> np.ndarray:
        """Return what `_add` adds to."""
        return np.zeros((self.m, d), dtype)

    def _value(self, total: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        """Return the sketch that a total stands for, as a new array."""
        with np.errstate(over="ignore", invalid="ignore"):
            result: np.ndarray = total * dtype.type(self.scale)
        return result

    def _part(self, row: int, m: int, column: int, n: int) -> "SketchingOperator":
        return replace(self, row=row, m=m, column=column, n=n)

    def _same_rows(self, other: "SketchingOperator") -> bool:
        """Say whether sketches by both may be added."""
        a, b = (s._part(s.row, s.m, 0, s.whole[1]) for s in (self, other))
        return a == b

    def _sketch(self, A: Rows) -> Data:
        """Return ``S A`` as the stream does that is given all rows at once."""
        if isinstance(A, DeviceArray):
            return self._sketch_on_gpu(A)
        stream = StreamingSketch(self, A.shape[1], A.dtype)
        stream.feed(A)
        return self._value(stream.total(), A.dtype)

    def _sketch_on_gpu(self, A: DeviceArray) -> DeviceArray:
        """Return ``S A`` on the GPU that has A, where streams do not go."""
        out = self._unscaled_on_gpu(A)
        arrays.scale(out, self.scale)
        return out

    def _unscaled_on_gpu(self, A: DeviceArray) -> DeviceArray:
        """Return ``S A / scale`` in new memory."""
        before = self.column % self._block
        if before:  # a block that begins before the first row begins with zeros
            part, A = A, arrays.zeros(A, (before + A.shape[0], A.shape[1]), A.dtype)
            A[before:].assign(part)
        total = self._sum_on_gpu(A, self.column - before)
        if total.shape[0] != self.m:
            total = total[self.row : self.row + self.m]
        return total.astype(arrays.computing(A.dtype), copy=False)

    def _sum_on_gpu(self, A: DeviceArray, first: int) -> DeviceArray:
        """Return the unscaled sketch, or that by all rows of the whole."""
        total = A.space.full((self.m, A.shape[1]), arrays.computing(A.dtype), 0)
        if A.size:
            self._add(A, first, total)
        return total

    def _scaled_on_gpu(self, a: DeviceArray) -> DeviceArray:
        result: DeviceArray = a if self.scale == 1.0 else arrays.scaled(a, self.scale)
        return result

    def _product(self, A: Rows, shape: tuple[int, ...], given: Rows | None = None) -> Data:
        """Return ``S A``; `given` is what the caller knows as A, where that is the transpose."""
        if A.shape[0] != self.n:
            raise ValueError(f"A must have {self.n} rows to go with {self!r}, got {shape}")
        out = self._sketch(A)
        inputs.finite_result(out, "its sketch", (A if given is None else given, "A"))
        return out.reshape(-1) if len(shape) == 1 else out

    def _threads(self, on: Data = None) -> int:
        return threads.resolve(self.n_threads, on)


@dataclass(frozen=True)
class Transposed:
    """The transpose of a sketching operator, n x m.

    Attributes
    ----------
    T : SketchingOperator
        The operator itself.
    """

    T: SketchingOperator

    __array_ufunc__ = None
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.T.n, self.T.m

    def __matmul__(self, B: Array) -> Any:
        """Return ``S^T B`` for B of shape (m, k) or (m,)."""
        if isinstance(B, SketchingOperator | Transposed):
            return NotImplemented
        rows = _rows(B, "B")
        return inputs.wrapper(B)(self._product(rows, _shape(B)))

    def __rmatmul__(self, A: Array) -> Any:
        """Return ``A S^T = (S A^T)^T`` for A of shape (d, n) or (n,)."""
        rows, shape = _rows(A, "A"), _shape(A)
        if len(shape) == 1:
            return inputs.wrapper(A)(self.T._product(rows, shape))
        if shape[1] != self.T.n:
            raise ValueError(f"A must have {self.T.n} columns to go with {self!r}, got {shape}")
        return inputs.wrapper(A)(self.T._product(inputs.transposed(rows), shape, rows).T)

    def _from_left(self, A: Array) -> Any:
        """Return ``A S = (S^T A^T)^T`` for A of shape (k, m) or (m,)."""
        rows, shape = _rows(A, "A"), _shape(A)
        if len(shape) == 1:
            return inputs.wrapper(A)(self._product(rows, shape, "A"))
        if shape[1] != self.T.m:
            raise ValueError(f"A must have {self.T.m} columns to go with {self.T!r}, got {shape}")
        return inputs.wrapper(A)(self._product(inputs.transposed(rows), shape, "A", rows).T)

    def to_dense(self, dtype: Any = "float64") -> np.ndarray:
        """Return ``S^T`` as an array (n, m)."""
        return self.T.to_dense(dtype).T

    def to_sparse(self, dtype: Any = "float64") -> sparse.csr_array:
        """Return ``S^T`` in CSR, where S has zeros."""
        return self.T.to_sparse(dtype).T

    def __repr__(self) -> str:
        return f"{self.T!r}.T"

    def _product(
        self, B: Rows, shape: tuple[int, ...], name: str = "B", given: Rows | None = None
    ) -> Data:
        if B.shape[0] != self.T.m:
            raise ValueError(f"{name} must have {self.T.m} rows to go with {self!r}, got {shape}")
        dense = inputs.dense_of(B)
        if isinstance(dense, DeviceArray):
            dense = dense.astype(arrays.computing(dense.dtype), copy=False)
        out = self.T._adjoint(dense)
        inputs.finite_result(out, "the product", (B if given is None else given, name))
        return out.reshape(-1) if len(shape) == 1 else out


def check_shape(m: int, n: int) -> tuple[int, int]:
    """Return the shape of an operator, m from 1 to n."""
    n = checks.integer(n, "n", low=1)
    m = checks.integer(m, "m", low=1)
    if m > n:
        raise ValueError(f"m must be at most n, the number of rows to be sketched: {m} > {n}")
    return m, n


def check_execution(kernel: str, backend: str | None, n_threads: int | None) -> None:
    """Refuse a backend without the kernel, and a number of threads that is none."""
    backends.resolve(f"sketch.{kernel}", backend)
    threads.resolve(n_threads)


def float_type(dtype: Any) -> np.dtype[Any]:
    """Return the type that an argument ``dtype=`` stands for."""
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    return np.dtype(checks.choice(name, "dtype", checks.FLOATS))


def _rows(x: Array, name: str) -> Rows:
    return inputs.rows_of(x, name, gpu=True, half=True)


def _shape(x: Array) -> tuple[int, ...]:
    return tuple(x.shape)


def _range(key: Any, name: str, size: int) -> tuple[int, int]:
    if not isinstance(key, slice) or key.step not in (None, 1):
        raise TypeError(f"{name} must be a slice i:j of step 1, got {key!r}")
    start, stop, _ = key.indices(size)
    if stop <= start:
        raise ValueError(f"{name} must not be empty, got {start}:{stop} of {size}")
    return start, stop
