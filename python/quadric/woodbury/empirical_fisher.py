"""The inverse of an empirical Fisher matrix, from gradients that are all there (M-FAC static)."""

import math

import numpy as np
from scipy.linalg import solve_triangular

from quadric import arrays, checks, threads
from quadric.arrays import Array, Data
from quadric.device import DeviceArray
from quadric.errors import LinAlgError
from quadric.woodbury.rows import Passes, check_weights, cho_solve, cholesky, coefficients

# Sums of n float32 products are off by 5e-7 or 2e-5 / sqrt(n), whichever is less, relative to the
# diagonal of the Gram matrix. Below these bounds that costs too much, and it is made anew.
_PIVOT = 0.25  # pivot of A, relative to its diagonal; from n = 1600 on, 10 / sqrt(n)
_SMALL = 0.1  # diagonal entry of damping F^-1
_UNDERFLOW = 1e-38  # squared norm per weight


class EmpiricalFisher:
    """``F = damping I + G^T G / m`` and its inverse, for m gradients in the rows of G.

    Only the m x m matrix ``G G^T`` is formed, in one pass over G; every result is one or two passes
    more. G is neither copied nor changed, and a few of its columns are looked at at a time: it may
    be a memory map of a file larger than memory.

    Parameters
    ----------
    G : array, shape (m, d)
        Gradients in rows; float16, bfloat16, float32 or float64. They must stay as they are while
        this object is in use. (A matrix whose rows are not contiguous, such as the transpose of a
        C-ordered one, is copied after all.)
    damping : float, optional
        Absolute, above 0.
    block_size : int, optional
        Cut the weights into blocks of this many consecutive ones, the last one shorter, and set F
        to 0 outside the blocks on its diagonal. None is one block. Each block takes ``16 m^2``
        bytes; where blocks are small, :class:`BlockFisher` takes less.
    check_finite : bool, optional
        False leaves it to the caller that no argument holds NaN or Inf. If G is on a GPU, then no
        method but :meth:`element` waits for it: the Gram matrix is made of float64 products at
        once, and results are NaN where `damping` is too small.
    backend : str, optional
        See :mod:`quadric.backends`.
    n_threads : int, optional
        None follows the environment. It does not change the results.

    Attributes
    ----------
    d : int
        Number of weights.
    block_size : int
        As given; `d` if there is one block.

    Raises
    ------
    ValueError
        If G is not a matrix or has no row, holds NaN or Inf, or an option is out of range.
    TypeError
        If G is of another type.
    LinAlgError
        If `damping` is so small that ``m damping I + G G^T`` is singular in float64.

    See Also
    --------
    GradientWindow : for gradients that come and go.
    BlockFisher : for many gradients and small blocks.

    Notes
    -----
    With ``A = m damping I + G G^T = L L^T``, ``F^-1 = (I - G^T A^-1 G) / damping``. This is the
    static algorithm of M-FAC [1]_: its coefficients are ``B = L^-1``, its divisors
    the pivots of A. The Gram matrix costs ``m^2 d`` flops at the speed of SYRK instead of m passes
    over G one after another.

    Vectors are float32, or float64 if the gradients are float64; A is always float64. Where A is so
    ill-conditioned that float32 products would show, the Gram matrix is made of float64 products,
    at about twice the cost.

    Where G is on a GPU, everything stays there, and vectors must come from there.

    References
    ----------
    .. [1] Frantar, Kurtic, Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", 2021, arXiv:2107.03356.

    Examples
    --------
    >>> import numpy as np
    >>> import quadric as qd
    >>> G = np.random.default_rng(0).standard_normal((3, 5))
    >>> fisher = qd.woodbury.EmpiricalFisher(G, damping=0.1)
    >>> fisher
    EmpiricalFisher(d=5, count=3, damping=0.1)
    >>> F = 0.1 * np.eye(5) + G.T @ G / 3
    >>> np.allclose(fisher.solve(F), np.eye(5))
    True
    >>> np.allclose(fisher.diagonal(), np.diag(np.linalg.inv(F)))
    True
    """

    def __init__(
        self,
        G: Array,
        *,
        damping: float = 1e-5,
        block_size: int | None = None,
        check_finite: bool = True,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        g = checks.storage(G, "G", gpu=True)
        if g.ndim != 2 or 0 in g.shape:
            raise ValueError(f"G must be a matrix with at least one entry, got shape {g.shape}")
        self.d = g.shape[1]
        size = self.d if block_size is None else checks.integer(block_size, "block_size", low=1)
        self.block_size = min(size, self.d)
        self._damping = checks.positive(damping, "damping")
        self._check = bool(check_finite)
        self._passes = Passes(self.d, self.block_size, backend, n_threads)
        self._like = arrays.like(G)
        self._G: Data = arrays.rows(g)
        self._appended = arrays.empty(g, (0, self.d), g.dtype)  # grows by half
        self._e = 0
        self._dtype = arrays.computing(g.dtype)
        # How good products in float32 are cannot be asked where nothing is looked at.
        self._looks = self._check or not isinstance(g, DeviceArray)
        self._exact = self._dtype == np.float64 or not self._looks
        self._L: Data | None = None
        with threads.blas_limit(1):
            self._K = self._gram()
            self._factor()

    @property
    def count(self) -> int:
        """Number of gradients, m."""
        return len(self._G) + self._e

    @property
    def damping(self) -> float:
        """The absolute damping, which may be changed."""
        return self._damping

    @damping.setter
    def damping(self, damping: float) -> None:
        self._damping = checks.positive(damping, "damping")
        self._L = None

    def solve(self, x: Array) -> Array:
        """Return ``F^-1 x``: two passes over G.

        Parameters
        ----------
        x : array, shape (d,) or (k, d)
            One vector, or one in each row; float64 if the gradients are float64, else float32.

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
            As for the class.

        Notes
        -----
        The error is a few eps of ``|x| / damping``, and for float64 gradients 1e-16 times the
        condition of A of it; not of the result, which is the small difference of large vectors
        where x lies in the span of the gradients. For combinations of gradients use
        :meth:`combine`, which does not subtract.
        """
        X = checks.vectors(x, "x", self.d, self._dtype, gpu=True, check_finite=self._check)
        arrays.together(X, self._G, "x", "G")
        if not len(X):
            return arrays.like(x)(X.copy())
        X = arrays.contiguous(X)
        with threads.blas_limit(1):
            self._factor()
            P = self._dots(X)
            if self._check and not arrays.all_finite(P):
                raise ValueError(f"x must have products with G that {self._dtype} can hold")
            C = coefficients(self._solved(P), -self._damping)
            out = self._combine(C, X, 1 / self._damping)
        return arrays.like(x)(out.reshape(x.shape))

    def combine(self, weights: Array) -> Array:
        """Return ``F^-1 G^T w``, the preconditioned combination of the gradients: one pass over G.

        ``combine(np.full(m, 1 / m))`` preconditions their mean. By the push-through identity this
        is ``m G^T A^-1 w``, without a subtraction.

        Parameters
        ----------
        weights : array_like, shape (m,)
            Weight of each gradient; those that were appended come last.

        Returns
        -------
        array, shape (d,)
            Of the array type of G; float64 if the gradients are float64, else float32.

        Raises
        ------
        ValueError
            If the shape does not fit, or a weight is not finite.
        LinAlgError
            As for the class.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> G = np.random.default_rng(0).standard_normal((3, 5))
        >>> fisher = qd.woodbury.EmpiricalFisher(G, damping=0.1)
        >>> np.allclose(fisher.combine([1, 0, -2]), fisher.solve(G[0] - 2 * G[2]))
        True
        """
        m = self.count
        w = check_weights(weights, m, m, self._G, check_finite=self._check)
        shape = (self._passes.n_blocks, m, 1)
        with threads.blas_limit(1):
            if isinstance(w, DeviceArray):
                B = arrays.zeros(w, shape, np.float64)
                arrays.add(B.reshape(shape[:2]), w.spread(shape[:2]), m)
            else:
                B = np.broadcast_to((m * w)[:, None], shape)
            return self._like(self._combine(coefficients(self._solved(B)))[0])

    def diagonal(self) -> Array:
        """Return the diagonal of ``F^-1``, shape (d,): one pass over G, ``m^2 d`` flops in float64.

        Returns
        -------
        array, shape (d,)
            Of the array type of G; float64 if the gradients are float64, else float32. The relative
            error is below 1e-5 in float32, and 1e-16 times the condition of A in float64.

        Raises
        ------
        LinAlgError
            As for the class.
        """
        with threads.blas_limit(1):
            scaled = self._scaled_diagonal()
            if not self._exact and arrays.any_below(scaled, _SMALL) and self._refined():
                scaled = self._scaled_diagonal()
        if isinstance(scaled, DeviceArray):
            inverse = arrays.zeros(scaled, self.d, np.float64)
            arrays.add(inverse, scaled, 1 / self._damping)
            return self._like(inverse.astype(self._dtype, copy=False))
        scaled /= self._damping
        return self._like(scaled.astype(self._dtype))

    def element(self, i: int, j: int) -> float:
        """Return ``(F^-1)_ij``, of two columns of G; 0 between blocks.

        Raises
        ------
        ValueError
            If an index is not between 0 and d - 1.
        LinAlgError
            As for the class.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> fisher = qd.woodbury.EmpiricalFisher(np.array([[3.0, 4.0]]), damping=1.0)
        >>> round(fisher.element(0, 1) * 26, 12)
        -12.0
        """
        i = checks.integer(i, "i", low=0, high=self.d - 1)
        j = checks.integer(j, "j", low=0, high=self.d - 1)
        b = i // self.block_size
        if b != j // self.block_size:
            return 0.0
        pairs = ([arrays.host(rows[:, k : k + 1]) for k in (i, j)] for rows in self._rows())
        columns = arrays.widen(np.concatenate([np.hstack(pair) for pair in pairs]), np.float64)
        same = float(i == j)
        identity = np.array([[1.0, same], [same, 1.0]])

        def scaled() -> np.ndarray:
            W: np.ndarray = solve_triangular(arrays.host(self._factor()[b]), columns, lower=True)
            inner: np.ndarray = identity - W.T @ W
            return inner

        with threads.blas_limit(1):
            inverse = scaled()
            if inverse.diagonal().min() < _SMALL and self._refined():
                inverse = scaled()
        return float(inverse[0, 1] / self._damping)

    def append(self, g: Array) -> None:
        """Add gradients: one pass over G; the next result factors A again, ``m^3 / 3`` flops.

        Parameters
        ----------
        g : array, shape (d,) or (k, d)
            Of the dtype of G. It is copied into a buffer that grows; G is left alone.

        Raises
        ------
        ValueError
            If the shape does not fit, or an entry is not finite; nothing has changed then.
        TypeError
            If the dtype is not that of G.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> G = np.random.default_rng(0).standard_normal((4, 5))
        >>> fisher = qd.woodbury.EmpiricalFisher(G[:3], damping=0.1)
        >>> fisher.append(G[3])
        >>> whole = qd.woodbury.EmpiricalFisher(G, damping=0.1)
        >>> fisher.count, np.allclose(fisher.diagonal(), whole.diagonal())
        (4, True)
        """
        new = checks.gradients(g, "g", self.d, gpu=True)
        if new.dtype != self._G.dtype:
            wanted, got = (arrays.storage_name(a.dtype) for a in (self._G, new))
            raise TypeError(f"g must be {wanted} to go with G, got {got}")
        arrays.together(new, self._G, "g", "G")
        if self._check:
            checks.finite(new.reshape(g.shape), "g")
        if not len(new):
            return
        with threads.blas_limit(1):
            K = self._bordered(self._K, self._rows(), new)
        if self._check and not arrays.all_finite(K):
            raise ValueError(f"g must have products with G that {self._dtype} can hold")
        e = self._e + len(new)
        if e > len(self._appended):
            rows = max(e, len(self._appended) * 3 // 2)
            grown = arrays.empty(new, (rows, self.d), new.dtype)
            arrays.assign(grown[: self._e], self._appended[: self._e])
            self._appended = grown
        arrays.assign(self._appended[self._e : e], new)
        self._K, self._e, self._L = K, e, None

    def __repr__(self) -> str:
        blocks = f", block_size={self.block_size}" if self._passes.n_blocks > 1 else ""
        return f"EmpiricalFisher(d={self.d}, count={self.count}, damping={self.damping:g}{blocks})"

    def _rows(self) -> list[Data]:
        return [self._G, self._appended[: self._e]] if self._e else [self._G]

    def _dots(self, X: Data) -> Data:
        parts = [self._passes.dots(rows, X) for rows in self._rows()]
        if len(parts) > 1 and isinstance(X, DeviceArray):
            return _stacked(parts)
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def _solved(self, B: Data) -> Data:
        return cho_solve(self._factor(), B, self._K, self.count * self._damping)

    def _combine(self, C: Data, X: Data | None = None, scale: float = 0.0) -> Data:
        m = len(self._G)
        out = self._passes.combine(self._G, C[:, :, :m], X, scale)
        if self._e:
            self._passes.combine(self._appended[: self._e], C[:, :, m:], out, 1.0, out)
        return out

    def _scaled_diagonal(self) -> Data:
        """Return the diagonal of ``damping F^-1``."""
        extra = self._appended[: self._e] if self._e else None
        norms = self._passes.column_norms(self._G, extra, self._factor())
        if isinstance(norms, DeviceArray):
            scaled = norms.space.full(self.d, np.float64, 1.0)
            arrays.add(scaled, norms, -1.0)
            return scaled
        np.subtract(1.0, norms, out=norms)
        return norms

    def _gram(self) -> Data:
        """Return ``G G^T`` of each block, the appended gradients included."""
        K = self._passes.gram(self._G, self._exact)
        # Every entry of a gradient is in its squared norm, so no pass is needed to look for NaN.
        if self._check and not arrays.all_finite(K):
            checks.finite(self._G, "G")
            if self._exact:
                raise ValueError("G must have squared norms that float64 can hold")
            self._exact = True
            return self._gram()
        return self._bordered(K, [self._G], self._appended[: self._e]) if self._e else K

    def _bordered(self, K: Data, rows: list[Data], new: Data) -> Data:
        """Return the Gram matrices of `rows`, whose own is K, and `new`."""
        cross = [self._passes.dots(part, new, self._exact) for part in rows]
        own = self._passes.gram(new, self._exact)
        m = K.shape[1]
        if isinstance(K, DeviceArray):
            column = _stacked([*cross, own])
            whole = arrays.empty(K, (len(K), m + len(new), m + len(new)), np.float64)
            arrays.assign(whole[:, :m, :m], K)
            arrays.assign(whole[:, :, m:], column)
            for to, a in zip(whole, column, strict=True):
                arrays.assign(to[m:, :m], a[:m].T)
            return whole
        right = np.concatenate([*cross, own], axis=1)
        left = np.concatenate([K, right[:, :m].transpose(0, 2, 1)], axis=1)
        return np.concatenate([left, right], axis=2)

    def _factor(self) -> Data:
        """Return L, of float64 products where float32 products would not do."""
        if self._L is None:
            shift = self.count * self._damping
            try:
                L = cholesky(self._K, shift, check=self._looks)
            except LinAlgError:
                if self._refined():
                    return self._factor()
                raise
            if not self._exact and self._is_poor(L, shift) and self._refined():
                return self._factor()
            self._L = L
        return self._L

    def _is_poor(self, L: Data, shift: float) -> bool:
        """Say whether float32 products in K would show in the solutions."""
        if isinstance(L, DeviceArray):
            norms, roots = self._K.diagonal().host(), L.diagonal().host()
        else:
            norms, roots = (np.diagonal(a, axis1=1, axis2=2) for a in (self._K, L))
        total = norms + shift
        bound = min(_PIVOT, 10 / math.sqrt(self.block_size))
        return bool((roots**2 < bound * total).any() or total.min() < self.d * _UNDERFLOW)

    def _refined(self) -> bool:
        """Make the Gram matrices anew of float64 products; False if that is what they are."""
        if self._exact:
            return False
        self._exact, self._L = True, None
        self._K = self._gram()
        return True


def _stacked(parts: list[DeviceArray]) -> Data:
    """Return (n_blocks, m_i, k) arrays one below the other."""
    n_blocks, _, k = parts[0].shape
    out = arrays.empty(parts[0], (n_blocks, sum(a.shape[1] for a in parts), k), np.float64)
    start = 0
    for a in parts:
        arrays.assign(out[:, start : start + a.shape[1]], a)
        start += a.shape[1]
    return out
