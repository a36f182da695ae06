"""The Hessian of a layer, gathered batch by batch."""

import os
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from scipy.linalg import blas

from quadric import archive, arrays, backends, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray

_BLOCK = 4_194_304  # entries converted at a time: 16 MB of float32


class HessianAccumulator:
    """Sum ``X^T X`` over batches of layer inputs.

    Parameters
    ----------
    n : int
        Number of inputs of the layer (columns of `X`).
    dtype : {"float32", "float64"}, optional
        Type of the sums. The product of two 16-bit floats is exact in float32, so float32 loses
        nothing but the rounding of the sum. Inputs of another type are converted to it.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. The number of threads may change the last bits (SYRK).

    Notes
    -----
    Each update costs ``T n^2`` flops for T tokens (one SYRK) and no copy of the inputs, except that
    16-bit inputs are converted a few megabytes at a time.

    The sums are in the memory that the first inputs are in. On a GPU, 16-bit inputs go through the
    tensor cores as they are: their products are exact, and are added up in float32 over at most
    8192 tokens at a time.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> acc = qd.sweep.HessianAccumulator(2)
    >>> acc.update(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
    >>> acc.value()
    array([[ 5.,  7.],
           [ 7., 10.]], dtype=float32)
    >>> acc
    HessianAccumulator(n=2, dtype=float32, tokens=2)
    """

    def __init__(
        self,
        n: int,
        *,
        dtype: Any = "float32",
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.n = checks.integer(n, "n", low=1)
        self.dtype = np.dtype(checks.choice(np.dtype(dtype).name, "dtype", checks.FLOATS))
        self.backend = backend
        self.n_threads = n_threads
        backends.resolve("sweep.gram", backend)
        threads.resolve(n_threads)
        self._gram: Data = np.zeros((self.n, self.n), self.dtype)  # upper triangle only
        self._cross: Data = None
        self._placed = False  # sums go where the first inputs are
        self._tokens = 0
        self._weight = 0.0
        self._like = arrays.like(self._gram)

    @property
    def tokens(self) -> int:
        """Number of rows seen."""
        return self._tokens

    def update(
        self, X: Array, weights: Array | None = None, reference: Array | None = None
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        X : array, shape (..., n)
            Inputs of the layer; float16, bfloat16, float32 or float64.
        weights : array, shape (...), optional
            Weight of each token, at least 0; float32 or float64. Ones by default.
        reference : array, shape (..., n), optional
            The inputs that the layer sees in the uncompressed model, token by token; they give
            :meth:`cross`. All updates of an accumulator have them, or none.

        Raises
        ------
        ValueError
            If a shape does not fit, or NaN or Inf is in `X`, `weights` or `reference`; the sums
            are then as before the call.
        TypeError
            If a dtype does not fit.
        """
        # Everything is looked at before the first sum is touched: a bad batch changes nothing.
        rows = self._rows(X, "X")
        pairs = None if reference is None else self._rows(reference, "reference")
        if pairs is not None and pairs.shape != rows.shape:
            raise ValueError(
                f"reference must have the shape of X, got {pairs.shape} and {rows.shape}"
            )
        if self._tokens and (pairs is None) != (self._cross is None):
            raise ValueError(
                "reference must be given with every update or with none, got it only "
                + ("now" if self._cross is None else "before")
            )
        factors = None if weights is None else self._weights(weights, X.shape[:-1])
        for given, name in ((pairs, "reference"), (factors, "weights")):
            if given is not None:
                arrays.together(given, rows, name, "X")
        if rows.shape[0] == 0:
            return
        if self._placed:
            arrays.together(rows, self._gram, "X", "the sum so far")
        checks.finite(rows, "X", self.dtype)
        if pairs is not None:
            checks.finite(pairs, "reference", self.dtype)
        self._place(rows)
        if pairs is not None and self._cross is None:
            self._cross = arrays.zeros(self._gram, (self.n, self.n), self.dtype)

        gram = backends.resolve("sweep.gram", self.backend, rows)
        n_threads = threads.resolve(self.n_threads)
        with threads.blas_limit(self.n_threads):
            on_gpu = isinstance(rows, DeviceArray)  # where the kernel converts as it reads
            for part in [slice(None)] if on_gpu else self._parts(rows.shape[0]):
                w = None if factors is None else factors[part]
                x = rows[part] if on_gpu else arrays.widen(rows[part], self.dtype)
                gram(x, w, self._gram, n_threads)
                if pairs is not None:
                    _add_cross(pairs[part], w, x, self._cross)
        self._tokens += rows.shape[0]
        weight = rows.shape[0] if factors is None else arrays.host(factors).sum(dtype=np.float64)
        self._weight += float(weight)
        self._like = arrays.like(X)

    def merge(self, other: "HessianAccumulator") -> None:
        """Add the sums of another accumulator, which stays as it is.

        Raises
        ------
        ValueError
            If `other` has another `n` or dtype, or only one of the two has seen references.
        """
        if not isinstance(other, HessianAccumulator):
            raise TypeError(f"other must be a HessianAccumulator, got {type(other).__name__}")
        if (other.n, other.dtype) != (self.n, self.dtype):
            raise ValueError(
                f"other must have n={self.n} and dtype={self.dtype}, "
                f"got n={other.n} and dtype={other.dtype}"
            )
        if other._tokens == 0:
            return
        if self._tokens and (self._cross is None) != (other._cross is None):
            raise ValueError("other must have seen references exactly if this accumulator has")
        if self._placed:
            arrays.together(other._gram, self._gram, "other", "the sum so far")
        self._place(other._gram)
        arrays.add(self._gram, other._gram)
        if other._cross is not None:
            if self._cross is None:
                self._cross = arrays.zeros(self._gram, (self.n, self.n), self.dtype)
            arrays.add(self._cross, other._cross)
        self._tokens += other._tokens
        self._weight += other._weight
        self._like = other._like

    def value(self) -> Array:
        """Return ``H = X^T diag(weights) X / sum(weights)``, shape (n, n), symmetric.

        Raises
        ------
        ValueError
            If no token, or only tokens of weight 0, have been seen.
        """
        scale = 1 / self._total()
        if isinstance(self._gram, DeviceArray):
            whole = arrays.empty(self._gram, (self.n, self.n), self.dtype)
            whole.space.run(device.arrays().symmetrize, self._gram, scale, whole)
            return self._like(whole)
        H = np.multiply(self._gram, scale)
        for start in range(0, self.n, 256):  # blocks, so that the transposed reads stay in cache
            stop = start + 256
            diagonal = H[start:stop, start:stop]
            diagonal += np.triu(diagonal, 1).T
            H[stop:, start:stop] = H[start:stop, stop:].T
        return self._like(H)

    def cross(self) -> Array:
        """Return ``G = (reference - X)^T diag(weights) X / sum(weights)``, shape (n, n).

        Raises
        ------
        ValueError
            If no token has been seen, or the updates came without references.
        """
        total = self._total()
        if self._cross is None:
            raise ValueError("reference was not given to update(), so there is no cross matrix")
        if isinstance(self._cross, DeviceArray):
            scaled = arrays.zeros(self._cross, (self.n, self.n), self.dtype)
            arrays.add(scaled, self._cross, 1 / total)
            return self._like(scaled)
        return self._like(np.multiply(self._cross, 1 / total))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sums to `path` (.npz); the file appears whole or not at all."""
        gram = arrays.host(self._gram)
        fields = {"gram": gram, "tokens": self._tokens, "weight": self._weight}
        if self._cross is not None:
            fields["cross"] = arrays.host(self._cross)
        archive.save(path, fields)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            If the file is damaged, or something else.
        """
        with archive.load(path, "HessianAccumulator.save") as fields:
            gram, cross = fields["gram"], fields.get("cross")
            tokens, weight = int(fields["tokens"]), float(fields["weight"])
            n, _ = gram.shape
        result = cls(n, dtype=gram.dtype, backend=backend, n_threads=n_threads)
        result._gram, result._cross = gram, cross
        result._tokens, result._weight = tokens, weight
        return result

    def __repr__(self) -> str:
        return f"HessianAccumulator(n={self.n}, dtype={self.dtype}, tokens={self._tokens})"

    def _total(self) -> float:
        if self._weight <= 0:
            raise ValueError(
                f"the accumulator must have seen tokens of positive weight, got {self._tokens} "
                f"tokens of total weight {self._weight:g}"
            )
        return self._weight

    def _place(self, beside: Data) -> None:
        """Bring the sums to where the first inputs are: empty ones, or those of a file."""
        if not self._placed and isinstance(beside, DeviceArray):
            self._gram = arrays.beside(self._gram, beside)
            self._cross = None if self._cross is None else arrays.beside(self._cross, beside)
        self._placed = True

    def _rows(self, x: Array, name: str) -> Data:
        a = checks.storage(x, name, gpu=True)
        if a.ndim < 1 or a.shape[-1] != self.n:
            raise ValueError(f"{name} must have shape (..., {self.n}), got {a.shape}")
        a = a.reshape(-1, self.n)
        # The kernel on a GPU reads whole rows.
        return arrays.rows(a) if isinstance(a, DeviceArray) or self.backend == "cuda" else a

    def _weights(self, weights: Array, shape: tuple[int, ...]) -> Data:
        a = arrays.take(weights, "weights")
        if a.shape != tuple(shape):
            raise ValueError(f"weights must have shape {tuple(shape)}, got {a.shape}")
        checks.floating(a, "weights")
        checks.finite(a, "weights")
        if a.size and (least := arrays.host(a).min()) < 0:
            raise ValueError(f"weights must be at least 0, got {least}")
        return a.reshape(-1).astype(self.dtype, copy=False)

    def _parts(self, rows: int) -> Iterator[slice]:
        step = max(1024, _BLOCK // self.n)
        return (slice(start, start + step) for start in range(0, rows, step))


def _add_cross(pairs: Data, weights: Data, x: Data, cross: Data) -> None:
    """Add ``(pairs - x)^T diag(weights) x`` to the C-contiguous `cross`."""
    x = arrays.widen(x, cross.dtype)
    if isinstance(cross, DeviceArray):
        run, kernels = cross.space.run, device.arrays()
        d = pairs.astype(cross.dtype)
        arrays.add(d, x, -1.0)
        if weights is not None:
            run(kernels.scale_rows, weights, d)
        run(kernels.gemm, 1.0, d.T, arrays.rows(x), 1.0, cross)
        return
    d = arrays.widen(pairs, cross.dtype) - x
    if weights is not None:
        d *= weights[:, None]
    gemm = blas.sgemm if cross.dtype == np.float32 else blas.dgemm
    # In column-major order, where BLAS lives, cross.T += x^T d: no temporary of its size.
    x, d = np.ascontiguousarray(x), np.ascontiguousarray(d)
    gemm(1.0, x.T, d.T, beta=1.0, c=cross.T, trans_b=1, overwrite_c=1)
