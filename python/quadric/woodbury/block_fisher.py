"""The block-diagonal empirical Fisher matrix of oBERT."""

import os
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from quadric import archive, arrays, backends, checks, device, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.errors import LinAlgError
from quadric.woodbury.results import PrunedVector

_LARGEST = 256  # weights per block
_CHUNK = 8  # blocks that lie side by side in the sums, one in each lane of a vector register


class BlockFisher:
    """Curvature of blocks of consecutive weights, from gradients.

    ``F_b = damping I + X_b^T X_b / m`` for the columns X_b of block b in the m gradients seen.

    Parameters
    ----------
    d : int
        Number of weights.
    block_size : int, optional
        Weights per block, 1 to 256; the last block may be shorter.
    damping : float, optional
        Above 0, absolute. It can be set at any time: nothing that is stored depends on it.
    check_finite : bool, optional
        False leaves it to the caller that no argument holds NaN or Inf. On a GPU no method but
        :meth:`save`, and :meth:`prune` that is to refuse whole blocks, then waits for it, and
        results are NaN where `damping` is too small.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the result.

    Attributes
    ----------
    d, block_size : int
        As above.

    Notes
    -----
    This is the curvature of oBERT [1]_. A sequence of rank-one updates of the inverse, as there,
    would read and write the inverse once per gradient; a sum of ``X_b^T X_b`` is additive, so it is
    gathered in chunks, restarted from disk and merged between processes, and factored when a result
    is asked for.

    **The smaller side.** While at most `block_size` gradients have come, they themselves are kept,
    in their own type, and ``m damping I + X_b X_b^T`` is factored, which is smaller than F_b and
    better conditioned. With more they are folded into the sums for good.

    **Memory.** The sums take ``4 (block_size + 1)`` bytes per weight, 204 with blocks of 50; the
    gradients before them at most `block_size` times the size of one. While they are folded, both
    are there. Factors are never stored: each call computes them, a few blocks at a time.
    On a GPU all is where the first gradients are; later ones, and vectors, must come from there.

    **Accuracy.** Sums, factors and solutions are float64 throughout, and only results are rounded,
    to :attr:`dtype`. Beside that rounding the relative error of a result is about
    ``1e-16 |F_b| / damping``: 1e-9 for gradients of size 1 and a damping of 1e-7. Gradients of
    float16 below 6e-8 are zero before they get here; bfloat16 keeps them.

    **Weights that are pruned already** should come with gradients of zero, as in [1]_.

    References
    ----------
    .. [1] Kurtic, Campos, Nguyen, Frantar, Kurtz, Fineran, Goin, Alistarh, "The Optimal BERT
       Surgeon: Scalable and Accurate Second-Order Pruning for Large Language Models", 2022,
       arXiv:2203.07259.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> bf = qd.woodbury.BlockFisher(4, block_size=2, damping=0.5)
    >>> bf.update(np.array([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 1.0, 2.0]]))
    >>> bf
    BlockFisher(d=4, block_size=2, damping=0.5, count=2)
    >>> bf.diagonal()
    array([1. , 1. , 0.6, 0.6])
    >>> bf.solve(np.array([1.0, 1.0, 1.0, 1.0]))
    array([1. , 1. , 0.2, 0.2])
    """

    def __init__(
        self,
        d: int,
        *,
        block_size: int = 50,
        damping: float = 1e-7,
        check_finite: bool = True,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.d = checks.integer(d, "d", low=1)
        self.block_size = checks.integer(block_size, "block_size", low=1, high=_LARGEST)
        self.damping = damping
        self._check = bool(check_finite)
        self.backend = backend
        self.n_threads = n_threads
        backends.resolve("woodbury.block_gram", backend)
        threads.resolve(n_threads)
        self._count = 0
        self._storage = np.dtype(np.float32)
        # One of the two, once gradients have come.
        self._rows: Data | None = None
        self._sums: Data | None = None
        self._placed = False  # both go where the first gradients are
        self._like = arrays.like(np.empty(0))

    @property
    def count(self) -> int:
        """Number of gradients seen, m."""
        return self._count

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.d // self.block_size)

    @property
    def damping(self) -> float:
        """Lambda of F; can be set."""
        return self._damping

    @damping.setter
    def damping(self, value: float) -> None:
        self._damping = checks.positive(value, "damping")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of all vectors: float64 once gradients of float64 have come, else float32."""
        return arrays.computing(self._storage)

    def update(self, G: Array) -> None:
        """Add gradients.

        Parameters
        ----------
        G : array, shape (k, d) or (d,)
            Gradients as rows; float16, bfloat16, float32 or float64. Not copied unless the entries
            of a row are apart. Where types differ between calls, the gradients that are kept move
            to one that holds both.

        Raises
        ------
        ValueError
            If the shape does not fit, or NaN or Inf is in `G`; everything is then as before.
        TypeError
            If the dtype does not fit.
        """
        g = checks.gradients(G, "G", self.d, gpu=True)
        backends.resolve("woodbury.block_gram", self.backend, g)
        if g.shape[0]:
            self._come_to(g, "G")
            check = (lambda: checks.finite(g.reshape(G.shape), "G")) if self._check else None
            self._add(g, check)
            self._like = arrays.like(G)

    def merge(self, other: "BlockFisher") -> None:
        """Add the gradients that another one has seen; it stays as it is.

        Raises
        ------
        ValueError
            If `other` has another `d` or `block_size`. Its damping does not matter.
        TypeError
            If `other` is not a BlockFisher.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> G = np.random.default_rng(0).standard_normal((6, 3))
        >>> whole, a, b = (qd.woodbury.BlockFisher(3) for _ in range(3))
        >>> whole.update(G), a.update(G[:2]), b.update(G[2:])
        (None, None, None)
        >>> a.merge(b)
        >>> np.array_equal(a.diagonal(), whole.diagonal())
        True
        """
        if not isinstance(other, BlockFisher):
            raise TypeError(f"other must be a BlockFisher, got {type(other).__name__}")
        if (other.d, other.block_size) != (self.d, self.block_size):
            raise ValueError(
                f"other must have d={self.d} and block_size={self.block_size}, "
                f"got d={other.d} and block_size={other.block_size}"
            )
        if other._count == 0:
            return
        if other._rows is not None:
            rows = other._rows[: other._count]
            self._come_to(rows, "other")
            self._add(rows)
        else:
            assert other._sums is not None
            self._come_to(other._sums, "other")
            sums = self._folded(other._sums)
            arrays.add(sums, other._sums)
            self._grow(other._count, other._storage)
            self._sums, self._rows = sums, None
        self._like = other._like

    def diagonal(self) -> Array:
        """Return the diagonal of ``F^-1``, shape (d,), in the array type of the gradients.

        Raises
        ------
        ValueError
            If no gradients have come.
        LinAlgError
            If a block is not positive definite in float64; ``.pivot`` is the failing pivot.
        """
        return self._like(self._inverse(1, 0, self.n_blocks).reshape(-1))

    def inverse(self, start: int = 0, stop: int | None = None) -> Array:
        """Return ``F_b^-1`` of the blocks `start` to `stop` (excluded), dense and symmetric.

        Parameters
        ----------
        start, stop : int, optional
            Range of blocks; up to the last by default.

        Returns
        -------
        array, shape (stop - start, block_size, block_size)
            Zeros beyond the weights of a short last block. Each block takes ``block_size^2``
            entries, so ask for some at a time where there are many.

        Raises
        ------
        ValueError
            If the range does not fit, or no gradients have come.
        LinAlgError
            If a block is not positive definite in float64.
        """
        start = checks.integer(start, "start", low=0, high=self.n_blocks)
        stop = self.n_blocks if stop is None else stop
        stop = checks.integer(stop, "stop", low=start, high=self.n_blocks)
        return self._like(self._inverse(self.block_size, start, stop))

    def solve(self, v: Array) -> Array:
        """Return ``F^-1 v``.

        Parameters
        ----------
        v : array, shape (d,) or (k, d)
            One vector, or several as rows, of type :attr:`dtype`.

        Returns
        -------
        array
            Of the shape of `v`.

        Raises
        ------
        ValueError
            If a shape does not fit, `v` is not finite, or no gradients have come.
        TypeError
            If `v` is not of type :attr:`dtype`.
        LinAlgError
            If a block is not positive definite in float64.
        """
        self._need_gradients()
        V = checks.vectors(v, "v", self.d, self.dtype, gpu=True, check_finite=self._check)
        self._stay_with(V, "v")
        out = arrays.empty(V, V.shape, V.dtype)
        if out.size:
            self._call("block_solve", V, out)
        return arrays.like(v)(out.reshape(v.shape))

    def scores(self, w: Array, group_size: int = 1) -> Array:
        """Return by how much the loss grows if each group of weights becomes 0 on its own.

        ``w_Q^T ([F^-1]_QQ)^-1 w_Q / 2`` for each group Q: the increase after the other weights of
        its block have adapted. For single weights that is ``w_i^2 / (2 [F^-1]_ii)``.

        Parameters
        ----------
        w : array, shape (d,)
            The weights, of type :attr:`dtype`.
        group_size : int, optional
            Consecutive weights that are pruned together, 1 to 32; divides `block_size`.

        Returns
        -------
        array, shape (ceil(d / group_size),)
            The last group may be short.

        Raises
        ------
        ValueError
            If a shape does not fit, `w` is not finite, `group_size` is out of range, or no
            gradients have come.
        TypeError
            If `w` is not of type :attr:`dtype`.
        LinAlgError
            If a block is not positive definite in float64.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> bf = qd.woodbury.BlockFisher(4, block_size=4, damping=0.01)
        >>> bf.update(np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]))
        >>> w = np.ones(4)
        >>> bf.scores(w).round(2)  # the neighbour can take over
        array([0.01, 0.01, 0.01, 0.01])
        >>> bf.scores(w, group_size=2).round(2)  # nobody can
        array([1.01, 0.01])
        """
        self._need_gradients()
        x = self._weights(w)
        group = checks.integer(group_size, "group_size", low=1, high=32)
        if self.block_size % group:
            raise ValueError(
                f"group_size must divide block_size={self.block_size}, got {group_size}"
            )
        out = arrays.empty(x, -(-self.d // group), self.dtype)
        self._call("block_scores", x, group, out)
        return arrays.like(w)(out)

    def prune(
        self, w: Array, mask: Array, *, update: str = "joint", whole_blocks: str = "raise"
    ) -> PrunedVector:
        """Zero the weights that `mask` leaves out, and adapt the others of their blocks.

        Parameters
        ----------
        w : array, shape (d,)
            The weights, of type :attr:`dtype`. Those pruned earlier may be zero already.
        mask : array of bool, shape (d,)
            True where a weight is kept.
        update : {"joint", "independent"}, optional
            "joint" gives the best values that the weights which are kept can take, given that all
            the others are zero. "independent" adds up the updates for each pruned weight as if it
            were the only one, as the reference implementation of oBERT does; the weights which are
            left out are then set to zero all the same.
        whole_blocks : {"raise", "zero"}, optional
            What to do if no weight of a block is kept, so that none is left to adapt. "zero" makes
            the block zero. A block that is zero already is never in the way.

        Returns
        -------
        PrunedVector
            New weights, exactly zero where `mask` is False, and the loss of each block under either
            update: ``D^T F_b D / 2`` for the change D.

        Raises
        ------
        ValueError
            If a shape does not fit, `w` is not finite, an option is unknown, a whole block is
            pruned, or no gradients have come.
        TypeError
            If `w` is not of type :attr:`dtype`, or `mask` not bool.
        LinAlgError
            If a block is not positive definite in float64.

        Notes
        -----
        With the kept weights S and the pruned ones P of a block, the joint update is
        ``w_S += F_SS^-1 F_SP w_P``, the minimum of the quadratic model under the constraint
        ``w_P = 0``. It equals the optimal brain surgeon's ``-F^-1[:, P] (F^-1[P, P])^-1 w_P``, and
        with P a single weight both updates are the same.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> rng = np.random.default_rng(0)
        >>> G = rng.standard_normal((200, 8)) @ rng.standard_normal((8, 8))
        >>> bf = qd.woodbury.BlockFisher(8, block_size=8)
        >>> bf.update(G)
        >>> w = rng.standard_normal(8)
        >>> scores = bf.scores(w)
        >>> mask = scores > np.median(scores)
        >>> p = bf.prune(w, mask)
        >>> p.sparsity, bool(p.weights[~mask].any())
        (0.5, False)
        >>> bool(p.loss.sum() < bf.prune(w, mask, update="independent").loss.sum())
        True
        """
        self._need_gradients()
        x = self._weights(w)
        kept = checks.mask(mask, "mask", self.d, gpu=True)
        arrays.together(kept, x, "mask", "w")
        checks.choice(update, "update", ("joint", "independent"))
        checks.choice(whole_blocks, "whole_blocks", ("raise", "zero"))
        if whole_blocks == "raise":
            self._refuse_whole_blocks(x, kept)
        if update == "joint":
            out, loss = self._joint(x, kept)
        else:
            y = _pruned_part(x, self._inverse(1, 0, self.n_blocks).reshape(-1), kept)
            step = arrays.empty(x, (1, self.d), self.dtype)
            self._call("block_solve", y.reshape(1, -1), step)
            out = _kept_part(x, step[0], kept)
            # With every weight pruned there is nothing to adapt, and the loss is v^T F v / 2.
            _, loss = self._joint(_difference(out, x), arrays.zeros(x, self.d, np.bool_))
        like = arrays.like(w)
        return PrunedVector(like(out), like(kept.copy()), like(loss))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to `path` (.npz); the file appears whole or not at all."""
        fields: dict[str, Any] = {
            "d": self.d,
            "block_size": self.block_size,
            "damping": self.damping,
            "count": self._count,
            "storage": self._storage.name,
        }
        if self._sums is not None:
            fields["sums"] = arrays.host(self._sums)
        elif self._rows is not None:
            fields["rows"] = arrays.host(self._rows[: self._count])
        archive.save(path, fields)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        check_finite: bool = True,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> Self:
        """Read what :meth:`save` wrote; it goes where the next gradients or vectors are.

        Raises
        ------
        ValueError
            If the file is damaged, or something else.
        """
        backends.resolve("woodbury.block_gram", backend)
        threads.resolve(n_threads)
        with archive.load(path, "BlockFisher.save") as fields:
            result = cls(
                int(fields["d"]),
                block_size=int(fields["block_size"]),
                damping=float(fields["damping"]),
                check_finite=check_finite,
                backend=backend,
                n_threads=n_threads,
            )
            storage = np.dtype(checks.choice(str(fields["storage"]), "storage", arrays.STORAGE))
            count, most = int(fields["count"]), result.block_size
            if "sums" in fields:
                checks.integer(count, "count", low=most + 1)
                result._sums = fields["sums"]
                _expect(result._sums, "sums", result._sums_shape(), np.dtype(np.float64))
            elif checks.integer(count, "count", low=0, high=most):
                rows = fields["rows"]
                _expect(rows, "rows", (count, result.d), storage)
                result._rows = np.empty((most, result.d), storage)
                result._rows[:count] = rows
        result._grow(count, storage)
        result._placed = False
        return result

    def __repr__(self) -> str:
        return (
            f"BlockFisher(d={self.d}, block_size={self.block_size}, damping={self.damping:g}, "
            f"count={self._count})"
        )

    # What is stored.

    def _come_to(self, a: Data, name: str) -> None:
        """Bring what is stored to where an array is: nothing yet, or what came from a file."""
        stored = self._rows if self._sums is None else self._sums
        if stored is None:
            return
        if not self._placed and isinstance(a, DeviceArray) and not isinstance(stored, DeviceArray):
            if self._sums is not None:
                self._sums = arrays.beside(self._sums, a)
            else:
                self._rows = arrays.beside(stored[: self._count], a)
            return
        arrays.together(a, stored, name, "the first gradient")

    def _stay_with(self, a: Data, name: str) -> None:
        """The same for vectors, whose type results have."""
        self._come_to(a, name)
        self._placed = True

    def _weights(self, w: Array) -> Data:
        x = checks.vector(w, "w", self.d, self.dtype, gpu=True, check_finite=self._check)
        self._stay_with(x, "w")
        return x

    def _add(self, g: Data, check: Callable[[], None] | None = None) -> None:
        """Add gradients, after a `check` of their entries."""
        count, total = self._count, self._count + g.shape[0]
        storage = arrays.promote(self._storage, g.dtype) if count else g.dtype
        if self._sums is None and total <= self.block_size:
            if check is not None:
                check()
            rows = self._rows
            if rows is None or rows.dtype != storage or len(rows) < total:
                # Memory that nobody has written to costs nothing yet, but for that of a GPU.
                most = self.block_size
                if isinstance(g, DeviceArray):
                    most = min(most, max(total, 2 * count))
                rows = arrays.empty(g, (most, self.d), storage)
                if self._rows is not None:
                    arrays.assign(rows[:count], arrays.widen(self._rows[:count], storage))
            arrays.assign(rows[count:total], arrays.widen(g, storage))
            self._rows = rows
        else:
            fresh = self._sums is None
            if check is not None and not fresh:
                check()
            sums = self._folded(g)
            self._sum(g, sums)
            # Nothing is lost yet where the sums are new, and they show NaN without a pass over g.
            if check is not None and fresh and not self._has_finite_diagonals(sums):
                check()
            self._sums, self._rows = sums, None
        self._grow(g.shape[0], g.dtype)

    def _folded(self, beside: Data) -> Data:
        """Return the sums, of the gradients that are kept where there are none yet."""
        if self._sums is not None:
            return self._sums
        sums = arrays.zeros(beside, self._sums_shape(), np.float64)
        if self._rows is not None:
            self._sum(self._rows[: self._count], sums)
        return sums

    def _sum(self, g: Data, sums: Data) -> None:
        kernel = backends.resolve("woodbury.block_gram", self.backend, g)
        with threads.blas_limit(1):  # the kernels call BLAS from threads of their own
            kernel(g, self.block_size, sums, threads.resolve(self.n_threads))

    def _has_finite_diagonals(self, sums: Data) -> bool:
        if isinstance(sums, DeviceArray):
            return arrays.all_finite(sums)
        i = np.arange(self.block_size)
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(sums[:, i * (i + 3) // 2].sum()))

    def _sums_shape(self) -> tuple[int, int, int]:
        triangle = self.block_size * (self.block_size + 1) // 2
        return -(-self.n_blocks // _CHUNK), triangle, _CHUNK

    def _grow(self, count: int, storage: np.dtype[Any]) -> None:
        self._storage = arrays.promote(self._storage, storage) if self._count else storage
        self._count += count
        self._placed = True

    # What is computed from it.

    def _need_gradients(self) -> None:
        if self._count == 0:
            raise ValueError("the BlockFisher must have seen gradients, got none: call update()")

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a kernel on all blocks."""
        kernel = backends.resolve(f"woodbury.{name}", self.backend, arguments[0])
        rows = None if self._rows is None else self._rows[: self._count]
        status = arrays.empty(arguments[0], self.n_blocks, np.int32)
        size, workers = self.block_size, threads.resolve(self.n_threads)
        with threads.blas_limit(1):
            kernel(self._sums, rows, size, self._count, self._damping, *arguments, status, workers)
        self._judge(status, 0)

    def _joint(self, x: Data, kept: Data) -> tuple[Data, Data]:
        out = arrays.empty(x, self.d, self.dtype)
        loss = arrays.empty(x, self.n_blocks, np.float64)
        self._call("block_prune", x, kept, out, loss)
        return out, loss

    def _inverse(self, group: int, start: int, stop: int) -> Data:
        """Return groups of the inverse of some blocks, (groups, group, group)."""
        self._need_gradients()
        stored = self._rows if self._sums is None else self._sums
        if start == stop:
            return arrays.empty(stored, (0, group, group), self.dtype)
        # The sums come in whole chunks, so some blocks more may have to be computed.
        first, last = start // _CHUNK, -(-stop // _CHUNK)
        begin = first * _CHUNK * self.block_size
        end = min(last * _CHUNK * self.block_size, self.d)
        shape = (-(-(end - begin) // group), group, group)
        out = arrays.empty(stored, shape, self.dtype)
        status = arrays.empty(stored, -(-(end - begin) // self.block_size), np.int32)
        kernel = backends.resolve("woodbury.block_inverse", self.backend, stored)
        with threads.blas_limit(1):
            kernel(
                None if self._sums is None else self._sums[first:last],
                None if self._rows is None else self._rows[: self._count, begin:end],
                self.block_size,
                end - begin,
                self._count,
                self._damping,
                group,
                out,
                status,
                threads.resolve(self.n_threads),
            )
        before = start - first * _CHUNK
        self._judge(status[before : before + stop - start], start)
        per_block = self.block_size // group
        return out[before * per_block : (before + stop - start) * per_block]

    def _judge(self, status: Data, start: int) -> None:
        if isinstance(status, DeviceArray):
            if not self._check:
                return
            good: Data = status.space.full(1, np.int32, -1).spread(status.shape)
        else:
            good = np.int32(-1)
        first = arrays.first_difference(status, good)
        if first >= 0:
            pivot = int(arrays.host(status[first : first + 1])[0])
            raise LinAlgError(
                f"block {start + first} of the Fisher matrix is not positive definite in float64: "
                f"pivot {pivot} with damping {self._damping:g}; a larger damping helps",
                pivot=pivot,
            )

    def _refuse_whole_blocks(self, x: Data, kept: Data) -> None:
        if isinstance(x, DeviceArray):
            block = int(x.space.run(device.woodbury().lost_block, x, kept, self.block_size))
        else:
            starts = np.arange(0, self.d, self.block_size)
            lost = ~np.logical_or.reduceat(kept, starts) & np.logical_or.reduceat(x != 0, starts)
            block = int(np.argmax(lost)) if lost.any() else -1
        if block >= 0:
            start = block * self.block_size
            stop = min(start + self.block_size, self.d)
            raise ValueError(
                f"mask must keep a weight of every block, got none in block "
                f"{block} (weights {start} to {stop - 1}); "
                "whole_blocks='zero' makes such blocks zero"
            )


def _pruned_part(x: Data, inverse: Data, kept: Data) -> Data:
    """Return ``x / inverse`` of the weights that are pruned, 0 for the others."""
    if isinstance(x, DeviceArray):
        y = x.copy()
        x.space.run(device.arrays().divide, device.flat(inverse), device.flat(y))
        x.space.run(device.arrays().clear_where, kept, True, y)
        return y
    return np.where(kept, 0, x / inverse)


def _kept_part(x: Data, step: Data, kept: Data) -> Data:
    """Return ``x - step`` of the weights that are kept, 0 for the others."""
    if isinstance(x, DeviceArray):
        out = _difference(x, step)
        x.space.run(device.arrays().clear_where, kept, False, out)
        return out
    return np.where(kept, x - step, 0)


def _difference(a: Data, b: Data) -> Data:
    if isinstance(a, DeviceArray):
        result = a.copy()
        arrays.add(result, b, -1.0)
        return result
    return a - b


def _expect(a: np.ndarray, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if a.shape != shape or a.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} of shape {shape}, got {a.dtype} of {a.shape}")
