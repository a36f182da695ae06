"""The inverse of an empirical Fisher matrix of the last gradients (M-FAC dynamic)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quadric import arrays, checks, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.woodbury.rows import Passes, check_weights, coefficients
from quadric.woodbury.window_inverse import WindowInverse, WindowOnGpu

_DTYPES = {
    "float32": np.float32,
    "bfloat16": np.uint16,
    "float16": np.float16,
    "float64": np.float64,
}
_NORMALIZE = ("count", "capacity", "sum")
_KEYS = frozenset("d capacity dtype normalize damping count head updates rows gram inverse".split())


class GradientWindow:
    """``F = damping I + G^T G / m`` and its inverse, G the last gradients that were pushed.

    Parameters
    ----------
    d : int
        Number of weights.
    capacity : int, optional
        Gradients in a full window; each further one takes the place of the oldest.
    damping : float, optional
        Absolute, above 0. It can be set at any time.
    dtype : {"float32", "bfloat16", "float16", "float64"}, optional
        Type that gradients are kept in; they are rounded to it, to nearest even. Vectors are
        computed in float64 if it is float64, else in float32.
    normalize : {"count", "capacity", "sum"}, optional
        What m is: the number of gradients present, the capacity even while the window is not full
        (as the M-FAC optimizer has it), or 1 (as Natural GaLore has it).
    check_finite : bool, optional
        False leaves it to the caller that no argument holds NaN or Inf. On a GPU no method then
        waits for it, :meth:`state_dict` apart: solutions are NaN as long as a gradient with NaN is
        in the window, and where `damping` is too small.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the results.

    Attributes
    ----------
    d, capacity, dtype, normalize
        As above.

    Raises
    ------
    ValueError
        If an option is out of range.
    TypeError
        If an option is of another type.

    See Also
    --------
    EmpiricalFisher : for gradients that are all there.
    natural_gradient : one solution, from a few gradients.

    Notes
    -----
    This is what the dynamic algorithm of M-FAC [1]_ computes. By the push-through
    identity, with ``A = m damping I + G G^T``::

        F^-1 G^T w = m G^T A^-1 w

    so that a gradient of the window, or any combination of them, is preconditioned without the
    subtraction in ``F^-1 x = (x - G^T A^-1 G x) / damping``. In float32 that subtraction loses
    ``1e-7 |g|^2 / (m damping)`` of the result, which is everything for usual optimizers. The
    push-through form is right to the rounding of the result at any damping, because coefficients
    and sums are float64: also where gradients nearly depend on each other.

    **Cost.** A push reads the window once, for a row of ``G G^T``, and so does each solution;
    ``A^-1`` follows by an update of rank 2, ``O(m^2)``. The solutions from it are refined, and it
    is made anew by Cholesky where the correction exceeds 1e-8, and every `capacity` pushes. A
    window that is not full is factored anew for each solution.

    **Memory.** ``capacity * d`` entries of `dtype`, and 16 ``capacity^2`` bytes.

    **On a GPU** the window is where the first gradient is, until :meth:`clear`; later gradients and
    vectors must come from there. ``A`` is factored anew for each solution.

    References
    ----------
    .. [1] Frantar, Kurtic, Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", 2021, arXiv:2107.03356.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> G = np.random.default_rng(0).standard_normal((4, 6))
    >>> window = qd.woodbury.GradientWindow(6, capacity=3, damping=0.1, dtype="float64")
    >>> for g in G:
    ...     step = window.push_and_solve(g)
    >>> window
    GradientWindow(d=6, capacity=3, count=3, damping=0.1, dtype=float64, normalize=count)
    >>> F = 0.1 * np.eye(6) + G[1:].T @ G[1:] / 3
    >>> np.allclose(step, np.linalg.solve(F, G[3]))
    True
    """

    def __init__(
        self,
        d: int,
        *,
        capacity: int = 1024,
        damping: float = 1e-5,
        dtype: str = "float32",
        normalize: str = "count",
        check_finite: bool = True,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.d = checks.integer(d, "d", low=1)
        self.capacity = checks.integer(capacity, "capacity", low=1)
        self.dtype = checks.choice(dtype, "dtype", _DTYPES)
        self.normalize = checks.choice(normalize, "normalize", _NORMALIZE)
        self._check = bool(check_finite)
        self._passes = Passes(self.d, self.d, backend, n_threads)
        self._rows: Data = np.empty((self.capacity, self.d), _DTYPES[self.dtype])
        self._computing = arrays.computing(self._rows.dtype)
        self._rounds = self._rows.dtype != self._computing
        self._row: Data = None
        self._make_buffers()
        self._like = arrays.like(self._rows)
        self.clear()
        self.damping = damping

    @property
    def count(self) -> int:
        """Number of gradients in the window."""
        return self._small.count

    @property
    def damping(self) -> float:
        """Lambda of F; can be set."""
        return self._damping

    @damping.setter
    def damping(self, damping: float) -> None:
        self._damping = checks.positive(damping, "damping")
        self._small.set_shift(self._shift(self.count))

    def push(self, g: Array) -> None:
        """Add a gradient, and drop the oldest one if the window is full: one pass over the window.

        Parameters
        ----------
        g : array, shape (d,)
            float16, bfloat16, float32 or float64; it is rounded to the type of the window.

        Raises
        ------
        ValueError
            If the shape does not fit, or an entry, also after rounding, or the squared norm is not
            finite; the window is then as before.
        TypeError
            If the dtype does not fit.
        """
        with threads.blas_limit(1):
            x, column = self._measured(g)
            self._small.replace(self._head, column, self._shift(len(column)))
            self._keep(x)
        self._placed = True
        self._like = arrays.like(g)

    def push_and_solve(self, g: Array) -> Array:
        """Add a gradient, and return ``F^-1 g`` for the new F: two passes over the window.

        Parameters
        ----------
        g : array, shape (d,)
            As for :meth:`push`; the solution is that for the rounded gradient.

        Returns
        -------
        array, shape (d,)
            float64 if the window is float64, else float32.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`push`.
        LinAlgError
            If `damping` is so small that A is singular in float64. In all cases the window is then
            as before.
        """
        with threads.blas_limit(1):
            x, column = self._measured(g)
            # What may not fit into memory comes before anything changes.
            out = arrays.empty(x, (1, self.d), self._computing)
            saved = self._small.saved(self._head)
            unit: Data = self._small.replace(self._head, column, self._shift(len(column)))
            if unit is None:
                try:
                    unit = self._small.solve(self._unit(len(column)))
                except BaseException:
                    self._small.restore(saved)
                    raise
            self._keep(x)
            self._placed = True
            self._like = arrays.like(g)
            return self._like(self._push_through(unit, out))

    def combine(self, weights: Array) -> Array:
        """Return ``F^-1 sum_i w_i g_i`` for gradients of the window: one pass over it.

        Momentum and other averages of gradients are preconditioned like this at no extra cost.

        Parameters
        ----------
        weights : array_like, shape (k,)
            Weights of the last k gradients, the newest first; k from 1 to `count`.

        Returns
        -------
        array, shape (d,)
            Of the array type of the last gradient; float64 if the window is float64, else float32.

        Raises
        ------
        ValueError
            If the shape does not fit, or a weight is not finite.
        LinAlgError
            If `damping` is so small that A is singular in float64.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> G = np.random.default_rng(0).standard_normal((3, 6))
        >>> window = qd.woodbury.GradientWindow(6, capacity=3, dtype="float64", damping=0.1)
        >>> for g in G:
        ...     window.push(g)
        >>> step = window.combine([1.0, 0.9])
        >>> np.allclose(step, window.solve(G[2] + 0.9 * G[1]))
        True
        """
        if self.count == 0:
            raise ValueError("the window must hold a gradient, got none yet")
        newest_first = check_weights(weights, 1, self.count, self._rows, check_finite=self._check)
        w = arrays.zeros(self._rows, self.count, np.float64)
        k = min(len(newest_first), self._head)  # the others are at the end of the window
        arrays.assign(w[self._head - k : self._head][::-1], newest_first[:k])
        arrays.assign(w[self.count - len(newest_first) + k :][::-1], newest_first[k:])
        with threads.blas_limit(1):
            return self._like(self._push_through(self._small.solve(w)))

    def solve(self, x: Array) -> Array:
        """Return ``F^-1 x`` for any x: two passes over the window.

        Parameters
        ----------
        x : array, shape (d,) or (k, d)
            One vector, or one in each row; float64 if the window is float64, else float32.

        Returns
        -------
        array
            Of the shape and dtype of `x`.

        Raises
        ------
        ValueError
            If the shape does not fit, or an entry is not finite.
        TypeError
            If the dtype does not fit.
        LinAlgError
            If `damping` is so small that A is singular in float64.

        Notes
        -----
        The error is a few eps of ``|x| / damping``, not of the result, which for x near the span of
        the gradients is much smaller. For gradients of the window use :meth:`push_and_solve` and
        :meth:`combine`.
        """
        X = checks.vectors(x, "x", self.d, self._computing, gpu=True, check_finite=self._check)
        if not X.size or not self.count:
            return arrays.like(x)(_divided(X, self.damping).reshape(x.shape))
        X = arrays.contiguous(X)
        self._come_to(X, "x")
        rows = self._rows[: self.count]
        with threads.blas_limit(1):
            P = self._passes.dots(rows, X)[0]
            if self._check and not arrays.all_finite(P):
                raise ValueError(f"x must have products with the gradients that {X.dtype} can hold")
            solved = self._small.solve(P)
            C = coefficients(solved.reshape(1, *solved.shape), -self.damping)
            out = self._passes.combine(rows, C, X, 1 / self.damping)
        return arrays.like(x)(out.reshape(x.shape))

    def clear(self) -> None:
        """Drop all gradients."""
        self._small = self._new_small()
        self._head = 0  # where the next gradient goes
        self._placed = False  # the window goes where the first gradient is

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs to go on, bit for bit.

        Returns
        -------
        dict
            NumPy arrays (copies; bfloat16 as its bits in uint16), numbers and strings.
        """
        n, small = self.count, self._small
        return {
            "d": self.d,
            "capacity": self.capacity,
            "dtype": self.dtype,
            "normalize": self.normalize,
            "damping": self.damping,
            "count": n,
            "head": self._head,
            "updates": small.updates,
            "rows": arrays.host(self._rows[:n].copy()),
            "gram": arrays.host(small.gram[:n, :n].copy()),
            "inverse": np.empty((0, 0)) if small.inverse is None else small.inverse.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another window was; `damping` becomes that of the other.

        Parameters
        ----------
        state : mapping
            From :meth:`state_dict` of a window with the same `d`, `capacity`, `dtype` and
            `normalize`.

        Raises
        ------
        ValueError
            If the state is of another window, or damaged; nothing has changed then.
        TypeError
            If it is no state at all.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> a = qd.woodbury.GradientWindow(3, capacity=2)
        >>> a.push(np.array([1.0, 2.0, 3.0]))
        >>> b = qd.woodbury.GradientWindow(3, capacity=2)
        >>> b.load_state_dict(a.state_dict())
        >>> g = np.array([0.0, 1.0, 0.0])
        >>> np.array_equal(a.push_and_solve(g), b.push_and_solve(g))
        True
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must come from state_dict(), got {type(state).__name__}")
        if missing := _KEYS - set(state):
            raise ValueError(f"state must come from state_dict(), got no {min(missing)}")
        for key in ("d", "capacity", "dtype", "normalize"):
            if not np.array_equal(state[key], getattr(self, key)):
                raise ValueError(f"state must have {key}={getattr(self, key)}, got {state[key]}")
        n = checks.integer(state["count"], "count of state", low=0, high=self.capacity)
        last = self.capacity - 1
        head = checks.integer(state["head"], "head of state", *((n, n) if n <= last else (0, last)))
        updates = checks.integer(state["updates"], "updates of state", low=0)
        damping = checks.positive(state["damping"], "damping of state")
        made = np.size(state["inverse"]) > 0
        rows = _part(state, "rows", (n, self.d), self._rows.dtype)
        gram = _part(state, "gram", (n, n), np.dtype(np.float64))
        inverse = _part(state, "inverse", (n, n) if made else (0, 0), np.dtype(np.float64))

        if isinstance(self._rows, DeviceArray):  # it follows the first gradient from now on
            self._rows = np.empty(self._rows.shape, self._rows.dtype)
            self._make_buffers()
            self._like = arrays.like(self._rows)
        self.clear()
        self._damping, self._head = damping, head
        self._rows[:n] = rows
        small = self._small = WindowInverse(self.capacity)
        small.count, small.shift, small.updates = n, self._shift(n), updates
        small.gram[:n, :n] = gram
        small.inverse = np.array(inverse, order="F") if made else None

    def __repr__(self) -> str:
        return (
            f"GradientWindow(d={self.d}, capacity={self.capacity}, count={self.count}, "
            f"damping={self.damping:g}, dtype={self.dtype}, normalize={self.normalize})"
        )

    def _divisor(self, count: int) -> int:
        return {"count": count, "capacity": self.capacity, "sum": 1}[self.normalize]

    def _shift(self, count: int) -> float:
        return self._divisor(count) * self.damping

    def _measured(self, g: Array) -> tuple[Data, Data]:
        """Return a gradient as the window would keep it, and its column of ``G G^T``."""
        x = checks.storage(g, "g", gpu=True)
        if x.shape != (self.d,):
            raise ValueError(f"g must have shape ({self.d},), got {x.shape}")
        self._come_to(x, "g")
        x = wide = arrays.contiguous(arrays.widen(x, self._computing))
        if self._rounds:
            x = self._rounded_to_row(wide)
        # Every entry is in the squared norm, so no pass is needed to look for NaN.
        row = x.reshape(1, -1)
        norm = self._passes.dots(row, row).reshape(-1)
        count = self.count
        column = arrays.empty(x, min(count + 1, self.capacity), np.float64)
        if count and (isinstance(x, DeviceArray) or not self._check or np.isfinite(norm[0])):
            arrays.assign(column[:count], self._passes.dots(self._rows[:count], row)[0, :, 0])
        arrays.assign(column[self._head : self._head + 1], norm)
        if self._check and not arrays.all_finite(column):
            if x is not wide and isinstance(wide, DeviceArray):
                bad = self._row.first_not_finite()
                if bad >= 0:
                    raise self._not_finite(wide[bad : bad + 1].host()[0], bad)
            checks.finite(x, "g")
            raise ValueError(f"g must have products with the window that {x.dtype} can hold")
        return x, column

    def _rounded_to_row(self, x: Any) -> Data:
        """Return a gradient as it is in the type of the window, which `_row` has then."""
        if isinstance(x, DeviceArray):
            self._row = x.astype(self._rows.dtype)
            return self._row.astype(self._computing)
        bad = self._passes.store(x, self._row, self._rounded)
        if bad >= 0:
            raise self._not_finite(x[bad], bad)
        return self._rounded

    def _not_finite(self, value: Any, index: int) -> ValueError:
        return ValueError(f"g must be finite in {self.dtype}, got {value} at index ({index},)")

    def _come_to(self, a: Data, name: str) -> None:
        """Bring a window that is empty, or came from a state, to where an array is."""
        if self._placed:
            arrays.together(a, self._rows, name, "the window")
            return
        here, there = (x.space if isinstance(x, DeviceArray) else None for x in (a, self._rows))
        if here == there:
            return
        n, old = self.count, self._small
        kept, gram = arrays.host(self._rows[:n].copy()), arrays.host(old.gram[:n, :n].copy())
        self._rows = arrays.empty(a, self._rows.shape, self._rows.dtype)
        self._small = self._new_small()
        self._small.count, self._small.shift = n, old.shift
        if n:
            arrays.assign(self._rows[:n], arrays.beside(kept, a))
            arrays.assign(self._small.gram[:n, :n], arrays.beside(gram, a))
        self._make_buffers()

    def _make_buffers(self) -> None:
        """Make room for a gradient in the type of the window, and for what it is as a vector."""
        if self._rounds and not isinstance(self._rows, DeviceArray):
            self._row = np.empty(self.d, self._rows.dtype)
            self._rounded = np.empty(self.d, self._computing)

    def _new_small(self) -> WindowInverse | WindowOnGpu:
        if isinstance(self._rows, DeviceArray):
            return WindowOnGpu(self.capacity, self._rows.space, self._check)
        return WindowInverse(self.capacity)

    def _unit(self, count: int) -> Data:
        unit = arrays.zeros(self._rows, count, np.float64)
        unit[self._head : self._head + 1].fill(1.0)
        return unit

    def _keep(self, x: Data) -> None:
        arrays.assign(self._rows[self._head], self._row if self._rounds else x)
        self._head = (self._head + 1) % self.capacity

    def _push_through(self, solved: Data, out: Data | None = None) -> Data:
        rows = self._rows[: self.count]
        divisor = self._divisor(self.count)
        if isinstance(solved, DeviceArray):
            C = arrays.zeros(solved, (1, 1, self.count), np.float64)
            arrays.add(C, solved.reshape(1, 1, -1), divisor)
        else:
            C = (divisor * solved)[None, None]
        return self._passes.combine(rows, C, out=out)[0]


def _divided(X: Data, by: float) -> Data:
    if isinstance(X, DeviceArray):
        out = arrays.zeros(X, X.shape, X.dtype)
        arrays.add(out, X, 1 / by)
        return out
    return X / X.dtype.type(by)


def _part(
    state: Mapping[str, Any], key: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.ndarray:
    a = np.asarray(state[key])
    if a.shape != shape or a.dtype != dtype:
        wanted = f"{dtype} of shape {shape}"
        raise ValueError(f"{key} of state must be {wanted}, got {a.dtype} of shape {a.shape}")
    return a
