"""The inverse of an empirical Fisher matrix, from gradients that are all there (M-FAC static)."""

import math

import numpy as np
from scipy.linalg import solve_triangular

from quadric import arrays, checks, threads
from quadric.arrays import Array
from quadric.errors import LinAlgError
from quadric.woodbury.rows import Passes, check_weights, cho_solve, cholesky

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
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        g = checks.storage(G, "G")
        if g.ndim != 2 or 0 in g.shape:
            raise ValueError(f"G must be a matrix with at least one entry, got shape {g.shape}")
        self.d = g.shape[1]
        size = self.d if block_size is None else checks.integer(block_size, "block_size", low=1)
        self.block_size = min(size, self.d)
        self._damping = checks.positive(damping, "damping")
        self._passes = Passes(self.d, self.block_size, backend, n_threads)
        self._like = arrays.like(G)
        self._G = arrays.rows(g)
        self._appended = np.empty((0, self.d), g.dtype)  # grows by half: most of it may be unused
        self._e = 0
        self._dtype = arrays.computing(g.dtype)
        self._exact = self._dtype == np.float64
        self._L: np.ndarray | None = None
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
        X = checks.vectors(x, "x", self.d, self._dtype)
        if not len(X):
            return arrays.like(x)(X.copy())
        X = np.ascontiguousarray(X)
        with threads.blas_limit(1):
            L = self._factor()
            P = self._dots(X)
            if not np.isfinite(P).all():
                raise ValueError(f"x must have products with G that {self._dtype} can hold")
            C = cho_solve(L, P).transpose(0, 2, 1)
            out = self._combine(C / -self._damping, X, 1 / self._damping)
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
        w = check_weights(weights, m, m)
        with threads.blas_limit(1):
            B = np.broadcast_to((m * w)[:, None], (self._passes.n_blocks, m, 1))
            C = cho_solve(self._factor(), B).transpose(0, 2, 1)
            return self._like(self._combine(C)[0])

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
            if scaled.min() < _SMALL and self._refined():
                scaled = self._scaled_diagonal()
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
        columns = np.concatenate([rows[:, [i, j]] for rows in self._rows()])
        columns = arrays.widen(columns, np.float64)
        same = float(i == j)
        identity = np.array([[1.0, same], [same, 1.0]])

        def scaled() -> np.ndarray:
            W: np.ndarray = solve_triangular(self._factor()[b], columns, lower=True)
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
        new = checks.gradients(g, "g", self.d)
        if new.dtype != self._G.dtype:
            wanted, got = (arrays.storage_name(a.dtype) for a in (self._G, new))
            raise TypeError(f"g must be {wanted} to go with G, got {got}")
        checks.finite(new.reshape(g.shape), "g")
        if not len(new):
            return
        with threads.blas_limit(1):
            K = self._bordered(self._K, self._rows(), new)
        if not np.isfinite(K).all():
            raise ValueError(f"g must have products with G that {self._dtype} can hold")
        e = self._e + len(new)
        if e > len(self._appended):
            grown = np.empty((max(e, len(self._appended) * 3 // 2), self.d), new.dtype)
            grown[: self._e] = self._appended[: self._e]
            self._appended = grown
        self._appended[self._e : e] = new
        self._K, self._e, self._L = K, e, None

    def __repr__(self) -> str:
        blocks = f", block_size={self.block_size}" if self._passes.n_blocks > 1 else ""
        return f"EmpiricalFisher(d={self.d}, count={self.count}, damping={self.damping:g}{blocks})"

    def _rows(self) -> list[np.ndarray]:
        return [self._G, self._appended[: self._e]] if self._e else [self._G]

    def _dots(self, X: np.ndarray) -> np.ndarray:
        return np.concatenate([self._passes.dots(rows, X) for rows in self._rows()], axis=1)

    def _combine(
        self, C: np.ndarray, X: np.ndarray | None = None, scale: float = 0.0
    ) -> np.ndarray:
        m = len(self._G)
        out = self._passes.combine(self._G, C[..., :m], X, scale)
        if self._e:
            self._passes.combine(self._appended[: self._e], C[..., m:], out, 1.0, out)
        return out

    def _scaled_diagonal(self) -> np.ndarray:
        """Return the diagonal of ``damping F^-1``."""
        extra = self._appended[: self._e] if self._e else None
        norms = self._passes.column_norms(self._G, extra, self._factor())
        np.subtract(1.0, norms, out=norms)
        return norms

    def _gram(self) -> np.ndarray:
        """Return ``G G^T`` of each block, the appended gradients included."""
        K = self._passes.gram(self._G, self._exact)
        # Every entry of a gradient is in its squared norm, so no pass is needed to look for NaN.
        if not np.isfinite(K).all():
            checks.finite(self._G, "G")
            if self._exact:
                raise ValueError("G must have squared norms that float64 can hold")
            self._exact = True
            return self._gram()
        return self._bordered(K, [self._G], self._appended[: self._e]) if self._e else K

    def _bordered(self, K: np.ndarray, rows: list[np.ndarray], new: np.ndarray) -> np.ndarray:
        """Return the Gram matrices of `rows`, whose own is K, and `new`."""
        cross = [self._passes.dots(part, new, self._exact) for part in rows]
        right = np.concatenate([*cross, self._passes.gram(new, self._exact)], axis=1)
        m = K.shape[1]
        left = np.concatenate([K, right[:, :m].transpose(0, 2, 1)], axis=1)
        return np.concatenate([left, right], axis=2)

    def _factor(self) -> np.ndarray:
        """Return L, of float64 products where float32 products would not do."""
        if self._L is None:
            shift = self.count * self._damping
            try:
                L = cholesky(self._K, shift)
            except LinAlgError:
                if self._refined():
                    return self._factor()
                raise
            total = np.diagonal(self._K, axis1=1, axis2=2) + shift
            pivots = np.diagonal(L, axis1=1, axis2=2) ** 2
            bound = min(_PIVOT, 10 / math.sqrt(self.block_size))
            poor = (pivots < bound * total).any() or total.min() < self.d * _UNDERFLOW
            if poor and self._refined():
                return self._factor()
            self._L = L
        return self._L

    def _refined(self) -> bool:
        """Make the Gram matrices anew of float64 products; False if that is what they are."""
        if self._exact:
            return False
        self._exact, self._L = True, None
        self._K = self._gram()
        return True
