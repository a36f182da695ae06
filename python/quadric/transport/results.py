"""What the solvers return."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quadric import arrays, checks
from quadric.arrays import Array, Data
from quadric.transport import plans, rounding, sparse
from quadric.transport.problem import Problem
from quadric.transport.solved import Solved, each

if TYPE_CHECKING:
    from quadric.transport.derivatives import Gradients


@dataclass(frozen=True, slots=True, eq=False)
class TransportResult:
    """Potentials of an entropic transport problem, or of a batch, and what follows from them.

    The plan is ``P_ij = exp((f_i + g_j - C_ij) / reg)``. It is not stored: `plan` computes it from
    the cost, which is not copied either and should stay as it is. Of a batch of B problems every
    attribute but `history`, `method` and `reg` has a leading axis of length B, and ``result[k]`` is
    the result of one of them.

    Attributes
    ----------
    f, g : array of float64, shape (n,) and (m,)
        Potentials in units of the cost, in the caller's array type; -Inf where the mass is 0. Those
        of a balanced problem are defined up to ``f + c, g - c``: these have ``<f, a> = <g, b>``.
    cost : float
        ``<C, P>``, without the entropy.
    value : float
        What is minimized: ``<C, P> + reg sum P (log P - 1)``, and the KL terms of an unbalanced
        problem.
    dual_value : float
        What is maximized, ``<f, a> + <g, b> - reg sum P`` if the problem is balanced. It is the
        same as `value` at the solution, and never above the least value.
    marginal_error : float
        ``sum |P 1 - a| + sum |P^T 1 - b|``, of the plan that is returned. On an unbalanced side the
        sums of the solution are ``a exp(-f / rho)``, which take the place of `a`.
    iterations : int
        Iterations of Sinkhorn and of Newton's method, added.
    converged : bool
        Whether `marginal_error` is at most the tolerance that was asked for.
    history : structured array
        One row per Newton step or run of Sinkhorn iterations: method, reg, iterations so far,
        error, objective (the dual), kept (entries of the plan that were looked at), cg (iterations
        of conjugate gradients), seconds so far.
    method : str
        What was used.
    reg : float
        As it was given.
    problem : Problem
        The problem, checked; as this library keeps it.
    """

    f: Array
    g: Array
    cost: Any
    value: Any
    dual_value: Any
    marginal_error: Any
    iterations: Any
    converged: Any
    history: np.ndarray
    method: str
    reg: float
    problem: Problem = field(repr=False)
    _own: tuple[Data, Data] | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of the plan; of a batch also its length."""
        B, n, m = self.problem.cost.shape
        return (B, n, m) if self.problem.batched else (n, m)

    def plan(self) -> Array:
        """Return the plan, shape (n, m), in the dtype of the cost or the points.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> half = np.array([0.5, 0.5])
        >>> M = np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> qd.transport.solve(half, half, M, reg=1.0).plan().round(6)
        array([[0.365529, 0.134471],
               [0.134471, 0.365529]])
        """
        return self.problem.array(plans.whole(self.problem, *self.potentials()))

    def sparse_plan(self, k: int | None = None, *, drop: float = 1e-9) -> Any:
        """Return the entries of the plan that matter, without forming the others.

        Parameters
        ----------
        k : int, optional
            Keep the `k` largest entries of each row.
        drop : float, optional
            Without `k`: leave out the smallest entries, as long as their sum is at most this share
            of all mass. 0 keeps every entry that is not 0.

        Returns
        -------
        SparsePlan
            Its `matrix` is a ``scipy.sparse.csr_array``, in CPU memory in any case, its `dropped`
            the mass left out. A batch has a tuple of them.

        Raises
        ------
        ValueError
            If more than 2^28 entries would be kept.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> x = np.linspace(0, 1, 200)[:, None]
        >>> result = qd.transport.solve_points(x, x**2, reg=1e-4)
        >>> sparse = result.sparse_plan(drop=1e-6)
        >>> sparse.matrix.shape, sparse.matrix.nnz < 200 * 200 // 2, sparse.dropped <= 1e-6
        ((200, 200), True, True)
        """
        if k is not None:
            k = checks.integer(k, "k", low=1)
        drop = checks.real(drop, "drop", 0.0, 1.0)
        shape = self.problem.cost.shape[1:]
        found = tuple(
            sparse.by_mass(s, shape, drop) if k is None else sparse.by_count(s, shape, k)
            for s in self._solved()
        )
        return found if self.problem.batched else found[0]

    def rounded_plan(self) -> Array:
        """Return the feasible plan next to `plan`; its marginals are exact up to rounding.

        Raises
        ------
        ValueError
            If the problem is unbalanced.

        See Also
        --------
        round_to_marginals : does it to any plan, and says how.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> M = np.random.default_rng(0).random((4, 5))
        >>> result = qd.transport.solve(None, None, M, reg=0.1, tol=1e-2)
        >>> error = np.abs(result.rounded_plan().sum(axis=1) - 1 / 4).sum()
        >>> bool(error < 1e-15)
        True
        """
        if not self.problem.balanced:
            raise ValueError("rounded_plan needs a balanced problem: this one has no exact masses")
        found = plans.whole(self.problem, *self.potentials())
        for plan, a, b in zip(found, self.problem.a, self.problem.b, strict=True):
            arrays.assign(plan, rounding.rounded(plan, a, b))
        return self.problem.array(found)

    def barycentric(self, values: Array) -> Array:
        """Return the mean of `values` over what each row is sent to: ``P V / P 1``.

        Parameters
        ----------
        values : array, shape (m, k) or (m,)
            What belongs to each column, such as the points y; float32 or float64, where the cost
            is. For a batch also (B, m, k).

        Returns
        -------
        array, shape (n, k) or (n,)
            Of the array type and dtype of `values`; NaN in rows that have no mass. The plan is not
            stored.

        Raises
        ------
        ValueError
            If the shape does not fit or a value is not finite.
        TypeError
            If the dtype is neither float32 nor float64.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> x = np.linspace(0, 1, 50)[:, None]
        >>> result = qd.transport.solve_points(x, x + 3, reg=1e-3)
        >>> bool(np.abs(result.barycentric(x + 3) - (x + 3)).max() < 0.02)
        True
        """
        V = arrays.take(values, "values")
        checks.floating(V, "values")
        arrays.together(V, self.problem.cost.array, "values", "the cost")
        B, n, m = self.problem.cost.shape
        own = self.problem.batched and V.ndim == 3
        if V.ndim not in (1, 2, 3) or (V.ndim == 3) != own or V.shape[own:][:1] != (m,):
            batch = f" or ({B}, {m}, k)" if self.problem.batched else ""
            raise ValueError(f"values must have shape ({m},) or ({m}, k){batch}, got {V.shape}")
        if own and len(V) != B:
            raise ValueError(f"values must have {B} problems, got {len(V)}")
        one, V = V.ndim == 1, arrays.contiguous(V)
        checks.finite(V, "values")
        V = V.reshape(V.shape if own else (m, -1)) if V.size else V
        out = arrays.empty(V, (B, n, V.shape[-1]), V.dtype)
        for k, s in enumerate(self._solved()):
            v = V[k] if own else V
            if len(s.columns) < m:
                v = arrays.cut(v, s.columns, np.arange(v.shape[1]))
            rows, product = plans.apply(s, v.astype(np.float64))
            arrays.divide(product, rows[:, None])
            arrays.assign(out[k], arrays.placed(product, s.rows, n, np.nan))
        if one:
            out = out[:, :, 0]
        return arrays.like(values)(out if self.problem.batched else out[0])

    def gradients(self) -> "Gradients":
        """Return the gradient of `value` in the cost or the points, and in the masses.

        By the envelope theorem it is read off the solution: the plan is the gradient in M, the
        potentials are those in a and b.

        Returns
        -------
        Gradients
            `M`, or `x` and `y`, and `a` and `b`.

        Examples
        --------
        >>> import numpy as np
        >>> import quadric as qd
        >>> M = np.random.default_rng(0).random((4, 5))
        >>> result = qd.transport.solve(None, None, M, reg=0.1)
        >>> np.array_equal(result.gradients().M, result.plan())
        True
        """
        from quadric.transport import derivatives

        return derivatives.envelope_gradients(self)

    def vjp(
        self, *, plan: Any = None, f: Array | None = None, g: Array | None = None
    ) -> "Gradients":
        """Return the gradient of a function of the plan and the potentials.

        By the implicit function theorem, with the sparse solve of a Newton step.

        Parameters
        ----------
        plan : array, shape (n, m), or pair of arrays, shape (n, k) and (m, k), optional
            Gradient of that function in the plan; a pair (U, V) stands for ``U V^T``. Float32 or
            float64, finite; of a batch with B in front.
        f, g : array, shape (n,) and (m,), optional
            Its gradient in the potentials, as they are fixed here: by ``<f, a> = <g, b>`` if the
            problem is balanced.

        Returns
        -------
        Gradients
            Its gradient in M, or in x and y, and in a and b.

        Warns
        -----
        ConvergenceWarning
            If `reg` is so small that in float64 the plan falls into pieces which exchange no mass,
            and the function depends on the potentials of one relative to those of another.

        Raises
        ------
        ValueError
            If a shape does not fit or an entry is not finite.
        TypeError
            If a dtype does not fit.

        Notes
        -----
        Entries of the plan below 2^-60 of both their masses are left out; each of the others takes
        some 100 bytes for a while.

        Examples
        --------
        How the mass that row 0 sends to column 0 depends on the cost of doing so:

        >>> import numpy as np
        >>> import quadric as qd
        >>> M = np.random.default_rng(0).random((4, 5))
        >>> W = np.zeros((4, 5))
        >>> W[0, 0] = 1.0
        >>> result = qd.transport.solve(None, None, M, reg=0.1, tol=1e-12)
        >>> slope = result.vjp(plan=W).M[0, 0]
        >>> other = qd.transport.solve(None, None, M + 1e-4 * W, reg=0.1, tol=1e-12)
        >>> bool(np.isclose((other.plan() - result.plan())[0, 0] / 1e-4, slope, rtol=1e-2))
        True
        """
        from quadric.transport import derivatives

        return derivatives.implicit_gradients(self, plan, f, g)

    def plot(self, ax: Any = None) -> Any:
        """Plot the marginal error against the iterations.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure if it is not given.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from quadric.transport import plotting

        return plotting.convergence(self.history, ax)

    def potentials(self) -> tuple[np.ndarray, np.ndarray]:
        """Return f and g as NumPy arrays, shape (B, n) and (B, m), with B = 1 for one problem."""
        if self._own is not None:  # with all digits, which arrays of JAX may lack
            return arrays.host(self._own[0]), arrays.host(self._own[1])
        B, n, m = self.problem.cost.shape
        f, g = arrays.to_numpy(self.f, "f"), arrays.to_numpy(self.g, "g")
        return f.reshape(B, n), g.reshape(B, m)

    def _solved(self) -> Iterator[Solved]:
        return each(self.problem, *self.potentials())

    def __getitem__(self, k: int) -> "TransportResult":
        if not self.problem.batched:
            raise TypeError("the result of one problem has no items: only that of a batch does")
        B = self.problem.cost.shape[0]
        if not -B <= k < B:
            raise IndexError(f"problem {k} of a batch of {B}")
        k %= B
        f, g = self.potentials()
        one = self.problem.item(k)
        of_each: tuple[Array, ...] = (self.cost, self.value, self.dual_value, self.marginal_error)
        cost, value, dual_value, error, iterations, converged = (
            arrays.host(arrays.take(v, "values"))[k].item()
            for v in (*of_each, self.iterations, self.converged)
        )
        f, g = f[k : k + 1], g[k : k + 1]
        return TransportResult(
            one.array(f),
            one.array(g),
            cost,
            value,
            dual_value,
            error,
            iterations,
            converged,
            self.history,
            self.method,
            self.reg,
            one,
            None if self._own is None else (f, g),
        )

    def __repr__(self) -> str:
        size = " x ".join(str(s) for s in self.shape)
        if self.problem.batched:
            converged = int(arrays.host(arrays.take(self.converged, "converged")).sum())
            parts = [size, f"reg={self.reg:g}", f"method={self.method!r}"]
            parts.append(f"converged={converged} of {self.shape[0]}")
        else:
            parts = [size, f"reg={self.reg:g}", f"cost={self.cost:.6g}"]
            parts += [f"marginal_error={self.marginal_error:.2g}", f"iterations={self.iterations}"]
            parts += [f"method={self.method!r}", f"converged={self.converged}"]
        return f"TransportResult({', '.join(parts)})"
